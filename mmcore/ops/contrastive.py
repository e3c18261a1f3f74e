"""The contrastive losses of CLIP and SigLIP: all between their matrix products in a few sweeps.

    z = s a b^T (+ bias),   B x B
    clip    L = 1/2B sum_i (lse_j z_ij + lse_j z_ji - 2 z_ii)
    siglip  L = -1/B sum_ij log sigmoid(+-z_ij),   + where i = j

A batch whose z is small makes it once, and its gradient in its place in the forward. For a larger one z is
made by tiles of whole rows, in the forward and again in the backward, and never exists as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmcore.backends import active_backend, forced_backend, load_backend
from mmcore.ops._dispatch import DifferentiableOp
from mmcore.ops._library import LIBRARY

__all__ = ["ContrastiveProblem", "Parts", "Recorded", "contrastive_loss"]

KINDS = ("clip", "siglip")

_IMPLEMENTED = ("reference", "cpu", "triton")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

_TILE_BYTES = 16 << 20
"""Of z at a time: some of what the caches of a processor hold, and 2048 x 2048 of float32."""

_GPU_TILE_BYTES = 1 << 30
"""Likewise on a GPU, where making z again costs more than reading it: 16384 x 16384 of float32."""


class ContrastiveProblem(NamedTuple):
    """A call of the op, checked, as backends take it."""

    a: Tensor
    """(B, D), B at least 1."""
    b: Tensor
    scale: Tensor | float
    """0-dim, on the device of a."""
    bias: Tensor | float
    """Likewise; 0 for CLIP."""
    kind: str
    """One of KINDS."""
    dtype: torch.dtype
    """Of all that is computed and of the loss: float64 if a or b is, else float32."""
    tile_rows: int
    """Rows of z at a time, 1 to B."""

    @property
    def whole(self) -> bool:
        """Whether z is one tile."""
        return self.tile_rows == self.a.shape[0]


Parts = tuple[Sequence[Tensor | float], Tensor | None, Tensor | None]


class Recorded(NamedTuple):
    """What a backend's forward leaves for the gradients, all of the compute type."""

    slopes: Sequence[Tensor | float]
    """dL/ds and dL/dbias."""
    statistics: Tensor | None
    """For CLIP in several tiles, (4, B). Of x = a b^T, or -a b^T for s < 0: of each row m, no less than any x
    of it, and sum exp(abs(s) (x - m)); then the same of each column."""
    gradient: Tensor | None
    """For one tile, (B, B): dL/d(a b^T). This and the statistics only where asked to keep what gradients of a
    and b need."""


class _Call:
    """The arguments that are no tensors, as given, and what the forward leaves for the backward."""

    __slots__ = ("backend", "bias", "forced", "kind", "recorded", "scale")

    def __init__(self, kind: str, scale: object, bias: object, forced: str | None) -> None:
        self.kind = kind
        self.scale = scale
        self.bias = bias
        self.forced = forced
        self.recorded: Recorded | None = None
        self.backend: ModuleType | None = None


# The tensors of a call: a, b, logit_scale, bias; the last two are None where they were given as numbers.
Tensors = tuple[Tensor | None, ...]


