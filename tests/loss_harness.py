"""Run the losses op's table: in this process, or as a program that ends every tensor where memory ends.

``python loss_harness.py [EXPECTED]`` runs the whole table on the cpu backend under whatever ``MMCORE_ISA``
says. Operands lie against pages that no one may touch: one byte too many ends the program.
"""

from __future__ import annotations

import faulthandler
import functools
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fusion_harness import bits, dirty
from loss_cases import LOSS_CASES, Inputs, LossCase
from tolerances import assert_losses_close
from torch import Tensor

import mmcore

Results = dict[str, Tensor]
"""The total, "losses[i]", and gradients by the names of their tensors."""

Expected = tuple[Results, Results, Results]


@contextmanager
def single_torch_thread() -> Iterator[None]:
    """Torch's own threads, which are not the kernels': tables of small tensors are slower with them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def call(case: LossCase, inputs: Inputs, **how: Any) -> tuple[Tensor, list[Tensor]]:
    """Call the op on the backend in force: the total and the losses."""
    total, losses = mmcore.multi_task_loss(
        inputs.outputs,
        inputs.targets,
        case.tasks(inputs),
        weights=inputs.weights,
        log_vars=inputs.log_vars,
        masks=inputs.masks,
        **how,
    )
    return total, list(losses)


def with_gradients(
    inputs: Inputs, wanted: set[str], leaf: Callable[[Tensor], Tensor] = Tensor.detach
) -> Inputs:
    """The same call with leaves, of which those named require a gradient."""

    def of(name: str, t: Tensor | None) -> Tensor | None:
        return None if t is None else leaf(t).requires_grad_(name in wanted)

    outputs: list[Any] = [of(f"outputs[{i}]", x) for i, x in enumerate(inputs.outputs)]
    return inputs._replace(
        outputs=outputs, weights=of("weights", inputs.weights), log_vars=of("log_vars", inputs.log_vars)
    )


def gradients(inputs: Inputs, total: Tensor, losses: list[Tensor], retain_graph: bool = False) -> Results:
    """Of all leaves that require one, for the gradients that come back; zeros where torch has none."""
    leaves = {n: t for n, t in inputs.differentiable().items() if t.requires_grad}
    pairs = [(total, inputs.grad_total), *zip(losses, inputs.grad_losses, strict=True)]
    used = [(out, g.to(out.dtype)) for out, g in pairs if g is not None]
    found = torch.autograd.grad(
        [out for out, _ in used],
        list(leaves.values()),
        [g for _, g in used],
        allow_unused=True,
        retain_graph=retain_graph,
    )
    return {
        n: torch.zeros_like(leaf) if g is None else g
        for (n, leaf), g in zip(leaves.items(), found, strict=True)
    }


def values(total: Tensor, losses: list[Tensor]) -> Results:
    """By name, without a graph."""
    return {"total": total.detach(), **{f"losses[{i}]": x.detach() for i, x in enumerate(losses)}}


def run(case: LossCase, inputs: Inputs, dtype: torch.dtype | None = None, **how: Any) -> Results:
    """Results and gradients of the backend in force; with a dtype, of tensors cast to it first."""

    def leaf(t: Tensor) -> Tensor:
        return t.detach() if dtype is None else t.detach().to(dtype)

    inputs = with_gradients(inputs, case.wanted(), leaf)
    total, losses = call(case, inputs, **how)
    return {**values(total, losses), **gradients(inputs, total, losses)}


# By the formulas


def closed_form(case: LossCase, inputs: Inputs, magnitude: bool = False) -> Results:
    """Results and gradients by their formulas in float64, derived by hand.

    With ``magnitude``, every term counts with its absolute value and every difference is a sum, and what exp
    and log make of a rounding of their argument is added: what a rounding of one unit anywhere in the formula
    can do to a value, in units of it.
    """
    value: Callable[[Tensor], Tensor] = torch.abs if magnitude else torch.Tensor.double
    zero = torch.zeros((), dtype=torch.float64)
    grad_total = zero if inputs.grad_total is None else value(inputs.grad_total.double())
    lambdas = torch.ones(case.count).double() if inputs.weights is None else inputs.weights.double()
    found: Results = {"total": zero}
    d_lambda, d_log_var = torch.zeros(case.count).double(), torch.zeros(case.count).double()
    for i, x in enumerate(inputs.outputs):
        target, weight = inputs.targets[i], inputs.task_weights[i]
        mask = None if inputs.masks is None else inputs.masks[i]
        there = case.present(i, mask, target)
        loss, divisor, z, slope, z_slope = _unit_losses(case, i, x, target, weight, there, magnitude)
        loss, z, divisor = (torch.where(there, t, 0.0) for t in (loss, z, divisor))
        count = there.sum()
        upstream = inputs.grad_losses[i]
        upstream = zero if upstream is None else value(upstream.double())
        reduction = case.reduction_of(i)
        if reduction == "none":
            found[f"losses[{i}]"] = loss + z
            scale, z_scale = upstream, upstream
        else:
            over, z_over = zero + 1, zero + 1
            if reduction == "mean":
                over = torch.where(divisor.sum() > 0, divisor.sum(), torch.inf)
                z_over = torch.where(count > 0, count, torch.inf)
            found[f"losses[{i}]"] = loss.sum() / over + z.sum() / z_over
            term, factor = found[f"losses[{i}]"], zero + 1
            if inputs.log_vars is not None:
                s = inputs.log_vars[i].double()
                factor = _tasks_scale(case, i) * torch.exp(-s)
                if magnitude:
                    factor = factor * (1 + s.abs())
                half = 0.5 * torch.ones((), dtype=torch.float64)
                part = factor * term
                if count:
                    d_log_var[i] = (
                        grad_total * value(lambdas[i]) * (half + part if magnitude else half - part)
                    )
                term = part + half * value(s)
            if count:
                found["total"] = found["total"] + value(lambdas[i]) * term
                d_lambda[i] = grad_total * term
            whole = grad_total * value(lambdas[i]) * factor + upstream
            scale, z_scale = whole / over, whole / z_over
        if case.by_row(i):
            there = there[..., None]
            scale, z_scale = (t[..., None] if t.dim() else t for t in (scale, z_scale))
        gradient = torch.where(there, scale * slope + z_scale * z_slope, 0.0)
        found[f"outputs[{i}]"] = gradient.movedim(-1, 1) if case.first_dim(i) else gradient
    found |= {"weights": d_lambda, "log_vars": d_log_var}
    leaves = case.wanted() & set(inputs.differentiable())
    return {n: t for n, t in found.items() if n in leaves or n == "total" or n.startswith("losses")}


def _tasks_scale(case: LossCase, i: int) -> float:
    return 0.5 if case.family(i) in ("mse", "l1", "smooth_l1", "huber") else 1.0


Units = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Of each unit the loss, its weight in the mean and the z loss; the slopes of loss and z loss by element."""


