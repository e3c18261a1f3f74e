"""The datasets: samples, workers, epochs, ranks, errors, and going on where an iteration was cut."""

from __future__ import annotations

import importlib
import itertools
import json
import logging
import multiprocessing
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from media import damage, numbers_of
from torch.utils.data import DataLoader, default_collate

import mmcore
from mmcore import DecodeError, FrameBatch, VideoDecoder, threads
from mmcore.decoding.dataset import IterableVideoDataset, VideoDataset
from mmcore.samplers import at_fps, random_clips, uniform

module = importlib.import_module("mmcore.decoding.dataset")

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*fork.*:DeprecationWarning", "ignore:This DataLoader will create"
)

STARTS = [
    pytest.param(
        start,
        marks=pytest.mark.skipif(
            start not in multiprocessing.get_all_start_methods(), reason="not on this system"
        ),
    )
    for start in ("fork", "spawn")
]


@pytest.fixture
def clips(clip: Path, tmp_path: Path) -> list[Path]:
    """Seven files."""
    return [Path(shutil.copy(clip, tmp_path / f"{i}.mp4")) for i in range(7)]


@pytest.fixture
def undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples without decoding: sources are frame numbers, and those below 0 fail."""

    def read(source: int, position: int, sampler: Any, epoch: int, options: Any) -> Any:
        if source < 0:
            raise DecodeError(f"source {source}")
        zeros = torch.zeros(1, dtype=torch.float64)
        return [source + 1000 * epoch], FrameBatch(torch.zeros(1, 3, 2, 2), zeros, zeros)

    monkeypatch.setattr(module, "read_frames", read)


@pytest.fixture
def threads_as_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples without decoding, whose frame's number is the number of threads for the decoder."""

    def read(source: Any, position: int, sampler: Any, epoch: int, options: Any) -> Any:
        zeros = torch.zeros(1, dtype=torch.float64)
        return [options["num_threads"]], FrameBatch(torch.zeros(1, 3, 2, 2), zeros, zeros)

    monkeypatch.setattr(module, "read_frames", read)


