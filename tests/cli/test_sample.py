"""The sample clip is what it says: counts, and flash, click and word at the same known instants."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from mmcore.sample import SampleClip, write_sample


def test_pictures(clip: SampleClip) -> None:
    with av.open(clip.path) as container:
        stream = container.streams.video[0]
        frames = [(f.pts * f.time_base, f.to_ndarray(format="gray")) for f in container.decode(stream)]
        context = stream.codec_context
        assert (context.name, context.colorspace, context.color_range) == ("h264", 1, 1)
    assert len(frames) == clip.num_frames == 60
    assert frames[0][1].shape == (clip.height, clip.width) == (96, 160)
    assert [t * clip.fps for t, _ in frames] == list(range(60))
    light = np.array([picture.mean() for _, picture in frames])
    assert [e.frame for e in clip.events] == [15, 45]
    assert np.flatnonzero(np.diff(light) > 30).tolist() == [e.frame - 1 for e in clip.events]
    # it moves between any two frames
    assert min(np.abs(a.astype(int) - b).mean() for (_, a), (_, b) in pairwise(frames)) > 0.1


def test_sound(clip: SampleClip) -> None:
    with av.open(clip.path) as container:
        frames = list(container.decode(audio=0))
    assert frames[0].pts == 0
    assert frames[0].sample_rate == clip.sample_rate
    sound = np.concatenate([f.to_ndarray() for f in frames], axis=1)
    assert sound.shape[0] == 2
    assert 0 <= sound.shape[1] - clip.duration_seconds * clip.sample_rate < 2048
    assert 0.2 < np.abs(sound).max() < 1
    jump = np.abs(np.diff(sound.sum(axis=0)))
    for event in clip.events:
        first = event.audio_sample - 4800
        onset = first + int(np.argmax(jump[first : first + 9600] > 0.1))
        assert abs(onset - event.audio_sample) < 0.002 * clip.sample_rate


def test_words(clip: SampleClip) -> None:
    with av.open(clip.path) as container:
        stream = container.streams.subtitles[0]
        packets = [p for p in container.demux(stream) if p.size > 2]
        words = [(float(p.pts * p.time_base), bytes(p)[2:].decode()) for p in packets]
    assert words == [(e.seconds, e.word) for e in clip.events] == [(0.5, "one"), (1.5, "two")]


def test_same_bytes_each_time(clip: SampleClip, tmp_path: Path) -> None:
    again = write_sample(tmp_path / "again.mp4", seconds=2, width=160, height=96)
    assert again.events == clip.events
    digests = {hashlib.md5(Path(c.path).read_bytes()).digest() for c in (clip, again)}
    assert len(digests) == 1


def test_other_sizes_and_rates(tmp_path: Path) -> None:
    clip = write_sample(tmp_path / "odd.mp4", seconds=0.75, width=64, height=130, fps=24, sample_rate=44100)
    assert (clip.num_frames, clip.events[0].frame, clip.events[0].audio_sample) == (18, 12, 22050)
    with av.open(clip.path) as container:
        assert sum(1 for _ in container.decode(video=0)) == 18


def test_without_x264(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    clip = write_sample(tmp_path / "plain.mp4", seconds=0.5, width=64, height=64)
    with av.open(clip.path) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
        assert sum(1 for _ in container.decode(video=0)) == 15


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("seconds", 0),
        ("seconds", float("nan")),
        ("width", 63),
        ("height", 0),
        ("fps", 15),
        ("sample_rate", 0),
    ],
)
def test_bad_arguments(argument: str, value: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=argument):
        write_sample(tmp_path / "x.mp4", **{argument: value})
    assert not (tmp_path / "x.mp4").exists()


def test_unwritable(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        write_sample(tmp_path / "missing" / "x.mp4", seconds=0.5, width=64, height=64)
