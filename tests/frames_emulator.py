"""The CUDA frames kernels' bodies on the CPU: builds tests/core/frames_emulator.cpp and calls it."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from mmcore.backends.cpu import Output, frames_plan, output_desc
from mmcore.ops.frame_transform import FrameTransform
from mmcore.ops.output_pool import empty_output
from mmcore.ops.pixel_formats import PixelFormat
from mmcore.ops.planes import ColorSpec, repeat_last

AUTO, GATHER, STREAM, MATRIX, INTEGER = range(5)
_ROOT = Path(__file__).parents[1]


def compiler() -> str | None:
    """A C++ compiler that takes GCC's options, if there is one beside the sources."""
    if not (_ROOT / "kernels" / "cuda" / "frames_body.h").exists() or os.name != "posix":
        return None
    return shutil.which(os.environ.get("CXX", "c++"))


def build(folder: Path) -> ctypes.CDLL:
    """Compile the emulator into ``folder``."""
    library = folder / "frames_emulator.so"
    include = [f"-I{_ROOT / part}" for part in ("csrc/include", "csrc/cpu", "kernels/cuda")]
    # as the device rounds: a*b+c in one step only where the code says so
    options = ["-std=c++17", "-O2", "-ffp-contract=off", "-fno-math-errno", "-shared", "-fPIC"]
    source = _ROOT / "tests" / "core" / "frames_emulator.cpp"
    subprocess.run([compiler() or "c++", *options, *include, str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def convert_frame(
    emulator: ctypes.CDLL,
    tables: int,
    planes: Sequence[tuple[int, int]],
    output: Output,
    slot: int,
    method: int = AUTO,
    strip_rows: int = 1 << 20,
) -> int:
    """Convert a frame of (address, pitch) planes, with tables at an address; the method that was used."""
    pointer, *strides_and_patches = output
    pointers = (ctypes.c_void_p * 3)(*[address for address, _ in planes[:3]])
    pitches = (ctypes.c_int64 * 3)(*[pitch for _, pitch in planes[:3]])
    used: int = emulator.frames_emulator(
        ctypes.c_void_p(tables), pointers, pitches, min(len(planes), 3), ctypes.c_void_p(pointer),
        (ctypes.c_int64 * 4)(*strides_and_patches[:4]), (ctypes.c_int * 3)(*strides_and_patches[4:]),
        slot, method, strip_rows,
    )  # fmt: skip
    assert used >= 0, "a block needs more shared memory than its plan says"
    return used


def convert(
    emulator: ctypes.CDLL,
    data: Sequence[Tensor],
    fmt: PixelFormat,
    height: int,
    width: int,
    color: ColorSpec,
    transform: FrameTransform,
    method: int = AUTO,
    strip_rows: int = 1 << 20,
) -> tuple[Tensor, int]:
    """Result of the frames op, and the method that made it (0: the resize on bytes)."""
    g = transform.geometry(height, width)
    tables = frames_plan(fmt, height, width, color, transform).device_tables()
    # FramesTables begins at an address that is a multiple of 16, as on the device
    memory = ctypes.create_string_buffer(len(tables) + 16)
    address = -(-ctypes.addressof(memory) // 16) * 16
    ctypes.memmove(address, tables, len(tables))
    count = len(data[0])
    result = empty_output(transform.output_shape(count, height, width), transform.dtype)
    output = output_desc(result, transform.layout, g.out_h, g.out_w)
    used = 0
    for t in range(count):
        planes = [p[t] if p.stride(2) == 1 or p.shape[2] == 1 else p[t].contiguous() for p in data]
        lines = [(p.data_ptr(), p.stride(0) * p.element_size()) for p in planes]
        used = convert_frame(emulator, address, lines, output, t, method, strip_rows)
    repeat_last(result, transform.layout, count, g.out_h, g.out_w)
    return result, used
