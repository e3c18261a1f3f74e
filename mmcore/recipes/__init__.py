"""Recipes: data, model, training, evaluation and use of whole applications, built on the rest of mmcore.

A recipe is a module with ``train(folder, ...) -> RecipeResult`` and ``load(folder)``; :func:`recipe` finds it
by name. What recipes share: :class:`Trainer`, :class:`TrainSettings`, :class:`StepBatches`,
:func:`write_report`.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmcore.recipes.batches import StepBatches
    from mmcore.recipes.report import RecipeResult, write_report
    from mmcore.recipes.train_settings import TrainSettings
    from mmcore.recipes.trainer import Trainer, TrainingError
    from mmcore.recipes.training_log import History

__all__ = [
    "RECIPES",
    "History",
    "RecipeResult",
    "StepBatches",
    "TrainSettings",
    "Trainer",
    "TrainingError",
    "recipe",
    "write_report",
]

RECIPES = {
    "classify": "videos by what is seen, heard and read, with several heads",
    "retrieve": "text to video and video to text",
    "generate": "text to video",
    "speak": "text to speech",
    "folder": "a folder of your own videos with a table of labels",
}
"""Names of the recipes, and what they learn."""

# Imported at first use: nobody who only decodes should wait for them.
_LAZY = {
    "History": "training_log",
    "RecipeResult": "report",
    "StepBatches": "batches",
    "TrainSettings": "train_settings",
    "Trainer": "trainer",
    "TrainingError": "trainer",
    "write_report": "report",
}


def recipe(name: str) -> ModuleType:
    """Give the module of a recipe, with ``train`` and ``load``.

    Parameters
    ----------
    name : str
        One of :data:`RECIPES`.

    Raises
    ------
    ValueError
        If there is no recipe of that name.
    """
    if name not in RECIPES:
        raise ValueError(f"recipe: expected one of {', '.join(RECIPES)}, got {name!r}")
    return importlib.import_module(f"mmcore.recipes.{name}")


def __getattr__(name: str) -> Any:
    if name in RECIPES:
        return importlib.import_module(f"mmcore.recipes.{name}")
    if name in _LAZY:
        return getattr(importlib.import_module(f"mmcore.recipes.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'mmcore.recipes' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *RECIPES])
