"""Mixing channels to more or fewer, with the coefficients of FFmpeg's swresample."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmcore.errors import UnsupportedError

if TYPE_CHECKING:
    from av.audio.layout import AudioLayout

__all__ = ["mix", "mixing_matrix"]

# What FFmpeg takes for a number of channels of which nothing more is known.
_LAYOUTS = ("mono", "stereo", "2.1", "4.0", "5.0", "5.1", "6.1", "7.1")


def mixing_matrix(
    layout: AudioLayout | str, num_channels: int, *, normalized: bool = True
) -> NDArray[np.float32]:
    """What each channel of ``layout`` adds to each of ``num_channels`` channels.

    Parameters
    ----------
    layout : AudioLayout or str
        FFmpeg's name, such as "5.1", or "6 channels".
    num_channels : int
    normalized : bool
        Scale so that the loudest output is full scale when all inputs are: stereo's mean becomes mono, and
        mono is copied to stereo. Otherwise as FFmpeg mixes floats: 0.7071 times the sum, and 0.7071.

    Returns
    -------
    ndarray
        (num_channels, channels of ``layout``) float32.

    Raises
    ------
    UnsupportedError
        If FFmpeg knows no way to mix them.
    """
    return _matrix(layout if isinstance(layout, str) else layout.name, num_channels, normalized)


@cache
def _matrix(layout: str, num_channels: int, normalized: bool) -> NDArray[np.float32]:
    import av

    known = num_channels <= len(_LAYOUTS)
    number, _, rest = layout.partition(" ")
    if rest.startswith("channel") and number.isdecimal() and 0 < int(number) <= len(_LAYOUTS):
        layout = _LAYOUTS[int(number) - 1]
    try:
        count = av.AudioLayout(layout).nb_channels
        # Frame i is full scale in channel i alone: what comes out is column i.
        frame = av.AudioFrame.from_ndarray(np.eye(count, dtype=np.float32).reshape(1, -1), "flt", layout)
        frame.sample_rate, frame.pts = 48000, 0
        target = _LAYOUTS[num_channels - 1] if known else f"{num_channels} channels"
        mixer = av.AudioResampler("flt", target, 48000)
        frames = [*mixer.resample(frame), *mixer.resample(None)]
        columns = np.concatenate([f.to_ndarray().reshape(-1, num_channels) for f in frames])
    except (av.FFmpegError, ValueError) as error:
        raise UnsupportedError(
            f"num_channels: FFmpeg has no way to mix {layout} to {num_channels} channels"
        ) from error
    matrix: NDArray[Any] = columns.T
    if normalized:
        loudest = np.abs(matrix).sum(axis=1).max()
        matrix = matrix / loudest if loudest > 0 else matrix
    return np.ascontiguousarray(matrix, np.float32)


def mix(samples: NDArray[np.float32], matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mix (channels, samples) by ``matrix``.

    Every sample is rounded the same wherever it stands, which a matrix product does not promise.
    """
    mixed = np.zeros((len(matrix), samples.shape[1]), np.float32)
    for row, target in zip(matrix, mixed, strict=True):
        used = [(gain, channel) for gain, channel in zip(row, samples, strict=True) if gain]
        for i, (gain, channel) in enumerate(used):
            if i:
                target += gain * channel
            else:
                np.multiply(channel, gain, out=target)
    return mixed
