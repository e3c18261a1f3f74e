"""The frames op on a CUDA device: plans' tables there, and the launch."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmcore import _cuda  # type: ignore[attr-defined, unused-ignore]
from mmcore.backends.cpu.frames import frames_plan, output_desc

if TYPE_CHECKING:
    from mmcore.ops.frame_transform import FrameTransform
    from mmcore.ops.pixel_formats import PixelFormat
    from mmcore.ops.planes import ColorSpec

__all__ = ["convert_planes"]


@functools.lru_cache(maxsize=256)
def _device_tables(
    fmt: PixelFormat, height: int, width: int, color: ColorSpec, transform: FrameTransform, device: int
) -> tuple[_cuda.DeviceTables, Tensor]:
    """Tables of one kind of source frame on one device, and the memory that they lie in."""
    tables = frames_plan(fmt, height, width, color, transform).device_tables()
    memory = torch.frombuffer(bytearray(tables), dtype=torch.uint8).to(torch.device("cuda", device))
    # Other streams may be the next to read them.
    torch.cuda.current_stream(device).synchronize()
    return _cuda.DeviceTables(tables, memory.data_ptr()), memory


def convert_planes(
    planes: Sequence[Tensor],
    fmt: PixelFormat,
    height: int,
    width: int,
    color: ColorSpec,
    transform: FrameTransform,
    out: Tensor,
    method: int = 0,
) -> None:
    """Convert (T, rows, samples) planes on a device, rows without gaps between samples, into ``out`` there.

    The first call for a kind of frame copies its tables to the device; later ones only launch, so that they
    can be captured in a CUDA graph. ``method``: 0 as measured best, 1 gathering.
    """
    device = out.device
    g = transform.geometry(height, width)
    tables, _ = _device_tables(fmt, height, width, color, transform, device.index)
    size = fmt.bytes_per_sample
    frames = [
        (
            tables,
            [(p.data_ptr() + t * p.stride(0) * size, p.stride(1) * size) for p in planes],
            t,
        )
        for t in range(len(planes[0]))
    ]
    output = output_desc(out, transform.layout, g.out_h, g.out_w)
    stream = torch.cuda.current_stream(device)
    with torch.cuda.device(device):
        scratch_bytes = _cuda.scratch_bytes(frames)
        scratch = torch.empty(scratch_bytes, dtype=torch.uint8, device=device) if scratch_bytes else None
        address = 0 if scratch is None else scratch.data_ptr()
        _cuda.frames_to_tensor(frames, output, address, stream.cuda_stream, method)
