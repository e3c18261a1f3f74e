"""Decoders that leave the work to NVIDIA's NVDEC engine, through PyAV.

FFmpeg's own parsers read the packets and NVDEC makes the pictures of them, so seeking, planning and
reordering are those of the CPU's decoders. Pictures come out as NV12 or P010 in device memory. FFmpeg copies
them there from NVDEC's surfaces, of which there are only as many as the stream needs, on the legacy default
stream: frames may be kept by the batch, and their memory is used anew once they are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mmcore.errors import DecodeError

if TYPE_CHECKING:
    from av.codec.hwaccel import HWAccel
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

__all__ = ["Nvdec", "make_current", "open_codec"]

# What a container may tell of a stream that does not say so itself. The rotation cannot be set.
_TOLD = ("width", "height", "color_range", "color_primaries", "color_trc", "colorspace", "field_order")


@dataclass(frozen=True)
class Nvdec:
    """How the decoders of one stream are opened; plain values, so that a decoder can be pickled.

    Parameters
    ----------
    device : int
        Number of the CUDA device.
    engines : int
        How many streams of this kind it decodes at the same time.
    """

    device: int
    engines: int = 1

    def open(self, stream: VideoStream) -> VideoCodecContext:
        """A decoder for the packets of ``stream``, beside the stream's own.

        Raises
        ------
        DecodeError
            If the GPU gives none: it is out of memory, or lost.
        """
        import av

        try:
            with torch.cuda.device(self.device):
                make_current()
                return open_codec(stream, _acceleration(self.device))
        except (av.FFmpegError, NotImplementedError, RuntimeError) as error:
            raise DecodeError(f"NVDEC of CUDA device {self.device} cannot be opened: {error}") from error


def open_codec(stream: VideoStream, acceleration: HWAccel | None) -> VideoCodecContext:
    """Make a decoder that is set up as the stream's own.

    Not the stream's own one, by ``av.open(hwaccel=...)``: that gives AV1 to a decoder that knows no hardware,
    makes a device for every stream of the file, and has the file opened again where there is none.
    """
    import av

    own: Any = stream.codec_context
    # By name, for the decoder that FFmpeg prefers for AV1 is libdav1d.
    codec: Any = av.CodecContext.create(own.codec.canonical_name, "r", acceleration)
    # PyAV puts the hardware's format here, on which FFmpeg's AV1 decoder takes NVDEC to be set up already.
    codec.pix_fmt = own.pix_fmt or "yuv420p"
    codec.thread_count = 1  # the GPU does the work, and frame threads would need more surfaces
    codec.thread_type = "NONE"
    if own.extradata is not None:
        codec.extradata = own.extradata
    for name in _TOLD:
        setattr(codec, name, getattr(own, name))
    codec.reorder_depth = own.reorder_depth
    return codec  # type: ignore[no-any-return]


def _acceleration(device: int) -> HWAccel:
    from av.codec.hwaccel import HWAccel

    # A context of FFmpeg's own could not share memory with torch, and its way to the primary one refuses one
    # that torch has begun to use: so the one that is current, which is torch's.
    options: dict[str, object] = {"primary_ctx": "0", "current_ctx": "1"}
    return HWAccel("cuda", str(device), True, options, is_hw_owned=True)


def make_current() -> None:
    """Make torch's CUDA context the current one of this thread, which a thread has only after a launch."""
    torch.zeros(1, device="cuda")
