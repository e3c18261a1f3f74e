"""When each frame, sample or segment of a clip is there: intervals of time, and the search in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Intervals", "Tiles", "spread"]


@dataclass(frozen=True, eq=False)
class Intervals:
    """Times of the features of one modality, ascending in their starts.

    Attributes
    ----------
    starts, ends : Tensor
        (n,) float64, seconds. They may overlap and leave gaps.
    valid : Tensor or None
        (n,) bool, False where there is nothing in spite of the interval. None: all are there.
    numbers : Tensor or None
        (n,) int64, the features' numbers. None: 0, 1, ...
    """

    starts: Tensor
    ends: Tensor
    valid: Tensor | None = None
    numbers: Tensor | None = None

    def find(self, seconds: Tensor) -> tuple[Tensor, Tensor]:
        """The feature that began last of those that hold each time: (numbers, whether there is one)."""
        count = len(self.starts)
        if not count:
            return torch.zeros_like(seconds, dtype=torch.int64), torch.zeros_like(seconds, dtype=torch.bool)
        last = torch.searchsorted(self.starts, seconds, right=True) - 1
        index = last.clamp(min=0)
        found = (last >= 0) & (seconds < self.ends[index])
        # an earlier one may outlast those that began after it
        longest = torch.cummax(self.ends, 0).values
        for k in torch.nonzero(~found & (last >= 0) & (seconds < longest[index])).flatten().tolist():
            covering = torch.nonzero(self.ends[: int(last[k]) + 1] > seconds[k])
            index[k], found[k] = int(covering[-1]), True
        if self.valid is not None:
            found = found & self.valid[index]
        return index if self.numbers is None else self.numbers[index], found

    def without(self, gaps: Sequence[tuple[float, float]]) -> Intervals:
        """The same, but not valid where an interval's middle lies in one of ``gaps``."""
        if not gaps:
            return self
        middles = (self.starts + self.ends) / 2
        valid = torch.ones_like(middles, dtype=torch.bool) if self.valid is None else self.valid.clone()
        for start, end in gaps:
            valid &= (middles < start) | (middles >= end)
        return Intervals(self.starts, self.ends, valid, self.numbers)

    def neighbours(self, seconds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Between which two intervals' middles each time lies: (first, second, share of the second)."""
        count = len(self.starts)
        if count < 2:
            zeros = torch.zeros_like(seconds, dtype=torch.int64)
            return zeros, zeros, torch.zeros_like(seconds)
        middles = (self.starts + self.ends) / 2
        first = (torch.searchsorted(middles, seconds, right=True) - 1).clamp(0, count - 2)
        share = (seconds - middles[first]) / (middles[first + 1] - middles[first])
        return first, first + 1, share.nan_to_num(0.0).clamp(0, 1)


@dataclass(frozen=True, eq=False)
class Tiles:
    """A stretch of time in ``count`` units (frames, samples), one after the other.

    Attributes
    ----------
    edges : Tensor
        (k + 1,) float64, ascending: times at which the stretch's k parts of equally many units begin, and its
        end. One part where units are evenly long, ``count`` where they are not.
    count : int
    valid : Tensor or None
        (count,) bool. None: all units are there.
    """

    edges: Tensor
    count: int
    valid: Tensor | None = None

    def intervals(self, steps: int | None = None, padded_count: int | None = None) -> Intervals:
        """Times of ``steps`` features made evenly of ``padded_count`` units, of which these are the first.

        By default a feature for each unit. Those made of padding alone are left out.
        """
        units = self.count if padded_count is None else padded_count
        steps = units if steps is None else steps
        if not self.count or not steps:
            empty = self.edges.new_empty(0)
            return Intervals(empty, empty)
        at = np.arange(steps + 1) * (units / steps)
        kept = int(np.searchsorted(at, self.count - 1e-9))  # that begin before the padding
        parts = len(self.edges) - 1
        times = np.interp(
            np.minimum(at[: kept + 1], self.count) * (parts / self.count),
            np.arange(parts + 1),
            self.edges.numpy(),
        )
        edges = torch.from_numpy(times)
        valid = None
        if self.valid is not None:
            first = torch.from_numpy(at[:kept].astype(np.int64))
            last = torch.from_numpy(np.ceil(np.minimum(at[1 : kept + 1], self.count)).astype(np.int64))
            summed = torch.cat([torch.zeros(1, dtype=torch.int64), self.valid.long().cumsum(0)])
            valid = summed[torch.maximum(last, first + 1)] > summed[first]
        return Intervals(edges[:-1], edges[1:], valid)


def spread(starts: Sequence[float], ends: Sequence[float], counts: Sequence[int]) -> Intervals:
    """Each interval divided evenly among its ``counts`` parts, as tokens share their segment's time."""
    begins: list[Tensor] = []
    stops: list[Tensor] = []
    for start, end, count in zip(starts, ends, counts, strict=True):
        edges = torch.linspace(0, 1, count + 1, dtype=torch.float64) * (end - start) + start
        begins.append(edges[:-1])
        stops.append(edges[1:])
    if not begins:
        empty = torch.empty(0, dtype=torch.float64)
        return Intervals(empty, empty)
    order = torch.argsort(torch.cat(begins), stable=True)  # segments may overlap
    return Intervals(torch.cat(begins)[order], torch.cat(stops)[order], numbers=order)
