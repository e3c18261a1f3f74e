"""The report: one page that needs no other file, with all that it was given."""

from __future__ import annotations

import base64
import html.parser
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mmcore.recipes import History, write_report
from mmcore.recipes.report_figures import (
    confusion_figure,
    contributions_figure,
    evaluations_figure,
    losses_figure,
    new_figure,
)
from mmcore.recipes.training_log import Evaluation, StepRecord


@pytest.fixture
def history() -> History:
    steps = [
        StepRecord(i, 2.0, {"kind": math.exp(-i / 9), "place": 0.2 + i % 3}, 1e-3, 1.0, 0.01, 0.04, 0.03)
        for i in range(30)
    ]
    return History(steps, [Evaluation(10 * i, {"accuracy": i / 4, "error": 5.0 / i}) for i in (1, 2, 3)])


class Page(html.parser.HTMLParser):
    """Pictures, texts and open tags of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.pictures: list[Any] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.links: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.links += [str(values[name]) for name in ("src", "href") if name in values]
        if tag == "img":
            assert values["alt"] is not None
            kind, _, data = str(values["src"]).partition(";base64,")
            assert kind == "data:image/png"
            self.pictures.append(Image.open(io.BytesIO(base64.b64decode(data))))
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_page_holds_everything(tmp_path: Path, history: History) -> None:
    (tmp_path / "settings.json").write_text(
        json.dumps(
            {"settings": {"seed": 17, "betas": [0.9, 0.99]}, "versions": {"torch": "9.9"}, "device": "cpu"}
        )
    )
    figure = new_figure(2, 1)
    figure.add_subplot().plot([1, 2])
    picture = tmp_path / "own.png"
    Image.new("RGB", (8, 8), (255, 0, 0)).save(picture)
    path = write_report(
        tmp_path,
        "Digits <seen> & heard",
        history,
        metrics={"accuracy": 0.9731, "error": 2.34e-5, "a": 1, "b": math.nan, "last": 1234.5},
        confusion={
            "kind": (["cat", "dog"], torch.tensor([[5, 1], [0, 7]])),
            "tone": ([1, 2], [[1, 0], [0, 1]]),
        },
        contributions={"video": 0.6, "audio": 0.4},
        figures=[("a curve", figure), picture],
        notes=["A note with <b>."],
    )
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    assert all(link.startswith("data:") for link in page.links)
    assert len(page.pictures) == 7  # losses, evaluations, two confusions, contributions, two of one's own
    assert page.pictures[-1].getpixel((3, 3)) == (255, 0, 0)
    texts = " ".join(page.texts)
    for text in (
        "Digits <seen> & heard", "0.973", "2.3e-05", "1234", "A note with <b>.", "a curve", "seed", "17",
        "0.9 0.99", "9.9", "30 steps in 1.2 s", "waiting for data", "25.0%",
    ):  # fmt: skip
        assert text in texts


def test_an_empty_history_has_no_curves(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path / "new", "Nothing", History(), metrics={}).read_text())
    assert page.pictures == []
    assert "Nothing" in page.texts


def test_interrupted_training_says_so(tmp_path: Path, history: History) -> None:
    history.stopped = "interrupted"
    page = write_report(tmp_path, "Cut", history, metrics={}).read_text()
    assert re.search(r"30 steps, interrupted", page)
    assert "can be resumed" in page


def test_figures_show_what_they_should(history: History) -> None:
    losses = losses_figure(history)
    assert losses is not None
    kind, place = losses.axes[:2]
    assert [kind.get_title(loc="left"), place.get_title(loc="left")] == ["kind", "place"]
    assert (kind.get_yscale(), place.get_yscale()) == ("linear", "linear")
    raw, smooth = (line.get_ydata() for line in place.lines)
    assert list(raw[:3]) == [0.2, 1.2, 2.2]
    assert smooth[1] == pytest.approx(1.2)
    evaluations = evaluations_figure(history)
    assert evaluations is not None
    shares, others = evaluations.axes
    assert list(shares.lines[0].get_xdata()) == [10, 20, 30]
    assert list(others.lines[0].get_ydata()) == [5.0, 2.5, 5 / 3]
    confusion = confusion_figure(["a", "b"], [[3, 1], [0, 0]])
    assert confusion.axes[0].images[0].get_array().tolist() == [[0.75, 0.25], [0.0, 0.0]]
    bars = contributions_figure({"x": {"video": 0.7, "audio": 0.3}, "y": {"audio": 1.0}}).axes[0].patches
    assert [bar.get_width() for bar in bars] == pytest.approx([0.0, 0.7, 1.0, 0.3])


def test_losses_over_orders_of_magnitude_are_drawn_logarithmically(history: History) -> None:
    steps = [r._replace(losses={"kind": 10.0 ** (-i / 10)}) for i, r in enumerate(history.steps)]
    figure = losses_figure(History(steps))
    assert figure is not None
    assert figure.axes[0].get_yscale() == "log"


def test_what_does_not_fit_is_refused(tmp_path: Path, history: History) -> None:
    with pytest.raises(ValueError, match=r"confusion: expected \(2, 2\) for 2 labels, got \(3, 3\)"):
        write_report(tmp_path, "x", history, metrics={}, confusion=(["a", "b"], torch.eye(3)))
    with pytest.raises(ValueError, match="figures: expected a figure or a path, got int"):
        write_report(tmp_path, "x", history, metrics={}, figures=[3])
    with pytest.raises(ValueError, match=r"movie\.mp4: expected a name that ends in \.png"):
        write_report(tmp_path, "x", history, metrics={}, figures=[tmp_path / "movie.mp4"])
