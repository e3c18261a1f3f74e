"""FFmpeg's own NVDEC decoder without a GPU: on drivers that are stubs, in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from av.codec.hwaccel import hwdevices_available

TESTS = Path(__file__).parents[1]
SOURCE, PROGRAM = TESTS / "core" / "nvdec_stub.c", TESTS / "decoding" / "nvdec_on_stub.py"
COMPILER = shutil.which(os.environ.get("CC", "cc"))
LIBRARIES = {"libcuda.so.1": [], "libnvcuvid.so.1": ["-DCUVID"]}

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or COMPILER is None or "cuda" not in hwdevices_available(),
    reason="needs Linux, a C compiler, and PyAV with CUDA",
)
NAMES = [
    *(f"planes, {kind}" for kind in ("h264", "interlaced", "high10", "hevc", "hevc10", "hevc444")),
    *(f"planes, {kind}" for kind in ("vp8", "vp9", "av1")),
    "batches",
    "rotation",
    "planes outlive the decoder",
    "forked process",
    "damaged file",
    "size changes",
    "an engine that fails",
    "many files and clips",
    "fallbacks",
    "cropped at the left",
    "contexts",
]


def run(folder: Path) -> dict[str, str]:
    for name, options in LIBRARIES.items():
        command = [COMPILER or "cc", "-O1", "-shared", "-fPIC", f"-Wl,-soname,{name}", *options]
        subprocess.run([*command, str(SOURCE), "-o", str(folder / name)], check=True)
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    command = [sys.executable, str(PROGRAM), str(folder)]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    found: dict[str, str] = json.loads(result.stdout.strip().splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return run(tmp_path_factory.mktemp("stub"))


@pytest.mark.parametrize("name", NAMES)
def test_on_stub(name: str, found: dict[str, str]) -> None:
    assert not found[name], found[name]


def test_every_check_is_looked_at(found: dict[str, str]) -> None:
    assert sorted(found) == sorted(NAMES)
