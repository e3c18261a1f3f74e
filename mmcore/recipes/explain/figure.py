"""An explanation as one picture: frames, sound and words on one time axis, what moved the answer marked."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mmcore.recipes.report_figures import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mmcore.recipes.explain.explanation import Explanation

__all__ = ["draw"]

_INK, _DIM, _GRID = "#1f2937", "#6b7280", "#e5e7eb"
_FOR, _AGAINST = (0.86, 0.15, 0.15), (0.15, 0.39, 0.92)  # red, blue
_WIDTH = 12.0  # inches, and what of it the rows have beside their names
_CONTENT = 0.89 * _WIDTH
_TALLEST = 1.6
_MOST_FRAMES, _MOST_CLASSES = 12, 6
_METHODS = {
    "integrated_gradients": "integrated gradients (Sundararajan et al. 2017)",
    "gradient_x_input": "gradient times input (Shrikumar et al. 2016)",
    "occlusion": "occlusion (Zeiler and Fergus 2014)",
}


def draw(
    explanation: Explanation,
    path: str | os.PathLike[str],
    *,
    title: str = "",
    classes: Sequence[str] | None = None,
    tokens: Sequence[str] | None = None,
    pictures: Tensor | None = None,
) -> Path:
    """Draw an explanation to a PNG file.

    Parameters
    ----------
    explanation : Explanation
    path : path
    title : str
        Such as the file's name.
    classes : sequence of str, optional
        Names of the explained output's numbers; None: their positions.
    tokens : sequence of str, optional
        What each id of the text stands for; None: the ids.
    pictures : Tensor, optional
        (T, 3, H, W) uint8 frames to show; None: the network's input, stretched to the range of colours.

    Returns
    -------
    Path
        Of the picture.

    Raises
    ------
    ImportError
        Without matplotlib.
    ValueError
        If names, tokens or pictures are not as many as what they stand for.
    """
    _check(explanation, classes, tokens, pictures)
    e = explanation
    rows: list[tuple[float, Any]] = []
    if "video" in e.attributions:
        frames = _shown_frames(e, pictures)
        aspect = frames[1].shape[3] / frames[1].shape[2]
        tile = min(0.98 * _CONTENT / len(frames[0]), _TALLEST * aspect)
        rows.append((2 * tile / aspect, lambda axes: _draw_frames(axes, e, tile, *frames)))
    if "audio" in e.attributions:
        rows.append((1.5, lambda axes: _draw_sound(axes, e)))
    if "text" in e.attributions:
        rows.append((0.55, lambda axes: _draw_words(axes, e, tokens)))
    if e.contribution_steps is not None:
        rows.append((1.3, lambda axes: _draw_contributions(axes, e)))
    bottom = 1.7
    figure = new_figure(_WIDTH, 0.9 + sum(height + 0.1 for height, _ in rows) + bottom)
    figure.set_facecolor("white")
    figure.suptitle(_headline(e, title, classes), x=0.012, ha="left", fontsize=13, color=_INK, weight="bold")
    grid = figure.add_gridspec(len(rows) + 1, 1, height_ratios=[*(height for height, _ in rows), bottom])
    begin, end = _span(e)
    for i, (_, paint) in enumerate(rows):
        axes = figure.add_subplot(grid[i])
        axes.set_xlim(begin, end)
        _style(axes)
        paint(axes)
        axes.tick_params(labelbottom=i == len(rows) - 1)
    if rows:
        axes.set_xlabel("seconds", fontsize=8, color=_DIM)
    bars = grid[len(rows)].subgridspec(1, 3, width_ratios=(1, 1, 1.1))
    _draw_parts(figure.add_subplot(bars[0]), e)
    _draw_shares(figure.add_subplot(bars[1]), e)
    _draw_classes(figure.add_subplot(bars[2]), e, classes)
    target = Path(path)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        figure.savefig(part, format="png", dpi=110)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def _check(
    e: Explanation, classes: Sequence[str] | None, tokens: Sequence[str] | None, pictures: Tensor | None
) -> None:
    if classes is not None and len(classes) != len(e.output):
        raise ValueError(f"classes: expected {len(e.output)} names, got {len(classes)}")
    text = e.attributions.get("text")
    if tokens is not None and text is not None and len(tokens) != len(text):
        raise ValueError(f"tokens: expected {len(text)}, got {len(tokens)}")
    video = e.attributions.get("video")
    if pictures is not None and video is not None:
        fits = pictures.dim() == 4 and pictures.shape[:2] == (len(video), 3)
        if not fits or pictures.dtype != torch.uint8:
            raise ValueError(
                f"pictures: expected uint8 ({len(video)}, 3, H, W), got {pictures.dtype}"
                f" {tuple(pictures.shape)}"
            )


def _headline(e: Explanation, title: str, classes: Sequence[str] | None) -> str:
    said = f"{e.task} = {e.score:.3g}"
    if e.probabilities is not None and e.target is not None:
        said = f"{e.task}: {_name(e.target, classes)} ({100 * float(e.probabilities[e.target]):.1f} %)"
    elif e.target is not None:
        said = f"{e.task} {_name(e.target, classes)} = {e.score:.3g}"
    return f"{title}   {said}" if title else said


def _name(index: int, classes: Sequence[str] | None) -> str:
    return str(index) if classes is None else str(classes[index])


def _span(e: Explanation) -> tuple[float, float]:
    ends = [t for t in e.times.values() if len(t)]
    # Words may be shown longer than the clip; pictures and sound give its length where there are any.
    found = [e.times[name] for name in ("video", "audio") if name in e.times and len(e.times[name])] or ends
    return min(float(t.min()) for t in found), max(float(t.max()) for t in found)


def _color(modality: str) -> str:
    known = ("video", "audio", "text")
    return COLORS[known.index(modality) if modality in known else len(known)]


def _style(axes: Axes) -> None:
    axes.tick_params(colors=_DIM, labelsize=8, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _label(axes: Axes, text: str) -> None:
    axes.set_yticks([])
    axes.set_ylabel(text, fontsize=9, color=_INK, rotation=0, ha="right", va="center")


# --- heat


def _heat(attribution: Tensor, weight: float) -> np.ndarray[Any, Any]:
    """RGBA of an attribution: red where it raises the score, blue where it lowers it, the more the denser."""
    values = attribution.float().numpy()
    # The 99.5th of 100: single pixels do not make the rest pale.
    scale = float(np.quantile(np.abs(values), 0.995)) or float(np.abs(values).max()) or 1.0
    strength = weight * np.clip(np.abs(values) / scale, 0, 1)
    colors = np.where(values[..., None] >= 0, _FOR, _AGAINST)
    return np.concatenate([colors, 0.9 * strength[..., None]], -1)


def _weight(e: Explanation, name: str) -> float:
    """How dense a modality's colours are: 1 for the one that moves most, less for the others, by the root."""
    moved = {n: float(a.abs().sum()) for n, a in e.attributions.items()}
    return math.sqrt(moved[name] / max(max(moved.values()), 1e-12))


