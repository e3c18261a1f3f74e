"""The sections of the suite, each run in a process of its own, and their one record."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["SECTIONS", "Section", "run_all", "run_one"]


@dataclass(frozen=True)
class Section:
    """What one process does."""

    name: str
    module: str
    function: str
    """``function(bench)`` fills ``bench.record``."""
    seconds: float
    """At most; then it is ended, and what it had written counts."""
    workers: int = 1
    """Processes that share it, ``bench.part`` each; 0: as many as there are cores but two."""
    asked: bool = False
    """Only if it is named."""


SECTIONS = (
    Section("ceilings", "bench.gpu.ceilings", "run", 60),
    Section("frames correctness", "bench.gpu.frames", "correctness", 60),
    Section("correctness", "bench.gpu.correctness", "run", 150, workers=0),
    Section("frames", "bench.gpu.frames", "timings", 90),
    Section("losses", "bench.gpu.losses", "run", 120),
    Section("fusion", "bench.gpu.fusion", "run", 120),
    Section("contract", "bench.gpu.contract", "run", 60),
    Section("calls", "bench.gpu.calls", "run", 40),
    Section("tuning, compiled", "bench.gpu.tuning", "compile_all", 120, workers=0, asked=True),
    Section("tuning", "bench.gpu.tuning", "run", 150, asked=True),
)
"""In order of importance."""


def run_one(name: str, part: tuple[int, int], path: Path, seconds: float, dry: bool) -> None:
    """Run a section here."""
    import torch

    from bench.gpu.measure import Bench

    section = next(s for s in SECTIONS if s.name == name)
    bench = Bench(torch.device("cpu" if dry else "cuda:0"), dry, seconds, path, part)
    # The ops go to Triton by themselves on a GPU, and in a dry run because MMCORE_BACKEND says so.
    with bench.attempt(name):
        getattr(importlib.import_module(section.module), section.function)(bench)
    bench.record["seconds"] = round(seconds - bench.remaining(), 1)
    bench.save()


def run_all(
    names: Sequence[str],
    seconds: float,
    dry: bool,
    log: Path,
    keep: Callable[[dict[str, Any]], None],
    workers: int = 0,
) -> dict[str, Any]:
    """Run sections one after another; ``keep(record)`` after each."""
    start = time.monotonic()
    record: dict[str, Any] = {"suite": "gpu", "dry_run": dry, "sections": {}, "not_run": {}}
    with log.open("a", encoding="utf-8") as output, tempfile.TemporaryDirectory() as folder:
        for section in SECTIONS:
            if section.name not in names:
                continue
            if importlib.util.find_spec(section.module) is None:
                record["not_run"][section.name] = f"no module {section.module}"
                continue
            left = seconds - (time.monotonic() - start)
            if left < 10:
                record["not_run"][section.name] = "the time was spent"
                continue
            count = 1 if section.workers == 1 else section.workers or workers or max(1, _cores() - 2)
            began = time.monotonic()
            limit = left if dry else min(section.seconds, left)
            made = _run(section, count, limit, dry, Path(folder), output)
            record["sections"][section.name] = made if len(made["parts"]) > 1 else made["parts"][0]
            record["seconds"] = round(time.monotonic() - start, 1)
            keep(record)
            errors = sum(len(p.get("errors", {})) for p in made["parts"])
            took = time.monotonic() - began
            print(f"[{section.name}: {took:.0f} s{f', {errors} errors' if errors else ''}]", flush=True)
    return record


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(
    section: Section, count: int, seconds: float, dry: bool, folder: Path, output: Any
) -> dict[str, list[dict[str, Any]]]:
    environment = dict(os.environ)
    environment.pop("TRITON_INTERPRET", None)
    if dry:
        environment |= {"TRITON_INTERPRET": "1", "MMCORE_BACKEND": "triton"}
    if count > 1:
        environment |= {"OMP_NUM_THREADS": "1"}
    started = []
    for i in range(count):
        path = folder / f"{section.name}-{i}.json"
        command = [sys.executable, "-m", "bench.gpu", "--section", section.name, "--part", f"{i}/{count}"]
        command += ["--record", str(path), "--budget-seconds", str(seconds), *(["--dry-run"] if dry else [])]
        # In a session of its own, so that all it starts can be ended with it.
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        started.append((process, path))
    end = time.monotonic() + seconds
    parts = []
    for process, path in started:
        ending = ""
        try:
            code = process.wait(max(0.1, end - time.monotonic()))
            ending = f"ended with status {code}" if code else ""
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            ending = f"took more than {seconds:.0f} s"
        part = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if ending:
            part.setdefault("errors", {})["process"] = ending
        parts.append(part)
    return {"parts": parts}
