"""multi_task_loss gives the oracle's numbers: every backend and ISA, operands however they lie in memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import KINDS, LOSS_CASES, LossCase
from loss_harness import check_case, expected, run, single_torch_thread
from torch import Tensor
from torch.nn import functional as F

import mmcore
from mmcore import Task

BACKENDS = ("reference", "cpu")


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread() -> Iterator[None]:
    with single_torch_thread():
        yield


@pytest.mark.parametrize("case", LOSS_CASES, ids=lambda case: case.id)
def test_the_kernels_give_the_oracle_numbers(case: LossCase) -> None:
    with mmcore.backend("cpu"):
        check_case(case)


@pytest.mark.parametrize("case", LOSS_CASES[::3], ids=lambda case: case.id)
def test_the_reference_keeps_what_the_op_promises(case: LossCase) -> None:
    """In float64 it is the oracle: its float32, strides and wanted gradients can be wrong."""
    with mmcore.backend("reference"):
        check_case(case)


@pytest.fixture(scope="module")
def expected_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every case should give, worked out once for all processes."""
    path = tmp_path_factory.mktemp("losses") / "expected.pt"
    torch.save({case.id: expected(case) for case in LOSS_CASES}, path)
    return path


@pytest.mark.skipif(os.name != "posix", reason="guard pages need mprotect")
@pytest.mark.parametrize("isa", ["base", "avx2", "avx512", "neon"])
def test_every_isa_between_guard_pages(isa: str, expected_file: Path) -> None:
    """In a process of its own, because an ISA is chosen once and a byte too many kills the process."""
    if isa not in mmcore.build_info()["isa_available"]:
        pytest.skip(f"this machine has no {isa}")
    harness = Path(__file__).with_name("loss_harness.py")
    env = {**os.environ, "MMCORE_ISA": isa, "PYTHONPATH": str(harness.parent)}
    command = [sys.executable, harness, expected_file]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)
    last = done.stderr.splitlines()[-30:]
    assert done.returncode == 0, "\n".join([*done.stdout.splitlines()[-30:], *last])
    assert f"isa: {isa}" in done.stdout
    assert f"{len(LOSS_CASES)} cases, 0 failures" in done.stdout


@settings(max_examples=60, deadline=None)
@given(
    case=st.builds(
        LossCase,
        kinds=st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=5).map(tuple),
        lead=st.lists(st.integers(0, 9), max_size=3).map(tuple),
        columns=st.integers(0, 80),
        reduction=st.sampled_from(("mean", "sum", "none", "mix")),
        dtypes=st.sampled_from(
            ("fp32", "bf16", "fp16", "fp64", "mixed", "fp64-one", "bf16-fp32", "fp32-fp64")
        ),
        mask=st.sampled_from(("none", "first", "full", "mix")),
        absent=st.sampled_from(("some", "all", "none", "one-head")),
        ignored=st.sampled_from(("none", "some", "all")),
        junk=st.sampled_from(("nan", "inf", "finite")),
        content=st.sampled_from(("unit", "large", "offset", "wide", "small")),
        layout=st.sampled_from(("contiguous", "sliced", "transposed", "channels-first", "stepped")),
        target_layout=st.sampled_from(("contiguous", "sliced", "transposed", "stepped")),
        class_dim=st.sampled_from((1, -1)),
        weights=st.sampled_from(("none", "unit", "signs")),
        log_vars=st.sampled_from(("none", "unit", "wide")),
        upstream=st.sampled_from(("one", "scaled", "all", "losses")),
    )
)
def test_any_heads_shapes_and_masks(case: LossCase) -> None:
    check_case(case)


