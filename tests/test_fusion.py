"""weighted_fusion gives the oracle's numbers: every backend and ISA, operands however they lie in memory."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from fusion_cases import FUSION_CASES, FusionCase
from fusion_harness import bits, check_case, dirty, expected, run
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mmcore

BACKENDS = ("reference", "cpu")


@pytest.mark.parametrize("case", FUSION_CASES, ids=lambda case: case.id)
def test_the_kernels_give_the_oracle_numbers(case: FusionCase) -> None:
    with mmcore.backend("cpu"):
        check_case(case)


@pytest.mark.parametrize("case", FUSION_CASES[::3], ids=lambda case: case.id)
def test_the_reference_keeps_what_the_op_promises(case: FusionCase) -> None:
    """Its numbers are the oracle's: it is its strides, dtypes and wanted gradients that can be wrong."""
    with mmcore.backend("reference"):
        check_case(case)


@pytest.fixture(scope="module")
def expected_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every case should give, worked out once for all processes."""
    path = tmp_path_factory.mktemp("fusion") / "expected.pt"
    torch.save({case.id: expected(case) for case in FUSION_CASES}, path)
    return path


@pytest.mark.skipif(os.name != "posix", reason="guard pages need mprotect")
@pytest.mark.parametrize("isa", ["base", "avx2", "avx512", "neon"])
def test_every_isa_between_guard_pages(isa: str, expected_file: Path) -> None:
    """In a process of its own, because an ISA is chosen once and a byte too many kills the process."""
    if isa not in mmcore.build_info()["isa_available"]:
        pytest.skip(f"this machine has no {isa}")
    harness = Path(__file__).with_name("fusion_harness.py")
    env = {**os.environ, "MMCORE_ISA": isa, "PYTHONPATH": str(harness.parent)}
    command = [sys.executable, harness, expected_file]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)
    last = done.stderr.splitlines()[-30:]
    assert done.returncode == 0, "\n".join([*done.stdout.splitlines()[-30:], *last])
    assert f"isa: {isa}" in done.stdout
    assert f"{len(FUSION_CASES)} cases, 0 failures" in done.stdout


@settings(max_examples=50, deadline=None)
@given(
    case=st.builds(
        FusionCase,
        mode=st.sampled_from(("sum", "softmax", "normalized")),
        count=st.integers(1, 16),
        shape=st.tuples(st.integers(0, 4), st.integers(0, 6)),
        depth=st.integers(1, 80),
        weights=st.sampled_from(("none", "M", "BM", "BTM", "BTMD")),
        mask=st.sampled_from(("none", "BM", "BTM")),
        absent=st.sampled_from(("some", "all", "nothing")),
        junk=st.sampled_from(("nan", "inf", "finite")),
        norm=st.sampled_from((None, "layer_norm", "rms_norm", "l2")),
        affine=st.sampled_from(("none", "both", "weight", "bias", "shared")),
        align=st.sampled_from((None, "nearest", "linear", "mean", "mix")),
        rate=st.sampled_from(("up", "down", "one", "mix", "2", "11")),
        dtypes=st.sampled_from(("fp32", "bf16", "fp16", "fp64", "mixed", "fp64-weights")),
        content=st.sampled_from(("unit", "large", "offset", "small")),
        layout=st.sampled_from(("contiguous", "sliced", "transposed", "channels-first", "stepped")),
    )
)
def test_any_shapes_masks_and_weights(case: FusionCase) -> None:
    check_case(case)


def test_case_ids_are_unique_and_the_table_has_what_it_should() -> None:
    assert len({case.id for case in FUSION_CASES}) == len(FUSION_CASES)
    assert FusionCase().id == "sum-M3-2x3x19"
    seen: dict[str, set[Any]] = {}
    for case in FUSION_CASES:
        for name, value in case.__dict__.items():
            seen.setdefault(name, set()).add(value)
        seen.setdefault("flat", set()).add(case.flat)
        seen.setdefault("product", set()).add((case.mode, case.weights, case.mask, case.norm))
    assert seen["count"] == set(range(1, 17))
    assert seen["depth"] >= {1, 5, 17, 97, 768, *range(1, 10), 15, 16, 31, 32, 33, 63, 64, 65, 4097}
    assert {shape[0] for shape in seen["shape"]} >= {0, 1, 2, 3}
    assert {0, 1, 2000} <= {shape[1] for shape in seen["shape"]}
    assert seen["flat"] == {False, True}
    assert len(seen["product"]) >= 3 * 5 * 3 * 4
    a = FUSION_CASES[3].inputs()
    b = FUSION_CASES[3].inputs()
    assert all(torch.equal(bits(x), bits(y)) for x, y in zip(a.features, b.features, strict=True))


def test_the_table_meets_missing_slots_that_hold_nan() -> None:
    """So that a kernel that multiplies by 0, or reads what it should not, is found."""
    case = FusionCase("normalized", 3, (2, 4), 7, weights="BTM", mask="BTM", norm="layer_norm", affine="both")
    inputs = case.inputs()
    assert inputs.mask is not None
    assert inputs.weights is not None
    for m, x in enumerate(inputs.features):
        assert x[~inputs.mask[..., m]].isnan().all()
        assert x[inputs.mask[..., m]].isfinite().all()
    assert inputs.weights[~inputs.mask].isnan().all()
    assert (~inputs.mask).all(-1).any()


# what is missing, and what is not a number


def tensors(*shape: int, count: int = 3, seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g) for _ in range(count)]


@pytest.mark.parametrize("norm", [None, "layer_norm", "rms_norm", "l2"])
@pytest.mark.parametrize("mode", ["sum", "softmax", "normalized"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_where_all_is_missing_everything_is_zero(backend: str, mode: str, norm: str | None) -> None:
    xs = [x.fill_(torch.nan).requires_grad_() for x in tensors(2, 3, 19)]
    weights = torch.full((2, 3, 3), torch.nan, requires_grad=True)
    affine = [torch.full((3, 19), 2.0, requires_grad=True) for _ in range(2)]
    probe = torch.zeros(2, 3, requires_grad=True)
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    with mmcore.backend(backend):
        out = mmcore.weighted_fusion(
            xs, weights, mode=mode, mask=nothing, norm=norm, norm_weight=affine[0], norm_bias=affine[1],
            probe=probe,
        )  # fmt: skip
        out.backward(torch.ones_like(out))
    assert (out == 0).all()
    for leaf in (*xs, weights, *affine, probe):
        assert leaf.grad is not None
        assert (leaf.grad == 0).all()


@pytest.mark.parametrize("weights", ["M", "BTMD"])
@pytest.mark.parametrize("mode", ["sum", "softmax", "normalized"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gradient_that_is_not_a_number_stops_where_all_is_missing(
    backend: str, mode: str, weights: str
) -> None:
    """As the gradient of a vector's length is at 0, which is what the result is there."""
    case = FusionCase(
        mode, 3, (2, 3), 19, weights=weights, mask="BTM", norm="rms_norm", affine="both", probe="fp32"
    )
    inputs = case.inputs()
    assert inputs.mask is not None
    missing = ~inputs.mask.any(-1)
    assert missing.any()
    with mmcore.backend(backend):
        expected = run(case, inputs)
        inputs.grad[missing] = torch.nan
        found = run(case, inputs)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm", "l2"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_divided_by_the_length_of_what_is_missing(backend: str, norm: str) -> None:
    """Which is 0, if it is taken for zeros; with eps = 0 that is NaN times 0."""
    case = FusionCase("sum", 2, (2, 3), 19, mask="BTM", norm=norm, affine="both", eps=0.0)
    with mmcore.backend(backend):
        found = run(case, case.inputs())
    for name, value in found.items():
        assert value.isfinite().all(), name


