"""What suites of one op share: processes that measure in one memory regime each, and take turns.

Large results are bounded by memory, and what memory costs depends on where it comes from. Three regimes, each
in a process of its own, since the C library's allocator has no way back to its defaults:

- default: everybody as shipped, that is, glibc untouched and mmcore's pool on. glibc keeps freed blocks
  smaller than a threshold, which slides to the largest block freed so far, at most 32 MiB; it is settled
  there first, as in any process that has trained for a while.
- recycled: glibc keeps all freed memory (``mallopt`` M_MMAP_MAX = 0, M_TRIM_THRESHOLD = -1), mmcore's pool
  on.
- fresh: glibc maps every block above 64 KiB anew (M_MMAP_THRESHOLD), mmcore's pool off.

The processes stay alive and take turns on the same cores, one at a time, so that all rounds interleave; the
page faults of every competitor are recorded. Peak memory is measured in the fresh regime, where nothing that
was freed is still resident.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from bench import timing

__all__ = [
    "COMPILED",
    "COMPILED_TUNED",
    "EAGER",
    "OURS",
    "REFERENCE",
    "REGIMES",
    "TUNED",
    "Job",
    "Prepared",
    "Suite",
    "Worker",
    "answer_requests",
    "check",
    "prepare_each",
]

REGIMES = ("default", "recycled", "fresh")

# Who takes part in every suite of this form.
OURS, EAGER, COMPILED = "mmcore", "eager", "torch.compile"
TUNED, COMPILED_TUNED, REFERENCE = "eager tuned", "compile tuned", "reference"

_SAMPLE_SECONDS = 0.02  # of calls in one sample, so that neither the timer nor a process switch counts


class Case(Protocol):
    """One row of a suite."""

    @property
    def name(self) -> str:
        """Unique in its suite."""

    @property
    def goals(self) -> tuple[float | None, float | None, float | None]:
        """At least so many times eager, so many times torch.compile, so much of the copy bandwidth."""

    @property
    def streams(self) -> bool:
        """Whether memory bounds it, so that a share of the copy bandwidth says something."""

    @property
    def large(self) -> bool:
        """Whether the memory it takes is worth recording."""


_AnyCase = TypeVar("_AnyCase", bound=Case)


@dataclass(frozen=True)
class Job:
    """One competitor, ready to run."""

    run: Callable[[], Any]
    """Gives the result and the gradients."""
    refresh: Callable[[], Any] | None = None
    """Restores the inputs that a run overwrites; called before each sample, not timed."""
    verify: Callable[[], Sequence[Tensor]] | None = None
    """A run on the inputs that the oracle had; None: any run is."""


@dataclass
class Prepared:
    """Competitors of a case."""

    jobs: dict[str, Job] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    """Largest relative error of a result."""
    absent: dict[str, str] = field(default_factory=dict)
    """Peers that do not run here, or whose results are wrong, and why."""


def prepare_each(
    makers: Mapping[str, Callable[[], Job]], expected: Sequence[Tensor], most: float, required: Sequence[str]
) -> Prepared:
    """Make competitors and check each; one that fails is absent, unless it is ``required``."""
    prepared = Prepared()
    for name, make in makers.items():
        try:
            job = make()
            prepared.errors[name] = check((job.verify or job.run)(), expected, most)
        except Exception as e:
            if name in required:
                raise
            prepared.absent[name] = f"{type(e).__name__}: {e}".partition("\n")[0]
        else:
            prepared.jobs[name] = job
    return prepared


def check(got: Sequence[Tensor], expected: Sequence[Tensor], most: float) -> float:
    """Largest relative error, in the 2-norm; AssertionError where it passes ``most``."""
    worst = 0.0
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        if a.shape != b.shape:
            raise AssertionError(f"result {i} is {tuple(a.shape)}, expected {tuple(b.shape)}")
        error = _relative_error(a.detach(), b)
        if not error <= most:
            raise AssertionError(f"result {i} is off by {error:.2g} of its norm, {most:.2g} allowed")
        worst = max(worst, error)
    return worst


def _relative_error(got: Tensor, expected: Tensor) -> float:
    wrong = whole = 0.0
    # In pieces that stay in cache: a large result's float64 copies would take longer than the competitor.
    for a, b in zip(got.reshape(-1).split(1 << 17), expected.reshape(-1).split(1 << 17), strict=True):
        wrong += float((a.double() - b).square().sum())
        whole += float(b.square().sum())
    return math.sqrt(wrong / whole) if whole else math.inf if wrong else 0.0


class _Copy:
    """timing.Copy on several threads at once: the bandwidth that all cores in use have together."""

    def __init__(self, threads: int) -> None:
        self._parts = [timing.Copy(128 // threads) for _ in range(threads)]
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self.num_bytes = sum(part.num_bytes for part in self._parts)

    def __call__(self) -> None:
        if self._pool is None:
            self._parts[0]()
        else:
            list(self._pool.map(lambda part: part(), self._parts))


def _set_regime(regime: str) -> None:
    """Set this process's allocators, for good."""
    import mmcore

    if regime == "default":
        for _ in range(
            4
        ):  # settle glibc's sliding threshold: one block just below its bound, mapped and freed
            torch.empty((32 << 20) - (64 << 10), dtype=torch.uint8)
        return
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4  # malloc.h
    settings = (
        {mmap_max: 0, trim_threshold: -1}
        if regime == "recycled"
        else {mmap_threshold: 64 << 10, trim_threshold: 128 << 10}
    )
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        raise RuntimeError("the C library has no mallopt") from None
    for option, value in settings.items():
        if mallopt(option, value) != 1:
            raise RuntimeError(f"mallopt({option}, {value}) was refused")
    if regime == "fresh":
        mmcore.set_output_pool_limit(0)


