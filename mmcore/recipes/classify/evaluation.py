"""What a trained network can do: with all modalities, without some, and with some that belong elsewhere."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mmcore.models import MultiTaskNet
from mmcore.recipes.batches import to_device

from .dataset import TASKS, Batch, ClipDataset, collate
from .task import ANSWERS, MODALITIES, OPERATIONS, ceiling, shuffled_ceiling

__all__ = ["Evaluation", "evaluate", "load_batches", "quick_metrics"]


@dataclass(frozen=True)
class Evaluation:
    """What was found on held-out clips.

    Attributes
    ----------
    metrics : dict of str to float
        Accuracies of "answer", "seen", "heard" and "operation"; "position error", the mean distance of the
        digit's place from where it was taken to be, in parts of the picture's side. Accuracies of the answer
        "from VIDEO alone", "without VIDEO" and so on, with one modality taken from another clip ("another
        clip's VIDEO"), and against the true answers of other clips ("another clip's answer").
    ceilings : dict of str to float
        For some of the metrics, what a perfect model would reach.
    confusion : Tensor
        (19, 19) int64: answers by the true one and the one given.
    contributions : dict of str to dict of str to float
        By operation, each modality's mean share of the fused features.
    """

    metrics: dict[str, float]
    ceilings: dict[str, float]
    confusion: Tensor
    contributions: dict[str, dict[str, float]]


def load_batches(dataset: ClipDataset, *, batch_size: int = 100, num_workers: int = 0) -> list[Batch]:
    """Read a dataset once, in its order."""
    return list(DataLoader(dataset, batch_size, num_workers=num_workers, collate_fn=collate))


def quick_metrics(net: MultiTaskNet, batches: Iterable[Batch]) -> dict[str, float]:
    """The metrics of each head with all modalities there."""
    outputs, targets = _run(net, batches)
    metrics = {task: _accuracy(outputs, targets, task) for task in TASKS if task != "position"}
    distance = (outputs["position"] - targets["position"]).norm(dim=1)
    return metrics | {"position error": distance.mean().item()}


@torch.no_grad()
def evaluate(net: MultiTaskNet, batches: Sequence[Batch], *, seed: int = 0) -> Evaluation:
    """Measure a network, in evaluation mode, on held-out clips.

    Parameters
    ----------
    net : MultiTaskNet
    batches : sequence of Batch
    seed : int
        Of the shuffling.
    """
    metrics = quick_metrics(net, batches)
    ceilings = {"answer": ceiling(MODALITIES)}
    outputs, targets = _run(net, batches)
    answers, truth = outputs["answer"].argmax(1), targets["answer"]
    for modality in MODALITIES:
        others = [name for name in MODALITIES if name != modality]
        for name, kept in ((f"from {modality} alone", [modality]), (f"without {modality}", others)):
            metrics[name] = _accuracy(*_run(net, batches, kept=kept), "answer")
            ceilings[name] = ceiling(kept)
    generator = torch.Generator().manual_seed(seed)
    for modality in MODALITIES:
        name = f"another clip's {modality}"
        shuffled = [_shuffled(batch, modality, generator) for batch in batches]
        metrics[name] = _accuracy(*_run(net, shuffled), "answer")
        ceilings[name] = shuffled_ceiling(modality)
    order = torch.randperm(len(truth), generator=generator)
    metrics["another clip's answer"] = (answers == truth[order]).float().mean().item()
    ceilings["another clip's answer"] = _by_chance(truth)
    return Evaluation(metrics, ceilings, _confusion(truth, answers), _contributions(net, batches))


def _run(
    net: MultiTaskNet, batches: Iterable[Batch], *, kept: Collection[str] = MODALITIES
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs and targets of all clips, with only some modalities."""
    device = next(net.parameters()).device
    outputs: list[dict[str, Tensor]] = []
    targets: list[dict[str, Tensor]] = []
    there = torch.tensor([name in kept for name in MODALITIES])
    for batch in batches:
        moved = to_device(batch, device)
        found = net(moved.inputs, moved.masks, moved.available & there.to(device))
        outputs.append({task: found[task].float().cpu() for task in TASKS})
        targets.append(batch.targets)
    return _joined(outputs), _joined(targets)


def _joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {task: torch.cat([part[task] for part in parts]) for task in TASKS}


def _accuracy(outputs: dict[str, Tensor], targets: dict[str, Tensor], task: str) -> float:
    return (outputs[task].argmax(1) == targets[task]).float().mean().item()


def _shuffled(batch: Batch, modality: str, generator: torch.Generator) -> Batch:
    """The batch with one modality dealt out anew among its clips."""
    order = torch.randperm(len(batch.available), generator=generator)
    return batch._replace(
        inputs=batch.inputs | {modality: batch.inputs[modality][order]},
        masks=batch.masks | {modality: batch.masks[modality][order]},
    )


def _by_chance(truth: Tensor) -> float:
    """How often an answer equals that of a clip drawn at random."""
    shares = torch.bincount(truth, minlength=len(ANSWERS)) / len(truth)
    return shares.square().sum().item()


def _confusion(truth: Tensor, answers: Tensor) -> Tensor:
    size = len(ANSWERS)
    return torch.bincount(truth * size + answers, minlength=size * size).view(size, size)


def _contributions(net: MultiTaskNet, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
    device = next(net.parameters()).device
    parts, operations = [], []
    for batch in batches:
        inputs, masks, available = to_device((batch.inputs, batch.masks, batch.available), device)
        parts.append(net.contributions(inputs, masks, available).clip.cpu())
        operations.append(batch.targets["operation"])
    shares, which = torch.cat(parts), torch.cat(operations)
    return {
        operation.name: dict(zip(MODALITIES, shares[which == i].mean(0).tolist(), strict=True))
        for i, operation in enumerate(OPERATIONS)
        if bool((which == i).any())
    }
