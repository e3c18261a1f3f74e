"""The audio decoder: exact ranges of every codec, clocks, resampling, damage, threads and processes."""

from __future__ import annotations

import io
import itertools
import multiprocessing
import pickle
import random
import threading
import tracemalloc
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from audio_media import RATE, copy_packets, decoded_by_pyav, sweep, write_audio
from media import damage, write_video

import mmcore
from mmcore import AudioDecoder, DecodeError, DecodeTimeoutError, UnsupportedError
from mmcore.decoding.audio_mixing import mixing_matrix

SECONDS = 12.5  # more than 512 packets of AAC and Opus: the decoder is made anew once

# name: encoder, how many dB the noise lies below the sound if it is placed right, samples by which the file
# is longer than the sound (None: padded, and not marked so), options
FILES: dict[str, tuple[str, float, int | None, dict[str, Any]]] = {
    "pcm.wav": ("pcm_s16le", 80, 0, {}),
    "pcm.mkv": ("pcm_s16le", 80, 0, {}),
    "pcm.mov": ("pcm_s24le", 110, 0, {}),
    "flac.flac": ("flac", 80, 0, {}),
    "flac.mkv": ("flac", 80, 0, {}),
    "alac.m4a": ("alac", 80, 0, {}),
    "mp3.mp3": ("libmp3lame", 20, 0, {}),
    "mp3vbr.mp3": ("libmp3lame", 20, 0, {"options": {"qscale": "7"}}),
    "mp3low.mp3": ("libmp3lame", 10, 0, {"rate": 16000, "options": {"b": "8000"}}),
    "mp3.mkv": ("libmp3lame", 20, 0, {}),
    "aac.m4a": ("aac", 15, 0, {}),
    "aac.mkv": ("aac", 15, None, {}),
    "aac.ts": ("aac", 15, None, {}),
    "aac.aac": ("aac", 15, None, {}),
    "aac.flv": ("aac", 15, None, {}),
    "opus.opus": ("libopus", 20, 0, {}),
    "opus.webm": ("libopus", 20, 0, {}),
    "opus.mp4": ("libopus", 20, 0, {}),
    "speech.webm": ("libopus", 5, 0, {"rate": 16000, "options": {"application": "voip", "b": "12000"}}),
    "vorbis.ogg": ("vorbis", 5, 0, {"layout": "stereo"}),
    "vorbis.webm": ("vorbis", 5, 0, {"layout": "stereo"}),
    "ac3.mka": ("ac3", 20, None, {}),
    "mp2.ts": ("mp2", 20, None, {}),
}
# What these begin with is in the file, unmarked: an encoder's delay in samples.
DELAYS = {"aac.ts": 1024, "aac.aac": 1024, "aac.flv": 1024, "mp2.ts": 481, "ac3.mka": 0}


@pytest.fixture(params=FILES)
def named(request: pytest.FixtureRequest, cached_media: Callable) -> tuple[str, Path]:
    name = request.param
    codec, _, _, settings = FILES[name]
    return name, cached_media(name, lambda p: write_audio(p, codec, sound_of(name), **settings))


def sound_of(name: str) -> np.ndarray:
    settings = FILES[name][3]
    return sweep(SECONDS, 2 if "layout" in settings else 1, rate=settings.get("rate", RATE))


@pytest.fixture
def stereo(cached_media: Callable) -> Path:
    return cached_media("stereo.flac", lambda p: write_audio(p, "flac", sweep(3, 2, noise=0.01)))


@pytest.fixture
def film(cached_media: Callable) -> Path:
    return cached_media(
        "film.mp4", lambda p: write_audio(p, "aac", sweep(3, 2), with_video=True, options={"b": "128000"})
    )


# --- what is decoded


