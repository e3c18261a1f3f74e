"""The losses op: every head's loss, their weighted sum and all gradients in one pass.

    L = sum_i lambda_i loss_i(output_i, target_i)                                    fixed weights
    L = sum_i lambda_i (c_i exp(-s_i) loss_i(output_i, target_i) + s_i / 2)          learned log variances s

The gradients are made together with the losses, while the outputs are in the caches, for an upstream gradient
of 1 on the total; the backward then hands them over. Any other upstream gradient makes them anew.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmcore import _core
from mmcore.backends import active_backend, forced_backend, load_backend, replay
from mmcore.ops._dispatch import DifferentiableOp
from mmcore.ops._library import LIBRARY
from mmcore.ops.loss_task import ROW_KINDS, Task
from mmcore.threads import get_num_threads

__all__ = [
    "MAX_TASKS",
    "Head",
    "LossGradients",
    "LossProblem",
    "multi_task_loss",
    "multi_task_value_and_grad",
]

MAX_TASKS = 32

_IMPLEMENTED = ("reference", "cpu", "triton")
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

Tensors = tuple[Tensor | None, ...]
Losses = Tensor | tuple[Tensor, ...] | dict[str, Tensor]


class Head(NamedTuple):
    """One task of a call as the backends take it, all of it checked.

    Its losses are counted in units: rows for cross_entropy, kl_distillation and cosine, else elements.
    """

    task: Task
    output: Tensor
    """(rows, columns), by any strides."""
    target: Tensor | None
    """(rows,) int64 classes, else (rows, columns); None for kind "value"."""
    mask: Tensor | None
    """(units / inner,) bool: each of its entries speaks for ``inner`` units on end."""
    weight: Tensor | None
    """(columns,) or, for bce_with_logits, (1,)."""
    soft: bool
    """cross_entropy with probabilities for targets."""
    unit_shape: tuple[int, ...]
    """Of the losses where they are not reduced."""

    @property
    def units(self) -> int:
        """How many losses there are before the reduction."""
        return math.prod(self.unit_shape)


class LossProblem(NamedTuple):
    """All that a backend needs for one call."""

    heads: tuple[Head, ...]
    weights: Tensor | None
    """(K,): lambda. None: ones."""
    log_vars: Tensor | None
    """(K,): s."""
    dtype: torch.dtype
    """Of losses and total, and of all sums: float32, or float64 if an output has that."""
    overwrite: bool = False
    """Whether a backend may write the gradients of reduced losses over their outputs."""


class LossGradients(NamedTuple):
    """Gradients that :func:`multi_task_value_and_grad` gives."""

    outputs: tuple[Tensor, ...] | dict[str, Tensor]
    """d total / d output of each task, of its shape and dtype."""
    weights: Tensor | None
    log_vars: Tensor | None


class _Call:
    """One call: what is no differentiable tensor, and the gradients kept for its backward."""

    __slots__ = ("forced", "gradients", "inplace", "masks", "overwritten", "targets", "tasks")

    def __init__(
        self,
        tasks: tuple[Task, ...],
        targets: Tensors,
        masks: Tensors | None,
        inplace: bool,
        forced: str | None,
    ) -> None:
        self.tasks = tasks
        self.targets = targets
        self.masks = masks
        self.inplace = inplace
        self.forced = forced
        self.overwritten = False
        """Whether an output now holds its gradient."""
        self.gradients: Sequence[Tensor | None] | None = None
        """Of weights, log_vars and each output, for an upstream gradient of 1 on the total."""


def multi_task_loss(
    outputs: Sequence[Tensor] | Mapping[str, Tensor],
    targets: Sequence[Tensor | None] | Mapping[str, Tensor | None],
    tasks: Sequence[Task] | Mapping[str, Task],
    *,
    weights: Tensor | Sequence[float] | None = None,
    log_vars: Tensor | None = None,
    masks: Sequence[Tensor | None] | Mapping[str, Tensor | None] | None = None,
    inplace_gradient: bool = False,
) -> tuple[Tensor, Losses]:
    """Losses of K tasks and their weighted sum; with their gradients made in the same pass.

    ``L = sum_i lambda_i loss_i``, or with log variances s
    ``L = sum_i lambda_i (c_i exp(-s_i) loss_i + s_i / 2)``.

    Parameters
    ----------
    outputs : sequence or mapping of Tensor
        What the K = 1 to 32 heads give: logits or predictions; float32, bfloat16, float16 or float64, which
        may be mixed. Losses and sums are float32 (float64 if an output is). Shapes as each :class:`Task`
        says: (N, C) or (N, C, d1, ...) for cross_entropy, any for the others.
    targets : sequence or mapping of Tensor
        As each :class:`Task` says; None for a task of kind "value". They get no gradient.
    tasks : sequence or mapping of Task
        What each loss is. A mapping here wants mappings everywhere, with its names.
    weights : Tensor or sequence of float, optional
        (K,): lambda. None: ones.
    log_vars : Tensor, optional
        (K,): s, the learned log variances of Kendall et al. 2018; c is each task's ``uncertainty_scale``.
    masks : sequence or mapping of (Tensor or None), optional
        bool, True where there is a label, of the losses' shape or of its first dimensions: (N,) or (N, T) for
        elements (N, T, D). What has no label is never read into a sum, so that NaN in it cannot leak. A task
        without any label in the batch adds nothing to the total, and nothing gets a gradient from it.
    inplace_gradient : bool
        Write the outputs' gradients over the outputs, which saves their memory and time. They must be
        contiguous, not leaves that require a gradient, and not needed by anything else: torch raises if
        another operation's backward wants them. Ask for the gradient of what a view was made from, not of
        the view. Without gradients, and under torch.compile, it changes nothing.

    Returns
    -------
    total : Tensor
        L, of shape (). Tasks with reduction "none" are not in it.
    losses : Tensor, tuple or dict of Tensor
        Of each task, unweighted: a tensor (K,); a dict of names if ``tasks`` is one; a tuple where a task
        has reduction "none", whose losses have the shape of its rows or elements.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit each other; the message says what was expected and what came.
    IndexError
        On the CPU, for a target class out of range. On a GPU such a row's loss is NaN.
    UnsupportedError
        If the op has no backend for the outputs' device here.

    Notes
    -----
    Differentiable in outputs, weights and log_vars, through total and losses. Second derivatives go through
    the reference. Results do not change from run to run, nor with the number of threads.

    On the CPU an upstream gradient of the total other than 1, or one of ``losses``, computes the gradients a
    second time, from the outputs. With ``inplace_gradient`` the total's gradient is scaled instead, and
    ``losses`` cannot be differentiated. Under ``torch.compile`` make the tasks outside of what is compiled.

    Sources: Kendall, Gal and Cipolla 2018 for the uncertainty; each Task names that of its loss. The
    gradients are derived in ``csrc/cpu/losses_kernels.inl``.

    Examples
    --------
    >>> import mmcore, torch
    >>> logits, boxes = torch.zeros(2, 4), torch.ones(2, 3)
    >>> labels, centres = torch.tensor([3, 0]), torch.zeros(2, 3)
    >>> tasks = [mmcore.Task.cross_entropy(), mmcore.Task.mse()]
    >>> total, losses = mmcore.multi_task_loss([logits, boxes], [labels, centres], tasks, weights=[1.0, 0.5])
    >>> losses, total
    (tensor([1.3863, 1.0000]), tensor(1.8863))
    """
    names, call, tensors = _arguments(outputs, targets, tasks, weights, log_vars, masks, inplace_gradient)
    total, *rest = _OP(call, tensors, call.targets if call.masks is None else (*call.targets, *call.masks))
    return total, _named_losses(names, call.tasks, rest)


def multi_task_value_and_grad(
    outputs: Sequence[Tensor] | Mapping[str, Tensor],
    targets: Sequence[Tensor | None] | Mapping[str, Tensor | None],
    tasks: Sequence[Task] | Mapping[str, Task],
    *,
    weights: Tensor | Sequence[float] | None = None,
    log_vars: Tensor | None = None,
    masks: Sequence[Tensor | None] | Mapping[str, Tensor | None] | None = None,
    inplace_gradient: bool = False,
) -> tuple[Tensor, Losses, LossGradients]:
    """Give :func:`multi_task_loss` and the gradients of its total, without autograd, in one call.

    For training loops that pass gradients on themselves: they go on with
    ``torch.autograd.backward(outputs, gradients.outputs)``. Nothing is recorded. Arguments and errors are
    those of :func:`multi_task_loss`.

    Returns
    -------
    total : Tensor
    losses : Tensor, tuple or dict of Tensor
        As :func:`multi_task_loss` gives them.
    gradients : LossGradients
        ``outputs`` for each task (a dict if ``tasks`` is one), zeros for one with reduction "none";
        ``weights`` and ``log_vars``, None where those are.

    Examples
    --------
    >>> import mmcore, torch
    >>> outputs, targets = [torch.tensor([1.0, 2.0])], [torch.tensor([0.0, 2.0])]
    >>> total, _, gradients = mmcore.multi_task_value_and_grad(outputs, targets, [mmcore.Task.mse()])
    >>> total, gradients.outputs[0]
    (tensor(0.5000), tensor([1., 0.]))
    """
    names, call, tensors = _arguments(outputs, targets, tasks, weights, log_vars, masks, inplace_gradient)
    needs = (tensors[0] is not None, tensors[1] is not None, *(True,) * len(call.tasks))
    if torch.compiler.is_compiling():
        with torch.no_grad():
            total, *rest = _library(call, tensors)
            found: Sequence[Tensor | None] = torch.ops.mmcore.multi_task_loss_backward(
                torch.ones_like(total), None, [], *_library_arguments(call, tensors), list(needs)
            )
            found = [g if need else None for g, need in zip(found, needs, strict=True)]
    else:
        recorded = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)  # torch.no_grad() costs a fifth of a small call
        try:
            total, *rest = _record(call, tensors, needs)
        finally:
            torch._C._set_grad_enabled(recorded)
        assert call.gradients is not None
        found = [
            torch.zeros_like(t) if g is None and t is not None else g
            for g, t in zip(call.gradients, tensors, strict=True)
        ]
    dweights, dlog_vars, *douts = found
    of_outputs: Any = tuple(douts) if names is None else dict(zip(names, douts, strict=True))
    return total, _named_losses(names, call.tasks, rest), LossGradients(of_outputs, dweights, dlog_vars)


def _arguments(
    outputs: Any, targets: Any, tasks: Any, weights: Any, log_vars: Any, masks: Any, inplace: bool
) -> tuple[tuple[str, ...] | None, _Call, Tensors]:
    """Names, or None; the call; and its differentiable tensors: weights, log_vars, *outputs."""
    names = None
    if isinstance(tasks, Mapping):
        names = tuple(tasks)
        outputs = _by_name("outputs", outputs, names)
        targets = _by_name("targets", targets, names)
        if masks is not None:
            masks = _by_name("masks", masks, names, missing=True)
        tasks = tuple(tasks.values())
    else:
        tasks = _tuple("tasks", tasks, None)
        count = len(tasks)
        outputs = _tuple("outputs", outputs, count)
        targets = _tuple("targets", targets, count)
        if masks is not None:
            masks = _tuple("masks", masks, count)
    if not 1 <= len(tasks) <= MAX_TASKS:
        raise ValueError(f"tasks: expected 1 to {MAX_TASKS}, got {len(tasks)}")
    if weights is not None and not isinstance(weights, Tensor):
        weights = _as_weights(weights, outputs[0])
    forced = None if torch.compiler.is_compiling() else forced_backend()
    return names, _Call(tasks, targets, masks, inplace, forced), (weights, log_vars, *outputs)


def _tuple(what: str, value: Any, count: int | None) -> tuple[Any, ...]:
    if type(value) is list:
        value = tuple(value)
    elif type(value) is not tuple:
        if isinstance(value, (Tensor, str, Mapping)) or not isinstance(value, Sequence):
            raise TypeError(
                f"{what}: expected a sequence, one for each task, got {_describe(value)};"
                " mappings go with a mapping of tasks"
            )
        value = tuple(value)
    if count is not None and len(value) != count:
        raise ValueError(f"{what}: expected {count}, one for each task, got {len(value)}")
    checked: tuple[Any, ...] = value
    return checked


def _by_name(what: str, value: Any, names: tuple[str, ...], missing: bool = False) -> tuple[Any, ...]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{what}: expected a mapping as tasks is, got {_describe(value)}")
    unknown = [n for n in value if n not in names]
    lacking = [] if missing else [n for n in names if n not in value]
    if unknown or lacking:
        raise ValueError(
            f"{what}: expected the names of tasks, {', '.join(map(str, names))};"
            f" {'unknown: ' + ', '.join(map(str, unknown)) if unknown else 'missing: ' + ', '.join(lacking)}"
        )
    return tuple(value.get(n) for n in names)


def _as_weights(weights: Any, first: Any) -> Tensor:
    if isinstance(weights, (str, Mapping)) or not isinstance(weights, Sequence):
        raise TypeError(f"weights: expected a tensor or a sequence of numbers, got {_describe(weights)}")
    device = first.device if isinstance(first, Tensor) else torch.device("cpu")
    try:
        values = tuple(float(w) for w in weights)
    except (TypeError, ValueError):
        raise TypeError(f"weights: expected numbers, got {weights!r}") from None
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return torch.tensor(values, dtype=torch.float32, device=device)  # not to be kept: it may be a fake
    constant = _constant(values, device)
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        _of_graphs[values, device] = constant  # the graph holds its address, not the tensor
    return constant


_of_graphs: dict[tuple[tuple[float, ...], torch.device], Tensor] = {}


@functools.lru_cache(maxsize=256)
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers on a device, copied there once: a copy waits for the GPU, and no graph can capture it."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device)


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    return type(value).__name__


def _named_losses(names: tuple[str, ...] | None, tasks: tuple[Task, ...], rest: Sequence[Tensor]) -> Losses:
    losses, *unreduced = rest
    if names is None and not unreduced:
        return losses
    single = iter(unreduced)
    all_of_them = tuple(
        next(single) if task.options.reduction == "none" else loss
        for task, loss in zip(tasks, losses.unbind(), strict=True)
    )
    return all_of_them if names is None else dict(zip(names, all_of_them, strict=True))


# ---- what does not fit is refused


def _check(call: _Call, tensors: Tensors) -> LossProblem:
    weights, log_vars, *outputs = tensors
    count = len(call.tasks)
    first = outputs[0]
    if not isinstance(first, Tensor):
        raise TypeError(f"outputs[0]: expected a tensor, got {_describe(first)}")
    device, dtype = first.device, torch.float32
    heads = []
    masks = call.masks or (None,) * count
    for i, (task, output, target, mask) in enumerate(
        zip(call.tasks, outputs, call.targets, masks, strict=True)
    ):
        if not isinstance(task, Task):
            raise TypeError(f"tasks[{i}]: expected a mmcore.Task, got {_describe(task)}")
        head = _check_head(i, task, output, target, mask, device)
        if head.output.dtype == torch.float64:
            dtype = torch.float64
        heads.append(head)
    for name, value in (("weights", weights), ("log_vars", log_vars)):
        if value is None:
            continue
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {_describe(value)}")
        if value.dtype not in _FLOATS:
            raise TypeError(f"{name}: expected a floating-point tensor, got {_describe(value)}")
        if value.shape != (count,):
            raise ValueError(
                f"{name}: expected shape {(count,)}, one for each task, got {tuple(value.shape)}"
            )
        if value.device != device:
            raise ValueError(f"{name}: expected a tensor on {device} as the outputs are, got {value.device}")
    return LossProblem(tuple(heads), weights, log_vars, dtype)


def _check_head(
    i: int, task: Task, output: object, target: object, mask: object, device: torch.device
) -> Head:
    options = task.options
    kind = options.kind
    if not isinstance(output, Tensor):
        raise TypeError(f"outputs[{i}]: expected a tensor, got {_describe(output)}")
    if output.dtype not in _FLOATS:
        raise TypeError(
            f"outputs[{i}]: expected a float32, bfloat16, float16 or float64 tensor, got {_describe(output)}"
        )
    if output.device != device:
        raise ValueError(f"outputs[{i}]: expected a tensor on {device} as outputs[0] is, got {output.device}")
    shape = tuple(output.shape)
    unit_shape: tuple[int, ...] = ()
    if kind == "value":
        if shape != ():
            raise ValueError(f"outputs[{i}]: a loss computed elsewhere must have shape (), got {shape}")
        if target is not None:
            raise ValueError(
                f"targets[{i}]: expected None for a loss computed elsewhere, got {_describe(target)}"
            )
        rows, soft, flat_target = output.reshape(1, 1), False, None
    else:
        if not isinstance(target, Tensor):
            raise TypeError(f"targets[{i}]: expected a tensor, got {_describe(target)}")
        if target.device != device:
            raise ValueError(
                f"targets[{i}]: expected a tensor on {device} as the outputs are, got {target.device}"
            )
        if target.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"targets[{i}]: targets get no gradient; detach it")
        if kind in ROW_KINDS:
            if not shape:
                raise ValueError(f"outputs[{i}]: {kind} needs at least one dimension, got shape ()")
            dim = options.class_dim if kind == "cross_entropy" and len(shape) > 2 else len(shape) - 1
            dim %= len(shape)
            unit_shape = shape[:dim] + shape[dim + 1 :]
            if shape[dim] == 0:
                raise ValueError(f"outputs[{i}]: {kind} of 0 columns, shape {shape}")
            soft = kind == "cross_entropy" and target.is_floating_point()
            if kind == "cross_entropy" and not soft:
                if target.dtype not in _INTEGERS:
                    raise TypeError(
                        f"targets[{i}]: expected int64 classes or probabilities, got {_describe(target)}"
                    )
                if target.shape != unit_shape:
                    raise ValueError(
                        f"targets[{i}]: expected classes of shape {unit_shape} (or probabilities of shape"
                        f" {shape}) for outputs of shape {shape}, got {tuple(target.shape)}"
                    )
                flat_target = target.reshape(-1).to(torch.int64)
            else:
                _check_like(i, target, shape)
                flat_target = _as_rows(target, dim)
            if soft and options.focal_gamma:
                raise ValueError(f"targets[{i}]: focal_gamma wants classes, not probabilities")
            rows = _as_rows(output, dim)
        else:
            _check_like(i, target, shape)
            soft, unit_shape = False, shape
            columns = shape[-1] if len(shape) > 1 or (shape and task.weight is not None) else 1
            rows = output.reshape(-1, columns) if output.numel() else output.reshape(0, columns)
            flat_target = target.reshape(rows.shape)
    weight = task.weight
    if weight is not None:
        name = "pos_weight" if kind == "bce_with_logits" else "weight"
        columns = rows.shape[1]
        if weight.shape != (columns,) and not (kind == "bce_with_logits" and weight.numel() == 1):
            raise ValueError(
                f"tasks[{i}]: {name} has {weight.numel()} values for {columns} columns of the output"
            )
        if weight.device != device:
            raise ValueError(
                f"tasks[{i}]: {name} is on {weight.device}, the outputs on {device}; Task.to(device) moves it"
            )
    flat_mask = None
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise TypeError(
                f"masks[{i}]: expected a bool tensor, True where there is a label, got {_describe(mask)}"
            )
        if mask.shape != unit_shape[: mask.dim()] or mask.dim() > len(unit_shape):
            raise ValueError(
                f"masks[{i}]: expected the shape of the losses {unit_shape}, or of its first dimensions, got"
                f" {tuple(mask.shape)}"
            )
        if mask.device != device:
            raise ValueError(
                f"masks[{i}]: expected a tensor on {device} as the outputs are, got {mask.device}"
            )
        flat_mask = mask.reshape(-1)
    return Head(task, rows, flat_target, flat_mask, weight, soft, unit_shape)


def _check_like(i: int, target: Tensor, shape: tuple[int, ...]) -> None:
    if target.shape != shape:
        raise ValueError(f"targets[{i}]: expected shape {shape} as the output has, got {tuple(target.shape)}")
    if target.is_complex():
        raise TypeError(f"targets[{i}]: expected real numbers, got {_describe(target)}")


def _as_rows(x: Tensor, dim: int) -> Tensor:
    columns = x.shape[dim]
    moved = x if dim == x.dim() - 1 else x.movedim(dim, -1)
    return moved.reshape(-1, columns) if x.numel() else moved.reshape(math.prod(moved.shape[:-1]), columns)


def _as_output(gradient: Tensor, output: Tensor, task: Task) -> Tensor:
    """Bring the gradient of the rows into the shape of the output."""
    options, dims = task.options, output.dim()
    if options.kind == "cross_entropy" and dims > 2 and options.class_dim == 1:
        moved = (output.shape[0], *output.shape[2:], output.shape[1])
        return gradient.reshape(moved).movedim(-1, 1)
    return gradient.reshape(output.shape)


def _check_classes(problem: LossProblem) -> None:
    """IndexError for a class that the outputs do not have; reads the targets, so not for a GPU's."""
    for i, head in enumerate(problem.heads):
        if head.task.kind != "cross_entropy" or head.soft:
            continue
        target = head.target
        assert target is not None
        classes = head.output.shape[1]
        wrong = (target != head.task.options.ignore_index) & ((target < 0) | (target >= classes))
        if head.mask is not None and head.mask.numel():
            wrong &= head.mask.repeat_interleave(head.units // head.mask.numel())
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            raise IndexError(
                f"targets[{i}]: class {int(target[row])} at row {row} is out of range for {classes} classes"
                f" (ignore_index is {head.task.options.ignore_index})"
            )


def _check_inplace(call: _Call, tensors: Tensors, needs: Sequence[bool]) -> None:
    """Before anything else is checked: what is no output or task is refused later."""
    seen = set()
    for i, (task, output, need) in enumerate(zip(call.tasks, tensors[2:], needs[2:], strict=True)):
        if not need or not isinstance(output, Tensor) or not output.numel():
            continue
        if not isinstance(task, Task) or task.reduction == "none":
            continue
        if not output.is_contiguous():
            raise ValueError(
                f"outputs[{i}]: inplace_gradient needs contiguous outputs, got strides {output.stride()}"
            )
        if output.is_leaf and output.requires_grad:
            raise ValueError(
                f"outputs[{i}]: inplace_gradient would overwrite a leaf that requires a gradient, such"
                " as a parameter"
            )
        if output.untyped_storage().data_ptr() in seen:
            raise ValueError(f"outputs[{i}]: inplace_gradient needs outputs that share no memory")
        seen.add(output.untyped_storage().data_ptr())


# ---- the ways to run it


def _backend(forced: str | None, device: torch.device) -> ModuleType:
    return load_backend(active_backend(device.type, _IMPLEMENTED, forced))


def _run(call: _Call, tensors: Tensors, needs: tuple[bool, ...] | None) -> tuple[Tensor, ...]:
    """total, losses, *unreduced; with ``needs`` their gradients too, into the call."""
    if call.inplace and needs is not None:
        _check_inplace(call, tensors, needs)
    if torch.compiler.is_compiling():
        found: Sequence[Any] = _computed(call, tensors, needs)
    elif _replays(call, tensors) and not (call.inplace and needs is not None):
        found = _replayed(call, tensors, (needs,), lambda: _computed(call, tensors, needs))
    else:
        if call.forced is None and _TENSORS_READY:
            of_core = _core.losses_with_tensors(
                call.tasks, tensors, call.targets, call.masks, needs, call.inplace, get_num_threads
            )
            if of_core is not None:
                results: tuple[Tensor, ...] = of_core[0]
                if needs is not None:
                    call.gradients = of_core[1]
                    _written(call, tensors, needs)
                return results
        found = _computed(call, tensors, needs)
    if needs is None:
        return tuple(found)
    call.gradients = found[-len(needs) :]
    _written(call, tensors, needs)
    return tuple(found[: -len(needs)])


def _computed(call: _Call, tensors: Tensors, needs: tuple[bool, ...] | None) -> list[Tensor | None]:
    """Results and gradients in their final shapes."""
    problem = _check(call, tensors)
    device = problem.heads[0].output.device
    backend = _backend(call.forced, device)
    if device.type == "cpu":
        _check_classes(problem)
    if call.inplace and needs is not None:
        problem = problem._replace(overwrite=True)
    if needs is None:
        total, losses, unreduced, _ = backend.multi_task_loss(problem, None)
        return [total, losses, *_shaped(problem, unreduced)]
    # An unreduced loss has no gradient before it is known what is made of it.
    wanted = tuple(need and (i < 2 or call.tasks[i - 2].reduction != "none") for i, need in enumerate(needs))
    total, losses, unreduced, gradients = backend.multi_task_loss(problem, wanted)
    gradients = list(_shape_gradients(call, tensors, gradients))
    if call.inplace:
        for i in range(2, len(tensors)):
            output, gradient = tensors[i], gradients[i]
            if gradient is not None and output is not None:
                over = output.detach()
                gradients[i] = over if over.data_ptr() == gradient.data_ptr() else over.copy_(gradient)
    return [total, losses, *_shaped(problem, unreduced), *gradients]


def _replays(call: _Call, tensors: Tensors) -> bool:
    """Whether the call is one of launches that can be done again."""
    output = tensors[2]
    return replay.serves(output) and active_backend("cuda", _IMPLEMENTED, call.forced) == "triton"


def _replayed(
    call: _Call,
    tensors: Tensors,
    options: tuple[Any, ...],
    compute: Callable[[], Sequence[Tensor | None]],
) -> Sequence[Tensor | None]:
    """``compute()``, or what it launched at an earlier call of the kind."""
    try:
        specs = [task.spec for task in call.tasks]
        weights = [task.weight for task in call.tasks]
    except AttributeError:
        return compute()  # what is no task is refused there
    masks = call.masks or ()
    # Where gradients are enabled, targets that require one are refused.
    options = (*options, len(masks), torch.is_grad_enabled())
    return replay.run((options, *specs), (*tensors, *call.targets, *masks, *weights), compute)


def _written(call: _Call, tensors: Tensors, needs: Sequence[bool]) -> None:
    """Tell autograd that outputs were overwritten, so that nobody else's backward uses them."""
    if not call.inplace:
        return
    for task, output, need in zip(call.tasks, tensors[2:], needs[2:], strict=True):
        if need and task.reduction != "none" and output is not None:
            torch.autograd.graph.increment_version(output)
            call.overwritten = True


def _refuse_overwritten(call: _Call) -> None:
    """Torch itself would not notice: it remembers the outputs' versions after the forward."""
    if call.overwritten:
        raise RuntimeError(
            "multi_task_loss: with inplace_gradient the total can be differentiated once, without"
            " create_graph;"
            " the outputs from which more would be computed were overwritten"
        )


def _shaped(problem: LossProblem, unreduced: Sequence[Tensor]) -> list[Tensor]:
    shapes = [h.unit_shape for h in problem.heads if h.task.reduction == "none"]
    return [u.reshape(shape) for u, shape in zip(unreduced, shapes, strict=True)]


def _shape_gradients(
    call: _Call, tensors: Tensors, gradients: Sequence[Tensor | None]
) -> Sequence[Tensor | None]:
    shaped = list(gradients)
    for i, task in enumerate(call.tasks):
        g, output = shaped[2 + i], tensors[2 + i]
        if g is not None and output is not None:
            shaped[2 + i] = _as_output(g, output, task)
    return shaped


def _forward(call: _Call, tensors: Tensors) -> tuple[Tensor, ...]:
    return _run(call, tensors, None)


def _record(call: _Call, tensors: Tensors, needs: tuple[bool, ...]) -> tuple[Tensor, ...]:
    return _run(call, tensors, needs)


def _recall(
    call: _Call, grads: Sequence[Tensor | None], needs: tuple[bool, ...]
) -> Sequence[Tensor | None] | None:
    """Hand over, once, what the forward kept, if the upstream gradient is what it was made for."""
    kept = call.gradients
    if kept is None:
        return None
    if call.inplace:
        call.gradients = None
        return _scaled_in_place(call, kept, grads)
    total = grads[0]
    if total is None or grads[1] is not None or (len(grads) > 2 and any(g is not None for g in grads[2:])):
        return None
    call.gradients = None
    if total.is_cpu:
        return kept if _core.is_one(total) else None
    # Its value is on the device: a kernel there multiplies, unless it is 1.
    _backend(call.forced, total.device).scale_gradients([g for g in kept if g is not None], total)
    return kept


def _scaled_in_place(
    call: _Call, kept: Sequence[Tensor | None], grads: Sequence[Tensor | None]
) -> Sequence[Tensor | None]:
    total, losses, *unreduced = grads
    if any(g is not None for g in unreduced) or losses is not None:
        raise RuntimeError(
            "multi_task_loss: with inplace_gradient only the total can be differentiated; the"
            " outputs from which the"
            " losses' gradients would be computed were overwritten"
        )
    if total is None:
        return [None] * len(kept)
    made = [g for g in kept if g is not None]
    if not total.is_cpu:
        # Its value is on the device: a kernel there multiplies, unless it is 1.
        _backend(call.forced, total.device).scale_gradients(made, total)
    elif not _core.is_one(total):
        for g in made:
            g.mul_(total.to(g.dtype) if g.dtype == torch.float64 else total)
    return kept


def _backward(
    call: _Call, tensors: Tensors, grads: Sequence[Tensor | None], needs: tuple[bool, ...]
) -> Sequence[Tensor | None]:
    _refuse_overwritten(call)
    if _replays(call, tensors):
        return _replayed(
            call, (*grads, *tensors), ("backward", needs), lambda: _gradients(call, tensors, grads, needs)
        )
    return _gradients(call, tensors, grads, needs)


def _gradients(
    call: _Call, tensors: Tensors, grads: Sequence[Tensor | None], needs: tuple[bool, ...]
) -> Sequence[Tensor | None]:
    problem = _check(call, tensors)
    backend = _backend(call.forced, problem.heads[0].output.device)
    total, losses, *unreduced = grads
    gradients = backend.multi_task_loss_backward(problem, total, losses, unreduced, needs)
    return _shape_gradients(call, tensors, gradients)


def _reference(call: _Call, tensors: Tensors) -> tuple[Tensor, ...]:
    from mmcore.backends import reference

    _refuse_overwritten(call)
    problem = _check(call, tensors)
    total, losses, unreduced = reference.multi_task_losses(problem)
    return (total, losses, *_shaped(problem, unreduced))


# ---- as an op of torch.library


def _library_arguments(call: _Call, tensors: Tensors) -> tuple[Any, ...]:
    weights, log_vars, *outputs = tensors
    return (
        outputs,
        list(call.targets),
        [None] * len(outputs) if call.masks is None else list(call.masks),
        [task.weight for task in call.tasks],
        weights,
        log_vars,
        [task.spec for task in call.tasks],
    )


def _library(call: _Call, tensors: Tensors) -> tuple[Tensor, ...]:
    _check(call, tensors)
    return tuple(torch.ops.mmcore.multi_task_loss(*_library_arguments(call, tensors)))


_TENSORS_READY = _core.tensors_ready()
_OP = DifferentiableOp(_forward, _backward, _reference, _library, _record, _recall)

_ARGUMENTS = (
    "Tensor[] outputs, Tensor?[] targets, Tensor?[] masks, Tensor?[] task_weights, Tensor? weights,"
    " Tensor? log_vars, str[] tasks"
)
LIBRARY.define(f"multi_task_loss({_ARGUMENTS}) -> Tensor[]")  # type: ignore[no-untyped-call]
LIBRARY.define(  # type: ignore[no-untyped-call]
    "multi_task_loss_backward(Tensor? grad_total, Tensor? grad_losses, Tensor?[] grad_unreduced,"
    f" {_ARGUMENTS}, bool[] needs) -> Tensor[]"
)


def _library_call(
    outputs: list[Tensor],
    targets: list[Tensor | None],
    masks: list[Tensor | None],
    task_weights: list[Tensor | None],
    weights: Tensor | None,
    log_vars: Tensor | None,
    tasks: list[str],
) -> tuple[_Call, Tensors]:
    made = tuple(Task.from_spec(spec, w) for spec, w in zip(tasks, task_weights, strict=True))
    given = None if all(m is None for m in masks) else tuple(masks)
    return _Call(made, tuple(targets), given, False, forced_backend()), (weights, log_vars, *outputs)


def _library_forward(*arguments: Any) -> list[Tensor]:
    call, tensors = _library_call(*arguments)
    return list(_forward(call, tensors))


def _library_fake(*arguments: Any) -> list[Tensor]:
    call, tensors = _library_call(*arguments)
    problem = _check(call, tensors)
    first = problem.heads[0].output
    made = [first.new_empty((), dtype=problem.dtype), first.new_empty(len(call.tasks), dtype=problem.dtype)]
    return made + [
        first.new_empty(h.unit_shape, dtype=problem.dtype)
        for h in problem.heads
        if h.task.reduction == "none"
    ]


def _library_backward(
    grad_total: Tensor | None,
    grad_losses: Tensor | None,
    grad_unreduced: list[Tensor | None],
    *arguments: Any,
) -> list[Tensor]:
    *rest, needs = arguments
    call, tensors = _library_call(*rest)
    count = sum(task.reduction == "none" for task in call.tasks)
    grads = (grad_total, grad_losses, *(grad_unreduced or (None,) * count))
    found = _backward(call, tensors, grads, tuple(needs))
    outputs = arguments[0]
    # Contiguous, as the other results of the op are and its fake says.
    return [
        outputs[0].new_empty(0)
        if not need or t is None
        else torch.zeros(t.shape, dtype=t.dtype, device=t.device)
        if g is None
        else g.contiguous()
        for g, t, need in zip(found, tensors, needs, strict=True)
    ]


def _library_backward_fake(
    grad_total: Tensor | None,
    grad_losses: Tensor | None,
    grad_unreduced: list[Tensor | None],
    outputs: list[Tensor],
    targets: list[Tensor | None],
    masks: list[Tensor | None],
    task_weights: list[Tensor | None],
    weights: Tensor | None,
    log_vars: Tensor | None,
    tasks: list[str],
    needs: list[bool],
) -> list[Tensor]:
    return [
        t.new_empty(t.shape) if need and t is not None else outputs[0].new_empty(0)
        for t, need in zip((weights, log_vars, *outputs), needs, strict=True)
    ]


def _library_setup(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    outputs, targets, masks, task_weights, weights, log_vars, tasks = inputs
    ctx.save_for_backward(weights, log_vars, *outputs, *targets, *masks, *task_weights)
    ctx.tasks = tasks
    ctx.needs = [t is not None and t.requires_grad for t in (weights, log_vars, *outputs)]


def _library_gradient(ctx: Any, grads: list[Tensor | None]) -> tuple[object, ...]:
    count = len(ctx.tasks)
    weights, log_vars, *rest = ctx.saved_tensors
    outputs, targets, masks, task_weights = (rest[i * count : (i + 1) * count] for i in range(4))
    total, losses, *unreduced = grads
    found = torch.ops.mmcore.multi_task_loss_backward(
        total,
        losses,
        unreduced,
        outputs,
        targets,
        masks,
        task_weights,
        weights,
        log_vars,
        ctx.tasks,
        ctx.needs,
    )
    dw, ds, *dxs = [g if need else None for g, need in zip(found, ctx.needs, strict=True)]
    # torch.library sees a list of tensors only where none of them is None.
    of_lists = [
        None if any(t is None for t in given) else [None] * count for given in (targets, masks, task_weights)
    ]
    return (list(dxs), *of_lists, dw, ds, None)


def _no_second_gradient(ctx: object, *grads: object) -> None:
    raise NotImplementedError(
        "multi_task_loss: second derivatives are not supported under torch.compile or torch.func;"
        " call the op outside of them"
    )


for _suffix, _function in (("", _library_forward), ("_backward", _library_backward)):
    LIBRARY.impl(  # type: ignore[no-untyped-call]
        f"multi_task_loss{_suffix}", _function, "CompositeExplicitAutograd"
    )
torch.library.register_fake("mmcore::multi_task_loss", _library_fake, lib=LIBRARY)
torch.library.register_fake("mmcore::multi_task_loss_backward", _library_backward_fake, lib=LIBRARY)
torch.library.register_autograd(
    "mmcore::multi_task_loss", _library_gradient, setup_context=_library_setup, lib=LIBRARY
)
torch.library.register_autograd("mmcore::multi_task_loss_backward", _no_second_gradient, lib=LIBRARY)
