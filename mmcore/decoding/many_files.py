"""Decoding many files: in threads, with the results in order, few of them at a time, errors file by file."""

from __future__ import annotations

import atexit
import contextlib
import glob
import inspect
import operator
import os
import sys
import threading
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeAlias

from torch import Tensor

from mmcore.errors import UnsupportedError
from mmcore.ops.device_target import check_convert_on
from mmcore.ops.devices import check_device, current_streams
from mmcore.ops.frame_transform import FrameTransform
from mmcore.samplers import Sampler
from mmcore.threads import get_num_threads

from .control import join_thread
from .frame import FrameBatch
from .video_decoder import VideoDecoder

__all__ = ["DecodedFile", "decode_many"]

AnySampler: TypeAlias = "Sampler | Callable[[VideoDecoder], Sequence[int] | Tensor] | None"

_SUFFIXES = (
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv",
    ".ts", ".vob", ".webm", ".wmv",
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class DecodedFile:
    """What :func:`decode_many` gives for one source.

    Attributes
    ----------
    source : object
        As given.
    index : int
        Its position among the sources.
    frames : sequence of int
        Numbers of the decoded frames.
    batch : FrameBatch or None
        The frames; None if the source failed.
    error : Exception or None
        Why it failed.
    """

    source: Any
    index: int
    frames: Sequence[int]
    batch: FrameBatch | None
    error: Exception | None = None


def decode_many(
    sources: str | os.PathLike[str] | Iterable[Any],
    *,
    sampler: AnySampler = None,
    transform: FrameTransform | None = None,
    workers: int | None = None,
    prefetch: int | None = None,
    progress: bool | str = False,
    on_file_error: str = "raise",
    **decoder_options: Any,
) -> Generator[DecodedFile, None, None]:
    """Decode many files at once, in threads; the results come in the order of the sources.

    Parameters
    ----------
    sources : str, os.PathLike or iterable
        A folder, whose media files are found by their suffixes, in subfolders too, sorted; a glob pattern, as
        ``glob.glob(recursive=True)`` means it, sorted; one file; or an iterable of whatever
        :class:`mmcore.VideoDecoder` takes, which may be a generator and is asked only as far as needed.
    sampler : Sampler or callable, optional
        Which frames of each file: one of :mod:`mmcore.samplers`, or a function of a decoder that gives frame
        numbers. By default every frame: then a result holds a whole file.
    transform : FrameTransform, optional
        What to make of each frame; by default uint8 RGB of full size.
    workers : int, optional
        Files decoded at once. By default ``mmcore.get_num_threads()``, or the number of sources if it is
        known and less. Each decoder gets its share of the threads: ``get_num_threads() // workers``.
    prefetch : int, optional
        1 or more; by default ``workers + 1``. At most ``workers + prefetch`` results exist at once: those
        being decoded, those that wait for their turn, and the last one handed out, if it is dropped for the
        next.
    progress : bool or "auto"
        Show a progress bar on stderr; "auto": only if that is a terminal. Needs rich.
    on_file_error : {"raise", "return"}
        A file that fails ends the iteration with its error, in its turn; or gives a result with ``error``
        set, and the others follow.
    **decoder_options
        For :class:`mmcore.VideoDecoder`, such as ``index``, ``on_error``, ``seek_mode``, ``device``;
        ``num_threads`` is that of each decoder. On a CUDA device all frames are ready in the order of the
        stream that is torch's current one where this is called.

    Yields
    ------
    DecodedFile
        For each source, in order.

    Raises
    ------
    ValueError, TypeError
        At once, for arguments that are wrong, a folder without media files, or a pattern without matches.
    UnsupportedError
        At once, if ``progress`` is True and rich is absent, or for a device that is not there.
    DecodeError, ValueError, TypeError, IndexError, UnsupportedError
        For a file, as :class:`mmcore.VideoDecoder` and the sampler raise them.

    Notes
    -----
    Leaving the loop, ``close()``, an error or an interrupt end the threads; files being decoded then are
    abandoned. A file that breaks off gives the frames it has.

    Examples
    --------
    >>> import mmcore
    >>> for file in mmcore.decode_many("videos", sampler=mmcore.samplers.uniform(8)):   # doctest: +SKIP
    ...     print(file.source, file.batch.data.shape)
    """
    given = list_sources(sources)
    total = len(given) if isinstance(given, Sized) else None
    budget = get_num_threads()
    if workers is None:
        workers = budget if total is None else min(budget, max(total, 1))
    workers = as_int("workers", workers, 1)
    prefetch = as_int("prefetch", workers + 1 if prefetch is None else prefetch, 1)
    if on_file_error not in ("raise", "return"):
        raise ValueError(f"on_file_error: expected 'raise' or 'return', got {on_file_error!r}")
    if progress not in (False, True, "auto"):
        raise ValueError(f"progress: expected True, False or 'auto', got {progress!r}")
    decoder_options["transform"] = transform
    decoder_options.setdefault("num_threads", max(1, budget // workers))
    check_decoder_options(decoder_options)
    check_sampler(sampler)
    # Threads have current streams of their own.
    streams = current_streams(decoder_options.get("device", "cpu"))
    decode = partial(_decode_file, sampler, decoder_options, on_file_error == "return", streams)
    return _in_order(iter(given), decode, workers, workers + prefetch, _progress_bar(progress, total))


def _in_order(
    sources: Iterator[Any],
    decode: Callable[[_Workers, int, Any], DecodedFile],
    workers: int,
    limit: int,
    progress: contextlib.AbstractContextManager[Callable[[], None]],
) -> Generator[DecodedFile, None, None]:
    """Results of ``decode`` one after the other, at most ``limit`` in existence."""
    team = _Workers(workers)
    pending: deque[Future[DecodedFile]] = deque()
    failure: Exception | None = None
    index, more = 0, True
    try:
        with progress as advance:
            while True:
                # The caller holds the last result until it has the next one.
                while more and len(pending) < limit - 1:
                    try:
                        source = next(sources)
                    except StopIteration:
                        more = False
                    except Exception as error:  # its turn comes after the files before it
                        failure, more = error, False
                    else:
                        pending.append(team.submit(partial(decode, team, index, source)))
                        index += 1
                        del source
                if not pending:
                    break
                yield pending.popleft().result()
                advance()
        if failure is not None:
            raise failure
    finally:
        team.end()


class _Workers:
    """Threads that decode files, and the decoders at work in them, all of which end together.

    Daemon threads, unlike an executor's, do not make the interpreter's end wait for the work at hand.

    Parameters
    ----------
    count : int
        Of threads, which are started as they are needed.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._tasks: SimpleQueue[tuple[Future[DecodedFile], Callable[[], DecodedFile]] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._decoders: set[VideoDecoder] = set()
        self._ended = False
        self._pid = os.getpid()
        _teams.add(self)

    def submit(self, call: Callable[[], DecodedFile]) -> Future[DecodedFile]:
        future: Future[DecodedFile] = Future()
        self._tasks.put((future, call))
        if len(self._threads) < self._count:
            thread = threading.Thread(target=self._work, name="mmcore-decode-many", daemon=True)
            self._threads.append(thread)
            thread.start()
        return future

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, call = task
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
            del task, future, call  # what they hold is the caller's now

    @contextlib.contextmanager
    def joined_by(self, decoder: VideoDecoder) -> Iterator[None]:
        with self._lock:
            self.check()
            self._decoders.add(decoder)
        try:
            yield
        finally:
            with self._lock:
                self._decoders.discard(decoder)

    def check(self) -> None:
        """Raise CancelledError if nobody waits for further files."""
        if self._ended:
            raise CancelledError

    def end(self) -> None:
        """Let nothing begin, make reads end at once, and wait for the threads."""
        if self._pid != os.getpid():
            return  # the threads are the parent's
        self._ended = True
        for _ in self._threads:
            self._tasks.put(None)
        if threading.current_thread() in self._threads:
            return  # called by the garbage collector, amid the work on a decoder
        with self._lock:
            decoders = list(self._decoders)
        for decoder in decoders:
            decoder.close()
        for thread in self._threads:
            join_thread(thread)


_teams: weakref.WeakSet[_Workers] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    for team in list(_teams):
        team.end()


def _decode_file(
    sampler: AnySampler,
    options: dict[str, Any],
    return_errors: bool,
    streams: Callable[[], contextlib.AbstractContextManager[object]],
    team: _Workers,
    index: int,
    source: Any,
) -> DecodedFile:
    team.check()
    try:
        with streams():
            frames, batch = read_frames(source, index, sampler, 0, options, team.joined_by)
    except Exception as error:
        if not return_errors:
            raise
        release_frames(error)
        return DecodedFile(source, index, (), None, error)
    return DecodedFile(source, index, frames, batch)


# --- shared with the datasets


def read_frames(
    source: Any,
    position: int,
    sampler: AnySampler,
    epoch: int,
    options: dict[str, Any],
    while_open: Callable[[VideoDecoder], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> tuple[Sequence[int], FrameBatch]:
    """Decode what ``sampler`` chooses of one source: (frame numbers, frames).

    ``while_open(decoder)`` is entered for as long. An error gets a note that tells the source's position.
    """
    try:
        with VideoDecoder(source, **options) as decoder, while_open(decoder):
            if sampler is None:
                return range(len(decoder)), decoder.get_frames_in_range(0, len(decoder))
            if isinstance(sampler, Sampler):
                chosen: Any = sampler(decoder, key=position, epoch=epoch)
            else:
                chosen = sampler(decoder)
            frames: list[int] = chosen.tolist() if hasattr(chosen, "tolist") else list(chosen)
            return frames, decoder.get_frames_at(frames)
    except Exception as error:
        named = f" {source}" if isinstance(source, (str, os.PathLike)) else ""
        error.add_note(f"source {position}:{named}")
        raise


def release_frames(error: BaseException | None) -> None:
    """Let go of what the stack frames of an error's traceback hold: decoders, and tensors."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def list_sources(sources: Any) -> Iterable[Any]:
    """The sources that a folder, a glob pattern or an iterable stands for."""
    if isinstance(sources, (str, os.PathLike)):
        return _list_files(os.fsdecode(sources))
    single = isinstance(sources, (bytes, bytearray, memoryview, Tensor)) or hasattr(sources, "read")
    if single or not isinstance(sources, Iterable):
        hint = "; put a single source into a list" if single else ""
        raise TypeError(
            f"sources: expected a folder, a glob pattern or an iterable of sources, got"
            f" {type(sources).__name__}{hint}"
        )
    return sources


def _list_files(path: str) -> list[str]:
    if os.path.isdir(path):
        found = [
            os.path.join(folder, name)
            for folder, _, names in os.walk(path)
            for name in names
            if os.path.splitext(name)[1].lower() in _SUFFIXES and not name.startswith(".")
        ]
        if not found:
            raise ValueError(
                f"sources: the folder {path} holds no media file; looked for {' '.join(_SUFFIXES)}"
            )
    elif not os.path.exists(path) and any(c in path for c in "*?[") and "://" not in path:
        found = [name for name in glob.glob(path, recursive=True) if os.path.isfile(name)]
        if not found:
            raise ValueError(f"sources: no file matches {path}")
    else:
        found = [path]
    return sorted(found)


def check_decoder_options(options: dict[str, Any]) -> None:
    """Raise TypeError for what VideoDecoder does not take, and its errors for a device."""
    try:
        inspect.signature(VideoDecoder).bind(None, **options)
    except TypeError as error:
        raise TypeError(f"decoder_options: VideoDecoder: {error}") from None
    check_convert_on(options.get("convert_on", "auto"), check_device(options.get("device", "cpu")))


def check_sampler(sampler: Any) -> None:
    """Raise TypeError for what is no sampler."""
    if sampler is not None and not callable(sampler):
        raise TypeError(
            "sampler: expected one of mmcore.samplers, a function of a decoder, or None, got"
            f" {type(sampler).__name__}"
        )


def as_int(name: str, value: Any, least: int | None = None) -> int:
    """``value`` as an int of ``least`` or more."""
    expected = "an int" if least is None else f"an int of {least} or more"
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: expected {expected}, got {value!r}")
    number = operator.index(value)
    if least is not None and number < least:
        raise ValueError(f"{name}: expected {expected}, got {number}")
    return number


# --- progress


def _progress_bar(
    show: bool | str, total: int | None
) -> contextlib.AbstractContextManager[Callable[[], None]]:
    if show is False or (show == "auto" and not sys.stderr.isatty()):
        return contextlib.nullcontext(lambda: None)
    try:
        import rich.progress  # noqa: F401
    except ImportError:
        if show == "auto":
            return contextlib.nullcontext(lambda: None)
        raise UnsupportedError(
            "progress: the progress bar needs rich: pip install rich, or pass progress=False"
        ) from None
    return _shown_bar(total)


@contextlib.contextmanager
def _shown_bar(total: int | None) -> Iterator[Callable[[], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("files"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)
