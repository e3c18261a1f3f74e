"""Clips of media files as a small network takes them: some pictures, a spectrogram, the words."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

import mmcore
from mmcore.clips import Clip, ClipReader, collate_clips
from mmcore.errors import DecodeError, MMCoreError
from mmcore.models import clip_inputs
from mmcore.recipes.folder.table import LabelTable

__all__ = ["Batch", "ClipOptions", "Collate", "LabelledClips", "network_inputs", "read_all", "read_file"]

Batch = dict[str, Any]


@dataclass(frozen=True)
class ClipOptions:
    """How files are read.

    Parameters
    ----------
    num_frames : int
        Pictures, spread evenly.
    image_size : int
        Pixels of their height and width; the middle of the picture is taken.
    seconds : float
        Longest stretch that is read, from the file's start.
    num_mels : int
        Bands of the spectrogram.
    max_tokens : int
        Bytes of the words that are kept.
    """

    num_frames: int = 8
    image_size: int = 96
    seconds: float = 10.0
    num_mels: int = 64
    max_tokens: int = 128

    def reader_options(self) -> dict[str, Any]:
        """Arguments of :class:`mmcore.clips.ClipReader`."""
        size = self.image_size
        transform = mmcore.FrameTransform(resize=size, crop=size, dtype=torch.uint8)
        return {
            "video": {"transform": transform, "num_frames": self.num_frames, "num_threads": 1},
            "audio": {"log_mel": mmcore.LogMelSettings.whisper(n_mels=self.num_mels)},
            "text": {"tokenizer": mmcore.ByteTokenizer()},
        }

    def state(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def read_file(path: str | os.PathLike[str], options: ClipOptions) -> Clip:
    """Read what there is of pictures, sound and words.

    Raises
    ------
    DecodeError
        If the file is missing, no media file, or none of it can be read.
    """
    with ClipReader(path, **options.reader_options()) as reader:
        clip = reader.read(0.0, options.seconds)
    if not clip.mask.any():
        why = "; ".join(str(error) for error in clip.errors.values()) or "no pictures, sound or words in it"
        raise DecodeError(f"{path}: {why}")
    tokens = clip.tokens
    if tokens is not None:
        n = options.max_tokens
        tokens = replace(
            tokens,
            ids=tokens.ids[:n],
            start_seconds=tokens.start_seconds[:n],
            end_seconds=tokens.end_seconds[:n],
            segment_indices=tokens.segment_indices[:n],
        )
    return replace(clip, audio=None, tokens=tokens)  # the spectrogram is what is learned from


def read_all(
    files: Sequence[Path],
    options: ClipOptions,
    *,
    memory: int,
    done: Callable[[int], None] = lambda count: None,
) -> tuple[dict[int, Clip], dict[int, str], dict[str, int]]:
    """Read all files once, in threads.

    Parameters
    ----------
    files : sequence of Path
    options : ClipOptions
    memory : int
        Bytes up to which clips are kept. What is beyond is read again when it is needed.
    done : callable
        Is told how many files have been read.

    Returns
    -------
    clips : dict of int to Clip
        Those kept, by the files' positions.
    problems : dict of int to str
        Why a file could not be read at all.
    counts : dict of str to int
        How many files have each modality.
    """
    clips: dict[int, Clip] = {}
    problems: dict[int, str] = {}
    counts: dict[str, int] = {}

    def attempt(path: Path) -> Clip | MMCoreError | OSError | ValueError:
        try:
            return read_file(path, options)
        except (MMCoreError, OSError, ValueError) as error:
            return error

    used = 0
    with ThreadPoolExecutor(mmcore.get_num_threads()) as pool:
        for i, found in enumerate(pool.map(attempt, files)):
            done(i + 1)
            if not isinstance(found, Clip):
                problems[i] = str(found)
                continue
            for name, there in zip(found.modalities, found.mask[0].tolist(), strict=True):
                counts[name] = counts.get(name, 0) + there
            used += _bytes(found)
            if used <= memory:
                clips[i] = found
    return clips, problems, counts


def _bytes(clip: Clip) -> int:
    parts = (clip.video, clip.spectrogram)
    return sum(part.data.numel() * part.data.element_size() for part in parts if part is not None)


class LabelledClips(Dataset[tuple[Clip, dict[str, Tensor], dict[str, Tensor]]]):
    """Clip, targets and masks of each row of a table.

    Parameters
    ----------
    table : LabelTable
    options : ClipOptions
    kept : mapping of int to Clip
        Clips that are in memory, by row.
    """

    def __init__(self, table: LabelTable, options: ClipOptions, kept: dict[int, Clip]) -> None:
        self.table = table
        self.options = options
        self.kept = kept

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, row: int) -> tuple[Clip, dict[str, Tensor], dict[str, Tensor]]:
        clip = self.kept.get(row)
        if clip is None:
            clip = read_file(self.table.files[row], self.options)
        cells = self.table.cells[row]
        targets = {column.name: column.target(cells[column.name]) for column in self.table.columns}
        masks = {name: torch.tensor(bool(cells[name])) for name in targets}
        return clip, targets, masks


def network_inputs(clips: Sequence[Clip], modalities: Sequence[str]) -> tuple[Any, ...]:
    """Arguments of a ``MultiTaskNet``; a modality of which no clip has anything is left out."""
    inputs, masks, available = clip_inputs(collate_clips(clips), modalities)
    empty = [name for name, x in inputs.items() if x.shape[1] == 0]
    for name in empty:
        del inputs[name], masks[name]
    return inputs, masks, available


class Collate:
    """Makes a batch of samples: "inputs", "targets" and "masks". A class, since workers are sent it."""

    def __init__(self, modalities: Sequence[str]) -> None:
        self.modalities = tuple(modalities)

    def __call__(self, samples: Sequence[tuple[Clip, dict[str, Tensor], dict[str, Tensor]]]) -> Batch:
        clips, targets, masks = zip(*samples, strict=True)
        return {
            "inputs": network_inputs(clips, self.modalities),
            "targets": {name: torch.stack([t[name] for t in targets]) for name in targets[0]},
            "masks": {name: torch.stack([m[name] for m in masks]) for name in masks[0]},
        }
