"""The exceptions that mmcore raises beside Python's own ValueError, TypeError and IndexError."""

from __future__ import annotations

__all__ = ["DecodeError", "DecodeTimeoutError", "MMCoreError", "UnsupportedError"]


class MMCoreError(Exception):
    """Base class of the errors that only mmcore raises."""


class DecodeError(MMCoreError):
    """A media file could not be opened, read or decoded; the message names file, stream, frame or time."""


class DecodeTimeoutError(DecodeError, TimeoutError):
    """A read passed the deadline that its caller set; the decoder can be used again."""


class UnsupportedError(MMCoreError):
    """What was asked for is valid but not available here; the message says what to install or use instead."""
