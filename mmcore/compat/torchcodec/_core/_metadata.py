"""What is known of a stream, in TorchCodec's fields."""

from __future__ import annotations

from dataclasses import dataclass, fields
from fractions import Fraction

__all__ = ["AudioStreamMetadata", "StreamMetadata", "VideoStreamMetadata"]


@dataclass(repr=False)
class StreamMetadata:
    """Properties of any stream; None where the file does not tell.

    Attributes
    ----------
    duration_seconds_from_header, begin_stream_seconds_from_header : float or None
        What the file says of itself.
    bit_rate : float or None
        Bits per second; 0 where the file does not tell.
    codec : str or None
        FFmpeg's name.
    stream_index : int
        Number of the stream in the file.
    duration_seconds, begin_stream_seconds : float or None
        From the content if it was scanned, else from the header.
    """

    duration_seconds_from_header: float | None
    begin_stream_seconds_from_header: float | None
    bit_rate: float | None
    codec: str | None
    stream_index: int
    duration_seconds: float | None
    begin_stream_seconds: float | None

    def __repr__(self) -> str:
        lines = [f"  {field.name}: {getattr(self, field.name)}\n" for field in fields(self)]
        return f"{type(self).__name__}:\n" + "".join(lines)


@dataclass(repr=False)
class VideoStreamMetadata(StreamMetadata):
    """Properties of a video stream; None where the file does not tell.

    Attributes
    ----------
    begin_stream_seconds_from_content, end_stream_seconds_from_content : float or None
    num_frames_from_content : int or None
        What the frames say; None with ``seek_mode="approximate"``.
    width, height : int or None
        In pixels, as displayed: after ``rotation``.
    num_frames_from_header : int or None
    average_fps_from_header : float or None
        What the file says of itself.
    pixel_aspect_ratio : Fraction or None
        Width to height of one pixel; 0 where the file does not tell.
    rotation : float or None
        Degrees counter-clockwise by which frames are turned for display: 90, -90 or -180. Already applied.
    color_primaries, color_space, color_transfer_characteristic, pixel_format : str or None
        FFmpeg's names.
    end_stream_seconds : float or None
    num_frames : int or None
    average_fps : float or None
        From the content if it was scanned, else from the header.
    """

    begin_stream_seconds_from_content: float | None
    end_stream_seconds_from_content: float | None
    width: int | None
    height: int | None
    num_frames_from_header: int | None
    num_frames_from_content: int | None
    average_fps_from_header: float | None
    pixel_aspect_ratio: Fraction | None
    rotation: float | None
    color_primaries: str | None
    color_space: str | None
    color_transfer_characteristic: str | None
    pixel_format: str | None
    end_stream_seconds: float | None
    num_frames: int | None
    average_fps: float | None


@dataclass(repr=False)
class AudioStreamMetadata(StreamMetadata):
    """Properties of an audio stream; None where the file does not tell.

    Attributes
    ----------
    sample_rate, num_channels : int or None
    sample_format : str or None
        FFmpeg's name.
    """

    sample_rate: int | None
    num_channels: int | None
    sample_format: str | None
