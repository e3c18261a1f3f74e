"""Contact sheets: frames in a grid, each with a caption, as a PNG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from mmcore import FrameTransform

__all__ = ["Sheet", "sheet_for", "to_pictures", "write_sheet"]

BACKGROUND = "#15171c"
FOREGROUND = "#f2f2f2"
DIM = "#9aa0aa"
DPI = 100
CAPTION_LETTER = 6  # pixels of width, on average


@dataclass(frozen=True)
class Sheet:
    """Measures of a contact sheet in pixels."""

    rows: int
    columns: int
    tile_height: int
    tile_width: int
    margin: int = 20
    gap: int = 12
    caption: int = 24
    header: int = 64

    @property
    def width(self) -> int:
        """Width of the whole picture."""
        tiles = self.columns * self.tile_width + (self.columns - 1) * self.gap
        return max(2 * self.margin + tiles, 640)  # room for the header

    @property
    def height(self) -> int:
        """Height of the whole picture."""
        rows = self.rows * (self.tile_height + self.caption) + (self.rows - 1) * self.gap
        return self.header + rows + self.margin

    def corner(self, index: int) -> tuple[int, int]:
        """Top and left of tile ``index``."""
        row, column = divmod(index, self.columns)
        top = self.header + row * (self.tile_height + self.caption + self.gap)
        return top, self.margin + column * (self.tile_width + self.gap)


def sheet_for(count: int, height: int, width: int) -> Sheet:
    """Sheet for ``count`` frames of ``height`` x ``width`` pixels; no tile is larger than 320 pixels."""
    ratio = min(1.0, 320 / max(height, width))
    tile_h, tile_w = max(1, round(height * ratio)), max(1, round(width * ratio))
    columns = min(count, max(1, round(math.sqrt(count * 1.6 * (tile_h + 36) / (tile_w + 12)))))
    columns = max(columns, min(count, 600 // (tile_w + 12)))  # as many as the least width holds
    return Sheet(math.ceil(count / columns), columns, tile_h, tile_w)


def to_pictures(
    frames: torch.Tensor, transform: FrameTransform, num_frames: int, height: int, width: int
) -> torch.Tensor:
    """Undo normalisation and layout: what the model receives, as (num_frames, height, width, 3) uint8."""
    import torch

    from mmcore.ops.frame_transform import Patches

    x = frames.float()
    if isinstance(transform.layout, Patches):
        p = transform.layout
        gt, gh, gw = p.grid(num_frames, height, width)
        m, s, d = p.merge_size, p.patch_size, p.temporal_patch_size
        x = x.reshape(gt, gh // m, gw // m, m, m, 3, d, s, s).permute(0, 6, 1, 3, 7, 2, 4, 8, 5)
        x = x.reshape(gt * d, height, width, 3)[:num_frames]
    else:
        x = x.permute(*(transform.layout.index(c) for c in "NHWC"))
    mul, add = (torch.tensor(v) for v in transform.affine)
    return ((x - add) / mul).round().clamp(0, 255).to(torch.uint8)


def write_sheet(
    path: str | Path,
    pictures: torch.Tensor,
    captions: Sequence[str],
    title: str,
    subtitle: str = "",
) -> Sheet:
    """Write ``pictures`` (N, H, W, 3) uint8 as a contact sheet with a caption under each.

    Returns
    -------
    Sheet
        The measures of what was written.
    """
    import torch

    count, height, width = pictures.shape[:3]
    sheet = sheet_for(count, height, width)
    if (height, width) != (sheet.tile_height, sheet.tile_width):
        pictures = torch.nn.functional.interpolate(
            pictures.permute(0, 3, 1, 2),
            (sheet.tile_height, sheet.tile_width),
            mode="bilinear",
            antialias=True,
        ).permute(0, 2, 3, 1)
    canvas = Canvas(sheet.height, sheet.width)
    canvas.text(sheet.margin, 28, title, size=13, weight="bold")
    canvas.text(sheet.margin, 49, subtitle, size=9, color=DIM)
    for i in range(count):
        top, left = sheet.corner(i)
        canvas.picture(top, left, pictures[i])
        caption = captions[i].strip()
        fitting = sheet.tile_width // CAPTION_LETTER
        if len(caption) > fitting > 0:
            caption = f"{caption[: fitting - 1]}…"
        canvas.text(left, top + sheet.tile_height + 16, caption, size=8, color=DIM)
    canvas.save(path)
    return sheet


class Canvas:
    """A picture put together from pixels (exact) and text (drawn by matplotlib)."""

    def __init__(self, height: int, width: int) -> None:
        import numpy as np
        from matplotlib.colors import to_rgb
        from matplotlib.figure import Figure

        self.height = height
        # a hundredth of a pixel more, lest a size just below a whole number of pixels be truncated
        self.figure = Figure(((width + 0.01) / DPI, (height + 0.01) / DPI), dpi=DPI)
        color = np.array([round(255 * c) for c in to_rgb(BACKGROUND)], dtype=np.uint8)
        self.pixels = np.broadcast_to(color, (height, width, 3)).copy()

    def picture(self, top: int, left: int, pixels: torch.Tensor) -> None:
        """Copy (H, W, 3) uint8 pixels to the given place."""
        height, width = pixels.shape[:2]
        self.pixels[top : top + height, left : left + width] = pixels.numpy()

    def text(self, left: float, baseline: float, text: str, **options: Any) -> None:
        """Draw text; file names may hold any character, so nothing in it is markup."""
        style: dict[str, Any] = {"color": FOREGROUND, "family": "DejaVu Sans", "parse_math": False} | options
        width = self.pixels.shape[1]
        self.figure.text(left / width, 1 - baseline / self.height, text, va="baseline", **style)

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """Matplotlib axes at the given place, in the sheet's colours and without a frame."""
        w, h = self.pixels.shape[1], self.height
        axes = self.figure.add_axes((left / w, 1 - (top + height) / h, width / w, height / h))
        axes.patch.set_alpha(0)
        axes.tick_params(colors=DIM, labelsize=9, length=0)
        axes.xaxis.label.set(color=DIM, size=9)
        for spine in axes.spines.values():
            spine.set_visible(False)
        return axes

    def save(self, path: str | Path) -> None:
        """Write the PNG."""
        import warnings

        self.figure.figimage(self.pixels, zorder=-1)  # beneath axes
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # an exotic file name
            self.figure.savefig(path, format="png", dpi=DPI)
