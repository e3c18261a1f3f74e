"""The competitors: each decodes a whole clip into one normalised float32 tensor (T, 3, 224, 224).

``sparse_peers.py`` holds those that take single frames.

Every one runs at the best settings found for it: one decoder thread unless asked otherwise, RGB frames handed
over without a copy, torch's uint8 channels-last antialiased kernel (2.5 to 8 times faster than the other
layouts and float), approximate seek mode in TorchCodec (a dense read needs no scan), chunks small enough to
stay in cache. A competitor that cannot run says why; none is left out silently.
"""

# mypy: disable-error-code="import-not-found,import-untyped"
from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from bench.cases import MEAN, STD, Job

__all__ = [
    "CHROMA",
    "PEERS",
    "Competitor",
    "Run",
    "Sink",
    "decode_raw",
    "decord_reader",
    "frame_count",
    "mmcore_competitor",
    "rgb_view",
    "torchcodec_transforms",
    "transform",
]

Run = Callable[[torch.Tensor | None], torch.Tensor]

CHUNK = 8  # frames fetched at a time from batch APIs


@dataclass(frozen=True)
class Competitor:
    """One way to do the job.

    Attributes
    ----------
    name : str
        Name in tables.
    prepare : callable
        ``prepare(job, threads)`` gives ``run(out) -> Tensor``: opens, decodes and closes the clip; ``out`` is
        written when given, else the result is freshly allocated. 0 threads: as many as the library likes.
    needs : str
        Module that must import, with what to install if it does not.
    mean_levels : float
        Largest mean absolute difference from mmcore, in levels (0-255) over the worst frame, that still
        counts as the same job. Peers replicate chroma where mmcore interpolates it, and round to 8 bits once
        or twice.
    why : str
        What explains that bound.
    """

    name: str
    prepare: Callable[[Job, int], Run]
    needs: str
    mean_levels: float
    why: str

    def missing(self) -> str | None:
        """None if it can run here, else the reason."""
        try:
            importlib.import_module(self.needs)
        except Exception as e:  # a native library that fails to load raises anything
            return f"{type(e).__name__}: {str(e).strip().splitlines()[0] if str(e).strip() else self.needs}"
        return None


def decode_raw(job: Job, threads: int) -> int:
    """Decode every frame with PyAV and drop it: the yardstick. Returns the number of frames."""
    return sum(1 for _ in _pyav_frames(job, threads))


