"""pytest-benchmark form of the frames suite: the time of 32 frames, which may stay in cache."""

from __future__ import annotations

from typing import Any

import pytest

from bench.bench_frames import CASES, FramesCase, floor_bytes, prepare


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name.replace(" ", "-"))
def test_frames_to_tensor(benchmark: Any, case: FramesCase) -> None:
    run, frames = prepare(case, 32)
    read, written = floor_bytes(case)
    benchmark.group = "frames_to_tensor"
    benchmark.extra_info.update(frames=frames, read_bytes=read, written_bytes=written)
    benchmark.pedantic(run, rounds=5, warmup_rounds=1)
