"""Run the losses op's Triton kernels against the oracle: on the CPU in Triton's interpreter, or on a GPU.

``TRITON_INTERPRET=1 python triton_losses_harness.py`` runs the table in the interpreter, which executes a
kernel's Python with NumPy: it shows wrong indices, masks and formulas, and nothing of what the compiler makes
of them.
"""

from __future__ import annotations

import mmap
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from cases import _pairwise
from loss_cases import KINDS, LossCase, _sensible
from loss_harness import Results, call, expected, run, terms, values
from tolerances import assert_losses_close
from triton_harness import _moved, _round_as_gpus_do

import mmcore
from mmcore.backends import replay
from mmcore.backends.triton import losses, multi_task_loss, scale_gradients
from mmcore.ops.losses import Head, LossProblem


class Sizes(NamedTuple):
    """What decides how the kernels cut a call to pieces."""

    max_block: int = losses.MAX_BLOCK
    tile: int = losses.TILE
    counted_here: int = losses.COUNTED_HERE
    slots: int = losses.SLOTS
    narrow: int = losses.NARROW
    vector_bytes: int = losses.VECTOR_BYTES
    vectors: int = losses.VECTORS
    lanes: int = losses.LANES
    sums: int = losses.SUMS


class KernelCase(NamedTuple):
    """A call of the op, and sizes of pieces."""

    case: LossCase
    sizes: Sizes

    @property
    def id(self) -> str:
        """What is not the default."""
        changed = [f"{n}_{v}" for n, v in self.sizes._asdict().items() if v != Sizes._field_defaults[n]]
        return "-".join((self.case.id, *changed))


_NORMAL = Sizes()
# Blocks, tiles and parts with few numbers.
_SMALL = Sizes(max_block=16, tile=16, counted_here=2, slots=4, sums=2)
_LONG = Sizes(max_block=4, tile=16, vector_bytes=4, vectors=2, lanes=2)  # rows of several tiles, as long ones
_TILES = Sizes(
    tile=32, slots=8, narrow=0
)  # several tiles for each program, in int64; labels counted in steps

_AXES: dict[str, tuple[Any, ...]] = {
    "kind": tuple(KINDS),
    "sizes": (_NORMAL, _SMALL, _TILES, _LONG),
    "lead": ((7,), (2, 3), (1,), (11,), (), (0,)),
    "columns": (5, 17, 33, 16, 1, 0),
    "reduction": ("mean", "sum", "none"),
    "dtypes": ("fp32", "bf16", "fp16", "bf16-fp32", "fp32-fp64", "bool", "uint8"),
    "mask": ("none", "first", "full"),
    "absent": ("some", "some", "none", "all"),
    "ignored": ("some", "none", "all"),
    "junk": ("nan", "inf"),
    "content": ("unit", "large", "offset", "wide", "small"),
    "layout": ("contiguous", "sliced", "transposed", "expanded-batch"),
    "target_layout": ("contiguous", "stepped", "transposed"),
    "class_dim": (1, -1),
    "weights": ("none", "unit", "signs"),
    "log_vars": ("none", "unit", "wide"),
    "upstream": ("one", "scaled", "all", "losses"),
    "needs": ("all", "all", "outputs", "scalars"),
}


def _table() -> Iterator[KernelCase]:
    for row in _pairwise(_AXES):
        kinds, sizes = (row.pop("kind"),), row.pop("sizes")
        if sizes in (_SMALL, _LONG):
            # the interpreter takes a millisecond for a line of a kernel: two blocks of few rows are enough
            row["lead"] = {(7,): (5,), (11,): (3,)}.get(row["lead"], row["lead"])
            row["columns"] = min(row["columns"], 17)
        yield KernelCase(_sensible(LossCase(kinds, **row)), sizes)
    # heads of all kinds in one launch
    kinds = tuple(KINDS)
    how: dict[str, Any] = {"mask": "mix", "weights": "signs", "log_vars": "unit"}
    yield KernelCase(LossCase(kinds, (5,), 9, dtypes="mixed", **how), _NORMAL)
    yield KernelCase(LossCase(kinds[::2], (2, 3), 6, "mix", dtypes="int64", upstream="all", **how), _NORMAL)
    yield KernelCase(LossCase(kinds[1::2], (2, 2), 14, "mix", upstream="all", **how), _SMALL)
    how = {"mask": "full", "absent": "one-head", "upstream": "losses"}
    yield KernelCase(LossCase(("mse",) * 32, (4,), 6, **how), _NORMAL)
    # rows of several blocks, labels in several parts, and programs of several tiles, of real sizes
    for kind in ("ce", "ce-smooth", "ce-all", "ce-focal-weight", "ce-soft-all", "kl-t", "cosine"):
        yield KernelCase(LossCase((kind,), (2,), 5003, dtypes="bf16", upstream="scaled"), _NORMAL)
    yield KernelCase(LossCase(("ce-weight", "mse"), (5001,), 3, mask="first", log_vars="unit"), _NORMAL)
    yield KernelCase(LossCase(("bce-pos", "smooth_l1"), (70, 61), 2, mask="full", weights="unit"), _NORMAL)
    how = {"mask": "first", "upstream": "scaled"}
    for kind in ("ce", "ce-weight", "ce-smooth", "ce-z", "ce-focal-weight"):
        for columns, dtypes in ((17, "fp32"), (16, "bf16"), (9, "fp16"), (8, "fp32")):
            yield KernelCase(LossCase((kind,), (5,), columns, dtypes=dtypes, **how), _LONG)
    yield KernelCase(
        LossCase(("ce", "mse", "ce-smooth", "ce-focal-weight"), (7,), 17, "none", upstream="all"), _LONG
    )
    # computed in float64, by the reference
    yield KernelCase(LossCase(("ce", "mse"), dtypes="fp64-one", upstream="all"), _NORMAL)


