"""Planes of other libraries' memory: by pointer, from arrays, and several of unequal size in one call."""

from __future__ import annotations

import gc
import pickle
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from cases import make_planes
from torch import Tensor

import mmcore
from mmcore.ops.pixel_formats import PIXEL_FORMATS
from mmcore.ops.planes import Planes

BACKENDS = ("reference", "cpu")
TRANSFORM = mmcore.FrameTransform(resize=(13, 20), crop=(11, 12), matrix="709", full_range=False)


class Memory:
    """Planes in memory of ours, with gaps after the rows, told by address."""

    def __init__(self, name: str, data: tuple[Tensor, ...], lines: str = "padded") -> None:
        self.blocks = []
        self.pointers, self.pitches = [], []
        for plane in data:
            samples = plane[0].numpy()
            rows, columns = samples.shape
            block = np.full((rows, columns + 5), 0x5A, samples.dtype)
            block[:, :columns] = samples[::-1] if lines == "negative" else samples
            pitch = block.strides[0]
            first = block.ctypes.data
            self.blocks.append(block)
            self.pointers.append(first + pitch * (rows - 1) if lines == "negative" else first)
            self.pitches.append(-pitch if lines == "negative" else pitch)
        self.name = name

    def planes(self, height: int, width: int, **kwargs: Any) -> Planes:
        return Planes.from_pointers(
            self.pointers, self.pitches, self.name, height, width, device="cpu", owner=self, **kwargs
        )


# pointers


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lines", ["padded", "negative"])
@pytest.mark.parametrize("name", PIXEL_FORMATS)
def test_pointers_are_read_where_they_lie(name: str, lines: str, backend: str) -> None:
    for h, w in ((1, 1), (17, 31), (8, 64)):
        data = make_planes(PIXEL_FORMATS[name], 1, h, w)
        planes = Memory(name, data, lines).planes(h, w)
        with mmcore.backend(backend):
            expected = mmcore.frames_to_tensor(Planes(data, name, h, w), TRANSFORM)
            assert torch.equal(mmcore.frames_to_tensor(planes, TRANSFORM), expected)
        assert len(planes) == 1


@pytest.mark.parametrize("lines", ["padded", "negative"])
@pytest.mark.parametrize("name", ["nv12", "yuv420p10le"])
def test_tensors_are_made_of_pointers_when_asked_for(name: str, lines: str) -> None:
    data = make_planes(PIXEL_FORMATS[name], 1, 7, 9)
    memory = Memory(name, data, lines)
    tensors = memory.planes(7, 9).data
    for tensor, plane, block in zip(tensors, data, memory.blocks, strict=True):
        assert torch.equal(tensor.view(torch.uint8), plane.view(torch.uint8))
        assert (tensor.data_ptr() == block.ctypes.data) == (lines == "padded"), "a view where torch has one"
    alive = weakref.ref(memory)
    del memory, block
    gc.collect()
    assert (alive() is not None) == (lines == "padded")
    assert torch.equal(tensors[0].view(torch.uint8), data[0].view(torch.uint8))


@pytest.mark.parametrize("name", ["nv12", "nv21", "p010le", "yuv444p", "gbrp10le"])
@pytest.mark.parametrize(("h", "w", "surface"), [(6, 10, 8), (6, 10, None), (5, 8, 6), (1, 2, 16)])
def test_one_pointer_is_enough_for_a_surface(name: str, h: int, w: int, surface: int | None) -> None:
    fmt = PIXEL_FORMATS[name]
    data = make_planes(fmt, 1, h, w)
    pitch, rows = 32, h if surface is None else surface
    block = torch.full((1, rows * fmt.num_planes, pitch), 7, dtype=data[0].dtype)
    for p, plane in enumerate(data):
        block[:, p * rows : p * rows + plane.shape[1], : plane.shape[2]] = plane
    planes = Planes.from_pointers(
        block.data_ptr(), pitch * block.element_size(), name, h, w, device="cpu", surface_height=surface
    )
    expected = mmcore.frames_to_tensor(Planes(data, name, h, w), TRANSFORM)
    assert torch.equal(mmcore.frames_to_tensor(planes, TRANSFORM), expected)


def test_an_owner_lives_as_long_as_its_planes() -> None:
    memory = Memory("gray", make_planes(PIXEL_FORMATS["gray"], 1, 4, 4))
    alive = weakref.ref(memory)
    planes = memory.planes(4, 4)
    del memory
    gc.collect()
    assert alive() is not None
    mmcore.frames_to_tensor(planes)
    del planes
    gc.collect()
    assert alive() is None


