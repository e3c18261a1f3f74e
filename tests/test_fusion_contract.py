"""What weighted_fusion promises beside its numbers: refusals, routing, autograd, torch.func, threads."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from fusion_cases import FUSION_CASES, FusionCase
from fusion_harness import bits, closed_form, fuse, run
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.utils.data import DataLoader, Dataset

import mmcore
from mmcore.ops import fusion as fusion_op

BACKENDS = ("reference", "cpu")
B, T, M, D = 2, 3, 3, 5


def features(dtype: torch.dtype = torch.float32, seed: int = 0, steps: int = T) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(B, steps, D, generator=g).to(dtype) for _ in range(M)]


def flat() -> list[Tensor]:
    return [x[:, 0] for x in features()]


def randn(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# refusals


def replaced(index: int, x: Any) -> list[Any]:
    xs: list[Any] = features()
    xs[index] = x
    return xs


META = torch.zeros(B, T, D, device="meta")
TRUE = torch.ones(B, M, dtype=torch.bool)

XS, FLAT = features(), flat()
Refused = dict[str, tuple[Any, dict[str, Any], str]]

WRONG_TYPES: Refused = {
    "stacked": (randn(M, B, T, D), {}, r"features: .*sequence.*float32 tensor of shape \(3, 2, 3, 5\)"),
    "iterator": (iter([]), {}, r"features: .*sequence.*got"),
    "none": (None, {}, r"features: .*sequence.*got NoneType"),
    "first-not-a-tensor": ([[1.0]], {}, r"features\[0\]: expected a tensor, got list"),
    "not-a-tensor": (replaced(2, "x"), {}, r"features\[2\]: expected a tensor, got str"),
    "integers": (replaced(0, randn(B, T, D).int()), {},
                 r"features\[0\]: expected .*float32.*got torch.int32"),
    "complex": (replaced(1, randn(B, T, D).cfloat()), {}, r"features\[1\]: expected .*got torch.complex64"),
    "float8": (replaced(1, randn(B, T, D).to(torch.float8_e4m3fn)), {}, r"features\[1\]: .*got torch.float8"),
    "align-number": (XS, {"align": 2}, r"align: expected .*got 2"),
    "weights-list": (XS, {"weights": [1.0] * M}, r"weights: expected a tensor, got list"),
    "weights-int": (XS, {"weights": torch.ones(M, dtype=torch.int64)},
                    r"weights: expected .*float32.*got torch.int64"),
    "weights-bool": (XS, {"weights": TRUE}, r"weights: expected .*got torch.bool"),
    "mask-list": (XS, {"mask": [True] * M}, r"mask: expected a tensor, got list"),
    "mask-float": (XS, {"mask": torch.ones(B, M)}, r"mask: expected a bool tensor.*got torch.float32"),
    "mask-uint8": (XS, {"mask": TRUE.byte()}, r"mask: expected a bool tensor.*got torch.uint8"),
    "norm-weight-list": (XS, {"norm_weight": [1.0] * D}, r"norm_weight: expected a tensor, got list"),
    "norm-weight-int": (XS, {"norm_weight": torch.ones(D, dtype=torch.int32)},
                        r"norm_weight: expected .*got torch.int32"),
    "norm-bias-dtype": (XS, {"norm_bias": TRUE}, r"norm_bias: expected .*got torch.bool"),
    "probe-number": (XS, {"probe": 0.0}, r"probe: expected a tensor, got float"),
}  # fmt: skip

WRONG_VALUES: Refused = {
    "no-modality": ([], {}, r"features: expected 1 to 16 modalities, got 0"),
    "17-modalities": ([randn(1, 1, 1)] * 17, {}, r"features: expected 1 to 16 modalities, got 17"),
    "one-dim": ([randn(5)], {}, r"features\[0\]: expected shape \(B, T, D\) or \(B, D\), got \(5,\)"),
    "four-dims": ([randn(1, 1, 1, 1)], {}, r"features\[0\]: expected shape .*got \(1, 1, 1, 1\)"),
    "other-batch": (replaced(1, randn(3, T, D)), {},
                    r"features\[1\]: expected shape \(2, T, 5\).*got \(3, 3, 5\)"),
    "other-depth": (replaced(2, randn(B, T, 6)), {}, r"features\[2\]: expected .*got \(2, 3, 6\)"),
    "other-dims": (replaced(1, randn(B, D)), {}, r"features\[1\]: expected .*got \(2, 5\)"),
    "flat-other-batch": ([randn(2, 5), randn(3, 5)], {},
                         r"features\[1\]: expected shape \(2, 5\).*got \(3, 5\)"),
    "other-device": (replaced(2, META), {}, r"features\[2\]: expected a tensor on cpu.*got meta"),
    "mode": (XS, {"mode": "mean"}, r"mode: expected one of sum, softmax, normalized, got 'mean'"),
    "mode-none": (XS, {"mode": None}, r"mode: expected one of .*got None"),
    "norm": (XS, {"norm": "batch_norm"}, r"norm: expected one of layer_norm.*got 'batch_norm'"),
    "eps-negative": (XS, {"eps": -1e-5}, r"eps: expected a number of 0 or more, got -1e-05"),
    "eps-nan": (XS, {"eps": float("nan")}, r"eps: expected .*got nan"),
    "eps-inf": (XS, {"eps": float("inf")}, r"eps: expected .*got inf"),
    "eps-str": (XS, {"eps": "1e-5"}, r"eps: expected .*got '1e-5'"),
    "align": (XS, {"align": "cubic"}, r"align: expected one of nearest.*got 'cubic'"),
    "align-one": (XS, {"align": [None, "area", None]}, r"align: expected one of .*got 'area'"),
    "align-two": (XS, {"align": ["mean", None]}, r"align: expected .*each of 3 modalities, got 2"),
    "not-aligned": (replaced(1, randn(B, 4, D)), {},
                    r"features\[1\]: has 4 steps where the result has 3; align= .*nearest"),
    "not-aligned-one": (replaced(1, randn(B, 4, D)), {"align": ["mean", None, "mean"]},
                        r"features\[1\]: has 4 steps where the result has 3"),
    "length-not-aligned": (XS, {"length": 4}, r"features\[0\]: has 3 steps .* has 4"),
    "nothing-to-align": (replaced(1, randn(B, 0, D)), {"align": "mean"}, r"features\[1\]: has no steps"),
    "length-negative": (XS, {"length": -1, "align": "mean"}, r"length: expected an int.*got -1"),
    "length-float": (XS, {"length": 3.0, "align": "mean"}, r"length: expected an int.*got 3.0"),
    "length-flat": (FLAT, {"length": 2}, r"length: .*one step, got 2"),
    "weights-scalar": (XS, {"weights": torch.tensor(1.0)}, r"weights: 3 modalities need .*got \(\)"),
    "weights-count": (XS, {"weights": randn(M + 1)},
        r"weights: 3 modalities need shape \(3,\) or \(2, 3\) or \(2, 3, 3\) or \(2, 3, 3, 5\), got \(4,\)"),
    "weights-batch": (XS, {"weights": randn(B + 1, M)}, r"weights: .*got \(3, 3\)"),
    "weights-ones": (XS, {"weights": randn(1, M)}, r"weights: .*got \(1, 3\)"),
    "weights-steps": (XS, {"weights": randn(B, T + 1, M)}, r"features\[0\]: has 3 steps .* has 4"),
    "weights-length": (XS, {"weights": randn(B, T, M), "length": 4, "align": "mean"},
                       r"weights: .*\(2, 4, 3\).*got \(2, 3, 3\)"),
    "weights-depth": (XS, {"weights": randn(B, T, M, 1)}, r"weights: .*got \(2, 3, 3, 1\)"),
    "weights-dims": (XS, {"weights": randn(1, B, T, M, D)}, r"weights: .*got \(1, 2, 3, 3, 5\)"),
    "weights-flat": (FLAT, {"weights": randn(B, T, M)}, r"weights: .*\(2, 3, 5\), got \(2, 3, 3\)"),
    "weights-flat-steps": (FLAT, {"weights": randn(B, 1, M, D)}, r"weights: .*got \(2, 1, 3, 5\)"),
    "weights-device": (XS, {"weights": torch.ones(M, device="meta")},
                       r"weights: expected a tensor on cpu.*got meta"),
    "mask-count": (XS, {"mask": TRUE[0]},
                   r"mask: 3 modalities need shape \(2, 3\) or \(2, 3, 3\), got \(3,\)"),
    "mask-batch": (XS, {"mask": TRUE[:1]}, r"mask: .*got \(1, 3\)"),
    "mask-transposed": (XS, {"mask": TRUE.mT}, r"mask: .*got \(3, 2\)"),
    "mask-steps": (XS, {"mask": TRUE[:, None].expand(B, 4, M)}, r"features\[0\]: has 3 steps"),
    "mask-and-weights": (XS, {"mask": TRUE[:, None].expand(B, 4, M), "weights": randn(B, T, M)},
                         r"mask: .*\(2, 3, 3\), got \(2, 4, 3\)"),
    "mask-flat": (FLAT, {"mask": TRUE[:, None]}, r"mask: .*\(2, 3\), got \(2, 1, 3\)"),
    "mask-device": (XS, {"mask": TRUE.to("meta")}, r"mask: expected a tensor on cpu.*got meta"),
    "norm-weight-shape": (XS, {"norm_weight": randn(M)},
                          r"norm_weight: expected shape \(3, 5\) or \(5,\), got \(3,\)"),
    "norm-weight-device": (XS, {"norm_weight": torch.ones(D, device="meta")},
                           r"norm_weight: expected a tensor on cpu.*got meta"),
    "norm-bias-shape": (XS, {"norm_bias": randn(D, M)}, r"norm_bias: expected .*got \(5, 3\)"),
    "probe-shape": (XS, {"probe": randn(M, B)},
                    r"probe: expected .*shape \(2, 3\), got a float32 tensor of shape \(3, 2\)"),
    "probe-dtype": (XS, {"probe": randn(B, M).half()}, r"probe: expected a float32 or float64.*float16"),
    "probe-device": (XS, {"probe": torch.zeros(B, M, device="meta")}, r"probe: .*cpu.*got meta"),
}  # fmt: skip


@pytest.mark.parametrize("name", [*WRONG_TYPES, *WRONG_VALUES])
def test_wrong_arguments_are_refused_before_anything_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(name: str) -> None:
        pytest.fail("a backend was asked for")

    monkeypatch.setattr(fusion_op, "load_backend", touched)
    error = TypeError if name in WRONG_TYPES else ValueError
    xs, kwargs, message = {**WRONG_TYPES, **WRONG_VALUES}[name]
    with pytest.raises(error, match=f"^{message}"):
        mmcore.weighted_fusion(xs, **kwargs)


def test_options_have_names() -> None:
    with pytest.raises(TypeError, match="positional"):
        mmcore.weighted_fusion(features(), randn(M), "softmax")  # type: ignore[misc]
    with pytest.raises(TypeError, match="temperature"):
        mmcore.weighted_fusion(features(), temperature=1.0)  # type: ignore[call-arg]


def test_steps_are_found_where_they_are() -> None:
    """Those of the weights, else of the mask, else of the first feature; a tuple of features will do."""
    xs = (randn(B, 7, D), randn(B, 4, D))
    steps = torch.ones(B, 5, 2, dtype=torch.bool)
    assert mmcore.weighted_fusion(xs, align="mean").shape == (B, 7, D)
    assert mmcore.weighted_fusion(xs, align=[None, "mean"]).shape == (B, 7, D)
    assert mmcore.weighted_fusion(xs, align="mean", mask=steps).shape == (B, 5, D)
    assert mmcore.weighted_fusion(xs, randn(B, 6, 2), align="mean").shape == (B, 6, D)
    assert mmcore.weighted_fusion(xs, randn(B, 6, 2, D), align="mean", mask=steps[:, 0]).shape == (B, 6, D)
    assert mmcore.weighted_fusion(xs, align="mean", length=2).shape == (B, 2, D)
    assert mmcore.weighted_fusion(flat(), length=1).shape == (B, D)


# routing


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the backends whose forward and backward have run."""
    from mmcore.backends import load_backend

    names: list[str] = []
    for backend in BACKENDS:
        module = load_backend(backend)
        for function in ("weighted_fusion", "weighted_fusion_backward"):
            original = getattr(module, function)

            def record(*args: Any, of: Callable[..., Any] = original, by: str = backend) -> Any:
                names.append(by)
                return of(*args)

            monkeypatch.setattr(module, function, record)
    # The usual calls reach the core without the cpu backend's conversions; None sends a call there.
    for function in ("fusion_forward", "fusion_backward"):
        original = getattr(fusion_op._core, function)

        def record_core(*args: Any, of: Callable[..., Any] = original) -> Any:
            result = of(*args)
            if result is not None:
                names.append("cpu")
            return result

        monkeypatch.setattr(fusion_op._core, function, record_core)
    return names


