"""``log_mel`` beside transformers, torchaudio, librosa and plain torch, on waveforms in memory.

One figure is the time from a waveform to the features that the model takes. Every competitor is checked
against the float64 reference before it is timed, at the settings of the case; transformers' and torchaudio's
are the public calls. *torch FFT alone* is ``torch.fft.rfft`` of as many frames into memory that is there
already: what any way that uses torch's transform takes at least.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import mmcore
from bench import timing
from mmcore import LogMelSettings

__all__ = ["CASES", "FFT", "OURS", "LogMelCase", "competitors", "prepare", "run"]

OURS, FFT = "mmcore", "torch FFT alone"
TRANSFORMERS, TORCHAUDIO, LIBROSA = "transformers", "torchaudio", "librosa"
EAGER, COMPILED = "eager", "torch.compile"

_SAMPLE_SECONDS = 0.02  # of calls in one sample, so that neither the timer nor a process switch counts
_MOST_ERROR = {torch.float32: 1e-3, torch.bfloat16: 1e-2}
"""Of a value. Float32's is that of quiet filters beside loud ones; the mean stays under a tenth of it."""


@dataclass(frozen=True)
class LogMelCase:
    """One row of the suite."""

    name: str
    kind: str
    """"whisper", "ast" or "kaldi"."""
    n_mels: int
    seconds: float
    rows: int = 1
    pad_to: int | None = None
    dtype: torch.dtype = torch.float32
    goal: float = 3.0
    """At least so many times the best peer."""

    @property
    def settings(self) -> LogMelSettings:
        """What mmcore is called with."""
        return getattr(LogMelSettings, self.kind)(self.n_mels)  # type: ignore[no-any-return]

    @property
    def frames(self) -> int:
        """Of the result, of all rows."""
        samples = self.pad_to or round(self.seconds * 16000)
        return self.rows * self.settings.num_frames(samples)  # type: ignore[no-any-return]


CASES = (
    LogMelCase("Whisper 80, 30 s", "whisper", 80, 30),
    LogMelCase("Whisper 128, 30 s", "whisper", 128, 30),
    LogMelCase("Whisper 80, 30 s, bf16", "whisper", 80, 30, dtype=torch.bfloat16),
    LogMelCase("Whisper 80, 10 s padded to 30 s", "whisper", 80, 10, pad_to=480_000),
    LogMelCase("Whisper 80, 16 x 30 s", "whisper", 80, 30, rows=16),
    LogMelCase("Whisper 80, 1 s", "whisper", 80, 1),
    LogMelCase("AST 128, 10.24 s", "ast", 128, 10.24),
    LogMelCase("Kaldi 80, 30 s", "kaldi", 80, 30),
)

_QUICK = ("Whisper 80, 30 s", "AST 128, 10.24 s")

Call = Callable[[], Tensor | np.ndarray]


def _waveform(case: LogMelCase) -> Tensor:
    """Harmonics that glide, with noise: no filter is far below the others."""
    generator = torch.Generator().manual_seed(0)
    samples = round(case.seconds * 16000)
    t = torch.arange(samples, dtype=torch.float64) / 16000
    phase = 2 * torch.pi * torch.cumsum(140 + 40 * torch.sin(2 * torch.pi * 0.7 * t), 0) / 16000
    voice = torch.stack([torch.sin(k * phase) / k for k in range(1, 20)]).sum(0)
    noise = torch.randn(case.rows, samples, dtype=torch.float64, generator=generator)
    return (0.1 * voice * (1.2 + torch.sin(2 * torch.pi * 2 * t)) + 0.01 * noise).float()


def competitors(case: LogMelCase) -> list[str]:
    """Who takes part in a case."""
    peers = {
        "whisper": [TRANSFORMERS, TORCHAUDIO, LIBROSA, EAGER, COMPILED],
        "ast": [TRANSFORMERS, TORCHAUDIO],
        "kaldi": [TORCHAUDIO],
    }
    return [*peers[case.kind], FFT, OURS]


