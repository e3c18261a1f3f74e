"""From fused features to what each task wants."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mmcore.models.features import Presets, masked_mean

__all__ = ["ClassificationHead", "EmbeddingHead", "Head", "RegressionHead"]


class GatedLinear(nn.Module):
    """``silu(A x) * (B x)``, SwiGLU of Shazeer, "GLU Variants Improve Transformer" (2020)."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width_in, width_out)
        self.value = nn.Linear(width_in, width_out)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width_in) to (..., width_out)."""
        return F.silu(self.gate(x)) * self.value(x)  # type: ignore[no-any-return]


class Head(Presets):
    """A linear layer, or two with something between them, on the features or on their mean over time.

    Parameters
    ----------
    dim : int
        Width of the features.
    outputs : int
        Width of the result: classes, numbers, or the size of the embedding.
    hidden : int, optional
        Width of a layer in between. What depends on two modalities together needs one: a sum of features
        alone holds no product of them.
    gated : bool
        That layer multiplies two linear maps (SwiGLU), which has such products at once; else it is a GELU.
    pool : bool
        Features over time (B, T, dim) become their mean first: (B, outputs). False: (B, T, outputs).
    dropout : float
        Before the last layer.
    """

    def __init__(
        self,
        dim: int,
        outputs: int,
        *,
        hidden: int | None = None,
        gated: bool = False,
        pool: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        sizes = {"dim": dim, "outputs": outputs, "hidden": hidden}
        for name, value in sizes.items():
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected 1 or more, got {value}")
        self.config = {**sizes, "gated": gated, "pool": pool, "dropout": dropout}
        self.pool = pool
        between: list[nn.Module] = []
        if hidden is not None:
            between = [GatedLinear(dim, hidden)] if gated else [nn.Linear(dim, hidden), nn.GELU()]
        self.layers = nn.Sequential(*between, nn.Dropout(dropout), nn.Linear(hidden or dim, outputs))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Of features (B, dim) or (B, T, dim), where ``mask`` (B, T) says which steps are there."""
        if self.pool and x.dim() == 3:
            x = masked_mean(x, mask)
        return self.layers(x)  # type: ignore[no-any-return]


class ClassificationHead(Head):
    """Logits of ``outputs`` classes; over time (B, T, classes), for ``cross_entropy(class_dim=-1)``."""


class RegressionHead(Head):
    """``outputs`` numbers."""


class EmbeddingHead(Head):
    """A vector of length 1, for ``contrastive_loss`` and search."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """As :class:`Head`, divided by its length."""
        return F.normalize(super().forward(x, mask), dim=-1)
