"""Triton kernels of weighted fusion by steps of the source, of rows too long for one program, and of sums.

Layout, tiles and derivation are those of ``fusion``.
"""

# mypy: ignore-errors
# ruff: noqa: RUF005  (Triton compiles no starred expressions)
from __future__ import annotations

import triton
import triton.language as tl

from mmcore.kernels.fusion_parts import (
    _affine,
    _columns,
    _empty_sums,
    _gather,
    _inverse_length,
    _load,
    _load_step,
    _normalised,
    _place,
    _plus,
    _program,
    _slopes,
    _two_sums,
)

__all__ = ["fusion_source_kernel", "fusion_stats_kernel", "sum_kernel"]


# Elements of constexpr tuples are passed on as tl.constexpr(...): up to Triton 3.6 they are bare values.


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
