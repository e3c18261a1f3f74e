"""A GPU without one: streams that run as late as events allow, and memory that is ruined when it is freed.

What DeviceQueue launches is put on lists. ``"eager"`` runs it at once. ``"lazy"`` runs it when somebody waits
for an event that needs it, or in :meth:`FakeGpu.drain`; ``"behind"`` does so with the caller's stream alone,
and ``"random"`` runs some of it, now and then. A buffer that is filled again before its upload has run, or
memory that is given back too early, then gives wrong pictures. Frames are converted by the CUDA kernels'
bodies on the CPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import random
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import frames_emulator
import numpy as np
import pytest
import torch
from torch import Tensor

import mmcore.backends
from mmcore.ops import device_target, devices

_FRESH, _FREED = 0xA5, 0x5A


class FakeStream:
    """Work that waits, in order."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.waiting: deque[tuple[str, Any]] = deque()


class FakeEvent:
    """A point on a stream."""

    def __init__(self, gpu: FakeGpu, stream: FakeStream) -> None:
        self.gpu, self.stream, self.is_done = gpu, stream, False

    def query(self) -> bool:
        self.gpu.run_some()
        return self.is_done

    def synchronize(self) -> None:
        if not self.is_done:
            self.gpu.log.append(("host waits", self.stream.name))
        self.gpu.run_until(self)


class FakeGpu:
    """Its streams, memory, and a log of all that was asked of it."""

    def __init__(self, emulator: ctypes.CDLL, policy: str = "lazy") -> None:
        self.emulator, self.policy = emulator, policy
        self.caller, self.uploads = FakeStream("caller"), FakeStream("uploads")
        self.decoders = FakeStream("decoders")
        # Of threads that were not told to use the caller's.
        self.other = FakeStream("another thread's")
        self.current = threading.local()
        self.current.stream = self.caller
        self.shared: dict[Any, Any] = {}
        self.log: list[tuple[str, Any]] = []
        self.pinned: list[weakref.ref[Any]] = []
        self.memory: list[weakref.ref[Any]] = []
        self.kept: dict[int, FakeStream] = {}  # by address, who uses memory of another stream
        self.fail_at = -1  # number of the launch that fails
        self.method = frames_emulator.AUTO  # the kernel, where it can
        self._arenas: list[np.ndarray] = []
        self._random = random.Random(7)
        self._lock = threading.RLock()

    # --- running

    def push(self, stream: FakeStream, kind: str, what: Any) -> None:
        with self._lock:
            stream.waiting.append((kind, what))
            if self.policy == "eager":
                self.drain()
            while self.policy == "behind" and self.uploads.waiting:
                self._step(self.uploads)
            self.run_some()

    def run_some(self) -> None:
        with self._lock:
            while self.policy == "random" and self._random.random() < 0.6:
                self._step(self._random.choice((self.caller, self.uploads, self.decoders)), may_wait=False)

    def run_until(self, event: FakeEvent) -> None:
        with self._lock:
            while not event.is_done:
                self._step(event.stream)

    def run_all(self, stream: FakeStream) -> None:
        """Run all that is on a stream, and what it waits for."""
        with self._lock:
            while stream.waiting:
                self._step(stream)

    def drain(self) -> None:
        """Run all that was launched, the caller's stream first."""
        with self._lock:
            for stream in (self.caller, self.uploads, self.decoders, self.other):
                while stream.waiting:
                    self._step(stream)

    def _step(self, stream: FakeStream, may_wait: bool = True) -> None:
        if not stream.waiting:
            assert not may_wait, "waits for what was never launched"
            return
        kind, what = stream.waiting[0]
        if kind == "wait" and not what.is_done:
            if not may_wait:
                return
            self.run_until(what)
            if not stream.waiting or stream.waiting[0][1] is not what:
                return  # what was freed on the way came by here
        stream.waiting.popleft()
        if kind == "work":
            what()
        elif kind == "record":
            what.is_done = True

    # --- memory

    def new_memory(
        self,
        shape: Sequence[int],
        dtype: torch.dtype,
        where: list[weakref.ref[Any]],
        stream: FakeStream | None = None,
    ) -> Tensor:
        """Aligned memory, full of what means nothing when it is new, and when it was freed and used anew.

        Of the device it may be used anew, as by torch's allocator, by what is launched on its stream from
        then on, or if it was kept for another, when all has run that is on that one then.
        """
        size = int(np.prod(shape)) * dtype.itemsize
        whole = np.full(size + 512, _FRESH, np.uint8)
        start = -whole.ctypes.data % 512
        part = np.ndarray((size,), np.uint8, buffer=whole.data, offset=start)
        self._arenas.append(whole)  # a late reader finds the memory ruined, not gone
        tensor = torch.from_numpy(part).view(dtype).view(tuple(shape))
        address = tensor.data_ptr()
        self.kept.pop(address, None)

        def free() -> None:
            user = self.kept.pop(address, stream)
            if user is None:
                whole.fill(_FREED)
            else:
                self.push(user, "work", functools.partial(whole.fill, _FREED))

        weakref.finalize(part, free)
        where.append(weakref.ref(part))
        return tensor

    @staticmethod
    def alive(where: list[weakref.ref[Any]]) -> int:
        return sum(reference() is not None for reference in where)

    # --- what backends.cuda has

    def launch(self, slots: list[int]) -> None:
        if sum(kind == "convert" for kind, _ in self.log) == self.fail_at:
            raise RuntimeError("CUDA error: out of patience")
        self.log.append(("convert", slots))

    def staged_tables(self, tables: bytes, address: int) -> tuple[int, int]:
        assert address % 16 == 0
        self.log.append(("tables", len(tables)))
        return address, len(tables)

    def convert_staged(self, frames: Sequence[tuple[Any, Any, int]], output: Any) -> None:
        for (address, _), planes, slot in frames:
            frames_emulator.convert_frame(self.emulator, address, planes, output, slot, self.method)


