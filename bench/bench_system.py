"""One training step of the whole system, from files to gradients: fused ops beside plain torch.

A step reads clips of a file (pictures, sound, words), makes features of each modality, fuses them, makes the
losses of two heads, and goes all the way back. *mmcore* reads with ``read_clip`` and takes its compiled ops.
*eager* is what one writes first: PyAV to RGB, ``interpolate`` and normalisation in torch, ``torch.stft`` for
the log-mel, and plain torch for fusion and losses (the reference backend). The network is the same object.
Before anything is timed, both must give the same inputs, to what RGB bytes lose, and from the same inputs the
same loss and gradients.

The step is cut at the features, so that its parts can be timed forward and backward together; the cuts cost
nothing but a few references.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import torch
import torch.nn.functional as F
from torch import Tensor

import mmcore
from bench import media, timing
from mmcore.models import ClipInputs, Features, MultiTaskNet, clip_inputs

__all__ = ["CASES", "EAGER", "OURS", "PARTS", "SystemCase", "Workload", "measure", "run"]

OURS, EAGER = "mmcore", "eager"
PARTS = ("read", "encoders", "fusion", "heads and losses")

_SECONDS = 2.0
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CLASSES, _RATE = 400, 16000
_WORDS = ("one", "two", "three", "four", "five")


@dataclass(frozen=True)
class SystemCase:
    """One row of the suite."""

    name: str
    preset: str
    width: int
    height: int
    """Of the file's pictures."""
    size: int
    """Height and width that the network sees."""
    frames: int
    clips: int
    """Of a batch: that many stretches of two seconds."""
    reference: str | None = None
    """Fuse at each step of this modality; None: pooled."""


CASES = (
    SystemCase("tiny, 340x256 to 64x64, 8 frames, 8 clips", "tiny", 340, 256, 64, 8, 8),
    SystemCase(
        "tiny, 340x256 to 112x112, 16 frames, 4 clips, fused over time", "tiny", 340, 256, 112, 16, 4, "video"
    ),
    SystemCase("tiny, 1280x720 to 112x112, 8 frames, 4 clips", "tiny", 1280, 720, 112, 8, 4),
    SystemCase("base, 340x256 to 224x224, 8 frames, 2 clips", "base", 340, 256, 224, 8, 2),
)

_QUICK = (CASES[0].name,)


def source(width: int, height: int) -> Path:
    """Ten seconds of a measured clip's pictures with sound and a word each second; written on first use."""
    path = media.cache_dir() / f"system_{width}x{height}.mp4"
    if not path.exists():
        pictures = media.clip("h264", width, height)
        t = torch.arange(10 * 48000) / 48000
        sound = 0.3 * torch.sin(2 * torch.pi * (300 + 40 * torch.sin(2 * torch.pi * t)) * t)
        words = [(i + 0.2, i + 0.9, _WORDS[i % len(_WORDS)]) for i in range(10)]
        with (
            tempfile.TemporaryDirectory(dir=path.parent) as folder,
            mmcore.VideoDecoder(pictures.path) as frames,
        ):
            part = Path(folder) / path.name
            mmcore.encode(part, frames=frames, fps=30, audio=sound, sample_rate=48000, text=words)
            part.replace(path)
    return path


