"""Losses of rows, in tiles of (ROWS, BLOCK), of the kernels in ``losses.py``, where their formulas stand."""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from mmcore.kernels.losses_labels import _classes, _factors, _log1p, _there, _weight_of


@triton.jit
def _columns(start, columns, there, BLOCK: tl.constexpr):
    """(1, BLOCK): columns; (ROWS, BLOCK): which values are there."""
    cols = start + tl.arange(0, BLOCK)[None, :]
    return cols, there & (cols < columns)


@triton.jit
def _values(matrix, row, cols, on, missing: tl.constexpr, EVICT: tl.constexpr):
    """Tile in float32; ``missing`` may be what its dtype cannot hold; EVICT: how long the cache keeps it."""
    pointer, stride, col_stride = matrix
    at = pointer + row * stride + cols.to(tl.int64) * col_stride
    return tl.where(on, tl.load(at, mask=on, other=0, eviction_policy=EVICT).to(tl.float32), missing)


@triton.jit
def _counts_for(
    target, class_weight, row, cols, on, even, smoothing, SOFT: tl.constexpr, SMOOTH: tl.constexpr
):
    """What each class counts, v, for SOFT targets; else the part of it that smoothing gives to all."""
    v = tl.where(on, even, 0.0)
    if SOFT:
        v = _values(target, row, cols, on, 0.0, "")
        if SMOOTH:
            v = tl.where(on, (1.0 - smoothing) * v + even, 0.0)
    if class_weight is not None:
        pointer, stride = class_weight
        w = tl.load(pointer + cols.to(tl.int64) * stride, mask=on, other=0.0).to(tl.float32)
        v = tl.where(on, w * v, 0.0)
    return v


