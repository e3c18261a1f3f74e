"""Calls that come again: what one launched on a GPU is kept, and launched again with other addresses.

What an op's Python works out before its launches costs many times what a small kernel does. Most calls differ
from an earlier one in nothing but the addresses of their tensors. So when a call comes again it is recorded
while it runs as the first one did: which memory it made, and which kernels it launched with which arguments.
Later ones make such memory and launch the same kernels with the addresses that are due.

Calls are of one kind if op and options are equal, and shape, strides, dtype, device, 16-byte alignment and
``requires_grad`` of every tensor, and if the same tensors share an address: all that can decide a check, a
grid, a tile or what a kernel is compiled for. What does more than make memory and launch kernels, such as a
copy to other strides, runs every time as it does the first time.

A plan holds no tensor. Any thread can make and use it. Memory comes from torch's allocator on the current
stream, so that replayed calls can be captured in CUDA graphs. Triton's own switches (``triton.knobs``) count
as they are when a call is recorded, but for its launch hooks, which are always called.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmcore import _core

__all__ = [
    "Unplannable",
    "clear",
    "disabled",
    "empty",
    "launched",
    "ones",
    "recording",
    "run",
    "serves",
    "zeros",
]

RECORDED_AT = 2
"""Which call of a kind is recorded: not the first, since most are alone where batches vary in length."""

MAX_PLANS = 1024
"""Kinds of calls remembered; beyond it those go that were not used lately."""

Tensors = Sequence[Tensor | None]
Launch = Callable[[list[int]], None]
Prepare = Callable[[Callable[[Tensor], int], int], Launch]
"""Makes a launch of the slot of each tensor, and of the number of slots."""


class Unplannable(Exception):
    """What was recorded cannot be done again from the call's tensors alone."""


class _Plan:
    """Memory to make and kernels to launch. Addresses go by slots: the call's tensors, results, scratch."""

    __slots__ = ("launches", "makes", "offsets", "order", "scratch", "used")

    def __init__(
        self,
        makes: list[Callable[[], Tensor]],
        scratch: Callable[[], Tensor] | None,
        offsets: list[int],
        launches: list[Launch],
        order: list[int | None],
    ) -> None:
        self.makes = makes
        self.scratch = scratch
        self.offsets = offsets
        self.launches = launches
        self.order = order
        """Which of ``makes`` each result is."""
        self.used = False

    def run(self, pointers: list[int]) -> list[Tensor | None] | None:
        """Results, or None if memory came with an alignment that the kernels were not compiled for."""
        made = [make() for make in self.makes]
        bits = 0
        for t in made:
            pointer = t.data_ptr()
            bits |= pointer
            pointers.append(pointer)
        if self.scratch is not None:
            memory = self.scratch()  # lives until everything is launched
            base = memory.data_ptr()
            bits |= base
            pointers += [base + offset for offset in self.offsets]
        if bits & 15:
            return None
        for launch in self.launches:
            launch(pointers)
        return [None if i is None else made[i] for i in self.order]


class _Made(NamedTuple):
    tensor: Tensor
    make: Callable[..., Tensor]


class _Recording:
    def __init__(self) -> None:
        self.made: list[_Made] = []
        self.launches: list[Prepare] = []


class _Local(threading.local):
    recording: _Recording | None = None


_local = _Local()
_plans: dict[Hashable, _Plan | int | None] = {}
"""Of each kind: its plan, None where there can be none, or how often it came."""

_lock = threading.Lock()
_enabled = True


# ---- what is recorded


def recording() -> bool:
    """Whether a call is being recorded on this thread."""
    return _local.recording is not None


def launched(prepare: Prepare) -> None:
    """Note a launch, by what makes the function that does it again."""
    recorded = _local.recording
    if recorded is not None:
        recorded.launches.append(prepare)


