"""The losses op of the compiled core: tensors to addresses, and memory for what it writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmcore import _core
from mmcore.backends.cpu.memory import empty
from mmcore.backends.reference.losses import scale_gradients
from mmcore.threads import get_num_threads

if TYPE_CHECKING:
    from mmcore.ops.losses import Head, LossProblem

__all__ = ["multi_task_loss", "multi_task_loss_backward", "scale_gradients"]

# The enumeration of csrc/include/mmcore/dtype.h
_DTYPE = {torch.float16: 1, torch.bfloat16: 2, torch.float32: 3, torch.float64: 4, torch.int64: 5}

_Values = tuple[Tensor, Tensor, list[Tensor], list[Tensor | None]]


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _vector(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.detach().to(dtype).resolve_neg().contiguous()


def _rows(tensor: Tensor) -> Tensor:
    """Any distance between rows, 1 between columns."""
    tensor = tensor.detach().resolve_neg()
    if tensor.shape[1] > 1 and tensor.stride(1) != 1:
        return tensor.contiguous()
    return tensor


def _run(
    problem: LossProblem,
    grad_total: float,
    grad_losses: Tensor | None,
    grad_unreduced: Sequence[Tensor | None],
    needs: Sequence[bool] | None,
    upstream_known: bool,
) -> _Values:
    compute = problem.dtype
    double = compute == torch.float64
    count = len(problem.heads)
    weights, log_vars = _vector(problem.weights, compute), _vector(problem.log_vars, compute)
    upstream = _vector(grad_losses, compute)
    total, losses = torch.empty((), dtype=compute), torch.empty(count, dtype=compute)
    want = needs or (False,) * (count + 2)
    d_weights = torch.empty(count, dtype=compute) if want[0] and weights is not None else None
    d_log_vars = torch.empty(count, dtype=compute) if want[1] and log_vars is not None else None
    kept: list[Tensor | None] = []
    unreduced: list[Tensor] = []
    gradients: list[Tensor | None] = []
    described = []
    grads_of_units = iter(grad_unreduced)
    for head, need in zip(problem.heads, want[2:], strict=True):
        output, target, own = _output_and_target(head, compute)
        of_units = None
        if head.task.reduction == "none":
            of_units = torch.empty(head.units, dtype=compute)
            unreduced.append(of_units)
        unit_grads = None
        if head.task.reduction == "none" and upstream_known:
            unit_grads = next(grads_of_units)
            unit_grads = None if unit_grads is None else _vector(unit_grads.reshape(-1), compute)
        gradient = empty(tuple(output.shape), own) if need else None
        weight = _vector(head.weight, compute)
        mask = None if head.mask is None else head.mask.contiguous()
        inner = 1 if mask is None or not mask.numel() else max(1, head.units // mask.numel())
        kept += (output, target, unit_grads, weight, mask)
        gradients.append(gradient)
        described.append(
            (
                head.task.core,
                *output.shape,
                (output.data_ptr(), _DTYPE[own], output.stride(0)),
                (
                    (0, _DTYPE[own], 0)
                    if target is None
                    else (target.data_ptr(), _DTYPE[target.dtype], target.stride(0))
                ),
                (_address(mask), inner),
                (_address(weight), 0 if weight is None else weight.numel()),
                _address(gradient),
                _address(of_units),
                _address(unit_grads),
            )
        )
    elements = sum(head.output.numel() for head in problem.heads)
    _core.multi_task_loss(
        tuple(described),
        (_address(weights), _address(log_vars), _address(upstream)),
        grad_total,
        _DTYPE[compute],
        (_address(total), _address(losses), _address(d_weights), _address(d_log_vars)),
        1 if elements < 1 << 16 else get_num_threads(),
    )
    if double:
        gradients = [
            None if g is None else g.to(head.output.dtype)
            for g, head in zip(gradients, problem.heads, strict=True)
        ]
    if d_weights is not None and problem.weights is not None:
        d_weights = d_weights.to(problem.weights.dtype)
    if d_log_vars is not None and problem.log_vars is not None:
        d_log_vars = d_log_vars.to(problem.log_vars.dtype)
    return total, losses, unreduced, [d_weights, d_log_vars, *gradients]


def _output_and_target(head: Head, compute: torch.dtype) -> tuple[Tensor, Tensor | None, torch.dtype]:
    """Both as the core reads them, and the output's dtype."""
    output = head.output
    if compute == torch.float64:
        output = output.to(compute)  # float64 is for checking: one type for everything keeps the kernels few
    output = _rows(output)
    target = head.target
    if target is not None:
        target = target.detach()
        if target.dim() == 1:
            target = target.contiguous()
        else:
            if compute == torch.float64 or target.dtype not in (output.dtype, torch.float32):
                target = target.to(compute)
            target = _rows(target)
    return output, target, output.dtype


def multi_task_loss(problem: LossProblem, needs: Sequence[bool] | None) -> _Values:
    """Total, losses, unreduced losses and gradients; see ``mmcore.backends.reference.multi_task_loss``."""
    values = _run(problem, 1.0, None, (), needs, False)
    return values if needs is not None else (*values[:3], [])


def multi_task_loss_backward(
    problem: LossProblem,
    grad_total: Tensor | None,
    grad_losses: Tensor | None,
    grad_unreduced: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of weights, log_vars and each head's rows and columns; None where ``needs`` is False."""
    factor = 0.0 if grad_total is None else float(grad_total)  # on the CPU, where it is no synchronisation
    return _run(problem, factor, grad_losses, grad_unreduced, needs, True)[3]
