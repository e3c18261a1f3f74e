"""Decoders, their metadata, and the settings of GPU decoding, which have no effect here."""

from __future__ import annotations

from mmcore.compat.torchcodec._core import AudioStreamMetadata, VideoStreamMetadata

from ._audio_decoder import AudioDecoder
from ._decoder_utils import get_nvdec_cache_capacity, set_cuda_backend, set_nvdec_cache_capacity
from ._video_decoder import CpuFallbackStatus, VideoDecoder

SimpleVideoDecoder = VideoDecoder

__all__ = [
    "AudioDecoder",
    "AudioStreamMetadata",
    "CpuFallbackStatus",
    "SimpleVideoDecoder",
    "VideoDecoder",
    "VideoStreamMetadata",
    "get_nvdec_cache_capacity",
    "set_cuda_backend",
    "set_nvdec_cache_capacity",
]
