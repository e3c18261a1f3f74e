"""Finding and decoding frames: from frame numbers to a seek, a run of packets and the decoder's frames."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import weakref
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from mmcore.errors import DecodeError, UnsupportedError

from .index import FrameIndex, Opened, approximate_index, build_index, is_empty
from .source import Source

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

__all__ = ["FrameReader"]

# A seek costs about as much as decoding this many frames: skipping fewer is cheaper by decoding on.
_SEEK_COST = 3
# Key frames before the nearest one from which a frame is tried again when it does not come out whole.
_STEPS_BACK = (0, 1, 3)
# Below this size frame threads gain nothing: a frame is decoded faster than it is handed over.
_THREADED_PIXELS = 640 * 360
# Without an index, this many frames are decoded on before a seek is tried.
_BLIND_GAP = 32

_open_readers: weakref.WeakSet[FrameReader] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Stop codecs' threads in order: freed while they run, by the interpreter's end, they have crashed."""
    for reader in list(_open_readers):
        reader.close()


class FrameReader:
    """Decodes chosen frames of one video stream, keeping the decoder where the last read left it.

    Not safe for use by several threads at once; after a fork the child opens the source anew.

    Parameters
    ----------
    source : Source
        What to read.
    stream_index : int or None
        Number of the stream in the file; None for the one FFmpeg thinks best.
    num_threads : int
        For the codec.
    exact : bool
        Build the exact index now; otherwise compute one from the header.

    Raises
    ------
    DecodeError, UnsupportedError, ValueError
        If the source has no such stream, or it cannot be decoded.
    """

    def __init__(self, source: Source, stream_index: int | None, num_threads: int, exact: bool) -> None:
        self.source = source
        self.num_threads = num_threads
        self._requested_stream = stream_index
        self._forget()
        opened = self._open()
        self.stream_index = opened[1].index
        self.codec_name: str = opened[1].codec_context.codec.canonical_name
        if exact:
            self.index: FrameIndex = build_index(opened, self._open, source.name)
            self._check_length()
        else:
            self.index = approximate_index(*opened, source.name)
        self._lost: dict[int, str] = {}  # frames that were tried in vain, and why
        # packet numbers [first, end) that lack a reference, and why
        self._broken: list[tuple[int, int, str]] = []

    def _check_length(self) -> None:
        container, _ = self.opened()
        index = self.index
        if index.damage is not None or "matroska" not in container.format.name:
            return
        missing = self.source.matroska_shortage()
        told = container.duration
        last = index.duration_seconds(len(index) - 1)
        # Without its tail of tables alone, all frames are there.
        if missing and (told is None or told / 1_000_000 - index.seconds(index.end) > last / 2):
            index.damage = f"{missing} bytes lie beyond its end"

    def _forget(self) -> None:
        self.container: InputContainer | None = None
        self.stream: VideoStream | None = None
        self._frames: Iterator[VideoFrame] | None = None  # what the decoder gives next
        self._next = 0  # no frame before this one is still to come
        self._error: str | None = None
        self._damage: list[tuple[int, int]] = []  # packet numbers: [damaged, next that needs none before)
        self._pid = os.getpid()

    # --- opening and closing

    def _open(self) -> Opened:
        self.close()
        container = self.source.open()
        try:
            stream = self._choose_stream(container)
        except BaseException:
            container.close()
            raise
        import av

        discard = getattr(av.stream, "Discard", None)
        for other in container.streams:
            if discard is not None and other.index != stream.index:
                with contextlib.suppress(AttributeError):
                    other.discard = discard.all  # the demuxer then need not read them
        codec = stream.codec_context
        threads = self.num_threads if codec.width * codec.height >= _THREADED_PIXELS else 1
        codec.thread_count = threads
        codec.thread_type = "FRAME" if threads > 1 else "NONE"
        self.container, self.stream = container, stream
        _open_readers.add(self)
        return container, stream

    def _choose_stream(self, container: InputContainer) -> VideoStream:
        streams = container.streams
        held = ", ".join(f"{s.index} ({s.type})" for s in streams) or "none"
        number = self._requested_stream
        stream: Any
        if number is None:
            stream = streams.best("video")
            if stream is None:
                raise DecodeError(f"{self.source.name}: holds no video stream; its streams: {held}")
        elif not 0 <= number < len(streams):
            raise ValueError(f"stream_index: {self.source.name} has no stream {number}; its streams: {held}")
        else:
            stream = streams[number]
            if stream.type != "video":
                raise ValueError(
                    f"stream_index: stream {number} of {self.source.name} is no video stream;"
                    f" its streams: {held}"
                )
        if stream.codec_context is None:
            raise UnsupportedError(
                f"{self.source.name}: stream {stream.index}: PyAV's FFmpeg has no decoder for its codec"
            )
        return stream  # type: ignore[no-any-return]

    def close(self) -> None:
        """Release the file and the decoder; a later read opens them again."""
        if self._pid != os.getpid():
            # Freeing a codec waits for its threads, which a fork leaves behind: leak what the parent still
            # owns.
            for held in (self.container, self.stream, self._frames):
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(held))
        elif self.container is not None and self.stream is not None:
            if self._frames is not None:
                self._frames.close()  # type: ignore[attr-defined]
            # Frame threads that still hold packets have been seen to hang a close.
            self.stream.codec_context.flush_buffers()
            self.container.close()
        self._forget()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for name in ("container", "stream", "_frames"):
            state[name] = None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def opened(self) -> Opened:
        """The open container and stream, opened now if need be."""
        if self._pid != os.getpid():
            self.close()
        if self.container is None or self.stream is None:
            return self._open()
        return self.container, self.stream

    # --- reading

    def read(self, targets: Iterable[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Decode frames.

        Parameters
        ----------
        targets : iterable of int
            Frame numbers in [0, len(index)), strictly ascending.

        Yields
        ------
        (int, VideoFrame)
            Number and frame, in the same order. Nothing is decoded beyond the last one that is asked for.

        Raises
        ------
        DecodeError
            For a frame that cannot be decoded; reading others afterwards works.
        """
        if self._pid != os.getpid():
            self.close()
        if self.index.counted:
            find = self._count_to
        else:
            find = self._find if self.index.exact else self._find_blindly
        for target in targets:
            try:
                frame = find(target)
            except BaseException:
                if target in self._lost:
                    self._frames = None  # its position is unknown: the next read seeks
                else:
                    self.close()  # interrupted, or the source failed: nothing of it can be relied on
                raise
            yield target, frame

    def _find(self, target: int) -> VideoFrame:
        index = self.index
        want = index.pts[target]
        if self._lost:
            self._check_known_loss(target)
        sync = None
        if self._frames is None or target != self._next:
            sync = index.sync_for(target)
            ahead = index.sync_frame[sync] - self._next
            if self._frames is None or target < self._next or ahead > _SEEK_COST:
                self._start(sync)
        frame = self._decode_to(want)
        if frame is None:
            # Pictures that lead an open group's key frame, and gradual refreshes, need an earlier start.
            sync = index.sync_for(target) if sync is None else sync
            for start in dict.fromkeys(max(sync - back, 0) for back in _STEPS_BACK):
                self._start(start)
                frame = self._decode_to(want)
                if frame is not None:
                    break
            else:
                reason = self._error or "no frame comes out of the decoder for its time"
                self._broken += [(first, whole, reason) for first, whole in self._damage]
                self._lost[target] = reason
                raise self._lost_frame(target)
        self._next = target + 1
        return frame

    def _check_known_loss(self, target: int) -> None:
        """Raise for a frame that is known to be lost, without trying it again from earlier key frames."""
        number = self.index.packet_number(self.index.pts[target])
        for first, whole, reason in self._broken:
            if number is not None and first <= number < whole:
                self._lost[target] = reason
        if target in self._lost:
            raise self._lost_frame(target)

    def _decode_to(self, want: int) -> VideoFrame | None:
        """Decode on to the frame with pts ``want``; None if it does not come, or comes damaged."""
        assert self._frames is not None
        for frame in self._frames:
            pts = frame.pts
            if pts == want:
                if frame.is_corrupt:
                    self._error = "the decoder reports it damaged"
                    return None
                return None if self._damage and self._is_damaged(want) else frame
            if pts is not None and pts > want:
                return None
        return None

    def _is_damaged(self, pts: int) -> bool:
        """Whether the frame follows a packet that did not decode, with no key frame in between."""
        number = self.index.packet_number(pts)
        return number is None or any(first <= number < whole for first, whole in self._damage)

    def _lost_frame(self, target: int) -> DecodeError:
        return DecodeError(
            f"{self.source.name}: stream {self.stream_index}: frame {target} at"
            f" {self.index.start_seconds(target):.6g} s cannot be decoded: {self._lost[target]}"
        )

    def _start(self, sync: int) -> None:
        """Make the decoder start at sync point ``sync``."""
        self._frames, self._damage, self._error = None, [], None
        self._frames = self._decode(self._packets_from(sync))
        self._next = self.index.sync_frame[sync]

    def _packets_from(self, sync: int) -> Iterator[Packet[VideoStream]]:
        import av

        index, order = self.index, self.index.sync_order[sync]
        if self.container is not None and self.stream is not None:
            # MP4 and MPEG-TS seek by dts, Matroska by pts. A seek that lands after the key frame is repeated
            # with an earlier time; one that lands before costs only the reading of packets.
            times = [index.sync_pts[sync]] if "matroska" in self.container.format.name else []
            times += [index.sync_dts[max(sync - back, 0)] for back in _STEPS_BACK]
            for time in dict.fromkeys(times):
                try:
                    self.container.seek(time, stream=self.stream)
                    found = self._skip_to(order)
                except av.FFmpegError:
                    continue
                if found is not None:
                    return found
        container, stream = self._open()
        return self._skip_to(order) or container.demux(stream)

    def _skip_to(self, order: int) -> Iterator[Packet[VideoStream]] | None:
        """Packets from number ``order`` on, if it is still to come."""
        assert self.container is not None
        packets = self.container.demux(self.stream)
        for packet in packets:
            number = self.index.packet_number(packet.pts)
            if number == order:
                return chain((packet,), packets)  # type: ignore[arg-type]
            if number is not None and number > order:
                break
        return None

    def _decode(self, packets: Iterator[Packet[VideoStream]]) -> Iterator[VideoFrame]:
        """Frames of ``packets``; packets that do not decode are noted in ``_error`` and ``_damage``."""
        import av

        assert self.stream is not None
        decode = self.stream.codec_context.decode
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError as error:
                self._error = error.strerror
                with contextlib.suppress(av.FFmpegError):
                    yield from decode(None)  # the file breaks off here: give out what the decoder still holds
                return
            if packet is None:
                return
            if is_empty(packet):
                continue
            try:
                frames = decode(packet)
            except av.FFmpegError as error:
                self._note_damage(packet, error)
                continue
            yield from frames

    def _note_damage(self, packet: Packet[VideoStream], error: Any) -> None:
        self._error = error.strerror
        number = self.index.packet_number(packet.pts)
        if number is not None:
            whole = bisect_right(self.index.sync_order, number)
            orders = self.index.sync_order
            self._damage.append((number, orders[whole] if whole < len(orders) else 1 << 62))

    def _count_to(self, target: int) -> VideoFrame:
        """Find a frame where pts say nothing: count from the beginning."""
        if self._frames is None or target < self._next:
            self._frames, self._next, self._error = None, 0, None
            container, stream = self._open()
            self._frames = self._decode(container.demux(stream))
        for frame in self._frames:
            self._next += 1
            if self._next > target:
                return frame
        self._lost[target] = self._error or "the file ends before it"
        raise self._lost_frame(target)

    def _find_blindly(self, target: int) -> VideoFrame:
        """Find a frame by the time computed for it, where there is no index."""
        import av

        index = self.index
        step = (index.end - index.pts[0]) // len(index)
        want = index.pts[target] - step // 2
        if self._frames is not None and 0 <= target - self._next < _BLIND_GAP:
            frame, _ = self._decode_from_time(want)
            if frame is not None:
                self._next = target + 1
                return frame
        second = round(1 / index.time_base)
        for start in (index.pts[target], want - second, want - 5 * second, None):
            container, stream = self.container, self.stream
            if start is None or container is None or stream is None:
                container, stream = self._open()
            if start is not None:
                try:
                    container.seek(start, stream=stream)
                except av.FFmpegError:
                    continue
            self._frames = self._decode(container.demux(stream))
            frame, is_first = self._decode_from_time(want)
            landed_late = is_first and frame is not None and frame.pts is not None and frame.pts > want + step
            if frame is not None and (start is None or not landed_late):
                self._next = target + 1
                return frame
        self._lost[target] = self._error or "the file ends before it, against what its header says"
        raise self._lost_frame(target)

    def _decode_from_time(self, want: int) -> tuple[VideoFrame | None, bool]:
        """The next frame at or after pts ``want``, and whether it was the first to come."""
        assert self._frames is not None
        first = True
        for frame in self._frames:
            if frame.pts is None:
                raise UnsupportedError(
                    f'{self.source.name}: its frames carry no times; use seek_mode="exact"'
                )
            if frame.pts >= want:
                return frame, first
            first = False
        return None, first
