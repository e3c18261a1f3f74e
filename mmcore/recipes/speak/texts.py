"""What is said in training, and what is kept for the test."""

from __future__ import annotations

import random
from typing import NamedTuple

from mmcore.recipes.shapes import ATTRIBUTES, Scene

__all__ = ["DIGITS", "OTHER_WORDS", "VOCABULARY", "Texts", "digit_texts", "make_texts"]

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_CARRIERS = ("{}", "{}", "call {}", "the number is {}", "please dial {}", "room {}", "{} is the code")
"""What digits are said in; most often in nothing."""

_EVERYDAY_TEXT = """
    a about again all and apple as at bad bird black boat boy bread bring brown but butter by cat chair
    cheese child church clock close cold cook cup day dear dog door down dream drink early earth eat egg
    every eye face far fast father find fire fish flower food for friend garden girl give glass go good
    grass great hair hand happy have hear hello here horse hot house how hungry ice in is it join juice
    jump keep king kitchen know large leave letter light like little live long look love make many
    measure milk money moon morning mother music my name new night no noise not of old on open orange
    our out paper people picture play please pleasure poor pull pure push put quick quiet rain read red
    river road run sad say school sea see shoe shop sing sister sleep slow small snow song soon speak
    spring stone strong sugar summer sun sure table talk tell thank that the there they thing think this
    time today together top tree true under up usual value very vision voice wait walk warm was watch
    water way we weather what where which white who why wind window winter with woman wonder wood word
    work world write year yellow yes you young
"""
_EVERYDAY = _EVERYDAY_TEXT.split()

VOCABULARY = frozenset(DIGITS).union(
    _EVERYDAY,
    *(carrier.replace("{}", "").split() for carrier in _CARRIERS),
    *(value.split() for values in ATTRIBUTES.values() for value in values),
)
"""Every word that may be said in training."""

OTHER_WORDS = (
    "monday tuesday wednesday",
    "the quick fox jumps over a lazy dog",
    "computer science is difficult",
    "birds fly south before december",
    "seventeen people danced under bright lamps",
    "electric engines replace steam",
    "the doctor visited several villages",
    "please remember this simple message",
    "nobody expected such terrible weather",
    "mathematics and physics explain nature",
)
"""Sentences most of whose words are said in no training."""


def digit_texts(count: int, rng: random.Random, lengths: tuple[int, int] = (3, 6)) -> list[str]:
    """Random sequences of so many digits, such as "three one four"."""
    return [" ".join(rng.choices(DIGITS, k=rng.randint(*lengths))) for _ in range(count)]


class Texts(NamedTuple):
    """Texts for training, and sequences of digits that none of them contains."""

    train: list[str]
    test: list[str]


def make_texts(train: int, test: int, seed: int, *, digits_only: bool = False) -> Texts:
    """Draw what is said.

    Half of the training texts are digits, with and without words around them; a quarter are captions of
    :class:`mmcore.recipes.shapes.Scene`, and a quarter everyday words in random order. The test's sequences
    have four to six digits, and are in no training text.
    """
    rng = random.Random(f"mmcore.speak {seed}")
    tested = list(dict.fromkeys(digit_texts(2 * test, rng, (4, 6))))[:test]
    found: list[str] = []
    while len(found) < train:
        kind = 0.0 if digits_only else rng.random()
        if kind < 0.5:
            digits = digit_texts(1, rng)[0]
            if not any(digits in text or text in digits for text in tested):
                found.append(digits if digits_only else rng.choice(_CARRIERS).format(digits))
        elif kind < 0.75:
            found.append(Scene(**{name: rng.choice(values) for name, values in ATTRIBUTES.items()}).caption())
        else:
            found.append(" ".join(rng.choices(_EVERYDAY, k=rng.randint(3, 6))))
    return Texts(found, tested)
