"""What the commands share: consoles, progress bars, and errors as one line."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, NoReturn, ParamSpec, TypeVar

import typer
from rich.box import ROUNDED
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from mmcore.errors import MMCoreError

__all__ = [
    "console",
    "fail",
    "format_bytes",
    "format_rate",
    "format_seconds",
    "guarded",
    "key_value_table",
    "progress_bar",
    "table",
    "warn",
]

P = ParamSpec("P")
R = TypeVar("R")


def console(*, stderr: bool = False) -> Console:
    """Console on the current stdout or stderr; no colours or control codes unless it is a terminal."""
    c = Console(stderr=stderr, highlight=False, soft_wrap=False)
    if not c.is_terminal and "COLUMNS" not in os.environ:
        c.width = 120  # a file or a pipe has no width; rich would fold at 80
    return c


def fail(message: str, code: int = 1) -> NoReturn:
    """Print ``message`` as one red line on stderr and exit with ``code``."""
    line = " ".join(message.split()) or "no message"
    console(stderr=True).print(Text(f"error: {line}", style="bold red"), soft_wrap=True)
    raise typer.Exit(code)


def warn(message: str) -> None:
    """Print ``message`` as one yellow line on stderr."""
    line = " ".join(message.split())
    console(stderr=True).print(Text(f"warning: {line}", style="yellow"), soft_wrap=True)


def guarded(function: Callable[P, R]) -> Callable[P, R]:
    """Turn expected errors of a command into one line on stderr; ``MMCORE_DEBUG=1`` keeps the traceback."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except KeyboardInterrupt:
            fail("interrupted", 130)
        except BrokenPipeError:
            raise  # the reader of our output went away: typer ends quietly
        except (MMCoreError, ImportError, ValueError, TypeError, IndexError, OSError, MemoryError) as error:
            if os.environ.get("MMCORE_DEBUG") == "1":
                raise
            fail(str(error) or type(error).__name__)

    return wrapper


def table(*columns: str, title: str | None = None) -> Table:
    """Table in the house style."""
    t = Table(title=title, box=ROUNDED, title_justify="left", title_style="bold", header_style="bold cyan")
    for column in columns:
        t.add_column(column, overflow="fold")
    return t


def key_value_table(title: str, rows: dict[str, Any]) -> Table:
    """Two columns, name and value; a value of None shows as "unknown"."""
    t = table(title=title)
    t.show_header = False
    t.add_column(style="cyan", no_wrap=True)
    t.add_column(overflow="fold")
    for name, value in rows.items():
        t.add_row(name, Text("unknown", style="dim") if value is None else Text(str(value)))
    return t


def progress_bar() -> Progress:
    """Progress bar on stderr, so that stdout carries results only; shown on a terminal only."""
    c = console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("frames"),
        TimeRemainingColumn(),
        console=c,
        transient=True,
        disable=not c.is_terminal,
    )


def format_bytes(count: float) -> str:
    """Count of bytes in the largest fitting unit of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def format_seconds(seconds: float | None) -> str | None:
    """Seconds with milliseconds, or None."""
    return None if seconds is None else f"{seconds:.3f} s"


def format_rate(bits_per_second: float | None) -> str | None:
    """Bit rate in kbit/s, or None."""
    return None if not bits_per_second else f"{bits_per_second / 1000:,.0f} kbit/s"
