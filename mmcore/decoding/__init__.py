"""Decoding media files: exact frames by number or time, straight into model input tensors."""

from __future__ import annotations

from .dataset import IterableVideoDataset, VideoDataset
from .frame import Frame, FrameBatch, FrameTimes
from .many_files import DecodedFile, decode_many
from .metadata import VideoStreamMetadata
from .plan import DecodePlan
from .video_decoder import VideoDecoder

__all__ = [
    "DecodePlan",
    "DecodedFile",
    "Frame",
    "FrameBatch",
    "FrameTimes",
    "IterableVideoDataset",
    "VideoDataset",
    "VideoDecoder",
    "VideoStreamMetadata",
    "decode_many",
]
