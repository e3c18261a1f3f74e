"""The frames op: decoded frames' planes to a model's input tensor, in one pass.

    level = clamp(matrix @ resize(planes), 0, 255);   value = (level * scale - mean) / std

with range, matrix and chroma position of the stream, at the cost of about one read of the planes and one write
of the result.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from mmcore.backends import active_backend
from mmcore.backends.cpu import Output, frames_plan, output_desc
from mmcore.errors import UnsupportedError
from mmcore.ops._library import LIBRARY
from mmcore.ops.frame_transform import FrameTransform, Patches
from mmcore.ops.output_pool import empty_output
from mmcore.ops.pixel_formats import PIXEL_FORMATS, PixelFormat
from mmcore.threads import get_num_threads

if TYPE_CHECKING:
    import av

    from mmcore import _core

__all__ = ["ColorSpec", "FrameBatchBuilder", "Planes", "color_spec", "frames_to_tensor"]

_RGB_BYTES = FrameTransform(dtype=torch.uint8)
_ROTATIONS = (0, 90, 180, 270)


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
        ``data[p]`` has shape (T, rows, samples per row): T frames of plane p, uint8, or uint16 or int16 words for
        formats of more than 8 bits. Rows and frames may be strided; more rows or samples than the frame has
        (padding) are ignored.
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
        _check_planes(self.data, _pixel_format(self.format), self.height, self.width)
        for name, choices in (
            ("matrix", ("601", "709", "2020")),
            ("chroma_location", ("left", "center", "topleft", "nearest")),
        ):
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise ValueError(f"Planes: {name}: expected one of {', '.join(choices)} or None, got {value!r}")

    def __len__(self) -> int:
        return len(self.data[0])


def _pixel_format(name: str) -> PixelFormat:
    fmt = PIXEL_FORMATS.get(name)
    if fmt is None:
        raise UnsupportedError(
            f"pixel format {name!r} cannot be read as planes; supported: {', '.join(PIXEL_FORMATS)}"
        )
    return fmt


def _check_planes(data: Sequence[Tensor], fmt: PixelFormat, height: int, width: int) -> None:
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
        if plane.device.type != "cpu" or plane.layout != torch.strided:
            raise ValueError(f"Planes: data[{p}]: expected a dense CPU tensor, got one on {plane.device}")
        if plane.dtype not in dtypes:
            raise TypeError(f"Planes: data[{p}]: {fmt.name} needs dtype {dtypes[0]}, got {plane.dtype}")
        if plane.dim() != 3 or plane.shape[1] < rows or plane.shape[2] < samples:
            raise ValueError(
                f"Planes: data[{p}]: {fmt.name} of {height}x{width} pixels needs shape (T, {rows} or more rows,"
                f" {samples} or more samples), got {tuple(plane.shape)}"
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
    return _color(frame.format.name, int(frame.colorspace), int(frame.color_range), transform, codec_name)


def _color(
    format_name: str, colorspace: int, color_range: int, transform: FrameTransform, codec_name: str | None
) -> ColorSpec:
    # AVColorSpace: 1 BT.709; 9 and 10 BT.2020. Every other value, unspecified among them, reads as BT.601.
    stream_matrix = "709" if colorspace == 1 else "2020" if colorspace in (9, 10) else "601"
    full = color_range == 2 or format_name.startswith("yuvj")  # AVCOL_RANGE_JPEG
    location = "center" if codec_name == "mjpeg" else "left"
    return ColorSpec(
        transform.matrix or stream_matrix,
        full if transform.full_range is None else transform.full_range,
        location if transform.chroma == "sited" else transform.chroma,
    )


def _planes_color(
    fmt: PixelFormat,
    matrix: str | None,
    full_range: bool | None,
    chroma_location: str | None,
    transform: FrameTransform,
) -> ColorSpec:
    full = fmt.full_range if full_range is None else full_range
    return ColorSpec(
        transform.matrix or matrix or "601",
        full if transform.full_range is None else transform.full_range,
        (chroma_location or "left") if transform.chroma == "sited" else transform.chroma,
    )


def frames_to_tensor(
    frames: av.VideoFrame | Sequence[av.VideoFrame] | Planes,
    transform: FrameTransform | None = None,
    *,
    out: Tensor | None = None,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Convert decoded frames to a model's input tensor in one pass over their planes.

    Parameters
    ----------
    frames : av.VideoFrame, sequence of av.VideoFrame, or Planes
        T frames. They may differ in size and format as long as the transform gives them one size.
    transform : FrameTransform, optional
        What to do; None gives full-size uint8 RGB.
    out : Tensor, optional
        Contiguous CPU tensor of the result's shape and dtype to write into; it must not overlap the planes.
        None: recycled memory (see :func:`mmcore.set_output_pool_limit`).
    device : str or torch.device
        Only "cpu".

    Returns
    -------
    Tensor
        (T, 3, H, W), or as ``transform.layout`` says; ``transform.dtype``; ``out`` if it was given.

    Raises
    ------
    TypeError, ValueError
        For frames, an ``out`` or a transform that do not fit; nothing has been written then.
    UnsupportedError
        For a device or a pixel format that cannot be converted.

    Notes
    -----
    Formats outside ``mmcore.PIXEL_FORMATS`` go through PyAV's ``reformat`` to RGB first, with one warning per
    format. Colour: ITU-R BT.601, BT.709, BT.2020 (non-constant luminance).

    Examples
    --------
    >>> import mmcore, torch
    >>> gray = mmcore.Planes((torch.full((1, 4, 6), 126, dtype=torch.uint8),), "gray", 4, 6)
    >>> mmcore.frames_to_tensor(gray, mmcore.FrameTransform(resize=(2, 3), dtype=torch.uint8)).unique()
    tensor([128], dtype=torch.uint8)
    """
    if transform is None:
        transform = _RGB_BYTES
    elif not isinstance(transform, FrameTransform):
        raise TypeError(f"transform: expected a FrameTransform or None, got {type(transform).__name__}")
    check_device(device)
    if isinstance(frames, Planes):
        if torch.compiler.is_compiling():
            result: Tensor = torch.ops.mmcore.frames_to_tensor(
                list(frames.data),
                frames.format,
                frames.height,
                frames.width,
                frames.matrix,
                frames.full_range,
                frames.chroma_location,
                transform.spec,
            )
            return result if out is None else out.copy_(result)
        color = _planes_color(
            _pixel_format(frames.format), frames.matrix, frames.full_range, frames.chroma_location, transform
        )
        return _convert_planes(frames.data, frames.format, frames.height, frames.width, color, transform, out)
    if hasattr(frames, "planes"):
        frames = [frames]
    if isinstance(frames, (str, bytes)) or not isinstance(frames, Sequence):
        raise TypeError(
            f"frames: expected an av.VideoFrame, a sequence of them or Planes, got {type(frames).__name__}"
        )
    if not frames:
        raise ValueError("frames: expected at least one frame, got an empty sequence")
    for i, frame in enumerate(frames):
        if not hasattr(frame, "planes"):
            raise TypeError(f"frames: item {i}: expected an av.VideoFrame, got {type(frame).__name__}")
    builder = FrameBatchBuilder(len(frames), transform, out=out)
    builder.put_many(frames)
    return builder.finish()


