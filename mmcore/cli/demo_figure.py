"""The figure of ``mmcore demo``: pictures, sound and words on one time axis, and a model's input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmcore.cli.pictures import DIM, FOREGROUND, Canvas, to_pictures

if TYPE_CHECKING:
    import torch

    from mmcore import AudioSamples, FrameTransform, LogMelSettings, TextSegment
    from mmcore.sample import SampleClip

__all__ = ["Bar", "DemoFigure"]

LIGHT, WORDS, PLAIN = "#ffc857", "#7fd1ae", "#5c6370"
MARGIN, GAP = 36, 16
LABELS = 84  # width of the rows' names
WIDTH = 1500
CONTENT = WIDTH - MARGIN - LABELS - MARGIN
LIGHT_HEIGHT, SOUND_HEIGHT, WORDS_HEIGHT = 60, 190, 34


@dataclass(frozen=True)
class Bar:
    """One way to decode: its name, and what it takes."""

    name: str
    milliseconds: float
    ratio: float


@dataclass(frozen=True)
class DemoFigure:
    """What the figure shows.

    Attributes
    ----------
    clip : SampleClip
    frames : Tensor
        All frames as a model gets them.
    transform : FrameTransform
        How they were made; NCHW.
    mels : Tensor
        (mels, frames) of ``settings``.
    settings : LogMelSettings
    sound : AudioSamples
        What ``mels`` was made of.
    segments : sequence of TextSegment
    bars : sequence of Bar
        The second one is mmcore's.
    """

    clip: SampleClip
    frames: torch.Tensor
    transform: FrameTransform
    mels: torch.Tensor
    settings: LogMelSettings
    sound: AudioSamples
    segments: Sequence[TextSegment]
    bars: Sequence[Bar]

    def write(self, path: Path) -> None:
        """Draw it to a PNG file."""
        tiles = min(12, 2 * round(self.clip.duration_seconds))
        tile_width = CONTENT // tiles
        tile_height = round(tile_width * self.clip.height / self.clip.width)
        top = 128
        below = top + tile_height + LIGHT_HEIGHT + SOUND_HEIGHT + WORDS_HEIGHT + 136
        canvas = Canvas(below + 24 + 224 + 296, WIDTH)
        canvas.text(MARGIN, 46, "mmcore: pictures, sound and words on one clock", size=17, weight="bold")
        clip = self.clip
        described = (
            f"{Path(clip.path).name}: {clip.duration_seconds:g} s of H.264 {clip.width}x{clip.height},"
            f" AAC at {clip.sample_rate} Hz and mov_text; each bounce is a flash, a click and a word"
        )
        canvas.text(MARGIN, 74, described, size=10, color=DIM)
        self._draw_clock(canvas, top, tiles, tile_width, tile_height)
        self._draw_input(canvas, below)
        self._draw_tensors(canvas, below + 24 + 224 + 76)
        self._draw_bars(canvas, below + 24 + 224 + 76)
        canvas.save(path)

    def _draw_clock(self, canvas: Canvas, top: int, tiles: int, tile_width: int, tile_height: int) -> None:
        """Frames where they are shown, brightness, log-mel and words below one another."""
        import numpy as np
        import torch

        import mmcore

        left, end = MARGIN + LABELS, self.clip.duration_seconds
        width = tile_width * tiles
        begins = [i * end / tiles for i in range(tiles)]
        shrink = mmcore.FrameTransform(resize=(tile_height, tile_width - 2), dtype=torch.uint8, layout="NHWC")
        with mmcore.VideoDecoder(self.clip.path, transform=shrink) as decoder:
            shown = decoder.get_frames_played_at(begins)
        for i, seconds in enumerate(shown.pts_seconds.tolist()):
            canvas.picture(top, left + i * tile_width, shown.data[i])
            canvas.text(left + i * tile_width, top - 8, f"{seconds:.3f} s", size=8, color=DIM)
        canvas.text(MARGIN, top + tile_height / 2 + 4, "pictures", size=10)
        y = top + tile_height + 12

        light = canvas.axes(left, y, width, LIGHT_HEIGHT)
        levels = to_pictures(self.frames, self.transform, self.clip.num_frames, *self.frames.shape[2:])
        light.plot(
            np.arange(self.clip.num_frames) / self.clip.fps,
            levels.float().mean(dim=(1, 2, 3)).numpy(),
            color=LIGHT,
            lw=1.6,
        )
        light.set(xlim=(0, end), xticks=[], yticks=[])
        canvas.text(MARGIN, y + 36, "brightness", size=10, color=LIGHT)
        y += LIGHT_HEIGHT + 10

        sound = canvas.axes(left, y, width, SOUND_HEIGHT)
        settings, mels = self.settings, self.mels
        step = settings.hop_length / settings.sample_rate
        begin = self.sound.pts_seconds - step / 2  # frame i lies around sample i * hop_length
        sound.imshow(
            mels.numpy(),
            origin="lower",
            aspect="auto",
            cmap="magma",
            interpolation="nearest",
            extent=(begin, begin + mels.shape[1] * step, 0, mels.shape[0]),
        )
        sound.set(xlim=(0, end), xticks=[], yticks=[])
        canvas.text(MARGIN, y + 82, "sound", size=10)
        canvas.text(MARGIN, y + 98, "log-mel", size=8, color=DIM)
        y += SOUND_HEIGHT + 10

        words = canvas.axes(left, y, width, WORDS_HEIGHT)
        for segment in self.segments:
            words.barh(0, segment.end - segment.start, left=segment.start, height=1, color=WORDS, alpha=0.9)
            words.text(segment.start + 0.03, 0, segment.text, va="center", color="#15171c", size=10)
        words.set(xlim=(0, end), ylim=(-0.5, 0.5), yticks=[], xlabel="seconds")
        canvas.text(MARGIN, y + 21, "words", size=10, color=WORDS)
        for axes, color in ((light, FOREGROUND), (sound, FOREGROUND)):
            for event in self.clip.events:
                axes.axvline(event.seconds, color=color, lw=0.7, ls=":", alpha=0.7)

    def _draw_input(self, canvas: Canvas, top: int) -> None:
        """The first bounce, frame by frame, as the model gets it."""
        height, width = self.frames.shape[2:]
        first = self.clip.events[0].frame
        chosen = [first + i for i in (-8, -2, 0, 2, 10, 21)]
        seen = to_pictures(self.frames[chosen], self.transform, len(chosen), height, width)
        canvas.text(MARGIN, top, "What a model gets of the first bounce", size=12, weight="bold")
        canvas.text(
            MARGIN + 386,
            top,
            f"short side {self.transform.resize}, centre {width}x{height}, normalised (here mapped back)",
            size=10,
            color=DIM,
        )
        for i, frame in enumerate(chosen):
            left = MARGIN + i * (width + GAP)
            canvas.picture(top + 16, left, seen[i])
            caption = f"{frame / self.clip.fps:.3f} s   #{frame}"
            canvas.text(left, top + 16 + height + 18, caption, size=8, color=DIM)

    def _draw_tensors(self, canvas: Canvas, top: int) -> None:
        """What came out, as a table."""
        import mmcore

        tokens = mmcore.tokenize_segments(self.segments, mmcore.ByteTokenizer())
        canvas.text(MARGIN, top, "What came out", size=12, weight="bold")
        step = 1000 * self.settings.hop_length / self.settings.sample_rate
        rows = (
            ("pictures", "VideoDecoder", _shape(self.frames)),
            ("sound", "AudioDecoder", f"{_shape(self.sound.data)} at {self.sound.sample_rate} Hz"),
            ("", "log_mel", f"{_shape(self.mels)} every {step:g} ms"),
            ("words", "TextDecoder", f"{len(self.segments)} segments"),
            ("", "tokenize_segments", f"{_shape(tokens.ids)} bytes, each with its time"),
        )
        for i, (kind, name, result) in enumerate(rows):
            y = top + 34 + 28 * i
            canvas.text(MARGIN, y, kind, size=10, color=DIM)
            canvas.text(MARGIN + LABELS, y, name, size=10, family="DejaVu Sans Mono")
            canvas.text(MARGIN + LABELS + 170, y, result, size=10, family="DejaVu Sans Mono", color=LIGHT)

    def _draw_bars(self, canvas: Canvas, top: int) -> None:
        """Times per frame."""
        left = MARGIN + 880
        canvas.text(MARGIN + 750, top, "Time per frame", size=12, weight="bold")
        canvas.text(MARGIN + 908, top, "as a multiple of decoding only", size=10, color=DIM)
        axes = canvas.axes(left, top + 16, WIDTH - MARGIN - left, 140)
        values = [bar.milliseconds for bar in self.bars]
        colors = [LIGHT if i == 1 else PLAIN for i in range(len(values))]
        axes.barh([bar.name for bar in self.bars], values, color=colors, height=0.55)
        for i, bar in enumerate(self.bars):
            axes.text(values[i], i, f" {bar.ratio:.2f}x", va="center", color=FOREGROUND, size=9)
        axes.invert_yaxis()
        axes.set(xlim=(0, max(values) * 1.2), xlabel="ms per frame")


def _shape(tensor: Any) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