@pytest.fixture
def in_worker(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """``in_worker(id, number of workers)`` makes this process look like a worker."""

    def enter(worker: int, count: int) -> None:
        info = SimpleNamespace(id=worker, num_workers=count)
        monkeypatch.setattr(module, "get_worker_info", lambda: info)

    return enter


def loader(dataset: Any, workers: int, start: str = "fork", **options: Any) -> Any:
    context = start if workers else None
    return DataLoader(dataset, num_workers=workers, multiprocessing_context=context, **options)


def indices(dataset: Any) -> list[int]:
    return [sample["index"] for sample in dataset]


# --- samples


def test_a_sample(clips: list[Path]) -> None:
    transform = mmcore.FrameTransform(resize=(48, 64), dtype=torch.uint8)
    dataset = VideoDataset(clips, uniform(3), transform, labels=list("abcdefg"))
    assert len(dataset) == 7
    sample = dataset[2]
    assert set(sample) == {
        "data", "pts_seconds", "duration_seconds", "valid", "frames", "index", "label"
    }  # fmt: skip
    expected = VideoDecoder(clips[2], transform=transform).get_frames_at([0, 20, 39])
    assert torch.equal(sample["data"], expected.data)
    assert torch.equal(sample["pts_seconds"], expected.pts_seconds)
    assert torch.equal(sample["duration_seconds"], expected.duration_seconds)
    assert (sample["frames"].tolist(), sample["valid"].tolist()) == ([0, 20, 39], [True] * 3)
    assert (sample["index"], sample["label"]) == (2, "c")
    assert dataset[-1]["index"] == 6
    with pytest.raises(IndexError, match="no source 7"):
        dataset[7]
    (streamed,) = itertools.islice(IterableVideoDataset(clips, uniform(3), transform), 2, 3)
    assert torch.equal(streamed["data"], sample["data"])
    assert "label" not in streamed


def test_samples_become_batches(clips: list[Path]) -> None:
    dataset = VideoDataset(clips, at_fps(2, min_frames=4, max_frames=4), labels=torch.arange(7))
    batch = default_collate([dataset[0], dataset[5]])
    assert batch["data"].shape == (2, 4, 3, 96, 128)
    assert batch["frames"].tolist() == [[0, 12, 25, 37]] * 2
    assert batch["label"].tolist() == batch["index"].tolist() == [0, 5]
    assert batch["pts_seconds"].dtype == torch.float64


def test_a_folder_and_postprocessing(clips: list[Path]) -> None:
    dataset = VideoDataset(clips[0].parent, uniform(2), postprocess=lambda sample: sample["frames"].tolist())
    assert dataset.sources == [str(path) for path in clips]
    assert list(dataset) == [[0, 39]] * 7
    stream = IterableVideoDataset(
        str(clips[0].parent / "*.mp4"), None, postprocess=lambda s: len(s["frames"])
    )
    assert list(stream) == [40] * 7


def test_decoder_options(clip: Path, tmp_path: Path) -> None:
    broken = damage(clip, tmp_path / "broken.mp4", 0.4, 400)
    folder = tmp_path / "indices"
    dataset = VideoDataset([clip, broken], uniform(40), index=folder, on_error="nearest")
    batch = default_collate([dataset[0], dataset[1]])
    assert batch["valid"][0].all()
    assert not batch["valid"][1].all()
    assert len(list(folder.iterdir())) == 2


# --- workers


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("kind", [VideoDataset, IterableVideoDataset])
def test_workers_give_what_this_process_gives(kind: Any, start: str, clips: list[Path]) -> None:
    """In every epoch, with workers that live on."""
    dataset = kind(clips, random_clips(1, 2, step=5, seed=3))
    count = 2 if start == "fork" else 1  # spawning takes seconds
    workers = loader(dataset, count, start, batch_size=2, persistent_workers=True)
    seen = set()
    for epoch in (4, 5):
        dataset.set_epoch(epoch)
        expected = {sample["index"]: sample for sample in dataset}
        found: dict[int, Any] = {}
        for batch in workers:
            for i, index in enumerate(batch["index"].tolist()):
                found[index] = {name: values[i] for name, values in batch.items()}
        assert sorted(found) == list(range(7))
        for index, sample in found.items():
            assert torch.equal(sample["data"], expected[index]["data"])
            assert numbers_of(sample["data"]) == sample["frames"].tolist()
            seen.add(tuple(sample["frames"].tolist()))
    assert len(seen) > 7


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.usefixtures("threads_as_frames")
def test_workers_divide_the_thread_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_budget", 7)
    dataset = VideoDataset(range(7))
    for workers, expected in ((0, 7), (1, 7), (2, 3), (3, 2)):
        assert {int(b["frames"]) for b in loader(dataset, workers, batch_size=None)} == {expected}
    dataset = VideoDataset([0], num_threads=5)
    assert {int(b["frames"]) for b in loader(dataset, 2, batch_size=None)} == {5}


@pytest.mark.usefixtures("threads_as_frames")
def test_a_budget_goes_with_the_pickle(
    in_worker: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = VideoDataset([0])
    monkeypatch.setattr(threads, "_budget", 12)
    pickled = pickle.dumps(dataset)
    monkeypatch.setattr(threads, "_budget", None)  # as in a process that was spawned
    in_worker(1, 4)
    assert pickle.loads(pickled)[0]["frames"].tolist() == [3]
    monkeypatch.setattr(threads, "_budget", 20)  # set there
    assert pickle.loads(pickled)[0]["frames"].tolist() == [5]
    monkeypatch.setattr(threads, "_budget", 2)
    assert pickle.loads(pickled)[0]["frames"].tolist() == [1]


def test_pickles_are_datasets_of_their_own(clips: list[Path]) -> None:
    for kind in (VideoDataset, IterableVideoDataset):
        dataset: Any = kind(clips, random_clips(1, 2, seed=3), labels=list(range(7)))
        dataset.set_epoch(2)
        copy = pickle.loads(pickle.dumps(dataset))
        assert copy.epoch == 2
        for ours, theirs in zip(dataset, copy, strict=True):
            assert torch.equal(ours["data"], theirs["data"])
            assert ours["label"] == theirs["label"]
        copy.set_epoch(3)
        assert dataset.epoch == 2


# --- order and division


@pytest.mark.usefixtures("undecoded")
def test_shuffling_depends_on_seed_and_epoch_alone() -> None:
    dataset = IterableVideoDataset(range(100), shuffle=True, seed=1)
    first = indices(dataset)
    assert first != list(range(100))
    assert sorted(first) == list(range(100))
    torch.manual_seed(5)
    assert indices(dataset) == first
    dataset.set_epoch(1)
    second = indices(dataset)
    assert second != first
    assert sorted(second) == list(range(100))
    assert indices(IterableVideoDataset(range(100), shuffle=True, seed=2)) not in (first, second)
    # on every machine and version
    assert indices(IterableVideoDataset(range(8), shuffle=True, seed=1)) == [6, 5, 1, 4, 3, 7, 2, 0]


@pytest.mark.usefixtures("undecoded")
@pytest.mark.parametrize("uneven", ["pad", "drop", "keep"])
@pytest.mark.parametrize("count", [1, 3, 12, 13, 14])
@pytest.mark.parametrize(("world_size", "workers"), [(1, 1), (1, 3), (3, 1), (4, 2), (2, 5)])
def test_each_source_goes_to_one_rank_and_worker(
    uneven: str, count: int, world_size: int, workers: int, in_worker: Callable[[int, int], None]
) -> None:
    ranks: list[list[int]] = []
    for rank in range(world_size):
        dataset = IterableVideoDataset(
            range(count), shuffle=True, rank=rank, world_size=world_size, uneven=uneven
        )
        ranks.append([])
        for worker in range(workers):
            in_worker(worker, workers)
            ranks[-1] += indices(dataset)
            assert len(dataset) == len(range(rank, count, world_size)) or uneven != "keep"
        assert len(dataset) == len(ranks[-1])
    lengths = {len(part) for part in ranks}
    found = sorted(itertools.chain(*ranks))
    if uneven == "keep":
        assert found == list(range(count))
        assert max(lengths) - min(lengths) <= 1
    else:
        assert len(lengths) == 1
        assert lengths == {-(-count // world_size) if uneven == "pad" else count // world_size}
        assert set(found) == set(range(count)) if uneven == "pad" else len(set(found)) == len(found)


@pytest.mark.usefixtures("undecoded")
def test_where_rank_and_world_size_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = IterableVideoDataset(range(6))
    assert indices(dataset) == [0, 1, 2, 3, 4, 5]
    monkeypatch.setenv("RANK", "2")
    assert len(dataset) == 6  # one alone says nothing
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert indices(dataset) == [2, 5]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    assert indices(dataset) == [1, 3, 5]
    assert indices(IterableVideoDataset(range(6), rank=0, world_size=6)) == [0]
    pickled = pickle.dumps(dataset)  # for a worker, which has no process group
    monkeypatch.undo()
    monkeypatch.setattr(module, "read_frames", lambda *a: ([0], FrameBatch(*[torch.zeros(1)] * 3)))
    assert indices(pickle.loads(pickled)) == [1, 3, 5]


# --- going on


@pytest.mark.usefixtures("undecoded")
@pytest.mark.parametrize("sources", [list(range(9)), [-1, 1, 2, -3, -4, 5, -6], [-1, -2]], ids=str)
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_state_gives_exactly_the_rest(sources: list[int], shuffle: bool) -> None:
    def new() -> IterableVideoDataset:
        return IterableVideoDataset(sources, shuffle=shuffle, seed=4, on_file_error=lambda *args: None)

    dataset = new()
    dataset.set_epoch(3)
    whole = [sample["frames"].item() for sample in dataset]
    for cut in range(len(whole) + 1):
        dataset = new()
        dataset.set_epoch(3)
        iterator = iter(dataset)
        assert [next(iterator)["frames"].item() for _ in range(cut)] == whole[:cut]
        state = json.loads(json.dumps(dataset.state_dict()))
        resumed = new()
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        assert resumed.epoch == 3
        iterator = iter(resumed)
        assert resumed.state_dict() == state  # before the first sample, too
        rest = [sample["frames"].item() for sample in iterator]
        assert rest == whole[cut:]
        assert [sample["frames"].item() for sample in resumed] == whole  # the next pass is whole


@pytest.mark.usefixtures("undecoded")
def test_a_state_can_be_taken_again_after_going_on() -> None:
    dataset = IterableVideoDataset(range(10))
    found = []
    for _ in range(10):
        found.append(next(iter(dataset))["index"])
        state = dataset.state_dict()
        dataset = IterableVideoDataset(range(10))
        dataset.load_state_dict(state)
    assert found == list(range(10))
    assert indices(dataset) == []


@pytest.mark.usefixtures("undecoded")
def test_a_state_belongs_to_its_part(in_worker: Callable[[int, int], None]) -> None:
    in_worker(1, 2)
    dataset = IterableVideoDataset(range(20), shuffle=True, rank=1, world_size=2)
    iterator = iter(dataset)
    first = [next(iterator)["index"] for _ in range(2)]
    state = dataset.state_dict()
    dataset = IterableVideoDataset(range(20), shuffle=True, rank=1, world_size=2)
    whole = indices(dataset)
    dataset.load_state_dict(state)
    assert whole == first + indices(dataset)
    others: dict[str, Any] = {"num_sources": 19, "shuffle": False, "seed": 1, "uneven": "drop", "rank": 0}
    for name, value in others.items():
        arguments = {"shuffle": True, "seed": 0, "uneven": "pad", "rank": 1, "num_sources": 20, name: value}
        other = IterableVideoDataset(range(arguments.pop("num_sources")), world_size=2, **arguments)
        with pytest.raises(ValueError, match=f"^state: .*{name}"):
            other.load_state_dict(state)
    in_worker(1, 3)
    with pytest.raises(ValueError, match=r"^state: .*num_workers 2, this has 3"):
        dataset.load_state_dict(state)


@pytest.mark.usefixtures("undecoded")
def test_a_pass_keeps_its_epoch() -> None:
    dataset = IterableVideoDataset(range(4))
    iterator = iter(dataset)
    next(iterator)
    dataset.set_epoch(7)
    assert [sample["frames"].item() for sample in iterator] == [1, 2, 3]
    assert [sample["frames"].item() for sample in dataset] == [7000, 7001, 7002, 7003]


_REST = """
import json, sys
from mmcore.decoding.dataset import IterableVideoDataset
from mmcore.samplers import random_clips
dataset = IterableVideoDataset(sys.argv[1], random_clips(1, 2, seed=8), shuffle=True, seed=2)
dataset.load_state_dict(json.loads(sys.argv[2]))
print([(s["index"], s["frames"].tolist()) for s in dataset])
"""


def test_going_on_in_another_process(clips: list[Path]) -> None:
    folder = str(clips[0].parent)
    dataset = IterableVideoDataset(folder, random_clips(1, 2, seed=8), shuffle=True, seed=2)
    dataset.set_epoch(9)
    iterator = iter(dataset)
    for _ in range(3):
        next(iterator)
    state = json.dumps(dataset.state_dict())
    rest = [(s["index"], s["frames"].tolist()) for s in iterator]
    run = subprocess.run(
        [sys.executable, "-c", _REST, folder, state], capture_output=True, text=True, check=True
    )
    assert run.stdout == f"{rest}\n"
    assert len(rest) == 4


@pytest.mark.usefixtures("undecoded")
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # by torch, which torchdata calls
@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (2, True)])
def test_stateful_data_loader(workers: int, persistent: bool) -> None:
    torchdata = pytest.importorskip("torchdata.stateful_dataloader")
    if workers and "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("needs fork")

    def new() -> tuple[IterableVideoDataset, Any]:
        dataset = IterableVideoDataset(range(11), shuffle=True, seed=4)
        options: dict[str, Any] = {"num_workers": workers, "persistent_workers": persistent}
        if workers:
            options["multiprocessing_context"] = "fork"
        return dataset, torchdata.StatefulDataLoader(dataset, batch_size=2, **options)

    def read(batches: Any) -> list[list[int]]:
        return [batch["frames"].flatten().tolist() for batch in batches]

    dataset, loader = new()
    dataset.set_epoch(1)
    whole = read(loader)
    dataset.set_epoch(2)
    after = read(loader)
    assert sorted(itertools.chain(*after)) == list(range(2000, 2011))
    for cut in range(len(whole) + 1) if not workers else (0, 1, 4, len(whole)):
        dataset, loader = new()
        dataset.set_epoch(1)
        iterator = iter(loader)
        assert read(itertools.islice(iterator, cut)) == whole[:cut]
        state = pickle.loads(pickle.dumps(loader.state_dict()))
        del iterator
        dataset, loader = new()
        loader.load_state_dict(state)
        assert read(loader) == whole[cut:]
        dataset.set_epoch(2)
        assert read(loader) == after


def test_the_state_of_a_map_style_dataset_is_its_epoch(clip: Path) -> None:
    dataset, other = VideoDataset([clip]), VideoDataset([clip])
    dataset.set_epoch(6)
    other.load_state_dict(dataset.state_dict())
    assert other.epoch == 6


# --- errors


@pytest.fixture
def faulty(clips: list[Path]) -> list[Path]:
    """Seven files, of which 0, 3 and 4 are no videos."""
    for i in (0, 3, 4):
        clips[i].write_text("no video")
    return clips


def test_errors_are_raised(faulty: list[Path]) -> None:
    dataset = VideoDataset(faulty, uniform(1))
    assert dataset[1]["index"] == 1
    with pytest.raises(DecodeError, match=r"3\.mp4"):
        dataset[3]
    with pytest.raises(DecodeError, match=r"0\.mp4"):
        next(iter(IterableVideoDataset(faulty, uniform(1))))
    assert dataset.num_failed == 0


def test_errors_are_passed_over(faulty: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    stream = IterableVideoDataset(faulty, uniform(1), on_file_error="skip")
    with caplog.at_level(logging.WARNING, "mmcore"):
        assert indices(stream) == [1, 2, 5, 6]
    assert [record.args[0] for record in caplog.records] == [0, 3, 4]  # type: ignore[index]
    assert "3.mp4" in caplog.text
    assert stream.num_failed == 3
    dataset = VideoDataset(faulty, uniform(1), on_file_error="skip")
    assert indices(dataset) == [1, 1, 2, 5, 5, 5, 6]
    assert dataset.num_failed == 4
    with pytest.raises(ValueError, match="all 2 failed"):
        VideoDataset(faulty[3:5], uniform(1), on_file_error="skip")[0]


def test_errors_are_handed_to_a_function(faulty: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    calls: list[Any] = []
    stream = IterableVideoDataset(faulty, uniform(1), on_file_error=lambda *call: calls.append(call))
    assert indices(stream) == [1, 2, 5, 6]
    assert [(position, source, type(error)) for position, source, error in calls] == [
        (i, faulty[i], DecodeError) for i in (0, 3, 4)
    ]
    assert not caplog.records


def test_mistakes_are_never_passed_over(clip: Path) -> None:
    def sampler(decoder: VideoDecoder) -> list[int]:
        return decoder.no_such_method()  # type: ignore[no-any-return, attr-defined]

    for kind in (VideoDataset, IterableVideoDataset):
        with pytest.raises(AttributeError):
            next(iter(kind([clip], sampler, on_file_error="skip")))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_failures_in_workers_are_counted(faulty: list[Path]) -> None:
    stream = IterableVideoDataset(faulty, uniform(1), on_file_error="skip")
    found = [int(sample["index"]) for sample in loader(stream, 2, batch_size=None)]
    assert sorted(found) == [1, 2, 5, 6]
    assert stream.num_failed == 3


@pytest.mark.parametrize("kind", [VideoDataset, IterableVideoDataset])
@pytest.mark.parametrize(
    ("error", "text", "arguments"),
    [
        (ValueError, "^sources: .*none", {"sources": []}),
        (TypeError, "^sources", {"sources": 5}),
        (ValueError, "^labels: expected 1, .*got 2", {"labels": [1, 2]}),
        (TypeError, "^sampler", {"sampler": "uniform"}),
        (TypeError, "^postprocess", {"postprocess": 5}),
        (ValueError, "^on_file_error", {"on_file_error": "ignore"}),
        (TypeError, "^decoder_options: .*'colour'", {"colour": "red"}),
    ],
)
def test_wrong_arguments(kind: Any, error: type[Exception], text: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(error, match=text):
        kind(**{"sources": ["a.mp4"], **arguments})


@pytest.mark.parametrize(
    ("error", "text", "arguments"),
    [
        (ValueError, "^rank, world_size", {"rank": 1}),
        (ValueError, "^rank: .*= 2, got 2", {"rank": 2, "world_size": 2}),
        (ValueError, "^uneven", {"uneven": "repeat"}),
        (TypeError, "^seed", {"seed": None}),
    ],
)
def test_wrong_arguments_of_a_stream(error: type[Exception], text: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(error, match=text):
        IterableVideoDataset(["a.mp4"], **arguments)
    with pytest.raises(TypeError, match="epoch"):
        IterableVideoDataset(["a.mp4"]).set_epoch(1.5)  # type: ignore[arg-type]
