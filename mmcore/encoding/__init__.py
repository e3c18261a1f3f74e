"""Writing media files: tensors, waveforms and timed text to the streams of one container, on one clock."""

from __future__ import annotations

from .encode_media import encode
from .encoder import Encoder

__all__ = ["Encoder", "encode"]
