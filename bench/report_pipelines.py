"""Tables and plots of the suites log_mel, system, clips and encode."""

from __future__ import annotations

from typing import Any

from bench.report_shared import OURS, OURS_SOFT, QUIET, at_least, busy, milliseconds, quartiles, titles

__all__ = [
    "clips_table",
    "encode_table",
    "files_plot",
    "log_mel_plot",
    "log_mel_table",
    "system_plot",
    "system_table",
]

_LOG_MEL_PEERS = {
    "transformers": "#5b6b7a",
    "torchaudio": "#7f8d9a",
    "librosa": "#9aa5b1",
    "eager": "#b9c2ca",
    "torch.compile": "#d3d9de",
}


def log_mel_table(result: dict[str, Any], console: Any) -> None:
    from rich.table import Table

    rows = result["rows"]
    names = [n for n in (*_LOG_MEL_PEERS, "torch FFT alone", "mmcore") if any(n in r["ms"] for r in rows)]
    t = Table(
        title=f"log_mel, ms, {result['threads']} thread(s), {result['clock']} clock, median of "
        f"{result['rounds']} interleaved rounds (quartiles)"
    )
    t.add_column("case")
    for name in names:
        t.add_column(name, justify="right", style="bold green" if name == "mmcore" else None)
    for column in ("best peer / mmcore", "goal", "FFT alone / mmcore", "largest error"):
        t.add_column(column, justify="right")
    for row in rows:
        ours, best = row["ours_over"], row["best_peer"]
        t.add_row(
            row["case"],
            *(milliseconds(row["ms"][n][1]) if n in row["ms"] else "" for n in names),
            "" if best is None else f"{ours[best][1]:.1f} ({ours[best][0]:.1f}-{ours[best][2]:.1f}) {best}",
            at_least(row["goal"]),
            f"{ours['torch FFT alone'][1]:.1f}",
            f"{row['errors']['mmcore']:.1g}",
        )
    console.print(t)
    busy(result, console)


def log_mel_plot(result: dict[str, Any], plt: Any) -> Any:
    rows = result["rows"]
    height = 0.95 * len(rows) + 1.6
    figure, axis = plt.subplots(figsize=(11, height))
    colours = {**_LOG_MEL_PEERS, "torch FFT alone": "#e0b062"}
    at_row, position, room = [], 0.0, 1.0
    labelled: set[str] = set()
    for row in rows:
        names = [n for n in colours if n in row["ours_over"]]
        at_row.append(position + (len(names) - 1) / 2)
        for name in names:
            times = row["ours_over"][name][1]
            label = None if name in labelled else name
            labelled.add(name)
            axis.barh(position, times, height=0.92, color=colours[name], label=label)
            axis.text(times, position, f" {times:.1f}", va="center", fontsize=7.5, color=QUIET)
            room = max(room, times)
            position += 1
        position += 0.8
    axis.axvline(1, color=OURS, lw=1.5, zorder=2)
    axis.set_xlim(0, room * 1.12)
    axis.set_yticks(at_row, [r["case"] for r in rows])
    axis.set_ylim(position - 1, -1)
    axis.tick_params(axis="y", length=0, labelsize=9)
    axis.tick_params(axis="x", labelsize=8.5, colors=QUIET)
    axis.legend(frameon=False, fontsize=9, loc="lower right")
    titles(
        figure,
        height,
        "Log-mel spectrograms: times mmcore's time",
        f"Line: mmcore. Waveform in memory to features; {result['threads']} thread(s), {result['clock']} "
        f"clock, medians of {result['rounds']} interleaved rounds.",
        result,
    )
    return figure


_PART_SHADES = {"read": "#0b6e4f", "encoders": "#9aa5b1", "fusion": "#e0b062", "heads and losses": "#b5533c"}


