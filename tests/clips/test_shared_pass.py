"""What one pass over a file finds of pictures, sound and words is what each decoder finds alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from clip_media import FPS, write_events

import mmcore
from mmcore.clips import ClipReader
from mmcore.decoding.shared_pass import SharedPass

Cache = Callable[[str, Callable[[Path], Any]], Path]
FILES = {
    "mkv": ("h264", "opus"),
    "webm": ("vp9", "opus"),
    "ts": ("h264", "aac"),
    "mp4": ("h264", "aac"),
    "mov": ("mpeg4", "pcm"),
}
SHARED = {"mkv", "webm", "ts"}
SECONDS = 9.0  # FFmpeg has read the first five when a file is open


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, SharedPass]]:
    """Every shared pass, and whether it was found whole."""
    found: list[tuple[bool, SharedPass]] = []
    finish = SharedPass.finish

    def noting(self: SharedPass, *arguments: Any) -> bool:
        begun = self._begun
        whole = finish(self, *arguments)
        if begun:
            found.append((whole, self))
        return whole

    monkeypatch.setattr(SharedPass, "finish", noting)
    return found


@pytest.fixture
def media(cached_media: Cache, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """The file of a container."""
    monkeypatch.setattr("clip_media.SECONDS", SECONDS)

    def made(container: str) -> Path:
        return cached_media(f"shared.{container}", lambda path: write_events(path, *FILES[container]))

    return made


def _outcome(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except mmcore.MMCoreError as error:
        return type(error), str(error)


def _pictures(decoder: mmcore.VideoDecoder) -> list[Any]:
    times = decoder.frame_times
    batch = decoder.get_frames_in_range(0, len(decoder))
    return [
        times.pts_seconds.tolist(),
        times.duration_seconds.tolist(),
        batch.data,
        batch.pts_seconds.tolist(),
    ]


def _sound(decoder: mmcore.AudioDecoder) -> list[Any]:
    end = decoder.end_stream_seconds
    begin = decoder.begin_stream_seconds
    middle = (begin + end) / 2
    parts = [decoder.get_samples_played_in_range(a, b) for a, b in ((middle, end), (begin, middle))]
    return [begin, end, *(x for part in parts for x in (part.data, part.pts_seconds, part.gaps))]


def _words(decoder: mmcore.TextDecoder) -> list[Any]:
    return [list(decoder), decoder.metadata]


def _together(path: Path) -> list[Any]:
    """What a clip's decoders give, whose file was read once."""
    with ClipReader(path, audio={"on_error": "silence"}, _reads_far=True) as reader:
        found = []
        for name, opened, look in (
            ("video", reader._video, _pictures),
            ("audio", reader._audio, _sound),
            ("text", reader._text, _words),
        ):
            if opened is None:
                error = reader.errors.get(name)
                found.append(None if error is None else (type(error), str(error)))
            else:
                found.append(_outcome(lambda look=look, opened=opened: look(opened)))  # type: ignore[misc]
        return found


def _alone(path: Path) -> list[Any]:
    """The same of decoders that read the file on their own; None for what it does not hold."""

    def text() -> Any:
        return _words(mmcore.TextDecoder(path))

    def audio() -> Any:
        with mmcore.AudioDecoder(path, on_error="silence") as decoder:
            return _sound(decoder)

    def video() -> Any:
        with mmcore.VideoDecoder(path) as decoder:
            return _pictures(decoder)

    found = [_outcome(read) for read in (video, audio, text)]
    return [None if isinstance(x, tuple) and "holds no" in x[1] and "stream" in x[1] else x for x in found]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


@pytest.mark.parametrize("container", FILES)
def test_everything_is_as_read_alone(
    container: str, media: Callable[[str], Path], passes: list[tuple[bool, SharedPass]]
) -> None:
    path = media(container)
    together = _together(path)
    assert _same(together, _alone(path))
    assert [whole for whole, _ in passes] == [True] * (container in SHARED)
    for _, shared in passes:
        assert shared.notes is not None
        assert len(shared.notes) > 50
        words = isinstance(shared.text, tuple)
        assert words == (container != "ts")


