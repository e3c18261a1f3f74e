"""contrastive_loss against torch's formulas in float64, and what it promises beside its numbers."""

from __future__ import annotations

import doctest
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import mmcore
from mmcore import _core
from mmcore.backends import load_backend
from mmcore.ops import contrastive

BACKENDS = ("reference", "cpu")
KINDS = ("clip", "siglip")
SIZES = (*range(1, 10), 15, 16, 17, 31, 32, 33, 63, 64, 65, 97, 150)


class Case(NamedTuple):
    kind: str
    batch: int
    depth: int = 6
    dtype: torch.dtype = torch.float32
    scale: float = 14.3
    bias: float = -5.0
    length: float = 1.0
    """Of each feature vector."""

    @property
    def id(self) -> str:
        return "-".join(str(value).removeprefix("torch.") for value in self)


# Kernels of clip differ by whether z of 64 rows lies within 32: scale 14.3 does, 100 and 1e4 do not.
CASES = [
    *(Case(kind, batch, scale=scale) for kind in KINDS for batch in SIZES for scale in (14.3, 100.0)),
    *(
        Case(kind, batch, dtype=dtype)
        for kind in KINDS
        for batch in (1, 7, 33)
        for dtype in (torch.bfloat16, torch.float16, torch.float64)
    ),
    *(Case(kind, 70, dtype=torch.float64, scale=scale) for kind in KINDS for scale in (3.0, 200.0)),
    *(Case(kind, 35, scale=scale) for kind in KINDS for scale in (1e4, -1e4, -14.3, 0.0, 1e-3)),
    *(Case(kind, 20, length=100.0, scale=1.0, bias=bias) for kind in KINDS for bias in (0.0, 1e4, -1e4)),
    *(Case(kind, 9, depth=depth) for kind in KINDS for depth in (1, 64)),
]


