"""The transforms that a decoder takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeAlias

import torch

__all__ = ["CenterCrop", "DecoderTransform", "RandomCrop", "Resize", "Size"]

Size: TypeAlias = "tuple[int | None, int | None]"
"""(height, width) of frames, as far as they are known."""


class DecoderTransform(ABC):
    """What a decoder does to every frame.

    Subclasses say it by a specification: "resize, height, width", "crop, height, width, left, top" or
    "center_crop, height, width".
    """

    @abstractmethod
    def _make_transform_spec(self, input_dims: Size) -> str:
        """Specification for frames of ``input_dims`` = (height, width)."""

    def _get_output_dims(self) -> Size | None:
        """(height, width) of the result; None if it is that of the input."""
        return None


class _Sized(DecoderTransform):
    """A transform whose result has a given size."""

    def __init__(self, size: Sequence[int]) -> None:
        if len(size) != 2:
            raise ValueError(
                f"{type(self).__name__} transform must have a (height, width) pair for the size, got {size}"
            )
        self.size = size

    def _get_output_dims(self) -> Size:
        return self.size[0], self.size[1]


class Resize(_Sized):
    """Resize frames, bilinear with antialiasing.

    Parameters
    ----------
    size : sequence of two ints
        (height, width).

    Raises
    ------
    ValueError
        If ``size`` is no pair.
    """

    def _make_transform_spec(self, input_dims: Size) -> str:
        return f"resize, {self.size[0]}, {self.size[1]}"


class CenterCrop(_Sized):
    """Keep the middle of frames.

    Parameters
    ----------
    size : sequence of two ints
        (height, width).

    Raises
    ------
    ValueError
        If ``size`` is no pair.
    """

    def _make_transform_spec(self, input_dims: Size) -> str:
        return f"center_crop, {self.size[0]}, {self.size[1]}"


class RandomCrop(_Sized):
    """Keep a part of frames whose place is drawn once for each decoder, by torch's global generator.

    Parameters
    ----------
    size : sequence of two ints
        (height, width).

    Raises
    ------
    ValueError
        If ``size`` is no pair; when the decoder is made, if the frames are smaller.
    """

    def _make_transform_spec(self, input_dims: Size) -> str:
        input_height, input_width = input_dims
        height, width = self.size
        if input_height is None or input_width is None:
            raise ValueError("RandomCrop: the size of the frames is not known")
        if height > input_height or width > input_width:
            raise ValueError(f"RandomCrop: frames of {input_dims} are smaller than the crop size {self.size}")
        # In the order in which torchvision draws, so that a seed means the same.
        top = int(torch.randint(0, input_height - height + 1, ()))
        left = int(torch.randint(0, input_width - width + 1, ()))
        return f"crop, {height}, {width}, {left}, {top}"
