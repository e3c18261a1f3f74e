"""Contrastive losses in plain torch: the oracle in float64, and the op itself where no kernel serves.

    z = s a b^T (+ bias)
    clip    L = 1/2B sum_i (lse_j z_ij + lse_j z_ji - 2 z_ii)
    siglip  L = -1/B sum_ij log sigmoid(+-z_ij),   + where i = j

:func:`contrastive_loss_value` is differentiable any number of times. The other two are the op's forward and
backward, by tiles of whole rows of z, so that more than one tile of it never exists.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mmcore.backends.reference.fusion import _no_autocast

if TYPE_CHECKING:
    from mmcore.ops.contrastive import ContrastiveProblem, Parts, Recorded

__all__ = ["contrastive_loss", "contrastive_loss_gradients", "contrastive_loss_value"]


def _signs(first: int, rows: int, batch: int, like: Tensor) -> Tensor:
    """(rows, batch): 1 where row and column are a pair, -1 elsewhere."""
    row = torch.arange(first, first + rows, device=like.device)[:, None]
    return torch.where(row == torch.arange(batch, device=like.device), 1.0, -1.0).to(like.dtype)


def _numbers(problem: ContrastiveProblem) -> tuple[Tensor, Tensor]:
    """Scale and bias as 0-dim tensors of the compute type."""
    dtype, device = problem.dtype, problem.a.device
    scale, bias = (
        x.to(dtype) if isinstance(x, Tensor) else torch.full((), x, dtype=dtype, device=device)
        for x in (problem.scale, problem.bias)
    )
    return scale, bias


def contrastive_loss_value(problem: ContrastiveProblem) -> Tensor:
    """The loss, differentiable. Arguments are already checked."""
    with _no_autocast(problem.a.device):
        a, b = problem.a.to(problem.dtype), problem.b.to(problem.dtype)
        scale, bias = _numbers(problem)
        batch = a.shape[0]
        if problem.kind == "clip":
            z = scale * (a @ b.mT)
            return (z.logsumexp(1) + z.logsumexp(0) - 2 * z.diagonal()).sum() / (2 * batch)
        z = scale * (a @ b.mT) + bias
        return -logsigmoid(_signs(0, batch, batch, z) * z).sum() / batch


def _tiles(problem: ContrastiveProblem) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """First row, rows of a, b, and y: their similarities, for CLIP those of a scale above 0."""
    a, b = problem.a.detach(), problem.b.detach().to(problem.dtype)
    scale, _ = _numbers(problem)
    for first in range(0, a.shape[0], problem.tile_rows):
        rows = a[first : first + problem.tile_rows].to(problem.dtype)
        y = rows @ b.mT
        yield first, rows, b, torch.where(scale < 0, -y, y) if problem.kind == "clip" else y


def contrastive_loss(problem: ContrastiveProblem, keep: bool) -> tuple[Tensor, Parts]:
    """The loss, and what its gradients are made of: the fields of ``mmcore.ops.contrastive.Recorded``."""
    with torch.no_grad(), _no_autocast(problem.a.device):
        return _clip(problem, keep) if problem.kind == "clip" else _siglip(problem, keep)


def _clip(problem: ContrastiveProblem, keep: bool) -> tuple[Tensor, Parts]:
    scale, _ = _numbers(problem)
    steep, batch = scale.abs(), problem.a.shape[0]
    of_rows, diagonals = [], []
    columns = None
    y = scale
    for first, _rows, _b, y in _tiles(problem):
        of_rows.append(_softmax_sums(steep, y, 1))
        diagonals.append(y.diagonal(first))
        found = _softmax_sums(steep, y, 0)
        columns = found if columns is None else _joined(steep, columns, found)
    assert columns is not None
    diagonal = torch.cat(diagonals)
    loss = slope = torch.zeros_like(scale)
    rows = torch.cat(of_rows, 1)
    for most, total, weighted in (rows, columns):
        loss = loss + (steep * (most - diagonal) + total.log()).sum()
        slope = slope + (most - diagonal + weighted / total).sum()
    slope = torch.where(scale < 0, -slope, slope)
    statistics = torch.cat((rows[:2], columns[:2]))
    slopes = (slope / (2 * batch), torch.zeros_like(slope))
    whole = keep and problem.whole
    gradient = _clip_gradient(problem, statistics, 0, y) if whole else None
    return loss / (2 * batch), (slopes, statistics if keep and not whole else None, gradient)


def _softmax_sums(steep: Tensor, y: Tensor, dim: int) -> Tensor:
    """(3, rows): the largest y, sum e and sum e (y - largest), e = exp(steep (y - largest))."""
    most = y.amax(dim, keepdim=True)
    d = y - most
    e = (steep * d).exp()
    return torch.stack((most.squeeze(dim), e.sum(dim), (e * d).sum(dim)))


def _joined(steep: Tensor, one: Tensor, two: Tensor) -> Tensor:
    most = torch.maximum(one[0], two[0])
    total, weighted = torch.zeros_like(most), torch.zeros_like(most)
    for m, t, w in (one, two):
        d = m - most
        e = (steep * d).exp()
        total, weighted = total + e * t, weighted + e * (w + d * t)
    return torch.stack((most, total, weighted))


def _clip_gradient(problem: ContrastiveProblem, statistics: Tensor, first: int, y: Tensor) -> Tensor:
    """Of the loss by the similarities of a tile."""
    scale, _ = _numbers(problem)
    steep, rows, batch = scale.abs(), y.shape[0], y.shape[1]
    row_most, row_sum, column_most, column_sum = statistics
    end = first + rows
    p: Tensor = (steep * (y - row_most[first:end, None])).exp() / row_sum[first:end, None]
    p += (steep * (y - column_most)).exp() / column_sum
    p.diagonal(first).sub_(2)
    return p.mul_(scale / (2 * batch))


def _siglip(problem: ContrastiveProblem, keep: bool) -> tuple[Tensor, Parts]:
    scale, bias = _numbers(problem)
    batch = problem.a.shape[0]
    loss, slope, bias_slope = torch.zeros_like(scale), torch.zeros_like(scale), torch.zeros_like(scale)
    y = scale
    for first, rows, _b, y in _tiles(problem):
        sign = _signs(first, rows.shape[0], batch, y)
        z = scale * y + bias
        loss = loss - logsigmoid(sign * z).sum()
        by_z = -sign * (-sign * z).sigmoid()
        slope = slope + (by_z * y).sum()
        bias_slope = bias_slope + by_z.sum()
    gradient = _siglip_gradient(problem, 0, y) if keep and problem.whole else None
    return loss / batch, ((slope / batch, bias_slope / batch), None, gradient)


def _siglip_gradient(problem: ContrastiveProblem, first: int, y: Tensor) -> Tensor:
    scale, bias = _numbers(problem)
    sign = _signs(first, y.shape[0], y.shape[1], y)
    return -sign * (-sign * (scale * y + bias)).sigmoid() * (scale / y.shape[1])


def contrastive_loss_gradients(
    problem: ContrastiveProblem, recorded: Recorded, grad: Tensor, needs: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of a and b, None where ``needs`` is False, for the loss's gradient ``grad``."""
    a, b = problem.a.detach(), problem.b.detach()
    dtype = problem.dtype
    with torch.no_grad(), _no_autocast(a.device):
        grad = grad.to(dtype)
        found: list[Tensor | None]
        dz = recorded.gradient
        if dz is not None:
            found = [
                (dz @ b.to(dtype)) * grad if needs[0] else None,
                (dz.mT @ a.to(dtype)) * grad if needs[1] else None,
            ]
        else:
            da = torch.empty_like(a, dtype=dtype, memory_format=torch.contiguous_format)
            db = torch.zeros_like(b, dtype=dtype, memory_format=torch.contiguous_format)
            for first, rows, other, y in _tiles(problem):
                if recorded.statistics is not None:  # clip
                    dz = _clip_gradient(problem, recorded.statistics, first, y)
                else:
                    dz = _siglip_gradient(problem, first, y)
                dz = dz * grad
                if needs[0]:
                    da[first : first + problem.tile_rows] = dz @ other
                if needs[1]:
                    db.addmm_(dz.mT, rows)
            found = [da if needs[0] else None, db if needs[1] else None]
        return [g if g is None else g.to(x.dtype) for g, x in zip(found, (a, b), strict=True)]
