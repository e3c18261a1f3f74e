"""Text to video: a small latent flow-matching generator, judged by a classifier of real clips.

:func:`train` trains autoencoder, flow and judge and measures them; :func:`load` gives the :class:`Generator`.
"""

from __future__ import annotations

from mmcore.recipes.generate.generator import Generator, load
from mmcore.recipes.generate.prompts import WordsError
from mmcore.recipes.generate.training import train

__all__ = ["Generator", "WordsError", "load", "train"]
