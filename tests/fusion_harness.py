"""Run the fusion op's table: in this process, or as a program that ends every tensor where memory ends.

``python fusion_harness.py [EXPECTED]`` runs the whole table on the cpu backend under whatever ``MMCORE_ISA``
says. Operands and results lie against pages that no one may touch: one byte too many ends the program.
"""

from __future__ import annotations

import faulthandler
import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from fusion_cases import FUSION_CASES, FusionCase, Inputs, time_matrix
from tolerances import assert_fusion_close
from torch import Tensor

import mmcore

Results = dict[str, Tensor]
"""The result, named "result", and gradients by the names of their tensors."""


def fuse(case: FusionCase, inputs: Inputs) -> Tensor:
    """Call the op on the backend in force."""
    features, weights, mask, norm_weight, norm_bias, probe, _ = inputs
    return mmcore.weighted_fusion(
        features,
        weights,
        mask=mask,
        norm_weight=norm_weight,
        norm_bias=norm_bias,
        probe=probe,
        **case.kwargs(),
    )


def with_gradients(
    inputs: Inputs, wanted: set[str], leaf: Callable[[Tensor], Tensor] = Tensor.detach
) -> Inputs:
    """The same call with leaves, of which those named require a gradient."""

    def of(name: str, t: Tensor | None) -> Tensor | None:
        return None if t is None else leaf(t).requires_grad_(name in wanted)

    features = [of(f"features[{m}]", x) for m, x in enumerate(inputs.features)]
    others = {n: of(n, getattr(inputs, n)) for n in ("weights", "norm_weight", "norm_bias", "probe")}
    return inputs._replace(features=features, **others)


def run(case: FusionCase, inputs: Inputs, dtype: torch.dtype | None = None) -> Results:
    """Result and gradients of the backend in force; with a dtype, of operands cast to it first."""

    def leaf(t: Tensor) -> Tensor:
        return t.detach() if dtype is None else t.detach().to(dtype)

    inputs = with_gradients(inputs, case.wanted(), leaf)
    out = fuse(case, inputs)
    wanted = {n: t for n, t in inputs.differentiable().items() if t.requires_grad}
    grads = torch.autograd.grad(out, list(wanted.values()), inputs.grad.to(out.dtype))
    return {"result": out.detach(), **dict(zip(wanted, grads, strict=True))}


