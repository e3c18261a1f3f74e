"""Samplers: which frames of a video to read, chosen from the frames' times without decoding any.

A sampler is a small, frozen, picklable object. Called with a decoder it gives frame numbers for
``get_frames_at``::

    sampler = mmcore.samplers.uniform(8)
    batch = decoder.get_frames_at(sampler(decoder))

Random samplers draw from their seed and from the ``key`` and ``epoch`` of the call alone: neither Python's
hash nor the state of any generator plays a part, so a video's frames do not depend on which process reads it,
or when.
"""

from __future__ import annotations

import math
import operator
import random
from abc import ABC, abstractmethod
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np
from torch import Tensor

__all__ = ["Sampler", "at_fps", "clips", "every", "keyframes", "random_clips", "seeded_random", "uniform"]

_MODES = ("ends", "centers", "starts")
_SHORTS = ("repeat", "all", "error")
_POLICIES = ("repeat_last", "wrap", "error")
# As in the decoder's own grids of times: a time that lies before a frame by this part of one counts as in it.
_GRID_TOLERANCE = 1e-3
_GRID_LIMIT = 1 << 22


class _Times(Protocol):
    @property
    def pts_seconds(self) -> Tensor: ...
    @property
    def duration_seconds(self) -> Tensor: ...
    @property
    def key_frames(self) -> Tensor: ...


class Frames(Protocol):
    """What a sampler asks of a decoder: the number of frames, and their times as ``FrameTimes`` has them."""

    def __len__(self) -> int: ...
    @property
    def frame_times(self) -> _Times: ...


class Sampler(ABC):
    """Chooses frames of a video; made by the functions of this module, or a subclass of your own."""

    def __call__(self, decoder: Frames, *, key: str | int = "", epoch: int = 0) -> list[int]:
        """Numbers of the chosen frames, in the order in which they are to be read.

        Parameters
        ----------
        decoder : VideoDecoder
            Or anything with ``len`` and ``frame_times``.
        key : str or int
            Stands for the video in random draws: videos with different keys get different draws. Datasets
            and :func:`mmcore.decode_many` pass the video's position among their sources.
        epoch : int
            Changes random draws from one pass over the data to the next.

        Raises
        ------
        ValueError
            If there are no frames, or fewer than the sampler accepts.
        """
        if len(decoder) == 0:
            raise ValueError("decoder: there are no frames to choose from")
        return self.choose(decoder, key, epoch)

    @abstractmethod
    def choose(self, decoder: Frames, key: str | int, epoch: int) -> list[int]:
        """What calling gives, for a decoder with one frame or more."""


def seeded_random(*parts: str | int) -> random.Random:
    """Generator whose ``random()`` depends on ``parts`` alone: the same on every machine and version."""
    text = "/".join(str(part) for part in parts).encode("utf-8", "surrogateescape")
    return random.Random(int.from_bytes(blake2b(text, digest_size=8).digest(), "big"))


# --- spread over the whole video


@dataclass(frozen=True)
class Uniform(Sampler):
    """What :func:`uniform` makes."""

    num_frames: int
    mode: str = "ends"
    short: str = "repeat"

    def choose(self, decoder: Frames, key: str | int, epoch: int) -> list[int]:
        count, wanted = len(decoder), self.num_frames
        if count < wanted:
            if self.short == "error":
                raise ValueError(f"decoder: has {count} frames, but {self} needs {wanted}")
            if self.short == "all":
                return list(range(count))
        return _spread(count, wanted, self.mode)


