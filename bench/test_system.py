"""pytest-benchmark form of the system suite: one group per case, on the CPU."""

from __future__ import annotations

import functools
import time
from typing import Any

import pytest

from bench.bench_system import CASES, EAGER, OURS, SystemCase, Workload

_prepared = functools.cache(functools.partial(Workload, device="cpu"))


@pytest.mark.parametrize("competitor", [OURS, EAGER])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name.replace(" ", "-").replace(",", ""))
def test_system(benchmark: Any, case: SystemCase, competitor: str) -> None:
    work = _prepared(case)
    work.check()
    benchmark.group = f"system {case.name}"
    benchmark.pedantic(work.step, args=(competitor, time.perf_counter), rounds=5, warmup_rounds=1)
