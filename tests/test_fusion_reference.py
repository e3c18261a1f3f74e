"""The oracle itself, against torch's own functions, finite differences and formulas derived by hand."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fusion_cases import FUSION_CASES, FusionCase, time_matrix
from fusion_harness import closed_form, expected, fuse, terms, with_gradients
from torch import Tensor

import mmcore
from mmcore.backends.reference import time_map

BACKENDS = ("reference", "cpu")
KINDS = ("nearest", "linear", "mean")


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def features(count: int = 3, batch: int = 2, steps: int = 4, depth: int = 5) -> list[Tensor]:
    return [randn(batch, steps, depth, seed=m) for m in range(count)]


def resampled(x: Tensor, kind: str, steps: int) -> Tensor:
    """A x of (B, T_m, D) by torch's own functions."""
    if kind == "mean":
        return F.adaptive_avg_pool1d(x.mT, steps).mT
    mode = {"nearest": "nearest-exact", "linear": "linear"}[kind]
    return F.interpolate(x.mT, size=steps, mode=mode).mT


def normed(x: Tensor, norm: str | None, scale: Tensor | None, shift: Tensor | None, eps: float) -> Tensor:
    """norm(x) by torch's own functions."""
    depth = x.shape[-1:]
    if norm == "layer_norm":
        return F.layer_norm(x, depth, scale, shift, eps)
    if norm == "rms_norm":
        x, scale = F.rms_norm(x, depth, scale, eps), None
    elif norm == "l2":
        x = F.normalize(x, dim=-1, eps=eps)
    x = x if scale is None else x * scale
    return x if shift is None else x + shift


