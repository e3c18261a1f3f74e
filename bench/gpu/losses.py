"""multi_task_loss on a GPU, forward and backward, beside eager torch, torch.compile and Liger-Kernel.

Cross entropy of many classes is bounded by memory: *GB/s* is reading the logits and writing their gradient,
once each, over the time. In place the gradient lies over the logits, which are restored before each sample,
outside the timing; Liger-Kernel knows no other way. Small heads are bounded by launches: they are timed call
by call, and as replays of a CUDA graph of loss and gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import mmcore
from bench import bench_losses
from bench.bench_losses import LossCase
from bench.gpu.measure import Bench, Job, assert_near
from mmcore import Task

__all__ = ["run"]

_LARGE = (
    ("CE 8192x128256 bf16", 8192, 128256, torch.bfloat16),
    ("CE 8192x32000 bf16", 8192, 32000, torch.bfloat16),
    ("CE 4096x32000 fp32", 4096, 32000, torch.float32),
)
_SMALL = (
    "4 heads, uncertainty",
    "4 heads, uncertainty, value_and_grad",
    "4 heads, uncertainty, masked",
    "CE 64x400 fp32",
)
_CHECKED_ROWS = 128  # of a large gradient, against float64


def run(bench: Bench) -> None:
    """Time every case, the most important first."""
    bench.record["copy_gbps"] = bench.copy_gbps()
    rows = bench.record["rows"] = {}
    cases = {case.name: case for case in bench_losses.CASES}
    for i in range(max(len(_LARGE), len(_SMALL))):
        for name, *sizes in _LARGE[i : i + 1]:
            with bench.attempt(name):
                rows[name] = _large(bench, *sizes)
        for small in _SMALL[i : i + 1]:
            if bench.remaining() < 15 and not bench.dry:
                bench.record.setdefault("left_out", []).append(small)
                continue
            with bench.attempt(small):
                rows[small] = _small(bench, cases[small])
    with bench.attempt("InfoNCE 4096x512"):
        rows["InfoNCE 4096x512"] = _contrastive(bench)


def _compile(function: Callable[..., Any], bench: Bench, mode: str | None = None) -> Callable[..., Any]:
    how: dict[str, Any] = {"backend": "eager"} if bench.dry else {"mode": mode}
    return torch.compile(function, fullgraph=True, dynamic=False, **how)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0][:300]


# ---- cross entropy of many classes


def _loss_and_gradient(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one graph, for torch.compile."""
    log_p = logits.float().log_softmax(1)
    loss = -log_p.gather(1, target[:, None]).mean()
    hot = torch.arange(logits.shape[1], device=logits.device) == target[:, None]
    return loss, ((log_p.exp() - hot.float()) / len(target)).to(logits.dtype)


