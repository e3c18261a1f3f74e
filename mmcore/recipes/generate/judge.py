"""The judge: a classifier of real clips, which says what is to be seen in generated ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

import mmcore
from mmcore.models import CNN, ClassificationHead, Fusion, MultiTaskNet
from mmcore.nn import MultiTaskLoss

__all__ = ["accuracies", "classify", "judge_loss", "make_judge"]


def make_judge(values: Mapping[str, Sequence[str]], *, dim: int, widths: Sequence[int]) -> MultiTaskNet:
    """Make a video classifier with a head for each attribute."""
    return MultiTaskNet(
        {"video": CNN(dim, widths=widths, temporal="3d", grid=6)},
        Fusion({"video": dim}, dim),
        {name: ClassificationHead(dim, len(words)) for name, words in values.items()},
        MultiTaskLoss({name: mmcore.Task.cross_entropy() for name in values}),
    )


def judge_loss(judge: MultiTaskNet, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses of clips with some noise, for the judge is to look at shapes, not at single levels."""
    video = _levels(batch["video"])
    strength = 0.1 * torch.rand(len(video), 1, 1, 1, 1, device=video.device)
    outputs = judge({"video": video + strength * torch.randn_like(video)})
    total, losses = judge.loss(outputs, {name: batch[name] for name in judge.heads})
    return total, losses


def _levels(video: Tensor) -> Tensor:
    return video.float() / 127.5 - 1


@torch.no_grad()
def classify(judge: MultiTaskNet, clips: Tensor) -> dict[str, Tensor]:
    """Most likely value of each attribute, as numbers (N,), of uint8 clips (N, T, 3, H, W)."""
    device = next(judge.parameters()).device
    training = judge.training
    judge.eval()
    found = [judge({"video": _levels(part.to(device))}) for part in torch.split(clips, 128)]
    judge.train(training)
    return {name: torch.cat([part[name].argmax(-1) for part in found]).cpu() for name in judge.heads}


def accuracies(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, float]:
    """Part of the clips for which each attribute is right, and "all": for which every one is."""
    right = {name: found[name] == expected[name] for name in expected}
    every = torch.stack(list(right.values())).all(0)
    return {name: value.float().mean().item() for name, value in (right | {"all": every}).items()}
