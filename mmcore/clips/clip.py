"""A clip: the pictures, sound and words of one stretch of time, on one clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmcore.errors import MMCoreError
from mmcore.ops.frame_transform import Patches

from .alignment import Alignment, align_intervals
from .timeline import Intervals, Tiles, spread

if TYPE_CHECKING:
    from mmcore.decoding.audio_samples import AudioSamples
    from mmcore.decoding.frame import FrameBatch
    from mmcore.decoding.text_segment import TextSegment
    from mmcore.tokenizers import TimedTokens

    from .augment import Augmentation

__all__ = ["MODALITIES", "Clip", "Spectrogram"]

MODALITIES = ("video", "audio", "text")


@dataclass(frozen=True, slots=True, eq=False)
class Spectrogram:
    """Log-mel frames of a clip's sound.

    Attributes
    ----------
    data : Tensor
        (mels, frames), or (frames, mels), as the settings' layout says.
    pts_seconds : float
        Middle of the first frame's window.
    step_seconds : float
        From one frame's middle to the next one's.
    time_dim : int
        Which dimension of ``data`` is time.
    """

    data: Tensor
    pts_seconds: float
    step_seconds: float
    time_dim: int = 1

    def __len__(self) -> int:
        return int(self.data.shape[self.time_dim])


@dataclass(frozen=True, eq=False)
class Clip:
    """What :func:`mmcore.read_clip` gives.

    Attributes
    ----------
    start, stop : float
        Seconds: the range that was asked for, after augmentation.
    modalities : tuple of str
        Those asked for, of "video", "audio" and "text", in this order.
    mask : Tensor
        (1, M) bool: for each of ``modalities`` whether the clip holds any frame, sample or segment of it; as
        ``weighted_fusion(mask=)`` takes it.
    video : FrameBatch or None
        None, as for the others, if it was not asked for, is not in the file, or could not be read.
    audio : AudioSamples or None
    spectrogram : Spectrogram or None
        Of ``audio``, if asked for.
    text : tuple of TextSegment or None
        Those shown at some time of the clip, whole, so that they may begin before it or end after it.
    tokens : TimedTokens or None
        Of ``text``, if a tokenizer was given.
    errors : dict of str to MMCoreError
        By modality, what made it None, or cost a part of it. A file that lacks a modality is no error.
    layout : str or Patches
        Of ``video.data``.
    augmentation : Augmentation or None
        What was changed, by which random numbers.
    """

    start: float
    stop: float
    modalities: tuple[str, ...]
    mask: Tensor
    video: FrameBatch | None = None
    audio: AudioSamples | None = None
    spectrogram: Spectrogram | None = None
    text: tuple[TextSegment, ...] | None = None
    tokens: TimedTokens | None = None
    errors: dict[str, MMCoreError] = field(default_factory=dict)
    layout: str | Patches = "NCHW"
    augmentation: Augmentation | None = None

    @property
    def duration_seconds(self) -> float:
        """``stop - start``."""
        return self.stop - self.start

    def to(
        self,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        *,
        non_blocking: bool = False,
    ) -> Clip:
        """Copy whose pictures, samples, spectrogram, token ids and mask are on ``device``.

        ``dtype`` is that of pictures, samples and spectrogram where they are floating-point already, as
        ``torch.nn.Module.to`` has it. Times stay on the CPU as they are.
        """

        def move(t: Tensor) -> Tensor:
            return t.to(device, dtype if t.is_floating_point() else None, non_blocking=non_blocking)

        return self.map_data(move)._map_small(move)

    def pin_memory(self) -> Clip:
        """Copy in page-locked memory, from which a transfer to a GPU need not wait; what is there stays."""

        def pin(t: Tensor) -> Tensor:
            return t.pin_memory() if t.device.type == "cpu" else t

        return self.map_data(pin)._map_small(pin)

    def map_data(self, change: Callable[[Tensor], Tensor]) -> Clip:
        """Copy with ``change`` applied to the tensors of pictures, samples and spectrogram."""
        changes = {}
        for name in ("video", "audio", "spectrogram"):
            part = getattr(self, name)
            if part is not None:
                changes[name] = replace(part, data=change(part.data))
        return replace(self, **changes)

    def _map_small(self, change: Callable[[Tensor], Tensor]) -> Clip:
        tokens = self.tokens
        tokens = None if tokens is None else replace(tokens, ids=change(tokens.ids))
        return replace(self, mask=change(self.mask), tokens=tokens)

    def align(
        self,
        rate: float,
        *,
        kind: str = "nearest",
        video: int | None = None,
        audio: int | None = None,
        text: str | None = None,
    ) -> Alignment:
        """Maps from each modality's features to one grid of time.

        Parameters
        ----------
        rate : float
            Steps per second; step k lasts from ``start + k / rate`` on, and stands for its middle.
        kind : {"nearest", "linear"}
            The feature in whose time a step's middle lies, or a mix of the two features between whose middles
            it lies; words are never mixed.
        video, audio : int, optional
            Features that a model made of the frames, or of the samples or spectrogram, all of one length. By
            default one per frame, spectrogram frame or, without spectrogram, sample.
        text : {"segments", "tokens"}, optional
            By default one feature per token if there are tokens, whose segment's time they share evenly; else
            one per segment.

        Returns
        -------
        Alignment
            With B = 1; its ``mask`` tells where a frame is shown, sound was recorded and words are spoken.

        Raises
        ------
        ValueError, TypeError
            For a rate that is not positive, or what is out of range.

        Examples
        --------
        >>> import mmcore
        >>> clip = mmcore.read_clip("clip.mp4", 0, 4)                                   # doctest: +SKIP
        >>> alignment = clip.align(25, audio=sound.shape[1])                            # doctest: +SKIP
        >>> features = alignment.gather([pictures, sound, words])                       # doctest: +SKIP
        >>> mmcore.weighted_fusion(features, mask=alignment.mask)                       # doctest: +SKIP
        """
        counts = {"video": video, "audio": audio}
        intervals = {
            name: [one] for name, one in modality_intervals(self, self.modalities, counts, text, {}).items()
        }
        return align_intervals(intervals, [(self.start, self.stop)], rate, kind)

    def __repr__(self) -> str:
        parts = [f"{self.start:.6g} to {self.stop:.6g} s"]
        if self.video is not None:
            parts.append(f"video {tuple(self.video.data.shape)}")
        if self.audio is not None:
            parts.append(f"audio {tuple(self.audio.data.shape)} at {self.audio.sample_rate} Hz")
        if self.spectrogram is not None:
            parts.append(f"spectrogram {tuple(self.spectrogram.data.shape)}")
        if self.text is not None:
            parts.append(f"{len(self.text)} text segments")
        missing = [m for m in self.modalities if getattr(self, m) is None]
        if missing:
            parts.append(f"no {', '.join(missing)}")
        return f"Clip({', '.join(parts)})"


def modality_intervals(
    clip: Clip,
    modalities: Sequence[str],
    counts: dict[str, int | None],
    text: str | None,
    padded: dict[str, int],
) -> dict[str, Intervals]:
    """Times of a clip's features; ``padded`` are the units that a batch has of video and audio."""
    for name, count in counts.items():
        if count is None:
            continue
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"{name}: expected a number of features, got {count!r}")
        if count < 1:
            raise ValueError(f"{name}: expected 1 or more features, got {count}")
    if text not in (None, "segments", "tokens"):
        raise ValueError(f"text: expected 'segments', 'tokens' or None, got {text!r}")
    found = {}
    for name in modalities:
        if name == "text":
            found[name] = _text_intervals(clip, text)
        else:
            tiles = _tiles(clip, name)
            found[name] = tiles.intervals(counts[name], max(padded.get(name, tiles.count), tiles.count))
        if name == "audio" and clip.audio is not None:
            found[name] = found[name].without(clip.audio.gaps)
    return found