def contrastive_loss(
    a: Tensor,
    b: Tensor,
    logit_scale: Tensor | float,
    kind: str = "clip",
    bias: Tensor | float | None = None,
) -> Tensor:
    """Contrastive loss of B pairs of features: row i of ``a`` belongs to row i of ``b`` and to no other.

    With ``z = logit_scale * a @ b.T``, for "siglip" ``+ bias``:

    - "clip": the mean of the cross entropies of z's rows and of its columns, the classes being 0 to B - 1;
    - "siglip": ``-sum(logsigmoid(y * z)) / B`` with y = 1 on the diagonal and -1 elsewhere.

    Parameters
    ----------
    a, b : Tensor
        Features (B, D), which the caller has normalised; float32, bfloat16, float16 or float64, which may be
        mixed. B is at least 1.
    logit_scale : Tensor or float
        The factor itself, not its logarithm: a number or a 0-dim tensor of a floating dtype on the device of
        the features.
    kind : {"clip", "siglip"}
    bias : Tensor or float, optional
        Of "siglip" alone, likewise. None: 0.

    Returns
    -------
    Tensor
        0-dim, float32, or float64 if ``a`` or ``b`` is. All is computed in that type, under autocast too.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit each other; the message says what was expected and what came.
    UnsupportedError
        If a backend is forced that does not have this op for the device of the features.

    Notes
    -----
    Differentiable in a, b, logit_scale and bias. First derivatives run on the same backend; second ones go
    through the reference and hold B x B matrices. Up to 16 MiB (1 GiB on a GPU) the B x B similarities are
    made once; above, by tiles of that size, in the forward and again in the backward, so that memory grows
    with B alone. Results do not change with mmcore's number of threads. torch.mm makes the matrix products,
    with torch's threads and, of float32 on a GPU, with the precision that torch is set to.

    Sources: "clip", Radford et al. 2021, the symmetric InfoNCE of van den Oord et al. 2018; "siglip", Zhai et
    al. 2023. The gradients are derived in ``csrc/cpu/contrastive_kernels.inl``.

    Examples
    --------
    >>> import mmcore, torch
    >>> image = text = torch.eye(4)
    >>> mmcore.contrastive_loss(image, text, 10.0)
    tensor(0.0001)
    >>> mmcore.contrastive_loss(image, text, 10.0, kind="siglip", bias=-5.0)
    tensor(0.0269)
    """
    scale_tensor = logit_scale if isinstance(logit_scale, Tensor) else None
    bias_tensor = bias if isinstance(bias, Tensor) else None
    forced = None if torch.compiler.is_compiling() else forced_backend()
    call = _Call(
        kind,
        logit_scale if scale_tensor is None else None,
        bias if bias_tensor is None else None,
        forced,
    )
    result: Tensor = _OP(call, (a, b, scale_tensor, bias_tensor))
    return result


# ---- arguments


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    return repr(value) if isinstance(value, (int, float, str)) else type(value).__name__


