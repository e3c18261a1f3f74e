"""Triton kernels of the contrastive losses, between the matrix products that torch makes.

Layout: x is a tile of whole rows of a b^T, (rows, B) contiguous, from row ``first`` on; float32. Its gradient
may be written over it. Statistics of CLIP are (4, B): of each row m, no less than any y of it, and
sum exp(abs(s) (y - m)); then the same of each column; y is x, or -x where s < 0. What programs sum lies in
slots, which one program adds up in a fixed order; no atomics.

Cost: of CLIP two sweeps of x, one that reads, with two powers of 2 for each number, and one that reads and
writes; of SigLIP one that reads and writes. For B = 4096 that is 60 µs, as estimated, of an H200, which needs
1 ms for the three products in float32.

Derivation. z = s x (+ bias), p of rows and q of columns of z's softmax, t = 2 [i = j] - 1:

    clip    L = 1/2B sum_i (lse_j z_ij + lse_j z_ji - 2 z_ii),  dL/dx_ij = s/2B (p_ij + q_ij - 2 [i = j])
            dL/ds = 1/2B sum_i (sum_j p_ij x_ij + sum_j q_ji x_ji - 2 x_ii), of which the sums come as
            m + sum e (y - m) / sum e, e = exp(abs(s) (y - m)): nothing is added up that is far from y
    siglip  L = 1/B sum_ij softplus(-t z),  dL/dz_ij = -t sigma(-t z) / B,  dL/dx = s dL/dz, dL/ds = x dL/dz

While parts of a row are added up, the maximum goes from m to m' = m + h: sum e is multiplied by
exp(-abs(s) h), and sum e (y - m) gets -h sum e before it is.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from mmcore.kernels.losses_labels import LOG2_E, _log1p

__all__ = [
    "clip_gradient_kernel",
    "clip_join_kernel",
    "clip_statistics_kernel",
    "contrastive_split_kernel",
    "contrastive_sum_kernel",
    "siglip_kernel",
]


@triton.jit
def _number(x, IS_TENSOR: tl.constexpr):
    if IS_TENSOR:
        return tl.load(x).to(tl.float32)
    else:
        return tl.full((), x, tl.float32)


@triton.jit
def _part(start, rows, batch, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows (ROWS, 1) and columns (1, COLUMNS) of a part of x, what is there of it, and where it lies."""
    row = start + tl.arange(0, ROWS)[:, None]
    col = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return row, col, (row < rows) & (col < batch), row.to(tl.int64) * batch + col


@triton.jit
def _joined(steep, most, total, weighted, other, other_total, other_weighted):
    """Largest y, sum e and sum e (y - largest) of two sets; ``steep``: abs(s) log2 e."""
    new = tl.maximum(most, other)
    found = tl.zeros_like(total)
    of_found = tl.zeros_like(weighted)
    for k in tl.static_range(2):
        shift = (most if k == 0 else other) - new
        sums = total if k == 0 else other_total
        factor = tl.exp2(steep * shift)
        found += factor * sums
        of_found += factor * ((weighted if k == 0 else other_weighted) + sums * shift)
    return new, found, of_found


@triton.jit
def _softmax_sums(steep, y, on, AXIS: tl.constexpr):
    """Largest y, sum e and sum e (y - largest), e = exp(abs(s) (y - largest)); AXIS is kept as 1."""
    most = tl.max(tl.where(on, y, -1e30), AXIS, keep_dims=True)
    d = y - most
    e = tl.where(on, tl.exp2(steep * d), 0.0)
    return most, tl.sum(e, AXIS, keep_dims=True), tl.sum(tl.where(on, e * d, 0.0), AXIS, keep_dims=True)