def _whisper_end(mel: Tensor) -> Tensor:
    log = mel.clamp(min=1e-10).log10()
    log = torch.maximum(log, log.amax((-2, -1), keepdim=True) - 8.0)
    return (log + 4.0) / 4.0


def _eager(case: LogMelCase, x: Tensor) -> Call:
    """As openai-whisper has it."""
    window = torch.hann_window(400)
    filters = torch.from_numpy(case.settings.mel_filters()).float()
    total = case.pad_to or x.shape[1]

    def features(x: Tensor) -> Tensor:
        x = torch.nn.functional.pad(x, (0, total - x.shape[1]))
        stft = torch.stft(x, 400, 160, window=window, return_complex=True)
        return _whisper_end(filters @ stft[..., :-1].abs().square()).to(case.dtype)

    return functools.partial(features, x)


def _compiled(case: LogMelCase, x: Tensor) -> Call:
    torch._dynamo.reset()
    eager: Any = _eager(case, x)
    return functools.partial(torch.compile(eager.func, dynamic=False), x)


def _transformers(case: LogMelCase, x: Tensor) -> Call:
    import transformers

    rows = list(x.numpy())
    if case.kind == "whisper":
        extractor = transformers.WhisperFeatureExtractor(feature_size=case.n_mels)
        options = {"max_length": case.pad_to or x.shape[1], "return_tensors": "np"}
        name = "input_features"
    else:
        extractor = transformers.ASTFeatureExtractor(
            num_mel_bins=case.n_mels, max_length=case.frames // case.rows
        )
        options, name = {"return_tensors": "np"}, "input_values"

    def features() -> Tensor:
        found = extractor(rows, sampling_rate=16000, **options)[name]
        return torch.from_numpy(found).to(case.dtype)

    return features


def _torchaudio(case: LogMelCase, x: Tensor) -> Call:
    import torchaudio

    if case.kind == "whisper":
        spectrogram = torchaudio.transforms.MelSpectrogram(
            16000, 400, hop_length=160, n_mels=case.n_mels, norm="slaney", mel_scale="slaney"
        )
        total = case.pad_to or x.shape[1]

        def features() -> Tensor:
            padded = torch.nn.functional.pad(x, (0, total - x.shape[1]))
            return _whisper_end(spectrogram(padded)[..., :-1]).to(case.dtype)

        return features
    s = case.settings
    window = "hanning" if s.window == "hann" else s.window

    def fbank() -> Tensor:
        found = [
            torchaudio.compliance.kaldi.fbank(
                row[None], sample_frequency=16000, window_type=window, num_mel_bins=case.n_mels
            )
            for row in x
        ]
        return (torch.stack(found) - s.mean) / s.std

    return fbank


def _librosa(case: LogMelCase, x: Tensor) -> Call:
    import librosa

    y = x.numpy()
    total = case.pad_to or x.shape[1]

    def features() -> Tensor:
        padded = np.pad(y, ((0, 0), (0, total - y.shape[1])))
        mel = librosa.feature.melspectrogram(
            y=padded, sr=16000, n_fft=400, hop_length=160, n_mels=case.n_mels, pad_mode="reflect"
        )
        log = np.log10(np.maximum(mel[..., :-1], 1e-10))
        log = np.maximum(log, log.max((-2, -1), keepdims=True) - 8.0)
        return torch.from_numpy((log + 4.0) / 4.0).to(case.dtype)

    return features


