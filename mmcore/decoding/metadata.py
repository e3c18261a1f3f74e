"""What is known of a video stream without decoding more than its first frame."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    from .index import FrameIndex

__all__ = ["VideoStreamMetadata", "clockwise_rotation", "read_metadata"]

# ITU-T H.273 code points, by FFmpeg's names; unspecified ones are None.
_SPACES = {
    0: "rgb", 1: "bt709", 4: "fcc", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "ycgco", 9: "bt2020nc",
    10: "bt2020c", 12: "chroma-derived-nc", 13: "chroma-derived-c", 14: "ictcp",
}  # fmt: skip
_PRIMARIES = {
    1: "bt709", 4: "bt470m", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "film", 9: "bt2020",
    10: "smpte428", 11: "smpte431", 12: "smpte432", 22: "ebu3213",
}  # fmt: skip
_TRANSFERS = {
    1: "bt709", 4: "gamma22", 5: "gamma28", 6: "smpte170m", 7: "smpte240m", 8: "linear", 13: "iec61966-2-1",
    14: "bt2020-10", 15: "bt2020-12", 16: "smpte2084", 17: "smpte428", 18: "arib-std-b67",
}  # fmt: skip
_RANGES = {1: "limited", 2: "full"}


@dataclass(frozen=True)
class VideoStreamMetadata:
    """A video stream's properties. Fields that the file does not tell are None.

    Attributes
    ----------
    stream_index : int
        Number of the stream in the file.
    codec : str
        Such as "h264", "hevc", "vp9", "av1".
    width, height : int
        In pixels, as displayed: after ``rotation``.
    rotation : int
        Degrees clockwise by which decoded frames are turned for display: 0, 90, 180 or 270. Already applied
        to every frame the decoder gives. A display matrix that mirrors is read as FFmpeg reads its angle,
        without the mirroring.
    pixel_format : str
        FFmpeg's name, such as "yuv420p10le".
    color_space, color_primaries, color_transfer_characteristic, color_range : str or None
        FFmpeg's names; the range is "limited" or "full".
    pixel_aspect_ratio : Fraction or None
        Width to height of one pixel; frames are not stretched by it.
    bit_rate : int or None
        Bits per second of this stream.
    duration_seconds_from_header, begin_stream_seconds_from_header : float or None
    num_frames_from_header : int or None
    average_fps_from_header : float or None
        What the file says of itself, right or wrong.
    begin_stream_seconds_from_content, end_stream_seconds_from_content : float or None
    num_frames_from_content : int or None
        What the frames say; None with ``seek_mode="approximate"``.
    damage : str or None
        Why reading the file ended before its end, if it did: then the last frames are missing.
    """

    stream_index: int
    codec: str
    width: int
    height: int
    rotation: int
    pixel_format: str | None
    color_space: str | None
    color_primaries: str | None
    color_transfer_characteristic: str | None
    color_range: str | None
    pixel_aspect_ratio: Fraction | None
    bit_rate: int | None
    duration_seconds_from_header: float | None
    begin_stream_seconds_from_header: float | None
    num_frames_from_header: int | None
    average_fps_from_header: float | None
    begin_stream_seconds_from_content: float | None
    end_stream_seconds_from_content: float | None
    num_frames_from_content: int | None
    damage: str | None = None

    @property
    def num_frames(self) -> int | None:
        """Number of frames: from the content if known, else from the header."""
        content = self.num_frames_from_content
        return self.num_frames_from_header if content is None else content

    @property
    def begin_stream_seconds(self) -> float:
        """When the first frame appears."""
        content = self.begin_stream_seconds_from_content
        return (self.begin_stream_seconds_from_header or 0.0) if content is None else content

    @property
    def end_stream_seconds(self) -> float | None:
        """When the last frame ends."""
        if self.end_stream_seconds_from_content is not None:
            return self.end_stream_seconds_from_content
        duration = self.duration_seconds_from_header
        return None if duration is None else self.begin_stream_seconds + duration

    @property
    def duration_seconds(self) -> float | None:
        """From the first frame's appearance to the last one's end."""
        end = self.end_stream_seconds
        return None if end is None else end - self.begin_stream_seconds

    @property
    def average_fps(self) -> float | None:
        """Frames per second: from the content if known, else from the header."""
        count, duration = self.num_frames_from_content, self.duration_seconds
        return count / duration if count and duration else self.average_fps_from_header


def clockwise_rotation(frame: VideoFrame) -> int:
    """Degrees clockwise by which ``frame`` is turned for display; angles between right angles count as 0."""
    # frame.side_data would tell of mirroring too, but PyAV never frees a frame that was asked for it.
    angle = -round(frame.rotation) % 360
    return angle if angle % 90 == 0 else 0


def read_metadata(
    container: InputContainer, stream: VideoStream, index: FrameIndex, first_frame: VideoFrame | None
) -> VideoStreamMetadata:
    """Gather the metadata of an open stream; ``first_frame`` is None if it cannot be decoded."""
    codec = stream.codec_context
    tb = stream.time_base or index.time_base
    # Only a frame carries the display matrix, and it knows its colours better than the header does.
    told = codec if first_frame is None else first_frame
    rotation = 0 if first_frame is None else clockwise_rotation(first_frame)
    width, height = told.width, told.height
    duration = None if stream.duration is None else float(stream.duration * tb)
    if duration is None and container.duration is not None:
        duration = container.duration / 1_000_000
    rate = stream.average_rate
    return VideoStreamMetadata(
        stream_index=stream.index,
        codec=codec.codec.canonical_name,
        width=height if rotation % 180 else width,
        height=width if rotation % 180 else height,
        rotation=rotation,
        pixel_format=told.format.name if told.format else None,
        color_space=_SPACES.get(told.colorspace),
        color_primaries=_PRIMARIES.get(told.color_primaries),
        color_transfer_characteristic=_TRANSFERS.get(told.color_trc),
        color_range=_RANGES.get(told.color_range),
        pixel_aspect_ratio=stream.sample_aspect_ratio or None,
        bit_rate=codec.bit_rate or None,
        duration_seconds_from_header=duration,
        begin_stream_seconds_from_header=None if stream.start_time is None else float(stream.start_time * tb),
        num_frames_from_header=stream.frames or None,
        average_fps_from_header=None if rate is None else float(rate),
        begin_stream_seconds_from_content=index.start_seconds(0) if index.exact else None,
        end_stream_seconds_from_content=index.seconds(index.end) if index.exact else None,
        num_frames_from_content=len(index) if index.exact else None,
        damage=index.damage,
    )
