"""How far a backend may be from the float64 oracle, and why."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore.backends.reference import apply_layout
from mmcore.ops.frame_transform import FrameTransform

FUSED_LEVELS = 1e-3
"""accuracy="fused": of one level (0-255), before the cast. float32 sums of some hundred taps whose weights
sum to 1 stay below 1e-4 of a level; ten times that leaves room for any order of summation and is still
500 times finer than a rounding to bytes."""

FFMPEG_LEVELS = 3
"""FFmpeg's 8-bit yuv420p to RGB uses tables: within 2.9 levels of an exact conversion, chroma replicated."""

FFMPEG_444_LEVELS = 1
"""FFmpeg's 4:4:4 to RGB: within 0.5 of the exact value, so within 1 of the rounded one."""

NATURAL_PSNR_DB = 55.0
"""Filtering in YUV against clamping RGB at full size first: they differ only where colours clip."""


def assert_frames_close(result: Tensor, oracle: Tensor, transform: FrameTransform) -> None:
    """Compare with the oracle's unrounded float64 values of shape (T, 3, h, w), before the layout.

    ``result`` may be any cast of a value within ``FUSED_LEVELS`` of the oracle: casts are monotonic, so it
    must lie between the casts of the two ends. One rule for float32, the half formats and bytes.
    """
    slack = torch.tensor(transform.affine[0], dtype=torch.float64).abs()[:, None, None] * FUSED_LEVELS
    low, high = oracle - slack, oracle + slack
    if transform.dtype == torch.uint8:
        low, high = low.clamp(0, 255).round(), high.clamp(0, 255).round()  # half to even
    low, high, middle = (apply_layout(x, transform.layout) for x in (low, high, oracle))
    assert result.shape == middle.shape, (result.shape, middle.shape)
    assert result.dtype == transform.dtype, (result.dtype, transform.dtype)
    wrong = ~((result >= low.to(result.dtype)) & (result <= high.to(result.dtype)))  # a NaN is wrong
    if wrong.any():
        first = tuple(int(i) for i in wrong.nonzero()[0])
        per_level = apply_layout((slack / FUSED_LEVELS).expand_as(oracle), transform.layout)
        levels = ((result.double() - middle).abs() / per_level).max().item()
        raise AssertionError(
            f"{int(wrong.sum())} of {result.numel()} values are off, by up to {levels:.4g} levels; first at "
            f"{first}: {result[first].item()!r}, oracle {middle[first].item()!r}"
        )


FUSION_TORCH = 2.0
"""Of torch's own error: a kernel sums in another order, so its roundings are another draw of that kind."""

FUSION_ROUNDINGS = 4.0
"""In units of eps times a value's magnitude (the sum of the absolute values of all that is added up in it).
The longest way from an operand to a result passes some 16 operations (mean, difference, square, root,
division, scale, shift, tap; difference, exp, sum, division, product, sum), each good to half a unit: as a
random walk 2 units. Twice that; torch's float32 stays within 3.7 over the whole table."""

FUSION_SUM = 0.25
"""A sum of n terms, made by 8 accumulators or more, takes n / 8 roundings of half a unit one after another,
each of a part of the sum that grows from nothing to all of it: as a random walk sqrt(n / 8 / 3) / 2, a tenth
of sqrt(n). Two and a half times that. An accumulator in a half format is a thousand times beyond it."""


