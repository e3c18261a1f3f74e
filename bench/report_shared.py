"""What the suites' tables and plots have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = [
    "INK",
    "OURS",
    "OURS_SOFT",
    "PEER",
    "QUIET",
    "at_least",
    "busy",
    "milliseconds",
    "quartiles",
    "titles",
]

OURS, OURS_SOFT, PEER, INK, QUIET = "#0b6e4f", "#6fb98f", "#9aa5b1", "#1f2933", "#66727f"


def at_least(value: float | None) -> str:
    return "" if value is None else f">= {value:.1f}"


def milliseconds(value: float) -> str:
    return f"{value:.3g}" if value < 1 else f"{value:.1f}"


def quartiles(values: Sequence[float] | None, short: bool = False) -> str:
    if not values:
        return ""
    low, middle, high = (f"{v:.2f}" if v < 100 else f"{v:.0f}" for v in values)
    return middle if short else f"{middle} ({low}-{high})"


def busy(result: dict[str, Any], console: Any, most: float = 1.05) -> None:
    """Say so if other programs took the core while the wall's clock was read."""
    ratio = max(r["wall_over_cpu"] for r in result["rows"])
    if ratio > most and result["clock"] == "wall" and result["threads"] == 1:
        console.print(
            "Other programs used this core: repeat on a quiet machine, or read --clock cpu.", style="red"
        )


def titles(
    figure: Any, height: float, title: str, subtitle: str, result: dict[str, Any], lines: int = 1
) -> None:
    m = result["machine"]
    figure.text(0.012, 1 - 0.16 / height, title, fontsize=14, fontweight="bold", va="top", color=INK)
    figure.text(0.012, 1 - 0.46 / height, subtitle, fontsize=9.5, va="top", color=QUIET)
    versions = "  ".join(f"{k} {v}" for k, v in m["versions"].items() if k not in ("python", "numpy"))
    foot = f"{m['cpu']}, ISA {m['mmcore_build'].get('isa')}, {m['date'][:10]}.  {versions}"
    figure.text(0.012, 0.08 / height, foot, fontsize=8, va="bottom", color=QUIET)
    figure.tight_layout(rect=(0, 0.26 / height, 1, 1 - (0.54 + 0.18 * lines) / height))
