"""A decoder among threads, processes and others of its kind, and what it costs them in memory."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from media import number_of, write_video

from mmcore import VideoDecoder


def test_threads_take_turns(decoder: VideoDecoder) -> None:
    wrong: list[int] = []

    def read(seed: int) -> None:
        for i in torch.randperm(40, generator=torch.Generator().manual_seed(seed))[:15].tolist():
            if number_of(decoder[i]) != i:
                wrong.append(i)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_pickle(decoder: VideoDecoder, clip: Path) -> None:
    decoder[5]
    copy = pickle.loads(pickle.dumps(decoder))
    assert number_of(copy[8]) == 8
    assert number_of(decoder[6]) == 6
    assert number_of(pickle.loads(pickle.dumps(VideoDecoder(clip.read_bytes())))[8]) == 8
    with open(clip, "rb") as file, pytest.raises(TypeError, match="pickled"):
        pickle.dumps(VideoDecoder(file))


def _read_in_child(decoder: VideoDecoder, queue: Any) -> None:
    queue.put([number_of(decoder[i]) for i in (6, 30, 2)])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("num_threads", [1, 3])
def test_fork(num_threads: int, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmcore.decoding.decoder_team._THREADED_PIXELS", 0)
    decoder = VideoDecoder(clip, num_threads=num_threads)
    assert number_of(decoder[5]) == 5
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=_read_in_child, args=(decoder, queue)) for _ in range(2)]
    for child in children:
        child.start()
    assert [queue.get(timeout=60) for _ in children] == [[6, 30, 2]] * 2
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert number_of(decoder[6]) == 6


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore:This DataLoader will create")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_data_loader(start: str, decoder: VideoDecoder) -> None:
    if start not in multiprocessing.get_all_start_methods():
        pytest.skip(f"needs {start}")
    decoder[5]
    loader: Any = torch.utils.data.DataLoader(
        decoder,  # type: ignore[arg-type]
        batch_size=5,
        num_workers=2,
        multiprocessing_context=start,
    )
    assert [number_of(frame) for batch in loader for frame in batch] == list(range(40))


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
@pytest.mark.filterwarnings(  # Python drops an interrupt in a destructor or generator it closes
    r"ignore:(?s).*\bKeyboardInterrupt:pytest.PytestUnraisableExceptionWarning"
)
def test_interrupts_leave_the_decoder_usable(decoder: VideoDecoder) -> None:
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for i in range(30):
            signal.setitimer(signal.ITIMER_REAL, 0.0005 * (i + 1))
            with contextlib.suppress(KeyboardInterrupt):
                for _ in range(8):  # not for ever: an interrupt in a destructor is lost
                    decoder.get_frames_at([39 - i, i])
                signal.setitimer(signal.ITIMER_REAL, 0)
            assert number_of(decoder[i]) == i
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_decoders_in_threads(clip: Path) -> None:
    def read(seed: int) -> list[int]:
        decoder = VideoDecoder(clip, num_threads=2)
        order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))[:12].tolist()
        return [i for i in order if number_of(decoder[i]) != i]

    with ThreadPoolExecutor(8) as pool:
        assert not any(pool.map(read, range(8)))


def test_dropped_decoder_is_closed_at_once(clip: Path) -> None:
    gc.disable()  # the file must not wait for the garbage collector
    try:
        decoder = VideoDecoder(clip)
        decoder[3]
        reader = decoder._reader
        del decoder
        assert reader.container is None
    finally:
        gc.enable()


def test_frame_threads_survive_an_early_stop(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmcore.decoding.decoder_team._THREADED_PIXELS", 0)
    for _ in range(5):
        decoder = VideoDecoder(clip, num_threads=4)
        for i, frame in enumerate(decoder):
            assert number_of(frame) == i
            if i == 3:
                break
        del decoder
        gc.collect()


_CYCLES = """
import sys, mmcore
def resident():
    with open("/proc/self/statm") as file: return int(file.read().split()[1])
def cycle(count):
    for i in range(count):
        decoder = mmcore.VideoDecoder(sys.argv[1]); decoder[3]; decoder.metadata
        if i % 2: decoder.close()
    return resident()
cycle(40)
first = cycle(10)
print(cycle(200) - first)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_does_not_grow_with_the_number_of_decoders(cached_media: Callable) -> None:
    path = cached_media("sized.mp4", lambda p: write_video(p, num_frames=5, size=(240, 320)))
    run = subprocess.run(
        [sys.executable, "-c", _CYCLES, str(path)], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) * os.sysconf("SC_PAGESIZE") < 8 << 20, "one frame of each, 22 MB, may not be held"


_PEAK = """
import resource, sys, mmcore
def peak(path):
    for frame in mmcore.VideoDecoder(path): pass
    for start in range(0, 48, 16): mmcore.VideoDecoder(path).get_frames_in_range(start, start + 16)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
peak(sys.argv[1])
first = peak(sys.argv[1])
print(peak(sys.argv[2]) - first)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs getrusage")
def test_memory_does_not_grow_with_the_length(cached_media: Callable) -> None:
    paths = [
        cached_media(f"long{n}.mp4", lambda p, n=n: write_video(p, num_frames=n, size=(240, 320)))
        for n in (70, 210)
    ]
    run = subprocess.run(
        [sys.executable, "-c", _PEAK, *map(str, paths)], capture_output=True, text=True, check=True
    )
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(run.stdout) * unit < 12 << 20, "140 more frames, 32 MB as RGB, may not be held"
