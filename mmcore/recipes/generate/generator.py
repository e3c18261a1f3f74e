"""The trained generator: :class:`Generator`, and :func:`load`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from mmcore import models
from mmcore.errors import MMCoreError
from mmcore.recipes.generate.autoencoder import FrameAutoencoder
from mmcore.recipes.generate.flow import LatentFlow, TextToVideo

__all__ = ["Generator", "load"]


class Generator:
    """Makes videos of prompts.

    Parameters
    ----------
    model : TextToVideo
        It is put into evaluation mode.

    Attributes
    ----------
    values : dict of str to tuple of str
        What a prompt may say, by attribute.
    """

    def __init__(self, model: TextToVideo) -> None:
        self.model = model.eval()
        self.values = model.prompts.values

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        num_clips: int = 1,
        seed: int = 0,
        steps: int = 20,
        guidance: float = 2.0,
    ) -> Tensor:
        """Make clips.

        Parameters
        ----------
        prompt : str or sequence of str
            Such as "a large red circle moving left". What it leaves out is the generator's choice. Of several
            prompts, the clips of each follow one another.
        num_clips : int
            Different clips of each prompt.
        seed : int
            The same seed gives the same clips on one machine, and nearly the same on another.
        steps : int
            From noise to frames; more are finer and slower.
        guidance : float
            How much more the prompt counts than it does in the data; 1 is as it does, 0 ignores it.

        Returns
        -------
        Tensor
            (N, T, 3, H, W) uint8 RGB, N being ``num_clips`` for each prompt.

        Raises
        ------
        WordsError
            A ValueError, for words that are not known (the message lists those that are), two values of one
            attribute, or a prompt without any.
        ValueError
            If ``num_clips`` or ``steps`` is below 1, or there is no prompt.
        """
        for name, value in (("num_clips", num_clips), ("steps", steps)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise ValueError("prompt: expected at least one, got an empty sequence")
        said = [self.model.prompts.parse(text) for text in prompts for _ in range(num_clips)]
        return self.model.generate(said, seed=seed, steps=steps, guidance=guidance)


def load(folder: str | os.PathLike[str], *, device: str = "cpu") -> Generator:
    """Load the generator that :func:`mmcore.recipes.generate.train` wrote to a folder.

    Raises
    ------
    FileNotFoundError
        If there is none.
    MMCoreError
        If it is damaged, or of another kind.
    """
    classes = {"TextToVideo": TextToVideo, "FrameAutoencoder": FrameAutoencoder, "LatentFlow": LatentFlow}
    model = models.load(folder, classes=classes, device=device)
    if not isinstance(model, TextToVideo):
        raise MMCoreError(f"{Path(folder)}: expected a text-to-video model, got {type(model).__name__}")
    return Generator(model)
