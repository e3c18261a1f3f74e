"""read_clip: flash, sound and word on one clock in every container and codec; ranges, damage, arguments."""

from __future__ import annotations

import io
import pickle
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from clip_media import EVENTS, FPS, RATE, SECONDS, combinations, measure, write_events
from media import write_video
from text_media import write_subtitled

import mmcore
from mmcore import DecodeError, FrameTransform, LogMelSettings
from mmcore.clips import (
    AudioOptions,
    Augment,
    ClipReader,
    SpecAugment,
    TextOptions,
    VideoOptions,
    collate_clips,
    read_clip,
)

HALF_SAMPLE, HALF_FRAME = 0.5 / RATE, 0.5 / FPS
Cache = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture
def events(cached_media: Cache) -> Path:
    return cached_media("events.mp4", write_events)


@pytest.fixture
def mute(cached_media: Cache) -> Path:
    return cached_media("mute.mp4", lambda path: write_events(path, audio=None, text=False))


# --- one clock


@pytest.mark.parametrize(("container", "video", "audio"), combinations())
def test_flash_sound_and_word_begin_together(container: str, video: str, audio: str, tmp_path: Path) -> None:
    path = write_events(tmp_path / f"events.{container}", video, audio)
    found = measure(read_clip(path, None, None))
    assert len(found.flashes) == len(found.bursts) == len(EVENTS)
    assert found.flashes[1] - found.flashes[0] == pytest.approx(EVENTS[1] - EVENTS[0], abs=1e-6)
    for flash, burst in zip(found.flashes, found.bursts, strict=True):
        assert abs(burst - flash) < HALF_SAMPLE
    if container == "ts":  # holds no text
        assert found.words == []
        return
    assert found.flashes == pytest.approx(EVENTS, abs=1e-9)
    assert found.words == pytest.approx(EVENTS, abs=1e-3)


def test_text_beside_a_transport_stream_counts_from_its_beginning(tmp_path: Path) -> None:
    path = write_events(tmp_path / "events.ts", "h264", "aac")
    (tmp_path / "events.srt").write_text("1\n00:00:00,600 --> 00:00:00,900\ntick\n")
    found = measure(read_clip(path, None))
    assert abs(found.words[0] - found.flashes[0]) < HALF_FRAME


@pytest.mark.parametrize("start", [0.0, 0.3, 0.583, 1.1])
@pytest.mark.parametrize("audio", ["aac", "opus", "flac"])
def test_ranges_keep_the_clock(audio: str, start: float, cached_media: Cache) -> None:
    path = cached_media(f"range-{audio}.mkv", lambda p: write_events(p, "h264", audio))
    clip = read_clip(path, start, 1.9)
    assert clip.audio is not None
    assert clip.video is not None
    assert abs(clip.audio.pts_seconds - start) <= HALF_SAMPLE
    assert start - 1 / FPS < clip.video.pts_seconds[0] <= start
    expected = [t for t in EVENTS if t > start]
    found = measure(clip)
    assert found.bursts[-len(expected) :] == pytest.approx(expected, abs=HALF_SAMPLE)
    assert found.flashes[-len(expected) :] == pytest.approx(expected, abs=1e-6)
    assert found.words[-len(expected) :] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("options", [{"fps": 10}, {"fps": 40.0}, {"num_frames": 19}])
def test_chosen_frames_carry_the_clips_times(options: dict[str, Any], events: Path) -> None:
    clip = read_clip(events, 0.0, 1.9, video=options)
    assert clip.video is not None
    count = options.get("num_frames") or round(1.9 * options["fps"])
    step = 1.9 / count
    assert clip.video.pts_seconds.tolist() == pytest.approx([i * step for i in range(count)])
    assert clip.video.duration_seconds.tolist() == pytest.approx([step] * count)
    for flash, event in zip(measure(clip).flashes, EVENTS, strict=True):
        assert event - 1e-6 <= flash < event + step


