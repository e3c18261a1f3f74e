"""TorchCodec's encoders, which mmcore does not have: their names can be imported, using them raises."""

from __future__ import annotations

from mmcore.compat.torchcodec._errors import NotBuilt

__all__ = ["AudioEncoder", "AudioStream", "Encoder", "VideoEncoder", "VideoStream"]


class _NotBuilt(NotBuilt):
    _INSTEAD = "encode with PyAV or TorchCodec"


class AudioEncoder(_NotBuilt):
    """Raises mmcore.UnsupportedError."""


class VideoEncoder(_NotBuilt):
    """Raises mmcore.UnsupportedError."""


class Encoder(_NotBuilt):
    """Raises mmcore.UnsupportedError."""


class AudioStream(_NotBuilt):
    """Raises mmcore.UnsupportedError."""


class VideoStream(_NotBuilt):
    """Raises mmcore.UnsupportedError."""