def _check_features(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {_describe(value)}")
    if value.dtype not in _DTYPES:
        raise TypeError(f"{name}: expected a float32, bfloat16, float16 or float64 tensor, got {value.dtype}")
    if value.dim() != 2:
        raise ValueError(f"{name}: expected shape (B, D), got {tuple(value.shape)}")


def _check_number(name: str, tensor: Tensor | None, value: object, device: torch.device) -> Tensor | float:
    if tensor is None:
        if isinstance(value, bool) or not isinstance(value, (int, float, torch.SymFloat, torch.SymInt)):
            raise TypeError(f"{name}: expected a number or a 0-dim tensor, got {_describe(value)}")
        return value  # type: ignore[return-value]
    if tensor.dtype not in _DTYPES:
        raise TypeError(
            f"{name}: expected a float32, bfloat16, float16 or float64 tensor, got {tensor.dtype}"
        )
    if tensor.dim() != 0:
        raise ValueError(f"{name}: expected a 0-dim tensor, got shape {tuple(tensor.shape)}")
    if tensor.device != device:
        raise ValueError(f"{name}: expected a tensor on {device} as a is, got {tensor.device}")
    return tensor


def _check(call: _Call, tensors: Tensors) -> ContrastiveProblem:
    a, b, scale, bias = tensors
    _check_features("a", a)
    _check_features("b", b)
    assert a is not None
    assert b is not None
    if a.shape != b.shape:
        raise ValueError(f"b: expected shape {tuple(a.shape)} as a has, got {tuple(b.shape)}")
    if a.shape[0] == 0:
        raise ValueError("a: expected at least one pair, got a batch of 0")
    if b.device != a.device:
        raise ValueError(f"b: expected a tensor on {a.device} as a is, got {b.device}")
    if call.kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {call.kind!r}")
    checked_scale = _check_number("logit_scale", scale, call.scale, a.device)
    checked_bias: Tensor | float = 0.0
    if bias is not None or call.bias is not None:
        if call.kind == "clip":
            raise ValueError("bias: kind 'clip' has none, as it would not change the loss; kind 'siglip' has")
        checked_bias = _check_number("bias", bias, call.bias, a.device)
    return ContrastiveProblem(a, b, checked_scale, checked_bias, call.kind, _compute_dtype(a, b), 0)


def _compute_dtype(a: Tensor, b: Tensor) -> torch.dtype:
    return torch.float64 if a.dtype == torch.float64 or b.dtype == torch.float64 else torch.float32


def _tile_rows(a: Tensor, dtype: torch.dtype) -> int:
    batch = a.shape[0]
    tile_bytes = _GPU_TILE_BYTES if a.is_cuda else _TILE_BYTES
    return min(batch, max(1, tile_bytes // (batch * dtype.itemsize)))


def _tiled(problem: ContrastiveProblem) -> ContrastiveProblem:
    return problem._replace(tile_rows=_tile_rows(problem.a, problem.dtype))


def _checked_before(call: _Call, tensors: Tensors) -> ContrastiveProblem:
    """The problem of a call whose forward has been checked."""
    a, b, scale, bias = tensors
    assert a is not None
    assert b is not None
    dtype = _compute_dtype(a, b)
    # What was given as no tensor was found to be a number.
    factor: Any = call.scale if scale is None else scale
    shift: Any = (call.bias or 0.0) if bias is None else bias
    return ContrastiveProblem(a, b, factor, shift, call.kind, dtype, _tile_rows(a, dtype))


# ---- the ways to run it


def _backend(forced: str | None, device: torch.device) -> ModuleType:
    return load_backend(active_backend(device.type, _IMPLEMENTED, forced))


def _run(call: _Call, tensors: Tensors, keep: bool) -> tuple[Tensor, Recorded]:
    problem = _tiled(_check(call, tensors))
    call.backend = _backend(call.forced, problem.a.device)
    loss, parts = call.backend.contrastive_loss(problem, keep)
    return loss, Recorded(*parts)


def _forward(call: _Call, tensors: Tensors) -> Tensor:
    return _run(call, tensors, False)[0]


def _record(call: _Call, tensors: Tensors, needs: tuple[bool, ...]) -> Tensor:
    loss, call.recorded = _run(call, tensors, needs[0] or needs[1])
    return loss


def _gradients(
    call: _Call, tensors: Tensors, recorded: Recorded, grad: Tensor, needs: Sequence[bool]
) -> list[Tensor | None]:
    da = db = None
    if needs[0] or needs[1]:
        problem = _checked_before(call, tensors)
        backend = call.backend or _backend(call.forced, problem.a.device)
        da, db = backend.contrastive_loss_gradients(problem, recorded, grad, needs[:2])
    numbers = [
        (grad * slope).to(number.dtype) if need and number is not None else None
        for slope, number, need in zip(recorded.slopes, tensors[2:], needs[2:], strict=True)
    ]
    return [da, db, *numbers]


def _backward(
    call: _Call, tensors: Tensors, grads: Sequence[Tensor | None], needs: tuple[bool, ...]
) -> Sequence[Tensor | None]:
    (grad,) = grads
    if grad is None:
        return [None] * len(tensors)
    assert call.recorded is not None
    return _gradients(call, tensors, call.recorded, grad, needs)


def _reference(call: _Call, tensors: Tensors) -> Tensor:
    from mmcore.backends import reference

    return reference.contrastive_loss_value(_check(call, tensors))


# ---- as an op of torch.library


def _library(call: _Call, tensors: Tensors) -> Tensor:
    problem = _check(call, tensors)
    a, b, dtype = problem.a, problem.b, problem.dtype
    # numbers become tensors, which is what a graph holds
    scale, bias = (
        x if isinstance(x, Tensor) else torch.full((), x, dtype=dtype, device=a.device)
        for x in (problem.scale, problem.bias)
    )
    keep = torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)
    arguments = (a, b, scale, None if problem.kind == "clip" else bias, problem.kind, keep)
    result: Tensor = torch.ops.mmcore.contrastive_loss(*arguments)[0]
    return result


_OP = DifferentiableOp(_forward, _backward, _reference, _library, _record)

_ARGUMENTS = "Tensor a, Tensor b, Tensor logit_scale, Tensor? bias, str kind"
LIBRARY.define(  # type: ignore[no-untyped-call]
    f"contrastive_loss({_ARGUMENTS}, bool keep)"
    " -> (Tensor loss, Tensor slopes, Tensor statistics, Tensor gradient)"
)
LIBRARY.define(  # type: ignore[no-untyped-call]
    f"contrastive_loss_backward(Tensor grad, {_ARGUMENTS}, Tensor slopes, Tensor statistics, Tensor gradient,"
    " bool[] needs) -> Tensor[]"
)


def _library_forward(
    a: Tensor, b: Tensor, logit_scale: Tensor, bias: Tensor | None, kind: str, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    loss, recorded = _run(_Call(kind, None, None, forced_backend()), (a, b, logit_scale, bias), keep)
    slopes, statistics, gradient = recorded
    if not isinstance(slopes[0], Tensor):
        found = loss.new_tensor(slopes)
    else:
        found = torch.stack([slope for slope in slopes if isinstance(slope, Tensor)])
    return (
        loss,
        found,
        loss.new_empty(4, 0) if statistics is None else statistics,
        loss.new_empty(0, 0) if gradient is None else gradient,
    )


def _library_fake(
    a: Tensor, b: Tensor, logit_scale: Tensor, bias: Tensor | None, kind: str, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    problem = _check(_Call(kind, None, None, None), (a, b, logit_scale, bias))
    size = a.shape[0]
    # The extents are compared with the tile only where it matters: a graph for any batch cannot do it.
    whole = keep and _tiled(problem).whole
    columns = size if keep and not whole and kind == "clip" else 0
    kept = size if whole else 0
    loss, slopes, statistics, gradient = (
        a.new_empty(shape, dtype=problem.dtype) for shape in ((), (2,), (4, columns), (kept, kept))
    )
    return loss, slopes, statistics, gradient


def _library_backward(
    grad: Tensor,
    a: Tensor,
    b: Tensor,
    logit_scale: Tensor,
    bias: Tensor | None,
    kind: str,
    slopes: Tensor,
    statistics: Tensor,
    gradient: Tensor,
    needs: list[bool],
) -> list[Tensor]:
    call = _Call(kind, None, None, forced_backend())
    recorded = Recorded(
        slopes.unbind(), statistics if statistics.numel() else None, gradient if gradient.numel() else None
    )
    found = _gradients(call, (a, b, logit_scale, bias), recorded, grad, needs)
    return [a.new_empty(0) if g is None else g for g in found]


def _library_backward_fake(
    grad: Tensor,
    a: Tensor,
    b: Tensor,
    logit_scale: Tensor,
    bias: Tensor | None,
    kind: str,
    slopes: Tensor,
    statistics: Tensor,
    gradient: Tensor,
    needs: list[bool],
) -> list[Tensor]:
    return [
        t.new_empty(t.shape) if need and t is not None else a.new_empty(0)
        for t, need in zip((a, b, logit_scale, bias), needs, strict=True)
    ]


def _library_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, kind, _ = inputs
    _, *recorded = output
    ctx.mark_non_differentiable(*recorded)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *recorded)
    ctx.kind = kind
    ctx.needs = [t is not None and t.requires_grad for t in tensors]


def _library_gradient(ctx: Any, grad: Tensor | None, *others: Tensor | None) -> tuple[object, ...]:
    if grad is None:
        return (None,) * 6
    a, b, scale, bias, *recorded = ctx.saved_tensors
    found = torch.ops.mmcore.contrastive_loss_backward(
        grad, a, b, scale, bias, ctx.kind, *recorded, ctx.needs
    )
    return (*(g if need else None for g, need in zip(found, ctx.needs, strict=True)), None, None)


def _no_second_gradient(ctx: object, *grads: object) -> None:
    raise NotImplementedError(
        "contrastive_loss: second derivatives are not supported under torch.compile or torch.func;"
        " call the op outside of them"
    )


for _suffix, _function in (("", _library_forward), ("_backward", _library_backward)):
    LIBRARY.impl(  # type: ignore[no-untyped-call]
        f"contrastive_loss{_suffix}", _function, "CompositeExplicitAutograd"
    )
torch.library.register_fake("mmcore::contrastive_loss", _library_fake, lib=LIBRARY)
torch.library.register_fake("mmcore::contrastive_loss_backward", _library_backward_fake, lib=LIBRARY)
torch.library.register_autograd(
    "mmcore::contrastive_loss", _library_gradient, setup_context=_library_setup, lib=LIBRARY
)
torch.library.register_autograd("mmcore::contrastive_loss_backward", _no_second_gradient, lib=LIBRARY)
