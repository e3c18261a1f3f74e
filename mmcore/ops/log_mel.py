"""The log-mel op: waveforms become log-mel spectrograms, all between samples and result in the caches.

    y[m, f] = (max(s ln(max(floor, offset + sum_k mel[m, k] |X_f[k]|^p)), largest - range) - mean) / std

X_f is the Fourier transform of frame f: less its mean, with preemphasis, times the window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmcore.backends import active_backend, forced_backend, load_backend
from mmcore.ops._library import LIBRARY
from mmcore.ops.log_mel_settings import LogMelSettings

__all__ = ["LogMelProblem", "log_mel"]

_IMPLEMENTED = ("reference", "cpu")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class LogMelProblem(NamedTuple):
    """A call of the op, checked, as backends take it."""

    waveform: Tensor
    """(rows, samples)"""
    lengths: Tensor | None
    """int64 (rows,), each 0 to samples; None: all have samples."""
    pad_to: int | None
    """Samples that each row is cut or filled up to; None: its own."""
    frames: int
    """Of the result."""
    settings: LogMelSettings
    dtype: torch.dtype
    """Of the result."""


_WHISPER = LogMelSettings.whisper()


def log_mel(
    waveform: Tensor,
    sample_rate: int = 16000,
    settings: LogMelSettings = _WHISPER,
    *,
    lengths: Tensor | Sequence[int] | None = None,
    pad_to: int | None = None,
    num_frames: int | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Log-mel spectrograms of waveforms, as Whisper, Kaldi's fbank or the settings at hand define them.

    Parameters
    ----------
    waveform : Tensor
        (..., samples), float32, bfloat16, float16 or float64, of any strides. Each waveform is one channel;
        samples of -1 to 1 are what the settings of models expect.
    sample_rate : int
        Of the waveform, in hertz. It must be that of the settings: nothing is resampled here,
        :class:`mmcore.AudioDecoder` does it.
    settings : LogMelSettings
        Default: ``LogMelSettings.whisper()``.
    lengths : Tensor or sequence of int, optional
        Samples of each waveform, int64 of the waveform's shape without its last dimension, on its device;
        what lies behind them is not read. Every waveform's result is what it would be alone; frames that it
        lacks have the settings' ``pad_value``, and :meth:`LogMelSettings.frame_mask` tells which they are.
    pad_to : int, optional
        Samples that waveforms are cut, or filled up with zeros, to. Whisper's 30 s are 480000.
    num_frames : int, optional
        Frames of the result: more are cut off, lacking ones have the ``pad_value``. AST's are 1024.
    dtype : torch.dtype, optional
        Of the result, one of the waveform's four. Default: float64 for float64, else float32.

    Returns
    -------
    Tensor
        (..., n_mels, frames), or (..., frames, n_mels) if the settings' layout says so. Computed in float64
        for float64 and in float32 for all others.

    Raises
    ------
    TypeError
        For an argument of another kind, and for integer samples, which need scaling first.
    ValueError
        For a sample rate other than the settings', lengths that do not fit, and a waveform without a frame.
    UnsupportedError
        If a backend is forced that does not have this op for the waveform's device.

    Notes
    -----
    NaN and infinite samples spoil the frames that hold them and no other: the dynamic range counts from the
    largest of the numbers. Results do not depend on the number of threads, nor on the batch. Where the
    waveform requires a gradient the reference runs instead, plain torch, which is differentiable; so it does
    on GPUs.

    In float32 the error of a bin is about 1e-7 of the frame's loudest: sums far below it, as beside a pure
    tone, are that much less certain, and so are their logarithms unless a dynamic range hides them.

    Sources: Radford et al. 2022 (Whisper); Povey et al. 2011 (Kaldi); Gong et al. 2021 (AST). Filters:
    Slaney's Auditory Toolbox (1998), the HTK book.

    Examples
    --------
    >>> import mmcore, torch
    >>> second = torch.sin(torch.arange(16000) * 0.1)
    >>> mmcore.log_mel(second).shape
    torch.Size([80, 100])
    >>> mmcore.log_mel(second, 16000, mmcore.LogMelSettings.ast(), num_frames=1024).shape
    torch.Size([1024, 128])
    """
    if not isinstance(settings, LogMelSettings):
        raise TypeError(f"settings: expected LogMelSettings, got {type(settings).__name__}")
    if sample_rate != settings.sample_rate:
        raise ValueError(
            f"sample_rate: the settings are for {settings.sample_rate} Hz, got {sample_rate}; decode with"
            f" AudioDecoder(..., sample_rate={settings.sample_rate}) or change the settings"
        )
    if lengths is not None and not isinstance(lengths, Tensor):
        lengths = _lengths_tensor(lengths, waveform)
    if dtype is None and isinstance(waveform, Tensor):
        dtype = torch.float64 if waveform.dtype == torch.float64 else torch.float32
    problem, leading = _check(waveform, lengths, pad_to, num_frames, settings, dtype)
    if problem.waveform.requires_grad and torch.is_grad_enabled():
        from mmcore.backends import reference

        result = reference.log_mel(problem)
    elif torch.compiler.is_compiling() or type(waveform) is not Tensor:
        result = torch.ops.mmcore.log_mel(
            problem.waveform, problem.lengths, pad_to, problem.frames, problem.dtype, settings.spec
        )
    else:
        result = _run(problem)
    return result.view(*leading, *result.shape[1:])


