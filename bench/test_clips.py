"""pytest-benchmark form of the clips suite: one group per case."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from bench.bench_clips import CASES, prepare
from bench.clip_peers import ClipCase, Peer, peers

_prepared = functools.cache(prepare)
_CALLS = [
    pytest.param(c, p, id=f"{c.name}-{p.name}".replace(" ", "-").replace(",", ""))
    for c in CASES
    for p in peers(c)
]


@pytest.mark.parametrize(("case", "competitor"), _CALLS)
def test_clips(benchmark: Any, case: ClipCase, competitor: Peer) -> None:
    prepared = _prepared(case)
    if competitor.name in prepared.absent:
        pytest.skip(prepared.absent[competitor.name])
    benchmark.group = f"clips {case.name}"
    benchmark.extra_info.update(clips=len(case.starts))
    benchmark.pedantic(prepared.runs[competitor.name], rounds=3, warmup_rounds=1)
