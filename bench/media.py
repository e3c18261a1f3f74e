"""The clips that are measured: natural-like moving pictures, encoded at each encoder's defaults, and cached.

A clip is a textured canvas (1/f spectrum, hard edges, correlated chroma) filmed by a camera that pans and
zooms by fractions of a pixel, with objects that move on their own, sensor noise, and a cut every five
seconds. The fractions matter: whole-pixel motion would let the decoder copy blocks instead of interpolating
them. ``python -m bench media`` prints bits per pixel and the decode time of each clip beside those of real
files.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

__all__ = ["CODECS", "Clip", "cache_dir", "clip", "describe", "from_file", "long_clip"]

CODECS = {"h264": "libx264", "hevc": "libx265", "vp9": "libvpx-vp9", "av1": "libsvtav1"}
"""Short codec name to the encoder in PyAV's wheel."""

_VERSION = 1  # part of the cache key: raise it when the pictures change
_CUT = 150  # frames between cuts


@dataclass(frozen=True)
class Clip:
    """One measured file: where it is and how it is called in tables."""

    path: Path
    codec: str
    width: int
    height: int
    synthetic: bool = True

    @property
    def name(self) -> str:
        """Name in tables and plots: ``h264 1280x720``, or the file's own name."""
        return f"{self.codec} {self.width}x{self.height}" if self.synthetic else self.path.name


