"""The video stream of a file that is written: tensors to planes to packets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from numbers import Rational
from typing import Any

import av
import torch
from av.container import OutputContainer
from torch import Tensor

from mmcore.errors import UnsupportedError
from mmcore.ops.pixel_formats import PIXEL_FORMATS
from mmcore.ops.tensor_to_planes import PlanesWriter, rgb_view
from mmcore.threads import get_num_threads

from .containers import encoder_codec
from .opening import add_stream, open_encoder

__all__ = ["VideoTrack", "frame_rate"]

# Frames converted at a time: enough for the threads, little memory.
_CHUNK = 8
# What the encoder is given by default: lossless ones keep RGB.
_FORMATS = {"ffv1": "bgra", "libx264rgb": "rgb24", "mjpeg": "yuvj420p"}
# ITU-T H.273 code points (primaries, transfer, matrix). 2020: the transfer of 10-bit standard dynamic range.
_TAGS = {"601": (6, 6, 6), "709": (1, 1, 1), "2020": (9, 14, 9), "rgb": (1, 13, 0)}
_WHOLE_CHROMA = ("libx264", "libx265", "h264_", "hevc_")


def frame_rate(fps: Any) -> Fraction:
    """``fps`` as an exact fraction; a float near 24, 30, 48, 60 or 120 times 1000/1001 is that number."""
    if isinstance(fps, (bool, str, bytes)):
        raise TypeError(f"fps: expected a number of frames per second, got {fps!r}")
    try:
        rate = Fraction(fps if isinstance(fps, Rational) else float(fps))
    except TypeError:
        raise TypeError(f"fps: expected a number of frames per second, got {fps!r}") from None
    except (OverflowError, ValueError):
        raise ValueError(f"fps: expected a finite number, got {fps!r}") from None
    if rate <= 0:
        raise ValueError(f"fps: expected more than 0 frames per second, got {fps!r}")
    if not isinstance(fps, Rational):
        for base in (24, 30, 48, 60, 120):
            broadcast = Fraction(base * 1000, 1001)
            if abs(rate - broadcast) < Fraction(base, 6000):  # 23.976, 23.98 and 29.97, but not 24 or 30
                return broadcast
    rate = rate.limit_denominator(100_000)
    if not Fraction(1, 10_000) <= rate <= 10_000:  # numbers of 31 bits, with the denominator
        raise ValueError(f"fps: expected 0.0001 to 10000 frames per second, got {fps!r}")
    return rate


class VideoTrack:
    """Encodes frames of one size, one after the other."""

    def __init__(
        self,
        container: OutputContainer,
        path: str,
        *,
        height: int,
        width: int,
        fps: Fraction,
        codec: str | None,
        pixel_format: str | None,
        crf: float | None,
        preset: str | None,
        matrix: str,
        full_range: bool | None,
        options: Mapping[str, str],
        layout: str,
        normalisation: tuple[Any, Any, Any],
    ) -> None:
        encoder = encoder_codec(path, "video", codec)
        self._format = _pixel_format(encoder, pixel_format)
        self._size = height, width
        self._step = 1 / fps
        self._layout = layout
        self._normalisation = normalisation
        self._count = 0
        self._writers: dict[torch.dtype, PlanesWriter] = {}
        jpeg = encoder.canonical_name == "mjpeg"
        self._location = "center" if jpeg else "left"
        self._matrix = matrix
        family = PIXEL_FORMATS[self._format].family
        # Checks the arguments now, before anything is written.
        writer = PlanesWriter.make(
            self._format, torch.float32, *normalisation, matrix, full_range, self._location
        )
        self._full_range = writer.color.full_range
        if writer.format.full_range and not self._full_range:
            raise ValueError(f"full_range: pixel_format {self._format!r} is of full range by name")
        if jpeg and (matrix != "601" or not self._full_range):
            raise ValueError(
                "matrix, full_range: Motion JPEG is read as BT.601 of full range; pass matrix='601',"
                " full_range=True"
            )
        self._check_size(encoder.name)

        stream = add_stream(container, path, encoder, rate=fps)
        stream.height, stream.width, stream.pix_fmt = height, width, self._format
        context = stream.codec_context
        context.thread_count = get_num_threads()
        self._tags = _TAGS["rgb" if family == "rgb" else matrix]
        self._range = 2 if family == "rgb" or self._full_range else 1
        context.color_primaries, context.color_trc, context.colorspace = self._tags
        context.color_range = self._range
        chosen = dict(options)
        if crf is not None:
            chosen["crf"] = str(crf)
        if preset is not None:
            chosen["preset"] = preset
        if encoder.name in ("mpeg4", "mpeg2video") and not chosen.keys() & {"b", "qscale", "global_quality"}:
            context.bit_rate = max(400_000, round(height * width * float(fps) / 5))  # its default is unusable
        described = f"{width}x{height} {self._format} at {fps} fps"
        open_encoder(stream, "codec", chosen, described)
        self._stream = stream

    def _check_size(self, name: str) -> None:
        fmt = PIXEL_FORMATS[self._format]
        if not name.startswith(_WHOLE_CHROMA) or fmt.family != "yuv":
            return
        height, width = self._size
        if height % (1 << fmt.log2_chroma_h) or width % (1 << fmt.log2_chroma_w):
            raise ValueError(
                f"frames: {name} cannot encode {height}x{width} pixels (height x width) as {self._format},"
                " which needs even numbers; pad or crop them, or pass pixel_format='yuv444p'"
            )

    @property
    def count(self) -> int:
        """Number of frames that were given."""
        return self._count

    @property
    def seconds(self) -> Fraction:
        """Where the next frame begins."""
        return self._count * self._step

    def encode(self, frames: Tensor) -> list[Any]:
        """Encode a frame or a batch; the packets that are ready.

        Raises
        ------
        TypeError, ValueError
            If the frames do not fit the layout or the size, or hold a NaN or an infinity.
        """
        batch = as_batch(frames, self._layout, self._count)
        axis = self._layout.index("N")
        packets = []
        for start in range(0, batch.shape[axis], _CHUNK):
            part = batch.narrow(axis, start, min(_CHUNK, batch.shape[axis] - start))
            packets += self._encode(rgb_view(part.detach().cpu(), self._layout))
        return packets

    def _encode(self, view: Tensor) -> list[Any]:
        if tuple(view.shape[2:]) != self._size:
            raise ValueError(
                f"frames: frame {self._count} has {view.shape[2]}x{view.shape[3]} pixels (height x width),"
                f" the file {self._size[0]}x{self._size[1]}"
            )
        writer = self._writers.get(view.dtype)
        if writer is None:
            writer = self._writers[view.dtype] = PlanesWriter.make(
                self._format, view.dtype, *self._normalisation, self._matrix, self._full_range, self._location
            )
        pictures = [av.VideoFrame(self._size[1], self._size[0], self._format) for _ in range(len(view))]
        wrong = writer.fill(view, pictures)
        if wrong >= 0:
            raise ValueError(f"frames: frame {self._count + wrong} holds a NaN or an infinity")
        packets: list[Any] = []
        for picture in pictures:
            picture.pts, picture.time_base = self._count, self._step
            picture.color_primaries, picture.color_trc, picture.colorspace = self._tags
            picture.color_range = self._range
            packets += self._stream.encode(picture)
            self._count += 1
        return packets

    def flush(self) -> list[Any]:
        """Encode what the encoder holds back; the last packets."""
        return list(self._stream.encode(None))


def as_batch(frames: Any, layout: str, number: int) -> Tensor:
    """Batch of what was given as frames: one, several, or a decoder's Frame or FrameBatch."""
    batch = frames if isinstance(frames, Tensor) else getattr(frames, "data", None)
    if not isinstance(batch, Tensor):
        raise TypeError(f"frames: frame {number}: expected a tensor, got {type(frames).__name__}")
    if batch.dim() == 3:
        batch = batch.unsqueeze(layout.index("N"))
    if batch.dim() != 4 or batch.shape[layout.index("C")] not in (1, 3):
        raise ValueError(
            f"frames: frame {number}: expected {layout} of 3 channels or 1, or one frame of it, got shape"
            f" {tuple(batch.shape)}"
        )
    return batch


def _pixel_format(encoder: Any, name: str | None) -> str:
    offered: Sequence[str] = [f.name for f in encoder.video_formats or ()]
    known = [f for f in offered if f in PIXEL_FORMATS and not f.startswith("yuva")]
    if name is None:
        name = _FORMATS.get(encoder.name, "yuv420p")
        if offered and name not in offered:
            if not known:
                raise UnsupportedError(
                    f"codec: {encoder.name!r} takes {', '.join(offered)}: none can be written"
                )
            name = known[0]
    elif not isinstance(name, str):
        raise TypeError(f"pixel_format: expected the name of a format, got {name!r}")
    if name not in PIXEL_FORMATS or (offered and name not in offered):
        raise ValueError(
            f"pixel_format: expected one of {', '.join(known or PIXEL_FORMATS)} for {encoder.name},"
            f" got {name!r}"
        )
    return name
