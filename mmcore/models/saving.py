"""Models as a folder: ``config.json``, from which the model is made again, and ``model.safetensors``."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mmcore.nn as core_nn
from mmcore.errors import MMCoreError, UnsupportedError
from mmcore.models.cnn import CNN
from mmcore.models.frame_encoder import FrameEncoder, TimmModel
from mmcore.models.fusion import Fusion
from mmcore.models.heads import ClassificationHead, EmbeddingHead, Head, RegressionHead
from mmcore.models.multi_task_net import MultiTaskNet
from mmcore.models.rnn import RNN
from mmcore.models.transformer import Transformer
from mmcore.models.transformers_encoder import TransformersEncoder
from mmcore.nn import MultiTaskLoss, TaskWeighting
from mmcore.ops.devices import check_cuda_device
from mmcore.ops.loss_task import Task

__all__ = ["load", "save"]

VERSION = 1
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"

_CLASSES: dict[str, type[nn.Module]] = {
    cls.__name__: cls
    for cls in (
        CNN,
        RNN,
        Transformer,
        FrameEncoder,
        TimmModel,
        TransformersEncoder,
        Fusion,
        Head,
        ClassificationHead,
        RegressionHead,
        EmbeddingHead,
        MultiTaskNet,
    )
}


def save(model: nn.Module, folder: str | os.PathLike[str]) -> Path:
    """Write a model of :mod:`mmcore.models`, or of your own class with a ``config``, to a folder.

    Parameters
    ----------
    model : nn.Module
        With an attribute ``config``: the keyword arguments that make it again, of numbers, strings, lists,
        mappings, and modules that have a ``config`` themselves.
    folder : path
        Made if it is not there; files of an earlier model are replaced.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    TypeError
        If a module or value cannot be described; the message says where.
    """
    from safetensors.torch import save_model

    config = {"format": "mmcore.models", "version": VERSION, "model": _described(model, type(model).__name__)}
    text = json.dumps(config, indent=1, allow_nan=False) + "\n"
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    # Aside and renamed: an interrupted save leaves the earlier model as it was.
    weights, description = path / f"{_WEIGHTS}.part", path / f"{_CONFIG}.part"
    save_model(model, str(weights))
    description.write_text(text, encoding="utf-8")
    weights.replace(path / _WEIGHTS)
    description.replace(path / _CONFIG)
    return path


def load(
    folder: str | os.PathLike[str],
    *,
    classes: Mapping[str, type[nn.Module]] | None = None,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Make the model that :func:`save` wrote, in evaluation mode.

    Parameters
    ----------
    folder : path
    classes : mapping of str to type, optional
        Classes that are not mmcore's, by their names.
    device : str or torch.device

    Returns
    -------
    nn.Module
        Of the same class, values and dtypes.

    Raises
    ------
    FileNotFoundError
        If one of the two files is not there.
    UnsupportedError
        For a format or version that this mmcore does not know, a class that is not in ``classes``, or a CUDA
        device that is not there.
    MMCoreError
        If a file is damaged, or values do not fit the description.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file, load_model

    check_cuda_device(device)
    path = Path(folder)
    for name in (_CONFIG, _WEIGHTS):
        if not (path / name).is_file():
            raise FileNotFoundError(f"{path / name}: no such file; expected a folder that save() wrote")
    try:
        config = json.loads((path / _CONFIG).read_text(encoding="utf-8"))
        format_, version, description = config["format"], config["version"], config["model"]
    except (ValueError, KeyError, TypeError) as error:
        raise MMCoreError(f"{path / _CONFIG}: no description of a model: {error!r}") from error
    if format_ != "mmcore.models" or version != VERSION:
        raise UnsupportedError(
            f"{path / _CONFIG}: expected format 'mmcore.models' version {VERSION}, got {format_!r}"
            f" {version!r}; a newer mmcore may read it"
        )
    try:
        model = _made(description, {**_CLASSES, **(classes or {})})
    except (ValueError, TypeError, KeyError) as error:
        raise MMCoreError(f"{path / _CONFIG}: cannot make the model: {error}") from error
    if not isinstance(model, nn.Module):
        raise MMCoreError(f"{path / _CONFIG}: expected a description of a module, got {description!r}")
    try:
        saved = load_file(path / _WEIGHTS)
        for name, value in model.state_dict(keep_vars=True).items():
            if isinstance(value, Tensor) and name in saved and value.dtype != saved[name].dtype:
                value.data = value.data.to(saved[name].dtype)
        load_model(model, path / _WEIGHTS)
    except (SafetensorError, RuntimeError) as error:
        raise MMCoreError(f"{path / _WEIGHTS}: does not fit {path / _CONFIG}: {error}") from error
    return model.to(device).eval()


def _described(value: Any, where: str) -> Any:
    """What JSON can hold of a config's value."""
    if isinstance(value, MultiTaskLoss):
        return {"class": "MultiTaskLoss", "config": _described_loss(value, where)}
    if isinstance(value, nn.Module):
        config = getattr(value, "config", None)
        if not isinstance(config, Mapping):
            raise TypeError(
                f"{where}: {type(value).__name__} has no config, a dict of the arguments that make it again,"
                " so that it cannot be saved; give its class one, or keep its state_dict yourself"
            )
        name = type(value).__name__
        return {"class": name, "config": _described(config, where)}
    if isinstance(value, Mapping):
        return {str(key): _described(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_described(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise TypeError(f"{where}: expected what JSON holds, or a module, got {type(value).__name__}")


def _described_loss(loss: MultiTaskLoss, where: str) -> dict[str, Any]:
    if loss.names is None or not isinstance(loss.tasks, dict):
        raise TypeError(f"{where}: expected a loss whose tasks have names")
    weighting = type(loss.weighting)
    if getattr(core_nn, weighting.__name__, None) is not weighting:
        raise TypeError(f"{where}: {weighting.__name__} is none of mmcore.nn's strategies")
    settings = {}
    for name in inspect.signature(weighting).parameters:
        # What is a tensor or a generator by now is part of the state_dict.
        value = getattr(loss.weighting, name, None)
        if value is not None and not isinstance(value, Tensor):
            settings[name] = _described(value, f"{where}.{name}")
    return {
        "tasks": {
            name: {"spec": task.spec, "weight": None if task.weight is None else task.weight.numel()}
            for name, task in loss.tasks.items()
        },
        "weighting": {"class": weighting.__name__, "settings": settings},
        "weights": loss.weights is not None,
        "inplace_gradient": loss.inplace_gradient,
    }


def _made(value: Any, classes: Mapping[str, type[nn.Module]]) -> Any:
    """Reverse of :func:`_described`."""
    if isinstance(value, list):
        return [_made(item, classes) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() != {"class", "config"}:
        return {key: _made(item, classes) for key, item in value.items()}
    if value["class"] == "MultiTaskLoss":
        return _made_loss(value["config"])
    if value["class"] not in classes:
        raise UnsupportedError(
            f"{value['class']} is no class of mmcore.models; give it:"
            f" load(folder, classes={{{value['class']!r}: ...}})"
        )
    return classes[value["class"]](**_made(value["config"], classes))


def _made_loss(config: dict[str, Any]) -> MultiTaskLoss:
    tasks = {
        # The weights' values come with the state.
        name: Task.from_spec(task["spec"], None if task["weight"] is None else torch.ones(task["weight"]))
        for name, task in config["tasks"].items()
    }
    weighting = getattr(core_nn, config["weighting"]["class"], None)
    if not (isinstance(weighting, type) and issubclass(weighting, TaskWeighting)):
        raise UnsupportedError(f"{config['weighting']['class']} is none of mmcore.nn's strategies")
    return MultiTaskLoss(
        tasks,
        weighting(**config["weighting"]["settings"]),
        weights=[1.0] * len(tasks) if config["weights"] else None,
        inplace_gradient=config["inplace_gradient"],
    )
