"""Other tiles, warps and numbers of programs for the Triton kernels, timed on the shapes that people have.

Prints the best of each kernel beside what the backends choose now, so that their choice can follow. Nothing
is tuned at run time: a user's call compiles one kernel. ``compile_all`` fills Triton's cache on all cores
first.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from bench.bench_fusion import FusionCase
from bench.gpu import fusion as suite
from bench.gpu.measure import Bench, Job
from mmcore import Task, multi_task_value_and_grad
from mmcore.backends import replay, triton
from mmcore.backends.triton import fusion, losses
from mmcore.ops.fusion import FusionOptions

__all__ = ["compile_all", "run"]

_CASES = (
    "fp32 weights (M)",
    "bf16 weights (M)",
    "fp32 LayerNorm",
    "bf16 LayerNorm",
    "align 640 to 128, linear",
)
_SHOWN = 4  # of each kernel

Config = tuple[int, int, int, int]
"""Rows, block, warps, programs for each multiprocessor."""


def compile_all(bench: Bench) -> None:
    """Compile this part's share of all variants, with a small batch."""
    part, parts = bench.part
    for i, (case, backward, config) in enumerate(_variants()):
        # Programs are no part of what is compiled.
        if i % parts == part and config[3] == 16 and not (bench.dry and i % 40):
            with bench.attempt(f"{case.name} {config}"), _chosen(config):
                _call(replace(case, shape=(2, *case.shape[1:])), backward, bench)()


def run(bench: Bench) -> None:
    """Time them; the record's table has the best."""
    table: list[str] = []
    bench.record["table"] = table
    bench.record["times"] = {}
    variants = itertools.groupby(_variants(), lambda v: (v[0].name, v[1]))
    for (name, backward), group in variants:
        title = f"{name}, {'backward' if backward else 'forward'}"
        configs = [config for _, _, config in group][:: 20 if bench.dry else 1]
        case = next(c for c, *_ in suite.CASES if c.name == name)
        if bench.dry:
            case = replace(case, shape=(1, 2, 768), steps=4 if case.steps else 0)
        with bench.attempt(title):
            call = _call(case, backward, bench)
            _keep(bench, title, {config: _with(config, call) for config in configs}, call)
    with bench.attempt("cross entropy"):
        _cross_entropy(bench)


def _variants() -> Iterator[tuple[FusionCase, bool, Config]]:
    for name in _CASES:
        case = next(c for c, *_ in suite.CASES if c.name == name)
        whole = case.norm is not None
        for backward in (False, True):
            blocks = (1024,) if whole or backward else (256, 1024)
            for rows, block, warps in itertools.product((1, 2, 4, 8), blocks, (1, 2, 4, 8, 16)):
                if not 4 <= rows * block // (32 * warps) <= 32:
                    continue
                for programs in (2, 4, 8, 16, 32) if backward else (16,):
                    yield case, backward, (rows, block, warps, programs)


@contextmanager
def _chosen(config: Config) -> Iterator[None]:
    rows, block, warps, programs = config
    tile, count = fusion._tile, fusion._programs
    fusion._tile = lambda depth, whole, live: fusion._Tile(rows, block, -(-depth // block), warps)
    fusion._programs = lambda device, per: count(device, programs)
    try:
        yield
    finally:
        fusion._tile, fusion._programs = tile, count


def _with(config: Config, call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        with _chosen(config):
            return call()

    return run


def _call(case: FusionCase, backward: bool, bench: Bench) -> Callable[[], Any]:
    inputs = suite.on_device(replace(case, gradients=False), bench.device)
    align = tuple(kind or "none" for kind in case.align)
    dtype = getattr(torch, case.dtype)
    options = FusionOptions(case.mode, case.norm, align, 1e-5, case.shape[1], dtype, False)
    arguments = (inputs.features, inputs.weights, inputs.mask, inputs.scale, inputs.shift, None, options)
    if not backward:
        return lambda: triton.weighted_fusion(*arguments)
    needs = (True, case.affine, case.affine, False, *(True,) * case.count)
    return lambda: triton.weighted_fusion_backward(inputs.grad, *arguments, needs)


def _keep(
    bench: Bench, title: str, runs: dict[Any, Callable[[], Any]], now: Callable[[], Any] | None
) -> None:
    """Time what runs at all, and note the best."""
    jobs: dict[str, Job] = {} if now is None else {"now": Job(now)}
    for config, run in runs.items():
        try:
            run()
            bench.synchronize()
            jobs[str(config)] = Job(run)
        except Exception as error:
            print(f"{title} {config}: {type(error).__name__}: {error}"[:300], flush=True)
    times = bench.interleave(jobs, 0.1 * len(jobs), (5, 9))
    bench.record["times"][title] = {name: t["ms"] for name, t in times.items()}
    best = sorted((name for name in times if name != "now"), key=lambda n: times[n]["ms"])[:_SHOWN]
    now_ms = f"now {times['now']['ms']:.3f}; " if "now" in times else ""
    bench.record["table"].append(
        f"tuning {title}: {now_ms}" + ", ".join(f"{n} {times[n]['ms']:.3f}" for n in best) + " ms"
    )


def _cross_entropy(bench: Bench) -> None:
    rows, columns = (4, 70) if bench.dry else (8192, 128256)
    logits = torch.randn(rows, columns, device=bench.device).to(torch.bfloat16)
    target = torch.randint(0, columns, (rows,), device=bench.device)
    tasks = [Task.cross_entropy()]
    kept = losses.MAX_BLOCK, losses._warps, losses._WAVES

    def call() -> Any:
        return multi_task_value_and_grad([logits], [target], tasks)

    def of(block: int, warps: int, waves: int) -> Callable[[], Any]:
        def run() -> Any:
            losses.MAX_BLOCK, losses._warps, losses._WAVES = block, lambda longest: warps, waves
            try:
                with replay.disabled():
                    return call()
            finally:
                losses.MAX_BLOCK, losses._warps, losses._WAVES = kept

        return run

    configs = [
        (block, warps, waves)
        for block, warps, waves in itertools.product(
            (2048, 4096, 8192, 16384, 32768), (4, 8, 16, 32), (4, 16, 64)
        )
        if 8 <= block // (32 * warps) <= 64
    ][:: 20 if bench.dry else 1]
    _keep(bench, "CE 8192x128256 bf16 (block, warps, waves)", {c: of(*c) for c in configs}, call)
