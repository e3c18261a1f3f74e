"""What the sections measure with: device events, graph replays, the host's time, and a record that is kept.

On a GPU times are between device events: of a step that is called again and again (which the host's launches
may bound), or of the replay of a CUDA graph that holds it (which only the GPU bounds). In a dry run the clock
is the host's and a graph is the call itself: the figures mean nothing, the code is the same.
"""

from __future__ import annotations

import gc
import json
import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.timing import quartiles

__all__ = ["Bench", "Job", "NotRun", "assert_near", "relative_error"]

_SAMPLE_MS = 0.5
"""A sample is as many calls as take that long: events are good to a microsecond."""

_CHUNK = 1 << 25  # elements that are compared at once


class NotRun(Exception):
    """What is measured needs something that is not there; the message says what."""


@dataclass
class Job:
    """One competitor."""

    run: Callable[[], Any]
    refresh: Callable[[], object] | None = None
    """Before each sample, not timed."""


@dataclass
class Bench:
    """A section's device, time and record."""

    device: torch.device
    dry: bool = False
    seconds: float = math.inf
    path: Path | None = None
    part: tuple[int, int] = (0, 1)
    """Which of how many processes this one is."""
    record: dict[str, Any] = field(default_factory=dict)
    _start: float = field(default_factory=time.monotonic)

    def remaining(self) -> float:
        """Seconds left to this section."""
        return self.seconds - (time.monotonic() - self._start)

    def save(self) -> None:
        """Write what there is, whole or not at all."""
        if self.path is not None:
            draft = self.path.with_suffix(".draft")
            draft.write_text(json.dumps(self.record), encoding="utf-8")
            draft.replace(self.path)

    def claim(self, number: int) -> bool:
        """Whether this process does piece ``number``: the first of those that share a section to ask."""
        if self.part[1] == 1 or self.path is None:
            return number % self.part[1] == self.part[0]
        try:
            # The record's name without the part: one folder of claims for all parts.
            folder = self.path.with_name(self.path.stem.rpartition("-")[0] + "-claimed")
            folder.mkdir(exist_ok=True)
            (folder / str(number)).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Record an exception and go on; save what there is, and give memory back."""
        try:
            yield
        except NotRun as reason:
            self.record.setdefault("not_run", {})[what] = str(reason)
        except Exception:
            self.record.setdefault("errors", {})[what] = traceback.format_exc()[-3000:]
            print(f"{what}:\n{traceback.format_exc()}", flush=True)
        self.save()
        gc.collect()
        if not self.dry:
            torch.cuda.empty_cache()

    def synchronize(self) -> None:
        """Wait for the GPU."""
        if not self.dry:
            torch.cuda.synchronize()

    # ---- times

    def sample(self, run: Callable[[], Any], calls: int) -> Callable[[], float]:
        """Call it so often; what comes back gives the milliseconds of one call, after a synchronize."""
        if self.dry:
            start = time.perf_counter()
            for _ in range(calls):
                run()
            elapsed = (time.perf_counter() - start) * 1e3 / calls
            return lambda: elapsed
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(calls):
            run()
        last.record()
        return lambda: float(first.elapsed_time(last)) / calls

    def interleave(
        self, jobs: Mapping[str, Job], seconds: float = 0.5, rounds: tuple[int, int] = (7, 50)
    ) -> dict[str, dict[str, float]]:
        """Median and quartiles in ms of every job, once a round in rotating order."""
        names = list(jobs)
        calls, cost = {}, 0.0
        for name in names:
            job = jobs[name]
            for _ in range(1 if self.dry else 3):
                self._refresh(job)
                job.run()
            self.synchronize()
            self._refresh(job)
            read = self.sample(job.run, 1)
            self.synchronize()
            once = max(read(), 1e-3)
            calls[name] = 1 if job.refresh or self.dry else max(1, min(200, round(_SAMPLE_MS / once)))
            cost += calls[name] * once * (2 if job.refresh else 1) / 1e3
        count = 2 if self.dry else max(rounds[0], min(rounds[1], int(seconds / cost)))
        samples: dict[str, list[float]] = {name: [] for name in names}
        gc.collect()
        gc.disable()
        try:
            for i in range(count):
                turn = i % len(names)
                order = names[turn:] + names[:turn]
                read_all = []
                for name in order:
                    self._refresh(jobs[name])
                    read_all.append(self.sample(jobs[name].run, calls[name]))
                self.synchronize()
                for name, read in zip(order, read_all, strict=True):
                    samples[name].append(read())
        finally:
            gc.enable()
        found = {}
        for name, values in samples.items():
            low, middle, high = quartiles(values)
            found[name] = {"ms": middle, "low": low, "high": high, "rounds": count, "calls": calls[name]}
        return found

    @staticmethod
    def _refresh(job: Job) -> None:
        if job.refresh is not None:
            job.refresh()

    def host_us(self, run: Callable[[], Any], calls: int = 300) -> float:
        """Microseconds of the host's time a call, the best of five runs, the GPU's queue never being full."""
        best = math.inf
        for _ in range(1 if self.dry else 5):
            self.synchronize()
            n = 1 if self.dry else calls
            start = time.perf_counter()
            for _ in range(n):
                run()
            best = min(best, (time.perf_counter() - start) / n * 1e6)
        self.synchronize()
        return best

    def graphed(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """Replay of a CUDA graph of the call."""
        if self.dry:
            return run
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # torch asks for calls before the capture; they also compile
            for _ in range(2):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        gc.collect()
        gc.disable()  # to free what other streams have used asks the driver, which a capture forbids
        try:
            with torch.cuda.graph(graph):
                results = run()
        finally:
            gc.enable()

        def replay() -> Any:
            graph.replay()
            return results

        return replay

    def copy_gbps(self, num_bytes: int = 1 << 30, copies: int = 2) -> float:
        """GB/s of copying inside device memory, read plus written; ``copies``: sets in turn."""
        count = (1 << 16 if self.dry else num_bytes) // 4
        sets = [torch.empty(2, count, device=self.device).normal_() for _ in range(copies)]
        turn = iter(range(1 << 30))

        def run() -> None:
            x = sets[next(turn) % copies]
            x[1].copy_(x[0])

        found = self.interleave({"copy": Job(run)}, 0.3)["copy"]["ms"]
        return 2 * 4 * count / found / 1e6


def relative_error(got: Tensor, expected: Tensor) -> float:
    """In the 2-norm; infinite if there is a NaN in the one and not in the other."""
    wrong = whole = 0.0
    if got.shape != expected.shape:
        raise AssertionError(f"shape {tuple(got.shape)}, expected {tuple(expected.shape)}")
    for a, b in zip(got.reshape(-1).split(_CHUNK), expected.reshape(-1).split(_CHUNK), strict=True):
        wrong += float((a.double() - b.double()).square().sum())
        whole += float(b.double().square().sum())
    if not math.isfinite(wrong):
        return math.inf
    return math.sqrt(wrong / whole) if whole else math.inf if wrong else 0.0


def assert_near(got: list[Tensor], expected: list[Tensor], most: float) -> float:
    """Largest relative error of the results; AssertionError where it passes ``most``."""
    worst = 0.0
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        error = relative_error(a.detach(), b.detach())
        if not error <= most:
            raise AssertionError(f"result {i} is off by {error:.2g} of its norm, {most:.2g} allowed")
        worst = max(worst, error)
    return worst
