"""Run weighted_fusion's Triton kernels against the oracle: on the CPU in Triton's interpreter, or on a GPU.

``TRITON_INTERPRET=1 python triton_harness.py`` runs the table in the interpreter, which executes a kernel's
Python with NumPy: it shows wrong indices, masks and formulas, and nothing of what the compiler makes of them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import triton.language as tl
from cases import _pairwise
from fusion_cases import FusionCase
from fusion_harness import closed_form, run, terms
from tolerances import assert_fusion_close
from triton.runtime import interpreter

import mmcore
from mmcore.backends import replay
from mmcore.backends.triton import fusion


class Sizes(NamedTuple):
    """What decides how the kernels cut a call to pieces."""

    max_block: int = fusion.MAX_BLOCK
    tile: int = fusion.TILE
    narrow: int = fusion.NARROW


class KernelCase(NamedTuple):
    """A call of the op, and sizes of pieces."""

    case: FusionCase
    sizes: Sizes

    @property
    def id(self) -> str:
        """What is not the default."""
        changed = [f"{n}_{v}" for n, v in self.sizes._asdict().items() if v != Sizes._field_defaults[n]]
        return "-".join((self.case.id, *changed))


_NORMAL = Sizes()
_SMALL = Sizes(max_block=16, tile=32)  # rows of several blocks, and sums over several tiles, with few numbers
_TILES = Sizes(tile=128)  # several tiles for each program
_WIDE = Sizes(narrow=0)  # int64 steps

_AXES: dict[str, tuple[Any, ...]] = {
    "gates": tuple((m, w) for m in ("sum", "softmax", "normalized") for w in ("M", "BM", "BTM", "BTMD")),
    "alignment": (
        (None, "equal"), ("nearest", "up"), ("nearest", "down"), ("linear", "up"), ("linear", "down"),
        ("mean", "up"), ("mean", "down"), ("mix", "mix"),
    ),
    "norm": (
        (None, "none"), ("layer_norm", "both"), ("rms_norm", "weight"), ("l2", "none"), (None, "both"),
        ("layer_norm", "none"), ("l2", "shared"), ("rms_norm", "bias"),
    ),
    "dtypes": ("fp32", "bf16", "mixed", "fp16", "halves", "bf16-fp32"),
    "depth": (17, 1, 5, 200, 192),
    "shape": ((2, 3), (3, 5), (1, 1), (3, -1)),
    "count": (3, 1, 2, 5),
    "mask": ("BTM", "none", "BM"),
    "layout": ("contiguous", "sliced", "channels-first", "expanded-batch"),
    "gate_layout": ("contiguous", "stepped", "transposed", "expanded-steps"),
    "grad_layout": ("contiguous", "sliced", "expanded-all", "stepped"),
    "absent": ("some", "some", "all"),
    "content": ("unit", "small", "offset"),
    "probe": ("fp32", "none", "fp64"),
    "needs": ("all", "all", "features", "weights", "last", "affine", "probe"),
    "sizes": (_NORMAL, _SMALL, _WIDE),
}  # fmt: skip


def _table() -> Iterator[KernelCase]:
    for row in _pairwise(_AXES):
        (mode, weights), (align, rate), (norm, affine), sizes = (
            row.pop(n) for n in ("gates", "alignment", "norm", "sizes")
        )
        if row["shape"][1] < 0:  # (B, D) features
            align, rate = None, "equal"
            weights = {"BTM": "BM"}.get(weights, weights)
            row["mask"] = {"BTM": "BM"}.get(row["mask"], row["mask"])
        if row["mask"] == "none":
            row["absent"] = "some"
        if sizes == _SMALL:
            # the interpreter takes a millisecond for a line of a kernel: two blocks of few rows are enough
            row["depth"] = min(row["depth"], 33)
            row["shape"] = (1, min(row["shape"][1], 3))
            row["count"] = min(row["count"], 3)
        case = FusionCase(mode, weights=weights, align=align, rate=rate, norm=norm, affine=affine, **row)
        yield KernelCase(case, sizes)
    how: dict[str, Any] = {"norm": "layer_norm", "affine": "both", "probe": "fp32"}
    yield KernelCase(FusionCase("softmax", 3, (5, 5), 17, mask="BTM", **how), _TILES)
    yield KernelCase(
        FusionCase("softmax", 2, (3, 7), 9, weights="BM", align="mix", rate="mix", **how), _TILES
    )
    # sums of more than a tile
    yield KernelCase(FusionCase("sum", 2, (2, 140), 3, weights="BM", probe="fp32"), _NORMAL)
    # sums that do not fit into registers
    yield KernelCase(FusionCase("softmax", 13, (2, 3), 33, mask="BTM", **how), _NORMAL)
    # rows of several blocks, whose means and lengths are known before
    for norm in ("layer_norm", "rms_norm", "l2"):
        case = FusionCase(
            "softmax", 2, (1, 3), 33, mask="BTM", align="mix", rate="mix", **{**how, "norm": norm}
        )
        yield KernelCase(case, _SMALL)
    yield KernelCase(FusionCase("normalized", 2, (1, 3), 33, weights="BTMD", **how), _SMALL)
    # one gate for all channels, as a view
    yield KernelCase(FusionCase("sum", 2, (2, 3), 5, weights="BTMD", gate_layout="expanded-all"), _NORMAL)
    # a source step that is part of many steps; a real size
    yield KernelCase(
        FusionCase("sum", 2, (2, 9), 5, weights="BTM", align="linear", rate="one", **how), _NORMAL
    )
    yield KernelCase(FusionCase("normalized", 2, (1, 2), 768, weights="BTMD", **how), _NORMAL)
    # small shares of a step, whose digits 1 - share would lose
    yield KernelCase(FusionCase("sum", 1, (1, 150), 1, align="linear", rate="431", norm="rms_norm"), _NORMAL)
    # nothing to do
    yield KernelCase(FusionCase("softmax", shape=(0, 3), **how), _NORMAL)
    yield KernelCase(
        FusionCase("softmax", shape=(2, 0), weights="BM", align="mean", rate="2", **how), _NORMAL
    )


KERNEL_CASES = list({case.id: case for case in _table()}.values())


def check(kernel_case: KernelCase, device: str = "cpu") -> None:
    """Assert that the kernels give the oracle's numbers, the same every time, and leave the inputs alone."""
    case = kernel_case.case
    use(kernel_case.sizes)
    inputs = case.inputs()
    there = inputs.map(lambda t: _moved(t, device))
    before = [t.clone() for t in (*there.features, *there[1:]) if t is not None]
    with mmcore.backend("triton"):
        found = run(case, there)
        again = run(case, there) if device != "cpu" else found
    for t, b in zip((t for t in (*there.features, *there[1:]) if t is not None), before, strict=True):
        assert torch.equal(t.nan_to_num(7), b.nan_to_num(7)), "an input was modified"
    given = inputs.differentiable()
    with mmcore.backend("reference"):
        oracle = run(case, inputs, torch.float64)
        natural = run(case, inputs, torch.float32)
    magnitude = closed_form(case, inputs, magnitude=True)
    assert set(found) == set(oracle)
    for name, value in found.items():
        assert value.is_contiguous() or value.dim() < 2, name
        assert value.dtype == (case.result_dtype() if name == "result" else given[name].dtype), name
        assert torch.equal(value, again[name]), f"{name}: other bits at the second call"
        casts = 2 if case.affine == "shared" and name.startswith("norm_") else 1
        assert_fusion_close(
            name, value.cpu(), oracle[name], natural[name], magnitude[name], terms(case, name), casts
        )


