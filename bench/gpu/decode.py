"""Files to tensors on the GPU: CPU decode, and the conversion on either side of the bus, beside others.

A clip that is rendered here becomes normalised float16 (T, 3, 224, 224) on the device, opening included.
*decode alone* is PyAV decoding and dropping every frame, which nobody is faster than. *PyAV, RGB* converts to
RGB bytes on the CPU, copies them through page-locked memory, and resizes and normalises in torch on the GPU;
*TorchCodec* likewise with its own decoder, where it is installed, and *TorchCodec CUDA* decodes on the GPU.
Everybody has the same number of threads.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import mmcore
from bench import media
from bench.gpu.measure import Bench, Job, NotRun, relative_error

__all__ = ["run"]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SIZE = (224, 224)
_CLIPS = ((1920, 1080, 48), (340, 256, 256))
_THREADS = (1, 8)
_CHUNK = 16  # frames that the peers resize at once
_NEAR = {"mmcore": 5e-3, "peer": 0.2}
"""Largest differences, relative to mmcore's on the CPU. FFmpeg's RGB replicates chroma and is rounded."""

Way = Callable[[], Tensor]


def run(bench: Bench) -> None:
    """Time every way of every clip."""
    if importlib.util.find_spec("av") is None:
        raise NotRun("PyAV is not installed")
    bench.record["rows"] = {}
    bench.record["table"] = []
    clips = ((64, 48, 8),) if bench.dry else _CLIPS
    for width, height, frames in clips:
        path = media.clip("h264", width, height, frames=frames).path
        for threads in _THREADS:
            name = f"{width}x{height}, {frames} frames, {threads} thread{'s' if threads > 1 else ''}"
            if threads > 1 and (bench.dry or (os.cpu_count() or 1) < threads):
                continue
            if bench.remaining() < 10 and not bench.dry:
                bench.record.setdefault("left_out", []).append(name)
                continue
            with bench.attempt(name):
                row = bench.record["rows"][name] = _time(bench, path, frames, threads)
                cells = (f"{who} {frames / t['ms'] * 1e3:.0f}" for who, t in row["times"].items())
                bench.record["table"].append(f"{name}, frames a second: " + ", ".join(cells))
    _compare(bench.record)


def _compare(record: dict[str, Any]) -> None:
    """The least lead over a peer in the larger pictures, where the conversion weighs."""
    first = next(iter(record["rows"]), "").partition(",")[0]
    for key, peers in (("over_torchcodec", ["TorchCodec"]), ("over_pyav", ["PyAV, RGB"])):
        leads = []
        for name, row in record["rows"].items():
            times = {who: t["ms"] for who, t in row["times"].items()}
            if name.startswith(first) and "mmcore" in times:
                leads += [times[peer] / times["mmcore"] for peer in peers if peer in times]
        if leads:
            record[key] = min(leads)
        else:
            reasons = (row["absent"].get(peer) for row in record["rows"].values() for peer in peers)
            record.setdefault("not_run", {})[peers[0]] = next((r for r in reasons if r), "no row of it")


def _time(bench: Bench, path: Path, frames: int, threads: int) -> dict[str, Any]:
    ways = _ours(bench, path, threads)
    ways |= {
        "PyAV, RGB": lambda: _pyav(bench, path, frames, threads),
        "TorchCodec": lambda: _torchcodec(bench, path, frames, threads, "cpu"),
        "TorchCodec CUDA": lambda: _torchcodec(bench, path, frames, threads, "cuda"),
    }
    expected = ways["mmcore on the CPU, then copied"]().float()
    row: dict[str, Any] = {"absent": {}, "errors": {}}
    jobs = {"decode alone": Job(lambda: _decode_alone(path, threads))}
    for name, way in ways.items():
        try:
            found = way()
            if found.device.type != bench.device.type:
                raise AssertionError(f"the result is on {found.device}")
            error = relative_error(found.float(), expected)
            row["errors"][name] = error
            if not error <= _NEAR["mmcore" if name.startswith("mmcore") else "peer"]:
                raise AssertionError(f"off by {error:.2g} of its norm from mmcore's on the CPU")
            jobs[name] = Job(way)
        except ImportError as error_of_import:
            row["absent"][name] = str(error_of_import)[:200]
        except Exception as error_of_peer:
            if name.startswith("mmcore"):
                raise
            row["absent"][name] = f"{type(error_of_peer).__name__}: {error_of_peer}"[:300]
    row["times"] = bench.interleave(jobs, 4.0, (5, 9))
    return row


# ---- mmcore


def _ours(bench: Bench, path: Path, threads: int) -> dict[str, Way]:
    transform = mmcore.FrameTransform(resize=_SIZE, mean=_MEAN, std=_STD, dtype=torch.float16)

    def read(device: str, **how: Any) -> Tensor:
        how |= {"transform": transform, "num_threads": threads, "device": device}
        with mmcore.VideoDecoder(path, **how) as decoder:
            return decoder[:].to(bench.device)

    found: dict[str, Way] = {"mmcore on the CPU, then copied": lambda: read("cpu")}
    if bench.dry:
        return {"mmcore": lambda: read("cpu"), **found}
    return {
        "mmcore": lambda: read("cuda"),
        "mmcore, planes over the bus": lambda: read("cuda", convert_on="cuda"),
        "mmcore, tensors over the bus": lambda: read("cuda", convert_on="cpu"),
        **found,
    }


# ---- others


def _container(path: Path, threads: int) -> Any:
    import av

    container = av.open(str(path))
    stream = container.streams.video[0]
    stream.thread_type = "AUTO" if threads > 1 else "NONE"
    stream.codec_context.thread_count = threads
    return container


def _decode_alone(path: Path, threads: int) -> int:
    with _container(path, threads) as container:
        return sum(1 for _ in container.decode(video=0))


@functools.lru_cache(maxsize=1)
def _pinned(frames: int, height: int, width: int, pin: bool) -> Tensor:
    return torch.empty(frames, height, width, 3, dtype=torch.uint8, pin_memory=pin)


def _normalised(rgb: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(T, 3, H, W) bytes, as the models take them."""
    x = F.interpolate(rgb.float(), _SIZE, mode="bilinear", antialias=True)
    return ((x.clamp(0, 255) / 255 - mean) / std).half()


