"""Spectrogram to sound, without anything learned: the filters' inverse and Griffin and Lim's phases."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

import mmcore

__all__ = ["griffin_lim", "magnitudes_of"]


def magnitudes_of(log_mel: Tensor, settings: mmcore.LogMelSettings, iterations: int = 30) -> Tensor:
    """Magnitudes of a Fourier transform that have, nearly, this log-mel spectrogram.

    Non-negative least squares by the multiplicative updates of Lee and Seung (2001) for ``filters @ S =
    mel``, from the pseudo-inverse on.

    Parameters
    ----------
    log_mel : Tensor
        (T, mels), as ``settings`` make it: natural logarithm of filtered magnitudes.
    settings : LogMelSettings
    iterations : int

    Returns
    -------
    Tensor
        (n_fft // 2 + 1, T).

    Raises
    ------
    ValueError
        For settings whose spectrogram this cannot invert.
    """
    if settings.log != "ln" or settings.power != 1 or settings.framing != "center":
        raise ValueError('settings: expected log="ln", power=1 and framing="center"')
    filters, inverse = _filters(settings)
    mel = (log_mel.T.float() * settings.std + settings.mean).exp()
    magnitudes = (inverse @ mel).clamp(min=1e-8)
    wanted = filters.T @ mel
    for _ in range(iterations):
        magnitudes = magnitudes * wanted / (filters.T @ (filters @ magnitudes) + 1e-10)
    return magnitudes


def griffin_lim(
    log_mel: Tensor, settings: mmcore.LogMelSettings, *, iterations: int = 32, momentum: float = 0.99
) -> Tensor:
    """Waveform that has, nearly, this log-mel spectrogram.

    Griffin and Lim's iteration (1984) with the momentum of Perraudin, Balazs and Sondergaard (2013), from
    random phases that are always the same: the result depends on the arguments alone.

    Parameters
    ----------
    log_mel : Tensor
        (T, mels).
    settings : LogMelSettings
        As :func:`magnitudes_of` wants them.
    iterations : int
    momentum : float

    Returns
    -------
    Tensor
        ((T - 1) * hop_length,) float32; louder than -1 to 1 if the spectrogram is.
    """
    magnitudes = magnitudes_of(log_mel, settings)
    hop = settings.hop_length
    if len(log_mel) < 2 + settings.n_fft // (
        2 * hop
    ):  # torch.istft needs half a window more than it cuts off
        return torch.zeros((len(log_mel) - 1) * hop)
    transform: dict[str, Any] = {
        "n_fft": settings.n_fft,
        "hop_length": hop,
        "win_length": settings.win_length,
        "window": torch.from_numpy(settings.window_weights()).float(),
    }
    generator = torch.Generator().manual_seed(0)
    angles = 2 * math.pi * torch.rand(magnitudes.shape, generator=generator)
    phases, before = torch.polar(torch.ones_like(angles), angles), None
    for _ in range(iterations):
        waveform = torch.istft(magnitudes * phases, **transform)
        rebuilt = torch.stft(waveform, **transform, return_complex=True)
        ahead = rebuilt if before is None else rebuilt - before * (momentum / (1 + momentum))
        before, phases = rebuilt, ahead / (ahead.abs() + 1e-12)
    result: Tensor = torch.istft(magnitudes * phases, **transform)
    return result


@functools.lru_cache(maxsize=8)
def _filters(settings: mmcore.LogMelSettings) -> tuple[Tensor, Tensor]:
    filters = torch.from_numpy(settings.mel_filters())
    return filters.float(), torch.linalg.pinv(filters).float()
