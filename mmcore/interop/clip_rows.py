"""Clips as rows of NumPy arrays: what a table of clips holds, whichever system keeps the table."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from mmcore.clips import AudioOptions, Clip, ClipReader, TextOptions, VideoOptions
from mmcore.clips.clip import MODALITIES
from mmcore.errors import MMCoreError
from mmcore.ops.frame_transform import Patches
from mmcore.samplers import Sampler

if TYPE_CHECKING:
    from mmcore.decoding import FrameBatch

__all__ = ["ClipRows", "ClipSource", "Row"]

Row: TypeAlias = dict[str, Any]

_log = logging.getLogger("mmcore")
# What a file can be blamed for; any other error is a mistake in a program and is never passed over.
_FILE_ERRORS = (MMCoreError, OSError, ValueError, IndexError)


@dataclass(frozen=True, slots=True)
class ClipSource:
    """A stretch of a file: its position among the sources, the file, and from when to when in seconds."""

    index: int
    path: str
    start: float | None
    stop: float | None


@dataclass(frozen=True)
class ClipRows:
    """How sources become rows; :func:`mmcore.interop.ray.read_clips` explains the options.

    Picklable, so that it can be sent to the process that reads.
    """

    video: VideoOptions | None
    audio: AudioOptions | None
    text: TextOptions | None
    clip_seconds: float | None = None
    drop_last: bool = False
    sampler: Sampler | Callable[[Any], Sequence[int] | Tensor] | None = None
    epoch: int = 0
    strict: bool = False
    network: bool = False
    open_source: Callable[[str], Any] | None = None
    on_file_error: str = "raise"
    folder: str = ""
    """What relative paths are relative to: that of the process that asks, not of the one that reads."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those asked for, in the order of the rows' masks."""
        return tuple(name for name in MODALITIES if getattr(self, name) is not None)

    def read(self, sources: Sequence[ClipSource]) -> Iterator[Row]:
        """Rows of the sources, in their order; a file is opened once for sources that follow one another."""
        for path, group in groupby(sources, lambda source: source.path):
            with ExitStack() as stack:
                try:
                    reader = self._opened(path, stack)
                except _FILE_ERRORS as error:
                    for source in group:
                        yield from self._failed(source, 0, source.start, source.stop, error)
                    continue
                for source in group:
                    yield from self._clips(source, reader)

    def _opened(self, path: str, stack: ExitStack) -> _Reader:
        content: Any = path if "://" in path else os.path.join(self.folder, path)
        if self.open_source is not None:
            content = self.open_source(path)
        if isinstance(content, AbstractContextManager):
            stack.enter_context(content)
        return _Reader(self, path, content, stack)

    def _clips(self, source: ClipSource, read: _Reader) -> Iterator[Row]:
        try:
            stretches = self._cut(source, read)
        except _FILE_ERRORS as error:
            yield from self._failed(source, 0, source.start, source.stop, error)
            return
        for number, (start, stop) in enumerate(stretches):
            try:
                clip = read(start, stop)
            except _FILE_ERRORS as error:
                yield from self._failed(source, number, start, stop, error)
            else:
                yield self._row(source, number, clip)

    def _cut(self, source: ClipSource, read: _Reader) -> list[tuple[float | None, float | None]]:
        """The stretches of a source that become a row each."""
        if self.clip_seconds is None:
            return [(source.start, source.stop)]
        first, last = read.extent()
        begin = first if source.start is None else max(source.start, first)
        end = last if source.stop is None else min(source.stop, last)
        if end < begin:
            raise ValueError(
                f"start, stop: [{source.start}, {source.stop}] is no range of the file, which lasts from"
                f" {first} to {last} s"
            )
        whole = int((end - begin) / self.clip_seconds + 1e-6)
        edges = [begin + i * self.clip_seconds for i in range(whole + 1)]
        # What is shorter than any frame is the rounding of the file's times.
        if not self.drop_last and end - edges[-1] > 1e-3:
            edges.append(end)
        return list(pairwise(edges))

    def _failed(
        self, source: ClipSource, number: int, start: float | None, stop: float | None, error: Exception
    ) -> Iterator[Row]:
        if self.on_file_error == "raise":
            error.add_note(f"source {source.index}: {source.path}")
            raise error
        if self.on_file_error == "skip":
            _log.warning("passed over clip %d of source %d: %s", number, source.index, error)
            return
        nothing = Clip(
            start=np.nan if start is None else start,
            stop=np.nan if stop is None else stop,
            modalities=self.modalities,
            mask=torch.zeros(1, len(self.modalities), dtype=torch.bool),
        )
        yield self._row(source, number, nothing, f"{type(error).__name__}: {error}")

    # --- a clip as arrays

    def _row(self, source: ClipSource, number: int, clip: Clip, error: str | None = None) -> Row:
        if error is None and clip.errors:
            error = "; ".join(f"{name}: {e}" for name, e in clip.errors.items())
        row: Row = {
            "source": source.path,
            "index": source.index,
            "clip": number,
            "start": float(clip.start),
            "stop": float(clip.stop),
            "error": error,
            "mask": clip.mask[0].numpy(),
        }
        if self.video is not None:
            row |= self._video_columns(self.video, clip)
        if self.audio is not None:
            row |= self._audio_columns(self.audio, clip)
        if self.text is not None:
            row |= self._text_columns(self.text, clip)
        return row

    @staticmethod
    def _video_columns(options: VideoOptions, clip: Clip) -> Row:
        video = clip.video
        if video is None:
            layout = "NCHW" if options.transform is None else options.transform.layout
            dtype = torch.uint8 if options.transform is None else options.transform.dtype
            empty = torch.zeros((0,) * (2 if isinstance(layout, Patches) else 4), dtype=dtype)
            return {"video": empty.numpy(), "video_seconds": np.zeros(0), "video_valid": np.zeros(0, bool)}
        valid = torch.ones(len(video), dtype=torch.bool) if video.valid is None else video.valid
        return {
            "video": video.data.numpy(),
            "video_seconds": video.pts_seconds.numpy(),
            "video_valid": valid.numpy(),
        }

    @staticmethod
    def _audio_columns(options: AudioOptions, clip: Clip) -> Row:
        audio, spectrogram, settings = clip.audio, clip.spectrogram, options.mel_settings
        row: Row = {
            "audio": np.zeros((0, 0), np.float32) if audio is None else audio.data.numpy(),
            "audio_seconds": np.nan if audio is None else float(audio.pts_seconds),
            "sample_rate": 0 if audio is None else int(audio.sample_rate),
        }
        if settings is not None and spectrogram is None:
            row |= {"spectrogram": np.zeros((0, 0), np.float32), "spectrogram_seconds": np.zeros(0)}
        elif spectrogram is not None:
            steps = np.arange(len(spectrogram), dtype=np.float64)
            row["spectrogram"] = spectrogram.data.numpy()
            row["spectrogram_seconds"] = spectrogram.pts_seconds + spectrogram.step_seconds * steps
        return row

    @staticmethod
    def _text_columns(options: TextOptions, clip: Clip) -> Row:
        text, tokens = clip.text or (), clip.tokens
        row: Row = {
            "text": [segment.text for segment in text],
            "text_start": np.array([segment.start for segment in text], np.float64),
            "text_stop": np.array([segment.end for segment in text], np.float64),
        }
        if options.tokenizer is not None:
            none = np.zeros(0, np.int64)
            row["tokens"] = none if tokens is None else tokens.ids.numpy()
            row["token_segments"] = none if tokens is None else tokens.segment_indices.numpy()
        return row


