"""Numbers that callers pass, checked; errors begin with the argument's name."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

import torch

__all__ = ["elements", "integer", "number_of_seconds", "timeout_seconds"]


def timeout_seconds(value: Any) -> float | None:
    """``timeout`` as a float, None for none; TypeError or ValueError unless it is 0 or more."""
    if value is None:
        return None
    seconds = number_of_seconds("timeout", value, finite=False)
    if not seconds >= 0:
        raise ValueError(f"timeout: expected 0 or more seconds, got {seconds}")
    return seconds


def integer(name: str, value: Any) -> int:
    """``value`` as an int; TypeError if it is none, or a bool."""
    # A bool, or a Tensor of them, is a mask taken for a list of numbers.
    if isinstance(value, bool) or getattr(value, "dtype", None) == torch.bool:
        raise TypeError(f"{name}: expected an int, got {value!r}")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an int, got {value!r}") from None


def number_of_seconds(name: str, value: Any, *, finite: bool = True) -> float:
    """``value`` as a float; TypeError if it is no number, ValueError if it must be finite and is not."""
    if isinstance(value, (str, bytes)):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf if value > 0 else -math.inf
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number, got {value!r}") from None
    if finite and not math.isfinite(number):
        raise ValueError(f"{name}: expected a finite number, got {number}")
    return number


def elements(name: str, values: Any) -> list[Any]:
    """The elements of a list, Tensor or ndarray of one dimension."""
    if hasattr(values, "tolist"):
        values = values.tolist()
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise TypeError(f"{name}: expected a list or a 1-D Tensor or ndarray of numbers, got {values!r}")
    return list(values)
