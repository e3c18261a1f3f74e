"""From a batch of clips to what ``MultiTaskNet`` takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmcore.clips import ClipBatch

__all__ = ["ClipInputs", "clip_inputs"]

_MODALITIES = ("video", "audio", "text")


class ClipInputs(NamedTuple):
    """Arguments of :class:`MultiTaskNet`: ``net(*clip_inputs(batch))``."""

    inputs: dict[str, Tensor]
    masks: dict[str, Tensor]
    available: Tensor
    """(B, M) bool."""


def clip_inputs(
    batch: ClipBatch, modalities: Sequence[str] = _MODALITIES, *, waveform: bool = False
) -> ClipInputs:
    """Give a network the clips of :func:`mmcore.collate_clips`.

    Parameters
    ----------
    batch : ClipBatch
        Read with layout "NCHW" (the default); with ``log_mel`` for sound, and a tokenizer for words.
    modalities : sequence of str
        Those of the network, in its order: ``net.modalities``. What the batch lacks is missing.
    waveform : bool
        Sound as samples (B, N), the mean of the channels, instead of a spectrogram: for encoders such as
        Wav2Vec2.

    Returns
    -------
    ClipInputs
        "video": (B, T, C, H, W), bytes as 0 to 1 in float32; "audio": (B, T, mels); "text": (B, L) ids.

    Raises
    ------
    ValueError
        For a modality that clips do not have, or if sound has no spectrogram, text no tokens, or video
        another layout.
    """
    unknown = [name for name in modalities if name not in _MODALITIES]
    if unknown:
        raise ValueError(f"modalities: expected some of {', '.join(_MODALITIES)}, got {', '.join(unknown)}")
    audio = _waveform if waveform else _spectrogram
    read = {"video": _video, "audio": audio, "text": _tokens}
    inputs, masks, columns = {}, {}, []
    for name in modalities:
        found = read[name](batch)
        if found is None:
            columns.append(torch.zeros(len(batch), dtype=torch.bool, device=batch.mask.device))
        else:
            inputs[name], masks[name] = found
            columns.append(batch.mask[:, batch.modalities.index(name)])
    return ClipInputs(inputs, masks, torch.stack(columns, 1))


def _first(lengths: Tensor, steps: int) -> Tensor:
    return torch.arange(steps, device=lengths.device) < lengths[:, None]


def _video(batch: ClipBatch) -> tuple[Tensor, Tensor] | None:
    if batch.video is None or batch.video_mask is None:
        return None
    layout = next(clip.layout for clip in batch.clips if clip.video is not None)
    if layout != "NCHW":
        raise ValueError(f"video: expected clips of layout 'NCHW', got {layout!r}")
    video = batch.video
    return video if video.is_floating_point() else video.float() / 255, batch.video_mask


def _spectrogram(batch: ClipBatch) -> tuple[Tensor, Tensor] | None:
    if batch.spectrogram is None or batch.spectrogram_lengths is None:
        if batch.audio is not None:
            raise ValueError(
                "audio: the clips have samples but no spectrogram; read them with audio={'log_mel': True},"
                " or ask for waveform=True"
            )
        return None
    time = next(clip.spectrogram.time_dim for clip in batch.clips if clip.spectrogram is not None)
    frames = batch.spectrogram if time == 0 else batch.spectrogram.transpose(1, 2)
    return frames, _first(batch.spectrogram_lengths, frames.shape[1])


def _waveform(batch: ClipBatch) -> tuple[Tensor, Tensor] | None:
    if batch.audio is None or batch.audio_lengths is None:
        return None
    return batch.audio.mean(1), _first(batch.audio_lengths, batch.audio.shape[2])


def _tokens(batch: ClipBatch) -> tuple[Tensor, Tensor] | None:
    if batch.tokens is None or batch.token_mask is None:
        if any(clip.text for clip in batch.clips):
            raise ValueError(
                "text: the clips have words but no tokens; read them with text={'tokenizer': ...}"
            )
        return None
    return batch.tokens, batch.token_mask