def _fft(case: LogMelCase, x: Tensor) -> Call:
    n_fft = case.settings.n_fft
    frames = torch.randn(case.frames, n_fft)
    out = torch.empty(case.frames, n_fft // 2 + 1, dtype=torch.complex64)
    return lambda: torch.fft.rfft(frames, out=out)


def _ours(case: LogMelCase, x: Tensor) -> Call:
    settings = case.settings
    return lambda: mmcore.log_mel(x, 16000, settings, pad_to=case.pad_to, dtype=case.dtype)


_MAKERS: Mapping[str, Callable[[LogMelCase, Tensor], Call]] = {
    TRANSFORMERS: _transformers,
    TORCHAUDIO: _torchaudio,
    LIBROSA: _librosa,
    EAGER: _eager,
    COMPILED: _compiled,
    FFT: _fft,
    OURS: _ours,
}


@dataclass
class Prepared:
    """Competitors of a case, checked."""

    runs: dict[str, Call]
    errors: dict[str, float]
    """Largest difference from the float64 reference."""
    absent: dict[str, str]


def prepare(case: LogMelCase, names: Sequence[str]) -> Prepared:
    """Make and check the competitors named; a peer that does not import or is wrong is absent."""
    x = _waveform(case)
    with mmcore.backend("reference"):
        expected = mmcore.log_mel(x.double(), 16000, case.settings, pad_to=case.pad_to)
    prepared = Prepared({}, {}, {})
    for name in names:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                call = _MAKERS[name](case, x)
                got = torch.as_tensor(call())
            if name != FFT:
                difference = (got.double() - expected).abs()
                error = float(difference.max())
                if not (error <= _MOST_ERROR[case.dtype] and float(difference.mean()) <= error / 3):
                    raise AssertionError(f"differs from the float64 reference by {error:.2g}")
                prepared.errors[name] = error
        except Exception as e:
            if name == OURS:
                raise
            prepared.absent[name] = f"{type(e).__name__}: {e}".partition("\n")[0]
        else:
            prepared.runs[name] = call
    return prepared


def _repeated(call: Call) -> tuple[Callable[[], None], int]:
    """As many calls as make a sample."""
    call()
    alone = timing.interleave({"": call}, 1)[""].wall[0]
    count = max(1, round(_SAMPLE_SECONDS / alone))

    def calls() -> None:
        for _ in range(count):
            call()

    return calls, count


def run(
    *,
    quick: bool = False,
    rounds: int | None = None,
    only: str = "",
    threads: int = 1,
    clock: str = "wall",
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Check, then measure, every competitor on every case.

    Returns
    -------
    dict
        ``rows``: per case each competitor's milliseconds and error, how many times ours its time is, with the
        best peer, and the goal.
    """
    rounds = rounds or (7 if quick else 15)
    cases = [c for c in CASES if only in c.name and (not quick or c.name in _QUICK)]
    if not cases:
        raise ValueError(f"only: no case's name contains {only!r}")
    rows, absent = [], {}
    for case in cases:
        progress(f"{case.name}: checking")
        prepared = prepare(case, competitors(case))
        absent |= {f"{name}, {case.name}": reason for name, reason in prepared.absent.items()}
        repeated = {name: _repeated(call) for name, call in prepared.runs.items()}
        progress(f"{case.name}: {rounds} rounds")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            samples = timing.interleave({name: calls for name, (calls, _) in repeated.items()}, rounds)
        for name, (_, count) in repeated.items():
            for clocked in (samples[name].wall, samples[name].cpu):
                clocked[:] = [seconds / count for seconds in clocked]
        over = {
            name: timing.ratios(samples[name], samples[OURS], clock) for name in prepared.runs if name != OURS
        }
        peers = [name for name in over if name != FFT]
        best = min(peers, key=lambda name: over[name][1]) if peers else None
        wall, cpu = (sum(sum(getattr(s, c)) for s in samples.values()) for c in ("wall", "cpu"))
        rows.append(
            {
                "case": case.name,
                "frames": case.frames,
                "goal": case.goal,
                "ms": {n: timing.quartiles([1e3 * t for t in s.of(clock)]) for n, s in samples.items()},
                "ours_over": over,
                "best_peer": best,
                "errors": prepared.errors,
                "wall_over_cpu": wall / cpu,
            }
        )
    return {
        "suite": "log_mel",
        "threads": threads,
        "clock": clock,
        "rounds": rounds,
        "absent": absent,
        "rows": rows,
    }
