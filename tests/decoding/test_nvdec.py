"""Decoding on NVDEC: what FFmpeg and the driver are asked, what its frames become, and the CPU instead."""

from __future__ import annotations

import ctypes
import functools
import gc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import frames_emulator
import pytest
import torch
from fake_gpu import FakeGpu, fake_gpu
from media import damage, write_video
from surfaces import FakeNvdec, Plane, Surface

import mmcore
from mmcore import DecodeError, FrameTransform, UnsupportedError, VideoDecoder
from mmcore.decoding import nvdec, nvdec_choice
from mmcore.ops.pixel_formats import PIXEL_FORMATS
from mmcore.ops.planes import ColorSpec
from mmcore.ops.surfaces import is_surface, surface_planes


def same(frame: av.VideoFrame) -> av.VideoFrame:
    return frame


def decode_by(fake: FakeNvdec, path: Path, **options: Any) -> VideoDecoder:
    """A decoder whose frames come from ``fake``."""
    decoder = VideoDecoder(path, **options)
    assert decoder.metadata.num_frames
    decoder._reader.nvdec = fake  # type: ignore[assignment]
    assert decoder.decoder == "nvdec"
    return decoder


# --- a decoder beside the stream's own


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("b_frames.mp4", "libx264", {"options": {"bf": "3"}}),
        ("ten_bits.mp4", "libx264", {"pix_fmt": "yuv420p10le"}),
        ("tagged.mkv", "libx264", {"tags": {"colorspace": 1, "color_range": 2}}),
        ("open.ts", "libx264", {"options": {"bf": "2", "x264-params": "open-gop=1"}}),
        ("headless.h264", "libx264", {}),
        ("counted.avi", "libx264", {"options": {"bf": "2"}}),
        ("small.mp4", "libx265", {"options": {"x265-params": "log-level=none"}}),
        ("vp8.webm", "libvpx", {}),
        ("vp9.webm", "libvpx-vp9", {}),
        ("turned.mp4", "libx264", {"rotation": 90}),
    ],
)
@pytest.mark.parametrize("threads", [1, 3])
def test_it_gives_the_frames_of_the_own_one(
    name: str, codec: str, options: dict[str, Any], threads: int, tmp_path: Path
) -> None:
    path = write_video(tmp_path / name, codec, 40, **options)
    expected = VideoDecoder(path)[:]
    decoder = decode_by(FakeNvdec(same), path, num_threads=threads)
    for numbers in ([17], [3, 4, 30], [39, 0, 12], [11, 12, 13], [5], [6, 7], range(40)):
        assert torch.equal(decoder.get_frames_at(numbers).data, expected[list(numbers)])
    assert torch.equal(torch.stack(list(decoder)), expected)
    own = decoder._reader.opened()[1].codec_context
    assert decoder._reader._codec is not own
    assert not own.is_open


def test_it_stays_with_the_decoder(clip: Path) -> None:
    import pickle

    decoder = VideoDecoder(clip)
    decoder.metadata  # noqa: B018
    decoder._reader.nvdec = nvdec.Nvdec(3, 2)
    copy = pickle.loads(pickle.dumps(decoder))
    assert copy._reader.nvdec == nvdec.Nvdec(3, 2)
    assert copy._reader.twin(1).nvdec == nvdec.Nvdec(3, 2)


def test_seeks_without_an_index(clip: Path) -> None:
    expected = VideoDecoder(clip)[:]
    decoder = decode_by(FakeNvdec(same), clip, seek_mode="approximate")
    for number in (20, 3, 4, 39, 0):
        assert torch.equal(decoder[number], expected[number])


def test_what_was_lost_to_one_decoder_is_tried_with_another(clip: Path) -> None:
    class Broken:
        def decode(self, packet: Any) -> Any:
            raise av.InvalidDataError(1, "no such thing")

        def flush_buffers(self) -> None:
            pass

        name = "broken"

    decoder = VideoDecoder(clip)
    expected = decoder[0]
    reader = decoder._reader
    reader.nvdec = type("Opener", (), {"open": lambda self, stream: Broken()})()  # type: ignore[assignment]
    with pytest.raises(DecodeError, match=r"frame 0 .* cannot be decoded"):
        decoder[0]
    reader.nvdec = None
    assert torch.equal(decoder[0], expected)


