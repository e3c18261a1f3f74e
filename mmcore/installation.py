"""What this installation is made of and can use here."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

from mmcore import _core
from mmcore.backends import BACKENDS, missing_backends
from mmcore.threads import get_num_threads

__all__ = ["build_info"]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def build_info() -> dict[str, Any]:
    """Versions, instruction sets and backends of this installation.

    Returns
    -------
    dict
        ``version``, ``compiler``, ``isa`` (in use; None if MMCORE_ISA forbids every one), ``isa_available``,
        ``backends``, ``backends_missing`` (name to reason), ``num_threads``, ``python``, ``platform`` and
        ``packages`` (name to version, None where absent). Plain values, ready for JSON.

    Examples
    --------
    >>> import mmcore
    >>> "base" in mmcore.build_info()["isa_available"]
    True
    """
    missing = missing_backends()
    return {
        "version": _core.__version__,
        "compiler": _core.compiler,
        "isa": None if "cpu" in missing else _core.isa(),
        "isa_available": _core.available_isas(),
        "backends": [b for b in BACKENDS if b not in missing],
        "backends_missing": missing,
        "num_threads": get_num_threads(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in ("torch", "numpy", "av", "triton")},
    }
