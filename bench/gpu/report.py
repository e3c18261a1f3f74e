"""The record as lines for the terminal, the goals last."""

from __future__ import annotations

import re
from typing import Any

from bench.gpu import goals

__all__ = ["broken", "stem", "table"]

_MOST_CHARACTERS = 8000  # before the goals: terminals and logs that keep only the end shall have all of it
_LINES_OF_ERRORS = 20


def _section(record: dict[str, Any], name: str) -> dict[str, Any]:
    found = record["sections"].get(name, {})
    return {} if "parts" in found else found


def stem(record: dict[str, Any]) -> str:
    """Name of its files: gpu-DATE-GPU."""
    ceilings = _section(record, "ceilings")
    date = record["date"][:10]
    gpu = ceilings.get("environment", {}).get("gpu", "unknown")
    return "gpu-" + date + "-" + re.sub(r"[^a-z0-9]+", "-", gpu.lower().replace("nvidia", "")).strip("-")


def broken(record: dict[str, Any]) -> bool:
    """Whether a check failed or a section broke; goals of speed that were missed do not count."""
    for section in record["sections"].values():
        for part in section.get("parts", [section]):
            if part.get("errors") or part.get("failures") or _own_failures(part):
                return True
    return any(o.state == goals.MISSED and o.goal == "all right" for o in goals.outcomes(record))


def _own_failures(part: dict[str, Any]) -> list[str]:
    """Where mmcore itself is absent from a row: peers may be, and are listed with the figures."""
    rows = part.get("rows", {})
    return [
        f"{case}: {who}: {why}"
        for case, row in (rows.items() if isinstance(rows, dict) else ())
        for who, why in row.get("absent", {}).items()
        if who.startswith("mmcore")
    ]


def table(record: dict[str, Any]) -> str:
    """Everything worth reading, and last every goal beside what was reached; of a dry run no figures."""
    lines = [] if record.get("dry_run") else _figures(record)
    for name in ("decode", "nvdec", "system", "training", "sanitizer", "tuning"):
        lines += [f"{name}: {line}" for line in goals.section(record, name).get("table", [])]
    for name in ("frames correctness", "correctness"):
        _correctness(name, record["sections"], lines)
    _contract(_section(record, "contract"), lines)
    text = "\n".join(lines)
    if len(text) > _MOST_CHARACTERS:
        text = text[:_MOST_CHARACTERS].rpartition("\n")[0] + "\n(the rest is in the record)"
    last: list[str] = []
    _errors(record, last)
    return "\n".join([text, *last, "", *goals.table(record)])


