"""The fusion op, forward and backward, beside the reference, eager torch and torch.compile.

One figure is the time of ``out = f(...)`` and ``torch.autograd.grad(out, inputs, G)``, with respect to the
features, the weights and the norm's affine, for a dense G made beforehand. Every competitor is checked
against the float64 reference before it is timed.

Torch comes in the form that one writes first and, as *tuned*, in a faster one where one was found: a plain
weighted sum as stack and einsum; alignment as indexing, not ``interpolate`` and ``adaptive_avg_pool1d``,
which want the channels before the steps.

Memory comes in three regimes, see :mod:`bench.workers`.

Bandwidth: ``least_bytes(case) / time`` as a share of the C library's copy, read plus write, in the same
rounds, on as many threads. Large cases take turns among sets of inputs that together exceed the caches, so
that every step reads from memory what it reads first, as in training, where other layers have run in between;
only what the backward reads again, and the memory of results just freed, may be in cache.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.workers import (
    COMPILED,
    COMPILED_TUNED,
    EAGER,
    OURS,
    REFERENCE,
    TUNED,
    Job,
    Prepared,
    Suite,
    prepare_each,
)
from mmcore.backends.reference.fusion import time_map

__all__ = ["CASES", "SUITE", "FusionCase", "competitors", "least_bytes", "prepare"]

_PEERS = (EAGER, TUNED, COMPILED, COMPILED_TUNED)

# Of each result, in the 2-norm, against float64. Torch's bfloat16 LayerNorm has 5 % in its affine's gradient.
_RELATIVE_ERROR = {"float32": 1e-4, "bfloat16": 0.1}
_INPUT_BYTES = 96 << 20  # of a large case's sets of inputs together: more than the last-level cache
_EPS = 1e-5


@dataclass(frozen=True)
class FusionCase:
    """One row of the suite."""

    name: str
    shape: tuple[int, int, int] = (64, 32, 768)
    """B, T, D."""
    count: int = 3
    weights: str = "M"
    """"M", "BM", "BTM" or "BTMD"."""
    mode: str = "sum"
    masked: bool = False
    norm: str | None = None
    affine: bool = False
    steps: int = 0
    """T_m of the streams that are aligned."""
    align: tuple[str | None, ...] = (None, None, None)
    dtype: str = "float32"
    gradients: bool = True
    goals: tuple[float | None, float | None, float | None] = (None, None, None)
    """At least so many times eager, so many times torch.compile, so much of the copy bandwidth."""

    @property
    def small(self) -> bool:
        """Whether calling costs more than computing, so that bandwidth says nothing."""
        return math.prod(self.shape) < 1 << 16

    @property
    def streams(self) -> bool:
        """Whether memory bounds it."""
        return not self.small

    large = streams

    @property
    def weights_shape(self) -> tuple[int, ...]:
        """Shape of the weights."""
        batch, length, depth = self.shape
        extents = {"B": batch, "T": length, "M": self.count, "D": depth}
        return tuple(extents[letter] for letter in self.weights)


_PLAIN, _LAYER_NORM, _ALIGNED = (5.5, 2.0, 0.85), (8.0, 3.0, 0.65), (6.5, 3.5, 0.60)
_SMALL = (8, 1, 256)


def _one(kind: str) -> tuple[str | None, ...]:
    return (None, kind, None)


CASES = (
    FusionCase("fp32 weights (M)", goals=_PLAIN),
    FusionCase("fp32 softmax (B,T,M)", weights="BTM", mode="softmax", goals=_PLAIN),
    FusionCase("fp32 weights (B,M)", weights="BM", goals=_PLAIN),
    FusionCase("fp32 gates (B,T,M,D)", weights="BTMD", goals=_PLAIN),
    FusionCase("fp32 masked (B,T,M)", weights="BTM", mode="normalized", masked=True, goals=_PLAIN),
    FusionCase(
        "fp32 LayerNorm", weights="BTM", mode="softmax", norm="layer_norm", affine=True, goals=_LAYER_NORM
    ),
    FusionCase(
        "fp32 LayerNorm, no affine", weights="BTM", mode="softmax", norm="layer_norm", goals=_LAYER_NORM
    ),
    FusionCase("bf16 weights (M)", dtype="bfloat16", goals=(5.5, 1.5, 0.80)),
    FusionCase(
        "bf16 LayerNorm",
        weights="BTM",
        mode="softmax",
        norm="layer_norm",
        affine=True,
        dtype="bfloat16",
        goals=(9.0, 3.0, 0.50),
    ),
    FusionCase("align 160 to 32, nearest", steps=160, align=_one("nearest"), goals=_ALIGNED),
    FusionCase("align 160 to 32, linear", steps=160, align=_one("linear"), goals=_ALIGNED),
    FusionCase("align 160 to 32, mean", steps=160, align=_one("mean")),
    FusionCase("align 150 to 32, linear", steps=150, align=_one("linear")),
    FusionCase("align all 160 to 32, nearest", steps=160, align=("nearest",) * 3, goals=_ALIGNED),
    FusionCase("align all 160 to 32, linear", steps=160, align=("linear",) * 3, goals=_ALIGNED),
    FusionCase("align all 160 to 32, mean", steps=160, align=("mean",) * 3),
    FusionCase("small weights (M)", _SMALL, goals=(2.0, 3.0, None)),
    FusionCase(
        "small masked (B,T,M)", _SMALL, weights="BTM", mode="normalized", masked=True, goals=(4.0, 3.0, None)
    ),
    FusionCase("small weights (M), no grad", _SMALL, gradients=False, goals=(3.3, 7.0, None)),
    FusionCase(
        "small masked (B,T,M), no grad",
        _SMALL,
        weights="BTM",
        mode="normalized",
        masked=True,
        gradients=False,
        goals=(3.3, 7.0, None),
    ),
    FusionCase("layers M=13, softmax (M)", (8, 128, 768), count=13, mode="softmax", align=(None,) * 13),
)
"""Large is (B, T, D) = (64, 32, 768), small is (8, 1, 256). "align": one modality (or all) has T_m steps.

