"""When the frames of a decoder are shown, and which is shown when."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import mmcore

from ._frame_mappings import FrameMappings

__all__ = ["Timeline"]


@dataclass(frozen=True)
class Timeline:
    """Frames in presentation order; each is shown until the next one appears.

    Attributes
    ----------
    pts_seconds : Tensor
        (N,) float64.
    end_seconds : float
        When the last frame ends.
    key_frames : Tensor
        (number of key frames,) int64.
    numbers : Tensor or None
        (N,) int64: what mmcore's decoder numbers the frames, None if as here.
    """

    pts_seconds: Tensor
    end_seconds: float
    key_frames: Tensor
    numbers: Tensor | None

    @staticmethod
    def of(times: mmcore.decoding.FrameTimes, mappings: FrameMappings | None) -> Timeline:
        """The frames of a stream, or those of them that ``mappings`` names.

        Raises
        ------
        ValueError
            If the stream has no frame with a pts of the mappings.
        """
        tb = times.time_base
        if mappings is not None:
            numbers = mappings.numbers_in(times)
            end = int((mappings.pts + mappings.duration).max())
            key_frames = mappings.key_frame.nonzero()[:, 0]
            return Timeline(times.pts_seconds[numbers], float(end * tb), key_frames, numbers)
        last = (times.pts_seconds[-1] + times.duration_seconds[-1]).item()
        end = round(last * tb.denominator / tb.numerator)  # the sum itself is not always the nearest float
        return Timeline(times.pts_seconds, float(end * tb), times.key_frames, None)

    def __len__(self) -> int:
        return len(self.pts_seconds)

    @property
    def begin_seconds(self) -> float:
        """When the first frame appears."""
        return self.pts_seconds[0].item()

    def played_at(self, seconds: Tensor) -> Tensor:
        """Indices of the frames shown at ``seconds``, (M,) float64; the first one before it appears."""
        return torch.searchsorted(self.pts_seconds[1:], seconds, right=True)

    def first_from(self, seconds: float) -> int:
        """Index of the first frame that appears at or after ``seconds``."""
        return int(torch.searchsorted(self.pts_seconds, seconds))
