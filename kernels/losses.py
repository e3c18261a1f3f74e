"""Triton kernels of multi-task losses, L = sum_i lambda_i (c_i exp(-s_i) loss_i + s_i / 2), and gradients.

Layout: an output or target is (pointer, stride of rows, stride of columns); classes are (pointer, stride of
rows, 0); a mask is (pointer, stride of its entries, units that an entry speaks for) or None; class weights
are (pointer, stride) or None. Gradients and unreduced losses are contiguous. Whatever is read is turned into
float32, whatever is written into the dtype of its pointer. What has no label is not read: a value of it is
selected away and never multiplied, so that NaN in it reaches nothing.

Cost: ``losses_kernel`` is one launch for all heads, of any kinds: some programs in a row belong to a head,
each with a contiguous run of its tiles. A tile is (ROWS, BLOCK), whole rows by columns, or for losses of
elements a run of BLOCK of them. A row that is longer than a block (LOOP) is read once for its maximum and
sums, and once more, from the L2 cache where it is not too long, for its gradient. Such rows of classes have
a way of their own (``_long_row``) that is bounded by memory: of 8192 x 128256 bfloat16 an H200 reads and
writes 4.2 GB in 1.0 ms, its multiprocessors issue the 12 instructions a value in 0.44 ms and compute the two
powers of 2 in 0.57 ms. A gradient may lie over its output. Each program writes its
sums to its own slots, and ``losses_sum_kernel`` adds those in a fixed order; no atomics.

The divisor of a mean has to be known before the first gradient is written. Where labels may be missing every
program counts them itself (COUNT "here") while they are few, which costs less than a launch; of many labels
``losses_count_kernel`` counts parts beforehand, which the programs add up (COUNT "slots").

Numbers n in spans come as 2 n + 3, odd and above 1: of a tuple's numbers Triton compiles 1 and the multiples
of 16 apart, whatever do_not_specialize says, which would make kernels anew for many a size of a batch.

Derivation. Per row or element n with label (k_n = 1): the gradient of L is f_n dloss_n/dx, and
f = u / Z with u = dL/dloss = lambda c exp(-s) + (upstream gradient of losses), Z = 1 for a sum, else sum k_n,
or for classes with weights sum k_n w_(y_n); for unreduced losses f_n comes from upstream. d = x - t.

    mse: d^2, 2 d; l1: |d|, sign d; smooth_l1: d^2 / 2 beta, d / beta inside, |d| - beta / 2, sign d outside;
    huber: delta times smooth_l1
    bce_with_logits, t' = P t:  loss = (1 - t) softplus(x) + t' softplus(-x)
               dloss/dx = (1 - t) sigma(x) - t' sigma(-x), without a difference of nearly equal numbers
    cross entropy, m = max x, S = sum exp(x - m), p = exp(x - m) / S, v_k what class k counts:
               v = w q, q = (1 - eps) t + eps / C; for a class y: t_k = [k = y], and w_y in place of w there
               loss = sum_k v_k (m + log S - x_k) = A log S - sum_k v_k (x_k - m), A = sum v
               dloss/dx_k = A p_k - v_k
               z loss: zeta lse^2, 2 zeta lse p_k, lse = m + log S; its mean is over the count
    focal:     loss = -w r^gamma log p_y, r = 1 - p_y = sum_(k != y) exp(x_k - m) / S, dr/dlog p_y = -p_y
               dloss/dx_k = F (p_k - [k = y]), F = w r^gamma (1 - gamma p_y log p_y / r)
    kl_distillation, p and q the softmax of x / tau and t / tau:
               loss = tau^2 sum q (log q - log p), dloss/dx_k = tau (p_k - q_k)
    cosine:    loss = 1 - c, c = <x, t> / (|x| |t|), dloss/dx = c x / |x|^2 - t / (|x| |t|); the first part is
               0 where |x| is below eps, and eps in its place
    dL/dlambda = c exp(-s) loss + s / 2, dL/ds = lambda (1/2 - c exp(-s) loss); 0 for a head without a label

While blocks of a row are added up, the maximum goes from m to m': S becomes S exp(m - m'), and a sum of
v (x - m) gets (sum v) (m - m'), which has the sign of all of its terms: nothing cancels.
"""

# mypy: ignore-errors
# ruff: noqa: RUF005, SIM102  (Triton compiles no starred expressions; what is None is decided as it compiles)
from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["losses_count_kernel", "losses_kernel", "losses_scale_kernel", "losses_sum_kernel"]

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)

# Elements of constexpr tuples are passed on as tl.constexpr(...): up to Triton 3.6 they are bare values.


