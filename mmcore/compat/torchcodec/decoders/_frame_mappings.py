"""Custom frame mappings: a table of a stream's frames, made beforehand."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import mmcore

__all__ = ["FrameMappings"]

_FIELDS = (("pts", "pkt_pts"), ("duration", "pkt_duration"), ("key_frame",))


@dataclass(frozen=True)
class FrameMappings:
    """Frames in presentation order.

    Attributes
    ----------
    pts, duration : Tensor
        (N,) int64, in units of the stream's time base.
    key_frame : Tensor
        (N,) bool.
    """

    pts: Tensor
    duration: Tensor
    key_frame: Tensor

    @staticmethod
    def parse(mappings: Any) -> FrameMappings:
        """Read what ``ffprobe -show_frames -of json`` writes.

        Parameters
        ----------
        mappings : str, bytes or file-like object

        Raises
        ------
        ValueError
            If it is no JSON, or lacks one of the fields.
        """
        try:
            content = json.load(mappings) if hasattr(mappings, "read") else json.loads(mappings)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"Invalid custom frame mappings: {error}. Expected JSON text, or a file-like object of it."
            ) from error
        if not isinstance(content, dict) or not content.get("frames"):
            raise ValueError(
                "Invalid custom frame mappings. The input is empty or missing the required 'frames' key."
            )
        columns = []
        for names in _FIELDS:
            try:
                name = next(name for name in names if name in content["frames"][0])
                columns.append([int(frame[name]) for frame in content["frames"]])
            except (StopIteration, KeyError):
                raise ValueError(
                    "Invalid custom frame mappings. The 'pts'/'pkt_pts', 'duration'/'pkt_duration' and"
                    " 'key_frame' keys are required in the frame metadata."
                ) from None
        table = torch.tensor(columns, dtype=torch.int64, device="cpu")
        table = table[:, table[0].argsort(stable=True)]
        return FrameMappings(table[0], table[1], table[2].bool())

    def numbers_in(self, times: mmcore.decoding.FrameTimes) -> Tensor:
        """The frames' numbers in the file, (N,) int64.

        Raises
        ------
        ValueError
            If the file has no frame with a pts of the mappings.
        """
        tb = times.time_base
        in_file = (times.pts_seconds * tb.denominator / tb.numerator).round().long()
        numbers = torch.searchsorted(in_file, self.pts).clamp_(max=len(in_file) - 1)
        absent = self.pts[in_file[numbers] != self.pts]
        if len(absent):
            raise ValueError(
                f"custom_frame_mappings: the stream has no frame with pts {int(absent[0])}; its frames'"
                f" range from {int(in_file[0])} to {int(in_file[-1])}"
            )
        return numbers
