"""The losses op, forward and backward, beside the reference, eager torch, torch.compile and fused peers.

One figure is the time of ``total = f(...)`` and ``torch.autograd.grad(total, inputs)`` with respect to the
heads' outputs and, where they are learned, log variances or the logit scale; cases named value_and_grad take
ours from one call of ``mmcore.multi_task_value_and_grad``, the peers' as before. Every competitor is checked
against the float64 reference before it is timed.

Torch comes in the form that one writes first and, as *tuned*, in a faster one:

- one cross entropy, eager: the gradient made over the saved ``log_softmax``; compiled: loss and gradient in
  one graph, without autograd.
- several heads, eager: the losses stacked before they are weighted; compiled: the same, and for
  value_and_grad ``torch.func.grad_and_value`` of it in one graph, without autograd.

In-place cases write the gradient over the logits. These are restored from a copy before each sample, which is
not timed; should a sample hold several calls, all but its first work on the gradient of the one before, which
is the same work. Memory comes in three regimes, see :mod:`bench.workers`.

Bandwidth: cross entropy of many classes must read the logits and write the gradient, once each;
``least_bytes(case) / time`` is given as a share of the C library's copy, read plus write, in the same rounds.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import mmcore
from bench.workers import (
    COMPILED,
    COMPILED_TUNED,
    EAGER,
    OURS,
    REFERENCE,
    TUNED,
    Job,
    Prepared,
    Suite,
    prepare_each,
)

__all__ = ["CASES", "SUITE", "LossCase", "competitors", "least_bytes", "prepare"]

LIGER, LINEAR_CROSS_ENTROPY = "Liger-Kernel", "linear_cross_entropy"
OURS_AT_ONCE = "mmcore value_and_grad"

# Of each result, in the 2-norm, against float64. Torch's log_softmax of bfloat16 is rounded to it.
_RELATIVE_ERROR = {"float32": 1e-5, "bfloat16": 0.05}
_LARGE = 1 << 22  # elements
_ORACLE_ROWS = 32

_FIXED = (1.0, 0.5, 0.25, 2.0)


@dataclass(frozen=True)
class LossCase:
    """One row of the suite."""

    name: str
    heads: tuple[tuple[str, tuple[int, ...]], ...]
    """Kind and shape of each head; "clip" and "siglip" have that of the features on either side."""
    weighting: str = "ones"
    """"ones", "fixed" (``_FIXED``) or "uncertainty" (learned log variances)."""
    masked: bool = False
    at_once: bool = False
    """Whether ours is value_and_grad."""
    inplace: bool = False
    features: int = 0
    """Of the linear layer that the logits come from, which is part of the step; 0: the logits are given."""
    dtype: str = "float32"
    goals: tuple[float | None, float | None, float | None] = (None, None, None)
    """At least so many times eager, so many times torch.compile, so much of the copy bandwidth."""

    @property
    def large(self) -> bool:
        """Whether its memory is worth recording."""
        return math.prod(self.heads[0][1]) >= _LARGE

    @property
    def streams(self) -> bool:
        """Whether memory bounds it."""
        return self.large and not self.features

    @property
    def contrastive(self) -> bool:
        """Whether it is ``mmcore.contrastive_loss``."""
        return self.heads[0][0] in ("clip", "siglip")

    @property
    def learned(self) -> bool:
        """Whether log variances or a logit scale get a gradient, too."""
        return self.contrastive or self.weighting == "uncertainty"


_BIG = (("cross_entropy", (2048, 32000)),)
_SMALL = (
    ("cross_entropy", (64, 400)),
    ("bce_with_logits", (64, 20)),
    ("mse", (64, 4)),
    ("smooth_l1", (64, 4)),
)

CASES = (
    LossCase("CE 2048x32000 fp32", _BIG, goals=(9.0, 3.3, None)),
    LossCase("CE 2048x32000 fp32, in place", _BIG, inplace=True, goals=(20.0, 8.0, None)),
    LossCase("CE 2048x32000 bf16, in place", _BIG, inplace=True, dtype="bfloat16", goals=(12.0, 9.0, None)),
    LossCase("linear 256 + CE 1024x32000 fp32", (("cross_entropy", (1024, 32000)),), features=256),
    LossCase("CE 64x400 fp32", _SMALL[:1], goals=(2.0, 5.0, None)),
    LossCase("4 heads, uncertainty", _SMALL, "uncertainty", goals=(6.0, 5.0, None)),
    LossCase(
        "4 heads, uncertainty, value_and_grad", _SMALL, "uncertainty", at_once=True, goals=(12.0, 10.0, None)
    ),
    LossCase(
        "4 heads, uncertainty, value_and_grad in place", _SMALL, "uncertainty", at_once=True, inplace=True
    ),
    LossCase("4 heads, uncertainty, masked", _SMALL, "uncertainty", masked=True, goals=(7.0, 4.5, None)),
    LossCase("4 heads, fixed weights", _SMALL, "fixed"),
    LossCase("InfoNCE 256x512", (("clip", (256, 512)),), goals=(2.0, 1.5, None)),
    LossCase("SigLIP 256x512", (("siglip", (256, 512)),)),
)
"""The 4 heads are CE of 400 classes, BCE of 20 labels, MSE and SmoothL1 of 4 numbers, for 64 samples."""

_QUICK = (
    "CE 2048x32000 fp32",
    "CE 2048x32000 fp32, in place",
    "CE 64x400 fp32",
    "4 heads, uncertainty",
    "4 heads, uncertainty, value_and_grad",
    "InfoNCE 256x512",
)


@dataclass
class _Inputs:
    """Tensors of a case."""

    outputs: list[Tensor]
    """Of the heads; features and weight of the linear layer; or the features of both sides."""
    targets: list[Tensor]
    masks: list[Tensor] | None
    extra: Tensor | None
    """Log variances, fixed weights, or logarithm of the logit scale."""

    @property
    def arguments(self) -> tuple[list[Tensor], list[Tensor], list[Tensor] | None, Tensor | None]:
        """What every competitor is called with."""
        return self.outputs, self.targets, self.masks, self.extra

    @property
    def wanted(self) -> list[Tensor]:
        """What gradients are made for."""
        return [t for t in (*self.outputs, self.extra) if t is not None and t.requires_grad]

    def like(self, make: Callable[[Tensor], Tensor]) -> _Inputs:
        """Others, in which ``make`` of each tensor that gets a gradient is the input."""
        extra = self.extra if self.extra is None or not self.extra.requires_grad else make(self.extra)
        return _Inputs([make(t) for t in self.outputs], self.targets, self.masks, extra)


def _inputs(case: LossCase) -> _Inputs:
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, case.dtype)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    kind, shape = case.heads[0]
    masks = extra = None
    if case.contrastive:
        outputs = [F.normalize(normal(*shape), dim=1) for _ in range(2)]
        targets = []
        extra = torch.tensor(math.log(1 / 0.07 if kind == "clip" else 10.0))
    elif case.features:
        rows, classes = shape
        outputs = [normal(rows, case.features), normal(classes, case.features) / case.features**0.5]
        targets = [torch.randint(classes, (rows,), generator=generator)]
    else:
        outputs = [normal(*shape) for _, shape in case.heads]
        targets = [
            torch.randint(shape[1], shape[:1], generator=generator)
            if kind == "cross_entropy"
            else (torch.rand(shape, generator=generator) < 0.1).float()
            if kind == "bce_with_logits"
            else normal(*shape)
            for kind, shape in case.heads
        ]
    if case.masked:  # of each label for many labels, else of each sample
        masks = [
            torch.rand(shape if kind == "bce_with_logits" else shape[:1], generator=generator) < 0.7
            for kind, shape in case.heads
        ]
    if case.weighting == "uncertainty":
        extra = torch.randn(len(case.heads), generator=generator) / 4
    elif case.weighting == "fixed":
        extra = torch.tensor(_FIXED)
    for tensor in outputs:
        tensor.requires_grad_()
    if extra is not None and case.learned:
        extra.requires_grad_()
    return _Inputs(outputs, targets, masks, extra)


def least_bytes(case: LossCase) -> int:
    """Bytes that one step must move at least: the outputs are read once, their gradients written once."""
    shapes = [shape for _, shape in case.heads]
    if case.contrastive:
        shapes *= 2
    elif case.features:
        rows, classes = shapes[0]
        shapes = [(rows, case.features), (classes, case.features)]
    return 2 * sum(math.prod(shape) for shape in shapes) * getattr(torch, case.dtype).itemsize


_Total = Callable[
    [Sequence[Tensor], Sequence[Tensor], "Sequence[Tensor] | None", "Tensor | None"], "Tensor | Any"
]
"""Outputs, targets, masks and extra to the total."""

_LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": F.cross_entropy,
    "bce_with_logits": F.binary_cross_entropy_with_logits,
    "mse": F.mse_loss,
    "smooth_l1": F.smooth_l1_loss,
}


def _contrastive(case: LossCase) -> _Total:
    """As open_clip has it."""

    def clip(outputs: Any, targets: Any, masks: Any, extra: Any) -> Tensor:
        a, b = outputs
        logits = extra.exp() * a @ b.T
        labels = torch.arange(len(a))
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2

    def siglip(outputs: Any, targets: Any, masks: Any, extra: Any) -> Tensor:
        a, b = outputs
        logits = extra.exp() * a @ b.T - _SIGLIP_BIAS
        labels = 2 * torch.eye(len(a)) - 1
        return -F.logsigmoid(labels * logits).sum() / len(a)

    return clip if case.heads[0][0] == "clip" else siglip


_SIGLIP_BIAS = 10.0


def _head_losses(case: LossCase) -> Callable[[Any, Any, Any], list[Tensor]]:
    """Loss of each head, over what has a label."""
    functions = [_LOSSES[kind] for kind, _ in case.heads]

    def plain(outputs: Any, targets: Any, masks: Any) -> list[Tensor]:
        return [f(x, t) for f, x, t in zip(functions, outputs, targets, strict=True)]

    def masked(outputs: Any, targets: Any, masks: Any) -> list[Tensor]:
        losses = []
        for f, x, t, mask in zip(functions, outputs, targets, masks, strict=True):
            loss = f(x, t, reduction="none")
            if mask.dim() < loss.dim():
                mask = mask[:, None].expand_as(loss)
            losses.append(torch.where(mask, loss, 0.0).sum() / mask.sum().clamp(min=1))
        return losses

    return masked if case.masked else plain


_UNCERTAINTY_SCALES = {"mse": 0.5, "smooth_l1": 0.5}  # 1 for the others


def _eager(case: LossCase) -> _Total:
    """The form that one writes first."""
    if case.contrastive:
        return _contrastive(case)
    losses_of = _head_losses(case)
    scales = [_UNCERTAINTY_SCALES.get(kind, 1.0) for kind, _ in case.heads]

    def total(outputs: Any, targets: Any, masks: Any, extra: Any) -> Tensor:
        if case.features:
            outputs = [F.linear(*outputs)]
        losses = losses_of(outputs, targets, masks)
        if case.weighting == "uncertainty":
            terms = [
                c * torch.exp(-s) * loss + s / 2 for c, s, loss in zip(scales, extra, losses, strict=True)
            ]
        elif case.weighting == "fixed":
            terms = [w * loss for w, loss in zip(_FIXED, losses, strict=True)]
        else:
            terms = losses
        return functools.reduce(torch.add, terms)

    return total


def _stacked(case: LossCase) -> _Total:
    """Several heads, with fewer operations."""
    losses_of = _head_losses(case)
    scales = torch.tensor([_UNCERTAINTY_SCALES.get(kind, 1.0) for kind, _ in case.heads])

    def total(outputs: Any, targets: Any, masks: Any, extra: Any) -> Tensor:
        losses = torch.stack(losses_of(outputs, targets, masks))
        if case.weighting == "uncertainty":
            return (scales * torch.exp(-extra) * losses + extra / 2).sum()
        return torch.dot(extra, losses)

    return total


class _GradientOverLogSoftmax(torch.autograd.Function):
    """Cross entropy that makes its gradient in the memory of the probabilities."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        log_p = logits.log_softmax(1)
        ctx.save_for_backward(log_p, target)
        return F.nll_loss(log_p, target)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        log_p, target = ctx.saved_tensors
        p = log_p.exp_()
        p[torch.arange(len(target)), target] -= 1
        return p.mul_(grad / len(target)), None


