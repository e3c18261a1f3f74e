"""Changing the sample rate with FFmpeg's swresample, so that a range comes out as it does of the whole.

Output sample m stands at input position ``m * rate_in / rate_out``. A resampler that begins at an input
sample whose position is a whole output sample, ``rate_in / gcd`` apart, has the phases of one that began at
sample 0; what its filter reaches in front of the range and behind it is fed as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .audio_blocks import Samples

__all__ = ["InputRange", "input_range", "num_output_samples", "resample"]

# Half the filter's length is 16 input samples, or 16 / 0.97 output samples where the rate goes down.
_REACH = 20


@dataclass(frozen=True, slots=True)
class InputRange:
    """Input samples ``start`` to ``stop``, None for all; the first ``dropped`` outputs are too early."""

    start: int
    stop: int | None
    dropped: int


def num_output_samples(count: int, rate_in: int, rate_out: int) -> int:
    """How many output samples stand before the end of ``count`` input samples."""
    return -(-count * rate_out // rate_in)


def input_range(first: int, last: int | None, rate_in: int, rate_out: int) -> InputRange:
    """What to feed for output samples ``first`` to ``last``."""
    reach = _reach(rate_in, rate_out)
    step = rate_in // math.gcd(rate_in, rate_out)
    start = max(0, first * rate_in // rate_out - reach) // step * step
    stop = None if last is None else -(-last * rate_in // rate_out) + reach
    return InputRange(start, stop, first - start * rate_out // rate_in)


def _reach(rate_in: int, rate_out: int) -> int:
    return math.ceil(_REACH * max(1.0, rate_in / rate_out)) + 1


def resample(
    blocks: Iterator[Samples], start: int, dropped: int, count: int | None, rate_in: int, rate_out: int
) -> Iterator[Samples]:
    """Blocks of (channels, samples) at another rate.

    Parameters
    ----------
    blocks : iterator of ndarray
        Input from sample ``start`` on.
    start, dropped : int
        As :func:`input_range` gives them.
    count : int or None
        Samples to give; fewer if the input's end comes first. None for all.
    rate_in, rate_out : int
    """
    import av

    resamplers: list[Any] = []
    fed, given = 0, -dropped
    frames: list[list[Any]] = []

    def taken(limit: int | None) -> Samples | None:
        nonlocal given
        channels = [np.concatenate([f.to_ndarray()[0] for f in found]) for found in frames if found]
        if not channels:
            return None
        block = np.stack(channels)
        first, given = given, given + block.shape[1]
        last = block.shape[1] if limit is None else min(block.shape[1], limit - first)
        skip = max(0, -first)
        return block[:, skip:last] if skip < last else None

    for block in blocks:
        fed += block.shape[1]
        if not resamplers:
            resamplers = [av.AudioResampler("fltp", "mono", rate_out) for _ in block]
        frames = [_feed(r, channel, rate_in) for r, channel in zip(resamplers, block, strict=True)]
        found = taken(count)
        if found is not None:
            yield found
        if count is not None and given >= count:
            return
    if not resamplers:
        return
    # Behind the end there is silence; FFmpeg would mirror the last samples.
    available = num_output_samples(start + fed, rate_in, rate_out) - start * rate_out // rate_in - dropped
    limit = available if count is None else min(count, available)
    silence = np.zeros(2 * _reach(rate_in, rate_out), np.float32)
    frames = [_feed(r, silence, rate_in) + r.resample(None) for r in resamplers]
    found = taken(limit)
    if found is not None:
        yield found


def _feed(resampler: Any, channel: Any, rate: int) -> list[Any]:
    import av

    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(channel)[None], "fltp", "mono")
    frame.sample_rate = rate
    return list(resampler.resample(frame))
