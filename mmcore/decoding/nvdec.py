"""Decoding on NVIDIA's NVDEC engine through PyAV: whether it is there for a stream, and how it is opened.

FFmpeg's own parsers read the packets and NVDEC makes the pictures of them, so seeking, planning and
reordering are those of the CPU's decoders. Pictures come out as NV12 or P010 in device memory. FFmpeg copies
them there from NVDEC's surfaces, of which there are only as many as the stream needs, on the legacy default
stream: frames may be kept by the batch, and their memory is used anew once they are dropped.

Left out are codecs that their standards do not define to the bit (MPEG-1, -2, -4, JPEG): a GPU's pictures of
those differ from the CPU's.
"""

from __future__ import annotations

import ctypes
import functools
import os
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mmcore.errors import DecodeError
from mmcore.ops.pixel_formats import PIXEL_FORMATS

if TYPE_CHECKING:
    from av.codec.hwaccel import HWAccel
    from av.video.codeccontext import VideoCodecContext
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

__all__ = ["CODECS", "Nvdec", "check_first_frame", "nvdec_facts", "warn_fallback", "why_not", "why_not_here"]

CODECS = {"h264": 4, "hevc": 8, "vp8": 9, "vp9": 10, "av1": 11}
"""Codecs that NVDEC may decode, by FFmpeg's names, and their numbers in ``cudaVideoCodec``."""

_LIBRARIES = ("nvcuda.dll", "nvcuvid.dll") if os.name == "nt" else ("libcuda.so.1", "libnvcuvid.so.1")
_TOLD = ("width", "height", "color_range", "color_primaries", "color_trc", "colorspace", "field_order")
_CHROMA = {(1, 1): 1, (1, 0): 2, (0, 0): 3}  # cudaVideoChromaFormat of 4:2:0, 4:2:2, 4:4:4


@dataclass(frozen=True)
class Nvdec:
    """How the decoders of one stream are opened; plain values, so that a decoder can be pickled.

    Parameters
    ----------
    device : int
        Number of the CUDA device.
    """

    device: int

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
        except (av.FFmpegError, NotImplementedError) as error:
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
    codec.thread_count = 1  # the GPU does the work, and frame threads would need more surfaces
    codec.thread_type = "NONE"
    if own.extradata is not None:
        codec.extradata = own.extradata
    # What a container tells of a stream that does not say so itself; the rotation, which cannot be set, is
    # taken from a frame that the CPU decoded.
    for name in (
        "width",
        "height",
        "color_range",
        "color_primaries",
        "color_trc",
        "colorspace",
        "field_order",
    ):
        setattr(codec, name, getattr(own, name))
    codec.reorder_depth = own.reorder_depth
    return codec  # type: ignore[no-any-return]


def _acceleration(device: int) -> HWAccel:
    from av.codec.hwaccel import HWAccel

    # A context of FFmpeg's own could not share memory with torch, and its way to the primary one refuses one
    # that torch has begun to use: so the one that is current, which is torch's.
    options = {"primary_ctx": "0", "current_ctx": "1"}
    return HWAccel("cuda", str(device), options=options, is_hw_owned=True)  # type: ignore[arg-type]


def make_current() -> None:
    """Make torch's CUDA context the current one of this thread, which a thread has only after a launch."""
    torch.zeros(1, device="cuda")


# --- whether it is there


