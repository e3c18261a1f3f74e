"""Phonemes to a log-mel spectrogram: a small model in the manner of FastSpeech 2 (Ren et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mmcore
from mmcore.models import Transformer
from mmcore.nn import MultiTaskLoss

__all__ = ["AcousticModel", "Spoken"]


class Spoken(NamedTuple):
    """What the model makes of phonemes.

    Attributes
    ----------
    log_mel : Tensor
        (B, T, mels).
    frame_mask : Tensor
        (B, T) bool.
    log_durations : Tensor
        (B, L), predicted: the logarithm of frames + 1.
    energy : Tensor
        (B, L), predicted.
    """

    log_mel: Tensor
    frame_mask: Tensor
    log_durations: Tensor
    energy: Tensor


class _ConvBlock(nn.Module):
    """Each channel over time, then all channels at each time, added to the input (Liu et al. 2022)."""

    def __init__(self, dim: int, kernel: int = 7) -> None:
        super().__init__()
        self.mix_time = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, 2 * dim)
        self.down = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Apply to (B, T, D); what the mask (B, T) lacks counts as zeros, so that padding changes nothing."""
        y = self.mix_time((x * mask[..., None]).transpose(1, 2)).transpose(1, 2)
        result: Tensor = x + self.down(F.gelu(self.up(self.norm(y))))
        return result


class _Predictor(nn.Module):
    """One number for each phoneme."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.block = _ConvBlock(dim, 3)
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        result: Tensor = self.out(self.norm(self.block(x, mask)))[..., 0]
        return result


class AcousticModel(nn.Module):
    """Phonemes to durations, energies and a log-mel spectrogram.

    A Transformer and convolutions read the phonemes; two predictors say how many frames each lasts and how
    loud it is; each phoneme is repeated for its frames (the length regulator) and told how far through it
    each frame is; convolutions over the frames make the spectrogram.

    Parameters
    ----------
    phonemes : sequence of str
        Names whose places are the ids.
    log_mel : str
        ``LogMelSettings.spec`` of the spectrogram.
    speech : mapping
        What espeak-ng needs to make phonemes of text: ``{"voice": "en-us"}``.
    words : sequence of str
        Those that were said in training; what else is spoken is guessed from its phonemes.
    dim, encoder_layers, decoder_layers : int

    Attributes
    ----------
    loss : mmcore.nn.MultiTaskLoss
        Of the tasks "mel" (L1), "duration" and "energy" (MSE).
    """

    def __init__(
        self,
        phonemes: Sequence[str],
        log_mel: str,
        *,
        voice: str = "en-us",
        words: Sequence[str] = (),
        dim: int = 128,
        encoder_layers: int = 2,
        decoder_layers: int = 6,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "phonemes": list(phonemes),
            "log_mel": log_mel,
            "voice": voice,
            "words": list(words),
            "dim": dim,
            "encoder_layers": encoder_layers,
            "decoder_layers": decoder_layers,
        }
        self.phonemes = tuple(phonemes)
        self.log_mel = mmcore.LogMelSettings.from_spec(log_mel)
        self.encoder = Transformer(
            dim, vocabulary=len(self.phonemes), layers=encoder_layers, max_length=512, positions="sinusoidal"
        )
        self.neighbours = nn.ModuleList(_ConvBlock(dim, 5) for _ in range(2))
        self.duration = _Predictor(dim)
        self.energy = _Predictor(dim)
        self.loudness = nn.Linear(1, dim)
        self.place = nn.Linear(3, dim)
        self.decoder = nn.ModuleList(_ConvBlock(dim) for _ in range(decoder_layers))
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, self.log_mel.n_mels)
        self.loss = MultiTaskLoss(
            {"mel": mmcore.Task.l1(), "duration": mmcore.Task.mse(), "energy": mmcore.Task.mse()},
            weights={"mel": 1.0, "duration": 0.5, "energy": 0.1},
        )

    def forward(
        self,
        ids: Tensor,
        mask: Tensor,
        durations: Tensor | None = None,
        energy: Tensor | None = None,
        *,
        speed: float = 1.0,
    ) -> Spoken:
        """Speak.

        Parameters
        ----------
        ids : Tensor
            (B, L) int64.
        mask : Tensor
            (B, L) bool, False in the padding.
        durations, energy : Tensor, optional
            (B, L), what they are known to be, in training; None: as predicted.
        speed : float
            Divides predicted durations.
        """
        x = self.encoder(ids, mask).data
        for block in self.neighbours:
            x = block(x, mask)
        # The predictors read, but do not form, what the spectrogram is made of.
        log_durations = self.duration(x.detach(), mask)
        predicted_energy = self.energy(x.detach(), mask)
        if durations is None:
            durations = _whole_frames(log_durations.expm1().clamp(min=0) / speed, mask)
        energy = predicted_energy if energy is None else energy
        x = x + self.loudness(energy[..., None])
        frames, frame_mask = self._regulate(x, durations)
        for block in self.decoder:
            frames = block(frames, frame_mask)
        return Spoken(self.out(self.norm(frames)), frame_mask, log_durations, predicted_energy)

    def _regulate(self, x: Tensor, durations: Tensor) -> tuple[Tensor, Tensor]:
        """Repeat each of (B, L, D) for its frames: (B, T, D), and the mask (B, T)."""
        ends = durations.cumsum(1)
        lengths = ends[:, -1]
        time = torch.arange(max(1, int(lengths.max())), device=x.device).expand(len(x), -1).contiguous()
        mask = time < lengths[:, None]
        which = torch.searchsorted(ends, time, right=True).clamp(max=ends.shape[1] - 1)
        lasting = durations.gather(1, which)
        since = time - (ends.gather(1, which) - lasting)
        place = torch.stack([(since + 0.5) / lasting.clamp(min=1), since.log1p(), lasting.log1p()], -1)
        repeated = x.gather(1, which[..., None].expand(-1, -1, x.shape[2]))
        return repeated + self.place(place * mask[..., None]), mask


def _whole_frames(durations: Tensor, mask: Tensor) -> Tensor:
    """Round (B, L) to int64 so that every beginning is off by half a frame at most: errors do not add up."""
    ends = (durations * mask).cumsum(1).round().long()
    return ends.diff(dim=1, prepend=torch.zeros_like(ends[:, :1]))
