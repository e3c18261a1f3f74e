"""FFmpeg's own NVDEC decoder, through PyAV, on drivers that are stubs.

``python nvdec_on_stub.py FOLDER`` runs every ``check_*`` and prints as JSON what went wrong with each. It is
a program because it must be the first to load the drivers, which lie in FOLDER. They make of a picture's bits
a pattern: so a picture is known again, wherever it was decoded from.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path(sys.argv[1])
CUDA, CUVID = (
    ctypes.CDLL(str(FOLDER / name), ctypes.RTLD_GLOBAL) for name in ("libcuda.so.1", "libnvcuvid.so.1")
)

import av  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from av.codec.hwaccel import HWAccel  # noqa: E402
from fake_gpu import fake_gpu  # noqa: E402
from media import damage, write_video  # noqa: E402

import mmcore  # noqa: E402
from mmcore import VideoDecoder  # noqa: E402
from mmcore.decoding import nvdec, nvdec_choice  # noqa: E402
from mmcore.ops import frame_batch_builder, surfaces  # noqa: E402

# torch has no CUDA here, and what the stubs take for the device's memory is the host's
torch.cuda.device = lambda device: contextlib.nullcontext()  # type: ignore[assignment, misc, return-value]
torch.cuda.current_device = lambda: 0
torch.cuda.get_device_name = lambda device: "stub"  # type: ignore[assignment]
nvdec.make_current = nvdec_choice.make_current = lambda: None
for module in (surfaces, frame_batch_builder):
    module.surface_device = lambda frame: torch.device("cpu")  # type: ignore[attr-defined]

FRAMES = 40
QUIET = {"x265-params": "log-level=none"}
KINDS: dict[str, tuple[str, str, dict[str, Any], int]] = {
    # encoder, format on the device, how it is encoded, coded rows of 182 or 184
    "h264": ("libx264", "nv12", {"options": {"bf": "3"}, "size": (182, 318)}, 192),
    "interlaced": ("libx264", "nv12", {"options": {"x264-params": "tff=1"}, "size": (184, 320)}, 192),
    "high10": ("libx264", "p010le", {"pix_fmt": "yuv420p10le", "size": (182, 318)}, 192),
    "hevc": ("libx265", "nv12", {"options": QUIET, "size": (182, 318)}, 184),
    "hevc10": ("libx265", "p010le", {"options": QUIET, "pix_fmt": "yuv420p10le", "size": (182, 318)}, 184),
    "hevc444": ("libx265", "yuv444p", {"options": QUIET, "pix_fmt": "yuv444p", "size": (182, 318)}, 184),
    "vp8": ("libvpx", "nv12", {"options": {"deadline": "realtime"}, "size": (184, 320)}, 184),
    "vp9": ("libvpx-vp9", "nv12", {"options": {"deadline": "realtime"}, "size": (184, 320)}, 184),
    "av1": ("libsvtav1", "nv12", {"options": {"preset": "12"}, "size": (184, 320)}, 184),
}


def media(kind: str, suffix: str = "mkv") -> Path:
    encoder, _, how, _ = KINDS[kind]
    path = FOLDER / f"{kind}.{suffix}"
    return path if path.exists() else write_video(path, encoder, FRAMES, **how)


def on_stub(path: Path, **options: Any) -> VideoDecoder:
    """A decoder on NVDEC, which takes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoder = VideoDecoder(path, device="cuda", decoder="nvdec", **options)
    assert decoder.decoder == "nvdec"
    return decoder


def planes_of(frame: Any) -> list[np.ndarray]:
    planes = surfaces.surface_planes(frame).data
    return [plane[0].numpy().view("u1" if plane.element_size() == 1 else "u2") for plane in planes]


def seed_of(frame: Any) -> int:
    """What the stub made of the picture's bits."""
    return int(planes_of(frame)[0][0, 0])


def check_kind(kind: str) -> None:
    """Every plane, as far as the pattern goes, through the reader and in any order."""
    _, held, how, coded = KINDS[kind]
    height, width = how["size"]
    decoder = on_stub(media(kind), num_threads=1)
    frames = dict(decoder._reader.read(range(FRAMES)))
    assert len({seed_of(frame) for frame in frames.values()}) > FRAMES // 2, "pictures of the same bits"
    for frame in frames.values():  # all of them, held: more than NVDEC has surfaces
        assert (frame.format.name, frame.sw_format.name) == ("cuda", held)
        assert (frame.height, frame.width) == (height, width)
        assert_pattern(planes_of(frame), coded)
    seeds = {number: seed_of(frame) for number, frame in frames.items()}
    del frames, frame
    for numbers in ([17], [3, 4, 30], [39], [0, 12], [11, 12, 13], [25], [20, 22, 38]):
        for number, found in decoder._reader.read(numbers):
            assert not isinstance(found, mmcore.DecodeError), found
            assert seed_of(found) == seeds[number], f"frame {number} of {numbers} is another"
        del found
    decoder.close()
    check_nothing_is_left()


