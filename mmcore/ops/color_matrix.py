"""Colour jitter as one matrix, for ``FrameTransform(color_matrix=)``."""

from __future__ import annotations

import math
from typing import Any

import torch

__all__ = ["color_matrix"]

_MIDDLE = 127.5
# torchvision's and Pillow's grey: BT.601's luma
_GRAY = (0.299, 0.587, 0.114)
# FCC NTSC Standard (SMPTE C): red, green, blue to luma and the two colour differences
_RGB_TO_YIQ = (_GRAY, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


def color_matrix(
    *, brightness: float = 1.0, contrast: float = 1.0, saturation: float = 1.0, hue: float = 0.0
) -> tuple[tuple[float, float, float, float], ...]:
    """The matrix that changes brightness, contrast, saturation and hue, in this order.

    Parameters
    ----------
    brightness : float
        0 or more; factor of all levels.
    contrast : float
        0 or more; factor of the distance to the middle grey, level 127.5.
    saturation : float
        0 or more; factor of the distance to the grey of the same luma.
    hue : float
        Turns by which colours are rotated about the grey axis, -0.5 to 0.5; above 0 from red towards green.

    Returns
    -------
    tuple of 3 tuples of 4 floats
        Rows R, G, B; columns R, G, B and an offset in levels (0-255).

    Raises
    ------
    TypeError, ValueError
        For what is no number, or out of range.

    Notes
    -----
    As torchvision's ``ColorJitter``, but for what is no matrix, or not one for all pictures: contrast turns
    about the middle grey, not each picture's mean; hue is a rotation in YIQ, which keeps luma, not in HSV;
    nothing is clamped in between.

    Examples
    --------
    >>> import mmcore
    >>> [round(v, 3) for v in mmcore.color_matrix(saturation=0)[0]]
    [0.299, 0.587, 0.114, 0.0]
    """
    factors = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    for name, value in factors.items():
        if not 0 <= _number(name, value) <= 100:
            raise ValueError(f"{name}: expected a factor from 0 to 100, got {value!r}")
    if not -0.5 <= _number("hue", hue) <= 0.5:
        raise ValueError(f"hue: expected turns from -0.5 to 0.5, got {hue!r}")
    identity = torch.eye(3, dtype=torch.float64)
    gray = torch.tensor([_GRAY] * 3, dtype=torch.float64)
    matrix = saturation * identity + (1 - saturation) * gray
    if hue:
        cos, sin = math.cos(2 * math.pi * hue), math.sin(2 * math.pi * hue)
        turn = torch.tensor([[1, 0, 0], [0, cos, sin], [0, -sin, cos]], dtype=torch.float64)
        yiq = torch.tensor(_RGB_TO_YIQ, dtype=torch.float64)
        matrix = torch.linalg.inv(yiq) @ turn @ yiq @ matrix
    offset = matrix.sum(1) * ((1 - contrast) * _MIDDLE)
    matrix = matrix * (brightness * contrast)
    rows = torch.cat([matrix, offset[:, None]], 1).tolist()
    return tuple((float(r), float(g), float(b), float(o)) for r, g, b, o in rows)


def _number(name: str, value: Any) -> float:
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    if isinstance(value, (int, float)):
        raise ValueError(f"{name}: expected a finite number, got {value!r}")
    raise TypeError(f"{name}: expected a number, got {value!r}")
