"""Batches that are filled frame by frame, as decoders produce them."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmcore.backends import active_backend, backend
from mmcore.backends.cpu import Output, frames_plan, output_desc
from mmcore.errors import UnsupportedError
from mmcore.ops.device_target import DeviceTarget, FrameDescription, open_target
from mmcore.ops.frame_groups import convert_groups, convert_planes, planes_group
from mmcore.ops.frame_transform import FrameTransform
from mmcore.ops.frame_uploader import FrameKind, FrameUploader, frame_kind
from mmcore.ops.output_pool import empty_output
from mmcore.ops.pixel_formats import PIXEL_FORMATS, PixelFormat
from mmcore.ops.planes import (
    RGB_BYTES,
    ColorSpec,
    color_spec,
    fill_slot,
    prepare_out,
    repeat_last,
    slot_view,
)
from mmcore.ops.surfaces import held_format, is_surface, surface_device, surface_planes
from mmcore.threads import get_num_threads

if TYPE_CHECKING:
    import av

    from mmcore import _core

__all__ = ["FrameBatchBuilder"]

_ROTATIONS = (0, 90, 180, 270)
# A batch that is converted on the CPU for a device is made in page-locked memory up to this size.
_PINNED_BYTES = 256 << 20


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
        Degrees clockwise by which the pictures are turned for display; resize and crop act on the turned
        picture.
    codec_name : str, optional
        FFmpeg's name of the codec, for its chroma position.
    device : str or torch.device
        Where the batch shall be. On a CUDA device it is complete in the order of the stream that is torch's
        current one where the builder is made.
    convert_on : {"auto", "cpu", "cuda"}
        As in :func:`frames_to_tensor`.

    Raises
    ------
    ValueError, UnsupportedError
        For an argument that is wrong, or a device that is not there.

    Notes
    -----
    Different threads may put different slots at the same time; the GIL is released during a conversion. A
    frame may be freed as soon as it was put.
    """

    def __init__(
        self,
        num_frames: int,
        transform: FrameTransform | None = None,
        *,
        out: Tensor | None = None,
        rotation: int = 0,
        codec_name: str | None = None,
        device: str | torch.device = "cpu",
        convert_on: str = "auto",
        _target: DeviceTarget | None = None,
    ) -> None:
        if num_frames < 1:
            raise ValueError(f"num_frames: expected 1 or more, got {num_frames}")
        if rotation not in _ROTATIONS:
            raise ValueError(f"rotation: expected one of {_ROTATIONS} degrees, got {rotation!r}")
        self.num_frames = num_frames
        self.transform = RGB_BYTES if transform is None else transform
        self._rotation = rotation
        self._codec_name = codec_name
        self._given_out = out
        self._target = open_target(device, convert_on) if _target is None else _target
        self._backend = active_backend() if self._target is None else self._target.backend
        self._out: Tensor | None = None  # the batch, or what it is copied from when it is whole
        self._size = (0, 0)  # of the result's pictures
        self._output: Output | None = None
        self._uploader: FrameUploader | None = None  # of planes; None: the CPU converts
        # What the last frame was like and how such frames are converted, None where they take the slow way:
        # one tuple, so that threads see both or neither change.
        self._kind: tuple[tuple[Any, ...] | None, _core.FramesPlan | FrameKind | None] = (None, None)
        self._filled = [False] * num_frames
        # What is done to slots of the batch on a device when all frames are on their way there.
        self._afterwards: list[Callable[[], object]] = []

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
        if not 0 <= index < self.num_frames:
            raise IndexError(f"slot {index} of a batch of {self.num_frames} frames")
        name, on_device = frame.format.name, is_surface(frame)
        if on_device:
            name = held_format(frame)
            if not self._takes_surfaces(name):
                frame, on_device = frame.reformat(format=name), False  # copies it to the CPU
        key = (name, frame.height, frame.width, frame.colorspace, frame.color_range, on_device)
        known, kind = self._kind
        if key != known:
            kind = self._configure(frame, key)
        if kind is None:
            self._put_slowly(index, frame)
        elif isinstance(kind, FrameKind):
            assert self._uploader is not None
            put = self._uploader.put_surface if on_device else self._uploader.put
            put(index, kind, frame.planes)
        else:
            kind.convert_frame(frame.planes, self._output, index)  # type: ignore[arg-type]
        self._filled[index] = True

    def put_many(self, frames: Sequence[av.VideoFrame], first: int = 0) -> None:
        """Convert ``frames`` into the slots from ``first`` on, several at a time within the thread budget."""
        threads = min(get_num_threads(), len(frames))
        if threads > 1 and self._backend != "reference":
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
        source, target = self._slot(source_index), self._slot(index)
        self._do(lambda: target.copy_(source))
        self._filled[index] = True

    def clear(self, index: int) -> None:
        """Fill slot ``index`` with 0, in the result's units; another slot must have been put before."""
        if self._out is None:
            raise ValueError("no slot has been put: the size of the pictures is not known")
        self._do(self._slot(index).zero_)
        self._filled[index] = True

    def finish(self) -> Tensor:
        """The batch; every slot must have been put.

        Raises
        ------
        ValueError
            If a slot is empty.
        """
        out = self._out
        if out is None or not all(self._filled):
            missing = [i for i, filled in enumerate(self._filled) if not filled]
            raise ValueError(f"frames {missing[:8]} of {self.num_frames} were never put into the batch")
        self._do(functools.partial(repeat_last, out, self.transform.layout, self.num_frames, *self._size))
        if self._target is None:
            return out
        queue = self._target.queue
        if self._uploader is None:
            given = self._given_out
            result = queue.empty(out.shape, out.dtype, queue.stream) if given is None else given
            queue.do(queue.stream, lambda: result.copy_(out, non_blocking=True))
            return result
        self._uploader.flush()
        afterwards, self._afterwards = self._afterwards, []
        queue.do(queue.stream, lambda: [work() for work in afterwards])
        return out

    def _takes_surfaces(self, format_name: str) -> bool:
        """Whether frames that lie on the device are converted there."""
        if self._target is None or self._target.convert_on == "cpu" or format_name not in PIXEL_FORMATS:
            return False
        return self._out is None or self._uploader is not None

    def _slot(self, index: int) -> Tensor:
        assert self._out is not None
        return slot_view(self._out, self.transform.layout, index, *self._size)

    def _do(self, work: Callable[[], object]) -> None:
        """Change the batch now, or when its frames are on their way to it."""
        if self._uploader is None:
            work()
        else:
            self._afterwards.append(work)

    def _configure(self, frame: av.VideoFrame, key: tuple[Any, ...]) -> _core.FramesPlan | FrameKind | None:
        """Choose how a kind of frame is converted; None where it takes the slow way."""
        name, height, width, *_, on_device = key
        transform = self.transform
        turned = self._rotation in (90, 270)
        g = transform.geometry(*((width, height) if turned else (height, width)))
        size = (g.out_h, g.out_w)
        if on_device and self._target is not None and surface_device(frame) != self._target.queue.device:
            raise ValueError(
                f"a frame lies on {surface_device(frame)}, the batch shall be on {self._target.queue.device}"
            )
        fmt = PIXEL_FORMATS.get(name)
        if self._rotation or self._backend == "reference":
            fmt = None
        described = None
        if fmt is not None:
            described = fmt, height, width, color_spec(frame, transform, self._codec_name), transform
        if self._out is None:
            shape = transform.output_shape(self.num_frames, g.source_h, g.source_w)
            self._allocate(shape, size, described, on_device)
        elif size != self._size:
            raise ValueError(
                f"a frame of {height}x{width} pixels becomes {size[0]}x{size[1]}, those before it became"
                f" {self._size[0]}x{self._size[1]}: set resize=(height, width) for a stream that changes size"
            )
        kind: _core.FramesPlan | FrameKind | None = None
        if described is not None:
            kind = frames_plan(*described) if self._uploader is None else frame_kind(*described)
        self._kind = (key, kind)
        return kind

    def _allocate(
        self,
        shape: tuple[int, ...],
        size: tuple[int, int],
        described: FrameDescription | None,
        on_device: bool,
    ) -> None:
        """Memory for the batch, and where frames are converted if it is on a device."""
        dtype, target, given = self.transform.dtype, self._target, self._given_out
        uploads = False
        if target is None:
            out = prepare_out(given, shape, dtype)
        else:
            queue = target.queue
            if given is not None:
                prepare_out(given, shape, dtype, queue.device)
            uploads = on_device or target.uploads_planes(described, self.num_frames, shape)
            if not uploads:
                is_small = math.prod(shape) * dtype.itemsize <= _PINNED_BYTES
                out = queue.empty_pinned(shape, dtype) if is_small else empty_output(shape, dtype)
            else:
                out = queue.empty(shape, dtype, queue.stream) if given is None else given
        output = output_desc(out, self.transform.layout, *size)
        if uploads:
            assert target is not None
            self._uploader = FrameUploader(target.queue, output, self.num_frames)
        self._size, self._output, self._out = size, output, out

    def _put_slowly(self, index: int, frame: av.VideoFrame) -> None:
        """Foreign pixel formats, turned pictures and the reference backend."""
        color = color_spec(frame, self.transform, self._codec_name)
        if is_surface(frame):
            self._put_turned_surface(index, frame, color)
            return
        if frame.format.name not in PIXEL_FORMATS:
            frame = _reformat(frame, color)
            if self._uploader is not None and not self._rotation:
                described = PIXEL_FORMATS[frame.format.name], frame.height, frame.width, color, self.transform
                self._uploader.put(index, frame_kind(*described), frame.planes)
                return
        single = self.transform.replace(layout="NCHW")
        # One that was chosen is that of the thread that made this, not of those that decode.
        with backend("reference") if self._backend == "reference" else contextlib.nullcontext():
            if self._rotation:
                picture = _convert_turned(frame, color, single, self._rotation)
            else:
                picture = _convert(frame, color, single)
        out, layout = self._out, self.transform.layout
        assert out is not None
        if self._uploader is None:
            fill_slot(out, layout, index, picture[0])
        else:
            self._uploader.put_picture(lambda there: fill_slot(out, layout, index, there), picture[0])

    def _put_turned_surface(self, index: int, frame: av.VideoFrame, color: ColorSpec) -> None:
        out, layout = self._out, self.transform.layout
        single = self.transform.replace(layout="NCHW")
        assert out is not None
        assert self._uploader is not None

        def put() -> None:
            fill_slot(out, layout, index, _convert_turned(frame, color, single, self._rotation)[0])

        self._uploader.use_surface(put)


