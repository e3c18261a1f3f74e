"""The FFmpeg that PyAV brings with it."""

from __future__ import annotations

import av

__all__ = ["ffmpeg_major_version", "get_ffmpeg_library_versions"]

# A build from a repository has no number of its own; FFmpeg 4 had libavcodec 58, and both have kept step.
ffmpeg_major_version: int = av.library_versions["libavcodec"][0] - 54


def get_ffmpeg_library_versions() -> dict[str, str]:
    """Versions of FFmpeg ("ffmpeg_version") and of its libraries, such as "8.1.2" and "62.28.102"."""
    libraries = {name: ".".join(map(str, numbers)) for name, numbers in av.library_versions.items()}
    return {**libraries, "ffmpeg_version": av.ffmpeg_version_info}
