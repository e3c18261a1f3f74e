"""What the suite's figures are measured against: one line for each goal, with what was reached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["GOALS", "Goal", "Outcome", "outcomes", "section", "table"]

MET, MISSED, NOT_RUN, DRY = "met", "MISSED", "not run", "dry run"

Record = dict[str, Any]


@dataclass(frozen=True)
class Goal:
    """One promise, and where the record has what was reached."""

    what: str
    section: str
    measure: Callable[[Record], float | None]
    """Of the section's record; None where it has not been run."""
    least: float | None = None
    most: float | None = None
    form: str = "{:.1f}x"
    figure: bool = True
    """A time or a ratio of times, which means nothing in a dry run."""


@dataclass(frozen=True)
class Outcome:
    """A goal beside what was reached."""

    what: str
    goal: str
    reached: str
    state: str
    share: float | None = None
    """Of a figure: how much of the goal was reached; 1 is all of it."""


def section(record: Record, name: str) -> Record:
    """Of several processes' parts the sum of what can be added, and all that is listed or named."""
    found: Record = record.get("sections", {}).get(name, {})
    if "parts" not in found:
        return found
    joint: Record = {}
    for part in found["parts"]:
        for key, value in part.items():
            if isinstance(value, dict):
                joint[key] = {**joint.get(key, {}), **value}
            else:
                joint[key] = joint[key] + value if key in joint else value
    return joint


# ---- where the figures are


def _wrong_cases(s: Record) -> float | None:
    if not s.get("cases"):
        return None
    return float(len(s.get("failures", {})) + len(s.get("errors", {})) + s.get("left_out", 0))


def _of_copy(case: str) -> Callable[[Record], float | None]:
    def measure(s: Record) -> float | None:
        value = s.get("rows", {}).get(case, {}).get("of_copy")
        return None if value is None else 100 * float(value)

    return measure


def _share(case: str, who: str = "mmcore") -> Callable[[Record], float | None]:
    def measure(s: Record) -> float | None:
        gbps = s.get("rows", {}).get(case, {}).get("gbps", {}).get(who)
        copy = s.get("copy_gbps")
        return 100 * float(gbps) / float(copy) if gbps and copy else None

    return measure


def _over(case: str, peers: Sequence[str], ours: Sequence[str]) -> Callable[[Record], float | None]:
    """How many times as long the fastest of the peers takes as the fastest of ours."""

    def measure(s: Record) -> float | None:
        times = s.get("rows", {}).get(case, {}).get("times", {})
        theirs = [times[name]["ms"] for name in peers if name in times]
        mine = [times[name]["ms"] for name in ours if name in times]
        return min(theirs) / min(mine) if theirs and mine else None

    return measure


def _value(key: str) -> Callable[[Record], float | None]:
    """What the section itself put there."""

    def measure(s: Record) -> float | None:
        return float(s[key]) if key in s else None

    return measure


def _broken_promises(s: Record) -> float | None:
    return float(len(s.get("errors", {}))) if s.get("held") else None


def _nvdec(s: Record) -> float | None:
    """Where it refused every stream nothing was compared."""
    return float(s["wrong"]) if s.get("right") or s.get("wrong") else None


def _host_us(call: str) -> Callable[[Record], float | None]:
    def measure(s: Record) -> float | None:
        value = s.get("host_us", {}).get(call)
        return None if value is None else float(value)

    return measure


def _host_over_torch(s: Record) -> float | None:
    """How many times as long torch's own functions keep the host, where that is least."""
    us = s.get("host_us", {})
    leads = [us[f"torch, {call}"] / us[call] for call in _STEPS if f"torch, {call}" in us and call in us]
    return min(leads) if leads else None


def _all_right(what: str, name: str, measure: Callable[[Record], float | None]) -> Goal:
    return Goal(what, name, measure, most=0, form="{:.0f} wrong", figure=False)


def _percent(what: str, name: str, measure: Callable[[Record], float | None], least: float) -> Goal:
    return Goal(what, name, measure, least, form="{:.0f} %")


_BILINEAR, _BICUBIC = "1080p to 224, bilinear", "1080p to 224, bicubic"
_FUSION, _LARGE = "fp32 weights (M)", "CE 8192x128256 bf16"
_SMALL, _PAIRS = "4 heads, uncertainty, value_and_grad", "InfoNCE 4096x512"
_OURS, _GRAPH = ["mmcore"], ["mmcore, graph"]
_FRAMES = ["mmcore, all sets in a graph"]
_ANY = ["mmcore", "mmcore in place", "mmcore value_and_grad in place"]
_COMPILED = ["torch.compile", "compile max-autotune"]
_GRAPHS_COMPILED = ["torch.compile, graph", "compile max-autotune, graph"]
_COMPILED_GRAPH = ["torch.compile, graph", "compile tuned, graph"]
_STEPS = ("fusion, step", "4 heads, step")