class _Reader:
    """One open file: reads clips of it, with the frames that the times or the sampler choose.

    A sampler chooses among all frames, which a reader of clips does not offer: its pictures come from a
    decoder of their own, and the sound and words of the time that they cover from the reader.
    """

    def __init__(self, rows: ClipRows, path: str, content: Any, stack: ExitStack) -> None:
        self._rows = rows
        self._path = path
        self._reader: ClipReader | None = None
        self._decoder: Any = None
        video: VideoOptions | bool | None = rows.video
        if rows.sampler is not None:
            from mmcore.decoding import VideoDecoder

            assert rows.video is not None
            self._decoder = stack.enter_context(
                VideoDecoder(
                    content,
                    stream_index=rows.video.stream_index,
                    num_threads=rows.video.num_threads,
                    seek_mode=rows.video.seek_mode,
                    transform=rows.video.transform,
                    on_error=rows.video.on_error,
                    index=rows.video.index,
                    network=rows.network,
                )
            )
            video = False
            if rows.audio is None and rows.text is None:
                return
        self._reader = stack.enter_context(
            ClipReader(
                content,
                video=video,
                audio=rows.audio,
                text=rows.text,
                strict=rows.strict,
                network=rows.network,
                _reads_far=True,
            )
        )

    def extent(self) -> tuple[float, float]:
        """From when to when the file's streams last, in seconds."""
        assert self._reader is not None
        return self._reader._extent()

    def __call__(self, start: float | None, stop: float | None) -> Clip:
        if self._decoder is None:
            assert self._reader is not None
            return self._reader.read(start, stop)
        frames = self._sampled()
        start = float(frames.pts_seconds.min())
        stop = float((frames.pts_seconds + frames.duration_seconds).max())
        parts: dict[str, Any] = {"video": frames, "errors": {}}
        here = {"video": True}
        if self._reader is not None:
            rest = self._reader.read(start, stop)
            here |= dict(zip(rest.modalities, rest.mask[0].tolist(), strict=True))
            parts |= {name: getattr(rest, name) for name in ("audio", "spectrogram", "text", "tokens")}
            parts["errors"] = rest.errors
        modalities = self._rows.modalities
        return Clip(
            start=start,
            stop=stop,
            modalities=modalities,
            mask=torch.tensor([[here[name] for name in modalities]]),
            layout=self._decoder.transform.layout,
            **parts,
        )

    def _sampled(self) -> FrameBatch:
        rows, decoder = self._rows, self._decoder
        # Keyed by name, not by position: the same draw when only a part of the sources is read again.
        if isinstance(rows.sampler, Sampler):
            chosen: Any = rows.sampler(decoder, key=os.fspath(self._path), epoch=rows.epoch)
        else:
            assert rows.sampler is not None
            chosen = rows.sampler(decoder)
        batch: FrameBatch = decoder.get_frames_at(
            chosen.tolist() if hasattr(chosen, "tolist") else list(chosen)
        )
        if not len(batch):
            raise ValueError(f"sampler: chose no frame of {self._path}")
        return batch
