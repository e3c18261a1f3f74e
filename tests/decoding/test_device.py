"""Decoders whose frames shall be on a CUDA device: the CPU decodes, and all else is as without one."""

from __future__ import annotations

import ctypes
import itertools
import multiprocessing
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_gpu import FakeGpu, fake_gpu
from media import damage, number_of, numbers_of, write_video
from torch import Tensor
from torch.utils.data import DataLoader

import mmcore
from mmcore import (
    DecodeError,
    FrameTransform,
    IterableVideoDataset,
    UnsupportedError,
    VideoDataset,
    VideoDecoder,
)
from mmcore.ops import devices, frame_uploader

SMALL = FrameTransform(resize=(48, 64), dtype=torch.float32)
TRANSFORMS = {
    "bytes": None,
    "small": SMALL,
    "nhwc": FrameTransform(resize=60, crop=56, dtype=torch.float16, layout="NHWC", mean=0.4, std=0.2),
    "cnhw": FrameTransform(crop=(9, 33, 40, 50), layout="CNHW"),
    "patches": FrameTransform(resize=(56, 84), layout=mmcore.patches(14, 2, 2)),
    "rgb8": FrameTransform(resize=(40, 50), accuracy="rgb8", dtype=torch.uint8),
}


@pytest.fixture(params=["lazy", "behind"])
def gpu(
    request: pytest.FixtureRequest, emulator: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeGpu]:
    monkeypatch.setattr(frame_uploader, "GROUP_BYTES", 60_000)  # three frames of the clip
    with fake_gpu(emulator, request.param) as gpu:
        yield gpu


