"""Frames of PyAV whose planes lie on a CUDA device: what FFmpeg's NVDEC decoder gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mmcore.errors import UnsupportedError
from mmcore.ops.planes import Planes

if TYPE_CHECKING:
    import av

__all__ = ["held_format", "is_surface", "surface_device", "surface_planes"]

_CUDA = 2  # kDLCUDA of DLDeviceType
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


def surface_device(frame: av.VideoFrame) -> torch.device:
    """Where a frame's planes lie."""
    kind, index = frame.planes[0].__dlpack_device__()
    return torch.device("cuda", index) if kind == _CUDA else torch.device("cpu")


def surface_planes(frame: av.VideoFrame) -> Planes:
    """Describe a frame on a device as Planes, which hold it; nothing is copied.

    FFmpeg fills such frames on the legacy default stream, and fills their memory anew once they are dropped:
    the conversion waits for what is on that stream, and what comes later on it waits for the conversion.

    Raises
    ------
    UnsupportedError
        If the frame is of a format that cannot be read as planes.
    """
    format_name, device, planes = held_format(frame), surface_device(frame), frame.planes
    return Planes.from_pointers(
        [plane.buffer_ptr for plane in planes],
        [plane.line_size for plane in planes],
        format_name,
        frame.height,
        frame.width,
        device=device,
        stream=0 if device.type == "cuda" else None,
        owner=frame,
        matrix=_MATRICES.get(int(frame.colorspace), "601"),
        full_range=int(frame.color_range) == 2 or None,  # AVCOL_RANGE_JPEG
    )