GOALS = (
    _all_right("frames kernels against float64", "frames correctness", _wrong_cases),
    _all_right("fusion and loss kernels against float64", "correctness", _wrong_cases),
    _all_right("memcheck", "sanitizer", _value("memcheck")),
    _all_right("racecheck", "sanitizer", _value("racecheck")),
    _all_right("no waiting, graphs, same bits, compile", "contract", _broken_promises),
    _all_right("training learns, and resumes to the bit", "training", _value("wrong")),
    _percent("frames 32x1080p to 224, bilinear, of copy", "frames", _of_copy(_BILINEAR), 80),
    _percent("frames 32x1080p to 224, bicubic, of copy", "frames", _of_copy(_BICUBIC), 65),
    Goal("  over RGB, eager torch", "frames", _over(_BILINEAR, ["RGB, eager torch"], _FRAMES), 20),
    Goal("  over RGB, torch.compile", "frames", _over(_BILINEAR, ["RGB, torch.compile"], _FRAMES), 20),
    _percent("fusion (256,128,768), in a graph, of copy", "fusion", _share(_FUSION, "mmcore, graph"), 85),
    Goal("  in a graph, over torch.compile", "fusion", _over(_FUSION, _GRAPHS_COMPILED, _GRAPH), 1.5),
    Goal("  by call, over torch.compile", "fusion", _over(_FUSION, _COMPILED, _OURS), 1.5),
    _percent("cross entropy 8192x128256, of copy", "losses", _share(_LARGE), 85),
    Goal("  over Liger-Kernel", "losses", _over(_LARGE, ["Liger-Kernel"], _ANY), 1, form="{:.2f}x"),
    Goal("4 small heads in a graph, over eager", "losses", _over(_SMALL, ["eager, graph"], _GRAPH), 12),
    Goal("  over torch.compile", "losses", _over(_SMALL, _COMPILED_GRAPH, _GRAPH), 2),
    Goal("contrastive 4096x512, over eager", "losses", _over(_PAIRS, ["eager"], _OURS), 1, form="{:.2f}x"),
    Goal("decode and convert, over TorchCodec's fallback", "decode", _value("over_torchcodec"), 1.5),
    Goal("  over PyAV, RGB and torch", "decode", _value("over_pyav"), 1.5),
    Goal("host's time of a fusion call", "calls", _host_us("fusion, forward"), most=60, form="{:.0f} us"),
    Goal("  of steps, torch's over mmcore's", "calls", _host_over_torch, 1, form="{:.2f}x"),
    _all_right("NVDEC's planes those of the CPU", "nvdec", _nvdec),
)


def outcomes(record: Record) -> list[Outcome]:
    """Every goal of the sections that were asked for, in order."""
    found = []
    for goal in GOALS:
        if goal.section not in record["sections"] and goal.section not in record.get("not_run", {}):
            continue  # it was not asked for
        part = section(record, goal.section)
        value = goal.measure(part)
        limit = goal.least if goal.most is None else goal.most
        assert limit is not None
        text = (">= " if goal.most is None else "<= ") + goal.form.format(limit)
        if limit == 0:
            text = "all right"
        if value is None:
            reached, state = _why(record, goal.section, part), NOT_RUN
        else:
            met = value >= limit if goal.most is None else value <= limit
            reached = "all right" if limit == 0 and met else goal.form.format(value)
            state = DRY if record.get("dry_run") and goal.figure else MET if met else MISSED
        share = None
        if value and limit:
            share = value / limit if goal.most is None else limit / value
        found.append(Outcome(goal.what, text, reached, state, share))
    return found


def _why(record: Record, name: str, part: Record) -> str:
    reasons = [record.get("not_run", {}).get(name), *part.get("not_run", {}).values()]
    reasons += [text.strip().splitlines()[-1] for text in part.get("errors", {}).values() if text.strip()]
    return next((str(reason) for reason in reasons if reason), "")[:48]


def table(record: Record) -> list[str]:
    """The lines to print."""
    rows = [("goal", "", "reached", ""), *((o.what, o.goal, o.reached, o.state) for o in outcomes(record))]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, (*widths, 0), strict=True)) for row in rows]
