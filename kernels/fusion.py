"""Triton kernels of weighted fusion, F[b, t] = sum_m w_m[b, t] * (A_m norm_m(x_m[b]))[t], and its gradients.

Layout: a feature is (pointer, stride of B, stride of T, steps), its channels next to each other; weights
are (pointer, strides of B, T, M, D), 0 where they lack a dimension; the gradient of the result is (pointer,
strides of B, T, D), the last of them 0 or 1, as that of the weights; the mask is (pointer, strides of B, T,
M) or None; norm_weight and norm_bias are (pointer, stride of M) or None. What is written is contiguous.
Whatever is read is turned into float32, whatever is written into the dtype of its pointer. Nothing that the
mask or the alignment leaves out is read.

Tiles: a program holds ROWS steps as a tuple of CHUNKS tiles (ROWS, BLOCK_D), next to each other: 768 channels
are three of 256, none of whose lanes idle. As many rows as fit are one warp's, whose sums need no barrier and
whose work on steps and weights is done once. Masks that are true for sure are constants, which the compiler
takes out: a masked load is an instruction more for every register that it might have to clear.

Derivation. With k_m = 1 where modality m is there, n_m = gamma_m x^_m + beta_m, a_m = A_m n_m, G = dL/dF:

    p_m = <G, a_m> over D (per channel: G a_m), P = sum_j w_j p_j
    gates:     sum: dL/dg_m = k_m p_m; normalized: k_m (p_m - P) / sum_j k_j g_j
               softmax of logits g: w_m (p_m - P)
    affine:    N_m = A_m^T (w_m G), dL/dbeta_m = sum N_m, dL/dgamma_m = sum N_m x^_m, u = gamma_m N_m
    LayerNorm: dL/dx = r (u - mean(u) - x^ mean(u x^)), x^ = (x - mean(x)) r
    RMSNorm:   dL/dx = r (u - x^ mean(u x^)), x^ = x r
    L2:        dL/dx = r (u - x^ <u, x^>), x^ = x r; r u where |x| < eps, where r = 1 / eps is constant
    probe:     sum over t of w_m p_m

Without alignment u = w_m v with v = gamma_m G, so that two sums serve three ends: dL/dx = a v + b x^ + c with
a = r w_m, b = -a <v, x^> / D, c = -a sum(v) / D; and p_m = <v, x^> + <G, beta_m>.

Every sum is made in a fixed order: of P programs the p-th has the tiles p, p + P, ..., so that what runs at
the same time is next to each other in memory; each writes its sums to its own slot, and ``sum_kernel`` adds
the slots. No atomics.

Alignment is integer arithmetic on the step: ``_tap`` says which source steps make a step of the result,
``_reach`` and ``_share`` which steps of the result a source step is part of, and by how much. The formulas
are the reference's (``time_map``), in int64 (WIDE) where 2 * T * T_m does not fit into 31 bits.
"""

# mypy: ignore-errors
# ruff: noqa: RUF005  (Triton compiles no starred expressions)
from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "fusion_backward_kernel",
    "fusion_forward_kernel",
    "fusion_source_kernel",
    "fusion_stats_kernel",
    "sum_kernel",
]


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
    inside = ()
    for c in tl.static_range(CHUNKS):
        inside = inside + (_yes(1, BLOCK_D) if D % (CHUNKS * BLOCK_D) == 0 else cols + c * BLOCK_D < D,)
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


@triton.jit
def _of(chunks, c: tl.constexpr, PER_CHANNEL: tl.constexpr):
    """A modality's weights of a chunk: its own, or the only ones."""
    if PER_CHANNEL:
        return chunks[c]
    else:
        return chunks


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


# ---- kernels