def assert_fusion_close(
    name: str,
    result: Tensor,
    oracle: Tensor,
    torch_result: Tensor,
    magnitude: Tensor,
    terms: int,
    casts: int = 1,
) -> None:
    """Compare a result or a gradient of the fusion op with the float64 oracle.

    Parameters
    ----------
    result : Tensor
        In its own dtype: any cast of a value within the slack of the oracle. Casts are monotonic, so it must
        lie between the casts of the two ends, and a half format gets no slack for its own rounding.
    oracle, magnitude : Tensor
        float64; the magnitude is the same formula with every term's absolute value.
    torch_result : Tensor
        The natural torch formula in the dtype that the op computes in: float32, or float64.
    terms : int
        How many are summed in one value.
    casts : int
        To the result's dtype; each but the last adds half a unit of it.

    Notes
    -----
    ``slack = (2 * torch's error + (4 + sqrt(terms) / 4) * eps) * magnitude``, torch's error being its largest
    over all values relative to their magnitude, and itself within the second part. Where all that is added up
    is 0, the result must be 0.
    """
    _assert_within(
        name,
        result,
        oracle,
        torch_result,
        magnitude,
        casts,
        FUSION_TORCH,
        FUSION_ROUNDINGS + FUSION_SUM * terms**0.5,
    )


LOSS_TORCH = 2.0
"""Of torch's own error, as :data:`FUSION_TORCH`."""

LOSS_ROUNDINGS = 3.0
"""In units of eps times a value's magnitude. From a logit to its gradient it is some 16 operations (shift,
scale of exp's argument, polynomial, sum, division, class weight, smoothing, difference, reduction, two
weights, exp of a log variance, its product), each good to half a unit: as a random walk 2 units. One and a
half times that; torch's float32 stays within half of it over the whole table. What grows with an argument, as
exp's error does with the distance from the largest logit, is in the magnitude. In float32 nothing is there
for logits being large: a loss that is not shifted by the largest one is found."""

LOSS_SUM = 0.2
"""For sqrt(n) of n summed terms: twice the tenth of :data:`FUSION_SUM`."""


def assert_losses_close(
    name: str,
    result: Tensor,
    oracle: Tensor,
    torch_result: Tensor,
    magnitude: Tensor,
    terms: int,
    casts: int = 1,
) -> None:
    """Compare a total, a loss or a gradient of the losses op with the float64 oracle.

    Parameters and the rule are those of :func:`assert_fusion_close`, with bounds of its own: ``slack = (2 *
    torch's error + (3 + sqrt(terms) / 5) * eps) * magnitude``. Where all that is added up is 0, the result
    must be 0: losses and gradients without a label.
    """
    _assert_within(
        name,
        result,
        oracle,
        torch_result,
        magnitude,
        casts,
        LOSS_TORCH,
        LOSS_ROUNDINGS + LOSS_SUM * terms**0.5,
    )


def _assert_within(
    name: str,
    result: Tensor,
    oracle: Tensor,
    torch_result: Tensor,
    magnitude: Tensor,
    casts: int,
    of_torch: float,
    roundings: float,
) -> None:
    assert result.shape == oracle.shape, (name, result.shape, oracle.shape)
    if not result.numel():
        return
    assert torch.isfinite(oracle).all(), f"{name}: the oracle is not finite"
    assert (magnitude >= oracle.abs() * (1 - 1e-9)).all(), f"{name}: the magnitude is too small"
    error = (torch_result.double() - oracle).abs()
    torch_error = torch.where(error == 0, 0.0, error / magnitude).max()
    eps = torch.finfo(torch_result.dtype).eps
    stated = roundings * eps
    assert torch_error <= stated, f"{name}: torch itself is off by {torch_error.item() / eps:.4g} units"
    slack = (of_torch * torch_error + stated) * magnitude
    slack += (casts - 1) * torch.finfo(result.dtype).eps / 2 * magnitude
    low, high = (oracle - slack).to(result.dtype), (oracle + slack).to(result.dtype)
    wrong = ~((result >= low) & (result <= high))  # a NaN is wrong
    if wrong.any():
        first = tuple(int(i) for i in wrong.nonzero()[0])
        off = ((result.double() - oracle).abs() / magnitude / eps)[wrong].max().item()
        raise AssertionError(
            f"{name}: {int(wrong.sum())} of {result.numel()} values are off, by up to {off:.4g} units of"
            f" their magnitude (torch: {torch_error.item() / eps:.3g}); first at {first}:"
            f" {result[first].item()!r}, oracle {oracle[first].item()!r}"
        )
