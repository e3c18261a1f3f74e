"""What is said about a clip: templates and synonyms, and words as numbers."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .attributes import Attributes

__all__ = ["MAX_WORDS", "Vocabulary", "caption", "partial_caption", "vocabulary"]

MAX_WORDS = 32

_WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "size": {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")},
    "color": {
        "red": ("red", "crimson"),
        "orange": ("orange",),
        "yellow": ("yellow", "lemon"),
        "green": ("green",),
        "cyan": ("cyan", "turquoise"),
        "blue": ("blue",),
        "purple": ("purple", "violet"),
        "pink": ("pink", "rosy"),
    },
    "shape": {
        "circle": ("circle", "disc", "ball"),
        "square": ("square", "box"),
        "triangle": ("triangle",),
        "diamond": ("diamond", "rhombus"),
        "cross": ("cross", "plus sign"),
        "ring": ("ring", "hoop"),
    },
    "motion": {
        "moving left": ("moving left", "sliding to the left", "going left"),
        "moving right": ("moving right", "sliding to the right", "going right"),
        "moving up": ("moving up", "rising to the top", "going up"),
        "moving down": ("moving down", "sinking to the bottom", "going down"),
        "growing": ("growing", "getting bigger", "expanding"),
        "shrinking": ("shrinking", "getting smaller", "contracting"),
        "circling": ("circling", "going round", "orbiting"),
        "standing still": ("standing still", "not moving", "at rest"),
    },
    "background": {
        "black": ("on black", "in the dark"),
        "gray": ("on gray", "on a gray background"),
        "white": ("on white", "on a white background"),
    },
    "sound": {
        "rising tone": ("a rising tone", "a pitch that climbs"),
        "falling tone": ("a falling tone", "a pitch that drops"),
        "low hum": ("a low hum", "a deep drone"),
        "high whistle": ("a high whistle", "a shrill tone"),
        "beeping": ("beeping", "a series of beeps"),
        "ticking": ("ticking", "a series of clicks"),
        "hissing": ("hissing", "noise"),
        "warbling": ("warbling", "a trembling tone"),
    },
}

# What is left out is an empty string, and so is what binds it to the rest.
_TEMPLATES = (
    "a {size} {color} {shape} {motion} {background} with {sound}",
    "a {color} {shape}, {size}, {motion} {background} and {sound}",
    "{sound} and a {size} {color} {shape} {motion} {background}",
    "with {sound}: {size} {color} {shape} {background}, {motion}",
    "{background} a {size} {shape} in {color} {motion}, {sound} is heard",
)


def caption(attributes: Attributes, rng: random.Random | None = None) -> str:
    """Say all of what a clip shows and sounds like.

    Parameters
    ----------
    attributes : Attributes
    rng : random.Random, optional
        Chooses template and synonyms. None: the first of each.

    Examples
    --------
    >>> caption(Attributes("circle", "red", "moving left", "large", "black", "beeping"))
    'a large red circle moving left on black with beeping'
    """
    if rng is None:
        return _filled(_TEMPLATES[0], {name: _WORDS[name][value][0] for name, value in _items(attributes)})
    return partial_caption(attributes, rng, 0.0)[0]


def partial_caption(
    attributes: Attributes, rng: random.Random, leave_out: float
) -> tuple[str, tuple[bool, ...]]:
    """Say some of what a clip shows and sounds like, at least one thing.

    Parameters
    ----------
    attributes : Attributes
    rng : random.Random
    leave_out : float
        Chance of each attribute to be left unsaid.

    Returns
    -------
    text : str
    said : tuple of bool
        Which of the attributes the text says.
    """
    names = attributes._fields
    kept = {name for name in names if rng.random() >= leave_out} or {rng.choice(names)}
    words = {
        name: rng.choice(_WORDS[name][value]) if name in kept else "" for name, value in _items(attributes)
    }
    template = rng.choice(_TEMPLATES)
    if "sound" not in kept:
        template = re.sub(r"(with |and |, )?\{sound\}( and| is heard|:)?", "", template)
    if "shape" not in kept:
        words["shape"] = "something"
    if "color" not in kept:
        template = template.replace(" in {color}", "")
    return _filled(template, words), tuple(name in kept for name in names)


def _items(attributes: Attributes) -> Iterable[tuple[str, str]]:
    return attributes._asdict().items()


class Vocabulary:
    """Words as numbers: 0 is padding, 1 any word that is not known.

    Parameters
    ----------
    words : iterable of str
        Those that are known, in the order of their numbers.
    """

    PADDING, UNKNOWN = 0, 1

    def __init__(self, words: Iterable[str]) -> None:
        self.words = tuple(words)
        self._numbers = {word: number for number, word in enumerate(self.words, 2)}

    def __len__(self) -> int:
        return len(self.words) + 2

    def unknown(self, text: str) -> list[str]:
        """The words of ``text`` that are not known, in their order."""
        return [word for word in _split(text) if word not in self._numbers]

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Numbers of the words of each text.

        Returns
        -------
        ids : Tensor
            (N, L) int64; words behind ``MAX_WORDS`` are cut off.
        mask : Tensor
            (N, L) bool, True where there is a word.

        Raises
        ------
        ValueError
            If a text holds no word.
        """
        rows = [
            [self._numbers.get(word, self.UNKNOWN) for word in _split(text)[:MAX_WORDS]] for text in texts
        ]
        for text, row in zip(texts, rows, strict=True):
            if not row:
                raise ValueError(f"text: expected words, got {text!r}")
        ids = torch.zeros(len(rows), max(map(len, rows), default=1), dtype=torch.int64)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row)
        return ids, ids != self.PADDING


def vocabulary() -> Vocabulary:
    """All words that captions are made of."""
    texts = [option for values in _WORDS.values() for options in values.values() for option in options]
    texts += [re.sub(r"\{\w+\}", "", template) for template in _TEMPLATES] + ["something", "an", "the"]
    return Vocabulary(sorted({word for text in texts for word in _split(text)}))


def _filled(template: str, words: dict[str, str]) -> str:
    """Without the gaps that unsaid words leave; "an" before a vowel."""
    text = re.sub(r"(\s*,)+", ",", re.sub(r"\s+", " ", template.format(**words))).strip(" ,")
    return re.sub(r"\ba (?=[aeiou])", "an ", text.replace(" :", ":"))


def _split(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())
