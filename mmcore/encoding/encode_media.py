"""One call that writes pictures, sound and words to a media file."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from typing import Any, Unpack

import torch
from torch import Tensor

from mmcore.ops.frame_transform import LAYOUTS

from .audio_track import as_samples
from .encoder import Encoder
from .settings import EncoderSettings
from .text_track import as_cues
from .video_track import as_batch

__all__ = ["encode"]

# Frames and seconds of audio that are handed over at a time, so that the streams lie side by side.
_FRAMES = 16
_SECONDS = 1


def encode(
    path: str | os.PathLike[str],
    *,
    frames: Any = None,
    fps: Any = None,
    audio: Any = None,
    sample_rate: int | None = None,
    text: Any = None,
    layout: str = "NCHW",
    **settings: Unpack[EncoderSettings],
) -> None:
    """Write frames, audio and text, which all begin at 0 seconds, to a media file.

    Parameters
    ----------
    path : str or os.PathLike
        The file, its format by its suffix: .mp4, .m4v, .mov, .mkv, .webm, .ts; .m4a, .mka, .wav, .flac,
        .mp3, .ogg, .opus. It appears when all is written: an error leaves nothing.
    frames : Tensor, or iterable of Tensor, Frame or FrameBatch, optional
        (T, 3, H, W) or as ``layout`` says, uint8, float16, bfloat16 or float32, any device; or an iterable,
        such as a generator or a :class:`VideoDecoder`, of frames or batches, held in memory one at a time.
        Floating frames are 0 to 1 unless ``mean``, ``std`` or ``scale`` say otherwise. A single channel is
        gray.
    fps : int, float or Fraction
        Frames per second, needed with ``frames``.
    audio : Tensor, AudioSamples, or iterable of them, optional
        (channels, samples) or (samples,), floating; values beyond -1 to 1 are clipped.
    sample_rate : int
        Samples per second, needed unless ``audio`` tells.
    text : iterable of TextSegment or (start, end, str), optional
        Times in seconds; in any order.
    layout : {"NCHW", "NHWC", "CNHW"}
        Order of the dimensions of ``frames``; a single frame has them without N.
    **settings
        Everything else that :class:`Encoder` takes: ``mean``, ``std``, ``scale``, ``codec``,
        ``pixel_format``, ``crf``, ``preset``, ``matrix``, ``full_range``, ``extra_options``,
        ``audio_codec``, ``audio_bit_rate``, ``sample_format``, ``extra_audio_options``, ``text_codec``,
        ``language``, ``metadata``.

    Raises
    ------
    ValueError, TypeError
        For arguments that do not fit each other, the file format or the encoder.
    UnsupportedError
        If PyAV's FFmpeg lacks the encoder.
    OSError
        If the file cannot be written.

    Notes
    -----
    Lossless: ``codec="ffv1"`` (.mkv; 8-bit RGB), ``codec="libx264rgb", crf=0``, and ``audio_codec="flac"`` or
    a .flac file (24 bits). MKV and WebM round times to a thousandth of a second.

    Examples
    --------
    >>> import mmcore, torch, tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "clip.mp4")
    >>> mmcore.encode(path, frames=torch.rand(8, 3, 48, 64), fps=8, text=[(0.25, 0.75, "hello")])
    >>> mmcore.VideoDecoder(path).metadata.average_fps
    8.0
    """
    if not isinstance(layout, str) or layout not in LAYOUTS:
        raise ValueError(f"layout: expected one of {', '.join(map(repr, LAYOUTS))}, got {layout!r}")
    if frames is None and fps is not None:
        raise ValueError("fps: given without frames")
    if audio is None and sample_rate is not None:
        raise ValueError("sample_rate: given without audio")
    streams: dict[str, Any] = {}
    batches: Iterator[Tensor] = iter(())
    if frames is not None:
        if fps is None:
            raise ValueError("fps: expected the number of frames per second, needed with frames")
        batches = _batches(frames, layout)
        first = next(batches, None)
        if first is None:
            raise ValueError("frames: expected at least one frame")
        batches = itertools.chain((first,), batches)
        height, width = (first.shape[layout.index(d)] for d in "HW")
        streams |= {"height": height, "width": width, "fps": fps}
    sound: Iterator[Tensor] = iter(())
    if audio is not None:
        sound, channels, rate = _sound(audio, sample_rate)
        streams |= {"sample_rate": rate, "num_channels": channels}
    cues = [] if text is None else as_cues(text)
    with Encoder(path, text=bool(cues), layout=layout, **streams, **settings) as encoder:
        if cues:
            encoder.add_text(cues)  # at once: they wait in the encoder until their time has come
        part = next(sound, None)
        for batch in batches:
            encoder.add_frames(batch)
            while part is not None and encoder.audio_seconds < encoder.video_seconds:
                encoder.add_audio(part)
                part = next(sound, None)
        while part is not None:
            encoder.add_audio(part)
            part = next(sound, None)


def _batches(frames: Any, layout: str) -> Iterator[Tensor]:
    """Batches of a few frames, none of them empty."""
    axis = layout.index("N")
    single = isinstance(frames, Tensor) or isinstance(getattr(frames, "data", None), Tensor)
    if isinstance(frames, Tensor) and frames.dim() != 4:
        raise ValueError(f"frames: expected shape {layout}, got {tuple(frames.shape)}")
    if not single and (isinstance(frames, (str, bytes)) or not isinstance(frames, Iterable)):
        raise TypeError(f"frames: expected a tensor or an iterable of tensors, got {type(frames).__name__}")
    number = 0
    for item in (frames,) if single else frames:
        batch = as_batch(item, layout, number)
        number += batch.shape[axis]
        yield from (part for part in torch.split(batch, _FRAMES, axis) if part.shape[axis])


def _sound(audio: Any, sample_rate: int | None) -> tuple[Iterator[Tensor], int, int]:
    """Pieces of about a second, the number of channels and the rate."""
    single = isinstance(audio, Tensor) or hasattr(audio, "sample_rate")
    if not single and (isinstance(audio, (str, bytes)) or not isinstance(audio, Iterable)):
        raise TypeError(
            f"audio: expected a tensor, AudioSamples or an iterable of them, got {type(audio).__name__}"
        )
    items = iter((audio,) if single else audio)
    try:
        first, rate = as_samples(next(items), sample_rate)
    except StopIteration:
        raise ValueError("audio: expected at least one sample") from None

    def pieces() -> Iterator[Tensor]:
        size = max(1, rate * _SECONDS)
        for samples in itertools.chain((first,), (as_samples(item, rate)[0] for item in items)):
            yield from (part for part in torch.split(samples, size, 1) if part.shape[1])

    return pieces(), len(first), rate
