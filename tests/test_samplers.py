"""Samplers: which frames they choose, by formula and by time, and that random ones repeat exactly."""

from __future__ import annotations

import doctest
import math
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import FrozenInstanceError
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from media import write_video

import mmcore.samplers as samplers
from mmcore import VideoDecoder
from mmcore.samplers import Sampler, at_fps, clips, every, keyframes, random_clips, uniform


class Times:
    """Frames with given starts, in place of a decoder; as their own ``frame_times``."""

    def __init__(self, starts: Sequence[float], last: float, key_frames: Sequence[int] = (0,)) -> None:
        self.pts_seconds = torch.tensor(starts, dtype=torch.float64)
        ends = torch.tensor([*starts[1:], starts[-1] + last], dtype=torch.float64)
        self.duration_seconds = ends - self.pts_seconds
        self.key_frames = torch.tensor(key_frames, dtype=torch.int64)
        self.time_base = Fraction(1, 90000)

    @property
    def frame_times(self) -> Times:
        return self

    def __len__(self) -> int:
        return len(self.pts_seconds)


def constant(count: int, rate: float = 25.0, begin: float = 0.0) -> Times:
    # rounded once each, as a decoder's times are: begin + i / rate is not always the same number
    step = 1 / Fraction(rate).limit_denominator(1001)
    return Times([float(Fraction(begin) + i * step) for i in range(count)], 1 / rate)


VFR = Times([5.0, 5.01, 5.02, 6.0, 6.5, 9.0], 1.0)


# --- uniform, every, keyframes


@pytest.mark.parametrize("count", [1, 2, 3, 7, 10, 299, 300, 8999, 215_892])
@pytest.mark.parametrize("n", [1, 2, 3, 8, 32, 100])
def test_uniform_follows_its_formulas(count: int, n: int) -> None:
    video = range(count)  # a length is all that it needs
    assert uniform(n)(video) == np.linspace(0, count - 1, n).round().tolist()
    centers = [math.floor(Fraction(2 * i + 1, 2) * count / n) for i in range(n)]
    assert uniform(n, mode="centers")(video) == centers
    assert uniform(n, mode="starts")(video) == [math.floor(Fraction(i * count, n)) for i in range(n)]


def test_uniform_of_a_short_video() -> None:
    video = range(3)
    assert uniform(5)(video) == [0, 0, 1, 2, 2]
    assert uniform(5, mode="centers")(video) == [0, 0, 1, 2, 2]
    assert uniform(5, mode="starts")(video) == [0, 0, 1, 1, 2]
    assert uniform(5, short="all")(video) == [0, 1, 2]
    assert uniform(3, short="error")(video) == [0, 1, 2]
    with pytest.raises(ValueError, match=r"3 frames.*num_frames=5.*needs 5"):
        uniform(5, short="error")(video)


def test_every() -> None:
    assert every(4)(range(10)) == [0, 4, 8]
    assert every(1)(range(3)) == [0, 1, 2]
    assert every(100)(range(3)) == [0]


def test_keyframes(clip: Any) -> None:
    assert keyframes()(VideoDecoder(clip)) == [0, 12, 24, 36]
    assert keyframes(2)(VideoDecoder(clip)) == [0, 36]
    assert keyframes(9)(VideoDecoder(clip)) == [0, 12, 24, 36]
    assert keyframes()(Times([0.0, 1.0], 1.0, [])) == []


# --- in time


