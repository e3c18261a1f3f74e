"""multi_task_loss inside torch.compile and torch.export: one graph, both ways, the eager numbers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from loss_cases import LossCase
from loss_harness import Results, call, gradients, run, single_torch_thread, values, with_gradients
from torch import Tensor

import mmcore
from mmcore import Task

BACKENDS = ("reference", "cpu")

CASES = [
    LossCase(("ce",), (6,), 5),
    LossCase(("ce-all", "mse", "bce-pos"), (6,), 5, mask="mix", weights="unit", log_vars="unit"),
    LossCase(("ce-soft-all", "value", "huber"), (2, 3), 6, "mix", "mixed", mask="full", layout="stepped",
             upstream="all"),
    LossCase(("ce-focal-weight", "kl-t", "cosine", "l1"), (4, 3), 7, "none", "bf16", mask="first",
             layout="transposed", upstream="all"),
    LossCase(("smooth_l1", "ce-z"), (5,), 8, "sum", "fp64", log_vars="unit", needs="outputs",
             upstream="scaled"),
]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread() -> Iterator[None]:
    with single_torch_thread():
        yield


@pytest.fixture(autouse=True)
def forget_graphs() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def arguments(case: LossCase, requires_grad: bool) -> tuple[Any, ...]:
    """What the registered op takes."""
    inputs = with_gradients(case.inputs(), case.wanted() if requires_grad else set())
    return (
        inputs.outputs,
        inputs.targets,
        inputs.masks or [None] * case.count,
        inputs.task_weights,
        inputs.weights,
        inputs.log_vars,
        [task.spec for task in case.tasks(inputs)],
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_op_is_registered_as_torch_wants_it(backend: str, case: LossCase) -> None:
    # opcheck compares operands before and after, and NaN with itself
    case = replace(case, junk="finite", dtypes="fp32" if case.dtypes == "mixed" else case.dtypes)
    with mmcore.backend(backend):
        torch.library.opcheck(torch.ops.mmcore.multi_task_loss.default, arguments(case, True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_backward_is_registered_as_torch_wants_it(backend: str, case: LossCase) -> None:
    """Its shapes, dtypes and strides, as a compiler assumes them, and that it changes nothing it is given."""
    case = replace(case, junk="finite")
    given = arguments(case, False)
    outputs, *_, weights, log_vars, _ = given
    inputs = case.inputs()
    unreduced = [g for i, g in enumerate(inputs.grad_losses) if case.reduction_of(i) == "none"]
    losses = torch.linspace(-1, 1, case.count, dtype=case.compute_dtype())
    grads = (torch.tensor(0.5, dtype=case.compute_dtype()), losses, unreduced)
    needs = [weights is not None, log_vars is not None, *(True,) * case.count]
    backward = torch.ops.mmcore.multi_task_loss_backward
    with mmcore.backend(backend):
        torch.library.opcheck(
            backward.default, (*grads, *given, needs), test_utils=("test_schema", "test_faketensor")
        )
        needs = [need and i % 2 == 0 for i, need in enumerate(needs)]
        found = backward(*grads, *given, needs)
        without = backward(None, None, [], *given, needs)
    for t, need, grad, none in zip((weights, log_vars, *outputs), needs, found, without, strict=True):
        assert grad.shape == none.shape == (t.shape if need and t is not None else (0,))
        assert (none == 0).all()


def function_of(case: LossCase) -> Callable[..., tuple[Tensor, ...]]:
    """The op between others, of what can change from call to call."""
    tasks = case.tasks(case.inputs())

    def function(
        outputs: list[Tensor],
        targets: list[Tensor | None],
        masks: list[Tensor | None] | None,
        weights: Tensor | None,
        log_vars: Tensor | None,
    ) -> tuple[Tensor, ...]:
        total, losses = mmcore.multi_task_loss(
            [x * 1.0 for x in outputs], targets, tasks, weights=weights, log_vars=log_vars, masks=masks
        )
        return (total + 0, *losses)

    return function


def results(function: Callable[..., tuple[Tensor, ...]], case: LossCase) -> Results:
    """Results and gradients of a function of the case's tensors, for the case's upstream gradients."""
    inputs = with_gradients(case.inputs(), case.wanted())
    total, *losses = function(inputs.outputs, inputs.targets, inputs.masks, inputs.weights, inputs.log_vars)
    return {**values(total, list(losses)), **gradients(inputs, total, list(losses))}


def assert_equal(found: Results, expected: Results) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_compiles_as_one_graph_forward_and_backward(case: LossCase) -> None:
    """With all upstream gradients: the eager gradients of the forward's pass, and those made anew."""
    function = function_of(case)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for upstream in ("one", "all"):
        case = replace(case, upstream=upstream)
        assert_equal(results(compiled, case), results(function, case))


