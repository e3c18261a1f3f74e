"""mmcore: compiled-core operations for multimodal video models.

Video files become model input tensors for little more than the bare decode: :class:`VideoDecoder` and
:func:`frames_to_tensor` convert YUV planes to the tensor that a model takes in one pass. Features of several
modalities become one at the memory's speed: :func:`weighted_fusion` and :class:`mmcore.nn.WeightedFusion`.
All heads' losses and gradients come in one pass: :func:`multi_task_loss` and
:class:`mmcore.nn.MultiTaskLoss`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mmcore import _core
from mmcore.backends import backend
from mmcore.errors import DecodeError, DecodeTimeoutError, MMCoreError, UnsupportedError
from mmcore.installation import build_info
from mmcore.ops.contrastive import contrastive_loss
from mmcore.ops.frame_batch_builder import FrameBatchBuilder
from mmcore.ops.frame_transform import FrameTransform, Patches, patches
from mmcore.ops.frames import frames_to_tensor
from mmcore.ops.fusion import weighted_fusion
from mmcore.ops.head_gram import head_gram
from mmcore.ops.loss_task import Task
from mmcore.ops.losses import LossGradients, multi_task_loss, multi_task_value_and_grad
from mmcore.ops.output_pool import clear_output_pool, empty_output, output_pool_limit, set_output_pool_limit
from mmcore.ops.pixel_formats import PIXEL_FORMATS, PixelFormat
from mmcore.ops.planes import ColorSpec, Planes
from mmcore.threads import get_num_threads, set_num_threads

if TYPE_CHECKING:
    from mmcore import nn, samplers
    from mmcore.decoding import (
        DecodedFile,
        DecodePlan,
        Frame,
        FrameBatch,
        FrameTimes,
        IterableVideoDataset,
        VideoDataset,
        VideoDecoder,
        VideoStreamMetadata,
        decode_many,
    )
    from mmcore.sample import write_sample

__version__: str = _core.__version__

__all__ = [
    "PIXEL_FORMATS",
    "ColorSpec",
    "DecodeError",
    "DecodePlan",
    "DecodeTimeoutError",
    "DecodedFile",
    "Frame",
    "FrameBatch",
    "FrameBatchBuilder",
    "FrameTimes",
    "FrameTransform",
    "IterableVideoDataset",
    "LossGradients",
    "MMCoreError",
    "Patches",
    "PixelFormat",
    "Planes",
    "Task",
    "UnsupportedError",
    "VideoDataset",
    "VideoDecoder",
    "VideoStreamMetadata",
    "__version__",
    "backend",
    "build_info",
    "clear_output_pool",
    "contrastive_loss",
    "decode_many",
    "empty_output",
    "frames_to_tensor",
    "get_num_threads",
    "head_gram",
    "multi_task_loss",
    "multi_task_value_and_grad",
    "nn",
    "output_pool_limit",
    "patches",
    "samplers",
    "set_num_threads",
    "set_output_pool_limit",
    "weighted_fusion",
    "write_sample",
]

# Imported at first use: they bring PyAV with them, which costs more than the rest of the package.
_LAZY = {
    "DecodePlan": "mmcore.decoding",
    "DecodedFile": "mmcore.decoding",
    "Frame": "mmcore.decoding",
    "FrameBatch": "mmcore.decoding",
    "FrameTimes": "mmcore.decoding",
    "IterableVideoDataset": "mmcore.decoding",
    "VideoDataset": "mmcore.decoding",
    "VideoDecoder": "mmcore.decoding",
    "VideoStreamMetadata": "mmcore.decoding",
    "decode_many": "mmcore.decoding",
    "write_sample": "mmcore.sample",
}


def __getattr__(name: str) -> Any:
    if name in ("nn", "samplers"):
        return importlib.import_module(f"mmcore.{name}")
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'mmcore' has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted(__all__)
