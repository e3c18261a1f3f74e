"""How far a backend may be from the float64 oracle, and why."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore.backends.reference import apply_layout
from mmcore.ops.frame_transform import FrameTransform

FUSED_LEVELS = 1e-3
"""accuracy="fused": of one level (0-255), before the cast. float32 sums of some hundred taps whose weights
sum to 1 stay below 1e-4 of a level; ten times that leaves room for any order of summation and is still
500 times finer than a rounding to bytes."""

FFMPEG_LEVELS = 3
"""FFmpeg's 8-bit yuv420p to RGB uses tables: within 2.9 levels of an exact conversion, chroma replicated."""

FFMPEG_444_LEVELS = 1
"""FFmpeg's 4:4:4 to RGB: within 0.5 of the exact value, so within 1 of the rounded one."""

NATURAL_PSNR_DB = 55.0
"""Filtering in YUV against clamping RGB at full size first: they differ only where colours clip."""


def assert_frames_close(result: Tensor, oracle: Tensor, transform: FrameTransform) -> None:
    """Compare with the oracle's unrounded float64 values of shape (T, 3, h, w), before the layout.

    ``result`` may be any cast of a value within ``FUSED_LEVELS`` of the oracle: casts are monotonic, so it
    must lie between the casts of the two ends. One rule for float32, the half formats and bytes.
    """
    slack = torch.tensor(transform.affine[0], dtype=torch.float64).abs()[:, None, None] * FUSED_LEVELS
    low, high = oracle - slack, oracle + slack
    if transform.dtype == torch.uint8:
        low, high = low.clamp(0, 255).round(), high.clamp(0, 255).round()  # half to even
    low, high, middle = (apply_layout(x, transform.layout) for x in (low, high, oracle))
    assert result.shape == middle.shape, (result.shape, middle.shape)
    assert result.dtype == transform.dtype, (result.dtype, transform.dtype)
    wrong = ~((result >= low.to(result.dtype)) & (result <= high.to(result.dtype)))  # a NaN is wrong
    if wrong.any():
        first = tuple(int(i) for i in wrong.nonzero()[0])
        per_level = apply_layout((slack / FUSED_LEVELS).expand_as(oracle), transform.layout)
        levels = ((result.double() - middle).abs() / per_level).max().item()
        raise AssertionError(
            f"{int(wrong.sum())} of {result.numel()} values are off, by up to {levels:.4g} levels; first at "
            f"{first}: {result[first].item()!r}, oracle {middle[first].item()!r}"
        )
