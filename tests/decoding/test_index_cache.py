"""Saved packet indices: used where they fit, made anew where they do not, never believed."""

from __future__ import annotations

import io
import os
import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from media import numbers_of, remux, write_video

import mmcore
from mmcore import VideoDecoder
from mmcore.decoding import reader as reader_module


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose index was built."""
    built: list[str] = []
    build = reader_module.build_index

    def counted(opened: Any, reopen: Any, name: str, *others: Any) -> Any:
        built.append(name)
        return build(opened, reopen, name, *others)

    monkeypatch.setattr(reader_module, "build_index", counted)
    return built


@pytest.fixture
def own_clip(clip: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(clip, tmp_path / "own.mp4"))


KINDS: dict[str, dict[str, Any]] = {
    "plain.mp4": {},
    "open.ts": {"options": {"x264-params": "open-gop=1:scenecut=0", "bf": "3"}},
    "late.mkv": {"times": [7 * i * i // 3 + 20 * i + 500 for i in range(40)]},
    "counted.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "fields.ts": {"options": {"x264-params": "interlaced=1"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"cpu-used": "8"}},
}


@pytest.mark.parametrize("name", KINDS)
def test_a_saved_index_is_the_index(
    name: str, cached_media: Callable, tmp_path: Path, builds: list[str]
) -> None:
    path = cached_media(name, lambda p: write_video(p, **KINDS[name]))
    first = VideoDecoder(path, index=tmp_path)
    again = VideoDecoder(path, index=str(tmp_path))
    assert len(builds) == 1
    assert first._index == again._index
    for i in (17, 3, 39):
        assert (again.get_frame_at(i).data == first[i]).all()
        assert again.get_frame_at(i).pts_seconds == first.get_frame_at(i).pts_seconds
    assert again.metadata == first.metadata


def test_an_edit_list_is_kept(cached_media: Callable, media_dir: Path, tmp_path: Path) -> None:
    path = remux(cached_media("plain.mp4", write_video), media_dir / "index_edited.mp4", shift=-15)
    VideoDecoder(path, index=tmp_path)
    decoder = VideoDecoder(path, index=tmp_path)
    assert numbers_of(decoder.get_frames_at([0, 24, 7]).data) == [15, 39, 22]


def test_beside_the_file(own_clip: Path, builds: list[str]) -> None:
    VideoDecoder(own_clip, index="beside")
    saved = own_clip.parent / "own.mp4.0.mmcore-index"
    assert saved.exists()
    assert numbers_of(VideoDecoder(own_clip, index="beside").get_frames_at([8]).data) == [8]
    assert builds == [str(own_clip)]
    assert sorted(p.name for p in own_clip.parent.iterdir()) == ["own.mp4", saved.name]


def test_a_stale_index_is_made_anew(own_clip: Path, tmp_path: Path, builds: list[str]) -> None:
    folder = tmp_path / "indices"
    assert len(VideoDecoder(own_clip, index=folder)) == 40
    write_video(own_clip, num_frames=25)
    assert len(VideoDecoder(own_clip, index=folder)) == 25
    # the same size, another time of change
    state = own_clip.stat()
    os.utime(own_clip, ns=(state.st_atime_ns, state.st_mtime_ns + 1_000_000))
    assert len(VideoDecoder(own_clip, index=folder)) == 25
    assert len(builds) == 3
    assert len(VideoDecoder(own_clip, index=folder)) == 25
    assert len(builds) == 3
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("harm", ["empty", "cut", "head", "flip", "text", "folder"])
def test_a_damaged_index_is_made_anew(harm: str, own_clip: Path, builds: list[str]) -> None:
    VideoDecoder(own_clip, index="beside")
    saved = own_clip.parent / "own.mp4.0.mmcore-index"
    content = saved.read_bytes()
    at = len(content) - 40
    damaged = {
        "empty": b"",
        "cut": content[:-20],
        "head": content[:30],
        "flip": content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :],
        "text": b"mmcore index\n{}\n",
    }
    if harm == "folder":
        saved.unlink()
        saved.mkdir()
        with pytest.warns(UserWarning, match="index: .* cannot be written"):
            decoder = VideoDecoder(own_clip, index="beside")
        assert numbers_of(decoder.get_frames_at([31]).data) == [31]
        return
    saved.write_bytes(damaged[harm])
    assert numbers_of(VideoDecoder(own_clip, index="beside").get_frames_at([31]).data) == [31]
    assert len(builds) == 2
    assert saved.read_bytes() == content


def test_other_versions_make_their_own(
    own_clip: Path, builds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmcore.decoding import index_cache

    VideoDecoder(own_clip, index="beside")
    monkeypatch.setattr(index_cache, "_makers", lambda: ["another"])
    VideoDecoder(own_clip, index="beside")
    assert len(builds) == 2


def test_streams_have_indices_of_their_own(cached_media: Callable, tmp_path: Path) -> None:
    path = cached_media("sounding.mp4", lambda p: write_video(p, extra_streams=True))
    folder = tmp_path / "indices"
    assert len(VideoDecoder(path, index=folder)) == 40
    assert len(VideoDecoder(path, index=folder, stream_index=2)) == 40
    assert [p.name.rpartition(".")[0][-2:] for p in folder.iterdir()] == [".2"]


def test_other_sources_have_none(clip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "indices"
    for source in (clip.read_bytes(), io.BytesIO(clip.read_bytes())):
        assert len(VideoDecoder(source, index=folder)) == 40
    assert not folder.exists()
    VideoDecoder(clip, index=folder, seek_mode="approximate")
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_to(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="cannot be written, the packet index is not kept"):
        assert len(VideoDecoder(clip, index=tmp_path / "file" / "below")) == 40


def test_many_at_once(own_clip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "indices"
    with ThreadPoolExecutor(8) as pool:
        counts = list(pool.map(lambda _: len(VideoDecoder(own_clip, index=folder)), range(16)))
    assert counts == [40] * 16
    assert len(list(folder.iterdir())) == 1
    decoder = pickle.loads(pickle.dumps(VideoDecoder(own_clip, index=folder)))
    assert numbers_of(decoder.get_frames_at([12]).data) == [12]


def test_wrong_arguments(clip: Path, tmp_path: Path) -> None:
    refused: list[tuple[type[Exception], Any]] = [(TypeError, 3), (ValueError, ""), (ValueError, clip)]
    for error, place in refused:
        with pytest.raises(error, match=r"^index: expected 'beside', a folder or None"):
            VideoDecoder(clip, index=place)
    assert mmcore.VideoDecoder(clip, index=None)[0].shape == (3, 96, 128)
