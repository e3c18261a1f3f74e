"""Which implementation an op runs on: chosen by the tensors' device, or forced by name.

``reference`` is plain torch, the oracle that the others are tested against; ``cpu`` is the compiled core;
``cuda`` and ``triton`` are the kernels for GPUs.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType

from mmcore.errors import UnsupportedError

__all__ = ["BACKENDS", "active_backend", "backend", "forced_backend", "load_backend", "missing_backends"]

BACKENDS = ("reference", "cpu", "cuda", "triton")

_forced: ContextVar[str | None] = ContextVar("mmcore_backend", default=None)


def missing_backends() -> dict[str, str]:
    """Backends that cannot be used here, each with the reason."""
    missing = {}
    try:
        from mmcore import _core

        _core.isa()
    except (ImportError, ValueError) as error:
        missing["cpu"] = str(error)
    if importlib.util.find_spec("mmcore._cuda") is None:
        missing["cuda"] = (
            "this build has no mmcore._cuda; build mmcore from its sources with nvcc on the PATH"
        )
    if importlib.util.find_spec("triton") is None:
        missing["triton"] = "the package triton is not installed: pip install 'mmcore[triton]'"
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
    name : {"reference", "cpu", "cuda", "triton"}

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


def forced_backend() -> str | None:
    """Return what :func:`backend` forces here, None outside of it."""
    return _forced.get()


def active_backend(
    device: str = "cpu", implemented: tuple[str, ...] = ("reference", "cpu"), forced: str | None = None
) -> str:
    """Backend of an op for tensors on a kind of device.

    ``forced``, else what :func:`backend` forces, else MMCORE_BACKEND, else the device's own: "cpu", "triton"
    or "cuda" for "cuda", and the reference, which is plain torch, for every other. UnsupportedError if the op
    or the device does not have it.
    """
    name = forced or _forced.get()
    if name is None:
        variable = os.environ.get("MMCORE_BACKEND")
        if variable:
            name = _check(variable, "MMCORE_BACKEND")
        else:
            own = (b for b in _OF_DEVICE.get(device, ()) if b in implemented)
            name = next(own, "reference")
    if name not in implemented or (name in ("cpu", "cuda") and device != name):
        raise UnsupportedError(
            f"backend {name!r} does not have this op for tensors on {device!r};"
            " backend 'reference' has it for every device"
        )
    return name


_OF_DEVICE = {"cpu": ("cpu",), "cuda": ("triton", "cuda")}
_loaded: dict[str, ModuleType] = {}


def load_backend(name: str) -> ModuleType:
    """Module of a backend: its functions are named as the ops and take checked arguments."""
    module = _loaded.get(name)
    if module is None:
        reason = missing_backends().get(name)
        if reason is not None:
            raise UnsupportedError(
                f"backend {name!r} is not available: {reason}; backend 'reference' always is"
            )
        module = _loaded[name] = importlib.import_module(f"mmcore.backends.{name}")
    return module
