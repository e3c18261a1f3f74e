"""The clips as media files: what each shows, says and writes is drawn at random, then encoded once.

What a clip holds depends on the seed, the split and its number alone. So rendering can be stopped and
resumed, runs in several processes at once, and a larger set begins with the clips of a smaller one.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from .sources import SPLITS, handwriting
from .task import COMBINATIONS, DIGITS, OPERATIONS, Question

__all__ = [
    "FPS",
    "FRAMES",
    "SAMPLE_RATE",
    "SECONDS",
    "SIZE",
    "ClipSpec",
    "draw_frames",
    "render_clip",
    "speak",
]

SECONDS = 1.0
FPS = FRAMES = 8
SIZE = 64  # height and width, pixels
SAMPLE_RATE = 22050  # espeak-ng's


@dataclass(frozen=True)
class ClipSpec:
    """All that is drawn at random for one clip.

    Attributes
    ----------
    split : str
        Key of ``SPLITS``.
    question : Question
    word : str
        What is written.
    picture : int
        Which of the split's pictures of the digit.
    start, end : tuple of float
        The digit's centre in the first and the last frame: parts of the picture from its left and its top.
    size : float
        Of the digit, as part of the picture.
    angle, shear : float
        Degrees, and parts of the height.
    aspect : float
        Width is multiplied, height divided by it.
    boldness : float
        Exponent of the ink: below 1 strokes are broader.
    ink, ground : tuple of int
        Colours.
    accent, variant, pitch, rate
        The voice, as for :func:`mmcore.recipes.speech.synthesize`.
    spoken : float
        When the digit is spoken: 0 as early as the clip allows, 1 as late.
    noise : float
        Standard deviation of the noise behind it, whose loudest sample is 0.5.
    noise_seed : int
    shown : tuple of float
        When the word is shown and hidden, in seconds.
    """

    split: str
    question: Question
    word: str
    picture: int
    start: tuple[float, float]
    end: tuple[float, float]
    size: float
    angle: float
    shear: float
    aspect: float
    boldness: float
    ink: tuple[int, int, int]
    ground: tuple[int, int, int]
    accent: str
    variant: str
    pitch: int
    rate: int
    spoken: float
    noise: float
    noise_seed: int
    shown: tuple[float, float]

    @classmethod
    def draw(cls, seed: int, split: str, index: int) -> ClipSpec:
        """The clip of that number; every 400 of them ask each of the 400 questions once."""
        block, place = divmod(index, len(COMBINATIONS))
        order = random.Random(f"{seed} {split} block {block}").sample(COMBINATIONS, len(COMBINATIONS))
        question = order[place]
        rng = random.Random(f"{seed} {split} {index}")
        who = SPLITS[split]
        size = rng.uniform(0.42, 0.6)
        # Ten people are few: in training their hands are bent further than those of others ever will be.
        bent = 2.0 if split == "train" else 1.0

        def place_within() -> tuple[float, float]:
            return rng.uniform(size / 2, 1 - size / 2), rng.uniform(size / 2, 1 - size / 2)

        def tint(level: int) -> tuple[int, int, int]:
            r, g, b = (min(255, max(0, level + rng.randint(-30, 30))) for _ in range(3))
            return r, g, b

        return cls(
            split=split,
            question=question,
            word=rng.choice(OPERATIONS[question.operation].words),
            picture=rng.randrange(len(handwriting(split, question.seen).pictures)),
            start=place_within(),
            end=place_within(),
            size=size,
            angle=rng.uniform(-10, 10) * bent,
            shear=rng.uniform(-0.15, 0.15) * bent,
            aspect=math.exp(rng.uniform(-0.1, 0.1) * bent),
            boldness=math.exp(rng.uniform(-0.2, 0.2) * bent),
            ink=tint(rng.randint(170, 255)),
            ground=tint(rng.randint(0, 70)),
            accent=rng.choice(who.accents),
            variant=rng.choice(who.variants),
            pitch=rng.randint(20, 80),
            rate=rng.randint(140, 220),
            spoken=rng.random(),
            noise=10 ** rng.uniform(-3.5, -2),
            noise_seed=rng.getrandbits(32),
            shown=(rng.uniform(0, 0.3), rng.uniform(0.7, SECONDS)),
        )


def draw_frames(spec: ClipSpec) -> Tensor:
    """The clip's pictures, the digit moving straight and evenly: (FRAMES, 3, SIZE, SIZE) uint8."""
    picture = handwriting(spec.split, spec.question.seen).pictures[spec.picture]
    # affine_grid's coordinates go from -1 to 1
    start, end = (torch.tensor(place) * 2 - 1 for place in (spec.start, spec.end))
    centres = torch.lerp(start, end, torch.linspace(0, 1, FRAMES).unsqueeze(1))
    turn = math.radians(spec.angle)
    # from a place in the frame to one in the 8x8 pixels of the digit, hence the inverse of what is done to it
    matrix = torch.tensor([[math.cos(turn), math.sin(turn) + spec.shear], [-math.sin(turn), math.cos(turn)]])
    matrix = matrix / (spec.size * torch.tensor([[spec.aspect], [1 / spec.aspect]]))
    theta = torch.cat([matrix.expand(FRAMES, 2, 2), -(centres @ matrix.T).unsqueeze(2)], 2)
    grid = F.affine_grid(theta, [FRAMES, 1, SIZE, SIZE], align_corners=False)
    ink = F.grid_sample(picture.expand(FRAMES, 1, 8, 8), grid, mode="bicubic", align_corners=False)
    ground, colour = (torch.tensor(c, dtype=torch.float32).view(3, 1, 1) for c in (spec.ground, spec.ink))
    return torch.lerp(ground, colour, ink.clamp(0, 1) ** spec.boldness).round().to(torch.uint8)


def speak(spec: ClipSpec) -> Tensor:
    """The clip's sound, a spoken digit in noise: (SECONDS * SAMPLE_RATE,) float32."""
    from mmcore.recipes.speech import synthesize

    speech = synthesize(
        DIGITS[spec.question.heard],
        voice=spec.accent,
        variant=spec.variant,
        pitch=spec.pitch,
        rate=spec.rate,
    )
    loudness = speech.samples.abs()
    loud = (loudness > 0.01 * loudness.max()).nonzero()  # without the silence around the word
    length = round(SECONDS * SAMPLE_RATE)
    word = speech.samples[int(loud[0]) : int(loud[-1]) + 1][:length]
    generator = torch.Generator().manual_seed(spec.noise_seed)
    sound = torch.randn(length, generator=generator) * spec.noise
    begin = round(spec.spoken * (length - len(word)))
    sound[begin : begin + len(word)] += word * (0.5 / loudness.max())
    return sound


def render_clip(spec: ClipSpec, path: Path) -> None:
    """Write the clip: H.264, PCM and a subtitle in Matroska."""
    import mmcore

    mmcore.encode(
        path,
        frames=draw_frames(spec),
        fps=FPS,
        audio=speak(spec),
        sample_rate=SAMPLE_RATE,
        text=[(*spec.shown, spec.word)],
        preset="ultrafast",
        crf=20,
        audio_codec="pcm_s16le",  # quickest to read again
    )
