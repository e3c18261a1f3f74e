"""What is asked of CUDA when Planes on a device are converted: addresses, streams, tables. No device needed.

The kernel module is replaced by one that converts on the CPU what it is given by address, and torch.cuda's
streams and events by some that only note what they are told.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import importlib.machinery
import random
import sys
import types
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from cases import make_planes
from torch import Tensor

import mmcore
import mmcore.backends
from mmcore.ops import devices, frame_groups, plane_memory
from mmcore.ops.pixel_formats import PIXEL_FORMATS
from mmcore.ops.planes import Planes

TRANSFORM = mmcore.FrameTransform(resize=(8, 12))
CUDA = torch.device("cuda", 0)


class Stream:
    def __init__(self, gpu: Gpu, handle: int) -> None:
        self.gpu, self.cuda_stream = gpu, handle

    def wait_stream(self, other: Stream) -> None:
        self.gpu.log.append(("wait", self.cuda_stream, other.cuda_stream))

    def synchronize(self) -> None:
        self.gpu.log.append(("synchronize", self.cuda_stream))


class Event:
    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.is_done = gpu, False
        gpu.events.append(self)

    def record(self, stream: Stream) -> None:
        self.gpu.log.append(("record", stream.cuda_stream))

    def query(self) -> bool:
        return self.is_done


class Tables:
    def __init__(self, gpu: Gpu, block: bytes, address: int) -> None:
        assert address % 16 == 0
        self.block, self.address, self.plan = block, address, gpu.plans[block]
        self.check()
        self.needs_scratch = gpu.needs_scratch

    def check(self) -> None:
        assert ctypes.string_at(self.address, len(self.block)) == self.block, "not what was copied there"


class Gpu:
    """What is noted, and what the next call will find."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.events: list[Event] = []
        self.plans: dict[bytes, Any] = {}
        self.uploads: list[int] = []
        self.current, self.device, self.capturing = 0, 0, False
        self.owner_of_address = -2  # what pointer_device says
        self.needs_scratch = False

    def streams(self) -> list[tuple[Any, ...]]:
        return [entry for entry in self.log if entry[0] in ("wait", "launch", "record")]

    def launch(self, groups: Sequence[Any], output: Any, scratch: int, stream: int, method: int = 0) -> None:
        self.log.append(("launch", stream, self.device, scratch))
        slot = 0
        for tables, planes, frames in groups:
            tables.check()
            lines = [[(a + t * frame, pitch) for a, pitch, frame in planes] for t in range(frames)]
            tables.plan.convert(lines, output, slot, 1)
            slot += frames


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    gpu = Gpu()
    native: Any = types.ModuleType("mmcore._cuda")
    native.__spec__ = importlib.machinery.ModuleSpec("mmcore._cuda", None)
    native.DeviceTables = lambda block, address: Tables(gpu, block, address)
    native.pointer_device = lambda address: gpu.owner_of_address
    native.groups_to_tensor = gpu.launch
    native.groups_scratch_bytes = lambda groups: 1024 * sum(frames for _, _, frames in groups)

    @contextlib.contextmanager
    def on(device: Any) -> Iterator[None]:
        before, gpu.device = gpu.device, torch.device(device).index
        yield
        gpu.device = before

    for name, value in {
        "current_stream": lambda device=None: Stream(gpu, gpu.current),
        "default_stream": lambda device=None: Stream(gpu, 0),
        "ExternalStream": lambda handle, device=None: Stream(gpu, handle),
        "Event": lambda: Event(gpu),
        "current_device": lambda: gpu.device,
        "device": on,
        "is_current_stream_capturing": lambda: gpu.capturing,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(devices, "_why_no_cuda", lambda index: None)
    monkeypatch.setattr(plane_memory, "_in_flight", plane_memory._InFlight())

    def forget() -> None:
        for name in [n for n in sys.modules if n.startswith("mmcore.backends.cuda")]:
            del sys.modules[name]

    monkeypatch.setattr(mmcore.backends, "_loaded", {})
    monkeypatch.setitem(sys.modules, "mmcore._cuda", native)
    monkeypatch.setattr(mmcore, "_cuda", native, raising=False)
    forget()
    backend: Any = importlib.import_module("mmcore.backends.cuda.frames")

    def upload(block: bytearray, device: int) -> Tensor:
        gpu.uploads.append(len(block))
        return aligned(len(block)).copy_(torch.frombuffer(block, dtype=torch.uint8))

    monkeypatch.setattr(backend, "upload", upload)
    monkeypatch.setattr(backend, "current_stream", lambda index: gpu.current)
    real_plan = frame_groups.frames_plan

    def frames_plan(*args: Any) -> Any:
        plan = real_plan(*args)
        gpu.plans[plan.device_tables()] = plan
        return plan

    monkeypatch.setattr(frame_groups, "frames_plan", frames_plan)
    frame_groups.source_kind.cache_clear()
    # results "on the device" lie in the CPU's memory
    real_out = frame_groups.prepare_out
    monkeypatch.setattr(
        frame_groups, "prepare_out", lambda out, shape, dtype, device: real_out(out, shape, dtype)
    )
    real_empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, device=None, **kwargs: real_empty(*args, **kwargs))
    yield gpu
    frame_groups.source_kind.cache_clear()
    forget()


