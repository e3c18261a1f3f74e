"""The table of labels: which files there are, what is to be learned of them, and what is missing."""

from __future__ import annotations

import csv
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["Column", "LabelTable", "read_table"]

_FILE_NAMES = ("file", "filename", "path", "video", "clip", "audio")
_CLASSES_OF_NUMBERS = 20
"""Different whole numbers up to which a column is taken to hold classes."""


@dataclass(frozen=True)
class Column:
    """One label: a task to learn.

    Attributes
    ----------
    name : str
    classes : tuple of str
        In alphabetical order; none for numbers.
    mean, std : float
        Of numbers, in the files that are trained on; they are learned as ``(value - mean) / std``.
    """

    name: str
    classes: tuple[str, ...] = ()
    mean: float = 0.0
    std: float = 1.0

    @property
    def is_number(self) -> bool:
        """Whether the label is a number, not a class."""
        return not self.classes

    def target(self, value: str) -> Tensor:
        """What to learn of a cell: a class, () int64, or a number, (1,) float32; of an empty one 0."""
        if self.is_number:
            return torch.tensor([(float(value) - self.mean) / self.std if value else 0.0])
        return torch.tensor(self.classes.index(value) if value else 0)


@dataclass(frozen=True)
class LabelTable:
    """Rows of the table, in its order.

    Attributes
    ----------
    files : tuple of Path
    cells : tuple of dict of str to str
        By column, "" where the label is missing.
    groups : tuple of str
        What must not be divided between training and validation: the group column's, or the files' names.
    columns : tuple of Column
    """

    files: tuple[Path, ...]
    cells: tuple[dict[str, str], ...]
    groups: tuple[str, ...]
    columns: tuple[Column, ...]

    def __len__(self) -> int:
        return len(self.files)

    def select(self, rows: Sequence[int]) -> LabelTable:
        """The same with these rows alone."""
        return LabelTable(
            tuple(self.files[i] for i in rows),
            tuple(self.cells[i] for i in rows),
            tuple(self.groups[i] for i in rows),
            self.columns,
        )

    def split(self, share: float, seed: int) -> tuple[list[int], list[int]]:
        """Rows to train on and to validate on: ``share`` of the rows, in whole groups drawn by chance.

        Raises
        ------
        ValueError
            If there is one group alone.
        """
        names = list(dict.fromkeys(self.groups))
        if len(names) < 2:
            raise ValueError(f"labels: expected two files or groups at least, got {len(names)} to be divided")
        order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
        sizes = Counter(self.groups)
        held: set[str] = set()
        for i in order[:-1]:  # one is left to train on
            if held and sum(sizes[name] for name in held) + sizes[names[i]] > share * len(self):
                continue
            held.add(names[i])
        rows = range(len(self))
        return [i for i in rows if self.groups[i] not in held], [i for i in rows if self.groups[i] in held]

    def scaled(self) -> tuple[Column, ...]:
        """The columns, those of numbers with mean and deviation of these rows."""
        found = []
        for column in self.columns:
            cells = [c[column.name] for c in self.cells if c[column.name]]
            if column.is_number and cells:
                values = torch.tensor([float(cell) for cell in cells], dtype=torch.float64)
                spread = values.std(correction=0).item() or 1.0
                column = Column(column.name, (), values.mean().item(), spread)
            found.append(column)
        return tuple(found)


def read_table(
    data: str | os.PathLike[str],
    labels: str | os.PathLike[str],
    *,
    file_column: str | None = None,
    columns: Iterable[str] | None = None,
    numbers: Iterable[str] = (),
    classes: Iterable[str] = (),
    group: str | None = None,
) -> LabelTable:
    """Read a CSV file with one row for each media file.

    Parameters
    ----------
    data : path
        Folder that the files' names are relative to.
    labels : path
        With a header. Empty cells are missing labels.
    file_column : str, optional
        Default: one named file, filename, path, video, clip or audio; else the first.
    columns : iterable of str, optional
        The labels; default: all other columns but ``group``.
    numbers, classes : iterable of str
        Columns that hold numbers, and those that hold classes. Of the others, those are numbers in which
        every cell is one, and one is not whole or there are more than 20 different ones.
    group : str, optional
        Column of what belongs together, such as a speaker: whole groups are held out for validation.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
    ValueError
        For a table without rows or labels, a column that is not there, a cell that is no number, a column
        with one class alone, or a file listed twice; the message names it.
    """
    folder, path = Path(data), Path(labels)
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder}: is no folder; expected that of the media files")
    with open(path, newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        names = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = names
        rows = [
            {k: (v or "").strip() for k, v in row.items() if isinstance(k, str) and not isinstance(v, list)}
            for row in reader
        ]
    if not rows or not names:
        raise ValueError(f"{path}: expected a header and at least one row")
    if file_column is None:
        file_column = next((n for n in names if n.lower() in _FILE_NAMES), names[0])
    chosen = [n for n in names if n not in (file_column, group)] if columns is None else list(columns)
    numbers, classes = set(numbers), set(classes)
    wanted = [file_column, *chosen, *([] if group is None else [group])]
    for name in [*wanted, *sorted(numbers | classes)]:
        if name not in names:
            raise ValueError(f"{path}: there is no column {name!r}; there are {', '.join(names)}")
    if not chosen:
        raise ValueError(f"{path}: expected a column of labels beside {file_column!r}")
    rows = [row for row in rows if row[file_column]]
    files = tuple(folder / row[file_column] for row in rows)
    twice = [str(file) for file, count in Counter(files).items() if count > 1]
    if twice:
        raise ValueError(f"{path}: {twice[0]} is listed more than once")
    made = tuple(
        _column(path, name, [row[name] for row in rows], name in numbers, name in classes) for name in chosen
    )
    empty = {c.name for c in made if c.is_number}
    cells = tuple(
        {name: "" if name in empty and _is_nan(row[name]) else row[name] for name in chosen} for row in rows
    )
    groups = tuple(row[group] or row[file_column] if group else row[file_column] for row in rows)
    return LabelTable(files, cells, groups, made)


def _column(path: Path, name: str, cells: list[str], is_number: bool, is_class: bool) -> Column:
    given = [cell for cell in cells if cell]
    if not given:
        raise ValueError(f"{path}: column {name!r} has no label at all")
    wrong = next((cell for cell in given if not _is_number(cell)), None)
    if is_number and wrong is not None:
        raise ValueError(f"{path}: column {name!r}: expected numbers, got {wrong!r}")
    if not is_number and not is_class and wrong is None:
        values = {float(cell) for cell in given}
        is_number = len(values) > _CLASSES_OF_NUMBERS or any(v != int(v) for v in values if math.isfinite(v))
    if is_number:
        if any(math.isinf(float(cell)) for cell in given):
            raise ValueError(f"{path}: column {name!r}: expected finite numbers")
        return Column(name)
    found = tuple(sorted(set(given)))
    if len(found) < 2:
        raise ValueError(f"{path}: column {name!r} has only the class {found[0]!r}; expected two or more")
    return Column(name, found)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _is_nan(cell: str) -> bool:
    return bool(cell) and _is_number(cell) and math.isnan(float(cell))


def describe(columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Columns as JSON holds them."""
    return [{"name": c.name, "classes": list(c.classes), "mean": c.mean, "std": c.std} for c in columns]
