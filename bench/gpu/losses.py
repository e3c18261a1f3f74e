"""multi_task_loss on a GPU, forward and backward, beside eager torch, torch.compile and Liger-Kernel.

Cross entropy of many classes is bounded by memory: *GB/s* is reading the logits and writing their gradient,
once each, over the time. In place the gradient lies over the logits, which are restored before each sample,
outside the timing; Liger-Kernel knows no other way. The GPU is kept busy before each sample, until the host
has launched what is timed, as in a training step: times of the large are the GPU's alone. Small heads are
bounded by launches: they are timed call by call, and as replays of a CUDA graph of loss and gradients; so
are contrastive losses, whose floor is the time of their three matrix products.
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
    ("CE 8192x50257 bf16", 8192, 50257, torch.bfloat16),
)
_SMALL = (
    "4 heads, uncertainty",
    "4 heads, uncertainty, value_and_grad",
    "4 heads, uncertainty, masked",
    "CE 64x400 fp32",
)
_CHECKED_ROWS = 128  # of a large gradient, against float64
_PAIRS = (
    ("InfoNCE 4096x512", "clip", 4096, 512, torch.float32),
    ("SigLIP 4096x512", "siglip", 4096, 512, torch.float32),
    ("InfoNCE 4096x512 bf16", "clip", 4096, 512, torch.bfloat16),
    ("InfoNCE 256x512", "clip", 256, 512, torch.float32),
    ("InfoNCE 16384x512", "clip", 16384, 512, torch.float32),
)
_BUSY_CYCLES = 1 << 22  # of the GPU's clock, 2 ms or so: longer than the host takes to launch a step


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
    for name, kind, *shape in _PAIRS:
        if bench.remaining() < 8 and not bench.dry:
            bench.record.setdefault("left_out", []).append(name)
            continue
        with bench.attempt(name):
            rows[name] = _contrastive(bench, kind, *shape)


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
        busy()

    def busy() -> None:
        if not bench.dry:
            torch.cuda._sleep(_BUSY_CYCLES)

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
    made: dict[str, Callable[[], tuple[Callable[[], Any], Callable[[], None]]]] = {
        "mmcore": lambda: (of(ours, logits), busy),
        "mmcore in place": lambda: (ours_in_place, restore),
        "mmcore value_and_grad in place": lambda: (ours_at_once, restore),
        "eager": lambda: (of(F.cross_entropy, logits), busy),
        "torch.compile": lambda: (of(_compile(F.cross_entropy, bench), logits), busy),
        "compile tuned": lambda: (lambda: list(joint(logits.detach(), target)), busy),
        "Liger-Kernel": lambda: (liger(), restore),
    }
    expected = _expected(pristine, target)
    row: dict[str, Any] = {"bytes": 2 * pristine.nbytes, "absent": {}, "errors": {}}
    jobs: dict[str, Job] = {}
    most = 0.05 if dtype == torch.bfloat16 else 1e-3
    for name, make in made.items():
        try:
            step, refresh = make()
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


def _contrastive(bench: Bench, kind: str, batch: int, depth: int, dtype: torch.dtype) -> dict[str, Any]:
    torch._dynamo.reset()
    size = (6, 9) if bench.dry else (batch, depth)
    made = [F.normalize(torch.randn(size, device=bench.device), dim=1).to(dtype) for _ in range(2)]
    a, b = (x.requires_grad_() for x in made)
    scale = torch.tensor(math.log(1 / 0.07), device=bench.device, requires_grad=True)

    def eager(a: Tensor, b: Tensor, s: Tensor) -> Tensor:
        logits = s.exp() * (a @ b.T).float()
        if kind == "siglip":
            signs = 2 * torch.eye(len(a), device=a.device) - 1
            return -F.logsigmoid(signs * (logits - 10)).sum() / len(a)
        labels = torch.arange(len(a), device=a.device)
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2

    def ours(a: Tensor, b: Tensor, s: Tensor) -> Tensor:
        return mmcore.contrastive_loss(a, b, s.exp(), kind, -10.0 if kind == "siglip" else None)

    def step(function: Callable[..., Tensor]) -> Callable[[], list[Tensor]]:
        def run() -> list[Tensor]:
            loss = function(a, b, scale)
            return [loss, *torch.autograd.grad(loss, [a, b, scale])]

        return run

    def products() -> list[Tensor]:
        """All that is not the loss's own: a product forward, two backward, in float32."""
        z = a.detach().float() @ b.detach().float().T
        return [z @ b.detach().float(), z.T @ a.detach().float()]

    overhead = step(_compile(eager, bench, "reduce-overhead"))
    steps = {
        "mmcore": step(ours),
        "eager": step(eager),
        "torch.compile": step(_compile(eager, bench)),
        "compile reduce-overhead": _marked(overhead),
    }
    row: dict[str, Any] = {"absent": {}, "errors": {}, "host_us": {}}
    expected = _pairs_expected(kind, a, b, scale)
    jobs = {"products alone": Job(products)}
    for name, run in steps.items():
        try:
            for _ in range(3):
                found = run()
            row["errors"][name] = assert_near([t.clone() for t in found], expected, _PAIRS_ERROR[dtype])
            jobs[name] = Job(run)
        except Exception as error:
            row["absent"][name] = _reason(error)
    row["times"] = bench.interleave(jobs, 0.4)
    for name in ("mmcore", "eager", "torch.compile"):
        if name not in jobs:
            continue
        row["host_us"][name] = bench.host_us(jobs[name].run, 30)
        try:
            row["times"] |= bench.interleave({f"{name}, graph": Job(bench.graphed(jobs[name].run))}, 0.1)
        except Exception as error:
            row["absent"][f"{name}, graph"] = _reason(error)
    return row


_PAIRS_ERROR = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Of the norm. Eager torch rounds similarities and their gradient to bfloat16."""


def _pairs_expected(kind: str, a: Tensor, b: Tensor, scale: Tensor) -> list[Tensor]:
    """By tiles, in float64."""
    wide = [t.detach().double().requires_grad_() for t in (a, b, scale)]
    bias = -10.0 if kind == "siglip" else None
    with mmcore.backend("reference"):
        loss = mmcore.contrastive_loss(wide[0], wide[1], wide[2].exp(), kind, bias)
    return [loss.detach(), *torch.autograd.grad(loss, wide)]
