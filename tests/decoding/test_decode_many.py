"""Decoding many files: order, memory, errors file by file, and that nothing outlives the iterator."""

from __future__ import annotations

import gc
import importlib
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from media import damage, numbers_of

import mmcore
from mmcore import DecodeError, UnsupportedError, VideoDecoder
from mmcore.decoding.many_files import DecodedFile, decode_many
from mmcore.samplers import random_clips, uniform

module = importlib.import_module("mmcore.decoding.many_files")


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    wait_for(lambda: not pool_threads())


@pytest.fixture
def thread_budget() -> Iterator[None]:
    before = mmcore.threads._budget
    yield
    mmcore.threads._budget = before


def pool_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "mmcore-decode-many"]


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("does not come true")


@pytest.fixture
def folder(tmp_path: Path, clip: Path) -> Path:
    """Three copies of the clip among other files."""
    for name in ("b.mp4", "a.MP4", "sub/deep/c.mkv", "notes.txt", ".hidden.mp4", "sub/list.m3u8"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, tmp_path / name)
    return tmp_path


class Watched(VideoDecoder):
    """A decoder that notes what is done with it."""

    options: list[dict[str, Any]]
    alive: weakref.WeakSet[torch.Tensor]
    counts: list[int]
    before_reading: list[Callable[[Watched], None]]

    def __init__(self, source: Any, **options: Any) -> None:
        self.options.append(options)
        self.source = source
        super().__init__(source, **options)

    def get_frames_at(self, *args: Any, **kwargs: Any) -> Any:
        for call in self.before_reading:
            call(self)
        batch = super().get_frames_at(*args, **kwargs)
        self.alive.add(batch.data)
        self.counts.append(len(self.alive))
        return batch


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> type[Watched]:
    monkeypatch.setattr(Watched, "options", [], raising=False)
    monkeypatch.setattr(Watched, "alive", weakref.WeakSet(), raising=False)
    monkeypatch.setattr(Watched, "counts", [], raising=False)
    monkeypatch.setattr(Watched, "before_reading", [], raising=False)
    monkeypatch.setattr(module, "VideoDecoder", Watched)
    return Watched


# --- what comes


def test_every_frame_of_every_file_in_order(folder: Path) -> None:
    results = list(decode_many(folder))
    names = [str(folder / name) for name in ("a.MP4", "b.mp4", "sub/deep/c.mkv")]
    assert [r.source for r in results] == names
    assert [r.index for r in results] == [0, 1, 2]
    for result in results:
        assert result.error is None
        assert result.batch is not None
        assert list(result.frames) == numbers_of(result.batch.data) == list(range(40))


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_order_however_long_each_takes(workers: int, clip: Path) -> None:
    def sampler(decoder: VideoDecoder) -> list[int]:
        order.append(len(order))
        time.sleep(0.02 * (len(order) % 3))
        return [len(order)]

    order: list[int] = []
    results = list(decode_many([clip] * 12, sampler=sampler, workers=workers))
    assert [r.index for r in results] == list(range(12))
    for r in results:
        assert r.batch is not None
        assert numbers_of(r.batch.data) == r.frames


def test_sources_and_samplers(folder: Path, clip: Path) -> None:
    def frames(sources: Any, sampler: Any = None) -> list[list[int]]:
        found = []
        for r in decode_many(sources, sampler=sampler or uniform(2)):
            assert r.batch is not None
            assert numbers_of(r.batch.data) == list(r.frames)
            found.append(list(r.frames))
        return found

    assert frames(str(folder / "*.*4")) == [[0, 39]] * 2
    assert frames(str(folder / "**" / "*.mkv")) == [[0, 39]]
    assert frames(folder / "sub") == [[0, 39]]
    assert frames(clip) == [[0, 39]]
    assert frames([clip.read_bytes(), torch.frombuffer(bytearray(clip.read_bytes()), dtype=torch.uint8)])
    with open(clip, "rb") as file:
        assert frames([file]) == [[0, 39]]
    assert frames([]) == []
    assert frames([clip], lambda decoder: torch.tensor([3, 1])) == [[3, 1]]
    sampler = random_clips(1, 2, seed=3)
    assert frames([clip, clip], sampler) == [sampler(VideoDecoder(clip), key=key) for key in (0, 1)]


def test_options_reach_the_decoder(clip: Path, tmp_path: Path) -> None:
    transform = mmcore.FrameTransform(resize=(24, 32))
    (result,) = decode_many(clip, sampler=uniform(3), transform=transform)
    assert result.batch is not None
    assert result.batch.data.shape == (3, 3, 24, 32)
    broken = damage(clip, tmp_path / "broken.mp4", 0.4, 400)
    (result,) = decode_many([broken], on_error="skip")
    assert result.batch is not None
    assert result.batch.valid is not None
    assert 0 < result.batch.valid.sum() < 40


