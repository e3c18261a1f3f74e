"""What decoders and samplers return."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

__all__ = ["AudioSamples", "Frame", "FrameBatch"]


class _Printed:
    """Prints as one line per field, of ``data`` only the shape."""

    data: Tensor

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__}:", f"  data (shape): {self.data.shape}"]
        for field in fields(self):  # type: ignore[arg-type]  # of the dataclasses below
            if field.name != "data":
                lines.append(f"  {field.name}: {getattr(self, field.name)}")
        return "\n".join(lines) + "\n"


@dataclass(repr=False)
class Frame(_Printed):
    """One frame; unpacks as ``data, pts_seconds, duration_seconds``.

    Attributes
    ----------
    data : Tensor
        (C, H, W) or (H, W, C), uint8.
    pts_seconds, duration_seconds : float
        When the frame appears, and for how long.

    Raises
    ------
    ValueError
        If ``data`` has not three dimensions.
    """

    data: Tensor
    pts_seconds: float
    duration_seconds: float

    def __post_init__(self) -> None:
        if self.data.ndim != 3:
            raise ValueError(f"data must be 3-dimensional, got shape {tuple(self.data.shape)}")
        self.pts_seconds = float(self.pts_seconds)
        self.duration_seconds = float(self.duration_seconds)

    def __iter__(self) -> Iterator[Tensor | float]:
        return iter((self.data, self.pts_seconds, self.duration_seconds))


@dataclass(repr=False)
class FrameBatch(_Printed):
    """Frames, or clips of frames; indexing and iterating give batches with the leading dimension taken off.

    Attributes
    ----------
    data : Tensor
        (N, C, H, W) or (N, H, W, C), uint8; clips have one dimension more in front.
    pts_seconds, duration_seconds : Tensor
        float64, of the shape that ``data`` has before its last three dimensions.

    Raises
    ------
    ValueError
        If ``data`` has fewer than three dimensions, or the shapes do not fit together.
    """

    data: Tensor
    pts_seconds: Tensor
    duration_seconds: Tensor

    def __post_init__(self) -> None:
        if self.data.ndim < 3:
            raise ValueError(f"data must be at least 3-dimensional, got shape {tuple(self.data.shape)}")
        expected = tuple(self.data.shape[:-3])
        got = tuple(self.pts_seconds.shape), tuple(self.duration_seconds.shape)
        if got != (expected, expected):
            raise ValueError(
                f"the leading dimensions of the inputs do not match: data of shape {tuple(self.data.shape)}"
                f" needs pts_seconds and duration_seconds of shape {expected}, got {got[0]} and {got[1]}"
            )

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: Any) -> FrameBatch:
        return FrameBatch(self.data[key], self.pts_seconds[key], self.duration_seconds[key])

    def __iter__(self) -> Iterator[FrameBatch]:
        return map(FrameBatch, self.data, self.pts_seconds, self.duration_seconds)


@dataclass(repr=False)
class AudioSamples(_Printed):
    """Samples of a stretch of sound; unpacks in the order of its attributes.

    Attributes
    ----------
    data : Tensor
        (channels, samples) floats in [-1, 1].
    pts_seconds, duration_seconds : float
        When the first sample is heard, and how long all last.
    sample_rate : int
        In Hz.

    Raises
    ------
    ValueError
        If ``data`` has not two dimensions.
    """

    data: Tensor
    pts_seconds: float
    duration_seconds: float
    sample_rate: int

    def __post_init__(self) -> None:
        if self.data.ndim != 2:
            raise ValueError(f"data must be 2-dimensional, got shape {tuple(self.data.shape)}")
        self.pts_seconds = float(self.pts_seconds)
        self.sample_rate = int(self.sample_rate)

    def __iter__(self) -> Iterator[Tensor | float]:
        return iter((self.data, self.pts_seconds, self.duration_seconds, self.sample_rate))
