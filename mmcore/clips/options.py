"""What ``read_clip`` is told about each modality."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch

from mmcore.ops.frame_transform import FrameTransform
from mmcore.ops.log_mel_settings import LogMelSettings

__all__ = ["AudioOptions", "TextOptions", "VideoOptions", "chosen"]


@dataclass(frozen=True)
class VideoOptions:
    """How a clip's pictures are read.

    Parameters
    ----------
    transform : FrameTransform, optional
        None gives uint8 RGB of full size.
    fps : float, optional
        Read the frame shown at each multiple of ``1 / fps`` seconds from the clip's start on, in the clip's
        own time.
    num_frames : int, optional
        Read the frames shown at the starts of so many equal parts of the clip. With neither ``fps`` nor
        ``num_frames`` every frame is read.
    stream_index, num_threads, seek_mode, on_error, index, device, convert_on, decoder
        As for :class:`mmcore.VideoDecoder`. Only pictures go to the device; :meth:`mmcore.Clip.to` moves the
        rest.
    """

    transform: FrameTransform | None = None
    fps: float | None = None
    num_frames: int | None = None
    stream_index: int | None = None
    num_threads: int | None = None
    seek_mode: str = "exact"
    on_error: str = "raise"
    index: str | os.PathLike[str] | None = None
    device: str | torch.device = "cpu"
    convert_on: str = "auto"
    decoder: str = "cpu"

    def __post_init__(self) -> None:
        if self.fps is not None and self.num_frames is not None:
            raise ValueError("video: fps, num_frames: expected at most one of them")
        if self.num_frames is not None:
            if isinstance(self.num_frames, bool) or not isinstance(self.num_frames, int):
                raise TypeError(f"video: num_frames: expected an int, got {self.num_frames!r}")
            if self.num_frames < 1:
                raise ValueError(f"video: num_frames: expected 1 or more, got {self.num_frames}")
        if self.fps is not None:
            if isinstance(self.fps, bool) or not isinstance(self.fps, (int, float)):
                raise TypeError(f"video: fps: expected a number, got {self.fps!r}")
            if not 1e-6 <= self.fps <= 1e6:
                raise ValueError(f"video: fps: expected a positive number up to 1e6, got {self.fps}")


@dataclass(frozen=True)
class AudioOptions:
    """How a clip's sound is read.

    Parameters
    ----------
    sample_rate, num_channels, stream_index, on_error
        As for :class:`mmcore.AudioDecoder`.
    log_mel : bool or LogMelSettings, optional
        Make a spectrogram of the channels' mean too; True: with Whisper's settings. Without ``sample_rate``
        samples have the settings' rate.
    """

    sample_rate: int | None = None
    num_channels: int | None = None
    stream_index: int | None = None
    on_error: str = "raise"
    log_mel: bool | LogMelSettings | None = None

    def __post_init__(self) -> None:
        settings = self.log_mel
        if settings is True:
            settings = LogMelSettings()
        if settings is None or settings is False:
            object.__setattr__(self, "log_mel", None)
            return
        if not isinstance(settings, LogMelSettings):
            raise TypeError(f"audio: log_mel: expected a bool or LogMelSettings, got {settings!r}")
        if self.sample_rate not in (None, settings.sample_rate):
            raise ValueError(
                f"audio: sample_rate: expected that of log_mel, {settings.sample_rate}, or None,"
                f" got {self.sample_rate}"
            )
        object.__setattr__(self, "log_mel", settings)
        object.__setattr__(self, "sample_rate", settings.sample_rate)

    @property
    def mel_settings(self) -> LogMelSettings | None:
        """What ``log_mel`` stands for."""
        return self.log_mel if isinstance(self.log_mel, LogMelSettings) else None


@dataclass(frozen=True)
class TextOptions:
    """How a clip's words are read.

    Parameters
    ----------
    language, sidecar, encoding, markup, stream_index
        As for :class:`mmcore.TextDecoder`.
    tokenizer, add_special_tokens
        As for :func:`mmcore.tokenize_segments`; without a tokenizer there are no tokens.
    """

    language: str | None = None
    sidecar: str | os.PathLike[str] | bool | None = None
    encoding: str | None = None
    markup: bool = False
    stream_index: int | None = None
    tokenizer: Callable[[str], Any] | Any = None
    add_special_tokens: bool = False


_Options = TypeVar("_Options", VideoOptions, AudioOptions, TextOptions)


def chosen(name: str, value: Any, kind: type[_Options]) -> _Options | None:
    """Options that a caller's ``video=``, ``audio=`` or ``text=`` stands for; None to leave it out."""
    if value is None or value is False:
        return None
    if value is True:
        return kind()
    if isinstance(value, kind):
        return value
    if isinstance(value, Mapping):
        known = [f.name for f in fields(kind)]
        for key in value:
            if key not in known:
                raise TypeError(f"{name}: there is no option {key!r}; there are {', '.join(known)}")
        return kind(**value)
    raise TypeError(
        f"{name}: expected True, False, None, a dict of options or {kind.__name__},"
        f" got {type(value).__name__}"
    )
