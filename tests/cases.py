"""The one table of cases that every backend of the frames op is judged by, and their pictures."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmcore.ops.frame_transform import FrameTransform, Patches, patches
from mmcore.ops.pixel_formats import PIXEL_FORMATS, PixelFormat

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


class Color(NamedTuple):
    """What the frames' colours mean, resolved; the reference backend takes it as its ``ColorSpec``."""

    matrix: str = "601"
    full_range: bool = False
    chroma_location: str = "left"


@dataclass(frozen=True)
class Case:
    """One call of the frames op."""

    id: str
    format: str
    height: int
    width: int
    frames: int
    transform: FrameTransform
    color: Color
    content: str = "noise"
    storage: str = "tight"
    tagged: str = "planes"  # who says what the colours mean: the planes, or the transform over false planes

    def call_transform(self) -> FrameTransform:
        """The transform as the caller passes it."""
        matrix, full_range, location = self.color
        if self.tagged == "transform":
            return self.transform.replace(matrix=matrix, full_range=full_range, chroma=location)
        # Only a transform can ask for replicated chroma: no stream says so.
        return self.transform.replace(chroma="nearest" if location == "nearest" else "sited")

    def planes_kwargs(self) -> dict[str, Any]:
        """Arguments of ``Planes`` beside its data."""
        matrix, full_range, location = self.color
        tags: dict[str, Any] = {"matrix": matrix, "full_range": full_range, "chroma_location": location}
        if self.tagged == "transform":  # the transform must win over these
            tags = {
                "matrix": "709" if matrix == "601" else "601",
                "full_range": not full_range,
                "chroma_location": "center" if location == "left" else "left",
            }
        elif location == "nearest":
            tags["chroma_location"] = None
        return {"format": self.format, "height": self.height, "width": self.width, **tags}

    def data(self) -> tuple[Tensor, ...]:
        """The planes' samples."""
        fmt = PIXEL_FORMATS[self.format]
        tight = make_planes(fmt, self.frames, self.height, self.width, self.content)
        return tuple(padded(p) for p in tight) if self.storage == "padded" else tight


def make_planes(
    fmt: PixelFormat, frames: int, height: int, width: int, content: str = "noise", seed: int = 0
) -> tuple[Tensor, ...]:
    """Planes of shape (frames, rows, samples per row), contiguous, uint8 or uint16."""
    generator = torch.Generator().manual_seed(seed)
    top = 2**fmt.bits - 1
    planes = []
    for p in range(fmt.num_planes):
        rows, samples = fmt.plane_shape(p, height, width)
        stored = torch.randint(0, top + 1, (frames, rows, samples), generator=generator)  # also rgba's alpha
        for i, c in enumerate(fmt.components):
            if c.plane == p:
                size = (frames, *fmt.component_size(i, height, width))
                stored[:, :, c.offset :: c.step] = _CONTENT[content](size, top, i, generator)
        stored <<= fmt.shift
        planes.append(stored.to(torch.uint8 if fmt.bytes_per_sample == 1 else torch.uint16))
    return tuple(planes)


def padded(plane: Tensor) -> Tensor:
    """The same samples as a view with gaps between rows and frames, unaligned; 16-bit words as int16."""
    frames, rows, samples = plane.shape
    if plane.dtype == torch.uint16:
        plane = plane.view(torch.int16)
    buffer = torch.full((frames, rows + 2, samples + 13), 77, dtype=plane.dtype)
    view = buffer[:, 1 : rows + 1, 3 : samples + 3]
    view.copy_(plane)
    return view


def _noise(size: Sequence[int], top: int, component: int, g: torch.Generator) -> Tensor:
    return torch.randint(0, top + 1, tuple(size), generator=g)


