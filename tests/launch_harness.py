"""What the Triton ops launch, without a GPU: Triton's own launcher on a driver that only notes launches.

``python launch_harness.py`` runs the ops' tables and compares, launch by launch and byte by byte, what a
replayed call launches with what Triton's own call does. Kernels are not compiled there: to a launch their
code does not matter, what they are compiled for does. ``--compiled`` runs a few calls with kernels that are,
``--time`` prints what calls cost the host. Tensors are on the CPU; to the driver any address is one of a GPU.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

import mmcore
from mmcore import Task
from mmcore.backends import replay
from mmcore.backends.triton import contrastive, fusion, losses

TARGET = GPUTarget("cuda", 90, 32)
STREAM = 7

_FOLDER = tempfile.TemporaryDirectory()


class Stub:
    """The driver, its notes, and the parts of Triton and mmcore that ask torch for a GPU."""

    def __init__(self) -> None:
        os.environ["TRITON_LIBCUDA_PATH"] = _FOLDER.name
        os.environ["TRITON_CACHE_DIR"] = str(Path(_FOLDER.name, "cache"))
        library = Path(_FOLDER.name, "libcuda.so.1")
        source = Path(__file__).with_name("cuda_stub.c")
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-O1", "-Wl,-soname,libcuda.so.1", "-o", library, source], check=True
        )
        # Triton's launcher asks for the library by its name, which is then there.
        self._library = ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
        self._library.stub_text.restype = ctypes.c_char_p
        from triton.backends.nvidia import driver as nvidia

        active = nvidia.CudaDriver()
        active.get_current_device = lambda: 0
        active.get_current_stream = lambda device: STREAM
        active.get_device_capability = lambda device=None: (9, 0)
        active.get_current_target = lambda: TARGET
        driver.set_active(active)
        for module in (contrastive, fusion, losses):
            module._check_device = lambda device: None
        for module in (fusion, losses):
            module._programs = lambda device, per: 132 * per
        replay._EVERYWHERE = True
        replay.RECORDED_AT = 1

    def launches(self) -> list[str]:
        """Take the notes of what was launched: function, grid, block, shared bytes, stream, parameters."""
        lines = self._library.stub_text().decode().splitlines()
        self._library.stub_clear()
        return lines

    def quiet(self) -> None:
        """Note nothing."""
        self._library.stub_note(0)


def compile_nothing() -> None:
    """Let Triton take kernels for compiled that are no code, but sizes of parameters, for the stub."""
    from triton import compiler
    from triton.compiler import CompiledKernel

    folder = Path(_FOLDER.name, "kernels")
    folder.mkdir()
    count = 0

    def compiled(src: Any, target: GPUTarget, options: dict[str, Any]) -> Any:
        nonlocal count
        count += 1
        sizes = [*_sizes(src.signature.values()), 8, 8]  # and two scratch buffers
        code, metadata = folder / f"{count}.cubin", folder / f"{count}.json"
        code.write_bytes(b"STUB" + b" ".join(b"%d" % n for n in sizes) + b"\0")
        known = {
            "name": src.name,
            "hash": str(count),
            "shared": 0,
            "tmem_size": 0,
            "target": vars(target),
            "warp_size": 32,
            "tensordesc_meta": None,
            "instrumentation_mode": "",
        }
        scratch = {f"{n}_scratch_{k}": k == "align" for n in ("global", "profile") for k in ("size", "align")}
        metadata.write_text(json.dumps({**options, **known, **scratch}, default=str))
        return CompiledKernel(src, {code.name: str(code), metadata.name: str(metadata)}, str(count))

    compiler.compile = compiled


def _sizes(signature: Any) -> Iterator[int]:
    for kind in signature:
        if isinstance(kind, tuple):
            yield from _sizes(kind)
        elif kind != "constexpr":
            yield 8 if kind[0] == "*" or kind == "i64" else {"u1": 4, "i1": 4, "i32": 4, "fp32": 4}[kind]


def addresses_named(
    launches: Sequence[str], inputs: Sequence[Tensor], results: Sequence[Tensor]
) -> list[str]:
    """The notes with names for addresses: of the inputs, of the results, and of other memory in its order."""
    names = {t.data_ptr(): f"input {i}" for i, t in reversed(list(enumerate(inputs)))}
    names |= {t.data_ptr(): f"result {i}" for i, t in enumerate(results) if t.data_ptr() not in names}
    lines = []
    for line in launches:
        words = line.split()
        for i, word in enumerate(words[5:], 5):
            value = int(word, 16)
            if len(word) == 16 and 2**40 <= value < 2**47:
                words[i] = names.setdefault(value, f"scratch {len(names)}")
        lines.append(" ".join(words))
    return lines


Segment = Callable[[], Sequence[Tensor | None]]


def noted(stub: Stub, inputs: Sequence[Tensor], segments: Sequence[Segment]) -> tuple[list[str], list[Any]]:
    """What is launched, and what its results look like. A segment is one call of an op, or its backward."""
    lines: list[str] = []
    results: list[Tensor] = []
    looks = []
    for segment in segments:
        stub.launches()
        made = [t for t in segment() if t is not None]
        results += made
        lines += ["--", *addresses_named(stub.launches(), inputs, results)]
        looks += [(t.shape, t.stride() if t.numel() > 1 else None, t.dtype) for t in made]
    return lines, looks


def elsewhere(t: Tensor) -> Tensor:
    """A tensor as this one, at another address of the same alignment."""
    span = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) if t.numel() else 0
    lead = t.data_ptr() % 64 // t.element_size()
    memory = torch.zeros(lead + span + 64, dtype=t.dtype)
    assert memory.data_ptr() % 64 == 0, "torch's allocator gives memory that is not aligned"
    made = memory[lead : lead + span].as_strided(t.shape, t.stride())
    return made.copy_(t) if t.numel() and 0 not in t.stride() else made


def compare(
    stub: Stub,
    inputs: Any,
    segments: Callable[[Any], Sequence[Segment]],
    tensors: Callable[[Any], list[Tensor]],
) -> bool:
    """Assert that a call's launches are the same recorded, replayed, and replayed on other tensors.

    Whether it was replayed, and did not have to be worked out anew.
    """
    moved = inputs.map(elsewhere)
    kinds = []
    with replay.disabled():
        wanted = noted(stub, tensors(inputs), segments(inputs))
    replay.clear()
    found = {}
    for how, given in (("recorded", inputs), ("again", inputs), ("elsewhere", moved)):
        found[how] = noted(stub, tensors(given), segments(given))
        kinds.append(len(replay._plans))
    assert len(set(kinds)) == 1, f"recorded more than once: {kinds}"
    for how, (lines, looks) in found.items():
        assert lines == wanted[0], f"{how}:\n" + "\n".join([*wanted[0], "became", *lines])
        assert looks == wanted[1], f"{how}: {looks} instead of {wanted[1]}"
    return all(plan is not None for plan in replay._plans.values())


def losses_segments(case: Any, inputs: Any) -> Sequence[Segment]:
    """Forward and backward of a case of the table."""
    from loss_harness import call, gradients, with_gradients

    leaves = with_gradients(inputs, case.wanted(), Tensor.detach)
    made: list[Any] = []

    def forward() -> list[Tensor]:
        made.extend(call(case, leaves))
        return [made[0], *made[1]]

    return [forward, lambda: [*gradients(leaves, made[0], made[1]).values()]]


def losses_tensors(inputs: Any) -> list[Tensor]:
    """All tensors that the call reads."""
    return [t for t in inputs.tensors() if t is not None]


def fusion_segments(case: Any, inputs: Any) -> Sequence[Segment]:
    """Forward and backward of a case of the table."""
    from fusion_harness import fuse, with_gradients

    leaves = with_gradients(inputs, case.wanted(), Tensor.detach)
    made: list[Tensor] = []

    def forward() -> list[Tensor]:
        made.append(fuse(case, leaves))
        return made

    def backward() -> Sequence[Tensor]:
        wanted = [t for t in leaves.differentiable().values() if t.requires_grad]
        return torch.autograd.grad(made[0], wanted, leaves.grad.to(made[0].dtype))

    return [forward, backward]


def fusion_tensors(inputs: Any) -> list[Tensor]:
    """All tensors that the call reads."""
    return [t for t in (*inputs.features, *inputs[1:]) if t is not None]


class Pairs(NamedTuple):
    """Arguments of the contrastive loss."""

    a: Tensor
    b: Tensor
    scale: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> Pairs:
        """Apply to every tensor."""
        return Pairs(*map(change, self))


class PairsCase(NamedTuple):
    """A call of the contrastive loss."""

    kind: str
    batch: int

    @property
    def id(self) -> str:
        """Of the case."""
        return f"{self.kind}-{self.batch}"

    def inputs(self) -> Pairs:
        """Features and scale."""
        return Pairs(*(torch.randn(self.batch, 8) for _ in range(2)), torch.ones(()))


def pairs_segments(case: PairsCase, inputs: Pairs) -> Sequence[Segment]:
    """Forward and backward."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    made: list[Tensor] = []

    def forward() -> list[Tensor]:
        made.append(mmcore.contrastive_loss(*leaves, case.kind, None if case.kind == "clip" else -5.0))
        return made

    return [forward, lambda: torch.autograd.grad(made[0], leaves)]


