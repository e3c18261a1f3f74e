"""A list of transforms resolved for the frames of one stream."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ._decoder_transforms import DecoderTransform, Size

__all__ = ["Crop", "Resized", "Step", "apply", "resolve"]

_NUMBERS = {"resize": 2, "center_crop": 2, "crop": 4}


@dataclass(frozen=True)
class Resized:
    """Resize frames to this size in pixels."""

    height: int
    width: int


@dataclass(frozen=True)
class Crop:
    """Cut this box, in pixels, out of frames."""

    top: int
    left: int
    height: int
    width: int


Step = Resized | Crop


def resolve(transforms: Iterable[DecoderTransform], input_dims: Size) -> list[Step]:
    """Say what each transform does to the result of those before it.

    Parameters
    ----------
    transforms : iterable of DecoderTransform
    input_dims : (int or None, int or None)
        (height, width) of the decoded frames, None where unknown.

    Raises
    ------
    ValueError, RuntimeError
        As TorchCodec does, for a specification that is wrong or does not fit the frames.
    """
    steps = []
    for transform in transforms:
        steps.append(_parsed(transform._make_transform_spec(input_dims), input_dims))
        input_dims = transform._get_output_dims() or input_dims
    return steps


def apply(steps: Iterable[Step], frames: Tensor) -> Tensor:
    """Apply steps to (N, H, W, C) uint8 frames on any device; the result is contiguous."""
    for step in steps:
        if isinstance(step, Crop):
            frames = frames[:, step.top : step.top + step.height, step.left : step.left + step.width]
        else:
            frames = _resized(frames.permute(0, 3, 1, 2), (step.height, step.width)).permute(0, 2, 3, 1)
    return frames.contiguous()


def _resized(planes: Tensor, size: tuple[int, int]) -> Tensor:
    if planes.device.type != "cpu":  # where torch has it for floating point alone
        levels = torch.nn.functional.interpolate(planes.float(), size, mode="bilinear", antialias=True)
        return levels.round_().clamp_(0, 255).to(planes.dtype)
    return torch.nn.functional.interpolate(planes, size, mode="bilinear", antialias=True)


def _parsed(spec: str, input_dims: Size) -> Step:
    name, *texts = (part.strip() for part in spec.split(","))
    if name not in _NUMBERS:
        raise RuntimeError(f"Invalid transform name {name!r}, expected one of {', '.join(_NUMBERS)}")
    if len(texts) != _NUMBERS[name]:
        raise RuntimeError(f"{name}: must have {_NUMBERS[name] + 1} elements, got {spec!r}")
    try:
        height, width, *corner = map(int, texts)
    except ValueError:
        raise RuntimeError(f"{name}: an element of {spec!r} cannot be converted to an int") from None
    if height <= 0 or width <= 0:
        raise RuntimeError(f"{name}: height and width: each must be a positive integer, got {spec!r}")
    if name == "resize":
        return Resized(height, width)
    input_height, input_width = input_dims
    if input_height is None or input_width is None:
        raise ValueError(f"{name}: the size of the frames is not known")
    if height > input_height:
        raise RuntimeError(f"Crop output height ({height}) is greater than input height ({input_height})")
    if width > input_width:
        raise RuntimeError(f"Crop output width ({width}) is greater than input width ({input_width})")
    if name == "center_crop":  # as torchvision rounds
        corner = [round((input_width - width) / 2.0), round((input_height - height) / 2.0)]
    left, top = corner
    if not 0 <= left <= input_width - width:
        raise RuntimeError(f"Crop x start position, {left}, out of bounds of input width, {input_width}")
    if not 0 <= top <= input_height - height:
        raise RuntimeError(f"Crop y start position, {top}, out of bounds of input height, {input_height}")
    return Crop(top, left, height, width)
