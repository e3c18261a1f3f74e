"""End to end: an encoded clip becomes a normalised float32 tensor, as a multiple of raw decode.

Raw is PyAV decoding every frame and dropping it. Two regimes, reported apart: *pooled* (mmcore's recycling
pool; the others write into one tensor made beforehand) and *fresh* (every result in newly mapped memory, for
all). As they come, mmcore pools and the others allocate: that comparison is reported as *as shipped*. All of
it is one interleaved run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bench import media, timing
from bench.cases import DECODE_CASES, STD, DecodeCase, Job
from bench.peers import PEERS, Competitor, decode_raw, frame_count, mmcore_competitor

__all__ = ["OURS", "check", "competitors", "jobs", "run"]

OURS = "mmcore"


def competitors() -> tuple[list[Competitor], dict[str, str]]:
    """All that can run here, mmcore first, and the reasons why the others cannot."""
    everyone = [mmcore_competitor(OURS), mmcore_competitor("mmcore rgb8", accuracy="rgb8"), *PEERS]
    absent = {c.name: reason for c in everyone if (reason := c.missing()) is not None}
    return [c for c in everyone if c.name not in absent], absent


def jobs(quick: bool, files: Sequence[Path] = (), only: str = "") -> list[tuple[Job, DecodeCase | None]]:
    """Rows of the suite whose name contains ``only``: the table of cases, or "crop" of each file given."""
    if files:
        return [(Job.make(media.from_file(path), "crop"), None) for path in files]
    cases = [c for c in DECODE_CASES if (not quick or c.most_times_raw is not None) and only in c.name]
    if not cases:
        raise ValueError(f"only: no case's name contains {only!r}")
    return [(Job.make(media.clip(c.codec, c.width, c.height), c.kind), c) for c in cases]


def check(name: str, got: torch.Tensor, expected: torch.Tensor, most: float) -> float:
    """Worst frame's mean absolute difference in levels (0-255); AssertionError where it passes ``most``."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        raise AssertionError(
            f"{name}: result is {tuple(got.shape)} {got.dtype}, "
            f"expected {tuple(expected.shape)} {expected.dtype}"
        )
    std = torch.tensor(STD).view(3, 1, 1) * 255
    worst = max(float(((a - b).abs() * std).mean()) for a, b in zip(got, expected, strict=True))
    if not worst <= most:
        raise AssertionError(
            f"{name}: a frame differs by {worst:.2f} levels on average, more than the {most} allowed"
        )
    return worst


def run(
    *,
    quick: bool = False,
    rounds: int | None = None,
    files: Sequence[Path] = (),
    only: str = "",
    threads: int = 1,
    clock: str = "wall",
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Check, then measure, every competitor on every row.

    Returns
    -------
    dict
        ``rows``: per job the raw time, per competitor and regime the quartiles of (time / raw time), and the
        speedup over the best peer. ``absent``: competitor to reason.
    """
    present, absent = competitors()
    rounds = rounds or (3 if quick else 7)
    rows = []
    for job, case in jobs(quick, files, only):
        frames = frame_count(job)
        progress(f"{job.name}: {frames} frames, checking {len(present)} competitors")
        runs = {c.name: c.prepare(job, threads) for c in present}
        # The checks warm everything up; the first result goes back to mmcore's pool once cloned.
        reference = runs[present[0].name](None).clone()
        differences = {
            c.name: check(c.name, runs[c.name](None), reference, c.mean_levels) for c in present[1:]
        }
        reused = torch.zeros_like(reference)
        turns: dict[tuple[str, str], Callable[[], Any]] = {
            ("raw", ""): functools.partial(decode_raw, job, threads),
        }
        for c in present:
            turns[c.name, "pooled"] = functools.partial(runs[c.name], None if c.needs == "mmcore" else reused)
            turns[c.name, "fresh"] = functools.partial(_fresh, runs[c.name], tuple(reference.shape))
        progress(f"{job.name}: {rounds} rounds")
        row = _summary(timing.interleave(turns, rounds), frames, clock)
        row["job"], row["clip"] = job.name, media.describe(job.clip)
        row["mean_difference_levels"] = differences
        row["goals"] = (
            {"times_raw": case.most_times_raw, "times_best_peer": case.least_times_best_peer} if case else {}
        )
        rows.append(row)
    return {
        "suite": "decode",
        "threads": threads,
        "clock": clock,
        "rounds": rounds,
        "absent": absent,
        "rows": rows,
    }


def _fresh(run: Callable[[torch.Tensor], torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
    return run(torch.empty(shape))


def _summary(samples: dict[tuple[str, str], timing.Samples], frames: int, clock: str) -> dict[str, Any]:
    raw = samples.pop(("raw", ""))
    entries: dict[str, dict[str, Any]] = {}
    for (name, regime), s in samples.items():
        low, middle, high = timing.ratios(s, raw, clock)
        entries.setdefault(name, {})[regime] = {
            "times_raw": middle,
            "lower_quartile": low,
            "upper_quartile": high,
            "us_per_frame": timing.quartiles([t / frames * 1e6 for t in s.of(clock)])[1],
        }
    peers = [n for n in entries if not n.startswith(OURS)]
    speedup = {}
    for label, theirs, ours in (
        ("pooled", "pooled", "pooled"),
        ("fresh", "fresh", "fresh"),
        ("as shipped", "fresh", "pooled"),
    ):
        if peers and OURS in entries:
            best = min(peers, key=lambda n, regime=theirs: entries[n][regime]["times_raw"])  # type: ignore[misc]
            gain = timing.ratios(samples[best, theirs], samples[OURS, ours], clock)[1]
            speedup[label] = {"best_peer": best, "times": gain}
    return {
        "raw_us_per_frame": timing.quartiles([t / frames * 1e6 for t in raw.of(clock)])[1],
        # 1.0 on a quiet core: how much longer the clock on the wall ran than this process did
        "wall_over_cpu": sum(raw.wall) / sum(raw.cpu),
        "competitors": entries,
        "speedup": speedup,
    }
