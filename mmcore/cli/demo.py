"""``mmcore demo``: the main job on a clip that mmcore renders itself, step by step."""

from __future__ import annotations

import statistics
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmcore.cli.info import collect
from mmcore.cli.pictures import DIM, FOREGROUND, Canvas, to_pictures
from mmcore.cli.render import console, format_bytes, table
from mmcore.cli.selection import spread

if TYPE_CHECKING:
    import numpy as np
    import torch
    from rich.console import Console

    from mmcore import FrameTransform
    from mmcore.sample import SampleClip

__all__ = ["demo"]

SHORT_SIDE, CROP = 256, 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ROUNDS = 5
SPARSE = 8


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the clip and the picture.")
    ] = Path("mmcore-demo"),
) -> None:
    """Render a clip, decode it to a model's input, time that, and draw what came out."""
    import mmcore
    from mmcore.sample import write_sample

    out = console()
    output.mkdir(parents=True, exist_ok=True)
    path = output / "sample.mp4"

    _step(out, 1, "Render a clip with pictures, sound and words")
    with _working(out, "rendering"):
        clip, seconds = _timed(lambda: write_sample(path))
    _say(
        out, f"{path}: {clip.duration_seconds:g} s, {format_bytes(path.stat().st_size)}, in {seconds:.1f} s."
    )
    facts = collect(path)
    (v,), (a,), (s,) = facts["video"], facts["audio"], facts["subtitles"]
    _say(
        out,
        f"It holds {v['num_frames']} frames of {v['width']}x{v['height']} at {v['average_fps']:g} fps "
        f"({v['codec']}, {v['pixel_format']}, {v['color']['matrix']}, {v['color']['range']} range, "
        f"{v['num_keyframes']} key frames), {a['layout']} sound ({a['codec']}, {a['sample_rate']} Hz) and "
        f"{len(clip.events)} subtitles ({s['codec']}).",
    )

    _step(out, 2, "Decode every frame to a model's input tensor")
    transform = mmcore.FrameTransform(resize=SHORT_SIDE, crop=CROP, mean=MEAN, std=STD)
    with _working(out, "measuring"):
        ways = _measure(path, transform, clip.num_frames)
    raw, ours, usual = (ways[name] for name in ("raw", "mmcore", "usual"))
    frames: torch.Tensor = ours.result
    _say(
        out,
        f"Short side to {SHORT_SIDE}, centre crop {CROP}, normalise: {frames.dtype} {tuple(frames.shape)}, "
        f"mean {frames.mean():.3f}, deviation {frames.std():.3f}.",
    )
    t = table("", "ms per frame", "times raw decode")
    for name, way in (
        ("decode only, no conversion (PyAV)", raw),
        ("mmcore.VideoDecoder", ours),
        ("PyAV to RGB + torch resize, crop, normalise", usual),
    ):
        t.add_row(name, f"{way.milliseconds:.3f}", f"{way.ratio:.2f}")
    out.print(t)
    levels = (frames - usual.result).abs().mean().item() * 255 * statistics.fmean(STD)
    _say(
        out,
        f"Medians of {ROUNDS} interleaved rounds on one thread, each opening the file anew. "
        f"The two tensors differ by {levels:.2f} of 255 levels on average: "
        "FFmpeg repeats chroma samples and rounds to bytes, mmcore interpolates and does not.",
    )

    _step(out, 3, f"Read {SPARSE} frames spread over the clip")
    wanted = spread(clip.num_frames, SPARSE)
    with mmcore.VideoDecoder(path, transform=transform) as decoder:
        batch, seconds = _timed(lambda: decoder.get_frames_at(wanted))
    same = bool((batch.data == frames[wanted]).all())
    _say(
        out,
        f"Frames {', '.join(map(str, wanted))} in {seconds * 1000:.0f} ms; "
        f"{'bit for bit those' if same else 'DIFFERENT from those'} of step 2.",
    )

    _step(out, 4, "Check the clock: a flash, a click and a word begin together")
    sound, rate = _read_sound(path)
    with mmcore.VideoDecoder(path) as decoder:
        for start, word in _read_words(path)[:3]:
            before, at = (decoder.get_frame_played_at(start + d) for d in (-0.01, 0.01))
            jump = at.data.float().mean() - before.data.float().mean()
            _say(
                out,
                f"{word!r} at {start:.3f} s: picture {jump:.0f} levels brighter from {at.pts_seconds:.3f} s, "
                f"click at {_onset(sound, rate, start):.3f} s.",
            )

    _step(out, 5, "Draw it")
    picture = output / "demo.png"
    with _working(out, "drawing"):
        _draw(picture, clip, transform, ways, sound, rate)
    _say(out, f"{picture}: the clip, what the model receives, the common clock and the times.")
    out.print()
    _say(out, f"Next: mmcore info {path}, or mmcore decode --help.")


