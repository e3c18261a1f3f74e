"""Contrastive losses on a GPU: torch multiplies matrices, a few Triton kernels do all between them.

Products of features in one half format are made in that format, which is exact: its products fit into
float32, in which they are added up and which the result has. For their gradients, products with bfloat16
features, what is float32 goes as a sum of three bfloat16, which holds all of its bits: three times the
products of a GPU's matrix units, and still a fraction of the time of float32. Other features become float32
first, whose products are as exact as ``torch.backends.cuda.matmul`` says.

Gradients are made over the similarities. Nothing waits for the GPU; calls can be captured in CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from mmcore.backends import reference, replay
from mmcore.backends.reference.fusion import _no_autocast
from mmcore.backends.triton.fusion import _check_device, _on_device, _power_of_two
from mmcore.backends.triton.losses import scale_gradients
from mmcore.kernels import contrastive as kernels
from mmcore.kernels._launch import launch as _launch

if TYPE_CHECKING:
    from mmcore.ops.contrastive import ContrastiveProblem, Parts, Recorded

__all__ = ["contrastive_loss", "contrastive_loss_gradients"]

COLUMNS = 128
"""Of a part of the similarities, for each warp: 4 for each of its threads."""

ROWS = 4
"""Of a part at a time: 16 numbers a thread."""

WARPS = 4096
"""That a sweep should have: 31 for each of 132 multiprocessors, of which each takes as many."""

PIECES_BYTES = 256 << 20
"""Of a gradient in three bfloat16 at a time."""

_HALVES = (torch.bfloat16, torch.float16)


def contrastive_loss(problem: ContrastiveProblem, keep: bool) -> tuple[Tensor, Parts]:
    """The loss, and what its gradients are made of: the fields of ``mmcore.ops.contrastive.Recorded``."""
    _check_device(problem.a.device)
    if problem.dtype == torch.float64:
        return reference.contrastive_loss(problem, keep)
    with torch.no_grad(), _no_autocast(problem.a.device), _on_device(problem.a.device):
        run = _clip if problem.kind == "clip" else _siglip
        if not problem.whole:
            loss, slope, bias_slope, statistics = run(problem, _similarities(problem), keep, False)
            return loss, ((slope, bias_slope), statistics, None)
        ((_, x),) = _similarities(problem)

        def sweep() -> tuple[Tensor, Tensor, Tensor]:
            return run(problem, [(0, x)], False, keep)[:3]

        given = (x, _tensor(problem.scale), _tensor(problem.bias))
        if replay.serves(x):
            kind = ("contrastive_loss", problem.kind, keep, _constant(problem.scale), _constant(problem.bias))
            loss, *slopes = cast("tuple[Tensor, Tensor, Tensor]", replay.run(kind, given, sweep))
        else:
            loss, *slopes = sweep()
        return loss, (slopes, None, x if keep else None)


def contrastive_loss_gradients(
    problem: ContrastiveProblem, recorded: Recorded, grad: Tensor, needs: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of a and b, None where ``needs`` is False, for the loss's gradient ``grad``."""
    a, b = problem.a.detach(), problem.b.detach()
    _check_device(a.device)
    if problem.dtype == torch.float64:
        return reference.contrastive_loss_gradients(problem, recorded, grad, needs)
    with torch.no_grad(), _no_autocast(a.device), _on_device(a.device):
        products = _Products(problem, needs)
        if recorded.gradient is not None:
            products.add(recorded.gradient, 0)
            scale_gradients([g for g in (products.da, products.db) if g is not None], grad)
        else:
            for first, x in _similarities(problem):
                _write_gradient(problem, recorded.statistics, x, first, grad)
                products.add(x, first)
        found = (products.da, products.db)
        return [g if g is None else g.to(t.dtype) for g, t in zip(found, (a, b), strict=True)]


# ---- products


def _product(a: Tensor, b: Tensor) -> Tensor:
    """In float32."""
    if a.dtype == torch.float32:
        return torch.mm(a, b)
    if a.is_cuda and torch.version.hip is None:
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a.float(), b.float())  # torch has that for NVIDIA's GPUs alone


def _similarities(problem: ContrastiveProblem) -> Iterator[tuple[int, Tensor]]:
    """First row and x = a b^T of each tile."""
    a, b = problem.a.detach(), problem.b.detach()
    if a.dtype != b.dtype or a.dtype not in _HALVES:
        a, b = a.float(), b.float()
    for first in range(0, a.shape[0], problem.tile_rows):
        yield first, _product(a[first : first + problem.tile_rows], b.mT)


