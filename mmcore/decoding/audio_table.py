"""The table of an audio stream's packets: where each is, and which samples it gives.

Containers note times in units that may be coarser than a sample (a millisecond in Matroska), so samples are
counted from packet to packet instead, and times only tell where sound is missing or comes twice. How many
samples a packet gives is read from the packet where its codec lets it, without decoding.

Memory: 28 bytes per packet.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from mmcore.errors import DecodeError

if TYPE_CHECKING:
    from av.packet import Packet
    from numpy.typing import NDArray

__all__ = [
    "NOT_HEARD",
    "NO_TIME",
    "AudioTable",
    "Counter",
    "PacketNotes",
    "SampleClock",
    "end_trim",
    "is_counted",
    "samples_counter",
    "skipped",
]

NO_TIME = -(1 << 63)
# Times that stray less than this are rounding, or jitter of a live recording: the sound goes on. The shortest
# packet that may be missing, of Opus aside, lasts twice as long.
_TOLERANCE_SECONDS = 0.005
# More silence than this between two packets is a damaged time.
_LONGEST_GAP_SECONDS = 3600
# What is skipped, at start and end, of a packet that is not heard.
NOT_HEARD = 1 << 30, 0

Counter: TypeAlias = "Callable[[Packet[Any]], int]"

# Codecs of which every packet gives as many samples as the first.
_CONSTANT = frozenset(
    {
        "aac",
        "aac_latm",
        "ac3",
        "adpcm_ima_wav",
        "adpcm_ms",
        "amr_nb",
        "amr_wb",
        "dts",
        "eac3",
        "mp1",
        "mp2",
        "mp3",
    }
)
_IN_CONTENT = frozenset({"flac", "opus"})
_OPUS_FRAMES = (*(480, 960, 1920, 2880) * 3, *(480, 960) * 2, *(120, 240, 480, 960) * 4)
_FLAC_SIZES = {1: 192, **{n: 144 << n for n in range(2, 6)}, **{n: 1 << n for n in range(8, 16)}}


def samples_counter(codec: str, first_count: int, sample_bytes: int) -> Counter | None:
    """How to tell the samples that a packet gives untrimmed from the packet; None if only decoding tells.

    Parameters
    ----------
    codec : str
        FFmpeg's canonical name.
    first_count : int
        Untrimmed samples of the first packet that gave any.
    sample_bytes : int
        Of one sample of all channels, for PCM.
    """
    if codec in _CONSTANT:
        return lambda packet: first_count
    if codec == "opus":
        return _opus_count
    if codec == "flac":
        return _flac_count
    if codec.startswith("pcm_") and sample_bytes:
        return lambda packet: packet.size // sample_bytes
    return None


def is_counted(codec: str) -> bool:
    """Whether :func:`samples_counter` knows the codec."""
    return codec in _CONSTANT or codec in _IN_CONTENT or codec.startswith("pcm_")


def _opus_count(packet: Packet[Any]) -> int:
    """By RFC 6716, section 3.1; multistream packets begin with their first stream's."""
    content = memoryview(packet)
    kind = content[0] & 3
    frames = (1, 2, 2)[kind] if kind < 3 else content[1] & 63 if len(content) > 1 else 0
    return _OPUS_FRAMES[content[0] >> 3] * frames


def _flac_count(packet: Packet[Any]) -> int:
    """By RFC 9639, section 9.1."""
    content = memoryview(packet)[:16]
    if len(content) < 10 or content[0] != 0xFF:
        return 0
    code = content[2] >> 4
    if code not in (6, 7):
        return _FLAC_SIZES.get(code, 0)
    lead = content[4]  # of the number in UTF-8's manner
    at = 5 if lead < 0x80 else 4 + (8 - (lead ^ 0xFF).bit_length())
    return int.from_bytes(content[at : at + code - 5], "big") + 1


def end_trim(packet: Packet[Any], rate: int, is_mp4: bool) -> int | None:
    """How many samples the last packet of a stream holds, where FFmpeg does not cut it; None for all."""
    # MP4 has no other mark of the encoder's padding than a last packet that is shorter than its frame.
    if not is_mp4 or not packet.duration or packet.time_base is None:
        return None
    return round(packet.duration * packet.time_base * rate)


