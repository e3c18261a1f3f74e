"""Every Triton kernel against the float64 oracle: the tests' own tables, and larger odd shapes."""

from __future__ import annotations

import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from bench.gpu.measure import Bench

__all__ = ["run"]

_DRY_RUN_TAKES = 24  # every so many cases


def run(bench: Bench) -> None:
    """Check this part's cases; each failure is recorded with its last lines."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
    if bench.dry:
        _as_in_the_tests()
    failures: dict[str, str] = {}
    record = bench.record
    record.update(cases=0, failures=failures, slowest=[0.0, ""])
    checks = sorted(_checks(str(bench.device).partition(":")[0]), key=lambda check: -_many(check[0]))
    for i, (name, check) in enumerate(checks):
        if (bench.dry and i % _DRY_RUN_TAKES) or not bench.claim(i):
            continue
        if bench.remaining() < 3:
            record["left_out"] = record.get("left_out", 0) + 1
            continue
        start = time.monotonic()
        try:
            check()
        except Exception as error:
            lines = traceback.format_exc().splitlines()
            failures[name] = f"{type(error).__name__}: {error}"[:600]
            print(f"FAILED {name}\n" + "\n".join(lines[-25:]), flush=True)
            if _lost():
                record["errors"] = {"device": f"lost after {name}: {failures[name]}"}
                break
        record["cases"] += 1
        record["slowest"] = max(record["slowest"], [round(time.monotonic() - start, 1), name])
        bench.save()


def _many(name: str) -> int:
    """Modalities or heads, by a case's name: kernels of many take a minute to compile, so they go first."""
    return max(map(int, re.findall(r"(?:M|\+)(\d+)(?=-|_heads)", name)), default=0)


def _lost() -> bool:
    """Whether an illegal access has cost this process its device."""
    if not torch.cuda.is_available():
        return False
    try:
        torch.zeros(1, device="cuda").add_(1).item()
    except RuntimeError:
        return True
    return False


def _as_in_the_tests() -> None:
    import numpy as np
    from triton_harness import _round_as_gpus_do

    _round_as_gpus_do()
    np.seterr(all="ignore")


def _checks(device: str) -> Iterator[tuple[str, Callable[[], None]]]:
    import triton_contrastive_harness as contrastive
    import triton_harness as fusion
    import triton_losses_harness as losses
    from fusion_cases import FusionCase
    from loss_cases import LossCase

    def of(module: Any, case: Any) -> Callable[[], None]:
        return lambda: module.check(case, device)

    small = device == "cpu"  # the interpreter would take minutes
    shape, depth = ((2, 3), 37) if small else ((37, 61), 771)
    how: dict[str, Any] = {"norm": "layer_norm", "affine": "both", "mask": "BTM", "weights": "BTM"}
    large = [
        FusionCase("softmax", 3, shape, depth, **how),
        FusionCase("softmax", 3, shape, depth, dtypes="bf16", **how),
        FusionCase("normalized", 3, shape, depth, dtypes="fp16", **{**how, "norm": "rms_norm"}),
        FusionCase("sum", 3, shape, 768, dtypes="bf16"),
        FusionCase("softmax", 13, shape, depth, dtypes="bf16"),
        FusionCase("softmax", 3, shape, depth, align="linear", rate="down", **how),
        FusionCase("sum", 3, shape, depth, align="mean", rate="down", weights="BM"),
        FusionCase("sum", 3, (2, 3) if small else (16, 33), 300 if small else 9001, **how),
    ]
    for case in large:
        yield f"fusion {case.id}", of(fusion, fusion.KernelCase(case, fusion.Sizes()))
    for name, lead, columns in (
        ("ce", (301,), 50257),
        ("ce-all", (77,), 32000),
        ("ce-focal-weight", (129,), 4096),
        ("ce-z", (63,), 4097),
        ("kl-t", (67,), 32003),
        ("cosine", (515,), 771),
        ("bce-pos", (513, 67), 80),
        ("mse", (9001,), 33),
    ):
        for dtypes in ("fp32", "bf16"):
            loss = LossCase(
                (name,),
                (3,) if small else lead,
                min(columns, 40) if small else columns,
                dtypes=dtypes,
                mask="first",
                log_vars="unit",
            )
            yield f"losses {loss.id}", of(losses, losses.KernelCase(loss, losses.Sizes()))
    for kernel_case in fusion.KERNEL_CASES:
        yield f"fusion {kernel_case.id}", of(fusion, kernel_case)
    for loss_case in losses.KERNEL_CASES:
        yield f"losses {loss_case.id}", of(losses, loss_case)
    yield "fusion, eps = 0", lambda: fusion.check_missing_without_eps(device)
    yield "losses, in place", lambda: losses.check_overwriting(device)
    yield "losses, scaling", lambda: losses.check_scaling(device)
    yield "losses, a class out of range", lambda: losses.check_class_out_of_range(device)
    batch, width = (33, 9) if small else (2050, 257)
    large_pairs = [
        (contrastive.Case(kind, batch, width, dtype=dtype), {})
        for kind in contrastive.KINDS
        for dtype in (torch.float32, torch.bfloat16)
    ]
    for pairs, options in [*large_pairs, *contrastive.checks()]:
        # Sizes are part of the name, where parts of the kernels are made smaller.
        label = " ".join(f"{key}={value}" for key, value in options.items())
        yield (
            f"contrastive {pairs.id} {label}".strip(),
            lambda p=pairs, o=options: contrastive.check(p, device, **o),
        )
    yield "contrastive, NaN and infinity", lambda: contrastive.check_nan_and_infinity(device)
