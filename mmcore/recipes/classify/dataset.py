"""The clips' folder: rendered once, then read from their media files each time they are needed."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import mmcore
from mmcore.clips import Augment, Clip, ClipBatch, SpecAugment, collate_clips
from mmcore.models import ClipInputs, clip_inputs

from .clips import SAMPLE_RATE, ClipSpec, render_clip
from .sources import handwriting
from .task import MODALITIES

__all__ = [
    "INPUT_FRAMES",
    "INPUT_SIZE",
    "MAX_TOKENS",
    "NUM_MELS",
    "TASKS",
    "Batch",
    "ClipDataset",
    "Label",
    "collate",
    "inputs_of",
    "read",
    "render",
]

TASKS = ("answer", "seen", "heard", "operation", "position")
MAX_TOKENS = 64
NUM_MELS = 40
INPUT_SIZE = 48  # height and width of what the network sees
INPUT_FRAMES = 4

_RENDERING = 1
"""Raise it with every change of what clips hold, so that old ones are not taken for new ones."""

_MELS = mmcore.LogMelSettings(
    sample_rate=SAMPLE_RATE, n_fft=512, win_length=512, hop_length=256, n_mels=NUM_MELS, layout="time_mel"
)

_AUGMENT = Augment(
    spec_augment=SpecAugment(frequency_mask=8, num_frequency_masks=2, time_mask=12, num_time_masks=1)
)
"""Parts of a spectrogram are masked, so that no voice's peculiarities are all that a digit is known by."""


@dataclass(frozen=True)
class Label:
    """What is known of a clip: a row of ``labels.csv``.

    Attributes
    ----------
    file : str
        Its name.
    answer, seen, heard, operation : int
        As in :class:`~mmcore.recipes.classify.task.Question`.
    x, y : float
        The centre of the digit in the last frame: parts of the picture from its left and its top.
    writer : int
        Block of ``load_digits``.
    voice : str
        espeak-ng's accent, variant, pitch and rate.
    word : str
    """

    file: str
    answer: int
    seen: int
    heard: int
    operation: int
    x: float
    y: float
    writer: int
    voice: str
    word: str

    @classmethod
    def of(cls, spec: ClipSpec, file: str) -> Label:
        """Label of a clip."""
        q = spec.question
        writer = int(handwriting(spec.split, q.seen).writers[spec.picture])
        voice = f"{spec.accent}+{spec.variant} pitch {spec.pitch} rate {spec.rate}"
        x, y = (round(part, 4) for part in spec.end)
        return cls(file, q.answer, q.seen, q.heard, q.operation, x, y, writer, voice, spec.word)


def render(
    folder: Path, split: str, count: int, *, seed: int = 0, num_workers: int = 0, progress: bool = False
) -> None:
    """Write the first ``count`` clips of a split and their ``labels.csv``, but for what is there already.

    Parameters
    ----------
    folder : Path
        Gets a folder named after the split.
    split : {"train", "validation", "test"}
    count : int
    seed : int
    num_workers : int
        Processes that render beside this one.
    progress : bool
        Show a progress bar, on a terminal.

    Raises
    ------
    ValueError
        If the folder holds clips of another seed, or made by another version.
    """
    made_by = {"recipe": "classify", "rendering": _RENDERING, "seed": seed}
    record = folder / "clips.json"
    folder.mkdir(parents=True, exist_ok=True)
    if not record.exists():
        record.write_text(json.dumps(made_by))
    elif (found := json.loads(record.read_text())) != made_by:
        raise ValueError(f"{folder}: expected an empty folder or clips of {made_by}, got those of {found}")
    where = folder / split
    where.mkdir(exist_ok=True)
    specs = _Specs(where, split, count, seed)
    handwriting(split, 0)  # read once, before the workers are forked
    # A DataLoader without a collate_fn's work is a map over processes.
    rows = list(_tracked(DataLoader(specs, batch_size=None, num_workers=num_workers), split, progress))
    names = [f.name for f in fields(Label)]
    partial_file = where / "labels.csv.part"
    with partial_file.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([getattr(row, name) for name in names] for row in rows)
    partial_file.replace(where / "labels.csv")


def _tracked(rows: DataLoader[Label], split: str, progress: bool) -> Iterable[Label]:
    """The rows, with a bar on stderr if it is a terminal and rich is there."""
    if not progress or importlib.util.find_spec("rich") is None:
        return rows
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if not console.is_terminal:
        return rows
    return track(rows, f"rendering {split} clips", total=len(rows), console=console, transient=True)


class _Specs(Dataset[Label]):
    """Clips by their numbers; looking at one writes its file, unless it is there."""

    def __init__(self, folder: Path, split: str, count: int, seed: int) -> None:
        self.folder, self.split, self.count, self.seed = folder, split, count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Label:
        spec = ClipSpec.draw(self.seed, self.split, index)
        path = self.folder / f"{index:05d}.mkv"
        if not path.exists():  # encode() renames when all is written: what exists is whole
            render_clip(spec, path)
        return Label.of(spec, path.name)


