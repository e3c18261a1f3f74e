"""The frames op alone: decoded planes in memory to the model's tensor, per frame, beside the memory floor.

The floor is what the machine's copy bandwidth allows: every plane byte that the job needs read once and every
output byte written once, ``(needed + written) / bandwidth``, the bandwidth (read plus write) measured in the
same run on buffers larger than the caches. The frames measured exceed the caches too, so both sides stream
from memory.

Each instruction set runs in its own process (``MMCORE_ISA`` is read once); the processes stay alive and take
turns, one at a time on the same core, so that their rounds interleave.
"""

from __future__ import annotations

import functools
import math
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from bench import media, timing
from bench.cases import MEAN, STD, Job
from bench.workers import Worker, answer_requests

__all__ = ["CASES", "FramesCase", "floor_bytes", "prepare", "run"]

_PLANE_BYTES = 96 << 20  # of distinct frames per case: more than the last-level cache
_ACCURACY_LEVELS = 0.02  # against the reference backend, per value, before the cast


@dataclass(frozen=True)
class FramesCase:
    """One row: source size, pixel format, geometry, and what differs from the main job's transform."""

    width: int
    height: int
    kind: str = "crop"
    format: str = "yuv420p"
    interpolation: str = "bilinear"
    accuracy: str = "fused"
    dtype: str = "float32"
    layout: str = "NCHW"

    @property
    def name(self) -> str:
        """Name in tables: size, kind, and every field that differs from the default."""
        default = FramesCase(self.width, self.height)
        fields = ("format", "interpolation", "accuracy", "dtype", "layout")
        extra = [getattr(self, f) for f in fields if getattr(self, f) != getattr(default, f)]
        return " ".join([f"{self.width}x{self.height}", self.kind, *extra])

    def transform(self) -> Any:
        """As an mmcore.FrameTransform: the main job ("crop", "direct"), "up" to 448 x 448, or "full" size."""
        import mmcore

        options: dict[str, Any] = {
            "interpolation": self.interpolation,
            "accuracy": self.accuracy,
            "dtype": getattr(torch, self.dtype),
            "layout": mmcore.patches(14) if self.layout == "patches" else self.layout,
        }
        if self.dtype != "uint8":
            options |= {"mean": MEAN, "std": STD}
        if self.kind == "up":
            options["resize"] = (448, 448)
        elif self.kind != "full":
            job = Job.make(media.Clip(Path(), "", self.width, self.height), self.kind)
            options |= {"resize": job.resize, "crop": job.crop}
        return mmcore.FrameTransform(**options)


_VARIANTS: tuple[dict[str, str], ...] = (
    {"accuracy": "rgb8"},
    {"interpolation": "bicubic"},
    {"interpolation": "area"},
    {"interpolation": "nearest"},
    {"dtype": "uint8"},
    {"dtype": "float16"},
    {"dtype": "bfloat16"},
    {"layout": "NHWC"},
    {"layout": "patches"},
    {"format": "nv12"},
    {"format": "yuv420p10le"},
    {"format": "yuv444p"},
    {"format": "rgb24"},
)

CASES = (
    FramesCase(1920, 1080),
    FramesCase(1280, 720),
    FramesCase(340, 256),
    FramesCase(340, 256, "direct"),
    *(FramesCase(1280, 720, **v) for v in _VARIANTS),
    FramesCase(340, 256, "up"),
    FramesCase(1280, 720, "full", dtype="uint8"),
    FramesCase(1280, 720, "full", dtype="uint8", layout="NHWC"),
)
"""The main job at each size first (a quick run stops there), then one change at a time at 720p."""

_QUICK = 4


def _span(samples: int, source: int, resized: int, start: int, size: int, half_width: float) -> int:
    """Samples of a plane's axis that ``size`` output positions from ``start`` read.

    The axis has ``samples`` for ``source`` pixels (half as many where chroma is subsampled), which become
    ``resized``; ``half_width`` is the filter's, in its own units.
    """
    scale = samples / resized
    reach = 0.5 if source == resized else half_width * max(scale, 1.0)
    low = max(0, math.floor((start + 0.5) * scale - reach))
    high = min(samples, math.ceil((start + size - 0.5) * scale + reach))
    return high - low


