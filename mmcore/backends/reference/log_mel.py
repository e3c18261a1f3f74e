"""The log-mel spectrogram in plain torch: differentiable, on any device, in float32 or float64."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mmcore.ops.log_mel import LogMelProblem
    from mmcore.ops.log_mel_settings import LogMelSettings

__all__ = ["log_mel"]


@functools.lru_cache(maxsize=64)
def _tables(settings: LogMelSettings, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):
        tables = (torch.from_numpy(a) for a in (settings.window_weights(), settings.mel_filters()))
        window, mel = (t.to(device=device, dtype=dtype) for t in tables)
    return window, mel


def _constant_tables(settings: LogMelSettings, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    return _tables(settings, dtype, device)


# What torch.compiler.assume_constant_result does; the decorator itself would import the compiler, and Triton.
_constant_tables._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _folded(index: Tensor, total: Tensor, mode: str) -> Tensor:
    """Where the samples at any ``index`` lie, for ``total`` samples; total itself stands for a zero."""
    if mode == "constant":
        return torch.where((index >= 0) & (index < total), index, total)
    period = (2 * (total - 1)).clamp(min=1) if mode == "reflect" else (2 * total).clamp(min=1)
    at = index.remainder(period)
    return torch.where(at < total, at, period - at if mode == "reflect" else period - 1 - at)


def log_mel(problem: LogMelProblem) -> Tensor:
    """See :func:`mmcore.log_mel`: (rows, n_mels, frames) or (rows, frames, n_mels)."""
    s = problem.settings
    dtype = torch.float64 if problem.waveform.dtype == torch.float64 else torch.float32
    x = problem.waveform.to(dtype)
    device = x.device
    rows, samples = x.shape
    frames = problem.frames
    if rows == 0 or samples == 0:
        x = x.new_zeros((rows, 1))
    there = problem.lengths
    if there is None:
        there = torch.full((rows,), samples, device=device)
    total = there if problem.pad_to is None else torch.full((rows,), problem.pad_to, device=device)
    there = torch.minimum(there, total)

    starts = s.first_sample + s.hop_length * torch.arange(frames, device=device)
    index = starts[:, None] + torch.arange(s.win_length, device=device)
    index = _folded(index, total[:, None, None], s.pad_mode)
    inside = index < there[:, None, None]
    index = torch.where(inside, index, 0).reshape(rows, -1)
    framed = torch.where(inside, x.gather(1, index).view(inside.shape), 0.0)

    if s.remove_dc:
        framed = framed - framed.mean(-1, keepdim=True)
    if s.preemphasis != 0:
        before = torch.cat((framed[..., :1], framed[..., :-1]), -1)
        framed = framed - s.preemphasis * before
    window, mel = _constant_tables(s, dtype, str(device))
    spectrum = torch.fft.rfft(framed * window, n=s.n_fft)
    power = spectrum.real.square() + spectrum.imag.square()
    if s.power == 1:
        # the root's slope at 0 is taken to be 0
        power = torch.where(power > 0, torch.where(power > 0, power, 1.0).sqrt(), power)
    value = power @ mel.mT
    silence = torch.zeros((), dtype=dtype, device=device)
    if s.log is not None:
        value, silence = ((v + s.log_offset).clamp(min=s.floor).log() * s.log_scale for v in (value, silence))
    own = torch.arange(frames, device=device) < s.num_frames(total)[:, None]
    own = own[..., None]
    value = torch.where(own, value, silence if s.pad_value is None else s.pad_value)
    if s.dynamic_range is not None and frames > 0:
        # A value that is no number is no largest one.
        least = torch.finfo(dtype).min
        largest = torch.where(own & ~value.isnan(), value, least).amax((1, 2), keepdim=True)
        value = torch.where(value < largest - s.dynamic_range, largest - s.dynamic_range, value)
    value = (value - s.mean) / s.std
    if s.layout == "mel_time":
        value = value.mT
    return value.to(problem.dtype).contiguous()
