"""Bytes of a text of unknown encoding to str."""

from __future__ import annotations

import codecs

__all__ = ["check_encoding", "decode_text"]

# the marks of UTF-32 begin as those of UTF-16 do
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Characters of a UTF-8 text for each one that is damaged; other encodings hardly ever look like UTF-8.
_DAMAGED_SHARE = 4
# Bytes for each NUL of a text in UTF-16: times and line ends alone are more, whatever the language.
_ASCII_SHARE = 8


def check_encoding(encoding: object) -> None:
    """Raise TypeError or ValueError unless ``encoding`` names a text encoding that Python knows, or None."""
    if encoding is None:
        return
    if not isinstance(encoding, str):
        raise TypeError(f"encoding: expected a name such as 'utf-8', got {encoding!r}")
    try:
        b" ".decode(encoding)
    except LookupError:
        raise ValueError(f"encoding: Python knows no text encoding {encoding!r}") from None
    except UnicodeError:
        pass  # one byte is no text of UTF-16


def decode_text(content: bytes, encoding: str | None = None) -> tuple[str, str]:
    """The text, and the name of its encoding.

    Without ``encoding``, a byte order mark tells it; else NUL bytes in every other place tell UTF-16, and
    what is valid UTF-8 but for few places is that. Anything else is taken for Windows-1252, which holds
    Latin-1.

    Raises
    ------
    UnicodeError
        If ``encoding`` is given and is not that of the bytes.
    """
    if encoding is not None:
        return content.decode(encoding).removeprefix("\ufeff"), encoding
    for mark, name in _MARKS:
        if content.startswith(mark):
            return content[len(mark) :].decode(name, "replace"), name
    even, odd = content[::2].count(0), content[1::2].count(0)
    if max(even, odd) > 4 * min(even, odd) and _ASCII_SHARE * max(even, odd) >= len(content):
        name = "utf-16-le" if odd > even else "utf-16-be"
        return content.decode(name, "replace"), name
    try:
        return content.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        text = content.decode("utf-8", "replace")
    damaged = text.count("\ufffd")
    beyond_ascii = len(text) - len(text.encode("ascii", "ignore"))
    if beyond_ascii > _DAMAGED_SHARE * damaged + damaged:
        return text, "utf-8"
    try:
        return content.decode("cp1252"), "cp1252"
    except UnicodeDecodeError:
        return content.decode("latin-1"), "latin-1"
