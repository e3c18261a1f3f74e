"""``mmcore info``: what is in a file."""

from __future__ import annotations

import json as jsonlib
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from mmcore.cli.render import (
    console,
    format_bytes,
    format_rate,
    format_seconds,
    key_value_table,
    table,
)
from mmcore.errors import MMCoreError

if TYPE_CHECKING:
    from rich.table import Table

    from mmcore import AudioDecoder, TextStreamMetadata, VideoStreamMetadata

__all__ = ["collect", "describe", "describe_audio", "describe_text", "info", "show"]


def info(
    file: Annotated[Path, typer.Argument(help="The media file.", show_default=False)],
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Show pictures, sound and words of FILE: codecs, sizes, colour, rotation, exact timing, languages."""
    facts = collect(file)
    if json:
        typer.echo(jsonlib.dumps(facts, indent=2))
    else:
        show(facts)


def collect(file: Path) -> dict[str, Any]:
    """Everything the command shows, as plain JSON types.

    Raises
    ------
    DecodeError
        If there is no such file or it is no media file.
    """
    import av

    from mmcore.decoding.source import Source
    from mmcore.decoding.text_files import find_sidecars, is_subtitle_file, open_subtitle_file

    source = Source(file)
    opened = open_subtitle_file(source, None)[0] if is_subtitle_file(source) else source.open()
    with opened as container:
        start, duration = container.start_time, container.duration
        facts: dict[str, Any] = {
            "path": str(file),
            "size_bytes": file.stat().st_size,
            "container": {
                "format": container.format.name,
                "description": container.format.long_name,
                "start_seconds": None if start is None else start / av.time_base,
                "duration_seconds": None if duration is None else duration / av.time_base,
                "bit_rate": container.bit_rate or None,
                "tags": dict(container.metadata),
            },
            "video": [],
            "audio": [],
            "subtitles": [],
            "other": [],
        }
        for stream in container.streams:
            common = {
                "stream_index": stream.index,
                "codec": _codec(stream),
                "language": None if stream.language in ("", "und") else stream.language,
                "default": bool(int(stream.disposition) & 1),
            }
            if stream.type == "video":
                facts["video"].append(common | _video(container, stream, file))
            elif stream.type == "audio":
                facts["audio"].append(common | _audio(stream, file))
            elif stream.type == "subtitle":
                facts["subtitles"].append(common | _words(file, stream_index=stream.index))
            else:
                facts["other"].append(common | {"type": stream.type})
    beside = {"stream_index": None, "codec": None, "language": None, "default": False}
    for sidecar in find_sidecars(file):
        facts["subtitles"].append(beside | _words(file, sidecar=sidecar.path) | {"path": str(sidecar.path)})
    return facts


def _codec(stream: Any) -> str | None:
    context = stream.codec_context
    if context is None:  # data and attachments have no decoder
        return None
    name: str = getattr(context.codec, "canonical_name", context.name)
    return name


def _audio(stream: Any, file: Path) -> dict[str, Any]:
    import mmcore

    context = stream.codec_context  # None if there is no decoder
    facts: dict[str, Any] = {
        "sample_rate": getattr(context, "sample_rate", None),
        "channels": getattr(context, "channels", None),
        "layout": context.layout.name if context else None,
        "sample_format": context.format.name if context and context.format else None,
        "bit_rate": getattr(context, "bit_rate", None) or None,
        "begin_stream_seconds": None,
        "end_stream_seconds": None,
        "duration_seconds": None,
    }
    try:
        with mmcore.AudioDecoder(file, stream_index=stream.index) as decoder:
            facts |= describe_audio(decoder)
    except MMCoreError as error:
        facts["error"] = str(error)
    return facts


def describe_audio(decoder: AudioDecoder) -> dict[str, Any]:
    """An audio stream's metadata as plain JSON types, named as ``mmcore info --json`` names them."""
    m, begin, end = decoder.metadata, decoder.begin_stream_seconds, decoder.end_stream_seconds
    return {
        "stream_index": m.stream_index,
        "codec": m.codec,
        "language": m.language,
        "sample_rate": m.sample_rate,
        "channels": m.num_channels,
        "layout": m.channel_layout,
        "sample_format": m.sample_format,
        "bit_rate": m.bit_rate,
        "begin_stream_seconds": begin,
        "end_stream_seconds": end,
        "duration_seconds": end - begin,
        "damage": decoder.damage,
    }


def _words(file: Path, **choice: Any) -> dict[str, Any]:
    import mmcore

    try:
        return describe_text(mmcore.TextDecoder(file, **choice).metadata)
    except MMCoreError as error:
        return {"error": str(error)}


def describe_text(metadata: TextStreamMetadata) -> dict[str, Any]:
    """A text stream's metadata as plain JSON types, named as ``mmcore info --json`` names them."""
    m = metadata
    return {
        "stream_index": m.stream_index,
        "path": m.path,
        "codec": m.codec,
        "language": m.language,
        "title": m.title,
        "default": m.default,
        "forced": m.forced,
        "encoding": m.encoding,
        "num_segments": m.num_segments,
        "begin_stream_seconds": m.begin_stream_seconds,
        "end_stream_seconds": m.end_stream_seconds,
        "damage": m.damage,
    }


def _video(container: Any, stream: Any, file: Path) -> dict[str, Any]:
    import mmcore

    context = stream.codec_context
    facts: dict[str, Any] = {
        "profile": stream.profile if context else None,
        "pixel_format": context.pix_fmt if context else None,
    }
    try:
        with mmcore.VideoDecoder(file, stream_index=stream.index) as decoder:
            facts |= describe(decoder.metadata)
            facts |= _timing(decoder)
    except MMCoreError as error:
        facts["error"] = str(error)
    return facts


def describe(metadata: VideoStreamMetadata) -> dict[str, Any]:
    """A video stream's metadata as plain JSON types, named as ``mmcore info --json`` names them."""
    m = metadata
    return {
        "stream_index": m.stream_index,
        "codec": m.codec,
        "width": m.width,
        "height": m.height,
        "rotation": m.rotation,
        "pixel_format": m.pixel_format,
        "pixel_aspect_ratio": None if m.pixel_aspect_ratio is None else str(m.pixel_aspect_ratio),
        "color": {
            "matrix": m.color_space,
            "range": m.color_range,
            "primaries": m.color_primaries,
            "transfer": m.color_transfer_characteristic,
        },
        "begin_stream_seconds": m.begin_stream_seconds,
        "end_stream_seconds": m.end_stream_seconds,
        "duration_seconds": m.duration_seconds,
        "num_frames": m.num_frames,
        "average_fps": m.average_fps,
        "bit_rate": m.bit_rate,
    }


def _timing(decoder: Any) -> dict[str, Any]:
    """Regularity of the frames' times, and where decoding can start."""
    times = decoder.frame_times
    unit, steps = float(times.time_base), times.duration_seconds[:-1]
    shortest, longest = (steps.min().item(), steps.max().item()) if len(steps) else (0.0, 0.0)
    return {
        # containers round times to their own unit, so steps of a constant rate may differ by one unit
        "variable_frame_rate": longest - shortest > 1.5 * unit,
        "shortest_frame_seconds": shortest or None,
        "longest_frame_seconds": longest or None,
        "num_keyframes": len(times.key_frames),
        "longest_gop_frames": max(b - a for a, b in pairwise([*times.key_frames.tolist(), len(times)])),
        "damage": decoder.metadata.damage,
    }


def show(facts: dict[str, Any]) -> None:
    """Print what :func:`collect` found as tables."""
    out, c = console(), facts["container"]
    rows = {
        "format": f"{c['description']} ({c['format']})",
        "size": format_bytes(facts["size_bytes"]),
        "duration": format_seconds(c["duration_seconds"]),
        "start": format_seconds(c["start_seconds"]),
        "bit rate": format_rate(c["bit_rate"]),
    }
    out.print(key_value_table(facts["path"], rows))
    for v in facts["video"]:
        out.print(key_value_table(f"Video, stream {v['stream_index']}", _video_rows(v)))
    if facts["audio"]:
        t = table("stream", "codec", "rate", "channels", "heard", "bit rate", "language", title="Audio")
        for a in facts["audio"]:
            _add_row(
                t,
                a["stream_index"],
                a["codec"],
                a["sample_rate"] and f"{a['sample_rate']} Hz",
                a["channels"] and f"{a['channels']} ({a['layout']})",
                _span(a),
                format_rate(a["bit_rate"]),
                a["language"],
            )
        out.print(t)
    if facts["subtitles"]:
        t = table("stream", "codec", "segments", "shown", "language", "marked", title="Subtitles")
        for s in facts["subtitles"]:
            marks = [name for name in ("default", "forced") if s.get(name)]
            where = s["stream_index"] if s["stream_index"] is not None else Path(s["path"]).name
            _add_row(
                t, where, s["codec"], s.get("num_segments"), _span(s), s["language"], ", ".join(marks) or None
            )
        out.print(t)
    if facts["other"]:
        t = table("stream", "kind", "codec", "language", title="Other streams")
        for o in facts["other"]:
            _add_row(t, o["stream_index"], o["type"], o["codec"], o["language"])
        out.print(t)
    names = {"video": "pictures", "audio": "sound", "subtitles": "words"}
    missing = [name for kind, name in names.items() if not facts[kind]]
    if missing:
        out.print(f"No {' and no '.join(missing)}.")


def _add_row(t: Table, *cells: Any) -> None:
    """Cells as they are: a language tag or a file's name may hold what rich takes for markup."""
    t.add_row(*(Text("-" if cell is None else str(cell)) for cell in cells))


def _span(facts: dict[str, Any]) -> str | None:
    """From when to when a stream lasts, or what is wrong with it."""
    if "error" in facts:
        return str(facts["error"])
    if facts["begin_stream_seconds"] is None:
        return None
    span = f"{facts['begin_stream_seconds']:.3f} s to {facts['end_stream_seconds']:.3f} s"
    return f"{span}; {facts['damage']}" if facts.get("damage") else span


def _video_rows(v: dict[str, Any]) -> dict[str, Any]:
    codec = (v["codec"] or "unknown") + (f" ({v['profile']})" if v["profile"] else "")
    if "error" in v:
        return {"codec": codec, "pixel format": v["pixel_format"], "error": v["error"]}
    color, family = v["color"], _family(v["pixel_format"])
    size = f"{v['width']} x {v['height']}"
    if v["rotation"]:
        size += f" as shown, turned clockwise by {v['rotation']} degrees"
    rows = {
        "codec": codec,
        "size": size,
        "pixel aspect": v["pixel_aspect_ratio"] or "not tagged, square",
        "pixel format": v["pixel_format"],
        "matrix": "none (RGB)" if family == "rgb" else color["matrix"] or "not tagged, read as BT.601",
        "range": "full (RGB)" if family == "rgb" else color["range"] or "not tagged, read as limited",
        "primaries, transfer": f"{color['primaries'] or 'not tagged'}, {color['transfer'] or 'not tagged'}",
        "frames": v["num_frames"],
        "rate": f"{v['average_fps']:.3f} fps, {'variable' if v['variable_frame_rate'] else 'constant'}",
        "shown": f"from {v['begin_stream_seconds']:.3f} s to {v['end_stream_seconds']:.3f} s",
        "key frames": f"{v['num_keyframes']}, at most {v['longest_gop_frames']} frames apart",
        "bit rate": format_rate(v["bit_rate"]),
        "language": v["language"] or "not tagged",
    }
    return rows | ({"damaged": v["damage"]} if v["damage"] else {})


def _family(pixel_format: str | None) -> str:
    from mmcore.ops.pixel_formats import PIXEL_FORMATS

    known = PIXEL_FORMATS.get(pixel_format or "")
    return known.family if known else "yuv"
