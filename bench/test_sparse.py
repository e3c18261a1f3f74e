"""pytest-benchmark form of the sparse suite: one group per row, the rows of a quick run, on one core."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from bench.bench_sparse import OURS, SAVED, agree, true_frames
from bench.cases import Job, SparseCase, sparse_cases
from bench.peers import Competitor
from bench.sparse_peers import SPARSE_PEERS, decode_to_last, mmcore_sparse

_CASES = [c for c in sparse_cases(1) if c.clip in ("h264 1280x720", "h264 340x256")]
_EVERYONE = (mmcore_sparse(OURS), mmcore_sparse(SAVED, saved_index=True), *SPARSE_PEERS)


@pytest.fixture(scope="module", params=_CASES, ids=lambda c: c.name)
def job(request: pytest.FixtureRequest) -> Job:
    case: SparseCase = request.param
    return case.job()


@pytest.fixture(scope="module")
def truth(job: Job) -> Mapping[int, torch.Tensor]:
    return true_frames(job)


def test_yardstick(benchmark: Any, job: Job) -> None:
    benchmark.group = f"sparse {job.name}"
    assert benchmark.pedantic(decode_to_last, (job,), rounds=3, warmup_rounds=1) == 0


@pytest.mark.parametrize("competitor", _EVERYONE, ids=lambda c: c.name)
def test_sparse(benchmark: Any, job: Job, truth: Mapping[int, torch.Tensor], competitor: Competitor) -> None:
    if (reason := competitor.missing()) is not None:
        pytest.skip(reason)
    run = competitor.prepare(job, 1)
    agree(competitor, run(None), job, truth)
    benchmark.group = f"sparse {job.name}"
    benchmark.pedantic(run, (None,), rounds=3, warmup_rounds=1)