def _pyav_frames(job: Job, threads: int) -> Iterator[Any]:
    import av

    with av.open(str(job.clip.path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = threads
        if threads != 1:
            stream.thread_type = "FRAME"
        yield from container.decode(stream)


class Sink:
    """Collects RGB bytes: resize (torch, uint8, antialiased), crop, normalise, at ``index`` of the result."""

    def __init__(self, job: Job, frames: int, out: torch.Tensor | None, resize: bool) -> None:
        self.out = torch.empty(frames, 3, job.box[2], job.box[3]) if out is None else out
        self.resize = job.resize if resize else None
        self.top, self.left, self.height, self.width = job.box
        self.bytes = torch.empty(1, 3, self.height, self.width, dtype=torch.uint8)
        self.mean = torch.tensor(MEAN).view(3, 1, 1) * 255
        self.inverse = 1 / (torch.tensor(STD).view(3, 1, 1) * 255)
        self.count = 0

    def put(self, rgb: torch.Tensor, cropped: bool = False) -> None:
        """Take (N, 3, H, W) uint8 frames, any strides."""
        if self.resize is not None:
            rgb = F.interpolate(rgb, self.resize, mode="bilinear", antialias=True)
        if not cropped:
            rgb = rgb[..., self.top : self.top + self.height, self.left : self.left + self.width]
        for frame in rgb:
            # Bytes to planar first, then to float: faster than any form that reads strided bytes as float.
            self.bytes[0].copy_(frame)
            torch.sub(self.bytes[0], self.mean, out=self.out[self.count]).mul_(self.inverse)
            self.count += 1

    def result(self) -> torch.Tensor:
        if self.count != len(self.out):
            raise AssertionError(f"decoded {self.count} frames, expected {len(self.out)}")
        return self.out


@functools.cache
def _count(path: Path) -> int:
    import av

    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def frame_count(job: Job) -> int:
    """Number of frames of the clip, found once per file, outside the timed part."""
    return _count(job.clip.path)


def rgb_view(frame: Any) -> torch.Tensor:
    """(1, 3, H, W) view of an rgb24 PyAV frame, without a copy."""
    plane = frame.planes[0]
    data = torch.frombuffer(plane, dtype=torch.uint8)
    view = data.as_strided((frame.height, frame.width, 3), (plane.line_size, 3, 1))
    return view.permute(2, 0, 1)[None]


def _pyav_torch(job: Job, threads: int) -> Run:
    frames = frame_count(job)

    def run(out: torch.Tensor | None) -> torch.Tensor:
        from av.video.reformatter import VideoReformatter

        sink, reformatter = Sink(job, frames, out, resize=True), VideoReformatter()
        for frame in _pyav_frames(job, threads):
            sink.put(rgb_view(reformatter.reformat(frame, format="rgb24", threads=threads)))
        return sink.result()

    return run


def _pyav_swscale(job: Job, threads: int) -> Run:
    frames = frame_count(job)
    height, width = job.size

    def run(out: torch.Tensor | None) -> torch.Tensor:
        from av.video.reformatter import Interpolation, VideoReformatter

        sink, reformatter = Sink(job, frames, out, resize=False), VideoReformatter()
        for frame in _pyav_frames(job, threads):
            small = reformatter.reformat(
                frame, width, height, "rgb24", interpolation=Interpolation.BILINEAR, threads=threads
            )
            sink.put(rgb_view(small))
        return sink.result()

    return run


def _torchcodec(job: Job, threads: int, own_transforms: bool) -> Run:
    frames = frame_count(job)

    def run(out: torch.Tensor | None) -> torch.Tensor:
        from torchcodec.decoders import VideoDecoder

        options: dict[str, Any] = {}
        if own_transforms:
            options["transforms"] = torchcodec_transforms(job)
        decoder = VideoDecoder(
            str(job.clip.path), num_ffmpeg_threads=threads, seek_mode="approximate", **options
        )
        sink = Sink(job, frames, out, resize=not own_transforms)
        for start in range(0, frames, CHUNK):
            batch = decoder.get_frames_in_range(start, min(start + CHUNK, frames))
            sink.put(batch.data, cropped=own_transforms)
        return sink.result()

    return run


def torchcodec_transforms(job: Job) -> list[Any]:
    """TorchCodec's own resize and crop."""
    from torchcodec.transforms import CenterCrop, Resize

    steps = [Resize(job.resize)] if job.resize else []
    return [*steps, CenterCrop(job.box[2:])] if job.crop else steps


def decord_reader(job: Job, threads: int, own_resize: bool) -> Any:
    """Decord's reader of the job's clip, resizing by itself if told."""
    import decord

    size = {"height": job.size[0], "width": job.size[1]} if own_resize and job.resize else {}
    return decord.VideoReader(str(job.clip.path), ctx=decord.cpu(0), num_threads=threads, **size)


def _decord(job: Job, threads: int, own_resize: bool) -> Run:
    frames = frame_count(job)

    def run(out: torch.Tensor | None) -> torch.Tensor:
        reader = decord_reader(job, threads, own_resize)
        if len(reader) != frames:
            raise AssertionError(f"decord counts {len(reader)} frames, expected {frames}")
        sink = Sink(job, frames, out, resize=not own_resize)
        for _ in range(frames):
            sink.put(torch.utils.dlpack.from_dlpack(reader.next().to_dlpack()).permute(2, 0, 1)[None])
        return sink.result()

    return run


def _opencv(job: Job, threads: int) -> Run:
    frames = frame_count(job)
    top, left, box_h, box_w = job.box

    def run(out: torch.Tensor | None) -> torch.Tensor:
        import cv2

        cv2.setNumThreads(threads or -1)
        capture = cv2.VideoCapture(str(job.clip.path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, threads])
        sink = Sink(job, frames, out, resize=False)
        while True:
            more, bgr = capture.read()
            if not more:
                break
            if job.resize:
                bgr = cv2.resize(bgr, job.size[::-1], interpolation=cv2.INTER_AREA)
            rgb = cv2.cvtColor(bgr[top : top + box_h, left : left + box_w], cv2.COLOR_BGR2RGB)
            sink.put(torch.from_numpy(rgb).permute(2, 0, 1)[None], cropped=True)
        capture.release()
        return sink.result()

    return run


CHROMA = "replicated chroma, rounding to RGB bytes before and after the resize"

PEERS: tuple[Competitor, ...] = (
    Competitor("PyAV rgb24 + torch", _pyav_torch, "av", 2.0, CHROMA),
    Competitor(
        "PyAV swscale resize", _pyav_swscale, "av", 3.0, "swscale's own bilinear filter, 14-bit weights"
    ),
    Competitor("TorchCodec + torch", lambda j, t: _torchcodec(j, t, False), "torchcodec", 2.0, CHROMA),
    Competitor(
        "TorchCodec transforms",
        lambda j, t: _torchcodec(j, t, True),
        "torchcodec",
        3.0,
        "swscale's own bilinear filter, 14-bit weights",
    ),
    Competitor("decord + torch", lambda j, t: _decord(j, t, False), "decord", 2.0, CHROMA),
    Competitor(
        "decord resize",
        lambda j, t: _decord(j, t, True),
        "decord",
        4.0,
        "swscale's bicubic filter instead of bilinear",
    ),
    Competitor(
        "OpenCV area", _opencv, "cv2", 6.0, "INTER_AREA averages a box, which is narrower than a triangle"
    ),
)


def transform(job: Job, **changes: Any) -> Any:
    """Give the job as an mmcore.FrameTransform."""
    from mmcore import FrameTransform

    return FrameTransform(resize=job.resize, crop=job.crop, mean=MEAN, std=STD, **changes)


def _mmcore(job: Job, threads: int, **changes: Any) -> Run:
    wanted = transform(job, **changes)

    def run(out: torch.Tensor | None) -> torch.Tensor:
        import mmcore

        with mmcore.VideoDecoder(job.clip.path, num_threads=threads, transform=wanted) as decoder:
            return decoder.get_frames_in_range(0, len(decoder), out=out).data

    return run


def mmcore_competitor(name: str = "mmcore", **changes: Any) -> Competitor:
    """Describe mmcore itself, with changes to the transform (``accuracy="rgb8"``)."""
    return Competitor(name, lambda j, t: _mmcore(j, t, **changes), "mmcore", 2.0, "rounding to RGB bytes")
