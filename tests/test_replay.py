"""Calls that come again: which of them are of one kind, and what a replayed one makes and launches."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from mmcore import _core
from mmcore.backends import replay


class _Op:
    """An op whose launches note the addresses they are given: that of its tensors, result and scratch."""

    def __init__(self, body: Callable[[_Op, Sequence[Tensor | None]], Sequence[Tensor | None]]) -> None:
        self.body = body
        self.anew = 0
        self.launched: list[list[int]] = []

    def launch(self, *tensors: Tensor) -> None:
        """Launch a kernel that takes these tensors."""

        def prepare(slot: Callable[[Tensor], int], count: int) -> Callable[[list[int]], None]:
            slots = [slot(t) for t in tensors]
            assert all(0 <= s < count for s in slots)
            return lambda pointers: self.launched.append([pointers[s] for s in slots])

        if replay.recording():
            replay.launched(prepare)
        self.launched.append([t.data_ptr() for t in tensors])

    def __call__(self, *tensors: Tensor | None, options: Any = ()) -> Sequence[Tensor | None]:
        """Call it, and forget what was launched before."""
        self.launched = []

        def make() -> Sequence[Tensor | None]:
            self.anew += 1
            return self.body(self, tensors)

        return replay.run(("op", options), tensors, make)


def _double(op: _Op, tensors: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    x = tensors[0]
    assert x is not None
    out = replay.empty(x.shape, x.dtype, x.device)
    scratch = [replay.empty((n,), torch.float32, x.device) for n in (3, 100)]
    given = [t for t in tensors if t is not None]
    op.launch(*given, scratch[0], scratch[1])
    op.launch(scratch[1], scratch[0], out)
    return [out, None]


@pytest.fixture(autouse=True, params=["core", "python"])
def _no_plans(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is known before; tensors are read by the core, and as where torch does not let it."""
    if request.param == "python":
        monkeypatch.setattr(_core, "tensors_key", lambda tensors: None)
    elif not _core.tensors_ready():
        pytest.skip("this torch does not let the core read tensors")
    monkeypatch.setattr(replay, "RECORDED_AT", 1)
    replay.clear()
    yield
    replay.clear()


def test_a_second_call_launches_the_same_with_its_own_addresses() -> None:
    op = _Op(_double)
    op(torch.ones(4, 5), None)
    x = torch.ones(4, 5)
    out, nothing = op(x, None)
    assert op.anew == 1
    assert nothing is None
    assert out is not None
    assert (out.shape, out.dtype) == ((4, 5), torch.float32)
    (first, a, b), second = op.launched
    assert first == x.data_ptr()
    assert second == [b, a, out.data_ptr()]
    assert len({x.data_ptr(), out.data_ptr(), a, b}) == 4
    assert b - a >= 12
    assert a % 16 == b % 16 == 0


