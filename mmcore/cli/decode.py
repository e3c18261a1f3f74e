"""``mmcore decode``: pictures, sound and words of a file as tensors on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmcore.cli.info import describe
from mmcore.cli.pictures import to_pictures, write_sheet
from mmcore.cli.render import console, format_bytes, warn
from mmcore.cli.selection import read, select, spread
from mmcore.cli.sound_and_words import (
    audio_metadata,
    held_kinds,
    open_audio,
    open_text,
    read_audio,
    read_text,
    text_metadata,
    words_at,
)
from mmcore.errors import DecodeError

if TYPE_CHECKING:
    import torch


__all__ = ["decode"]

SHEET_FRAMES = 24


class Interpolation(Enum):
    """Ways to resize."""

    bilinear = "bilinear"
    bicubic = "bicubic"
    area = "area"
    nearest = "nearest"


class DType(Enum):
    """Types of the result."""

    uint8 = "uint8"
    float16 = "float16"
    bfloat16 = "bfloat16"
    float32 = "float32"


class Accuracy(Enum):
    """Where the conversion rounds."""

    fused = "fused"
    rgb8 = "rgb8"


class Chroma(Enum):
    """Where subsampled chroma lies."""

    sited = "sited"
    nearest = "nearest"
    left = "left"
    center = "center"
    topleft = "topleft"


class Matrix(Enum):
    """YUV to RGB matrices."""

    bt601 = "601"
    bt709 = "709"
    bt2020 = "2020"


def _numbers(text: str, option: str, kind: type, form: str) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"expected {form}, got {text!r}", param_hint=option) from None


def _size(text: str | None, option: str) -> Any:
    if text is None:
        return None
    values = _numbers(text.replace("x", ","), option, int, "N or HEIGHTxWIDTH, as 224 or 224x320")
    return values[0] if len(values) == 1 else tuple(values)


def _color(text: str | None, option: str) -> Any:
    if text is None:
        return None
    values = _numbers(text, option, float, "one number or three separated by commas")
    return values[0] if len(values) == 1 else tuple(values)


def _layout(text: str) -> Any:
    name, _, sizes = text.partition(":")
    if name.lower() != "patches":
        return text.upper()
    from mmcore import patches

    form = "patches:PATCH[,TEMPORAL[,MERGE]], as patches:14,2,2"
    values = _numbers(sizes, "--layout", int, form)
    if len(values) > 3:
        raise typer.BadParameter(f"expected {form}, got {text!r}", param_hint="--layout")
    return patches(*values)


_BESIDE: Any = {"rich_help_panel": "Sound and words"}


def decode(
    file: Annotated[Path, typer.Argument(help="The media file.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write: .pt, .npz or .safetensors.", show_default=False),
    ] = None,
    preview: Annotated[Path | None, typer.Option(help="Write a contact sheet to this PNG file.")] = None,
    resize: Annotated[str | None, typer.Option(help="Length of the short side, or HEIGHTxWIDTH.")] = None,
    crop: Annotated[str | None, typer.Option(help="Centre crop after the resize: N or HEIGHTxWIDTH.")] = None,
    interpolation: Annotated[Interpolation, typer.Option(help="How to resize.")] = Interpolation.bilinear,
    antialias: Annotated[bool, typer.Option(help="Widen the filter when shrinking.")] = True,
    mean: Annotated[
        str | None, typer.Option(help="Subtracted from R,G,B in 0-1: one number or three.")
    ] = None,
    std: Annotated[
        str | None, typer.Option(help="Divides R,G,B after the mean: one number or three.")
    ] = None,
    scale: Annotated[float | None, typer.Option(help="Factor from levels 0-255 to values.  [1/255]")] = None,
    dtype: Annotated[
        DType | None,
        typer.Option(help="Type of frames; uint8, or float32 with --mean, --std or --scale."),
    ] = None,
    layout: Annotated[
        str, typer.Option(help="NCHW, NHWC, CNHW, or patches:PATCH[,TEMPORAL[,MERGE]].")
    ] = "NCHW",
    accuracy: Annotated[Accuracy, typer.Option(help="Where the conversion rounds.")] = Accuracy.fused,
    chroma: Annotated[Chroma, typer.Option(help="Where subsampled chroma lies.")] = Chroma.sited,
    matrix: Annotated[Matrix | None, typer.Option(help="Override the stream's matrix.")] = None,
    full_range: Annotated[
        bool | None, typer.Option("--full-range/--limited-range", help="Override the stream's range.")
    ] = None,
    start: Annotated[float | None, typer.Option(help="First instant, in seconds.")] = None,
    stop: Annotated[float | None, typer.Option(help="Instant before which to stop, in seconds.")] = None,
    fps: Annotated[float | None, typer.Option(help="Resample to this many frames per second.")] = None,
    every: Annotated[int | None, typer.Option(min=1, help="Take every N-th frame.")] = None,
    num: Annotated[int | None, typer.Option(min=1, help="Take N frames spread evenly.")] = None,
    indices: Annotated[str | None, typer.Option(help="Take these frames: 0,10,20; -1 is the last.")] = None,
    stream_index: Annotated[int | None, typer.Option(help="Video stream, by its index in the file.")] = None,
    num_threads: Annotated[
        int | None, typer.Option(min=1, help="Threads for decoding and conversion.")
    ] = None,
    video: Annotated[
        bool | None, typer.Option("--video/--no-video", help="Read frames; by default if there are any.")
    ] = None,
    audio: Annotated[
        bool | None,
        typer.Option("--audio/--no-audio", help="Read sound; by default if there is any.", **_BESIDE),
    ] = None,
    sample_rate: Annotated[
        int | None, typer.Option(min=1, help="Resample to this many Hz, as 16000.", **_BESIDE)
    ] = None,
    channels: Annotated[
        int | None, typer.Option(min=1, max=8, help="Mix to this many channels.", **_BESIDE)
    ] = None,
    audio_stream: Annotated[
        int | None, typer.Option(help="Audio stream, by its index in the file.", **_BESIDE)
    ] = None,
    text: Annotated[
        bool | None,
        typer.Option("--text/--no-text", help="Read subtitles; by default if there are any.", **_BESIDE),
    ] = None,
    language: Annotated[str | None, typer.Option(help="Language of the subtitles, as en.", **_BESIDE)] = None,
    sidecar: Annotated[
        Path | None, typer.Option(help="Read this subtitle file, not one named after FILE.", **_BESIDE)
    ] = None,
    text_stream: Annotated[
        int | None, typer.Option(help="Subtitle stream, by its index in the file.", **_BESIDE)
    ] = None,
) -> None:
    """Decode FILE to a tensor file and/or a contact sheet.

    The file written holds what FILE has of these: "frames", "pts_seconds", "duration_seconds" and "indices";
    "audio"; and "metadata", with the words in it.
    """
    if output is None and preview is None:
        raise typer.BadParameter("nothing to write: give --output, --preview or both")
    if output is not None and output.suffix.lower() not in WRITERS:
        expected = ", ".join(WRITERS)
        raise typer.BadParameter(f"{output}: expected a name that ends in {expected}", param_hint="--output")
    if preview is not None and preview.suffix.lower() != ".png":
        raise typer.BadParameter(f"{preview}: expected a name that ends in .png", param_hint="--preview")
    chosen = [
        name for name, value in (("--fps", fps), ("--every", every), ("--num", num)) if value is not None
    ]
    if len(chosen) > 1 or (indices is not None and (chosen or start is not None or stop is not None)):
        raise typer.BadParameter(
            "give only one of --fps, --every, --num and --indices (which takes no times)"
        )

    import mmcore

    if dtype is None:
        dtype = DType.uint8 if mean is None and std is None and scale is None else DType.float32
    import torch

    transform = mmcore.FrameTransform(
        resize=_size(resize, "--resize"),
        crop=_size(crop, "--crop"),
        interpolation=interpolation.value,
        antialias=antialias,
        mean=_color(mean, "--mean"),
        std=_color(std, "--std"),
        scale=scale,
        dtype=getattr(torch, dtype.value),
        layout=_layout(layout),
        accuracy=accuracy.value,
        chroma=chroma.value,
        matrix=None if matrix is None else matrix.value,
        full_range=full_range,
    )
    if output is not None and output.suffix.lower() == ".npz" and transform.dtype == torch.bfloat16:
        raise ValueError("--dtype: numpy has no bfloat16, so .npz cannot hold it; write .pt or .safetensors")
    for target in (output, preview):
        if target is not None and not target.absolute().parent.is_dir():
            raise FileNotFoundError(f"{target}: the folder {target.absolute().parent} does not exist")
        if target is not None and target.is_dir():
            raise IsADirectoryError(f"{target}: is a directory, expected the name of a file to write")

    kinds = held_kinds(file)
    read_video = ("video" in kinds or stream_index is not None) if video is None else video
    audio_chosen = bool(audio) or audio_stream is not None
    text_chosen = bool(text) or not (language is None and sidecar is None and text_stream is None)
    if (audio is False and audio_chosen) or (text is False and text_chosen):
        raise typer.BadParameter("--no-audio and --no-text leave no choice of a stream, file or language")
    audio_required, text_required = audio_chosen or kinds == {"audio"}, text_chosen or kinds == {"subtitle"}
    if preview is not None and not read_video:
        raise DecodeError(f"{file}: has no pictures for --preview")
    tensors: dict[str, torch.Tensor] = {}
    metadata: dict[str, Any] = {"mmcore": mmcore.__version__, "source": file.name}
    metadata |= dict.fromkeys(("stream", "transform", "audio", "text"))
    parts: list[str] = []
    with ExitStack() as stack:
        sound = words = None
        if output is not None and audio is not False and (audio_chosen or "audio" in kinds):
            sound = open_audio(
                file,
                required=audio_required,
                stream_index=audio_stream,
                sample_rate=sample_rate,
                channels=channels,
            )
            if sound is not None:
                stack.enter_context(sound)
        if text is not False and (text_chosen or "subtitle" in kinds):
            words = open_text(
                file,
                required=text_required,
                stream_index=text_stream,
                language=language,
                sidecar=sidecar,
            )
        if not read_video and sound is None and words is None:
            raise DecodeError(f"{file}: no pictures, sound or words to read")
        if read_video:
            decoder = stack.enter_context(
                mmcore.VideoDecoder(
                    file, stream_index=stream_index, num_threads=num_threads, transform=transform
                )
            )
            listed = (
                None if indices is None else _numbers(indices, "--indices", int, "whole numbers, as 0,10,20")
            )
            wanted, times = select(
                decoder, start=start, stop=stop, fps=fps, every=every, num=num, indices=listed
            )
            if output is None:  # only a picture: no need for more frames than it shows
                shown = spread(len(wanted), SHEET_FRAMES)
                wanted, times = [wanted[i] for i in shown], times and [times[i] for i in shown]
            frames, pts, duration = read(decoder, transform, wanted)
            if times is not None and fps is not None:  # resampled: each frame stands for a step of the rate
                pts, duration = torch.tensor(times, dtype=torch.float64), torch.full_like(pts, 1 / fps)
            if decoder.metadata.damage is not None:
                warn(f"{file}: breaks off after {len(decoder)} frames: {decoder.metadata.damage}")
            tensors |= {
                "frames": frames,
                "pts_seconds": pts,
                "duration_seconds": duration,
                "indices": torch.tensor(wanted, dtype=torch.int64),
            }
            metadata |= {"stream": describe(decoder.metadata), "transform": json.loads(transform.spec)}
            parts.append(_summary("frames", frames))
        if sound is not None:
            samples = read_audio(sound, file, start, stop, required=audio_required)
            if samples is not None:
                tensors["audio"] = samples.data
                metadata["audio"] = audio_metadata(sound, samples)
                parts.append(_summary(f"audio at {samples.sample_rate} Hz", samples.data))
        if words is not None:
            segments = read_text(words, start, stop)
            metadata["text"] = text_metadata(words, segments)
            parts.append(f"text of {len(segments)} segment{'s' * (len(segments) != 1)}")
        if output is not None:
            save(output, tensors, metadata)
            console().print(f"{output}: {'; '.join(parts)}", markup=False, soft_wrap=True)
        if preview is not None:
            meta = decoder.metadata
            geometry = transform.geometry(meta.height, meta.width)
            pictures = to_pictures(frames, transform, len(wanted), geometry.out_h, geometry.out_w)
            shown = spread(len(wanted), SHEET_FRAMES)
            write_sheet(
                preview,
                pictures[shown],
                [f"{pts[i]:.3f} s   #{wanted[i]}   {words_at(words, pts[i].item())}" for i in shown],
                file.name,
                f"{meta.width}x{meta.height}  {meta.codec}  {meta.average_fps or 0:.2f} fps  "
                f"{len(shown)} of {meta.num_frames} frames, shown as {geometry.out_w}x{geometry.out_h}",
            )
            console().print(f"{preview}: contact sheet of {len(shown)} frames", markup=False)


def _summary(name: str, tensor: torch.Tensor) -> str:
    shape, dtype = "x".join(map(str, tensor.shape)), str(tensor.dtype).removeprefix("torch.")
    return f"{name} {shape} {dtype}, {format_bytes(tensor.numel() * tensor.element_size())}"


def save(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
    """Write in the format that the name's ending says; the file appears whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        WRITERS[path.suffix.lower()](part, tensors, metadata)
        part.replace(path)
    except RuntimeError as error:  # how torch and safetensors report a full disk
        raise OSError(f"{path}: could not be written: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def _write_pt(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
    import torch

    torch.save({**tensors, "metadata": metadata}, path)


def _write_npz(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
    import numpy as np

    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
    with open(path, "wb") as file:  # by name, savez would append ".npz"
        np.savez(file, metadata=json.dumps(metadata), **arrays)


def _write_safetensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    save_file(tensors, path, metadata={"metadata": json.dumps(metadata)})


WRITERS: dict[str, Callable[[Path, dict[str, Any], dict[str, Any]], None]] = {
    ".pt": _write_pt,
    ".npz": _write_npz,
    ".safetensors": _write_safetensors,
}
