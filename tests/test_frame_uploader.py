"""Frames of PyAV onto a CUDA device: the same numbers as on the CPU, in whatever order the device works."""

from __future__ import annotations

import ctypes
import gc
import random
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import av
import frames_emulator
import pytest
import torch
from cases import FRAME_CASES, Case, make_case, make_planes
from fake_gpu import FakeGpu, fake_gpu
from frames_harness import assert_frames_right, video_frame

import mmcore
from mmcore.ops import device_target, frame_batch_builder, frame_uploader
from mmcore.ops.pixel_formats import PIXEL_FORMATS
from mmcore.ops.planes import ColorSpec

METHODS = [
    getattr(frames_emulator, name)
    for name in ("AUTO", "GATHER", "STREAM", "MATRIX", "INTEGER")
    if hasattr(frames_emulator, name)
]
SMALL = mmcore.FrameTransform(resize=(13, 20), crop=(11, 12))


@pytest.fixture(params=["lazy", "behind", "random", "eager"])
def gpu(request: pytest.FixtureRequest, emulator: ctypes.CDLL) -> Iterator[FakeGpu]:
    with fake_gpu(emulator, request.param) as gpu:
        yield gpu


@pytest.fixture
def lazy(emulator: ctypes.CDLL) -> Iterator[FakeGpu]:
    with fake_gpu(emulator, "lazy") as gpu:
        yield gpu


def frames_of(case: Case, lines: str = "padded") -> list[av.VideoFrame]:
    data = case.data()
    return [
        video_frame(case.format, [p[t] for p in data], case.height, case.width, lines)
        for t in range(case.frames)
    ]


def numbered(count: int, height: int = 24, width: int = 32, name: str = "yuv420p") -> list[av.VideoFrame]:
    """Frames that differ."""
    return [
        video_frame(
            name, [p[0] for p in make_planes(PIXEL_FORMATS[name], 1, height, width, seed=i)], height, width
        )
        for i in range(count)
    ]


def emulated(
    frames: Sequence[av.VideoFrame],
    transform: mmcore.FrameTransform,
    emulator: ctypes.CDLL,
    method: int = frames_emulator.AUTO,
) -> torch.Tensor:
    """What the kernels make of whole frames, one by one; the layout is NCHW or NHWC."""
    results = []
    for frame in frames:
        fmt = PIXEL_FORMATS[frame.format.name]
        planes = frame_batch_builder._frame_planes(frame, fmt)
        color = frame_batch_builder.color_spec(frame, transform)
        size = frame.height, frame.width
        results.append(frames_emulator.convert(emulator, planes, fmt, *size, color, transform, method)[0])
    return torch.cat(results)


def to_gpu(frames: Sequence[av.VideoFrame], transform: mmcore.FrameTransform, gpu: FakeGpu) -> torch.Tensor:
    result = mmcore.frames_to_tensor(frames, transform, device="cuda", convert_on="cuda")
    gpu.drain()
    return result


# --- the numbers


@pytest.mark.parametrize("case", FRAME_CASES, ids=lambda case: case.id)
def test_uploaded_frames_give_the_oracle_numbers(case: Case, lazy: FakeGpu, emulator: ctypes.CDLL) -> None:
    matrix, full_range, location = case.color
    transform = case.transform.replace(matrix=matrix, full_range=full_range, chroma=location)
    result = to_gpu(frames_of(case), transform, lazy)
    fmt, color = PIXEL_FORMATS[case.format], ColorSpec(*case.color)
    whole, _ = frames_emulator.convert(
        emulator, case.data(), fmt, case.height, case.width, color, case.transform
    )
    assert torch.equal(result, whole), "what was left out of the upload matters"
    assert_frames_right(case, result)