def _unit_losses(
    case: LossCase,
    i: int,
    x: Tensor,
    target: Tensor | None,
    weight: Tensor | None,
    there: Tensor,
    magnitude: bool,
) -> Units:
    family, options = case.family(i), case.options(i)
    x = x.double()
    if case.first_dim(i):
        x = x.movedim(1, -1)
        target = target.movedim(1, -1) if target is not None and case.soft(i) else target
    by_element = there[..., None] if case.by_row(i) else there
    x = torch.where(by_element, x, 0.0)
    one = torch.ones(case.unit_shape(i), dtype=torch.float64)
    none = torch.zeros_like(one)
    if family == "value":
        return (x.abs() if magnitude else x), one, none, one, none
    assert target is not None
    if family == "ce":
        return _cross_entropy(case, i, x, target, weight, there, magnitude)
    t = torch.where(by_element, target.double(), 0.0)

    def minus(a: Tensor, b: Tensor) -> Tensor:
        return a + b if magnitude else a - b

    no_z = torch.zeros_like(x)
    d = x - t  # one operation: good to half a unit of itself, however large x and t are
    a = d.abs()
    if family == "mse":
        return a * a, one, none, 2 * (a if magnitude else d), no_z
    if family == "l1" or options.get("beta") == 0:
        return a, one, none, a.sign() if magnitude else d.sign(), no_z
    if family in ("smooth_l1", "huber"):
        beta = options.get("beta", options.get("delta"))
        times = beta if family == "huber" else 1.0
        inside = a < beta
        loss = torch.where(inside, a * a / (2 * beta), minus(a, torch.full_like(a, beta / 2)))
        slope = torch.where(inside, (a if magnitude else d) / beta, (d.abs() if magnitude else d).sign())
        return times * loss, one, none, times * slope, no_z
    if family == "bce":
        pos = torch.ones((), dtype=torch.float64) if weight is None else weight.double()
        sigmoid = torch.sigmoid(x)
        soft = torch.log1p(torch.exp(-x.abs())) + (-x).clamp(min=0)
        if magnitude:
            sigmoid = sigmoid * (1 + (1 - sigmoid) * x.abs()) + _tiny(case)
            times = 1 + (pos - 1).abs() * t.abs()
            loss = (1 + t.abs()) * x.abs() + times * (soft + _tiny(case))
            return loss, one, none, times * sigmoid + pos * t, no_z
        times = 1 + (pos - 1) * t
        return (1 - t) * x + times * soft, one, none, sigmoid * times - pos * t, no_z
    if family == "kl":
        tau = options.get("temperature", 1.0)
        log_p, p = _softmax(case, x / tau, magnitude, tau != 1)
        log_q, q = _softmax(case, t / tau, magnitude, tau != 1)
        if magnitude:
            _, true_q = _softmax(case, t / tau, False, False)
            true_log_p, true_log_q = (a.log_softmax(-1).abs() for a in (x / tau, t / tau))
            loss = q * (true_log_p + true_log_q) + true_q * (log_p + log_q)
            return tau * tau * loss.sum(-1), one, none, tau * (p + q), no_z
        return tau * tau * (q * (log_q - log_p)).sum(-1), one, none, tau * (p - q), no_z
    assert family == "cosine"
    x_long, t_long = (a.square().sum(-1, keepdim=True).sqrt() for a in (x, t))
    x_length, t_length = x_long.clamp(min=1e-8), t_long.clamp(min=1e-8)
    product = (x * t).abs() if magnitude else x * t
    cosine = product.sum(-1, keepdim=True) / (x_length * t_length)
    along = torch.where(x_long > 1e-8, value_of(x, magnitude) * cosine / x_length.square(), 0.0)
    slope = minus(along, value_of(t, magnitude) / (x_length * t_length))
    return minus(one, cosine.squeeze(-1)), one, none, slope, no_z


