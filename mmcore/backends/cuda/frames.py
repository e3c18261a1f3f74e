"""The frames op on a CUDA device: plans' tables there, and the launch."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmcore import _cuda  # type: ignore[attr-defined, unused-ignore]
from mmcore.backends.cpu.frames import output_desc

if TYPE_CHECKING:
    from mmcore.ops.planes import FrameGroup, SourceKind

__all__ = ["convert_groups", "pointer_device"]

pointer_device = _cuda.pointer_device


class _Tables:
    """Tables of one kind of source frame on one device."""

    __slots__ = ("memory", "native", "streams")

    def __init__(self, native: _cuda.DeviceTables, memory: Tensor) -> None:
        self.native = native
        self.memory = memory  # what they lie in, shared with those that were copied at the same time
        self.streams: set[int] = set()  # that kernels which read them were put on


class _TableCache:
    """Tables on devices, those used last; a graph's are kept for good, since it holds their addresses."""

    def __init__(self, most: int) -> None:
        self._most = most
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
        blocks, starts, size = [], [], 0
        for kind in kinds:
            blocks.append(kind.plan.device_tables())
            starts.append(size)
            size += -(-len(blocks[-1]) // 256) * 256
        staging = bytearray(size)
        for block, start in zip(blocks, starts, strict=True):
            staging[start : start + len(block)] = block
        memory = upload(staging, device)
        address = memory.data_ptr()
        for kind, block, start in zip(kinds, blocks, starts, strict=True):
            self._found[kind, device] = _Tables(_cuda.DeviceTables(block, address + start), memory)

    def _forget(self, wanted: Sequence[_Tables]) -> None:
        """Let go of what was copied first, beyond the number that is kept."""
        keep = {*wanted, *self._of_graphs}
        for key, entry in [*self._found.items()]:
            if len(self._found) <= self._most:
                break
            if entry not in keep:
                del self._found[key]
                for stream in entry.streams:  # kernels there may still be reading, or are about to
                    entry.memory.record_stream(_torch_stream(stream, key[1]))


_tables = _TableCache(1024)


def upload(block: bytearray, device: int) -> Tensor:
    """Copy bytes to a device; they are there when this returns, for whatever stream."""
    memory = torch.frombuffer(block, dtype=torch.uint8).to(torch.device("cuda", device))
    torch.cuda.current_stream(device).synchronize()
    return memory


def convert_groups(groups: Sequence[FrameGroup], out: Tensor, method: int = 0) -> None:
    """Convert groups of frames on a device into ``out`` there, frames of one way of converting in one launch.

    The first call for a kind of frame copies its tables to the device; later ones only launch, so that they
    can be captured in a CUDA graph. ``method``: 0 as measured best, 1 gathering, 2 streaming, 3 products.
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