def test_every_range_is_the_slice_of_the_whole(named: tuple[str, Path]) -> None:
    name, path = named
    whole = AudioDecoder(path).get_all_samples()
    plain = decoded_by_pyav(path)
    same = min(plain.shape[1], len(whole))
    # until a decoder with memory is made anew, all is as FFmpeg gives it
    until = same if name.startswith(("pcm", "flac", "alac", "mp3", "vorbis")) else 512 * 512
    assert np.array_equal(whole.data[:, :until], plain[:, :until])
    assert 0 <= plain.shape[1] - len(whole) < 1152
    assert whole.gaps == ()

    decoder, rng = AudioDecoder(path), random.Random(name)
    begin, end = whole.pts_seconds, whole.pts_seconds + whole.duration_seconds
    starts = [11.9, 0.0, 0.05, begin, 11.3] + [rng.uniform(0, end) for _ in range(8)]
    for start in starts:
        stop = max(start, begin) + rng.choice([0.003, 0.1, 1.0])
        part = decoder.get_samples_played_in_range(start, stop)
        first = round((part.pts_seconds - begin) * whole.sample_rate)
        assert torch.equal(part.data, whole.data[:, first : first + len(part)])
        assert part.pts_seconds == pytest.approx(max(start, begin), abs=0.500001 / whole.sample_rate)
        expected = (min(stop, end) - max(start, begin)) * whole.sample_rate
        assert len(part) == pytest.approx(expected, abs=1.000001)
    assert decoder.end_stream_seconds == end
    chunks = list(AudioDecoder(path).iter_chunks(1.7))
    assert torch.equal(torch.cat([chunk.data for chunk in chunks], dim=1), whole.data)


