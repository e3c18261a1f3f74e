"""From noise and a prompt to a video's latents: flow matching with a Transformer over the frames."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mmcore
from mmcore.models import Transformer, masked_mean
from mmcore.nn import MultiTaskLoss
from mmcore.recipes.generate.autoencoder import FrameAutoencoder
from mmcore.recipes.generate.prompts import Prompts

__all__ = ["LatentFlow", "TextToVideo"]

_FREQUENCIES = 32
_TIME_SHIFT = -0.5  # of the logit of t: what is to be seen is decided while there is more noise than data


class _Block(nn.Module):
    """Transformer block whose norms are scaled and shifted, and whose branches are gated, by a condition.

    AdaLN-Zero of Peebles and Xie 2023 (DiT): gates start at 0, so that every block starts as the identity.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False)
        self.up = nn.Linear(dim, 4 * dim)
        self.down = nn.Linear(4 * dim, dim)
        self.condition = _zero(nn.Linear(dim, 6 * dim))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Of x (B, T, D) and condition (B, D)."""
        scale1, shift1, gate1, scale2, shift2, gate2 = self.condition(condition)[:, None].chunk(6, -1)
        query, key, value = (
            self.qkv(torch.addcmul(shift1, self.norm1(x), 1 + scale1))
            .unflatten(-1, (3, self.heads, -1))
            .permute(2, 0, 3, 1, 4)
        )
        y = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = torch.addcmul(x, gate1, self.out(y))
        y = self.down(F.gelu(self.up(torch.addcmul(shift2, self.norm2(x), 1 + scale2))))
        return torch.addcmul(x, gate2, y)


def _zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class LatentFlow(nn.Module):
    """Predicts a video's latents from noisy ones, the time and a prompt, and integrates from noise to data.

    ``z_t = t x + (1 - t) e`` with e ~ N(0, 1) leads from noise (t = 0) to data (t = 1) with the velocity
    ``x - e = (x - z_t) / (1 - t)`` (Lipman et al. 2023). The network predicts x, and the loss is x's squared
    error rather than the velocity's: that would weigh by 1 / (1 - t)^2 details to which the decoder, trained
    with noise, is blind. A second task is the change of x from frame to frame, which is what motion is.

    Parameters
    ----------
    latent : int
        Width of a frame's latent.
    num_frames : int
    vocabulary, max_length : int
        Of the prompts.
    dim, layers, heads : int
        Of the Transformer over the frames; the one over the words has one layer.
    no_prompt : float
        Part of the samples that are trained without their prompt, for classifier-free guidance.
    """

    def __init__(
        self,
        *,
        latent: int,
        num_frames: int,
        vocabulary: int,
        max_length: int,
        dim: int = 128,
        layers: int = 4,
        heads: int = 4,
        no_prompt: float = 0.1,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "latent": latent,
            "num_frames": num_frames,
            "vocabulary": vocabulary,
            "max_length": max_length,
            "dim": dim,
            "layers": layers,
            "heads": heads,
            "no_prompt": no_prompt,
        }
        self.latent = latent
        self.num_frames = num_frames
        self.no_prompt = no_prompt
        self.text = Transformer(dim, vocabulary=vocabulary, layers=1, heads=heads, max_length=max_length)
        self.time = nn.Sequential(nn.Linear(2 * _FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.input = nn.Linear(latent, dim)
        # A frame's place in time means something else for each prompt: where in the motion it is.
        self.positions = nn.Linear(dim, num_frames * dim)
        nn.init.normal_(self.positions.bias)
        self.blocks = nn.ModuleList(_Block(dim, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.condition = _zero(nn.Linear(dim, 2 * dim))
        self.output = _zero(nn.Linear(dim, latent))
        tasks = {"frames": mmcore.Task.mse(), "motion": mmcore.Task.mse()}
        self.criterion = MultiTaskLoss(tasks, weights={"frames": 1.0, "motion": 2.0})

    def forward(self, noisy: Tensor, t: Tensor, ids: Tensor, mask: Tensor, prompted: Tensor) -> Tensor:
        """Predict the latents.

        Parameters
        ----------
        noisy : Tensor
            (B, T, D).
        t : Tensor
            (B,), from 0 to 1.
        ids, mask : Tensor
            (B, L) int64 and bool: words, and where there is one.
        prompted : Tensor
            (B,) bool: whose words are read at all.

        Returns
        -------
        Tensor
            (B, T, D).
        """
        time = self.time(_waves(t))
        text = masked_mean(*self.text(ids, mask))
        # Without a prompt the text is a missing modality: the fusion does not read it.
        there = torch.stack([torch.ones_like(prompted), prompted], 1)
        condition = F.silu(mmcore.weighted_fusion([time, text], mode="sum", mask=there))
        x = self.input(noisy) + self.positions(condition).view(-1, self.num_frames, self.input.out_features)
        for block in self.blocks:
            x = block(x, condition)
        scale, shift = self.condition(condition)[:, None].chunk(2, -1)
        return self.output(torch.addcmul(shift, self.norm(x), 1 + scale))  # type: ignore[no-any-return]

    def loss(self, latents: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of latents (B, T, D) and their prompts at random times, with random noise."""
        batch = len(latents)
        t = (torch.randn(batch, device=latents.device) + _TIME_SHIFT).sigmoid()
        noisy = torch.lerp(torch.randn_like(latents), latents, t[:, None, None])
        prompted = torch.rand(batch, device=latents.device) >= self.no_prompt
        predicted = self(noisy, t, ids, mask, prompted)
        total, losses = self.criterion(_with_motion(predicted), _with_motion(latents))
        return total, losses

    @torch.no_grad()
    def sample(self, noise: Tensor, ids: Tensor, mask: Tensor, *, steps: int, guidance: float) -> Tensor:
        """Integrate from noise (B, T, D) to latents in Euler steps of equal length.

        ``guidance`` g takes ``u + g (c - u)``, c being predicted with the prompt and u without (Ho and
        Salimans 2022); 1 is the prompt alone.
        """
        z, batch = noise, len(noise)
        prompted = torch.ones(batch, dtype=torch.bool, device=z.device)
        both = torch.cat([prompted, ~prompted])
        times = torch.linspace(0, 1, steps + 1).tolist()
        for now, then in itertools.pairwise(times):
            t = torch.full((2 * batch,), now, device=z.device)
            if guidance == 1:
                x = self(z, t[:batch], ids, mask, prompted)
            else:
                predicted = self(torch.cat([z, z]), t, torch.cat([ids, ids]), torch.cat([mask, mask]), both)
                with_prompt, without = predicted.chunk(2)
                x = torch.lerp(without, with_prompt, guidance)
            z = torch.lerp(z, x, (then - now) / (1 - now))  # z + (then - now) * velocity; x in the last step
        return z


