"""The compiled core, called with addresses: what turns Python's description of an op into the C++ one."""

from __future__ import annotations

from mmcore.backends.cpu.contrastive import contrastive_loss, contrastive_loss_gradients
from mmcore.backends.cpu.frames import Output, frames_plan, output_desc
from mmcore.backends.cpu.fusion import weighted_fusion, weighted_fusion_backward
from mmcore.backends.cpu.log_mel import log_mel
from mmcore.backends.cpu.losses import multi_task_loss, multi_task_loss_backward, scale_gradients
from mmcore.backends.cpu.tensor_to_planes import write_planes

__all__ = [
    "Output",
    "contrastive_loss",
    "contrastive_loss_gradients",
    "frames_plan",
    "log_mel",
    "multi_task_loss",
    "multi_task_loss_backward",
    "output_desc",
    "scale_gradients",
    "weighted_fusion",
    "weighted_fusion_backward",
    "write_planes",
]
