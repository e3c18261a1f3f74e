"""Decoding on NVDEC: what FFmpeg and the driver are asked, what its frames become, and the CPU instead."""

from __future__ import annotations

import contextlib
import ctypes
import re
from pathlib import Path
from typing import Any

import av
import frames_emulator
import pytest
import torch
from media import write_video
from surfaces import FakeNvdec, Surface

import mmcore
from mmcore import DecodeError, FrameTransform, UnsupportedError, VideoDecoder
from mmcore.decoding import nvdec, nvdec_choice
from mmcore.ops.pixel_formats import PIXEL_FORMATS
from mmcore.ops.planes import ColorSpec
from mmcore.ops.surfaces import is_surface, surface_planes

DRIVER, CUVID = nvdec_choice._LIBRARIES


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


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if frames_emulator.compiler() is None:
        pytest.skip("needs the sources and a C++ compiler")
    return frames_emulator.build(tmp_path_factory.mktemp("emulator"))


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


# --- whether it is there


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What can be loaded: nothing at first."""
    found: dict[str, Any] = {}
    monkeypatch.setattr(nvdec_choice, "_load", found.get)
    nvdec_choice._capabilities.cache_clear()
    return found


def test_what_is_missing(libraries: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("av.codec.hwaccel.hwdevices_available", lambda: ["cuda"])
    assert nvdec_choice.why_not_here() == f"there is no NVIDIA driver: {DRIVER} cannot be loaded"
    libraries[DRIVER] = object()
    reason = nvdec_choice.why_not_here()
    assert reason is not None
    assert "NVIDIA_DRIVER_CAPABILITIES=video" in reason
    libraries[CUVID] = object()
    assert nvdec_choice.why_not_here() is None
    monkeypatch.setattr("av.codec.hwaccel.hwdevices_available", lambda: ["vaapi"])
    assert nvdec_choice.why_not_here() == "PyAV's FFmpeg was built without CUDA"


needs_no_driver = pytest.mark.skipif(
    nvdec_choice._load(DRIVER) is not None, reason="there is an NVIDIA driver here"
)


@needs_no_driver
def test_this_machine_has_none() -> None:
    reason, _ = nvdec_choice.look("h264", "yuv420p", 1920, 1088, torch.device("cuda"))
    assert reason == nvdec_choice.why_not_here() != None  # noqa: E711


@needs_no_driver
def test_what_ffmpeg_raises_without_a_driver(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvdec, "make_current", lambda: None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    with av.open(str(clip)) as container, pytest.raises(DecodeError, match="CUDA device 0 cannot be opened"):
        nvdec.Nvdec(0).open(container.streams.video[0])


def test_layout_of_the_drivers_answer() -> None:
    caps = nvdec_choice.Capabilities
    assert ctypes.sizeof(caps) == 88
    offsets = {"is_supported": 24, "num_engines": 25, "max_width": 28, "min_width": 40, "min_height": 42}
    assert {name: getattr(caps, name).offset for name in offsets} == offsets


@pytest.fixture
def gpu(libraries: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """A driver whose GPU has 3 engines for 4:2:0 but for AV1, from 48x16 to 4096x4096; what it was asked."""
    asked: list[tuple[int, int, int]] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(nvdec_choice.Capabilities))
    def answer(caps: Any) -> int:
        c = caps.contents
        asked.append((c.codec, c.chroma_format, c.bit_depth_minus_8))
        c.is_supported = c.chroma_format == 1 and c.codec != 11
        c.num_engines = 3
        c.min_width, c.min_height, c.max_width, c.max_height = 48, 16, 4096, 4096
        c.max_macroblocks = 4096 * 2304 // 256
        return 0

    libraries[DRIVER] = object()
    libraries[CUVID] = type("Library", (), {"cuvidGetDecoderCaps": staticmethod(answer)})()
    monkeypatch.setattr("av.codec.hwaccel.hwdevices_available", lambda: ["cuda"])
    monkeypatch.setattr(nvdec_choice, "make_current", lambda: None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    return asked


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "size", "reason"),
    [
        ("h264", "yuv420p", (1920, 1088), None),
        ("hevc", "yuv420p10le", (3840, 2160), None),
        ("vp9", "yuvj420p", (48, 16), None),
        ("av1", "yuv420p", (640, 480), r"of this GPU \(Some GPU\) does not decode av1 yuv420p"),
        ("h264", "yuv422p", (640, 480), "does not decode h264 yuv422p"),
        ("hevc", "yuv444p12le", (640, 480), "does not decode hevc yuv444p12le"),
        ("h264", "gray", (640, 480), "does not decode h264 to gray"),
        ("h264", None, (640, 480), "does not decode h264 to None"),
        ("mpeg4", "yuv420p", (640, 480), "does not decode mpeg4 to the bit; it does h264, hevc, vp8"),
        ("h264", "yuv420p", (32, 480), "from 48x16 to 4096x4096 pixels, not 32x480"),
        ("h264", "yuv420p", (4112, 480), "not 4112x480"),
        ("h264", "yuv420p", (4096, 4096), "of 4096x4096 pixels, so many in all"),
    ],
)
def test_what_the_gpu_decodes(
    codec: str, pix_fmt: str | None, size: tuple[int, int], reason: str | None, gpu: Any
) -> None:
    found, engines = nvdec_choice.look(codec, pix_fmt, *size, torch.device("cuda"))
    if reason is None:
        assert (found, engines) == (None, 3)
        assert gpu == [(nvdec_choice.CODECS[codec], 1, 2 if "10" in (pix_fmt or "") else 0)]
    else:
        assert found is not None
        assert re.search(reason, found)


def test_a_driver_that_cannot_tell(gpu: Any, libraries: dict[str, Any]) -> None:
    libraries[CUVID] = object()
    assert nvdec_choice.look("av1", "yuv420p", 64, 64, torch.device("cuda")) == (None, 1)
