"""Clips whose frames are chosen by time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from mmcore.compat.torchcodec._frame import FrameBatch
from mmcore.compat.torchcodec.decoders import VideoDecoder

from ._common import _POLICY_FUNCTIONS, Policy, as_clips, check_common, filled

__all__ = ["clips_at_random_timestamps", "clips_at_regular_timestamps"]


def clips_at_random_timestamps(
    decoder: VideoDecoder,
    *,
    num_clips: int = 1,
    num_frames_per_clip: int = 1,
    seconds_between_frames: float | None = None,
    sampling_range_start: float | None = None,
    sampling_range_end: float | None = None,
    policy: Policy = "repeat_last",
) -> FrameBatch:
    """Clips that start at random times, drawn by torch's global generator.

    Parameters
    ----------
    decoder : VideoDecoder
    num_clips, num_frames_per_clip : int
    seconds_between_frames : float, optional
        From the time of one frame of a clip to that of the next; by default the mean length of a frame.
    sampling_range_start, sampling_range_end : float, optional
        Clips start at a time of [start, end), in seconds. By default the video's start, and such that no clip
        reaches beyond the video's end.
    policy : {"repeat_last", "wrap", "error"}
        What stands for frames beyond the video's end: the clip's last frame, the clip from its beginning, or
        ValueError.

    Returns
    -------
    FrameBatch
        data (num_clips, num_frames_per_clip, ...), times (num_clips, num_frames_per_clip).

    Raises
    ------
    ValueError
    """
    check_common(decoder, num_frames_per_clip, policy)
    if num_clips <= 0:
        raise ValueError(f"num_clips ({num_clips}) must be > 0")
    step = _seconds_between_frames(decoder, seconds_between_frames)
    start, end = _sampling_range(decoder, num_frames_per_clip, step, sampling_range_start, sampling_range_end)
    starts = torch.rand(num_clips, dtype=torch.float64, device="cpu") * (end - start) + start
    return _clips(decoder, starts.tolist(), num_frames_per_clip, step, policy)


def clips_at_regular_timestamps(
    decoder: VideoDecoder,
    *,
    seconds_between_clip_starts: float,
    num_frames_per_clip: int = 1,
    seconds_between_frames: float | None = None,
    sampling_range_start: float | None = None,
    sampling_range_end: float | None = None,
    policy: Policy = "repeat_last",
) -> FrameBatch:
    """Clips that start at evenly spaced times.

    Parameters
    ----------
    seconds_between_clip_starts : float
        From one clip's start to the next one's; the number of clips follows from it.
    decoder, num_frames_per_clip, seconds_between_frames, sampling_range_start, sampling_range_end, policy
        As for :func:`clips_at_random_timestamps`.

    Returns
    -------
    FrameBatch
        As :func:`clips_at_random_timestamps`.

    Raises
    ------
    ValueError
    """
    check_common(decoder, num_frames_per_clip, policy)
    if seconds_between_clip_starts <= 0:
        raise ValueError(f"seconds_between_clip_starts ({seconds_between_clip_starts}) must be > 0")
    step = _seconds_between_frames(decoder, seconds_between_frames)
    start, end = _sampling_range(decoder, num_frames_per_clip, step, sampling_range_start, sampling_range_end)
    starts = torch.arange(start, end, seconds_between_clip_starts, dtype=torch.float64, device="cpu")
    starts = starts[starts < end]  # by rounding, arange may reach its end
    return _clips(decoder, starts.tolist(), num_frames_per_clip, step, policy)


def _clips(decoder: Any, starts: list[float], per_clip: int, step: float, policy: str) -> FrameBatch:
    times = _build_all_clips_timestamps(
        clip_start_seconds=starts,
        num_frames_per_clip=per_clip,
        seconds_between_frames=step,
        end_stream_seconds=decoder.metadata.end_stream_seconds,
        policy_fun=_POLICY_FUNCTIONS[policy],
    )
    return as_clips(decoder.get_frames_played_at(times), len(starts), per_clip)


def _build_all_clips_timestamps(
    *,
    clip_start_seconds: Iterable[float],
    num_frames_per_clip: int,
    seconds_between_frames: float,
    end_stream_seconds: float,
    policy_fun: Callable[[list[Any], int], list[Any]],
) -> list[float]:
    """The times of all clips' frames, clip after clip."""
    times: list[float] = []
    for first in map(float, clip_start_seconds):
        wanted = (first + i * seconds_between_frames for i in range(num_frames_per_clip))
        inside = [time for time in wanted if time < end_stream_seconds]
        times += filled(inside, num_frames_per_clip, policy_fun)
    return times


def _seconds_between_frames(decoder: Any, seconds: float | None) -> float:
    if decoder.metadata.average_fps is None:
        raise ValueError("Could not infer average fps from video metadata; use a sampler by index instead.")
    if decoder.metadata.end_stream_seconds is None:
        raise ValueError("Could not infer stream end from video metadata; use a sampler by index instead.")
    if seconds is None:
        return float(1 / decoder.metadata.average_fps)
    if seconds <= 0:
        raise ValueError(f"seconds_between_frames ({seconds}) must be > 0")
    return seconds


def _sampling_range(
    decoder: Any, per_clip: int, step: float, start: float | None, end: float | None
) -> tuple[float, float]:
    begin_stream, end_stream = decoder.metadata.begin_stream_seconds, decoder.metadata.end_stream_seconds
    if start is None:
        start = begin_stream
    elif start < begin_stream:
        raise ValueError(f"sampling_range_start ({start}) must be at least {begin_stream}")
    elif start >= end_stream:
        raise ValueError(f"sampling_range_start ({start}) must be smaller than {end_stream}")
    if end is None:
        end = (
            end_stream - (per_clip - 1) * step
        )  # the last frame of a clip that starts before is in the video
    elif end <= begin_stream:
        raise ValueError(f"sampling_range_end ({end}) must be at least {begin_stream}")
    if start >= end:
        raise ValueError(f"sampling_range_start ({start}) must be smaller than sampling_range_end ({end})")
    return start, min(end, end_stream)