class Way:
    """One way to read the clip: its last result, time per frame and ratio to the raw decode."""

    def __init__(self, run: Callable[[], Any]) -> None:
        self.run = run
        self.result: Any = None
        self.times: list[float] = []
        self.milliseconds = self.ratio = 0.0


def _measure(path: Path, transform: FrameTransform, count: int) -> dict[str, Way]:
    """Time the raw decode, mmcore and the usual pipeline in turns, each on one thread."""
    import torch

    import mmcore

    def ours() -> torch.Tensor:
        with mmcore.VideoDecoder(path, transform=transform, num_threads=1) as decoder:
            return decoder[:]

    ways = {"raw": Way(lambda: _raw(path)), "mmcore": Way(ours), "usual": Way(lambda: _usual(path, count))}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(ROUNDS + 1):
            for way in ways.values():
                way.result = None  # its memory may be used again
                way.result, seconds = _timed(way.run)
                way.times.append(seconds)
    finally:
        torch.set_num_threads(threads)
    for way in ways.values():
        del way.times[0]  # the first round warms up
        way.milliseconds = statistics.median(way.times) / count * 1000
        way.ratio = statistics.median(t / r for t, r in zip(way.times, ways["raw"].times, strict=True))
    return ways


def _open(path: Path) -> Any:
    import av

    container = av.open(str(path))
    context = container.streams.video[0].codec_context
    context.thread_count, context.thread_type = 1, "NONE"
    return container


def _raw(path: Path) -> int:
    with _open(path) as container:
        return sum(1 for _ in container.decode(video=0))


