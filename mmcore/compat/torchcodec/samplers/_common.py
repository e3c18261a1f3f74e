"""What samplers by index and by time have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from mmcore.compat.torchcodec._frame import FrameBatch

__all__ = ["Policy", "as_clips", "check_common", "filled"]

Policy: TypeAlias = Literal["repeat_last", "wrap", "error"]


def _repeat_last(places: list[Any], count: int) -> list[Any]:
    return places + places[-1:] * (count - len(places))


def _wrap(places: list[Any], count: int) -> list[Any]:
    return [places[i % len(places)] for i in range(count)]


def _error(places: list[Any], count: int) -> list[Any]:
    raise ValueError(
        "policy: 'error' was chosen, and a clip reaches beyond the number of frames in the video; leave"
        " sampling_range_end at its default, or choose 'repeat_last' or 'wrap'"
    )


_POLICY_FUNCTIONS: dict[str, Callable[[list[Any], int], list[Any]]] = {
    "repeat_last": _repeat_last,
    "wrap": _wrap,
    "error": _error,
}


def filled(places: list[Any], count: int, policy: Callable[[list[Any], int], list[Any]]) -> list[Any]:
    """The places of a clip's frames, made up to ``count`` by the policy where the video ends before."""
    return places if len(places) == count else policy(places, count)


def check_common(decoder: Any, num_frames_per_clip: int, policy: str) -> None:
    """Raise ValueError for arguments of any sampler that are wrong."""
    if len(decoder) < 1:
        raise ValueError(f"Decoder must have at least one frame, found {len(decoder)} frames.")
    if num_frames_per_clip <= 0:
        raise ValueError(f"num_frames_per_clip ({num_frames_per_clip}) must be strictly positive")
    if policy not in _POLICY_FUNCTIONS:
        raise ValueError(f"Invalid policy ({policy}). Supported values are {', '.join(_POLICY_FUNCTIONS)}.")


def as_clips(frames: Any, num_clips: int, num_frames_per_clip: int) -> FrameBatch:
    """A batch of all clips' frames with a dimension for the clips."""
    shape = (num_clips, num_frames_per_clip)
    return FrameBatch(
        frames.data.view(*shape, *frames.data.shape[1:]),
        frames.pts_seconds.view(shape),
        frames.duration_seconds.view(shape),
    )