def _make(
    make: Callable[..., Tensor], shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    t = make(shape, dtype=dtype, device=device)
    recorded = _local.recording
    if recorded is not None:
        recorded.made.append(_Made(t, make))
    return t


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory that a launch fills."""
    return _make(torch.empty, shape, dtype, device)


def zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory of zeros."""
    return _make(torch.zeros, shape, dtype, device)


def ones(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory of ones."""
    return _make(torch.ones, shape, dtype, device)


# ---- calls


def serves(tensor: object) -> bool:
    """Whether calls on the tensor's device can be replayed."""
    return _enabled and (getattr(tensor, "is_cuda", False) or _EVERYWHERE) and not _HIP


_EVERYWHERE = False
"""Tests set it, for launches on a driver that does nothing."""

# AMD's kernels are also compiled for tensors below 2 GiB, which the keys do not have.
_HIP = torch.version.hip is not None


def run(options: tuple[Any, ...], tensors: Tensors, make: Callable[[], Tensors]) -> Tensors:
    """Results of ``make()``, whose work is an op's call with these options and tensors.

    ``make`` takes its memory from :func:`empty` and its like, and reads no values of tensors on the host.
    """
    if _local.recording is not None or not _enabled:
        return make()  # part of what is recorded, or not to be
    try:
        described = _core.tensors_key(tuple(tensors)) or _described(tensors)
        pointers = described[1]
        key = options, described[0]
        plan = _plans.get(key, 0)
    except (AttributeError, RuntimeError, TypeError):
        return make()  # no plain tensors, or no valid options; it refuses what it cannot take
    if isinstance(plan, _Plan):
        plan.used = True
        results = plan.run(pointers)
        return make() if results is None else results
    if plan is None:
        return make()
    if plan + 1 < RECORDED_AT:
        _keep(key, plan + 1)
        return make()
    return _record(key, pointers, make)


def _described(tensors: Tensors) -> tuple[Hashable, list[int]]:
    """What ``_core.tensors_key`` gives, where torch does not let the core read tensors."""
    key: list[Hashable] = []
    pointers: list[int] = []
    for t in tensors:
        if t is None:
            key.append(None)
            pointers.append(~len(pointers))  # an address that nothing has
        else:
            pointer = t.data_ptr()
            key += (t.dtype, t.shape, t.stride(), t.get_device(), t.requires_grad, not pointer & 15)
            pointers.append(pointer)
    if len(set(pointers)) != len(pointers):
        key += map(pointers.index, pointers)
    return tuple(key), pointers


def _record(key: Hashable, pointers: list[int], make: Callable[[], Tensors]) -> Tensors:
    recorded = _local.recording = _Recording()
    try:
        results = make()
    finally:
        _local.recording = None
    try:
        plan = _plan(recorded, pointers, results)
    except Unplannable:
        plan = None
    _keep(key, plan)
    return results


def _keep(key: Hashable, plan: _Plan | int | None) -> None:
    with _lock:
        while len(_plans) >= MAX_PLANS:
            oldest = next(iter(_plans))
            old = _plans.pop(oldest)
            if isinstance(old, _Plan) and old.used:  # a second turn
                old.used = False
                _plans[oldest] = old
        _plans[key] = plan


def _plan(recorded: _Recording, pointers: list[int], results: Tensors) -> _Plan:
    if not recorded.launches:
        raise Unplannable  # nothing to do, or done by other means
    slots = {pointer: i for i, pointer in reversed(list(enumerate(pointers))) if pointer > 0}
    made = {m.tensor.data_ptr(): m for m in recorded.made if m.tensor.numel()}
    if any(pointer & 15 for pointer in made):
        raise Unplannable
    makes: list[Callable[[], Tensor]] = []
    order: list[int | None] = []
    of_results = []
    for r in results:
        if r is None:
            order.append(None)
            continue
        m = made.pop(r.data_ptr(), None) if r.numel() else _Made(r, torch.empty)
        if m is None or m.tensor.numel() != r.numel() or m.tensor.dtype != r.dtype:
            raise Unplannable
        order.append(len(makes))
        makes.append(_again(m.make, r))
        of_results.append(r.data_ptr() if r.numel() else 0)
    # Other memory: what has values is made by itself, the rest in one piece.
    for pointer, m in list(made.items()):
        if m.make is not torch.empty:
            makes.append(_again(m.make, m.tensor))
            of_results.append(made.pop(pointer).tensor.data_ptr())
    first = len(pointers)
    slots |= {pointer: first + i for i, pointer in enumerate(of_results) if pointer}
    offsets: list[int] = []
    size = 0
    scratch = None
    for pointer, m in made.items():
        slots[pointer] = first + len(of_results) + len(offsets)
        offsets.append(size)
        size += -(-m.tensor.numel() * m.tensor.element_size() // 256) * 256
        scratch = functools.partial(
            torch.empty_strided, (size,), (1,), dtype=torch.uint8, device=m.tensor.device
        )

    def slot(t: Tensor) -> int:
        found = slots.get(t.data_ptr())
        if found is None:
            raise Unplannable
        return found

    count = first + len(of_results) + len(offsets)
    return _Plan(makes, scratch, offsets, [prepare(slot, count) for prepare in recorded.launches], order)


def _again(make: Callable[..., Tensor], t: Tensor) -> Callable[[], Tensor]:
    """Make memory as ``t`` has."""
    # A third faster than torch.empty, and all results of a call together cost more than its launches.
    memory = functools.partial(
        torch.empty_strided, tuple(t.shape), t.stride(), dtype=t.dtype, device=t.device
    )
    if make is torch.empty:
        return memory
    value = 0 if make is torch.zeros else 1
    return lambda: memory().fill_(value)


# ---- for tests and measurements


def clear() -> None:
    """Forget all plans: after a change of what decides tiles or kernels."""
    with _lock:
        _plans.clear()


@contextmanager
def disabled() -> Iterator[None]:
    """Work out every call anew inside the ``with`` block, in all threads."""
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before
