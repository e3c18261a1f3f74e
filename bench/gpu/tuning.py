"""Other tiles, warps and numbers of programs for the Triton kernels, timed on the shapes that people have.

Prints the best of each kernel beside what the backends choose now, so that their choice can follow. Nothing
is tuned at run time: a user's call compiles one kernel. ``compile_all`` fills Triton's cache on all cores
first.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
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
    with bench.attempt("4 heads"):
        _small_heads(bench)


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

    def chosen(*arguments: Any) -> fusion._Tile:
        return tile(*arguments)._replace(rows=1, warps=warps)

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
    # Warps that share a row, parts of it on their way for each thread, rows on a multiprocessor at a time.
    names = ("WARP_BYTES", "VECTORS", "RESIDENT_WARPS")
    kept = [getattr(losses, name) for name in names]

    def call() -> Any:
        return multi_task_value_and_grad([logits], [target], tasks)

    def choose(values: Sequence[int]) -> None:
        for name, value in zip(names, values, strict=True):
            setattr(losses, name, value)

    def of(*values: int) -> Callable[[], Any]:
        def run() -> Any:
            choose(values)
            try:
                with replay.disabled():
                    return call()
            finally:
                choose(kept)

        return run

    configs = [*itertools.product((8192, 16384, 32768), (2, 3, 4, 6), (16, 32))][:: 10 if bench.dry else 1]
    runs: dict[Any, Callable[[], Any]] = {c: of(*c) for c in configs}
    _keep(bench, f"CE 8192x128256 bf16 {names}", runs, call, lambda run: run)


def _small_heads(bench: Bench) -> None:
    shapes = (("cross_entropy", 400), ("bce_with_logits", 80), ("mse", 256), ("smooth_l1", 64))
    outputs = [torch.randn(64, n, device=bench.device) for _, n in shapes]
    targets = [torch.rand(64, n, device=bench.device) for _, n in shapes]
    targets[0] = torch.randint(0, 400, (64,), device=bench.device)
    tasks = [getattr(Task, kind)() for kind, _ in shapes]

    def call() -> Any:
        return multi_task_value_and_grad(outputs, targets, tasks)

    runs: dict[Any, Callable[[], Any]] = {f"overlapped {v}": _overlapped(v, call) for v in (True, False)}
    _keep(bench, "4 heads", runs, call, bench.graphed)


def _overlapped(value: bool, call: Callable[[], Any]) -> Callable[[], Any]:
    """With sums that are launched before what they sum ends, and without."""

    def run() -> Any:
        kept = losses.OVERLAPPED
        losses.OVERLAPPED = value
        try:
            with replay.disabled():
                return call()
        finally:
            losses.OVERLAPPED = kept

    return run
