"""The table of an MP4 file's packets: what its header lists is what reading them finds, or they are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from mmcore import MMCoreError
from mmcore.decoding.audio_packets import AudioPackets
from mmcore.decoding.audio_reader import AudioReader
from mmcore.decoding.audio_table import AudioTable
from mmcore.decoding.control import Control
from mmcore.decoding.mp4_boxes import plain_mp4_size
from mmcore.decoding.source import Source

Cache = Callable[[str, Callable[[Path], Any]], Path]
RATE = 44100


def write_sound(path: Path, codec: str = "aac", movflags: str = "", seconds: float = 5.0) -> Path:
    wave = (np.random.default_rng(0).standard_normal((2, round(seconds * RATE))) * 3000).astype(np.int16)
    with av.open(str(path), "w", options={"movflags": movflags} if movflags else {}) as out:
        stream: Any = out.add_stream(codec, rate=RATE, layout="stereo")
        for start in range(0, wave.shape[1], 1024):
            part = np.ascontiguousarray(wave[:, start : start + 1024].T).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(part, "s16", "stereo")
            frame.sample_rate, frame.pts = RATE, start
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def tables(source: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[AudioTable, AudioTable, bool]:
    """The table as it is made, as reading gives it, and whether the header was enough for the first one."""
    read = []
    by_reading = AudioPackets._notes_by_reading

    def noting(self: Any, codec: str) -> Any:
        read.append(codec)
        return by_reading(self, codec)

    with monkeypatch.context() as patch:
        patch.setattr(AudioPackets, "_notes_by_reading", noting)
        as_made = AudioReader(Source(source), None).table(Control(None, "it"))
    with monkeypatch.context() as patch:
        patch.setattr(AudioPackets, "_notes_by_header", lambda *_: None)
        as_read = AudioReader(Source(source), None).table(Control(None, "it"))
    return as_made, as_read, not read


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "aac"), ("p.mov", "pcm_s16le"), ("m.mp4", "libmp3lame")]
)
@pytest.mark.parametrize("as_bytes", [False, True])
def test_the_header_lists_what_is_read(
    name: str, codec: str, as_bytes: bool, cached_media: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = cached_media(f"table_{name}", lambda path: write_sound(path, codec))
    as_made, as_read, by_header = tables(path.read_bytes() if as_bytes else path, monkeypatch)
    assert as_made == as_read
    assert len(as_made) > 100
    assert as_made.end >= 5 * RATE
    assert by_header == (codec != "libmp3lame")  # which FFmpeg parses


def test_sound_is_the_same_after_a_look_at_the_header(cached_media: Cache) -> None:
    path = cached_media("table_a.mp4", write_sound)
    reader, control = AudioReader(Source(path), None), Control(None, "it")
    whole = np.concatenate(list(AudioReader(Source(path), None).blocks(0, None, control, [])), 1)
    for start in (150_000, 3000, 60_000, 215_000, 0):
        end = reader.num_samples(control)
        assert end == whole.shape[1]
        found = np.concatenate(list(reader.blocks(start, start + 5000, control, [])), 1)
        assert np.array_equal(found, whole[:, start : start + 5000])


def _cut(content: bytes) -> bytes:
    return content[: len(content) * 3 // 4]


def _without_boxes(content: bytes) -> bytes:
    return content + b"\0\0\0\x20free"


@pytest.mark.parametrize("spoil", [_cut, _without_boxes])
def test_a_file_that_is_not_whole_is_read(
    spoil: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_sound(tmp_path / "fast.mp4", movflags="faststart")
    assert plain_mp4_size(Source(path)) == path.stat().st_size
    path.write_bytes(spoil(path.read_bytes()))
    as_made, as_read, by_header = tables(path, monkeypatch)
    assert as_made == as_read
    assert not by_header
    assert (as_made.damage is not None) == (spoil is _cut)


@pytest.mark.parametrize("movflags", ["frag_keyframe+empty_moov", "frag_keyframe", "dash+global_sidx"])
def test_a_file_of_fragments_is_read(movflags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_sound(tmp_path / "fragments.mp4", movflags=movflags)
    as_made, as_read, by_header = tables(path, monkeypatch)
    assert as_made == as_read
    assert not by_header
    assert as_made.end >= 5 * RATE


@pytest.mark.parametrize("at", range(0, 4000, 250))
def test_a_damaged_header_is_not_believed(
    at: int, cached_media: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it lists is compared with packets that are read, and with the length of the file."""
    content = bytearray(cached_media("table_a.mp4", write_sound).read_bytes())
    header = content.rindex(b"stts")
    place = header + at * (len(content) - header) // 4000
    content[place : place + 2] = bytes(b ^ 0x5A for b in content[place : place + 2])
    try:
        as_made, as_read, _ = tables(bytes(content), monkeypatch)
    except MMCoreError:  # as any other that cannot be read
        return
    assert as_made == as_read
