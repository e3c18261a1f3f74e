"""Training and evaluation: :func:`train`."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmcore.models import save
from mmcore.recipes.batches import StepBatches, to_device
from mmcore.recipes.choices import choose_backend, choose_size
from mmcore.recipes.processes import process_rank
from mmcore.recipes.random_state import seed_all
from mmcore.recipes.report import RecipeResult, write_report
from mmcore.recipes.train_settings import TrainSettings
from mmcore.recipes.trainer import Trainer

from .attributes import CHOICES, Attributes, split_combinations
from .captions import vocabulary
from .media import write_clips
from .metrics import recall
from .model import VIEWS, RetrievalModel
from .pairs import Pair, PairBatch, Pairs, SoundPool
from .retriever import load

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["evaluate", "train"]


@dataclass(frozen=True)
class _Size:
    """How much is trained and measured."""

    steps: int
    batch_size: int
    variants: int
    """Takes of each sound."""
    evaluate_every: int
    files: int
    """Test clips that are written as files and found in an index of them."""


_SIZES = {
    "full": _Size(steps=900, batch_size=64, variants=64, evaluate_every=150, files=256),
    "smallest": _Size(steps=70, batch_size=48, variants=8, evaluate_every=70, files=16),
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
    shuffled: bool = False,
) -> RecipeResult:
    """Train text-to-video retrieval on clips of moving shapes with a sound, and find what was never seen.

    Half of the combinations of shape, colour, motion, size, background and sound are for training; 256 others
    are the test.

    Parameters
    ----------
    folder : path
        Where everything is written: the model, logs, ``report.html``, and test clips as files in ``clips``.
    size : {"full", "smallest"}
        900 steps of 64 pairs, or 70 of 48.
    backend : {"fused", "eager"}
        mmcore's kernels, or plain torch in their place.
    seed : int
    steps : int, optional
        Instead of the size's own.
    resume : bool
        Go on where an interrupted training in ``folder`` stopped, exactly.
    device : str or torch.device
    num_workers : int, optional
        Processes that render clips. None: none on a CPU, where they would take its cores, else 4.
    progress : bool
        Show a progress bar.
    shuffled : bool
        A control: clips are paired with others' captions in the training, and the test shows chance.

    Returns
    -------
    RecipeResult
        Metrics on the test's 256 pairs: "text_to_clip/R@1", "clip_to_text/R@1" and so on, recall at 1 and 5
        and the median rank; "text_to_clip/same_shape" and so on, how often the best clip has that of the
        text; "text_to_video", "text_to_sound" and "text_to_picture" where only that part of
        the clips is there; "picture_to_clip/same_look" and "sound_to_clip/same_sound", how often the best
        clip has the same shape, colour and background, or the same sound; "shape_and_color/precision" of
        texts like "a red circle", among as many clips as there are; "shuffled/R@1" with each text for the
        next clip; "files/R@1" and "memory/R@1" of test clips as files, and of the same in memory.

    Raises
    ------
    ValueError
        For an unknown size or backend.

    Notes
    -----
    With several processes each compares its own part of the batch, as the contrastive loss is not split.
    """
    chosen, kernels = choose_size(size, _SIZES), choose_backend(backend)
    steps = chosen.steps if steps is None else steps
    path = Path(folder)
    if num_workers is None:
        num_workers = 0 if torch.device(device).type == "cpu" else 4
    settings = TrainSettings(
        steps=steps,
        batch_size=chosen.batch_size,
        learning_rate=2e-3,
        warmup_steps=min(50, steps // 4),
        evaluate_every=chosen.evaluate_every,
        checkpoint_every=100,
        seed=seed,
    )
    seed_all(seed)
    words = vocabulary()
    model = RetrievalModel.preset(words.words)
    split = split_combinations(0)
    pairs = Pairs(split.train, words, SoundPool(chosen.variants, seed), leave_out=0.25, shuffled=shuffled)
    takes = SoundPool(8, 2**32 + seed, keep_waves=True)
    validation = _fixed(Pairs(split.validation, words, takes))[1]
    test_pairs, test = _fixed(Pairs(split.test, words, takes))

    def compute_loss(model: RetrievalModel, batch: PairBatch) -> tuple[Tensor, dict[str, Tensor]]:
        return model.losses(batch)

    with kernels:
        history = Trainer(
            model,
            compute_loss,
            StepBatches(pairs, settings.batch_size, seed, num_workers, pairs.collate),
            settings,
            folder=path,
            evaluate=lambda model: _main(evaluate(model, validation, split.validation)),
            device=device,
            progress=progress,
        ).fit(resume)
        metrics = evaluate(model, test, split.test)
        if process_rank() == 0:
            save(model, path)
            metrics |= _evaluate_files(path, test_pairs[: chosen.files], takes, test, device)
    report = path / "report.html"
    if process_rank() == 0:
        text = json.dumps({"size": size, "backend": backend, "seed": seed, "metrics": metrics}, indent=1)
        (path / "metrics.json").write_text(text + "\n", encoding="utf-8")
        report = write_report(
            path,
            "Text and video retrieval",
            history,
            metrics=metrics,
            contributions=_contributions(model, test),
            figures=[("Found for texts about clips never seen", _examples(model, test_pairs, test))],
            notes=[
                f"{len(split.train)} combinations of attributes were for training; the {len(split.test)} of"
                f" the test are others. Chance is R@1 {1 / len(split.test):.1%}."
            ],
        )
    return RecipeResult(path, metrics, history, report)


@torch.inference_mode()
def evaluate(model: RetrievalModel, batch: PairBatch, shown: list[Attributes]) -> dict[str, float]:
    """Metrics on pairs, each of another combination of attributes; see :func:`train`.

    Parameters
    ----------
    model : RetrievalModel
    batch : PairBatch
    shown : list of Attributes
        Of the batch's clips.
    """
    batch = to_device(batch, next(model.parameters()).device)
    was_training = model.training
    model.eval()
    text, views = model.embed_text(batch.words, batch.words_mask), model.views(batch)
    model.train(was_training)
    clip = views["clip"]
    metrics: dict[str, float] = {}
    for name, found in (("text_to_clip", recall(text, clip)), ("clip_to_text", recall(clip, text))):
        metrics |= {f"{name}/{metric}": value for metric, value in found.items()}
    for view in VIEWS[1:]:
        metrics[f"text_to_{view}/R@1"] = recall(text, views[view])["R@1"]
    for number, name in enumerate(CHOICES):
        metrics[f"text_to_clip/same_{name}"] = _alike(text, clip, [a[number] for a in shown])
    metrics["picture_to_clip/same_look"] = _alike(
        views["picture"], clip, [(a.shape, a.color, a.background) for a in shown]
    )
    metrics["sound_to_clip/same_sound"] = _alike(views["sound"], clip, [a.sound for a in shown])
    metrics["shape_and_color/precision"] = _found_by_two(model, clip, shown)
    metrics["shuffled/R@1"] = recall(text.roll(1, 0), clip)["R@1"]
    return metrics


def _alike(queries: Tensor, clips: Tensor, labels: list[Any]) -> float:
    """How often the best clip has the query's label."""
    best = (queries @ clips.T).argmax(1).tolist()
    same = sum(1 for i, j in enumerate(best) if labels[i] == labels[j])
    return same / len(best)


