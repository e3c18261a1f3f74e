"""The same clips as files: what is trained in memory is used on media."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import mmcore
from mmcore.recipes.shapes import render_scene

from .pairs import CLIP_SECONDS, Pair, SoundPool
from .sounds import SAMPLE_RATE

__all__ = ["write_clips"]

_SIZE = 96  # three times what the model sees: files are resized, as anybody's are
_FPS = 12


def write_clips(folder: Path, pairs: Sequence[Pair], pool: SoundPool) -> list[Path]:
    """Write the clip of each pair as an MP4 with sound, and ``captions.json`` that says what each one is.

    Parameters
    ----------
    folder : Path
        Made if it is not there.
    pairs : sequence of Pair
    pool : SoundPool
        The one that they were drawn with, with its samples.

    Returns
    -------
    list of Path
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, pair in enumerate(pairs):
        frames = render_scene(
            pair.shown.scene,
            num_frames=round(CLIP_SECONDS * _FPS),
            height=_SIZE,
            width=_SIZE,
            seed=pair.scene_seed,
        )
        path = folder / f"clip-{number:03d}.mp4"
        mmcore.encode(path, frames=frames, fps=_FPS, audio=pool.waves[pair.sound], sample_rate=SAMPLE_RATE)
        paths.append(path)
    said = {path.name: pair.caption for path, pair in zip(paths, pairs, strict=True)}
    (folder / "captions.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    return paths
