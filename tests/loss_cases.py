"""The one table of cases that every backend of the losses op is judged by, and their tensors."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from cases import _pairwise
from fusion_cases import _LAYOUTS
from torch import Tensor

from mmcore import Task

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
I64, I32, U8, BOOL = torch.int64, torch.int32, torch.uint8, torch.bool

_DTYPES = {  # of the outputs in turn, their targets, classes, class weights, and weights and log_vars
    "fp32": ((F32,), F32, I64, F32, F32),
    "bf16": ((BF16,), BF16, I64, F32, F32),
    "fp16": ((F16,), F16, I32, F16, F32),
    "fp64": ((F64,), F64, I64, F64, F64),
    "bf16-fp32": ((BF16,), F32, I64, F32, F32),  # as autocast leaves outputs beside labels
    "fp32-bf16": ((F32,), BF16, I64, BF16, BF16),
    "fp32-fp64": ((F32,), F64, I64, F64, F64),  # as NumPy makes labels; computed in float32
    "mixed": ((F32, BF16, F16), F32, I32, F32, F16),
    "fp64-one": ((F32, F64), F32, I64, F32, F32),  # all computed in float64, rounded to each output's dtype
    "int64": ((F32,), I64, I64, F32, F32),
    "int32": ((BF16,), I32, I32, F32, F32),
    "uint8": ((F32,), U8, U8, F32, F32),
    "bool": ((F32, F16), BOOL, I64, F32, F32),
}

KINDS: dict[str, dict[str, Any]] = {
    "ce": {},
    "ce-weight": {"weight": True},
    "ce-smooth": {"label_smoothing": 0.1},
    "ce-weight-smooth": {"weight": True, "label_smoothing": 0.3},
    "ce-z": {"z_loss": 1e-2},
    "ce-focal": {"focal_gamma": 2.0},
    "ce-focal-weight": {"focal_gamma": 1.5, "weight": True},
    "ce-focal-root": {"focal_gamma": 0.5, "z_loss": 1e-3},
    "ce-all": {"weight": True, "label_smoothing": 0.2, "z_loss": 1e-3, "ignore_index": 0},
    "ce-soft": {},
    "ce-soft-all": {"weight": True, "label_smoothing": 0.1, "z_loss": 1e-3},
    "bce": {},
    "bce-pos": {"pos_weight": True},
    "bce-pos1": {"pos_weight": True},
    "mse": {},
    "l1": {},
    "smooth_l1": {"beta": 0.5},
    "smooth_l1-0": {"beta": 0.0},
    "huber": {"delta": 1.5},
    "kl": {},
    "kl-t": {"temperature": 3.0},
    "cosine": {},
    "value": {},
}
"""Kinds of heads, and the options of their tasks; True: there is a tensor."""

_CONSTRUCTORS: dict[str, Callable[..., Task]] = {
    "ce": Task.cross_entropy,
    "bce": Task.bce_with_logits,
    "mse": Task.mse,
    "l1": Task.l1,
    "smooth_l1": Task.smooth_l1,
    "huber": Task.huber,
    "kl": Task.kl_distillation,
    "cosine": Task.cosine,
    "value": Task.value,
}


class Inputs(NamedTuple):
    """The tensors of one call, and the gradients that come back."""

    outputs: list[Tensor]
    targets: list[Tensor | None]
    masks: list[Tensor | None] | None
    task_weights: list[Tensor | None]
    weights: Tensor | None
    log_vars: Tensor | None
    grad_total: Tensor | None
    grad_losses: list[Tensor | None]
    """Of each loss as the call returns it."""

    def differentiable(self) -> dict[str, Tensor]:
        """The tensors that can have a gradient, by name."""
        named = {"weights": self.weights, "log_vars": self.log_vars}
        named |= {f"outputs[{i}]": x for i, x in enumerate(self.outputs)}
        return {name: t for name, t in named.items() if t is not None}

    def tensors(self) -> list[Tensor]:
        """All of them."""
        flat: list[Any] = []
        for value in self:
            flat += value if isinstance(value, list) else [value]
        return [t for t in flat if t is not None]

    def map(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        """The same call with ``function(tensor)`` of every tensor."""

        def of(value: Any) -> Any:
            if isinstance(value, list):
                return [of(v) for v in value]
            return None if value is None else function(value)

        return Inputs(*(of(value) for value in self))


@dataclass(frozen=True)
class LossCase:
    """One call of the losses op; the values of its tensors follow from its id."""

    kinds: tuple[str, ...] = ("mse",)
    lead: tuple[int, ...] = (7,)  # the units' dimensions where a unit is a row
    columns: int = (
        5  # of the first head, one more of each after it; 0: heads of elements have the lead's shape
    )
    reduction: str = "mean"  # "mix": mean, sum and none in turn
    dtypes: str = "fp32"
    mask: str = "none"  # "first": of the first dimension; "full": of the losses' shape; "mix"
    absent: str = "some"
    ignored: str = "some"  # rows of ignore_index
    junk: str = "nan"  # what lies where there is no label
    content: str = "unit"
    layout: str = "contiguous"
    target_layout: str = "contiguous"
    class_dim: int = 1
    weights: str = "none"
    log_vars: str = "none"
    upstream: str = "one"
    needs: str = "all"

    @property
    def id(self) -> str:
        """What is not the default."""
        kinds = self.kinds if len(self.kinds) <= 4 else (*self.kinds[:3], f"{len(self.kinds)}_heads")
        parts = ["+".join(kinds), "x".join(map(str, (*self.lead, self.columns)))]
        for name, value in self.__dict__.items():
            if name not in ("kinds", "lead", "columns") and value != self.__dataclass_fields__[name].default:
                parts.append(f"{name}_{value}")
        return "-".join(parts)

    @property
    def count(self) -> int:
        return len(self.kinds)

    def family(self, i: int) -> str:
        """The constructor of head i, in short."""
        return self.kinds[i].split("-")[0]

    def by_row(self, i: int) -> bool:
        """Whether a loss of head i is one of a row."""
        return self.family(i) in ("ce", "kl", "cosine")

    def soft(self, i: int) -> bool:
        return self.kinds[i].startswith("ce-soft")

    def extent(self, i: int) -> int:
        """Columns of head i."""
        return (self.columns or 5) + i % 7

    def rows_shape(self, i: int) -> tuple[int, ...]:
        """Of head i's output with its columns last."""
        if self.family(i) == "value":
            return ()
        if self.by_row(i) or self.columns:
            return (*self.lead, self.extent(i))
        return self.lead

    def first_dim(self, i: int) -> bool:
        """Whether the output of head i has its columns at dimension 1, not last."""
        return self.family(i) == "ce" and self.class_dim == 1 and len(self.lead) > 1

    def unit_shape(self, i: int) -> tuple[int, ...]:
        """Of head i's losses."""
        shape = self.rows_shape(i)
        return shape[:-1] if self.by_row(i) else shape

    def reduction_of(self, i: int) -> str:
        if self.family(i) == "value":
            return "mean"
        return ("mean", "sum", "none")[i % 3] if self.reduction == "mix" else self.reduction

    def output_dtype(self, i: int) -> torch.dtype:
        of = _DTYPES[self.dtypes][0]
        return of[i % len(of)]

    def compute_dtype(self) -> torch.dtype:
        """Of losses and sums."""
        return F64 if F64 in {self.output_dtype(i) for i in range(self.count)} else F32

    def options(self, i: int) -> dict[str, Any]:
        """Of head i's task, without tensors."""
        return {n: v for n, v in KINDS[self.kinds[i]].items() if v is not True}

    def tasks(self, inputs: Inputs) -> list[Task]:
        """The tasks of a call with these tensors."""
        found = []
        for i, weight in enumerate(inputs.task_weights):
            options = self.options(i)
            family = self.family(i)
            if family != "value":
                options["reduction"] = self.reduction_of(i)
            if family == "ce":
                options["class_dim"] = self.class_dim
            if weight is not None:
                options["pos_weight" if family == "bce" else "weight"] = weight
            found.append(_CONSTRUCTORS[family](**options))
        return found

    def wanted(self) -> set[str]:
        """Names of the tensors that require a gradient."""
        outputs = {f"outputs[{i}]" for i in range(self.count)}
        return {
            "all": {"weights", "log_vars", *outputs},
            "outputs": outputs,
            "last": {f"outputs[{self.count - 1}]", "weights"},
            "scalars": {"weights", "log_vars"},
        }[self.needs]

    def inputs(self) -> Inputs:
        """The tensors, the same at every call; what the call may not read is NaN."""
        g = torch.Generator().manual_seed(zlib.crc32(self.id.encode()))
        _, target_dtype, class_dtype, weight_dtype, scalar_dtype = _DTYPES[self.dtypes]
        outputs, targets, masks, task_weights = [], [], [], []
        for i in range(self.count):
            mask = self._mask(i, g)
            shape, dtype = self.rows_shape(i), self.output_dtype(i)
            x = _CONTENT[self.content](shape, g).to(dtype)
            target = self._target(i, x, g)
            there = self.present(i, mask, target)
            by_element = there[..., None].expand(shape) if self.by_row(i) else there
            dense = not self.layout.startswith("expanded")
            if dense:
                x = torch.where(by_element, x, _junk(self.junk, x.shape, dtype).to(dtype))
            if target is not None and (self.family(i) != "ce" or self.soft(i)):
                of = F32 if self.soft(i) and not target_dtype.is_floating_point else target_dtype
                target = target.to(of)
                if of.is_floating_point:
                    target = torch.where(by_element, target, _junk(self.junk, x.shape, of).to(of))
            elif target is not None:
                target = target.to(class_dtype)
                if mask is not None and dense:  # classes that nobody has, where no one may look
                    nobody = 255 if class_dtype == U8 else 10**6
                    target = torch.where(_spread(mask, self.unit_shape(i)), target, nobody).to(class_dtype)
            if self.first_dim(i):
                x = x.movedim(-1, 1).contiguous()
                if self.soft(i) and target is not None:
                    target = target.movedim(-1, 1).contiguous()
            outputs.append(_placed(self.layout, x))
            targets.append(None if target is None else _placed(self.target_layout, target))
            masks.append(None if mask is None else _placed(self.target_layout, mask))
            task_weights.append(self._task_weight(i, g, weight_dtype))
        weights = log_vars = None
        if self.weights != "none":
            weights = torch.rand(self.count, generator=g) + 0.2
            if self.weights == "signs":  # and heads that are switched off
                weights = torch.where(torch.arange(self.count) % 3 == 1, 0.0, weights)
                weights = torch.where(torch.arange(self.count) % 3 == 2, -weights, weights)
            weights = _placed(self.target_layout, weights.to(scalar_dtype))
        if self.log_vars != "none":
            log_vars = torch.randn(self.count, generator=g) * (1 if self.log_vars == "unit" else 6)
            log_vars = _placed(self.target_layout, log_vars.to(scalar_dtype))
        return Inputs(
            outputs,
            targets,
            None if all(m is None for m in masks) else masks,
            task_weights,
            weights,
            log_vars,
            *self._upstream(g),
        )

    def present(self, i: int, mask: Tensor | None, target: Tensor | None) -> Tensor:
        """Of the losses' shape: where head i has a label."""
        shape = self.unit_shape(i)
        there = torch.ones(shape, dtype=BOOL) if mask is None else _spread(mask, shape)
        if self.family(i) == "ce" and not self.soft(i):
            assert target is not None
            there = there & (target != self.options(i).get("ignore_index", -100))
        return there

    def _mask(self, i: int, g: torch.Generator) -> Tensor | None:
        how = ("none", "first", "full")[i % 3] if self.mask == "mix" else self.mask
        if how == "none":
            return None
        shape = self.unit_shape(i)
        mask = torch.rand(shape[:1] if how == "first" else shape, generator=g)
        if self.absent == "one-head":
            return mask < (-1.0 if i == self.count - 1 else 0.6)
        return mask < {"some": 0.6, "none": 2.0, "all": -1.0}[self.absent]

    def _target(self, i: int, x: Tensor, g: torch.Generator) -> Tensor | None:
        """Values in float64 that float32 holds too; classes."""
        family, shape = self.family(i), self.unit_shape(i)
        if family == "value":
            return None
        target_dtype = _DTYPES[self.dtypes][1]
        if family == "ce" and not self.soft(i):
            target = torch.randint(0, self.extent(i), shape, generator=g)
            ignore = self.options(i).get("ignore_index", -100)
            part = {"none": -1.0, "some": 0.2, "all": 2.0}[self.ignored]
            if _DTYPES[self.dtypes][2] == U8 and ignore < 0:
                part = -1.0
            return torch.where(torch.rand(shape, generator=g) < part, ignore, target)
        if family == "ce":
            return torch.rand(x.shape, generator=g).softmax(-1).double()
        if target_dtype in (BOOL, U8) or (family == "bce" and not target_dtype.is_floating_point):
            return torch.randint(0, 2, x.shape, generator=g).double()
        if family == "bce":
            soft = torch.rand(x.shape, generator=g)
            return torch.where(torch.rand(x.shape, generator=g) < 0.5, soft, soft.round()).double()
        target = _CONTENT[self.content](x.shape, g).float().double()
        same = torch.rand(x.shape, generator=g) < 0.2  # where |d| has no slope
        return torch.where(same, x.double(), target).float().double()

    def _task_weight(self, i: int, g: torch.Generator, dtype: torch.dtype) -> Tensor | None:
        if True not in KINDS[self.kinds[i]].values():
            return None
        shape = self.rows_shape(i)
        count = shape[-1] if shape and self.kinds[i] != "bce-pos1" else 1
        return (torch.rand(count, generator=g) * 2 + 0.1).to(dtype)

    def _upstream(self, g: torch.Generator) -> tuple[Tensor | None, list[Tensor | None]]:
        """Gradients of the total and of the losses."""
        compute = self.compute_dtype()
        if self.upstream in ("one", "scaled"):
            total = torch.tensor(1.0 if self.upstream == "one" else -0.37, dtype=compute)
            return total, [None] * self.count
        losses: list[Tensor | None] = []
        for i in range(self.count):
            shape = self.unit_shape(i) if self.reduction_of(i) == "none" else ()
            losses.append(torch.randn(shape, generator=g, dtype=F64).to(compute))
        return (torch.tensor(1.7, dtype=compute) if self.upstream == "all" else None), losses


