"""Raw planes: how they are described and checked, what their colours mean, and the slots of their results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mmcore.errors import UnsupportedError
from mmcore.ops.frame_transform import FrameTransform, Patches
from mmcore.ops.output_pool import empty_output
from mmcore.ops.pixel_formats import PIXEL_FORMATS, PixelFormat
from mmcore.ops.plane_memory import PlaneMemory, memory_of_arrays, memory_of_pointers, plane_tensors

if TYPE_CHECKING:
    import av

__all__ = [
    "RGB_BYTES",
    "ColorSpec",
    "ForeignPlanes",
    "Planes",
    "check_planes",
    "color_spec",
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
        check_facts(self.height, self.width, self.matrix, self.full_range, self.chroma_location)
        check_planes(self.data, pixel_format(self.format), self.height, self.width)

    def __len__(self) -> int:
        return len(self.data[0])

    @property
    def device(self) -> torch.device:
        """Where the planes lie, and are converted."""
        return self.data[0].device

    @staticmethod
    def from_pointers(
        pointers: int | Sequence[int],
        pitches: int | Sequence[int],
        format: str,
        height: int,
        width: int,
        *,
        device: str | torch.device = "cuda",
        stream: int | torch.cuda.Stream | None = None,
        owner: object = None,
        surface_height: int | None = None,
        matrix: str | None = None,
        full_range: bool | None = None,
        chroma_location: str | None = None,
    ) -> Planes:
        """One frame in memory of another library, by address: NVDEC surfaces, FFmpeg's frames.

        Nothing is copied. The addresses are checked as far as the driver knows them; that the frame lies
        behind them is up to the caller.

        Parameters
        ----------
        pointers : int or sequence of int
            Address of each plane's first row. One is enough where planes of one pitch follow one another
            (nv12, nv21, p010le, 4:4:4): see ``surface_height``.
        pitches : int or sequence of int
            Bytes from a row to the next, of every plane or of each; negative where the first row lies last.
        format : str
            FFmpeg's name of the pixel format. NVDEC's P016 is "p010le" for streams of 10 bits: samples lie in
            the high bits.
        height, width : int
            Size of the frame in pixels.
        device : str or torch.device
            Where the memory is; "cuda" is the current device.
        stream : None, int or torch.cuda.Stream
            CUDA stream (its handle) that fills the memory, and on which it will be filled anew; 0 or 1 is the
            legacy default stream, 2 the thread's own. The conversion waits for what is on it, and what is put
            on it later waits for the conversion; the host waits for neither. None: the frame is ready.
        owner : object
            Whatever keeps the memory, held as long as these Planes. Without ``stream`` it is held until the
            conversions have run, which is noticed at a later one.
        surface_height : int, optional
            With one pointer: rows of luma in the surface, for NVDEC the coded height. None: ``height``.
        matrix, full_range, chroma_location
            As for :class:`Planes`.

        Returns
        -------
        Planes
            Its ``data`` is made when asked for: views of the memory, copies where pitches are negative.

        Raises
        ------
        TypeError, ValueError
            For numbers that cannot be such a frame's, or addresses on another device.
        UnsupportedError
            For a device or pixel format that cannot be used here.

        Notes
        -----
        While a CUDA graph is captured no other stream can be waited for: synchronise before and leave
        ``stream`` out. What a graph reads must be kept as long as the graph.

        Examples
        --------
        >>> import mmcore, torch
        >>> surface = torch.full((6, 64), 128, dtype=torch.uint8)  # 4 rows of luma, 2 of chroma
        >>> planes = mmcore.Planes.from_pointers(
        ...     surface.data_ptr(), 64, "nv12", 4, 6, device="cpu", owner=surface
        ... )
        >>> mmcore.frames_to_tensor(planes).shape
        torch.Size([1, 3, 4, 6])
        """
        check_facts(height, width, matrix, full_range, chroma_location)
        memory = memory_of_pointers(
            pointers,
            pitches,
            pixel_format(format),
            height,
            width,
            device=device,
            stream=stream,
            owner=owner,
            surface_height=surface_height,
        )
        return ForeignPlanes(memory, format, height, width, matrix, full_range, chroma_location)

    @staticmethod
    def from_arrays(
        arrays: object,
        format: str,
        height: int,
        width: int,
        *,
        device: str | torch.device | None = None,
        stream: int | torch.cuda.Stream | None = None,
        surface_height: int | None = None,
        matrix: str | None = None,
        full_range: bool | None = None,
        chroma_location: str | None = None,
    ) -> Planes:
        """Frames in arrays of other libraries: CuPy, CV-CUDA, PyNvVideoCodec, NumPy.

        Parameters
        ----------
        arrays : object or sequence of objects
            One array per plane, or one in which planes of the same row length follow one another
            (PyNvVideoCodec's frames and CV-CUDA's tensors of nv12). Each has ``__dlpack__`` or
            ``__cuda_array_interface__`` and shape (rows, samples), (frames, rows, samples) or
            ([frames,] rows, columns, channels), uint8 or for more than 8 bits uint16 or int16. The samples of
            a row are neighbours; rows and frames may lie apart.
        format : str
            FFmpeg's name of the pixel format.
        height, width : int
            Size of the frames in pixels; arrays may be larger.
        device : str or torch.device, optional
            Where arrays without ``__dlpack__`` are. None: as the driver says, else the current device.
        stream : None, int or torch.cuda.Stream
            As in :meth:`from_pointers`, in place of the arrays' own streams. Arrays with ``__dlpack__`` are
            ready for the stream that is current at this call.
        surface_height : int, optional
            With one array: rows of luma before the next plane. None: the share that the format gives luma.
        matrix, full_range, chroma_location
            As for :class:`Planes`.

        Returns
        -------
        Planes

        Raises
        ------
        TypeError, ValueError
            For arrays that do not fit the format and size, or lie on different devices.
        UnsupportedError
            For a device or pixel format that cannot be used here.

        Examples
        --------
        >>> import mmcore, numpy
        >>> frames = numpy.full((2, 6, 8), 128, numpy.uint8)  # two frames, 4 rows of luma and 2 of chroma
        >>> len(mmcore.Planes.from_arrays(frames, "nv12", 4, 8))
        2
        """
        check_facts(height, width, matrix, full_range, chroma_location)
        memory = memory_of_arrays(
            arrays,
            pixel_format(format),
            height,
            width,
            device=device,
            stream=stream,
            surface_height=surface_height,
        )
        return ForeignPlanes(memory, format, height, width, matrix, full_range, chroma_location)


class ForeignPlanes(Planes):
    """Planes given by what :class:`PlaneMemory` describes; tensors are made of them only when asked for."""

    def __init__(
        self,
        memory: PlaneMemory,
        format: str,
        height: int,
        width: int,
        matrix: str | None,
        full_range: bool | None,
        chroma_location: str | None,
    ) -> None:
        values = vars(self)  # the dataclass is frozen
        values.update(format=format, height=height, width=width, matrix=matrix)
        values.update(full_range=full_range, chroma_location=chroma_location, memory=memory)

    memory: PlaneMemory

    @property
    def data(self) -> tuple[Tensor, ...]:
        if torch.compiler.is_compiling():
            raise UnsupportedError(
                "Planes of another library's memory cannot be part of a compiled graph: convert them outside"
                " of the compiled function, or make Planes(planes.data, ...) there"
            )
        return plane_tensors(self.memory, pixel_format(self.format), self.height, self.width)

    def __len__(self) -> int:
        return self.memory.frames

    @property
    def device(self) -> torch.device:
        return self.memory.device

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("Planes of another library's memory cannot be pickled; Planes(planes.data, ...) can")


def pixel_format(name: str) -> PixelFormat:
    """Look up a pixel format that can be read as planes; UnsupportedError for another."""
    fmt = PIXEL_FORMATS.get(name)
    if fmt is None:
        raise UnsupportedError(
            f"pixel format {name!r} cannot be read as planes; supported: {', '.join(PIXEL_FORMATS)}"
        )
    return fmt


def check_facts(
    height: int, width: int, matrix: str | None, full_range: bool | None, chroma_location: str | None
) -> None:
    """Refuse sizes and colours that no frame has."""
    for name, value in (("height", height), ("width", width)):
        if not isinstance(value, int):
            raise TypeError(f"Planes: {name}: expected an int, got {value!r}")
    if height < 1 or width < 1:
        raise ValueError(f"Planes: height and width must be 1 or more, got {height}x{width}")
    for name, choice, choices in (
        ("matrix", matrix, ("601", "709", "2020")),
        ("chroma_location", chroma_location, ("left", "center", "topleft", "nearest")),
    ):
        if choice is not None and choice not in choices:
            raise ValueError(f"Planes: {name}: expected one of {', '.join(choices)} or None, got {choice!r}")
    if full_range is not None and not isinstance(full_range, bool):
        raise TypeError(f"Planes: full_range: expected a bool or None, got {full_range!r}")


def check_planes(data: Sequence[Tensor], fmt: PixelFormat, height: int, width: int) -> None:
    """Refuse planes that are not dense tensors on one device, of the format's dtype and large enough."""
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
