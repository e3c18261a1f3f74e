"""The process-wide thread budget: how many threads mmcore's kernels and decoders may use."""

from __future__ import annotations

import operator
import os

__all__ = ["get_num_threads", "set_num_threads"]

_budget: int | None = None


def get_num_threads() -> int:
    """Threads that mmcore may use: what :func:`set_num_threads` set, else the cores of this process."""
    if _budget is not None:
        return _budget
    if hasattr(os, "sched_getaffinity"):  # Linux; respects taskset, cgroup cpusets and worker pinning
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def set_num_threads(num_threads: int) -> None:
    """Set the number of threads that mmcore may use in this process; results do not depend on it.

    Parameters
    ----------
    num_threads : int
        1 or more.

    Raises
    ------
    TypeError, ValueError
        If it is not a positive int.
    """
    global _budget
    try:
        value = operator.index(num_threads)
    except TypeError:
        raise TypeError(f"num_threads: expected an int of 1 or more, got {num_threads!r}") from None
    if value < 1:
        raise ValueError(f"num_threads: expected an int of 1 or more, got {num_threads!r}")
    _budget = value
