"""What the audio decoder gives: a stretch of sound with its place on the clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

__all__ = ["AudioSamples"]


@dataclass(frozen=True, slots=True, eq=False)
class AudioSamples:
    """Samples of a stretch of sound.

    Attributes
    ----------
    data : Tensor
        (channels, samples) float32; full scale is [-1, 1], which lossy codecs may pass.
    pts_seconds : float
        When the first sample is heard; sample ``i`` is heard at ``pts_seconds + i / sample_rate``.
    duration_seconds : float
        ``samples / sample_rate``.
    sample_rate : int
        In Hz.
    gaps : tuple of (float, float)
        From when to when, in seconds, ``data`` is silent because the file holds no sound there, or none that
        can be decoded.
    """

    data: Tensor
    pts_seconds: float
    duration_seconds: float
    sample_rate: int
    gaps: tuple[tuple[float, float], ...] = ()

    def __len__(self) -> int:
        return self.data.shape[1]

    def __iter__(self) -> Iterator[Tensor | float]:
        """Unpack as (data, pts_seconds, duration_seconds, sample_rate)."""
        return iter((self.data, self.pts_seconds, self.duration_seconds, self.sample_rate))
