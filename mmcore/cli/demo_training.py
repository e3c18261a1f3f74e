"""The last step of ``mmcore demo``: the recipe classify at its smallest."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from mmcore.cli.render import table

if TYPE_CHECKING:
    from rich.table import Table

    from mmcore.recipes import RecipeResult

__all__ = ["missing_packages", "results", "train_smallest"]

_NEEDED = {"sklearn": "scikit-learn", "espeakng_loader": "espeakng-loader"}


def missing_packages() -> list[str]:
    """What has to be installed before the recipe can run."""
    return [name for module, name in _NEEDED.items() if importlib.util.find_spec(module) is None]


def train_smallest(folder: Path) -> RecipeResult:
    """Render, train and measure; some two minutes of one processor, shared by those there are."""
    from mmcore.recipes import classify

    return classify.train(folder, size="smallest")


def results(result: RecipeResult) -> Table:
    """What was reached, beside what could be."""
    from mmcore.recipes.classify.task import MODALITIES, ceiling

    metrics = result.metrics
    t = table("right answers", "reached", "perfect model")
    for name, plain, known in (
        ("answer", "by what is seen, heard and read", MODALITIES),
        ("from video alone", "from the pictures alone", ["video"]),
        ("from audio alone", "from the sound alone", ["audio"]),
        ("from text alone", "from the words alone", ["text"]),
    ):
        t.add_row(plain, f"{metrics[name]:.1%}", f"{ceiling(known):.1%}")
    t.add_row("the most frequent answer always", "", f"{ceiling([]):.1%}")
    return t