def _smooth(attribution: Tensor) -> Tensor:
    """Means over fields of a sixteenth of the picture: single pixels' gradients are noise to the eye."""
    size = max(1, round(min(attribution.shape[1:]) * 0.03)) * 2 + 1
    return F.avg_pool2d(attribution[:, None].float(), size, 1, size // 2, count_include_pad=False)[:, 0]


# --- the rows


def _shown_frames(e: Explanation, pictures: Tensor | None) -> tuple[list[int], Tensor, Tensor]:
    """Numbers of the frames to show, their pictures (n, 3, H, W) uint8, and the heat (n, H, W)."""
    video = e.inputs["video"]
    count = min(len(video), _MOST_FRAMES)
    chosen = [round((i + 0.5) * len(video) / count - 0.5) for i in range(count)]
    if pictures is None:
        low, high = video.amin(), video.amax()
        shown = ((video[chosen] - low) / (high - low).clamp(min=1e-6) * 255).round().to(torch.uint8)
        shown = shown[:, :3] if shown.shape[1] >= 3 else shown[:, :1].expand(-1, 3, -1, -1)
    else:
        shown = pictures[chosen]
    return chosen, shown, _smooth(e.attributions["video"])[chosen]


def _draw_frames(
    axes: Axes, e: Explanation, tile: float, chosen: Sequence[int], pictures: Tensor, heat: Tensor
) -> None:
    """Each frame, ``tile`` inches wide, above itself in grey with the heat over it, where its time begins."""
    begin, end = _span(e)
    slot = (end - begin) / len(chosen)
    width = slot * min(0.98, tile / (_CONTENT / len(chosen)))
    colors = _heat(heat, _weight(e, "video"))
    seconds = e.times["video"]
    for i, number in enumerate(chosen):
        left = begin + i * slot
        right = left + width
        picture = pictures[i].permute(1, 2, 0).numpy()
        grey = (picture @ np.array([0.299, 0.587, 0.114])) / 255
        grey = 0.35 + 0.6 * grey  # pale, for the heat to be seen
        upper, lower = (left, right, 1.02, 2.0), (left, right, 0.0, 0.98)
        axes.imshow(picture, extent=upper, aspect="auto", interpolation="nearest")
        axes.imshow(np.repeat(grey[..., None], 3, -1), extent=lower, aspect="auto", interpolation="nearest")
        axes.imshow(colors[i], extent=lower, aspect="auto", interpolation="bilinear")
        axes.text(left, 2.03, f"{float(seconds[number, 0]):.2f} s", fontsize=7, color=_DIM, va="bottom")
    axes.set_xlim(begin, end)
    axes.set_ylim(0, 2.0)
    _label(axes, "pictures")


def _draw_sound(axes: Axes, e: Explanation) -> None:
    times = e.times["audio"]
    extent = (float(times[0, 0]), float(times[-1, 1]), 0.0, float(e.inputs["audio"].shape[1]))
    common: dict[str, Any] = {"origin": "lower", "aspect": "auto", "extent": extent}
    axes.imshow(e.inputs["audio"].T.numpy(), cmap="Greys", alpha=0.55, interpolation="nearest", **common)
    heat = _heat(e.attributions["audio"].T, _weight(e, "audio"))
    axes.imshow(heat, interpolation="nearest", **common)
    axes.set_xlim(*_span(e))
    _label(axes, "sound\n(log-mel)")


def _draw_words(axes: Axes, e: Explanation, tokens: Sequence[str] | None) -> None:
    """Each token on a ground of its colour, side by side within the time in which it is shown."""
    names = [str(int(i)) for i in e.inputs["text"]] if tokens is None else list(tokens)
    colors = _heat(e.attributions["text"], _weight(e, "text"))
    times = e.times["text"].numpy()
    begin, end = _span(e)
    first = 0
    while first < len(names):
        last = first
        while last < len(names) and (times[last] == times[first]).all():
            last += 1
        left, right = max(float(times[first, 0]), begin), min(float(times[first, 1]), end)
        # Not wider than letters need: a short word shown for long stays a word.
        width = min((right - left) / (last - first), (end - begin) / 60 * max(map(len, names[first:last])))
        for i in range(first, last):
            x = left + (i - first) * width
            axes.axvspan(x, x + width, color=colors[i])
            size = min(11.0, 0.9 * width / (end - begin) * _CONTENT * 72 / max(1, len(names[i])) / 0.6)
            axes.text(
                x + width / 2, 0.5, names[i], ha="center", va="center", fontsize=size, color=_INK,
                family="DejaVu Sans Mono", parse_math=False, clip_on=True,
            )  # fmt: skip
        axes.plot([left, right], [0.0, 0.0], color=_DIM, linewidth=2, solid_capstyle="butt")
        first = last
    axes.set_xlim(begin, end)
    axes.set_ylim(0, 1)
    _label(axes, "words")


def _draw_contributions(axes: Axes, e: Explanation) -> None:
    assert e.contribution_steps is not None
    assert e.contribution_seconds is not None
    middles = e.contribution_seconds.mean(1).numpy()
    for m, name in enumerate(e.modalities):
        axes.plot(middles, e.contribution_steps[:, m].numpy(), color=_color(name), label=name, lw=1.8)
    low = min(0.0, float(e.contribution_steps.min()))
    axes.set_ylim(low - 0.05, max(1.0, float(e.contribution_steps.max())) + 0.05)
    axes.set_yticks([0, 0.5, 1])
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    how = "in windows" if e.windowed else "by step"
    axes.set_ylabel(
        f"share of the\nfused features\n{how}", fontsize=8, color=_INK, rotation=0, ha="right", va="center"
    )
    axes.legend(fontsize=7, frameon=False, ncols=len(e.modalities), loc="upper right")


# --- the bars below


def _bars(
    axes: Axes, title: str, names: Sequence[str], values: Sequence[float], colors: Sequence[Any]
) -> None:
    _style(axes)
    axes.set_title(title, fontsize=9, color=_INK, loc="left")
    axes.barh(range(len(names)), values, color=colors, height=0.62)
    axes.set_yticks(range(len(names)), [textwrap.shorten(n, 24, placeholder="…") for n in names])
    axes.tick_params(axis="y", labelcolor=_INK, labelsize=9)
    axes.set_xticks([])
    axes.set_ylim(max(len(names), 3) - 0.5, -0.5)
    axes.axvline(0, color=_DIM, linewidth=0.8)
    low, high = min(0.0, *values), max(0.0, *values)
    room = 0.22 * (high - low or 1.0)
    axes.set_xlim(low - (room if low < 0 else 0), high + room)
    for i, value in enumerate(values):
        side = "left" if value >= 0 else "right"
        axes.annotate(
            f"{round(value, 2) + 0.0:.2f}",  # no -0.00
            (value, i),
            (3 if value >= 0 else -3, 0),
            textcoords="offset points",
            ha=side,
            va="center",
            fontsize=8,
            color=_INK,
        )


def _draw_parts(axes: Axes, e: Explanation) -> None:
    parts = e.by_modality
    colors: list[Any] = [_FOR if value >= 0 else _AGAINST for value in parts.values()]
    title = f"What moved the score from {e.baseline_score:.2f} to {e.score:.2f}"
    if e.method != "integrated_gradients":  # the others' sums say nothing of that
        title = "Sums of the attributions"
    _bars(axes, title, [*parts], [*parts.values()], colors)
    note = f"{_METHODS[e.method]};\nred raises the score, blue lowers it, the paler the less"
    axes.set_xlabel(note, fontsize=7, color=_DIM, loc="left")


def _draw_shares(axes: Axes, e: Explanation) -> None:
    if e.contributions is None:
        axes.set_axis_off()
        return
    colors = [_color(name) for name in e.modalities]
    _bars(axes, "Share of the fused features", e.modalities, e.contributions.tolist(), colors)


def _draw_classes(axes: Axes, e: Explanation, classes: Sequence[str] | None) -> None:
    if len(e.output) == 1:
        axes.set_axis_off()
        return
    best = e.output.argsort(descending=True)[:_MOST_CLASSES].tolist()
    if e.target is not None and e.target not in best:
        best[-1] = e.target
    colors = ["#374151" if i == e.target else "#cbd5e1" for i in best]
    values, what = (e.output, "Scores") if e.probabilities is None else (e.probabilities, "Probabilities")
    _bars(axes, f"{what} of {e.task}", [_name(i, classes) for i in best], values[best].tolist(), colors)
