"""What a log-mel spectrogram is: :class:`LogMelSettings`, with the settings that models were trained with."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, overload

import torch
from torch import Tensor

from mmcore.ops.mel_filters import MEL_SCALES, WINDOWS, Doubles, mel_filters, window

__all__ = ["FRAMINGS", "LOGARITHMS", "PAD_MODES", "LogMelSettings"]

FRAMINGS = ("center", "center_drop_last", "snip_edges", "no_snip_edges")
PAD_MODES = ("reflect", "symmetric", "constant")
LOGARITHMS = ("ln", "log10", "db")
_LAYOUTS = ("mel_time", "time_mel")

_FLOAT32_EPSILON = 2.0**-23
_SMALLEST_FLOOR = 1.2e-38
"""The smallest normal float32."""


@dataclass(frozen=True, kw_only=True)
class LogMelSettings:
    """Settings of :func:`mmcore.log_mel`.

    The defaults are Whisper's. Take :meth:`whisper`, :meth:`kaldi` or :meth:`ast` and change what differs
    with :meth:`replace`. Settings do not change after they are made, can be pickled, and hash by value.

    Parameters
    ----------
    sample_rate : int
        Of the waveforms, in hertz.
    n_fft : int
        Points of the Fourier transform, at most 16384. Fast where its prime factors are 2, 3 and 5.
    win_length : int
        Samples of a frame, at most ``n_fft``; zeros fill the rest.
    hop_length : int
        Samples between the beginnings of frames.
    n_mels, f_min, f_max, mel_scale, mel_norm
        Filters: how many, from and to how many hertz (None: half of the sample rate), the scale ("slaney",
        "htk" or "kaldi") and how they are normalised ("slaney": area 1; None: height 1).
    window : {"hann", "hamming", "blackman", "povey", "rectangular"}
    periodic : bool
        Whether the window is periodic, as torch's; else symmetric, as Kaldi's.
    framing : {"center", "center_drop_last", "snip_edges", "no_snip_edges"}
        Where the frames of T samples lie. "center": ``T // hop_length + 1``, frame i around sample ``i *
        hop_length``, as ``torch.stft`` has it. "center_drop_last": without the last one, as Whisper has it.
        "snip_edges": as many as lie inside, ``1 + (T - win_length) // hop_length``. "no_snip_edges": ``(T +
        hop_length // 2) // hop_length``, frame i around the middle of hop i. The last two are Kaldi's.
    pad_mode : {"reflect", "symmetric", "constant"}
        What lies beyond the ends: the samples reflected without the last one, or with it, or zeros.
    remove_dc : bool
        Whether each frame's mean is subtracted.
    preemphasis : float
        Then this times the sample before each is subtracted; the first one takes itself for that.
    power : {2, 1}
        Of the Fourier transform's magnitudes that the filters sum.
    log : {"ln", "log10", "db", None}
        Of the sums; "db" is 10 log10 of powers, 20 log10 of magnitudes. None: the sums themselves.
    log_offset, floor : float
        The logarithm is that of ``max(floor, sum + log_offset)``.
    dynamic_range : float, optional
        Values are raised to at least the largest one of their spectrogram less this.
    mean, std : float
        The result is ``(value - mean) / std``.
    pad_value : float, optional
        The value, before the normalisation, in frames that a waveform shorter than others lacks, or that
        ``num_frames`` asks for beyond its end. None: that of silence.
    layout : {"mel_time", "time_mel"}
        The result is (..., n_mels, frames) or (..., frames, n_mels).

    Raises
    ------
    TypeError, ValueError
        For settings that are none or do not fit each other; the message names the setting.

    Examples
    --------
    >>> import mmcore
    >>> mmcore.LogMelSettings.whisper(n_mels=128).num_frames(16000)
    100
    >>> mmcore.LogMelSettings.ast().replace(sample_rate=8000, win_length=200, hop_length=80).frame_rate
    100.0
    """

    sample_rate: int = 16000
    n_fft: int = 400
    win_length: int = 400
    hop_length: int = 160
    n_mels: int = 80
    f_min: float = 0.0
    f_max: float | None = None
    mel_scale: str = "slaney"
    mel_norm: str | None = "slaney"
    window: str = "hann"
    periodic: bool = True
    framing: str = "center_drop_last"
    pad_mode: str = "reflect"
    remove_dc: bool = False
    preemphasis: float = 0.0
    power: int = 2
    log: str | None = "log10"
    log_offset: float = 0.0
    floor: float = 1e-10
    dynamic_range: float | None = 8.0
    mean: float = -4.0
    std: float = 4.0
    pad_value: float | None = None
    layout: str = "mel_time"

    _spec: str = field(init=False, repr=False, compare=False, default="")

    MAX_N_FFT: ClassVar[int] = 16384

    @classmethod
    def whisper(cls, n_mels: int = 80) -> LogMelSettings:
        """Whisper's, of all sizes: 80 mels, from large-v3 on 128; (..., n_mels, frames).

        As ``transformers.WhisperFeatureExtractor``; it also pads to 30 s: ``pad_to=480000``.
        """
        return cls(n_mels=n_mels)

    @classmethod
    def kaldi(
        cls,
        n_mels: int = 80,
        *,
        sample_rate: int = 16000,
        frame_length_ms: float = 25.0,
        frame_shift_ms: float = 10.0,
        window: str = "povey",
        snip_edges: bool = True,
    ) -> LogMelSettings:
        """Kaldi's compute-fbank-feats without dither and energy; (..., frames, n_mels).

        As ``torchaudio.compliance.kaldi.fbank``. Kaldi's recipes have samples of -32768 to 32767: multiply
        waveforms of -1 to 1 by 32768 where a model was trained so.
        """
        win_length = int(sample_rate * frame_length_ms * 0.001)
        return cls(
            sample_rate=sample_rate,
            n_fft=1 << max(0, win_length - 1).bit_length(),
            win_length=win_length,
            hop_length=int(sample_rate * frame_shift_ms * 0.001),
            n_mels=n_mels,
            f_min=20.0,
            mel_scale="kaldi",
            mel_norm=None,
            window=window,
            periodic=False,
            framing="snip_edges" if snip_edges else "no_snip_edges",
            pad_mode="symmetric",
            remove_dc=True,
            preemphasis=0.97,
            log="ln",
            floor=_FLOAT32_EPSILON,
            dynamic_range=None,
            mean=0.0,
            std=1.0,
            layout="time_mel",
        )

    @classmethod
    def ast(cls, n_mels: int = 128, *, mean: float = -4.2677393, std: float = 4.5689974) -> LogMelSettings:
        """The Audio Spectrogram Transformer's: Kaldi's with a Hann window, ``(value - mean) / (2 std)``.

        As ``transformers.ASTFeatureExtractor``, mean and deviation of AudioSet; it also fills up to 1024
        frames: ``num_frames=1024``.
        """
        return cls.kaldi(n_mels, window="hann").replace(mean=mean, std=2 * std, pad_value=0.0)

    def replace(self, **changes: Any) -> LogMelSettings:
        """Give the same settings with some changed."""
        return replace(self, **changes)

    def __post_init__(self) -> None:
        for name in ("sample_rate", "n_fft", "win_length", "hop_length", "n_mels"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        for name in ("f_min", "f_max", "preemphasis", "log_offset", "floor", "dynamic_range", "mean", "std"):
            self._check_number(name)
        self._check_number("pad_value")
        for name in ("periodic", "remove_dc"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}: expected a bool, got {type(getattr(self, name)).__name__}")
        choices: dict[str, tuple[object, ...]] = {
            "mel_scale": MEL_SCALES,
            "mel_norm": ("slaney", None),
            "window": WINDOWS,
            "framing": FRAMINGS,
            "pad_mode": PAD_MODES,
            "power": (1, 2),
            "log": (*LOGARITHMS, None),
            "layout": _LAYOUTS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                names = ", ".join(map(repr, allowed))
                raise ValueError(f"{name}: expected one of {names}, got {getattr(self, name)!r}")
        if self.n_fft > self.MAX_N_FFT:
            raise ValueError(f"n_fft: expected at most {self.MAX_N_FFT}, got {self.n_fft}")
        if self.win_length > self.n_fft:
            raise ValueError(f"win_length: expected at most n_fft, {self.n_fft}, got {self.win_length}")
        if not 0 <= self.f_min < self.highest_frequency <= self.sample_rate / 2:
            raise ValueError(
                f"f_min, f_max: expected 0 <= f_min < f_max <= {self.sample_rate / 2}, half of the sample"
                f" rate, got {self.f_min} and {self.highest_frequency}"
            )
        if self.std <= 0:
            raise ValueError(f"std: expected more than 0, got {self.std}")
        if self.log is not None and self.floor < _SMALLEST_FLOOR:
            raise ValueError(f"floor: a logarithm needs at least {_SMALLEST_FLOOR}, got {self.floor}")
        if self.dynamic_range is not None and (self.log is None or self.dynamic_range <= 0):
            raise ValueError("dynamic_range: expected None, or more than 0 and a logarithm")

        changed = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.init and getattr(self, f.name) != f.default
        }
        # Made here: torch.compile reads attributes, but does not trace json.
        object.__setattr__(self, "_spec", json.dumps(changed, sort_keys=True))

    def _check_number(self, name: str) -> None:
        value = getattr(self, name)
        if value is None and name in ("f_max", "dynamic_range", "pad_value"):
            return
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
        if not math.isfinite(value):
            raise ValueError(f"{name}: expected a finite number, got {value}")

    # ---- what follows from them

    @property
    def highest_frequency(self) -> float:
        """``f_max``, or half of the sample rate."""
        return self.sample_rate / 2 if self.f_max is None else self.f_max

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.sample_rate / self.hop_length

    @property
    def log_scale(self) -> float:
        """The logarithm over the natural one; 1 without a logarithm."""
        tens = {"log10": 1.0, "db": 10.0 if self.power == 2 else 20.0}
        return tens[self.log] / math.log(10) if self.log in tens else 1.0

    @property
    def first_sample(self) -> int:
        """The sample where the first frame begins; before the waveform if negative."""
        if self.framing == "snip_edges":
            return 0
        if self.framing == "no_snip_edges":
            return self.hop_length // 2 - self.win_length // 2
        return (self.n_fft - self.win_length) // 2 - self.n_fft // 2

    @overload
    def num_frames(self, samples: int) -> int: ...
    @overload
    def num_frames(self, samples: Tensor) -> Tensor: ...
    def num_frames(self, samples: int | Tensor) -> int | Tensor:
        """Frames of a waveform of so many samples: an int, or an int64 tensor of each; 0 of an empty one."""
        hop = self.hop_length
        if self.framing == "center":
            count = samples // hop + 1
        elif self.framing == "center_drop_last":
            count = samples // hop
        elif self.framing == "snip_edges":
            count = 1 + (samples - self.win_length) // hop
        else:
            count = (samples + hop // 2) // hop
        if isinstance(samples, Tensor) and isinstance(count, Tensor):
            return torch.where(samples > 0, count, 0).clamp(min=0)
        assert not isinstance(count, Tensor)
        return max(count, 0) if samples > 0 else 0

    def frame_centers(self, frames: int) -> Tensor:
        """Seconds from the first sample to the middle of each frame: float64 (frames,)."""
        return self._middle(torch.arange(frames, dtype=torch.float64)) / self.sample_rate

    def frame_mask(self, lengths: Tensor, frames: int, *, padded: bool = False) -> Tensor:
        """Which frames of a batch belong to its waveforms.

        Parameters
        ----------
        lengths : Tensor
            int64, samples of each waveform, of any shape.
        frames : int
            Frames of the result.
        padded : bool
            Whether waveforms were filled up with zeros (``pad_to``). Then a frame counts if its middle is a
            sample of the waveform, which is ``transformers``' attention mask; else if the waveform alone has
            it.

        Returns
        -------
        Tensor
            bool (*lengths.shape, frames), on the device of ``lengths``.
        """
        if not isinstance(lengths, Tensor) or lengths.dtype != torch.int64:
            kind = lengths.dtype if isinstance(lengths, Tensor) else type(lengths).__name__
            raise TypeError(f"lengths: expected an int64 tensor, got {kind}")
        index = torch.arange(frames, device=lengths.device)
        if padded:
            return self._middle(index) < lengths[..., None]
        return index < self.num_frames(lengths)[..., None]

    def _middle(self, index: Tensor) -> Tensor:
        inside = self.n_fft // 2 - (self.n_fft - self.win_length) // 2
        if not self.framing.startswith("center"):
            inside = self.win_length // 2
        return index * self.hop_length + (self.first_sample + inside)

    @property
    def spec(self) -> str:
        """The settings as text, from which :meth:`from_spec` makes them again."""
        return self._spec

    @staticmethod
    @functools.lru_cache(maxsize=256)
    def from_spec(spec: str) -> LogMelSettings:
        """Settings that ``spec`` stands for."""
        return LogMelSettings(**json.loads(spec))

    def window_weights(self) -> Doubles:
        """The window: float64 (win_length,)."""
        return window(self.window, self.win_length, self.periodic)

    def mel_filters(self) -> Doubles:
        """The filters: float64 (n_mels, n_fft // 2 + 1)."""
        return mel_filters(
            self.n_mels,
            self.n_fft,
            self.sample_rate,
            self.f_min,
            self.highest_frequency,
            self.mel_scale,
            self.mel_norm,
        )
