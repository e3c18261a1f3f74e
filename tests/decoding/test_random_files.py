"""Random files, read in random ways: every frame and time is the one that a plain decode gives.

``MMCORE_TEST_SOAK=2000`` tests that many files, and each in four times as many ways.
"""

from __future__ import annotations

import io
import os
import random
from bisect import bisect_right
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from decoding import random_media
from decoding.random_media import Recipe

import mmcore

SOAK = int(os.environ.get("MMCORE_TEST_SOAK", "0"))
FILES = SOAK or 100
CASES = 120 if SOAK else 30  # per file
# These files are small: make the decoder do with them what it does with large ones.
AS_IF_LARGE = {
    "mmcore.decoding.decoder_team._THREADED_PIXELS": 0,
    "mmcore.decoding.decoder_team._OPENING_SECONDS": 0.0,
}

# What the default files must have between them, so that a change of the generator cannot lose it unseen.
FEATURES = {
    *("open groups", "closed groups", "gradual refresh", "temporal layers", "decodable leading pictures"),
    *("hidden frames", "error resilient", "interlaced", "ten bit", "forced key frames", "forced IDR"),
    *("scene cuts", "variable frame rate", "late start", "clock wraps around", "fragments", "no edit list"),
    *("negative composition offsets", "live", "edit list", "starts anywhere", "starts again", "sound"),
    *("new parameters", "slices", "film grain", "overlays"),
}


@dataclass(frozen=True)
class Truth:
    """What a plain decode of a whole file gives: frames (N, 3, H, W) and when they are shown."""

    frames: torch.Tensor
    seconds: list[float]
    timed: bool
    """False where the container carries no times, so that only the order of the frames is given."""


def plain_decode(path: Path) -> Truth | None:
    """Decode with PyAV on one thread, passing over what does not decode; None if nothing does."""
    frames, times = [], []
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        assert stream is not None
        codec: Any = stream.codec_context
        codec.thread_count = 1
        for packet in container.demux(stream):
            if not packet.size and packet.dts is not None:
                continue  # AVI's way to show a frame for longer; a decoder takes it for the end
            try:
                decoded = codec.decode(packet)
            except av.error.InvalidDataError:
                continue
            for frame in decoded:
                builder = mmcore.FrameBatchBuilder(1, codec_name=codec.codec.canonical_name)
                builder.put(0, frame)
                frames.append(builder.finish()[0].clone())
                times.append(frame.time)
    if not frames:
        return None
    timed = path.suffix[1:] not in random_media.UNTIMED and len(set(times) - {None}) == len(times)
    # Files joined to one may overlap in time by some frames, which a decoder gives in the files' order.
    order = sorted(range(len(frames)), key=times.__getitem__) if timed else range(len(frames))
    return Truth(torch.stack([frames[i] for i in order]), [times[i] or 0.0 for i in order], timed)


@dataclass(frozen=True)
class Case:
    """One call: a method of VideoDecoder, its arguments, and the frames that it must give."""

    method: str
    arguments: tuple[Any, ...]
    expected: list[int]


def draw_case(rng: random.Random, decoder: mmcore.VideoDecoder, seconds: list[float]) -> Case:
    """Draw a call; ``seconds`` are the times of all frames."""
    count = len(seconds)
    # not the metadata, whose first access decodes a frame
    keys: list[int] = decoder.frame_times.key_frames.tolist()
    end = seconds[-1] + decoder.frame_times.duration_seconds[-1].item()

    def anywhere() -> int:
        """A frame, often near an entry point, where the mistakes are."""
        if rng.random() < 0.5:
            return min(max(rng.choice(keys) + rng.randint(-3, 3), 0), count - 1)
        return rng.randrange(count)

    def some() -> list[int]:
        return [anywhere() for _ in range(rng.randint(1, 12))]

    def moment(i: int) -> float:
        until = seconds[i + 1] if i + 1 < count else end
        return seconds[i] + rng.choice((0.0, 0.0, 0.3, 0.9)) * (until - seconds[i])

    kind = rng.randrange(11)
    if kind == 0:
        i = anywhere()
        return Case("get_frame_at", (rng.choice((i, i - count)),), [i])
    if kind == 1:
        i = anywhere()
        return Case("__getitem__", (rng.choice((i, i - count)),), [i])
    if kind == 2:
        wanted = sorted(set(some()))
        return Case("get_frames_at", (wanted,), wanted)
    if kind == 3:
        wanted = some()
        wanted += rng.choices(wanted, k=rng.randint(0, 4))
        given = [rng.choice((i, i - count)) for i in wanted]
        return Case("get_frames_at", (rng.choice((given, torch.tensor(given))),), wanted)
    if kind == 4:
        number = rng.choice((2, 4, 8, 16))
        wanted = torch.linspace(0, count - 1, number).round().int().tolist()
        return Case("get_frames_at", (wanted,), wanted)
    if kind == 5:
        start, stop = (rng.choice((None, rng.randint(-count - 3, count + 3))) for _ in range(2))
        part = slice(start, stop, rng.choice((None, 1, 2, 7, -1, -3)))
        return Case("__getitem__", (part,), list(range(count))[part])
    if kind == 6:
        start, stop = sorted((anywhere(), rng.randint(0, count)))
        step = rng.choice((1, 1, 2, 5))
        return Case("get_frames_in_range", (start, stop, step), list(range(start, stop, step)))
    if kind == 7:
        wanted = some()
        return Case("get_frames_played_at", ([moment(i) for i in wanted],), wanted)
    if kind == 8:
        i = anywhere()
        return Case("get_frame_played_at", (moment(i),), [i])
    if kind == 9:
        number = rng.randint(1, count)
        return Case("__iter__", (), list(range(number)))
    first, last = sorted((anywhere(), anywhere()))
    start_seconds, stop_seconds = sorted((moment(first), moment(last)))
    wanted = [] if start_seconds == stop_seconds else [bisect_right(seconds, start_seconds) - 1]
    wanted += [i for i in range(count) if start_seconds < seconds[i] < stop_seconds]
    return Case("get_frames_played_in_range", (start_seconds, stop_seconds), wanted)