def _over_log_softmax(outputs: Any, targets: Any, masks: Any, extra: Any) -> Tensor:
    logits = F.linear(*outputs) if len(outputs) == 2 else outputs[0]
    loss: Tensor = _GradientOverLogSoftmax.apply(logits, targets[0])
    return loss


def _loss_and_gradient(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy and its gradient, to be compiled as one graph."""
    log_p = logits.float().log_softmax(1)
    loss = -log_p.gather(1, target[:, None]).mean()
    hot = torch.arange(logits.shape[1]) == target[:, None]
    return loss, ((log_p.exp() - hot.float()) / len(target)).to(logits.dtype)


def _ours(case: LossCase) -> _Total:
    inplace = case.inplace or bool(case.features)  # nobody else needs a linear layer's logits
    if case.contrastive:
        kind = case.heads[0][0]
        bias = torch.tensor(-_SIGLIP_BIAS) if kind == "siglip" else None
        return lambda outputs, targets, masks, extra: mmcore.contrastive_loss(
            *outputs, extra.exp(), kind=kind, bias=bias
        )
    tasks = _tasks(case)
    if case.features:
        return lambda outputs, targets, masks, extra: mmcore.multi_task_loss(
            [F.linear(*outputs)], targets, tasks, inplace_gradient=inplace
        )[0]
    if case.weighting == "uncertainty":
        return lambda outputs, targets, masks, extra: mmcore.multi_task_loss(
            outputs, targets, tasks, log_vars=extra, masks=masks, inplace_gradient=inplace
        )[0]
    return lambda outputs, targets, masks, extra: mmcore.multi_task_loss(
        outputs, targets, tasks, weights=extra, masks=masks, inplace_gradient=inplace
    )[0]


def _tasks(case: LossCase) -> tuple[mmcore.Task, ...]:
    return tuple(getattr(mmcore.Task, kind)() for kind, _ in case.heads)


def competitors(case: LossCase) -> list[str]:
    """Who takes part in a case."""
    # The reference takes some seconds for a large step: there it is the oracle only.
    base = [EAGER] if case.large else [REFERENCE, EAGER]
    if case.contrastive:
        return [*base, COMPILED, OURS]
    if case.features:
        return [*base, TUNED, COMPILED, LINEAR_CROSS_ENTROPY, OURS]
    faster = case.large or len(case.heads) > 1
    fused = [LIGER, OURS_AT_ONCE] if case.large and case.inplace else []
    return [*base, *([TUNED] if faster else []), COMPILED, COMPILED_TUNED, *fused, OURS]


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, dynamic=False)


def _step(total_of: _Total, inputs: _Inputs) -> Callable[[], list[Tensor]]:
    arguments, wanted = inputs.arguments, inputs.wanted

    def step() -> list[Tensor]:
        total = total_of(*arguments)
        return [total, *torch.autograd.grad(total, wanted)]

    return step


def _value_and_grad(case: LossCase, inputs: _Inputs, inplace: bool) -> Callable[[], list[Tensor]]:
    """Ours in one call, of tensors outside autograd."""
    tasks = _tasks(case)
    outputs, targets, masks, extra = inputs.arguments
    options: dict[str, Any] = {"inplace_gradient": inplace}
    if masks is not None:
        options["masks"] = masks
    if extra is not None:
        options["log_vars"] = extra

    def step() -> list[Tensor]:
        total, _, gradients = mmcore.multi_task_value_and_grad(outputs, targets, tasks, **options)
        return [total, *gradients.outputs, *(() if gradients.log_vars is None else (gradients.log_vars,))]

    return step


def prepare(case: LossCase, names: Sequence[str]) -> Prepared:
    """Make inputs and competitors, and check them; all but eager and mmcore may fail."""
    torch._dynamo.reset()  # the last case's compiled code, which would count against the limit of variants
    given = _inputs(case)

    def restored(make: Callable[[_Inputs], Callable[[], list[Tensor]]], leaves: bool = False) -> Job:
        """Of a competitor that overwrites its outputs, which are leaves, or results as a model's are."""
        own = given.like(lambda t: t.detach().clone().requires_grad_() if leaves else t.clone())

        def refresh() -> None:
            for x, pristine in zip(own.outputs, given.outputs, strict=True):
                x.detach().copy_(pristine.detach())

        return Job(make(own), refresh)

    def ours() -> Job:
        if case.at_once:
            detached = given.like(torch.Tensor.detach)
            if not case.inplace:
                return Job(_value_and_grad(case, detached, False))
            return at_once()
        if case.inplace:
            return restored(functools.partial(_step, _ours(case)))
        return Job(_step(_ours(case), given))

    def at_once() -> Job:
        return restored(lambda own: _value_and_grad(case, own.like(torch.Tensor.detach), True))

    def reference() -> Job:
        job = ours()

        def run() -> Any:
            with mmcore.backend("reference"):
                return job.run()

        return Job(run, job.refresh)

    def tuned() -> Job:
        return Job(_step(_over_log_softmax if len(case.heads) == 1 else _stacked(case), given))

    def compiled_tuned() -> Job:
        detached = given.like(torch.Tensor.detach)
        if len(case.heads) == 1:
            joint = _compiled(_loss_and_gradient)
            return Job(functools.partial(joint, detached.outputs[0], detached.targets[0]))
        if not case.at_once:
            return Job(_step(_compiled(_stacked(case)), given))
        function = _compiled(torch.func.grad_and_value(_stacked(case), argnums=(0, 3)))
        arguments = detached.arguments

        def step() -> list[Tensor]:
            (outputs, extra), total = function(*arguments)
            return [total, *outputs, extra]

        return Job(step)

    def liger() -> Job:
        from liger_kernel.transformers.functional import liger_cross_entropy

        return restored(
            functools.partial(
                _step, lambda outputs, targets, masks, extra: liger_cross_entropy(outputs[0], targets[0])
            ),
            leaves=True,
        )

    def linear_cross_entropy() -> Job:
        options = torch.nn.LinearCrossEntropyOptions()  # torch's own choice of chunks
        return Job(
            _step(
                lambda outputs, targets, masks, extra: F.linear_cross_entropy(
                    *outputs, targets[0], options=options
                ),
                given,
            )
        )

    makers: dict[str, Callable[[], Job]] = {
        REFERENCE: reference,
        EAGER: lambda: Job(_step(_eager(case), given)),
        TUNED: tuned,
        COMPILED: lambda: Job(_step(_compiled(_eager(case)), given)),
        COMPILED_TUNED: compiled_tuned,
        LIGER: liger,
        LINEAR_CROSS_ENTROPY: linear_cross_entropy,
        OURS_AT_ONCE: at_once,
        OURS: ours,
    }
    return prepare_each(
        {name: makers[name] for name in names},
        _oracle(case, given),
        _RELATIVE_ERROR[case.dtype],
        required=(REFERENCE, EAGER, OURS),
    )


def _oracle(case: LossCase, given: _Inputs) -> list[Tensor]:
    double = given.like(lambda t: t.detach().double().requires_grad_())
    double.targets = [t.double() if t.is_floating_point() else t for t in given.targets]
    total_of = _ours(replace(case, inplace=False))
    with mmcore.backend("reference"):
        if not case.large:
            return [t.detach() for t in _step(total_of, double)()]
        # By rows, of which the loss is the mean: whole, its many passes over memory take a minute.
        rows, *others = double.outputs
        gradient = torch.empty_like(rows)
        sums = [torch.zeros((), dtype=torch.float64), *(torch.zeros_like(t) for t in others)]
        for start in range(0, len(rows), _ORACLE_ROWS):
            part = slice(start, start + _ORACLE_ROWS)
            x = rows[part].detach().requires_grad_()
            total, dx, *found = _step(
                total_of, _Inputs([x, *others], [double.targets[0][part]], None, None)
            )()
            share = len(x) / len(rows)
            gradient[part] = dx * share
            for i, value in enumerate((total, *found)):
                sums[i] += value.detach() * share
    total, *found = sums
    return [total, gradient.detach(), *found]


def _describe(case: LossCase) -> dict[str, Any]:
    return {
        "heads": [[kind, *shape] for kind, shape in case.heads],
        "dtype": case.dtype,
        "in_place": case.inplace,
    }


SUITE = Suite("losses", CASES, _QUICK, competitors, prepare, least_bytes, _describe)

if __name__ == "__main__":
    SUITE.serve()