def floor_bytes(case: FramesCase) -> tuple[int, int]:
    """Plane bytes that must be read, and output bytes that must be written, per frame."""
    from mmcore.ops.pixel_formats import PIXEL_FORMATS

    wanted = case.transform()
    g = wanted.geometry(case.height, case.width)
    layout = PIXEL_FORMATS[case.format]
    half_width = {"bilinear": 1.0, "bicubic": 2.0, "area": 0.5, "nearest": 0.5}[case.interpolation]
    read = 0
    for plane in range(layout.num_planes):
        rows, samples = layout.plane_shape(plane, case.height, case.width)
        step = next(c.step for c in layout.components if c.plane == plane)
        cols = samples // step
        need_rows = _span(rows, case.height, g.resize_h, g.top, g.out_h, half_width)
        need_cols = _span(cols, case.width, g.resize_w, g.left, g.out_w, half_width)
        if case.interpolation == "nearest":
            need_rows = min(need_rows, g.out_h)
        read += need_rows * need_cols * step * layout.bytes_per_sample
    return read, math.prod(wanted.output_shape(1, case.height, case.width)) * getattr(
        torch, case.dtype
    ).itemsize


def _frames(case: FramesCase) -> list[Any]:
    """Decoded frames of the case's size and format, together larger than the caches."""
    import av
    from av.video.reformatter import VideoReformatter

    from mmcore.ops.pixel_formats import PIXEL_FORMATS

    layout = PIXEL_FORMATS[case.format]
    size = sum(math.prod(layout.plane_shape(p, case.height, case.width)) for p in range(layout.num_planes))
    count = min(300, -(-_PLANE_BYTES // (size * layout.bytes_per_sample)))
    clip = media.clip("h264", case.width, case.height)
    reformatter, frames = VideoReformatter(), []
    with av.open(str(clip.path)) as container:
        for frame in container.decode(video=0):
            # Always a copy: a decoder's own buffers are a small ring that would stay in cache.
            copy = av.VideoFrame.from_ndarray(frame.to_ndarray(), format="yuv420p")
            frames.append(reformatter.reformat(copy, format=case.format))
            if len(frames) == count:
                break
    return frames


def prepare(case: FramesCase, most: int | None = None) -> tuple[Callable[[], Any], int]:
    """Make frames (at most ``most``) and output, and check; gives the run and its number of frames."""
    import mmcore

    frames, wanted = _frames(case)[:most], case.transform()
    _check(case, frames[:2], wanted)
    out = torch.zeros(wanted.output_shape(len(frames), case.height, case.width), dtype=wanted.dtype)
    return lambda: mmcore.frames_to_tensor(frames, wanted, out=out), len(frames)


def _check(case: FramesCase, frames: list[Any], wanted: Any) -> None:
    import mmcore

    got = mmcore.frames_to_tensor(frames, wanted).double()
    with mmcore.backend("reference"):
        expected = mmcore.frames_to_tensor(frames, wanted).double()
    # Levels to the result's units, plus the rounding of the dtype itself.
    unit = 1.0 if case.dtype == "uint8" else 1 / (255 * min(STD))
    most = _ACCURACY_LEVELS * unit
    if case.dtype == "uint8":
        most = 1.0  # a tie may round either way
    elif case.dtype != "float32":
        most += float(expected.abs().max()) * torch.finfo(wanted.dtype).eps
    worst = float((got - expected).abs().max())
    if not worst <= most:
        raise AssertionError(
            f"{case.name}: differs from the reference by {worst:.3g}, more than {most:.3g} allowed"
        )


def _serve() -> None:
    """Worker's side: prepare a case, then run it as asked."""
    timing.pin(1)
    measured: Callable[[], Any] | None = None

    def answer(message: dict[str, Any]) -> dict[str, Any]:
        nonlocal measured
        if "isa" in message:
            import mmcore

            return {"isa": mmcore.build_info()["isa"]}
        if "case" in message:
            measured = None  # free the last case's frames first
            measured, frames = prepare(FramesCase(**message["case"]))
            measured()
            return {"frames": frames}
        assert measured is not None
        wall, cpu = time.perf_counter(), time.process_time()
        measured()
        return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}

    answer_requests(answer)


def _others(case: FramesCase) -> dict[str, Callable[[], Any]]:
    """Torch on the same frames: with PyAV's conversion to RGB, and from RGB frames that are there already."""
    if case.interpolation not in ("bilinear", "bicubic") or case.kind == "full" or case.layout != "NCHW":
        return {}
    if case.dtype != "float32" or case.accuracy != "fused":
        return {}
    from av.video.reformatter import VideoReformatter

    frames, wanted = _frames(case)[:32], case.transform()
    g = wanted.geometry(case.height, case.width)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) * 255 for v in (MEAN, STD))
    out = torch.zeros(len(frames), 3, g.out_h, g.out_w)
    reformatter = VideoReformatter()

    def rgb(frame: Any) -> torch.Tensor:
        plane = reformatter.reformat(frame, format="rgb24", threads=1).planes[0]
        data = torch.frombuffer(plane, dtype=torch.uint8)
        return data.as_strided((case.height, case.width, 3), (plane.line_size, 3, 1)).permute(2, 0, 1)[None]

    def finish(i: int, picture: torch.Tensor) -> None:
        if (g.resize_h, g.resize_w) != (case.height, case.width):
            picture = F.interpolate(
                picture, (g.resize_h, g.resize_w), mode=case.interpolation, antialias=True
            )
        box = picture[..., g.top : g.top + g.out_h, g.left : g.left + g.out_w].contiguous()
        torch.sub(box, mean, out=out[i : i + 1]).div_(std)

    pictures = [rgb(f).clone(memory_format=torch.channels_last) for f in frames]

    def from_rgb() -> int:
        for i, picture in enumerate(pictures):
            finish(i, picture)
        return len(frames)

    def from_planes() -> int:
        for i, frame in enumerate(frames):
            finish(i, rgb(frame))
        return len(frames)

    return {"PyAV rgb24 + torch": from_planes, "torch from RGB": from_rgb}


