"""Frames to features: a residual network for each frame, then convolution over time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcore.models.features import Encoder, Features, check_mask, without_padding

__all__ = ["CNN"]

TEMPORAL = ("conv", "none", "3d")


def _norm(channels: int) -> nn.GroupNorm:
    # Of one frame's own values: the same for any batch size, and blind to padded frames.
    return nn.GroupNorm(math.gcd(8, channels), channels)


def _neighbours(x: Tensor, frames: int, mask: Tensor | None) -> Tensor:
    """(B T, C, H, W) to (B T, 3 C, H, W): the frame before, the frame, the one after; 0 where there is none.

    A 3x3 convolution of the result is a 3x3x3 convolution of the video.
    """
    x = x.view(-1, frames, *x.shape[1:])
    x = without_padding(x, mask)
    padded = F.pad(x, (0, 0) * 3 + (1, 1))
    return torch.cat([padded[:, :-2], x, padded[:, 2:]], 2).flatten(0, 1)


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016); the first may reach over three frames."""

    def __init__(self, width_in: int, width: int, stride: int, reach: int) -> None:
        super().__init__()
        self.reach = reach
        self.conv1 = nn.Conv2d(width_in * reach, width, 3, stride, 1, bias=False)
        self.norm1 = _norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = _norm(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or width_in != width:
            self.shortcut = nn.Conv2d(width_in, width, 1, stride)

    def forward(self, x: Tensor, frames: int, mask: Tensor | None) -> Tensor:
        y = _neighbours(x, frames, mask) if self.reach > 1 else x
        y = F.relu(self.norm1(self.conv1(y)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class _TimeBlock(nn.Module):
    """``x + W conv(norm(x))`` over time; masked steps are 0, as those beyond the ends."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.conv = nn.Conv1d(dim, dim, 3, padding=1)
        self.linear = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = without_padding(self.norm(x), mask)
        y = self.conv(y.transpose(1, 2)).transpose(1, 2)
        return x + self.linear(F.gelu(y))  # type: ignore[no-any-return]


class CNN(Encoder):
    """Residual network over the frames of a video.

    Each frame passes a strided stem and stages of residual blocks; each stage after the first halves height
    and width. What comes out is averaged over ``grid`` x ``grid`` fields, which keeps where things are, and
    projected to ``dim``. Frames that the mask leaves out never change those it has.

    Parameters
    ----------
    dim : int
        Width of the features.
    in_channels : int
        Channels of a frame.
    widths : sequence of int
        Channels of each stage.
    depth : int or sequence of int
        Residual blocks of each stage.
    temporal : {"conv", "none", "3d"}
        "conv": two residual convolutions over time, 3 steps wide, behind the frames' features. "none": frames
        know nothing of each other. "3d": the first convolution of every block is 3x3x3.
    stem_stride : int
        Of the first convolution, whose size is ``2 stem_stride - 1``.
    grid : int
        Fields per side.

    Examples
    --------
    >>> import torch
    >>> from mmcore.models import CNN
    >>> CNN.preset("tiny")(torch.rand(2, 8, 3, 64, 64)).data.shape
    torch.Size([2, 8, 128])
    """

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {"dim": 128, "widths": (16, 32, 64), "depth": 1},
        "base": {"dim": 512, "widths": (64, 128, 256, 512), "depth": 2, "stem_stride": 4},
    }

    def __init__(
        self,
        dim: int,
        *,
        in_channels: int = 3,
        widths: Sequence[int] = (32, 64, 128),
        depth: int | Sequence[int] = 1,
        temporal: str = "conv",
        stem_stride: int = 2,
        grid: int = 4,
    ) -> None:
        super().__init__()
        if temporal not in TEMPORAL:
            raise ValueError(f"temporal: expected one of {', '.join(TEMPORAL)}, got {temporal!r}")
        depths = [depth] * len(widths) if isinstance(depth, int) else list(depth)
        if not widths or len(depths) != len(widths):
            raise ValueError(f"depth: expected one for each of {len(widths)} widths, got {len(depths)}")
        for name, values in (("widths", widths), ("depth", depths), ("dim", [dim]), ("grid", [grid])):
            if min(values) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {min(values)}")
        self.config = {
            "dim": dim,
            "in_channels": in_channels,
            "widths": list(widths),
            "depth": depths,
            "temporal": temporal,
            "stem_stride": stem_stride,
            "grid": grid,
        }
        self.dim = dim
        self.in_channels = in_channels
        self.grid = grid
        self.stem = nn.Conv2d(
            in_channels, widths[0], 2 * stem_stride - 1, stem_stride, stem_stride - 1, bias=False
        )
        self.stem_norm = _norm(widths[0])
        self.blocks = nn.ModuleList()
        before = widths[0]
        for stage, (width, blocks) in enumerate(zip(widths, depths, strict=True)):
            for i in range(blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                self.blocks.append(_Block(before, width, stride, 3 if temporal == "3d" else 1))
                before = width
        self.project = nn.Linear(before * grid * grid, dim)
        self.time_blocks = nn.ModuleList(_TimeBlock(dim) for _ in range(2 if temporal == "conv" else 0))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        """Encode video (B, T, C, H, W), floating-point; ``mask`` (B, T) says which frames are there."""
        if not x.is_floating_point():
            raise TypeError(f"video: expected a floating-point tensor, got {x.dtype}")
        if x.dim() != 5 or x.shape[2] != self.in_channels:
            raise ValueError(f"video: expected shape (B, T, {self.in_channels}, H, W), got {tuple(x.shape)}")
        frames = x.shape[1]
        check_mask(mask, x.shape[0], frames)
        x = without_padding(x, mask)
        y = x.flatten(0, 1).to(memory_format=torch.channels_last)
        y = F.relu(self.stem_norm(self.stem(y)))
        for block in self.blocks:
            y = self._run(block, y, frames, mask)
        y = F.adaptive_avg_pool2d(y, self.grid).flatten(1)
        z = self.project(y).view(-1, frames, self.dim)
        for block in self.time_blocks:
            z = self._run(block, z, mask)
        return Features(self.norm(z), mask)
