"""The inverse of the frames op: a model's RGB tensor to the planes that a video encoder takes, in one pass.

    level = clamp((value * std + mean) / scale, 0, 255);   planes = round(subsample(matrix @ level))

at the cost of one read of the tensor and one write of the planes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mmcore.backends import active_backend
from mmcore.errors import UnsupportedError
from mmcore.ops._library import LIBRARY
from mmcore.ops.frame_transform import DTYPES, LAYOUTS, MATRICES, _finite, _three_floats
from mmcore.ops.output_pool import empty_output
from mmcore.ops.pixel_formats import PixelFormat
from mmcore.ops.planes import ColorSpec, Planes, pixel_format
from mmcore.threads import get_num_threads

if TYPE_CHECKING:
    import av

__all__ = ["PlanesWriter", "tensor_to_planes"]

_LOCATIONS = ("left", "center", "topleft", "nearest")


def tensor_to_planes(
    frames: Tensor,
    format: str = "yuv420p",
    *,
    layout: str = "NCHW",
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    scale: float | None = None,
    matrix: str = "709",
    full_range: bool | None = None,
    chroma_location: str = "left",
) -> Planes:
    """Convert an RGB tensor to a video encoder's planes: what :func:`frames_to_tensor` does, undone.

    Parameters
    ----------
    frames : Tensor
        T frames on the CPU, uint8, float16, bfloat16 or float32, of any strides: (T, 3, H, W), or as
        ``layout`` says. A single channel stands for all three.
    format : str
        FFmpeg's name of the pixel format: one of ``mmcore.PIXEL_FORMATS`` but the ``yuva`` ones.
    layout : {"NCHW", "NHWC", "CNHW"}
        Order of the dimensions of ``frames``.
    mean, std : None, float or sequence of 3 floats
        The normalisation of ``frames``, undone: ``level = (value * std + mean) / scale``. Floating dtypes.
    scale : None or float
        Factor that made values of levels (0-255). None: 1/255 for floating dtypes, 1 for uint8.
    matrix : {"601", "709", "2020"}
        RGB to YUV matrix; of no effect on RGB formats.
    full_range : None or bool
        None: limited, full for the ``yuvj`` formats.
    chroma_location : {"left", "center", "topleft", "nearest"}
        Where subsampled chroma lies. "left", the position of MPEG codecs: [1 2 1] / 4 along a row around
        every other pixel, the mean of two rows. "center" and "nearest": the mean of the pixels that share it.

    Returns
    -------
    Planes
        The planes with what they mean, which :func:`frames_to_tensor` takes back.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit.
    UnsupportedError
        For a tensor that is not on the CPU, or a pixel format that cannot be written.

    Notes
    -----
    Levels are clamped to 0-255, NaN to 0. Samples are rounded once, half to even, without dithering; a chroma
    sample is rounded from the unrounded mean of its pixels. Not differentiable. Colour: ITU-R BT.601, BT.709,
    BT.2020 (non-constant luminance).

    Examples
    --------
    >>> import mmcore, torch
    >>> planes = mmcore.tensor_to_planes(torch.ones(1, 3, 4, 6), "yuv420p")
    >>> [tuple(p.shape) for p in planes.data], int(planes.data[0][0, 0, 0])
    ([(1, 4, 6), (1, 2, 3), (1, 2, 3)], 235)
    """
    view = rgb_view(frames, layout)
    writer = PlanesWriter.make(format, frames.dtype, mean, std, scale, matrix, full_range, chroma_location)
    fmt, color = writer.format, writer.color
    if torch.compiler.is_compiling():
        data = torch.ops.mmcore.tensor_to_planes(
            view, format, list(writer.mul), list(writer.add), color.matrix, color.full_range, chroma_location
        )
    else:
        data = writer.planes(view)
    in_rgb = fmt.family == "rgb"
    return Planes(
        tuple(data),
        format,
        view.shape[2],
        view.shape[3],
        None if in_rgb else color.matrix,
        None if in_rgb else color.full_range,
        None if in_rgb else color.chroma_location,
    )


def rgb_view(frames: Tensor, layout: str, name: str = "frames") -> Tensor:
    """View of a batch of frames as (T, 3, H, W), checked; errors begin with ``name``."""
    if not isinstance(frames, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(frames).__name__}")
    if not isinstance(layout, str) or layout not in LAYOUTS:
        raise ValueError(f"layout: expected one of {', '.join(map(repr, LAYOUTS))}, got {layout!r}")
    if frames.dtype not in DTYPES:
        raise TypeError(f"{name}: expected dtype {', '.join(map(str, DTYPES))}, got {frames.dtype}")
    if frames.device.type != "cpu" or frames.layout != torch.strided:
        raise UnsupportedError(
            f"{name}: planes are made of dense tensors on the CPU, got a {frames.layout} one on"
            f" {frames.device}; use .cpu()"
        )
    if frames.dim() != 4 or frames.shape[layout.index("C")] not in (1, 3):
        raise ValueError(
            f"{name}: expected shape {layout} = ({', '.join('T3HW'['NCHW'.index(d)] for d in layout)}),"
            f" got {tuple(frames.shape)}"
        )
    view = frames.detach().permute(*(layout.index(d) for d in "NCHW"))
    if view.shape[2] < 1 or view.shape[3] < 1:
        raise ValueError(f"{name}: frames must have pixels, got shape {tuple(frames.shape)}")
    return view.expand(-1, 3, -1, -1)


class PlanesWriter(NamedTuple):
    """How values become the samples of one pixel format."""

    format: PixelFormat
    color: ColorSpec
    mul: tuple[float, float, float]
    add: tuple[float, float, float]

    @staticmethod
    def make(
        format: str,
        dtype: torch.dtype,
        mean: float | Sequence[float] | None,
        std: float | Sequence[float] | None,
        scale: float | None,
        matrix: str,
        full_range: bool | None,
        chroma_location: str,
    ) -> PlanesWriter:
        """Check the arguments of :func:`tensor_to_planes`."""
        fmt = pixel_format(format)
        if format.startswith("yuva"):
            raise UnsupportedError(f"pixel format {format!r} has an alpha plane; use {'yuv' + format[4:]!r}")
        if matrix not in MATRICES:
            raise ValueError(f"matrix: expected one of {', '.join(map(repr, MATRICES))}, got {matrix!r}")
        if full_range is not None and not isinstance(full_range, bool):
            raise TypeError(f"full_range: expected a bool or None, got {full_range!r}")
        if chroma_location not in _LOCATIONS:
            raise ValueError(
                f"chroma_location: expected one of {', '.join(map(repr, _LOCATIONS))},"
                f" got {chroma_location!r}"
            )
        for name, value in (("mean", mean), ("std", std), ("scale", scale)):
            if dtype == torch.uint8 and value is not None:
                raise ValueError(f"{name}: needs frames of a floating dtype; those of uint8 are levels 0-255")
        unit = 1.0 if dtype == torch.uint8 else 1 / 255 if scale is None else _finite("scale", scale)
        shift = (0.0, 0.0, 0.0) if mean is None else _three_floats("mean", mean)
        factor = (1.0, 1.0, 1.0) if std is None else _three_floats("std", std)
        if unit == 0:
            raise ValueError("scale: must not be 0")
        if min(factor) <= 0:
            raise ValueError(f"std: expected three positive numbers, got {factor}")
        mul = (factor[0] / unit, factor[1] / unit, factor[2] / unit)
        add = (shift[0] / unit, shift[1] / unit, shift[2] / unit)
        full = fmt.full_range if full_range is None else full_range
        return PlanesWriter(fmt, ColorSpec(matrix, full, chroma_location), mul, add)

    def planes(self, frames: Tensor) -> list[Tensor]:
        """Planes (T, rows, samples per row) of frames (T, 3, H, W), on the active backend."""
        if active_backend() == "reference":
            from mmcore.backends.reference import tensor_to_planes

            return tensor_to_planes(frames, self.format, self.color, self.mul, self.add)
        count, _, height, width = frames.shape
        size = self.format.bytes_per_sample
        data = []
        for p in range(self.format.num_planes):
            rows, samples = self.format.plane_shape(p, height, width)
            plane = empty_output((count, rows, samples * size), torch.uint8)
            data.append(plane if size == 1 else plane.view(torch.uint16))
        targets = [
            [(p.data_ptr() + t * p.stride(0) * size, p.stride(1) * size) for p in data] for t in range(count)
        ]
        self._write(frames, targets)
        return data

    def fill(self, frames: Tensor, pictures: Sequence[av.VideoFrame]) -> int:
        """Write frames (T, 3, H, W) into T new pictures of the format and size.

        Returns
        -------
        int
            Number of the first frame with a NaN or an infinity, or -1.
        """
        if active_backend() == "reference":
            return self._fill_by_reference(frames, pictures)
        return self._write(frames, [[(p.buffer_ptr, p.line_size) for p in f.planes] for f in pictures])

    def _write(self, frames: Tensor, targets: Sequence[Sequence[tuple[int, int]]]) -> int:
        from mmcore.backends.cpu import write_planes

        return write_planes(frames, self.format, self.color, self.mul, self.add, targets, get_num_threads())

    def _fill_by_reference(self, frames: Tensor, pictures: Sequence[av.VideoFrame]) -> int:
        data = self.planes(frames)
        for t, picture in enumerate(pictures):
            for plane, samples in zip(picture.planes, data, strict=False):
                line = torch.zeros(samples.shape[1], plane.line_size, dtype=torch.uint8)
                row = samples[t].contiguous().view(torch.uint8)
                line[:, : row.shape[1]] = row
                plane.update(bytes(line.numpy().reshape(-1)).ljust(plane.buffer_size, b"\0"))
        wrong = (~torch.isfinite(frames)).flatten(1).any(1).nonzero()
        return int(wrong[0]) if len(wrong) else -1


LIBRARY.define(  # type: ignore[no-untyped-call]
    "tensor_to_planes(Tensor frames, str format, float[] mul, float[] add, str matrix, bool full_range,"
    " str chroma_location) -> Tensor[]"
)


def _tensor_to_planes_op(
    frames: Tensor,
    format: str,
    mul: list[float],
    add: list[float],
    matrix: str,
    full_range: bool,
    chroma_location: str,
) -> list[Tensor]:
    color = ColorSpec(matrix, full_range, chroma_location)
    a, b = (mul[0], mul[1], mul[2]), (add[0], add[1], add[2])
    view = rgb_view(frames, "NCHW")
    return PlanesWriter(pixel_format(format), color, a, b).planes(view)


def _tensor_to_planes_fake(
    frames: Tensor,
    format: str,
    mul: list[float],
    add: list[float],
    matrix: str,
    full_range: bool,
    chroma_location: str,
) -> list[Tensor]:
    fmt = pixel_format(format)
    dtype = torch.uint8 if fmt.bytes_per_sample == 1 else torch.uint16
    count, _, height, width = frames.shape
    return [
        frames.new_empty((count, *fmt.plane_shape(p, height, width)), dtype=dtype)
        for p in range(fmt.num_planes)
    ]


LIBRARY.impl("tensor_to_planes", _tensor_to_planes_op, "CPU")  # type: ignore[no-untyped-call]
torch.library.register_fake("mmcore::tensor_to_planes", _tensor_to_planes_fake, lib=LIBRARY)