def _figures(record: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    _ceilings(_section(record, "ceilings"), lines)
    _frames(_section(record, "frames"), lines)
    for name in ("fusion", "losses"):
        _rows(name, _section(record, name), lines)
    _calls(_section(record, "calls"), lines)
    return lines


def _ceilings(section: dict[str, Any], lines: list[str]) -> None:
    if not section:
        return
    e = section.get("environment", {})
    smi = e.get("nvidia_smi", {})
    versions = " ".join(f"{k} {v}" for k, v in e.get("versions", {}).items() if v != "absent")
    lines.append(f"{e.get('gpu')}, driver {smi.get('driver_version')}, CUDA {e.get('cuda')}; {versions}")
    lines.append(
        f"libraries {e.get('libraries')}; SM clock {smi.get('clocks.sm')},"
        f" after {e.get('after', {}).get('clocks.sm')};"
        f" PCIe {smi.get('pcie.link.gen.current')} x{smi.get('pcie.link.width.current')}"
    )
    for title, key, form in (
        ("GB/s", "memory_gbps", ".0f"),
        ("GB/s", "bus_gbps", ".1f"),
        ("us", "launches_us", ".2f"),
    ):
        values = section.get(key, {})
        lines.append(f"{title}: " + "; ".join(f"{n} {v:{form}}" for n, v in values.items()))


def _correctness(name: str, sections: dict[str, Any], lines: list[str]) -> None:
    section = sections.get(name, {})
    parts = section.get("parts", [section] if section else [])
    if not parts:
        return
    cases = sum(p.get("cases", 0) for p in parts)
    failures = {n: t for p in parts for n, t in p.get("failures", {}).items()}
    left = sum(p.get("left_out", 0) for p in parts)
    lines.append(f"{name}: {cases} cases, {len(failures)} failures" + (f", {left} left out" if left else ""))
    for name, text in list(failures.items())[:12]:
        lines.append(f"  FAILED {name}: {text[:160]}")


def _contract(section: dict[str, Any], lines: list[str]) -> None:
    held = section.get("held", {})
    if held:
        count = sum(len(v) for v in held.values())
        lines.append(f"contract: {count} promises hold, {len(section.get('errors', {}))} do not")


def _frames(section: dict[str, Any], lines: list[str]) -> None:
    if section.get("rows"):
        lines.append(f"frames: ms (% of copy {section.get('copy_gbps', 0):.0f} GB/s)")
    for case, row in section.get("rows", {}).items():
        ways = row.get("ways_of_copy", {})
        others = {f"{name}, all sets in a graph" for name in ways}
        cells = [f"{who} {_ms(t['ms'])}" for who, t in row["times"].items() if who not in others]
        cells += [f"by {name} {share:.0%}" for name, share in ways.items()]
        cells.append(f"host us {row['host_us']:.0f}")
        lines.append(f"  {case}: {row['of_copy']:.0%}; " + "; ".join(cells))


def _rows(name: str, section: dict[str, Any], lines: list[str]) -> None:
    rows = section.get("rows", {})
    if not rows:
        return
    copy = section.get("copy_gbps", 0.0)
    lines.append(f"{name}: ms (over eager, over compile; % of copy {copy:.0f} GB/s)")
    for case, row in rows.items():
        times = row["times"]
        cells = []
        for who, t in times.items():
            share = f" {row['gbps'][who] / copy:.0%}" if who in row.get("gbps", {}) and copy else ""
            cells.append(f"{who} {_ms(t['ms'])}{share}")
        ours = times.get("mmcore")
        over = [
            f"{times[peer]['ms'] / ours['ms']:.1f}x {peer}"
            for peer in ("eager", "torch.compile", "Liger-Kernel")
            if ours and peer in times
        ]
        lines.append(f"  {case}: " + "; ".join(cells) + (f" -> {', '.join(over)}" if over else ""))
        if row.get("host_us"):
            lines.append("    host us: " + ", ".join(f"{n} {v:.0f}" for n, v in row["host_us"].items()))
        lines.extend(f"    absent: {n}: {reason[:120]}" for n, reason in row["absent"].items())


def _ms(value: float) -> str:
    return f"{value:.4f}" if value < 0.1 else f"{value:.3f}"


def _calls(section: dict[str, Any], lines: list[str]) -> None:
    if section.get("host_us"):
        lines.append("host us a call: " + "; ".join(f"{n} {v:.1f}" for n, v in section["host_us"].items()))


def _errors(record: dict[str, Any], lines: list[str]) -> None:
    shown: list[str] = []
    for name, reason in record["not_run"].items():
        shown.append(f"not run: {name}: {reason}")
    for name, section in record["sections"].items():
        for part in section.get("parts", [section]):
            shown += [f"not run: {name}: {what}: {why}" for what, why in part.get("not_run", {}).items()]
            shown += [f"ERROR {name}: {failure[:300]}" for failure in _own_failures(part)]
            for what, text in part.get("errors", {}).items():
                last = text.strip().splitlines()[-1][:200] if text.strip() else ""
                shown.append(f"ERROR {name}: {what}: {last}")
    lines += shown[:_LINES_OF_ERRORS]
    took = [f"build {record['build']['seconds']:.0f}"] if "build" in record else []
    for name, section in record["sections"].items():
        seconds = max((p.get("seconds", 0) for p in section.get("parts", [section])), default=0)
        took.append(f"{name} {seconds:.0f}")
    lines.append(f"{record.get('seconds', 0):.0f} s in all: " + ", ".join(took))
