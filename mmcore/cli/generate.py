"""``mmcore generate``: text to a video file, with a trained model."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmcore.cli.pictures import write_sheet
from mmcore.cli.render import console, fail

if TYPE_CHECKING:
    import torch

__all__ = ["generate"]


class Interpolation(Enum):
    """Ways to enlarge."""

    nearest = "nearest"
    bicubic = "bicubic"


def generate(
    prompt: Annotated[
        str, typer.Argument(help='What is to be seen: "a large red circle moving left".', show_default=False)
    ],
    model: Annotated[
        Path,
        typer.Option("--model", "-m", help="Folder that `mmcore train generate` wrote.", show_default=False),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Video to write: .mp4, .mkv, .webm, ...")
    ] = Path("generated.mp4"),
    clips: Annotated[int, typer.Option(min=1, help="Different clips, one after another.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives other clips.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="From noise to frames; more are finer and slower.")] = 20,
    guidance: Annotated[float, typer.Option(help="How much the prompt counts; 1 is as in the data.")] = 2.0,
    repeat: Annotated[int, typer.Option(min=1, help="Show each clip so many times.")] = 2,
    fps: Annotated[float, typer.Option(min=0.1, help="Frames per second.")] = 8.0,
    upscale: Annotated[int, typer.Option(min=1, help="Enlarge by this factor.")] = 8,
    interpolation: Annotated[Interpolation, typer.Option(help="How to enlarge.")] = Interpolation.bicubic,
    sheet: Annotated[
        Path | None, typer.Option(help="Write the frames to this PNG file, too.", show_default=False)
    ] = None,
) -> None:
    """Generate a video of PROMPT with a model that the recipe generate trained."""
    if sheet is not None and sheet.suffix.lower() != ".png":
        raise typer.BadParameter(f"{sheet}: expected a name that ends in .png", param_hint="--sheet")

    import mmcore

    try:
        from mmcore.recipes.generate import load

        generator = load(model)
    except ImportError as error:
        fail(str(error))
    made = generator.generate(prompt, num_clips=clips, seed=seed, steps=steps, guidance=guidance)
    large = _enlarged(made, upscale, interpolation)
    shown = large[:, None].expand(-1, repeat, -1, -1, -1, -1).flatten(0, 2)
    mmcore.encode(output, frames=shown, fps=fps)
    height, width = large.shape[-2:]
    out = console()
    out.print(f"{output}: {len(shown)} frames of {width}x{height}, {len(shown) / fps:.2f} s", markup=False)
    if sheet is not None:
        captions = [f"{clip}.{frame}" for clip in range(clips) for frame in range(made.shape[1])]
        subtitle = f"seed {seed}, {steps} steps, guidance {guidance:g}"
        write_sheet(sheet, large.flatten(0, 1).permute(0, 2, 3, 1), captions, prompt, subtitle)
        out.print(f"{sheet}: {len(captions)} frames", markup=False)


def _enlarged(clips: torch.Tensor, factor: int, interpolation: Interpolation) -> torch.Tensor:
    """(N, T, 3, H, W) uint8 with ``factor`` times the height and width."""
    import torch

    frames = clips.flatten(0, 1)
    if interpolation is Interpolation.nearest:
        large = frames.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
    else:
        # Antialiased is the uint8 interpolation that clamps; enlarging, it is plain bicubic.
        large = torch.nn.functional.interpolate(frames, scale_factor=factor, mode="bicubic", antialias=True)
    return large.reshape(*clips.shape[:2], *large.shape[1:])
