"""The record as a picture: the goals, the times over eager torch, and the shares of the copy bandwidth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.gpu import goals

__all__ = ["draw"]

_OURS, _OURS_SOFT, _PEER, _SAND, _INK = "#0b6e4f", "#6fb98f", "#9aa5b1", "#d9b98c", "#1f2933"
_COLOURS = {"mmcore": _OURS, "mmcore, other form": _OURS_SOFT, "torch.compile": _PEER, "Liger-Kernel": _SAND}
_NAMES = {
    "mmcore": "mmcore",
    "mmcore, all sets in a graph": "mmcore",
    "mmcore, graph": "mmcore",
    "mmcore in place": "mmcore, other form",
    "torch.compile": "torch.compile",
    "torch.compile, graph": "torch.compile",
    "Liger-Kernel": "Liger-Kernel",
}
"""Whose bar a time is; the others are in the record alone."""

_INCHES = 0.17  # of a bar
_GOALS_SHOWN = 3.0  # times a goal, at most

Rows = list[tuple[str, dict[str, float]]]


def draw(record: dict[str, Any], path: Path) -> None:
    """Write the PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    reached = [(name, o) for name, o in _named(goals.outcomes(record)) if o.share is not None]
    speeds, shares = _speeds(record), _shares(record)
    # Bars are of one height in all of the panels, the longest of which fills the picture.
    lengths = [2 * len(reached), *(sum(len(v) + 1 for _, v in rows) for rows in (speeds, shares))]
    longest = max(*lengths, 8)
    with plt.rc_context({"font.family": "DejaVu Sans", "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = plt.subplots(
            1, 3, figsize=(20, 1.8 + _INCHES * (longest + 4)), width_ratios=(1.1, 1, 1)
        )
        _goals(axes[0], reached)
        _bars(axes[1], speeds, "Times as fast as eager torch")
        _bars(axes[2], shares, "Share of the copy bandwidth")
        for axis in axes:
            axis.set_ylim(longest + 4, -1)  # below the last bar there is room for a legend
        e = record["sections"].get("ceilings", {}).get("environment", {})
        versions = e.get("versions", {})
        title = (
            f"{e.get('gpu', 'GPU unknown')}, torch {versions.get('torch')}, triton {versions.get('triton')}"
        )
        if record.get("dry_run"):
            title = "dry run: the figures mean nothing"
        figure.suptitle(title, x=0.01, ha="left", color=_INK, fontsize=13)
        figure.tight_layout()
        figure.savefig(path, dpi=100, facecolor="white")
        plt.close(figure)


def _speeds(record: dict[str, Any]) -> Rows:
    found = []
    for name in ("frames", "fusion", "losses"):
        for case, row in goals.section(record, name).get("rows", {}).items():
            times = {who: t["ms"] for who, t in row["times"].items()}
            for suffix in (", graph", ""):
                eager = times.get("RGB, eager torch", times.get(f"eager{suffix}"))
                bars = {
                    _NAMES[who]: eager / ms
                    for who, ms in times.items()
                    if eager and who in _NAMES and (who.endswith("graph") == bool(suffix) or name == "frames")
                }
                if name == "frames" and eager:
                    bars["torch.compile"] = eager / times.get("RGB, torch.compile", eager)
                if "mmcore" in bars:
                    found.append((case if name == "frames" else case + suffix, bars))
                    break
    return found


def _shares(record: dict[str, Any]) -> Rows:
    found = []
    for case, row in goals.section(record, "frames").get("rows", {}).items():
        found.append((case, {"mmcore": row["of_copy"]}))
    for name in ("fusion", "losses"):
        section = goals.section(record, name)
        for case, row in section.get("rows", {}).items():
            if row.get("gbps") and section.get("copy_gbps"):
                # Of calls and of graphs of them the latter come last, and stay: they show the kernels.
                gbps = {_NAMES[who]: v for who, v in row["gbps"].items() if who in _NAMES}
                found.append((case, {who: v / section["copy_gbps"] for who, v in gbps.items()}))
    return found


def _named(outcomes: Sequence[goals.Outcome]) -> list[tuple[str, goals.Outcome]]:
    """Lines of the table that go on with the one above get its subject."""
    found, subject = [], ""
    for o in outcomes:
        if o.what.startswith("  "):
            found.append((f"{subject}, {o.what.strip()}", o))
        else:
            subject = o.what.partition(", ")[0]
            found.append((o.what, o))
    return found


def _goals(axis: Any, reached: Sequence[tuple[str, goals.Outcome]]) -> None:
    for i, (_, o) in enumerate(reached):
        assert o.share is not None
        length = min(o.share, _GOALS_SHOWN)
        axis.barh(2 * i, length, height=1.5, color=_OURS if o.state == goals.MET else _SAND)
        axis.text(length, 2 * i, f" {o.reached} ({o.goal})", va="center", fontsize=8, color=_INK)
    axis.set_yticks([2 * i for i in range(len(reached))], [name for name, _ in reached], fontsize=8)
    _finish(axis, "What was reached, as a part of the goal")


def _bars(axis: Any, rows: Rows, title: str) -> None:
    y, ticks = 0.0, []
    shown = set()
    for _, bars in rows:
        ticks.append(y + (len(bars) - 1) / 2)
        for who, value in bars.items():
            label = who if who not in shown else None
            shown.add(who)
            axis.barh(y, value, height=0.9, color=_COLOURS[who], label=label)
            axis.text(value, y, f" {value:.2f}", va="center", fontsize=7, color=_INK)
            y += 1
        y += 1
    axis.set_yticks(ticks, [case for case, _ in rows], fontsize=8)
    if shown:
        axis.legend(fontsize=8, frameon=False, loc="lower right")
    _finish(axis, title)


def _finish(axis: Any, title: str) -> None:
    axis.axvline(1.0, color=_INK, lw=1, ls=(0, (4, 3)), zorder=0)
    axis.margins(x=0.15)
    axis.set_title(title, loc="left", fontsize=11, color=_INK)
