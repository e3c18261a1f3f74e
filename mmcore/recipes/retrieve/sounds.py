"""Sounds that can be told apart by ear, made by program: tones that move, beeps, ticks, noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["SAMPLE_RATE", "SOUNDS", "synthesize_sounds"]

SOUNDS = (
    "rising tone",
    "falling tone",
    "low hum",
    "high whistle",
    "beeping",
    "ticking",
    "hissing",
    "warbling",
)
SAMPLE_RATE = 16000

_HARMONICS = ((1.0, 1.0), (2.0, 0.4), (3.0, 0.2))


def synthesize_sounds(
    sounds: Sequence[str], seconds: float, generator: torch.Generator | None = None
) -> Tensor:
    """Make one waveform of each of ``sounds``.

    Parameters
    ----------
    sounds : sequence of str
        Each one of ``SOUNDS``.
    seconds : float
        Of each waveform.
    generator : torch.Generator, optional
        Varies pitch, rate, loudness and the faint noise that lies under all of them.

    Returns
    -------
    Tensor
        (N, samples) float32 within -1 to 1, at ``SAMPLE_RATE``.

    Raises
    ------
    ValueError
        For another sound.

    Examples
    --------
    >>> synthesize_sounds(["beeping", "low hum"], 2.0).shape
    torch.Size([2, 32000])
    """
    for sound in sounds:
        if sound not in SOUNDS:
            raise ValueError(f"sound: expected one of {', '.join(SOUNDS)}, got {sound!r}")
    count, samples = len(sounds), round(seconds * SAMPLE_RATE)
    # All drawn at once, so that a sound does not depend on which others are made with it but by its place.
    pitch, rate, phase, loudness = torch.rand(4, count, 1, generator=generator).unbind(0)
    time = torch.arange(samples) / SAMPLE_RATE
    waves = torch.randn(count, samples, generator=generator)
    noise = 0.01 * waves
    for sound in SOUNDS:
        rows = [i for i, name in enumerate(sounds) if name == sound]
        if rows:
            waves[rows] = _wave(sound, time, seconds, pitch[rows], rate[rows], phase[rows], waves[rows])
    return ((0.2 + 0.3 * loudness) * waves + noise).clamp_(-1, 1)


def _wave(
    sound: str, time: Tensor, seconds: float, pitch: Tensor, rate: Tensor, phase: Tensor, noise: Tensor
) -> Tensor:
    """Waves of one sound of about height 1; ``pitch``, ``rate``, ``phase`` (n, 1) are 0 to 1."""
    octave = 2.0**pitch
    match sound:
        case "rising tone":
            return _tone(_glide(300 * octave, 1.5, time, seconds))
        case "falling tone":
            return _tone(_glide(850 * octave, -1.5, time, seconds))
        case "low hum":
            return _tone(80 * octave * time)
        case "high whistle":
            return (2 * math.pi * 2200 * octave * time).sin()
        case "beeping":
            return _tone(500 * octave * time) * _pulses(3 + 2 * rate, phase, time, 0.4)
        case "ticking":
            return 1.5 * noise * _pulses(4 + 3 * rate, phase, time, 0.04)
        case "hissing":
            return 0.4 * noise
        case _:  # warbling: its frequency swings by 3 semitones
            swing = 6 + 3 * rate
            return _tone(
                500 * octave * (time - 0.19 * (2 * math.pi * swing * time).cos() / (2 * math.pi * swing))
            )


def _tone(cycles: Tensor) -> Tensor:
    """Sum of harmonics at this many cycles since the beginning."""
    return sum(
        (height * (2 * math.pi * number * cycles).sin() for number, height in _HARMONICS),
        start=torch.zeros(()),
    ) / sum(height for _, height in _HARMONICS)


def _glide(frequency: Tensor, octaves: float, time: Tensor, seconds: float) -> Tensor:
    """Cycles of a tone that goes evenly by so many octaves from its first frequency in hertz."""
    growth = octaves * math.log(2) / seconds
    return frequency * torch.expm1(growth * time) / growth


def _pulses(rate: Tensor, phase: Tensor, time: Tensor, on: float) -> Tensor:
    """1 in the first part ``on`` of each of ``rate`` periods a second, else 0."""
    return ((rate * time + phase) % 1 < on).float()
