"""Planes in memory that torch did not allocate: where they lie, whose they are, and who may reuse them when.

A surface is described by address, pitch and device alone, since torch has no tensor for what decoders give:
rows stored last to first, words of a type that torch cannot compute with, memory of another library.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmcore.backends import load_backend
from mmcore.errors import UnsupportedError
from mmcore.ops.array_protocols import ForeignArray, as_device, as_int, as_streams, read_array
from mmcore.ops.pixel_formats import PIXEL_FORMATS, PixelFormat

__all__ = [
    "Plane",
    "PlaneMemory",
    "hand_back",
    "memory_of_arrays",
    "memory_of_pointers",
    "plane_tensors",
    "wait_for_producers",
]


class Plane(NamedTuple):
    """Frames of one plane: address of the first row, bytes to the next row and to the next frame."""

    address: int
    pitch: int  # negative where the first row lies last
    frame_pitch: int


class PlaneMemory(NamedTuple):
    """The planes of frames of one kind.

    Attributes
    ----------
    planes : tuple of Plane
        Samples of a row are neighbours.
    frames : int
        How many.
    device : torch.device
        "cpu", or "cuda" with its index.
    streams : tuple of int
        CUDA streams of whoever fills the memory; none: the planes are ready. The conversion waits for what is
        on them, and what comes later on them waits for the conversion.
    owner : object
        Keeps the memory. Without streams it is kept alive until the conversion has run, with them only as
        long as this description, since whoever reuses the memory does so in their order.
    """

    planes: tuple[Plane, ...]
    frames: int
    device: torch.device
    streams: tuple[int, ...] = ()
    owner: object = None

    def spans(self, shapes: Sequence[tuple[int, int]], sample_bytes: int) -> Iterable[tuple[int, int]]:
        """First and one past the last byte of each plane's frames of so many rows and samples."""
        last = self.frames - 1
        for (address, pitch, frame_pitch), (rows, samples) in zip(self.planes, shapes, strict=True):
            down, on = pitch * (rows - 1), frame_pitch * last
            first = address + min(down, 0) + min(on, 0)
            yield first, first + abs(down) + abs(on) + samples * sample_bytes


# pointers


def memory_of_pointers(
    pointers: int | Sequence[int],
    pitches: int | Sequence[int],
    fmt: PixelFormat,
    height: int,
    width: int,
    *,
    device: str | torch.device,
    stream: int | torch.cuda.Stream | None,
    owner: object,
    surface_height: int | None,
) -> PlaneMemory:
    """One frame given by addresses; see ``Planes.from_pointers``."""
    on = as_device(device)
    count = fmt.num_planes
    pitch_list = [
        as_int("pitches", p) for p in (pitches if isinstance(pitches, Sequence) else [pitches] * count)
    ]
    if len(pitch_list) < count:
        raise ValueError(f"pitches: {fmt.name} has {count} planes, got {len(pitch_list)} pitches")
    if isinstance(pointers, Sequence):
        addresses = [as_int("pointers", p) for p in pointers]
        if surface_height is not None and len(addresses) > 1:
            raise ValueError(
                "surface_height: places the other planes after one pointer; got several pointers"
            )
    else:
        addresses = [as_int("pointers", pointers)]
    if len(addresses) == 1 < count:
        addresses = _stacked(addresses[0], pitch_list, fmt, height, width, surface_height)
    if len(addresses) < count:
        raise ValueError(f"pointers: {fmt.name} has {count} planes, got {len(addresses)} pointers")
    planes = tuple(Plane(a, p, 0) for a, p in zip(addresses[:count], pitch_list[:count], strict=True))
    memory = PlaneMemory(planes, 1, on, as_streams(stream, on), owner)
    _check(memory, fmt, height, width, "pitches")
    return memory


@functools.lru_cache(maxsize=256)
def _shapes(format_name: str, height: int, width: int) -> list[tuple[int, int]]:
    fmt = PIXEL_FORMATS[format_name]
    return [fmt.plane_shape(p, height, width) for p in range(fmt.num_planes)]