def aligned(size: int) -> Tensor:
    memory = torch.zeros(size + 256, dtype=torch.uint8)
    start = -memory.data_ptr() % 256
    return memory[start : start + size]


def source(name: str, frames: int, h: int, w: int, seed: int = 0, **tags: Any) -> Planes:
    return Planes(make_planes(PIXEL_FORMATS[name], frames, h, w, seed=seed), name, h, w, **tags)


def on_device(planes: Planes, **kwargs: Any) -> Planes:
    """One frame of planes by address, said to be on a device."""
    return Planes.from_pointers(
        [p.data_ptr() for p in planes.data],
        [p.stride(1) * p.element_size() for p in planes.data],
        planes.format,
        planes.height,
        planes.width,
        **{"device": "cuda", "owner": planes, "matrix": planes.matrix, **kwargs},
    )


class CudaArray:
    """An array that knows ``__cuda_array_interface__`` and nothing else."""

    def __init__(self, tensor: Tensor, **changes: Any) -> None:
        size = tensor.element_size()
        self.tensor = tensor
        self.__cuda_array_interface__ = {
            "shape": tuple(tensor.shape),
            "strides": tuple(s * size for s in tensor.stride()),
            "typestr": {1: "|u1", 2: "<u2"}[size],
            "data": (tensor.data_ptr(), False),
            "version": 3,
            **changes,
        }


# what is launched


def test_frames_of_unequal_size_are_one_launch(gpu: Gpu) -> None:
    sources = [
        source("yuv420p", 1, 17, 31, 0),
        source("nv12", 1, 24, 18, 1, matrix="709"),
        source("p010le", 1, 9, 40, 2),
        source("yuv420p", 1, 17, 31, 3),
        source("rgb24", 1, 30, 7, 4),
    ]
    expected = torch.cat([mmcore.frames_to_tensor(p, TRANSFORM) for p in sources])
    result = mmcore.frames_to_tensor([on_device(p) for p in sources], TRANSFORM)
    assert torch.equal(result, expected)
    assert [entry[0] for entry in gpu.log].count("launch") == 1
    assert len(gpu.uploads) == 1, "the tables of all kinds are one copy"
    again = mmcore.frames_to_tensor([on_device(p) for p in reversed(sources)], TRANSFORM)
    assert torch.equal(again, expected.flip(0))
    assert len(gpu.uploads) == 1, "and stay there"


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "CNHW", mmcore.patches(2)])
def test_frames_at_equal_distances_and_single_ones(gpu: Gpu, layout: Any) -> None:
    transform = mmcore.FrameTransform(resize=(8, 12), layout=layout, dtype=torch.float16)
    many, one, few = source("nv12", 5, 18, 26, 0), source("gray", 1, 9, 9, 1), source("nv12", 2, 18, 26, 2)
    pictures = transform.replace(layout="NHWC")
    frames = torch.cat([mmcore.frames_to_tensor(p, pictures) for p in (many, one, few)])
    expected = mmcore.frames_to_tensor([many, one, few], transform)
    arrays = [[CudaArray(p) for p in planes.data] for planes in (many, few)]
    batch = [
        Planes.from_arrays(arrays[0], "nv12", 18, 26),
        on_device(one),
        Planes.from_arrays(arrays[1], "nv12", 18, 26),
    ]
    result = mmcore.frames_to_tensor(batch, transform)
    assert torch.equal(result, expected)
    if layout == "NHWC":
        assert torch.equal(result, frames)
    assert torch.equal(mmcore.frames_to_tensor(batch[0], transform), mmcore.frames_to_tensor(many, transform))


