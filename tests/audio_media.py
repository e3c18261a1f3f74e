"""Small sound files made by program, and what PyAV alone makes of them."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

RATE = 48000


def sweep(seconds: float, channels: int = 1, rate: int = RATE, noise: float = 0.0) -> np.ndarray:
    """(channels, samples) float32: tones that rise, another one in each channel, and noise of our own."""
    t = np.arange(round(seconds * rate)) / rate
    tones = [0.4 * np.sin(2 * np.pi * (300 + 170 * c) * t * (1 + 0.05 * t)) for c in range(channels)]
    rng = np.random.default_rng(channels)
    sound = np.stack(tones) + noise * rng.standard_normal((channels, len(t)))
    return sound.clip(-1, 1).astype(np.float32)


def write_audio(
    path: Path,
    codec: str,
    sound: np.ndarray,
    *,
    rate: int = RATE,
    layout: str | None = None,
    sample_format: str | None = None,
    start: float = 0.0,
    options: dict[str, str] | None = None,
    with_video: bool = False,
) -> Path:
    """Encode (channels, samples) float32, of which the first is heard at ``start`` seconds."""
    layout = layout or {1: "mono", 2: "stereo", 6: "5.1"}[len(sound)]
    with av.open(str(path), "w") as output:
        picture: Any = None
        if with_video:
            picture = output.add_stream("mpeg4", rate=25)
            picture.width = picture.height = 64
            picture.pix_fmt = "yuv420p"
        stream: Any = output.add_stream(
            codec, rate=rate, layout=layout, options={"strict": "experimental", **(options or {})}
        )
        if sample_format:
            stream.codec_context.format = sample_format
        if picture is not None:
            for i in range(int(sound.shape[1] / rate * 25)):
                frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), i % 256, np.uint8), "rgb24")
                frame.pts, frame.time_base = i, Fraction(1, 25)
                output.mux(picture.encode(frame))
            output.mux(picture.encode(None))
        for i in range(0, sound.shape[1], 1000):
            block = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[:, i : i + 1000]), "fltp", layout)
            block.sample_rate, block.pts, block.time_base = rate, round(start * rate) + i, Fraction(1, rate)
            output.mux(stream.encode(block))
        output.mux(stream.encode(None))
    return path


def copy_packets(source: Path, target: Path, change: Callable[[int, Any], Any]) -> Path:
    """Copy the audio packets of a file; ``change`` gets number and packet, and gives a packet or None."""
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        stream = reader.streams.audio[0]
        copy = writer.add_stream_from_template(stream)
        number = 0
        for packet in reader.demux(stream):
            if packet.size:
                changed = change(number, packet)
                number += 1
                if changed is not None:
                    changed.stream = copy
                    writer.mux(changed)
    return target


def decoded_by_pyav(path: Path, dtype: Any = np.float32) -> np.ndarray:
    """(channels, samples) as FFmpeg decodes the file from its start, one frame after the other."""
    frames = []
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            samples = frame.to_ndarray()
            if not frame.format.is_planar:
                samples = samples.reshape(-1, frame.layout.nb_channels).T
            if samples.dtype.kind == "u":
                samples = (samples.astype(np.float64) - 128) / 128
            elif samples.dtype.kind == "i":
                samples = samples / 2.0 ** (8 * samples.itemsize - 1)
            frames.append(samples.astype(dtype))
    return np.concatenate(frames, axis=1)
