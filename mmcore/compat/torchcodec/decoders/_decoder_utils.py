"""Settings of GPU decoding: accepted and checked, so that code which makes them runs, but without effect."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["get_nvdec_cache_capacity", "set_cuda_backend", "set_nvdec_cache_capacity"]

_BACKENDS = {"nvdec": "default", "beta": "default", "ffmpeg": "ffmpeg"}
_backend = ContextVar("_backend", default="default")
_nvdec_cache_capacity = 20


@contextmanager
def set_cuda_backend(backend: str) -> Iterator[None]:
    """Context in which decoders for CUDA devices would use ``backend``.

    Parameters
    ----------
    backend : {"nvdec", "ffmpeg"}

    Raises
    ------
    ValueError
        For another backend.
    """
    if backend.lower() not in _BACKENDS:
        raise ValueError(f"Invalid CUDA backend ({backend}). Supported values are 'nvdec' and 'ffmpeg'.")
    token = _backend.set(_BACKENDS[backend.lower()])
    try:
        yield
    finally:
        _backend.reset(token)


def _get_cuda_backend() -> str:
    return _backend.get()


def set_nvdec_cache_capacity(capacity: int) -> None:
    """Set how many GPU decoders would be kept for reuse.

    Raises
    ------
    RuntimeError
        If ``capacity`` is negative.
    """
    global _nvdec_cache_capacity
    if operator.index(capacity) < 0:
        raise RuntimeError(f"NVDEC cache capacity must be non-negative, got {capacity}")
    _nvdec_cache_capacity = capacity


def get_nvdec_cache_capacity() -> int:
    """How many GPU decoders would be kept for reuse."""
    return _nvdec_cache_capacity
