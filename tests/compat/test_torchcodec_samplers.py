"""mmcore.compat.torchcodec.samplers by themselves: what they give and which errors they raise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from media import number_of, numbers_of

from mmcore.compat.torchcodec import FrameBatch, samplers
from mmcore.compat.torchcodec.decoders import VideoDecoder


def _starts(clips: FrameBatch) -> list[int]:
    return [number_of(frame) for frame in clips.data[:, 0]]


def test_random_clips(decoder: VideoDecoder) -> None:
    torch.manual_seed(5)
    clips = samplers.clips_at_random_indices(
        decoder, num_clips=6, num_frames_per_clip=3, num_indices_between_frames=4
    )
    torch.manual_seed(5)
    starts = torch.randint(0, 40 - 8, (6,)).tolist()
    assert clips.data.shape == (6, 3, 3, 96, 128)
    assert [numbers_of(clip.data) for clip in clips] == [[s, s + 4, s + 8] for s in starts]
    torch.manual_seed(5)
    clips = samplers.clips_at_random_timestamps(decoder, num_clips=6, num_frames_per_clip=2)
    torch.manual_seed(5)
    times = torch.rand(6, dtype=torch.float64) * (1.6 - 0.04)
    assert [numbers_of(clip.data) for clip in clips] == [[int(t / 0.04), int(t / 0.04) + 1] for t in times]
    assert clips.pts_seconds.shape == (6, 2)


def test_regular_clips(decoder: VideoDecoder) -> None:
    clips = samplers.clips_at_regular_indices(decoder, num_clips=4, num_frames_per_clip=2)
    assert [numbers_of(clip.data) for clip in clips] == [[0, 1], [12, 13], [25, 26], [38, 39]]
    many = samplers.clips_at_regular_indices(decoder, num_clips=9, sampling_range_end=3)
    assert _starts(many) == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    clips = samplers.clips_at_regular_timestamps(
        decoder, seconds_between_clip_starts=0.5, num_frames_per_clip=2, seconds_between_frames=0.1
    )
    assert [numbers_of(clip.data) for clip in clips] == [[0, 2], [12, 15], [25, 27]]


@pytest.mark.parametrize(
    ("policy", "numbers"), [("repeat_last", [36, 38, 38, 38, 38]), ("wrap", [36, 38, 36, 38, 36])]
)
def test_clips_beyond_the_end(policy: Any, numbers: list[int], decoder: VideoDecoder) -> None:
    by_index = samplers.clips_at_regular_indices(
        decoder,
        num_frames_per_clip=5,
        num_indices_between_frames=2,
        sampling_range_start=-4,
        sampling_range_end=1000,
        policy=policy,
    )
    assert numbers_of(by_index.data[0]) == numbers
    by_time = samplers.clips_at_regular_timestamps(
        decoder,
        seconds_between_clip_starts=1,
        num_frames_per_clip=5,
        seconds_between_frames=0.08,
        sampling_range_start=1.45,
        sampling_range_end=1000,
        policy=policy,
    )
    assert numbers_of(by_time.data[0]) == numbers


_INDEX = (samplers.clips_at_random_indices, samplers.clips_at_regular_indices)
_TIME = (
    samplers.clips_at_random_timestamps,
    lambda d, **k: samplers.clips_at_regular_timestamps(d, **{"seconds_between_clip_starts": 1, **k}),
)


@pytest.mark.parametrize("sampler", [*_INDEX, *_TIME])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_frames_per_clip": 0}, r"num_frames_per_clip \(0\) must be strictly positive"),
        ({"policy": "BAD"}, r"Invalid policy \(BAD\)"),
        ({"sampling_range_start": 1000}, r"sampling_range_start \(1000\) must be smaller than"),
        (
            {"sampling_range_start": 1, "sampling_range_end": 1},
            r"sampling_range_start \(1\) must be smaller than sampling_range_end \(1",
        ),
        (
            {
                "sampling_range_start": 1,
                "num_frames_per_clip": 90,
                "sampling_range_end": 2,
                "policy": "error",
            },
            "beyond the number of frames",
        ),
    ],
)
def test_wrong_settings_of_samplers(
    sampler: Callable, settings: dict, message: str, decoder: VideoDecoder
) -> None:
    with pytest.raises(ValueError, match=message):
        sampler(decoder, **settings)


@pytest.mark.parametrize(
    ("sampler", "settings", "message"),
    [
        (_INDEX[0], {"num_clips": 0}, r"num_clips \(0\) must be > 0"),
        (_INDEX[1], {"num_indices_between_frames": 0}, "must be strictly positive"),
        (_INDEX[0], {"num_frames_per_clip": 9, "sampling_range_start": 39}, "We determined that"),
        (_TIME[0], {"num_clips": 0}, r"num_clips \(0\) must be > 0"),
        (_TIME[0], {"seconds_between_frames": 0}, "seconds_between_frames"),
        (_TIME[1], {"seconds_between_clip_starts": -1}, r"seconds_between_clip_starts \(-1\) must be > 0"),
        (_TIME[0], {"sampling_range_start": -1}, r"sampling_range_start \(-1\) must be at least 0"),
        (_TIME[1], {"sampling_range_end": -1}, r"sampling_range_end \(-1\) must be at least 0"),
    ],
)
def test_wrong_settings_of_one_sampler(
    sampler: Callable, settings: dict, message: str, decoder: VideoDecoder
) -> None:
    with pytest.raises(ValueError, match=message):
        sampler(decoder, **settings)


def test_samplers_need_metadata(decoder: VideoDecoder) -> None:
    for name in ("average_fps", "end_stream_seconds"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(decoder.metadata, name, None)
            with pytest.raises(ValueError, match="Could not infer"):
                samplers.clips_at_random_timestamps(decoder)