def cache_dir() -> Path:
    """Folder of the clips: ``$MMCORE_BENCH_CACHE``, else ``mmcore-bench`` in the user's cache folder."""
    if chosen := os.environ.get("MMCORE_BENCH_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mmcore-bench"


def clip(
    codec: str, width: int, height: int, frames: int = 300, fps: int = 30, gop: int | None = None
) -> Clip:
    """Return the clip of this codec and size, encoding it on first use.

    ``gop`` is the number of frames from key frame to key frame; by default it is left to the encoder.

    Raises
    ------
    ValueError
        If ``codec`` is not a key of :data:`CODECS`.
    """
    if codec not in CODECS:
        raise ValueError(f"codec: expected one of {', '.join(CODECS)}, got {codec!r}")
    settings: tuple[Any, ...] = (_VERSION, codec, width, height, frames, fps)
    if gop is not None:
        settings += (gop,)
    path = _cached(
        f"{codec}_{width}x{height}_{frames}",
        settings,
        lambda part: _encode(part, CODECS[codec], width, height, frames, fps, gop),
    )
    return Clip(path, codec, width, height)


def long_clip(hours: float = 2, codec: str = "h264", width: int = 128, height: int = 96) -> Clip:
    """Return a long file of small pictures: one group of 60 frames over and over, muxed on first use."""
    group = clip(codec, width, height, frames=60, gop=60)
    copies = round(hours * 3600 / 2)
    path = _cached(
        f"{codec}_{width}x{height}_{hours:g}h",
        (_VERSION, codec, width, height, hours),
        lambda part: _repeat(group.path, part, copies),
    )
    return Clip(path, codec, width, height)


def _cached(name: str, settings: tuple[Any, ...], make: Callable[[Path], None]) -> Path:
    key = hashlib.sha256(repr(settings).encode()).hexdigest()[:8]
    path = cache_dir() / f"{name}_{key}.mp4"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Made aside and renamed, so that an interrupted run leaves no half file in the cache.
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            part = Path(scratch) / path.name
            make(part)
            part.replace(path)
    return path


def _repeat(source: Path, target: Path, copies: int) -> None:
    """Copy the packets of ``source`` one after the other, ``copies`` times."""
    import av

    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        stream = reader.streams.video[0]
        copy = writer.add_stream_from_template(stream, opaque=True)
        packets: list[Any] = [
            (bytes(p), p.pts, p.dts, p.duration, p.is_keyframe) for p in reader.demux(stream) if p.size
        ]
        length = sum(duration for _, _, _, duration, _ in packets)
        for i in range(copies):
            for data, pts, dts, duration, is_key in packets:
                packet: Any = av.Packet(data)
                packet.pts, packet.dts, packet.duration = pts + i * length, dts + i * length, duration
                packet.time_base, packet.is_keyframe, packet.stream = stream.time_base, is_key, copy
                writer.mux(packet)


def from_file(path: Path) -> Clip:
    """Describe a real file, for ``--file``."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return Clip(path, stream.codec_context.name, stream.width, stream.height, synthetic=False)


def _noise(rng: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=rng)


def _canvas(rng: torch.Generator, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Luma (1,1,H,W) and chroma (1,2,H/2,W/2) levels of a scene."""

    def octaves(channels: int, h: int, w: int, falloff: float, first: int) -> torch.Tensor:
        total = torch.zeros(1, channels, h, w)
        weight, cells = 1.0, first
        while cells < h:
            grid = _noise(rng, 1, channels, cells + 1, cells * w // h + 2)
            total += weight * F.interpolate(grid, (h, w), mode="bicubic", align_corners=True)
            weight, cells = weight * falloff, cells * 2
        return total

    luma = octaves(1, height, width, 0.55, 3)
    for level in (2, 5, 9):  # hard edges: fields of constant offset, as of buildings, leaves or letters
        field = F.interpolate(_noise(rng, 1, 1, level * 2, level * 3), (height, width), mode="bicubic")
        luma += 0.7 * (field > 0.6) - 0.5 * (field < -0.8)
    chroma = octaves(2, height // 2, width // 2, 0.45, 3)
    chroma += 0.4 * F.avg_pool2d(luma, 2) * torch.tensor([-1.0, 1.0]).view(1, 2, 1, 1)
    return (126 + 38 * luma).clamp(16, 235), (128 + 11 * chroma).clamp(16, 240)


def _encode(
    path: Path, encoder: str, width: int, height: int, frames: int, fps: int, gop: int | None
) -> None:
    import av

    rng = torch.Generator().manual_seed(20240 + width)
    margin = 1.5
    big_h, big_w = (int(x * margin) // 4 * 4 for x in (height, width))
    sprites = [(_noise(rng, 4), *_canvas(rng, height // 4 // 4 * 4, height // 4 // 4 * 4)) for _ in range(5)]
    grain = [_noise(rng, height + 64, width + 64) for _ in range(4)]
    ys, xs = (torch.linspace(-1, 1, n) for n in (height, width))
    container = av.open(str(path), "w")
    stream: Any = container.add_stream(encoder, rate=fps)
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    stream.codec_context.time_base = Fraction(1, fps)
    if gop is not None:
        stream.codec_context.gop_size = gop
    scene = _canvas(rng, big_h, big_w)
    for i in range(frames):
        if i and i % _CUT == 0:
            scene = _canvas(rng, big_h, big_w)
        t = i / fps
        zoom = (1 + 0.12 * math.sin(0.5 * t + 1)) / (margin * 1.13)
        cx, cy = 0.2 * math.sin(0.42 * t), 0.2 * math.sin(0.31 * t + 2)
        # One grid serves luma and chroma: grid_sample's coordinates run from -1 to 1 over the picture.
        grid = torch.stack(torch.meshgrid(ys * zoom + cy, xs * zoom + cx, indexing="ij"), -1)[None].flip(-1)
        small = F.avg_pool2d(grid.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
        luma = F.grid_sample(scene[0], grid, align_corners=False)[0, 0]
        chroma = F.grid_sample(scene[1], small, align_corners=False)[0]
        for phase, sprite_y, sprite_uv in sprites:
            s = sprite_y.shape[-1]
            x = (
                int(
                    (width - s)
                    * (0.5 + 0.5 * math.sin(float(phase[0]) * 3 + (0.8 + 0.3 * float(phase[2])) * t))
                )
                // 2
            )
            y = (
                int(
                    (height - s)
                    * (0.5 + 0.5 * math.sin(float(phase[1]) * 3 + (0.7 + 0.3 * float(phase[3])) * t))
                )
                // 2
            )
            radius = torch.linspace(-1, 1, s)
            disc = (radius[:, None] ** 2 + radius**2 < 1).float()
            y_view = luma[2 * y : 2 * y + s, 2 * x : 2 * x + s]
            y_view.copy_(y_view.lerp(sprite_y[0, 0], disc))
            uv_view = chroma[:, y : y + s // 2, x : x + s // 2]
            uv_view.copy_(uv_view.lerp(sprite_uv[0], F.avg_pool2d(disc[None], 2)))
        dy, dx = (i * 37) % 64, (i * 23) % 64
        luma += 1.6 * grain[i % len(grain)][dy : dy + height, dx : dx + width]
        planes = torch.cat([luma.flatten(), chroma.flatten()]).round_().clamp_(16, 240).to(torch.uint8)
        frame = av.VideoFrame.from_ndarray(planes.view(height * 3 // 2, width).numpy(), format="yuv420p")
        frame.pts, frame.time_base = i, Fraction(1, fps)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
    container.close()


def describe(item: Clip) -> dict[str, float | int | str]:
    """Frames, bits per pixel and microseconds of raw decode per frame (best of three) of a clip."""
    import av

    best, frames = math.inf, 0
    for _ in range(3):
        with av.open(str(item.path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            start = time.process_time()
            frames = sum(1 for _ in container.decode(stream))
            best = min(best, time.process_time() - start)
    with av.open(str(item.path)) as container:
        size = sum(p.size for p in container.demux(container.streams.video[0]))
    return {
        "clip": item.name,
        "frames": frames,
        "bits_per_pixel": size * 8 / (frames * item.width * item.height),
        "raw_us_per_frame": best / frames * 1e6,
    }