def check_missing_without_eps(device: str = "cpu") -> None:
    """Assert that 1 / 0, the inverse deviation of a step that is missing, stays there."""
    use(_NORMAL)
    for align in (None, "linear"):
        how = {"norm": "layer_norm", "affine": "both", "eps": 0.0, "align": align, "rate": "down"}
        case = FusionCase("softmax", 2, (2, 3), 17, mask="BTM", **how)
        with mmcore.backend("triton"):
            found = run(case, case.inputs().map(lambda t: _moved(t, device)))
        for name, value in found.items():
            assert torch.isfinite(value).all(), f"eps = 0, {align}: {name} is not finite"


def _moved(t: torch.Tensor, device: str) -> torch.Tensor:
    """The same strides on another device."""
    if device == t.device.type:
        return t
    span = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) if t.numel() else 0
    memory = t.as_strided((span,), (1,))
    return memory.to(device).as_strided(t.shape, t.stride())


def use(sizes: Sizes) -> None:
    """Set them in the backend."""
    fusion.MAX_BLOCK, fusion.TILE, fusion.NARROW = sizes
    fusion._tile.cache_clear()
    replay.clear()
    replay.RECORDED_AT = 1  # the second call on a GPU is a replayed one


def _round_as_gpus_do() -> None:
    """Triton's interpreter cuts float32 off to bfloat16, where compiled kernels round to nearest even."""
    convert = interpreter._convert_float

    def rounded(values: np.ndarray, source: tl.dtype, target: tl.dtype, mode: object) -> np.ndarray:
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(values, source, target, mode)
        halves = torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16)
        return halves.view(torch.int16).numpy().view(np.uint16).reshape(values.shape)

    interpreter._convert_float = rounded


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
    check_missing_without_eps()
    print(f"{len(KERNEL_CASES)} cases, {failures} failures", flush=True)
    return failures > 0


if __name__ == "__main__":
    sys.exit(main())
