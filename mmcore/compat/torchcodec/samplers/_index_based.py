"""Clips whose frames are chosen by number."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from mmcore.compat.torchcodec._frame import FrameBatch
from mmcore.compat.torchcodec.decoders import VideoDecoder

from ._common import _POLICY_FUNCTIONS, Policy, as_clips, check_common, filled

__all__ = ["clips_at_random_indices", "clips_at_regular_indices"]


def clips_at_random_indices(
    decoder: VideoDecoder,
    *,
    num_clips: int = 1,
    num_frames_per_clip: int = 1,
    num_indices_between_frames: int = 1,
    sampling_range_start: int = 0,
    sampling_range_end: int | None = None,
    policy: Policy = "repeat_last",
) -> FrameBatch:
    """Clips that start at random frames, drawn by torch's global generator.

    Parameters
    ----------
    decoder : VideoDecoder
    num_clips, num_frames_per_clip : int
    num_indices_between_frames : int
        Step from one frame of a clip to the next.
    sampling_range_start, sampling_range_end : int, optional
        Clips start at a frame of [start, end); negative numbers count from the video's end. By default such
        that no clip reaches beyond the last frame, as far as that is possible.
    policy : {"repeat_last", "wrap", "error"}
        What stands for frames beyond the last one: the clip's last frame, the clip from its beginning, or
        ValueError.

    Returns
    -------
    FrameBatch
        data (num_clips, num_frames_per_clip, ...), times (num_clips, num_frames_per_clip).

    Raises
    ------
    ValueError
    """
    start, end = _sampling_range(
        decoder,
        num_clips,
        num_frames_per_clip,
        num_indices_between_frames,
        sampling_range_start,
        sampling_range_end,
        policy,
    )
    starts = torch.randint(start, end, (num_clips,), device="cpu").tolist()
    return _clips(decoder, starts, num_frames_per_clip, num_indices_between_frames, policy)


def clips_at_regular_indices(
    decoder: VideoDecoder,
    *,
    num_clips: int = 1,
    num_frames_per_clip: int = 1,
    num_indices_between_frames: int = 1,
    sampling_range_start: int = 0,
    sampling_range_end: int | None = None,
    policy: Policy = "repeat_last",
) -> FrameBatch:
    """Clips that start at evenly spaced frames; parameters and result as :func:`clips_at_random_indices`.

    More clips than frames in the range start at the same frames.
    """
    start, end = _sampling_range(
        decoder,
        num_clips,
        num_frames_per_clip,
        num_indices_between_frames,
        sampling_range_start,
        sampling_range_end,
        policy,
    )
    starts = torch.linspace(start, end - 1, num_clips, dtype=torch.int, device="cpu").tolist()
    return _clips(decoder, starts, num_frames_per_clip, num_indices_between_frames, policy)


def _clips(decoder: Any, starts: list[int], per_clip: int, step: int, policy: str) -> FrameBatch:
    numbers = _build_all_clips_indices(
        clip_start_indices=starts,
        num_frames_per_clip=per_clip,
        num_indices_between_frames=step,
        num_frames_in_video=len(decoder),
        policy_fun=_POLICY_FUNCTIONS[policy],
    )
    return as_clips(decoder.get_frames_at(numbers), len(starts), per_clip)


def _build_all_clips_indices(
    *,
    clip_start_indices: Iterable[int],
    num_frames_per_clip: int,
    num_indices_between_frames: int,
    num_frames_in_video: int,
    policy_fun: Callable[[list[Any], int], list[Any]],
) -> list[int]:
    """The numbers of all clips' frames, clip after clip."""
    numbers: list[int] = []
    for first in map(int, clip_start_indices):
        span = num_indices_between_frames * (num_frames_per_clip - 1) + 1
        inside = range(first, min(first + span, num_frames_in_video), num_indices_between_frames)
        numbers += filled(list(inside), num_frames_per_clip, policy_fun)
    return numbers


def _sampling_range(
    decoder: Any, num_clips: int, per_clip: int, step: int, start: int, end: int | None, policy: str
) -> tuple[int, int]:
    check_common(decoder, per_clip, policy)
    if num_clips <= 0:
        raise ValueError(f"num_clips ({num_clips}) must be > 0")
    if step <= 0:
        raise ValueError(f"num_indices_between_frames ({step}) must be strictly positive")
    count = len(decoder)
    start += count if start < 0 else 0
    if start >= count:
        raise ValueError(
            f"sampling_range_start ({start}) must be smaller than the number of frames ({count})."
        )
    if end is None:
        end = max(count - step * (per_clip - 1), 1)
        if start >= end:
            raise ValueError(
                f"We determined that sampling_range_end should be {end}, for clips to end inside the video,"
                f" but sampling_range_start ({start}) is not smaller."
            )
        return start, end
    end = min(end + count if end < 0 else end, count)
    if start >= end:
        raise ValueError(f"sampling_range_start ({start}) must be smaller than sampling_range_end ({end}).")
    return start, end
