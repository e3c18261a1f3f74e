"""The frames op in plain torch: raw planes to a model's input tensor.

Every step is written out at full size, in the order in which the contract states it, to be trusted rather
than fast: samples -> full-size Y, U, V -> resize -> crop -> RGB levels (0-255) -> values -> flip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from mmcore.ops.frame_transform import FrameTransform, Geometry, Patches
    from mmcore.ops.pixel_formats import PixelFormat
    from mmcore.ops.planes import ColorSpec

__all__ = ["apply_layout", "convert"]

# (Kr, Kb): the weights of red and blue in luma.
_LUMA_WEIGHTS = {"601": (0.299, 0.114), "709": (0.2126, 0.0722), "2020": (0.2627, 0.0593)}


def convert(
    planes: Sequence[Tensor],
    fmt: PixelFormat,
    height: int,
    width: int,
    color: ColorSpec,
    transform: FrameTransform,
    compute_dtype: torch.dtype = torch.float64,
    *,
    as_compute: bool = False,
) -> Tensor:
    """Convert frames, one at a time, to the values that ``transform`` asks for.

    Parameters
    ----------
    planes : sequence of Tensor
        ``planes[p]`` has shape (T, rows, samples per row): uint8, or 16-bit words as uint16 or int16.
    fmt : PixelFormat
        What the planes hold.
    height, width : int
        Size of the frames in pixels.
    color : ColorSpec
        Matrix, range and chroma location, all resolved.
    transform : FrameTransform
        What to do. Its ``layout``, ``matrix``, ``full_range`` and ``chroma`` are not looked at.
    compute_dtype : torch.dtype
        Arithmetic of ``accuracy="fused"``; "rgb8" is defined in float32 and bytes.
    as_compute : bool
        Return ``compute_dtype`` without the final cast or rounding to ``transform.dtype``.

    Returns
    -------
    Tensor
        Shape (T, 3, out_h, out_w), contiguous, ``transform.dtype``.
    """
    geometry = transform.geometry(height, width)
    resized = (geometry.resize_h, geometry.resize_w) != (height, width)
    # Without a resize, bytes are the same numbers in both accuracies: those of rgb8.
    dtype = compute_dtype if as_compute else transform.dtype
    rounds = transform.accuracy == "rgb8" or (dtype == torch.uint8 and not resized)
    frames = []
    for t in range(len(planes[0])):
        components = _components([p[t] for p in planes], fmt, height, width)
        components = [_upsample(c, height, width, color.chroma_location) for c in components]
        if rounds:
            rgb = _rgb8(components, fmt, color, geometry, transform)
            values = rgb if transform.dtype == torch.uint8 else _normalise_like_hf(rgb, transform)
        else:
            values = _fused([c.to(compute_dtype) for c in components], fmt, color, geometry, transform)
            if dtype == torch.uint8:
                values = values.round()  # half to even
        if transform.horizontal_flip:
            values = values.flip(-1)
        frames.append(values.to(dtype))
    if not frames:
        return torch.empty((0, 3, geometry.out_h, geometry.out_w), dtype=dtype)
    return torch.stack(frames)


def apply_layout(frames: Tensor, layout: str | Patches) -> Tensor:
    """Order the dimensions of ``frames`` (T, 3, H, W) as ``layout`` says; the result is contiguous.

    Patches: an incomplete last group of frames repeats the last frame; rows run over (group, row and column
    of the merged block, row and column of the patch in its block), columns over (channel, frame, y, x).
    """
    if layout == "NCHW":
        return frames.contiguous()
    if layout == "NHWC":
        return frames.permute(0, 2, 3, 1).contiguous()
    if layout == "CNHW":
        return frames.transpose(0, 1).contiguous()
    assert not isinstance(layout, str), layout
    p, tp, m = layout.patch_size, layout.temporal_patch_size, layout.merge_size
    gt, gh, gw = layout.grid(len(frames), *frames.shape[2:])
    missing = gt * tp - len(frames)
    if missing:
        frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
    x = frames.reshape(gt, tp, 3, gh // m, m, p, gw // m, m, p)
    return x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(gt * gh * gw, 3 * tp * p * p)


def _components(planes: Sequence[Tensor], fmt: PixelFormat, height: int, width: int) -> list[Tensor]:
    """Integer values of each component at its own size: float64 (rows, columns)."""
    result = []
    for i, c in enumerate(fmt.components):
        rows, cols = fmt.component_size(i, height, width)
        samples = planes[c.plane][:rows, c.offset :: c.step][:, :cols]
        mask = 0xFF if fmt.bytes_per_sample == 1 else 0xFFFF  # int16 storage: its bits, not its sign
        result.append(((samples.to(torch.int32) & mask) >> fmt.shift).to(torch.float64))
    return result


def _upsample(plane: Tensor, height: int, width: int, location: str) -> Tensor:
    """Bring a chroma plane to the luma grid; whatever has that size already passes through."""
    # Luma sample i lies at chroma coordinate i/2 + offset. Chroma between two luma rows is the rule (MPEG-2,
    # H.264 type 0); only "topleft" puts it on one. No offset: replicated.
    vertical = {"left": -0.25, "center": -0.25, "topleft": 0.0}.get(location)
    horizontal = {"left": 0.0, "center": -0.25, "topleft": 0.0}.get(location)
    return _upsample_rows(_upsample_rows(plane, height, vertical).T, width, horizontal).T


def _upsample_rows(plane: Tensor, size: int, offset: float | None) -> Tensor:
    rows = len(plane)
    if rows == size:
        return plane
    if offset is None:
        return plane[torch.arange(size) // 2]
    at = (torch.arange(size, dtype=torch.float64) / 2 + offset).clamp(0, rows - 1)
    first = at.long()
    second = (first + 1).clamp(max=rows - 1)
    part = (at - first)[:, None]
    return plane[first] * (1 - part) + plane[second] * part


def _level_coefficients(
    fmt: PixelFormat, color: ColorSpec, transform: FrameTransform
) -> tuple[list[list[float]], list[float]]:
    """float64 ``(weights, bias)``: level of R, G, B = sum(weight * component value) + bias."""
    weights, bias = _rgb_coefficients(fmt, color)
    if transform.color_matrix is None:
        return weights, bias
    mixed = [
        [a * r + b * g + c * v for r, g, v in zip(*weights, strict=True)]
        for a, b, c, _ in transform.color_matrix
    ]
    return mixed, [a * bias[0] + b * bias[1] + c * bias[2] + d for a, b, c, d in transform.color_matrix]


def _rgb_coefficients(fmt: PixelFormat, color: ColorSpec) -> tuple[list[list[float]], list[float]]:
    """float64 ``(weights, bias)`` of R, G, B before the colour matrix."""
    top = 2**fmt.bits - 1
    if fmt.family == "rgb":
        w = 255 / top
        return [[w, 0.0, 0.0], [0.0, w, 0.0], [0.0, 0.0, w]], [0.0, 0.0, 0.0]
    unit, middle = 2 ** (fmt.bits - 8), 2 ** (fmt.bits - 1)
    if color.full_range:
        black, luma, chroma = 0, 255 / top, 255 / top
    else:
        black, luma, chroma = 16 * unit, 255 / (219 * unit), 255 / (224 * unit)
    if fmt.family == "gray":
        return [[luma]] * 3, [-black * luma] * 3
    kr, kb = _LUMA_WEIGHTS[color.matrix]
    kg = 1 - kr - kb
    weights = [
        [luma, 0.0, chroma * (2 * (1 - kr))],
        [luma, chroma * (-2 * kb * (1 - kb) / kg), chroma * (-2 * kr * (1 - kr) / kg)],
        [luma, chroma * (2 * (1 - kb)), 0.0],
    ]
    return weights, [-(black * y + middle * (u + v)) for y, u, v in weights]


def _fused(
    components: Sequence[Tensor], fmt: PixelFormat, color: ColorSpec, g: Geometry, transform: FrameTransform
) -> Tensor:
    """Resize and crop the components, then RGB levels, one clamp, and the transform's affine."""
    resized = [_crop(_resize(c[None, None], g, transform)[0, 0], g) for c in components]
    weights, bias = _level_coefficients(fmt, color, transform)
    channels = []
    for row, b, mul, add in zip(weights, bias, *transform.affine, strict=True):
        level = torch.full_like(resized[0], b)
        for w, c in zip(row, resized, strict=True):
            level = level + w * c
        channels.append(level.clamp(0, 255) * mul + add)
    return torch.stack(channels)


