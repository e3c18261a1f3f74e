"""The fusion op, forward and backward, beside the reference, eager torch and torch.compile.

One figure is the time of ``out = f(...)`` and ``torch.autograd.grad(out, inputs, G)``, with respect to the
features, the weights and the norm's affine, for a dense G made beforehand. Every competitor is checked
against the float64 reference before it is timed.

Torch comes in the form that one writes first and, as *tuned*, in a faster one where one was found: a plain
weighted sum as stack and einsum; alignment as indexing, not ``interpolate`` and ``adaptive_avg_pool1d``,
which want the channels before the steps.

Large results are bounded by memory, and what memory costs depends on where it comes from. Three regimes, each
in a process of its own, since the C library's allocator has no way back to its defaults:

- default: everybody as shipped, that is, glibc untouched and mmcore's pool on. glibc keeps freed blocks
  smaller than a threshold, which slides to the largest block freed so far, at most 32 MiB; it is settled
  there first, as in any process that has trained for a while.
- recycled: glibc keeps all freed memory (``mallopt`` M_MMAP_MAX = 0, M_TRIM_THRESHOLD = -1), mmcore's pool
  on.
- fresh: glibc maps every block above 64 KiB anew (M_MMAP_THRESHOLD), mmcore's pool off.

The processes stay alive and take turns on the same cores, one at a time, so that all rounds interleave; the
page faults of every competitor are recorded.

Bandwidth: ``least_bytes(case) / time`` as a share of the C library's copy, read plus write, in the same
rounds, on as many threads. Large cases take turns among sets of inputs that together exceed the caches, so
that every step reads from memory what it reads first, as in training, where other layers have run in between;
only what the backward reads again, and the memory of results just freed, may be in cache.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import itertools
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import timing
from mmcore.backends.reference.fusion import time_map

__all__ = ["CASES", "OURS", "PEERS", "FusionCase", "Prepared", "competitors", "least_bytes", "prepare", "run"]

OURS, EAGER, COMPILED = "mmcore", "eager", "torch.compile"
TUNED, COMPILED_TUNED, REFERENCE = "eager tuned", "compile tuned", "reference"
PEERS = (EAGER, TUNED, COMPILED, COMPILED_TUNED)

REGIMES = ("default", "recycled", "fresh")

_SAMPLE_SECONDS = 0.02  # of calls in one sample, so that neither the timer nor a process switch counts
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
        return [REFERENCE, *PEERS, OURS]
    plain = case.norm is None and case.weights != "BTMD"
    faster = plain and case.dtype == "float32" and not case.small
    return [REFERENCE, EAGER, *([TUNED] if faster else []), COMPILED, OURS]


def _compiled(fuse: _Fuse) -> _Fuse:
    return torch.compile(fuse, fullgraph=True, dynamic=False)


_Given = tuple[_Inputs, tuple[Any, ...], list[Tensor]]
"""Inputs, their arguments and what is differentiated, both made before the clock starts."""


@dataclass
class Prepared:
    """Competitors of a case, ready to run."""

    runs: dict[str, Callable[[], Any]]
    """Each gives the result and the gradients."""
    errors: dict[str, float]
    """Largest relative error of a result."""
    absent: dict[str, str]
    """Peers that do not compile here, or whose results are wrong, and why."""


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

    makers: dict[str, Callable[[], Callable[..., list[Tensor]]]] = {
        REFERENCE: lambda: functools.partial(reference, _ours(case)),
        EAGER: lambda: functools.partial(one, _eager(case)),
        TUNED: lambda: functools.partial(one, _tuned(case)),
        COMPILED: lambda: functools.partial(one, _compiled(_eager(case))),
        COMPILED_TUNED: lambda: functools.partial(one, _compiled(_tuned(case))),
        OURS: lambda: functools.partial(one, _ours(case)),
    }
    expected = _oracle(case, first)
    given = (first, first.arguments, first.wanted)
    prepared = Prepared({}, {}, {})
    for name in names:
        try:
            job = makers[name]()
            prepared.errors[name] = _check(job(given=given), expected, _RELATIVE_ERROR[case.dtype])
        except Exception as e:
            if name not in (TUNED, COMPILED, COMPILED_TUNED):
                raise
            prepared.absent[name] = f"{type(e).__name__}: {e}".partition("\n")[0]
        else:
            prepared.runs[name] = job
    return prepared


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


def _check(got: Sequence[Tensor], expected: Sequence[Tensor], most: float) -> float:
    """Largest relative error; AssertionError where it passes ``most``."""
    worst = 0.0
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        if a.shape != b.shape:
            raise AssertionError(f"result {i} is {tuple(a.shape)}, expected {tuple(b.shape)}")
        error = float((a.detach().double() - b).norm() / b.norm())
        if not error <= most:
            raise AssertionError(f"result {i} is off by {error:.2g} of its norm, {most:.2g} allowed")
        worst = max(worst, error)
    return worst


class _Copy:
    """timing.Copy on several threads at once: the bandwidth that all cores in use have together."""

    def __init__(self, threads: int) -> None:
        self._parts = [timing.Copy(128 // threads) for _ in range(threads)]
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self.num_bytes = sum(part.num_bytes for part in self._parts)

    def __call__(self) -> None:
        if self._pool is None:
            self._parts[0]()
        else:
            list(self._pool.map(lambda part: part(), self._parts))


def _set_regime(regime: str) -> None:
    """Set this process's allocators, for good."""
    import mmcore

    if regime == "default":
        for _ in range(
            4
        ):  # settle glibc's sliding threshold: one block just below its bound, mapped and freed
            torch.empty((32 << 20) - (64 << 10), dtype=torch.uint8)
        return
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4  # malloc.h
    settings = (
        {mmap_max: 0, trim_threshold: -1}
        if regime == "recycled"
        else {mmap_threshold: 64 << 10, trim_threshold: 128 << 10}
    )
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        raise RuntimeError("the C library has no mallopt") from None
    for option, value in settings.items():
        if mallopt(option, value) != 1:
            raise RuntimeError(f"mallopt({option}, {value}) was refused")
    if regime == "fresh":
        mmcore.set_output_pool_limit(0)


