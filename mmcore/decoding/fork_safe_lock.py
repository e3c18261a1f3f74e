"""The lock that threads take turns by, of objects that may be forked and pickled."""

from __future__ import annotations

import os
import threading
from typing import Any

__all__ = ["ForkSafeLock"]


class ForkSafeLock:
    """A re-entrant lock, which is free in a process forked while it was held, and in a pickled copy."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._pid = os.getpid()

    def __enter__(self) -> None:
        if self._pid != os.getpid():
            self._reset()  # the thread that may have held it does not live here
        self._lock.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self._lock.release()

    def __reduce__(self) -> Any:
        return ForkSafeLock, ()
