"""Coefficients from a Gram against their papers' conditions of optimality; strategies against formulas."""

from __future__ import annotations

import copy
import doctest
import io
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

import mmcore
import mmcore.nn.task_weighting as implementation
from mmcore import Task
from mmcore.nn import (
    DWA,
    FAMO,
    IMTLL,
    MGDA,
    RLW,
    STCH,
    UWSO,
    CAGrad,
    GeometricMean,
    GradNorm,
    MultiTaskLoss,
    PCGrad,
    TaskWeighting,
    UPGrad,
    aligned_mtl_coefficients,
    cagrad_coefficients,
    imtl_g_coefficients,
    mgda_coefficients,
    pcgrad_coefficients,
    upgrad_coefficients,
)

ALL: dict[str, Callable[[Tensor], Tensor]] = {
    "mgda": mgda_coefficients,
    "cagrad": cagrad_coefficients,
    "pcgrad": pcgrad_coefficients,
    "imtl_g": imtl_g_coefficients,
    "aligned_mtl": aligned_mtl_coefficients,
    "upgrad": upgrad_coefficients,
}


def gradients(count: int, width: int, seed: int = 0, spread: float = 1.0) -> Tensor:
    """(K, D) float64, lengths spread over ``exp(+-spread)``."""
    g = torch.Generator().manual_seed(seed)
    made = torch.randn(count, width, generator=g, dtype=torch.float64)
    return made * torch.exp(spread * torch.randn(count, 1, generator=g, dtype=torch.float64))


# More gradients than dimensions make singular Grams, whose hull often holds 0.
JACOBIANS = {
    f"{count}x{width}{'' if spread < 5 else '-wide'}": gradients(count, width, count + width, spread)
    for count, width, spread in (
        (2, 1, 1.0),
        (2, 5, 1.0),
        (3, 2, 1.0),
        (3, 40, 1.0),
        (5, 7, 0.0),
        (8, 4, 1.0),
        (8, 30, 6.0),
        (17, 19, 1.0),
        (32, 33, 1.0),
        (32, 10, 0.5),
    )
}


@pytest.fixture(params=JACOBIANS)
def jacobian(request: pytest.FixtureRequest) -> Tensor:
    return JACOBIANS[request.param]


def test_doctests() -> None:
    assert doctest.testmod(implementation).failed == 0


# ---- conditions of optimality


def test_mgda_is_the_shortest_of_the_hull(jacobian: Tensor) -> None:
    gram = jacobian @ jacobian.T
    alpha = mgda_coefficients(gram)
    assert (alpha >= 0).all()
    assert alpha.sum() == pytest.approx(1, abs=1e-12)
    d = alpha @ jacobian
    # d is shortest exactly if no g_i lies behind the plane through d, <d, g_i> >= <d, d>, equal if alpha > 0.
    lengths = jacobian.norm(dim=1)
    behind = (jacobian @ d - d @ d) / (lengths * d.norm().clamp(min=1e-7 * lengths.min()))
    assert behind.min() > -1e-6
    assert (alpha * behind).abs().max() < 1e-6


