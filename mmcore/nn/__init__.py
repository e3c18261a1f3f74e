"""The ops as modules with learned parameters."""

from __future__ import annotations

from mmcore.nn.weighted_fusion import FusionContributions, WeightedFusion

__all__ = ["FusionContributions", "WeightedFusion"]
