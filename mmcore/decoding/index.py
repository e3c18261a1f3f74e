"""The table of a video stream's frames in presentation order, built from its packets without decoding them.

Packets say when their frame is shown, so one pass over the file gives every frame's time exactly: with
variable frame rates, edit lists and missing headers. Where packets cannot be trusted (timestamps missing or
made up by the demuxer, two packets per frame) the stream is decoded once instead.

Memory: some 30 bytes per frame.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, TypeAlias

from mmcore import _core
from mmcore.errors import DecodeError

from .source import demux

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    from .shared_pass import SharedPass

__all__ = [
    "DROPPABLE",
    "KEY",
    "NO_TIME",
    "OWN",
    "FrameIndex",
    "Opened",
    "approximate_index",
    "build_index",
    "is_empty",
]

# Containers that carry a presentation time for every frame. In others (AVI, program streams, raw streams) the
# demuxer derives them, which fails with reordered frames.
_TIMED = frozenset({"mp4", "matroska", "mpegts", "flv", "gif", "nut", "asf", "ogg", "ivf", "mxf"})
NO_TIME = -(1 << 63)
KEY, OWN, DROPPABLE = 1, 2, 4
_FIELD_CODED = (2, 3, 4, 5)  # AVFieldOrder: anything but unknown and progressive
_PROBE_FRAMES = 8
_GRID_TOLERANCE = 1e-3  # of the length of a frame
_GRID_LIMIT = 1 << 22

Opened: TypeAlias = "tuple[InputContainer, VideoStream]"


@dataclass(slots=True)
class FrameIndex:
    """Frames of one stream in presentation order, its packets in file order, and where decoding can start.

    Attributes
    ----------
    time_base : Fraction
        Seconds per unit of pts.
    pts : array of int64
        Presentation time of each frame, strictly increasing.
    end : int
        When the last frame ends, in units of pts.
    frame_packet : array of int32
        Number in the file of the packet that holds each frame; empty if ``counted`` or not ``exact``.
    packet_pts : array of int64
        Of each packet that has content; NO_TIME where it has none.
    packet_flags : array of uint8
        Sums of KEY (decoding can start here), OWN (holds the frame with its pts), DROPPABLE (no other packet
        needs it).
    packet_size : array of uint32
        Bytes.
    packet_pictures : array of uint16
    packet_counts : array of uint8
        For codecs whose packets tell which pictures need which (AV1): the pictures of all packets as
        ``PacketParser.pictures`` gives them, and how many each packet holds. Otherwise empty.
    sync_pts, sync_dts, sync_order, sync_frame : array of int64
        Of each packet at which decoding can start, ascending: its pts, its dts (pts where unknown), its
        number in the file, and the first frame it can show. Entry 0 stands for the beginning of the file.
    reorder_depth : int
        How many packets before a frame's own, at most, hold frames that are shown after it.
    counted : bool
        True if frames carry no usable pts: then a frame is known only by its number from the file's start.
    exact : bool
        False if pts were computed from the header (seek_mode="approximate").
    damage : str or None
        Why reading the file ended before its end, if it did.
    """

    time_base: Fraction
    pts: array[int]
    end: int
    frame_packet: array[int] = field(default_factory=lambda: array("i"))
    packet_pts: array[int] = field(default_factory=lambda: array("q"))
    packet_flags: array[int] = field(default_factory=lambda: array("B"))
    packet_size: array[int] = field(default_factory=lambda: array("I"))
    packet_pictures: array[int] = field(default_factory=lambda: array("H"))
    packet_counts: array[int] = field(default_factory=lambda: array("B"))
    sync_pts: array[int] = field(default_factory=lambda: array("q", [0]))
    sync_dts: array[int] = field(default_factory=lambda: array("q", [0]))
    sync_order: array[int] = field(default_factory=lambda: array("q", [0]))
    sync_frame: array[int] = field(default_factory=lambda: array("q", [0]))
    reorder_depth: int = 0
    counted: bool = False
    exact: bool = True
    damage: str | None = None
    _by_pts: tuple[array[int], array[int]] | None = None

    def __len__(self) -> int:
        return len(self.pts)

    def seconds(self, pts: int) -> float:
        """Convert a time in units of pts to seconds, correctly rounded."""
        return pts * self.time_base.numerator / self.time_base.denominator

    def start_seconds(self, frame: int) -> float:
        """When ``frame`` appears."""
        return self.seconds(self.pts[frame])

    def duration_seconds(self, frame: int) -> float:
        """How long ``frame`` is shown: until the next one appears."""
        until = self.pts[frame + 1] if frame + 1 < len(self.pts) else self.end
        return self.seconds(until - self.pts[frame])

    def frame_played_at(self, seconds: float) -> int:
        """The last frame that appears at or before ``seconds``; 0 before the first."""
        # bisect on exact rationals would be slow; compare in the same float64 that users see as pts_seconds
        frame = bisect_right(self.pts, seconds, key=self.seconds) - 1
        return max(frame, 0)

    def played_in_range(
        self, start: float, stop: float, fps: float | None
    ) -> tuple[Sequence[int], list[float] | None]:
        """Frames shown from ``start`` to before ``stop``; with ``fps``, those of a grid and the grid's times.

        Raises
        ------
        ValueError
            If the grid has more than 2**22 times.
        """
        if fps is None:
            first = self.frame_played_at(start)
            return range(first, self.first_frame_from(stop) if start < stop else first), None
        steps = (stop - start) * fps
        if steps > _GRID_LIMIT:
            raise ValueError(f"fps: {fps} asks for {steps:.4g} frames, more than {_GRID_LIMIT}")
        # The frames must not depend on the rounding of start + i/fps.
        count = max(math.ceil(steps - _GRID_TOLERANCE), int(start < stop))
        frame_seconds = (self.seconds(self.end) - self.start_seconds(0)) / len(self)
        slack = _GRID_TOLERANCE * min(frame_seconds, 1 / fps)
        times = [start + i / fps for i in range(count)]
        return [self.frame_played_at(t + slack) for t in times], times

    def first_frame_from(self, seconds: float) -> int:
        """The first frame that appears at or after ``seconds``."""
        return bisect_left(self.pts, seconds, key=self.seconds)

    def sync_for(self, frame: int) -> int:
        """Number of the last sync point that is shown no later than ``frame``.

        By presentation time: leading pictures of an open group are decoded after its key frame but need the
        group before, and are shown before the key frame.
        """
        return max(bisect_right(self.sync_frame, frame) - 1, 0)

    def packet_number(self, pts: int | None) -> int | None:
        """Number in the file of the packet with ``pts``; None if there is none."""
        if pts is None:
            return None
        frame = bisect_left(self.pts, pts)
        if self.frame_packet and frame < len(self.pts) and self.pts[frame] == pts:
            return self.frame_packet[frame]
        if self._by_pts is None:  # packets that are not shown: seldom asked for
            order = sorted((t, i) for i, t in enumerate(self.packet_pts) if t != NO_TIME)
            self._by_pts = array("q", (t for t, _ in order)), array("q", (i for _, i in order))
        times, numbers = self._by_pts
        i = bisect_left(times, pts)
        return numbers[i] if i < len(times) and times[i] == pts else None

    def last_packet_of(self, frame: int) -> int:
        """Number of the last packet of ``frame``: a second field, or what is hidden, may follow its own."""
        number, flags = self.frame_packet[frame] + 1, self.packet_flags
        while number < len(flags) and not flags[number] & (OWN | KEY):
            number += 1
        return number - 1


def decode_all(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Frames from the current position to the end, passing over packets that do not decode."""
    import av

    decode = stream.codec_context.decode
    packets = demux(container, stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError:
            return
        if packet is None:
            return
        if is_empty(packet):
            continue
        try:
            frames = decode(packet)
        except av.FFmpegError:
            continue
        yield from frames


def is_empty(packet: Packet[VideoStream]) -> bool:
    """True for a data packet without data (so AVI repeats a frame), which a decoder takes for the end."""
    return not packet.size and packet.dts is not None


def _rate(stream: VideoStream) -> Fraction:
    return stream.average_rate or stream.guessed_rate or stream.base_rate or Fraction(25)


def build_index(
    opened: Opened, reopen: Callable[[], Opened], name: str, shared: SharedPass | None = None
) -> FrameIndex:
    """Read every packet of a stream and tabulate its frames.

    Parameters
    ----------
    opened : (InputContainer, VideoStream)
        Just opened; afterwards its position is undefined.
    reopen : callable
        Gives a fresh pair, for streams that must be decoded to be known.
    name : str
        Of the source, for messages.
    shared : SharedPass, optional
        What else to find on the way.

    Raises
    ------
    DecodeError
        If the stream holds no frame that can be decoded.
    """
    import av

    container, stream = opened
    # Read now: the stream is gone once the source is opened anew.
    number, rate, tb = stream.index, _rate(stream), stream.time_base or Fraction(1, 90000)
    formats = container.format.name.split(",")
    timed = not _TIMED.isdisjoint(formats)
    codec = stream.codec_context
    fields = codec.field_order in _FIELD_CODED
    vp8 = codec.name == "vp8"
    parser = _core.PacketParser(codec.codec.canonical_name, codec.extradata or b"")
    droppable, graph = parser.droppable, codec.codec.canonical_name == "av1"
    damage, incomplete = None, False
    pts, dts, duration = array("q"), array("q"), array("q")
    flags, sizes = array("B"), array("I")
    pictures, counts = array("H"), array("B")
    keys: list[int] = []
    hidden: set[int] = set()
    packets = demux(container, stream) if shared is None else shared.demux(container, stream)
    try:
        for packet in packets:
            size = packet.size
            if not size:
                continue
            # A discarded packet lies outside the edit list; a VP8 packet may hold a frame that is only
            # referred to.
            if packet.is_discard or (vp8 and not memoryview(packet)[0] & 0x10):
                hidden.add(len(pts))
            if graph:
                held = parser.pictures(packet.buffer_ptr, size)
                pictures.extend(held)
                counts.append(len(held))
                flag = 0 if any(picture >> 8 for picture in held) else DROPPABLE
            else:
                flag = DROPPABLE if not fields and droppable(packet.buffer_ptr, size) else 0
            if packet.is_keyframe:
                keys.append(len(pts))
                # Where a gradual refresh begins, a decoder's picture may be wrong for some time.
                if parser.intra(packet.buffer_ptr, size):
                    flag |= KEY
            time, decode_time = packet.pts, packet.dts
            pts.append(NO_TIME if time is None else time)
            dts.append(NO_TIME if decode_time is None else decode_time)
            duration.append(packet.duration or 0)
            flags.append(flag)
            sizes.append(size)
            incomplete = packet.is_corrupt
    except av.FFmpegError as error:
        damage = error.strerror
    samples = len(stream.index_entries) if "mp4" in formats else stream.frames if "avi" in formats else 0
    if damage is None and len(pts) < samples:
        damage = f"{samples - len(pts)} of {samples} samples lie beyond its end"
    if shared is not None:
        # A file that breaks off may do so sooner for one stream than for another.
        last_key = keys[-1] if keys else -1
        if not shared.finish(container, stream, pts, last_key, damage):
            return build_index(reopen(), reopen, name)
    if damage is not None and incomplete:
        hidden.add(len(pts) - 1)  # cut off in the middle, and nothing after it needs it
    if not pts:
        reason = f" ({damage})" if damage else ""
        raise DecodeError(f"{name}: stream {number} holds no video frames{reason}")

    numbers = _shown_by_packets(opened, reopen, pts, keys, hidden, timed)
    decoded: list[tuple[int | None, int]] | None = None
    if numbers is None:
        decoded = [(frame.pts, frame.duration or 0) for frame in decode_all(*reopen())]
        if not decoded:
            raise DecodeError(f"{name}: stream {number}: none of its packets decodes to a frame")
        shown = sorted({t for t, _ in decoded if t is not None})
        # with times missing or derived from the packets before, only the order of the frames can be relied on
        if len(shown) != len(decoded) or not timed:
            if len(shown) != len(decoded):
                tb, shown, decoded = 1 / rate, list(range(len(decoded))), []
            last = dict(decoded).get(shown[-1], 0)
            return FrameIndex(tb, array("q", shown), _end(shown, last, rate, tb), counted=True, damage=damage)
        last = dict(decoded)[shown[-1]]
        by_pts = {t: i for i, t in enumerate(pts)}
        numbers = [by_pts.get(t, -1) for t in shown]
    else:
        shown = [pts[i] for i in numbers]
        last = duration[numbers[-1]]

    index = FrameIndex(tb, array("q", shown), _end(shown, last, rate, tb), damage=damage)
    if -1 not in numbers:
        for i in numbers:
            flags[i] |= OWN
        index.frame_packet = array("i", numbers)
        order = numbers if len(numbers) == len(pts) else sorted(range(len(pts)), key=pts.__getitem__)
        index.reorder_depth = max(number - rank for rank, number in enumerate(order))
        index.packet_pictures, index.packet_counts = pictures, counts
    index.packet_pts, index.packet_flags, index.packet_size = pts, flags, sizes
    _set_sync_points(index, dts, keys)
    return index


def _shown_by_packets(
    opened: Opened,
    reopen: Callable[[], Opened],
    pts: array[int],
    keys: list[int],
    hidden: set[int],
    timed: bool,
) -> list[int] | None:
    """The packets whose frames appear, in the order of their pts; None if the packets do not tell."""
    container, stream = opened
    if len(set(pts)) != len(pts) or NO_TIME in pts or len(hidden) == len(pts):
        return None
    # Without reordering, the times that AVI's demuxer counts from the start are right as well.
    avi = container.format.name == "avi" and not stream.codec_context.has_b_frames
    if not timed and not avi:
        return None
    shown = sorted((i for i in range(len(pts)) if i not in hidden), key=pts.__getitem__)
    fields = stream.codec_context.field_order in _FIELD_CODED
    if fields:  # two packets may share one frame
        until = pts[shown[min(_PROBE_FRAMES, len(shown) - 1)]]
    elif not keys:  # what comes of the first packets, only the decoder knows
        return None
    elif keys[0] or min(pts) < pts[keys[0]]:
        # Packets before the first key frame, and pictures that lead it, may lack their references.
        until = pts[keys[0]]
    else:
        return shown
    head = {pts[i] for i in shown if pts[i] <= until}
    got: set[int] = set()
    first = None  # at or after the key frame: a gradual refresh may show nothing for some time
    for frame in decode_all(*reopen()):
        # Without its references a picture may come out twice.
        if frame.pts is None or frame.pts in got or (frame.pts not in head and frame.pts <= until):
            return None
        got.add(frame.pts)
        if frame.pts >= until:
            first = frame.pts
            break
    if first is None or (fields and not head <= got):
        return None
    return [i for i in shown if pts[i] >= first or pts[i] in got]


def _set_sync_points(index: FrameIndex, dts: array[int], keys: list[int]) -> None:
    pts = index.packet_pts
    index.sync_pts[0] = next(t for t in pts if t != NO_TIME)
    index.sync_dts[0] = next((t for t in dts if t != NO_TIME), index.sync_pts[0])
    for k in keys:
        if not index.packet_flags[k] & KEY:
            continue
        time, decode_time = pts[k], dts[k]
        if k == 0 or time == NO_TIME:
            continue  # entry 0 is the file's start
        frame = bisect_left(index.pts, time)
        if frame == 0 and k == keys[0]:
            index.sync_pts[0], index.sync_order[0] = time, k  # nothing before the first key frame is shown
            continue
        if frame <= index.sync_frame[-1] or frame >= len(index.pts):
            continue  # nothing is shown between two sync points: the earlier one serves
        index.sync_pts.append(time)
        index.sync_dts.append(time if decode_time == NO_TIME else decode_time)
        index.sync_order.append(k)
        index.sync_frame.append(frame)


def _end(shown: Sequence[int], last: int, rate: Fraction, tb: Fraction) -> int:
    """When the last frame ends: by its duration, else by the step before it, else by the rate."""
    step = shown[-1] - shown[-2] if len(shown) > 1 else max(1, round(1 / (rate * tb)))
    return shown[-1] + (last or step)


def approximate_index(container: InputContainer, stream: VideoStream, name: str) -> FrameIndex:
    """Index computed from the header: frames at the average rate from the stream's start.

    Raises
    ------
    DecodeError
        If the header tells neither the number of frames nor the duration.
    """
    rate, tb = _rate(stream), stream.time_base or Fraction(1, 90000)
    start = stream.start_time or 0
    count = stream.frames
    if not count:
        if stream.duration is not None:
            seconds: Fraction | None = stream.duration * tb
        else:
            seconds = None if container.duration is None else Fraction(container.duration, 1_000_000)
        if seconds is None:
            raise DecodeError(
                f"{name}: stream {stream.index}: the header gives neither the number of frames nor the"
                ' duration; use seek_mode="exact"'
            )
        count = max(1, round(seconds * rate))
    step = 1 / (rate * tb)
    pts = array("q", (start + round(i * step) for i in range(count)))
    return FrameIndex(tb, pts, start + round(count * step), exact=False)
