"""Random changes of a clip that keep its modalities on one clock, the same for all of its frames."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from mmcore.ops.color_matrix import color_matrix
from mmcore.ops.frame_transform import FrameTransform

from .spec_augment import SpecAugment

__all__ = ["Augment", "Augmentation"]

# One random number each, drawn in this order whatever is asked for: one option does not change the others.
_DRAWS = (
    "crop", "speed", "flip", "area", "ratio", "top", "left",
    "brightness", "contrast", "saturation", "hue", "spec",
)  # fmt: skip

_Range = tuple[float, float]


@dataclass(frozen=True)
class Augmentation:
    """What :meth:`Augment.draw` drew for one clip; ``read_clip(augment=)`` takes it too.

    Attributes
    ----------
    start_share : float
        0 to 1: where in its room the clip lies.
    speed : float
    horizontal_flip : bool
    area, ratio : float
        Of the crop: part of the picture's area, and width over height; 0 for no resized crop.
    top_share, left_share : float
        0 to 1: where in its room the crop lies.
    brightness, contrast, saturation, hue : float
        As :func:`mmcore.color_matrix` takes them.
    spec_seed : int
        Of SpecAugment.
    options : Augment
        What it was drawn from.
    """

    start_share: float
    speed: float
    horizontal_flip: bool
    area: float
    ratio: float
    top_share: float
    left_share: float
    brightness: float
    contrast: float
    saturation: float
    hue: float
    spec_seed: int
    options: Augment

    def time_range(self, start: float, stop: float) -> tuple[float, float]:
        """The part of a range of the file to read, in the file's seconds."""
        if self.options.crop_seconds is None:
            return start, stop
        length = min(self.options.crop_seconds * self.speed, stop - start)
        begin = start + self.start_share * (stop - start - length)
        return begin, min(begin + length, stop)

    def transform(self, base: FrameTransform, height: int, width: int) -> FrameTransform:
        """``base`` with crop, flip and colours changed, for pictures of ``height`` x ``width`` pixels.

        The result's pictures have the size that those of ``base`` have.
        """
        changes: dict[str, Any] = {}
        if self.horizontal_flip:
            changes["horizontal_flip"] = not base.horizontal_flip
        if (self.brightness, self.contrast, self.saturation, self.hue) != (1.0, 1.0, 1.0, 0.0):
            matrix = color_matrix(
                brightness=self.brightness, contrast=self.contrast, saturation=self.saturation, hue=self.hue
            )
            changes["color_matrix"] = _after(matrix, base.color_matrix)
        g = base.geometry(height, width)
        if self.area:
            # the crop is cut out of the picture resized so that it has the result's size
            w = min(math.sqrt(height * width * self.area * self.ratio), width)
            h = min(math.sqrt(height * width * self.area / self.ratio), height)
            rh, rw = max(round(height * g.out_h / h), g.out_h), max(round(width * g.out_w / w), g.out_w)
            changes["resize"] = rh, rw
            changes["crop"] = self._box(rh, rw, g.out_h, g.out_w)
        elif self.options.random_crop:
            changes["resize"] = g.resize_h, g.resize_w
            changes["crop"] = self._box(g.resize_h, g.resize_w, g.out_h, g.out_w)
        return base.replace(**changes)

    def _box(self, height: int, width: int, out_h: int, out_w: int) -> tuple[int, int, int, int]:
        top = min(int(self.top_share * (height - out_h + 1)), height - out_h)
        left = min(int(self.left_share * (width - out_w + 1)), width - out_w)
        return top, left, out_h, out_w


