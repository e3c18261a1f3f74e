"""``mmcore explain``: why a trained network said what it said of a file, as one picture."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmcore.cli.render import console, fail, table

if TYPE_CHECKING:
    from mmcore.recipes.explain import Explanation

__all__ = ["explain"]


class Method(Enum):
    """Ways to attribute."""

    integrated_gradients = "integrated_gradients"
    gradient_x_input = "gradient_x_input"
    occlusion = "occlusion"


def explain(
    file: Annotated[Path, typer.Argument(help="Media file.", show_default=False)],
    model: Annotated[
        Path,
        typer.Option(
            "--model",
            "-m",
            help="Folder that `mmcore train classify` or `mmcore train folder` wrote.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG file to write.")] = Path(
        "explanation.png"
    ),
    task: Annotated[
        str | None,
        typer.Option(help="Which of the answers to explain; by default the first.", show_default=False),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="Which class, by name or number; by default the one that the model chose.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        Method, typer.Option(help="How parts of pictures, sound and words are weighed.")
    ] = Method.integrated_gradients,
    steps: Annotated[int, typer.Option(min=1, help="Evaluations of integrated gradients.")] = 64,
) -> None:
    """Show what moved a trained model's answer for a file."""
    if output.suffix.lower() != ".png":
        raise typer.BadParameter(
            f"expected a name that ends in .png, got {output.name}", param_hint="--output"
        )
    if not output.absolute().parent.is_dir():
        raise FileNotFoundError(f"{output}: the folder {output.absolute().parent} does not exist")
    try:
        from mmcore.recipes.explain import draw
        from mmcore.recipes.explain.trained import byte_tokens, open_trained

        trained = open_trained(model)
        found = trained.explain(file, task=task, target=target, method=method.value, steps=steps)
        classes = trained.classes.get(found.task)
        text = found.inputs.get("text")
        draw(
            found,
            output,
            title=file.name,
            classes=classes,
            tokens=None if text is None else byte_tokens(text),
        )
    except ImportError as error:
        fail(str(error))
    _report(found, classes)
    sums = ""
    if found.method == "integrated_gradients":
        sums = f"; the parts add up to the score but for {abs(found.residual):.3f}"
    console().print(f"{output}: by {found.method.replace('_', ' ')}{sums}", markup=False)


def _report(found: Explanation, classes: tuple[str, ...] | None) -> None:
    rows = table("", "part of the score", "share of the fused features")
    shares = {}
    if found.contributions is not None:
        shares = dict(zip(found.modalities, found.contributions.tolist(), strict=True))
    parts = found.by_modality
    for name in found.modalities or tuple(parts):
        part = f"{parts[name]:+.3f}" if name in parts else "missing"
        rows.add_row(name, part, f"{shares[name]:.3f}" if name in shares else "")
    said = found.task
    if found.target is not None:
        said += f": {classes[found.target] if classes else found.target}"
    if found.probabilities is not None and found.target is not None:
        said += f", probability {float(found.probabilities[found.target]):.3f}"
    said += f", score {found.score:.3f}, of the baseline {found.baseline_score:.3f}"
    console().print(said, markup=False)
    console().print(rows)
