"""Sources as TorchCodec takes them, made into what mmcore takes."""

from __future__ import annotations

import io
import os
from typing import Any

from torch import Tensor

__all__ = ["is_url", "readable"]


def is_url(source: Any) -> bool:
    """Whether FFmpeg is to open a connection: the caller named one."""
    return isinstance(source, str) and "://" in source and not os.path.exists(source)


def readable(source: Any) -> Any:
    """Give the source in a form that mmcore reads.

    Raises
    ------
    TypeError
        For a text file, or anything else that is no source.
    """
    if isinstance(source, io.TextIOBase):
        raise TypeError("source: a text file; did you forget to open it for binary reading, with mode 'rb'?")
    if isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview, Tensor, io.IOBase)):
        return source
    if hasattr(source, "read") and hasattr(source, "seek"):
        return _WithPosition(source)
    raise TypeError(
        f"source: Unknown source type: {type(source)}. Expected str, Path, bytes, Tensor, or a file-like"
        " object with the methods read(size) -> bytes and seek(offset, whence) -> int."
    )


class _WithPosition:
    """A file-like object with no more than ``read`` and ``seek``, given the ``tell`` that mmcore needs."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._position = 0
        self.name = str(getattr(file, "name", type(file).__name__))

    def read(self, size: int) -> bytes:
        content: bytes = self._file.read(size)
        self._position += len(content)
        return content

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = int(self._file.seek(offset, whence))
        return self._position

    def tell(self) -> int:
        return self._position
