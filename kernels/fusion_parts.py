"""What the kernels of weighted fusion are made of: tiles, weights, alignment, norms, steps. See ``fusion``.

Alignment is integer arithmetic on the step: ``_tap`` says which source steps make a step of the result,
``_reach`` and ``_share`` which steps of the result a source step is part of, and by how much. The formulas
are the reference's (``time_map``), in int64 (WIDE) where 2 * T * T_m does not fit into 31 bits.
"""

# mypy: ignore-errors
# ruff: noqa: RUF005  (Triton compiles no starred expressions)
from __future__ import annotations

import triton
import triton.language as tl

__all__: list[str] = []


# Elements of constexpr tuples are passed on as tl.constexpr(...): up to Triton 3.6 they are bare values.


# ---- memory


@triton.jit
def _load(at, on):
    return tl.load(at, mask=on, other=0.0).to(tl.float32)


@triton.jit
def _yes(ROWS: tl.constexpr, COLS: tl.constexpr):
    """A mask that is true, which the compiler knows and takes out."""
    return tl.full((ROWS, COLS), 1, tl.int1)


# ---- where a tile is


@triton.jit
def _program(WIDE: tl.constexpr):
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    return program


@triton.jit
def _place(tile, rows, length, ROWS: tl.constexpr, FULL: tl.constexpr):
    """(ROWS, 1) each: which rows of (B * length) there are, their index, and their b and step.

    FULL: rows are a multiple of ROWS.
    """
    row = tile * ROWS + tl.arange(0, ROWS)[:, None]
    b = row // length
    valid = _yes(ROWS, 1) if FULL else row < rows
    return valid, row.to(tl.int64), b.to(tl.int64), row - b * length


@triton.jit
def _columns(start, D: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_D: tl.constexpr):
    """(1, BLOCK_D): the first chunk's channels; and of each chunk, which of them there are."""
    cols = start + tl.arange(0, BLOCK_D)[None, :]
    WIDTH: tl.constexpr = CHUNKS * BLOCK_D
    inside = ()
    for c in tl.static_range(CHUNKS):
        if D % WIDTH == 0 or (D < WIDTH and (c + 1) * BLOCK_D <= D):
            inside = inside + (_yes(1, BLOCK_D),)
        else:
            inside = inside + (cols + c * BLOCK_D < D,)
    return cols, inside