def test_calls_that_stay_alone_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "RECORDED_AT", 2)
    recorded = []

    def body(op: _Op, tensors: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        recorded.append(replay.recording())
        return _double(op, tensors)

    op = _Op(body)
    for _ in range(4):
        op(torch.ones(4))
    op(torch.ones(5))
    assert recorded == [False, True, False]


_BASE = torch.arange(64.0)


@pytest.mark.parametrize(
    "other",
    [
        _BASE.reshape(8, 8),
        _BASE[::2],
        _BASE[:32].to(torch.float64),
        _BASE[1:33],
        _BASE[:31],
        _BASE[:32].clone().requires_grad_(),
        None,
    ],
    ids=["shape", "strides", "dtype", "alignment", "length", "requires_grad", "missing"],
)
def test_what_decides_a_launch_makes_another_kind(other: Tensor | None) -> None:
    op = _Op(_double)
    x = torch.ones(4)
    op(x, _BASE[:32])
    op(x, _BASE[:32])
    assert op.anew == 1
    op(x, other)
    assert op.anew == 2


def test_options_make_another_kind() -> None:
    op = _Op(_double)
    for n, options in enumerate(("a", "b", ("a",)), 1):
        op(torch.ones(4), options=options)
        op(torch.ones(4), options=options)
        assert op.anew == n
    op(torch.ones(4), options=["a"])  # nothing to look it up by
    assert op.anew == 4


def test_tensors_at_one_address_are_another_kind() -> None:
    op = _Op(_double)
    x, y = torch.ones(4), torch.ones(4)
    op(x, x)
    a = op(y, y)[0]
    assert op.anew == 1
    assert op.launched[0][:2] == [y.data_ptr()] * 2
    assert a is not None
    op(x, y)
    assert op.anew == 2
    op(y, x)
    assert op.anew == 2
    assert op.launched[0][:2] == [y.data_ptr(), x.data_ptr()]


def test_tensors_may_come_without_elements() -> None:
    op = _Op(lambda op, given: _double(op, [t for t in given if t is not None and t.numel()]))
    for _ in range(2):
        op(torch.ones(4), torch.ones(0), torch.ones(2, 0))
    assert op.anew == 1


def test_results_are_made_with_their_strides_and_values() -> None:
    def body(op: _Op, tensors: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        x = tensors[0]
        assert x is not None
        out = replay.empty((6,), torch.bfloat16, x.device)
        zeros = replay.zeros((4, 3), torch.float64, x.device)
        ones = replay.ones((5,), torch.float32, x.device)
        op.launch(x, out, ones)
        return [out.reshape(2, 3).movedim(1, 0), zeros.movedim(1, 0), torch.empty(0, 7)]

    op = _Op(body)
    first = op(torch.ones(4))
    again = op(torch.ones(4))
    assert op.anew == 1
    for a, b in zip(first, again, strict=True):
        assert a is not None
        assert b is not None
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)
    assert again[1] is not None
    assert torch.equal(again[1], torch.zeros(3, 4, dtype=torch.float64))


@pytest.mark.parametrize("where", ["operand", "result", "input", "view", "nothing"])
def test_other_work_is_done_anew(where: str) -> None:
    def body(op: _Op, tensors: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        x = tensors[0]
        assert x is not None
        out = replay.empty(x.shape, x.dtype, x.device)
        if where != "nothing":
            op.launch(x + 0 if where == "operand" else x, out)
        return [{"result": out + 1, "input": x, "view": out[1:]}.get(where, out)]

    op = _Op(body)
    for n in (1, 2, 3):
        op(torch.ones(4))
        assert op.anew == n


def test_an_error_is_not_remembered() -> None:
    wrong = True

    def body(op: _Op, tensors: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        if wrong:
            raise ValueError("wrong")
        return _double(op, tensors)

    op = _Op(body)
    for _ in range(2):
        with pytest.raises(ValueError, match="wrong"):
            op(torch.ones(4))
    assert not replay.recording()
    wrong = False
    op(torch.ones(4))
    op(torch.ones(4))
    assert op.anew == 3


@pytest.mark.parametrize(
    "given", [3, [torch.ones(2)], torch.ones(2).to_sparse()], ids=["int", "list", "sparse"]
)
def test_what_is_no_plain_tensor_is_left_to_the_op(given: Any) -> None:
    op = _Op(lambda op, tensors: [])
    for n in (1, 2):
        assert op(given) == []
        assert op.anew == n


def test_calls_inside_of_a_recorded_one_are_part_of_it() -> None:
    inner = _Op(_double)

    def body(op: _Op, tensors: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        return inner(*tensors)

    outer = _Op(body)
    outer(torch.ones(4))
    out = outer(torch.ones(4))[0]
    assert (outer.anew, inner.anew) == (1, 1)
    assert out is not None
    assert inner.launched[-1][-1] == out.data_ptr()


def test_disabled_works_everything_out_anew() -> None:
    op = _Op(_double)
    op(torch.ones(4))
    with replay.disabled():
        assert not replay.serves(torch.ones(4))
        op(torch.ones(4))
    assert op.anew == 2
    op(torch.ones(4))
    assert op.anew == 2


def test_the_kinds_that_are_used_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "MAX_PLANS", 8)
    op = _Op(_double)
    for n in range(1, 40):
        op(torch.ones(4))  # used between all others
        op(torch.ones(n, 2))
        assert len(replay._plans) <= 8
    assert op.anew == 40


def test_threads_share_plans_and_record_apart() -> None:
    op = _Op(lambda op, tensors: [replay.empty((4,), torch.float32, torch.device("cpu"))])
    started, go = threading.Event(), threading.Event()

    def slow(op: _Op, tensors: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        started.set()
        assert go.wait(20)
        return _double(op, tensors)

    other = _Op(slow)
    thread = threading.Thread(target=other, args=(torch.ones(4),))
    thread.start()
    assert started.wait(20)
    assert not replay.recording()
    op(torch.ones(9))  # recorded here, while the thread records
    go.set()
    thread.join()
    out = other(torch.ones(4))[0]
    assert other.anew == 1
    assert out is not None
    assert len(other.launched) == 2


def test_types_are_told_apart() -> None:
    kinds = [torch.float16, torch.bfloat16, torch.int16, torch.bool, torch.uint8, torch.int8]
    given = [torch.zeros(4, dtype=kind) for kind in kinds] + [torch.zeros(4, 1, dtype=torch.int8)]
    described = [_core.tensors_key((t,)) or replay._described([t]) for t in given]
    assert len({key for key, _ in described}) == len(given)
    assert [pointers for _, pointers in described] == [[t.data_ptr()] for t in given]


def test_memory_of_another_alignment_is_not_launched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    op = _Op(_double)
    op(torch.ones(4))
    (plan,) = replay._plans.values()
    assert plan is not None
    memory = torch.zeros(64)
    monkeypatch.setattr(plan, "makes", [lambda: memory[1:5]])
    op(torch.ones(4))
    assert op.anew == 2
