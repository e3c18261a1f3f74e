"""Clips of one file: its streams are opened once, then read by time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmcore.errors import DecodeError, MMCoreError
from mmcore.ops.device_target import check_convert_on
from mmcore.ops.devices import check_device
from mmcore.ops.frame_transform import FrameTransform

from .augment import Augment, Augmentation
from .clip import MODALITIES, Clip, Spectrogram
from .options import AudioOptions, TextOptions, VideoOptions, chosen

if TYPE_CHECKING:
    from mmcore.decoding import AudioDecoder, AudioSamples, FrameBatch, TextDecoder, TextSegment, VideoDecoder
    from mmcore.decoding.shared_pass import SharedPass
    from mmcore.tokenizers import TimedTokens

__all__ = ["ClipReader", "read_clip"]

_BYTES = FrameTransform(dtype=torch.uint8)
_FFMPEG_KINDS = {"video": "video", "audio": "audio", "text": "subtitle"}


class ClipReader:
    """Reads clips of one file, whose pictures, sound and words are opened once.

    Parameters
    ----------
    source : str, os.PathLike, bytes, bytearray, memoryview, Tensor or file-like object
        As for :class:`mmcore.VideoDecoder`.
    video : bool, None, dict or VideoOptions
        True: read what the file has; False or None: do not; or options, of the class or in a dict.
    audio : bool, None, dict or AudioOptions
    text : bool, None, dict or TextOptions
    strict : bool
        Raise what would be kept in ``Clip.errors``, and for a modality that the file lacks.
    network : bool
        Allow URLs and playlists, as for :class:`mmcore.VideoDecoder`.

    Attributes
    ----------
    modalities : tuple of str
        Those asked for.
    errors : dict of str to MMCoreError
        By modality, what made it unreadable as a whole.

    Raises
    ------
    DecodeError
        If the source is missing or no media file; with ``strict`` for a stream that is missing or damaged.
    ValueError, TypeError
        For arguments that are wrong, such as a stream that does not exist.
    UnsupportedError
        For a device that is not there.

    Notes
    -----
    Damage of one stream never costs the others: a stream that cannot be opened or read is None in the clip,
    and ``Clip.errors`` says why. Single frames that cannot be decoded are a matter of the video's
    ``on_error``. Threads may share a reader, and take turns; a reader may be forked, and pickled unless it
    reads a file object.

    Examples
    --------
    >>> from mmcore.clips import ClipReader
    >>> with ClipReader("film.mp4", audio={"sample_rate": 16000}) as reader:           # doctest: +SKIP
    ...     clips = [reader.read(t, t + 2) for t in range(0, 10, 2)]
    """

    def __init__(
        self,
        source: Any,
        *,
        video: bool | dict[str, Any] | VideoOptions | None = True,
        audio: bool | dict[str, Any] | AudioOptions | None = True,
        text: bool | dict[str, Any] | TextOptions | None = True,
        strict: bool = False,
        network: bool = False,
        _reads_far: bool = False,
    ) -> None:
        self._video_options = chosen("video", video, VideoOptions)
        self._audio_options = chosen("audio", audio, AudioOptions)
        self._text_options = chosen("text", text, TextOptions)
        options = (self._video_options, self._audio_options, self._text_options)
        self.modalities = tuple(m for m, o in zip(MODALITIES, options, strict=True) if o is not None)
        if not self.modalities:
            raise ValueError("video, audio, text: expected at least one of them to be read")
        if self._video_options is not None:  # what is wrong with the device is not the stream's error
            check_convert_on(self._video_options.convert_on, check_device(self._video_options.device))
        from mmcore.decoding.fork_safe_lock import ForkSafeLock

        self._lock = ForkSafeLock()
        # read by every decoder: one copy
        if isinstance(source, Tensor):
            from mmcore.decoding.source import Source

            Source(source)  # refuses what is no content
            source = source.cpu().numpy().tobytes()
        elif isinstance(source, (bytearray, memoryview)):
            source = bytes(source)
        self._source = source
        self._network = network
        self._strict = strict
        self.errors: dict[str, MMCoreError] = {}
        self._spans: dict[str, tuple[float, float]] = {}
        self._video: VideoDecoder | None = None
        self._audio: AudioDecoder | None = None
        self._text: TextDecoder | None = None
        self._shared = self._shared_pass(_reads_far)
        try:
            if self._video_options is not None:
                self._video = self._opened("video", self._open_video)
            if self._audio_options is not None:
                self._audio = self._opened("audio", self._open_audio)
            if self._text_options is not None:
                self._text = self._opened("text", self._open_text)
        except BaseException:
            self.close()
            raise
        finally:
            self._shared = None

    def _shared_pass(self, reads_far: bool) -> SharedPass | None:
        """What to look for while the pictures' packets are read; None if they are not."""
        video, audio, text = self._video_options, self._audio_options, self._text_options
        if video is None or video.seek_mode != "exact" or video.index is not None or self._network:
            return None
        from mmcore.decoding.shared_pass import SharedPass
        from mmcore.decoding.source import Source
        from mmcore.decoding.text_decoder import choose_text_stream, read_text_stream

        try:
            source = Source(self._source)
        except (MMCoreError, TypeError, ValueError):
            return None  # the decoders will say
        reads_text = text is not None and text.sidecar in (None, False)
        text = text or TextOptions()
        return SharedPass(
            source,
            partial(choose_text_stream, name=source.name, number=text.stream_index, language=text.language)
            if reads_text
            else None,
            partial(read_text_stream, encoding=text.encoding, markup=text.markup),
            audio is not None and reads_far,
            None if audio is None else audio.stream_index,
        )

    def _opened(self, name: str, open_stream: Callable[[], Any]) -> Any:
        try:
            return open_stream()
        except MMCoreError as error:
            # tells a file without such a stream, and no media file at all, from a broken stream
            if self._strict:
                raise
            if self._has(name):
                self.errors[name] = error
            return None

    def _has(self, name: str) -> bool:
        if self._shared is not None and self._shared.kinds is not None:
            return _FFMPEG_KINDS[name] in self._shared.kinds
        from mmcore.decoding.source import Source

        with Source(self._source, network=self._network).open(probe=False) as container:
            return any(stream.type == _FFMPEG_KINDS[name] for stream in container.streams)

    def _open_video(self) -> VideoDecoder:
        from mmcore.decoding import VideoDecoder

        options = self._video_options
        assert options is not None
        return VideoDecoder(
            self._source,
            stream_index=options.stream_index,
            num_threads=options.num_threads,
            seek_mode=options.seek_mode,
            transform=options.transform,
            on_error=options.on_error,
            index=options.index,
            device=options.device,
            convert_on=options.convert_on,
            decoder=options.decoder,
            network=self._network,
            _shared=self._shared,
        )

    def _open_audio(self, on_error: str | None = None) -> AudioDecoder:
        from mmcore.decoding import AudioDecoder

        options = self._audio_options
        assert options is not None
        number, notes, shared = options.stream_index, None, self._shared
        if shared is not None:
            number, notes = shared.best_audio if number is None else number, shared.notes
        return AudioDecoder(
            self._source,
            stream_index=number,
            sample_rate=options.sample_rate,
            num_channels=options.num_channels,
            on_error=on_error or options.on_error,
            network=self._network,
            _notes=notes,
        )

    def _open_text(self) -> TextDecoder:
        from mmcore.decoding import TextDecoder

        options = self._text_options
        assert options is not None
        return TextDecoder(
            self._source,
            stream_index=options.stream_index,
            language=options.language,
            sidecar=options.sidecar,
            encoding=options.encoding,
            markup=options.markup,
            network=self._network,
            _embedded=None if self._shared is None else self._shared.text,
        )

    # --- reading

    def read(
        self,
        start: float | None = 0.0,
        stop: float | None = None,
        *,
        augment: Augment | Augmentation | None = None,
        seed: int | torch.Generator | None = None,
    ) -> Clip:
        """Read the clip of a range of time; arguments and errors as for :func:`mmcore.read_clip`."""
        from mmcore.decoding.arguments import number_of_seconds

        with self._lock:  # the decoders' settings are the clip's for a while
            start = self._extent()[0] if start is None else number_of_seconds("start", start)
            stop = max(self._extent()[1], start) if stop is None else number_of_seconds("stop", stop)
            if stop < start:
                raise ValueError(f"start, stop: expected start <= stop, got {start} and {stop}")
            augmentation = augment.draw(seed) if isinstance(augment, Augment) else augment
            if augmentation is not None:
                if not isinstance(augmentation, Augmentation):
                    raise TypeError(f"augment: expected an Augment, got {type(augment).__name__}")
                augmentation = replace(augmentation, speed=self._possible_speed(augmentation.speed))
                start, stop = augmentation.time_range(start, stop)
            clip = self._read(start, stop, augmentation)
            if not clip.mask.any() and any(getattr(clip, name) is not None for name in self.modalities):
                # looked at only now: the end of sound may take reading all of the file
                first, last = self._extent()
                if stop < first or start > last:
                    raise ValueError(
                        f"start, stop: [{start}, {stop}] is no range of the file, which lasts from {first}"
                        f" to {last} s"
                    )
            return clip

    def _read(self, start: float, stop: float, augmentation: Augmentation | None) -> Clip:
        speed = 1.0 if augmentation is None else augmentation.speed
        errors = dict(self.errors)

        def clock(seconds: Any) -> Any:
            return seconds if speed == 1 else start + (seconds - start) / speed

        def attempt(name: str, read: Callable[..., Any], *arguments: Any) -> Any:
            try:
                return read(*arguments)
            except MMCoreError as error:
                if self._strict:
                    raise
                errors[name] = error
                return None

        video: FrameBatch | None = None
        if self._video is not None:
            video = attempt("video", self._read_video, self._video, start, stop, speed, augmentation)
        if video is not None and speed != 1:
            video = replace(
                video,
                pts_seconds=clock(video.pts_seconds),
                duration_seconds=video.duration_seconds / speed,
            )
        audio: AudioSamples | None = None
        if self._audio is not None:
            audio = attempt("audio", self._read_audio, self._audio, start, stop, speed, errors)
        if audio is not None and speed != 1:
            assert self._audio is not None
            rate = self._audio.sample_rate
            gaps = tuple((clock(a), clock(b)) for a, b in audio.gaps)
            audio = replace(
                audio,
                pts_seconds=clock(audio.pts_seconds),
                duration_seconds=audio.data.shape[1] / rate,
                sample_rate=rate,
                gaps=gaps,
            )
        text: tuple[TextSegment, ...] | None = None
        if self._text is not None:
            found = self._read_text(self._text, start, stop, errors)
            text = tuple(replace(s, start=clock(s.start), end=clock(s.end)) for s in found)
        held = {
            "video": video is not None and len(video) > 0,
            "audio": audio is not None and audio.data.shape[1] > 0,
            "text": bool(text),
        }
        return Clip(
            start=start,
            stop=clock(stop),
            modalities=self.modalities,
            mask=torch.tensor([[held[name] for name in self.modalities]], device="cpu"),
            video=video,
            audio=audio,
            spectrogram=None if audio is None else self._spectrogram(audio, augmentation),
            text=text,
            tokens=None if text is None else self._tokens(text),
            errors=errors,
            layout=self._transform().layout,
            augmentation=augmentation,
        )

    def _transform(self) -> FrameTransform:
        options = self._video_options
        return _BYTES if options is None or options.transform is None else options.transform

    def _read_video(
        self,
        decoder: VideoDecoder,
        start: float,
        stop: float,
        speed: float,
        augmentation: Augmentation | None,
    ) -> FrameBatch:
        from mmcore.decoding import FrameBatch

        options = self._video_options
        assert options is not None
        transform = self._transform()
        if augmentation is not None:
            m = decoder.metadata
            transform = augmentation.transform(transform, m.height, m.width)
        if decoder.transform != transform:
            decoder.transform = transform
        begin, end = self._span("video")
        a, b = min(max(start, begin), end), min(max(stop, begin), end)
        if options.fps is not None:
            fps = options.fps / speed
            # the grid is the clip's, wherever the pictures begin
            a = min(start + math.ceil((a - start) * fps - 1e-6) / fps, b)
            return decoder.get_frames_played_in_range(a, b, fps=fps)
        if options.num_frames is not None and a < b:
            step = (b - a) / options.num_frames
            times = [a + i * step for i in range(options.num_frames)]
            batch = decoder.get_frames_played_at(times)
            pts = torch.tensor(times, dtype=torch.float64, device="cpu")
            return FrameBatch(batch.data, pts, torch.full_like(pts, step), batch.valid)
        return decoder.get_frames_played_in_range(a, b)

    def _read_audio(
        self,
        decoder: AudioDecoder,
        start: float,
        stop: float,
        speed: float,
        errors: dict[str, MMCoreError],
    ) -> AudioSamples:
        # what is resampled to fewer samples lasts less long at the same rate
        rate = decoder.sample_rate
        decoder.sample_rate = round(rate / speed)
        try:
            return self._samples(decoder, start, stop, errors)
        finally:
            decoder.sample_rate = rate

    def _samples(
        self, decoder: AudioDecoder, start: float, stop: float, errors: dict[str, MMCoreError]
    ) -> AudioSamples:
        begin = decoder.begin_stream_seconds
        start, stop = max(start, begin), max(stop, begin)
        try:
            return decoder.get_samples_played_in_range(start, stop)
        except ValueError:
            if start < decoder.end_stream_seconds:
                raise
            return decoder.get_samples_played_in_range(begin, begin)
        except DecodeError as error:
            samples = None if self._strict else self._before_the_break(decoder, start, stop)
            if samples is None:
                raise
            errors["audio"] = error
            return samples

    def _before_the_break(self, decoder: AudioDecoder, start: float, stop: float) -> AudioSamples | None:
        """What a file that breaks off has of the range; None if it is not that what is wrong."""
        end = decoder.end_stream_seconds
        if stop < end:
            return None
        with self._open_audio("silence") as tolerant:
            tolerant.sample_rate = decoder.sample_rate
            samples = tolerant.get_samples_played_in_range(start, stop)
        rate, whole = samples.sample_rate, samples.data.shape[1]
        if samples.gaps:  # as of a last packet that is there in part
            if samples.gaps[0][1] < end - 1 / rate:
                return None
            whole = round((samples.gaps[0][0] - samples.pts_seconds) * rate)
        if whole <= 0:
            return None
        return replace(
            samples, data=samples.data[:, :whole].contiguous(), duration_seconds=whole / rate, gaps=()
        )

    def _read_text(
        self, decoder: TextDecoder, start: float, stop: float, errors: dict[str, MMCoreError]
    ) -> list[TextSegment]:
        damage = decoder.metadata.damage
        if damage is not None:
            error = DecodeError(f"{decoder!r}: a part could not be read: {damage}")
            if self._strict:
                raise error
            errors["text"] = error
        return decoder.get_segments_played_in_range(start, stop)

    def _tokens(self, text: tuple[TextSegment, ...]) -> TimedTokens | None:
        from mmcore.tokenizers import tokenize_segments

        options = self._text_options
        if options is None or options.tokenizer is None:
            return None
        return tokenize_segments(text, options.tokenizer, add_special_tokens=options.add_special_tokens)

    def _spectrogram(self, audio: AudioSamples, augmentation: Augmentation | None) -> Spectrogram | None:
        from mmcore.ops.log_mel import log_mel

        settings = None if self._audio_options is None else self._audio_options.mel_settings
        if settings is None:
            return None
        time_dim = 1 if settings.layout == "mel_time" else 0
        if settings.num_frames(audio.data.shape[1]):
            data = log_mel(audio.data.mean(0), settings.sample_rate, settings)
        else:
            data = torch.empty((settings.n_mels, 0), device="cpu").movedim(1, time_dim)
        if augmentation is not None and augmentation.options.spec_augment is not None:
            mask = augmentation.options.spec_augment
            turned = data.movedim(time_dim, -1)
            data = mask(turned, augmentation.spec_seed).movedim(-1, time_dim).contiguous()
        first = float(settings.frame_centers(1)[0])
        return Spectrogram(data, audio.pts_seconds + first, 1 / settings.frame_rate, time_dim)

    def _possible_speed(self, speed: float) -> float:
        """The speed nearest to ``speed`` that makes a whole number of samples per second of the file."""
        if self._audio is None or speed == 1:
            return speed
        rate = self._audio.sample_rate
        return rate / max(1, round(rate / speed))

    # --- what the streams are like

    def _span(self, name: str) -> tuple[float, float]:
        """From when to when a stream lasts that could be opened."""
        if name not in self._spans:
            if name == "video":
                assert self._video is not None
                index = self._video._index  # FrameTimes' sums may miss its end by rounding
                self._spans[name] = index.start_seconds(0), index.seconds(index.end)
            elif name == "audio":
                assert self._audio is not None
                begin = self._audio.begin_stream_seconds
                try:
                    end = self._audio.end_stream_seconds
                except MMCoreError:
                    if self._strict:
                        raise
                    end = self._audio.metadata.end_stream_seconds or begin
                self._spans[name] = begin, end
            else:
                assert self._text is not None
                m = self._text.metadata
                self._spans[name] = m.begin_stream_seconds or 0.0, m.end_stream_seconds or 0.0
        return self._spans[name]

    def _extent(self) -> tuple[float, float]:
        """From when to when pictures and sound last, else words; (0, 0) if nothing is open."""
        spans = [
            self._span(name)
            for name, stream in (("video", self._video), ("audio", self._audio))
            if stream is not None
        ]
        if not spans and self._text is not None:
            spans = [(0.0, self._span("text")[1])]
        return min((a for a, _ in spans), default=0.0), max((b for _, b in spans), default=0.0)

    # --- life

    def close(self) -> None:
        """Release the file; reading then raises ValueError."""
        for decoder in (self._video, self._audio):
            if decoder is not None:
                decoder.close()

    def __enter__(self) -> ClipReader:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def read_clip(
    source: Any,
    start: float | None = 0.0,
    stop: float | None = None,
    *,
    video: bool | dict[str, Any] | VideoOptions | None = True,
    audio: bool | dict[str, Any] | AudioOptions | None = True,
    text: bool | dict[str, Any] | TextOptions | None = True,
    augment: Augment | Augmentation | None = None,
    seed: int | torch.Generator | None = None,
    strict: bool = False,
    network: bool = False,
) -> Clip:
    """Read pictures, sound and words of one stretch of a file, on one clock.

    Parameters
    ----------
    source : str, os.PathLike, bytes, bytearray, memoryview, Tensor or file-like object
        As for :class:`mmcore.VideoDecoder`.
    start : float, optional
        Seconds on the file's clock; None where its first stream begins.
    stop : float, optional
        None for the end. What of the range lies outside a stream is not in the clip. Frames are those shown
        in the range, the first one maybe from before; samples those heard in it; segments those shown at some
        time of it.
    video : bool, None, dict or VideoOptions
        True: read what the file has; False or None: do not; or options, of the class or in a dict:
        ``transform``, ``fps``, ``num_frames``, ...
    audio : bool, None, dict or AudioOptions
        Such as ``{"sample_rate": 16000, "num_channels": 1, "log_mel": mmcore.LogMelSettings.whisper()}``.
    text : bool, None, dict or TextOptions
        Such as ``{"language": "en", "tokenizer": mmcore.ByteTokenizer()}``.
    augment : Augment or Augmentation, optional
        Random changes to draw for this clip, or those drawn before, of ``Clip.augmentation``.
    seed : int or torch.Generator, optional
        Of the random changes. None: torch's own generator, which DataLoader seeds in each worker.
    strict : bool
        Raise what would be kept in ``Clip.errors``, and for a modality that the file lacks.
    network : bool
        Allow URLs and playlists, as for :class:`mmcore.VideoDecoder`.

    Returns
    -------
    Clip
        Empty, but of the right shapes, for ``start == stop``.

    Raises
    ------
    DecodeError
        If the source is missing or no media file; with ``strict`` for a stream that is missing or damaged.
    ValueError, TypeError
        For arguments that are wrong, such as a stop before the start, a range that lies wholly outside the
        file, or a tokenizer that raises.

    Notes
    -----
    Damage of one stream never costs the others: a stream that cannot be opened or read is None in the clip,
    and ``Clip.errors`` says why. Single frames that cannot be decoded are a matter of the video's
    ``on_error``. Use :class:`mmcore.clips.ClipReader` to read several clips of one file.

    Examples
    --------
    >>> import mmcore
    >>> clip = mmcore.read_clip("film.mp4", 10, 12, video={"num_frames": 8})            # doctest: +SKIP
    >>> clip.video.pts_seconds, clip.audio.pts_seconds, clip.text[0].start              # doctest: +SKIP
    """
    from mmcore.decoding.audio_reader import NEAR_SECONDS

    # Of sound that far on, all packets must be known.
    far = start is None or stop is None or (isinstance(start, (int, float)) and start > NEAR_SECONDS)
    with ClipReader(
        source, video=video, audio=audio, text=text, strict=strict, network=network, _reads_far=far
    ) as reader:
        return reader.read(start, stop, augment=augment, seed=seed)