@pytest.mark.usefixtures("thread_budget")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [({}, 1), ({"workers": 2}, 3), ({"workers": 4}, 1), ({"workers": 9}, 1), ({"num_threads": 5}, 5)],
)
def test_decoders_share_the_thread_budget(
    arguments: dict[str, int], expected: int, watched: type[Watched], clip: Path
) -> None:
    mmcore.set_num_threads(6)
    for _ in decode_many((clip for _ in range(3)), sampler=uniform(1), **arguments):  # type: ignore[arg-type]
        pass
    assert {options["num_threads"] for options in watched.options} == {expected}
    watched.options.clear()
    list(decode_many([clip] * 3, sampler=uniform(1)))  # as many workers as files
    assert {options["num_threads"] for options in watched.options} == {2}


# --- memory


@pytest.mark.parametrize(("workers", "prefetch"), [(1, 1), (2, 1), (2, 3), (3, 2)])
def test_no_more_results_exist_than_promised(
    workers: int, prefetch: int, watched: type[Watched], clip: Path
) -> None:
    limit = workers + prefetch
    asked = 0

    def sources() -> Iterator[Path]:
        nonlocal asked
        for _ in range(3 * limit):
            asked += 1
            yield clip

    for result in decode_many(sources(), sampler=uniform(1), workers=workers, prefetch=prefetch):
        # besides this one, and room for the next one while this one is still held
        expected = min(limit - 1, 3 * limit - result.index)
        wait_for(lambda expected=expected: len(watched.alive) >= expected)  # type: ignore[misc]
        assert asked == min(result.index + limit - 1, 3 * limit)
    assert limit - 1 <= max(watched.counts) <= limit


# --- errors


def test_a_file_that_fails_ends_the_iteration_in_its_turn(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    results = decode_many([clip, clip, tmp_path / "text.mp4", clip], sampler=uniform(1))
    assert [next(results).index, next(results).index] == [0, 1]
    with pytest.raises(DecodeError, match=r"text\.mp4"):
        next(results)
    assert list(results) == []


def test_errors_in_place_of_their_files(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    sources: list[Any] = [tmp_path / "text.mp4", clip, 3, "missing.mp4", clip, b""]
    results = list(decode_many(iter(sources), sampler=uniform(1), on_file_error="return"))
    assert [r.source for r in results] == sources
    assert [type(r.error) for r in results] == [
        DecodeError, type(None), TypeError, DecodeError, type(None), DecodeError,
    ]  # fmt: skip
    assert [r.batch is None for r in results] == [True, False, True, True, False, True]
    assert "text.mp4" in results[0].error.__notes__[0]  # type: ignore[union-attr]


def test_the_samplers_errors_tell_the_file(clip: Path) -> None:
    with pytest.raises(ValueError, match=r"40 frames(.|\n)*source 0: .*clip\.mp4"):
        list(decode_many([clip], sampler=uniform(50, short="error")))
    with pytest.raises(IndexError, match=r"clip\.mp4"):
        list(decode_many([clip], sampler=lambda decoder: [40]))


def test_a_kept_error_keeps_no_decoder(watched: type[Watched], clip: Path) -> None:
    decoders: list[weakref.ref[Watched]] = []

    def fail(self: Watched) -> None:
        decoders.append(weakref.ref(self))
        raise ValueError("no")

    watched.before_reading.append(fail)
    (result,) = decode_many([clip], sampler=uniform(1), on_file_error="return")
    assert isinstance(result.error, ValueError)
    assert result.error.__traceback__ is not None
    gc.collect()
    assert [ref() for ref in decoders] == [None]


def test_sources_that_fail_end_the_iteration_after_the_files_before(clip: Path) -> None:
    def sources() -> Iterator[Path]:
        yield clip
        yield clip
        raise RuntimeError("the list ends here")

    results = decode_many(sources(), sampler=uniform(1), workers=3)
    assert [next(results).index, next(results).index] == [0, 1]
    with pytest.raises(RuntimeError, match="ends here"):
        next(results)


@pytest.mark.parametrize(
    ("error", "text", "sources", "arguments"),
    [
        (TypeError, "^sources: .*int", 3, {}),
        (TypeError, "^sources: .*bytes.*into a list", b"abc", {}),
        (TypeError, "^sources: .*Tensor.*into a list", torch.zeros(3), {}),
        (ValueError, "^sources: no file matches", "nothing/*.mp4", {}),
        (ValueError, "^workers", [], {"workers": 0}),
        (TypeError, "^workers", [], {"workers": 1.5}),
        (ValueError, "^prefetch", [], {"prefetch": 0}),
        (ValueError, "^on_file_error: .*'skip'", [], {"on_file_error": "skip"}),
        (ValueError, "^progress", [], {"progress": "yes"}),
        (TypeError, "^sampler", [], {"sampler": 8}),
        (TypeError, "^decoder_options: .*'colour'", [], {"colour": "red"}),
    ],
)
def test_wrong_arguments_fail_at_once(
    error: type[Exception], text: str, sources: Any, arguments: dict[str, Any]
) -> None:
    with pytest.raises(error, match=text):
        decode_many(sources, **arguments)


def test_a_folder_without_media_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"^sources: .*no media file.*\.mp4"):
        decode_many(tmp_path)
    with pytest.raises(DecodeError, match="no such file"):
        next(decode_many(tmp_path / "missing"))


# --- ending early


class Begun:
    """An iterator that has given its first result, while two further reads go on until they are stopped."""

    def __init__(self, watched: type[Watched], clip: Path, folder: Path) -> None:
        endless = Path(shutil.copy(clip, folder / "endless.mp4"))
        begun = threading.Semaphore(0)

        def read_on(decoder: Watched) -> None:
            if decoder.source == endless:
                begun.release()
                while True:
                    VideoDecoder.get_frames_at(decoder, [0, 20, 39])

        watched.before_reading.append(read_on)
        self.results = decode_many([clip] + [endless] * 9, sampler=uniform(1), workers=2, prefetch=4)
        assert next(self.results).index == 0
        begun.acquire()
        begun.acquire()
        assert len(pool_threads()) == 2


@pytest.fixture
def begun(watched: type[Watched], clip: Path, tmp_path: Path) -> Begun:
    return Begun(watched, clip, tmp_path)


def test_closing_ends_everything_at_once(begun: Begun) -> None:
    begun.results.close()
    assert not pool_threads()
    assert list(begun.results) == []


def test_leaving_the_loop_ends_everything(begun: Begun) -> None:
    del begun.results
    assert not pool_threads()


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals to threads")
def test_an_interrupt_while_waiting_ends_everything(begun: Begun) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            next(begun.results)
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)
    assert not pool_threads()


