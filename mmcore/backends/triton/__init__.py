"""Triton kernels, for GPUs: what lays a call out for them. Without a GPU they run in Triton's interpreter."""

from __future__ import annotations

from mmcore.backends.triton.fusion import weighted_fusion, weighted_fusion_backward

__all__ = ["weighted_fusion", "weighted_fusion_backward"]