def assert_same_function(ours: Any, theirs: Any, tensors: list[Tensor], **tolerance: float) -> None:
    """Compare values, and gradients of a sum with random coefficients."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    results = [function(*leaves) for function in (ours, theirs)]
    torch.testing.assert_close(*results, **tolerance)
    grad = torch.randn(results[0].shape, generator=torch.Generator().manual_seed(9)).to(results[0].dtype)
    a, b = (torch.autograd.grad(r, leaves, grad) for r in results)
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        torch.testing.assert_close(x, y, msg=lambda m, i=i: f"gradient {i}: {m}", **tolerance)


EXACT = {"rtol": 1e-11, "atol": 1e-11}
SINGLE = {"rtol": 2e-5, "atol": 2e-5}  # float32: against torch's own rounding, other sums


# the parts, each against torch's own function


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_is_brought_to_a_length_as_torch_does_it(kind: str) -> None:
    for steps, source in itertools.product(range(1, 31), range(1, 31)):
        index, weight = time_map(kind, steps, source)
        matrix = torch.zeros(steps, source, dtype=torch.float64).scatter_add_(1, index, weight)
        torch.testing.assert_close(matrix, time_matrix(kind, steps, source), rtol=0, atol=1e-12)
        assert (matrix >= 0).all()
        torch.testing.assert_close(matrix.sum(1), torch.ones(steps, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_equal_lengths_change_nothing(kind: str) -> None:
    for steps in (1, 2, 7, 100):
        index, weight = time_map(kind, steps, steps)
        matrix = torch.zeros(steps, steps, dtype=torch.float64).scatter_add_(1, index, weight)
        assert torch.equal(matrix, torch.eye(steps, dtype=torch.float64))


def test_a_map_of_no_steps_is_empty() -> None:
    for kind in KINDS:
        index, weight = time_map(kind, 0, 5)
        assert index.shape[0] == weight.shape[0] == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("norm", [None, "layer_norm", "rms_norm", "l2"])
@pytest.mark.parametrize("align", [None, *KINDS])
def test_one_modality_is_the_plain_op(
    align: str | None, norm: str | None, affine: bool, backend: str
) -> None:
    steps = 3 if align else 7

    def ours(x: Tensor, *parameters: Tensor) -> Tensor:
        given = dict(zip(("norm_weight", "norm_bias"), parameters, strict=False))
        return mmcore.weighted_fusion([x], norm=norm, align=align, length=steps, eps=1e-3, **given)

    def theirs(x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        x = normed(x, norm, scale, shift, 1e-3)
        return resampled(x, align, steps) if align else x

    tensors = [randn(2, 7, 6), randn(6, seed=1), randn(6, seed=2)][: 3 if affine else 1]
    with mmcore.backend(backend):
        assert_same_function(ours, theirs, tensors, **EXACT)
        assert_same_function(ours, theirs, [t.float() for t in tensors], **SINGLE)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weights", ["M", "BM", "BTM", "BTMD"])
@pytest.mark.parametrize("mode", ["sum", "softmax", "normalized"])
def test_modes_are_the_sums_that_they_are_called_after(mode: str, weights: str, backend: str) -> None:
    sizes = {"B": 2, "T": 4, "M": 3, "D": 5}
    gates = randn(*(sizes[c] for c in weights), seed=7)
    gates = gates.abs() + 0.1 if mode == "normalized" else gates
    view = {"M": (1, 1, 3, 1), "BM": (2, 1, 3, 1), "BTM": (2, 4, 3, 1), "BTMD": (2, 4, 3, 5)}[weights]

    def theirs(gates: Tensor, *xs: Tensor) -> Tensor:
        w = gates.reshape(view)
        w = {"sum": w, "softmax": torch.softmax(w, 2), "normalized": F.normalize(w, p=1, dim=2)}[mode]
        return (torch.stack(xs, 2) * w).sum(2)

    def ours(gates: Tensor, *xs: Tensor) -> Tensor:
        return mmcore.weighted_fusion(xs, gates, mode=mode)

    with mmcore.backend(backend):
        assert_same_function(ours, theirs, [gates, *features()], **EXACT)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["sum", "softmax", "normalized"])
def test_a_missing_modality_is_one_that_was_never_given(mode: str, backend: str) -> None:
    xs, gates = features(4), randn(4, seed=5).abs() + 0.1
    scale, shift = randn(4, 5, seed=6), randn(4, 5, seed=7)
    for here in itertools.product((True, False), repeat=4):
        kept = [m for m in range(4) if here[m]]
        mask = torch.tensor([here] * 2)

        def masked(*tensors: Tensor, mask: Tensor = mask) -> Tensor:
            g, s, b, *xs = tensors
            return mmcore.weighted_fusion(
                xs, g, mode=mode, mask=mask, norm="rms_norm", norm_weight=s, norm_bias=b
            )

        def dropped(*tensors: Tensor, kept: list[int] = kept) -> Tensor:
            g, s, b, *xs = tensors
            if not kept:
                return sum(t.sum() for t in tensors) * torch.zeros(2, 4, 5, dtype=torch.float64)
            affine = {"norm_weight": s[kept], "norm_bias": b[kept]}
            rest = mmcore.weighted_fusion(
                [xs[m] for m in kept], g[kept], mode=mode, norm="rms_norm", **affine
            )
            return rest + 0.0 * sum(xs[m].sum() for m in range(4))

        with mmcore.backend(backend):
            assert_same_function(masked, dropped, [gates, scale, shift, *xs], **EXACT)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mask_over_steps_is_a_mask_for_each_step(backend: str) -> None:
    xs, gates = features(), randn(2, 4, 3, seed=5)
    mask = torch.rand(2, 4, 3, generator=torch.Generator().manual_seed(1)) < 0.5
    with mmcore.backend(backend):
        whole = mmcore.weighted_fusion(xs, gates, mode="softmax", mask=mask, norm="layer_norm")
        for t in range(4):
            step = [x[:, t] for x in xs]
            one = mmcore.weighted_fusion(
                step, gates[:, t], mode="softmax", mask=mask[:, t], norm="layer_norm"
            )
            torch.testing.assert_close(whole[:, t], one, **EXACT)


# gradients


def test_the_closed_forms_hold_over_the_whole_table() -> None:
    """The oracle's values and gradients, which are autograd's, against the formulas derived by hand."""
    for case in FUSION_CASES:
        oracle, _, magnitude = expected(case)
        derived = closed_form(case, case.inputs())
        assert oracle.keys() == derived.keys() == magnitude.keys(), case.id
        long = (
            max(case.lengths, default=1) >= 500
        )  # torch's positions of "linear" are good to 1e-12 times that
        limit = 1e-9 if long else 1e-14 * terms(case, "result") ** 0.5
        for name, value in oracle.items():
            off = (value - derived[name]).abs() > limit * magnitude[name]
            assert not off.any(), f"{case.id}: {name}"


GRADCHECKED = [
    FusionCase(mode, 2, (2, 2), 3, weights=weights, norm=norm, affine=affine, mask=mask, align=align,
               rate=rate, dtypes="fp64", eps=1e-2)
    for mode, weights, norm, affine, mask, (align, rate) in [
        ("sum", "M", None, "none", "none", (None, "equal")),
        ("sum", "BTMD", "layer_norm", "both", "none", ("linear", "3")),
        ("sum", "BM", "l2", "bias", "BTM", ("mean", "5")),
        ("softmax", "M", "rms_norm", "weight", "BM", (None, "equal")),
        ("softmax", "BTM", "layer_norm", "shared", "BTM", ("nearest", "3")),
        ("softmax", "BTMD", "l2", "both", "BM", ("linear", "1")),
        ("normalized", "M", "layer_norm", "both", "BM", ("mean", "3")),
        ("normalized", "BTM", "rms_norm", "none", "BTM", ("linear", "5")),
        ("normalized", "BTMD", None, "both", "none", ("nearest", "1")),
    ]
]  # fmt: skip


def gradcheck(case: FusionCase, check: Any, **options: Any) -> None:
    inputs = with_gradients(case.inputs(), case.wanted())
    names = list(inputs.differentiable())

    def call(*tensors: Tensor) -> Tensor:
        of = dict(zip(names, tensors, strict=True))
        xs = [of[f"features[{m}]"] for m in range(case.count)]
        others = {n: of.get(n) for n in ("weights", "norm_weight", "norm_bias")}
        return fuse(case, inputs._replace(features=xs, **others))

    assert check(call, tuple(inputs.differentiable().values()), **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", GRADCHECKED, ids=lambda case: case.id)
def test_gradients_are_those_of_finite_differences(case: FusionCase, backend: str) -> None:
    with mmcore.backend(backend):
        gradcheck(case, torch.autograd.gradcheck)


def test_second_gradients_are_those_of_finite_differences() -> None:
    case = FusionCase("softmax", 2, (1, 2), 3, weights="BTM", norm="layer_norm", affine="both", mask="BTM",
                      align="linear", rate="3", dtypes="fp64", eps=1e-2)  # fmt: skip
    with mmcore.backend("reference"):
        gradcheck(case, torch.autograd.gradgradcheck)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_gradients_must_add_up_to(backend: str) -> None:
    """Shifts of all logits, scales of all gates, shifts and scales of what is normalised change nothing."""
    xs, grad = features(3, 2, 4, 6), randn(2, 4, 6, seed=8)

    def grads(gates: Tensor, **options: Any) -> tuple[Tensor, ...]:
        leaves = [t.detach().requires_grad_() for t in (gates, *xs)]
        out = mmcore.weighted_fusion(leaves[1:], leaves[0], **options)
        return torch.autograd.grad(out, leaves, grad)

    zero: dict[str, Any] = {"rtol": 0, "atol": 1e-12}
    with mmcore.backend(backend):
        d_logits, *_ = grads(randn(2, 4, 3, seed=5), mode="softmax")
        torch.testing.assert_close(d_logits.sum(-1), torch.zeros(2, 4, dtype=torch.float64), **zero)
        gates = randn(2, 3, seed=5).abs() + 0.1
        d_gates, *_ = grads(gates, mode="normalized")
        torch.testing.assert_close((d_gates * gates).sum(-1), torch.zeros(2, dtype=torch.float64), **zero)
        none = torch.zeros(2, 4, dtype=torch.float64)
        _, *d_features = grads(gates, norm="layer_norm", eps=0.0)
        for x, dx in zip(xs, d_features, strict=True):
            torch.testing.assert_close(dx.sum(-1), none, **zero)
            torch.testing.assert_close((dx * x).sum(-1), none, **zero)
        for norm in ("rms_norm", "l2"):
            _, *d_features = grads(gates, norm=norm, eps=0.0)
            for x, dx in zip(xs, d_features, strict=True):
                torch.testing.assert_close((dx * x).sum(-1), none, **zero)


# contributions


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["sum", "softmax", "normalized"])
def test_the_probe_gives_each_modality_its_part_of_the_loss(mode: str, backend: str) -> None:
    """<w_m a_m, G>, which together are <F, G>; and the value does not count."""
    xs, grad = features(3, 2, 4, 6), randn(2, 4, 6, seed=8)
    gates, mask = randn(2, 4, 3, seed=5).abs() + 0.1, torch.tensor([[True, True, False], [True, False, True]])
    with mmcore.backend(backend):
        call: dict[str, Any] = {"mode": mode, "mask": mask, "norm": "l2"}
        plain = mmcore.weighted_fusion(xs, gates, **call)
        probe = randn(2, 3, seed=4).requires_grad_()
        out = mmcore.weighted_fusion(xs, gates, probe=probe, **call)
        assert torch.equal(out, plain)
        (parts,) = torch.autograd.grad(out, probe, grad)
    torch.testing.assert_close(parts.sum(1), (plain * grad).sum((1, 2)), **EXACT)
    for m in range(3):  # what modality m adds: the same weights, the other features 0
        alone = [x if j == m else torch.zeros_like(x) for j, x in enumerate(xs)]
        with mmcore.backend("reference"):
            added = mmcore.weighted_fusion(alone, gates, **call)
        torch.testing.assert_close(parts[:, m], (added * grad).sum((1, 2)), **EXACT)
    assert (parts[~mask] == 0).all()


# dtypes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_formats_are_float32_until_the_end(backend: str, dtype: torch.dtype) -> None:
    xs = [x.to(dtype) for x in features(16, 2, 3, 40)]
    gates = randn(16, seed=5).to(dtype)
    options: dict[str, Any] = {"mode": "softmax", "norm": "layer_norm"}
    with mmcore.backend(backend):
        half = mmcore.weighted_fusion(xs, gates, **options)
        single = mmcore.weighted_fusion([x.float() for x in xs], gates.float(), **options)
    assert half.dtype == dtype
    assert torch.equal(half, single.to(dtype))
