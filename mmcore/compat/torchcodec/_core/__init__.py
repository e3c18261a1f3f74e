"""Names that TorchCodec keeps here, as far as they have a meaning without its library."""

from __future__ import annotations

from ._metadata import AudioStreamMetadata, StreamMetadata, VideoStreamMetadata
from ._versions import ffmpeg_major_version, get_ffmpeg_library_versions

__all__ = [
    "AudioStreamMetadata",
    "StreamMetadata",
    "VideoStreamMetadata",
    "ffmpeg_major_version",
    "get_ffmpeg_library_versions",
]
