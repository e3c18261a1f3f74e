"""The fusion op: features of several modalities become one, forward and backward in one pass each.

    F[b, t] = sum_m w_m[b, t] * (A_m norm_m(x_m[b]))[t]

w are weights, or the softmax or the normalised form of them over the modalities that are there; A_m brings a
stream of another rate to F's steps; norm_m is LayerNorm, RMSNorm or L2 over the channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmcore import _core
from mmcore.backends import active_backend, forced_backend, load_backend, replay
from mmcore.ops._dispatch import DifferentiableOp
from mmcore.ops._library import LIBRARY
from mmcore.threads import get_num_threads

__all__ = ["MAX_MODALITIES", "FusionOptions", "weighted_fusion"]

MAX_MODALITIES = 16

_IMPLEMENTED = ("reference", "cpu", "triton")

MODES = ("sum", "softmax", "normalized")
NORMS = ("layer_norm", "rms_norm", "l2")
ALIGNMENTS = ("nearest", "linear", "mean")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class FusionOptions(NamedTuple):
    """What a call of the op does, apart from its tensors; all of it checked."""

    mode: str
    """One of MODES."""
    norm: str | None
    align: tuple[str, ...]
    """Per modality: "none", or one of ALIGNMENTS."""
    eps: float
    length: int
    """T, steps of the result."""
    dtype: torch.dtype
    """Of the result."""
    flat: bool
    """Features and result are (B, D): T is 1, and weights, mask and tensors lack the step dimension."""


# The arguments of weighted_fusion that are no tensors, as they were given: mode, norm, align, eps, length.
_Arguments = tuple[str, str | None, str | Sequence[str | None] | None, float, int | None]

# ... and what mmcore.backend forced when the op was called, for its backward too.
_Call = tuple[_Arguments, str | None]


def weighted_fusion(
    features: Sequence[Tensor],
    weights: Tensor | None = None,
    *,
    mode: str = "sum",
    mask: Tensor | None = None,
    norm: str | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    align: str | Sequence[str | None] | None = None,
    eps: float = 1e-5,
    length: int | None = None,
    probe: Tensor | None = None,
) -> Tensor:
    """Fuse the features of M modalities: a weighted sum, normalised, aligned and masked in the same pass.

    ``F[b, t] = sum_m w_m[b, t] * (A_m norm_m(x_m[b]))[t]``

    Parameters
    ----------
    features : sequence of Tensor
        M = 1 to 16 tensors of shape (B, T_m, D), or all (B, D); float32, bfloat16, float16 or float64,
        which may be mixed. Sums are made in float32 (float64 if any feature or the weights are).
    weights : Tensor, optional
        Gates g, or logits for mode "softmax": shape (M,), (B, M), (B, T, M) or (B, T, M, D); for (B, D)
        features (M,), (B, M) or (B, M, D). None: ones.
    mode : {"sum", "softmax", "normalized"}
        With k_m = 1 where modality m is there, else 0: w_m = k_m g_m; w_m = k_m exp(g_m) / sum_j k_j
        exp(g_j); w_m = k_m g_m / sum_j k_j g_j, for positive gates (a sum of 0 divides by 0).
    mask : Tensor, optional
        bool, True where the modality is there: (B, M) or (B, T, M), steps being those of the result. What is
        missing is never read into the sum, so that NaN in it cannot leak; where all is missing the result and
        all gradients are 0.
    norm : {None, "layer_norm", "rms_norm", "l2"}
        Over D, before alignment: ``(x - mean) / sqrt(var + eps)``, ``x / sqrt(mean(x**2) + eps)`` or
        ``x / max(|x|, eps)``.
    norm_weight, norm_bias : Tensor, optional
        Scale and shift after the norm, (M, D), or (D,) for all modalities.
    align : str or sequence of (str or None), optional
        How a stream of T_m steps becomes one of T: "nearest" or "linear" at the centres of the steps
        (``interpolate`` with "nearest-exact", and "linear" with ``align_corners=False``), "mean" over the
        steps touched (``adaptive_avg_pool1d``); one for all, or one for each. None: T_m must be T.
    eps : float
        Of the norm.
    length : int, optional
        T. None: that of the weights or the mask if they have steps, else of the first feature.
    probe : Tensor, optional
        (B, M), float32 or float64. Its value does not count; its gradient is each modality's part in the loss
        to first order, ``sum_{t,d} w_m a_m dL/dF``.

    Returns
    -------
    Tensor
        (B, T, D), or (B, D); contiguous; of the features' dtype, the widest by ``torch.promote_types``. Under
        autocast it behaves like ``torch.stack``: no operand is cast.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit each other; the message says what was expected and what came.
    UnsupportedError
        If the op has no backend for the features' device here.

    Notes
    -----
    Differentiable in features, weights, norm_weight and norm_bias. First derivatives run on the same backend;
    second ones go through the reference. Results do not change from run to run, nor with the number of
    threads.

    Sources: gated sums, Arevalo et al. 2017 (GMU); layer mixing, Peters et al. 2018 (ELMo); LayerNorm, Ba
    et al. 2016; RMSNorm, Zhang and Sennrich 2019. The gradients are derived in
    ``csrc/cpu/fusion_kernels.inl``.

    Examples
    --------
    >>> import mmcore, torch
    >>> image, sound = torch.ones(1, 2, 4), torch.full((1, 2, 4), 3.0)
    >>> here = torch.tensor([[[True, True], [True, False]]])  # no sound at the second step
    >>> mmcore.weighted_fusion([image, sound], mode="normalized", mask=here)[0, :, 0]
    tensor([2., 1.])
    """
    if type(features) not in (list, tuple) and not _is_sequence(features):
        raise TypeError(
            "features: expected a sequence of tensors, one per modality, got"
            f" {_describe(features)}; a stacked tensor can be taken apart with unbind()"
        )
    backend = None if torch.compiler.is_compiling() else forced_backend()
    call = (mode, norm, align, eps, length), backend
    result: Tensor = _OP(call, (weights, norm_weight, norm_bias, probe, mask, *features))
    return result


# The tensors of a call, as the dispatcher and the core take them:
# weights, norm_weight, norm_bias, probe, mask, *features
_FEATURES = 5

Tensors = tuple[Tensor | None, ...]


class _Checked(NamedTuple):
    options: FusionOptions
    weights: Tensor
    norm_weight: Tensor | None
    norm_bias: Tensor | None
    probe: Tensor | None
    mask: Tensor | None
    features: list[Tensor]


def _check(arguments: _Arguments, tensors: Tensors) -> _Checked:
    """Refuse what does not fit; weights of ones for None, norm_weight and norm_bias (M, D)."""
    mode, norm, align, eps, length = arguments
    weights, norm_weight, norm_bias, probe, mask, *rest = tensors
    features: list[Tensor] = rest  # type: ignore[assignment]
    count = len(features)
    if not 1 <= count <= MAX_MODALITIES:
        raise ValueError(f"features: expected 1 to {MAX_MODALITIES} modalities, got {count}")
    first = features[0]
    if not isinstance(first, Tensor):
        raise TypeError(f"features[0]: expected a tensor, got {_describe(first)}")
    dims, device, dtype = first.dim(), first.device, first.dtype
    if dims not in (2, 3):
        raise ValueError(f"features[0]: expected shape (B, T, D) or (B, D), got {tuple(first.shape)}")
    flat = dims == 2
    batch, depth = first.shape[0], first.shape[-1]
    for m, x in enumerate(features):
        if not isinstance(x, Tensor):
            raise TypeError(f"features[{m}]: expected a tensor, got {_describe(x)}")
        shape = x.shape
        if len(shape) != dims or shape[0] != batch or shape[-1] != depth:
            wanted = f"({batch}, {depth})" if flat else f"({batch}, T, {depth})"
            raise ValueError(f"features[{m}]: expected shape {wanted} as features[0] has, got {tuple(shape)}")
        if x.dtype not in _DTYPES:
            raise TypeError(
                f"features[{m}]: expected a float32, bfloat16, float16 or float64 tensor, got {x.dtype}"
            )
        if x.device != device:
            raise ValueError(
                f"features[{m}]: expected a tensor on {device} as features[0] is, got {x.device}"
            )
        if x.dtype != dtype:
            dtype = torch.promote_types(dtype, x.dtype)
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
    if norm is not None and norm not in NORMS:
        raise ValueError(f"norm: expected one of {', '.join(NORMS)} or None, got {norm!r}")
    if not (isinstance(eps, (float, int)) and 0 <= eps < math.inf):
        raise ValueError(f"eps: expected a number of 0 or more, got {eps!r}")
    if weights is None:
        weights = replay.ones((count,), torch.float32, device)

    # T: said, or that of whatever has the result's steps
    if flat:
        steps = 1
        if length not in (None, 1):
            raise ValueError(f"length: (B, D) features have one step, got {length!r}")
    elif length is not None:
        if not isinstance(length, (int, torch.SymInt)) or length < 0:
            raise ValueError(f"length: expected an int of 0 or more, got {length!r}")
        steps = length
    elif isinstance(weights, Tensor) and weights.dim() >= 3:
        steps = weights.shape[1]
    elif isinstance(mask, Tensor) and mask.dim() == 3:
        steps = mask.shape[1]
    else:
        steps = first.shape[1]

    _check_weights(weights, batch, steps, count, depth, flat, device)
    if mask is not None:
        _check_mask(mask, batch, steps, count, flat, device)
    if norm_weight is not None:
        norm_weight = _check_affine("norm_weight", norm_weight, count, depth, device)
    if norm_bias is not None:
        norm_bias = _check_affine("norm_bias", norm_bias, count, depth, device)
    if probe is not None:
        _check_tensor("probe", probe, device)
        if probe.shape != (batch, count) or probe.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"probe: expected a float32 or float64 tensor of shape {(batch, count)},"
                f" got {_describe(probe)}"
            )
    aligned = _NOT_ALIGNED[count] if align is None else _check_align(align, count)
    if not flat:
        for m, x in enumerate(features):
            if aligned[m] == "none":
                if x.shape[1] != steps:
                    raise ValueError(
                        f"features[{m}]: has {x.shape[1]} steps where the result has {steps};"
                        f" align= ({', '.join(ALIGNMENTS)}) brings it there"
                    )
            elif x.shape[1] == 0 and steps != 0:
                raise ValueError(f"features[{m}]: has no steps to align to {steps}")

    options = FusionOptions(mode, norm, aligned, float(eps), steps, dtype, flat)
    return _Checked(options, weights, norm_weight, norm_bias, probe, mask, features)


def _is_sequence(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, Tensor)


_NOT_ALIGNED = [("none",) * count for count in range(MAX_MODALITIES + 1)]


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    return type(value).__name__


def _check_tensor(name: str, value: object, device: torch.device) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {_describe(value)}")
    if value.device != device:
        raise ValueError(f"{name}: expected a tensor on {device} as the features are, got {value.device}")


def _check_weights(
    weights: Tensor, batch: int, steps: int, count: int, depth: int, flat: bool, device: torch.device
) -> None:
    _check_tensor("weights", weights, device)
    if weights.dtype not in _DTYPES:
        raise TypeError(
            f"weights: expected a float32, bfloat16, float16 or float64 tensor, got {weights.dtype}"
        )
    shape = weights.shape
    full: tuple[int, ...] = (batch, count, depth) if flat else (batch, steps, count, depth)
    dims = len(shape)
    if dims == 1:
        fits = shape[0] == count
    elif dims == 2:
        fits = shape[0] == batch and shape[1] == count
    elif dims == 3:
        fits = shape == (full if flat else full[:3])
    else:
        fits = dims == len(full) and shape == full
    if not fits:
        kinds = [(count,), (batch, count)] + ([] if flat else [full[:3]]) + [full]
        raise ValueError(
            f"weights: {count} modalities need shape {' or '.join(map(str, kinds))}, got {tuple(shape)}"
        )


def _check_mask(mask: Tensor, batch: int, steps: int, count: int, flat: bool, device: torch.device) -> None:
    _check_tensor("mask", mask, device)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask: expected a bool tensor, True where a modality is there, got {mask.dtype}")
    shape = mask.shape
    if shape != (batch, count) and (flat or shape != (batch, steps, count)):
        kinds = f"{(batch, count)}" if flat else f"{(batch, count)} or {(batch, steps, count)}"
        raise ValueError(f"mask: {count} modalities need shape {kinds}, got {tuple(shape)}")


def _check_affine(name: str, value: Tensor, count: int, depth: int, device: torch.device) -> Tensor:
    _check_tensor(name, value, device)
    if value.dtype not in _DTYPES:
        raise TypeError(f"{name}: expected a float32, bfloat16, float16 or float64 tensor, got {value.dtype}")
    if value.shape == (count, depth):
        return value
    if value.shape == (depth,):
        return value.expand(count, depth)
    raise ValueError(f"{name}: expected shape {(count, depth)} or {(depth,)}, got {tuple(value.shape)}")


def _check_align(align: str | Sequence[str | None], count: int) -> tuple[str, ...]:
    if not isinstance(align, (str, Sequence)):
        raise TypeError(f"align: expected a str or a sequence, got {align!r}")
    kinds = (align,) * count if isinstance(align, str) else tuple(align)
    if len(kinds) != count:
        raise ValueError(
            f"align: expected one for all or one for each of {count} modalities, got {len(kinds)}"
        )
    for kind in kinds:
        if kind is not None and kind not in ALIGNMENTS:
            raise ValueError(f"align: expected one of {', '.join(ALIGNMENTS)} or None, got {kind!r}")
    return tuple(kind or "none" for kind in kinds)


def _with_steps(
    options: FusionOptions, weights: Tensor, features: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """(B, D) features as (B, 1, D), and the weights likewise."""
    if not options.flat:
        return weights, list(features)
    return weights.unsqueeze(1) if weights.dim() == 3 else weights, [x.unsqueeze(1) for x in features]


def _backend(forced: str | None, features: Sequence[Tensor]) -> ModuleType:
    return load_backend(active_backend(features[0].device.type, _IMPLEMENTED, forced))


def _forward(call: _Call, tensors: Tensors) -> Tensor:
    arguments, forced = call
    # Compiling: only what torch.compile retries piece by piece after an error, to be refused by _check.
    if not torch.compiler.is_compiling():
        if _replays(call, tensors):
            made: Any = replay.run(_kind(call), tensors, lambda: (_computed(call, tensors),))
            return made[0]  # type: ignore[no-any-return]
        if forced is None and _TENSORS_READY:
            out = _core.fusion_forward(tensors, *arguments, get_num_threads)
            if out is not None:
                return out
    return _computed(call, tensors)


def _replays(call: _Call, tensors: Tensors) -> bool:
    """Whether the call is one of launches that can be done again."""
    if len(tensors) <= _FEATURES or not replay.serves(tensors[_FEATURES]):
        return False
    return active_backend("cuda", _IMPLEMENTED, call[1]) == "triton"


def _kind(call: _Call, needs: tuple[bool, ...] | None = None) -> tuple[Any, ...]:
    """What ``replay.run`` has to know of the call beside its tensors."""
    mode, norm, align, eps, length = call[0]
    kinds = tuple(align) if type(align) is list else align
    return "weighted_fusion", mode, norm, kinds, eps, length, type(length), needs


def _computed(call: _Call, tensors: Tensors) -> Tensor:
    c = _check(call[0], tensors)
    weights, xs = _with_steps(c.options, c.weights, c.features)
    out = _backend(call[1], xs).weighted_fusion(
        xs, weights, c.mask, c.norm_weight, c.norm_bias, c.probe, c.options
    )
    result: Tensor = out.squeeze(1) if c.options.flat else out
    return result


def _backward(
    call: _Call, tensors: Tensors, grads: Sequence[Tensor | None], needs: tuple[bool, ...]
) -> Sequence[Tensor | None]:
    grad = grads[0]
    assert grad is not None
    arguments, forced = call
    if _replays(call, tensors):
        found: Sequence[Tensor | None] = replay.run(
            _kind(call, needs), (grad, *tensors), lambda: _gradients(call, tensors, grad, needs)
        )
    else:
        if forced is None and _TENSORS_READY:
            of_core = _core.fusion_backward(grad, needs, tensors, *arguments, get_num_threads)
            if of_core is not None:
                return of_core
        found = _gradients(call, tensors, grad, needs)
    # One norm_weight for all modalities.
    return [
        g.sum(0) if g is not None and t is not None and g.dim() != t.dim() else g
        for g, t in zip(found, tensors, strict=True)
    ]


def _gradients(call: _Call, tensors: Tensors, grad: Tensor, needs: tuple[bool, ...]) -> list[Tensor | None]:
    """Gradients in the tensors' shapes, or for norm_weight and norm_bias (M, D)."""
    c = _check(call[0], tensors)
    weights, xs = _with_steps(c.options, c.weights, c.features)
    wanted = [need and t is not None for need, t in zip(needs, tensors, strict=True)]
    result: list[Tensor | None] = _backend(call[1], xs).weighted_fusion_backward(
        grad.unsqueeze(1) if c.options.flat else grad,
        xs,
        weights,
        c.mask,
        c.norm_weight,
        c.norm_bias,
        c.probe,
        c.options,
        [*wanted[: _FEATURES - 1], *wanted[_FEATURES:]],
    )
    return [
        g.squeeze(1) if g is not None and t is not None and g.dim() == t.dim() + 1 > 2 else g
        for g, t in zip([*result[:4], None, *result[4:]], tensors, strict=True)
    ]


