"""``mmcore speak``: text to a sound file, or onto a video, with a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmcore.cli.render import console, warn

__all__ = ["speak"]


def speak(
    text: Annotated[
        str, typer.Argument(help="What to say, in English; - reads standard input.", show_default=False)
    ],
    model: Annotated[
        Path,
        typer.Option("--model", "-m", help="Folder that `mmcore train speak` wrote.", show_default=False),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="File to write: .wav, .flac, .mp3, ...; with --onto a video."),
    ] = Path("speech.wav"),
    onto: Annotated[
        Path | None,
        typer.Option(
            help="Video to put the speech under. Its pictures are encoded again, its own sound is left out.",
            show_default=False,
        ),
    ] = None,
    subtitle: Annotated[bool, typer.Option("--subtitle", help="With --onto: show the text, too.")] = False,
    speed: Annotated[float, typer.Option(help="2 is twice as fast.")] = 1.0,
) -> None:
    """Speak a text with a model that the recipe speak trained."""
    import mmcore

    if subtitle and onto is None:
        raise typer.BadParameter("needs --onto", param_hint="--subtitle")
    said = " ".join((typer.get_text_stream("stdin").read() if text == "-" else text).split())
    from mmcore.recipes.speak import load

    speaker = load(model)
    unheard = speaker.unheard(said)
    if unheard:
        warn(f"not among the words it was trained on, spoken as their phonemes say: {', '.join(unheard)}")
    samples, sample_rate = speaker.speak(said, speed=speed)
    if onto is None:
        mmcore.encode(output, audio=samples, sample_rate=sample_rate)
    else:
        from mmcore.recipes.speak.dubbing import speak_onto

        speak_onto(onto, samples, sample_rate, output, text=said if subtitle else None)
    what = "" if onto is None else f", under the pictures of {onto}"
    console().print(f"{output}: {len(samples) / sample_rate:.2f} s of speech{what}", markup=False)
