"""Frames whose planes and tables were copied to a CUDA device piece by piece: conversion by address."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch

from mmcore import _cuda  # type: ignore[attr-defined, unused-ignore]
from mmcore.backends.cuda.frames import current_stream

if TYPE_CHECKING:
    from mmcore.backends.cpu.frames import Output

__all__ = ["StagedFrame", "convert_staged", "staged_tables"]

# Tables, (address, pitch in bytes) of each plane, slot of the output.
StagedFrame: TypeAlias = "tuple[_cuda.DeviceTables, Sequence[tuple[int, int]], int]"


def staged_tables(tables: bytes, address: int) -> _cuda.DeviceTables:
    """What a plan's ``device_tables`` gave, once they are copied to ``address``, a multiple of 16."""
    return _cuda.DeviceTables(tables, address)


def convert_staged(frames: Sequence[StagedFrame], output: Output) -> None:
    """Convert frames of any kinds, on the current stream of the current device.

    Of the planes only what ``FramesPlan.regions`` tells needs to be at its place by address and pitch. What
    is read beside it, up to 63 samples and 15 rows, does not matter but must be memory of the device.
    """
    address = 0
    if any(tables.needs_scratch for tables, _, _ in frames):
        scratch = torch.empty(_cuda.scratch_bytes(frames), dtype=torch.uint8, device="cuda")
        address = scratch.data_ptr()
    _cuda.frames_to_tensor(frames, output, address, current_stream(torch.cuda.current_device()))
