"""Run the table of cases: in this process, or as a program that ends every plane where memory ends.

``python frames_harness.py`` runs the whole table on the cpu backend under whatever ``MMCORE_ISA`` says.
Planes and results lie against pages that no one may touch: one byte too many ends the program.
"""

from __future__ import annotations

import ctypes
import faulthandler
import itertools
import mmap
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from cases import FRAME_CASES, Case
from tolerances import assert_frames_close
from torch import Tensor

import mmcore
from mmcore.backends.reference import apply_layout, convert
from mmcore.ops.pixel_formats import PIXEL_FORMATS
from mmcore.ops.planes import Planes

if TYPE_CHECKING:
    import av


def check_case(case: Case, data: Sequence[Tensor], out: Tensor | None = None) -> None:
    """Assert that the backend in force gives what the oracle gives."""
    before = [p.clone() for p in data]
    result = mmcore.frames_to_tensor(
        Planes(tuple(data), **case.planes_kwargs()), case.call_transform(), out=out
    )
    assert all(torch.equal(a, b) for a, b in zip(before, data, strict=True)), "the input was modified"
    assert tuple(result.shape) == case.transform.output_shape(case.frames, case.height, case.width)
    assert result.is_contiguous()
    assert_frames_right(case, result)


def check_planes_on(case: Case, device: torch.device) -> None:
    """Assert that planes on a device give what the oracle gives, and the same twice."""
    data = case.data()
    planes = Planes(tuple(p.to(device) for p in data), **case.planes_kwargs())
    result = mmcore.frames_to_tensor(planes, case.call_transform())
    assert result.device == planes.data[0].device
    assert torch.equal(mmcore.frames_to_tensor(planes, case.call_transform()), result), "not deterministic"
    assert all(torch.equal(a.cpu(), b) for a, b in zip(planes.data, data, strict=True)), "input modified"
    assert_frames_right(case, result.cpu())


def assert_frames_right(case: Case, result: Tensor) -> None:
    """Compare a result of the frames op with the oracle's."""
    g = case.transform.geometry(case.height, case.width)
    resized = (g.resize_h, g.resize_w) != (case.height, case.width)
    fmt, data = PIXEL_FORMATS[case.format], case.data()
    exact = case.transform.accuracy == "rgb8" or (case.transform.dtype == torch.uint8 and not resized)
    oracle = convert(data, fmt, case.height, case.width, case.color, case.transform, as_compute=not exact)
    if not exact:
        assert_frames_close(result, oracle, case.transform)
        return
    expected = apply_layout(oracle, case.transform.layout)
    assert result.dtype == expected.dtype
    different = int((result != expected).sum())
    worst = (result.double() - expected.double()).abs().max().item()
    assert not different, f"{different} of {result.numel()} values are not bit-exact, by up to {worst:.4g}"


def video_frame(
    name: str, planes: Sequence[Tensor], height: int, width: int, lines: str = "padded"
) -> av.VideoFrame:
    """Make a frame of planes (rows, samples), with ``lines`` as PyAV and FFmpeg's filters lay them out.

    "padded": lines as long as PyAV makes them; "negative": last line first in memory, as ``vflip`` leaves it;
    "cropped": inside a larger frame, so that planes start anywhere.
    """
    import av

    fmt = PIXEL_FORMATS[name]
    margin = 2 if lines == "cropped" else 0
    frame = av.VideoFrame(width + 2 * margin, height + 2 * margin, name)
    for p, plane in enumerate(planes):
        target = frame.planes[p]
        samples = plane.numpy()
        if lines == "negative":
            samples = samples[::-1]
        rows, cols = samples.shape
        memory = np.full((target.height, target.line_size), 0xA5, np.uint8).view(samples.dtype)
        is_chroma = fmt.family == "yuv" and p > 0
        step = max(c.step for c in fmt.components if c.plane == p)
        top = margin >> (fmt.log2_chroma_h if is_chroma else 0)
        left = (margin >> (fmt.log2_chroma_w if is_chroma else 0)) * step
        memory[top : top + rows, left : left + cols] = samples
        target.update(memory.tobytes())
    if lines == "negative":
        frame = _filtered(frame, "vflip", "")
        assert frame.planes[0].line_size < 0
    elif lines == "cropped":
        frame = _filtered(frame, "crop", f"{width}:{height}:{margin}:{margin}:exact=1")
    assert (frame.width, frame.height, frame.format.name) == (width, height, name)
    return frame


def _filtered(frame: av.VideoFrame, name: str, arguments: str) -> av.VideoFrame:
    import av

    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format.name, time_base="1/30"
    )
    step, sink = graph.add(name, arguments), graph.add("buffersink")
    source.link_to(step)
    step.link_to(sink)
    graph.configure()
    frame.pts = 0
    graph.vpush(frame)
    return graph.vpull()


class Guard:
    """Memory between two pages that may not be touched."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._maps: list[mmap.mmap] = []

    def tensor(
        self, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype, at_end: bool
    ) -> Tensor:
        """Uninitialised tensor whose last byte, or else whose first, is next to a forbidden page."""
        samples = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        page, size = mmap.PAGESIZE, samples * dtype.itemsize
        room = -(-size // page) * page
        memory = mmap.mmap(-1, room + 2 * page)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for guard in (start, start + page + room):
            if self._libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        self._maps.append(memory)  # unmapped only at exit: the tensor points into it
        offset = page + (room - size if at_end else 0)
        return torch.frombuffer(memory, dtype=dtype, count=samples, offset=offset).as_strided(shape, strides)


def main() -> int:
    """Run the table between guards; print each failure; the exit status is 1 if there was one."""
    faulthandler.enable()
    print("isa:", mmcore.build_info()["isa"], flush=True)
    guard, failures = Guard(), 0
    for i, case in enumerate(FRAME_CASES):
        print("case:", case.id, file=sys.stderr, flush=True)  # the last one printed is the one that crashed
        at_end = i % 3 != 0
        data = []
        for plane in case.data():
            view = guard.tensor(plane.shape, plane.stride(), plane.dtype, at_end)
            view.copy_(plane)
            data.append(view)
        shape = case.transform.output_shape(case.frames, case.height, case.width)
        strides = [*itertools.accumulate(reversed(shape[1:]), int.__mul__, initial=1)][::-1]
        out = guard.tensor(shape, strides, case.transform.dtype, at_end)
        try:
            with mmcore.backend("cpu"):
                check_case(case, data, out)
        except AssertionError as error:
            failures += 1
            print(f"FAILED {case.id}: {error}", flush=True)
    print(f"{len(FRAME_CASES)} cases, {failures} failures", flush=True)
    return failures > 0


if __name__ == "__main__":
    sys.exit(main())
