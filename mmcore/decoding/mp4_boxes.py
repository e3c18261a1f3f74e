"""The boxes that an MP4 file consists of, as far as they tell whether its header describes all of it."""

from __future__ import annotations

import contextlib
import io
import os
from typing import BinaryIO

from mmcore.errors import DecodeError

from .source import Source

__all__ = ["plain_mp4_size"]

_MOST_BOXES = 64  # a file that has more is made of fragments, or damaged


def plain_mp4_size(source: Source) -> int | None:
    """The bytes of an MP4 file whose header lists all of its samples, and whose boxes fill it; else None.

    None also for what is no local file and not in memory.
    """
    path = source.local_path
    file: BinaryIO
    try:
        if path is not None:
            file = open(path, "rb")  # noqa: SIM115 (closed below, as the other one)
        elif source.is_shareable:
            file = io.BytesIO(source.read())
        else:
            return None
    except (OSError, DecodeError):
        return None
    with file, contextlib.suppress(OSError):
        return _plain_size(file)
    return None


def _plain_size(file: BinaryIO) -> int | None:
    end = file.seek(0, os.SEEK_END)
    position = 0
    for _ in range(_MOST_BOXES):
        if position == end:
            return end
        file.seek(position)
        head = file.read(16)
        size, kind = int.from_bytes(head[:4]), head[4:8]
        if kind in (b"moof", b"mfra", b"sidx", b"styp"):
            return None
        if size == 1:
            size = int.from_bytes(head[8:16])
        elif size == 0:  # to the end
            size = end - position
        position += size
        if size < 8 or position > end:
            return None
    return None
