"""``mmcore env``: what is installed, what the machine offers and what mmcore uses of it."""

from __future__ import annotations

import json as jsonlib
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer

from mmcore.cli.render import console, key_value_table, table

__all__ = ["env"]

OPTIONAL = ("typer", "rich", "matplotlib", "safetensors", "triton")


def env(json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False) -> None:
    """Show versions, the CPU, the instruction set in use, the backends and whether NVDEC is there."""
    facts = collect()
    if json:
        typer.echo(jsonlib.dumps(facts, indent=2))
        return
    out = console()
    info = facts["mmcore"]
    shown = ("version", "compiler", "isa", "isa_available", "num_threads")
    out.print(key_value_table("mmcore", {name: _text(info[name]) for name in shown}))
    backends = table("backend", "state", title="Backends")
    for name in info["backends"]:
        backends.add_row(name, "available")
    for name, reason in info["backends_missing"].items():
        backends.add_row(name, f"missing: {reason}")
    out.print(backends)
    out.print(key_value_table("Machine", facts["machine"]))
    packages = {k: v or "not installed" for k, v in facts["packages"].items()}
    decoding = {name: _text(value) for name, value in facts["gpu_decoding"].items()}
    out.print(key_value_table("Decoding on a GPU", decoding))
    out.print(key_value_table("Packages", packages | {f"FFmpeg {k}": v for k, v in facts["ffmpeg"].items()}))


def collect() -> dict[str, Any]:
    """Everything the command shows, as plain JSON types."""
    import os

    import av
    import torch

    import mmcore
    from mmcore.decoding.nvdec_choice import nvdec_facts

    packages: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("torch", "numpy", "av", *OPTIONAL):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    return {
        "mmcore": mmcore.build_info(),
        "machine": {
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "cores usable": len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count(),
            "mmcore threads": mmcore.get_num_threads(),
            "torch threads": torch.get_num_threads(),
            "system": platform.platform(),
            "executable": sys.executable,
        },
        "gpu_decoding": nvdec_facts(),
        "packages": packages,
        "ffmpeg": {name: ".".join(map(str, v)) for name, v in av.library_versions.items()},
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def _text(value: Any) -> str | None:
    return ", ".join(map(str, value)) if isinstance(value, list) else value
