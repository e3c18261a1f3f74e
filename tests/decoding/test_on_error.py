"""What becomes of frames that cannot be decoded, and of reads that take too long."""

from __future__ import annotations

import io
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from media import damage, number_of, numbers_of, write_video

import mmcore
from mmcore import DecodeError, DecodeTimeoutError, VideoDecoder

Broken = tuple[Path, list[int]]


@pytest.fixture
def broken(cached_media: Callable) -> Broken:
    """A file of five groups of 12 with damage in the third, and the frames that it loses."""
    whole = cached_media("policy.mp4", lambda p: write_video(p, num_frames=60, options={"bf": "2"}))
    path = cached_media("policy_broken.mp4", lambda p: damage(whole, p, at=0.5, length=400))
    decoder, lost = VideoDecoder(path), []
    for i in range(60):
        try:
            decoder[i]
        except DecodeError:
            lost.append(i)
    assert 0 < len(lost) <= 24
    assert lost == list(range(lost[0], lost[-1] + 1))
    return path, lost


def test_skip(broken: Broken) -> None:
    path, lost = broken
    for threads in (1, 2):
        decoder = VideoDecoder(path, on_error="skip", num_threads=threads)
        batch = decoder.get_frames_in_range(0, 60)
        assert batch.valid is not None
        assert batch.valid.tolist() == [i not in lost for i in range(60)]
        assert not batch.data[~batch.valid].any()
        good = [i for i in range(60) if i not in lost]
        assert numbers_of(batch.data[batch.valid]) == good
        assert len(batch.pts_seconds) == 60
        assert [number_of(frame) for frame in decoder] == good


def test_nearest(broken: Broken) -> None:
    path, lost = broken
    before, after = lost[0] - 1, lost[-1] + 1
    expected = [i if i not in lost else before if i - before <= after - i else after for i in range(60)]
    for threads in (1, 2):
        decoder = VideoDecoder(path, on_error="nearest", num_threads=threads)
        batch = decoder.get_frames_in_range(0, 60)
        assert numbers_of(batch.data) == expected
        assert batch.valid is not None
        assert batch.valid.tolist() == [i not in lost for i in range(60)]
        assert batch.pts_seconds.tolist() == pytest.approx([i / 25 for i in range(60)])
        # whose nearest is not asked for, repeated and out of order
        numbers = [lost[0], 3, lost[-1], lost[0]]
        assert numbers_of(decoder.get_frames_at(numbers).data) == [before, 3, after, before]
        # none of the frames asked for can be decoded: each has its own nearest
        assert numbers_of(decoder.get_frames_at(lost).data) == [expected[i] for i in lost]
        with pytest.raises(DecodeTimeoutError):
            decoder.get_frames_at(lost, timeout=0)
        frame = decoder.get_frame_at(lost[0])
        assert (number_of(frame.data), frame.valid, frame.pts_seconds) == (before, False, lost[0] / 25)
        assert decoder.get_frame_at(0).valid
        assert len(list(decoder)) == 60


def test_nothing_lost_has_no_mask(broken: Broken) -> None:
    path, lost = broken
    for policy in ("raise", "skip", "nearest"):
        assert VideoDecoder(path, on_error=policy).get_frames_in_range(0, lost[0]).valid is None


def test_raise_leaves_the_rest_readable(broken: Broken) -> None:
    path, lost = broken
    for threads in (1, 2):
        decoder = VideoDecoder(path, num_threads=threads)
        for _ in range(2):
            with pytest.raises(DecodeError, match=f"frame {lost[0]} at"):
                decoder.get_frames_in_range(0, 60)
        assert numbers_of(decoder.get_frames_at([lost[-1] + 1, 0]).data) == [lost[-1] + 1, 0]


def test_all_lost(broken: Broken) -> None:
    path, lost = broken
    batch = VideoDecoder(path, on_error="skip").get_frames_at(lost)
    assert batch.valid is not None
    assert not batch.valid.any()
    assert batch.data.shape == (len(lost), 3, 96, 128)
    assert not batch.data.any()
    transform = mmcore.FrameTransform(resize=32, crop=16, mean=0.5, std=0.5)
    out = torch.ones(1, 3, 16, 16)
    assert (
        VideoDecoder(path, on_error="skip", transform=transform).get_frames_at(lost[:1], out=out).data is out
    )
    assert not out.any()