def run(
    *,
    quick: bool = False,
    rounds: int | None = None,
    only: str = "",
    clock: str = "wall",
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure every case with every instruction set that this CPU has.

    Returns
    -------
    dict
        ``rows``: per case the floor and µs per frame (median and quartiles) per ISA and for torch.
    """
    rounds = rounds or (7 if quick else 15)
    cases = [c for c in (CASES[:_QUICK] if quick else CASES) if only in c.name]
    if not cases:
        raise ValueError(f"only: no case's name contains {only!r}")
    for width, height in sorted({(c.width, c.height) for c in cases}):
        media.clip("h264", width, height)
    wanted = ("base", "neon") if platform.machine() in ("aarch64", "arm64") else ("base", "avx2", "avx512")
    workers, absent = [], {}
    copy = timing.Copy()
    try:
        for isa in wanted:
            worker = Worker("bench.bench_frames", isa, env={"MMCORE_ISA": isa})
            answer = worker.ask(isa=True)
            if answer.get("isa") == isa:
                workers.append(worker)
            else:
                absent[isa] = answer.get("error") or "this CPU does not have it"
                worker.close()
        rows = []
        for case in cases:
            progress(f"{case.name}: {rounds} rounds")
            rows.append(_row(case, workers, rounds, clock, copy))
    finally:
        for worker in workers:
            worker.close()
    return {
        "suite": "frames",
        "clock": clock,
        "rounds": rounds,
        "copy_bandwidth": timing.quartiles([r["copy_bandwidth"] for r in rows])[1],
        "isas": [w.label for w in workers],
        "others": ["PyAV rgb24 + torch", "torch from RGB"],
        "absent": absent,
        "rows": rows,
    }


def _row(
    case: FramesCase, workers: list[Worker], rounds: int, clock: str, copy: timing.Copy
) -> dict[str, Any]:
    turns: dict[str, Callable[[], tuple[float, int]]] = {}

    def ask(worker: Worker, frames: int) -> tuple[float, int]:
        return float(worker.ask(run=True)[clock]), frames

    for worker in workers:
        answer = worker.ask(case=asdict(case))
        if "error" in answer:
            raise RuntimeError(f"{worker.label}: {answer['error']}")
        turns[worker.label] = functools.partial(ask, worker, answer["frames"])
    read = timing.CLOCKS[clock]

    def here(job: Callable[[], int]) -> tuple[float, int]:
        start = read()
        frames = job()
        return read() - start, frames

    others = _others(case)
    for name, job in others.items():
        job()
        turns[name] = functools.partial(here, job)
    turns["copy"] = functools.partial(here, copy)
    micros: dict[str, list[float]] = {name: [] for name in turns}
    names = list(turns)
    for i in range(rounds):
        turn = i % len(names)
        for name in names[turn:] + names[:turn]:
            seconds, frames = turns[name]()
            micros[name].append(seconds / frames * 1e6)
    read_bytes, written = floor_bytes(case)
    bandwidth = copy.num_bytes / (timing.quartiles(micros.pop("copy"))[1] * 1e-6)
    entries = {}
    for name, values in micros.items():
        low, middle, high = timing.quartiles(values)
        entries[name] = {"us_per_frame": middle, "lower_quartile": low, "upper_quartile": high}
    return {
        "case": case.name,
        "read_bytes": read_bytes,
        "written_bytes": written,
        "copy_bandwidth": bandwidth,
        "floor_us": (read_bytes + written) / bandwidth * 1e6,
        "isas": {w.label: entries[w.label] for w in workers},
        "others": {name: entries[name] for name in others},
    }


if __name__ == "__main__":
    _serve()