def _page_faults() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _resident() -> tuple[int, int]:
    """Bytes resident now, and at most since the mark was last reset."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    now, most = (int(fields[name].split()[0]) << 10 for name in ("VmRSS", "VmHWM"))
    return now, most


def _peak_growth(job: Callable[[], Any]) -> int | None:
    """Bytes by which resident memory rises at most while ``job`` runs (VmHWM); None where nothing tells."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM
        before, mark = _resident()
    except (OSError, KeyError):  # not Linux, or /proc is restricted
        return None
    if mark > before + (1 << 20):
        return None  # it was not reset
    job()
    return max(0, _resident()[1] - before)


class Worker:
    """A process that measures under one setting, when told to.

    Parameters
    ----------
    module : str
        Run as ``python -m module *arguments``; its main ends in :func:`answer_requests`.
    label : str
        The setting.
    env : mapping
        Variables of its environment; those that set the C library's allocator are never inherited.
    """

    def __init__(
        self, module: str, label: str, *arguments: str, env: Mapping[str, str] | None = None
    ) -> None:
        self.label = label
        inherited = {
            k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"
        }
        path = os.pathsep.join(p for p in sys.path if p)
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**inherited, "PYTHONPATH": path, **(env or {})},
            cwd=Path(__file__).resolve().parents[1],
        )

    def ask(self, **message: Any) -> dict[str, Any]:
        """Send a request and wait for its answer, which has an "error" if it failed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the {self.label} process ended with exit status {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def answer_requests(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Worker's loop: one JSON request a line, one answer a line, until the requests end; does not return."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a compiler prints is no answer
    for line in sys.stdin:
        try:
            found = answer(json.loads(line))
        except Exception as e:
            found = {"error": f"{type(e).__name__}: {e}"}
        print(json.dumps(found), file=answers, flush=True)
    os._exit(0)  # no teardown, in which Triton's bindings list what they leak


@dataclass(frozen=True)
class Suite(Generic[_AnyCase]):
    """Cases of one op, measured forward and backward in every regime, and how to prepare them."""

    name: str
    """The suite's module is ``bench.bench_<name>``; its main calls :meth:`serve`."""
    cases: Sequence[_AnyCase]
    quick: Sequence[str]
    """Names of the cases of a quick run."""
    competitors: Callable[[_AnyCase], list[str]]
    prepare: Callable[[_AnyCase, Sequence[str]], Prepared]
    """Makes and checks the competitors named."""
    least_bytes: Callable[[_AnyCase], int]
    """Bytes that one step must move at least."""
    describe: Callable[[_AnyCase], dict[str, Any]]
    """What a case's row of the record says about it."""

    def run(
        self,
        *,
        quick: bool = False,
        rounds: int | None = None,
        only: str = "",
        threads: int = 1,
        clock: str = "wall",
        progress: Callable[[str], None] = print,
    ) -> dict[str, Any]:
        """Check, then measure, every competitor on every case in every regime.

        Returns
        -------
        dict
            ``rows``: per case the bytes to move, and per regime each competitor's milliseconds and page
            faults, how many times its time ours is, and its share of the copy bandwidth; for large cases
            each one's peak memory.
        """
        rounds = rounds or (7 if quick else 15)
        cases = [c for c in self.cases if only in c.name and (not quick or c.name in self.quick)]
        if not cases:
            raise ValueError(f"only: no case's name contains {only!r}")
        workers: list[Worker] = []
        absent: dict[str, str] = {}
        rows = []
        copy = _Copy(threads)
        copy()
        try:
            for regime in REGIMES:
                worker = Worker(f"bench.bench_{self.name}", regime, regime, "--threads", str(threads))
                workers.append(worker)
                if "error" in (answer := worker.ask(start=True)):
                    absent[f"{regime} memory"] = answer["error"]
                    workers.pop().close()
            for case in cases:
                row = self._row(case, workers, rounds, clock, copy, progress)
                absent |= {f"{name}, {case.name}": reason for name, reason in row["absent"].items()}
                rows.append(row)
        finally:
            for worker in workers:
                worker.close()
        return {
            "suite": self.name,
            "threads": threads,
            "clock": clock,
            "rounds": rounds,
            "copy_bandwidth": timing.quartiles([r["copy_bandwidth"] for r in rows])[1],
            "transparent_huge_pages": _huge_pages(),
            "regimes": [w.label for w in workers],
            "peak_growth": "of one step, beyond the inputs: VmHWM over VmRSS before it, fresh memory",
            "absent": absent,
            "rows": rows,
        }

    def _row(
        self,
        case: _AnyCase,
        workers: Sequence[Worker],
        rounds: int,
        clock: str,
        copy: _Copy,
        progress: Callable[[str], None],
    ) -> dict[str, Any]:
        progress(f"{case.name}: compiling and checking")
        errors: dict[str, float] = {}
        absent: dict[str, str] = {}
        for worker in workers:
            if "error" in (answer := worker.ask(case=case.name)):
                raise RuntimeError(f"{case.name}, {worker.label} memory: {answer['error']}")
            errors = answer["errors"]
            absent |= answer["absent"]
        names = [name for name in self.competitors(case) if name not in absent]
        progress(f"{case.name}: {rounds} rounds")
        turns: dict[tuple[str, str], Callable[[], dict[str, Any]]] = {
            (worker.label, name): functools.partial(worker.ask, run=name)
            for worker in workers
            for name in names
        }
        turns["", "copy"] = functools.partial(_timed, copy)
        samples: dict[tuple[str, str], timing.Samples] = {key: timing.Samples() for key in turns}
        faults: dict[tuple[str, str], list[float]] = {key: [] for key in turns}
        order = list(turns)
        for i in range(rounds):
            turn = i % len(order)
            for key in order[turn:] + order[:turn]:
                if "error" in (answer := turns[key]()):
                    raise RuntimeError(f"{case.name}, {key[1]}, {key[0]} memory: {answer['error']}")
                samples[key].wall.append(answer["wall"])
                samples[key].cpu.append(answer["cpu"])
                faults[key].append(answer["faults"])
        peaks: dict[str, int | None] = {}
        for worker in workers:
            if worker.label == "fresh" and case.large:
                peaks = {name: worker.ask(peak=name).get("growth") for name in names}
        num_bytes = self.least_bytes(case)
        # The copy is timed by the wall in any case: the CPU clock would count its threads one by one.
        copied = samples.pop(("", "copy")).wall
        regimes = {}
        for worker in workers:
            regime = worker.label
            ours = samples[regime, OURS]
            others = [name for name in names if name != OURS]
            regimes[regime] = {
                "competitors": {
                    name: _summary(samples[regime, name].of(clock), faults[regime, name]) for name in names
                },
                "ours_over": {
                    name: _quartiles(timing.ratios(samples[regime, name], ours, clock)) for name in others
                },
                "of_bandwidth": {
                    name: _quartiles(
                        timing.quartiles(
                            [
                                num_bytes / t / (copy.num_bytes / c)
                                for t, c in zip(samples[regime, name].wall, copied, strict=True)
                            ]
                        )
                    )
                    for name in names
                }
                if case.streams
                else None,
            }
        over_eager, over_compiled, of_bandwidth = case.goals
        return {
            "case": case.name,
            **self.describe(case),
            "bytes": num_bytes,
            "copy_bandwidth": copy.num_bytes / timing.quartiles(copied)[1],
            "goals": {EAGER: over_eager, COMPILED: over_compiled, "of_bandwidth": of_bandwidth},
            "absent": absent,
            "relative_errors": errors,
            "regimes": regimes,
            "peak_growth": peaks,
            # 1.0 on a quiet core: how much longer the clock on the wall ran than the processes did
            "wall_over_cpu": sum(sum(s.wall) for s in samples.values())
            / sum(sum(s.cpu) for s in samples.values()),
        }

    def serve(self) -> None:
        """Worker's side: set the regime, then prepare cases and time competitors as asked."""
        parser = argparse.ArgumentParser()
        parser.add_argument("regime", choices=REGIMES)
        parser.add_argument("--threads", type=int, required=True)
        args = parser.parse_args()
        timing.pin(args.threads)
        torch._inductor.config.compile_threads = 1  # no idle helper processes beside the measurement
        server = _Server(self, args.threads)

        def answer(message: dict[str, Any]) -> dict[str, Any]:
            if "case" in message:
                return server.prepare(message["case"])
            if "run" in message:
                return server.sample(message["run"])
            if "peak" in message:
                return server.peak(message["peak"])
            _set_regime(args.regime)
            return {}

        answer_requests(answer)


