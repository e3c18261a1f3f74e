"""TorchCodec's AudioDecoder: its interface here, and its samples beside the TorchCodec that is installed."""

from __future__ import annotations

import dataclasses
import inspect
import io
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from audio_media import RATE, sweep, write_audio

import mmcore
from mmcore.compat.torchcodec import AudioSamples
from mmcore.compat.torchcodec.decoders import AudioDecoder, AudioStreamMetadata

FILES = {"a.wav": "pcm_s16le", "a.flac": "flac", "a.mp3": "libmp3lame", "a.webm": "libopus", "a.m4a": "aac"}


@pytest.fixture(params=FILES)
def sound(request: pytest.FixtureRequest, cached_media: Callable) -> Path:
    name = request.param
    return cached_media(f"compat_{name}", lambda p: write_audio(p, FILES[name], sweep(2.5, 2, noise=0.001)))


def test_samples(sound: Path) -> None:
    decoder = AudioDecoder(sound)
    whole = decoder.get_all_samples()
    assert isinstance(whole, AudioSamples)
    assert (whole.data.shape, whole.sample_rate) == ((2, 2.5 * RATE), RATE)
    part = decoder.get_samples_played_in_range(1, 1.5)
    assert (part.data.shape, part.pts_seconds, part.duration_seconds) == ((2, 24000), 1, 0.5)
    assert decoder.get_samples_played_in_range(1, 1).data.shape == (2, 0)
    assert decoder.stream_index == decoder.metadata.stream_index == 0
    assert isinstance(decoder.metadata, AudioStreamMetadata)
    assert "sample_rate: 48000" in repr(decoder.metadata)
    mono = AudioDecoder(sound, num_channels=1).get_all_samples().data[0]
    torch.testing.assert_close(mono, whole.data.sum(dim=0) * 0.7071, atol=1e-4, rtol=0)


def test_errors(clip: Path, sound: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="The best audio stream is unknown"):
        AudioDecoder(clip)
    with pytest.raises(ValueError, match="The stream at index 3 is not a valid stream"):
        AudioDecoder(sound, stream_index=3)
    with pytest.raises(RuntimeError, match="no such file") as caught:
        AudioDecoder(tmp_path / "missing.wav")
    assert isinstance(caught.value, mmcore.DecodeError)
    decoder = AudioDecoder(sound)
    with pytest.raises(ValueError, match="Invalid start seconds: 2"):
        decoder.get_samples_played_in_range(2, 1)
    for start, stop in ((9, 10), (-2, -1)):
        with pytest.raises(RuntimeError, match="No audio frames were decoded"):
            decoder.get_samples_played_in_range(start, stop)


CALLS: dict[str, Callable[[Any], Any]] = {
    "all": lambda d: d.get_all_samples(),
    "range": lambda d: d.get_samples_played_in_range(0.3, 1.1),
    "odd": lambda d: d.get_samples_played_in_range(0.12345, 0.98765),
    "start": lambda d: d.get_samples_played_in_range(0.5, 0.5001),
    "nothing": lambda d: d.get_samples_played_in_range(1, 1),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("settings", [{}, {"num_channels": 1}], ids=["plain", "mono"])
def test_samples_beside_torchcodec(call: str, settings: dict, sound: Path, torchcodec: ModuleType) -> None:
    if sound.suffix == ".webm" and call != "all":
        pytest.skip("TorchCodec places samples by a packet's time, which Matroska rounds to milliseconds")
    theirs = CALLS[call](torchcodec.decoders.AudioDecoder(sound, **settings))
    ours = CALLS[call](AudioDecoder(sound, **settings))
    assert (ours.pts_seconds, ours.sample_rate) == (theirs.pts_seconds, theirs.sample_rate)
    if call == "nothing":  # of which TorchCodec leaves all channels
        assert ours.data.numel() == theirs.data.numel() == 0
        return
    # TorchCodec leaves an encoder's padding in the last packet of an MP4
    assert 0 <= theirs.data.shape[1] - ours.data.shape[1] < (1024 if sound.suffix == ".m4a" else 1)
    same = theirs.data[:, : ours.data.shape[1]]
    torch.testing.assert_close(ours.data, same, atol=1e-5, rtol=0)


def test_resampling_beside_torchcodec(sound: Path, torchcodec: ModuleType) -> None:
    theirs = torchcodec.decoders.AudioDecoder(sound, sample_rate=16000).get_all_samples()
    ours = AudioDecoder(sound, sample_rate=16000).get_all_samples()
    assert abs(theirs.data.shape[1] - ours.data.shape[1]) < 400
    count = ours.data.shape[1] - 400  # FFmpeg mirrors the last samples
    torch.testing.assert_close(ours.data[:, :count], theirs.data[:, :count], atol=1e-4, rtol=0)


def test_metadata_and_signatures_beside_torchcodec(sound: Path, torchcodec: ModuleType) -> None:
    original = torchcodec.decoders.AudioDecoder
    theirs, ours = original(io.BytesIO(sound.read_bytes())).metadata, AudioDecoder(sound).metadata
    for field in dataclasses.fields(theirs):
        expected, found = getattr(theirs, field.name), getattr(ours, field.name)
        if field.name.startswith(("begin", "duration")):
            assert None in (found, expected) or found == pytest.approx(expected, abs=0.05)
        elif field.name != "bit_rate":
            assert found == expected, field.name
    for name in ("__init__", "get_all_samples", "get_samples_played_in_range"):
        assert list(inspect.signature(getattr(AudioDecoder, name)).parameters) == list(
            inspect.signature(getattr(original, name)).parameters
        )