class Workload:
    """A case's file, network and labels, and the step in both ways.

    Parameters
    ----------
    case : SystemCase
    device : str
        "cpu" or "cuda".
    """

    def __init__(self, case: SystemCase, device: str) -> None:
        self.case, self.device = case, device
        self.path = source(case.width, case.height)
        self.starts = [i * (10 - _SECONDS) / max(case.clips - 1, 1) for i in range(case.clips)]
        torch.manual_seed(0)
        tasks = {"kind": mmcore.Task.cross_entropy(label_smoothing=0.1), "place": mmcore.Task.smooth_l1()}
        loss = mmcore.nn.MultiTaskLoss(tasks, "uncertainty")
        outputs = {"kind": _CLASSES, "place": 4}
        net = MultiTaskNet.preset(case.preset, outputs, loss, reference=case.reference)
        self.net = net.to(device).train()
        self.targets = {
            "kind": torch.randint(_CLASSES, (case.clips,), device=device),
            "place": torch.rand(case.clips, 4, device=device),
        }

    # reading

    def read_ours(self) -> ClipInputs:
        """Clips by ``read_clip``, collated."""
        size = (self.case.size, self.case.size)
        transform = mmcore.FrameTransform(resize=size, mean=_MEAN, std=_STD, dtype=torch.float32)
        options: dict[str, Any] = {
            "video": {
                "transform": transform,
                "num_frames": self.case.frames,
                "num_threads": 1,
                "device": self.device,
            },
            "audio": {"log_mel": True},
            "text": {"tokenizer": mmcore.ByteTokenizer()},
        }
        with mmcore.clips.ClipReader(self.path, **options) as reader:
            clips = [reader.read(start, start + _SECONDS) for start in self.starts]
        return clip_inputs(mmcore.collate_clips(clips))

    def read_eager(self) -> ClipInputs:
        """The same tensors by PyAV and torch."""
        with av.open(str(self.path)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            words = _segments(container)
            sound = _samples(container)
            rows = []
            for start in self.starts:
                said = [text for begin, end, text in words if begin < start + _SECONDS and end > start]
                ids = [i for text in said for i in mmcore.ByteTokenizer().encode(text)]
                first = round(start * _RATE)
                rows.append(
                    (
                        _pictures(container, start, self.case),
                        _log_mel(sound[first : first + round(_SECONDS * _RATE)]),
                        torch.tensor(ids),
                    )
                )
        inputs, masks = {}, {}
        for m, name in enumerate(("video", "audio", "text")):
            parts = [row[m] for row in rows]
            inputs[name] = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
            lengths = torch.tensor([len(part) for part in parts])
            masks[name] = torch.arange(inputs[name].shape[1]) < lengths[:, None]
        return ClipInputs(inputs, masks, torch.ones(len(rows), 3, dtype=torch.bool))

    def to_device(self, found: ClipInputs) -> ClipInputs:
        """On the network's device."""
        inputs, masks, available = found
        return ClipInputs(
            {name: x.to(self.device) for name, x in inputs.items()},
            {name: x.to(self.device) for name, x in masks.items()},
            available.to(self.device),
        )

    # the step

    def step(self, name: str, clock: Callable[[], float]) -> dict[str, float]:
        """One step of :data:`OURS` or :data:`EAGER`, gradients included; gives the seconds of each part."""
        spent = dict.fromkeys(PARTS, 0.0)
        now = self._now(clock)

        def lap(part: str) -> None:
            nonlocal now
            after = self._now(clock)
            spent[part] += after - now
            now = after

        read = self.read_ours if name == OURS else self.read_eager
        found = self.to_device(read())
        lap("read")
        with nullcontext() if name == OURS else mmcore.backend("reference"):
            self.differentiate(found, lap)
        return spent

    def differentiate(self, found: ClipInputs, lap: Callable[[str], None] = lambda part: None) -> Tensor:
        """Forward and backward, cut at the features and at what the heads read; gives the total loss."""
        net = self.net
        net.zero_grad()
        features = net.encode(found.inputs, found.masks)
        lap("encoders")
        leaves = {n: Features(f.data.detach().requires_grad_(), f.mask) for n, f in features.items()}
        fused = net.fusion(leaves, found.available)
        x, mask = fused if isinstance(fused, Features) else (fused, None)
        lap("fusion")
        z = x.detach().requires_grad_()
        total, _ = net.loss({name: head(z, mask) for name, head in net.heads.items()}, self.targets)
        total.backward()
        lap("heads and losses")
        x.backward(z.grad)
        lap("fusion")
        torch.autograd.backward([f.data for f in features.values()], [f.data.grad for f in leaves.values()])
        lap("encoders")
        return total.detach()

    def _now(self, clock: Callable[[], float]) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return clock()

    def check(self) -> dict[str, float]:
        """Differences of both ways' inputs (mean) and gradients (largest, over the largest gradient).

        Raises
        ------
        AssertionError
            If they are more than rounding, and for pictures the conversion by FFmpeg, explains.
        """
        ours, eager = self.read_ours(), self.read_eager()
        found = {}
        # FFmpeg replicates chroma where mmcore interpolates it, and pictures have passed bytes.
        for name, most in (("video", 0.06), ("audio", 5e-3), ("text", 0.0)):
            a, b = ours.inputs[name].cpu(), eager.inputs[name]
            if a.shape != b.shape:
                raise AssertionError(f"{name}: mmcore's shape is {tuple(a.shape)}, eager's {tuple(b.shape)}")
            found[name] = float((a - b).abs().double().mean())
            if not found[name] <= most:
                raise AssertionError(f"{name}: inputs differ by {found[name]:.3g} on average")
        same = self.to_device(ours)
        results = []
        for context in (nullcontext(), mmcore.backend("reference")):
            with context:
                total = self.differentiate(same)
            results.append([total, *(p.grad.clone() for p in self.net.parameters() if p.grad is not None)])
        largest = max(float(g.abs().max()) for g in results[1])
        found["gradients"] = max(float((a - b).abs().max()) for a, b in zip(*results, strict=True)) / largest
        if not found["gradients"] <= 1e-3:
            raise AssertionError(f"gradients differ by {found['gradients']:.3g} of the largest")
        return found


# ---- eager reading


def _segments(container: Any) -> list[tuple[float, float, str]]:
    """Start, end and text of mov_text: two bytes of length, then the text."""
    found = []
    for packet in container.demux(subtitles=0):
        data = bytes(packet)
        text = data[2 : 2 + int.from_bytes(data[:2])].decode()
        if text:
            start = float(packet.pts * packet.time_base)
            found.append((start, start + float(packet.duration * packet.time_base), text))
    container.seek(0)
    return found


def _samples(container: Any) -> Tensor:
    """All of the file's sound, mono at 16 kHz, from 0 s on."""
    resampler = av.AudioResampler(format="flt", layout="mono", rate=_RATE)
    chunks, start = [], None
    for frame in container.decode(audio=0):
        start = frame.time if start is None else start
        chunks += resampler.resample(frame)
    chunks += resampler.resample(None)
    container.seek(0)
    samples = torch.cat([torch.from_numpy(chunk.to_ndarray()[0].copy()) for chunk in chunks])
    skip = round((start or 0.0) * _RATE)
    return samples[-skip:] if skip < 0 else F.pad(samples, (skip, 0))


def _pictures(container: Any, start: float, case: SystemCase) -> Tensor:
    """(T, 3, size, size): the frames shown at the starts of so many equal parts of the clip."""
    wanted = [start + i * _SECONDS / case.frames + 1e-6 for i in range(case.frames)]
    stream = container.streams.video[0]
    container.seek(int(start / stream.time_base), stream=stream)
    found, shown = [], None
    for frame in container.decode(stream):
        while len(found) < len(wanted) and frame.time > wanted[len(found)]:
            found.append(frame if shown is None else shown)
        if len(found) == len(wanted):
            break
        shown = frame
    found += [shown] * (len(wanted) - len(found))
    rgb = torch.stack([torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in found])
    x = rgb.permute(0, 3, 1, 2).float()
    x = F.interpolate(x, (case.size, case.size), mode="bilinear", antialias=True) / 255
    return (x - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_STD).view(3, 1, 1)


def _log_mel(samples: Tensor) -> Tensor:
    """(frames, 80), as openai-whisper has it."""
    stft = torch.stft(samples, 400, 160, window=torch.hann_window(400), return_complex=True)
    log = (_filters() @ stft[:, :-1].abs().square()).clamp(min=1e-10).log10()
    return ((torch.maximum(log, log.max() - 8.0) + 4.0) / 4.0).T


@functools.cache
def _filters() -> Tensor:
    return torch.from_numpy(mmcore.LogMelSettings.whisper().mel_filters()).float()


def run(
    *,
    quick: bool = False,
    rounds: int | None = None,
    only: str = "",
    threads: int = 1,
    clock: str = "wall",
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Check, then measure, both ways on every case, on the CPU and on CUDA if there is a device.

    Returns
    -------
    dict
        ``rows``: per case and device the milliseconds of a step, of each of its parts (medians), and how many
        times ours eager's are. On CUDA the clock is the wall's.
    """
    rounds = rounds or (5 if quick else 9)
    cases = [c for c in CASES if only in c.name and (not quick or c.name in _QUICK)]
    if not cases:
        raise ValueError(f"only: no case's name contains {only!r}")
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    rows = [measure(case, device, rounds, clock, progress) for case in cases for device in devices]
    return {
        "suite": "system",
        "threads": threads,
        "clock": clock,
        "rounds": rounds,
        "absent": {} if len(devices) > 1 else {"cuda": "no CUDA device"},
        "rows": rows,
    }


def measure(
    case: SystemCase, device: str, rounds: int, clock: str, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Check a case on a device, and time both ways: its row of the record."""
    progress(f"{case.name}, {device}: checking")
    work = Workload(case, device)
    differences = work.check()
    progress(f"{case.name}, {device}: {rounds} rounds")
    clock = "wall" if device == "cuda" else clock
    parts: dict[str, list[dict[str, float]]] = {OURS: [], EAGER: []}

    def run_one(name: str) -> None:
        parts[name].append(work.step(name, timing.CLOCKS[clock]))

    names = (OURS, EAGER)
    for name in names:
        work.step(name, timing.CLOCKS[clock])
    samples = timing.interleave({name: functools.partial(run_one, name) for name in names}, rounds)
    wall, cpu = (sum(sum(getattr(s, c)) for s in samples.values()) for c in ("wall", "cpu"))
    return {
        "case": case.name,
        "device": device,
        "parameters": sum(p.numel() for p in work.net.parameters()),
        "differences": differences,
        "ms": {name: timing.quartiles([1e3 * t for t in samples[name].of(clock)]) for name in names},
        "parts_ms": {
            name: {part: timing.quartiles([1e3 * spent[part] for spent in parts[name]])[1] for part in PARTS}
            for name in names
        },
        "eager_over_ours": timing.ratios(samples[EAGER], samples[OURS], clock),
        "wall_over_cpu": wall / cpu,
    }
