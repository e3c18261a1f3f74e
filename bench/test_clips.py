"""pytest-benchmark form of the clips suite: one group per case; and the suite in miniature."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import bench
import mmcore
from bench import bench_clips, clip_peers
from bench.bench_clips import CASES, Prepared, agree, plain, prepare
from bench.clip_peers import OURS, PEERS, ClipCase, Found, Peer
from bench.file_access import file_access

_WORDS = ("one", "two", "three")


@functools.cache
def _prepared(case: ClipCase) -> Prepared:
    return prepare(case, PEERS)


@pytest.mark.parametrize("competitor", PEERS, ids=lambda p: p.name.replace(" ", "-"))
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name.replace(" ", "-").replace(",", ""))
def test_clips(benchmark: Any, case: ClipCase, competitor: Peer) -> None:
    prepared = _prepared(case)
    if competitor.name in prepared.absent:
        pytest.skip(prepared.absent[competitor.name])
    benchmark.group = f"clips {case.name}"
    benchmark.extra_info.update(clips=len(case.starts))
    benchmark.pedantic(prepared.runs[competitor.name], rounds=3, warmup_rounds=1)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small file in place of the rendered ones, ten seconds of smooth pictures."""
    monkeypatch.setenv("MMCORE_BENCH_CACHE", str(tmp_path))
    path = tmp_path / "small.mp4"
    t = torch.arange(300).view(-1, 1, 1, 1) / 30
    x, y = torch.linspace(0, 4, 96).view(1, 1, 1, -1), torch.linspace(0, 3, 64).view(1, 1, -1, 1)
    phase = torch.tensor([0.0, 0.4, 0.9]).view(1, 3, 1, 1)
    frames = 0.5 + 0.35 * torch.sin(x + 2.5 * t + phase) * torch.cos(y)
    seconds = torch.arange(480_000) / 48000
    sound = 0.3 * torch.sin(2 * torch.pi * 300 * seconds) + 0.02 * torch.sin(2 * torch.pi * 2500 * seconds)
    words = [(i + 0.2, i + 0.9, _WORDS[i % 3]) for i in range(10)]
    mmcore.encode(path, frames=frames, fps=30, audio=sound, sample_rate=48000, text=words, preset="ultrafast")
    monkeypatch.setattr(bench_clips, "source", lambda width, height: path)
    monkeypatch.setattr(bench_clips, "_COPIES", 2)
    return path


def _case(file: str, mel: bool = True, once: bool = False, far: float = 0.0) -> ClipCase:
    return ClipCase(f"small {file}", file, 96, 64, 32, None if once else 5, mel, (1.0 + far, 4.5 + far), once)


@pytest.mark.parametrize(
    "case", [_case("mp4"), _case("mkv", mel=False), _case("srt", once=True), _case("minutes", far=10.0)]
)
def test_everybody_reads_the_same_clips(small: Path, case: ClipCase) -> None:
    prepared = prepare(case, PEERS)
    assert {"PyAV opened per stream", "PyAV opened once", OURS} <= set(prepared.runs), prepared.absent
    assert prepared.differences[OURS]["pictures"] == 0
    opened = dict.fromkeys(prepared.runs, 0.0)
    for name, run in prepared.runs.items():
        found = file_access(run, [prepared.path])
        if found is None:
            pytest.skip("the system does not tell what is read")
        opened[name], read = found
        assert read > 10_000
    clips = 1 if case.once else len(case.starts)
    streams = 2 if case.file == "srt" else 3
    assert opened["PyAV opened once"] == clips
    assert opened["PyAV opened per stream"] == clips * streams


def test_other_clips_are_no_competitors(small: Path) -> None:
    case = _case("mp4", mel=False)
    truth = plain(case, small)
    peer = next(p for p in PEERS if p.name == "PyAV opened once")
    assert agree(peer, case, truth, truth) == {"pictures": 0.0, "sound": 0.0}
    one = truth[0]
    late = torch.cat([one.pictures[1:], one.pictures[:1]])
    for wrong in (
        Found(late, one.sound, one.words),
        Found(one.pictures, one.sound.roll(2), one.words),
        Found(one.pictures, one.sound[1:], one.words),
        Found(one.pictures, one.sound, one.words[1:]),
        Found(one.pictures, one.sound, ((*one.words[0][:2], "zero"), *one.words[1:])),
        Found(one.pictures, one.sound, ((0.1, *one.words[0][1:]), *one.words[1:])),
    ):
        with pytest.raises(AssertionError):
            agree(peer, case, [wrong, *truth[1:]], truth)


def test_miniature(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_clips, "CASES", (_case("mp4"),))
    monkeypatch.setattr("bench.timing.pin", lambda threads: [0])
    record, plot = tmp_path / "clips.json", tmp_path / "clips.png"
    result = bench.run("clips", rounds=2, json=record, plot=plot)
    assert json.loads(record.read_text(encoding="utf-8"))["rows"][0]["clips"] == 2
    (row,) = result["rows"]
    assert row["competitors"][OURS]["over_ours"] == (1, 1, 1)
    assert row["best_peer"] in {p.name for p in PEERS if p.name != OURS}
    assert min(e["ms"][0] for e in row["competitors"].values()) > 0
    assert plot.stat().st_size > 10_000


def test_words_of_a_clip_are_those_shown_in_it() -> None:
    words = [(0.0, 1.0, "before"), (0.5, 1.5, "into"), (2.9, 4.0, "out of"), (3.0, 4.0, "behind")]
    assert [w[2] for w in clip_peers.words_between(words, 1.0)] == ["into", "out of"]
