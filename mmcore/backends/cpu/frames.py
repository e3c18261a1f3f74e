"""The frames op of the compiled core: its plan and where its output goes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from mmcore import _core

if TYPE_CHECKING:
    from mmcore.ops.frame_transform import FrameTransform, Patches
    from mmcore.ops.pixel_formats import PixelFormat
    from mmcore.ops.planes import ColorSpec

__all__ = ["Output", "frames_plan", "output_desc"]

# The enumerations of csrc/include/mmcore/frames.h
_FAMILY = {"yuv": 0, "gray": 1, "rgb": 2}
_INTERPOLATION = {"nearest": 0, "bilinear": 1, "bicubic": 2, "area": 3}
_CHROMA = {"left": 0, "center": 1, "topleft": 2, "nearest": 3}
_ACCURACY = {"fused": 0, "rgb8": 1}
_DTYPE = {torch.uint8: 0, torch.float16: 1, torch.bfloat16: 2, torch.float32: 3}
_KR_KB = {"601": (0.299, 0.114), "709": (0.2126, 0.0722), "2020": (0.2627, 0.0593)}

Output = tuple[int, int, int, int, int, int, int, int]


@functools.lru_cache(maxsize=256)
def frames_plan(
    fmt: PixelFormat, height: int, width: int, color: ColorSpec, transform: FrameTransform
) -> _core.FramesPlan:
    """Filters and coefficients for one kind of source frame; kept: one costs as much as a frame."""
    g = transform.geometry(height, width)
    mul, add = transform.affine
    scale = 1 / 255 if transform.scale is None else transform.scale
    sub_div: tuple[Sequence[float], Sequence[float]] | None = None
    if transform.mean is not None or transform.std is not None:
        # float32 products, as Hugging Face's processors fuse rescaling into the normalisation
        zeros, ones = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        sub = torch.tensor(transform.mean or zeros, dtype=torch.float32) * (1 / scale)
        div = torch.tensor(transform.std or ones, dtype=torch.float32) * (1 / scale)
        sub_div = sub.tolist(), div.tolist()
    return _core.FramesPlan(
        family=_FAMILY[fmt.family],
        components=[(c.plane, c.offset, c.step) for c in fmt.components],
        bits=fmt.bits,
        shift=fmt.shift,
        log2_chroma=(fmt.log2_chroma_w, fmt.log2_chroma_h),
        source=(height, width),
        resize=(g.resize_h, g.resize_w),
        crop=(g.top, g.left, g.out_h, g.out_w),
        interpolation=_INTERPOLATION[transform.interpolation],
        antialias=transform.antialias,
        chroma=_CHROMA[color.chroma_location],
        kr_kb=_KR_KB[color.matrix],
        full_range=color.full_range,
        accuracy=_ACCURACY[transform.accuracy],
        dtype=_DTYPE[transform.dtype],
        mul=mul,
        add=add,
        sub_div=sub_div,
        scale=scale,
        color=transform.color_matrix,
        horizontal_flip=transform.horizontal_flip,
    )


def output_desc(out: torch.Tensor, layout: str | Patches, height: int, width: int) -> Output:
    """Address and element strides of a contiguous batch, as the core takes them."""
    if not isinstance(layout, str):
        patch = (layout.patch_size, layout.temporal_patch_size, layout.merge_size)
        return (out.data_ptr(), 0, 0, 0, 1, *patch)
    strides = dict(zip(layout, out.stride(), strict=True))
    # A row one pixel wide has no say in what lies beside a pixel; torch leaves such strides free.
    pixel = 3 if layout == "NHWC" else 1
    return (out.data_ptr(), strides["N"], strides["C"], width * pixel, pixel, 0, 1, 1)