At 160 to 32 the centre of each step is one of the source's, and "linear" reads 32 rows; at 150 it blends two.
"""

_QUICK = (
    "fp32 weights (M)",
    "fp32 LayerNorm",
    "bf16 weights (M)",
    "align 160 to 32, linear",
    "small weights (M)",
    "small weights (M), no grad",
)


@dataclass
class _Inputs:
    """Tensors of a case."""

    features: list[Tensor]
    weights: Tensor
    mask: Tensor | None
    scale: Tensor | None
    shift: Tensor | None
    grad: Tensor

    @property
    def arguments(self) -> tuple[list[Tensor], Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """What every competitor is called with."""
        return self.features, self.weights, self.mask, self.scale, self.shift

    @property
    def wanted(self) -> list[Tensor]:
        """What gradients are made for."""
        return [*self.features, self.weights, *(t for t in (self.scale, self.shift) if t is not None)]


def _inputs(case: FusionCase, seed: int) -> _Inputs:
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, case.dtype)
    batch, length, depth = case.shape

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    weights = torch.rand(case.weights_shape, generator=generator) + 0.1  # positive, as "normalized" wants
    mask = None
    if case.masked:
        mask = torch.rand(batch, length, case.count, generator=generator) < 0.7
        mask[0, 0] = False  # all missing
    inputs = _Inputs(
        features=[normal(batch, length if kind is None else case.steps, depth) for kind in case.align],
        weights=weights.to(dtype),
        mask=mask,
        scale=normal(case.count, depth) + 1 if case.affine else None,
        shift=normal(case.count, depth) if case.affine else None,
        grad=normal(*case.shape),
    )
    for tensor in inputs.wanted:
        tensor.requires_grad_(case.gradients)
    return inputs


def least_bytes(case: FusionCase) -> int:
    """Bytes that one step must move at least: each pass reads what it needs once and writes its results once.

    Forward: the features' rows that A uses, weights, mask and affine are read, F is written. Backward: the
    same and G are read, the gradients of all of them are written, in full.
    """
    size = getattr(torch, case.dtype).itemsize
    batch, length, depth = case.shape
    row = batch * depth * size
    read = written = 0
    for kind in case.align:
        steps = length if kind is None else case.steps
        index, tap = time_map(kind or "none", length, steps)
        read += int(index[tap != 0].unique().numel()) * row
        written += steps * row
    parameters = (math.prod(case.weights_shape) + 2 * case.affine * case.count * depth) * size
    read += parameters
    written += parameters
    if case.masked:
        read += batch * length * case.count
    fused = length * row
    return read + fused + (read + fused + written if case.gradients else 0)


def _weights_of(case: FusionCase) -> Callable[[Tensor, Tensor | None], Tensor]:
    """Gates to weights, as torch code has it."""
    axis = case.weights.index("M")
    if case.masked:

        def masked(gates: Tensor, mask: Tensor | None) -> Tensor:
            assert mask is not None
            gates = torch.where(mask, gates, 0.0)
            return gates / gates.sum(axis, keepdim=True).clamp_min(1e-6)

        return masked
    if case.mode == "softmax":
        return lambda gates, mask: gates.softmax(axis)
    return lambda gates, mask: gates


_Fuse = Callable[[Sequence[Tensor], Tensor, "Tensor | None", "Tensor | None", "Tensor | None"], Tensor]
"""Features, gates, mask, scale and shift of the norm."""


def _add_up(case: FusionCase, align: Callable[[Tensor, int], Tensor]) -> _Fuse:
    """Normalise each, align it, add up the products."""
    weights_of, axis, depth = _weights_of(case), case.weights.index("M"), case.shape[2]

    def fuse(
        features: Sequence[Tensor],
        gates: Tensor,
        mask: Tensor | None,
        scale: Tensor | None,
        shift: Tensor | None,
    ) -> Tensor:
        weights = weights_of(gates, mask)
        if case.weights == "BM":
            weights = weights[:, :, None, None]
        elif case.weights == "BTM":
            weights = weights.unsqueeze(-1)
        if case.norm is not None:
            if scale is None or shift is None:
                features = [F.layer_norm(x, (depth,), eps=_EPS) for x in features]
            else:
                features = [
                    F.layer_norm(x, (depth,), g, b, _EPS)
                    for x, g, b in zip(features, scale.unbind(), shift.unbind(), strict=True)
                ]
        if case.steps:
            features = [align(x, m) for m, x in enumerate(features)]
        # One by one where there are many: torch 2.13 compiles the gradient of 13 unbound weights wrongly.
        parts = (
            weights.unbind(axis) if case.count < 8 else [weights.select(axis, m) for m in range(case.count)]
        )
        first, *rest = zip(parts, features, strict=True)
        out = first[0] * first[1]
        for w, x in rest:
            out = out + w * x
        return out

    return fuse


def _eager(case: FusionCase) -> _Fuse:
    """The form that one writes first."""

    def align(x: Tensor, m: int) -> Tensor:
        kind, length = case.align[m], case.shape[1]
        if kind is None:
            return x
        channels_first = x.transpose(1, 2)
        if kind == "mean":
            return F.adaptive_avg_pool1d(channels_first, length).transpose(1, 2)
        mode = "nearest-exact" if kind == "nearest" else "linear"
        return F.interpolate(channels_first, size=length, mode=mode).transpose(1, 2)

    return _add_up(case, align)


def _tuned(case: FusionCase) -> _Fuse:
    """A faster form: alignment by indexing, or a plain weighted sum as a matrix product."""
    if not case.steps:
        weights_of = _weights_of(case)
        equation = f"{case.weights.lower()},mbtd->btd"
        return lambda features, gates, mask, scale, shift: torch.einsum(
            equation, weights_of(gates, mask), torch.stack(list(features))
        )
    length = case.shape[1]
    maps = [time_map(kind or "none", length, case.steps, dtype=torch.float32) for kind in case.align]

    def align(x: Tensor, m: int) -> Tensor:
        kind, (index, tap) = case.align[m], maps[m]
        if kind is None:
            return x
        if kind == "mean":
            return x.unflatten(1, (length, -1)).mean(2)  # the cases' steps are multiples
        rows = x.index_select(1, index[:, 0])
        return (
            rows
            if index.shape[1] == 1
            else torch.lerp(rows, x.index_select(1, index[:, 1]), tap[:, 1].unsqueeze(1))
        )

    return _add_up(case, align)


def _ours(case: FusionCase) -> _Fuse:
    import mmcore

    options: dict[str, Any] = {"mode": case.mode}
    if case.norm is not None:
        options |= {"norm": case.norm, "eps": _EPS}
    if case.steps:
        options |= {"align": case.align, "length": case.shape[1]}
    if case.affine:
        return lambda features, gates, mask, scale, shift: mmcore.weighted_fusion(
            features, gates, norm_weight=scale, norm_bias=shift, **options
        )
    if case.masked:
        return lambda features, gates, mask, scale, shift: mmcore.weighted_fusion(
            features, gates, mask=mask, **options
        )
    return lambda features, gates, mask, scale, shift: mmcore.weighted_fusion(features, gates, **options)


def competitors(case: FusionCase) -> list[str]:
    """Who takes part in a case."""
    if case.steps:
        return [REFERENCE, *_PEERS, OURS]
    plain = case.norm is None and case.weights != "BTMD"
    faster = plain and case.dtype == "float32" and not case.small
    return [REFERENCE, EAGER, *([TUNED] if faster else []), COMPILED, OURS]


def _compiled(fuse: _Fuse) -> _Fuse:
    return torch.compile(fuse, fullgraph=True, dynamic=False)


_Given = tuple[_Inputs, tuple[Any, ...], list[Tensor]]
"""Inputs, their arguments and what is differentiated, both made before the clock starts."""


def prepare(case: FusionCase, names: Sequence[str]) -> Prepared:
    """Make inputs and competitors, and check them; all but eager and mmcore may fail."""
    import mmcore

    torch._dynamo.reset()  # the last case's compiled code, which would count against the limit of variants
    first = _inputs(case, 0)
    size = sum(t.nbytes for t in (*first.wanted, first.grad))
    count = 1 if case.small else -(-_INPUT_BYTES // size)
    sets = itertools.cycle(
        [(i, i.arguments, i.wanted) for i in (first, *(_inputs(case, seed) for seed in range(1, count)))]
    )

    def step(fuse: _Fuse, given: _Given | None = None) -> list[Tensor]:
        inputs, arguments, wanted = given or next(sets)
        out = fuse(*arguments)
        return [out, *torch.autograd.grad(out, wanted, inputs.grad)]

    def forward(fuse: _Fuse, given: _Given | None = None) -> list[Tensor]:
        _, arguments, _ = given or next(sets)
        with torch.no_grad():
            return [fuse(*arguments)]

    one = step if case.gradients else forward

    def reference(fuse: _Fuse, given: _Given | None = None) -> list[Tensor]:
        with mmcore.backend("reference"):
            return one(fuse, given)

    given = (first, first.arguments, first.wanted)

    def job(fuse: _Fuse, run: Callable[..., list[Tensor]] = one) -> Job:
        return Job(functools.partial(run, fuse), verify=functools.partial(run, fuse, given))

    makers: dict[str, Callable[[], Job]] = {
        REFERENCE: lambda: job(_ours(case), reference),
        EAGER: lambda: job(_eager(case)),
        TUNED: lambda: job(_tuned(case)),
        COMPILED: lambda: job(_compiled(_eager(case))),
        COMPILED_TUNED: lambda: job(_compiled(_tuned(case))),
        OURS: lambda: job(_ours(case)),
    }
    return prepare_each(
        {name: makers[name] for name in names},
        _oracle(case, first),
        _RELATIVE_ERROR[case.dtype],
        required=(REFERENCE, EAGER, OURS),
    )


def _oracle(case: FusionCase, inputs: _Inputs) -> list[Tensor]:
    import mmcore

    def double(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.detach().double().requires_grad_(case.gradients)

    features = [x.detach().double().requires_grad_(case.gradients) for x in inputs.features]
    weights, scale, shift = map(double, (inputs.weights, inputs.scale, inputs.shift))
    with mmcore.backend("reference"):
        out = _ours(case)(features, weights, inputs.mask, scale, shift)
    if not case.gradients:
        return [out]
    wanted = [t for t in (*features, weights, scale, shift) if t is not None]
    return [out.detach(), *torch.autograd.grad(out, wanted, inputs.grad.double())]


def _describe(case: FusionCase) -> dict[str, Any]:
    return {"shape": list(case.shape), "modalities": case.count, "dtype": case.dtype}


SUITE = Suite("fusion", CASES, _QUICK, competitors, prepare, least_bytes, _describe)

if __name__ == "__main__":
    SUITE.serve()
