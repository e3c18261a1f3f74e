"""What a frame becomes: :class:`FrameTransform`, its geometry, and the ViT patch layout."""

from __future__ import annotations

import functools
import json
import math
import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch

__all__ = ["FrameTransform", "Geometry", "Patches", "patches"]

INTERPOLATIONS = ("bilinear", "bicubic", "area", "nearest")
LAYOUTS = ("NCHW", "NHWC", "CNHW")
ACCURACIES = ("fused", "rgb8")
CHROMAS = ("sited", "nearest", "left", "center", "topleft")
MATRICES = ("601", "709", "2020")
DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Patches:
    """Vision-transformer patch layout, made by :func:`patches`."""

    patch_size: int
    temporal_patch_size: int = 2
    merge_size: int = 2

    def grid(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Patches along time, height and width for ``num_frames`` frames of ``height`` x ``width`` pixels."""
        unit = self.patch_size * self.merge_size
        if height % unit or width % unit:
            raise ValueError(
                f"layout: frames of {height}x{width} pixels do not divide into patches: both must be "
                f"multiples of patch_size*merge_size = {unit}; choose resize or crop so"
            )
        t = -(-num_frames // self.temporal_patch_size)
        return t, height // self.patch_size, width // self.patch_size

    def shape(self, num_frames: int, height: int, width: int, channels: int = 3) -> tuple[int, int]:
        """Shape of the patch matrix: (number of patches, values per patch)."""
        t, h, w = self.grid(num_frames, height, width)
        return t * h * w, channels * self.temporal_patch_size * self.patch_size**2


def patches(patch_size: int, temporal_patch_size: int = 2, merge_size: int = 2) -> Patches:
    """Layout of Qwen2-VL-style models: one row per patch, ready for the patch embedding's matrix product.

    Parameters
    ----------
    patch_size : int
        Height and width of a patch in pixels.
    temporal_patch_size : int
        Frames per patch; an incomplete last group repeats the last frame.
    merge_size : int
        The ``merge_size`` x ``merge_size`` patches that the model merges later lie next to one another.

    Returns
    -------
    Patches
        For ``FrameTransform(layout=...)``. With gt, gh, gw = ``grid(T, h, w)`` the result has shape
        (gt*gh*gw, 3*temporal_patch_size*patch_size**2); rows run over (gt, gh/merge, gw/merge, merge, merge),
        columns over (channel, temporal_patch_size, patch_size, patch_size).

    Examples
    --------
    >>> import mmcore
    >>> mmcore.patches(14).grid(4, 224, 280)
    (2, 16, 20)
    """
    values = {"patch_size": patch_size, "temporal_patch_size": temporal_patch_size, "merge_size": merge_size}
    checked = {name: _positive_int(f"patches: {name}", v) for name, v in values.items()}
    return Patches(**checked)


@dataclass(frozen=True)
class Geometry:
    """A transform resolved for one source size: resize to (resize_h, resize_w), then crop the box."""

    source_h: int
    source_w: int
    resize_h: int
    resize_w: int
    top: int
    left: int
    out_h: int
    out_w: int


@dataclass(frozen=True)
class FrameTransform:
    """What is done to each decoded frame, in one pass from its planes to the model's tensor.

    Parameters
    ----------
    resize : None, int or (int, int)
        None keeps the size; an int is the length of the shorter side (the longer one keeps the aspect and is
        truncated, as torchvision does); a pair is (height, width).
    crop : None, int, (int, int) or (int, int, int, int)
        Applied after the resize. An int or a pair (height, width) is a centre crop, its offset rounded as
        torchvision does; four numbers are a box (top, left, height, width).
    interpolation : {"bilinear", "bicubic", "area", "nearest"}
        As ``torch.nn.functional.interpolate`` (``align_corners=False``) means it.
    antialias : bool
        Widen the filter when shrinking, as Pillow and torch do. Only for bilinear and bicubic.
    mean, std : None, float or sequence of 3 floats
        Normalisation of R, G, B after scaling: ``(level * scale - mean) / std``. Needs a floating dtype.
    scale : None or float
        Factor from levels (0-255) to values. None: 1/255 for floating dtypes, 1 for uint8.
    dtype : torch.dtype
        uint8, float16, bfloat16 or float32.
    layout : {"NCHW", "NHWC", "CNHW"} or Patches
        Order of the result's dimensions, or ViT patches (see :func:`patches`).
    accuracy : {"fused", "rgb8"}
        "fused" filters in YUV with no rounding in between; "rgb8" rounds to 8-bit RGB before and after the
        resize, as a pipeline of RGB frames does, bit for bit what torch's uint8 ``interpolate`` gives.
    chroma : {"sited", "nearest", "left", "center", "topleft"}
        Where subsampled chroma lies. "sited": as the stream says or its codec implies; "nearest": replicated,
        as FFmpeg's 8-bit conversion to RGB does; the others override the stream.
    matrix : None or {"601", "709", "2020"}
        YUV to RGB matrix. None: as the stream says; BT.601 where it says nothing, as FFmpeg does.
    full_range : None or bool
        None: as the stream says; limited where it says nothing.
    color_matrix : None or 3 x 3 or 3 x 4 floats
        Applied to the R, G, B levels (0-255), before ``scale``, ``mean`` and ``std``; a fourth column is
        added, in levels. Folded into the conversion from YUV, so that it costs no pass of its own; needs
        ``accuracy="fused"``. :func:`mmcore.color_matrix` makes those of colour jitter.
    horizontal_flip : bool
        Mirror the result left to right, after resize and crop.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong type or value; the message names it and what was expected.

    Notes
    -----
    Levels outside 0-255 that a conversion, a bicubic filter or a colour matrix produces are clamped once, at
    the end: a matrix that lowers contrast or saturation brings back what a clamp before it would have cut.

    Examples
    --------
    >>> import mmcore, torch
    >>> t = mmcore.FrameTransform(resize=256, crop=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    >>> t.output_shape(8, 1080, 1920)
    (8, 3, 224, 224)
    """

    resize: int | tuple[int, int] | None = None
    crop: int | tuple[int, int] | tuple[int, int, int, int] | None = None
    interpolation: str = "bilinear"
    antialias: bool = True
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    scale: float | None = None
    dtype: torch.dtype = torch.float32
    layout: str | Patches = "NCHW"
    accuracy: str = "fused"
    chroma: str = "sited"
    matrix: str | None = None
    full_range: bool | None = None
    color_matrix: tuple[tuple[float, float, float, float], ...] | None = None
    horizontal_flip: bool = False

    def __post_init__(self) -> None:
        put = functools.partial(object.__setattr__, self)  # the dataclass is frozen
        if self.resize is not None:
            put("resize", _size("resize", self.resize, (2,)))
        if self.crop is not None:
            put("crop", _size("crop", self.crop, (2, 4)))
        _choice("interpolation", self.interpolation, INTERPOLATIONS)
        _choice("accuracy", self.accuracy, ACCURACIES)
        _choice("chroma", self.chroma, CHROMAS)
        if self.matrix is not None:
            _choice("matrix", self.matrix, MATRICES)
        for name in ("antialias", "full_range", "horizontal_flip"):
            value = getattr(self, name)
            if not isinstance(value, bool) and not (name == "full_range" and value is None):
                raise TypeError(f"{name}: expected a bool, got {value!r}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(map(str, DTYPES))}, got {self.dtype!r}")
        if not isinstance(self.layout, Patches):
            _choice("layout", self.layout, LAYOUTS, " or mmcore.patches(...)")
        for name in ("mean", "std"):
            if getattr(self, name) is not None:
                put(name, _three_floats(name, getattr(self, name)))
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std: expected three positive numbers, got {self.std}")
        if self.scale is not None:
            put("scale", _finite("scale", self.scale))
            if self.scale == 0:
                raise ValueError("scale: must not be 0")
        if self.color_matrix is not None:
            put("color_matrix", _color_matrix(self.color_matrix))
            if self.accuracy != "fused":
                raise ValueError(
                    "color_matrix: needs accuracy='fused'; with accuracy='rgb8' change the colours of the"
                    " result, as torchvision.transforms.v2.ColorJitter does"
                )
        if self.dtype == torch.uint8:
            for name in ("mean", "std", "scale"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name}: needs a floating dtype; dtype=torch.uint8 gives levels 0-255 as they are"
                    )
        # Kept as a plain attribute: torch.compile reads it as a constant, and it is the op's argument.
        put("_spec", self._make_spec())

    def _make_spec(self) -> str:
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        values["dtype"] = str(self.dtype).removeprefix("torch.")
        if isinstance(self.layout, Patches):
            values["layout"] = asdict(self.layout)
        return json.dumps(values)

    @property
    def spec(self) -> str:
        """The transform as a JSON string; :meth:`from_spec` reads it back."""
        spec: str = self._spec  # type: ignore[attr-defined]
        return spec

    @staticmethod
    @functools.lru_cache(maxsize=256)
    def from_spec(spec: str) -> FrameTransform:
        """Transform that a JSON string of :attr:`spec` describes."""
        values = json.loads(spec)
        values["dtype"] = getattr(torch, values["dtype"])
        if isinstance(values["layout"], dict):
            values["layout"] = Patches(**values["layout"])
        return FrameTransform(**values)

    @property
    def affine(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Per channel ``(mul, add)`` such that ``value = level * mul + add`` (level in 0-255)."""
        if self.dtype == torch.uint8:
            return (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)
        scale = 1 / 255 if self.scale is None else self.scale
        mean, std = self.mean or (0.0, 0.0, 0.0), self.std or (1.0, 1.0, 1.0)
        mul = (scale / std[0], scale / std[1], scale / std[2])
        return mul, (-mean[0] / std[0], -mean[1] / std[1], -mean[2] / std[2])

    def geometry(self, height: int, width: int) -> Geometry:
        """Resolve resize and crop for a source of ``height`` x ``width`` pixels.

        Raises
        ------
        ValueError
            If the crop does not lie inside the resized frame.
        """
        rh, rw = height, width
        if isinstance(self.resize, int):
            # torchvision: the long side is truncated, int(size * long / short)
            if height <= width:
                rh, rw = self.resize, int(self.resize * width / height)
            else:
                rh, rw = int(self.resize * height / width), self.resize
        elif self.resize is not None:
            rh, rw = self.resize
        top = left = 0
        oh, ow = rh, rw
        if self.crop is not None:
            if isinstance(self.crop, tuple) and len(self.crop) == 4:
                top, left, oh, ow = self.crop
            else:
                oh, ow = (self.crop, self.crop) if isinstance(self.crop, int) else self.crop[:2]
                top, left = round((rh - oh) / 2.0), round((rw - ow) / 2.0)
            if top < 0 or left < 0 or top + oh > rh or left + ow > rw:
                raise ValueError(
                    f"crop: {self.crop} does not lie inside the frame of {rh}x{rw} pixels"
                    f" (height x width{' after the resize' if self.resize is not None else ''})"
                )
        return Geometry(height, width, rh, rw, top, left, oh, ow)

    def output_shape(self, num_frames: int, height: int, width: int) -> tuple[int, ...]:
        """Shape of the result for ``num_frames`` frames of ``height`` x ``width`` pixels."""
        g = self.geometry(height, width)
        if isinstance(self.layout, Patches):
            return self.layout.shape(num_frames, g.out_h, g.out_w)
        sizes = {"N": num_frames, "C": 3, "H": g.out_h, "W": g.out_w}
        return tuple(sizes[d] for d in self.layout)

    def replace(self, **changes: Any) -> FrameTransform:
        """Copy with some fields changed."""
        return replace(self, **changes)


def _positive_int(name: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected a positive int, got {value!r}") from None
    if isinstance(value, bool) or number <= 0:
        raise ValueError(f"{name}: expected a positive int, got {value!r}")
    if number > 1 << 16:
        raise ValueError(f"{name}: {number} pixels is more than 65536, the largest size supported")
    return number


def _size(name: str, value: Any, lengths: tuple[int, ...]) -> Any:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return _positive_int(name, value)
    forms = {2: "(height, width)", 4: "(top, left, height, width)"}
    if len(value) not in lengths:
        expected = " or ".join(forms[n] for n in lengths)
        raise ValueError(f"{name}: expected an int or {expected}, got {value!r}")
    if len(value) == 2:
        return _positive_int(name, value[0]), _positive_int(name, value[1])
    return (
        _offset(name, value[0]),
        _offset(name, value[1]),
        _positive_int(name, value[2]),
        _positive_int(name, value[3]),
    )


def _offset(name: str, value: Any) -> int:
    """Check one of a box's first two numbers."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: top and left must be ints of 0 or more, got {value!r}") from None
    if isinstance(value, bool) or number < 0:
        raise ValueError(f"{name}: top and left must be ints of 0 or more, got {value!r}")
    return number


def _choice(name: str, value: Any, choices: tuple[str, ...], more: str = "") -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}{more}, got {value!r}")


def _finite(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number, got {value!r}") from None
    # what float32 holds as a normal number: the arithmetic is done in it
    if not math.isfinite(number) or (number != 0 and not 1.2e-38 < abs(number) < 3.4e38):
        raise ValueError(f"{name}: expected a finite number that float32 can hold, got {value!r}")
    return number


def _three_floats(name: str, value: Any) -> tuple[float, float, float]:
    if hasattr(value, "tolist"):  # NumPy's and torch's numbers and arrays
        value = value.tolist()
    if isinstance(value, (int, float)):
        value = (value, value, value)
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 3:
        raise ValueError(f"{name}: expected a number or three numbers (R, G, B), got {value!r}")
    return _finite(name, value[0]), _finite(name, value[1]), _finite(name, value[2])


def _color_matrix(value: Any) -> tuple[tuple[float, float, float, float], ...]:
    if hasattr(value, "tolist"):
        value = value.tolist()
    rows = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    rows = [row.tolist() if hasattr(row, "tolist") else row for row in rows]
    if len(rows) != 3 or not all(isinstance(r, Sequence) and len(r) in (3, 4) for r in rows):
        raise ValueError(f"color_matrix: expected 3 rows (R, G, B) of 3 or 4 numbers, got {value!r}")
    result = []
    for row in rows:
        numbers = [_finite("color_matrix", v) for v in row] + [0.0] * (4 - len(row))
        # beyond these, levels of the byte kernels would leave the integers they are rounded to
        if max(map(abs, numbers[:3])) > 1e4 or abs(numbers[3]) > 1e6:
            raise ValueError(
                f"color_matrix: expected factors of at most 1e4 and offsets of at most 1e6, got {value!r}"
            )
        result.append((numbers[0], numbers[1], numbers[2], numbers[3]))
    return tuple(result)