@pytest.mark.parametrize("rate", [0.3, 1, 2, 5, 7.3, 24, 25, 50])
@pytest.mark.parametrize("name", ["constant", "variable"])
def test_at_fps_is_the_decoders_grid(rate: float, name: str, clip: Any, cached_media: Callable) -> None:
    times = [7 * i * i // 3 + 20 * i for i in range(40)]
    path = clip if name == "constant" else cached_media("vfr.mp4", lambda p: write_video(p, times=times))
    decoder = VideoDecoder(path)
    m = decoder.metadata
    assert m.end_stream_seconds is not None
    expected, _ = decoder.find_frames_played_in_range(m.begin_stream_seconds, m.end_stream_seconds, fps=rate)
    assert at_fps(rate)(decoder) == expected


def test_at_fps_works_in_time_not_in_numbers() -> None:
    assert at_fps(1)(VFR) == [0, 3, 4, 4, 5]  # shown at 5, 6, 7, 8, 9 s
    assert at_fps(2)(VFR) == [0, 2, 3, 4, 4, 4, 4, 4, 5, 5]


def test_at_fps_limits() -> None:
    video = constant(100)  # 4 s
    assert at_fps(2)(video) == [0, 12, 25, 37, 50, 62, 75, 87]
    assert at_fps(2, min_frames=8, max_frames=8)(video) == at_fps(2)(video)
    assert at_fps(2, max_frames=4)(video) == [0, 25, 50, 75]
    assert at_fps(2, min_frames=16)(video) == at_fps(4)(video)
    assert at_fps(0.01)(video) == [0]
    assert at_fps(2, min_frames=3)(constant(1)) == [0, 0, 0]
    assert at_fps(1e12, max_frames=2)(video) == [0, 50]
    assert at_fps(5, min_frames=2)(Times([0.0], 0.0)) == [0, 0]  # a frame that is shown for no time
    with pytest.raises(ValueError, match=r"fps: .*more than"):
        at_fps(1e12)(video)


@pytest.mark.parametrize("begin", [0.0, 0.1, 1 / 3, 1e5])
@pytest.mark.parametrize("rate", [24.0, 25.0, 30000 / 1001, 60.0])
def test_at_fps_of_the_videos_own_rate_gives_each_frame_once(rate: float, begin: float) -> None:
    video = constant(500, rate, begin)
    assert at_fps(rate)(video) == list(range(500))
    assert at_fps(rate / 2)(video) == list(range(0, 500, 2))


# --- clips


def test_regular_clips() -> None:
    video = constant(100)
    assert clips(1, 4, step=5)(video) == [42, 47, 52, 57]
    assert clips(3, 2, step=10)(video) == [0, 10, 44, 54, 89, 99]
    assert clips(2, 3)(video) == [0, 1, 2, 97, 98, 99]
    assert clips(2, 3, fps=5)(video) == [0, 5, 10, 89, 94, 99]
    assert clips(1, 3, fps=1)(VFR) == [3, 4, 4]  # at 6, 7, 8 s
    assert clips(5, 1)(range(2)) == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("policy", ["repeat_last", "wrap", "error"])
@pytest.mark.parametrize("spacing", [{"step": 2}, {"fps": 12.5}])
def test_a_clip_longer_than_the_video(policy: str, spacing: dict[str, Any]) -> None:
    video = constant(5)
    expected = {"repeat_last": [0, 2, 4, 4, 4], "wrap": [0, 2, 4, 0, 2]}
    for make in (clips, random_clips):
        sampler = make(2, 5, policy=policy, **spacing)
        if policy == "error":
            with pytest.raises(ValueError, match=r"too short.*lacks 2 frames"):
                sampler(video)
        else:
            assert sampler(video) == 2 * expected[policy]
        assert make(1, 3, policy=policy, **spacing)(video) == [0, 2, 4]


def test_random_clips_are_whole_and_anywhere() -> None:
    sampler = random_clips(400, 3, step=4, policy="error")
    starts: Counter[int] = Counter()
    found = sampler(range(20))
    for first, second, third in zip(found[::3], found[1::3], found[2::3], strict=True):
        assert (second - first, third - second) == (4, 4)
        starts[first] += 1
    assert sorted(starts) == list(range(12))  # 0..11 of 20 frames: 9 are the span
    assert max(starts.values()) < 70  # 33 expected


@pytest.mark.parametrize("rate", [3.0, 25.0, 40.0])
def test_random_clips_in_time_are_whole_and_anywhere(rate: float) -> None:
    video = constant(20, begin=3.0)  # 0.8 s
    count = math.ceil(0.8 * rate)
    found = random_clips(500, count, fps=rate, policy="error")(video)
    assert {0, 19} <= set(found)
    for i in range(0, len(found), count):
        steps = np.diff(found[i : i + count])
        assert ((25 / rate - 1 < steps) & (steps < 25 / rate + 1)).all()


def test_single_random_frames_come_in_proportion_to_their_duration() -> None:
    counts = Counter(random_clips(3000, 1, fps=1)(VFR))
    assert counts[4] / 3000 == pytest.approx(0.5, abs=0.05)  # 2.5 of 5 s
    assert counts[1] < 30


def test_draws_depend_on_seed_key_and_epoch_alone() -> None:
    video = constant(1000)
    sampler = random_clips(2, 4, step=3, seed=5)
    first = sampler(video, key="a.mp4", epoch=2)
    assert sampler(video, key="b.mp4", epoch=2) != first
    assert sampler(video, key="a.mp4", epoch=3) != first
    assert random_clips(2, 4, step=3, seed=6)(video, key="a.mp4", epoch=2) != first
    torch.manual_seed(0), np.random.seed(0)
    assert pickle.loads(pickle.dumps(sampler))(video, key="a.mp4", epoch=2) == first
    assert sampler(video, key=17, epoch=2) == sampler(video, key="17", epoch=2)
    assert sampler(video, key="\udcff.mp4") != sampler(video)  # a file name that is no UTF-8


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_draws_are_the_same_in_every_process_and_version(hash_seed: str) -> None:
    code = (
        "from mmcore.samplers import random_clips;"
        "print(random_clips(3, 1, seed=5)(range(100_000), key='a.mp4', epoch=2))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": hash_seed, "PYTHONSAFEPATH": "1"},
    )
    assert run.stdout == "[44636, 39255, 21806]\n"


