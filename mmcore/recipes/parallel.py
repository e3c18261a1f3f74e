"""A model in several processes: whole in each (DDP), or in parts (FSDP2), and its tensors as one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmcore.nn import MultiTaskLoss
from mmcore.recipes.processes import process_count

__all__ = ["LossOfBatch", "full", "in_parallel", "local", "no_sync", "part_of", "reshard", "sync_replicated"]

Losses = Mapping[str, Tensor]
ComputeLoss = Callable[[Any, Any], tuple[Tensor, Losses]]


class LossOfBatch(nn.Module):
    """Model and losses as one module, whose one forward is all that DDP has to see."""

    def __init__(self, model: nn.Module, compute_loss: ComputeLoss) -> None:
        super().__init__()
        self.model = model
        self._compute_loss = compute_loss

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Total, and the tasks' losses, which are for reading only."""
        total, losses = self._compute_loss(self.model, batch)
        return total, {name: loss.detach() for name, loss in losses.items()}


def in_parallel(module: LossOfBatch, device: torch.device, sharding: str) -> nn.Module:
    """Give what to call in a training step; FSDP changes the model itself, in place."""
    if process_count() == 1:
        if sharding == "fsdp":
            raise ValueError("sharding: fsdp needs several processes; start them with torchrun")
        return module
    if sharding == "fsdp":
        _shard(module.model)
        return module
    devices = [device] if device.type == "cuda" else None
    # A modality or label that a process's part of a batch lacks leaves parameters without a gradient there.
    return nn.parallel.DistributedDataParallel(module, device_ids=devices, find_unused_parameters=True)


def _shard(model: nn.Module) -> None:
    from torch.distributed.fsdp import fully_shard

    encoders = getattr(model, "encoders", None)
    for encoder in encoders.values() if isinstance(encoders, nn.ModuleDict) else ():
        for blocks in encoder.modules():
            if isinstance(blocks, nn.ModuleList):
                for block in blocks:
                    if any(True for _ in block.parameters()):
                        fully_shard(block)
        fully_shard(encoder)
    # Weights of losses stay whole: they are used outside of the model's forward.
    whole = {p for m in model.modules() if isinstance(m, MultiTaskLoss) for p in m.parameters()}
    fully_shard(model, ignored_params=whole)


def sync_replicated(model: nn.Module) -> None:
    """Average the gradients of a sharded model's parameters that every process holds whole."""
    for parameter in model.parameters():
        if parameter.grad is not None and not _is_shard(parameter):
            dist.all_reduce(parameter.grad)
            parameter.grad /= process_count()


def no_sync(module: nn.Module, model: nn.Module, last: bool) -> contextlib.AbstractContextManager[Any]:
    """Of several batches of one step, exchange gradients at the last only."""
    if isinstance(module, nn.parallel.DistributedDataParallel) and not last:
        return module.no_sync()
    switch: Any = getattr(model, "set_requires_gradient_sync", None)  # FSDP adds it
    if switch is not None:
        switch(last)
    return contextlib.nullcontext()


def reshard(model: nn.Module) -> None:
    """Forget whole copies of a sharded model's weights, which a forward without a backward leaves behind."""
    for module in model.modules():
        forget: Any = getattr(module, "reshard", None)  # FSDP adds it
        if forget is not None:
            forget()


def _is_shard(value: Any) -> bool:
    return hasattr(value, "full_tensor")  # a DTensor


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor; it shares the tensor's memory."""
    held: Tensor = tensor.to_local() if _is_shard(tensor) else tensor  # type: ignore[attr-defined]
    return held


def full(value: Any) -> Any:
    """Copy of a tree of dicts, lists and tensors in which tensors are whole; all processes must call it."""
    if isinstance(value, Tensor):
        whole = value.detach()
        return whole.full_tensor() if _is_shard(whole) else whole  # type: ignore[attr-defined]
    if isinstance(value, Mapping):
        return {key: full(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(full(item) for item in value)
    return value


def part_of(whole: Any, like: Any) -> Any:
    """``whole``, cut into parts where ``like`` is."""
    if not _is_shard(like) or not isinstance(whole, Tensor) or whole.shape != like.shape:
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements)
