"""WeightedFusion against plain torch: formula, missing features, dropout, contributions, state, refusals."""

from __future__ import annotations

import copy
import doctest
import io
import pickle
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mmcore
import mmcore.nn.weighted_fusion as implementation
from mmcore.backends.reference import time_map
from mmcore.nn import WeightedFusion

WEIGHTINGS = ("uniform", "scalar", "gate", "step_gate", "channel_gate")
MODES = ("softmax", "normalized", "sum")
B, T, D = 3, 5, 6
WIDTHS = (D, 4, 3)
ALIGN = (None, "linear", "mean")
STEPS = {False: (T, T, T), True: (T, 12, 3)}  # aligned: up and down


@pytest.fixture(params=["reference", "cpu"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with mmcore.backend(request.param):
        yield request.param


def learned(module: WeightedFusion) -> WeightedFusion:
    """The module in float64 with parameters that are all different, as after training."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape) * 0.7)
    return module.double()


def make_features(
    aligned: bool = False, flat: bool = False, widths: tuple[int, ...] = WIDTHS
) -> list[Tensor]:
    torch.manual_seed(2)
    steps = STEPS[aligned]
    shapes = [(B, w) if flat else (B, s, w) for s, w in zip(steps, widths, strict=True)]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def make_mask(kind: str | None) -> Tensor | None:
    """Sample 1 lacks modality 2, sample 2 lacks all; with steps, step 3 of sample 0 lacks all and more."""
    if kind is None:
        return None
    mask = torch.ones(B, 3, dtype=torch.bool)
    mask[1, 2] = False
    mask[2] = False
    if kind == "samples":
        return mask
    mask = mask[:, None].repeat(1, T, 1)
    mask[0, 3] = False
    mask[0, 1, 0] = mask[1, 1:, 1] = False
    return mask


def matrix(align: str | None, length: int, source: int) -> Tensor:
    """A, (length, source), by torch's own resampling of the unit vectors."""
    unit = torch.eye(source, dtype=torch.float64)[None]
    if align is None:
        return unit[0]
    if align == "mean":
        return F.adaptive_avg_pool1d(unit, length)[0].T
    mode = {"nearest": "nearest-exact", "linear": "linear"}[align]
    corners = {"align_corners": False} if mode == "linear" else {}
    return F.interpolate(unit, length, mode=mode, **corners)[0].T


def plain(f: WeightedFusion, xs: list[Tensor], mask: Tensor | None = None) -> Tensor:
    """The module's formula as one would write it in torch, without care for memory or NaN."""
    flat = xs[0].dim() == 2
    if flat:
        xs = [x[:, None] for x in xs]
    count, length = len(xs), xs[0].shape[1]
    k = torch.ones(B, length, count) if mask is None else mask if mask.dim() == 3 else mask[:, None]
    k = k.expand(B, length, count).double()
    maps = [matrix(a, length, x.shape[1]) for a, x in zip(f.align, xs, strict=True)]

    state = dict(f.named_parameters())
    if f.weighting == "uniform":
        logits = torch.zeros(1, 1, count, 1)
    elif f.weighting == "scalar":
        logits = state["weight"].reshape(1, 1, count, 1)
    else:
        read = [(a @ x) * k[:, :, m, None] for m, (a, x) in enumerate(zip(maps, xs, strict=True))]
        if f.weighting == "gate":
            steps = [k[:, :, m, None].sum(1, keepdim=True).clamp(min=1) for m in range(count)]
            read = [x.sum(1, keepdim=True) / n for x, n in zip(read, steps, strict=True)]
        hidden = torch.cat(read, -1)
        if "gate.2.weight" in state:
            hidden = torch.relu(hidden @ state["gate.0.weight"].T + state["gate.0.bias"])
        last = "gate.2" if "gate.2.weight" in state else "gate.0"
        logits = hidden @ state[f"{last}.weight"].T + state[f"{last}.bias"]
        logits = logits.reshape(*logits.shape[:2], count, -1)

    there = k[..., None]
    if f.mode == "sum":
        w = torch.sigmoid(logits) if f.gate is not None else torch.ones(()) if f.weight is None else logits
        w = w * there
    else:
        g = torch.sigmoid(logits) if f.mode == "normalized" else torch.exp(logits)
        w = g * there / (g * there).sum(2, keepdim=True).clamp(min=1e-300)

    total = torch.zeros(())
    for m, x in enumerate(xs):
        if f"projections.{m}.weight" in state:
            x = F.linear(x, state[f"projections.{m}.weight"], state[f"projections.{m}.bias"])
        if f.activation is not None:
            x = f.activation(x)
        width = (x.shape[-1],)
        if f.norm == "layer_norm":
            x = F.layer_norm(x, width, eps=f.eps)
        elif f.norm == "rms_norm":
            x = F.rms_norm(x, width, eps=f.eps)
        elif f.norm == "l2":
            x = F.normalize(x, dim=-1, eps=f.eps)
        if "norm_weight" in state:
            x = x * state["norm_weight"][m]
        if "norm_bias" in state:
            x = x + state["norm_bias"][m]
        total = total + w[:, :, m] * (maps[m] @ x)
    if "scale" in state:
        total = total * state["scale"]
    return total[:, 0] if flat else total


def gradients(out: Tensor, f: WeightedFusion, xs: list[Tensor]) -> dict[str, Tensor | None]:
    named = {**dict(f.named_parameters()), **{f"features[{m}]": x for m, x in enumerate(xs)}}
    torch.manual_seed(3)
    found = torch.autograd.grad(out, list(named.values()), torch.randn_like(out), allow_unused=True)
    return dict(zip(named, found, strict=True))


def assert_same(f: WeightedFusion, xs: list[Tensor], mask: Tensor | None) -> None:
    out, expected = f(xs, mask), plain(f, xs, mask)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-11)
    theirs = gradients(expected, f, xs)
    for name, grad in gradients(out, f, xs).items():
        torch.testing.assert_close(
            grad, theirs[name], rtol=1e-8, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
        )


# The formula


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("aligned", [False, True], ids=["same rate", "aligned"])
@pytest.mark.parametrize("mask", [None, "samples", "steps"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_every_weighting_equals_plain_torch(
    weighting: str, mode: str, mask: str | None, aligned: bool
) -> None:
    f = WeightedFusion(WIDTHS, D, weighting=weighting, mode=mode, align=ALIGN if aligned else None)
    assert_same(learned(f), make_features(aligned), make_mask(mask))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("mask", [None, "samples"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_one_vector_per_modality(weighting: str, mask: str | None) -> None:
    f = WeightedFusion(WIDTHS, D, weighting=weighting, norm="rms_norm", scale=True)
    assert_same(learned(f), make_features(flat=True), make_mask(mask))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    "options",
    [
        {"norm": "layer_norm"},
        {"norm": "layer_norm", "affine": False, "eps": 0.1},
        {"norm": "rms_norm"},
        {"norm": "rms_norm", "affine": False},
        {"norm": "l2", "scale": True},
        {"project": True, "activation": torch.tanh},
        {"activation": nn.SiLU()},
        {"weighting": "gate", "gate_hidden": 7},
        {"weighting": "step_gate", "gate_hidden": 7},
        {"weighting": "channel_gate", "gate_hidden": 7, "project": True, "norm": "layer_norm", "scale": True},
    ],
    ids=str,
)
def test_options_equal_plain_torch(options: dict[str, Any]) -> None:
    f = WeightedFusion(WIDTHS, D, align=["nearest", "linear", "mean"], **options)
    assert_same(learned(f), make_features(aligned=True), make_mask("steps"))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("mode", ["softmax", "normalized"])
def test_every_weighting_starts_as_the_mean_of_what_is_there(weighting: str, mode: str) -> None:
    f = WeightedFusion(3, D, weighting=weighting, mode=mode)
    xs = [torch.randn(B, T, D) for _ in range(3)]
    mask = torch.ones(B, 3, dtype=torch.bool)
    mask[1, 2] = False
    out = f(xs, mask)
    torch.testing.assert_close(out[0], (xs[0] + xs[1] + xs[2])[0] / 3)
    torch.testing.assert_close(out[1], (xs[0] + xs[1])[1] / 2)


def test_saturated_gates_stay_finite() -> None:
    f = WeightedFusion(2, 1, weighting="gate", mode="normalized")
    with torch.no_grad():
        f.gate[0].bias.fill_(-200.0)  # sigmoid is 0 in float32
    out = f([torch.ones(1, 1), 3 * torch.ones(1, 1)])
    out.sum().backward()
    assert out.item() == 2.0
    assert all(p.grad.isfinite().all() for p in f.parameters())


def test_names_give_the_order() -> None:
    f = learned(
        WeightedFusion({"image": D, "audio": 4, "text": 3}, D, align={"audio": "linear", "text": "mean"})
    )
    assert f.align == ALIGN
    xs = make_features(aligned=True)
    named = {"text": xs[2], "audio": xs[1], "image": xs[0]}
    assert torch.equal(f(named), f(xs))


def test_length_of_the_result() -> None:
    f = WeightedFusion(2, D, align="nearest", weighting="step_gate")
    xs = [torch.randn(B, 4, D), torch.randn(B, 9, D)]
    assert f(xs).shape == (B, 4, D)
    assert f(xs, length=7).shape == (B, 7, D)
    assert f(xs, torch.ones(B, 6, 2, dtype=torch.bool)).shape == (B, 6, D)


def test_any_width_while_nothing_depends_on_it() -> None:
    f = WeightedFusion(2, norm="l2", mode="sum")
    for width in (1, 9):
        assert f([torch.ones(B, width)] * 2).shape == (B, width)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_empty_batches_and_streams(weighting: str) -> None:
    f = WeightedFusion(2, D, weighting=weighting, norm="layer_norm", modality_dropout=0.5)
    for shape in ((0, T, D), (B, 0, D), (0, D)):
        xs = [torch.ones(shape, requires_grad=True) for _ in range(2)]
        for mask in (None, torch.ones(shape[0], 2, dtype=torch.bool)):
            out = f(xs, mask)
            assert out.shape == shape
            assert all(g is None or g.isfinite().all() for g in gradients(out, f, xs).values())


@pytest.mark.usefixtures("backend")
def test_second_derivatives_and_torch_func() -> None:
    f = learned(WeightedFusion(WIDTHS, D, weighting="gate", norm="layer_norm", align=ALIGN))
    xs, mask = make_features(aligned=True), make_mask("steps")

    def loss(function: Any, features: list[Tensor]) -> Tensor:
        return function(features, mask).sin().sum()

    def second(function: Any) -> Tensor:
        first = torch.autograd.grad(loss(function, xs), xs, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), f.gate[0].weight)[0]

    torch.testing.assert_close(second(f), second(lambda features, mask: plain(f, features, mask)))
    parameters = dict(f.named_parameters())
    found = torch.func.grad(lambda p: loss(lambda *a: torch.func.functional_call(f, p, a), xs))(parameters)
    expected = torch.autograd.grad(loss(f, xs), list(parameters.values()))
    torch.testing.assert_close(list(found.values()), list(expected))


# Missing features


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("aligned", [False, True], ids=["same rate", "aligned"])
@pytest.mark.parametrize("mask", ["samples", "steps"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_missing_features_leave_no_trace(weighting: str, mask: str, aligned: bool, bad: float) -> None:
    f = WeightedFusion(
        WIDTHS,
        D,
        weighting=weighting,
        align=ALIGN if aligned else None,
        norm="layer_norm",
        activation=torch.tanh,
    )
    learned(f)
    k = make_mask(mask)
    xs, dirty = make_features(aligned), make_features(aligned)
    for m, (x, y) in enumerate(zip(xs, dirty, strict=True)):
        if mask == "samples":
            used = k[:, m, None].expand(x.shape[:2])
        else:  # what a step that is there reads
            used = k[:, :, m].double() @ (matrix(f.align[m], T, x.shape[1]).abs() > 1e-9).double() > 0
        x.data[~used] = 0.0
        y.data[~used] = bad
        assert not used.all()
    out, expected = f(dirty, k), f(xs, k)
    assert torch.equal(out, expected)
    theirs = gradients(expected, f, xs)
    for name, grad in gradients(out, f, dirty).items():
        assert (grad is None) == (theirs[name] is None), name
        assert grad is None or torch.equal(grad, theirs[name]), name
    assert (out[2] == 0).all()
    assert all((x == 0).all() for x in (theirs[f"features[{m}]"][2] for m in range(3)))


@pytest.mark.parametrize("align", ["nearest", "linear", "mean"])
def test_steps_read_are_those_of_the_map(align: str) -> None:
    generator = torch.Generator().manual_seed(4)
    for length in range(1, 10):
        for source in range(1, 10):
            index, tap = time_map(align, length, source)
            there = torch.rand(4, length, generator=generator) < 0.5
            expected = torch.zeros(4, source, dtype=torch.bool)
            for b, t in there.nonzero().tolist():
                expected[b, index[t][tap[t] != 0]] = True
            assert torch.equal(implementation._steps_read(there, align, source), expected), (length, source)


# Modality dropout


def kept_by(f: WeightedFusion, samples: int, mask: Tensor | None = None) -> Tensor:
    """Which modalities were used, (samples, M): features are unit vectors, so that a sum shows them."""
    count = len(f.in_dims)
    return f([unit.expand(samples, count) for unit in torch.eye(count)], mask) == 1


def test_dropout_rate_and_guarantee() -> None:
    torch.manual_seed(5)
    n, p = 6000, 0.6
    kept = kept_by(WeightedFusion(3, 3, weighting="uniform", mode="sum", modality_dropout=p), n)
    assert kept.any(1).all()
    # Dropped: below p, unless all three are and this is the highest.
    expected = p - p**3 / 3
    assert ((~kept).double().mean(0) - expected).abs().max() < 4 * (0.25 / n) ** 0.5
    alone = kept.sum(1) == 1
    assert abs(alone.double().mean().item() - (3 * (1 - p) * p**2 + p**3)) < 4 * (0.25 / n) ** 0.5


def test_dropout_of_one_leaves_one_at_random() -> None:
    torch.manual_seed(5)
    kept = kept_by(WeightedFusion(4, 4, weighting="uniform", mode="sum", modality_dropout=1.0), 2000)
    assert (kept.sum(1) == 1).all()
    assert (kept.double().mean(0) - 0.25).abs().max() < 0.04


def test_dropout_keeps_one_of_those_that_are_there() -> None:
    torch.manual_seed(5)
    mask = torch.rand(3000, 3) < 0.5
    kept = kept_by(WeightedFusion(3, 3, weighting="uniform", mode="sum", modality_dropout=0.9), 3000, mask)
    assert not (kept & ~mask).any()
    assert torch.equal(kept.any(1), mask.any(1))


def test_dropout_drops_all_steps_of_a_sample() -> None:
    torch.manual_seed(5)
    f = WeightedFusion(3, 3, weighting="uniform", mode="sum", modality_dropout=0.5)
    mask = torch.rand(500, 4, 3) < 0.7
    kept = f([unit.expand(500, 4, 3) for unit in torch.eye(3)], mask) == 1
    whole = (kept == mask).all(1) | (~kept).all(1)
    assert whole.all()
    assert torch.equal(kept.any(2).any(1), mask.any(2).any(1))
    assert (kept.any(1) != mask.any(1)).any()


def test_dropout_is_for_training_and_follows_the_seed() -> None:
    f = WeightedFusion(3, 3, weighting="uniform", mode="sum", modality_dropout=0.5)
    torch.manual_seed(6)
    first = kept_by(f, 200)
    torch.manual_seed(6)
    assert torch.equal(kept_by(f, 200), first)
    assert not torch.equal(kept_by(f, 200), first)
    assert not first.all()
    state = torch.get_rng_state()
    assert kept_by(f.eval(), 200).all()
    assert torch.equal(torch.get_rng_state(), state)


def test_dropped_features_may_be_nan() -> None:
    torch.manual_seed(7)
    f = learned(WeightedFusion(WIDTHS, D, weighting="channel_gate", modality_dropout=0.5))
    xs = make_features()
    mask = torch.tensor([[True, False, True]] * B)
    xs[1].data.fill_(torch.nan)
    out = f(xs, mask)
    assert out.isfinite().all()
    assert all(g.isfinite().all() for g in gradients(out, f, xs).values())


# Contributions


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("mask", [None, "samples", "steps"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_contributions_are_the_terms_of_the_sum(weighting: str, mask: str | None) -> None:
    f = learned(
        WeightedFusion(
            {"image": D, "audio": 4, "text": 3},
            D,
            weighting=weighting,
            norm="layer_norm",
            align=ALIGN,
            scale=True,
        )
    )
    xs, k = make_features(aligned=True), make_mask(mask)
    f.track_contributions()
    out = f(xs, k)
    found = f.contributions()
    assert found.names == ("image", "audio", "text")
    assert found.loss is None

    # One term of the sum: the affine step makes the others zero and leaves the weights as they are.
    def term(m: int) -> Tensor:
        weights, mode = f._weights(xs, k, T)
        options: dict[str, Any] = {"mode": mode, "mask": k, "norm": f.norm, "align": f.align, "length": T}
        own = torch.zeros(3, D, dtype=torch.float64)
        own[m] = 1.0
        projected = [f._projected(i, x, k) for i, x in enumerate(xs)]
        return mmcore.weighted_fusion(
            projected, weights, norm_weight=f.norm_weight * own, norm_bias=f.norm_bias * own, **options
        )

    terms = torch.stack([term(m) for m in range(3)], 1) * f.scale  # (B, M, T, D)
    torch.testing.assert_close(terms.sum(1), out)
    square = out.square().sum((1, 2))
    shares = (terms * out[:, None]).sum((2, 3)) / square.clamp(min=1e-300)[:, None]
    torch.testing.assert_close(found.feature, shares.detach())
    torch.testing.assert_close(found.feature.sum(1), (square > 0).double().detach())

    loss = (out**3).sum() + (out * torch.arange(D)).mean()
    (dout,) = torch.autograd.grad(loss, out, retain_graph=True)
    loss.backward()
    parts = (terms * dout[:, None]).sum((2, 3)).detach()
    torch.testing.assert_close(f.contributions().loss, parts)


def test_loss_parts_predict_a_small_change() -> None:
    f = learned(WeightedFusion(2, D, mode="sum")).track_contributions()
    xs = [torch.randn(B, T, D, dtype=torch.float64) for _ in range(2)]
    loss = f(xs).sin().sum()
    loss.backward()
    part = f.contributions().loss[1, 0].item()
    f.track_contributions(False)
    factor = torch.ones(B, 1, 1, dtype=torch.float64)
    factor[1] += 1e-6
    changed = f([xs[0] * factor, xs[1]]).sin().sum()
    assert abs((changed - loss).item() / 1e-6 - part) < 1e-4


def test_contributions_in_half_precision_and_without_grad() -> None:
    f = WeightedFusion(2, 64, norm="layer_norm").track_contributions().eval()
    xs = [torch.randn(B, T, 64, dtype=torch.bfloat16) for _ in range(2)]
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            out = f(xs)
            found = f.contributions()
        assert out.dtype == torch.bfloat16
        assert found.feature.dtype == torch.float32
        torch.testing.assert_close(found.feature.sum(1), torch.ones(B))
        assert (found.feature > 0).all()
        assert found.loss is None
        assert found.names == ("0", "1")


def test_contributions_of_features_from_inference_mode() -> None:
    f = learned(WeightedFusion(WIDTHS, D, weighting="gate", align=ALIGN)).track_contributions()
    xs, k = make_features(aligned=True), make_mask("steps")
    f(xs, k)
    expected = f.contributions().feature
    with torch.inference_mode():
        f([x.clone() for x in xs], k.clone())
    torch.testing.assert_close(f.contributions().feature, expected)


def test_zero_features_have_no_shares() -> None:
    f = WeightedFusion(2, D).track_contributions()
    f([torch.zeros(B, T, D)] * 2)
    assert torch.equal(f.contributions().feature, torch.zeros(B, 2))


def test_each_call_is_recorded_anew_and_backwards_add_up() -> None:
    f = WeightedFusion(2, D).track_contributions()
    xs = [torch.randn(B, T, D) for _ in range(2)]
    first = f(xs).sum()
    first.backward(retain_graph=True)
    once = f.contributions().loss.clone()
    first.backward()
    torch.testing.assert_close(f.contributions().loss, 2 * once)
    f(xs)
    assert f.contributions().loss is None


def test_contributions_must_be_tracked() -> None:
    f = WeightedFusion(2, D)
    xs = [torch.ones(B, D)] * 2
    f(xs)
    with pytest.raises(mmcore.MMCoreError, match="not tracked"):
        f.contributions()
    assert f.track_contributions() is f
    with pytest.raises(mmcore.MMCoreError, match="nothing was fused"):
        f.contributions()
    f(xs)
    f.contributions()
    f.track_contributions(False)
    with pytest.raises(mmcore.MMCoreError, match="not tracked"):
        f.contributions()


def test_untracked_calls_ask_for_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Mapping[str, Any]] = []
    op = implementation.weighted_fusion

    def counted(*args: Any, **options: Any) -> Tensor:
        calls.append(options)
        return op(*args, **options)

    monkeypatch.setattr(implementation, "weighted_fusion", counted)
    f = WeightedFusion(2, D, weighting="uniform")
    xs = [torch.ones(B, D)] * 2
    assert not f(xs).requires_grad
    assert len(calls) == 1
    assert calls[0].get("probe") is None
    f.track_contributions()(xs)
    assert len(calls) == 3
    assert calls[2]["probe"].shape == (B, 2)


@pytest.mark.parametrize("tracking", [False, True])
def test_nothing_large_is_kept_alive(tracking: bool) -> None:
    f = WeightedFusion((4, D), D, weighting="gate").track_contributions(tracking)
    xs = [torch.ones(B, T, 4), torch.ones(B, T, D)]
    out = f(xs)
    kept = [weakref.ref(t) for t in (*xs, out)]
    del xs, out
    assert all(ref() is None for ref in kept)
    if tracking:
        assert f.contributions().feature.grad_fn is None


# State


def test_state_dict_is_stable() -> None:
    f = WeightedFusion(
        {"image": 8, "audio": 5, "text": 3},
        8,
        weighting="channel_gate",
        gate_hidden=7,
        norm="layer_norm",
        scale=True,
        modality_dropout=0.1,
    )
    assert {name: tuple(value.shape) for name, value in f.state_dict().items()} == {
        "norm_weight": (3, 8),
        "norm_bias": (3, 8),
        "scale": (1,),
        "projections.1.weight": (8, 5),
        "projections.1.bias": (8,),
        "projections.2.weight": (8, 3),
        "projections.2.bias": (8,),
        "gate.0.weight": (7, 16),
        "gate.0.bias": (7,),
        "gate.2.weight": (24, 7),
        "gate.2.bias": (24,),
    }
    shapes = {
        "uniform": {},
        "scalar": {"weight": (2,)},
        "gate": {"gate.0.weight": (2, 16), "gate.0.bias": (2,)},
        "step_gate": {"gate.0.weight": (2, 16), "gate.0.bias": (2,)},
        "channel_gate": {"gate.0.weight": (16, 16), "gate.0.bias": (16,)},
    }
    for weighting, expected in shapes.items():
        f = WeightedFusion(2, 8, weighting=weighting, norm="rms_norm")
        found = {name: tuple(value.shape) for name, value in f.state_dict().items()}
        assert found == {**expected, "norm_weight": (2, 8)}


def test_copies_compute_the_same() -> None:
    f = WeightedFusion(WIDTHS, D, weighting="channel_gate", activation=torch.tanh, align=ALIGN)
    learned(f).track_contributions()
    xs = make_features(aligned=True)
    expected = f(xs)
    expected.sum().backward()
    loaded = WeightedFusion(WIDTHS, D, weighting="channel_gate", activation=torch.tanh, align=ALIGN).double()
    loaded.load_state_dict(f.state_dict())
    file = io.BytesIO()
    torch.save(f, file)
    file.seek(0)
    copies = [copy.deepcopy(f), pickle.loads(pickle.dumps(f)), torch.load(file, weights_only=False), loaded]
    for c in copies:
        if c is not loaded:
            with pytest.raises(mmcore.MMCoreError, match="nothing was fused"):
                c.contributions()
        assert torch.equal(c(xs), expected)
    assert f.contributions().loss is not None


def test_dtype_of_parameters_and_result() -> None:
    f = WeightedFusion(
        WIDTHS, D, weighting="channel_gate", norm="layer_norm", scale=True, dtype=torch.float64
    )
    assert {p.dtype for p in f.parameters()} == {torch.float64}
    f = f.to(torch.bfloat16)
    out = f([x.detach().to(torch.bfloat16) for x in make_features()])
    assert out.dtype == torch.bfloat16

    # float32 parameters, half-precision features: nothing is widened
    for weighting in ("uniform", "scalar", "gate"):
        f = WeightedFusion(2, D, weighting=weighting, norm="rms_norm", scale=True)
        assert f([torch.ones(B, T, D, dtype=torch.bfloat16)] * 2).dtype == torch.bfloat16


def test_a_half_precision_mean_does_not_overflow() -> None:
    f = WeightedFusion(2, 1, weighting="gate")
    with torch.no_grad():
        f.gate[0].weight.fill_(1e-4)
    xs = [torch.full((1, 4000, 1), 100.0, dtype=torch.float16)] * 2
    assert f(xs).isfinite().all()
    assert f(xs, torch.ones(1, 4000, 2, dtype=torch.bool)).isfinite().all()


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_autocast(weighting: str) -> None:
    torch.manual_seed(8)
    f = WeightedFusion(
        WIDTHS, D, weighting=weighting, norm="layer_norm", scale=True, align=ALIGN, project=True
    ).track_contributions()
    xs = [x.detach().float().requires_grad_() for x in make_features(aligned=True)]
    with torch.autocast("cpu", torch.bfloat16):
        out = f(xs, make_mask("steps"))
        assert out.dtype == torch.bfloat16  # the projections are
    out.float().square().sum().backward()
    assert all(x.grad.dtype == torch.float32 for x in xs)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in f.parameters())
    expected = f(xs, make_mask("steps"))
    torch.testing.assert_close(out.float(), expected, rtol=0.02, atol=0.05)


def test_reset_parameters() -> None:
    torch.manual_seed(9)
    f = WeightedFusion(WIDTHS, D, weighting="gate", gate_hidden=4, norm="layer_norm", scale=True)
    torch.manual_seed(9)
    start = WeightedFusion(WIDTHS, D, weighting="gate", gate_hidden=4, norm="layer_norm", scale=True)
    fresh = {name: value.clone() for name, value in f.state_dict().items()}
    assert all(torch.equal(value, start.state_dict()[name]) for name, value in fresh.items())
    with torch.no_grad():
        for p in f.parameters():
            p.fill_(5.0)
    f.reset_parameters()
    for name, value in f.state_dict().items():
        assert (value != 5.0).all(), name
        if not name.startswith(("gate.0", "projections")):  # those are drawn
            assert torch.equal(value, fresh[name]), name
    meta = WeightedFusion(WIDTHS, D, weighting="gate", norm="layer_norm", device="meta")
    assert all(p.is_meta for p in meta.parameters())


def test_repr_says_what_it_does() -> None:
    f = WeightedFusion(
        {"image": 8, "audio": 4},
        8,
        weighting="gate",
        norm="layer_norm",
        align={"audio": "mean"},
        activation=torch.tanh,
        scale=True,
        modality_dropout=0.1,
    )
    assert f.extra_repr() == (
        "(image: 8, audio: 4) -> 8, weighting='gate', mode='softmax', norm='layer_norm', affine=True,"
        " eps=1e-05, align=(None, 'mean'), activation=tanh, scale=True, modality_dropout=0.1"
    )
    assert repr(WeightedFusion(2)) == "WeightedFusion((?, ?) -> ?, weighting='scalar', mode='softmax')"


# torch.compile


@pytest.mark.parametrize("weighting", ["gate", "channel_gate"])
def test_compiled_forward_and_backward(weighting: str) -> None:
    f = learned(
        WeightedFusion(
            WIDTHS, D, weighting=weighting, norm="layer_norm", scale=True, align=ALIGN, modality_dropout=0.3
        )
    )
    xs, mask = make_features(aligned=True), make_mask("steps")
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    torch.manual_seed(10)
    out = compiled(xs, mask)
    grads = gradients(out, f, xs)
    torch.manual_seed(10)
    expected = f(xs, mask)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    for name, grad in gradients(expected, f, xs).items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-10, atol=1e-10)

    if weighting == "gate":
        f.eval().track_contributions()
        with torch.no_grad():
            compiled(xs, mask)
        with pytest.raises(mmcore.UnsupportedError, match=r"torch\.compile"):
            f.contributions()
        f(xs, mask)
        assert f.contributions().feature.shape == (B, 3)
    torch._dynamo.reset()


# Refusals


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ((0, 8), {}, ValueError, "modalities: expected 1 to 16, got 0"),
        ((17, 8), {}, ValueError, "modalities: expected 1 to 16, got 17"),
        ((True, 8), {}, TypeError, "modalities: expected an int, a sequence"),
        ((2.0, 8), {}, TypeError, r"modalities: expected an int, a sequence .* got 2\.0"),
        (("ab", 8), {}, TypeError, r"modalities\[0\]: expected an int, got 'a'"),
        (([8, 0], 8), {}, ValueError, r"modalities\[1\]: expected 1 or more, got 0"),
        (({"a": 8, 3: 8}, 8), {}, TypeError, "modalities: expected names that are str, got 3"),
        (({"a": "8"}, 8), {}, TypeError, r"modalities\['a'\]: expected an int, got '8'"),
        (([8, 4],), {}, ValueError, "dim: modalities of widths 8, 4 need it, got None"),
        ((2, 0), {}, ValueError, "dim: expected 1 or more, got 0"),
        ((2, "8"), {}, TypeError, "dim: expected an int, got '8'"),
        ((2,), {"weighting": "gate"}, ValueError, "dim: weighting='gate' needs it, got None"),
        ((2,), {"norm": "rms_norm"}, ValueError, "dim: norm='rms_norm' with affine=True needs it, got None"),
        ((2,), {"project": True}, ValueError, "dim: project=True needs it, got None"),
        ((2, 8), {"weighting": "gates"}, ValueError, "weighting: expected one of uniform, .* got 'gates'"),
        ((2, 8), {"mode": "mean"}, ValueError, "mode: expected one of sum, .* got 'mean'"),
        ((2, 8), {"norm": "batch"}, ValueError, "norm: expected one of layer_norm, .* got 'batch'"),
        ((2, 8), {"eps": -1}, ValueError, "eps: expected a number of 0 or more, got -1"),
        ((2, 8), {"align": "cubic"}, ValueError, "align: expected one of nearest, .* got 'cubic'"),
        ((2, 8), {"align": ["mean"]}, ValueError, "align: expected .* each of 2 modalities, got 1"),
        (
            (2, 8),
            {"align": {"a": "mean"}},
            ValueError,
            r"align: expected names of modalities \(there are none\)",
        ),
        (({"a": 8}, 8), {"align": {"b": "mean"}}, ValueError, r"align: expected names .*\(a\), got b"),
        ((2, 8), {"align": 3}, TypeError, "align: expected a str, .* got 3"),
        (([8, 4], 8), {"project": False}, ValueError, "project: False needs all widths to be 8, got 4 at 1"),
        ((2, 8), {"activation": "tanh"}, TypeError, "activation: expected a callable or None, got 'tanh'"),
        ((2, 8), {"gate_hidden": 4}, ValueError, "gate_hidden: weighting 'scalar' has no gate network"),
        (
            (2, 8),
            {"weighting": "gate", "gate_hidden": 0},
            ValueError,
            "gate_hidden: expected 1 or more, got 0",
        ),
        (
            (2, 8),
            {"modality_dropout": 1.5},
            ValueError,
            "modality_dropout: .* from 0 to 1, got 1.5",
        ),
        ((2, 8), {"modality_dropout": "0"}, ValueError, "modality_dropout: expected a number from 0 to 1"),
    ],
)
def test_constructor_refuses(
    args: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{message}"):
        WeightedFusion(*args, **options)


ONE = torch.ones(1, 3, 4)


@pytest.mark.parametrize("weighting", ["scalar", "gate", "channel_gate"])
@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        (torch.ones(2, 1, 3, 4), TypeError, "features: expected a sequence or mapping .* got Tensor"),
        ([ONE], ValueError, "features: expected 2 modalities, got 1"),
        ({"a": ONE}, ValueError, "features: expected the modalities a, b, got a"),
        ({"a": 1, "b": 2, "c": 3}, ValueError, "features: expected the modalities a, b, got a, b, c"),
        ([ONE, None], TypeError, r"features\['b'\]: expected a tensor, got NoneType"),
        ([ONE.int(), ONE], TypeError, r"features\['a'\]: expected a floating tensor, got torch\.int32"),
        ([torch.ones(4)] * 2, ValueError, r"features\['a'\]: .*\(B, T, 4\) or \(B, 4\), got \(4,\)"),
        ([torch.ones(())] * 2, ValueError, r"features\['a'\]: .*\(B, T, 4\) or \(B, 4\), got \(\)"),
        ([ONE, torch.ones(1, 5)], ValueError, r"features\['b'\]: expected shape \(1, T, 5\), got \(1, 5\)"),
        ([ONE, ONE], ValueError, r"features\['b'\]: expected shape \(1, T, 5\), got \(1, 3, 4\)"),
        ([ONE, torch.ones(2, 3, 5)], ValueError, r"features\['b'\]: .*\(1, T, 5\), got \(2, 3, 5\)"),
        ([ONE, torch.ones(1, 2, 5)], ValueError, r"features\['b'\]: has 2 steps .* has 3; align="),
    ],
)
def test_features_are_checked(features: Any, error: type[Exception], message: str, weighting: str) -> None:
    f = WeightedFusion({"a": 4, "b": 5}, 4, weighting=weighting)
    with pytest.raises(error, match=f"^{message}"):
        f(features)


@pytest.mark.parametrize("weighting", ["scalar", "gate", "channel_gate"])
@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.ones(1, 2), TypeError, "mask: expected a bool tensor, .* got torch.float32"),
        ([[True, True]], TypeError, "mask: expected a tensor, got list"),
        (torch.ones(1, 3) > 0, ValueError, r"mask: 2 .* need shape \(1, 2\) or \(1, 3, 2\), got \(1, 3\)"),
        (torch.ones(2, 3, 2) > 0, ValueError, r"mask: 2 modalities need shape .* got \(2, 3, 2\)"),
    ],
)
def test_the_mask_is_checked(mask: Any, error: type[Exception], message: str, weighting: str) -> None:
    f = WeightedFusion({"a": 4, "b": 5}, 4, weighting=weighting, modality_dropout=0.5)
    with pytest.raises(error, match=f"^{message}"):
        f([ONE, torch.ones(1, 3, 5)], mask)


def test_a_mapping_needs_names() -> None:
    with pytest.raises(TypeError, match="features: expected a sequence of tensors, got a mapping"):
        WeightedFusion(1, 4)({"a": torch.ones(1, 4)})


def test_docstring_examples_run() -> None:
    failed, tried = doctest.testmod(implementation)
    assert tried > 0
    assert failed == 0