@triton.jit
def _span(odd, COUNT: tl.constexpr):
    """Numbers n of 2 n + 3."""
    found = ()
    for k in tl.static_range(COUNT):
        found = found + (odd[k] // 2 - 1,)
    return found


# ---- what is there, and how much of it


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


# ---- losses of elements


@triton.jit
def _log1p(u):
    """log(1 + u), 0 <= u <= 1, without 1 + u, which loses u's digits: the series of 2 artanh(u / (2 + u))."""
    s = u / (2.0 + u)
    q = s * s
    series = 1.0 / 15.0
    for k in tl.static_range(7):
        series = series * q + 1.0 / (13 - 2 * k)
    return 2.0 * s * series


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


# ---- losses of rows


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


# ---- long rows of classes, one at a time


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
    tile,
    start,
    label,
    FOCAL: tl.constexpr,
    VECTORS: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Of each lane, with a tile more: the largest x log2 e, and the sum of 2^(x log2 e - c)."""
    most = tl.max(tile[0], 1, keep_dims=True)
    for k in tl.static_range(1, VECTORS):
        most = tl.maximum(most, tl.max(tile[k], 1, keep_dims=True))
    new_c = tl.maximum(c, most * LOG2_E)
    S = S * tl.exp2(c - new_c)
    for k in tl.static_range(VECTORS):
        e = tl.exp2(tl.fma(tile[k], LOG2_E, -new_c))
        if FOCAL:
            e = tl.where(_is_at(label, start, k, LANES, VECTOR), 0.0, e)
        S += tl.sum(e, 1, keep_dims=True)
    return new_c, S


@triton.jit
def _store_tile(
    dx_row,
    tile,
    start,
    columns,
    label,
    c,
    scale,
    g_y,
    WHOLE: tl.constexpr,
    HAS_LABEL: tl.constexpr,
    VECTORS: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Write the gradient of a tile."""
    for k in tl.static_range(VECTORS):
        g = tl.exp2(tl.fma(tile[k], LOG2_E, -c)) * scale
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
    z_loss,
    gamma,
    Z: tl.constexpr,
    FOCAL: tl.constexpr,
    VECTORS: tl.constexpr,
    LANES: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Loss and z loss of a row of ``_cross_entropy``, without smoothing; writes its gradient.

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
    for start in range(0, whole, TILE):
        tile = _long_tile(x_row, start, columns, True, FIRST, VECTORS, LANES, VECTOR)
        c, S = _grown(c, S, tile, start, label, FOCAL, VECTORS, LANES, VECTOR)
    last = _long_tile(x_row, whole, columns, False, "", VECTORS, LANES, VECTOR)
    c, S = _grown(c, S, last, whole, label, FOCAL, VECTORS, LANES, VECTOR)
    of_lanes = c
    c = tl.max(c)
    S = tl.sum(S * tl.exp2(of_lanes - c))

    x_y = tl.fma(x_y, LOG2_E, -c)  # in log2 e
    e_y = tl.exp2(x_y)
    of_label = w
    A = w
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
        g_y = e_y * scale - f * of_label
        _store_tile(dx_row, last, whole, columns, label, c, scale, g_y, False, True, VECTORS, LANES, VECTOR)
        for back in range(0, whole, TILE):
            start = whole - TILE - back
            tile = _long_tile(x_row, start, columns, True, "evict_first", VECTORS, LANES, VECTOR)
            # Both ways store, so that the comparisons are a branch and not made for every tile.
            if (label >= start) & (label < start + TILE):
                _store_tile(
                    dx_row, tile, start, columns, label, c, scale, g_y, True, True, VECTORS, LANES, VECTOR
                )
            else:
                _store_tile(
                    dx_row, tile, start, columns, label, c, scale, g_y, True, False, VECTORS, LANES, VECTOR
                )
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
    z_loss,
    gamma,
    REDUCTION: tl.constexpr,
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
                z_loss,
                gamma,
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


# ---- kernels


@triton.jit
def losses_count_kernel(
    counts,
    targets,
    masks,
    class_weights,
    sizes,
    numbers,
    spans,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """Parts of each head's count of labels and sum of their weights; counts: (heads, 2, SLOTS).

    Grid: (parts, heads). spans[i]: (entries of labels or masks, parts, entries of each part).
    HEADS[i]: (whether it is counted here, whether by classes, whether they have weights).
    """
    for i in tl.static_range(len(HEADS)):
        if HEADS[i][0]:
            entries, parts, length = _span(spans[i], 3)
            part = tl.program_id(0)
            if (tl.program_id(1) == i) & (part < parts):
                first = part.to(tl.int64) * length
                count, weight = _count_part(
                    first,
                    tl.minimum(first + length, entries),
                    targets[i],
                    masks[i],
                    class_weights[i],
                    sizes[i][1],
                    numbers[i][0],
                    tl.constexpr(HEADS[i][1]),
                    tl.constexpr(HEADS[i][2]),
                    BLOCK,
                )
                at = counts + 2 * i * SLOTS + part
                tl.store(at, count)
                tl.store(at + SLOTS, weight)


@triton.jit(do_not_specialize=["all_programs"])
def losses_kernel(
    outputs,
    targets,
    masks,
    class_weights,
    gradients,
    unreduced,
    grads,
    counts,
    partials,
    weights,
    log_vars,
    grad_total,
    grad_losses,
    sizes,
    numbers,
    spans,
    all_programs,
    KINDS: tl.constexpr,
    REDUCTIONS: tl.constexpr,
    COUNTS: tl.constexpr,
    HEADS: tl.constexpr,
    ONES: tl.constexpr,
    SLOTS: tl.constexpr,
    WIDE: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Losses of all heads, and the gradients of their outputs. Grid: (programs,).

    partials: (4, all programs): sums of losses, z losses, counts and weights; None: nobody asks for them.
    gradients, unreduced: what is to be written, or None. grads: upstream gradients of the unreduced losses,
    (pointer, stride) or None. ONES: that of the total is 1.
    sizes[i]: (units for losses of elements, else columns; columns). spans[i]: (rows, first program, programs,
    tiles of each, what is to be counted, parts that are counted). numbers[i]: (ignore_index, smoothing, z
    loss, gamma, beta, temperature, c). HEADS[i]: (whether the mean's divisor is a sum of class weights,
    whether there is smoothing, a z loss, a gamma; LOOP, ROWS, BLOCK, FLAT, LANES). ROWS is 0 for losses of
    elements; FLAT: their output and target are contiguous. LANES: threads that share a long row of classes,
    of which each reads ROWS times BLOCK columns at once; else 0. Strings have tuples of their own, as Triton
    3.6 takes none in a tuple of tuples. OVERLAP: ``losses_sum_kernel`` is launched before this one ends.
    """
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()
    for i in tl.static_range(len(HEADS)):
        rows, first, programs, tiles, counted, parts = _span(spans[i], 6)
        at = tl.program_id(0)
        if (at >= first) & (at < first + programs):
            ignore, smoothing, z_loss, gamma, beta, temperature, scale = numbers[i]
            extent, columns = sizes[i]
            program = at - first
            if WIDE:
                program = program.to(tl.int64)
            u = tl.full((), 0.0, tl.float32)
            count = u
            weight = u
            if gradients[i] is not None and REDUCTIONS[i] != "none":
                u = _upstream(i, scale, weights, log_vars, grad_total, grad_losses, ONES)
                if REDUCTIONS[i] == "mean":
                    count, weight = _count(
                        i,
                        counts,
                        counted,
                        parts,
                        targets[i],
                        masks[i],
                        class_weights[i],
                        columns,
                        ignore,
                        tl.constexpr(KINDS[i] == "classes"),
                        tl.constexpr(HEADS[i][0]),
                        tl.constexpr(COUNTS[i]),
                        SLOTS,
                    )
                    if not HEADS[i][0]:
                        weight = count
            if HEADS[i][5] == 0:
                loss, found = _elements_head(
                    outputs[i],
                    targets[i],
                    masks[i],
                    class_weights[i],
                    gradients[i],
                    unreduced[i],
                    grads[i],
                    extent,
                    columns,
                    tiles,
                    program,
                    u,
                    count,
                    beta,
                    tl.constexpr(KINDS[i]),
                    tl.constexpr(REDUCTIONS[i]),
                    tl.constexpr(HEADS[i][7]),
                    tl.constexpr(HEADS[i][6]),
                )
                z = found
                w = found
            elif HEADS[i][8] != 0:
                loss, z, found, w = _long_rows_head(
                    outputs[i],
                    targets[i],
                    masks[i],
                    class_weights[i],
                    gradients[i],
                    unreduced[i],
                    grads[i],
                    rows,
                    extent,
                    tiles,
                    program,
                    u,
                    count,
                    weight,
                    ignore,
                    z_loss,
                    gamma,
                    tl.constexpr(REDUCTIONS[i]),
                    tl.constexpr(HEADS[i][2]),
                    tl.constexpr(HEADS[i][3]),
                    tl.constexpr(HEADS[i][5]),
                    tl.constexpr(HEADS[i][8]),
                    tl.constexpr(HEADS[i][6]),
                )
            else:
                loss, z, found, w = _rows_head(
                    outputs[i],
                    targets[i],
                    masks[i],
                    class_weights[i],
                    gradients[i],
                    unreduced[i],
                    grads[i],
                    rows,
                    extent,
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
                    tl.constexpr(KINDS[i]),
                    tl.constexpr(REDUCTIONS[i]),
                    tl.constexpr(HEADS[i][1]),
                    tl.constexpr(HEADS[i][2]),
                    tl.constexpr(HEADS[i][3]),
                    tl.constexpr(HEADS[i][4]),
                    tl.constexpr(HEADS[i][5]),
                    tl.constexpr(HEADS[i][6]),
                )
            if partials is not None and REDUCTIONS[i] != "none":
                tl.store(partials + at, loss)
                tl.store(partials + 2 * all_programs + at, found)
                if HEADS[i][2]:
                    tl.store(partials + all_programs + at, z)
                if HEADS[i][0]:
                    tl.store(partials + 3 * all_programs + at, w)


@triton.jit
def _sum_slots(partials, programs, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, programs, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        total += tl.load(partials + slot, mask=slot < programs, other=0.0)
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=["all_programs"])
def losses_sum_kernel(
    partials,
    total,
    losses,
    weights,
    log_vars,
    grad_total,
    dweights,
    dlog_vars,
    numbers,
    spans,
    all_programs,
    REDUCTIONS: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Losses (K,), their total, and the gradients of weights and log_vars, of what ``losses_kernel`` summed.

    Grid: (1,). Pointers of what nobody asks for are None. The spans, numbers and constants are those
    of ``losses_kernel``. OVERLAP: it is launched while that runs, which saves the time of a launch, and waits
    for its end here.
    """
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
    upstream = 1.0
    if grad_total is not None:
        upstream = tl.load(grad_total).to(tl.float32)
    all_terms = tl.full((), 0.0, tl.float32)
    for i in tl.static_range(len(HEADS)):
        value = tl.full((), 0.0, tl.float32)
        dweight = value
        dlog_var = value
        if REDUCTIONS[i] != "none":
            _, first, programs, _, _, _ = _span(spans[i], 6)
            value = _sum_slots(partials + first, programs, BLOCK)
            count = _sum_slots(partials + 2 * all_programs + first, programs, BLOCK)
            if REDUCTIONS[i] == "mean":
                divisor = count
                if HEADS[i][0]:
                    divisor = _sum_slots(partials + 3 * all_programs + first, programs, BLOCK)
                value = _over(value, divisor)
            if HEADS[i][2]:
                z = _sum_slots(partials + all_programs + first, programs, BLOCK)
                if REDUCTIONS[i] == "mean":
                    z = _over(z, count)
                value += z
            term = value
            lam = 1.0
            if weights is not None:
                lam = tl.load(weights[0] + i * weights[1]).to(tl.float32)
            if log_vars is not None:
                s = tl.load(log_vars[0] + i * log_vars[1]).to(tl.float32)
                scaled = numbers[i][6] * tl.exp(-s) * value
                term = scaled + 0.5 * s
                dlog_var = tl.where(count > 0, upstream * lam * (0.5 - scaled), 0.0)
            dweight = tl.where(count > 0, upstream * term, 0.0)
            all_terms += tl.where(count > 0, lam * term, 0.0)
        if losses is not None:
            tl.store(losses + i, value)
        if dweights is not None:
            tl.store(dweights + i, dweight)
        if dlog_vars is not None:
            tl.store(dlog_vars + i, dlog_var)
    if total is not None:
        tl.store(total, all_terms)


@triton.jit
def losses_scale_kernel(gradients, factor, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """Multiply gradients, (pointer, elements) each, by a number; nothing is touched if it is 1.

    Grid: (programs, gradients).
    """
    by = tl.load(factor).to(tl.float32)
    if by != 1.0:
        for i in tl.static_range(COUNT):
            if tl.program_id(1) == i:
                pointer, elements = gradients[i]
                first = tl.program_id(0).to(tl.int64) * BLOCK
                for start in range(first, elements, tl.num_programs(0) * BLOCK):
                    unit = start + tl.arange(0, BLOCK)
                    g = tl.load(pointer + unit, mask=unit < elements, other=0.0).to(tl.float32)
                    tl.store(pointer + unit, g * by, mask=unit < elements)
