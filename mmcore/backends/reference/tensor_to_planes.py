"""The inverse of the frames op in plain torch: RGB tensors to planes, written out step by step.

values -> RGB levels (0-255) -> luma and colour differences at full size -> chroma at its own size -> samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmcore.backends.reference.frames import _LUMA_WEIGHTS

if TYPE_CHECKING:
    from mmcore.ops.pixel_formats import PixelFormat
    from mmcore.ops.planes import ColorSpec

__all__ = ["plane_components", "tensor_to_planes"]


def tensor_to_planes(
    frames: Tensor, fmt: PixelFormat, color: ColorSpec, mul: Sequence[float], add: Sequence[float]
) -> list[Tensor]:
    """Convert frames (T, 3, H, W) to the planes (T, rows, samples per row) of a format.

    Parameters
    ----------
    frames : Tensor
        Any floating dtype, or uint8; any strides.
    fmt : PixelFormat
    color : ColorSpec
        Matrix, range and chroma location of the planes.
    mul, add : sequence of 3 floats
        ``level = value * mul + add`` per channel.
    """
    count, _, height, width = frames.shape
    dtype = torch.uint8 if fmt.bytes_per_sample == 1 else torch.uint16
    opaque = 255  # the samples of no component are alpha
    planes = [
        torch.full((count, *fmt.plane_shape(p, height, width)), opaque, dtype=torch.int32)
        for p in range(fmt.num_planes)
    ]
    for c, component in zip(fmt.components, plane_components(frames, fmt, color, mul, add), strict=True):
        samples = component.round().to(torch.int32) << fmt.shift  # half to even
        planes[c.plane][:, :, c.offset :: c.step] = samples
    return [p.to(dtype) for p in planes]


def plane_components(
    frames: Tensor, fmt: PixelFormat, color: ColorSpec, mul: Sequence[float], add: Sequence[float]
) -> list[Tensor]:
    """Each component at its own size, float64 (T, rows, columns), before the rounding."""
    a, b = (torch.tensor(list(x), dtype=torch.float64)[:, None, None] for x in (mul, add))
    levels = (frames.detach().to("cpu", torch.float64) * a + b).nan_to_num(0.0).clamp(0, 255)
    top, unit, middle = 2**fmt.bits - 1, 2 ** (fmt.bits - 8), 2 ** (fmt.bits - 1)
    if fmt.family == "rgb":
        return [levels[:, i] * (top / 255) for i in range(3)]
    if color.full_range:
        black, luma, chroma = 0, top / 255, top / 255
    else:
        black, luma, chroma = 16 * unit, 219 * unit / 255, 224 * unit / 255
    kr, kb = _LUMA_WEIGHTS[color.matrix]
    red, green, blue = levels.unbind(1)
    y = kr * red + (1 - kr - kb) * green + kb * blue
    components = [y * luma + black]
    if fmt.family == "gray":
        return components
    on_column = color.chroma_location in ("left", "topleft")
    on_row = color.chroma_location == "topleft"
    for difference, k in ((blue - y, kb), (red - y, kr)):
        if fmt.log2_chroma_w:
            difference = _halve(difference, on_column)
        if fmt.log2_chroma_h:
            difference = _halve(difference.mT, on_row).mT
        components.append((difference / (2 * (1 - k)) * chroma + middle).clamp(max=top))
    return components


def _halve(x: Tensor, cosited: bool) -> Tensor:
    """Half as many columns: means of pairs, or [1 2 1] / 4 around every other column; edges repeat."""
    padded = torch.cat([x[..., :1], x, x[..., -1:]], dim=-1)
    size = x.shape[-1]
    middle, after = padded[..., 1 : size + 1 : 2], padded[..., 2 : size + 2 : 2]
    if not cosited:
        return (middle + after) / 2
    return (padded[..., 0:size:2] + 2 * middle + after) / 4