@pytest.mark.parametrize("speed", [0.8, 1.0, 1.25, 1.137])
@pytest.mark.parametrize("rate", [None, 16000])
def test_speed_is_that_of_everything(speed: float, rate: int | None, events: Path) -> None:
    augment = Augment(speed=(speed, speed))
    clip = read_clip(events, 0.2, 1.9, augment=augment, audio={"sample_rate": rate}, video={"fps": 100})
    assert clip.augmentation is not None
    exact = clip.augmentation.speed
    assert exact == pytest.approx(speed, rel=1e-4)
    assert clip.start == 0.2
    assert clip.stop == pytest.approx(0.2 + 1.7 / exact)
    assert clip.audio is not None
    assert clip.audio.sample_rate == (rate or RATE)
    assert clip.audio.data.shape[1] == pytest.approx(1.7 / exact * clip.audio.sample_rate, abs=1)
    expected = [0.2 + (t - 0.2) / exact for t in EVENTS]
    found = measure(clip, exact)
    assert found.bursts == pytest.approx(expected, abs=1 / clip.audio.sample_rate)
    assert found.words == pytest.approx(expected, abs=1e-6)
    for flash, event in zip(found.flashes, expected, strict=True):
        assert event - 1e-6 <= flash < event + 0.01
    assert clip.text is not None
    assert clip.text[0].duration_seconds == pytest.approx(0.3 / exact)


def test_random_crops_in_time_keep_the_clock(events: Path) -> None:
    starts = set()
    with ClipReader(events) as reader:
        for seed in range(12):
            clip = reader.read(0.0, SECONDS, augment=Augment(crop_seconds=0.9, speed=(0.9, 1.1)), seed=seed)
            starts.add(clip.start)
            assert clip.duration_seconds == pytest.approx(0.9)
            assert clip.augmentation is not None
            speed = clip.augmentation.speed
            found = measure(clip, speed)
            expected = [clip.start + (t - clip.start) / speed for t in EVENTS if t > clip.start + 0.05]
            for kind in (found.flashes, found.bursts):
                for at in kind:
                    if at - clip.start > 0.06:  # begun inside
                        assert min(abs(at - e) for e in expected) < 2 / RATE
    assert len(starts) == 12


def test_alignment_finds_the_events(events: Path) -> None:
    clip = read_clip(
        events, 0.0, 2.0, video={"transform": FrameTransform(resize=(8, 8))},
        audio={"log_mel": True}, text={"tokenizer": mmcore.ByteTokenizer()},
    )  # fmt: skip
    assert clip.video is not None
    assert clip.spectrogram is not None
    assert clip.tokens is not None
    found = clip.align(100)
    brightness = clip.video.data.flatten(1).mean(1)[None, :, None]
    loudness = clip.spectrogram.data.mean(0)[None, :, None]
    letters = clip.tokens.ids.float()[None, :, None]
    shown, heard, said = found.gather([brightness, loudness, letters])
    for event in EVENTS:
        k = round(event * 100)
        assert shown[0, k, 0] > 0.5 > shown[0, k - 1, 0]
        assert heard[0, k + 2, 0] > heard[0, k - 3, 0] + 0.3
        assert found.mask[0, k, 2]
        assert not found.mask[0, k - 1, 2]
        assert said[0, k, 0] == ord("t") + 3
    fused = mmcore.weighted_fusion([shown, heard, said], mask=found.mask, mode="softmax")
    assert fused.shape == (1, 200, 1)
    pooled = [brightness.mean(1), loudness.mean(1), letters.mean(1)]
    assert mmcore.weighted_fusion(pooled, mask=clip.mask).shape == (1, 1)


# --- augmentation


def test_augmented_clips_repeat_by_seed(events: Path) -> None:
    augment = Augment(
        crop_seconds=0.8, speed=(0.9, 1.1), horizontal_flip=0.5, resized_crop=(0.3, 1.0), brightness=0.4,
        contrast=0.4, saturation=0.4, hue=0.1, spec_augment=SpecAugment(),
    )  # fmt: skip
    options: dict[str, Any] = {
        "video": {"transform": FrameTransform(resize=(32, 32)), "num_frames": 4},
        "audio": {"num_channels": 1, "log_mel": True},
    }
    first = read_clip(events, augment=augment, seed=3, **options)
    again = read_clip(events, augment=augment, seed=3, **options)
    redone = read_clip(events, augment=first.augmentation, **options)
    other = read_clip(events, augment=augment, seed=4, **options)
    for clip in (again, redone):
        assert (clip.start, clip.stop, clip.text) == (first.start, first.stop, first.text)
        assert torch.equal(clip.video.data, first.video.data)  # type: ignore[union-attr]
        assert torch.equal(clip.audio.data, first.audio.data)  # type: ignore[union-attr]
        assert torch.equal(clip.spectrogram.data, first.spectrogram.data)  # type: ignore[union-attr]
    assert other.start != first.start
    assert collate_clips([first, other]).video.shape == (2, 4, 3, 32, 32)  # type: ignore[union-attr]


