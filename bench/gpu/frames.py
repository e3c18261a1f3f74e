"""The frames op on a GPU: every case of the tests' table, then its time beside RGB batches resized by torch.

The planes lie in device memory, as a decoder or an upload leaves them, in so many sets in turn that none is
in the L2 cache. *GB/s* is what must be read and written at least over the time, *of copy* that over the
bandwidth of a device-to-device copy in the same process. The rival starts from RGB bytes, as decoders give
them, and resizes (antialiased) and normalises them in torch, eager and compiled.

The kernels have several ways to convert a frame, and take what was measured fastest. Where a case's ``ways``
are asked for, each is timed beside the others, in a graph too; the one by products of whole numbers, which is
not taken by itself yet, is checked with the table's cases and with larger ones.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import mmcore
from bench.gpu.measure import Bench, Job
from mmcore.ops.pixel_formats import PIXEL_FORMATS

__all__ = ["CASES", "FramesCase", "correctness", "make_planes", "timings"]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class FramesCase:
    """A batch of frames and what becomes of it."""

    name: str
    height: int
    width: int
    transform: dict[str, Any]
    format: str = "yuv420p"
    frames: int = 32
    rivals: bool = False
    ways: bool = False
    settings: dict[str, Any] = field(default_factory=dict)

    def make_transform(self) -> mmcore.FrameTransform:
        """What is done to the frames."""
        kwargs: dict[str, Any] = {"dtype": torch.float16, "mean": _MEAN, "std": _STD, **self.transform}
        return mmcore.FrameTransform(**kwargs)


_DIRECT = {"resize": (224, 224)}
_BYTES = {"dtype": torch.uint8, "mean": None, "std": None}
CASES = (
    FramesCase("1080p to 224, bilinear", 1080, 1920, _DIRECT, rivals=True, ways=True),
    FramesCase(
        "1080p to 224, bicubic", 1080, 1920, {**_DIRECT, "interpolation": "bicubic"}, rivals=True, ways=True
    ),
    FramesCase("1080p NV12 to 224, bilinear", 1080, 1920, _DIRECT, "nv12", ways=True),
    FramesCase("1080p P010 to 224, bilinear", 1080, 1920, _DIRECT, "p010le", ways=True),
    FramesCase("1080p to 256, crop 224", 1080, 1920, {"resize": 256, "crop": 224}, rivals=True, ways=True),
    FramesCase("4K to 224, bilinear", 2160, 3840, _DIRECT, ways=True),
    FramesCase("720p to 224, bilinear", 720, 1280, _DIRECT, frames=64, ways=True),
    FramesCase("340x256, crop 224", 256, 340, {"resize": 256, "crop": 224}, frames=256),
    FramesCase(
        "1080p to 448, bicubic", 1080, 1920, {"resize": (448, 448), "interpolation": "bicubic"}, ways=True
    ),
    FramesCase("1080p to 224, area", 1080, 1920, {**_DIRECT, "interpolation": "area"}, ways=True),
    FramesCase("1080p to RGB bytes", 1080, 1920, _BYTES, frames=8),
    FramesCase("1080p to 224 bytes, rgb8", 1080, 1920, {**_DIRECT, **_BYTES, "accuracy": "rgb8"}, frames=8),
    FramesCase("one 1080p frame to 224", 1080, 1920, _DIRECT, frames=1),
)


WAYS = {"stream": 2, "matrix": 3, "integer": 4}
"""Of kernels/cuda/frames.h; 1, gathering, is slow where samples are many."""


@contextmanager
def way(method: int) -> Iterator[None]:
    """Have frames that lie on a GPU converted in one way, where that can be."""
    from mmcore.backends import cuda

    before = cuda.convert_groups
    cuda.convert_groups = functools.partial(before, method=method)
    try:
        yield
    finally:
        cuda.convert_groups = before


def correctness(bench: Bench) -> None:
    """Check the tests' whole table on the device, and products of whole numbers with larger pictures too."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
    from cases import FRAME_CASES, make_case
    from frames_harness import check_planes_on

    failures: dict[str, str] = {}
    record = bench.record
    record.update(cases=0, failures=failures)
    if not bench.dry:
        larger = [
            make_case(format=name, size=size, geometry={"resize": to}, filter=(kind, True), frames=3)
            for name, size, to, kind in [
                ("yuv420p", (1080, 1920), (224, 224), "bilinear"),
                ("yuv420p", (1080, 1920), (224, 224), "bicubic"),
                ("nv12", (1079, 1921), (225, 223), "bilinear"),
                ("nv12", (720, 1280), (224, 398), "bicubic"),
                ("p010le", (1080, 1920), (224, 224), "bilinear"),
                ("yuv420p10le", (541, 963), (97, 131), "bicubic"),
                ("yuv422p", (480, 854), (224, 224), "area"),
                ("yuv444p", (361, 641), (113, 127), "bilinear"),
                ("gbrp", (360, 642), (97, 131), "bicubic"),
                ("gray", (2160, 3840), (224, 224), "bilinear"),
            ]
        ]
        fused = [case for case in FRAME_CASES if case.transform.accuracy == "fused"]
        record["integer_cases"] = 0
        for i, case in enumerate([*larger, *fused[::2]]):
            # first, but not for long: the ways that are taken matter more
            if not bench.claim(len(FRAME_CASES) + i) or bench.remaining() < bench.seconds * 0.6:
                continue
            try:
                with mmcore.backend("cuda"), way(WAYS["integer"]):
                    check_planes_on(case, bench.device)
            except Exception as error:
                failures[f"integer {case.id}"] = f"{type(error).__name__}: {error}"[:600]
            record["integer_cases"] += 1

    for i, case in enumerate(FRAME_CASES):
        if (bench.dry and i % 24) or not bench.claim(i):
            continue
        if bench.remaining() < 2:
            record["left_out"] = record.get("left_out", 0) + 1
            continue
        try:
            with mmcore.backend("cpu" if bench.dry else "cuda"):
                check_planes_on(case, bench.device)
        except Exception as error:
            failures[case.id] = f"{type(error).__name__}: {error}"[:600]
        record["cases"] += 1


