"""Raw planes: how they are described and checked, what their colours mean, and their conversion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mmcore.backends import active_backend, load_backend
from mmcore.backends.cpu import frames_plan, output_desc
from mmcore.errors import UnsupportedError
from mmcore.ops.devices import check_device
from mmcore.ops.frame_transform import FrameTransform, Patches
from mmcore.ops.output_pool import empty_output
from mmcore.ops.pixel_formats import PIXEL_FORMATS, PixelFormat
from mmcore.threads import get_num_threads

if TYPE_CHECKING:
    import av

__all__ = [
    "RGB_BYTES",
    "ColorSpec",
    "Planes",
    "check_device",
    "check_planes",
    "color_spec",
    "convert_planes",
    "fill_slot",
    "pixel_format",
    "planes_color",
    "prepare_out",
    "repeat_last",
    "slot_view",
]

RGB_BYTES = FrameTransform(dtype=torch.uint8)
"""What no transform means: full-size RGB bytes."""


class ColorSpec(NamedTuple):
    """How samples become colours: matrix "601", "709" or "2020"; range; where subsampled chroma lies."""

    matrix: str
    full_range: bool
    chroma_location: str


@dataclass(frozen=True, eq=False)
class Planes:
    """Frames as raw planes: what a decoder other than PyAV gives, or a batch that is kept undecoded to RGB.

    Parameters
    ----------
    data : tuple of Tensor
        ``data[p]`` has shape (T, rows, samples per row): T frames of plane p, uint8, or uint16 or int16 words
        for formats of more than 8 bits. Rows and frames may be strided; more rows or samples than the frame
        has (padding) are ignored.
    format : str
        FFmpeg's name of the pixel format; ``mmcore.PIXEL_FORMATS`` lists them.
    height, width : int
        Size of the frames in pixels.
    matrix : {None, "601", "709", "2020"}
        None: BT.601, FFmpeg's reading of an unspecified one.
    full_range : None or bool
        None: limited, full for the ``yuvj`` formats.
    chroma_location : {None, "left", "center", "topleft", "nearest"}
        None: left, the position of MPEG codecs.

    Raises
    ------
    TypeError, ValueError
        If the planes do not fit the format and size.
    """

    data: tuple[Tensor, ...]
    format: str
    height: int
    width: int
    matrix: str | None = None
    full_range: bool | None = None
    chroma_location: str | None = None

    def __post_init__(self) -> None:
        check_planes(self.data, pixel_format(self.format), self.height, self.width)
        for name, choices in (
            ("matrix", ("601", "709", "2020")),
            ("chroma_location", ("left", "center", "topleft", "nearest")),
        ):
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise ValueError(
                    f"Planes: {name}: expected one of {', '.join(choices)} or None, got {value!r}"
                )

    def __len__(self) -> int:
        return len(self.data[0])


def pixel_format(name: str) -> PixelFormat:
    """Look up a pixel format that can be read as planes; UnsupportedError for another."""
    fmt = PIXEL_FORMATS.get(name)
    if fmt is None:
        raise UnsupportedError(
            f"pixel format {name!r} cannot be read as planes; supported: {', '.join(PIXEL_FORMATS)}"
        )
    return fmt


def check_planes(data: Sequence[Tensor], fmt: PixelFormat, height: int, width: int) -> None:
    """Refuse planes that are not dense tensors on one device, of the format's dtype and large enough."""
    for name, value in (("height", height), ("width", width)):
        if not isinstance(value, int):
            raise TypeError(f"Planes: {name}: expected an int, got {value!r}")
    if height < 1 or width < 1:
        raise ValueError(f"Planes: height and width must be 1 or more, got {height}x{width}")
    if len(data) < fmt.num_planes:
        raise ValueError(f"Planes: {fmt.name} has {fmt.num_planes} planes, got {len(data)}")
    dtypes = (torch.uint8,) if fmt.bytes_per_sample == 1 else (torch.uint16, torch.int16)
    for p in range(fmt.num_planes):
        plane, (rows, samples) = data[p], fmt.plane_shape(p, height, width)
        if not isinstance(plane, Tensor):
            raise TypeError(f"Planes: data[{p}]: expected a tensor, got {type(plane).__name__}")
        if plane.device.type not in ("cpu", "cuda") or plane.layout != torch.strided:
            raise ValueError(
                f"Planes: data[{p}]: expected a dense tensor on the CPU or a CUDA device,"
                f" got a {plane.layout} one on {plane.device}"
            )
        if plane.device != data[0].device:
            raise ValueError(f"Planes: data[{p}] is on {plane.device}, data[0] on {data[0].device}")
        if plane.dtype not in dtypes:
            raise TypeError(f"Planes: data[{p}]: {fmt.name} needs dtype {dtypes[0]}, got {plane.dtype}")
        if plane.dim() != 3 or plane.shape[1] < rows or plane.shape[2] < samples:
            raise ValueError(
                f"Planes: data[{p}]: {fmt.name} of {height}x{width} pixels needs shape"
                f" (T, {rows} or more rows, {samples} or more samples), got {tuple(plane.shape)}"
            )
        if plane.shape[0] != data[0].shape[0]:
            raise ValueError(f"Planes: data[{p}] holds {plane.shape[0]} frames, data[0] {data[0].shape[0]}")


