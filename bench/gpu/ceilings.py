"""The machine, and what it can do at most: memory, the bus, and a launch by every way there is."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench import timing
from bench.gpu.measure import Bench, Job

__all__ = ["run"]

_LARGE, _IN_CACHE = 1 << 30, 8 << 20  # bytes
_TINY_KERNELS = 100
_QUERY = (
    "name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,"
    "temperature.gpu,pcie.link.gen.current,pcie.link.width.current"
)


def run(bench: Bench) -> None:
    """Fill the record: environment, bandwidths, launches."""
    record = bench.record
    with bench.attempt("environment"):
        record["machine"] = timing.machine([])
        record["environment"] = _environment(bench)
    with bench.attempt("memory"):
        record["memory_gbps"] = _memory(bench)
    with bench.attempt("bus"):
        record["bus_gbps"] = _bus(bench)
    with bench.attempt("launches of torch"):
        record["launches_us"] = _torch_launches(bench)
    with bench.attempt("launches of triton"):
        record["launches_us"].update(_triton_launches(bench))
    with bench.attempt("clocks after"):
        record["environment"]["after"] = _nvidia_smi()


def _nvidia_smi() -> dict[str, str]:
    if shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader"]
    text = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.splitlines()
    return dict(zip(_QUERY.split(","), (v.strip() for v in text[0].split(",")), strict=False)) if text else {}


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except OSError:
        return ""
    return (done.stdout.strip().splitlines() or [""])[-1]


def _environment(bench: Bench) -> dict[str, Any]:
    import importlib.metadata as metadata

    packages = ("torch", "triton", "numpy", "liger-kernel", "transformers", "torchvision", "torchcodec", "av")
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    found: dict[str, Any] = {
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "versions": versions,
        "cuda": torch.version.cuda,
        "nvcc": _first_line("nvcc", "--version"),
        "libraries": {name: _loads(name) for name in ("libcuda.so.1", "libnvcuvid.so.1", "libnvjpeg.so.13")},
        "nvidia_smi": _nvidia_smi(),
        "gpu": "none: dry run",
    }
    if not bench.dry:
        p = torch.cuda.get_device_properties(bench.device)
        found["gpu"] = p.name
        found["multiprocessors"] = p.multi_processor_count
        found["l2_bytes"] = p.L2_cache_size
        found["memory_bytes"] = p.total_memory
        found["capability"] = list(torch.cuda.get_device_capability(bench.device))
    return found


def _memory(bench: Bench) -> dict[str, float]:
    """Bytes read plus written a second."""
    found = {
        "copy": bench.copy_gbps(_LARGE),
        "copy in L2": bench.copy_gbps(_IN_CACHE, 1),
    }
    count = 1 << 14 if bench.dry else _LARGE // 4
    x, y, z = (torch.empty(count, device=bench.device).normal_() for _ in range(3))
    jobs = {
        "read": (Job(lambda: torch.amax(x)), 1),
        "write": (Job(lambda: y.fill_(1.5)), 1),
        "read two, write one": (Job(lambda: torch.add(x, y, out=z)), 3),
    }
    times = bench.interleave({name: job for name, (job, _) in jobs.items()}, 0.5)
    for name, (_, passes) in jobs.items():
        found[name] = passes * x.nbytes / times[name]["ms"] / 1e6
    return found


def _bus(bench: Bench) -> dict[str, float]:
    """Between host and device."""
    count = 1 << 12 if bench.dry else 256 << 20
    pageable = torch.empty(count, dtype=torch.uint8).random_()
    pinned = pageable.clone() if bench.dry else pageable.pin_memory()
    device = pageable.to(bench.device)
    small = pinned[: count // 128]
    small_device = device[: count // 128]
    jobs = {
        "pinned to device": Job(lambda: device.copy_(pinned, non_blocking=True)),
        "pinned to device, 2 MiB": Job(lambda: small_device.copy_(small, non_blocking=True)),
        "pageable to device": Job(lambda: device.copy_(pageable)),
        "device to pinned": Job(lambda: pinned.copy_(device, non_blocking=True)),
    }
    times = bench.interleave(jobs, 0.6, (5, 20))
    sizes = {name: small.nbytes if "2 MiB" in name else count for name in jobs}
    return {name: sizes[name] / t["ms"] / 1e6 for name, t in times.items()}


def _torch_launches(bench: Bench) -> dict[str, float]:
    x = torch.zeros(1, device=bench.device)
    one = bench.graphed(lambda: x.add_(1))

    def many() -> None:
        for _ in range(_TINY_KERNELS):
            x.add_(1)

    replay_many = bench.graphed(many)
    times = bench.interleave({"one": Job(one), "many": Job(replay_many), "op": Job(lambda: x.add_(1))}, 0.3)
    return {
        "torch op, host": bench.host_us(lambda: x.add_(1)),
        "torch.empty, host": bench.host_us(lambda: torch.empty(1024, device=bench.device)),
        "torch op, back to back": times["op"]["ms"] * 1e3,
        "graph of one, host": bench.host_us(one),
        "graph of one, back to back": times["one"]["ms"] * 1e3,
        f"graph of {_TINY_KERNELS}, each kernel": times["many"]["ms"] * 1e3 / _TINY_KERNELS,
        "synchronize, round trip": _round_trip(bench, x),
    }


def _round_trip(bench: Bench, x: torch.Tensor) -> float:
    values = []
    for _ in range(2 if bench.dry else 50):
        bench.synchronize()
        start = time.perf_counter()
        x.add_(1)
        bench.synchronize()
        values.append(time.perf_counter() - start)
    return sorted(values)[len(values) // 2] * 1e6


def _triton_launches(bench: Bench) -> dict[str, float]:
    from bench.gpu.kernels import add_kernel, empty_kernel

    x = torch.zeros(1024, device=bench.device)
    tensors = tuple(x for _ in range(8))
    found = {
        "triton empty, host": bench.host_us(lambda: empty_kernel[(1,)]()),
        "triton 1 argument, host": bench.host_us(lambda: add_kernel[(1,)]((x,), COUNT=1, BLOCK=1024)),
        "triton tuple of 8, host": bench.host_us(lambda: add_kernel[(1,)](tensors, COUNT=8, BLOCK=1024)),
    }
    times = bench.interleave({"empty": Job(lambda: empty_kernel[(1,)]())}, 0.1)
    found["triton empty, back to back"] = times["empty"]["ms"] * 1e3
    if not bench.dry:
        found["cuLaunchKernel by ctypes, host"] = bench.host_us(_driver_launch(empty_kernel[(1,)]()))
    return found


def _driver_launch(compiled: Any) -> Callable[[], object]:
    """Launch of a kernel without parameters of its own straight from the driver."""
    library = ctypes.CDLL("libcuda.so.1")
    hidden = [ctypes.c_uint64(0), ctypes.c_uint64(0)]  # Triton's own: scratch memory, which it does not need
    pointers: Sequence[int] = [ctypes.addressof(value) for value in hidden]
    parameters = (ctypes.c_void_p * 2)(*pointers)
    function = ctypes.c_void_p(compiled.function)
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    launch = library.cuLaunchKernel
    launch.argtypes = [
        ctypes.c_void_p,
        *[ctypes.c_uint] * 7,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_void_p,
    ]

    def call() -> object:
        _ = hidden
        status = launch(function, 1, 1, 1, 128, 1, 1, 0, stream, parameters, None)
        if status:
            raise RuntimeError(f"cuLaunchKernel: error {status}")
        return status

    return call
