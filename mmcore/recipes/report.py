"""One page that shows how a training went: curves, metrics, confusions, contributions, settings."""

from __future__ import annotations

import base64
import html
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmcore.recipes.report_figures import (
    confusion_figure,
    contributions_figure,
    evaluations_figure,
    losses_figure,
)
from mmcore.recipes.training_log import History

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["RecipeResult", "write_report"]

_DPI = 128
_CARDS = 4

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2937; background: #f3f4f6; margin: 0; }
main { max-width: 1020px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 17px; margin: 0 0 10px; }
.sub { color: #6b7280; margin: 0 0 20px; }
section, .card { background: white; border: 1px solid #e5e7eb; border-radius: 10px; }
section { padding: 18px 22px; margin: 0 0 18px; }
.cards { display: flex; flex-wrap: wrap; gap: 14px; margin: 0 0 18px; }
.card { padding: 12px 20px; flex: 1; min-width: 120px; } .card span { color: #6b7280; }
.card b { display: block; font-size: 25px; font-variant-numeric: tabular-nums; }
section.warning { background: #fef3c7; border-color: #fcd34d; }
table { border-collapse: collapse; }
td, th { text-align: left; padding: 3px 22px 3px 0; vertical-align: top; font-weight: 400; }
th { color: #6b7280; } td.n { text-align: right; font-variant-numeric: tabular-nums; }
tr + tr td, tr + tr th { border-top: 1px solid #f3f4f6; }
img { max-width: 100%; height: auto; } figure { margin: 0; }
.row { display: flex; flex-wrap: wrap; gap: 10px 40px; align-items: flex-start; }
@media print { body { background: white; } section, .card { break-inside: avoid; } }
"""

Confusion = tuple[Sequence[str], Any]
Picture = Any  # a matplotlib Figure, or the path of a picture


@dataclass(frozen=True)
class RecipeResult:
    """What a recipe's ``train`` gives.

    Attributes
    ----------
    folder : Path
        All that ``load`` of the recipe needs.
    metrics : dict of str to float
        On held-out data, of the weights that were kept.
    history : History
    report : Path
        The page, to be opened in a browser.
    """

    folder: Path
    metrics: dict[str, float]
    history: History
    report: Path


def write_report(
    folder: str | os.PathLike[str],
    title: str,
    history: History,
    *,
    metrics: Mapping[str, float],
    confusion: Confusion | Mapping[str, Confusion] | None = None,
    contributions: Mapping[str, float] | Mapping[str, Mapping[str, float]] | None = None,
    figures: Sequence[Picture | tuple[str, Picture]] = (),
    notes: Sequence[str] = (),
) -> Path:
    """Write ``report.html``, which needs no other file.

    Parameters
    ----------
    folder : path
        Of the training: ``settings.json`` is read from it, if there.
    title : str
    history : History
        Its losses and evaluations become curves.
    metrics : mapping of str to float
        The final ones; the first four are shown large.
    confusion : (labels, matrix), or a mapping of titles to such pairs, optional
        ``matrix``: (C, C) counts of true classes (rows) and predicted ones (columns).
    contributions : mapping, optional
        Of modality to its part; or of a row's name to such a mapping.
    figures : sequence, optional
        More pictures: matplotlib figures, or paths of PNG, JPEG, GIF or SVG files; (caption, picture) to
        name one.
    notes : sequence of str, optional
        Paragraphs.

    Returns
    -------
    Path
        Of the page.

    Raises
    ------
    ImportError
        Without matplotlib.
    ValueError
        If a confusion matrix does not fit its labels, or a picture is of no known kind.
    """
    parts = [f"<h1>{_text(title)}</h1>", f'<p class="sub">{_text(_summary(history))}</p>']
    if history.stopped == "interrupted":
        parts.append(
            '<section class="warning">The training was interrupted, and can be resumed from its checkpoint.'
            " What follows is of the weights until then.</section>"
        )
    cards = list(metrics.items())[:_CARDS]
    if cards:
        shown = (f'<div class="card"><b>{_number(v)}</b><span>{_text(n)}</span></div>' for n, v in cards)
        parts.append(f'<div class="cards">{"".join(shown)}</div>')
    if notes:
        parts.append(_section("Notes", "".join(f"<p>{_text(note)}</p>" for note in notes)))
    if len(metrics) > len(cards):
        parts.append(_section("Metrics", _table(metrics, numbers=True)))
    losses, evaluations = losses_figure(history), evaluations_figure(history)
    if losses is not None:
        parts.append(_section("Losses", _image(losses, "loss of each task over the steps")))
    if evaluations is not None:
        parts.append(_section("Evaluations", _image(evaluations, "metrics over the steps")))
    if confusion is not None:
        named = confusion if isinstance(confusion, Mapping) else {"": confusion}
        pictures = (
            _image(confusion_figure([str(label) for label in labels], matrix, name), f"confusion of {name}")
            for name, (labels, matrix) in named.items()
        )
        parts.append(_section("Confusion", f'<div class="row">{"".join(pictures)}</div>'))
    if contributions:
        rows = {n: dict(v) for n, v in contributions.items() if isinstance(v, Mapping)}
        rows = rows or {"all": {n: float(v) for n, v in contributions.items() if not isinstance(v, Mapping)}}
        parts.append(_section("Modality contributions", _image(contributions_figure(rows), "parts")))
    for item in figures:
        caption, picture = item if isinstance(item, tuple) else ("", item)
        parts.append(_section(caption, _image(picture, caption)))
    parts.append(_section("How it was made", _about(Path(folder), history)))
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{_text(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body><main>\n" + "\n".join(parts) + "\n</main></body></html>\n"
    )
    path = Path(folder) / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _summary(history: History) -> str:
    ended = {"": "", "early": ", stopped early", "interrupted": ", interrupted"}[history.stopped]
    return f"{len(history.steps)} steps{ended} in {_duration(history.seconds)}"


def _about(folder: Path, history: History) -> str:
    timing = {
        "time of the steps": _duration(history.seconds),
        "of the processor": _duration(sum(r.cpu_seconds for r in history.steps)),
        "waiting for data": f"{history.waiting_share:.1%}",
    }
    tables = [_table(timing)]
    path = folder / "settings.json"
    if path.exists():
        about = json.loads(path.read_text(encoding="utf-8"))
        settings, versions = about.pop("settings", {}), about.pop("versions", {})
        tables += [_table(settings), _table({**about, **versions})]
    return f'<div class="row">{"".join(tables)}</div>'


def _section(heading: str, body: str) -> str:
    title = f"<h2>{_text(heading)}</h2>" if heading else ""
    return f"<section>{title}{body}</section>"


def _table(rows: Mapping[str, Any], *, numbers: bool = False) -> str:
    def cell(value: Any) -> str:
        return f'<td class="n">{_number(value)}</td>' if numbers else f"<td>{_text(_plain(value))}</td>"

    lines = (f"<tr><th>{_text(name)}</th>{cell(value)}</tr>" for name, value in rows.items())
    return f"<table>{''.join(lines)}</table>"


def _image(picture: Picture, alternative: str) -> str:
    if isinstance(picture, (str, os.PathLike)):
        path = Path(picture)
        kinds = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".gif": "gif", ".svg": "svg+xml"}
        if path.suffix.lower() not in kinds:
            raise ValueError(f"figures: {path}: expected a name that ends in {', '.join(kinds)}")
        kind, content, width = kinds[path.suffix.lower()], path.read_bytes(), ""
    elif hasattr(picture, "savefig"):
        kind, content = "png", _png(picture)
        width = f' width="{round(picture.get_figwidth() * 96)}"'
    else:
        raise ValueError(f"figures: expected a figure or a path, got {type(picture).__name__}")
    data = base64.b64encode(content).decode()
    return f'<figure><img{width} alt="{_text(alternative)}" src="data:image/{kind};base64,{data}"></figure>'


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI)
    return file.getvalue()


def _number(value: float) -> str:
    if value != value:
        return "-"
    return (
        f"{value:.4g}"
        if abs(value) >= 1 or value == 0
        else f"{value:.3f}"
        if abs(value) >= 1e-3
        else f"{value:.2g}"
    )


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _text(value: str) -> str:
    return html.escape(str(value))
