"""``read_clip`` beside what is written by hand: pictures, sound and words of two seconds of a file.

One figure is the time of a clip, opening and closing the file included; where a row reads several clips of
one opening, a share of that. Before anything is timed every competitor's clips are compared with a plain
decode of the whole file. How often the file is opened for a clip, and how many bytes are read, is counted
by the system (Linux), for all alike.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import torch
from torch import Tensor

import mmcore
from bench import media, timing
from bench.bench_decode import check
from bench.bench_system import source
from bench.cases import MEAN, STD
from bench.clip_peers import (
    OURS,
    RATE,
    SAVED,
    SECONDS,
    ClipCase,
    Found,
    Peer,
    Run,
    log_mel,
    peers,
    words_between,
)
from bench.file_access import file_access

__all__ = ["CASES", "Prepared", "clip_file", "measure", "prepare", "run"]

_NEAR, _FAR = (1.0, 6.5), (241.0, 246.5)
CASES = (
    ClipCase("720p, 8 frames, log-mel", "mp4", 1280, 720, 224, 8, True, _NEAR),
    ClipCase("720p, every frame, samples", "mp4", 1280, 720, 224, None, False, _NEAR),
    ClipCase("720p MKV, 8 frames, log-mel", "mkv", 1280, 720, 224, 8, True, _NEAR),
    ClipCase("720p and .srt, 8 frames, log-mel", "srt", 1280, 720, 224, 8, True, _NEAR),
    ClipCase("720p, 8 frames, log-mel, 240 s into 300 s", "minutes", 1280, 720, 224, 8, True, _FAR),
    ClipCase("720p, 3 clips of one opening", "mp4", 1280, 720, 224, 8, True, (1.0, 4.5, 7.5), once=True),
    ClipCase("340x256, 16 frames, log-mel", "mp4", 340, 256, 112, 16, True, _NEAR),
)

_QUICK = (CASES[0].name, CASES[-1].name)
_LENGTH = 10  # seconds of the original
_COPIES = 30  # of it: "minutes"
_MEL = 3e-2
"""Mean absolute difference of log-mel values that other resampling explains."""


def clip_file(case: ClipCase) -> Path:
    """The case's file, made on first use from the one that the system suite reads."""
    original = source(case.width, case.height)
    if case.file == "mp4":
        return original
    folder = media.cache_dir() / "clips"
    folder.mkdir(exist_ok=True)
    path = folder / f"{original.stem}_{case.file}.{'mkv' if case.file == 'mkv' else 'mp4'}"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            part = Path(scratch) / path.name
            if case.file == "srt":
                path.with_suffix(".srt").write_text(_srt(original), encoding="utf-8")
            _write(original, part, words=case.file != "srt", copies=_COPIES if case.file == "minutes" else 1)
            part.replace(path)
    return path


def _srt(path: Path) -> str:
    def clock(seconds: float) -> str:
        t = round(seconds * 1000)
        return f"{t // 3_600_000:02}:{t // 60_000 % 60:02}:{t // 1000 % 60:02},{t % 1000:03}"

    words = enumerate(mmcore.TextDecoder(path), 1)
    return "\n".join(f"{i}\n{clock(s.start)} --> {clock(s.end)}\n{s.text}\n" for i, s in words)


