"""The losses op's Triton kernels: the oracle's numbers in the interpreter, and on a GPU if there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mmcore
from mmcore import Task

triton = pytest.importorskip("triton", reason="the package triton is not installed")

from test_fusion_triton import _run, needs_gpu, needs_interpreter  # noqa: E402


@needs_interpreter
def test_the_kernels_give_the_oracle_numbers_in_the_interpreter() -> None:
    """In a process of its own: Triton reads TRITON_INTERPRET once, when a kernel is defined."""
    done = _run(Path(__file__).with_name("triton_losses_harness.py"), TRITON_INTERPRET="1")
    assert done.returncode == 0, "\n".join([*done.stdout.splitlines()[-30:], *done.stderr.splitlines()[-30:]])
    count = int(done.stdout.splitlines()[-1].split()[0])
    assert count > 100
    assert f"{count} cases, 0 failures" in done.stdout


_CPU_TENSORS = """
import sys
import torch
import mmcore
assert "triton" not in sys.modules, "importing mmcore imports triton"
arguments = [torch.ones(2, 4)], [torch.zeros(2, 4)], [mmcore.Task.mse()]
with mmcore.backend("reference"):
    mmcore.multi_task_loss(*arguments)
assert "triton" not in sys.modules, "CPU tensors go to triton"
with mmcore.backend("triton"):
    try:
        mmcore.multi_task_loss(*arguments)
    except mmcore.UnsupportedError as error:
        print(error)
"""


def test_cpu_tensors_are_refused_without_the_interpreter() -> None:
    done = _run("-c", _CPU_TENSORS)
    assert done.returncode == 0, done.stderr
    assert "TRITON_INTERPRET" in done.stdout
    assert "'reference'" in done.stdout


@needs_gpu
def test_the_kernels_give_the_oracle_numbers_on_the_gpu() -> None:
    from triton_losses_harness import (
        KERNEL_CASES,
        Sizes,
        check,
        check_class_out_of_range,
        check_overwriting,
        check_scaling,
        use,
    )

    failures = []
    try:
        for case in KERNEL_CASES:
            try:
                check(case, "cuda")
            except AssertionError as error:
                failures.append(f"{case.id}: {error}")
        check_overwriting("cuda")
        check_scaling("cuda")
        check_class_out_of_range("cuda")
    finally:
        use(Sizes())
    assert not failures, "\n".join(failures)


def _call(labels: int = 64) -> tuple[list[torch.Tensor], list[Any], list[Task], dict[str, Any]]:
    """Four heads with uncertainty; of more than 4096 labels the count has a launch of its own."""
    leaves = [torch.randn(labels, n, device="cuda", requires_grad=True) for n in (400, 80, 256, 64)]
    classes = torch.randint(0, 400, (labels,), device="cuda")
    targets = [classes, *(torch.rand(labels, n, device="cuda") for n in (80, 256, 64))]
    tasks = [Task.cross_entropy(), Task.bce_with_logits(), Task.mse(), Task.smooth_l1()]
    masks = [None, None, None, torch.rand(labels, device="cuda") < 0.7]
    log_vars = torch.randn(4, device="cuda", requires_grad=True)
    return leaves, targets, tasks, {"log_vars": log_vars, "masks": masks}


@needs_gpu
@pytest.mark.parametrize("labels", [64, 5000])
def test_a_cuda_graph_can_be_captured(labels: int) -> None:
    leaves, targets, tasks, how = _call(labels)
    wanted = [*leaves, how["log_vars"]]

    def step() -> list[torch.Tensor]:
        total, losses = mmcore.multi_task_loss(leaves, targets, tasks, **how)
        scaled = torch.autograd.grad(total * 3, wanted, retain_graph=True)
        return [total, *losses, *scaled, *torch.autograd.grad(total + losses[1] * 2, wanted)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # torch asks for a call before the capture, which also compiles the kernels
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for leaf in wanted:
            leaf.mul_(0.5)
        how["masks"][3].logical_not_()
        targets[0][::2] = -100
    graph.replay()
    for a, b in zip(captured, step(), strict=True):
        assert torch.equal(a, b)


@needs_gpu
def test_nothing_waits_for_the_gpu() -> None:
    leaves, targets, tasks, how = _call()

    def step(factor: float) -> None:
        total, losses = mmcore.multi_task_loss(leaves, targets, tasks, **how)
        (total * factor).backward(retain_graph=True)
        (total + losses[0]).backward()

    step(1.0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(1.0)
        step(0.5)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_float64_goes_to_the_reference() -> None:
    logits = torch.randn(3, 5, dtype=torch.float64, device="cuda", requires_grad=True)
    scores = torch.randn(2, 4, dtype=torch.float64, device="cuda", requires_grad=True)
    log_vars = torch.randn(2, dtype=torch.float64, device="cuda", requires_grad=True)
    targets = [torch.tensor([0, 4, -100], device="cuda"), torch.rand(2, 4, device="cuda")]
    tasks = [Task.cross_entropy(label_smoothing=0.1), Task.bce_with_logits()]

    def total(*t: torch.Tensor) -> torch.Tensor:
        return mmcore.multi_task_loss(t[:2], targets, tasks, log_vars=t[2])[0]

    torch.autograd.gradcheck(total, (logits, scores, log_vars))
