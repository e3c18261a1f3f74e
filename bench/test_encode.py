"""pytest-benchmark form of the encode suite: one group per case; and the suite in miniature."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import bench
from bench import bench_encode
from bench.bench_encode import CASES, COMPETITORS, OURS, PLANES, EncodeCase, prepare


@pytest.mark.parametrize("competitor", COMPETITORS)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name.replace(" ", "-").replace(",", ""))
def test_encode(benchmark: Any, tmp_path: Path, case: EncodeCase, competitor: str) -> None:
    prepared = prepare(case, [competitor], tmp_path)
    if competitor in prepared.absent:
        pytest.skip(prepared.absent[competitor])
    benchmark.group = f"encode {case.name}"
    benchmark.extra_info.update(frames=case.frames)
    benchmark.pedantic(prepared.runs[competitor], rounds=5, warmup_rounds=1)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
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


def _case(dtype: torch.dtype, layout: str) -> EncodeCase:
    return EncodeCase(f"small {dtype} {layout}", 96, 64, 12, dtype, layout)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_everybody_writes_the_same_file(tmp_path: Path, dtype: torch.dtype, layout: str) -> None:
    prepared = prepare(_case(dtype, layout), COMPETITORS, tmp_path)
    assert {OURS, "PyAV", PLANES} <= set(prepared.runs), prepared.absent
    assert set(prepared.conversions) == {OURS, "PyAV"}
    assert min(f["decibels"] for f in prepared.files.values()) > 30
    assert prepared.files[PLANES] == prepared.files["PyAV"], "the same planes, whoever waited for them"


@pytest.mark.usefixtures("small")
def test_another_file_is_no_competitor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = bench_encode._WAYS["PyAV"]
    case = _case(torch.uint8, "NHWC")
    for change, reason in (
        (lambda x: x[1:], "11 frames"),
        (lambda x: x.flip(3), "PSNR"),
        (lambda x: x // 64 * 64, "PSNR"),
    ):
        monkeypatch.setitem(
            bench_encode._WAYS, "PyAV", lambda c, x, *rest, change=change: honest(c, change(x).clone(), *rest)
        )
        prepared = prepare(case, ["PyAV", OURS], tmp_path)
        assert reason in prepared.absent["PyAV"]
        assert set(prepared.runs) == {OURS}


@pytest.mark.usefixtures("small")
def test_miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_encode, "CASES", (_case(torch.float32, "NCHW"),))
    monkeypatch.setattr("bench.timing.pin", lambda threads: [0])
    record, plot = tmp_path / "encode.json", tmp_path / "encode.png"
    result = bench.run("encode", rounds=2, json=record, plot=plot)
    assert json.loads(record.read_text(encoding="utf-8"))["suite"] == "encode"
    (row,) = result["rows"]
    assert row["competitors"][OURS]["over_ours"] == (1, 1, 1)
    assert 0 < row["competitors"][OURS]["conversion_share"][1] < 1
    assert row["best_peer"] in ("PyAV", "TorchCodec"), "what needs no conversion is no peer"
    assert plot.stat().st_size > 10_000
