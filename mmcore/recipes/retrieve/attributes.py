"""What a clip can be: all combinations of attributes, and which of them are for training."""

from __future__ import annotations

import itertools
import random
from typing import NamedTuple

from mmcore.recipes.shapes import BACKGROUNDS, COLORS, MOTIONS, SHAPES, SIZES, Scene

from .sounds import SOUNDS

__all__ = ["CHOICES", "Attributes", "Split", "split_combinations"]

CHOICES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "color": COLORS,
    "motion": MOTIONS,
    "size": SIZES,
    "background": BACKGROUNDS,
    "sound": SOUNDS,
}
"""The values of each attribute."""


class Attributes(NamedTuple):
    """One combination: what is seen, what it does, what is heard."""

    shape: str
    color: str
    motion: str
    size: str
    background: str
    sound: str

    @property
    def scene(self) -> Scene:
        """What is seen."""
        return Scene(self.shape, self.color, self.motion, self.size, self.background)

    def numbers(self) -> list[int]:
        """Each attribute's place among its ``CHOICES``."""
        return [CHOICES[name].index(value) for name, value in self._asdict().items()]


class Split(NamedTuple):
    """Combinations for training, and those never seen in it."""

    train: list[Attributes]
    validation: list[Attributes]
    test: list[Attributes]


def split_combinations(seed: int, *, held_out: int = 256, train_share: float = 0.5) -> Split:
    """Divide all combinations at random.

    Parameters
    ----------
    seed : int
    held_out : int
        Combinations for validation, and as many for the test.
    train_share : float
        Of the rest, how many are for training. The others are used for nothing: that a combination is new
        must not mean that all of its neighbours are known.
    """
    every = [Attributes(*parts) for parts in itertools.product(*CHOICES.values())]
    random.Random(seed).shuffle(every)
    rest = every[2 * held_out :]
    return Split(rest[: round(train_share * len(rest))], every[:held_out], every[held_out : 2 * held_out])
