"""Triton kernels of weighted fusion, F[b, t] = sum_m w_m[b, t] * (A_m norm_m(x_m[b]))[t], and its gradients.

Layout: a feature is (pointer, stride of B, stride of T, steps), its channels next to each other; weights
are (pointer, strides of B, T, M, D), 0 where they lack a dimension; the gradient of the result is (pointer,
strides of B, T, D), the last of them 0 or 1, as that of the weights; the mask is (pointer, strides of B, T,
M) or None; norm_weight and norm_bias are (pointer, stride of M) or None. What is written is contiguous.
Tiles are (ROWS, BLOCK_D): steps by channels. Whatever is read is turned into float32, whatever is written
into the dtype of its pointer. Nothing that the mask or the alignment leaves out is read.

Derivation. With k_m = 1 where modality m is there, n_m = gamma_m x^_m + beta_m, a_m = A_m n_m, G = dL/dF:

    p_m = <G, a_m> over D (per channel: G a_m), P = sum_j w_j p_j
    gates:     sum: dL/dg_m = k_m p_m; normalized: k_m (p_m - P) / sum_j k_j g_j
               softmax of logits g: w_m (p_m - P)
    affine:    N_m = A_m^T (w_m G), dL/dbeta_m = sum N_m, dL/dgamma_m = sum N_m x^_m, u = gamma_m N_m
    LayerNorm: dL/dx = r (u - mean(u) - x^ mean(u x^)), x^ = (x - mean(x)) r
    RMSNorm:   dL/dx = r (u - x^ mean(u x^)), x^ = x r
    L2:        dL/dx = r (u - x^ <u, x^>), x^ = x r; r u where |x| < eps, where r = 1 / eps is constant
    probe:     sum over t of w_m p_m

Every sum is made in a fixed order: rows are dealt to programs in contiguous runs, each program writes its
sums to its own slot, and ``sum_kernel`` adds the slots. No atomics.

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


# ---- where a tile is


@triton.jit
def _program(WIDE: tl.constexpr):
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    return program


@triton.jit
def _place(tile, rows, length, ROWS: tl.constexpr):
    """(ROWS, 1) each: which rows of (B * length) there are, their index, and their b and step."""
    row = tile * ROWS + tl.arange(0, ROWS)[:, None]
    b = row // length
    return row < rows, row.to(tl.int64), b.to(tl.int64), row - b * length


@triton.jit
def _columns(start, D, BLOCK_D: tl.constexpr):
    """(1, BLOCK_D): channels, and which of them there are."""
    cols = start + tl.arange(0, BLOCK_D)[None, :]
    return cols, cols < D


@triton.jit
def _empty_sums(M: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    sums = ()
    for _ in tl.static_range(M):
        sums = sums + (tl.zeros((ROWS, COLS), tl.float32),)
    return sums


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
            there = there + (valid & (tl.load(at, mask=valid, other=0) != 0),)
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
    total = tl.full(gates[0].shape, 1.0, tl.float32)
    if MODE == "sum":
        return gates, total
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
def _moments(x, inside, D, eps, NORM: tl.constexpr):
    """(ROWS, 1) each, of whole rows: mean and r, with x^ = (x - mean) r; and whether r depends on x."""
    mean = tl.zeros((x.shape[0], 1), tl.float32)
    if NORM == "layer_norm":
        mean = tl.sum(x, 1, keep_dims=True) / D
        x = tl.where(inside, x - mean, 0.0)
    r, varies = _inverse_length(tl.sum(x * x, 1, keep_dims=True), D, eps, NORM)
    return mean, r, varies


@triton.jit
def _normalised(x, stats, row, there, inside, D, eps, NORM: tl.constexpr):
    """x^, r and whether r depends on x. ``stats``: None, or (rows, 4) floats by ``fusion_stats_kernel``."""
    if NORM == "none":
        r = tl.full((x.shape[0], 1), 1.0, tl.float32)
        return x, r, there
    elif stats is None:
        mean, r, varies = _moments(x, inside, D, eps, NORM)
        return (x - mean) * r, r, varies
    else:
        mean = tl.load(stats + row * 4, mask=there, other=0.0)
        r = tl.load(stats + row * 4 + 1, mask=there, other=0.0)
        return (x - mean) * r, r, there


@triton.jit
def _affine(x, norm_weight, norm_bias, m, cols, inside):
    if norm_weight is not None:
        x = x * tl.load(norm_weight[0] + m * norm_weight[1] + cols, mask=inside, other=0.0).to(tl.float32)
    if norm_bias is not None:
        x = x + tl.load(norm_bias[0] + m * norm_bias[1] + cols, mask=inside, other=0.0).to(tl.float32)
    return x


@triton.jit
def _three_sums(a0, a1, a2, b0, b1, b2):
    return a0 + b0, a1 + b1, a2 + b2


@triton.jit
def _projections(sum_u, sum_ux, varies, D, NORM: tl.constexpr):
    """The row's c and e in dL/dx = r (u - c - x^ e)."""
    if NORM == "layer_norm":
        return sum_u / D, sum_ux / D
    elif NORM == "rms_norm":
        return tl.zeros_like(sum_u), sum_ux / D
    else:
        return tl.zeros_like(sum_u), tl.where(varies, sum_ux, 0.0)


