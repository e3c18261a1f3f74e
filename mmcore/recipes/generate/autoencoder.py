"""Frames to a few numbers each and back: the space in which videos are generated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import mmcore
from mmcore.nn import MultiTaskLoss

__all__ = ["FrameAutoencoder"]

_ATTRIBUTE = 0.03
"""Weight of an attribute's loss; the pixels' loss soon has to fall by no more than that."""


def _conv(width_in: int, width: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width_in, width, 3, stride, 1), nn.GroupNorm(8, width), nn.SiLU())


class FrameAutoencoder(nn.Module):
    """Convolutional autoencoder of single frames with a small latent of unit variance.

    Linear classifiers of what is seen are trained on the latents at the same time: two shapes of a few pixels
    differ in so few levels that the pixels' loss alone is long in telling them apart.

    Parameters
    ----------
    height, width : int
        Of the frames, multiples of 8.
    classes : mapping of str to int
        Names of the attributes of a frame that have labels, and how many values each has.
    latent : int
        Numbers for each frame.
    channels : int
        Of the finest convolution, a multiple of 8; coarser ones have 2 and 4 times as many.
    noise : float
        Standard deviation of what is added to latents in training, so that near latents mean near pictures.

    Notes
    -----
    Latents are normalised by a batch norm without scale and shift: the flow, which starts from unit noise,
    needs no factor of its own, and no KL term has to keep them together.
    """

    def __init__(
        self,
        *,
        height: int,
        width: int,
        classes: Mapping[str, int],
        latent: int = 32,
        channels: int = 32,
        noise: float = 0.1,
    ) -> None:
        super().__init__()
        if height % 8 or width % 8:
            raise ValueError(f"height, width: expected multiples of 8, got {height} and {width}")
        self.config: dict[str, Any] = {
            "height": height,
            "width": width,
            "classes": dict(classes),
            "latent": latent,
            "channels": channels,
            "noise": noise,
        }
        self.latent = latent
        self.noise = noise
        c, coarse = channels, (height // 8, width // 8)
        flat = 4 * c * coarse[0] * coarse[1]
        self.encoder = nn.Sequential(
            *(_conv(3, c, 2), _conv(c, 2 * c, 2), _conv(2 * c, 4 * c, 2), nn.Flatten()),
            nn.Linear(flat, latent),
            nn.BatchNorm1d(latent, affine=False),
        )
        self.decoder = nn.Sequential(
            *(nn.Linear(latent, flat), nn.Unflatten(1, (4 * c, *coarse)), nn.GroupNorm(8, 4 * c), nn.SiLU()),
            *(nn.Upsample(scale_factor=2), _conv(4 * c, 2 * c), nn.Upsample(scale_factor=2), _conv(2 * c, c)),
            nn.Conv2d(c, 12, 3, 1, 1),
            nn.PixelShuffle(2),
        )
        self.heads = nn.ModuleDict({name: nn.Linear(latent, count) for name, count in classes.items()})
        # Levels as probabilities: a pixel is mostly background or shape, and a sigmoid gets to either fast.
        tasks = {"pixels": mmcore.Task.bce_with_logits()}
        tasks |= {name: mmcore.Task.cross_entropy() for name in classes}
        weights = {"pixels": 1.0} | dict.fromkeys(classes, _ATTRIBUTE)
        self.criterion = MultiTaskLoss(tasks, weights=weights)

    def encode(self, frames: Tensor) -> Tensor:
        """Encode uint8 frames (..., 3, H, W) to latents (..., D), float32."""
        lead = frames.shape[:-3]
        return self.encoder(frames.flatten(0, -4).float() / 127.5 - 1).unflatten(0, lead)  # type: ignore[no-any-return]

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (..., D) to uint8 frames (..., 3, H, W)."""
        levels = self.decoder(latents.flatten(0, -2)).sigmoid().mul(255).round()
        return levels.to(torch.uint8).unflatten(0, latents.shape[:-1])  # type: ignore[no-any-return]

    def loss(self, frames: Tensor, labels: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses of uint8 frames (B, 3, H, W), decoded from their own latents with noise, and labels (B,)."""
        latents = self.encode(frames)
        noisy = latents + self.noise * torch.randn_like(latents)
        outputs = {"pixels": self.decoder(noisy)} | {name: head(noisy) for name, head in self.heads.items()}
        total, losses = self.criterion(outputs, {"pixels": frames.float() / 255, **labels})
        return total, losses