def system_table(result: dict[str, Any], console: Any) -> None:
    from rich.table import Table

    t = Table(
        title=f"One training step, files to gradients, ms, {result['threads']} thread(s), {result['clock']} "
        f"clock, median of {result['rounds']} interleaved rounds (quartiles); parts forward and backward"
    )
    for column in ("case", "on", "", *_PART_SHADES, "step", "eager / mmcore"):
        t.add_column(column, justify="left" if column in ("case", "on", "") else "right")
    for row in result["rows"]:
        low, middle, high = row["eager_over_ours"]
        for name, parts in row["parts_ms"].items():
            whole = sum(parts.values())
            ours = name == "mmcore"
            t.add_row(
                row["case"] if ours else "",
                row["device"] if ours else "",
                name,
                *(f"{milliseconds(parts[part])} ({parts[part] / whole:.0%})" for part in _PART_SHADES),
                f"{row['ms'][name][1]:.0f} ({row['ms'][name][0]:.0f}-{row['ms'][name][2]:.0f})",
                f"{middle:.2f} ({low:.2f}-{high:.2f})" if ours else "",
                style="bold green" if ours else None,
            )
    console.print(t)
    busy(result, console)


def system_plot(result: dict[str, Any], plt: Any) -> Any:
    rows = result["rows"]
    height = 0.95 * len(rows) + 1.7
    figure, axis = plt.subplots(figsize=(11, height))
    ticks = []
    for i, row in enumerate(rows):
        whole = sum(row["parts_ms"]["mmcore"].values())
        for k, (name, parts) in enumerate(row["parts_ms"].items()):
            at, left = 3 * i + k, 0.0
            for part, colour in _PART_SHADES.items():
                share = parts[part] / whole
                axis.barh(at, share, left=left, height=0.86, color=colour, label=None if at else part)
                left += share
            axis.text(left, at, f" {row['ms'][name][1]:.0f} ms", va="center", fontsize=8.5, color=QUIET)
            ticks.append((at, f"{row['case']}, {row['device']}: mmcore" if k == 0 else name))
    axis.set_yticks([at for at, _ in ticks], [label for _, label in ticks])
    axis.set_ylim(3 * len(rows) - 1.4, -0.7)
    axis.set_xlim(0, axis.get_xlim()[1] * 1.06)
    axis.tick_params(axis="y", length=0, labelsize=9)
    axis.tick_params(axis="x", labelsize=8.5, colors=QUIET)
    figure.legend(
        *axis.get_legend_handles_labels(),
        frameon=False,
        fontsize=9,
        ncols=len(_PART_SHADES),
        loc="upper left",
        bbox_to_anchor=(0.006, 1 - 0.62 / height),
    )
    titles(
        figure,
        height,
        "One training step, files to gradients: times mmcore's step",
        f"Parts forward and backward; {result['threads']} thread(s), {result['clock']} clock, medians of "
        f"{result['rounds']} interleaved rounds.",
        result,
        lines=3,
    )
    return figure


def clips_table(result: dict[str, Any], console: Any) -> None:
    from rich.table import Table

    t = Table(
        title=f"A clip of {result['seconds_of_a_clip']:g} s, pictures, sound and words: ms, "
        f"{result['threads']} thread(s), {result['clock']} clock, median of {result['rounds']} interleaved "
        "rounds (quartiles)"
    )
    for column in ("case", "", "ms a clip", "/ mmcore", "opened", "kB read", "levels", "sound"):
        t.add_column(column, justify="left" if column in ("case", "") else "right")
    for row in result["rows"]:
        title = f"{row['case']} ({row['file_bytes'] / 1e6:.1f} MB)"
        for name, e in row["competitors"].items():
            t.add_row(
                title,
                name,
                quartiles(e["ms"]),
                "" if name == "mmcore" else quartiles(e["over_ours"]),
                "" if e["opened"] is None else f"{e['opened']:.3g}",
                "" if e["bytes_read"] is None else f"{e['bytes_read'] / 1e3:.0f}",
                f"{e['differences']['pictures']:.2f}",
                f"{e['differences']['sound']:.1g}",
                style="bold green" if name == "mmcore" else None,
            )
            title = ""
    console.print(t)
    _lost(result, console)


