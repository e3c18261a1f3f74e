"""The subtitle stream of a file that is written: timed text to packets."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import av
from av.container import OutputContainer

from .containers import encoder_codec
from .opening import add_stream, open_encoder

__all__ = ["Cue", "TextTrack", "as_cues"]

Cue = tuple[float, float, str]
"""Start and end in seconds, and the text."""

_UNIT = Fraction(1, 1000)
_ASS_HEADER = b"""[Script Info]
ScriptType: v4.00+

[V4+ Styles]
Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, Bold, Italic, \
Underline, StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, Alignment, MarginL, \
MarginR, MarginV, Encoding
Style: Default,Arial,16,&Hffffff,&Hffffff,&H0,&H0,0,0,0,0,100,100,0,0,1,1,0,2,10,10,10,1

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
"""


def as_cues(text: Any) -> list[Cue]:
    """Cues of what was given as text, sorted by (start, end): segments, or (start, end, text) tuples.

    Raises
    ------
    TypeError, ValueError
        For anything else, times that are not finite or in order, or text that UTF-8 cannot hold.
    """
    if isinstance(text, (str, bytes)) or not isinstance(text, Iterable):
        raise TypeError(f"text: expected segments or (start, end, text) tuples, got {type(text).__name__}")
    return sorted((_cue(item, i) for i, item in enumerate(text)), key=lambda cue: cue[:2])


def _cue(item: Any, number: int) -> Cue:
    name = f"text: segment {number}"
    if all(hasattr(item, field) for field in ("start", "end", "text")):
        item = item.start, item.end, item.text
    if isinstance(item, str) or not isinstance(item, (tuple, list)) or len(item) != 3:
        raise TypeError(f"{name}: expected a TextSegment or (start, end, text), got {item!r}")
    try:
        start, end = float(item[0]), float(item[1])
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected seconds, got {item[0]!r} and {item[1]!r}") from None
    if not isinstance(item[2], str):
        raise TypeError(f"{name}: expected a str, got {item[2]!r}")
    if not (math.isfinite(start) and math.isfinite(end) and start >= 0):
        raise ValueError(f"{name}: expected times of 0 seconds or more, got {start} and {end}")
    if round(end * 1000) <= round(start * 1000):
        raise ValueError(f"{name}: must last a thousandth of a second or more, got {start} to {end} seconds")
    if "\0" in item[2]:
        raise ValueError(f"{name}: the text holds a null character")
    try:
        item[2].encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name}: the text holds a lone surrogate, which UTF-8 cannot") from None
    return start, end, item[2].replace("\r\n", "\n")


class TextTrack:
    """Writes cues, in the order of their starts."""

    def __init__(
        self, container: OutputContainer, path: str, *, codec: str | None, language: str | None
    ) -> None:
        encoder = encoder_codec(path, "text", codec)
        stream = add_stream(container, path, encoder)
        stream.codec_context.subtitle_header = _ASS_HEADER
        stream.time_base = _UNIT
        if language is not None:
            stream.metadata["language"] = language
        open_encoder(stream, "text_codec", {}, "text")
        self._stream = stream
        self._codec = encoder.name
        self._count = 0
        self._start = self._end = 0

    def encode(self, cues: list[Cue]) -> list[Any]:
        """Packets of cues that begin no earlier than those before."""
        timed = [(round(start * 1000), round(end * 1000), text) for start, end, text in cues]
        if self._codec == "mov_text":  # one sample is shown at a time
            timed = _one_at_a_time(timed)
            limit = self._end
        else:
            limit = self._start
        packets = []
        for start, end, text in timed:
            if start < limit:
                raise ValueError(
                    f"text: a segment begins at {start / 1000} seconds, before {limit / 1000}, where"
                    f" {self._codec} can go on; give them in order, and those that overlap together"
                )
            self._start, self._end = start, max(end, self._end)
            packets.append(self._packet(start, end, text))
        return packets

    def _packet(self, start: int, end: int, text: str) -> Any:
        data = self._payload(text)
        packet = av.Packet(data)
        packet.stream, packet.time_base = self._stream, _UNIT
        packet.pts = packet.dts = start
        packet.duration = end - start
        self._count += 1
        return packet

    def _payload(self, text: str) -> bytes:
        if self._codec == "mov_text":
            data = text.encode()
            if len(data) > 0xFFFF:
                raise ValueError(f"text: a segment has {len(data)} bytes, mov_text holds 65535")
            return len(data).to_bytes(2, "big") + data
        if self._codec == "webvtt":
            return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").encode()
        if self._codec == "ass":
            # as FFmpeg escapes it: a word joiner keeps a backslash from being one of markup
            line = text.replace("\\", "\\\u2060").replace("{", "\\{{}").replace("\n", "\\N")
            return f"{self._count},0,Default,,0,0,0,,{line}".encode()
        # SubRip cannot escape: the same is done for its tags, and for lines that would end the cue
        text = re.sub(r"[\\{<]", "\\g<0>\u2060", text).strip()
        return re.sub(r"\n[^\S\n]*(?=\n)", "\n\u2060", text).encode()


def _one_at_a_time(cues: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """The same texts on the screen at every time, without overlaps: together on lines of their own."""
    times = sorted({t for start, end, _ in cues for t in (start, end)})
    if all(first[1] <= second[0] for first, second in itertools.pairwise(cues)):
        return cues
    result: list[tuple[int, int, str]] = []
    for start, end in itertools.pairwise(times):
        shown = [text for s, e, text in cues if s <= start and end <= e]
        if shown:
            result.append((start, end, "\n".join(shown)))
    return result
