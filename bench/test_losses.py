"""pytest-benchmark form of the losses suite: one group per case, memory as the process has it."""

from __future__ import annotations

from typing import Any

import pytest

from bench.bench_losses import CASES, LossCase, competitors, least_bytes, prepare

_CALLS = [
    pytest.param(c, n, id=f"{c.name}-{n}".replace(" ", "-").replace(",", ""))
    for c in CASES
    for n in competitors(c)
]


@pytest.mark.parametrize(("case", "competitor"), _CALLS)
def test_losses(benchmark: Any, case: LossCase, competitor: str) -> None:
    prepared = prepare(case, [competitor])
    if competitor in prepared.absent:
        pytest.skip(prepared.absent[competitor])
    job = prepared.jobs[competitor]
    benchmark.group = f"losses {case.name}"
    benchmark.extra_info.update(least_bytes=least_bytes(case))
    if case.large or case.contrastive:
        benchmark.pedantic(job.run, setup=job.refresh, rounds=5, warmup_rounds=2)
    else:
        benchmark.pedantic(job.run, rounds=5, iterations=200, warmup_rounds=2)
