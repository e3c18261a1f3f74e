"""Tables for the terminal and plots as PNG, from the records that the suites return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import report_pipelines as pipelines
from bench.report_shared import (
    INK,
    OURS,
    OURS_SOFT,
    PEER,
    QUIET,
    at_least,
    busy,
    milliseconds,
    quartiles,
    titles,
)

__all__ = ["clips", "plot", "progress", "table"]


def progress() -> Callable[[str], None]:
    """Give a function that shows what is going on, on stderr."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    return lambda text: console.print(f"[dim]{text}[/dim]")


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False)


def _header(result: dict[str, Any]) -> str:
    m = result["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in m["versions"].items())
    isa = m["mmcore_build"].get("isa", "?")
    return f"{m['cpu']}, ISA {isa}, cores {m['cores_used']}; {m['date']}\n{versions}"


def clips(rows: Sequence[dict[str, Any]]) -> None:
    """Print what the clips are like."""
    from rich.table import Table

    t = Table("clip", "frames", "bits/pixel", "raw µs/frame (CPU)", title="Clips")
    for row in rows:
        t.add_row(
            str(row["clip"]),
            str(row["frames"]),
            f"{row['bits_per_pixel']:.3f}",
            f"{row['raw_us_per_frame']:.0f}",
        )
    _console().print(t)


def table(result: dict[str, Any]) -> None:
    """Print a suite's tables."""
    console = _console()
    console.print(_header(result))
    tables = {
        "decode": _decode_tables,
        "sparse": _sparse_tables,
        "frames": _frames_tables,
        "fusion": _step_tables,
        "losses": _step_tables,
        "log_mel": pipelines.log_mel_table,
        "system": pipelines.system_table,
        "clips": pipelines.clips_table,
        "encode": pipelines.encode_table,
    }
    tables[result["suite"]](result, console)
    for name, reason in result["absent"].items():
        console.print(f"absent: {name}: {reason}", style="yellow", markup=False)


def _decode_tables(result: dict[str, Any], console: Any) -> None:
    from rich.table import Table

    rows = result["rows"]
    for regime in ("pooled", "fresh"):
        t = Table(
            title=f"Times raw decode, {regime} output, {result['threads']} thread(s), {result['clock']} "
            f"clock, median of {result['rounds']} interleaved rounds (quartiles)"
        )
        t.add_column("")
        for row in rows:
            t.add_column(row["job"], justify="right")
        t.add_row("raw µs/frame", *(f"{r['raw_us_per_frame']:.0f}" for r in rows), style="dim")
        for name in rows[0]["competitors"]:
            cells = []
            for row in rows:
                e = row["competitors"][name][regime]
                cells.append(f"{e['times_raw']:.2f} ({e['lower_quartile']:.2f}-{e['upper_quartile']:.2f})")
            t.add_row(name, *cells, style="bold green" if name == "mmcore" else None)
        if regime == "pooled":
            t.add_row("goal for mmcore", *(_at_most(r["goals"].get("times_raw")) for r in rows), style="dim")
        console.print(t)
    t = Table(title="Best peer's time / mmcore's")
    for column in (
        "job",
        "goal",
        "all reuse memory",
        "all fresh memory",
        "as shipped (mmcore pools)",
        "wall/CPU",
    ):
        t.add_column(column, justify="left" if column == "job" else "right")
    for row in rows:
        gains = (_gain(row["speedup"].get(k)) for k in ("pooled", "fresh", "as shipped"))
        t.add_row(
            row["job"], at_least(row["goals"].get("times_best_peer")), *gains, f"{row['wall_over_cpu']:.2f}"
        )
    console.print(t)
    busy(result, console)


def _at_most(value: float | None) -> str:
    return "" if value is None else f"<= {value:.2f}"


def _gain(entry: dict[str, Any] | None) -> str:
    return "" if entry is None else f"{entry['times']:.2f} ({entry['best_peer']})"


_SPARSE_TITLES = {
    "sparse": "Some frames, times decoding to the last of them",
    "dense": "All frames, times mmcore on one core",
    "one frame": "Opening, one frame, closing: ms",
    "long file": "A file of two hours, ms",
}
_SAVED = "mmcore saved index"


def _sparse_tables(result: dict[str, Any], console: Any) -> None:
    from rich.table import Table

    rows = result["rows"]
    names = list(dict.fromkeys(name for row in rows for name in row["competitors"]))
    for group, title in _SPARSE_TITLES.items():
        members = [row for row in rows if row["group"] == group]
        if not members:
            continue
        unit = "times_yardstick" if group in ("sparse", "dense") else "ms"
        t = Table(
            title=f"{title}; {result['threads']} thread(s), {result['clock']} clock, median of "
            f"{result['rounds']} interleaved rounds (quartiles)"
        )
        t.add_column("case")
        for column in ("yardstick ms", "goal", *names):
            t.add_column(column, justify="right", style="bold green" if column == "mmcore" else None)
        for column in ("best peer / mmcore", "/ saved index", "goal"):
            t.add_column(column, justify="right")
        for row in members:
            goals = row["goals"]
            yardstick = row["yardstick_ms"]
            t.add_row(
                row["case"],
                "" if yardstick is None else f"{yardstick[1]:.1f}",
                _at_most(goals.get("times_yardstick", goals.get("milliseconds"))),
                *(quartiles(row["competitors"].get(n, {}).get(unit), short=n in _PEER_SHADES) for n in names),
                *(quartiles(row["over_best_peer"].get(n)) for n in ("mmcore", _SAVED)),
                at_least(goals.get("times_best_peer")),
            )
        console.print(t)
    ways: dict[str, list[str]] = {}
    for row in rows:
        if row["best_peer"] is not None:
            best = row["competitors"][row["best_peer"]]
            ways.setdefault(f"{best['way']}, {best['threads'] or 'automatic'} thread(s)", []).append(
                row["case"]
            )
    for way, cases in ways.items():
        console.print(f"best peer: {way}: {', '.join(cases)}", style="dim", markup=False)
    for row in rows:
        for way, reason in row["excluded"].items():
            console.print(f"excluded: {row['case']}: {way}: {reason}", style="yellow", markup=False)
    busy(result, console, 1.1)


def _frames_tables(result: dict[str, Any], console: Any) -> None:
    from rich.table import Table

    isas = result["isas"]
    t = Table(
        title=f"Frames op alone, µs per frame, output reused, median of {result['rounds']} interleaved "
        f"rounds; copy bandwidth {result['copy_bandwidth'] / 1e9:.1f} GB/s (read + write)"
    )
    t.add_column("case")
    t.add_column("floor", justify="right")
    for isa in isas:
        t.add_column(isa, justify="right")
    t.add_column("times floor", justify="right")
    for name in result["others"]:
        t.add_column(name, justify="right")
    for row in result["rows"]:
        best = min((v["us_per_frame"] for v in row["isas"].values()), default=None)
        t.add_row(
            row["case"],
            f"{row['floor_us']:.0f}",
            *(f"{row['isas'][i]['us_per_frame']:.0f}" if i in row["isas"] else "-" for i in isas),
            "-" if best is None else f"{best / row['floor_us']:.2f}",
            *(
                f"{row['others'][n]['us_per_frame']:.0f}" if n in row["others"] else "-"
                for n in result["others"]
            ),
        )
    console.print(t)


_OURS_TOO = "mmcore value_and_grad"
_STEP_PEERS = (
    "eager",
    "eager tuned",
    "torch.compile",
    "compile tuned",
    "Liger-Kernel",
    "linear_cross_entropy",
)


def _step_tables(result: dict[str, Any], console: Any) -> None:
    from rich.table import Table

    rows = result["rows"]
    present = {name for row in rows for name in row["relative_errors"]}
    timed = [n for n in ("reference", *_STEP_PEERS, _OURS_TOO, "mmcore") if n in present]
    for regime in result["regimes"]:
        t = Table(
            title=f"{result['suite'].capitalize()} op, ms a step, {regime} memory, {result['threads']} "
            f"thread(s), {result['clock']} clock, median of {result['rounds']} interleaved rounds "
            f"(quartiles); copy bandwidth {result['copy_bandwidth'] / 1e9:.1f} GB/s (read + write)"
        )
        t.add_column("case")
        for column in ("MB", *timed):
            t.add_column(column, justify="right", style="bold green" if column == "mmcore" else None)
        for column in ("over eager", "over compile", "over best", "of bandwidth"):
            t.add_column(column, justify="right", style="bold green")
            if column != "over best":
                t.add_column("goal", justify="right", style="dim")
        for row in rows:
            e, goals = row["regimes"][regime], row["goals"]
            over, share = e["ours_over"], e["of_bandwidth"]
            t.add_row(
                row["case"],
                f"{row['bytes'] / 1e6:.0f}" if share else "",
                *(milliseconds(e["competitors"][n]["ms"]) if n in e["competitors"] else "" for n in timed),
                _spread(over["eager"]),
                at_least(goals["eager"]),
                _spread(over["torch.compile"]) if "torch.compile" in over else "",
                at_least(goals["torch.compile"]),
                f"{min(over[n]['median'] for n in _STEP_PEERS if n in over):.2f}",
                _percent(share["mmcore"]) if share else "",
                "" if goals["of_bandwidth"] is None else f">= {goals['of_bandwidth']:.0%}",
            )
        console.print(t)
    _peak_table(result, timed, console)
    busy(result, console)


def _peak_table(result: dict[str, Any], timed: Sequence[str], console: Any) -> None:
    from rich.table import Table

    rows = [r for r in result["rows"] if any(v is not None for v in r.get("peak_growth", {}).values())]
    if not rows:
        return
    t = Table("case", title="Peak memory of one step beyond its inputs, MB (VmHWM, fresh memory)")
    for name in timed:
        t.add_column(name, justify="right", style="bold green" if name == "mmcore" else None)
    for row in rows:
        peaks = row["peak_growth"]
        t.add_row(row["case"], *(f"{peaks[n] / 1e6:.0f}" if peaks.get(n) is not None else "" for n in timed))
    console.print(t)


def _spread(entry: dict[str, float]) -> str:
    return f"{entry['median']:.2f} ({entry['lower_quartile']:.2f}-{entry['upper_quartile']:.2f})"


def _percent(entry: dict[str, float]) -> str:
    low, high = (entry[k] * 100 for k in ("lower_quartile", "upper_quartile"))
    return f"{entry['median']:.0%} ({low:.0f}-{high:.0f})"


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw a suite's plot as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"font.family": "DejaVu Sans", "axes.spines.top": False, "axes.spines.right": False}):
        draw = {
            "decode": _decode_plot,
            "sparse": _sparse_plot,
            "frames": _frames_plot,
            "fusion": _step_plot,
            "losses": _step_plot,
            "log_mel": pipelines.log_mel_plot,
            "system": pipelines.system_plot,
            "clips": pipelines.files_plot,
            "encode": pipelines.files_plot,
        }
        figure = draw[result["suite"]](result, plt)
        figure.savefig(path, dpi=130, facecolor="white")
        plt.close(figure)


def _decode_plot(result: dict[str, Any], plt: Any) -> Any:
    rows = result["rows"]
    columns = min(2, len(rows))
    lines = -(-len(rows) // columns)
    bars = len(rows[0]["competitors"])
    height = lines * (0.34 * bars + 0.95) + 1.25
    figure, axes = plt.subplots(lines, columns, figsize=(14.4 if columns == 2 else 11, height), squeeze=False)
    for axis in axes.flat[len(rows) :]:
        axis.set_visible(False)
    for axis, row in zip(axes.flat, rows, strict=False):
        entries = row["competitors"]
        names = sorted(entries, key=lambda n: entries[n]["pooled"]["times_raw"])
        pooled, fresh = ([entries[n][regime]["times_raw"] for n in names] for regime in ("pooled", "fresh"))
        colours = [OURS if n == "mmcore" else OURS_SOFT if n.startswith("mmcore") else PEER for n in names]
        axis.barh(names, fresh, color=colours, height=0.72, alpha=0.35)
        axis.barh(names, pooled, color=colours, height=0.72)
        axis.axvline(1, color=INK, lw=1, ls=(0, (4, 3)))
        room = max(*pooled, *fresh)
        for i, (value, other) in enumerate(zip(pooled, fresh, strict=True)):
            inside = {"va": "center", "ha": "right", "fontsize": 9, "fontweight": "bold", "color": "white"}
            axis.text(value - room * 0.01, i, f"{value:.2f}", **inside)
            axis.text(
                max(value, other) + room * 0.01, i, f"{other:.2f}", va="center", fontsize=8.5, color=QUIET
            )
        axis.invert_yaxis()
        axis.set_xlim(0, room * 1.13)
        axis.tick_params(axis="y", length=0, labelsize=9.5)
        axis.tick_params(axis="x", labelsize=8.5, colors=QUIET)
        for label, name in zip(axis.get_yticklabels(), names, strict=True):
            label.set_fontweight("bold" if name == "mmcore" else "normal")
        axis.set_title(
            f"{row['job']}   (raw decode = {row['raw_us_per_frame']:.0f} µs a frame)",
            loc="left",
            fontsize=10.5,
            color=INK,
        )
    titles(
        figure,
        height,
        "Video file to normalised float32 tensor: time as a multiple of raw decode",
        "Dashed line: decoding alone. Solid: results in reused memory; pale: in fresh memory. "
        f"{result['threads']} thread(s), medians of {result['rounds']} interleaved rounds.",
        result,
    )
    return figure


_PEER_SHADES = {"PyAV": "#5f6c78", "TorchCodec": PEER, "decord": "#cfd6dc", "OpenCV": "#d9b98c"}


def _sparse_plot(result: dict[str, Any], plt: Any) -> Any:
    colours = {"mmcore": OURS, _SAVED: OURS_SOFT, **_PEER_SHADES}
    pairs: list[list[tuple[str, list[dict[str, Any]]]]] = []
    for group in _SPARSE_TITLES:
        panels: dict[str, list[dict[str, Any]]] = {}
        for row in (r for r in result["rows"] if r["group"] == group):
            panels.setdefault(row["clip"] if group == "sparse" else row["case"], []).append(row)
        pairs += [list(panels.items())[i : i + 2] for i in range(0, len(panels), 2)]
    # bars of a panel, and room between its groups and around it
    sizes = [max(sum(len(r["competitors"]) + 0.8 for r in rows) for _, rows in pair) for pair in pairs]
    height = sum(0.19 * size + 0.6 for size in sizes) + 1.6
    figure, axes = plt.subplots(
        len(pairs), 2, figsize=(14.4, height), squeeze=False, height_ratios=[0.19 * s + 0.6 for s in sizes]
    )
    for line, pair in zip(axes, pairs, strict=True):
        for axis in line[len(pair) :]:
            axis.set_visible(False)
        for axis, (name, rows) in zip(line, pair, strict=False):
            _sparse_panel(axis, name, rows, colours)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in colours.values()]
    goal = plt.Line2D([], [], color=INK, lw=2)
    figure.legend(
        [*handles, goal],
        [*colours, "goal for mmcore"],
        frameon=False,
        fontsize=9.5,
        ncols=len(handles) + 1,
        loc="upper left",
        borderaxespad=0,
        bbox_to_anchor=(0.006, 1 - 0.84 / height),
    )
    titles(
        figure,
        height,
        "A few frames of a video file to normalised float32",
        "Opening and closing included. Dashed line: decoding to the last target with PyAV, one thread, no "
        "conversion (all frames: mmcore on one core). Left of the bars: the best peer's time / mmcore's.\n"
        f"{result['threads']} thread(s), medians of {result['rounds']} interleaved rounds; of each library "
        "the best way found; k targets are numpy.linspace(0, n - 1, k).round().",
        result,
        lines=4,
    )
    return figure


def _sparse_panel(axis: Any, name: str, rows: Sequence[dict[str, Any]], colours: dict[str, str]) -> None:
    unit = "times_yardstick" if rows[0]["group"] in ("sparse", "dense") else "ms"
    end, room, ticks = 0.0, 0.0, []
    for row in rows:
        start = end
        entries = row["competitors"]
        for library in (n for n in colours if n in entries):
            value = entries[library][unit][1]
            ours = library == "mmcore"
            axis.barh(end, value, height=0.9, color=colours[library])
            goal = row["goals"].get({"mmcore": "times_yardstick", _SAVED: "milliseconds"}.get(library))
            if goal is not None:
                axis.plot([goal, goal], [end - 0.45, end + 0.45], color=INK, lw=2)
            axis.annotate(
                f"{value:.2f}" if value < 100 else f"{value:.0f}",
                (max(value, goal or 0), end),
                (3, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                fontweight="bold" if ours else "normal",
                color=INK if ours else QUIET,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.2},
            )
            room = max(room, value, goal or 0)
            end += 1
        gain = row["over_best_peer"].get("mmcore")
        label = row["case"].removeprefix(row["clip"]).strip()
        ticks.append(((start + end - 1) / 2, f"{label}\n{gain[1]:.2f}x" if gain else label))
        end += 0.8
    if unit == "times_yardstick":
        axis.axvline(1, color=INK, lw=1, ls=(0, (4, 3)), zorder=2)
    axis.set_yticks([at for at, _ in ticks], [label for _, label in ticks])
    axis.set_ylim(end - 0.9, -0.9)
    axis.set_xlim(0, room * 1.12)
    if rows[0]["group"] == "long file":
        axis.set_xscale("log")
        axis.set_xlim(5, room * 2)
    axis.tick_params(axis="y", length=0, labelsize=9)
    axis.tick_params(axis="x", labelsize=8.5, colors=QUIET)
    yardstick = "" if rows[-1]["yardstick_ms"] is None else f"   ({rows[-1]['yardstick_ms'][1]:.1f} ms)"
    text = "times the dashed line" + yardstick if unit == "times_yardstick" else "milliseconds"
    axis.set_title(f"{name}: {text}", loc="left", fontsize=10.5, color=INK)


def _frames_plot(result: dict[str, Any], plt: Any) -> Any:
    rows = result["rows"]
    isas = [i for i in result["isas"] if any(i in r["isas"] for r in rows)]
    shades = ["#b7e0c6", "#6fb98f", "#0b6e4f", "#06402d"]
    height = 0.25 * len(rows) * (len(isas) + 0.6) + 1.7
    figure, axis = plt.subplots(figsize=(11, height))
    step = 1 / (len(isas) + 0.6)
    for k, isa in enumerate(isas):
        at = [i + k * step for i, r in enumerate(rows) if isa in r["isas"]]
        values = [r["isas"][isa]["us_per_frame"] / r["floor_us"] for r in rows if isa in r["isas"]]
        micros = [r["isas"][isa]["us_per_frame"] for r in rows if isa in r["isas"]]
        axis.barh(at, values, height=step * 0.9, color=shades[-len(isas) :][k], label=isa)
        for y, value, micro in zip(at, values, micros, strict=True):
            axis.text(value, y, f" {value:.2f}  ({micro:.0f} µs)", va="center", fontsize=8, color=INK)
    axis.axvline(1, color=INK, lw=1, ls=(0, (4, 3)))
    axis.set_yticks([i + step * (len(isas) - 1) / 2 for i in range(len(rows))], [r["case"] for r in rows])
    axis.tick_params(axis="y", length=0, labelsize=9)
    axis.tick_params(axis="x", labelsize=8.5, colors=QUIET)
    axis.set_xlim(0, axis.get_xlim()[1] * 1.12)
    axis.set_ylim(len(rows) - step * 0.4, -step)
    axis.legend(frameon=False, loc="lower right", fontsize=9)
    titles(
        figure,
        height,
        "The frames op alone: time as a multiple of the memory floor",
        "Floor (dashed): reading the needed plane bytes and writing the output once at copy bandwidth, "
        f"{result['copy_bandwidth'] / 1e9:.1f} GB/s here. Planes come from memory, output reused.",
        result,
    )
    return figure


_STEP_TITLES = {"fusion": "Weighted fusion", "losses": "Losses"}


def _step_plot(result: dict[str, Any], plt: Any) -> Any:
    rows, regimes = result["rows"], result["regimes"]
    present = {name for row in rows for name in row["relative_errors"]}
    colours = {
        "eager tuned": "#cfd6dc",
        "torch.compile": PEER,
        "compile tuned": "#5f6c78",
        "Liger-Kernel": "#b58a5b",
        "linear_cross_entropy": "#d9b98c",
        _OURS_TOO: OURS_SOFT,
        "mmcore": OURS,
    }
    bars = [(name, colour) for name, colour in colours.items() if name in present]
    # Each row is as tall as its bars are many.
    starts, at_row, end = [], [], 0.0
    for row in rows:
        present = row["regimes"][regimes[0]]["competitors"]
        count = sum(name in present for name, _ in bars)
        starts.append(end)
        at_row.append(end + (count - 1) / 2)
        end += count + 0.8
    height = 0.16 * end + 1.75
    figure, axes = plt.subplots(
        1, len(regimes), figsize=(3.6 + 3.6 * len(regimes), height), squeeze=False, sharex=True, sharey=True
    )
    room = 1.0
    for axis, regime in zip(axes.flat, regimes, strict=True):
        drawn: dict[str, list[tuple[float, float, str]]] = {name: [] for name, _ in bars}
        for start, row in zip(starts, rows, strict=True):
            e = row["regimes"][regime]
            over, share = e["ours_over"], e["of_bandwidth"]
            for k, name in enumerate(n for n, _ in bars if n in e["competitors"]):
                times, text = over["eager"]["median"], ""
                if name != "mmcore":
                    times /= over[name]["median"]
                elif share:
                    text = f"  {share[name]['median']:.0%}"
                drawn[name].append((start + k, times, f"{times:.2f}{text}"))
        for name, colour in bars:
            if not drawn[name]:
                continue
            at, values = [y for y, _, _ in drawn[name]], [x for _, x, _ in drawn[name]]
            axis.barh(at, values, height=0.92, color=colour, label=name)
            ours = name == "mmcore"
            for y, x, text in drawn[name]:
                axis.annotate(
                    text,
                    (x, y),
                    (3, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=7.5,
                    fontweight="bold" if ours else "normal",
                    color=INK if ours else QUIET,
                    # over the dashed line
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.2},
                )
        room = max(room, *(x for entries in drawn.values() for _, x, _ in entries))
        axis.axvline(1, color=INK, lw=1, ls=(0, (4, 3)), zorder=2)
        axis.set_title(f"{regime} memory", loc="left", fontsize=10.5, color=INK)
        axis.tick_params(axis="y", length=0, labelsize=9)
        axis.tick_params(axis="x", labelsize=8.5, colors=QUIET)
    axes[0, 0].set_xlim(0, room * 1.25)
    axes[0, 0].set_yticks(at_row, [r["case"] for r in rows])
    axes[0, 0].set_ylim(end - 0.8, -1)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(),
        frameon=False,
        fontsize=9.5,
        ncols=len(bars),
        loc="lower right",
        bbox_to_anchor=(0.995, 0),
    )
    titles(
        figure,
        height,
        f"{_STEP_TITLES[result['suite']]}, forward and backward: times faster than eager torch",
        "Dashed: eager. Percent: bytes that must be moved over time, as a share of the copy bandwidth, "
        f"{result['copy_bandwidth'] / 1e9:.1f} GB/s here.\n{result['threads']} thread(s), medians of "
        f"{result['rounds']} interleaved rounds. Default: memory as everybody takes it when called without "
        "further care; recycled: all memory reused; fresh: all mapped anew.",
        result,
        lines=2,
    )
    return figure
