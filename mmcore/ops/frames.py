"""The frames op: decoded frames' planes to a model's input tensor, in one pass.

    level = clamp(matrix @ resize(planes), 0, 255);   value = (level * scale - mean) / std

with range, matrix and chroma position of the stream, at the cost of about one read of the planes and one
write of the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from mmcore.ops._library import LIBRARY
from mmcore.ops.devices import check_device
from mmcore.ops.frame_batch_builder import FrameBatchBuilder
from mmcore.ops.frame_groups import convert_groups, convert_planes, planes_group
from mmcore.ops.frame_transform import FrameTransform
from mmcore.ops.planes import RGB_BYTES, Planes, check_planes, pixel_format, planes_color

if TYPE_CHECKING:
    import av

__all__ = ["frames_to_tensor"]


def frames_to_tensor(
    frames: av.VideoFrame | Sequence[av.VideoFrame] | Planes | Sequence[Planes],
    transform: FrameTransform | None = None,
    *,
    out: Tensor | None = None,
    device: str | torch.device = "cpu",
    convert_on: str = "auto",
) -> Tensor:
    """Convert decoded frames to a model's input tensor in one pass over their planes.

    Parameters
    ----------
    frames : av.VideoFrame, Planes, or a sequence of either
        T frames, those of several Planes one after another. They may differ in size, format and colour as
        long as the transform gives them one size.
    transform : FrameTransform, optional
        What to do; None gives full-size uint8 RGB.
    out : Tensor, optional
        Contiguous tensor of the result's shape and dtype to write into, on the planes' device (else on
        ``device``); it must not overlap the planes.
        None: recycled memory (see :func:`mmcore.set_output_pool_limit`).
    device : str or torch.device
        Where frames of PyAV shall be: "cpu", "cuda", "cuda:1". Planes are converted where they lie. On a CUDA
        device the result is ready in the order of torch's current stream, which is not waited for; the
        conversion of Planes is made of kernels that a CUDA graph can hold.
    convert_on : {"auto", "cpu", "cuda"}
        Where frames of PyAV are converted for a CUDA device. "cuda": their planes are uploaded and converted
        there. "cpu": the CPU's threads convert them, and the result is uploaded. "auto": what is expected to
        be faster for their size, and "cpu" where this build has no CUDA kernels.

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
    wanted = check_device(device)
    if isinstance(frames, Planes):
        _check_lies_on(wanted, frames)
        if torch.compiler.is_compiling():
            result = _compiled(frames, transform)
            return result if out is None else out.copy_(result)
        return convert_groups([planes_group(frames, transform)], transform, out)
    if isinstance(frames, Sequence) and any(isinstance(f, Planes) for f in frames):
        if torch.compiler.is_compiling():
            result = _compiled_list(frames, transform)
            return result if out is None else out.copy_(result)
        planes = _planes_list(frames)
        _check_lies_on(wanted, planes[0])
        return convert_groups([planes_group(p, transform) for p in planes], transform, out)
    batch = _frame_list(frames)
    builder = FrameBatchBuilder(len(batch), transform, out=out, device=wanted, convert_on=convert_on)
    builder.put_many(batch)
    return builder.finish()


def _check_lies_on(wanted: torch.device, planes: Planes) -> None:
    if wanted.type == "cuda" and planes.device.type == "cpu":
        raise ValueError(
            f"device {str(wanted)!r}: Planes are converted where they lie, these on the CPU: make them"
            " of tensors on the device"
        )


def _planes_list(frames: Sequence[object]) -> list[Planes]:
    planes = [f for f in frames if isinstance(f, Planes)]
    if len(planes) != len(frames):
        i, other = next((i, f) for i, f in enumerate(frames) if not isinstance(f, Planes))
        raise TypeError(f"frames: item {i}: expected Planes as the others, got {type(other).__name__}")
    return planes


def _compiled(planes: Planes, transform: FrameTransform) -> Tensor:
    """As one op in the graph that is being compiled."""
    result: Tensor = torch.ops.mmcore.frames_to_tensor(
        list(planes.data),
        planes.format,
        planes.height,
        planes.width,
        planes.matrix,
        planes.full_range,
        planes.chroma_location,
        transform.spec,
    )
    return result


def _compiled_list(frames: Sequence[object], transform: FrameTransform) -> Tensor:
    planes = _planes_list(frames)
    result: Tensor = torch.ops.mmcore.frames_list_to_tensor(
        [tensor for p in planes for tensor in p.data[: pixel_format(p.format).num_planes]],
        [p.format for p in planes],
        [size for p in planes for size in (p.height, p.width)],
        [_tags(p) for p in planes],
        transform.spec,
    )
    return result


def _tags(planes: Planes) -> str:
    """What Planes say of their colours, as one word."""
    full = {None: "", True: "full", False: "limited"}[planes.full_range]
    return f"{planes.matrix or ''},{full},{planes.chroma_location or ''}"


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


# Planes of unequal size: the tensors of all, what each set of them holds (height and width in turn), and as
# _tags tells, its colours.
LIBRARY.define(  # type: ignore[no-untyped-call]
    "frames_list_to_tensor(Tensor[] planes, str[] formats, SymInt[] sizes, str[] colors, str transform)"
    " -> Tensor"
)


def _split_list(
    planes: list[Tensor], formats: list[str], sizes: list[int]
) -> Iterator[tuple[list[Tensor], str, int, int]]:
    first = 0
    for name, height, width in zip(formats, sizes[::2], sizes[1::2], strict=True):
        last = first + pixel_format(name).num_planes
        yield planes[first:last], name, height, width
        first = last


def _frames_list_to_tensor_op(
    planes: list[Tensor], formats: list[str], sizes: list[int], colors: list[str], transform: str
) -> Tensor:
    parsed = FrameTransform.from_spec(transform)
    groups = []
    for (data, name, height, width), tags in zip(_split_list(planes, formats, sizes), colors, strict=True):
        matrix, full, location = tags.split(",")
        full_range = {"": None, "full": True, "limited": False}[full]
        groups.append(
            planes_group(
                Planes(tuple(data), name, height, width, matrix or None, full_range, location or None), parsed
            )
        )
    return convert_groups(groups, parsed, None)


def _frames_list_to_tensor_fake(
    planes: list[Tensor], formats: list[str], sizes: list[int], colors: list[str], transform: str
) -> Tensor:
    parsed = FrameTransform.from_spec(transform)
    count = sum(data[0].shape[0] for data, _, _, _ in _split_list(planes, formats, sizes))
    return planes[0].new_empty(parsed.output_shape(count, sizes[0], sizes[1]), dtype=parsed.dtype)


LIBRARY.impl("frames_list_to_tensor", _frames_list_to_tensor_op, "CPU")  # type: ignore[no-untyped-call]
LIBRARY.impl("frames_list_to_tensor", _frames_list_to_tensor_op, "CUDA")  # type: ignore[no-untyped-call]
torch.library.register_fake("mmcore::frames_list_to_tensor", _frames_list_to_tensor_fake, lib=LIBRARY)
