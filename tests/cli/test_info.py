"""``mmcore info``: its JSON says what the file holds, its tables show it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mmcore.sample import SampleClip


@pytest.fixture
def facts(run: Any, clip: SampleClip) -> dict[str, Any]:
    result = run("info", clip.path, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def test_container(facts: dict[str, Any], clip: SampleClip) -> None:
    assert list(facts) == ["path", "size_bytes", "container", "video", "audio", "subtitles", "other"]
    assert facts["path"] == clip.path
    assert "mp4" in facts["container"]["format"]
    assert facts["container"]["duration_seconds"] == pytest.approx(2.0, abs=0.05)
    assert [len(facts[kind]) for kind in ("video", "audio", "subtitles", "other")] == [1, 1, 1, 0]


def test_video(facts: dict[str, Any]) -> None:
    (video,) = facts["video"]
    expected = {
        "stream_index": 0,
        "codec": "h264",
        "width": 160,
        "height": 96,
        "rotation": 0,
        "pixel_format": "yuv420p",
        "color": {"matrix": "bt709", "range": "limited", "primaries": "bt709", "transfer": "bt709"},
        "begin_stream_seconds": 0.0,
        "end_stream_seconds": 2.0,
        "duration_seconds": 2.0,
        "num_frames": 60,
        "average_fps": 30.0,
        "variable_frame_rate": False,
        "shortest_frame_seconds": 1 / 30,
        "longest_frame_seconds": 1 / 30,
    }
    assert {name: video[name] for name in expected} == expected
    assert 1 <= video["num_keyframes"] <= 4
    assert video["longest_gop_frames"] * video["num_keyframes"] >= 60
    assert "error" not in video


def test_audio_and_subtitles(facts: dict[str, Any]) -> None:
    (audio,), (text,) = facts["audio"], facts["subtitles"]
    assert (audio["codec"], audio["sample_rate"], audio["channels"], audio["layout"]) == (
        "aac",
        48000,
        2,
        "stereo",
    )
    assert audio["duration_seconds"] == pytest.approx(2.0, abs=0.05)
    assert (text["stream_index"], text["codec"]) == (2, "mov_text")


def test_tables(run: Any, clip: SampleClip) -> None:
    result = run("info", clip.path)
    assert result.exit_code == 0, result.output
    for text in (
        "h264",
        "160 x 96",
        "30.000 fps, constant",
        "bt709",
        "limited",
        "48000 Hz",
        "mov_text",
    ):
        assert text in result.output
    assert "\x1b" not in result.output
