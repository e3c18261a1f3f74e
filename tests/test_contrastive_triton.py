"""The contrastive losses' Triton kernels: the oracle's numbers in the interpreter, and on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import mmcore

triton = pytest.importorskip("triton", reason="the package triton is not installed")

from test_contrastive import KINDS, Case, features  # noqa: E402
from test_fusion_triton import _run, needs_gpu, needs_interpreter  # noqa: E402


@needs_interpreter
def test_the_kernels_give_the_oracle_numbers_in_the_interpreter() -> None:
    """In a process of its own: Triton reads TRITON_INTERPRET once, when a kernel is defined."""
    done = _run(Path(__file__).with_name("triton_contrastive_harness.py"), TRITON_INTERPRET="1")
    assert done.returncode == 0, "\n".join([*done.stdout.splitlines()[-30:], *done.stderr.splitlines()[-30:]])
    count = int(done.stdout.splitlines()[-1].split()[0])
    assert count > 50
    assert f"{count} cases, 0 failures" in done.stdout


def test_cpu_tensors_are_refused_without_the_interpreter() -> None:
    a, b = features(Case("clip", 4))
    with mmcore.backend("triton"), pytest.raises(mmcore.UnsupportedError, match="TRITON_INTERPRET"):
        mmcore.contrastive_loss(a, b, 2.0)


@needs_gpu
def test_the_kernels_give_the_oracle_numbers_on_the_gpu() -> None:
    from triton_contrastive_harness import check, check_nan_and_infinity, checks

    failures = []
    for case, how in checks():
        try:
            check(case, "cuda", **how)
        except AssertionError as error:
            failures.append(f"{case.id} {how}: {error}")
    assert not failures, "\n".join(failures[:20])
    check_nan_and_infinity("cuda")


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_sizes_that_people_have(kind: str, dtype: torch.dtype) -> None:
    from triton_contrastive_harness import check

    for batch in (1000, 2048):
        check(Case(kind, batch, 256, dtype), "cuda")
        check(Case(kind, batch, 256, dtype), "cuda", rows=600)


@needs_gpu
@pytest.mark.parametrize("kind", KINDS)
def test_a_cuda_graph_can_be_captured(kind: str) -> None:
    a, b = (x.cuda().requires_grad_() for x in features(Case(kind, 300, 64)))
    scale = torch.tensor(14.3, device="cuda", requires_grad=True)

    def step() -> list[torch.Tensor]:
        loss = mmcore.contrastive_loss(a, b, scale, kind)
        return [loss.detach(), *torch.autograd.grad(loss * 3, [a, b, scale])]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # torch asks for calls before the capture, which also compile the kernels
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        a.mul_(0.5)
        scale.mul_(2)
    graph.replay()
    for one, two in zip(captured, step(), strict=True):
        assert torch.equal(one, two)


@needs_gpu
def test_nothing_waits_for_the_gpu() -> None:
    a, b = (x.cuda().requires_grad_() for x in features(Case("clip", 300, 64)))
    scale = torch.tensor(14.3, device="cuda", requires_grad=True)

    def step() -> None:
        for kind in KINDS:
            mmcore.contrastive_loss(a, b, scale, kind).backward()
            mmcore.contrastive_loss(a, b, 8.0, kind).backward()

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
