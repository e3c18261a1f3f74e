"""What calling the ops costs the host, in microseconds a call, and where that goes.

Calls are replayed but for the first of their kind: ``host_us_anew`` has what they cost where nothing is.
Calls of torch's own functions, whose names begin with torch, do the same work.
"""

from __future__ import annotations

import cProfile
import io
import pstats
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import mmcore
from bench.gpu.measure import Bench
from mmcore import Task
from mmcore.backends import replay

__all__ = ["run"]


def run(bench: Bench) -> None:
    """Time small calls, which launches bound; profile two of them."""
    calls = _calls(bench)
    host, anew = bench.record["host_us"], bench.record["host_us_anew"] = {}, {}
    for name, call in calls.items():
        with bench.attempt(name):
            call()
            host[name] = bench.host_us(call, 200)
            if not name.startswith("torch"):
                with replay.disabled():
                    anew[name] = bench.host_us(call, 50)
    for name in ("fusion, step", "4 heads, step"):
        with bench.attempt(f"profile of {name}"):
            bench.record[f"profile of {name}"] = _profile(bench, calls[name])


def _profile(bench: Bench, call: Callable[[], Any]) -> list[str]:
    profile = cProfile.Profile()
    bench.synchronize()
    profile.enable()
    for _ in range(1 if bench.dry else 200):
        call()
    profile.disable()
    bench.synchronize()
    text = io.StringIO()
    pstats.Stats(profile, stream=text).sort_stats("tottime").print_stats(30)
    return [line for line in text.getvalue().splitlines() if line.strip()]


def _calls(bench: Bench) -> dict[str, Callable[[], Any]]:
    device = bench.device
    features = [torch.randn(8, 1, 256, device=device) for _ in range(3)]
    weights = torch.rand(3, device=device)
    leaves = [t.clone().requires_grad_() for t in (*features, weights)]
    upstream = torch.randn(8, 1, 256, device=device)
    scale = torch.ones(3, 256, device=device)
    shapes = (("cross_entropy", 400), ("bce_with_logits", 20), ("mse", 4), ("smooth_l1", 4))
    outputs = [torch.randn(64, n, device=device) for _, n in shapes]
    targets = [
        torch.randint(0, 400, (64,), device=device),
        *(torch.rand(64, n, device=device) for _, n in shapes[1:]),
    ]
    tasks = [getattr(Task, kind)() for kind, _ in shapes]
    log_vars = torch.randn(4, device=device)
    wanted = [t.clone().requires_grad_() for t in (*outputs, log_vars)]

    def fusion_step() -> Any:
        out = mmcore.weighted_fusion(leaves[:3], leaves[3])
        return torch.autograd.grad(out, leaves, upstream)

    def losses_step() -> Any:
        total, _ = mmcore.multi_task_loss(wanted[:4], targets, tasks, log_vars=wanted[4])
        return torch.autograd.grad(total, wanted)

    def torch_fusion() -> Tensor:
        gates = leaves[3]
        return sum((x * gates[m] for m, x in enumerate(leaves[1:3], 1)), leaves[0] * gates[0])

    def torch_fusion_step() -> Any:
        return torch.autograd.grad(torch_fusion(), leaves, upstream)

    def torch_losses() -> Tensor:
        kinds = (F.cross_entropy, F.binary_cross_entropy_with_logits, F.mse_loss, F.smooth_l1_loss)
        found = torch.stack([f(x, t) for f, x, t in zip(kinds, wanted, targets, strict=False)])
        return (scales * torch.exp(-wanted[4]) * found + 0.5 * wanted[4]).sum()

    def torch_losses_step() -> Any:
        return torch.autograd.grad(torch_losses(), wanted)

    scales = torch.tensor([task.options.uncertainty_scale for task in tasks], device=device)
    a = torch.randn(64, device=device, requires_grad=True)

    def torch_step() -> tuple[Tensor, ...]:
        return torch.autograd.grad((a * 2).sum(), [a])

    return {
        "torch, mul and sum, step": torch_step,
        "torch, fusion, forward": torch.no_grad()(torch_fusion),
        "torch, fusion, step": torch_fusion_step,
        "torch, 4 heads, forward": torch.no_grad()(torch_losses),
        "torch, 4 heads, step": torch_losses_step,
        "fusion, forward": lambda: mmcore.weighted_fusion(features, weights),
        "fusion, forward, layer_norm": lambda: mmcore.weighted_fusion(
            features, weights, norm="layer_norm", norm_weight=scale
        ),
        "fusion, step": fusion_step,
        "4 heads, forward": lambda: mmcore.multi_task_loss(outputs, targets, tasks, log_vars=log_vars),
        "4 heads, value_and_grad": lambda: mmcore.multi_task_value_and_grad(
            outputs, targets, tasks, log_vars=log_vars
        ),
        "4 heads, step": losses_step,
        "1 head, value_and_grad": lambda: mmcore.multi_task_value_and_grad(
            outputs[:1], targets[:1], tasks[:1]
        ),
    }
