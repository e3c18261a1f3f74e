"""How much is trained: the recipe's two sizes."""

from __future__ import annotations

from dataclasses import dataclass

from mmcore.recipes.generate.data import World
from mmcore.recipes.shapes import COLORS

__all__ = ["SIZES", "Size"]


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is trained.

    Attributes
    ----------
    world : World
    held_out : int
        Combinations that the generator never sees.
    tested_each : int
        Clips of each of them in the test.
    clips, judge_clips : int
        Rendered for autoencoder and flow, and for the judge.
    judge_steps, frame_steps, flow_steps : int
        Of the three trainings.
    judge_widths : tuple of int
        Of the judge's CNN.
    channels, latent : int
        Of the autoencoder.
    dim, layers : int
        Of the flow's Transformer.
    """

    world: World
    held_out: int
    tested_each: int
    clips: int
    judge_clips: int
    judge_steps: int
    judge_widths: tuple[int, ...]
    frame_steps: int
    channels: int
    latent: int
    flow_steps: int
    dim: int
    layers: int


_DIRECTIONS = ("moving left", "moving right", "moving up", "moving down")
SIZES = {
    "full": Size(
        world=World(
            shapes=("square", "triangle", "ring"),
            colors=COLORS,
            motions=(*_DIRECTIONS, "growing", "shrinking"),
            sizes=("small", "large"),
        ),
        held_out=48,
        tested_each=4,
        clips=9600,
        judge_clips=9600,
        judge_steps=350,
        judge_widths=(16, 32),
        frame_steps=1200,
        channels=32,
        latent=48,
        flow_steps=1200,
        dim=128,
        layers=4,
    ),
    "smallest": Size(
        world=World(
            shapes=("circle", "ring"),
            colors=("red", "yellow", "green", "blue"),
            motions=_DIRECTIONS,
            sizes=("large",),
            height=16,
            width=16,
        ),
        held_out=6,
        tested_each=6,
        clips=1200,
        judge_clips=1200,
        judge_steps=60,
        judge_widths=(16,),
        frame_steps=400,
        channels=16,
        latent=16,
        flow_steps=350,
        dim=64,
        layers=2,
    ),
}
