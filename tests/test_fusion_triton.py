"""weighted_fusion's Triton kernels: the oracle's numbers in the interpreter, and on a GPU if there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mmcore

triton = pytest.importorskip("triton", reason="the package triton is not installed")


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in version.split(".")[:2])


needs_interpreter = pytest.mark.skipif(
    _release(triton.__version__) < (3, 7) and _release(np.__version__) >= (2, 4),
    reason="the interpreter of triton before 3.7 needs numpy before 2.4",
)
needs_gpu = pytest.mark.gpu


def _run(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    tests = str(Path(__file__).parent)
    environment = {n: v for n, v in os.environ.items() if n not in ("TRITON_INTERPRET", "MMCORE_BACKEND")}
    environment |= {"PYTHONPATH": os.pathsep.join((tests, *sys.path)), **variables}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=280
    )


@needs_interpreter
def test_the_kernels_give_the_oracle_numbers_in_the_interpreter() -> None:
    """In a process of its own: Triton reads TRITON_INTERPRET once, when a kernel is defined."""
    done = _run(Path(__file__).with_name("triton_harness.py"), TRITON_INTERPRET="1")
    assert done.returncode == 0, "\n".join([*done.stdout.splitlines()[-30:], *done.stderr.splitlines()[-30:]])
    count = int(done.stdout.splitlines()[-1].split()[0])
    assert count > 100
    assert f"{count} cases, 0 failures" in done.stdout


_CPU_TENSORS = """
import sys
import torch
import mmcore
import mmcore.backends
assert "triton" not in sys.modules, "importing mmcore imports triton"
features = [torch.ones(1, 2, 4)] * 2
mmcore.weighted_fusion(features)
assert "triton" not in sys.modules, "CPU tensors go to triton"
with mmcore.backend("triton"):
    try:
        mmcore.weighted_fusion(features)
    except mmcore.UnsupportedError as error:
        print(error)
"""


def test_cpu_tensors_are_refused_without_the_interpreter() -> None:
    done = _run("-c", _CPU_TENSORS)
    assert done.returncode == 0, done.stderr
    assert "TRITON_INTERPRET" in done.stdout
    assert "'reference'" in done.stdout


@pytest.mark.parametrize("depth", [1, 5, 64, 65, 96, 200, 256, 300, 640, 768, 1000, 1024, 1152, 1280, 4096])
def test_a_row_is_cut_into_chunks_with_a_small_rest(depth: int) -> None:
    from mmcore.backends.triton.fusion import _chunks, _tile

    block, chunks = _chunks(depth, 3)
    assert block & (block - 1) == 0, "Triton's tiles are powers of two"
    assert 0 <= block * chunks - depth < max(128, depth // 3)
    for live, sums in ((4, 0), (4, 6), (14, 26), (65, 0)):
        tile = _tile(depth, True, live, sums, 3)
        assert (tile.block, tile.chunks, tile.parts) == (block, chunks, 1)
        assert tile.holds(live, sums) or (tile.rows, tile.warps) == (1, 16)
    assert depth < 512 or _tile(depth, True, 4).rows == 1


def test_code_is_not_compiled_too_often() -> None:
    from mmcore.backends.triton.fusion import _chunks

    assert _chunks(768, 16) == (256, 3)
    assert _chunks(768, 32) == (1024, 1), "16 modalities with a norm"
    assert _chunks(1152, 6) == (128, 9)
    assert _chunks(1152, 8) == (512, 3)
    assert _chunks(1000, 3) == (256, 4)


def test_a_row_of_768_channels_is_one_warp() -> None:
    from mmcore.backends.triton.fusion import _tile

    assert _tile(768, True, 4)[:] == (1, 256, 3, 1, 1)
    assert _tile(768, True, 4, 6).warps == 2, "with the sums of three modalities' scale and shift"


_ASSEMBLY = """
import importlib.util
import re
import sys
import torch
from triton.runtime.jit import JITFunction

spec = importlib.util.spec_from_file_location("compile_kernels", sys.argv[1])
ci = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ci)