def timings(bench: Bench) -> None:
    """Time every case."""
    bench.record["copy_gbps"] = bench.copy_gbps()
    bench.record["rows"] = {}
    for case in CASES:
        if bench.remaining() < 8 and not bench.dry:
            bench.record.setdefault("left_out", []).append(case.name)
            continue
        with bench.attempt(case.name), mmcore.backend("cpu" if bench.dry else "cuda"):
            bench.record["rows"][case.name] = _time(bench, case)


def make_planes(case: FramesCase, bench: Bench, frames: int) -> mmcore.Planes:
    """Noise of a case's format on the device."""
    fmt = PIXEL_FORMATS[case.format]
    data = []
    for p in range(fmt.num_planes):
        rows, samples = fmt.plane_shape(p, case.height, case.width)
        top = 2**fmt.bits
        noise = torch.randint(0, top, (frames, rows, samples), device=bench.device, dtype=torch.int32)
        kind = torch.uint8 if fmt.bytes_per_sample == 1 else torch.int16
        data.append((noise << fmt.shift).to(kind))
    return mmcore.Planes(tuple(data), case.format, case.height, case.width)


def _least_bytes(case: FramesCase, transform: mmcore.FrameTransform, frames: int) -> int:
    """The part of the planes that the crop shows, and the result."""
    fmt, g = PIXEL_FORMATS[case.format], transform.geometry(case.height, case.width)
    share = (g.out_h / g.resize_h) * (g.out_w / g.resize_w)
    samples = 0
    for p in range(fmt.num_planes):
        rows, columns = fmt.plane_shape(p, case.height, case.width)
        samples += rows * columns
    return round(
        frames * (samples * fmt.bytes_per_sample * share + 3 * g.out_h * g.out_w * transform.dtype.itemsize)
    )


def _of_rgb(case: FramesCase, transform: mmcore.FrameTransform) -> Any:
    g = transform.geometry(case.height, case.width)
    mode = transform.interpolation

    def convert(rgb: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        x = F.interpolate(rgb.float(), size=(g.resize_h, g.resize_w), mode=mode, antialias=True)
        x = x[:, :, g.top : g.top + g.out_h, g.left : g.left + g.out_w]
        return ((x.clamp(0, 255) / 255 - mean) / std).half()

    return convert


def _time(bench: Bench, case: FramesCase) -> dict[str, Any]:
    torch._dynamo.reset()
    frames = 1 if bench.dry else case.frames
    transform = case.make_transform()
    size = sum(p.numel() * p.element_size() for p in make_planes(case, bench, 1).data) * frames
    count = 2 if bench.dry else max(4, min(16, (400 << 20) // size + 1))
    sets = [make_planes(case, bench, frames) for _ in range(count)]
    outs = [
        torch.empty(
            transform.output_shape(frames, case.height, case.width),
            dtype=transform.dtype,
            device=bench.device,
        )
        for _ in range(count)
    ]
    turn = itertools.cycle(zip(sets, outs, strict=True))

    def ours() -> Tensor:
        planes, out = next(turn)
        return mmcore.frames_to_tensor(planes, transform, out=out)

    def graphed() -> Any:
        def run() -> None:
            for planes, out in zip(sets, outs, strict=True):
                mmcore.frames_to_tensor(planes, transform, out=out)

        return bench.graphed(run)

    jobs = {"mmcore": Job(ours)}
    graph = graphed()
    jobs["mmcore, all sets in a graph"] = Job(graph)
    ways = WAYS if case.ways and not bench.dry else {}
    for name, method in ways.items():
        with way(method):
            jobs[f"{name}, all sets in a graph"] = Job(graphed())
    if case.rivals:
        few = 1 if bench.dry else 3
        rgb = [
            torch.randint(
                0, 256, (frames, 3, case.height, case.width), device=bench.device, dtype=torch.uint8
            )
            for _ in range(few)
        ]
        mean = torch.tensor(_MEAN, device=bench.device)[:, None, None]
        std = torch.tensor(_STD, device=bench.device)[:, None, None]
        rgb_turn = itertools.cycle(rgb)
        eager = _of_rgb(case, transform)
        how: dict[str, Any] = {"backend": "eager"} if bench.dry else {}
        compiled = torch.compile(eager, dynamic=False, **how)
        jobs["RGB, eager torch"] = Job(lambda: eager(next(rgb_turn), mean, std))
        jobs["RGB, torch.compile"] = Job(lambda: compiled(next(rgb_turn), mean, std))
    found = bench.interleave(jobs, 0.4)
    for name in ("mmcore", *ways):
        for key in ("ms", "low", "high"):
            found[f"{name}, all sets in a graph"][key] /= count
    least = _least_bytes(case, transform, frames)
    ours_ms = found["mmcore, all sets in a graph"]["ms"]
    gbps = least / ours_ms / 1e6
    return {
        "frames": frames,
        "bytes": least,
        "gbps": gbps,
        "of_copy": gbps / bench.record["copy_gbps"],
        "ways_of_copy": {
            name: least / found[f"{name}, all sets in a graph"]["ms"] / 1e6 / bench.record["copy_gbps"]
            for name in ways
        },
        "host_us": bench.host_us(ours, 100),
        "times": found,
    }
