"""Transforms that a decoder applies to every frame."""

from __future__ import annotations

from ._decoder_transforms import CenterCrop, DecoderTransform, RandomCrop, Resize

__all__ = ["CenterCrop", "DecoderTransform", "RandomCrop", "Resize"]