def good(**changes: Any) -> Planes:
    """A call that is right but for its changes; its addresses are never read."""
    arguments = {"pointers": [1 << 20, 1 << 21], "pitches": 64, "format": "nv12", "height": 6, "width": 10}
    return Planes.from_pointers(**{**arguments, "device": "cpu", **changes})


def test_the_call_that_the_wrong_ones_differ_from_is_right() -> None:
    assert len(good()) == 1


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"format": "nv13"}, mmcore.UnsupportedError, "nv13"),
        ({"height": 0}, ValueError, "height"),
        ({"width": 10.5}, TypeError, "width"),
        ({"matrix": "bt709"}, ValueError, "matrix"),
        ({"full_range": "yes"}, TypeError, "full_range"),
        ({"pointers": [1 << 20, None]}, TypeError, "pointers: expected ints, got None"),
        ({"pointers": "nv12"}, TypeError, "pointers: expected ints"),
        ({"pointers": [True, 1 << 20]}, TypeError, "pointers: expected ints, got True"),
        ({"pointers": [0, 1 << 20]}, ValueError, "plane 0 at address 0x0 does not lie in memory"),
        ({"pointers": [1 << 20, -5]}, ValueError, "plane 1 .* does not lie in memory"),
        ({"pointers": [1 << 20, (1 << 64) - 8]}, ValueError, "plane 1 .* does not lie in memory"),
        ({"pointers": [100, 1 << 20], "pitches": -64}, ValueError, "plane 0 .* does not lie in memory"),
        ({"pointers": [1 << 20, 1 << 21], "format": "yuv420p"}, ValueError, "3 planes, got 2 pointers"),
        ({"pointers": 1 << 20, "format": "yuv420p"}, ValueError, "different widths.*expected each of 3"),
        ({"pointers": []}, ValueError, "2 planes, got 0"),
        ({"pitches": 9}, ValueError, "rows of 10 bytes, got a pitch of 9"),
        ({"pitches": 0}, ValueError, "rows of 10 bytes, got a pitch of 0"),
        ({"pitches": [64]}, ValueError, "2 planes, got 1 pitches"),
        ({"pitches": [64, "64"]}, TypeError, "pitches: expected ints"),
        ({"format": "p010le", "pitches": 18}, ValueError, "rows of 20 bytes, got a pitch of 18"),
        ({"format": "p010le", "pitches": 63}, ValueError, "2-byte samples"),
        ({"format": "p010le", "pointers": [1 << 20, (1 << 21) + 1]}, ValueError, "2-byte samples"),
        ({"surface_height": 8}, ValueError, "surface_height: .* several pointers"),
        ({"pointers": 1 << 20, "surface_height": 5}, ValueError, "expected 6 .*or more, got 5"),
        ({"pointers": 1 << 20, "pitches": -64}, ValueError, "one pitch, not negative"),
        ({"pointers": 1 << 20, "pitches": [64, 32]}, ValueError, "one after another they have one pitch"),
        ({"stream": 0}, ValueError, "stream: planes on cpu have no CUDA stream"),
        ({"device": "meta"}, mmcore.UnsupportedError, "meta"),
        ({"device": "gpu"}, ValueError, "device: 'gpu' is not a device"),
    ],
)  # fmt: skip
def test_wrong_pointers_are_refused_before_they_are_read(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        good(**changes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_without_a_device_pointers_there_are_refused() -> None:
    with pytest.raises(mmcore.UnsupportedError, match=r"device 'cuda': .*use device='cpu'"):
        good(device="cuda")


# arrays


class Producer:
    """An array that speaks DLPack and nothing else."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self._array.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()


WRAPS = {"tensor": lambda t: t, "numpy": lambda t: t.numpy(), "dlpack": Producer}


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("name", ["yuv420p", "nv12", "p010le", "rgb24", "bgra", "gbrp12le", "gray"])
def test_arrays_of_other_libraries(name: str, wrap: str) -> None:
    fmt, (h, w) = PIXEL_FORMATS[name], (6, 10)
    data = make_planes(fmt, 3, h, w)
    expected = mmcore.frames_to_tensor(Planes(data, name, h, w), TRANSFORM)
    steps = [max(c.step for c in fmt.components if c.plane == p) for p in range(fmt.num_planes)]
    padded = [torch.nn.functional.pad(p.int(), (0, 6, 0, 2), value=99).to(p.dtype) for p in data]
    forms = [
        list(data),  # (frames, rows, samples)
        padded,
        [p[:, : q.shape[1], : q.shape[2]] for p, q in zip(padded, data, strict=True)],
        # (frames, rows, columns, channels)
        [p.reshape(3, p.shape[1], -1, s) for p, s in zip(data, steps, strict=True)],
        [p[..., None] for p in data],
    ]
    for arrays in forms:
        planes = Planes.from_arrays([WRAPS[wrap](a) for a in arrays], name, h, w)
        assert len(planes) == 3
        assert torch.equal(mmcore.frames_to_tensor(planes, TRANSFORM), expected)
        one = [WRAPS[wrap](a[1]) for a in arrays]  # (rows, samples) or (rows, columns, channels)
        one_planes = Planes.from_arrays(one if len(one) > 1 else one[0], name, h, w)
        assert torch.equal(mmcore.frames_to_tensor(one_planes, TRANSFORM), expected[1:2])


@pytest.mark.parametrize("name", ["nv12", "p010le", "yuv444p"])
@pytest.mark.parametrize("trailing", [False, True])
def test_one_array_of_planes_one_after_another(name: str, trailing: bool) -> None:
    fmt, (h, w) = PIXEL_FORMATS[name], (6, 10)
    data = make_planes(fmt, 2, h, w)
    expected = mmcore.frames_to_tensor(Planes(data, name, h, w), TRANSFORM)
    block = torch.cat(data, 1)
    taller = torch.cat([torch.nn.functional.pad(p.int(), (0, 0, 0, 2)).to(p.dtype) for p in data], 1)
    for array, surface in ((block, None), (block, h), (taller, h + 2)):
        shaped = array[..., None] if trailing else array
        planes = Planes.from_arrays(shaped, name, h, w, surface_height=surface)
        assert torch.equal(mmcore.frames_to_tensor(planes, TRANSFORM), expected)
        planes = Planes.from_arrays(shaped[0], name, h, w, surface_height=surface)
        assert torch.equal(mmcore.frames_to_tensor(planes, TRANSFORM), expected[:1])


def test_rows_stored_last_to_first() -> None:
    data = make_planes(PIXEL_FORMATS["gray"], 2, 5, 7)
    expected = mmcore.frames_to_tensor(Planes(data, "gray", 5, 7))
    backwards = data[0].numpy()[:, ::-1].copy()[:, ::-1]
    assert torch.equal(mmcore.frames_to_tensor(Planes.from_arrays(backwards, "gray", 5, 7)), expected)
    last_first = Planes.from_arrays(data[0].numpy()[::-1], "gray", 5, 7)
    assert torch.equal(mmcore.frames_to_tensor(last_first), expected.flip(0))
    assert torch.equal(last_first.data[0], data[0].flip(0))


def test_arrays_that_may_not_be_written() -> None:
    array = make_planes(PIXEL_FORMATS["gray"], 1, 5, 7)[0].numpy()
    array.setflags(write=False)
    result = mmcore.frames_to_tensor(Planes.from_arrays(array, "gray", 5, 7))
    assert torch.equal(result, mmcore.frames_to_tensor(Planes.from_arrays(array.copy(), "gray", 5, 7)))


def test_an_array_lives_as_long_as_its_planes() -> None:
    array = np.zeros((4, 4), np.uint8)
    alive = weakref.ref(array)
    planes = Planes.from_arrays(array, "gray", 4, 4)
    del array
    assert alive() is not None
    mmcore.frames_to_tensor(planes)
    del planes
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize(
    ("arrays", "name", "error", "message"),
    [
        (None, "gray", TypeError, "expected a tensor, or an object with __dlpack__ .* got NoneType"),
        ([np.zeros((6, 10), np.uint8), 3], "nv12", TypeError, r"arrays\[1\]: expected a tensor, .* got int"),
        (np.zeros((6, 10), np.float32), "gray", TypeError, "uint8, uint16 or int16, got float32"),
        (np.zeros((6, 10), np.int8), "gray", TypeError, "uint8, uint16 or int16, got int8"),
        (np.zeros((6, 10), np.uint16), "gray", TypeError, "8-bit samples, got 16-bit"),
        (np.zeros((6, 10), np.uint8), "gray10le", TypeError, "16-bit samples, got 8-bit"),
        (np.zeros((5, 10), np.uint8), "gray", ValueError, "6 or more rows .*, got 5 rows of 10"),
        (np.zeros((6, 9), np.uint8), "gray", ValueError, "10 or more samples, got 6 rows of 9"),
        (np.zeros(60, np.uint8), "gray", ValueError, r"expected shape .*, got \(60,\)"),
        (np.zeros((1, 1, 6, 10, 1), np.uint8), "gray", ValueError, "expected shape"),
        (np.zeros((6, 20), np.uint8)[:, ::2], "gray", ValueError, "samples of a row must be neighbours"),
        (np.zeros((6, 10, 4), np.uint8), "rgb24", ValueError, "10 or more|30 or more|channels"),
        (np.zeros((1, 6, 10, 4), np.uint8), "rgb24", ValueError, "expected 3 neighbouring channels"),
        (np.zeros((3, 6, 10), np.uint8).transpose(1, 2, 0), "rgb24", ValueError, "3 neighbouring channels"),
        (np.zeros((8, 10), np.uint8), "nv12", ValueError, "surface_height|rows"),
        (np.zeros((9, 10), np.uint8), "yuv420p", ValueError, "different widths"),
        ([np.zeros((6, 10), np.uint8)] * 2, "yuv420p", ValueError, "3 planes, got 2 arrays"),
        ([np.zeros((2, 6, 10), np.uint8), np.zeros((3, 10), np.uint8)], "nv12", ValueError,
         "plane 1 holds 1 frames, plane 0 2"),
        (torch.zeros(6, 10), "gray", TypeError, "uint8, uint16 or int16, got torch.float32"),
        (torch.zeros(6, 10, dtype=torch.uint8, device="meta"), "gray", ValueError, "meta"),
    ],
)  # fmt: skip
def test_wrong_arrays_are_refused(arrays: Any, name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Planes.from_arrays(arrays, name, 6, 10)


def test_no_frames_of_arrays() -> None:
    planes = Planes.from_arrays(np.zeros((0, 6, 10), np.uint8), "gray", 6, 10)
    assert mmcore.frames_to_tensor(planes).shape == (0, 3, 6, 10)


def test_foreign_planes_are_not_pickled() -> None:
    planes = Planes.from_arrays(np.zeros((6, 10), np.uint8), "gray", 6, 10)
    with pytest.raises(TypeError, match=r"cannot be pickled; Planes\(planes.data, ...\) can"):
        pickle.dumps(planes)
    kept = pickle.loads(pickle.dumps(Planes(planes.data, "gray", 6, 10)))
    assert torch.equal(mmcore.frames_to_tensor(kept), mmcore.frames_to_tensor(planes))


# several of unequal size

SOURCES = [
    ("yuv420p", 2, 17, 31, {}),
    ("nv12", 1, 24, 18, {"matrix": "709", "full_range": True}),
    ("p010le", 3, 9, 40, {"matrix": "2020", "chroma_location": "topleft"}),
    ("yuv420p", 1, 17, 31, {}),
    ("yuv420p", 1, 17, 31, {"full_range": True}),
    ("gray", 0, 5, 5, {}),
    ("rgb24", 2, 30, 7, {}),
]


def unequal() -> list[Planes]:
    result = []
    for i, (name, frames, h, w, tags) in enumerate(SOURCES):
        data = make_planes(PIXEL_FORMATS[name], frames, h, w, seed=i)
        result.append(Planes(data, name, h, w, **tags))
    memory = Memory("yuv422p", make_planes(PIXEL_FORMATS["yuv422p"], 1, 12, 14, seed=9), "negative")
    return [*result, memory.planes(12, 14, matrix="709")]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("accuracy", ["fused", "rgb8"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "CNHW"])
def test_planes_of_unequal_size_come_out_as_one_by_one(layout: str, accuracy: str, backend: str) -> None:
    transform = mmcore.FrameTransform(resize=(8, 12), layout=layout, accuracy=accuracy)
    with mmcore.backend(backend):
        parts = [mmcore.frames_to_tensor(p, transform) for p in unequal()]
        expected = torch.cat(parts, layout.index("N"))
        result = mmcore.frames_to_tensor(unequal(), transform)
        assert result.is_contiguous()
        assert torch.equal(result, expected)
        out = torch.full_like(expected, 3)
        assert mmcore.frames_to_tensor(tuple(unequal()), transform, out=out) is out
        assert torch.equal(out, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_temporal_patches_run_across_planes_of_unequal_size(backend: str) -> None:
    layout = mmcore.patches(2, temporal_patch_size=4, merge_size=1)
    pictures = mmcore.FrameTransform(resize=(8, 12))
    with mmcore.backend(backend):
        frames = mmcore.frames_to_tensor(unequal(), pictures)
        result = mmcore.frames_to_tensor(unequal(), pictures.replace(layout=layout))
    assert len(frames) == 11  # the last is repeated to fill the third patch
    expected = torch.cat([frames, frames[-1:]]).view(3, 4, 3, 4, 2, 6, 2)
    assert torch.equal(result, expected.permute(0, 3, 5, 2, 1, 4, 6).reshape(3 * 4 * 6, 3 * 4 * 2 * 2))


def test_all_of_a_list_must_have_one_size_then() -> None:
    with pytest.raises(ValueError, match=r"item 1 of 24x18 pixels becomes 24x18, .* 17x31: set resize="):
        mmcore.frames_to_tensor(unequal(), mmcore.FrameTransform())
    short = mmcore.FrameTransform(resize=8, crop=(8, 4))
    assert mmcore.frames_to_tensor(unequal()[:3], short).shape == (6, 3, 8, 4)


def test_a_list_holds_planes_or_frames_and_nothing_else() -> None:
    import av

    frame = av.VideoFrame(12, 8, "gray")
    for other in (frame, None, torch.zeros(1)):
        with pytest.raises(TypeError, match=f"item 1: expected Planes .*, got {type(other).__name__}"):
            mmcore.frames_to_tensor([unequal()[0], other, unequal()[1]])  # type: ignore[list-item]


def test_out_may_not_lie_in_any_of_the_planes() -> None:
    transform = mmcore.FrameTransform(resize=(2, 2), dtype=torch.uint8)
    planes = unequal()[:3]
    for index, p in enumerate(planes):
        out = p.data[0].view(torch.uint8).flatten()[: 6 * 3 * 4]
        if out.numel() < 6 * 3 * 4:
            continue
        with pytest.raises(ValueError, match="out: overlaps"):
            mmcore.frames_to_tensor(planes, transform, out=out.view(6, 3, 2, 2))
        assert index >= 0
    memory = Memory("gray", make_planes(PIXEL_FORMATS["gray"], 1, 9, 9), "negative")
    out = torch.from_numpy(memory.blocks[0]).flatten()[:12].view(1, 3, 2, 2)
    with pytest.raises(ValueError, match="out: overlaps"):
        mmcore.frames_to_tensor(memory.planes(9, 9), transform, out=out)


@pytest.mark.parametrize("layout", ["NCHW", mmcore.patches(2)])
def test_a_list_compiles_as_one_graph(layout: Any) -> None:
    transform = mmcore.FrameTransform(resize=(8, 12), layout=layout)
    tensors = [p.data for p in unequal()[:5]]

    def f(tensors: list[tuple[Tensor, ...]]) -> Tensor:
        planes = [
            Planes(data, name, h, w, **tags)
            for data, (name, _, h, w, tags) in zip(tensors, SOURCES[:5], strict=True)
        ]
        return mmcore.frames_to_tensor(planes, transform) * 2

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(tensors), f(tensors))


def test_the_op_of_lists_is_registered_as_torch_wants_it() -> None:
    a, b = unequal()[:2]
    transform = mmcore.FrameTransform(resize=(8, 12))
    args = (
        [*a.data, *b.data],
        [a.format, b.format],
        [a.height, a.width, b.height, b.width],
        [",,", "709,full,center"],
        transform.spec,
    )
    torch.library.opcheck(torch.ops.mmcore.frames_list_to_tensor.default, args)


def test_foreign_planes_inside_a_compiled_function_are_refused_clearly() -> None:
    planes = Planes.from_arrays(np.zeros((6, 10), np.uint8), "gray", 6, 10)

    @torch.compile(fullgraph=True, backend="eager")
    def f(x: Tensor) -> Tensor:
        return mmcore.frames_to_tensor(planes) * x

    with pytest.raises(Exception, match="Planes of another library's memory"):
        f(torch.ones(1))
