"""Launches of the Triton ops: replayed ones are those of Triton's own call; what a call costs the host."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import mmcore
from mmcore.backends import replay

triton = pytest.importorskip("triton", reason="the package triton is not installed")

from test_fusion_triton import _run, needs_gpu  # noqa: E402

from mmcore.kernels import _launch  # noqa: E402

needs_compiler = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64" or shutil.which("cc") is None,
    reason="needs Linux on x86-64 and a C compiler",
)


def _harness(*arguments: str) -> tuple[int, int]:
    done = _run(Path(__file__).with_name("launch_harness.py"), *arguments)
    assert done.returncode == 0, "\n".join([*done.stdout.splitlines()[-30:], *done.stderr.splitlines()[-30:]])
    count, _, replayed, *rest = done.stdout.splitlines()[-1].split()
    assert rest == ["replayed,", "0", "failures"]
    return int(count), int(replayed)


@needs_compiler
def test_replayed_calls_launch_what_triton_would() -> None:
    count, replayed = _harness()
    assert count > 1000
    assert replayed > count // 2


def _steps(device: str) -> Iterator[Callable[[], list[Tensor]]]:
    """Steps of both ops, each with new tensors of the same shapes."""
    tasks = [mmcore.Task.cross_entropy(), mmcore.Task.bce_with_logits(), mmcore.Task.mse()]

    def losses() -> list[Tensor]:
        outputs = [torch.randn(64, n, device=device, requires_grad=True) for n in (400, 20, 4)]
        targets = [torch.randint(0, 400, (64,), device=device)]
        targets += [torch.rand(64, n, device=device) for n in (20, 4)]
        log_vars = torch.randn(3, device=device, requires_grad=True)
        total, _ = mmcore.multi_task_loss(outputs, targets, tasks, weights=[1, 2, 0.5], log_vars=log_vars)
        return [total.detach(), *torch.autograd.grad(total * 3, [*outputs, log_vars])]

    def fusion(**how: Any) -> list[Tensor]:
        features = [torch.randn(8, t, 96, device=device, requires_grad=True) for t in (12, 12, 30)]
        weights = torch.randn(8, 12, 3, device=device, requires_grad=True)
        how["align"] = [None, None, "linear"]
        out = mmcore.weighted_fusion(features, weights, mode="softmax", **how)
        return [out.detach(), *torch.autograd.grad(out.square().sum(), [*features, weights])]

    yield losses
    yield fusion
    yield lambda: fusion(norm="layer_norm", norm_weight=torch.rand(3, 96, device=device))


@needs_gpu
def test_replayed_calls_give_the_same_bits_on_the_gpu() -> None:
    replay.clear()
    for step in _steps("cuda"):
        wanted = []
        with replay.disabled():
            for seed in range(5):
                torch.manual_seed(seed)
                wanted.append(step())
        for seed, results in enumerate(wanted):
            torch.manual_seed(seed)
            for a, b in zip(step(), results, strict=True):
                assert torch.equal(a, b), f"call {seed}"
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.manual_seed(0)
            found = step()
        torch.cuda.current_stream().wait_stream(side)
        for a, b in zip(found, wanted[0], strict=True):
            assert torch.equal(a, b), "on another stream"
    assert sum(isinstance(plan, replay._Plan) for plan in replay._plans.values()) >= 6


@needs_compiler
def test_compiled_kernels_are_launched_again() -> None:
    assert _harness("--compiled") == (4, 4)


class _Launcher:
    """The launcher of a compiled kernel, as Triton has it."""

    def __init__(self) -> None:
        self.launches: list[tuple[Any, ...]] = []

    def __call__(
        self,
        gridX: int,
        gridY: int,
        gridZ: int,
        stream: int,
        function: int,
        *args: Any,
    ) -> None:
        self.launches.append((gridX, gridY, gridZ, stream, function, *args))


class _OtherLauncher(_Launcher):
    """One that wants something else before the stream."""

    def __call__(self, grid: tuple[int, ...], stream: int, function: int, *args: Any) -> None:  # type: ignore[override]
        self.launches.append((grid, stream, function, *args))


class _Kernel:
    """A Triton kernel of one tensor and a number, on a driver with two devices."""

    params = tuple(SimpleNamespace(name=name, is_constexpr=False) for name in ("tensors", "n"))

    def __init__(self, launcher: _Launcher) -> None:
        self.launcher = launcher
        self.calls = 0
        self.left: Callable[[], None] = lambda: None
        self.compiled = SimpleNamespace(
            run=launcher,
            function=11,
            packed_metadata=(4, 1, 0),
            launch_metadata=lambda grid, stream, *args: (grid, stream, args),
        )

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def call(**arguments: Any) -> Any:
            self.calls += 1
            return self.compiled

        return call


@pytest.fixture
def _driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from triton.runtime import driver

    fake = SimpleNamespace(get_current_device=lambda: 0, get_current_stream=lambda device: 7)
    monkeypatch.setattr(driver, "_active", fake)
    monkeypatch.setattr(replay, "RECORDED_AT", 1)
    replay.clear()
    yield
    replay.clear()


def _op(kernel: _Kernel, x: Tensor) -> Tensor:
    def make() -> list[Tensor | None]:
        out = replay.empty(x.shape, x.dtype, x.device)
        scratch = replay.empty((3,), torch.float32, x.device)
        _launch.launch(kernel, (2, 3), 4, {"tensors": (x, (out, 5), (scratch,), None), "n": 9})
        kernel.left()
        return [out]

    (out,) = replay.run(("op",), (x,), make)
    assert out is not None
    return out


@pytest.mark.usefixtures("_driver")
def test_a_second_call_goes_to_the_compiled_kernel() -> None:
    launcher = _Launcher()
    kernel = _Kernel(launcher)
    _op(kernel, torch.ones(4))
    assert (kernel.calls, len(launcher.launches)) == (1, 0)
    x = torch.ones(4)
    out = _op(kernel, x)
    assert kernel.calls == 1
    (launched,) = launcher.launches
    tensors = launched[-2]
    assert launched[:9] == (2, 3, 1, 7, 11, (4, 1, 0), None, None, None)
    assert tensors[:2] == (x.data_ptr(), (out.data_ptr(), 5))
    assert tensors[2][0] not in (x.data_ptr(), out.data_ptr())
    assert (len(tensors), tensors[3], launched[-1]) == (4, None, 9)


@pytest.mark.usefixtures("_driver")
def test_a_launch_goes_to_the_device_of_its_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime import driver

    launcher = _Launcher()
    kernel = _Kernel(launcher)
    monkeypatch.setattr(driver.active, "get_current_device", lambda: 2)
    kernel.left = lambda: setattr(driver.active, "get_current_device", lambda: 1)
    _op(kernel, torch.ones(4))  # on device 2, which the op leaves again
    entered = []

    @contextmanager
    def device(index: int) -> Iterator[None]:
        entered.append((index, len(launcher.launches)))
        yield
        entered.append((index, len(launcher.launches)))

    monkeypatch.setattr(torch.cuda, "device", device)
    _op(kernel, torch.ones(4))
    assert entered == [(2, 0), (2, 1)]


@pytest.mark.usefixtures("_driver")
@pytest.mark.parametrize("what", ["launcher", "function", "result"])
def test_an_unknown_triton_is_called_as_everyone_does(what: str) -> None:
    kernel = _Kernel(_OtherLauncher() if what == "launcher" else _Launcher())
    if what == "function":
        kernel.compiled.function = None
    elif what == "result":
        kernel.compiled = None
    for calls in (1, 2, 3):
        _op(kernel, torch.ones(4))
        assert kernel.calls == calls
    assert kernel.launcher.launches == []


@pytest.mark.usefixtures("_driver")
def test_launch_hooks_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton import knobs

    launcher = _Launcher()
    kernel = _Kernel(launcher)
    _op(kernel, torch.ones(4))

    def enter(metadata: Any) -> None:
        raise AssertionError("the launcher calls hooks")

    monkeypatch.setattr(knobs.runtime, "launch_enter_hook", enter)
    x = torch.ones(4)
    _op(kernel, x)
    (launched,) = launcher.launches
    (grid, stream, arguments), hook = launched[6:8]
    assert (grid, stream, hook) == ((2, 3, 1), 7, enter)
    assert arguments[0][0] == x.data_ptr()
