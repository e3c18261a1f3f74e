"""Stopping a read before its end: a deadline, or the wish of another thread."""

from __future__ import annotations

import threading
import time

from mmcore.errors import DecodeTimeoutError

__all__ = ["Cancelled", "Control", "join_thread"]


class Cancelled(Exception):
    """The results are no longer wanted."""


class Control:
    """Asked between packets whether to go on.

    Parameters
    ----------
    timeout : float or None
        Seconds from now on.
    name : str
        Of the source, for the message.
    """

    __slots__ = ("_cancelled", "_deadline", "_name", "_timeout")

    def __init__(self, timeout: float | None = None, name: str = "") -> None:
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._cancelled = threading.Event()
        self._name = name

    def cancel(self) -> None:
        """Make every later :meth:`check` raise Cancelled."""
        self._cancelled.set()

    def check(self) -> None:
        """Raise if the read should end.

        Raises
        ------
        Cancelled, DecodeTimeoutError
        """
        if self._cancelled.is_set():
            raise Cancelled
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise DecodeTimeoutError(f"{self._name}: the frames did not come within {self._timeout} s")


def join_thread(thread: threading.Thread) -> None:
    """Wait until a thread has ended, even if its start was interrupted before or while it began."""
    while not thread.is_alive() and thread in threading.enumerate():
        time.sleep(0.0005)  # it is about to run, and cannot be joined yet
    if thread.is_alive():
        thread.join()
