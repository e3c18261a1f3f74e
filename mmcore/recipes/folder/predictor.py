"""A model that was trained on a folder of files, for use on others."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from torch import Tensor

from mmcore.errors import MMCoreError
from mmcore.models import MultiTaskNet
from mmcore.models import load as load_model
from mmcore.models import save as save_model
from mmcore.recipes.choices import read_description
from mmcore.recipes.folder.clips import ClipOptions, network_inputs, read_file
from mmcore.recipes.folder.table import Column, describe

__all__ = ["FolderModel", "Prediction", "load"]

Prediction = dict[str, dict[str, float] | float]


class FolderModel:
    """Network, labels and the way files are read.

    Attributes
    ----------
    net : MultiTaskNet
    columns : tuple of Column
        The labels it gives.
    options : ClipOptions
    """

    def __init__(self, net: MultiTaskNet, columns: tuple[Column, ...], options: ClipOptions) -> None:
        self.net = net
        self.columns = columns
        self.options = options

    @torch.no_grad()
    def predict(self, path: str | os.PathLike[str]) -> Prediction:
        """What the labels of a media file are.

        Returns
        -------
        dict
            By label: of classes a dict of their probabilities, the likeliest first; of numbers the number.

        Raises
        ------
        DecodeError
            If the file cannot be read, or has nothing of what the model was trained on.
        """
        clip = read_file(path, self.options)
        inputs, masks, available = network_inputs([clip], self.net.modalities)
        if not available.any():
            has = [name for name, there in zip(clip.modalities, clip.mask[0].tolist(), strict=True) if there]
            raise MMCoreError(
                f"{path}: has {', '.join(has)} only; the model knows {', '.join(self.net.modalities)}"
            )
        device = next(self.net.parameters()).device
        to = {name: x.to(device) for name, x in inputs.items()}
        outputs = self.net(to, {name: m.to(device) for name, m in masks.items()}, available.to(device))
        return {
            column.name: _answer(column, outputs[column.name][0].float().cpu()) for column in self.columns
        }

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write it, for :func:`load`."""
        save_model(self.net, Path(folder) / "model")
        about = {"recipe": "folder", "columns": describe(self.columns), "clips": self.options.state()}
        (Path(folder) / "recipe.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def _answer(column: Column, output: Tensor) -> dict[str, float] | float:
    if column.is_number:
        return float(output[0].item() * column.std + column.mean)
    shares = zip(column.classes, output.softmax(0).tolist(), strict=True)
    return dict(sorted(shares, key=lambda pair: -pair[1]))


def load(folder: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> FolderModel:
    """Read what ``train`` wrote.

    Raises
    ------
    FileNotFoundError
        If the folder holds no trained model.
    MMCoreError
        If it is damaged, or of another recipe.
    """
    about = read_description(folder, "folder")
    try:
        columns = tuple(Column(**{**c, "classes": tuple(c["classes"])}) for c in about["columns"])
        options = ClipOptions(**about["clips"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MMCoreError(f"{folder}: recipe.json does not describe its columns: {error!r}") from error
    net = load_model(Path(folder) / "model", device=device)
    if not isinstance(net, MultiTaskNet):
        raise MMCoreError(f"{folder}: expected a MultiTaskNet, got {type(net).__name__}")
    return FolderModel(net, columns, options)
