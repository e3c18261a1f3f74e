"""SpecAugment: stretches of time and frequency of a log-mel spectrogram masked, and time warped."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

__all__ = ["SpecAugment"]


@dataclass(frozen=True)
class SpecAugment:
    """Masks and warps log-mel spectrograms.

    Parameters
    ----------
    num_time_masks : int
    time_mask : int
        Longest mask, in frames; each is from 0 to this long.
    max_time_share : float
        No time mask is longer than this part of the spectrogram.
    num_frequency_masks : int
    frequency_mask : int
        Widest mask, in mels.
    time_warp : int
        A random point is moved by up to so many frames, what is before and behind it stretched and compressed
        linearly. 0, the default, keeps the clock; with more, sound is up to so many frames early or late.
    fill : None or float
        What masks are filled with. None: the spectrogram's mean.

    Raises
    ------
    TypeError, ValueError
        For a number of the wrong type or out of range.

    Notes
    -----
    Source: Park et al. 2019, SpecAugment; the defaults are its LibriSpeech policy LD without the warp.

    Examples
    --------
    >>> import torch
    >>> from mmcore.clips import SpecAugment
    >>> masked = SpecAugment(fill=0.0)(torch.ones(80, 300), seed=1)
    >>> bool((masked == 0).any()), masked.shape
    (True, torch.Size([80, 300]))
    """

    num_time_masks: int = 2
    time_mask: int = 100
    max_time_share: float = 1.0
    num_frequency_masks: int = 2
    frequency_mask: int = 27
    time_warp: int = 0
    fill: float | None = None

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in ("fill", "max_time_share"):
                if (value is not None or f.name != "fill") and not isinstance(value, (int, float)):
                    raise TypeError(f"{f.name}: expected a number, got {value!r}")
            elif not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{f.name}: expected an int, got {value!r}")
            elif value < 0:
                raise ValueError(f"{f.name}: expected 0 or more, got {value}")
        if not 0 <= self.max_time_share <= 1:
            raise ValueError(f"max_time_share: expected 0 to 1, got {self.max_time_share}")

    def __call__(self, spectrogram: Tensor, seed: int | torch.Generator) -> Tensor:
        """A masked copy; the input stays as it is.

        Parameters
        ----------
        spectrogram : Tensor
            (..., mels, frames), floating-point; all of a batch get the same masks.
        seed : int or torch.Generator
            The generator is one of the CPU.

        Raises
        ------
        TypeError, ValueError
            For what is no floating-point tensor of two dimensions or more.
        """
        if not isinstance(spectrogram, Tensor) or not spectrogram.is_floating_point():
            raise TypeError("spectrogram: expected a floating-point tensor")
        if spectrogram.dim() < 2:
            raise ValueError(f"spectrogram: expected shape (..., mels, frames), got {spectrogram.shape}")
        generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
        result = self._warped(spectrogram, generator)
        result = result.clone() if result is spectrogram else result
        mels, frames = spectrogram.shape[-2:]
        if not spectrogram.numel():
            return result
        fill = spectrogram.mean() if self.fill is None else self.fill
        longest = min(self.time_mask, int(self.max_time_share * frames))
        for count, most, size, dim in (
            (self.num_time_masks, longest, frames, -1),
            (self.num_frequency_masks, self.frequency_mask, mels, -2),
        ):
            for width, place in torch.rand(count, 2, dtype=torch.float64, generator=generator).tolist():
                length = min(int(width * (most + 1)), size)
                start = int(place * (size - length + 1))
                result.narrow(dim, start, length).copy_(torch.as_tensor(fill))
        return result

    def _warped(self, spectrogram: Tensor, generator: torch.Generator) -> Tensor:
        frames = spectrogram.shape[-1]
        if not self.time_warp:
            return spectrogram
        at, move = torch.rand(2, dtype=torch.float64, generator=generator).tolist()
        reach = min(self.time_warp, (frames - 1) // 2)
        if reach < 1:
            return spectrogram
        point = reach + at * (frames - 1 - 2 * reach)
        target = point + (2 * move - 1) * reach
        t = torch.arange(frames, dtype=torch.float64)
        before = t * (point / target) if target > 0 else torch.zeros_like(t)
        behind = point + (t - target) * ((frames - 1 - point) / max(frames - 1 - target, 1e-9))
        where = torch.where(t < target, before, behind).clamp(0, frames - 1)
        first = where.floor().long().clamp(max=frames - 2)
        share = (where - first).to(spectrogram)
        first = first.to(spectrogram.device)
        return torch.lerp(spectrogram[..., first], spectrogram[..., first + 1], share)
