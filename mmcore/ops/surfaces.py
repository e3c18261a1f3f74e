"""Frames of PyAV whose planes lie on a CUDA device: what FFmpeg's NVDEC decoder gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mmcore.errors import UnsupportedError
from mmcore.ops.planes import Planes

if TYPE_CHECKING:
    import av

__all__ = ["held_format", "is_surface", "surface_planes"]

_CPU, _CUDA = 1, 2  # DLDeviceType
_MATRICES = {1: "709", 9: "2020", 10: "2020"}  # AVColorSpace; every other value reads as BT.601


def is_surface(frame: av.VideoFrame) -> bool:
    """Whether a frame's planes lie on a device."""
    return frame.format.name == "cuda"


def held_format(frame: av.VideoFrame) -> str:
    """Name of the pixel format in which a frame lies on a device.

    Raises
    ------
    UnsupportedError
        If it does not lie on one.
    """
    held = frame.sw_format
    if held is None:
        raise UnsupportedError(f"a frame of format {frame.format.name!r} has no planes on a device")
    return held.name


def surface_planes(frame: av.VideoFrame) -> Planes:
    """Describe a frame on a device as Planes, which hold it; nothing is copied.

    FFmpeg fills such frames on the legacy default stream, and fills their memory anew once they are dropped:
    the conversion waits for what is on that stream, and what comes later on it waits for the conversion.

    Raises
    ------
    UnsupportedError
        If the frame is of a format that cannot be read as planes.
    """
    format_name = held_format(frame)
    planes = frame.planes
    kind, index = planes[0].__dlpack_device__()
    on_device = kind == _CUDA
    return Planes.from_pointers(
        [plane.buffer_ptr for plane in planes],
        [plane.line_size for plane in planes],
        format_name,
        frame.height,
        frame.width,
        device=torch.device("cuda", index) if on_device else "cpu",
        stream=0 if on_device else None,
        owner=frame,
        matrix=_MATRICES.get(int(frame.colorspace), "601"),
        full_range=int(frame.color_range) == 2 or None,  # AVCOL_RANGE_JPEG
    )
