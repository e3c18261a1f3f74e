"""The GPU benchmark suite: a dry run on the CPU, what it says of its goals, and what breaks in it."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import mmcore

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "bench" / "gpu").is_dir():
    pytest.skip("the benchmarks are in the source tree only", allow_module_level=True)
sys.path.append(str(ROOT))  # at the end: the mmcore that is installed comes first

from bench.gpu import build, goals, plot, report, sanitizer, sections  # noqa: E402
from bench.gpu.measure import Bench, NotRun  # noqa: E402

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="the package triton is not installed"
)
CPU = torch.device("cpu")


def full_record() -> dict[str, Any]:
    """Of a GPU that reaches every goal, by little."""
    frames = {
        "times": {
            "mmcore": {"ms": 0.05},
            "mmcore, all sets in a graph": {"ms": 0.03},
            "integer, all sets in a graph": {"ms": 0.028},
            "RGB, eager torch": {"ms": 0.7},
            "RGB, torch.compile": {"ms": 0.61},
        },
        "of_copy": 0.82,
        "ways_of_copy": {"integer": 0.88},
        "host_us": 50.0,
    }
    large = {
        "times": {"mmcore": {"ms": 1.1}, "Liger-Kernel": {"ms": 1.2}},
        "gbps": {"mmcore": 3800.0},
        "absent": {},
    }
    small = {
        "times": {
            "mmcore, graph": {"ms": 0.01},
            "eager, graph": {"ms": 0.13},
            "torch.compile, graph": {"ms": 0.03},
            "compile tuned, graph": {"ms": 0.021},
        },
        "absent": {},
    }
    fusion = {
        "times": {
            "mmcore": {"ms": 0.3},
            "eager": {"ms": 1.0},
            "torch.compile": {"ms": 0.5},
            "mmcore, graph": {"ms": 0.3},
            "torch.compile, graph": {"ms": 0.46},
        },
        "gbps": {"mmcore, graph": 3700.0},
        "absent": {},
    }
    pairs = {"times": {"mmcore": {"ms": 1.0}, "eager": {"ms": 1.8}}, "absent": {}}
    return {
        "suite": "gpu",
        "date": "2026-01-02T03:04:05+00:00",
        "dry_run": False,
        "not_run": {},
        "seconds": 400.0,
        "build": {"seconds": 70.0, "modules": ["_core.so"]},
        "sections": {
            "ceilings": {"environment": {"gpu": "NVIDIA X1", "versions": {"torch": "2.11"}}, "seconds": 5.0},
            "frames correctness": {"cases": 500, "failures": {}},
            "correctness": {"parts": [{"cases": 3, "failures": {}}, {"cases": 4, "failures": {}}]},
            "sanitizer": {"parts": [{"memcheck": 0, "table": ["a"]}, {"racecheck": 0, "table": ["b"]}]},
            "contract": {"held": {"fusion": ["CUDA graph"]}},
            "training": {"wrong": 0, "table": []},
            "frames": {
                "copy_gbps": 4000.0,
                "rows": {"1080p to 224, bilinear": frames, "1080p to 224, bicubic": frames},
            },
            "fusion": {"copy_gbps": 4100.0, "rows": {"fp32 weights (M)": fusion}},
            "losses": {
                "copy_gbps": 4100.0,
                "rows": {
                    "CE 8192x128256 bf16": large,
                    "4 heads, uncertainty, value_and_grad": small,
                    "InfoNCE 4096x512": pairs,
                },
            },
            "decode": {"over_torchcodec": 1.7, "over_pyav": 1.6, "table": []},
            "calls": {
                "host_us": {"fusion, forward": 50.0, "torch, 4 heads, step": 200.0, "4 heads, step": 190.0}
            },
            "nvdec": {"wrong": 0, "right": ["h264"]},
        },
    }


def states(record: dict[str, Any]) -> dict[str, str]:
    return {o.what.strip(): o.state for o in goals.outcomes(record)}


# ---- goals


def test_all_goals_can_be_reached_and_missed() -> None:
    record = full_record()
    assert set(states(record).values()) == {goals.MET}
    assert len(states(record)) >= len({goal.section for goal in goals.GOALS})
    assert not report.broken(record)
    record["sections"]["frames"]["rows"]["1080p to 224, bilinear"]["of_copy"] = 0.79
    record["sections"]["calls"]["host_us"]["fusion, forward"] = 61.0
    record["sections"]["losses"]["rows"]["CE 8192x128256 bf16"]["times"]["mmcore"]["ms"] = 1.3
    missed = {what for what, state in states(record).items() if state == goals.MISSED}
    assert missed == {
        "frames 32x1080p to 224, bilinear, of copy",
        "host's time of a fusion call",
        "over Liger-Kernel",
    }
    assert not report.broken(record), "a figure that is too low is no failure"


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("frames correctness", {"failures": {"a case": "AssertionError: off"}}),
        ("frames correctness", {"left_out": 3}),
        ("contract", {"errors": {"fusion: CUDA graph": "Traceback\nRuntimeError: no"}}),
        ("training", {"wrong": 1}),
        ("sanitizer", {"memcheck": 2, "racecheck": 0}),
    ],
)
def test_what_is_wrong_is_missed_and_breaks_the_run(section: str, change: dict[str, Any]) -> None:
    record = full_record()
    record["sections"][section] = {**goals.section(record, section), **change}
    assert list(states(record).values()).count(goals.MISSED) == 1
    assert report.broken(record)


def test_a_row_without_mmcore_is_an_error() -> None:
    record = full_record()
    row = record["sections"]["losses"]["rows"]["InfoNCE 4096x512"]
    row["absent"] = {"Liger-Kernel": "not installed"}
    assert not report.broken(record)
    row["absent"]["mmcore, graph"] = "AcceleratorError: not permitted"
    assert report.broken(record)
    assert "ERROR losses: InfoNCE 4096x512: mmcore, graph: AcceleratorError" in report.table(record)


def test_what_was_not_run_says_why() -> None:
    record = full_record()
    del record["sections"]["nvdec"], record["sections"]["decode"]["over_torchcodec"]
    record["not_run"]["nvdec"] = "the time was spent"
    record["sections"]["decode"]["not_run"] = {"TorchCodec": "No module named 'torchcodec'"}
    record["sections"]["calls"] = {"errors": {"process": "ended with status -11"}}
    refused = full_record()
    refused["sections"]["nvdec"] = {"wrong": 0, "right": [], "not_run": {"h264": "no engine"}}
    assert states(refused)["NVDEC's planes those of the CPU"] == goals.NOT_RUN
    found = {o.what.strip(): (o.state, o.reached) for o in goals.outcomes(record)}
    assert found["NVDEC's planes those of the CPU"] == (goals.NOT_RUN, "the time was spent")
    assert found["decode and convert, over TorchCodec's fallback"] == (
        goals.NOT_RUN,
        "No module named 'torchcodec'",
    )
    assert found["host's time of a fusion call"] == (goals.NOT_RUN, "ended with status -11")
    text = report.table(record)
    assert "not run: nvdec: the time was spent" in text
    assert "ERROR calls: process: ended with status -11" in text


def test_figures_of_a_dry_run_are_no_figures() -> None:
    record = full_record() | {"dry_run": True}
    found = states(record)
    assert found["frames kernels against float64"] == goals.MET
    assert found["fusion (256,128,768), in a graph, of copy"] == goals.DRY


def test_goals_name_cases_that_are_measured() -> None:
    from bench.gpu import frames, fusion, losses

    assert {goal.section for goal in goals.GOALS} <= {s.name for s in sections.SECTIONS}
    measured = {case.name for case in frames.CASES} | {case.name for case, *_ in fusion.CASES}
    measured |= {name for name, *_ in (*losses._LARGE, *losses._PAIRS)} | set(losses._SMALL)
    used = {goals._BILINEAR, goals._BICUBIC, goals._FUSION, goals._LARGE, goals._SMALL, goals._PAIRS}
    assert used <= measured


# ---- table and picture


def test_the_table_ends_with_the_goals_however_much_there_is_to_say() -> None:
    record = full_record()
    rows = record["sections"]["frames"]["rows"]
    rows |= {f"a case with a long name, number {i}": rows["1080p to 224, bilinear"] for i in range(200)}
    text = report.table(record)
    assert len(text) < 11_000
    assert "(the rest is in the record)" in text
    assert "by integer 88%" in text
    lines = text.splitlines()
    assert lines[-len(goals.GOALS) :] == goals.table(record)[1:]
    assert all(line.endswith(goals.MET) for line in lines[-len(goals.GOALS) :])
    assert report.stem(record) == "gpu-2026-01-02-x1"


@pytest.mark.parametrize("empty", [False, True])
def test_the_picture_is_drawn(empty: bool, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    record = full_record()
    if empty:
        record["sections"] = {}
    plot.draw(record, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_goals_of_the_picture_have_their_subject() -> None:
    record = full_record()
    del record["sections"]["decode"]["over_torchcodec"]
    names = [name for name, _ in plot._named(goals.outcomes(record))]
    assert "decode and convert, over PyAV, RGB and torch" in names
    assert "cross entropy 8192x128256, over Liger-Kernel" in names


def test_newest_record_of_a_gpu_can_be_shown() -> None:
    newest = sorted((ROOT / "bench" / "results").glob("gpu-*.json"))[-1]
    record = json.loads(newest.read_text(encoding="utf-8"))
    assert report.stem(record | {"date": newest.name[4:14]}) == newest.stem
    assert "NVIDIA" in report.table(record)


# ---- sections


def test_a_reason_is_no_error() -> None:
    bench = Bench(CPU, dry=True)
    with bench.attempt("a"):
        raise NotRun("no such library")
    with bench.attempt("b"):
        raise ValueError("wrong")
    assert bench.record["not_run"] == {"a": "no such library"}
    assert list(bench.record["errors"]) == ["b"]


def test_each_piece_of_a_shared_section_is_done_once(tmp_path: Path) -> None:
    parts = [Bench(CPU, path=tmp_path / f"some section-{i}.json", part=(i, 3)) for i in range(3)]
    taken = [i for i in range(20) for part in (parts[i % 3], *parts) if part.claim(i)]
    assert taken == list(range(20))
    other = Bench(CPU, path=tmp_path / "another section-0.json", part=(0, 2))
    assert other.claim(0)
    assert all(Bench(CPU).claim(i) for i in range(3)), "alone it does all"


def test_checks_run_side_by_side_only_where_there_are_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [s for s in sections.SECTIONS if not s.asked]
    monkeypatch.setattr(sections, "_cores", lambda: 2)
    assert [len(group) for group in sections._groups(chosen)] == [1] * len(chosen)
    assert max(sections._processes([s for s in chosen if s.name == "correctness"], 0)) <= 2
    monkeypatch.setattr(sections, "_cores", lambda: 16)
    groups = [[s.name for s in group] for group in sections._groups(chosen)]
    assert [name for group in groups for name in group] == [s.name for s in chosen], "the order is kept"
    together = [group for group in groups if len(group) > 1]
    assert together == [["frames correctness", "correctness", "sanitizer", "contract", "training"]]
    checks = [s for s in chosen if not s.timed]
    assert sum(sections._processes(checks, 0)) == 16


@pytest.mark.skipif(os.name != "posix", reason="sessions of processes")
def test_a_section_that_dies_or_hangs_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(Path(mmcore.__file__).parents[1]), str(ROOT))))
    real = next(s for s in sections.SECTIONS if s.name == "ceilings")
    unknown = sections.Section("no such section", "bench.gpu.ceilings", "run", 60)
    with (tmp_path / "log").open("w") as log:
        hanging = sections._Job(real, 1, 0.1, True, tmp_path, log)
        dying = sections._Job(unknown, 2, 60, True, tmp_path, log)
        for job in (hanging, dying):
            job.start()
        assert [p["errors"]["process"] for p in hanging.finish()] == ["took more than 0 s"]
        assert [p["errors"]["process"] for p in dying.finish()] == ["ended with status 1"] * 2
        interrupted = sections._Job(real, 1, 60, True, tmp_path, log)
        interrupted.start()
        interrupted.end()
        assert "ended with status" in interrupted.finish()[0]["errors"]["process"]


# ---- the sanitizer's output


@pytest.mark.parametrize(
    ("tool", "summary", "errors"),
    [
        ("memcheck", "========= ERROR SUMMARY: 0 errors", 0),
        ("memcheck", "========= ERROR SUMMARY: 1 error", 1),
        ("racecheck", "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", 0),
        ("racecheck", "========= RACECHECK SUMMARY: 12 hazards displayed (12 errors, 0 warnings)", 12),
    ],
)
def test_errors_of_the_sanitizer_are_counted(tool: str, summary: str, errors: int) -> None:
    output = f"========= COMPUTE-SANITIZER\nDONE frames a\n========= Invalid read\nDONE losses b\n{summary}\n"
    found, cases, first = sanitizer.count_errors(tool, output)
    assert (found, cases) == (errors, 2)
    assert bool(first) == bool(errors)
    assert "Invalid read" in "".join(first) or not errors


def test_a_sanitizer_without_a_summary_found_nothing_out() -> None:
    with pytest.raises(RuntimeError, match=r"gave no summary: .*Device not supported"):
        sanitizer.count_errors("memcheck", "DONE frames a\n========= Error: Device not supported\n")


def test_an_absent_sanitizer_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sanitizer, "_PLACES", ())
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "")
    bench = Bench(CPU, part=(1, 2))
    sanitizer.run(bench)
    assert list(bench.record["not_run"]) == ["racecheck"]
    assert "CUDA toolkit" in bench.record["not_run"]["racecheck"]


@pytest.mark.skipif(os.name != "posix", reason="the tool is a shell script here")
@pytest.mark.parametrize("said", ["DONE frames a\n", "FAILED frames a: AssertionError\n", ""])
def test_a_tool_runs_the_cases(said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\necho \"$@\" $PYTORCH_NO_CUDA_MEMORY_CACHING\nprintf '{said}'\n"
                    "echo ========= ERROR SUMMARY: 2 errors\n")  # fmt: skip
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    bench = Bench(CPU, seconds=100.0, part=(0, 2))
    sanitizer.run(bench)
    assert bench.record["memcheck"] == 2
    if said.startswith("DONE"):
        assert "errors" not in bench.record
        assert bench.record["table"][0].startswith("memcheck: 2 errors over 1 cases")
    else:
        assert list(bench.record["errors"]) == ["memcheck"], "it ran no case to its end"


# ---- decoding


def test_every_way_of_decoding_gives_the_same(
    clip: Path, emulator: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU that the CPU plays: the calls of a real run, whose results are tensors of the CPU."""
    pytest.importorskip("av")
    from fake_gpu import fake_gpu

    from bench.gpu import decode

    monkeypatch.setattr(decode, "_SIZE", (24, 32))
    ours = decode._ours
    monkeypatch.setattr(decode, "_ours", lambda bench, *how: ours(Bench(CPU), *how))
    with fake_gpu(emulator, "eager") as gpu:
        row = decode._time(Bench(CPU, dry=True), clip, 40, 1)
    assert {kind for kind, _ in gpu.log} >= {"pinned", "convert"}
    assert {name for name in row["times"] if name.startswith("mmcore")} == {
        "mmcore",
        "mmcore, planes over the bus",
        "mmcore, tensors over the bus",
        "mmcore on the CPU, then copied",
    }
    assert {"decode alone", "PyAV, RGB"} <= set(row["times"])
    assert "TorchCodec CUDA" in row["absent"]
    record: dict[str, Any] = {"rows": {"96x128, 40 frames, 1 thread": row}}
    decode._compare(record)
    assert record["over_pyav"] == row["times"]["PyAV, RGB"]["ms"] / row["times"]["mmcore"]["ms"]