def value_of(x: Tensor, magnitude: bool) -> Tensor:
    """Its size, or itself."""
    return x.abs() if magnitude else x


def _tiny(case: LossCase) -> float:
    """Below what the compute dtype can hold nothing is asked, and exp may give 0."""
    info = torch.finfo(case.compute_dtype())
    return info.tiny / info.eps


def _softmax(case: LossCase, x: Tensor, magnitude: bool, scaled: bool) -> tuple[Tensor, Tensor]:
    """Log softmax and softmax over the last dimension; ``scaled``: x is itself rounded."""
    log_p = x.log_softmax(-1)
    p = log_p.exp()
    if not magnitude:
        return log_p, p
    top = x.amax(-1, keepdim=True)
    below = top - x
    argument = 1 + below + (x.abs() + top.abs() if scaled else 0.0)
    if case.compute_dtype() == torch.float64:
        # Scalars of a row are double whatever its dtype, so that only float64 sees that a logit is taken from
        # the log of the sum, which is as large as the largest logit.
        argument = argument + top.abs()
    log_sum = (-below).exp().sum(-1, keepdim=True).log()
    of_sum = (p * argument).sum(-1, keepdim=True)  # its relative error, and that of its log absolutely
    return argument - 1 + log_sum + of_sum, p * (argument + of_sum) + _tiny(case)


def _cross_entropy(
    case: LossCase,
    i: int,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    there: Tensor,
    magnitude: bool,
) -> Units:
    options, classes = case.options(i), case.extent(i)
    w = torch.ones(classes, dtype=torch.float64) if weight is None else weight.double()
    smoothing, zeta = options.get("label_smoothing", 0.0), options.get("z_loss", 0.0)
    gamma = options.get("focal_gamma", 0.0)
    log_p, p = _softmax(case, x, magnitude, False)
    true_log_p, true_p = _softmax(case, x, False, False)
    nll = log_p if magnitude else -log_p
    if case.soft(i):
        q = torch.where(there[..., None], target.double(), 0.0)
        divisor = torch.ones(case.unit_shape(i), dtype=torch.float64)
    else:
        label = torch.where(there, target.long(), 0)
        q = torch.nn.functional.one_hot(label, classes).double()
        divisor = w[label]
    q = w * ((1 - smoothing) * q + smoothing / classes)
    loss = (q * nll).sum(-1)
    mass = q.sum(-1, keepdim=True)
    slope = p * mass + q if magnitude else p * mass - q
    if gamma:
        # -(1 - p)^gamma ln p, slope (delta - p) [gamma (1 - p)^(gamma - 1) p ln p - (1 - p)^gamma]
        delta = (q != 0).double()
        log_y = (true_log_p * delta).sum(-1)
        rest = -torch.expm1(log_y)
        power = rest**gamma
        inner = gamma * torch.where(rest > 0, rest ** (gamma - 1), 0.0) * log_y.exp() * log_y
        if magnitude:
            eps = torch.finfo(case.compute_dtype()).eps
            grows = 1 + gamma * log_y.exp() * (nll * delta).sum(-1) / rest.clamp(min=eps)
            loss = loss * power * grows
            slope = mass * (delta + p) * ((power + inner.abs()) * grows)[..., None]
        else:
            loss = loss * power
            slope = mass * (delta - p) * (inner - power)[..., None]
    lse = x.logsumexp(-1)
    z, z_slope = zeta * lse.square(), 2 * zeta * lse[..., None] * true_p
    if magnitude:
        top = x.amax(-1)
        of_lse = top.abs() + (true_p * (1 + top[..., None] - x)).sum(-1) + (lse - top)
        # ... the z loss alone takes the size of the logits, and may take exp(x - lse) for p
        z, z_slope = zeta * of_lse.square(), 2 * zeta * (of_lse * (1 + lse.abs()))[..., None] * p
    return loss, divisor, z, slope, z_slope


