"""The fusion op of the compiled core: tensors to addresses, and memory for what it writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmcore import _core
from mmcore.backends.cpu.memory import empty
from mmcore.threads import get_num_threads

if TYPE_CHECKING:
    from mmcore.ops.fusion import FusionOptions

__all__ = ["weighted_fusion", "weighted_fusion_backward"]

# The enumerations of csrc/include/mmcore/{dtype,fusion}.h
_DTYPE = {torch.float16: 1, torch.bfloat16: 2, torch.float32: 3, torch.float64: 4}
_MODE = {"sum": 0, "softmax": 1, "normalized": 2}
_NORM = {None: 0, "layer_norm": 1, "rms_norm": 2, "l2": 3}
_ALIGN = {"none": 0, "nearest": 1, "linear": 2, "mean": 3}

_NO_MASK = (0, 0, 0, 0)
_NO_NORM = (0, 0.0, 0, 0)

# Below this many elements one thread is used in any case, and asking how many there may be costs as much as
# the op.
_SMALL = 1 << 16


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


class _Call:
    """The arguments of both directions, and the tensors that must outlive them."""

    __slots__ = ("arguments", "compute", "kept", "threads")

    def __init__(
        self,
        features: Sequence[Tensor],
        weights: Tensor,
        mask: Tensor | None,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        options: FusionOptions,
    ) -> None:
        features = [x.resolve_neg() for x in features]  # a view that changes the sign has not changed memory
        weights = weights.resolve_neg()
        compute = torch.float32
        if options.dtype == torch.float64 or weights.dtype == torch.float64:
            # Float64 is for checking: one type for everything keeps the kernels few.
            compute = torch.float64
            features = [x.to(compute) for x in features]
        batch, _, depth = features[0].shape
        length = options.length
        kept: list[Tensor] = []
        described = []
        elements = 0
        for x, align in zip(features, options.align, strict=True):
            stride = x.stride()
            if stride[2] != 1 and depth > 1:
                x = x.contiguous()
                stride = x.stride()
            kept.append(x)
            steps = x.shape[1]
            elements += steps
            described.append((x.data_ptr(), _DTYPE[x.dtype], steps, stride[0], stride[1], _ALIGN[align]))
        dims = weights.dim()
        if dims == 4:
            if compute == torch.float64:
                weights = weights.to(compute)
            if weights.stride(3) != 1 and depth > 1:
                weights = weights.contiguous()
            batch_stride, step_stride, modality_stride, _ = weights.stride()
            gates = (weights.data_ptr(), _DTYPE[weights.dtype], 3, batch_stride, step_stride, modality_stride)
        else:
            if weights.dtype != compute:
                weights = weights.to(compute)
            if not weights.is_contiguous():
                weights = weights.contiguous()
            gates = (weights.data_ptr(), 3, dims - 1, 0, 0, 0)
        kept.append(weights)
        described_mask = _NO_MASK
        if mask is not None:
            stride = mask.stride()
            kept.append(mask)
            described_mask = (mask.data_ptr(), stride[0], 0 if len(stride) == 2 else stride[1], stride[-1])
        norm: tuple[int, float, int, int] = _NO_NORM
        if options.norm is not None or norm_weight is not None or norm_bias is not None:
            scale = shift = 0
            if norm_weight is not None or norm_bias is not None:
                # The core takes both or neither.
                gamma, beta = (
                    torch.full((len(features), depth), fill, dtype=compute)
                    if t is None
                    else t.to(compute).resolve_neg().contiguous()
                    for t, fill in ((norm_weight, 1.0), (norm_bias, 0.0))
                )
                kept += (gamma, beta)
                scale, shift = gamma.data_ptr(), beta.data_ptr()
            norm = (_NORM[options.norm], options.eps, scale, shift)
        out_dtype = compute if compute == torch.float64 else options.dtype
        self.arguments = (
            (batch, length, depth),
            tuple(described),
            gates,
            described_mask,
            norm,
            _MODE[options.mode],
            _DTYPE[compute],
            _DTYPE[out_dtype],
        )
        self.compute = compute
        self.kept = kept
        self.threads = 1 if batch * (elements + length) * depth < _SMALL else get_num_threads()


def weighted_fusion(
    features: Sequence[Tensor],
    weights: Tensor,
    mask: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    probe: Tensor | None,
    options: FusionOptions,
) -> Tensor:
    """Fused features (B, T, D); see ``mmcore.backends.reference.weighted_fusion``."""
    call = _Call(features, weights, mask, norm_weight, norm_bias, options)
    first = features[0]
    out_dtype = torch.float64 if call.compute == torch.float64 else options.dtype
    out = empty((first.shape[0], options.length, first.shape[2]), out_dtype)
    _core.weighted_fusion(*call.arguments, out.data_ptr(), call.threads)
    return out if out_dtype == options.dtype else out.to(options.dtype)


def weighted_fusion_backward(
    grad: Tensor,
    features: Sequence[Tensor],
    weights: Tensor,
    mask: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    probe: Tensor | None,
    options: FusionOptions,
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of weights, norm_weight, norm_bias, probe and each feature; None where ``needs`` is False."""
    call = _Call(features, weights, mask, norm_weight, norm_bias, options)
    compute = call.compute
    double = compute == torch.float64
    grad = grad.resolve_neg()
    if double:
        grad = grad.to(compute)
    stride = grad.stride()
    depth = grad.shape[2]
    if stride[2] != 1 and depth > 1:
        grad = grad.contiguous()
        stride = grad.stride()
    dweights = dnorm_weight = dnorm_bias = part = None
    if needs[0]:
        # Small gates are summed in the compute type; those per channel are written in their own.
        own = weights.dtype if weights.dim() == 4 and not double else compute
        dweights = empty(tuple(weights.shape), own)
    if needs[1] or needs[2]:
        dnorm_weight = torch.empty((len(features), depth), dtype=compute)
        dnorm_bias = torch.empty((len(features), depth), dtype=compute)
    if needs[3]:
        part = torch.empty((grad.shape[0], len(features)), dtype=compute)
    dxs = [
        empty(tuple(x.shape), compute if double else x.dtype) if need else None
        for x, need in zip(features, needs[4:], strict=True)
    ]
    _core.weighted_fusion_backward(
        *call.arguments,
        (grad.data_ptr(), stride[0], stride[1]),
        tuple([_address(d) for d in dxs]),
        (_address(dweights), _address(dnorm_weight), _address(dnorm_bias), _address(part)),
        call.threads,
    )
    if dweights is not None and dweights.dtype != weights.dtype:
        dweights = dweights.to(weights.dtype)
    if dnorm_weight is not None:
        dnorm_weight = dnorm_weight.to(norm_weight.dtype) if needs[1] and norm_weight is not None else None
    if dnorm_bias is not None:
        dnorm_bias = dnorm_bias.to(norm_bias.dtype) if needs[2] and norm_bias is not None else None
    if part is not None and probe is not None:
        part = part.to(probe.dtype)
    if double:
        dxs = [d if d is None else d.to(x.dtype) for d, x in zip(dxs, features, strict=True)]
    return [dweights, dnorm_weight, dnorm_bias, part, *dxs]
