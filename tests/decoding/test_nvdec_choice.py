"""Whether NVDEC decodes a stream: what the machine has, what the GPU says, and the reasons that are given."""

from __future__ import annotations

import contextlib
import ctypes
import re
from pathlib import Path
from typing import Any

import av
import pytest
import torch

from mmcore import DecodeError
from mmcore.decoding import nvdec, nvdec_choice

DRIVER, CUVID = nvdec_choice._LIBRARIES


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
