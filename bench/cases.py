"""What is measured: the jobs, their clips and their transforms, in one table."""

from __future__ import annotations

from dataclasses import dataclass

from bench import media

__all__ = ["DECODE_CASES", "MEAN", "STD", "Job"]

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Job:
    """A clip becoming (T, 3, 224, 224) float32, normalised.

    ``resize`` is the (height, width) that the whole frame is resized to with antialiased bilinear weights,
    None where it already has that size; ``crop`` the (top, left, height, width) taken from it, None for all
    of it.
    """

    clip: media.Clip
    kind: str
    resize: tuple[int, int] | None
    crop: tuple[int, int, int, int] | None

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
    def make(cls, clip: media.Clip, kind: str) -> Job:
        """``kind`` "crop": short side to 256, centre crop 224. "direct": resize to 224 x 224."""
        if kind == "direct":
            return cls(clip, kind, (224, 224), None)
        if kind != "crop":
            raise ValueError(f"kind: expected 'crop' or 'direct', got {kind!r}")
        h, w = clip.height, clip.width
        size = (256, int(256 * w / h)) if h <= w else (int(256 * h / w), 256)
        box = (round((size[0] - 224) / 2), round((size[1] - 224) / 2), 224, 224)
        return cls(clip, kind, None if size == (h, w) else size, box)


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
