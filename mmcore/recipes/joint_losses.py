"""Multi-task losses of a batch that several processes share: the losses, and gradients, of the joint batch.

A task's loss is a mean over the labels that are there. Processes hold different numbers n_r of them, so that
the mean of the processes' means would give the labels of a process that has few too much weight. With N the
sum of all n_r and W processes, each process's loss gets the factor

    q_r = W n_r / N,   so that   (1/W) sum_r q_r loss_r = sum_r (n_r loss_r) / N,

the loss of the joint batch; DDP's mean of the gradients gives its gradient likewise. A term ``s / 2`` of a
learned log variance gets the same factor, and the mean of all q_r is 1. What a strategy sees of the losses is
their mean over the processes, and of the gradients' inner products, which are sums over samples,
``(1/W^2) sum_r q_ri q_rj G_rij``.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmcore.nn import GradientWeighting, KnownWeighting, LossWeighting, MultiTaskLoss, TaskWeighting
from mmcore.ops.loss_task import ROW_KINDS, Task
from mmcore.recipes.processes import process_count

__all__ = ["JointLosses"]

_ARGUMENTS = inspect.signature(MultiTaskLoss.forward)


class JointLosses:
    """Makes every :class:`mmcore.nn.MultiTaskLoss` of a model one of the joint batch, within ``active()``.

    The losses that such a module then returns are ``q_r loss_r``: their mean over the processes is the joint
    batch's.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = [m for m in model.modules() if isinstance(m, MultiTaskLoss)]

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Within it, all processes must compute the losses of their parts of the same batches."""
        if process_count() == 1 or not self._modules:
            yield
            return
        with contextlib.ExitStack() as stack:
            for module in self._modules:
                stack.enter_context(_one_call_at_a_time(module))
            yield


@contextlib.contextmanager
def _one_call_at_a_time(module: MultiTaskLoss) -> Iterator[None]:
    weights = module.weights
    factors: list[Tensor] = []

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = _ARGUMENTS.bind(module, *args, **kwargs).arguments
        counts = _label_counts(module, given["outputs"], given["targets"], given.get("masks"))
        q = _factors(counts)
        factors[:] = [q]
        module.weights = q if weights is None else weights * q.to(weights)

    def after(_: nn.Module, args: tuple[Any, ...], result: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        module.weights = weights
        total, losses = result
        q = factors[0].unbind()
        if isinstance(losses, Mapping):
            return total, {name: loss * f.to(loss) for (name, loss), f in zip(losses.items(), q, strict=True)}
        if isinstance(losses, Tensor):
            return total, losses * factors[0].to(losses)
        return total, tuple(loss * f.to(loss) for loss, f in zip(losses, q, strict=True))

    hooks = (
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after),
    )
    try:
        with _joint_strategy(module.weighting):
            yield
    finally:
        for hook in hooks:
            hook.remove()
        module.weights = weights  # also after an error within the call


@contextlib.contextmanager
def _joint_strategy(strategy: TaskWeighting) -> Iterator[None]:
    """Let a strategy see the joint batch: its one method that reads losses gets their mean."""
    replaced: str | None = None
    method: Callable[..., Any]
    if isinstance(strategy, KnownWeighting):
        observe = strategy.observe
        replaced, method = "observe", lambda losses: observe(_JointMean.of(losses))
    elif isinstance(strategy, LossWeighting):
        total = strategy.total
        replaced, method = "total", lambda losses: total(_JointMean.of(losses))
    elif isinstance(strategy, GradientWeighting):
        coefficients = strategy.coefficients

        def joint_coefficients(gram: Tensor, losses: Tensor) -> Tensor:
            return coefficients(_JointMean.of(gram) / process_count(), _JointMean.of(losses))

        replaced, method = "coefficients", joint_coefficients
    if replaced is None:
        yield
        return
    setattr(strategy, replaced, method)
    try:
        yield
    finally:
        delattr(strategy, replaced)  # the class's own again


class _JointMean(torch.autograd.Function):
    """Mean over the processes. The gradient passes as it is: DDP's mean over them follows."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        mean = value.clone()
        dist.all_reduce(mean)
        return mean / process_count()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad

    @staticmethod
    def of(value: Tensor) -> Tensor:
        mean: Tensor = _JointMean.apply(value)  # type: ignore[no-untyped-call]
        return mean


def _factors(counts: list[Tensor | float | None]) -> Tensor:
    """q_r of each task, (K,) float32, of this process's counts; None stands for a mean over the processes."""
    device = next((c.device for c in counts if isinstance(c, Tensor)), torch.device("cpu"))
    if dist.get_backend() == "nccl" and device.type == "cpu":
        device = torch.device("cuda", torch.cuda.current_device())
    local = torch.stack(
        [
            torch.as_tensor(1.0 if c is None else c, dtype=torch.float64).to(device, torch.float64)
            for c in counts
        ]
    )
    joint = local.clone()
    dist.all_reduce(joint)
    q = process_count() * local / torch.where(joint == 0, 1.0, joint)
    sums = torch.tensor([isinstance(c, float) for c in counts], device=device)
    q = torch.where(sums, float(process_count()), q)  # a sum over all samples is no mean
    return torch.where(joint == 0, 1.0, q).to(torch.float32)


def _label_counts(
    module: MultiTaskLoss, outputs: Any, targets: Any, masks: Any
) -> list[Tensor | float | None]:
    """Of each task what its mean is divided by; a float for a sum, None for a loss made elsewhere."""
    tasks = module.tasks
    if isinstance(tasks, Mapping):
        masks = masks or {}
        return [
            _label_count(task, outputs[name], targets[name], masks.get(name)) for name, task in tasks.items()
        ]
    masks = masks or (None,) * len(tasks)
    return [_label_count(*given) for given in zip(tasks, outputs, targets, masks, strict=True)]


def _label_count(
    task: Task, output: Tensor, target: Tensor | None, mask: Tensor | None
) -> Tensor | float | None:
    if task.reduction == "sum":
        return 1.0
    if target is None or task.reduction == "none":
        return None
    hard = task.kind == "cross_entropy" and not target.is_floating_point()
    if hard:
        shape = target.shape
    elif task.kind in ROW_KINDS:
        dim = task.options.class_dim if task.kind == "cross_entropy" and output.dim() > 2 else -1
        shape = output.select(dim, 0).shape
    else:
        shape = output.shape
    there = torch.ones(shape, dtype=torch.bool, device=output.device)
    if mask is not None:
        there = there & mask.reshape(*mask.shape, *(1,) * (len(shape) - mask.dim()))
    if hard:
        there = there & (target != task.options.ignore_index)
        if task.weight is not None:
            chosen = task.weight[torch.where(there, target, 0).long()]
            return torch.where(there, chosen, 0).sum()
    return there.sum()