run = JITFunction.run
def compile_only(self, *args, grid, warmup, **kwargs):
    compiled = run(self, *args, grid=grid, warmup=True, **kwargs)
    ptx = compiled.asm["ptx"]
    loads = re.findall(r"ld[.]global[^ ]*", ptx)
    wide = [load for load in loads if ".v4." in load]
    print(compiled.metadata.name, len(wide), len(loads), ptx.count("bar.sync"), sep=",")

ci.driver.set_active(ci.NoDriver(ci.TARGETS["sm_90"]))
JITFunction.run = compile_only
from mmcore.backends.triton import weighted_fusion, weighted_fusion_backward
from mmcore.ops.fusion import FusionOptions
dtype = getattr(torch, sys.argv[2])
x, w = (torch.empty(64, 32, n, dtype=dtype, device="meta") for n in (768, 3))
options = FusionOptions("softmax", None, ("none",) * 3, 1e-5, 32, dtype, False)
arguments = ([x] * 3, w, None, None, None, None, options)
weighted_fusion(*arguments)
weighted_fusion_backward(x, *arguments, (True, False, False, False, True, True, True))
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compiled_rows_are_read_16_bytes_a_thread_and_need_no_barrier(dtype: str) -> None:
    script = Path(__file__).parents[1] / ".ci" / "compile_kernels.py"
    if not script.exists():
        pytest.skip("needs the source tree")
    done = _run("-c", _ASSEMBLY, script, dtype)
    assert done.returncode == 0, done.stderr
    found = {name: counts for name, *counts in (line.split(",") for line in done.stdout.splitlines())}
    a_row = 768 * (4 if dtype == "float32" else 2) // 16 // 32
    assert found == {
        "fusion_forward_kernel": [str(3 * a_row), str(3 * a_row + 3), "0"],
        "fusion_backward_kernel": [str(4 * a_row), str(4 * a_row + 3), "0"],
    }, "three scalars are the weights"


@needs_gpu
def test_the_kernels_give_the_oracle_numbers_on_the_gpu() -> None:
    from triton_harness import KERNEL_CASES, Sizes, check, check_missing_without_eps, use

    failures = []
    try:
        for case in KERNEL_CASES:
            try:
                check(case, "cuda")
            except AssertionError as error:
                failures.append(f"{case.id}: {error}")
        check_missing_without_eps("cuda")
    finally:
        use(Sizes())
    assert not failures, "\n".join(failures)


def _call(**how: Any) -> tuple[list[torch.Tensor], torch.Tensor, dict[str, Any]]:
    features = [torch.randn(8, 32, 768, device="cuda", requires_grad=True) for _ in range(3)]
    weights = torch.randn(3, device="cuda", requires_grad=True)
    scale, shift = (torch.randn(3, 768, device="cuda", requires_grad=True) for _ in range(2))
    return features, weights, {"norm_weight": scale, "norm_bias": shift, **how}


@needs_gpu
@pytest.mark.parametrize("align", [None, "linear"])
def test_a_cuda_graph_can_be_captured(align: str | None) -> None:
    features, weights, how = _call(mode="softmax", norm="layer_norm", align=align)
    if align is not None:
        features[1] = torch.randn(8, 50, 768, device="cuda", requires_grad=True)
    leaves = [*features, weights, how["norm_weight"], how["norm_bias"]]

    def step() -> list[torch.Tensor]:
        out = mmcore.weighted_fusion(features, weights, **how)
        return [out, *torch.autograd.grad(out.square().sum(), leaves)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # torch asks for a call before the capture, which also compiles the kernels
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for leaf in leaves:
            leaf.mul_(0.5)
    graph.replay()
    for a, b in zip(captured, step(), strict=True):
        assert torch.equal(a, b)


@needs_gpu
def test_nothing_waits_for_the_gpu() -> None:
    features, weights, how = _call(norm="layer_norm")
    mmcore.weighted_fusion(features, weights, **how).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        mmcore.weighted_fusion(features, weights, **how).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_float64_goes_to_the_reference() -> None:
    features = [
        torch.randn(2, 3, 5, dtype=torch.float64, device="cuda", requires_grad=True) for _ in range(2)
    ]
    weights = torch.rand(2, dtype=torch.float64, device="cuda", requires_grad=True)
    torch.autograd.gradcheck(
        lambda *t: mmcore.weighted_fusion(t[:2], t[2], mode="softmax"), (*features, weights)
    )
