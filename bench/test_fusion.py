"""pytest-benchmark form of the fusion suite: one group per case, memory as the process has it."""

from __future__ import annotations

from typing import Any

import pytest

from bench.bench_fusion import CASES, FusionCase, competitors, least_bytes, prepare

_CALLS = [pytest.param(c, n, id=f"{c.name}-{n}".replace(" ", "-")) for c in CASES for n in competitors(c)]


@pytest.mark.parametrize(("case", "competitor"), _CALLS)
def test_weighted_fusion(benchmark: Any, case: FusionCase, competitor: str) -> None:
    prepared = prepare(case, [competitor])
    if competitor in prepared.absent:
        pytest.skip(prepared.absent[competitor])
    benchmark.group = f"weighted_fusion {case.name}"
    benchmark.extra_info.update(least_bytes=least_bytes(case))
    benchmark.pedantic(
        prepared.jobs[competitor].run, rounds=5, iterations=200 if case.small else 1, warmup_rounds=2
    )
