"""The CUDA frames kernels give the oracle's numbers: their bodies on the CPU, the whole on a GPU."""

from __future__ import annotations

import ctypes

import frames_emulator
import pytest
import torch
from cases import FRAME_CASES, Case, make_case
from frames_harness import assert_frames_right, check_planes_on

import mmcore
from mmcore.ops.pixel_formats import PIXEL_FORMATS
from mmcore.ops.planes import ColorSpec, Planes

# Pictures of more than one tile, strip and warp, and scales at which rows are streamed.
_FULL, _HALF = torch.float32, torch.float16
STREAMED = [
    make_case(format=name, size=size, geometry=how, filter=kind, dtype=dtype, layout=layout, content=content)
    for name, size, how, kind, dtype, layout, content in [
        ("yuv420p", (270, 480), {"resize": (56, 56)}, ("bilinear", True), _FULL, "NCHW", "noise"),
        ("yuv420p", (271, 483), {"resize": 64, "crop": 56}, ("bilinear", True), _HALF, "NCHW", "extremes"),
        ("nv12", (135, 1001), {"resize": (37, 211)}, ("bilinear", True), _FULL, "NHWC", "noise"),
        ("yuv420p", (97, 2311), {"resize": (31, 601)}, ("bilinear", True), torch.uint8, "NCHW", "edges"),
        ("yuv420p", (240, 320), {"resize": (60, 90)}, ("bicubic", True), _FULL, "NCHW", "noise"),
        ("nv12", (241, 1555), {"resize": (61, 90), "crop": (3, 7, 50, 70)}, ("bicubic", True), _FULL, "CNHW",
         "edges"),
        ("yuv422p", (120, 161), {"resize": (41, 37)}, ("area", True), torch.bfloat16, "NCHW", "noise"),
        ("yuv444p", (120, 161), {"resize": (41, 37)}, ("bicubic", True), _FULL, "NCHW", "noise"),
        ("yuv420p10le", (180, 320), {"resize": (56, 56)}, ("bilinear", True), _FULL, "NCHW", "noise"),
        ("p010le", (181, 321), {"resize": (57, 59)}, ("bicubic", True), _FULL, "NCHW", "noise"),
        ("p010le", (180, 1922), {"resize": (57, 59)}, ("bilinear", True), _FULL, "NCHW", "extremes"),
        ("gray", (180, 322), {"resize": (57, 59)}, ("bilinear", True), _FULL, "NCHW", "noise"),
        ("gbrp", (180, 322), {"resize": (57, 59)}, ("bilinear", True), _FULL, "NCHW", "noise"),
    ]
]  # fmt: skip


METHODS = (
    frames_emulator.AUTO,
    frames_emulator.GATHER,
    frames_emulator.STREAM,
    frames_emulator.MATRIX,
    frames_emulator.INTEGER,
)


@pytest.mark.parametrize("case", FRAME_CASES, ids=lambda case: case.id)
def test_bodies_give_the_oracle_numbers(case: Case, emulator: ctypes.CDLL) -> None:
    color, fmt = ColorSpec(*case.color), PIXEL_FORMATS[case.format]
    seen = set()
    for method in METHODS:
        result, used = frames_emulator.convert(
            emulator, case.data(), fmt, case.height, case.width, color, case.transform, method, strip_rows=8
        )
        if used not in seen:
            assert_frames_right(case, result)
        seen.add(used)


# The matrix kernel has no strips.
WAYS = [
    (method, rows)
    for method in (frames_emulator.STREAM, frames_emulator.INTEGER)
    for rows in (4, 20, 1 << 20)
]
WAYS.append((frames_emulator.MATRIX, 4))


@pytest.mark.parametrize(("method", "strip_rows"), WAYS)
@pytest.mark.parametrize("case", STREAMED, ids=lambda case: case.id)
def test_large_pictures_give_the_oracle_numbers(
    case: Case, method: int, strip_rows: int, emulator: ctypes.CDLL
) -> None:
    color, fmt = ColorSpec(*case.color), PIXEL_FORMATS[case.format]
    result, used = frames_emulator.convert(
        emulator,
        case.data(),
        fmt,
        case.height,
        case.width,
        color,
        case.transform,
        method,
        strip_rows=strip_rows,
    )
    # 8 outputs of this one need more samples than the integer kernel takes at a time
    too_wide = method == frames_emulator.INTEGER and case.width == 1922
    assert used == (frames_emulator.STREAM if too_wide else method)
    assert_frames_right(case, result)


