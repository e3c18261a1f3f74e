"""What a log-mel spectrogram weighs with: windows of frames, and triangular filters on the mel scale.

All in float64 numpy, from the formulas; the backends round them to the type they compute in.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["MEL_SCALES", "WINDOWS", "mel_filters", "window"]

Doubles = NDArray[np.float64]

WINDOWS = ("hann", "hamming", "blackman", "povey", "rectangular")

MEL_SCALES = ("slaney", "htk", "kaldi")

# Slaney's scale: 3 mels for 200 Hz up to 1000 Hz, then 27 for each factor of 6.4.
_SLANEY_HERTZ_PER_MEL = 200 / 3
_SLANEY_BREAK = 1000.0
_SLANEY_STEP = math.log(6.4) / 27


def _hertz_to_mel(hertz: Doubles, scale: str) -> Doubles:
    if scale == "slaney":
        above = np.maximum(hertz, _SLANEY_BREAK)
        linear = hertz / _SLANEY_HERTZ_PER_MEL
        logarithmic = _SLANEY_BREAK / _SLANEY_HERTZ_PER_MEL + np.log(above / _SLANEY_BREAK) / _SLANEY_STEP
        return np.where(hertz < _SLANEY_BREAK, linear, logarithmic)
    mel: Doubles = 1127.0 * np.log1p(hertz / 700.0)
    return mel


def _mel_to_hertz(mel: Doubles, scale: str) -> Doubles:
    if scale == "slaney":
        at_break = _SLANEY_BREAK / _SLANEY_HERTZ_PER_MEL
        logarithmic = _SLANEY_BREAK * np.exp(_SLANEY_STEP * np.maximum(mel - at_break, 0.0))
        return np.where(mel < at_break, mel * _SLANEY_HERTZ_PER_MEL, logarithmic)
    hertz: Doubles = 700.0 * np.expm1(mel / 1127.0)
    return hertz


def mel_filters(
    n_mels: int, n_fft: int, sample_rate: int, f_min: float, f_max: float, scale: str, norm: str | None
) -> Doubles:
    """Triangular filters that overlap by half, evenly spaced on a mel scale.

    Parameters
    ----------
    n_mels, n_fft, sample_rate : int
    f_min, f_max : float
        Lower end of the first filter and upper end of the last, in hertz.
    scale : {"slaney", "htk", "kaldi"}
        "slaney": linear below 1000 Hz (Slaney's Auditory Toolbox, librosa's default). "htk" and "kaldi":
        1127 ln(1 + f / 700); the triangles' sides are straight over hertz, and with "kaldi" over mels.
    norm : {"slaney", None}
        "slaney": of area 1 over hertz. None: of height 1.

    Returns
    -------
    ndarray
        float64 (n_mels, n_fft // 2 + 1). A filter narrower than the distance of the bins may be all 0.
    """
    hertz: Doubles = np.arange(n_fft // 2 + 1, dtype=np.float64) * (sample_rate / n_fft)
    low, high = _hertz_to_mel(np.array([f_min, f_max], dtype=np.float64), scale)
    corners: Doubles = np.linspace(low, high, n_mels + 2, dtype=np.float64)
    corner_hertz = _mel_to_hertz(corners, scale)
    if scale == "kaldi":
        bins = _hertz_to_mel(hertz, scale)
    else:
        bins, corners = hertz, corner_hertz
    rising = (bins - corners[:-2, None]) / (corners[1:-1] - corners[:-2])[:, None]
    falling = (corners[2:, None] - bins) / (corners[2:] - corners[1:-1])[:, None]
    filters: Doubles = np.maximum(0.0, np.minimum(rising, falling))
    if norm == "slaney":
        filters *= (2.0 / (corner_hertz[2:] - corner_hertz[:-2]))[:, None]
    return filters


def window(name: str, length: int, periodic: bool) -> Doubles:
    """Weights of a frame's samples, one of WINDOWS.

    Periodic windows are those of ``length + 1`` samples without the last one. "povey" is Kaldi's, the Hann
    window to the power of 0.85. "hamming" has the coefficients 0.54 and 0.46, "blackman" 0.42, 0.5 and 0.08.
    """
    if name == "rectangular" or length == 1:
        return np.ones(length)
    phase = 2 * np.pi * np.arange(length) / (length if periodic else length - 1)
    if name == "hamming":
        return np.asarray(0.54 - 0.46 * np.cos(phase))
    if name == "blackman":
        return np.asarray(0.42 - 0.5 * np.cos(phase) + 0.08 * np.cos(2 * phase))
    hann = np.maximum(0.0, 0.5 - 0.5 * np.cos(phase))
    return np.asarray(hann**0.85 if name == "povey" else hann)
