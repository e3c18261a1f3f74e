"""What callers' numbers and times mean for one stream: frames of it, or errors that name it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .arguments import elements, integer, number_of_seconds

if TYPE_CHECKING:
    from .reader import FrameReader

__all__ = ["StreamArguments"]


class StreamArguments:
    """Checks arguments against the frames of a stream.

    Parameters
    ----------
    reader : FrameReader
        Of the stream.
    """

    def __init__(self, reader: FrameReader) -> None:
        self._reader = reader

    def frame(self, name: str, value: Any) -> int:
        """Number of a frame; negative ones count from the end. IndexError if there is none."""
        number, count = integer(name, value), len(self._reader.index)
        if not -count <= number < count:
            raise IndexError(f"{name}: there is no frame {number} in the {self._count_text()}")
        return number + count if number < 0 else number

    def frames(self, name: str, values: Any) -> list[int]:
        """Numbers of frames."""
        return [self.frame(name, value) for value in elements(name, values)]

    def frame_range(self, start: Any, stop: Any, step: Any) -> range:
        """Frames ``start, start + step, ...`` before ``stop``; IndexError unless they are there."""
        count = len(self._reader.index)
        first, last = integer("start", start), integer("stop", stop)
        step = integer("step", step)
        if step < 1:
            raise ValueError(f"step: expected 1 or more, got {step}")
        first, last = first + count * (first < 0), last + count * (last < 0)
        if not 0 <= first <= last <= count:
            raise IndexError(
                f"start, stop: {start}:{stop} is no range of the {self._count_text()}; "
                f"expected 0 <= start <= stop <= {count}"
            )
        return range(first, last, step)

    def played_at(self, name: str, value: Any) -> int:
        """Number of the frame that is shown at a time; ValueError if none is."""
        index = self._reader.index
        begin, end = index.start_seconds(0), index.seconds(index.end)
        seconds = number_of_seconds(name, value, finite=False)
        if not begin <= seconds < end:
            where = self._reader.source.name
            raise ValueError(f"{name}: {seconds} s is outside {where}, expected {begin} <= {name} < {end}")
        return index.frame_played_at(seconds)

    def played_in_range(
        self, start_seconds: Any, stop_seconds: Any, fps: Any
    ) -> tuple[Sequence[int], list[float] | None]:
        """Numbers of the frames shown in a range of time, and with ``fps`` the times of the steps."""
        index = self._reader.index
        begin, end = index.start_seconds(0), index.seconds(index.end)
        start = number_of_seconds("start_seconds", start_seconds)
        stop = number_of_seconds("stop_seconds", stop_seconds)
        if fps is not None:
            fps = number_of_seconds("fps", fps)
            if fps < 1e-9:  # the reciprocal of less may overflow
                raise ValueError(f"fps: expected a positive number, got {fps}")
        if not begin <= start <= stop <= end:
            raise ValueError(
                f"start_seconds, stop_seconds: [{start}, {stop}) is no range of {self._reader.source.name},"
                f" whose frames are shown from {begin} to {end} s"
            )
        return index.played_in_range(start, stop, fps)

    def broken_off(self) -> str:
        """Where and why the file ends before its end."""
        index, reader = self._reader.index, self._reader
        last = len(index) - 1
        return (
            f"{reader.source.name}: stream {reader.stream_index} breaks off after frame {last} at"
            f" {index.start_seconds(last):.6g} s: {index.damage}"
        )

    def _count_text(self) -> str:
        index, reader = self._reader.index, self._reader
        text = f"{len(index)} frames of {reader.source.name}, stream {reader.stream_index}"
        return text if index.damage is None else f"{text} ({self.broken_off()})"
