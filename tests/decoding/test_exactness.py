"""Every frame is the one that a plain decode of the whole file gives, in any container and any order."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import av
import pytest
import torch
from media import number_of, numbers_of, remux, write_video

import mmcore

OPEN_GOP = {"x264-params": "open-gop=1:scenecut=0", "bf": "3"}
X265 = "log-level=none:pools=none:frame-threads=1"

# name, codec and settings of each kind of file
FILES: dict[str, dict] = {
    "b_frames.mp4": {},
    "b_frames.mkv": {"options": {"bf": "3"}},
    "b_frames.ts": {"options": {"bf": "3"}},
    "b_frames.flv": {"options": {"bf": "3"}},
    "b_frames.avi": {"options": {"bf": "3"}},
    "b_frames.mov": {"extra_streams": True},
    "sound_first.mkv": {"extra_streams": True},
    "open_gop.mp4": {"options": OPEN_GOP},
    "open_gop.mkv": {"options": OPEN_GOP},
    "open_gop.ts": {"options": OPEN_GOP},
    "refresh.mp4": {"options": {"x264-params": "intra-refresh=1"}},
    "refresh.ts": {"options": {"x264-params": "intra-refresh=1"}},
    "all_intra.mp4": {"gop": 1},
    "one_group.mp4": {"gop": 250},
    "interlaced.ts": {"options": {"x264-params": "interlaced=1"}},
    "ten_bit.mp4": {"pix_fmt": "yuv420p10le"},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": f"open-gop=1:{X265}"}},
    "hevc.mkv": {"codec": "libx265", "options": {"x265-params": f"open-gop=1:{X265}"}},
    "hevc.ts": {"codec": "libx265", "options": {"x265-params": f"open-gop=1:{X265}"}},
    "vp8.webm": {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
    "vp9.webm": {
        "codec": "libvpx-vp9",
        "options": {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8"},
    },
    "av1.mp4": {"codec": "libsvtav1", "options": {"preset": "12"}},
    "av1.mkv": {"codec": "libsvtav1", "options": {"preset": "12"}},
    "mpeg4.mp4": {"codec": "mpeg4", "options": {"bf": "2"}},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "mpeg2.ts": {"codec": "mpeg2video", "options": {"bf": "2"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": {"bf": "2"}},
    "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "ffv1.mkv": {"codec": "ffv1"},
    "elementary.h264": {"options": {"bf": "3"}},
    "odd_size.mp4": {"size": (90, 130), "pix_fmt": "yuv444p"},
    "vfr.mp4": {"times": [7 * i * i // 3 + 20 * i for i in range(40)]},
    "vfr.mkv": {"times": [7 * i * i // 3 + 20 * i + 500 for i in range(40)]},
    "turned.mp4": {"rotation": 90},
}


def write(path: Path) -> None:
    write_video(path, **FILES[path.name])


def plain_decode(path: Path) -> list[av.VideoFrame]:
    """Every frame as PyAV gives it, on one thread."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        return list(container.decode(stream))


def convert(frame: av.VideoFrame, path: Path) -> torch.Tensor:
    """A frame as displayed: uint8 RGB (3, H, W)."""
    builder = mmcore.FrameBatchBuilder(1, codec_name="mjpeg" if "mjpeg" in path.name else None)
    builder.put(0, frame)
    return torch.rot90(builder.finish()[0], round(frame.rotation / 90), (1, 2))


def assert_same_frames(path: Path, num_threads: int, samples: int) -> None:
    frames = plain_decode(path)
    expected = [convert(frame, path) for frame in frames]
    exact_times = frames[0].pts is not None and path.suffix not in (".avi", ".mpg")

    with mmcore.VideoDecoder(path, num_threads=num_threads) as decoder:
        assert len(decoder) == len(frames)
        order = list(range(len(frames)))
        random.Random(path.name).shuffle(order)
        for i in order[:samples]:
            frame = decoder.get_frame_at(i)
            assert torch.equal(frame.data, expected[i]), f"frame {i} after {order[: order.index(i)]}"
            if exact_times:
                assert frame.pts_seconds == pytest.approx(frames[i].time, abs=1e-9)
        some = sorted(order[:samples])
        assert all(map(torch.equal, decoder.get_frames_at(some).data, [expected[i] for i in some]))
        assert all(map(torch.equal, decoder, expected))
        times = decoder.get_frames_in_range(0, len(frames)).pts_seconds
        assert (times.diff() > 0).all()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("num_threads", [1, 3])
