"""The contrastive losses of the compiled core: torch multiplies matrices, a kernel does all between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmcore import _core
from mmcore.backends.cpu.memory import empty, empty_pooled
from mmcore.threads import get_num_threads

if TYPE_CHECKING:
    from mmcore.ops.contrastive import ContrastiveProblem, Parts, Recorded

__all__ = ["contrastive_loss", "contrastive_loss_gradients"]

# The enumeration of csrc/include/mmcore/dtype.h
_DTYPE = {torch.float32: 3, torch.float64: 4}

# Below this many elements one thread is used in any case.
_SMALL = 1 << 17


def _similarities(a: Tensor, b: Tensor, memory: Tensor, first: int) -> Tensor:
    """Of the rows of a from `first` on, as many as `memory` has."""
    rows = memory.shape[0]
    if rows < a.shape[0]:
        a = a[first : first + rows]
        memory = memory[: a.shape[0]]
    # Products are written to an `out` throughout: autocast would make others in a half format.
    return torch.mm(a, b.mT, out=memory)


class _Tile:
    """The arguments of the core for some rows of the similarities, after the address."""

    __slots__ = ("compute", "scale", "threads")

    def __init__(self, problem: ContrastiveProblem) -> None:
        self.compute = _DTYPE[problem.dtype]
        self.scale = float(problem.scale)
        elements = problem.tile_rows * problem.a.shape[0]
        self.threads = 1 if elements < _SMALL else get_num_threads()


def contrastive_loss(problem: ContrastiveProblem, keep: bool) -> tuple[Tensor, Parts]:
    """The loss, and what its gradients are made of: the fields of ``mmcore.ops.contrastive.Recorded``."""
    dtype, batch = problem.dtype, problem.a.shape[0]
    tile = _Tile(problem)
    a, b = problem.a.to(dtype), problem.b.to(dtype)
    clip = problem.kind == "clip"
    whole = keep and problem.whole
    sums = (0.0, 0.0, 0.0)
    states = torch.empty((_core.CLIP_STATES if clip else 0, batch), dtype=torch.float64)
    memory = empty_pooled((problem.tile_rows, batch), dtype)
    for first in range(0, batch, problem.tile_rows):
        rows = min(problem.tile_rows, batch - first)
        y = _similarities(a, b, memory, first)
        at = (y.data_ptr(), first, rows, batch, tile.compute, tile.scale)
        if clip:
            _core.clip_statistics(*at, states.data_ptr(), whole, tile.threads)
            if whole:
                sums = _core.clip_sums(states.data_ptr(), batch, tile.scale)
                _core.clip_gradient(*at, states.data_ptr(), True, tile.threads)
        else:
            part = _core.siglip(*at, float(problem.bias), whole, tile.threads)
            sums = (sums[0] + part[0], sums[1] + part[1], sums[2] + part[2])
    if clip and not whole:
        sums = _core.clip_sums(states.data_ptr(), batch, tile.scale)
    statistics = states[:4].to(dtype) if clip and keep and not whole else None
    return torch.tensor(sums[0], dtype=dtype), (sums[1:], statistics, memory if whole else None)


def contrastive_loss_gradients(
    problem: ContrastiveProblem, recorded: Recorded, grad: Tensor, needs: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of a and b, None where ``needs`` is False, for the loss's gradient ``grad``."""
    dtype, batch = problem.dtype, problem.a.shape[0]
    a, b = problem.a.to(dtype), problem.b.to(dtype)
    upstream = float(grad)
    da = empty(tuple(a.shape), dtype) if needs[0] else None
    db = empty(tuple(b.shape), dtype) if needs[1] else None

    def add_tile(dz: Tensor, first: int, rows: int) -> None:
        if da is not None:
            part = da[first : first + rows]
            torch.addmm(part, dz, b, beta=0, alpha=upstream, out=part)
        if db is not None:
            beta = 0 if first == 0 else 1
            torch.addmm(db, dz.mT, a[first : first + rows], beta=beta, alpha=upstream, out=db)

    if recorded.gradient is not None:
        add_tile(recorded.gradient, 0, batch)
    else:
        tile = _Tile(problem)
        states = None if recorded.statistics is None else recorded.statistics.double()
        memory = empty_pooled((problem.tile_rows, batch), dtype)
        for first in range(0, batch, problem.tile_rows):
            rows = min(problem.tile_rows, batch - first)
            dz = _similarities(a, b, memory, first)
            at = (dz.data_ptr(), first, rows, batch, tile.compute, tile.scale)
            if states is not None:  # clip
                _core.clip_gradient(*at, states.data_ptr(), False, tile.threads)
            else:
                _core.siglip(*at, float(problem.bias), True, tile.threads)
            add_tile(dz, first, rows)
    return [g if g is None else g.to(x.dtype) for g, x in zip((da, db), (problem.a, problem.b), strict=True)]
