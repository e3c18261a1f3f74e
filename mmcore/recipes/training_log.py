"""What happened in a training: :class:`History`, and the files that it is written to as it happens."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Evaluation", "History", "StepRecord", "TrainingLog"]

_NUMBERS = ("total", "learning_rate", "gradient_norm", "wait_seconds", "step_seconds", "cpu_seconds")
_LOSS = "loss/"
_BOARD_EVERY = 10
"""TensorBoard's writer hands each number to a thread, for more time than a small model's step takes."""


class StepRecord(NamedTuple):
    """One step of the optimiser.

    Attributes
    ----------
    step : int
        Counted from 0.
    total : float
        What was minimised.
    losses : dict of str to float
        Of each task, without weights. With several processes, of the joint batch.
    learning_rate : float
    gradient_norm : float
        Length of the gradient before clipping; nan where it is not needed for clipping.
    wait_seconds : float
        Waiting for data.
    step_seconds : float
        From asking for data to the changed weights, waiting included.
    cpu_seconds : float
        Time of the processor, all threads of the training process, workers not counted.
    """

    step: int
    total: float
    losses: dict[str, float]
    learning_rate: float
    gradient_norm: float
    wait_seconds: float
    step_seconds: float
    cpu_seconds: float


class Evaluation(NamedTuple):
    """Metrics after so many ``steps``."""

    steps: int
    metrics: dict[str, float]


@dataclass
class History:
    """All steps and evaluations of a training.

    Attributes
    ----------
    steps : list of StepRecord
    evaluations : list of Evaluation
    stopped : str
        Why the training ended: "" (all steps were done), "early" or "interrupted".

    Examples
    --------
    >>> from mmcore.recipes import History
    >>> history = History.read("runs/classify")                                        # doctest: +SKIP
    >>> history.losses["kind"][-1], history.waiting_share                              # doctest: +SKIP
    (0.03, 0.012)
    """

    steps: list[StepRecord] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    stopped: str = ""

    @property
    def losses(self) -> dict[str, list[float]]:
        """Loss of each task at each step; nan where a step did not have it."""
        names = dict.fromkeys(name for record in self.steps for name in record.losses)
        return {name: [record.losses.get(name, math.nan) for record in self.steps] for name in names}

    @property
    def totals(self) -> list[float]:
        """What was minimised at each step."""
        return [record.total for record in self.steps]

    @property
    def seconds(self) -> float:
        """Of all steps, without evaluations and checkpoints."""
        return sum(record.step_seconds for record in self.steps)

    @property
    def waiting_share(self) -> float:
        """Share of the steps' time that was spent waiting for data.

        Without the first of several steps, which waits for workers to start.
        """
        counted = self.steps[1:] or self.steps
        seconds = sum(record.step_seconds for record in counted)
        return sum(record.wait_seconds for record in counted) / seconds if seconds else 0.0

    def metric(self, name: str) -> tuple[list[int], list[float]]:
        """Give the steps at which a metric was evaluated, and its values."""
        found = [(e.steps, e.metrics[name]) for e in self.evaluations if name in e.metrics]
        return [steps for steps, _ in found], [value for _, value in found]

    def state(self) -> dict[str, Any]:
        """Give all of it as plain values and tensors, for a checkpoint."""
        losses = self.losses
        numbers = [
            [r.step, *(getattr(r, name) for name in _NUMBERS), *(r.losses.get(n, math.nan) for n in losses)]
            for r in self.steps
        ]
        return {
            "losses": list(losses),
            "steps": torch.tensor(numbers, dtype=torch.float64).reshape(-1, 1 + len(_NUMBERS) + len(losses)),
            "evaluations": [(e.steps, dict(e.metrics)) for e in self.evaluations],
        }

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> History:
        """Make it again from :meth:`state`."""
        values: Tensor = state["steps"]
        return History(
            [_record(row, state["losses"]) for row in values.tolist()],
            [Evaluation(steps, dict(metrics)) for steps, metrics in state["evaluations"]],
        )

    @staticmethod
    def read(folder: str | os.PathLike[str]) -> History:
        """Read what a training wrote: ``history.csv`` and ``evaluations.csv`` of its folder.

        Raises
        ------
        FileNotFoundError
            If the folder has no ``history.csv``.
        ValueError
            If it was not written by a training.
        """
        history = History()
        path = Path(folder) / "history.csv"
        with open(path, newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file)) or [[]]
        if header[: 1 + len(_NUMBERS)] != ["step", *_NUMBERS]:
            raise ValueError(f"{path}: expected the columns step, {', '.join(_NUMBERS)}, got {header}")
        names = [name.removeprefix(_LOSS) for name in header[1 + len(_NUMBERS) :]]
        for row in rows:
            if len(row) == len(header):  # a line that was cut off is no step
                history.steps.append(_record([float(x or "nan") for x in row], names))
        path = Path(folder) / "evaluations.csv"
        if path.exists():
            with open(path, newline="", encoding="utf-8") as file:
                for line in csv.DictReader(file):
                    steps = int(line.pop("steps"))
                    metrics = {name: float(value) for name, value in line.items() if value}
                    history.evaluations.append(Evaluation(steps, metrics))
        return history


def _record(row: Sequence[float], names: Sequence[str]) -> StepRecord:
    step, numbers, losses = int(row[0]), row[1 : 1 + len(_NUMBERS)], row[1 + len(_NUMBERS) :]
    total, *rest = numbers
    known = {name: value for name, value in zip(names, losses, strict=True) if not math.isnan(value)}
    return StepRecord(step, total, known, *rest)


class TrainingLog:
    """Writes a training's history as it grows: CSV files, and TensorBoard's if that is installed.

    Parameters
    ----------
    folder : Path or None
        None writes nothing, as the processes beside the first do.
    history : History
        What is there already, of a training that is resumed; then kept up to date.
    """

    def __init__(self, folder: Path | None, history: History) -> None:
        self.history = history
        self._folder = folder
        self._columns = list(history.losses)
        self._file: Any = None
        self._board: Any = None
        if folder is not None:
            self._rewrite()
            self._write_evaluations()
            if not history.steps:
                for old in (folder / "tensorboard").glob("events.out.tfevents.*"):
                    old.unlink()  # of an earlier training in this folder: its curves would be drawn too
            self._board = _summary_writer(folder / "tensorboard", len(history.steps))

    def add_step(self, record: StepRecord) -> None:
        """Add one step."""
        self.history.steps.append(record)
        if self._folder is None:
            return
        new = [name for name in record.losses if name not in self._columns]
        if new:
            self._columns += new
            self._rewrite()
        else:
            self._file.write(self._line(record))
        if self._board is not None and record.step % _BOARD_EVERY == 0:
            for name, value in record.losses.items():
                self._board.add_scalar(_LOSS + name, value, record.step)
            for name in ("total", "learning_rate", "wait_seconds", "step_seconds"):
                self._board.add_scalar(f"train/{name}", getattr(record, name), record.step)

    def add_evaluation(self, evaluation: Evaluation) -> None:
        """Add the metrics of one evaluation."""
        self.history.evaluations.append(evaluation)
        if self._folder is None:
            return
        self._write_evaluations()
        if self._board is not None:
            for name, value in evaluation.metrics.items():
                self._board.add_scalar(f"evaluation/{name}", value, evaluation.steps)

    def flush(self) -> None:
        """Bring all of it to the disk."""
        if self._file is not None:
            self._file.flush()
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Flush and close the files."""
        self.flush()
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()
        self._file = self._board = None

    def _line(self, r: StepRecord) -> str:
        values = [getattr(r, name) for name in _NUMBERS] + [r.losses.get(n, math.nan) for n in self._columns]
        return ",".join([str(r.step), *("" if math.isnan(v) else repr(v) for v in values)]) + "\n"

    def _rewrite(self) -> None:
        """Write the file anew: at the start, and when a loss comes that has no column yet."""
        assert self._folder is not None
        if self._file is not None:
            self._file.close()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = open(self._folder / "history.csv", "w", newline="", encoding="utf-8")  # noqa: SIM115
        csv.writer(self._file, lineterminator="\n").writerow(
            ["step", *_NUMBERS, *(_LOSS + name for name in self._columns)]
        )
        self._file.writelines(map(self._line, self.history.steps))

    def _write_evaluations(self) -> None:
        assert self._folder is not None
        names = list(dict.fromkeys(name for e in self.history.evaluations for name in e.metrics))
        with open(self._folder / "evaluations.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["steps", *names])
            for e in self.history.evaluations:
                writer.writerow([e.steps, *(repr(e.metrics[n]) if n in e.metrics else "" for n in names)])


def _summary_writer(folder: Path, first_step: int) -> Any:
    if importlib.util.find_spec("tensorboard") is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what TensorBoard's own imports warn about is not the user's matter
        with contextlib.suppress(ImportError):
            from torch.utils.tensorboard import SummaryWriter

            return SummaryWriter(str(folder), purge_step=first_step or None)
    return None
