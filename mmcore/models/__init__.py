"""Networks for video, sound and text: encoders, fusion, heads, and all of it as one multi-task network."""

from __future__ import annotations

from mmcore.models.clip_inputs import ClipInputs, clip_inputs
from mmcore.models.cnn import CNN
from mmcore.models.features import Encoder, Features, masked_mean
from mmcore.models.frame_encoder import FrameEncoder, from_timm
from mmcore.models.fusion import Contributions, Fusion
from mmcore.models.heads import ClassificationHead, EmbeddingHead, Head, RegressionHead
from mmcore.models.multi_task_net import MultiTaskNet
from mmcore.models.rnn import RNN
from mmcore.models.saving import load, save
from mmcore.models.transformer import Transformer
from mmcore.models.transformers_encoder import TransformersEncoder, from_transformers

__all__ = [
    "CNN",
    "RNN",
    "ClassificationHead",
    "ClipInputs",
    "Contributions",
    "EmbeddingHead",
    "Encoder",
    "Features",
    "FrameEncoder",
    "Fusion",
    "Head",
    "MultiTaskNet",
    "RegressionHead",
    "Transformer",
    "TransformersEncoder",
    "clip_inputs",
    "from_timm",
    "from_transformers",
    "load",
    "masked_mean",
    "save",
]