def _tiles(clip: Clip, name: str) -> Tiles:
    def even(start: float, step: float, count: int) -> Tiles:
        return Tiles(torch.tensor([start, start + count * step], dtype=torch.float64), count)

    if name == "video" and clip.video is not None and len(clip.video):
        video = clip.video
        end = video.pts_seconds[-1:] + video.duration_seconds[-1:]
        return Tiles(torch.cat([video.pts_seconds, end]), len(video), video.valid)
    if name == "audio" and clip.spectrogram is not None:
        s = clip.spectrogram
        return even(s.pts_seconds - s.step_seconds / 2, s.step_seconds, len(s))
    if name == "audio" and clip.audio is not None:
        return even(clip.audio.pts_seconds, 1 / clip.audio.sample_rate, int(clip.audio.data.shape[-1]))
    return even(0.0, 0.0, 0)


def _text_intervals(clip: Clip, kind: str | None) -> Intervals:
    segments = clip.text or ()
    tokens = clip.tokens
    if kind == "tokens" and tokens is None and clip.text is not None:
        raise ValueError("text: the clip was read without a tokenizer; expected 'segments' or None")
    counts = [1] * len(segments)
    if tokens is not None and kind != "segments":
        counts = torch.bincount(tokens.segment_indices, minlength=len(segments)).tolist()
    return spread([s.start for s in segments], [s.end for s in segments], counts)
