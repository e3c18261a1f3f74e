"""pytest-benchmark form of the log_mel suite: one group per case."""

from __future__ import annotations

from typing import Any

import pytest

from bench.bench_log_mel import CASES, LogMelCase, competitors, prepare

_CALLS = [
    pytest.param(c, n, id=f"{c.name}-{n}".replace(" ", "-").replace(",", ""))
    for c in CASES
    for n in competitors(c)
]


@pytest.mark.parametrize(("case", "competitor"), _CALLS)
def test_log_mel(benchmark: Any, case: LogMelCase, competitor: str) -> None:
    prepared = prepare(case, [competitor])
    if competitor in prepared.absent:
        pytest.skip(prepared.absent[competitor])
    benchmark.group = f"log_mel {case.name}"
    benchmark.extra_info.update(frames=case.frames)
    benchmark.pedantic(prepared.runs[competitor], rounds=10, iterations=2, warmup_rounds=2)
