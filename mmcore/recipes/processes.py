"""The processes of a training that runs in several: who they are, and what they tell each other.

Nothing here needs torch.distributed to be set up: alone, a process is the first of one.
"""

from __future__ import annotations

import atexit
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mmcore.recipes.checkpoint import load_checkpoint

__all__ = [
    "gather_batch",
    "gather_objects",
    "joint_mean",
    "load_for_all",
    "local_device",
    "process_count",
    "process_rank",
    "start_processes",
    "tell_all",
]

_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def _launched() -> bool:
    return dist.is_available() and all(name in os.environ for name in _TORCHRUN)


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def process_rank() -> int:
    """Number of this process, from 0; as torchrun says where no group has been made yet."""
    if _initialized():
        return dist.get_rank()
    return int(os.environ["RANK"]) if _launched() else 0


def process_count() -> int:
    """How many processes train together."""
    if _initialized():
        return dist.get_world_size()
    return int(os.environ["WORLD_SIZE"]) if _launched() else 1


def start_processes(device: torch.device) -> None:
    """Join the group that torchrun describes, once; without torchrun, or in a group, do nothing."""
    if _initialized() or not _launched():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)  # NCCL's, also for what is not a tensor
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    # At the end of the process: a program may train several models one after the other.
    atexit.register(_leave)


def _leave() -> None:
    if _initialized():
        dist.destroy_process_group()


def local_device(device: str | torch.device) -> torch.device:
    """Of several GPUs each process's own; a device with a number is taken as it is."""
    if str(device) == "cuda":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device(device)


def tell_all(value: Any) -> Any:
    """Give every process the first one's ``value``."""
    if process_count() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """Give the first process the values of all, in order; the others get only their own."""
    if process_count() == 1:
        return [value]
    box: list[Any] | None = [None] * process_count() if process_rank() == 0 else None
    dist.gather_object(value, box, dst=0)
    return [value] if box is None else box


def load_for_all(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint in the first process, for all; None if there is none.

    The others need no access to the first one's disk.
    """
    if process_count() == 1:
        return load_checkpoint(path) if path.exists() else None
    content = tell_all(path.read_bytes() if process_rank() == 0 and path.exists() else None)
    return None if content is None else load_checkpoint(content, str(path))


def joint_mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over the samples of all processes, as a loss of one's own needs it where labels may be missing.

    Every process gets its part times the number of processes: their mean, which is what is trained on, is
    ``sum of all values / number of all values``.

    Parameters
    ----------
    values : Tensor
        Losses of this process's samples, differentiable.
    mask : Tensor, optional
        bool, of the same shape: which of them count. What is masked is never read into the sum.
    """
    there = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
    total = torch.where(there, values, 0).sum()
    count = there.sum().to(torch.float64)
    if process_count() > 1:
        dist.all_reduce(count)
        total = total * process_count()
    return total / count.clamp(min=1).to(total.dtype)


def gather_batch(features: Tensor) -> Tensor:
    """Features (B, ...) of all processes' samples, (world_size * B, ...), differentiable.

    For losses that compare samples with each other, such as :func:`mmcore.contrastive_loss`: computed of the
    joint batch in every process, their gradients' mean is that of one process.
    """
    if process_count() == 1:
        return features
    from torch.distributed.nn.functional import all_gather

    return torch.cat(tuple(all_gather(features)))  # type: ignore[no-untyped-call]
