"""Weighted fusion in Triton kernels: which of them a call needs, in which tiles, with what memory.

Forward: one launch. Backward: one for what is known row by row of the result, which without alignment is
everything; one for the streams of other rates; and one that sums what the others left in slots. Rows too long
for one tile (``MAX_BLOCK``) cost a launch more if they are normalised, for their mean and length.

Tiles depend on shapes only, and the number of programs also on the GPU: the same call on the same GPU gives
the same bits. Nothing waits for the GPU, and memory comes from torch's allocator on the current stream, so
that calls can be captured in CUDA graphs.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from triton.runtime.jit import JITFunction  # type: ignore[import-untyped,import-not-found,unused-ignore]

from mmcore.backends import reference, replay
from mmcore.errors import UnsupportedError
from mmcore.kernels import fusion as kernels
from mmcore.kernels._launch import launch as _launch

if TYPE_CHECKING:
    from mmcore.ops.fusion import FusionOptions

__all__ = ["weighted_fusion", "weighted_fusion_backward"]

MAX_BLOCK = 4096
"""Channels of a row that one program holds at once."""

TILE = 1024
"""Channels of a part of longer rows."""

_LEAST, _ROWS = 512, 4
"""Elements of a tile of short rows, 16 a thread of one warp; and its rows at most: each has its addresses."""

NARROW = 2**31 - 2**12
"""Steps below it, and products of two numbers of steps, are int32 in the kernels."""

_RESIDENT, _RESIDENT_SOURCE, _RESIDENT_SUMS = 16, 24, 10
"""Warps that each multiprocessor runs at once, by registers: of the kernels of rows and of source steps, and
of either with sums in registers. So many are launched: all have the same share, and start together."""

_REGISTERS = 200
"""A thread has at most, where it holds sums: more, as Triton 3.6 would take, and fewer run at once."""

_CHUNK, _CHUNKS, _COPIES = 64, 9, 54
"""Channels of a chunk at least, chunks of a row at most, copies of a chunk's code in a kernel at most."""

_WARPS = 16
_COMPILED = isinstance(kernels.fusion_forward_kernel, JITFunction)