def _stacked(
    address: int,
    pitches: Sequence[int],
    fmt: PixelFormat,
    height: int,
    width: int,
    surface_height: int | None,
) -> list[int]:
    """Addresses of planes that follow one another in one surface, as NVDEC lays them out."""
    shapes = _shapes(fmt.name, height + height % 2, width + width % 2)
    if len({samples for _, samples in shapes}) > 1:
        raise ValueError(
            f"Planes: those of {fmt.name} have different widths and cannot follow one another at one pitch:"
            f" expected each of {fmt.num_planes}, got 1"
        )
    rows = height if surface_height is None else as_int("surface_height", surface_height)
    if rows < height:
        raise ValueError(
            f"surface_height, or luma rows of the one array: expected {height} (the frame's height) or more,"
            f" got {rows}"
        )
    if any(p != pitches[0] or p < 0 for p in pitches):
        raise ValueError(f"Planes: one after another they have one pitch, not negative, got {list(pitches)}")
    # Chroma of half the height has its rows halved too: the second plane ends where the surface ends.
    return [address + p * rows * pitches[0] for p in range(fmt.num_planes)]


def _check(memory: PlaneMemory, fmt: PixelFormat, height: int, width: int, pitch_name: str) -> None:
    """Refuse addresses and pitches that cannot be a frame's, before anything is read."""
    size = fmt.bytes_per_sample
    shapes = _shapes(fmt.name, height, width)
    spans = list(memory.spans(shapes, size))
    for p, (plane, span, (rows, samples)) in enumerate(zip(memory.planes, spans, shapes, strict=True)):
        if plane.address <= 0 or span[0] <= 0 or span[1] >= 1 << 64:
            raise ValueError(f"Planes: plane {p} at address {plane.address:#x} does not lie in memory")
        if plane.address % size or plane.pitch % size or plane.frame_pitch % size:
            raise ValueError(
                f"Planes: plane {p}: {fmt.name} has {size}-byte samples, got address {plane.address:#x} and a"
                f" pitch of {plane.pitch} bytes, which are not multiples of {size}"
            )
        if rows > 1 and abs(plane.pitch) < samples * size:
            raise ValueError(
                f"{pitch_name}: plane {p} of {fmt.name} at {height}x{width} pixels has rows of"
                f" {samples * size} bytes, got a pitch of {plane.pitch} bytes"
            )
    if memory.device.type == "cuda":
        _check_on_device(memory.device, spans)


def _check_on_device(device: torch.device, spans: Sequence[tuple[int, int]]) -> None:
    """Ask the driver whose the addresses are: a kernel that reads a wrong one ends the whole context."""
    try:
        device_of = load_backend("cuda").pointer_device
    except UnsupportedError:
        return  # no kernel of ours will read them
    for p, (first, end) in enumerate(spans):
        for address in (first, end - 1):
            found = device_of(address)
            if found not in (device.index, -2):
                where = "which CUDA does not know" if found == -1 else f"which is on cuda:{found}"
                raise ValueError(
                    f"Planes: plane {p}: expected memory on {device}, got address {address:#x}, {where}"
                )


# arrays of other libraries


def memory_of_arrays(
    arrays: object,
    fmt: PixelFormat,
    height: int,
    width: int,
    *,
    device: str | torch.device | None,
    stream: int | torch.cuda.Stream | None,
    surface_height: int | None,
) -> PlaneMemory:
    """Frames given by objects of other libraries; see ``Planes.from_arrays``."""
    count = fmt.num_planes
    if isinstance(arrays, (list, tuple)):
        found = [read_array(f"arrays[{i}]", a, device) for i, a in enumerate(arrays)]
    else:
        found = [read_array("arrays", arrays, device)]
    if surface_height is not None and len(found) > 1:
        raise ValueError("surface_height: places the other planes in one array; got several arrays")
    blocks = [_block(a, fmt, p) for p, a in enumerate(found[:count])]
    if len(found) == 1 < count:
        blocks = _split(blocks[0], fmt, height, width, surface_height)
    if len(blocks) < count:
        raise ValueError(f"arrays: {fmt.name} has {count} planes, got {len(blocks)} arrays")
    on = found[0].device
    for p, ((frames, rows, samples), _) in enumerate(blocks):
        need = _shapes(fmt.name, height, width)[p]
        if rows < need[0] or samples < need[1]:
            raise ValueError(
                f"arrays: plane {p}: {fmt.name} of {height}x{width} pixels needs {need[0]} or more rows of"
                f" {need[1]} or more samples, got {rows} rows of {samples}"
            )
        if frames != blocks[0][0][0]:
            raise ValueError(f"arrays: plane {p} holds {frames} frames, plane 0 {blocks[0][0][0]}")
    for i, array in enumerate(found):
        if array.device != on:
            raise ValueError(f"arrays[{i}] is on {array.device}, arrays[0] on {on}")
    streams = as_streams(stream, on) or tuple(dict.fromkeys(s for a in found for s in a.streams))
    memory = PlaneMemory(
        tuple(plane for _, plane in blocks), blocks[0][0][0], on, streams, [a.owner for a in found]
    )
    if memory.frames:
        _check(memory, fmt, height, width, "arrays")
    return memory


