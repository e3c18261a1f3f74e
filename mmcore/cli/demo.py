"""``mmcore demo``: the main job on a clip that mmcore renders itself, step by step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
    out.print(
        f"   {path}: {clip.num_frames} frames of {clip.width}x{clip.height} at {clip.fps} fps, "
        f"H.264, AAC stereo, {len(clip.events)} subtitles, {format_bytes(path.stat().st_size)}, "
        f"in {seconds:.1f} s.",
        markup=False,
    )

    _step(out, 2, "Decode every frame to a model's input tensor")
    transform = mmcore.FrameTransform(resize=SHORT_SIDE, crop=CROP, mean=MEAN, std=STD)
    with _working(out, "measuring"):
        ways = _measure(path, transform)
    raw, ours, usual = (ways[name] for name in ("raw", "mmcore", "usual"))
    frames: torch.Tensor = ours.result
    out.print(
        f"   Short side to {SHORT_SIDE}, centre crop {CROP}, normalise: {frames.dtype} "
        f"{tuple(frames.shape)}, mean {frames.mean():.3f}, deviation {frames.std():.3f}.",
        markup=False,
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
    out.print(
        f"   Medians of {ROUNDS} interleaved rounds, each opening the file anew; threads: "
        f"{mmcore.get_num_threads()}. The two tensors differ by {levels:.2f} levels (of 255) on average."
    )

    _step(out, 3, f"Read {SPARSE} frames spread over the clip")
    wanted = spread(clip.num_frames, SPARSE)
    with mmcore.VideoDecoder(path, transform=transform) as decoder:
        batch, seconds = _timed(lambda: decoder.get_frames_at(wanted))
    same = bool((batch.data == frames[wanted]).all())
    out.print(
        f"   Frames {', '.join(map(str, wanted))} in {seconds * 1000:.0f} ms; "
        f"{'bit for bit those' if same else 'DIFFERENT from those'} of step 2."
    )

    _step(out, 4, "Check the clock: a flash, a click and a word begin together")
    sound, rate = _read_sound(path)
    with mmcore.VideoDecoder(path) as decoder:
        for event in clip.events[:3]:
            before, at = (decoder.get_frame_played_at(event.seconds + d) for d in (-0.01, 0.01))
            jump = at.data.float().mean() - before.data.float().mean()
            click = _onset(sound, rate, event.seconds)
            out.print(
                f"   {event.word!r} at {event.seconds:.3f} s: picture at {at.pts_seconds:.3f} s brighter by "
                f"{jump:.0f} levels, click at {click:.3f} s.",
                markup=False,
            )

    _step(out, 5, "Draw it")
    picture = output / "demo.png"
    with _working(out, "drawing"):
        _draw(picture, clip, transform, ways, sound, rate)
    out.print(f"   {picture}: the clip, what the model receives, and the common clock.", markup=False)
    out.print(f"\nNext: [bold]mmcore info {path}[/bold]  or  [bold]mmcore decode --help[/bold]")


class Way:
    """One way to read the clip: its last result, time per frame and ratio to the raw decode."""

    def __init__(self, run: Callable[[], Any]) -> None:
        self.run = run
        self.result: Any = None
        self.times: list[float] = []
        self.milliseconds = self.ratio = 0.0


def _measure(path: Path, transform: FrameTransform) -> dict[str, Way]:
    """Time the raw decode, mmcore and the usual pipeline in turns."""
    import mmcore

    def ours() -> torch.Tensor:
        with mmcore.VideoDecoder(path, transform=transform) as decoder:
            return decoder[:]

    ways = {"raw": Way(lambda: _raw(path)), "mmcore": Way(ours), "usual": Way(lambda: _usual(path))}
    for _ in range(ROUNDS + 1):
        for way in ways.values():
            way.result = None  # its memory may be used again
            way.result, seconds = _timed(way.run)
            way.times.append(seconds)
    count = ways["raw"].result
    for way in ways.values():
        del way.times[0]  # the first round warms up
        way.milliseconds = statistics.median(way.times) / count * 1000
        way.ratio = statistics.median(t / r for t, r in zip(way.times, ways["raw"].times, strict=True))
    return ways


def _open(path: Path) -> Any:
    import av

    import mmcore

    container = av.open(str(path))
    context = container.streams.video[0].codec_context
    context.thread_count, context.thread_type = mmcore.get_num_threads(), "FRAME"
    return container


def _raw(path: Path) -> int:
    with _open(path) as container:
        return sum(1 for _ in container.decode(video=0))


def _usual(path: Path) -> torch.Tensor:
    """The same job with the tools at hand before mmcore."""
    import torch

    result = []
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    with _open(path) as container:
        for frame in container.decode(video=0):
            rgb = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1).unsqueeze(0)
            size = (SHORT_SIDE, SHORT_SIDE * rgb.shape[3] // rgb.shape[2])
            x = torch.nn.functional.interpolate(rgb, size, mode="bilinear", antialias=True)
            top, left = round((size[0] - CROP) / 2), round((size[1] - CROP) / 2)
            result.append((x[0, :, top : top + CROP, left : left + CROP] / 255 - mean) / std)
    return torch.stack(result)


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def _step(out: Console, number: int, text: str) -> None:
    out.print(f"\n[bold cyan]{number}[/]  [bold]{text}[/]")


def _working(out: Console, text: str) -> Any:
    return out.status(f"{text} ...")


def _read_sound(path: Path) -> tuple[np.ndarray[Any, Any], int]:
    import av
    import numpy as np

    with av.open(str(path)) as container:
        rate: int = container.streams.audio[0].rate
        parts = [frame.to_ndarray() for frame in container.decode(audio=0)]
    return np.concatenate(parts, axis=1).mean(axis=0), rate


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
    margin, gap, columns = 30, 12, 6
    tile_w = 236
    tile_h = round(tile_w * clip.height / clip.width)
    width = 2 * margin + columns * tile_w + (columns - 1) * gap
    first = clip.events[0].frame
    chosen = [first - 8, first - 2, first, first + 2, first + 10, first + 21]
    shrink = mmcore.FrameTransform(resize=(tile_h, tile_w), dtype=torch.uint8, layout="NHWC")
    with mmcore.VideoDecoder(clip.path, transform=shrink) as decoder:
        small = decoder.get_frames_at(chosen).data
    seen = to_pictures(frames[chosen], transform, len(chosen), CROP, CROP)

    top_clip, top_seen = 110, 110 + tile_h + 70
    top_plot = top_seen + CROP + 60
    canvas = Canvas(top_plot + 330, width)
    canvas.text(margin, 46, "mmcore: a video file becomes a model's input", size=17, weight="bold")
    canvas.text(
        margin,
        70,
        f"{clip.width}x{clip.height} H.264 to {tuple(frames.shape)} {frames.dtype}",
        size=10,
        color=DIM,
    )
    canvas.text(margin, top_clip - 12, "Decoded frames", size=11)
    canvas.text(
        margin,
        top_seen - 12,
        f"What the model receives: resized, cropped to {CROP}x{CROP}, normalised",
        size=11,
    )
    for i, frame in enumerate(chosen):
        left = margin + i * (tile_w + gap)
        canvas.picture(top_clip, left, small[i])
        canvas.text(left, top_clip + tile_h + 16, f"{frame / clip.fps:.3f} s   #{frame}", size=8, color=DIM)
        canvas.picture(top_seen, left + (tile_w - CROP) // 2, seen[i])

    plot = canvas.axes(margin + 40, top_plot + 14, 960, 230)
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
    canvas.text(margin + 40, top_plot, "One clock: brightness of the tensor", size=11, color="#ffc857")
    canvas.text(margin + 320, top_plot, "sound", size=11, color="#4aa8ff")
    canvas.text(margin + 380, top_plot, "words", size=11)

    bars = canvas.axes(margin + 1190, top_plot + 14, width - margin - (margin + 1190), 230)
    names = {"raw": "decode only", "mmcore": "mmcore", "usual": "PyAV + torch"}
    values = [ways[name].milliseconds for name in names]
    bars.barh(list(names.values()), values, color=["#5c6370", "#ffc857", "#5c6370"], height=0.55)
    for i, name in enumerate(names):
        bars.text(values[i], i, f" {ways[name].ratio:.2f}x", va="center", color=FOREGROUND, size=9)
    bars.invert_yaxis()
    bars.set(xlim=(0, max(values) * 1.25), xlabel="ms per frame")
    canvas.text(margin + 1190, top_plot, "Time, and as a multiple of decoding only", size=11)
    canvas.save(path)
