"""Features of several rates on one grid of time, for the fusion op."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .timeline import Intervals

__all__ = ["Alignment", "TimeMap", "align_intervals"]

_KINDS = ("nearest", "linear")
# Times on the border of two features belong to the later one, whatever they were rounded to.
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class TimeMap:
    """Which features of one modality make up each step of a grid of time.

    Attributes
    ----------
    index : Tensor
        (B, T) int64, the feature at each step.
    next_index : Tensor or None
        (B, T) int64, the feature to mix in; None for "nearest".
    share : Tensor or None
        (B, T) float32, 0 to 1, the part of the result that comes from ``next_index``.
    valid : Tensor
        (B, T) bool, whether there is anything at the step; ``index`` is any number where not.
    count : int
        Features that there must be at least.
    """

    index: Tensor
    next_index: Tensor | None
    share: Tensor | None
    valid: Tensor
    count: int

    def gather(self, features: Tensor) -> Tensor:
        """Bring features (B, T_m, ...) to the grid: (B, T, ...). What is at invalid steps has no meaning.

        Raises
        ------
        ValueError
            If there are fewer features than the map was made for, or another batch.
        """
        batch, steps = self.index.shape
        if features.dim() < 2 or features.shape[0] != batch:
            raise ValueError(f"features: expected shape ({batch}, T, ...), got {tuple(features.shape)}")
        if features.shape[1] < self.count:
            raise ValueError(
                f"features: {features.shape[1]} steps are fewer than the {self.count} that the map was made"
                " for; tell align() how many there are"
            )
        if not features.shape[1]:
            return features.new_zeros((batch, steps, *features.shape[2:]))
        rows = torch.arange(batch, device=features.device)[:, None]
        first = features[rows, self.index.to(features.device)]
        if self.next_index is None or self.share is None:
            return first
        second = features[rows, self.next_index.to(features.device)]
        share = self.share.to(features).view(batch, steps, *[1] * (features.dim() - 2))
        return torch.lerp(first, second, share)

    def to(self, *args: Any, **kwargs: Any) -> TimeMap:
        """Copy on another device, as ``Tensor.to`` takes it."""
        return TimeMap(
            self.index.to(*args, **kwargs),
            None if self.next_index is None else self.next_index.to(*args, **kwargs),
            None if self.share is None else self.share.to(*args, **kwargs),
            self.valid.to(*args, **kwargs),
            self.count,
        )


@dataclass(frozen=True, eq=False)
class Alignment:
    """A grid of time and each modality's way to it; made by ``Clip.align`` and ``ClipBatch.align``.

    Attributes
    ----------
    seconds : Tensor
        (B, T) float64, the middles of the steps, on the clips' clock.
    maps : dict of str to TimeMap
        By the names of the clips' modalities, in their order.
    mask : Tensor
        (B, T, M) bool: which modality is there at which step, as ``weighted_fusion(mask=)`` takes it.
    """

    seconds: Tensor
    maps: dict[str, TimeMap]
    mask: Tensor

    def gather(self, features: Sequence[Tensor] | Mapping[str, Tensor]) -> list[Tensor]:
        """Bring every modality's features (B, T_m, D) to the grid, as ``weighted_fusion`` takes them.

        Parameters
        ----------
        features : sequence of Tensor, or mapping of str to Tensor
            One per modality of the clips, in their order, or by their names.

        Raises
        ------
        ValueError
            If they do not fit the modalities, or the map of one.
        """
        if isinstance(features, Mapping):
            if set(features) != set(self.maps):
                raise ValueError(
                    f"features: expected those of {', '.join(self.maps)}, got {', '.join(features)}"
                )
            features = [features[name] for name in self.maps]
        if len(features) != len(self.maps):
            raise ValueError(
                f"features: expected {len(self.maps)} tensors ({', '.join(self.maps)}), got {len(features)}"
            )
        return [m.gather(x) for m, x in zip(self.maps.values(), features, strict=True)]

    def to(self, device: str | torch.device) -> Alignment:
        """Copy on another device; ``seconds`` stays where it is."""
        maps = {name: m.to(device) for name, m in self.maps.items()}
        return Alignment(self.seconds, maps, self.mask.to(device))


def align_intervals(
    intervals: Mapping[str, Sequence[Intervals]],
    ranges: Sequence[tuple[float, float]],
    rate: float,
    kind: str,
) -> Alignment:
    """Align clips' features: per modality one ``Intervals`` per clip; ``ranges`` are the clips' own."""
    if not isinstance(rate, (int, float)) or isinstance(rate, bool):
        raise TypeError(f"rate: expected a number of steps per second, got {rate!r}")
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"rate: expected a positive number of steps per second, got {rate!r}")
    if kind not in _KINDS:
        raise ValueError(f"kind: expected one of {', '.join(_KINDS)}, got {kind!r}")
    counts = [math.ceil((stop - start) * rate - 1e-6) for start, stop in ranges]
    steps = max(counts, default=0)
    middles = (torch.arange(steps, dtype=torch.float64) + 0.5) / rate
    seconds = torch.stack([middles + start for start, _ in ranges])
    inside = torch.arange(steps) < torch.tensor(counts)[:, None]
    maps = {}
    for name, clips in intervals.items():
        count = max((len(one.starts) for one in clips), default=0)
        found = [one.find(row + _ROUNDING) for one, row in zip(clips, seconds, strict=True)]
        index = torch.stack([i for i, _ in found])
        valid = torch.stack([v for _, v in found]) & inside
        # words have no mean
        if kind == "linear" and name != "text":
            near = [one.neighbours(row) for one, row in zip(clips, seconds, strict=True)]
            first, second, share = (torch.stack(parts) for parts in zip(*near, strict=True))
            maps[name] = TimeMap(first, second, share.float(), valid, count)
        else:
            maps[name] = TimeMap(index, None, None, valid, count)
    mask = torch.stack([m.valid for m in maps.values()], 2) if maps else inside[:, :, None][:, :, :0]
    return Alignment(seconds, maps, mask)
