"""Build mmcore's extension modules in the source tree, where nothing can be installed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

__all__ = ["build"]

ROOT = Path(__file__).resolve().parents[2]
_SHOWN_LINES = 25


def build(log: Path) -> dict[str, Any]:
    """Configure, compile, and put the modules beside the package's Python files.

    Needs CMake, a C++ compiler and pybind11, and nvcc for the CUDA kernels; takes ninja if it is there.

    Parameters
    ----------
    log : path
        Gets what the tools say.

    Returns
    -------
    dict
        "seconds", "modules" (names of the files), and "error" if it failed: the last lines.
    """
    start = time.monotonic()
    folder = ROOT / "build" / "gpu"
    found: dict[str, Any] = {"modules": []}
    try:
        for command in _commands(folder):
            with log.open("a", encoding="utf-8") as output:
                subprocess.run(command, cwd=ROOT, stdout=output, stderr=output, check=True)
        for module in sorted(folder.glob("_*.so")):
            shutil.copy(module, ROOT / "mmcore")
            found["modules"].append(module.name)
    except (OSError, subprocess.CalledProcessError) as error:
        last = log.read_text(encoding="utf-8").splitlines()[-_SHOWN_LINES:] if log.exists() else []
        found["error"] = "\n".join([*last, f"{type(error).__name__}: {error}"])
    return {"seconds": round(time.monotonic() - start, 1), **found}


def _commands(folder: Path) -> list[list[str]]:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    cmake = [sys.executable, "-m", "cmake"] if importlib.util.find_spec("cmake") else ["cmake"]
    done = subprocess.run(
        [sys.executable, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True, check=True
    )
    ninja = ["-G", "Ninja"] if shutil.which("ninja") else []
    configure = [
        *cmake, "-S", str(ROOT), "-B", str(folder), *ninja, "-DCMAKE_BUILD_TYPE=Release",
        f"-DSKBUILD_PROJECT_VERSION={version}", f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={done.stdout.strip()}",
    ]  # fmt: skip
    return [configure, [*cmake, "--build", str(folder), "-j", str(os.cpu_count() or 1)]]