class _Tile(NamedTuple):
    rows: int
    block: int
    """Channels of a chunk."""
    chunks: int
    """Chunks of a row that are held at once."""
    parts: int
    """Parts of D, each of so many chunks."""
    warps: int

    @property
    def per_thread(self) -> int:
        """Elements of a tile that each thread holds, at 32 threads a warp."""
        return max(1, self.rows * self.chunks * self.block // (32 * self.warps))

    def holds(self, tiles: int, sums: int = 0) -> bool:
        """Whether tiles, and sums as large as a tile, fit into registers: 16 warps have 128 a thread."""
        half = 1 if self.warps <= 8 else 2
        return tiles * self.per_thread * half <= 96 and (tiles + sums) * self.per_thread * half <= 128


@functools.lru_cache(maxsize=1024)
def _tile(depth: int, whole: bool, live: int, sums: int = 0, copies: int = 1) -> _Tile:
    """Tile of rows of ``depth`` channels; ``whole``: of whole rows.

    ``live``: tiles held at the same time; ``sums``: sums of that size that are held from tile to tile;
    ``copies``: of the code for a chunk. As few warps as hold them: one, whose sums over channels need no
    barrier, for three modalities of 768 channels.
    """
    block, chunks = _chunks(depth, copies) if whole else (min(TILE, _power_of_two(depth)), 1)
    width = block * chunks
    rows = min(_ROWS, max(1, _LEAST // _power_of_two(width)))
    tile = _Tile(rows, block, chunks, -(-depth // width), 1)
    while not tile.holds(live, sums) and (tile.rows > 1 or tile.warps < _WARPS):
        tile = tile._replace(rows=tile.rows // 2) if tile.rows > 1 else tile._replace(warps=2 * tile.warps)
    return tile


def _keeps(tile: _Tile, live: int, sums: int = 0) -> bool:
    """Whether there is room to have all modalities' features on their way before the first is used."""
    return tile.holds(live, sums)


def _chunks(depth: int, copies: int) -> tuple[int, int]:
    """Channels of a chunk, a power of two, and chunks of a row: without a rest, or with a small one.

    One with what may be a large rest if chunks would take too long to compile.
    """
    padded = _power_of_two(depth)
    for block, most in ((depth & -depth, _CHUNKS), (padded // 4, 4)):
        chunks = -(-depth // max(1, block))
        if block >= _CHUNK and chunks <= most and chunks * copies <= _COPIES:
            return block, chunks
    return padded, 1


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


@functools.lru_cache(maxsize=64)
def _programs(device: torch.device, per_multiprocessor: int) -> int:
    if device.type != "cuda":
        return 3  # the interpreter: few enough that every program has several tiles
    return per_multiprocessor * int(torch.cuda.get_device_properties(device).multi_processor_count)


def _on_device(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current device."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


def _check_device(device: torch.device) -> None:
    if device.type == "cpu" and _COMPILED:
        raise UnsupportedError(
            "backend 'triton' takes tensors on the CPU only in Triton's interpreter, which TRITON_INTERPRET=1"
            " in the environment switches on before its first use; backends 'cpu' and 'reference' take them"
        )


def _is_double(features: Sequence[Tensor], weights: Tensor) -> bool:
    return weights.dtype == torch.float64 or any(x.dtype == torch.float64 for x in features)


def _nested(items: Iterable[Any]) -> tuple[Any, ...]:
    """Tuple of tuples as the kernels take it.

    Ends with None: a number 1 in a tuple of a tuple is a constant of the compiled kernel, and Triton 3.6
    forgets those, inside loops and branches, that no constant of the outer tuple follows.
    """
    return (*items, None)


def _unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


def _zero_or_unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) in (0, 1) or x.shape[-1] <= 1 else x.contiguous()


class _Call:
    """One call of the op: its sizes, and its tensors as the kernels take them."""

    def __init__(
        self,
        features: Sequence[Tensor],
        weights: Tensor,
        mask: Tensor | None,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        options: FusionOptions,
    ) -> None:
        first = features[0]
        self.count = len(features)
        self.batch, self.steps, self.depth = first.shape[0], options.length, first.shape[2]
        self.rows = self.batch * self.steps
        self.device = first.device
        self.per_channel = weights.dim() == 4
        self.sources = [x.shape[1] for x in features]
        self.norm = options.norm or "none"
        self.align = options.align
        block = _power_of_two(self.depth)
        self.long = block > MAX_BLOCK or (self.per_channel and self.count * block > 4 * MAX_BLOCK)
        self.shared = weights.dim() == 1 and mask is None
        self.copies = self.count * (1 if self.norm == "none" else 2)
        longest = max(self.sources)
        aligned = [s for s, kind in zip(self.sources, self.align, strict=True) if kind != "none"]
        products = 2 * (self.steps + 1) * (max(aligned, default=0) + 2)
        self.wide = max(self.batch * max(self.steps, longest), products) >= NARROW

        if self.per_channel:
            weights = _zero_or_unit_stride(weights)
        s = weights.stride()
        strides = {1: (0, 0, *s, 0), 2: (s[0], 0, s[-1], 0), 3: (*s, 0), 4: s}[weights.dim()]
        self.features = _nested(
            (x, x.stride(0), x.stride(1), x.shape[1]) for x in (_unit_stride(x) for x in features)
        )
        mask_arguments = None
        if mask is not None:
            m = mask.stride()
            mask_arguments = (mask, m[0], 0 if mask.dim() == 2 else m[1], m[-1])
        self.tensors: dict[str, Any] = {
            "features": self.features,
            "weights": (weights, *strides),
            "mask": mask_arguments,
            "norm_weight": self._affine(norm_weight),
        }
        self.norm_bias = self._affine(norm_bias)
        self.constants: dict[str, Any] = {
            "T": self.steps,
            "D": self.depth,
            "eps": options.eps,
            "M": self.count,
            "MODE": options.mode,
            "NORM": self.norm,
            "ALIGN": self.align,
            "PER_CHANNEL": self.per_channel,
            "WIDE": self.wide,
        }

    @staticmethod
    def _affine(value: Tensor | None) -> tuple[Tensor, int] | None:
        if value is None:
            return None
        value = _unit_stride(value)
        return value, value.stride(0)

    def programs(self, tile: _Tile, warps: int) -> int:
        """As many as run at once."""
        return _programs(self.device, max(1, warps // tile.warps))

    def stats(self, grad: tuple[Any, ...] | None) -> tuple[Tensor | None, ...]:
        """Mean and length of each row, with ``grad`` also its projections, if a tile cannot hold the row."""
        if not self.long or self.norm == "none":
            return (None,) * self.count
        stats = tuple(replay.empty((self.batch * s, 4), torch.float32, self.device) for s in self.sources)
        tile = _tile(self.depth, False, 4 + self.count * self.per_channel)
        grid = (self.batch * max(self.sources), self.count)
        sizes = {"B": self.batch, "BLOCK_D": tile.block}
        _launch(
            kernels.fusion_stats_kernel,
            grid,
            tile.warps,
            {"grad": grad, "stats": stats, **self.tensors, **sizes, **self.constants},
        )
        return stats


def weighted_fusion(
    features: Sequence[Tensor],
    weights: Tensor,
    mask: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    probe: Tensor | None,
    options: FusionOptions,
) -> Tensor:
    """Fused features (B, T, D) of (B, T_m, D) ones. Arguments are already checked."""
    _check_device(features[0].device)
    if _is_double(features, weights):
        # The kernels compute in float32. torch builds the reference's alignment tables on the host, so that
        # aligned float64 calls cannot be captured in a CUDA graph.
        return reference.weighted_fusion(features, weights, mask, norm_weight, norm_bias, probe, options)
    batch, _, depth = features[0].shape
    out = replay.empty((batch, options.length, depth), options.dtype, features[0].device)
    if out.numel() == 0:
        return out
    call = _Call(features, weights, mask, norm_weight, norm_bias, options)
    with _on_device(call.device):
        stats = call.stats(None)
        # Rows of more modalities than four come one by one, if they can.
        held = call.count if call.norm != "none" else min(call.count, 4)
        tile = _tile(call.depth, not call.long, held + 1 + call.per_channel * call.count, 0, call.copies)
        arguments = {
            "out": out,
            "stats": stats,
            "norm_bias": call.norm_bias,
            "rows": call.rows,
            "ROWS": tile.rows,
            "FULL": call.rows % tile.rows == 0,
            "CHUNKS": tile.chunks,
            "BLOCK_D": tile.block,
            "KEEP": _keeps(tile, call.count + 1),
        }
        grid = (-(-call.rows // tile.rows), tile.parts)
        _launch(
            kernels.fusion_forward_kernel,
            grid,
            tile.warps,
            {**arguments, **call.tensors, **call.constants},
        )
    return out


def weighted_fusion_backward(
    grad: Tensor,
    features: Sequence[Tensor],
    weights: Tensor,
    mask: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    probe: Tensor | None,
    options: FusionOptions,
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of weights, norm_weight, norm_bias, probe and each feature; None where ``needs`` is False."""
    _check_device(features[0].device)
    if _is_double(features, weights):
        return reference.weighted_fusion_backward(
            grad, features, weights, mask, norm_weight, norm_bias, probe, options, needs
        )
    given = (weights, norm_weight, norm_bias, probe, *features)
    make = replay.zeros if grad.numel() == 0 else replay.empty
    results = [
        None if t is None or not need else make(t.shape, t.dtype, t.device)
        for t, need in zip(given, needs, strict=True)
    ]
    if grad.numel() == 0 or all(r is None for r in results):
        return results
    call = _Call(features, weights, mask, norm_weight, norm_bias, options)
    with _on_device(call.device):
        _Backward(call, _zero_or_unit_stride(grad), weights.dim(), results).run()
    return results


class _Backward:
    """The launches of one backward, and what goes from one to the next."""

    def __init__(self, call: _Call, grad: Tensor, weights_dims: int, results: list[Tensor | None]) -> None:
        self.call = call
        self.grad = (grad, *grad.stride())
        self.weights_dims = weights_dims
        self.dweights, self.dnorm_weight, self.dnorm_bias, self.dprobe, *self.dfeatures = results
        self.jobs: list[tuple[Tensor, Tensor, int, int, int]] = []
        """Of ``sum_kernel``."""

    def _scratch(self, *shape: int) -> Tensor:
        return replay.empty(shape, torch.float32, self.call.device)

    def _summed(self, target: Tensor, outer: int, count: int, inner: int) -> Tensor:
        """Memory for what ``target`` is the sum of over the middle dimension; itself if that has one step."""
        if count == 1:
            return target
        scratch = self._scratch(outer, count, inner)
        self.jobs.append((scratch, target, outer, count, inner))
        return scratch

    def run(self) -> None:
        """Fill the results."""
        call = self.call
        M, per_channel = call.count, call.per_channel
        affine = [d for d in (self.dnorm_weight, self.dnorm_bias) if d is not None]
        whole = not call.long
        held = (M + 1 if call.norm != "none" else min(M, 4) + 1) + M * per_channel
        sums = M * len(affine)
        tile = _tile(call.depth, whole, held, sums, call.copies)
        # Sums of every modality's norm_weight and norm_bias stay in registers, if they fit; then features
        # come one by one, unless there is room for them too.
        fits = whole and (not affine or tile.holds(held, sums))
        if not fits:
            tile = _tile(call.depth, whole, held, 0, call.copies)
        keep = _keeps(tile, held, sums + M if affine and fits else 0)
        wanted = [bool(affine) or dx is not None for dx in self.dfeatures]
        fused = tuple(want and fits and kind == "none" for want, kind in zip(wanted, call.align, strict=True))
        rest = tuple(m for m in range(M) if wanted[m] and not fused[m])
        source_tile = _tile(call.depth, whole, 3 + M * per_channel, len(affine), call.copies)
        tiles = -(-call.rows // tile.rows)
        source_tiles = max((-(-call.batch * call.sources[m] // source_tile.rows) for m in rest), default=0)
        programs = min(tiles, call.programs(tile, _RESIDENT_SUMS if affine and any(fused) else _RESIDENT))
        source_programs = min(
            source_tiles, call.programs(source_tile, _RESIDENT_SUMS if affine else _RESIDENT_SOURCE)
        )
        slots = max(programs if any(fused) else 0, source_programs)
        if affine and any(fused) and rest:  # either's programs have a slot each, of the same ones
            programs = source_programs = slots
        stats = call.stats(self.grad)
        dnorm_weight, dnorm_bias = (
            None if d is None else self._summed(d, 1, slots, M * call.depth)
            for d in (self.dnorm_weight, self.dnorm_bias)
        )
        if any(fused) or self.dweights is not None or self.dprobe is not None:
            self._rows(tile, keep, programs, fused, stats, dnorm_weight, dnorm_bias)
        if rest:
            self._sources(source_tile, source_programs, rest, stats, dnorm_weight, dnorm_bias)
        if self.jobs:
            self._sum()

    def _rows(
        self,
        tile: _Tile,
        keep: bool,
        programs: int,
        fused: tuple[bool, ...],
        stats: tuple[Tensor | None, ...],
        dnorm_weight: Tensor | None,
        dnorm_bias: Tensor | None,
    ) -> None:
        call, M = self.call, self.call.count
        dweights, per_step = self.dweights, True
        if dweights is not None and self.weights_dims == 1:
            per_step = False
            dweights = self._summed(dweights, 1, programs, M)
        elif dweights is not None and self.weights_dims == 2:
            dweights = self._summed(dweights, call.batch, call.steps, M)
        dprobe = self.dprobe
        if dprobe is not None:
            dprobe = self._summed(dprobe, call.batch, call.steps, M)
        affine = any(fused)
        arguments = {
            "grad": self.grad,
            "stats": stats,
            "norm_bias": call.norm_bias,
            "dfeatures": tuple(dx if f else None for dx, f in zip(self.dfeatures, fused, strict=True)),
            "dweights": dweights,
            "dprobe": dprobe,
            "dnorm_weight": dnorm_weight if affine else None,
            "dnorm_bias": dnorm_bias if affine else None,
            "rows": call.rows,
            "FUSED": fused,
            "PER_STEP": per_step,
            "SHARED": call.shared,
            "ROWS": tile.rows,
            "FULL": call.rows % tile.rows == 0,
            "CHUNKS": tile.chunks,
            "BLOCK_D": tile.block,
            "LOOP": tile.parts > 1,
            "KEEP": keep,
        }
        _launch(
            kernels.fusion_backward_kernel,
            (programs,),
            tile.warps,
            {**arguments, **call.tensors, **call.constants},
            _REGISTERS if dnorm_weight is not None or dnorm_bias is not None else 0,
        )

    def _sources(
        self,
        tile: _Tile,
        programs: int,
        which: tuple[int, ...],
        stats: tuple[Tensor | None, ...],
        dnorm_weight: Tensor | None,
        dnorm_bias: Tensor | None,
    ) -> None:
        call = self.call
        # Steps of the result that a source step is part of: where they are many, four loads at once.
        reaches = max(call.steps // call.sources[m] for m in which)
        arguments = {
            "grad": self.grad,
            "stats": stats,
            "dfeatures": tuple(self.dfeatures),
            "dnorm_weight": dnorm_weight,
            "dnorm_bias": dnorm_bias,
            "B": call.batch,
            "WHICH": which,
            "UNROLL": 4 if reaches >= 4 else 1,
            "SHARED": call.shared,
            "ROWS": tile.rows,
            "FULL": tile.rows == 1,
            "CHUNKS": tile.chunks,
            "BLOCK_D": tile.block,
        }
        _launch(
            kernels.fusion_source_kernel,
            (programs, tile.parts, len(which)),
            tile.warps,
            {**arguments, **call.tensors, **call.constants},
            _REGISTERS if dnorm_weight is not None or dnorm_bias is not None else 0,
        )

    def _sum(self) -> None:
        blocks = []
        for _, _, outer, _, inner in self.jobs:
            results = min(32, _power_of_two(outer * inner))
            blocks.append((8192 // results, results))
        grid = max(
            -(-outer * inner // block[1])
            for (_, _, outer, _, inner), block in zip(self.jobs, blocks, strict=True)
        )
        wide = max(outer * inner for _, _, outer, _, inner in self.jobs) >= NARROW
        arguments = {"jobs": _nested(self.jobs), "BLOCKS": tuple(blocks), "WIDE": wide}
        _launch(kernels.sum_kernel, (grid, len(blocks)), 16, arguments)
