"""Memory for what the compiled core writes: torch's for small tensors, the recycling pool for large ones.

Fresh pages cost as much as the work that fills them: torch's allocator maps memory above a few megabytes anew
for each tensor, and each of its pages faults once. The pool keeps what was freed; its tensors are made
through DLPack.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmcore import _core

__all__ = ["empty", "empty_pooled"]

# DLPack type codes: 0 signed, 1 unsigned, 2 float, 4 bfloat
_DLPACK_TYPE = {
    torch.uint8: (1, 8),
    torch.float16: (2, 16),
    torch.bfloat16: (4, 16),
    torch.float32: (2, 32),
    torch.float64: (2, 64),
}

_POOLED_ELEMENTS = 1 << 17
"""Above it a tensor comes from the pool: smaller ones stay in malloc's heap, whose pages are warm."""


def empty_pooled(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Uninitialised contiguous CPU tensor of recycled memory."""
    if 0 in shape:
        return torch.empty(tuple(shape), dtype=dtype)
    code, bits = _DLPACK_TYPE[dtype]
    tensor: Tensor = torch.utils.dlpack.from_dlpack(_core.pool_empty(list(shape), code, bits))
    return tensor


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Uninitialised contiguous CPU tensor, from the pool if it is large."""
    count = 1
    for extent in shape:
        count *= extent
    return torch.empty(shape, dtype=dtype) if count < _POOLED_ELEMENTS else empty_pooled(shape, dtype)
