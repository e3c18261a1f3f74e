"""Small media files made by program, whose frames carry their number so that a test can tell them apart."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from torch import Tensor

_BITS = 8


def picture(number: int, height: int = 96, width: int = 128) -> np.ndarray:
    """RGB picture (height, width, 3) uint8: a moving gradient, ``number`` in binary in the lowest quarter."""
    y, x = np.mgrid[:height, :width]
    rgb = np.stack([(2 * x + 5 * number) % 256, (3 * y + 2 * number) % 256, (x + y) % 256], axis=-1)
    rgb = (rgb // 2 + 64).astype(np.uint8)
    top, block = height * 3 // 4, width // _BITS
    for bit in range(_BITS):
        rgb[top:, bit * block : (bit + 1) * block] = 235 if number >> bit & 1 else 20
    return rgb


def number_of(frame: Tensor) -> int:
    """The number that a decoded picture (3, H, W) carries."""
    _, height, width = frame.shape
    block, row = width // _BITS, height * 7 // 8
    levels = [frame[:, row, bit * block + block // 2].float().mean().item() for bit in range(_BITS)]
    return sum(int(level > 128) << bit for bit, level in enumerate(levels))


def numbers_of(data: Tensor) -> list[int]:
    """Read the numbers that the frames of a batch carry."""
    return [number_of(frame) for frame in data]


def write_video(
    path: Path,
    codec: str = "libx264",
    num_frames: int = 40,
    *,
    size: tuple[int, int] = (96, 128),
    rate: int = 25,
    pix_fmt: str = "yuv420p",
    gop: int = 12,
    options: dict[str, str] | None = None,
    format: str | None = None,
    times: Sequence[int] | None = None,
    rotation: int = 0,
    tags: dict[str, int] | None = None,
    extra_streams: bool = False,
    container: dict[str, str] | None = None,
) -> Path:
    """Encode ``num_frames`` numbered pictures.

    ``times`` are the frames' pts in thousandths of a second, for a variable frame rate; ``rotation`` is
    degrees clockwise for display; ``tags`` sets attributes of the codec context, such as colorspace;
    ``extra_streams`` adds sound and subtitles before the video; ``container`` holds the muxer's options.
    """
    with av.open(str(path), "w", format=format, container_options=container or {}) as output:
        sound: Any = None
        subtitles: Any = None
        if extra_streams:
            sound = output.add_stream("aac", rate=16000)
            subtitles = add_subtitles(output, "mov_text" if path.suffix in (".mp4", ".mov") else "subrip")
        stream: Any = output.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.gop_size = gop
        stream.codec_context.thread_count = 1
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        if rotation:
            stream.set_display_rotation(-rotation)
        if sound is not None:
            _write_sound(output, sound, num_frames / rate)
        if subtitles is not None:
            output.mux(subtitle_packet(subtitles, 0, 0.5, b"hello"))
        for i in range(num_frames):
            frame = av.VideoFrame.from_ndarray(picture(i, *size), "rgb24").reformat(format=pix_fmt)
            frame.pts = i if times is None else times[i]
            frame.time_base = Fraction(1, rate) if times is None else Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def _write_sound(container: Any, stream: Any, seconds: float) -> None:
    count = int(seconds * stream.rate)
    wave = (8000 * np.sin(2 * np.pi * 440 / stream.rate * np.arange(count))).astype(np.int16)
    for start in range(0, count, 1024):
        frame = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], "s16", "mono")
        frame.sample_rate, frame.pts, frame.time_base = stream.rate, start, Fraction(1, stream.rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def add_subtitles(output: Any, codec: str) -> Any:
    """A subtitle stream, whose times are thousandths of a second."""
    stream = output.add_stream(codec)
    stream.codec_context.subtitle_header = b"[Script Info]\nScriptType: v4.00+\n"
    stream.time_base = Fraction(1, 1000)
    return stream


def subtitle_packet(stream: Any, start: float, length: float, content: bytes, *, counted: bool = True) -> Any:
    """A cue; ``counted`` puts the number of bytes in front that mov_text wants."""
    if stream.name == "mov_text" and counted:
        content = len(content).to_bytes(2, "big") + content
    packet: Any = av.Packet(content)
    packet.stream, packet.time_base = stream, stream.time_base
    packet.pts = packet.dts = round(start * 1000)
    packet.duration = round(length * 1000)
    return packet


def write_sizes(path: Path, sizes: Sequence[tuple[int, int]]) -> Path:
    """Four numbered Motion JPEG pictures of each (height, width), in one stream."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = *sizes[0], "yuvj420p"
        output.start_encoding()
        for i, size in enumerate(size for size in sizes for _ in range(4)):
            encoder: Any = av.CodecContext.create("mjpeg", "w")
            encoder.height, encoder.width, encoder.pix_fmt = *size, "yuvj420p"
            encoder.time_base = Fraction(1, 25)
            frame = av.VideoFrame.from_ndarray(picture(i, *size), "rgb24").reformat(format="yuvj420p")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            for packet in [*encoder.encode(frame), *encoder.encode(None)]:
                packet.stream, packet.time_base = stream, Fraction(1, 25)
                output.mux(packet)
    return path


def remux(
    source: Path, target: Path, *, shift: int = 0, skip: int = 0, options: dict[str, str] | None = None
) -> Path:
    """Copy the video packets of ``source`` but the first ``skip``, their times moved by ``shift`` frames.

    A negative shift makes the MP4 muxer write an edit list that hides the frames before time zero.
    """
    with av.open(str(source)) as reader, av.open(str(target), "w", options=options or {}) as writer:
        stream = reader.streams.video[0]
        copy = writer.add_stream_from_template(stream)
        assert stream.average_rate is not None
        assert stream.time_base is not None
        step = int(1 / (stream.average_rate * stream.time_base))
        for i, packet in enumerate(reader.demux(stream)):
            if packet.size and i >= skip:
                assert packet.pts is not None
                packet.pts += shift * step
                packet.dts = None if packet.dts is None else packet.dts + shift * step
                packet.stream = copy
                writer.mux(packet)
    return target


def damage(source: Path, target: Path, at: float = 0.5, length: int = 64) -> Path:
    """Copy a file with ``length`` bytes inverted from the fraction ``at`` of its size on."""
    content = bytearray(source.read_bytes())
    start = int(at * len(content))
    content[start : start + length] = bytes(b ^ 0xFF for b in content[start : start + length])
    target.write_bytes(content)
    return target