KERNEL_CASES = list({case.id: case for case in _table()}.values())


def check(kernel_case: KernelCase, device: str = "cpu") -> None:
    """Assert that the kernels give the oracle's numbers, the same every time, and leave the inputs alone."""
    case = kernel_case.case
    use(kernel_case.sizes)
    inputs = case.inputs()
    there = inputs.map(lambda t: _moved(t, device))
    before = [t.clone() for t in there.tensors()]
    with mmcore.backend("triton"):
        found = run(case, there)
        again = run(case, there) if device != "cpu" else found
        plain, scaled = {}, {}
        if case.upstream == "scaled":
            scaled = _scaled(case, there)
        else:
            with torch.no_grad():
                plain = values(*call(case, there))
    for t, b in zip(there.tensors(), before, strict=True):
        assert torch.equal(t.nan_to_num(7), b.nan_to_num(7)), "an input was modified"
    given = inputs.differentiable()
    oracle, natural, magnitude = expected(case)
    assert found.keys() == oracle.keys()
    for name, value in found.items():
        assert value.dtype == (given[name].dtype if name in given else case.compute_dtype()), name
        assert torch.equal(value, again[name]), f"{name}: other bits at the second call"
        assert name not in plain or torch.equal(value, plain[name]), f"{name}: other bits without gradients"
        # A scaled gradient was rounded to its dtype before.
        casts = 2 if device != "cpu" and case.upstream == "scaled" and name in given else 1
        rest = (oracle[name], natural[name], magnitude[name], terms(case, name))
        assert_losses_close(name, value.cpu(), *rest, casts)
        if name in scaled:
            assert_losses_close(f"{name}, scaled", scaled[name].cpu(), *rest, 2)


def _scaled(case: LossCase, inputs: Any) -> Results:
    """Gradients for an upstream gradient of 1, scaled as the backward does on GPUs."""
    _, _, made = mmcore.multi_task_value_and_grad(
        inputs.outputs,
        inputs.targets,
        case.tasks(inputs),
        weights=inputs.weights,
        log_vars=inputs.log_vars,
        masks=inputs.masks,
    )
    named = {"weights": made.weights, "log_vars": made.log_vars}
    named |= {f"outputs[{i}]": g for i, g in enumerate(made.outputs)}
    found = {n: g for n, g in named.items() if g is not None}
    scale_gradients(list(found.values()), inputs.grad_total)
    return found


def check_scaling(device: str = "cpu") -> None:
    """Assert that gradients are multiplied in their place, however they lie in memory."""
    use(_TILES)
    for factor in (-0.37, 0.0, float("nan")):
        made = [
            torch.randn(3, 5, 7, device=device).movedim(-1, 1),
            torch.randn(1001, device=device, dtype=torch.bfloat16),
            torch.randn((), device=device),
            torch.randn(0, 4, device=device),
            torch.randn(5, 1, device=device, dtype=torch.float16).t(),
        ]
        beside = torch.randn(4, 6, device=device)
        for gradients in (made, [*made, beside[:, ::2]], [*made, torch.randn(9, device=device).double()]):
            before = [g.clone() for g in gradients]
            untouched = beside[:, 1::2].clone()
            scale_gradients(gradients, torch.tensor(factor, device=device))
            for g, b in zip(gradients, before, strict=True):
                assert torch.equal(g.isnan(), (b * factor).isnan())
                torch.testing.assert_close(g, b * factor, equal_nan=True)
            assert torch.equal(beside[:, 1::2], untouched)


