"""Where frames that were decoded on the CPU are converted for a GPU: there, or before the upload.

Converting on the GPU uploads the planes, 1.5 bytes a pixel of what the crop needs. Converting on the CPU
uploads the result, which is small after a resize, and costs CPU time that could decode. The CPU's threads,
the bus and the GPU work at the same time, so the slowest of them decides.

The figures below are measured one by one, on the machines named. What they add up to, a whole decode onto a
GPU, has not been measured yet.
"""

from __future__ import annotations

from typing import NamedTuple

from mmcore.ops.frame_transform import FrameTransform

__all__ = ["Conversion", "is_better_on_cpu"]

# One thread of a Xeon with AVX-512, frames as the decoder leaves them in its caches: seconds per byte read of
# the planes, and per value written.
_CPU_BYTE, _CPU_BYTE_BICUBIC, _CPU_BYTE_RGB8 = 0.1e-9, 0.2e-9, 0.7e-9
_CPU_VALUE, _CPU_VALUE_RESIZED = 0.12e-9, 0.4e-9
_COPY_BYTE = 0.05e-9
_TABLES_BYTE = 0.5e-9  # making the tables of a kind of frames, per byte of a frame
_DECODE_PIXEL = 2e-9  # of H.264
# An H200 on PCIe 5 x16 (bench/results/gpu-2026-11-26-h200.json): pinned memory to device; 1080p and 4K
# frames.
_BUS_BYTE = 1 / 55e9
_GPU_BYTE = 1 / 750e9
_LAUNCH = 150e-6  # of the host, for each group of frames


class Conversion(NamedTuple):
    """What there is to do.

    Attributes
    ----------
    frames : int
    pixels, plane_bytes, values : int
        Of one frame: its pixels, the bytes of its planes that are needed, the values it becomes.
    groups : int
        Uploads, if it is the planes that go.
    new_kind : bool
        Tables have to be made for such frames, and perhaps only for these.
    threads : int
        Of the CPU.
    decodes : bool
        False: the frames are there already.
    """

    frames: int
    pixels: int
    plane_bytes: int
    values: int
    groups: int
    new_kind: bool = False
    threads: int = 1
    decodes: bool = True


def is_better_on_cpu(work: Conversion, transform: FrameTransform) -> bool:
    """Whether converting on the CPU and uploading the result is expected to take less time."""
    return _seconds_on_cpu(work, transform) < _seconds_on_gpu(work, transform)


def _seconds_on_cpu(work: Conversion, transform: FrameTransform) -> float:
    resized = transform.resize is not None
    per_byte = _CPU_BYTE_BICUBIC if resized and transform.interpolation == "bicubic" else _CPU_BYTE
    if resized and transform.accuracy == "rgb8":
        per_byte = _CPU_BYTE_RGB8
    per_value = _CPU_VALUE_RESIZED if resized else _CPU_VALUE
    convert = work.plane_bytes * per_byte + work.values * per_value
    bus = work.values * transform.dtype.itemsize * _BUS_BYTE
    # One upload at the end, when there is nothing left to do beside it.
    return work.frames * (_host_seconds(work, convert) + bus)


def _seconds_on_gpu(work: Conversion, transform: FrameTransform) -> float:
    # One thread launches while the others go on.
    launches = work.groups * _LAUNCH / max(1, work.threads)
    tables = work.plane_bytes * _TABLES_BYTE if work.new_kind else 0.0
    host = work.frames * _host_seconds(work, work.plane_bytes * _COPY_BYTE) + launches + tables
    bus = work.frames * work.plane_bytes * _BUS_BYTE
    gpu = work.frames * (work.plane_bytes + work.values * transform.dtype.itemsize) * _GPU_BYTE
    # The last group has nothing beside it.
    return max(host, bus, gpu) + _LAUNCH + (bus + gpu) / max(1, work.groups)


def _host_seconds(work: Conversion, seconds: float) -> float:
    """CPU time of a frame, shared by the threads that there is work for."""
    threads = max(1, min(work.threads, work.frames))
    return (seconds + (work.pixels * _DECODE_PIXEL if work.decodes else 0.0)) / threads
