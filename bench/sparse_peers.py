"""The competitors that take single frames of a clip, ``job.targets``.

Each opens the clip, makes of the frames a normalised float32 tensor (k, 3, 224, 224), and closes it. A
library that can do this in several ways comes in all of them; the suite measures which is best for each row,
and at how many threads. An empty ``targets`` only opens.
"""

# mypy: disable-error-code="import-not-found,import-untyped,attr-defined"
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from bench import media
from bench.cases import Job
from bench.peers import (
    CHROMA,
    CHUNK,
    Competitor,
    Run,
    Sink,
    decord_reader,
    rgb_view,
    torchcodec_transforms,
    transform,
)

__all__ = ["SPARSE_PEERS", "decode_to_last", "mmcore_sparse"]


def _targets(job: Job) -> list[int]:
    if job.targets is None:
        raise ValueError(f"{job.name}: expected targets")
    return list(job.targets)


def _chunks(targets: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(targets), CHUNK):
        yield targets[start : start + CHUNK]


def decode_to_last(job: Job) -> int:
    """Decode with PyAV, on one thread, to the last target, and drop every frame: the yardstick."""
    import av

    left = _targets(job)[-1] + 1
    with av.open(str(job.clip.path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for _ in container.decode(stream):
            left -= 1
            if not left:
                break
    return left


def _pyav(job: Job, threads: int, seek: bool) -> Run:
    targets = _targets(job)

    def run(out: torch.Tensor | None) -> torch.Tensor:
        import av
        from av.video.reformatter import VideoReformatter

        sink, reformatter = Sink(job, len(targets), out, resize=True), VideoReformatter()
        with av.open(str(job.clip.path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = threads
            if threads != 1:
                stream.thread_type = "FRAME"
            for frame in _chosen(container, stream, targets, seek):
                sink.put(rgb_view(reformatter.reformat(frame, format="rgb24", threads=threads)))
            if threads != 1:
                stream.codec_context.flush_buffers()  # closing with packets in flight has hung
        return sink.result()

    return run


def _chosen(container: Any, stream: Any, targets: list[int], seek: bool) -> Iterator[Any]:
    """Frames by their times; with ``seek``, passing over groups of pictures without a target."""
    step = 1 / (stream.average_rate * stream.time_base)
    frames, position = container.decode(stream), stream.start_time or 0
    for target in targets:
        want = (stream.start_time or 0) + round(target * step)
        if seek:
            entries = stream.index_entries
            key = entries[entries.search_timestamp(want)].timestamp
            if key > position + 3 * step:  # a seek costs as much as decoding a few frames
                container.seek(want, stream=stream)
                frames = container.decode(stream)
        for frame in frames:
            position = frame.pts
            if frame.pts >= want:
                yield frame
                break


def _torchcodec(job: Job, threads: int, seek_mode: Any, own_transforms: bool = False) -> Run:
    targets = _targets(job)

    def run(out: torch.Tensor | None) -> torch.Tensor:
        from torchcodec.decoders import VideoDecoder

        options: dict[str, Any] = {}
        if own_transforms:
            options["transforms"] = torchcodec_transforms(job)
        decoder = VideoDecoder(str(job.clip.path), num_ffmpeg_threads=threads, seek_mode=seek_mode, **options)
        sink = Sink(job, len(targets), out, resize=not own_transforms)
        for chunk in _chunks(targets):
            sink.put(decoder.get_frames_at(chunk).data, cropped=own_transforms)
        return sink.result()

    return run


def _decord(job: Job, threads: int, own_resize: bool) -> Run:
    targets = _targets(job)

    def run(out: torch.Tensor | None) -> torch.Tensor:
        reader = decord_reader(job, threads, own_resize)
        sink = Sink(job, len(targets), out, resize=not own_resize)
        for chunk in _chunks(targets):
            batch = torch.utils.dlpack.from_dlpack(reader.get_batch(chunk).to_dlpack())
            sink.put(batch.permute(0, 3, 1, 2))
        return sink.result()

    return run


def _opencv(job: Job, threads: int, seek: bool) -> Run:
    targets = _targets(job)
    top, left, box_h, box_w = job.box

    def run(out: torch.Tensor | None) -> torch.Tensor:
        import cv2

        cv2.setNumThreads(threads or -1)
        capture = cv2.VideoCapture(str(job.clip.path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, threads])
        sink, position = Sink(job, len(targets), out, resize=False), 0
        for target in targets:
            if seek and target > position:
                capture.set(cv2.CAP_PROP_POS_FRAMES, target)
                position = target
            while position < target:
                capture.grab()
                position += 1
            more, bgr = capture.read()
            position += 1
            if not more:
                raise AssertionError(f"frame {target} does not come")
            if job.resize:
                bgr = cv2.resize(bgr, job.size[::-1], interpolation=cv2.INTER_AREA)
            rgb = cv2.cvtColor(bgr[top : top + box_h, left : left + box_w], cv2.COLOR_BGR2RGB)
            sink.put(torch.from_numpy(rgb).permute(2, 0, 1)[None], cropped=True)
        capture.release()
        return sink.result()

    return run


_SWSCALE = "swscale's own bilinear filter, 14-bit weights"
_AREA = "INTER_AREA averages a box, which is narrower than a triangle"

SPARSE_PEERS: tuple[Competitor, ...] = (
    Competitor("PyAV decoding on", lambda j, t: _pyav(j, t, False), "av", 2.0, CHROMA),
    Competitor("PyAV seeking", lambda j, t: _pyav(j, t, True), "av", 2.0, CHROMA),
    Competitor("TorchCodec exact", lambda j, t: _torchcodec(j, t, "exact"), "torchcodec", 2.0, CHROMA),
    Competitor(
        "TorchCodec approximate", lambda j, t: _torchcodec(j, t, "approximate"), "torchcodec", 2.0, CHROMA
    ),
    Competitor(
        "TorchCodec approximate, transforms",
        lambda j, t: _torchcodec(j, t, "approximate", own_transforms=True),
        "torchcodec",
        3.0,
        _SWSCALE,
    ),
    Competitor("decord + torch", lambda j, t: _decord(j, t, False), "decord", 2.0, CHROMA),
    Competitor(
        "decord resize",
        lambda j, t: _decord(j, t, True),
        "decord",
        4.0,
        "swscale's bicubic filter instead of bilinear",
    ),
    Competitor("OpenCV grabbing on", lambda j, t: _opencv(j, t, False), "cv2", 6.0, _AREA),
    Competitor("OpenCV seeking", lambda j, t: _opencv(j, t, True), "cv2", 6.0, _AREA),
)
"""The first word of a name is the library: its entries are several ways to do the same."""


def _mmcore(job: Job, threads: int, saved_index: bool) -> Run:
    wanted = transform(job)
    folder = media.cache_dir() / "indices" if saved_index else None

    def run(out: torch.Tensor | None) -> torch.Tensor:
        import mmcore

        with mmcore.VideoDecoder(
            job.clip.path, num_threads=threads, transform=wanted, index=folder
        ) as decoder:
            if job.targets is None:
                return decoder.get_frames_in_range(0, len(decoder), out=out).data
            return decoder.get_frames_at(job.targets, out=out).data

    return run


def mmcore_sparse(name: str, *, saved_index: bool = False) -> Competitor:
    """Describe mmcore itself; ``saved_index``: the index of packets lies in the cache of the clips."""
    return Competitor(name, lambda j, t: _mmcore(j, t, saved_index), "mmcore", 0.0, "the same frames")