# ---- the build


def test_a_build_that_fails_says_its_last_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failing = [[sys.executable, "-c", "print('no compiler'); raise SystemExit(3)"]]
    monkeypatch.setattr(build, "_commands", lambda folder: failing)
    found = build.build(tmp_path / "log")
    assert "no compiler" in found["error"]
    assert "status 3" in found["error"]
    assert found["modules"] == []


def test_the_build_configures_this_source_tree() -> None:
    pytest.importorskip("pybind11")
    configure, compile_ = build._commands(Path("there"))
    assert configure[configure.index("-S") + 1] == str(ROOT)
    assert f"-DPython_EXECUTABLE={sys.executable}" in configure
    assert any(a.startswith("-DSKBUILD_PROJECT_VERSION=0.") for a in configure)
    assert "there" in compile_


# ---- all of it


@needs_triton
def test_dry_run(tmp_path: Path) -> None:
    path = os.pathsep.join((str(Path(mmcore.__file__).parents[1]), str(ROOT)))
    chosen = [a for name in ("ceilings", "frames correctness") for a in ("--only", name)]
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu", "--dry-run", "--out", str(tmp_path), *chosen],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=200,
    )
    log = (tmp_path / "gpu.log").read_text() if (tmp_path / "gpu.log").exists() else ""
    assert done.returncode == 0, done.stdout + done.stderr + log
    (written,) = tmp_path.glob("gpu-*.json")
    record = json.loads(written.read_text())
    assert record["dry_run"]
    assert record["sections"]["ceilings"]["environment"]["gpu"] == "none: dry run"
    found = goals.section(record, "frames correctness")
    assert found["cases"] > 10
    assert found["failures"] == {}
    assert states(record) == {"frames kernels against float64": goals.MET}
    assert done.stdout.splitlines()[-1].endswith(goals.MET)


def test_without_a_gpu_the_suite_says_so(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a CUDA device")
    path = os.pathsep.join((str(Path(mmcore.__file__).parents[1]), str(ROOT)))
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu", "--out", str(tmp_path / "new")],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 2
    assert "no CUDA device; --dry-run" in done.stderr
    assert not (tmp_path / "new").exists()
