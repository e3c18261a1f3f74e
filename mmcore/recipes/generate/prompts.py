"""Prompts: what they may say, and the word ids that the text encoder reads."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["ATTRIBUTES", "Prompts", "WordsError", "some_of"]

ATTRIBUTES = ("size", "color", "shape", "motion")
"""In the order in which a caption says them."""

_FILLERS = ("a", "an", "the")


class WordsError(ValueError):
    """A prompt says what the generator does not know, or contradicts itself."""


class Prompts:
    """The words of some attributes' values, and prompts made of them.

    Parameters
    ----------
    values : mapping of str to sequence of str
        What "size", "color", "shape" and "motion" may be; a value may have several words.

    Examples
    --------
    >>> prompts = Prompts({"size": ["large"], "color": ["red"], "shape": ["ring"], "motion": ["moving left"]})
    >>> prompts.parse("A ring moving left, red")
    {'color': 'red', 'shape': 'ring', 'motion': 'moving left'}
    >>> ids, mask = prompts.encode([prompts.parse("red ring")])
    >>> [prompts.words[i] for i in ids[0, mask[0]]]
    ['red', 'ring']
    """

    def __init__(self, values: Mapping[str, Sequence[str]]) -> None:
        if set(values) != set(ATTRIBUTES):
            raise ValueError(f"values: expected {', '.join(ATTRIBUTES)}, got {', '.join(values)}")
        self.values = {name: tuple(values[name]) for name in ATTRIBUTES}
        self.words = sorted({word for name in ATTRIBUTES for value in values[name] for word in value.split()})
        self.max_length = sum(max(len(value.split()) for value in values[name]) for name in ATTRIBUTES)
        self._ids = {word: i for i, word in enumerate(self.words)}

    def parse(self, prompt: str) -> dict[str, str]:
        """Find the value of each attribute that a prompt mentions, in any order.

        Raises
        ------
        WordsError
            For an unknown word, two values of one attribute, or a prompt that mentions none.
        """
        left = " ".join(word for word in re.findall(r"[^\W_]+", prompt.lower()) if word not in _FILLERS)
        said: dict[str, str] = {}
        for name, values in self.values.items():
            for value in values:
                left, count = re.subn(rf"\b{value}\b", " ", left)
                if count and name in said:
                    raise WordsError(
                        f"prompt: {said[name]!r} and {value!r} are both a {name}; say one of them"
                    )
                if count:
                    said[name] = value
        unknown = left.split()
        if unknown:
            raise WordsError(f"prompt: {', '.join(map(repr, unknown))} not known; {self._known()}")
        if not said:
            raise WordsError(f"prompt: {prompt!r} says nothing to be seen; {self._known()}")
        return said

    def _known(self) -> str:
        return "known are " + "; ".join(f"{name}: {', '.join(v)}" for name, v in self.values.items())

    def encode(self, said: Sequence[Mapping[str, str]]) -> tuple[Tensor, Tensor]:
        """Word ids of parsed prompts, as captions have them: (N, L) int64, and where there is one, bool."""
        ids = torch.zeros(len(said), self.max_length, dtype=torch.int64)
        mask = torch.zeros(len(said), self.max_length, dtype=torch.bool)
        for row, values in enumerate(said):
            words = [word for name in ATTRIBUTES if name in values for word in values[name].split()]
            ids[row, : len(words)] = torch.tensor([self._ids[word] for word in words])
            mask[row, : len(words)] = True
        return ids, mask


def some_of(said: Mapping[str, str], keep_all: float, rng: random.Random) -> dict[str, str]:
    """Leave attributes out at random, never all: so a generator learns to fill in what a prompt omits."""
    names = list(said)
    if rng.random() < keep_all:
        return dict(said)
    kept = rng.sample(names, rng.randint(1, len(names) - 1))
    return {name: said[name] for name in names if name in kept}