def test_same_as_plain_decode(
    name: str, num_threads: int, cached_media: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmcore.decoding.decoder_team._THREADED_PIXELS", 0)
    assert_same_frames(cached_media(name, write), num_threads, samples=20)


def test_real_media(real_media: Path) -> None:
    if real_media.name == "corrupted.mp4":
        pytest.skip("its damage is another test's matter")
    assert_same_frames(real_media, num_threads=1, samples=4)


@pytest.mark.parametrize("name", ["b_frames.mp4", "open_gop.ts", "hevc.mkv", "vp9.webm", "av1.mp4"])
def test_numbers_in_the_pictures(name: str, cached_media: Callable) -> None:
    decoder = mmcore.VideoDecoder(cached_media(name, write))
    assert [number_of(decoder[i]) for i in (17, 3, 39, 0)] == [17, 3, 39, 0]


def test_edit_list(cached_media: Callable, media_dir: Path) -> None:
    path = remux(cached_media("b_frames.mp4", write), media_dir / "cut.mp4", shift=-15)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 40, "the file must hold hidden packets"
    assert_same_frames(path, 1, 20)
    decoder = mmcore.VideoDecoder(path)
    assert len(decoder) == 25
    assert number_of(decoder[0]) == 15
    assert decoder.metadata.num_frames_from_header == 40


@pytest.mark.parametrize("source", ["open_gop.ts", "hevc.ts", "mpeg2.ts", "b_frames.ts"])
@pytest.mark.parametrize("skip", [5, 11, 12, 13])
def test_recording_that_starts_anywhere(
    source: str, skip: int, cached_media: Callable, media_dir: Path
) -> None:
    path = media_dir / f"cut{skip}_{source}"
    remux(cached_media(source, write), path, skip=skip)
    try:
        expected = [convert(frame, path) for frame in plain_decode(path)]
    except av.error.InvalidDataError:
        pytest.skip("a plain decode stops at the packets before the first key frame")
    decoder = mmcore.VideoDecoder(path)
    assert len(decoder) == len(expected)
    assert all(map(torch.equal, decoder, expected))
    assert torch.equal(decoder[len(expected) // 2], expected[len(expected) // 2])


def test_a_stream_that_begins_on_the_way(tmp_path: Path) -> None:
    """Behind what FFmpeg looks at to find a file's streams, and before its end: PyAV raises IndexError."""
    silent = write_video(tmp_path / "silent.ts")
    with_sound = tmp_path / "sound.ts"
    mmcore.encode(
        with_sound, frames=torch.zeros(5, 3, 96, 128), fps=25, audio=torch.zeros(9600), sample_rate=48000
    )
    padding = (b"\x47\x1f\xff\x10" + b"\xff" * 184) * 34_000
    path = tmp_path / "joined.ts"
    path.write_bytes(
        silent.read_bytes() + padding + with_sound.read_bytes() + padding[: 188 * 8000] + silent.read_bytes()
    )
    for mode in ("exact", "approximate"):
        with mmcore.VideoDecoder(path, seek_mode=mode) as decoder:
            assert number_of(decoder[3].data) == 3
    with mmcore.VideoDecoder(path) as decoder:
        assert len(decoder) == 85
        assert numbers_of(decoder[-40:]) == numbers_of(decoder[:40]) == list(range(40))
    clip = mmcore.read_clip(path)
    assert clip.modalities == ("video", "audio", "text")
    assert clip.mask.tolist() == [[True, False, False]]
    with pytest.raises(mmcore.DecodeError, match="no text stream"):
        mmcore.TextDecoder(path)


def test_sources_agree(clip: Path) -> None:
    content = clip.read_bytes()
    expected = mmcore.VideoDecoder(clip)[7:30:5]
    tensor = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    with open(clip, "rb") as file:
        for source in (str(clip), content, bytearray(content), memoryview(content), tensor, file):
            assert torch.equal(mmcore.VideoDecoder(source)[7:30:5], expected)
        assert not file.closed


def test_name_with_a_colon(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "concat:a %03d.mp4"
    path.write_bytes(clip.read_bytes())
    assert len(mmcore.VideoDecoder(path)) == 40


def test_approximate_mode_of_a_plain_file(clip: Path) -> None:
    exact, approximate = mmcore.VideoDecoder(clip), mmcore.VideoDecoder(clip, seek_mode="approximate")
    assert len(approximate) == 40
    assert approximate.metadata.num_frames_from_content is None
    for i in (20, 21, 3, 39, 0, 12):
        assert torch.equal(approximate[i], exact[i])
    assert torch.equal(approximate[5:35:3], exact[5:35:3])
