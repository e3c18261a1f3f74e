"""The log-mel spectrogram of the compiled core: its plans, and waveforms as addresses."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmcore import _core
from mmcore.backends.cpu.memory import empty
from mmcore.threads import get_num_threads

if TYPE_CHECKING:
    from mmcore.ops.log_mel import LogMelProblem
    from mmcore.ops.log_mel_settings import LogMelSettings

__all__ = ["log_mel"]

# The enumerations of csrc/include/mmcore/{dtype,log_mel}.h
_DTYPE = {torch.float16: 1, torch.bfloat16: 2, torch.float32: 3, torch.float64: 4}
_FRAMING = {"center": 0, "center_drop_last": 1, "snip_edges": 2, "no_snip_edges": 3}
_EDGE = {"reflect": 0, "symmetric": 1, "constant": 2}


@functools.lru_cache(maxsize=64)
def _plan(settings: LogMelSettings) -> _core.LogMelPlan:
    return _core.LogMelPlan(
        window=settings.window_weights(),
        mel=settings.mel_filters(),
        n_fft=settings.n_fft,
        hop_length=settings.hop_length,
        framing=_FRAMING[settings.framing],
        edge=_EDGE[settings.pad_mode],
        remove_dc=settings.remove_dc,
        preemphasis=settings.preemphasis,
        magnitude=settings.power == 1,
        logarithm=settings.log is not None,
        log_scale=settings.log_scale,
        floor=settings.floor,
        offset=settings.log_offset,
        dynamic_range=settings.dynamic_range or 0.0,
        mean=settings.mean,
        std=settings.std,
        pad_with_silence=settings.pad_value is None,
        pad_value=settings.pad_value or 0.0,
        time_major=settings.layout == "time_mel",
    )


def log_mel(problem: LogMelProblem) -> Tensor:
    """See :func:`mmcore.log_mel`: (rows, n_mels, frames) or (rows, frames, n_mels)."""
    settings = problem.settings
    x = problem.waveform.resolve_neg()  # a view that changes the sign has not changed memory
    rows, samples = x.shape
    if samples > 1 and x.stride(1) != 1:
        x = x.contiguous()
    lengths = None if problem.lengths is None else problem.lengths.contiguous()
    precise = x.dtype == torch.float64
    mels = (settings.n_mels, problem.frames)
    shape = (rows, *(mels if settings.layout == "mel_time" else mels[::-1]))
    out = empty(shape, torch.float64 if precise else problem.dtype)
    _core.log_mel(
        _plan(settings),
        x.data_ptr(),
        _DTYPE[x.dtype],
        rows,
        samples,
        x.stride(0),
        0 if lengths is None else lengths.data_ptr(),
        -1 if problem.pad_to is None else problem.pad_to,
        problem.frames,
        out.data_ptr(),
        _DTYPE[out.dtype],
        get_num_threads(),
    )
    return out.to(problem.dtype)