def assert_pattern(planes: list[np.ndarray], coded: int) -> None:
    bits, shift = (10, 6) if planes[0].itemsize == 2 else (8, 0)
    first = int(planes[0][0, 0]) >> shift
    for p, plane in enumerate(planes):
        rows, samples = plane.shape
        y = coded * p + np.arange(rows)  # in NVDEC's surface
        expected = (first + 7 * np.arange(samples) + 13 * y[:, None]) % (1 << bits)
        assert np.array_equal(plane, expected << shift), f"plane {p}"


def check_nothing_is_left() -> None:
    gc.collect()
    assert (CUVID.stub_decoders(), CUDA.stub_allocated()) == (0, 0), "decoders or memory left"


def check_batches() -> None:
    """The whole of it, but that the CPU converts what is copied from the device."""
    path = media("h264", "mp4")
    small = mmcore.FrameTransform(resize=(24, 40))
    for threads in (1, 3):
        with on_stub(path, transform=small, num_threads=threads) as decoder:
            whole = decoder[:]
            assert len({float(frame.sum()) for frame in whole}) > FRAMES // 2
            for numbers in ([5], [39, 0, 12, 0], [30, 31]):
                assert torch.equal(decoder.get_frames_at(numbers).data, whole[numbers])
            assert torch.equal(torch.stack(list(decoder)), whole)
    assert on_stub(path)._team.num_threads == min(3, mmcore.get_num_threads())
    check_nothing_is_left()


def check_rotation() -> None:
    path = write_video(FOLDER / "turned.mp4", num_frames=5, size=(96, 128), rotation=90)
    with on_stub(path) as decoder:
        assert decoder.metadata.pixel_format == "yuv420p"
        assert decoder[:].shape == (5, 3, 128, 96)
    check_nothing_is_left()


def check_planes_outlive_the_decoder() -> None:
    decoder = on_stub(media("h264"), num_threads=1)
    frame = next(decoder._reader.read((3,)))[1]
    planes, seed = surfaces.surface_planes(frame), seed_of(frame)
    decoder.close()
    del frame, decoder
    gc.collect()
    assert int(planes.data[0][0, 0, 0]) == seed
    del planes
    check_nothing_is_left()


