"""The table of commands."""

from __future__ import annotations

from typing import Annotated

import typer

from mmcore.cli.bench import bench
from mmcore.cli.classify import classify
from mmcore.cli.decode import decode
from mmcore.cli.demo import demo
from mmcore.cli.env import env
from mmcore.cli.explain import explain
from mmcore.cli.generate import generate
from mmcore.cli.info import info
from mmcore.cli.render import guarded
from mmcore.cli.retrieve import retrieve
from mmcore.cli.speak import speak
from mmcore.cli.train import train

__all__ = ["app"]

app = typer.Typer(
    name="mmcore",
    help="Video files as model input tensors, fast.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (info, decode, demo, bench, env, classify, explain, generate, speak, train):
    app.command()(guarded(_command))
app.add_typer(retrieve)


def _print_version(wanted: bool) -> None:
    if wanted:
        import mmcore

        typer.echo(f"mmcore {mmcore.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Video files as model input tensors, fast."""
