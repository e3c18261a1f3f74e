"""Plain torch implementations: slow, readable, float64-capable. Other backends are tested against them."""

from __future__ import annotations

from mmcore.backends.reference.frames import apply_layout, convert
from mmcore.backends.reference.fusion import (
    time_map,
    weighted_fusion,
    weighted_fusion_backward,
)

__all__ = [
    "apply_layout",
    "convert",
    "time_map",
    "weighted_fusion",
    "weighted_fusion_backward",
]