def check_factor_of_one() -> None:
    """Multiply by 1 what cannot be written to: a store would end the process."""
    with tempfile.TemporaryFile() as file:
        file.write(bytes(mmap.PAGESIZE))
        file.flush()
        memory = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.float32)
        scale_gradients([torch.from_numpy(memory)], torch.tensor(1.0))


def check_overwriting(device: str = "cpu") -> None:
    """Assert that gradients written over their outputs have the bits of those that are not."""
    for sizes in (_NORMAL, _SMALL, _LONG):
        use(sizes)
        for kinds in (
            ("ce", "mse", "kl"),
            ("ce-all", "cosine", "bce"),
            ("ce-focal-weight", "ce-z", "ce-soft"),
        ):
            case = LossCase(kinds, (5, 3), 40, log_vars="unit")
            inputs = case.inputs().map(lambda t: t.to(device))
            how = {"log_vars": inputs.log_vars}
            outputs = [x.clone() for x in inputs.outputs]
            tasks = case.tasks(inputs)
            with mmcore.backend("triton"):
                total, losses, made = mmcore.multi_task_value_and_grad(
                    inputs.outputs, inputs.targets, tasks, **how
                )
                found = mmcore.multi_task_value_and_grad(
                    outputs, inputs.targets, tasks, inplace_gradient=True, **how
                )
            assert torch.equal(total, found[0])
            assert torch.equal(losses, found[1])
            for g, over, x in zip(made.outputs, found[2].outputs, outputs, strict=True):
                assert over.data_ptr() == x.data_ptr()
                assert torch.equal(g, over)
                assert torch.equal(g, x)


def check_class_out_of_range(device: str = "cpu") -> None:
    """Assert that such a row has a loss and a gradient of NaN, and the others what they have without it."""
    case = LossCase(("ce",), (6,), 5, ignored="none")
    for kind, sizes in (
        ("ce", _NORMAL),
        ("ce-all", _SMALL),
        ("ce-focal-weight", _SMALL),
        ("ce-z", _TILES),
        ("ce-z", _LONG),
    ):
        case = replace(case, kinds=(kind,), reduction="none")
        use(sizes)
        inputs = case.inputs().map(lambda t: t.to(device))
        task = case.tasks(inputs)[0]
        target = inputs.targets[0]
        assert target is not None
        for wrong in (5, -1, 2**40, -(2**62)):
            bad = target.clone()
            bad[2] = wrong
            for reduction in ("none", "mean"):
                made = mmcore.Task(task.options._replace(reduction=reduction), task.weight)
                results = []
                for t in (target, bad):
                    head = Head(made, inputs.outputs[0], t, None, made.weight, False, (6,))
                    results.append(_values_and_gradient(LossProblem((head,), None, None, torch.float32)))
                (total, unreduced, good_g), (bad_total, bad_unreduced, bad_g) = results
                others = torch.arange(6, device=device) != 2
                assert bad_g[2].isnan().all(), (kind, wrong)
                assert not bad_g[others].isnan().any(), (kind, wrong)
                if reduction == "mean":
                    assert bad_total.isnan()
                    assert not total.isnan()
                else:
                    assert bad_unreduced[2].isnan()
                    assert torch.equal(bad_unreduced[others], unreduced[others])
                    assert torch.equal(bad_g[others], good_g[others])


def _values_and_gradient(problem: LossProblem) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    needs = (False, False, True)
    total, _, unreduced, gradients = multi_task_loss(problem, needs)
    if unreduced:
        ones = torch.ones_like(unreduced[0])
        gradients = losses.multi_task_loss_backward(problem, None, None, [ones], needs)
    gradient = gradients[2]
    assert gradient is not None
    return total, unreduced[0] if unreduced else total, gradient


def use(sizes: Sizes) -> None:
    """Set them in the backend."""
    for name, value in sizes._asdict().items():
        setattr(losses, name.upper(), value)
    replay.clear()
    replay.RECORDED_AT = 1  # the second call on a GPU is a replayed one


def main() -> int:
    """Run the table in the interpreter; print each failure; the exit status is 1 if there was one."""
    _round_as_gpus_do()
    np.seterr(all="ignore")  # what a mask takes out may be 0 / 0 before
    failures = 0
    for case in KERNEL_CASES:
        try:
            check(case)
        except Exception as error:
            failures += 1
            print(f"FAILED {case.id}: {type(error).__name__}: {error}", flush=True)
    check_scaling()
    check_factor_of_one()
    check_overwriting()
    check_class_out_of_range()
    print(f"{len(KERNEL_CASES)} cases, {failures} failures", flush=True)
    return failures > 0


if __name__ == "__main__":
    sys.exit(main())