def _large(bench: Bench, rows: int, columns: int, dtype: torch.dtype) -> dict[str, Any]:
    torch._dynamo.reset()
    if bench.dry:
        rows, columns = 5, 70
    pristine = torch.randn(rows, columns, device=bench.device).to(dtype)
    logits = pristine.clone().requires_grad_()
    target = torch.randint(0, columns, (rows,), device=bench.device)
    tasks = [Task.cross_entropy()]
    leaf = torch.empty_like(pristine).requires_grad_()  # for who overwrites it
    plain = leaf.detach()

    def restore() -> None:
        plain.copy_(pristine)

    def of(function: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> Callable[[], list[Tensor]]:
        def step() -> list[Tensor]:
            loss = function(x, target)
            return [loss, *torch.autograd.grad(loss, [x])]

        return step

    def ours(x: Tensor, t: Tensor) -> Tensor:
        return mmcore.multi_task_loss([x], [t], tasks)[0]

    def ours_in_place() -> list[Tensor]:
        # As a model has it: the logits are another operation's result. One that moves no memory.
        loss, _ = mmcore.multi_task_loss([leaf.view_as(leaf)], [target], tasks, inplace_gradient=True)
        return [loss, *torch.autograd.grad(loss, [leaf])]

    def ours_at_once() -> list[Tensor]:
        loss, _, gradients = mmcore.multi_task_value_and_grad([plain], [target], tasks, inplace_gradient=True)
        return [loss, gradients.outputs[0]]

    def liger() -> Callable[[], list[Tensor]]:
        from liger_kernel.transformers.functional import liger_cross_entropy

        return of(lambda x, t: liger_cross_entropy(x, t), leaf)

    joint = _compile(_loss_and_gradient, bench)
    made: dict[str, Callable[[], tuple[Callable[[], Any], Callable[[], None] | None]]] = {
        "mmcore": lambda: (of(ours, logits), None),
        "mmcore in place": lambda: (ours_in_place, restore),
        "mmcore value_and_grad in place": lambda: (ours_at_once, restore),
        "eager": lambda: (of(F.cross_entropy, logits), None),
        "torch.compile": lambda: (of(_compile(F.cross_entropy, bench), logits), None),
        "compile tuned": lambda: (lambda: list(joint(logits.detach(), target)), None),
        "Liger-Kernel": lambda: (liger(), restore),
    }
    expected = _expected(pristine, target)
    row: dict[str, Any] = {"bytes": 2 * pristine.nbytes, "absent": {}, "errors": {}}
    jobs: dict[str, Job] = {}
    most = 0.05 if dtype == torch.bfloat16 else 1e-3
    for name, make in made.items():
        try:
            step, refresh = make()
            if refresh is not None:
                refresh()
            loss, gradient = step()
            row["errors"][name] = assert_near([loss, gradient[:_CHECKED_ROWS]], expected, most)
            del loss, gradient
            jobs[name] = Job(step, refresh)
        except Exception as error:
            row["absent"][name] = _reason(error)
    row["times"] = bench.interleave(jobs, 1.5, (7, 30))
    row["gbps"] = {n: row["bytes"] / t["ms"] / 1e6 for n, t in row["times"].items()}
    return row


def _expected(logits: Tensor, target: Tensor) -> list[Tensor]:
    """The loss, and the first rows of its gradient, in float64."""
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    for x, t in zip(logits.split(512), target.split(512), strict=True):
        total += F.cross_entropy(x.double(), t, reduction="sum")
    x, t = logits[:_CHECKED_ROWS].double(), target[:_CHECKED_ROWS]
    gradient = x.softmax(1)
    gradient[torch.arange(len(t), device=t.device), t] -= 1
    return [total / len(target), gradient / len(target)]


# ---- small heads


def _moved(given: Any, device: torch.device) -> Any:
    def leaf(t: Tensor) -> Tensor:
        return t.detach().to(device).requires_grad_(t.requires_grad)

    extra = None if given.extra is None else leaf(given.extra)
    masks = None if given.masks is None else [m.to(device) for m in given.masks]
    targets = [t.to(device) for t in given.targets]
    return bench_losses._Inputs([leaf(t) for t in given.outputs], targets, masks, extra)


def _small(bench: Bench, case: LossCase) -> dict[str, Any]:
    torch._dynamo.reset()
    inputs = _moved(bench_losses._inputs(case), bench.device)
    detached = inputs.like(lambda t: t.detach())
    several = len(case.heads) > 1
    with torch.device(bench.device):
        eager = bench_losses._eager(case)
        stacked = bench_losses._stacked(case) if several else eager
    made: dict[str, Callable[[], Callable[[], list[Tensor]]]] = {
        "mmcore": lambda: (
            bench_losses._value_and_grad(case, detached, False)
            if case.at_once
            else bench_losses._step(bench_losses._ours(case), inputs)
        ),
        "eager": lambda: bench_losses._step(eager, inputs),
        "torch.compile": lambda: bench_losses._step(_compile(eager, bench), inputs),
        "compile reduce-overhead": lambda: _marked(
            bench_losses._step(_compile(eager, bench, "reduce-overhead"), inputs)
        ),
    }
    if several and not case.at_once:
        made["eager tuned"] = lambda: bench_losses._step(stacked, inputs)
    if case.at_once:
        made["compile tuned"] = lambda: _compiled_at_once(bench, stacked, detached)
    row: dict[str, Any] = {"absent": {}, "errors": {}, "host_us": {}, "times": {}}
    expected = _small_expected(case, inputs)
    jobs = {}
    for name, make in made.items():
        try:
            step = make()
            for _ in range(3):
                found = step()
            row["errors"][name] = assert_near([t.clone() for t in found], expected, 1e-4)
            jobs[name] = Job(step)
        except Exception as error:
            row["absent"][name] = _reason(error)
    row["times"] |= bench.interleave(jobs, 0.5)
    for name, job in jobs.items():
        row["host_us"][name] = bench.host_us(job.run, 100)
        if name == "compile reduce-overhead":
            continue  # it has graphs of its own
        try:
            row["times"] |= bench.interleave({f"{name}, graph": Job(bench.graphed(job.run))}, 0.1)
        except Exception as error:
            row["absent"][f"{name}, graph"] = _reason(error)
    return row


def _marked(step: Callable[[], list[Tensor]]) -> Callable[[], list[Tensor]]:
    def marked() -> list[Tensor]:
        torch.compiler.cudagraph_mark_step_begin()
        return step()

    return marked


def _compiled_at_once(bench: Bench, stacked: Any, detached: Any) -> Callable[[], list[Tensor]]:
    """Loss and gradients in one graph, without autograd."""
    function = _compile(torch.func.grad_and_value(stacked, argnums=(0, 3)), bench)
    arguments = detached.arguments

    def step() -> list[Tensor]:
        (outputs, extra), total = function(*arguments)
        return [total, *outputs, extra]

    return step


def _small_expected(case: LossCase, inputs: Any) -> list[Tensor]:
    double = inputs.like(lambda t: t.detach().double().requires_grad_())
    double.targets = [t.double() if t.is_floating_point() else t for t in inputs.targets]
    with mmcore.backend("reference"):
        return [t.detach() for t in bench_losses._step(bench_losses._ours(case), double)()]


# ---- contrastive


def _contrastive(bench: Bench) -> dict[str, Any]:
    torch._dynamo.reset()
    size = (6, 9) if bench.dry else (4096, 512)
    made = [F.normalize(torch.randn(size, device=bench.device), dim=1) for _ in range(2)]
    a, b = (x.requires_grad_() for x in made)
    scale = torch.tensor(math.log(1 / 0.07), device=bench.device, requires_grad=True)

    def eager(a: Tensor, b: Tensor, s: Tensor) -> Tensor:
        logits = s.exp() * a @ b.T
        labels = torch.arange(len(a), device=a.device)
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2

    def ours(a: Tensor, b: Tensor, s: Tensor) -> Tensor:
        if not bench.dry:
            return mmcore.contrastive_loss(a, b, s.exp())
        with mmcore.backend("reference"):  # Triton has no kernels of it: a GPU takes the reference by itself
            return mmcore.contrastive_loss(a, b, s.exp())

    def step(function: Callable[..., Tensor]) -> Callable[[], list[Tensor]]:
        def run() -> list[Tensor]:
            loss = function(a, b, scale)
            return [loss, *torch.autograd.grad(loss, [a, b, scale])]

        return run

    functions = {"mmcore": ours, "eager": eager, "torch.compile": _compile(eager, bench)}
    row: dict[str, Any] = {"absent": {}, "errors": {}}
    expected = step(eager)()
    jobs = {}
    for name, function in functions.items():
        try:
            row["errors"][name] = assert_near(step(function)(), expected, 1e-2)
            jobs[name] = Job(step(function))
        except Exception as error:
            row["absent"][name] = _reason(error)
    row["times"] = bench.interleave(jobs, 0.4)
    return row
