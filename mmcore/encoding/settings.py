"""The arguments that :func:`encode` passes on to :class:`Encoder`, with their types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

__all__ = ["EncoderSettings"]


class EncoderSettings(TypedDict, total=False):
    """Keyword arguments of :class:`Encoder` but for the streams and the layout; described there."""

    mean: float | Sequence[float] | None
    std: float | Sequence[float] | None
    scale: float | None
    codec: str | None
    pixel_format: str | None
    crf: float | None
    preset: str | None
    matrix: str
    full_range: bool | None
    extra_options: Mapping[str, str] | None
    audio_codec: str | None
    audio_bit_rate: int | None
    sample_format: str | None
    extra_audio_options: Mapping[str, str] | None
    text_codec: str | None
    language: str | None
    metadata: Mapping[str, str] | None