# --- what its frames are

SIZES = [("yuv420p", (96, 128)), ("yuv420p", (50, 66)), ("yuv420p10le", (98, 130)), ("yuv444p", (62, 94))]


def frames_of(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


@pytest.mark.parametrize(("pix_fmt", "size"), SIZES)
def test_surfaces_are_planes(pix_fmt: str, size: tuple[int, int], tmp_path: Path) -> None:
    transform = FrameTransform(resize=32, interpolation="bicubic")
    for frame in frames_of(write_video(tmp_path / "a.mp4", num_frames=3, size=size, pix_fmt=pix_fmt)):
        planes = surface_planes(Surface(frame))  # type: ignore[arg-type]
        assert (planes.height, planes.width) == size
        assert torch.equal(mmcore.frames_to_tensor(planes), mmcore.frames_to_tensor(frame))
        held = frame.reformat(format=planes.format)  # the same samples, in the same order
        assert torch.equal(
            mmcore.frames_to_tensor(planes, transform), mmcore.frames_to_tensor(held, transform)
        )


def test_planes_keep_the_surface(tmp_path: Path) -> None:
    frame = frames_of(write_video(tmp_path / "a.mp4", num_frames=1))[0]
    before = Surface.live
    planes = surface_planes(Surface(frame))  # type: ignore[arg-type]
    data = planes.data
    del planes
    assert Surface.live == before + 1
    assert data[0].shape == (1, 96, 128)
    del data
    assert Surface.live == before


@pytest.mark.parametrize(
    ("tags", "expected"), [((1, 2), ("709", True)), ((9, 1), ("2020", None)), ((5, 0), ("601", None))]
)
def test_colours_of_surfaces(tags: tuple[int, int], expected: Any, tmp_path: Path) -> None:
    frame = frames_of(write_video(tmp_path / "a.mp4", num_frames=1))[0]
    frame.colorspace, frame.color_range = tags
    planes = surface_planes(Surface(frame))  # type: ignore[arg-type]
    assert (planes.matrix, planes.full_range) == expected


def test_frames_that_are_no_surfaces(tmp_path: Path) -> None:
    frame = frames_of(write_video(tmp_path / "a.mp4", num_frames=1))[0]
    assert not is_surface(frame)
    assert is_surface(Surface(frame))  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="format 'yuv420p' has no planes on a device"):
        surface_planes(frame)


@pytest.mark.parametrize(("pix_fmt", "size"), SIZES)
def test_the_kernels_read_surfaces(
    pix_fmt: str, size: tuple[int, int], emulator: ctypes.CDLL, tmp_path: Path
) -> None:
    frame = frames_of(write_video(tmp_path / "a.mp4", num_frames=1, size=size, pix_fmt=pix_fmt))[0]
    planes = surface_planes(Surface(frame))  # type: ignore[arg-type]
    transform = FrameTransform(resize=(24, 40))
    expected = mmcore.frames_to_tensor(planes, transform)
    for method in (frames_emulator.AUTO, frames_emulator.GATHER):
        got, _ = frames_emulator.convert(
            emulator, planes.data, PIXEL_FORMATS[planes.format], *size, ColorSpec("601", False, "left"),
            transform, method,
        )  # fmt: skip
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


# --- batches of them


@pytest.fixture(params=["eager", "lazy", "lazy decoders", "random"])
def policy(request: pytest.FixtureRequest) -> str:
    """Whose work is done as late as it may be."""
    return str(request.param)


Make = Callable[..., VideoDecoder]


@pytest.fixture
def make(
    emulator: ctypes.CDLL, policy: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Make, FakeGpu]]:
    """Decoders with NVDEC on a fake GPU, and that GPU."""
    with fake_gpu(emulator, policy.split()[0]) as gpu:

        def opener(number: int, engines: int) -> FakeNvdec:
            assert (number, engines) == (0, 2)
            return FakeNvdec(functools.partial(Surface, gpu=gpu, eager=policy == "lazy"))

        monkeypatch.setattr(nvdec_choice, "look", lambda *kind: (None, 2))
        monkeypatch.setattr(nvdec_choice, "Nvdec", opener)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        nvdec_choice._warned.clear()

        def make(path: Path, **options: Any) -> VideoDecoder:
            return VideoDecoder(path, device="cuda", decoder="nvdec", **options)

        yield make, gpu


