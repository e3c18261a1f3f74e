"""Multi-task losses in plain torch: the oracle in float64, and the op itself where no kernel serves.

    L = sum_i lambda_i loss_i,  or  sum_i lambda_i (c_i exp(-s_i) loss_i + s_i / 2)

Every step is differentiable, any number of times; the backward is torch's autograd over it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mmcore.backends.reference.fusion import _no_autocast
from mmcore.backends.reference.recording import recording

if TYPE_CHECKING:
    from mmcore.ops.losses import Head, LossProblem

__all__ = ["multi_task_loss", "multi_task_loss_backward", "multi_task_losses", "scale_gradients"]

_COSINE_EPS = 1e-8


def _present(head: Head) -> Tensor | None:
    """(units,) bool: where there is a label; None: everywhere."""
    there = None
    if head.mask is not None:
        inner = head.units // max(1, head.mask.numel())
        there = head.mask.repeat_interleave(inner)
    if head.task.kind == "cross_entropy" and not head.soft:
        assert head.target is not None
        labelled = head.target != head.task.options.ignore_index
        there = labelled if there is None else there & labelled
    return there


def _cross_entropy(
    head: Head, x: Tensor, there: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Per row: the loss, its weight in the mean's denominator, and the z loss."""
    options, target = head.task.options, head.target
    assert target is not None
    classes = x.shape[1]
    weight = (
        torch.ones(classes, dtype=dtype, device=x.device) if head.weight is None else head.weight.to(dtype)
    )
    log_p = x.log_softmax(-1)  # x less its largest: large logits lose no digits, as in lse - x they would
    z = options.z_loss * x.logsumexp(-1).square()
    smoothing = options.label_smoothing
    if head.soft:
        q = target.to(dtype)
        if there is not None:
            q = torch.where(there[:, None], q, 0.0)
        q = (1 - smoothing) * q + smoothing / classes
        loss = -(weight * q * log_p).sum(-1)
        return loss, torch.ones_like(loss), z
    label = target if there is None else torch.where(there, target, 0)
    out_of_range = (label < 0) | (label >= classes)  # on devices where targets are not read beforehand
    label = label.clamp(0, classes - 1)
    w = weight[label]
    log_p_y = log_p.gather(1, label[:, None]).squeeze(1)
    loss = -log_p_y * w
    if smoothing:
        spread = -(weight * log_p).sum(-1)
        loss = (1 - smoothing) * loss + smoothing / classes * spread
    if options.focal_gamma:
        # expm1 has the digits where p_y is near 1, and exp its derivative's where p_y is small.
        rest = torch.where(log_p_y > -0.5, -torch.expm1(log_p_y), 1 - torch.exp(log_p_y))
        certain = rest <= 0
        loss = torch.where(certain, 0.0, torch.where(certain, 1.0, rest) ** options.focal_gamma * loss)
    return torch.where(out_of_range, torch.nan, loss), w, z


