"""weighted_fusion on a GPU, forward and backward, beside eager torch and torch.compile.

The cases are those of :mod:`bench.bench_fusion`, larger: (256, 128, 768) features, which exceed any L2 cache,
in two sets that take turns. *GB/s* is what a step must move at least over its time, and *of copy* that over
the bandwidth of a device-to-device copy in the same process. Names without more are calls as users make them,
which the host's work may bound; *graph* is the replay of a CUDA graph of the step with each of the sets,
which only the GPU bounds; *forward* and *backward* are the op's own launches, in such graphs.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import mmcore
from bench import bench_fusion
from bench.bench_fusion import FusionCase, least_bytes
from bench.gpu.measure import Bench, Job, assert_near
from mmcore.ops.fusion import FusionOptions

__all__ = ["CASES", "kernels_alone", "on_device", "run"]

_RELATIVE_ERROR = {"float32": 1e-3, "bfloat16": 0.1}
_PLAIN, _STEPS = (256, 128, 768), 640

_COMPILED = (
    "fp32 weights (M)", "bf16 weights (M)", "fp32 LayerNorm", "bf16 LayerNorm", "fp32 masked (B,T,M)",
    "align 160 to 32, linear",
)  # fmt: skip
_TUNED_BY_INDUCTOR = ("fp32 weights (M)",)
_FIRST = (*_COMPILED[:4], "small weights (M)", "fp32 softmax (B,T,M)", "fp32 masked (B,T,M)")


def _larger(case: FusionCase) -> FusionCase:
    if case.small:
        return case
    if case.count > 3:
        return replace(case, shape=(64, 128, 768))
    steps = case.steps * 4
    name = case.name.replace("160 to 32", "640 to 128")
    return replace(case, name=name, shape=_PLAIN, steps=steps)


def _ordered() -> list[tuple[FusionCase, bool, bool]]:
    """Cases, whether torch.compile takes part, and whether its own tuning does; important ones first."""
    names = [c.name for c in bench_fusion.CASES]
    order = sorted(bench_fusion.CASES, key=lambda c: (c.name not in _FIRST, names.index(c.name)))
    return [
        (_larger(c), c.name in _COMPILED or c.small, c.name in _TUNED_BY_INDUCTOR)
        for c in order
        if "no affine" not in c.name and c.steps != 150
    ]


CASES = _ordered()


def run(bench: Bench) -> None:
    """Time every case."""
    bench.record["copy_gbps"] = bench.copy_gbps()
    bench.record["rows"] = {}
    for case, compiled, tuned in CASES:
        if bench.remaining() < (12 if compiled else 4) and not bench.dry:
            bench.record.setdefault("left_out", []).append(case.name)
            continue
        small = case.small
        if bench.dry:
            case = replace(case, shape=(2, 3, 16) if small else (2, 4, 48), steps=8 if case.steps else 0)
        with bench.attempt(case.name):
            bench.record["rows"][case.name] = _time(bench, case, small, compiled, tuned)


def on_device(case: FusionCase, device: torch.device) -> Any:
    """Inputs of a case, made on the device."""
    dtype = getattr(torch, case.dtype)
    batch, length, depth = case.shape

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    mask = None
    if case.masked:
        mask = torch.rand(batch, length, case.count, device=device) < 0.7
        mask[0, 0] = False
    inputs = bench_fusion._Inputs(
        features=[normal(batch, length if kind is None else case.steps, depth) for kind in case.align],
        weights=(torch.rand(case.weights_shape, device=device) + 0.1).to(dtype),
        mask=mask,
        scale=normal(case.count, depth) + 1 if case.affine else None,
        shift=normal(case.count, depth) if case.affine else None,
        grad=normal(*case.shape),
    )
    for tensor in inputs.wanted:
        tensor.requires_grad_(case.gradients)
    return inputs


def _step(fuse: Callable[..., Tensor], case: FusionCase, sets: Any) -> Callable[[], list[Tensor]]:
    def step() -> list[Tensor]:
        inputs = next(sets)
        if not case.gradients:
            with torch.no_grad():
                return [fuse(*inputs.arguments)]
        out = fuse(*inputs.arguments)
        return [out, *torch.autograd.grad(out, inputs.wanted, inputs.grad)]

    return step


def kernels_alone(case: FusionCase, inputs: Any, backward: bool) -> Callable[[], Any]:
    """The launches of the forward or the backward, and nothing else."""
    from mmcore.backends import triton

    align = tuple(kind or "none" for kind in case.align)
    dtype = getattr(torch, case.dtype)
    options = FusionOptions(case.mode, case.norm, align, 1e-5, case.shape[1], dtype, False)
    features = [x.detach() for x in inputs.features]
    weights, scale, shift = (
        None if t is None else t.detach() for t in (inputs.weights, inputs.scale, inputs.shift)
    )
    assert weights is not None
    arguments = (features, weights, inputs.mask, scale, shift, None, options)
    if not backward:
        return lambda: triton.weighted_fusion(*arguments)
    needs = (True, case.affine, case.affine, False, *(True,) * case.count)
    return lambda: triton.weighted_fusion_backward(inputs.grad, *arguments, needs)


def _fused(case: FusionCase) -> Callable[..., Tensor]:
    """Eager torch's matrix product over a stack, where there is one: half the memory traffic of sums."""
    return bench_fusion._tuned(case)


