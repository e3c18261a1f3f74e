"""``python -m bench SUITE``: measure without the package's command line."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bench import SUITES, bench_decode, media, report, run


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "suite",
        choices=[*SUITES, "media", "replot"],
        help="media: describe the clips; replot: draw --json again",
    )
    parser.add_argument("--plot", type=Path, help="PNG to write")
    parser.add_argument("--json", type=Path, help="record to write (replot: to read)")
    parser.add_argument("--quick", action="store_true", help="fewer cases and rounds")
    parser.add_argument("--rounds", type=int, help="interleaved rounds")
    parser.add_argument(
        "--file", type=Path, action="append", default=[], help="a real clip to measure instead"
    )
    parser.add_argument("--only", default="", help="only the cases whose name contains this")
    parser.add_argument("--threads", type=int, default=1, help="cores and threads for everyone (not frames)")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="clock that the tables show")
    args = parser.parse_args()
    if args.suite == "media":
        clips = [media.from_file(p) for p in args.file] or [
            job.clip for job, _ in bench_decode.jobs(quick=False)
        ]
        report.clips([media.describe(c) for c in clips])
    elif args.suite == "replot":
        if not (args.json and args.plot):
            parser.error("replot needs --json and --plot")
        result = json.loads(args.json.read_text(encoding="utf-8"))
        report.table(result)
        report.plot(result, args.plot)
    else:
        run(
            args.suite,
            plot=args.plot,
            json=args.json,
            quick=args.quick,
            rounds=args.rounds,
            files=args.file,
            only=args.only,
            threads=args.threads,
            clock=args.clock,
        )


if __name__ == "__main__":
    main()
