"""Triton kernels that do next to nothing, to time a launch."""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["add_kernel", "empty_kernel"]


@triton.jit
def empty_kernel():
    """Do nothing."""
    return


@triton.jit
def add_kernel(tensors, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """Add 1 to each."""
    at = tl.arange(0, BLOCK)
    for i in tl.static_range(COUNT):
        tl.store(tensors[i] + at, tl.load(tensors[i] + at) + 1.0)
