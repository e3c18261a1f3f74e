"""TorchCodec's AudioDecoder on top of mmcore's."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from numpy import float32
from numpy.typing import NDArray

import mmcore
from mmcore.compat.torchcodec._core import AudioStreamMetadata
from mmcore.compat.torchcodec._errors import DecodeError, as_torchcodec_raises
from mmcore.compat.torchcodec._frame import AudioSamples
from mmcore.decoding.audio_mixing import mixing_matrix

from ._source import is_url, readable

__all__ = ["AudioDecoder"]


class AudioDecoder:
    """Decodes one audio stream.

    Parameters
    ----------
    source : str, Path, bytes, Tensor or file-like object
        A path or a URL, a file's content (a Tensor must be 1-D uint8), or an object with ``read(size)`` and
        ``seek(offset, whence)``.
    stream_index : int, optional
        Number of the stream in the file; by default the audio stream that FFmpeg thinks best.
    sample_rate : int, optional
        In Hz, to resample to; by default the stream's own.
    num_channels : int, optional
        Mix to as many channels, as FFmpeg mixes floats: mono is 0.7071 times the sum of stereo.

    Attributes
    ----------
    metadata : AudioStreamMetadata
    stream_index : int

    Raises
    ------
    RuntimeError
        If the source is missing, empty or no media file (also an mmcore.DecodeError).
    ValueError, TypeError
        For arguments that are wrong, and if the source holds no audio.

    Examples
    --------
    >>> from mmcore.compat.torchcodec.decoders import AudioDecoder
    >>> decoder = AudioDecoder("clip.mp4")                                              # doctest: +SKIP
    >>> decoder.get_samples_played_in_range(1.0, 2.5).data.shape                        # doctest: +SKIP
    torch.Size([2, 72000])
    """

    def __init__(
        self,
        source: Any,
        *,
        stream_index: int | None = None,
        sample_rate: int | None = None,
        num_channels: int | None = None,
    ) -> None:
        with as_torchcodec_raises():
            try:
                self._decoder = _FloatMixingDecoder(
                    readable(source),
                    stream_index=stream_index,
                    sample_rate=sample_rate,
                    num_channels=num_channels,
                    network=is_url(source),
                )
            except mmcore.DecodeError as error:
                if "holds no audio stream" not in str(error):
                    raise
                raise ValueError(f"The best audio stream is unknown: {error}") from error
            except ValueError as error:
                if not str(error).startswith("stream_index"):
                    raise
                message = f"The stream at index {stream_index} is not a valid stream: {error}"
                raise ValueError(message) from error

    @cached_property
    def metadata(self) -> AudioStreamMetadata:
        m = self._decoder.metadata
        begin = m.begin_stream_seconds_from_header
        return AudioStreamMetadata(
            duration_seconds_from_header=m.duration_seconds_from_header,
            begin_stream_seconds_from_header=begin,
            bit_rate=m.bit_rate or 0,
            codec=m.codec,
            stream_index=m.stream_index,
            duration_seconds=m.duration_seconds_from_header,
            begin_stream_seconds=begin or 0.0,
            sample_rate=m.sample_rate,
            num_channels=m.num_channels,
            sample_format=m.sample_format,
        )

    @property
    def stream_index(self) -> int:
        return self.metadata.stream_index

    def get_all_samples(self) -> AudioSamples:
        """All samples of the stream.

        Raises
        ------
        RuntimeError
            If any of it cannot be decoded.
        """
        return self.get_samples_played_in_range()

    def get_samples_played_in_range(
        self, start_seconds: float = 0.0, stop_seconds: float | None = None
    ) -> AudioSamples:
        """The samples heard from ``start_seconds`` to before ``stop_seconds``, by default to the end.

        Raises
        ------
        ValueError
            If stop lies before start.
        RuntimeError
            If the range lies outside the stream, or cannot be decoded.
        """
        if stop_seconds is not None and not start_seconds <= stop_seconds:
            raise ValueError(
                f"Invalid start seconds: {start_seconds}."
                f" It must be less than or equal to stop seconds ({stop_seconds})."
            )
        with as_torchcodec_raises():
            try:
                found = self._decoder.get_samples_played_in_range(start_seconds, stop_seconds)
            except ValueError as error:
                if "there is no sound" not in str(error):
                    raise
                raise DecodeError(
                    f"No audio frames were decoded. This is probably because start_seconds is too"
                    f" high({start_seconds}), or because stop_seconds({stop_seconds}) is too low: {error}"
                ) from error
        pts = max(float(start_seconds), self._decoder.begin_stream_seconds)
        return AudioSamples(found.data, pts, found.duration_seconds, found.sample_rate)


class _FloatMixingDecoder(mmcore.AudioDecoder):
    """Mixes with FFmpeg's coefficients as they are."""

    def _mixing_matrix(self) -> NDArray[float32]:
        return mixing_matrix(self._reader.channel_layout, self.num_channels, normalized=False)
