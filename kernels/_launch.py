"""Launches of Triton kernels: through Triton's own call, or again through what that call compiled.

``kernel[grid](...)`` binds the arguments, looks at each to see what the kernel has to be compiled for, makes
text of that and looks it up. Of a launch whose arguments are known to decide nothing anew only the end of it
is due: the launcher of the compiled kernel, with tuples that hold other addresses.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from triton import knobs  # type: ignore[import-untyped,import-not-found,unused-ignore]
from triton.runtime import driver  # type: ignore[import-untyped,import-not-found,unused-ignore]

from mmcore.backends import replay

__all__ = ["launch"]

_LAUNCHERS = (
    "gridX gridY gridZ stream function args",
    "gridX gridY gridZ stream function"
    " kernel_metadata launch_metadata launch_enter_hook launch_exit_hook args",
)
"""Parameters of the launchers of Triton 3.6 and 3.9; with others every launch is Triton's own call."""


def launch(kernel: Any, grid: tuple[int, ...], warps: int, arguments: dict[str, Any]) -> None:
    """Launch a kernel on the current device and stream, and note it where calls are recorded."""
    # Fused multiply-add is what the tolerances allow for; Triton 3.9 warns where it is not said.
    compiled = kernel[grid](**arguments, num_warps=warps, enable_fp_fusion=True)
    if replay.recording():
        device = driver.active.get_current_device()
        replay.launched(lambda slot, count: _Again(kernel, compiled, device, grid, arguments, slot, count))


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
            names = " ".join(inspect.signature(self.run).parameters)
            values = [_without_empty(arguments[p.name]) for p in kernel.params]
            self.function, self.packed = compiled.function, compiled.packed_metadata
            self.metadata = compiled.launch_metadata
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise replay.Unplannable from error
        if names not in _LAUNCHERS or not isinstance(self.function, int):
            raise replay.Unplannable
        self.device, self.driver, self.knobs = device, driver.active, knobs.runtime
        self.grid = (*grid, 1, 1)[:3]
        # The values of a launch: addresses, then constants, then tuples of those and of tuples before.
        self.constants = [*_constants(values)]
        self.inner: list[Callable[[list[Any]], Any]] = []
        constant = itertools.count(count)
        first = count + len(self.constants)

        def place(value: Any) -> int:
            if isinstance(value, Tensor):
                return slot(value)
            if not _holds_tensor(value):
                return next(constant)
            self.inner.append(_picker([place(v) for v in value]))
            return first + len(self.inner) - 1

        self.top = _picker([place(v) for v in values])

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


def _without_empty(value: Any) -> Any:
    """Tensors without elements, which have no address of their own, as what their address is."""
    if isinstance(value, tuple):
        return tuple(_without_empty(v) for v in value)
    return value.data_ptr() if isinstance(value, Tensor) and not value.numel() else value


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, tuple):
        return any(map(_holds_tensor, value))
    return isinstance(value, Tensor)


def _constants(values: Any) -> Iterator[Any]:
    """Largest parts without tensors, in their order."""
    for v in values:
        if not _holds_tensor(v):
            yield v
        elif isinstance(v, tuple):
            yield from _constants(v)


def _picker(places: list[int]) -> Callable[[list[Any]], Any]:
    if len(places) == 1:  # of which itemgetter makes no tuple
        place = places[0]
        return lambda values: (values[place],)
    return itemgetter(*places)