def closed_form(case: FusionCase, inputs: Inputs, magnitude: bool = False) -> Results:
    """Result and gradients by their formulas in float64, derived by hand.

    With ``magnitude``, every term counts with its absolute value and every difference is a sum: what a
    rounding of one unit anywhere in the formula can do to a value, in units of it.
    """
    value: Callable[[Tensor], Tensor] = torch.abs if magnitude else torch.Tensor.double

    def minus(a: Tensor, b: Tensor) -> Tensor:
        return a + b if magnitude else a - b

    b, t, m, d, eps = case.batch, case.steps, case.count, case.depth, case.eps
    grad = value(inputs.grad.double().reshape(b, t, d))
    there = torch.ones(b, t, m, 1, dtype=torch.bool)
    if inputs.mask is not None:
        there = (inputs.mask[:, None] if inputs.mask.dim() == 2 else inputs.mask).expand(b, t, m)[..., None]
    given = torch.ones(m) if inputs.weights is None else inputs.weights
    if case.flat and given.dim() == 3:
        given = given[:, None]
    shape = {1: (1, 1, m, 1), 2: (b, 1, m, 1), 3: (b, t, m, 1), 4: (b, t, m, d)}[given.dim()]
    gates = torch.where(there, given.double().reshape(shape), 0.0)
    if case.mode == "sum":
        w = value(gates)
    elif case.mode == "softmax":
        logits = torch.where(there, given.double().reshape(shape), -torch.inf)
        below = (logits - logits.amax(2, keepdim=True)).nan_to_num(nan=-torch.inf)
        exps = below.exp()
        total = exps.sum(2, keepdim=True)
        w = exps / torch.where(total == 0, 1.0, total)
        if magnitude:  # an error of a logit is one of exp's argument; below float32's range nothing is asked
            tiny = torch.finfo(torch.float32).tiny / torch.finfo(torch.float32).eps
            w = torch.where(there, w * (1 - below.clamp(min=-1e5)) + tiny, 0.0)
    else:
        total = gates.sum(2, keepdim=True)
        total = torch.where(there.any(2, keepdim=True), total, 1.0)
        w = gates / total  # positive gates: nothing cancels

    found: Results = {"result": torch.zeros(b, t, d, dtype=torch.float64)}
    parts = []
    norm_weight, norm_bias = (
        None if p is None else value(p.double().expand(m, d)) for p in (inputs.norm_weight, inputs.norm_bias)
    )
    d_scale, d_shift = [], []
    for i, feature in enumerate(inputs.features):
        matrix = time_matrix(case.alignments[i], t, case.lengths[i])
        k = there[:, :, i]
        read = (k & (matrix != 0)).any(1)[..., None]
        x = torch.where(read, feature.double().reshape(b, case.lengths[i], d), 0.0)
        square = x.square().sum(-1, keepdim=True)
        if case.norm == "layer_norm":
            mean = value(x).mean(-1, keepdim=True)
            r = ((x - x.mean(-1, keepdim=True)).square().mean(-1, keepdim=True) + eps).rsqrt()
            normed = minus(value(x), mean) * r
        elif case.norm == "rms_norm":
            r = (square / d + eps).rsqrt()
            normed = value(x) * r
        elif case.norm == "l2":
            r = 1 / square.sqrt().clamp(min=eps)
            normed = value(x) * r
        else:
            r, normed = torch.ones(()), value(x)
        scaled = normed if norm_weight is None else normed * norm_weight[i]
        shifted = scaled if norm_bias is None else scaled + norm_bias[i]
        a = torch.where(k, matrix @ shifted, 0.0)
        found["result"] += w[:, :, i] * a
        part = grad * a if w.shape[3] == d and given.dim() == 4 else (grad * a).sum(-1, keepdim=True)
        parts.append(part)

        n = matrix.T @ (w[:, :, i] * grad)
        d_shift.append(n.sum((0, 1)))
        d_scale.append((n * normed).sum((0, 1)))
        u = n if norm_weight is None else n * norm_weight[i]
        if case.norm == "layer_norm":
            inner = (u * normed).mean(-1, keepdim=True)
            dx = minus(minus(u, u.mean(-1, keepdim=True)), normed * inner) * r
        elif case.norm == "rms_norm":
            dx = minus(u, normed * (u * normed).mean(-1, keepdim=True)) * r
        elif case.norm == "l2":
            tangent = minus(u, normed * (u * normed).sum(-1, keepdim=True)) * r
            dx = torch.where(square >= eps * eps, tangent, u / eps)
        else:
            dx = u
        found[f"features[{i}]"] = torch.where(read, dx, 0.0).reshape(feature.shape)

    p = torch.stack(parts, 2)
    mixed = (w * p).sum(2, keepdim=True)
    if case.mode == "sum":
        d_gates = torch.where(there, p, 0.0)
    elif case.mode == "softmax":
        d_gates = w * minus(p, mixed)
    else:
        d_gates = torch.where(there, minus(p, mixed), 0.0) / total
    if inputs.weights is not None:
        found["weights"] = d_gates.sum_to_size(shape).reshape(inputs.weights.shape)
    if inputs.probe is not None:
        found["probe"] = (w * p).sum((1, 3))
    for name, per_modality, parameter in (
        ("norm_weight", d_scale, inputs.norm_weight),
        ("norm_bias", d_shift, inputs.norm_bias),
    ):
        if parameter is not None:
            total_of = torch.stack(per_modality)
            found[name] = total_of if parameter.dim() == 2 else total_of.sum(0)
    found["result"] = found["result"].reshape(inputs.grad.shape)
    return {n: v for n, v in found.items() if n == "result" or n in case.wanted()}


