"""The compiled core, called with addresses: what turns Python's description of an op into the C++ one."""

from __future__ import annotations

from mmcore.backends.cpu.frames import Output, frames_plan, output_desc
from mmcore.backends.cpu.fusion import weighted_fusion, weighted_fusion_backward

__all__ = ["Output", "frames_plan", "output_desc", "weighted_fusion", "weighted_fusion_backward"]
