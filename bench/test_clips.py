"""pytest-benchmark form of the clips suite: one group per case."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from bench.bench_clips import CASES, Prepared, prepare
from bench.clip_peers import PEERS, ClipCase, Peer


@functools.cache
def _prepared(case: ClipCase) -> Prepared:
    return prepare(case, PEERS)


@pytest.mark.parametrize("competitor", PEERS, ids=lambda p: p.name.replace(" ", "-"))
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name.replace(" ", "-").replace(",", ""))
def test_clips(benchmark: Any, case: ClipCase, competitor: Peer) -> None:
    prepared = _prepared(case)
    if competitor.name in prepared.absent:
        pytest.skip(prepared.absent[competitor.name])
    benchmark.group = f"clips {case.name}"
    benchmark.extra_info.update(clips=len(case.starts))
    benchmark.pedantic(prepared.runs[competitor.name], rounds=3, warmup_rounds=1)
