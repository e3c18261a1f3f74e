"""``python -m bench.gpu --out FOLDER``: build, check and time everything on a GPU; see the package."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

from bench.gpu.sections import SECTIONS, run_all, run_one


def main() -> int:
    """Parse the command line and run; 1 if a check failed or a section broke."""
    start = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for record, plot and log")
    parser.add_argument("--budget-seconds", type=float, help="for all of it: 470, of a dry run an hour")
    parser.add_argument("--no-build", dest="build", action="store_false", help="take mmcore as it is")
    parser.add_argument("--only", action="append", default=[], help="a section, repeatable; else all")
    parser.add_argument("--skip", action="append", default=[], help="a section, repeatable")
    parser.add_argument("--tune", action="store_true", help="also time other tiles of the Triton kernels")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU: is the code right?")
    parser.add_argument("--workers", type=int, default=0, help="processes of shared sections, 0: by cores")
    parser.add_argument("--replot", type=Path, help="a record: print its table again, and draw its plot")
    parser.add_argument("--section", help=argparse.SUPPRESS)
    parser.add_argument("--part", default="0/1", help=argparse.SUPPRESS)
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.budget_seconds is None:
        args.budget_seconds = 3600.0 if args.dry_run else 470.0
    names = [s.name for s in SECTIONS]
    for name in (*args.only, *args.skip):
        if name not in names:
            parser.error(f"expected sections of {', '.join(names)}; got {name!r}")
    if args.section:
        part, count = (int(n) for n in args.part.split("/"))
        run_one(args.section, (part, count), args.record, args.budget_seconds, args.dry_run)
        return 0

    import torch

    from bench.gpu import plot, report

    if args.replot:
        record = json.loads(args.replot.read_text(encoding="utf-8"))
        print(report.table(record))
        plot.draw(record, args.replot.with_suffix(".png"))
        return 0
    if not args.dry_run and not torch.cuda.is_available():
        parser.error("no CUDA device; --dry-run runs the same code on the CPU")
    chosen = args.only or [s.name for s in SECTIONS if not s.asked or args.tune]
    chosen = [name for name in chosen if name not in args.skip]
    args.out.mkdir(parents=True, exist_ok=True)
    path, log = args.out / "gpu.json", args.out / "gpu.log"
    log.unlink(missing_ok=True)
    record: dict[str, Any] = {}
    if args.build and not args.dry_run:
        record["build"] = _build(log)
        record["seconds"] = record["build"]["seconds"]

    def keep(record: dict[str, Any]) -> None:
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    left = args.budget_seconds - (time.monotonic() - start)
    record = run_all(chosen, left, args.dry_run, log, keep, args.workers, record)
    final = args.out / f"{report.stem(record)}.json"
    keep(record)
    path.replace(final)
    try:
        plot.draw(record, final.with_suffix(".png"))
    except Exception as error:  # the record is what counts
        print(f"no plot: {type(error).__name__}: {error}")
    print(report.table(record))
    return 1 if report.broken(record) else 0


def _build(log: Path) -> dict[str, Any]:
    """Build; what is there already is measured if that fails, and nothing if there is nothing."""
    from bench.gpu.build import build

    found = build(log)
    if "error" in found:
        print(found["error"])
        if importlib.util.find_spec("mmcore._core") is None:
            raise SystemExit("nothing was built, and mmcore is not installed")
    print(f"[build: {found['seconds']:.0f} s, {', '.join(found['modules']) or 'failed'}]", flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
