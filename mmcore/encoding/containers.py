"""Which file formats are written, chosen by a path's suffix, and which codecs they hold by default."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import av

from mmcore.errors import UnsupportedError

__all__ = ["ContainerFormat", "container_format", "encoder_codec"]


@dataclass(frozen=True)
class ContainerFormat:
    """One file format.

    Attributes
    ----------
    muxer : str
        FFmpeg's name.
    video, audio, text : tuple of str
        Encoders, the preferred one first; later ones serve where PyAV's FFmpeg lacks it. Empty: the format
        holds no such stream. Of text, every one that can be written.
    options : dict
        The muxer's options.
    """

    muxer: str
    video: tuple[str, ...] = ()
    audio: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    options: dict[str, str] = field(default_factory=dict)


_H264 = ("libx264", "mpeg4")
_MATROSKA_TEXT = ("subrip", "ass", "webvtt")
# The index in front, so that a player over a network need not read the end first.
_FAST = {"movflags": "+faststart"}

_FORMATS = {
    ".mp4": ContainerFormat("mp4", _H264, ("aac",), ("mov_text",), _FAST),
    ".m4v": ContainerFormat("mp4", _H264, ("aac",), ("mov_text",), _FAST),
    ".m4a": ContainerFormat("mp4", (), ("aac",), ("mov_text",), _FAST),
    ".mov": ContainerFormat("mov", _H264, ("aac",), ("mov_text",), _FAST),
    ".mkv": ContainerFormat("matroska", _H264, ("aac",), _MATROSKA_TEXT),
    ".mka": ContainerFormat("matroska", (), ("aac",), _MATROSKA_TEXT),
    ".webm": ContainerFormat("webm", ("libvpx-vp9", "libvpx"), ("libopus", "opus"), ("webvtt",)),
    ".ts": ContainerFormat("mpegts", ("libx264", "mpeg2video"), ("aac",)),
    ".wav": ContainerFormat("wav", (), ("pcm_s16le",)),
    ".flac": ContainerFormat("flac", (), ("flac",)),
    ".mp3": ContainerFormat("mp3", (), ("libmp3lame",)),
    ".ogg": ContainerFormat("ogg", (), ("libopus", "opus", "flac")),
    ".opus": ContainerFormat("opus", (), ("libopus", "opus")),
}


def container_format(path: str) -> ContainerFormat:
    """Format that a path's suffix names; ValueError for any other suffix."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in _FORMATS:
        raise ValueError(f"path: {path!r}: expected a suffix of {', '.join(_FORMATS)}, got {suffix!r}")
    return _FORMATS[suffix]


def encoder_codec(path: str, kind: str, name: str | None) -> av.Codec:
    """Encoder for a stream of a file, the format's own choice if ``name`` is None.

    Parameters
    ----------
    path : str
    kind : {"video", "audio", "text"}
    name : str or None
        FFmpeg's name of an encoder.

    Raises
    ------
    ValueError
        If the format holds no such streams, or the name is one of another kind's.
    UnsupportedError
        If PyAV's FFmpeg has no such encoder.
    """
    fmt = container_format(path)
    argument = {"video": "codec", "audio": "audio_codec", "text": "text_codec"}[kind]
    choices: tuple[str, ...] = getattr(fmt, kind)
    if not choices:
        raise ValueError(f"path: {path!r}: {fmt.muxer} files hold no {kind}")
    if name is not None:
        if not isinstance(name, str):
            raise TypeError(f"{argument}: expected the name of an encoder, got {name!r}")
        if kind == "text" and name not in choices:
            raise ValueError(f"{argument}: {fmt.muxer} files hold text as {', '.join(choices)}, got {name!r}")
        choices = (name,)
    codec: Any = None
    for choice in choices:
        try:
            codec = av.Codec(choice, "w")
            break
        except ValueError:
            continue
    if codec is None:
        raise UnsupportedError(
            f"{argument}: this PyAV's FFmpeg has no encoder {' or '.join(choices)};"
            " av.codecs_available names those it has"
        )
    if codec.type != {"text": "subtitle"}.get(kind, kind):
        raise ValueError(f"{argument}: {codec.name!r} encodes {codec.type}, expected an encoder of {kind}")
    return codec  # type: ignore[no-any-return]