_Block = tuple[tuple[int, int, int], Plane]  # frames, rows and samples per row; where they lie


def _block(array: ForeignArray, fmt: PixelFormat, plane: int) -> _Block:
    """View an array as frames of rows of samples, the channels of interleaved components side by side."""
    if array.itemsize != fmt.bytes_per_sample:
        raise TypeError(
            f"arrays: plane {plane}: {fmt.name} has {8 * fmt.bytes_per_sample}-bit samples,"
            f" got {8 * array.itemsize}-bit ones"
        )
    shape, strides = list(array.shape), list(array.strides)
    step = max(c.step for c in fmt.components if c.plane == plane)
    # Rows of so few samples are not meant as (frames, rows, samples), but as (rows, columns, channels).
    if len(shape) == 4 or (len(shape) == 3 and shape[2] in (1, step) and shape[1] > 1):
        channels = shape.pop()
        dense = strides.pop() if channels > 1 else array.itemsize
        if channels not in (1, step) or dense != array.itemsize or strides[-1] != channels * dense:
            raise ValueError(
                f"arrays: plane {plane}: expected {step} neighbouring channels, got shape {array.shape} with"
                f" strides of {array.strides} bytes"
            )
        shape[-1] *= channels
        strides[-1] = array.itemsize
    if len(shape) == 2:
        shape.insert(0, 1)
        strides.insert(0, 0)
    if len(shape) != 3:
        raise ValueError(
            f"arrays: plane {plane}: expected shape (rows, samples), (frames, rows, samples) or"
            f" ([frames,] rows, columns, channels), got {array.shape}"
        )
    if strides[2] != array.itemsize and shape[2] > 1 and 0 not in shape:
        raise ValueError(
            f"arrays: plane {plane}: the samples of a row must be neighbours, {array.itemsize} bytes apart,"
            f" got strides of {array.strides} bytes; give address and pitch to Planes.from_pointers"
        )
    return (shape[0], shape[1], shape[2]), Plane(array.address, strides[1], strides[0])


def _split(
    block: _Block, fmt: PixelFormat, height: int, width: int, surface_height: int | None
) -> list[_Block]:
    """Planes that follow one another in one array of rows."""
    (frames, rows, samples), plane = block
    parts = [fmt.component_size(i, 4, 4)[0] for i in range(1, fmt.num_planes)]
    if surface_height is None:
        surface_height = 4 * rows // (4 + sum(parts))
    pitches = [plane.pitch] * fmt.num_planes
    blocks = []
    for p, address in enumerate(_stacked(plane.address, pitches, fmt, height, width, surface_height)):
        before = p * surface_height
        blocks.append(((frames, rows - before, samples), plane._replace(address=address)))
    return blocks


# tensors, for what reads them as such


def plane_tensors(memory: PlaneMemory, fmt: PixelFormat, height: int, width: int) -> tuple[Tensor, ...]:
    """The planes as (T, rows, samples) tensors: views, or copies of what torch cannot view."""
    wait_for_producers(memory.device, [memory])
    tensors = []
    for p, plane in enumerate(memory.planes):
        rows, samples = _shapes(fmt.name, height, width)[p]
        shape = (memory.frames, rows, samples)
        tensors.append(_view(plane, shape, fmt.bytes_per_sample, memory))
    return tuple(tensors)