def _rgb8(
    components: Sequence[Tensor], fmt: PixelFormat, color: ColorSpec, g: Geometry, transform: FrameTransform
) -> Tensor:
    """Full-size RGB bytes, then the resize on bytes and the crop: uint8 (3, out_h, out_w)."""
    weights, bias = _level_coefficients(fmt, color, transform)
    # Chroma weights are multiples of 1/16 and samples have at most 12 bits: exact in float32.
    values = [c.to(torch.float32) for c in components]
    channels = []
    for row, b in zip(weights, bias, strict=True):
        # Torch makes a Python float float32 before it meets a float32 tensor; each operation rounds once.
        level = torch.zeros_like(values[0])
        for w, value in zip(row, values, strict=True):
            if w != 0:
                level = level + value * w
        channels.append((level + b).round().clamp(0, 255).to(torch.uint8))
    return _crop(_resize_bytes(torch.stack(channels)[None], g, transform)[0], g)


def _normalise_like_hf(rgb: Tensor, transform: FrameTransform) -> Tensor:
    """Rescale and normalise bytes in float32, the two steps fused as Hugging Face's image processors do."""
    scale = 1 / 255 if transform.scale is None else transform.scale
    if transform.mean is None and transform.std is None:
        return rgb.to(torch.float32) * scale
    mean = torch.tensor(transform.mean or (0.0, 0.0, 0.0)) * (1 / scale)
    std = torch.tensor(transform.std or (1.0, 1.0, 1.0)) * (1 / scale)
    return (rgb.to(torch.float32) - mean[:, None, None]) / std[:, None, None]


