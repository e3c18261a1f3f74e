"""The sections of the suite, each run in processes of its own, and their one record."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

__all__ = ["SECTIONS", "Section", "run_all", "run_one"]


@dataclass(frozen=True)
class Section:
    """What one process does, or several."""

    name: str
    module: str
    function: str
    """``function(bench)`` fills ``bench.record``."""
    seconds: float
    """At most; then it is ended, and what it had written counts."""
    workers: int = 1
    """Processes that share it, ``bench.part`` each; 0: as many as there are cores left."""
    timed: bool = True
    """It needs the machine for itself. Others run side by side where there are cores enough."""
    triton: bool = True
    """In a dry run the ops go to Triton's interpreter."""
    asked: bool = False
    """Only if it is named."""


SECTIONS = (
    Section("ceilings", "bench.gpu.ceilings", "run", 40),
    Section("frames correctness", "bench.gpu.frames", "correctness", 120, workers=3, timed=False),
    Section("correctness", "bench.gpu.correctness", "run", 150, workers=0, timed=False),
    Section("sanitizer", "bench.gpu.sanitizer", "run", 110, workers=2, timed=False, triton=False),
    Section("contract", "bench.gpu.contract", "run", 100, timed=False),
    Section("training", "bench.gpu.training", "run", 120, timed=False, triton=False),
    Section("frames", "bench.gpu.frames", "timings", 60),
    Section("losses", "bench.gpu.losses", "run", 100),
    Section("fusion", "bench.gpu.fusion", "run", 90),
    Section("decode", "bench.gpu.decode", "run", 50, triton=False),
    Section("calls", "bench.gpu.calls", "run", 30),
    Section("nvdec", "bench.gpu.nvdec", "run", 45, triton=False),
    Section("system", "bench.gpu.system", "run", 45, triton=False),
    Section("tuning, compiled", "bench.gpu.tuning", "compile_all", 120, workers=0, asked=True),
    Section("tuning", "bench.gpu.tuning", "run", 150, asked=True),
)
"""In order of importance: the machine, what is right, what is fast, and what stands on both."""

_ENOUGH_CORES = 8
_LEAST_SECONDS = 10


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
    record: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Run sections in their order; ``keep(record)`` after each, or after those that run side by side."""
    start = time.monotonic()
    record = {} if record is None else record
    date = datetime.now(UTC).isoformat(timespec="seconds")
    record |= {"suite": "gpu", "date": date, "dry_run": dry, "sections": {}, "not_run": {}}
    before = record.get("seconds", 0.0)
    with log.open("a", encoding="utf-8") as output, tempfile.TemporaryDirectory() as folder:
        for group in _groups([s for s in SECTIONS if s.name in names]):
            left = seconds - (time.monotonic() - start)
            ready = []
            for section in group:
                if importlib.util.find_spec(section.module) is None:
                    record["not_run"][section.name] = f"no module {section.module}"
                elif left < _LEAST_SECONDS:
                    record["not_run"][section.name] = "the time was spent"
                else:
                    ready.append(section)
            jobs = [
                _Job(section, count, left if dry else min(section.seconds, left), dry, Path(folder), output)
                for section, count in zip(ready, _processes(ready, workers), strict=True)
            ]
            with contextlib.ExitStack() as stack:
                for job in jobs:
                    stack.callback(job.end)
                    job.start()
                for job in jobs:
                    parts = job.finish()
                    record["sections"][job.section.name] = {"parts": parts} if len(parts) > 1 else parts[0]
                    record["seconds"] = round(before + time.monotonic() - start, 1)
                    keep(record)
                    errors = sum(len(p.get("errors", {})) for p in parts)
                    took = f"{job.took:.0f} s{f', {errors} errors' if errors else ''}"
                    print(f"[{job.section.name}: {took}]", flush=True)
    return record


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _groups(sections: Sequence[Section]) -> Iterator[list[Section]]:
    """Neighbours that are not timed together, if the machine is large enough; the others one by one."""
    group: list[Section] = []
    for section in sections:
        if group and (section.timed or group[-1].timed or _cores() < _ENOUGH_CORES):
            yield group
            group = []
        group.append(section)
    if group:
        yield group


def _processes(group: Sequence[Section], workers: int) -> list[int]:
    """How many processes each of them gets."""
    taken = sum(section.workers for section in group)
    left = max(1, _cores() - taken)
    return [min(s.workers, _cores()) or workers or left for s in group]


class _Job:
    """The processes of one section."""

    def __init__(
        self, section: Section, count: int, seconds: float, dry: bool, folder: Path, output: Any
    ) -> None:
        self.section, self.took = section, 0.0
        self._count, self._seconds, self._dry = count, seconds, dry
        self._folder, self._output = folder, output
        self._began = 0.0
        self._started: list[tuple[subprocess.Popen[bytes], Path]] = []

    def start(self) -> None:
        """Start them; their output goes to the log."""
        self._began = time.monotonic()
        environment = dict(os.environ)
        environment.pop("TRITON_INTERPRET", None)
        if self._dry:
            environment.pop("MMCORE_BACKEND", None)
            if self.section.triton:
                environment |= {"TRITON_INTERPRET": "1", "MMCORE_BACKEND": "triton"}
        if self._count > 1:
            environment |= {"OMP_NUM_THREADS": "1"}
        for i in range(self._count):
            path = self._folder / f"{self.section.name}-{i}.json"
            command = [sys.executable, "-m", "bench.gpu", "--section", self.section.name]
            command += ["--part", f"{i}/{self._count}", "--record", str(path)]
            command += ["--budget-seconds", str(self._seconds), *(["--dry-run"] if self._dry else [])]
            # In a session of its own, so that all it starts can be ended with it.
            process = subprocess.Popen(
                command, env=environment, stdout=self._output, stderr=self._output, start_new_session=True
            )
            self._started.append((process, path))

    def finish(self) -> list[dict[str, Any]]:
        """Wait for them, end what takes too long, and give what each has written."""
        end = self._began + self._seconds
        parts = []
        for process, path in self._started:
            ending = ""
            try:
                code = process.wait(max(0.1, end - time.monotonic()))
                ending = f"ended with status {code}" if code else ""
            except subprocess.TimeoutExpired:
                self._kill(process)
                ending = f"took more than {self._seconds:.0f} s"
            part = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            if ending:
                part.setdefault("errors", {})["process"] = ending
            parts.append(part)
        self.took = time.monotonic() - self._began
        return parts

    def end(self) -> None:
        """End those that still run, as when this program is interrupted."""
        for process, _ in self._started:
            if process.poll() is None:
                self._kill(process)

    @staticmethod
    def _kill(process: subprocess.Popen[bytes]) -> None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