def _page_faults() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


class _Worker:
    """A process that measures in one regime, when told to."""

    def __init__(self, regime: str, threads: int) -> None:
        self.regime = regime
        env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
        env["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.bench_fusion", regime, "--threads", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
            cwd=Path(__file__).resolve().parents[1],
        )

    def ask(self, **message: Any) -> dict[str, Any]:
        """Send a request and wait for its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the {self.regime} process ended with exit status {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


class _Server:
    """The worker's side: prepares a case, then times one competitor a request."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.runs: dict[str, Callable[[], Any]] = {}
        self.repeats: dict[str, int] = {}

    def prepare(self, name: str) -> dict[str, Any]:
        """Set a case up, warm it, and find how many calls make a sample."""
        self.runs = {}  # free the last case's tensors first
        gc.unfreeze()
        gc.collect()
        case = next(c for c in CASES if c.name == name)
        prepared = prepare(case, competitors(case))
        self.runs = prepared.runs
        for competitor, job in self.runs.items():
            for _ in range(2):
                job()
            start = time.perf_counter()
            job()
            self.repeats[competitor] = math.ceil(_SAMPLE_SECONDS / (time.perf_counter() - start))
        gc.collect()
        gc.freeze()
        gc.disable()  # a collection inside one competitor's turn would be charged to it
        return {"errors": prepared.errors, "absent": prepared.absent}

    def sample(self, competitor: str) -> dict[str, Any]:
        """Seconds and page faults of one call, from as many as make a sample."""
        job, repeats = self.runs[competitor], range(self.repeats[competitor])
        if self.threads > 1:
            time.sleep(0.005)  # idle OpenMP threads spin for a moment after their last work, on our cores
        faults, wall, cpu = _page_faults(), time.perf_counter(), time.process_time()
        for _ in repeats:
            job()  # the result dies at once, as in a training loop: freeing it is part of the price
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        n = len(repeats)
        return {"wall": wall / n, "cpu": cpu / n, "faults": (_page_faults() - faults) / n}


def _serve() -> None:
    """Worker's loop: one JSON request a line, one answer a line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("regime", choices=REGIMES)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the compiler prints is no answer
    timing.pin(args.threads)
    torch._inductor.config.compile_threads = 1  # no idle helper processes beside the measurement
    server = _Server(args.threads)
    for line in sys.stdin:
        message = json.loads(line)
        try:
            if "case" in message:
                answer = server.prepare(message["case"])
            elif "run" in message:
                answer = server.sample(message["run"])
            else:
                _set_regime(args.regime)
                answer = {}
        except Exception as e:
            answer = {"error": f"{type(e).__name__}: {e}"}
        print(json.dumps(answer), file=answers, flush=True)
    os._exit(0)  # no teardown, in which Triton's bindings list what they leak


def run(
    *,
    quick: bool = False,
    rounds: int | None = None,
    only: str = "",
    threads: int = 1,
    clock: str = "wall",
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Check, then measure, every competitor on every case in every regime.

    Returns
    -------
    dict
        ``rows``: per case the bytes to move, and per regime each competitor's milliseconds and page faults,
        how many times its time ours is, and its share of the copy bandwidth.
    """
    rounds = rounds or (7 if quick else 15)
    cases = [c for c in CASES if only in c.name and (not quick or c.name in _QUICK)]
    if not cases:
        raise ValueError(f"only: no case's name contains {only!r}")
    workers: list[_Worker] = []
    absent: dict[str, str] = {}
    rows = []
    copy = _Copy(threads)
    copy()
    try:
        for regime in REGIMES:
            worker = _Worker(regime, threads)
            workers.append(worker)
            if "error" in (answer := worker.ask(start=True)):
                absent[f"{regime} memory"] = answer["error"]
                workers.pop().close()
        for case in cases:
            row = _row(case, workers, rounds, clock, copy, progress)
            absent |= {f"{name}, {case.name}": reason for name, reason in row["absent"].items()}
            rows.append(row)
    finally:
        for worker in workers:
            worker.close()
    return {
        "suite": "fusion",
        "threads": threads,
        "clock": clock,
        "rounds": rounds,
        "copy_bandwidth": timing.quartiles([r["copy_bandwidth"] for r in rows])[1],
        "transparent_huge_pages": _huge_pages(),
        "regimes": [w.regime for w in workers],
        "absent": absent,
        "rows": rows,
    }


