"""Finding and decoding frames: from frame numbers to a seek, a run of packets and the decoder's frames."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from mmcore import _core
from mmcore.errors import DecodeError, UnsupportedError

from .control import Control
from .index import DROPPABLE, FrameIndex, Opened, approximate_index, build_index, is_empty
from .index import NO_TIME as _NO_TIME
from .index_cache import IndexCache
from .plan import NO_END, SEEK_COST, Piece, make_pieces
from .route import PacketStream, Route
from .source import Source, choose_stream, demux

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.codeccontext import VideoCodecContext
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    from .nvdec import Nvdec
    from .shared_pass import SharedPass

__all__ = ["FrameReader"]

# Key frames before the nearest one from which a frame is tried again when it does not come out whole.
_STEPS_BACK = (0, 1, 3)
# Up to this many packets are read on to a key frame rather than sought: a seek costs as much.
_READ_ON = 24
_MAX_REORDER_DEPTH = 16  # of H.264
# Without an index, this many frames are decoded on before a seek is tried.
_BLIND_GAP = 32

_open_readers: weakref.WeakSet[FrameReader] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Stop codecs' threads in order: freed while they run, by the interpreter's end, they have crashed."""
    for reader in list(_open_readers):
        reader.close()


def _with_pictures(packet: Packet[VideoStream], mask: int) -> Packet[VideoStream]:
    """An AV1 packet without the pictures whose bit is 0."""
    import av

    content = _core.keep_av1_pictures(packet.buffer_ptr, packet.size, mask)
    smaller: Any = av.Packet(content)
    smaller.pts, smaller.dts, smaller.time_base = packet.pts, packet.dts, packet.time_base
    return smaller  # type: ignore[no-any-return]


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
    cache : IndexCache, optional
        Where the exact index is kept between runs.
    shared : SharedPass, optional
        What else to find while the index is built.

    Raises
    ------
    DecodeError, UnsupportedError, ValueError
        If the source has no such stream, or it cannot be decoded.
    """

    def __init__(
        self,
        source: Source,
        stream_index: int | None,
        num_threads: int,
        exact: bool,
        cache: IndexCache | None = None,
        shared: SharedPass | None = None,
    ) -> None:
        self.source = source
        self.num_threads = self._codec_threads = num_threads
        self._nvdec: Nvdec | None = None
        self._requested_stream = stream_index
        self._lost: dict[int, str] = {}  # frames that were tried in vain, and why
        # packet numbers [first, end) that lack a reference, and why
        self._broken: list[tuple[int, int, str]] = []
        self._index: FrameIndex | None = None
        self._control: Control | None = None
        self._forget()
        opened = self._open()
        self.stream_index = self._requested_stream = opened[1].index
        codec = opened[1].codec_context
        self.codec_name: str = codec.codec.canonical_name
        self.pixels: int = codec.width * codec.height
        if not exact:
            self._index = approximate_index(*opened, source.name)
            return
        self._index = None if cache is None else cache.load(self.stream_index)
        if self._index is None:
            self._index = build_index(opened, self._open, source.name, shared)
            self._check_length()
            if cache is not None:
                cache.save(self.stream_index, self._index)
        self.opened()
        self._set_reorder_depth()

    @property
    def index(self) -> FrameIndex:
        """The frames of the stream."""
        assert self._index is not None
        return self._index

    def twin(self, num_threads: int) -> FrameReader:
        """Another decoder of the same stream; it opens the source at its first read."""
        other = FrameReader.__new__(FrameReader)
        threads = {"num_threads": num_threads, "_codec_threads": num_threads}
        other.__setstate__({**self.__getstate__(), **threads})
        return other

    @property
    def nvdec(self) -> Nvdec | None:
        """How decoders are opened on a GPU; None: the CPU decodes. Setting it releases the decoder."""
        return self._nvdec

    @nvdec.setter
    def nvdec(self, nvdec: Nvdec | None) -> None:
        self.close()
        self._nvdec = nvdec
        self._lost, self._broken = {}, []  # for the decoder before

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
        self._codec: VideoCodecContext | None = None  # the stream's own, or one that decodes on a GPU
        self._packets: PacketStream | None = None  # what the file gives next
        self._order = 0  # number of the next packet
        self._frames: Iterator[VideoFrame] | None = None  # what the decoder gives next
        self._next = 0  # no frame before this one is still to come
        self._last: int | None = None  # what was read last
        self._gap = _NO_TIME  # the latest time of a frame that was dropped
        self._ended = False  # whether the decoder was told that nothing follows
        self._route = Route(iter(()), reads_on=True)
        self._error: str | None = None
        self._damage: list[tuple[int, int]] = []  # packet numbers: [damaged, next that needs none before)
        self._is_unsure = False  # whether frame threads met damage, of which they tell some packets late
        self._pid = os.getpid()

    # --- opening and closing

    def _open(self) -> Opened:
        self.close()
        container = self.source.open(probe=False)
        unclear = self._requested_stream is None and len(container.streams.video) > 1
        if unclear or any(s.codec_context and not s.codec_context.width for s in container.streams.video):
            container.close()
            container = self.source.open()
        try:
            stream = choose_stream(container, "video", self._requested_stream, self.source.name)
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
        codec.thread_count = self._codec_threads
        codec.thread_type = "FRAME" if self._codec_threads > 1 else "NONE"
        try:
            self._codec = codec if self._nvdec is None else self._nvdec.open(stream)
        except BaseException:
            container.close()
            raise
        self.container, self.stream = container, stream
        self._set_reorder_depth()
        _open_readers.add(self)
        return container, stream

    def _set_reorder_depth(self) -> None:
        """Tell an H.264 decoder what it would guess where no header says it, losing frames meanwhile."""
        index, codec = self._index, self._codec
        if index is not None and codec is not None and codec.name == "h264":
            codec.reorder_depth = max(codec.reorder_depth, min(index.reorder_depth, _MAX_REORDER_DEPTH))

    def close(self) -> None:
        """Release the file and the decoder; a later read opens them again."""
        if self._pid != os.getpid():
            # Freeing a codec waits for its threads, which a fork leaves behind: leak what the parent still
            # owns.
            for held in (self.container, self.stream, self._codec, self._packets, self._frames):
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(held))
        elif self.container is not None and self.stream is not None:
            if self._frames is not None:
                self._frames.close()  # type: ignore[attr-defined]
            # Frame threads that still hold packets have been seen to hang a close.
            self._empty_decoder()
            self.container.close()
        self._forget()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for name in ("container", "stream", "_codec", "_packets", "_frames", "_route", "_control"):
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

    def read(
        self, targets: Sequence[int], control: Control | None = None
    ) -> Iterator[tuple[int, VideoFrame | DecodeError]]:
        """Decode frames.

        Parameters
        ----------
        targets : sequence of int
            Frame numbers in [0, len(index)), strictly ascending.
        control : Control, optional
            Asked before every packet.

        Yields
        ------
        (int, VideoFrame or DecodeError)
            Number and frame, in the same order, or why there is none; reading on works. Nothing is decoded
            beyond the last one that is asked for.

        Raises
        ------
        DecodeTimeoutError, Cancelled
            By ``control``; the next read starts anew.
        """
        if not targets:
            return
        if self._pid != os.getpid():
            self.close()
        self._control = control
        found: Iterator[tuple[int, VideoFrame | DecodeError]]
        if self.index.counted:
            found = self._read_singly(targets, self._count_to)
        elif not self.index.exact:
            found = self._read_singly(targets, self._find_blindly)
        else:
            found = self._read_pieces(targets)
        try:
            yield from found
        except GeneratorExit:  # between two frames, when all is in order
            raise
        except BaseException:
            self.close()  # interrupted, or the source failed: nothing of it can be relied on
            raise

    def _read_singly(
        self, targets: Sequence[int], find: Callable[[int], VideoFrame]
    ) -> Iterator[tuple[int, VideoFrame | DecodeError]]:
        for target in targets:
            try:
                frame: VideoFrame | DecodeError = find(target)
            except DecodeError as error:
                if target not in self._lost:
                    raise
                self._frames = None  # its position is unknown: the next read seeks
                frame = error
            yield target, frame

    def _read_pieces(self, targets: Sequence[int]) -> Iterator[tuple[int, VideoFrame | DecodeError]]:
        index, before = self.index, self._last
        pieces = make_pieces(index, targets)
        first = next(pieces)
        # Who reads on in the same group will do so again: then the decoder is not brought to an end, which
        # makes its last frames come out at once but would have the next read start from the key frame.
        reads_on = before is not None and (
            before == targets[0] - 1 or targets[0] > before >= index.sync_frame[first.sync]
        )
        self._route = Route(chain((first,), pieces), reads_on, index)
        for piece in self._route:
            if not self._reaches(piece):
                self._start(piece.sync)
            for target in piece.targets:
                frame = self._find(target, piece)
                self._last = target
                yield target, frame

    def reaches(self, targets: Sequence[int]) -> bool:
        """Whether the decoder gives ``targets`` by decoding on from where it is."""
        if self._pid != os.getpid() or self._frames is None:
            return False
        if self.index.exact and not self.index.counted:
            return self._reaches(next(make_pieces(self.index, targets)))
        return targets[0] >= self._next

    def _reaches(self, piece: Piece) -> bool:
        first = piece.targets[0]
        return (
            self._frames is not None
            and first >= self._next
            and piece.start <= self._order + SEEK_COST
            and self.index.pts[first] > self._gap
            and not (self._ended and self._order <= piece.stop < NO_END)
        )

    def _find(self, target: int, piece: Piece) -> VideoFrame | DecodeError:
        index = self.index
        want = index.pts[target]
        if self._lost and self._is_known_lost(target):
            return self._lost_frame(target)
        if self._frames is None:
            self._start(piece.sync)
        frame = self._decode_to(want)
        if frame is None:
            planned = self._route
            if self._is_unsure:
                self.close()
                self._codec_threads = 1
            # First by itself, so that whether it can be had does not depend on what else is read: beside what
            # follows, damage there may keep it from coming. Pictures that lead an open group's key frame, and
            # gradual refreshes, need an earlier start.
            (own,) = make_pieces(index, [target])
            self._route = Route(iter((own,)), reads_on=False, index=index)
            next(iter(self._route))
            earlier = dict.fromkeys(max(piece.sync - back, 0) for back in _STEPS_BACK)
            alone = True
            for start in (own.sync, *earlier):
                self._start(start)
                frame = self._decode_to(want)
                if frame is not None:
                    break
                alone = False
                self._route = Route(iter(()), reads_on=True)
            else:
                reason = self._error or "no frame comes out of the decoder for its time"
                self._broken += [(first, whole, reason) for first, whole in self._damage]
                self._lost[target] = reason
                self._frames = None  # its position is unknown: the next read seeks
                self._route = planned
                return self._lost_frame(target)
            if alone:
                self._frames = None  # it was brought to an end; what follows starts anew
                self._route = Route(iter(()), reads_on=True)
        self._next = target + 1
        return frame

    def _is_known_lost(self, target: int) -> bool:
        """Whether a frame is known to be lost, without trying it again from earlier key frames."""
        number = self.index.packet_number(self.index.pts[target])
        for first, whole, reason in self._broken:
            if number is not None and first <= number < whole:
                self._lost.setdefault(target, reason)
        return target in self._lost

    def _decode_to(self, want: int) -> VideoFrame | None:
        """Decode on to the frame with pts ``want``; None if it does not come, or comes damaged."""
        assert self._frames is not None
        for frame in self._frames:
            pts = frame.pts
            if pts == want:
                if frame.is_corrupt:
                    self._is_unsure = self._codec_threads > 1
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
        import av

        self._frames, self._damage, self._error = None, [], None
        self._gap, self._ended = _NO_TIME, False
        order = self.index.sync_order[sync]
        packets, stream = self._packets, self.stream
        self._packets = None
        ready = False
        if packets is not None and stream is not None and 0 <= order - self._order <= _READ_ON:
            self._empty_decoder()
            with contextlib.suppress(av.FFmpegError):
                ready = self._skip_to(order, packets)
        self._packets = packets if ready else self._packets_from(sync)
        assert self._packets is not None
        self._order = order
        self._next = self.index.sync_frame[sync]
        self._frames = self._decode_planned(self._packets)

    def _packets_from(self, sync: int) -> PacketStream:
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
                    self._empty_decoder()
                    packets = PacketStream(demux(self.container, self.stream))
                    if self._skip_to(order, packets):
                        return packets
                except av.FFmpegError:
                    continue
        container, stream = self._open()
        packets = PacketStream(demux(container, stream))
        if order and not self._skip_to(order, packets):
            container, stream = self._open()
            return PacketStream(demux(container, stream))
        return packets

    def _empty_decoder(self) -> None:
        """Forget what was decoded: a seek does so only to the stream's own decoder."""
        if self._codec is not None:
            self._codec.flush_buffers()

    def _skip_to(self, order: int, packets: PacketStream) -> bool:
        """Advance to packet number ``order``, if it is still to come."""
        index = self.index
        want = index.packet_pts[order]
        for packet in packets:
            pts = packet.pts
            if pts == want:
                packets.push_back(packet)
                return True
            number = index.packet_number(pts)
            if number is not None and number > order:
                break
        return False

    def _decode_planned(self, packets: PacketStream) -> Iterator[VideoFrame]:
        """Frames of ``packets``, without those that the piece does not need.

        Packets that do not decode are noted in ``_error`` and ``_damage``.
        """
        import av

        assert self._codec is not None
        index, decode = self.index, self._codec.decode
        times, flags = index.packet_pts, index.packet_flags
        while True:
            if self._control is not None:
                self._control.check()
            number, route = self._order, self._route
            if not route.leads_to(number):
                self._ended = True
                yield from self._last_frames()
                return
            try:
                packet = next(packets, None)
            except av.FFmpegError as error:
                self._error = error.strerror
                self._packets, self._ended = None, True
                yield from self._last_frames()  # the file breaks off here
                return
            if packet is None:
                self._packets, self._ended = None, True
                return
            if packet.size:
                pts = packet.pts
                if number >= len(times) or times[number] != (_NO_TIME if pts is None else pts):
                    found = index.packet_number(pts)
                    number = number if found is None else found
                self._order = number + 1
                mask = route.mask(number)
                if mask >= 0:
                    droppable = flags[number] & DROPPABLE
                    if not mask:
                        self._gap = max(self._gap, times[number] if droppable else route.end_of_piece() - 1)
                        continue
                    if index.packet_counts and mask.bit_count() < index.packet_counts[number]:
                        if not route.keeps_references:
                            self._gap = max(self._gap, route.end_of_piece() - 1)
                        packet = _with_pictures(packet, mask)
            elif is_empty(packet):
                continue
            else:
                self._ended = True
            try:
                frames = decode(packet)
            except av.FFmpegError as error:
                if self._codec_threads > 1:
                    self._is_unsure = True
                    return
                self._note_damage(number, error)
                continue
            yield from frames

    def _decode(self, packets: Iterator[Packet[VideoStream]]) -> Iterator[VideoFrame]:
        """Frames of ``packets``; packets that do not decode are noted in ``_error`` and ``_damage``."""
        import av

        assert self._codec is not None
        decode = self._codec.decode
        while True:
            if self._control is not None:
                self._control.check()
            try:
                packet = next(packets, None)
            except av.FFmpegError as error:
                self._error = error.strerror
                yield from self._last_frames()  # the file breaks off here
                return
            if packet is None:
                return
            if is_empty(packet):
                continue
            try:
                frames = decode(packet)
            except av.FFmpegError as error:
                self._error = error.strerror
                continue
            yield from frames

    def _last_frames(self) -> list[VideoFrame]:
        """What the decoder still holds."""
        import av

        assert self._codec is not None
        try:
            return self._codec.decode(None)
        except av.FFmpegError:
            self._is_unsure = self._codec_threads > 1
            return []

    def _note_damage(self, number: int, error: Any) -> None:
        self._error = error.strerror
        index = self.index
        if number < len(index.packet_flags) and index.packet_flags[number] & DROPPABLE:
            self._damage.append((number, number + 1))  # no other frame needs it
            return
        orders = index.sync_order
        whole = bisect_right(orders, number)
        self._damage.append((number, orders[whole] if whole < len(orders) else NO_END))

    def _count_to(self, target: int) -> VideoFrame:
        """Find a frame where pts say nothing: count from the beginning."""
        if self._frames is None or target < self._next:
            self._frames, self._next, self._error = None, 0, None
            container, stream = self._open()
            self._frames = self._decode(demux(container, stream))
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
                    self._empty_decoder()
                except av.FFmpegError:
                    continue
            self._frames = self._decode(demux(container, stream))
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
