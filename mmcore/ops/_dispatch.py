"""How a differentiable op is called: the cheapest way that still does what the caller needs.

Measured on the CPU for 3 x (8, 1, 256) features: a direct call of the backend where no gradient is wanted; a
plain ``autograd.Function`` where one is, a third of the cost of ``torch.library.custom_op``; the op
registered with ``torch.library`` whenever the call is recorded rather than run, as by ``torch.compile``,
``torch.export``, dispatch modes and tensor subclasses; and the reference, plain torch calls, under
``torch.func`` transforms, which custom ops cannot take.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from mmcore import _core

__all__ = ["DifferentiableOp"]

Tensors = tuple[Tensor | None, ...]

_dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
_functorch_level: Callable[[], object] = torch._C._functorch.peek_interpreter_stack


class DifferentiableOp:
    """One op with its gradient, called with its options and tensors, which may hold None.

    Parameters
    ----------
    forward : callable
        ``forward(options, tensors)`` gives the result. Autograd does not look into it.
    backward : callable
        ``backward(options, tensors, grads, needs)`` gives a gradient, or None, for each tensor; likewise.
    reference : callable
        ``reference(options, tensors)``: the same function in differentiable torch calls, for second
        derivatives.
    library : callable
        ``library(options, tensors)`` calls the ``torch.library`` op. It meets arguments of any kind, as all
        do that are not tensors of the plain type, and refuses what it cannot take.
    record : callable, optional
        ``record(options, tensors, needs)``: ``forward`` where gradients will be asked for, which it may make
        in the same pass and keep in ``options``, an object of this call alone.
    recall : callable, optional
        ``recall(options, grads, needs)`` gives the gradients that ``record`` kept, or None if they do not
        serve; then ``backward`` makes them.
    """

    __slots__ = ("backward", "forward", "library", "recall", "record", "reference")

    def __init__(
        self,
        forward: Callable[[Any, Tensors], Any],
        backward: Callable[
            [Any, Tensors, Sequence[Tensor | None], tuple[bool, ...]], Sequence[Tensor | None]
        ],
        reference: Callable[[Any, Tensors], Any],
        library: Callable[[Any, Tensors], Any],
        record: Callable[[Any, Tensors, tuple[bool, ...]], Any] | None = None,
        recall: Callable[[Any, Sequence[Tensor | None], tuple[bool, ...]], Sequence[Tensor | None] | None]
        | None = None,
    ) -> None:
        self.forward = forward
        self.backward = backward
        self.reference = reference
        self.library = library
        self.record = record
        self.recall = recall

    def __call__(self, options: Any, tensors: Tensors, constants: Tensors = ()) -> Any:
        """Run the op in the cheapest way that serves; ``constants`` are tensors that ``options`` holds."""
        if torch.compiler.is_compiling() or _dispatch_modes():
            return self.library(options, tensors)
        kind = _core.tensors_kind(tensors, Tensor, Parameter)
        if kind == 0 or (constants and _core.tensors_kind(constants, Tensor, Parameter) == 0):
            return self.library(options, tensors)  # not all of them are plain tensors
        if _functorch_level() is not None or forward_ad._current_level >= 0:
            return self.reference(options, tensors)
        if kind == 2 and torch.is_grad_enabled():  # one of them requires a gradient
            return _apply(self, options, constants, *tensors)
        return self.forward(options, tensors)


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, op: DifferentiableOp, options: Any, constants: Tensors, *tensors: Tensor | None
    ) -> Any:
        ctx.save_for_backward(*tensors, *constants)  # for its check that nobody has written to them
        ctx.call = op, options
        if op.record is not None:
            ctx.set_materialize_grads(False)
            return op.record(options, tensors, ctx.needs_input_grad[3:])
        return op.forward(options, tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        op, options = ctx.call
        needs = ctx.needs_input_grad[3:]
        again = torch.is_grad_enabled()  # create_graph=True
        if op.recall is not None and not again:
            found = op.recall(options, grads, needs)
            if found is not None:
                return None, None, None, *found
        tensors = ctx.saved_tensors[: len(needs)]
        if again:
            return None, None, None, *differentiable_backward(op, options, tensors, grads, needs)
        return None, None, None, *op.backward(options, tensors, grads, needs)


# Function.apply looks for functorch first, which is not active here: a tenth of the cost of a small op.
_apply: Callable[..., Any] = super(torch.autograd.Function, _Function).apply


def differentiable_backward(
    op: DifferentiableOp,
    options: Any,
    tensors: Tensors,
    grads: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients that can be differentiated again: autograd through the reference."""
    # Stand-ins: the gradient of an operand that was made from another one, gates from features, ends at it.
    tensors = tuple(
        t.view_as(t) if need and t is not None else t for t, need in zip(tensors, needs, strict=True)
    )
    out = op.reference(options, tensors)
    outs = [out] if isinstance(out, Tensor) else list(out)
    pairs = [(o, g) for o, g in zip(outs, grads, strict=True) if g is not None and o.requires_grad]
    wanted = [t for t, need in zip(tensors, needs, strict=True) if need and t is not None]
    found = iter(
        torch.autograd.grad(
            [o for o, _ in pairs], wanted, [g for _, g in pairs], create_graph=True, allow_unused=True
        )
    )
    return [next(found) if need and t is not None else None for t, need in zip(tensors, needs, strict=True)]