class _Server:
    """The worker's state: the case prepared last."""

    def __init__(self, suite: Suite[Any], threads: int) -> None:
        self.suite = suite
        self.threads = threads
        self.jobs: dict[str, Job] = {}
        self.repeats: dict[str, int] = {}

    def prepare(self, name: str) -> dict[str, Any]:
        """Set a case up, warm it, and find how many calls make a sample."""
        self.jobs = {}  # free the last case's tensors first
        gc.unfreeze()
        gc.collect()
        case = next(c for c in self.suite.cases if c.name == name)
        prepared = self.suite.prepare(case, self.suite.competitors(case))
        self.jobs = prepared.jobs
        for competitor, job in self.jobs.items():
            for _ in range(2):
                job.run()
            start = time.perf_counter()
            job.run()
            self.repeats[competitor] = math.ceil(_SAMPLE_SECONDS / (time.perf_counter() - start))
        gc.collect()
        gc.freeze()
        gc.disable()  # a collection inside one competitor's turn would be charged to it
        return {"errors": prepared.errors, "absent": prepared.absent}

    def sample(self, competitor: str) -> dict[str, Any]:
        """Seconds and page faults of one call, from as many as make a sample."""
        job, repeats = self.jobs[competitor], range(self.repeats[competitor])
        run = job.run
        if job.refresh is not None:
            job.refresh()
        if self.threads > 1:
            time.sleep(0.005)  # idle OpenMP threads spin for a moment after their last work, on our cores
        faults, wall, cpu = _page_faults(), time.perf_counter(), time.process_time()
        for _ in repeats:
            run()  # the result dies at once, as in a training loop: freeing it is part of the price
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        n = len(repeats)
        return {"wall": wall / n, "cpu": cpu / n, "faults": (_page_faults() - faults) / n}

    def peak(self, competitor: str) -> dict[str, Any]:
        """By how much memory grows in one call."""
        job = self.jobs[competitor]
        if job.refresh is not None:
            job.refresh()
        return {"growth": _peak_growth(job.run)}


def _huge_pages() -> str:
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="ascii")
    except OSError:
        return "unknown"
    return text.partition("[")[2].partition("]")[0]


def _timed(job: Callable[[], Any]) -> dict[str, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    job()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "faults": 0.0}


def _summary(seconds: Sequence[float], faults: Sequence[float]) -> dict[str, float]:
    low, middle, high = timing.quartiles([t * 1e3 for t in seconds])
    return {
        "ms": middle,
        "lower_quartile": low,
        "upper_quartile": high,
        "page_faults": timing.quartiles(faults)[1],
    }


def _quartiles(values: tuple[float, float, float]) -> dict[str, float]:
    low, middle, high = values
    return {"median": middle, "lower_quartile": low, "upper_quartile": high}
