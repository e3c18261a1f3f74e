"""The oracle itself, against torch's own losses, finite differences and formulas derived by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from loss_cases import LOSS_CASES, LossCase
from loss_harness import call, closed_form, expected, single_torch_thread, terms, with_gradients
from torch import Tensor

import mmcore
from mmcore import Task

BACKENDS = ("reference", "cpu")
REDUCTIONS = ("mean", "sum", "none")
EXACT: dict[str, float] = {"rtol": 1e-12, "atol": 1e-13}
SINGLE: dict[str, float] = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread() -> Iterator[None]:
    with single_torch_thread():
        yield


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def classes(*shape: int, below: int, seed: int = 0) -> Tensor:
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(seed))


def one(task: Task, output: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """The loss of a single task: through the total where it is in that, else unreduced."""
    total, losses = mmcore.multi_task_loss([output], [target], [task], masks=[mask])
    return losses[0] if task.reduction == "none" else total


def assert_same_function(
    ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], x: Tensor
) -> None:
    """Compare values and gradients, in float64 and in float32; ours on every backend."""
    for dtype, tolerance in ((torch.float64, EXACT), (torch.float32, SINGLE)):
        leaf = x.to(dtype).requires_grad_()
        expected = theirs(leaf)
        grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9), dtype=dtype)
        (wanted,) = torch.autograd.grad(expected, leaf, grad)
        assert (wanted != 0).any()
        for backend in BACKENDS:
            with mmcore.backend(backend):
                found = ours(leaf)
                (gradient,) = torch.autograd.grad(found, leaf, grad)
            torch.testing.assert_close(found, expected, **tolerance)
            torch.testing.assert_close(gradient, wanted, **tolerance)


# torch's own


CROSS_ENTROPIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "weight": {"weight": True},
    "smoothing": {"label_smoothing": 0.1},
    "all-smooth": {"label_smoothing": 1.0},
    "both": {"weight": True, "label_smoothing": 0.3},
    "ignore": {"ignore_index": 2},
    "ignore-all": {"weight": True, "label_smoothing": 0.2, "ignore_index": 0},
}
SHAPES = {"rows": (7, 5), "image": (2, 5, 3, 4), "sequence": (3, 5, 6), "unbatched": (5,)}


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", CROSS_ENTROPIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_cross_entropy_of_classes_is_torchs(shape: str, options: str, reduction: str) -> None:
    size = SHAPES[shape]
    count = size[min(1, len(size) - 1)]
    how = dict(CROSS_ENTROPIES[options])
    target = classes(*(size[:1] + size[2:] if len(size) > 1 else ()), below=count, seed=3)
    ignored = how.get("ignore_index", -100)
    if len(size) > 1:
        target.view(-1)[1::4] = ignored
    elif target == ignored:  # where torch's mean is 0 / 0
        target = target + 1
    if how.pop("weight", False):
        how["weight"] = torch.linspace(0.5, 2, count, dtype=torch.float64)
    task = Task.cross_entropy(reduction=reduction, **how)

    def theirs(x: Tensor) -> Tensor:
        given = {**how, "weight": how["weight"].to(x.dtype)} if "weight" in how else how
        return F.cross_entropy(x, target, reduction=reduction, **given)

    assert_same_function(lambda x: one(task, x, target), theirs, randn(*size))


@pytest.mark.parametrize("options", CROSS_ENTROPIES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_of_one_class_there_is_nothing_to_learn(backend: str, options: str) -> None:
    how = {n: v for n, v in CROSS_ENTROPIES[options].items() if n != "ignore_index"}
    if how.pop("weight", False):
        how["weight"] = torch.tensor([3.0])
    x = randn(4, 1, dtype=torch.float32).requires_grad_()
    with mmcore.backend(backend):
        loss = one(Task.cross_entropy(reduction="sum", **how), x, torch.zeros(4, dtype=torch.int64))
        (grad,) = torch.autograd.grad(loss, x)
    assert loss == 0
    assert (grad.abs() < 1e-6).all()  # (1 - 0.3) + 0.3 - 1 is not 0 in float32


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", ["plain", "weight", "smoothing", "both"])
@pytest.mark.parametrize("shape", ["rows", "image", "unbatched"])
def test_cross_entropy_of_probabilities_is_torchs(shape: str, options: str, reduction: str) -> None:
    size = SHAPES[shape]
    how = dict(CROSS_ENTROPIES[options])
    target = randn(*size, seed=4).softmax(min(1, len(size) - 1))
    if how.pop("weight", False):
        how["weight"] = torch.linspace(0.5, 2, 5, dtype=torch.float64)
    task = Task.cross_entropy(reduction=reduction, **how)

    def theirs(x: Tensor) -> Tensor:
        given = {**how, "weight": how["weight"].to(x.dtype)} if "weight" in how else how
        return F.cross_entropy(x, target.to(x.dtype), reduction=reduction, **given)

    assert_same_function(lambda x: one(task, x, target), theirs, randn(*size))


def test_classes_may_be_the_last_dimension() -> None:
    target = classes(2, 7, below=5)
    task = Task.cross_entropy(class_dim=-1, label_smoothing=0.1)
    assert_same_function(
        lambda x: one(task, x, target),
        lambda x: F.cross_entropy(x.movedim(-1, 1), target, label_smoothing=0.1),
        randn(2, 7, 5),
    )
    soft = randn(2, 7, 5, seed=2).softmax(-1)
    assert_same_function(
        lambda x: one(task, x, soft),
        lambda x: F.cross_entropy(x.movedim(-1, 1), soft.movedim(-1, 1).to(x.dtype), label_smoothing=0.1),
        randn(2, 7, 5),
    )


ELEMENTWISE: dict[str, tuple[Callable[..., Task], Callable[..., Tensor], dict[str, Any], dict[str, Any]]] = {
    "mse": (Task.mse, F.mse_loss, {}, {}),
    "l1": (Task.l1, F.l1_loss, {}, {}),
    "smooth_l1": (Task.smooth_l1, F.smooth_l1_loss, {}, {}),
    "smooth_l1-beta": (Task.smooth_l1, F.smooth_l1_loss, {"beta": 0.3}, {"beta": 0.3}),
    "smooth_l1-0": (Task.smooth_l1, F.smooth_l1_loss, {"beta": 0.0}, {"beta": 0.0}),
    "huber": (Task.huber, F.huber_loss, {}, {}),
    "huber-delta": (Task.huber, F.huber_loss, {"delta": 0.3}, {"delta": 0.3}),
    "bce": (Task.bce_with_logits, F.binary_cross_entropy_with_logits, {}, {}),
}


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(6, 5), (7,), (2, 3, 4), ()])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_losses_of_elements_are_torchs(name: str, shape: tuple[int, ...], reduction: str) -> None:
    ours, theirs, options, torch_options = ELEMENTWISE[name]
    target = randn(*shape, seed=4)
    target = target.sigmoid() if name == "bce" else target
    task = ours(reduction=reduction, **options)
    assert_same_function(
        lambda x: one(task, x, target.to(x.dtype)),
        lambda x: theirs(x, target.to(x.dtype), reduction=reduction, **torch_options),
        randn(*shape),
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("count", [5, 1])
def test_weights_of_positives_are_torchs(count: int, reduction: str) -> None:
    pos = torch.linspace(0.5, 3, 5, dtype=torch.float64)[:count]
    target = randn(6, 5, seed=4).sigmoid().round()
    task = Task.bce_with_logits(pos_weight=pos, reduction=reduction)
    assert_same_function(
        lambda x: one(task, x, target),
        lambda x: F.binary_cross_entropy_with_logits(
            x, target.to(x.dtype), pos_weight=pos.to(x.dtype), reduction=reduction
        ),
        randn(6, 5),
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0, 0.5])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_distillation_is_torchs_divergence(reduction: str, temperature: float) -> None:
    teacher = randn(3, 2, 5, seed=4)
    task = Task.kl_distillation(temperature=temperature, reduction=reduction)

    def theirs(x: Tensor) -> Tensor:
        log_p, log_q = ((t.to(x.dtype) / temperature).log_softmax(-1) for t in (x, teacher))
        each = F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(-1) * temperature**2
        if reduction == "mean":
            flat = F.kl_div(log_p.flatten(0, 1), log_q.flatten(0, 1), reduction="batchmean", log_target=True)
            return flat * temperature**2
        return each.sum() if reduction == "sum" else each

    assert_same_function(lambda x: one(task, x, teacher), theirs, randn(3, 2, 5))


def test_a_teacher_may_exclude_classes() -> None:
    teacher = randn(4, 6, seed=4)
    teacher[:, 2:4] = -torch.inf
    task = Task.kl_distillation(temperature=2.0)

    def theirs(x: Tensor) -> Tensor:
        q = (teacher.to(x.dtype) / 2).softmax(-1)
        return 4 * F.kl_div((x / 2).log_softmax(-1), q, reduction="batchmean")

    assert_same_function(lambda x: one(task, x, teacher), theirs, randn(4, 6))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_cosine_is_torchs(reduction: str) -> None:
    target = randn(4, 3, 6, seed=4)
    task = Task.cosine(reduction=reduction)

    def similarity(x: Tensor) -> Tensor:
        each = 1 - F.cosine_similarity(x, target.to(x.dtype), dim=-1)
        return each if reduction == "none" else each.mean() if reduction == "mean" else each.sum()

    assert_same_function(lambda x: one(task, x, target), similarity, randn(4, 3, 6))

    def embedding(x: Tensor) -> Tensor:
        return F.cosine_embedding_loss(
            x, target[:, 0].to(x.dtype), torch.ones(4, dtype=x.dtype), reduction=reduction
        )

    if reduction != "none":
        # torch adds its eps to the squares here, not to the lengths
        x = randn(4, 6)
        torch.testing.assert_close(one(task, x, target[:, 0]), embedding(x), rtol=1e-9, atol=1e-12)


def test_cosine_of_zero_vectors_is_torchs() -> None:
    target = randn(3, 6, seed=4)
    x = randn(3, 6)
    x[0] = 0
    x[1] = 1e-12
    target[2] = 0
    leaf = x.clone().requires_grad_()
    wanted = 1 - F.cosine_similarity(leaf, target, dim=-1)
    for backend in BACKENDS:
        with mmcore.backend(backend):
            found = one(Task.cosine(reduction="none"), leaf, target)
            (grad,) = torch.autograd.grad(found.sum(), leaf)
        torch.testing.assert_close(found, wanted, **EXACT)
        torch.testing.assert_close(grad[0], -target[0] / target[0].norm() / 1e-8, **EXACT)
        assert (grad[2] == 0).all()


# what torch does not have


def by_hand(x: Tensor, y: Tensor, gamma: float, alpha: Tensor, zeta: float) -> tuple[Tensor, Tensor]:
    """Focal and z losses of each row and their gradients, number by number."""
    loss, grad = torch.zeros(len(x), dtype=torch.float64), torch.zeros_like(x)
    for n, row in enumerate(x.tolist()):
        label = int(y[n])
        lse = math.log(sum(math.exp(v) for v in row))
        p = [math.exp(v - lse) for v in row]
        a, r, log_p = float(alpha[label]), 1 - p[label], row[label] - lse
        loss[n] = -a * r**gamma * log_p + zeta * lse**2
        for c, p_c in enumerate(p):
            delta = float(c == label)
            focal = a * (delta - p_c) * (gamma * r ** (gamma - 1) * p[label] * log_p - r**gamma)
            grad[n, c] = focal + 2 * zeta * lse * p_c
    return loss, grad


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("gamma", "weighted", "zeta"), [
    (2.0, False, 0.0), (1.0, True, 0.0), (0.5, False, 1e-2), (3.5, True, 0.1), (0.0, False, 0.3),
    (0.0, True, 0.3),
])  # fmt: skip
@pytest.mark.parametrize("backend", BACKENDS)
def test_focal_and_z_losses_are_the_formulas(
    backend: str, gamma: float, weighted: bool, zeta: float, reduction: str
) -> None:
    x, y = randn(6, 5).requires_grad_(), classes(6, below=5, seed=2)
    alpha = torch.linspace(0.5, 2, 5, dtype=torch.float64) if weighted else torch.ones(5, dtype=torch.float64)
    task = Task.cross_entropy(
        weight=alpha if weighted else None, focal_gamma=gamma, z_loss=zeta, reduction=reduction
    )
    with mmcore.backend(backend):
        found = one(task, x, y)
        (grad,) = torch.autograd.grad(found.sum(), x)
    focal, focal_grad = by_hand(x.detach(), y, gamma, alpha, 0.0)
    both, both_grad = by_hand(x.detach(), y, gamma, alpha, zeta)
    z, z_grad = both - focal, both_grad - focal_grad
    over = alpha[y].sum() if reduction == "mean" else 1.0  # of the class weights; the z loss over the rows
    z_over = 6 if reduction == "mean" else 1
    loss, wanted = focal / over + z / z_over, focal_grad / over + z_grad / z_over
    torch.testing.assert_close(found, loss if reduction == "none" else loss.sum(), **EXACT)
    torch.testing.assert_close(grad, wanted, **EXACT)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_focal_loss_of_gamma_0_is_cross_entropy(backend: str) -> None:
    x, y = randn(6, 5), classes(6, below=5)
    with mmcore.backend(backend):
        assert torch.equal(one(Task.cross_entropy(focal_gamma=0.0), x, y), one(Task.cross_entropy(), x, y))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_total_is_that_of_kendall_and_others(backend: str) -> None:
    """sum_i lambda_i (c_i exp(-s_i) loss_i + s_i / 2), where c is 1/2 for regressions or a task's own."""
    x, y = randn(6, 5), randn(6, 5, seed=1)
    labels = classes(6, below=5)
    tasks = [Task.cross_entropy(), Task.mse(), Task.cosine(uncertainty_scale=3.0), Task.value(), Task.huber()]
    outputs = [x, x, x, torch.tensor(1.7, dtype=torch.float64), x]
    targets = [labels, y, y, None, y]
    s, w = (randn(5, seed=seed).requires_grad_() for seed in (7, 8))
    with mmcore.backend(backend):
        total, losses = mmcore.multi_task_loss(outputs, targets, tasks, weights=w, log_vars=s)
        found = torch.autograd.grad(total, [w, s])
    each = [
        F.cross_entropy(x, labels), F.mse_loss(x, y), (1 - F.cosine_similarity(x, y)).mean(), outputs[3],
        F.huber_loss(x, y),
    ]  # fmt: skip
    wanted = sum(
        (w[i] * (c * torch.exp(-s[i]) * each[i] + s[i] / 2) for i, c in enumerate((1, 0.5, 3, 1, 0.5))),
        torch.zeros((), dtype=torch.float64),
    )
    torch.testing.assert_close(losses, torch.stack(each), **EXACT)
    torch.testing.assert_close(total, wanted, **EXACT)
    torch.testing.assert_close(found, torch.autograd.grad(wanted, [w, s]), **EXACT)


