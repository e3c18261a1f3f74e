"""Media files with subtitle streams, and subtitle files, made by program."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from media import add_subtitles, picture, subtitle_packet

Cue = tuple[float, float, bytes]

_RATE = 25


def write_subtitled(
    path: Path,
    streams: Sequence[tuple[str, Sequence[Cue], dict[str, Any]]],
    *,
    num_frames: int = 50,
    first_frame: int = 0,
    counted: bool = True,
    format: str | None = None,
) -> Path:
    """Numbered MPEG-4 pictures, 25 a second, with subtitle streams behind them.

    A stream is its codec, its cues (start and length in seconds, the packet's content but for mov_text's
    count of bytes, which ``counted`` adds) and its tags ("language", "title") and dispositions ("default",
    "forced"). The first picture is shown when ``first_frame`` pictures would have been.
    """
    with av.open(str(path), "w", format=format) as output:
        video: Any = output.add_stream("mpeg4", rate=_RATE)
        video.height, video.width, video.pix_fmt = 96, 128, "yuv420p"
        packets: list[Any] = []
        for codec, cues, settings in streams:
            stream = add_subtitles(output, codec)
            for name, value in settings.items():
                if name in ("language", "title"):
                    stream.metadata[name] = value
                else:
                    stream.disposition |= getattr(type(stream.disposition), name)
            packets += [subtitle_packet(stream, *cue, counted=counted) for cue in cues]
        for i in range(num_frames):
            frame = av.VideoFrame.from_ndarray(picture(i), "rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = first_frame + i, Fraction(1, _RATE)
            packets += video.encode(frame)
        packets += video.encode(None)
        output.start_encoding()
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            output.mux(packet)
    return path


def srt(cues: Sequence[tuple[float, float, str]]) -> str:
    """The text of an SRT file."""
    return "".join(
        f"{number}\n{_time(start)} --> {_time(end)}\n{text}\n\n"
        for number, (start, end, text) in enumerate(cues, 1)
    )


def _time(seconds: float) -> str:
    thousandths = round(abs(seconds) * 1000)
    hours, thousandths = divmod(thousandths, 3_600_000)
    minutes, thousandths = divmod(thousandths, 60_000)
    sign = "-" * (seconds < 0)
    return f"{sign}{hours:02}:{minutes:02}:{thousandths // 1000:02},{thousandths % 1000:03}"