def _with_motion(x: Tensor) -> dict[str, Tensor]:
    return {"frames": x, "motion": x.diff(dim=1)}


def _waves(t: Tensor) -> Tensor:
    """(B,) times from 0 to 1 as (B, 2 F) cosines and sines, of periods 2 pi / 100 to 20 pi."""
    rates = 100 * torch.exp(torch.arange(_FREQUENCIES, device=t.device) * (-math.log(1000) / _FREQUENCIES))
    angles = t[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], 1)


class TextToVideo(nn.Module):
    """The whole generator: prompts, the flow that makes latents, the decoder that makes frames of them.

    Parameters
    ----------
    values : mapping of str to sequence of str
        As :class:`Prompts` takes them.
    autoencoder : FrameAutoencoder
    flow : LatentFlow
    """

    def __init__(
        self, *, values: Mapping[str, Sequence[str]], autoencoder: FrameAutoencoder, flow: LatentFlow
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "values": {name: list(words) for name, words in values.items()},
            "autoencoder": autoencoder,
            "flow": flow,
        }
        self.prompts = Prompts(values)
        self.autoencoder = autoencoder
        self.flow = flow

    @torch.no_grad()
    def generate(
        self, said: Sequence[Mapping[str, str]], *, seed: int, steps: int, guidance: float
    ) -> Tensor:
        """Make one clip for each parsed prompt: (N, T, 3, H, W) uint8."""
        device = self.flow.output.weight.device
        # On the CPU, one after the other: the same noise on every device, and for a clip whatever follows it.
        generator = torch.Generator().manual_seed(seed)
        shape = (self.flow.num_frames, self.flow.latent)
        noise = torch.stack([torch.randn(shape, generator=generator) for _ in said]).to(device)
        ids, mask = (x.to(device) for x in self.prompts.encode(said))
        latents = self.flow.sample(noise, ids, mask, steps=steps, guidance=guidance)
        return self.autoencoder.decode(latents)
