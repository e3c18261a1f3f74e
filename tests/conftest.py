"""Fixtures for every test: media rendered once per run, and optional real files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

# Programs that tests start import mmcore as it is installed: not from the source tree, which has no extension
# module, though it may be their working directory.
os.environ["PYTHONSAFEPATH"] = "1"

_REAL_SUFFIXES = {".mp4", ".mkv", ".mov", ".webm", ".avi", ".ts"}


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