def check_forked_process() -> None:
    """The child does not touch what is its parent's on the GPU, on which CUDA would end it."""
    decoder = on_stub(media("h264"), num_threads=1)
    found = decoder[3]
    child = os.fork()
    if not child:
        try:
            decoder.close()
            del decoder
            gc.collect()
            os._exit(0 if CUVID.stub_decoders() == 1 and CUDA.stub_allocated() else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert torch.equal(decoder[3], found)
    decoder.close()
    check_nothing_is_left()


def check_damaged_file() -> None:
    """What the parsers notice is noticed; of what is inside a slice NVDEC alone would know."""
    path = damage(media("h264"), FOLDER / "damaged.mkv", length=3000)
    decoder = on_stub(path, num_threads=1)
    for _, found in decoder._reader.read(range(len(decoder))):
        assert isinstance(found, mmcore.DecodeError) or seed_of(found) >= 0
    decoder.close()


def check_size_changes() -> None:
    path = FOLDER / "sizes.h264"
    parts = [
        write_video(FOLDER / f"{height}.h264", num_frames=10, size=(height, 128)) for height in (96, 178)
    ]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    count = len(VideoDecoder(path))
    sizes = [(f.height, f.width) for _, f in VideoDecoder(path)._reader.read(range(count))]
    assert {height for height, _ in sizes} == {96, 178}
    decoder = on_stub(path, num_threads=1)
    frames = [frame for _, frame in decoder._reader.read(range(count))]
    assert [(f.height, f.width) for f in frames] == sizes
    for frame in frames:
        assert_pattern(planes_of(frame), 96 if frame.height == 96 else 192)
    small = mmcore.FrameTransform(resize=(24, 40))
    assert on_stub(path, transform=small)[:].shape == (count, 3, 24, 40)


def check_an_engine_that_fails() -> None:
    decoder = on_stub(media("h264"), num_threads=1, on_error="skip")
    CUVID.stub_fail(1)
    try:
        batch = decoder.get_frames_at([20, 30])
        assert batch.valid is not None
        assert not batch.valid.any()
        falls_back(media("h264"), "cannot be decoded")
    finally:
        CUVID.stub_fail(0)
    assert on_stub(media("h264"), num_threads=1).get_frames_at([20, 30]).valid is None


def check_many_files_and_clips() -> None:
    path = media("h264", "mp4")
    how: dict[str, Any] = {"device": "cuda", "decoder": "nvdec"}
    expected = on_stub(path)[::10]
    sampler = mmcore.samplers.every(10)
    for result in mmcore.decode_many([path] * 4, sampler=sampler, workers=2, **how):
        assert result.batch is not None
        assert torch.equal(result.batch.data, expected)
    clip = mmcore.read_clip(path, 0, 1, video={"num_frames": 4, **how})
    assert clip.video is not None
    assert len({float(frame.sum()) for frame in clip.video.data}) == 4


def falls_back(path: Path, reason: str) -> None:
    nvdec_choice._warned.clear()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        decoder = VideoDecoder(path, device="cuda", decoder="nvdec")
    assert decoder.decoder == "cpu"
    assert reason in str(said[-1].message), said[-1].message
    assert said[-1].filename == __file__, said[-1].filename
    assert not isinstance(next(decoder._reader.read((1,)))[1], mmcore.DecodeError)


def check_fallbacks() -> None:
    wide = write_video(FOLDER / "422.mp4", num_frames=3, pix_fmt="yuv422p")
    falls_back(wide, "does not decode h264 yuv422p")
    falls_back(write_video(FOLDER / "old.mp4", "mpeg4", 3), "does not decode mpeg4 to the bit")
    falls_back(write_video(FOLDER / "vast.mp4", num_frames=2, size=(96, 4128)), "not 4128x96")
    deep = {"pix_fmt": "yuv444p10le", "options": QUIET}
    falls_back(write_video(FOLDER / "deep.mp4", "libx265", 3, size=(96, 128), **deep), "come as yuv444p")
    CUVID.stub_refuse(1)
    try:
        falls_back(media("h264"), "FFmpeg could not set up NVDEC")
        falls_back(media("av1"), "cannot be decoded")  # FFmpeg's own decoder of AV1 needs hardware
    finally:
        CUVID.stub_refuse(0)
    check_nothing_is_left()


def check_cropped_at_the_left() -> None:
    """FFmpeg crops hardware frames at the right and the bottom only."""
    path = FOLDER / "cropped.h264"
    with av.open(str(write_video(FOLDER / "plain.h264", num_frames=5, size=(96, 128)))) as source:
        stream = source.streams.video[0]
        crop = av.BitStreamFilterContext("h264_metadata=crop_left=64:crop_top=8", stream)  # less is rounded
        packets = [packet for packet in source.demux(stream) if packet.size]
        path.write_bytes(b"".join(bytes(changed) for packet in packets for changed in crop.filter(packet)))
    assert VideoDecoder(path).metadata.width == 64
    falls_back(path, "cropped at the left or the top")


def check_contexts() -> None:
    """Why the current context is asked for: FFmpeg refuses the primary one as torch leaves it."""
    with av.open(str(media("h264"))) as container:
        codec = container.streams.video[0].codec_context.codec
        HWAccel("cuda", "0", True, {"primary_ctx": "0", "current_ctx": "1"}, is_hw_owned=True).create(codec)
        try:
            HWAccel("cuda", "0", is_hw_owned=True).create(codec)
        except (av.FFmpegError, NotImplementedError):
            return
    raise AssertionError("PyAV's own choice works too")


CHECKS: dict[str, Callable[[], None]] = {
    f"planes, {kind}": functools.partial(check_kind, kind) for kind in KINDS
}
CHECKS |= {
    name.removeprefix("check_").replace("_", " "): value
    for name, value in list(globals().items())
    if name.startswith("check_") and name not in ("check_kind", "check_nothing_is_left")
}


def main() -> None:
    found = {}
    # What is decoded on the device is converted on the CPU: there are no kernels.
    with fake_gpu(None, "eager", cuda_kernels=False):  # type: ignore[arg-type]
        for name, check in CHECKS.items():
            try:
                check()
                found[name] = ""
            except BaseException:
                found[name] = traceback.format_exc()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
