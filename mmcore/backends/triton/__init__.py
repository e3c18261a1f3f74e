"""Triton kernels, for GPUs: what lays a call out for them. Without a GPU they run in Triton's interpreter."""

from __future__ import annotations

from mmcore.backends.triton.contrastive import contrastive_loss, contrastive_loss_gradients
from mmcore.backends.triton.fusion import weighted_fusion, weighted_fusion_backward
from mmcore.backends.triton.losses import multi_task_loss, multi_task_loss_backward, scale_gradients

__all__ = [
    "contrastive_loss",
    "contrastive_loss_gradients",
    "multi_task_loss",
    "multi_task_loss_backward",
    "scale_gradients",
    "weighted_fusion",
    "weighted_fusion_backward",
]