def _extremes(size: Sequence[int], top: int, component: int, g: torch.Generator) -> Tensor:
    levels = torch.tensor([0, top, top // 2, 16 * (top + 1) // 256, 235 * (top + 1) // 256])
    return levels[torch.randint(0, 5, tuple(size), generator=g)]


def _gradient(size: Sequence[int], top: int, component: int, g: torch.Generator) -> Tensor:
    t, rows, cols = size
    x, y = torch.linspace(0, 1, cols), torch.linspace(0, 1, rows)[:, None]
    ramp = (x + y) / 2 if component == 0 else (x if component == 1 else 1 - y).expand(rows, cols)
    return torch.stack([(ramp * (1 - 0.1 * i) * top).long() for i in range(t)])


def _smooth(size: Sequence[int], top: int, component: int, g: torch.Generator) -> Tensor:
    t, rows, cols = size
    x, y = torch.linspace(0, 1, cols), torch.linspace(0, 1, rows)[:, None]
    frames = []
    for i in range(t):
        wave = torch.sin(7 * x + 3 * y + component + i) * torch.cos(5 * y - 2 * x + 2 * component)
        frames.append(((0.5 + 0.3 * wave) * top).long())
    return torch.stack(frames)


def _edges(size: Sequence[int], top: int, component: int, g: torch.Generator) -> Tensor:
    """Flat blocks of saturated colours, odd in size so that they end anywhere in a vector."""
    t, rows, cols = size
    coarse = _extremes((t, rows // 5 + 1, cols // 7 + 1), top, component, g)
    return coarse.repeat_interleave(5, 1).repeat_interleave(7, 2)[:, :rows, :cols]


_CONTENT = {"noise": _noise, "extremes": _extremes, "gradient": _gradient, "smooth": _smooth, "edges": _edges}


def _geometry(name: str, h: int, w: int) -> dict[str, Any]:
    def n(x: float) -> int:
        return max(1, int(x))

    short = n(min(h, w) * 0.7)
    return {
        "full": {},
        "same": {"resize": (h, w)},
        "half": {"resize": (-(-h // 2), -(-w // 2))},
        "down": {"resize": (n(h * 0.37), n(w * 0.29))},
        "up": {"resize": (n(h * 1.7 + 1), n(w * 2.3 + 1))},
        "down-up": {"resize": (n(h * 0.4), n(w * 1.6 + 1))},
        "rows": {"resize": (n(h * 0.6), w)},
        "columns": {"resize": (h, n(w * 0.6))},
        "pixel": {"resize": (1, 1)},
        "crop": {"crop": (n(h * 0.7), n(w * 0.6))},
        "box": {"crop": (h // 3, w // 4, n(h * 0.5), n(w * 0.6))},
        "short-crop": {"resize": short, "crop": n(short * 0.9)},
        "down-box": {
            "resize": (n(h * 0.8), n(w * 0.5)),
            "crop": (n(h * 0.8) // 3, 0, n(h * 0.4), n(w * 0.3)),
        },
        "up-box": {"resize": (2 * h + 1, 3 * w), "crop": (h + 1, 2 * w, h, w)},
    }[name]


_GEOMETRIES = (
    "full", "same", "half", "down", "up", "down-up", "rows", "columns", "pixel",
    "crop", "box", "short-crop", "down-box", "up-box",
)  # fmt: skip

_AXES: dict[str, tuple[Any, ...]] = {
    "format": tuple(PIXEL_FORMATS),
    "size": ((1, 1), (1, 23), (19, 1), (2, 2), (3, 5), (16, 32), (17, 31), (65, 97), (130, 171)),
    "geometry": _GEOMETRIES,
    "filter": (
        ("bilinear", True), ("bilinear", False), ("bicubic", True), ("bicubic", False),
        ("area", True), ("nearest", True),
    ),
    "accuracy": ("fused", "rgb8"),
    "dtype": (torch.float32, torch.uint8, torch.float16, torch.bfloat16),
    "layout": ("NCHW", "NHWC", "CNHW", patches(4)),
    "values": ("unit", "imagenet", "levels", "std"),
    "matrix": ("601", "709", "2020"),
    "full_range": (False, True),
    "location": ("left", "center", "topleft", "nearest"),
    "content": tuple(_CONTENT),
    "storage": ("tight", "padded"),
    "tagged": ("planes", "transform"),
    "frames": (2, 1, 3),
}  # fmt: skip

_VALUES: dict[str, dict[str, Any]] = {
    "unit": {},
    "imagenet": IMAGENET,
    "levels": {"scale": 1.0},
    "std": {"scale": 1 / 127.5, "std": (0.5, 0.25, 2.0)},
    "jitter": {
        "color_matrix": ((0.7, 0.3, -0.1, 9.0), (0.05, 1.1, -0.2, -7.0), (-0.1, 0.2, 0.8, 3.5)),
        "horizontal_flip": True,
    },
}


def _pairwise(axes: dict[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """Rows in which any two values of different axes meet at least once (greedy, the same at every run)."""
    rng = random.Random(7)
    names = list(axes)
    missing = {
        (a, i, b, j)
        for a, b in itertools.combinations(range(len(names)), 2)
        for i in range(len(axes[names[a]]))
        for j in range(len(axes[names[b]]))
    }
    for first in sorted(missing):
        if first not in missing:
            continue
        row = {first[0]: first[1], first[2]: first[3]}
        for axis in range(len(names)):
            if axis not in row:
                choices = list(range(len(axes[names[axis]])))
                rng.shuffle(choices)
                gains = [sum(_pair(axis, i, a, v) in missing for a, v in row.items()) for i in choices]
                row[axis] = choices[gains.index(max(gains))]
        for (a, i), (b, j) in itertools.combinations(row.items(), 2):
            missing.discard(_pair(a, i, b, j))
        yield {names[a]: axes[names[a]][i] for a, i in row.items()}


def _pair(a: int, i: int, b: int, j: int) -> tuple[int, int, int, int]:
    return (a, i, b, j) if a < b else (b, j, a, i)


def make_case(
    format: str = "yuv420p",
    size: tuple[int, int] = (17, 31),
    geometry: str | dict[str, Any] = "full",
    filter: tuple[str, bool] = ("bilinear", True),
    accuracy: str = "fused",
    dtype: torch.dtype = torch.float32,
    layout: str | Patches = "NCHW",
    values: str = "unit",
    matrix: str = "601",
    full_range: bool = False,
    location: str = "left",
    content: str = "noise",
    storage: str = "tight",
    tagged: str = "planes",
    frames: int = 2,
) -> Case:
    """A case from the axes' values, with an id that says what is not the default."""
    how = _geometry(geometry, *size) if isinstance(geometry, str) else geometry
    if isinstance(layout, Patches) and isinstance(geometry, str):  # the size must divide into patches
        how = {"resize": (20, 31), "crop": (16, 24)} if "crop" in how else {"resize": (16, 24)}
    if isinstance(geometry, dict):
        geometry = "-".join(f"{k}{v}" for k, v in geometry.items()).replace(" ", "")
    if dtype == torch.uint8 and values != "jitter":
        values = "unit"
    transform = FrameTransform(
        **how, **_VALUES[values], interpolation=filter[0], antialias=filter[1], dtype=dtype, layout=layout,
        accuracy=accuracy,
    )  # fmt: skip
    parts = [
        format, f"{size[0]}x{size[1]}", geometry, filter[0] + ("" if filter[1] else "-noaa"), accuracy,
        str(dtype).removeprefix("torch."), layout if isinstance(layout, str) else "patches", values, matrix,
        "fullrange" if full_range else "", location, content, storage, tagged, f"{frames}frames",
    ]  # fmt: skip
    defaults = {"full", "NCHW", "unit", "601", "", "left", "noise", "tight", "planes", "2frames"}
    name = "-".join(p for p in parts if p not in defaults)
    color = Color(matrix, full_range, location)
    return Case(name, format, *size, frames, transform, color, content, storage, tagged)


def _sweeps() -> Iterator[Case]:
    """What pairs do not reach: every vector remainder, extreme ratios, real sizes."""
    widths = (1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97)
    for w in widths:
        yield make_case(size=(4, w), dtype=torch.uint8, content="extremes")
        yield make_case(size=(5, w), location="center", format="nv12")
        yield make_case(size=(6, 40), geometry={"resize": (5, w)})
        yield make_case(size=(6, 40), geometry={"resize": (5, w)}, accuracy="rgb8", dtype=torch.uint8)
        yield make_case(size=(6, w), geometry={"resize": (4, 20)}, format="yuv420p10le", layout="NHWC")
        yield make_case(size=(50, w), geometry={"resize": (7, w)}, format="rgb24")
        yield make_case(size=(4, w), dtype=torch.uint8, values="jitter", content="extremes")
        yield make_case(size=(6, 40), geometry={"resize": (5, w)}, values="jitter", format="yuv420p10le")
    for filter in (("bilinear", True), ("bicubic", True), ("area", True), ("bicubic", False)):
        for accuracy in ("fused", "rgb8"):
            yield make_case(size=(3, 3000), geometry={"resize": (2, 3)}, filter=filter, accuracy=accuracy)
            yield make_case(size=(900, 4), geometry={"resize": (5, 3)}, filter=filter, accuracy=accuracy)
            yield make_case(size=(3, 2), geometry={"resize": (70, 90)}, filter=filter, accuracy=accuracy)
    crop = {"resize": 256, "crop": 224}
    for size in ((256, 340), (240, 320), (360, 640)):
        yield make_case(size=size, geometry=crop, values="imagenet", frames=1, content="edges")
    yield make_case(size=(720, 1280), geometry=crop, values="imagenet", frames=1)
    yield make_case(size=(720, 1280), geometry=crop, accuracy="rgb8", dtype=torch.uint8, frames=1)
    yield make_case(size=(540, 960), geometry={"resize": (140, 252)}, filter=("bicubic", True), frames=2,
                    layout=patches(14), format="yuv420p10le", matrix="709", values="imagenet")  # fmt: skip
    yield make_case(size=(40, 40), geometry={"crop": 32}, layout=patches(8, 1, 1), frames=3)
    yield make_case(size=(40, 40), geometry={"crop": 36}, layout=patches(3, 3, 2), frames=4)


_ALL = (*(make_case(**row) for row in _pairwise(_AXES)), *_sweeps())
FRAME_CASES: list[Case] = list({case.id: case for case in _ALL}.values())