def test_rows_stored_last_to_first(gpu: Gpu) -> None:
    planes = source("yuv420p", 1, 17, 31)
    upside_down = [p.flip(1) for p in planes.data]
    pitches = [p.stride(1) for p in upside_down]
    pointers = [p.data_ptr() + (p.shape[1] - 1) * p.stride(1) for p in upside_down]
    result = mmcore.frames_to_tensor(
        Planes.from_pointers(pointers, [-p for p in pitches], "yuv420p", 17, 31, owner=upside_down), TRANSFORM
    )
    assert torch.equal(result, mmcore.frames_to_tensor(planes, TRANSFORM))


def test_another_device_than_the_current_one(gpu: Gpu) -> None:
    planes = source("gray", 1, 9, 9)
    gpu.device = 1
    mmcore.frames_to_tensor(on_device(planes, device="cuda:0"), TRANSFORM)
    mmcore.frames_to_tensor(on_device(planes), TRANSFORM)
    assert [entry[2] for entry in gpu.log if entry[0] == "launch"] == [0, 1]
    assert len(gpu.uploads) == 2, "each device has its own tables"
    with pytest.raises(ValueError, match="item 1 is on cuda:1, item 0 on cuda:0"):
        mmcore.frames_to_tensor([on_device(planes, device="cuda:0"), on_device(planes)], TRANSFORM)
    with pytest.raises(ValueError, match="item 1 is on cpu, item 0 on cuda:1"):
        mmcore.frames_to_tensor([on_device(planes), planes], TRANSFORM)


def test_scratch_is_taken_only_where_it_is_needed(gpu: Gpu) -> None:
    planes = on_device(source("gray", 1, 9, 9))
    mmcore.frames_to_tensor(planes, TRANSFORM)
    gpu.needs_scratch = True
    mmcore.frames_to_tensor(planes, TRANSFORM.replace(accuracy="rgb8"))
    launches = [entry for entry in gpu.log if entry[0] == "launch"]
    assert launches[0][3] == 0
    assert launches[1][3] != 0


# streams and lifetimes


def test_the_conversion_waits_for_the_producer_and_the_producer_for_it(gpu: Gpu) -> None:
    gpu.current = 0x500
    planes = on_device(source("gray", 1, 9, 9), stream=0x700)
    mmcore.frames_to_tensor(planes, TRANSFORM)
    assert [e[:3] for e in gpu.streams()] == [
        ("wait", 0x500, 0x700),
        ("launch", 0x500, 0),
        ("wait", 0x700, 0x500),
    ]


@pytest.mark.parametrize("default", [0, 1, Stream(Gpu(), 0)])
def test_the_default_stream_by_its_names(gpu: Gpu, default: Any) -> None:
    mmcore.frames_to_tensor(on_device(source("gray", 1, 9, 9), stream=default), TRANSFORM)
    assert [e[0] for e in gpu.streams()] == ["launch"], "in order as it is"
    gpu.current = 0x500
    mmcore.frames_to_tensor(on_device(source("gray", 1, 9, 9), stream=default), TRANSFORM)
    assert gpu.streams()[1][:3] == ("wait", 0x500, 0)
    assert gpu.streams()[3][:3] == ("wait", 0, 0x500)


def test_each_producer_is_waited_for_once(gpu: Gpu) -> None:
    a, b = source("gray", 1, 9, 9, 0), source("gray", 1, 9, 9, 1)
    batch = [on_device(p, stream=s) for p, s in ((a, 0x700), (b, 2), (a, 0x700), (b, 0))]
    mmcore.frames_to_tensor(batch, TRANSFORM)
    assert [e[:3] for e in gpu.streams()] == [
        ("wait", 0, 0x700),
        ("wait", 0, 2),
        ("launch", 0, 0),
        ("wait", 0x700, 0),
        ("wait", 2, 0),
    ]


@pytest.mark.parametrize("stream", [-1, "7", 1.5])
def test_what_is_no_stream(gpu: Gpu, stream: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="stream: expected"):
        on_device(source("gray", 1, 9, 9), stream=stream)


def held(gpu: Gpu, **kwargs: Any) -> tuple[Planes, weakref.ref[Any]]:
    owner = source("gray", 1, 9, 9)
    data = owner.data  # outlives the owner: what is read is never gone in this test
    gpu.log.append(("kept", data))
    return on_device(owner, owner=owner, **kwargs), weakref.ref(owner)