@triton.jit
def _empty_sums(COUNT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    sums = ()
    for _ in tl.static_range(COUNT):
        sums = sums + (tl.zeros((ROWS, COLS), tl.float32),)
    return sums


@triton.jit
def _load_chunks(at, on, inside, CHUNKS: tl.constexpr, BLOCK_D: tl.constexpr, STRIDE):
    """The row at the pointers of its first chunk. STRIDE: of the channels."""
    row = ()
    for c in tl.static_range(CHUNKS):
        row = row + (_load(at + c * BLOCK_D * STRIDE, on & inside[c]),)
    return row


@triton.jit
def _added(total, x, FIRST: tl.constexpr):
    """Sum of chunks so far."""
    if FIRST:
        return x
    else:
        return total + x


# ---- availability and weights


@triton.jit
def _available(mask, b, t, valid, M: tl.constexpr):
    """Per modality, (ROWS, 1): whether it is there."""
    there = ()
    for m in tl.static_range(M):
        if mask is None:
            there = there + (valid,)
        else:
            pointer, stride_b, stride_t, stride_m = mask
            at = pointer + b * stride_b + t.to(tl.int64) * stride_t + m * stride_m
            there = there + (valid & (_load(at, valid) != 0),)
    return there


@triton.jit
def _weights(
    weights, there, b, t, cols, inside, M: tl.constexpr, MODE: tl.constexpr, PER_CHANNEL: tl.constexpr
):
    """Per modality w_m, (ROWS, 1) or per channel (ROWS, BLOCK_D), 0 if it is missing; and their divisor."""
    pointer, stride_b, stride_t, stride_m, stride_d = weights
    on = there
    if PER_CHANNEL:
        on = ()
        for m in tl.static_range(M):
            on = on + (there[m] & inside,)
    gates = ()
    for m in tl.static_range(M):
        at = pointer + b * stride_b + t.to(tl.int64) * stride_t + m * stride_m
        if PER_CHANNEL:
            at = at + cols * stride_d
        missing = float("-inf") if MODE == "softmax" else 0.0
        gates = gates + (tl.load(at, mask=on[m], other=missing).to(tl.float32),)
    if MODE == "sum":
        return gates, tl.full(gates[0].shape, 1.0, tl.float32)
    w = ()
    total = tl.zeros(gates[0].shape, tl.float32)
    if MODE == "softmax":
        peak = tl.full(gates[0].shape, -1e30, tl.float32)  # never -inf: exp(-inf - peak) has to be 0
        for m in tl.static_range(M):
            peak = tl.maximum(peak, gates[m])
        exps = ()
        for m in tl.static_range(M):
            exps = exps + (tl.exp(gates[m] - peak),)
            total += exps[m]
        total = tl.where(total == 0, 1.0, total)
        for m in tl.static_range(M):
            w = w + (exps[m] / total,)
    else:
        for m in tl.static_range(M):
            total += gates[m]
        for m in tl.static_range(M):
            w = w + (tl.where(on[m], gates[m] / total, 0.0),)
    return w, total


@triton.jit
def _shared_weights(weights, M: tl.constexpr, MODE: tl.constexpr):
    """(1, 1) each, of a call without a mask whose weights are (M)."""
    zero = tl.zeros((1, 1), tl.int32)
    there = ()
    for _ in tl.static_range(M):
        there = there + (_yes(1, 1),)
    return _weights(weights, there, zero, zero, zero, zero, M, MODE, False)


# ---- alignment


@triton.jit
def _tap(k, t, length, source, ALIGN: tl.constexpr):
    """The k-th source step of step t, its share, and whether it is there."""
    if ALIGN == "nearest":
        s = (2 * t + 1) * source // (2 * length)
        share = tl.full(t.shape, 1.0, tl.float32)
        there = s < source
    elif ALIGN == "linear":
        position = tl.maximum((2 * t + 1) * source - length, 0)  # of the centre of t, times 2 * length
        s = position // (2 * length)
        rest = tl.where(s >= source - 1, 0, position - s * (2 * length))
        # In integers up to the division: 1 - rest would lose the digits of a small share.
        share = (rest if k == 1 else 2 * length - rest).to(tl.float32) / (2 * length)
        there = (rest > 0) if k == 1 else (s < source)
        s = s + k
    else:
        first = t * source // length
        last = tl.cdiv((t + 1) * source, length)
        s = first + k
        share = 1.0 / (last - first).to(tl.float32)
        there = s < last
    return s, share, there


@triton.jit
def _reaches(length, source, ALIGN: tl.constexpr):
    """How many steps of the result at most a source step is part of."""
    if ALIGN == "none":
        return 1
    elif ALIGN == "nearest":
        return tl.cdiv(length, source)
    elif ALIGN == "linear":
        return tl.cdiv(2 * length, source) + 1
    else:
        return tl.cdiv(length, source) + tl.cdiv(length % source, source)


@triton.jit
def _reach(s, length, source, ALIGN: tl.constexpr):
    """The steps first to last - 1 of the result among which are all that source step s is part of."""
    if ALIGN == "none":
        first = s
        last = s + 1
    elif ALIGN == "nearest":
        # (2 t + 1) source >= 2 length s, hence 2 t + 1 >= c = ceil(2 length s / source), hence t >= c // 2
        first = tl.cdiv(2 * length * s, source) // 2
        last = tl.cdiv(2 * length * (s + 1), source) // 2
    elif ALIGN == "linear":
        # |position - s| < 1, the position being ((2 t + 1) source - length) / (2 length)
        first = tl.maximum(length * (2 * s - 1) - source, 0) // (2 * source)
        last = tl.cdiv(tl.maximum(length * (2 * s + 3) - source, 0), 2 * source)
    else:
        first = s * length // source
        last = tl.cdiv((s + 1) * length, source)
    return first, tl.minimum(last, length)


@triton.jit
def _share(t, s, length, source, ALIGN: tl.constexpr):
    """A[t, s], 0 where s is no part of t."""
    if ALIGN == "none":
        share = tl.full(t.shape, 1.0, tl.float32)
    elif ALIGN == "linear":
        first, first_share, _ = _tap(0, t, length, source, ALIGN)
        _, next_share, there = _tap(1, t, length, source, ALIGN)
        share = tl.where(s == first, first_share, tl.where((s == first + 1) & there, next_share, 0.0))
    else:
        first, share, _ = _tap(0, t, length, source, ALIGN)
        share = tl.where(s >= first, share, 0.0)
        if ALIGN == "mean":
            share = tl.where(s < tl.cdiv((t + 1) * source, length), share, 0.0)
        else:
            share = tl.where(s == first, share, 0.0)
    return share


# ---- norms


@triton.jit
def _inverse_length(square, D, eps, NORM: tl.constexpr):
    """From (ROWS, 1) sums of squares: r, and whether it depends on them."""
    if NORM == "l2":
        varies = square >= eps * eps
        return tl.where(varies, tl.rsqrt(square), 1.0 / eps), varies
    else:
        return tl.rsqrt(square / D + eps), square >= 0


@triton.jit
def _normalised(x, stats, row, on, inside, D: tl.constexpr, eps, NORM: tl.constexpr):
    """x^, r (0 where it is not on, 1 without a norm), and where r depends on x.

    ``stats``: None, or (rows, 4) floats by ``fusion_stats_kernel``; then x is one chunk of the row.
    """
    CHUNKS: tl.constexpr = len(x)
    if NORM == "none":
        return x, tl.full((x[0].shape[0], 1), 1.0, tl.float32), on
    varies = on
    centred = x
    if stats is None:
        if NORM == "layer_norm":
            total = x[0]
            for c in tl.static_range(1, CHUNKS):
                total += x[c]
            mean = tl.sum(total, 1, keep_dims=True) * (1.0 / D)
            centred = ()
            for c in tl.static_range(CHUNKS):
                centred = centred + (tl.where(inside[c], x[c] - mean, 0.0),)
        square = centred[0] * centred[0]
        for c in tl.static_range(1, CHUNKS):
            square += centred[c] * centred[c]
        r, varies = _inverse_length(tl.sum(square, 1, keep_dims=True), D, eps, NORM)
        r = tl.where(on, r, 0.0)
    else:
        mean = _load(stats + row * 4, on)
        r = _load(stats + row * 4 + 1, on)
        if NORM == "layer_norm":
            centred = ()
            for c in tl.static_range(CHUNKS):
                centred = centred + (tl.where(inside[c], x[c] - mean, 0.0),)
    scaled = ()
    for c in tl.static_range(CHUNKS):
        scaled = scaled + (centred[c] * r,)
    return scaled, r, varies


@triton.jit
def _parameter(value, m, cols, inside, c: tl.constexpr):
    """Of modality m, the c-th chunk, (1, BLOCK_D)."""
    return _load(value[0] + m * value[1] + cols + c * cols.shape[1], inside[c])


@triton.jit
def _affine(x, norm_weight, norm_bias, m, cols, inside, c: tl.constexpr):
    if norm_weight is not None:
        x = x * _parameter(norm_weight, m, cols, inside, c)
    if norm_bias is not None:
        x = x + _parameter(norm_bias, m, cols, inside, c)
    return x


@triton.jit
def _two_sums(a0, a1, b0, b1):
    return a0 + b0, a1 + b1


@triton.jit
def _three_sums(a0, a1, a2, b0, b1, b2):
    return a0 + b0, a1 + b1, a2 + b2


@triton.jit
def _slopes(a, sum_v, sum_vx, varies, D: tl.constexpr, NORM: tl.constexpr):
    """Slopes b and c in dL/dx = a v + b x^ + c."""
    if NORM == "layer_norm":
        return a * (sum_vx * (-1.0 / D)), a * (sum_v * (-1.0 / D))
    elif NORM == "rms_norm":
        return a * (sum_vx * (-1.0 / D)), 0.0
    else:
        return tl.where(varies, -a * sum_vx, 0.0), 0.0


# ---- a_m at steps of the result


@triton.jit
def _load_step(feature, b, s, cols, on, inside, CHUNKS: tl.constexpr):
    pointer, stride_b, stride_t, _ = feature
    at = pointer + b * stride_b + s.to(tl.int64) * stride_t + cols
    return _load_chunks(at, on, inside, CHUNKS, cols.shape[1], 1)


@triton.jit
def _load_steps(
    features,
    there,
    b,
    t,
    cols,
    inside,
    M: tl.constexpr,
    ALIGN: tl.constexpr,
    CHUNKS: tl.constexpr,
    KEEP: tl.constexpr,
):
    """Rows of the modalities that need no alignment, all on their way before the first is used; or none."""
    steps = ()
    for m in tl.static_range(M):
        if KEEP and ALIGN[m] == "none":
            steps = steps + (_load_step(features[m], b, t, cols, there[m], inside, CHUNKS),)
        else:
            steps = steps + ((b,),)  # in its place
    return steps


@triton.jit
def _tap_term(
    k,
    feature,
    stats,
    b,
    t,
    there,
    cols,
    inside,
    T,
    D: tl.constexpr,
    eps,
    ALIGN: tl.constexpr,
    NORM: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    source = feature[3]
    s, share, on = _tap(k, t, T, source, ALIGN)
    on = on & there
    x = _load_step(feature, b, s, cols, on, inside, CHUNKS)
    x, _, _ = _normalised(x, stats, b * source + s, on, inside, D, eps, NORM)
    share = tl.where(on, share, 0.0)
    term = ()
    for c in tl.static_range(CHUNKS):
        term = term + (share * x[c],)
    return term


@triton.jit
def _plus(a, b):
    total = ()
    for c in tl.static_range(len(a)):
        total = total + (a[c] + b[c],)
    return total


@triton.jit
def _step(
    step,
    feature,
    stats,
    b,
    t,
    there,
    cols,
    inside,
    T,
    D: tl.constexpr,
    eps,
    ALIGN: tl.constexpr,
    NORM: tl.constexpr,
    CHUNKS: tl.constexpr,
    KEEP: tl.constexpr,
):
    """A x^ at steps t, and of features that are not aligned for the norm's gradient r, where r varies.

    A's rows sum to 1, so that scale and shift may follow.
    """
    if ALIGN == "none":
        x = step
        if not KEEP:
            x = _load_step(feature, b, t, cols, there, inside, CHUNKS)
        return _normalised(x, stats, b * T + t, there, inside, D, eps, NORM)
    else:
        a = _tap_term(0, feature, stats, b, t, there, cols, inside, T, D, eps, ALIGN, NORM, CHUNKS)
        if ALIGN == "linear":
            a = _plus(
                a, _tap_term(1, feature, stats, b, t, there, cols, inside, T, D, eps, ALIGN, NORM, CHUNKS)
            )
        if ALIGN == "mean":
            for k in range(1, tl.cdiv(feature[3], T) + tl.cdiv(feature[3] % T, T)):
                a = _plus(
                    a,
                    _tap_term(k, feature, stats, b, t, there, cols, inside, T, D, eps, ALIGN, NORM, CHUNKS),
                )
        return a, tl.full((t.shape[0], 1), 1.0, tl.float32), there


# ---- N_m at source steps


@triton.jit
def _gather(
    grad,
    weights,
    mask,
    b,
    s,
    valid,
    cols,
    inside,
    T,
    source,
    M: tl.constexpr,
    m: tl.constexpr,
    MODE: tl.constexpr,
    ALIGN: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    SHARED: tl.constexpr,
    CHUNKS: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """N_m = A^T (w_m G) at source steps s; and which of those are part of a step that has the modality."""
    pointer, stride_b, stride_t, stride_d = grad
    n = _empty_sums(CHUNKS, s.shape[0], cols.shape[1])
    used = tl.zeros((s.shape[0], 1), tl.int1)
    first, last = _reach(s, T, source, ALIGN)
    if SHARED:
        w, _ = _shared_weights(weights, M, MODE)
    for k in range(0, tl.max(tl.max(last - first, 1), 0), UNROLL):
        for i in tl.static_range(UNROLL):  # that many loads on their way at once
            t = first + k + i
            share = _share(t, s, T, source, ALIGN)
            there = _available(mask, b, t, (t < last) & (share > 0) & valid, M)
            on = there[m]
            at = pointer + b * stride_b + t.to(tl.int64) * stride_t + cols * stride_d
            g = _load_chunks(at, on, inside, CHUNKS, cols.shape[1], stride_d)
            if not PER_CHANNEL:
                if not SHARED:
                    w, _ = _weights(weights, there, b, t, t, valid, M, MODE, False)
                part = tl.where(on, share * w[m], 0.0)
            more = ()
            for c in tl.static_range(CHUNKS):
                if PER_CHANNEL:
                    w, _ = _weights(weights, there, b, t, cols + c * cols.shape[1], inside[c], M, MODE, True)
                    part = tl.where(on, share * w[m], 0.0)
                more = more + (part * g[c],)
            n = _plus(n, more)
            used = used | on
    return n, used
