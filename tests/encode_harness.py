"""Frames and samples to write, and readers of what was written, for the tests of encode."""

from __future__ import annotations

import math
from pathlib import Path

import av
import numpy as np
import torch
from audio_media import decoded_by_pyav
from torch import Tensor

import mmcore
from mmcore.ops.pixel_formats import PIXEL_FORMATS

RATE = 48000
FPS = 25


def pictures(count: int = 12, height: int = 48, width: int = 64) -> Tensor:
    """Smooth colours that move, float32 (T, 3, H, W) from 0 to 1."""
    t = torch.arange(count).view(-1, 1, 1) / 6
    y, x = torch.arange(height).view(1, -1, 1), torch.arange(width).view(1, 1, -1)
    red = 0.5 + 0.4 * torch.sin(x / 9 + t).expand(-1, height, -1)
    green = 0.5 + 0.3 * torch.cos(y / 7 - t).expand(-1, -1, width)
    blue = 0.4 + 0.3 * torch.sin((x + y) / 11 + t)
    return torch.stack([red, green, blue], dim=1)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def psnr(a: Tensor, b: Tensor) -> float:
    """Of values from 0 to 1, in decibels."""
    return -10 * math.log10((a.double() - b.double()).square().mean().item())


def read_frames(path: Path) -> Tensor:
    with mmcore.VideoDecoder(path, transform=mmcore.FrameTransform()) as decoder:
        return decoder[:]


def read_audio(path: Path) -> tuple[np.ndarray, float, int]:
    """Samples (channels, samples) as float64, the first one's time, the rate."""
    with av.open(str(path)) as container:
        first = next(container.decode(audio=0))
        start, rate = float(first.pts * first.time_base), first.sample_rate
    return decoded_by_pyav(path, np.float64), start, rate


def read_text(path: Path) -> list[tuple[float, float, str]]:
    return [(s.start, s.end, s.text) for s in mmcore.TextDecoder(path)]


def decoded_planes(path: Path) -> list[np.ndarray]:
    """The planes (frames, rows, samples) as the codec left them."""
    frames = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            fmt, planes = PIXEL_FORMATS[frame.format.name], []
            for i in range(fmt.num_planes):
                rows, samples = fmt.plane_shape(i, frame.height, frame.width)
                lines = np.frombuffer(frame.planes[i], np.uint8).reshape(-1, frame.planes[i].line_size)
                lines = lines.view(np.uint8 if fmt.bytes_per_sample == 1 else np.uint16)
                planes.append(lines[:rows, :samples].copy())
            frames.append(planes)
    return [np.stack(planes) for planes in zip(*frames, strict=True)]


def grid(bits: int, channels: int = 2, count: int = 5000) -> Tensor:
    """Random samples that integers of ``bits`` bits hold, the ends of the range among them."""
    top = 1 << bits - 1
    values = torch.randint(-top, top, (channels, count), generator=torch.Generator().manual_seed(bits))
    values[:, 0], values[:, 1] = -top, top - 1
    return values.float() / top