def color_spec(frame: av.VideoFrame, transform: FrameTransform, codec_name: str | None = None) -> ColorSpec:
    """Matrix, range and chroma location of a decoded frame, its transform's overrides applied.

    Parameters
    ----------
    frame : av.VideoFrame
    transform : FrameTransform
    codec_name : str, optional
        FFmpeg's name of the codec; "mjpeg" puts chroma at the centre.
    """
    return stream_color(
        frame.format.name, int(frame.colorspace), int(frame.color_range), transform, codec_name
    )


def stream_color(
    format_name: str, colorspace: int, color_range: int, transform: FrameTransform, codec_name: str | None
) -> ColorSpec:
    """Resolve colours from FFmpeg's tags (AVColorSpace, AVColorRange) and a transform's overrides."""
    # AVColorSpace: 1 BT.709; 9 and 10 BT.2020. Every other value, unspecified among them, reads as BT.601.
    stream_matrix = "709" if colorspace == 1 else "2020" if colorspace in (9, 10) else "601"
    full = color_range == 2 or format_name.startswith("yuvj")  # AVCOL_RANGE_JPEG
    location = "center" if codec_name == "mjpeg" else "left"
    return ColorSpec(
        transform.matrix or stream_matrix,
        full if transform.full_range is None else transform.full_range,
        location if transform.chroma == "sited" else transform.chroma,
    )


def planes_color(
    fmt: PixelFormat,
    matrix: str | None,
    full_range: bool | None,
    chroma_location: str | None,
    transform: FrameTransform,
) -> ColorSpec:
    """Resolve colours from what Planes say of themselves and a transform's overrides."""
    full = fmt.full_range if full_range is None else full_range
    return ColorSpec(
        transform.matrix or matrix or "601",
        full if transform.full_range is None else transform.full_range,
        (chroma_location or "left") if transform.chroma == "sited" else transform.chroma,
    )


def prepare_out(
    out: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | None = None
) -> Tensor:
    """Check a given ``out`` against shape, dtype and device (None: CPU), or take one from the pool."""
    on = device or torch.device("cpu")
    if out is None:
        return empty_output(shape, dtype) if on.type == "cpu" else torch.empty(shape, dtype=dtype, device=on)
    if not isinstance(out, Tensor):
        raise TypeError(f"out: expected a tensor, got {type(out).__name__}")
    if out.device != on or out.layout != torch.strided:
        raise ValueError(f"out: expected a dense tensor on {on}, got a {out.layout} one on {out.device}")
    if out.dtype != dtype:
        raise ValueError(f"out: expected dtype {dtype}, got {out.dtype}")
    if tuple(out.shape) != tuple(shape):
        raise ValueError(f"out: expected shape {tuple(shape)}, got {tuple(out.shape)}")
    if not out.is_contiguous():
        raise ValueError(
            f"out: expected a contiguous tensor, got strides {out.stride()} for shape {tuple(shape)}"
        )
    if out.requires_grad:
        raise ValueError("out: a tensor that requires grad cannot be written in place")
    return out


