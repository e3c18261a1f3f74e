"""Weighted fusion in plain torch: the oracle in float64, and the op itself where no kernel serves.

    F[b, t] = sum_m w_m[b, t] * (A_m norm_m(x_m[b]))[t]

Every step is differentiable, any number of times; the backward is torch's autograd over it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmcore.backends.reference.recording import recording

if TYPE_CHECKING:
    from mmcore.ops.fusion import FusionOptions

__all__ = ["time_map", "weighted_fusion", "weighted_fusion_backward"]


@functools.lru_cache(maxsize=64)
def _time_map_rows(kind: str, length: int, source: int) -> tuple[list[list[int]], list[list[float]]]:
    index, weight = [], []
    for t in range(length):
        if kind == "nearest":
            taps = [(min(source - 1, (2 * t + 1) * source // (2 * length)), 1.0)]
        elif kind == "linear":
            num = max(0, (2 * t + 1) * source - length)  # position of the sample's centre, times 2 * length
            first, rest = num // (2 * length), (num % (2 * length)) / (2 * length)
            if first >= source - 1 or rest == 0:
                taps = [(min(first, source - 1), 1.0)]
            else:
                taps = [(first, 1 - rest), (first + 1, rest)]
        elif kind == "mean":
            first, last = t * source // length, -(-(t + 1) * source // length)
            taps = [(s, 1 / (last - first)) for s in range(first, last)]
        else:
            taps = [(t, 1.0)]
        index.append([s for s, _ in taps])
        weight.append([w for _, w in taps])
    taps_most = max(map(len, index), default=1)
    for i, w in zip(index, weight, strict=True):
        i += [0] * (taps_most - len(i))
        w += [0.0] * (taps_most - len(w))
    return index, weight


def time_map(
    kind: str,
    length: int,
    source: int,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | None = None,
) -> tuple[Tensor, Tensor]:
    """Rows of A, the row-stochastic map from ``source`` steps to ``length``: which steps, how much of each.

    "nearest" and "linear" sample the source at the centres of the target's steps, as ``interpolate`` with
    ``mode="nearest-exact"`` and ``mode="linear", align_corners=False`` do; "mean" is the mean of the steps
    that the target's step touches, as ``adaptive_avg_pool1d``.

    Returns
    -------
    index, weight : Tensor
        Both (length, taps); int64 and ``dtype``. A weight of 0 marks a tap that is not there.
    """
    index, weight = _time_map_rows(kind, length, source)
    shape = (length, -1) if length else (0, 1)
    return (
        torch.tensor(index, dtype=torch.int64, device=device).reshape(shape),
        torch.tensor(weight, dtype=torch.float64, device=device).reshape(shape).to(dtype),
    )


def _normalise(x: Tensor, norm: str | None, eps: float) -> Tensor:
    if norm == "layer_norm":
        centred = x - x.mean(-1, keepdim=True)
        return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    if norm == "rms_norm":
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    if norm == "l2":
        square = x.square().sum(-1, keepdim=True)
        long_enough = ~(square < eps * eps)  # true of what is not a number, which must stay visible
        # Selected before the root, whose gradient at 0 is not a number.
        root = torch.rsqrt(torch.where(long_enough, square, 1.0))
        return torch.where(long_enough, x * root, x / (eps or 1.0))
    return x


def _weights(weights: Tensor, available: Tensor | None, mode: str) -> Tensor:
    """Give w of (..., M, D or 1) from gates or logits of that shape: 0 for what is not available."""
    if mode == "sum":
        return weights if available is None else torch.where(available, weights, 0.0)
    if mode == "softmax":
        logits = weights if available is None else torch.where(available, weights, -torch.inf)
        # Never -inf, so that "all missing" is exp(-inf) = 0 everywhere and not NaN.
        exps = torch.exp(logits - logits.detach().amax(-2, keepdim=True).clamp(min=-1e30))
        total = exps.sum(-2, keepdim=True)
        return exps / torch.where(total == 0, 1.0, total)
    gates = weights if available is None else torch.where(available, weights, 0.0)
    total = gates.sum(-2, keepdim=True)
    if available is not None:
        total = torch.where(available.any(-2, keepdim=True), total, 1.0)
    return gates / total


def _no_autocast(device: torch.device) -> AbstractContextManager[object]:
    if not torch.amp.is_autocast_available(device.type):  # as of "meta"
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def compute_dtype(features: Sequence[Tensor], weights: Tensor) -> torch.dtype:
    """Float64 if anything is; float32 for everything else."""
    return (
        torch.float64
        if weights.dtype == torch.float64 or any(x.dtype == torch.float64 for x in features)
        else torch.float32
    )


def _terms(
    features: Sequence[Tensor],
    weights: Tensor,
    mask: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    probe: Tensor | None,
    options: FusionOptions,
    dtype: torch.dtype,
) -> list[Tensor]:
    """w_m * a_m of every modality, each (B, T, D)."""
    batch, length, depth = features[0].shape[0], options.length, features[0].shape[2]
    count = len(features)
    gates = weights.to(dtype)
    if gates.dim() < 4:
        full = {1: (1, 1, count, 1), 2: (batch, 1, count, 1), 3: (batch, length, count, 1)}
        gates = gates.reshape(full[gates.dim()])
    available = None
    if mask is not None:
        steps = mask[:, None, :] if mask.dim() == 2 else mask
        available = steps.expand(batch, length, count)[..., None]
    w = _weights(gates.expand(batch, length, count, gates.shape[3]), available, options.mode)
    if probe is not None:
        # Its value counts as 1; its gradient is the modality's part in the loss.
        w = w * (1 + (probe - probe.detach()).to(dtype))[:, None, :, None]
    terms = []
    for m, x in enumerate(features):
        x = x.to(dtype)
        index, tap = time_map(options.align[m], length, x.shape[1], dtype=dtype, device=x.device)
        there = (tap != 0)[None, :, :, None]
        if available is not None:
            there = there & available[:, :, m, :, None]
        # Selected before anything is computed of them, so that what is not a number cannot leak.
        # Not 0: its norm is 0, and NaN where eps is.
        filler = torch.arange(1.0, depth + 1, dtype=dtype, device=x.device)
        a = torch.where(there, x[:, index.reshape(-1)].reshape(batch, length, index.shape[1], depth), filler)
        a = _normalise(a, options.norm, options.eps)
        if norm_weight is not None:
            a = a * norm_weight[m].to(dtype)
        if norm_bias is not None:
            a = a + norm_bias[m].to(dtype)
        a = (torch.where(there, a, 0.0) * tap[None, :, :, None]).sum(2)
        term = w[:, :, m] * a
        # Selected again, so that a gradient that is not a number stops where nothing is there.
        terms.append(term if available is None else torch.where(available[:, :, m], term, 0.0))
    return terms


def weighted_fusion(
    features: Sequence[Tensor],
    weights: Tensor,
    mask: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    probe: Tensor | None,
    options: FusionOptions,
) -> Tensor:
    """Fused features (B, T, D) of (B, T_m, D) ones; differentiable. Arguments are already checked."""
    dtype = compute_dtype(features, weights)
    with _no_autocast(features[0].device):
        terms = _terms(features, weights, mask, norm_weight, norm_bias, probe, options, dtype)
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total.to(options.dtype).contiguous()


def weighted_fusion_backward(
    grad: Tensor,
    features: Sequence[Tensor],
    weights: Tensor,
    mask: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    probe: Tensor | None,
    options: FusionOptions,
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of weights, norm_weight, norm_bias, probe and each feature; None where ``needs`` is False."""
    given = [weights, norm_weight, norm_bias, probe, *features]
    with recording():
        leaves = [
            None if t is None else t.detach().requires_grad_(need)
            for t, need in zip(given, needs, strict=True)
        ]
        w, nw, nb, pr, *xs = leaves
        assert w is not None
        out = weighted_fusion([x for x in xs if x is not None], w, mask, nw, nb, pr, options)
        wanted = [t for t in leaves if t is not None and t.requires_grad]
        found = iter(torch.autograd.grad(out, wanted, grad, allow_unused=True) if out.requires_grad else ())
    result: list[Tensor | None] = []
    for leaf in leaves:
        if leaf is None or not leaf.requires_grad:
            result.append(None)
        else:
            g = next(found)
            result.append(torch.zeros_like(leaf) if g is None else g)
    return result
