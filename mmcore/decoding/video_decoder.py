"""The video decoder that users meet: frames of a file by number or time, as tensors."""

from __future__ import annotations

import contextlib
import math
import operator
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from mmcore.errors import DecodeError, UnsupportedError
from mmcore.ops.frame_transform import FrameTransform, Patches
from mmcore.ops.planes import check_device, prepare_out

from .frame import Frame, FrameBatch, FrameTimes
from .index import FrameIndex
from .metadata import VideoStreamMetadata, clockwise_rotation, read_metadata
from .reader import FrameReader
from .source import Source, passing_interrupts

__all__ = ["VideoDecoder"]

_UINT8 = FrameTransform(dtype=torch.uint8)


class VideoDecoder:
    """Decodes frames of one video stream, exactly the ones asked for, into tensors.

    Parameters
    ----------
    source : str, os.PathLike, bytes, bytearray, memoryview, Tensor or file-like object
        A path, a file's content (a Tensor must be 1-D uint8), or a binary file object with ``read``, ``seek``
        and ``tell``.
    stream_index : int, optional
        Number of the stream in the file; by default the video stream that FFmpeg thinks best.
    num_threads : int, optional
        Threads for the codec, by default ``mmcore.get_num_threads()``. Small frames are decoded by one in any
        case.
    device : str or torch.device
        Only "cpu".
    seek_mode : {"exact", "approximate"}
        "exact" reads the file's packets once, without decoding them, and then knows every frame's time. With
        "approximate" nothing is read beforehand: the number of frames and their times are computed from the
        header, which is right for an unedited file with a constant frame rate.
    transform : FrameTransform, optional
        What to make of each frame; by default uint8 RGB of full size, NCHW.
    on_error : {"raise"}
        A frame that cannot be decoded whole raises :class:`mmcore.DecodeError`; the others stay readable.
    network : bool
        Allow URLs, FFmpeg's other protocols, and playlists, which name further files. Off by default, so that
        a name or a file from elsewhere cannot make this process open others.

    Attributes
    ----------
    metadata : VideoStreamMetadata

    Raises
    ------
    DecodeError
        If the source is missing, empty, no media file, or holds no video.
    ValueError, TypeError, UnsupportedError
        For arguments that are wrong, or valid but not available.

    Notes
    -----
    Frames are numbered in presentation order, as a full decode gives them; a frame is shown from its time
    until the next frame's. Rotation noted in the file is applied. A decoder may be used by several threads,
    which take turns; it may be carried across a fork or pickled (unless it reads a file object), and opens
    its source anew there.

    Examples
    --------
    >>> import mmcore
    >>> decoder = mmcore.VideoDecoder("clip.mp4")                                       # doctest: +SKIP
    >>> decoder[0].shape                                                                # doctest: +SKIP
    torch.Size([3, 256, 340])
    >>> decoder.get_frames_played_at([0.5, 1.5]).pts_seconds                            # doctest: +SKIP
    tensor([0.5000, 1.5000], dtype=torch.float64)
    """

    def __init__(
        self,
        source: Any,
        *,
        stream_index: int | None = None,
        num_threads: int | None = None,
        device: str | torch.device = "cpu",
        seek_mode: str = "exact",
        transform: FrameTransform | None = None,
        on_error: str = "raise",
        network: bool = False,
    ) -> None:
        check_device(device)
        if seek_mode not in ("exact", "approximate"):
            raise ValueError(f"seek_mode: expected 'exact' or 'approximate', got {seek_mode!r}")
        if on_error in ("skip", "nearest"):
            raise UnsupportedError(
                f"on_error: {on_error!r} is not available; use 'raise' and catch mmcore.DecodeError of single"
                " frames"
            )
        if on_error != "raise":
            raise ValueError(f"on_error: expected 'raise', got {on_error!r}")
        if transform is not None and not isinstance(transform, FrameTransform):
            raise TypeError(f"transform: expected a FrameTransform, got {type(transform).__name__}")
        if stream_index is not None:
            stream_index = _integer("stream_index", stream_index)
        if num_threads is None:
            from mmcore.threads import get_num_threads

            num_threads = get_num_threads()
        num_threads = _integer("num_threads", num_threads)
        if num_threads < 1:
            raise ValueError(f"num_threads: expected 1 or more, got {num_threads}")
        self._transform = transform or _UINT8
        self._metadata: VideoStreamMetadata | None = None
        self._closed = False
        self._reset_lock()
        source = Source(source, network=network)
        self._name = source.name
        with passing_interrupts():
            self._reader = FrameReader(source, stream_index, num_threads, exact=seek_mode == "exact")

    # --- the stream

    @property
    def metadata(self) -> VideoStreamMetadata:
        """The stream's properties. The first access decodes one frame, which alone knows its rotation."""
        if self._metadata is None:
            with self._locked() as index:
                first = None
                with contextlib.suppress(DecodeError):
                    first = next(self._reader.read((0,)))[1]
                self._metadata = read_metadata(*self._reader.opened(), index, first)
        return self._metadata

    @property
    def frame_times(self) -> FrameTimes:
        """The times of all frames, and the key frames; with ``seek_mode="approximate"`` as computed.

        Nothing is read or decoded; every access makes new tensors.
        """
        index = self._index
        pts = torch.tensor(index.pts, dtype=torch.float64)
        lengths = torch.diff(pts, append=pts.new_tensor([index.end]))
        unit = index.time_base
        return FrameTimes(
            pts * unit.numerator / unit.denominator,
            lengths * unit.numerator / unit.denominator,
            torch.tensor(index.sync_frame, dtype=torch.int64),
            unit,
        )

    def __len__(self) -> int:
        return len(self._index)

    def __repr__(self) -> str:
        state = ", closed" if self._closed else ""
        return f"VideoDecoder({self._name!r}, stream {self._reader.stream_index}, {len(self)} frames{state})"

    # --- by number

    @overload
    def __getitem__(self, key: int) -> Tensor: ...
    @overload
    def __getitem__(self, key: slice) -> Tensor: ...
    def __getitem__(self, key: int | slice) -> Tensor:
        """Frames as a tensor: ``decoder[i]`` is one frame, ``decoder[a:b:c]`` a batch.

        Raises
        ------
        IndexError
            If a number is out of range; slices are clipped, as for a list.
        TypeError
            If the key is neither an int nor a slice.
        DecodeError
            If a frame cannot be decoded.
        """
        if isinstance(key, slice):
            try:
                numbers = range(*key.indices(len(self)))
            except (TypeError, ValueError) as error:
                raise type(error)(f"key: {key}: {error}") from None
            return self._batch(numbers, None).data
        return self._frame(self._number("key", key), None).data

    def __iter__(self) -> Iterator[Tensor]:
        """Frames one by one, in order, as ``decoder[i]`` gives them.

        Raises
        ------
        DecodeError
            For a frame that cannot be decoded, and at the end if the file breaks off before its last frame.
        """
        for i in range(len(self)):
            yield self._frame(i, None).data
        if self._index.damage is not None:
            raise DecodeError(self._broken_off())

    def get_frame_at(self, index: int, *, out: Tensor | None = None) -> Frame:
        """One frame by its number; negative numbers count from the end.

        Parameters
        ----------
        index : int
        out : Tensor, optional
            Where to write: contiguous, of the transform's dtype and of the shape of a batch of one frame.

        Raises
        ------
        IndexError, TypeError, DecodeError
        """
        return self._frame(self._number("index", index), out)

    def get_frames_at(self, indices: Iterable[int] | Tensor, *, out: Tensor | None = None) -> FrameBatch:
        """Frames by number, in any order, with repetitions; each is decoded once.

        Parameters
        ----------
        indices : iterable of int, 1-D integer Tensor or ndarray
        out : Tensor, optional
            Where to write: contiguous, of the batch's shape and dtype.

        Raises
        ------
        IndexError, TypeError, DecodeError
        """
        return self._batch([self._number("indices", i) for i in _elements("indices", indices)], out)

    def get_frames_in_range(
        self, start: int, stop: int, step: int = 1, *, out: Tensor | None = None
    ) -> FrameBatch:
        """Frames ``start, start + step, ...`` before ``stop``.

        Raises
        ------
        IndexError
            Unless 0 <= start <= stop <= len(self); negative numbers count from the end.
        ValueError
            If ``step`` is not positive.
        DecodeError
        """
        count = len(self)
        first, last = _integer("start", start), _integer("stop", stop)
        step = _integer("step", step)
        if step < 1:
            raise ValueError(f"step: expected 1 or more, got {step}")
        first, last = first + count * (first < 0), last + count * (last < 0)
        if not 0 <= first <= last <= count:
            raise IndexError(
                f"start, stop: {start}:{stop} is no range of the {self._count_text()}; "
                f"expected 0 <= start <= stop <= {count}"
            )
        return self._batch(range(first, last, step), out)

    # --- by time

    def get_frame_played_at(self, seconds: float, *, out: Tensor | None = None) -> Frame:
        """The frame shown at a time.

        Raises
        ------
        ValueError
            Unless ``metadata.begin_stream_seconds <= seconds < metadata.end_stream_seconds``.
        TypeError, DecodeError
        """
        return self._frame(self._index.frame_played_at(self._time("seconds", seconds)), out)

    def get_frames_played_at(
        self, seconds: Iterable[float] | Tensor, *, out: Tensor | None = None
    ) -> FrameBatch:
        """The frames shown at some times, in any order.

        Parameters
        ----------
        seconds : iterable of float, 1-D Tensor or ndarray
        out : Tensor, optional
            Where to write: contiguous, of the batch's shape and dtype.

        Raises
        ------
        ValueError, TypeError, DecodeError
            As :meth:`get_frame_played_at`.
        """
        times = [self._time("seconds", s) for s in _elements("seconds", seconds)]
        return self._batch([self._index.frame_played_at(s) for s in times], out)

    def get_frames_played_in_range(
        self,
        start_seconds: float,
        stop_seconds: float,
        *,
        fps: float | None = None,
        out: Tensor | None = None,
    ) -> FrameBatch:
        """The frames shown in the time from ``start_seconds`` to before ``stop_seconds``.

        Parameters
        ----------
        start_seconds, stop_seconds : float
            In seconds; the first frame is the one already shown at ``start_seconds``.
        fps : float, optional
            Give the frame shown at each of the times ``start_seconds + i / fps`` before ``stop_seconds``
            instead, repeating or leaving out frames; the batch's times are then these.
        out : Tensor, optional
            Where to write: contiguous, of the batch's shape and dtype.

        Raises
        ------
        ValueError
            Unless ``begin_stream_seconds <= start_seconds <= stop_seconds <= end_stream_seconds``, or if fps
            is not positive.
        TypeError, DecodeError
        """
        numbers, times = self._played_in_range(start_seconds, stop_seconds, fps)
        batch = self._batch(numbers, out)
        if times is None or fps is None:
            return batch
        pts = torch.tensor(times, dtype=torch.float64)
        return FrameBatch(batch.data, pts, torch.full_like(pts, 1 / float(fps)), batch.valid)

    def find_frames_played_in_range(
        self, start_seconds: float, stop_seconds: float, *, fps: float | None = None
    ) -> tuple[list[int], Tensor]:
        """Which frames :meth:`get_frames_played_in_range` gives, without decoding them.

        Returns
        -------
        (list of int, Tensor)
            The frames' numbers, and the (N,) float64 times that their batch would carry.

        Raises
        ------
        ValueError, TypeError
            As :meth:`get_frames_played_in_range`.
        """
        numbers, times = self._played_in_range(start_seconds, stop_seconds, fps)
        if times is None:
            times = [self._index.start_seconds(i) for i in numbers]
        return list(numbers), torch.tensor(times, dtype=torch.float64)

    def _played_in_range(
        self, start_seconds: float, stop_seconds: float, fps: float | None
    ) -> tuple[Sequence[int], list[float] | None]:
        index = self._index
        begin, end = index.start_seconds(0), index.seconds(index.end)
        start, stop = _seconds("start_seconds", start_seconds), _seconds("stop_seconds", stop_seconds)
        if fps is not None:
            fps = _seconds("fps", fps)
            if fps < 1e-9:  # the reciprocal of less may overflow
                raise ValueError(f"fps: expected a positive number, got {fps}")
        if not begin <= start <= stop <= end:
            raise ValueError(
                f"start_seconds, stop_seconds: [{start}, {stop}) is no range of {self._name}, whose frames"
                f" are shown from {begin} to {end} s"
            )
        return index.played_in_range(start, stop, fps)

    # --- life

    def close(self) -> None:
        """Release the file and the codec; reading then raises ValueError, closing again does nothing."""
        with self._lock:
            self._closed = True
            self._reader.close()

    def __del__(self) -> None:
        # The reader and its generators refer to each other: their codec would wait for the garbage collector.
        with contextlib.suppress(Exception):
            self._reader.close()

    def __enter__(self) -> VideoDecoder:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_lock"], state["_lock_pid"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset_lock()

    # --- the work

    @property
    def _index(self) -> FrameIndex:
        return self._reader.index

    def _reset_lock(self) -> None:
        self._lock = threading.RLock()
        self._lock_pid = os.getpid()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[FrameIndex]:
        if self._lock_pid != os.getpid():
            self._reset_lock()  # a thread of the parent may have held the lock when the process forked
        with self._lock:
            if self._closed:
                raise ValueError(f"{self._name}: the decoder is closed")
            with passing_interrupts():
                yield self._reader.index

    def _frame(self, target: int, out: Tensor | None) -> Frame:
        data = self._decode((target,), None, 1, out)
        layout = self._transform.layout
        if not isinstance(layout, Patches):
            data = data.select(layout.index("N"), 0)
        index = self._index
        return Frame(data, index.start_seconds(target), index.duration_seconds(target))

    def _batch(self, numbers: Sequence[int], out: Tensor | None) -> FrameBatch:
        index = self._index
        if isinstance(numbers, range) and numbers.step > 0:
            data = self._decode(numbers, None, len(numbers), out)
        else:
            slots: dict[int, list[int]] = {}
            for slot, number in enumerate(numbers):
                slots.setdefault(number, []).append(slot)
            data = self._decode(sorted(slots), slots, len(numbers), out)
        return FrameBatch(
            data,
            torch.tensor([index.start_seconds(i) for i in numbers], dtype=torch.float64),
            torch.tensor([index.duration_seconds(i) for i in numbers], dtype=torch.float64),
        )

    def _decode(
        self, targets: Sequence[int], slots: dict[int, list[int]] | None, count: int, out: Tensor | None
    ) -> Tensor:
        """Decode ascending ``targets`` into the batch slots that ``slots`` gives, or one after the other."""
        from mmcore.ops.frame_batch_builder import FrameBatchBuilder

        if not count:
            return self._empty(out)
        with self._locked():
            builder = None
            for slot, (target, frame) in enumerate(self._reader.read(targets)):
                if builder is None:
                    builder = FrameBatchBuilder(
                        count,
                        self._transform,
                        out=out,
                        rotation=clockwise_rotation(frame),
                        codec_name=self._reader.codec_name,
                    )
                first, *others = (slot,) if slots is None else slots[target]
                try:
                    # Converted at once, while the planes are in the cache.
                    builder.put(first, frame)
                except (ValueError, UnsupportedError) as error:
                    where = f"frame {target} of {self._name}, stream {self._reader.stream_index}"
                    raise type(error)(f"{error} ({where})") from error
                for other in others:
                    builder.copy(first, other)
            assert builder is not None
            return builder.finish()

    def _empty(self, out: Tensor | None) -> Tensor:
        metadata = self.metadata
        shape = self._transform.output_shape(0, metadata.height, metadata.width)
        return prepare_out(out, shape, self._transform.dtype)

    # --- arguments

    def _number(self, name: str, value: Any) -> int:
        number, count = _integer(name, value), len(self)
        if not -count <= number < count:
            raise IndexError(f"{name}: there is no frame {number} in the {self._count_text()}")
        return number + count if number < 0 else number

    def _count_text(self) -> str:
        text = f"{len(self)} frames of {self._name}, stream {self._reader.stream_index}"
        return text if self._index.damage is None else f"{text} ({self._broken_off()})"

    def _broken_off(self) -> str:
        index = self._index
        last = len(index) - 1
        return (
            f"{self._name}: stream {self._reader.stream_index} breaks off after frame {last} at"
            f" {index.start_seconds(last):.6g} s: {index.damage}"
        )

    def _time(self, name: str, value: Any) -> float:
        index = self._index
        begin, end = index.start_seconds(0), index.seconds(index.end)
        seconds = _seconds(name, value, finite=False)
        if not begin <= seconds < end:
            raise ValueError(
                f"{name}: {seconds} s is outside {self._name}, expected {begin} <= {name} < {end}"
            )
        return seconds


def _integer(name: str, value: Any) -> int:
    # A bool, or a Tensor of them, is a mask taken for a list of numbers.
    if isinstance(value, bool) or getattr(value, "dtype", None) == torch.bool:
        raise TypeError(f"{name}: expected an int, got {value!r}")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an int, got {value!r}") from None


def _seconds(name: str, value: Any, *, finite: bool = True) -> float:
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf if value > 0 else -math.inf
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number, got {value!r}") from None
    if finite and not math.isfinite(number):
        raise ValueError(f"{name}: expected a finite number, got {number}")
    return number


def _elements(name: str, values: Any) -> list[Any]:
    """The elements of a list, Tensor or ndarray of one dimension."""
    if hasattr(values, "tolist"):
        values = values.tolist()
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise TypeError(f"{name}: expected a list or a 1-D Tensor or ndarray of numbers, got {values!r}")
    return list(values)
