"""The text decoder that users meet: subtitles of a media file, or of a file beside it, as timed segments."""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, overload

from mmcore.errors import DecodeError, MMCoreError, UnsupportedError

from .arguments import integer, number_of_seconds
from .source import Source, passing_interrupts
from .text_encoding import check_encoding
from .text_files import SUFFIXES, Sidecar, find_sidecars, is_subtitle_file, open_subtitle_file, sidecar_at
from .text_languages import language_match
from .text_reader import read_segments
from .text_segment import TextSegment, TextStreamMetadata

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet

__all__ = ["TextDecoder", "choose_text_stream", "read_text_stream"]


class TextDecoder(Sequence[TextSegment]):
    r"""Reads the segments of one text stream, or of a subtitle file, when it is made.

    Parameters
    ----------
    source : str, os.PathLike, bytes, bytearray, memoryview, Tensor or file-like object
        As for :class:`mmcore.VideoDecoder`; also a subtitle file itself: SRT, WebVTT, ASS or SSA.
    stream_index : int, optional
        Number of the stream in the file; by default one in ``language`` if that is given, one that is not
        marked "forced" before those that are, one marked "default" before the others, then the first.
    language : str, optional
        Such as "en", "eng" or "pt-BR"; only what is tagged with it is read.
    sidecar : None, bool, str or os.PathLike
        None reads the media file's own text, and without that the subtitle file named after it: "film.srt",
        "film.en.vtt" or "film.en.forced.ass" for "film.mp4". True reads only such a file, False only the
        media file; a path reads that subtitle file.
    encoding : str, optional
        Encoding of a subtitle file, or of a stream that is not in UTF-8. By default a byte order mark tells
        it, else UTF-16 and UTF-8 are recognised, and anything else is taken for Windows-1252 (Latin-1).
    markup : bool
        Keep the markup, in the form of ASS whatever the format: ``{\i1}``, and ``\N`` for a line break. By
        default it is removed, with the drawings and comments of ASS.
    network : bool
        Allow URLs and playlists, as for :class:`mmcore.VideoDecoder`.

    Attributes
    ----------
    metadata : TextStreamMetadata

    Raises
    ------
    DecodeError
        If the source is missing or no media file, or holds no text and none is found beside it.
    UnsupportedError
        If the file's subtitles are pictures, or of a codec without decoder.
    ValueError, TypeError
        For arguments that are wrong, such as a stream that does not exist.

    Notes
    -----
    Segments are sorted by start, then end, else as in the file. They may overlap; none is merged or cut, but
    those without text are left out. A cue with no end, or one before its start, stays until the next one
    begins, the last one until the file ends. Times below 0 are kept in a media file, and read as 0 in an SRT
    file. A damaged cue costs no other; ``metadata.damage`` tells of it. A subtitle file's time 0 is the
    beginning of the media file it belongs to, which is not 0 in an MPEG transport stream. Nothing is held
    open afterwards: a decoder may be shared by threads, forked and pickled.

    Examples
    --------
    >>> import mmcore
    >>> vtt = b"WEBVTT\n\n00:01.000 --> 00:02.500\nHello, <i>world</i>\n"
    >>> mmcore.TextDecoder(vtt)[0]
    TextSegment(start=1.0, end=2.5, text='Hello, world')
    """

    def __init__(
        self,
        source: Any,
        *,
        stream_index: int | None = None,
        language: str | None = None,
        sidecar: str | os.PathLike[str] | bool | None = None,
        encoding: str | None = None,
        markup: bool = False,
        network: bool = False,
        _embedded: tuple[list[TextSegment], TextStreamMetadata] | MMCoreError | None = None,
    ) -> None:
        if stream_index is not None:
            stream_index = integer("stream_index", stream_index)
        if language is not None and not isinstance(language, str):
            raise TypeError(f"language: expected a name such as 'en', got {language!r}")
        if language is not None and not language.strip():
            raise ValueError("language: expected a name such as 'en', got an empty string")
        if sidecar is not None and not isinstance(sidecar, (bool, str, os.PathLike)):
            raise TypeError(f"sidecar: expected a path, True, False or None, got {sidecar!r}")
        check_encoding(encoding)
        self._encoding = encoding
        self._markup = bool(markup)
        source = Source(source, network=network)
        self._name = source.name
        with passing_interrupts():
            if is_subtitle_file(source):
                self._read_lone_file(source, stream_index, language, sidecar)
            elif sidecar is None or sidecar is False:
                self._read_embedded(source, stream_index, language, _embedded, look_beside=sidecar is None)
            elif stream_index is not None:
                raise ValueError("stream_index, sidecar: give one of them, a stream or the file beside it")
            else:
                self._read_sidecar(source, language, sidecar)
        self._latest_end = list(accumulate((s.end for s in self._segments), max))

    # --- what is read

    def _read_lone_file(
        self, source: Source, stream_index: int | None, language: str | None, sidecar: Any
    ) -> None:
        given = {"stream_index": stream_index or None, "language": language, "sidecar": sidecar or None}
        for name, value in given.items():
            if value is not None:
                raise ValueError(f"{name}: {self._name} is a subtitle file, which leaves no choice")
        path = source.local_path
        self._read_file(source, None if path is None else sidecar_at(path), 0.0)

    def _read_sidecar(
        self, media: Source, language: str | None, sidecar: str | os.PathLike[str] | bool
    ) -> None:
        if isinstance(sidecar, bool):
            path = media.local_path
            if path is None:
                raise ValueError(
                    f"sidecar: {self._name} has no place where a subtitle file could lie beside it"
                )
            sidecars = find_sidecars(path, language)
            if not sidecars:
                wanted = "" if language is None else f" in the language {language!r}"
                raise DecodeError(
                    f"{self._name}: no subtitle file{wanted} beside it ({', '.join(SUFFIXES)} after its name)"
                )
            found = sidecars[0]
        elif language is not None:
            raise ValueError(f"language: {os.fspath(sidecar)} is given, which leaves no choice")
        else:
            found = sidecar_at(sidecar)
        self._read_file(Source(found.path), found, _begin(media))

    def _read_file(self, source: Source, sidecar: Sidecar | None, begin: float) -> None:
        container, encoding = open_subtitle_file(source, self._encoding)
        with container:
            stream: Any = container.streams.subtitles[0]
            found = read_segments(container, stream, markup=self._markup, file_begin=begin)
            codec: str = stream.codec_context.codec.canonical_name
        self._segments, damage = found
        self.metadata = TextStreamMetadata(
            stream_index=None,
            path=None if sidecar is None else os.fspath(sidecar.path),
            codec=codec,
            language=None if sidecar is None else sidecar.language,
            title=None,
            default=sidecar is not None and sidecar.default,
            forced=sidecar is not None and sidecar.forced,
            encoding=encoding,
            damage=damage,
            **_extent(self._segments),
        )

    def _read_embedded(
        self,
        source: Source,
        stream_index: int | None,
        language: str | None,
        found: tuple[list[TextSegment], TextStreamMetadata] | MMCoreError | None,
        *,
        look_beside: bool,
    ) -> None:
        try:
            if isinstance(found, MMCoreError):
                raise found
            if found is None:
                with source.open(probe=False) as container:
                    stream = choose_text_stream(container, self._name, stream_index, language)
                    found = read_text_stream(container, stream, encoding=self._encoding, markup=self._markup)
            self._segments, self.metadata = found
        except (DecodeError, UnsupportedError):
            path = source.local_path
            if not look_beside or stream_index is not None or path is None:
                raise
            sidecars = find_sidecars(path, language)
            if not sidecars:
                raise
        else:
            return
        self._read_file(Source(sidecars[0].path), sidecars[0], _begin(source))

    # --- the segments

    def __len__(self) -> int:
        return len(self._segments)

    def __repr__(self) -> str:
        m = self.metadata
        where = f"stream {m.stream_index}" if m.path is None else m.path
        return f"TextDecoder({self._name!r}, {where}, {len(self)} segments)"

    @overload
    def __getitem__(self, key: int) -> TextSegment: ...
    @overload
    def __getitem__(self, key: slice) -> list[TextSegment]: ...
    def __getitem__(self, key: int | slice) -> TextSegment | list[TextSegment]:
        """One segment, or a list of them.

        Raises
        ------
        IndexError, TypeError
        """
        if isinstance(key, slice):
            return self._segments[key]
        number = integer("key", key)
        if not -len(self) <= number < len(self):
            raise IndexError(f"key: there is no segment {number} in the {len(self)} of {self._name}")
        return self._segments[number]

    def get_all_segments(self) -> list[TextSegment]:
        """All segments, in a list of its own."""
        return list(self._segments)

    def get_segments_played_in_range(
        self, start_seconds: float = 0.0, stop_seconds: float | None = None
    ) -> list[TextSegment]:
        """Segments shown at some time from ``start_seconds`` to before ``stop_seconds``, whole.

        Parameters
        ----------
        start_seconds : float
        stop_seconds : float, optional
            None for the end.

        Returns
        -------
        list of TextSegment
            Empty where nothing is shown, also outside the file and if both times are the same.

        Raises
        ------
        ValueError
            If ``stop_seconds`` is before ``start_seconds``, or one is not finite.
        TypeError
        """
        start = number_of_seconds("start_seconds", start_seconds)
        if stop_seconds is None:
            last = len(self)
        else:
            stop = number_of_seconds("stop_seconds", stop_seconds)
            if stop < start:
                raise ValueError(
                    f"start_seconds, stop_seconds: expected start <= stop, got {start} and {stop}"
                )
            if stop == start:
                return []
            last = bisect_left(self._segments, stop, key=lambda s: s.start)
        # no segment before this one reaches into the range; one without length counts at its instant
        first = min(
            bisect_right(self._latest_end, start), bisect_left(self._segments, start, key=lambda s: s.start)
        )
        return [s for s in self._segments[first:last] if s.end > start or s.start >= start]


