"""Decoders of one stream that work at the same time, each on groups of pictures of its own.

A group of pictures needs no other: groups are handed out in order to as many decoders as there are threads,
each in a thread of its own (decoding releases the GIL), and their frames are put in order again. Where a
single group must be decoded, or one is left over, one decoder with frame threads does it.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from mmcore.errors import DecodeError

from .control import Cancelled, Control, join_thread
from .index import FrameIndex
from .plan import make_pieces
from .reader import FrameReader

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

__all__ = ["DecoderTeam"]

_Value = TypeVar("_Value")

# Below this size frame threads gain nothing: a frame is decoded faster than it is handed over.
_THREADED_PIXELS = 640 * 360
# With frame threads, the share of the time that one thread takes, divided by what threads could gain at best:
# until it is measured.
_FRAME_THREAD_LOSS = 1.25
# Frames in flight in a frame-threaded decoder, which are waited for at its beginning and its end, per thread.
_FRAME_THREAD_DELAY = 2
_SECONDS_PER_PIXEL = 1e-9  # of decoding: until it is measured
_OPENING_SECONDS = 3e-3  # of one more decoder
# Jobs that are looked at to decide; more are alike.
_LOOK_AHEAD = 16
# Packets of a job at least: handing one over costs as much as decoding a few.
_JOB_PACKETS = 8
# Packets from which on the time that they took tells something.
_LEAST_MEASURED = 8


# How to stop each run that is under way, and its process.
_stops: dict[Callable[[], None], int] = {}


@atexit.register
def _stop_all() -> None:
    """Send the threads home before the interpreter ends and the decoders are closed under them."""
    for stop, pid in list(_stops.items()):
        if pid == os.getpid():
            stop()


class DecoderTeam:
    """Decodes chosen frames of a stream on up to ``num_threads`` threads.

    Parameters
    ----------
    reader : FrameReader
        Of one thread; the others are made after it.
    num_threads : int
    """

    def __init__(self, reader: FrameReader, num_threads: int) -> None:
        self.reader = reader
        self.num_threads = num_threads
        # Of one thread per packet, and what frame threads lose of what they could gain: measured.
        self._seconds = _SECONDS_PER_PIXEL * reader.pixels
        self._frame_thread_loss = _FRAME_THREAD_LOSS
        self._reset([reader])

    def _reset(self, idle: list[FrameReader]) -> None:
        self._idle = idle
        self._running: set[Control] = set()
        self._lock = threading.RLock()  # a finished run may be collected while it is held
        self._pid = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_lock"], state["_idle"], state["_running"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset([self.reader])

    def close(self) -> None:
        """Stop what runs, and release files and decoders; a later run opens them again."""
        self._check_pid()
        with self._lock:
            idle, self._idle = self._idle, []
            for control in self._running:
                control.cancel()
        for reader in idle:
            reader.close()
        with self._lock:
            self._idle += idle

    def _check_pid(self) -> None:
        if self._pid != os.getpid():
            # A thread of the parent may have held the lock, or one of the decoders.
            self._reset([self.reader])

    # --- lending decoders

    @contextlib.contextmanager
    def lend(self, targets: Sequence[int] = (), num_threads: int = 1) -> Iterator[FrameReader]:
        """A decoder for one's own use: if possible one from which ``targets`` are reached by reading on."""
        self._check_pid()
        with self._lock:
            fitting = [r for r in self._idle if r.num_threads == num_threads]
            reader = None
            if fitting:
                reader = next((r for r in fitting if targets and r.reaches(targets)), fitting[0])
                self._idle.remove(reader)
        if reader is None:
            reader = self.reader.twin(num_threads)
        try:
            yield reader
        finally:
            self._check_pid()
            with self._lock:
                self._idle.append(reader)

    # --- running

    def run(
        self,
        targets: Sequence[int],
        work: Callable[[int, VideoFrame], _Value],
        *,
        timeout: float | None = None,
        capacity: int | None = None,
    ) -> Iterator[tuple[int, _Value | DecodeError]]:
        """Decode frames and do ``work`` on each, in the thread that decoded it and right after.

        Parameters
        ----------
        targets : sequence of int
            Frame numbers, strictly ascending.
        work : callable
            Takes a frame's number and the frame. Called by several threads at once.
        timeout : float, optional
            Seconds from now on.
        capacity : int, optional
            How many results may wait to be taken, over all threads; by default any number.

        Yields
        ------
        (int, result or DecodeError)
            In the order of ``targets``, with the error of a frame that cannot be decoded.

        Raises
        ------
        DecodeTimeoutError
        Exception
            What ``work`` raised, in its frame's place.
        """
        if not targets:
            return
        control = Control(timeout, self.reader.source.name)
        self._check_pid()
        with self._lock:
            self._running.add(control)
        try:
            alone, threads, jobs, workers = self._divide(targets)
            if alone is not None:
                yield from self._run_alone(alone, threads, work, control)
            if jobs is not None:
                yield from self._run_together(jobs, workers, work, control, capacity)
        except Cancelled:
            raise ValueError(
                f"{self.reader.source.name}: the decoder was closed while frames were read"
            ) from None
        finally:
            with self._lock:
                self._running.discard(control)

    def _divide(self, targets: Sequence[int]) -> tuple[_Job | None, int, Iterator[_Job] | None, int]:
        """What to read with one decoder first, on how many threads; then what to share among how many."""
        reader, threads = self.reader, self.num_threads
        index = reader.index
        planned = index.exact and not index.counted and bool(index.frame_packet)
        if threads == 1 or not planned or len(targets) == 1:
            return _Job(targets, 0), 1, None, 0
        jobs = _make_jobs(index, targets)
        head = list(itertools.islice(jobs, _LOOK_AHEAD))
        seconds = [job.packets * self._seconds for job in head]
        workers = min(threads, len(head)) if reader.source.is_shareable else 1
        opened = sum(1 for r in self._idle if r.num_threads == 1 and r.container is not None)
        opening = _OPENING_SECONDS if opened < workers else 0.0
        # A GPU decodes the frames of one group one after the other.
        can_thread = reader.pixels >= _THREADED_PIXELS and reader.nvdec is None
        if len(head) == _LOOK_AHEAD:
            shared: tuple[float, int] = (0.0, 0)
        else:
            shared = min(
                (
                    sum(self._threaded_seconds(job.packets) for job in head[:first])
                    + opening
                    + _makespan(seconds[first:], workers),
                    first,
                )
                for first in range(min(workers, len(head)) if can_thread else 1)
            )
        single = sum(seconds)
        packets = sum(job.packets for job in head)
        threaded = self._threaded_seconds(packets, len(head)) if can_thread else math.inf
        if workers > 1 and shared[0] < min(single, threaded):
            before, rest = head[: shared[1]], head[shared[1] :]
            alone = None
            if before:
                count = sum(len(job.targets) for job in before)
                alone = _Job(targets[:count], sum(job.packets for job in before))
            return alone, threads, itertools.chain(rest, jobs), workers
        if len(head) == _LOOK_AHEAD:
            packets = 0.0  # of all jobs it is not known
        return _Job(targets, packets), threads if threaded < single else 1, None, 0

    def _threaded_seconds(self, num_packets: float, num_starts: int = 1) -> float:
        """How long one decoder with frame threads takes."""
        delay = num_starts * _FRAME_THREAD_DELAY
        return self._seconds * (num_packets * self._frame_thread_loss / self.num_threads + delay)

    def _measured(self, packets: float, threads: int, seconds: float) -> None:
        """Learn from how long ``packets`` took."""
        if packets < _LEAST_MEASURED:
            return
        if threads == 1:
            self._seconds += (seconds / packets - self._seconds) / 2
        else:
            busy = packets / threads + _FRAME_THREAD_DELAY
            loss = min(max(seconds / self._seconds / busy, 1.0), float(threads))
            self._frame_thread_loss += (loss - self._frame_thread_loss) / 2

    def _read(
        self, reader: FrameReader, job: _Job, control: Control
    ) -> Iterator[tuple[int, VideoFrame | DecodeError]]:
        """Read a job's frames, and measure how long that takes."""
        frames, spent = reader.read(job.targets, control), 0.0
        while True:
            begin = time.perf_counter()
            found = next(frames, None)
            spent += time.perf_counter() - begin
            if found is None:
                break
            yield found
        self._measured(job.packets, reader.num_threads, spent)

    def _run_alone(
        self,
        job: _Job,
        threads: int,
        work: Callable[[int, VideoFrame], _Value],
        control: Control,
    ) -> Iterator[tuple[int, _Value | DecodeError]]:
        with self.lend(job.targets, threads) as reader:
            for target, frame in self._read(reader, job, control):
                yield target, frame if isinstance(frame, DecodeError) else work(target, frame)

    def _run_together(
        self,
        jobs: Iterator[_Job],
        workers: int,
        work: Callable[[int, VideoFrame], _Value],
        control: Control,
        capacity: int | None,
    ) -> Iterator[tuple[int, _Value | DecodeError]]:
        shelf: _Shelf[tuple[int, _Value | DecodeError]] = _Shelf(
            jobs, workers, None if capacity is None else max(1, capacity // (2 * workers))
        )

        def decode() -> None:
            with self.lend() as reader:
                while (taken := shelf.take()) is not None:
                    number, job = taken
                    try:
                        for target, frame in self._read(reader, job, control):
                            value = frame if isinstance(frame, DecodeError) else work(target, frame)
                            shelf.put(number, (target, value))
                    except BaseException as error:
                        shelf.finish(number, error)
                    else:
                        shelf.finish(number)

        threads = [
            threading.Thread(target=decode, name=f"mmcore-decode-{i}", daemon=True) for i in range(workers)
        ]

        def stop() -> None:
            control.cancel()
            shelf.close()
            for thread in threads:
                join_thread(thread)

        _stops[stop] = os.getpid()
        try:
            for thread in threads:
                thread.start()
            yield from shelf
        finally:
            del _stops[stop]
            stop()


class _Job(NamedTuple):
    """Frames for one decoder, and about how many packets it decodes for them; 0 if that is not known."""

    targets: Sequence[int]
    packets: float


def _make_jobs(index: FrameIndex, targets: Sequence[int]) -> Iterator[_Job]:
    """Divide ascending ``targets`` between groups of pictures, into parts that are worth a decoder."""
    begin = end = 0
    packets = 0.0
    for piece in make_pieces(index, targets):
        end += len(piece.targets)
        packets += piece.cost(index)
        if packets >= _JOB_PACKETS:
            yield _Job(targets[begin:end], packets)
            begin, packets = end, 0.0
    if begin < end:
        yield _Job(targets[begin:end], packets)


def _makespan(seconds: Sequence[float], workers: int) -> float:
    """When the last of several jobs ends that are handed out in order."""
    free = [0.0] * workers
    for job in seconds:
        i = free.index(min(free))
        free[i] += job
    return max(free)


class _Shelf(Generic[_Value]):
    """Jobs that go out in order, and their results, which come in any order and leave in the jobs' order.

    A job's results wait in a queue of their own; its worker waits when ``capacity`` of them have not been
    taken. The first job that is not finished is always being served, so nothing waits for ever.
    """

    def __init__(self, jobs: Iterator[_Job], workers: int, capacity: int | None) -> None:
        self._jobs = enumerate(jobs)
        self._capacity = capacity
        self._window = None if capacity is None else 2 * workers  # jobs begun and not yet taken away
        self._changed = threading.Condition()
        self._results: dict[int, deque[_Value]] = {}
        self._finished: dict[int, BaseException | None] = {}
        self._head = 0
        self._count: int | None = None  # of the jobs, once known
        self._closed = False

    def take(self) -> tuple[int, _Job] | None:
        """The next job and its number; None if there is none."""
        with self._changed:
            while True:
                if self._closed or self._count is not None:
                    return None
                if self._window is None or len(self._results) < self._window:
                    break
                self._changed.wait()
            job = next(self._jobs, None)
            if job is None:
                self._count = self._head + len(self._results)
                self._changed.notify_all()
                return None
            self._results[job[0]] = deque()
            return job

    def put(self, number: int, value: _Value) -> None:
        """Add a result of job ``number``; waits while too many are there."""
        with self._changed:
            results = self._results[number]
            while self._capacity is not None and len(results) >= self._capacity and not self._closed:
                self._changed.wait()
            if self._closed:
                raise Cancelled
            results.append(value)
            if number == self._head:
                self._changed.notify_all()

    def finish(self, number: int, error: BaseException | None = None) -> None:
        """Say that job ``number`` gives no more results, and why if something went wrong."""
        with self._changed:
            self._finished[number] = error
            if error is not None:
                self._count = number + 1  # no job after it is of use
            self._changed.notify_all()

    def close(self) -> None:
        """Send all workers home."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[_Value]:
        while True:
            with self._changed:
                while True:
                    results = self._results.get(self._head)
                    if results:
                        value = results.popleft()
                        if self._capacity is not None:
                            self._changed.notify_all()
                        break
                    if self._head in self._finished:
                        error = self._finished.pop(self._head)
                        if error is not None:
                            raise error
                        del self._results[self._head]
                        self._head += 1
                        self._changed.notify_all()
                        continue
                    if self._count is not None and self._head >= self._count:
                        return
                    self._changed.wait()
            yield value
