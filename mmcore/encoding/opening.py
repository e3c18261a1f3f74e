"""A stream's encoder added to a container and opened, with errors that say what it was asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import av
from av.container import OutputContainer

from mmcore.errors import MMCoreError

__all__ = ["add_stream", "open_encoder", "writing"]


@contextlib.contextmanager
def writing(path: str) -> Iterator[None]:
    """Raise FFmpeg's errors as an OSError, where the system gave the reason, or a MMCoreError."""
    try:
        yield
    except av.FFmpegError as error:
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, path) from error
        raise MMCoreError(f"{path}: cannot be encoded: {error.strerror}") from error


def add_stream(container: OutputContainer, path: str, codec: av.Codec, **settings: Any) -> Any:
    """Add a stream to a container; ValueError if it does not hold the codec."""
    try:
        return container.add_stream(codec.name, **settings)
    except ValueError as error:
        raise ValueError(f"path: {path!r}: {error}") from None


def open_encoder(stream: Any, argument: str, options: Mapping[str, str], described: str) -> None:
    """Open a stream's encoder; ValueError if it refuses its settings or does not know one of its options."""
    context = stream.codec_context
    options = {name: str(value) for name, value in options.items()}
    stream.options.update(options)
    name = context.codec.name
    try:
        context.open()
    except av.FFmpegError as error:
        raise ValueError(
            f"{argument}: the encoder {name!r} refuses {described} with options {options}: {error.strerror}"
        ) from error
    unknown = [option for option in options if option in context.options]
    if unknown:
        raise ValueError(f"{argument}: the encoder {name!r} has no option {', '.join(map(repr, unknown))}")
