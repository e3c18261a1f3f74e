"""The pixel formats that the frames op reads without a conversion, described by their memory layout.

Names are FFmpeg's. A component is one colour channel; ``offset`` and ``step`` count samples (bytes for
8-bit formats, 16-bit words otherwise) along a row of its plane.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

__all__ = ["PIXEL_FORMATS", "Component", "PixelFormat"]


@dataclass(frozen=True)
class Component:
    """Where one colour channel lies: plane number, first sample in a row, distance to the next."""

    plane: int
    offset: int
    step: int


@dataclass(frozen=True)
class PixelFormat:
    """Memory layout of one pixel format.

    Attributes
    ----------
    name : str
        FFmpeg's name.
    family : str
        ``"yuv"`` (components Y, U, V), ``"gray"`` (Y) or ``"rgb"`` (components R, G, B).
    components : tuple of Component
        In the family's order, wherever they lie in memory.
    bits : int
        Significant bits of a sample: 8, 10 or 12.
    shift : int
        Right shift that brings a stored sample to its value (6 for p010le, else 0).
    log2_chroma_w, log2_chroma_h : int
        Chroma subsampling: a chroma plane is ``ceil(width / 2**log2_chroma_w)`` wide.
    full_range : bool
        True for the ``yuvj`` formats, which are full range by name.
    """

    name: str
    family: str
    components: tuple[Component, ...]
    bits: int = 8
    shift: int = 0
    log2_chroma_w: int = 0
    log2_chroma_h: int = 0
    full_range: bool = False

    @functools.cached_property
    def num_planes(self) -> int:
        """Number of planes that hold colour."""
        return 1 + max(c.plane for c in self.components)

    @functools.cached_property
    def bytes_per_sample(self) -> int:
        """1 for 8-bit formats, else 2."""
        return 1 if self.bits + self.shift <= 8 else 2

    def component_size(self, index: int, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of component ``index`` in a frame of ``height`` x ``width`` pixels."""
        if self.family != "yuv" or index == 0:
            return height, width
        return -(-height >> self.log2_chroma_h), -(-width >> self.log2_chroma_w)

    def plane_shape(self, plane: int, height: int, width: int) -> tuple[int, int]:
        """Rows and *samples per row* (interleaved components counted) of a plane."""
        rows = samples = 0
        for i, c in enumerate(self.components):
            if c.plane == plane:
                rows, cols = self.component_size(i, height, width)
                samples = cols * c.step
        return rows, samples


def _planar(name: str, bits: int, cw: int, ch: int, full: bool = False) -> PixelFormat:
    return PixelFormat(name, "yuv", tuple(Component(p, 0, 1) for p in range(3)), bits, 0, cw, ch, full)


def _packed(name: str, order: str) -> PixelFormat:
    return PixelFormat(name, "rgb", tuple(Component(0, order.index(c), len(order)) for c in "rgb"))


def _table() -> dict[str, PixelFormat]:
    formats: list[PixelFormat] = []
    for chroma, cw, ch in (("420", 1, 1), ("422", 1, 0), ("444", 0, 0)):
        formats.append(_planar(f"yuv{chroma}p", 8, cw, ch))
        formats.append(_planar(f"yuvj{chroma}p", 8, cw, ch, True))
        formats.append(_planar(f"yuva{chroma}p", 8, cw, ch))  # the alpha plane is left out
        formats.extend(_planar(f"yuv{chroma}p{bits}le", bits, cw, ch) for bits in (10, 12))
    for name, bits, shift, u in (("nv12", 8, 0, 0), ("nv21", 8, 0, 1), ("p010le", 10, 6, 0)):
        uv = (Component(0, 0, 1), Component(1, u, 2), Component(1, 1 - u, 2))
        formats.append(PixelFormat(name, "yuv", uv, bits, shift, 1, 1))
    for name, bits in (("gray", 8), ("gray10le", 10), ("gray12le", 12)):
        formats.append(PixelFormat(name, "gray", (Component(0, 0, 1),), bits))
    formats += [
        _packed("rgb24", "rgb"),
        _packed("bgr24", "bgr"),
        _packed("rgba", "rgba"),
        _packed("bgra", "bgra"),
    ]
    for name, bits in (("gbrp", 8), ("gbrp10le", 10), ("gbrp12le", 12)):
        gbr = (Component(2, 0, 1), Component(0, 0, 1), Component(1, 0, 1))
        formats.append(PixelFormat(name, "rgb", gbr, bits))
    return {f.name: f for f in formats}


PIXEL_FORMATS: dict[str, PixelFormat] = _table()
"""Every pixel format that the frames op reads as it is, by FFmpeg's name."""
