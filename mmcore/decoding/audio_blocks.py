"""Decoded frames of any sample format packed into blocks of float32, with silence where there are none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .audio_mixing import mix, mixing_matrix

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame

__all__ = ["WHOLE_RANGE", "BlockPacker", "Samples"]

Samples: TypeAlias = "NDArray[np.float32]"

_BLOCK = 1 << 16
# A range of up to this many samples comes as one block, which need not be copied again.
WHOLE_RANGE = 1 << 24
# FFmpeg's sample formats: numpy's type, and what integers are multiplied by: powers of two, as FFmpeg's are.
# 32 bits are rounded once, by way of float64.
_FORMATS: dict[str, tuple[Any, Any]] = {
    "u8": (np.uint8, np.float32(2.0**-7)),
    "s16": (np.int16, np.float32(2.0**-15)),
    "s32": (np.int32, np.float64(2.0**-31)),
    "s64": (np.int64, np.float64(2.0**-63)),
    "flt": (np.float32, None),
    "dbl": (np.float64, None),
}
_FORMATS |= {name + "p": found for name, found in _FORMATS.items()}


class BlockPacker:
    """Fills one block of (channels, samples) float32 after the other; every block is memory of its own.

    Parameters
    ----------
    num_channels : int
        Frames of other layouts are mixed to as many.
    start : int
        Number of the first sample.
    stop : int or None
        Where the last block ends, if known.
    likely_stop : int
        Where it is likely to end otherwise; 0 if nobody can tell.
    """

    def __init__(self, num_channels: int, start: int, stop: int | None, likely_stop: int = 0) -> None:
        self.next = start
        self._stop = stop
        self._likely_stop = likely_stop
        self._num_channels = num_channels
        self._block: Samples = np.empty((num_channels, 0), np.float32)
        self._filled = self._size = 0

    def silence(self, stop: int) -> Iterator[Samples]:
        """Fill up with silence to sample ``stop``, giving the blocks that are full."""
        while self.next < stop:
            yield from self._make_room()
            self._take(stop - self.next)[:] = 0

    def put(self, frame: AudioFrame, first: int, last: int) -> Iterator[Samples]:
        """Add samples ``first`` to ``last`` of a frame, giving the blocks that are full."""
        form = frame.format
        dtype, scale = _FORMATS[form.name]
        count, samples = frame.layout.nb_channels, frame.samples
        planes: Any = frame.planes  # buffers, which their types do not say
        if count > 1 and not form.is_planar:
            packed = np.frombuffer(planes[0], dtype, samples * count).reshape(samples, count)
            channels = list(packed.T)
        else:  # of eight planes, PyAV finds a ninth
            channels = [np.frombuffer(planes[i], dtype, samples) for i in range(count)]
        if count != self._num_channels:
            matrix = mixing_matrix(frame.layout, self._num_channels)
            mixed = np.empty((count, samples), np.float32)
            _convert(channels, mixed, scale)
            channels, scale = list(mix(mixed, matrix)), None
        while first < last:
            if self._filled == self._size:
                yield from self._make_room()
            target = self._take(last - first)
            end = first + target.shape[1]
            if first or end < samples:
                _convert([channel[first:end] for channel in channels], target, scale)
            else:
                _convert(channels, target, scale)
            first = end

    def rest(self) -> Iterator[Samples]:
        """Give the last block, if it holds anything."""
        if self._filled:
            yield self._block[:, : self._filled]

    def _make_room(self) -> Iterator[Samples]:
        if self._filled < self._size:
            return
        yield from self.rest()
        stop = self._likely_stop if self._stop is None else self._stop
        left = stop - self.next
        self._filled, self._size = 0, left if 0 < left <= WHOLE_RANGE else _BLOCK
        self._block = np.empty((self._num_channels, self._size), np.float32)

    def _take(self, count: int) -> Samples:
        start = self._filled
        self._filled = min(start + count, self._size)
        self.next += self._filled - start
        return self._block[:, start : self._filled]


def _convert(channels: list[NDArray[Any]], out: Samples, scale: Any) -> None:
    for i, channel in enumerate(channels):
        if scale is None:
            out[i] = channel
        else:
            np.multiply(channel, scale, out=out[i], casting="unsafe")
    if scale is not None and channels[0].dtype == np.uint8:
        out -= 1
