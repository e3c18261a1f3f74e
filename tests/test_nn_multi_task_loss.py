"""MultiTaskLoss and head_gram against plain torch: gradients of heads and trunk, state, compile, refusals."""

from __future__ import annotations

import copy
import doctest
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mmcore
import mmcore.nn.multi_task_loss as implementation
import mmcore.ops.head_gram as head_gram_implementation
from mmcore import Task, head_gram
from mmcore.nn import (
    DWA,
    MGDA,
    STCH,
    GradNorm,
    LossWeighting,
    MultiTaskLoss,
    PCGrad,
    TaskWeighting,
    UPGrad,
    mgda_coefficients,
    upgrad_coefficients,
)

N, D = 6, 9
LAMBDA = (0.5, 2.0, 1.5)
BALANCING = ("gradnorm", "mgda", "pcgrad", "cagrad", "imtl_g", "aligned_mtl", "upgrad")
OF_LOSSES = ("uw_so", "geometric_mean", "imtl_l", "stch", "famo")
KNOWN = ("fixed", "uncertainty", "dwa", "rlw")


@pytest.fixture(params=["reference", "cpu"], autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    if "compiled" in request.node.name:
        # Under torch.compile the backend is that of the device.
        yield "cpu"
        return
    with mmcore.backend(request.param):
        yield request.param


def make_tasks() -> dict[str, Task]:
    weight = torch.tensor([0.5, 1.0, 2.0, 0.7], dtype=torch.float64)
    return {"kind": Task.cross_entropy(weight=weight), "score": Task.mse(), "tags": Task.bce_with_logits()}


def plain_losses(outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    weight = torch.tensor([0.5, 1.0, 2.0, 0.7], dtype=torch.float64)
    return torch.stack(
        [
            F.cross_entropy(outputs[0], targets[0], weight),
            F.mse_loss(outputs[1], targets[1]),
            F.binary_cross_entropy_with_logits(outputs[2], targets[2]),
        ]
    )


def make_targets(seed: int = 0) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randint(4, (N,), generator=g),
        torch.randn(N, generator=g, dtype=torch.float64) + 1,
        torch.rand(N, 5, generator=g, dtype=torch.float64),
    )


def make_outputs() -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    shapes = (N, 4), (N,), (N, 5)
    return [torch.randn(s, generator=g, dtype=torch.float64).requires_grad_() for s in shapes]


class Net(nn.Module):
    """A trunk and three heads; ``wrapped`` heads are the same, but not plain linear layers."""

    def __init__(self, wrapped: bool = False, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.trunk = nn.Linear(7, D)
        heads = [nn.Linear(D, c, bias=bias) for c in (4, 1, 5)]
        self.heads = nn.ModuleList(nn.Sequential(h, nn.Identity()) if wrapped else h for h in heads)
        self.double()

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        z = torch.tanh(self.trunk(x))
        a, b, c = (head(z) for head in self.heads)
        return z, [a, b.squeeze(-1), c]


def make_input() -> Tensor:
    return torch.randn(N, 7, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def make_loss(weighting: str | TaskWeighting, weights: Sequence[float] | None = LAMBDA) -> MultiTaskLoss:
    return MultiTaskLoss(list(make_tasks().values()), weighting, weights=weights).double()


def gradients_of(module: nn.Module) -> list[Tensor]:
    return [p.grad for p in module.parameters() if p.grad is not None]


def test_doctests() -> None:
    assert doctest.testmod(implementation).failed == 0
    assert doctest.testmod(head_gram_implementation).failed == 0


# ---- weights that are known, and functions of the losses


def test_fixed_with_names_and_masks() -> None:
    tasks = make_tasks()
    loss = MultiTaskLoss(tasks, weights={"tags": 0.25})
    names = list(tasks)
    outputs, targets = (
        dict(zip(names, make_outputs(), strict=True)),
        dict(zip(names, make_targets(), strict=True)),
    )
    there = torch.tensor([True, False, True, True, False, True])
    total, losses = loss(outputs, targets, {"score": there})
    expected = plain_losses(
        [outputs["kind"], outputs["score"][there], outputs["tags"]],
        [targets["kind"], targets["score"][there], targets["tags"]],
    )
    torch.testing.assert_close(losses, dict(zip(names, expected, strict=True)))
    torch.testing.assert_close(total, expected[0] + expected[1] + 0.25 * expected[2])


def test_uncertainty() -> None:
    loss = make_loss("uncertainty")
    s = torch.tensor([0.3, -0.5, 1.0], dtype=torch.float64)
    loss.weighting.log_vars.data.copy_(s)
    outputs = make_outputs()
    total, losses = loss(outputs, make_targets())
    total.backward()
    values = plain_losses(make_outputs(), make_targets()).detach()
    c, lam = torch.tensor([1.0, 0.5, 1.0]).double(), torch.tensor(LAMBDA).double()
    torch.testing.assert_close(losses, values)
    torch.testing.assert_close(total, (lam * (c * torch.exp(-s) * values + s / 2)).sum())
    torch.testing.assert_close(loss.weighting.log_vars.grad, lam * (0.5 - c * torch.exp(-s) * values))


@pytest.mark.parametrize("name", KNOWN + OF_LOSSES)
def test_total_and_gradients_follow_the_losses(name: str) -> None:
    loss, other = make_loss(name), make_loss(name)
    outputs, plain = make_outputs(), make_outputs()
    total, losses = loss(outputs, make_targets())
    values = plain_losses(plain, make_targets())
    lam = torch.tensor(LAMBDA).double()
    strategy = other.weighting
    if isinstance(strategy, LossWeighting):
        expected = strategy.total(lam * values)
    elif name == "uncertainty":
        expected = (lam * torch.tensor([1.0, 0.5, 1.0]) * values).sum()
    else:
        given = strategy.weights()
        expected = (lam * values * (1.0 if given is None else given)).sum()
    torch.testing.assert_close(losses, values)
    torch.testing.assert_close(total, expected)
    (2 * total).backward()
    (2 * expected).backward()
    for a, b in zip(outputs, plain, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("name", OF_LOSSES)
def test_backward_again_and_twice(name: str) -> None:
    loss = make_loss(name)
    outputs, plain = make_outputs(), make_outputs()
    total, _ = loss(outputs, make_targets())
    once = torch.autograd.grad(total, outputs, retain_graph=True)
    again = torch.autograd.grad(total, outputs, create_graph=True)
    torch.testing.assert_close(again, once)
    expected = make_loss(name).weighting.total(
        torch.tensor(LAMBDA).double() * plain_losses(plain, make_targets())
    )
    first = torch.autograd.grad(expected, plain, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), plain)
    found = torch.autograd.grad(sum(g.square().sum() for g in again), outputs)
    torch.testing.assert_close(found, second)


@pytest.mark.parametrize("name", OF_LOSSES)
def test_gradients_come_with_the_losses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    whole = implementation.multi_task_value_and_grad
    monkeypatch.setattr(
        implementation, "multi_task_value_and_grad", lambda *a, **k: (calls.append("both"), whole(*a, **k))[1]
    )
    monkeypatch.setattr(implementation, "multi_task_loss", lambda *a, **k: calls.append("again"))
    total, _ = make_loss(name)(make_outputs(), make_targets())
    total.backward()
    assert calls == ["both"]


def test_no_label_in_the_batch() -> None:
    masks = [None, torch.zeros(N, dtype=torch.bool), None]
    for name in (*OF_LOSSES, *BALANCING):
        loss, net = make_loss(name), Net()
        z, outputs = net(make_input())
        total, losses = loss(outputs, make_targets(), masks, features=z, heads=net.heads)
        total.backward()
        assert losses[1] == 0
        assert all(g.isfinite().all() for g in gradients_of(net)), name
        assert net.trunk.weight.grad.abs().sum() > 0
        assert (net.heads[1].weight.grad == 0).all()


def test_inplace_gradient() -> None:
    loss = MultiTaskLoss([Task.mse()], inplace_gradient=True)
    x = torch.randn(4, requires_grad=True)
    total, _ = loss([x * 1.0], [torch.zeros(4)])
    total.backward()
    torch.testing.assert_close(x.grad, x.detach() / 2)
    with pytest.raises(ValueError, match="inplace_gradient: UWSO needs the outputs"):
        MultiTaskLoss([Task.mse()], "uw_so", inplace_gradient=True)


def test_unreduced_losses() -> None:
    total, losses = MultiTaskLoss([Task.mse(reduction="none"), Task.mse()])(
        [torch.ones(3)] * 2, [torch.zeros(3)] * 2
    )
    assert total == 1
    torch.testing.assert_close(losses, (torch.ones(3), torch.tensor(1.0)))
    with pytest.raises(
        ValueError, match=r"tasks\[0\]: reduction none stays out of the total, so that UPGrad"
    ):
        MultiTaskLoss([Task.mse(reduction="none")], "upgrad")


def test_epochs_and_updates_reach_the_strategy() -> None:
    loss = make_loss(DWA(1.0), None)
    for factor in (1.0, 0.5, 0.9):
        outputs = [o * factor for o in make_outputs()]
        values = loss(outputs, make_targets())[1]
        with torch.no_grad():
            loss(make_outputs(), make_targets())  # evaluation is not part of the epoch
        torch.testing.assert_close(loss.weighting.epoch_sum, values.detach())
        loss.end_epoch()
    assert (loss.weighting.current != 1).all()
    famo = MultiTaskLoss(make_tasks(), "famo")
    names = list(make_tasks())
    outputs = dict(zip(names, make_outputs(), strict=True))
    _, losses = famo(outputs, dict(zip(names, make_targets(), strict=True)))
    famo.update({name: value * f for (name, value), f in zip(losses.items(), (0.5, 1.0, 1.0), strict=True)})
    # The first fell most: it needs less weight.
    assert famo.weighting.logits[0] < 0 < famo.weighting.logits[1]
    with pytest.raises(ValueError, match="losses: expected the names of tasks"):
        famo.update({"kind": torch.ones(())})


# ---- balanced gradients


def separate_gradients(net: Net) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Of lambda_i loss_i: in the features, and in the parameters of head i."""
    z, outputs = net(make_input())
    values = torch.tensor(LAMBDA).double() * plain_losses(outputs, make_targets())
    of_features, of_heads = [], []
    for value, head in zip(values, net.heads, strict=True):
        first, *rest = torch.autograd.grad(value, [z, *head.parameters()], retain_graph=True)
        of_features.append(first)
        of_heads.append(rest)
    return of_features, of_heads


@pytest.mark.parametrize("head_gradients", ["own", "weighted"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("name", BALANCING)
def test_balanced_gradients(name: str, wrapped: bool, bias: bool, head_gradients: str) -> None:
    net = Net(wrapped, bias)
    kind = type(make_loss(name).weighting)
    loss = make_loss(kind(head_gradients=head_gradients))
    of_features, of_heads = separate_gradients(net)
    gram = torch.stack([torch.stack([(a * b).sum() for b in of_features]) for a in of_features])
    values = plain_losses(net(make_input())[1], make_targets()).detach()
    lam = torch.tensor(LAMBDA).double()
    alpha = make_loss(kind()).weighting.coefficients(gram, lam * values)

    passes = []
    z, outputs = net(make_input())
    z.retain_grad()
    assert z.grad_fn is not None
    z.grad_fn.register_hook(lambda *_: passes.append(1))
    total, losses = loss(outputs, make_targets(), features=z, heads=net.heads)
    assert loss.coefficients is not None
    torch.testing.assert_close(loss.coefficients, alpha)
    torch.testing.assert_close(losses, values)
    torch.testing.assert_close(total, (alpha * lam * values).sum())
    (3 * total).backward()
    assert passes == [1]
    combined = sum(a * g for a, g in zip(alpha, of_features, strict=True))
    torch.testing.assert_close(z.grad, 3 * combined)
    for a, head, own in zip(alpha, net.heads, of_heads, strict=True):
        for p, g in zip(head.parameters(), own, strict=True):
            torch.testing.assert_close(p.grad, 3 * (a if head_gradients == "weighted" else 1.0) * g)
    # The trunk's own gradient follows from the features'.
    other = Net(wrapped, bias)
    other(make_input())[0].backward(3 * combined)
    torch.testing.assert_close(net.trunk.weight.grad, other.trunk.weight.grad)


@pytest.mark.parametrize("name", BALANCING)
def test_weighted_needs_no_heads(name: str) -> None:
    with_heads, without = Net(), Net()
    for net, heads in ((with_heads, with_heads.heads), (without, None)):
        kind = type(make_loss(name).weighting)
        loss = make_loss(kind(head_gradients="weighted"))
        z, outputs = net(make_input())
        loss(outputs, make_targets(), features=z, heads=heads)[0].backward()
    for a, b in zip(gradients_of(with_heads), gradients_of(without), strict=True):
        torch.testing.assert_close(a, b)


def test_names_order_heads() -> None:
    net, other = Net(), Net()
    tasks = make_tasks()
    names = list(tasks)
    z, outputs = net(make_input())
    total, losses = MultiTaskLoss(tasks, "upgrad")(
        dict(zip(names, outputs, strict=True)),
        dict(reversed(list(zip(names, make_targets(), strict=True)))),
        features=z,
        heads=nn.ModuleDict(dict(reversed(list(zip(names, net.heads, strict=True))))),
    )
    total.backward()
    assert list(losses) == names
    z, outputs = other(make_input())
    make_loss("upgrad", None)(outputs, make_targets(), features=z, heads=list(other.heads))[0].backward()
    for a, b in zip(gradients_of(net), gradients_of(other), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("wrapped", [False, True])
def test_one_head_for_two_tasks_and_frozen_parameters(wrapped: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(D, 2).double()
    frozen = nn.Linear(D, 2).double().requires_grad_(False)
    heads: list[nn.Module] = [layer, layer, frozen]
    if wrapped:
        heads = [nn.Sequential(h) for h in heads]
    z = torch.randn(N, D, dtype=torch.float64, requires_grad=True)
    outputs = [h(z) for h in heads]
    targets = [torch.full((N, 2), v, dtype=torch.float64) for v in (1.0, -1.0, 0.5)]
    total, _ = MultiTaskLoss([Task.mse()] * 3, "upgrad")(outputs, targets, features=z, heads=heads)
    total.backward()
    own = [F.mse_loss(h(z), t) for h, t in zip(heads[:2], targets[:2], strict=True)]
    expected = torch.autograd.grad(own[0] + own[1], [layer.weight, layer.bias])
    torch.testing.assert_close((layer.weight.grad, layer.bias.grad), expected)
    assert frozen.weight.grad is None


def test_several_features_and_a_head_that_reads_one() -> None:
    torch.manual_seed(1)
    zs = [torch.randn(N, D, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2 * D, 2).double()

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.layer(torch.cat([a, b], -1))

    both, single = Both(), nn.Linear(D, 2).double()
    outputs = [both(*zs), single(zs[1])]
    targets = [torch.ones(N, 2, dtype=torch.float64)] * 2
    losses = [F.mse_loss(o, t) for o, t in zip(outputs, targets, strict=True)]
    g0 = torch.autograd.grad(losses[0], zs, retain_graph=True)
    g1 = [torch.zeros_like(zs[0]), *torch.autograd.grad(losses[1], zs[1], retain_graph=True)]
    flat = torch.stack([torch.cat([g.reshape(-1) for g in gs]) for gs in (g0, g1)])
    alpha = mgda_coefficients(flat @ flat.T)
    loss = MultiTaskLoss([Task.mse()] * 2, "mgda")
    loss(outputs, targets, features=zs, heads=[both, single])[0].backward()
    for z, a, b in zip(zs, g0, g1, strict=True):
        torch.testing.assert_close(z.grad, alpha[0] * a + alpha[1] * b)
    assert single.weight.grad is not None


def test_steps_of_a_sequence() -> None:
    torch.manual_seed(2)
    z = torch.randn(2, 3, D, dtype=torch.float64, requires_grad=True)
    heads = [nn.Linear(D, 4).double(), nn.Linear(D, 1).double()]
    outputs = [h(z) for h in heads]
    targets = [torch.randint(4, (2, 3)), torch.ones(2, 3, 1, dtype=torch.float64)]
    tasks = [Task.cross_entropy(class_dim=-1), Task.mse()]
    values = [
        F.cross_entropy(outputs[0].flatten(0, 1), targets[0].flatten()),
        F.mse_loss(outputs[1], targets[1]),
    ]
    gs = [torch.autograd.grad(v, z, retain_graph=True)[0] for v in values]
    gram = head_gram(feature_gradients=gs)
    alpha = upgrad_coefficients(gram)
    MultiTaskLoss(tasks, "upgrad")(outputs, targets, features=z, heads=heads)[0].backward()
    torch.testing.assert_close(z.grad, alpha[0] * gs[0] + alpha[1] * gs[1])


@pytest.mark.parametrize("wrapped", [False, True])
def test_autocast(wrapped: bool) -> None:
    net = Net(wrapped).float()
    loss = MultiTaskLoss([Task.cross_entropy(), Task.mse(), Task.bce_with_logits()], "upgrad")
    targets = [t.float() if t.is_floating_point() else t for t in make_targets()]
    with torch.autocast("cpu", torch.bfloat16):
        z, outputs = net(make_input().float())
        assert outputs[0].dtype == torch.bfloat16
        total, _ = loss(outputs, targets, features=z, heads=net.heads)
    total.backward()
    exact = Net(wrapped).float()
    z, outputs = exact(make_input().float())
    loss(outputs, targets, features=z, heads=exact.heads)[0].backward()
    for a, b in zip(gradients_of(net), gradients_of(exact), strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 0.05 * b.norm()


@pytest.mark.parametrize("name", BALANCING)
def test_without_gradients_coefficients_rest(name: str) -> None:
    loss, net = make_loss(name), Net()
    before = copy.deepcopy(loss.state_dict())
    expected = torch.tensor(LAMBDA).double() * plain_losses(net(make_input())[1], make_targets())
    with torch.no_grad():
        total, _ = loss(net(make_input())[1], make_targets())
    share = 1.0 if name in ("gradnorm", "pcgrad") else 1 / 3
    torch.testing.assert_close(total, expected.sum().detach() * share)
    z, outputs = net(make_input())
    total, _ = loss.eval()(outputs, make_targets(), features=z, heads=net.heads)
    torch.testing.assert_close(total, expected.sum() * share)
    total.backward()
    assert net.trunk.weight.grad is not None
    for key, value in loss.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0, equal_nan=True)


def test_what_balancing_refuses() -> None:
    net, loss = Net(), make_loss("upgrad")
    z, outputs = net(make_input())
    targets, heads = make_targets(), list(net.heads)
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ValueError, "features: UPGrad needs the tensor that the heads read, got None", {"heads": heads}),
        (ValueError, "heads: UPGrad with head_gradients='own' needs the heads", {"features": z}),
        (ValueError, "heads: expected 3, one for each task, got 2", {"features": z, "heads": heads[:2]}),
        (
            TypeError,
            r"heads\[1\]: expected a module, got str",
            {"features": z, "heads": [heads[0], "b", heads[2]]},
        ),
        (TypeError, r"features\[0\]: expected a tensor, got int", {"features": [3], "heads": heads}),
        (ValueError, r"features\[0\]: requires no gradient", {"features": z.detach(), "heads": heads}),
        (
            ValueError,
            r"outputs\[0\]: is not what heads\[0\], a linear layer, makes of features",
            {"features": torch.relu(z), "heads": heads},
        ),
        (
            ValueError,
            "features: an output was not made from them",
            {"features": z * 1.0, "heads": [nn.Sequential(h) for h in heads]},
        ),
    ]
    for error, message, arguments in cases:
        with pytest.raises(error, match=message):
            loss(outputs, targets, **arguments)


def test_training_lowers_every_loss() -> None:
    net = Net()
    loss = make_loss(UPGrad(), None)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.3)
    history = []
    for _ in range(40):
        z, outputs = net(make_input())
        total, losses = loss(outputs, make_targets(), features=z, heads=net.heads)
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        history.append(losses)
    assert (history[-1] < history[0]).all()


# ---- class weights and weights


def test_class_weights_are_state() -> None:
    tasks = make_tasks()
    loss = MultiTaskLoss(tasks, weights=[1.0, 2.0, 3.0])
    assert set(loss.state_dict()) == {"weights", "task_weight_0"}
    names = list(tasks)
    outputs = dict(zip(names, [o.float() for o in make_outputs()], strict=True))
    targets = {n: t if n == "kind" else t.float() for n, t in zip(names, make_targets(), strict=True)}

    def kind(module: nn.Module) -> float:
        return float(module(outputs, targets)[1]["kind"].detach())

    before = kind(loss)
    assert loss.tasks["kind"].weight is loss.task_weight_0
    other = MultiTaskLoss(
        {**tasks, "kind": Task.cross_entropy(weight=torch.ones(4))}, weights=[1.0, 1.0, 1.0]
    )
    assert kind(other) != pytest.approx(before)
    for assign in (False, True):
        loaded = MultiTaskLoss({**tasks, "kind": Task.cross_entropy(weight=torch.ones(4))}, weights=[1.0] * 3)
        loaded.load_state_dict(loss.state_dict(), assign=assign)
        assert kind(loaded) == pytest.approx(before)
        assert loaded.weights.tolist() == [1.0, 2.0, 3.0]
    for copied in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert kind(copied) == pytest.approx(before)
        copied.task_weight_0.fill_(1.0)
        assert kind(copied) == pytest.approx(kind(other))
    assert kind(loss) == pytest.approx(before)
    swapped = torch.func.functional_call(loss, {"task_weight_0": torch.ones(4)}, (outputs, targets))
    assert float(swapped[1]["kind"].detach()) == pytest.approx(kind(other))
    assert kind(loss) == pytest.approx(before)
    assert loss.half().tasks["kind"].weight.dtype == torch.float16
    assert loss.to("meta").tasks["kind"].weight.device.type == "meta"


def test_the_callers_task_keeps_its_weights() -> None:
    task = Task.cross_entropy(weight=torch.tensor([1.0, 2.0]))
    loss = MultiTaskLoss([task]).double()
    loss.task_weight_0.zero_()
    assert task.weight.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "tasks: expected a sequence or mapping of mmcore.Task, got int", {"tasks": 3}),
        (ValueError, "tasks: expected 1 to 32, got 0", {"tasks": []}),
        (TypeError, r"tasks\[1\]: expected a mmcore.Task, got str", {"tasks": [Task.mse(), "mse"]}),
        (TypeError, "tasks: expected names that are str, got 1", {"tasks": {1: Task.mse()}}),
        (
            ValueError,
            "weights: expected 1, one for each task",
            {"tasks": [Task.mse()], "weights": [1.0, 2.0]},
        ),
        (TypeError, r"weights\[0\]: expected a number, got 'a'", {"tasks": [Task.mse()], "weights": ["a"]}),
        (
            ValueError,
            r"weights: expected names of tasks \(a\), got b",
            {"tasks": {"a": Task.mse()}, "weights": {"b": 1.0}},
        ),
    ],
)
def test_refused(error: type[Exception], message: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        MultiTaskLoss(**arguments)


@pytest.mark.parametrize("name", ["fixed", "uw_so", "upgrad"])
def test_outputs_refused(name: str) -> None:
    loss = MultiTaskLoss({"a": Task.mse()}, name)
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(TypeError, match="outputs: expected a mapping as tasks is"):
        loss([x], {"a": x.detach()})
    with pytest.raises(ValueError, match=r"targets: .*missing: a"):
        loss({"a": x}, {})
    with pytest.raises(TypeError, match="mappings go with a mapping of tasks"):
        MultiTaskLoss([Task.mse()], name)({"a": x}, [x.detach()])


def test_repr() -> None:
    loss = MultiTaskLoss({"a": Task.mse()}, STCH(0.5), weights={"a": 2.0})
    assert repr(loss) == ("MultiTaskLoss(\n  (a: Task.mse()), weights=[2.0]\n  (weighting): STCH(mu=0.5)\n)")
    assert "MGDA(normalize='l2', head_gradients='own')" in repr(MultiTaskLoss([Task.mse()], MGDA("l2")))
    assert "GradNorm(alpha=1.5" in repr(MultiTaskLoss([Task.mse()], GradNorm()))
    assert "PCGrad(head_gradients='own')" in repr(MultiTaskLoss([Task.mse()], PCGrad()))


# ---- torch.compile


@pytest.mark.parametrize("name", ["fixed", "uncertainty"])
def test_compiled(name: str) -> None:
    torch.compiler.reset()
    tasks, names = make_tasks(), list(make_tasks())
    loss = MultiTaskLoss(tasks, name, weights=LAMBDA).double()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    results = []
    for function in (loss, compiled):
        outputs = dict(zip(names, make_outputs(), strict=True))
        loss.zero_grad()
        total, losses = function(outputs, dict(zip(names, make_targets(), strict=True)))
        total.backward()
        found = [o.grad for o in outputs.values()] + gradients_of(loss)
        results.append(
            (total.detach(), {n: v.detach() for n, v in losses.items()}, [g.clone() for g in found])
        )
    torch.testing.assert_close(results[0], results[1])


# ---- head_gram


def formed(ys: Sequence[Tensor], ws: Sequence[Tensor]) -> Tensor:
    flat = [
        (y.double().reshape(-1, w.shape[0]) @ w.double()).reshape(-1) for y, w in zip(ys, ws, strict=True)
    ]
    return torch.stack([torch.stack([a @ b for b in flat]) for a in flat])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "depth", "widths"),
    [
        ((50,), 40, (1, 3, 7)),  # small heads: without the feature gradients
        ((5, 10), 40, (2, 2)),
        ((6,), 4, (30, 1, 17)),  # wide heads: with them
        ((1,), 1, (1,)),
        ((0,), 4, (2, 3)),
        ((33,), 65, (1,) * 32),
    ],
)
def test_head_gram(rows: tuple[int, ...], depth: int, widths: tuple[int, ...], dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    ys = [torch.randn(*rows, c, generator=g, dtype=torch.float64).to(dtype) for c in widths]
    ws = [torch.randn(c, depth, generator=g, dtype=torch.float64).to(dtype) for c in widths]
    found = head_gram(ys, ws)
    assert found.dtype == torch.float64
    assert torch.equal(found, found.T)
    expected = formed(ys, ws)
    scale = expected.diagonal().max() if len(ys) else 1.0
    tolerance = 1e-13 if dtype == torch.float64 else 2e-6
    assert (found - expected).abs().max() <= tolerance * scale
    if rows != (0,):
        features = [(y.double().reshape(-1, w.shape[0]) @ w.double()) for y, w in zip(ys, ws, strict=True)]
        torch.testing.assert_close(head_gram(feature_gradients=features), expected)
        # Several tensors count as one.
        parts = [(f[:, :1], f[:, 1:]) for f in features]
        torch.testing.assert_close(head_gram(feature_gradients=parts), expected)


def test_head_gram_forms_no_feature_gradients_for_small_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_gram_implementation, "_of_features", lambda gradients: pytest.fail("formed"))
    head_gram([torch.ones(64, 3)] * 2, [torch.ones(3, 64)] * 2)


def test_head_gram_of_squeezed_names_autocast_and_recorded_tensors() -> None:
    y = {"a": torch.randn(8, requires_grad=True), "b": torch.randn(8, 2)}
    w = {"b": torch.randn(2, 16, requires_grad=True), "a": torch.randn(1, 16)}
    expected = formed([y["a"][:, None], y["b"]], [w["a"], w["b"]])
    with torch.autocast("cpu", torch.bfloat16):
        found = head_gram(y, w)
    assert not found.requires_grad
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-5)
    assert head_gram([y["b"].to("meta")], [w["b"].to("meta")]).shape == (1, 1)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "expected output_gradients and head_weights, or", lambda: head_gram([torch.ones(2, 1)])),
        (
            TypeError,
            "expected output_gradients and head_weights, or",
            lambda: head_gram([torch.ones(2, 1)], [torch.ones(1, 1)], feature_gradients=[torch.ones(2)]),
        ),
        (
            ValueError,
            "head_weights: expected 2, one for each output gradient, got 1",
            lambda: head_gram([torch.ones(2, 1)] * 2, [torch.ones(1, 3)]),
        ),
        (
            ValueError,
            r"output_gradients\[0\]: expected shape \(..., 2\).*got \(4, 3\)",
            lambda: head_gram([torch.ones(4, 3)], [torch.ones(2, 5)]),
        ),
        (
            ValueError,
            r"output_gradients\[1\]: expected 4 rows",
            lambda: head_gram([torch.ones(4, 2), torch.ones(3, 2)], [torch.ones(2, 5)] * 2),
        ),
        (
            ValueError,
            r"head_weights\[1\]: expected shape \(C, 5\)",
            lambda: head_gram([torch.ones(4, 2)] * 2, [torch.ones(2, 5), torch.ones(2, 6)]),
        ),
        (
            TypeError,
            r"head_weights\[0\]: expected a floating-point tensor, got torch.int64",
            lambda: head_gram([torch.ones(4, 2)], [torch.ones(2, 5, dtype=torch.int64)]),
        ),
        (
            ValueError,
            r"feature_gradients\[1\]: expected shape \(2,\) as feature_gradients\[0\] has, got shape \(3,\)",
            lambda: head_gram(feature_gradients=[torch.ones(2), torch.ones(3)]),
        ),
        (ValueError, "feature_gradients: expected 1 to 32, got 0", lambda: head_gram(feature_gradients=[])),
        (
            ValueError,
            "head_gram: expected all tensors on cpu, got one on meta",
            lambda: head_gram([torch.ones(2, 1)], [torch.ones(1, 1, device="meta")]),
        ),
    ],
)
def test_head_gram_refused(error: type[Exception], message: str, call: Callable[[], Tensor]) -> None:
    with pytest.raises(error, match=message):
        call()