def test_an_owner_without_a_stream_is_kept_until_the_conversion_has_run(gpu: Gpu) -> None:
    planes, owner = held(gpu)
    mmcore.frames_to_tensor(planes, TRANSFORM)
    del planes
    gc.collect()
    assert owner() is not None
    assert [e[0] for e in gpu.streams()] == ["launch", "record"]
    other, _ = held(gpu)
    mmcore.frames_to_tensor(other, TRANSFORM)
    assert owner() is not None, "the first conversion still runs"
    gpu.events[0].is_done = True
    mmcore.frames_to_tensor(other, TRANSFORM)
    gc.collect()
    assert owner() is None
    assert len(plane_memory._in_flight) == 2


def test_an_owner_with_a_stream_is_not_kept(gpu: Gpu) -> None:
    planes, owner = held(gpu, stream=0x700)
    mmcore.frames_to_tensor(planes, TRANSFORM)
    del planes
    gc.collect()
    assert owner() is None, "its memory is reused in the order of its stream, which waits"
    assert not gpu.events


def test_an_owner_that_converts_when_it_ends(gpu: Gpu) -> None:
    other = on_device(source("gray", 1, 9, 9, 1), stream=0)
    planes, owner = held(gpu)
    weakref.finalize(owner(), mmcore.frames_to_tensor, other, TRANSFORM)
    mmcore.frames_to_tensor(planes, TRANSFORM)
    del planes
    gpu.events[0].is_done = True
    launches = len(gpu.streams())
    mmcore.frames_to_tensor(held(gpu)[0], TRANSFORM)
    gc.collect()
    assert owner() is None
    assert [e[0] for e in gpu.streams()[launches:]].count("launch") == 2


def test_while_a_graph_is_captured_nothing_else_is_waited_for(gpu: Gpu) -> None:
    ready, _ = held(gpu)
    foreign = on_device(source("gray", 1, 9, 9), stream=0x700)
    mmcore.frames_to_tensor(ready, TRANSFORM)
    gpu.capturing = True
    log = len(gpu.streams())
    with pytest.raises(mmcore.UnsupportedError, match="cannot be waited for while a CUDA graph is captured"):
        mmcore.frames_to_tensor(foreign, TRANSFORM)
    mmcore.frames_to_tensor(ready, TRANSFORM)
    mmcore.frames_to_tensor(on_device(source("gray", 1, 9, 9), stream=0), TRANSFORM)
    assert [e[0] for e in gpu.streams()[log:]] == ["launch", "launch"]


# tables


def test_tables_are_not_copied_while_a_graph_is_captured(gpu: Gpu) -> None:
    planes = on_device(source("gray", 1, 9, 9), stream=0)
    gpu.capturing = True
    with pytest.raises(mmcore.UnsupportedError, match="convert such frames once before"):
        mmcore.frames_to_tensor(planes, TRANSFORM)
    assert not gpu.uploads
    gpu.capturing = False
    mmcore.frames_to_tensor(planes, TRANSFORM)
    gpu.capturing = True
    mmcore.frames_to_tensor(planes, TRANSFORM)
    assert len(gpu.uploads) == 1


def small_cache(monkeypatch: pytest.MonkeyPatch, most: int) -> Any:
    """Room for so many kinds of the frames of these tests."""
    backend: Any = sys.modules["mmcore.backends.cuda.frames"]
    kind = frame_groups.planes_kind(source("gray", 1, 11, 9), TRANSFORM)
    cache = backend._TableCache(most * len(kind.plan.device_tables()) + 1000)
    monkeypatch.setattr(backend, "_tables", cache)
    return cache


