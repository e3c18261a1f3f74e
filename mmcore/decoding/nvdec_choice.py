"""Whether NVDEC decodes a stream here, and what is said where it does not.

Left out are codecs that their standards do not define to the bit (MPEG-1, -2, -4, JPEG): a GPU's pictures of
those differ from the CPU's.
"""

from __future__ import annotations

import ctypes
import functools
import os
import warnings
from typing import TYPE_CHECKING, Any

import torch

from mmcore.errors import DecodeError, MMCoreError
from mmcore.ops.pixel_formats import PIXEL_FORMATS

from .nvdec import Nvdec, make_current

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

    from .metadata import VideoStreamMetadata
    from .reader import FrameReader

__all__ = ["CODECS", "look", "nvdec_facts", "use_nvdec", "warn_fallback", "why_not_here"]

CODECS = {"h264": 4, "hevc": 8, "vp8": 9, "vp9": 10, "av1": 11}
"""Codecs that NVDEC may decode, by FFmpeg's names, and their numbers in ``cudaVideoCodec``."""

_LIBRARIES = ("nvcuda.dll", "nvcuvid.dll") if os.name == "nt" else ("libcuda.so.1", "libnvcuvid.so.1")
_CHROMA = {(1, 1): 1, (1, 0): 2, (0, 0): 3}  # cudaVideoChromaFormat of 4:2:0, 4:2:2, 4:4:4


def use_nvdec(reader: FrameReader, metadata: VideoStreamMetadata, device: torch.device) -> str | None:
    """Let NVDEC decode what ``reader`` and its twins read.

    Parameters
    ----------
    reader : FrameReader
        Its first frame is decoded, to see that NVDEC does it.
    metadata : VideoStreamMetadata
        As read from a frame that the CPU decoded.
    device : torch.device
        Of type "cuda".

    Returns
    -------
    str or None
        Why not, in which case the CPU goes on decoding.
    """
    codec = reader.opened()[1].codec_context
    coded = codec.coded_width or codec.width, codec.coded_height or codec.height
    reason, engines = look(metadata.codec, metadata.pixel_format, *coded, device)
    if reason is not None:
        return reason
    width, height = metadata.width, metadata.height
    if metadata.rotation % 180:
        width, height = height, width
    number = torch.cuda.current_device() if device.index is None else device.index
    reader.nvdec = Nvdec(number, engines)
    try:
        frame = next(reader.read((0,)))[1]
        reason = str(frame) if isinstance(frame, DecodeError) else _why_not_frame(frame, width, height)
    except MMCoreError as error:
        reason = str(error)
    if reason is not None:
        reader.nvdec = None
    return reason


def _why_not_frame(frame: VideoFrame, width: int, height: int) -> str | None:
    """Why a stream's first frame, as it came from NVDEC, is not to be used; None if it is.

    ``width`` and ``height`` are those of the frame that the CPU's decoder gives.
    """
    if frame.format.name != "cuda":
        return "FFmpeg could not set up NVDEC for the stream"
    held = frame.sw_format
    if held is None or held.name not in PIXEL_FORMATS:
        return f"its pictures come as {held and held.name}, which the frames op does not read"
    if (frame.width, frame.height) != (width, height):
        # of hardware frames FFmpeg crops the right and the bottom only
        return "its pictures are cropped at the left or the top, which FFmpeg does not do on a GPU"
    return None


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


def look(
    codec: str, pixel_format: str | None, width: int, height: int, device: torch.device
) -> tuple[str | None, int]:
    """Why NVDEC cannot decode such a stream, None if it says it can; and on how many engines.

    Parameters
    ----------
    codec : str
        FFmpeg's canonical name.
    pixel_format : str or None
        FFmpeg's name of what the CPU's decoder gives.
    width, height : int
        As coded, in pixels.
    device : torch.device
        Of type "cuda".
    """
    if codec not in CODECS:
        return f"NVDEC does not decode {codec} to the bit; it does {', '.join(CODECS)}", 0
    reason = why_not_here()
    if reason is not None:
        return reason, 0
    fmt = PIXEL_FORMATS.get(pixel_format or "")
    if fmt is None or fmt.family != "yuv":
        return f"NVDEC does not decode {codec} to {pixel_format}", 0
    chroma = _CHROMA[fmt.log2_chroma_w, fmt.log2_chroma_h]
    caps = _capabilities(CODECS[codec], chroma, fmt.bits, device)
    if caps is None:  # a driver of 2017: it will be seen when it decodes
        return None, 1
    gpu = torch.cuda.get_device_name(device)
    return _unfit(caps, f"{codec} {pixel_format}", width, height, gpu), max(1, caps.num_engines)


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
def _capabilities(codec: int, chroma: int, bits: int, device: torch.device) -> Capabilities | None:
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


_warned: set[str] = set()


def warn_fallback(reason: str) -> None:
    """Say once for each reason that the CPU decodes instead."""
    if reason not in _warned:
        text = f"decoder='nvdec': decoding on the CPU instead: {reason}"
        warnings.warn(text, UserWarning, stacklevel=4)
        _warned.add(reason)  # where the warning is no error


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
        "device types": hwdevices_available(),
        "NVDEC codecs": codecs,
        "NVDEC": why_not_here() or "its libraries are there",
    }
