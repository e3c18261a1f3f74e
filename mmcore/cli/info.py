"""``mmcore info``: what is in a file."""

from __future__ import annotations

import json as jsonlib
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
    from mmcore import VideoStreamMetadata

__all__ = ["collect", "describe", "info", "show"]


def info(
    file: Annotated[Path, typer.Argument(help="The media file.", show_default=False)],
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Show the streams of FILE: codecs, sizes, colour, rotation and exact timing."""
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

    with Source(file).open() as container:
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
                "language": stream.language,
                "default": bool(int(stream.disposition) & 1),
            }
            if stream.type == "video":
                facts["video"].append(common | _video(container, stream, file))
            elif stream.type == "audio":
                facts["audio"].append(common | _audio(stream))
            elif stream.type == "subtitle":
                facts["subtitles"].append(common | _times(stream))
            else:
                facts["other"].append(common | {"type": stream.type})
    return facts


def _codec(stream: Any) -> str | None:
    context = stream.codec_context
    if context is None:  # data and attachments have no decoder
        return None
    name: str = getattr(context.codec, "canonical_name", context.name)
    return name


def _times(stream: Any) -> dict[str, Any]:
    seconds = [
        None if v is None else float(v * stream.time_base) for v in (stream.start_time, stream.duration)
    ]
    return {"start_seconds": seconds[0], "duration_seconds": seconds[1]}


def _audio(stream: Any) -> dict[str, Any]:
    context = stream.codec_context
    return _times(stream) | {
        "sample_rate": context.sample_rate,
        "channels": context.channels,
        "layout": context.layout.name,
        "sample_format": context.format.name if context.format else None,
        "bit_rate": stream.bit_rate or None,
    }


def _video(container: Any, stream: Any, file: Path) -> dict[str, Any]:
    import mmcore

    facts: dict[str, Any] = {"profile": stream.profile, "pixel_format": stream.codec_context.pix_fmt}
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
        t = table(
            "stream", "codec", "rate", "channels", "duration", "start", "bit rate", "language", title="Audio"
        )
        for a in facts["audio"]:
            cells: tuple[Any, ...] = (
                a["stream_index"],
                a["codec"],
                f"{a['sample_rate']} Hz",
                f"{a['channels']} ({a['layout']})",
                format_seconds(a["duration_seconds"]),
                format_seconds(a["start_seconds"]),
                format_rate(a["bit_rate"]),
                a["language"],
            )
            t.add_row(*(str(x) if x is not None else "-" for x in cells))
        out.print(t)
    rest = facts["subtitles"] + facts["other"]
    if rest:
        t = table("stream", "kind", "codec", "duration", "language", title="Subtitles and other streams")
        for s in rest:
            duration = format_seconds(s.get("duration_seconds"))
            cells = (s["stream_index"], s.get("type", "subtitle"), s["codec"], duration, s["language"])
            t.add_row(*(str(x) if x is not None else "-" for x in cells))
        out.print(t)


def _video_rows(v: dict[str, Any]) -> dict[str, Any]:
    codec = v["codec"] + (f" ({v['profile']})" if v["profile"] else "")
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
