"""What packets tell about each other, against FFmpeg: what may be left out never changes another frame."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from media import write_video

from mmcore._core import PacketParser, keep_av1_pictures, needed_pictures

X264 = "bframes=3:b-adapt=0:scenecut=0"
X265 = "log-level=none:bframes=4:b-adapt=0:scenecut=0"
# encoder, its options, the file's ending
CLIPS: dict[str, tuple[str, dict[str, str], str]] = {
    "h264": ("libx264", {"x264-params": X264}, "mp4"),
    "h264-ts": ("libx264", {"x264-params": f"{X264}:slices=3:aud=1:nal-hrd=vbr"}, "ts"),
    "h264-no-pyramid": ("libx264", {"x264-params": f"{X264}:b-pyramid=none:open-gop=1"}, "mkv"),
    "h264-strict-pyramid": ("libx264", {"x264-params": f"{X264}:b-pyramid=strict"}, "mp4"),
    "h264-interlaced": ("libx264", {"x264-params": f"{X264}:tff=1"}, "mp4"),
    "hevc": ("libx265", {"x265-params": X265}, "mp4"),
    "hevc-ts": ("libx265", {"x265-params": f"{X265}:repeat-headers=1:hash=1:aud=1"}, "ts"),
    "hevc-layers": ("libx265", {"x265-params": f"{X265}:temporal-layers=3:bframes=7"}, "mkv"),
    "av1": ("libsvtav1", {"preset": "10"}, "mp4"),
    "av1-low-delay": ("libsvtav1", {"preset": "10", "svtav1-params": "pred-struct=1"}, "mp4"),
    "av1-intra-refresh": (
        "libsvtav1",
        {"preset": "10", "svtav1-params": "irefresh-type=1:film-grain=20"},
        "mkv",
    ),
}
PRUNED = {"av1", "av1-intra-refresh"}  # have references that single targets do not need
NUM_FRAMES = 40


@dataclass
class Stream:
    """The packets of a file, what they tell, and the frames of a full decode by pts."""

    path: Path
    packets: list[tuple[bytes, Any, Any]]
    keys: list[int]
    pictures: array[int]
    counts: array[int]
    frames: dict[Any, bytes]

    def droppable(self) -> list[int]:
        """The packets all of whose pictures fill no slot."""
        it = iter(self.pictures)
        return [p for p, n in enumerate(self.counts) if not any([next(it) >> 8 for _ in range(n)])]


def open_decoder(path: Path) -> tuple[Any, Any]:
    container = av.open(str(path))
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    return container, stream


def pixels(frame: Any) -> bytes:
    planes = (np.frombuffer(p, np.uint8).reshape(p.height, p.line_size)[:, : p.width] for p in frame.planes)
    return b"".join(plane.tobytes() for plane in planes)


def decode(stream: Any, packets: Iterable[tuple[bytes, Any, Any]]) -> dict[Any, bytes]:
    """Decode packets from a fresh start, one thread; the frames' pixels by pts."""
    codec = stream.codec_context
    codec.flush_buffers()
    frames = []
    for content, pts, dts in packets:
        packet = av.Packet(content)
        packet.pts, packet.dts, packet.time_base = pts, dts, stream.time_base
        frames += codec.decode(packet)
    frames += codec.decode(None)
    result = {frame.pts: pixels(frame) for frame in frames}
    assert len(result) == len(frames)
    return result


def without(packet: tuple[bytes, Any, Any], count: int, keep: int) -> tuple[bytes, Any, Any]:
    content, pts, dts = packet
    if keep != (1 << count) - 1:
        source = av.Packet(content)
        content = keep_av1_pictures(source.buffer_ptr, source.buffer_size, keep)
    return content, pts, dts