# gradients


def test_the_closed_forms_hold_over_the_whole_table() -> None:
    """The oracle's values and gradients, which are autograd's, against the formulas derived by hand."""
    for case in LOSS_CASES:
        oracle, _, magnitude = expected(case)
        derived = closed_form(case, case.inputs())
        assert oracle.keys() == derived.keys() == magnitude.keys(), case.id
        for name, value in oracle.items():
            assert value.shape == derived[name].shape, f"{case.id}: {name}"
            off = (value - derived[name]).abs() > 1e-14 * terms(case, name) ** 0.5 * magnitude[name]
            assert not off.any(), f"{case.id}: {name}"


GRADCHECKED = [
    LossCase(("ce", "mse"), (3,), 4, dtypes="fp64", weights="unit", log_vars="unit"),
    LossCase(("ce-all", "bce-pos"), (2, 3), 4, dtypes="fp64", mask="full", log_vars="unit"),
    LossCase(("ce-focal-weight", "kl-t"), (3,), 4, "sum", "fp64", weights="signs"),
    LossCase(("ce-soft-all", "cosine"), (2, 3), 4, "none", "fp64", mask="first"),
    LossCase(("ce-focal", "huber", "smooth_l1", "value"), (4,), 3, "mix", "fp64", log_vars="unit"),
]


