"""Reading clips with Ray Data, on a cluster of this machine's own."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mmcore
from mmcore import samplers
from mmcore.sample import write_sample

ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")

from mmcore.interop.ray import read_clips  # noqa: E402

# Ray's own settings warn of each other when they are made.
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning:ray")

SIZE = (24, 40)
OPTIONS: dict[str, Any] = {
    "video": {"transform": mmcore.FrameTransform(resize=SIZE, dtype=torch.float16), "num_frames": 4},
    "audio": {"num_channels": 1, "log_mel": True},
    "text": {"tokenizer": mmcore.ByteTokenizer()},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("corpus")
    return [
        write_sample(folder / f"{i}.mp4", seconds=1 + 0.5 * i, width=80, height=64).path for i in range(4)
    ]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        # Workers import from the folder in which their driver was started, before anything that is installed:
        # not from a source tree, which has no extension module.
        patch.chdir(tmp_path_factory.mktemp("driver"))
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=100 << 20,
            configure_logging=False,
            log_to_driver=False,
        )
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


def rows_of(dataset: Any) -> list[dict[str, Any]]:
    return sorted(dataset.take_all(), key=lambda row: (row["index"], row["clip"]))


def assert_same(row: dict[str, Any], clip: mmcore.Clip) -> None:
    assert (row["start"], row["stop"], row["error"]) == (clip.start, clip.stop, None)
    np.testing.assert_array_equal(row["mask"], clip.mask[0])
    assert clip.video is not None
    assert clip.audio is not None
    assert clip.spectrogram is not None
    assert clip.text is not None
    assert clip.tokens is not None
    assert row["video"].dtype == np.float16
    np.testing.assert_array_equal(row["video"], clip.video.data)
    np.testing.assert_array_equal(row["video_seconds"], clip.video.pts_seconds)
    assert row["video_valid"].all()
    np.testing.assert_array_equal(row["audio"], clip.audio.data)
    assert (row["audio_seconds"], row["sample_rate"]) == (clip.audio.pts_seconds, clip.audio.sample_rate)
    np.testing.assert_array_equal(row["spectrogram"], clip.spectrogram.data)
    assert len(row["spectrogram_seconds"]) == len(clip.spectrogram)
    assert list(row["text"]) == [segment.text for segment in clip.text]
    np.testing.assert_array_equal(row["text_start"], [segment.start for segment in clip.text])
    np.testing.assert_array_equal(row["text_stop"], [segment.end for segment in clip.text])
    np.testing.assert_array_equal(row["tokens"], clip.tokens.ids)
    np.testing.assert_array_equal(row["token_segments"], clip.tokens.segment_indices)


@pytest.mark.usefixtures("cluster")
def test_rows_are_the_clips_however_many_tasks_run(corpus: list[str]) -> None:
    folder = os.path.dirname(corpus[0])
    for concurrency in (1, 2):
        dataset = read_clips(folder, concurrency=concurrency, rows_per_block=1, **OPTIONS).materialize()
        assert dataset.num_blocks() == len(corpus)
        rows = rows_of(dataset)
        assert [row["source"] for row in rows] == corpus
        for row in rows:
            assert_same(row, mmcore.read_clip(row["source"], None, None, **OPTIONS))


@pytest.mark.usefixtures("cluster")
def test_stretches_and_equal_lengths(corpus: list[str]) -> None:
    sources = [(corpus[3], 0.5, None), (corpus[3], None, 0.75), corpus[0]]
    rows = rows_of(read_clips(sources, clip_seconds=0.5, **OPTIONS))
    found = [(row["index"], row["clip"], row["start"], row["stop"]) for row in rows]
    edges = [(0, 0.5, 1.0), (0, 1.0, 1.5), (0, 1.5, 2.0), (0, 2.0, 2.5), (1, 0.0, 0.5), (1, 0.5, 0.75)]
    edges += [(2, 0.0, 0.5), (2, 0.5, 1.0)]
    assert found == [(i, n, a, b) for (i, a, b), n in zip(edges, (0, 1, 2, 3, 0, 1, 0, 1), strict=True)]
    for row in rows:
        assert_same(row, mmcore.read_clip(row["source"], row["start"], row["stop"], **OPTIONS))

    whole = read_clips(sources, clip_seconds=0.5, drop_last=True, video=False, text=False)
    assert [(row["index"], row["stop"]) for row in rows_of(whole)] == [
        (i, b) for i, a, b in edges if b - a == 0.5
    ]


@pytest.mark.usefixtures("cluster")
def test_files_that_fail(corpus: list[str], tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no media" * 100)
    mmcore.encode(tmp_path / "silent.mp4", frames=torch.rand(8, 3, 64, 80), fps=8)
    sources = [corpus[0], str(tmp_path / "broken.mp4"), str(tmp_path / "silent.mp4"), (corpus[1], 50, 60)]

    good, broken, silent, outside = rows_of(read_clips(sources, on_file_error="return", **OPTIONS))
    assert_same(good, mmcore.read_clip(corpus[0], None, None, **OPTIONS))
    assert broken["error"].startswith("DecodeError: ")
    assert sources[1] in broken["error"]
    assert broken["video"].shape == (0, 0, 0, 0)
    assert broken["video"].dtype == np.float16
    assert not broken["mask"].any()
    assert silent["error"] is None
    assert silent["mask"].tolist() == [True, False, False]
    assert silent["video"].shape == (4, 3, *SIZE)
    assert silent["audio"].shape == silent["spectrogram"].shape == (0, 0)
    assert len(silent["text"]) == 0
    assert "no range of the file" in outside["error"]

    kept = rows_of(read_clips(sources, on_file_error="skip", **OPTIONS))
    assert [row["index"] for row in kept] == [0, 2]
    cut = rows_of(read_clips(sources[1:], on_file_error="return", clip_seconds=0.5, **OPTIONS))
    assert [(row["index"], row["clip"]) for row in cut] == [(0, 0), (1, 0), (1, 1), (2, 0)]
    assert "no range of the file" in cut[3]["error"]
    with pytest.raises(mmcore.DecodeError, match=r"broken\.mp4"):
        read_clips(sources, **OPTIONS).materialize()


@pytest.mark.usefixtures("cluster")
def test_samplers_draw_by_the_path(corpus: list[str]) -> None:
    sampler = samplers.random_clips(1, 3, step=2, seed=5)
    transform = mmcore.FrameTransform(resize=SIZE)
    read = {"sampler": sampler, "video": {"transform": transform}, "audio": {"num_channels": 1}}
    rows = rows_of(read_clips(corpus, epoch=1, **read))
    for row, path in zip(rows, corpus, strict=True):
        with mmcore.VideoDecoder(path, transform=transform) as decoder:
            batch = decoder.get_frames_at(sampler(decoder, key=path, epoch=1))
        np.testing.assert_array_equal(row["video"], batch.data)
        assert row["start"] == batch.pts_seconds[0]
        sound = mmcore.read_clip(path, row["start"], row["stop"], audio={"num_channels": 1}).audio
        assert sound is not None
        np.testing.assert_array_equal(row["audio"], sound.data)
    # Read again without the first, they are the same.
    for row, again in zip(rows[1:], rows_of(read_clips(corpus[1:], epoch=1, **read)), strict=True):
        np.testing.assert_array_equal(row["video"], again["video"])


@pytest.mark.usefixtures("cluster")
def test_a_killed_worker_loses_nothing(corpus: list[str], tmp_path: Path) -> None:
    marker = tmp_path / "died"

    def open_source(path: str) -> str:
        if path == corpus[2] and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return path

    rows = rows_of(read_clips(corpus, open_source=open_source, rows_per_block=2, **OPTIONS))
    assert marker.exists()
    assert [row["source"] for row in rows] == corpus
    for row in rows:
        assert_same(row, mmcore.read_clip(row["source"], None, None, **OPTIONS))


@pytest.mark.usefixtures("cluster")
def test_tasks_run_side_by_side(corpus: list[str], tmp_path: Path) -> None:
    begun = [tmp_path / Path(path).name for path in corpus[:2]]

    def wait_for_each_other(path: str) -> str:
        (tmp_path / Path(path).name).touch()
        until = time.monotonic() + 240  # a worker imports torch first, on a busy machine
        while not all(file.exists() for file in begun):
            if time.monotonic() > until:
                raise TimeoutError("the other task has not begun")
            time.sleep(0.01)
        return path

    rows = rows_of(read_clips(corpus[:2], open_source=wait_for_each_other, rows_per_block=1, **OPTIONS))
    assert [row["source"] for row in rows] == corpus[:2]


@pytest.mark.usefixtures("cluster")
def test_threads_are_those_of_the_task(corpus: list[str]) -> None:
    def as_many_frames_as_threads(decoder: mmcore.VideoDecoder) -> Sequence[int]:
        return range(mmcore.get_num_threads())

    def frames(**options: Any) -> int:
        read = {"sampler": as_many_frames_as_threads, "audio": False, "text": False}
        return len(read_clips(corpus[:1], **read, **options).take(1)[0]["video"])

    before = mmcore.threads._budget
    try:
        mmcore.threads._budget = None
        assert frames() == 1
        assert frames(num_cpus=0.5) == 1
        mmcore.set_num_threads(2)
        assert frames() == 2
    finally:
        mmcore.threads._budget = before


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sources": [b"bytes"]}, TypeError, r"sources\[0\]: expected a path"),
        ({"sources": []}, ValueError, "expected one source or more"),
        ({"sources": [("a.mp4", 1)]}, ValueError, r"expected \(path, start, stop\)"),
        ({"sources": [("a.mp4", 2, 1)]}, ValueError, "start <= stop"),
        ({"sources": [("a.mp4", "0", 1)]}, TypeError, "start: expected seconds"),
        ({"clip_seconds": 0}, ValueError, "clip_seconds: expected a positive number"),
        ({"clip_seconds": "2"}, TypeError, "clip_seconds: expected a number"),
        ({"on_file_error": "ignore"}, ValueError, "on_file_error: expected 'raise', 'return' or 'skip'"),
        ({"rows_per_block": 0}, ValueError, "rows_per_block: expected an int of 1 or more"),
        ({"num_cpus": 0}, ValueError, "num_cpus: expected a positive number"),
        ({"open_source": "s3"}, TypeError, "open_source: expected a function"),
        ({"video": {"frames": 3}}, TypeError, "there is no option 'frames'"),
        ({"video": False, "audio": False, "text": False}, ValueError, "at least one of them"),
        (
            {"video": {"transform": mmcore.FrameTransform(dtype=torch.bfloat16)}},
            ValueError,
            "cannot be bfloat16",
        ),
        ({"sampler": 8}, TypeError, "sampler: expected one of mmcore.samplers"),
        ({"sampler": samplers.uniform(4), "clip_seconds": 1}, ValueError, "no times beside it"),
        ({"sampler": samplers.uniform(4), "video": {"fps": 2}}, ValueError, "not both"),
        ({"sampler": samplers.uniform(4), "video": False}, ValueError, "video is not read"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_clips(**{"sources": ["a.mp4"], **arguments})


@pytest.mark.usefixtures("cluster")
def test_the_snippets_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[2] / "docs" / "scaling.md"
    if not page.is_file():
        pytest.skip("the documentation is in the source tree only")
    snippets = re.findall(r"^```py\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(snippets) == 2
    write_sample(tmp_path / "sample.mp4", seconds=4, width=80, height=64)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for snippet in snippets:
        # Ray's workers write where the driver was when it started them.
        code = snippet.replace('"loudness")', f'"{tmp_path.as_posix()}/loudness")')
        exec(compile(code, str(page), "exec"), names)
