"""Decoding media files: exact frames by number or time, straight into model input tensors."""

from __future__ import annotations

from .audio_decoder import AudioDecoder
from .audio_metadata import AudioStreamMetadata
from .audio_samples import AudioSamples
from .dataset import IterableVideoDataset, VideoDataset
from .frame import Frame, FrameBatch, FrameTimes
from .many_files import DecodedFile, decode_many
from .metadata import VideoStreamMetadata
from .plan import DecodePlan
from .text_decoder import TextDecoder
from .text_segment import TextSegment, TextStreamMetadata
from .video_decoder import VideoDecoder

__all__ = [
    "AudioDecoder",
    "AudioSamples",
    "AudioStreamMetadata",
    "DecodePlan",
    "DecodedFile",
    "Frame",
    "FrameBatch",
    "FrameTimes",
    "IterableVideoDataset",
    "TextDecoder",
    "TextSegment",
    "TextStreamMetadata",
    "VideoDataset",
    "VideoDecoder",
    "VideoStreamMetadata",
    "decode_many",
]
