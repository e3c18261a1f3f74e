"""Run the contrastive losses' Triton kernels against the oracle: in Triton's interpreter, or on a GPU.

``TRITON_INTERPRET=1 python triton_contrastive_harness.py`` runs the table of test_contrastive on the CPU.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from test_contrastive import CASES, KINDS, Case, Results, assert_close, features
from triton_harness import _round_as_gpus_do

import mmcore
from mmcore.backends.triton import contrastive as kernels
from mmcore.ops import contrastive


def run(case: Case, upstream: float, device: str) -> Results:
    """The loss and its gradients by the kernels; the same again has the same bits."""
    found = []
    for _ in range(1 if device == "cpu" else 2):
        a, b = (x.to(device).requires_grad_() for x in features(case))
        before = a.detach().clone(), b.detach().clone()
        wide = torch.float64 if case.dtype == torch.float64 else torch.float32
        numbers = [
            torch.tensor(x, dtype=wide, device=device, requires_grad=True) for x in (case.scale, case.bias)
        ]
        bias = numbers[1] if case.kind == "siglip" else None
        with mmcore.backend("triton"):
            loss = mmcore.contrastive_loss(a, b, numbers[0], case.kind, bias)
            with torch.no_grad():
                by_number = mmcore.contrastive_loss(
                    a, b, case.scale, case.kind, None if bias is None else case.bias
                )
            leaves = [a, b, *numbers[: 1 if bias is None else 2]]
            grads = torch.autograd.grad(loss, leaves, torch.tensor(upstream, dtype=wide, device=device))
        assert loss.device.type == a.device.type
        assert torch.equal(loss, by_number), "other bits by numbers, without gradients"
        assert torch.equal(a, before[0])
        assert torch.equal(b, before[1])
        results = (loss.detach(), *grads)
        found.append({n: t.cpu() for n, t in zip(("loss", "a", "b", "scale", "bias"), results, strict=False)})
    for name, value in found[-1].items():
        assert torch.equal(value, found[0][name]), f"{name}: other bits at the second call"
    return found[0]


def check(case: Case, device: str = "cpu", upstream: float = 1.0, rows: int = 0, **sizes: int) -> None:
    """Assert that the kernels give the oracle's numbers; ``rows``: of a tile; ``sizes``: of their parts."""
    kept = {name: getattr(kernels, name) for name in sizes}
    tile = "_TILE_BYTES" if device == "cpu" else "_GPU_TILE_BYTES"
    tile_bytes = getattr(contrastive, tile)
    try:
        for name, value in sizes.items():
            setattr(kernels, name, value)
        if rows:
            setattr(contrastive, tile, rows * case.batch * (8 if case.dtype == torch.float64 else 4))
        assert_close(case, run(case, upstream, device), upstream)
    finally:
        setattr(contrastive, tile, tile_bytes)
        for name, value in kept.items():
            setattr(kernels, name, value)


_SMALL: dict[str, int] = {"COLUMNS": 32, "ROWS": 4}


def checks() -> list[tuple[Case, dict[str, Any]]]:
    """The table, then several tiles, chunks and stripes, and other upstream gradients."""
    # Sizes are what the parts below are about; of those of the CPU's kernels every fourth will do.
    found: list[tuple[Case, dict[str, Any]]] = [(case, {}) for case in (*CASES[:84:7], *CASES[84:])]
    for kind in KINDS:
        for batch, rows in ((17, 1), (33, 0), (40, 24), (65, 33), (65, 0)):
            found.append((Case(kind, batch), {"rows": rows, **_SMALL}))
        for scale in (-80.0, 0.0, 1e4):
            found.append((Case(kind, 40, scale=scale), {"rows": 33, **_SMALL}))
        for dtype in (torch.bfloat16, torch.float16, torch.float64):
            found.append((Case(kind, 40, dtype=dtype), {"rows": 33, **_SMALL}))
        found.append(
            (Case(kind, 40, dtype=torch.bfloat16), {"rows": 33, "PIECES_BYTES": 12 * 6 * 40, **_SMALL})
        )
        for upstream, rows in ((2.5, 0), (-1.0, 20), (0.0, 20), (-1.0, 0)):
            found.append((Case(kind, 33), {"upstream": upstream, "rows": rows}))
    return found


def check_nan_and_infinity(device: str = "cpu") -> None:
    """Assert that they show."""
    for kind in KINDS:
        for bad in (torch.nan, torch.inf):
            for where in (0, 1):
                given = [x.to(device) for x in features(Case(kind, 20, 4))]
                given[where][11, 2] = bad
                a, b = (x.requires_grad_() for x in given)
                with mmcore.backend("triton"):
                    loss = mmcore.contrastive_loss(a, b, 14.3, kind)
                    da, db = torch.autograd.grad(loss, (a, b))
                assert not loss.isfinite(), (kind, bad)
                if bad != bad:
                    assert da.isnan().any()
                    assert db.isnan().any()


def main() -> int:
    """Run the table in the interpreter; print each failure; the exit status is 1 if there was one."""
    _round_as_gpus_do()
    np.seterr(all="ignore")
    failures = 0
    table = checks()
    for case, how in table:
        try:
            check(case, **how)
        except Exception as error:
            failures += 1
            print(f"FAILED {case.id} {how}: {type(error).__name__}: {error}", flush=True)
    check_nan_and_infinity()
    print(f"{len(table)} cases, {failures} failures", flush=True)
    return failures > 0


if __name__ == "__main__":
    sys.exit(main())
