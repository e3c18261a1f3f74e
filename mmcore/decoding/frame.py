"""What a decoder hands back: one frame, or a batch of frames, with their times."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor

__all__ = ["Frame", "FrameBatch", "FrameTimes"]


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One decoded frame.

    Attributes
    ----------
    data : Tensor
        (3, H, W) uint8 RGB without a transform; otherwise as the transform's layout and dtype say, without
        the batch dimension.
    pts_seconds : float
        When the frame appears, in seconds.
    duration_seconds : float
        How long it is shown: until the next frame appears; for the last frame, what the file says.
    valid : bool
        False if it could not be decoded and ``data`` is what ``on_error`` puts in its place.
    """

    data: Tensor
    pts_seconds: float
    duration_seconds: float
    valid: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class FrameBatch:
    """Decoded frames in the order they were asked for.

    Attributes
    ----------
    data : Tensor
        (N, 3, H, W) uint8 RGB without a transform; otherwise as the transform's layout and dtype say.
    pts_seconds, duration_seconds : Tensor
        (N,) float64, as in :class:`Frame`.
    valid : Tensor or None
        (N,) bool: False where a frame could not be decoded, and ``data`` holds what ``on_error`` puts in its
        place: 0, or the nearest frame. None if every frame decoded.
    """

    data: Tensor
    pts_seconds: Tensor
    duration_seconds: Tensor
    valid: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pts_seconds)

    def __iter__(self) -> Iterator[Tensor]:
        """Unpack as (data, pts_seconds, duration_seconds)."""
        return iter((self.data, self.pts_seconds, self.duration_seconds))


@dataclass(frozen=True, slots=True, eq=False)
class FrameTimes:
    """When the frames of a stream are shown, and where decoding can start.

    Attributes
    ----------
    pts_seconds, duration_seconds : Tensor
        (number of frames,) float64, as in :class:`Frame`.
    key_frames : Tensor
        (number of entry points,) int64, ascending: the frames at which decoding can start.
    time_base : Fraction
        The file's unit of time in seconds: all times are multiples of it.
    """

    pts_seconds: Tensor
    duration_seconds: Tensor
    key_frames: Tensor
    time_base: Fraction

    def __len__(self) -> int:
        return len(self.pts_seconds)
