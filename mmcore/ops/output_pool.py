"""Output tensors from recycled memory.

Fresh pages cost as much as the conversion that fills them: memory above a few megabytes is mapped anew for
each tensor and faults once per page. Outputs come from a pool instead; their memory returns to it when the
last view of the tensor dies, in whatever thread.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mmcore import _core
from mmcore.backends.cpu.memory import empty_pooled

__all__ = ["clear_output_pool", "empty_output", "output_pool_limit", "set_output_pool_limit"]


def empty_output(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Uninitialised contiguous CPU tensor of recycled memory.

    Parameters
    ----------
    shape : sequence of int
    dtype : torch.dtype
        uint8, float16, bfloat16, float32 or float64.
    """
    return empty_pooled(shape, dtype)


def set_output_pool_limit(num_bytes: int) -> None:
    """Keep at most ``num_bytes`` bytes of freed outputs for reuse: 512 MiB at start, 0 turns the pool off."""
    if num_bytes < 0:
        raise ValueError(f"num_bytes: expected 0 or more, got {num_bytes}")
    _core.pool_set_limit(num_bytes)


def output_pool_limit() -> int:
    """Bytes of freed outputs that are kept for reuse at most."""
    return _core.pool_limit()


def clear_output_pool() -> None:
    """Return the freed outputs' memory to the system now."""
    _core.pool_clear()