def terms(case: FusionCase, name: str) -> int:
    """How many products are summed in one value, those of the norm's statistics included."""
    b, t, m, d = case.batch, case.steps, case.count, case.depth
    longest = max(case.lengths)
    spread = max(1, longest // max(t, 1)) if "mean" in case.alignments else 2
    back = max(1, t // max(1, min(case.lengths))) * 2 + spread
    norm = d if case.norm is not None else 1
    if name == "result":
        return norm + m * spread
    if name == "weights":
        inner = 1 if case.weights == "BTMD" else d
        return inner * {"M": b * t, "BM": t}.get(case.weights, 1) + norm
    if name == "probe":
        return t * d + norm
    if name in ("norm_weight", "norm_bias"):
        return b * max(t, longest) * (m if case.affine == "shared" else 1) + norm
    return norm + back


def bits(t: Tensor) -> Tensor:
    """The values as integers, so that NaN equals itself and 0 does not equal -0."""
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()]
    return t.detach().contiguous().view(kind).clone()


def dirty(shapes: list[tuple[torch.Size, torch.dtype]]) -> None:
    """Leave NaN in the memory that results of these shapes will be given."""
    kept = []
    for shape, dtype in shapes:
        kept.append(torch.full(tuple(shape), torch.nan, dtype=dtype))
        if dtype != torch.float64:
            kept.append(mmcore.empty_output(tuple(shape), dtype).fill_(torch.nan))


Expected = tuple[Results, Results, Results]


@functools.cache
def expected(case: FusionCase) -> Expected:
    """The oracle's results, torch's in the dtype that the op computes in, and the magnitudes."""
    inputs, compute = case.inputs(), case.compute_dtype()
    with mmcore.backend("reference"):
        oracle = run(case, inputs, torch.float64)
        natural = oracle if compute == torch.float64 else run(case, inputs, compute)
    return oracle, natural, closed_form(case, inputs, magnitude=True)


def check_case(case: FusionCase, inputs: Inputs | None = None, known: Expected | None = None) -> None:
    """Assert that the backend in force gives what the oracle gives, and all that the op promises about it."""
    inputs = case.inputs() if inputs is None else inputs
    tensors: list[Tensor] = [t for t in (*inputs.features, *inputs[1:]) if t is not None]
    before = [bits(t) for t in tensors]
    wanted = case.wanted() & set(inputs.differentiable())
    with_grad = with_gradients(inputs, wanted)
    leaves = with_grad.differentiable()

    dirty([(inputs.grad.shape, case.result_dtype()), *((t.shape, t.dtype) for t in leaves.values())])
    out = fuse(case, with_grad)
    assert out.shape == inputs.grad.shape
    assert out.dtype == case.result_dtype()
    assert out.is_contiguous()
    assert out.requires_grad
    out.backward(inputs.grad, retain_graph=True)
    found: Results = {"result": out.detach()}
    for name, leaf in leaves.items():
        assert (leaf.grad is not None) == (name in wanted), name
        if leaf.grad is not None:
            assert leaf.grad.shape == leaf.shape, name
            assert leaf.grad.dtype == leaf.dtype, name
            found[name] = leaf.grad.clone()

    # the same graph again, then calls with other numbers of threads, then one that wants no gradient
    again = torch.autograd.grad(out, [leaves[n] for n in found if n != "result"], inputs.grad)
    _assert_same(
        found, {"result": out.detach(), **dict(zip(list(found)[1:], again, strict=True))}, "backward twice"
    )
    threads = mmcore.get_num_threads()
    try:
        for number in (1, 2, 3):
            mmcore.set_num_threads(number)
            _assert_same(found, run(case, inputs), f"{number} threads")
    finally:
        mmcore.set_num_threads(threads)
    with torch.no_grad():
        plain = fuse(case, with_grad)
    assert not plain.requires_grad
    _assert_same({"result": found["result"]}, {"result": plain}, "no_grad")
    for t, b in zip(tensors, before, strict=True):
        assert torch.equal(bits(t), b), "an input was modified"

    oracle, natural, magnitude = known or expected(case)
    for name, value in found.items():
        # a gradient for (D,) parameters is rounded for each modality before it is summed over them
        casts = 2 if case.affine == "shared" and name.startswith("norm_") else 1
        assert_fusion_close(
            name, value, oracle[name], natural[name], magnitude[name], terms(case, name), casts
        )


def _assert_same(a: Results, b: Results, what: str) -> None:
    for name in a:
        assert torch.equal(bits(a[name]), bits(b[name])), f"{what}: {name} has other bits"


class _Placed:
    """Torch, as the cpu backend sees it, with guards about what it allocates for results."""

    def __init__(self, place: Callable[[Tensor], Tensor]) -> None:
        self._place = place

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return self._place(torch.full(shape, torch.nan, dtype=dtype))


def main(path: str | None = None) -> int:
    """Run the table between guards; print each failure; the exit status is 1 if there was one.

    ``path`` is of a file of what :func:`expected` gives for each case's id; none: it is worked out here.
    """
    from frames_harness import Guard

    from mmcore.backends.cpu import fusion

    faulthandler.enable()
    print("isa:", mmcore.build_info()["isa"], flush=True)
    known: dict[str, Expected] = torch.load(path) if path else {}
    failures = 0
    for i, case in enumerate(FUSION_CASES):
        print("case:", case.id, file=sys.stderr, flush=True)  # the last one printed is the one that crashed
        guard = Guard()  # of one case: each map takes three of the process's places for maps

        def place(t: Tensor, guard: Guard = guard, at_end: bool = i % 3 != 0) -> Tensor:
            if not t.numel():
                return t
            view = guard.tensor(t.shape, t.stride(), t.dtype, at_end)
            written: tuple[Any, ...] = tuple(slice(0, 1) if s == 0 else slice(None) for s in t.stride())
            view[written] = t[written]  # torch refuses to write to a tensor that overlaps itself
            return view

        placed = _Placed(place)
        fusion.torch = placed  # type: ignore[attr-defined]
        fusion.empty = placed.empty
        try:
            with mmcore.backend("cpu"):
                check_case(case, case.inputs().map(place), known.get(case.id))
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            failures += 1
            print(f"FAILED {case.id}: {type(error).__name__}: {error}", flush=True)
    print(f"{len(FUSION_CASES)} cases, {failures} failures", flush=True)
    return failures > 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