def _crop(x: Tensor, g: Geometry) -> Tensor:
    return x[..., g.top : g.top + g.out_h, g.left : g.left + g.out_w]


def _resize(x: Tensor, g: Geometry, transform: FrameTransform) -> Tensor:
    """``interpolate`` of (N, C, h, w) in its own floating dtype; the identity where the size stays."""
    size = (g.resize_h, g.resize_w)
    if tuple(x.shape[2:]) == size:
        return x
    if transform.interpolation == "nearest":
        # torch finds the nearest sample in the tensor's own precision; the contract is float32's choice.
        rows, cols = (_nearest_index(n, m) for n, m in zip(x.shape[2:], size, strict=True))
        return x[:, :, rows][:, :, :, cols]
    if transform.interpolation == "area":
        return F.interpolate(x, size=size, mode="area")
    return _interpolate(x, size, transform)


def _interpolate(x: Tensor, size: tuple[int, int], transform: FrameTransform) -> Tensor:
    def torch_interpolate(x: Tensor, *size: int) -> Tensor:
        return F.interpolate(
            x, size=size, mode=transform.interpolation, align_corners=False, antialias=transform.antialias
        )

    if size[1] > 1:
        return torch_interpolate(x, *size)
    # torch 2.13 returns wrong numbers, or fails an internal assertion, for results of one column. Its two
    # passes (horizontal, then vertical, bytes rounded in between) are right one by one on a doubled picture.
    h = x.shape[2]
    column = torch_interpolate(torch.cat([x, x], 2), 2 * h, 1)[:, :, :h]
    return torch_interpolate(torch.cat([column, column], 3), size[0], 2)[:, :, :, :1]


def _nearest_index(size: int, out_size: int) -> Tensor:
    positions = torch.arange(size, dtype=torch.float32)
    return F.interpolate(positions[None, None], size=out_size, mode="nearest")[0, 0].long()


def _resize_bytes(x: Tensor, g: Geometry, transform: FrameTransform) -> Tensor:
    """``interpolate`` of bytes (1, 3, h, w); "area", which torch lacks for bytes, is the rounded mean."""
    if transform.interpolation == "area":
        return _resize(x.to(torch.float64), g, transform).round().to(torch.uint8)
    return _resize(x, g, transform)
