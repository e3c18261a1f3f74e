"""The progress bar of a training: losses of each task, samples per second, share of time waiting for data."""

from __future__ import annotations

import importlib.util
from types import TracebackType
from typing import Any

from mmcore.recipes.training_log import Evaluation, StepRecord

__all__ = ["ProgressBar"]

_MEMORY = 0.95
"""How much of a shown number comes from the steps before."""


class ProgressBar:
    """A line on stderr, shown on a terminal only, and only if rich is installed.

    Parameters
    ----------
    steps, done : int
        All steps, and those of before the training was resumed.
    batch_size : int
        Samples of a step.
    monitor : str, optional
        The metric to show.
    shown : bool
    """

    def __init__(self, steps: int, done: int, batch_size: int, *, monitor: str | None, shown: bool) -> None:
        self._batch_size = batch_size
        self._smooth: dict[str, float] = {}
        self._monitor = monitor
        self._metrics = ""
        self._bar: Any = None
        if not shown or importlib.util.find_spec("rich") is None:
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True, highlight=False)
        if not console.is_terminal:
            return
        self._bar = Progress(
            MofNCompleteColumn(),
            BarColumn(bar_width=16),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("", total=steps, completed=done)

    def __enter__(self) -> ProgressBar:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, record: StepRecord) -> None:
        """Show a step."""
        if self._bar is None:
            return
        for name, value in record.losses.items():
            self._add(name, value)
        self._add("/seconds", record.step_seconds)
        self._add("/waiting", record.wait_seconds)
        seconds = self._smooth["/seconds"]
        parts = [f"{name} {value:.3f}" for name, value in self._smooth.items() if not name.startswith("/")]
        if seconds > 0:
            parts.append(f"{self._batch_size / seconds:.0f} clips/s")
            parts.append(f"{self._smooth['/waiting'] / seconds:.0%} waiting")
        self._bar.update(self._task, advance=1, description="  ".join(parts) + self._metrics)

    def evaluation(self, evaluation: Evaluation) -> None:
        """Show the metric that is monitored, or the first one, from now on."""
        name = self._monitor or next(iter(evaluation.metrics), "")
        if name in evaluation.metrics:
            self._metrics = f"  held out: {name} {evaluation.metrics[name]:.3f}"

    def _add(self, name: str, value: float) -> None:
        before = self._smooth.get(name, value)
        self._smooth[name] = _MEMORY * before + (1 - _MEMORY) * value
