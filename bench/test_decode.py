"""pytest-benchmark form of the end-to-end suite: one group per job and regime, pooled output."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench import media
from bench.bench_decode import OURS, check, competitors
from bench.cases import DECODE_CASES, DecodeCase, Job
from bench.peers import PEERS, Competitor, decode_raw, frame_count, mmcore_competitor

_CASES = [c for c in DECODE_CASES if c.most_times_raw is not None]
_EVERYONE = (mmcore_competitor(OURS), *PEERS)


@pytest.fixture(scope="module", params=_CASES, ids=lambda c: f"{c.codec}-{c.width}x{c.height}-{c.kind}")
def job(request: pytest.FixtureRequest) -> Job:
    case: DecodeCase = request.param
    return Job.make(media.clip(case.codec, case.width, case.height), case.kind)


@pytest.fixture(scope="module")
def reference(job: Job) -> torch.Tensor:
    return competitors()[0][0].prepare(job, 1)(None).clone()


def test_raw(benchmark: Any, job: Job) -> None:
    benchmark.group = f"video_decoder {job.name}"
    frames = benchmark.pedantic(decode_raw, (job, 1), rounds=3, warmup_rounds=1)
    assert frames == frame_count(job)


@pytest.mark.parametrize("competitor", _EVERYONE, ids=lambda c: c.name)
def test_decode(benchmark: Any, job: Job, reference: torch.Tensor, competitor: Competitor) -> None:
    if (reason := competitor.missing()) is not None:
        pytest.skip(reason)
    run = competitor.prepare(job, 1)
    check(competitor.name, run(None), reference, competitor.mean_levels)
    out = None if competitor.name == OURS else torch.zeros_like(reference)
    benchmark.group = f"video_decoder {job.name}"
    benchmark.pedantic(run, (out,), rounds=3, warmup_rounds=1)
