"""The audio decoder that users meet: sound of a file by time, as tensors."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Generator, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmcore.errors import DecodeError

from .arguments import integer, number_of_seconds, timeout_seconds
from .audio_blocks import Samples
from .audio_metadata import AudioStreamMetadata
from .audio_mixing import mix, mixing_matrix
from .audio_reader import AudioReader, Gap
from .audio_resampling import input_range, num_output_samples, resample
from .audio_samples import AudioSamples
from .audio_table import PacketNotes
from .control import Control
from .fork_safe_lock import ForkSafeLock
from .source import Source, passing_interrupts

__all__ = ["AudioDecoder"]

_HIGHEST_RATE = 768_000
_MOST_CHANNELS = 8


class AudioDecoder:
    """Decodes one audio stream, exactly the samples asked for, into float32 tensors.

    Parameters
    ----------
    source : str, os.PathLike, bytes, bytearray, memoryview, Tensor or file-like object
        A path, a file's content (a Tensor must be 1-D uint8), or a binary file object with ``read``, ``seek``
        and ``tell``. It may hold video and more besides.
    stream_index : int, optional
        Number of the stream in the file; by default the audio stream that FFmpeg thinks best.
    sample_rate : int, optional
        Resample to this rate, in Hz, with FFmpeg's swresample; by default the stream's own.
    num_channels : int, optional
        Mix to as many channels, 1 to 8, with FFmpeg's coefficients, scaled so that nothing gets louder than
        full scale: mono is the mean of stereo, and stereo two copies of mono. By default all channels.
    on_error : {"raise", "silence"}
        What becomes of sound that cannot be decoded. "raise" raises :class:`mmcore.DecodeError`; sound that
        is not touched by the damage stays readable. "silence" puts 0 in its place, and lets a file that
        breaks off end there; ``gaps`` of the samples tells where.
    network : bool
        Allow URLs, FFmpeg's other protocols, and playlists, which name further files. Off by default, so that
        a name or a file from elsewhere cannot make this process open others.
    timeout : float, optional
        Seconds after which a call raises :class:`mmcore.DecodeTimeoutError`, looked at between packets.

    Attributes
    ----------
    metadata : AudioStreamMetadata

    Raises
    ------
    DecodeError
        If the source is missing, empty, no media file, or holds no audio that can be decoded.
    ValueError, TypeError, UnsupportedError
        For arguments that are wrong, or valid but not available.

    Notes
    -----
    Times are those of the file, on the clock of :class:`VideoDecoder`: sample i is heard at
    ``begin_stream_seconds + i / sample_rate``. What encoders add in front and behind is left out where the
    file marks it. Where timestamps leave out time, there is silence; where they overlap, what comes first
    counts; deviations below 5 ms are taken for rounding. A decoder may be used by several threads, which
    take turns; it may be carried across a fork or pickled (unless it reads a file object), and opens its
    source anew there.

    Examples
    --------
    >>> import mmcore
    >>> decoder = mmcore.AudioDecoder("clip.mp4", sample_rate=16000, num_channels=1)    # doctest: +SKIP
    >>> decoder.get_samples_played_in_range(1.0, 2.5).data.shape                        # doctest: +SKIP
    torch.Size([1, 24000])
    """

    def __init__(
        self,
        source: Any,
        *,
        stream_index: int | None = None,
        sample_rate: int | None = None,
        num_channels: int | None = None,
        on_error: str = "raise",
        network: bool = False,
        timeout: float | None = None,
        _notes: PacketNotes | None = None,
    ) -> None:
        if on_error not in ("raise", "silence"):
            raise ValueError(f"on_error: expected 'raise' or 'silence', got {on_error!r}")
        if stream_index is not None:
            stream_index = integer("stream_index", stream_index)
        if sample_rate is not None and not 1 <= integer("sample_rate", sample_rate) <= _HIGHEST_RATE:
            raise ValueError(f"sample_rate: expected 1 to {_HIGHEST_RATE} Hz, got {sample_rate}")
        if num_channels is not None and not 1 <= integer("num_channels", num_channels) <= _MOST_CHANNELS:
            raise ValueError(f"num_channels: expected 1 to {_MOST_CHANNELS}, got {num_channels}")
        self._timeout = timeout_seconds(timeout)
        self._on_error = on_error
        self._metadata: AudioStreamMetadata | None = None
        self._closed = False
        self._lock = ForkSafeLock()
        source = Source(source, network=network)
        self._name = source.name
        with passing_interrupts():
            self._reader = AudioReader(source, stream_index, _notes)
        reader = self._reader
        self.sample_rate = reader.sample_rate if sample_rate is None else integer("sample_rate", sample_rate)
        self.num_channels = (
            reader.num_channels if num_channels is None else integer("num_channels", num_channels)
        )
        self._matrix: NDArray[np.float32] | None = None
        if self.num_channels != reader.num_channels:
            self._matrix = self._mixing_matrix()

    def _mixing_matrix(self) -> NDArray[np.float32]:
        return mixing_matrix(self._reader.channel_layout, self.num_channels)

    # --- the stream

    @property
    def metadata(self) -> AudioStreamMetadata:
        """The stream's properties, before resampling and mixing."""
        if self._metadata is None:
            with self._locked() as reader:
                container, stream = reader.opened()
                tb = stream.time_base or reader.time_base
                duration = None if stream.duration is None else float(stream.duration * tb)
                if duration is None and container.duration is not None:
                    duration = container.duration / 1_000_000
                language = stream.language
                self._metadata = AudioStreamMetadata(
                    stream_index=stream.index,
                    codec=reader.codec_name,
                    sample_rate=reader.sample_rate,
                    num_channels=reader.num_channels,
                    channel_layout=reader.channel_layout,
                    sample_format=reader.sample_format,
                    bit_rate=stream.codec_context.bit_rate or None,
                    language=None if language in (None, "", "und") else language,
                    duration_seconds_from_header=duration,
                    begin_stream_seconds_from_header=(
                        None if stream.start_time is None else float(stream.start_time * tb)
                    ),
                    begin_stream_seconds=float(reader.origin),
                )
        return self._metadata

    @property
    def begin_stream_seconds(self) -> float:
        """When the first sample is heard."""
        return float(self._reader.origin)

    @property
    def end_stream_seconds(self) -> float:
        """When the last sample ends, exactly: the first access reads the file's packets, unless done before.

        Raises
        ------
        DecodeError
        """
        with self._locked() as reader:
            return float(reader.origin + Fraction(reader.num_samples(self._control()), reader.sample_rate))

    @property
    def damage(self) -> str | None:
        """Why the sound ends early, if it does and the container tells; read as ``end_stream_seconds`` is.

        Raises
        ------
        DecodeError
        """
        with self._locked() as reader:
            return reader.damage(self._control())

    def __repr__(self) -> str:
        state = ", closed" if self._closed else ""
        return (
            f"AudioDecoder({self._name!r}, stream {self._reader.stream_index}, {self.num_channels} channels,"
            f" {self.sample_rate} Hz{state})"
        )

    # --- reading

    def get_all_samples(self) -> AudioSamples:
        """All samples of the stream.

        Raises
        ------
        DecodeError
            With ``on_error="raise"`` if any of it cannot be decoded, or if the file breaks off.
        """
        with self._locked() as reader:
            return self._samples(reader, 0, None)

    def get_samples_played_in_range(
        self, start_seconds: float = 0.0, stop_seconds: float | None = None
    ) -> AudioSamples:
        """The samples heard from ``start_seconds`` to before ``stop_seconds``.

        Parameters
        ----------
        start_seconds, stop_seconds : float
            In seconds; by default to the end. Each is taken to the nearest sample, so that ranges that join
            have no sample twice and leave none out. What lies outside the stream is left out of the result,
            whose ``pts_seconds`` is the time of its first sample.

        Returns
        -------
        AudioSamples
            The slice of :meth:`get_all_samples`, to the bit; with resampling to within 1e-5,
            and to the bit too where the rates' ratio has small terms, such as 44100 to 16000. Empty
            if start and stop are the same sample.

        Raises
        ------
        ValueError
            If stop lies before start, or if the range lies outside the stream.
        TypeError, DecodeError
        """
        start = number_of_seconds("start_seconds", start_seconds)
        stop = None if stop_seconds is None else number_of_seconds("stop_seconds", stop_seconds)
        if stop is not None and stop < start:
            raise ValueError(f"start_seconds, stop_seconds: expected start <= stop, got {start} > {stop}")
        with self._locked() as reader:
            if stop is not None and stop < self.begin_stream_seconds:
                raise ValueError(
                    f"stop_seconds: {self._name}: there is no sound before {self.begin_stream_seconds:.6g} s,"
                    f" got {stop}"
                )
            first, last = self._nearest(start), None if stop is None else self._nearest(stop)
            samples = self._samples(reader, max(first, 0), None if last is None else max(last, 0))
            if len(samples) or first <= 0:
                return samples
            end = num_output_samples(
                reader.num_samples(self._control()), reader.sample_rate, self.sample_rate
            )
            if first > end or (first == end and last != first):
                seconds = self.begin_stream_seconds + end / self.sample_rate
                raise ValueError(
                    f"start_seconds: {self._name}: there is no sound from {seconds:.6g} s on, got {start}"
                )
            return samples

    def iter_chunks(self, seconds: float, overlap_seconds: float = 0.0) -> Iterator[AudioSamples]:
        """All samples, one stretch after the other, in memory for few of them.

        Parameters
        ----------
        seconds : float
            Length of each; the last one is what is left.
        overlap_seconds : float
            How much of its end each shares with the next one.

        Yields
        ------
        AudioSamples
            Both lengths are rounded to whole samples, so that all stretches but the last are of one size. The
            last one is the first to reach the end.

        Raises
        ------
        ValueError
            Unless ``0 <= overlap_seconds < seconds``, and both stretch and step last a sample or more.
        TypeError, DecodeError
        """
        length = number_of_seconds("seconds", seconds)
        overlap = number_of_seconds("overlap_seconds", overlap_seconds)
        count = round(length * self.sample_rate)
        step = count - round(overlap * self.sample_rate)
        if count < 1:
            raise ValueError(f"seconds: expected a sample or more, 1/{self.sample_rate} s, got {seconds}")
        if overlap < 0 or step < 1:
            raise ValueError(
                f"overlap_seconds: expected 0 or more, and less than seconds={seconds}, got {overlap_seconds}"
            )
        return self._iter_chunks(count, step)

    def __iter__(self) -> Iterator[AudioSamples]:
        """All samples, a second at a time."""
        return self.iter_chunks(1.0)

    def _iter_chunks(self, count: int, step: int) -> Iterator[AudioSamples]:
        with self._locked() as shared:
            reader = shared.twin()  # others may read meanwhile
        gaps: list[Gap] = []
        held: Samples = np.empty((self.num_channels, 0), np.float32)
        begin = 0  # of ``held``
        with contextlib.closing(reader), contextlib.closing(self._blocks(reader, 0, None, gaps)) as blocks:
            for at in itertools.count(0, step):
                parts, available = [held[:, at - begin :]], begin + held.shape[1]
                # One sample more than is given tells whether this is the last one.
                while available <= at + count and (block := self._next(blocks)) is not None:
                    parts.append(block)
                    available += block.shape[1]
                held, begin = np.concatenate(parts, 1), at
                yield self._made(reader, held[:, :count].copy(), at, gaps)
                if available <= at + count:
                    return

    def _next(self, blocks: Iterator[Samples]) -> Samples | None:
        if self._closed:
            raise ValueError(f"{self._name}: the decoder is closed")
        with passing_interrupts():
            return next(blocks, None)

    # --- life

    def close(self) -> None:
        """Release the file and the codec; reading then raises ValueError, closing again does nothing."""
        self._closed = True
        with self._lock:
            self._reader.close()

    def __enter__(self) -> AudioDecoder:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # --- the work

    @contextlib.contextmanager
    def _locked(self) -> Iterator[AudioReader]:
        with self._lock:
            if self._closed:
                raise ValueError(f"{self._name}: the decoder is closed")
            with passing_interrupts():
                yield self._reader

    def _control(self) -> Control:
        return Control(self._timeout, self._name)

    def _nearest(self, seconds: float) -> int:
        """The sample, as given out, that is nearest to a time."""
        return math.floor((Fraction(seconds) - self._reader.origin) * self.sample_rate + Fraction(1, 2))

    def _samples(self, reader: AudioReader, first: int, last: int | None) -> AudioSamples:
        gaps: list[Gap] = []
        with contextlib.closing(self._blocks(reader, first, last, gaps, at_once=True)) as blocks:
            parts = list(blocks)
        if len(parts) == 1:
            joined = parts[0]
        else:
            joined = np.empty((self.num_channels, sum(part.shape[1] for part in parts)), np.float32)
            at = 0
            for i, part in enumerate(parts):
                joined[:, at : at + part.shape[1]] = part
                at += part.shape[1]
                parts[i] = joined[:, :0]  # its memory is needed no more
        return self._made(reader, joined, first, gaps, last)

    def _blocks(
        self, reader: AudioReader, first: int, last: int | None, gaps: list[Gap], *, at_once: bool = False
    ) -> Generator[Samples, None, None]:
        """Samples ``first`` to ``last`` as they are given out: mixed and resampled."""
        if last is not None and last <= first:
            return
        rate_in, rate_out = reader.sample_rate, self.sample_rate
        if rate_in == rate_out:
            found = reader.blocks(first, last, self._control(), gaps, at_once=at_once)
            with contextlib.closing(found) as blocks:
                for block in blocks:
                    yield block if self._matrix is None else mix(block, self._matrix)
            return
        matrix = self._matrix
        mixes_first = matrix is not None and len(matrix) < reader.num_channels  # which is less to resample
        needed = input_range(first, last, rate_in, rate_out)
        count = None if last is None else last - first
        with contextlib.closing(reader.blocks(needed.start, needed.stop, self._control(), gaps)) as blocks:
            inputs = (mix(b, matrix) for b in blocks) if matrix is not None and mixes_first else blocks
            for block in resample(inputs, needed.start, needed.dropped, count, rate_in, rate_out):
                yield block if matrix is None or mixes_first else mix(block, matrix)

    def _made(
        self, reader: AudioReader, data: Samples, first: int, gaps: list[Gap], last: int | None = None
    ) -> AudioSamples:
        """Samples ``first`` to ``last`` with their time; raises for what could not be decoded of them."""
        rate, origin = self.sample_rate, reader.origin
        start = origin + Fraction(first, rate)
        stop = start + Fraction(data.shape[1], rate)
        # what follows the end does not matter to a range that ends there
        reached = stop if last is None else start + Fraction(2 * (last - first) - 1, 2 * rate)
        silent = []
        for gap in gaps:
            begin, end = (origin + Fraction(sample, reader.sample_rate) for sample in (gap.start, gap.stop))
            if begin == end and not start <= begin <= min(stop, reached):
                continue
            if begin < end and not (begin < stop and end > start):
                continue
            if gap.error is not None and self._on_error == "raise":
                raise DecodeError(
                    f"{reader.name}: the sound at {float(begin):.6g} s cannot be decoded: {gap.error}"
                )
            if begin < end:
                silent.append((float(max(begin, start)), float(min(end, stop))))
        pts, duration = float(start), data.shape[1] / rate
        return AudioSamples(torch.from_numpy(np.ascontiguousarray(data)), pts, duration, rate, tuple(silent))
