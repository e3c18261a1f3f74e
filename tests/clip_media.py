"""Clips in which a flash, a burst of sound and a word begin at the same instants, in any codec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from media import add_subtitles, subtitle_packet
from numpy.typing import NDArray

import mmcore

FPS = 20
RATE = 48000
SECONDS = 2.0
EVENTS = (0.6, 1.4)
WORDS = ("tick", "tock")
SIZE = (64, 96)

VIDEO_CODECS = {
    "h264": ("libx264", {"preset": "ultrafast", "bf": "2"}),
    "hevc": ("libx265", {"preset": "ultrafast", "x265-params": "log-level=none:pools=none"}),
    "vp9": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "b": "400k"}),
    "av1": ("libsvtav1", {"preset": "13", "svtav1-params": "lp=1"}),
    "mpeg4": ("mpeg4", {"bf": "2"}),
    "ffv1": ("ffv1", {}),
}
AUDIO_CODECS = {
    "aac": "aac", "opus": "libopus", "vorbis": "vorbis", "mp3": "libmp3lame", "flac": "flac",
    "pcm": "pcm_s16le", "ac3": "ac3",
}  # fmt: skip
_SUBTITLES = {"mp4": "mov_text", "mov": "mov_text", "mkv": "subrip", "webm": "webvtt"}


@dataclass(frozen=True)
class Measured:
    """When the events of a clip begin, in seconds of its clock."""

    flashes: list[float]
    bursts: list[float]
    words: list[float]


def burst() -> NDArray[np.float32]:
    """A sweep from 300 to 3000 Hz of a fifth of a second, whose place shows to a fraction of a sample."""
    t = np.arange(RATE // 5) / RATE
    phase = 2 * np.pi * (300 * t + 2700 / (2 * t[-1]) * t**2)
    return (0.5 * np.sin(phase) * np.hanning(len(t)) ** 0.25).astype(np.float32)


def write_events(
    path: Path, video: str | None = "h264", audio: str | None = "aac", text: bool = True
) -> Path:
    """Two seconds; a stream is left out where its codec is None, or where the container holds no text."""
    with av.open(str(path), "w") as out:
        streams: list[tuple[Any, list[Any]]] = []
        if video is not None:
            name, options = VIDEO_CODECS[video]
            stream: Any = out.add_stream(name, rate=FPS, options=options)
            stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
            stream.codec_context.thread_count = 1
            stream.codec_context.gop_size = 10
            streams.append((stream, _pictures()))
        if audio is not None:
            stream = out.add_stream(AUDIO_CODECS[audio], rate=RATE, layout="stereo")
            if audio == "mp3":
                stream.codec_context.format = "fltp"
            elif audio == "vorbis":
                stream.codec_context.options = {"strict": "experimental"}
            stream.codec_context.open()
            streams.append((stream, _sounds(stream.codec_context)))
        subtitles: Any = None
        if text and path.suffix[1:] in _SUBTITLES:
            subtitles = add_subtitles(out, _SUBTITLES[path.suffix[1:]])
        packets = []
        for stream, frames in streams:
            for frame in [*frames, None]:
                packets += stream.encode(frame)
        if subtitles is not None:
            cues = zip(EVENTS, WORDS, strict=True)
            packets += [subtitle_packet(subtitles, start, 0.3, word.encode()) for start, word in cues]
        out.start_encoding()
        packets.sort(key=lambda p: (p.pts if p.dts is None else p.dts) * p.time_base)
        for packet in packets:
            out.mux(packet)
    return path


def _pictures() -> list[Any]:
    frames = []
    for i in range(round(SECONDS * FPS)):
        bright = any(0 <= i - round(t * FPS) < 3 for t in EVENTS)
        frame: Any = av.VideoFrame(SIZE[1], SIZE[0], "yuv420p")
        for plane, level in zip(frame.planes, (225 if bright else 30, 128, 128), strict=True):
            plane.update(bytes([level]) * plane.buffer_size)
        frame.pts, frame.time_base = i, Fraction(1, FPS)
        frames.append(frame)
    return frames


def _sounds(context: Any) -> list[Any]:
    wave = np.zeros(round(SECONDS * RATE), np.float32)
    for t in EVENTS:
        at = round(t * RATE)
        wave[at : at + len(burst())] += burst()
    both: NDArray[Any] = np.stack([wave, wave])
    kind, size, frames = context.format.name, context.frame_size or 1024, []
    if kind.startswith("s16"):
        both = np.round(both * 32767).astype(np.int16)
    for start in range(0, both.shape[1], size):
        part = np.ascontiguousarray(both[:, start : start + size])
        if not kind.endswith("p"):
            part = np.ascontiguousarray(part.T).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(part, kind, "stereo")
        frame.sample_rate, frame.pts, frame.time_base = RATE, start, Fraction(1, RATE)
        frames.append(frame)
    return frames


def measure(clip: mmcore.Clip, speed: float = 1.0) -> Measured:
    """Find the events in what was read."""
    flashes: list[float] = []
    if clip.video is not None:
        bright = clip.video.data.float().flatten(1).mean(1) > 0.5 * clip.video.data.float().max()
        rising = bright & ~bright.roll(1)
        flashes = clip.video.pts_seconds[rising].tolist()
    bursts: list[float] = []
    if clip.audio is not None:
        rate = clip.audio.sample_rate
        wave = clip.audio.data.double().mean(0).numpy()
        bursts = [clip.audio.pts_seconds + at / rate for at in _find(wave, _resampled(burst(), rate, speed))]
    words = [] if clip.text is None else [s.start for s in clip.text]
    return Measured(flashes, bursts, words)


def _resampled(wave: NDArray[np.float32], rate: float, speed: float) -> NDArray[np.float64]:
    """The wave at another rate, and faster; its spectrum ends far below either."""
    count = round(len(wave) * rate / RATE / speed)
    return np.interp(np.arange(count) * (RATE * speed / rate), np.arange(len(wave)), wave)


def _find(wave: NDArray[np.float64], pattern: NDArray[np.float64]) -> list[float]:
    """Where ``pattern`` begins, in samples, to a fraction of one."""
    size = 1 << (len(wave) + len(pattern) - 1).bit_length()
    spectrum = np.fft.rfft(wave, size) * np.fft.rfft(pattern, size).conj()
    match = np.fft.irfft(spectrum, size)
    match = np.concatenate([match[-len(pattern) :], match[: len(wave)]])
    found: list[float] = []
    least = 0.6 * float(pattern @ pattern)
    for at in np.argsort(-match)[:4000]:
        if match[at] < least:
            break
        if all(abs(at - len(pattern) - f) > len(pattern) for f in found) and 0 < at < len(match) - 1:
            left, middle, right = match[at - 1 : at + 2]
            shift = 0.5 * (left - right) / (left - 2 * middle + right)
            found.append(float(at - len(pattern) + shift))
    return sorted(found)


def combinations() -> Sequence[tuple[str, str, str]]:
    """(container, video codec, audio codec): each container with each codec that it holds."""
    held = {
        "mp4": (("h264", "hevc", "av1", "mpeg4", "vp9"), ("aac", "opus", "mp3", "flac", "ac3")),
        "mov": (("h264", "hevc", "mpeg4"), ("pcm", "aac", "mp3")),
        "mkv": (
            ("h264", "hevc", "vp9", "av1", "mpeg4", "ffv1"),
            ("aac", "opus", "vorbis", "mp3", "flac", "pcm", "ac3"),
        ),
        "webm": (("vp9", "av1"), ("opus", "vorbis")),
        "ts": (("h264", "hevc", "mpeg4"), ("aac", "mp3", "ac3", "opus")),
    }
    found = []
    for container, (videos, audios) in held.items():
        for i in range(max(len(videos), len(audios))):
            found.append((container, videos[i % len(videos)], audios[i % len(audios)]))
    return found
