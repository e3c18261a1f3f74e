"""What is known of an audio stream without decoding more than its first samples."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["AudioStreamMetadata"]


@dataclass(frozen=True)
class AudioStreamMetadata:
    """An audio stream's properties. Fields that the file does not tell are None.

    Attributes
    ----------
    stream_index : int
        Number of the stream in the file.
    codec : str
        Such as "aac", "opus", "mp3", "pcm_s16le".
    sample_rate : int
        In Hz, as decoded and before any resampling.
    num_channels : int
        Before any mixing.
    channel_layout : str
        FFmpeg's name, such as "stereo", "5.1", "2 channels".
    sample_format : str
        FFmpeg's name of what the codec decodes to, such as "fltp", "s16".
    bit_rate : int or None
        Bits per second of this stream.
    language : str or None
        As the file notes it, mostly of ISO 639-2: "eng".
    duration_seconds_from_header, begin_stream_seconds_from_header : float or None
        What the file says of itself, right or wrong.
    begin_stream_seconds : float
        When the first sample is heard, on the clock of the file's pictures. Not always 0: encoders put
        silence in front, which is not played.
    """

    stream_index: int
    codec: str
    sample_rate: int
    num_channels: int
    channel_layout: str
    sample_format: str
    bit_rate: int | None
    language: str | None
    duration_seconds_from_header: float | None
    begin_stream_seconds_from_header: float | None
    begin_stream_seconds: float

    @property
    def duration_seconds(self) -> float | None:
        """From the header; the decoder's ``end_stream_seconds`` is exact."""
        return self.duration_seconds_from_header

    @property
    def end_stream_seconds(self) -> float | None:
        """When the last sample ends, by the header."""
        duration = self.duration_seconds_from_header
        if duration is None:
            return None
        begin = self.begin_stream_seconds_from_header
        return (self.begin_stream_seconds if begin is None else begin) + duration