@triton.jit(do_not_specialize=["first", "rows", "stripe", "stripes"])
def clip_statistics_kernel(
    x,
    scale,
    of_rows,
    of_columns,
    diagonal,
    first,
    rows,
    batch,
    stripe,
    stripes,
    SCALE_IS_TENSOR: tl.constexpr,
    STRIPE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Softmax sums of parts of x, by rows and by columns, and y's diagonal. Grid: (stripes of x, chunks).

    A program has STRIPE rows of COLUMNS columns. of_rows: (3, chunks, B), of_columns: (3, stripes of all
    tiles, B): maxima, sums, weighted sums. stripe: the tile's first.
    """
    s = _number(scale, SCALE_IS_TENSOR)
    steep = tl.abs(s) * LOG2_E
    begin = tl.program_id(0) * STRIPE
    left = tl.program_id(1) * COLUMNS
    most = tl.full((1, COLUMNS), -1e30, tl.float32)
    total = tl.zeros((1, COLUMNS), tl.float32)
    weighted = tl.zeros((1, COLUMNS), tl.float32)
    for k in range(0, STRIPE, ROWS):
        row, col, on, at = _part(begin + k, rows, batch, ROWS, COLUMNS)
        y = tl.load(x + at, mask=on, other=0.0)
        y = tl.where(s < 0, -y, y)
        of_part = _softmax_sums(steep, y, on, 0)
        most, total, weighted = _joined(steep, most, total, weighted, of_part[0], of_part[1], of_part[2])
        of_part = _softmax_sums(steep, y, on, 1)
        pair = first + row
        slots = of_rows + tl.program_id(1) * batch + pair
        for i in tl.static_range(3):
            tl.store(slots + i * tl.num_programs(1) * batch, of_part[i], mask=row < rows)
        if (first + begin < left + COLUMNS) & (left < first + begin + STRIPE):
            tl.store(diagonal + pair + tl.zeros_like(col), y, mask=on & (pair == col))
    col = left + tl.arange(0, COLUMNS)[None, :]
    slots = of_columns + (stripe + tl.program_id(0)).to(tl.int64) * batch + col
    plane = stripes.to(tl.int64) * batch
    tl.store(slots, most, mask=col < batch)
    tl.store(slots + plane, total, mask=col < batch)
    tl.store(slots + 2 * plane, weighted, mask=col < batch)


@triton.jit(do_not_specialize=["chunks", "stripes"])
def clip_join_kernel(
    of_rows,
    of_columns,
    diagonal,
    scale,
    statistics,
    partials,
    batch,
    chunks,
    stripes,
    SCALE_IS_TENSOR: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Statistics of x's rows and columns, of those of its parts. Grid: (blocks of B, 2: rows, columns).

    partials: (3, 2 blocks): sums of the losses, their slopes in abs(s), and 0. statistics: None where nobody
    asks for them.
    """
    steep = tl.abs(_number(scale, SCALE_IS_TENSOR))
    which = tl.program_id(1)
    parts = tl.where(which == 0, chunks, stripes)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    most = tl.full((1, BLOCK), -1e30, tl.float32)
    total = tl.zeros((1, BLOCK), tl.float32)
    weighted = tl.zeros((1, BLOCK), tl.float32)
    base = of_rows
    if which == 1:
        base = of_columns
    plane = parts.to(tl.int64) * batch
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)[:, None]
        on = (part < parts) & (i < batch)[None, :]
        at = base + part.to(tl.int64) * batch + i[None, :]
        m = tl.load(at, mask=on, other=-1e30)
        sums = tl.load(at + plane, mask=on, other=0.0)
        of_sums = tl.load(at + 2 * plane, mask=on, other=0.0)
        new = tl.max(m, 0, keep_dims=True)
        shift = m - new
        factor = tl.exp2(steep * LOG2_E * shift)
        found = tl.sum(factor * sums, 0, keep_dims=True)
        of_found = tl.sum(factor * (of_sums + sums * shift), 0, keep_dims=True)
        most, total, weighted = _joined(steep * LOG2_E, most, total, weighted, new, found, of_found)
    most = tl.sum(most, 0)
    total = tl.sum(total, 0)
    weighted = tl.sum(weighted, 0)
    there = i < batch
    over = most - tl.load(diagonal + i, mask=there, other=0.0)
    loss = tl.where(there, steep * over + tl.log(total), 0.0)
    slope = tl.where(there, over + weighted / total, 0.0)
    if statistics is not None:
        tl.store(statistics + 2 * which * batch + i, most, mask=there)
        tl.store(statistics + (2 * which + 1) * batch + i, total, mask=there)
    count = 2 * tl.num_programs(0)
    slot = which * tl.num_programs(0) + tl.program_id(0)
    tl.store(partials + slot, tl.sum(loss, 0))
    tl.store(partials + count + slot, tl.sum(slope, 0))
    tl.store(partials + 2 * count + slot, 0.0)


