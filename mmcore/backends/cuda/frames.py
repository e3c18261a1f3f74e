"""The frames op on a CUDA device: plans' tables there, and the launch."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmcore import _cuda  # type: ignore[attr-defined, unused-ignore]
from mmcore.backends.cpu.frames import output_desc
from mmcore.errors import UnsupportedError
from mmcore.threads import get_num_threads

if TYPE_CHECKING:
    from mmcore.ops.frame_groups import FrameGroup, SourceKind

__all__ = ["convert_groups", "pointer_device"]

pointer_device = _cuda.pointer_device


class _Tables:
    """Tables of one kind of source frame on one device."""

    __slots__ = ("memory", "native", "size", "streams")

    def __init__(self, native: _cuda.DeviceTables, memory: Tensor, size: int) -> None:
        self.native, self.size = native, size
        self.memory = memory  # what they lie in, shared with those that were copied at the same time
        self.streams: set[int] = set()  # that kernels which read them were put on


class _TableCache:
    """Tables on devices, the newest in so many bytes; a graph's stay, since it holds their addresses."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes, self._bytes = most_bytes, 0
        self._lock = threading.Lock()
        self._found: dict[tuple[SourceKind, int], _Tables] = {}
        self._of_graphs: set[_Tables] = set()

    def get(self, kinds: Sequence[SourceKind], device: int, stream: int) -> list[_Tables]:
        """Tables of ``kinds``, in their order, to be held until what reads them is on ``stream``."""
        found = self._found
        with self._lock:
            try:
                tables = [found[kind, device] for kind in kinds]
            except KeyError:
                self._copy([k for k in dict.fromkeys(kinds) if (k, device) not in found], device)
                tables = [found[kind, device] for kind in kinds]
                self._forget(tables)
            for entry in tables:
                entry.streams.add(stream)
            if torch.cuda.is_current_stream_capturing():
                self._of_graphs.update(tables)
        return tables

    def _copy(self, kinds: Sequence[SourceKind], device: int) -> None:
        """All in one copy: a batch of frames of unequal size may bring as many kinds."""
        if torch.cuda.is_current_stream_capturing():
            raise UnsupportedError(
                "frames of a size, format and colour that have not been converted before need their filters"
                " copied to the device, which cannot be while a CUDA graph is captured: convert such frames"
                " once before the capture"
            )
        blocks = _device_tables(kinds)
        starts, size = [], 0
        for block in blocks:
            starts.append(size)
            size += -(-len(block) // 256) * 256
        staging = bytearray(size)
        for block, start in zip(blocks, starts, strict=True):
            staging[start : start + len(block)] = block
        memory = upload(staging, device)
        address = memory.data_ptr()
        for kind, block, start in zip(kinds, blocks, starts, strict=True):
            self._found[kind, device] = _Tables(
                _cuda.DeviceTables(block, address + start), memory, len(block)
            )
            self._bytes += len(block)

    def _forget(self, wanted: Sequence[_Tables]) -> None:
        """Let go of what was copied first, beyond what is kept."""
        keep = {*wanted, *self._of_graphs}
        for key, entry in [*self._found.items()]:
            if self._bytes <= self._most_bytes:
                break
            if entry not in keep:
                del self._found[key]
                self._bytes -= entry.size
                for stream in entry.streams:  # kernels there may still be reading, or are about to
                    entry.memory.record_stream(_torch_stream(stream, key[1]))


def _device_tables(kinds: Sequence[SourceKind]) -> list[bytes]:
    threads = min(get_num_threads(), len(kinds))
    if threads < 2:
        return [kind.plan.device_tables() for kind in kinds]
    # About a millisecond each, most of it without the GIL
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda kind: kind.plan.device_tables(), kinds))


_tables = _TableCache(128 << 20)  # some 240 kinds of 1080p frames


def upload(block: bytearray, device: int) -> Tensor:
    """Copy bytes to a device; they are there when this returns, for whatever stream."""
    memory = torch.frombuffer(block, dtype=torch.uint8).to(torch.device("cuda", device))
    torch.cuda.current_stream(device).synchronize()
    return memory


def convert_groups(groups: Sequence[FrameGroup], out: Tensor, method: int = 0) -> None:
    """Convert groups of frames on a device into ``out`` there, frames of one way of converting in one launch.

    The first call for a kind of frame copies its tables to the device; later ones only launch, so that they
    can be captured in a CUDA graph. ``method``: 0 as measured best, 1 gathering, 2 streaming, 3 products,
    4 products of whole numbers (not measured on a GPU yet).
    """
    device = groups[0].memory.device
    index = device.index
    if torch.cuda.current_device() != index:
        with torch.cuda.device(device):
            convert_groups(groups, out, method)
        return
    stream = current_stream(index)
    kind = groups[0].kind
    tables = _tables.get([g.kind for g in groups], index, stream)
    arguments = [(t.native, g.memory.planes, g.memory.frames) for t, g in zip(tables, groups, strict=True)]
    address = 0
    if any(t.native.needs_scratch for t in tables):
        scratch = torch.empty(_cuda.groups_scratch_bytes(arguments), dtype=torch.uint8, device=device)
        address = scratch.data_ptr()
    output = output_desc(out, kind.transform.layout, *kind.out_size)
    _cuda.groups_to_tensor(arguments, output, address, stream, method)


def _torch_stream(stream: int, index: int) -> torch.cuda.Stream:
    if stream == 0:
        return torch.cuda.default_stream(index)
    return torch.cuda.ExternalStream(stream, device=index)  # type: ignore[no-untyped-call]


def _current_stream(index: int) -> int:
    return torch.cuda.current_stream(index).cuda_stream


# Triton and torch's own compiled code ask in this way, a tenth of the price of making a Stream.
current_stream = getattr(torch._C, "_cuda_getCurrentRawStream", _current_stream)
