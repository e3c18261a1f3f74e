"""mmcore.compat.torchcodec beside the TorchCodec that is installed, call by call."""

from __future__ import annotations

import dataclasses
import inspect
import io
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from media import write_video

import mmcore
from mmcore.compat import torchcodec as ours

LEVELS = 3  # FFmpeg rounds in fixed point

FILES: dict[str, dict[str, Any]] = {
    "clip.mp4": {},
    "clip.mkv": {"options": {"bf": "3"}, "rate": 20},  # a length that milliseconds divide
    "full_range.mp4": {"pix_fmt": "yuvj420p", "size": (90, 130)},
    "bt709.mp4": {"tags": {"colorspace": 1, "color_range": 1}},
    "chroma444.mp4": {"pix_fmt": "yuv444p", "size": (91, 131)},
    "turned90.mp4": {"rotation": 90},
    "turned180.mp4": {"rotation": 180},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none:pools=none:frame-threads=1"}},
    "intra.mkv": {"codec": "mjpeg", "pix_fmt": "yuvj422p"},
    "rgb.mkv": {"codec": "ffv1", "pix_fmt": "bgra"},
}
FOREIGN: dict[str, dict[str, Any]] = {
    "ten_bit.mp4": {"pix_fmt": "yuv420p10le"},
    "ten_bit_709.mp4": {"pix_fmt": "yuv422p10le", "size": (96, 200), "tags": {"colorspace": 1}},
    "twelve_bit_2020.mkv": {"codec": "ffv1", "pix_fmt": "yuv420p12le", "tags": {"colorspace": 9}},
    "odd.mkv": {"codec": "mjpeg", "pix_fmt": "yuvj420p", "size": (95, 129)},
    "gray.mkv": {"codec": "ffv1", "pix_fmt": "gray"},
    "chroma411.mkv": {"codec": "ffv1", "pix_fmt": "yuv411p"},
}

CALLS: dict[str, Callable[[Any], Any]] = {
    "item": lambda d: d[7],
    "last": lambda d: d[-1],
    "slice": lambda d: d[3:30:7],
    "empty": lambda d: d[5:5],
    "at": lambda d: d.get_frame_at(-3),
    "ats": lambda d: d.get_frames_at([30, 2, 2, -1]),
    "range": lambda d: d.get_frames_in_range(10, 1000, 9),
    "played": lambda d: d.get_frame_played_at(0.3),
    "playeds": lambda d: d.get_frames_played_at(torch.tensor([1.21, 0.0, 0.55])),
    "time range": lambda d: d.get_frames_played_in_range(0.23, 0.61),
    "no time": lambda d: d.get_frames_played_in_range(0.4, 0.4),
    "rate": lambda d: d.get_frames_played_in_range(0.1, 1.3, fps=7.3),
    "high rate": lambda d: d.get_frames_played_in_range(0.2, 0.4, fps=100),
    "all at a rate": lambda d: d.get_all_frames(fps=3),
}


def _tensors(result: Any) -> list[torch.Tensor]:
    """The data, and the times if there are any."""
    if isinstance(result, torch.Tensor):
        return [result]
    return [result.data, torch.as_tensor(result.pts_seconds), torch.as_tensor(result.duration_seconds)]


def _assert_agree(got: Any, expected: Any) -> None:
    assert type(got).__name__ == type(expected).__name__
    (data, *times), (their_data, *their_times) = _tensors(got), _tensors(expected)
    assert (data.shape, data.dtype) == (their_data.shape, their_data.dtype)
    assert (
        (data.int() - their_data.int()).abs().amax(tuple(range(data.dim()))) <= LEVELS
        if data.numel()
        else True
    )
    for ours_, theirs_ in zip(times, their_times, strict=True):
        assert ours_.dtype == theirs_.dtype
        torch.testing.assert_close(ours_, theirs_, rtol=0, atol=1e-12)


def _agree(path: Path, torchcodec: ModuleType, **settings: Any) -> None:
    decoder = ours.decoders.VideoDecoder(path, **settings)
    for call in CALLS.values():
        # Theirs is opened anew: some of its reads after the end of a file have given other frames.
        _assert_agree(call(decoder), call(torchcodec.decoders.VideoDecoder(path, **settings)))