def check_tables(stub: Stub, few: bool) -> tuple[int, int, int]:
    """Compare the calls of the tables: how many there are, were replayed, and failed."""
    from fusion_cases import FUSION_CASES, FusionCase
    from loss_cases import LOSS_CASES, LossCase

    replayed = failures = 0
    of_losses, of_fusion = LOSS_CASES, FUSION_CASES
    of_pairs = [PairsCase(kind, batch) for kind in ("clip", "siglip") for batch in (1, 33, 500)]
    if few:
        how = {"norm": "layer_norm", "affine": "both", "mask": "BTM"}
        of_fusion = [FusionCase("softmax", 3, (4, 8), 96, align="linear", rate="down", **how)]
        of_losses = [LossCase(("ce", "bce", "mse", "l1"), (64,), 400, log_vars="unit", upstream="all")]
        of_pairs = of_pairs[1:5:3]
    jobs = [
        *((case, losses_segments, losses_tensors) for case in of_losses),
        *((case, fusion_segments, fusion_tensors) for case in of_fusion),
        *((case, pairs_segments, list) for case in of_pairs),
    ]
    with mmcore.backend("triton"):
        for case, segments, tensors in jobs:
            try:
                replayed += compare(stub, case.inputs(), lambda x, c=case, s=segments: s(c, x), tensors)
            except Exception as error:
                failures += 1
                print(f"FAILED {case.id}: {type(error).__name__}: {error}", flush=True)
    return len(jobs), replayed, failures