def _convert(frame: av.VideoFrame, color: ColorSpec, transform: FrameTransform) -> Tensor:
    """One frame to (1, 3, H, W), on its device; the transform's layout is NCHW."""
    if is_surface(frame):
        return convert_groups([planes_group(surface_planes(frame), transform)], transform, None)
    fmt, height, width = PIXEL_FORMATS[frame.format.name], frame.height, frame.width
    if active_backend() == "reference":
        return convert_planes(_frame_planes(frame, fmt), fmt.name, height, width, color, transform, None)
    out = empty_output(transform.output_shape(1, height, width), transform.dtype)
    plan = frames_plan(fmt, height, width, color, transform)
    plan.convert_frame(frame.planes, output_desc(out, "NCHW", *out.shape[2:]), 0)
    return out


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
        first = plane.buffer_ptr + min(pitch, 0) * (rows - 1)
        raw = (ctypes.c_uint8 * (abs(pitch) * (rows - 1) + samples * fmt.bytes_per_sample)).from_address(
            first
        )
        array: np.ndarray[Any, np.dtype[np.uint8]] = np.ctypeslib.as_array(raw)
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
    matrix = {"601": 5, "709": 1, "2020": 9}[color.matrix]  # sws_getCoefficients numbers
    try:
        return frame.reformat(
            format=target,
            src_colorspace=matrix,
            src_color_range="JPEG" if color.full_range else "MPEG",
            dst_color_range="JPEG",
        )
    except Exception as error:
        raise UnsupportedError(f"pixel format {name!r} cannot be converted to {target}: {error}") from error