def terms(case: LossCase, name: str) -> int:
    """How many products are summed in one value, those of the softmax and of the mean's divisor included."""
    sizes = [math.prod(case.rows_shape(i)) for i in range(case.count)]
    if name.startswith("losses"):
        i = int(name[7:-1])
        return case.extent(i) if case.reduction_of(i) == "none" else max(1, sizes[i])
    if name.startswith("outputs"):
        i = int(name[8:-1])
        return case.extent(i) + math.prod(case.unit_shape(i))
    return max(1, sum(sizes))


# The checks


@functools.cache
def expected(case: LossCase) -> Expected:
    """The oracle's results, torch's in the dtype that the op computes in, and the magnitudes."""
    inputs, compute = case.inputs(), case.compute_dtype()
    with mmcore.backend("reference"):
        oracle = run(case, inputs, torch.float64)
        natural = oracle if compute == torch.float64 else run(case, inputs, compute)
    return oracle, natural, closed_form(case, inputs, magnitude=True)


def check_case(case: LossCase, inputs: Inputs | None = None, known: Expected | None = None) -> None:
    """Assert that the backend in force gives what the oracle gives, and all that the op promises about it."""
    inputs = case.inputs() if inputs is None else inputs
    before = [bits(t) for t in inputs.tensors()]
    with_grad = with_gradients(inputs, case.wanted())
    leaves = {n: t for n, t in with_grad.differentiable().items() if t.requires_grad}
    compute = case.compute_dtype()

    dirty([((), compute), ((case.count,), compute), *((t.shape, t.dtype) for t in leaves.values())])
    total, losses = call(case, with_grad)
    assert total.shape == ()
    assert total.requires_grad
    for i, loss in enumerate(losses):
        assert loss.shape == (case.unit_shape(i) if case.reduction_of(i) == "none" else ())
        assert loss.dtype == compute
    found = values(total, losses)
    found |= gradients(with_grad, total, losses, retain_graph=True)
    for name, leaf in leaves.items():
        assert found[name].shape == leaf.shape, name
        assert found[name].dtype == leaf.dtype, name

    # the same graph again, then calls with other numbers of threads, then those that record nothing
    again = gradients(with_grad, total, losses)
    _assert_same({n: found[n] for n in leaves}, again, "backward twice")
    threads = mmcore.get_num_threads()
    try:
        # Small calls are one thread's whatever is allowed: one more run will do.
        for number in (1, 2, 3) if sum(x.numel() for x in inputs.outputs) >= 1 << 12 else (2,):
            mmcore.set_num_threads(number)
            _assert_same(found, run(case, inputs), f"{number} threads")
    finally:
        mmcore.set_num_threads(threads)
    with torch.no_grad():
        plain = values(*call(case, with_grad))
    assert not any(t.requires_grad for t in plain.values())
    _assert_same(plain, {n: found[n] for n in plain}, "no_grad")
    _check_value_and_grad(case, inputs, plain, found)
    for t, b in zip(inputs.tensors(), before, strict=True):
        assert torch.equal(bits(t), b), "an input was modified"
    if case.upstream == "one" and "outputs[0]" in case.wanted():
        _check_inplace(case, inputs, found)

    oracle, natural, magnitude = known or expected(case)
    assert found.keys() == oracle.keys()
    for name, value in found.items():
        assert_losses_close(name, value, oracle[name], natural[name], magnitude[name], terms(case, name))