def _write(original: Path, target: Path, *, words: bool, copies: int) -> None:
    """Write the packets of the pictures over and over, with as much sound and as many words beside them."""
    with mmcore.AudioDecoder(original) as decoder:
        samples = decoder.get_all_samples()
    heard = target.with_name("heard" + target.suffix)
    text = [
        (s.start + i * _LENGTH, s.end + i * _LENGTH, s.text)
        for i in range(copies)
        for s in (mmcore.TextDecoder(original) if words else ())
    ]
    mmcore.encode(
        heard, audio=samples.data.repeat(1, copies), sample_rate=samples.sample_rate, text=text or None
    )
    with av.open(str(original)) as one, av.open(str(heard)) as two, av.open(str(target), "w") as writer:
        entries: list[tuple[Any, ...]] = []
        for reader, streams, times in ((one, one.streams.video, copies), (two, two.streams, 1)):
            new = {s.index: writer.add_stream_from_template(s, opaque=True) for s in streams}
            packets = [p for p in reader.demux(list(streams)) if p.dts is not None]
            for i in range(times):
                for p in packets:
                    shift = round(i * _LENGTH / p.time_base)
                    entries.append((p, new[p.stream.index], p.pts + shift, p.dts + shift))
        for p, stream, pts, dts in sorted(entries, key=lambda e: e[3] * e[0].time_base):
            packet: Any = av.Packet(bytes(p))
            packet.stream, packet.time_base, packet.is_keyframe = stream, p.time_base, p.is_keyframe
            packet.pts, packet.dts, packet.duration = pts, dts, p.duration
            writer.mux(packet)


def plain(case: ClipCase, path: Path) -> list[Found]:
    """The case's clips from a plain decode with PyAV to the end of each; pictures converted by mmcore."""
    clips = []
    samples = _all_samples(path)
    words = [(s.start, s.end, s.text) for s in mmcore.TextDecoder(path)]
    transform = mmcore.FrameTransform(resize=(case.size,) * 2, mean=MEAN, std=STD, dtype=torch.float32)
    for start in case.starts:
        count = case.frames
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            container.seek(max(0, int((start - 20) / stream.time_base)), stream=stream)
            frames = {f.pts: f for f in container.decode(stream) if start - 1 < f.time < start + SECONDS}
        step = stream.time_base
        times = sorted(frames)
        wanted = [t for t in times if start - 1e-6 <= t * step]
        if count is not None:
            asked = [start + i * SECONDS / count + 1e-6 for i in range(count)]
            wanted = [max(t for t in times if t * step <= a) for a in asked]
        pictures = mmcore.frames_to_tensor([frames[t] for t in wanted], transform).clone()
        sound = samples[round(start * RATE) : round((start + SECONDS) * RATE)]
        clips.append(Found(pictures, log_mel(sound) if case.mel else sound, words_between(words, start)))
    return clips


def _all_samples(path: Path) -> Tensor:
    """All of a file's sound, mono at 16 kHz, from 0 s on, resampled in one go by FFmpeg."""
    with av.open(str(path)) as container:
        resampler = av.AudioResampler("fltp", "mono", RATE)
        frames = list(container.decode(audio=0))
        parts = [part for frame in [*frames, None] for part in resampler.resample(frame)]
    samples = torch.cat([torch.from_numpy(part.to_ndarray()[0]) for part in parts])
    skip = -round(frames[0].time * RATE)
    return samples[skip:] if skip > 0 else torch.nn.functional.pad(samples, (-skip, 0))


def agree(peer: Peer, case: ClipCase, got: Sequence[Found], expected: Sequence[Found]) -> dict[str, float]:
    """Check that the clips are those asked for.

    Returns
    -------
    dict
        "pictures": worst frame's mean absolute difference in levels (0-255). "sound": worst clip's mean
        absolute difference of samples, or of log-mel values.

    Raises
    ------
    AssertionError
        For other words, or if pictures or sound differ by more than the peer's filters explain, or if a frame
        is nearer to one of its neighbours.
    """
    differences = {"pictures": 0.0, "sound": 0.0}
    for a, b in zip(got, expected, strict=True):
        if [w[2] for w in a.words] != [w[2] for w in b.words]:
            raise AssertionError(f"{peer.name}: the words are {a.words}, expected {b.words}")
        for one, two in zip(a.words, b.words, strict=True):
            if max(abs(one[0] - two[0]), abs(one[1] - two[1])) > 2e-3:
                raise AssertionError(f"{peer.name}: the words are {a.words}, expected {b.words}")
        levels = check(peer.name, a.pictures, b.pictures, peer.levels)
        for i, picture in enumerate(a.pictures):
            beside = [k for k in (i, i - 1, i + 1) if k in range(len(b.pictures))]
            if min(beside, key=lambda k: float((picture - b.pictures[k]).abs().mean())) != i:
                raise AssertionError(f"{peer.name}: gives another frame for number {i}")
        if a.sound.shape != b.sound.shape:
            raise AssertionError(
                f"{peer.name}: sound of shape {tuple(a.sound.shape)}, expected {tuple(b.sound.shape)}"
            )
        sound = float((a.sound - b.sound).abs().mean())
        # who resamples from another sample on has them elsewhere, by half of one at most
        most = _MEL if case.mel else 0.5 * float(b.sound.diff().abs().mean())
        if not sound <= most:
            raise AssertionError(f"{peer.name}: sound differs by {sound:.2g} on average")
        differences = {
            "pictures": max(differences["pictures"], levels),
            "sound": max(differences["sound"], sound),
        }
    return differences


