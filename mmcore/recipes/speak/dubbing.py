"""Speech onto a video: its pictures, with new sound."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

from torch import Tensor

import mmcore

__all__ = ["speak_onto"]

_AT_A_TIME = 32


def speak_onto(
    video: str | os.PathLike[str],
    samples: Tensor,
    sample_rate: int,
    output: str | os.PathLike[str],
    *,
    text: str | None = None,
) -> None:
    """Write a video's pictures with speech as their sound.

    Pictures are encoded again, as :func:`mmcore.encode` does it by default, at the video's mean frame rate.
    If the speech is longer, the last picture stays until it ends. Sound and subtitles that the video had
    are left out.

    Parameters
    ----------
    video, output : path
        Two files; the suffix of ``output`` chooses its format.
    samples : Tensor
        (n,) floating, -1 to 1.
    sample_rate : int
    text : str, optional
        Shown as a subtitle while it is spoken, where the format has subtitles.

    Raises
    ------
    ValueError
        If both are the same file.
    DecodeError, UnsupportedError
        If the video cannot be read, or not be written in that format.
    """
    if os.path.exists(output) and os.path.samefile(video, output):
        raise ValueError(f"output: expected another file than the video, got {os.fspath(output)!r} for both")
    seconds = len(samples) / sample_rate
    with mmcore.VideoDecoder(video) as decoder:
        fps = decoder.metadata.average_fps or 25.0  # a single picture has no rate
        mmcore.encode(
            output,
            frames=_pictures(decoder, fps, seconds),
            fps=fps,
            audio=samples,
            sample_rate=sample_rate,
            text=None if text is None else [(0.0, seconds, text)],
        )


def _pictures(decoder: mmcore.VideoDecoder, fps: float, least_seconds: float) -> Iterator[Tensor]:
    """Batches (n, 3, H, W) at a constant rate, for as long as the video or the speech lasts."""
    metadata = decoder.metadata
    begin, end = metadata.begin_stream_seconds, metadata.end_stream_seconds
    count = len(decoder) if end is None else max(1, round((end - begin) * fps))
    wanted = max(count, math.ceil(least_seconds * fps))
    for first in range(0, wanted, _AT_A_TIME):
        # What is shown in the middle of each new frame's time: all frames, if their rate is constant already.
        times = [
            begin + (min(n, count - 1) + 0.5) / fps for n in range(first, min(first + _AT_A_TIME, wanted))
        ]
        yield decoder.get_frames_played_at(times).data
