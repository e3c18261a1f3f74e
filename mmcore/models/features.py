"""What encoders hand on, and what they have in common: masks, settings, presets, checkpointing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["Encoder", "Features", "Presets", "check_mask", "masked_mean", "without_padding"]


class Features(NamedTuple):
    """A modality's features over time.

    Attributes
    ----------
    data : Tensor
        (B, T, D). What is at masked steps has no meaning.
    mask : Tensor or None
        (B, T) bool, True where there is something; None: everywhere.
    """

    data: Tensor
    mask: Tensor | None = None


def masked_mean(data: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of (B, T, D) over the steps that the mask has: (B, D), 0 where it has none."""
    if mask is None:
        return data.mean(1)
    total = without_padding(data, mask).sum(1)
    return total / mask.sum(1, keepdim=True).clamp(min=1).to(total.dtype)


def without_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """Give (B, T, ...) with 0 at the steps that the mask leaves out, whatever was there, NaN included."""
    if mask is None:
        return x
    return x.masked_fill(~mask.view(*mask.shape, *(1,) * (x.dim() - 2)), 0.0)


def check_mask(mask: Tensor | None, batch: int, steps: int, name: str = "mask") -> None:
    """Raise unless the mask is bool (batch, steps), or None."""
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise TypeError(f"{name}: expected a bool tensor, got {mask.dtype}")
    if mask.shape != (batch, steps):
        raise ValueError(f"{name}: expected shape ({batch}, {steps}), got {tuple(mask.shape)}")


class Presets(nn.Module):
    """A module that remembers the arguments it was made with, and has named sets of them."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    config: dict[str, Any]
    """Keyword arguments that make the module again; what :func:`mmcore.models.save` writes."""

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """Make the module of the preset "tiny" or "base", with any of its arguments changed."""
        if name not in cls.PRESETS:
            raise ValueError(f"preset: expected one of {', '.join(cls.PRESETS) or 'none'}, got {name!r}")
        return cls(**{**cls.PRESETS[name], **changes})


class Encoder(Presets):
    """Base of the encoders: ``forward(x, mask=None) -> Features`` of width ``dim``.

    Attributes
    ----------
    dim : int
        Width of the features.
    checkpointing : bool
        What :meth:`gradient_checkpointing` set.
    """

    dim: int
    checkpointing: bool = False

    def gradient_checkpointing(self, enabled: bool = True) -> Self:
        """Keep only what enters each block, in training, and compute the rest again in the backward.

        Less memory for about a third more time, and the same gradients. Returns ``self``.
        """
        self.checkpointing = bool(enabled)
        return self

    def _run(self, block: Callable[..., Tensor], *args: Any) -> Tensor:
        """Apply a block, checkpointed if that is on."""
        if self.checkpointing and self.training and torch.is_grad_enabled():
            result: Tensor = checkpoint(block, *args, use_reentrant=False)
            return result
        return block(*args)
