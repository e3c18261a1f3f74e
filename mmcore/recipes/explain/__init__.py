"""Explaining a network's answer for one clip: what each modality, picture, sound and word did for it.

``explain`` finds it, as tensors; ``draw`` makes one picture of it; ``clip_times`` puts both on the clock of
the clip.
"""

from __future__ import annotations

from mmcore.recipes.explain.attribution import METHODS, attribute
from mmcore.recipes.explain.explanation import Explanation, clip_times, explain
from mmcore.recipes.explain.figure import draw

__all__ = ["METHODS", "Explanation", "attribute", "clip_times", "draw", "explain"]