@dataclass
class Prepared:
    """Competitors of a case, checked."""

    path: Path
    runs: dict[str, Run]
    differences: dict[str, dict[str, float]]
    absent: dict[str, str]


def prepare(case: ClipCase, threads: int = 1) -> Prepared:
    """Make and check the competitors; one that does not import, or gives other clips, is absent."""
    path = clip_file(case)
    prepared = Prepared(path, {}, {}, {})
    expected = plain(case, path)
    for peer in peers(case):
        reason = peer.missing()
        if reason is None:
            call = peer.prepare(case, path, threads)
            try:
                prepared.differences[peer.name] = agree(peer, case, call(), expected)
                prepared.runs[peer.name] = call
            except Exception as e:  # whatever a library raises, the others are compared
                if peer.name in (OURS, SAVED):
                    raise
                reason = f"{type(e).__name__}: {e}".partition("\n")[0]
        if reason is not None:
            prepared.absent[peer.name] = reason
    return prepared


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
        ``rows``: per case each competitor's milliseconds for a clip, how often it opens the file, the bytes
        that it reads, and its time over mmcore's; the best peer. ``absent``: competitor to reason.
    """
    rounds = rounds or (3 if quick else 5)
    cases = [c for c in CASES if only in c.name and (not quick or c.name in _QUICK)]
    if not cases:
        raise ValueError(f"only: no case's name contains {only!r}")
    rows: list[dict[str, Any]] = []
    absent: dict[str, str] = {}
    for case in cases:
        row, missing = measure(case, rounds, threads, clock, progress)
        absent |= missing
        rows.append(row)
    return {
        "suite": "clips",
        "threads": threads,
        "clock": clock,
        "rounds": rounds,
        "seconds_of_a_clip": SECONDS,
        "absent": absent,
        "rows": rows,
    }


def measure(
    case: ClipCase, rounds: int, threads: int, clock: str, progress: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Check a case and time it: its row of the record, and who is absent for which reason."""
    progress(f"{case.name}: checking")
    prepared = prepare(case, threads)
    progress(f"{case.name}: {rounds} rounds")
    samples = timing.interleave(prepared.runs, rounds)
    clips = len(case.starts)
    watched = [prepared.path, *([prepared.path.with_suffix(".srt")] if case.file == "srt" else [])]
    entries = {}
    for name, call in prepared.runs.items():
        access = file_access(call, watched)
        entries[name] = {
            "ms": timing.quartiles([1e3 * t / clips for t in samples[name].of(clock)]),
            "over_ours": timing.ratios(samples[name], samples[OURS], clock),
            "opened": None if access is None else access[0] / clips,
            "bytes_read": None if access is None else access[1] / clips,
            "differences": prepared.differences[name],
        }
    others = [name for name in entries if name not in (OURS, SAVED)]
    wall, cpu = (sum(sum(getattr(s, c)) for s in samples.values()) for c in ("wall", "cpu"))
    row = {
        "case": case.name,
        "clips": clips,
        "file_bytes": prepared.path.stat().st_size,
        "competitors": entries,
        "best_peer": min(others, key=lambda n: entries[n]["over_ours"][1], default=None),
        "wall_over_cpu": wall / cpu,
    }
    return row, {f"{name}, {case.name}": reason for name, reason in prepared.absent.items()}