@pytest.mark.parametrize("container", FILES)
def test_clips_are_the_decoders(container: str, media: Callable[[str], Path]) -> None:
    path = media(container)
    for start, stop in ((None, None), (0.0, 0.5), (0.55, 1.2), (1.1, None)):
        clip = mmcore.read_clip(path, start, stop)
        assert clip.video is not None
        assert clip.audio is not None
        with mmcore.VideoDecoder(path) as video, mmcore.AudioDecoder(path) as audio:
            first = max(clip.start, audio.begin_stream_seconds)
            frames = video.get_frames_played_in_range(
                max(clip.start, float(video.frame_times.pts_seconds[0])), clip.video.pts_seconds[-1] + 1e-3
            )
            samples = audio.get_samples_played_in_range(first, max(clip.stop, first))
        assert torch.equal(clip.video.data, frames.data)
        assert torch.equal(clip.video.pts_seconds, frames.pts_seconds)
        assert torch.equal(clip.audio.data, samples.data)
        assert clip.audio.pts_seconds == samples.pts_seconds
        if container != "ts":
            text = mmcore.TextDecoder(path)
            assert clip.text == tuple(text.get_segments_played_in_range(clip.start, clip.stop))


@pytest.mark.parametrize("container", ["mkv", "webm", "ts"])
def test_random_damage_is_met_as_alone(
    container: str, media: Callable[[str], Path], tmp_path: Path, passes: list[tuple[bool, SharedPass]]
) -> None:
    content = media(container).read_bytes()
    for seed in range(15):
        draw = random.Random(seed)
        damaged = bytearray(content)
        for _ in range(draw.choice((1, 3, 20))):
            damaged[draw.randrange(600, len(damaged))] = draw.randrange(256)
        if seed % 5 == 0:
            del damaged[draw.randrange(len(damaged) // 2, len(damaged)) :]
        path = tmp_path / f"damaged{seed}.{container}"
        path.write_bytes(damaged)
        assert _same(_together(path), _alone(path)), seed
    assert any(whole for whole, _ in passes)


@pytest.mark.parametrize("kind", ["audio", "subtitle"])
def test_an_error_in_a_block_costs_no_other_stream(
    kind: str, media: Callable[[str], Path], tmp_path: Path, passes: list[tuple[bool, SharedPass]]
) -> None:
    """FFmpeg leaves out the rest of a Matroska cluster behind a block whose lacing is wrong."""
    content = bytearray(media("mkv").read_bytes())
    with av.open(str(media("mkv"))) as container:
        stream: Any = next(s for s in container.streams if s.type == kind)
        packets = [p for p in container.demux(stream) if p.size]
    packet: Any = packets[len(packets) * 3 // 4]
    at = content.index(bytes(packet), packet.pos)
    assert content[at - 1] & 6 == 0  # the block's flags
    content[at - 1] |= 6
    content[at] = 0xFF
    path = tmp_path / "laced.mkv"
    path.write_bytes(content)
    with mmcore.VideoDecoder(path) as video:
        assert len(video) == SECONDS * FPS
    together = _together(path)
    assert [whole for whole, _ in passes] == [False]
    assert _same(together, _alone(path))


def test_uneven_frames_are_read_alone(tmp_path: Path, passes: list[tuple[bool, SharedPass]]) -> None:
    path = tmp_path / "uneven.mkv"
    write_events(tmp_path / "even.mkv", "h264", "opus")
    with av.open(str(tmp_path / "even.mkv")) as source, av.open(str(path), "w") as target:
        streams = {s.index: target.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.dts is None:
                continue
            if packet.stream.type == "video" and packet.pts >= 6000:
                packet.pts += 300
                packet.dts += 300
            packet.stream = streams[packet.stream.index]
            target.mux(packet)
    together = _together(path)
    assert [whole for whole, _ in passes] == [False]
    assert _same(together, _alone(path))


def test_errors_and_sidecars_are_as_ever(media: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "film.ts"
    path.write_bytes(media("ts").read_bytes())
    with pytest.raises(mmcore.DecodeError, match="holds no text stream") as together:
        mmcore.read_clip(path, strict=True)
    with pytest.raises(mmcore.DecodeError) as alone:
        mmcore.TextDecoder(path)
    assert str(together.value) == str(alone.value)
    assert mmcore.read_clip(path).errors == {}
    (tmp_path / "film.srt").write_text("1\n00:00:00,600 --> 00:00:00,800\nbeside\n")
    clip = mmcore.read_clip(path, None)
    assert clip.text is not None
    assert [s.text for s in clip.text] == ["beside"]
    with pytest.raises(ValueError, match="no stream 9"):
        mmcore.read_clip(media("mkv"), text={"stream_index": 9})
    with pytest.raises(ValueError, match="no stream 9"):
        mmcore.read_clip(media("mkv"), None, audio={"stream_index": 9})
    with pytest.raises(ValueError, match="encoding"):
        mmcore.read_clip(media("mkv"), text={"encoding": "none such"})
