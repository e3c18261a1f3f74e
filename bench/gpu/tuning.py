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
from mmcore.backends import replay
from mmcore.backends.triton import fusion, losses

__all__ = ["compile_all", "run"]

_CASES = (
    "fp32 weights (M)",
    "bf16 weights (M)",
    "fp32 LayerNorm",
    "bf16 LayerNorm",
    "align 640 to 128, linear",
)
_SHOWN = 4  # of each kernel

Config = tuple[int, bool, int]
"""Warps, whether all features are loaded before the first is used, programs for each multiprocessor."""


def compile_all(bench: Bench) -> None:
    """Compile this part's share of all variants, with a small batch."""
    part, parts = bench.part
    compiled = {(case.name, backward, c[:2]): (case, backward, c) for case, backward, c in _variants()}
    for i, (case, backward, config) in enumerate(compiled.values()):
        if i % parts == part and not (bench.dry and i % 12):
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
        configs = [config for _, _, config in group][:: 9 if bench.dry else 1]
        case = next(c for c, *_ in suite.CASES if c.name == name)
        if bench.dry:
            case = replace(case, shape=(1, 2, 768), steps=4 if case.steps else 0)
        with bench.attempt(title):
            call = _call(case, backward, bench)
            runs = {config: _with(config, call) for config in configs}
            _keep(bench, title, runs, call, bench.graphed)
    with bench.attempt("cross entropy"):
        _cross_entropy(bench)


def _variants() -> Iterator[tuple[FusionCase, bool, Config]]:
    """Configurations that differ in their programs alone are neighbours: they are compiled once."""
    for name in _CASES:
        case = next(c for c, *_ in suite.CASES if c.name == name)
        for backward in (False, True):
            # One warp does not hold the sums of norm_weight's and norm_bias's gradients.
            most = (2, 4, 8) if case.affine and backward else (1, 2, 4)
            for warps, keep in itertools.product(most, (True, False)):
                for programs in _programs(case, warps) if backward else (0,):
                    yield case, backward, (warps, keep, programs)


def _programs(case: FusionCase, warps: int) -> tuple[int, ...]:
    if case.affine:
        return tuple(max(1, w // warps) for w in (8, 12, 16))
    return 16, 32, 64


@contextmanager
def _chosen(config: Config) -> Iterator[None]:
    warps, keep, programs = config
    kept = fusion._tile, fusion._keeps, fusion._programs
    tile, _, count = kept

    def chosen(depth: int, whole: bool, live: int, sums: int = 0) -> fusion._Tile:
        return tile(depth, whole, live, sums)._replace(rows=1, warps=warps)

    fusion._tile = chosen
    fusion._keeps = lambda tile, live, sums=0: keep
    fusion._programs = lambda device, per: count(device, programs)
    try:
        with replay.disabled():
            yield
    finally:
        fusion._tile, fusion._keeps, fusion._programs = kept


def _with(config: Config, call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        with _chosen(config):
            return call()

    return run


def _call(case: FusionCase, backward: bool, bench: Bench) -> Callable[[], Any]:
    inputs = suite.on_device(replace(case, gradients=False), bench.device)
    return suite.kernels_alone(case, inputs, backward)


def _keep(
    bench: Bench,
    title: str,
    runs: dict[Any, Callable[[], Any]],
    now: Callable[[], Any],
    prepare: Callable[[Callable[[], Any]], Callable[[], Any]],
) -> None:
    """Time what runs at all, and note the best. ``prepare``: as a graph, which the host is no part of."""
    jobs = {"now": Job(prepare(now))}
    for config, run in runs.items():
        try:
            run()
            bench.synchronize()
            jobs[str(config)] = Job(prepare(run))
        except Exception as error:
            print(f"{title} {config}: {type(error).__name__}: {error}"[:300], flush=True)
    times = bench.interleave(jobs, 0.1 * len(jobs), (5, 9))
    bench.record["times"][title] = {name: t["ms"] for name, t in times.items()}
    best = sorted((name for name in times if name != "now"), key=lambda n: times[n]["ms"])[:_SHOWN]
    found = ", ".join(f"{n} {times[n]['ms']:.3f}" for n in best)
    bench.record["table"].append(f"tuning {title}: now {times['now']['ms']:.3f}; {found} ms")


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
    runs = {c: of(*c) for c in configs}
    _keep(bench, "CE 8192x128256 bf16 (block, warps, waves)", runs, call, lambda run: run)