def choose_text_stream(container: InputContainer, name: str, number: int | None, language: str | None) -> Any:
    """The text stream of the file ``name`` that is asked for, as :class:`TextDecoder` says.

    Raises
    ------
    DecodeError, UnsupportedError, ValueError
    """
    streams: list[Any] = list(container.streams)
    held = "; ".join(_describe(stream) for stream in streams) or "none"
    if number is not None:
        if not 0 <= number < len(streams):
            raise ValueError(f"stream_index: {name} has no stream {number}; its streams: {held}")
        if streams[number].type != "subtitle":
            raise ValueError(
                f"stream_index: stream {number} of {name} is no text stream; its streams: {held}"
            )
        if language is not None and not language_match(language, _language(streams[number])):
            raise ValueError(
                f"stream_index, language: stream {number} of {name} is not in {language!r};"
                f" its streams: {held}"
            )
        _check_text(streams[number], name)
        return streams[number]
    subtitles = [stream for stream in streams if stream.type == "subtitle"]
    wanted = "" if language is None else f" in the language {language!r}"
    if language is not None:
        subtitles = [s for s in subtitles if language_match(language, _language(s))]
    if not subtitles:
        raise DecodeError(f"{name}: holds no text stream{wanted}; its streams: {held}")
    best = min(subtitles, key=lambda stream: _rank(stream, language))
    _check_text(best, name)
    return best


