"""Pairs of a clip and a caption, rendered in memory as they are needed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

import mmcore
from mmcore.recipes.shapes import render_scenes

from .attributes import Attributes
from .captions import Vocabulary, partial_caption
from .sounds import SAMPLE_RATE, SOUNDS, synthesize_sounds

__all__ = ["CLIP_SECONDS", "MEL", "NUM_FRAMES", "SIZE", "Pair", "PairBatch", "Pairs", "SoundPool"]

CLIP_SECONDS = 2.0
NUM_FRAMES = 8
SIZE = 32
"""Height and width of the frames that the model sees."""
MEL = mmcore.LogMelSettings(n_fft=640, win_length=640, hop_length=320, n_mels=40, layout="time_mel")
"""50 spectrogram frames a second, of 40 mels."""


class PairBatch(NamedTuple):
    """Clips and their captions.

    Attributes
    ----------
    video : Tensor
        (B, T, 3, H, W) uint8.
    sound : Tensor
        (B, S, mels) float32 log-mel frames.
    picture : Tensor
        (B,) int64: which frame stands alone for the clip, where a picture is to find it.
    words, words_mask : Tensor
        (B, L) int64 and bool.
    attributes : Tensor
        (B, A) int64: :meth:`Attributes.numbers`.
    said : Tensor
        (B, A) bool: which of the attributes the caption says.
    """

    video: Tensor
    sound: Tensor
    picture: Tensor
    words: Tensor
    words_mask: Tensor
    attributes: Tensor
    said: Tensor


class Pair(NamedTuple):
    """What a pair is made of: cheap to draw one by one, rendered for a whole batch at once.

    Attributes
    ----------
    shown : Attributes
    told : Attributes
        What the caption is about: the same, unless pairs are shuffled.
    caption : str
    said : tuple of bool
        Which of the attributes the caption says.
    scene_seed : int
        Of :func:`mmcore.recipes.shapes.render_scene`.
    sound : int
        Number of the take in the pool.
    picture : int
        Which of the frames stands alone for the clip.
    """

    shown: Attributes
    told: Attributes
    caption: str
    said: tuple[bool, ...]
    scene_seed: int
    sound: int
    picture: int


class SoundPool:
    """``variants`` takes of each sound: to make a new one for each sample takes longer than all the rest.

    Parameters
    ----------
    variants : int
    seed : int
    keep_waves : bool
        Keep the samples too, (N, samples) float32 as ``waves``.
    """

    def __init__(self, variants: int, seed: int, *, keep_waves: bool = False) -> None:
        self.variants = variants
        generator = torch.Generator().manual_seed(seed)
        waves, spectrograms = [], []
        for sound in SOUNDS:
            made = synthesize_sounds([sound] * variants, CLIP_SECONDS, generator)
            spectrograms.append(mmcore.log_mel(made, SAMPLE_RATE, MEL))
            waves.append(made if keep_waves else made[:0])
        self.spectrograms = torch.cat(spectrograms)
        self.waves = torch.cat(waves)

    def number(self, sound: str, variant: int) -> int:
        """Where ``spectrograms`` has this take of a sound."""
        return SOUNDS.index(sound) * self.variants + variant


class Pairs(Dataset[Pair]):
    """One pair for each combination of attributes, varied anew each time it is asked for.

    Parameters
    ----------
    combinations : sequence of Attributes
    vocabulary : Vocabulary
    pool : SoundPool
    leave_out : float
        Share of captions that leave out some attributes, up to nearly all: people do not say everything.
    shuffled : bool
        A control: each clip gets the caption of another one, always the same, and there is nothing to learn.
    """

    def __init__(
        self,
        combinations: Sequence[Attributes],
        vocabulary: Vocabulary,
        pool: SoundPool,
        *,
        leave_out: float = 0.0,
        shuffled: bool = False,
    ) -> None:
        self.combinations = list(combinations)
        self.vocabulary = vocabulary
        self.pool = pool
        self.leave_out = leave_out
        self._told = list(self.combinations)
        if shuffled:
            random.Random(0).shuffle(self._told)

    def __len__(self) -> int:
        return len(self.combinations)

    def __getitem__(self, index: int) -> Pair:
        """Draw a pair with Python's random numbers, which ``StepBatches`` seeds for each place."""
        return self.draw(index, random.getrandbits(64))

    def draw(self, index: int, seed: int) -> Pair:
        """Draw a pair with random numbers of its own."""
        rng = random.Random(seed)
        shown = self.combinations[index]
        leave_out = rng.uniform(0, 0.8) if rng.random() < self.leave_out else 0.0
        told = self._told[index]
        return Pair(
            shown,
            told,
            *partial_caption(told, rng, leave_out),
            rng.getrandbits(31),
            self.pool.number(shown.sound, rng.randrange(self.pool.variants)),
            rng.randrange(NUM_FRAMES),
        )

    def collate(self, pairs: Sequence[Pair]) -> PairBatch:
        """Render a batch."""
        words, mask = self.vocabulary.encode([pair.caption for pair in pairs])
        return PairBatch(
            video=render_scenes(
                [pair.shown.scene for pair in pairs],
                num_frames=NUM_FRAMES,
                height=SIZE,
                width=SIZE,
                seeds=[pair.scene_seed for pair in pairs],
            ),
            sound=self.pool.spectrograms[[pair.sound for pair in pairs]],
            picture=torch.tensor([pair.picture for pair in pairs]),
            words=words,
            words_mask=mask,
            attributes=torch.tensor([pair.told.numbers() for pair in pairs]),
            said=torch.tensor([pair.said for pair in pairs]),
        )
