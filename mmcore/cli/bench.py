"""``mmcore bench``: run the benchmark suites of the source tree."""

from __future__ import annotations

import importlib
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from mmcore.cli.render import fail

__all__ = ["bench"]


class Suite(StrEnum):
    """The suites that exist."""

    frames = "frames"
    decode = "decode"
    sparse = "sparse"
    fusion = "fusion"
    losses = "losses"
    log_mel = "log_mel"
    system = "system"
    clips = "clips"
    encode_ = "encode"  # a str has a method encode


class Clock(StrEnum):
    """What is measured."""

    wall = "wall"
    cpu = "cpu"


def bench(
    suite: Annotated[
        Suite,
        typer.Argument(
            help="frames: the kernel alone; decode: files to tensors, with peers; sparse: some frames"
            " of files, with peers; fusion, losses: that op, forward and backward, with peers;"
            " log_mel: that op, with peers; system: a training step from files to gradients; clips:"
            " pictures, sound and words of files, with peers; encode: frames to files, with peers."
        ),
    ],
    plot: Annotated[Path | None, typer.Option(help="Write a plot of the result to this PNG file.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the result to this JSON file.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer cases and rounds: a look, not a measurement.")
    ] = False,
    rounds: Annotated[int | None, typer.Option(min=1, help="Interleaved rounds.")] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option(help="Measure this clip, repeatable; decode only.", show_default=False),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads for every competitor; not for frames.")] = 1,
    clock: Annotated[Clock, typer.Option(help="cpu: for a machine that other programs share.")] = Clock.wall,
) -> None:
    """Measure mmcore beside its peers (needs the source tree)."""
    package = _load()
    if package is None:
        fail(
            "the benchmarks are not part of the installed package: clone the source tree and run this there"
            " (expected bench/__init__.py in the working directory)",
            2,
        )
    package.run(
        suite.value,
        plot=plot,
        json=json,
        quick=quick,
        rounds=rounds,
        files=file or (),
        threads=threads,
        clock=clock.value,
    )


def _load() -> Any:
    """The package ``bench`` of the working directory or of this module's source tree, if there is one."""
    for root in (Path.cwd(), Path(__file__).resolve().parents[2]):
        # another project's folder of that name has no suite of ours
        if (root / "bench" / "__init__.py").is_file() and (root / "bench" / "bench_frames.py").is_file():
            sys.path.insert(0, str(root))
            return importlib.import_module("bench")
    return None