def test_the_transform_of_a_clip_is_drawn_once(clip: Path) -> None:
    """All frames of a clip are changed alike, and just as the drawn transform says."""
    base = FrameTransform(resize=(40, 48))
    augment = Augment(horizontal_flip=1, resized_crop=(0.3, 0.6), brightness=0.3, hue=0.2)
    with ClipReader(clip, video={"transform": base}, audio=False, text=False) as reader:
        changed = reader.read(0.2, 0.6, augment=augment, seed=11)
        plain = reader.read(0.2, 0.6)
    assert changed.augmentation is not None
    decoder = mmcore.VideoDecoder(clip, transform=changed.augmentation.transform(base, 96, 128))
    assert torch.equal(changed.video.data, decoder.get_frames_played_in_range(0.2, 0.6).data)  # type: ignore[union-attr]
    unchanged = mmcore.VideoDecoder(clip, transform=base).get_frames_played_in_range(0.2, 0.6)
    assert torch.equal(plain.video.data, unchanged.data)  # type: ignore[union-attr]
    assert not torch.equal(changed.video.data, plain.video.data)  # type: ignore[union-attr]


# --- what is there, and what is not


def test_missing_streams_are_none(mute: Path, cached_media: Cache) -> None:
    clip = read_clip(mute)
    assert clip.modalities == ("video", "audio", "text")
    assert clip.audio is None
    assert clip.text is None
    assert clip.mask.tolist() == [[True, False, False]]
    assert clip.errors == {}
    sound = cached_media("sound.mp4", lambda path: write_events(path, video=None, text=False))
    alone = read_clip(sound, 0.5, 1.0, text=None)
    assert alone.modalities == ("video", "audio")
    assert alone.video is None
    assert alone.mask.tolist() == [[False, True]]
    assert "no video" in repr(alone)
    nothing = read_clip(mute, 0.5, 1.0, video=False)
    assert not nothing.mask.any()
    batch = collate_clips([clip, read_clip(sound)])
    assert batch.mask.tolist() == [[True, False, False], [False, True, False]]


def test_strict_raises_for_what_is_missing(mute: Path) -> None:
    with pytest.raises(DecodeError, match="audio"):
        read_clip(mute, strict=True)
    with pytest.raises(DecodeError, match="text"):
        read_clip(mute, audio=False, strict=True)
    assert read_clip(mute, audio=False, text=False, strict=True).video is not None


def test_damaged_sound_costs_the_sound_alone(events: Path, tmp_path: Path) -> None:
    import av

    with av.open(str(events)) as container:
        packets = [(p.pos, p.size) for p in container.demux(audio=0) if p.size]
    content = bytearray(events.read_bytes())
    for position, size in packets[20:60]:
        assert position is not None
        content[position : position + size] = b"\xff" * size
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(content)
    clip = read_clip(broken)
    assert clip.audio is None
    assert isinstance(clip.errors["audio"], DecodeError)
    assert clip.mask.tolist() == [[True, False, True]]
    assert len(clip.video) == round(SECONDS * FPS)  # type: ignore[arg-type]
    assert measure(clip).words == pytest.approx(EVENTS, abs=1e-3)
    with pytest.raises(DecodeError):
        read_clip(broken, strict=True)
    silent = read_clip(broken, audio={"on_error": "silence"})
    assert silent.audio is not None
    assert silent.audio.gaps
    mask = silent.align(50).mask[0, :, 1]
    assert 0 < mask.sum() < len(mask)
    # what lies outside the damage is whole
    assert read_clip(broken, 1.6, 1.9).errors == {}