def test_tables_are_given_back_in_the_order_of_their_streams(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = small_cache(monkeypatch, 2)
    recorded: list[int] = []
    monkeypatch.setattr(Tensor, "record_stream", lambda self, stream: recorded.append(stream.cuda_stream))
    sizes = [(9, 9), (10, 9), (11, 9)]
    planes = [on_device(source("gray", 1, *size)) for size in sizes]
    expected = [mmcore.frames_to_tensor(source("gray", 1, *size), TRANSFORM) for size in sizes]
    for stream in (0, 0x500):
        gpu.current = stream
        assert torch.equal(mmcore.frames_to_tensor(planes[0], TRANSFORM), expected[0])
    mmcore.frames_to_tensor(planes[1], TRANSFORM)
    assert not recorded
    mmcore.frames_to_tensor(planes[2], TRANSFORM)
    assert sorted(recorded) == [0, 0x500]
    assert len(cache._found) == 2
    # more kinds in a call than are kept
    assert torch.equal(mmcore.frames_to_tensor(planes, TRANSFORM), torch.cat(expected))
    assert len(gpu.uploads) == 4


def test_threads_that_take_and_forget_tables(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    small_cache(monkeypatch, 3)
    monkeypatch.setattr(Tensor, "record_stream", lambda self, stream: None)
    sources = [source("gray", 1, h, 9, seed=h) for h in range(8, 16)]
    expected = [mmcore.frames_to_tensor(p, TRANSFORM) for p in sources]

    def convert(thread: int) -> None:
        generator = random.Random(thread)
        for _ in range(60):
            chosen = generator.sample(range(8), generator.randint(1, 5))
            result = mmcore.frames_to_tensor([on_device(sources[i], stream=0) for i in chosen], TRANSFORM)
            assert torch.equal(result, torch.cat([expected[i] for i in chosen]))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(convert, range(4)))
    assert len(gpu.uploads) > 8


def test_tables_of_graphs_stay(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    small_cache(monkeypatch, 1)
    monkeypatch.setattr(Tensor, "record_stream", lambda self, stream: None)
    planes = [on_device(source("gray", 1, h, 9), stream=0) for h in (9, 10, 11)]
    mmcore.frames_to_tensor(planes[0], TRANSFORM)
    gpu.capturing = True
    mmcore.frames_to_tensor(planes[0], TRANSFORM)
    gpu.capturing = False
    for p in (planes[1], planes[2], planes[1]):
        mmcore.frames_to_tensor(p, TRANSFORM)
    uploads = len(gpu.uploads)
    mmcore.frames_to_tensor(planes[0], TRANSFORM)
    assert len(gpu.uploads) == uploads == 4


# addresses and arrays


@pytest.mark.parametrize(
    ("says", "message"), [(-1, "which CUDA does not know"), (1, "which is on cuda:1"), (0, None), (-2, None)]
)
def test_the_driver_is_asked_whose_an_address_is(gpu: Gpu, says: int, message: str | None) -> None:
    gpu.owner_of_address = says
    planes = source("gray", 1, 9, 9)
    if message is None:
        assert on_device(planes, device="cuda:0").device == CUDA
    else:
        with pytest.raises(ValueError, match=f"plane 0: expected memory on cuda:0, got address .*{message}"):
            on_device(planes, device="cuda:0")


def test_cuda_arrays(gpu: Gpu) -> None:
    planes = source("p010le", 1, 6, 10)
    y, uv = (p[0] for p in planes.data)
    expected = mmcore.frames_to_tensor(planes, TRANSFORM)
    gpu.current = 0x500
    for arrays in (
        [CudaArray(y, stream=0x700), CudaArray(uv, stream=0x700)],
        [CudaArray(y, strides=None, stream=0x700), CudaArray(uv.view(3, 5, 2), stream=0x700)],
        [CudaArray(y.view(torch.int16), typestr="<i2", stream=0x700), CudaArray(uv[..., None])],
    ):
        planes = Planes.from_arrays(arrays, "p010le", 6, 10)
        gpu.log.clear()
        assert torch.equal(mmcore.frames_to_tensor(planes, TRANSFORM), expected)
        assert [e[:3] for e in gpu.streams()] == [
            ("wait", 0x500, 0x700), ("launch", 0x500, 0), ("wait", 0x700, 0x500),
        ]  # fmt: skip
    gpu.log.clear()
    mmcore.frames_to_tensor(Planes.from_arrays(arrays, "p010le", 6, 10, stream=0x900), TRANSFORM)
    assert gpu.streams()[0] == ("wait", 0x500, 0x900), "the caller knows better"


def test_cuda_arrays_lie_where_the_driver_says(gpu: Gpu) -> None:
    array = CudaArray(source("gray", 1, 6, 10).data[0])
    gpu.owner_of_address = 1
    assert Planes.from_arrays(array, "gray", 6, 10).device == torch.device("cuda", 1)
    with pytest.raises(ValueError, match=r"expected memory on cuda:0, .* which is on cuda:1"):
        Planes.from_arrays(array, "gray", 6, 10, device="cuda:0")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"typestr": "<f4"}, TypeError, "uint8, uint16 or int16, little-endian, got typestr '<f4'"),
        ({"typestr": ">u2"}, TypeError, "little-endian, got typestr '>u2'"),
        ({"typestr": "|i1"}, TypeError, "got typestr"),
        ({"mask": object()}, ValueError, "masked"),
        ({"stream": -3}, ValueError, "stream: expected"),
        ({"strides": (20, 10, 2)}, ValueError, "samples of a row must be neighbours, 1 bytes apart"),
        ({"strides": (60, 9, 1)}, ValueError, "rows of 10 bytes, got a pitch of 9"),
        ({"data": (0, False)}, ValueError, "does not lie in memory"),
    ],
)
def test_wrong_cuda_arrays_are_refused(
    gpu: Gpu, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    array = CudaArray(source("gray", 1, 6, 10).data[0], **changes)
    with pytest.raises(error, match=message):
        Planes.from_arrays(array, "gray", 6, 10)


def test_strides_in_samples_are_not_taken_for_bytes(gpu: Gpu) -> None:
    """PyNvVideoCodec says so of its 16-bit views."""
    y = source("gray10le", 1, 6, 10).data[0][0]
    with pytest.raises(ValueError, match=r"neighbours|channels.*strides of \(10, 1, 1\)"):
        Planes.from_arrays(CudaArray(y[..., None], strides=(10, 1, 1), typestr="|u2"), "gray10le", 6, 10)


class _DLManaged(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p),
    )  # fmt: skip


