"""A trained network in use: :class:`Classifier` answers for any media file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from torch import Tensor

import mmcore
from mmcore.errors import MMCoreError
from mmcore.models import MultiTaskNet
from mmcore.models import load as load_model
from mmcore.models import save as save_model
from mmcore.recipes.choices import read_description

from .dataset import inputs_of, read
from .task import ANSWERS, DIGITS, OPERATIONS

__all__ = ["Classifier", "Prediction", "load"]

Prediction = dict[str, dict[str, float] | float]

_NAMES = {
    "answer": tuple(map(str, ANSWERS)),
    "seen": DIGITS,
    "heard": DIGITS,
    "operation": tuple(operation.name for operation in OPERATIONS),
}
_LONGEST = 10.0
"""Seconds of a file that are looked at; the network was trained on clips of one second."""


class Classifier:
    """The trained network.

    Attributes
    ----------
    net : MultiTaskNet
    """

    def __init__(self, net: MultiTaskNet) -> None:
        self.net = net

    @torch.no_grad()
    def predict(self, path: str | os.PathLike[str]) -> Prediction:
        """Answer for a media file, by what it has of pictures, sound and subtitles; its first ten seconds.

        Returns
        -------
        dict
            "answer", "seen", "heard" and "operation": probabilities by class, the likeliest first. "x" and
            "y": where the digit is at the end, in parts of the picture from its left and its top.

        Raises
        ------
        DecodeError
            If the file cannot be read.
        MMCoreError
            If it has neither pictures nor sound nor words.
        """
        clip = read(path, stop=_LONGEST)
        inputs, masks, available = inputs_of(mmcore.collate_clips([clip]))
        if not any(bool(mask.any()) for mask in masks.values()):
            damage = "".join(f"; {error}" for error in clip.errors.values())
            raise MMCoreError(
                f"{os.fspath(path)}: has neither pictures nor sound nor words in the first"
                f" {_LONGEST:g} s{damage}"
            )
        device = next(self.net.parameters()).device
        outputs = self.net(
            {name: x.to(device) for name, x in inputs.items()},
            {name: mask.to(device) for name, mask in masks.items()},
            available.to(device),
        )
        found: Prediction = {task: _shares(outputs[task][0], names) for task, names in _NAMES.items()}
        x, y = outputs["position"][0].tolist()
        return found | {"x": x, "y": y}

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write it, for :func:`load`."""
        save_model(self.net, Path(folder) / "model")
        (Path(folder) / "recipe.json").write_text(json.dumps({"recipe": "classify"}) + "\n", encoding="utf-8")


def _shares(logits: Tensor, names: tuple[str, ...]) -> dict[str, float]:
    shares = zip(names, logits.float().softmax(0).tolist(), strict=True)
    return dict(sorted(shares, key=lambda pair: -pair[1]))


def load(folder: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> Classifier:
    """Read what :func:`mmcore.recipes.classify.train` wrote.

    Raises
    ------
    FileNotFoundError
        If the folder holds no trained model.
    MMCoreError
        If it is damaged, or of another recipe.
    """
    read_description(folder, "classify")
    net = load_model(Path(folder) / "model", device=device)
    if not isinstance(net, MultiTaskNet):
        raise MMCoreError(f"{folder}: expected a MultiTaskNet, got {type(net).__name__}")
    return Classifier(net)
