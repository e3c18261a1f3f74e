"""Clips whose label needs pictures, sound and words: ``mmcore train classify -o DIR``.

A handwritten digit moves over the picture, a voice says another, and a subtitle says what to do with the
two. Each part alone tells little about the answer, and how little is known exactly (:mod:`.task`). The
clips are media files (:mod:`.clips`), read again in each epoch (:mod:`.dataset`) by the network of
:mod:`.network`, which is trained in :mod:`.training`, measured in :mod:`.evaluation` and used as a
:class:`Classifier`.
"""

from __future__ import annotations

from .classifier import Classifier, Prediction, load
from .evaluation import Evaluation, evaluate
from .training import train

__all__ = ["Classifier", "Evaluation", "Prediction", "evaluate", "load", "train"]