# Pictures of which much is left out, for each of the kernels.
CROPPED = [
    make_case(format=name, size=size, geometry=how, filter=kind)
    for name, size, how, kind in [
        ("yuv420p", (271, 483), {"resize": 64, "crop": 40}, ("bilinear", True)),
        ("nv12", (271, 1483), {"resize": (64, 300), "crop": (9, 170, 40, 60)}, ("bilinear", True)),
        ("nv12", (241, 1555), {"resize": (61, 90), "crop": (33, 7, 20, 33)}, ("bicubic", True)),
        ("yuv420p", (241, 655), {"resize": (61, 90), "crop": (40, 57, 20, 33)}, ("bicubic", True)),
        ("p010le", (181, 721), {"resize": (57, 159), "crop": (20, 101, 30, 21)}, ("bicubic", True)),
        ("yuv444p", (120, 161), {"crop": (33, 65, 50, 61)}, ("bilinear", True)),
        ("yuv420p10le", (120, 161), {"resize": (240, 322), "crop": (66, 130, 50, 61)}, ("bilinear", True)),
        ("rgb24", (120, 361), {"resize": (60, 180), "crop": (33, 65, 20, 61)}, ("area", True)),
    ]
]


@pytest.mark.parametrize("lines", ["padded", "negative", "cropped"])
@pytest.mark.parametrize("case", CROPPED, ids=lambda case: case.id)
def test_only_what_a_crop_needs_is_uploaded(
    case: Case, lines: str, lazy: FakeGpu, emulator: ctypes.CDLL
) -> None:
    for transform in (case.transform, case.transform.replace(accuracy="rgb8", dtype=torch.uint8)):
        frames = frames_of(case, lines)
        for method in METHODS:
            lazy.method = method
            expected = emulated(frames, transform, emulator, method)
            assert torch.equal(to_gpu(frames, transform, lazy), expected)
    kind = frame_uploader.frame_kind(
        PIXEL_FORMATS[case.format], case.height, case.width, ColorSpec("601", False, "left"), case.transform
    )
    fmt = PIXEL_FORMATS[case.format]
    whole = 0
    for plane in range(fmt.num_planes):
        rows, samples = fmt.plane_shape(plane, case.height, case.width)
        whole += rows * samples * fmt.bytes_per_sample
    assert kind.plane_bytes < 0.75 * whole


@pytest.mark.parametrize("lines", ["padded", "negative", "cropped"])
@pytest.mark.parametrize("name", PIXEL_FORMATS)
def test_every_format_however_it_lies(name: str, lines: str, lazy: FakeGpu, emulator: ctypes.CDLL) -> None:
    for h, w in ((1, 1), (17, 31), (8, 64)):
        planes = make_planes(PIXEL_FORMATS[name], 2, h, w)
        frames = [video_frame(name, [p[t] for p in planes], h, w, lines) for t in range(2)]
        assert torch.equal(to_gpu(frames, SMALL, lazy), emulated(frames, SMALL, emulator))


def test_converted_on_the_cpu_the_result_is_the_cpu_s(gpu: FakeGpu) -> None:
    frames = numbered(5)
    for transform in (SMALL, SMALL.replace(layout=mmcore.patches(4, 2, 1), crop=(8, 12)), None):
        result = mmcore.frames_to_tensor(frames, transform, device="cuda", convert_on="cpu")
        gpu.drain()
        assert torch.equal(result, mmcore.frames_to_tensor(frames, transform))
    assert not [entry for entry in gpu.log if entry[0] in ("convert", "tables", "host waits")]


def test_more_than_may_be_pinned_is_uploaded_all_the_same(
    lazy: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frame_batch_builder, "_PINNED_BYTES", 1000)
    frames = numbered(3)
    result = mmcore.frames_to_tensor(frames, SMALL, device="cuda", convert_on="cpu")
    lazy.drain()
    assert torch.equal(result, mmcore.frames_to_tensor(frames, SMALL))
    assert not [entry for entry in lazy.log if entry[0] == "pinned"]


@pytest.mark.parametrize("place", ["cpu", "cuda"])
def test_out_is_written(place: str, gpu: FakeGpu) -> None:
    frames = numbered(3)
    out = torch.zeros(3, 3, 11, 12)
    result = mmcore.frames_to_tensor(frames, SMALL, out=out, device="cuda", convert_on=place)
    gpu.drain()
    assert result is out
    torch.testing.assert_close(out, mmcore.frames_to_tensor(frames, SMALL), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="out: expected shape"):
        mmcore.frames_to_tensor(frames, SMALL, out=out[:2], device="cuda", convert_on=place)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "CNHW", mmcore.patches(4, 2, 2)])
