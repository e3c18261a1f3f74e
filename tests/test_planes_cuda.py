"""Planes of other libraries' memory on a CUDA device, and several of unequal size in one call."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from cases import make_planes
from torch import Tensor

import mmcore
from mmcore.ops import plane_memory
from mmcore.ops.pixel_formats import PIXEL_FORMATS
from mmcore.ops.planes import Planes

pytestmark = pytest.mark.gpu

TRANSFORM = mmcore.FrameTransform(resize=(56, 60))
SOURCES = [
    ("yuv420p", 2, 271, 483),
    ("nv12", 1, 180, 322),
    ("p010le", 3, 181, 321),
    ("yuv420p", 1, 540, 960),
    ("gray", 1, 57, 9),
    ("rgb24", 2, 120, 161),
]


def device_planes(name: str, frames: int, h: int, w: int, seed: int = 0) -> Planes:
    return Planes(
        tuple(p.cuda() for p in make_planes(PIXEL_FORMATS[name], frames, h, w, seed=seed)), name, h, w
    )


def by_pointer(planes: Planes, frame: int = 0, **kwargs: Any) -> Planes:
    return Planes.from_pointers(
        [p[frame].data_ptr() for p in planes.data],
        [p.stride(1) * p.element_size() for p in planes.data],
        planes.format,
        planes.height,
        planes.width,
        **{"owner": planes, **kwargs},
    )


class CudaArray:
    """An array that knows ``__cuda_array_interface__`` and nothing else."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        size = tensor.element_size()
        self.__cuda_array_interface__ = {
            "shape": tuple(tensor.shape),
            "strides": tuple(s * size for s in tensor.stride()),
            "typestr": {1: "|u1", 2: "<u2"}[size],
            "data": (tensor.data_ptr(), False),
            "stream": torch.cuda.current_stream().cuda_stream or 1,
            "version": 3,
        }