@pytest.mark.parametrize("depth", [1, 7, 40])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("norm", [None, "layer_norm", "rms_norm", "l2"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_there_and_not_a_number_spoils_its_own_row_alone(
    backend: str, norm: str | None, value: float, depth: int
) -> None:
    xs = tensors(2, 3, depth)
    with mmcore.backend(backend):
        clean = mmcore.weighted_fusion(xs, mode="softmax", norm=norm)
        xs[1][1, 2, depth // 2] = value
        out = mmcore.weighted_fusion(xs, mode="softmax", norm=norm)
    spoilt = torch.zeros(2, 3, dtype=torch.bool)
    spoilt[1, 2] = True
    assert torch.equal(out[~spoilt], clean[~spoilt])
    assert not out[1, 2, depth // 2].isfinite()
    if norm is not None and value != value:
        assert out[1, 2].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_gates_that_are_not_numbers_spoil_what_they_weigh(backend: str) -> None:
    xs = tensors(3, 2, 9)
    gates = torch.zeros(3, 3)
    gates[1, 0] = torch.nan
    with mmcore.backend(backend):
        for mode in ("sum", "softmax", "normalized"):
            out = mmcore.weighted_fusion(xs, gates + (mode == "normalized"), mode=mode)
            assert out[1].isnan().all(), mode
            assert out[[0, 2]].isfinite().all(), mode


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_may_be_minus_infinity(backend: str) -> None:
    """As a caller masks them: a weight of 0, or zeros where all of them are."""
    xs, inf = tensors(2, 1, 9), -torch.inf
    logits = torch.tensor([[0.5, inf, 0.5], [inf, inf, inf]], requires_grad=True)
    with mmcore.backend(backend):
        out = mmcore.weighted_fusion(xs, logits, mode="softmax")
        (grad,) = torch.autograd.grad(out.sum(), logits)
    torch.testing.assert_close(out[0], (xs[0][0] + xs[2][0]) / 2)
    assert (out[1] == 0).all()
    assert grad.isfinite().all()
    assert (grad[logits == inf] == 0).all()


# sizes and threads


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 0, 5), (2, 3, 0), (0, 5), (2, 0)])
def test_nothing_fuses_to_nothing(shape: tuple[int, ...], backend: str) -> None:
    xs = [x.requires_grad_() for x in tensors(*shape)]
    weights = torch.ones(3, requires_grad=True)
    with mmcore.backend(backend):
        out = mmcore.weighted_fusion(xs, weights, mode="softmax", norm="rms_norm")
        assert out.shape == shape
        out.sum().backward()
    assert torch.equal(weights.grad, torch.zeros(3))
    assert all(x.grad is not None and x.grad.shape == shape for x in xs)


@pytest.mark.parametrize("options", [
    {"mode": "softmax"},
    {"norm": "layer_norm", "affine": True},
    {"align": "linear", "length": 20},
], ids=lambda options: next(iter(options)))  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_calls_do_not_depend_on_threads_or_on_the_run(
    dtype: torch.dtype, options: dict[str, Any]
) -> None:
    xs = [x.to(dtype).requires_grad_() for x in tensors(61, 32, 257)]
    weights = torch.randn(3, requires_grad=True)
    options = dict(options)
    affine = tensors(3, 257, count=2, seed=5) if options.pop("affine", False) else [None, None]
    leaves = [*xs, weights, *(a.requires_grad_() for a in affine if a is not None)]

    def call() -> list[Tensor]:
        # Results of these sizes come from recycled memory: what is not written shows.
        dirty([((61, 32, 257), dtype)] * 4 + [((61, 20, 257), dtype)])
        out = mmcore.weighted_fusion(xs, weights, norm_weight=affine[0], norm_bias=affine[1], **options)
        return [out, *torch.autograd.grad(out.float().square().sum(), leaves)]

    before = mmcore.get_num_threads()
    try:
        mmcore.set_num_threads(1)
        expected = [bits(t) for t in call()]
        for threads in (2, 3, 8, 2):
            mmcore.set_num_threads(threads)
            for a, b in zip(expected, call(), strict=True):
                assert torch.equal(a, bits(b))
    finally:
        mmcore.set_num_threads(before)


def test_results_do_not_share_memory() -> None:
    """With each other, or with the operands, even where a gradient equals the one that came in."""
    for dtype in (torch.float32, torch.bfloat16):
        xs = [x.to(dtype).requires_grad_() for x in tensors(3, 4, 9)]
        probe = torch.zeros(3, 3, requires_grad=True)
        grad = torch.randn(3, 4, 9).to(dtype)
        for backend in BACKENDS:
            with mmcore.backend(backend):
                out = mmcore.weighted_fusion(xs, probe=probe)
                found = [out.detach(), *torch.autograd.grad(out, [*xs, probe], grad)]
            spans = sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in (*found, *xs, grad))
            assert all(a[1] <= b[0] for a, b in pairwise(spans)), backend


def test_one_call_of_every_dtype_gives_that_dtype() -> None:
    for dtypes in {case.dtypes for case in FUSION_CASES}:
        case = FusionCase(count=2, dtypes=dtypes, affine="both", norm="layer_norm")
        inputs = case.inputs()
        for backend in BACKENDS:
            with mmcore.backend(backend):
                found = run(case, inputs)
            assert found["result"].dtype == case.result_dtype()
            for name, leaf in inputs.differentiable().items():
                assert found[name].dtype == leaf.dtype, (dtypes, name)