# ---- what calls cost


def calls() -> dict[str, Callable[[], Any]]:
    """Small calls, which launches bound on a GPU."""
    features = [torch.randn(8, 1, 256) for _ in range(3)]
    weights = torch.rand(3)
    leaves = [t.clone().requires_grad_() for t in (*features, weights)]
    upstream, scale = torch.randn(8, 1, 256), torch.ones(3, 256)
    shapes = (("cross_entropy", 400), ("bce_with_logits", 20), ("mse", 4), ("smooth_l1", 4))
    outputs = [torch.randn(64, n) for _, n in shapes]
    targets = [torch.randint(0, 400, (64,)), *(torch.rand(64, n) for _, n in shapes[1:])]
    tasks = [getattr(Task, kind)() for kind, _ in shapes]
    log_vars = torch.randn(4)
    wanted = [t.clone().requires_grad_() for t in (*outputs, log_vars)]
    factor = torch.ones(())
    a = torch.randn(64, requires_grad=True)

    def losses_step() -> Any:
        total, _ = mmcore.multi_task_loss(wanted[:4], targets, tasks, log_vars=wanted[4])
        found = torch.autograd.grad(total, wanted)
        losses.scale_gradients(found, factor)  # as on a GPU, where the upstream gradient is not known
        return found

    return {
        "torch, mul and sum, step": lambda: torch.autograd.grad((a * 2).sum(), [a]),
        "fusion, forward": lambda: mmcore.weighted_fusion(features, weights),
        "fusion, forward, layer_norm": lambda: mmcore.weighted_fusion(
            features, weights, norm="layer_norm", norm_weight=scale
        ),
        "fusion, step": lambda: torch.autograd.grad(
            mmcore.weighted_fusion(leaves[:3], leaves[3]), leaves, upstream
        ),
        "4 heads, forward": lambda: mmcore.multi_task_loss(outputs, targets, tasks, log_vars=log_vars),
        "4 heads, value_and_grad": lambda: mmcore.multi_task_value_and_grad(
            outputs, targets, tasks, log_vars=log_vars
        ),
        "4 heads, step": losses_step,
    }


def microseconds(call: Callable[[], Any], repeats: int = 400) -> float:
    """Median time of a call."""
    for _ in range(20):
        call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return sorted(times)[repeats // 2] * 1e6


def main(arguments: list[str]) -> int:
    """Run the tables, or time calls; the exit status is 1 if there was a failure."""
    stub = Stub()
    torch.set_num_threads(1)
    if arguments == ["--time"]:
        stub.quiet()
        print(f"triton {triton.__version__}; microseconds of the host a call: worked out anew, replayed")
        with mmcore.backend("triton"):
            for name, call in calls().items():
                with replay.disabled():
                    anew = microseconds(call)
                print(f"{name:30} {anew:8.1f} {microseconds(call):8.1f}", flush=True)
        return 0
    few = arguments == ["--compiled"]
    if not few:
        compile_nothing()
    count, replayed, failures = check_tables(stub, few)
    print(f"{count} cases, {replayed} replayed, {failures} failures", flush=True)
    return failures > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
