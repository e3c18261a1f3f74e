"""Groups of pictures decoded at once: the same frames, in order, in bounded memory, and stopped when told."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from media import number_of, numbers_of, write_video

import mmcore
from mmcore import VideoDecoder
from mmcore.decoding import decoder_team
from mmcore.decoding.decoder_team import DecoderTeam
from mmcore.decoding.reader import FrameReader


@pytest.fixture
def grouped(cached_media: Callable) -> Path:
    """96 frames in closed groups of 12."""
    path: Path = cached_media("team.mp4", lambda p: write_video(p, num_frames=96, options={"bf": "2"}))
    return path


@pytest.fixture(autouse=True)
def cheap_decoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small as the groups are, they are worth a decoder each."""
    monkeypatch.setattr(decoder_team, "_OPENING_SECONDS", 0.0)


@pytest.fixture
def decoders(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[int]]:
    """Threads in which frames were read, by the reader's number of threads."""
    seen: dict[str, set[int]] = {"one": set(), "many": set()}
    read = FrameReader.read

    def noted(self: FrameReader, *args: Any) -> Any:
        for found in read(self, *args):
            seen["one" if self.num_threads == 1 else "many"].add(threading.get_ident())
            yield found

    monkeypatch.setattr(FrameReader, "read", noted)
    return seen


@pytest.fixture
def threads_end() -> Iterator[None]:
    """No thread outlives the test."""
    before = set(threading.enumerate())
    yield
    gc.collect()
    left = [t for t in threading.enumerate() if t not in before and t.name.startswith("mmcore-decode")]
    assert not left


pytestmark = pytest.mark.usefixtures("threads_end")


@pytest.mark.parametrize("num_threads", [1, 2, 3, 5])
@pytest.mark.parametrize("what", ["all", "sparse", "unsorted", "range", "iterate"])
def test_same_frames(what: str, num_threads: int, grouped: Path, decoders: dict[str, set[int]]) -> None:
    decoder = VideoDecoder(grouped, num_threads=num_threads)
    assert decoder.metadata.num_frames == 96  # decodes a frame in this thread
    decoders["one"].clear()
    expected = list(range(96))
    if what == "all":
        data = decoder[:]
    elif what == "sparse":
        expected = list(range(0, 96, 11))
        data = decoder[::11]
    elif what == "unsorted":
        expected = torch.randperm(96, generator=torch.Generator().manual_seed(3))[:40].tolist() * 2
        data = decoder.get_frames_at(expected).data
    elif what == "range":
        expected = list(range(7, 93, 2))
        data = decoder.get_frames_in_range(7, 93, 2).data
    else:
        data = torch.stack(list(decoder))
    assert numbers_of(data) == expected
    assert (threading.get_ident() in decoders["one"]) == (num_threads == 1)
    assert not decoders["many"]
    assert torch.equal(data, VideoDecoder(grouped, num_threads=1).get_frames_at(expected).data)


def test_as_many_decoders_as_threads(grouped: Path, decoders: dict[str, set[int]]) -> None:
    VideoDecoder(grouped, num_threads=3)[:]
    assert 1 <= len(decoders["one"]) <= 3
    assert threading.get_ident() not in decoders["one"]


