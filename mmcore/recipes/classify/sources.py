"""Who writes and who speaks: handwriting and voices, split so that no one is met in training and in the test.

Handwriting is that of scikit-learn's ``load_digits``: 1797 pictures of 8x8 pixels, the test part of UCI's
"Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998), written by 13 people. Who wrote
what was not kept, but the pictures come in the order of the writers; ``WRITER_BOUNDS`` are the bounds
that scikit-learn's course gives (https://inria.github.io/scikit-learn-mooc, "Sample grouping"). They make
14 blocks, so one person may have written two that follow each other. Validation lies between training and
test, so that these two share nobody.

Voices are espeak-ng's: an accent, a variant (which is what makes it somebody), a pitch and a rate.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["SPLITS", "WRITER_BOUNDS", "Handwriting", "Split", "handwriting"]

WRITER_BOUNDS = (0, 130, 256, 386, 516, 646, 776, 915, 1029, 1157, 1287, 1415, 1545, 1667, 1797)


@dataclass(frozen=True)
class Split:
    """Who may occur in one part of the data.

    Attributes
    ----------
    writers : range
        Blocks of ``load_digits``.
    accents, variants : tuple of str
        espeak-ng's names.
    """

    writers: range
    accents: tuple[str, ...]
    variants: tuple[str, ...]


SPLITS = {
    "train": Split(
        range(10),
        ("en-us", "en-us-nyc", "en-gb-scotland"),
        (
            *(
                "m1",
                "m2",
                "m3",
                "m4",
                "m5",
                "m6",
                "f1",
                "f2",
                "f3",
                "Alex",
                "Andrea",
                "Annie",
                "Denis",
                "Diogo",
            ),
            *("Gene", "Hugo", "Jacky", "Lee", "Mario", "Mike", "Reed", "Storm", "adam", "anika", "antonio"),
            *("aunty", "benjamin", "boris", "caleb", "david", "grandma", "grandpa", "gustave", "ian", "iven"),
            *("john", "marcelo", "max", "michel", "miguel", "norbert", "pablo", "pedro", "quincy", "rob"),
            *("sandro", "shelby", "travis", "victor", "zac"),
        ),
    ),
    "validation": Split(range(10, 11), ("en-us", "en-gb-x-gbclan"), ("m7", "f4", "Michael", "Alicia")),
    "test": Split(
        range(11, 14),
        ("en-us", "en-gb-x-rp"),
        ("m8", "f5", "Andy", "linda", "edward", "steph", "paul", "belinda"),
    ),
}


class Handwriting(NamedTuple):
    """Pictures (n, 8, 8) float32, 0 background to 1 ink, and the block that each is of, (n,) int64."""

    pictures: Tensor
    writers: Tensor


@functools.cache
def handwriting(split: str, digit: int) -> Handwriting:
    """All pictures of a digit by the writers of a split.

    Raises
    ------
    ImportError
        Without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("handwritten digits need scikit-learn: pip install 'mmcore[recipes]'") from error
    found = load_digits()
    targets = torch.from_numpy(found.target)
    writers = torch.bucketize(torch.arange(len(targets)), torch.tensor(WRITER_BOUNDS), right=True) - 1
    among = SPLITS[split].writers
    chosen = (targets == digit) & (writers >= among.start) & (writers < among.stop)
    return Handwriting(torch.from_numpy(found.images[chosen.numpy()] / 16).float(), writers[chosen])
