"""The place of TorchCodec's audio decoder."""

from __future__ import annotations

from mmcore.compat.torchcodec._errors import NotBuilt

__all__ = ["AudioDecoder"]


class AudioDecoder(NotBuilt):
    """Raises mmcore.UnsupportedError: mmcore does not decode audio yet."""

    _INSTEAD = "decode audio with PyAV or TorchCodec"
