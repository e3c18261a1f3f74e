"""Which scenes there are, which of them the generator never sees, and clips of them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmcore.recipes.shapes import Scene, render_scenes

__all__ = ["World", "labels", "split"]


@dataclass(frozen=True, kw_only=True)
class World:
    """What can be seen, in which format."""

    shapes: tuple[str, ...]
    colors: tuple[str, ...]
    motions: tuple[str, ...]
    sizes: tuple[str, ...]
    num_frames: int = 8
    height: int = 24
    width: int = 24

    @property
    def values(self) -> dict[str, tuple[str, ...]]:
        """What each attribute may be."""
        return {"size": self.sizes, "color": self.colors, "shape": self.shapes, "motion": self.motions}

    @property
    def choices(self) -> dict[str, tuple[str, ...]]:
        """Attributes that can be one thing or another: those that can be right or wrong."""
        return {name: words for name, words in self.values.items() if len(words) > 1}

    def scenes(self) -> list[Scene]:
        """Every combination of the attributes, in a fixed order."""
        return [
            Scene(shape, color, motion, size)
            for shape, color, motion, size in itertools.product(
                self.shapes, self.colors, self.motions, self.sizes
            )
        ]

    def render(self, scenes: Sequence[Scene], first_seed: int) -> Tensor:
        """Clips (N, T, 3, H, W) uint8, the i-th with the seed ``first_seed + i``."""
        seeds = range(first_seed, first_seed + len(scenes))
        parts = [
            render_scenes(
                scenes[i : i + 256],
                num_frames=self.num_frames,
                height=self.height,
                width=self.width,
                seeds=seeds[i : i + 256],
            )
            for i in range(0, len(scenes), 256)  # the renderer's own tensors are larger than its result
        ]
        return torch.cat(parts)


def split(world: World, held_out: int, seed: int) -> tuple[list[Scene], list[Scene]]:
    """Part the combinations at random into those to train on and ``held_out`` others."""
    scenes = world.scenes()
    random.Random(seed).shuffle(scenes)
    return scenes[held_out:], scenes[:held_out]


def labels(scenes: Sequence[Scene], world: World) -> dict[str, Tensor]:
    """Of each attribute that varies the scenes' values as numbers, (N,) int64."""
    return {
        name: torch.tensor([words.index(getattr(scene, name)) for scene in scenes])
        for name, words in world.choices.items()
    }