@pytest.mark.parametrize("mode", ["exact", "approximate"])
@pytest.mark.parametrize("name", FILES)
def test_frames(name: str, mode: str, torchcodec: ModuleType, cached_media: Callable) -> None:
    if name == "hevc.mp4" and mode == "approximate":
        pytest.skip("FFmpeg seeks past HEVC frames; without an index TorchCodec then gives later ones")
    _agree(cached_media(name, lambda p: write_video(p, **FILES[name])), torchcodec, seek_mode=mode)


@pytest.mark.parametrize("name", FOREIGN)
def test_frames_that_ffmpeg_converts_otherwise(
    name: str, torchcodec: ModuleType, cached_media: Callable
) -> None:
    _agree(cached_media(name, lambda p: write_video(p, **FOREIGN[name])), torchcodec)


def test_frames_of_real_files(real_media: Path, torchcodec: ModuleType) -> None:
    try:
        theirs = torchcodec.decoders.VideoDecoder(real_media)
        indices = torch.linspace(0, len(theirs) - 1, 5, dtype=torch.int).tolist()
        expected = theirs.get_frames_at(indices)
    except RuntimeError as error:
        pytest.skip(f"TorchCodec does not decode it: {error}")
    decoder = ours.decoders.VideoDecoder(real_media)
    assert len(decoder) == len(theirs)
    got = decoder.get_frames_at(indices)
    assert (got.data.int() - expected.data.int()).abs().max() <= LEVELS
    torch.testing.assert_close(got.pts_seconds, expected.pts_seconds, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", ["exact", "approximate"])
@pytest.mark.parametrize("name", ["clip.mp4", "bt709.mp4", "turned90.mp4", "turned180.mp4", "hevc.mp4"])
def test_metadata(name: str, mode: Any, torchcodec: ModuleType, cached_media: Callable) -> None:
    path = cached_media(name, lambda p: write_video(p, **FILES[name]))
    got = ours.decoders.VideoDecoder(path, seek_mode=mode).metadata
    expected = torchcodec.decoders.VideoDecoder(path, seek_mode=mode).metadata
    assert [f.name for f in dataclasses.fields(got)] == [f.name for f in dataclasses.fields(expected)]
    assert dataclasses.asdict(got) == pytest.approx(dataclasses.asdict(expected), abs=1e-12)


def test_custom_frame_mappings(clip: Path, torchcodec: ModuleType) -> None:
    tb = mmcore.VideoDecoder(clip).frame_times.time_base
    frames = ", ".join(
        f'{{"pts": {round(i / 25 / tb)}, "duration": {round(1 / 25 / tb)}, "key_frame": {int(i % 12 == 0)}}}'
        for i in range(40)
    )
    _agree(clip, torchcodec, custom_frame_mappings=f'{{"frames": [{frames}]}}')


# --- errors


@pytest.mark.parametrize("mode", ["exact", "approximate"])
@pytest.mark.parametrize(
    "call",
    [
        lambda d: d[40],
        lambda d: d[-41],
        lambda d: d["0"],
        lambda d: d[2.3],
        lambda d: d[torch.tensor(1)],
        lambda d: d[::-1],
        lambda d: d[::0],
        lambda d: d.get_frame_at(40),
        lambda d: d.get_frames_at([0.3]),
        lambda d: d.get_frames_at([True]),
        lambda d: d.get_frames_at([-41]),
        lambda d: d.get_frames_in_range(0, 5, -1),
        lambda d: d.get_frames_in_range(1.5, 3),
        lambda d: d.get_frame_played_at(-0.1),
        lambda d: d.get_frame_played_at(1.6),
        lambda d: d.get_frame_played_at(float("nan")),
        lambda d: d.get_frame_played_at("1"),
        lambda d: d.get_frames_played_at([-1]),
        lambda d: d.get_frames_played_at([1.6]),
        lambda d: d.get_frames_played_at(["bad"]),
        lambda d: d.get_frames_played_in_range(1, 0.5),
        lambda d: d.get_frames_played_in_range(1.6, 1.6),
        lambda d: d.get_frames_played_in_range(-1, 1),
        lambda d: d.get_frames_played_in_range(0, 1.7),
        lambda d: d.get_frames_played_in_range(0, 1, fps=0),
        lambda d: type(d)("no/such/file.mp4"),
        lambda d: type(d)(b"no media file" * 100),
        lambda d: type(d)(123),
        lambda d: type(d)(io.StringIO("text")),
    ],
)
def test_errors(call: Callable, mode: Any, clip: Path, torchcodec: ModuleType) -> None:
    with pytest.raises(Exception) as expected:
        call(torchcodec.decoders.VideoDecoder(clip, seek_mode=mode))
    with pytest.raises(expected.type):
        call(ours.decoders.VideoDecoder(clip, seek_mode=mode))


# --- samplers and transforms


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        (
            "clips_at_random_indices",
            {"num_clips": 5, "num_frames_per_clip": 4, "num_indices_between_frames": 3},
        ),
        ("clips_at_random_indices", {"num_clips": 3, "num_frames_per_clip": 6, "sampling_range_end": 40}),
        ("clips_at_regular_indices", {"num_clips": 7, "num_frames_per_clip": 2}),
        ("clips_at_regular_indices", {"num_clips": 50, "sampling_range_start": -9, "policy": "wrap"}),
        ("clips_at_random_timestamps", {"num_clips": 5, "num_frames_per_clip": 3}),
        (
            "clips_at_random_timestamps",
            {"num_clips": 4, "num_frames_per_clip": 5, "sampling_range_start": 1.2, "sampling_range_end": 9},
        ),
        ("clips_at_regular_timestamps", {"seconds_between_clip_starts": 0.33, "num_frames_per_clip": 2}),
    ],
)
def test_samplers(name: str, settings: dict, seed: int, clip: Path, torchcodec: ModuleType) -> None:
    results = []
    for module in (ours, torchcodec):
        torch.manual_seed(seed)
        results.append(getattr(module.samplers, name)(module.decoders.VideoDecoder(clip), **settings))
    _assert_agree(*results)


