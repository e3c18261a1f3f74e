"""Decoding media files: exact frames by number or time, straight into model input tensors."""

from __future__ import annotations

from .frame import Frame, FrameBatch, FrameTimes
from .metadata import VideoStreamMetadata
from .video_decoder import VideoDecoder

__all__ = ["Frame", "FrameBatch", "FrameTimes", "VideoDecoder", "VideoStreamMetadata"]
