"""weighted_fusion inside torch.compile and torch.export: one graph, both ways, the eager numbers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from fusion_cases import FusionCase
from fusion_harness import run, with_gradients
from torch import Tensor

import mmcore

BACKENDS = ("reference", "cpu")

CASES = [
    FusionCase("sum", 2, (2, 3), 5),
    FusionCase("softmax", 3, (2, 3), 9, weights="BTM", mask="BTM", norm="layer_norm", affine="both",
               probe="fp32"),
    FusionCase("normalized", 2, (2, 4), 6, weights="BTMD", mask="BM", norm="l2", align="linear", rate="down",
               dtypes="mixed", layout="transposed"),
    FusionCase("softmax", 2, (3, -1), 7, weights="BTMD", norm="rms_norm", affine="weight", dtypes="bf16",
               layout="stepped", gate_layout="transposed"),
    FusionCase("sum", 2, (2, 3), 5, weights="BM", align="mean", rate="up", dtypes="fp64", needs="features"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def forget_graphs() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def arguments(case: FusionCase, requires_grad: bool) -> tuple[Any, ...]:
    """What the registered op takes."""
    inputs = with_gradients(case.inputs(), case.wanted() if requires_grad else set())
    kinds = [kind or "none" for kind in case.alignments]
    tensors = (
        inputs.features,
        inputs.weights,
        inputs.norm_weight,
        inputs.norm_bias,
        inputs.probe,
        inputs.mask,
    )
    return (*tensors, case.mode, case.norm, kinds, case.eps, case.steps)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_op_is_registered_as_torch_wants_it(backend: str, case: FusionCase) -> None:
    case = replace(case, junk="finite")  # opcheck compares results, and NaN in operands with itself
    with mmcore.backend(backend):
        torch.library.opcheck(torch.ops.mmcore.weighted_fusion.default, arguments(case, True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_backward_is_registered_as_torch_wants_it(backend: str, case: FusionCase) -> None:
    """Its shapes, dtypes and strides, as a compiler assumes them, and that it changes nothing it is given."""
    case = replace(case, junk="finite")
    given = arguments(case, False)
    features, weights, norm_weight, norm_bias, probe, _ = given[:6]
    needs = (
        [t is not None for t in (weights, norm_weight, norm_bias, probe)] + [False] + [True] * len(features)
    )
    with mmcore.backend(backend):
        torch.library.opcheck(
            torch.ops.mmcore.weighted_fusion_backward.default,
            (case.inputs().grad, *given, needs),
            test_utils=("test_schema", "test_faketensor"),
        )
        needs = [need and i % 2 == 1 for i, need in enumerate(needs)]
        found = torch.ops.mmcore.weighted_fusion_backward(case.inputs().grad, *given, needs)
    assert len(found) == len(needs)
    given_tensors = (weights, norm_weight, norm_bias, probe, None, *features)
    for t, need, grad in zip(given_tensors, needs, found, strict=True):
        assert grad.shape == (t.shape if need and t is not None else (0,))


def results(function: Callable[..., Tensor], case: FusionCase) -> list[Tensor]:
    """Result and gradients of a function of the case's tensors, the incoming gradient being random."""
    inputs = with_gradients(case.inputs(), case.wanted())
    out = function(
        inputs.features, inputs.weights, inputs.norm_weight, inputs.norm_bias, inputs.probe, inputs.mask
    )
    leaves = [t for t in inputs.differentiable().values() if t.requires_grad]
    return [out.detach(), *torch.autograd.grad(out, leaves, inputs.grad.to(out.dtype))]


def function_of(case: FusionCase) -> Callable[..., Tensor]:
    kwargs = case.kwargs()

    def fuse(
        features: list[Tensor],
        weights: Tensor | None,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        probe: Tensor | None,
        mask: Tensor | None,
    ) -> Tensor:
        out = mmcore.weighted_fusion(
            [x * 1.0 for x in features], weights, mask=mask, norm_weight=norm_weight, norm_bias=norm_bias,
            probe=probe, **kwargs,
        )  # fmt: skip
        return out + 1

    return fuse


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_compiles_as_one_graph_forward_and_backward(case: FusionCase) -> None:
    function = function_of(case)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for found, expected in zip(results(compiled, case), results(function, case), strict=True):
        assert torch.equal(found, expected)
        assert found.dtype == expected.dtype


def test_compiled_code_runs_on_the_backend_in_force() -> None:
    """It is chosen when the graph runs, not when it is recorded."""
    from mmcore.backends import load_backend

    case = CASES[0]
    compiled = torch.compile(function_of(case), fullgraph=True, backend="aot_eager")
    expected = results(compiled, case)
    ran: list[str] = []
    reference = load_backend("reference")
    original = reference.weighted_fusion
    with pytest.MonkeyPatch.context() as patch, mmcore.backend("reference"):
        patch.setattr(reference, "weighted_fusion", lambda *a: (ran.append("reference"), original(*a))[1])
        torch.testing.assert_close(results(compiled, case), expected)
    assert ran


