"""``mmcore train``: train a recipe, or a network on a folder of one's own files."""

from __future__ import annotations

import inspect
import tempfile
from contextlib import ExitStack
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from mmcore.cli.render import console, key_value_table, warn
from mmcore.recipes import RECIPES

__all__ = ["train"]

_OWN: Any = {"rich_help_panel": "Files of your own (recipes folder and classify)"}


class Size(Enum):
    """How much is trained."""

    full = "full"
    smallest = "smallest"


class Backend(Enum):
    """What computes fusion and losses."""

    fused = "fused"
    eager = "eager"


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            help="One of: " + "; ".join(f"{name} ({what})" for name, what in RECIPES.items()) + ".",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder of the model, the checkpoint, the logs and the report."),
    ],
    size: Annotated[
        Size, typer.Option(help="The whole recipe, or one that is done in a minute.")
    ] = Size.full,
    seed: Annotated[int, typer.Option(min=0, help="Of all random numbers.")] = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the optimiser.", show_default="the recipe's")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the folder's checkpoint.")] = False,
    backend: Annotated[
        Backend, typer.Option(help="mmcore's kernels for fusion and losses, or plain torch.")
    ] = Backend.fused,
    device: Annotated[str, typer.Option(help="Where to train: cpu, cuda, cuda:1.")] = "cpu",
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes that read data.", show_default="the recipe's"),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of media files.", show_default=False, **_OWN)
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="CSV file: a column of the files' names, and one for each label; empty cells are missing.",
            show_default=False,
            **_OWN,
        ),
    ] = None,
    file_column: Annotated[
        str | None,
        typer.Option(help="The column of the files.", show_default="file, path, ... or the first", **_OWN),
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="Labels to learn, as kind,stars.", show_default="all", **_OWN)
    ] = None,
    numbers: Annotated[
        str | None,
        typer.Option(help="Columns that hold numbers.", show_default="as it looks", **_OWN),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(help="Columns that hold classes.", show_default="as it looks", **_OWN),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            help="Column of what must not be both trained on and held out.", show_default=False, **_OWN
        ),
    ] = None,
) -> None:
    """Train RECIPE, and write its model and a report to a folder.

    Ctrl-C leaves a checkpoint, from which --resume goes on. torchrun --no-python starts several processes.
    """
    from mmcore.ops.devices import check_cuda_device
    from mmcore.recipes import recipe as find
    from mmcore.recipes.processes import process_rank

    own = {
        "data": data,
        "labels": labels,
        "file_column": file_column,
        "columns": _names(columns),
        "numbers": _names(numbers),
        "classes": _names(classes),
        "group": group,
    }
    given = {name: value for name, value in own.items() if value is not None}
    if recipe == "classify" and given:
        recipe = "folder"
    module = find(recipe)
    accepted = inspect.signature(module.train).parameters
    for name in given:
        if name not in accepted:
            option = "--" + name.replace("_", "-")
            raise typer.BadParameter(f"the recipe {recipe} makes its own data", param_hint=option)
    check_cuda_device(device)
    first = process_rank() == 0
    with ExitStack() as stack:
        # Of several processes one writes: what the others would write goes nowhere.
        target = output if first else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        result = module.train(
            target,
            size=size.value,
            backend=backend.value,
            seed=seed,
            steps=steps,
            resume=resume,
            device=device,
            num_workers=workers,
            progress=first,
            **given,
        )
    if not first:
        return
    history = result.history
    rows = {name: f"{value:.4g}" for name, value in result.metrics.items()}
    rows |= {
        "steps": f"{len(history.steps)}" + (", stopped early" if history.stopped == "early" else ""),
        "time of the steps": f"{history.seconds:.1f} s",
        "waiting for data": f"{history.waiting_share:.1%}",
    }
    console().print(key_value_table(recipe, rows))
    console().print(f"{result.report}", markup=False, soft_wrap=True)
    if history.stopped == "interrupted":
        warn(f"interrupted after {len(history.steps)} steps; go on with --resume")
        raise typer.Exit(130)  # as of a program that Ctrl-C ended: what was to follow must not
