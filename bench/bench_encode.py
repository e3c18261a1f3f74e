"""``mmcore.encode`` beside PyAV and TorchCodec: frames in memory become an H.264 file.

Everybody uses x264's preset "ultrafast" at CRF 23 in 4:2:0 on as many threads, and writes an MP4 file. What
differs is the way from the tensor to the planes, so that is timed alone too, in the same rounds; *planes
ready* is PyAV encoding pictures that are 4:2:0 already: what any way takes at least. Files are read back
before anything is timed: they hold as many frames, as near to the original, in about as many bytes.
"""

# mypy: disable-error-code="import-not-found,import-untyped"
from __future__ import annotations

import functools
import importlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import torch
from torch import Tensor

import mmcore
from bench import media, timing

__all__ = ["CASES", "COMPETITORS", "OURS", "PLANES", "EncodeCase", "Prepared", "measure", "prepare", "run"]

OURS, PLANES, PYAV, TORCHCODEC = "mmcore", "planes ready", "PyAV", "TorchCodec"
COMPETITORS = (PYAV, TORCHCODEC, PLANES, OURS)

_FPS, _PRESET, _CRF = 30, "ultrafast", 23
_CHUNK = 8  # frames that mmcore's encoder converts at a time
_BT709 = 1  # of ITU-T H.273
_WORSE = 0.5  # decibels that a file may be worse than mmcore's
_BIGGER = 1.1


@dataclass(frozen=True)
class EncodeCase:
    """One row of the suite."""

    name: str
    width: int
    height: int
    frames: int
    dtype: torch.dtype
    layout: str


CASES = (
    EncodeCase("340x256, uint8, NHWC", 340, 256, 60, torch.uint8, "NHWC"),
    EncodeCase("340x256, uint8, NCHW", 340, 256, 60, torch.uint8, "NCHW"),
    EncodeCase("340x256, float32, NCHW", 340, 256, 60, torch.float32, "NCHW"),
    EncodeCase("720p, uint8, NHWC", 1280, 720, 24, torch.uint8, "NHWC"),
    EncodeCase("720p, uint8, NCHW", 1280, 720, 24, torch.uint8, "NCHW"),
    EncodeCase("720p, float32, NCHW", 1280, 720, 24, torch.float32, "NCHW"),
    EncodeCase("720p, bfloat16, NCHW", 1280, 720, 24, torch.bfloat16, "NCHW"),
)

_QUICK = (CASES[2].name, CASES[3].name)


def frames_of(case: EncodeCase) -> tuple[Tensor, Tensor]:
    """What is written, and the same as bytes (T, 3, H, W)."""
    clip = media.clip("h264", case.width, case.height)
    with mmcore.VideoDecoder(clip.path) as decoder:
        levels = decoder.get_frames_in_range(0, case.frames).data.clone()
    wanted = levels if case.dtype == torch.uint8 else (levels / 255).to(case.dtype)
    if case.layout == "NHWC":
        wanted = wanted.permute(0, 2, 3, 1).contiguous()
    return wanted, levels


# ---- the ways


def _ours(case: EncodeCase, x: Tensor, path: Path, threads: int) -> None:
    mmcore.encode(path, frames=x, fps=_FPS, layout=case.layout, preset=_PRESET, crf=_CRF)


def _our_planes(case: EncodeCase, x: Tensor) -> None:
    for part in torch.split(x, _CHUNK):
        mmcore.tensor_to_planes(part, layout=case.layout)


def _pyav(case: EncodeCase, x: Tensor, path: Path, threads: int) -> None:
    _encode(case, path, threads, _pyav_planes(case, x, threads))