def _reference(call: _Call, tensors: Tensors) -> Tensor:
    from mmcore.backends import reference

    c = _check(call[0], tensors)
    weights, xs = _with_steps(c.options, c.weights, c.features)
    out = reference.weighted_fusion(xs, weights, c.mask, c.norm_weight, c.norm_bias, c.probe, c.options)
    return out.squeeze(1) if c.options.flat else out


def _library(call: _Call, tensors: Tensors) -> Tensor:
    c = _check(call[0], tensors)
    o = c.options
    result: Tensor = torch.ops.mmcore.weighted_fusion(
        c.features,
        c.weights,
        c.norm_weight,
        c.norm_bias,
        c.probe,
        c.mask,
        o.mode,
        o.norm,
        list(o.align),
        o.eps,
        o.length,
    )
    return result


_TENSORS_READY = _core.tensors_ready()
_OP = DifferentiableOp(_forward, _backward, _reference, _library)

_ARGUMENTS = (
    "Tensor[] features, Tensor weights, Tensor? norm_weight, Tensor? norm_bias, Tensor? probe, Tensor? mask,"
    " str mode, str? norm, str[] align, float eps, SymInt length"
)
LIBRARY.define(f"weighted_fusion({_ARGUMENTS}) -> Tensor")  # type: ignore[no-untyped-call]
LIBRARY.define(  # type: ignore[no-untyped-call]
    f"weighted_fusion_backward(Tensor grad, {_ARGUMENTS}, bool[] needs) -> Tensor[]"
)