def close(result: Tensor, expected: Tensor) -> bool:
    """As far apart as the kernels may be; bytes to the bit, but where a rounding may fall either way."""
    if result.dtype == torch.uint8:
        off = (result.int() - expected.int()).abs()
        return result.shape == expected.shape and int(off.max()) <= 1 and off.float().mean() < 1e-3
    return result.dtype == expected.dtype and torch.allclose(result, expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("place", ["cpu", "cuda"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_frames_are_those_of_the_cpu(name: str, threads: int, place: str, gpu: FakeGpu, clip: Path) -> None:
    options: dict[str, Any] = {"transform": TRANSFORMS[name], "num_threads": threads}
    here = VideoDecoder(clip, **options)
    there = VideoDecoder(clip, device="cuda", convert_on=place, **options)
    assert there.metadata == here.metadata
    calls: list[Callable[[VideoDecoder], Any]] = [
        lambda d: d[7],
        lambda d: d[3:40:5],
        lambda d: d.get_frame_at(-1).data,
        lambda d: d.get_frames_at([30, 2, 2, 17, 30, 2]).data,
        lambda d: d.get_frames_at([]).data,
        lambda d: d.get_frames_in_range(0, 40).data,
        lambda d: d.get_frames_played_in_range(0.1, 1.3, fps=60).data,
        lambda d: list(itertools.islice(d, 17)),
    ]
    for call in calls:
        result, expected = call(there), call(here)
        gpu.drain()
        result, expected = (torch.stack(x) if isinstance(x, list) else x for x in (result, expected))
        assert result.shape == expected.shape
        assert result.numel() == 0 or close(result, expected)
    assert not gpu.other.waiting
    assert ("on", gpu.other.name) not in gpu.log
    assert ("convert" in dict(gpu.log)) == (place == "cuda")


def test_out_is_written(gpu: FakeGpu, clip: Path) -> None:
    expected = VideoDecoder(clip, transform=SMALL)[5:9]
    for place in ("cpu", "cuda"):
        out = torch.empty(4, 3, 48, 64)
        decoder = VideoDecoder(clip, transform=SMALL, device="cuda", convert_on=place)
        assert decoder.get_frames_in_range(5, 9, out=out).data is out
        gpu.drain()
        assert close(out, expected)
        with pytest.raises(ValueError, match="out: expected dtype"):
            decoder.get_frames_in_range(5, 9, out=out.half())


@pytest.mark.parametrize("place", ["cpu", "cuda"])
def test_what_cannot_be_decoded(place: str, gpu: FakeGpu, cached_media: Callable) -> None:
    whole = cached_media("policy.mp4", lambda p: write_video(p, num_frames=60, options={"bf": "2"}))
    path = cached_media("policy_broken.mp4", lambda p: damage(whole, p, at=0.5, length=400))
    for on_error, threads in itertools.product(("skip", "nearest"), (1, 3)):
        options: dict[str, Any] = {"on_error": on_error, "num_threads": threads}
        expected = VideoDecoder(path, **options).get_frames_in_range(0, 60)
        decoder = VideoDecoder(path, device="cuda", convert_on=place, **options)
        batch = decoder.get_frames_in_range(0, 60)
        frames = list(decoder)
        lost = [i for i in range(60) if not batch.valid[i]]  # type: ignore[index]
        alone = decoder.get_frames_at([lost[0], lost[0]])
        gpu.drain()
        assert lost
        assert expected.valid is not None
        assert torch.equal(batch.valid, expected.valid)  # type: ignore[arg-type]
        assert close(batch.data, expected.data)
        assert len(frames) == (60 if on_error == "nearest" else 60 - len(lost))
        if on_error == "skip":
            assert not batch.data[lost].any()
            assert not alone.data.any()
        else:
            assert close(alone.data, expected.data[[lost[0], lost[0]]])
    with pytest.raises(DecodeError):
        VideoDecoder(path, device="cuda", convert_on=place)[:]


def test_pictures_that_are_turned(gpu: FakeGpu, cached_media: Callable) -> None:
    path = cached_media("turned_90.mp4", lambda p: write_video(p, num_frames=8, rotation=90))
    expected = VideoDecoder(path, transform=SMALL)[:]
    for place in ("auto", "cpu", "cuda"):
        result = VideoDecoder(path, transform=SMALL, device="cuda", convert_on=place)[:]
        gpu.drain()
        assert torch.equal(result, expected)


def test_leaving_an_iteration(gpu: FakeGpu, clip: Path) -> None:
    """What was decoded ahead is dropped, with its uploads under way, and the decoder goes on."""
    decoder = VideoDecoder(clip, device="cuda", convert_on="cuda", num_threads=3)
    for stop in (0, 5, 20):
        frames = list(itertools.islice(decoder, stop))
        again = decoder[3]
        gpu.drain()
        assert [number_of(frame) for frame in frames] == list(range(stop))
        assert number_of(again) == 3
        del frames, again
    decoder.close()
    gpu.drain()
    assert gpu.alive(gpu.pinned) == 0
    assert gpu.alive(gpu.memory) == 1  # the tables


def test_an_upload_that_fails_ends_the_read(gpu: FakeGpu, clip: Path) -> None:
    decoder = VideoDecoder(clip, device="cuda", convert_on="cuda", num_threads=3)
    gpu.fail_at = 4
    with pytest.raises(RuntimeError, match="out of patience"):
        decoder[:]
    gpu.fail_at = -1
    result = decoder[:]
    gpu.drain()
    assert numbers_of(result) == list(range(40))


def test_threads_share_a_decoder_and_the_device(gpu: FakeGpu, clip: Path) -> None:
    decoder = VideoDecoder(clip, device="cuda", convert_on="cuda", num_threads=2)
    results: list[Tensor] = []

    def read(first: int) -> None:
        results.append(decoder.get_frames_at([first, 39 - first, first]).data)

    readers = [threading.Thread(target=read, args=(first,)) for first in range(6)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    gpu.drain()
    firsts = [numbers_of(data) for data in results]
    assert sorted(firsts) == [[first, 39 - first, first] for first in range(6)]
    assert ("on", gpu.other.name) in gpu.log  # each thread's own stream


def test_a_decoder_is_pickled_with_its_device(gpu: FakeGpu, clip: Path) -> None:
    decoder = pickle.loads(pickle.dumps(VideoDecoder(clip, device="cuda", convert_on="cuda")))
    result = decoder[4]
    gpu.drain()
    assert number_of(result) == 4
    assert "convert" in dict(gpu.log)


# --- what makes decoders


def test_decode_many_uses_the_stream_of_its_caller(gpu: FakeGpu, clip: Path) -> None:
    options: dict[str, Any] = {"sampler": mmcore.samplers.uniform(5), "transform": SMALL, "workers": 3}
    expected = [file.batch.data for file in mmcore.decode_many([clip] * 5, **options)]  # type: ignore[union-attr]
    for place in ("cpu", "cuda"):
        files = list(mmcore.decode_many([clip] * 5, device="cuda", convert_on=place, **options))
        gpu.drain()
        for file, data in zip(files, expected, strict=True):
            assert file.batch is not None
            assert close(file.batch.data, data)
    assert ("on", gpu.caller.name) in gpu.log
    assert ("on", gpu.other.name) not in gpu.log


def test_datasets(gpu: FakeGpu, clip: Path) -> None:
    def read(**options: Any) -> list[Tensor]:
        given: Any = ([clip] * 2, mmcore.samplers.uniform(5), SMALL)
        samples = [VideoDataset(*given, **options)[1], *IterableVideoDataset(*given, **options)]
        return [sample["data"] for sample in samples]

    expected, result = read(), read(device="cuda", convert_on="cuda")
    gpu.drain()
    assert all(close(a, b) for a, b in zip(result, expected, strict=True))
    assert "convert" in dict(gpu.log)


def test_clips(gpu: FakeGpu, clip: Path) -> None:
    video = {"transform": SMALL, "num_frames": 6}
    expected = mmcore.read_clip(clip, 0, 1, video=video, audio=False, text=False)
    for place in ("cpu", "cuda"):
        result = mmcore.read_clip(
            clip, 0, 1, video={**video, "device": "cuda", "convert_on": place}, audio=False, text=False
        )
        gpu.drain()
        assert result.video is not None
        assert expected.video is not None
        assert close(result.video.data, expected.video.data)
    assert "convert" in dict(gpu.log)


def test_torchcodec(gpu: FakeGpu, clip: Path, cached_media: Callable) -> None:
    from mmcore.compat.torchcodec.decoders import VideoDecoder
    from mmcore.compat.torchcodec.transforms import CenterCrop, Resize

    deep = cached_media("deep.mp4", lambda p: write_video(p, num_frames=8, pix_fmt="yuv420p10le"))
    for path, chain in itertools.product((clip, deep), ([], [Resize((64, 96)), CenterCrop((56, 56))])):
        here, there = (VideoDecoder(path, device=device, transforms=chain) for device in ("cpu", "cuda"))
        result, expected = there.get_frames_at([0, 5, -1]), here.get_frames_at([0, 5, -1])
        gpu.drain()
        assert torch.equal(result.data, expected.data)
        assert torch.equal(result.pts_seconds, expected.pts_seconds)
    assert not here.cpu_fallback
    assert there.cpu_fallback
    assert str(there.cpu_fallback).startswith("[CPU] Fallback status: Falling back due to")


# --- what cannot be had


MAKERS: dict[str, Callable[[Path, Any], object]] = {
    "VideoDecoder": lambda path, device: VideoDecoder(path, device=device),
    "FrameBatchBuilder": lambda path, device: mmcore.FrameBatchBuilder(1, device=device),
    "decode_many": lambda path, device: mmcore.decode_many([path], device=device),
    "VideoDataset": lambda path, device: VideoDataset([path], device=device),
    "IterableVideoDataset": lambda path, device: IterableVideoDataset([path], device=device),
    "read_clip": lambda path, device: mmcore.read_clip(path, video={"device": device}),
}


@pytest.mark.parametrize("name", MAKERS)
def test_one_error_for_every_way(name: str, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for reason in ("no driver", "forked"):
        monkeypatch.setattr(devices, "_why_no_cuda", lambda index: reason)  # noqa: B023
        with pytest.raises(UnsupportedError, match=rf"device 'cuda': {reason}; use device='cpu'"):
            MAKERS[name](clip, "cuda")
    with pytest.raises(UnsupportedError, match="device 'mps': frames can be had on 'cpu' and 'cuda'"):
        MAKERS[name](clip, "mps")
    with pytest.raises(ValueError, match="device: 'gpu' is not a device"):
        MAKERS[name](clip, "gpu")


def test_wrong_places(gpu: FakeGpu, clip: Path) -> None:
    makers: list[Callable[[], object]] = [
        lambda: VideoDecoder(clip, device="cuda", convert_on="gpu"),
        lambda: VideoDecoder(clip, convert_on="gpu"),
        lambda: VideoDecoder(clip, convert_on="cuda"),
        lambda: mmcore.decode_many([clip], convert_on="cuda"),
        lambda: mmcore.read_clip(clip, video={"convert_on": "cuda"}),
    ]
    for make in makers:
        with pytest.raises(ValueError, match="convert_on"):
            make()
    with (
        mmcore.backend("reference"),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("MMCORE_BACKEND", "triton")
        assert VideoDecoder(clip, device="cuda")[0].shape == (3, 96, 128)  # the context wins
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMCORE_BACKEND", "triton")
        with pytest.raises(UnsupportedError, match="backend 'triton' does not convert frames"):
            VideoDecoder(clip, device="cuda")[0]


def _in_worker(position: int) -> str:
    devices._why_no_cuda = lambda index: "this process was forked"  # type: ignore[assignment]
    return ""


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_workers_that_were_forked_say_so(gpu: FakeGpu, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = VideoDataset([clip] * 2, mmcore.samplers.uniform(2), SMALL, device="cuda")
    loader = DataLoader(
        dataset, batch_size=None, num_workers=1, multiprocessing_context="fork", worker_init_fn=_in_worker
    )
    with pytest.raises(UnsupportedError, match="this process was forked; use device='cpu'"):
        list(loader)


# --- the same on a GPU

needs_gpu = pytest.mark.gpu


@needs_gpu
@pytest.mark.parametrize("place", ["auto", "cpu", "cuda"])
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_device_gives_the_frames_of_the_cpu(name: str, threads: int, place: str, clip: Path) -> None:
    options: dict[str, Any] = {"transform": TRANSFORMS[name], "num_threads": threads}
    here, there = (
        VideoDecoder(clip, **options),
        VideoDecoder(clip, device="cuda", convert_on=place, **options),
    )
    for numbers in ([7], [30, 2, 2, 17, 30, 2], range(40), []):
        result, expected = there.get_frames_at(numbers).data, here.get_frames_at(numbers).data
        assert result.device == torch.device("cuda", torch.cuda.current_device())
        assert result.numel() == 0 or close(result.cpu(), expected)
    assert close(torch.stack(list(there)).cpu(), torch.stack(list(here)))


@needs_gpu
@pytest.mark.parametrize("place", ["cpu", "cuda"])
def test_a_device_keeps_the_order_of_the_caller_s_stream(place: str, clip: Path) -> None:
    """Work that takes long lies on the stream before each call: the host does not wait for it."""
    expected = VideoDecoder(clip, transform=SMALL)[:]
    decoder = VideoDecoder(clip, transform=SMALL, device="cuda", convert_on=place, num_threads=2)
    out, side = torch.empty(40, 3, 48, 64, device="cuda"), torch.cuda.Stream()
    decoder.get_frames_in_range(0, 40, out=out)  # tables, memory
    torch.cuda.synchronize()
    for _ in range(2):
        with torch.cuda.stream(side):
            out.fill_(-1)
            torch.cuda._sleep(4_000_000_000)  # cycles: seconds, of which decoding takes hundredths
            before = torch.cuda.Event()
            before.record()
            decoder.get_frames_in_range(0, 40, out=out)
            copy = out.clone()
            assert not before.query(), "the call waited for what was on the stream"
        assert close(copy.cpu(), expected)


@needs_gpu
def test_a_device_is_not_used_while_a_graph_is_captured(clip: Path) -> None:
    decoder = VideoDecoder(clip, device="cuda")
    decoder[0]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x = torch.ones(3, device="cuda") * 2
        with pytest.raises(UnsupportedError, match="while a CUDA graph is captured"):
            decoder[0]
    graph.replay()
    assert x.tolist() == [2, 2, 2]


@needs_gpu
def test_memory_on_a_device_comes_back(clip: Path) -> None:
    decoder = VideoDecoder(clip, transform=SMALL, device="cuda", convert_on="cuda", num_threads=2)
    decoder[:]
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(20):
        decoder[:]
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before + (1 << 20)
