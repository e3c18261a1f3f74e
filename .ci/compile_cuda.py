#!/usr/bin/env python3
"""Compile the CUDA kernels for GPUs that are not at hand, and check what they need there.

    python .ci/compile_cuda.py [sm_80 sm_90 sm_100 ...]

Prints, of each kernel, registers, bytes of stack (spilled or indexed) a thread, shared memory that is not
asked for at the launch, instructions and products of matrices; fails where one needs more than its bound.
Registers decide how many threads a multiprocessor holds. Needs nvcc, cuobjdump (the CUDA toolkit's or
Triton's), c++filt and no GPU; takes one to two minutes a GPU.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TARGETS = ("sm_80", "sm_90", "sm_100")


class Bound(NamedTuple):
    """What kernels whose name begins so may need a thread."""

    name: str
    registers: int
    stack: int


BOUNDS = (
    # 14 warps a block and two blocks: 65536 / 896
    Bound("integer_kernel<32, unsigned char, 7, 4>", 72, 8),
    Bound("integer_kernel<480, unsigned char, 7, 4>", 72, 8),
    # up to 8 warps a block and two blocks
    Bound("integer_kernel", 128, 8),
    Bound("matrix_kernel", 128, 0),
    Bound("stream_kernel", 128, 144),
    Bound("gather_kernel", 64, 0),
    Bound("bytes_kernel", 64, 16),
)


def cuobjdump() -> str:
    """The program that reads machine code."""
    if found := shutil.which("cuobjdump"):
        return found
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        raise SystemExit("needs cuobjdump, on the PATH or in an installed triton")
    return str(Path(spec.origin).parent / "backends/nvidia/bin/cuobjdump")


def demangled(name: str) -> str:
    """A kernel's name with its template arguments, without namespaces and parameters."""
    text = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True).stdout.strip()
    text = text.replace("mmcore::cuda::", "").replace("(anonymous namespace)::", "").removeprefix("void ")
    return text.partition("(")[0]


def check(target: str, folder: Path) -> int:
    """Compile for one GPU and print the table; kernels that need too much."""
    cubin = folder / f"{target}.cubin"
    source = ROOT / "kernels" / "cuda" / "frames.cu"
    command = ["nvcc", "-std=c++17", f"-arch={target}", "-cubin", "-Xcudafe=--diag_suppress=20012"]
    command += [f"-I{ROOT / 'csrc' / 'include'}", f"-I{source.parent}", "-o", str(cubin), str(source)]
    subprocess.run(command, check=True)
    read = [cuobjdump(), "-res-usage", "-sass", str(cubin)]
    done = subprocess.run(read, capture_output=True, text=True, check=True)
    text = done.stdout + done.stderr
    code = {}
    for part in text.split("Function : ")[1:]:
        name, _, body = part.partition("\n")
        lines = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(.*?);", body, re.MULTILINE)
        code[name.strip()] = len(lines), sum("MMA." in line for line in lines)
    failures = 0
    for name, usage in re.findall(r"Function (\w+):\s*\n\s*(REG:.*)", text):
        kernel = demangled(name)
        need = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", usage)}
        bound = next(b for b in BOUNDS if kernel.startswith(b.name))
        stack = need["STACK"] + need["LOCAL"]
        bad = need["REG"] > bound.registers or stack > bound.stack
        failures += bad
        instructions, products = code[name]
        mark = f"  more than {bound.registers} and {bound.stack}" if bad else ""
        print(
            f"{target:7} {kernel:46} {need['REG']:3} registers, {stack:3} stack, {need['SHARED']:5} shared,"
            f" {instructions:5} instructions, {products:3} products{mark}",
            flush=True,
        )
    return failures


def main(targets: list[str]) -> int:
    """1 if a kernel needs more than its bound."""
    with tempfile.TemporaryDirectory() as folder:
        failures = sum(check(target, Path(folder)) for target in targets or TARGETS)
    print(f"{failures} kernels failed" if failures else "OK", flush=True)
    return failures > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
