"""Plain torch implementations: slow, readable, float64-capable. Other backends are tested against them."""

from __future__ import annotations

from mmcore.backends.reference.contrastive import (
    contrastive_loss,
    contrastive_loss_gradients,
    contrastive_loss_value,
)
from mmcore.backends.reference.frames import apply_layout, convert
from mmcore.backends.reference.fusion import (
    time_map,
    weighted_fusion,
    weighted_fusion_backward,
)
from mmcore.backends.reference.log_mel import log_mel
from mmcore.backends.reference.losses import (
    multi_task_loss,
    multi_task_loss_backward,
    multi_task_losses,
    scale_gradients,
)
from mmcore.backends.reference.tensor_to_planes import plane_components, tensor_to_planes

__all__ = [
    "apply_layout",
    "contrastive_loss",
    "contrastive_loss_gradients",
    "contrastive_loss_value",
    "convert",
    "log_mel",
    "multi_task_loss",
    "multi_task_loss_backward",
    "multi_task_losses",
    "plane_components",
    "scale_gradients",
    "tensor_to_planes",
    "time_map",
    "weighted_fusion",
    "weighted_fusion_backward",
]
