"""The record as a short table for the terminal, and as a plot."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

__all__ = ["plot", "stem", "table"]

_OURS, _OURS_SOFT, _PEER, _INK = "#0b6e4f", "#6fb98f", "#9aa5b1", "#1f2933"
_LINES_OF_ERRORS = 30


def _section(record: dict[str, Any], name: str) -> dict[str, Any]:
    found = record["sections"].get(name, {})
    return {} if "parts" in found else found


def stem(record: dict[str, Any]) -> str:
    """Name of its files: gpu-DATE-GPU."""
    ceilings = _section(record, "ceilings")
    date = ceilings.get("machine", {}).get("date", "undated")[:10]
    gpu = ceilings.get("environment", {}).get("gpu", "unknown")
    return "gpu-" + date + "-" + re.sub(r"[^a-z0-9]+", "-", gpu.lower().replace("nvidia", "")).strip("-")


def table(record: dict[str, Any]) -> str:
    """Everything worth reading, in less than 10,000 characters; frames have their own lines."""
    lines: list[str] = []
    _ceilings(_section(record, "ceilings"), lines)
    _correctness("correctness", record["sections"], lines)
    _contract(_section(record, "contract"), lines)
    _correctness("frames correctness", record["sections"], lines)
    _frames(_section(record, "frames"), lines)
    for name in ("fusion", "losses"):
        _rows(name, _section(record, name), lines)
    _calls(_section(record, "calls"), lines)
    lines += [str(line) for line in _section(record, "tuning").get("table", [])]
    _errors(record, lines)
    return "\n".join(lines)[:9900]


def _ceilings(section: dict[str, Any], lines: list[str]) -> None:
    if not section:
        return
    e = section.get("environment", {})
    smi = e.get("nvidia_smi", {})
    versions = " ".join(f"{k} {v}" for k, v in e.get("versions", {}).items() if v != "absent")
    lines.append(f"{e.get('gpu')}, driver {smi.get('driver_version')}, CUDA {e.get('cuda')}; {versions}")
    lines.append(
        f"libraries {e.get('libraries')}; SM clock {smi.get('clocks.sm')},"
        f" after {e.get('after', {}).get('clocks.sm')};"
        f" PCIe {smi.get('pcie.link.gen.current')} x{smi.get('pcie.link.width.current')}"
    )
    for title, key, form in (
        ("GB/s", "memory_gbps", ".0f"),
        ("GB/s", "bus_gbps", ".1f"),
        ("us", "launches_us", ".2f"),
    ):
        values = section.get(key, {})
        lines.append(f"{title}: " + "; ".join(f"{n} {v:{form}}" for n, v in values.items()))


def _correctness(name: str, sections: dict[str, Any], lines: list[str]) -> None:
    section = sections.get(name, {})
    parts = section.get("parts", [section] if section else [])
    if not parts:
        return
    cases = sum(p.get("cases", 0) for p in parts)
    failures = {n: t for p in parts for n, t in p.get("failures", {}).items()}
    left = sum(p.get("left_out", 0) for p in parts)
    lines.append(
        f"correctness: {cases} cases, {len(failures)} failures" + (f", {left} left out" if left else "")
    )
    for name, text in list(failures.items())[:12]:
        lines.append(f"  FAILED {name}: {text[:160]}")


def _contract(section: dict[str, Any], lines: list[str]) -> None:
    held = section.get("held", {})
    if held:
        count = sum(len(v) for v in held.values())
        lines.append(f"contract: {count} promises hold, {len(section.get('errors', {}))} do not")


def _frames(section: dict[str, Any], lines: list[str]) -> None:
    if section.get("rows"):
        lines.append(f"frames: ms (% of copy {section.get('copy_gbps', 0):.0f} GB/s)")
    for case, row in section.get("rows", {}).items():
        cells = [f"{who} {_ms(t['ms'])}" for who, t in row["times"].items()]
        cells.append(f"host us {row['host_us']:.0f}")
        lines.append(f"  {case}: {row['of_copy']:.0%}; " + "; ".join(cells))


def _rows(name: str, section: dict[str, Any], lines: list[str]) -> None:
    rows = section.get("rows", {})
    if not rows:
        return
    copy = section.get("copy_gbps", 0.0)
    lines.append(f"{name}: ms (over eager, over compile; % of copy {copy:.0f} GB/s)")
    for case, row in rows.items():
        times = row["times"]
        cells = []
        for who, t in times.items():
            share = f" {row['gbps'][who] / copy:.0%}" if who in row.get("gbps", {}) and copy else ""
            cells.append(f"{who} {_ms(t['ms'])}{share}")
        ours = times.get("mmcore")
        over = [
            f"{times[peer]['ms'] / ours['ms']:.1f}x {peer}"
            for peer in ("eager", "torch.compile", "Liger-Kernel")
            if ours and peer in times
        ]
        lines.append(f"  {case}: " + "; ".join(cells) + (f" -> {', '.join(over)}" if over else ""))
        if row.get("host_us"):
            lines.append("    host us: " + ", ".join(f"{n} {v:.0f}" for n, v in row["host_us"].items()))
        lines.extend(f"    absent: {n}: {reason[:120]}" for n, reason in row["absent"].items())


def _ms(value: float) -> str:
    return f"{value:.4f}" if value < 0.1 else f"{value:.3f}"


def _calls(section: dict[str, Any], lines: list[str]) -> None:
    if section.get("host_us"):
        lines.append("host us a call: " + "; ".join(f"{n} {v:.1f}" for n, v in section["host_us"].items()))


def _errors(record: dict[str, Any], lines: list[str]) -> None:
    shown: list[str] = []
    for name, reason in record["not_run"].items():
        shown.append(f"not run: {name}: {reason}")
    for name, section in record["sections"].items():
        for part in section.get("parts", [section]):
            for what, text in part.get("errors", {}).items():
                last = text.strip().splitlines()[-1][:200] if text.strip() else ""
                shown.append(f"ERROR {name}: {what}: {last}")
    lines += shown[:_LINES_OF_ERRORS]
    lines.append(f"{record.get('seconds', 0):.0f} s in all; sections: " + ", ".join(
        f"{n} {max((p.get('seconds', 0) for p in s.get('parts', [s])), default=0):.0f}"
        for n, s in record["sections"].items()
    ))  # fmt: skip


def plot(record: dict[str, Any], path: Path) -> None:
    """Draw how many times faster than eager everybody is, and the shares of the copy bandwidth."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    speeds: list[tuple[str, dict[str, float]]] = []
    shares: list[tuple[str, dict[str, float]]] = []
    for name in ("fusion", "losses"):
        section = _section(record, name)
        copy = section.get("copy_gbps")
        for case, row in section.get("rows", {}).items():
            times = row["times"]
            if "eager" in times and "mmcore" in times:
                eager = times["eager"]["ms"]
                speeds.append((case, {n: eager / t["ms"] for n, t in times.items() if "graph" not in n}))
            if row.get("gbps") and copy:
                shares.append((case, {n: v / copy for n, v in row["gbps"].items()}))
    with plt.rc_context({"font.family": "DejaVu Sans", "axes.spines.top": False, "axes.spines.right": False}):
        height = 1.6 + 0.5 * max(len(speeds), len(shares), 1)
        figure, axes = plt.subplots(1, 2, figsize=(15, height))
        _bars(axes[0], speeds, "Times faster than eager torch", 1.0)
        _bars(axes[1], shares, "Share of the copy bandwidth", 1.0)
        e = _section(record, "ceilings").get("environment", {})
        figure.suptitle(f"{e.get('gpu', '?')}, torch {e.get('versions', {}).get('torch', '?')}", color=_INK)
        figure.tight_layout()
        figure.savefig(path, dpi=120, facecolor="white")
        plt.close(figure)


_SHOWN = ("mmcore", "mmcore in place", "torch.compile", "Liger-Kernel")
_COLOURS = dict(zip(_SHOWN, (_OURS, _OURS_SOFT, _PEER, "#d9b98c"), strict=True))


def _bars(axis: Any, rows: list[tuple[str, dict[str, float]]], title: str, line: float) -> None:
    width = 0.8 / len(_SHOWN)
    for j, who in enumerate(_SHOWN):
        at = [i + (j - (len(_SHOWN) - 1) / 2) * width for i, (_, v) in enumerate(rows) if who in v]
        values = [v[who] for _, v in rows if who in v]
        axis.barh(at, values, height=width, color=_COLOURS[who], label=who)
        for y, value in zip(at, values, strict=True):
            axis.text(value, y, f" {value:.2f}", va="center", fontsize=7, color=_INK)
    axis.axvline(line, color=_INK, lw=1, ls=(0, (4, 3)))
    axis.set_yticks(range(len(rows)), [case for case, _ in rows], fontsize=8)
    axis.invert_yaxis()
    axis.set_title(title, loc="left", fontsize=11, color=_INK)
    axis.legend(fontsize=8, frameon=False)