def _library_call(mode: str, norm: str | None, align: Sequence[str], eps: float, length: int) -> _Call:
    kinds = [None if kind == "none" else kind for kind in align]
    return (mode, norm, kinds, eps, length), forced_backend()


def _library_forward(
    features: list[Tensor],
    weights: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    probe: Tensor | None,
    mask: Tensor | None,
    mode: str,
    norm: str | None,
    align: list[str],
    eps: float,
    length: int,
) -> Tensor:
    call = _library_call(mode, norm, align, eps, length)
    return _forward(call, (weights, norm_weight, norm_bias, probe, mask, *features))


def _library_fake(features: list[Tensor], *arguments: object) -> Tensor:
    length = arguments[9]
    dtype = features[0].dtype
    for x in features[1:]:
        dtype = torch.promote_types(dtype, x.dtype)
    first = features[0]
    shape = first.shape if first.dim() == 2 else (first.shape[0], length, first.shape[2])
    return first.new_empty(shape, dtype=dtype)  # type: ignore[arg-type]


def _library_backward(
    grad: Tensor,
    features: list[Tensor],
    weights: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    probe: Tensor | None,
    mask: Tensor | None,
    mode: str,
    norm: str | None,
    align: list[str],
    eps: float,
    length: int,
    needs: list[bool],
) -> list[Tensor]:
    call = _library_call(mode, norm, align, eps, length)
    tensors = (weights, norm_weight, norm_bias, probe, mask, *features)
    grads = _backward(call, tensors, [grad], tuple(needs))
    return [g if g is not None else weights.new_empty(0) for g in grads]