# ---- a_m at steps of the result


@triton.jit
def _load_step(feature, b, s, cols, on):
    pointer, stride_b, stride_t, _ = feature
    return tl.load(pointer + b * stride_b + s.to(tl.int64) * stride_t + cols, mask=on, other=0.0).to(
        tl.float32
    )


@triton.jit
def _load_steps(
    features, there, b, t, cols, inside, M: tl.constexpr, ALIGN: tl.constexpr, KEEP: tl.constexpr
):
    """Tiles of the modalities that need no alignment, all on their way before the first is used; or none."""
    tiles = ()
    for m in tl.static_range(M):
        if KEEP and ALIGN[m] == "none":
            tiles = tiles + (_load_step(features[m], b, t, cols, there[m] & inside),)
        else:
            tiles = tiles + (there[m],)  # in its place
    return tiles


@triton.jit
def _tap_term(
    k, feature, stats, b, t, there, cols, inside, T, D, eps, ALIGN: tl.constexpr, NORM: tl.constexpr
):
    source = feature[3]
    s, share, on = _tap(k, t, T, source, ALIGN)
    on = on & there
    x = _load_step(feature, b, s, cols, on & inside)
    x, _, _ = _normalised(x, stats, b * source + s, on, inside, D, eps, NORM)
    return tl.where(on, share * x, 0.0)