def _huge_pages() -> str:
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="ascii")
    except OSError:
        return "unknown"
    return text.partition("[")[2].partition("]")[0]


def _row(
    case: FusionCase,
    workers: Sequence[_Worker],
    rounds: int,
    clock: str,
    copy: _Copy,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    progress(f"{case.name}: compiling and checking")
    errors: dict[str, float] = {}
    absent: dict[str, str] = {}
    for worker in workers:
        if "error" in (answer := worker.ask(case=case.name)):
            raise RuntimeError(f"{case.name}, {worker.regime} memory: {answer['error']}")
        errors = answer["errors"]
        absent |= answer["absent"]
    names = [name for name in competitors(case) if name not in absent]
    progress(f"{case.name}: {rounds} rounds")
    turns: dict[tuple[str, str], Callable[[], dict[str, Any]]] = {
        (worker.regime, name): functools.partial(worker.ask, run=name) for worker in workers for name in names
    }
    turns["", "copy"] = functools.partial(_timed, copy)
    samples: dict[tuple[str, str], timing.Samples] = {key: timing.Samples() for key in turns}
    faults: dict[tuple[str, str], list[float]] = {key: [] for key in turns}
    order = list(turns)
    for i in range(rounds):
        turn = i % len(order)
        for key in order[turn:] + order[:turn]:
            answer = turns[key]()
            samples[key].wall.append(answer["wall"])
            samples[key].cpu.append(answer["cpu"])
            faults[key].append(answer["faults"])
    num_bytes = least_bytes(case)
    # The copy is timed by the wall in any case: the CPU clock would count its threads one after the other.
    copied = samples.pop(("", "copy")).wall
    regimes = {}
    for worker in workers:
        regime = worker.regime
        ours = samples[regime, OURS]
        others = [name for name in names if name != OURS]
        regimes[regime] = {
            "competitors": {
                name: _summary(samples[regime, name].of(clock), faults[regime, name]) for name in names
            },
            "ours_over": {
                name: _quartiles(timing.ratios(samples[regime, name], ours, clock)) for name in others
            },
            "of_bandwidth": None
            if case.small
            else {
                name: _quartiles(
                    timing.quartiles(
                        [
                            num_bytes / t / (copy.num_bytes / c)
                            for t, c in zip(samples[regime, name].wall, copied, strict=True)
                        ]
                    )
                )
                for name in names
            },
        }
    over_eager, over_compiled, of_bandwidth = case.goals
    return {
        "case": case.name,
        "shape": list(case.shape),
        "modalities": case.count,
        "dtype": case.dtype,
        "bytes": num_bytes,
        "copy_bandwidth": copy.num_bytes / timing.quartiles(copied)[1],
        "goals": {EAGER: over_eager, COMPILED: over_compiled, "of_bandwidth": of_bandwidth},
        "absent": absent,
        "relative_errors": errors,
        "regimes": regimes,
        # 1.0 on a quiet core: how much longer the clock on the wall ran than the processes did
        "wall_over_cpu": sum(sum(s.wall) for s in samples.values())
        / sum(sum(s.cpu) for s in samples.values()),
    }


def _timed(job: Callable[[], Any]) -> dict[str, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    job()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "faults": 0.0}


def _summary(seconds: Sequence[float], faults: Sequence[float]) -> dict[str, float]:
    low, middle, high = timing.quartiles([t * 1e3 for t in seconds])
    return {
        "ms": middle,
        "lower_quartile": low,
        "upper_quartile": high,
        "page_faults": timing.quartiles(faults)[1],
    }


def _quartiles(values: tuple[float, float, float]) -> dict[str, float]:
    low, middle, high = values
    return {"median": middle, "lower_quartile": low, "upper_quartile": high}


if __name__ == "__main__":
    _serve()
