"""Output tensors from recycled memory.

Fresh pages cost as much as the conversion that fills them: memory above a few megabytes is mapped anew for
each tensor and faults once per page. Outputs come from a pool instead; their memory returns to it when the
last view of the tensor dies, in whatever thread.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mmcore import _core

__all__ = ["clear_output_pool", "empty_output", "output_pool_limit", "set_output_pool_limit"]

# DLPack type codes: 0 signed, 1 unsigned, 2 float, 4 bfloat
_DLPACK_TYPE = {
    torch.uint8: (1, 8),
    torch.float16: (2, 16),
    torch.bfloat16: (4, 16),
    torch.float32: (2, 32),
}


def empty_output(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Uninitialised contiguous CPU tensor of recycled memory.

    Parameters
    ----------
    shape : sequence of int
    dtype : torch.dtype
        uint8, float16, bfloat16 or float32.
    """
    if 0 in shape:
        return torch.empty(tuple(shape), dtype=dtype)
    code, bits = _DLPACK_TYPE[dtype]
    tensor: torch.Tensor = torch.utils.dlpack.from_dlpack(_core.pool_empty(list(shape), code, bits))
    return tensor


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
