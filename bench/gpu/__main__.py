"""``python -m bench.gpu --out FOLDER``: run the GPU suite; see the package."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bench.gpu.sections import SECTIONS, run_all, run_one


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for record, plot and log")
    parser.add_argument("--budget-seconds", type=float, default=420.0, help="for all sections together")
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
    names = [s.name for s in SECTIONS]
    for name in (*args.only, *args.skip):
        if name not in names:
            parser.error(f"expected sections of {', '.join(names)}; got {name!r}")
    if args.section:
        part, count = (int(n) for n in args.part.split("/"))
        run_one(args.section, (part, count), args.record, args.budget_seconds, args.dry_run)
        return

    from bench.gpu import report

    if args.replot:
        record = json.loads(args.replot.read_text(encoding="utf-8"))
        print(report.table(record))
        report.plot(record, args.replot.with_suffix(".png"))
        return
    chosen = args.only or [s.name for s in SECTIONS if not s.asked or args.tune]
    chosen = [name for name in chosen if name not in args.skip]
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "gpu.json"

    def keep(record: dict[str, Any]) -> None:
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    record = run_all(chosen, args.budget_seconds, args.dry_run, args.out / "gpu.log", keep, args.workers)
    final = args.out / f"{report.stem(record)}.json"
    keep(record)
    path.replace(final)
    try:
        report.plot(record, final.with_suffix(".png"))
    except Exception as error:  # the record is what counts
        print(f"no plot: {type(error).__name__}: {error}")
    print(report.table(record))


if __name__ == "__main__":
    main()
