"""The sample clip and a way to run commands, for the tests of the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mmcore.sample import SampleClip, write_sample


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> SampleClip:
    """Two seconds of the sample, 60 frames of 160x96, with events in frames 15 and 45."""
    return write_sample(tmp_path_factory.mktemp("sample") / "sample.mp4", seconds=2, width=160, height=96)


@pytest.fixture
def run() -> Callable[..., Any]:
    """Run a command in this process; the result has ``exit_code`` and ``output`` (stdout and stderr)."""
    from mmcore.cli.app import app

    def call(*args: str | Path) -> Any:
        result = CliRunner().invoke(app, [str(a) for a in args])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return call
