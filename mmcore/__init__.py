"""mmcore: compiled-core operations for multimodal video models.

Video files become model input tensors for little more than the bare decode: :class:`VideoDecoder` and
:func:`frames_to_tensor` convert YUV planes to the tensor that a model takes in one pass. Sound and words come
with them: :class:`AudioDecoder`, :func:`log_mel` and :class:`TextDecoder`; :func:`read_clip` reads all of one
moment, on one clock, and :func:`encode` writes it. Features of several modalities become one at the memory's
speed: :func:`weighted_fusion` and :class:`mmcore.nn.WeightedFusion`. All heads' losses and gradients come in
one pass: :func:`multi_task_loss` and :class:`mmcore.nn.MultiTaskLoss`. :mod:`mmcore.models` builds networks
on these, :mod:`mmcore.recipes` trains them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mmcore import _core
from mmcore.backends import backend
from mmcore.errors import DecodeError, DecodeTimeoutError, MMCoreError, UnsupportedError
from mmcore.installation import build_info
from mmcore.ops.color_matrix import color_matrix
from mmcore.ops.contrastive import contrastive_loss
from mmcore.ops.frame_batch_builder import FrameBatchBuilder
from mmcore.ops.frame_transform import FrameTransform, Patches, patches
from mmcore.ops.frames import frames_to_tensor
from mmcore.ops.fusion import weighted_fusion
from mmcore.ops.head_gram import head_gram
from mmcore.ops.log_mel import log_mel
from mmcore.ops.log_mel_settings import LogMelSettings
from mmcore.ops.loss_task import Task
from mmcore.ops.losses import LossGradients, multi_task_loss, multi_task_value_and_grad
from mmcore.ops.output_pool import clear_output_pool, empty_output, output_pool_limit, set_output_pool_limit
from mmcore.ops.pixel_formats import PIXEL_FORMATS, PixelFormat
from mmcore.ops.planes import ColorSpec, Planes
from mmcore.ops.tensor_to_planes import tensor_to_planes
from mmcore.threads import get_num_threads, set_num_threads

if TYPE_CHECKING:
    from mmcore import clips, interop, models, nn, recipes, samplers
    from mmcore.clips import Clip, ClipBatch, collate_clips, read_clip
    from mmcore.decoding import (
        AudioDecoder,
        AudioSamples,
        AudioStreamMetadata,
        DecodedFile,
        DecodePlan,
        Frame,
        FrameBatch,
        FrameTimes,
        IterableVideoDataset,
        TextDecoder,
        TextSegment,
        TextStreamMetadata,
        VideoDataset,
        VideoDecoder,
        VideoStreamMetadata,
        decode_many,
    )
    from mmcore.encoding import Encoder, encode
    from mmcore.sample import write_sample
    from mmcore.tokenizers import ByteTokenizer, TimedTokens, tokenize_segments

__version__: str = _core.__version__

__all__ = [
    "PIXEL_FORMATS",
    "AudioDecoder",
    "AudioSamples",
    "AudioStreamMetadata",
    "ByteTokenizer",
    "Clip",
    "ClipBatch",
    "ColorSpec",
    "DecodeError",
    "DecodePlan",
    "DecodeTimeoutError",
    "DecodedFile",
    "Encoder",
    "Frame",
    "FrameBatch",
    "FrameBatchBuilder",
    "FrameTimes",
    "FrameTransform",
    "IterableVideoDataset",
    "LogMelSettings",
    "LossGradients",
    "MMCoreError",
    "Patches",
    "PixelFormat",
    "Planes",
    "Task",
    "TextDecoder",
    "TextSegment",
    "TextStreamMetadata",
    "TimedTokens",
    "UnsupportedError",
    "VideoDataset",
    "VideoDecoder",
    "VideoStreamMetadata",
    "__version__",
    "backend",
    "build_info",
    "clear_output_pool",
    "clips",
    "collate_clips",
    "color_matrix",
    "contrastive_loss",
    "decode_many",
    "empty_output",
    "encode",
    "frames_to_tensor",
    "get_num_threads",
    "head_gram",
    "interop",
    "log_mel",
    "models",
    "multi_task_loss",
    "multi_task_value_and_grad",
    "nn",
    "output_pool_limit",
    "patches",
    "read_clip",
    "recipes",
    "samplers",
    "set_num_threads",
    "set_output_pool_limit",
    "tensor_to_planes",
    "tokenize_segments",
    "weighted_fusion",
    "write_sample",
]

# Imported at first use: they bring PyAV with them, which costs more than the rest of the package.
_LAZY = {
    "AudioDecoder": "mmcore.decoding",
    "AudioSamples": "mmcore.decoding",
    "AudioStreamMetadata": "mmcore.decoding",
    "ByteTokenizer": "mmcore.tokenizers",
    "Clip": "mmcore.clips",
    "ClipBatch": "mmcore.clips",
    "DecodePlan": "mmcore.decoding",
    "DecodedFile": "mmcore.decoding",
    "Encoder": "mmcore.encoding",
    "Frame": "mmcore.decoding",
    "FrameBatch": "mmcore.decoding",
    "FrameTimes": "mmcore.decoding",
    "IterableVideoDataset": "mmcore.decoding",
    "TextDecoder": "mmcore.decoding",
    "TextSegment": "mmcore.decoding",
    "TextStreamMetadata": "mmcore.decoding",
    "TimedTokens": "mmcore.tokenizers",
    "VideoDataset": "mmcore.decoding",
    "VideoDecoder": "mmcore.decoding",
    "VideoStreamMetadata": "mmcore.decoding",
    "collate_clips": "mmcore.clips",
    "decode_many": "mmcore.decoding",
    "encode": "mmcore.encoding",
    "tokenize_segments": "mmcore.tokenizers",
    "write_sample": "mmcore.sample",
    "read_clip": "mmcore.clips",
}


def __getattr__(name: str) -> Any:
    if name in ("clips", "interop", "models", "nn", "recipes", "samplers"):
        return importlib.import_module(f"mmcore.{name}")
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'mmcore' has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted(__all__)
