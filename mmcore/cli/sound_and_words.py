"""What ``mmcore decode`` reads beside the pictures: the sound and the words of the same stretch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmcore.cli.info import describe_audio, describe_text
from mmcore.cli.render import warn
from mmcore.cli.selection import check_memory, named_as_options
from mmcore.errors import MMCoreError

if TYPE_CHECKING:
    from mmcore import AudioDecoder, AudioSamples, TextDecoder, TextSegment

__all__ = [
    "audio_metadata",
    "held_kinds",
    "open_audio",
    "open_text",
    "read_audio",
    "read_text",
    "text_metadata",
    "words_at",
]


def held_kinds(file: Path) -> set[str]:
    """Which of "video", "audio" and "subtitle" the file holds, or has beside it; a cover is no video.

    Raises
    ------
    DecodeError
        If there is no such file or it is no media file.
    """
    from av.stream import Disposition

    from mmcore.decoding.source import Source
    from mmcore.decoding.text_files import find_sidecars, is_subtitle_file

    source = Source(file)
    if is_subtitle_file(source):
        return {"subtitle"}
    with source.open() as container:
        kinds = {
            str(stream.type)
            for stream in container.streams
            if not stream.disposition & Disposition.attached_pic
        }
    return kinds | ({"subtitle"} if find_sidecars(file) else set())


def open_audio(
    file: Path, *, required: bool, stream_index: int | None, sample_rate: int | None, channels: int | None
) -> AudioDecoder | None:
    """The decoder; None, after a warning, where that fails and the sound is not required."""
    import mmcore

    try:
        return mmcore.AudioDecoder(
            file,
            stream_index=stream_index,
            sample_rate=sample_rate,
            num_channels=channels,
            on_error="silence",
        )
    except MMCoreError as error:
        if required:
            raise
        warn(f"without sound: {error}")
        return None


def read_audio(
    decoder: AudioDecoder, file: Path, start: float | None, stop: float | None, *, required: bool
) -> AudioSamples | None:
    """The samples from ``start`` to ``stop``; what is damaged is silent, with a warning that says where."""
    first = decoder.begin_stream_seconds if start is None else start
    try:
        end = decoder.end_stream_seconds
        length = max(0.0, min(end, end if stop is None else stop) - first)
        check_memory(round(length * decoder.sample_rate) * decoder.num_channels * 4)
        samples = decoder.get_samples_played_in_range(first, stop)
    except MMCoreError as error:
        if required:
            raise
        warn(f"without sound: {error}")
        return None
    except ValueError as error:  # a range without sound
        if required:
            raise ValueError(named_as_options(error)) from None
        warn(f"without sound: {named_as_options(error)}")
        return None
    if decoder.damage is not None and (stop is None or stop > end):
        warn(f"{file}: its sound breaks off at {end:.3f} s: {decoder.damage}")
    if samples.gaps:
        spans = ", ".join(f"{a:.3f} to {b:.3f} s" for a, b in samples.gaps[:3])
        more = f" and in {len(samples.gaps) - 3} more places" if len(samples.gaps) > 3 else ""
        warn(f"{file}: sound that is missing or cannot be decoded is silent: {spans}{more}")
    return samples


def audio_metadata(decoder: AudioDecoder, samples: AudioSamples) -> dict[str, Any]:
    """What the file written tells of the sound, as plain JSON types."""
    return {
        "pts_seconds": samples.pts_seconds,
        "duration_seconds": samples.duration_seconds,
        "sample_rate": samples.sample_rate,
        "gaps": [list(gap) for gap in samples.gaps],
        "stream": describe_audio(decoder),
    }


def open_text(
    file: Path,
    *,
    required: bool,
    stream_index: int | None = None,
    language: str | None = None,
    sidecar: Path | None = None,
) -> TextDecoder | None:
    """The decoder; None, after a warning, where that fails and the words are not required."""
    import mmcore

    try:
        decoder = mmcore.TextDecoder(file, stream_index=stream_index, language=language, sidecar=sidecar)
    except MMCoreError as error:
        if required:
            raise
        warn(f"without words: {error}")
        return None
    if decoder.metadata.damage is not None:
        warn(f"{file}: {decoder.metadata.damage}")
    return decoder


def read_text(decoder: TextDecoder, start: float | None, stop: float | None) -> list[TextSegment]:
    """The segments shown at some time from ``start`` to ``stop``."""
    first = decoder.metadata.begin_stream_seconds or 0.0
    try:
        return decoder.get_segments_played_in_range(
            min(first, first if stop is None else stop) if start is None else start, stop
        )
    except ValueError as error:
        raise ValueError(named_as_options(error)) from None


def text_metadata(decoder: TextDecoder, segments: list[TextSegment]) -> dict[str, Any]:
    """The words and their stream, as plain JSON types."""
    return {
        "segments": [{"start": s.start, "end": s.end, "text": s.text} for s in segments],
        "stream": describe_text(decoder.metadata),
    }


def words_at(decoder: TextDecoder | None, seconds: float) -> str:
    """What is shown at an instant, on one line."""
    if decoder is None:
        return ""
    shown = decoder.get_segments_played_in_range(seconds, seconds + 1e-6)
    return " ".join(" ".join(segment.text for segment in shown).split())
