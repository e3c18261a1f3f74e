"""Checkpoints: files of plain tensors and values that appear whole or not at all."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from mmcore.errors import MMCoreError

__all__ = ["CheckpointError", "load_checkpoint", "remove_parts", "save_checkpoint"]


class CheckpointError(MMCoreError):
    """A checkpoint cannot be read, or does not fit what is to be trained; the message names the file."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``path`` so that a reader finds the old file or the new one, even after a crash.

    Parameters
    ----------
    path : Path
        Its folder must exist.
    state : dict
        Tensors, numbers, strings, and lists, tuples and dicts of them.

    Raises
    ------
    OSError
        If the disk is full or the folder cannot be written; the old file is unchanged.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())  # the name must not reach the disk before the content
        part.replace(path)
        _sync_folder(path.parent)
    except RuntimeError as error:  # how torch reports a full disk
        raise OSError(f"{path}: could not be written: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def load_checkpoint(source: Path | bytes, name: str | None = None) -> dict[str, Any]:
    """Read a checkpoint to the CPU; nothing in it is executed.

    Raises
    ------
    FileNotFoundError
    CheckpointError
        If it is no checkpoint, or damaged.
    """
    label = name or (str(source) if isinstance(source, Path) else "checkpoint")
    try:
        content = io.BytesIO(source) if isinstance(source, bytes) else source
        state = torch.load(content, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
        raise CheckpointError(f"{label}: is no checkpoint, or damaged: {error}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{label}: expected a dict, got {type(state).__name__}")
    return state


def remove_parts(folder: Path) -> None:
    """Remove what processes that were killed in the middle of writing left behind."""
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # Windows cannot open folders
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