def _spread(count: int, wanted: int, mode: str) -> list[int]:
    if mode == "ends":
        return [int(i) for i in np.linspace(0, count - 1, wanted).round()]
    shift = count if mode == "centers" else 0
    return [(2 * i * count + shift) // (2 * wanted) for i in range(wanted)]


def uniform(n: int, *, mode: str = "ends", short: str = "repeat") -> Sampler:
    """``n`` frames spread evenly over the video, by their numbers.

    Parameters
    ----------
    n : int
        1 or more.
    mode : {"ends", "centers", "starts"}
        Which frames of a video of N; i runs over 0, ..., n-1:

        "ends"
            ``round(i * (N-1) / (n-1))``, a half to the even number: first and last frame included; with n=1,
            frame 0. This is ``numpy.linspace(0, N-1, n).round()``, as Qwen3-VL and qwen-vl-utils sample.
        "centers"
            ``floor((i + 1/2) * N / n)``: the middles of n equal segments, as InternVL samples.
        "starts"
            ``floor(i * N / n)``: the beginnings of n equal segments, as Qwen2-VL samples.
    short : {"repeat", "all", "error"}
        For a video with N < n frames: the formula, which repeats frames; every frame once, so that fewer than
        n come; or a ValueError.

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong type or value.

    Examples
    --------
    >>> import mmcore
    >>> video = range(100)  # anything with a length will do
    >>> [mmcore.samplers.uniform(4, mode=mode)(video) for mode in ("ends", "centers", "starts")]
    [[0, 33, 66, 99], [12, 37, 62, 87], [0, 25, 50, 75]]
    """
    return Uniform(_count("n", n), _one_of("mode", mode, _MODES), _one_of("short", short, _SHORTS))


@dataclass(frozen=True)
class Every(Sampler):
    """What :func:`every` makes."""

    step: int

    def choose(self, decoder: Frames, key: str | int, epoch: int) -> list[int]:
        return list(range(0, len(decoder), self.step))


def every(k: int) -> Sampler:
    """Frames 0, k, 2k, ...: by number, whatever their times.

    Raises
    ------
    TypeError, ValueError
        Unless ``k`` is an int of 1 or more.
    """
    return Every(_count("k", k))


@dataclass(frozen=True)
class KeyFrames(Sampler):
    """What :func:`keyframes` makes."""

    max_frames: int | None = None

    def choose(self, decoder: Frames, key: str | int, epoch: int) -> list[int]:
        frames = [int(i) for i in decoder.frame_times.key_frames]
        if self.max_frames is None or len(frames) <= self.max_frames:
            return frames
        return [frames[i] for i in _spread(len(frames), self.max_frames, "ends")]


def keyframes(max_frames: int | None = None) -> Sampler:
    """The frames at which decoding can start: the cheapest ones to read, each decoded alone.

    Parameters
    ----------
    max_frames : int, optional
        Of more key frames, take this many, spread evenly as ``uniform`` does with ``mode="ends"``.

    Raises
    ------
    TypeError, ValueError
        Unless ``max_frames`` is None or an int of 1 or more.
    """
    return KeyFrames(None if max_frames is None else _count("max_frames", max_frames))


@dataclass(frozen=True)
class AtFps(Sampler):
    """What :func:`at_fps` makes."""

    fps: float
    min_frames: int | None = None
    max_frames: int | None = None

    def choose(self, decoder: Frames, key: str | int, epoch: int) -> list[int]:
        timeline = _Timeline(decoder)
        rate = self.fps
        count = timeline.steps(rate)
        allowed = max(count, self.min_frames or 1)
        allowed = allowed if self.max_frames is None else min(allowed, self.max_frames)
        if allowed != count:
            count, rate = allowed, allowed / (timeline.end - timeline.begin)
        if count > _GRID_LIMIT:
            raise ValueError(f"fps: {self.fps} asks for {count:.4g} frames, more than {_GRID_LIMIT}")
        return timeline.grid(timeline.begin, rate, count)


def at_fps(f: float, *, min_frames: int | None = None, max_frames: int | None = None) -> Sampler:
    """The frames shown at the times 0, 1/f, 2/f, ... seconds after the first frame appears.

    Works in time, not in numbers, so it is right for variable frame rates too: a frame that is shown for long
    comes repeatedly, and so does every frame of a video with fewer than ``f`` per second. Without limits it
    gives ``decoder.find_frames_played_in_range(begin, end, fps=f)``.

    Parameters
    ----------
    f : float
        Frames per second, above 0.
    min_frames, max_frames : int, optional
        Where the number of times, ``ceil(duration * f)``, is outside these limits, the limit's number of
        times is spread evenly over the duration instead, as with ``f = limit / duration``.

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong type or value; when called, if there would be more than 2**22 frames.
    """
    least = None if min_frames is None else _count("min_frames", min_frames)
    most = None if max_frames is None else _count("max_frames", max_frames)
    if least is not None and most is not None and least > most:
        raise ValueError(f"min_frames, max_frames: expected min_frames <= max_frames, got {least} > {most}")
    return AtFps(_rate("f", f), least, most)


# --- clips


@dataclass(frozen=True)
class Clips(Sampler):
    """Clips that start at regular distances, or at random where ``seed`` is not None."""

    num_clips: int
    frames_per_clip: int
    step: int
    fps: float | None  # instead of step
    policy: str
    seed: int | None

    def choose(self, decoder: Frames, key: str | int, epoch: int) -> list[int]:
        positions = self._positions(key, epoch)
        if self.fps is None:
            found = self._by_number(len(decoder), positions)
        else:
            found = self._by_time(_Timeline(decoder), self.fps, positions)
        return [frame for clip in found for frame in self._whole(clip)]

    def _by_number(self, count: int, positions: list[float]) -> list[list[int]]:
        starts = max(count - self.step * (self.frames_per_clip - 1), 1)  # the frames that may come first
        clips = []
        for x in positions:
            first = round(x * (starts - 1)) if self.seed is None else int(x * starts)
            stop = min(first + self.step * self.frames_per_clip, count)
            clips.append(list(range(first, stop, self.step)))
        return clips

    def _by_time(self, timeline: _Timeline, fps: float, positions: list[float]) -> list[list[int]]:
        available = min(timeline.steps(fps), self.frames_per_clip)
        room = timeline.end - timeline.begin - (self.frames_per_clip - 1) / fps
        if self.seed is None:  # the last time of the last clip is to be the start of the last frame
            room -= timeline.last_duration
        room = max(room, 0.0)
        return [timeline.grid(timeline.begin + x * room, fps, available) for x in positions]

    def _positions(self, key: str | int, epoch: int) -> list[float]:
        """Where each clip starts, from 0 for the first possibility to 1 for the last."""
        if self.seed is None:
            return [0.5] if self.num_clips == 1 else [float(x) for x in np.linspace(0, 1, self.num_clips)]
        draw = seeded_random(self.seed, epoch, key).random
        return [draw() for _ in range(self.num_clips)]

    def _whole(self, frames: list[int]) -> list[int]:
        missing = self.frames_per_clip - len(frames)
        if missing and self.policy == "error":
            raise ValueError(f"decoder: the video is too short for {self}: a clip lacks {missing} frames")
        if self.policy == "wrap":
            return [frames[i % len(frames)] for i in range(self.frames_per_clip)]
        return frames + frames[-1:] * missing


def clips(
    num_clips: int,
    frames_per_clip: int,
    *,
    step: int | None = None,
    fps: float | None = None,
    policy: str = "repeat_last",
) -> Sampler:
    """Clips at regular distances: the first at the video's beginning, the last at its end; one alone midway.

    Parameters
    ----------
    num_clips, frames_per_clip : int
        1 or more. The result lists clip after clip: ``batch.data.unflatten(0, (num_clips, frames_per_clip))``
        separates them.
    step : int, optional
        Distance between a clip's frames in numbers; 1 by default.
    fps : float, optional
        Frames per second within a clip, in time, as :func:`at_fps` means it; instead of ``step``.
    policy : {"repeat_last", "wrap", "error"}
        For a video that is shorter than a clip, which then starts with the video: repeat the clip's last
        frame; begin again with its first one; or a ValueError.

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong type or value.
    """
    return _clips(num_clips, frames_per_clip, step, fps, policy, None)


def random_clips(
    num_clips: int,
    frames_per_clip: int,
    *,
    step: int | None = None,
    fps: float | None = None,
    seed: int = 0,
    policy: str = "repeat_last",
) -> Sampler:
    """Clips at random places, each place equally likely; clips may overlap.

    With ``step``, the first frame is drawn among those from which a whole clip fits; with ``fps``, the clip's
    start among the times from which its last time is still within the video.

    Parameters
    ----------
    num_clips, frames_per_clip, step, fps, policy
        As in :func:`clips`.
    seed : int
        Calls with the same seed, key and epoch give the same frames.

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong type or value.

    Examples
    --------
    >>> import mmcore
    >>> sampler = mmcore.samplers.random_clips(1, 4, step=10, seed=7)
    >>> sampler(range(300), key="a.mp4", epoch=0)
    [72, 82, 92, 102]
    >>> sampler(range(300), key="a.mp4", epoch=1)
    [36, 46, 56, 66]
    """
    return _clips(num_clips, frames_per_clip, step, fps, policy, _integer("seed", seed))


def _clips(
    num_clips: int, frames_per_clip: int, step: int | None, fps: float | None, policy: str, seed: int | None
) -> Sampler:
    if step is not None and fps is not None:
        raise ValueError(f"step, fps: expected one of them, got step={step!r} and fps={fps!r}")
    return Clips(
        _count("num_clips", num_clips),
        _count("frames_per_clip", frames_per_clip),
        _count("step", 1 if step is None else step),
        None if fps is None else _rate("fps", fps),
        _one_of("policy", policy, _POLICIES),
        seed,
    )


# --- time


class _Timeline:
    """Which frame is shown when."""

    def __init__(self, decoder: Frames) -> None:
        times = decoder.frame_times
        self._starts = np.asarray(times.pts_seconds, dtype=np.float64)
        self.last_duration = float(times.duration_seconds[-1])
        self.begin = float(self._starts[0])
        self.end = max(float(self._starts[-1]) + self.last_duration, self.begin + 1e-9)

    def steps(self, rate: float) -> int:
        """How many of the times begin, begin + 1/rate, ... lie before the end."""
        return max(math.ceil(min((self.end - self.begin) * rate, 2.0**53) - _GRID_TOLERANCE), 1)

    def grid(self, start: float, rate: float, count: int) -> list[int]:
        """The frames shown at start, start + 1/rate, ...: ``count`` times."""
        # The frames must not depend on the rounding of start + i/rate.
        slack = _GRID_TOLERANCE * min((self.end - self.begin) / len(self._starts), 1 / rate)
        times = start + np.arange(count) / rate + slack
        found = np.searchsorted(self._starts, times, side="right") - 1
        return [int(i) for i in np.clip(found, 0, len(self._starts) - 1)]


# --- arguments


def _integer(name: str, value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{name}: expected an int, got {value!r}")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an int, got {value!r}") from None


def _count(name: str, value: Any) -> int:
    number = _integer(name, value)
    if number < 1:
        raise ValueError(f"{name}: expected 1 or more, got {number}")
    return number


def _rate(name: str, value: Any) -> float:
    try:
        number = float(value) if not isinstance(value, (str, bytes)) else None
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None:
        raise TypeError(f"{name}: expected a number, got {value!r}")
    if not (math.isfinite(number) and number >= 1e-9):  # the reciprocal of less may overflow
        raise ValueError(f"{name}: expected a positive number, got {value!r}")
    return number


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}, got {value!r}")
    return str(value)
