"""Multi-task losses in Triton kernels: which of them a call needs, in which tiles, with what memory.

Losses and gradients: one launch for all heads and one that adds up their sums, which on NVIDIA's GPUs from
9.0 on begins before the first ends. Means over labels that may be missing have to know how many there are
before the first gradient: up to ``COUNTED_HERE`` labels every program counts itself, and a launch of its own,
before, counts more than that. No gradients, no such launch.

Tiles depend on shapes only, and the number of programs also on the GPU: the same call on the same GPU gives
the same bits. Nothing waits for the GPU, and memory comes from torch's allocator on the current stream, so
that calls can be captured in CUDA graphs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from triton.runtime import driver  # type: ignore[import-untyped,import-not-found,unused-ignore]

from mmcore.backends import reference, replay
from mmcore.backends.triton.fusion import (
    _COMPILED,
    _check_device,
    _nested,
    _on_device,
    _power_of_two,
    _programs,
)
from mmcore.kernels import losses as kernels
from mmcore.kernels._launch import launch as _launch

if TYPE_CHECKING:
    from mmcore.ops.losses import Head, LossProblem

__all__ = ["multi_task_loss", "multi_task_loss_backward", "scale_gradients"]

MAX_BLOCK = 4096
"""Columns of a row that one program holds at once: 16 a thread at 8 warps."""

TILE = 1024
"""Elements of a tile of short rows, or of a run of elements: 8 a thread at 4 warps."""

VECTOR_BYTES = 16
"""That a thread reads of a long row of classes at once, the most there is one instruction for."""

VECTORS = 4
"""Of them on their way for each thread: 64 KiB on a multiprocessor of 1024 threads, twice what the memory's
latency times its speed asks for."""

LANES = 1024
"""Threads at most that share a long row."""

WARP_BYTES = 8192
"""Of a long row for each warp. With 32 warps on a multiprocessor, all there is room for, 256 KiB of rows are
between their two readings on each, 34 MB on 132 of them: they are in the L2 cache the second time."""

RESIDENT_WARPS = 32
"""Of them on a multiprocessor at a time: of 64 registers a thread, the most it has room for."""

COUNTED_HERE = 4096
"""Labels that every program counts itself: at most 32 KiB from the L2 cache, in four steps."""

SLOTS = 1024
"""Parts at most in which more labels are counted, and how many are counted at a time."""

SUMS = 1024
"""Of programs at most that are added up at a time."""

NARROW = 2**31 - 2**16
"""Units of a head below it are int32 in the kernels."""

OVERLAPPED = True
"""Whether kernels whose work is shorter than a launch are launched before what they wait for has ended, where
a GPU can do that."""

_WAVES = 16
"""Programs of a head at most, for each multiprocessor."""


_ROW_KINDS = ("classes", "probabilities", "kl_distillation", "cosine")


class _Plan(NamedTuple):
    """How the kernels take a head."""

    kind: str
    reduction: str
    counted: str
    """How the divisor of its mean is known: "known", "here" or "slots"."""
    code: tuple[int, ...]
    """What else they are compiled for: HEADS of ``losses_kernel``."""
    programs: int
    tiles: int
    """Of each program."""
    entries: int
    """Labels, or entries of the mask, to be counted; else units."""
    parts: int
    """In which ``losses_count_kernel`` counts them; 0 where it does not."""
    length: int
    """Of a part."""


def multi_task_loss(
    problem: LossProblem, needs: Sequence[bool] | None
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor | None]]:
    """Total, losses, unreduced losses; and with ``needs`` the gradients of the total.

    Gradients are of weights, log_vars and each head's (rows, columns), None where ``needs`` is False.
    """
    device = problem.heads[0].output.device
    _check_device(device)
    if problem.dtype == torch.float64:
        return reference.multi_task_loss(problem, needs)
    count = len(problem.heads)
    total = replay.empty((), torch.float32, device)
    losses = replay.empty((count,), torch.float32, device)
    unreduced = [
        replay.empty((h.units,), torch.float32, device) if h.task.reduction == "none" else None
        for h in problem.heads
    ]
    reduced = [h.task.reduction != "none" for h in problem.heads]
    gradients = _gradients(problem, needs or (False,) * (2 + count), True, reduced)
    with _on_device(device):
        call = _Call(problem, gradients, reduced, unreduced, (None,) * count)
        call.run(None, None, total, losses)
    return total, losses, [u for u in unreduced if u is not None], [] if needs is None else gradients


def multi_task_loss_backward(
    problem: LossProblem,
    grad_total: Tensor | None,
    grad_losses: Tensor | None,
    grad_unreduced: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of weights, log_vars and each head's (rows, columns), for gradients of all results."""
    device = problem.heads[0].output.device
    _check_device(device)
    if problem.dtype == torch.float64:
        return reference.multi_task_loss_backward(problem, grad_total, grad_losses, grad_unreduced, needs)
    given = iter(grad_unreduced)
    grads = tuple(next(given) if h.task.reduction == "none" else None for h in problem.heads)
    reduced_differ = grad_total is not None or grad_losses is not None
    differ = [
        g is not None or (reduced_differ and h.task.reduction != "none")
        for h, g in zip(problem.heads, grads, strict=True)
    ]
    gradients = _gradients(problem, needs, grad_total is not None, differ)
    with _on_device(device):
        call = _Call(problem, gradients, differ, (None,) * len(grads), grads)
        call.run(grad_total, grad_losses, None, None)
    return gradients


