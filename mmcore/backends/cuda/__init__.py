"""CUDA kernels, called with addresses on torch's current stream: nothing is copied or waited for."""

from __future__ import annotations

from mmcore.backends.cuda.frames import convert_groups, pointer_device
from mmcore.backends.cuda.staged_frames import convert_staged, staged_tables

__all__ = ["convert_groups", "convert_staged", "pointer_device", "staged_tables"]