class _Products:
    """Gradients of a and b, from tiles of the similarities' gradient."""

    __slots__ = ("a", "b", "da", "db", "in_pieces", "wants_a", "wants_b")

    def __init__(self, problem: ContrastiveProblem, needs: Sequence[bool]) -> None:
        a, b = problem.a.detach(), problem.b.detach()
        self.wants_a, self.wants_b = needs
        self.in_pieces = a.dtype == b.dtype == torch.bfloat16
        self.a = a if self.in_pieces else a.float()
        self.b = b.repeat(3, 1) if self.in_pieces and self.wants_a else b.float()
        self.da = torch.empty(a.shape, dtype=torch.float32, device=a.device) if self.wants_a else None
        self.db: Tensor | None = None

    def add(self, dx: Tensor, first: int) -> None:
        """Add the products with dx, the gradient of rows of similarities from ``first`` on."""
        batch = dx.shape[1]
        step = max(1, PIECES_BYTES // (6 * batch)) if self.in_pieces else dx.shape[0]
        for start in range(0, dx.shape[0], step):
            part = dx[start : start + step]
            begin = first + start
            end = begin + part.shape[0]
            if self.in_pieces:
                part = _pieces(part)
            if self.da is not None:
                self.da[begin:end] = _product(part, self.b)
            if self.wants_b:
                found = _product(part.mT, self.a[begin:end])
                if self.in_pieces:
                    found = found.view(3, batch, -1).sum(0)
                self.db = found if self.db is None else self.db.add_(found)


def _pieces(x: Tensor) -> Tensor:
    """x, (rows, B), as the sum of three bfloat16, (rows, 3 B): one beside the other."""
    rows, batch = x.shape
    pieces = torch.empty((rows, 3 * batch), dtype=torch.bfloat16, device=x.device)
    every = _Grid(rows, batch, 4)
    arguments = {
        "x": x,
        "pieces": pieces,
        "rows": rows,
        "batch": batch,
        "ROWS": ROWS,
        "COLUMNS": every.columns,
    }
    _launch(kernels.contrastive_split_kernel, (-(-rows // ROWS), every.chunks), every.warps, arguments)
    return pieces


# ---- kernels

_Results = tuple[Tensor, Tensor, Tensor, Tensor | None]
"""Loss, its slopes in scale and bias, and statistics."""


class _Grid:
    """How a tile of similarities is cut up: into stripes of rows by chunks of columns."""

    __slots__ = ("chunks", "columns", "stripe", "stripes", "warps")

    def __init__(self, rows: int, batch: int, warps: int) -> None:
        self.warps = max(1, min(warps, _power_of_two(batch) // COLUMNS))
        self.columns = self.warps * COLUMNS
        self.chunks = -(-batch // self.columns)
        self.stripe = max(16, min(512, _power_of_two(-(-rows * self.chunks * self.warps // WARPS))))
        self.stripes = -(-rows // self.stripe)


def _constant(x: Tensor | float) -> float | None:
    return None if isinstance(x, Tensor) else float(x)


def _tensor(x: Tensor | float) -> Tensor | None:
    return x.detach() if isinstance(x, Tensor) else None


def _scale(problem: ContrastiveProblem) -> dict[str, Any]:
    tensor = _tensor(problem.scale)
    return {
        "scale": _constant(problem.scale) if tensor is None else tensor,
        "SCALE_IS_TENSOR": tensor is not None,
    }


def _clip(
    problem: ContrastiveProblem, tiles: Iterable[tuple[int, Tensor]], keep_statistics: bool, write: bool
) -> _Results:
    """``write``: the gradient over the similarities, of which there is one tile."""
    device, batch, scale = problem.a.device, problem.a.shape[0], _scale(problem)
    # One warp: all that it adds up along rows and columns stays in it.
    every = _Grid(problem.tile_rows, batch, 1)
    last = batch % problem.tile_rows or problem.tile_rows
    stripes = (-(-batch // problem.tile_rows) - 1) * every.stripes + -(-last // every.stripe)
    of_rows = replay.empty((3, every.chunks, batch), torch.float32, device)
    of_columns = replay.empty((3, stripes, batch), torch.float32, device)
    diagonal = replay.empty((batch,), torch.float32, device)
    x = diagonal
    for i, (first, x) in enumerate(tiles):
        rows = x.shape[0]
        arguments = {
            "x": x,
            "of_rows": of_rows,
            "of_columns": of_columns,
            "diagonal": diagonal,
            "first": first,
            "rows": rows,
            "batch": batch,
            "stripe": i * every.stripes,
            "stripes": stripes,
            "STRIPE": every.stripe,
            "ROWS": ROWS,
            "COLUMNS": every.columns,
            **scale,
        }
        grid = (-(-rows // every.stripe), every.chunks)
        _launch(kernels.clip_statistics_kernel, grid, every.warps, arguments)
    block = 64
    blocks = -(-batch // block)
    partials = replay.empty((3, 2 * blocks), torch.float32, device)
    statistics = None
    if write or keep_statistics:
        statistics = replay.empty((4, batch), torch.float32, device)
    arguments = {
        "of_rows": of_rows,
        "of_columns": of_columns,
        "diagonal": diagonal,
        "statistics": statistics,
        "partials": partials,
        "batch": batch,
        "chunks": every.chunks,
        "stripes": stripes,
        "PARTS": 32,
        "BLOCK": block,
        **scale,
    }
    _launch(kernels.clip_join_kernel, (blocks, 2), 4, arguments)
    results = _sum(problem, partials, 2.0 * batch)
    if write:
        _write_gradient(problem, statistics, x, 0, None)
    return (*results, statistics if keep_statistics else None)


def _siglip(
    problem: ContrastiveProblem, tiles: Iterable[tuple[int, Tensor]], keep_statistics: bool, write: bool
) -> _Results:
    device, batch = problem.a.device, problem.a.shape[0]
    every = _Grid(problem.tile_rows, batch, 4)
    last = batch % problem.tile_rows or problem.tile_rows
    full = every.stripes * every.chunks
    slots = (-(-batch // problem.tile_rows) - 1) * full + -(-last // every.stripe) * every.chunks
    partials = replay.empty((3, slots), torch.float32, device)
    for i, (first, x) in enumerate(tiles):
        _sweep_siglip(problem, x, first, None, partials, (i * full, slots), write)
    return (*_sum(problem, partials, 1.0 * batch), None)


def _sweep_siglip(
    problem: ContrastiveProblem,
    x: Tensor,
    first: int,
    upstream: Tensor | None,
    partials: Tensor | None,
    slots: tuple[int, int],
    write: bool,
) -> None:
    rows, batch = x.shape
    every = _Grid(problem.tile_rows, batch, 4)
    bias = problem.bias
    arguments = {
        "x": x,
        "bias": bias.detach() if isinstance(bias, Tensor) else float(bias),
        "upstream": upstream,
        "partials": partials,
        "first": first,
        "rows": rows,
        "batch": batch,
        "slot": slots[0],
        "slots": slots[1],
        "BIAS_IS_TENSOR": isinstance(bias, Tensor),
        "WRITE": write,
        "STRIPE": every.stripe,
        "ROWS": ROWS,
        "COLUMNS": every.columns,
        **_scale(problem),
    }
    _launch(kernels.siglip_kernel, (-(-rows // every.stripe), every.chunks), every.warps, arguments)


def _write_gradient(
    problem: ContrastiveProblem, statistics: Tensor | None, x: Tensor, first: int, upstream: Tensor | None
) -> None:
    """Write the gradient of a tile of similarities over them."""
    if statistics is None:  # siglip
        _sweep_siglip(problem, x, first, upstream, None, (0, 0), True)
        return
    rows, batch = x.shape
    every = _Grid(problem.tile_rows, batch, 4)
    arguments = {
        "x": x,
        "statistics": statistics,
        "upstream": upstream,
        "first": first,
        "rows": rows,
        "batch": batch,
        "ROWS": ROWS,
        "COLUMNS": every.columns,
        **_scale(problem),
    }
    _launch(kernels.clip_gradient_kernel, (-(-rows // ROWS), every.chunks), every.warps, arguments)


def _sum(problem: ContrastiveProblem, partials: Tensor, over: float) -> tuple[Tensor, Tensor, Tensor]:
    loss, slope, bias_slope = (replay.empty((), torch.float32, partials.device) for _ in range(3))
    count = partials.shape[1]
    arguments = {
        "partials": partials,
        "loss": loss,
        "slope": slope,
        "bias_slope": bias_slope,
        "count": count,
        "over": over,
        "BY_SIZE": problem.kind == "clip",
        "BLOCK": max(32, min(1024, _power_of_two(count))),
        **_scale(problem),
    }
    _launch(kernels.contrastive_sum_kernel, (1,), 4, arguments)
    return loss, slope, bias_slope
