"""Some frames of a file: opened, found, decoded, converted to a normalised float32 tensor, and closed.

Four groups of rows. *Sparse*: k uniform frames, as a multiple of decoding to the last of them (PyAV, one
thread, frames dropped). *Dense* (several threads only): every frame of a clip with several groups of
pictures, as a multiple of mmcore on one core. *One frame* of a short file, and a *long file*: milliseconds.

Of each library only its best way counts: before a row is timed, every way that is known, at one thread, at as
many as there are cores and at the library's own choice, is checked and tried; the record holds what was
found. Everybody takes memory as it comes: mmcore from its pool, the others from the allocator.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bench import timing
from bench.bench_decode import check
from bench.cases import Job, SparseCase, sparse_cases
from bench.peers import PEERS, Competitor, Run, transform
from bench.sparse_peers import SPARSE_PEERS, decode_to_last, mmcore_sparse

__all__ = ["OURS", "SAVED", "Way", "agree", "best_ways", "competitors", "run", "true_frames"]

OURS, SAVED, YARDSTICK = "mmcore", "mmcore saved index", "yardstick"

_QUICK_CLIPS = ("h264 1280x720", "h264 1280x720 gop 60", "h264 340x256", "2 hours")
_SAMPLE_SECONDS = 0.03  # what takes less is called several times per sample
_HOPELESS = 3  # what takes this many times the best way of its library is not tried again


def competitors(group: str) -> tuple[list[Competitor], dict[str, str]]:
    """The peers' ways for a group of rows that can run here, and the reasons why the others cannot."""
    everyone = PEERS if group == "dense" else SPARSE_PEERS
    absent = {c.name: reason for c in everyone if (reason := c.missing()) is not None}
    return [c for c in everyone if c.name not in absent], absent