def _pyav_planes(case: EncodeCase, x: Tensor, threads: int) -> Iterator[Any]:
    """Pictures in 4:2:0: bytes without a copy where they lie as FFmpeg has them, else planes of colours."""
    from av.video.reformatter import Colorspace, VideoReformatter

    reformatter = VideoReformatter()
    levels = torch.empty(3, case.height, case.width)
    for picture in x:
        if case.dtype == torch.uint8 and case.layout == "NHWC":
            frame = av.VideoFrame.from_numpy_buffer(picture.numpy(), format="rgb24")
        else:
            picture = picture.permute(2, 0, 1) if case.layout == "NHWC" else picture
            if case.dtype != torch.uint8:
                picture = torch.mul(picture, 255, out=levels).round_().clamp_(0, 255)
            frame = av.VideoFrame(case.width, case.height, "gbrp")
            for plane, c in zip(frame.planes, (1, 2, 0), strict=True):
                target = torch.frombuffer(plane, dtype=torch.uint8)
                rows = target.as_strided((case.height, case.width), (plane.line_size, 1))
                rows.copy_(picture[c])
        yield reformatter.reformat(frame, format="yuv420p", dst_colorspace=Colorspace.ITU709, threads=threads)


def _encode(case: EncodeCase, path: Path, threads: int, pictures: Iterable[Any]) -> None:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=_FPS)
        stream.width, stream.height, stream.pix_fmt = case.width, case.height, "yuv420p"
        context = stream.codec_context
        context.thread_count = threads
        context.options = {"preset": _PRESET, "crf": str(_CRF)}
        context.color_primaries = context.color_trc = context.colorspace = context.color_range = _BT709
        for i, picture in enumerate(pictures):
            picture.pts, picture.time_base = i, Fraction(1, _FPS)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def _torchcodec(case: EncodeCase, x: Tensor, path: Path, threads: int) -> None:
    from torchcodec.encoders import VideoEncoder

    encoder = VideoEncoder(_torchcodec_bytes(case, x), frame_rate=_FPS)
    encoder.to_file(
        path,
        codec="libx264",
        pixel_format="yuv420p",
        crf=_CRF,
        preset=_PRESET,
        extra_options={"threads": str(threads)},
    )


def _torchcodec_bytes(case: EncodeCase, x: Tensor) -> Tensor:
    if case.dtype != torch.uint8:
        levels = torch.empty(x.shape[1:])
        bytes_ = torch.empty(x.shape, dtype=torch.uint8)
        for target, picture in zip(bytes_, x, strict=True):
            target.copy_(torch.mul(picture, 255, out=levels).round_().clamp_(0, 255))
        x = bytes_
    return x.permute(0, 3, 1, 2) if case.layout == "NHWC" else x


_WAYS: dict[str, Callable[[EncodeCase, Tensor, Path, int], None]] = {
    PYAV: _pyav,
    TORCHCODEC: _torchcodec,
    OURS: _ours,
}


# ---- checking and measuring


@dataclass
class Prepared:
    """Competitors of a case, checked."""

    runs: dict[str, Callable[[], Any]] = field(default_factory=dict)
    conversions: dict[str, Callable[[], Any]] = field(default_factory=dict)
    """From the tensor to planes alone, of those of whom it can be had."""
    files: dict[str, dict[str, float]] = field(default_factory=dict)
    """"bytes", and "decibels": PSNR of the pictures read back."""
    absent: dict[str, str] = field(default_factory=dict)


def prepare(case: EncodeCase, names: Sequence[str], folder: Path, threads: int = 1) -> Prepared:
    """Make and check the competitors named; a peer that does not import or writes another file is absent."""
    x, levels = frames_of(case)
    prepared = Prepared()
    for name in (OURS, *(n for n in names if n != OURS)):
        path = folder / f"{name}.mp4".replace(" ", "_")
        if name == PLANES:
            ready = list(_pyav_planes(case, x, threads))
            call = functools.partial(_encode, case, path, threads, ready)
        else:
            call = functools.partial(_WAYS[name], case, x, path, threads)
        try:
            if name == TORCHCODEC:
                importlib.import_module("torchcodec")
            call()
            prepared.files[name] = _file(path, levels)
            _agree(name, prepared.files)
        except Exception as e:  # whatever a library raises, the others are compared
            if name == OURS:
                raise
            prepared.absent[name] = f"{type(e).__name__}: {e}".partition("\n")[0]
            continue
        if name in names:
            prepared.runs[name] = call
    if OURS in prepared.runs:
        prepared.conversions[OURS] = functools.partial(_our_planes, case, x)
    if PYAV in prepared.runs:
        prepared.conversions[PYAV] = lambda: sum(1 for _ in _pyav_planes(case, x, threads))
    return prepared


