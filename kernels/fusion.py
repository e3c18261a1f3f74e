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
"""

# mypy: ignore-errors
# ruff: noqa: RUF005  (Triton compiles no starred expressions)
from __future__ import annotations

import triton
import triton.language as tl

from mmcore.kernels.fusion_parts import (
    _added,
    _affine,
    _available,
    _columns,
    _empty_sums,
    _load_chunks,
    _load_steps,
    _parameter,
    _place,
    _plus,
    _program,
    _shared_weights,
    _slopes,
    _step,
    _three_sums,
    _two_sums,
    _weights,
)
from mmcore.kernels.fusion_source import fusion_source_kernel, fusion_stats_kernel, sum_kernel

__all__ = [
    "fusion_backward_kernel",
    "fusion_forward_kernel",
    "fusion_source_kernel",
    "fusion_stats_kernel",
    "sum_kernel",
]


# Elements of constexpr tuples are passed on as tl.constexpr(...): up to Triton 3.6 they are bare values.


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
