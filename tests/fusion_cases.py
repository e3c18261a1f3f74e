"""The one table of cases that every backend of the fusion op is judged by, and their tensors."""

from __future__ import annotations

import functools
import itertools
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from cases import _pairwise
from torch import Tensor

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64

_DTYPES = {  # of the features in turn, the weights, the affine parameters
    "fp32": ((F32,), F32, F32),
    "bf16": ((BF16,), BF16, BF16),
    "fp16": ((F16,), F16, F16),
    "fp64": ((F64,), F64, F64),
    "bf16-fp32": ((BF16,), F32, F32),  # as autocast leaves features beside parameters
    "fp16-bf16": ((F16,), BF16, F32),
    "mixed": ((F32, BF16, F16), F32, BF16),
    "halves": ((BF16, F16), F16, F32),  # promoted to float32
    "fp64-weights": ((F32, BF16), F64, F32),  # computed in float64, rounded to float32
    "fp64-feature": ((F32, F64), F32, F16),
}


class Inputs(NamedTuple):
    """The tensors of one call, and the gradient that comes back."""

    features: list[Tensor]
    weights: Tensor | None
    mask: Tensor | None
    norm_weight: Tensor | None
    norm_bias: Tensor | None
    probe: Tensor | None
    grad: Tensor

    def differentiable(self) -> dict[str, Tensor]:
        """The tensors that can have a gradient, by name."""
        named = {"weights": self.weights, "norm_weight": self.norm_weight, "norm_bias": self.norm_bias}
        named |= {"probe": self.probe, **{f"features[{m}]": x for m, x in enumerate(self.features)}}
        return {name: t for name, t in named.items() if t is not None}

    def map(self, function: Any) -> Inputs:
        """The same call with ``function(tensor)`` of every tensor."""
        changed = {
            n: None if t is None else function(t) for n, t in self._asdict().items() if n != "features"
        }
        return Inputs([function(x) for x in self.features], **changed)


