"""What every recipe's ``train`` lets its caller choose, and what every recipe's folder says it is."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import mmcore
from mmcore.errors import MMCoreError, UnsupportedError

__all__ = ["choose_backend", "choose_size", "read_description"]

_Size = TypeVar("_Size")


def choose_size(size: str, sizes: Mapping[str, _Size]) -> _Size:
    """The size of that name; ValueError if there is none."""
    if size not in sizes:
        raise ValueError(f"size: expected one of {', '.join(sizes)}, got {size!r}")
    return sizes[size]


def choose_backend(backend: str) -> contextlib.AbstractContextManager[Any]:
    """Within it fusion and losses are mmcore's kernels, "fused", or plain torch, "eager"; or ValueError."""
    if backend not in ("fused", "eager"):
        raise ValueError(f"backend: expected fused or eager, got {backend!r}")
    return mmcore.backend("reference") if backend == "eager" else contextlib.nullcontext()


def read_description(folder: str | os.PathLike[str], *recipes: str) -> dict[str, Any]:
    """``recipe.json`` of a folder that ``mmcore train`` wrote; its "recipe" is one of ``recipes``.

    Raises
    ------
    FileNotFoundError
        If there is none.
    UnsupportedError
        If it is of another recipe.
    MMCoreError
        If it is damaged.
    """
    path = Path(folder) / "recipe.json"
    if not path.is_file():
        commands = " or ".join(f"`mmcore train {recipe}`" for recipe in recipes)
        raise FileNotFoundError(f"{path}: no such file; expected a folder that {commands} wrote")
    try:
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = about["recipe"]
    except (ValueError, KeyError, TypeError) as error:
        raise MMCoreError(f"{path}: is no description of a trained model: {error!r}") from error
    if found not in recipes:
        raise UnsupportedError(f"{path}: is of the recipe {found!r}; expected {' or '.join(recipes)}")
    return about
