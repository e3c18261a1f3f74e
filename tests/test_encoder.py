"""The streaming writer, and what goes wrong: every error names its cause and leaves no file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from encode_harness import FPS, RATE, grid, pictures, read_audio, read_frames, read_text
from torch import Tensor

import mmcore


def test_encoder_takes_the_streams_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    frames, audio = pictures(50), grid(16, 2, 2 * RATE)
    with mmcore.Encoder(
        path,
        height=48,
        width=64,
        fps=FPS,
        sample_rate=RATE,
        num_channels=2,
        text=True,
        codec="ffv1",
        audio_codec="flac",
        metadata={"title": "in pieces"},
    ) as encoder:
        for second in range(2):
            encoder.add_text([(second + 0.5, second + 0.75, str(second))])
            encoder.add_frames(frames[second * FPS : (second + 1) * FPS])
            encoder.add_audio(audio[:, second * RATE : (second + 1) * RATE])
            assert encoder.video_seconds == encoder.audio_seconds == second + 1
        assert not path.exists()
    assert torch.equal((read_frames(path) * 255).round(), (frames * 255).round())
    assert np.array_equal(read_audio(path)[0], audio.double().numpy())
    assert read_text(path) == [(0.5, 0.75, "0"), (1.5, 1.75, "1")]
    with av.open(str(path)) as container:
        assert container.metadata["title"] == "in pieces"
    encoder.close()  # again: nothing
    with pytest.raises(ValueError, match="closed"):
        encoder.add_frames(frames)
    assert "closed" in repr(encoder)


# --- what goes wrong


def test_an_error_leaves_nothing_new(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"as it was")

    def frames() -> Iterator[Tensor]:
        yield from pictures(30)
        raise KeyError("the generator's own")

    with pytest.raises(KeyError, match="own"):
        mmcore.encode(path, frames=frames(), fps=FPS)
    wrong = pictures(20)
    wrong[13, 1, 5, 7] = math.nan
    with pytest.raises(ValueError, match="frame 13 holds a NaN"):
        mmcore.encode(path, frames=wrong, fps=FPS)
    with pytest.raises(ValueError, match=r"frame 8 has 24x64 pixels .* the file 48x64"):
        mmcore.encode(path, frames=[pictures(8), pictures(1, 24, 64)], fps=FPS)
    encoder = mmcore.Encoder(path, height=48, width=64, fps=FPS)
    encoder.add_frames(pictures(3))
    encoder.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    encoder = mmcore.Encoder(path, height=48, width=64, fps=FPS)
    del encoder  # never closed
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    assert path.read_bytes() == b"as it was"
    mmcore.encode(path, frames=pictures(3), fps=FPS)
    assert len(read_frames(path)) == 3


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({}, "nothing to write"),
        ({"height": 48, "width": 64}, "height, width, fps"),
        ({"num_channels": 2}, "sample_rate"),
        ({"height": 48, "width": 64, "fps": 25}, "frames: declared, but none were added"),
        ({"sample_rate": 48000}, "audio: declared, but none were added"),
    ],
)
def test_streams_must_be_declared_and_filled(declared: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words), mmcore.Encoder(tmp_path / "a.mp4", **declared):
        pass
    assert not list(tmp_path.iterdir())


def test_text_in_disorder_is_refused(tmp_path: Path) -> None:
    for name, second in (("a.mkv", (0.5, 2, "b")), ("a.mp4", (1.5, 3, "b"))):
        with mmcore.Encoder(tmp_path / name, text=True) as encoder:
            encoder.add_text([(1, 2, "a")])
            with pytest.raises(ValueError, match="give them in order"):
                encoder.add_text([second])
    assert not list(tmp_path.iterdir())


FRAMES = torch.zeros(2, 3, 16, 16)
SOUND = torch.zeros(1, 4800)
VIDEO = {"frames": FRAMES, "fps": 25}
AUDIO = {"audio": SOUND, "sample_rate": 48000}


@pytest.mark.parametrize(
    ("name", "arguments", "error", "words"),
    [
        ("a.mp4", {}, ValueError, "nothing to write"),
        ("a.mp4", {"text": []}, ValueError, "nothing to write"),
        ("a.xyz", VIDEO, ValueError, r"suffix of .*\.mp4.* got '\.xyz'"),
        ("a", VIDEO, ValueError, "suffix"),
        ("a.wav", VIDEO, ValueError, "wav files hold no video"),
        ("a.m4a", VIDEO, ValueError, "hold no video"),
        ("a.mp4", {"frames": FRAMES}, ValueError, "fps"),
        ("a.mp4", {"fps": 25, **AUDIO}, ValueError, "fps: given without frames"),
        ("a.mp4", {**VIDEO, "fps": 0}, ValueError, "fps"),
        ("a.mp4", {**VIDEO, "fps": -3.5}, ValueError, "fps"),
        ("a.mp4", {**VIDEO, "fps": math.nan}, ValueError, "fps"),
        ("a.mp4", {**VIDEO, "fps": math.inf}, ValueError, "fps"),
        ("a.mp4", {**VIDEO, "fps": "25"}, TypeError, "fps"),
        ("a.mp4", {**VIDEO, "fps": 1e-9}, ValueError, "fps"),
        ("a.mp4", {**VIDEO, "frames": FRAMES[0]}, ValueError, r"NCHW, got \(3, 16, 16\)"),
        ("a.mp4", {**VIDEO, "frames": [FRAMES[0, 0]]}, ValueError, r"frame 0: .* got shape \(16, 16\)"),
        ("a.mp4", {**VIDEO, "frames": FRAMES.permute(0, 2, 3, 1)}, ValueError, "NCHW"),
        ("a.mp4", {**VIDEO, "frames": FRAMES, "layout": "HWC"}, ValueError, "layout"),
        ("a.mp4", {**VIDEO, "frames": FRAMES[:0]}, ValueError, "at least one frame"),
        ("a.mp4", {**VIDEO, "frames": iter(())}, ValueError, "at least one frame"),
        ("a.mp4", {**VIDEO, "frames": 3}, TypeError, "frames"),
        ("a.mp4", {**VIDEO, "frames": ["x"]}, TypeError, "frame 0: expected a tensor, got str"),
        ("a.mp4", {**VIDEO, "frames": FRAMES.numpy()}, TypeError, "frame 0: expected a tensor"),
        ("a.mp4", {**VIDEO, "frames": FRAMES.double()}, TypeError, "float64"),
        ("a.mp4", {**VIDEO, "frames": FRAMES * math.nan}, ValueError, "frame 0 holds a NaN"),
        ("a.mp4", {**VIDEO, "codec": "h2664"}, mmcore.UnsupportedError, "no encoder h2664"),
        ("a.mp4", {**VIDEO, "codec": "aac"}, ValueError, "encodes audio"),
        ("a.webm", {**VIDEO, "codec": "libx264"}, ValueError, "does not support"),
        ("a.mp4", {**VIDEO, "pixel_format": "yuv999"}, ValueError, "pixel_format: .*yuv420p.*'yuv999'"),
        ("a.mp4", {**VIDEO, "pixel_format": "rgb24"}, ValueError, "pixel_format"),
        ("a.mp4", {**VIDEO, "matrix": "240"}, ValueError, "matrix"),
        (
            "a.mp4",
            {**VIDEO, "pixel_format": "yuvj420p", "full_range": False},
            ValueError,
            "full range by name",
        ),
        ("a.mp4", {**VIDEO, "std": 0}, ValueError, "std"),
        ("a.mp4", {**VIDEO, "preset": "bogus"}, ValueError, "libx264.*bogus"),
        ("a.mp4", {**VIDEO, "extra_options": {"bogus": "1"}}, ValueError, "no option 'bogus'"),
        ("a.mp4", {**VIDEO, "quality": 3}, TypeError, "quality"),
        ("a.wav", {"audio": SOUND}, ValueError, "sample_rate"),
        ("a.mp4", {"sample_rate": 48000, **VIDEO}, ValueError, "sample_rate: given without audio"),
        ("a.wav", {**AUDIO, "sample_rate": 0}, ValueError, "sample_rate"),
        ("a.wav", {**AUDIO, "sample_rate": 48000.5}, TypeError, "sample_rate"),
        ("a.wav", {**AUDIO, "audio": SOUND.short()}, TypeError, "int16"),
        ("a.wav", {**AUDIO, "audio": SOUND[None]}, ValueError, r"\(channels, samples\)"),
        ("a.wav", {**AUDIO, "audio": torch.zeros(4800, 2)}, ValueError, "1 to 8 channels, got 4800"),
        ("a.wav", {**AUDIO, "audio": SOUND[:, :0]}, ValueError, "none were added"),
        ("a.wav", {**AUDIO, "audio": []}, ValueError, "at least one sample"),
        ("a.wav", {**AUDIO, "audio": [SOUND, torch.zeros(2, 9)]}, ValueError, "expected 1 channels, got 2"),
        ("a.wav", {**AUDIO, "audio": 7}, TypeError, "audio"),
        ("a.wav", {**AUDIO, "audio": SOUND / 0}, ValueError, "sample 0 is a NaN"),
        ("a.wav", {**AUDIO, "audio_codec": "nothing"}, mmcore.UnsupportedError, "audio_codec"),
        ("a.wav", {**AUDIO, "sample_format": "s99"}, ValueError, "sample_format"),
        (
            "a.flac",
            {"audio": SimpleNamespace(data=SOUND, sample_rate=8), "sample_rate": 9},
            ValueError,
            "sampled at 8",
        ),
        ("a.wav", {**AUDIO, "text": [(0, 1, "a")]}, ValueError, "wav files hold no text"),
        ("a.ts", {**VIDEO, "text": [(0, 1, "a")]}, ValueError, "hold no text"),
        ("a.mp4", {"text": [(0, 1, "a")], "text_codec": "ass"}, ValueError, "text as mov_text"),
        ("a.mp4", {"text": "words"}, TypeError, "text"),
        ("a.mp4", {"text": ["words"]}, TypeError, "segment 0"),
        ("a.mp4", {"text": [(0, 1)]}, TypeError, "segment 0"),
        ("a.mp4", {"text": [("x", 1, "a")]}, TypeError, "seconds"),
        ("a.mp4", {"text": [(0, 1, b"a")]}, TypeError, "expected a str"),
        ("a.mp4", {"text": [(-1, 1, "a")]}, ValueError, "0 seconds or more"),
        ("a.mp4", {"text": [(0, math.nan, "a")]}, ValueError, "0 seconds or more"),
        ("a.mp4", {"text": [(0, 1, "a"), (1, 1, "b")]}, ValueError, "segment 1: must last"),
        ("a.mp4", {"text": [(0, 1, "\0")]}, ValueError, "null"),
        ("a.mp4", {"text": [(0, 1, "\ud800")]}, ValueError, "surrogate"),
        ("a.mp4", {"text": [(0, 1, "x" * 70000)]}, ValueError, "65535"),
        ("missing/a.mp4", VIDEO, FileNotFoundError, "missing"),
    ],
)
def test_bad_input_is_refused(
    name: str, arguments: dict[str, Any], error: type[Exception], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        mmcore.encode(tmp_path / name, **arguments)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").mkdir()
    with pytest.raises(IsADirectoryError):
        mmcore.encode(tmp_path / "a.mp4", **VIDEO)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
