"""A folder of one's own files with a table of labels: reading, training, use, and the command."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import mmcore
from mmcore.cli.app import app
from mmcore.recipes import History, folder
from mmcore.recipes.folder.table import read_table

COLORS = {"red": (0.9, 0.1, 0.1), "blue": (0.1, 0.1, 0.9)}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_clip(path: Path, color: str, pitch: float, light: float, seed: int, sound: bool = True) -> None:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.tensor(COLORS[color])[:, None, None] * light + 0.05 * torch.rand(
        6, 3, 32, 32, generator=generator
    )
    time = torch.arange(8000) / 8000
    audio = 0.4 * torch.sin(2 * torch.pi * pitch * time) if sound else None
    mmcore.encode(path, frames=frames, fps=6, audio=audio, sample_rate=8000 if sound else None)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 clips; colour, tone and light are labels, some missing; two files cannot be read."""
    data = tmp_path_factory.mktemp("clips")
    rows = []
    for i in range(24):
        color, tone, light = ("red", "blue")[i % 2], ("low", "high")[i // 2 % 2], 0.3 + 0.6 * (i % 7) / 6
        write_clip(data / f"{i}.mp4", color, 300.0 if tone == "low" else 2500.0, light, i, sound=i % 8 != 5)
        rows.append(
            {
                "file": f"{i}.mp4",
                "color": color if i % 5 else "",
                "tone": tone if i % 8 != 5 else "",
                "light": f"{light:.3f}" if i % 4 else "",
            }
        )
    (data / "broken.mp4").write_bytes(b"no media file")
    rows += [
        {"file": name, "color": "red", "tone": "low", "light": "0.5"} for name in ("broken.mp4", "gone.mp4")
    ]
    with open(data / "labels.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return data


@pytest.fixture(scope="module")
def trained(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    output = tmp_path_factory.mktemp("trained")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    result = folder.train(
        output,
        data=clips,
        labels=clips / "labels.csv",
        size="smallest",
        steps=45,
        num_workers=1,
        progress=False,
    )
    torch.set_num_threads(before)
    return result


def test_it_learns_every_label(trained: Any) -> None:
    assert trained.metrics["color accuracy"] >= 0.8
    assert trained.metrics["tone accuracy"] >= 0.8
    assert trained.metrics["light error"] < 0.8 * trained.metrics["light error of the mean"]
    losses = trained.history.losses
    assert losses.keys() == {"color", "tone", "light"}
    for values in losses.values():
        assert sum(values[-8:]) < 0.8 * sum(values[:8])
    assert History.read(trained.folder).steps == trained.history.steps


def test_report_tells_what_was_left_out(trained: Any) -> None:
    page = trained.report.read_text()
    for text in (
        "broken.mp4",
        "gone.mp4",
        "Labels missing: color in",
        "confusion of tone",
        "Modality contributions",
    ):
        assert text in page
    assert "http" not in page.replace("http-equiv", "")  # needs no other file


def test_predict_on_new_files(trained: Any, tmp_path: Path) -> None:
    model = folder.load(trained.folder)
    right = 0
    for i, (color, tone) in enumerate([("red", "low"), ("blue", "high"), ("red", "high"), ("blue", "low")]):
        path = tmp_path / f"{i}.mp4"
        write_clip(path, color, 320.0 if tone == "low" else 2400.0, 0.6, 1000 + i)
        found = model.predict(path)
        assert found.keys() == {"color", "tone", "light"}
        assert isinstance(found["color"], dict)
        assert isinstance(found["tone"], dict)
        assert sum(found["color"].values()) == pytest.approx(1, abs=1e-5)
        assert isinstance(found["light"], float)
        right += next(iter(found["color"])) == color
        right += next(iter(found["tone"])) == tone
    assert right >= 7
    silent = tmp_path / "silent.mp4"
    write_clip(silent, "blue", 0, 0.6, 5, sound=False)
    found = model.predict(silent)
    assert isinstance(found["color"], dict)
    assert next(iter(found["color"])) == "blue"
    with pytest.raises(mmcore.DecodeError):
        model.predict(tmp_path / "nothing.mp4")


def test_same_curve_whatever_reads_the_files_and_computes(clips: Path, tmp_path: Path) -> None:
    def run(name: str, **options: Any) -> Any:
        options |= {"data": clips, "labels": clips / "labels.csv", "size": "smallest", "progress": False}
        return folder.train(tmp_path / name, steps=6, **options)

    fused, eager = run("fused", num_workers=0), run("eager", num_workers=1, backend="eager")
    assert eager.history.totals == pytest.approx(fused.history.totals, rel=1e-3)
    assert eager.history.totals != fused.history.totals  # it did compute in another way


def test_command_trains_resumes_and_reports(clips: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    base = ["train", "folder", "--data", str(clips), "--labels", str(clips / "labels.csv"), "-o", str(output)]
    base += ["--size", "smallest", "--columns", "color,light"]
    result = CliRunner().invoke(app, [*base, "--steps", "6"])
    assert result.exit_code == 0, result.output
    assert "report.html" in result.output
    assert "color accuracy" in result.output
    more = CliRunner().invoke(app, [*base, "--steps", "9", "--resume"])
    assert more.exit_code == 0, more.output
    assert len(History.read(output).steps) == 9
    assert json.loads((output / "recipe.json").read_text())["columns"][0]["name"] == "color"


def test_command_for_classify_takes_a_folder_too(clips: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(clips), "--labels", str(clips / "labels.csv"), "-o", str(tmp_path)]
    result = CliRunner().invoke(app, ["train", "classify", *arguments, "--size", "smallest", "--steps", "2"])
    assert result.exit_code == 0, result.output
    assert folder.load(tmp_path).columns


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nothing", "-o", "x"], "expected one of classify"),
        (["train", "folder", "-o", "x"], "data, labels: expected the folder"),
        (["train", "speak", "--data", "x", "-o", "x"], "--data"),
        (["train", "folder", "--data", "missing", "--labels", "x.csv", "-o", "x"], "missing: is no folder"),
    ],
)
def test_command_refuses(arguments: list[str], message: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code != 0
    assert message in " ".join(result.output.replace("│", " ").split())


# ---- the table


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Any]:
    def read(text: str, **options: Any) -> Any:
        (tmp_path / "labels.csv").write_text(text)
        return read_table(tmp_path, tmp_path / "labels.csv", **options)

    return read


def test_kinds_of_columns_are_found_or_declared(table: Callable[..., Any]) -> None:
    text = "who,path,kind,stars,weight,note\n" + "".join(
        f"p{i % 3},{i}.mp4,{'ab'[i % 2]},{i % 5},{i / 2},\n" for i in range(10)
    )
    found = table(text, columns=["kind", "stars", "weight"], group="who")
    assert [(c.name, c.classes) for c in found.columns] == [
        ("kind", ("a", "b")),
        ("stars", ("0", "1", "2", "3", "4")),
        ("weight", ()),
    ]
    declared = table(text, columns=["stars", "weight"], numbers=["stars"], classes=["weight"])
    assert [c.is_number for c in declared.columns] == [True, False]
    assert found.files[0].name == "0.mp4"
    training, validation = found.split(0.3, seed=0)
    assert sorted(training + validation) == list(range(10))
    assert not {found.groups[i] for i in training} & {found.groups[i] for i in validation}
    with pytest.raises(ValueError, match="column 'note' has no label at all"):
        table(text)


def test_missing_and_scaled_numbers(table: Callable[..., Any]) -> None:
    found = table("file,x\na,1.5\nb,\nc,nan\nd,4.5\n")
    assert [cells["x"] for cells in found.cells] == ["1.5", "", "", "4.5"]
    (column,) = found.scaled()
    assert (column.mean, column.std) == (3.0, 1.5)
    assert column.target("4.5").tolist() == [1.0]
    assert column.target("").tolist() == [0.0]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "expected a header"),
        ("file,x\n", {}, "at least one row"),
        ("file\na\n", {}, "expected a column of labels beside 'file'"),
        ("file,x\na,1\n", {"columns": ["y"]}, "there is no column 'y'; there are file, x"),
        ("file,x\na,k\nb,k\n", {}, "has only the class 'k'"),
        ("file,x\na,1\nb,k\n", {"numbers": ["x"]}, "expected numbers, got 'k'"),
        ("file,x\na,1.5\na,2\n", {}, "a is listed more than once"),
        ("file,x\na,1.5\nb,inf\n", {}, "expected finite numbers"),
    ],
)
def test_tables_that_do_not_fit(
    table: Callable[..., Any], text: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        table(text, **options)


def test_load_refuses(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"recipe\.json: no such file"):
        folder.load(tmp_path)
    (tmp_path / "recipe.json").write_text('{"recipe": "speak"}')
    with pytest.raises(mmcore.MMCoreError, match="is of the recipe 'speak'"):
        folder.load(tmp_path)


def test_train_refuses(clips: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"data": clips, "labels": clips / "labels.csv", "progress": False}
    with pytest.raises(ValueError, match="size: expected one of full, smallest, got 'huge'"):
        folder.train(tmp_path, size="huge", **options)
    with pytest.raises(ValueError, match="backend: expected fused or eager"):
        folder.train(tmp_path, backend="cuda", **options)
    (tmp_path / "labels.csv").write_text("file,x\na.mp4,1.5\nb.mp4,2\n")
    with pytest.raises(mmcore.MMCoreError, match="only 0 of 2 files can be read"):
        folder.train(tmp_path, data=clips, labels=tmp_path / "labels.csv", progress=False)
