"""What the ops promise on a GPU beside their numbers: no waiting, graphs, the same bits, torch.compile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

import mmcore
from bench.gpu.frames import FramesCase, make_planes
from bench.gpu.measure import Bench, assert_near
from mmcore import Task

__all__ = ["run"]

Step = Callable[[], list[Tensor]]


def run(bench: Bench) -> None:
    """Try every promise on every step; the record says which hold."""
    held: dict[str, list[str]] = {}
    bench.record["held"] = held
    for name, make in _steps(bench).items():
        step, leaves = make()
        for promise, check in _PROMISES.items():
            with bench.attempt(f"{name}: {promise}"):
                check(bench, step, leaves)
                held.setdefault(name, []).append(promise)
    for name, function, arguments in _functions(bench):
        with bench.attempt(f"{name}: torch.compile(fullgraph=True)"):
            _compiles(bench, function, arguments)
            held.setdefault(name, []).append("torch.compile(fullgraph=True)")


def _randn(bench: Bench, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device=bench.device, dtype=dtype).requires_grad_()


def _steps(bench: Bench) -> dict[str, Callable[[], tuple[Step, list[Tensor]]]]:
    found: dict[str, Callable[[], tuple[Step, list[Tensor]]]] = {}
    for align in (None, "nearest", "linear", "mean"):
        for dtype in (torch.float32,) if bench.dry else (torch.float32, torch.bfloat16):
            kind = str(dtype).removeprefix("torch.")
            found[f"fusion, align {align}, {kind}"] = lambda a=align, d=dtype: _fusion(bench, a, d)
    labels = 9 if bench.dry else 5000
    for count in (1, 2):
        found[f"frames, {count} kind{'s' if count > 1 else ''}"] = lambda n=count: _frames(bench, n)
    found["losses, few labels"] = lambda: _losses(bench, 5 if bench.dry else 64)
    found["losses, many labels"] = lambda: _losses(bench, labels)
    found["losses, value_and_grad"] = lambda: _at_once(bench)
    found["losses, in place"] = lambda: _in_place(bench)
    found["contrastive"] = lambda: _contrastive(bench)
    return found


def _sizes(bench: Bench) -> tuple[int, int, int]:
    return (2, 3, 20) if bench.dry else (33, 32, 768)


def _fusion(bench: Bench, align: str | None, dtype: torch.dtype) -> tuple[Step, list[Tensor]]:
    batch, steps, depth = _sizes(bench)
    features = [_randn(bench, batch, steps, depth, dtype=dtype) for _ in range(3)]
    if align is not None:
        features[1] = _randn(bench, batch, steps * 5 // 2, depth, dtype=dtype)
    weights = _randn(bench, batch, steps, 3)
    scale, shift = _randn(bench, 3, depth), _randn(bench, 3, depth)
    mask = torch.rand(batch, steps, 3, device=bench.device) < 0.7
    leaves = [*features, weights, scale, shift]
    upstream = torch.randn(batch, steps, depth, device=bench.device, dtype=dtype)

    def step() -> list[Tensor]:
        out = mmcore.weighted_fusion(
            features, weights, mode="softmax", mask=mask, norm="layer_norm", norm_weight=scale,
            norm_bias=shift, align=[None, align, None],
        )  # fmt: skip
        return [out, *torch.autograd.grad(out, leaves, upstream)]

    return step, leaves


def _frames(bench: Bench, kinds: int) -> tuple[Step, list[Tensor]]:
    """Planes of one size and format, or of two in one call."""
    height, width = (48, 64) if bench.dry else (541, 963)
    how = {"resize": (24, 36)} if bench.dry else {"resize": (112, 160)}
    cases = [FramesCase("", height, width, how, "nv12"), FramesCase("", width, height, how, "yuv420p10le")]
    planes = [make_planes(case, bench, 2) for case in cases[:kinds]]
    transform = cases[0].make_transform()

    def step() -> list[Tensor]:
        with mmcore.backend("cpu") if bench.dry else nullcontext():
            return [mmcore.frames_to_tensor(planes if kinds > 1 else planes[0], transform)]

    return step, [plane for p in planes for plane in p.data]


def _problem(bench: Bench, labels: int) -> tuple[list[Tensor], list[Any], list[Task], dict[str, Any]]:
    widths = (11, 5, 6, 4) if bench.dry else (400, 80, 256, 64)
    leaves = [_randn(bench, labels, n) for n in widths]
    classes = torch.randint(0, widths[0], (labels,), device=bench.device)
    targets = [classes, *(torch.rand(labels, n, device=bench.device) for n in widths[1:])]
    tasks = [Task.cross_entropy(), Task.bce_with_logits(), Task.mse(), Task.smooth_l1()]
    masks = [None, None, None, torch.rand(labels, device=bench.device) < 0.7]
    return leaves, targets, tasks, {"log_vars": _randn(bench, 4), "masks": masks}


def _losses(bench: Bench, labels: int) -> tuple[Step, list[Tensor]]:
    leaves, targets, tasks, how = _problem(bench, labels)
    wanted = [*leaves, how["log_vars"]]

    def step() -> list[Tensor]:
        total, losses = mmcore.multi_task_loss(leaves, targets, tasks, **how)
        assert isinstance(losses, Tensor)
        scaled = torch.autograd.grad(total * 3, wanted, retain_graph=True)
        return [total, losses, *scaled, *torch.autograd.grad(total + losses[1] * 2, wanted)]

    return step, wanted


def _at_once(bench: Bench) -> tuple[Step, list[Tensor]]:
    leaves, targets, tasks, how = _problem(bench, 5 if bench.dry else 64)

    def step() -> list[Tensor]:
        total, _, gradients = mmcore.multi_task_value_and_grad(leaves, targets, tasks, **how)
        return [total, *gradients.outputs, gradients.log_vars]

    return step, [*leaves, how["log_vars"]]


def _in_place(bench: Bench) -> tuple[Step, list[Tensor]]:
    rows, columns = (3, 40) if bench.dry else (65, 32003)
    x, weight = _randn(bench, rows, 8), _randn(bench, columns, 8)
    target = torch.randint(0, columns, (rows,), device=bench.device)

    def step() -> list[Tensor]:
        logits = torch.nn.functional.linear(x, weight)
        total, _ = mmcore.multi_task_loss([logits], [target], [Task.cross_entropy()], inplace_gradient=True)
        return [total, *torch.autograd.grad(total, [x, weight])]

    return step, [x, weight]


def _contrastive(bench: Bench) -> tuple[Step, list[Tensor]]:
    size = (5, 7) if bench.dry else (260, 128)
    a, b, scale = _randn(bench, *size), _randn(bench, *size), _randn(bench)

    def step() -> list[Tensor]:
        with mmcore.backend("reference") if bench.dry else nullcontext():
            loss = mmcore.contrastive_loss(a, b, scale.exp())
        return [loss, *torch.autograd.grad(loss, [a, b, scale])]

    return step, [a, b, scale]


# ---- promises


def _scale(leaf: Tensor, factor: float) -> None:
    leaf.copy_(leaf * factor)  # samples of pictures are whole numbers


def _same(a: Sequence[Tensor], b: Sequence[Tensor], what: str) -> None:
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        assert torch.equal(x, y), f"result {i}: {what}"


def _same_bits(bench: Bench, step: Step, leaves: list[Tensor]) -> None:
    first = [t.clone() for t in step()]
    for _ in range(1 if bench.dry else 20):
        _same(first, step(), "other bits at another call")


def _waits_for_nothing(bench: Bench, step: Step, leaves: list[Tensor]) -> None:
    step()
    with _no_waiting(bench):
        step()
        with torch.no_grad():
            _scale(leaves[0], 1.0)
        step()


@contextmanager
def _no_waiting(bench: Bench) -> Iterator[None]:
    if bench.dry:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _captured(bench: Bench, step: Step, leaves: list[Tensor]) -> None:
    replay = bench.graphed(step)
    with torch.no_grad():
        for leaf in leaves:
            _scale(leaf, 0.75)
    found = [t.clone() for t in replay()]
    _same(found, step(), "other bits from a graph's replay")


def _on_another_stream(bench: Bench, step: Step, leaves: list[Tensor]) -> None:
    expected = step()
    if bench.dry:
        return
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        found = step()
    torch.cuda.current_stream().wait_stream(side)
    _same(expected, found, "other bits on another stream")


def _as_the_reference(bench: Bench, step: Step, leaves: list[Tensor]) -> None:
    with mmcore.backend("reference"):
        expected = step()
    found = step()
    assert_near(found, expected, 1e-3 if found[0].dtype == torch.float32 else 0.05)


_PROMISES: dict[str, Callable[[Bench, Step, list[Tensor]], None]] = {
    "near the reference on the GPU": _as_the_reference,
    "the same bits every time": _same_bits,
    "waits for nothing": _waits_for_nothing,
    "CUDA graph": _captured,
    "another stream": _on_another_stream,
}


def _functions(bench: Bench) -> Iterator[tuple[str, Callable[..., Tensor], list[Tensor]]]:
    batch, steps, depth = _sizes(bench)
    tasks = [Task.cross_entropy(), Task.mse()]
    target = torch.randint(0, depth, (batch,), device=bench.device)

    def fused(a: Tensor, b: Tensor, w: Tensor) -> Tensor:
        return mmcore.weighted_fusion([a, b * 2], w, mode="softmax", norm="rms_norm", align="linear").square()

    def lost(x: Tensor, y: Tensor) -> Tensor:
        total, _ = mmcore.multi_task_loss([x * 2, y], [target, y.detach() + 1], tasks, weights=None)
        return total * 3

    streams = [_randn(bench, batch, steps, depth), _randn(bench, batch, 2 * steps, depth)]
    yield "fusion", fused, [*streams, _randn(bench, batch, steps, 2)]
    yield "losses", lost, [_randn(bench, batch, depth), _randn(bench, batch, 5)]


def _compiles(bench: Bench, function: Callable[..., Tensor], arguments: list[Tensor]) -> None:
    how: dict[str, Any] = {"backend": "aot_eager"} if bench.dry else {}
    compiled = torch.compile(function, fullgraph=True, **how)
    results = []
    for f in (function, compiled):
        out = f(*arguments)
        results.append([out, *torch.autograd.grad(out.sum(), arguments)])
    assert_near(results[1], results[0], 1e-4)
