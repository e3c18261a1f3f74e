"""Spoken texts as what the model learns from: phonemes, how long each lasts, and the log-mel spectrogram."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

import mmcore
from mmcore.recipes.speech import Speech, synthesize

__all__ = ["LOG_MEL", "VOICE", "Batch", "Corpus", "Utterance", "collate", "speak_reference"]

VOICE: dict[str, Any] = {"voice": "en-us", "variant": "klatt4", "rate": 150, "pitch": 50}
"""espeak-ng's settings of the voice that is learned; a Klatt voice, which recognisers understand best."""

LOG_MEL = mmcore.LogMelSettings(
    sample_rate=16000,
    n_fft=1024,
    win_length=1024,
    hop_length=256,
    n_mels=64,
    framing="center",
    power=1,
    log="ln",
    floor=1e-4,
    dynamic_range=None,
    mean=-4.1,  # so that speech has about mean 0 and deviation 1
    std=2.3,
    layout="time_mel",
)


class Utterance(NamedTuple):
    """A spoken text.

    Attributes
    ----------
    text : str
    phonemes : tuple of str
        espeak-ng's names, L of them.
    durations : Tensor
        (L,) int64, frames of each; they sum to T.
    energy : Tensor
        (L,) float32, the mean of each phoneme's frames over all mels.
    log_mel : Tensor
        (T, mels) float32.
    """

    text: str
    phonemes: tuple[str, ...]
    durations: Tensor
    energy: Tensor
    log_mel: Tensor

    @staticmethod
    def of(text: str, speech: Speech) -> Utterance:
        """Measure a text's speech, which must be at LOG_MEL's rate and have its phonemes."""
        log_mel = mmcore.log_mel(speech.samples, speech.sample_rate, LOG_MEL)
        frames = len(log_mel)
        # A frame belongs to the phoneme that sounds at its middle; silence before the first one to that one.
        ends = [round(p.end * LOG_MEL.frame_rate) for p in speech.phonemes[:-1]]
        bounds = torch.tensor([0, *ends, frames]).clamp(max=frames)
        sums = torch.cat([torch.zeros(1), log_mel.mean(1).cumsum(0)])
        # A phoneme between two frames has the energy of the next one.
        first = bounds[:-1].clamp(max=frames - 1)
        last = torch.maximum(bounds[1:], first + 1)
        energy = (sums[last] - sums[first]) / (last - first)
        return Utterance(text, tuple(p.name for p in speech.phonemes), bounds.diff(), energy, log_mel)


class Batch(NamedTuple):
    """Utterances side by side.

    Attributes
    ----------
    ids, durations : Tensor
        (B, L) int64.
    energy : Tensor
        (B, L) float32.
    log_mel : Tensor
        (B, T, mels) float32.
    phoneme_mask, frame_mask : Tensor
        (B, L) and (B, T) bool, False in the padding.
    """

    ids: Tensor
    durations: Tensor
    energy: Tensor
    log_mel: Tensor
    phoneme_mask: Tensor
    frame_mask: Tensor


def speak_reference(text: str) -> Speech:
    """Let espeak-ng speak a text in the voice that is learned, at LOG_MEL's rate."""
    return synthesize(text, **VOICE, phonemes=True).resample(LOG_MEL.sample_rate)


class Corpus(Dataset[tuple[Tensor, Utterance]]):
    """Texts spoken by espeak-ng, held in memory: about 100 KB a text, made in some 10 ms.

    Parameters
    ----------
    texts : sequence of str
    phonemes : sequence of str, optional
        Names whose places are the ids; None: all that occur, in alphabetical order.
    """

    def __init__(self, texts: Sequence[str], phonemes: Sequence[str] | None = None) -> None:
        self.utterances = [Utterance.of(text, speak_reference(text)) for text in texts]
        if phonemes is None:
            phonemes = sorted({name for utterance in self.utterances for name in utterance.phonemes})
        self.phonemes = tuple(phonemes)
        place = {name: i for i, name in enumerate(self.phonemes)}
        self._ids = [torch.tensor([place[name] for name in u.phonemes]) for u in self.utterances]

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> tuple[Tensor, Utterance]:
        return self._ids[index], self.utterances[index]


def collate(samples: Sequence[tuple[Tensor, Utterance]]) -> Batch:
    """Make a batch of a corpus's samples, as long as the longest of them."""
    ids, utterances = zip(*samples, strict=True)

    def padded(rows: Sequence[Tensor]) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)

    return Batch(
        padded(ids),
        padded([u.durations for u in utterances]),
        padded([u.energy for u in utterances]),
        padded([u.log_mel for u in utterances]),
        padded([torch.ones(len(u.durations), dtype=torch.bool) for u in utterances]),
        padded([torch.ones(len(u.log_mel), dtype=torch.bool) for u in utterances]),
    )