@triton.jit
def _cross_entropy(
    output,
    target,
    class_weight,
    dx,
    row,
    valid,
    there,
    label,
    exists,
    w,
    f,
    z_f,
    columns,
    smoothing,
    z_loss,
    gamma,
    SOFT: tl.constexpr,
    SMOOTH: tl.constexpr,
    Z: tl.constexpr,
    FOCAL: tl.constexpr,
    LOOP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Losses and z losses of a tile of rows, (ROWS, 1); writes their gradient. w: weights of the labels."""
    SPREAD: tl.constexpr = SOFT or SMOOTH
    # Of a row that is read twice the cache keeps what it can, until it is read again.
    FIRST: tl.constexpr = "evict_last" if dx is not None else ""
    AGAIN: tl.constexpr = "evict_first"
    even = smoothing / columns
    m = tl.full(there.shape, -1e30, tl.float32)  # never -inf: exp(-inf - m) has to be 0
    S = tl.zeros(there.shape, tl.float32)  # FOCAL: without the label's
    A = tl.zeros(there.shape, tl.float32)
    moment = tl.zeros(there.shape, tl.float32)  # sum v (x - m)
    if not SOFT:
        # Before the reductions, which keep the threads together: the gradient may be written over it.
        at = output[0] + row * output[1] + label * output[2]
        x_y = tl.load(at, mask=there & exists, other=0.0).to(tl.float32)
    if not LOOP:
        cols, on = _columns(0, columns, there, BLOCK)
        x = _values(output, row, cols, on, float("-inf"), "")
        if SPREAD:
            v = _counts_for(target, class_weight, row, cols, on, even, smoothing, SOFT, SMOOTH)
    for start in range(0, columns if LOOP else 1, BLOCK):
        if LOOP:
            cols, on = _columns(start, columns, there, BLOCK)
            x = _values(output, row, cols, on, float("-inf"), FIRST)
            if SPREAD:
                v = _counts_for(target, class_weight, row, cols, on, even, smoothing, SOFT, SMOOTH)
        new_m = tl.maximum(m, tl.max(x, 1, keep_dims=True))
        e = tl.exp(x - new_m)
        if FOCAL:
            e = tl.where(cols == label, 0.0, e)
        S = S * tl.exp(m - new_m) + tl.sum(e, 1, keep_dims=True)
        if SPREAD:
            part = tl.where(on, v * (x - new_m), 0.0)
            moment += A * (m - new_m) + tl.sum(part, 1, keep_dims=True)
            A += tl.sum(v, 1, keep_dims=True)
        m = new_m
    of_label = tl.zeros(there.shape, tl.float32)  # v_y, without what smoothing gives to all classes
    if not SOFT:
        x_y = x_y - m
    if FOCAL:
        e_y = tl.exp(x_y)
        others = S
        S = others + e_y
        # The sum of the others, not 1 - p_y, which has few digits where p_y is nearly 1.
        log_p = tl.where(others <= e_y, -_log1p(others / e_y), x_y - tl.log(S))
        r = others / S
        certain = r <= 0
        r = tl.where(certain, 1.0, r)
        power = tl.where(certain, 0.0, w * tl.exp(gamma * tl.log(r)))
        loss = -power * log_p
        of_label = power * (1.0 - gamma * (e_y / S) * log_p / r)
        A = of_label
    else:
        if not SOFT:
            of_label = w
            if SMOOTH:
                of_label = (1.0 - smoothing) * w
            A += of_label
            moment += of_label * x_y
        loss = A * tl.log(S) - moment
    if not SOFT:
        loss = tl.where(exists, loss, float("nan"))
        A = tl.where(exists, A, float("nan"))
    z = tl.zeros(there.shape, tl.float32)
    a = f * A
    if Z:
        lse = m + tl.log(S)
        z = z_loss * lse * lse
        a += 2.0 * z_loss * z_f * lse
    if dx is not None:
        scale = a / S
        for start in range(0, columns if LOOP else 1, BLOCK):
            if LOOP:
                cols, on = _columns(start, columns, there, BLOCK)
                x = _values(output, row, cols, on, float("-inf"), AGAIN)
                if SPREAD:
                    v = _counts_for(target, class_weight, row, cols, on, even, smoothing, SOFT, SMOOTH)
            g = tl.exp(x - m) * scale
            if SPREAD:
                g -= f * v
            if not SOFT:
                g -= tl.where(cols == label, f * of_label, 0.0)
            tl.store(dx + row * columns + cols, tl.where(there, g, 0.0), mask=valid & (cols < columns))
    return loss, z


@triton.jit
def _distillation(
    output,
    target,
    dx,
    row,
    valid,
    there,
    f,
    columns,
    temperature,
    LOOP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Losses of a tile of rows, (ROWS, 1); writes their gradient."""
    cold = 1.0 / temperature
    m = tl.full(there.shape, -1e30, tl.float32)
    S = tl.zeros(there.shape, tl.float32)
    m_t = tl.full(there.shape, -1e30, tl.float32)
    S_t = tl.zeros(there.shape, tl.float32)
    moment = tl.zeros(there.shape, tl.float32)  # sum exp(t - m_t) ((t - m_t) - (x - m))
    if not LOOP:
        cols, on = _columns(0, columns, there, BLOCK)
        x = _values(output, row, cols, on, float("-inf"), "") * cold
        t = _values(target, row, cols, on, float("-inf"), "") * cold
    for start in range(0, columns if LOOP else 1, BLOCK):
        if LOOP:
            cols, on = _columns(start, columns, there, BLOCK)
            x = _values(output, row, cols, on, float("-inf"), "") * cold
            t = _values(target, row, cols, on, float("-inf"), "") * cold
        new_m = tl.maximum(m, tl.max(x, 1, keep_dims=True))
        new_m_t = tl.maximum(m_t, tl.max(t, 1, keep_dims=True))
        e_t = tl.exp(t - new_m_t)
        moment = tl.exp(m_t - new_m_t) * (moment + S_t * ((m_t - new_m_t) - (m - new_m)))
        S = S * tl.exp(m - new_m) + tl.sum(tl.exp(x - new_m), 1, keep_dims=True)
        S_t = S_t * tl.exp(m_t - new_m_t) + tl.sum(e_t, 1, keep_dims=True)
        # Selected: what q leaves out adds nothing, be p 0 or not.
        part = tl.where(e_t == 0, 0.0, e_t * ((t - new_m_t) - (x - new_m)))
        moment += tl.sum(part, 1, keep_dims=True)
        m = new_m
        m_t = new_m_t
    loss = temperature * temperature * (moment / S_t + (tl.log(S) - tl.log(S_t)))
    if dx is not None:
        scale = f * temperature
        for start in range(0, columns if LOOP else 1, BLOCK):
            if LOOP:
                cols, on = _columns(start, columns, there, BLOCK)
                x = _values(output, row, cols, on, float("-inf"), "") * cold
                t = _values(target, row, cols, on, float("-inf"), "") * cold
            g = scale * (tl.exp(x - m) / S - tl.exp(t - m_t) / S_t)
            tl.store(dx + row * columns + cols, tl.where(there, g, 0.0), mask=valid & (cols < columns))
    return loss


@triton.jit
def _length(square):
    """|x| or eps, and whether it depends on x."""
    varies = square > 1e-16
    return tl.where(varies, tl.sqrt(tl.where(varies, square, 1.0)), 1e-8), varies


@triton.jit
def _cosine(output, target, dx, row, valid, there, f, columns, LOOP: tl.constexpr, BLOCK: tl.constexpr):
    """Losses of a tile of rows, (ROWS, 1); writes their gradient."""
    xx = tl.zeros(there.shape, tl.float32)
    tt = tl.zeros(there.shape, tl.float32)
    xt = tl.zeros(there.shape, tl.float32)
    if not LOOP:
        cols, on = _columns(0, columns, there, BLOCK)
        x = _values(output, row, cols, on, 0.0, "")
        t = _values(target, row, cols, on, 0.0, "")
    for start in range(0, columns if LOOP else 1, BLOCK):
        if LOOP:
            cols, on = _columns(start, columns, there, BLOCK)
            x = _values(output, row, cols, on, 0.0, "")
            t = _values(target, row, cols, on, 0.0, "")
        xx += tl.sum(x * x, 1, keep_dims=True)
        tt += tl.sum(t * t, 1, keep_dims=True)
        xt += tl.sum(x * t, 1, keep_dims=True)
    x_length, varies = _length(xx)
    t_length, _ = _length(tt)
    cosine = xt / (x_length * t_length)
    if dx is not None:
        along = tl.where(varies, f * cosine / tl.where(varies, xx, 1.0), 0.0)
        towards = f / (x_length * t_length)
        for start in range(0, columns if LOOP else 1, BLOCK):
            if LOOP:
                cols, on = _columns(start, columns, there, BLOCK)
                x = _values(output, row, cols, on, 0.0, "")
                t = _values(target, row, cols, on, 0.0, "")
            g = along * x - towards * t
            tl.store(dx + row * columns + cols, tl.where(there, g, 0.0), mask=valid & (cols < columns))
    return 1.0 - cosine


@triton.jit
def _rows_head(
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
    temperature,
    KIND: tl.constexpr,
    REDUCTION: tl.constexpr,
    SMOOTH: tl.constexpr,
    Z: tl.constexpr,
    FOCAL: tl.constexpr,
    LOOP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program's tiles; its sums of losses and z losses, its count and its sum of weights."""
    sum_loss = tl.zeros((ROWS, 1), tl.float32)
    sum_z = tl.zeros((ROWS, 1), tl.float32)
    sum_w = tl.zeros((ROWS, 1), tl.float32)
    found = tl.zeros((ROWS, 1), tl.int32)
    for k in range(tiles):
        unit = (program * tiles + k) * ROWS + tl.arange(0, ROWS)[:, None]
        valid = unit < rows
        row = unit.to(tl.int64)
        there = _there(unit, valid, mask)
        if KIND == "classes":
            label, there, exists = _classes(target, row, there, columns, ignore)
            w = _weight_of(class_weight, label, there, columns)
        else:
            label = row
            exists = there
            w = there.to(tl.float32)
        f = u
        z_f = u
        if dx is not None:
            f, z_f = _factors(u, count, weight, grad, unit, there, REDUCTION)
        z = tl.zeros((ROWS, 1), tl.float32)
        if KIND == "kl_distillation":
            loss = _distillation(output, target, dx, row, valid, there, f, columns, temperature, LOOP, BLOCK)
        elif KIND == "cosine":
            loss = _cosine(output, target, dx, row, valid, there, f, columns, LOOP, BLOCK)
        else:
            SOFT: tl.constexpr = KIND == "probabilities"
            loss, z = _cross_entropy(
                output,
                target,
                class_weight,
                dx,
                row,
                valid,
                there,
                label,
                exists,
                w,
                f,
                z_f,
                columns,
                smoothing,
                z_loss,
                gamma,
                SOFT,
                SMOOTH,
                Z,
                FOCAL,
                LOOP,
                BLOCK,
            )
        loss = tl.where(there, loss, 0.0)
        z = tl.where(there, z, 0.0)
        if unreduced is not None:
            tl.store(unreduced + row, loss + z, mask=valid)
        sum_loss += loss
        sum_z += z
        sum_w += w
        found += there.to(tl.int32)
    return (
        tl.sum(tl.sum(sum_loss, 1), 0),
        tl.sum(tl.sum(sum_z, 1), 0),
        tl.sum(tl.sum(found, 1), 0) * 1.0,
        tl.sum(tl.sum(sum_w, 1), 0),
    )