def _unit_losses(
    head: Head, dtype: torch.dtype, there: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(units,) losses, their weights in the mean (None: 1), and z losses; finite where nothing is there."""
    options = head.task.options
    kind = options.kind
    x = head.output.to(dtype)
    rows = kind in ("cross_entropy", "kl_distillation", "cosine")
    by_unit = None if there is None else (there[:, None] if rows else there.reshape(x.shape))
    if by_unit is not None:
        # Selected before anything is computed of them, so that what is not a number cannot leak.
        x = torch.where(by_unit, x, 0.0)
    if kind == "value":
        return x.reshape(-1), None, None
    if kind == "cross_entropy":
        loss, w, z = _cross_entropy(head, x, there, dtype)
        return loss, w, z
    assert head.target is not None
    t = head.target.to(dtype)
    if by_unit is not None:
        t = torch.where(by_unit, t, 0.0)
    d = x - t
    if kind == "mse":
        loss = d.square()
    elif kind == "l1":
        loss = d.abs()
    elif kind in ("smooth_l1", "huber"):
        beta, a = options.beta, d.abs()
        loss = torch.where(a < beta, 0.5 * d.square() / beta, a - 0.5 * beta)
        if kind == "huber":
            loss = loss * beta
    elif kind == "bce_with_logits":
        p = torch.ones((), dtype=dtype, device=x.device) if head.weight is None else head.weight.to(dtype)
        # Two positive terms, whose gradients do not cancel either; logsigmoid has one at 0.
        loss = (t - 1) * logsigmoid(-x) - p * t * logsigmoid(x)
    elif kind == "kl_distillation":
        tau = options.temperature
        log_p, log_q = (x / tau).log_softmax(-1), (t / tau).log_softmax(-1)
        q = log_q.exp()
        nothing = q == 0
        loss = tau * tau * torch.where(nothing, 0.0, q * torch.where(nothing, 0.0, log_q - log_p)).sum(-1)
    else:  # cosine
        loss = 1 - (x * t).sum(-1) / (_length(x) * _length(t))
    return loss.reshape(-1), None, None


def _length(x: Tensor) -> Tensor:
    square = x.square().sum(-1)
    short = square <= _COSINE_EPS**2
    return torch.where(short, _COSINE_EPS, torch.where(short, 1.0, square).sqrt())


def multi_task_losses(problem: LossProblem) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Total, losses (K,) and the unreduced ones (units,); differentiable. Arguments are already checked."""
    dtype = problem.dtype
    device = problem.heads[0].output.device
    with _no_autocast(device):
        zero = torch.zeros((), dtype=dtype, device=device)
        losses, unreduced, terms = [], [], []
        for i, head in enumerate(problem.heads):
            there = _present(head)
            loss, weight, z = _unit_losses(head, dtype, there)
            options = head.task.options
            if there is None:
                count = torch.full((), head.units, dtype=dtype, device=device)
            else:
                count = there.sum().to(dtype)
                loss = torch.where(there, loss, 0.0)
                weight = None if weight is None else torch.where(there, weight, 0.0)
                z = None if z is None else torch.where(there, z, 0.0)
            if options.reduction == "none":
                unreduced.append(loss if z is None else loss + z)
                losses.append(zero)
                continue
            value = loss.sum()
            if options.reduction == "mean":
                value = _over(value, count if weight is None else weight.sum())
            if z is not None:
                value = value + (z.sum() if options.reduction == "sum" else _over(z.sum(), count))
            losses.append(value)
            term = value
            if problem.log_vars is not None:
                s = problem.log_vars[i].to(dtype)
                term = options.uncertainty_scale * torch.exp(-s) * value + 0.5 * s
            if problem.weights is not None:
                term = problem.weights[i].to(dtype) * term
            terms.append(torch.where(count > 0, term, zero))
        total = zero
        for term in terms:
            total = total + term
        return total, torch.stack(losses), unreduced


def _over(value: Tensor, count: Tensor) -> Tensor:
    nothing = count == 0
    return torch.where(nothing, 0.0, value / torch.where(nothing, 1.0, count))


Values = tuple[Tensor, Tensor, list[Tensor], list[Tensor | None]]


def multi_task_loss(problem: LossProblem, needs: Sequence[bool] | None) -> Values:
    """Total, losses, unreduced losses; and with ``needs`` the gradients of the total.

    Gradients are of weights, log_vars and each head's (rows, columns), None where ``needs`` is False.
    """
    if needs is None:
        return *multi_task_losses(problem), []
    with recording():
        leaves, recorded = _recorded(problem, needs)
        total, losses, unreduced = multi_task_losses(recorded)
        gradients = _gradients([total], [None], leaves)
    return total.detach(), losses.detach(), [u.detach() for u in unreduced], gradients


def multi_task_loss_backward(
    problem: LossProblem,
    grad_total: Tensor | None,
    grad_losses: Tensor | None,
    grad_unreduced: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of weights, log_vars and each head's (rows, columns), for gradients of all results."""
    with recording():
        leaves, recorded = _recorded(problem, needs)
        total, losses, unreduced = multi_task_losses(recorded)
        grads = [grad_total, grad_losses, *(None if g is None else g.reshape(-1) for g in grad_unreduced)]
        outs = [total, losses, *unreduced]
        pairs = [(o, g) for o, g in zip(outs, grads, strict=True) if g is not None]
        return _gradients([o for o, _ in pairs], [g for _, g in pairs], leaves)


def _recorded(problem: LossProblem, needs: Sequence[bool]) -> tuple[list[Tensor | None], LossProblem]:
    given = [problem.weights, problem.log_vars, *(head.output for head in problem.heads)]
    leaves = [
        None if t is None else t.detach().requires_grad_(need) for t, need in zip(given, needs, strict=True)
    ]
    weights, log_vars, *outputs = leaves
    heads = tuple(
        head._replace(output=x) for head, x in zip(problem.heads, outputs, strict=True) if x is not None
    )
    return leaves, problem._replace(heads=heads, weights=weights, log_vars=log_vars)


def _gradients(
    outs: Sequence[Tensor], grads: Sequence[Tensor | None], leaves: Sequence[Tensor | None]
) -> list[Tensor | None]:
    wanted = [t for t in leaves if t is not None and t.requires_grad]
    pairs = [(o, g) for o, g in zip(outs, grads, strict=True) if o.requires_grad]
    found = iter(
        torch.autograd.grad([o for o, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True)
        if pairs and wanted
        else [None] * len(wanted)
    )
    result: list[Tensor | None] = []
    for leaf in leaves:
        if leaf is None or not leaf.requires_grad:
            result.append(None)
        else:
            g = next(found)
            result.append(torch.zeros_like(leaf) if g is None else g)
    return result


def scale_gradients(gradients: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply each gradient by a number on its device, in place."""
    for g in gradients:
        g.mul_(factor)