def convert_planes(
    data: Sequence[Tensor],
    format_name: str,
    height: int,
    width: int,
    color: ColorSpec,
    transform: FrameTransform,
    out: Tensor | None,
) -> Tensor:
    """Convert (T, rows, samples) planes on the active backend into a batch in the transform's layout."""
    fmt = pixel_format(format_name)
    g = transform.geometry(height, width)
    planes = [
        p.detach() if p.stride(2) == 1 or p.shape[2] == 1 else p.contiguous() for p in data[: fmt.num_planes]
    ]
    count, device = len(planes[0]), planes[0].device
    result = prepare_out(out, transform.output_shape(count, height, width), transform.dtype, device)
    if out is not None and any(_overlap(out, p) for p in planes):
        raise ValueError("out: overlaps the memory of the planes")
    if count == 0:
        return result
    backend = active_backend(device.type, ("reference", "cpu", "cuda"))
    if backend == "reference":
        from mmcore.backends import reference

        values = reference.convert([p.cpu() for p in planes], fmt, height, width, color, transform)
        return result.copy_(reference.apply_layout(values, transform.layout))
    if backend == "cuda":
        load_backend("cuda").convert_planes(planes, fmt, height, width, color, transform, result)
        repeat_last(result, transform.layout, count, g.out_h, g.out_w)
        return result
    plan = frames_plan(fmt, height, width, color, transform)
    size = fmt.bytes_per_sample
    frames = [
        [(p.data_ptr() + t * p.stride(0) * size, p.stride(1) * size) for p in planes] for t in range(count)
    ]
    plan.convert(frames, output_desc(result, transform.layout, g.out_h, g.out_w), 0, get_num_threads())
    repeat_last(result, transform.layout, count, g.out_h, g.out_w)
    return result


def _overlap(a: Tensor, b: Tensor) -> bool:
    def span(t: Tensor) -> tuple[int, int]:
        low = high = t.data_ptr()
        for extent, stride in zip(t.shape, t.stride(), strict=True):
            reach = (extent - 1) * stride * t.element_size()
            low, high = low + min(reach, 0), high + max(reach, 0)
        return low, high + t.element_size()

    if a.numel() == 0 or b.numel() == 0:
        return False
    (a_low, a_high), (b_low, b_high) = span(a), span(b)
    return a_low < b_high and b_low < a_high


def slot_view(out: Tensor, layout: str | Patches, index: int, height: int, width: int) -> Tensor:
    """View of frame ``index`` in a batch, shaped (3, H, W) or (3, H/mp, m, p, W/mp, m, p) for patches."""
    if isinstance(layout, str):
        view = out.select(layout.index("N"), index)
        return view.permute(2, 0, 1) if layout == "NHWC" else view
    p, tp, m = layout.patch_size, layout.temporal_patch_size, layout.merge_size
    grid = out.view(-1, height // (p * m), width // (p * m), m, m, 3, tp, p, p)
    return grid[index // tp, :, :, :, :, :, index % tp].permute(4, 0, 2, 5, 1, 3, 6)


def fill_slot(out: Tensor, layout: str | Patches, index: int, picture: Tensor) -> None:
    """Write one picture (3, H, W) into its slot."""
    slot = slot_view(out, layout, index, picture.shape[1], picture.shape[2])
    slot.copy_(picture.contiguous().view(slot.shape))


def repeat_last(out: Tensor, layout: str | Patches, count: int, height: int, width: int) -> None:
    """Fill the rest of an incomplete temporal patch with the last frame."""
    if isinstance(layout, str):
        return
    slots = -(-count // layout.temporal_patch_size) * layout.temporal_patch_size
    for index in range(count, slots):
        slot_view(out, layout, index, height, width).copy_(slot_view(out, layout, count - 1, height, width))