def _file(path: Path, levels: Tensor) -> dict[str, float]:
    with mmcore.VideoDecoder(path) as decoder:
        if len(decoder) != len(levels):
            raise AssertionError(f"the file holds {len(decoder)} frames, expected {len(levels)}")
        error = (decoder.get_frames_in_range(0, len(decoder)).data.float() - levels).square().mean()
    return {"bytes": path.stat().st_size, "decibels": float(10 * torch.log10(255**2 / error))}


def _agree(name: str, files: dict[str, dict[str, float]]) -> None:
    ours, other = files[OURS], files[name]
    if not other["decibels"] > ours["decibels"] - _WORSE:
        raise AssertionError(f"PSNR is {other['decibels']:.2f} dB, mmcore's {ours['decibels']:.2f}")
    if not 1 / _BIGGER < other["bytes"] / ours["bytes"] < _BIGGER:
        raise AssertionError(f"the file has {other['bytes']} bytes, mmcore's {ours['bytes']}")


def run(
    *,
    quick: bool = False,
    rounds: int | None = None,
    only: str = "",
    threads: int = 1,
    clock: str = "wall",
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Check, then measure, every competitor on every case.

    Returns
    -------
    dict
        ``rows``: per case each competitor's milliseconds for a frame, those of the conversion alone, its
        share of the whole, how many times ours its time is, and the file that it writes.
    """
    rounds = rounds or (5 if quick else 11)
    cases = [c for c in CASES if only in c.name and (not quick or c.name in _QUICK)]
    if not cases:
        raise ValueError(f"only: no case's name contains {only!r}")
    rows: list[dict[str, Any]] = []
    absent: dict[str, str] = {}
    for case in cases:
        row, missing = measure(case, rounds, threads, clock, progress)
        absent |= missing
        rows.append(row)
    return {
        "suite": "encode",
        "threads": threads,
        "clock": clock,
        "rounds": rounds,
        "absent": absent,
        "rows": rows,
    }


def measure(
    case: EncodeCase, rounds: int, threads: int, clock: str, progress: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Check a case and time it: its row of the record, and who is absent for which reason."""
    progress(f"{case.name}: checking")
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(case, COMPETITORS, Path(folder), threads)
        turns = {(name, "whole"): call for name, call in prepared.runs.items()}
        turns |= {(name, "conversion"): call for name, call in prepared.conversions.items()}
        for call in turns.values():
            call()
        progress(f"{case.name}: {rounds} rounds")
        samples = timing.interleave(turns, rounds)
    ours = samples[OURS, "whole"]
    entries: dict[str, dict[str, Any]] = {}
    for (name, part), measured in samples.items():
        ms = timing.quartiles([1e3 * t / case.frames for t in measured.of(clock)])
        if part == "whole":
            entries[name] = {
                "ms": ms,
                "over_ours": timing.ratios(measured, ours, clock),
                "file": prepared.files[name],
            }
        else:
            entries[name]["conversion_ms"] = ms
            entries[name]["conversion_share"] = timing.ratios(measured, samples[name, "whole"], clock)
    peers = [name for name in entries if name not in (OURS, PLANES)]
    wall, cpu = (sum(sum(getattr(s, c)) for s in samples.values()) for c in ("wall", "cpu"))
    row = {
        "case": case.name,
        "frames": case.frames,
        "competitors": entries,
        "best_peer": min(peers, key=lambda n: entries[n]["over_ours"][1], default=None),
        "wall_over_cpu": wall / cpu,
    }
    return row, {f"{name}, {case.name}": reason for name, reason in prepared.absent.items()}