SMALL = FrameTransform(resize=(24, 40))


def expected_of(path: Path, transform: FrameTransform = SMALL, layout: str = "nv12") -> torch.Tensor:
    """What comes of the CPU's frames, laid out as NVDEC's."""
    frames = [frame.reformat(format=layout) for frame in frames_of(path)]
    return mmcore.frames_to_tensor(frames, transform)


def assert_near(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("threads", [None, 1, 3])
def test_batches(threads: int | None, make: tuple[Make, FakeGpu], clip: Path) -> None:
    opened, gpu = make
    expected = expected_of(clip)
    decoder = opened(clip, transform=SMALL, num_threads=threads)
    assert decoder.decoder == "nvdec"
    assert decoder._team.num_threads <= (threads or 2)
    for numbers in ([17], [3, 4, 30], [39, 0, 12, 0], list(range(40)), [11, 12, 13]):
        data = decoder.get_frames_at(numbers).data
        gpu.drain()
        assert_near(data, expected[numbers])
    assert not any(kind == "host waits" for kind, _ in gpu.log)
    singles = list(decoder)
    gpu.drain()
    assert_near(torch.stack(singles), expected)


def test_surfaces_are_not_kept(make: tuple[Make, FakeGpu], clip: Path) -> None:
    opened, gpu = make
    decoder = opened(clip, transform=SMALL, num_threads=1)
    gc.collect()
    Surface.most = Surface.live
    before = Surface.live
    data = decoder[:]
    assert Surface.most - before <= 8  # what the decoder gives at once, at the end of a group
    gpu.drain()
    assert_near(data, expected_of(clip))
    decoder.close()
    del decoder
    gc.collect()
    assert Surface.live <= before
    assert data.sum().isfinite()


@pytest.mark.parametrize(
    "transform",
    [
        FrameTransform(dtype=torch.uint8),
        SMALL.replace(layout="CNHW", interpolation="bicubic"),
        SMALL.replace(accuracy="rgb8"),
        FrameTransform(resize=(32, 48), layout=mmcore.Patches(patch_size=8, temporal_patch_size=2)),
        FrameTransform(crop=(8, 16, 40, 48), mean=(0.5,) * 3, std=(0.2,) * 3),
    ],
    ids=lambda t: str(t.layout)[:7],
)
@pytest.mark.parametrize("codec", [("yuv420p", "nv12"), ("yuv420p10le", "p010le")])
def test_formats(
    transform: FrameTransform, codec: tuple[str, str], make: tuple[Make, FakeGpu], tmp_path: Path
) -> None:
    opened, gpu = make
    path = write_video(tmp_path / "a.mp4", num_frames=5, pix_fmt=codec[0], size=(66, 98))
    data = opened(path, transform=transform)[:]
    gpu.drain()
    expected = expected_of(path, transform, codec[1])
    if transform.dtype == torch.uint8:
        assert (data.int() - expected.int()).abs().max() <= 1
    else:
        torch.testing.assert_close(data, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("rotation", [90, 180])
@pytest.mark.parametrize("how", [{}, {"interpolation": "nearest"}, {"accuracy": "rgb8"}])
def test_turned_pictures(
    rotation: int, how: dict[str, Any], make: tuple[Make, FakeGpu], tmp_path: Path
) -> None:
    opened, gpu = make
    path = write_video(tmp_path / "a.mp4", num_frames=5, rotation=rotation)
    transform = SMALL.replace(**how)
    data = opened(path, transform=transform)[:]
    gpu.drain()
    # a level of a byte more or less moves the result by the share that it has
    torch.testing.assert_close(data, VideoDecoder(path, transform=transform)[:], rtol=0, atol=1.01 / 255)


@pytest.mark.parametrize("on_error", ["skip", "nearest"])
def test_damaged_files(on_error: str, make: tuple[Make, FakeGpu], clip: Path, tmp_path: Path) -> None:
    opened, gpu = make
    path = damage(clip, tmp_path / "damaged.mp4", length=2000)
    expected = VideoDecoder(path, transform=SMALL, on_error=on_error, num_threads=1).get_frames_at(range(40))
    batch = opened(path, transform=SMALL, on_error=on_error, num_threads=1).get_frames_at(range(40))
    gpu.drain()
    assert expected.valid is not None
    assert batch.valid is not None
    assert torch.equal(batch.valid, expected.valid)
    torch.testing.assert_close(batch.data, expected.data, rtol=0, atol=2e-5)


def test_the_cpu_may_convert(make: tuple[Make, FakeGpu], clip: Path) -> None:
    opened, gpu = make
    decoder = opened(clip, transform=SMALL, convert_on="cpu")
    data = decoder[:]
    gpu.drain()
    assert decoder.decoder == "nvdec"
    assert not any(kind == "convert" for kind, _ in gpu.log)
    assert torch.equal(data, expected_of(clip))
    with mmcore.backend("reference"):
        data = decoder[:3]
        gpu.drain()
    assert_near(data, expected_of(clip)[:3])


def test_frames_of_the_cpu_between_them(make: tuple[Make, FakeGpu], clip: Path) -> None:
    opened, gpu = make
    decoder = opened(clip, transform=SMALL, num_threads=1)
    frames = iter(range(1000))

    def change(frame: av.VideoFrame) -> Any:
        return frame if next(frames) % 3 == 0 else Surface(frame, gpu=gpu)

    decoder._reader.nvdec = FakeNvdec(change)  # type: ignore[assignment]
    data = decoder[:]
    gpu.drain()
    assert_near(data, expected_of(clip))


def test_a_frame_on_another_device(
    make: tuple[Make, FakeGpu], clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, _ = make
    decoder = opened(clip, transform=SMALL)
    monkeypatch.setattr(Plane, "__dlpack_device__", lambda plane: (2, 1))
    with pytest.raises(ValueError, match="a frame lies on cuda:1, the batch shall be on cpu"):
        decoder[0]


def test_surfaces_for_the_cpu(clip: Path) -> None:
    frames = frames_of(clip)[:3]
    got = mmcore.frames_to_tensor([Surface(frame) for frame in frames], SMALL)  # type: ignore[misc]
    assert torch.equal(got, expected_of(clip)[:3])


# --- the CPU instead


def falls_back(make: Make, path: Path, gpu: FakeGpu, message: str) -> None:
    with pytest.warns(UserWarning, match=f"decoder='nvdec': decoding on the CPU instead: {message}"):
        decoder = make(path, transform=SMALL)
    assert decoder.decoder == "cpu"
    data = decoder[:]
    gpu.drain()
    assert_near(data, VideoDecoder(path, transform=SMALL)[:])
    make(path)  # warned of already
    nvdec_choice._warned.clear()
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "decoder='nvdec'")
            with pytest.raises(UserWarning, match=message):
                make(path)


@pytest.mark.parametrize("policy", ["lazy"], indirect=True)
class TestFallback:
    def test_it_says_why(
        self, make: tuple[Make, FakeGpu], clip: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened, gpu = make
        asked: list[Any] = []

        def look(*kind: Any) -> tuple[str, int]:
            asked.append(kind)
            return "there is no such thing", 0

        monkeypatch.setattr(nvdec_choice, "look", look)
        falls_back(opened, clip, gpu, "there is no such thing")
        assert asked[0] == ("h264", "yuv420p", 128, 96, torch.device("cuda"))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (same, "FFmpeg could not set up NVDEC"),
            ({"width": 130}, "cropped at the left or the top"),
            (
                {"sw_format": SimpleNamespace(name="p016le")},
                "come as p016le, which the frames op does not read",
            ),
        ],
    )
    def test_first_frame(
        self,
        change: Any,
        message: str,
        make: tuple[Make, FakeGpu],
        clip: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        opened, gpu = make

        def changed(frame: av.VideoFrame) -> Any:
            if callable(change):
                return change(frame)
            surface = Surface(frame)
            vars(surface).update(change)
            return surface

        monkeypatch.setattr(nvdec_choice, "Nvdec", lambda number, engines: FakeNvdec(changed))
        falls_back(opened, clip, gpu, f".*{message}")

    def test_it_cannot_be_opened(
        self, make: tuple[Make, FakeGpu], clip: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened, gpu = make

        class Refusing:
            def open(self, stream: Any) -> Any:
                raise DecodeError("out of memory")

        monkeypatch.setattr(nvdec_choice, "Nvdec", lambda number, engines: Refusing())
        falls_back(opened, clip, gpu, "out of memory")


def test_arguments(clip: Path) -> None:
    with pytest.raises(ValueError, match="decoder: expected 'cpu' or 'nvdec', got 'gpu'"):
        VideoDecoder(clip, decoder="gpu")
    with pytest.raises(ValueError, match="decoder='nvdec': its frames lie on a GPU: pass device='cuda'"):
        VideoDecoder(clip, decoder="nvdec")
    assert VideoDecoder(clip).decoder == "cpu"


# --- the real one


def on_nvdec(path: Path, **options: Any) -> VideoDecoder:
    """A decoder on the NVDEC of this machine; skips the test where it does not decode such a stream."""
    nvdec_choice._warned.clear()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        decoder = VideoDecoder(path, device="cuda", decoder="nvdec", **options)
    if decoder.decoder != "nvdec":
        pytest.skip(str(said[-1].message))
    return decoder


KINDS = [
    ("libx264", "yuv420p", {"bf": "3"}),
    ("libx264", "yuv420p", {"x264-params": "tff=1"}),
    ("libx265", "yuv420p", {"x265-params": "log-level=none"}),
    ("libx265", "yuv420p10le", {"x265-params": "log-level=none"}),
    ("libx265", "yuv444p", {"x265-params": "log-level=none"}),
    ("libvpx", "yuv420p", {"deadline": "realtime"}),
    ("libvpx-vp9", "yuv420p", {"deadline": "realtime"}),
    ("libsvtav1", "yuv420p", {"preset": "12"}),
]


@pytest.mark.gpu
@pytest.mark.parametrize(("codec", "pix_fmt", "options"), KINDS)
def test_planes_are_those_of_the_cpu(
    codec: str, pix_fmt: str, options: dict[str, str], tmp_path: Path
) -> None:
    path = write_video(tmp_path / "a.mkv", codec, 30, size=(358, 630), pix_fmt=pix_fmt, options=options)
    decoder, cpu = on_nvdec(path, num_threads=1), VideoDecoder(path, num_threads=1)
    for (number, got), (_, expected) in zip(
        decoder._reader.read(range(30)), cpu._reader.read(range(30)), strict=True
    ):
        assert not isinstance(got, DecodeError)
        assert not isinstance(expected, DecodeError)
        planes = surface_planes(got)
        held = expected.reformat(format=planes.format)
        for plane, same in zip(planes.data, held.planes, strict=True):
            rows = torch.frombuffer(bytearray(same), dtype=torch.uint8).view(-1, same.line_size)
            mine = plane[0].cpu().view(torch.uint8)
            assert torch.equal(mine, rows[: mine.shape[0], : mine.shape[1]]), number


@pytest.mark.gpu
def test_frames_on_a_late_stream(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", num_frames=120, size=(270, 480))
    decoder = on_nvdec(path, transform=SMALL)
    expected = decoder[:]
    torch.cuda.synchronize()
    for stream in (torch.cuda.Stream(), None):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(1 << 28)
            found = decoder[:]
            shuffled = decoder.get_frames_at([100, 3, 50]).data
        torch.cuda.synchronize()
        assert torch.equal(found, expected)
        assert torch.equal(shuffled, expected[[100, 3, 50]])
    cpu = VideoDecoder(path, transform=SMALL)[:]
    torch.testing.assert_close(expected.cpu(), cpu, rtol=0, atol=1e-4)


@pytest.mark.gpu
def test_torch_goes_on_after_a_close(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", num_frames=20, size=(270, 480), rotation=90)
    with on_nvdec(path, transform=SMALL) as decoder:
        first = decoder[:]
    del decoder
    gc.collect()
    assert torch.ones(1 << 20, device="cuda").sum().item() == 1 << 20
    assert torch.equal(on_nvdec(path, transform=SMALL, num_threads=2)[:], first)
    cpu = VideoDecoder(path, transform=SMALL)[:]
    torch.testing.assert_close(first.cpu(), cpu, rtol=0, atol=1e-4)