def encode_table(result: dict[str, Any], console: Any) -> None:
    from rich.table import Table

    t = Table(
        title=f"Frames in memory to an H.264 file, ms a frame, {result['threads']} thread(s), "
        f"{result['clock']} clock, median of {result['rounds']} interleaved rounds (quartiles)"
    )
    for column in ("case", "", "ms a frame", "/ mmcore", "conversion", "of the whole", "PSNR, dB", "kB"):
        t.add_column(column, justify="left" if column in ("case", "") else "right")
    for row in result["rows"]:
        title = row["case"]
        for name, e in row["competitors"].items():
            alone = "conversion_ms" in e
            t.add_row(
                title,
                name,
                quartiles(e["ms"]),
                "" if name == "mmcore" else quartiles(e["over_ours"]),
                milliseconds(e["conversion_ms"][1]) if alone else "",
                f"{e['conversion_share'][1]:.0%}" if alone else "",
                f"{e['file']['decibels']:.1f}",
                f"{e['file']['bytes'] / 1e3:.0f}",
                style="bold green" if name == "mmcore" else None,
            )
            title = ""
    console.print(t)
    _lost(result, console)


def _lost(result: dict[str, Any], console: Any) -> None:
    """Say where a peer was faster, and whether the machine was quiet."""
    for row in result["rows"]:
        best = row["best_peer"]
        if best is not None and row["competitors"][best]["over_ours"][1] < 1:
            console.print(f"{row['case']}: {best} is faster than mmcore", style="red", markup=False)
    busy(result, console)


_READY = "planes ready"
_FILE_SHADES = ("#5b6b7a", "#7f8d9a", "#9aa5b1", "#b9c2ca")
_FILE_TITLES = {
    "clips": ("Two seconds of a file, pictures, sound and words: times mmcore's time", "ms a clip"),
    "encode": ("Frames in memory to an H.264 file: times mmcore's time", "ms a frame"),
}


def files_plot(result: dict[str, Any], plt: Any) -> Any:
    """Bars of every competitor, of the suites clips and encode."""
    rows = result["rows"]
    title, unit = _FILE_TITLES[result["suite"]]
    colours = {_READY: "#e0b062", "mmcore saved index": OURS_SOFT, "mmcore": OURS}
    peers = dict.fromkeys(n for r in rows for n in r["competitors"] if n not in colours)
    colours = dict(zip(peers, _FILE_SHADES, strict=False)) | colours
    height = 0.2 * sum(len(r["competitors"]) + 0.8 for r in rows) + 1.7
    figure, axis = plt.subplots(figsize=(11, height))
    labelled: set[str] = set()
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.2}  # over the line
    at_row, position, room = [], 0.0, 1.0
    for row in rows:
        names = [n for n in colours if n in row["competitors"]]
        at_row.append(position + (len(names) - 1) / 2)
        for name in names:
            entry = row["competitors"][name]
            times = entry["over_ours"][1]
            axis.barh(
                position, times, height=0.92, color=colours[name], label=None if name in labelled else name
            )
            labelled.add(name)
            text = f" {times:.2f}  ({entry['ms'][1]:.3g} {unit})"
            axis.text(times, position, text, va="center", fontsize=7.5, color=QUIET, bbox=behind)
            room = max(room, times)
            position += 1
        position += 0.8
    axis.axvline(1, color=OURS, lw=1.5, zorder=2)
    axis.set_xlim(0, room * 1.22)
    axis.set_yticks(at_row, [r["case"] for r in rows])
    axis.set_ylim(position - 1, -1)
    axis.tick_params(axis="y", length=0, labelsize=9)
    axis.tick_params(axis="x", labelsize=8.5, colors=QUIET)
    figure.legend(
        *axis.get_legend_handles_labels(),
        frameon=False,
        fontsize=9,
        ncols=len(labelled),
        loc="upper left",
        bbox_to_anchor=(0.006, 1 - 0.62 / height),
    )
    titles(
        figure,
        height,
        title,
        f"Line: mmcore. {result['threads']} thread(s), {result['clock']} clock, medians of "
        f"{result['rounds']} interleaved rounds.",
        result,
        lines=2,
    )
    return figure