class _CudaArray:
    """An address as torch takes it."""

    def __init__(self, interface: dict[str, object], owner: object) -> None:
        self.__cuda_array_interface__ = interface
        self.owner = owner


def _view(plane: Plane, shape: tuple[int, int, int], itemsize: int, memory: PlaneMemory) -> Tensor:
    # torch has no negative strides: take the rows, or frames, as they lie and turn a copy
    flipped = [d for d, pitch in ((0, plane.frame_pitch), (1, plane.pitch)) if pitch < 0 and shape[d] > 1]
    pitches = (plane.frame_pitch, plane.pitch)
    address = plane.address + sum(pitches[d] * (shape[d] - 1) for d in flipped)
    strides = (abs(plane.frame_pitch), abs(plane.pitch), itemsize)
    if memory.device.type == "cpu":
        reach = sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + itemsize
        raw = (ctypes.c_uint8 * (reach if 0 not in shape else 0)).from_address(address)
        raw._owner = memory.owner  # type: ignore[attr-defined]
        array: np.ndarray[Any, Any] = np.ndarray(
            shape, np.uint8 if itemsize == 1 else np.int16, memoryview(raw), strides=strides
        )
        tensor = torch.from_numpy(array)
    else:
        interface: dict[str, object] = {
            "shape": shape,
            "strides": strides,
            "typestr": "|u1" if itemsize == 1 else "<i2",
            "data": (address, False),
            "version": 2,
        }
        tensor = torch.as_tensor(_CudaArray(interface, memory.owner), device=memory.device)
    return tensor.flip(flipped) if flipped else tensor


# streams and lifetimes


def wait_for_producers(device: torch.device, memories: Iterable[PlaneMemory]) -> None:
    """Let torch's current stream wait for whoever fills the planes; the host does not wait."""
    streams = _foreign_streams(device, memories)
    if not streams:
        return
    if torch.cuda.is_current_stream_capturing():
        raise UnsupportedError(
            "planes of another stream cannot be waited for while a CUDA graph is captured: synchronise with"
            " it before the capture and give the planes without stream="
        )
    current = torch.cuda.current_stream(device)
    for stream in streams:
        current.wait_stream(_torch_stream(stream, device))


def hand_back(device: torch.device, memories: Sequence[PlaneMemory]) -> None:
    """After the launch: producers' streams wait for it, and owners without one are kept until it ran."""
    if device.type != "cuda":
        return
    current = None
    for stream in _foreign_streams(device, memories):
        current = current or torch.cuda.current_stream(device)
        _torch_stream(stream, device).wait_stream(current)
    owners = [m.owner for m in memories if m.owner is not None and not m.streams]
    # What a captured graph reads is kept by whoever replays it, as with any tensor.
    if owners and not torch.cuda.is_current_stream_capturing():
        with torch.cuda.device(device):
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(device))
        _in_flight.add(event, owners)


def _foreign_streams(device: torch.device, memories: Iterable[PlaneMemory]) -> list[int]:
    """Streams of the producers other than torch's current one."""
    streams = dict.fromkeys(s for m in memories for s in m.streams)
    if not streams:
        return []
    current = torch.cuda.current_stream(device).cuda_stream
    return [s for s in streams if s != current]


def _torch_stream(stream: int, device: torch.device) -> torch.cuda.Stream:
    # torch takes small odd handles for stream numbers of its own; 0 is its default stream.
    if stream == 0:
        return torch.cuda.default_stream(device)
    return torch.cuda.ExternalStream(stream, device=device)  # type: ignore[no-untyped-call]


class _InFlight:
    """Owners of memory that a device may still be reading."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: list[tuple[Any, list[object]]] = []

    def add(self, event: Any, owners: list[object]) -> None:
        """Keep ``owners`` until ``event``, of torch.cuda, has happened; let go of those whose event has."""
        done: list[tuple[Any, list[object]]] = []
        with self._lock:
            waiting: list[tuple[Any, list[object]]] = []
            for entry in self._entries:
                (done if entry[0].query() else waiting).append(entry)
            self._entries = [*waiting, (event, owners)]
        del done  # outside the lock: an owner's end may run anything

    def __len__(self) -> int:
        return len(self._entries)


_in_flight = _InFlight()
