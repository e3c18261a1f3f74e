"""For every test: media rendered once per run, optional real files, and what needs a GPU."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
import torch

# Programs that tests start import mmcore as it is installed: not from the source tree, which has no extension
# module, though it may be their working directory.
os.environ["PYTHONSAFEPATH"] = "1"

_LEFT_OUT = pytest.StashKey[dict[str, str]]()

_REAL_SUFFIXES = {".mp4", ".mkv", ".mov", ".webm", ".avi", ".ts"}


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_LEFT_OUT] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what has the marker ``gpu`` where there is no device."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """``-m gpu`` passes over modules whose packages a machine with a GPU may lack, such as PyAV."""
    report = yield
    if report.failed and collector.config.option.markexpr == "gpu":
        absent = re.search(r"ModuleNotFoundError: No module named '(\w+)", str(report.longrepr))
        if absent:
            collector.config.stash[_LEFT_OUT][collector.path.name] = absent[1]
            report.outcome = "skipped"
            report.longrepr = (str(collector.path), 0, f"Skipped: the package {absent[1]} is not installed")
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say in one line what was not run for want of a GPU, and in another what for want of packages."""
    skipped = terminalreporter.stats.get("skipped", [])
    count = sum("gpu" in getattr(report, "keywords", ()) for report in skipped)
    if count and not torch.cuda.is_available():
        why = "torch finds no CUDA device" if torch.version.cuda else "this torch is built without CUDA"
        terminalreporter.line(f"{count} GPU tests were not run: {why}", yellow=True)
    if left_out := config.stash[_LEFT_OUT]:
        packages = ", ".join(sorted(set(left_out.values())))
        terminalreporter.line(
            f"{len(left_out)} modules were passed over, not installed: {packages}", yellow=True
        )


@pytest.fixture(scope="session")
def media_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of media that the tests of one run share."""
    return tmp_path_factory.mktemp("media")


@pytest.fixture(scope="session")
def cached_media(media_dir: Path) -> Callable[[str, Callable[[Path], object]], Path]:
    """``cached_media(name, write)``: the file of that name, written by ``write(path)`` at its first use."""

    def get(name: str, write: Callable[[Path], object]) -> Path:
        path = media_dir / name
        if not path.exists():
            write(path)
        return path

    return get


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The CUDA frames kernels' bodies, compiled for the CPU."""
    import frames_emulator

    if frames_emulator.compiler() is None:
        pytest.skip("needs the sources and a C++ compiler")
    return frames_emulator.build(tmp_path_factory.mktemp("emulator"))


@pytest.fixture(scope="session")
def clip(cached_media: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """40 numbered H.264 frames, 96x128, 25 fps, B-frames, groups of 12."""
    from media import write_video

    return cached_media("clip.mp4", write_video)


def _real_media() -> list[Path]:
    folder = os.environ.get("MMCORE_TEST_MEDIA")
    if not folder:
        return []
    return sorted(p for p in Path(folder).iterdir() if p.suffix in _REAL_SUFFIXES)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``real_media`` runs a test on each file of the folder that MMCORE_TEST_MEDIA names, or skips it."""
    if "real_media" in metafunc.fixturenames:
        files = _real_media()
        reason = "MMCORE_TEST_MEDIA names no folder of media files"
        absent = [pytest.param(None, marks=pytest.mark.skip(reason=reason))]
        metafunc.parametrize("real_media", files or absent, ids=[p.name for p in files] or ["none"])