@pytest.mark.parametrize("name", ["cut.mp4", "cut.mkv"])
@pytest.mark.parametrize("rate", [None, 16000])
def test_a_file_that_breaks_off_gives_what_it_has(name: str, rate: int | None, tmp_path: Path) -> None:
    path = write_events(tmp_path / name, audio="flac")
    if name.endswith("mp4"):
        path = in_front(path)
    content = path.read_bytes()
    cut = content[: len(content) * 3 // 4]
    clip = read_clip(cut, 0.0, SECONDS, audio={"sample_rate": rate})
    assert clip.mask[0, :2].tolist() == [True, True]
    assert list(clip.errors) == ["audio"]
    assert clip.audio is not None
    assert clip.video is not None
    whole = read_clip(content, 0.0, SECONDS, audio={"sample_rate": rate})
    count = clip.audio.data.shape[1] - 100  # resampling looks ahead
    assert count > 0.5 * (rate or RATE)
    assert torch.allclose(clip.audio.data[:, :count], whole.audio.data[:, :count], atol=1e-5)  # type: ignore[union-attr]
    with pytest.raises(DecodeError):
        read_clip(cut, 0.0, SECONDS, audio={"sample_rate": rate}, text=False, strict=True)
    end = clip.audio.pts_seconds + clip.audio.duration_seconds
    assert read_clip(cut, 0.0, end, audio={"sample_rate": rate}).errors == {}


def in_front(path: Path) -> Path:
    """The same packets with the index before them."""
    import av

    target = path.with_name("front.mp4")
    with av.open(str(path)) as source, av.open(str(target), "w", options={"movflags": "faststart"}) as out:
        copies = {s.index: out.add_stream_from_template(s) for s in source.streams if s.type != "subtitle"}
        for packet in source.demux():
            if packet.size and packet.stream.index in copies:
                packet.stream = copies[packet.stream.index]
                out.mux(packet)
    return target


def test_damaged_pictures_cost_the_pictures_alone(events: Path, tmp_path: Path) -> None:
    import av

    with av.open(str(events)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    content = bytearray(events.read_bytes())
    for position, size in packets:
        assert position is not None
        content[position : position + size] = b"\xff" * size
    clip = read_clip(content)
    assert clip.video is None
    assert isinstance(clip.errors["video"], DecodeError)
    assert measure(clip).bursts == pytest.approx(EVENTS, abs=HALF_SAMPLE)
    augmented = read_clip(content, augment=Augment(horizontal_flip=1.0), seed=1)
    assert augmented.video is None
    assert augmented.audio is not None


def test_damaged_words_cost_no_other(tmp_path: Path) -> None:
    head = b"0,0,Default,,0,0,0,,"
    cues = [(0.2, 0.3, head + b"one"), (0.6, 0.3, b"garbage"), (1.0, 0.3, head + b"three")]
    path = write_subtitled(tmp_path / "film.mkv", [("ass", cues, {})])
    clip = read_clip(path)
    assert [s.text for s in clip.text or ()] == ["one", "three"]
    assert "1 cue could not be decoded" in str(clip.errors["text"])
    assert clip.video is not None
    with pytest.raises(DecodeError, match="1 cue could not be decoded"):
        read_clip(path, audio=False, strict=True)


def test_random_damage_gives_a_clip_or_a_typed_error(events: Path) -> None:
    content = events.read_bytes()
    rng = random.Random(5)
    lost = {"video": 0, "audio": 0, "text": 0, "file": 0}
    for _ in range(40):
        damaged = bytearray(content)
        at = rng.randrange(len(damaged))
        damaged[at : at + rng.choice((1, 40, 2000))] = rng.randbytes(rng.choice((1, 40, 2000)))
        try:
            clip = read_clip(bytes(damaged), video={"num_frames": 6}, audio={"sample_rate": 8000})
        except DecodeError:
            lost["file"] += 1
            continue
        assert set(clip.errors) <= set(clip.modalities)
        assert clip.mask.tolist() == [
            [
                clip.video is not None and len(clip.video) > 0,
                clip.audio is not None and len(clip.audio) > 0,
                bool(clip.text),
            ]
        ]
        for name in clip.errors:
            lost[name] += 1
        assert clip.align(10).mask.shape[2] == 3
    assert lost["video"] or lost["audio"], lost


def test_what_is_no_media_file_raises(tmp_path: Path) -> None:
    text = tmp_path / "no.mp4"
    text.write_bytes(b"this is no media file " * 50)
    for source in (tmp_path / "absent.mp4", text, b"", tmp_path):
        with pytest.raises(DecodeError):
            read_clip(source)
    with pytest.raises(TypeError, match="source"):
        read_clip(3)


# --- ranges


def test_ranges_beyond_the_file(events: Path) -> None:
    whole = read_clip(events)
    assert whole.start == 0
    assert whole.stop == pytest.approx(SECONDS, abs=0.05)
    beyond = read_clip(events, 1.5, 5.0)
    assert beyond.stop == 5.0
    assert len(beyond.video) == 10  # type: ignore[arg-type]
    mask = beyond.align(10).mask[0, :, :2].all(1).tolist()
    assert mask == [True] * 5 + [False] * 30
    before = read_clip(events, -1.0, 0.5)
    assert before.align(10).mask[0, :, 0].tolist() == [False] * 10 + [True] * 5
    for start, stop in ((3.0, 4.0), (-5.0, -1.0), (100.0, None)):
        with pytest.raises(ValueError, match=r"no range of the file, which lasts from 0.0 to 2"):
            read_clip(events, start, stop)


def test_before_the_first_sound_of_an_mp3_file(tmp_path: Path) -> None:
    """LAME's delay of 1105 samples is not heard: sound begins at 0.023 s."""
    path = write_events(tmp_path / "a.mp3", video=None, audio="mp3", text=False)
    clip = read_clip(path, 0.0, 0.1)
    assert clip.audio is not None
    assert clip.audio.pts_seconds == pytest.approx(1105 / RATE, abs=1e-5)
    assert clip.stop - clip.start == 0.1
    assert clip.align(100).mask[0, :, 1].tolist() == [False] * 2 + [True] * 8
    with pytest.raises(ValueError, match=r"no range of the file, which lasts from 0\.023"):
        read_clip(path, 0.0, 0.01)
    assert read_clip(path, None, 0.1).start == clip.audio.pts_seconds


@pytest.mark.parametrize("at", [0.0, 0.65, 2.0])
def test_zero_length(at: float, events: Path) -> None:
    options = {"transform": FrameTransform(resize=(8, 8))}
    for video in (options, {**options, "fps": 5}, {**options, "num_frames": 3}):
        clip = read_clip(events, at, at, video=video, audio={"log_mel": LogMelSettings.ast()})
        assert clip.video.data.shape == (0, 3, 8, 8)  # type: ignore[union-attr]
        assert clip.audio.data.shape == (2, 0)  # type: ignore[union-attr]
        assert clip.spectrogram.data.shape == (0, 128)  # type: ignore[union-attr]
        assert clip.text == ()
        assert clip.mask.tolist() == [[False] * 3]
        assert clip.align(10).mask.shape == (1, 0, 3)


@pytest.mark.parametrize(
    ("start", "stop", "error"),
    [
        (1.0, 0.5, ValueError), (float("nan"), 1.0, ValueError), (0.0, float("inf"), ValueError),
        ("0", 1.0, TypeError),
    ],
)  # fmt: skip
def test_wrong_ranges(start: Any, stop: Any, error: type[Exception], events: Path) -> None:
    with pytest.raises(error, match=r"start|stop"):
        read_clip(events, start, stop)


def test_overlapping_and_unordered_cues(tmp_path: Path) -> None:
    path = write_events(tmp_path / "v.mp4", audio=None, text=False)
    cues = (("3", 1.2, 1.8), ("1", 0.1, 1.5), ("2", 0.1, 0.4))
    text = "\n\n".join(f"{i}\n00:00:0{a:.3f} --> 00:00:0{b:.3f}\ncue {i}" for i, a, b in cues)
    (tmp_path / "v.srt").write_text(text.replace(".", ","))
    clip = read_clip(path, 0.0, 2.0)
    assert clip.text is not None
    assert [s.text for s in clip.text] == ["cue 2", "cue 1", "cue 3"]
    found = clip.align(10, text="segments").maps["text"]
    assert found.valid[0].tolist() == [False] + [True] * 17 + [False] * 2
    assert found.index[0, 5:12].tolist() == [1] * 7
    assert found.index[0, 12:18].tolist() == [2] * 6


# --- arguments


def test_a_tokenizer_that_raises(events: Path) -> None:
    def tokenizer(text: str) -> list[int]:
        raise RuntimeError("no such letter")

    with pytest.raises(ValueError, match=r"tokenizer: raised RuntimeError .*'tick'.*no such letter"):
        read_clip(events, text={"tokenizer": tokenizer})


def test_options(events: Path) -> None:
    same = read_clip(
        events, 0.5, 1.0, video=VideoOptions(num_frames=2), audio=AudioOptions(sample_rate=8000),
        text=TextOptions(tokenizer=mmcore.ByteTokenizer(), add_special_tokens=True),
    )  # fmt: skip
    assert same.tokens is not None
    assert same.tokens.ids.tolist() == mmcore.ByteTokenizer().encode("tick", add_special_tokens=True)
    assert len(same.video) == 2  # type: ignore[arg-type]
    assert same.audio.data.shape == (2, 4000)  # type: ignore[union-attr]
    with pytest.raises(TypeError, match=r"video: there is no option 'resize'; there are transform, fps"):
        read_clip(events, video={"resize": 3})
    with pytest.raises(TypeError, match="audio: expected True, False"):
        read_clip(events, audio=16000)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one"):
        read_clip(events, video=False, audio=None, text=False)
    with pytest.raises(ValueError, match="at most one"):
        VideoOptions(fps=3, num_frames=3)
    with pytest.raises(ValueError, match="sample_rate"):
        AudioOptions(sample_rate=8000, log_mel=True)
    with pytest.raises(TypeError, match="augment"):
        read_clip(events, augment=3)  # type: ignore[arg-type]
    for wrong in ({"fps": 0}, {"fps": "3"}, {"num_frames": 0}, {"num_frames": 2.5}):
        with pytest.raises((ValueError, TypeError), match=next(iter(wrong))):
            VideoOptions(**wrong)
    with pytest.raises(ValueError, match="stream_index"):
        read_clip(events, audio={"stream_index": 0})


def test_sources(events: Path) -> None:
    content = events.read_bytes()
    tensor = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    expected = read_clip(events, 0.5, 0.9)
    for source in (
        str(events),
        content,
        bytearray(content),
        memoryview(content),
        tensor,
        io.BytesIO(content),
    ):
        clip = read_clip(source, 0.5, 0.9)
        assert torch.equal(clip.video.data, expected.video.data)  # type: ignore[union-attr]
        assert torch.equal(clip.audio.data, expected.audio.data)  # type: ignore[union-attr]
        assert clip.text == expected.text


def test_reader_is_reused_pickled_and_closed(events: Path) -> None:
    with ClipReader(events, video={"num_frames": 2}, audio={"sample_rate": 8000}) as reader:
        first = [reader.read(t, t + 0.3) for t in (1.0, 0.2, 1.0)]
        assert torch.equal(first[0].audio.data, first[2].audio.data)  # type: ignore[union-attr]
        copied = pickle.loads(pickle.dumps(reader))
        assert torch.equal(copied.read(0.2, 0.5).video.data, first[1].video.data)  # type: ignore[union-attr]
        copied.close()
    with pytest.raises(ValueError, match="closed"):
        reader.read(0.0, 1.0)
    sent = pickle.loads(pickle.dumps(first[0]))
    assert sent.text == first[0].text


def test_threads_share_a_reader(events: Path) -> None:
    """What a clip's augmentation sets up is not that of another thread's clip."""
    augment = Augment(speed=(0.8, 1.25), horizontal_flip=0.5, brightness=0.4)
    options = {"video": {"num_frames": 3}, "audio": {"sample_rate": 16000}}

    def same(clip: mmcore.Clip, other: mmcore.Clip) -> bool:
        assert clip.video is not None
        assert clip.audio is not None
        return torch.equal(clip.video.data, other.video.data) and torch.equal(
            clip.audio.data, other.audio.data
        )  # type: ignore[union-attr]

    with ClipReader(events, **options) as reader, ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda seed: reader.read(0.4, 1.0, augment=augment, seed=seed), range(12))
        for seed, clip in enumerate(found):
            assert same(clip, read_clip(events, 0.4, 1.0, augment=augment, seed=seed, **options))


def test_only_what_is_asked_for_is_opened(events: Path, tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", num_frames=5)
    clip = read_clip(path, audio=False, text=False)
    assert clip.modalities == ("video",)
    assert clip.mask.tolist() == [[True]]
    words = read_clip(events, video=False, audio=False)
    assert [s.text for s in words.text or ()] == ["tick", "tock"]
    lone = read_clip(b"1\n00:00:01,000 --> 00:00:02,000\nhi\n", 0.5, 1.5)
    assert lone.text is not None
    assert lone.text[0].text == "hi"
    assert lone.mask.tolist() == [[False, False, True]]
