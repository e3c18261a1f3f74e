"""One space for clips, pictures, sounds and sentences: the model and its losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mmcore
from mmcore.models import CNN, RNN, ClassificationHead, EmbeddingHead, Features, Fusion, Transformer
from mmcore.nn import MultiTaskLoss

from .attributes import CHOICES
from .captions import MAX_WORDS, Vocabulary
from .pairs import MEL, PairBatch

__all__ = ["VIEWS", "RetrievalModel"]

VIEWS = ("clip", "video", "sound", "picture")
"""Parts of a clip that have an embedding: all of it, what is seen, what is heard, one frame."""

_UNSAID = -100  # a class that cross_entropy passes over
_MAX_SCALE = 100.0  # CLIP's: beyond it single pairs would decide a batch


class RetrievalModel(nn.Module):
    """Encoders of video and sound, fused to one embedding, and of text to another of the same space.

    Parameters
    ----------
    video, audio, text : nn.Module
        Encoders as :mod:`mmcore.models` has them. That of video reads 6 channels: RGB, and how it differs
        from the frame before.
    words : sequence of str
        Those that ``text`` knows, in the order of their numbers.
    dim : int
        Of the embeddings.
    view_weight : float
        Weight of the losses of "video", "sound" and "picture" alone; that of the clip has 1.
    attribute_weight : float
        Weight of naming the attributes from the embeddings; 0 leaves that out.

    Notes
    -----
    The loss is CLIP's (Radford et al. 2021) for each view v,

        L = sum_v w_v (CE(s E_v E_t^T) + CE(s E_t E_v^T)) / 2 + w_a sum_a CE_a

    with embeddings E of length 1 and a learned factor s, which begins at 1 / 0.07 and is at most 100. CE_a
    names an attribute from the clip's embedding and from the text's, with the same weights: most of a batch
    can be told apart by some of the attributes, so that the contrast alone learns the others slowly. The
    views share encoders: sound alone is the fusion with the video masked, so that one forward of each encoder
    serves three views.
    """

    def __init__(
        self,
        video: nn.Module,
        audio: nn.Module,
        text: nn.Module,
        words: Sequence[str],
        *,
        dim: int = 64,
        view_weight: float = 0.2,
        attribute_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "video": video,
            "audio": audio,
            "text": text,
            "words": list(words),
            "dim": dim,
            "view_weight": view_weight,
            "attribute_weight": attribute_weight,
        }
        self.dim = dim
        self.vocabulary = Vocabulary(words)
        self.video, self.audio, self.text = video, audio, text
        width = int(cast(int, text.dim))
        self.fusion = Fusion({"video": int(cast(int, video.dim)), "audio": int(cast(int, audio.dim))}, width)
        self.clip_head = EmbeddingHead(width, dim, hidden=2 * width)
        self.text_head = EmbeddingHead(width, dim, hidden=2 * width)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(0.07)))
        tasks = {view: mmcore.Task.value() for view in VIEWS}
        weights = {view: 1.0 if view == "clip" else view_weight for view in VIEWS}
        self.attribute_heads = nn.ModuleDict()
        if attribute_weight:
            for name, values in CHOICES.items():
                self.attribute_heads[name] = ClassificationHead(dim, len(values))
                tasks[f"name_{name}"], weights[f"name_{name}"] = mmcore.Task.cross_entropy(), attribute_weight
        self.criterion = MultiTaskLoss(tasks, weights=weights)

    @classmethod
    def preset(cls, words: Sequence[str], *, width: int = 128, **options: Any) -> RetrievalModel:
        """Make the model with small encoders of this width."""
        return cls(
            CNN(width, in_channels=6, widths=(24, 48), stem_stride=4),
            RNN(width, num_mels=MEL.n_mels, hidden=64, stride=5),
            Transformer(width, vocabulary=len(Vocabulary(words)), max_length=MAX_WORDS),
            words,
            **options,
        )

    def embed_text(self, words: Tensor, mask: Tensor) -> Tensor:
        """Embeddings (B, dim) of word numbers (B, L)."""
        return self.text_head(*self.text(words, mask))  # type: ignore[no-any-return]

    def encode(
        self, inputs: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None
    ) -> dict[str, Features]:
        """Features of the modalities that are there.

        Parameters
        ----------
        inputs : mapping of str to Tensor
            "video": (B, T, 3, H, W), uint8, or floating-point from 0 to 1; "audio": log-mel frames
            (B, S, mels). One of them may be missing.
        masks : mapping of str to Tensor, optional
            By modality, (B, T) or (B, S) bool: which frames are there.
        """
        masks = masks or {}
        features = {}
        if "video" in inputs:
            video = inputs["video"]
            video = video.float() / 127.5 - 1 if video.dtype == torch.uint8 else 2 * video - 1
            # How each frame differs from the one before says where things move: without it, the network has
            # to find that out from the places of features, and takes several times as many steps.
            change = F.pad(video[:, 1:] - video[:, :-1], (0, 0) * 3 + (1, 0))
            features["video"] = self.video(torch.cat([video, change], 2), masks.get("video"))
        if "audio" in inputs:
            features["audio"] = self.audio(inputs["audio"], masks.get("audio"))
        return features

    def embed(self, features: Mapping[str, Features], available: Tensor | None = None) -> Tensor:
        """Embeddings (B, dim) of what :meth:`encode` gave and, of it, ``available`` (B, 2) says is there."""
        return self.clip_head(self.fusion(features, available))  # type: ignore[no-any-return]

    def views(self, batch: PairBatch) -> dict[str, Tensor]:
        """Embeddings (B, dim) of each of ``VIEWS``."""
        whole = self.encode({"video": batch.video, "audio": batch.sound})
        rows = torch.arange(len(batch.video), device=batch.video.device)
        parts = {
            "clip": whole,
            "video": {"video": whole["video"]},
            "sound": {"audio": whole["audio"]},
            "picture": self.encode({"video": batch.video[rows, batch.picture][:, None]}),
        }
        return {view: self.embed(features) for view, features in parts.items()}

    def losses(self, batch: PairBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The total, and each task's own loss."""
        views = self.views(batch)
        text = self.embed_text(batch.words, batch.words_mask)
        scale = self.log_scale.exp().clamp(max=_MAX_SCALE)
        outputs = {view: mmcore.contrastive_loss(found, text, scale) for view, found in views.items()}
        targets: dict[str, Tensor | None] = dict.fromkeys(outputs)
        both = torch.cat([views["clip"], text]) * math.sqrt(self.dim)  # numbers of about 1
        shown, told = batch.attributes, batch.attributes.masked_fill(~batch.said, _UNSAID)
        for number, name in enumerate(CHOICES):
            if name in self.attribute_heads:
                outputs[f"name_{name}"] = self.attribute_heads[name](both)
                targets[f"name_{name}"] = torch.cat([shown[:, number], told[:, number]])
        total, losses = self.criterion(outputs, targets)
        assert isinstance(losses, dict)
        return total, losses