def check_device(device: str | torch.device) -> None:
    """Refuse a device that frames cannot be converted on."""
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device: {device!r} is not a device: {error}") from None
    if kind != "cpu":
        raise UnsupportedError(f"device {str(device)!r}: frames are converted on the CPU; use device='cpu' and .to()")


def _prepare_out(out: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if out is None:
        return empty_output(shape, dtype)
    if not isinstance(out, Tensor):
        raise TypeError(f"out: expected a tensor, got {type(out).__name__}")
    if out.device.type != "cpu" or out.layout != torch.strided:
        raise ValueError(f"out: expected a dense CPU tensor, got one on {out.device}")
    if out.dtype != dtype:
        raise ValueError(f"out: expected dtype {dtype}, got {out.dtype}")
    if tuple(out.shape) != tuple(shape):
        raise ValueError(f"out: expected shape {tuple(shape)}, got {tuple(out.shape)}")
    if not out.is_contiguous():
        raise ValueError(f"out: expected a contiguous tensor, got strides {out.stride()} for shape {tuple(shape)}")
    if out.requires_grad:
        raise ValueError("out: a tensor that requires grad cannot be written in place")
    return out


def _reference_slots(
    planes: Sequence[Tensor], fmt: PixelFormat, height: int, width: int, color: ColorSpec, transform: FrameTransform
) -> Tensor:
    from mmcore.backends.reference import frames as reference

    return reference.convert(planes, fmt, height, width, color, transform)


def _convert_planes(
    data: Sequence[Tensor],
    format_name: str,
    height: int,
    width: int,
    color: ColorSpec,
    transform: FrameTransform,
    out: Tensor | None,
) -> Tensor:
    fmt = _pixel_format(format_name)
    g = transform.geometry(height, width)
    planes = [p.detach() if p.stride(2) == 1 or p.shape[2] == 1 else p.contiguous() for p in data[: fmt.num_planes]]
    count = len(planes[0])
    result = _prepare_out(out, transform.output_shape(count, height, width), transform.dtype)
    if out is not None and any(_overlap(out, p) for p in planes):
        raise ValueError("out: overlaps the memory of the planes")
    if count == 0:
        return result
    if active_backend() == "reference":
        from mmcore.backends.reference.frames import apply_layout

        values = _reference_slots(planes, fmt, height, width, color, transform)
        return result.copy_(apply_layout(values, transform.layout))
    plan = frames_plan(fmt, height, width, color, transform)
    size = fmt.bytes_per_sample
    frames = [
        [(p.data_ptr() + t * p.stride(0) * size, p.stride(1) * size) for p in planes] for t in range(count)
    ]
    plan.convert(frames, output_desc(result, transform.layout, g.out_h, g.out_w), 0, get_num_threads())
    _repeat_last(result, transform.layout, count, g.out_h, g.out_w)
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


def _slot(out: Tensor, layout: str | Patches, index: int, height: int, width: int) -> Tensor:
    """View of frame ``index`` in a batch, shaped (3, H, W) or (3, H/mp, m, p, W/mp, m, p) for patches."""
    if isinstance(layout, str):
        view = out.select(layout.index("N"), index)
        return view.permute(2, 0, 1) if layout == "NHWC" else view
    p, tp, m = layout.patch_size, layout.temporal_patch_size, layout.merge_size
    grid = out.view(-1, height // (p * m), width // (p * m), m, m, 3, tp, p, p)
    return grid[index // tp, :, :, :, :, :, index % tp].permute(4, 0, 2, 5, 1, 3, 6)


def _fill_slot(out: Tensor, layout: str | Patches, index: int, picture: Tensor) -> None:
    """Write one picture (3, H, W) into its slot."""
    slot = _slot(out, layout, index, picture.shape[1], picture.shape[2])
    slot.copy_(picture.contiguous().view(slot.shape))


def _repeat_last(out: Tensor, layout: str | Patches, count: int, height: int, width: int) -> None:
    """Fill the rest of an incomplete temporal patch with the last frame."""
    if isinstance(layout, str):
        return
    slots = -(-count // layout.temporal_patch_size) * layout.temporal_patch_size
    for index in range(count, slots):
        _slot(out, layout, index, height, width).copy_(_slot(out, layout, count - 1, height, width))


def _frame_planes(frame: av.VideoFrame, fmt: PixelFormat) -> list[Tensor]:
    """Copies of a frame's planes as tensors (1, rows, samples)."""
    import numpy as np

    planes = []
    for p in range(fmt.num_planes):
        rows, samples = fmt.plane_shape(p, frame.height, frame.width)
        plane = frame.planes[p]
        pitch = plane.line_size
        dtype = np.uint8 if fmt.bytes_per_sample == 1 else np.int16
        # A negative pitch puts the first row last in memory; the buffer begins at the first row's address.
        import ctypes

        first = plane.buffer_ptr + min(pitch, 0) * (rows - 1)
        raw = (ctypes.c_uint8 * (abs(pitch) * (rows - 1) + samples * fmt.bytes_per_sample)).from_address(first)
        array = np.frombuffer(raw, np.uint8)
        lines = [array[abs(pitch) * r :][: samples * fmt.bytes_per_sample] for r in range(rows)]
        block = np.stack(lines[:: -1 if pitch < 0 else 1]).view(dtype)
        planes.append(torch.from_numpy(block)[None])
    return planes


_warned_formats: set[str] = set()


def _reformat(frame: av.VideoFrame, color: ColorSpec) -> av.VideoFrame:
    """Frame of a format that the op does not read, as RGB through FFmpeg's scaler; warns once per format."""
    name = frame.format.name
    deep = any(c.bits > 8 for c in frame.format.components)
    target = "gbrp12le" if deep else "rgb24"
    if name not in _warned_formats:
        _warned_formats.add(name)
        warnings.warn(
            f"pixel format {name!r} is converted to {target} by FFmpeg's scaler before the frames op;"
            " slower, and rounded as FFmpeg rounds",
            UserWarning,
            stacklevel=4,
        )
    matrix = {"601": "ITU601", "709": "ITU709", "2020": 9}[color.matrix]
    try:
        return frame.reformat(
            format=target,
            src_colorspace=matrix,
            src_color_range="JPEG" if color.full_range else "MPEG",
            dst_color_range="JPEG",
        )
    except Exception as error:
        raise UnsupportedError(f"pixel format {name!r} cannot be converted to {target}: {error}") from error


class FrameBatchBuilder:
    """Fill a batch frame by frame, each converted right after its decode, while its planes are in cache.

    Parameters
    ----------
    num_frames : int
        Frames of the batch, 1 or more.
    transform : FrameTransform, optional
        None gives full-size uint8 RGB.
    out : Tensor, optional
        As in :func:`frames_to_tensor`.
    rotation : {0, 90, 180, 270}
        Degrees clockwise by which the pictures are turned for display; resize and crop act on the turned picture.
    codec_name : str, optional
        FFmpeg's name of the codec, for its chroma position.

    Notes
    -----
    Different threads may put different slots at the same time; the GIL is released while a frame is converted.
    """

    def __init__(
        self,
        num_frames: int,
        transform: FrameTransform | None = None,
        *,
        out: Tensor | None = None,
        rotation: int = 0,
        codec_name: str | None = None,
    ) -> None:
        if num_frames < 1:
            raise ValueError(f"num_frames: expected 1 or more, got {num_frames}")
        if rotation not in _ROTATIONS:
            raise ValueError(f"rotation: expected one of {_ROTATIONS} degrees, got {rotation!r}")
        self.num_frames = num_frames
        self.transform = _RGB_BYTES if transform is None else transform
        self._rotation = rotation
        self._codec_name = codec_name
        self._given_out = out
        self._out: Tensor | None = None
        self._size = (0, 0)  # of the result's pictures
        self._output: Output | None = None
        self._key: tuple[Any, ...] | None = None
        self._plan: _core.FramesPlan | None = None
        self._filled = [False] * num_frames

    def put(self, index: int, frame: av.VideoFrame) -> None:
        """Convert ``frame`` into slot ``index``.

        Raises
        ------
        IndexError
            If there is no such slot.
        ValueError
            If the frame's picture has another size than those before it.
        UnsupportedError
            If its pixel format cannot be converted.
        """
        key = (frame.format.name, frame.height, frame.width, frame.colorspace, frame.color_range)
        plan = self._plan
        if key != self._key or plan is None:
            plan = self._configure(frame, key)
        if not 0 <= index < self.num_frames:
            raise IndexError(f"slot {index} of a batch of {self.num_frames} frames")
        if plan is None:
            self._put_slowly(index, frame)
        else:
            plan.convert_frame(frame.planes, self._output, index)  # type: ignore[arg-type]
        self._filled[index] = True

    def put_many(self, frames: Sequence[av.VideoFrame], first: int = 0) -> None:
        """Convert ``frames`` into the slots from ``first`` on, several at a time within the thread budget."""
        threads = min(get_num_threads(), len(frames))
        if threads > 1:
            from concurrent.futures import ThreadPoolExecutor

            self.put(first, frames[0])  # fixes the size and allocates, alone
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(self.put, range(first + 1, first + len(frames)), frames[1:]))
            return
        for index, frame in enumerate(frames, first):
            self.put(index, frame)

    def copy(self, source_index: int, index: int) -> None:
        """Repeat the picture of slot ``source_index`` in slot ``index``."""
        if self._out is None or not self._filled[source_index]:
            raise ValueError(f"slot {source_index} has not been put")
        layout = self.transform.layout
        _slot(self._out, layout, index, *self._size).copy_(_slot(self._out, layout, source_index, *self._size))
        self._filled[index] = True

    def finish(self) -> Tensor:
        """The batch; every slot must have been put.

        Raises
        ------
        ValueError
            If a slot is empty.
        """
        if self._out is None or not all(self._filled):
            missing = [i for i, filled in enumerate(self._filled) if not filled]
            raise ValueError(f"frames {missing[:8]} of {self.num_frames} were never put into the batch")
        _repeat_last(self._out, self.transform.layout, self.num_frames, *self._size)
        return self._out

    def _configure(self, frame: av.VideoFrame, key: tuple[Any, ...]) -> _core.FramesPlan | None:
        """Choose the plan for a kind of frame; None where the frame takes the slow way."""
        name, height, width, colorspace, color_range = key
        transform = self.transform
        turned = self._rotation in (90, 270)
        g = transform.geometry(*((width, height) if turned else (height, width)))
        size = (g.out_h, g.out_w)
        if self._out is None:
            shape = transform.output_shape(self.num_frames, g.source_h, g.source_w)
            self._out = _prepare_out(self._given_out, shape, transform.dtype)
            self._size = size
            self._output = output_desc(self._out, transform.layout, *size)
        elif size != self._size:
            raise ValueError(
                f"a frame of {height}x{width} pixels becomes {size[0]}x{size[1]}, those before it became"
                f" {self._size[0]}x{self._size[1]}: set resize=(height, width) or crop for a stream that changes size"
            )
        fmt = PIXEL_FORMATS.get(name)
        self._key = key
        if fmt is None or self._rotation or active_backend() == "reference":
            self._plan = None
        else:
            color = _color(name, int(colorspace), int(color_range), transform, self._codec_name)
            self._plan = frames_plan(fmt, height, width, color, transform)
        return self._plan

    def _put_slowly(self, index: int, frame: av.VideoFrame) -> None:
        """Foreign pixel formats, turned pictures and the reference backend."""
        transform = self.transform
        color = color_spec(frame, transform, self._codec_name)
        if frame.format.name not in PIXEL_FORMATS:
            frame = _reformat(frame, color)
        fmt = PIXEL_FORMATS[frame.format.name]
        planes = _frame_planes(frame, fmt)
        single = transform.replace(layout="NCHW")
        if self._rotation == 0:
            picture = _convert_planes(planes, fmt.name, frame.height, frame.width, color, single, None)
        else:
            picture = _convert_turned(planes, fmt, frame.height, frame.width, color, single, self._rotation)
        assert self._out is not None
        _fill_slot(self._out, transform.layout, index, picture[0])


def _convert_turned(
    planes: list[Tensor],
    fmt: PixelFormat,
    height: int,
    width: int,
    color: ColorSpec,
    transform: FrameTransform,
    rotation: int,
) -> Tensor:
    """Convert and turn clockwise: (1, 3, H, W) of the turned picture, the transform acting on it."""
    turns = -rotation // 90  # torch.rot90 turns counterclockwise
    g = transform.geometry(*((width, height) if rotation in (90, 270) else (height, width)))
    resized = (g.resize_h, g.resize_w) != (g.source_h, g.source_w)
    if transform.accuracy == "rgb8" or (transform.interpolation == "nearest" and resized):
        # Rounding, and the nearest sample, depend on the direction: turn the full-size picture first.
        if transform.accuracy == "rgb8":
            full = _convert_planes(planes, fmt.name, height, width, color, _RGB_BYTES, None)
            rgb = torch.rot90(full, turns, (2, 3))[0]
            turned = [rgb[c].contiguous()[None] for c in (1, 2, 0)]  # gbrp
            return _convert_planes(turned, "gbrp", g.source_h, g.source_w, color, transform, None)
        levels = _convert_planes(planes, fmt.name, height, width, color, FrameTransform(scale=1.0), None)
        picture = torch.rot90(levels, turns, (2, 3))
        picture = torch.nn.functional.interpolate(picture, (g.resize_h, g.resize_w), mode="nearest")
        picture = picture[:, :, g.top : g.top + g.out_h, g.left : g.left + g.out_w]
        mul, add = (torch.tensor(v, dtype=torch.float32).view(3, 1, 1) for v in transform.affine)
        values = picture * mul + add
        return (values.round() if transform.dtype == torch.uint8 else values).to(transform.dtype)
    # The other filters are symmetric: convert lying, with size and box turned back, then turn the small result.
    size, box = (g.resize_h, g.resize_w), (g.top, g.left, g.out_h, g.out_w)
    for _ in range(rotation // 90):  # each step undoes a quarter turn clockwise
        top, left, h, w = box
        box = (size[1] - left - w, top, w, h)
        size = (size[1], size[0])
    lying = transform.replace(resize=size, crop=box)
    picture = _convert_planes(planes, fmt.name, height, width, color, lying, None)
    return torch.rot90(picture, turns, (2, 3)).contiguous()


LIBRARY.define(
    "frames_to_tensor(Tensor[] planes, str format, SymInt height, SymInt width, str? matrix, bool? full_range,"
    " str? chroma_location, str transform) -> Tensor"
)


def _frames_to_tensor_op(
    planes: list[Tensor],
    format: str,
    height: int,
    width: int,
    matrix: str | None,
    full_range: bool | None,
    chroma_location: str | None,
    transform: str,
) -> Tensor:
    parsed, fmt = FrameTransform.from_spec(transform), _pixel_format(format)
    _check_planes(planes, fmt, height, width)
    color = _planes_color(fmt, matrix, full_range, chroma_location, parsed)
    return _convert_planes(planes, format, height, width, color, parsed, None)


def _frames_to_tensor_fake(
    planes: list[Tensor],
    format: str,
    height: int,
    width: int,
    matrix: str | None,
    full_range: bool | None,
    chroma_location: str | None,
    transform: str,
) -> Tensor:
    parsed = FrameTransform.from_spec(transform)
    return planes[0].new_empty(parsed.output_shape(planes[0].shape[0], height, width), dtype=parsed.dtype)


LIBRARY.impl("frames_to_tensor", _frames_to_tensor_op, "CPU")
torch.library.register_fake("mmcore::frames_to_tensor", _frames_to_tensor_fake, lib=LIBRARY)
