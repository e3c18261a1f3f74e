"""What the kernels of all losses share: which labels there are, how many, and factors of gradients.

Layouts, and what the letters are, stand in ``losses.py``.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _there(unit, valid, mask):
    if mask is None:
        return valid
    else:
        pointer, stride, inner = mask
        at = pointer + (unit // inner).to(tl.int64) * stride
        return valid & (tl.load(at, mask=valid, other=0) != 0)


@triton.jit
def _classes(target, row, there, columns, ignore):
    """Class of each row, which rows have one, and which of those exist."""
    pointer, stride, _ = target
    label = tl.load(pointer + row.to(tl.int64) * stride, mask=there, other=0)
    there = there & (label != ignore)
    return label, there, (label >= 0) & (label < columns)


@triton.jit
def _weight_of(class_weight, label, there, columns):
    """Weight of each row's class; of one out of range, whose loss is NaN, that of the nearest."""
    if class_weight is None:
        return there.to(tl.float32)
    else:
        pointer, stride = class_weight
        at = pointer + tl.minimum(tl.maximum(label, 0), columns - 1) * stride
        return tl.load(at, mask=there, other=0).to(tl.float32)


@triton.jit
def _count_part(
    first,
    last,
    target,
    mask,
    class_weight,
    columns,
    ignore,
    CLASSES: tl.constexpr,
    WEIGHED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Count of the labels, and sum of their weights, of the units first to last - 1.

    Without classes: of the mask's entries first to last - 1, each of which speaks for several units.
    """
    count = tl.zeros((BLOCK,), tl.int32)
    weight = tl.zeros((BLOCK,), tl.float32)
    for start in range(first, last, BLOCK):
        unit = start + tl.arange(0, BLOCK)
        there = unit < last
        if CLASSES:
            there = _there(unit, there, mask)
            label, there, _ = _classes(target, unit, there, columns, ignore)
            if WEIGHED:
                weight += _weight_of(class_weight, label, there, columns)
        else:
            at = mask[0] + unit.to(tl.int64) * mask[1]
            there = there & (tl.load(at, mask=there, other=0) != 0)
        count += there.to(tl.int32)
    found = tl.sum(count, 0) * 1.0
    if not CLASSES:
        found = found * mask[2]
    return found, tl.sum(weight, 0)


@triton.jit
def _count(
    i: tl.constexpr,
    counts,
    counted,
    parts,
    target,
    mask,
    class_weight,
    columns,
    ignore,
    CLASSES: tl.constexpr,
    WEIGHED: tl.constexpr,
    COUNT: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """Count of the head's labels and sum of their weights. ``counted``: units or, with "here", entries."""
    if COUNT == "here":
        return _count_part(0, counted, target, mask, class_weight, columns, ignore, CLASSES, WEIGHED, SLOTS)
    elif COUNT == "slots":
        slot = tl.arange(0, SLOTS)
        at = counts + 2 * i * SLOTS + slot
        count = tl.sum(tl.load(at, mask=slot < parts, other=0.0), 0)
        weight = count
        if WEIGHED:
            weight = tl.sum(tl.load(at + SLOTS, mask=slot < parts, other=0.0), 0)
        return count, weight
    else:
        return counted * 1.0, counted * 1.0


@triton.jit
def _over(value, count):
    return tl.where(count == 0, 0.0, value / tl.where(count == 0, 1.0, count))


@triton.jit
def _upstream(i: tl.constexpr, scale, weights, log_vars, grad_total, grad_losses, ONES: tl.constexpr):
    """Upstream gradient of the head's loss: u = dL/dloss."""
    u = tl.full((), 0.0, tl.float32)
    if ONES or grad_total is not None:
        u += 1.0
        if grad_total is not None:
            u = tl.load(grad_total).to(tl.float32)
        if weights is not None:
            u *= tl.load(weights[0] + i * weights[1]).to(tl.float32)
        if log_vars is not None:
            u *= scale * tl.exp(-tl.load(log_vars[0] + i * log_vars[1]).to(tl.float32))
    if grad_losses is not None:
        u += tl.load(grad_losses[0] + i * grad_losses[1]).to(tl.float32)
    return u


@triton.jit
def _factors(u, count, weight, grad, unit, there, REDUCTION: tl.constexpr):
    """What the gradients of the losses and of the z losses are multiplied by."""
    if REDUCTION == "none":
        f = tl.load(grad[0] + unit.to(tl.int64) * grad[1], mask=there, other=0.0).to(tl.float32)
        return f, f
    elif REDUCTION == "mean":
        return _over(u, weight), _over(u, count)
    else:
        return u, u


@triton.jit
def _log1p(u):
    """log(1 + u), 0 <= u <= 1, without 1 + u, which loses u's digits: the series of 2 artanh(u / (2 + u))."""
    s = u / (2.0 + u)
    q = s * s
    series = 1.0 / 15.0
    for k in tl.static_range(7):
        series = series * q + 1.0 / (13 - 2 * k)
    return 2.0 * s * series