# --- all of them

ALL = [
    uniform(3),
    every(2),
    keyframes(2),
    at_fps(2, max_frames=5),
    clips(1, 2),
    clips(1, 2, fps=2),
    random_clips(2, 2),
    random_clips(2, 2, fps=2, policy="wrap"),
]


@pytest.mark.parametrize("sampler", ALL, ids=str)
def test_samplers_are_values(sampler: Sampler, clip: Any) -> None:
    copy = pickle.loads(pickle.dumps(sampler))
    assert copy == sampler
    assert hash(copy) == hash(sampler)
    with pytest.raises(FrozenInstanceError):
        sampler.num_frames = 3  # type: ignore[attr-defined]
    decoder = VideoDecoder(clip)
    chosen = sampler(decoder)
    assert chosen
    assert all(type(i) is int and 0 <= i < 40 for i in chosen)
    assert len(decoder.get_frames_at(chosen)) == len(chosen)
    with pytest.raises(ValueError, match="no frames"):
        sampler(())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "name", "call"),
    [
        (ValueError, "n", lambda: uniform(0)),
        (TypeError, "n", lambda: uniform(2.0)),  # type: ignore[arg-type]
        (TypeError, "n", lambda: uniform(True)),
        (ValueError, "mode", lambda: uniform(2, mode="middle")),
        (ValueError, "short", lambda: uniform(2, short="pad")),
        (ValueError, "k", lambda: every(-1)),
        (ValueError, "max_frames", lambda: keyframes(0)),
        (ValueError, "f", lambda: at_fps(0)),
        (ValueError, "f", lambda: at_fps(math.nan)),
        (ValueError, "f", lambda: at_fps(1e-320)),
        (TypeError, "f", lambda: at_fps("2")),  # type: ignore[arg-type]
        (ValueError, "min_frames, max_frames", lambda: at_fps(1, min_frames=5, max_frames=4)),
        (ValueError, "num_clips", lambda: clips(0, 1)),
        (TypeError, "frames_per_clip", lambda: clips(1, None)),  # type: ignore[arg-type]
        (ValueError, "step", lambda: clips(1, 1, step=0)),
        (ValueError, "step, fps", lambda: random_clips(1, 1, step=1, fps=1)),
        (ValueError, "policy", lambda: random_clips(1, 1, policy="loop")),
        (TypeError, "seed", lambda: random_clips(1, 1, seed=0.5)),  # type: ignore[arg-type]
    ],
)
def test_wrong_arguments_are_named(error: type[Exception], name: str, call: Callable[[], Any]) -> None:
    with pytest.raises(error, match=f"^{name}: "):
        call()


def test_doctests() -> None:
    failed, tried = doctest.testmod(samplers)
    assert tried
    assert not failed
