"""Interleaved timing on one core, and what the machine is.

Competitors run round-robin, each round in another order, so that a slow second hits all of them alike; every
figure is the median over the rounds of a ratio taken *within* a round. Two clocks are kept: wall time, and
the CPU time of the whole process, all threads included. On a quiet machine and one core they agree; where
other programs share the core the CPU clock is the one to read, and the report says which was used.
"""

from __future__ import annotations

import ctypes
import datetime
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

__all__ = ["Copy", "Samples", "interleave", "machine", "pin", "quartiles"]

_Key = TypeVar("_Key")

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def pin(threads: int) -> list[int]:
    """Keep this process to its last ``threads`` allowed cores, and torch and mmcore to that many threads."""
    import torch

    import mmcore

    available = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if available and len(available) < threads:
        raise ValueError(f"threads: {threads} asked for, but this process may use {len(available)} cores")
    cores = available[len(available) - threads :]
    if cores:
        os.sched_setaffinity(0, cores)
    torch.set_num_threads(threads)
    mmcore.set_num_threads(threads)
    return cores


@dataclass
class Samples:
    """Seconds of every round for one competitor, by both clocks."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def of(self, clock: str) -> list[float]:
        """The samples by the clock named "wall" or "cpu"."""
        return self.wall if clock == "wall" else self.cpu


def interleave(runs: Mapping[_Key, Callable[[], Any]], rounds: int) -> dict[_Key, Samples]:
    """Time every entry once a round, in rotating order; the caller has warmed them up."""
    names = list(runs)
    samples = {name: Samples() for name in names}
    gc.collect()
    gc.disable()  # a collection inside one competitor's turn would be charged to it
    try:
        for i in range(rounds):
            turn = i % len(names)
            for name in names[turn:] + names[:turn]:
                wall, cpu = time.perf_counter(), time.process_time()
                runs[
                    name
                ]()  # the result dies at once, as in a training loop: freeing it is part of the price
                samples[name].wall.append(time.perf_counter() - wall)
                samples[name].cpu.append(time.process_time() - cpu)
    finally:
        gc.enable()
    return samples


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def ratios(samples: Samples, base: Samples, clock: str) -> tuple[float, float, float]:
    """Quartiles of the per-round ratios to ``base``."""
    return quartiles([a / b for a, b in zip(samples.of(clock), base.of(clock), strict=True)])


class Copy:
    """The C library's copy of a buffer much larger than the caches; calling it copies once and returns 1."""

    def __init__(self, megabytes: int = 128) -> None:
        import torch

        self.source = torch.ones(megabytes << 20, dtype=torch.uint8)
        self.target = torch.zeros_like(
            self.source
        )  # written, so that its pages exist before the clock starts
        self.num_bytes = 2 * self.source.numel()
        """Bytes read plus written by one copy."""

    def __call__(self) -> int:
        """Copy once."""
        ctypes.memmove(self.target.data_ptr(), self.source.data_ptr(), self.source.numel())
        return 1


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            for line in f:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine(cores: Sequence[int]) -> dict[str, Any]:
    """Date, CPU, cores in use, and the versions of everything that takes part."""
    import importlib.metadata as metadata

    versions: dict[str, str] = {"python": platform.python_version()}
    for name in (
        "mmcore",
        "torch",
        "numpy",
        "av",
        "torchcodec",
        "decord",
        "opencv-python-headless",
        "transformers",
        "torchaudio",
        "librosa",
        "pysubs2",
    ):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    import mmcore

    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "cores_used": list(cores),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": versions,
        "mmcore_build": mmcore.build_info(),
    }
