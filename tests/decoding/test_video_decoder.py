"""The decoder's interface: times, batches, arguments, errors, and life in threads and processes."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from media import damage, number_of, numbers_of, write_sizes, write_video

import mmcore
from mmcore import DecodeError, UnsupportedError, VideoDecoder

# --- what is asked for


def test_the_transform_can_be_changed(decoder: VideoDecoder) -> None:
    plain, small = decoder[3], mmcore.FrameTransform(resize=(24, 32))
    decoder.transform = small
    assert decoder.transform == small
    assert decoder[3].shape == (3, 24, 32)
    decoder.transform = None  # type: ignore[assignment]
    assert torch.equal(decoder[3], plain)
    with pytest.raises(TypeError, match="transform"):
        decoder.transform = 3  # type: ignore[assignment]


def test_batches_by_number(decoder: VideoDecoder) -> None:
    assert numbers_of(decoder[3:20:5]) == [3, 8, 13, 18]
    assert numbers_of(decoder[::-13]) == [39, 26, 13, 0]
    assert number_of(decoder[-1]) == 39
    assert number_of(decoder[np.int64(7)]) == 7
    for indices in ([5, 30, 5, -1], torch.tensor([5, 30, 5, 39]), np.array([5, 30, 5, -1])):
        batch = decoder.get_frames_at(indices)
        assert numbers_of(batch.data) == [5, 30, 5, 39]
        assert batch.pts_seconds.tolist() == pytest.approx([0.2, 1.2, 0.2, 1.56])
        assert batch.duration_seconds.dtype == torch.float64
        assert batch.valid is None
    assert numbers_of(decoder.get_frames_in_range(10, 20, 4).data) == [10, 14, 18]
    assert decoder[5:5].shape == (0, 3, 96, 128)
    assert len(decoder.get_frames_at([])) == 0
    out = torch.empty(0, 3, 96, 128, dtype=torch.uint8)
    assert decoder.get_frames_at([], out=out).data is out


def test_frame_by_time(decoder: VideoDecoder) -> None:
    assert number_of(decoder.get_frame_played_at(0.41).data) == 10
    frame = decoder.get_frame_played_at(0.2)
    assert (number_of(frame.data), frame.pts_seconds, frame.duration_seconds) == (5, 0.2, pytest.approx(0.04))
    assert numbers_of(decoder.get_frames_played_at([1.0, 0.0, 1.59]).data) == [25, 0, 39]


def test_frames_in_a_time_range(decoder: VideoDecoder) -> None:
    assert numbers_of(decoder.get_frames_played_in_range(0.41, 0.6).data) == [10, 11, 12, 13, 14]
    assert len(decoder.get_frames_played_in_range(0.4, 0.4)) == 0
    assert len(decoder.get_frames_played_in_range(0, 1.6)) == 40
    batch = decoder.get_frames_played_in_range(0.2, 1.2, fps=5)
    assert numbers_of(batch.data) == [5, 10, 15, 20, 25]
    assert batch.pts_seconds.tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert numbers_of(decoder.get_frames_played_in_range(0, 0.12, fps=50).data) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("start", "stop", "fps"),
    [(0.41, 0.6, None), (0.4, 0.4, None), (0.2, 1.2, 5.0), (0.1, 1.6, 7.3), (0, 1.6, 100), (0.4, 0.4, 9)],
)
def test_finding_frames_in_a_time_range(
    start: float, stop: float, fps: float | None, decoder: VideoDecoder
) -> None:
    found, pts = decoder.find_frames_played_in_range(start, stop, fps=fps)
    batch = decoder.get_frames_played_in_range(start, stop, fps=fps)
    assert numbers_of(batch.data) == found
    assert torch.equal(batch.pts_seconds, pts)
    with pytest.raises(ValueError, match="start_seconds"):
        decoder.find_frames_played_in_range(-1, 1)


@pytest.mark.parametrize("fps", [1e-9, 0.01, 0.1, 1.0])
def test_rates_far_below_the_streams(fps: float, decoder: VideoDecoder) -> None:
    # a tolerance in proportion to the grid's step would reach the next frames
    found, _ = decoder.find_frames_played_in_range(0.079, 1.0, fps=fps)
    assert found == [1]


def test_frame_times(decoder: VideoDecoder) -> None:
    times = decoder.frame_times
    batch = decoder.get_frames_in_range(0, 40)
    assert torch.equal(times.pts_seconds, batch.pts_seconds)
    assert torch.equal(times.duration_seconds, batch.duration_seconds)
    assert times.key_frames.tolist() == [0, 12, 24, 36]
    assert len(times) == 40
    units = times.pts_seconds / float(times.time_base)
    assert (units - units.round()).abs().max() < 1e-6


def test_every_frame_is_found_at_its_own_time(cached_media: Callable) -> None:
    times = [7 * i * i // 3 + 20 * i for i in range(40)]
    decoder = VideoDecoder(cached_media("vfr_times.mp4", lambda p: write_video(p, times=times)))
    batch = decoder.get_frames_in_range(0, 40)
    assert batch.pts_seconds.tolist() == pytest.approx([t / 1000 for t in times], abs=1e-4)
    assert torch.allclose(batch.duration_seconds[:-1], batch.pts_seconds.diff())
    assert numbers_of(decoder.get_frames_played_at(batch.pts_seconds).data) == list(range(40))
    just_before = (batch.pts_seconds[1:] - 1e-6).tolist()
    assert numbers_of(decoder.get_frames_played_at(just_before).data) == list(range(39))


def test_metadata(cached_media: Callable) -> None:
    tags = {"colorspace": 1, "color_range": 1, "color_primaries": 1, "color_trc": 1}
    write = lambda path: write_video(path, rotation=90, tags=tags)  # noqa: E731
    m = VideoDecoder(cached_media("tagged.mp4", write)).metadata
    assert (m.width, m.height, m.rotation) == (96, 128, 90)
    assert (m.codec, m.pixel_format, m.stream_index) == ("h264", "yuv420p", 0)
    assert (m.color_space, m.color_range, m.color_primaries) == ("bt709", "limited", "bt709")
    assert (m.num_frames, m.average_fps) == (40, pytest.approx(25))
    assert (m.begin_stream_seconds, m.end_stream_seconds, m.duration_seconds) == (0, 1.6, 1.6)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation_is_applied_before_the_transform(rotation: int, clip: Path, cached_media: Callable) -> None:
    path = cached_media(f"turned{rotation}.mp4", lambda p: write_video(p, rotation=rotation))
    turned, flat = VideoDecoder(path), VideoDecoder(clip)
    assert torch.equal(turned[11], torch.rot90(flat[11], -rotation // 90, (1, 2)))
    transform = mmcore.FrameTransform(resize=48, crop=(40, 32), dtype=torch.uint8, layout="NHWC")
    assert VideoDecoder(path, transform=transform)[11].shape == (40, 32, 3)


def test_transform_and_layouts(clip: Path) -> None:
    transform = mmcore.FrameTransform(resize=64, crop=56, mean=0.5, std=0.5)
    with av.open(str(clip)) as container:
        expected = mmcore.frames_to_tensor(list(container.decode(video=0)), transform)
    assert torch.equal(VideoDecoder(clip, transform=transform)[:], expected)
    assert VideoDecoder(clip, transform=transform.replace(layout="CNHW"))[2:6].shape == (3, 4, 56, 56)
    assert VideoDecoder(clip, transform=transform.replace(layout="CNHW"))[2].shape == (3, 56, 56)
    patches = VideoDecoder(clip, transform=transform.replace(layout=mmcore.patches(14)))
    assert patches[:4].shape == (2 * 4 * 4, 3 * 2 * 14 * 14)


def test_out(decoder: VideoDecoder) -> None:
    out = torch.zeros(3, 3, 96, 128, dtype=torch.uint8)
    batch = decoder.get_frames_at([9, 2, 9], out=out)
    assert batch.data.data_ptr() == out.data_ptr()
    assert numbers_of(out) == [9, 2, 9]
    with pytest.raises(ValueError, match="out"):
        decoder.get_frames_at([1, 2], out=out)
    assert number_of(decoder[2]) == 2


def test_second_stream_is_chosen_by_index(cached_media: Callable) -> None:
    path = cached_media("with_sound.mkv", lambda p: write_video(p, extra_streams=True))
    decoder = VideoDecoder(path)
    assert decoder.metadata.stream_index == 2
    assert number_of(VideoDecoder(path, stream_index=2)[4]) == 4
    with pytest.raises(ValueError, match=r"stream 0 .* is no video stream.*2 \(video\)"):
        VideoDecoder(path, stream_index=0)
    with pytest.raises(ValueError, match="has no stream 9"):
        VideoDecoder(path, stream_index=9)


# --- what is refused


@pytest.mark.parametrize("index", [40, -41, 10**12])
def test_index_out_of_range(decoder: VideoDecoder, index: int) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: decoder[index],
        lambda: decoder.get_frame_at(index),
        lambda: decoder.get_frames_at([0, index]),
        lambda: decoder.get_frames_in_range(0, abs(index) + 1),
    ]
    for call in calls:
        with pytest.raises(IndexError, match="40 frames"):
            call()
    assert number_of(decoder[1]) == 1


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -0.001, 1.6, 1e9])
def test_time_out_of_range(decoder: VideoDecoder, seconds: float) -> None:
    for call in (decoder.get_frame_played_at, lambda s: decoder.get_frames_played_at([0.1, s])):
        with pytest.raises(ValueError, match=r"expected 0\.0 <= seconds < 1\.6"):
            call(seconds)
    with pytest.raises(ValueError, match="start_seconds"):
        decoder.get_frames_played_in_range(seconds, 1.0)


def test_wrong_arguments(decoder: VideoDecoder, clip: Path) -> None:
    refused: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (TypeError, "key", lambda: decoder["a"]),  # type: ignore[call-overload]
        (TypeError, "indices", lambda: decoder.get_frames_at([1.5])),  # type: ignore[list-item]
        (TypeError, "indices", lambda: decoder.get_frames_at(3)),  # type: ignore[arg-type]
        (TypeError, "indices", lambda: decoder.get_frames_at(torch.zeros(2, 2, dtype=torch.int64))),
        (TypeError, "indices", lambda: decoder.get_frames_at(torch.ones(40, dtype=torch.bool))),
        (TypeError, "key", lambda: decoder[True]),
        (TypeError, "key", lambda: decoder[0.5:3]),  # type: ignore[misc]
        (ValueError, "key", lambda: decoder[::0]),
        (ValueError, "seconds", lambda: decoder.get_frame_played_at(10**400)),
        (TypeError, "seconds", lambda: decoder.get_frame_played_at("1")),  # type: ignore[arg-type]
        (ValueError, "step", lambda: decoder.get_frames_in_range(0, 4, 0)),
        (ValueError, "fps", lambda: decoder.get_frames_played_in_range(0, 1, fps=0)),
        (ValueError, "fps", lambda: decoder.get_frames_played_in_range(0, 1, fps=math.nan)),
        (ValueError, "fps", lambda: decoder.get_frames_played_in_range(0, 1, fps=math.inf)),
        (ValueError, "fps", lambda: decoder.get_frames_played_in_range(0, 1, fps=1e-320)),
        (ValueError, "fps: .* more than", lambda: decoder.get_frames_played_in_range(0, 1, fps=1e300)),
        (ValueError, "stop_seconds", lambda: decoder.get_frames_played_in_range(0, 10**400)),
        (ValueError, "seek_mode", lambda: VideoDecoder(clip, seek_mode="fast")),
        (ValueError, "on_error", lambda: VideoDecoder(clip, on_error="ignore")),
        (UnsupportedError, "device", lambda: VideoDecoder(clip, device="cuda")),
        (ValueError, "device", lambda: VideoDecoder(clip, device="gpu")),
        (ValueError, "device", lambda: VideoDecoder(clip, device=None)),  # type: ignore[arg-type]
        (ValueError, "num_threads", lambda: VideoDecoder(clip, num_threads=0)),
        (TypeError, "transform", lambda: VideoDecoder(clip, transform="RGB")),  # type: ignore[arg-type]
        (ValueError, "crop", lambda: VideoDecoder(clip, transform=mmcore.FrameTransform(crop=999))[0]),
        (TypeError, "source", lambda: VideoDecoder(3)),
        (TypeError, "binary", lambda: VideoDecoder(io.StringIO("text"))),
        (TypeError, "uint8", lambda: VideoDecoder(torch.zeros(3))),
    ]
    for error, text, call in refused:
        with pytest.raises(error, match=text):
            call()
    assert number_of(decoder[3]) == 3


@pytest.mark.parametrize("count", [0, 2])
def test_wrong_out(count: int, decoder: VideoDecoder) -> None:
    shape = (count, 3, 96, 128)
    bad: list[tuple[type[Exception], str, Any]] = [
        (TypeError, "expected a tensor", np.zeros(shape, np.uint8)),
        (ValueError, "dtype", torch.zeros(shape)),
        (ValueError, "shape", torch.zeros(1, 3, 96, 128, dtype=torch.uint8)),
        (ValueError, "meta", torch.zeros(shape, dtype=torch.uint8, device="meta")),
    ]
    if count:
        bad.append(
            (ValueError, "contiguous", torch.zeros(2, 96, 128, 3, dtype=torch.uint8).permute(0, 3, 1, 2))
        )
    for error, text, out in bad:
        with pytest.raises(error, match=f"^out: .*{text}"):
            decoder.get_frames_in_range(0, count, out=out)
    assert number_of(decoder[3]) == 3


def test_bad_files(clip: Path, tmp_path: Path, cached_media: Callable) -> None:
    def file(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    content = clip.read_bytes()
    sound = tmp_path / "sound.wav"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    for path, text in [
        (tmp_path / "absent.mp4", "no such file"),
        (tmp_path, "is a directory"),
        (file("empty.mp4", b""), "is empty"),
        (file("text.mp4", b"not a video\n" * 50), "cannot be opened"),
        (file("cut.mp4", content[: len(content) // 2]), "cannot be opened"),
        (sound, r"no video stream; its streams: 0 \(audio\)"),
    ]:
        with pytest.raises(DecodeError, match=text) as caught:
            VideoDecoder(path)
        assert str(path) in str(caught.value)
    for content in (b"", b"no video"):
        with pytest.raises(DecodeError):
            VideoDecoder(content)


def test_no_file_opens_another(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="network=True"):
        VideoDecoder("https://example.org/a.mp4")
    with pytest.raises(ValueError, match="network=True"):
        VideoDecoder(f"concat:{clip}|{clip}")
    playlist = tmp_path / "list.m3u8"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.6,\n{clip}\n#EXT-X-ENDLIST\n")
    concat = tmp_path / "list.txt"
    concat.write_text(f"ffconcat version 1.0\nfile {clip}\n")
    for path in (playlist, concat):
        with pytest.raises(UnsupportedError, match="playlist"):
            VideoDecoder(path)
        with pytest.raises(UnsupportedError, match="playlist"):
            VideoDecoder(path.read_bytes())


def test_damaged_stream(cached_media: Callable) -> None:
    whole = cached_media("groups.mp4", lambda p: write_video(p, num_frames=60, options={"bf": "2"}))
    broken = cached_media("groups_broken.mp4", lambda p: damage(whole, p, at=0.5, length=400))
    expected, decoder = VideoDecoder(whole), VideoDecoder(broken)
    lost, messages = [], []
    for i in range(len(decoder)):
        try:
            frame = decoder[i]
        except DecodeError as error:
            lost.append(i)
            messages.append(str(error))
        else:
            assert torch.equal(frame, expected[i])
    assert lost, "the damage must be noticed"
    assert all(str(broken) in m and f"frame {i} at" in m for i, m in zip(lost, messages, strict=True))
    assert lost[0] > 5
    assert len(lost) <= 24, "only the damaged groups are lost"
    assert torch.equal(decoder[2], expected[2])
    assert torch.equal(decoder[len(decoder) - 1], expected[len(decoder) - 1])


BREAKABLE = {".mp4": "libx264", ".mkv": "libx264", ".webm": "libvpx-vp9", ".avi": "mpeg4"}


@pytest.mark.parametrize("source", ["path", "bytes", "file"])
@pytest.mark.parametrize("suffix", BREAKABLE)
def test_file_that_breaks_off(suffix: str, source: str, cached_media: Callable, tmp_path: Path) -> None:
    def write(path: Path) -> None:
        movable = {"movflags": "faststart"} if suffix == ".mp4" else {}
        write_video(path, BREAKABLE[suffix], num_frames=60, container=movable)

    path = cached_media(f"movable{suffix}", write)
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    expected = VideoDecoder(path)
    assert expected.metadata.damage is None
    sources = {"path": cut, "bytes": cut.read_bytes(), "file": io.BytesIO(cut.read_bytes())}
    decoder = VideoDecoder(sources[source])
    assert 10 < len(decoder) < 60
    assert decoder.metadata.damage
    seen = 0
    frames = iter(decoder)
    for frame in itertools.islice(frames, len(decoder)):
        assert torch.equal(frame, expected[seen])
        seen += 1
    assert seen == len(decoder)
    with pytest.raises(DecodeError, match=f"breaks off after frame {seen - 1} at"):
        next(frames)
    with pytest.raises(IndexError, match="breaks off"):
        decoder[59]


def test_length_of_a_recording_may_be_unknown(tmp_path: Path) -> None:
    path = write_video(tmp_path / "live.mkv", container={"live": "1"})
    decoder = VideoDecoder(path)
    assert (len(decoder), decoder.metadata.damage) == (40, None)


def test_a_missing_tail_of_tables_is_no_damage(cached_media: Callable) -> None:
    content = cached_media("tail.mkv", write_video).read_bytes()
    decoder = VideoDecoder(content[:-8])  # in the cues, which follow the last frame
    assert (len(decoder), decoder.metadata.damage) == (40, None)


@pytest.mark.parametrize("content", [b"", b"\x1a", b"\x1a\x45\xdf\xa3", b"\x1a\x45\xdf\xa3\x01", b"\0" * 99])
def test_heads_that_are_no_matroska(content: bytes) -> None:
    from mmcore.decoding.source import Source

    assert Source(io.BytesIO(content)).matroska_shortage() == 0


class Misbehaving(io.BytesIO):
    """A file object that goes wrong at its reads from number ``after`` on."""

    def __init__(self, content: bytes, answer: Callable[[bytes], Any], after: int = 0) -> None:
        super().__init__(content)
        self.answer, self.left = answer, after

    def read(self, count: int | None = -1, /) -> Any:
        content = super().read(count)
        if not count:
            return content
        self.left -= 1
        return content if self.left >= 0 else self.answer(content)


def _raise(error: BaseException) -> Callable[[bytes], Any]:
    def answer(content: bytes) -> Any:
        raise error

    return answer


@pytest.fixture(scope="module")
def large(cached_media: Callable) -> bytes:
    """A file that takes several reads: 40 frames, a group of 12 in about 400 kB."""
    noisy = {"qp": "1", "preset": "ultrafast", "tune": "grain"}
    content: bytes = cached_media(
        "large.mp4", lambda p: write_video(p, size=(360, 640), options=noisy)
    ).read_bytes()
    assert len(content) > 4 << 18
    return content


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (_raise(RuntimeError("boom")), "RuntimeError: boom"),
        (_raise(OSError(5, "gone")), "OSError: .* gone"),
        (lambda content: None, "NoneType"),
        (lambda content: "text", "str"),
        (lambda content: content + bytes(1 << 18), "gave"),
    ],
)
@pytest.mark.parametrize("after", [0, 3])
def test_file_object_that_fails(
    answer: Callable[[bytes], Any], text: str, after: int, large: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DecodeError, match=f"Misbehaving>: reading failed: .*{text}"):
        VideoDecoder(Misbehaving(large, answer, after))
    file = Misbehaving(large, answer, 1 << 30)
    decoder = VideoDecoder(file)
    assert number_of(decoder[0]) == 0
    file.left = 0
    for _ in range(2):
        with pytest.raises(DecodeError, match=f"reading failed: .*{text}"):
            decoder[39]
    file.left = 1 << 30
    assert [number_of(decoder[i]) for i in (39, 0, 20)] == [39, 0, 20]
    assert capfd.readouterr() == ("", "")


def test_interrupt_while_a_file_object_is_read(large: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        VideoDecoder(Misbehaving(large, _raise(KeyboardInterrupt()), after=2))
    file = Misbehaving(large, _raise(KeyboardInterrupt()), after=1 << 30)
    decoder = VideoDecoder(file)
    file.left = 0
    with pytest.raises(KeyboardInterrupt):
        decoder[39]
    file.left = 1 << 30
    assert number_of(decoder[39]) == 39
    assert capfd.readouterr() == ("", "")


def test_file_object_may_be_shared(large: bytes) -> None:
    file = io.BytesIO(large)
    one, other = VideoDecoder(file), VideoDecoder(file)
    for i in range(0, 40, 3):
        assert number_of(one[i]) == i
        file.seek(i)
        assert number_of(other[39 - i]) == 39 - i


def test_file_objects_of_other_kinds(clip: Path) -> None:
    content = clip.read_bytes()
    short = Misbehaving(content, bytes)
    short.read = lambda count=-1: io.BytesIO.read(short, min(count, 701))  # type: ignore[method-assign]
    for file in (Misbehaving(content, bytearray), Misbehaving(content, memoryview), short):
        assert number_of(VideoDecoder(file)[17]) == 17
    closed = io.BytesIO(content)
    closed.close()
    with pytest.raises(DecodeError, match="BytesIO>: cannot be read: ValueError"):
        VideoDecoder(closed)


def test_frames_that_change_size(cached_media: Callable) -> None:
    path = cached_media("sizes.avi", lambda p: write_sizes(p, [(96, 128), (64, 160), (96, 128)]))
    decoder = VideoDecoder(path)
    assert [tuple(frame.shape[1:]) for frame in decoder][3:6] == [(96, 128), (64, 160), (64, 160)]
    with pytest.raises(ValueError, match=f"64x160.*frame 4 of {path}"):
        decoder[:]
    assert [number_of(decoder[i]) for i in (11, 4, 3)] == [11, 4, 3]
    transform = mmcore.FrameTransform(resize=(32, 48), dtype=torch.uint8)
    assert VideoDecoder(path, transform=transform)[:].shape == (12, 3, 32, 48)


def test_crop_outside_the_frame_names_the_file(clip: Path) -> None:
    decoder = VideoDecoder(clip, transform=mmcore.FrameTransform(crop=97))
    with pytest.raises(ValueError, match=f"crop: 97 .* 96x128 pixels.*frame 0 of {clip}"):
        decoder[0]


def test_closed(clip: Path) -> None:
    with VideoDecoder(clip) as decoder:
        assert number_of(decoder[3]) == 3
    with pytest.raises(ValueError, match="closed"):
        decoder[0]
    decoder.close()
    assert len(decoder) == 40


def test_nothing_is_printed(clip: Path, cached_media: Callable, capfd: pytest.CaptureFixture[str]) -> None:
    broken = cached_media("noisy.mp4", lambda p: damage(clip, p, at=0.3, length=2000))
    decoder = VideoDecoder(broken)
    for i in range(0, len(decoder), 7):
        try:
            decoder[i]
        except DecodeError:
            continue
    assert capfd.readouterr() == ("", "")


def test_times_stay_on_the_cpu(decoder: VideoDecoder) -> None:
    with torch.device("meta"):
        batch = decoder.get_frames_in_range(0, 3)
        times = decoder.frame_times
        sampled = decoder.get_frames_played_in_range(0, 1, fps=4)
    for tensor in (
        batch.data,
        batch.pts_seconds,
        times.pts_seconds,
        times.key_frames,
        sampled.duration_seconds,
    ):
        assert tensor.device.type == "cpu"
    assert batch.pts_seconds.tolist() == [0, 0.04, 0.08]


@pytest.mark.parametrize("kind", ["jpg", "png", "bmp", "webp", "gif"])
def test_a_picture_is_a_video_of_one_frame(kind: str, tmp_path: Path) -> None:
    """JPEG files are what FFmpeg would read with its reader of numbered files, which is not allowed."""
    from PIL import Image

    path = tmp_path / f"7.{kind}"
    Image.fromarray(np.full((40, 60, 3), 128, np.uint8)).save(path)
    for source in (path, path.read_bytes()):
        with VideoDecoder(source) as decoder:
            assert len(decoder) == 1
            assert decoder[0].shape == (3, 40, 60)
            assert (decoder[0].int() - 128).abs().max() <= 2