def true_frames(job: Job) -> dict[int, torch.Tensor]:
    """The job's result for each target and its neighbours, from a plain decode with PyAV on one thread."""
    import av

    import mmcore

    near = None if job.targets is None else {i + d for i in job.targets for d in (-1, 0, 1)}
    frames: dict[int, torch.Tensor] = {}
    if near is not None and not near:
        return frames
    with av.open(str(job.clip.path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for i, frame in enumerate(container.decode(stream)):
            if near is None or i in near:
                frames[i] = mmcore.frames_to_tensor(frame, transform(job))[0].clone()
            if near is not None and i >= max(near):
                break
    return frames


def agree(
    competitor: Competitor, got: torch.Tensor, job: Job, truth: Mapping[int, torch.Tensor]
) -> float | None:
    """Check that a result holds the job's frames and no others.

    Returns
    -------
    float or None
        Worst frame's mean absolute difference in levels (0-255); None if nothing was asked for.

    Raises
    ------
    AssertionError
        If it differs by more than the competitor may, or if a frame before or after a target fits better.
    """
    targets = range(len(truth)) if job.targets is None else job.targets
    if not targets:
        return None
    worst = check(competitor.name, got, torch.stack([truth[i] for i in targets]), competitor.mean_levels)
    for frame, i in zip(got, targets, strict=True):
        errors = {n: float((frame - truth[n]).abs().mean()) for n in (i, i - 1, i + 1) if n in truth}
        if (nearest := min(errors, key=errors.__getitem__)) != i:
            raise AssertionError(f"{competitor.name}: gives frame {nearest} for {i}")
    return worst


@dataclass
class Way:
    """One way of a library, at one number of threads, and what was seen when it was tried."""

    competitor: Competitor
    threads: int
    run: Run
    seconds: float
    mean_difference_levels: float | None

    @property
    def library(self) -> str:
        """The first word of the competitor's name."""
        return self.competitor.name.split()[0]

    @property
    def label(self) -> str:
        """Name in the record."""
        return _label(self.competitor, self.threads)


def _label(competitor: Competitor, threads: int) -> str:
    return f"{competitor.name}, {threads or 'automatic'} thread{'s' if threads != 1 else ''}"


def best_ways(
    competitors: Sequence[Competitor],
    job: Job,
    truth: Mapping[int, torch.Tensor],
    threads: int,
    clock: str = "wall",
) -> tuple[dict[str, Way], dict[str, float], dict[str, str]]:
    """Try every competitor on one thread, then what may still win on more, twice.

    Returns
    -------
    dict
        Library to its best way.
    dict
        What was tried to milliseconds.
    dict
        What does not count to the reason: it gives other frames, or fails.
    """
    tried: list[Way] = []
    excluded: dict[str, str] = {}

    def attempt(competitor: Competitor, count: int) -> None:
        run = competitor.prepare(job, count)
        try:
            seconds, result = _timed(run, clock)
            levels = agree(competitor, result, job, truth)
        except Exception as error:  # whatever a library raises, its other ways may still count
            excluded[_label(competitor, count)] = f"{type(error).__name__}: {error}"
        else:
            tried.append(Way(competitor, count, run, seconds, levels))

    for competitor in competitors:
        attempt(competitor, 1)
    fastest = {w.library: w.seconds for w in sorted(tried, key=lambda w: -w.seconds)}
    hopeful = [w for w in tried if w.seconds < _HOPELESS * fastest[w.library]]
    for way in hopeful:
        for count in () if threads == 1 else (threads, 0):
            attempt(way.competitor, count)
    for way in tried:
        if way.seconds < _HOPELESS * fastest[way.library]:
            way.seconds = min(way.seconds, _timed(way.run, clock)[0])
    best = {w.library: w for w in sorted(tried, key=lambda w: -w.seconds)}
    return best, {w.label: w.seconds * 1e3 for w in tried}, excluded


def _timed(run: Run, clock: str) -> tuple[float, torch.Tensor]:
    start = timing.CLOCKS[clock]()
    result = run(None)
    return timing.CLOCKS[clock]() - start, result


def _on_one_core(run: Run) -> None:
    import mmcore

    before = mmcore.get_num_threads()
    mmcore.set_num_threads(1)
    try:
        run(None)
    finally:
        mmcore.set_num_threads(before)


def run(
    *,
    quick: bool = False,
    rounds: int | None = None,
    only: str = "",
    threads: int = 1,
    clock: str = "wall",
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Check, find the peers' best ways, then measure, row by row.

    Returns
    -------
    dict
        ``rows``: per case the yardstick, each library's quartiles in milliseconds and as a multiple of the
        yardstick, and the best peer's time over mmcore's. ``absent``: competitor to reason.
    """
    cases = [c for c in sparse_cases(threads) if only in c.name and (not quick or c.clip in _QUICK_CLIPS)]
    if not cases:
        raise ValueError(f"only: no case's name contains {only!r}")
    rounds = rounds or (3 if quick else 7)
    absent: dict[str, str] = {}
    rows = []
    for case in cases:
        ways, missing = competitors(case.group)
        absent |= missing
        rows.append(_row(case, ways, rounds, threads, clock, progress))
    return {
        "suite": "sparse",
        "threads": threads,
        "clock": clock,
        "rounds": rounds,
        "absent": absent,
        "rows": rows,
    }


def _row(
    case: SparseCase,
    ways: list[Competitor],
    rounds: int,
    threads: int,
    clock: str,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    job = case.job()
    progress(f"{case.name}: checking {len(ways)} ways of the peers")
    truth = true_frames(job)
    turns: dict[str, Callable[[], Any]] = {}
    if case.group == "dense":
        turns[YARDSTICK] = functools.partial(_on_one_core, mmcore_sparse(OURS).prepare(job, 1))
    elif case.group != "long file":
        turns[YARDSTICK] = functools.partial(decode_to_last, job)
    shortest = math.inf
    for competitor in (mmcore_sparse(OURS), mmcore_sparse(SAVED, saved_index=True)):
        ours = competitor.prepare(job, threads)
        agree(competitor, ours(None), job, truth)
        turns[competitor.name] = functools.partial(ours, None)
        shortest = min(shortest, _timed(ours, clock)[0])
    best, tried, excluded = best_ways(ways, job, truth, threads, clock)
    turns |= {library: functools.partial(best[library].run, None) for library in sorted(best)}
    calls = math.ceil(_SAMPLE_SECONDS / max(shortest, 1e-3))
    progress(f"{case.name}: {rounds} rounds of {calls} call(s)")
    samples = timing.interleave({n: functools.partial(_several, f, calls) for n, f in turns.items()}, rounds)
    row = _summary(samples, calls, clock)
    for library, way in best.items():
        row["competitors"][library] |= {
            "way": way.competitor.name,
            "threads": way.threads,
            "mean_difference_levels": way.mean_difference_levels,
        }
    return {
        "group": case.group,
        "case": case.name,
        "clip": case.clip,
        "file_bytes": job.clip.path.stat().st_size,
        "targets": job.targets,
        "calls_per_sample": calls,
        **row,
        "tried_ms": tried,
        "excluded": excluded,
        "goals": dict(case.goals),
    }


def _several(run: Callable[[], Any], calls: int) -> None:
    for _ in range(calls):
        run()


def _summary(samples: dict[str, timing.Samples], calls: int, clock: str) -> dict[str, Any]:
    def milliseconds(s: timing.Samples) -> list[float]:
        return list(timing.quartiles([t / calls * 1e3 for t in s.of(clock)]))

    yardstick = samples.pop(YARDSTICK, None)
    entries: dict[str, dict[str, Any]] = {}
    for name, s in samples.items():
        entries[name] = {
            "ms": milliseconds(s),
            "times_yardstick": None if yardstick is None else list(timing.ratios(s, yardstick, clock)),
        }
    peers = [n for n in entries if n not in (OURS, SAVED)]
    best = min(peers, key=lambda n: entries[n]["ms"][1], default=None)
    ours = samples[OURS]
    return {
        "yardstick_ms": None if yardstick is None else milliseconds(yardstick),
        "competitors": entries,
        "best_peer": best,
        "over_best_peer": {
            name: list(timing.ratios(samples[best], samples[name], clock)) for name in (OURS, SAVED)
        }
        if best
        else {},
        # near 1.0 on a quiet core: how much longer the clock on the wall ran than this process did
        "wall_over_cpu": sum(ours.wall) / sum(ours.cpu),
    }
