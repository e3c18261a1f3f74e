"""mmcore's metadata of a video stream in TorchCodec's fields."""

from __future__ import annotations

from fractions import Fraction

import mmcore
from mmcore.compat.torchcodec._core import VideoStreamMetadata

from ._timeline import Timeline

__all__ = ["video_metadata"]


def video_metadata(m: mmcore.VideoStreamMetadata, timeline: Timeline) -> VideoStreamMetadata:
    """Metadata in TorchCodec's fields and conventions.

    Parameters
    ----------
    m : mmcore.VideoStreamMetadata
    timeline : Timeline
        The decoder's frames: the content, if the file was scanned.
    """
    scanned = m.num_frames_from_content is not None
    begin = timeline.begin_seconds if scanned else m.begin_stream_seconds
    end = timeline.end_seconds if scanned or m.end_stream_seconds is None else m.end_stream_seconds
    return VideoStreamMetadata(
        duration_seconds_from_header=m.duration_seconds_from_header,
        begin_stream_seconds_from_header=m.begin_stream_seconds_from_header,
        bit_rate=m.bit_rate or 0,
        codec=m.codec,
        stream_index=m.stream_index,
        duration_seconds=end - begin,
        begin_stream_seconds=begin,
        begin_stream_seconds_from_content=begin if scanned else None,
        end_stream_seconds_from_content=end if scanned else None,
        width=m.width,
        height=m.height,
        num_frames_from_header=m.num_frames_from_header,
        num_frames_from_content=len(timeline) if scanned else None,
        average_fps_from_header=m.average_fps_from_header,
        pixel_aspect_ratio=m.pixel_aspect_ratio or Fraction(0),
        # mmcore's is clockwise, in [0, 360)
        rotation=None if not m.rotation else float(360 - m.rotation if m.rotation > 180 else -m.rotation),
        color_primaries=m.color_primaries,
        color_space=m.color_space,
        color_transfer_characteristic=m.color_transfer_characteristic,
        pixel_format=m.pixel_format,
        end_stream_seconds=end,
        num_frames=len(timeline),
        average_fps=len(timeline) / (end - begin) if scanned and end > begin else m.average_fps_from_header,
    )
