"""Benchmarks of mmcore beside its peers: ``python -m bench SUITE``, or ``mmcore bench SUITE``.

The folder is part of the source tree, not of the wheel. ``README.md`` here says how to install the peers.
"""

from __future__ import annotations

import json as _json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["SUITES", "run"]

SUITES = ("decode", "sparse", "frames", "fusion", "losses", "log_mel", "system", "clips", "encode")


def run(
    suite: str,
    *,
    plot: Path | None = None,
    json: Path | None = None,
    quick: bool = False,
    rounds: int | None = None,
    files: Sequence[Path] = (),
    only: str = "",
    threads: int = 1,
    clock: str = "wall",
) -> dict[str, Any]:
    """Run a suite, print its tables, and write what is asked for.

    Parameters
    ----------
    suite : {"decode", "sparse", "frames", "fusion", "losses", "log_mel", "system", "clips", "encode"}
        "decode": files to tensors, end to end. "sparse": some frames of files, and opening them. "frames":
        the frames op alone. "fusion", "losses": that op, forward and backward. "log_mel": that op.
        "system": a training step, from files to gradients. "clips": pictures, sound and words of two seconds
        of a file. "encode": frames in memory to files.
    plot, json : None or path
        PNG plot and JSON record to write.
    quick : bool
        Fewer cases and rounds: a look, not a measurement.
    rounds : None or int
        Interleaved rounds; None is the suite's default.
    files : sequence of path
        Real clips to measure instead of the rendered ones ("decode" only).
    only : str
        Take only the cases whose name contains this, as "720 crop".
    threads : int
        Cores and threads for every competitor (not "frames").
    clock : {"wall", "cpu"}
        Which clock the tables show; the CPU clock holds on a machine that other programs share.

    Returns
    -------
    dict
        What ``json`` gets.

    Raises
    ------
    ValueError
        For an unknown suite or clock.
    """
    if suite not in SUITES:
        raise ValueError(f"suite: expected one of {', '.join(SUITES)}, got {suite!r}")
    if clock not in ("wall", "cpu"):
        raise ValueError(f"clock: expected 'wall' or 'cpu', got {clock!r}")
    if suite != "decode" and files:
        raise ValueError("files: only for the decode suite")
    if suite == "frames" and threads != 1:
        raise ValueError("threads: not for the frames suite")
    for path in (plot, json):
        if path is not None and not path.parent.is_dir():
            raise ValueError(f"{path}: no such folder; it must exist before a long run")
    from bench import (
        bench_clips,
        bench_decode,
        bench_encode,
        bench_frames,
        bench_fusion,
        bench_log_mel,
        bench_losses,
        bench_sparse,
        bench_system,
        report,
        timing,
    )

    cores = timing.pin(threads)
    machine = timing.machine(cores)
    progress = report.progress()
    if suite == "decode":
        result = bench_decode.run(
            quick=quick,
            rounds=rounds,
            files=files,
            only=only,
            threads=threads,
            clock=clock,
            progress=progress,
        )
    elif suite == "sparse":
        result = bench_sparse.run(
            quick=quick, rounds=rounds, only=only, threads=threads, clock=clock, progress=progress
        )
    elif suite in ("log_mel", "system", "clips", "encode"):
        pipeline = {
            "log_mel": bench_log_mel.run,
            "system": bench_system.run,
            "clips": bench_clips.run,
            "encode": bench_encode.run,
        }[suite]
        result = pipeline(
            quick=quick, rounds=rounds, only=only, threads=threads, clock=clock, progress=progress
        )
    elif suite in ("fusion", "losses"):
        measured = bench_fusion.SUITE if suite == "fusion" else bench_losses.SUITE
        result = measured.run(
            quick=quick, rounds=rounds, only=only, threads=threads, clock=clock, progress=progress
        )
    else:
        result = bench_frames.run(quick=quick, rounds=rounds, only=only, clock=clock, progress=progress)
    result["machine"] = machine
    report.table(result)
    if json is not None:
        json.write_text(_json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if plot is not None:
        report.plot(result, plot)
    return result
