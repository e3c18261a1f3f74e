#!/usr/bin/env python3
"""Compile the Triton kernels for GPUs that are not at hand, and check what they need there.

    python .ci/compile_kernels.py [NAME]...     every call, or those whose name contains one of the words

A call below runs an op's own launch code on tensors without memory, against a driver that only names a
target: so the kernels are compiled as a GPU of that kind would be given them, with the same sizes,
specialisations and numbers of warps. Nothing may be spilled to local memory, and no kernel for NVIDIA's
GPUs may take more registers than its bound, which says how many threads a multiprocessor can hold. Needs
triton, torch and no GPU.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

AMD_REGISTERS = 128
"""A thread: four wavefronts on each SIMD unit."""


class Call(NamedTuple):
    """A call of an op, and what its kernels may need."""

    name: str
    run: Callable[[], object]
    registers: int
    """A thread, on NVIDIA's GPUs."""
    targets: tuple[str, ...] = tuple(TARGETS)


def fusion_calls() -> Iterator[Call]:
    """Forward and backward of weighted_fusion, M = 3, (64, 32, D)."""
    from mmcore.backends.triton import weighted_fusion, weighted_fusion_backward
    from mmcore.ops.fusion import FusionOptions

    def call(
        depth: int,
        dtype: torch.dtype,
        mode: str = "softmax",
        weights: str = "M",
        norm: str | None = None,
        align: str = "none",
        source: int = 32,
        masked: bool = False,
        modalities: int = 3,
    ) -> Callable[[], object]:
        sizes = {"B": 64, "T": 32, "M": modalities, "D": depth}

        def empty(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        def run() -> None:
            aligned = ("none", *(align,) * (modalities - 1))
            features = [empty(64, 32 if kind == "none" else source, depth) for kind in aligned]
            gates = empty(*(sizes[c] for c in weights))
            mask = empty(64, 32, modalities, dtype=torch.bool) if masked else None
            affine = empty(modalities, depth) if norm else None
            options = FusionOptions(
                mode=mode, norm=norm, align=aligned, eps=1e-5, length=32, dtype=dtype, flat=False
            )
            arguments = (features, gates, mask, affine, affine, None, options)
            out = weighted_fusion(*arguments)
            needs = (True, norm is not None, norm is not None, False, *(True,) * modalities)
            weighted_fusion_backward(out, *arguments, needs)

        return run

    one = ("sm_90",)
    f32, bf16 = torch.float32, torch.bfloat16
    yield Call("sum fp32 768", call(768, f32, "sum"), 72)
    yield Call("softmax bf16 1024, masked", call(1024, bf16, masked=True), 72)
    yield Call("layer_norm fp32 768", call(768, f32, norm="layer_norm"), 200)
    yield Call("layer_norm bf16 1024", call(1024, bf16, norm="layer_norm"), 200)
    yield Call("per channel bf16 768", call(768, bf16, weights="BTMD"), 128)
    yield Call("nearest fp32 768", call(768, f32, align="nearest", source=160), 96)
    yield Call("linear bf16 768", call(768, bf16, align="linear", source=160), 112)
    yield Call("mean fp32 1024", call(1024, f32, align="mean", source=160), 96)
    yield Call("linear layer_norm", call(768, f32, align="linear", source=160, norm="layer_norm"), 200, one)
    yield Call("13 layers", call(1024, bf16, modalities=13), 144, one)
    yield Call("13 layers, layer_norm", call(1024, bf16, modalities=13, norm="layer_norm"), 200, one)
    yield Call("layer_norm fp32 4096", call(4096, f32, norm="layer_norm"), 200, one)
    yield Call("layer_norm fp32 9000", call(9000, f32, norm="layer_norm"), 136, one)


def losses_calls() -> Iterator[Call]:
    """Losses with all gradients, and the backward for other upstream gradients, of the shapes people have."""
    from mmcore.backends.triton import multi_task_loss, multi_task_loss_backward, scale_gradients
    from mmcore.ops.loss_task import Task
    from mmcore.ops.losses import Head, LossProblem

    f32, bf16 = torch.float32, torch.bfloat16

    def empty(*shape: int, dtype: torch.dtype = f32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def head(
        task: Task,
        rows: int,
        columns: int,
        dtype: torch.dtype = f32,
        masked: bool = False,
        soft: bool = False,
    ) -> Head:
        by_rows = task.kind in ("cross_entropy", "kl_distillation", "cosine")
        classes = task.kind == "cross_entropy" and not soft
        target = empty(rows, dtype=torch.int64) if classes else empty(rows, columns, dtype=dtype)
        mask = empty(rows, dtype=torch.bool) if masked else None
        return Head(
            task,
            empty(rows, columns, dtype=dtype),
            target,
            mask,
            task.weight,
            soft,
            (rows,) if by_rows else (rows, columns),
        )

    def call(*heads: Head, log_vars: bool = False) -> Callable[[], object]:
        def run() -> None:
            s = empty(len(heads)) if log_vars else None
            problem = LossProblem(heads, None, s, f32)
            needs = (False, log_vars, *(True,) * len(heads))
            total, losses, unreduced, gradients = multi_task_loss(problem, needs)
            multi_task_loss_backward(problem, total, losses, unreduced, needs)
            scale_gradients([g for g in gradients if g is not None], total)

        return run

    one = ("sm_90",)
    ce = Task.cross_entropy()
    every = Task.cross_entropy(weight=empty(32000), label_smoothing=0.1, z_loss=1e-4)
    mixed = (
        head(Task.cross_entropy(), 64, 400),
        head(Task.bce_with_logits(pos_weight=empty(80)), 64, 80, masked=True),
        head(Task.mse(), 64, 256),
        head(Task.smooth_l1(), 64, 64, masked=True),
    )
    yield Call("cross entropy fp32 2048 x 32000", call(head(ce, 2048, 32000)), 64)
    yield Call("cross entropy bf16 16384 x 128256", call(head(ce, 16384, 128256, bf16)), 64)
    yield Call("all options bf16 2048 x 32000", call(head(every, 2048, 32000, bf16, masked=True)), 128)
    yield Call("probabilities bf16 256 x 1000", call(head(ce, 256, 1000, bf16, soft=True)), 96)
    yield Call("distillation bf16 256 x 4096", call(head(Task.kl_distillation(), 256, 4096, bf16)), 128)
    yield Call("distillation bf16 2048 x 32000", call(head(Task.kl_distillation(), 2048, 32000, bf16)), 128)
    yield Call("cosine fp32 512 x 768", call(head(Task.cosine(), 512, 768)), 96)
    yield Call("four heads, uncertainty", call(*mixed, log_vars=True), 96)
    yield Call("four heads, a long one", call(*mixed[1:], head(ce, 2048, 32000), log_vars=True), 128, one)
    weighed = Task.cross_entropy(weight=empty(151936), z_loss=1e-4)
    long_focal = Task.cross_entropy(focal_gamma=2.0, reduction="none")
    smooth = Task.cross_entropy(label_smoothing=0.1, z_loss=1e-4)
    yield Call("long rows, smoothing and z loss", call(head(smooth, 2048, 32000, bf16, masked=True)), 64, one)
    yield Call("long rows, z loss and weights", call(head(weighed, 4096, 151936, bf16, masked=True)), 64, one)
    yield Call("long rows, focal, unreduced", call(head(long_focal, 4096, 50257, bf16)), 64, one)
    focal, kept = Task.cross_entropy(focal_gamma=2.0), Task.cross_entropy(reduction="none")
    yield Call("focal and unreduced", call(head(focal, 64, 400), head(kept, 64, 400)), 96, one)


def contrastive_calls() -> Iterator[Call]:
    """Losses and gradients, of one tile of similarities and of several."""
    from mmcore.backends.triton import contrastive_loss, contrastive_loss_gradients
    from mmcore.ops.contrastive import ContrastiveProblem, Recorded

    def call(
        kind: str, batch: int, tile_rows: int, dtype: torch.dtype = torch.float32
    ) -> Callable[[], object]:
        def run() -> None:
            a, b = (torch.empty(batch, 64, dtype=dtype, device="meta") for _ in range(2))
            scale, grad = (torch.empty((), device="meta") for _ in range(2))
            problem = ContrastiveProblem(a, b, scale, -5.0, kind, torch.float32, tile_rows)
            _, parts = contrastive_loss(problem, True)
            contrastive_loss_gradients(problem, Recorded(*parts), grad, (True, True))

        return run

    for kind in ("clip", "siglip"):
        yield Call(f"{kind} 4096", call(kind, 4096, 4096), 128)
        yield Call(f"{kind} 1001 by 500 rows", call(kind, 1001, 500), 128, ("sm_90",))
        yield Call(f"{kind} bf16 4096", call(kind, 4096, 4096, torch.bfloat16), 128, ("sm_90",))


def all_calls() -> Iterator[Call]:
    """Calls of every op that has Triton kernels; a new op adds its own."""
    yield from fusion_calls()
    yield from losses_calls()
    yield from contrastive_calls()


class NoDriver:
    """What Triton asks of a GPU's driver before it compiles."""

    def __init__(self, target: GPUTarget) -> None:
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> str:
        return self._target.arch

    def get_current_stream(self, device: object) -> int:
        return 0


class Usage(NamedTuple):
    kernel: str
    warps: int
    registers: int
    spilled: int
    """Bytes of local memory a thread."""
    shared: int


def usage(compiled: Any, target: GPUTarget) -> Usage:
    """Resources of a compiled kernel, from its machine code."""
    meta = compiled.metadata
    if target.backend == "hip":
        of = dict(re.findall(r"\.(\w+):\s*(\d+)", compiled.asm["amdgcn"]))
        spilled = int(of["private_segment_fixed_size"]) + 4 * int(of["vgpr_spill_count"])
        return Usage(meta.name, meta.num_warps, int(of["vgpr_count"]), spilled, meta.shared)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(compiled.asm["cubin"])
        command = [
            Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump",
            "--dump-resource-usage",
            path,
        ]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text))
    return Usage(
        meta.name, meta.num_warps, int(found["REG"]), int(found["STACK"]) + int(found["LOCAL"]), meta.shared
    )