@pytest.fixture(scope="module", params=list(CLIPS))
def stream(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Stream:
    encoder, options, ending = CLIPS[request.param]
    path = tmp_path_factory.mktemp(request.param) / f"clip.{ending}"
    write_video(path, encoder, NUM_FRAMES, gop=24, options=options)
    return read(path)


def read(path: Path) -> Stream:
    container, stream = open_decoder(path)
    codec = stream.codec_context
    parser = PacketParser(codec.codec.canonical_name, codec.extradata or b"")
    packets: list[tuple[bytes, Any, Any]] = []
    keys, pictures, counts = [], array("H"), array("B")
    for packet in container.demux(stream):
        if not packet.size:
            continue
        if packet.is_keyframe:
            keys.append(len(packets))
        found = parser.pictures(packet.buffer_ptr, packet.buffer_size)
        pictures.extend(found)
        counts.append(len(found))
        packets.append((bytes(packet), packet.pts, packet.dts))
    return Stream(path, packets, keys, pictures, counts, decode(stream, packets))


def test_packets_that_fill_no_slot_can_be_dropped(stream: Stream) -> None:
    droppable = stream.droppable()
    assert NUM_FRAMES // 5 < len(droppable) < NUM_FRAMES * 4 // 5
    container, opened = open_decoder(stream.path)
    rng = random.Random(0)
    for dropped in [droppable, *(rng.sample(droppable, len(droppable) * n // 4) for n in (1, 2, 3))]:
        gone = {stream.packets[i][1] for i in dropped}
        kept = [p for i, p in enumerate(stream.packets) if i not in dropped]
        assert decode(opened, kept) == {t: f for t, f in stream.frames.items() if t not in gone}
    container.close()


def test_droppable_says_the_same(stream: Stream) -> None:
    container, opened = open_decoder(stream.path)
    codec = opened.codec_context
    parser = PacketParser(codec.codec.canonical_name, codec.extradata or b"")
    packets = [packet for packet in container.demux(opened) if packet.size]
    said = [i for i, p in enumerate(packets) if parser.droppable(p.buffer_ptr, p.buffer_size)]
    assert said == stream.droppable()
    container.close()


def test_needed_pictures_are_enough(stream: Stream, request: pytest.FixtureRequest) -> None:
    container, opened = open_decoder(stream.path)
    rng = random.Random(1)
    pruned = 0
    for _ in range(12):
        first = rng.choice(stream.keys)
        # Pictures that lead an open group need the group before.
        start = stream.packets[first][1]
        possible = [i for i in range(first, len(stream.packets)) if stream.packets[i][1] >= start]
        targets = rng.sample(possible, min(rng.choice([1, 3, 6]), len(possible)))
        keep = needed_pictures(stream.pictures, stream.counts, first, targets)
        assert len(keep) == max(targets) - first + 1
        packets = [
            without(stream.packets[first + i], stream.counts[first + i], bits)
            for i, bits in enumerate(keep)
            if bits
        ]
        frames = decode(opened, packets)
        for target in targets:
            pts = stream.packets[target][1]
            assert frames.get(pts) == stream.frames[pts]
        for pts, frame in frames.items():
            assert pts < start or frame == stream.frames[pts]
        all_references = needed_pictures(stream.pictures, stream.counts, first, targets, keep_references=True)
        assert all(a & b == a for a, b in zip(keep, all_references, strict=True))
        pruned += sum(bits.bit_count() for bits in all_references) - sum(bits.bit_count() for bits in keep)
    assert pruned > 0 or request.node.callspec.params["stream"] not in PRUNED
    container.close()


def test_keep_references_lets_decoding_go_on(stream: Stream) -> None:
    container, opened = open_decoder(stream.path)
    last = stream.keys[1] - 1 if len(stream.keys) > 1 else NUM_FRAMES - 1
    middle = last // 2
    keep = needed_pictures(stream.pictures, stream.counts, 0, [middle], keep_references=True)
    packets = [without(stream.packets[i], stream.counts[i], b) for i, b in enumerate(keep) if b]
    frames = decode(opened, packets + stream.packets[middle + 1 : last + 1])
    for pts in (p[1] for p in stream.packets[middle : last + 1]):
        assert frames[pts] == stream.frames[pts]
    container.close()


@pytest.mark.parametrize("encoder", ["libvpx-vp9", "mpeg4"])
def test_of_other_formats_everything_is_needed(encoder: str, tmp_path: Path) -> None:
    options = {"deadline": "realtime"} if encoder == "libvpx-vp9" else {"bf": "2"}
    stream = read(write_video(tmp_path / "clip.mkv", encoder, 12, options=options))
    assert stream.droppable() == []
    assert needed_pictures(stream.pictures, stream.counts, 3, [7, 5]) == [1] * 5


def test_no_packet_is_understood_before_parameter_sets() -> None:
    unit = av.Packet(bytes([0, 0, 0, 1, 0x01, 0x9A, 0x00, 0x00, 0x10]))
    assert not PacketParser("h264", b"").droppable(unit.buffer_ptr, unit.buffer_size)
    assert PacketParser("h264", b"").pictures(0, 0) == [0xFFFF]


def test_needed_pictures_refuses_wrong_arguments() -> None:
    pictures, counts = array("H", [0xFF00, 0x00FF, 0x00FF]), array("B", [1, 2])
    assert needed_pictures(pictures, counts, 0, [1]) == [1, 2]
    assert needed_pictures(pictures, counts, 1, [1]) == [2]
    assert needed_pictures(pictures, counts, 0, []) == []
    with pytest.raises(IndexError, match="beyond the last packet"):
        needed_pictures(pictures, counts, 0, [2])
    with pytest.raises(IndexError, match="before first"):
        needed_pictures(pictures, counts, 1, [0])
    with pytest.raises(ValueError, match="counts: add up"):
        needed_pictures(pictures, array("B", [3, 2]), 0, [1])
    with pytest.raises(ValueError, match="pictures: expected contiguous integers of 2 bytes"):
        needed_pictures(counts, counts, 0, [1])


def test_intra_tells_gradual_refreshes(tmp_path: Path) -> None:
    """A key packet of a gradual refresh is no picture by itself; that of a group is."""
    refresh = {"x264-params": "intra-refresh=1"}
    for name, options, expected in (("intra.mp4", {}, {True}), ("gradual.mp4", refresh, {True, False})):
        path = write_video(tmp_path / name, options=options)
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            parser = PacketParser("h264", stream.codec_context.extradata)
            keys = [p for p in container.demux(stream) if p.size and p.is_keyframe]
            told = [parser.intra(p.buffer_ptr, p.buffer_size) for p in keys]
        assert set(told) == expected
        assert told[0]