def _constants(bench: Bench) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(c, device=bench.device)[:, None, None] for c in (_MEAN, _STD))
    return mean, std


def _pyav(bench: Bench, path: Path, frames: int, threads: int) -> Tensor:
    parts, constants = [], _constants(bench)
    with _container(path, threads) as container:
        stream = container.streams.video[0]
        memory = _pinned(frames, stream.height, stream.width, not bench.dry)
        bench.synchronize()  # the copies of the call before have left it
        start = 0
        for i, frame in enumerate(container.decode(stream)):
            memory[i].numpy()[...] = frame.to_ndarray(format="rgb24")
            if i + 1 - start == _CHUNK or i + 1 == frames:
                chunk = memory[start : i + 1].to(bench.device, non_blocking=True)
                parts.append(_normalised(chunk.permute(0, 3, 1, 2), *constants))
                start = i + 1
    return torch.cat(parts)


def _torchcodec(bench: Bench, path: Path, frames: int, threads: int, device: str) -> Tensor:
    from torchcodec.decoders import VideoDecoder

    if bench.dry and device == "cuda":
        raise ImportError("no GPU in a dry run")
    how = {"num_ffmpeg_threads": threads} if device == "cpu" else {"device": device}
    decoder = VideoDecoder(str(path), seek_mode="approximate", **how)
    constants = _constants(bench)
    parts = []
    for start in range(0, frames, _CHUNK):
        rgb = decoder.get_frames_in_range(start, min(start + _CHUNK, frames)).data.to(bench.device)
        parts.append(_normalised(rgb, *constants))
    return torch.cat(parts)
