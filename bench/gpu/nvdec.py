"""NVDEC through PyAV: is it there, are its pictures those of the CPU to the bit, and how many come a second.

In a dry run a decoder of the CPU stands in for it, opened as it would be.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import random
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import mmcore
from bench import media
from bench.gpu.measure import Bench, NotRun

__all__ = ["run"]


class _Kind(NamedTuple):
    """A stream that is made here."""

    name: str
    encoder: str
    pixel_format: str = "yuv420p"
    height: int = 360
    width: int = 640
    options: tuple[tuple[str, str], ...] = ()


_X265 = (("x265-params", "log-level=none"),)
_FAST = (("deadline", "realtime"), ("cpu-used", "8"))
_KINDS = (
    _Kind("h264", "libx264", options=(("bf", "3"),)),
    _Kind("h264, odd size", "libx264", height=358, width=630),  # 368x640 are coded
    _Kind("h264, interlaced", "libx264", options=(("x264-params", "tff=1"),)),
    _Kind("h264, 10 bits", "libx264", "yuv420p10le"),
    _Kind("hevc", "libx265", options=_X265),
    _Kind("hevc, 10 bits", "libx265", "yuv420p10le", options=_X265),
    _Kind("hevc, 4:4:4", "libx265", "yuv444p", options=_X265),
    _Kind("vp8", "libvpx", options=_FAST),
    _Kind("vp9", "libvpx-vp9", options=_FAST),
    _Kind("av1", "libsvtav1", options=(("preset", "12"),)),
)
_FRAMES = 30
_THREADS = (1, 2, 4, 8)
_SPEED = (("h264", 1920, 1080), ("hevc", 1920, 1080))
_SECONDS = 16  # of the clip: 8 groups of 60 frames
_SMALL = mmcore.FrameTransform(resize=(224, 224), dtype=torch.float16)


def run(bench: Bench) -> None:
    """Compare every kind of stream with the CPU's, then time decoding."""
    if importlib.util.find_spec("av") is None:
        raise NotRun("PyAV is not installed")
    from mmcore.decoding.nvdec_choice import nvdec_facts, why_not_here

    bench.record["facts"] = nvdec_facts()
    reason = None if bench.dry else why_not_here()
    if reason is not None:
        raise NotRun(reason)
    bench.record["table"] = []
    bench.record["right"] = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in _KINDS[:1] if bench.dry else _KINDS:
            with _checked(bench, kind.name):
                _compare(bench, kind, Path(folder))
        with _checked(bench, "order"):
            _check_order(bench, _KINDS[0], Path(folder))
    bench.record["table"].append(f"as the CPU's: {', '.join(bench.record['right']) or 'none'}")
    if bench.dry:  # the goal is not reached by it
        del bench.record["wrong"], bench.record["right"]
        bench.record["not_run"] = {"NVDEC": "a decoder of the CPU stood in for it"}
    for codec, width, height in (("h264", 64, 48),) if bench.dry else _SPEED:
        if bench.remaining() < 12 and not bench.dry:
            bench.record.setdefault("left_out", []).append(f"speed of {codec}")
            continue
        with bench.attempt(f"speed of {codec}"):
            _time(bench, codec, width, height)


@contextlib.contextmanager
def _checked(bench: Bench, name: str) -> Iterator[None]:
    """Note what was right, and count what was not."""
    record = bench.record
    record.setdefault("wrong", 0)
    before = len(record.get("errors", {}))
    with bench.attempt(name):
        try:
            yield
            record["right"].append(name)
        except _Refused as refused:
            record.setdefault("not_run", {})[name] = str(refused)
    record["wrong"] += len(record.get("errors", {})) - before
    bench.save()


class _Refused(Exception):
    """The GPU does not decode such streams."""


# ---- streams