def gradcheck(case: LossCase, check: Callable[..., bool]) -> None:
    inputs = with_gradients(case.inputs(), case.wanted())
    names = list(inputs.differentiable())
    # What is not read is a number, because finite differences step over it too.
    start = [torch.where(x.isnan(), 0.5, x).detach().requires_grad_() for x in inputs.outputs]
    leaves = [t for n, t in inputs.differentiable().items() if not n.startswith("outputs")] + start

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        of = dict(zip(names, tensors, strict=True))
        total, losses = call(
            case,
            inputs._replace(
                outputs=[of[f"outputs[{i}]"] for i in range(case.count)],
                weights=of.get("weights"),
                log_vars=of.get("log_vars"),
            ),
        )
        return total, *losses

    assert check(function, leaves)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", GRADCHECKED, ids=lambda case: case.id)
def test_gradients_are_those_of_finite_differences(case: LossCase, backend: str) -> None:
    with mmcore.backend(backend):
        gradcheck(case, torch.autograd.gradcheck)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", GRADCHECKED, ids=lambda case: case.id)
def test_second_gradients_are_those_of_finite_differences(case: LossCase, backend: str) -> None:
    """Whatever ran forward: they go through the reference."""
    with mmcore.backend(backend):
        gradcheck(case, torch.autograd.gradgradcheck)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_gradients_must_add_up_to(backend: str) -> None:
    """A shift of all logits changes no softmax, and a scale of a vector no angle."""
    x = randn(4, 7).requires_grad_()
    tasks = [Task.cross_entropy(label_smoothing=0.2), Task.kl_distillation(temperature=2.0), Task.cosine()]
    targets = [classes(4, below=7), randn(4, 7, seed=2), randn(4, 7, seed=3)]
    zero = {"rtol": 0, "atol": 1e-14}
    with mmcore.backend(backend):
        for task, target in zip(tasks, targets, strict=True):
            (g,) = torch.autograd.grad(one(task, x, target), x)
            across = (g * x.detach()).sum(-1) if task.kind == "cosine" else g.sum(-1)
            torch.testing.assert_close(across, torch.zeros(4, dtype=torch.float64), **zero)


# dtypes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_formats_are_float32_until_the_gradient(backend: str, dtype: torch.dtype) -> None:
    x = randn(9, 40).to(dtype)
    tasks = [Task.cross_entropy(label_smoothing=0.1), Task.mse(), Task.bce_with_logits(), Task.cosine()]
    targets = [classes(9, below=40), *(randn(9, 40, seed=s).to(dtype) for s in range(3))]
    targets[2] = targets[2].sigmoid()
    with mmcore.backend(backend):
        total, losses, grads = mmcore.multi_task_value_and_grad([x] * 4, targets, tasks)
        wide, wide_losses, wide_grads = mmcore.multi_task_value_and_grad(
            [x.float()] * 4, [t.float() if t.is_floating_point() else t for t in targets], tasks
        )
    assert total.dtype == losses.dtype == torch.float32
    assert torch.equal(total, wide)
    assert torch.equal(losses, wide_losses)
    for a, b in zip(grads.outputs, wide_grads.outputs, strict=True):
        assert a.dtype == dtype
        assert torch.equal(a, b.to(dtype))
