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
a way of their own, in ``losses_long_rows.py``. A gradient may lie over its output. Each program writes its
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
# ruff: noqa: RUF005  (Triton compiles no starred expressions)
from __future__ import annotations

import triton
import triton.language as tl

from mmcore.kernels.losses_elements import _elements_head
from mmcore.kernels.losses_labels import _count, _count_part, _over, _upstream
from mmcore.kernels.losses_long_rows import _long_rows_head
from mmcore.kernels.losses_rows import _rows_head

__all__ = ["losses_count_kernel", "losses_kernel", "losses_scale_kernel", "losses_sum_kernel"]

# Elements of constexpr tuples are passed on as tl.constexpr(...): up to Triton 3.6 they are bare values.


@triton.jit
def _span(odd, COUNT: tl.constexpr):
    """Numbers n of 2 n + 3."""
    found = ()
    for k in tl.static_range(COUNT):
        found = found + (odd[k] // 2 - 1,)
    return found


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
                    smoothing,
                    z_loss,
                    gamma,
                    tl.constexpr(REDUCTIONS[i]),
                    tl.constexpr(HEADS[i][1]),
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
def _sum_slots(partials, programs, BLOCK: tl.constexpr, LOOP: tl.constexpr):
    slot = tl.arange(0, BLOCK)
    total = tl.load(partials + slot, mask=slot < programs, other=0.0)
    if LOOP:
        for start in range(BLOCK, programs, BLOCK):
            total += tl.load(partials + start + slot, mask=start + slot < programs, other=0.0)
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
    LOOP: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Losses (K,), their total, and the gradients of weights and log_vars, of what ``losses_kernel`` summed.

    Grid: (1,). Pointers of what nobody asks for are None. The spans, numbers and constants are those
    of ``losses_kernel``. OVERLAP: it is launched while that runs, which saves the time of a launch, and waits
    for its end here. LOOP: a head has more programs than BLOCK.
    """
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
    upstream = 1.0
    if grad_total is not None:
        upstream = tl.load(grad_total).to(tl.float32)
    # All that is read before anything is written, so that one reading does not wait for another.
    nothing = tl.full((), 0.0, tl.float32)
    read = ()
    for i in tl.static_range(len(HEADS)):
        value = nothing
        count = nothing
        divisor = nothing
        z = nothing
        lam = nothing + 1.0
        s = nothing
        if REDUCTIONS[i] != "none":
            _, first, programs, _, _, _ = _span(spans[i], 6)
            value = _sum_slots(partials + first, programs, BLOCK, LOOP)
            count = _sum_slots(partials + 2 * all_programs + first, programs, BLOCK, LOOP)
            divisor = count
            if HEADS[i][0]:
                divisor = _sum_slots(partials + 3 * all_programs + first, programs, BLOCK, LOOP)
            if HEADS[i][2]:
                z = _sum_slots(partials + all_programs + first, programs, BLOCK, LOOP)
            if weights is not None:
                lam = tl.load(weights[0] + i * weights[1]).to(tl.float32)
            if log_vars is not None:
                s = tl.load(log_vars[0] + i * log_vars[1]).to(tl.float32)
        read = read + (value, count, divisor, z, lam, s)
    all_terms = nothing
    for i in tl.static_range(len(HEADS)):
        value = read[6 * i]
        count = read[6 * i + 1]
        dweight = nothing
        dlog_var = nothing
        if REDUCTIONS[i] != "none":
            if REDUCTIONS[i] == "mean":
                value = _over(value, read[6 * i + 2])
            if HEADS[i][2]:
                z = read[6 * i + 3]
                if REDUCTIONS[i] == "mean":
                    z = _over(z, count)
                value += z
            term = value
            lam = read[6 * i + 4]
            if log_vars is not None:
                s = read[6 * i + 5]
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
def losses_scale_kernel(gradients, factor, COUNT: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
    """Multiply gradients, (pointer, elements) each, by a number; nothing is touched if it is 1.

    Grid: (programs, gradients). OVERLAP: it is launched before what is before it ends, for which it waits.
    """
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
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