def read_text_stream(
    container: InputContainer,
    stream: Any,
    packets: Sequence[Packet[Any]] | None = None,
    *,
    encoding: str | None,
    markup: bool,
) -> tuple[list[TextSegment], TextStreamMetadata]:
    """Segments and properties of a stream of an open media file; ``packets``: all of it, if read before."""
    segments, damage = read_segments(container, stream, packets, encoding=encoding, markup=markup)
    metadata = TextStreamMetadata(
        stream_index=stream.index,
        path=None,
        codec=stream.codec_context.codec.canonical_name,
        language=_language(stream),
        title=stream.metadata.get("title"),
        default=bool(int(stream.disposition) & 1),
        forced="forced" in _flags(stream),
        encoding=None,
        damage=damage,
        **_extent(segments),
    )
    return segments, metadata


def _extent(segments: list[TextSegment]) -> dict[str, Any]:
    return {
        "num_segments": len(segments),
        "begin_stream_seconds": segments[0].start if segments else None,
        "end_stream_seconds": max(s.end for s in segments) if segments else None,
    }


def _language(stream: Any) -> str | None:
    """The tag; None for "undetermined"."""
    tag: str | None = stream.language
    return None if tag in (None, "", "und") else tag


def _flags(stream: Any) -> set[str]:
    """Names of the dispositions that are set."""
    return {flag.name for flag in type(stream.disposition) if flag & stream.disposition}


def _is_text(stream: Any) -> bool:
    return stream.codec_context is not None and bool(stream.codec_context.codec.text_sub)


def _rank(stream: Any, language: str | None) -> tuple[bool, bool, int, bool, int]:
    flags = _flags(stream)
    match = 0 if language is None else language_match(language, _language(stream))
    return not _is_text(stream), "forced" in flags, -match, "default" not in flags, stream.index


def _check_text(stream: Any, name: str) -> None:
    if stream.codec_context is None:
        raise UnsupportedError(f"{name}: stream {stream.index}: FFmpeg has no decoder for its subtitles")
    if not _is_text(stream):
        codec = stream.codec_context.codec.canonical_name
        raise UnsupportedError(
            f"{name}: stream {stream.index}: its subtitles are pictures ({codec}), not text: recognise them"
            " with an OCR tool, and pass the file that it writes as sidecar"
        )


def _describe(stream: Any) -> str:
    codec = "unknown codec" if stream.codec_context is None else stream.codec_context.codec.canonical_name
    language = _language(stream)
    kind = "text" if stream.type == "subtitle" and _is_text(stream) else stream.type
    return f"{stream.index} {kind} {codec}" + (f" ({language})" if language else "")


def _begin(media: Source) -> float:
    """When a media file begins, where its format leaves that open: players show a subtitle file from then."""
    import av
    from av.format import Flags

    try:
        with media.open(probe=True) as container:
            if Flags.ts_discont in Flags(container.format.flags) and container.start_time:
                return max(0.0, container.start_time / av.time_base)
    except (DecodeError, UnsupportedError):  # damaged pictures do not cost the words
        pass
    return 0.0