@triton.jit
def _step(
    tile,
    feature,
    stats,
    b,
    t,
    there,
    cols,
    inside,
    T,
    D,
    eps,
    ALIGN: tl.constexpr,
    NORM: tl.constexpr,
    KEEP: tl.constexpr,
):
    """A x^ at steps t, and of features that are not aligned what the norm's gradient needs: r, does r vary.

    A's rows sum to 1, so that scale and shift may follow.
    """
    if ALIGN == "none":
        x = tile
        if not KEEP:
            x = _load_step(feature, b, t, cols, there & inside)
        return _normalised(x, stats, b * T + t, there, inside, D, eps, NORM)
    else:
        a = _tap_term(0, feature, stats, b, t, there, cols, inside, T, D, eps, ALIGN, NORM)
        if ALIGN == "linear":
            a += _tap_term(1, feature, stats, b, t, there, cols, inside, T, D, eps, ALIGN, NORM)
        if ALIGN == "mean":
            for k in range(1, tl.cdiv(feature[3], T) + tl.cdiv(feature[3] % T, T)):
                a += _tap_term(k, feature, stats, b, t, there, cols, inside, T, D, eps, ALIGN, NORM)
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
    UNROLL: tl.constexpr,
):
    """N_m = A^T (w_m G) at source steps s; and which of those are part of a step that has the modality."""
    pointer, stride_b, stride_t, stride_d = grad
    n = tl.zeros((s.shape[0], cols.shape[1]), tl.float32)
    used = tl.zeros((s.shape[0], 1), tl.int1)
    first, last = _reach(s, T, source, ALIGN)
    for k in range(0, _reaches(T, source, ALIGN), UNROLL):
        for i in tl.static_range(UNROLL):  # that many loads on their way at once
            t = first + k + i
            share = _share(t, s, T, source, ALIGN)
            there = _available(mask, b, t, valid & (t < last) & (share > 0), M)
            w, _ = _weights(weights, there, b, t, cols, inside, M, MODE, PER_CHANNEL)
            at = pointer + b * stride_b + t.to(tl.int64) * stride_t + cols * stride_d
            g = tl.load(at, mask=there[m] & inside, other=0.0).to(tl.float32)
            n += tl.where(there[m], share * w[m] * g, 0.0)
            used = used | there[m]
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
    D,
    eps,
    M: tl.constexpr,
    MODE: tl.constexpr,
    NORM: tl.constexpr,
    ALIGN: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    KEEP: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Result (B, T, D). Grid: (tiles of rows, blocks of D); one block if there is a norm and no ``stats``."""
    valid, row, b, t = _place(_program(WIDE), rows, T, ROWS)
    cols, inside = _columns(tl.program_id(1) * BLOCK_D, D, BLOCK_D)
    there = _available(mask, b, t, valid, M)
    tiles = _load_steps(features, there, b, t, cols, inside, M, ALIGN, KEEP)
    w, _ = _weights(weights, there, b, t, cols, inside, M, MODE, PER_CHANNEL)
    fused = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for m in tl.static_range(M):
        a, _, _ = _step(
            tiles[m],
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
            KEEP,
        )
        a = _affine(a, norm_weight, norm_bias, m, cols, inside)
        fused += tl.where(there[m], w[m] * a, 0.0)
    tl.store(out + row * D + cols, fused, mask=valid & inside)


@triton.jit(do_not_specialize=["rows", "tiles"])
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
    tiles,
    T,
    D,
    eps,
    M: tl.constexpr,
    MODE: tl.constexpr,
    NORM: tl.constexpr,
    ALIGN: tl.constexpr,
    FUSED: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    PER_STEP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    LOOP: tl.constexpr,
    KEEP: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Gradients row by row of the result. Grid: (programs,), each with ``tiles`` tiles of rows.

    dweights: (B, T, M, D) if PER_CHANNEL, (B, T, M) if PER_STEP, else (programs, M), to be summed. dprobe:
    (B, T, M), to be summed. FUSED: the modalities, none of them aligned, whose dfeatures, dnorm_weight and
    dnorm_bias come from here, the latter two as (programs, M, D), to be summed; ``fusion_source_kernel`` has
    the others. LOOP: D has several blocks; then FUSED has none, and ``stats`` are given if there is a norm.
    """
    program = _program(WIDE)
    NEED_P: tl.constexpr = dweights is not None or dprobe is not None
    SUM_P: tl.constexpr = dprobe is not None or (dweights is not None and not PER_CHANNEL)
    dgammas = _empty_sums(M, ROWS, BLOCK_D if dnorm_weight is not None else 1)
    dbetas = _empty_sums(M, ROWS, BLOCK_D if dnorm_bias is not None else 1)
    dgates = _empty_sums(M, ROWS, 1)
    for tile in range(program * tiles, tl.minimum((program + 1) * tiles, tl.cdiv(rows, ROWS))):
        valid, row, b, t = _place(tile, rows, T, ROWS)
        there = _available(mask, b, t, valid, M)
        p = _empty_sums(M, ROWS, 1)  # <G, a_m>; per channel w_m times that
        if not PER_CHANNEL:
            w, total = _weights(weights, there, b, t, t, valid, M, MODE, PER_CHANNEL)
        for start in range(0, D if LOOP else 1, BLOCK_D):
            cols, inside = _columns(start, D, BLOCK_D)
            pointer, stride_b, stride_t, stride_d = grad
            at = pointer + b * stride_b + t.to(tl.int64) * stride_t + cols * stride_d
            g = tl.load(at, mask=valid & inside, other=0.0).to(tl.float32)
            steps = _load_steps(features, there, b, t, cols, inside, M, ALIGN, KEEP)
            if PER_CHANNEL:
                w, total = _weights(weights, there, b, t, cols, inside, M, MODE, PER_CHANNEL)
                mean_q = tl.zeros((ROWS, BLOCK_D), tl.float32)  # P of each channel
            new_p = ()
            new_dgammas = ()
            new_dbetas = ()
            for m in tl.static_range(M):
                p_m = p[m]
                dgamma = dgammas[m]
                dbeta = dbetas[m]
                n = tl.where(there[m], w[m] * g, 0.0)
                if NEED_P or (
                    FUSED[m] and (dnorm_weight is not None or (NORM != "none" and dfeatures[m] is not None))
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
                        KEEP,
                    )
                if NEED_P:
                    q = tl.where(there[m], g * _affine(x, norm_weight, norm_bias, m, cols, inside), 0.0)
                    if PER_CHANNEL:
                        q_weighted = w[m] * q
                        if dweights is not None:
                            if MODE == "sum":
                                tl.store(dweights + (row * M + m) * D + cols, q, mask=valid & inside)
                            else:
                                mean_q += q_weighted
                        q = q_weighted
                if FUSED[m] and dfeatures[m] is not None:
                    dx = _affine(n, norm_weight, None, m, cols, inside)  # u
                    if NORM == "none":
                        if SUM_P:
                            p_m += tl.sum(q, 1, keep_dims=True)
                    else:
                        ux = tl.where(there[m] & inside, dx * x, 0.0)
                        if SUM_P:
                            # One reduction of three: a barrier each less.
                            sum_u, sum_ux, more = tl.reduce((dx, ux, q), 1, _three_sums, keep_dims=True)
                            p_m += more
                        else:
                            sum_u = tl.sum(dx, 1, keep_dims=True)
                            sum_ux = tl.sum(ux, 1, keep_dims=True)
                        c, e = _projections(sum_u, sum_ux, varies, D, NORM)
                        dx = tl.where(there[m], r * (dx - c - x * e), 0.0)
                    tl.store(dfeatures[m] + row * D + cols, dx, mask=valid & inside)
                elif SUM_P:
                    p_m += tl.sum(q, 1, keep_dims=True)
                if FUSED[m] and dnorm_weight is not None:
                    dgamma += tl.where(there[m], n * x, 0.0)
                if FUSED[m] and dnorm_bias is not None:
                    dbeta += n
                new_p = new_p + (p_m,)
                new_dgammas = new_dgammas + (dgamma,)
                new_dbetas = new_dbetas + (dbeta,)
            p = new_p
            dgammas = new_dgammas
            dbetas = new_dbetas
            if PER_CHANNEL and MODE != "sum" and dweights is not None:
                for m in tl.static_range(M):  # again from the cache, now that P is known
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
                        KEEP,
                    )
                    q = tl.where(there[m], g * _affine(x, norm_weight, norm_bias, m, cols, inside), 0.0)
                    if MODE == "softmax":
                        dgate = w[m] * (q - mean_q)
                    else:
                        dgate = tl.where(there[m], (q - mean_q) / total, 0.0)
                    tl.store(dweights + (row * M + m) * D + cols, dgate, mask=valid & inside)
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
    cols, inside = _columns(0, D, BLOCK_D)
    for m in tl.static_range(M):
        slot = (program.to(tl.int64) * M + m) * D
        if FUSED[m] and dnorm_weight is not None:
            tl.store(dnorm_weight + slot + cols, tl.sum(dgammas[m], 0, keep_dims=True), mask=inside)
        if FUSED[m] and dnorm_bias is not None:
            tl.store(dnorm_bias + slot + cols, tl.sum(dbetas[m], 0, keep_dims=True), mask=inside)


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
    D,
    eps,
    M: tl.constexpr,
    m: tl.constexpr,
    MODE: tl.constexpr,
    NORM: tl.constexpr,
    ALIGN: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    UNROLL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr,
):
    NEED_X: tl.constexpr = (NORM != "none" and dfeature is not None) or dnorm_weight is not None
    source = feature[3]
    program = _program(WIDE)
    cols, inside = _columns(tl.program_id(1) * BLOCK_D, D, BLOCK_D)
    dgamma = tl.zeros((ROWS, BLOCK_D), tl.float32)
    dbeta = tl.zeros((ROWS, BLOCK_D), tl.float32)
    rows = (B.to(tl.int64) if WIDE else B) * source
    all_tiles = tl.cdiv(rows, ROWS)
    tiles = tl.cdiv(all_tiles, tl.num_programs(0))
    for tile in range(program * tiles, tl.minimum((program + 1) * tiles, all_tiles)):
        valid, row, b, s = _place(tile, rows, source, ROWS)
        n, used = _gather(
            grad, weights, mask, b, s, valid, cols, inside, T, source, M, m, MODE, ALIGN, PER_CHANNEL, UNROLL
        )
        if NEED_X:
            x = _load_step(feature, b, s, cols, used & inside)
            x, r, varies = _normalised(x, stats, row, used, inside, D, eps, NORM)
        if dfeature is not None:
            dx = _affine(n, norm_weight, None, m, cols, inside)  # u
            if NORM != "none":
                if stats is None:
                    ux = tl.where(used & inside, dx * x, 0.0)
                    sum_u = tl.sum(dx, 1, keep_dims=True)
                    sum_ux = tl.sum(ux, 1, keep_dims=True)
                    c, e = _projections(sum_u, sum_ux, varies, D, NORM)
                else:
                    c = tl.load(stats + row * 4 + 2, mask=used, other=0.0)
                    e = tl.load(stats + row * 4 + 3, mask=used, other=0.0)
                dx = tl.where(used, r * (dx - c - x * e), 0.0)
            tl.store(dfeature + row * D + cols, dx, mask=valid & inside)
        if dnorm_weight is not None:
            dgamma += tl.where(used, n * x, 0.0)
        if dnorm_bias is not None:
            dbeta += n
    slot = (program.to(tl.int64) * M + m) * D
    if dnorm_weight is not None:
        tl.store(dnorm_weight + slot + cols, tl.sum(dgamma, 0, keep_dims=True), mask=inside)
    if dnorm_bias is not None:
        tl.store(dnorm_bias + slot + cols, tl.sum(dbeta, 0, keep_dims=True), mask=inside)


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
    D,
    eps,
    M: tl.constexpr,
    MODE: tl.constexpr,
    NORM: tl.constexpr,
    ALIGN: tl.constexpr,
    WHICH: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    UNROLL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Gradients step by step of the source. Grid: (programs, blocks of D, modalities of WHICH).

    A source step collects from the steps that it is part of. dnorm_weight, dnorm_bias: (programs, M, D), to
    be summed. One block of D if there is a norm and no ``stats``.
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
                UNROLL,
                ROWS,
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
    D,
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
    valid, row, b, s = _place(_program(WIDE), rows, source, 1)
    total = tl.zeros((1, BLOCK_D), tl.float32)
    if NORM == "layer_norm":
        for start in range(0, D, BLOCK_D):
            cols, inside = _columns(start, D, BLOCK_D)
            total += _load_step(feature, b, s, cols, valid & inside)
    mean = tl.sum(total, 1, keep_dims=True) / D
    square = tl.zeros((1, BLOCK_D), tl.float32)
    for start in range(0, D, BLOCK_D):
        cols, inside = _columns(start, D, BLOCK_D)
        x = _load_step(feature, b, s, cols, valid & inside)
        centred = tl.where(inside, x - mean, 0.0)
        square += centred * centred
    r, varies = _inverse_length(tl.sum(square, 1, keep_dims=True), D, eps, NORM)
    tl.store(stats + row * 4, mean, mask=valid)
    tl.store(stats + row * 4 + 1, r, mask=valid)
    if grad is not None:
        sum_u = tl.zeros((1, BLOCK_D), tl.float32)
        sum_ux = tl.zeros((1, BLOCK_D), tl.float32)
        for start in range(0, D, BLOCK_D):
            cols, inside = _columns(start, D, BLOCK_D)
            n, used = _gather(
                grad, weights, mask, b, s, valid, cols, inside, T, source, M, m, MODE, ALIGN, PER_CHANNEL, 1
            )
            u = _affine(n, norm_weight, None, m, cols, inside)
            x = (_load_step(feature, b, s, cols, used & inside) - mean) * r
            sum_u += u
            sum_ux += tl.where(used & inside, u * x, 0.0)
        c, e = _projections(
            tl.sum(sum_u, 1, keep_dims=True), tl.sum(sum_ux, 1, keep_dims=True), varies, D, NORM
        )
        tl.store(stats + row * 4 + 2, c, mask=valid)
        tl.store(stats + row * 4 + 3, e, mask=valid)


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
    D,
    eps,
    M: tl.constexpr,
    MODE: tl.constexpr,
    NORM: tl.constexpr,
    ALIGN: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Of rows too long for one block: mean, r and, if there is a grad, c, e; stats[m]: (B * T_m, 4) floats.

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
def _sum_block(job, COUNT: tl.constexpr, RESULTS: tl.constexpr):
    source, target, outer, count, inner = job
    at = tl.program_id(0).to(tl.int64) * RESULTS + tl.arange(0, RESULTS)[None, :]
    inside = at < outer * inner
    start = at // inner * count * inner + at % inner
    total = tl.zeros((COUNT, RESULTS), tl.float32)
    for k in range(0, count, COUNT):
        step = k + tl.arange(0, COUNT)[:, None]
        total += tl.load(source + start + step.to(tl.int64) * inner, mask=inside & (step < count), other=0.0)
    tl.store(target + at, tl.sum(total, 0, keep_dims=True), mask=inside)


@triton.jit
def sum_kernel(jobs, BLOCKS: tl.constexpr):
    """Sums over the middle dimension. Grid: (blocks of the longest result, jobs).

    A job is (float32 (outer, count, inner), (outer, inner), outer, count, inner); its block is (steps of
    count, results).
    """
    for i in tl.static_range(len(BLOCKS)):
        if tl.program_id(1) == i:
            _sum_block(jobs[i], tl.constexpr(BLOCKS[i][0]), tl.constexpr(BLOCKS[i][1]))