def test_mgda_of_two_has_the_closed_form() -> None:
    for seed in range(20):
        a, b = gradients(2, 3, seed)
        share = ((b - a) @ b / ((a - b) @ (a - b))).clamp(0, 1)
        found = mgda_coefficients(torch.stack([a, b]) @ torch.stack([a, b]).T)
        torch.testing.assert_close(found, torch.stack([share, 1 - share]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("c", [0.1, 0.4, 0.9, 2.0])
def test_cagrad_is_the_best_in_its_ball(jacobian: Tensor, c: float) -> None:
    gram = jacobian @ jacobian.T
    mean = jacobian.mean(0)
    radius = c * mean.norm()
    alpha = cagrad_coefficients(gram, c)
    d = alpha @ jacobian
    off = (d - mean).norm()
    if off < 1e-5 * radius:
        # Only where a combination of gradients vanishes and no direction serves all.
        assert mgda_coefficients(gram) @ gram @ mgda_coefficients(gram) < 1e-12 * gram.diagonal().max()
        return
    assert float(off) == pytest.approx(float(radius), rel=1e-6)
    # Weak duality: for any w of the simplex <g_w, g_0> + radius |g_w| bounds the gain; here they meet.
    w = (alpha - 1 / len(alpha)).clamp(min=0)
    w = w / w.sum()
    combined = w @ jacobian
    bound = combined @ mean + radius * combined.norm()
    scale = mean.norm() * jacobian.norm(dim=1).max()
    assert (alpha - 1 / len(alpha)).min() > -1e-9 * alpha.abs().max()
    assert float((jacobian @ d).min()) == pytest.approx(float(bound), abs=1e-7 * float(scale))


def test_cagrad_with_c_0_is_the_mean() -> None:
    gram = JACOBIANS["5x7"] @ JACOBIANS["5x7"].T
    torch.testing.assert_close(cagrad_coefficients(gram, 0.0), torch.full((5,), 0.2, dtype=torch.float64))


def test_upgrad_projects_onto_the_cone(jacobian: Tensor) -> None:
    gram = jacobian @ jacobian.T
    count = len(gram)
    lengths = jacobian.norm(dim=1)
    total = torch.zeros(count, dtype=torch.float64)
    for i in range(count):
        chosen = [0.0] * count
        chosen[i] = 1.0
        a = upgrad_coefficients(gram, chosen)
        total += a / count
        # h is the projection of g_i onto {h: J h >= 0} exactly if it lies there, h - g_i in the cone of the
        # gradients, and both are orthogonal.
        h = a @ jacobian
        added = a.clone()
        added[i] -= 1
        assert (added >= 0).all()
        inner = jacobian @ h / (lengths * lengths[i])
        assert inner.min() > -1e-10
        assert (added * lengths / lengths[i] * inner).abs().max() < 1e-8
    torch.testing.assert_close(total @ jacobian, upgrad_coefficients(gram) @ jacobian, rtol=1e-8, atol=1e-8)


def test_imtl_g_has_equal_projections(jacobian: Tensor) -> None:
    if jacobian.shape[0] > jacobian.shape[1]:
        pytest.skip("dependent gradients may have no combination with equal projections")
    alpha = imtl_g_coefficients(jacobian @ jacobian.T)
    assert float(alpha.sum()) == pytest.approx(1, abs=1e-9)
    d = alpha @ jacobian
    on = jacobian @ d / jacobian.norm(dim=1)
    assert on.max() - on.min() < 1e-8 * (alpha.abs() * jacobian.norm(dim=1)).max()


def test_imtl_g_closed_form_of_the_paper() -> None:
    g = gradients(4, 20, 3)
    u = g / g.norm(dim=1, keepdim=True)
    rest = (g[0] @ (u[0] - u[1:]).T) @ torch.linalg.inv((g[0] - g[1:]) @ (u[0] - u[1:]).T)
    expected = torch.cat([1 - rest.sum().reshape(1), rest])
    torch.testing.assert_close(imtl_g_coefficients(g @ g.T), expected, rtol=1e-9, atol=1e-9)


def test_aligned_mtl_has_equal_principal_components(jacobian: Tensor) -> None:
    # B = U sigma_r V^T of the gradients' U S V^T, and alpha such that the direction is B w.
    gram = jacobian @ jacobian.T
    u, s, v = torch.linalg.svd(jacobian, full_matrices=False)
    rank = int((s**2 > s[0] ** 2 * len(gram) * torch.finfo(torch.float64).eps).sum())
    u, s, v = u[:, :rank], s[:rank], v[:rank]
    w = torch.linspace(0.5, 1.5, len(gram), dtype=torch.float64)
    expected = s[-1] * (w @ u) @ v
    found = aligned_mtl_coefficients(gram, w) @ jacobian
    assert (found - expected).norm() < 1e-5 * expected.norm()
    torch.testing.assert_close(
        aligned_mtl_coefficients(gram) * len(gram), aligned_mtl_coefficients(gram, torch.ones(len(gram)))
    )


@pytest.mark.parametrize("seed", range(5))
def test_pcgrad_projects_gradients_in_order(seed: int) -> None:
    g = gradients(6, 4, seed)
    orders = torch.rand(6, 6, generator=torch.Generator().manual_seed(seed)).argsort(1)
    total = torch.zeros(4, dtype=torch.float64)
    for i in range(6):
        h = g[i].clone()
        for j in orders[i].tolist():
            if j != i and h @ g[j] < 0:
                h = h - (h @ g[j]) / (g[j] @ g[j]) * g[j]
        total += h
    torch.testing.assert_close(pcgrad_coefficients(g @ g.T, orders) @ g, total, rtol=1e-10, atol=1e-10)


# ---- degenerate Grams


@pytest.mark.parametrize("name", ALL)
def test_one_task_gets_its_gradient(name: str) -> None:
    alpha = ALL[name](torch.tensor([[4.0]]))
    assert alpha.dtype == torch.float64
    # the ball of CAGrad reaches 1.4 of the only gradient
    assert alpha.item() == pytest.approx(1.4 if name == "cagrad" else 1.0)


@pytest.mark.parametrize("name", ALL)
def test_orthogonal_tasks_of_one_length_get_equal_shares(name: str) -> None:
    alpha = ALL[name](torch.eye(4, dtype=torch.float64) * 9)
    shares = {"pcgrad": 1.0, "cagrad": 0.25 + 0.25 * 0.4}
    torch.testing.assert_close(alpha, torch.full((4,), shares.get(name, 0.25), dtype=torch.float64))


@pytest.mark.parametrize("name", ALL)
def test_identical_gradients(name: str) -> None:
    alpha = ALL[name](torch.full((3, 3), 2.0))
    shares = {"pcgrad": 3.0, "cagrad": 1.4}
    assert float(alpha.sum()) == pytest.approx(shares.get(name, 1.0))


@pytest.mark.parametrize("name", ALL)
def test_opposite_gradients_stop_what_is_shared(name: str) -> None:
    g = torch.tensor([[1.0, 2.0], [-1.0, -2.0]], dtype=torch.float64)
    alpha = ALL[name](g @ g.T)
    torch.testing.assert_close(alpha @ g, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_a_zero_row_changes_nothing_for_the_others(name: str) -> None:
    g = gradients(3, 5, 1)
    with_zero = torch.cat([g, torch.zeros(1, 5, dtype=torch.float64)])
    alpha, with_zero_alpha = ALL[name](g @ g.T), ALL[name](with_zero @ with_zero.T)
    # Means are over all tasks, as the papers have them: 3 of 4 here.
    scale = {"cagrad": 0.75, "aligned_mtl": 0.75, "upgrad": 0.75}.get(name, 1.0)
    torch.testing.assert_close(with_zero_alpha[:3], scale * alpha)
    assert with_zero_alpha[3] == (1.0 if name == "pcgrad" else 0.25)


@pytest.mark.parametrize("name", ALL)
def test_all_zero(name: str) -> None:
    alpha = ALL[name](torch.zeros(3, 3))
    torch.testing.assert_close(
        alpha, torch.full((3,), 1.0 if name == "pcgrad" else 1 / 3, dtype=torch.float64)
    )


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ALL)
def test_what_is_not_finite_shows(name: str, value: float) -> None:
    gram = torch.eye(3)
    gram[1, 2] = gram[2, 1] = value
    assert ALL[name](gram).isnan().all()


@pytest.mark.parametrize("name", ALL)
def test_gram_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"gram: expected shape \(K, K\), got \(2, 3\)"):
        ALL[name](torch.ones(2, 3))
    with pytest.raises(TypeError, match="gram: expected a floating-point tensor"):
        ALL[name](torch.ones(2, 2, dtype=torch.int64))


def test_settings_refused() -> None:
    with pytest.raises(ValueError, match=r"c: expected a number of at least 0, got -0\.1"):
        cagrad_coefficients(torch.eye(2), -0.1)
    with pytest.raises(ValueError, match="preference: expected 2 numbers"):
        upgrad_coefficients(torch.eye(2), [1.0])
    with pytest.raises(ValueError, match="orders: expected a permutation"):
        pcgrad_coefficients(torch.eye(2), torch.zeros(2, 2, dtype=torch.int64))
    for make, message in (
        (lambda: DWA(0.0), "temperature: expected a number above 0"),
        (lambda: STCH(0.0), "mu: expected a number above 0"),
        (lambda: MGDA("l3"), "normalize: expected one of"),
        (lambda: UPGrad(head_gradients="none"), "head_gradients: expected own or weighted"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(TypeError, match="seed: expected an int"):
        RLW(seed=0.5)  # type: ignore[arg-type]


# ---- against another implementation, where it is installed


def test_same_as_torchjd(jacobian: Tensor) -> None:
    other = pytest.importorskip("torchjd.aggregation")
    if jacobian.shape[0] > jacobian.shape[1] or jacobian.norm(dim=1).max() > 1e3 * jacobian.norm(dim=1).min():
        pytest.skip("theirs regularises singular Grams")
    gram = jacobian @ jacobian.T
    count = len(gram)
    for found, expected in (
        (imtl_g_coefficients(gram), other.IMTLGWeighting()(gram)),
        (aligned_mtl_coefficients(gram), other.AlignedMTLWeighting()(gram)),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)
    torch.manual_seed(0)
    expected = other.PCGradWeighting()(gram)
    torch.manual_seed(0)
    orders = torch.stack([torch.randperm(count) for _ in range(count)])
    torch.testing.assert_close(pcgrad_coefficients(gram, orders), expected, rtol=1e-10, atol=1e-10)
    # Theirs takes Frank-Wolfe steps: ours must not be longer.
    theirs = other.MGDAWeighting(epsilon=1e-9, max_iters=500)(gram)
    ours = mgda_coefficients(gram)
    assert ours @ gram @ ours <= theirs @ gram @ theirs * (1 + 1e-9)


# ---- strategies that see losses


def vector(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def losses_of(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def ready(strategy: TaskWeighting, count: int = 3) -> TaskWeighting:
    strategy.setup([Task.value()] * count)
    return strategy


def check(
    total: Callable[[Tensor], Tensor], formula: Callable[[Tensor], Tensor], values: Sequence[float]
) -> None:
    """Same value and gradient."""
    a, b = losses_of(*values), losses_of(*values)
    found, expected = total(a), formula(b)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    found.backward()
    expected.backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-12)


LOSSES = (0.3, 2.0, 1.1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 20.0])
def test_uw_so(temperature: float) -> None:
    strategy = ready(UWSO(temperature))
    w = [math.exp(1 / v / temperature) for v in LOSSES]
    check(strategy.total, lambda x: sum(a / sum(w) * v for a, v in zip(w, x, strict=True)), LOSSES)
    # A loss that nearly vanished takes all, without overflow.
    assert strategy.total(losses_of(1e-40, 1.0, 2.0)).item() == pytest.approx(1e-40)


def test_geometric_mean() -> None:
    check(ready(GeometricMean()).total, lambda x: x.prod() ** (1 / 3), LOSSES)


def test_imtl_l() -> None:
    strategy = ready(IMTLL()).double()
    s = vector([0.2, -1.0, 0.5])
    strategy.scales.data.copy_(s)
    check(strategy.total, lambda x: (torch.exp(s) * x - s).sum(), LOSSES)
    strategy.zero_grad()
    strategy.total(losses_of(*LOSSES)).backward()
    torch.testing.assert_close(strategy.scales.grad, torch.exp(s) * vector(LOSSES) - 1)


@pytest.mark.parametrize("mu", [0.1, 1.0])
def test_stch(mu: float) -> None:
    weight, reference = [1.0, 0.5, 2.0], [0.5, 1.0, 3.0]
    strategy = ready(STCH(mu, preference=weight, reference=reference))

    def formula(x: Tensor) -> Tensor:
        w, r = vector(weight), vector(reference)
        return mu * torch.log(torch.exp(w * (torch.log(x) - torch.log(r)) / mu).sum())

    check(strategy.total, formula, LOSSES)


def test_stch_takes_its_reference_from_the_first_epoch() -> None:
    strategy = ready(STCH(0.5))
    check(strategy.total, lambda x: x.log().mean(), LOSSES)
    strategy.total(losses_of(1.3, 4.0, 0.1))
    # ``check`` called it once
    reference = (vector(LOSSES) + vector([1.3, 4.0, 0.1])) / 2
    strategy.end_epoch()
    for _ in range(2):
        check(
            strategy.total,
            lambda x: 0.5 * torch.logsumexp(torch.log(x / reference) / 0.5, 0),
            (1.0, 2.0, 3.0),
        )
        strategy.end_epoch()  # not moved by later ones


def test_dwa() -> None:
    strategy = ready(DWA(2.0))
    epochs = [[(1.0, 2.0, 3.0), (3.0, 2.0, 1.0)], [(1.0, 1.5, 2.0)], [(0.5, 1.4, 2.2), (0.7, 1.6, 2.0)]]
    means = [vector(steps).mean(0) for steps in epochs]
    for number, steps in enumerate(epochs):
        expected = torch.ones(3).double()
        if number >= 2:
            expected = 3 * torch.softmax(means[number - 1] / means[number - 2] / 2.0, 0)
        torch.testing.assert_close(strategy.weights(), expected)
        for step in steps:
            strategy.observe(vector(step))
        strategy.end_epoch()
    torch.testing.assert_close(strategy.weights(), 3 * torch.softmax(means[2] / means[1] / 2.0, 0))


def test_dwa_keeps_the_history_of_a_task_that_did_not_occur() -> None:
    strategy = ready(DWA(), 2)
    for step in ((1.0, 1.0), (0.5, 0.25), (0.25, 0.0)):
        strategy.observe(vector(step))
        strategy.end_epoch()
    expected = 2 * torch.softmax(vector([0.5, 0.25]) / 2, 0)
    torch.testing.assert_close(strategy.weights(), expected)


def test_rlw() -> None:
    strategy = ready(RLW(seed=5))
    expected = torch.Generator().manual_seed(5)
    for _ in range(3):
        drawn = torch.randn(3, generator=expected, dtype=torch.float64)
        torch.testing.assert_close(strategy.weights(), drawn.exp() / drawn.exp().sum())
    with torch.no_grad():
        torch.testing.assert_close(strategy.weights(), torch.full((3,), 1 / 3).double())
    drawn = torch.randn(3, generator=expected, dtype=torch.float64)
    torch.testing.assert_close(strategy.weights(), torch.softmax(drawn, 0))


def test_famo() -> None:
    beta, gamma = 0.5, 0.1
    strategy = ready(FAMO(beta, gamma))
    xi = torch.zeros(3, dtype=torch.float64)
    for before, after in ((LOSSES, (0.2, 1.9, 1.2)), ((0.5, 2.0, 4.0), (0.45, 1.0, 3.0))):
        z = torch.softmax(xi, 0)

        def formula(x: Tensor, z: Tensor = z) -> Tensor:
            c = 1 / (z / x.detach()).sum()
            return c * (z * x.log()).sum()

        check(strategy.total, formula, before)
        strategy.update(vector(after))
        leaf = xi.clone().requires_grad_()
        fall = torch.log(vector(before)) - torch.log(vector(after))
        (torch.softmax(leaf, 0) @ fall).backward()
        assert leaf.grad is not None
        xi = xi - beta * (leaf.grad + gamma * xi)
        torch.testing.assert_close(strategy.logits, xi)


def test_famo_outlives_a_bad_step() -> None:
    strategy = ready(FAMO())
    strategy.total(losses_of(*LOSSES))
    strategy.update(torch.tensor([math.nan, 1.0, 1.0]))
    assert (strategy.logits == 0).all()


@pytest.mark.parametrize(
    "strategy", [UWSO(), GeometricMean(), IMTLL(), STCH(), FAMO()], ids=lambda s: type(s).__name__
)
def test_a_loss_of_0_is_left_out(strategy: TaskWeighting) -> None:
    strategy = ready(copy.deepcopy(strategy)).double()
    others = ready(type(strategy)(), 2).double()
    given = losses_of(0.3, 0.0, 1.1)
    total = strategy.total(given)
    expected = losses_of(0.3, 1.1)
    torch.testing.assert_close(total * (1.0), others.total(expected) * 1.0)
    total.backward()
    others.total(expected).backward()
    assert given.grad is not None
    assert given.grad[1] == 0
    torch.testing.assert_close(given.grad[[0, 2]], expected.grad)
    nothing = losses_of(0.0, 0.0, 0.0)
    total = strategy.total(nothing)
    total.backward()
    assert total == 0
    assert (nothing.grad == 0).all()


@pytest.mark.parametrize(
    "strategy", [UWSO(), GeometricMean(), IMTLL(), STCH(), FAMO()], ids=lambda s: type(s).__name__
)
def test_nan_shows(strategy: TaskWeighting) -> None:
    assert ready(copy.deepcopy(strategy)).total(losses_of(1.0, math.nan, 2.0)).isnan()


# ---- strategies that see the Gram


def test_gradnorm() -> None:
    rate, power = 0.1, 1.5
    strategy = ready(GradNorm(power, rate))
    w = torch.ones(3, dtype=torch.float64)
    first = None
    for seed, values in enumerate(((1.0, 2.0, 3.0), (0.9, 1.0, 2.9), (0.7, 0.9, 2.0))):
        g = gradients(3, 6, seed, 0.3)
        found = strategy.coefficients(g @ g.T, torch.tensor(values))
        torch.testing.assert_close(found, w)
        losses = vector(values)
        first = losses if first is None else first
        leaf = w.clone().requires_grad_()
        norms = (leaf[:, None] * g).norm(dim=1)
        ratio = losses / first
        target = (norms.mean() * (ratio / ratio.mean()) ** power).detach()
        (norms - target).abs().sum().backward()
        assert leaf.grad is not None
        w = w - rate * leaf.grad
        w = 3 * w / w.sum()
    torch.testing.assert_close(strategy.weight, w)


def test_gradnorm_leaves_absent_tasks_alone_and_outlives_nan() -> None:
    strategy = ready(GradNorm())
    g = gradients(3, 6, 1)
    g[1] = 0
    strategy.coefficients(g @ g.T, torch.tensor([1.0, 0.0, 2.0]))
    assert strategy.first[1].isnan()
    before = strategy.weight.clone()
    strategy.coefficients(torch.full((3, 3), math.nan, dtype=torch.float64), torch.tensor([1.0, 1.0, 1.0]))
    assert torch.equal(strategy.weight, before)


@pytest.mark.parametrize("normalize", ["none", "l2", "loss", "loss+"])
def test_mgda_normalised(normalize: str) -> None:
    strategy = ready(MGDA(normalize))
    g, losses = gradients(3, 6, 2), torch.tensor([0.5, 2.0, 1.0])
    by = {
        "none": torch.ones(3).double(),
        "l2": g.norm(dim=1),
        "loss": losses.double(),
        "loss+": losses * g.norm(dim=1),
    }[normalize]
    scaled = g / by[:, None]
    torch.testing.assert_close(strategy.coefficients(g @ g.T, losses), mgda_coefficients(scaled @ scaled.T))


def test_pcgrad_draws_its_orders() -> None:
    g = gradients(5, 3, 4)
    gram = g @ g.T
    a, b = ready(PCGrad(seed=3), 5), ready(PCGrad(seed=3), 5)
    drawn = torch.Generator().manual_seed(3)
    seen = []
    for _ in range(4):
        orders = torch.rand(5, 5, generator=drawn, dtype=torch.float64).argsort(1)
        expected = pcgrad_coefficients(gram, orders)
        seen.append(expected)
        assert torch.equal(a.coefficients(gram, torch.ones(5)), expected)
        assert torch.equal(b.coefficients(gram, torch.ones(5)), expected)
    assert any(not torch.equal(seen[0], other) for other in seen[1:])


def test_cagrad_and_upgrad_settings() -> None:
    g = gradients(3, 6, 5)
    gram, losses = g @ g.T, torch.ones(3)
    assert torch.equal(ready(CAGrad(0.7)).coefficients(gram, losses), cagrad_coefficients(gram, 0.7))
    chosen = [0.2, 0.3, 0.5]
    found = ready(UPGrad(chosen)).coefficients(gram, losses)
    assert torch.equal(found, upgrad_coefficients(gram, torch.tensor(chosen, dtype=torch.float64)))
    with pytest.raises(ValueError, match="preference: expected 2 numbers"):
        ready(UPGrad(chosen), 2)


# ---- state


def stepped(loss: MultiTaskLoss, steps: range) -> list[Tensor]:
    """Totals of training steps, each an epoch of its own."""
    totals = []
    for step in steps:
        g = torch.Generator().manual_seed(step)
        z = torch.randn(4, 5, generator=g, dtype=torch.float64, requires_grad=True)
        heads = [torch.nn.Linear(5, 2, bias=False).double() for _ in range(3)]
        for head in heads:
            head.weight.data = torch.randn(2, 5, generator=g, dtype=torch.float64)
        outputs = [head(z) for head in heads]
        targets = [torch.zeros(4, 2, dtype=torch.float64)] * 3
        loss._heads_checked = False
        total, losses = loss(outputs, targets, features=z, heads=heads)
        total.backward()
        totals += [total.detach(), z.grad]
        assert isinstance(losses, Tensor)
        loss.update(losses.detach() * 0.9 ** torch.arange(3))
        loss.end_epoch()
    return totals


@pytest.mark.parametrize("name", implementation._BY_NAME)
def test_training_resumes_exactly(name: str) -> None:
    loss = MultiTaskLoss([Task.mse()] * 3, name)
    stepped(loss, range(3))
    saved = io.BytesIO()
    torch.save(loss.state_dict(), saved)
    copied = copy.deepcopy(loss)
    expected = stepped(loss, range(3, 6))
    resumed = MultiTaskLoss([Task.mse()] * 3, name)
    saved.seek(0)
    resumed.load_state_dict(torch.load(saved))
    for again in (resumed, copied):
        for found, wanted in zip(stepped(again, range(3, 6)), expected, strict=True):
            assert torch.equal(found, wanted)


def test_state_keeps_its_dtype() -> None:
    loss = MultiTaskLoss([Task.mse()] * 3, "famo")
    loss.weighting.logits.copy_(torch.tensor([1 / 3, 0.1, 0.7]))
    before = loss.weighting.logits.clone()
    assert torch.equal(loss.bfloat16().weighting.logits, before)
    assert loss.weighting.logits.dtype == torch.float64
    assert loss.to("meta").weighting.logits.device.type == "meta"


def test_a_strategy_has_one_owner() -> None:
    strategy = UPGrad()
    MultiTaskLoss([Task.mse()], strategy)
    with pytest.raises(ValueError, match="already belongs to another"):
        MultiTaskLoss([Task.mse()], strategy)


def test_names() -> None:
    with pytest.raises(ValueError, match=r"weighting: expected one of fixed, uncertainty, .*, got 'best'"):
        MultiTaskLoss([Task.mse()], "best")
    with pytest.raises(TypeError, match="weighting: expected a name or a TaskWeighting, got int"):
        MultiTaskLoss([Task.mse()], 3)  # type: ignore[arg-type]
    for name, kind in implementation._BY_NAME.items():
        assert type(MultiTaskLoss([Task.mse()], name).weighting) is kind
        assert repr(MultiTaskLoss([Task.mse()], name))
    assert set(implementation.__all__) - {"make_weighting"} <= set(mmcore.nn.__all__)
