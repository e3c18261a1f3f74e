"""Subtitle files: telling one by its content, finding the ones beside a video, opening one."""

from __future__ import annotations

import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmcore.errors import DecodeError

from .source import Source
from .text_encoding import decode_text
from .text_languages import is_language, language_match

if TYPE_CHECKING:
    from av.container import InputContainer

__all__ = ["SUFFIXES", "Sidecar", "find_sidecars", "is_subtitle_file", "open_subtitle_file", "sidecar_at"]

# In the order in which they are preferred.
SUFFIXES = (".srt", ".vtt", ".ass", ".ssa")
# Parts of a file's name between the video's name and the ending, beside the language.
_FLAGS = frozenset({"cc", "default", "forced", "hi", "sdh"})
_HEAD = 8192
_SIGNS = {  # by FFmpeg's name of the format
    "webvtt": re.compile(r"\A\s*WEBVTT\b", re.ASCII),
    "ass": re.compile(r"^\s*(\[Script Info\]|\[Events\]|Dialogue:)", re.ASCII | re.MULTILINE | re.IGNORECASE),
    "srt": re.compile(r"^\s*-?\d+:\d+:\d+[,.]\d+\s*-->\s*-?\d+:\d", re.ASCII | re.MULTILINE),
}
# No text holds them; the containers of media begin with some, and may hold a subtitle file's header behind.
_BINARY = re.compile(r"[\x01-\x08\x0e-\x1a\x1c-\x1f]")
_BELOW_ZERO = re.compile(r"(?<![\w:])-\d+:\d+:\d+[,.]\d+(?=[ \t]*-->)|(?<=--> )-\d+:\d+:\d+[,.]\d+")


@dataclass(frozen=True)
class Sidecar:
    """A subtitle file and what its name tells."""

    path: Path
    language: str | None = None
    forced: bool = False
    default: bool = False


def _format(head: str) -> str | None:
    """FFmpeg's name of the format of a text, of which only text lies before the first sign of it."""
    head = head.lstrip("\ufeff").replace("\0", "").replace("\r", "\n")
    for name, sign in _SIGNS.items():
        found = sign.search(head)
        if found and not _BINARY.search(head, 0, found.start()):
            return name
    return None


def _is_named_as_one(source: Source) -> bool:
    return Path(source.local_path or "").suffix.lower() in SUFFIXES


def is_subtitle_file(source: Source) -> bool:
    """Whether the source is an SRT, WebVTT, ASS or SSA file, by its content or its path's ending."""
    try:
        return _is_named_as_one(source) or _format(decode_text(source.read(_HEAD))[0]) is not None
    except DecodeError:  # what cannot be read, as a URL: opening it as media will tell
        return False


def open_subtitle_file(source: Source, encoding: str | None) -> tuple[InputContainer, str]:
    """Open a subtitle file; the encoding that was found comes with it.

    Raises
    ------
    DecodeError
        If it cannot be read, is of another format, or is not in the given encoding.
    """
    import av

    content = source.read()
    try:
        text, found = decode_text(content, encoding)
    except UnicodeError as error:
        raise DecodeError(f"{source.name}: is not in the encoding {encoding!r}: {error}") from error
    # FFmpeg ends a text at a NUL, and knows no other line ends
    text = text.replace("\0", "").replace("\r\n", "\n").replace("\r", "\n")
    format = _format(text[:_HEAD])
    if format == "srt":
        text = _BELOW_ZERO.sub("00:00:00,000", text)  # FFmpeg overlooks the sign
    if format is None and text.strip():
        raise DecodeError(f"{source.name}: holds no subtitles of SRT, WebVTT or ASS")
    # a file without any cue, as of a film without speech, is an empty SRT file
    file = io.BytesIO(text.encode("utf-8", "replace") if text.strip() else b"\n")
    try:
        container = av.open(file, "r", format=format or "srt")
    except av.FFmpegError as error:
        raise DecodeError(f"{source.name}: cannot be opened as subtitles: {error.strerror}") from error
    return container, found


def sidecar_at(path: str | os.PathLike[str]) -> Sidecar:
    """The file at ``path``; its language is the part of its name before the ending, if it is one."""
    path = Path(path)
    for first in range(1, len(path.suffixes)):
        found = _parse(path, path.suffixes[first - 1 : -1], None)
        if found is not None:
            return found
    return Sidecar(path)


def _parse(path: Path, suffixes: list[str], wanted: str | None) -> Sidecar | None:
    """What the parts of the name tell; None if one of them tells nothing: it belongs to another video."""
    language, flags = None, set()
    for part in (suffix[1:] for suffix in suffixes):
        if language is None and (is_language(part) or part.casefold() == (wanted or "").casefold()):
            language = part
        elif part.lower() in _FLAGS:
            flags.add(part.lower())
        else:
            return None
    return Sidecar(path, language, "forced" in flags, "default" in flags)


def find_sidecars(video: str | os.PathLike[str], language: str | None = None) -> list[Sidecar]:
    """The subtitle files named after a video, best first: "film.srt", "film.en.srt", "film.en.forced.vtt".

    With ``language``, only files named with it, if need be for another region; else one named without any
    before the others. The "forced" come last; the order is then that of ``SUFFIXES`` and of the names.
    """
    video = Path(video)
    found: list[tuple[bool, int, int, str, Sidecar]] = []
    try:
        names = sorted(entry.name for entry in os.scandir(video.parent) if entry.is_file())
    except OSError:  # a folder that may be entered but not listed
        return []
    for name in names:
        path = video.parent / name
        suffix = path.suffix.lower()
        if suffix not in SUFFIXES or path == video or not name.startswith(video.stem):
            continue
        middle = name[len(video.stem) : -len(suffix)]
        if middle and not middle.startswith("."):
            continue
        parts = [f".{part}" for part in middle.split(".")[1:]]
        sidecar = _parse(path, parts, language)
        if sidecar is None:
            continue
        if language is None:
            misses = int(sidecar.language is not None)
        else:
            misses = 2 - language_match(language, sidecar.language)
            if misses == 2:
                continue
        found.append((sidecar.forced, misses, SUFFIXES.index(suffix), name, sidecar))
    return [entry[-1] for entry in sorted(found, key=lambda entry: entry[:4])]
