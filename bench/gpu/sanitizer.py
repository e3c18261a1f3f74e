"""compute-sanitizer over a few cases of every kernel: memcheck for addresses, racecheck for shared memory.

Each tool runs this module as a program of its own, on as many cases as its time allows. Torch's allocator is
told to keep nothing, so that each tensor is an allocation and one byte behind it is an error.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import torch

from bench.gpu.measure import Bench, NotRun

__all__ = ["count_errors", "run"]

TOOLS = ("memcheck", "racecheck")
_PLACES = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer", "/opt/cuda/bin")
_SUMMARY = {
    "memcheck": re.compile(r"ERROR SUMMARY: (\d+) error"),
    "racecheck": re.compile(r"RACECHECK SUMMARY: (\d+) hazard"),
}
_EVERY = {"frames": 29, "fusion": 17, "losses": 17, "contrastive": 9}
_TO_END = 25.0  # seconds kept back: the tool writes its summary after the program


def run(bench: Bench) -> None:
    """Run this part's tools; how many errors each found is what counts."""
    if bench.dry:
        with bench.attempt("cases, without the tools"):
            bench.record["cases"] = run_cases(torch.device("cpu"), bench.remaining(), every=150)
    part, parts = bench.part
    for tool in TOOLS[part::parts]:
        with bench.attempt(tool):
            if bench.dry:
                raise NotRun("no GPU in a dry run")
            _run_tool(bench, tool)


def _find() -> str:
    named = (os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ)
    places = [os.path.join(place, "bin") for place in named]
    path = os.pathsep.join([os.environ.get("PATH", ""), *places, *_PLACES])
    found = shutil.which("compute-sanitizer", path=path)
    if found is None:
        raise NotRun("compute-sanitizer is not installed: it comes with the CUDA toolkit")
    return found


def _run_tool(bench: Bench, tool: str) -> None:
    seconds = bench.remaining() - _TO_END
    command = [_find(), "--tool", tool, "--target-processes", "application-only", "--print-limit", "20"]
    command += [sys.executable, "-u", "-m", "bench.gpu.sanitizer", str(seconds)]
    start = time.monotonic()
    done = subprocess.run(
        command,
        env=dict(os.environ, PYTORCH_NO_CUDA_MEMORY_CACHING="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    print(done.stdout, flush=True)
    errors, cases, first = count_errors(tool, done.stdout)
    bench.record[tool] = errors
    bench.record.setdefault("table", []).append(
        f"{tool}: {errors} errors over {cases} cases, {time.monotonic() - start:.0f} s"
    )
    if first:
        bench.record[f"{tool}, first lines"] = first
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    if failed:
        raise RuntimeError(f"under {tool}: {len(failed)} cases failed: {failed[0][:300]}")
    if not cases:
        raise RuntimeError(f"{tool} ran no case to its end, status {done.returncode}")


def count_errors(tool: str, output: str) -> tuple[int, int, list[str]]:
    """Errors that the tool found, cases that were run, and the first lines of what it said.

    Raises
    ------
    RuntimeError
        If the tool did not come to its summary.
    """
    summaries = _SUMMARY[tool].findall(output)
    lines = output.splitlines()
    if not summaries:
        raise RuntimeError(
            f"{tool} gave no summary: " + " | ".join(line.strip() for line in lines[-4:])[:600]
        )
    # A program that dies is an error of its own, which the summary counts.
    said = [line for line in lines if line.startswith("=========") and line.strip("= ")]
    errors = sum(map(int, summaries))
    return errors, sum(line.startswith("DONE ") for line in lines), said[1:25] if errors else []


# ---- what runs under the tools


def run_cases(device: torch.device, seconds: float, every: int = 0) -> int:
    """Check cases of all kernels in turn until the time is spent; print each; give how many."""
    start = time.monotonic()
    count = 0
    for name, check in _cases(device, every):
        if time.monotonic() - start > seconds:
            print("the time was spent", flush=True)
            break
        try:
            check()
        except Exception as error:
            print(f"FAILED {name}: {type(error).__name__}: {error}"[:600], flush=True)
            if device.type == "cpu":
                raise
            continue
        print(f"DONE {name}", flush=True)
        count += 1
    return count


def _cases(device: torch.device, every: int) -> Iterator[tuple[str, Callable[[], None]]]:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
    frames = _frames(device, every or _EVERY["frames"])
    kinds = [frames, frames, frames]  # three of them in each turn: the others have to be compiled first
    if device.type != "cpu":  # a dry run has them in the section "correctness"
        kinds += [_triton("triton_harness", "fusion"), _triton("triton_losses_harness", "losses"), _pairs()]
    yield from (case for case in chain.from_iterable(zip_longest(*kinds)) if case is not None)


def _frames(device: torch.device, every: int) -> Iterator[tuple[str, Callable[[], None]]]:
    """Large pictures by every way of converting, then cases of the whole table."""
    from cases import FRAME_CASES
    from frames_harness import check_planes_on

    import mmcore
    from bench.gpu.frames import WAYS, way

    def of(case: Any, method: int) -> Callable[[], None]:
        def check() -> None:
            if device.type == "cpu":
                with mmcore.backend("cpu"):
                    check_planes_on(case, device)
            else:
                with mmcore.backend("cuda"), way(method):
                    check_planes_on(case, device)

        return check

    for name, method in reversed(WAYS.items()) if device.type != "cpu" else ():
        for case in _large_pictures():
            yield f"frames by {name} {case.id}", of(case, method)
    for case in FRAME_CASES[::every]:
        yield f"frames {case.id}", of(case, 0)


def _large_pictures() -> list[Any]:
    """Those of the tests that need several blocks, if pytest is there."""
    try:
        from test_frames_cuda import STREAMED
    except ImportError as error:
        print(f"left out: {error}", flush=True)
        return []
    return list(STREAMED)


def _triton(module: str, name: str) -> Iterator[tuple[str, Callable[[], None]]]:
    harness = __import__(module)

    def of(case: object) -> Callable[[], None]:
        return lambda: harness.check(case, "cuda")

    for case in harness.KERNEL_CASES[:: _EVERY[name]]:
        yield f"{name} {case.id}", of(case)


def _pairs() -> Iterator[tuple[str, Callable[[], None]]]:
    import triton_contrastive_harness as harness

    def of(case: Any, how: dict[str, Any]) -> Callable[[], None]:
        return lambda: harness.check(case, "cuda", **how)

    for case, how in harness.checks()[:: _EVERY["contrastive"]]:
        yield f"contrastive {case.id}", of(case, how)


if __name__ == "__main__":
    print(f"{run_cases(torch.device('cuda:0'), float(sys.argv[1]))} cases", flush=True)
