"""mmcore.compat.torchcodec by itself: what its calls give and which errors they raise."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from media import number_of, numbers_of, picture, remux, write_video

import mmcore
from mmcore.compat import torchcodec
from mmcore.compat.torchcodec import Frame, FrameBatch
from mmcore.compat.torchcodec.decoders import (
    VideoDecoder,
    get_nvdec_cache_capacity,
    set_cuda_backend,
    set_nvdec_cache_capacity,
)
from mmcore.compat.torchcodec.decoders._source import is_url
from mmcore.compat.torchcodec.transforms import RandomCrop, Resize

# --- frames by number


def test_frames_by_number(decoder: VideoDecoder) -> None:
    assert len(decoder) == 40
    assert [number_of(decoder[i]) for i in (0, 7, -1, True)] == [0, 7, 39, 1]
    assert [number_of(decoder[t(9)]) for t in (np.int32, np.uint64)] == [9, 9]
    assert numbers_of(decoder[30:1000:4]) == [30, 34, 38]
    assert numbers_of(decoder[-2:]) == [38, 39]
    assert decoder[5:5].shape == decoder[1000:].shape == (0, 3, 96, 128)
    frame = decoder.get_frame_at(np.int64(-30))
    assert number_of(frame.data) == 10
    assert (frame.pts_seconds, frame.duration_seconds) == (0.4, pytest.approx(0.04))
    data, pts, _ = frame
    assert data is frame.data
    assert type(pts) is float


@pytest.mark.parametrize(
    "indices",
    [
        [5, 30, 5, -1],
        (5, 30, 5, -1),
        np.array([5, 30, 5, -1]),
        torch.tensor([5, 30, 5, 39], dtype=torch.int32),
        torch.tensor([5.9, 30.0, 5.0, -1.0]),
    ],
    ids=["list", "tuple", "ndarray", "int", "float"],
)
def test_frames_in_any_order(indices: Any, decoder: VideoDecoder) -> None:
    batch = decoder.get_frames_at(indices)
    assert isinstance(batch, FrameBatch)
    assert numbers_of(batch.data) == [5, 30, 5, 39]
    assert batch.pts_seconds.tolist() == pytest.approx([0.2, 1.2, 0.2, 1.56])
    assert batch.pts_seconds.dtype == batch.duration_seconds.dtype == torch.float64


def test_a_number_alone_and_none_at_all(decoder: VideoDecoder) -> None:
    assert numbers_of(decoder.get_frames_at(torch.tensor(3)).data) == [3]
    assert decoder.get_frames_at([]).data.shape == (0, 3, 96, 128)


def test_frames_in_a_range(decoder: VideoDecoder) -> None:
    assert numbers_of(decoder.get_frames_in_range(start=10, stop=20, step=4).data) == [10, 14, 18]
    assert numbers_of(decoder.get_frames_in_range(-3, 1000).data) == [37, 38, 39]
    assert numbers_of(decoder.get_frames_in_range(-2, None).data) == [38, 39]  # type: ignore[arg-type]
    empty = decoder.get_frames_in_range(5, 5)
    assert len(empty) == 0
    assert empty.pts_seconds.shape == (0,)


def test_iteration(decoder: VideoDecoder) -> None:
    numbers = []
    for frame in decoder:
        assert number_of(decoder[-1]) == 39  # reading elsewhere in between
        numbers.append(number_of(frame))
    assert numbers == list(range(40))


@pytest.mark.parametrize("order", ["NCHW", "NHWC"])
def test_memory_is_nhwc(order: Any, clip: Path) -> None:
    decoder = VideoDecoder(clip, dimension_order=order)
    shape = (3, 96, 128) if order == "NCHW" else (96, 128, 3)
    for batch in (
        decoder[0][None],
        decoder[2:4],
        decoder.get_frame_played_at(0.1).data[None],
        decoder.get_frames_played_in_range(0, 0.2, fps=10).data,
    ):
        assert batch.shape[1:] == shape
        memory = torch.channels_last if order == "NCHW" else torch.contiguous_format
        assert batch.is_contiguous(memory_format=memory)


# --- frames by time


def test_frames_by_time(decoder: VideoDecoder) -> None:
    assert [number_of(decoder.get_frame_played_at(t).data) for t in (0, 0.0399, 0.41, 1.59)] == [0, 0, 10, 39]
    for times in ([1.0, 0.0, 1.59], torch.tensor([1.0, 0.0, 1.59]), np.array([1.0, 0.0, 1.59])):
        assert numbers_of(decoder.get_frames_played_at(times).data) == [25, 0, 39]
    assert decoder.get_frames_played_at([]).data.shape == (0, 3, 96, 128)


def test_every_frame_at_its_own_time(cached_media: Callable) -> None:
    times = [7 * i * i // 3 + 20 * i for i in range(40)]
    decoder = VideoDecoder(cached_media("vfr_times.mp4", lambda p: write_video(p, times=times)))
    pts = decoder.get_frames_in_range(0, 40).pts_seconds
    assert numbers_of(decoder.get_frames_played_at(pts).data) == list(range(40))
    assert numbers_of(decoder.get_frames_played_at(pts[1:] - 1e-6).data) == list(range(39))


def test_frames_in_a_time_range(decoder: VideoDecoder) -> None:
    def played(*args: Any) -> list[int]:
        return numbers_of(decoder.get_frames_played_in_range(*args).data)

    assert played(0.41, 0.6) == [10, 11, 12, 13, 14]
    assert played(0.4, 0.4 + 1e-9) == [10]
    assert played(0.4, 0.4) == []
    assert played(0, 1.6) == numbers_of(decoder.get_all_frames().data) == list(range(40))


# (start, stop, fps) and how many frames: (stop - start) * fps, rounded, halves up
@pytest.mark.parametrize(
    ("start", "stop", "fps", "count"),
    [
        (0, 0.05, 10, 1),
        (0, 0.04, 10, 0),
        (0, 0.15, 10, 2),
        (0.3, 1.0, 7.3, 5),
        (0.5, 0.55, 1, 0),
        (1, 1, 9, 0),
    ],
)
def test_frames_at_a_rate(start: float, stop: float, fps: float, count: int, decoder: VideoDecoder) -> None:
    batch = decoder.get_frames_played_in_range(start, stop, fps=fps)
    times = [start + i * (1 / fps) for i in range(count)]
    assert batch.pts_seconds.tolist() == times
    assert batch.duration_seconds.tolist() == [1 / fps] * count
    assert numbers_of(batch.data) == [int(t / 0.04) for t in times]


def test_all_frames_at_a_rate(decoder: VideoDecoder) -> None:
    assert numbers_of(decoder.get_all_frames(fps=5).data) == [0, 5, 10, 15, 20, 25, 30, 35]
    assert numbers_of(decoder.get_all_frames(fps=50).data[:4]) == [0, 0, 1, 1]


# --- modes


def test_approximate_seeking(clip: Path) -> None:
    decoder = VideoDecoder(clip, seek_mode="approximate")
    assert numbers_of(decoder.get_frames_at([30, 2, -1]).data) == [30, 2, 39]
    assert numbers_of(decoder.get_frames_played_in_range(0.4, 0.5).data) == [10, 11, 12]
    assert decoder.metadata.num_frames_from_content is None
    assert (decoder.metadata.num_frames, decoder.metadata.end_stream_seconds) == (40, 1.6)
    with pytest.raises(RuntimeError, match="key frames"):
        decoder._get_key_frame_indices()


def test_approximate_seeking_beyond_the_last_frame(clip: Path, cached_media: Callable) -> None:
    # The edit list hides frames that the header counts.
    path = cached_media("edited.mp4", lambda p: remux(clip, p, shift=-12))
    assert len(VideoDecoder(path)) == 28
    decoder = VideoDecoder(path, seek_mode="approximate")
    with pytest.raises(RuntimeError, match="Requested next frame while there are no more frames") as caught:
        decoder[:]
    assert isinstance(caught.value, mmcore.DecodeError)


def _mappings(numbers: Any, clip: Path, *, prefix: str = "") -> str:
    tb = mmcore.VideoDecoder(clip).frame_times.time_base
    frames = [
        {
            f"{prefix}pts": round(i / 25 / tb),
            f"{prefix}duration": str(round(1 / 25 / tb)),
            "key_frame": int(i % 12 == 0),
        }
        for i in numbers
    ]
    return json.dumps({"frames": frames})


@pytest.mark.parametrize("form", [str, str.encode, io.StringIO])
@pytest.mark.parametrize("prefix", ["", "pkt_"])
def test_custom_frame_mappings(form: Callable, prefix: str, clip: Path) -> None:
    numbers = [0, 1, 2, 20, 21, 24, 3]  # of a file's frames some, in any order
    decoder = VideoDecoder(clip, custom_frame_mappings=form(_mappings(numbers, clip, prefix=prefix)))
    assert len(decoder) == 7
    assert numbers_of(decoder[:]) == sorted(numbers)
    assert number_of(decoder[-1]) == 24
    assert numbers_of(decoder.get_frames_played_at([0.5, 0.81, 0.99]).data) == [3, 20, 24]
    assert decoder._get_key_frame_indices().tolist() == [0, 6]
    assert (decoder.metadata.num_frames, decoder.metadata.num_frames_from_header) == (7, 40)
    assert decoder.metadata.end_stream_seconds == 1.0


@pytest.mark.parametrize(
    ("mappings", "message"),
    [
        ("no JSON", "Invalid custom frame mappings"),
        ("{}", "missing the required 'frames' key"),
        ("[]", "missing the required 'frames' key"),
        ('{"frames": []}', "missing the required 'frames' key"),
        ('{"frames": [{"pts": 0}]}', "keys are required in the frame metadata"),
        ('{"frames": [{"pts": 1, "duration": 1, "key_frame": 1}]}', "no frame with pts 1"),
    ],
)
def test_custom_frame_mappings_that_are_wrong(mappings: str, message: str, clip: Path) -> None:
    with pytest.raises(ValueError, match=message):
        VideoDecoder(clip, custom_frame_mappings=mappings)
    with pytest.raises(ValueError, match="seek_mode"):
        VideoDecoder(clip, custom_frame_mappings=mappings, seek_mode="approximate")


# --- sources and streams


class _OnlyReadAndSeek:
    def __init__(self, content: bytes) -> None:
        self._file = io.BytesIO(content)

    def read(self, size: int) -> bytes:
        return self._file.read(size)

    def seek(self, offset: int, whence: int) -> int:
        return self._file.seek(offset, whence)


def _tensor(path: Path) -> torch.Tensor:
    return torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)


@pytest.mark.parametrize(
    "form",
    [str, Path, Path.read_bytes, _tensor, lambda p: _OnlyReadAndSeek(p.read_bytes())],
    ids=["str", "path", "bytes", "tensor", "read_and_seek"],
)
def test_sources(form: Callable, clip: Path) -> None:
    assert numbers_of(VideoDecoder(form(clip)).get_frames_at([30, 3]).data) == [30, 3]


@pytest.mark.parametrize("buffering", [0, 4096])
def test_open_files(buffering: int, clip: Path) -> None:
    with open(clip, "rb", buffering=buffering) as file:
        assert number_of(VideoDecoder(file)[17]) == 17


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (123, TypeError, "Unknown source type"),
        (None, TypeError, "Unknown source type"),
        (io.StringIO("text"), TypeError, "binary reading"),
        ("no/such/file.mp4", RuntimeError, "no such file"),
        (b"no media file" * 100, RuntimeError, "Invalid data found"),
        (torch.zeros(100), TypeError, "uint8"),
    ],
)
def test_sources_that_are_wrong(source: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        VideoDecoder(source)
    assert isinstance(caught.value, mmcore.DecodeError) == (error is RuntimeError)


def test_a_connection_is_opened_only_for_a_url(clip: Path) -> None:
    assert is_url("https://example.org/a.mp4")
    assert not any(map(is_url, (str(clip), clip, b"https://", "a.mp4", "C:/a.mp4")))


def test_streams(cached_media: Callable) -> None:
    path = cached_media("streams.mp4", lambda p: write_video(p, num_frames=5, extra_streams=True))
    decoder = VideoDecoder(path)
    assert decoder.stream_index == decoder.metadata.stream_index == 2
    assert number_of(VideoDecoder(path, stream_index=2)[3]) == 3
    with pytest.raises(ValueError, match="40 is not a valid stream"):
        VideoDecoder(path, stream_index=40)
    with pytest.raises(ValueError, match="not a video stream"):
        VideoDecoder(path, stream_index=0)


def test_metadata(cached_media: Callable) -> None:
    tags = {"colorspace": 1, "color_range": 1, "color_primaries": 1, "color_trc": 1}
    path = cached_media("tagged.mp4", lambda p: write_video(p, rotation=90, tags=tags))
    m = VideoDecoder(path).metadata
    assert (m.codec, m.pixel_format, m.stream_index) == ("h264", "yuv420p", 0)
    assert (m.width, m.height, m.rotation) == (96, 128, -90.0)
    assert (m.color_space, m.color_primaries, m.color_transfer_characteristic) == ("bt709",) * 3
    assert (m.begin_stream_seconds, m.end_stream_seconds, m.duration_seconds) == (0, 1.6, 1.6)
    assert (m.begin_stream_seconds_from_content, m.end_stream_seconds_from_content) == (0, 1.6)
    assert (m.num_frames, m.num_frames_from_content, m.num_frames_from_header) == (40, 40, 40)
    assert (m.average_fps, m.average_fps_from_header) == (pytest.approx(25), 25)
    lines = str(m).splitlines()
    assert lines[0] == "VideoStreamMetadata:"
    assert "  rotation: -90.0" in lines
    assert len(lines) == 24


@pytest.mark.parametrize(("rotation", "told"), [(0, None), (90, -90.0), (180, -180.0), (270, 90.0)])
def test_rotation(rotation: int, told: float | None, clip: Path, cached_media: Callable) -> None:
    path = cached_media(f"turned{rotation}.mp4", lambda p: write_video(p, rotation=rotation))
    turned = VideoDecoder(path)
    assert turned.metadata.rotation == told
    assert torch.equal(turned[11], torch.rot90(VideoDecoder(clip)[11], -rotation // 90, (1, 2)))


# --- errors


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda d: d[40], IndexError, "Invalid frame index=40"),
        (lambda d: d[-41], IndexError, "Invalid frame index"),
        (lambda d: d["0"], TypeError, "Unsupported key type"),
        (lambda d: d[2.3], TypeError, "Unsupported key type"),
        (lambda d: d[::-1], RuntimeError, "Step must be greater than 0"),
        (lambda d: d.get_frame_at(40), IndexError, "must be less than 40"),
        (lambda d: d.get_frame_at(-41), IndexError, "negative indices must have an absolute value less"),
        (lambda d: d.get_frame_at(1.5), TypeError, "index: expected an int"),
        (lambda d: d.get_frames_at([40]), IndexError, "Invalid frame index=40 for streamIndex=0"),
        (lambda d: d.get_frames_at([0.3]), RuntimeError, "Long but found Float"),
        (lambda d: d.get_frames_at([True]), RuntimeError, "Long but found Bool"),
        (lambda d: d.get_frames_at([[1, 2]]), ValueError, "indices: expected one dimension"),
        (lambda d: d.get_frames_in_range(0, 5, 0), ValueError, "step"),
        (lambda d: d.get_frames_in_range(0, 5, -1), RuntimeError, "Step must be greater than 0"),
        (lambda d: d.get_frames_in_range(1.5, 3), TypeError, "integers"),
        (lambda d: d.get_frame_played_at(-0.1), IndexError, "Invalid pts in seconds"),
        (lambda d: d.get_frame_played_at(1.6), IndexError, "Invalid pts in seconds"),
        (lambda d: d.get_frame_played_at(float("nan")), IndexError, "Invalid pts in seconds"),
        (lambda d: d.get_frames_played_at([-1]), RuntimeError, "must be greater than or equal to"),
        (lambda d: d.get_frames_played_at([0, 1.6]), RuntimeError, "must be less than"),
        (lambda d: d.get_frames_played_at([float("nan")]), RuntimeError, "must be greater than or equal"),
        (lambda d: d.get_frames_played_at(["bad"]), ValueError, "Couldn't convert timestamps input to a"),
        (lambda d: d.get_frames_played_in_range(1, 0.5), ValueError, "Invalid start seconds"),
        (lambda d: d.get_frames_played_in_range(1.6, 1.6), ValueError, "Invalid start seconds"),
        (lambda d: d.get_frames_played_in_range(0, 1.7), ValueError, "Invalid stop seconds"),
        (lambda d: d.get_frames_played_in_range(0, 1, fps=0), RuntimeError, "fps must be positive"),
        (lambda d: d.get_frames_played_in_range(0, 1, fps=-3), RuntimeError, "fps must be positive"),
        (lambda d: d.get_all_frames(fps=float("inf")), RuntimeError, "fps must be positive"),
    ],
)
def test_wrong_calls(call: Callable, error: type[Exception], message: str, decoder: VideoDecoder) -> None:
    with pytest.raises(error, match=message):
        call(decoder)
    assert number_of(decoder[1]) == 1


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"seek_mode": "blah"}, ValueError, "Invalid seek mode"),
        ({"dimension_order": "CHW"}, ValueError, "Invalid dimension order"),
        ({"num_ffmpeg_threads": None}, ValueError, "num_ffmpeg_threads"),
        ({"num_ffmpeg_threads": -1}, ValueError, "num_ffmpeg_threads"),
        ({"num_ffmpeg_threads": "2"}, TypeError, "num_ffmpeg_threads"),
        ({"device": "cuda"}, mmcore.UnsupportedError, "Unsupported device: cuda"),
        ({"device": "meta"}, RuntimeError, "Unsupported device: meta"),
        ({"device": "blah"}, RuntimeError, "blah"),
    ],
)
def test_wrong_settings(settings: dict, error: type[Exception], message: str, clip: Path) -> None:
    with pytest.raises(error, match=message):
        VideoDecoder(clip, **settings)


def test_settings_that_change_nothing(clip: Path) -> None:
    for settings in (
        {"num_ffmpeg_threads": 0},
        {"num_ffmpeg_threads": 4},
        {"device": torch.device("cpu", 0)},
    ):
        assert number_of(VideoDecoder(clip, **settings)[8]) == 8  # type: ignore[arg-type]
    with set_cuda_backend("FFMPEG"):
        decoder = VideoDecoder(clip)
    assert decoder.cpu_fallback.status_known
    assert not decoder.cpu_fallback
    assert str(decoder.cpu_fallback) == "[CPU] Fallback status: No fallback required"
    with pytest.raises(ValueError, match="Invalid CUDA backend"), set_cuda_backend("blah"):
        pass
    before = get_nvdec_cache_capacity()
    with contextlib.ExitStack() as stack:
        stack.callback(set_nvdec_cache_capacity, before)
        set_nvdec_cache_capacity(3)
        with pytest.raises(RuntimeError, match="must be non-negative"):
            set_nvdec_cache_capacity(-1)
        assert get_nvdec_cache_capacity() == 3


def test_default_device(clip: Path) -> None:
    with torch.device("meta"), pytest.raises(mmcore.UnsupportedError, match="device"):
        VideoDecoder(clip)


@pytest.mark.parametrize("cls", [getattr(torchcodec.encoders, name) for name in torchcodec.encoders.__all__])
def test_what_is_not_built_says_so(cls: type, clip: Path) -> None:
    with pytest.raises(mmcore.UnsupportedError, match=f"{cls.__name__} is not built in mmcore yet"):
        cls(str(clip))


# --- frames as objects


def test_frame_batches() -> None:
    clips = FrameBatch(torch.rand(7, 6, 3, 2, 4), torch.rand(7, 6), torch.rand(7, 6))
    assert len(clips) == 7
    for one, again in zip(clips, (clips[i] for i in range(7)), strict=True):
        assert (one.data.shape, one.pts_seconds.shape) == ((6, 3, 2, 4), (6,))
        assert torch.equal(one.data, again.data)
    assert clips[0][1].pts_seconds.shape == ()
    assert clips[torch.arange(3)].data.shape == (3, 6, 3, 2, 4)
    assert clips[2:4].duration_seconds.shape == (2, 6)
    assert str(clips[0]).splitlines()[:2] == ["FrameBatch:", "  data (shape): torch.Size([6, 3, 2, 4])"]
    assert torch.equal(pickle.loads(pickle.dumps(clips)).data, clips.data)
    frame = Frame(torch.rand(3, 2, 4), 1, 2)  # type: ignore[arg-type]
    assert (
        repr(frame)
        == "Frame:\n  data (shape): torch.Size([3, 2, 4])\n  pts_seconds: 1.0\n  duration_seconds: 2.0\n"
    )


@pytest.mark.parametrize(
    ("data", "pts", "duration", "message"),
    [
        ((2, 3), (), (), "at least 3-dimensional"),
        ((1, 2, 3), (1,), (1,), "leading dimensions of the inputs do not match"),
        ((3, 4, 2, 1), (3,), (2,), "leading dimensions of the inputs do not match"),
        ((5, 3, 4, 2, 1), (5, 2), (5, 3), "leading dimensions of the inputs do not match"),
    ],
)
def test_frame_batches_that_do_not_fit(data: Any, pts: Any, duration: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FrameBatch(torch.rand(data), torch.rand(pts), torch.rand(duration))
    with pytest.raises(ValueError, match="must be 3-dimensional"):
        Frame(torch.rand(1, 1, 1, 1), 0.0, 0.0)


def test_decoders_are_pickled(clip: Path) -> None:
    decoder = VideoDecoder(clip, transforms=[RandomCrop((64, 64)), Resize((32, 32))], dimension_order="NHWC")
    again = pickle.loads(pickle.dumps(decoder))
    assert torch.equal(again[20:23], decoder[20:23])


# --- pixels


@pytest.mark.parametrize(
    ("pix_fmt", "tags"),
    [
        ("yuv420p", {}),
        ("yuv420p", {"colorspace": 1, "color_range": 1}),
        ("yuvj420p", {}),
        ("yuv422p", {}),
        ("yuv444p", {}),
    ],
)
def test_pixels_are_ffmpegs(pix_fmt: str, tags: dict[str, int], cached_media: Callable) -> None:
    path = cached_media(
        f"pixels_{pix_fmt}_{len(tags)}.mp4",
        lambda p: write_video(p, num_frames=4, pix_fmt=pix_fmt, tags=tags),
    )
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        rgb = frame.reformat(format="rgb24", src_colorspace=int(frame.colorspace), dst_color_range="JPEG")
        expected = rgb.to_ndarray().astype(int)
    got = VideoDecoder(path, dimension_order="NHWC")[0].numpy().astype(int)
    assert np.abs(got - expected).max() <= 3


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "size"),
    [("libx264", "yuv420p10le", (96, 128)), ("mjpeg", "yuvj420p", (95, 129)), ("ffv1", "gray", (96, 128))],
)
def test_frames_that_ffmpeg_converts_otherwise(
    codec: str, pix_fmt: str, size: tuple[int, int], cached_media: Callable
) -> None:
    path = cached_media(
        f"{pix_fmt}_{size[0]}.mkv", lambda p: write_video(p, codec, 4, size=size, pix_fmt=pix_fmt)
    )
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        rgb = frame.reformat(format="rgb24", interpolation="BICUBIC").to_ndarray().astype(int)
    got = pickle.loads(pickle.dumps(VideoDecoder(path, dimension_order="NHWC")))[0].numpy().astype(int)
    # reformat leaves the vertical place of chroma at the top of a block: half a sample from the decoder's
    assert np.abs(got - rgb).mean() < 1.0
    if pix_fmt != "gray":
        assert np.abs(got - picture(0, *size).astype(int)).mean() < 6
