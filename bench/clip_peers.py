"""Who reads clips: mmcore, and what is written by hand with PyAV or TorchCodec, pysubs2 and torch.

A clip is two seconds of a file: pictures (T, 3, S, S), normalised float32; sound, mono at 16 kHz, as samples
or as Whisper's log-mel; and the words shown. Everybody runs at the best settings found: one decoder thread; a
seek to the key frame before; only the frames that are wanted converted, by FFmpeg's own resize, which beats
torch's here; other streams discarded by the demuxer; sound from a tenth of a second before the clip on, so
that decoder and resampler have settled.
"""

# mypy: disable-error-code="import-not-found,import-untyped"
from __future__ import annotations

import functools
import importlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mmcore
from bench import media
from bench.cases import MEAN, STD, Job
from bench.peers import Sink, rgb_view

__all__ = [
    "OURS",
    "PEERS",
    "RATE",
    "SAVED",
    "SECONDS",
    "ClipCase",
    "Found",
    "Peer",
    "log_mel",
    "peers",
    "words_between",
]

OURS, SAVED = "mmcore", "mmcore saved index"
SECONDS, RATE = 2.0, 16000
_BEFORE = 0.1  # seconds of sound decoded before a clip
_SHOWN = 1e-6  # a time on the border of two frames belongs to the later one, whatever it was rounded to

Words = tuple[tuple[float, float, str], ...]


@dataclass(frozen=True)
class ClipCase:
    """One row of the suite.

    Attributes
    ----------
    file : str
        "mp4", with mov_text; "mkv", with SubRip; "srt", an MP4 with the words in a file beside it; "minutes",
        the MP4 over and over for five minutes.
    width, height : int
        Of the file's pictures.
    size : int
        Height and width of the result's.
    frames : int or None
        Those shown at the starts of so many equal parts of the clip; None: every frame.
    mel : bool
        Sound as log-mel instead of samples.
    starts : tuple of float
        Seconds: a clip each.
    once : bool
        All of these clips from one opening of the file.
    """

    name: str
    file: str
    width: int
    height: int
    size: int
    frames: int | None
    mel: bool
    starts: tuple[float, ...]
    once: bool = False

    def job(self, path: Path) -> Job:
        """What :class:`bench.peers.Sink` needs to know."""
        return Job(media.Clip(path, "h264", self.width, self.height), "direct", (self.size,) * 2, None)


@dataclass(frozen=True)
class Found:
    """What a clip holds."""

    pictures: Tensor
    sound: Tensor
    """(samples,) or (mels, frames)."""
    words: Words


Run = Callable[[], list[Found]]


@dataclass(frozen=True)
class Peer:
    """One way to read clips.

    Attributes
    ----------
    prepare : callable
        ``prepare(case, path, threads)`` gives a function that reads all of the case's clips.
    needs : tuple of str
        Modules that must import.
    levels : float
        As ``mean_levels`` of :class:`bench.peers.Competitor`.
    """

    name: str
    prepare: Callable[[ClipCase, Path, int], Run]
    needs: tuple[str, ...]
    levels: float

    def missing(self) -> str | None:
        """None if it can run here, else the reason."""
        for name in self.needs:
            try:
                importlib.import_module(name)
            except Exception as e:  # a native library that fails to load raises anything
                return f"{type(e).__name__}: {str(e).strip().partition(chr(10))[0] or name}"
        return None


def words_between(words: Sequence[tuple[float, float, str]], start: float) -> Words:
    """Those shown at some time of the clip."""
    return tuple(word for word in words if word[0] < start + SECONDS and word[1] > start)


def log_mel(samples: Tensor) -> Tensor:
    """(80, frames) of (samples,), as openai-whisper has it."""
    stft = torch.stft(samples, 400, 160, window=_window(), return_complex=True)
    log = (_filters() @ stft[:, :-1].abs().square()).clamp(min=1e-10).log10()
    return (torch.maximum(log, log.max() - 8.0) + 4.0) / 4.0


@functools.cache
def _window() -> Tensor:
    return torch.hann_window(400)


@functools.cache
def _filters() -> Tensor:
    return torch.from_numpy(mmcore.LogMelSettings.whisper().mel_filters()).float()


# ---- mmcore