class DeviceProducer:
    """Memory that DLPack says is on a device, from before version 1."""

    def __init__(self, tensor: Tensor, device: int = 2, **changes: Any) -> None:
        n = tensor.dim()
        self.tensor, self.device, self.asked = tensor, device, []
        self.shape = (ctypes.c_int64 * n)(*tensor.shape)
        self.strides = (ctypes.c_int64 * n)(*tensor.stride())
        fields: dict[str, Any] = {
            "data": tensor.data_ptr() - 64, "device_type": device, "device_id": 0, "ndim": n, "code": 1,
            "bits": 8 * tensor.element_size(), "lanes": 1, "shape": self.shape, "strides": self.strides,
            "byte_offset": 64,
        }  # fmt: skip
        self.managed = _DLManaged(**{**fields, **changes})

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0

    def __dlpack__(self, stream: Any = None) -> object:
        self.asked.append(stream)
        new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
            ("PyCapsule_New", ctypes.pythonapi)
        )
        return new(ctypes.addressof(self.managed), b"dltensor", None)


@pytest.mark.parametrize("strides", [True, False])
def test_dlpack_of_a_device(gpu: Gpu, strides: bool) -> None:
    planes = source("nv12", 2, 6, 10)
    expected = mmcore.frames_to_tensor(planes, TRANSFORM)
    changes = {} if strides else {"strides": None}
    producers = [DeviceProducer(p, **changes) for p in planes.data]
    result = mmcore.frames_to_tensor(Planes.from_arrays(producers, "nv12", 6, 10), TRANSFORM)
    assert torch.equal(result, expected)
    gpu.current = 0x500
    foreign = Planes.from_arrays(producers, "nv12", 6, 10)
    assert [p.asked for p in producers] == [[1, 0x500]] * 2, "0 is not DLPack's number of a stream"
    assert foreign.device == CUDA
    assert len(plane_memory._in_flight) == 1, "the arrays are kept until they have been read"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"device": 4}, ValueError, "DLPack's device type 4"),
        ({"code": 2, "bits": 32}, TypeError, "got float32"),
        ({"code": 0}, TypeError, "got int8"),
        ({"lanes": 4}, TypeError, "got uint8 x 4"),
        ({"code": 17}, TypeError, "got DLPack type 17"),
    ],
)
def test_wrong_dlpack_is_refused(
    gpu: Gpu, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Planes.from_arrays(DeviceProducer(source("gray", 1, 6, 10).data[0], **changes), "gray", 6, 10)


def test_a_capsule_that_was_used_is_refused(gpu: Gpu) -> None:
    producer = DeviceProducer(source("gray", 1, 6, 10).data[0])
    used = producer.__dlpack__()
    rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_SetName", ctypes.pythonapi)
    )
    name = b"used_dltensor"
    rename(used, name)
    for wrong in (used, "no capsule"):
        producer.__dlpack__ = lambda stream=None, wrong=wrong: wrong  # type: ignore[method-assign]
        with pytest.raises(TypeError, match=r"arrays: .*capsule"):
            Planes.from_arrays(producer, "gray", 6, 10)