def _library_backward_fake(
    grad: Tensor,
    features: list[Tensor],
    weights: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    probe: Tensor | None,
    mask: Tensor | None,
    *rest: object,
) -> list[Tensor]:
    tensors = (weights, norm_weight, norm_bias, probe, mask, *features)
    needs: list[bool] = rest[-1]  # type: ignore[assignment]
    return [
        t.new_empty(t.shape) if need and t is not None else weights.new_empty(0)
        for t, need in zip(tensors, needs, strict=True)
    ]


def _library_setup(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    features, weights, norm_weight, norm_bias, probe, mask, *rest = inputs
    tensors = (weights, norm_weight, norm_bias, probe, mask, *features)
    ctx.save_for_backward(*tensors)
    ctx.rest = rest
    ctx.needs = [t is not None and t.requires_grad for t in tensors]


def _library_gradient(ctx: Any, grad: Tensor) -> tuple[object, ...]:
    weights, norm_weight, norm_bias, probe, mask, *features = ctx.saved_tensors
    found = torch.ops.mmcore.weighted_fusion_backward(
        grad, features, weights, norm_weight, norm_bias, probe, mask, *ctx.rest, ctx.needs
    )
    dw, dnw, dnb, dp, _, *dxs = [g if need else None for g, need in zip(found, ctx.needs, strict=True)]
    return (list(dxs), dw, dnw, dnb, dp, None, *(None,) * len(ctx.rest))


def _no_second_gradient(ctx: object, *grads: object) -> None:
    raise NotImplementedError(
        "weighted_fusion: second derivatives are not supported under torch.compile or torch.func;"
        " call the op outside of them"
    )


for _name, _function in (("", _library_forward), ("_backward", _library_backward)):
    LIBRARY.impl(  # type: ignore[no-untyped-call]
        f"weighted_fusion{_name}", _function, "CompositeExplicitAutograd"
    )
torch.library.register_fake("mmcore::weighted_fusion", _library_fake, lib=LIBRARY)
torch.library.register_fake("mmcore::weighted_fusion_backward", _library_backward_fake, lib=LIBRARY)
torch.library.register_autograd(
    "mmcore::weighted_fusion", _library_gradient, setup_context=_library_setup, lib=LIBRARY
)
torch.library.register_autograd("mmcore::weighted_fusion_backward", _no_second_gradient, lib=LIBRARY)