def _lengths_tensor(lengths: Sequence[int], waveform: object) -> Tensor:
    if isinstance(lengths, (str, bytes)) or not isinstance(lengths, Sequence):
        raise TypeError(
            f"lengths: expected an int64 tensor or a sequence of int, got {type(lengths).__name__}"
        )
    for i, length in enumerate(lengths):
        if isinstance(length, bool) or not isinstance(length, int):
            raise TypeError(f"lengths: item {i}: expected an int, got {type(length).__name__}")
    device = waveform.device if isinstance(waveform, Tensor) else None
    return torch.tensor(lengths, dtype=torch.int64, device=device)


def _count(name: str, value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name}: expected an int or None, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")
    return value  # type: ignore[return-value]


def _check(
    waveform: object,
    lengths: Tensor | None,
    pad_to: int | None,
    num_frames: int | None,
    settings: LogMelSettings,
    dtype: torch.dtype | None,
) -> tuple[LogMelProblem, tuple[int, ...]]:
    """The problem, in which all but the last dimension have become one, and what they were."""
    if not isinstance(waveform, Tensor):
        raise TypeError(f"waveform: expected a tensor, got {type(waveform).__name__}")
    if waveform.dtype not in _DTYPES:
        hint = ""
        if not (waveform.is_floating_point() or waveform.is_complex() or waveform.dtype == torch.bool):
            hint = "; scale it to -1 ... 1 first, int16 as waveform.float() / 32768"
        raise TypeError(
            f"waveform: expected a float32, bfloat16, float16 or float64 tensor, got {waveform.dtype}{hint}"
        )
    if waveform.dim() == 0:
        raise ValueError("waveform: expected shape (..., samples), got a 0-dim tensor")
    if dtype not in _DTYPES:
        raise TypeError(f"dtype: expected float32, bfloat16, float16 or float64, got {dtype!r}")
    *leading, samples = waveform.shape
    pad_to, num_frames = _count("pad_to", pad_to), _count("num_frames", num_frames)
    rows = 1
    for extent in leading:
        rows *= extent
    if lengths is not None:
        if lengths.dtype != torch.int64:
            raise TypeError(f"lengths: expected an int64 tensor, got {lengths.dtype}")
        if lengths.shape != waveform.shape[:-1]:
            raise ValueError(
                f"lengths: expected shape {tuple(leading)} as the waveform's {tuple(waveform.shape)} less its"
                f" last dimension, got {tuple(lengths.shape)}"
            )
        if lengths.device != waveform.device:
            raise ValueError(
                f"lengths: expected a tensor on {waveform.device} as the waveform is, got {lengths.device}"
            )
        lengths = lengths.reshape(rows)
    total = samples if pad_to is None else pad_to
    frames = settings.num_frames(total)
    if lengths is None and frames < 1:
        least = settings.win_length if settings.framing == "snip_edges" else settings.hop_length
        raise ValueError(
            f"waveform: {total} samples have no frame with framing={settings.framing!r},"
            f" win_length={settings.win_length}, hop_length={settings.hop_length}; expected at least"
            f" {1 if settings.framing == 'center' else least}, or pad_to"
        )
    frames = frames if num_frames is None else num_frames
    rows_of = waveform.reshape(rows, samples)
    return LogMelProblem(rows_of, lengths, pad_to, frames, settings, dtype), tuple(leading)


def _run(problem: LogMelProblem) -> Tensor:
    lengths = problem.lengths
    if lengths is not None:
        samples = problem.waveform.shape[1]
        if lengths.device.type == "cpu":
            for i, length in enumerate(lengths.tolist()):
                if not 0 <= length <= samples:
                    raise ValueError(f"lengths: item {i}: expected 0 to {samples}, got {length}")
        else:  # to see them would make the CPU wait
            problem = problem._replace(lengths=lengths.clamp(0, samples))
    device = str(problem.waveform.device)
    backend = load_backend(active_backend(device, _IMPLEMENTED, forced_backend()))
    result: Tensor = backend.log_mel(problem)
    return result


# ---- as an op of torch.library

LIBRARY.define(  # type: ignore[no-untyped-call]
    "log_mel(Tensor waveform, Tensor? lengths, SymInt? pad_to, SymInt? num_frames, ScalarType dtype,"
    " str settings) -> Tensor"
)


def _library(
    waveform: Tensor,
    lengths: Tensor | None,
    pad_to: int | None,
    num_frames: int | None,
    dtype: torch.dtype,
    settings: str,
) -> Tensor:
    parsed = LogMelSettings.from_spec(settings)
    problem, leading = _check(waveform, lengths, pad_to, num_frames, parsed, dtype)
    result = _run(problem)
    return result.view(*leading, *result.shape[1:])


def _library_fake(
    waveform: Tensor,
    lengths: Tensor | None,
    pad_to: int | None,
    num_frames: int | None,
    dtype: torch.dtype,
    settings: str,
) -> Tensor:
    parsed = LogMelSettings.from_spec(settings)
    problem, leading = _check(waveform, lengths, pad_to, num_frames, parsed, dtype)
    mels = (parsed.n_mels, problem.frames)
    shape = (*leading, *(mels if parsed.layout == "mel_time" else mels[::-1]))
    return waveform.new_empty(shape, dtype=dtype)


def _no_gradient(ctx: object, *grads: object) -> None:
    raise NotImplementedError(
        "torch.ops.mmcore.log_mel has no gradient; mmcore.log_mel of a waveform that requires one does"
    )


LIBRARY.impl("log_mel", _library, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_fake("mmcore::log_mel", _library_fake, lib=LIBRARY)
torch.library.register_autograd("mmcore::log_mel", _no_gradient, lib=LIBRARY)