@triton.jit(do_not_specialize=["rows"])
def fusion_forward_kernel(
    out,
    features,
    stats,
    weights,
    mask,
    norm_weight,
    norm_bias,
    rows,
    T,
    D: tl.constexpr,
    eps,
    M: tl.constexpr,
    MODE: tl.constexpr,
    NORM: tl.constexpr,
    ALIGN: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    ROWS: tl.constexpr,
    FULL: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    KEEP: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Result (B, T, D). Grid: (tiles of rows, parts of D); one part if there is a norm and no ``stats``."""
    valid, row, b, t = _place(_program(WIDE), rows, T, ROWS, FULL)
    cols, inside = _columns(tl.program_id(1) * CHUNKS * BLOCK_D, D, CHUNKS, BLOCK_D)
    there = _available(mask, b, t, valid, M)
    steps = _load_steps(features, there, b, t, cols, inside, M, ALIGN, CHUNKS, KEEP)
    if not PER_CHANNEL:
        w, _ = _weights(weights, there, b, t, t, valid, M, MODE, False)
    fused = _empty_sums(CHUNKS, ROWS, BLOCK_D)
    for m in tl.static_range(M):
        a, _, _ = _step(
            steps[m],
            features[m],
            stats[m],
            b,
            t,
            there[m],
            cols,
            inside,
            T,
            D,
            eps,
            tl.constexpr(ALIGN[m]),
            NORM,
            CHUNKS,
            KEEP,
        )
        terms = ()
        for c in tl.static_range(CHUNKS):
            if PER_CHANNEL:
                w, _ = _weights(weights, there, b, t, cols + c * BLOCK_D, inside[c], M, MODE, True)
            x = _affine(a[c], norm_weight, norm_bias, m, cols, inside, c)
            terms = terms + (tl.where(there[m], w[m] * x, 0.0),)
        fused = terms if m == 0 else _plus(fused, terms)
    for c in tl.static_range(CHUNKS):
        tl.store(out + row * D + cols + c * BLOCK_D, fused[c], mask=valid & inside[c])


@triton.jit(do_not_specialize=["rows"])
def fusion_backward_kernel(
    grad,
    features,
    stats,
    weights,
    mask,
    norm_weight,
    norm_bias,
    dfeatures,
    dweights,
    dprobe,
    dnorm_weight,
    dnorm_bias,
    rows,
    T,
    D: tl.constexpr,
    eps,
    M: tl.constexpr,
    MODE: tl.constexpr,
    NORM: tl.constexpr,
    ALIGN: tl.constexpr,
    FUSED: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    PER_STEP: tl.constexpr,
    SHARED: tl.constexpr,
    ROWS: tl.constexpr,
    FULL: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    LOOP: tl.constexpr,
    KEEP: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Gradients row by row of the result. Grid: (programs,).

    dweights: (B, T, M, D) if PER_CHANNEL, (B, T, M) if PER_STEP, else (programs, M), to be summed. dprobe:
    (B, T, M), to be summed. FUSED: the modalities, none of them aligned, whose dfeatures, dnorm_weight and
    dnorm_bias come from here, the latter two as (programs, M, D), to be summed; ``fusion_source_kernel`` has
    the others. SHARED: weights are (M) and there is no mask. LOOP: D has several parts; then FUSED has none,
    and ``stats`` are given if there is a norm.
    """
    program = _program(WIDE)
    NEED_P: tl.constexpr = dweights is not None or dprobe is not None
    SUM_P: tl.constexpr = dprobe is not None or (dweights is not None and not PER_CHANNEL)
    GATE: tl.constexpr = PER_CHANNEL and dweights is not None
    WIDTH: tl.constexpr = CHUNKS * BLOCK_D
    dgammas = _empty_sums(M * CHUNKS, ROWS, BLOCK_D if dnorm_weight is not None else 1)
    dbetas = _empty_sums(M * CHUNKS, ROWS, BLOCK_D if dnorm_bias is not None else 1)
    dgates = _empty_sums(M, ROWS, 1)
    if SHARED:
        w, total = _shared_weights(weights, M, MODE)
    for tile in range(program, tl.cdiv(rows, ROWS), tl.num_programs(0)):
        valid, row, b, t = _place(tile, rows, T, ROWS, FULL)
        there = _available(mask, b, t, valid, M)
        p = _empty_sums(M, ROWS, 1)  # <G, a_m>; per channel w_m times that
        if not PER_CHANNEL and not SHARED:
            w, total = _weights(weights, there, b, t, t, valid, M, MODE, False)
        for start in range(0, D if LOOP else 1, WIDTH):
            cols, inside = _columns(start, D, CHUNKS, BLOCK_D)
            pointer, stride_b, stride_t, stride_d = grad
            at = pointer + b * stride_b + t.to(tl.int64) * stride_t + cols * stride_d
            g = _load_chunks(at, valid, inside, CHUNKS, BLOCK_D, stride_d)
            steps = _load_steps(features, there, b, t, cols, inside, M, ALIGN, CHUNKS, KEEP)
            mean_q = _empty_sums(CHUNKS, ROWS, BLOCK_D if GATE else 1)  # P of each channel
            new_p = ()
            new_dgammas = ()
            new_dbetas = ()
            for m in tl.static_range(M):
                sum_p = p[m]
                if (
                    NEED_P
                    or (NORM != "none" and dfeatures[m] is not None)
                    or (FUSED[m] and dnorm_weight is not None)
                ):
                    x, r, varies = _step(
                        steps[m],
                        features[m],
                        stats[m],
                        b,
                        t,
                        there[m],
                        cols,
                        inside,
                        T,
                        D,
                        eps,
                        tl.constexpr(ALIGN[m]),
                        NORM,
                        CHUNKS,
                        KEEP,
                    )
                vs = ()
                part_p = tl.zeros((ROWS, BLOCK_D), tl.float32)
                part_v = part_p
                part_vx = part_p
                more_q = ()
                for c in tl.static_range(CHUNKS):
                    gc = g[c]
                    if mask is not None:
                        gc = tl.where(there[m], gc, 0.0)
                    v = gc
                    n = gc
                    if PER_CHANNEL:
                        w, total = _weights(
                            weights, there, b, t, cols + c * BLOCK_D, inside[c], M, MODE, True
                        )
                        n = w[m] * gc
                        v = n
                    if dfeatures[m] is not None:
                        v = _affine(v, norm_weight, None, m, cols, inside, c)
                        vs = vs + (v,)
                    if NORM != "none" and dfeatures[m] is not None:
                        part_vx = _added(part_vx, v * x[c], c == 0)
                        if NORM == "layer_norm":
                            part_v = _added(part_v, v, c == 0)
                    if NEED_P and (PER_CHANNEL or NORM == "none" or dfeatures[m] is None):
                        q = gc * _affine(x[c], norm_weight, norm_bias, m, cols, inside, c)
                        if GATE and MODE == "sum":
                            at = dweights + (row * M + m) * D + cols + c * BLOCK_D
                            tl.store(at, q, mask=valid & inside[c])
                        if PER_CHANNEL:
                            q = w[m] * q
                        if GATE:
                            more_q = more_q + (q,)
                        if SUM_P:
                            part_p = _added(part_p, q, c == 0)
                    elif SUM_P and norm_bias is not None:
                        part_p = _added(part_p, _parameter(norm_bias, m, cols, inside, c) * gc, c == 0)
                    if dnorm_weight is not None:
                        dgamma = dgammas[m * CHUNKS + c]
                        if FUSED[m]:
                            dgamma += n * x[c] if PER_CHANNEL else w[m] * (n * x[c])
                        new_dgammas = new_dgammas + (dgamma,)
                    if dnorm_bias is not None:
                        dbeta = dbetas[m * CHUNKS + c]
                        if FUSED[m]:
                            dbeta += n if PER_CHANNEL else w[m] * n
                        new_dbetas = new_dbetas + (dbeta,)
                if GATE and MODE != "sum":
                    mean_q = _plus(mean_q, more_q)
                if NORM != "none" and dfeatures[m] is not None:
                    # One reduction of several: barriers less.
                    sum_v = 0.0
                    if SUM_P and (PER_CHANNEL or norm_bias is not None):
                        if NORM == "layer_norm":
                            sum_v, sum_vx, more = tl.reduce(
                                (part_v, part_vx, part_p), 1, _three_sums, keep_dims=True
                            )
                        else:
                            sum_vx, more = tl.reduce((part_vx, part_p), 1, _two_sums, keep_dims=True)
                        sum_p += more
                    elif NORM == "layer_norm":
                        sum_v, sum_vx = tl.reduce((part_v, part_vx), 1, _two_sums, keep_dims=True)
                    else:
                        sum_vx = tl.sum(part_vx, 1, keep_dims=True)
                    if not PER_CHANNEL:
                        sum_p += sum_vx
                    slope = r
                    if not PER_CHANNEL:
                        slope = r * w[m]
                    slope_x, constant = _slopes(slope, sum_v, sum_vx, varies, D, NORM)
                elif SUM_P:
                    sum_p += tl.sum(part_p, 1, keep_dims=True)
                if dfeatures[m] is not None:
                    for c in tl.static_range(CHUNKS):
                        if NORM != "none" and dfeatures[m] is not None:
                            dx = slope * vs[c] + (slope_x * x[c] + constant)
                        elif PER_CHANNEL:
                            dx = vs[c]
                        else:
                            dx = w[m] * vs[c]
                        at = dfeatures[m] + row * D + cols + c * BLOCK_D
                        tl.store(at, dx, mask=valid & inside[c])
                new_p = new_p + (sum_p,)
            p = new_p
            if dnorm_weight is not None:
                dgammas = new_dgammas
            if dnorm_bias is not None:
                dbetas = new_dbetas
            if GATE and MODE != "sum":
                for m in tl.static_range(M):  # again, now that P is known
                    x, _, _ = _step(
                        steps[m],
                        features[m],
                        stats[m],
                        b,
                        t,
                        there[m],
                        cols,
                        inside,
                        T,
                        D,
                        eps,
                        tl.constexpr(ALIGN[m]),
                        NORM,
                        CHUNKS,
                        KEEP,
                    )
                    for c in tl.static_range(CHUNKS):
                        w, total = _weights(
                            weights, there, b, t, cols + c * BLOCK_D, inside[c], M, MODE, True
                        )
                        q = g[c] * _affine(x[c], norm_weight, norm_bias, m, cols, inside, c) - mean_q[c]
                        dgate = w[m] * q if MODE == "softmax" else q / total
                        at = dweights + (row * M + m) * D + cols + c * BLOCK_D
                        tl.store(at, tl.where(there[m], dgate, 0.0), mask=valid & inside[c])
        if PER_CHANNEL:
            if dprobe is not None:
                for m in tl.static_range(M):
                    tl.store(dprobe + row * M + m, p[m], mask=valid)
        elif NEED_P:
            mean_p = tl.zeros((ROWS, 1), tl.float32)  # P
            if MODE != "sum":
                for m in tl.static_range(M):
                    mean_p += w[m] * p[m]
            new_dgates = ()
            for m in tl.static_range(M):
                if MODE == "sum":
                    dgate = p[m]
                elif MODE == "softmax":
                    dgate = w[m] * (p[m] - mean_p)
                else:
                    dgate = tl.where(there[m], (p[m] - mean_p) / total, 0.0)
                if dweights is not None and PER_STEP:
                    tl.store(dweights + row * M + m, dgate, mask=valid)
                if dprobe is not None:
                    tl.store(dprobe + row * M + m, w[m] * p[m], mask=valid)
                new_dgates = new_dgates + (dgates[m] + dgate,)
            dgates = new_dgates
    if dweights is not None and not PER_CHANNEL and not PER_STEP:
        for m in tl.static_range(M):
            tl.store(dweights + program * M + m, tl.sum(tl.sum(dgates[m], 1), 0))
    cols, inside = _columns(0, D, CHUNKS, BLOCK_D)
    for m in tl.static_range(M):
        if FUSED[m]:
            slot = (program.to(tl.int64) * M + m) * D + cols
            for c in tl.static_range(CHUNKS):
                if dnorm_weight is not None:
                    total_c = tl.sum(dgammas[m * CHUNKS + c], 0, keep_dims=True)
                    tl.store(dnorm_weight + slot + c * BLOCK_D, total_c, mask=inside[c])
                if dnorm_bias is not None:
                    total_c = tl.sum(dbetas[m * CHUNKS + c], 0, keep_dims=True)
                    tl.store(dnorm_bias + slot + c * BLOCK_D, total_c, mask=inside[c])


@triton.jit
def _source_rows(
    grad,
    feature,
    stats,
    weights,
    mask,
    norm_weight,
    dfeature,
    dnorm_weight,
    dnorm_bias,
    B,
    T,
    D: tl.constexpr,
    eps,
    M: tl.constexpr,
    m: tl.constexpr,
    MODE: tl.constexpr,
    NORM: tl.constexpr,
    ALIGN: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    SHARED: tl.constexpr,
    UNROLL: tl.constexpr,
    ROWS: tl.constexpr,
    FULL: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr,
):
    PROJECT: tl.constexpr = NORM != "none" and dfeature is not None
    source = feature[3]
    program = _program(WIDE)
    cols, inside = _columns(tl.program_id(1) * CHUNKS * BLOCK_D, D, CHUNKS, BLOCK_D)
    dgamma = _empty_sums(CHUNKS, ROWS, BLOCK_D)
    dbeta = _empty_sums(CHUNKS, ROWS, BLOCK_D)
    rows = (B.to(tl.int64) if WIDE else B) * source
    for tile in range(program, tl.cdiv(rows, ROWS), tl.num_programs(0)):
        valid, row, b, s = _place(tile, rows, source, ROWS, FULL)
        n, used = _gather(
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
            M,
            m,
            MODE,
            ALIGN,
            PER_CHANNEL,
            SHARED,
            CHUNKS,
            UNROLL,
        )
        if PROJECT or dnorm_weight is not None:
            x = _load_step(feature, b, s, cols, used, inside, CHUNKS)
            x, r, varies = _normalised(x, stats, row, used, inside, D, eps, NORM)
        if dfeature is not None:
            u = ()
            for c in tl.static_range(CHUNKS):
                u = u + (_affine(n[c], norm_weight, None, m, cols, inside, c),)
            if PROJECT:
                if stats is None:
                    part_u = u[0]
                    part_ux = u[0] * x[0]
                    for c in tl.static_range(1, CHUNKS):
                        part_u += u[c]
                        part_ux += u[c] * x[c]
                    sum_u, sum_ux = tl.reduce((part_u, part_ux), 1, _two_sums, keep_dims=True)
                    slope_x, constant = _slopes(r, sum_u, sum_ux, varies, D, NORM)
                else:
                    constant = r * _load(stats + row * 4 + 2, used)
                    slope_x = r * _load(stats + row * 4 + 3, used)
            for c in tl.static_range(CHUNKS):
                dx = u[c]
                if PROJECT:
                    dx = r * dx + (slope_x * x[c] + constant)
                tl.store(dfeature + row * D + cols + c * BLOCK_D, dx, mask=valid & inside[c])
        if dnorm_weight is not None:
            products = ()
            for c in tl.static_range(CHUNKS):
                products = products + (n[c] * x[c],)
            dgamma = _plus(dgamma, products)
        if dnorm_bias is not None:
            dbeta = _plus(dbeta, n)
    slot = (program.to(tl.int64) * M + m) * D + cols
    for c in tl.static_range(CHUNKS):
        if dnorm_weight is not None:
            tl.store(dnorm_weight + slot + c * BLOCK_D, tl.sum(dgamma[c], 0, keep_dims=True), mask=inside[c])
        if dnorm_bias is not None:
            tl.store(dnorm_bias + slot + c * BLOCK_D, tl.sum(dbeta[c], 0, keep_dims=True), mask=inside[c])


@triton.jit(do_not_specialize=["B"])
def fusion_source_kernel(
    grad,
    features,
    stats,
    weights,
    mask,
    norm_weight,
    dfeatures,
    dnorm_weight,
    dnorm_bias,
    B,
    T,
    D: tl.constexpr,
    eps,
    M: tl.constexpr,
    MODE: tl.constexpr,
    NORM: tl.constexpr,
    ALIGN: tl.constexpr,
    WHICH: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    SHARED: tl.constexpr,
    UNROLL: tl.constexpr,
    ROWS: tl.constexpr,
    FULL: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Gradients step by step of the source. Grid: (programs, parts of D, modalities of WHICH).

    A source step collects from the steps that it is part of. dnorm_weight, dnorm_bias: (programs, M, D), to
    be summed. One part of D if there is a norm and no ``stats``.
    """
    for i in tl.static_range(len(WHICH)):
        if tl.program_id(2) == i:
            _source_rows(
                grad,
                features[WHICH[i]],
                stats[WHICH[i]],
                weights,
                mask,
                norm_weight,
                dfeatures[WHICH[i]],
                dnorm_weight,
                dnorm_bias,
                B,
                T,
                D,
                eps,
                M,
                tl.constexpr(WHICH[i]),
                MODE,
                NORM,
                tl.constexpr(ALIGN[WHICH[i]]),
                PER_CHANNEL,
                SHARED,
                UNROLL,
                ROWS,
                FULL,
                CHUNKS,
                BLOCK_D,
                WIDE,
            )


@triton.jit
def _stats_row(
    grad,
    feature,
    stats,
    weights,
    mask,
    norm_weight,
    B,
    T,
    D: tl.constexpr,
    eps,
    M: tl.constexpr,
    m: tl.constexpr,
    MODE: tl.constexpr,
    NORM: tl.constexpr,
    ALIGN: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr,
):
    source = feature[3]
    rows = (B.to(tl.int64) if WIDE else B) * source
    valid, row, b, s = _place(_program(WIDE), rows, source, 1, False)
    total = tl.zeros((1, BLOCK_D), tl.float32)
    if NORM == "layer_norm":
        for start in range(0, D, BLOCK_D):
            cols, inside = _columns(start, D, 1, BLOCK_D)
            total += _load_step(feature, b, s, cols, valid, inside, 1)[0]
    mean = tl.sum(total, 1, keep_dims=True) / D
    square = tl.zeros((1, BLOCK_D), tl.float32)
    for start in range(0, D, BLOCK_D):
        cols, inside = _columns(start, D, 1, BLOCK_D)
        x = _load_step(feature, b, s, cols, valid, inside, 1)[0]
        centred = tl.where(inside[0], x - mean, 0.0)
        square += centred * centred
    r, varies = _inverse_length(tl.sum(square, 1, keep_dims=True), D, eps, NORM)
    tl.store(stats + row * 4, mean, mask=valid)
    tl.store(stats + row * 4 + 1, r, mask=valid)
    if grad is not None:
        sum_u = tl.zeros((1, BLOCK_D), tl.float32)
        sum_ux = tl.zeros((1, BLOCK_D), tl.float32)
        for start in range(0, D, BLOCK_D):
            cols, inside = _columns(start, D, 1, BLOCK_D)
            n, used = _gather(
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
                M,
                m,
                MODE,
                ALIGN,
                PER_CHANNEL,
                False,
                1,
                1,
            )
            u = _affine(n[0], norm_weight, None, m, cols, inside, 0)
            x = (_load_step(feature, b, s, cols, used, inside, 1)[0] - mean) * r
            sum_u += u
            sum_ux += tl.where(used & inside[0], u * x, 0.0)
        slope_x, constant = _slopes(
            1.0, tl.sum(sum_u, 1, keep_dims=True), tl.sum(sum_ux, 1, keep_dims=True), varies, D, NORM
        )
        tl.store(stats + row * 4 + 2, constant, mask=valid)
        tl.store(stats + row * 4 + 3, slope_x, mask=valid)


@triton.jit(do_not_specialize=["B"])
def fusion_stats_kernel(
    grad,
    features,
    stats,
    weights,
    mask,
    norm_weight,
    B,
    T,
    D: tl.constexpr,
    eps,
    M: tl.constexpr,
    MODE: tl.constexpr,
    NORM: tl.constexpr,
    ALIGN: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Of rows too long for one program: mean, r and, if there is a grad, c, b; stats[m]: (B * T_m, 4) floats.

    Grid: (rows of the longest, M).
    """
    for m in tl.static_range(M):
        if tl.program_id(1) == m:
            _stats_row(
                grad,
                features[m],
                stats[m],
                weights,
                mask,
                norm_weight,
                B,
                T,
                D,
                eps,
                M,
                m,
                MODE,
                NORM,
                tl.constexpr(ALIGN[m]),
                PER_CHANNEL,
                BLOCK_D,
                WIDE,
            )


@triton.jit
def _sum_block(job, COUNT: tl.constexpr, RESULTS: tl.constexpr, WIDE: tl.constexpr):
    source, target, outer, count, inner = job
    at = _program(WIDE) * RESULTS + tl.arange(0, RESULTS)[None, :]
    inside = at < outer * inner
    start = (at // inner).to(tl.int64) * count * inner + at % inner
    total = tl.zeros((COUNT, RESULTS), tl.float32)
    for k in range(0, count, COUNT):
        step = k + tl.arange(0, COUNT)[:, None]
        total += tl.load(source + start + step.to(tl.int64) * inner, mask=inside & (step < count), other=0.0)
    tl.store(target + at, tl.sum(total, 0, keep_dims=True), mask=inside)


@triton.jit
def sum_kernel(jobs, BLOCKS: tl.constexpr, WIDE: tl.constexpr):
    """Sums over the middle dimension. Grid: (blocks of the longest result, jobs).

    A job is (float32 (outer, count, inner), (outer, inner), outer, count, inner); its block is (steps of
    count, results).
    """
    for i in tl.static_range(len(BLOCKS)):
        if tl.program_id(1) == i:
            _sum_block(jobs[i], tl.constexpr(BLOCKS[i][0]), tl.constexpr(BLOCKS[i][1]), WIDE)
