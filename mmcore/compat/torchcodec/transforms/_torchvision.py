"""Torchvision's v2 transforms as the decoder's own."""

from __future__ import annotations

import importlib
from typing import Any

from ._decoder_transforms import CenterCrop, DecoderTransform, RandomCrop, Resize

__all__ = ["as_decoder_transform"]


def as_decoder_transform(transform: Any) -> DecoderTransform:
    """Give a decoder transform as it is, and the counterpart of one of torchvision's.

    Raises
    ------
    ValueError
        For a transform that has no counterpart.
    """
    if isinstance(transform, DecoderTransform):
        return transform
    try:
        v2: Any = importlib.import_module("torchvision.transforms.v2")
    except ImportError:
        raise ValueError(
            f"Unsupported transform: {transform}. Expected a DecoderTransform, or one of torchvision's v2"
            " transforms, but torchvision is not installed."
        ) from None
    if isinstance(transform, v2.Resize):
        _refuse(
            "Resize",
            {
                "must use bilinear interpolation": transform.interpolation
                not in (v2.InterpolationMode.BILINEAR, "bilinear"),
                "must have antialias enabled": transform.antialias is False,
                "must have a size specified": transform.size is None,
            },
        )
        return Resize(transform.size)
    if isinstance(transform, v2.CenterCrop):
        return CenterCrop(transform.size)
    if isinstance(transform, v2.RandomCrop):
        _refuse(
            "RandomCrop",
            {
                "must not specify padding": transform.padding is not None,
                "must not specify pad_if_needed": transform.pad_if_needed,
                "fill must be 0": transform.fill != 0,
                "padding_mode must be constant": transform.padding_mode != "constant",
            },
        )
        return RandomCrop(transform.size)
    raise ValueError(
        f"Unsupported transform: {transform}. Expected a DecoderTransform, or torchvision's v2 Resize,"
        " CenterCrop or RandomCrop."
    )


def _refuse(name: str, reasons: dict[str, bool]) -> None:
    for reason, applies in reasons.items():
        if applies:
            raise ValueError(f"torchvision's {name} transform: {reason}")