def _usual(path: Path, count: int) -> torch.Tensor:
    """The same job with the tools at hand before mmcore, in the fastest form found for them."""
    import torch

    result = torch.empty(count, 3, CROP, CROP)
    planar = torch.empty(3, CROP, CROP, dtype=torch.uint8)
    mean, factor = (
        torch.tensor(v).view(3, 1, 1) for v in ([m * 255 for m in MEAN], [1 / (255 * s) for s in STD])
    )
    with _open(path) as container:
        for i, frame in enumerate(container.decode(video=0)):
            rgb = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1).unsqueeze(0)
            size = (SHORT_SIDE, SHORT_SIDE * rgb.shape[3] // rgb.shape[2])
            x = torch.nn.functional.interpolate(rgb, size, mode="bilinear", antialias=True)
            top, left = round((size[0] - CROP) / 2), round((size[1] - CROP) / 2)
            planar.copy_(x[0, :, top : top + CROP, left : left + CROP])
            torch.sub(planar, mean, out=result[i]).mul_(factor)
    return result


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def _step(out: Console, number: int, text: str) -> None:
    out.print(f"\n[bold cyan]{number}[/]  [bold]{text}[/]")


def _say(out: Console, text: str) -> None:
    indent = "   "
    lines = textwrap.wrap(text, min(out.width, 100), initial_indent=indent, subsequent_indent=indent)
    out.print("\n".join(lines), markup=False, soft_wrap=True)


def _working(out: Console, text: str) -> Any:
    return out.status(f"{text} ...")


def _read_sound(path: Path) -> tuple[np.ndarray[Any, Any], int]:
    import av
    import numpy as np

    with av.open(str(path)) as container:
        rate: int = container.streams.audio[0].rate
        parts = [frame.to_ndarray() for frame in container.decode(audio=0)]
    return np.concatenate(parts, axis=1).mean(axis=0), rate


def _read_words(path: Path) -> list[tuple[float, str]]:
    """Start and text of the subtitles."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.subtitles[0]
        # mov_text: two bytes of length, then UTF-8; empty texts fill the pauses
        return [
            (float(p.pts * p.time_base), bytes(p)[2:].decode())
            for p in container.demux(stream)
            if p.size > 2 and p.pts is not None and p.time_base is not None
        ]


def _onset(sound: np.ndarray[Any, Any], rate: int, near: float) -> float:
    """Instant within 0.1 s of ``near`` at which the sound first jumps."""
    import numpy as np

    first = round((near - 0.1) * rate)
    jumps = np.abs(np.diff(sound[first : first + round(0.2 * rate)]))
    return float(first + np.argmax(jumps > 0.25 * jumps.max()) + 1) / rate


def _draw(
    path: Path,
    clip: SampleClip,
    transform: FrameTransform,
    ways: dict[str, Way],
    sound: np.ndarray[Any, Any],
    rate: int,
) -> None:
    """Write the picture: frames of the clip, the tensor's frames below them, then one time axis for all."""
    import numpy as np
    import torch

    import mmcore

    frames = ways["mmcore"].result
    margin, gap, columns = 36, 16, 6
    tile_h = round(CROP * clip.height / clip.width)
    width = 2 * margin + columns * CROP + (columns - 1) * gap
    first = clip.events[0].frame
    chosen = [first - 8, first - 2, first, first + 2, first + 10, first + 21]
    shrink = mmcore.FrameTransform(resize=(tile_h, CROP), dtype=torch.uint8, layout="NHWC")
    with mmcore.VideoDecoder(clip.path, transform=shrink) as decoder:
        small = decoder.get_frames_at(chosen).data
    seen = to_pictures(frames[chosen], transform, len(chosen), CROP, CROP)

    top_clip = 132
    top_seen = top_clip + tile_h + 74
    top_plot = top_seen + CROP + 80
    canvas = Canvas(top_plot + 290, width)
    canvas.text(margin, 48, "mmcore: a video file becomes a model's input", size=17, weight="bold")
    shape = "x".join(map(str, frames.shape))
    canvas.text(margin, 74, f"{clip.width}x{clip.height} H.264 to {shape} {frames.dtype}", size=10, color=DIM)
    canvas.text(margin, top_clip - 14, "Decoded frames", size=11)
    heading = (
        f"What the model receives: short side {SHORT_SIDE}, centre {CROP}x{CROP}, normalised (mapped back)"
    )
    canvas.text(margin, top_seen - 14, heading, size=11)
    for i, frame in enumerate(chosen):
        left = margin + i * (CROP + gap)
        canvas.picture(top_clip, left, small[i])
        canvas.text(left, top_clip + tile_h + 18, f"{frame / clip.fps:.3f} s   #{frame}", size=8, color=DIM)
        canvas.picture(top_seen, left, seen[i])

    plot = canvas.axes(margin, top_plot + 14, 860, 210)
    times = np.arange(clip.num_frames) / clip.fps
    light = (
        to_pictures(frames, transform, clip.num_frames, CROP, CROP).float().mean(dim=(1, 2, 3)).numpy() / 255
    )
    step = rate // 200
    loud = np.abs(sound[: len(sound) // step * step]).reshape(-1, step).max(axis=1)
    plot.fill_between(
        np.arange(len(loud)) * step / rate, loud / loud.max() * 0.45, color="#4aa8ff", alpha=0.55, lw=0
    )
    plot.plot(times, light, color="#ffc857", lw=1.6)
    for event in clip.events:
        plot.axvline(event.seconds, color=FOREGROUND, lw=0.6, ls=":", alpha=0.6)
        plot.text(event.seconds + 0.03, 0.93, event.word, color=FOREGROUND, size=9)
    plot.set(xlim=(0, clip.duration_seconds), ylim=(0, 1.05), yticks=[], xlabel="seconds")
    left = margin
    for text, color, advance in (
        ("One clock:", FOREGROUND, 96),
        ("brightness of the tensor,", "#ffc857", 204),
        ("loudness of the sound,", "#4aa8ff", 186),
        ("words", FOREGROUND, 0),
    ):
        canvas.text(left, top_plot - 4, text, size=11, color=color)
        left += advance

    left = margin + 1040
    bars = canvas.axes(left, top_plot + 14, width - margin - left, 210)
    names = {"raw": "decode only", "mmcore": "mmcore", "usual": "PyAV + torch"}
    values = [ways[name].milliseconds for name in names]
    bars.barh(list(names.values()), values, color=["#5c6370", "#ffc857", "#5c6370"], height=0.55)
    for i, name in enumerate(names):
        bars.text(values[i], i, f" {ways[name].ratio:.2f}x", va="center", color=FOREGROUND, size=9)
    bars.invert_yaxis()
    bars.set(xlim=(0, max(values) * 1.2), xlabel="ms per frame")
    canvas.text(margin + 940, top_plot - 4, "Time per frame, as a multiple of decoding only", size=11)
    canvas.save(path)
