"""How well one thing is found by another."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["recall"]


def recall(queries: Tensor, targets: Tensor) -> dict[str, float]:
    """Recall at 1 and 5 and the median rank, of targets (N, D) for queries (N, D), row i for row i.

    A target that scores the same as the right one counts as better than it, so that embeddings that are all
    equal find nothing.
    """
    scores = queries @ targets.T
    right = scores.diagonal()[:, None]
    rank = (scores >= right).sum(1)  # the right one among them: 1 is best
    return {
        "R@1": (rank <= 1).double().mean().item(),
        "R@5": (rank <= 5).double().mean().item(),
        "MdR": torch.quantile(rank.double(), 0.5).item(),
    }
