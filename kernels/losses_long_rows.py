"""Cross entropy of long rows of classes, one at a time, of the kernels in ``losses.py``.

Cost: bounded by memory. Of 8192 x 128256 bfloat16 an H200 reads and writes 4.2 GB in 1.0 ms, its
multiprocessors issue the 12 instructions a value in 0.44 ms and compute the two powers of 2 in 0.57 ms; the
second reading of a row comes from the L2 cache. That is arithmetic on the compiled code: not measured yet.
"""

# mypy: ignore-errors
# ruff: noqa: RUF005, SIM102  (Triton compiles no starred expressions; what is None is decided as it compiles)
from __future__ import annotations

import triton
import triton.language as tl

from mmcore.kernels.losses_labels import LN_2, LOG2_E, _classes, _factors, _log1p, _there, _weight_of


@triton.jit
def _lanes(start, k: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr):
    """(LANES, VECTOR): columns of part k of a tile; each row is what a thread loads at once."""
    part = tl.arange(0, LANES)[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
    return start + k * (LANES * VECTOR) + part


@triton.jit
def _is_at(column, start, k: tl.constexpr, LANES: tl.constexpr, VECTOR: tl.constexpr):
    """Where in ``_lanes`` a column is. Of a thread the right side is constants, which take no registers."""
    of_lane = column - start - tl.arange(0, LANES)[:, None] * VECTOR
    return of_lane == k * (LANES * VECTOR) + tl.arange(0, VECTOR)[None, :]


@triton.jit
def _long_tile(
    x_row,
    start,
    columns,
    WHOLE: tl.constexpr,
    EVICT: tl.constexpr,
    VECTORS: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Tile of a row in float32, in VECTORS parts, all on their way at once; -inf beyond the row's end."""
    parts = ()
    for k in tl.static_range(VECTORS):
        cols = _lanes(start, k, LANES, VECTOR)
        if WHOLE:
            part = tl.load(x_row + cols, eviction_policy=EVICT)
        else:
            part = tl.load(x_row + cols, mask=cols < columns, other=float("-inf"), eviction_policy=EVICT)
        parts = parts + (part.to(tl.float32),)
    return parts


@triton.jit
def _grown(
    c,
    S,
    Q,
    tile,
    start,
    columns,
    label,
    SMOOTH: tl.constexpr,
    FOCAL: tl.constexpr,
    WHOLE: tl.constexpr,
    VECTORS: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Of each lane, with a tile more: the largest x log2 e, c; S, the sum of 2^(x log2 e - c); with SMOOTH Q,
    that of x log2 e - c, of which all terms have one sign, as has what a larger c adds.
    """
    most = tl.max(tile[0], 1, keep_dims=True)
    for k in tl.static_range(1, VECTORS):
        most = tl.maximum(most, tl.max(tile[k], 1, keep_dims=True))
    new_c = tl.maximum(c, most * LOG2_E)
    S = S * tl.exp2(c - new_c)
    if SMOOTH:
        Q += (start // LANES) * (c - new_c)
    for k in tl.static_range(VECTORS):
        d = tl.fma(tile[k], LOG2_E, -new_c)
        e = tl.exp2(d)
        if SMOOTH:
            if not WHOLE:
                d = tl.where(_lanes(start, k, LANES, VECTOR) < columns, d, 0.0)
            Q += tl.sum(d, 1, keep_dims=True)
        if FOCAL:
            e = tl.where(_is_at(label, start, k, LANES, VECTOR), 0.0, e)
        S += tl.sum(e, 1, keep_dims=True)
    return new_c, S, Q


@triton.jit
def _store_tile(
    dx_row,
    tile,
    start,
    columns,
    label,
    c,
    factors,
    WHOLE: tl.constexpr,
    HAS_LABEL: tl.constexpr,
    VECTORS: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Write the gradient of a tile. factors: of 2^(x log2 e - c), what is taken from it, and the label's."""
    scale, even, g_y = factors
    for k in tl.static_range(VECTORS):
        g = tl.exp2(tl.fma(tile[k], LOG2_E, -c)) * scale - even
        if HAS_LABEL:
            g = tl.where(_is_at(label, start, k, LANES, VECTOR), g_y, g)
        cols = _lanes(start, k, LANES, VECTOR)
        if WHOLE:
            tl.store(dx_row + cols, g, eviction_policy="evict_first")
        else:
            tl.store(dx_row + cols, g, mask=cols < columns, eviction_policy="evict_first")


@triton.jit
def _long_row(
    x_row,
    dx_row,
    columns,
    label,
    exists,
    w,
    f,
    z_f,
    smoothing,
    z_loss,
    gamma,
    SMOOTH: tl.constexpr,
    Z: tl.constexpr,
    FOCAL: tl.constexpr,
    VECTORS: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Loss and z loss of a row of ``_cross_entropy``; writes its gradient. With SMOOTH w is 1.

    label: 0 where it does not exist.

    Threads keep maxima and sums of their own until the row has been read. The last tile, alone in having a
    rest, stays in registers for the gradient, which goes through the row from there back to its start: what
    the L2 cache holds of it longest is wanted last.

    Exponents are fma(x, log2 e, -c), with one c for the row in the sum, the loss and the gradient: of all of
    them x log2 e is off by as much, and c may be rounded.
    """
    TILE: tl.constexpr = VECTORS * LANES * VECTOR
    FIRST: tl.constexpr = "evict_last" if dx_row is not None else ""
    whole = (columns - 1) // TILE * TILE
    # Before the reductions, which keep the threads together: the gradient may be written over it.
    x_y = tl.load(x_row + label).to(tl.float32)
    c = tl.full((LANES, 1), -1e30, tl.float32)  # never -inf: 2^(-inf - c) has to be 0
    S = tl.zeros((LANES, 1), tl.float32)  # FOCAL: without the label's
    Q = tl.zeros((LANES, 1), tl.float32)
    for start in range(0, whole, TILE):
        tile = _long_tile(x_row, start, columns, True, FIRST, VECTORS, LANES, VECTOR)
        c, S, Q = _grown(c, S, Q, tile, start, columns, label, SMOOTH, FOCAL, True, VECTORS, LANES, VECTOR)
    last = _long_tile(x_row, whole, columns, False, "", VECTORS, LANES, VECTOR)
    c, S, Q = _grown(c, S, Q, last, whole, columns, label, SMOOTH, FOCAL, False, VECTORS, LANES, VECTOR)
    of_lanes = c
    c = tl.max(c)
    S = tl.sum(S * tl.exp2(of_lanes - c))
    if SMOOTH:
        n = tl.zeros((LANES, 1), tl.int32) + whole // LANES
        for k in tl.static_range(VECTORS):
            n += tl.sum((_lanes(whole, k, LANES, VECTOR) < columns).to(tl.int32), 1, keep_dims=True)
        Q = tl.sum(Q + n * (of_lanes - c))

    x_y = tl.fma(x_y, LOG2_E, -c)  # in log2 e
    e_y = tl.exp2(x_y)
    of_label = w
    A = w
    even = 0.0
    if FOCAL:
        others = S
        S = others + e_y
        # The sum of the others, not 1 - p_y, which has few digits where p_y is nearly 1.
        log_p = tl.where(others <= e_y, -_log1p(others / e_y), (x_y - tl.log2(S)) * LN_2)
        r = others / S
        certain = r <= 0
        r = tl.where(certain, 1.0, r)
        power = tl.where(certain, 0.0, w * tl.exp(gamma * tl.log(r)))
        loss = -power * log_p
        of_label = power * (1.0 - gamma * (e_y / S) * log_p / r)
        A = of_label
    elif SMOOTH:
        even = smoothing / columns
        of_label = 1.0 - smoothing
        A = of_label + smoothing
        loss = (of_label * (tl.log2(S) - x_y) + even * (columns * tl.log2(S) - Q)) * LN_2
    else:
        loss = A * ((tl.log2(S) - x_y) * LN_2)
    loss = tl.where(exists, loss, float("nan"))
    A = tl.where(exists, A, float("nan"))
    z = tl.full((), 0.0, tl.float32)
    a = f * A
    if Z:
        lse = (c + tl.log2(S)) * LN_2
        z = z_loss * lse * lse
        a += 2.0 * z_loss * z_f * lse
    if dx_row is not None:
        scale = a / S
        if SMOOTH:
            even = f * even
        g_y = e_y * scale - even - f * of_label
        g = scale, even, g_y
        _store_tile(dx_row, last, whole, columns, label, c, g, False, True, VECTORS, LANES, VECTOR)
        for back in range(0, whole, TILE):
            start = whole - TILE - back
            tile = _long_tile(x_row, start, columns, True, "evict_first", VECTORS, LANES, VECTOR)
            # Both ways store, so that the comparisons are a branch and not made for every tile.
            if (label >= start) & (label < start + TILE):
                _store_tile(dx_row, tile, start, columns, label, c, g, True, True, VECTORS, LANES, VECTOR)
            else:
                _store_tile(dx_row, tile, start, columns, label, c, g, True, False, VECTORS, LANES, VECTOR)
    return loss, z


@triton.jit
def _long_rows_head(
    output,
    target,
    mask,
    class_weight,
    dx,
    unreduced,
    grad,
    rows,
    columns,
    tiles,
    program,
    u,
    count,
    weight,
    ignore,
    smoothing,
    z_loss,
    gamma,
    REDUCTION: tl.constexpr,
    SMOOTH: tl.constexpr,
    Z: tl.constexpr,
    FOCAL: tl.constexpr,
    VECTORS: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """A program's rows, one after another; what ``_rows_head`` returns."""
    sum_loss = tl.full((), 0.0, tl.float32)
    sum_z = sum_loss
    sum_w = sum_loss
    found = sum_loss
    for k in range(tiles):
        unit = program * tiles + k
        row = unit.to(tl.int64)
        valid = unit < rows
        there = _there(unit, valid, mask)
        label, there, exists = _classes(target, row, there, columns, ignore)
        column = tl.where(exists, label, 0).to(tl.int32)
        loss = tl.full((), 0.0, tl.float32)
        z = loss
        dx_row = None
        if dx is not None:
            dx_row = dx + row * columns
        if there:
            w = _weight_of(class_weight, label, there, columns)
            f = u
            z_f = u
            if dx is not None:
                f, z_f = _factors(u, count, weight, grad, unit, there, REDUCTION)
            loss, z = _long_row(
                output[0] + row * output[1],
                dx_row,
                columns,
                column,
                exists,
                w,
                f,
                z_f,
                smoothing,
                z_loss,
                gamma,
                SMOOTH,
                Z,
                FOCAL,
                VECTORS,
                LANES,
                VECTOR,
            )
            sum_loss += loss
            sum_z += z
            sum_w += w
            found += 1.0
        elif dx is not None:
            if valid:
                for start in range(0, columns, LANES * VECTOR):
                    cols = _lanes(start, 0, LANES, VECTOR)
                    nothing = tl.zeros((LANES, VECTOR), tl.float32)
                    tl.store(dx_row + cols, nothing, mask=cols < columns, eviction_policy="evict_first")
        if unreduced is not None:
            tl.store(unreduced + row, loss + z, mask=valid)
    return sum_loss, sum_z, found, sum_w
