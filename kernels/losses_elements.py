"""Losses of elements, of the kernels in ``losses.py``, where their formulas stand."""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from mmcore.kernels.losses_labels import _factors, _log1p, _there


@triton.jit
def _element(x, t, pos_weight, beta, KIND: tl.constexpr):
    """Loss, and its gradient in x."""
    if KIND == "value":
        return x, tl.full(x.shape, 1.0, tl.float32)
    elif KIND == "bce_with_logits":
        e = tl.exp(-tl.abs(x))
        log_part = _log1p(e)
        larger = 1.0 / (1.0 + e)
        smaller = e / (1.0 + e)
        no = 1.0 - t
        yes = pos_weight * t
        loss = no * (tl.maximum(x, 0.0) + log_part) + yes * (tl.maximum(-x, 0.0) + log_part)
        up = x >= 0
        return loss, no * tl.where(up, larger, smaller) - yes * tl.where(up, smaller, larger)
    else:
        d = x - t
        a = tl.abs(d)
        sign = tl.where(d > 0, 1.0, tl.where(d < 0, -1.0, 0.0))
        if KIND == "mse":
            return d * d, 2.0 * d
        elif KIND == "l1":
            return a, sign
        else:
            near = a < beta
            loss = tl.where(near, 0.5 * d * d / beta, a - 0.5 * beta)
            slope = tl.where(near, d / beta, sign)
            if KIND == "huber":
                return beta * loss, beta * slope
            else:
                return loss, slope


@triton.jit
def _elements_head(
    output,
    target,
    mask,
    pos_weight,
    dx,
    unreduced,
    grad,
    units,
    columns,
    tiles,
    program,
    u,
    count,
    beta,
    KIND: tl.constexpr,
    REDUCTION: tl.constexpr,
    FLAT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program's tiles; its sum of losses and its count."""
    total = tl.zeros((BLOCK,), tl.float32)
    found = tl.zeros((BLOCK,), tl.int32)
    for k in range(tiles):
        unit = (program * tiles + k) * BLOCK + tl.arange(0, BLOCK)
        valid = unit < units
        there = _there(unit, valid, mask)
        col = unit % columns
        x_at = unit
        t_at = unit
        if not FLAT:
            row = (unit // columns).to(tl.int64)
            x_at = row * output[1] + col.to(tl.int64) * output[2]
            if target is not None:
                t_at = row * target[1] + col.to(tl.int64) * target[2]
        x = tl.load(output[0] + x_at, mask=there, other=0.0).to(tl.float32)
        t = x
        if target is not None:
            t = tl.load(target[0] + t_at, mask=there, other=0).to(tl.float32)
        p = 1.0
        if pos_weight is not None:
            p = tl.load(pos_weight[0] + col * pos_weight[1], mask=there, other=0.0).to(tl.float32)
        loss, slope = _element(x, t, p, beta, KIND)
        loss = tl.where(there, loss, 0.0)
        if unreduced is not None:
            tl.store(unreduced + unit, loss, mask=valid)
        if dx is not None:
            f, _ = _factors(u, count, count, grad, unit, there, REDUCTION)
            tl.store(dx + unit, tl.where(there, f * slope, 0.0), mask=valid)
        total += loss
        found += there.to(tl.int32)
    return tl.sum(total, 0), tl.sum(found, 0) * 1.0