@triton.jit(do_not_specialize=["count"])
def contrastive_sum_kernel(
    partials,
    scale,
    loss,
    slope,
    bias_slope,
    count,
    over,
    SCALE_IS_TENSOR: tl.constexpr,
    BY_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Loss and its slopes in s and bias: sums of partials, (3, count), over a number. Grid: (1,).

    BY_SIZE: the slope in the partials is that in abs(s).
    """
    for i in tl.static_range(3):
        total = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, count, BLOCK):
            slot = start + tl.arange(0, BLOCK)
            total += tl.load(partials + i * count + slot, mask=slot < count, other=0.0)
        value = tl.sum(total, 0) / over
        if i == 0:
            tl.store(loss, value)
        elif i == 1:
            if BY_SIZE:
                value = tl.where(_number(scale, SCALE_IS_TENSOR) < 0, -value, value)
            tl.store(slope, value)
        else:
            tl.store(bias_slope, value)


@triton.jit(do_not_specialize=["first", "rows"])
def clip_gradient_kernel(
    x,
    scale,
    statistics,
    upstream,
    first,
    rows,
    batch,
    SCALE_IS_TENSOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write dL/dx over x. upstream: what it is multiplied by, or None. Grid: (parts of ROWS rows, chunks)."""
    s = _number(scale, SCALE_IS_TENSOR)
    steep = tl.abs(s) * LOG2_E
    factor = s / (2.0 * batch)
    if upstream is not None:
        factor *= tl.load(upstream).to(tl.float32)
    row, col, on, at = _part(tl.program_id(0) * ROWS, rows, batch, ROWS, COLUMNS)
    y = tl.load(x + at, mask=on, other=0.0)
    y = tl.where(s < 0, -y, y)
    g = tl.where(first + row == col, -2.0, 0.0)
    for i in tl.static_range(2):
        index = (first + row) if i == 0 else col
        there = (row < rows) if i == 0 else (col < batch)
        most = tl.load(statistics + 2 * i * batch + index, mask=there, other=0.0)
        total = tl.load(statistics + (2 * i + 1) * batch + index, mask=there, other=1.0)
        g += tl.exp2(steep * (y - most)) * (1.0 / total)
    tl.store(x + at, g * factor, mask=on)


@triton.jit(do_not_specialize=["first", "rows", "slot", "slots"])
def siglip_kernel(
    x,
    scale,
    bias,
    upstream,
    partials,
    first,
    rows,
    batch,
    slot,
    slots,
    SCALE_IS_TENSOR: tl.constexpr,
    BIAS_IS_TENSOR: tl.constexpr,
    WRITE: tl.constexpr,
    STRIPE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sums of the losses and of their slopes; with WRITE dL/dx, over x. Grid: (stripes of x, chunks).

    A program has STRIPE rows of COLUMNS columns. partials: (3, slots) of the programs of all tiles, or None;
    slot: the tile's first. upstream: what dL/dx is multiplied by, or None.
    """
    s = _number(scale, SCALE_IS_TENSOR)
    shift = _number(bias, BIAS_IS_TENSOR)
    factor = s / (1.0 * batch)
    if upstream is not None:
        factor *= tl.load(upstream).to(tl.float32)
    losses = tl.zeros((COLUMNS,), tl.float32)
    slopes = tl.zeros((COLUMNS,), tl.float32)
    bias_slopes = tl.zeros((COLUMNS,), tl.float32)
    for k in range(0, STRIPE, ROWS):
        row, col, on, at = _part(tl.program_id(0) * STRIPE + k, rows, batch, ROWS, COLUMNS)
        y = tl.load(x + at, mask=on, other=0.0)
        pair = first + row == col
        z = s * y + shift
        z = tl.where(pair, -z, z)  # -t z
        e = tl.exp(-tl.abs(z))
        sigma = tl.where(z >= 0, 1.0, e) / (1.0 + e)
        by_z = tl.where(pair, -sigma, sigma)
        if WRITE:
            tl.store(x + at, by_z * factor, mask=on)
        if partials is not None:
            losses += tl.sum(tl.where(on, tl.maximum(z, 0.0) + _log1p(e), 0.0), 0)
            slopes += tl.sum(tl.where(on, by_z * y, 0.0), 0)
            bias_slopes += tl.sum(tl.where(on, by_z, 0.0), 0)
    if partials is not None:
        at = partials + slot + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
        tl.store(at, tl.sum(losses, 0))
        tl.store(at + slots, tl.sum(slopes, 0))
        tl.store(at + 2 * slots, tl.sum(bias_slopes, 0))


@triton.jit(do_not_specialize=["rows"])
def contrastive_split_kernel(x, pieces, rows, batch, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Write x, (rows, B), as three bfloat16 that add up to it, (rows, 3, B). Grid: (parts, chunks)."""
    row, col, on, at = _part(tl.program_id(0) * ROWS, rows, batch, ROWS, COLUMNS)
    rest = tl.load(x + at, mask=on, other=0.0)
    at = row.to(tl.int64) * (3 * batch) + col
    for k in tl.static_range(3):
        piece = rest.to(tl.bfloat16)
        tl.store(pieces + at + k * batch, piece, mask=on)
        rest -= piece.to(tl.float32)
