"""Reading the cues of one text stream of an open container."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .source import demux
from .text_encoding import decode_text
from .text_markup import event_text, plain_text, trimmed
from .text_segment import TextSegment

if TYPE_CHECKING:
    from av.container import InputContainer

__all__ = ["read_segments"]

_NO_DISPLAY_TIME = (1 << 32) - 1
# Seconds: of FFmpeg's own times, which are in microseconds, and what no time at all lies beyond.
_PTS_ROUNDING, _LONGEST_CAPTION = 1e-3, 3600.0


def read_segments(
    container: InputContainer,
    stream: Any,
    found: Sequence[Any] | None = None,
    *,
    encoding: str | None = None,
    markup: bool = False,
    file_begin: float | None = None,
) -> tuple[list[TextSegment], str | None]:
    """All segments, sorted by start and end, else as in the file; and what could not be read.

    Parameters
    ----------
    container : InputContainer
        At its beginning; it is read to its end.
    stream : SubtitleStream
        With a decoder that gives text.
    found : sequence of Packet, optional
        All packets of the stream, if they were read before: the file is not read then.
    encoding : str or None
        Of the packets' text; None for UTF-8, and what :func:`decode_text` finds if it is not.
    markup : bool
        Keep the text as that of an ASS event.
    file_begin : float or None
        For a subtitle file, the seconds that are added to every time. It tells all ends, so a length of 0 is
        one there; in a media file it means that the end is not told.
    """
    import av
    from av.stream import Discard

    if found is None:
        for other in container.streams:
            if other is not stream:
                other.discard = Discard.all  # their packets need not even be read
    shift = file_begin or 0.0
    codec = stream.codec_context.codec.canonical_name
    cues: list[tuple[float, float | None, str]] = []
    lost: list[str] = []
    broken: str | None = None
    packets = demux(container, stream) if found is None else iter(found)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError as error:
            broken = f"reading ended early: {error.strerror}"
            break
        if packet is None:
            break
        if not packet.size or packet.pts is None:
            continue
        try:
            for start, end, event in _decode(stream, packet, encoding):
                if end is None and file_begin is not None and not packet.duration:
                    end = start
                if markup:
                    text = event
                elif codec == "mov_text":  # knows no markup in the text, of which FFmpeg escapes none
                    text = trimmed(decode_text(_mov_text(packet), encoding)[0].replace("\0", ""))
                else:
                    text = plain_text(event, codec)
                cues.append((start + shift, None if end is None else end + shift, text))
        except (av.FFmpegError, UnicodeError) as error:
            why = error.strerror if isinstance(error, av.FFmpegError) else str(error)
            lost.append(f"{float(packet.pts * stream.time_base) + shift:.6g} s: {why}")
    with suppress(av.FFmpegError, UnicodeError):
        for start, _, event in _kept_to_the_end(stream):
            cues.append((start + shift, None, event if markup else plain_text(event, codec)))
    cue = "1 cue" if len(lost) == 1 else f"{len(lost)} cues"
    damage = f"{cue} could not be decoded, the first at {lost[0]}" if lost else None
    if broken:
        damage = broken if damage is None else f"{damage}; {broken}"
    duration = container.duration
    last = 0.0 if duration is None else (duration + (container.start_time or 0)) / av.time_base + shift
    cues = [cue for cue in cues if cue[2].strip()]
    return sorted(_with_ends(cues, last), key=lambda s: (s.start, s.end)), damage


def _with_ends(cues: list[tuple[float, float | None, str]], last: float) -> Iterator[TextSegment]:
    """A cue without an end stays until the next one begins, the last one until ``last``."""
    starts = sorted({start for start, _, _ in cues})
    for start, end, text in cues:
        if end is None:
            following = bisect_right(starts, start)
            end = starts[following] if following < len(starts) else max(start, last)
        yield TextSegment(start, end, text)


def _decode(stream: Any, packet: Any, encoding: str | None) -> Iterator[tuple[float, float | None, str]]:
    """Start, end if told, and ASS text of the packet's events.

    Raises
    ------
    av.FFmpegError, UnicodeError
        If its content is damaged or not in the encoding.
    """
    import av

    unit = stream.time_base
    decoder = stream.codec_context
    if encoding is not None:
        packet = _recoded(stream, packet, encoding)
    try:
        events = decoder.decode2(packet)
    except av.FFmpegError:
        if encoding is not None:
            raise
        events = decoder.decode2(_recoded(stream, packet, None))
    if events is None:
        return
    start = float(packet.pts * unit)
    end = float((packet.pts + packet.duration) * unit) if packet.duration else None
    shown = events.end_display_time
    told = events.pts / av.time_base
    if start - _LONGEST_CAPTION < told < start - _PTS_ROUNDING:
        # closed captions come out with the packet that ends them
        start, end = told, told + shown / 1000
    elif end is None and 0 < shown < _NO_DISPLAY_TIME:
        end = start + shown / 1000
    if end is not None and end < start:
        end = None
    yield start, end, _text(events)


def _kept_to_the_end(stream: Any) -> Iterator[tuple[float, None, str]]:
    """As :func:`_decode`, the caption that no packet ended."""
    import av

    events = stream.codec_context.decode2(av.Packet())
    if events is not None:
        yield events.pts / av.time_base, None, _text(events)


def _text(events: Any) -> str:
    texts = [event_text(rect.ass.decode("utf-8", "replace")) for rect in events.rects]
    if None in texts:
        raise UnicodeError("its text is no event")
    return r"\N".join(text for text in texts if text)


def _mov_text(packet: Any) -> bytes:
    """The text of a sample, without the styles behind it."""
    content = bytes(packet)
    return content[2 : 2 + int.from_bytes(content[:2], "big")]


def _recoded(stream: Any, packet: Any, encoding: str | None) -> Any:
    """The packet with its text in UTF-8; without mov_text's styles, which count bytes of the old text."""
    import av

    counted = stream.codec_context.codec.canonical_name == "mov_text"
    content = _mov_text(packet) if counted else bytes(packet)
    recoded = decode_text(content, encoding)[0].encode("utf-8", "replace")
    if counted:
        recoded = recoded[: (1 << 16) - 1]
        recoded = len(recoded).to_bytes(2, "big") + recoded
    result: Any = av.Packet(recoded)
    result.pts, result.dts, result.duration = packet.pts, packet.dts, packet.duration
    result.time_base = packet.time_base
    return result