@dataclass(frozen=True)
class FusionCase:
    """One call of the fusion op; the values of its tensors follow from its id."""

    mode: str = "sum"
    count: int = 3  # M
    shape: tuple[int, int] = (2, 3)  # B, T; T = -1: (B, D) features
    depth: int = 19  # D
    weights: str = "M"  # the dimensions of the weights, or "none"
    gates: str = "unit"
    mask: str = "none"
    absent: str = "some"
    junk: str = "nan"  # what lies in missing slots
    norm: str | None = None
    affine: str = "none"
    eps: float = 1e-5
    align: str | None = None
    rate: str = "equal"  # of the modalities' steps to the result's, or their number
    dtypes: str = "fp32"
    content: str = "unit"
    layout: str = "contiguous"
    gate_layout: str = "contiguous"
    grad_layout: str = "contiguous"
    probe: str = "none"
    needs: str = "all"

    @property
    def id(self) -> str:
        """What is not the default."""
        sizes = (*self.shape[: 1 if self.flat else 2], self.depth)
        parts = [self.mode, f"M{self.count}", "x".join(map(str, sizes))]
        for name, value in self.__dict__.items():
            if (
                name not in ("mode", "count", "shape", "depth")
                and value != self.__dataclass_fields__[name].default
            ):
                parts.append(f"{name}_{value}")
        return "-".join(parts)

    @property
    def flat(self) -> bool:
        return self.shape[1] < 0

    @property
    def batch(self) -> int:
        return self.shape[0]

    @property
    def steps(self) -> int:
        """T, steps of the result."""
        return 1 if self.flat else self.shape[1]

    @property
    def alignments(self) -> list[str | None]:
        """Of each modality; None: it has the result's steps."""
        if self.flat or self.align is None:
            return [None] * self.count
        if self.align == "mix":
            return [(None, "nearest", "linear", "mean")[m % 4] for m in range(self.count)]
        return [self.align] * self.count

    @property
    def lengths(self) -> list[int]:
        """T_m of each modality."""
        rates = {
            "equal": lambda m: self.steps,
            "up": lambda m: self.steps * (m + 3) // (2 * m + 7),
            "down": lambda m: (m + 2) * self.steps + m,
            "one": lambda m: 1,
        }
        of = ("down", "up", "one", "down") if self.rate == "mix" else (self.rate,)
        found = []
        for m, kind in enumerate(self.alignments):
            rate = of[m % len(of)]
            steps = int(rate) if rate.isdecimal() else rates[rate](m)
            found.append(self.steps if kind is None else max(1, steps))
        return found

    def kwargs(self) -> dict[str, Any]:
        """Arguments of the op beside its tensors."""
        kinds = self.alignments
        found: dict[str, Any] = {"mode": self.mode, "norm": self.norm, "eps": self.eps}
        if self.align is not None:
            found["align"] = self.align if self.align != "mix" else kinds
        said = self.weights in ("BTM", "BTMD") or self.mask == "BTM" or self.lengths[0] == self.steps
        if not said:
            found["length"] = self.steps
        return found

    def result_dtype(self) -> torch.dtype:
        """Of the fused feature: the widest of the features'."""
        of, found = _DTYPES[self.dtypes][0], _DTYPES[self.dtypes][0][0]
        for m in range(self.count):
            found = torch.promote_types(found, of[m % len(of)])
        return found

    def compute_dtype(self) -> torch.dtype:
        """In which the sums are made."""
        of, gates, _ = _DTYPES[self.dtypes]
        used = {of[m % len(of)] for m in range(self.count)}
        return F64 if F64 in used or (gates == F64 and self.weights != "none") else F32

    def wanted(self) -> set[str]:
        """Names of the tensors that require a gradient."""
        names = {
            "weights",
            "norm_weight",
            "norm_bias",
            "probe",
            *(f"features[{m}]" for m in range(self.count)),
        }
        return {
            "all": names,
            "features": {n for n in names if n.startswith("features")},
            "weights": {"weights"},
            "last": {f"features[{self.count - 1}]", "norm_bias"},
            "affine": {"norm_weight", "norm_bias", "features[0]"},
            "probe": {"probe", "norm_weight", "features[0]"},
        }[self.needs]

    def inputs(self) -> Inputs:
        """The tensors, the same at every call; what the call may not read is NaN."""
        g = torch.Generator().manual_seed(zlib.crc32(self.id.encode()))
        feature_dtypes, gate_dtype, affine_dtype = _DTYPES[self.dtypes]
        b, t, m, d = self.batch, self.steps, self.count, self.depth
        mask = self._mask(g)
        if mask is not None:
            mask = _LAYOUTS[self.gate_layout](mask)
        weights = None if self.weights == "none" else _GATES[self.gates](self._gate_shape(), self.mode, g)
        if weights is not None and mask is not None and not self.gate_layout.startswith("expanded"):
            there = mask if mask.dim() == 2 or weights.dim() > 2 else mask.any(1)
            if weights.dim() == 1:
                there = there.flatten(0, -2).any(0)
            elif weights.dim() > 2 and mask.dim() == 2:
                there = mask[:, None, :].expand(b, t, m)
            there = there[..., None] if weights.dim() == 4 else there
            weights = torch.where(there, weights, _junk(self.junk, weights.shape, gate_dtype))
        features = []
        for i in range(m):
            dtype = feature_dtypes[i % len(feature_dtypes)]
            x = _CONTENT[self.content]((b, self.lengths[i], d), g)
            if not self.layout.startswith("expanded"):
                x = torch.where(_read(self, mask, i)[..., None], x, _junk(self.junk, x.shape, dtype))
            x = x.to(dtype)
            features.append(_LAYOUTS[self.layout](x.squeeze(1) if self.flat else x))
        if weights is not None:
            weights = weights.to(gate_dtype)
            if self.flat and weights.dim() > 2:
                weights = weights.squeeze(1)
            weights = _LAYOUTS[self.gate_layout](weights)
        affine_shape = (d,) if self.affine == "shared" else (m, d)
        scale = torch.randn(affine_shape, generator=g).to(affine_dtype)
        shift = torch.randn(affine_shape, generator=g).to(affine_dtype)
        grad = torch.randn((b, d) if self.flat else (b, t, d), generator=g, dtype=F64).to(self.result_dtype())
        return Inputs(
            features,
            weights,
            mask,
            _LAYOUTS[self.gate_layout](scale) if self.affine in ("weight", "both", "shared") else None,
            _LAYOUTS[self.gate_layout](shift) if self.affine in ("bias", "both", "shared") else None,
            None if self.probe == "none" else torch.zeros(b, m, dtype=F32 if self.probe == "fp32" else F64),
            _LAYOUTS[self.grad_layout](grad),
        )

    def _gate_shape(self) -> tuple[int, ...]:
        sizes = {"B": self.batch, "T": self.steps, "M": self.count, "D": self.depth}
        return tuple(sizes[c] for c in self.weights)

    def _mask(self, g: torch.Generator) -> Tensor | None:
        if self.mask == "none":
            return None
        shape = (self.batch, self.count) if self.mask == "BM" else (self.batch, self.steps, self.count)
        mask = torch.rand(shape, generator=g) < {"some": 0.6, "all": -1.0, "nothing": 2.0}[self.absent]
        if self.absent == "some" and mask.numel():
            rows = mask.view(-1, self.count)
            rows[len(rows) // 2] = False  # all missing
            rows[0, 0] = True
        return mask


@functools.cache
def time_matrix(kind: str | None, steps: int, source: int) -> Tensor:
    """A as a dense (steps, source) matrix, from torch's own functions."""
    if kind is None:
        return torch.eye(steps, dtype=F64)
    if steps == 0 or source == 0:
        return torch.zeros(steps, source, dtype=F64)
    unit = torch.eye(source, dtype=F64)[None]
    if kind == "mean":
        return F.adaptive_avg_pool1d(unit, steps)[0].T
    return F.interpolate(unit, size=steps, mode={"nearest": "nearest-exact", "linear": "linear"}[kind])[0].T


def _read(case: FusionCase, mask: Tensor | None, m: int) -> Tensor:
    """(B, T_m): the steps of modality m that a step of the result looks at."""
    touches = time_matrix(case.alignments[m], case.steps, case.lengths[m]) != 0
    if mask is None:
        return touches.any(0).expand(case.batch, -1)
    there = mask[:, None, m].expand(-1, case.steps) if mask.dim() == 2 else mask[:, :, m]
    return (there[:, :, None] & touches).any(1)


def _junk(kind: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    value = torch.finfo(dtype).max if kind == "finite" else math.nan
    junk = torch.full(shape, value, dtype=F64)
    if kind == "inf":
        junk.fill_(math.inf)
        junk.view(-1)[::2] = -math.inf
    return junk


# Values, in float64; casts come later.


def _unit(shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=g, dtype=F64)


def _large(shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    return torch.where(torch.rand(shape, generator=g) < 0.5, -1e4, 1e4).double()


def _offset(shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    """A spread of 1 about 1e4: mean(x**2) - mean(x)**2 has no correct digit in float32."""
    return 1e4 + torch.randn(shape, generator=g, dtype=F64)


def _small(shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    """Zeros, vectors shorter than eps and about as small as eps, by rows."""
    scale = torch.tensor([0.0, 1e-7, 1e-3, 1e-5, 1.0])[torch.randint(0, 5, shape[:2], generator=g)]
    return torch.randn(shape, generator=g, dtype=F64) * scale[..., None]


_CONTENT = {"unit": _unit, "large": _large, "offset": _offset, "small": _small}


def _unit_gates(shape: tuple[int, ...], mode: str, g: torch.Generator) -> Tensor:
    gates = torch.randn(shape, generator=g, dtype=F64)
    return gates.abs() + 0.1 if mode == "normalized" else 2 * gates


def _large_gates(shape: tuple[int, ...], mode: str, g: torch.Generator) -> Tensor:
    """+-1e4 with ties; from 1e-3 to 1e4 where gates are positive."""
    if mode == "normalized":
        return 10 ** (7 * torch.rand(shape, generator=g, dtype=F64) - 3)
    return _large(shape, g)


def _wide_gates(shape: tuple[int, ...], mode: str, g: torch.Generator) -> Tensor:
    """Logits up to where exp underflows."""
    if mode == "normalized":
        return _unit_gates(shape, mode, g)
    return 110 * (2 * torch.rand(shape, generator=g, dtype=F64) - 1)


_GATES = {"unit": _unit_gates, "large": _large_gates, "wide": _wide_gates}


# The same values, placed otherwise; memory that is not part of the tensor is NaN, or True.


def _outside(shape: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.full(shape, True if like.dtype == torch.bool else math.nan, dtype=like.dtype)


def _sliced(x: Tensor) -> Tensor:
    buffer = _outside(tuple(n + 3 for n in x.shape), x)
    view = buffer[tuple(slice(1, n + 1) for n in x.shape)]
    return view.copy_(x)


def _transposed(x: Tensor) -> Tensor:
    return x.transpose(0, 1).contiguous().transpose(0, 1) if x.dim() > 1 else x


def _channels_first(x: Tensor) -> Tensor:
    return x.mT.contiguous().mT if x.dim() > 1 else x


def _stepped(x: Tensor) -> Tensor:
    view = _outside((*x.shape[:-1], 2 * x.shape[-1]), x)[..., ::2]
    return view.copy_(x)


def _expanded_batch(x: Tensor) -> Tensor:
    return x[:1].expand(x.shape)


def _expanded_steps(x: Tensor) -> Tensor:
    return x[:, :1].expand(x.shape) if x.dim() > 2 else _expanded_batch(x)


def _expanded_all(x: Tensor) -> Tensor:
    return x[(slice(0, 1),) * x.dim()].expand(x.shape)


_LAYOUTS = {
    "contiguous": lambda x: x,
    "sliced": _sliced,
    "transposed": _transposed,
    "channels-first": _channels_first,
    "stepped": _stepped,
    "expanded-batch": _expanded_batch,
    "expanded-steps": _expanded_steps,
    "expanded-all": _expanded_all,
}

_DENSE_LAYOUTS = ("contiguous", "sliced", "transposed", "channels-first", "stepped")

_AXES: dict[str, tuple[Any, ...]] = {
    "mode": ("sum", "softmax", "normalized"),
    "weights": ("M", "BM", "BTM", "BTMD", "none"),
    "mask": ("none", "BM", "BTM"),
    "norm": (None, "layer_norm", "rms_norm", "l2"),
    "affine": ("none", "both", "weight", "bias", "shared"),
    "alignment": (
        (None, "equal"), ("nearest", "up"), ("nearest", "down"), ("nearest", "one"), ("linear", "up"),
        ("linear", "down"), ("linear", "one"), ("mean", "up"), ("mean", "down"), ("mean", "one"),
        ("linear", "equal"), ("mix", "mix"),
    ),
    "dtypes": tuple(_DTYPES),
    "depth": (19, 1, 5, 8, 16, 17, 33, 64, 97),
    "shape": ((2, 3), (1, 1), (3, 8), (2, 13), (3, -1), (0, 3), (2, 0), (0, -1)),
    "count": (3, 1, 2, 4, 5, 13, 16),
    "content": tuple(_CONTENT),
    "gates": tuple(_GATES),
    "layout": tuple(_LAYOUTS),
    "gate_layout": (*_DENSE_LAYOUTS, "expanded-batch", "expanded-steps"),
    "grad_layout": (*_DENSE_LAYOUTS, "expanded-all"),
    "absent": ("some", "some", "all", "nothing"),
    "junk": ("nan", "inf", "finite"),
    "probe": ("none", "fp32", "fp64"),
    "needs": ("all", "all", "features", "weights", "last", "affine", "probe"),
    "eps": (1e-5, 1e-2),
}  # fmt: skip


def _sensible(case: FusionCase) -> FusionCase:
    """Take out of a row what its other values leave without meaning, so that ids say what is tested."""
    changes: dict[str, Any] = {}
    if case.mask == "none":
        changes |= {"absent": "some", "junk": "nan"}
    if case.flat:
        changes |= {"align": None, "rate": "equal"}
        changes["weights"] = {"BTM": "BM"}.get(case.weights, case.weights)
        changes["mask"] = "BM" if case.mask == "BTM" else case.mask
    if case.weights == "none":
        changes["gates"] = "unit"
    if case.norm is None:
        changes["eps"] = 1e-5
    if case.needs == "weights" and case.weights == "none":
        changes["needs"] = "all"
    return replace(case, **changes)


def _pairs() -> Iterator[FusionCase]:
    for row in _pairwise(_AXES):
        align, rate = row.pop("alignment")
        yield _sensible(FusionCase(**row, align=align, rate=rate))


def _products() -> Iterator[FusionCase]:
    """What a kernel is made of, all of it with all of it."""
    dtypes = itertools.cycle(("fp32", "bf16", "fp32", "fp16", "fp64", "bf16-fp32", "mixed"))
    affines = itertools.cycle(("both", "none", "weight", "bias", "shared"))
    for mode, weights, mask, norm in itertools.product(
        *(_AXES[n] for n in ("mode", "weights", "mask", "norm"))
    ):
        yield FusionCase(
            mode, weights=weights, mask=mask, norm=norm, affine=next(affines), dtypes=next(dtypes)
        )
    for mode, (align, rate), norm in itertools.product(_AXES["mode"], _AXES["alignment"][1:], _AXES["norm"]):
        mask = ("none", "BTM", "BM")[len(align) % 3]
        yield FusionCase(
            mode, shape=(2, 5), norm=norm, align=align, rate=rate, mask=mask, dtypes=next(dtypes)
        )


def _sweeps() -> Iterator[FusionCase]:
    """What pairs do not reach: every vector remainder, every number of modalities, real sizes."""
    how: dict[str, Any]
    for d in (*range(1, 10), 15, 16, 17, 31, 32, 33, 63, 64, 65, 97, 127, 129, 255, 257, 768, 1025):
        yield FusionCase("softmax", 2, (1, 3), d, norm="layer_norm", affine="both")
        yield FusionCase("softmax", 2, (1, 3), d, weights="BTMD", dtypes="bf16", mask="BTM")
        yield FusionCase("sum", 3, (2, 2), d, weights="BM", norm="rms_norm", affine="weight", dtypes="fp16")
        yield FusionCase("normalized", 2, (1, 4), d, norm="l2", align="linear", rate="mix", dtypes="mixed")
        yield FusionCase("sum", 2, (1, 2), d, dtypes="fp64", norm="layer_norm", probe="fp64")
    for m in range(1, 17):
        yield FusionCase("sum", m, (2, 2), 33)
        yield FusionCase("softmax", m, (2, 2), 33, weights="BTM", mask="BM", norm="layer_norm", affine="both")
        yield FusionCase("normalized", m, (2, 3), 20, weights="BTMD", mask="BTM", align="mix", rate="mix")
    for steps, source in itertools.product((1, 2, 3, 5, 8), (1, 2, 3, 4, 7, 16)):
        for kind in ("nearest", "linear", "mean"):
            yield FusionCase("sum", 1, (1, steps), 3, align=kind, rate=f"{source}")
    for content, norm, dtypes in itertools.product(
        _CONTENT, _AXES["norm"], ("fp32", "halves", "fp64-weights")
    ):
        how = {"norm": norm, "content": content, "dtypes": dtypes, "affine": "both"}
        yield FusionCase("softmax", 2, (5, 2), 41, mask="BTM", **how)
    # more rows than one thread takes, and rows that do not divide among threads
    yield FusionCase("softmax", 3, (29, 23), 131, weights="BTM", mask="BTM", norm="layer_norm", affine="both")
    yield FusionCase("sum", 3, (61, 29), 64, weights="BM", dtypes="bf16", norm="rms_norm", affine="shared")
    yield FusionCase("normalized", 2, (1031, -1), 96, weights="BTMD", mask="BM", probe="fp32")
    yield FusionCase("softmax", 13, (7, 64), 40, probe="fp32")
    yield FusionCase("sum", 3, (8, 20), 768, weights="BTMD", mask="BTM")
    how = {"norm": "layer_norm", "affine": "both", "grad_layout": "expanded-all"}
    yield FusionCase("sum", 3, (29, 4), 768, dtypes="bf16", **how)
    how = {"mask": "BTM", "align": "mix", "rate": "mix", "norm": "layer_norm", "affine": "both"}
    yield FusionCase("normalized", 4, (7, 37), 129, weights="BTM", **how)
    yield FusionCase("softmax", 2, (3, 67), 257, weights="BTMD", dtypes="bf16", **how)
    # more channels than a block
    for dtypes in ("fp32", "bf16", "fp64"):
        yield FusionCase("softmax", 2, (2, 2), 4097, norm="layer_norm", affine="both", dtypes=dtypes)
        yield FusionCase(
            "sum", 2, (2, 3), 4097, norm="l2", align="linear", rate="down", dtypes=dtypes, mask="BM"
        )
    # long streams, where positions in float32 would be wrong
    for kind in ("nearest", "linear", "mean"):
        how = {"weights": "BTM", "mask": "BTM", "align": kind, "norm": "rms_norm"}
        yield FusionCase("softmax", 2, (1, 2000), 5, rate="up", **how)
        yield FusionCase("softmax", 2, (1, 700), 5, rate="1999", **how)
    yield FusionCase("sum", 2, (3, 160), 24, align="mean", rate="one", norm="layer_norm", affine="both")
    yield FusionCase("normalized", 3, (2, 3), 16, align="linear", rate="500", mask="BM", norm="rms_norm")


_ALL = (*_pairs(), *_products(), *_sweeps())
FUSION_CASES: list[FusionCase] = list({case.id: case for case in _ALL}.values())