def features(case: Case, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    a, b = (
        (F.normalize(torch.randn(case.batch, case.depth, generator=g), dim=1) * case.length).to(case.dtype)
        for _ in range(2)
    )
    return a, b


def formula(a: Tensor, b: Tensor, scale: Tensor | float, kind: str, bias: Tensor | float = 0.0) -> Tensor:
    """The loss as the papers have it."""
    z = scale * (a @ b.T)
    labels = torch.arange(len(a), device=a.device)
    if kind == "clip":
        return (F.cross_entropy(z, labels) + F.cross_entropy(z.T, labels)) / 2
    signs = 2 * torch.eye(len(a), dtype=a.dtype, device=a.device) - 1
    return -F.logsigmoid(signs * (z + bias)).sum() / len(a)


Results = dict[str, Tensor]


def run(case: Case, upstream: float = 1.0, tensors: tuple[Tensor, Tensor] | None = None) -> Results:
    """The loss and its gradients by the op."""
    a, b = (x.clone().requires_grad_() for x in tensors or features(case))
    wide = torch.float64 if case.dtype == torch.float64 else torch.float32
    numbers = [torch.tensor(x, dtype=wide, requires_grad=True) for x in (case.scale, case.bias)]
    bias = numbers[1] if case.kind == "siglip" else None
    loss = mmcore.contrastive_loss(a, b, numbers[0], case.kind, bias)
    leaves = [a, b, *numbers[: 1 if bias is None else 2]]
    grads = torch.autograd.grad(loss, leaves, torch.tensor(upstream, dtype=loss.dtype))
    return dict(zip(("loss", "a", "b", "scale", "bias"), (loss.detach(), *grads), strict=False))


def oracle(case: Case, upstream: float = 1.0) -> tuple[Results, Results]:
    """The same in float64, and how large a difference rounding explains.

    Rounding changes z by a few eps times what is added up in it, and what depends on z by as much relative to
    the absolute values that are added up in that.
    """
    a, b = (x.double().requires_grad_() for x in features(case))
    wide = torch.float64 if case.dtype == torch.float64 else torch.float32
    numbers = [torch.tensor(x, dtype=wide).double().requires_grad_() for x in (case.scale, case.bias)]
    siglip = case.kind == "siglip"
    loss = formula(a, b, numbers[0], case.kind, numbers[1])
    leaves = [a, b, *numbers[: 1 + siglip]]
    grads = torch.autograd.grad(loss * upstream, leaves)
    results = dict(zip(("loss", "a", "b", "scale", "bias"), (loss.detach(), *grads), strict=False))

    with torch.no_grad():
        size, factor = case.batch, abs(numbers[0])
        z = numbers[0] * (a @ b.T)
        terms = (factor * (a.abs() @ b.abs().T)).max() + (numbers[1].abs() if siglip else 0)
        eye = torch.eye(size, dtype=torch.float64)
        if siglip:
            dz = ((z + numbers[1]).sigmoid() * (1 - eye) + (-(z + numbers[1])).sigmoid() * eye) / size
        else:
            dz = (z.softmax(0) + z.softmax(1) + 2 * eye) / (2 * size)
        unit = 4 * torch.finfo(wide).eps * (2 + terms)
        of_loss = F.softplus(z + numbers[1]).sum() / size + 1 if siglip else 1 + loss.detach()
        slack = {
            "loss": unit * (of_loss if not siglip else dz.sum() + loss.detach()),
            "a": unit * upstream * factor * (dz @ b.abs()),
            "b": unit * upstream * factor * (dz.T @ a.abs()),
            "scale": unit * upstream * (dz * (a.abs() @ b.abs().T)).sum(),
            "bias": unit * upstream * dz.sum(),
        }
    return results, slack


def assert_close(case: Case, found: Results, upstream: float = 1.0) -> None:
    expected, slack = oracle(case, upstream)
    assert set(found) == set(expected)
    wide = torch.float64 if case.dtype == torch.float64 else torch.float32
    for name, result in found.items():
        assert result.dtype == (case.dtype if name in ("a", "b") else wide), name
        assert result.shape == expected[name].shape
        # Casts are monotonic: a half format gets no slack for its own rounding.
        low, high = ((expected[name] + sign * slack[name].abs()).to(result.dtype) for sign in (-1, 1))
        wrong = ~((result >= low) & (result <= high))  # a NaN is wrong
        if wrong.any():
            error = (result.double() - expected[name]).abs().max().item()
            worst = slack[name].abs().max().item()
            raise AssertionError(f"{case.id}: {name} is off by {error:.3g}, allowed {worst:.3g}")


def check_table() -> int:
    """Every case on the backend in force; what a process of another instruction set runs."""
    for case in CASES:
        assert_close(case, run(case))
    return len(CASES)


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``tiles(case, rows)``: z of the case by so many rows at a time."""

    def lower(case: Case, rows: int) -> None:
        size = 8 if case.dtype == torch.float64 else 4
        monkeypatch.setattr(contrastive, "_TILE_BYTES", rows * case.batch * size)

    return lower


@pytest.fixture
def threads() -> Iterator[Any]:
    before = mmcore.get_num_threads()
    yield mmcore.set_num_threads
    mmcore.set_num_threads(before)


# ---- numbers


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_oracles_numbers(backend: str, case: Case) -> None:
    with mmcore.backend(backend):
        assert_close(case, run(case))


@pytest.mark.parametrize("isa", ["base", "avx2", "avx512", "neon"])
def test_every_isa(isa: str) -> None:
    """In a process of its own, because an instruction set is chosen once."""
    if isa not in _core.available_isas():
        pytest.skip(f"this machine has no {isa}")
    program = (
        "import test_contrastive as t; from mmcore import _core;"
        "print(t.check_table(), 'cases on', _core.isa())"
    )
    env = {**os.environ, "MMCORE_ISA": isa, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{len(CASES)} cases on {isa}" in done.stdout


@pytest.mark.parametrize("upstream", [2.5, -1.0, 0.0])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_upstream_gradient(backend: str, kind: str, upstream: float, tiles: Any) -> None:
    case = Case(kind, 33)
    with mmcore.backend(backend):
        assert_close(case, run(case, upstream), upstream)
        tiles(case, 10)
        assert_close(case, run(case, upstream), upstream)


@pytest.mark.parametrize("rows", [1, 3, 64, 70, 129])
@pytest.mark.parametrize(
    "case",
    [Case(kind, 130, dtype=dtype, scale=scale)
     for kind in KINDS
     for dtype, scale in ((torch.float32, 14.3), (torch.float32, -80.0), (torch.float64, 14.3),
                          (torch.bfloat16, 14.3))],
    ids=lambda case: case.id,
)  # fmt: skip
@pytest.mark.parametrize("backend", BACKENDS)
def test_tiles_change_nothing(backend: str, case: Case, rows: int, tiles: Any) -> None:
    tiles(case, rows)
    assert contrastive._tiled(contrastive._check(call(case), (*features(case), None, None))).tile_rows == rows
    with mmcore.backend(backend):
        assert_close(case, run(case))


def call(case: Case) -> Any:
    return contrastive._Call(case.kind, case.scale, None, None)


def test_pairs_that_fit_perfectly_keep_their_digits() -> None:
    """SigLIP's diagonal without cancellation: log(1 + exp(-30)), not 30 - 30."""
    eye = torch.eye(2)
    found = mmcore.contrastive_loss(eye, eye, 60.0, "siglip", -30.0)
    expected = torch.tensor(-30.0, dtype=torch.float64).exp().log1p() * 2
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


def test_nan_and_infinity_show() -> None:
    for kind, bad, where in itertools.product(KINDS, (torch.nan, torch.inf), (0, 1)):
        for backend in BACKENDS:
            tensors = features(Case(kind, 20, 4))
            tensors[where][11, 2] = bad
            with mmcore.backend(backend):
                found = run(Case(kind, 20, 4), tensors=tensors)
            assert not found["loss"].isfinite(), (kind, bad, backend)
            if bad != bad:  # what belongs to an infinite z can be finite
                assert found["a"].isnan().any()
                assert found["b"].isnan().any()


def test_numbers_and_tensors_are_the_same_scale() -> None:
    a, b = features(Case("siglip", 12))
    for backend in BACKENDS:
        with mmcore.backend(backend):
            by_number = mmcore.contrastive_loss(a, b, 8.0, "siglip", -2)
            by_tensor = mmcore.contrastive_loss(a, b, torch.tensor(8.0), "siglip", torch.tensor(-2.0))
            assert torch.equal(by_number, by_tensor)
            none = mmcore.contrastive_loss(a, b, 8.0, "siglip")
            assert torch.equal(none, mmcore.contrastive_loss(a, b, 8.0, "siglip", 0.0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_mixed_dtypes_and_strides(backend: str) -> None:
    g = torch.Generator().manual_seed(3)
    a = torch.randn(7, 20, generator=g).T[:, :5].requires_grad_()  # (20, 5), columns apart
    b = torch.randn(20, 10, generator=g).double()[:, ::2].requires_grad_()
    with mmcore.backend(backend):
        loss = mmcore.contrastive_loss(a, b, torch.tensor(2.0, dtype=torch.bfloat16))
    da, db = torch.autograd.grad(loss, (a, b))
    expected = formula(a.double(), b, 2.0, "clip")
    wanted = torch.autograd.grad(expected, (a, b))
    assert (loss.dtype, da.dtype, db.dtype) == (torch.float64, torch.float32, torch.float64)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close((da, db), wanted)


# ---- derivatives


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend: str, kind: str, whole: bool, tiles: Any) -> None:
    case = Case(kind, 6, 3, torch.float64)
    if not whole:
        tiles(case, 4)
    a, b = (x.requires_grad_() for x in features(case))
    scale, bias = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (3.0, -1.0))
    inputs = (a, b, scale) if kind == "clip" else (a, b, scale, bias)

    def loss(*given: Tensor) -> Tensor:
        return mmcore.contrastive_loss(given[0], given[1], given[2], kind, *given[3:])

    with mmcore.backend(backend):
        assert torch.autograd.gradcheck(loss, inputs)
        assert torch.autograd.gradgradcheck(loss, inputs)


@pytest.mark.parametrize("wanted", [("a",), ("b",), ("scale",), ("bias",), ("a", "scale"), ("b", "bias")])
@pytest.mark.parametrize("backend", BACKENDS)
def test_only_what_is_wanted(backend: str, wanted: tuple[str, ...], tiles: Any) -> None:
    case = Case("siglip", 21)
    a, b = features(case)
    given = {"a": a, "b": b, "scale": torch.tensor(case.scale), "bias": torch.tensor(case.bias)}
    for rows in (21, 8):
        tiles(case, rows)
        leaves = {n: t.clone().requires_grad_(n in wanted) for n, t in given.items()}
        with mmcore.backend(backend):
            everything = run(case)
            loss = mmcore.contrastive_loss(
                leaves["a"], leaves["b"], leaves["scale"], "siglip", leaves["bias"]
            )
            loss.backward()
        for name, leaf in leaves.items():
            assert (leaf.grad is not None) == (name in wanted)
            if leaf.grad is not None:
                assert torch.equal(leaf.grad, everything[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_that_is_kept_gives_the_same_again(kind: str) -> None:
    a, b = (x.requires_grad_() for x in features(Case(kind, 33)))
    loss = mmcore.contrastive_loss(a, b, 14.3, kind)
    first = torch.autograd.grad(loss, (a, b), retain_graph=True)
    for g in first:
        g.clone().mul_(3)
    for one, two in zip(first, torch.autograd.grad(loss, (a, b)), strict=True):
        assert torch.equal(one, two)


def test_features_changed_before_the_backward_are_noticed() -> None:
    a, b = (x.requires_grad_() for x in features(Case("clip", 9)))
    moved = b * 1
    loss = mmcore.contrastive_loss(a, moved, 5.0)
    with torch.no_grad():
        moved.mul_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("kind", KINDS)
def test_no_grad_and_inputs_unmodified(kind: str) -> None:
    for backend in BACKENDS:
        a, b = features(Case(kind, 65))
        kept = a.clone(), b.clone()
        scale = torch.tensor(14.3, requires_grad=True)
        with mmcore.backend(backend):
            recorded = mmcore.contrastive_loss(a.requires_grad_(), b.requires_grad_(), scale, kind)
            recorded.backward()
            with torch.no_grad():
                loss = mmcore.contrastive_loss(a, b, scale, kind)
            inferred = mmcore.contrastive_loss(a.detach(), b.detach(), 14.3, kind)
        assert recorded.requires_grad
        assert not loss.requires_grad
        assert not inferred.requires_grad
        assert torch.equal(a, kept[0])
        assert torch.equal(b, kept[1])
        assert torch.equal(loss, recorded)


# torch's own warning, at its import of what forward derivatives need
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_func_transforms(kind: str) -> None:
    a, b = features(Case(kind, 5, dtype=torch.float64))
    expected = run(Case(kind, 5, dtype=torch.float64), tensors=(a, b))

    def loss(x: Tensor) -> Tensor:
        return mmcore.contrastive_loss(x, b, 14.3, kind, None if kind == "clip" else -5.0)

    torch.testing.assert_close(torch.func.grad(loss)(a), expected["a"])
    several = torch.vmap(loss)(torch.stack((a, a.flip(0))))
    torch.testing.assert_close(several, torch.stack((loss(a), loss(a.flip(0)))))
    _, slope = torch.func.jvp(loss, (a,), (torch.ones_like(a),))
    torch.testing.assert_close(slope, expected["a"].sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_autocast_changes_nothing(kind: str, dtype: torch.dtype) -> None:
    case = Case(kind, 33, dtype=dtype)
    for backend in BACKENDS:
        with mmcore.backend(backend):
            expected = run(case)
            with torch.autocast("cpu", torch.bfloat16):
                found = run(case)
        for name, value in expected.items():
            assert torch.equal(found[name], value), (backend, name)


# ---- threads and memory


@pytest.mark.parametrize("rows", [600, 300])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [14.3, 100.0])
def test_the_number_of_threads_changes_nothing(
    kind: str, scale: float, rows: int, tiles: Any, threads: Any
) -> None:
    case = Case(kind, 600, scale=scale)
    tiles(case, rows)
    threads(1)
    expected = run(case)
    for number in (1, 2, 3):
        threads(number)
        found = run(case)
        for name, value in expected.items():
            assert torch.equal(found[name], value), (number, name)


_PEAK = """
import resource, sys, torch, mmcore
kind = sys.argv[1]
def step(batch):
    a, b = (torch.randn(batch, 16, requires_grad=True) for _ in range(2))
    s = torch.tensor(1.0, requires_grad=True)
    mmcore.contrastive_loss(a, b, s, kind).backward()
    assert a.grad.isfinite().all() and b.grad.isfinite().all() and s.grad.isfinite()
step(512)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
step(int(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is Linux's")
@pytest.mark.parametrize("kind", KINDS)
def test_a_large_batch_is_never_held_as_a_matrix(kind: str) -> None:
    batch = 8192  # z is 256 MiB
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, kind, str(batch)], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-2000:]
    grown = int(done.stdout) * 1024
    assert grown < batch * batch * 4 / 4, f"{grown >> 20} MiB more"


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that is made inside."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, Tensor):
                self.elements = max(self.elements, t.numel())
        return out


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_makes_tiles_too(kind: str, tiles: Any) -> None:
    """It serves every device but the CPU."""
    case = Case(kind, 50)
    tiles(case, 7)
    reference = load_backend("reference")
    problem = contrastive._tiled(contrastive._check(call(case), (*features(case), None, None)))
    with Largest() as largest:
        _, parts = reference.contrastive_loss(problem, True)
        recorded = contrastive.Recorded(*parts)
        reference.contrastive_loss_gradients(problem, recorded, torch.tensor(1.0), (True, True))
    assert largest.elements == max(7 * 50, 50 * case.depth)


# ---- compiled


@pytest.fixture
def fresh_graphs() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def arguments(case: Case, requires_grad: bool) -> tuple[Any, ...]:
    a, b = (x.requires_grad_(requires_grad) for x in features(case))
    scale, bias = (torch.tensor(x, requires_grad=requires_grad) for x in (case.scale, case.bias))
    return a, b, scale, bias if case.kind == "siglip" else None, case.kind


@pytest.mark.parametrize("rows", [7, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_op_is_registered_as_torch_wants_it(
    backend: str, kind: str, dtype: torch.dtype, rows: int, tiles: Any
) -> None:
    case = Case(kind, 7, dtype=dtype)
    tiles(case, rows)
    with mmcore.backend(backend):
        for keep in (True, False):
            torch.library.opcheck(torch.ops.mmcore.contrastive_loss, (*arguments(case, keep), keep))
        given = arguments(case, False)
        _, *recorded = torch.ops.mmcore.contrastive_loss(*given, True)
        for needs in ([True, True, True, kind == "siglip"], [False, True, False, False]):
            torch.library.opcheck(
                torch.ops.mmcore.contrastive_loss_backward,
                (torch.tensor(2.0), *given, *recorded, needs),
                test_utils=("test_schema", "test_faketensor"),
            )


@pytest.mark.usefixtures("fresh_graphs")
@pytest.mark.parametrize("kind", KINDS)
def test_one_graph_gives_the_eager_numbers(kind: str) -> None:
    a, b, scale, bias, _ = arguments(Case(kind, 33), True)

    def loss(*given: Any) -> Tensor:
        return mmcore.contrastive_loss(given[0] * 1, given[1], given[2], kind, given[3])

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found, expected = compiled(a, b, scale, bias), loss(a, b, scale, bias)
    assert torch.equal(found, expected)
    leaves = [t for t in (a, b, scale, bias) if t is not None]
    for one, two in zip(
        torch.autograd.grad(found * 3, leaves), torch.autograd.grad(expected * 3, leaves), strict=True
    ):
        assert torch.equal(one, two)
    with torch.no_grad():
        assert torch.equal(compiled(a, b, scale, bias), expected)


@pytest.mark.usefixtures("fresh_graphs")
def test_dynamic_shapes_and_numbers() -> None:
    def loss(a: Tensor, b: Tensor, scale: float) -> Tensor:
        return mmcore.contrastive_loss(a, b, scale, "siglip", -1.0)

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch, depth, scale in ((5, 4, 2.0), (11, 7, 3.5)):
        a, b = (x.requires_grad_() for x in features(Case("siglip", batch, depth)))
        found, expected = compiled(a, b, scale), loss(a, b, scale)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found, (a, b)), torch.autograd.grad(expected, (a, b)))


@pytest.mark.usefixtures("fresh_graphs")
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler")
# torch's own warnings, at its import of inductor
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_inductor() -> None:
    a, b, scale, bias, _ = arguments(Case("siglip", 33), True)

    def loss(x: Tensor, y: Tensor, log_scale: Tensor, shift: Tensor) -> Tensor:
        x, y = (F.normalize(t, dim=1) for t in (x, y))
        return mmcore.contrastive_loss(x, y, log_scale.exp(), "siglip", shift)

    log_scale = scale.detach().log().requires_grad_()
    found, expected = (f(a, b, log_scale, bias) for f in (torch.compile(loss, fullgraph=True), loss))
    torch.testing.assert_close(found, expected)
    leaves = (a, b, log_scale, bias)
    torch.testing.assert_close(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves))


class Pair(torch.nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return mmcore.contrastive_loss(a, b, 10.0)


def test_exports() -> None:
    a, b = features(Case("clip", 6))
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(Pair(), (a, b), dynamic_shapes=({0: batch}, {0: batch}))
    other = features(Case("clip", 9))
    torch.testing.assert_close(program.module()(*other), Pair()(*other))


# ---- refusals

A, B = features(Case("clip", 4, 3))
META = torch.empty(4, 3, device="meta")

WRONG_TYPES: list[tuple[tuple[Any, ...], str]] = [
    ((None, B, 1.0), r"a: expected a tensor, got NoneType"),
    ((A, [1.0], 1.0), r"b: expected a tensor, got list"),
    ((A.long(), B, 1.0), r"a: expected a float32, .* got torch.int64"),
    ((A, B.cfloat(), 1.0), r"b: expected a float32, .* got torch.complex64"),
    ((A, B, None), r"logit_scale: expected a number or a 0-dim tensor, got NoneType"),
    ((A, B, True), r"logit_scale: expected a number or a 0-dim tensor, got True"),
    ((A, B, "1"), r"logit_scale: expected a number or a 0-dim tensor, got '1'"),
    ((A, B, torch.tensor(1)), r"logit_scale: expected a float32, .* got torch.int64"),
    ((A, B, 1.0, "siglip", [0.0]), r"bias: expected a number or a 0-dim tensor, got list"),
    ((A, B, 1.0, "siglip", torch.tensor(True)), r"bias: expected a float32, .* got torch.bool"),
]
WRONG_VALUES: list[tuple[tuple[Any, ...], str]] = [
    ((A[0], B, 1.0), r"a: expected shape \(B, D\), got \(3,\)"),
    ((A, B[None], 1.0), r"b: expected shape \(B, D\), got \(1, 4, 3\)"),
    ((A, B[:3], 1.0), r"b: expected shape \(4, 3\) as a has, got \(3, 3\)"),
    ((A, B[:, :2], 1.0), r"b: expected shape \(4, 3\) as a has, got \(4, 2\)"),
    ((A[:0], B[:0], 1.0), r"a: expected at least one pair, got a batch of 0"),
    ((A, META, 1.0), r"b: expected a tensor on cpu as a is, got meta"),
    ((A, B, torch.ones(1)), r"logit_scale: expected a 0-dim tensor, got shape \(1,\)"),
    ((A, B, META[0, 0]), r"logit_scale: expected a tensor on cpu as a is, got meta"),
    ((A, B, 1.0, "info_nce"), r"kind: expected one of clip, siglip, got 'info_nce'"),
    ((A, B, 1.0, None), r"kind: expected one of clip, siglip, got None"),
    ((A, B, 1.0, "clip", 0.0), r"bias: kind 'clip' has none"),
    ((A, B, 1.0, "clip", torch.tensor(0.0)), r"bias: kind 'clip' has none"),
    ((A, B, 1.0, "siglip", torch.ones(2)), r"bias: expected a 0-dim tensor, got shape \(2,\)"),
]


@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_arguments_are_refused(backend: str) -> None:
    with mmcore.backend(backend):
        for error, table in ((TypeError, WRONG_TYPES), (ValueError, WRONG_VALUES)):
            for given, message in table:
                with pytest.raises(error, match=message):
                    mmcore.contrastive_loss(*given)


def test_devices_without_kernels_take_the_reference() -> None:
    a = META.clone().requires_grad_()
    loss = mmcore.contrastive_loss(a, META, 2.0)
    loss.backward()
    assert loss.device.type == "meta"
    assert a.grad is not None
    assert a.grad.shape == a.shape
    with mmcore.backend("cpu"), pytest.raises(mmcore.UnsupportedError, match="'meta'"):
        mmcore.contrastive_loss(META, META, 2.0)


def test_the_example() -> None:
    failed, tried = doctest.testmod(contrastive)
    assert tried > 0
    assert failed == 0
