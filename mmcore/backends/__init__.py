"""Which implementation an op runs on: chosen by the tensors' device, or forced by name.

``reference`` is plain torch, the oracle that the others are tested against; ``cpu`` is the compiled core.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from mmcore.errors import UnsupportedError

__all__ = ["BACKENDS", "active_backend", "backend", "missing_backends"]

BACKENDS = ("reference", "cpu")

_forced: ContextVar[str | None] = ContextVar("mmcore_backend", default=None)


def missing_backends() -> dict[str, str]:
    """Backends that cannot be used here, each with the reason."""
    missing = {}
    try:
        from mmcore import _core

        _core.isa()
    except (ImportError, ValueError) as error:
        missing["cpu"] = str(error)
    return missing


def _check(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source}: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Run the ops inside the ``with`` block on one backend.

    Parameters
    ----------
    name : {"reference", "cpu"}

    Raises
    ------
    ValueError
        If the name is not a backend's.
    UnsupportedError
        If the backend cannot be used here; the message says why.

    Examples
    --------
    >>> import mmcore
    >>> with mmcore.backend("reference"):
    ...     pass
    """
    _check(name, "backend")
    reason = missing_backends().get(name)
    if reason is not None:
        raise UnsupportedError(f"backend {name!r} is not available: {reason}; backend 'reference' always is")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def active_backend() -> str:
    """Backend of tensors on the CPU: what :func:`backend` forces, else MMCORE_BACKEND, else "cpu"."""
    forced = _forced.get()
    if forced is not None:
        return forced
    variable = os.environ.get("MMCORE_BACKEND")
    return _check(variable, "MMCORE_BACKEND") if variable else "cpu"