def test_slots_are_copied_and_cleared(layout: object, gpu: FakeGpu, emulator: ctypes.CDLL) -> None:
    transform = SMALL.replace(layout=layout, crop=(8, 16))
    frames = numbered(3)
    for place in ("cuda", "cpu"):
        builder = mmcore.FrameBatchBuilder(7, transform, device="cuda", convert_on=place)
        builder.put(2, frames[0])
        builder.copy(2, 0)
        builder.put(1, frames[1])
        builder.copy(0, 5)
        builder.clear(3)
        with pytest.raises(ValueError, match=r"frames \[4, 6\] of 7"):
            builder.finish()
        builder.put(6, frames[2])
        builder.copy(6, 4)
        result = builder.finish()
        gpu.drain()
        expected = mmcore.FrameBatchBuilder(7, transform)
        for slot, frame in zip(range(7), [0, 1, 0, 0, 2, 0, 2], strict=True):
            expected.put(slot, frames[frame])
        expected.clear(3)
        torch.testing.assert_close(result, expected.finish(), rtol=0, atol=1e-5)


def test_frames_of_many_kinds_in_one_batch(gpu: FakeGpu, emulator: ctypes.CDLL) -> None:
    frames = [
        frame
        for name, size in (("yuv420p", (24, 32)), ("nv12", (33, 60)), ("gbrp10le", (50, 21)))
        for frame in numbered(2, *size, name=name)
    ]
    random.Random(1).shuffle(frames)
    assert torch.equal(to_gpu(frames, SMALL, gpu), emulated(frames, SMALL, emulator))


@pytest.mark.filterwarnings("ignore:pixel format 'yuv410p'")
def test_the_slow_ways(gpu: FakeGpu) -> None:
    foreign = [frame.reformat(format="yuv410p") for frame in numbered(3)]
    for place in ("auto", "cpu", "cuda"):
        result = mmcore.frames_to_tensor(foreign, SMALL, device="cuda", convert_on=place)
        gpu.drain()
        torch.testing.assert_close(result, mmcore.frames_to_tensor(foreign, SMALL), rtol=0, atol=1e-5)
        for rotation in (90, 180, 270):
            builders = [
                mmcore.FrameBatchBuilder(3, SMALL, rotation=rotation, device=device, convert_on=how)
                for device, how in (("cpu", "auto"), ("cuda", place))
            ]
            for builder in builders:
                builder.put_many(numbered(3))
            expected, result = (builder.finish() for builder in builders)
            gpu.drain()
            assert torch.equal(result, expected)
    assert gpu.log.count(("keep", "caller")) == gpu.log.count(("empty", "uploads"))


def test_a_backend_that_is_forced(lazy: FakeGpu) -> None:
    frames = numbered(3)
    with mmcore.backend("reference"):
        result = mmcore.frames_to_tensor(frames, SMALL, device="cuda")
        lazy.drain()
        assert torch.equal(result, mmcore.frames_to_tensor(frames, SMALL))
    with mmcore.backend("cpu"):
        result = mmcore.frames_to_tensor(frames, SMALL, device="cuda")
        lazy.drain()
        assert torch.equal(result, mmcore.frames_to_tensor(frames, SMALL))
    assert not [entry for entry in lazy.log if entry[0] == "convert"]


# --- the order


def small_groups(monkeypatch: pytest.MonkeyPatch, frames: int) -> None:
    """Let a buffer hold so many frames of 24x32 pixels."""
    kind = frame_uploader.frame_kind(PIXEL_FORMATS["yuv420p"], 24, 32, ColorSpec("601", False, "left"), SMALL)
    monkeypatch.setattr(frame_uploader, "GROUP_BYTES", frames * kind.size + 100)