def test_compiles_names_and_in_place_and_value_and_grad() -> None:
    """Mappings in, dicts out; inplace_gradient changes nothing, not even the outputs."""
    tasks = {"kind": Task.cross_entropy(label_smoothing=0.1), "place": Task.mse()}
    targets = {"kind": torch.tensor([0, 4, -100]), "place": torch.ones(3, 2)}
    g = torch.Generator().manual_seed(0)
    start = {"kind": torch.randn(3, 5, generator=g), "place": torch.randn(3, 2, generator=g)}

    def function(kind: Tensor, place: Tensor, inplace: bool) -> tuple[Any, ...]:
        outputs = {"kind": kind * 1, "place": place * 1}
        how: dict[str, Any] = {"weights": [0.5, 2.0], "inplace_gradient": inplace}
        total, losses = mmcore.multi_task_loss(outputs, targets, tasks, **how)
        value, _, grads = mmcore.multi_task_value_and_grad(outputs, targets, tasks, weights=[0.5, 2.0])
        return total, losses["kind"], losses["place"], value, grads.outputs["kind"], grads.outputs["place"]

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    leaves = [x.clone().requires_grad_() for x in start.values()]
    expected = function(*leaves, inplace=False)
    wanted = torch.autograd.grad(expected[0], leaves)
    for inplace in (False, True):
        found = compiled(*leaves, inplace=inplace)
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b)
        for a, b in zip(torch.autograd.grad(found[0], leaves), wanted, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("case", CASES[1:4], ids=lambda case: case.id)
def test_value_and_grad_compiles(case: LossCase) -> None:
    inputs = case.inputs()
    tasks = case.tasks(inputs)

    def function(outputs: list[Tensor], weights: Tensor | None, log_vars: Tensor | None) -> Any:
        return mmcore.multi_task_value_and_grad(
            outputs, inputs.targets, tasks, weights=weights, log_vars=log_vars, masks=inputs.masks
        )

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    given = inputs.outputs, inputs.weights, inputs.log_vars
    (total, losses, grads), (wanted, wanted_losses, wanted_grads) = compiled(*given), function(*given)
    assert torch.equal(total, wanted)
    assert all(torch.equal(a, b) for a, b in zip(losses, wanted_losses, strict=True))
    of_all = ((*g.outputs, g.weights, g.log_vars) for g in (grads, wanted_grads))
    for a, b in zip(*of_all, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a.dtype == b.dtype and torch.equal(a, b))


def test_compiled_code_runs_on_the_backend_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is chosen when the graph runs, not when it is recorded."""
    from mmcore.backends import load_backend

    case = CASES[0]
    compiled = torch.compile(function_of(case), fullgraph=True, backend="aot_eager")
    expected = results(compiled, case)
    ran: list[str] = []
    reference = load_backend("reference")
    for name in ("multi_task_loss", "multi_task_loss_backward"):
        original = getattr(reference, name)

        def record(*arguments: Any, of: Callable[..., Any] = original, by: str = name) -> Any:
            ran.append(by)
            return of(*arguments)

        monkeypatch.setattr(reference, name, record)
    with mmcore.backend("reference"):
        found = results(compiled, case)
    assert ran == ["multi_task_loss", "multi_task_loss_backward"]
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_one_graph_serves_many_batches() -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(graph)
        return graph.forward

    tasks = [Task.cross_entropy(label_smoothing=0.1), Task.smooth_l1()]

    def function(x: Tensor, y: Tensor, kind: Tensor, place: Tensor, mask: Tensor) -> Tensor:
        return mmcore.multi_task_loss([x, y], [kind, place], tasks, masks=[mask, None])[0]

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=backend)
    # All numbers differ: torch takes sizes that are equal at first for equal forever.
    for batch, classes, other in ((6, 5, 3), (9, 7, 4), (31, 11, 8)):
        g = torch.Generator().manual_seed(batch)
        x, y, place = torch.randn(batch, classes, generator=g), *torch.randn(2, batch, other, generator=g)
        given = x, y, torch.arange(batch) % classes, place, torch.arange(batch) % 3 != 0
        assert torch.equal(compiled(*given), function(*given))
    assert len(graphs) == 1


def test_dynamic_shapes_forward_and_backward() -> None:
    case = LossCase(
        ("ce-smooth", "bce", "kl-t"), (6,), 5, "mix", mask="full", log_vars="unit", upstream="all"
    )
    function = function_of(case)
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for lead, columns in (((6,), 5), ((11,), 9)):
        sized = replace(case, lead=lead, columns=columns)
        assert_equal(results(compiled, sized), results(function, sized))


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler")
# torch's own warnings, at its import of inductor
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_inductor_forward_and_backward() -> None:
    """Channels first and transposed: it checks the strides that the op returns."""
    case = LossCase(("ce-all", "mse"), (2, 4), 5, mask="full", log_vars="unit", layout="transposed")
    function = function_of(case)
    compiled = torch.compile(function, fullgraph=True)
    found, expected = results(compiled, case), results(function, case)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_compiles_under_autocast() -> None:
    g = torch.Generator().manual_seed(0)
    x, y, weight = (torch.randn(n, 8, generator=g) for n in (4, 4, 8))

    tasks = [Task.mse(), Task.cosine()]

    def function(a: Tensor, b: Tensor) -> Tensor:  # bfloat16 and float32
        return mmcore.multi_task_loss([a @ weight, b], [y, y], tasks)[0]

    with torch.autocast("cpu", torch.bfloat16):
        expected = function(x, x)
        found = torch.compile(function, fullgraph=True, backend="aot_eager")(x, x)
    assert found.dtype == expected.dtype == torch.float32
    assert torch.equal(found, expected)


class Heads(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.log_vars = torch.nn.Parameter(torch.tensor([0.5, -1.0]))
        self.tasks = [Task.cross_entropy(weight=torch.linspace(0.5, 2, 5)), Task.huber()]

    def forward(self, x: Tensor, y: Tensor, kind: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        total, losses = mmcore.multi_task_loss([x, y], [kind, place], self.tasks, log_vars=self.log_vars)
        assert isinstance(losses, Tensor)
        return total, losses


def test_exports() -> None:
    model = Heads().eval()

    def given(batch: int) -> tuple[Tensor, ...]:
        g = torch.Generator().manual_seed(batch)
        x, y, place = (torch.randn(batch, n, generator=g) for n in (5, 3, 3))
        return x, y, torch.arange(batch) % 5, place

    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(model, given(4), dynamic_shapes=({0: batch},) * 4)
    names = [str(node.target) for node in program.graph.nodes]
    assert names.count("mmcore.multi_task_loss.default") == 1
    for size in (4, 7):
        for a, b in zip(program.module()(*given(size)), model(*given(size)), strict=True):
            assert torch.equal(a, b)


def test_wrong_arguments_are_refused_while_compiling() -> None:
    tasks = [Task.mse()]

    def function(x: Tensor, y: Tensor) -> Tensor:
        return mmcore.multi_task_loss([x], [y], tasks)[0]

    compiled = torch.compile(function, backend="aot_eager")
    with pytest.raises(ValueError, match=r"targets\[0\]: expected shape \(2, 3\)"):
        compiled(torch.ones(2, 3), torch.ones(3, 2))


def test_a_class_out_of_range_is_refused_by_compiled_code() -> None:
    tasks = [Task.cross_entropy()]

    def function(x: Tensor, y: Tensor) -> Tensor:
        return mmcore.multi_task_loss([x], [y], tasks)[0]

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert compiled(torch.zeros(2, 3), torch.tensor([0, 2])).isfinite()
    with pytest.raises(IndexError, match=r"targets\[0\]: class 3 at row 1"):
        compiled(torch.zeros(2, 3), torch.tensor([0, 3]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_registered_op_gives_the_eager_numbers(backend: str) -> None:
    """As tensor subclasses and dispatch modes call it."""
    with mmcore.backend(backend):
        for case in CASES:
            expected = run(case, case.inputs())
            inputs = with_gradients(case.inputs(), case.wanted())
            given = arguments(case, False)
            total, losses, *unreduced = torch.ops.mmcore.multi_task_loss(
                inputs.outputs, *given[1:4], inputs.weights, inputs.log_vars, given[6]
            )
            rest = iter(unreduced)
            each = [
                next(rest) if case.reduction_of(i) == "none" else x for i, x in enumerate(losses.unbind())
            ]
            assert_equal({**values(total, each), **gradients(inputs, total, each)}, expected)


def test_second_derivatives_of_compiled_code_say_what_to_do() -> None:
    class Labelled(torch.Tensor):
        pass

    x = torch.ones(2, 3).as_subclass(Labelled).requires_grad_()
    total, _ = mmcore.multi_task_loss([x], [torch.zeros(2, 3)], [Task.mse()])
    (grad,) = torch.autograd.grad(total, x, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        grad.sum().backward()


def test_dispatch_modes_see_the_op() -> None:
    """Not what it is made of: a counter of operations, or a tracer, meets the op and its backward."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: list[str] = []

    class Listing(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    case = CASES[1]
    inputs = with_gradients(case.inputs(), case.wanted())
    with Listing():
        total, _ = call(case, inputs)
        total.backward()
    assert "mmcore.multi_task_loss.default" in seen
    assert "mmcore.multi_task_loss_backward.default" in seen
