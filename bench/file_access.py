"""How often a call opens files and how many bytes it reads, whatever library does it; Linux only."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["file_access"]

# of <sys/inotify.h>
_IN_ACCESS, _IN_OPEN = 0x1, 0x20
_NONBLOCK = os.O_NONBLOCK
_EVENT = struct.Struct("iIII")


def file_access(call: Callable[[], Any], paths: Sequence[Path]) -> tuple[int, int] | None:
    """Call once; how often one of ``paths`` was opened, and the bytes that this process read meanwhile.

    Bytes are those that ``read`` returned, from the page cache too, of any file. Opening a file twice without
    reading between counts once. None where the system does not tell.
    """
    try:
        watch = _Opens(paths)
    except (OSError, AttributeError):
        return None
    try:
        first = _bytes_read()
        own = _bytes_read() - first  # what asking costs
        before = _bytes_read()
        call()
        read = _bytes_read() - before - own
        return watch.count(), read
    except OSError:
        return None
    finally:
        watch.close()


def _bytes_read() -> int:
    with open("/proc/self/io", encoding="ascii") as f:
        return int(f.readline().removeprefix("rchar:"))


class _Opens:
    """Counts the openings of files from its making on."""

    def __init__(self, paths: Sequence[Path]) -> None:
        library = ctypes.CDLL(None, use_errno=True)
        self._number = library.inotify_init1(_NONBLOCK)
        if self._number < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        for path in paths:
            # reading is watched too: equal events that follow each other are merged
            if library.inotify_add_watch(self._number, os.fsencode(path), _IN_OPEN | _IN_ACCESS) < 0:
                self.close()
                raise OSError(ctypes.get_errno(), "inotify_add_watch", str(path))

    def count(self) -> int:
        """Openings since it was made, or asked before."""
        found = 0
        while True:
            try:
                data = os.read(self._number, 1 << 16)
            except BlockingIOError:
                return found
            at = 0
            while at < len(data):
                _, mask, _, length = _EVENT.unpack_from(data, at)
                found += bool(mask & _IN_OPEN)
                at += _EVENT.size + length

    def close(self) -> None:
        os.close(self._number)
