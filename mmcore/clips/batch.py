"""Clips of unequal length as one batch, padded, with masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmcore.errors import MMCoreError
from mmcore.ops.frame_transform import Patches

from .alignment import Alignment, align_intervals
from .clip import Clip, modality_intervals

if TYPE_CHECKING:
    from mmcore.decoding.text_segment import TextSegment

__all__ = ["ClipBatch", "collate_clips"]


@dataclass(frozen=True, eq=False)
class ClipBatch:
    """B clips, what is shorter padded with 0 at its end; made by :func:`collate_clips`.

    A tensor is None if no clip has its modality; a clip without it has padding alone.

    Attributes
    ----------
    clips : tuple of Clip
        Their times, texts, errors and augmentations; their tensors are in the batch, not here.
    modalities : tuple of str
    mask : Tensor
        (B, M) bool, as ``weighted_fusion(mask=)`` takes it.
    start, stop : Tensor
        (B,) float64, seconds.
    video : Tensor or None
        (B, T, 3, H, W), or with the clips' layout behind B; of patches (B, rows, values).
    video_mask : Tensor or None
        (B, T) bool, True where a frame could be decoded.
    video_seconds : Tensor or None
        (B, T) float64, the frames' times; 0 in the padding.
    audio : Tensor or None
        (B, channels, samples).
    audio_lengths : Tensor or None
        (B,) int64, samples.
    audio_seconds : Tensor or None
        (B,) float64, time of the first sample.
    spectrogram : Tensor or None
        (B, mels, frames), or (B, frames, mels).
    spectrogram_lengths : Tensor or None
        (B,) int64, frames.
    tokens : Tensor or None
        (B, tokens) int64.
    token_mask : Tensor or None
        (B, tokens) bool.
    """

    clips: tuple[Clip, ...]
    modalities: tuple[str, ...]
    mask: Tensor
    start: Tensor
    stop: Tensor
    video: Tensor | None = None
    video_mask: Tensor | None = None
    video_seconds: Tensor | None = None
    audio: Tensor | None = None
    audio_lengths: Tensor | None = None
    audio_seconds: Tensor | None = None
    spectrogram: Tensor | None = None
    spectrogram_lengths: Tensor | None = None
    tokens: Tensor | None = None
    token_mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.clips)

    def __repr__(self) -> str:
        names = ("video", "audio", "spectrogram", "tokens")
        shapes = [f"{name} {tuple(t.shape)}" for name in names if (t := getattr(self, name)) is not None]
        return f"ClipBatch({', '.join([f'{len(self)} clips', *shapes])})"

    @property
    def text(self) -> tuple[tuple[TextSegment, ...] | None, ...]:
        """Each clip's segments."""
        return tuple(clip.text for clip in self.clips)

    @property
    def errors(self) -> tuple[dict[str, MMCoreError], ...]:
        """Each clip's errors."""
        return tuple(clip.errors for clip in self.clips)

    def to(
        self,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        *,
        non_blocking: bool = False,
    ) -> ClipBatch:
        """Copy on ``device``; ``dtype`` as in :meth:`Clip.to`. Times in seconds stay on the CPU."""

        def move(t: Tensor) -> Tensor:
            return t.to(device, dtype if t.is_floating_point() else None, non_blocking=non_blocking)

        return self._map(move)

    def pin_memory(self) -> ClipBatch:
        """Copy in page-locked memory; what ``DataLoader(pin_memory=True)`` calls."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> ClipBatch:
        times = {"start", "stop", "video_seconds", "audio_seconds"}
        changes: dict[str, Any] = {
            f.name: change(value)
            for f in fields(self)
            if f.name not in times and isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **changes)

    def align(
        self,
        rate: float,
        *,
        kind: str = "nearest",
        video: int | None = None,
        audio: int | None = None,
        text: str | None = None,
    ) -> Alignment:
        """As :meth:`Clip.align` for all clips: T is that of the longest, and the mask is False behind a clip.

        ``video`` and ``audio`` count the features that a model makes of the padded tensors. The maps are on
        the mask's device.
        """
        padded = {}
        if self.video_mask is not None:
            padded["video"] = self.video_mask.shape[1]
        if self.spectrogram is not None:
            dim = next(c.spectrogram.time_dim for c in self.clips if c.spectrogram is not None)
            padded["audio"] = self.spectrogram.shape[1 + dim]
        elif self.audio is not None:
            padded["audio"] = self.audio.shape[2]
        counts = {"video": video, "audio": audio}
        found = [modality_intervals(c, self.modalities, counts, text, padded) for c in self.clips]
        intervals = {name: [one[name] for one in found] for name in self.modalities}
        ranges = [(clip.start, clip.stop) for clip in self.clips]
        return align_intervals(intervals, ranges, rate, kind).to(self.mask.device)


def collate_clips(clips: Sequence[Clip]) -> ClipBatch:
    """Batch clips of unequal length; a ``collate_fn`` for ``torch.utils.data.DataLoader``.

    Parameters
    ----------
    clips : sequence of Clip
        1 or more, on one device, read with the same modalities, picture size, layout, sample rate and number
        of channels.

    Raises
    ------
    TypeError
        If one is no Clip.
    ValueError
        If there are none, or two do not fit; the message names the clip and what differs.

    Examples
    --------
    >>> import torch
    >>> from mmcore.clips import Clip, collate_clips
    >>> clips = [Clip(0.0, 1.0, ("text",), torch.tensor([[True]]), text=()) for _ in range(2)]
    >>> collate_clips(clips).mask.shape
    torch.Size([2, 1])
    """
    if not isinstance(clips, Sequence) or not all(isinstance(clip, Clip) for clip in clips):
        raise TypeError(f"clips: expected a sequence of Clip, got {_kind(clips)}")
    if not clips:
        raise ValueError("clips: expected 1 or more, got none")
    modalities = clips[0].modalities
    _same("modalities", [(i, clip.modalities) for i, clip in enumerate(clips)])
    result: dict[str, Any] = {}
    result |= _collate_video(clips)
    result |= _collate_audio(clips)
    result |= _collate_tokens(clips)
    return ClipBatch(
        clips=tuple(_without_tensors(clip) for clip in clips),
        modalities=modalities,
        mask=torch.cat([clip.mask for clip in clips]),
        start=torch.tensor([clip.start for clip in clips], dtype=torch.float64),
        stop=torch.tensor([clip.stop for clip in clips], dtype=torch.float64),
        **result,
    )


def _kind(value: object) -> str:
    if isinstance(value, Sequence):
        return next((f"a {type(v).__name__} in it" for v in value if not isinstance(v, Clip)), "it")
    return type(value).__name__


def _same(what: str, values: Sequence[tuple[int, Any]]) -> None:
    for i, value in values[1:]:
        if value != values[0][1]:
            raise ValueError(
                f"clips: {what} must be the same for all: that of clip {values[0][0]} is {values[0][1]},"
                f" that of clip {i} is {value}"
            )


def _padded(tensors: Sequence[Tensor | None], dim: int) -> Tensor:
    """Stack, the lengths of ``dim`` made equal with 0; None is padding alone."""
    first = next(t for t in tensors if t is not None)
    shape = list(first.shape)
    shape[dim] = max(t.shape[dim] for t in tensors if t is not None)
    out = first.new_zeros((len(tensors), *shape))
    for row, t in zip(out, tensors, strict=True):
        if t is not None:
            row.narrow(dim, 0, t.shape[dim]).copy_(t)
    return out


def _collate_video(clips: Sequence[Clip]) -> dict[str, Tensor]:
    there = [(i, clip, clip.video) for i, clip in enumerate(clips) if clip.video is not None]
    if not there:
        return {}
    layout = there[0][1].layout
    _same("layout of the pictures", [(i, clip.layout) for i, clip, _ in there])
    _same("dtype of the pictures", [(i, video.data.dtype) for i, _, video in there])
    dim = 0 if isinstance(layout, Patches) else layout.index("N")
    shapes = []
    for i, _, video in there:
        shape = list(video.data.shape)
        del shape[dim]
        shapes.append((i, tuple(shape)))
    _same("size of the pictures", shapes)
    videos = [clip.video for clip in clips]
    masks = [
        None if v is None else torch.ones(len(v), dtype=torch.bool) if v.valid is None else v.valid
        for v in videos
    ]
    data = _padded([None if v is None else v.data for v in videos], dim)
    return {
        "video": data,
        "video_mask": _padded(masks, 0).to(data.device),
        "video_seconds": _padded([None if v is None else v.pts_seconds for v in videos], 0),
    }


def _collate_audio(clips: Sequence[Clip]) -> dict[str, Tensor]:
    result = {}
    there = [(i, clip.audio) for i, clip in enumerate(clips) if clip.audio is not None]
    if there:
        _same("sample rate", [(i, audio.sample_rate) for i, audio in there])
        _same("number of channels", [(i, audio.data.shape[0]) for i, audio in there])
        data = [None if clip.audio is None else clip.audio.data for clip in clips]
        result["audio"] = _padded(data, 1)
        lengths = [0 if t is None else t.shape[1] for t in data]
        result["audio_lengths"] = torch.tensor(lengths, device=result["audio"].device)
        seconds = [0.0 if clip.audio is None else clip.audio.pts_seconds for clip in clips]
        result["audio_seconds"] = torch.tensor(seconds, dtype=torch.float64)
    held = [(i, clip.spectrogram) for i, clip in enumerate(clips) if clip.spectrogram is not None]
    if held:
        dim = held[0][1].time_dim
        _same("layout of the spectrograms", [(i, s.time_dim) for i, s in held])
        _same("number of mels", [(i, s.data.shape[1 - dim]) for i, s in held])
        spectrograms = [clip.spectrogram for clip in clips]
        result["spectrogram"] = _padded([None if s is None else s.data for s in spectrograms], dim)
        lengths = [0 if s is None else len(s) for s in spectrograms]
        result["spectrogram_lengths"] = torch.tensor(lengths, device=result["spectrogram"].device)
    return result


def _collate_tokens(clips: Sequence[Clip]) -> dict[str, Tensor]:
    ids = [None if clip.tokens is None else clip.tokens.ids for clip in clips]
    if all(t is None for t in ids):
        return {}
    masks = [None if t is None else torch.ones_like(t, dtype=torch.bool) for t in ids]
    return {"tokens": _padded(ids, 0), "token_mask": _padded(masks, 0)}


def _without_tensors(clip: Clip) -> Clip:
    """The clip with its times but without its pictures, samples and mel frames, which the batch holds."""
    # of the same shape, but one element in memory: nothing to send between processes
    return clip.map_data(lambda t: t.new_zeros(()).expand(t.shape))
