"""CUDA kernels, called with addresses on torch's current stream: nothing is copied or waited for."""

from __future__ import annotations

from mmcore.backends.cuda.frames import convert_groups, pointer_device

__all__ = ["convert_groups", "pointer_device"]