@pytest.mark.parametrize(
    ("make", "levels"),
    [
        (lambda t: [t.CenterCrop((51, 64))], LEVELS),
        (lambda t: [t.RandomCrop((51, 64))], LEVELS),
        (lambda t: [t.RandomCrop((80, 81)), t.CenterCrop((40, 50))], LEVELS),
        # FFmpeg's filter has coefficients of 14 bits, and fewer taps in places
        (lambda t: [t.Resize((50, 70))], 20),
        (lambda t: [t.Resize((150, 170)), t.RandomCrop((100, 120))], 20),
        (lambda t: [t.CenterCrop((90, 100)), t.Resize((45, 45))], 20),
    ],
)
@pytest.mark.parametrize("name", ["clip.mp4", "turned90.mp4"])
def test_transforms(
    make: Callable, levels: int, name: str, torchcodec: ModuleType, cached_media: Callable
) -> None:
    path = cached_media(name, lambda p: write_video(p, **FILES[name]))
    results = []
    for module in (ours, torchcodec):
        torch.manual_seed(3)
        try:
            decoder = module.decoders.VideoDecoder(path, transforms=make(module.transforms))
        except (RuntimeError, ValueError) as error:
            results.append(type(error))
            continue
        results.append(decoder.get_frames_at([20, 3]))
    if isinstance(results[0], type):
        assert results[0] == results[1]
        return
    got, expected = (result.data.int() for result in results)
    assert got.shape == expected.shape
    assert got.stride() == expected.stride()
    assert (got - expected).abs().max() <= levels
    assert (got - expected).abs().float().mean() < 1.5


# --- names


@pytest.mark.parametrize("part", ["", "decoders", "encoders", "samplers", "transforms"])
def test_names(part: str, torchcodec: ModuleType) -> None:
    mine, theirs = (getattr(m, part) if part else m for m in (ours, torchcodec))
    paths = {"cmake_prefix_path", "core_library_path"}  # of their library
    names = {n for n in vars(theirs) if not n.startswith("_") and not inspect.ismodule(getattr(theirs, n))}
    assert names - paths - {"Path"} <= set(vars(mine))


@pytest.mark.parametrize("name", ["VideoDecoder", "set_cuda_backend", "get_nvdec_cache_capacity"])
def test_signatures_of_decoders(name: str, torchcodec: ModuleType) -> None:
    mine, theirs = getattr(ours.decoders, name), getattr(torchcodec.decoders, name)
    _assert_same_signature(mine, theirs)
    if inspect.isclass(theirs):
        for method in (m for m in vars(theirs) if m.startswith("get_")):
            _assert_same_signature(getattr(mine, method), getattr(theirs, method))


@pytest.mark.parametrize("name", ours.samplers.__all__)
def test_signatures_of_samplers(name: str, torchcodec: ModuleType) -> None:
    _assert_same_signature(getattr(ours.samplers, name), getattr(torchcodec.samplers, name))


def _assert_same_signature(mine: Callable, theirs: Callable) -> None:
    got, expected = (
        [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()]
        for f in (mine, theirs)
    )
    assert got == expected
