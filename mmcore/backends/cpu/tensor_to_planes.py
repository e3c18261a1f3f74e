"""The inverse of the frames op on the compiled core: a tensor's frames written where their planes lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from mmcore import _core
from mmcore.backends.cpu.frames import _CHROMA, _DTYPE, _FAMILY, _KR_KB

if TYPE_CHECKING:
    from mmcore.ops.pixel_formats import PixelFormat
    from mmcore.ops.planes import ColorSpec

__all__ = ["write_planes"]


def write_planes(
    frames: Tensor,
    fmt: PixelFormat,
    color: ColorSpec,
    mul: Sequence[float],
    add: Sequence[float],
    targets: Sequence[Sequence[tuple[int, int]]],
    threads: int,
) -> int:
    """Write frames (T, 3, H, W) to ``targets``: for each frame its planes' (address, pitch in bytes).

    Returns
    -------
    int
        Number of the first frame with a NaN or an infinity, or -1.
    """
    height, width = frames.shape[2:]
    frame, channel, row, pixel = frames.stride()
    return _core.tensor_to_planes(
        tensor=(frames.data_ptr(), _DTYPE[frames.dtype], frame, channel, row, pixel),
        size=(height, width),
        frames=targets,
        family=_FAMILY[fmt.family],
        components=[(c.plane, c.offset, c.step) for c in fmt.components],
        bits=fmt.bits,
        shift=fmt.shift,
        log2_chroma=(fmt.log2_chroma_w, fmt.log2_chroma_h),
        opaque=fmt.family == "rgb" and fmt.components[0].step == 4,
        chroma=_CHROMA[color.chroma_location],
        kr_kb=_KR_KB[color.matrix],
        full_range=color.full_range,
        mul=mul,
        add=add,
        threads=threads,
    )
