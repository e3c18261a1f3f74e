"""A decoder's way through a file: its packets, and which of them the pieces of a read need."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from .index import FrameIndex
from .plan import NO_END, SEEK_COST, Piece

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.stream import VideoStream

__all__ = ["PacketStream", "Route"]


class Route:
    """The pieces of one read: the decoder may be ahead of the one whose frames are waited for.

    Parameters
    ----------
    pieces : iterator of Piece
        Without any, all packets are decoded.
    reads_on : bool
        Whether packets after the last piece are decoded, for the reads that follow.
    index : FrameIndex, optional
        What the pieces were made from.
    """

    def __init__(self, pieces: Iterator[Piece], reads_on: bool, index: FrameIndex | None = None) -> None:
        self._pieces = pieces
        self._reads_on = reads_on
        self._index = index
        self._here: Piece | None = None  # whose packets are decoded
        self._masks: Sequence[int] | None = None  # and which of them
        self._next: Piece | None = next(pieces, None)
        self._passed: deque[Piece] = deque()  # and not yet waited for

    def __iter__(self) -> Iterator[Piece]:
        while True:
            if not self._passed and not self._advance():
                return
            yield self._passed.popleft()

    def _advance(self) -> bool:
        if self._next is None:
            return False
        self._here, self._next = self._next, next(self._pieces, None)
        self._passed.append(self._here)
        assert self._index is not None
        self._masks = self._here.masks(self._index, self.keeps_references)
        return True

    def leads_to(self, number: int) -> bool:
        """Whether packet ``number``, or one after it without a seek, is on the way."""
        while self._here is not None and number > self._here.stop:
            if self._next is None:
                return self._reads_on
            if self._next.start > self._here.stop + SEEK_COST:
                return False
            self._advance()
        return True

    @property
    def keeps_references(self) -> bool:
        """Whether frames of the piece at hand that are no targets may be asked for by the next read."""
        return self._reads_on and self._next is None

    def mask(self, number: int) -> int:
        """Which pictures of packet ``number`` to decode: a bit for each; -1 for all."""
        piece, masks, index = self._here, self._masks, self._index
        if piece is None or masks is None or index is None or not 0 <= number - piece.start < len(masks):
            return -1
        # A frame after the last target is kept for the reads that follow.
        if self.keeps_references and index.packet_pts[number] >= index.pts[piece.targets[-1]]:
            return -1
        return masks[number - piece.start]

    def end_of_piece(self) -> int:
        """The pts of the first frame that needs nothing of the piece at hand."""
        assert self._here is not None
        assert self._index is not None
        following, frames = self._here.sync + 1, self._index.sync_frame
        return self._index.pts[frames[following]] if following < len(frames) else NO_END


class PacketStream:
    """A file's packets, of which the last may be put back."""

    def __init__(self, packets: Iterator[Packet[VideoStream]]) -> None:
        self._packets = packets
        self._first: Packet[VideoStream] | None = None

    def __iter__(self) -> PacketStream:
        return self

    def __next__(self) -> Packet[VideoStream]:
        if self._first is not None:
            packet, self._first = self._first, None
            return packet
        return next(self._packets)

    def push_back(self, packet: Packet[VideoStream]) -> None:
        self._first = packet
