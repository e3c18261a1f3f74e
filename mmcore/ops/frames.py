"""The frames op: decoded frames' planes to a model's input tensor, in one pass.

    level = clamp(matrix @ resize(planes), 0, 255);   value = (level * scale - mean) / std

with range, matrix and chroma position of the stream, at the cost of about one read of the planes and one
write of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from mmcore.ops._library import LIBRARY
from mmcore.ops.frame_batch_builder import FrameBatchBuilder
from mmcore.ops.frame_transform import FrameTransform
from mmcore.ops.planes import (
    RGB_BYTES,
    Planes,
    check_device,
    check_planes,
    convert_planes,
    pixel_format,
    planes_color,
)

if TYPE_CHECKING:
    import av

__all__ = ["frames_to_tensor"]


def frames_to_tensor(
    frames: av.VideoFrame | Sequence[av.VideoFrame] | Planes,
    transform: FrameTransform | None = None,
    *,
    out: Tensor | None = None,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Convert decoded frames to a model's input tensor in one pass over their planes.

    Parameters
    ----------
    frames : av.VideoFrame, sequence of av.VideoFrame, or Planes
        T frames. They may differ in size and format as long as the transform gives them one size.
    transform : FrameTransform, optional
        What to do; None gives full-size uint8 RGB.
    out : Tensor, optional
        Contiguous tensor of the result's shape and dtype to write into, on the planes' device (else on the
        CPU); it must not overlap the planes.
        None: recycled memory (see :func:`mmcore.set_output_pool_limit`).
    device : str or torch.device
        Only "cpu", for frames of PyAV. Planes are converted where they lie, on the CPU or on a CUDA device;
        there on torch's current stream, without waiting, by kernels that a CUDA graph can hold.

    Returns
    -------
    Tensor
        (T, 3, H, W), or as ``transform.layout`` says; ``transform.dtype``; ``out`` if it was given.

    Raises
    ------
    TypeError, ValueError
        For frames, an ``out`` or a transform that do not fit; nothing has been written then.
    UnsupportedError
        For a device or a pixel format that cannot be converted.

    Notes
    -----
    Formats outside ``mmcore.PIXEL_FORMATS`` go through PyAV's ``reformat`` to RGB first, with one warning per
    format. Colour: ITU-R BT.601, BT.709, BT.2020 (non-constant luminance).

    Examples
    --------
    >>> import mmcore, torch
    >>> gray = mmcore.Planes((torch.full((1, 4, 6), 126, dtype=torch.uint8),), "gray", 4, 6)
    >>> mmcore.frames_to_tensor(gray, mmcore.FrameTransform(resize=(2, 3), dtype=torch.uint8)).unique()
    tensor([128], dtype=torch.uint8)
    """
    if transform is None:
        transform = RGB_BYTES
    elif not isinstance(transform, FrameTransform):
        raise TypeError(f"transform: expected a FrameTransform or None, got {type(transform).__name__}")
    check_device(device)
    if isinstance(frames, Planes):
        if torch.compiler.is_compiling():
            result: Tensor = torch.ops.mmcore.frames_to_tensor(
                list(frames.data),
                frames.format,
                frames.height,
                frames.width,
                frames.matrix,
                frames.full_range,
                frames.chroma_location,
                transform.spec,
            )
            return result if out is None else out.copy_(result)
        color = planes_color(
            pixel_format(frames.format), frames.matrix, frames.full_range, frames.chroma_location, transform
        )
        return convert_planes(frames.data, frames.format, frames.height, frames.width, color, transform, out)
    batch = _frame_list(frames)
    builder = FrameBatchBuilder(len(batch), transform, out=out)
    builder.put_many(batch)
    return builder.finish()


def _frame_list(frames: object) -> list[av.VideoFrame]:
    if hasattr(frames, "planes"):
        return [cast("av.VideoFrame", frames)]
    if isinstance(frames, (str, bytes)) or not isinstance(frames, Sequence):
        raise TypeError(
            f"frames: expected an av.VideoFrame, a sequence of them or Planes, got {type(frames).__name__}"
        )
    if not frames:
        raise ValueError("frames: expected at least one frame, got an empty sequence")
    for i, frame in enumerate(frames):
        if not hasattr(frame, "planes"):
            raise TypeError(f"frames: item {i}: expected an av.VideoFrame, got {type(frame).__name__}")
    return list(frames)


LIBRARY.define(  # type: ignore[no-untyped-call]
    "frames_to_tensor(Tensor[] planes, str format, SymInt height, SymInt width, str? matrix,"
    " bool? full_range, str? chroma_location, str transform) -> Tensor"
)


def _frames_to_tensor_op(
    planes: list[Tensor],
    format: str,
    height: int,
    width: int,
    matrix: str | None,
    full_range: bool | None,
    chroma_location: str | None,
    transform: str,
) -> Tensor:
    parsed, fmt = FrameTransform.from_spec(transform), pixel_format(format)
    check_planes(planes, fmt, height, width)
    color = planes_color(fmt, matrix, full_range, chroma_location, parsed)
    return convert_planes(planes, format, height, width, color, parsed, None)


def _frames_to_tensor_fake(
    planes: list[Tensor],
    format: str,
    height: int,
    width: int,
    matrix: str | None,
    full_range: bool | None,
    chroma_location: str | None,
    transform: str,
) -> Tensor:
    parsed = FrameTransform.from_spec(transform)
    return planes[0].new_empty(parsed.output_shape(planes[0].shape[0], height, width), dtype=parsed.dtype)


LIBRARY.impl("frames_to_tensor", _frames_to_tensor_op, "CPU")  # type: ignore[no-untyped-call]
LIBRARY.impl("frames_to_tensor", _frames_to_tensor_op, "CUDA")  # type: ignore[no-untyped-call]
torch.library.register_fake("mmcore::frames_to_tensor", _frames_to_tensor_fake, lib=LIBRARY)
