"""The streaming writer of media files: frames, samples and words as they come, in constant memory."""

from __future__ import annotations

import contextlib
import operator
import os
import secrets
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from types import TracebackType
from typing import Any

import av

from .audio_track import AudioTrack, as_samples
from .containers import container_format
from .opening import writing
from .text_track import TextTrack, as_cues
from .video_track import VideoTrack, frame_rate

__all__ = ["Encoder"]


class Encoder:
    """Writes a media file piece by piece; :func:`encode` writes one that is at hand.

    The streams are declared at the start: video by ``height``, ``width`` and ``fps``, audio by
    ``sample_rate`` and ``num_channels``, text by ``text=True``. All begin at 0 seconds. The file appears
    under its name when :meth:`close` has finished it. An error ends the encoder and leaves nothing, and an
    earlier file as it was.

    Parameters
    ----------
    path : str or os.PathLike
        File to write, its format by its suffix; an existing file is replaced.
    height, width : int, optional
        Of the frames, in pixels.
    fps : int, float or Fraction, optional
        Frames per second. A float near 24, 30, 48, 60 or 120 times 1000/1001, as 29.97, is that number.
    sample_rate : int, optional
        Samples per second; an encoder that does not know it (Opus, say) gets the audio resampled.
    num_channels : int, optional
        1 to 8; 1 if only ``sample_rate`` is given.
    text : bool
    layout, mean, std, scale
        How the frames are laid out and normalised, as in :func:`tensor_to_planes`.
    codec, audio_codec, text_codec : str, optional
        FFmpeg's names of encoders; by default as the suffix says: MP4, MOV and MKV hold H.264 and AAC, WebM
        VP9 and Opus.
    pixel_format : str, optional
        FFmpeg's name; by default yuv420p, and 8-bit RGB for the lossless "ffv1" and "libx264rgb".
    crf : float, optional
        Constant quality of x264, x265, VP9 and AV1, lower is better; 0 is lossless with 8-bit x264.
    preset : str, optional
        The encoder's trade of speed for size, such as "veryfast".
    matrix : {"709", "601", "2020"}
    full_range : bool
        Colour of the YUV planes, which the file is tagged with. RGB formats have full range.
    extra_options, extra_audio_options : mapping of str to str, optional
        Further options of the encoders, by FFmpeg's names.
    audio_bit_rate : int, optional
        Bits per second.
    sample_format : str, optional
        FFmpeg's name, such as "s16"; by default the nearest to float32 that the encoder takes: 24 bits for
        FLAC.
    language : str, optional
        ISO 639-2 code of audio and text, such as "eng".
    metadata : mapping of str to str, optional
        Tags of the file, such as "title".

    Raises
    ------
    ValueError, TypeError
        For arguments that do not fit each other, the file format or the encoder.
    UnsupportedError
        If PyAV's FFmpeg lacks the encoder.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import mmcore, torch, tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "clip.mp4")
    >>> with mmcore.Encoder(path, height=48, width=64, fps=25) as encoder:
    ...     for i in range(3):
    ...         encoder.add_frames(torch.full((4, 3, 48, 64), i / 2))
    >>> len(mmcore.VideoDecoder(path))
    12
    """

    _container: Any = None

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        height: int | None = None,
        width: int | None = None,
        fps: Any = None,
        sample_rate: int | None = None,
        num_channels: int | None = None,
        text: bool = False,
        layout: str = "NCHW",
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        scale: float | None = None,
        codec: str | None = None,
        pixel_format: str | None = None,
        crf: float | None = None,
        preset: str | None = None,
        matrix: str = "709",
        full_range: bool | None = None,
        extra_options: Mapping[str, str] | None = None,
        audio_codec: str | None = None,
        audio_bit_rate: int | None = None,
        sample_format: str | None = None,
        extra_audio_options: Mapping[str, str] | None = None,
        text_codec: str | None = None,
        language: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._path = os.fsdecode(path)
        self._process = os.getpid()
        fmt = container_format(self._path)
        video = [value is not None for value in (height, width, fps)]
        if any(video) and not all(video):
            raise ValueError(
                f"height, width, fps: video needs all three, got {height!r}, {width!r} and {fps!r}"
            )
        if num_channels is not None and sample_rate is None:
            raise ValueError("sample_rate: expected the rate of the audio")
        if not any(video) and sample_rate is None and not text:
            raise ValueError(f"{self._path}: nothing to write: expected frames, audio or text")
        folder = os.path.dirname(self._path) or "."
        if not os.path.isdir(folder):
            raise FileNotFoundError(2, "no such folder", folder)
        if os.path.isdir(self._path):
            raise IsADirectoryError(21, "is a directory", self._path)
        base, suffix = os.path.splitext(os.path.basename(self._path))
        self._partial = os.path.join(folder, f".{base}.{secrets.token_hex(4)}{suffix}")
        with self._ending_on_error():
            self._container = av.open(
                "file:" + self._partial, "w", format=fmt.muxer, container_options=fmt.options
            )
            self._container.metadata.update({k: str(v) for k, v in (metadata or {}).items()})
            self._video = self._audio = self._text = None
            if height is not None and width is not None:
                self._video = VideoTrack(
                    self._container,
                    self._path,
                    height=_positive("height", height),
                    width=_positive("width", width),
                    fps=frame_rate(fps),
                    codec=codec,
                    pixel_format=pixel_format,
                    crf=crf,
                    preset=preset,
                    matrix=matrix,
                    full_range=full_range,
                    options=extra_options or {},
                    layout=layout,
                    normalisation=(mean, std, scale),
                )
            if sample_rate is not None:
                self._sample_rate = sample_rate = _positive("sample_rate", sample_rate)
                self._audio = AudioTrack(
                    self._container,
                    self._path,
                    sample_rate=sample_rate,
                    num_channels=1 if num_channels is None else _positive("num_channels", num_channels),
                    codec=audio_codec,
                    sample_format=sample_format,
                    bit_rate=audio_bit_rate,
                    language=language,
                    options=extra_audio_options or {},
                )
            if text:
                self._text = TextTrack(self._container, self._path, codec=text_codec, language=language)
            self._container.start_encoding()
        tracks = [track for track in (self._video, self._audio) if track is not None]
        self._queues: dict[Any, deque[Any]] = {track: deque() for track in tracks}
        self._words: deque[Any] = deque()

    @property
    def video_seconds(self) -> Fraction:
        """Length of the frames that were added."""
        return Fraction(0) if self._video is None else self._video.seconds

    @property
    def audio_seconds(self) -> Fraction:
        """Length of the samples that were added."""
        return Fraction(0) if self._audio is None else self._audio.seconds

    # --- what is written

    def add_frames(self, frames: Any) -> None:
        """Append frames.

        Parameters
        ----------
        frames : Tensor, Frame or FrameBatch
            One frame or a batch, laid out as ``layout`` says; any device.

        Raises
        ------
        TypeError, ValueError
            If they do not fit the layout or the size, or hold a NaN or an infinity.
        """
        with self._ending_on_error():
            track = self._declared(self._video, "video: height, width and fps")
            self._queues[track].extend(track.encode(frames))
            self._mux()

    def add_audio(self, audio: Any) -> None:
        """Append samples.

        Parameters
        ----------
        audio : Tensor or AudioSamples
            (channels, samples) or (samples,), floating; values beyond -1 to 1 are clipped, but for the codecs
            "pcm_f32le" and "pcm_f64le".

        Raises
        ------
        TypeError, ValueError
            For another shape or sample rate, or a NaN or an infinity.
        """
        with self._ending_on_error():
            track = self._declared(self._audio, "audio: sample_rate")
            samples, _ = as_samples(audio, self._sample_rate)
            self._queues[track].extend(track.encode(samples))
            self._mux()

    def add_text(self, text: Any) -> None:
        """Append segments, which begin no earlier than those before.

        Parameters
        ----------
        text : iterable of TextSegment or (start, end, str)
            Times in seconds; kept to a thousandth. mov_text, MP4's, shows one text at a time: segments of one
            call that overlap are shown together, on lines of their own.

        Raises
        ------
        TypeError, ValueError
            For segments that are none, have no length, or come too late.
        """
        with self._ending_on_error():
            track = self._declared(self._text, "text: text=True")
            self._words.extend(track.encode(as_cues(text)))
            self._mux()

    # --- the end

    def close(self) -> None:
        """Finish the file and give it its name; does nothing after the first time, or after an error.

        Raises
        ------
        ValueError
            If a video or audio stream was declared and nothing was added; no file is left.
        OSError
            If the file cannot be written; none is left.
        """
        if self._container is None:
            return
        with self._ending_on_error():
            for track, name in ((self._video, "frames"), (self._audio, "audio")):
                if track is not None and not track.count:
                    raise ValueError(f"{self._path}: {name}: declared, but none were added")
            for track, queue in self._queues.items():
                queue.extend(track.flush())
            self._mux(to_the_end=True)
            self._container.close()
            os.replace(self._partial, self._path)
            self._container = None

    def discard(self) -> None:
        """Give up: the file is not written, what there was under its name stays."""
        container, self._container = self._container, None
        if container is not None and self._process == os.getpid():  # a fork's copy must not end the file
            with contextlib.suppress(Exception):
                container.close()
            with contextlib.suppress(OSError):
                os.unlink(self._partial)

    @contextlib.contextmanager
    def _ending_on_error(self) -> Iterator[None]:
        try:
            with writing(self._path):
                yield
        except BaseException:
            self.discard()
            raise

    def __enter__(self) -> Encoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def __del__(self) -> None:
        self.discard()

    def __repr__(self) -> str:
        return f"Encoder({self._path!r}{'' if self._container is not None else ', closed'})"

    # --- interleaving

    def _declared(self, track: Any, needed: str) -> Any:
        if self._container is None:
            raise ValueError(f"{self._path}: the encoder is closed")
        if track is None:
            raise ValueError(f"{self._path}: was opened without {needed}")
        return track

    def _mux(self, to_the_end: bool = False) -> None:
        """Write the packets whose turn it is: none may still come that belongs before them."""
        while self._queues and (to_the_end or all(self._queues.values())):
            filled = [queue for queue in self._queues.values() if queue]
            if not filled:
                break
            queue = min(filled, key=lambda q: _time(q[0]))
            while self._words and _time(self._words[0]) <= _time(queue[0]):
                self._container.mux(self._words.popleft())
            self._container.mux(queue.popleft())
        while self._words and (to_the_end or not self._queues):
            self._container.mux(self._words.popleft())


def _time(packet: Any) -> Fraction:
    return packet.dts * packet.time_base  # type: ignore[no-any-return]


def _positive(name: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an int, got {value!r}") from None
    if isinstance(value, bool) or not 1 <= number <= 1 << 24:
        raise ValueError(f"{name}: expected a positive int, got {value!r}")
    return number