@dataclass(frozen=True)
class Augment:
    """Random changes for ``read_clip(augment=)``, drawn once for each clip.

    Parameters
    ----------
    crop_seconds : float, optional
        Length of the clip, cut at random from the range that is read; shorter where the range is.
    speed : (float, float), optional
        Range of factors, 1.1 being faster: pictures, samples (resampled, so that pitch changes too) and words
        alike. The clip's times count from its start in its own, shorter or longer, seconds.
    horizontal_flip : float
        Probability of mirroring the pictures.
    random_crop : bool
        Put the transform's crop anywhere in the picture instead of in its middle.
    resized_crop : (float, float), optional
        Range of parts of the picture's area to cut out and resize to the transform's size, as torchvision's
        ``RandomResizedCrop``; the usual one is (0.08, 1.0).
    ratio : (float, float)
        Range of the cut's width over height, drawn on a logarithmic scale; cuts that do not fit are made
        narrower or lower.
    brightness, contrast, saturation : float or (float, float)
        x stands for factors from max(0, 1 - x) to 1 + x; or a range of factors.
    hue : float or (float, float)
        x stands for -x to x turns, at most 0.5; or a range of turns.
    spec_augment : SpecAugment, optional
        For the spectrogram.

    Raises
    ------
    TypeError, ValueError
        For a value of the wrong type or out of range.

    Notes
    -----
    Colours are changed by one matrix inside the conversion of the frames (see :func:`mmcore.color_matrix` for
    how it differs from torchvision's jitter), and mirroring there too: neither costs a pass of its own.

    Examples
    --------
    >>> import mmcore
    >>> augment = mmcore.clips.Augment(horizontal_flip=0.5, brightness=0.4, speed=(0.9, 1.1))
    >>> augment.draw(7) == augment.draw(7)
    True
    """

    crop_seconds: float | None = None
    speed: _Range | None = None
    horizontal_flip: float = 0.0
    random_crop: bool = False
    resized_crop: _Range | None = None
    ratio: _Range = (3 / 4, 4 / 3)
    brightness: float | _Range = 0.0
    contrast: float | _Range = 0.0
    saturation: float | _Range = 0.0
    hue: float | _Range = 0.0
    spec_augment: SpecAugment | None = None

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        if self.crop_seconds is not None and _number("crop_seconds", self.crop_seconds) <= 0:
            raise ValueError(f"crop_seconds: expected a positive number, got {self.crop_seconds}")
        if not 0 <= _number("horizontal_flip", self.horizontal_flip) <= 1:
            raise ValueError(f"horizontal_flip: expected a probability, got {self.horizontal_flip}")
        if not isinstance(self.random_crop, bool):
            raise TypeError(f"random_crop: expected a bool, got {self.random_crop!r}")
        if self.random_crop and self.resized_crop is not None:
            raise ValueError("random_crop, resized_crop: expected at most one of them")
        if self.speed is not None:
            put("speed", _range("speed", self.speed, 0.1, 10))
        if self.resized_crop is not None:
            put("resized_crop", _range("resized_crop", self.resized_crop, 1e-3, 1))
        put("ratio", _range("ratio", self.ratio, 1e-2, 1e2))
        for name in ("brightness", "contrast", "saturation"):
            put(name, _jitter(name, getattr(self, name), 1.0, 0.0, 100.0))
        put("hue", _jitter("hue", self.hue, 0.0, -0.5, 0.5))
        if self.spec_augment is not None and not isinstance(self.spec_augment, SpecAugment):
            raise TypeError(f"spec_augment: expected a SpecAugment, got {type(self.spec_augment).__name__}")

    def draw(self, seed: int | torch.Generator | None = None) -> Augmentation:
        """Draw the changes for one clip.

        Parameters
        ----------
        seed : int or torch.Generator, optional
            The generator is one of the CPU. None: torch's own, which DataLoader seeds in each worker.
        """
        generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"seed: expected an int, a torch.Generator or None, got {seed!r}")
        values = torch.rand(len(_DRAWS), dtype=torch.float64, generator=generator).tolist()
        u = dict(zip(_DRAWS, values, strict=True))
        low, high = (math.log(r) for r in self.ratio)
        return Augmentation(
            start_share=u["crop"],
            speed=1.0 if self.speed is None else _between(self.speed, u["speed"]),
            horizontal_flip=u["flip"] < self.horizontal_flip,
            area=0.0 if self.resized_crop is None else _between(self.resized_crop, u["area"]),
            ratio=math.exp(_between((low, high), u["ratio"])),
            top_share=u["top"],
            left_share=u["left"],
            brightness=_between(self.brightness, u["brightness"]),
            contrast=_between(self.contrast, u["contrast"]),
            saturation=_between(self.saturation, u["saturation"]),
            hue=_between(self.hue, u["hue"]),
            spec_seed=int(u["spec"] * (1 << 53)),
            options=self,
        )


def _between(limits: Any, share: float) -> float:
    low, high = limits
    return float(low + (high - low) * share)


def _after(
    matrix: tuple[tuple[float, ...], ...], base: tuple[tuple[float, ...], ...] | None
) -> tuple[tuple[float, ...], ...]:
    """The matrix that does what ``base`` does, then what ``matrix`` does."""
    if base is None:
        return matrix
    square = torch.tensor([*base, (0, 0, 0, 1)], dtype=torch.float64)
    rows: list[list[float]] = (torch.tensor(matrix, dtype=torch.float64) @ square).tolist()
    return tuple(tuple(row) for row in rows)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value!r}")
    return float(value)


def _range(name: str, value: Any, least: float, most: float) -> _Range:
    if isinstance(value, str) or not hasattr(value, "__len__") or len(value) != 2:
        raise TypeError(f"{name}: expected a pair (low, high), got {value!r}")
    low, high = _number(name, value[0]), _number(name, value[1])
    if not least <= low <= high <= most:
        raise ValueError(f"{name}: expected {least:g} <= low <= high <= {most:g}, got {value!r}")
    return low, high


def _jitter(name: str, value: Any, middle: float, least: float, most: float) -> _Range:
    if hasattr(value, "__len__"):
        return _range(name, value, least, most)
    width = _number(name, value)
    if width < 0:
        raise ValueError(f"{name}: expected 0 or more, or a pair (low, high), got {value!r}")
    return _range(name, (max(least, middle - width), middle + width), least, most)
