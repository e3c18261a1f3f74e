"""Pin the benchmark run to one core before anything is measured."""

from __future__ import annotations

import pytest

from bench import timing


@pytest.fixture(scope="session", autouse=True)
def _one_core() -> None:
    timing.pin(1)
