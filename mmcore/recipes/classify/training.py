"""The whole recipe: render, train, measure, report."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmcore.models import MultiTaskNet
from mmcore.recipes.batches import StepBatches
from mmcore.recipes.choices import choose_backend, choose_size
from mmcore.recipes.random_state import seed_all
from mmcore.recipes.report import RecipeResult, write_report
from mmcore.recipes.train_settings import TrainSettings
from mmcore.recipes.trainer import Trainer

from .classifier import Classifier
from .dataset import Batch, ClipDataset, collate, render
from .evaluation import Evaluation, evaluate, load_batches, quick_metrics
from .network import build
from .task import ANSWERS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["train"]


@dataclass(frozen=True)
class _Size:
    """How much is rendered and trained."""

    clips: dict[str, int]
    steps: int
    batch_size: int
    evaluations: int


_SIZES = {
    "full": _Size({"train": 4000, "validation": 200, "test": 800}, 2500, batch_size=32, evaluations=4),
    "smallest": _Size({"train": 1200, "validation": 80, "test": 200}, 600, batch_size=32, evaluations=2),
}


def train(
    folder: str | os.PathLike[str],
    *,
    size: str = "full",
    backend: str = "fused",
    seed: int = 0,
    steps: int | None = None,
    resume: bool = False,
    device: str | torch.device = "cpu",
    num_workers: int | None = None,
    progress: bool = True,
    clips: str | os.PathLike[str] | None = None,
    label_share: float = 1.0,
) -> RecipeResult:
    """Train the network on rendered clips, and measure it on people and voices that it never met.

    Parameters
    ----------
    folder : path
        Where the model, the logs and ``report.html`` are written.
    size : {"full", "smallest"}
        "smallest" is for a first look: a minute's work, well above chance.
    backend : {"fused", "eager"}
        mmcore's kernels for fusion and losses, or plain torch in their place.
    seed : int
        Of the clips, the network and the training.
    steps : int, optional
        Instead of the size's own.
    resume : bool
        Go on where an interrupted training in ``folder`` stopped, exactly. Clips that are there are never
        rendered again.
    device : str or torch.device
    num_workers : int, optional
        Processes that render and read clips. None: one for each processor but the one that trains, at least
        one, at most 8.
    progress : bool
        Show a progress bar.
    clips : path, optional
        Where the clips are, or will be. None: ``folder / "clips"``.
    label_share : float
        Part of the labels that the training knows, each task's of each clip by chance.

    Returns
    -------
    RecipeResult
        With the metrics of :class:`~mmcore.recipes.classify.evaluation.Evaluation` on the test's clips.

    Raises
    ------
    ValueError
        For an unknown size or backend, or clips of another seed.
    ImportError
        If scikit-learn, espeakng-loader, safetensors or matplotlib is missing.
    """
    chosen, kernels = choose_size(size, _SIZES), choose_backend(backend)
    if not 0 < label_share <= 1:
        raise ValueError(f"label_share: expected more than 0, at most 1, got {label_share}")
    path = Path(folder)
    steps = chosen.steps if steps is None else steps
    if num_workers is None:
        num_workers = min(8, max(1, _processors() - 1))
    media = path / "clips" if clips is None else Path(clips)
    for split, count in chosen.clips.items():
        renderers = num_workers and num_workers + 1  # nothing is trained meanwhile
        render(media, split, count, seed=seed, num_workers=renderers, progress=progress)
    known = ClipDataset(
        media / "train", chosen.clips["train"], label_share=label_share, seed=seed, augmented=True
    )
    held_out = {
        split: load_batches(ClipDataset(media / split, chosen.clips[split]), num_workers=num_workers)
        for split in ("validation", "test")
    }
    settings = TrainSettings(
        steps=steps,
        batch_size=chosen.batch_size,
        learning_rate=3e-3,
        warmup_steps=min(100, steps // 4),
        evaluate_every=max(1, steps // chosen.evaluations),
        checkpoint_every=200,
        seed=seed,
    )
    seed_all(seed)
    net = build()
    with kernels, _threads(max(1, _processors() - num_workers)):
        history = Trainer(
            net,
            _losses,
            StepBatches(known, settings.batch_size, seed, num_workers, collate),
            settings,
            folder=path,
            evaluate=lambda model: quick_metrics(model, held_out["validation"]),
            device=device,
            progress=progress,
        ).fit(resume=resume)
        found = evaluate(net, held_out["test"], seed=seed)
    Classifier(net).save(path)
    report = write_report(
        path,
        "mmcore classify: what is seen, heard and read",
        history,
        metrics=found.metrics,
        confusion=([str(answer) for answer in ANSWERS], found.confusion),
        contributions=found.contributions,
        figures=[("Accuracy of the answer, and what a perfect model would reach", _ceilings_figure(found))],
        notes=_notes(chosen, label_share),
    )
    return RecipeResult(path, found.metrics, history, report)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with so many threads at most, to leave the workers their processors."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, count))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _losses(model: MultiTaskNet, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    return model.loss(model(batch.inputs, batch.masks, batch.available), batch.targets, batch.labelled)


def _notes(size: _Size, label_share: float) -> list[str]:
    notes = [
        "Each clip shows a moving handwritten digit, says a digit, and writes a word that says what to do"
        " with the two: sum, difference, larger or smaller.",
        f"Trained on {size.clips['train']} clips; measured on {size.clips['test']} by other writers, spoken"
        " by other voices. Curves of evaluations are of a third set of people.",
    ]
    if label_share < 1:
        notes.append(f"Of the labels in the training, {label_share:.0%} were known.")
    return notes


def _ceilings_figure(found: Evaluation) -> Figure:
    """Bars of the answer's accuracies beside what could be reached."""
    from mmcore.recipes.report_figures import new_figure

    names = list(found.ceilings)
    figure = new_figure(9, 0.36 * len(names) + 0.8)
    axes: Any = figure.subplots()
    places = range(len(names))
    axes.barh(places, [found.metrics[n] for n in names], height=0.62, color="#2563eb", label="reached")
    axes.plot(
        [found.ceilings[n] for n in names], places, "|", color="#ea580c", ms=15, mew=3, label="perfect model"
    )
    for place, name in enumerate(names):
        reached = found.metrics[name]
        beside = max(reached, found.ceilings[name]) + 0.015
        axes.text(beside, place, f"{reached:.3f}", va="center", fontsize=8)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.1))
    axes.legend(loc="lower right", frameon=False)
    return figure
