"""What can be wrong with an index of clips."""

from __future__ import annotations

from mmcore.errors import MMCoreError

__all__ = ["ClipIndexError", "ModelMismatchError"]


class ClipIndexError(MMCoreError):
    """An index on disk is missing, damaged or of another format; the message names the file."""


class ModelMismatchError(ClipIndexError):
    """An index was made with another model: its embeddings and the query's would have nothing in common."""