def forward_and_backward(dtype: torch.dtype = torch.float64) -> None:
    x = randn(B, T, D).to(dtype).requires_grad_()
    out = mmcore.weighted_fusion([x, x])
    out.backward(torch.ones_like(out))


def test_tensors_on_the_cpu_run_on_the_cpu_backend(
    called: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MMCORE_BACKEND", raising=False)
    for dtype in (torch.float64, torch.float32):  # with conversions, and straight to the core
        called.clear()
        forward_and_backward(dtype)
        assert called == ["cpu", "cpu"]


def test_a_backend_can_be_forced(called: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with mmcore.backend("reference"):
        forward_and_backward()
    assert called == ["reference", "reference"]
    called.clear()
    monkeypatch.setenv("MMCORE_BACKEND", "reference")
    forward_and_backward()
    assert called == ["reference", "reference"]
    called.clear()
    with mmcore.backend("cpu"):
        forward_and_backward()
    assert called == ["cpu", "cpu"]


def test_a_gradient_runs_where_its_forward_did(called: list[str]) -> None:
    x = randn(B, T, D).requires_grad_()
    with mmcore.backend("reference"):
        out = mmcore.weighted_fusion([x, x])
    out.sum().backward()
    assert called == ["reference", "reference"]


def test_a_backend_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMCORE_BACKEND", "gpu")
    with pytest.raises(ValueError, match=r"MMCORE_BACKEND: expected one of .*got 'gpu'"):
        mmcore.weighted_fusion(features())


def test_tensors_without_memory_have_shape_and_dtype() -> None:
    xs = [torch.empty(B, t, D, dtype=d, device="meta") for t, d in ((7, torch.float16), (2, torch.bfloat16))]
    weights = torch.empty(B, 4, 2, device="meta", requires_grad=True)
    out = mmcore.weighted_fusion(xs, weights, mode="softmax", align="linear", norm="layer_norm")
    assert (out.shape, out.dtype, out.device.type) == ((B, 4, D), torch.float32, "meta")
    out.sum().backward()
    assert weights.grad is not None
    assert weights.grad.shape == weights.shape


def test_fake_tensors_stay_fake() -> None:
    with FakeTensorMode():
        xs = [torch.empty(B, T, D, dtype=torch.bfloat16, requires_grad=True) for _ in range(2)]
        out = mmcore.weighted_fusion(xs, torch.empty(B, T, 2), mode="softmax")
        assert (out.shape, out.dtype) == ((B, T, D), torch.bfloat16)
        out.sum().backward()
        assert xs[1].grad is not None
        assert (xs[1].grad.shape, xs[1].grad.dtype) == ((B, T, D), torch.bfloat16)
    assert isinstance(xs[1].grad, FakeTensor)


# autograd

CASE = FusionCase(
    "softmax", 3, (2, 3), 5, weights="BTM", mask="BTM", norm="layer_norm", affine="both", junk="finite"
)
OPTIONS: dict[str, Any] = {"mode": "softmax", "norm": "layer_norm"}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", [c for c in FUSION_CASES if c.needs == "all" and 0 not in c.shape][5::60],
                         ids=lambda c: c.id)  # fmt: skip
def test_second_gradients_are_the_references(case: FusionCase, backend: str) -> None:
    def twice() -> list[Tensor]:
        inputs = case.inputs()
        leaves = [t.detach().requires_grad_() for t in inputs.differentiable().values()]
        of = dict(zip(inputs.differentiable(), leaves, strict=True))
        grad = inputs.grad.detach().requires_grad_()
        xs = [of[f"features[{m}]"] for m in range(case.count)]
        others = {n: of.get(n) for n in ("weights", "norm_weight", "norm_bias", "probe")}
        out = fuse(case, inputs._replace(features=xs, **others))
        first = torch.autograd.grad(out, leaves, grad, create_graph=True)
        total = sum((g.double().square().sum() for g in first), torch.zeros((), dtype=torch.float64))
        second = torch.autograd.grad(total, [*leaves, grad], allow_unused=True)
        return [*first, *(torch.zeros(()) if g is None else g for g in second)]

    with mmcore.backend(backend):
        found = twice()
    with mmcore.backend("reference"):
        expected = twice()
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_penalty_on_gradients_can_be_trained(backend: str) -> None:
    xs = [x.double().requires_grad_() for x in features()]
    weights = randn(B, T, M, dtype=torch.float64).requires_grad_()

    def penalty(*tensors: Tensor) -> Tensor:
        out = mmcore.weighted_fusion(tensors[1:], tensors[0], **OPTIONS)
        grads = torch.autograd.grad(out.square().sum(), tensors, create_graph=True)
        return sum((g.square().sum() for g in grads), torch.zeros((), dtype=torch.float64))

    with mmcore.backend(backend):
        assert torch.autograd.gradcheck(penalty, (weights, *xs))


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_what_requires_a_gradient_gets_one(backend: str) -> None:
    with mmcore.backend(backend):
        frozen, trained = randn(B, T, D), randn(B, T, D, seed=2).requires_grad_()
        weights = randn(2)
        out = mmcore.weighted_fusion([frozen, trained], weights)
        out.sum().backward()
        assert frozen.grad is None
        assert weights.grad is None
        assert trained.grad is not None
        assert not mmcore.weighted_fusion([frozen], weights[:1]).requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_pass_through_and_add_up(backend: str) -> None:
    """Leaves, other nodes, one tensor as two modalities, gradients that are there already."""
    x = randn(B, T, D).requires_grad_()
    weights = randn(M).requires_grad_()
    x.grad, before = torch.ones_like(x), torch.ones_like(x)
    with mmcore.backend(backend):
        out = mmcore.weighted_fusion([x, 2 * x, x], torch.tanh(weights))
        out.backward(torch.ones_like(out))
    w = torch.tanh(weights.detach())
    torch.testing.assert_close(x.grad, before + (w[0] + 2 * w[1] + w[2]).expand(x.shape))
    torch.testing.assert_close(weights.grad, torch.tensor([1.0, 2.0, 1.0]) * x.detach().sum() * (1 - w * w))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_graph_is_freed_after_its_backward(backend: str) -> None:
    x = randn(B, T, D).requires_grad_()
    with mmcore.backend(backend):
        out = mmcore.weighted_fusion([x, x])
        out.sum().backward()
        with pytest.raises(RuntimeError, match="second time"):
            out.sum().backward()


@pytest.mark.parametrize("which", ["feature", "weights", "mask", "norm_weight"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_changes_between_forward_and_backward_are_noticed(backend: str, which: str) -> None:
    xs = [x.requires_grad_() for x in features()]
    tensors = {
        "feature": xs[1],
        "weights": randn(M).requires_grad_(),
        "mask": TRUE.clone(),
        "norm_weight": randn(D),
    }
    with mmcore.backend(backend):
        out = mmcore.weighted_fusion(
            xs, tensors["weights"], mask=tensors["mask"], norm_weight=tensors["norm_weight"], **OPTIONS
        )
        with torch.no_grad():
            tensors[which].zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_result_may_be_changed_in_place(backend: str) -> None:
    x = randn(B, T, D).requires_grad_()
    with mmcore.backend(backend):
        out = mmcore.weighted_fusion([x, x])
        out.mul_(3)
        out.sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 6.0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_gradients_the_numbers_are_the_same(backend: str) -> None:
    xs = [x.requires_grad_() for x in features()]
    with mmcore.backend(backend):
        recorded = mmcore.weighted_fusion(xs, **OPTIONS)
        with torch.no_grad():
            plain = mmcore.weighted_fusion(xs, **OPTIONS)
        with torch.inference_mode():
            inferred = mmcore.weighted_fusion(xs, **OPTIONS)
            of_inferred = mmcore.weighted_fusion([x * 1 for x in xs], **OPTIONS)
    assert recorded.requires_grad
    assert not plain.requires_grad
    assert inferred.is_inference()
    assert all(torch.equal(recorded, t) for t in (plain, inferred, of_inferred))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "dtypes", [(torch.float32,) * 3, (torch.bfloat16,) * 3, (torch.bfloat16, torch.float32) * 2]
)
def test_autocast_casts_nothing(dtypes: tuple[torch.dtype, ...], backend: str) -> None:
    def call() -> list[Tensor]:
        leaves = [x.to(d).requires_grad_() for x, d in zip(features(), dtypes, strict=False)]
        weights = randn(M).requires_grad_()
        out = mmcore.weighted_fusion(leaves, weights, **OPTIONS)
        out.float().square().sum().backward()
        return [out, *(leaf.grad for leaf in (*leaves, weights))]

    with mmcore.backend(backend):
        expected = call()
        with torch.autocast("cpu", torch.bfloat16):
            found = call()
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_parameters_and_subclasses_are_tensors(backend: str) -> None:
    class Labelled(torch.Tensor):
        pass

    xs = features()
    with mmcore.backend(backend):
        expected = mmcore.weighted_fusion(xs, randn(M), **OPTIONS)
        parameter = torch.nn.Parameter(randn(M))
        assert torch.equal(mmcore.weighted_fusion(xs, parameter, **OPTIONS), expected)
        labelled = [x.as_subclass(Labelled) for x in xs]
        out = mmcore.weighted_fusion(labelled, parameter, **OPTIONS)
        assert torch.equal(out.as_subclass(Tensor), expected)
        out.as_subclass(Tensor).sum().backward()
    assert parameter.grad is not None


def test_second_gradients_of_subclasses_say_what_to_do() -> None:
    class Labelled(torch.Tensor):
        pass

    x = randn(B, T, D).as_subclass(Labelled).requires_grad_()
    out = mmcore.weighted_fusion([x, x], norm="rms_norm").sum()
    (grad,) = torch.autograd.grad(out, x, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        grad.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_views_that_change_the_sign_are_read_as_what_they_are(backend: str) -> None:
    """The imaginary part of a conjugate is the same memory, and a bit that says negative."""
    z = torch.complex(randn(B, T, 1), randn(B, T, 1, seed=2))
    x = z.conj().imag
    assert x.is_neg()
    with mmcore.backend(backend):
        assert torch.equal(mmcore.weighted_fusion([x, x]), 2 * -z.imag)
        leaf = randn(B, T, 1).requires_grad_()
        (grad,) = torch.autograd.grad(mmcore.weighted_fusion([leaf, leaf]), leaf, x)
    assert torch.equal(grad, 2 * -z.imag)


@pytest.mark.parametrize("backend", BACKENDS)
def test_hooks_and_checkpoints_see_an_ordinary_function(backend: str) -> None:
    from torch.utils.checkpoint import checkpoint

    xs = [x.requires_grad_() for x in features()]
    saved: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t)
        return t.clone()

    with mmcore.backend(backend):
        expected = torch.autograd.grad(mmcore.weighted_fusion(xs, **OPTIONS).square().sum(), xs)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = mmcore.weighted_fusion(xs, **OPTIONS)
        packed = torch.autograd.grad(out.square().sum(), xs)
        out = checkpoint(lambda *x: mmcore.weighted_fusion(x, **OPTIONS), *xs, use_reentrant=False)
        again = torch.autograd.grad(out.square().sum(), xs)
    assert len(saved) >= M
    for a, b, c in zip(expected, packed, again, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


# torch.func


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own, at its first jvp
@pytest.mark.parametrize("backend", BACKENDS)
def test_functional_gradients_are_those_of_autograd(backend: str) -> None:
    xs, weights = features(torch.float64), randn(B, M, dtype=torch.float64)

    def loss(weights: Tensor, *xs: Tensor) -> Tensor:
        return mmcore.weighted_fusion(xs, weights, mask=TRUE, **OPTIONS).square().sum()

    leaves = [t.clone().requires_grad_() for t in (weights, *xs)]
    with mmcore.backend(backend):
        expected = torch.autograd.grad(loss(*leaves), leaves)
        found = torch.func.grad(loss, argnums=tuple(range(M + 1)))(weights, *xs)
        jacobian = torch.func.jacrev(lambda w: mmcore.weighted_fusion(xs, w, **OPTIONS))(weights)
        _, tangent = torch.func.jvp(
            lambda w: mmcore.weighted_fusion(xs, w, **OPTIONS), (weights,), (weights,)
        )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close((jacobian * weights).sum((-2, -1)), tangent)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_mode_derivatives_are_not_lost(backend: str) -> None:
    """Tensors with a tangent look like others to a kernel."""
    xs, tangent = features(torch.float64), randn(B, T, D, seed=4, dtype=torch.float64)
    with mmcore.backend(backend), forward_ad.dual_level():
        dual = forward_ad.make_dual(xs[0], tangent)
        out = forward_ad.unpack_dual(mmcore.weighted_fusion([dual, *xs[1:]], torch.tensor([3.0, 1.0, 1.0])))
        assert out.tangent is not None
        torch.testing.assert_close(out.tangent, 3 * tangent)


@pytest.mark.parametrize("backend", BACKENDS)
def test_vmap_is_a_loop(backend: str) -> None:
    xs = [torch.stack(pair) for pair in zip(features(), features(seed=1), strict=True)]
    weights = randn(2, B, T, M)
    mask = randn(2, B, M) > 0

    def call(weights: Tensor, mask: Tensor, *xs: Tensor) -> Tensor:
        return mmcore.weighted_fusion(xs, weights, mask=mask, **OPTIONS)

    def loss(*tensors: Tensor) -> Tensor:
        return call(*tensors).square().sum()

    with mmcore.backend(backend):
        found = torch.func.vmap(call)(weights, mask, *xs)
        expected = torch.stack([call(weights[i], mask[i], *(x[i] for x in xs)) for i in range(2)])
        torch.testing.assert_close(found, expected)
        per_sample = torch.func.vmap(torch.func.grad(loss))(weights, mask, *xs)
        one = torch.func.grad(loss)(weights[1], mask[1], *(x[1] for x in xs))
    torch.testing.assert_close(per_sample[1], one)


# threads and processes


def test_calls_from_several_threads_do_not_meet() -> None:
    cases = [c for c in FUSION_CASES if c.steps < 500][::25]
    work = [(c, c.inputs()) for c in cases]
    expected = [run(*w) for w in work]
    before = mmcore.get_num_threads()
    try:
        mmcore.set_num_threads(2)
        with ThreadPoolExecutor(2) as pool:
            for _ in range(3):
                for found, wanted in zip(pool.map(lambda w: run(*w), work), expected, strict=True):
                    assert all(torch.equal(bits(found[n]), bits(wanted[n])) for n in wanted)
    finally:
        mmcore.set_num_threads(before)


class Fused(Dataset[Tensor]):
    """A sample is a call of the op, large enough for more than one thread, and its gradient."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        mmcore.set_num_threads(2)
        g = torch.Generator().manual_seed(index)
        xs = [torch.randn(40, 32, 96, generator=g, requires_grad=True) for _ in range(3)]
        out = mmcore.weighted_fusion(xs, torch.ones(3), **OPTIONS)
        return torch.stack([out.detach(), *torch.autograd.grad(out.square().sum(), xs)]).double().sum((1, 2))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore:This DataLoader will create")
def test_forked_workers_give_the_same_bits() -> None:
    before = mmcore.get_num_threads()
    try:
        expected = [
            Fused()[i] for i in range(4)
        ]  # here first: the workers inherit a process that has had threads
    finally:
        mmcore.set_num_threads(before)
    loader = DataLoader(Fused(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60)
    for found, wanted in zip(loader, expected, strict=True):
        assert torch.equal(found, wanted)


def test_a_failed_call_leaves_the_next_one_alone() -> None:
    xs = features()
    expected = mmcore.weighted_fusion(xs, **OPTIONS)
    for _ in range(3):
        with pytest.raises(ValueError, match="weights"):
            mmcore.weighted_fusion(xs, randn(M + 1), **OPTIONS)
    assert torch.equal(mmcore.weighted_fusion(xs, **OPTIONS), expected)


def test_the_call_does_not_change_its_arguments() -> None:
    xs, align = features(), ["mean", None, "linear"]
    kept = copy.copy(xs)
    mmcore.weighted_fusion(xs, align=align)
    assert all(a is b for a, b in zip(xs, kept, strict=True))
    assert align == ["mean", None, "linear"]


def test_no_call_keeps_its_tensors_alive() -> None:
    import gc
    import weakref

    def references() -> Iterator[weakref.ref[Tensor]]:
        xs = [x.requires_grad_() for x in features()]
        out = mmcore.weighted_fusion(xs, **OPTIONS)
        out.sum().backward()
        yield from (weakref.ref(t) for t in (*xs, out))

    alive = list(references())
    gc.collect()
    assert all(reference() is None for reference in alive)


def test_the_closed_form_agrees_with_the_default_backend() -> None:
    """The whole chain as a user meets it, without the harness's own call of the oracle."""
    inputs = CASE.inputs()
    for name, value in closed_form(CASE, inputs).items():
        torch.testing.assert_close(run(CASE, inputs)[name].double(), value, rtol=1e-4, atol=1e-5)
