"""Frames grouped by kind, and their conversion on the active backend: those of one call in one batch."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mmcore.backends import active_backend, load_backend
from mmcore.backends.cpu import frames_plan, output_desc
from mmcore.ops.frame_transform import FrameTransform
from mmcore.ops.pixel_formats import PixelFormat
from mmcore.ops.plane_memory import Plane, PlaneMemory, hand_back, plane_tensors, wait_for_producers
from mmcore.ops.planes import (
    ColorSpec,
    ForeignPlanes,
    Planes,
    pixel_format,
    planes_color,
    prepare_out,
    repeat_last,
)
from mmcore.threads import get_num_threads

if TYPE_CHECKING:
    from mmcore import _core

__all__ = ["FrameGroup", "SourceKind", "convert_groups", "convert_planes", "planes_group"]


class SourceKind:
    """Frames of one format, size and colour and what becomes of them: what their conversions share."""

    def __init__(
        self, fmt: PixelFormat, height: int, width: int, color: ColorSpec, transform: FrameTransform
    ):
        self.fmt, self.height, self.width = fmt, height, width
        self.color, self.transform = color, transform
        g = transform.geometry(height, width)
        self.out_size = g.out_h, g.out_w
        self.shapes = [fmt.plane_shape(p, height, width) for p in range(fmt.num_planes)]
        self.sample_bytes = fmt.bytes_per_sample

    @functools.lru_cache(maxsize=16)  # noqa: B019 - kinds are kept anyway
    def output_shape(self, frames: int) -> tuple[int, ...]:
        """Shape of a batch of so many frames."""
        return self.transform.output_shape(frames, self.height, self.width)

    @functools.cached_property
    def plan(self) -> _core.FramesPlan:
        """Filters and coefficients."""
        return frames_plan(self.fmt, self.height, self.width, self.color, self.transform)


@functools.lru_cache(maxsize=1024)
def source_kind(format_name: str, height: int, width: int, color: ColorSpec, transform: str) -> SourceKind:
    """Look up a kind of frames; by the transform's spec, whose hash is at hand."""
    return SourceKind(pixel_format(format_name), height, width, color, FrameTransform.from_spec(transform))


def planes_kind(planes: Planes, transform: FrameTransform) -> SourceKind:
    """Kind of Planes under a transform."""
    color = planes_color(
        pixel_format(planes.format), planes.matrix, planes.full_range, planes.chroma_location, transform
    )
    return source_kind(planes.format, planes.height, planes.width, color, transform.spec)


class FrameGroup(NamedTuple):
    """Frames of one kind that lie in one place."""

    kind: SourceKind
    memory: PlaneMemory
    tensors: Sequence[Tensor] | None  # None: to be made of the memory where something reads tensors


def tensor_group(data: Sequence[Tensor], kind: SourceKind) -> FrameGroup:
    """Group of checked (T, rows, samples) planes."""
    planes, tensors, size = [], [], kind.sample_bytes
    for tensor in data[: len(kind.shapes)]:
        frame, row, sample = tensor.stride()
        if sample != 1 and tensor.shape[2] != 1:
            tensor = tensor.contiguous()
            frame, row, _ = tensor.stride()
        tensors.append(tensor)
        planes.append(Plane(tensor.data_ptr(), row * size, frame * size))
    return FrameGroup(kind, PlaneMemory(tuple(planes), tensors[0].shape[0], tensors[0].device), tensors)


def planes_group(planes: Planes, transform: FrameTransform) -> FrameGroup:
    """Group of Planes under a transform."""
    kind = planes_kind(planes, transform)
    if isinstance(planes, ForeignPlanes):
        return FrameGroup(kind, planes.memory, None)
    return tensor_group(planes.data, kind)


def convert_planes(
    data: Sequence[Tensor],
    format_name: str,
    height: int,
    width: int,
    color: ColorSpec,
    transform: FrameTransform,
    out: Tensor | None,
) -> Tensor:
    """Convert (T, rows, samples) planes on the active backend into a batch in the transform's layout."""
    kind = source_kind(format_name, height, width, color, transform.spec)
    return convert_groups([tensor_group(data, kind)], transform, out)


def convert_groups(groups: Sequence[FrameGroup], transform: FrameTransform, out: Tensor | None) -> Tensor:
    """Convert groups of frames, which may differ in kind but not in their result's size, into one batch."""
    kind, memory, _ = groups[0]
    size, device = kind.out_size, memory.device
    count = 0
    for i, group in enumerate(groups):
        if group.memory.device != device:
            raise ValueError(f"frames: item {i} is on {group.memory.device}, item 0 on {device}")
        if group.kind.out_size != size:
            h, w = group.kind.out_size
            raise ValueError(
                f"frames: item {i} of {group.kind.height}x{group.kind.width} pixels becomes {h}x{w}, those"
                f" before it became {size[0]}x{size[1]}: set resize=(height, width) for frames of unequal"
                " size"
            )
        count += group.memory.frames
    result = prepare_out(out, kind.output_shape(count), transform.dtype, device)
    if out is not None and any(_overlap(out, group) for group in groups):
        raise ValueError("out: overlaps the memory of the planes")
    if count == 0:
        return result
    backend = active_backend(device.type, ("reference", "cpu", "cuda"))
    memories = [group.memory for group in groups]
    if device.type == "cuda":
        wait_for_producers(device, memories)
    if backend == "reference":
        from mmcore.backends import reference

        values = torch.cat([_reference(group) for group in groups])
        result.copy_(reference.apply_layout(values, transform.layout))
    elif backend == "cuda":
        load_backend("cuda").convert_groups(groups, result)
        repeat_last(result, transform.layout, count, *size)
    else:
        _convert_on_cpu(groups, transform, result)
        repeat_last(result, transform.layout, count, *size)
    if device.type == "cuda":
        hand_back(device, memories)
    return result


def _reference(group: FrameGroup) -> Tensor:
    from mmcore.backends import reference

    kind, memory, tensors = group
    if tensors is None:
        tensors = plane_tensors(memory, kind.fmt, kind.height, kind.width)
    data = [p.detach().cpu() for p in tensors]
    return reference.convert(data, kind.fmt, kind.height, kind.width, kind.color, kind.transform)


def _convert_on_cpu(groups: Sequence[FrameGroup], transform: FrameTransform, out: Tensor) -> None:
    output = output_desc(out, transform.layout, *groups[0].kind.out_size)
    threads = get_num_threads()
    first = 0
    # Neighbours of one kind are one call, which shares them out to the threads.
    for kind, same in itertools.groupby(groups, lambda group: group.kind):
        frames = [
            [(p.address + t * p.frame_pitch, p.pitch) for p in group.memory.planes]
            for group in same
            for t in range(group.memory.frames)
        ]
        kind.plan.convert(frames, output, first, threads)
        first += len(frames)


def _overlap(out: Tensor, group: FrameGroup) -> bool:
    low, kind = out.data_ptr(), group.kind
    if out.numel() == 0 or group.memory.frames == 0:
        return False
    high = low + out.numel() * out.element_size()  # contiguous
    return any(
        low < end and first < high for first, end in group.memory.spans(kind.shapes, kind.sample_bytes)
    )
