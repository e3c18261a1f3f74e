"""The audio stream of a file that is written: waveforms to packets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

import av
import numpy as np
import torch
from av.container import OutputContainer
from torch import Tensor

from .containers import encoder_codec
from .opening import add_stream, open_encoder

__all__ = ["AudioTrack", "as_samples"]

_LAYOUTS = ("mono", "stereo", "2.1", "4.0", "5.0", "5.1", "6.1", "7.1")  # FFmpeg's own for 1 to 8 channels
# The nearest to float32 first.
_SAMPLE_FORMATS = ("fltp", "flt", "dblp", "dbl", "s32p", "s32", "s16p", "s16", "u8p", "u8")
# Encoders that keep the upper 24 of the 32 bits of a sample.
_BITS_24 = ("flac", "alac", "pcm_s24le", "pcm_s24be")
_CHUNK = 1 << 14


class AudioTrack:
    """Encodes samples, one after the other."""

    def __init__(
        self,
        container: OutputContainer,
        path: str,
        *,
        sample_rate: int,
        num_channels: int,
        codec: str | None,
        sample_format: str | None,
        bit_rate: int | None,
        language: str | None,
        options: Mapping[str, str],
    ) -> None:
        encoder = encoder_codec(path, "audio", codec)
        offered = [f.name for f in encoder.audio_formats or ()]
        if sample_format is None:
            sample_format = next((f for f in _SAMPLE_FORMATS if not offered or f in offered), None)
        if sample_format not in _SAMPLE_FORMATS or (offered and sample_format not in offered):
            raise ValueError(
                f"sample_format: expected one of {', '.join(offered)} for {encoder.name},"
                f" got {sample_format!r}"
            )
        if not 1 <= num_channels <= len(_LAYOUTS):
            raise ValueError(f"audio: expected 1 to {len(_LAYOUTS)} channels, got {num_channels}")
        self._rate = sample_rate
        self._channels = num_channels
        self._layout = _LAYOUTS[num_channels - 1]
        self._sample_format = sample_format
        self._bits = 24 if encoder.name in _BITS_24 else 32
        self._clip = not encoder.name.startswith(("pcm_f32", "pcm_f64"))
        self._count = 0
        stream = add_stream(container, path, encoder, rate=_supported_rate(encoder, sample_rate))
        stream.layout, stream.format = self._layout, sample_format
        if bit_rate is not None:
            stream.bit_rate = bit_rate
        if language is not None:
            stream.metadata["language"] = language
        described = f"{num_channels} channels at {sample_rate} Hz as {sample_format}"
        open_encoder(stream, "audio_codec", options, described)
        self._stream = stream

    @property
    def count(self) -> int:
        """Number of samples that were given."""
        return self._count

    @property
    def seconds(self) -> Fraction:
        """Where the next sample lies."""
        return Fraction(self._count, self._rate)

    def encode(self, samples: Tensor) -> list[Any]:
        """Encode samples (channels, samples); the packets that are ready.

        Raises
        ------
        ValueError
            For another number of channels, or a NaN or an infinity.
        """
        if len(samples) != self._channels:
            raise ValueError(f"audio: expected {self._channels} channels, got {len(samples)}")
        packets = []
        for frame in self._frames(samples):
            packets += self._stream.encode(frame)
        return packets

    def _frames(self, samples: Tensor) -> Iterator[Any]:
        for start in range(0, samples.shape[1], _CHUNK):
            part = samples[:, start : start + _CHUNK].detach().to("cpu", torch.float32)
            finite = torch.isfinite(part).all(0)
            if not finite.all():
                at = self._count + int((~finite).nonzero()[0])
                raise ValueError(f"audio: sample {at} is a NaN or an infinity")
            if self._clip:
                part = part.clamp(-1, 1)
            values = self._quantized(part.numpy())
            if not self._sample_format.endswith("p"):
                values = values.T.reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(values), self._sample_format, self._layout
            )
            frame.sample_rate, frame.pts, frame.time_base = self._rate, self._count, Fraction(1, self._rate)
            self._count += part.shape[1]
            yield frame

    def _quantized(self, values: Any) -> Any:
        """Samples as the encoder takes them, rounded to nearest; 1.0 is a step above the largest integer."""
        kind = self._sample_format.removesuffix("p")
        if kind == "flt":
            return values
        if kind == "dbl":
            return values.astype(np.float64)
        bits = {"s16": 16, "u8": 8}.get(kind, self._bits)
        top = 1 << bits - 1
        levels = np.clip(np.rint(values.astype(np.float64) * top), -top, top - 1)
        if kind == "u8":
            return (levels + 128).astype(np.uint8)
        if kind == "s16":
            return levels.astype(np.int16)
        return (levels.astype(np.int64) << 32 - bits).astype(np.int32)

    def flush(self) -> list[Any]:
        """Encode what the encoder holds back; the last packets."""
        return list(self._stream.encode(None))


def as_samples(audio: Any, sample_rate: int | None) -> tuple[Tensor, int]:
    """Samples (channels, samples) and their rate, of a waveform or an AudioSamples."""
    own = getattr(audio, "sample_rate", None)
    if not isinstance(audio, Tensor) and own is not None:
        if sample_rate is not None and sample_rate != own:
            raise ValueError(f"sample_rate: {sample_rate}, but audio is sampled at {own} Hz")
        audio, sample_rate = audio.data, int(own)
    if not isinstance(audio, Tensor):
        raise TypeError(f"audio: expected a tensor or AudioSamples, got {type(audio).__name__}")
    if not audio.is_floating_point():
        raise TypeError(f"audio: expected a floating dtype, values from -1 to 1, got {audio.dtype}")
    if audio.dim() == 1:
        audio = audio[None]
    if audio.dim() != 2:
        raise ValueError(f"audio: expected shape (channels, samples) or (samples,), got {tuple(audio.shape)}")
    if sample_rate is None:
        raise ValueError("sample_rate: expected the rate of audio, which a tensor does not tell")
    return audio, sample_rate


def _supported_rate(encoder: Any, rate: int) -> int:
    """The encoder's sample rate that loses nothing of ``rate``, or its highest."""
    rates = sorted(encoder.audio_rates or ())
    return int(next((r for r in rates if r >= rate), rates[-1])) if rates else rate
