"""Decoding media files: exact frames by number or time, straight into model input tensors."""

from __future__ import annotations

from .frame import Frame, FrameBatch, FrameTimes
from .metadata import VideoStreamMetadata
from .plan import DecodePlan
from .video_decoder import VideoDecoder

__all__ = ["DecodePlan", "Frame", "FrameBatch", "FrameTimes", "VideoDecoder", "VideoStreamMetadata"]
