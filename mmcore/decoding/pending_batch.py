"""The frames of one call of a video decoder, on their way into their places."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from .index import FrameIndex

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

    from mmcore.ops.frame_batch_builder import FrameBatchBuilder

__all__ = ["PendingBatch", "outward"]


class PendingBatch:
    """The frames of one call; several threads may put them.

    Parameters
    ----------
    make_builder, put, empty : callable
        What the decoder does: a builder for ``(count, first frame, out)``, a frame into
        ``(builder, slot, target, frame)``, and a batch ``(out, count)`` of the right shape without any frame.
    targets : sequence of int
        Frame numbers, strictly ascending.
    slots : dict of int to list of int, or None
        Where each target goes; None for one after the other.
    count : int
        Slots of the batch.
    out : Tensor or None
        What the caller gave.
    """

    def __init__(
        self,
        make_builder: Callable[[int, VideoFrame, Tensor | None], FrameBatchBuilder],
        put: Callable[[FrameBatchBuilder, int, int, VideoFrame], None],
        empty: Callable[[Tensor | None, int], Tensor],
        targets: Sequence[int],
        slots: dict[int, list[int]] | None,
        count: int,
        out: Tensor | None,
    ) -> None:
        self._make_builder, self._put_frame, self._empty = make_builder, put, empty
        self._targets, self._slots = targets, slots
        self._count, self._out = count, out
        self._builder: FrameBatchBuilder | None = None
        self._making = threading.Lock()
        self._put: set[int] = set()
        # Frames that were not asked for, and the targets whose places they take.
        self._stand_ins: dict[int, int] = {}

    def _slots_of(self, target: int) -> list[int]:
        if self._slots is None:
            return [bisect_left(self._targets, target)]
        return self._slots[target]

    def put(self, target: int, frame: VideoFrame) -> None:
        """Convert a frame, at once, while its planes are in the cache."""
        if self._builder is None:
            with self._making:  # the first one allocates
                if self._builder is None:
                    builder = self._make_builder(self._count, frame, self._out)
                    self._fill(builder, target, frame)
                    self._builder = builder
                    return
        self._fill(self._builder, target, frame)

    def _fill(self, builder: FrameBatchBuilder, target: int, frame: VideoFrame) -> None:
        first, *others = self._slots_of(target)
        self._put_frame(builder, first, target, frame)
        for other in others:
            builder.copy(first, other)
        self._put.add(target)

    def has(self, frame: int) -> bool | None:
        """Whether a frame is in the batch: False if it was asked for and did not come, None if it was not."""
        if frame in self._put or frame in self._stand_ins:
            return True
        at = bisect_left(self._targets, frame)
        return False if at < len(self._targets) and self._targets[at] == frame else None

    def stand_in(self, target: int, number: int, frame: VideoFrame) -> None:
        """Convert frame ``number``, which was not asked for, into the slots of ``target``."""
        self.put(target, frame)
        self._put.discard(target)
        self._stand_ins[number] = target

    def copy(self, source: int, target: int) -> None:
        """Repeat a frame that is in the batch in the slots of a target."""
        assert self._builder is not None
        first = self._slots_of(self._stand_ins.get(source, source))[0]
        for slot in self._slots_of(target):
            self._builder.copy(first, slot)

    def clear(self, targets: Collection[int]) -> None:
        """Make the slots of some targets 0."""
        if self._builder is not None:
            for target in targets:
                for slot in self._slots_of(target):
                    self._builder.clear(slot)

    def finish(self) -> Tensor:
        """The whole batch; 0 if nothing was put."""
        if self._builder is None:
            return self._empty(self._out, self._count).zero_()
        return self._builder.finish()


def outward(index: FrameIndex, target: int) -> Iterator[int]:
    """The other frames of a stream by their distance in time from one of them; the earlier of two first."""
    before, after = target - 1, target + 1
    while before >= 0 or after < len(index):
        if after >= len(index) or (
            before >= 0 and index.pts[target] - index.pts[before] <= index.pts[after] - index.pts[target]
        ):
            yield before
            before -= 1
        else:
            yield after
            after += 1
