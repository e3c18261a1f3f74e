"""Where a call's frames shall be, and where they are converted for it."""

from __future__ import annotations

import functools
import math
import os
from dataclasses import dataclass
from typing import TypeAlias

import torch

from mmcore.backends import forced_backend, missing_backends
from mmcore.errors import UnsupportedError
from mmcore.ops.conversion_cost import Conversion, is_better_on_cpu
from mmcore.ops.devices import DeviceQueue, check_device, open_queue
from mmcore.ops.frame_transform import FrameTransform
from mmcore.ops.frame_uploader import GROUP_BYTES, frame_kind, is_new_kind
from mmcore.ops.pixel_formats import PixelFormat
from mmcore.ops.planes import ColorSpec
from mmcore.threads import get_num_threads

__all__ = ["DeviceTarget", "FrameDescription", "check_convert_on", "open_target"]

FrameDescription: TypeAlias = tuple[PixelFormat, int, int, ColorSpec, FrameTransform]


@dataclass(frozen=True)
class DeviceTarget:
    """A call's frames on their way to a device.

    Attributes
    ----------
    queue : DeviceQueue
    convert_on : {"auto", "cpu", "cuda"}
        "cuda" only if its kernels are there.
    backend : {"reference", "cpu"}
        What converts frames that are converted on the CPU.
    threads : int
        That decode or convert.
    decodes : bool
        Whether the frames come out of a decoder, one by one.
    """

    queue: DeviceQueue
    convert_on: str
    backend: str
    threads: int
    decodes: bool

    def uploads_planes(
        self, described: FrameDescription | None, num_frames: int, shape: tuple[int, ...]
    ) -> bool:
        """Whether planes are uploaded and converted on the device, rather than the finished batch uploaded.

        Parameters
        ----------
        described : FrameDescription or None
            The first frame's; None if it takes the slow way.
        num_frames : int
        shape : tuple of int
            Of the batch.
        """
        if self.convert_on != "auto":
            return self.convert_on == "cuda"
        if described is None:
            return False
        kind = frame_kind(*described)
        work = Conversion(
            frames=num_frames,
            pixels=kind.key[1] * kind.key[2],
            plane_bytes=kind.plane_bytes,
            values=math.prod(shape) // num_frames,
            groups=math.ceil(num_frames / max(1, GROUP_BYTES // kind.size)),
            new_kind=is_new_kind(self.queue, kind),
            threads=self.threads,
            decodes=self.decodes,
        )
        return not is_better_on_cpu(work, kind.key[4])


@functools.cache
def _why_not_on_cuda() -> str | None:
    """Why frames cannot be converted on a GPU, None if they can; looking takes longer than a call may."""
    return missing_backends().get("cuda")


def check_convert_on(value: object, device: torch.device) -> str:
    """``convert_on`` if it can be had for a device.

    Raises
    ------
    ValueError
        If it is not one of its values, or not one for the device.
    UnsupportedError
        If it is "cuda" and this build has no kernels for that.
    """
    if value not in ("auto", "cpu", "cuda"):
        raise ValueError(f"convert_on: expected 'auto', 'cpu' or 'cuda', got {value!r}")
    if value == "cuda" and device.type == "cpu":
        raise ValueError("convert_on: 'cuda' is for frames on a CUDA device: device='cuda'")
    reason = _why_not_on_cuda() if value == "cuda" else None
    if reason is not None:
        raise UnsupportedError(f"convert_on 'cuda': {reason}; use convert_on='auto' or 'cpu'")
    return str(value)


def open_target(
    device: str | torch.device,
    convert_on: str = "auto",
    threads: int | None = None,
    decodes: bool = False,
) -> DeviceTarget | None:
    """Begin a call whose frames shall be on ``device``, in the order of its current stream; None for the CPU.

    Raises
    ------
    ValueError, UnsupportedError
        For a device or ``convert_on`` that cannot be had, or a forced backend that has no part in it.
    """
    place, backend = check_convert_on(convert_on, check_device(device)), "cpu"
    queue = open_queue(device)
    if queue is None:
        return None
    forced = forced_backend() or os.environ.get("MMCORE_BACKEND") or None
    if forced == "triton":
        raise UnsupportedError("backend 'triton' does not convert frames; 'cuda', 'cpu' and 'reference' do")
    if forced == "reference":
        place, backend = "cpu", "reference"
    elif forced is not None:
        place = check_convert_on(forced, queue.device)
    elif place == "auto" and _why_not_on_cuda():
        place = "cpu"
    return DeviceTarget(queue, place, backend, threads or get_num_threads(), decodes)
