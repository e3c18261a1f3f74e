"""Training on a folder of one's own files with a table of labels."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import mmcore
from mmcore.clips import Clip
from mmcore.errors import MMCoreError
from mmcore.models import MultiTaskNet
from mmcore.nn import MultiTaskLoss
from mmcore.recipes.batches import StepBatches, to_device
from mmcore.recipes.choices import choose_backend, choose_size
from mmcore.recipes.folder.clips import Batch, ClipOptions, Collate, LabelledClips, read_all
from mmcore.recipes.folder.predictor import FolderModel
from mmcore.recipes.folder.table import Column, LabelTable, read_table
from mmcore.recipes.processes import process_count, process_rank
from mmcore.recipes.random_state import seed_all
from mmcore.recipes.report import RecipeResult, write_report
from mmcore.recipes.train_settings import TrainSettings
from mmcore.recipes.trainer import Trainer

__all__ = ["train"]

_SIZES = {
    "full": ClipOptions(),
    "smallest": ClipOptions(num_frames=4, image_size=32, seconds=4.0, num_mels=32),
}
_VALIDATION = 0.2
_BATCH = 16
_MEMORY = 1 << 30
_BASELINES = (" of the most common", " of the mean")
"""Ends of metrics' names: what is reached without looking at the files."""


def train(
    folder: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    labels: str | os.PathLike[str] | None = None,
    file_column: str | None = None,
    columns: Iterable[str] | None = None,
    numbers: Iterable[str] = (),
    classes: Iterable[str] = (),
    group: str | None = None,
    preset: str = "tiny",
    weighting: str = "uncertainty",
    size: str = "full",
    backend: str = "fused",
    seed: int = 0,
    steps: int | None = None,
    resume: bool = False,
    device: str = "cpu",
    num_workers: int | None = None,
    progress: bool = True,
) -> RecipeResult:
    """Train a network on media files of your own, with as many labels as the table has columns.

    Parameters
    ----------
    folder : path
        Where the model, the checkpoint, the logs and the report are written.
    data : path
        Folder of the media files.
    labels : path
        CSV file; see :func:`mmcore.recipes.folder.table.read_table`, which takes ``file_column``,
        ``columns``, ``numbers``, ``classes`` and ``group``.
    preset : {"tiny", "base"}
        Of :meth:`mmcore.models.MultiTaskNet.preset`.
    weighting : str
        Of the labels' losses: a strategy of :class:`mmcore.nn.MultiTaskLoss`.
    size : {"full", "smallest"}
        How much is read of each file: 8 pictures of 96x96 and 10 s of sound, or 4 of 32x32 and 4 s.
    backend : {"fused", "eager"}
        mmcore's kernels for fusion and losses, or plain torch.
    seed : int
    steps : int, optional
        Default: 40 times through the files, but 150 steps at least and 3000 at most.
    resume : bool
        Go on from the folder's checkpoint.
    device : str
    num_workers : int, optional
        Processes that read files; default: none if all clips fit into memory (1 GiB), else as many as there
        are processors less one, at most 4, so that one is left to train.
    progress : bool

    Returns
    -------
    RecipeResult

    Raises
    ------
    ValueError
        For arguments, or a table, that do not fit.
    MMCoreError
        If fewer than two files can be read.
    """
    if data is None or labels is None:
        raise ValueError("data, labels: expected the folder of the files and the CSV file of their labels")
    options, kernels = choose_size(size, _SIZES), choose_backend(backend)
    folder = Path(folder)
    table = read_table(
        data, labels, file_column=file_column, columns=columns, numbers=numbers, classes=classes, group=group
    )
    files = _Files(table, options)
    split = files.table.split(_VALIDATION, seed)
    scaled = files.table.select(split[0]).scaled()
    files.table = replace(files.table, columns=scaled)
    parts = [files.part(rows) for rows in split]
    seed_all(seed)
    net = _network(scaled, files.modalities, options, preset, weighting)
    count = process_count()
    batch_size = max(min(_BATCH, len(split[0])) // count, 1) * count  # equal parts
    every = -(-len(split[0]) // batch_size)
    if steps is None:
        steps = 60 if size == "smallest" else min(max(40 * every, 150), 3000)
    settings = TrainSettings(
        steps=steps,
        batch_size=batch_size,
        learning_rate=1e-3,
        warmup_steps=10,
        evaluate_every=min(max(every, steps // 10), steps),
        checkpoint_every=max(50, steps // 10),
        seed=seed,
    )
    make_batch = Collate(files.modalities)
    workers = num_workers
    if workers is None:
        workers = 0 if files.in_memory else max(1, min(4, mmcore.get_num_threads() - 1))
    where = torch.device(device)

    def evaluate(model: MultiTaskNet) -> dict[str, float]:
        metrics = _evaluate(model, parts[1], make_batch, batch_size)[0]
        return {name: value for name, value in metrics.items() if not name.endswith(_BASELINES)}

    with kernels:
        trainer = Trainer(
            net,
            _compute_loss,
            StepBatches(parts[0], batch_size, seed, workers, make_batch),
            settings,
            folder=folder,
            evaluate=evaluate,
            monitor="loss",
            mode="min",
            device=where,
            progress=progress,
        )
        history = trainer.fit(resume)
        metrics, confusion, contributions = _evaluate(net, parts[1], make_batch, batch_size)
    report = folder / "report.html"
    if process_rank() == 0:
        FolderModel(net, scaled, options).save(folder)
        report = write_report(
            folder,
            f"Labels of {Path(data).name}",
            history,
            metrics=metrics,
            confusion=confusion or None,
            contributions=contributions,
            notes=files.notes(split),
        )
    return RecipeResult(folder, metrics, history, report)


class _Files:
    """The files that can be read, their table, and what there is to say about the others."""

    def __init__(self, table: LabelTable, options: ClipOptions) -> None:
        self._all = table
        self.options = options
        self._kept, self.problems, self.counts = read_all(table.files, options, memory=_MEMORY)
        self._rows = [i for i in range(len(table)) if i not in self.problems]
        if len(self._rows) < 2:
            first = next(iter(self.problems.values()), "")
            raise MMCoreError(f"labels: only {len(self._rows)} of {len(table)} files can be read: {first}")
        self.table = table.select(self._rows)
        self.modalities = tuple(name for name in ("video", "audio", "text") if self.counts.get(name))
        self.in_memory = len(self._kept) == len(self._rows)

    def part(self, rows: list[int]) -> LabelledClips:
        kept: dict[int, Clip] = {
            new: self._kept[self._rows[old]] for new, old in enumerate(rows) if self._rows[old] in self._kept
        }
        return LabelledClips(self.table.select(rows), self.options, kept)

    def notes(self, split: tuple[list[int], list[int]]) -> list[str]:
        counts = ", ".join(f"{name} in {self.counts[name]}" for name in self.modalities)
        missing = {c.name: sum(not cells[c.name] for cells in self.table.cells) for c in self.table.columns}
        notes = [
            f"{len(self.table)} files: {counts}. {len(split[0])} were trained on, {len(split[1])} held out."
        ]
        if any(missing.values()):
            parts = (f"{name} in {count}" for name, count in missing.items() if count)
            notes.append(f"Labels missing: {', '.join(parts)} files.")
        if self.problems:
            files = self._all.files
            shown = [
                f"{files[i].name} ({why.removeprefix(f'{files[i]}: ')})" for i, why in self.problems.items()
            ]
            more = f", and {len(shown) - 20} more" if len(shown) > 20 else ""
            notes.append(f"Could not be read, and were left out: {', '.join(shown[:20])}{more}.")
        return notes


def _network(
    columns: tuple[Column, ...],
    modalities: tuple[str, ...],
    options: ClipOptions,
    preset: str,
    weighting: str,
) -> MultiTaskNet:
    tasks = {
        c.name: mmcore.Task.smooth_l1() if c.is_number else mmcore.Task.cross_entropy(label_smoothing=0.05)
        for c in columns
    }
    return MultiTaskNet.preset(
        preset,
        {c.name: 1 if c.is_number else len(c.classes) for c in columns},
        MultiTaskLoss(tasks, weighting),
        modalities=modalities,
        num_mels=options.num_mels,
        modality_dropout=0.1 if len(modalities) > 1 else 0.0,
    )


def _compute_loss(model: MultiTaskNet, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    return model.loss(model(*batch["inputs"]), batch["targets"], batch["masks"])


@torch.no_grad()
def _evaluate(
    model: MultiTaskNet, data: LabelledClips, make_batch: Collate, batch_size: int
) -> tuple[dict[str, float], dict[str, tuple[tuple[str, ...], Tensor]], dict[str, float]]:
    """Metrics, confusion matrices and the modalities' mean shares, on files that were not trained on."""
    device = next(model.parameters()).device
    columns = data.table.columns
    outputs: dict[str, list[Tensor]] = {c.name: [] for c in columns}
    targets: dict[str, list[Tensor]] = {c.name: [] for c in columns}
    shares = []
    for start in range(0, len(data), batch_size):
        rows = range(start, min(start + batch_size, len(data)))
        batch = to_device(make_batch([data[i] for i in rows]), device)
        found = model(*batch["inputs"])
        shares.append(model.contributions(*batch["inputs"]).clip.double().cpu())
        for c in columns:
            there = batch["masks"][c.name]
            outputs[c.name].append(found[c.name][there].double().cpu())
            targets[c.name].append(batch["targets"][c.name][there].cpu())
    metrics: dict[str, float] = {}
    baselines: dict[str, float] = {}
    confusion = {}
    losses = []
    for c in columns:
        x, t = torch.cat(outputs[c.name]), torch.cat(targets[c.name])
        if not len(x):
            continue
        if c.is_number:
            error = (x - t).abs()[:, 0]
            metrics[f"{c.name} error"] = error.mean().item() * c.std
            baselines[f"{c.name} error of the mean"] = t.double().abs().mean().item() * c.std
            losses.append(error.mean().item())
            continue
        predicted = x.argmax(1)
        metrics[f"{c.name} accuracy"] = (predicted == t).double().mean().item()
        baselines[f"{c.name} accuracy of the most common"] = max(Counter(t.tolist()).values()) / len(t)
        losses.append(torch.nn.functional.cross_entropy(x, t).item())
        count = len(c.classes)
        matrix = torch.bincount(t * count + predicted, minlength=count**2).reshape(count, count)
        confusion[c.name] = (c.classes, matrix)
    metrics["loss"] = sum(losses) / len(losses) if losses else math.nan
    mean = torch.cat(shares).mean(0).tolist()
    return metrics | baselines, confusion, dict(zip(model.modalities, mean, strict=True))
