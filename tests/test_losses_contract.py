"""What multi_task_loss promises beside its numbers: refusals, routing, autograd, torch.func, threads."""

from __future__ import annotations

import copy
import functools
import gc
import os
import pickle
import weakref
from collections import UserDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any

import pytest
import torch
from fusion_harness import bits
from loss_cases import LOSS_CASES, LossCase
from loss_harness import run, single_torch_thread
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils.data import DataLoader, Dataset

import mmcore
from mmcore import Task
from mmcore.ops import losses as losses_op

BACKENDS = ("reference", "cpu")
WAYS = ("reference", "cpu", "default")
"""Without a backend forced, tensors go straight to the core: another way into it, with checks of its own."""

N, C = 6, 5


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread() -> Iterator[None]:
    with single_torch_thread():
        yield


def randn(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def labels(seed: int = 1) -> Tensor:
    return torch.randint(0, C, (N,), generator=torch.Generator().manual_seed(seed))


class way:
    """``with way(name):`` forces a backend, or none."""

    def __init__(self, name: str) -> None:
        self._forced = None if name == "default" else mmcore.backend(name)

    def __enter__(self) -> None:
        if self._forced is not None:
            self._forced.__enter__()

    def __exit__(self, *error: Any) -> None:
        if self._forced is not None:
            self._forced.__exit__(*error)


def two(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """A call of a classification and a regression, its leaves in "outputs"."""
    return {
        "outputs": [
            randn(N, C, dtype=dtype).requires_grad_(),
            randn(N, 3, seed=2, dtype=dtype).requires_grad_(),
        ],
        "targets": [labels(), randn(N, 3, seed=3, dtype=dtype)],
        "tasks": [Task.cross_entropy(), Task.mse()],
    }


# refusals


CE, MSE, BCE = Task.cross_entropy(), Task.mse(), Task.bce_with_logits()
X, Y = randn(N, C), randn(N, C, seed=2)
TRUE = torch.ones(N, dtype=torch.bool)
META = torch.zeros(N, C, device="meta")
Refused = dict[str, tuple[dict[str, Any], str]]


def single(output: Any = X, target: Any = Y, task: Any = MSE, **more: Any) -> dict[str, Any]:
    return {"outputs": [output], "targets": [target], "tasks": [task], **more}


def named(**more: Any) -> dict[str, Any]:
    return {"outputs": {"a": X}, "targets": {"a": Y}, "tasks": {"a": MSE}, **more}


WRONG_TYPES: Refused = {
    "tasks-one": (single() | {"tasks": MSE}, r"tasks: expected a sequence.*got Task"),
    "tasks-str": (single(task="mse"), r"tasks\[0\]: expected a mmcore.Task, got str"),
    "tasks-named-str": (named() | {"tasks": {"a": "mse"}}, r"tasks\[0\]: expected a mmcore.Task, got str"),
    "outputs-tensor": (single() | {"outputs": X},
                       r"outputs: expected a sequence.*float32 tensor of shape \(6, 5\)"),
    "outputs-mapping": (single() | {"outputs": {"a": X}},
                        r"outputs: expected a sequence.*got dict.*mapping of tasks"),
    "outputs-not-mapping": (named() | {"outputs": [X]}, r"outputs: expected a mapping as tasks is, got list"),
    "targets-not-mapping": (named() | {"targets": [Y]}, r"targets: expected a mapping as tasks is, got list"),
    "masks-not-mapping": (named(masks=[TRUE]), r"masks: expected a mapping as tasks is, got list"),
    "targets-tensor": (single() | {"targets": Y}, r"targets: expected a sequence"),
    "masks-tensor": (single(masks=TRUE), r"masks: expected a sequence.*bool tensor of shape \(6,\)"),
    "output-list": (single([1.0]), r"outputs\[0\]: expected a tensor, got list"),
    "output-int": (single(X.int()),
                   r"outputs\[0\]: expected a float32.*got a int32 tensor of shape \(6, 5\)"),
    "output-complex": (single(X.cfloat()), r"outputs\[0\]: expected .*got a complex64 tensor"),
    "output-float8": (single(X.to(torch.float8_e4m3fn)), r"outputs\[0\]: expected .*float8_e4m3fn"),
    "target-none": (single(target=None), r"targets\[0\]: expected a tensor, got NoneType"),
    "target-list": (single(target=[1.0]), r"targets\[0\]: expected a tensor, got list"),
    "target-complex": (single(target=Y.cfloat()), r"targets\[0\]: expected real numbers, got a complex64"),
    "classes-bool": (single(target=TRUE, task=CE),
                     r"targets\[0\]: expected int64 classes or prob.*got a bool"),
    "mask-list": (single(masks=[[True] * N]), r"masks\[0\]: expected a bool tensor.*got list"),
    "mask-float": (single(masks=[torch.ones(N)]), r"masks\[0\]: expected a bool tensor.*got a float32"),
    "mask-uint8": (single(masks=[TRUE.byte()]), r"masks\[0\]: expected a bool tensor.*got a uint8"),
    "weights-number": (single(weights=1.0),
                       r"weights: expected a tensor or a sequence of numbers, got float"),
    "weights-str": (single(weights="1"), r"weights: expected a tensor or a sequence of numbers, got str"),
    "weights-words": (single(weights=["one"]), r"weights: expected numbers, got \['one'\]"),
    "weights-int": (single(weights=torch.ones(1, dtype=torch.int64)),
                    r"weights: expected a floating.*got a int64"),
    "log_vars-list": (single(log_vars=[0.0]), r"log_vars: expected a tensor, got list"),
    "log_vars-int": (single(log_vars=torch.ones(1).long()), r"log_vars: expected a floating.*got a int64"),
}  # fmt: skip

WRONG_VALUES: Refused = {
    "no-task": ({"outputs": [], "targets": [], "tasks": []}, r"tasks: expected 1 to 32, got 0"),
    "33-tasks": ({"outputs": [X] * 33, "targets": [Y] * 33, "tasks": [MSE] * 33},
                 r"tasks: expected 1 to 32, got 33"),
    "outputs-count": (single() | {"outputs": [X, X]}, r"outputs: expected 1, one for each task, got 2"),
    "targets-count": (single() | {"targets": []}, r"targets: expected 1, one for each task, got 0"),
    "masks-count": (single(masks=[TRUE, None]), r"masks: expected 1, one for each task, got 2"),
    "outputs-unknown": (named() | {"outputs": {"a": X, "b": X}},
                        r"outputs: expected the names of tasks, a; unknown: b"),
    "targets-lacking": (named() | {"targets": {}}, r"targets: expected the names of tasks, a; missing: a"),
    "masks-unknown": (named(masks={"b": TRUE}), r"masks: expected the names of tasks, a; unknown: b"),
    "target-shape": (single(target=Y.mT),
                     r"targets\[0\]: expected shape \(6, 5\) as the output has, got \(5, 6\)"),
    "target-broadcast": (single(target=Y[:1]), r"targets\[0\]: expected shape \(6, 5\).*got \(1, 5\)"),
    "bce-classes": (single(target=labels(), task=BCE), r"targets\[0\]: expected shape \(6, 5\).*got \(6,\)"),
    "classes-shape": (single(target=labels()[:4], task=CE),
                      r"targets\[0\]: expected classes of shape \(6,\).*\(6, 5\), got \(4,\)"),
    "classes-one-hot": (single(target=Y.long(), task=CE),
                        r"targets\[0\]: expected classes of shape \(6,\).*got \(6, 5\)"),
    "classes-last": (single(randn(2, 3, 4), torch.zeros(2, 3).long(), CE),
                     r"targets\[0\]: expected classes of shape \(2, 4\).*got \(2, 3\)"),
    "probabilities-shape": (single(target=Y[:, :2], task=CE),
                            r"targets\[0\]: expected shape \(6, 5\).*got \(6, 2\)"),
    "focal-soft": (single(task=Task.cross_entropy(focal_gamma=2.0)),
                   r"targets\[0\]: focal_gamma wants classes"),
    "target-grad": (single(target=Y.clone().requires_grad_()),
                    r"targets\[0\]: targets get no gradient; detach it"),
    "scalar-row": (single(torch.tensor(1.0), torch.tensor(0), CE),
                   r"outputs\[0\]: cross_entropy needs at least one"),
    "scalar-cosine": (single(torch.tensor(1.0), torch.tensor(1.0), Task.cosine()),
                      r"outputs\[0\]: cosine needs at"),
    "no-columns": (single(X[:, :0], torch.zeros(N).long(), CE), r"outputs\[0\]: cross_entropy of 0 columns"),
    "value-shape": (single(X, None, Task.value()), r"outputs\[0\]: .*shape \(\), got \(6, 5\)"),
    "value-target": (single(torch.tensor(1.0), Y, Task.value()),
                     r"targets\[0\]: expected None.*got a float32"),
    "weight-count": (single(target=labels(), task=Task.cross_entropy(weight=torch.ones(4))),
                     r"tasks\[0\]: weight has 4 values for 5 columns"),
    "pos_weight-count": (single(task=Task.bce_with_logits(pos_weight=torch.ones(4))),
                         r"tasks\[0\]: pos_weight has 4 values for 5 columns"),
    "mask-shape": (single(masks=[TRUE[:4]]),
                   r"masks\[0\]: expected the shape of the losses \(6, 5\), or of its first dim.*got \(4,\)"),
    "mask-last": (single(masks=[torch.ones(C, dtype=torch.bool)]), r"masks\[0\]: .*got \(5,\)"),
    "mask-row": (single(target=labels(), task=CE, masks=[torch.ones(N, C).bool()]),
                 r"masks\[0\]: .*\(6,\).*got \(6, 5\)"),
    "weights-count": (single(weights=[1.0, 2.0]),
                      r"weights: expected shape \(1,\), one for each task, got \(2,\)"),
    "weights-scalar": (single(weights=torch.tensor(1.0)), r"weights: expected shape \(1,\).*got \(\)"),
    "log_vars-count": (single(log_vars=torch.ones(2)), r"log_vars: expected shape \(1,\).*got \(2,\)"),
    "target-device": (single(target=META), r"targets\[0\]: expected a tensor on cpu.*got meta"),
    "output-device": ({"outputs": [X, META], "targets": [Y, Y], "tasks": [MSE, MSE]},
                      r"outputs\[1\]: expected a tensor on cpu as outputs\[0\] is, got meta"),
    "mask-device": (single(masks=[TRUE.to("meta")]), r"masks\[0\]: expected a tensor on cpu.*got meta"),
    "weights-device": (single(weights=torch.ones(1, device="meta")),
                       r"weights: expected a tensor on cpu.*got meta"),
    "log_vars-device": (single(log_vars=torch.ones(1, device="meta")),
                        r"log_vars: expected a tensor on cpu.*got meta"),
    "weight-device": (single(target=labels(), task=Task.cross_entropy(weight=torch.ones(C, device="meta"))),
                      r"tasks\[0\]: weight is on meta, the outputs on cpu; Task.to"),
}  # fmt: skip


ENTRIES = {"loss": mmcore.multi_task_loss, "value_and_grad": mmcore.multi_task_value_and_grad}


@pytest.mark.parametrize(("name", "entry"), [
    (name, entry) for name in (*WRONG_TYPES, *WRONG_VALUES) for entry in ENTRIES
    # Targets that require a gradient lose none where nothing is recorded.
    if (name, entry) != ("target-grad", "value_and_grad")
])  # fmt: skip
def test_wrong_arguments_are_refused_before_anything_runs(
    name: str, entry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def touched(name: str) -> None:
        pytest.fail("a backend was asked for")

    monkeypatch.setattr(losses_op, "load_backend", touched)
    error = TypeError if name in WRONG_TYPES else ValueError
    arguments, message = {**WRONG_TYPES, **WRONG_VALUES}[name]
    with pytest.raises(error, match=f"^{message}"):
        ENTRIES[entry](**arguments)


@pytest.mark.parametrize("name", [n for n in (*WRONG_TYPES, *WRONG_VALUES) if n != "target-grad"])
def test_wrong_arguments_are_refused_in_place_too(name: str) -> None:
    error = TypeError if name in WRONG_TYPES else ValueError
    arguments, message = {**WRONG_TYPES, **WRONG_VALUES}[name]
    outputs = arguments["outputs"]
    if isinstance(outputs, list):
        arguments = {**arguments, "outputs": [x.clone() if isinstance(x, Tensor) else x for x in outputs]}
    with pytest.raises(error, match=f"^{message}"):
        mmcore.multi_task_value_and_grad(**arguments, inplace_gradient=True)


def test_the_head_that_is_wrong_is_named() -> None:
    call = two()
    call["targets"][1] = randn(N, 4)
    with pytest.raises(ValueError, match=r"^targets\[1\]: expected shape \(6, 3\)"):
        mmcore.multi_task_loss(**call)
    with pytest.raises(TypeError, match=r"^masks\[1\]: expected a bool tensor"):
        mmcore.multi_task_loss(**two(), masks=[None, 1])


def test_options_have_names() -> None:
    with pytest.raises(TypeError, match="positional"):
        mmcore.multi_task_loss([X], [Y], [MSE], [1.0])  # type: ignore[misc]
    with pytest.raises(TypeError, match="temperature"):
        mmcore.multi_task_loss([X], [Y], [MSE], temperature=1.0)  # type: ignore[call-arg]


WRONG_TASKS: dict[str, tuple[Callable[[], Task], type[Exception], str]] = {
    "reduction": (lambda: Task.mse(reduction="batchmean"), ValueError,
                  r"reduction: expected one of mean, sum, none"),
    "smoothing": (lambda: Task.cross_entropy(label_smoothing=1.5), ValueError,
                  r"label_smoothing: .*0 to 1, got 1.5"),
    "smoothing-nan": (lambda: Task.cross_entropy(label_smoothing=float("nan")), ValueError,
                      r"label_smoothing: .*nan"),
    "smoothing-str": (lambda: Task.cross_entropy(label_smoothing="a"), TypeError,
                      r"label_smoothing: expected a number"),
    "z_loss": (lambda: Task.cross_entropy(z_loss=-1), ValueError, r"z_loss: .*0 or more, got -1"),
    "z_loss-inf": (lambda: Task.cross_entropy(z_loss=float("inf")), ValueError, r"z_loss: .*got inf"),
    "z_loss-bool": (lambda: Task.cross_entropy(z_loss=True), TypeError,
                    r"z_loss: expected a number, got True"),
    "focal": (lambda: Task.cross_entropy(focal_gamma=-1), ValueError, r"focal_gamma: .*0 or more, got -1"),
    "focal-smooth": (lambda: Task.cross_entropy(focal_gamma=2, label_smoothing=0.1), ValueError,
                     r"focal_gamma: not together with label_smoothing"),
    "class_dim": (lambda: Task.cross_entropy(class_dim=2), ValueError, r"class_dim: expected 1 or -1, got 2"),
    "class_dim-float": (lambda: Task.cross_entropy(class_dim=1.0), TypeError,
                        r"class_dim: expected an int, got 1.0"),
    "ignore_index": (lambda: Task.cross_entropy(ignore_index=2.0), TypeError,
                     r"ignore_index: expected an int"),
    "ignore_index-big": (lambda: Task.cross_entropy(ignore_index=2**63), ValueError,
                         r"ignore_index: .*int64"),
    "beta": (lambda: Task.smooth_l1(beta=-1), ValueError, r"beta: .*0 or more, got -1"),
    "delta": (lambda: Task.huber(delta=0), ValueError, r"delta: expected a number above 0, got 0"),
    "temperature": (lambda: Task.kl_distillation(temperature=0), ValueError,
                    r"temperature: .*above 0, got 0"),
    "scale": (lambda: Task.mse(uncertainty_scale=-1), ValueError, r"uncertainty_scale: .*0 or more, got -1"),
    "weight-list": (lambda: Task.cross_entropy(weight=[1.0]), TypeError,
                    r"weight: expected a tensor, got list"),
    "weight-int": (lambda: Task.cross_entropy(weight=torch.ones(3).long()), ValueError,
                   r"weight: .*got torch.int64"),
    "weight-2d": (lambda: Task.cross_entropy(weight=torch.ones(1, 3)), ValueError,
                  r"weight: .*shape \(1, 3\)"),
    "weight-grad": (lambda: Task.cross_entropy(weight=torch.ones(3, requires_grad=True)), ValueError,
                    r"weight: gets no gradient; detach it"),
    "pos_weight": (lambda: Task.bce_with_logits(pos_weight=1.0), TypeError, r"pos_weight: expected a tensor"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_TASKS)
def test_tasks_that_cannot_be_are_refused_when_made(name: str) -> None:
    make, error, message = WRONG_TASKS[name]
    with pytest.raises(error, match=f"^{message}"):
        make()


@pytest.mark.parametrize("wrong", [C, -1, 2**40])
@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("backend", WAYS)
def test_a_class_out_of_range_is_named(backend: str, requires_grad: bool, wrong: int) -> None:
    outputs = [X, randn(3, C).requires_grad_(requires_grad)]
    target = torch.tensor([0, wrong, 1])
    before = outputs[1].detach().clone()
    with way(backend):
        with pytest.raises(
            IndexError, match=rf"^targets\[1\]: class {wrong} at row 1 is out of range for 5 classes"
        ):
            mmcore.multi_task_loss(outputs, [Y, target], [MSE, CE])
        # ... unless it is the one that means no label, or lies where there is none
        ignored = Task.cross_entropy(ignore_index=wrong)
        mask = torch.tensor([True, False, True])
        one, _ = mmcore.multi_task_loss(outputs, [Y, target], [MSE, ignored])
        other, _ = mmcore.multi_task_loss(outputs, [Y, target], [MSE, CE], masks=[None, mask])
    assert torch.equal(one, other)
    assert torch.equal(outputs[1].detach(), before)


@pytest.mark.parametrize("backend", WAYS)
def test_a_refused_class_leaves_in_place_outputs_alone(backend: str) -> None:
    """Nothing is written before all that can be wrong is known."""
    outputs = [randn(N, C).requires_grad_() * 1, randn(40, C, seed=4).requires_grad_() * 1]
    before = [x.detach().clone() for x in outputs]
    target = torch.zeros(40, dtype=torch.int64)
    target[-1] = C
    with way(backend), pytest.raises(IndexError, match=r"targets\[1\]: class 5 at row 39"):
        mmcore.multi_task_loss(outputs, [Y, target], [MSE, CE], inplace_gradient=True)
    assert all(torch.equal(a.detach(), b) for a, b in zip(outputs, before, strict=True))


def test_a_failed_call_leaves_the_next_one_alone() -> None:
    wanted, _ = mmcore.multi_task_loss(**two())
    for _ in range(3):
        with pytest.raises(ValueError, match="weights"):
            mmcore.multi_task_loss(**two(), weights=[1.0])
    assert torch.equal(mmcore.multi_task_loss(**two())[0], wanted)


# how it can be called


@pytest.mark.parametrize("backend", WAYS)
def test_names_are_only_names(backend: str) -> None:
    """Mappings of any kind and order give what sequences give, as dicts in the order of the tasks."""
    call, mask = two(), randn(N, seed=8) > 0
    names = ("kind", "place")
    how = {"weights": [0.5, 2.0], "log_vars": randn(2)}
    with way(backend):
        total, losses = mmcore.multi_task_loss(**call, masks=[None, mask], **how)
        by_name, of_name = mmcore.multi_task_loss(
            UserDict(reversed(list(zip(names, call["outputs"], strict=True)))),
            MappingProxyType(dict(reversed(list(zip(names, call["targets"], strict=True))))),
            dict(zip(names, call["tasks"], strict=True)),
            masks={"place": mask},
            **how,
        )
        tuples, _ = mmcore.multi_task_loss(
            tuple(call["outputs"]), tuple(call["targets"]), tuple(call["tasks"]), masks=(None, mask), **how
        )
        _, _, gradients = mmcore.multi_task_value_and_grad(
            *(dict(zip(names, call[key], strict=True)) for key in ("outputs", "targets", "tasks"))
        )
    assert isinstance(losses, Tensor)
    assert losses.shape == (2,)
    assert isinstance(of_name, dict)
    assert list(of_name) == list(names)
    assert torch.equal(torch.stack([*of_name.values()]), losses)
    assert torch.equal(by_name, total)
    assert torch.equal(tuples, total)
    assert isinstance(gradients.outputs, dict)
    assert list(gradients.outputs) == list(names)


@pytest.mark.parametrize("backend", WAYS)
def test_losses_are_a_tuple_where_one_is_not_reduced(backend: str) -> None:
    call = two()
    call["tasks"][1] = Task.mse(reduction="none")
    with way(backend):
        total, losses = mmcore.multi_task_loss(**call)
    assert isinstance(losses, tuple)
    assert [tuple(x.shape) for x in losses] == [(), (N, 3)]
    assert torch.equal(total, losses[0])  # the other is not in it


def test_weights_as_numbers_are_made_once() -> None:
    with torch.inference_mode():
        losses_op._as_weights([0.25, 4], torch.ones(2))
    made = losses_op._as_weights((0.25, 4.0), torch.ones(2))
    assert losses_op._as_weights([0.25, 4], torch.ones(2)) is made
    assert torch.equal(made, torch.tensor([0.25, 4.0]))
    assert not made.is_inference()
    with FakeTensorMode() as mode:
        fake = losses_op._as_weights([0.5, 0.125], mode.from_tensor(torch.ones(2)))
    assert isinstance(fake, FakeTensor)
    assert not isinstance(losses_op._as_weights([0.5, 0.125], torch.ones(2)), FakeTensor)


@pytest.mark.parametrize("backend", WAYS)
def test_weights_may_be_numbers(backend: str) -> None:
    with way(backend):
        as_list, _ = mmcore.multi_task_loss(**two(), weights=[0.5, 2])
        as_tuple, _ = mmcore.multi_task_loss(**two(), weights=(0.5, 2.0))
        as_tensor, losses = mmcore.multi_task_loss(**two(), weights=torch.tensor([0.5, 2.0]))
    assert torch.equal(as_list, as_tensor)
    assert torch.equal(as_tuple, as_tensor)
    torch.testing.assert_close(as_tensor, 0.5 * losses[0] + 2 * losses[1])


@pytest.mark.parametrize("backend", WAYS)
def test_masks_of_the_first_dimensions_speak_for_the_rest(backend: str) -> None:
    x, y = randn(4, 3, 5).requires_grad_(), randn(4, 3, 5, seed=2)
    target = torch.zeros(4, 3, dtype=torch.int64)
    short, middle = randn(4) > 0, randn(4, 3) > 0
    rows = Task.cross_entropy(class_dim=-1)
    with way(backend):
        for mask in (short, middle):
            whole = mask.reshape(*mask.shape, *(1,) * (3 - mask.dim())).expand(4, 3, 5)
            pairs = [(MSE, y, whole), (rows, target, whole[..., 0])]
            for task, t, full in pairs:
                a, _ = mmcore.multi_task_loss([x], [t], [task], masks=[mask])
                b, _ = mmcore.multi_task_loss([x], [t], [task], masks=[full])
                assert torch.equal(a, b)
                assert torch.equal(torch.autograd.grad(a, x)[0], torch.autograd.grad(b, x)[0])
        scalar, _ = mmcore.multi_task_loss([x], [y], [MSE], masks=[torch.tensor(False)])
    assert scalar == 0


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
@pytest.mark.parametrize("backend", WAYS)
def test_classes_may_be_any_integers(backend: str, dtype: torch.dtype) -> None:
    with way(backend):
        wanted, _ = mmcore.multi_task_loss([X], [labels()], [CE])
        found, _ = mmcore.multi_task_loss([X], [labels().to(dtype)], [CE])
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.int8, torch.bool])
@pytest.mark.parametrize("backend", WAYS)
def test_labels_of_elements_may_be_any_numbers(backend: str, dtype: torch.dtype) -> None:
    target = (Y > 0).to(dtype)
    with way(backend):
        for task in (BCE, MSE):
            wanted, _ = mmcore.multi_task_loss([X], [(Y > 0).float()], [task])
            found, _ = mmcore.multi_task_loss([X], [target], [task])
            assert torch.equal(found, wanted)


# tasks


TASKS = [
    Task.cross_entropy(weight=torch.tensor([1.0, 2.0]), label_smoothing=0.1, z_loss=1e-3, class_dim=-1),
    Task.cross_entropy(focal_gamma=2, ignore_index=3, reduction="sum"),
    Task.bce_with_logits(pos_weight=torch.tensor([2.0]), uncertainty_scale=2.0),
    Task.smooth_l1(beta=0.5, reduction="none"),
    Task.huber(delta=2.0),
    Task.kl_distillation(temperature=3.0),
    Task.cosine(),
    Task.value(),
]


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_tasks_survive_pickles_and_copies(task: Task) -> None:
    for other in (pickle.loads(pickle.dumps(task)), copy.deepcopy(task), copy.copy(task), task.to("cpu")):
        assert other.options == task.options
        assert repr(other) == repr(task)
        assert (other.weight is None) == (task.weight is None)
        if task.weight is not None:
            assert torch.equal(other.weight, task.weight)
    assert task.to(torch.float64).weight is None or task.to(torch.float64).weight.dtype == torch.float64


def test_tasks_say_what_they_are() -> None:
    assert [repr(task) for task in TASKS[1:4]] == [
        "Task.cross_entropy(focal_gamma=2.0, ignore_index=3, reduction='sum')",
        "Task.bce_with_logits(pos_weight=<1>, uncertainty_scale=2.0)",
        "Task.smooth_l1(beta=0.5, reduction='none')",
    ]
    assert repr(Task.huber(delta=2.0)) == "Task.huber(delta=2.0)"
    assert (Task.mse().kind, Task.mse().reduction) == ("mse", "mean")
    assert Task.smooth_l1(beta=0).kind == "l1"


def test_unpickled_tasks_give_the_same_numbers() -> None:
    task = Task.cross_entropy(weight=torch.linspace(0.5, 2, C), label_smoothing=0.1, z_loss=1e-2)
    wanted, _ = mmcore.multi_task_loss([X], [labels()], [task])
    for other in (pickle.loads(pickle.dumps(task)), copy.deepcopy(task)):
        assert torch.equal(mmcore.multi_task_loss([X], [labels()], [other])[0], wanted)


# routing


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the backends whose forward and backward have run."""
    from mmcore.backends import load_backend

    names: list[str] = []
    for backend in BACKENDS:
        module = load_backend(backend)
        for function in ("multi_task_loss", "multi_task_loss_backward"):
            original = getattr(module, function)

            def record(*args: Any, of: Callable[..., Any] = original, by: str = backend) -> Any:
                names.append(by)
                return of(*args)

            monkeypatch.setattr(module, function, record)
    # The usual calls reach the core without the cpu backend's conversions; None sends a call there.
    original_core = losses_op._core.losses_with_tensors

    def record_core(*args: Any) -> Any:
        result = original_core(*args)
        if result is not None:
            names.append("core")
        return result

    monkeypatch.setattr(losses_op._core, "losses_with_tensors", record_core)
    return names


def test_tensors_on_the_cpu_run_on_the_cpu_backend(
    called: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MMCORE_BACKEND", raising=False)
    mmcore.multi_task_loss(**two())[0].backward()
    assert called == ["core"]  # the gradients came with the losses
    called.clear()
    (2 * mmcore.multi_task_loss(**two())[0]).backward()
    assert called == ["core", "cpu"]
    called.clear()
    mmcore.multi_task_loss(**two(torch.float64))[0].backward()
    assert called == ["cpu"]


def test_a_backend_can_be_forced(called: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for backend in BACKENDS:
        called.clear()
        with mmcore.backend(backend):
            total, _ = mmcore.multi_task_loss(**two())
        total.backward(torch.tensor(2.0))  # where its forward did
        assert called == [backend, backend]
    called.clear()
    monkeypatch.setenv("MMCORE_BACKEND", "reference")
    mmcore.multi_task_loss(**two())[0].backward()
    assert called == ["reference"]


def test_a_backend_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMCORE_BACKEND", "gpu")
    with pytest.raises(ValueError, match=r"MMCORE_BACKEND: expected one of .*got 'gpu'"):
        mmcore.multi_task_loss(**two())


def test_tensors_without_memory_have_shape_and_dtype() -> None:
    outputs = [torch.empty(N, C, dtype=torch.bfloat16, device="meta", requires_grad=True),
               torch.empty(N, 3, device="meta", requires_grad=True)]  # fmt: skip
    targets = [torch.empty(N, dtype=torch.int64, device="meta"), torch.empty(N, 3, device="meta")]
    total, losses = mmcore.multi_task_loss(outputs, targets, [CE, Task.mse(reduction="none")])
    assert (total.shape, total.dtype, total.device.type) == ((), torch.float32, "meta")
    assert [tuple(x.shape) for x in losses] == [(), (N, 3)]
    (total + losses[1].sum()).backward()
    for x in outputs:
        assert x.grad is not None
        assert (x.grad.shape, x.grad.dtype) == (x.shape, x.dtype)


def test_fake_tensors_stay_fake() -> None:
    with FakeTensorMode():
        x = torch.empty(N, C, dtype=torch.float16, requires_grad=True)
        total, losses = mmcore.multi_task_loss([x], [torch.zeros(N, dtype=torch.int64)], [CE])
        total.backward()
    assert isinstance(total, FakeTensor)
    assert losses.shape == (1,)
    assert isinstance(x.grad, FakeTensor)
    assert (x.grad.shape, x.grad.dtype) == ((N, C), torch.float16)


# autograd


@pytest.mark.parametrize("backend", WAYS)
def test_only_what_requires_a_gradient_gets_one(backend: str) -> None:
    call = two()
    call["outputs"][0].requires_grad_(False)
    weights, log_vars = torch.ones(2), torch.zeros(2, requires_grad=True)
    with way(backend):
        total, losses = mmcore.multi_task_loss(**call, weights=weights, log_vars=log_vars)
        total.backward()
        frozen, _ = mmcore.multi_task_loss(call["outputs"][:1], call["targets"][:1], call["tasks"][:1])
    assert call["outputs"][0].grad is None
    assert weights.grad is None
    assert (call["outputs"][1].grad != 0).any()
    assert (log_vars.grad != 0).all()
    assert losses.requires_grad
    assert not frozen.requires_grad


@pytest.mark.parametrize("backend", WAYS)
def test_any_upstream_gradient_is_taken(backend: str) -> None:
    """Of the total, of each loss, of both, of one alone, of unreduced losses; and over and over again."""
    x, y = randn(N, C).requires_grad_(), randn(N, C, seed=2).requires_grad_()
    tasks = [CE, MSE, Task.l1(reduction="none")]
    target = [labels(), Y, X]
    weights = torch.tensor([0.5, 2.0, 3.0], requires_grad=True)

    def eager() -> tuple[Tensor, list[Tensor]]:
        losses = [
            torch.nn.functional.cross_entropy(x, target[0]),
            torch.nn.functional.mse_loss(y, Y),
            (x + y - X).abs(),
        ]
        return weights[0] * losses[0] + weights[1] * losses[1], losses

    functions: list[Callable[[Tensor, Any], Tensor]] = [
        lambda total, losses: total,
        lambda total, losses: -2.5 * total,
        lambda total, losses: total * 0,
        lambda total, losses: 3 * losses[0] + losses[1],
        lambda total, losses: total + losses[1].square(),
        lambda total, losses: losses[1] + 0,
        lambda total, losses: (losses[2] * X).sum(),
        lambda total, losses: total.square() + losses[0].exp() + (losses[2] ** 2).mean(),
        lambda total, losses: total + 0,
    ]
    with way(backend):
        total, losses = mmcore.multi_task_loss([x, y, x + y], target, tasks, weights=weights)
        wanted_total, wanted_losses = eager()
        for function in functions:
            found, wanted = (
                torch.autograd.grad(
                    function(a, b),
                    [x, y, weights],
                    retain_graph=True,
                    allow_unused=True,
                    materialize_grads=True,
                )
                for a, b in ((total, losses), (wanted_total, wanted_losses))
            )
            for g, w in zip(found, wanted, strict=True):
                torch.testing.assert_close(g, w, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", WAYS)
def test_gradients_add_up(backend: str) -> None:
    """One tensor as two outputs, and gradients that are there already."""
    x = randn(N, C).requires_grad_()
    with way(backend):
        (alone,) = torch.autograd.grad(mmcore.multi_task_loss([x], [Y], [MSE])[0], x)
        x.grad = torch.ones_like(x)
        total, _ = mmcore.multi_task_loss([x, x], [Y, Y], [MSE, MSE])
        total.backward(retain_graph=True)
        total.backward()
    torch.testing.assert_close(x.grad, 1 + 4 * alone)


@pytest.mark.parametrize("backend", WAYS)
def test_a_kept_gradient_belongs_to_whoever_gets_it(backend: str) -> None:
    """Backward twice: changing what the first gave changes nothing of the second."""
    call = two()
    with way(backend):
        total, _ = mmcore.multi_task_loss(**call)
        first = torch.autograd.grad(total, call["outputs"], retain_graph=True)
        wanted = [g.clone() for g in first]
        for g in first:
            g.fill_(torch.nan)
        second = torch.autograd.grad(total, call["outputs"])
    assert all(torch.equal(a, b) for a, b in zip(second, wanted, strict=True))


@pytest.mark.parametrize("upstream", [1.0, 2.0])
@pytest.mark.parametrize("backend", WAYS)
def test_a_graph_is_freed_after_its_backward(backend: str, upstream: float) -> None:
    call = two()
    with way(backend):
        total, _ = mmcore.multi_task_loss(**call)
        total.backward(torch.tensor(upstream))
        with pytest.raises(RuntimeError, match="second time"):
            total.backward(torch.tensor(upstream))


@pytest.mark.parametrize("backend", WAYS)
def test_a_changed_output_is_noticed(backend: str) -> None:
    """Where the gradient is made anew: the one that came with the losses is right whatever happened since."""
    call = two()
    with way(backend):
        wanted = torch.autograd.grad(mmcore.multi_task_loss(**call)[0], call["outputs"])
        total, _ = mmcore.multi_task_loss(**call)
        with torch.no_grad():
            call["outputs"][0].zero_()
        found = torch.autograd.grad(total, call["outputs"], retain_graph=True)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            total.backward(torch.tensor(2.0))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("backend", WAYS)
def test_without_gradients_the_numbers_are_the_same(backend: str) -> None:
    call = two()
    with way(backend):
        recorded = mmcore.multi_task_loss(**call)
        with torch.no_grad():
            plain = mmcore.multi_task_loss(**call)
        with torch.inference_mode():
            inferred = mmcore.multi_task_loss(**call)
        value = mmcore.multi_task_value_and_grad(**call)
    assert recorded[0].requires_grad
    assert not plain[0].requires_grad
    assert not value[0].requires_grad
    assert inferred[0].is_inference()
    for other in (plain, inferred, value):
        assert torch.equal(recorded[0], other[0])
        assert torch.equal(recorded[1], other[1])
    assert all(x.grad is None for x in call["outputs"])


@pytest.mark.parametrize("backend", WAYS)
def test_value_and_grad_goes_on_from_the_outputs(backend: str) -> None:
    """As its docstring says, and gradients of what does not require one too."""
    leaf, log_vars = randn(4, C).requires_grad_(), torch.zeros(1, requires_grad=True)
    data = randn(N, 4, seed=5)
    with way(backend):
        total, _ = mmcore.multi_task_loss([data @ leaf], [labels()], [CE], log_vars=log_vars)
        wanted = torch.autograd.grad(total, [leaf, log_vars])
        output = data @ leaf
        _, _, gradients = mmcore.multi_task_value_and_grad([output], [labels()], [CE], log_vars=log_vars)
        torch.autograd.backward([output], list(gradients.outputs))
        _, _, of_constants = mmcore.multi_task_value_and_grad([output.detach()], [labels()], [CE])
    torch.testing.assert_close(leaf.grad, wanted[0])
    assert torch.equal(gradients.log_vars, wanted[1])
    assert (gradients.weights, of_constants.log_vars) == (None, None)
    torch.testing.assert_close(data.mT @ of_constants.outputs[0], wanted[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", WAYS)
def test_autocast_casts_nothing(backend: str, dtype: torch.dtype) -> None:
    def call() -> list[Tensor]:
        given = two(dtype)
        total, losses = mmcore.multi_task_loss(**given)
        return [total, losses, *torch.autograd.grad(total, given["outputs"])]

    with way(backend):
        wanted = call()
        with torch.autocast("cpu", torch.bfloat16):
            found = call()
    assert found[0].dtype == torch.float32
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", [
    LossCase(("ce-all", "mse"), (4,), 6, mask="full", log_vars="unit", junk="finite"),
    LossCase(("ce-focal", "kl-t", "huber"), (3, 2), 5, "mix", "fp64", weights="unit", upstream="all"),
], ids=lambda case: case.id)  # fmt: skip
def test_second_gradients_are_the_references(case: LossCase, backend: str) -> None:
    def twice() -> list[Tensor]:
        inputs = case.inputs()
        leaves = [x.detach().requires_grad_() for x in inputs.outputs]
        total, losses = mmcore.multi_task_loss(
            leaves, inputs.targets, case.tasks(inputs), weights=inputs.weights, log_vars=inputs.log_vars,
            masks=inputs.masks,
        )  # fmt: skip
        value = total + sum(((i + 1) * x.sum() for i, x in enumerate(losses)), torch.zeros(()))
        first = torch.autograd.grad(value, leaves, create_graph=True)
        penalty = sum((g.square().sum() for g in first), torch.zeros(()))
        return [*first, *torch.autograd.grad(penalty, leaves)]

    with mmcore.backend(backend):
        found = twice()
    with mmcore.backend("reference"):
        expected = twice()
    assert any((g != 0).any() for g in found[len(found) // 2 :])
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("backend", WAYS)
def test_parameters_and_subclasses_are_tensors(backend: str) -> None:
    class Labelled(torch.Tensor):
        pass

    call = two()
    with way(backend):
        wanted, _ = mmcore.multi_task_loss(**call, weights=torch.tensor([0.5, 2.0]))
        parameter = torch.nn.Parameter(torch.tensor([0.5, 2.0]))
        assert torch.equal(mmcore.multi_task_loss(**call, weights=parameter)[0], wanted)
        call["outputs"] = [x.detach().as_subclass(Labelled) for x in call["outputs"]]
        total, _ = mmcore.multi_task_loss(**call, weights=parameter)
        assert torch.equal(total.as_subclass(Tensor), wanted)
        total.as_subclass(Tensor).backward()
    assert parameter.grad is not None


@pytest.mark.parametrize("backend", WAYS)
def test_views_that_change_the_sign_are_read_as_what_they_are(backend: str) -> None:
    """The imaginary part of a conjugate is the same memory, and a bit that says negative."""
    x = torch.complex(X, Y).conj().imag
    assert x.is_neg()
    with way(backend):
        for task in (MSE, Task.cosine()):
            found, _, grads = mmcore.multi_task_value_and_grad([x], [X], [task])
            wanted, _, plain = mmcore.multi_task_value_and_grad([-Y], [X], [task])
            assert torch.equal(found, wanted)
            assert torch.equal(grads.outputs[0], plain.outputs[0])
            assert torch.equal(
                mmcore.multi_task_loss([X], [x], [task])[0], mmcore.multi_task_loss([X], [-Y], [task])[0]
            )


@pytest.mark.parametrize("backend", WAYS)
def test_hooks_and_checkpoints_see_an_ordinary_function(backend: str) -> None:
    from torch.utils.checkpoint import checkpoint

    call = two()
    saved: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t)
        return t.clone()

    def loss(*outputs: Tensor) -> Tensor:
        return mmcore.multi_task_loss(list(outputs), call["targets"], call["tasks"])[0]

    with way(backend):
        wanted = torch.autograd.grad(2 * loss(*call["outputs"]), call["outputs"])
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            total = loss(*call["outputs"])
        packed = torch.autograd.grad(total, call["outputs"], torch.tensor(2.0))
        total = checkpoint(loss, *call["outputs"], use_reentrant=False)
        again = torch.autograd.grad(total, call["outputs"], torch.tensor(2.0))
    assert len(saved) >= 2
    for a, b, c in zip(wanted, packed, again, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


# in place


def made(leaf: Tensor, number: float = 1.0) -> Tensor:
    """What a layer makes of a leaf, with a backward that does not need its own result."""
    return leaf * number


@pytest.mark.parametrize("upstream", [1.0, -0.25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("backend", WAYS)
def test_gradients_overwrite_the_outputs(backend: str, dtype: torch.dtype, upstream: float) -> None:
    call = two(dtype)
    leaves = call["outputs"]
    log_vars = torch.tensor([0.3, -0.5], requires_grad=True)
    with way(backend):
        total, losses = mmcore.multi_task_loss(**call, log_vars=log_vars)
        wanted = torch.autograd.grad(total, [log_vars, *leaves], torch.tensor(upstream, dtype=total.dtype))
        call["outputs"] = [made(x) for x in leaves]
        versions = [x._version for x in call["outputs"]]
        addresses = [x.data_ptr() for x in call["outputs"]]
        other, other_losses = mmcore.multi_task_loss(**call, log_vars=log_vars, inplace_gradient=True)
        assert all(x._version > v for x, v in zip(call["outputs"], versions, strict=True))
        given: list[int] = []
        for x in call["outputs"]:
            x.register_hook(lambda g: given.append(g.data_ptr()))
        found = torch.autograd.grad(other, [log_vars, *leaves], torch.tensor(upstream, dtype=total.dtype))
    assert torch.equal(other, total)
    assert torch.equal(other_losses, losses)
    assert sorted(given) == sorted(addresses)
    for a, b in zip(found, wanted, strict=True):
        if upstream == 1:
            assert torch.equal(a, b)
        else:  # rounded to the output's dtype before it is scaled
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", WAYS)
def test_value_and_grad_may_overwrite_too(backend: str) -> None:
    call = two()
    call["outputs"] = [x.detach() for x in call["outputs"]]
    with way(backend):
        total, _, wanted = mmcore.multi_task_value_and_grad(**call)
        call["outputs"] = [x.clone() for x in call["outputs"]]
        other, _, found = mmcore.multi_task_value_and_grad(**call, inplace_gradient=True)
    assert torch.equal(total, other)
    for x, a, b in zip(call["outputs"], found.outputs, wanted.outputs, strict=True):
        assert torch.equal(a, b)
        assert a.data_ptr() == x.data_ptr()


@pytest.mark.parametrize("backend", WAYS)
def test_nothing_is_overwritten_unless_asked_and_wanted(backend: str) -> None:
    call = two()
    kept = [x.detach().clone() for x in call["outputs"]]
    call["outputs"] = [made(x) for x in call["outputs"]]
    with way(backend):
        mmcore.multi_task_loss(**call)[0].backward()
        with torch.no_grad():
            mmcore.multi_task_loss(**call, inplace_gradient=True)
        constants = [x.detach().clone() for x in call["outputs"]]
        versions = [x._version for x in constants]
        log_vars = torch.zeros(2, requires_grad=True)
        total, _ = mmcore.multi_task_loss(
            constants, call["targets"], call["tasks"], log_vars=log_vars, inplace_gradient=True
        )
        total.backward()
    assert [x._version for x in constants] == versions
    for x, y, z in zip(call["outputs"], constants, kept, strict=True):
        assert torch.equal(x.detach(), z)
        assert torch.equal(y, z)


@pytest.mark.parametrize("backend", WAYS)
def test_what_cannot_be_overwritten_is_refused_and_left_alone(backend: str) -> None:
    leaf, other = randn(N, C).requires_grad_(), randn(C, N).requires_grad_()
    whole = made(randn(2 * N, C).requires_grad_())
    shared = [whole[:N], whole[N:]]
    with way(backend):
        with pytest.raises(ValueError, match=r"^outputs\[0\]: inplace_gradient would overwrite a leaf"):
            mmcore.multi_task_loss([leaf], [Y], [MSE], inplace_gradient=True)
        with pytest.raises(ValueError, match=r"^outputs\[1\]: inplace_gradient would overwrite a leaf"):
            mmcore.multi_task_value_and_grad([made(leaf), leaf], [Y, Y], [MSE, MSE], inplace_gradient=True)
        transposed = made(other).mT
        with pytest.raises(
            ValueError, match=r"^outputs\[0\]: inplace_gradient needs contiguous outputs, got str"
        ):
            mmcore.multi_task_loss([transposed], [Y], [MSE], inplace_gradient=True)
        for outputs in (shared, [shared[0], shared[0]]):
            with pytest.raises(
                ValueError, match=r"^outputs\[1\]: inplace_gradient needs outputs that share no mem"
            ):
                mmcore.multi_task_loss(outputs, [Y, Y], [MSE, MSE], inplace_gradient=True)
    assert torch.equal(leaf, randn(N, C))
    assert torch.equal(transposed, other.mT)
    assert torch.equal(whole, randn(2 * N, C))


@pytest.mark.parametrize("backend", WAYS)
def test_outputs_without_elements_share_nothing(backend: str) -> None:
    outputs = [made(torch.zeros(0, C, requires_grad=True)) for _ in range(2)]
    with way(backend):
        total, _ = mmcore.multi_task_loss(outputs, [Y[:0], Y[:0]], [MSE, MSE], inplace_gradient=True)
        total.backward()
    assert total == 0


@pytest.mark.parametrize("backend", WAYS)
def test_whoever_else_needs_an_overwritten_output_is_told(backend: str) -> None:
    """Exp's backward needs its result: torch finds that it has changed."""
    x = randn(N, C).requires_grad_()
    with way(backend):
        output = x.exp()
        total, _ = mmcore.multi_task_loss([output], [Y], [MSE], inplace_gradient=True)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            total.backward()
        output = made(x)
        other = output.square().sum()
        total, _ = mmcore.multi_task_loss([output], [Y], [MSE], inplace_gradient=True)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            (total + other).backward()


@pytest.mark.parametrize("backend", WAYS)
def test_what_an_overwritten_output_cannot_give_any_more_is_refused(backend: str) -> None:
    """Gradients of single losses, a second backward, second derivatives: all are made from the outputs."""
    x = randn(N, C).requires_grad_()

    def call() -> tuple[Tensor, Any]:
        return mmcore.multi_task_loss([made(x), made(x)], [Y, Y], [MSE, MSE], inplace_gradient=True)

    with way(backend):
        with pytest.raises(RuntimeError, match="inplace_gradient only the total"):
            call()[1][0].backward()
        total, losses = call()
        with pytest.raises(RuntimeError, match="inplace_gradient only the total"):
            (total + losses[0]).backward()
        total, _ = call()
        torch.autograd.grad(total, x, retain_graph=True)
        with pytest.raises(RuntimeError, match="inplace_gradient the total can be differentiated once"):
            torch.autograd.grad(total, x)
        with pytest.raises(RuntimeError, match="inplace_gradient the total can be differentiated once"):
            torch.autograd.grad(call()[0], x, create_graph=True)


@pytest.mark.parametrize("backend", WAYS)
def test_an_unreduced_head_is_not_overwritten(backend: str) -> None:
    """Its gradient is not known before it is known what is made of its losses, so it may be a leaf."""
    x = randn(N, C).requires_grad_()
    leaf = randn(N, C, seed=6).requires_grad_()
    with way(backend):
        total, losses = mmcore.multi_task_loss(
            [made(x), leaf], [Y, Y], [MSE, Task.mse(reduction="none")], inplace_gradient=True
        )
        total.backward()
    assert x.grad is not None
    assert torch.equal(leaf, randn(N, C, seed=6))
    torch.testing.assert_close(losses[1], (leaf - Y).square())


# torch.func


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own, at its first jvp
@pytest.mark.parametrize("backend", WAYS)
def test_functional_gradients_are_those_of_autograd(backend: str) -> None:
    call = two(torch.float64)
    weights = torch.tensor([0.5, 2.0], dtype=torch.float64)

    def loss(weights: Tensor, *outputs: Tensor) -> Tensor:
        return mmcore.multi_task_loss(
            list(outputs), call["targets"], call["tasks"], weights=weights, log_vars=weights
        )[0]

    leaves = [weights.clone().requires_grad_(), *call["outputs"]]
    plain = [x.detach() for x in leaves]
    tangents = [torch.ones_like(x) for x in plain]
    with way(backend):
        wanted = torch.autograd.grad(loss(*leaves), leaves)
        found = torch.func.grad(loss, argnums=(0, 1, 2))(*plain)
        _, tangent = torch.func.jvp(loss, tuple(plain), tuple(tangents))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(tangent, sum((g.sum() for g in wanted), torch.zeros((), dtype=torch.float64)))


@pytest.mark.parametrize("backend", WAYS)
def test_vmap_is_a_loop(backend: str) -> None:
    """Over samples of a batch, targets and masks among them: gradients of each one's loss."""
    x, y = randn(4, N, C), randn(4, N, C, seed=2)
    target = torch.stack([labels(s) for s in range(4)])
    mask = randn(4, N, seed=3) > 0

    def loss(x: Tensor, y: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        tasks = [CE, Task.smooth_l1()]
        return mmcore.multi_task_loss([x, y], [target, x.detach() * 0], tasks, masks=[mask, mask])[0]

    with way(backend):
        found = torch.func.vmap(loss)(x, y, target, mask)
        grads = torch.func.vmap(torch.func.grad(loss))(x, y, target, mask)
        for i in range(4):
            torch.testing.assert_close(found[i], loss(x[i], y[i], target[i], mask[i]))
            torch.testing.assert_close(grads[i], torch.func.grad(loss)(x[i], y[i], target[i], mask[i]))


# threads and processes


def test_calls_from_several_threads_do_not_meet() -> None:
    cases = LOSS_CASES[::25]
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


class Losses(Dataset[Tensor]):
    """A sample is a call of the op, large enough for more than one thread, and its gradient."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        mmcore.set_num_threads(2)
        g = torch.Generator().manual_seed(index)
        outputs = [torch.randn(600, 300, generator=g, requires_grad=True) for _ in range(2)]
        targets = [torch.arange(600) % 300, torch.randn(600, 300, generator=g)]
        total, losses = mmcore.multi_task_loss(outputs, targets, [CE, MSE])
        sums = [x.double().sum(1) for x in torch.autograd.grad(total, outputs)]
        return torch.cat([total.detach()[None].double(), losses.detach().double(), *sums])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore:This DataLoader will create")
def test_forked_workers_give_the_same_bits() -> None:
    before = mmcore.get_num_threads()
    try:  # here first: the workers inherit a process that has had threads
        expected = [Losses()[i] for i in range(4)]
    finally:
        mmcore.set_num_threads(before)
    loader = DataLoader(Losses(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60)
    for found, wanted in zip(loader, expected, strict=True):
        assert torch.equal(found, wanted)


def test_the_call_does_not_change_its_arguments() -> None:
    call = two()
    lists = {key: copy.copy(value) for key, value in call.items()}
    masks: list[Tensor | None] = [None, TRUE]
    weights = [0.5, 2.0]
    mmcore.multi_task_loss(**call, masks=masks, weights=weights)[0].backward()
    assert all(a is b for key in call for a, b in zip(call[key], lists[key], strict=True))
    assert (masks, weights) == ([None, TRUE], [0.5, 2.0])


@pytest.mark.parametrize("upstream", [1.0, 2.0])
def test_no_call_keeps_its_tensors_alive(upstream: float) -> None:
    import gc
    import weakref

    def references() -> Iterator[weakref.ref[Tensor]]:
        call = two()
        total, losses = mmcore.multi_task_loss(**call)
        total.backward(torch.tensor(upstream))
        unused, _ = mmcore.multi_task_loss(**call)
        yield from (weakref.ref(t) for t in (*call["outputs"], *call["targets"], total, losses, unused))

    alive = list(references())
    gc.collect()
    assert all(reference() is None for reference in alive)


def test_numbers_that_a_graph_reads_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu = functools.lru_cache(lambda values, device: torch.tensor(values))
    monkeypatch.setattr(losses_op, "_constant", on_cpu)
    monkeypatch.setattr(losses_op, "_of_graphs", {})
    with FakeTensorMode():
        output = torch.empty(4, 5, device="cuda")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    passing = weakref.ref(losses_op._as_weights([0.5, 2.0], output))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    captured = weakref.ref(losses_op._as_weights([0.25, 4.0], output))
    on_cpu.cache_clear()
    gc.collect()
    assert passing() is None
    assert captured() is not None
