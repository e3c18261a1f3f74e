"""Trained recipes as what can be explained: the network, how it reads a file, its classes' names."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mmcore
from mmcore.clips import Clip, collate_clips
from mmcore.errors import MMCoreError
from mmcore.models import ClipInputs, MultiTaskNet
from mmcore.recipes.choices import read_description
from mmcore.recipes.explain.explanation import Explanation, clip_times, explain

__all__ = ["EXPLAINED_RECIPES", "TrainedNet", "byte_tokens", "open_trained"]

EXPLAINED_RECIPES = ("classify", "folder")
_LONGEST = 10.0
"""Seconds of a file that are looked at."""


@dataclass(frozen=True)
class TrainedNet:
    """A network and the way it meets files.

    Attributes
    ----------
    net : MultiTaskNet
    read : callable
        Of a path: the clip as the network takes it.
    inputs : callable
        Of a clip: the network's arguments.
    classes : mapping of str to tuple of str
        By task over classes, their names.
    """

    net: MultiTaskNet
    read: Callable[[str], Clip]
    inputs: Callable[[Clip], ClipInputs]
    classes: Mapping[str, tuple[str, ...]]

    def explain(
        self,
        path: str | os.PathLike[str],
        *,
        task: str | None = None,
        target: str | None = None,
        **options: Any,
    ) -> Explanation:
        """Explain what the network says of a file.

        Parameters
        ----------
        path : path
        task : str, optional
        target : str, optional
            Name of a class, or number of an output.
        **options
            As for :func:`mmcore.recipes.explain.explain`.

        Raises
        ------
        DecodeError
            If the file cannot be read.
        MMCoreError
            If it has no modality that the network knows.
        ValueError
            For a task or target that does not exist.
        """
        clip = self.read(os.fspath(path))
        inputs, masks, available = self.inputs(clip)
        if not available.any():
            raise MMCoreError(f"{path}: has none of what the model knows, {', '.join(self.net.modalities)}")
        device = next(self.net.parameters()).device
        if task is None and target is not None:
            task = next(iter(self.net.heads))
        return explain(
            self.net,
            {name: x.to(device) for name, x in inputs.items()},
            {name: mask.to(device) for name, mask in masks.items()},
            available.to(device),
            task=task,
            target=None if task is None or target is None else self._number(task, target),
            times=clip_times(clip),
            **options,
        )

    def _number(self, task: str, target: str) -> int:
        names = self.classes.get(task, ())
        if target in names:
            return names.index(target)
        try:
            return int(target)
        except ValueError:
            expected = f"one of {', '.join(names)}" if names else "a number"
            raise ValueError(f"target: expected {expected}, got {target!r}") from None


def open_trained(folder: str | os.PathLike[str], *, device: str = "cpu") -> TrainedNet:
    """Open what ``mmcore train`` wrote.

    Parameters
    ----------
    folder : path
        Of one of :data:`EXPLAINED_RECIPES`.
    device : str

    Raises
    ------
    FileNotFoundError
        If no recipe was trained there.
    UnsupportedError
        If it is of a recipe whose network has no heads to explain.
    MMCoreError
        If a file is damaged.
    """
    name = read_description(folder, *EXPLAINED_RECIPES)["recipe"]
    return _of_folder(folder, device) if name == "folder" else _of_classify(folder, device)


def _of_folder(folder: str | os.PathLike[str], device: str) -> TrainedNet:
    from mmcore.recipes.folder import load
    from mmcore.recipes.folder.clips import network_inputs, read_file

    model = load(folder, device=device)
    return TrainedNet(
        net=model.net,
        read=lambda path: read_file(path, model.options),
        inputs=lambda clip: ClipInputs(*network_inputs([clip], model.net.modalities)),
        classes={column.name: column.classes for column in model.columns if column.classes},
    )


def _of_classify(folder: str | os.PathLike[str], device: str) -> TrainedNet:
    from mmcore.recipes.classify import load
    from mmcore.recipes.classify.dataset import inputs_of, read
    from mmcore.recipes.classify.task import ANSWERS, DIGITS, OPERATIONS

    return TrainedNet(
        net=load(folder, device=device).net,
        read=lambda path: read(path, stop=_LONGEST),
        inputs=lambda clip: inputs_of(collate_clips([clip])),
        classes={
            "answer": tuple(map(str, ANSWERS)),
            "seen": DIGITS,
            "heard": DIGITS,
            "operation": tuple(operation.name for operation in OPERATIONS),
        },
    )


def byte_tokens(ids: Any) -> list[str]:
    """What ids of :class:`mmcore.ByteTokenizer` stand for: a letter of several bytes at its first one."""
    tokenizer = mmcore.ByteTokenizer()
    names: list[str] = []
    numbers = [int(i) for i in ids]
    for i, number in enumerate(numbers):
        lead = number - tokenizer.bos_token_id - 1
        if lead < 0 or 0x80 <= lead < 0xC0:  # a special one, or a later byte of a letter
            names.append("")
            continue
        length = 1 + (lead >= 0xC0) + (lead >= 0xE0) + (lead >= 0xF0)
        names.append(tokenizer.decode(numbers[i : i + length]))
    return names