class FakeQueue:
    """DeviceQueue of a :class:`FakeGpu`; its tensors say that they are on the CPU."""

    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu, self.device = gpu, torch.device("cpu")
        self.stream: FakeStream = getattr(gpu.current, "stream", gpu.other)
        self.uploads, self.shared = gpu.uploads, gpu.shared
        self.decoders = gpu.decoders

    def do(self, stream: FakeStream, work: Callable[[], object]) -> None:
        if stream is self.stream:
            self.gpu.log.append(("on", stream.name))
        if isinstance(work, functools.partial):  # a launch, by addresses alone: it holds no memory
            assert (work.func, stream) == (self.gpu.convert_staged, self.stream)
            self.gpu.launch([slot for _, _, slot in work.args[0]])
        self.gpu.push(stream, "work", work)

    @contextlib.contextmanager
    def as_current(self) -> Iterator[None]:
        before, self.gpu.current.stream = getattr(self.gpu.current, "stream", self.gpu.other), self.stream
        try:
            yield
        finally:
            self.gpu.current.stream = before

    def record(self, stream: FakeStream) -> FakeEvent:
        event = FakeEvent(self.gpu, stream)
        self.gpu.push(stream, "record", event)
        return event

    def wait(self, stream: FakeStream, event: FakeEvent) -> None:
        self.gpu.push(stream, "wait", event)

    def empty(self, shape: Sequence[int], dtype: torch.dtype, stream: FakeStream) -> Tensor:
        self.gpu.log.append(("empty", stream.name))
        return self.gpu.new_memory(shape, dtype, self.gpu.memory, stream)

    def empty_pinned(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        self.gpu.log.append(("pinned", tuple(shape)))
        return self.gpu.new_memory(shape, dtype, self.gpu.pinned)

    def keep(self, memory: Tensor, stream: FakeStream) -> None:
        self.gpu.kept[memory.data_ptr()] = stream
        self.gpu.log.append(("keep", stream.name))


@contextlib.contextmanager
def fake_gpu(emulator: ctypes.CDLL, policy: str = "lazy", cuda_kernels: bool = True) -> Iterator[FakeGpu]:
    """Make ``device="cuda"`` mean a :class:`FakeGpu`."""
    gpu = FakeGpu(emulator, policy)

    def open_queue(device: Any) -> FakeQueue | None:
        return None if devices.check_device(device).type == "cpu" else FakeQueue(gpu)

    module: Any = SimpleNamespace(staged_tables=gpu.staged_tables, convert_staged=gpu.convert_staged)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "_why_no_cuda", lambda index: None)
        patch.setattr(devices, "open_queue", open_queue)
        patch.setattr(device_target, "open_queue", open_queue)
        why = None if cuda_kernels else "this build has no mmcore._cuda"
        patch.setattr(device_target, "_why_not_on_cuda", lambda: why)
        patch.setitem(mmcore.backends._loaded, "cuda", module)
        yield gpu
        gpu.drain()
