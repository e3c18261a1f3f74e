"""Plain torch implementations: slow, readable, float64-capable. Other backends are tested against them."""

from __future__ import annotations

from mmcore.backends.reference.frames import apply_layout, convert

__all__ = ["apply_layout", "convert"]