@pytest.mark.parametrize("method", [frames_emulator.STREAM, frames_emulator.INTEGER])
@pytest.mark.parametrize("case", STREAMED[:9:2], ids=lambda case: case.id)
def test_a_block_may_have_more_threads_than_its_frame_needs(
    case: Case, method: int, emulator: ctypes.CDLL
) -> None:
    """As in a launch together with larger frames."""
    color, fmt = ColorSpec(*case.color), PIXEL_FORMATS[case.format]
    arguments = (case.data(), fmt, case.height, case.width, color, case.transform, method, 20)
    expected, _ = frames_emulator.convert(emulator, *arguments)
    threads = ctypes.c_int.in_dll(emulator, "frames_emulator_threads")
    threads.value = 512
    try:
        result, used = frames_emulator.convert(emulator, *arguments)
    finally:
        threads.value = 0
    assert used == method
    assert torch.equal(result, expected)


def test_a_launch_is_allowed_what_it_asks_for_after_one_that_asks_for_less(emulator: ctypes.CDLL) -> None:
    launches = [(0, 90_000), (1, 50_000), (0, 60_000), (0, 90_000), (1, 70_000), (1, 70_000), (0, 90_001)]
    kernels, sizes = ((ctypes.c_int * len(launches))(*column) for column in zip(*launches, strict=True))
    assert emulator.frames_emulator_refused_launches(kernels, sizes, len(launches)) == 0


@pytest.mark.parametrize(
    ("out_h", "blocks", "resident"), [(224, 128, 264), (224, 4, 264), (1, 1, 1), (97, 7, 5)]
)
def test_strips_are_whole_stages_that_cost_no_more_than_one(
    out_h: int, blocks: int, resident: int, emulator: ctypes.CDLL
) -> None:
    rows = emulator.frames_emulator_strip_rows(out_h, blocks, resident)
    assert rows > 0
    assert rows % 4 == 0

    def turns(strips: int) -> int:
        return -(-strips * blocks // resident)

    whole = -(-out_h // 4) * 4
    assert turns(-(-out_h // rows)) * (rows + 2.5) <= turns(1) * (whole + 2.5)


needs_gpu = pytest.mark.gpu


def on_gpu(case: Case, data: tuple[torch.Tensor, ...]) -> Planes:
    return Planes(tuple(p.cuda() for p in data), **case.planes_kwargs())


@needs_gpu
@pytest.mark.parametrize("case", [*FRAME_CASES, *STREAMED], ids=lambda case: case.id)
def test_device_gives_the_oracle_numbers(case: Case) -> None:
    check_planes_on(case, torch.device("cuda"))


@needs_gpu
def test_many_frames_of_padded_rows_in_one_call() -> None:
    case = make_case(size=(97, 131), geometry={"resize": (31, 33)}, frames=483, storage="padded")
    assert_frames_right(case, mmcore.frames_to_tensor(on_gpu(case, case.data()), case.call_transform()).cpu())


@needs_gpu
def test_launches_can_be_captured_and_do_not_wait() -> None:
    case = STREAMED[0]
    planes, transform = on_gpu(case, case.data()), case.call_transform()
    expected = mmcore.frames_to_tensor(planes, transform)
    out = torch.empty_like(expected)
    torch.cuda.set_sync_debug_mode("error")
    try:
        mmcore.frames_to_tensor(planes, transform, out=out)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    out.zero_()
    with torch.cuda.graph(graph):
        mmcore.frames_to_tensor(planes, transform, out=out)
    graph.replay()
    assert torch.equal(out, expected)
    out.zero_()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        mmcore.frames_to_tensor(planes, transform, out=out)
    torch.cuda.current_stream().wait_stream(side)
    assert torch.equal(out, expected)


@needs_gpu
def test_device_compiles_without_breaks() -> None:
    case = STREAMED[1]
    planes, transform = on_gpu(case, case.data()), case.call_transform()

    @torch.compile(fullgraph=True)
    def double(planes: Planes) -> torch.Tensor:
        return mmcore.frames_to_tensor(planes, transform) * 2

    assert torch.equal(double(planes), mmcore.frames_to_tensor(planes, transform) * 2)


@needs_gpu
def test_planes_and_out_must_be_on_one_device() -> None:
    case = STREAMED[0]
    data = case.data()
    with pytest.raises(ValueError, match=r"data\[1\] is on cpu, data\[0\] on cuda"):
        Planes((data[0].cuda(), *data[1:]), **case.planes_kwargs())
    with pytest.raises(ValueError, match="out: expected a dense tensor on cuda"):
        mmcore.frames_to_tensor(on_gpu(case, data), case.transform, out=torch.empty(2, 3, 56, 56))