def scale_gradients(gradients: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply each gradient by a number on its device, in place. Nothing is touched if it is 1."""
    if replay.serves(factor):
        replay.run(_SCALE, (factor, *gradients), lambda: _scale_gradients(gradients, factor))
    else:
        _scale_gradients(gradients, factor)


_SCALE = ("scale_gradients",)


def _scale_gradients(gradients: Sequence[Tensor], factor: Tensor) -> tuple[()]:
    gradients = [g for g in gradients if g.numel()]
    if not gradients:
        return ()
    device = gradients[0].device
    _check_device(device)
    flat = [_flat(g) for g in gradients]
    if factor.dtype == torch.float64 or any(g is None or g.dtype == torch.float64 for g in flat):
        # The kernel computes in float32, on what lies together.
        reference.scale_gradients(gradients, factor)
        return ()
    jobs = [(g, g.numel()) for g in flat if g is not None]
    grid = min(max(-(-n // TILE) for _, n in jobs), _programs(device, _WAVES))
    arguments = {"gradients": _nested(jobs), "factor": factor, "COUNT": len(jobs), "BLOCK": TILE}
    arguments["OVERLAP"] = OVERLAPPED and _cuda_arch() >= 90
    if arguments["OVERLAP"]:
        arguments["launch_pdl"] = True
    with _on_device(device):
        _launch(kernels.losses_scale_kernel, (grid, len(jobs)), 4, arguments)
    return ()


def _flat(g: Tensor) -> Tensor | None:
    """The same elements in their order in memory, if they lie together."""
    dims = sorted(range(g.dim()), key=lambda d: (-g.stride()[d], -g.shape[d]))
    g = g.permute(dims)
    return g if g.is_contiguous() else None


def _gradients(
    problem: LossProblem, needs: Sequence[bool], total_differs: bool, differ: Sequence[bool]
) -> list[Tensor | None]:
    """Memory for what is needed; of what has no upstream gradient, zeros."""
    given = (problem.weights, problem.log_vars, *(h.output for h in problem.heads))
    written = (total_differs, total_differs, *differ)
    over = (False, False, *(problem.overwrite and h.output.is_contiguous() for h in problem.heads))
    return [
        None
        if t is None or not need
        else t
        if o and w
        else (replay.empty if w else replay.zeros)(t.shape, t.dtype, t.device)
        for t, need, w, o in zip(given, needs, written, over, strict=True)
    ]


class _Call:
    """One call of the op: which heads have something to do, and what the kernels write."""

    def __init__(
        self,
        problem: LossProblem,
        gradients: Sequence[Tensor | None],
        differ: Sequence[bool],
        unreduced: Sequence[Tensor | None],
        grads: Sequence[Tensor | None],
    ) -> None:
        self.problem = problem
        self.device = problem.heads[0].output.device
        self.dweights, self.dlog_vars, *douts = gradients
        self.dxs = tuple(d if w else None for d, w in zip(douts, differ, strict=True))
        self.unreduced = tuple(unreduced)
        self.grads = _nested(None if g is None else _vector(g.reshape(-1)) for g in grads)

    def run(
        self,
        grad_total: Tensor | None,
        grad_losses: Tensor | None,
        total: Tensor | None,
        losses: Tensor | None,
    ) -> None:
        """Fill the results. With ``total`` and ``losses`` the total's upstream gradient is 1."""
        heads = self.problem.heads
        scalars = self.dweights is not None or self.dlog_vars is not None
        sums = total is not None or (grad_total is not None and scalars)
        warps = _warps(heads)
        plans = []
        for head, dx, unreduced in zip(heads, self.dxs, self.unreduced, strict=True):
            busy = dx is not None or unreduced is not None or (sums and head.task.reduction != "none")
            plans.append(_plan(head, dx is not None, busy, warps))
        programs = sum(plan.programs for plan in plans)
        if not programs and not sums:
            return
        firsts = itertools.accumulate((plan.programs for plan in plans), initial=0)
        numbers = _nested(_numbers(h) for h in heads)
        tensors: dict[str, Any] = {
            "targets": _nested(None if h.target is None else _strided(h.target) for h in heads),
            "masks": _nested(_mask(h) for h in heads),
            "class_weights": _nested(_class_weight(h) for h in heads),
            "sizes": _nested(_sizes(h) for h in heads),
            "numbers": numbers,
        }
        partials = None
        if sums:
            partials = replay.empty((4, programs), torch.float32, self.device)
        weights, log_vars = self.problem.weights, self.problem.log_vars
        common: dict[str, Any] = {
            "partials": partials,
            "weights": None if weights is None else _vector(weights),
            "log_vars": None if log_vars is None else _vector(log_vars),
            "grad_total": grad_total,
            "spans": tuple(
                _span(h.output.shape[0], first, p.programs, p.tiles, p.entries, p.parts)
                for h, p, first in zip(heads, plans, firsts, strict=False)
            ),
            "all_programs": programs,
            "REDUCTIONS": tuple(plan.reduction for plan in plans),
            "HEADS": tuple(plan.code for plan in plans),
        }
        overlap = OVERLAPPED and bool(programs) and sums and _cuda_arch() >= 90
        if programs:
            arguments = {
                "outputs": _nested(_strided(h.output) for h in heads),
                "gradients": self.dxs,
                "unreduced": self.unreduced,
                "grads": self.grads,
                "counts": self._count(plans, tensors),
                "grad_losses": None if grad_losses is None else _vector(grad_losses),
                "KINDS": tuple(plan.kind for plan in plans),
                "COUNTS": tuple(plan.counted for plan in plans),
                "ONES": total is not None,
                "SLOTS": SLOTS,
                "WIDE": any(h.units >= NARROW for h in heads),
                "OVERLAP": overlap,
            }
            if any(map(_is_long, heads)) and _cuda_arch():
                arguments["maxnreg"] = 64  # 1024 threads on a multiprocessor, as WARP_BYTES has it
            _launch(kernels.losses_kernel, (programs,), warps, {**arguments, **tensors, **common})
        if sums:
            most = max(plan.programs for plan in plans)
            block = min(SUMS, max(128, _power_of_two(max(1, most))))
            arguments = {
                "total": total,
                "losses": losses,
                "dweights": self.dweights,
                "dlog_vars": self.dlog_vars,
                "numbers": numbers,
                "BLOCK": block,
                "LOOP": most > block,
                "OVERLAP": overlap,
            }
            if overlap:
                arguments["launch_pdl"] = True
            # One warp has no barriers, between which it would wait for its readings one by one.
            _launch(kernels.losses_sum_kernel, (1,), 1 if block <= 256 else 4, {**arguments, **common})

    def _count(self, plans: Sequence[_Plan], tensors: dict[str, Any]) -> Tensor | None:
        """Parts of the counts of labels that are too many for each program to count."""
        parts = max(plan.parts for plan in plans)
        if not parts:
            return None
        counts = replay.empty((len(plans), 2, SLOTS), torch.float32, self.device)
        arguments = {
            "counts": counts,
            "spans": tuple(_span(p.entries, p.parts, p.length) for p in plans),
            "HEADS": tuple((p.parts > 0, p.kind == "classes", p.code[0]) for p in plans),
            "BLOCK": SLOTS,
            "SLOTS": SLOTS,
        }
        _launch(kernels.losses_count_kernel, (parts, len(plans)), 4, {**arguments, **tensors})
        return counts


def _warp_size() -> int:
    """Threads of a warp of the GPU in use; the interpreter has no warps."""
    return int(driver.active.get_current_target().warp_size) if _COMPILED else 32


def _cuda_arch() -> int:
    """Such as 90, of NVIDIA's GPUs; else 0."""
    target = driver.active.get_current_target() if _COMPILED else None
    return int(target.arch) if target is not None and target.backend == "cuda" else 0


def _is_long(head: Head) -> bool:
    """Whether it is a head of long rows of classes, which have a way of their own."""
    x, options = head.output, head.task.options
    plain = not options.label_smoothing or (head.weight is None and not options.focal_gamma)
    return plain and _kind(head) == "classes" and x.shape[1] > MAX_BLOCK and x.stride(1) == 1


def _warps(heads: Sequence[Head]) -> int:
    """Of a program."""
    long = [h.output for h in heads if _is_long(h)]
    others = [h for h in heads if _kind(h) in _ROW_KINDS and not _is_long(h)]
    warps = 8 if any(_power_of_two(h.output.shape[1]) > TILE for h in others) else 4
    if long and all(_kind(h) == "classes" and h.output.shape[1] <= MAX_BLOCK for h in others):
        # Others need more registers than there are for so many threads.
        row_bytes = max(x.shape[1] * x.itemsize for x in long)
        warps = max(warps, min(_power_of_two(-(-row_bytes // WARP_BYTES)), 1024 // _warp_size()))
    return warps


def _plan(head: Head, gradient: bool, busy: bool, warps: int) -> _Plan:
    """``gradient``: of the output; ``busy``: there is something to do."""
    options, kind = head.task.options, _kind(head)
    columns = head.output.shape[1]
    by_row = kind in _ROW_KINDS
    tile = TILE * warps // 4
    rows, block, loop = 0, tile, False
    if by_row:
        loop = columns > MAX_BLOCK
        several = kind != "classes" or bool(options.label_smoothing)  # tiles are held at the same time
        block = MAX_BLOCK // 2 if loop and several else min(_power_of_two(columns), MAX_BLOCK)
        rows = tile = max(1, tile // block)
    lanes, waves = 0, _WAVES
    if _is_long(head):
        rows, block, tile = VECTORS, VECTOR_BYTES // head.output.itemsize, 1
        if columns % block or head.output.stride(0) % block:
            # Rows that start between two vectors: as many bytes, one number after another for each thread.
            rows, block = rows * 4, 1
        lanes, waves = min(LANES, _warp_size() * warps), max(1, RESIDENT_WARPS // warps)
    all_tiles = -(-head.units // tile)
    tiles = max(1, -(-all_tiles // _programs(head.output.device, waves)))
    count, entries, parts, length = "known", head.units, 0, 1
    if gradient and options.reduction == "mean" and (kind == "classes" or head.mask is not None):
        if kind != "classes" and head.mask is not None:
            entries = head.mask.numel()
        count = "here"
        if entries > COUNTED_HERE:
            count = "slots"
            length = SLOTS * -(-entries // (SLOTS * SLOTS))
            parts = -(-entries // length)
    code = (
        kind == "classes" and head.weight is not None and options.reduction == "mean",
        bool(options.label_smoothing),
        bool(options.z_loss),
        bool(options.focal_gamma),
        loop,
        rows,
        block,
        head.output.is_contiguous() and (head.target is None or head.target.is_contiguous()),
        lanes,
    )
    programs = -(-all_tiles // tiles) if busy else 0
    return _Plan(kind, options.reduction, count, code, programs, tiles, entries, parts, length)


def _kind(head: Head) -> str:
    if head.task.kind == "cross_entropy":
        return "probabilities" if head.soft else "classes"
    return head.task.kind


def _sizes(head: Head) -> tuple[int, int]:
    columns = head.output.shape[1]
    return columns if _kind(head) in _ROW_KINDS else head.units, columns


def _strided(t: Tensor) -> tuple[Any, ...]:
    return t, t.stride(0), t.stride(1) if t.dim() == 2 else 0


def _span(*numbers: int) -> tuple[int, ...]:
    """Numbers for which no kernel is compiled anew, as the kernels take them."""
    return tuple(2 * n + 3 for n in numbers)


def _vector(t: Tensor) -> tuple[Tensor, int]:
    return t, t.stride(0)


def _mask(head: Head) -> tuple[Tensor, int, int] | None:
    mask = head.mask
    if mask is None or not mask.numel():
        return None
    return mask, mask.stride(0), head.units // mask.numel()


def _class_weight(head: Head) -> tuple[Tensor, int] | None:
    weight = head.weight
    if weight is None:
        return None
    return weight, weight.stride(0) if weight.numel() > 1 else 0


def _numbers(head: Head) -> tuple[float, ...]:
    o = head.task.options
    return (
        o.ignore_index,
        o.label_smoothing,
        o.z_loss,
        o.focal_gamma,
        o.beta,
        o.temperature,
        o.uncertainty_scale,
    )
