"""Text to video and back: one space for sentences, pictures, sounds and clips, and an index of files in it.

:func:`train` trains and measures, :func:`load` gives the :class:`Retriever` that embeds, :class:`ClipIndex`
keeps embeddings of files on disk and searches them. See docs/retrieval.md.
"""

from __future__ import annotations

from .errors import ClipIndexError, ModelMismatchError
from .index import ClipIndex, Hit, IndexChanges
from .model import RetrievalModel
from .nearest import ApproximateNeighbors, exact_nearest
from .retriever import Retriever, Window, load
from .training import evaluate, train

__all__ = [
    "ApproximateNeighbors",
    "ClipIndex",
    "ClipIndexError",
    "Hit",
    "IndexChanges",
    "ModelMismatchError",
    "RetrievalModel",
    "Retriever",
    "Window",
    "evaluate",
    "exact_nearest",
    "load",
    "train",
]
