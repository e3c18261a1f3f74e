"""From the frames that are wanted to the packets that must be decoded for them.

Frames are grouped by the key frame that decoding starts at. Of each group, packets after the last one that a
target needs are not read, and those that no other packet depends on are dropped unless their own frame is
wanted. AV1's headers tell which pictures each one may refer to: there, everything is dropped that no target
depends on, even pictures that share a packet with what is needed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from mmcore import _core

from .index import DROPPABLE, FrameIndex

__all__ = ["NO_END", "SEEK_COST", "DecodePlan", "Piece", "make_pieces", "summarize"]

# A seek costs about as much as decoding this many frames: skipping fewer is cheaper by decoding on.
SEEK_COST = 3
NO_END = 1 << 62
# What decoding a packet takes whatever its size, per pixel, as a number of its bytes: fitted to the times of
# single packets of the benchmarks' clips, encoded at defaults.
_BYTES_PER_PIXEL = {"h264": 0.035, "hevc": 0.012, "av1": 0.004, "vp9": 0.013}
_BYTES_PER_PIXEL_OF_OTHERS = 0.02


@dataclass(slots=True, eq=False)
class Piece:
    """Frames that are decoded from one key frame on.

    Attributes
    ----------
    sync : int
        Number of the sync point in the index.
    start, stop : int
        Numbers of the first packet to decode and of the last one that a target needs.
    targets : sequence of int
        Frame numbers, strictly ascending, none shown before the sync point.
    wanted : set of int or None
        Numbers of the packets that hold the targets; None if none may be dropped.
    """

    sync: int
    start: int
    stop: int
    targets: Sequence[int]
    wanted: set[int] | None

    def masks(self, index: FrameIndex, keep_references: bool = False) -> Sequence[int] | None:
        """Which pictures of packets ``start``, ``start`` + 1, ... are decoded: a bit for each, 0 for none.

        Packets beyond are decoded whole; None if all are.

        Parameters
        ----------
        index : FrameIndex
        keep_references : bool
            Keep what other pictures need, though no target does.
        """
        wanted = self.wanted
        if wanted is None:
            return None
        if index.packet_counts:
            return _core.needed_pictures(
                index.packet_pictures, index.packet_counts, self.start, list(wanted), keep_references
            )
        flags = index.packet_flags[self.start : self.stop + 1]
        return [not flag & DROPPABLE or number in wanted for number, flag in enumerate(flags, self.start)]

    def cost(self, index: FrameIndex) -> float:
        """How many packets are decoded, of some perhaps a part."""
        masks = self.masks(index)
        total = min(self.stop + 1, len(index.packet_flags)) - self.start
        if masks is None:
            return total
        return total - len(masks) + sum(_part(index, self.start + i, mask) for i, mask in enumerate(masks))


def _part(index: FrameIndex, number: int, mask: int) -> float:
    """Which part of a packet is decoded."""
    count = index.packet_counts[number] if index.packet_counts else 1
    return mask.bit_count() / count


def make_pieces(index: FrameIndex, targets: Sequence[int]) -> Iterator[Piece]:
    """Group ``targets``, strictly ascending frame numbers, by the key frame that each is decoded from."""
    done = 0
    while done < len(targets):
        sync = index.sync_for(targets[done])
        if sync + 1 < len(index.sync_frame):
            end = bisect_left(targets, index.sync_frame[sync + 1], done)
        else:
            end = len(targets)
        group = targets[done:end]
        start = index.sync_order[sync]
        packets = index.frame_packet
        if not packets:  # which packet holds which frame is not known
            yield Piece(sync, start, NO_END, group, None)
        elif group[-1] - group[0] + 1 == len(group):
            last = max(range(group[0], group[-1] + 1), key=packets.__getitem__)
            dense = group[0] == index.sync_frame[sync]
            wanted = None if dense else set(packets[group[0] : group[-1] + 1])
            yield Piece(sync, start, index.last_packet_of(last), group, wanted)
        else:
            last = max(group, key=packets.__getitem__)
            yield Piece(sync, start, index.last_packet_of(last), group, {packets[t] for t in group})
        done = end


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """What reading some frames takes, beside decoding everything from the file's start to the last of them.

    Attributes
    ----------
    num_frames : int
        Different frames that are asked for.
    num_packets : int
        Packets from the file's start to the last one that is needed: what decoding to the last frame takes.
    kept : int
        Packets that are decoded.
    dropped : int
        Packets that are read but not decoded, for no wanted frame needs them.
    skipped : int
        Packets that are passed over: before a key frame, or after the last one that its group's frames need.
    seeks : int
        How often decoding begins at a key frame other than the first.
    pieces : tuple of (int, int, int, int)
        For each run of packets: the first frame that it could show, its number of wanted frames, packets
        decoded, packets dropped.
    expected_saving : float
        Share of the decoding time that is expected to be saved, from the packets' numbers and sizes: 0 where
        all must be decoded.
    """

    num_frames: int
    num_packets: int
    kept: int
    dropped: int
    skipped: int
    seeks: int
    pieces: tuple[tuple[int, int, int, int], ...]
    expected_saving: float

    def __str__(self) -> str:
        return (
            f"{self.num_frames} frames from {self.kept} of {self.num_packets} packets:"
            f" {self.dropped} dropped, {self.skipped} skipped, {self.seeks} seeks;"
            f" saves {self.expected_saving:.0%} of the decoding"
        )


def summarize(index: FrameIndex, targets: Sequence[int], codec_name: str, pixels: int) -> DecodePlan:
    """Describe what reading ``targets``, strictly ascending, takes from a decoder at the file's start."""
    if not targets:
        return DecodePlan(0, 0, 0, 0, 0, 0, (), 0.0)
    sizes, flags = index.packet_size, index.packet_flags
    overhead = pixels * _BYTES_PER_PIXEL.get(codec_name, _BYTES_PER_PIXEL_OF_OTHERS)
    position, kept, dropped, seeks, cost = 0, 0, 0, 0, 0.0
    rows = []
    last = 0
    for piece in make_pieces(index, targets):
        stop = min(piece.stop, len(flags) - 1)
        if piece.start > position + SEEK_COST or (piece.start and not position):
            seeks += 1
            begin = piece.start
        else:
            begin = position
        decoded = 0
        masks = piece.masks(index) or ()
        for number in range(begin, stop + 1):
            i = number - piece.start
            part = _part(index, number, masks[i]) if 0 <= i < len(masks) else 1
            decoded += part > 0
            cost += (sizes[number] + overhead) * part
        left = max(0, stop + 1 - begin - decoded)
        rows.append((index.sync_frame[piece.sync], len(piece.targets), decoded, left))
        kept += decoded
        dropped += left
        position = max(position, stop + 1)
        last = max(last, stop)
    whole = sum(islice(sizes, last + 1)) + overhead * (last + 1)
    return DecodePlan(
        num_frames=len(targets),
        num_packets=last + 1,
        kept=kept,
        dropped=dropped,
        skipped=max(0, last + 1 - kept - dropped),
        seeks=seeks,
        pieces=tuple(rows),
        expected_saving=max(0.0, 1 - cost / whole) if kept <= last else 0.0,
    )
