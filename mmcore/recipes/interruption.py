"""Ctrl-C and SIGTERM as a wish to stop at the end of the step."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Interruption"]

GRACE_SECONDS = 1.0
"""In which further signals are the same wish: torchrun passes on a Ctrl-C that its processes got too."""


class Interruption:
    """Context in which the first SIGINT or SIGTERM sets ``wanted``; one that comes later acts as usual.

    A signal must not end a training between two halves of a step. In a thread that is not the main one, which
    gets no signals, this does nothing.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._first = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back()

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.wanted:
            self.wanted, self._first = True, now
        elif now - self._first >= GRACE_SECONDS:
            self._give_back()
            signal.raise_signal(number)

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
