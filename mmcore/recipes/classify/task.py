"""What a clip asks: a digit that is seen, a digit that is heard, and a word that says what to do with them.

No modality tells the answer alone, and how much each can tell is known: every combination of two digits
and an operation is equally frequent, so that the best guess from a part of them, and how often it is
right, can be counted.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass

__all__ = [
    "ANSWERS",
    "COMBINATIONS",
    "DIGITS",
    "MODALITIES",
    "OPERATIONS",
    "Operation",
    "Question",
    "ceiling",
    "shuffled_ceiling",
]

MODALITIES = ("video", "audio", "text")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Operation:
    """What is to be done with the two digits, and the words that ask for it."""

    name: str
    words: tuple[str, ...]
    compute: Callable[[int, int], int]


def _difference(a: int, b: int) -> int:
    return abs(a - b)


def _sum(a: int, b: int) -> int:
    return a + b


OPERATIONS = (
    Operation("sum", ("sum", "plus", "add"), _sum),
    Operation("difference", ("difference", "minus", "subtract"), _difference),
    Operation("larger", ("larger", "maximum", "more"), max),
    Operation("smaller", ("smaller", "minimum", "less"), min),
)
ANSWERS = tuple(range(19))  # 9 + 9 is the largest


@dataclass(frozen=True)
class Question:
    """One combination.

    Attributes
    ----------
    seen, heard : int
        The digits, 0 to 9.
    operation : int
        Index into ``OPERATIONS``.
    """

    seen: int
    heard: int
    operation: int

    @property
    def answer(self) -> int:
        """What the operation makes of the digits, 0 to 18."""
        return OPERATIONS[self.operation].compute(self.seen, self.heard)

    def part(self, modality: str) -> int:
        """What one modality tells."""
        return {"video": self.seen, "audio": self.heard, "text": self.operation}[modality]


COMBINATIONS = tuple(
    Question(*parts) for parts in itertools.product(range(10), range(10), range(len(OPERATIONS)))
)


def ceiling(modalities: Collection[str]) -> float:
    """Share of questions that the best guess from these modalities alone answers.

    Of all combinations that look the same in these modalities, the best guess is their most frequent answer.

    Examples
    --------
    >>> from mmcore.recipes.classify.task import ceiling
    >>> ceiling(["video", "audio", "text"])
    1.0
    >>> ceiling(["video"]), ceiling(["text"]), ceiling([])
    (0.335, 0.165, 0.1)
    """
    answers: defaultdict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for question in COMBINATIONS:
        answers[tuple(question.part(m) for m in modalities)][question.answer] += 1
    return sum(max(found.values()) for found in answers.values()) / len(COMBINATIONS)


def shuffled_ceiling(modality: str) -> float:
    """Share of questions that a perfect model answers if one modality comes from another clip.

    The other clip is drawn independently: now and then it says the same, or the answer does not depend on it.

    Examples
    --------
    >>> from mmcore.recipes.classify.task import shuffled_ceiling
    >>> shuffled_ceiling("text")
    0.34625
    """
    agreeing = 0
    choices = {question.part(modality) for question in COMBINATIONS}
    for question in COMBINATIONS:
        parts = {m: question.part(m) for m in MODALITIES}
        for choice in choices:
            other = parts | {modality: choice}
            agreeing += Question(*other.values()).answer == question.answer
    return agreeing / (len(COMBINATIONS) * len(choices))
