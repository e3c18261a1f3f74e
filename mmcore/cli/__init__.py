"""The command ``mmcore``; needs the extra ``cli`` (typer, rich, matplotlib, safetensors)."""

from __future__ import annotations

import sys

__all__ = ["main"]

EXTRA = ("matplotlib", "rich", "safetensors", "typer")


def main() -> None:
    """Run the command line and exit: 0 done, 1 error, 2 wrong usage, 130 interrupted."""
    try:
        from mmcore.cli.app import app

        app(prog_name="mmcore")
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRA:
            raise
        print(
            f"mmcore: the command line needs the package {missing!r}: pip install 'mmcore[cli]'",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:  # while the modules were imported; commands handle their own
        sys.exit(130)
