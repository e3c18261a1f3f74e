"""``mmcore info``: its JSON says what the file holds, its tables show it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from media import write_video
from text_media import write_subtitled

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
    assert audio["begin_stream_seconds"] == 0
    assert audio["end_stream_seconds"] == audio["duration_seconds"] == pytest.approx(2.0, abs=0.05)
    expected = {
        "stream_index": 2,
        "codec": "mov_text",
        "path": None,
        "num_segments": 2,
        "begin_stream_seconds": 0.5,
        "end_stream_seconds": 2.0,
        "damage": None,
    }
    assert {name: text[name] for name in expected} == expected
    assert "error" not in text


def test_languages_marks_and_files_beside(run: Any, tmp_path: Path) -> None:
    streams = [
        ("subrip", [(0.2, 0.3, b"one")], {"language": "eng", "default": True}),
        ("dvdsub", [(0.2, 0.3, b"\0\4\0\4")], {"language": "[b]", "forced": True}),
    ]
    path = write_subtitled(tmp_path / "film.mkv", streams)
    (tmp_path / "film.de.srt").write_text("1\n00:00:01,000 --> 00:00:02,500\neins\n")
    (tmp_path / "film.fr.srt").write_text("not subtitles")
    facts = json.loads(run("info", path, "--json").output)
    assert [s["stream_index"] for s in facts["subtitles"]] == [1, 2, None, None]
    assert [s["language"] for s in facts["subtitles"]] == ["eng", "[b]", "de", None]
    assert "pictures (dvd_subtitle)" in facts["subtitles"][1]["error"]
    assert facts["subtitles"][2]["path"] == str(tmp_path / "film.de.srt")
    assert "no subtitles" in facts["subtitles"][3]["error"]
    shown = run("info", path)
    assert shown.exit_code == 0, shown.output
    for text in ("film.de.srt", "film.fr.srt", "[b]", "default", "1.000 s to 2.500 s", "No sound."):
        assert text in shown.output


def test_what_is_not_there(run: Any, tmp_path: Path, cached_media: Any) -> None:
    assert "No sound and no words." in run("info", cached_media("clip.mp4", write_video)).output
    (tmp_path / "words.vtt").write_text("WEBVTT\n\n00:01.000 --> 00:02.000\nhey\n")
    shown = run("info", tmp_path / "words.vtt")
    assert shown.exit_code == 0, shown.output
    assert "No pictures and no sound." in shown.output
    assert "words.vtt" in shown.output


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16", "latin-1"])
def test_a_subtitle_file_of_any_encoding(encoding: str, run: Any, tmp_path: Path) -> None:
    path = tmp_path / "words.de.srt"
    path.write_bytes("1\n00:00:01,000 --> 00:00:02,000\ngrün\n".encode(encoding))
    facts = json.loads(run("info", path, "--json").output)
    assert facts["container"]["format"] == "srt"
    (words,) = facts["subtitles"]
    assert (words["num_segments"], words["language"]) == (1, "de")
    assert words["encoding"] == {"utf-16": "utf-16-le", "latin-1": "cp1252"}.get(encoding, encoding)


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
        "0.000 s to 2.0",
        "mov_text",
        "0.500 s to 2.000 s",
    ):
        assert text in result.output
    assert "\x1b" not in result.output
