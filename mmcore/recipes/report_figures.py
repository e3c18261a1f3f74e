"""The figures of a report: curves of losses and metrics, confusion matrices, modality contributions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mmcore.recipes.training_log import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLORS",
    "confusion_figure",
    "contributions_figure",
    "evaluations_figure",
    "losses_figure",
    "new_figure",
]

Array = npt.NDArray[np.float64]

COLORS = ("#2563eb", "#ea580c", "#059669", "#9333ea", "#dc2626", "#0891b2", "#ca8a04", "#64748b")
_INK, _GRID = "#1f2937", "#e5e7eb"
_NUMBERED = 24
"""Classes up to which a confusion matrix shows its numbers."""


def new_figure(width: float, height: float) -> Figure:
    """Figure in inches, drawn without a screen and without pyplot's global state.

    Raises
    ------
    ImportError
        Without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a report needs matplotlib: pip install 'mmcore[cli]'") from error
    return Figure((width, height), layout="constrained")


def losses_figure(history: History) -> Figure | None:
    """Loss of each task over the steps: a smooth line over the pale values themselves."""
    curves = {name: np.array(values) for name, values in history.losses.items()}
    if len(history.steps) < 2 or not curves:
        return None
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure = new_figure(3.6 * columns, 2.5 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    steps = np.array([record.step + 1 for record in history.steps])
    for i, (name, values) in enumerate(curves.items()):
        color = COLORS[i % len(COLORS)]
        _style(axes[i], name)
        axes[i].plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
        axes[i].plot(steps, _smooth(values), color=color, linewidth=1.6)
        finite = values[np.isfinite(values)]
        if len(finite) and finite.min() > 0 and finite.max() > 30 * finite.min():
            axes[i].set_yscale("log")
        axes[i].set_xlabel("step", fontsize=8, color=_INK)
    for empty in axes[len(curves) :]:
        empty.set_axis_off()
    return figure


def evaluations_figure(history: History) -> Figure | None:
    """Metrics over the steps, those of like size in one plot."""
    names = list(dict.fromkeys(name for e in history.evaluations for name in e.metrics))
    curves = {name: history.metric(name) for name in names}
    curves = {name: curve for name, curve in curves.items() if len(curve[0]) > 1}
    if not curves:
        return None
    shares = {n: c for n, c in curves.items() if all(0 <= v <= 1 for v in c[1] if math.isfinite(v))}
    others = {n: c for n, c in curves.items() if n not in shares}
    groups = [group for group in (shares, others) if group]
    figure = new_figure(5.6 * len(groups), 3.0)
    axes = figure.subplots(1, len(groups), squeeze=False).ravel()
    for ax, group in zip(axes, groups, strict=True):
        _style(ax, "")
        for i, (name, (steps, values)) in enumerate(group.items()):
            ax.plot(steps, values, color=COLORS[i % len(COLORS)], marker="o", markersize=3, label=name)
        if group is shares:
            ax.set_ylim(-0.02, 1.02)
        ax.set_xlabel("step", fontsize=8, color=_INK)
        ax.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def confusion_figure(labels: Sequence[str], matrix: Any, title: str = "") -> Figure:
    """Counts of (true, predicted) classes, coloured by their share of the true class.

    Raises
    ------
    ValueError
        If ``matrix`` is not (labels, labels).
    """
    counts: Array = np.asarray(matrix, dtype=np.float64)
    count = len(labels)
    if counts.shape != (count, count):
        raise ValueError(f"confusion: expected {(count, count)} for {count} labels, got {counts.shape}")
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = min(9.0, max(3.2, 0.42 * count + 1.6))
    figure = new_figure(size, size * 0.92)
    ax = figure.add_subplot()
    ax.set_title(title, fontsize=9, color=_INK, loc="left")
    image = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=ax, shrink=0.8).ax.tick_params(labelsize=7)
    shown = range(0, count, 1 + count // 48)
    ax.set_xticks(list(shown), [labels[i] for i in shown], rotation=60, ha="right", fontsize=7)
    ax.set_yticks(list(shown), [labels[i] for i in shown], fontsize=7)
    ax.set_xlabel("predicted", fontsize=8, color=_INK)
    ax.set_ylabel("true", fontsize=8, color=_INK)
    if count <= _NUMBERED:
        for i, j in np.argwhere(counts > 0):
            color = "white" if shares[i, j] > 0.55 else _INK
            ax.text(j, i, f"{counts[i, j]:g}", ha="center", va="center", fontsize=6.5, color=color)
    return figure


def contributions_figure(contributions: Mapping[str, Mapping[str, float]]) -> Figure:
    """Stacked bars: of each row, how much comes from which modality."""
    modalities = list(dict.fromkeys(m for shares in contributions.values() for m in shares))
    figure = new_figure(6.4, 0.9 + 0.42 * len(contributions))
    ax = figure.add_subplot()
    _style(ax, "")
    left = np.zeros(len(contributions))
    rows = list(contributions)[::-1]
    for i, modality in enumerate(modalities):
        values = np.array([contributions[row].get(modality, 0.0) for row in rows])
        bars = ax.barh(rows, values, left=left, color=COLORS[i % len(COLORS)], label=modality, height=0.62)
        total = max(sum(abs(v) for v in shares.values()) for shares in contributions.values()) or 1.0
        texts = [f"{v:.2f}" if abs(v) > 0.06 * total else "" for v in values]
        ax.bar_label(bars, texts, label_type="center", fontsize=7, color="white")
        left += values
    ax.grid(axis="y", visible=False)
    ax.legend(fontsize=7, frameon=False, ncols=len(modalities), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def _style(ax: Axes, title: str) -> None:
    ax.set_title(title, fontsize=9, color=_INK, loc="left")
    ax.tick_params(labelsize=7, colors=_INK, length=2)
    ax.grid(color=_GRID, linewidth=0.6)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(_GRID)


def _smooth(values: Array) -> Array:
    """Mean over a window of about a thirtieth of all steps, shorter at the ends; passes over what is nan."""
    half = max(1, len(values) // 60)
    there = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(there, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(there)])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    number = counts[high] - counts[low]
    return np.where(number > 0, (sums[high] - sums[low]) / np.maximum(number, 1), np.nan)
