"""frames_to_tensor gives the oracle's numbers: every backend and ISA, planes however they lie in memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import FRAME_CASES, Case, make_case, make_planes
from frames_harness import check_case, video_frame

import mmcore
from mmcore.ops.pixel_formats import PIXEL_FORMATS
from mmcore.ops.planes import Planes

BACKENDS = ("reference", "cpu")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", FRAME_CASES, ids=lambda case: case.id)
def test_planes_give_the_oracle_numbers(case: Case, backend: str) -> None:
    with mmcore.backend(backend):
        check_case(case, case.data())


@pytest.mark.skipif(os.name != "posix", reason="guard pages need mprotect")
@pytest.mark.parametrize("isa", ["base", "avx2", "avx512", "neon"])
def test_every_isa_between_guard_pages(isa: str) -> None:
    """In a process of its own, because an ISA is chosen once and a byte too many kills the process."""
    if isa not in mmcore.build_info()["isa_available"]:
        pytest.skip(f"this machine has no {isa}")
    harness = Path(__file__).with_name("frames_harness.py")
    env = {**os.environ, "MMCORE_ISA": isa, "PYTHONPATH": str(harness.parent)}
    done = subprocess.run([sys.executable, harness], env=env, capture_output=True, text=True, timeout=280)
    last = done.stderr.splitlines()[-30:]
    assert done.returncode == 0, "\n".join([*done.stdout.splitlines()[-30:], *last])
    assert f"isa: {isa}" in done.stdout
    assert f"{len(FRAME_CASES)} cases, 0 failures" in done.stdout


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lines", ["padded", "negative", "cropped"])
@pytest.mark.parametrize("name", PIXEL_FORMATS)
def test_video_frames_are_read_where_they_lie(name: str, lines: str, backend: str) -> None:
    transform = mmcore.FrameTransform(resize=(13, 20), crop=(11, 12), matrix="709", full_range=False)
    fmt = PIXEL_FORMATS[name]
    for h, w in ((1, 1), (17, 31), (8, 64)):
        planes = make_planes(fmt, 2, h, w)
        frames = [video_frame(name, [p[t] for p in planes], h, w, lines) for t in range(2)]
        with mmcore.backend(backend):
            expected = mmcore.frames_to_tensor(Planes(planes, name, h, w), transform)
            assert torch.equal(mmcore.frames_to_tensor(frames, transform), expected)
            assert torch.equal(mmcore.frames_to_tensor(frames[1], transform), expected[1:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_a_transform_frames_become_rgb_bytes(backend: str) -> None:
    planes = make_planes(PIXEL_FORMATS["rgb24"], 2, 5, 7)
    with mmcore.backend(backend):
        result = mmcore.frames_to_tensor(Planes(planes, "rgb24", 5, 7))
    assert result.dtype == torch.uint8
    assert torch.equal(result, planes[0].reshape(2, 5, 7, 3).permute(0, 3, 1, 2))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_frames_give_no_result_rows(backend: str) -> None:
    planes = make_planes(PIXEL_FORMATS["yuv420p"], 0, 6, 8)
    with mmcore.backend(backend):
        assert mmcore.frames_to_tensor(Planes(planes, "yuv420p", 6, 8)).shape == (0, 3, 6, 8)


def test_half_formats_round_to_nearest_even() -> None:
    """Every level through both casts, against torch's own casts of the float32 result."""
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    planes = Planes((levels,), "gray", 16, 16, full_range=True)
    for values in ({}, {"mean": 0.45, "std": 0.225}, {"scale": 1.0}, {"scale": 1e-7}):
        for accuracy in ("fused", "rgb8"):
            transform = mmcore.FrameTransform(accuracy=accuracy, **values)
            exact = mmcore.frames_to_tensor(planes, transform)
            for dtype in (torch.float16, torch.bfloat16):
                result = mmcore.frames_to_tensor(planes, transform.replace(dtype=dtype))
                assert torch.equal(result, exact.to(dtype)), (values, accuracy, dtype)


def test_results_do_not_depend_on_threads_or_on_the_run() -> None:
    case = make_case(
        "yuv420p", (97, 131), {"resize": (50, 61)}, ("bicubic", True), frames=9, values="imagenet"
    )
    planes = Planes(case.data(), **case.planes_kwargs())
    one_by_one = torch.cat([
        mmcore.frames_to_tensor(
            Planes(tuple(p[t : t + 1] for p in planes.data), **case.planes_kwargs()), case.call_transform()
        )
        for t in range(case.frames)
    ])  # fmt: skip
    before = mmcore.get_num_threads()
    try:
        for threads in (1, 2, 3, 8, 1):
            mmcore.set_num_threads(threads)
            assert mmcore.get_num_threads() == threads
            assert torch.equal(mmcore.frames_to_tensor(planes, case.call_transform()), one_by_one)
    finally:
        mmcore.set_num_threads(before)