class Producer:
    """An array that speaks DLPack and nothing else."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self._tensor.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> Any:
        return self._tensor.__dlpack_device__()


def test_pointers_and_arrays_give_what_tensors_give() -> None:
    for i, (name, frames, h, w) in enumerate(SOURCES):
        planes = device_planes(name, frames, h, w, i)
        expected = mmcore.frames_to_tensor(planes, TRANSFORM)
        for wrap in (CudaArray, Producer, lambda tensor: tensor):
            foreign = Planes.from_arrays([wrap(p) for p in planes.data], name, h, w)
            assert foreign.device == planes.device
            assert torch.equal(mmcore.frames_to_tensor(foreign, TRANSFORM), expected)
            assert all(torch.equal(a, b) for a, b in zip(foreign.data, planes.data, strict=True))
        for t in range(frames):
            one = mmcore.frames_to_tensor(by_pointer(planes, t), TRANSFORM)
            assert torch.equal(one, expected[t : t + 1])


def test_rows_stored_last_to_first() -> None:
    planes = device_planes("yuv420p", 1, 271, 483)
    upside_down = [p.flip(1) for p in planes.data]
    foreign = Planes.from_pointers(
        [p[0, -1].data_ptr() for p in upside_down],
        [-p.stride(1) for p in upside_down],
        "yuv420p",
        271,
        483,
        owner=upside_down,
    )
    assert torch.equal(
        mmcore.frames_to_tensor(foreign, TRANSFORM), mmcore.frames_to_tensor(planes, TRANSFORM)
    )
    assert all(torch.equal(a, b) for a, b in zip(foreign.data, planes.data, strict=True))


def test_frames_of_unequal_size_come_out_as_one_by_one() -> None:
    planes = [device_planes(*source, seed=i) for i, source in enumerate(SOURCES)]
    planes.append(by_pointer(planes[1]))
    for transform in (
        TRANSFORM,
        TRANSFORM.replace(interpolation="bicubic", dtype=torch.float16),
        TRANSFORM.replace(accuracy="rgb8"),
        mmcore.FrameTransform(resize=(300, 200), layout=mmcore.patches(10, 3, 2)),
    ):
        pictures = transform.replace(layout="NCHW")
        frames = torch.cat([mmcore.frames_to_tensor(p, pictures) for p in planes])
        assert torch.equal(mmcore.frames_to_tensor(planes, pictures), frames)
        if transform.layout != "NCHW":
            with mmcore.backend("reference"):
                expected = mmcore.frames_to_tensor(planes, transform)
            result = mmcore.frames_to_tensor(planes, transform)
            torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


def test_frames_of_unequal_size_in_a_graph() -> None:
    planes = [device_planes(*source, seed=i) for i, source in enumerate(SOURCES)]
    planes.append(by_pointer(planes[1]))
    expected = mmcore.frames_to_tensor(planes, TRANSFORM)
    out = torch.zeros_like(expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        mmcore.frames_to_tensor(planes, TRANSFORM, out=out)
    graph.replay()
    assert torch.equal(out, expected)
    foreign = by_pointer(planes[1], stream=torch.cuda.Stream())
    mmcore.frames_to_tensor(foreign, TRANSFORM)
    with (
        pytest.raises(mmcore.UnsupportedError, match="cannot be waited for while a CUDA graph is captured"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        mmcore.frames_to_tensor(foreign, TRANSFORM)


def test_producers_are_waited_for_and_wait() -> None:
    planes = device_planes("nv12", 1, 1080, 1920)
    expected = mmcore.frames_to_tensor(planes, TRANSFORM)
    late = tuple(torch.zeros_like(p) for p in planes.data)
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    for stream in (side, side.cuda_stream):
        foreign = by_pointer(Planes(late, "nv12", 1080, 1920), stream=stream, owner=late)
        with torch.cuda.stream(side):
            torch.cuda._sleep(20_000_000)
            for target, picture in zip(late, planes.data, strict=True):
                target.copy_(picture)
        torch.cuda._sleep(10_000_000)
        result = mmcore.frames_to_tensor(foreign, TRANSFORM)
        with torch.cuda.stream(side):
            for target in late:
                target.zero_()
        assert torch.equal(result, expected)
        torch.cuda.synchronize()
        assert not late[0].any()


def test_an_owner_is_kept_until_the_conversion_has_run() -> None:
    planes = device_planes("nv12", 1, 180, 322)
    foreign = by_pointer(planes)
    owner = weakref.ref(planes)
    mmcore.frames_to_tensor(foreign, TRANSFORM)  # tables
    torch.cuda.synchronize()
    torch.cuda._sleep(500_000_000)
    mmcore.frames_to_tensor(foreign, TRANSFORM)
    del planes, foreign
    gc.collect()
    assert owner() is not None
    torch.cuda.synchronize()
    mmcore.frames_to_tensor(by_pointer(device_planes("gray", 1, 9, 9)), TRANSFORM)
    gc.collect()
    assert owner() is None
    assert len(plane_memory._in_flight) >= 1


def test_addresses_that_no_kernel_can_read_are_refused() -> None:
    host = make_planes(PIXEL_FORMATS["gray"], 1, 64, 64)[0]
    with pytest.raises(
        ValueError, match=r"plane 0: expected memory on cuda:\d+, .* which CUDA does not know"
    ):
        Planes.from_pointers(host.data_ptr(), 64, "gray", 64, 64)
    pinned = host.pin_memory()
    result = mmcore.frames_to_tensor(
        Planes.from_pointers(pinned.data_ptr(), 64, "gray", 64, 64, owner=pinned)
    )
    assert torch.equal(result.cpu(), mmcore.frames_to_tensor(Planes((host,), "gray", 64, 64)))


def test_a_list_compiles_as_one_graph() -> None:
    planes = [device_planes(*source, seed=i) for i, source in enumerate(SOURCES[:3])]

    @torch.compile(fullgraph=True)
    def double(planes: list[Planes]) -> Tensor:
        return mmcore.frames_to_tensor(planes, TRANSFORM) * 2

    assert torch.equal(double(planes), mmcore.frames_to_tensor(planes, TRANSFORM) * 2)