def test_one_group_is_decoded_with_frame_threads(
    grouped: Path, decoders: dict[str, set[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder_team, "_THREADED_PIXELS", 0)
    monkeypatch.setattr(decoder_team, "_FRAME_THREAD_DELAY", 0)
    monkeypatch.setattr(DecoderTeam, "_measured", lambda *args: None)
    decoder = VideoDecoder(grouped, num_threads=2)
    assert numbers_of(decoder[0:12]) == list(range(12))
    assert (len(decoders["one"]), len(decoders["many"])) == (0, 1)
    # and one that is left over, before the others
    decoders["many"].clear()
    assert numbers_of(decoder[0:36]) == list(range(36))
    assert len(decoders["many"]) == 1
    assert 1 <= len(decoders["one"]) <= 2


def test_file_objects_are_read_by_one(grouped: Path, decoders: dict[str, set[int]]) -> None:
    with open(grouped, "rb") as file:
        assert numbers_of(VideoDecoder(file, num_threads=3)[:]) == list(range(96))
    assert decoders["one"] <= {threading.get_ident()}


def test_bytes_are_read_by_several(grouped: Path, decoders: dict[str, set[int]]) -> None:
    assert numbers_of(VideoDecoder(grouped.read_bytes(), num_threads=3)[:]) == list(range(96))
    assert threading.get_ident() not in decoders["one"]


@pytest.mark.parametrize("taken", [0, 1, 20, 95])
def test_iteration_ends_in_the_middle(taken: int, grouped: Path) -> None:
    decoder = VideoDecoder(grouped, num_threads=3)
    frames = iter(decoder)
    for i in range(taken):
        assert number_of(next(frames)) == i
    frames.close()  # type: ignore[attr-defined]
    assert number_of(decoder[40]) == 40
    frames = iter(decoder)
    assert number_of(next(frames)) == 0
    del frames
    gc.collect()
    assert not [t for t in threading.enumerate() if t.name.startswith("mmcore-decode")]


def test_iteration_over_turned_frames(cached_media: Callable) -> None:
    """The crop fits the frames as they are shown, not as they are stored."""
    path = cached_media("team_turned.mp4", lambda p: write_video(p, num_frames=24, rotation=90))
    transform = mmcore.FrameTransform(crop=(128, 96), dtype=torch.uint8)
    decoder = VideoDecoder(path, num_threads=2, transform=transform)
    assert [tuple(frame.shape) for frame in decoder] == [(3, 128, 96)] * 24


def test_other_reads_while_iterating(grouped: Path) -> None:
    decoder = VideoDecoder(grouped, num_threads=2)
    for i, frame in enumerate(decoder):
        assert number_of(frame) == i
        if i % 10 == 3:
            assert number_of(decoder[95 - i]) == 95 - i
            assert decoder.metadata.width == 128
    one, other = iter(decoder), iter(decoder)
    assert [number_of(next(one)) for _ in range(30)] == list(range(30))
    assert [number_of(next(other)) for _ in range(20)] == list(range(20))
    assert number_of(next(one)) == 30


@pytest.mark.parametrize("moment", ["before", "amid", "after"])
def test_an_interrupt_while_threads_start(
    grouped: Path, monkeypatch: pytest.MonkeyPatch, threads_end: None, moment: str
) -> None:
    start, begun = threading.Thread.start, []

    def interrupted(thread: threading.Thread) -> None:
        begun.append(thread)
        if len(begun) < 2:
            return start(thread)
        if moment == "amid":  # the thread runs, but nobody waited until it did
            monkeypatch.setattr(thread._started, "wait", lambda: None)  # type: ignore[attr-defined]
        if moment != "before":
            start(thread)
        raise KeyboardInterrupt

    decoder = VideoDecoder(grouped, num_threads=3)
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        decoder.get_frames_in_range(0, 96)
    monkeypatch.setattr(threading.Thread, "start", start)
    assert len(begun) == 2
    assert numbers_of(decoder.get_frames_in_range(0, 96).data) == list(range(96))


def test_close_while_iterating(grouped: Path) -> None:
    decoder = VideoDecoder(grouped, num_threads=2)
    frames = iter(decoder)
    assert number_of(next(frames)) == 0
    decoder.close()
    with pytest.raises(ValueError, match="closed"):
        for _ in frames:
            pass
    with pytest.raises(ValueError, match="closed"):
        next(iter(decoder))


def test_few_frames_wait(grouped: Path) -> None:
    decoder = VideoDecoder(grouped, num_threads=3)
    made, taken, most = 0, 0, 0
    lock = threading.Lock()

    def work(target: int, frame: Any) -> int:
        nonlocal made, most
        with lock:
            made += 1
            most = max(most, made - taken)
        return target

    for i, (target, value) in enumerate(decoder._team.run(range(96), work, capacity=12)):
        assert target == value == i
        taken += 1
        if i % 16 == 0:
            time.sleep(0.02)  # the decoders run as far ahead as they may
    assert 96 > most >= 2
    assert most <= 12 + 2 * 3, (
        "no more may wait than the capacity, and one with each decoder and at either end"
    )


def test_the_first_error_counts(grouped: Path) -> None:
    decoder = VideoDecoder(grouped, num_threads=3)

    def work(target: int, frame: Any) -> int:
        if target in (30, 50, 80):
            raise RuntimeError(f"frame {target}")
        return target

    for _ in range(3):
        seen: list[int] = []
        with pytest.raises(RuntimeError, match="frame 30"):
            seen.extend(target for target, _ in decoder._team.run(range(96), work))
        assert seen == list(range(30))
    assert numbers_of(decoder[28:33]) == list(range(28, 33))


def test_errors_of_the_conversion(grouped: Path) -> None:
    decoder = VideoDecoder(grouped, num_threads=3, transform=mmcore.FrameTransform(crop=97))
    with pytest.raises(ValueError, match="crop: 97"):
        decoder[:]


def test_memory_is_returned(grouped: Path) -> None:
    decoder = VideoDecoder(grouped, num_threads=3)
    for _ in range(3):
        decoder[:]
        next(iter(decoder))
    assert len(decoder._team._idle) <= 4


def test_costs_are_measured(grouped: Path) -> None:
    decoder = VideoDecoder(grouped, num_threads=2)
    team = decoder._team
    before = team._seconds
    decoder[:]
    assert team._seconds != before
    team._seconds = 0.001
    team._measured(packets=100, threads=1, seconds=0.3)
    assert team._seconds == pytest.approx(0.002)
    team._frame_thread_loss = 1.0
    team._measured(packets=1000, threads=2, seconds=1.5)  # of 1.0 at best
    assert team._frame_thread_loss == pytest.approx(1.25, rel=0.01)
    team._measured(packets=1, threads=1, seconds=99)
    assert team._seconds == pytest.approx(0.002)


def test_jobs_are_worth_a_decoder(cached_media: Callable) -> None:
    path = cached_media("team_intra.mp4", lambda p: write_video(p, gop=1))
    index = VideoDecoder(path)._index
    for targets in (range(40), range(0, 40, 3), [1, 5, 6, 30]):
        jobs = list(decoder_team._make_jobs(index, targets))
        assert [t for job in jobs for t in job.targets] == list(targets)
        assert all(job.packets >= decoder_team._JOB_PACKETS for job in jobs[:-1])
        assert sum(job.packets for job in jobs) == len(targets)
    assert numbers_of(VideoDecoder(path, num_threads=2)[:]) == list(range(40))


def test_makespan() -> None:
    assert decoder_team._makespan([1, 1, 1, 1], 2) == 2
    assert decoder_team._makespan([1, 1, 1], 2) == 2
    assert decoder_team._makespan([3, 1, 1, 1], 2) == 3
    assert decoder_team._makespan([], 2) == 0


def test_team_is_safe_in_a_forked_child(grouped: Path) -> None:
    program = (
        "import os, sys, mmcore\n"
        "decoder = mmcore.VideoDecoder(sys.argv[1], num_threads=2)\n"
        "frames = iter(decoder); next(frames)\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    ok = decoder[:].shape[0] == 96 and len(list(decoder)) == 96\n"
        "    os._exit(0 if ok else 1)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "assert len(list(frames)) == 95\n"
    )
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    subprocess.run([sys.executable, "-W", "ignore", "-c", program, str(grouped)], check=True, timeout=120)


def test_exit_while_iterating(grouped: Path) -> None:
    program = (
        "import sys, mmcore\n"
        "import mmcore.decoding.decoder_team as t; t._OPENING_SECONDS = 0\n"
        "frames = iter(mmcore.VideoDecoder(sys.argv[1], num_threads=2)); next(frames)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(grouped)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_team_without_a_reader_of_its_own(grouped: Path) -> None:
    reader = FrameReader(VideoDecoder(grouped)._reader.source, None, 1, True)
    team = DecoderTeam(reader, 2)
    assert [t for t, _ in team.run([3, 50, 90], lambda t, f: None)] == [3, 50, 90]
    assert list(team.run([], lambda t, f: None)) == []
    team.close()
