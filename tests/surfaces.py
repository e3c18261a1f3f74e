"""Stand-ins for NVDEC: frames whose planes lie as FFmpeg's hardware frames do, in the host's memory.

A decoder of the CPU makes the pictures. They are copied into memory that is laid out as NVDEC's surfaces are,
NV12 or P010 with padded rows and the chroma after as many rows as are coded. When the frame is dropped that
memory is spoiled, as the next picture would do.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import av
import numpy as np

from mmcore.decoding.nvdec import open_codec

if TYPE_CHECKING:
    from fake_gpu import FakeGpu

_SPOILED = 0xA5
_ALIGNMENT = 256  # of rows
_HELD_AS = {"yuv420p": "nv12", "yuvj420p": "nv12", "yuv420p10le": "p010le", "yuv444p": "yuv444p"}


class Plane:
    """What is asked of a plane: its address on device (type, number), and the frame that it keeps alive."""

    def __init__(self, frame: Surface, address: int, line_size: int) -> None:
        self.frame, self.buffer_ptr, self.line_size = frame, address, line_size

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)  # the host's memory


class Surface:
    """A frame of format "cuda" made of one of the CPU's; everything else is that frame's.

    With a :class:`fake_gpu.FakeGpu` the picture is put there, and the next one when it is dropped, in the
    order of the decoders' stream: as late as something waits for it, or at once if ``eager``.
    """

    live = 0  # how many there are
    most = 0  # and were at the same time

    def __init__(
        self, frame: av.VideoFrame, coded_rows: int = 16, gpu: FakeGpu | None = None, eager: bool = False
    ) -> None:
        self._tags = {
            name: getattr(frame, name)
            for name in ("pts", "width", "height", "colorspace", "color_range", "is_corrupt", "duration")
        }
        self._frame = frame
        self.format = SimpleNamespace(name="cuda")
        self.sw_format = SimpleNamespace(name=_HELD_AS[frame.format.name])
        parts = [_samples(frame, p) for p in range(3)]
        if self.sw_format.name == "p010le":
            parts = [part << 6 for part in parts]
        if self.sw_format.name != "yuv444p":
            uv = np.stack(parts[1:], -1).reshape(len(parts[1]), -1)
            parts = [parts[0], uv]
        pitch = -(-max(part.shape[1] * part.itemsize for part in parts) // _ALIGNMENT) * _ALIGNMENT
        coded = -(-frame.height // coded_rows) * coded_rows + coded_rows
        memory = np.full((len(parts) * coded, pitch), _SPOILED, np.uint8)

        def fill() -> None:
            for p, part in enumerate(parts):
                rows = memory[p * coded : p * coded + len(part), : part.shape[1] * part.itemsize]
                rows[:] = np.ascontiguousarray(part).view(np.uint8)

        def spoil() -> None:
            memory[:] = _SPOILED
            _kept.append(memory)  # a read of it is wrong, not a crash
            del _kept[:-64]

        def launch(work: Callable[[], None]) -> None:
            if gpu is None:
                work()
            else:
                gpu.push(gpu.decoders, "work", work)
                if eager:
                    gpu.run_all(gpu.decoders)

        def drop() -> None:
            Surface.live -= 1
            launch(spoil)

        launch(fill)
        self._addresses = [memory.ctypes.data + p * coded * pitch for p in range(len(parts))]
        self._pitch = pitch
        Surface.live += 1
        Surface.most = max(Surface.most, Surface.live)
        weakref.finalize(self, drop)

    def reformat(self, format: str) -> av.VideoFrame:
        """Copy it to the CPU."""
        assert format == self.sw_format.name
        return self._frame.reformat(format=format)

    @property
    def planes(self) -> tuple[Plane, ...]:
        return tuple(Plane(self, address, self._pitch) for address in self._addresses)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._tags[name]


_kept: list[np.ndarray] = []


def _samples(frame: av.VideoFrame, p: int) -> np.ndarray:
    plane = frame.planes[p]
    dtype = np.dtype(np.uint8 if "10" not in frame.format.name else np.uint16)
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    return rows.view(dtype)[: plane.height, : plane.width]


class Codec:
    """A decoder whose frames are surfaces."""

    def __init__(self, codec: Any, change: Callable[[av.VideoFrame], Any]) -> None:
        vars(self).update(_codec=codec, _change=change)

    def decode(self, packet: Any) -> list[Any]:
        return [self._change(frame) for frame in self._codec.decode(packet)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._codec, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._codec, name, value)


class FakeNvdec:
    """In place of :class:`mmcore.decoding.nvdec.Nvdec`: the CPU decodes."""

    device, engines = 0, 2

    def __init__(self, change: Callable[[av.VideoFrame], Any] = Surface) -> None:
        self.change = change

    def open(self, stream: Any) -> Any:
        return Codec(open_codec(stream, None), self.change)
