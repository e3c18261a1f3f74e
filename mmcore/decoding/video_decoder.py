"""The video decoder that users meet: frames of a file by number or time, as tensors."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from mmcore.errors import DecodeError, UnsupportedError
from mmcore.ops.device_target import DeviceTarget, check_convert_on, open_target
from mmcore.ops.devices import check_device
from mmcore.ops.frame_transform import FrameTransform, Patches
from mmcore.ops.planes import prepare_out

from .arguments import elements, integer, timeout_seconds
from .decoder_team import DecoderTeam
from .fork_safe_lock import ForkSafeLock
from .frame import Frame, FrameBatch, FrameTimes
from .index import FrameIndex
from .index_cache import index_cache
from .metadata import VideoStreamMetadata, clockwise_rotation, read_metadata
from .pending_batch import PendingBatch, outward
from .plan import DecodePlan, summarize
from .reader import FrameReader
from .source import Source, passing_interrupts
from .stream_arguments import StreamArguments

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

    from mmcore.ops.frame_batch_builder import FrameBatchBuilder

    from .shared_pass import SharedPass

__all__ = ["VideoDecoder"]

# Frames that wait to be looked at while iterating.
_AHEAD_BYTES = 256 << 20
# Frames that are tried in vain before it is taken that nothing around a lost frame can be decoded.
_NEAREST_TRIES = 32
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
        Threads to decode with, by default ``mmcore.get_num_threads()``: several groups of pictures at a time,
        or several frames of one group, whichever is expected to take less time. With NVDEC by default not
        more than the GPU has engines for the codec.
    device : str or torch.device
        Where the frames shall be: "cpu", "cuda", "cuda:1". On a CUDA device they are ready in the order of
        the stream that is torch's current one at the time of the call, which is not waited for. Times, and
        what else is small, stay on the CPU.
    convert_on : {"auto", "cpu", "cuda"}
        Where frames that the CPU decoded are converted for a CUDA device. "cuda": their planes are uploaded
        and converted there. "cpu": the CPU's threads convert them, and the result is uploaded. "auto": what
        is expected to be faster for their size, and "cpu" where this build has no CUDA kernels.
    seek_mode : {"exact", "approximate"}
        "exact" reads the file's packets once, without decoding them, and then knows every frame's time. With
        "approximate" nothing is read beforehand: the number of frames and their times are computed from the
        header, which is right for an unedited file with a constant frame rate. It also gives up the planning
        of what to decode, and decoding groups of pictures at a time.
    transform : FrameTransform, optional
        What to make of each frame; by default uint8 RGB of full size, NCHW.
    on_error : {"raise", "skip", "nearest"}
        What becomes of a frame that cannot be decoded whole; the others stay readable. "raise" raises
        :class:`mmcore.DecodeError`. "skip" leaves it out when iterating, and leaves its place in a batch 0.
        "nearest" puts the frame in its place that is nearest in time and can be decoded. ``valid`` of the
        batch tells which frames are meant.
    index : str or os.PathLike, optional
        Where the table of packets that "exact" needs is kept for the next time that the file is opened, by
        whatever process: "beside" the file, or in the folder of this name. One that does not fit the file's
        size and time of change is made anew. Only for local files; other sources are read each time.
    network : bool
        Allow URLs, FFmpeg's other protocols, and playlists, which name further files. Off by default, so that
        a name or a file from elsewhere cannot make this process open others.
    decoder : {"cpu", "nvdec"}
        What decodes. "nvdec", which is experimental, is NVIDIA's video decoder, for H.264, HEVC, VP8, VP9 and
        AV1 as far as the GPU does them; ``device`` must be its. Where it cannot, the CPU decodes, and a
        warning says why, once for each reason; :attr:`decoder` tells which it is.

    Attributes
    ----------
    metadata : VideoStreamMetadata
    decoder : str
        "cpu" or "nvdec": what decodes.

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
        convert_on: str = "auto",
        seek_mode: str = "exact",
        transform: FrameTransform | None = None,
        on_error: str = "raise",
        index: str | os.PathLike[str] | None = None,
        network: bool = False,
        decoder: str = "cpu",
        _shared: SharedPass | None = None,
    ) -> None:
        self._device = check_device(device)
        self._convert_on = check_convert_on(convert_on, self._device)
        if seek_mode not in ("exact", "approximate"):
            raise ValueError(f"seek_mode: expected 'exact' or 'approximate', got {seek_mode!r}")
        if on_error not in ("raise", "skip", "nearest"):
            raise ValueError(f"on_error: expected 'raise', 'skip' or 'nearest', got {on_error!r}")
        if decoder not in ("cpu", "nvdec"):
            raise ValueError(f"decoder: expected 'cpu' or 'nvdec', got {decoder!r}")
        if decoder == "nvdec" and torch.device(device).type != "cuda":
            raise ValueError("decoder='nvdec': its frames lie on a GPU: pass device='cuda'")
        if transform is not None and not isinstance(transform, FrameTransform):
            raise TypeError(f"transform: expected a FrameTransform, got {type(transform).__name__}")
        if stream_index is not None:
            stream_index = integer("stream_index", stream_index)
        threads_given = num_threads is not None
        if num_threads is None:
            from mmcore.threads import get_num_threads

            num_threads = get_num_threads()
        num_threads = integer("num_threads", num_threads)
        if num_threads < 1:
            raise ValueError(f"num_threads: expected 1 or more, got {num_threads}")
        self._transform = transform or _UINT8
        self._on_error = on_error
        self._metadata: VideoStreamMetadata | None = None
        self._closed = False
        self._lock = ForkSafeLock()
        source = Source(source, network=network)
        self._name = source.name
        exact = seek_mode == "exact"
        cache = index_cache(source, index) if exact else None
        with passing_interrupts():
            self._reader = FrameReader(source, stream_index, 1, exact, cache, _shared)
        self._arguments = StreamArguments(self._reader)
        self._team = DecoderTeam(self._reader, num_threads)
        if decoder == "nvdec":
            self._use_nvdec(torch.device(device), threads_given)

    def _use_nvdec(self, device: torch.device, threads_given: bool) -> None:
        from .nvdec_choice import use_nvdec, warn_fallback

        # The metadata come from a frame that the CPU decodes: the GPU's do not tell the rotation.
        metadata = self.metadata
        with self._locked():
            reason = use_nvdec(self._reader, metadata, device)
        nvdec = self._reader.nvdec
        if nvdec is None:
            warn_fallback(reason or "")
            return
        self._device = torch.device("cuda", nvdec.device)  # whichever is torch's current one later
        if not threads_given:  # a decoder keeps one engine busy
            self._team.num_threads = min(self._team.num_threads, nvdec.engines)

    # --- the stream

    @property
    def decoder(self) -> str:
        """What decodes: "cpu" or "nvdec"."""
        return "cpu" if self._reader.nvdec is None else "nvdec"

    @property
    def metadata(self) -> VideoStreamMetadata:
        """The stream's properties. The first access decodes one frame, which alone knows its rotation."""
        if self._metadata is None:
            with self._locked() as index, self._team.lend((0,)) as reader:
                found = next(reader.read((0,)))[1]
                first = None if isinstance(found, DecodeError) else found
                self._metadata = read_metadata(*reader.opened(), index, first)
        return self._metadata

    @property
    def transform(self) -> FrameTransform:
        """What is made of each frame; a new one holds for the reads that begin after it was set."""
        return self._transform

    @transform.setter
    def transform(self, transform: FrameTransform | None) -> None:
        if transform is not None and not isinstance(transform, FrameTransform):
            raise TypeError(f"transform: expected a FrameTransform, got {type(transform).__name__}")
        with self._locked():
            self._transform = transform or _UINT8

    @property
    def frame_times(self) -> FrameTimes:
        """The times of all frames, and the key frames; with ``seek_mode="approximate"`` as computed.

        Nothing is read or decoded; every access makes new tensors.
        """
        index = self._index
        pts = torch.tensor(index.pts, dtype=torch.float64, device="cpu")
        lengths = torch.diff(pts, append=pts.new_tensor([index.end]))
        unit = index.time_base
        return FrameTimes(
            pts * unit.numerator / unit.denominator,
            lengths * unit.numerator / unit.denominator,
            torch.tensor(index.sync_frame, dtype=torch.int64, device="cpu"),
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
            return self._batch(numbers, None, None).data
        return self._frame(self._arguments.frame("key", key), None, None).data

    def __iter__(self) -> Iterator[Tensor]:
        """Frames one by one, in order, as ``decoder[i]`` gives them, decoded ahead by the threads.

        Raises
        ------
        DecodeError
            For a frame that cannot be decoded, and at the end if the file breaks off before its last frame,
            both only with ``on_error="raise"``.
        """
        return self._iterate(self._open_target())

    def _iterate(self, device: DeviceTarget | None) -> Iterator[Tensor]:
        lost = 0  # frames before the first one that can be decoded
        last: Tensor | None = None
        with contextlib.closing(
            self._run(
                range(len(self)), functools.partial(self._convert_single, device), capacity=self._ahead()
            )
        ) as run:
            for _, found in run:
                if not isinstance(found, DecodeError):
                    yield from itertools.repeat(found, lost)
                    lost, last = 0, found
                    yield found
                elif self._on_error == "raise":
                    raise found
                elif self._on_error == "nearest" and last is not None:
                    yield last
                elif self._on_error == "nearest":
                    lost += 1
        if self._on_error == "raise" and self._index.damage is not None:
            raise DecodeError(self._arguments.broken_off())

    def _convert_single(self, device: DeviceTarget | None, target: int, frame: VideoFrame) -> Tensor:
        builder = self._builder(device, 1, frame, None)
        self._put(builder, 0, target, frame)
        return self._without_batch(builder.finish())

    def _ahead(self) -> int:
        """How many frames may be decoded ahead of the one that is looked at."""
        metadata = self.metadata
        shape = self._transform.output_shape(1, metadata.height, metadata.width)
        return max(8, _AHEAD_BYTES // max(1, math.prod(shape) * self._transform.dtype.itemsize))

    def get_frame_at(self, index: int, *, out: Tensor | None = None, timeout: float | None = None) -> Frame:
        """One frame by its number; negative numbers count from the end.

        Parameters
        ----------
        index : int
        out : Tensor, optional
            Where to write: contiguous, of the transform's dtype and of the shape of a batch of one frame.
        timeout : float, optional
            Seconds after which :class:`mmcore.DecodeTimeoutError` is raised, looked at between packets.

        Raises
        ------
        IndexError, TypeError, DecodeError
        """
        return self._frame(self._arguments.frame("index", index), out, timeout)

    def get_frames_at(
        self,
        indices: Iterable[int] | Tensor,
        *,
        out: Tensor | None = None,
        timeout: float | None = None,
    ) -> FrameBatch:
        """Frames by number, in any order, with repetitions; each is decoded once.

        Parameters
        ----------
        indices : iterable of int, 1-D integer Tensor or ndarray
        out : Tensor, optional
            Where to write: contiguous, of the batch's shape and dtype.
        timeout : float, optional
            Seconds after which :class:`mmcore.DecodeTimeoutError` is raised, looked at between packets.

        Raises
        ------
        IndexError, TypeError, DecodeError
        """
        return self._batch(self._arguments.frames("indices", indices), out, timeout)

    def get_frames_in_range(
        self,
        start: int,
        stop: int,
        step: int = 1,
        *,
        out: Tensor | None = None,
        timeout: float | None = None,
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
        return self._batch(self._arguments.frame_range(start, stop, step), out, timeout)

    def plan(self, indices: Iterable[int] | Tensor) -> DecodePlan:
        """What :meth:`get_frames_at` would read and decode for these frames; nothing is decoded.

        Parameters
        ----------
        indices : iterable of int, 1-D integer Tensor or ndarray

        Raises
        ------
        IndexError, TypeError
        UnsupportedError
            With ``seek_mode="approximate"``, or if the stream's packets do not tell when frames are shown:
            then everything from a key frame, or from the file's start, is decoded.
        """
        index = self._index
        if not index.frame_packet:
            why = (
                "its packets do not tell when its frames are shown"
                if index.exact
                else "it needs the packets' table; use seek_mode='exact'"
            )
            raise UnsupportedError(f"{self._name}: reading cannot be planned: {why}")
        targets = sorted(set(self._arguments.frames("indices", indices)))
        return summarize(index, targets, self._reader.codec_name, self._reader.pixels)

    # --- by time

    def get_frame_played_at(
        self, seconds: float, *, out: Tensor | None = None, timeout: float | None = None
    ) -> Frame:
        """The frame shown at a time.

        Raises
        ------
        ValueError
            Unless ``metadata.begin_stream_seconds <= seconds < metadata.end_stream_seconds``.
        TypeError, DecodeError
        """
        return self._frame(self._arguments.played_at("seconds", seconds), out, timeout)

    def get_frames_played_at(
        self,
        seconds: Iterable[float] | Tensor,
        *,
        out: Tensor | None = None,
        timeout: float | None = None,
    ) -> FrameBatch:
        """The frames shown at some times, in any order.

        Parameters
        ----------
        seconds : iterable of float, 1-D Tensor or ndarray
        out : Tensor, optional
            Where to write: contiguous, of the batch's shape and dtype.
        timeout : float, optional
            Seconds after which :class:`mmcore.DecodeTimeoutError` is raised, looked at between packets.

        Raises
        ------
        ValueError, TypeError, DecodeError
            As :meth:`get_frame_played_at`.
        """
        numbers = [self._arguments.played_at("seconds", s) for s in elements("seconds", seconds)]
        return self._batch(numbers, out, timeout)

    def get_frames_played_in_range(
        self,
        start_seconds: float,
        stop_seconds: float,
        *,
        fps: float | None = None,
        out: Tensor | None = None,
        timeout: float | None = None,
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
        timeout : float, optional
            Seconds after which :class:`mmcore.DecodeTimeoutError` is raised, looked at between packets.

        Raises
        ------
        ValueError
            Unless ``begin_stream_seconds <= start_seconds <= stop_seconds <= end_stream_seconds``, or if fps
            is not positive.
        TypeError, DecodeError
        """
        numbers, times = self._arguments.played_in_range(start_seconds, stop_seconds, fps)
        batch = self._batch(numbers, out, timeout)
        if times is None or fps is None:
            return batch
        pts = torch.tensor(times, dtype=torch.float64, device="cpu")
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
        numbers, times = self._arguments.played_in_range(start_seconds, stop_seconds, fps)
        if times is None:
            times = [self._index.start_seconds(i) for i in numbers]
        return list(numbers), torch.tensor(times, dtype=torch.float64, device="cpu")

    # --- life

    def close(self) -> None:
        """Release the file and the codec; reading then raises ValueError, closing again does nothing.

        A read of another thread ends at once, with ValueError, as does an iteration.
        """
        self._closed = True
        self._team.close()

    def __del__(self) -> None:
        # Readers and their generators refer to each other: codecs would wait for the garbage collector.
        with contextlib.suppress(Exception):
            self._team.close()

    def __enter__(self) -> VideoDecoder:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # --- the work

    @property
    def _index(self) -> FrameIndex:
        return self._reader.index

    @contextlib.contextmanager
    def _locked(self) -> Iterator[FrameIndex]:
        with self._lock:
            if self._closed:
                raise ValueError(f"{self._name}: the decoder is closed")
            with passing_interrupts():
                yield self._reader.index

    def _run(
        self,
        targets: Sequence[int],
        work: Callable[[int, VideoFrame], Any],
        *,
        timeout: float | None = None,
        capacity: int | None = None,
    ) -> Generator[tuple[int, Any], None, None]:
        if self._closed:
            raise ValueError(f"{self._name}: the decoder is closed")
        with passing_interrupts():
            yield from self._team.run(targets, work, timeout=timeout, capacity=capacity)

    def _frame(self, target: int, out: Tensor | None, timeout: float | None) -> Frame:
        data, lost = self._decode((target,), None, 1, out, timeout)
        index = self._index
        return Frame(
            self._without_batch(data), index.start_seconds(target), index.duration_seconds(target), not lost
        )

    def _without_batch(self, data: Tensor) -> Tensor:
        layout = self._transform.layout
        return data if isinstance(layout, Patches) else data.select(layout.index("N"), 0)

    def _batch(self, numbers: Sequence[int], out: Tensor | None, timeout: float | None) -> FrameBatch:
        index = self._index
        slots: dict[int, list[int]] | None = None
        if isinstance(numbers, range) and numbers.step > 0:
            data, lost = self._decode(numbers, None, len(numbers), out, timeout)
        else:
            slots = {}
            for slot, number in enumerate(numbers):
                slots.setdefault(number, []).append(slot)
            data, lost = self._decode(sorted(slots), slots, len(numbers), out, timeout)
        return FrameBatch(
            data,
            torch.tensor([index.start_seconds(i) for i in numbers], dtype=torch.float64, device="cpu"),
            torch.tensor([index.duration_seconds(i) for i in numbers], dtype=torch.float64, device="cpu"),
            torch.tensor([i not in lost for i in numbers], device="cpu") if lost else None,
        )

    def _decode(
        self,
        targets: Sequence[int],
        slots: dict[int, list[int]] | None,
        count: int,
        out: Tensor | None,
        timeout: float | None,
    ) -> tuple[Tensor, set[int]]:
        """Decode ascending ``targets`` into the batch slots that ``slots`` gives, or one after the other.

        Returns the batch and the targets that could not be decoded.
        """
        timeout = timeout_seconds(timeout)
        deadline = None if timeout is None else time.monotonic() + timeout
        device = self._open_target()
        builder = functools.partial(self._builder, device)
        empty = functools.partial(self._empty, device)
        if not count:
            return empty(out), set()
        with self._locked():
            batch = PendingBatch(builder, self._put, empty, targets, slots, count, out)
            lost: dict[int, DecodeError] = {}
            with contextlib.closing(self._run(targets, batch.put, timeout=timeout)) as run:
                for target, found in run:
                    if isinstance(found, DecodeError):
                        if self._on_error == "raise":
                            raise found
                        lost[target] = found
            if self._on_error == "nearest":
                for target, error in lost.items():
                    left = None if deadline is None else max(0.0, deadline - time.monotonic())
                    self._put_nearest(batch, target, error, left)
            if self._on_error == "skip":
                batch.clear(lost)
            return batch.finish(), set(lost)

    def _put_nearest(
        self, batch: PendingBatch, target: int, error: DecodeError, timeout: float | None
    ) -> None:
        """Fill the slots of a target that cannot be decoded with the nearest frame that can."""
        tries = 0
        for other in outward(self._index, target):
            known = batch.has(other)
            if known:
                batch.copy(other, target)
                return
            if known is None:
                put = functools.partial(batch.stand_in, target)
                with contextlib.closing(self._run((other,), put, timeout=timeout)) as run:
                    if not isinstance(next(run)[1], DecodeError):
                        return
                tries += 1
                if tries > _NEAREST_TRIES:
                    break
        raise DecodeError(f"{error}; nor is there a frame near it that can be") from error

    def _open_target(self) -> DeviceTarget | None:
        """Begin a call whose frames shall be on the device; None for the CPU."""
        if self._device.type == "cpu":
            return None
        return open_target(self._device, self._convert_on, self._team.num_threads, decodes=True)

    def _builder(
        self, device: DeviceTarget | None, count: int, frame: VideoFrame, out: Tensor | None
    ) -> FrameBatchBuilder:
        from mmcore.ops.frame_batch_builder import FrameBatchBuilder

        return FrameBatchBuilder(
            count,
            self._transform,
            out=out,
            rotation=self._rotation(frame),
            codec_name=self._reader.codec_name,
            _target=device,
        )

    def _rotation(self, frame: VideoFrame) -> int:
        known = self._metadata  # read before NVDEC was asked
        if self._reader.nvdec is None or known is None:
            return clockwise_rotation(frame)
        return known.rotation

    def _put(self, builder: FrameBatchBuilder, slot: int, target: int, frame: VideoFrame) -> None:
        try:
            builder.put(slot, frame)
        except (ValueError, UnsupportedError) as error:
            where = f"frame {target} of {self._name}, stream {self._reader.stream_index}"
            raise type(error)(f"{error} ({where})") from error

    def _empty(self, device: DeviceTarget | None, out: Tensor | None, count: int = 0) -> Tensor:
        metadata = self.metadata
        shape = self._transform.output_shape(count, metadata.height, metadata.width)
        return prepare_out(out, shape, self._transform.dtype, None if device is None else device.queue.device)