def test_one_graph_serves_many_shapes() -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(graph)
        return graph.forward

    def fuse(features: list[Tensor], logits: Tensor, mask: Tensor) -> Tensor:
        return mmcore.weighted_fusion(
            features, logits, mode="softmax", mask=mask, norm="layer_norm", align="linear"
        )

    compiled = torch.compile(fuse, fullgraph=True, dynamic=True, backend=backend)
    # All numbers differ: torch takes sizes that are equal at first for equal forever.
    for batch, steps, sources in ((3, 4, (10, 9)), (5, 7, (8, 12)), (11, 13, (14, 10))):
        xs = [torch.randn(batch, t, 6, generator=torch.Generator().manual_seed(t)) for t in sources]
        logits = torch.linspace(-1, 1, batch * steps * 2).reshape(batch, steps, 2)
        mask = logits < 0.9
        assert torch.equal(compiled(xs, logits, mask), fuse(xs, logits, mask))
    assert len(graphs) == 1


def test_dynamic_shapes_forward_and_backward() -> None:
    case = CASES[1]
    function = function_of(case)
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape, depth in (((2, 3), 9), ((4, 5), 11)):
        sized = replace(case, shape=shape, depth=depth)
        for found, expected in zip(results(compiled, sized), results(function, sized), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler")
# torch's own warnings, at its import of inductor
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_inductor_forward_and_backward() -> None:
    """Transposed operands: it checks the strides that the op returns."""
    case = FusionCase("softmax", 2, (2, 4), 6, weights="BTM", mask="BM", norm="layer_norm", affine="both",
                      align="linear", rate="down", layout="transposed", grad_layout="transposed")  # fmt: skip
    function = function_of(case)
    compiled = torch.compile(function, fullgraph=True)
    for found, expected in zip(results(compiled, case), results(function, case), strict=True):
        torch.testing.assert_close(found, expected)


def test_compiles_under_autocast() -> None:
    xs = [torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    weight = torch.randn(8, 8, generator=torch.Generator().manual_seed(5))

    def fuse(a: Tensor, b: Tensor) -> Tensor:
        return mmcore.weighted_fusion([a @ weight, b], norm="rms_norm")  # bfloat16 and float32

    with torch.autocast("cpu", torch.bfloat16):
        expected = fuse(*xs)
        found = torch.compile(fuse, fullgraph=True, backend="aot_eager")(*xs)
    assert found.dtype == expected.dtype == torch.float32
    assert torch.equal(found, expected)


class Fusion(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor([0.5, -1.0]))

    def forward(self, video: Tensor, audio: Tensor, mask: Tensor) -> Tensor:
        return mmcore.weighted_fusion(
            [video, audio], self.logits, mode="softmax", mask=mask, norm="rms_norm", align=[None, "mean"]
        )


def test_exports() -> None:
    model = Fusion().eval()
    g = torch.Generator().manual_seed(0)
    arguments = torch.randn(2, 4, 6, generator=g), torch.randn(2, 10, 6, generator=g), torch.ones(2, 2).bool()
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(model, arguments, dynamic_shapes=({0: batch}, {0: batch}, {0: batch}))
    names = [str(node.target) for node in program.graph.nodes]
    assert names.count("mmcore.weighted_fusion.default") == 1
    assert torch.equal(program.module()(*arguments), model(*arguments))
    other = torch.randn(5, 4, 6, generator=g), torch.randn(5, 10, 6, generator=g), torch.eye(5)[:, :2].bool()
    assert torch.equal(program.module()(*other), model(*other))


def test_wrong_arguments_are_refused_while_compiling() -> None:
    def fuse(x: Tensor, weights: Tensor) -> Tensor:
        return mmcore.weighted_fusion([x, x], weights)

    compiled = torch.compile(fuse, backend="aot_eager")
    with pytest.raises(ValueError, match=r"weights: 2 modalities need"):
        compiled(torch.ones(2, 3, 4), torch.ones(3))


def test_the_registered_op_gives_the_eager_numbers() -> None:
    """As tensor subclasses and dispatch modes call it."""
    for case in CASES:
        expected = run(case, case.inputs())
        given = arguments(case, True)
        features, weights, norm_weight, norm_bias, probe, *_ = given
        out = torch.ops.mmcore.weighted_fusion(*given)
        named = {"weights": weights, "norm_weight": norm_weight, "norm_bias": norm_bias, "probe": probe}
        named |= {f"features[{m}]": x for m, x in enumerate(features)}
        leaves = {n: t for n, t in named.items() if t is not None and t.requires_grad}
        grads = torch.autograd.grad(out, list(leaves.values()), case.inputs().grad)
        assert torch.equal(out, expected["result"])
        for name, grad in zip(leaves, grads, strict=True):
            assert torch.equal(grad, expected[name]), (case.id, name)
