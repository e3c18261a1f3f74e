"""What is decoded for some frames: the plan, and that the decoder keeps to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from media import numbers_of, write_video

from mmcore import UnsupportedError, VideoDecoder
from mmcore.decoding.index import DROPPABLE, OWN
from mmcore.decoding.plan import make_pieces

GROUP = 30


def write(path: Path) -> None:
    """90 frames, three closed groups of 30, with B-frames of which every second is a reference."""
    options = {"bf": "3", "x264-params": "scenecut=0:b-adapt=0:b-pyramid=normal"}
    write_video(path, num_frames=3 * GROUP, gop=GROUP, options=options)


@pytest.fixture
def grouped(cached_media: Callable) -> Path:
    path: Path = cached_media("grouped.mp4", write)
    return path


class CountedCodec:
    """Stands in front of a codec context and counts the packets that are decoded."""

    def __init__(self, codec: Any) -> None:
        self._codec = codec
        self.packets = 0

    def decode(self, packet: Any) -> Any:
        self.packets += packet is not None and packet.size > 0
        return self._codec.decode(packet)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._codec, name)


def packets_decoded(path: Path, indices: list[int], **options: Any) -> int:
    """How many packets a fresh decoder decodes for some frames, which are checked."""
    decoder = VideoDecoder(path, num_threads=1, **options)
    reader = decoder._reader
    reader.opened()
    counted: Any = CountedCodec(reader._codec)
    reader._codec = counted
    assert numbers_of(decoder.get_frames_at(indices).data) == indices
    return int(counted.packets)


@pytest.mark.parametrize(
    "indices",
    [[0], [29], [30], [89], [5, 6, 7], [0, 45, 89], list(range(0, 90, 9)), list(range(90)), [31, 59, 60]],
)
def test_the_decoder_keeps_to_the_plan(indices: list[int], grouped: Path) -> None:
    plan = VideoDecoder(grouped).plan(indices)
    assert packets_decoded(grouped, indices) == plan.kept
    assert plan.kept + plan.dropped + plan.skipped == plan.num_packets
    assert sum(row[2] for row in plan.pieces) == plan.kept
    assert sum(row[1] for row in plan.pieces) == plan.num_frames == len(indices)


def test_plan_of_one_frame_in_the_middle(grouped: Path) -> None:
    plan = VideoDecoder(grouped).plan([GROUP])
    assert (plan.kept, plan.dropped, plan.seeks, plan.num_packets) == (1, 0, 1, GROUP + 1)
    assert plan.expected_saving > 0.5
    assert "1 frames from 1 of 31 packets" in str(plan)


def test_plan_of_everything(grouped: Path) -> None:
    plan = VideoDecoder(grouped).plan(range(90))
    assert (plan.kept, plan.dropped, plan.skipped, plan.seeks) == (90, 0, 0, 0)
    assert plan.expected_saving == 0
    assert VideoDecoder(grouped).plan([]).kept == 0


def test_plan_drops_what_nothing_needs(grouped: Path) -> None:
    decoder = VideoDecoder(grouped)
    index = decoder._index
    droppable = [i for i, flag in enumerate(index.packet_flags) if flag & DROPPABLE]
    assert len(droppable) > 25
    assert all(flag & OWN for flag in index.packet_flags)
    last = max(range(90), key=lambda i: index.frame_packet[i])
    plan = decoder.plan([0, last])
    inside = [i for i in droppable if i >= index.sync_order[index.sync_for(last)]]
    assert plan.dropped in (len(inside), len(inside) - 1)
    # duplicates and order make no difference
    assert decoder.plan([last, 0, -90]) == plan


def test_pieces_cover_the_targets(grouped: Path) -> None:
    index = VideoDecoder(grouped)._index
    generator = torch.Generator().manual_seed(1)
    for count in (1, 2, 5, 20, 60, 90):
        targets = sorted(torch.randperm(90, generator=generator)[:count].tolist())
        pieces = list(make_pieces(index, targets))
        assert [t for piece in pieces for t in piece.targets] == targets
        for piece in pieces:
            packets = [index.frame_packet[t] for t in piece.targets]
            assert piece.start <= min(packets)
            assert piece.stop >= max(packets)
            assert piece.start == index.sync_order[piece.sync]
            assert piece.wanted is None or set(packets) <= piece.wanted


def test_reading_on_decodes_nothing_twice(grouped: Path) -> None:
    decoder = VideoDecoder(grouped, num_threads=1)
    starts = 0
    start = decoder._reader._start

    def counted(sync: int) -> None:
        nonlocal starts
        starts += 1
        start(sync)

    decoder._reader._start = counted  # type: ignore[method-assign]
    for i in range(90):
        assert numbers_of(decoder.get_frames_at([i]).data) == [i]
    assert starts <= 3
    for first in range(0, 88, 8):
        decoder.get_frames_in_range(first, first + 8)
    assert starts <= 6


def test_plan_needs_the_table_of_packets(grouped: Path, cached_media: Callable) -> None:
    with pytest.raises(UnsupportedError, match="seek_mode='exact'"):
        VideoDecoder(grouped, seek_mode="approximate").plan([3])
    counted = cached_media("plan.avi", lambda p: write_video(p, "mpeg4", options={"bf": "2"}))
    with pytest.raises(UnsupportedError, match="do not tell"):
        VideoDecoder(counted).plan([3])
    with pytest.raises(IndexError, match="indices"):
        VideoDecoder(grouped).plan([90])


def write_av1(path: Path) -> None:
    """90 frames of AV1 in pyramids, groups of 45."""
    options = {"preset": "10", "svtav1-params": "hierarchical-levels=4:lp=1"}
    write_video(path, "libsvtav1", num_frames=90, gop=45, size=(96, 128), options=options)


@pytest.fixture
def pyramid(cached_media: Callable) -> Path:
    path: Path = cached_media("pyramid.mp4", write_av1)
    return path


@pytest.mark.parametrize("indices", [[0], [7], [44], [89], [3, 20, 21, 60], list(range(0, 90, 13))])
def test_av1_decodes_what_the_targets_depend_on(indices: list[int], pyramid: Path) -> None:
    decoder = VideoDecoder(pyramid)
    plan = decoder.plan(indices)
    assert packets_decoded(pyramid, indices) == plan.kept
    index = decoder._index
    assert len(index.packet_counts) == len(index.packet_pts)
    assert sum(index.packet_counts) == len(index.packet_pictures) >= len(index.packet_counts)
    droppable = sum(1 for flag in index.packet_flags if flag & DROPPABLE)
    if len(indices) > 3:
        assert plan.dropped > 0
        assert plan.kept < 90 - droppable + len(indices)


def test_av1_reads_on_after_references_were_dropped(pyramid: Path) -> None:
    expected = VideoDecoder(pyramid, num_threads=1)[:]
    decoder = VideoDecoder(pyramid, num_threads=1)
    for i in (7, 8, 9, 30, 12, 13, 44, 45, 46, 20, 80, 81):
        assert torch.equal(decoder[i], expected[i]), i
    for first in range(3, 80, 11):
        assert torch.equal(decoder[first : first + 11 : 4], expected[first : first + 11 : 4])
    for i in range(0, 90, 5):
        assert torch.equal(decoder[i], expected[i])