def _spread(mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Of the losses' shape."""
    return mask.reshape((*mask.shape, *(1,) * (len(shape) - mask.dim()))).expand(shape)


def _junk(kind: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    junk = torch.full(shape, torch.finfo(dtype).max if kind == "finite" else math.nan, dtype=F64)
    if kind == "inf":
        junk.fill_(math.inf)
        if junk.dim():
            junk.view(-1)[::2] = -math.inf
    return junk


def _placed(layout: str, t: Tensor) -> Tensor:
    """The same values otherwise in memory; what lies beside them is as wrong as it can be."""
    if not t.dim():
        return t
    if t.is_floating_point() or t.dtype == BOOL or layout not in ("sliced", "stepped"):
        return _LAYOUTS[layout](t)
    # Of integers, which have no NaN: classes that nobody has.
    return torch.full((*t.shape[:-1], 2 * t.shape[-1]), 99, dtype=t.dtype)[..., ::2].copy_(t)


# Values, in float64; casts come later.


def _unit(shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    return 2 * torch.randn(shape, generator=g, dtype=F64)


def _large(shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    """+-1e4, with ties."""
    return torch.where(torch.rand(shape, generator=g) < 0.5, -1e4, 1e4).double()


def _offset(shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    """A spread of 1 about 1e4: what is not shifted by the largest overflows."""
    return 1e4 + torch.randn(shape, generator=g, dtype=F64)


def _wide(shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    """Up to where exp underflows."""
    return 110 * (2 * torch.rand(shape, generator=g, dtype=F64) - 1)


def _small(shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    """Rows of zeros, shorter than cosine's eps, and short ones."""
    scale = torch.tensor([0.0, 1e-12, 1e-3, 1.0])[torch.randint(0, 4, (*shape[:-1], 1), generator=g)]
    return torch.randn(shape, generator=g, dtype=F64) * (scale if shape else scale[0])


_CONTENT = {"unit": _unit, "large": _large, "offset": _offset, "wide": _wide, "small": _small}

# A head beside others gets other pieces of work, scales and partial sums than one alone.
_COMPANIES: dict[str, Callable[[str], tuple[str, ...]]] = {
    "alone": lambda kind: (kind,),
    "first": lambda kind: (kind, "mse", "ce"),
    "last": lambda kind: ("bce-pos", "value", kind),
    "twice": lambda kind: (kind, kind),
}

_AXES: dict[str, tuple[Any, ...]] = {
    "kind": tuple(KINDS),
    "company": tuple(_COMPANIES),
    "lead": ((7,), (3, 4), (2, 3, 2), (1,), (), (0,), (33,), (3, 0)),
    "columns": (5, 1, 2, 8, 16, 17, 33, 97, 0),
    "reduction": ("mean", "sum", "none", "mix"),
    "dtypes": tuple(_DTYPES),
    "mask": ("none", "first", "full", "mix"),
    "absent": ("some", "some", "none", "all", "one-head"),
    "ignored": ("some", "none", "all"),
    "junk": ("nan", "inf", "finite"),
    "content": tuple(_CONTENT),
    "layout": tuple(_LAYOUTS),
    "target_layout": ("contiguous", "stepped", "transposed", "sliced"),
    "class_dim": (1, -1),
    "weights": ("none", "unit", "signs"),
    "log_vars": ("none", "unit", "wide"),
    "upstream": ("one", "scaled", "all", "losses"),
    "needs": ("all", "all", "outputs", "last", "scalars"),
}


def _sensible(case: LossCase) -> LossCase:
    """Take out of a row what its other values leave without meaning, so that ids say what is tested."""
    changes: dict[str, Any] = {}
    if case.mask == "none":
        changes["absent"] = "some"
    if case.mask == "none" and not any(k.startswith("ce") for k in case.kinds):
        changes["junk"] = "nan"
    if case.layout.startswith("expanded"):  # one number in many places: it cannot be junk in some of them
        changes |= {"mask": "none", "absent": "some", "ignored": "none", "junk": "nan"}
    if case.needs == "scalars" and case.weights == case.log_vars == "none":
        changes["needs"] = "all"
    if case.needs == "scalars" and case.upstream == "losses":  # which do not depend on them
        changes["upstream"] = "all"
    if not any(k.startswith("ce") for k in case.kinds):
        changes |= {"class_dim": 1, "ignored": "some"}
    return replace(case, **changes)


def _pairs() -> Iterator[LossCase]:
    for row in _pairwise(_AXES):
        kinds = _COMPANIES[row.pop("company")](row.pop("kind"))
        yield _sensible(LossCase(kinds, **row))


def _products() -> Iterator[LossCase]:
    """What a kernel is made of, all of it with all of it."""
    dtypes = itertools.cycle(("fp32", "bf16", "fp32", "fp16", "fp64", "bf16-fp32", "fp32-bf16"))
    upstreams = itertools.cycle(("one", "all", "scaled"))
    pairs = [tuple(KINDS)[i : i + 2] for i in range(0, len(KINDS), 2)]
    for kinds, reduction, mask in itertools.product(
        pairs, ("mean", "sum", "none"), ("none", "first", "full")
    ):
        yield _sensible(
            LossCase(
                kinds, (3, 4), 19, reduction, next(dtypes), mask, upstream=next(upstreams),
                log_vars="unit" if mask == "full" else "none", weights="none" if mask == "none" else "unit",
            )
        )  # fmt: skip
    for kinds, content in itertools.product(pairs, _CONTENT):
        yield LossCase(kinds, (9,), 21, dtypes=next(dtypes), content=content, log_vars="unit")


def _sweeps() -> Iterator[LossCase]:
    """What pairs do not reach: every vector remainder, many heads, real sizes."""
    rows = itertools.cycle(("ce", "ce-all", "ce-soft-all", "ce-focal-weight", "kl-t", "cosine"))
    elements = itertools.cycle(("bce-pos", "mse", "smooth_l1", "bce", "huber", "l1"))
    for c in (*range(1, 10), 15, 16, 17, 31, 32, 33, 63, 64, 65, 97, 127, 129, 255, 257, 1025):
        for dtypes in ("fp32", "bf16", "fp16"):
            yield LossCase((next(rows), next(elements)), (3,), c, dtypes=dtypes, mask="mix", weights="unit")
        yield LossCase((next(rows), next(elements)), (3,), c, "sum", "fp64", upstream="all")
        yield LossCase(("mse",), (c,), 0, mask="full")  # (N,)
    for kind in KINDS:  # rows longer than a block of the kernels
        yield LossCase((kind,), (2,), 5003, dtypes="bf16" if len(kind) % 2 else "fp32", upstream="scaled")
    for dtypes in ("fp32", "bf16", "fp64"):
        how: dict[str, Any] = {"dtypes": dtypes, "log_vars": "unit"}
        yield LossCase(("ce-z",), (3,), 100_003, **how)
        yield LossCase(("ce-all", "kl-t"), (2,), 32_768, content="wide", upstream="all", **how)
    # channels first with extra dimensions, as segmentation has them
    for kind, layout in itertools.product(
        ("ce", "ce-all", "ce-soft-all"), ("contiguous", "sliced", "stepped")
    ):
        yield LossCase((kind,), (2, 5, 7), 4, mask="full", layout=layout, target_layout=layout)
        yield LossCase((kind,), (2, 33), 19, "none", layout=layout, upstream="all", dtypes="bf16")
    # many heads: all kinds, then the most that are allowed
    kinds = tuple(KINDS)
    for how in (
        {"reduction": "mean", "weights": "signs", "log_vars": "unit"},
        {"reduction": "mix", "mask": "mix", "dtypes": "mixed", "upstream": "all", "log_vars": "wide"},
        {"reduction": "sum", "mask": "first", "dtypes": "fp64-one", "upstream": "losses"},
    ):
        yield LossCase(kinds, (5,), 9, **how)
        yield LossCase((*kinds, *kinds[:9]), (2, 3), 3, **how)
        yield LossCase(("mse",) * 32, (4,), 6, absent="one-head", **{**how, "mask": "full"})
    # more rows and elements than one thread takes, and some that do not divide among threads
    yield LossCase(("ce-weight",), (1031,), 131, mask="full", weights="unit")
    yield LossCase(("bce-pos", "ce"), (257,), 400, dtypes="bf16", mask="first", log_vars="unit")
    yield LossCase(("mse", "smooth_l1"), (61, 37), 64, mask="full", upstream="all")
    yield LossCase(("l1",), (70_001,), 0, dtypes="fp16")
    yield LossCase(("cosine", "kl"), (521,), 129, "mix", mask="full")
    yield LossCase(("ce-soft",), (600,), 200, dtypes="fp64", mask="first")
    yield LossCase(("ce",), (4099,), 3, "none", upstream="all")


_ALL = (*_pairs(), *_products(), *_sweeps())
LOSS_CASES: list[LossCase] = list({case.id: case for case in _ALL}.values())