def test_buffers_are_filled_again_only_after_their_upload(
    gpu: FakeGpu, emulator: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_groups(monkeypatch, 3)
    frames = numbered(40)
    assert torch.equal(to_gpu(frames, SMALL, gpu), emulated(frames, SMALL, emulator))
    groups = [slots for kind, slots in gpu.log if kind == "convert"]
    assert [len(slots) for slots in groups] == [3] * 13 + [1]
    assert sorted(slot for slots in groups for slot in slots) == list(range(40))
    buffers = sum(kind == "pinned" for kind, _ in gpu.log) - 1  # that of the tables
    assert 1 <= buffers <= frame_uploader.RING_BUFFERS
    # The host waits for uploads alone, and only with every buffer on its way.
    waits = [stream for kind, stream in gpu.log if kind == "host waits"]
    assert set(waits) <= {"uploads"}
    if gpu.policy == "lazy":
        assert len(waits) == len(groups) - frame_uploader.RING_BUFFERS


def test_nothing_is_waited_for_while_buffers_are_free(lazy: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    small_groups(monkeypatch, 3)
    mmcore.frames_to_tensor(numbered(12), SMALL, device="cuda", convert_on="cuda")
    assert not [entry for entry in lazy.log if entry[0] == "host waits"]
    assert lazy.caller.waiting
    # All that the caller's stream waits for is uploads; the last thing on it is done when the result is.
    assert [kind for kind, _ in lazy.caller.waiting].count("wait") == 4


def test_frames_are_free_when_they_were_put(
    lazy: FakeGpu, emulator: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_groups(monkeypatch, 3)
    frames = numbered(10)
    expected = emulated(frames, SMALL, emulator)
    builder = mmcore.FrameBatchBuilder(10, SMALL, device="cuda", convert_on="cuda")
    while frames:
        frame = frames.pop()
        builder.put(len(frames), frame)
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
    result = builder.finish()
    lazy.drain()
    assert torch.equal(result, expected)


def test_the_device_holds_no_more_than_the_bound(
    lazy: FakeGpu, emulator: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_groups(monkeypatch, 2)
    monkeypatch.setattr(frame_uploader, "_STAGED_BYTES", 5 * frame_uploader.GROUP_BYTES)
    frames = numbered(40)
    result = mmcore.frames_to_tensor(frames, SMALL, device="cuda", convert_on="cuda")
    assert len([s for kind, s in lazy.log if kind == "host waits" and s == "caller"]) == 20 - 5
    lazy.drain()
    assert torch.equal(result, emulated(frames, SMALL, emulator))


def test_threads_put_frames_in_any_order(
    gpu: FakeGpu, emulator: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_groups(monkeypatch, 3)
    frames = numbered(60)
    expected = emulated(frames, SMALL, emulator)
    order = list(range(60))
    for seed in range(3):
        random.Random(seed).shuffle(order)
        builder = mmcore.FrameBatchBuilder(60, SMALL, device="cuda", convert_on="cuda")
        builder.put(order[0], frames[order[0]])
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i: builder.put(i, frames[i]), order[1:]))  # noqa: B023
        result = builder.finish()
        gpu.drain()
        assert torch.equal(result, expected)


def test_a_thread_waits_while_others_fill_every_buffer(
    lazy: FakeGpu, emulator: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four threads are held up amid their copies, each in a buffer of its own; a fifth comes."""
    small_groups(monkeypatch, 1)
    held, arrived = threading.Event(), threading.Semaphore(0)
    copy_rows = frame_uploader._core.copy_rows

    def slow_copy(blocks: object) -> None:
        arrived.release()
        if threading.current_thread().name.startswith("slow"):
            assert held.wait(20)
        copy_rows(blocks)  # type: ignore[arg-type]

    monkeypatch.setattr(frame_uploader, "_core", type("Core", (), {"copy_rows": staticmethod(slow_copy)}))
    frames = numbered(5)
    builder = mmcore.FrameBatchBuilder(5, SMALL, device="cuda", convert_on="cuda")
    with ThreadPoolExecutor(4, "slow") as slow, ThreadPoolExecutor(1, "fifth") as fifth:
        puts = [slow.submit(builder.put, 0, frames[0])]
        assert arrived.acquire(timeout=20)
        puts += [slow.submit(builder.put, i, frames[i]) for i in range(1, 4)]
        for _ in range(3):
            assert arrived.acquire(timeout=20)
        last = fifth.submit(builder.put, 4, frames[4])
        assert not arrived.acquire(timeout=0.2)
        held.set()
        for put in [*puts, last]:
            put.result(20)
    result = builder.finish()
    lazy.drain()
    assert torch.equal(result, emulated(frames, SMALL, emulator))


# --- tables


def test_tables_are_uploaded_once(
    gpu: FakeGpu, emulator: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_groups(monkeypatch, 2)
    frames = numbered(9)
    for _ in range(3):
        assert torch.equal(to_gpu(frames, SMALL, gpu), emulated(frames, SMALL, emulator))
    assert len([entry for entry in gpu.log if entry[0] == "tables"]) == 1


def test_tables_that_are_forgotten_stay_until_they_were_read(
    gpu: FakeGpu, emulator: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frame_uploader, "_KEPT_TABLES", 1)
    frames = [frame for h in range(8, 14) for frame in numbered(2, h, 32)]
    random.Random(0).shuffle(frames)
    small_groups(monkeypatch, 1)
    for _ in range(2):
        assert torch.equal(to_gpu(frames, SMALL, gpu), emulated(frames, SMALL, emulator))
    assert len(gpu.shared["tables"]) == 1


# --- errors


def test_an_upload_that_fails(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    small_groups(monkeypatch, 2)
    gpu.fail_at = 3
    frames = numbered(40)
    builder = mmcore.FrameBatchBuilder(40, SMALL, device="cuda", convert_on="cuda")
    with pytest.raises(RuntimeError, match="out of patience"):
        builder.put_many(frames)
    with pytest.raises(RuntimeError, match="out of patience"):
        builder.put(0, frames[0])
    with pytest.raises(ValueError, match="never put"):
        builder.finish()


def test_threads_end_when_an_upload_fails(lazy: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    small_groups(monkeypatch, 1)
    lazy.fail_at = 1
    frames = numbered(30)
    builder = mmcore.FrameBatchBuilder(30, SMALL, device="cuda", convert_on="cuda")
    builder.put(0, frames[0])
    with ThreadPoolExecutor(8) as pool:
        puts = [pool.submit(builder.put, i, frames[i]) for i in range(1, 30)]
        errors = [put.exception(20) for put in puts]
    assert all(isinstance(error, RuntimeError) for error in errors)


def test_nothing_is_left_behind(lazy: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    small_groups(monkeypatch, 2)
    gc.disable()
    try:
        for fails in (-1, 2):
            lazy.fail_at = fails
            builder = mmcore.FrameBatchBuilder(11, SMALL, device="cuda", convert_on="cuda")
            try:
                builder.put_many(numbered(11))
                result = builder.finish()
                lazy.drain()
                assert lazy.alive(lazy.memory) == 2  # the result, and the tables that are kept
                del result
            except RuntimeError as error:
                assert fails >= 0
                error.__traceback__ = None
            uploader = weakref.ref(builder._uploader)  # type: ignore[type-var]
            del builder
            lazy.drain()
            assert uploader() is None
            assert lazy.alive(lazy.pinned) == 0
            assert lazy.alive(lazy.memory) == 1
    finally:
        gc.enable()


def test_wrong_arguments(lazy: FakeGpu, emulator: ctypes.CDLL) -> None:
    frames = numbered(2)
    with pytest.raises(ValueError, match="convert_on: expected 'auto', 'cpu' or 'cuda', got 'gpu'"):
        mmcore.frames_to_tensor(frames, device="cuda", convert_on="gpu")
    with pytest.raises(ValueError, match=r"'cuda' is for frames on a CUDA device: device='cuda'"):
        mmcore.frames_to_tensor(frames, convert_on="cuda")
    with pytest.raises(ValueError, match=r"a frame of 20x26 .* set resize"):
        mmcore.frames_to_tensor([*frames, *numbered(1, 20, 26)], device="cuda", convert_on="cuda")
    planes = mmcore.Planes(make_planes(PIXEL_FORMATS["gray"], 1, 4, 6), "gray", 4, 6)
    with pytest.raises(ValueError, match="Planes are converted where they lie"):
        mmcore.frames_to_tensor(planes, device="cuda")
    with pytest.raises(IndexError, match="slot 5 of a batch of 2"):
        mmcore.FrameBatchBuilder(2, SMALL, device="cuda").put(5, frames[0])
    with fake_gpu(emulator, cuda_kernels=False) as without:
        with pytest.raises(mmcore.UnsupportedError, match=r"no mmcore._cuda; use convert_on='auto' or 'cpu'"):
            mmcore.frames_to_tensor(frames, device="cuda", convert_on="cuda")
        result = mmcore.frames_to_tensor(frames, SMALL, device="cuda")
        without.drain()
        assert torch.equal(result, mmcore.frames_to_tensor(frames, SMALL))


# --- where "auto" converts


@pytest.mark.parametrize(
    ("size", "frames", "threads", "transform", "expected"),
    [
        # the CPU is what there is least of
        ((1080, 1920), 32, 1, mmcore.FrameTransform(resize=(224, 224), dtype=torch.float16), "cuda"),
        ((1080, 1920), 32, 4, mmcore.FrameTransform(resize=256, crop=224), "cuda"),
        ((1080, 1920), 32, 16, mmcore.FrameTransform(dtype=torch.uint8), "cuda"),
        ((2160, 3840), 64, 8, mmcore.FrameTransform(resize=(224, 224), interpolation="bicubic"), "cuda"),
        # a launch takes longer than the conversion
        ((256, 340), 1, 1, mmcore.FrameTransform(resize=256, crop=224), "cpu"),
        # so many threads that the bus is what there is least of
        ((2160, 3840), 256, 192, mmcore.FrameTransform(resize=(224, 224), dtype=torch.float16), "cpu"),
    ],
)
def test_where_auto_converts(
    size: tuple[int, int],
    frames: int,
    threads: int,
    transform: mmcore.FrameTransform,
    expected: str,
    lazy: FakeGpu,
) -> None:
    target = device_target.open_target("cuda", "auto", threads, decodes=True)
    assert target is not None
    described = (PIXEL_FORMATS["yuv420p"], *size, ColorSpec("709", False, "left"), transform)
    shape = transform.output_shape(frames, *size)
    target.uploads_planes(described, frames, shape)
    uploads = target.uploads_planes(described, frames, shape)
    assert ("cuda" if uploads else "cpu") == expected


def test_tables_that_may_be_for_once_count(lazy: FakeGpu) -> None:
    """Random crops: those of one clip are not worth tables, those that come again are."""
    target = device_target.open_target("cuda", "auto", 2, decodes=True)
    assert target is not None
    chosen = []
    for top in (0, 1, 0):
        transform = mmcore.FrameTransform(resize=(256, 340), crop=(top, 0, 224, 224))
        described = (PIXEL_FORMATS["yuv420p"], 720, 1280, ColorSpec("709", False, "left"), transform)
        chosen.append(target.uploads_planes(described, 8, (8, 3, 224, 224)))
    assert chosen == [False, False, True]


def test_auto_gives_the_same_either_way(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = numbered(4)
    expected = mmcore.frames_to_tensor(frames, SMALL)
    asked: list[Callable[..., bool]] = [lambda *_: True, lambda *_: False]
    for answer in asked:
        monkeypatch.setattr(device_target, "is_better_on_cpu", answer)
        result = mmcore.frames_to_tensor(frames, SMALL, device="cuda")
        gpu.drain()
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    assert len([entry for entry in gpu.log if entry[0] == "convert"]) == 1


# --- the same on a GPU

needs_gpu = pytest.mark.gpu


@needs_gpu
@pytest.mark.parametrize("case", [*FRAME_CASES, *CROPPED], ids=lambda case: case.id)
def test_a_device_gives_the_oracle_numbers(case: Case) -> None:
    matrix, full_range, location = case.color
    transform = case.transform.replace(matrix=matrix, full_range=full_range, chroma=location)
    result = mmcore.frames_to_tensor(frames_of(case), transform, device="cuda", convert_on="cuda")
    assert result.is_cuda
    assert_frames_right(case, result.cpu())


@needs_gpu
def test_a_device_takes_many_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    small_groups(monkeypatch, 3)
    monkeypatch.setattr(frame_uploader, "_STAGED_BYTES", 5 * frame_uploader.GROUP_BYTES)
    frames = numbered(200)
    expected = mmcore.frames_to_tensor(frames, SMALL)
    torch.cuda._sleep(100_000_000)
    for place in ("cuda", "cpu"):
        for _ in range(3):
            result = mmcore.frames_to_tensor(frames, SMALL, device="cuda", convert_on=place)
            torch.testing.assert_close(result.cpu(), expected, rtol=0, atol=1e-5)