def _check_value_and_grad(case: LossCase, inputs: Inputs, plain: Results, found: Results) -> None:
    """The same values, and where the upstream gradient is 1 the same gradients."""
    total, losses, grads = mmcore.multi_task_value_and_grad(
        inputs.outputs,
        inputs.targets,
        case.tasks(inputs),
        weights=inputs.weights,
        log_vars=inputs.log_vars,
        masks=inputs.masks,
    )
    _assert_same(plain, values(total, list(losses)), "value_and_grad")
    assert (grads.weights is None, grads.log_vars is None) == (
        inputs.weights is None,
        inputs.log_vars is None,
    )
    named = {"weights": grads.weights, "log_vars": grads.log_vars}
    named |= {f"outputs[{i}]": g for i, g in enumerate(grads.outputs)}
    for name, leaf in inputs.differentiable().items():
        g = named[name]
        assert g is not None
        assert (g.shape, g.dtype, g.requires_grad) == (leaf.shape, leaf.dtype, False), name
        if case.upstream == "one" and name in found:
            _assert_same({name: found[name]}, {name: g}, "value_and_grad")


def _check_inplace(case: LossCase, inputs: Inputs, found: Results) -> None:
    """The same bits where gradients overwrite the outputs, which are none of the caller's here."""
    dense = inputs._replace(outputs=[x.contiguous() for x in inputs.outputs])
    if any(not x.is_contiguous() for x in inputs.outputs):
        found = run(case, dense)
    leaves = with_gradients(dense, case.wanted())
    made = [x.clone() for x in leaves.outputs]
    addresses = [x.data_ptr() for x in made]
    total, losses = call(case, leaves._replace(outputs=made), inplace_gradient=True)
    _assert_same({n: found[n] for n in values(total, losses)}, values(total, losses), "in place")
    wanted = [x for x in made if x.requires_grad]
    grads = torch.autograd.grad(total, wanted, allow_unused=True)
    of = {id(x): g for x, g in zip(wanted, grads, strict=True)}
    for i, x in enumerate(made):
        g = of.get(id(x))
        if g is not None:
            _assert_same({"": found[f"outputs[{i}]"]}, {"": g}, f"in place: outputs[{i}]")
            if case.reduction_of(i) != "none" and x.numel():
                assert g.data_ptr() == addresses[i], f"in place: outputs[{i}] has a gradient elsewhere"


def _assert_same(a: Results, b: Results, what: str) -> None:
    """Bit by bit but for the sign of 0: a gradient that nothing asked for is 0, one scaled by 0 may be -0."""
    assert a.keys() == b.keys(), what
    for name in a:
        assert torch.equal(a[name], b[name]), f"{what}: {name} has other bits"  # a NaN has


def main(path: str | None = None) -> int:
    """Run the table between guards; print each failure; the exit status is 1 if there was one.

    ``path`` is of a file of what :func:`expected` gives for each case's id; none: it is worked out here.
    """
    from frames_harness import Guard

    faulthandler.enable()
    print("isa:", mmcore.build_info()["isa"], flush=True)
    known: dict[str, Expected] = torch.load(path) if path else {}
    failures = 0
    for i, case in enumerate(LOSS_CASES):
        print("case:", case.id, file=sys.stderr, flush=True)  # the last one printed is the one that crashed
        guard = Guard()  # of one case: each map takes three of the process's places for maps

        def place(t: Tensor, guard: Guard = guard, at_end: bool = i % 3 != 0) -> Tensor:
            if not t.numel():
                return t
            view = guard.tensor(t.shape, t.stride(), t.dtype, at_end)
            written: tuple[Any, ...] = tuple(slice(0, 1) if s == 0 else slice(None) for s in t.stride())
            view[written] = t[written]  # torch refuses to write to a tensor that overlaps itself
            return view

        try:
            inputs = case.inputs().map(place)
            with mmcore.backend("cpu"):
                check_case(case, inputs, known.get(case.id))
                forced = run(case, inputs)
            _assert_same(forced, run(case, inputs), "straight to the core")
        except (AssertionError, RuntimeError, TypeError, ValueError, IndexError) as error:
            failures += 1
            print(f"FAILED {case.id}: {type(error).__name__}: {error}", flush=True)
    print(f"{len(LOSS_CASES)} cases, {failures} failures", flush=True)
    return failures > 0


if __name__ == "__main__":
    with single_torch_thread():
        sys.exit(main(*sys.argv[1:]))