def skipped(packet: Packet[Any]) -> tuple[int, int]:
    """Samples that the decoder leaves out at the packet's start and end."""
    if packet.is_discard:
        return NOT_HEARD
    for side in packet.iter_sidedata():  # a fourth of the time that asking for the one takes
        if side.data_type == "skip_samples":
            content = bytes(side)
            return struct.unpack_from("<II", content) if len(content) >= 8 else (0, 0)
    return 0, 0


class SampleClock:
    """Places packets' samples one after the other, in samples since the stream's first.

    Parameters
    ----------
    rate : int
        Samples per second.
    time_base : Fraction
        Seconds per unit of pts.
    first_pts : int
        When sample 0 is heard.
    name : str
        Of the stream, for messages.
    """

    def __init__(self, rate: int, time_base: Fraction, first_pts: int, name: str) -> None:
        self.next = 0
        self._first = first_pts
        self._scale, self._unit = time_base.numerator * rate, time_base.denominator
        self._tolerance = round((_TOLERANCE_SECONDS + time_base) * rate)
        self._longest = _LONGEST_GAP_SECONDS * rate
        self._rate, self._name = rate, name

    def place(self, pts: int, count: int) -> tuple[int, int]:
        """Where a packet's samples go, and how many of its first ones come too late and are dropped.

        Raises
        ------
        DecodeError
            If the times leave more than an hour without sound.
        """
        dropped = 0
        if pts != NO_TIME and count:
            off = (2 * (pts - self._first) * self._scale + self._unit) // (2 * self._unit) - self.next
            if off > self._tolerance:
                if off > self._longest:
                    raise DecodeError(
                        f"{self._name}: the times of its packets leap by {off / self._rate:.6g} s"
                        f" after {self.next / self._rate:.6g} s of sound"
                    )
                self.next += off
            elif off < -self._tolerance:
                dropped = min(-off, count)
        start = self.next
        self.next += count - dropped
        return start, dropped

    def place_all(
        self, pts: NDArray[np.int64], counts: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """As :meth:`place` for one packet after the other: where they go, and how many samples each keeps."""
        ends = self.next + np.cumsum(counts)
        starts = ends - counts
        placed = (pts != NO_TIME) & (counts > 0)
        far = np.abs(pts[placed].astype(np.float64) - self._first).max(initial=0)
        if far < (1 << 60) // max(self._scale, self._unit):  # else it would not fit an int64
            since = np.where(placed, pts - self._first, 0)
            off = (2 * since * self._scale + self._unit) // (2 * self._unit) - starts
            if np.abs(off[placed]).max(initial=0) <= self._tolerance:
                self.next = int(ends[-1]) if len(ends) else self.next
                return starts, counts
        found = [self.place(time, count) for time, count in zip(pts.tolist(), counts.tolist(), strict=True)]
        placing = np.array(found, np.int64).reshape(-1, 2)
        return placing[:, 0], counts - placing[:, 1]


class PacketNotes:
    """What is noted of a stream's packets in one pass over the file, from which its table is made.

    Parameters
    ----------
    codec : str
        FFmpeg's canonical name.
    """

    def __init__(self, codec: str) -> None:
        self.pts, self.position, self.size = array("q"), array("q"), array("i")
        self.trims: dict[int, tuple[int, int]] = {}
        """By packet number, as :func:`skipped` gives them."""
        self.last: Packet[Any] | None = None
        self._in_content: array[int] = array("i")
        self._counter = samples_counter(codec, 0, 0) if codec in _IN_CONTENT else None

    def __len__(self) -> int:
        return len(self.pts)

    def note(self, packet: Packet[Any]) -> None:
        """Note the next packet, which has content."""
        pts, position = packet.pts, packet.pos
        ahead, behind = skipped(packet)
        if ahead or behind:
            self.trims[len(self.pts)] = ahead, behind
        if self._counter is not None:
            self._in_content.append(self._counter(packet))
        self.pts.append(NO_TIME if pts is None else pts)
        self.position.append(-1 if position is None else position)
        self.size.append(packet.size)
        self.last = packet

    def check(self, first: int, packets: Sequence[Packet[Any] | None]) -> bool:
        """Whether packets ``first`` and on are these; what is skipped of them is noted."""
        for number, packet in enumerate(packets, first):
            if packet is None or not 0 <= number < len(self) or packet.pts != self.pts[number]:
                return False
            if packet.pos != self.position[number] or packet.size != self.size[number]:
                return False
            skip = skipped(packet)
            if (skip == NOT_HEARD) != (self.trims.get(number) == NOT_HEARD):
                return False
            if any(skip):
                self.trims[number] = skip
            self.last = packet
        return True

    def table(
        self,
        first_count: int,
        sample_bytes: int,
        clock: SampleClock,
        first_packet: int,
        first_pts: int,
        limit: int | None,
    ) -> AudioTable:
        """The packets' table.

        Parameters
        ----------
        first_count, sample_bytes : int
            As for :func:`samples_counter`, of whose codecs the stream's must be one; sample_bytes is 0 unless
            it is PCM.
        clock : SampleClock
            At the stream's start.
        first_packet, first_pts : int
            The packet that gives sample 0, and when that is heard.
        limit : int or None
            The most samples that the last packet gives, as :func:`end_trim` tells.

        Raises
        ------
        DecodeError
            As :meth:`SampleClock.place`.
        """
        length = len(self)
        sizes = np.array(self.size, np.int64)
        if self._counter is not None:
            counts = np.array(self._in_content, np.int64)
        else:
            counts = sizes // sample_bytes if sample_bytes else np.full(length, first_count, np.int64)
        counts[:first_packet] = 0
        number, left = first_packet, 0  # samples that are still to be skipped
        for trimmed in [*sorted(n for n in self.trims if n >= first_packet), length]:
            while left and number < trimmed:
                gone = min(left, int(counts[number]))
                counts[number] -= gone
                left, number = left - gone, number + 1
            if trimmed == length:
                break
            ahead, behind = self.trims[trimmed]
            if (ahead, behind) == NOT_HEARD:
                left = counts[trimmed] = 0
            else:
                left += ahead
                gone = min(left, int(counts[trimmed]))
                left -= gone
                counts[trimmed] = max(0, int(counts[trimmed]) - gone - behind)
            number = trimmed + 1
        if limit is not None and length > first_packet:
            counts[-1] = min(int(counts[-1]), limit)
        times = np.array(self.pts, np.int64)
        times[: first_packet + 1] = first_pts
        starts, kept = clock.place_all(times, counts)
        return AudioTable(
            self.pts,
            self.position,
            self.size,
            array("q", starts.astype(np.int64).tobytes()),
            array("i", kept.astype(np.int32).tobytes()),
            end=clock.next,
        )


@dataclass(slots=True)
class AudioTable:
    """Packets of one stream in file order.

    Attributes
    ----------
    pts, position : array of int64
        Time in the stream's units, NO_TIME for none, and place in the file in bytes, -1 if not known.
    size : array of int32
        Bytes.
    start : array of int64
        Number of the first sample that it gives, counted from the stream's first; never descending.
    count : array of int32
        Samples that it gives.
    end : int
        Samples from the first to the end of the last one, silence in between included.
    decoded : bool
        Whether ``count`` is what the decoder gave, rather than what the packets say.
    damage : str or None
        Why reading the file ended before its end, if it did.
    """

    pts: array[int] = field(default_factory=lambda: array("q"))
    position: array[int] = field(default_factory=lambda: array("q"))
    size: array[int] = field(default_factory=lambda: array("i"))
    start: array[int] = field(default_factory=lambda: array("q"))
    count: array[int] = field(default_factory=lambda: array("i"))
    end: int = 0
    decoded: bool = False
    damage: str | None = None

    def __len__(self) -> int:
        return len(self.pts)

    def append(self, packet: Packet[Any], start: int, count: int) -> None:
        """Note the next packet."""
        self.pts.append(NO_TIME if packet.pts is None else packet.pts)
        self.position.append(-1 if packet.pos is None else packet.pos)
        self.size.append(packet.size)
        self.start.append(start)
        self.count.append(count)

    def packet_of(self, sample: int) -> int:
        """The packet that gives ``sample``, or else the last one before it."""
        return max(bisect_right(self.start, sample) - 1, 0)

    def number_of(self, packet: Packet[Any]) -> int | None:
        """Which packet this is, read again after a seek; its time may be a guess then, its place is not."""
        position = packet.pos
        if position is None or position < 0:
            number = bisect_left(self.pts, NO_TIME if packet.pts is None else packet.pts)
            same = number < len(self.pts) and self.pts[number] == packet.pts
            return number if same and self.size[number] == packet.size else None
        number = bisect_left(self.position, position)
        last = bisect_right(self.position, position) - 1
        while number <= last:
            # Packets that share a place, laced or in one page, are told apart by their times.
            if self.size[number] == packet.size and (number == last or self.pts[number] == packet.pts):
                return number
            number += 1
        return None