@functools.cache
def _load(library: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(library)
    except OSError:
        return None


def why_not_here() -> str | None:
    """Why nothing can be decoded by NVDEC on this machine, None if that is not known; CUDA is not touched."""
    from av.codec.hwaccel import hwdevices_available

    if "cuda" not in hwdevices_available():
        return "PyAV's FFmpeg was built without CUDA"
    driver, decoder = _LIBRARIES
    if _load(driver) is None:
        return f"there is no NVIDIA driver: {driver} cannot be loaded"
    if _load(decoder) is None:
        return (
            f"the NVIDIA driver comes without its video decoder: {decoder} cannot be loaded"
            " (a container needs NVIDIA_DRIVER_CAPABILITIES=video)"
        )
    return None


def why_not(codec: str, pixel_format: str | None, width: int, height: int, device: int) -> str | None:
    """Why NVDEC cannot decode such a stream, None if it says it can.

    Parameters
    ----------
    codec : str
        FFmpeg's canonical name.
    pixel_format : str or None
        FFmpeg's name of what the CPU's decoder gives.
    width, height : int
        As coded, in pixels.
    device : int
        Number of the CUDA device.
    """
    if codec not in CODECS:
        return f"NVDEC does not decode {codec} to the bit; it does {', '.join(CODECS)}"
    reason = why_not_here()
    if reason is not None:
        return reason
    fmt = PIXEL_FORMATS.get(pixel_format or "")
    if fmt is None or fmt.family != "yuv":
        return f"NVDEC does not decode {codec} to {pixel_format}"
    chroma = _CHROMA[fmt.log2_chroma_w, fmt.log2_chroma_h]
    caps = _capabilities(CODECS[codec], chroma, fmt.bits, device)
    if caps is None:  # a driver of 2017: it will be seen when it decodes
        return None
    return _unfit(caps, f"{codec} {pixel_format}", width, height, torch.cuda.get_device_name(device))


class Capabilities(ctypes.Structure):
    """``CUVIDDECODECAPS`` of nvcuvid, which has kept its layout since Video Codec SDK 8.0."""

    _fields_ = (
        ("codec", ctypes.c_int),
        ("chroma_format", ctypes.c_int),
        ("bit_depth_minus_8", ctypes.c_uint),
        ("reserved1", ctypes.c_uint * 3),
        ("is_supported", ctypes.c_ubyte),
        ("num_engines", ctypes.c_ubyte),
        ("output_formats", ctypes.c_ushort),
        ("max_width", ctypes.c_uint),
        ("max_height", ctypes.c_uint),
        ("max_macroblocks", ctypes.c_uint),
        ("min_width", ctypes.c_ushort),
        ("min_height", ctypes.c_ushort),
        ("histogram", ctypes.c_ubyte * 4),
        ("reserved3", ctypes.c_uint * 10),
    )


@functools.cache
def _capabilities(codec: int, chroma: int, bits: int, device: int) -> Capabilities | None:
    """What NVDEC of a device says of such streams; None if the driver cannot tell."""
    ask = getattr(_load(_LIBRARIES[1]), "cuvidGetDecoderCaps", None)
    if ask is None:
        return None
    caps = Capabilities(codec=codec, chroma_format=chroma, bit_depth_minus_8=bits - 8)
    with torch.cuda.device(device):
        make_current()
        return caps if ask(ctypes.byref(caps)) == 0 else None


def _unfit(caps: Capabilities, kind: str, width: int, height: int, gpu: str) -> str | None:
    if not caps.is_supported:
        return f"NVDEC of this GPU ({gpu}) does not decode {kind}"
    least, most = (caps.min_width, caps.min_height), (caps.max_width, caps.max_height)
    if not (least[0] <= width <= most[0] and least[1] <= height <= most[1]):
        return (
            f"NVDEC of this GPU ({gpu}) decodes {kind} from {least[0]}x{least[1]} to {most[0]}x{most[1]}"
            f" pixels, not {width}x{height}"
        )
    if width * height // 256 > caps.max_macroblocks:
        return f"NVDEC of this GPU ({gpu}) does not decode {kind} of {width}x{height} pixels, so many in all"
    return None


def check_first_frame(frame: VideoFrame, width: int, height: int) -> str | None:
    """Why a stream's first frame, as it came from NVDEC, is not to be used; None if it is.

    ``width`` and ``height`` are those of the frame that the CPU's decoder gives.
    """
    if frame.format.name != "cuda":
        return f"FFmpeg decoded to {frame.format.name} on the CPU"
    held = frame.sw_format
    if held is None or held.name not in PIXEL_FORMATS:
        return f"its pictures come as {held and held.name}, which the frames op does not read"
    if (frame.width, frame.height) != (width, height):
        # of hardware frames FFmpeg crops the right and the bottom only
        return "its pictures are cropped at the left or the top, which FFmpeg does not do on a GPU"
    return None


_warned: set[str] = set()


def warn_fallback(reason: str) -> None:
    """Say once for each reason that the CPU decodes instead."""
    if reason not in _warned:
        _warned.add(reason)
        warnings.warn(f"decoder='nvdec': decoding on the CPU instead: {reason}", UserWarning, stacklevel=3)


def nvdec_facts() -> dict[str, Any]:
    """What ``mmcore env`` shows: device types of PyAV's FFmpeg, codecs, and what is missing here."""
    import av
    from av.codec.hwaccel import HWDeviceType, hwdevices_available

    codecs = []
    for name in CODECS:
        configs = av.Codec(name, "r").hardware_configs if name in av.codecs_available else ()
        if any(config.device_type == HWDeviceType.cuda for config in configs):
            codecs.append(name)
    return {
        "hardware device types": hwdevices_available(),
        "nvdec codecs": codecs,
        "nvdec": why_not_here() or "its libraries are there",
    }