def _write(kind: _Kind, path: Path, frames: int, small: bool) -> Path:
    """Encode a picture that moves, with noise that moves otherwise."""
    import av

    height, width = (48, 64) if small else (kind.height, kind.width)
    rng = torch.Generator().manual_seed(1)
    canvas = torch.nn.functional.interpolate(
        torch.rand(1, 3, height // 4 + 8, width // 4 + 8, generator=rng), scale_factor=8.0, mode="bicubic"
    )[0]
    noise = torch.rand(3, height + 64, width + 64, generator=rng)
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream(kind.encoder, rate=30, options=dict(kind.options))
        stream.height, stream.width, stream.pix_fmt = height, width, kind.pixel_format
        stream.codec_context.gop_size = 12
        for i in range(frames):
            x, y = 3 * i % 32, 2 * i % 32
            still = canvas[:, y : y + height, x : x + width]
            level = 0.8 * still + 0.2 * noise[:, x : x + height, y : y + width]
            rgb = (255 * level.clamp(0, 1)).byte().permute(1, 2, 0).contiguous().numpy()
            frame = av.VideoFrame.from_ndarray(rgb, "rgb24").reformat(format=kind.pixel_format)
            frame.pts = i
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


class _StandIn:
    """What a dry run decodes with."""

    engines = 1

    def open(self, stream: Any) -> Any:
        from mmcore.decoding.nvdec import open_codec

        return open_codec(stream, None)


def _open(bench: Bench, path: Path, **how: Any) -> mmcore.VideoDecoder:
    """A decoder on NVDEC.

    Raises
    ------
    _Refused
        If it is not used, with what mmcore says of that.
    """
    if bench.dry:
        decoder = mmcore.VideoDecoder(path, **how)
        assert decoder.metadata.num_frames
        decoder._reader.nvdec = _StandIn()  # type: ignore[assignment]
        return decoder
    from mmcore.decoding import nvdec_choice

    nvdec_choice._warned.clear()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        decoder = mmcore.VideoDecoder(path, device=bench.device, decoder="nvdec", **how)
    if decoder.decoder != "nvdec":
        raise _Refused(str(said[-1].message) if said else "it fell back without a word")
    return decoder


# ---- the pictures


def _compare(bench: Bench, kind: _Kind, folder: Path) -> None:
    """Every plane of every frame, then tensors of frames in any order."""
    path = _write(kind, folder / f"{kind.encoder}.mkv", _FRAMES, bench.dry)
    count = _FRAMES
    with _open(bench, path, num_threads=1) as decoder, mmcore.VideoDecoder(path, num_threads=1) as cpu:
        if len(cpu) != count:
            raise AssertionError(f"{len(cpu)} frames of {count}")
        pairs = zip(decoder._reader.read(range(count)), cpu._reader.read(range(count)), strict=True)
        for (number, got), (_, expected) in pairs:
            for name, frame in (("NVDEC", got), ("the CPU", expected)):
                if isinstance(frame, mmcore.DecodeError):
                    raise AssertionError(f"{name}: {frame}")
            _compare_planes(number, got, expected)
    plain: dict[str, Any] = {} if bench.dry else {"device": bench.device, "convert_on": "cuda"}
    with (
        _open(bench, path, transform=_SMALL) as decoder,
        mmcore.VideoDecoder(path, transform=_SMALL, **plain) as cpu,
    ):
        whole = decoder[:]
        worst = float((whole.float() - cpu[:].float()).abs().max())
        if not worst <= 2e-3:  # half precision; NV12 and YUV420P are read in another order
            raise AssertionError(f"a value is off by {worst:.2g} from that of the CPU's frames")
        numbers = random.Random(3).sample(range(count), count // 2)
        for chosen in (numbers, sorted(numbers), [count - 1, 0], list(range(5, 9))):
            if not torch.equal(decoder.get_frames_at(chosen).data, whole[chosen]):
                raise AssertionError(f"frames {chosen} are others than in one go")


def _compare_planes(number: int, got: Any, expected: Any) -> None:
    from mmcore.ops.surfaces import held_format, is_surface, surface_planes

    if is_surface(got):
        held = held_format(got)
        planes = [plane[0].cpu().view(torch.uint8) for plane in surface_planes(got).data]
    else:
        held = got.format.name
        planes = [_bytes(plane) for plane in got.planes]
    same = expected.reformat(format=held)
    for p, (a, plane) in enumerate(zip(planes, same.planes, strict=True)):
        b = _bytes(plane)[: a.shape[0], : a.shape[1]]
        if a.shape[0] > b.shape[0] or not torch.equal(a[:, : b.shape[1]], b):
            wrong = int((a[: b.shape[0], : b.shape[1]] != b).sum())
            raise AssertionError(f"frame {number}, plane {p} of {held}: {wrong} of {b.numel()} bytes differ")


def _bytes(plane: Any) -> Tensor:
    return torch.frombuffer(bytearray(plane), dtype=torch.uint8).view(-1, plane.line_size)[: plane.height]


def _check_order(bench: Bench, kind: _Kind, folder: Path) -> None:
    """On a stream that is late, after a close, and in a batch of more frames than any pool holds."""
    path = _write(kind, folder / "long.mkv", 12 if bench.dry else 300, bench.dry)
    with _open(bench, path, transform=_SMALL) as decoder:
        expected = decoder[:]
        bench.synchronize()
        for name, late in () if bench.dry else (("side", torch.cuda.Stream()), ("current", None)):
            with torch.cuda.stream(late):
                torch.cuda._sleep(1 << 28)  # an eighth of a second or so
                found = decoder[:]
            bench.synchronize()
            if not torch.equal(found, expected):
                raise AssertionError(f"other pictures on the {name} stream, when it is late")
    gc.collect()
    if float(torch.ones(1 << 20, device=bench.device).sum()) != 1 << 20:
        raise AssertionError("torch does not compute after the decoder was closed")
    with _open(bench, path, transform=_SMALL) as decoder:
        if not torch.equal(decoder[:], expected):
            raise AssertionError("other pictures after another decoder was closed")


# ---- the speed


def _time(bench: Bench, codec: str, width: int, height: int) -> None:
    """Frames a second to (T, 3, 224, 224) float16 on the device, opening included."""
    seconds = 2 if bench.dry else _SECONDS
    path = media.long_clip(seconds / 3600, codec, width, height).path
    device = bench.device

    def on_nvdec(threads: int) -> int:
        with _open(bench, path, transform=_SMALL, num_threads=threads) as decoder:
            return len(decoder[:])

    def on_cpu(threads: int) -> int:
        with mmcore.VideoDecoder(path, transform=_SMALL, num_threads=threads, device=device) as decoder:
            return len(decoder[:])

    found: dict[str, float] = {}
    for name, read in (("NVDEC", on_nvdec), ("CPU", on_cpu)):
        for threads in _THREADS[:1] if bench.dry else _THREADS if name == "NVDEC" else _THREADS[-1:]:
            if bench.remaining() < 5 and not bench.dry:
                break
            read(threads)
            best = 0.0
            for _ in range(1 if bench.dry else 2):
                bench.synchronize()
                start = time.perf_counter()
                count = read(threads)
                bench.synchronize()
                best = max(best, count / (time.perf_counter() - start))
            found[f"{name}, {threads}"] = best
    bench.record.setdefault("frames_per_second", {})[f"{codec} {width}x{height}"] = found
    cells = ", ".join(f"{name} {fps:.0f}" for name, fps in found.items())
    bench.record["table"].append(f"{codec} {width}x{height}, frames a second by threads: {cells}")
