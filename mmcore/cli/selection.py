"""Which frames a command reads, and reading them with a progress bar."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mmcore.cli.render import format_bytes, progress_bar

if TYPE_CHECKING:
    import torch

    from mmcore import FrameTransform, VideoDecoder

__all__ = ["check_memory", "named_as_options", "read", "select", "spread"]

CHUNK = 16  # frames per step of the progress bar


def spread(count: int, wanted: int) -> list[int]:
    """``wanted`` positions (or all, if fewer) spread evenly over ``count``, first and last among them."""
    if wanted >= count:
        return list(range(count))
    if wanted == 1:
        return [count // 2]
    return [round(i * (count - 1) / (wanted - 1)) for i in range(wanted)]


def select(
    decoder: VideoDecoder,
    *,
    start: float | None = None,
    stop: float | None = None,
    fps: float | None = None,
    every: int | None = None,
    num: int | None = None,
    indices: list[int] | None = None,
) -> tuple[list[int], list[float] | None]:
    """Frame indices that the options ask for, and with ``fps`` the time that each stands for.

    Times mean what they mean in ``VideoDecoder.get_frames_played_in_range``.
    """
    count = len(decoder)
    if indices is not None:
        for i in indices:
            if not -count <= i < count:
                raise IndexError(f"--indices: {i} is out of range, the stream has {count} frames")
        return [i % count for i in indices], None
    meta = decoder.metadata
    end = meta.end_stream_seconds
    if start is None:
        start = meta.begin_stream_seconds
    if stop is None or (end is not None and end < stop < end + 1e-3):  # info prints milliseconds
        stop = start if end is None else end
    try:
        chosen, grid = decoder.find_frames_played_in_range(start, stop, fps=fps)
    except ValueError as error:
        raise ValueError(named_as_options(error)) from None
    if not chosen:
        raise ValueError(f"--start, --stop: there is no frame from {start} to before {stop} s")
    if fps is not None:
        return chosen, grid.tolist()
    if every is not None:
        return chosen[::every], None
    if num is not None:
        if num > len(chosen):
            raise ValueError(f"--num: {num} frames were asked for, but the range has only {len(chosen)}")
        return [chosen[i] for i in spread(len(chosen), num)], None
    return chosen, None


def named_as_options(error: ValueError) -> str:
    """The message, with the options' names in place of the arguments'."""
    text = str(error)
    for name, option in (("start_seconds", "--start"), ("stop_seconds", "--stop"), ("fps:", "--fps:")):
        text = text.replace(name, option)
    return text


def read(
    decoder: VideoDecoder, transform: FrameTransform, indices: list[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Decode ``indices`` into one tensor: (frames, pts_seconds, duration_seconds)."""
    import torch

    from mmcore.ops.frame_transform import Patches

    count, meta, layout = len(indices), decoder.metadata, transform.layout
    shape = transform.output_shape(count, meta.height, meta.width)
    check_memory(math.prod(shape) * transform.dtype.itemsize)
    frames = torch.empty(shape, dtype=transform.dtype)
    pts, duration = (torch.empty(count, dtype=torch.float64) for _ in range(2))
    # rows (or frames) of the result per step: a step never splits a group of frames that one patch covers
    step = CHUNK if not isinstance(layout, Patches) else CHUNK * layout.temporal_patch_size
    dim = layout.index("N") if isinstance(layout, str) else 0
    with progress_bar() as progress:
        task = progress.add_task("decoding", total=count)
        row = 0
        for first in range(0, count, step):
            batch = decoder.get_frames_at(indices[first : first + step])
            rows = batch.data.shape[dim]
            frames.narrow(dim, row, rows).copy_(batch.data)
            pts[first : first + step] = batch.pts_seconds
            duration[first : first + step] = batch.duration_seconds
            row += rows
            progress.update(task, completed=min(first + step, count))
    return frames, pts, duration


def check_memory(needed: int) -> None:
    """Raise MemoryError if so many bytes are not free."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux: let the allocation decide
        return
    if needed > available:
        raise MemoryError(
            f"the tensor would take {format_bytes(needed)}, but only {format_bytes(available)} of memory are"
            " free:"
            " take fewer frames (--num, --every, --fps, --stop), smaller ones (--resize, --crop)"
            " or a smaller --dtype"
        )
