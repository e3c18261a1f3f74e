"""The benchmark suites clips and encode in miniature: the same work by everybody, and a record of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import mmcore

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "bench" / "bench_clips.py").is_file():
    pytest.skip("the benchmarks are in the source tree only", allow_module_level=True)
for name in ("matplotlib", "pysubs2", "rich", "typer"):
    pytest.importorskip(name)
sys.path.append(str(ROOT))  # at the end: the mmcore that is installed comes first

import bench  # noqa: E402
from bench import bench_clips, bench_encode, clip_peers  # noqa: E402
from bench.bench_clips import agree, plain  # noqa: E402
from bench.bench_encode import COMPETITORS, PLANES, EncodeCase  # noqa: E402
from bench.clip_peers import OURS, PEERS, SAVED, ClipCase, Found  # noqa: E402
from bench.file_access import file_access  # noqa: E402

_WORDS = ("one", "two", "three")


def test_the_command_line_knows_every_suite() -> None:
    from mmcore.cli.bench import Suite

    assert sorted(s.value for s in Suite) == sorted(bench.SUITES)


def test_openings_and_bytes_are_counted(tmp_path: Path) -> None:
    paths = [tmp_path / "one", tmp_path / "two"]
    for path in paths:
        path.write_bytes(bytes(100_000))

    def read() -> None:
        for path in (*paths, paths[0]):
            path.read_bytes()

    found = file_access(read, paths)
    if found is None:
        pytest.skip("the system does not tell what is read")
    assert found == (3, 300_000)
    assert file_access(lambda: None, paths) == (0, 0)


# ---- clips


@pytest.fixture
def small_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
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


def _clip_case(file: str, mel: bool = True, once: bool = False, far: float = 0.0) -> ClipCase:
    return ClipCase(f"small {file}", file, 96, 64, 32, None if once else 5, mel, (1.0 + far, 4.5 + far), once)


@pytest.mark.parametrize(
    "case",
    [
        _clip_case("mp4"),
        _clip_case("mkv", mel=False),
        _clip_case("srt", once=True),
        _clip_case("minutes", far=10.0),
    ],
)
def test_everybody_reads_the_same_clips(small_file: Path, case: ClipCase) -> None:
    prepared = bench_clips.prepare(case)
    assert {"PyAV opened per stream", "PyAV opened once", OURS} <= set(prepared.runs), prepared.absent
    assert prepared.differences[OURS]["pictures"] == 0
    assert (SAVED in prepared.runs) == (case.file == "minutes")
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


def test_other_clips_are_no_competitors(small_file: Path) -> None:
    case = _clip_case("mp4", mel=False)
    truth = plain(case, small_file)
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


def test_clips_in_miniature(small_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_clips, "CASES", (_clip_case("mp4"),))
    monkeypatch.setattr("bench.timing.pin", lambda threads: [0])
    record, plot = tmp_path / "clips.json", tmp_path / "clips.png"
    result = bench.run("clips", rounds=2, json=record, plot=plot)
    assert json.loads(record.read_text(encoding="utf-8"))["rows"][0]["clips"] == 2
    (row,) = result["rows"]
    assert row["competitors"][OURS]["over_ours"] == (1, 1, 1)
    assert row["best_peer"] in {p.name for p in PEERS if p.name not in (OURS, SAVED)}
    assert min(e["ms"][0] for e in row["competitors"].values()) > 0
    assert plot.stat().st_size > 10_000


def test_words_of_a_clip_are_those_shown_in_it() -> None:
    words = [(0.0, 1.0, "before"), (0.5, 1.5, "into"), (2.9, 4.0, "out of"), (3.0, 4.0, "behind")]
    assert [w[2] for w in clip_peers.words_between(words, 1.0)] == ["into", "out of"]


# ---- encode


@pytest.fixture
def small_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made pictures in place of the rendered ones."""

    def made(case: EncodeCase) -> tuple[torch.Tensor, torch.Tensor]:
        t = torch.arange(case.frames).view(-1, 1, 1, 1) / 10
        x = torch.linspace(0, 6, case.width).view(1, 1, 1, -1)
        y = torch.linspace(0, 5, case.height).view(1, 1, -1, 1)
        phase = torch.tensor([0.0, 0.4, 0.9]).view(1, 3, 1, 1)
        levels = (128 + 90 * torch.sin(x + t + phase) * torch.cos(y)).to(torch.uint8)
        wanted = levels if case.dtype == torch.uint8 else (levels / 255).to(case.dtype)
        return (wanted.permute(0, 2, 3, 1).contiguous() if case.layout == "NHWC" else wanted), levels

    monkeypatch.setattr(bench_encode, "frames_of", made)


def _encode_case(dtype: torch.dtype, layout: str) -> EncodeCase:
    return EncodeCase(f"small {dtype} {layout}", 96, 64, 12, dtype, layout)


@pytest.mark.usefixtures("small_frames")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_everybody_writes_the_same_file(tmp_path: Path, dtype: torch.dtype, layout: str) -> None:
    prepared = bench_encode.prepare(_encode_case(dtype, layout), COMPETITORS, tmp_path)
    assert {OURS, "PyAV", PLANES} <= set(prepared.runs), prepared.absent
    assert set(prepared.conversions) == {OURS, "PyAV"}
    assert min(f["decibels"] for f in prepared.files.values()) > 30
    assert prepared.files[PLANES] == prepared.files["PyAV"], "the same planes, whoever waited for them"


@pytest.mark.usefixtures("small_frames")
def test_another_file_is_no_competitor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = bench_encode._WAYS["PyAV"]
    case = _encode_case(torch.uint8, "NHWC")
    for change, reason in (
        (lambda x: x[1:], "11 frames"),
        (lambda x: x.flip(3), "PSNR"),
        (lambda x: x // 64 * 64, "PSNR"),
    ):
        monkeypatch.setitem(
            bench_encode._WAYS, "PyAV", lambda c, x, *rest, change=change: honest(c, change(x).clone(), *rest)
        )
        prepared = bench_encode.prepare(case, ["PyAV", OURS], tmp_path)
        assert reason in prepared.absent["PyAV"]
        assert set(prepared.runs) == {OURS}


@pytest.mark.usefixtures("small_frames")
def test_encode_in_miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_encode, "CASES", (_encode_case(torch.float32, "NCHW"),))
    monkeypatch.setattr("bench.timing.pin", lambda threads: [0])
    record, plot = tmp_path / "encode.json", tmp_path / "encode.png"
    result = bench.run("encode", rounds=2, json=record, plot=plot)
    assert json.loads(record.read_text(encoding="utf-8"))["suite"] == "encode"
    (row,) = result["rows"]
    assert row["competitors"][OURS]["over_ours"] == (1, 1, 1)
    assert 0 < row["competitors"][OURS]["conversion_share"][1] < 1
    assert row["best_peer"] in ("PyAV", "TorchCodec"), "what needs no conversion is no peer"
    assert plot.stat().st_size > 10_000
