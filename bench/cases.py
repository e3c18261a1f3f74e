"""What is measured: the jobs, their clips and their transforms, in one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from bench import media

__all__ = ["DECODE_CASES", "MEAN", "STD", "DecodeCase", "Job", "SparseCase", "sparse_cases"]

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Job:
    """A clip becoming (T, 3, 224, 224) float32, normalised.

    ``resize`` is the (height, width) that the whole frame is resized to with antialiased bilinear weights,
    None where it already has that size; ``crop`` the (top, left, height, width) taken from it, None for all
    of it. ``targets`` are the numbers of the frames that are wanted, ascending; None for all.
    """

    clip: media.Clip
    kind: str
    resize: tuple[int, int] | None
    crop: tuple[int, int, int, int] | None
    targets: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """Name in tables: clip and kind of job."""
        return f"{self.clip.name} {self.kind}"

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) after the resize."""
        return self.resize or (self.clip.height, self.clip.width)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(top, left, height, width) of the crop, or the whole picture."""
        return self.crop or (0, 0, *self.size)

    @classmethod
    def make(cls, clip: media.Clip, kind: str, targets: tuple[int, ...] | None = None) -> Job:
        """``kind`` "crop": short side to 256, centre crop 224. "direct": resize to 224 x 224."""
        if kind == "direct":
            return cls(clip, kind, (224, 224), None, targets)
        if kind != "crop":
            raise ValueError(f"kind: expected 'crop' or 'direct', got {kind!r}")
        h, w = clip.height, clip.width
        size = (256, int(256 * w / h)) if h <= w else (int(256 * h / w), 256)
        box = (round((size[0] - 224) / 2), round((size[1] - 224) / 2), 224, 224)
        return cls(clip, kind, None if size == (h, w) else size, box, targets)


@dataclass(frozen=True)
class DecodeCase:
    """One row of the end-to-end suite, with the goals it is held to (None: none stated)."""

    codec: str
    width: int
    height: int
    kind: str
    most_times_raw: float | None = None
    least_times_best_peer: float | None = None

    @property
    def name(self) -> str:
        """The name that its job gets."""
        return f"{self.codec} {self.width}x{self.height} {self.kind}"


DECODE_CASES = (
    DecodeCase("h264", 1920, 1080, "crop", 1.05, 1.5),
    DecodeCase("h264", 1280, 720, "crop", 1.06, 2.0),
    DecodeCase("h264", 340, 256, "crop", 1.30, 2.2),
    DecodeCase("h264", 340, 256, "direct", 1.40, 2.8),
    DecodeCase("hevc", 1280, 720, "crop"),
    DecodeCase("vp9", 1280, 720, "crop"),
    DecodeCase("av1", 1280, 720, "crop"),
)
"""The rows with goals first, then the other codecs at 720p; a quick run takes only rows with goals."""


@dataclass(frozen=True)
class SparseCase:
    """One row of the sparse suite.

    Attributes
    ----------
    group : {"sparse", "dense", "one frame", "long file"}
        Which table it belongs to.
    clip : str
        "codec widthxheight", with " gop N"; or "2 hours".
    targets : int, tuple of int or None
        How many frames, uniformly over the clip's 300; which ones (none: only opened); or all.
    goals : dict
        "times_yardstick", at most; "times_best_peer", at least; "milliseconds", at most with a saved index.
    """

    group: str
    clip: str
    targets: int | tuple[int, ...] | None
    goals: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name in tables: the clip and the frames."""
        if self.targets is None:
            return f"{self.clip} all frames"
        if isinstance(self.targets, int):
            return f"{self.clip} k={self.targets}"
        return f"{self.clip} frame {self.targets[0]}" if self.targets else f"{self.clip} opened"

    def job(self) -> Job:
        """The clip, made on first use, and what is wanted of it."""
        if self.clip == LONG:
            clip, kind = media.long_clip(), "direct"
        else:
            codec, size, *gop = self.clip.replace(" gop ", " ").split(" ")
            width, height = map(int, size.split("x"))
            clip = media.clip(codec, width, height, gop=int(gop[0]) if gop else None)
            kind = "crop"
        targets = self.targets
        if isinstance(targets, int):
            targets = tuple(int(i) for i in np.linspace(0, 299, targets).round())
        return Job.make(clip, kind, targets)


LONG = "2 hours"
_MOST = {
    "h264": {8: 0.45, 16: 0.58, 32: 0.60},
    "hevc": {8: 0.45, 16: 0.58, 32: 0.60},
    "av1": dict.fromkeys((8, 16, 32), 0.90),
    "vp9": dict.fromkeys((8, 16, 32), 1.03),
}
_LEAST = {"h264": 1.8, "hevc": 1.8, "av1": 1.2, "vp9": 1.1}


def _sparse(codec: str, size: str, threads: int) -> list[SparseCase]:
    cases = []
    for k, most in _MOST[codec].items():
        one_core = {"times_yardstick": most, "times_best_peer": _LEAST[codec]}
        goals = one_core if threads == 1 else {"times_best_peer": 2.0}
        cases.append(SparseCase("sparse", f"{codec} {size}", k, goals))
    return cases


def sparse_cases(threads: int) -> list[SparseCase]:
    """Rows of the sparse suite with the goals for one or more threads; dense reading needs several."""
    cases = []
    for codec in _MOST:
        cases += _sparse(codec, "1280x720", threads)
    for codec in ("h264", "hevc"):
        cases += _sparse(codec, "1920x1080", threads)
    if threads > 1:
        goals = {"times_yardstick": 0.55, "times_best_peer": 1.5}
        cases += [SparseCase("dense", f"{codec} 1280x720 gop 60", None, goals) for codec in ("h264", "hevc")]
    at_once = {"times_best_peer": 2.0}
    cases += [SparseCase("one frame", "h264 340x256", (i,), at_once) for i in (0, 150)]
    cases.append(SparseCase("long file", LONG, (), {"milliseconds": 50}))
    cases.append(SparseCase("long file", LONG, (108_000,)))
    return cases