def test_one_bad_packet_of_no_importance_costs_one_frame(cached_media: Callable, media_dir: Path) -> None:
    from mmcore.decoding.index import DROPPABLE

    whole = cached_media("policy.mp4", lambda p: write_video(p, num_frames=60, options={"bf": "2"}))
    expected = VideoDecoder(whole)
    index = expected._index
    target = next(f for f in range(15, 60) if index.packet_flags[index.frame_packet[f]] & DROPPABLE)
    entry = expected._reader.opened()[1].index_entries[index.frame_packet[target]]
    content = bytearray(whole.read_bytes())
    start = entry.pos + 6  # behind the length and the unit's type
    content[start : entry.pos + entry.size] = bytes(entry.size - 6)
    path = media_dir / "policy_one.mp4"
    path.write_bytes(content)
    decoder = VideoDecoder(path, on_error="skip")
    batch = decoder.get_frames_in_range(0, 60)
    assert batch.valid is not None
    assert (~batch.valid).nonzero().flatten().tolist() == [target]
    kept = [i for i in range(60) if i != target]
    assert torch.equal(batch.data[kept], expected[:][kept])


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_what_is_lost_does_not_depend_on_threads(codec: str, cached_media: Callable, tmp_path: Path) -> None:
    """Frame threads tell errors late; groups that are read apart end before the next one's damage."""
    options = {"bf": "2"}
    whole = cached_media(
        f"{codec}.mkv", lambda p: write_video(p, codec=codec, num_frames=60, options=options)
    )
    content, path, lost = whole.read_bytes(), tmp_path / "damaged.mkv", 0
    for seed in range(12):
        draw, damaged = random.Random(seed), bytearray(content)
        for _ in range(draw.choice((1, 3, 10))):
            damaged[draw.randrange(800, len(content) * 9 // 10)] = draw.randrange(256)
        path.write_bytes(damaged)
        batches = []
        for threads in (1, 2, 3):
            with VideoDecoder(path, on_error="skip", num_threads=threads) as decoder:
                batches.append(decoder.get_frames_in_range(0, len(decoder)))
        valid = [[True] * len(b.data) if b.valid is None else b.valid.tolist() for b in batches]
        lost += valid[0].count(False)
        for batch, good in zip(batches[1:], valid[1:], strict=True):
            assert good == valid[0], seed
            assert torch.equal(batch.data, batches[0].data), seed
    assert lost


def test_wrong_policy(clip: Path) -> None:
    with pytest.raises(ValueError, match="on_error: expected 'raise', 'skip' or 'nearest'"):
        VideoDecoder(clip, on_error="ignore")


# --- deadlines


@pytest.mark.parametrize("threads", [1, 2])
def test_timeout(threads: int, clip: Path) -> None:
    decoder = VideoDecoder(clip, num_threads=threads)
    calls: list[Callable[[], Any]] = [
        lambda: decoder.get_frame_at(5, timeout=0),
        lambda: decoder.get_frames_at([5, 30], timeout=0.0),
        lambda: decoder.get_frames_in_range(0, 40, timeout=0),
        lambda: decoder.get_frame_played_at(0.5, timeout=0),
        lambda: decoder.get_frames_played_at([0.5], timeout=0),
        lambda: decoder.get_frames_played_in_range(0.5, 1, timeout=0),
    ]
    for call in calls:
        with pytest.raises(DecodeTimeoutError, match=f"{clip}: the frames did not come within 0.0 s"):
            call()
        assert number_of(decoder[7]) == 7
    assert numbers_of(decoder.get_frames_at([5, 30], timeout=60).data) == [5, 30]
    assert issubclass(DecodeTimeoutError, DecodeError)
    assert issubclass(DecodeTimeoutError, TimeoutError)


class Slow(io.BytesIO):
    """A file whose reads take a while."""

    seconds = 0.0

    def read(self, count: int | None = -1, /) -> bytes:
        time.sleep(self.seconds)
        return super().read(count)


def test_timeout_with_a_slow_file(cached_media: Callable) -> None:
    noisy = {"qp": "1", "preset": "ultrafast", "tune": "grain"}
    content = cached_media("large.mp4", lambda p: write_video(p, size=(360, 640), options=noisy)).read_bytes()
    file = Slow(content)
    decoder = VideoDecoder(file, on_error="skip")
    file.seconds = 0.2
    with pytest.raises(DecodeTimeoutError):
        decoder.get_frames_in_range(0, 40, timeout=0.1)
    file.seconds = 0.0
    assert number_of(decoder[39]) == 39


@pytest.mark.parametrize("timeout", [-1, float("nan"), "1"])
def test_wrong_timeout(timeout: Any, decoder: VideoDecoder) -> None:
    with pytest.raises((ValueError, TypeError), match=r"^timeout: expected"):
        decoder.get_frames_at([3], timeout=timeout)


def test_close_ends_a_read_of_another_thread(cached_media: Callable) -> None:
    noisy = {"qp": "1", "preset": "ultrafast", "tune": "grain"}
    content = cached_media("large.mp4", lambda p: write_video(p, size=(360, 640), options=noisy)).read_bytes()
    file = Slow(content)
    decoder = VideoDecoder(file)
    file.seconds = 0.2
    errors: list[Exception] = []

    def read() -> None:
        try:
            decoder.get_frames_in_range(0, 40)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    time.sleep(0.3)
    decoder.close()
    thread.join(30)
    assert not thread.is_alive()
    assert len(errors) == 1
    assert isinstance(errors[0], ValueError)
    assert "closed" in str(errors[0])
