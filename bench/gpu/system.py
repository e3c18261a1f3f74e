"""A training step of the whole system on the GPU, from files to gradients, by :mod:`bench.bench_system`."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

from bench.gpu.measure import Bench, NotRun

__all__ = ["run"]


def run(bench: Bench) -> None:
    """Check, and time, both ways of every case."""
    if importlib.util.find_spec("av") is None:
        raise NotRun("PyAV is not installed")
    from bench import bench_system

    bench.record["rows"] = []
    bench.record["table"] = []
    # Without the 720p file: to render it would take longer than all the rest.
    cases = tuple(case for case in bench_system.CASES if case.height <= 256)
    if bench.dry:
        cases = (replace(cases[0], name="tiny, dry", width=64, height=48, size=32, frames=2, clips=2),)
    for case in cases:
        if bench.remaining() < 8 and not bench.dry:
            bench.record.setdefault("left_out", []).append(case.name)
            continue
        with bench.attempt(case.name):
            device = "cpu" if bench.dry else "cuda"
            row = bench_system.measure(case, device, 1 if bench.dry else 5, "wall", print)
            bench.record["rows"].append(row)
            ours, eager = (row["ms"][name][1] for name in (bench_system.OURS, bench_system.EAGER))
            parts = row["parts_ms"][bench_system.OURS]
            bench.record["table"].append(
                f"{case.name}: {ours:.1f} ms, eager {eager:.1f} ({eager / ours:.2f}x); "
                + ", ".join(f"{name} {ms:.1f}" for name, ms in parts.items())
            )
