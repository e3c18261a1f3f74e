"""Errors that are at once mmcore's, which say what happened, and RuntimeErrors, which TorchCodec raises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mmcore

__all__ = ["DecodeError", "NotBuilt", "UnsupportedError", "as_torchcodec_raises"]


class DecodeError(mmcore.DecodeError, RuntimeError):
    """A file could not be opened, read or decoded."""


class UnsupportedError(mmcore.UnsupportedError, RuntimeError):
    """What TorchCodec can do and this module cannot."""


# What mmcore says, and TorchCodec in its place, of a frame that only the header knows of.
_ENDS_BEFORE = "the file ends before it"
_NO_MORE_FRAMES = "Requested next frame while there are no more frames left to decode"


@contextmanager
def as_torchcodec_raises() -> Iterator[None]:
    """Turn mmcore's own errors into those that are RuntimeErrors too."""
    try:
        yield
    except mmcore.DecodeError as error:
        message = str(error)
        if _ENDS_BEFORE in message:
            message = f"{_NO_MORE_FRAMES}: {message}"
        raise DecodeError(message) from error
    except mmcore.UnsupportedError as error:
        raise UnsupportedError(str(error)) from error


class NotBuilt:
    """A class of TorchCodec that mmcore has no counterpart of: it can be imported, but not used."""

    _INSTEAD = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise UnsupportedError(f"{type(self).__name__} is not built in mmcore yet; {self._INSTEAD}")