def _compile(fuse: Callable[..., Tensor], bench: Bench, mode: str | None = None) -> Callable[..., Tensor]:
    how: dict[str, Any] = {"backend": "eager"} if bench.dry else {"mode": mode}
    return torch.compile(fuse, fullgraph=True, dynamic=False, **how)


def _time(bench: Bench, case: FusionCase, small: bool, compiled: bool, tuned: bool) -> dict[str, Any]:
    torch._dynamo.reset()
    sets = [on_device(case, bench.device) for _ in range(1 if small else 2)]
    turn = itertools.cycle(sets)
    eager, ours = bench_fusion._eager(case), bench_fusion._ours(case)
    functions: dict[str, Callable[..., Tensor]] = {"mmcore": ours, "eager": eager}
    if case.count > 3:
        functions["eager tuned"] = _fused(case)
    if compiled:
        functions["torch.compile"] = _compile(eager, bench)
    if tuned:
        functions["compile max-autotune"] = _compile(eager, bench, "max-autotune-no-cudagraphs")
    expected = _expected(case, sets[0])
    row: dict[str, Any] = {"bytes": least_bytes(case), "absent": {}, "errors": {}}
    jobs, steps = {}, {}
    for name, fuse in functions.items():
        try:
            found = _step(fuse, case, iter([sets[0]]))()
            row["errors"][name] = assert_near(found, expected, _RELATIVE_ERROR[case.dtype])
            steps[name] = _step(fuse, case, turn)
            jobs[name] = Job(steps[name])
        except Exception as error:
            row["absent"][name] = f"{type(error).__name__}: {error}".partition("\n")[0][:300]
        found = []
    expected = []
    if small and compiled:
        _add_reduce_overhead(bench, case, eager, turn, jobs, row)
    graphs = dict(steps)
    if case.gradients and not small:
        for name, backward in (("mmcore forward", False), ("mmcore backward", True)):
            alone = itertools.cycle([kernels_alone(case, inputs, backward) for inputs in sets])
            graphs[name] = functools.partial(lambda calls: next(calls)(), alone)
    for name, step in graphs.items():
        if not small and name.startswith("eager"):
            continue  # its host is faster than its kernels
        try:
            jobs[f"{name}, graph"] = Job(bench.graphed(_repeated(step, len(sets))))
        except Exception as error:
            row["absent"][f"{name}, graph"] = f"{type(error).__name__}: {error}".partition("\n")[0][:300]
    times = bench.interleave(jobs, 0.8)
    for name in times:
        if name.endswith(", graph"):
            for key in ("ms", "low", "high"):
                times[name][key] /= len(sets)
    if small:
        row["host_us"] = {name: bench.host_us(step, 100) for name, step in steps.items()}
    row["times"] = times
    if not small:
        row["gbps"] = {n: case_bytes(case, n) / t["ms"] / 1e6 for n, t in times.items()}
    return row


def _repeated(step: Callable[[], Any], count: int) -> Callable[[], list[Any]]:
    return lambda: [step() for _ in range(count)]


def case_bytes(case: FusionCase, name: str) -> int:
    """At least moved: by a step, or by the forward or the backward alone."""
    step, forward = least_bytes(case), least_bytes(replace(case, gradients=False))
    return forward if "forward" in name else step - forward if "backward" in name else step


def _add_reduce_overhead(
    bench: Bench, case: FusionCase, eager: Callable[..., Tensor], turn: Any, jobs: dict[str, Job], row: Any
) -> None:
    """torch.compile with CUDA graphs of its own."""
    try:
        step = _step(_compile(eager, bench, "reduce-overhead"), case, turn)

        def marked() -> list[Tensor]:
            torch.compiler.cudagraph_mark_step_begin()
            return step()

        for _ in range(3):
            marked()
        jobs["compile reduce-overhead"] = Job(marked)
    except Exception as error:
        row["absent"]["compile reduce-overhead"] = f"{type(error).__name__}: {error}"[:300]


def _expected(case: FusionCase, inputs: Any) -> list[Tensor]:
    def double(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.detach().double().requires_grad_(case.gradients)

    features = [x.detach().double().requires_grad_(case.gradients) for x in inputs.features]
    weights, scale, shift = map(double, (inputs.weights, inputs.scale, inputs.shift))
    with mmcore.backend("reference"):
        out = bench_fusion._ours(case)(features, weights, inputs.mask, scale, shift)
    if not case.gradients:
        return [out]
    wanted = [t for t in (*features, weights, scale, shift) if t is not None]
    return [out.detach(), *torch.autograd.grad(out, wanted, inputs.grad.double())]
