"""``mmcore demo``: the main job on a clip that mmcore renders itself, step by step."""

from __future__ import annotations

import statistics
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmcore.cli.demo_figure import Bar, DemoFigure
from mmcore.cli.demo_training import missing_packages, results, train_smallest
from mmcore.cli.info import collect
from mmcore.cli.render import console, format_bytes, table
from mmcore.cli.selection import spread

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from mmcore import AudioDecoder, FrameTransform

__all__ = ["demo"]

SHORT_SIDE, CROP = 256, 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ROUNDS = 5
SPARSE = 8


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the clip, the picture and the model.")
    ] = Path("mmcore-demo"),
    train: Annotated[
        bool, typer.Option("--train/--no-train", help="Train a small network at the end, in a minute or two.")
    ] = True,
) -> None:
    """Render a clip, decode its pictures, sound and words, time that, draw it, and train a small network."""
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

    _step(out, 4, "Read the sound and the words")
    settings = mmcore.LogMelSettings.whisper()
    with mmcore.AudioDecoder(path, sample_rate=settings.sample_rate, num_channels=1) as listener:
        sound, decoding = _timed(listener.get_all_samples)
    mels, transforming = _timed(lambda: mmcore.log_mel(sound.data, sound.sample_rate, settings)[0])
    words = mmcore.TextDecoder(path)
    tokens = mmcore.tokenize_segments(words, mmcore.ByteTokenizer())
    _say(
        out,
        f"Sound: mono at {sound.sample_rate} Hz, {tuple(sound.data.shape)} in {decoding * 1000:.0f} ms;"
        f" log-mel as Whisper's, {tuple(mels.shape)} in {transforming * 1000:.1f} ms.",
    )
    _say(
        out,
        f"Words: {', '.join(segment.text for segment in words)}; {len(tokens)} byte tokens with their times.",
    )

    _step(out, 5, "Check the clock: a flash, a click and a word begin together")
    with (
        mmcore.VideoDecoder(path) as decoder,
        mmcore.AudioDecoder(path, num_channels=1) as listener,
    ):
        for segment in words[:3]:
            before, at = (decoder.get_frame_played_at(segment.start + d) for d in (-0.01, 0.01))
            jump = at.data.float().mean() - before.data.float().mean()
            _say(
                out,
                f"{segment.text!r} at {segment.start:.3f} s: picture {jump:.0f} levels brighter from"
                f" {at.pts_seconds:.3f} s, click at {_onset(listener, segment.start):.3f} s.",
            )

    _step(out, 6, "Draw it")
    picture = output / "demo.png"
    with _working(out, "drawing"):
        names = {"raw": "decode only", "mmcore": "mmcore", "usual": "PyAV + torch"}
        bars = [Bar(name, ways[key].milliseconds, ways[key].ratio) for key, name in names.items()]
        DemoFigure(clip, frames, transform, mels, settings, sound, words, bars).write(picture)
    _say(out, f"{picture}: pictures, log-mel and words on one time axis, the model's input, and the times.")
    if train:
        _train(out, output)
    out.print()
    _say(out, f"Next: mmcore info {path}, or mmcore decode --help.")


def _train(out: Console, output: Path) -> None:
    """Train the recipe classify at its smallest; without its packages, say what to install."""
    _step(out, 7, "Train a network that sees, hears and reads")
    missing = missing_packages()
    if missing:
        _say(out, f"Left out: it needs {' and '.join(missing)}. To have them: pip install 'mmcore[recipes]'")
        return
    folder = output / "classify"
    _say(
        out,
        "Clips that show a handwritten digit, say another, and write what to do with the two are rendered,"
        " then decoded again for every step of the training; a minute or two.",
    )
    result, seconds = _timed(lambda: train_smallest(folder))
    history = result.history
    _say(
        out,
        f"{len(history.steps)} steps; {seconds:.0f} s in all. Writers and voices that it never met:",
    )
    out.print(results(result))
    _say(out, f"{result.report}: losses, confusions, what each modality contributes. Open it in a browser.")
    example = folder / "clips" / "test" / "00000.mkv"
    _say(out, f"Ask it: mmcore classify {example} --model {folder}")


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


def _onset(decoder: AudioDecoder, near: float) -> float:
    """Instant within 0.1 s of ``near`` at which the sound first jumps."""
    samples = decoder.get_samples_played_in_range(near - 0.1, near + 0.1)
    jumps = samples.data[0].diff().abs()
    first = int((jumps > 0.25 * jumps.max()).nonzero()[0])
    return samples.pts_seconds + (first + 1) / samples.sample_rate