def _found_by_two(model: RetrievalModel, clips: Tensor, shown: list[Attributes]) -> float:
    """R-precision of texts like "a red circle", which leave the rest open, where there are such clips."""
    precisions = []
    for color, shape in sorted({(a.color, a.shape) for a in shown}):
        words, mask = model.vocabulary.encode([f"a {color} {shape}"])
        right = torch.tensor([(a.color, a.shape) == (color, shape) for a in shown])
        scores = clips @ model.embed_text(words.to(clips.device), mask.to(clips.device))[0]
        best = scores.cpu().topk(int(right.sum())).indices
        precisions.append(right[best].double().mean().item())
    return sum(precisions) / len(precisions)


def _main(metrics: dict[str, float]) -> dict[str, float]:
    """Those that are worth a curve."""
    return {name: value for name, value in metrics.items() if name.endswith("R@1")}


def _fixed(pairs: Pairs) -> tuple[list[Pair], PairBatch]:
    """One pair of each combination, always the same."""
    drawn = [pairs.draw(i, i) for i in range(len(pairs))]
    return drawn, pairs.collate(drawn)


def _evaluate_files(
    folder: Path, pairs: list[Pair], pool: SoundPool, batch: PairBatch, device: str | torch.device
) -> dict[str, float]:
    """Metrics of the clips as files, through the saved model; and of the same ones in memory."""
    retriever = load(folder, device=device)
    paths = write_clips(folder / "clips", pairs, pool)
    text = retriever.embed_text([pair.caption for pair in pairs])
    files = torch.stack([retriever.embed_clip(path) for path in paths])
    first = to_device(PairBatch(*(field[: len(pairs)] for field in batch)), retriever.device)
    with torch.inference_mode():
        memory = retriever.model.views(first)["clip"].cpu()
    return {
        "files/R@1": recall(text, files)["R@1"],
        "memory/R@1": recall(text, memory)["R@1"],
        "files/cosine_to_memory": (files * memory).sum(1).mean().item(),
    }


@torch.inference_mode()
def _contributions(model: RetrievalModel, batch: PairBatch) -> dict[str, float]:
    """Mean share of each modality in the fused features."""
    batch = to_device(batch, next(model.parameters()).device)
    found = model.fusion.contributions(model.encode({"video": batch.video, "audio": batch.sound}))
    return dict(zip(found.names, found.clip.mean(0).tolist(), strict=True))


@torch.inference_mode()
def _examples(model: RetrievalModel, pairs: list[Pair], batch: PairBatch) -> Figure:
    """The best three clips for a few texts: frames of each, and what they are; green is the right one."""
    from matplotlib.figure import Figure

    batch = to_device(batch, next(model.parameters()).device)
    scores = model.embed_text(batch.words, batch.words_mask) @ model.views(batch)["clip"].T
    video = batch.video.cpu()
    count, best = 5, 3
    figure = Figure(figsize=(10, 1.5 * count))
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=0.94, hspace=0.75, wspace=0.03)
    grid = figure.subplots(count, best)
    for row in range(count):
        grid[row, 0].text(0, 1.4, f"“{pairs[row].caption}”", fontsize=10, transform=grid[row, 0].transAxes)
        for axes, place in zip(grid[row], scores[row].topk(best).indices.tolist(), strict=True):
            axes.imshow(torch.cat(list(video[place, ::2].permute(0, 2, 3, 1)), 1).numpy())
            axes.set(xticks=[], yticks=[])  # the frame stays: backgrounds may be white
            axes.set_title(
                f"{scores[row, place]:.2f}  {' '.join(pairs[place].shown)}",
                fontsize=7,
                color="#15803d" if place == row else "#4b5563",
            )
    return figure
