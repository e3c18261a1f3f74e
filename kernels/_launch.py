"""Launches of Triton kernels: through Triton's own call, or again through what that call compiled.

``kernel[grid](...)`` binds the arguments, looks at each to see what the kernel has to be compiled for, makes
text of that and looks it up. Of a launch whose arguments are known to decide nothing anew only the end of it
is due: the launcher of the compiled kernel, with tuples that hold other addresses.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from triton import knobs  # type: ignore[import-untyped,import-not-found,unused-ignore]
from triton.runtime import JITFunction, driver  # type: ignore[import-untyped,import-not-found,unused-ignore]

from mmcore.backends import replay

__all__ = ["launch"]

_LAUNCHERS = (
    "self gridX gridY gridZ stream function args",
    "self gridX gridY gridZ stream function"
    " kernel_metadata launch_metadata launch_enter_hook launch_exit_hook args",
)
"""Parameters of the launchers of Triton 3.6 and 3.9; with others every launch is Triton's own call."""


def launch(
    kernel: Any, grid: tuple[int, ...], warps: int, arguments: dict[str, Any], registers: int = 0
) -> None:
    """Launch a kernel on the current device and stream, and note it where calls are recorded.

    ``registers``: at most so many a thread on NVIDIA's GPUs; 0: as the compiler likes.
    """
    # Fused multiply-add is what the tolerances allow for; Triton 3.9 warns where it is not said.
    options = {"num_warps": warps, "enable_fp_fusion": True}
    if registers and isinstance(kernel, JITFunction) and driver.active.get_current_target().backend == "cuda":
        options["maxnreg"] = registers
    compiled = kernel[grid](**arguments, **options)
    if replay.recording():
        device = driver.active.get_current_device()
        replay.launched(lambda slot, count: _Again(kernel, compiled, device, grid, arguments, slot, count))


_ADDRESS, _CONSTANT, _TUPLE = range(3)


class _Again:
    """A launch with the addresses of other tensors."""

    __slots__ = (
        "constants",
        "device",
        "driver",
        "function",
        "grid",
        "inner",
        "knobs",
        "metadata",
        "packed",
        "run",
        "top",
    )

    def __init__(
        self,
        kernel: Any,
        compiled: Any,
        device: int,
        grid: tuple[int, ...],
        arguments: dict[str, Any],
        slot: Callable[[Tensor], int],
        count: int,
    ) -> None:
        try:
            self.run = compiled.run
            values = [(p.is_constexpr, arguments[p.name]) for p in kernel.params]
            self.function, self.packed = compiled.function, compiled.packed_metadata
            self.metadata = compiled.launch_metadata
        except (AttributeError, KeyError) as error:
            raise replay.Unplannable from error
        if not _is_known(self.run.__class__) or not isinstance(self.function, int):
            raise replay.Unplannable
        self.device, self.driver, self.knobs = device, driver.active, knobs.runtime
        self.grid = (*grid, 1, 1)[:3]
        # The values of a launch: addresses, then constants, then tuples of those and of tuples before. While
        # it is not known how many there are, a place is one of three kinds, and which one of its kind.
        self.constants: list[Any] = []
        inner: list[list[tuple[int, int]]] = []

        def constant(value: Any) -> tuple[int, int]:
            self.constants.append(value)
            return _CONSTANT, len(self.constants) - 1

        def place(value: Any) -> tuple[int, int]:
            if isinstance(value, Tensor):
                # Tensors without elements have no address of their own.
                return (_ADDRESS, slot(value)) if value.numel() else constant(value.data_ptr())
            if not isinstance(value, tuple):
                return constant(value)
            before = len(self.constants)
            places = [place(v) for v in value]
            if all(kind == _CONSTANT for kind, _ in places):
                whole = tuple(self.constants[before:])
                del self.constants[before:]
                return constant(whole)
            inner.append(places)
            return _TUPLE, len(inner) - 1

        # What kernels are compiled for, their launchers skip.
        top = [constant(v) if is_constexpr else place(v) for is_constexpr, v in values]
        starts = 0, count, count + len(self.constants)
        *self.inner, self.top = (
            _picker([starts[kind] + i for kind, i in places]) for places in (*inner, top)
        )

    def __call__(self, pointers: list[int]) -> None:
        values = pointers + self.constants
        for pick in self.inner:
            values.append(pick(values))
        arguments = self.top(values)
        device, driver = self.device, self.driver
        if driver.get_current_device() != device:
            with torch.cuda.device(device):
                return self._launch(arguments, driver.get_current_stream(device))
        return self._launch(arguments, driver.get_current_stream(device))

    def _launch(self, arguments: tuple[Any, ...], stream: int) -> None:
        metadata = None
        enter, leave = self.knobs.launch_enter_hook, self.knobs.launch_exit_hook
        if _is_set(enter) or _is_set(leave):  # of profilers
            metadata = self.metadata(self.grid, stream, *arguments)
        else:
            enter = leave = None  # a chain of none costs two calls
        self.run(*self.grid, stream, self.function, self.packed, metadata, enter, leave, *arguments)


def _is_set(hook: Any) -> bool:
    """Chains of hooks came with Triton 3.5; before there was one, or None."""
    return hook is not None and bool(getattr(hook, "calls", True))


@functools.lru_cache(maxsize=64)
def _is_known(launcher: type) -> bool:
    """Whether the launchers of this Triton take what ``_Again`` gives them."""
    try:
        return " ".join(inspect.signature(launcher.__call__).parameters) in _LAUNCHERS
    except (AttributeError, TypeError, ValueError):
        return False


def _picker(places: list[int]) -> Callable[[list[Any]], Any]:
    if len(places) == 1:  # of which itemgetter makes no tuple
        place = places[0]
        return lambda values: (values[place],)
    return itemgetter(*places)
