"""Tests that need a GPU: found by one marker, skipped for one reason, and counted."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CONFIGURATION = """
[pytest]
markers = gpu: needs a CUDA device
addopts = -p no:cacheprovider --import-mode=importlib --strict-markers -ra
"""
TESTS = """
import pytest

@pytest.mark.gpu
@pytest.mark.parametrize("i", range(3))
def test_on_a_gpu(i):
    pass

@pytest.mark.skipif(True, reason="needs the moon")
def test_of_something_else():
    pass

def test_anywhere():
    pass
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "pytest.ini").write_text(CONFIGURATION)
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_with_a_package.py").write_text("import a_package_that_is_not_there\n")
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_what_needs_a_gpu_is_skipped_and_counted(folder: Path) -> None:
    found = run(folder, "test_some.py")
    assert "1 passed, 4 skipped" in found.stdout, found.stdout
    why = "torch finds no CUDA device" if torch.version.cuda else "this torch is built without CUDA"
    assert f"3 GPU tests were not run: {why}" in found.stdout
    assert "needs a CUDA device" in found.stdout


def test_the_marker_chooses_them_and_passes_over_absent_packages(folder: Path) -> None:
    found = run(folder, "-m", "gpu")
    assert "2 deselected" in found.stdout, found.stdout
    assert "1 modules were passed over, not installed: a_package_that_is_not_there" in found.stdout
    assert found.returncode == 0
    assert run(folder).returncode == 2, "without the marker it is an error"
