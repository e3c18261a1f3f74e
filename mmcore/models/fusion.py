"""Features of several encoders become one: projections and ``mmcore.nn.WeightedFusion``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcore.models.features import Features, Presets, check_mask, masked_mean, without_padding
from mmcore.nn import WeightedFusion
from mmcore.ops.fusion import weighted_fusion

__all__ = ["Contributions", "Fusion"]

ALIGNMENTS = ("nearest", "mean")


class Contributions(NamedTuple):
    """Each modality's share of the fused features; see :meth:`Fusion.contributions`."""

    names: tuple[str, ...]
    """Of the modalities: the last dimension of ``clip`` and ``steps``."""
    clip: Tensor
    """(B, M): of the whole sample; sums to 1, or is 0 where nothing is there."""
    steps: Tensor | None
    """(B, T, M): of each step; None where modalities are pooled before they are fused."""


class Fusion(Presets):
    """Fuse named features of any width and rate: linear projections, a norm, weights, a sum.

    Parameters
    ----------
    dims : mapping of str to int
        Names and widths of the modalities.
    dim : int
        Width of the result.
    reference : str, optional
        The modality whose steps the result has; the others are brought to them by ``align``. None: the mean
        of each modality over its steps is fused, so that the result has none.
    align : {"nearest", "mean"}
        How a modality of another rate is brought to the reference's steps: the step in whose time the middle
        of the reference's step lies, or the mean of all that it touches. A sample's steps, of every modality,
        are taken to be equally long and to cover the same stretch of time, padding apart.
    weighting : {"step_gate", "channel_gate", "gate", "scalar", "uniform"}
        As :class:`mmcore.nn.WeightedFusion` has it. Without a reference, "step_gate" and "gate" are one.
    mode, norm, gate_hidden
        As for :class:`mmcore.nn.WeightedFusion`.
    modality_dropout : float
        In training, modalities of a sample are left out with this probability, never all of them.

    Attributes
    ----------
    names : tuple of str
    fusion : mmcore.nn.WeightedFusion

    Examples
    --------
    >>> import torch
    >>> from mmcore.models import Features, Fusion
    >>> fusion = Fusion({"video": 8, "audio": 4}, 16, reference="video")
    >>> features = {"video": Features(torch.randn(2, 5, 8)), "audio": Features(torch.randn(2, 50, 4))}
    >>> fusion(features).data.shape
    torch.Size([2, 5, 16])
    """

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"tiny": {"dim": 128}, "base": {"dim": 512}}

    def __init__(
        self,
        dims: Mapping[str, int],
        dim: int,
        *,
        reference: str | None = None,
        align: str = "nearest",
        weighting: str = "step_gate",
        mode: str = "softmax",
        norm: str | None = "layer_norm",
        gate_hidden: int | None = None,
        modality_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not isinstance(dims, Mapping):
            raise TypeError(f"dims: expected a mapping of names to widths, got {type(dims).__name__}")
        if reference is not None and reference not in dims:
            raise ValueError(f"reference: expected one of {', '.join(dims)}, got {reference!r}")
        if align not in ALIGNMENTS:
            raise ValueError(f"align: expected one of {', '.join(ALIGNMENTS)}, got {align!r}")
        self.config = {
            "dims": dict(dims),
            "dim": dim,
            "reference": reference,
            "align": align,
            "weighting": weighting,
            "mode": mode,
            "norm": norm,
            "gate_hidden": gate_hidden,
            "modality_dropout": modality_dropout,
        }
        self.names = tuple(dims)
        self.dim = dim
        self.reference = reference
        self.align = align
        self.fusion = WeightedFusion(
            dims,
            dim,
            weighting=weighting,
            mode=mode,
            norm=norm,
            project=True,
            gate_hidden=gate_hidden,
            modality_dropout=modality_dropout,
        )

    def forward(self, features: Mapping[str, Features], available: Tensor | None = None) -> Features | Tensor:
        """Fuse.

        Parameters
        ----------
        features : mapping of str to Features
            Some or all of the modalities; those left out, for which nothing was recorded, are missing.
        available : Tensor, optional
            (B, M) bool, in the order of ``names``: which modality each sample has. What it says is missing is
            never read, NaN included.

        Returns
        -------
        Features or Tensor
            With a reference (B, T, dim), masked where no modality is there; without one (B, dim).
        """
        xs, there, steps = self._prepared(features, available)
        if steps is None:
            return self.fusion(xs, there)  # type: ignore[no-any-return]
        return Features(self.fusion(xs, there), there.any(2))

    def contributions(
        self, features: Mapping[str, Features], available: Tensor | None = None
    ) -> Contributions:
        """Share of each modality in the fused features, ``<w_m a_m, F> / <F, F>``, of each sample and step.

        w_m a_m is the modality's term of the sum F. A share below 0 works against the rest. Nothing is
        recorded for autograd. See docs/fusion.md for what shares mean.
        """
        with torch.no_grad():
            xs, there, steps = self._prepared(features, available)
            terms = self._terms(xs, there, steps)
            fused = terms.sum(-2, keepdim=True)
            parts = (terms * fused).sum(-1)  # (B, M) or (B, T, M)
        clip = parts if steps is None else parts.sum(1)
        return Contributions(self.names, _shares(clip), None if steps is None else _shares(parts))

    def _terms(self, xs: list[Tensor], there: Tensor, steps: int | None) -> Tensor:
        """(B, M, D) or (B, T, M, D): what each modality adds, which WeightedFusion makes in the sum alone."""
        fusion = self.fusion
        given, mode = fusion._weights(xs, there, steps)
        kept = there[..., None]
        if given is None:
            weights = kept.to(torch.promote_types(xs[0].dtype, torch.float32))
        else:
            weights = given.to(torch.promote_types(given.dtype, torch.float32))
            if fusion.weighting != "channel_gate":
                weights = weights[..., None]
            if fusion.weighting == "gate" and steps is not None:
                weights = weights[:, None]  # one for all steps
        if mode == "softmax":
            weights = torch.softmax(weights.masked_fill(~kept, -torch.inf), -2)
        elif mode == "normalized":
            weights = weights / kept.sum(-2, keepdim=True)
        weights = weights.masked_fill(~kept, 0.0)
        terms = []
        for m, x in enumerate(xs):
            norm_weight, norm_bias = (
                None if p is None else p[m] for p in (fusion.norm_weight, fusion.norm_bias)
            )
            term = weighted_fusion(
                [fusion._projected(m, x, there)],
                mask=there[..., m : m + 1],
                norm=fusion.norm,
                norm_weight=norm_weight,
                norm_bias=norm_bias,
                eps=fusion.eps,
            )
            terms.append(term)
        return torch.stack(terms, -2) * weights

    def _prepared(
        self, features: Mapping[str, Features], available: Tensor | None
    ) -> tuple[list[Tensor], Tensor, int | None]:
        """Tensors in the order of the names, the op's mask, and the steps of the result, if it has any."""
        unknown = [name for name in features if name not in self.names]
        if unknown or not features:
            raise ValueError(
                f"features: expected some of {', '.join(self.names)}, got {', '.join(unknown) or 'none'}"
            )
        if self.reference is not None and self.reference not in features:
            raise ValueError(
                f"features: the reference, {self.reference!r}, must be there: it gives the steps"
            )
        first = next(iter(features.values())).data
        batch, device = first.shape[0], first.device
        if available is not None:
            check_mask(available, batch, len(self.names), "available")
        steps, lengths = None, first.new_zeros(batch, 1)
        if self.reference is not None:
            steps = features[self.reference].data.shape[1]
            lengths = _lengths(features[self.reference])
            # A sample without the reference has all steps for the others.
            lengths = torch.where(lengths > 0, lengths, steps)
        xs, there = [], []
        for m, (name, width) in enumerate(zip(self.names, self.fusion.in_dims, strict=True)):
            found = features.get(name)
            if found is None:
                nothing = torch.zeros(batch, 1, dtype=torch.bool, device=device)
                found = Features(first.new_zeros(batch, 1, width or 0), nothing)
            if steps is not None and name != self.reference:
                found = _aligned(found, lengths, steps, self.align)
            data, mask = found
            if mask is None:
                mask = torch.ones(data.shape[:2], dtype=torch.bool, device=device)
            if available is not None:
                mask = mask & available[:, m, None]
            xs.append(masked_mean(data, mask) if steps is None else data)
            there.append(mask.any(1) if steps is None else mask)
        return xs, torch.stack(there, -1), steps


def _lengths(features: Features) -> Tensor:
    """(B, 1): each sample's steps, up to the last one that is there."""
    batch, steps = features.data.shape[:2]
    count = torch.arange(1, steps + 1, device=features.data.device).expand(batch, -1)
    if features.mask is not None:
        count = count.masked_fill(~features.mask, 0)
    return count.amax(1, keepdim=True) if steps else count.new_zeros(batch, 1)


def _aligned(source: Features, lengths: Tensor, steps: int, kind: str) -> Features:
    """Bring each sample's own steps to the first ``lengths`` (B, 1) of ``steps``; the rest is missing.

    Step t of L covers t L' / L to (t + 1) L' / L of the source's L'; in integers, as rounding moves a border.
    """
    data, mask = source
    own = _lengths(source)
    t = torch.arange(steps, device=data.device)
    there = (t < lengths) & (own > 0)
    if data.shape[1] == 0:
        return Features(data.new_zeros(len(data), steps, data.shape[2]), there)
    if kind == "nearest":
        index = ((2 * t + 1) * own // (2 * lengths)).clamp(max=data.shape[1] - 1)
        if mask is not None:
            there = there & mask.gather(1, index)
        return Features(data.gather(1, _wide(index, data)), there)
    # Sums from a to b are differences of sums from the beginning, in float32 at least.
    wide = torch.promote_types(data.dtype, torch.float32)
    first = (t * own // lengths).clamp(max=data.shape[1])
    last = (((t + 1) * own + lengths - 1) // lengths).clamp(max=data.shape[1])
    sums = F.pad(without_padding(data, mask).cumsum(1, dtype=wide), (0, 0, 1, 0))
    total = sums.gather(1, _wide(last, data)) - sums.gather(1, _wide(first, data))
    count = last - first
    if mask is not None:
        counts = F.pad(mask.cumsum(1), (1, 0))
        count = counts.gather(1, last) - counts.gather(1, first)
    mean = total / count.clamp(min=1)[..., None]
    return Features(mean.to(data.dtype), there & (count > 0))


def _wide(index: Tensor, data: Tensor) -> Tensor:
    return index[..., None].expand(-1, -1, data.shape[2])


def _shares(parts: Tensor) -> Tensor:
    total = parts.sum(-1, keepdim=True)
    return torch.where(total > 0, parts / torch.where(total > 0, total, 1.0), 0.0)