def test_case_ids_are_unique_and_the_table_has_what_it_should() -> None:
    assert len({case.id for case in LOSS_CASES}) == len(LOSS_CASES)
    assert LossCase().id == "mse-7x5"
    seen: dict[str, set[Any]] = {}
    for case in LOSS_CASES:
        for name, value in case.__dict__.items():
            seen.setdefault(name, set()).add(value)
        seen.setdefault("count", set()).add(case.count)
        for i, kind in enumerate(case.kinds):
            seen.setdefault("kind", set()).add((kind, case.reduction_of(i)))
            seen.setdefault("dtype", set()).add((case.family(i), case.output_dtype(i)))
            if case.by_row(i):
                seen.setdefault("row", set()).add(case.extent(i))
    assert seen["columns"] >= {*range(1, 10), 15, 16, 17, 31, 32, 33, 63, 64, 65, 97, 1025}
    assert {1, 100_003} <= seen["row"]
    assert {0, 1, 2, 3} <= {len(lead) for lead in seen["lead"]}
    assert any(0 in lead for lead in seen["lead"])
    assert {1, 2, 3, 23, 32} <= seen["count"]
    assert seen["kind"] >= {(k, r) for k in KINDS if k != "value" for r in ("mean", "sum", "none")}
    floats = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    assert seen["dtype"] >= {(k.split("-")[0], d) for k in KINDS for d in floats}
    a, b = LOSS_CASES[3].inputs(), LOSS_CASES[3].inputs()
    assert all(
        torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in zip(a.tensors(), b.tensors(), strict=True)
    )


def test_the_table_meets_missing_labels_that_hold_nan() -> None:
    """So that a kernel that multiplies by 0, or reads what it should not, is found."""
    case = LossCase(("ce", "mse", "ce-soft"), (9, 4), 7, mask="full", class_dim=-1)
    inputs = case.inputs()
    assert inputs.masks is not None
    for i in range(3):
        mask, target = inputs.masks[i], inputs.targets[i]
        assert mask is not None
        assert target is not None
        assert (~mask).any()
        assert inputs.outputs[i][~mask].isnan().all()
        there = case.present(i, mask, target)
        assert inputs.outputs[i][there].isfinite().all()
        if i:
            assert target[~mask].isnan().all()
        else:
            assert (target[~mask] == 10**6).all()
            assert ((target == -100) & mask).any()


# what is missing, and what is not a number


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


ROWS, COLUMNS = 9, 21
ALL_TASKS = [
    Task.cross_entropy(label_smoothing=0.1, z_loss=1e-3),
    Task.bce_with_logits(),
    Task.mse(),
    Task.l1(),
    Task.smooth_l1(),
    Task.huber(delta=2.0),
    Task.kl_distillation(temperature=2.0),
    Task.cosine(),
]