def read(
    path: str | os.PathLike[str],
    *,
    stop: float | None = None,
    sidecar: bool | None = None,
    augment: Augment | None = None,
    seed: int | None = None,
) -> Clip:
    """Read a media file as the network takes it: INPUT_FRAMES pictures, log-mel frames and tokens.

    Parameters
    ----------
    path : path
    stop : float, optional
        Instant at which to stop, in seconds.
    sidecar : bool, optional
        False: do not look for subtitles in files beside it.
    augment, seed
        As for :func:`mmcore.read_clip`.
    """
    return mmcore.read_clip(
        path,
        stop=stop,
        video={
            "transform": mmcore.FrameTransform(resize=(INPUT_SIZE, INPUT_SIZE)),
            "num_frames": INPUT_FRAMES,
            "num_threads": 1,  # so small a picture is decoded before a second thread has begun
        },
        audio={"log_mel": _MELS},
        text={"tokenizer": mmcore.ByteTokenizer(), "sidecar": sidecar},
        augment=augment,
        seed=seed,
    )


class Batch(NamedTuple):
    """What a step of training takes.

    Attributes
    ----------
    inputs : dict of str to Tensor
        "video" (B, T, 4, H, W), "audio" (B, T, mels), "text" (B, tokens).
    masks : dict of str to Tensor
        Of the same names, (B, T) bool: what is no padding.
    available : Tensor
        (B, 3) bool: which modalities there are.
    targets : dict of str to Tensor
        By task: classes (B,) int64; "position" (B, 2) float32.
    labelled : dict of str to Tensor
        By task, (B,) bool: whether the label is known.
    """

    inputs: dict[str, Tensor]
    masks: dict[str, Tensor]
    available: Tensor
    targets: dict[str, Tensor]
    labelled: dict[str, Tensor]


class ClipDataset(Dataset[tuple[Clip, Label, Tensor]]):
    """The clips of a folder with their labels.

    Parameters
    ----------
    folder : Path
        Holds media files and ``labels.csv``.
    count : int, optional
        Take the first so many.
    label_share : float
        Part of the labels that is known: each task's, of each clip, by chance that depends on ``seed`` and
        the clip's number alone.
    seed : int
    augmented : bool
        Mask parts of the spectrograms, by torch's random numbers.
    """

    def __init__(
        self,
        folder: Path,
        count: int | None = None,
        *,
        label_share: float = 1.0,
        seed: int = 0,
        augmented: bool = False,
    ) -> None:
        self.augmented = augmented
        self.folder = folder
        self.labels = _read_labels(folder / "labels.csv")[:count]
        generator = torch.Generator().manual_seed(seed)
        self.labelled = torch.rand(len(self.labels), len(TASKS), generator=generator) < label_share

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Clip, Label, Tensor]:
        label = self.labels[index]
        drawn: dict[str, Any] = {}
        if self.augmented:
            drawn = {"augment": _AUGMENT, "seed": int(torch.randint(2**31, ()))}
        return read(self.folder / label.file, sidecar=False, **drawn), label, self.labelled[index]


def _read_labels(path: Path) -> list[Label]:
    with path.open(newline="", encoding="utf-8") as file:
        kinds = {f.name: {"int": int, "float": float, "str": str}[str(f.type)] for f in fields(Label)}
        return [
            Label(**{name: kind(row[name]) for name, kind in kinds.items()}) for row in csv.DictReader(file)
        ]


def collate(items: Sequence[tuple[Clip, Label, Tensor]]) -> Batch:
    """``collate_fn`` of :class:`ClipDataset`."""
    clips, labels, labelled = zip(*items, strict=True)
    inputs, masks, available = inputs_of(collate_clips(clips))
    targets = {task: torch.tensor([getattr(label, task) for label in labels]) for task in TASKS[:-1]}
    targets["position"] = torch.tensor([[label.x, label.y] for label in labels])
    known = torch.stack(labelled)
    return Batch(inputs, masks, available, targets, {task: known[:, i] for i, task in enumerate(TASKS)})


def inputs_of(batch: ClipBatch) -> ClipInputs:
    """What the network takes.

    Each clip's pictures get mean 0 and deviation 1, so that neither colours nor light matter, and a fourth
    channel: the frame's time, -1 to 1. A text is cut after MAX_TOKENS.
    """
    inputs, masks, available = clip_inputs(batch, MODALITIES)
    if "video" in inputs:
        video = inputs["video"]
        all_of_a_clip = (1, 2, 3, 4)
        video = video - video.mean(all_of_a_clip, keepdim=True)
        video = video / video.std(all_of_a_clip, keepdim=True).clamp_min(1e-3)
        time = torch.linspace(-1, 1, video.shape[1])[:, None, None, None]
        inputs["video"] = torch.cat([video, time.expand_as(video[:, :, :1])], 2)
    for values in (inputs, masks):
        if "text" in values:
            values["text"] = values["text"][:, :MAX_TOKENS]
    return ClipInputs(inputs, masks, available)