def _convert_turned(
    frame: av.VideoFrame, color: ColorSpec, transform: FrameTransform, rotation: int
) -> Tensor:
    """Convert and turn clockwise: (1, 3, H, W) of the turned picture, the transform acting on it."""
    turns = -rotation // 90  # torch.rot90 turns counterclockwise
    size = (frame.width, frame.height) if rotation in (90, 270) else (frame.height, frame.width)
    g = transform.geometry(*size)
    # Rounding, and the nearest sample, depend on the direction: turn the full-size picture first.
    if transform.accuracy == "rgb8":
        rgb = torch.rot90(_convert(frame, color, RGB_BYTES), turns, (2, 3))[0]
        planes = [rgb[c].contiguous()[None] for c in (1, 2, 0)]  # gbrp
        return convert_planes(planes, "gbrp", *size, color, transform, None)
    if transform.interpolation == "nearest" and (g.resize_h, g.resize_w) != size:
        levels = _convert(frame, color, FrameTransform(scale=1.0, color_matrix=transform.color_matrix))
        levels = torch.rot90(levels, turns, (2, 3))
        picture = torch.nn.functional.interpolate(levels, (g.resize_h, g.resize_w), mode="nearest")
        picture = picture[:, :, g.top : g.top + g.out_h, g.left : g.left + g.out_w]
        mul, add = (picture.new_tensor(v).view(3, 1, 1) for v in transform.affine)
        values = picture * mul + add
        values = values.flip(3) if transform.horizontal_flip else values
        return (values.round() if transform.dtype == torch.uint8 else values).to(transform.dtype)
    # The other filters are symmetric: convert lying, size and box turned back, then turn the small result.
    size, box = (g.resize_h, g.resize_w), (g.top, g.left, g.out_h, g.out_w)
    for _ in range(rotation // 90):  # each step undoes a quarter turn clockwise
        top, left, h, w = box
        box = (size[1] - left - w, top, w, h)
        size = (size[1], size[0])
    picture = _convert(frame, color, transform.replace(resize=size, crop=box, horizontal_flip=False))
    picture = torch.rot90(picture, turns, (2, 3))
    return (picture.flip(3) if transform.horizontal_flip else picture).contiguous()