def test_delay_and_padding_are_left_out(named: tuple[str, Path]) -> None:
    name, path = named
    _, quality, longer, settings = FILES[name]
    rate = settings.get("rate", RATE)
    sound = sound_of(name)
    samples = AudioDecoder(path).get_all_samples()
    if samples.sample_rate != rate:  # Opus has but one
        samples = AudioDecoder(path, sample_rate=rate).get_all_samples()
    if longer is not None:
        assert len(samples) == sound.shape[1] + longer
    data = samples.data.numpy()[:, DELAYS.get(name, 0) :]
    count = rate * 2
    noise = np.abs(data[:, :count] - sound[:, :count])[:, rate // 2 :]
    level = 20 * np.log10(np.sqrt((sound**2).mean()) / np.sqrt((noise.astype(np.float64) ** 2).mean()))
    assert level > quality


@pytest.mark.parametrize(
    ("codec", "steps"),
    [
        ("pcm_u8", 2**7),
        ("pcm_s16le", 2**15),
        ("pcm_s16be", 2**15),
        ("pcm_s24le", 2**23),
        ("pcm_s32le", 2**31),
        ("pcm_f32le", 0),
        ("pcm_f64le", 0),
        ("pcm_alaw", 2**4),
    ],
)
def test_sample_formats(codec: str, steps: int, tmp_path: Path) -> None:
    sound = sweep(0.7, 2)
    suffix = "aiff" if codec.endswith("be") else "wav"
    decoder = AudioDecoder(write_audio(tmp_path / f"a.{suffix}", codec, sound))
    data = decoder.get_all_samples().data
    assert data.dtype == torch.float32
    assert data.shape == sound.shape
    assert np.abs(data.numpy() - sound).max() <= (1.01 / steps if steps else 0) + 1e-7
    assert torch.equal(decoder.get_samples_played_in_range(0.3, 0.5).data, data[:, 14400:24000])


def test_layouts(tmp_path: Path) -> None:
    many = np.arange(8 * 4800, dtype=np.int16).reshape(4800, 8)
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(8)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(many.tobytes())
    data = AudioDecoder(tmp_path / "a.wav").get_all_samples().data
    assert np.array_equal(data, (many.T / 32768).astype(np.float32))
    surround = write_audio(tmp_path / "b.mka", "flac", sweep(0.5, 6))
    assert AudioDecoder(surround).metadata.channel_layout.startswith("5.1")
    assert AudioDecoder(surround).get_all_samples().data.shape == (6, 24000)


def test_metadata(film: Path) -> None:
    m = AudioDecoder(film).metadata
    assert (m.stream_index, m.codec, m.sample_rate, m.num_channels) == (1, "aac", RATE, 2)
    assert (m.channel_layout, m.sample_format, m.language) == ("stereo", "fltp", None)
    assert (m.begin_stream_seconds, m.duration_seconds, m.end_stream_seconds) == (0, 3, 3)
    assert m.bit_rate is not None
    assert 50_000 < m.bit_rate < 200_000


# --- times


def test_ranges(stereo: Path) -> None:
    decoder = AudioDecoder(stereo)
    whole = decoder.get_all_samples()
    assert decoder.get_samples_played_in_range().data.shape == whole.data.shape == (2, 144000)
    assert len(decoder.get_samples_played_in_range(2.5)) == 24000
    assert len(decoder.get_samples_played_in_range(2.5, 99)) == 24000
    before = decoder.get_samples_played_in_range(-1, 0.5)
    assert (before.pts_seconds, len(before)) == (0, 24000)
    for seconds in (0, 1.5, 3, -0.0):
        empty = decoder.get_samples_played_in_range(seconds, seconds)
        assert (empty.data.shape, empty.pts_seconds, empty.duration_seconds) == ((2, 0), seconds, 0)
    # ranges that join leave nothing out, wherever they meet
    cuts = [0.0, 0.1, 0.33333, 0.7, 1.234567, 2.9, 3.0]
    parts = [decoder.get_samples_played_in_range(a, b) for a, b in itertools.pairwise(cuts)]
    assert torch.equal(torch.cat([part.data for part in parts], dim=1), whole.data)
    assert all(abs(part.pts_seconds - cut) <= 0.5 / RATE for part, cut in zip(parts, cuts, strict=False))
    data, pts, duration, rate = parts[1]
    assert (data.shape[1], pts, duration, rate) == (11200, 0.1, 11200 / RATE, RATE)


@pytest.mark.parametrize(
    ("start", "stop", "message"),
    [
        (1, 0.5, "start <= stop"),
        (3, 4, "no sound from 3 s on"),
        (50, None, "no sound from 3 s on"),
        (-2, -1, "no sound before 0 s"),
        (float("nan"), 1, "finite"),
        (0, float("inf"), "finite"),
    ],
)
def test_ranges_that_are_none(start: float, stop: float, message: str, stereo: Path) -> None:
    decoder = AudioDecoder(stereo)
    with pytest.raises(ValueError, match=message):
        decoder.get_samples_played_in_range(start, stop)
    with pytest.raises(TypeError, match="start_seconds"):
        decoder.get_samples_played_in_range("1")  # type: ignore[arg-type]
    assert len(decoder.get_samples_played_in_range(0, 1)) == RATE


@pytest.mark.parametrize("name", ["late.mkv", "late.mp4", "late.ts", "late.nut"])
def test_sound_that_begins_late(name: str, tmp_path: Path) -> None:
    sound = np.zeros((1, 2 * RATE), np.float32)
    sound[:, RATE:] = 0.5
    codec = "pcm_s16le" if name.endswith(("mkv", "nut")) else "ac3"
    path = write_audio(tmp_path / name, codec, sound, start=1.25)
    decoder = AudioDecoder(path)
    assert decoder.begin_stream_seconds == pytest.approx(1.25, abs=0.007)
    whole = decoder.get_all_samples()
    step = decoder.begin_stream_seconds + 1
    assert whole.data[0, RATE - 300] == pytest.approx(0, abs=0.05)
    part = decoder.get_samples_played_in_range(step - 0.01, step + 0.02)
    risen = int((part.data[0] > 0.25).nonzero()[0])
    assert part.pts_seconds + risen / RATE == pytest.approx(step, abs=0.007)
    assert len(decoder.get_samples_played_in_range(0, step)) == pytest.approx(RATE, abs=1)


def test_the_clock_is_the_pictures(tmp_path: Path) -> None:
    clip = mmcore.write_sample(tmp_path / "a.mp4", seconds=1, width=64, height=64)
    video, audio = mmcore.VideoDecoder(clip.path), AudioDecoder(clip.path)
    event = clip.events[0]
    seen = video.get_frame_played_at(event.seconds + 1e-6).pts_seconds
    around = audio.get_samples_played_in_range(event.seconds - 0.005, event.seconds + 0.005)
    level = around.data.abs().amax(dim=0)
    heard = around.pts_seconds + int((level > 0.2).nonzero()[0]) / RATE
    assert seen == pytest.approx(event.seconds, abs=1e-9)
    assert heard == pytest.approx(event.seconds, abs=0.0005)


def test_missing_packets_leave_silence(tmp_path: Path) -> None:
    sound = sweep(4)
    source = write_audio(
        tmp_path / "a.mkv", "pcm_s16le", sound
    )  # 1000 samples a packet, times in milliseconds
    path = copy_packets(source, tmp_path / "b.mkv", lambda i, p: None if 50 <= i < 75 else p)
    decoder = AudioDecoder(path)
    whole = decoder.get_all_samples()
    assert len(whole) == pytest.approx(4 * RATE, abs=50)
    assert whole.gaps == (pytest.approx((50000 / RATE, 75000 / RATE), abs=0.001),)
    assert not whole.data[:, 50000:74900].any()
    assert np.abs(whole.data.numpy()[:, :50000] - sound[:, :50000]).max() < 1e-4
    for start, stop in ((0.9, 1.2), (1.1, 1.4), (1.2, 1.3), (1.5, 2.0), (3.0, 3.5)):
        part = AudioDecoder(path).get_samples_played_in_range(start, stop)
        first = round(part.pts_seconds * RATE)
        assert torch.equal(part.data, whole.data[:, first : first + len(part)])
        assert len(part.gaps) == (start < 1.56)
    again = decoder.get_samples_played_in_range(1.2, 1.3)
    assert again.gaps == (pytest.approx((1.2, 1.3), abs=1e-4),)


def test_packets_that_overlap(tmp_path: Path) -> None:
    source = write_audio(tmp_path / "a.nut", "pcm_s16le", sweep(4))
    with av.open(str(source)) as container:
        unit = container.streams.audio[0].time_base
        assert unit is not None

    def shifted(number: int, packet: Any) -> Any:
        if number >= 100:
            packet.pts -= round(0.05 / unit)
            packet.dts = packet.pts
        return packet if not 95 <= number < 100 else None

    whole = AudioDecoder(copy_packets(source, tmp_path / "b.nut", shifted)).get_all_samples()
    kept = AudioDecoder(source).get_all_samples().data
    assert len(whole) < kept.shape[1]
    late = round(0.05 * RATE)
    assert torch.equal(whole.data[:, -RATE:], kept[:, -RATE:])
    assert len(whole) == kept.shape[1] - late


def test_rounded_times_do_not_tear_the_sound(tmp_path: Path) -> None:
    # 44100 Hz in milliseconds: every packet's time is rounded
    sound = sweep(6, rate=44100)
    path = write_audio(tmp_path / "a.mkv", "flac", sound, rate=44100)
    decoder = AudioDecoder(path)
    assert np.abs(decoder.get_all_samples().data.numpy() - sound).max() < 1e-4
    part = AudioDecoder(path).get_samples_played_in_range(5.0, 5.5)
    assert np.abs(part.data.numpy() - sound[:, 220500:242550]).max() < 1e-4


def test_leaping_times(tmp_path: Path) -> None:
    def leap(number: int, packet: Any) -> Any:
        if number >= 20:
            packet.pts += 10_000_000
            packet.dts = packet.pts
        return packet

    source = write_audio(tmp_path / "a.mkv", "pcm_s16le", sweep(1))
    path = copy_packets(source, tmp_path / "b.mkv", leap)
    with pytest.raises(DecodeError, match="leap by 1"):
        AudioDecoder(path).get_all_samples()
    assert len(AudioDecoder(path).get_samples_played_in_range(0, 0.2)) == 9600


# --- rates and channels


@pytest.mark.parametrize("rate", [16000, 44100, 22050, 96000, 47999])
def test_resampled_ranges_are_slices_too(rate: int, cached_media: Callable) -> None:
    path = cached_media("resample.flac", lambda p: write_audio(p, "flac", sweep(4, 2, noise=0.05)))
    decoder = AudioDecoder(path, sample_rate=rate)
    whole = decoder.get_all_samples()
    assert (whole.sample_rate, len(whole), whole.pts_seconds) == (rate, 4 * rate, 0)
    rng = random.Random(rate)
    for start in [0.0, 0.001, 2.9, 3.9] + [rng.uniform(0, 3.9) for _ in range(6)]:
        part = decoder.get_samples_played_in_range(start, start + rng.choice([0.01, 0.2, 1.1]))
        first = round(part.pts_seconds * rate)
        # 47999 has more phases than FFmpeg's filter, which takes the nearest
        allowed = 1e-5 if rate == 47999 else 0
        torch.testing.assert_close(part.data, whole.data[:, first : first + len(part)], atol=allowed, rtol=0)
    chunks = torch.cat([chunk.data for chunk in decoder.iter_chunks(0.31)], dim=1)
    torch.testing.assert_close(chunks, whole.data, atol=allowed, rtol=0)


@pytest.mark.parametrize("rate", [16000, 44100, 96000])
def test_resampling_keeps_a_tone(rate: int, tmp_path: Path) -> None:
    t = np.arange(RATE) / RATE
    tone = (0.5 * np.sin(2 * np.pi * 1000 * t)).astype(np.float32)[None]
    path = write_audio(tmp_path / "a.wav", "pcm_f32le", tone)
    data = AudioDecoder(path, sample_rate=rate).get_all_samples().data[0].double()
    expected = 0.5 * torch.sin(2 * torch.pi * 1000 * torch.arange(rate, dtype=torch.float64) / rate)
    assert (data - expected)[rate // 10 : -rate // 10].abs().max() < 2e-3


def test_mixing(stereo: Path, tmp_path: Path) -> None:
    both = AudioDecoder(stereo).get_all_samples().data
    mono = AudioDecoder(stereo, num_channels=1).get_all_samples().data
    torch.testing.assert_close(mono, both.mean(dim=0, keepdim=True), atol=1e-4, rtol=0)
    part = AudioDecoder(stereo, num_channels=1).get_samples_played_in_range(1, 2)
    assert torch.equal(part.data, mono[:, RATE : 2 * RATE])
    single = write_audio(tmp_path / "a.flac", "flac", sweep(0.5))
    copies = AudioDecoder(single, num_channels=2).get_all_samples().data
    assert torch.equal(copies[0], copies[1])
    assert torch.equal(copies[:1], AudioDecoder(single).get_all_samples().data)
    low = AudioDecoder(stereo, num_channels=1, sample_rate=16000).get_all_samples()
    assert low.data.shape == (1, 48000)
    high = AudioDecoder(single, num_channels=2, sample_rate=96000).get_all_samples()
    assert high.data.shape == (2, 48000)


def test_mixing_matrices() -> None:
    # ITU-R BS.775, scaled so that the loudest row adds to 1
    down = mixing_matrix("5.1", 2)
    gain = 1 / (1 + 2 * 0.7071)
    expected = gain * np.array([[1, 0, 0.7071, 0, 0.7071, 0], [0, 1, 0.7071, 0, 0, 0.7071]])
    assert np.abs(down - expected).max() < 1e-3
    assert mixing_matrix("stereo", 1).tolist() == [[0.5, 0.5]]
    assert mixing_matrix("2 channels", 1).tolist() == [[0.5, 0.5]]
    assert mixing_matrix("stereo", 1, normalized=False)[0] == pytest.approx([0.7071, 0.7071], abs=1e-4)
    with pytest.raises(UnsupportedError, match="13 channels to 2"):
        mixing_matrix("13 channels", 2)


# --- long files


def test_chunks(stereo: Path) -> None:
    decoder = AudioDecoder(stereo)
    whole = decoder.get_all_samples().data
    chunks = list(decoder.iter_chunks(1.0, overlap_seconds=0.25))
    assert [chunk.pts_seconds for chunk in chunks] == [0, 0.75, 1.5, 2.25]
    assert [len(chunk) for chunk in chunks] == [RATE, RATE, RATE, 36000]
    for chunk in chunks:
        first = round(chunk.pts_seconds * RATE)
        assert torch.equal(chunk.data, whole[:, first : first + len(chunk)])
    assert [len(chunk) for chunk in decoder] == [RATE] * 3  # no empty one at the end
    assert [len(chunk) for chunk in decoder.iter_chunks(99)] == [3 * RATE]
    chunks = list(decoder.iter_chunks(1.0, overlap_seconds=0.5))
    assert [len(chunk) for chunk in chunks] == [RATE] * 5
    for seconds, overlap in ((0, 0), (1e-6, 0), (1, 1), (1, -0.1), (1, 2)):
        with pytest.raises(ValueError, match="seconds"):
            decoder.iter_chunks(seconds, overlap)
    # others may read in between, and closing ends an iteration
    walk = decoder.iter_chunks(0.5)
    first = next(walk)
    decoder.get_samples_played_in_range(2, 2.5)
    assert torch.equal(next(walk).data, whole[:, len(first) : 2 * len(first)])
    decoder.close()
    with pytest.raises(ValueError, match="closed"):
        list(walk)


@pytest.mark.parametrize("rate", [None, 16000])
def test_chunks_of_a_long_file_take_little_memory(rate: int | None, tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        for _ in range(100):  # 38 MB as float32
            file.writeframes(bytes(2 * 2 * RATE))
    decoder = AudioDecoder(tmp_path / "a.wav", sample_rate=rate)
    tracemalloc.start()
    try:
        assert sum(len(chunk) for chunk in decoder.iter_chunks(1.0)) == 200 * decoder.sample_rate
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8e6


# --- what is wrong


@pytest.mark.parametrize("name", ["broken.flac", "broken.mka"])
def test_damaged_sound(name: str, tmp_path: Path) -> None:
    source = write_audio(tmp_path / f"whole{name[6:]}", "flac", sweep(3, 2, noise=0.01))
    sound = AudioDecoder(source).get_all_samples().data
    path = damage(source, tmp_path / name, at=0.5, length=64)
    decoder = AudioDecoder(path)
    with pytest.raises(DecodeError, match=r"stream 0: the sound at 1\.\d+ s cannot be decoded: (Inv|what)"):
        decoder.get_all_samples()
    for start in (0, 2):  # the rest is there
        part = decoder.get_samples_played_in_range(start, start + 1)
        assert torch.equal(part.data, sound[:, start * RATE : (start + 1) * RATE])
    tolerant = AudioDecoder(path, on_error="silence")
    whole = tolerant.get_all_samples()
    assert whole.data.shape == sound.shape
    ((begin, end),) = whole.gaps
    first, last = round(begin * RATE), round(end * RATE)
    assert last - first == 4608
    assert not whole.data[:, first:last].any()
    assert torch.equal(whole.data[:, :first], sound[:, :first])
    assert torch.equal(whole.data[:, last:], sound[:, last:])
    part = AudioDecoder(path, on_error="silence").get_samples_played_in_range(begin - 0.1, end + 0.1)
    assert torch.equal(part.data, whole.data[:, first - 4800 : last + 4800])
    assert part.gaps == whole.gaps
    with pytest.raises(DecodeError, match="cannot be decoded"):
        list(decoder.iter_chunks(0.5))


def test_damaged_sound_leaves_the_pictures_alone(film: Path, tmp_path: Path) -> None:
    with av.open(str(film)) as container:
        packets = [p.pos for p in container.demux(audio=0) if p.size]
    content = bytearray(film.read_bytes())
    for position in packets[60:64]:
        assert position is not None
        content[position : position + 100] = bytes(100)
    (tmp_path / "a.mp4").write_bytes(content)
    assert len(mmcore.VideoDecoder(tmp_path / "a.mp4")[:]) == 75
    whole = AudioDecoder(film).get_all_samples().data
    held = AudioDecoder(tmp_path / "a.mp4", on_error="silence").get_all_samples()
    assert held.data.shape == whole.shape
    assert torch.equal(held.data[:, : 58 * 1024], whole[:, : 58 * 1024])
    after = slice(66 * 1024, None)  # where but the codec's random noise is another
    torch.testing.assert_close(held.data[:, after], whole[:, after], atol=5e-3, rtol=0)
    with pytest.raises(DecodeError, match="stream 1: the sound at 1"):
        AudioDecoder(tmp_path / "a.mp4").get_all_samples()


@pytest.mark.parametrize("name", ["cut.m4a", "cut.mkv"])
def test_files_that_break_off(name: str, tmp_path: Path) -> None:
    codec = {"cut.m4a": "aac", "cut.mkv": "flac"}[name]
    options = {"movflags": "faststart"} if name.endswith("m4a") else {}
    source = tmp_path / f"whole.{name[4:]}"
    if options:
        plain = write_audio(tmp_path / "plain.m4a", codec, sweep(4))
        with av.open(str(plain)) as reader, av.open(str(source), "w", options=options) as writer:
            copy = writer.add_stream_from_template(reader.streams.audio[0])
            for packet in reader.demux(audio=0):
                if packet.size:
                    packet.stream = copy
                    writer.mux(packet)
    else:
        write_audio(source, codec, sweep(4))
    content = source.read_bytes()
    whole = AudioDecoder(source).get_all_samples()
    (tmp_path / name).write_bytes(content[: len(content) * 6 // 10])
    decoder = AudioDecoder(tmp_path / name)
    with pytest.raises(DecodeError, match=r"file's end|breaks off|Invalid data|damaged"):
        decoder.get_all_samples()
    part = decoder.get_samples_played_in_range(1, 2)
    assert torch.equal(part.data, whole.data[:, RATE : 2 * RATE])
    held = AudioDecoder(tmp_path / name, on_error="silence").get_all_samples()
    assert 2 * RATE < len(held) < 3 * RATE
    assert decoder.damage
    assert AudioDecoder(source).damage is None
    assert torch.equal(held.data[:, : 2 * RATE], whole.data[:, : 2 * RATE])


def test_sources_without_sound(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(DecodeError, match="holds no audio stream; its streams: 0 \\(video\\)"):
        AudioDecoder(clip)
    (tmp_path / "a.wav").write_bytes(b"RIFF" + bytes(500))
    for source in (tmp_path / "a.wav", tmp_path / "missing.wav", b"no sound at all" * 99):
        with pytest.raises(DecodeError):
            AudioDecoder(source)
    with pytest.raises(DecodeError, match="empty"):
        AudioDecoder(b"")


def test_wrong_arguments(film: Path, stereo: Path) -> None:
    for settings, message in (
        ({"stream_index": 9}, "has no stream 9"),
        ({"stream_index": 0}, "stream 0 of .* is no audio stream"),
        ({"sample_rate": 0}, "sample_rate: expected 1 to"),
        ({"num_channels": 0}, "num_channels: expected 1 to 8"),
        ({"num_channels": 9}, "num_channels: expected 1 to 8"),
        ({"on_error": "skip"}, "on_error: expected 'raise' or 'silence'"),
        ({"timeout": -1}, "timeout"),
    ):
        with pytest.raises(ValueError, match=message):
            AudioDecoder(film, **settings)
    for settings in ({"sample_rate": 16000.0}, {"num_channels": "2"}, {"stream_index": True}):
        with pytest.raises(TypeError, match=next(iter(settings))):
            AudioDecoder(stereo, **settings)
    with pytest.raises(ValueError, match="network=True"):
        AudioDecoder("https://example.com/a.mp3")


def test_timeout(stereo: Path) -> None:
    decoder = AudioDecoder(stereo, timeout=0)
    with pytest.raises(DecodeTimeoutError):
        decoder.get_all_samples()
    decoder = AudioDecoder(stereo, timeout=60)
    assert len(decoder.get_all_samples()) == 3 * RATE


# --- sources, threads, processes


def test_sources(film: Path) -> None:
    whole = AudioDecoder(film).get_all_samples().data
    content = film.read_bytes()
    with open(film, "rb") as file:
        tensor = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        for source in (str(film), content, bytearray(content), io.BytesIO(content), tensor, file):
            decoder = AudioDecoder(source)
            part = decoder.get_samples_played_in_range(2, 2.5)
            assert torch.equal(part.data, whole[:, 2 * RATE : 5 * RATE // 2])
            assert torch.equal(decoder.get_all_samples().data, whole)


def test_the_stream_is_chosen(cached_media: Callable) -> None:
    path = cached_media("sound_first.mp4", lambda p: write_video(p, extra_streams=True))
    decoder = AudioDecoder(path)
    assert (decoder.metadata.stream_index, decoder.sample_rate) == (0, 16000)
    assert torch.equal(
        AudioDecoder(path, stream_index=0).get_all_samples().data, decoder.get_all_samples().data
    )


class _Interrupting(io.BytesIO):
    """A file that is interrupted by the keyboard at a chosen read."""

    reads_left = 10**9

    def read(self, size: int | None = -1) -> bytes:
        self.reads_left -= 1
        if self.reads_left < 0:
            self.reads_left = 10**9
            raise KeyboardInterrupt
        return super().read(size)


def test_interrupts(tmp_path: Path) -> None:
    content = write_audio(tmp_path / "a.wav", "pcm_s16le", sweep(8, 2)).read_bytes()
    file = _Interrupting(content)
    decoder = AudioDecoder(file)
    file.reads_left = 3
    with pytest.raises(KeyboardInterrupt):
        decoder.get_all_samples()
    assert len(decoder.get_all_samples()) == 8 * RATE


def test_threads(film: Path) -> None:
    decoder = AudioDecoder(film)
    whole = decoder.get_all_samples().data
    wrong: list[float] = []

    def read(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(20):
            first = rng.randrange(0, 2 * RATE)
            part = decoder.get_samples_played_in_range(first / RATE, first / RATE + 0.1)
            if not torch.equal(part.data, whole[:, first : first + 4800]):
                wrong.append(first / RATE)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_pickle_and_close(film: Path) -> None:
    decoder = AudioDecoder(film, sample_rate=16000, num_channels=1)
    part = decoder.get_samples_played_in_range(1, 2).data
    copy = pickle.loads(pickle.dumps(decoder))
    assert torch.equal(copy.get_samples_played_in_range(1, 2).data, part)
    with decoder:
        assert "2 channels" not in repr(decoder)
    decoder.close()
    assert "closed" in repr(decoder)
    with pytest.raises(ValueError, match="closed"):
        decoder.get_all_samples()
    with open(film, "rb") as file, pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(AudioDecoder(file))


def _sum(decoder: AudioDecoder) -> float:
    # NumPy's: torch's own threads do not live in a forked process, which waits for them for ever
    return float(decoder.get_samples_played_in_range(1, 2).data.numpy().sum(dtype=np.float64))


def _sum_in_child(decoder: AudioDecoder, queue: Any) -> None:
    torch.set_num_threads(1)
    queue.put(_sum(decoder))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork(film: Path) -> None:
    decoder = AudioDecoder(film)
    expected = _sum(decoder)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_sum_in_child, args=(decoder, queue))
    child.start()
    try:
        assert queue.get(timeout=60) == expected
        child.join(60)
        assert child.exitcode == 0
    finally:
        child.kill()  # one that hangs would keep this process from ending
    assert _sum(decoder) == expected
