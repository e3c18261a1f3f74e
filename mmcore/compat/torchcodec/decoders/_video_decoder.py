"""TorchCodec's VideoDecoder on top of mmcore's."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

import mmcore
from mmcore.compat.torchcodec._core import VideoStreamMetadata
from mmcore.compat.torchcodec._errors import UnsupportedError, as_torchcodec_raises
from mmcore.compat.torchcodec._frame import Frame, FrameBatch
from mmcore.compat.torchcodec.transforms import Resize, _steps
from mmcore.compat.torchcodec.transforms._torchvision import as_decoder_transform
from mmcore.ops.devices import check_device

from ._ffmpeg_rgb import RGBDecoder
from ._frame_mappings import FrameMappings
from ._metadata import video_metadata
from ._source import is_url, readable
from ._timeline import Timeline

__all__ = ["CpuFallbackStatus", "VideoDecoder"]

# As FFmpeg: chroma replicated, colours rounded before a resize. TorchCodec's memory is NHWC in either order.
_RGB = mmcore.FrameTransform(dtype=torch.uint8, layout="NHWC", chroma="nearest", accuracy="rgb8")
_SCALAR_TYPES = {torch.float32: "Float", torch.float64: "Double", torch.bool: "Bool"}


@dataclass
class CpuFallbackStatus:
    """Whether a decoder for a GPU decodes on the CPU instead: here always."""

    status_known: bool = True
    _backend: str = field(default="CPU", init=False)
    _on_gpu: bool = field(default=False, init=False)

    def __bool__(self) -> bool:
        return self._on_gpu

    def __str__(self) -> str:
        if self._on_gpu:
            why = "Falling back due to: frames are decoded on the CPU, then uploaded and converted"
        else:
            why = "No fallback required"
        return f"[{self._backend}] Fallback status: {why}"


class VideoDecoder:
    """Decodes frames of one video stream.

    Parameters
    ----------
    source : str, Path, bytes, Tensor or file-like object
        A path or a URL, a file's content (a Tensor must be 1-D uint8), or an object with ``read(size)`` and
        ``seek(offset, whence)``.
    stream_index : int, optional
        Number of the stream in the file; by default the video stream that FFmpeg thinks best.
    dimension_order : {"NCHW", "NHWC"}
        Of the frames' dimensions. Their memory is NHWC in either case.
    num_ffmpeg_threads : int
        Threads for the codec; 0 for ``mmcore.get_num_threads()``.
    device : str or torch.device, optional
        "cpu", "cuda", "cuda:1": where the frames shall be; the CPU decodes. None is torch's default device.
    seek_mode : {"exact", "approximate"}
        As for :class:`mmcore.VideoDecoder`.
    transforms : sequence of DecoderTransform or of torchvision's v2 transforms, optional
        Applied to every frame, in order: Resize, CenterCrop and RandomCrop.
    custom_frame_mappings : str, bytes or file-like object, optional
        JSON as ``ffprobe -show_frames`` writes it, with "pts" (or "pkt_pts"), "duration" (or "pkt_duration")
        and "key_frame" of frames: the decoder then has just these. The file is indexed all the same.

    Attributes
    ----------
    metadata : VideoStreamMetadata
        The first access decodes one frame, which alone knows its rotation.
    stream_index : int
    cpu_fallback : CpuFallbackStatus

    Raises
    ------
    RuntimeError
        If the source is missing, empty, no media file or holds no video (also an mmcore.DecodeError), or for
        a device that is not available (also an mmcore.UnsupportedError).
    ValueError, TypeError
        For arguments that are wrong.

    Examples
    --------
    >>> from mmcore.compat.torchcodec.decoders import VideoDecoder
    >>> decoder = VideoDecoder("clip.mp4")                                              # doctest: +SKIP
    >>> decoder.get_frames_at([0, 10]).data.shape                                       # doctest: +SKIP
    torch.Size([2, 3, 256, 340])
    """

    def __init__(
        self,
        source: Any,
        *,
        stream_index: int | None = None,
        dimension_order: Literal["NCHW", "NHWC"] = "NCHW",
        num_ffmpeg_threads: int = 1,
        device: str | torch.device | None = None,
        seek_mode: Literal["exact", "approximate"] = "exact",
        transforms: Sequence[Any] | None = None,
        custom_frame_mappings: Any = None,
    ) -> None:
        if seek_mode not in ("exact", "approximate"):
            raise ValueError(f"Invalid seek mode ({seek_mode}). Supported values are exact, approximate.")
        if custom_frame_mappings is not None and seek_mode == "approximate":
            raise ValueError("custom_frame_mappings cannot be used with seek_mode='approximate'.")
        if dimension_order not in ("NCHW", "NHWC"):
            raise ValueError(f"Invalid dimension order ({dimension_order}). Supported values are NCHW, NHWC.")
        if num_ffmpeg_threads is None or _integer("num_ffmpeg_threads", num_ffmpeg_threads) < 0:
            raise ValueError(f"num_ffmpeg_threads = {num_ffmpeg_threads} should be an int of 0 or more.")
        self._device = _checked_device(torch.get_default_device() if device is None else device)
        mappings = None if custom_frame_mappings is None else FrameMappings.parse(custom_frame_mappings)
        chain = [as_decoder_transform(transform) for transform in transforms or ()]

        # A resize that comes first, and a crop of its result, are part of the conversion to RGB.
        conversion, self._steps = _RGB, list[_steps.Step]()
        resize_first = bool(chain) and isinstance(chain[0], Resize)
        if resize_first:
            conversion, self._steps = _fused(_steps.resolve(chain, (None, None)))
        with as_torchcodec_raises():
            self._decoder = _open(
                source, stream_index, num_ffmpeg_threads, seek_mode, conversion, self._device
            )
        self._channels_first = dimension_order == "NCHW"
        self._exact = seek_mode == "exact"
        self._requested_stream = stream_index
        self._timeline = Timeline.of(self._decoder.frame_times, mappings)
        self._num_frames = len(self._timeline)
        if not resize_first:
            self._steps = _steps.resolve(chain, (self.metadata.height, self.metadata.width)) if chain else []

    # --- the stream

    @cached_property
    def metadata(self) -> VideoStreamMetadata:
        with as_torchcodec_raises():
            return video_metadata(self._decoder.metadata, self._timeline)

    @cached_property
    def stream_index(self) -> int:
        return self.metadata.stream_index if self._requested_stream is None else self._requested_stream

    @property
    def cpu_fallback(self) -> CpuFallbackStatus:
        status = CpuFallbackStatus()
        status._on_gpu = self._device.type != "cpu"
        return status

    def __len__(self) -> int:
        return self._num_frames

    def _get_key_frame_indices(self) -> Tensor:
        if not self._exact:
            raise RuntimeError("seek_mode: the key frames are known only with 'exact'")
        return self._timeline.key_frames

    # --- by number

    def __getitem__(self, key: Any) -> Tensor:
        """Frames as a tensor: ``decoder[i]`` is one frame, ``decoder[a:b:c]`` a batch.

        Raises
        ------
        IndexError
            If a number is out of range; slices are clipped, as for a list.
        TypeError
            If the key is neither an int nor a slice.
        RuntimeError
            For a slice with a negative step, or a frame that cannot be decoded.
        """
        if isinstance(key, slice):
            return self._range(key).data
        if isinstance(key, (int, numbers.Integral)):
            return self.get_frame_at(int(key)).data
        raise TypeError(f"key: Unsupported key type: {type(key)}. Supported types are int and slice.")

    def get_frame_at(self, index: int) -> Frame:
        """One frame by its number; negative numbers count from the end.

        Raises
        ------
        IndexError, TypeError, RuntimeError
        """
        return _single(self._batch([self._index(_integer("index", index))]))

    def get_frames_at(self, indices: Tensor | Sequence[int]) -> FrameBatch:
        """Frames by number, in any order, with repetitions.

        Parameters
        ----------
        indices : Tensor or sequence of int
            A floating point Tensor is truncated.

        Raises
        ------
        IndexError, RuntimeError, ValueError
        """
        if isinstance(indices, Tensor):
            wanted = indices.to("cpu", torch.int64)
        else:
            wanted = torch.tensor(indices, device="cpu")
            if wanted.numel() and (wanted.is_floating_point() or wanted.dtype == torch.bool):
                raise RuntimeError(f"indices: expected Long but found {_SCALAR_TYPES[wanted.dtype]}")
        return self._batch([self._index(int(i)) for i in _one_dimension("indices", wanted)])

    def get_frames_in_range(self, start: int, stop: int, step: int = 1) -> FrameBatch:
        """Frames ``start, start + step, ...`` before ``stop``, which are clipped as a slice's are.

        Raises
        ------
        TypeError, ValueError
            If they are no ints, or ``step`` is 0.
        RuntimeError
            If ``step`` is negative, or for a frame that cannot be decoded.
        """
        return self._range(slice(start, stop, step))

    # --- by time

    def get_frame_played_at(self, seconds: float) -> Frame:
        """The frame shown at a time.

        Raises
        ------
        IndexError
            Unless ``metadata.begin_stream_seconds <= seconds < metadata.end_stream_seconds``.
        RuntimeError
        """
        begin, end = self._span
        if not begin <= seconds < end:
            raise IndexError(
                f"Invalid pts in seconds: {seconds}. It must be greater than or equal to {begin} and less"
                f" than {end}."
            )
        time = torch.tensor([float(seconds)], dtype=torch.float64, device="cpu")
        return _single(self._batch(self._timeline.played_at(time).tolist()))

    def get_frames_played_at(self, seconds: Tensor | Sequence[float]) -> FrameBatch:
        """The frames shown at some times, in any order.

        Raises
        ------
        RuntimeError
            Unless ``metadata.begin_stream_seconds <= seconds < metadata.end_stream_seconds`` for each.
        ValueError
            If they are no numbers.
        """
        if isinstance(seconds, Tensor):
            times = seconds.to("cpu", torch.float64)
        else:
            try:
                times = torch.tensor(seconds, dtype=torch.float64, device="cpu")
            except Exception as error:
                raise ValueError(
                    f"seconds: Couldn't convert timestamps input to a tensor: {error}"
                ) from error
        times = _one_dimension("seconds", times)
        begin, end = self._span
        for time in times.tolist():
            if not time >= begin:
                raise RuntimeError(f"frame pts is {time:.6f}; must be greater than or equal to {begin:.6f}.")
            if not time < end:
                raise RuntimeError(f"frame pts is {time:.6f}; must be less than {end:.6f}.")
        return self._batch(self._timeline.played_at(times).tolist())

    def get_frames_played_in_range(
        self, start_seconds: float, stop_seconds: float, fps: float | None = None
    ) -> FrameBatch:
        """The frames shown in the time from ``start_seconds`` to before ``stop_seconds``.

        Parameters
        ----------
        start_seconds, stop_seconds : float
        fps : float, optional
            Give the frame shown at each of the times ``start_seconds + i / fps`` instead, as many as there
            are in the range, rounded; the batch's times are then these.

        Raises
        ------
        ValueError
            Unless ``begin_stream_seconds <= start_seconds <= stop_seconds <= end_stream_seconds``, and
            ``start_seconds < end_stream_seconds``.
        RuntimeError
            If fps is not positive, or for a frame that cannot be decoded.
        """
        begin, end = self._span
        if not start_seconds <= stop_seconds:
            raise ValueError(
                f"Invalid start seconds: {start_seconds}. It must be less than or equal to stop seconds"
                f" ({stop_seconds})."
            )
        if not begin <= start_seconds < end:
            raise ValueError(
                f"Invalid start seconds: {start_seconds}. It must be greater than or equal to {begin} and"
                f" less than {end}."
            )
        if not stop_seconds <= end:
            raise ValueError(f"Invalid stop seconds: {stop_seconds}. It must be less than or equal to {end}.")
        start, stop = float(start_seconds), float(stop_seconds)
        if start == stop:
            return self._batch([])
        if fps is None:
            first = int(self._timeline.played_at(torch.tensor([start], dtype=torch.float64, device="cpu")))
            return self._batch(range(first, self._timeline.first_from(stop)))
        fps = float(fps)
        if not 0 < fps < math.inf:
            raise RuntimeError(f"fps must be positive, got {fps:.6f}")
        count = math.floor((stop - start) * fps + 0.5)
        seconds_per_frame = 1 / fps
        times = start + torch.arange(count, dtype=torch.float64, device="cpu") * seconds_per_frame
        batch = self._batch(self._timeline.played_at(times).tolist())
        return FrameBatch(batch.data, times, torch.full_like(times, seconds_per_frame))

    def get_all_frames(self, fps: float | None = None) -> FrameBatch:
        """All frames; with ``fps`` as :meth:`get_frames_played_in_range` gives them.

        Raises
        ------
        RuntimeError
        """
        return self.get_frames_played_in_range(*self._span, fps=fps)

    # --- the work

    @property
    def _span(self) -> tuple[float, float]:
        """When the first frame appears and the last one ends."""
        if self._exact:
            return self._timeline.begin_seconds, self._timeline.end_seconds
        begin, end = self.metadata.begin_stream_seconds, self.metadata.end_stream_seconds
        assert begin is not None
        assert end is not None
        return begin, end

    def _index(self, index: int) -> int:
        count = self._num_frames
        if index >= count:
            raise IndexError(
                f"Invalid frame index={index} for streamIndex={self.stream_index}; must be less than {count}"
            )
        if index < -count:
            raise IndexError(
                f"Invalid frame index={index + count} for streamIndex={self.stream_index}; negative indices"
                " must have an absolute value less than the number of frames"
            )
        return index % count

    def _range(self, key: slice) -> FrameBatch:
        indices = range(*key.indices(self._num_frames))
        if indices.step < 0:
            raise RuntimeError(f"Step must be greater than 0; is {indices.step}")
        return self._batch(indices)

    def _batch(self, indices: Sequence[int]) -> FrameBatch:
        own = self._timeline.numbers
        with as_torchcodec_raises():
            batch = self._decoder.get_frames_at(indices if own is None else own[list(indices)])
        data = _steps.apply(self._steps, batch.data)
        if self._channels_first:
            data = data.permute(0, 3, 1, 2)
        return FrameBatch(data, batch.pts_seconds, batch.duration_seconds)


def _single(batch: FrameBatch) -> Frame:
    return Frame(batch.data[0], batch.pts_seconds[0].item(), batch.duration_seconds[0].item())


def _integer(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an int, got {value!r}") from None


def _one_dimension(name: str, values: Tensor) -> Tensor:
    if values.dim() > 1:
        raise ValueError(f"{name}: expected one dimension, got shape {tuple(values.shape)}")
    return values.reshape(-1)


def _checked_device(device: str | torch.device) -> torch.device:
    wanted = torch.device(device)  # a RuntimeError, as TorchCodec's, for what is none
    try:
        return check_device(wanted)
    except mmcore.UnsupportedError as error:
        raise UnsupportedError(f"Unsupported device: {device} ({error})") from None


def _fused(steps: list[_steps.Step]) -> tuple[mmcore.FrameTransform, list[_steps.Step]]:
    """The conversion that does a first resize and a crop after it, and the steps that are left."""
    conversion = _RGB
    match steps:
        case [_steps.Resized(height, width), *steps]:
            conversion = conversion.replace(resize=(height, width))
    match steps:
        case [_steps.Crop(top, left, height, width), *steps]:
            conversion = conversion.replace(crop=(top, left, height, width))
    return conversion, steps


def _open(
    source: Any,
    stream_index: int | None,
    threads: int,
    seek_mode: str,
    conversion: mmcore.FrameTransform,
    device: torch.device,
) -> RGBDecoder:
    try:
        return RGBDecoder(
            readable(source),
            stream_index=stream_index,
            num_threads=threads or None,
            seek_mode=seek_mode,
            transform=conversion,
            device=device,
            network=is_url(source),
        )
    except ValueError as error:
        if not str(error).startswith("stream_index"):
            raise
        what = "valid stream" if "has no stream" in str(error) else "video stream"
        raise ValueError(f"The stream at index {stream_index} is not a {what}. ({error})") from None
