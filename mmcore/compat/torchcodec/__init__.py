"""TorchCodec's interface on top of mmcore: put ``mmcore.compat.`` before ``torchcodec`` in import lines.

It follows TorchCodec 0.13: names, shapes, dtypes, errors and module paths. ``docs/torchcodec.md`` lists what
differs.
"""

from __future__ import annotations

from . import decoders, encoders, samplers, transforms
from ._core import ffmpeg_major_version
from ._frame import AudioSamples, Frame, FrameBatch

__version__ = "0.13.0"
"""The version of TorchCodec whose interface this is."""

__all__ = [
    "AudioSamples",
    "Frame",
    "FrameBatch",
    "decoders",
    "encoders",
    "ffmpeg_major_version",
    "samplers",
    "transforms",
]
