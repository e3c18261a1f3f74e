"""Rendered moving shapes: short videos whose every attribute is known, made by program.

A :class:`Scene` says what is to be seen; :func:`render_scene` draws it, antialiased, at any size. The seed
varies what the scene leaves open: where the motion starts, how far it goes, the exact size.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "ATTRIBUTES",
    "BACKGROUNDS",
    "COLORS",
    "MOTIONS",
    "SHAPES",
    "SIZES",
    "Scene",
    "all_scenes",
    "render_scene",
    "render_scenes",
]

_RGB = {
    "red": (230, 30, 30),
    "orange": (255, 135, 0),
    "yellow": (245, 235, 40),
    "green": (30, 170, 60),
    "cyan": (60, 220, 235),
    "blue": (40, 70, 240),
    "purple": (135, 40, 190),
    "pink": (255, 130, 200),
}
_LEVEL = {"black": 0, "gray": 110, "white": 255}
_RADIUS = {"small": 0.15, "large": 0.25}  # of the short side

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
COLORS = tuple(_RGB)
MOTIONS = (
    "moving left",
    "moving right",
    "moving up",
    "moving down",
    "growing",
    "shrinking",
    "circling",
    "standing still",
)
SIZES = tuple(_RADIUS)
BACKGROUNDS = tuple(_LEVEL)
ATTRIBUTES = {"shape": SHAPES, "color": COLORS, "motion": MOTIONS, "size": SIZES, "background": BACKGROUNDS}


@dataclass(frozen=True)
class Scene:
    """One shape of one colour and size that does one thing.

    Parameters
    ----------
    shape, color, motion, size, background : str
        One of ``SHAPES``, ``COLORS``, ``MOTIONS``, ``SIZES``, ``BACKGROUNDS``: the values in ``ATTRIBUTES``.

    Raises
    ------
    ValueError
        For any other word.

    Examples
    --------
    >>> Scene("circle", "red", "moving left").caption()
    'a small red circle moving left'
    >>> Scene("ring", "blue", "growing", "large", "gray").caption()
    'a large blue ring growing on gray'
    """

    shape: str
    color: str
    motion: str
    size: str = "small"
    background: str = "black"

    def __post_init__(self) -> None:
        for name, words in ATTRIBUTES.items():
            if getattr(self, name) not in words:
                raise ValueError(f"{name} is one of {', '.join(words)}, not {getattr(self, name)!r}")

    def caption(self) -> str:
        """All of the scene in words; the background only if it is not black."""
        text = f"a {self.size} {self.color} {self.shape} {self.motion}"
        return text if self.background == "black" else f"{text} on {self.background}"


def all_scenes(backgrounds: Sequence[str] = ("black",)) -> list[Scene]:
    """Every combination of shape, colour, motion and size on these backgrounds, in a fixed order."""
    return [Scene(*parts) for parts in itertools.product(SHAPES, COLORS, MOTIONS, SIZES, backgrounds)]


def render_scene(
    scene: Scene, *, num_frames: int = 8, height: int = 32, width: int = 32, seed: int | None = None
) -> Tensor:
    """Draw a scene.

    Parameters
    ----------
    scene : Scene
    num_frames, height, width : int
        Of the result, at least 1. Sizes and ways are fractions of the frame, so that a scene looks the same
        at every resolution and takes the whole clip, however many frames that are.
    seed : int, optional
        Varies start, way, turn and exact size. None: none of it is varied.

    Returns
    -------
    Tensor
        (T, 3, H, W) uint8 RGB.

    Examples
    --------
    >>> render_scene(Scene("circle", "red", "moving left"), height=24, width=24, seed=0).shape
    torch.Size([8, 3, 24, 24])
    """
    return render_scenes([scene], num_frames=num_frames, height=height, width=width, seeds=[seed])[0]


def render_scenes(
    scenes: Sequence[Scene],
    *,
    num_frames: int = 8,
    height: int = 32,
    width: int = 32,
    seeds: Sequence[int | None] | None = None,
) -> Tensor:
    """Draw many scenes: (N, T, 3, H, W), each the same as :func:`render_scene` makes with its seed.

    Raises
    ------
    ValueError
        If a size is below 1, or there are not as many seeds as scenes.
    """
    for name, value in (("num_frames", num_frames), ("height", height), ("width", width)):
        if value < 1:
            raise ValueError(f"{name} is at least 1, not {value}")
    if seeds is None:
        seeds = [None] * len(scenes)
    if len(seeds) != len(scenes):
        raise ValueError(f"{len(scenes)} scenes need as many seeds, not {len(seeds)}")

    short = min(height, width)
    paths = [
        _path(scene, seed, num_frames, height / short, width / short)
        for scene, seed in zip(scenes, seeds, strict=True)
    ]
    # pixel centres, in short sides from the middle of the frame
    y = ((torch.arange(height) + 0.5 - height / 2) / short).view(1, 1, height, 1)
    x = ((torch.arange(width) + 0.5 - width / 2) / short).view(1, 1, 1, width)

    coverage = torch.empty(len(scenes), num_frames, height, width)
    for shape in SHAPES:  # one formula at a time, over all scenes that have the shape
        chosen = [i for i, scene in enumerate(scenes) if scene.shape == shape]
        if chosen:
            at_x, at_y, radius = torch.tensor([paths[i] for i in chosen])[..., None, None].unbind(1)
            distance = _DISTANCE[shape](x - at_x, y - at_y, radius)
            # A pixel is covered as far as a straight edge at this distance would cover it: a box filter.
            coverage[chosen] = (0.5 - distance * short).clamp_(0, 1)

    color = torch.tensor([_RGB[scene.color] for scene in scenes]).view(-1, 1, 3, 1, 1)
    background = torch.tensor([_LEVEL[scene.background] for scene in scenes]).view(-1, 1, 1, 1, 1)
    frames = background + coverage[:, :, None] * (color - background)
    return frames.round_().to(torch.uint8)


class _Path(NamedTuple):
    """Centre and radius at each frame, in short sides from the middle of the frame."""

    x: list[float]
    y: list[float]
    radius: list[float]


def _path(scene: Scene, seed: int | None, num_frames: int, tall: float, wide: float) -> _Path:
    vary = _no_variation if seed is None else random.Random(seed).uniform
    size = _RADIUS[scene.size] * (1 + vary(-0.07, 0.07))
    way, turn = 0.5 + vary(-0.08, 0.08), vary(-math.pi, math.pi)
    along, across = vary(-1, 1), vary(-1, 1)

    # Where the shape stays in the frame; straight ways may begin and end with a part of it outside.
    room = 0.42 - size
    x, y = room * wide * along, room * tall * across
    left, up, grow, orbit = 0.0, 0.0, 0.0, 0.0
    match scene.motion:
        case "moving left" | "moving right":
            left = way * wide * (1 if scene.motion == "moving left" else -1)
            x = 0.06 * wide * along
        case "moving up" | "moving down":
            up = way * tall * (1 if scene.motion == "moving up" else -1)
            y = 0.06 * tall * across
        case "growing" | "shrinking":
            grow = 0.35 if scene.motion == "growing" else -0.35
        case "circling":
            orbit = 0.4 * way
            x, y = 0.3 * x, 0.3 * y

    times = [0.0] if num_frames == 1 else [i / (num_frames - 1) - 0.5 for i in range(num_frames)]
    angles = [turn + 2 * math.pi * (time + 0.5) for time in times]
    return _Path(
        x=[x - left * time + orbit * math.cos(angle) for time, angle in zip(times, angles, strict=True)],
        y=[y - up * time + orbit * math.sin(angle) for time, angle in zip(times, angles, strict=True)],
        radius=[size * (1 + 2 * grow * time) for time in times],
    )


def _no_variation(low: float, high: float) -> float:
    return (low + high) / 2


# Signed distances to the outline, negative inside, of (x, y) from the centre (exact but beyond corners). The
# factors on the radius give all shapes about the same area.


def _circle(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return (x.square() + y.square()).sqrt() - radius


def _ring(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return ((x.square() + y.square()).sqrt() - 0.85 * radius).abs() - 0.25 * radius


def _square(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.88 * radius


def _diamond(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return (x.abs() + y.abs() - 1.25 * radius) * math.sqrt(0.5)


def _triangle(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    side = x.abs() * math.sqrt(0.75) - y * 0.5
    return torch.maximum(side, y) - 0.66 * radius  # equilateral, point up; 0.66: of the circle inside


def _cross(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    long, thick = 1.1 * radius, 0.38 * radius
    beam = torch.maximum(x.abs() - long, y.abs() - thick)
    post = torch.maximum(x.abs() - thick, y.abs() - long)
    return torch.minimum(beam, post)


_DISTANCE: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "diamond": _diamond,
    "cross": _cross,
    "ring": _ring,
}
