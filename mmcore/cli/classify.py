"""``mmcore classify``: what a trained network says of a media file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from mmcore.cli.render import console, fail, table, warn
from mmcore.cli.sound_and_words import held_kinds

if TYPE_CHECKING:
    from mmcore.recipes.classify import Classifier
    from mmcore.recipes.folder import FolderModel

__all__ = ["classify"]

_BAR = 20
_KINDS = {"video": ("video", "pictures"), "audio": ("audio", "sound"), "text": ("subtitle", "words")}
"""Of a network's modality, FFmpeg's kind of stream and the plain name."""


def classify(
    file: Annotated[Path, typer.Argument(help="The media file.", show_default=False)],
    model: Annotated[
        Path,
        typer.Option(
            "--model",
            "-m",
            help="Folder that `mmcore train classify` or `mmcore train folder` wrote.",
            show_default=False,
        ),
    ],
    others: Annotated[int, typer.Option(min=0, help="How many less likely classes to show.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Classify FILE with a model that the recipe classify or folder trained.

    What FILE lacks of pictures, sound and words is left out.
    """
    try:
        trained = _load(model)
        found = trained.predict(file)
    except ImportError as error:
        fail(str(error))
    held = held_kinds(file)
    missing = [plain for name in trained.net.modalities for kind, plain in [_KINDS[name]] if kind not in held]
    if as_json:
        typer.echo(json.dumps({"file": str(file), "missing": missing, "labels": found}, indent=2))
        return
    if missing:
        warn(f"{file} has no {' and no '.join(missing)}: the answer is made without")
    t = table("label", "value", "probability", "or", title=str(file))
    for name, value in found.items():
        if isinstance(value, dict):
            (best, share), *rest = value.items()
            bar = Text("█" * round(share * _BAR), style="green" if share >= 0.5 else "yellow")
            bar.append(f" {share:.1%}", style="default")
            rest = [(other, s) for other, s in rest[:others] if s >= 0.001]
            t.add_row(
                name, Text(best, style="bold"), bar, Text(", ".join(f"{o} {s:.1%}" for o, s in rest), "dim")
            )
        else:
            t.add_row(name, Text(f"{value:.3f}", style="bold"), "", "")
    console().print(t)


def _load(folder: Path) -> Classifier | FolderModel:
    """The model, of whichever of the two recipes."""
    from mmcore.recipes import recipe
    from mmcore.recipes.choices import read_description

    return recipe(read_description(folder, "classify", "folder")["recipe"]).load(folder)  # type: ignore[no-any-return]