def _ours(case: ClipCase, path: Path, threads: int, *, saved_index: bool) -> Run:
    video = {
        "transform": mmcore.FrameTransform(resize=(case.size,) * 2, mean=MEAN, std=STD, dtype=torch.float32),
        "num_frames": case.frames,
        "num_threads": threads,
        "index": media.cache_dir() / "indices" if saved_index else None,
    }
    options: dict[str, Any] = {
        "video": video,
        "audio": {"sample_rate": RATE, "num_channels": 1, "log_mel": case.mel},
        "text": True,
    }

    def found(clip: mmcore.Clip) -> Found:
        if clip.video is None or clip.audio is None or clip.text is None:
            raise AssertionError(f"{path}: not all streams could be read: {clip.errors}")
        sound = clip.audio.data[0] if clip.spectrogram is None else clip.spectrogram.data
        return Found(clip.video.data, sound, tuple((s.start, s.end, s.text) for s in clip.text))

    def run() -> list[Found]:
        if not case.once:
            return [found(mmcore.read_clip(path, t, t + SECONDS, **options)) for t in case.starts]
        with mmcore.clips.ClipReader(path, **options) as reader:
            return [found(reader.read(t, t + SECONDS)) for t in case.starts]

    return run


# ---- by hand


class _Clips:
    """Clips of a file, a container for each stream or one for all; the file opened for each clip or once."""

    def __init__(self, case: ClipCase, path: Path, threads: int, *, shared: bool) -> None:
        self.case, self.path, self.threads, self.shared = case, path, threads, shared
        self.job = case.job(path)
        self.containers: dict[str, Any] = {}
        self.ahead: Iterator[Any] | None = None
        self.position = 0.0
        self.stack = ExitStack()

    def __call__(self) -> list[Found]:
        found = []
        for start in self.case.starts:
            found.append(self.read(start))
            if not self.case.once:
                self.close()
        self.close()
        return found

    def close(self) -> None:
        self.ahead = None
        for container in self.containers.values() if self.threads != 1 else ():
            stream = container.streams.video[0]
            stream.codec_context.flush_buffers()  # closing with packets in flight has hung
        self.containers.clear()
        self.stack.close()

    def read(self, start: float) -> Found:
        sound = self.sound(start)
        return Found(self.pictures(start), log_mel(sound) if self.case.mel else sound, self.words(start))

    def opened(self, kind: str) -> Any:
        """The container, at any place, of which only the streams of one kind are read."""
        import av
        from av.stream import Discard

        name = "all" if self.shared else kind
        if name not in self.containers:
            container = self.stack.enter_context(av.open(str(self.path)))
            container.streams.video[0].codec_context.thread_count = self.threads
            if self.threads != 1:
                container.streams.video[0].thread_type = "FRAME"
            self.containers[name] = container
        container = self.containers[name]
        for stream in container.streams:
            stream.discard = Discard.default if stream.type == kind else Discard.all
        return container

    def pictures(self, start: float) -> Tensor:
        from av.video.reformatter import Interpolation, VideoReformatter

        container = self.opened("video")
        stream = container.streams.video[0]
        frames = self.ahead
        at = int(start / stream.time_base)
        entries = stream.index_entries
        key = float(entries[entries.search_timestamp(at)].timestamp * stream.time_base)
        if frames is None or self.shared or not key <= self.position <= start:
            container.seek(at, stream=stream)
            frames = container.decode(stream)
        chosen, last = _shown(frames, start, self.case.frames)
        if last is not None:  # the next clip may go on from here
            self.ahead, self.position = itertools.chain((last,), frames), last.time
        sink, reformatter, size = (
            Sink(self.job, len(chosen), None, resize=False),
            VideoReformatter(),
            self.case,
        )
        for frame in chosen:
            small = reformatter.reformat(
                frame, size.size, size.size, "rgb24", interpolation=Interpolation.BILINEAR
            )
            sink.put(rgb_view(small))
        return sink.result()

    def sound(self, start: float) -> Tensor:
        import av

        container = self.opened("audio")
        stream = container.streams.audio[0]
        factor = stream.rate // RATE
        if factor * RATE != stream.rate:
            raise AssertionError(f"expected sound at a multiple of {RATE} Hz, got {stream.rate}")
        container.seek(max(0, int((start - _BEFORE) / stream.time_base)), stream=stream)
        resampler = av.AudioResampler("fltp", "mono", RATE)
        first, last = round(start * RATE), round((start + SECONDS) * RATE)
        begin = count = 0
        parts: list[Tensor] = []
        for i, frame in enumerate(container.decode(stream)):
            if i == 0:
                # Matroska rounds times to a thousandth of a second; AAC's frames follow each other from 0 on
                at = round(frame.pts * frame.time_base * stream.rate / frame.samples) * frame.samples
                begin = -(-at // factor)
                frame = _without(frame, begin * factor - at)  # samples of 16 kHz lie on its own
            for part in resampler.resample(frame):
                parts.append(torch.from_numpy(part.to_ndarray()[0]))
                count += part.samples
            if begin + count >= last:
                break
        else:
            parts += [torch.from_numpy(part.to_ndarray()[0]) for part in resampler.resample(None)]
        return torch.cat(parts)[first - begin : last - begin]

    def words(self, start: float) -> Words:
        if self.case.file == "srt":
            return _sidecar_words(self.path, start)
        container = self.opened("subtitle")
        stream = container.streams.subtitles[0]
        container.seek(0)
        found = []
        for packet in container.demux(stream):
            if packet.pts is None or packet.pts * packet.time_base >= start + SECONDS:
                break
            begin = float(packet.pts * packet.time_base)
            for line in packet.decode():
                text = line.dialogue.decode()
                found.append((begin, begin + float(packet.duration * packet.time_base), text))
        return words_between(found, start)


def _shown(frames: Iterator[Any], start: float, count: int | None) -> tuple[list[Any], Any]:
    """The frames shown at the starts of equal parts of a clip, or all shown in it; and the next frame."""
    found: list[Any] = []
    if count is None:
        for frame in frames:
            if frame.time >= start + SECONDS - _SHOWN:
                return found, frame
            if frame.time >= start - _SHOWN:
                found.append(frame)
        return found, None
    times = [start + i * SECONDS / count + _SHOWN for i in range(count)]
    shown = None
    for frame in frames:
        while len(found) < count and shown is not None and frame.time > times[len(found)]:
            found.append(shown)
        if len(found) == count:
            return found, frame
        shown = frame
    return found + [shown] * (count - len(found)), None


def _without(frame: Any, samples: int) -> Any:
    """An audio frame without its first samples."""
    import av

    rest = frame.to_ndarray()[:, samples:].copy()
    short = av.AudioFrame.from_ndarray(rest, frame.format.name, frame.layout.name)
    short.sample_rate, short.time_base = frame.sample_rate, frame.time_base
    return short


def _sidecar_words(path: Path, start: float) -> Words:
    import pysubs2

    events = pysubs2.load(str(path.with_suffix(".srt")))
    return words_between([(e.start / 1000, e.end / 1000, e.plaintext) for e in events], start)


class _TorchCodecClips(_Clips):
    """Pictures and sound from TorchCodec's decoders, words as the others have them."""

    def __init__(self, case: ClipCase, path: Path, threads: int, *, seek_mode: str) -> None:
        super().__init__(case, path, threads, shared=True)
        self.seek_mode = seek_mode
        self.decoders: dict[str, Any] = {}

    def close(self) -> None:
        super().close()
        self.decoders.clear()

    def pictures(self, start: float) -> Tensor:
        from torchcodec.decoders import VideoDecoder
        from torchcodec.transforms import Resize

        if "video" not in self.decoders:
            self.decoders["video"] = VideoDecoder(
                str(self.path),
                num_ffmpeg_threads=self.threads,
                seek_mode=self.seek_mode,
                transforms=[Resize((self.case.size,) * 2)],
            )
        decoder, count = self.decoders["video"], self.case.frames
        if count is None:
            batch = decoder.get_frames_played_in_range(start, start + SECONDS)
        else:
            batch = decoder.get_frames_played_at([start + i * SECONDS / count + _SHOWN for i in range(count)])
        sink = Sink(self.job, len(batch.data), None, resize=False)
        sink.put(batch.data, cropped=True)
        return sink.result()

    def sound(self, start: float) -> Tensor:
        from torchcodec.decoders import AudioDecoder

        if "audio" not in self.decoders:
            self.decoders["audio"] = AudioDecoder(str(self.path), sample_rate=RATE, num_channels=1)
        samples: Tensor = self.decoders["audio"].get_samples_played_in_range(start, start + SECONDS).data
        return samples[0]


PEERS: tuple[Peer, ...] = (
    Peer("PyAV opened per stream", functools.partial(_Clips, shared=False), ("av", "pysubs2"), 3.0),
    Peer("PyAV opened once", functools.partial(_Clips, shared=True), ("av", "pysubs2"), 3.0),
    Peer(
        "TorchCodec exact",
        functools.partial(_TorchCodecClips, seek_mode="exact"),
        ("torchcodec", "av", "pysubs2"),
        3.0,
    ),
    Peer(
        "TorchCodec approximate",
        functools.partial(_TorchCodecClips, seek_mode="approximate"),
        ("torchcodec", "av", "pysubs2"),
        3.0,
    ),
    Peer(SAVED, functools.partial(_ours, saved_index=True), ("mmcore",), 0.0),
    Peer(OURS, functools.partial(_ours, saved_index=False), ("mmcore",), 0.0),
)
"""The first word of a name is the library."""


def peers(case: ClipCase) -> list[Peer]:
    """Who takes part in a case: a saved index of pictures counts where there are many."""
    return [p for p in PEERS if p.name != SAVED or case.file == "minutes"]
