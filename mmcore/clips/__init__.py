"""Clips: the pictures, sound and words of one stretch of a file, on one clock."""

from __future__ import annotations

from .alignment import Alignment, TimeMap
from .augment import Augment, Augmentation
from .batch import ClipBatch, collate_clips
from .clip import Clip, Spectrogram
from .options import AudioOptions, TextOptions, VideoOptions
from .reader import ClipReader, read_clip
from .spec_augment import SpecAugment

__all__ = [
    "Alignment",
    "AudioOptions",
    "Augment",
    "Augmentation",
    "Clip",
    "ClipBatch",
    "ClipReader",
    "SpecAugment",
    "Spectrogram",
    "TextOptions",
    "TimeMap",
    "VideoOptions",
    "collate_clips",
    "read_clip",
]