def test_an_error_ends_everything(watched: type[Watched], clip: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    results = decode_many([tmp_path / "text.mp4"] + [clip] * 9, sampler=uniform(1), workers=2)
    with pytest.raises(DecodeError):
        next(results)
    assert not pool_threads()


def test_the_garbage_collector_may_end_it_in_its_own_thread(
    watched: type[Watched], clip: Path, tmp_path: Path
) -> None:
    late = Path(shutil.copy(clip, tmp_path / "late.mp4"))
    dropped = threading.Event()

    def collect(decoder: Watched) -> None:
        if decoder.source == late:
            dropped.wait()
            gc.collect()

    watched.before_reading.append(collect)
    gc.disable()  # until a worker calls it
    try:
        cycle: list[Any] = [decode_many([clip] + [late] * 9, sampler=uniform(1), workers=2)]
        cycle.append(cycle)
        next(cycle[0])
        del cycle
        assert pool_threads()
        dropped.set()
        wait_for(lambda: not pool_threads())
    finally:
        gc.enable()


_EXIT = """
import sys, time
import mmcore
from mmcore.decoding.many_files import decode_many
def sampler(decoder):
    while "bytes" in repr(decoder):  # all files but the first one take for ever
        decoder.get_frames_at([0, 20, 39])
    return [0]
with open(sys.argv[1], "rb") as file:
    content = file.read()
results = decode_many([sys.argv[1]] + [content] * 1000, sampler=sampler, workers=2, prefetch=50)
print(next(results).index, flush=True)
if len(sys.argv) > 2:
    time.sleep(100)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT")
@pytest.mark.parametrize("interrupted", [False, True])
def test_the_interpreter_ends_with_an_iterator_left(interrupted: bool, clip: Path) -> None:
    arguments = [sys.executable, "-c", _EXIT, str(clip), *["wait"] * interrupted]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "0\n"
        if interrupted:
            program.send_signal(signal.SIGINT)
        try:
            _, errors = program.communicate(timeout=60)
        finally:
            program.kill()
    if interrupted:
        assert errors.strip().endswith("KeyboardInterrupt")
        assert errors.count("Traceback") == 1
    else:
        assert (program.returncode, errors) == (0, "")


def test_nothing_begins_before_the_first_result_is_asked_for(watched: type[Watched], clip: Path) -> None:
    results = decode_many([clip], sampler=uniform(1))
    assert not pool_threads()
    assert not watched.options
    del results


# --- progress


def test_progress(clip: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(**options: Any) -> str:
        for result in decode_many([clip] * 3, sampler=uniform(1), **options):
            assert isinstance(result, DecodedFile)
        out, err = capsys.readouterr()
        assert not out
        return err

    pytest.importorskip("rich")
    assert not shown()
    assert not shown(progress="auto")  # no terminal
    assert "3/3 files" in shown(progress=True)
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    with pytest.raises(UnsupportedError, match=r"^progress: .*pip install rich"):
        decode_many([clip], progress=True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert not shown(progress="auto")
