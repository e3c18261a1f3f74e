"""A piece of text with the time in which it is shown, and what is known of the stream it comes from."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TextSegment", "TextStreamMetadata"]


@dataclass(frozen=True)
class TextSegment:
    """One subtitle cue.

    Attributes
    ----------
    start, end : float
        Seconds, on the clock of ``VideoDecoder``'s ``pts_seconds``; shown from ``start`` to before ``end``.
    text : str
        Lines are separated by a line feed.
    """

    start: float
    end: float
    text: str

    @property
    def duration_seconds(self) -> float:
        """``end - start``."""
        return self.end - self.start


@dataclass(frozen=True)
class TextStreamMetadata:
    """A text stream's properties. Fields that the file does not tell are None.

    Attributes
    ----------
    stream_index : int or None
        Number of the stream in the media file; None for a subtitle file.
    path : str or None
        Path of the subtitle file; None for a stream of the media file, or if it was not given as a path.
    codec : str
        FFmpeg's name: "mov_text", "subrip", "webvtt", "ass" (also for SSA), ...
    language : str or None
        As tagged in the media file, or in a subtitle file's name ("film.en.srt").
    title : str or None
    default, forced : bool
        Marked as the stream to show if none is chosen, or as one for foreign speech and signs alone.
    encoding : str or None
        Of a subtitle file, as found or as given; None for a stream of the media file.
    num_segments : int
    begin_stream_seconds, end_stream_seconds : float or None
        Start of the first segment, end of the last one; None without segments.
    damage : str or None
        What of the stream could not be read, if anything: it lacks these segments.
    """

    stream_index: int | None
    path: str | None
    codec: str
    language: str | None
    title: str | None
    default: bool
    forced: bool
    encoding: str | None
    num_segments: int
    begin_stream_seconds: float | None
    end_stream_seconds: float | None
    damage: str | None = None
