"""Frames from decoders' memory to a GPU: through pinned memory, as planes, and converted there.

    decoder's frame -- copied --> pinned ring -- uploaded --> device memory -- converted --> the batch's slot
        any thread, no GIL           queue.uploads                       queue.stream

A ring has a few buffers. Each takes a group of frames side by side, of each only the rows and samples that
the transform needs, from several threads at a time. When it is full it is uploaded in one piece, and one
launch converts its frames. What waits for what:

- A frame may be freed when :meth:`FrameUploader.put` returns: it has been copied.
- A buffer is filled again after the event that follows its upload. The host waits for it if all buffers are
  on their way; not for long, as uploads have a stream of their own, behind nothing but other uploads.
- The conversion waits, on the device, for the same event. The memory that was uploaded to is reused after the
  conversion (``queue.keep``). There is a bound on how much of it waits for a caller's stream that is far
  behind; only beyond it does the host wait for that stream.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from mmcore import _core
from mmcore.backends import load_backend
from mmcore.backends.cpu import Output, frames_plan
from mmcore.ops.devices import DeviceQueue
from mmcore.ops.frame_transform import FrameTransform
from mmcore.ops.pixel_formats import PixelFormat
from mmcore.ops.planes import ColorSpec

if TYPE_CHECKING:
    from av.video.plane import VideoPlane

__all__ = ["GROUP_BYTES", "FrameKind", "FrameUploader", "frame_kind"]

RING_BUFFERS = 4
GROUP_BYTES = 16 << 20
"""Of a buffer. The bus needs 2 MiB at a time for 93 % of its speed; the rest is for fewer launches."""
# What may lie on the device and wait for its conversion, if the caller's stream is far behind.
_STAGED_BYTES = 512 << 20
_KEPT_TABLES, _SEEN_KINDS = 64, 256  # kinds of frames per device
_ALIGNMENT = 256
# Kernels read samples in groups of up to 64, and rows by 16, of which what is not needed counts 0.
_SAMPLES, _ROWS_AROUND = 64, 32


# What backends.cuda made of tables, and the memory on the device that they lie in.
_Tables: TypeAlias = tuple[Any, Tensor]


class _Block(NamedTuple):
    """Part of a plane that is uploaded: where it begins in the plane, its extent, and where it is put."""

    plane: int
    first_row: int
    rows: int
    first_byte: int
    bytes: int
    pitch: int
    offset: int


@dataclass(frozen=True, eq=False)  # itself as a key: hashing what it holds takes as long as a launch
class FrameKind:
    """Frames of one format, size and colours, and what of them a transform needs."""

    key: tuple[PixelFormat, int, int, ColorSpec, FrameTransform]  # arguments of frame_kind
    blocks: tuple[_Block, ...]  # in the order of the planes
    size: int  # bytes of a frame in a buffer
    around: int  # bytes beside a buffer's content that may be read

    @property
    def plane_bytes(self) -> int:
        """What is copied and uploaded of a frame."""
        return sum(b.bytes * b.rows for b in self.blocks)


@functools.lru_cache(maxsize=256)
def frame_kind(
    fmt: PixelFormat, height: int, width: int, color: ColorSpec, transform: FrameTransform
) -> FrameKind:
    """Which rows and samples of such frames are uploaded, and where in a buffer they go."""
    blocks, offset, around = [], 0, 0
    size = fmt.bytes_per_sample
    regions = frames_plan(fmt, height, width, color, transform).regions()
    for plane, first_row, rows, first, count in sorted(regions):
        begin = first // _SAMPLES * _SAMPLES
        end = min(-(-(first + count) // _SAMPLES) * _SAMPLES, fmt.plane_shape(plane, height, width)[1])
        pitch = _aligned((end - begin) * size, _SAMPLES * size)
        blocks.append(_Block(plane, first_row, rows, begin * size, (end - begin) * size, pitch, offset))
        offset += _aligned(rows * pitch)
        around = max(around, _aligned(_ROWS_AROUND * pitch))
    return FrameKind((fmt, height, width, color, transform), tuple(blocks), offset, around)


def _aligned(count: int, step: int = _ALIGNMENT) -> int:
    return -(-count // step) * step


class _Group:
    """Frames that share a buffer and become one upload."""

    def __init__(self, buffer: Tensor) -> None:
        self.buffer = buffer
        self.used = 0
        self.writing = 0  # frames that threads are copying
        self.is_full = False
        self.frames: list[tuple[FrameKind, int, int]] = []  # kind, offset in the buffer, slot

    def has_room(self, kind: FrameKind) -> bool:
        return self.used + kind.size <= self.buffer.numel()


class FrameUploader:
    """Uploads planes of a batch's frames, and launches what converts them into the batch.

    Parameters
    ----------
    queue : DeviceQueue
        Of the batch's device.
    output : Output
        The batch, as the kernels take it; it must outlive what is launched.
    num_frames : int
        Expected; more may come.

    Notes
    -----
    Several threads may put frames at a time. If an upload fails, every later call raises its error.
    """

    def __init__(self, queue: DeviceQueue, output: Output, num_frames: int) -> None:
        self._queue, self._output, self._num_frames = queue, output, num_frames
        self._backend = load_backend("cuda")
        self._changed = threading.Condition()
        self._open: _Group | None = None
        self._num_buffers = 0
        self._free: deque[tuple[Tensor, Any]] = deque()  # oldest first, with the event after its upload
        self._staged: deque[tuple[Any, int]] = deque()  # events after conversions, and bytes on the device
        self._tables: dict[FrameKind, _Tables] = {}
        self._error: BaseException | None = None

    def put(self, slot: int, kind: FrameKind, planes: Sequence[VideoPlane]) -> None:
        """Copy what is needed of a frame's planes; the frame may be freed then."""
        with self._changed:
            group = self._with_room(kind)
            offset = group.used
            group.used += kind.size
            group.writing += 1
        try:
            target = group.buffer.data_ptr() + offset
            _core.copy_rows(
                [
                    (
                        planes[b.plane].buffer_ptr + b.first_row * planes[b.plane].line_size + b.first_byte,
                        planes[b.plane].line_size,
                        target + b.offset,
                        b.pitch,
                        b.bytes,
                        b.rows,
                    )
                    for b in kind.blocks
                ]
            )
        except BaseException as error:
            self._fail(error)
            raise
        with self._changed:
            group.frames.append((kind, offset, slot))
            group.writing -= 1
            if group is self._open and not group.has_room(kind):
                self._close(group)
            elif group.is_full and not group.writing:
                self._upload(group)

    def put_surface(self, slot: int, kind: FrameKind, planes: Sequence[VideoPlane]) -> None:
        """Convert a frame that a decoder put on the device; it may be dropped when this returns."""
        queue = self._queue
        addresses = [(plane.buffer_ptr, plane.line_size) for plane in planes]
        with self._changed:
            self._check()
            try:
                is_known = kind in self._tables
                frames = [(self._tables_of(kind), addresses, slot)]
                if not is_known:
                    queue.wait(queue.stream, queue.record(queue.uploads))
                self.use_surface(functools.partial(self._backend.convert_staged, frames, self._output))
            except BaseException as error:
                self._fail(error)
                raise

    def use_surface(self, work: Callable[[], object]) -> None:
        """Launch what reads a frame that a decoder put on the device, and will put another in its place.

        They wait for each other on the device, the host for neither.
        """
        queue = self._queue
        if queue.stream == queue.decoders:
            queue.do(queue.stream, work)
            return
        queue.wait(queue.stream, queue.record(queue.decoders))
        queue.do(queue.stream, work)
        queue.wait(queue.decoders, queue.record(queue.stream))

    def put_picture(self, slot_of: Any, picture: Tensor) -> None:
        """Upload a picture that was converted on the CPU, and give it to ``slot_of`` on the device."""
        queue = self._queue
        pinned = queue.empty_pinned(picture.shape, picture.dtype)
        pinned.copy_(picture)
        staged = queue.empty(picture.shape, picture.dtype, queue.uploads)
        queue.do(queue.uploads, lambda: staged.copy_(pinned, non_blocking=True))
        queue.wait(queue.stream, queue.record(queue.uploads))
        queue.do(queue.stream, lambda: slot_of(staged))
        queue.keep(staged, queue.stream)

    def flush(self) -> None:
        """Upload and convert what is left; no thread may be putting a frame."""
        with self._changed:
            self._check()
            if self._open is not None:
                self._close(self._open)

    # --- all of the following with the lock held

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def _with_room(self, kind: FrameKind) -> _Group:
        """The open group, a new one if this frame has no room in it."""
        while True:
            self._check()
            group = self._open
            if group is not None and group.has_room(kind):
                return group
            if group is not None:
                self._close(group)
            buffer = self._buffer(kind)
            if buffer is not None:
                self._open = _Group(buffer)
            else:  # other threads are copying into all of them
                self._changed.wait()

    def _buffer(self, kind: FrameKind) -> Tensor | None:
        """A buffer that no upload reads any more; None if all are being filled."""
        size = max(kind.size, min(GROUP_BYTES, self._num_frames * kind.size) // kind.size * kind.size)
        if self._num_buffers < RING_BUFFERS and not (self._free and self._free[0][1].query()):
            self._num_buffers += 1
            return self._queue.empty_pinned((size,), torch.uint8)
        if not self._free:
            return None
        buffer, uploaded = self._free.popleft()
        uploaded.synchronize()
        if buffer.numel() < kind.size:
            del buffer
            buffer = self._queue.empty_pinned((size,), torch.uint8)
        return buffer

    def _close(self, group: _Group) -> None:
        self._open, group.is_full = None, True
        if not group.writing:
            self._upload(group)

    def _upload(self, group: _Group) -> None:
        """Enqueue a full group's upload and conversion."""
        try:
            self._enqueue(group)
        except BaseException as error:
            self._fail(error)
            raise

    def _enqueue(self, group: _Group) -> None:
        queue, used = self._queue, group.used
        tables = {kind: self._tables_of(kind) for kind, _, _ in group.frames}
        around = max(kind.around for kind in tables)
        self._wait_for_space(used)
        staged = queue.empty((around + used + around,), torch.uint8, queue.uploads)
        source, target = group.buffer[:used], staged[around : around + used]
        queue.do(queue.uploads, lambda: target.copy_(source, non_blocking=True))
        uploaded = queue.record(queue.uploads)
        queue.wait(queue.stream, uploaded)
        first = target.data_ptr()
        frames = [
            (
                tables[kind],
                # where the whole plane would begin
                [
                    (first + offset + b.offset - b.first_row * b.pitch - b.first_byte, b.pitch)
                    for b in kind.blocks
                ],
                slot,
            )
            for kind, offset, slot in group.frames
        ]
        queue.do(queue.stream, functools.partial(self._backend.convert_staged, frames, self._output))
        queue.keep(staged, queue.stream)
        self._staged.append((queue.record(queue.stream), used))
        self._free.append((group.buffer, uploaded))
        self._changed.notify_all()

    def _wait_for_space(self, coming: int) -> None:
        staged = self._staged
        while staged and (sum(s for _, s in staged) + coming > _STAGED_BYTES or staged[0][0].query()):
            staged.popleft()[0].synchronize()

    def _tables_of(self, kind: FrameKind) -> Any:
        """A kind's tables on the device: uploaded at their first use, and kept for later calls."""
        found = self._tables.get(kind)
        if found is None:
            with _tables_lock:
                shared: dict[FrameKind, _Tables] = self._queue.shared.setdefault("tables", {})
                entry = shared.get(kind) or self._load_tables(kind)
                _keep_last(shared, kind, entry, _KEPT_TABLES)
            # Whatever is converted waits for an upload that comes after theirs.
            self._queue.keep(entry[1], self._queue.stream)
            found = self._tables[kind] = entry
        return found[0]

    def _load_tables(self, kind: FrameKind) -> _Tables:
        queue = self._queue
        tables = frames_plan(*kind.key).device_tables()
        pinned = queue.empty_pinned((len(tables),), torch.uint8)
        ctypes.memmove(pinned.data_ptr(), tables, len(tables))
        memory = queue.empty((len(tables),), torch.uint8, queue.uploads)
        queue.do(queue.uploads, lambda: memory.copy_(pinned, non_blocking=True))
        return self._backend.staged_tables(tables, memory.data_ptr()), memory


_tables_lock = threading.Lock()


def is_new_kind(queue: DeviceQueue, kind: FrameKind) -> bool:
    """Whether it is the first time, of late, that this was asked of a kind: its tables may be for once."""
    with _tables_lock:
        seen: dict[FrameKind, None] = queue.shared.setdefault("seen", {})
        is_new = kind not in seen
        _keep_last(seen, kind, None, _SEEN_KINDS)
    return is_new


def _keep_last(found: dict[FrameKind, Any], kind: FrameKind, value: Any, most: int) -> None:
    """Make ``kind`` the last one to go of at most so many."""
    found.pop(kind, None)
    found[kind] = value
    while len(found) > most:
        del found[next(iter(found))]
