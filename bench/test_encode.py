"""pytest-benchmark form of the encode suite: one group per case."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.bench_encode import CASES, COMPETITORS, EncodeCase, prepare


@pytest.mark.parametrize("competitor", COMPETITORS)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name.replace(" ", "-").replace(",", ""))
def test_encode(benchmark: Any, tmp_path: Path, case: EncodeCase, competitor: str) -> None:
    prepared = prepare(case, [competitor], tmp_path)
    if competitor in prepared.absent:
        pytest.skip(prepared.absent[competitor])
    benchmark.group = f"encode {case.name}"
    benchmark.extra_info.update(frames=case.frames)
    benchmark.pedantic(prepared.runs[competitor], rounds=5, warmup_rounds=1)
