"""Text to features: a pre-norm Transformer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmcore.models.features import Encoder, Features, check_mask, without_padding

__all__ = ["Transformer"]

POSITIONS = ("learned", "sinusoidal")


def _sinusoidal(length: int, dim: int) -> Tensor:
    """(length, dim): sines in the first half, cosines in the second, wavelengths 2 pi to 20000 pi."""
    rates = torch.exp(torch.arange((dim + 1) // 2) * (-math.log(10000.0) / ((dim + 1) // 2)))
    angles = torch.arange(length)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)[:, :dim]


class _Block(nn.Module):
    """Attention, then two linear layers, each added to what it reads the norm of (Xiong et al. 2020)."""

    def __init__(self, dim: int, heads: int, causal: bool, dropout: float) -> None:
        super().__init__()
        self.heads, self.causal, self.dropout = heads, causal, dropout
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, 4 * dim)
        self.down = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor, allowed: Tensor | None) -> Tensor:
        """Of x (B, L, D); ``allowed`` (B or 1, 1, L or 1, L) bool: which positions may be looked at."""
        query, key, value = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        y = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=allowed,
            is_causal=self.causal and allowed is None,
        )
        x = x + self._dropped(self.out(y.transpose(1, 2).flatten(2)))
        return x + self._dropped(self.down(F.gelu(self.up(self.norm2(x)))))

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class Transformer(Encoder):
    """Pre-norm Transformer over token ids, or over vectors that are there already.

    Parameters
    ----------
    dim : int
        Width of the features, a multiple of ``heads``.
    vocabulary : int
        How many ids there are; 259 are those of :class:`mmcore.ByteTokenizer`.
    layers, heads : int
    max_length : int
        The longest sequence.
    positions : {"learned", "sinusoidal"}
    causal : bool
        No position sees a later one.
    dropout : float
        Of what each half of a layer adds.

    Examples
    --------
    >>> import torch
    >>> from mmcore.models import Transformer
    >>> ids, mask = torch.tensor([[75, 108, 0]]), torch.tensor([[True, True, False]])
    >>> Transformer.preset("tiny")(ids, mask).data.shape
    torch.Size([1, 3, 128])
    """

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {"dim": 128, "layers": 2, "heads": 4, "max_length": 128},
        "base": {"dim": 512, "layers": 6, "heads": 8, "max_length": 512},
    }

    def __init__(
        self,
        dim: int,
        *,
        vocabulary: int = 259,
        layers: int = 2,
        heads: int = 4,
        max_length: int = 128,
        positions: str = "learned",
        causal: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if positions not in POSITIONS:
            raise ValueError(f"positions: expected one of {', '.join(POSITIONS)}, got {positions!r}")
        if dim < 1 or heads < 1 or dim % heads:
            raise ValueError(f"dim: expected a multiple of heads={heads}, got {dim}")
        sizes = {"vocabulary": vocabulary, "layers": layers, "heads": heads, "max_length": max_length}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name}: expected 1 or more, got {value}")
        self.config = {"dim": dim, **sizes, "positions": positions, "causal": causal, "dropout": dropout}
        self.dim = dim
        self.vocabulary = vocabulary
        self.max_length = max_length
        self.causal = causal
        self.embedding = nn.Embedding(vocabulary, dim)
        nn.init.normal_(self.embedding.weight, std=0.02)
        if positions == "learned":
            self.positions = nn.Parameter(0.02 * torch.randn(max_length, dim))
        else:
            self.register_buffer("positions", 0.02 * _sinusoidal(max_length, dim), persistent=False)
        self.blocks = nn.ModuleList(_Block(dim, heads, causal, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        """Encode ids (B, L), or vectors (B, L, dim); ``mask`` (B, L) says which positions are there."""
        if x.is_floating_point():
            if x.dim() != 3 or x.shape[2] != self.dim:
                raise ValueError(f"text: expected vectors (B, L, {self.dim}), got {tuple(x.shape)}")
        elif x.dim() != 2:
            raise ValueError(f"text: expected ids (B, L), got {tuple(x.shape)}")
        batch, length = x.shape[:2]
        if length > self.max_length:
            raise ValueError(f"text: {length} positions are more than max_length={self.max_length}")
        check_mask(mask, batch, length)
        allowed = None
        if mask is not None:
            # Where nothing is there everything is looked at: a softmax over nothing would be NaN.
            allowed = (mask | ~mask.any(1, keepdim=True))[:, None, None, :]
            if self.causal:
                steps = torch.arange(length, device=x.device)
                # Its own position always: what is padded in front has nothing else to look at.
                allowed = (allowed & (steps <= steps[:, None])) | torch.eye(
                    length, dtype=torch.bool, device=x.device
                )
        y = without_padding(x, mask) if x.is_floating_point() else self.embedding(x)
        y = y + self.positions[:length]
        for block in self.blocks:
            y = self._run(block, y, allowed)
        return Features(self.norm(y), mask)