def batch(nan_rows: list[int]) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and targets of ALL_TASKS, NaN and a class that nobody has in some rows."""
    outputs = [randn(ROWS, COLUMNS, seed=i) for i in range(len(ALL_TASKS))]
    targets = [torch.arange(ROWS), *(randn(ROWS, COLUMNS, seed=50 + i) for i in range(1, len(ALL_TASKS)))]
    targets[1] = targets[1].sigmoid()
    for x, t in zip(outputs, targets, strict=True):
        x[nan_rows] = torch.nan
        t[nan_rows] = torch.nan if t.is_floating_point() else 10**9
    return [x.requires_grad_() for x in outputs], targets


@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_rows_change_nothing_but_the_counts(backend: str) -> None:
    """Without those rows the batch has the same losses, and the same gradients of the others."""
    outputs, targets = batch([0, 4, 8])
    mask = torch.ones(ROWS, dtype=torch.bool)
    mask[[0, 4, 8]] = False
    log_vars = randn(len(outputs), seed=70).requires_grad_()
    dense = [x.detach()[mask].requires_grad_() for x in outputs]
    with mmcore.backend(backend):
        total, losses = mmcore.multi_task_loss(
            outputs, targets, ALL_TASKS, log_vars=log_vars, masks=[mask] * len(outputs)
        )
        found = torch.autograd.grad(total, [log_vars, *outputs])
        other, dense_losses = mmcore.multi_task_loss(
            dense, [t[mask] for t in targets], ALL_TASKS, log_vars=log_vars
        )
        wanted = torch.autograd.grad(other, [log_vars, *dense])
    torch.testing.assert_close(losses, dense_losses)
    torch.testing.assert_close(total, other)
    torch.testing.assert_close(found[0], wanted[0])
    for a, b in zip(found[1:], wanted[1:], strict=True):
        torch.testing.assert_close(a[mask], b)
        assert (a[~mask] == 0).all()


@pytest.mark.parametrize("how", ["mask", "elements", "ignored"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_head_without_a_label_adds_nothing_and_gets_nothing(backend: str, how: str) -> None:
    """Nor do its log variance and weight, whose terms would otherwise move it."""
    outputs, targets = batch([])
    masks: list[Tensor | None] = [None] * len(outputs)
    if how == "ignored":
        heads = [0]
        targets[0] = torch.full((ROWS,), -100)
    else:
        heads = list(range(len(outputs) - 1))
        for i in heads:
            by_row = ALL_TASKS[i].kind in ("cross_entropy", "kl_distillation", "cosine")
            shape = (ROWS,) if how == "mask" or by_row else (ROWS, COLUMNS)
            masks[i] = torch.zeros(shape, dtype=torch.bool)
    for i in heads:
        outputs[i] = torch.full_like(outputs[i], torch.nan).requires_grad_()
    log_vars, weights = (randn(len(outputs), seed=s).requires_grad_() for s in (70, 71))
    rest = [i for i in range(len(outputs)) if i not in heads]
    with mmcore.backend(backend):
        total, losses = mmcore.multi_task_loss(
            outputs, targets, ALL_TASKS, weights=weights, log_vars=log_vars, masks=masks
        )
        alone, _ = mmcore.multi_task_loss(
            [outputs[i] for i in rest], [targets[i] for i in rest], [ALL_TASKS[i] for i in rest],
            weights=weights[rest], log_vars=log_vars[rest],
        )  # fmt: skip
        for upstream in (1.0, 3.0):
            leaves = [weights, log_vars, *outputs]
            dw, ds, *dx = torch.autograd.grad(total, leaves, torch.tensor(upstream), retain_graph=True)
            assert (dw[heads] == 0).all()
            assert (ds[heads] == 0).all()
            assert (ds[rest] != 0).all()
            for i in heads:
                assert (dx[i] == 0).all(), i
            for i in rest:
                assert (dx[i] != 0).any(), i
    torch.testing.assert_close(total, alone)
    assert (losses[heads] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_without_any_label_gives_zero(backend: str) -> None:
    outputs, targets = batch(list(range(ROWS)))
    log_vars = torch.ones(len(outputs), requires_grad=True)
    nothing = torch.zeros(ROWS, dtype=torch.bool)
    with mmcore.backend(backend):
        total, losses = mmcore.multi_task_loss(
            outputs, targets, ALL_TASKS, log_vars=log_vars, masks=[nothing] * len(outputs)
        )
        total.backward()
    assert total == 0
    assert (losses == 0).all()
    for leaf in (log_vars, *outputs):
        assert leaf.grad is not None
        assert (leaf.grad == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gradient_that_is_not_a_number_stops_where_there_is_no_label(backend: str) -> None:
    tasks = [Task.mse(reduction="none"), Task.cross_entropy(reduction="none"), Task.cosine(reduction="none")]
    outputs = [randn(4, 6, seed=i).requires_grad_() for i in range(3)]
    targets = [randn(4, 6, seed=8), torch.tensor([1, -100, 2, 3]), randn(4, 6, seed=9)]
    there = torch.tensor([True, False, True, True])
    with mmcore.backend(backend):
        _, losses = mmcore.multi_task_loss(outputs, targets, tasks, masks=[there, None, there])
        assert [tuple(x.shape) for x in losses] == [(4, 6), (4,), (4,)]
        grads = [
            torch.ones_like(x).masked_fill(~there.view(-1, *(1,) * (x.dim() - 1)), torch.nan) for x in losses
        ]
        found = torch.autograd.grad(list(losses), outputs, grads)
    for loss, g in zip(losses, found, strict=True):
        assert (loss[1] == 0).all()
        assert (g[1] == 0).all()
        assert g.isfinite().all()
        assert (g[there] != 0).any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_there_and_not_a_number_is_not_hidden(backend: str, value: float) -> None:
    for i, task in enumerate(ALL_TASKS):
        outputs, targets = batch([])
        x = outputs[i].detach().clone()
        x[3, 5] = value
        x.requires_grad_()
        with mmcore.backend(backend):
            total, _ = mmcore.multi_task_loss([x], [targets[i]], [task])
            total.backward()
        assert not total.isfinite(), task
        assert x.grad is not None
        assert x.grad[[0, 1, 2, 4]].isfinite().all(), task
        if value != value and task.kind not in ("l1", "smooth_l1", "huber"):  # torch's sign of NaN is 0
            assert x.grad[3, 5].isnan(), task


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_may_be_minus_infinity(backend: str) -> None:
    """As a caller masks classes: they take no part, and get no gradient."""
    x = randn(3, 40)
    x[:, 7:19] = -torch.inf
    target = torch.tensor([0, 3, 39])
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    with mmcore.backend(backend):
        total, _ = mmcore.multi_task_loss([ours], [target], [Task.cross_entropy()])
        total.backward()
    F.cross_entropy(theirs, target).backward()
    torch.testing.assert_close(total, F.cross_entropy(theirs, target))
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert (ours.grad[:, 7:19] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_zeroes_have_the_gradients_of_their_limits(backend: str) -> None:
    """As heads that start at 0 give them: an absolute value in a formula has no slope there."""
    zero = torch.zeros(4, requires_grad=True)
    with mmcore.backend(backend):
        total, _ = mmcore.multi_task_loss(
            [zero], [torch.tensor([0.0, 1.0, 0.25, 0.5])], [Task.bce_with_logits(reduction="sum")]
        )
        (bce,) = torch.autograd.grad(total, zero)
        total, _ = mmcore.multi_task_loss(
            [zero, zero, zero], [torch.zeros(4)] * 3, [Task.l1(), Task.smooth_l1(), Task.huber()]
        )
        (flat,) = torch.autograd.grad(total, zero)
    torch.testing.assert_close(bce, torch.tensor([0.5, -0.5, 0.25, 0.0]))
    assert (flat == 0).all()


# sizes, threads and memory


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 5), (0,), (0, 3, 5), (3, 0)])
def test_no_elements_have_no_loss(shape: tuple[int, ...], backend: str) -> None:
    tasks = [Task.mse(), Task.bce_with_logits(reduction="sum"), Task.l1(reduction="none")]
    outputs = [torch.zeros(shape, requires_grad=True) for _ in tasks]
    log_vars = torch.ones(3, requires_grad=True)
    with mmcore.backend(backend):
        total, losses = mmcore.multi_task_loss(outputs, [torch.zeros(shape)] * 3, tasks, log_vars=log_vars)
        total.backward()
    assert total == losses[0] == losses[1] == 0
    assert losses[2].shape == shape
    assert torch.equal(log_vars.grad, torch.zeros(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_calls_do_not_depend_on_threads_or_on_the_run(dtype: torch.dtype) -> None:
    """Many rows, long rows and many elements, masked; straight to the core, no backend being forced."""
    outputs = [
        randn(1000, 67, seed=1),
        randn(3, 40_000, seed=2),
        randn(257, 129, 5, seed=3),
        randn(700, 65, seed=4),
    ]
    outputs = [x.to(dtype).requires_grad_() for x in outputs]
    targets = [torch.arange(1000) % 67, torch.tensor([5, 39_999, -100]), randn(257, 129, 5), randn(700, 65)]
    masks = [None, None, randn(257, 129) > 0, randn(700, seed=9) > 0]
    tasks = [
        Task.cross_entropy(weight=torch.linspace(0.5, 2, 67)),
        Task.cross_entropy(label_smoothing=0.1, z_loss=1e-4),
        Task.smooth_l1(),
        Task.kl_distillation(temperature=2.0),
    ]
    log_vars = randn(4).requires_grad_()

    def call(upstream: float) -> list[Tensor]:
        total, losses = mmcore.multi_task_loss(outputs, targets, tasks, log_vars=log_vars, masks=masks)
        grads = torch.autograd.grad(total, [log_vars, *outputs], torch.tensor(upstream))
        return [total.detach(), losses.detach(), *grads]

    before = mmcore.get_num_threads()
    try:
        for upstream in (1.0, 0.3):
            mmcore.set_num_threads(1)
            wanted = call(upstream)
            for threads in (2, 3, 8, 2):
                mmcore.set_num_threads(threads)
                for a, b in zip(wanted, call(upstream), strict=True):
                    assert torch.equal(a, b)
    finally:
        mmcore.set_num_threads(before)


def test_results_do_not_share_memory() -> None:
    """With the operands, with those of the next call, or, but for the losses, with each other."""
    case = LossCase(("ce", "mse", "bce", "kl"), (6,), 9, "mix", mask="full", weights="unit", log_vars="unit")
    for backend in BACKENDS:
        inputs = case.inputs()
        with mmcore.backend(backend):
            calls = [run(case, inputs) for _ in range(2)]
        separate = [t for found in calls for n, t in found.items() if n not in ("losses[0]", "losses[1]")]
        separate += [*(found["losses[0]"] for found in calls), *inputs.tensors()]
        spans = sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in separate)
        assert all(a[1] <= b[0] for a, b in pairwise(spans)), backend


# training


def _batches(steps: int) -> Iterator[tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]]:
    g = torch.Generator().manual_seed(5)
    made = torch.randn(12, 4, generator=g)
    for _ in range(steps):
        x = torch.randn(32, 12, generator=g)
        y = x @ made
        targets = {"kind": y.argmax(1), "tags": (y > 0).float(), "place": y[:, :2] / 4}
        masks = {n: torch.rand(32, generator=g) < 0.7 for n in ("kind", "place")}
        yield x, targets, masks


def _net() -> torch.nn.ModuleDict:
    torch.manual_seed(0)
    return torch.nn.ModuleDict({
        "trunk": torch.nn.Sequential(torch.nn.Linear(12, 32), torch.nn.Tanh()),
        "kind": torch.nn.Linear(32, 4),
        "tags": torch.nn.Linear(32, 4),
        "place": torch.nn.Linear(32, 2),
    })  # fmt: skip


def _train(loss_of: Any, steps: int = 200) -> tuple[Tensor, list[Tensor]]:
    """Curve of the total, and the parameters at the end."""
    with torch.random.fork_rng():
        net = _net()
    log_vars = torch.nn.Parameter(torch.zeros(3))
    parameters = [*net.parameters(), log_vars]
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    curve = []
    for x, targets, masks in _batches(steps):
        hidden = net["trunk"](x)
        outputs = {name: net[name](hidden) for name in targets}
        total = loss_of(outputs, targets, masks, log_vars)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        curve.append(total.detach())
    return torch.stack(curve), [p.detach() for p in parameters]


def _eager(
    outputs: dict[str, Tensor], targets: dict[str, Tensor], masks: dict[str, Tensor], s: Tensor
) -> Tensor:
    kind, place = masks["kind"], masks["place"]
    losses = (
        F.cross_entropy(outputs["kind"][kind], targets["kind"][kind], label_smoothing=0.1),
        F.binary_cross_entropy_with_logits(outputs["tags"], targets["tags"]),
        F.smooth_l1_loss(outputs["place"][place], targets["place"][place], beta=0.5),
    )
    terms = (c * torch.exp(-s[i]) * losses[i] + s[i] / 2 for i, c in enumerate((1.0, 1.0, 0.5)))
    return sum(terms, torch.zeros(()))


_TRAINED = {
    "kind": Task.cross_entropy(label_smoothing=0.1),
    "tags": Task.bce_with_logits(),
    "place": Task.smooth_l1(beta=0.5),
}


def _fused(outputs: Any, targets: Any, masks: Any, log_vars: Tensor) -> Tensor:
    return mmcore.multi_task_loss(outputs, targets, _TRAINED, log_vars=log_vars, masks=masks)[0]


def _fused_in_place(outputs: Any, targets: Any, masks: Any, log_vars: Tensor) -> Tensor:
    return mmcore.multi_task_loss(
        outputs, targets, _TRAINED, log_vars=log_vars, masks=masks, inplace_gradient=True
    )[0]


@pytest.fixture(scope="module")
def eager_training() -> tuple[Tensor, list[Tensor]]:
    return _train(_eager)


@pytest.mark.parametrize("loss_of", [_fused, _fused_in_place])
@pytest.mark.parametrize("backend", [*BACKENDS, "default"])
def test_training_follows_eager_torch(
    backend: str, loss_of: Any, eager_training: tuple[Tensor, list[Tensor]]
) -> None:
    """200 steps of Adam: the total's curve within 1e-5, and it has learned something."""
    if backend == "default":
        curve, parameters = _train(loss_of)
    else:
        with mmcore.backend(backend):
            curve, parameters = _train(loss_of)
    wanted, wanted_parameters = eager_training
    torch.testing.assert_close(curve, wanted, rtol=1e-5, atol=1e-5)
    for a, b in zip(parameters, wanted_parameters, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert curve[-20:].mean() < 0.6 * curve[:20].mean()
