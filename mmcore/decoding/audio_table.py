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
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeAlias

from mmcore.errors import DecodeError

if TYPE_CHECKING:
    from av.packet import Packet

__all__ = ["NO_TIME", "AudioTable", "Counter", "SampleClock", "end_trim", "samples_counter", "skipped"]

NO_TIME = -(1 << 63)
# Times that stray less than this are rounding, or jitter of a live recording: the sound goes on. The shortest
# packet that may be missing, of Opus aside, lasts twice as long.
_TOLERANCE_SECONDS = 0.005
# More silence than this between two packets is a damaged time.
_LONGEST_GAP_SECONDS = 3600

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
        return 1 << 30, 0
    if not packet.has_sidedata("skip_samples"):
        return 0, 0
    content = bytes(packet.get_sidedata("skip_samples"))
    return struct.unpack_from("<II", content) if len(content) >= 8 else (0, 0)


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