def run(decoder: mmcore.VideoDecoder, case: Case, truth: Truth, seconds: list[float]) -> str | None:
    """Make the call; what is wrong with its result, if anything."""
    try:
        result = getattr(decoder, case.method)(*case.arguments)
        if case.method == "__iter__":
            result = torch.stack(list(islice(result, len(case.expected))))
    except mmcore.DecodeError as error:
        return f"DecodeError: {error}"
    data = result if isinstance(result, torch.Tensor) else result.data
    if data.ndim == 3:
        data = data[None]
    if len(data) != len(case.expected):
        return f"{len(data)} frames instead of {len(case.expected)}"
    for i, (frame, number) in enumerate(zip(data, case.expected, strict=True)):
        if not torch.equal(frame, truth.frames[number]):
            same = [j for j, other in enumerate(truth.frames) if torch.equal(frame, other)]
            return f"at {i} of the result: frame {same or 'that is none of the file'} instead of {number}"
    if not isinstance(result, torch.Tensor):
        times = torch.as_tensor(result.pts_seconds, dtype=torch.float64).reshape(-1).tolist()
        wanted = [seconds[i] for i in case.expected]
        if times != pytest.approx(wanted, abs=1e-9):
            return f"pts_seconds {times} instead of {wanted}"
    return None


@pytest.mark.parametrize("seed", range(FILES))
def test_random_file(seed: int, media_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in AS_IF_LARGE.items():
        monkeypatch.setattr(name, value)
    recipe = random_media.draw(seed)
    path = media_dir / recipe.name
    random_media.write(recipe, path)
    truth = plain_decode(path)
    if truth is None:
        with pytest.raises(mmcore.DecodeError):
            mmcore.VideoDecoder(path)[0]
    else:
        check(recipe, path, truth)
    path.unlink()


def check(recipe: Recipe, path: Path, truth: Truth) -> None:
    rng = random.Random(-recipe.seed)
    content = path.read_bytes()

    def reopen(num_threads: int) -> mmcore.VideoDecoder:
        source, index = rng.choice(
            ((path, None), (path, path.parent / "indices"), (content, None), (io.BytesIO(content), None))
        )
        return mmcore.VideoDecoder(source, num_threads=num_threads, index=index)

    decoders = {n: reopen(n) for n in (1, 2)}
    about = f"{recipe}\nrepeat: pytest tests/decoding/test_random_files.py -k 'file[{recipe.seed}]'"
    count = len(truth.frames)
    assert len(decoders[1]) == count, about
    seconds = decoders[1].frame_times.pts_seconds.tolist()
    if truth.timed:
        assert seconds == pytest.approx(truth.seconds, abs=1e-9), about
    assert all(a < b for a, b in pairwise(seconds)), about

    calls: dict[int, list[str]] = {n: [] for n in decoders}
    for number in range(CASES):
        threads = rng.choice((1, 2))
        if rng.random() < 0.1:
            decoders[threads], calls[threads] = reopen(threads), []
        case = draw_case(rng, decoders[threads], seconds)
        wrong = run(decoders[threads], case, truth, seconds)
        call = f"{case.method}{case.arguments}"
        if wrong is not None:
            alone = run(reopen(threads), case, truth, seconds)
            pytest.fail(
                f"case {number}: {call}, {threads} threads: {wrong}\n"
                f"on a new decoder: {alone or 'right'}\n"
                f"calls before: {', '.join(calls[threads]) or 'none'}\n{about}"
            )
        calls[threads].append(call)
    for decoder in decoders.values():
        decoder.close()


def test_files_cover_everything() -> None:
    recipes = [random_media.draw(seed) for seed in range(FILES)]
    assert {f for r in recipes for f in r.features} >= FEATURES
    pairs = {(r.encoder, r.container) for r in recipes}
    assert pairs >= {(e, c) for e, containers in random_media.CONTAINERS.items() for c in containers}
    assert FILES * CASES >= 2000


def test_mistakes_are_noticed(clip: Path) -> None:
    """The comparison itself: another frame, another number of frames, and another time."""
    truth, decoder = plain_decode(clip), mmcore.VideoDecoder(clip)
    assert truth is not None
    seconds = truth.seconds
    right = Case("get_frames_at", ([3, 7],), [3, 7])
    assert run(decoder, right, truth, seconds) is None
    wrong = run(decoder, Case("get_frames_at", ([3, 8],), [3, 7]), truth, seconds)
    assert wrong is not None
    assert "frame [8] instead of 7" in wrong
    assert "1 frames instead of 2" in str(run(decoder, Case("__getitem__", (3,), [3, 7]), truth, seconds))
    assert "pts_seconds" in str(run(decoder, right, truth, [s + 0.001 for s in seconds]))
