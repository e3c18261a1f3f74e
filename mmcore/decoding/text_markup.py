r"""The text of a subtitle event without its markup.

FFmpeg's decoders give the text of every format as that of an ASS event: the tags of SRT, WebVTT and mov_text
come out as override blocks such as ``{\i1}``, line breaks as ``\N``.
"""

from __future__ import annotations

import re

__all__ = ["event_text", "plain_text", "trimmed"]

_TOKEN = re.compile(
    r"""
    \\\{(?:\{\})?              # an escaped brace; FFmpeg closes it with an empty block for old renderers
    | \\\}
    | \\\u2060                 # a backslash that is none of markup
    | \\[Nnh]
    | \{[^}]*\}
    """,
    re.VERBOSE,
)
_SIGNS = {"\\{": "{", "\\{{}": "{", "\\}": "}", "\\\u2060": "\\", "\\N": "\n", "\\n": " ", "\\h": " "}
# SubRip cannot escape: a word joiner keeps what stands before it from being markup, and an empty line from
# ending the cue.
_KEPT_IN_SUBRIP = re.compile(r"([{<])\u2060|(?<=\\N)\u2060(?=\\N)")
_DRAWING = re.compile(r"\\p(\d+)")


def event_text(event: str) -> str | None:
    """The text field of an ASS event as Matroska holds it; None if it is none.

    Its fields: ReadOrder, Layer, Style, Name, MarginL, MarginR, MarginV, Effect, Text.
    """
    fields = event.split(",", 8)
    return fields[8].rstrip("\r\n\0") if len(fields) == 9 else None


def plain_text(markup: str, codec: str) -> str:
    r"""The words of an ASS event's text: no overrides, no drawings, line breaks as line feeds.

    Parameters
    ----------
    markup : str
    codec : str
        FFmpeg's name of the format it comes from: braces without a backslash hold a comment in "ass", and are
        text elsewhere.

    Examples
    --------
    >>> plain_text(r"{\i1}Well{\i0},{aside}\Nyes", "ass")
    'Well,\nyes'
    """
    comments = codec == "ass"
    if codec == "subrip":
        markup = _KEPT_IN_SUBRIP.sub(lambda kept: {"{": "\\{", "<": "<", None: ""}[kept[1]], markup)
    parts: list[str] = []
    position, drawing = 0, False
    for match in _TOKEN.finditer(markup):
        token = match[0]
        piece = markup[position : match.start()]
        position = match.end()
        if token in _SIGNS:
            piece += _SIGNS[token]
        elif "\\" not in token and not comments:
            piece += token
        if not drawing:
            parts.append(piece)
        if token.startswith("{") and (modes := _DRAWING.findall(token)):
            drawing = int(modes[-1]) > 0
    if not drawing:
        parts.append(markup[position:])
    return trimmed("".join(parts))


def trimmed(text: str) -> str:
    """The text without space around it and its lines."""
    return "\n".join(line.strip() for line in text.splitlines()).strip()