def compile_call(call: Call, target: GPUTarget) -> list[Usage]:
    """Compile what the call launches."""
    found: list[Usage] = []
    run = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        found.append(usage(run(self, *args, grid=grid, warmup=True, **kwargs), target))

    driver.set_active(NoDriver(target))
    JITFunction.run = compile_only
    try:
        call.run()
    finally:
        JITFunction.run = run
    return found


def main(words: list[str]) -> int:
    """Print the table; 1 if a kernel spills or takes more registers than its bound."""
    failures = 0
    print(f"triton {triton.__version__}; of each kernel: warps, registers a thread, bytes spilled if any")
    for call in all_calls():
        if words and not any(word in call.name for word in words):
            continue
        for name in call.targets:
            target = TARGETS[name]
            cells = []
            for k in compile_call(call, target):
                bound = call.registers if target.backend == "cuda" else AMD_REGISTERS
                bad = k.spilled > 0 or k.registers > bound
                failures += bad
                spilled = f" spills {k.spilled}" if k.spilled else ""
                mark = f" (more than {bound}, or spilled)" if bad else ""
                cells.append(f"{k.kernel.removesuffix('_kernel')} {k.warps} x {k.registers}{spilled}{mark}")
            print(f"{call.name:34} {name:7} {', '.join(cells)}", flush=True)
    print(f"{failures} kernels failed" if failures else "OK", flush=True)
    return failures > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
