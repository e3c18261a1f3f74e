"""What encode writes is what decoders read: colours, samples and words at their times."""

from __future__ import annotations

import doctest
import math
import weakref
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from encode_harness import (
    FPS,
    RATE,
    decoded_planes,
    grid,
    noise,
    pictures,
    psnr,
    read_audio,
    read_frames,
    read_text,
)
from torch import Tensor

import mmcore
from mmcore.encoding import encode_media, encoder

EVENT = 1.2  # seconds: a frame's, a sample's and a thousandth's time

# --- pictures


@pytest.mark.parametrize(
    ("name", "bound"), [("a.mp4", 34), ("a.mov", 34), ("a.mkv", 34), ("a.webm", 36), ("a.ts", 34)]
)
def test_decode_of_encode_is_within_codec_loss(name: str, bound: float, tmp_path: Path) -> None:
    frames = pictures()
    path = tmp_path / name
    mmcore.encode(path, frames=frames, fps=FPS)
    assert psnr(read_frames(path), frames) > bound
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_lower_crf_is_better(tmp_path: Path) -> None:
    frames = pictures()
    quality = []
    for crf in (10, 40):
        mmcore.encode(tmp_path / "a.mp4", frames=frames, fps=FPS, crf=crf, preset="veryfast")
        quality.append(psnr(read_frames(tmp_path / "a.mp4"), frames))
    assert quality[0] > 40 > 30 > quality[1]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32])
def test_the_same_picture_in_every_layout_dtype_and_scale(dtype: torch.dtype, tmp_path: Path) -> None:
    levels = (pictures(5) * 255).round()
    expected = mmcore.tensor_to_planes(levels.to(torch.uint8), "bgra").data[0]
    for layout, order in (("NCHW", (0, 1, 2, 3)), ("NHWC", (0, 2, 3, 1)), ("CNHW", (1, 0, 2, 3))):
        settings: dict[str, Any] = {"scale": 1.0}
        frames = levels.to(dtype)  # whole numbers up to 255: exact in all of them
        if dtype == torch.uint8:
            settings = {}
        elif dtype == torch.float32:
            frames, settings = (levels / 255 - 0.45) / 0.22, {"mean": 0.45, "std": (0.22, 0.22, 0.22)}
        path = tmp_path / f"{layout}.mkv"
        mmcore.encode(path, frames=frames.permute(order), fps=FPS, codec="ffv1", layout=layout, **settings)
        assert np.array_equal(decoded_planes(path)[0], expected.numpy())


LOSSLESS = [
    ("ffv1", None, {}),
    ("ffv1", "yuv444p", {}),
    ("ffv1", "yuv420p", {}),
    ("ffv1", "yuv422p10le", {}),
    ("ffv1", "gray", {}),
    ("libx264", "yuv444p", {"crf": 0}),
    ("libx264", "yuv420p", {"extra_options": {"qp": "0"}}),
    ("libx264rgb", None, {"crf": 0}),
]


@pytest.mark.parametrize(("codec", "pixel_format", "settings"), LOSSLESS)
def test_lossless_round_trip(
    codec: str, pixel_format: str | None, settings: dict[str, Any], tmp_path: Path
) -> None:
    frames = (noise(6, 3, 34, 50) * 255).to(torch.uint8)
    path = tmp_path / "a.mkv"
    mmcore.encode(path, frames=frames, fps=FPS, codec=codec, pixel_format=pixel_format, **settings)
    with mmcore.VideoDecoder(path) as decoder:
        back, name = decoder[:], decoder.metadata.pixel_format
    if pixel_format is None:
        assert torch.equal(back, frames)  # RGB, bit for bit
        return
    planes = mmcore.tensor_to_planes(frames, pixel_format, matrix="709", full_range=False)
    assert name == pixel_format
    assert torch.equal(back, mmcore.frames_to_tensor(planes))
    for ours, theirs in zip(decoded_planes(path), planes.data, strict=True):
        assert np.array_equal(ours, theirs.numpy())


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", ["601", "709", "2020"])
@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.webm", "libvpx-vp9"), ("a.mkv", "ffv1")]
)
def test_colour_is_tagged(name: str, codec: str, matrix: str, full_range: bool, tmp_path: Path) -> None:
    colours = torch.tensor([[0.8, 0.2, 0.3], [0.1, 0.6, 0.9]])
    frames = colours[:, :, None, None].expand(-1, -1, 32, 48)
    path = tmp_path / name
    mmcore.encode(
        path,
        frames=frames,
        fps=FPS,
        codec=codec,
        crf=None if codec == "ffv1" else 4,
        pixel_format="yuv444p" if codec == "ffv1" else "yuv420p",
        matrix=matrix,
        full_range=full_range,
    )
    with mmcore.VideoDecoder(path) as decoder:
        tags = decoder.metadata
    space = {"601": "smpte170m", "709": "bt709", "2020": "bt2020nc"}[matrix]
    primaries = {"601": "smpte170m", "709": "bt709", "2020": "bt2020"}[matrix]
    # VP9's bitstream knows one BT.601.
    assert tags.color_space == space or (codec == "libvpx-vp9" and matrix == "601")
    assert tags.color_range == ("full" if full_range else "limited")
    assert tags.color_primaries == primaries
    assert (read_frames(path) - frames).abs().max() * 255 < 3  # a wrong matrix or range: 10 and more


def test_jpeg_means_its_own_colour(tmp_path: Path) -> None:
    frames = pictures(3)
    with pytest.raises(ValueError, match="Motion JPEG"):
        mmcore.encode(tmp_path / "a.mkv", frames=frames, fps=FPS, codec="mjpeg")
    mmcore.encode(
        tmp_path / "a.mkv",
        frames=frames,
        fps=FPS,
        codec="mjpeg",
        matrix="601",
        full_range=True,
        extra_options={"qmin": "1", "qmax": "2"},
    )
    assert psnr(read_frames(tmp_path / "a.mkv"), frames) > 38


@pytest.mark.parametrize(
    ("fps", "exact"),
    [
        (25, Fraction(25)),
        (29.97, Fraction(30000, 1001)),
        (23.976, Fraction(24000, 1001)),
        (59.94, Fraction(60000, 1001)),
        (30.0, Fraction(30)),
        (12.5, Fraction(25, 2)),
        (Fraction(10, 3), Fraction(10, 3)),
        (torch.tensor(24.0).item(), Fraction(24)),
    ],
)
def test_frame_rates_are_exact(fps: Any, exact: Fraction, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    mmcore.encode(path, frames=pictures(8, 16, 16), fps=fps, preset="ultrafast")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == exact
        assert [f.pts * f.time_base for f in container.decode(stream)] == [i / exact for i in range(8)]


def test_odd_sizes(tmp_path: Path) -> None:
    frames = pictures(3, 33, 47)
    with pytest.raises(ValueError, match=r"libx264 cannot encode 33x47 .* yuv420p.*pixel_format='yuv444p'"):
        mmcore.encode(tmp_path / "a.mp4", frames=frames, fps=FPS)
    assert not list(tmp_path.iterdir())
    for name, settings in (
        ("a.mp4", {"pixel_format": "yuv444p"}),
        ("b.mkv", {"codec": "ffv1", "pixel_format": "yuv420p"}),
        ("c.webm", {}),
        ("d.mp4", {"codec": "mpeg4"}),
    ):
        mmcore.encode(tmp_path / name, frames=frames, fps=FPS, **settings)
        assert psnr(read_frames(tmp_path / name), frames) > 32


def test_a_generator_is_taken_as_it_comes(tmp_path: Path) -> None:
    """Frames and batches mixed; never more than a few alive."""
    whole = pictures(60, 32, 32)
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = 0

    def frames() -> Iterator[Tensor]:
        nonlocal most
        at = 0
        for size in (0, 1, 2, 5, 1, 1, 10, 20, 20):
            item = whole[at : at + size].clone() if size != 1 else whole[at].clone()
            alive.add(item)
            most = max(most, len(alive))
            at += size
            yield item
            del item

    mmcore.encode(tmp_path / "a.mkv", frames=frames(), fps=FPS, codec="ffv1")
    assert torch.equal((read_frames(tmp_path / "a.mkv") * 255).round(), (whole * 255).round())
    assert most <= 3


def test_what_a_decoder_gives_is_taken(tmp_path: Path) -> None:
    first, again = tmp_path / "a.mkv", tmp_path / "b.mkv"
    mmcore.encode(first, frames=pictures(10, 16, 24), fps=FPS, codec="ffv1")
    with mmcore.VideoDecoder(first) as decoder:
        for frames in (decoder, decoder[:], [decoder.get_frame_at(0), decoder.get_frames_in_range(1, 10)]):
            mmcore.encode(again, frames=frames, fps=FPS, codec="ffv1")
            with mmcore.VideoDecoder(again) as copy:
                assert torch.equal(copy[:], decoder[:])


def test_gray_pictures(tmp_path: Path) -> None:
    gray = pictures(4)[:, :1]
    mmcore.encode(tmp_path / "a.mp4", frames=gray, fps=FPS)
    assert psnr(read_frames(tmp_path / "a.mp4"), gray.expand(-1, 3, -1, -1)) > 38


def test_the_reference_backend_writes_the_same(tmp_path: Path) -> None:
    frames = (pictures(3, 18, 31) * 255).to(torch.uint8)
    for name in ("yuv420p", "yuv422p10le", "bgra"):
        files = []
        for backend in ("cpu", "reference"):
            files.append(tmp_path / f"{backend}.mkv")
            with mmcore.backend(backend):
                mmcore.encode(files[-1], frames=frames, fps=FPS, codec="ffv1", pixel_format=name)
        for ours, theirs in zip(*(decoded_planes(f) for f in files), strict=True):
            assert np.abs(ours.astype(int) - theirs).max() <= 1  # where the exact value is a half
            assert (ours != theirs).mean() < 0.01


# --- sound


@pytest.mark.parametrize(
    ("name", "bits", "settings"),
    [
        ("a.flac", 24, {}),
        ("a.flac", 16, {}),
        ("a.flac", 16, {"sample_format": "s16"}),
        ("a.wav", 16, {}),
        ("a.wav", 24, {"audio_codec": "pcm_s24le"}),
        ("a.wav", 24, {"audio_codec": "pcm_f32le"}),
        ("a.wav", 8, {"audio_codec": "pcm_u8"}),
        ("a.mka", 24, {"audio_codec": "flac"}),
        ("a.m4a", 24, {"audio_codec": "alac"}),
        ("a.ogg", 16, {"audio_codec": "flac"}),
    ],
)
def test_lossless_audio_is_exact(name: str, bits: int, settings: dict[str, Any], tmp_path: Path) -> None:
    samples = grid(bits)
    kept = samples.clone()
    mmcore.encode(tmp_path / name, audio=samples, sample_rate=RATE, **settings)
    if settings.get("audio_codec") == "pcm_u8":
        with av.open(str(tmp_path / name)) as container:
            back = np.concatenate([f.to_ndarray().reshape(-1, 2).T for f in container.decode(audio=0)], 1)
        back = back / 128.0 - 1
    else:
        back, start, rate = read_audio(tmp_path / name)
        assert (start, rate) == (0.0, RATE)
    assert np.array_equal(back, samples.double().numpy())
    assert torch.equal(samples, kept)


def test_audio_is_clipped_but_not_as_floats(tmp_path: Path) -> None:
    samples = torch.tensor([0.0, 1.0, 1.5, -1.5, 0.25])
    mmcore.encode(tmp_path / "a.wav", audio=samples, sample_rate=RATE)
    top = 32767 / 32768
    assert read_audio(tmp_path / "a.wav")[0].tolist() == [[0.0, top, top, -1.0, 0.25]]
    mmcore.encode(tmp_path / "a.wav", audio=samples, sample_rate=RATE, audio_codec="pcm_f32le")
    assert read_audio(tmp_path / "a.wav")[0].tolist() == [samples.tolist()]


@pytest.mark.parametrize("rate", [44100, 48000, 22050])
@pytest.mark.parametrize("name", ["a.m4a", "a.opus", "a.webm", "a.mp3"])
def test_lossy_audio_keeps_the_tone(name: str, rate: int, tmp_path: Path) -> None:
    t = torch.arange(rate) / rate
    tones = torch.stack([0.5 * torch.sin(2 * math.pi * f * t) for f in (440, 880)])
    mmcore.encode(
        tmp_path / name, audio=tones, sample_rate=rate, audio_bit_rate=128_000 if rate > 30_000 else None
    )
    back, start, back_rate = read_audio(tmp_path / name)
    # Opus knows few rates: the next higher one is taken.
    assert back_rate == (48000 if "m4a" not in name and "mp3" not in name else rate)
    at = np.arange(back.shape[1]) / back_rate + start
    inside = (at > 0.2) & (at < 0.8)
    for channel, frequency in enumerate((440, 880)):
        # Opus and MP3 shift phases a little; the amplitude is of either phase.
        wave = np.exp(2j * math.pi * frequency * at[inside])
        assert abs(2 * (back[channel, inside] * wave).mean()) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("channels", [1, 2, 6, 8])
def test_numbers_of_channels(channels: int, tmp_path: Path) -> None:
    samples = grid(16, channels)
    mmcore.encode(tmp_path / "a.flac", audio=samples, sample_rate=RATE)
    assert np.array_equal(read_audio(tmp_path / "a.flac")[0], samples.double().numpy())


def test_audio_in_pieces_and_of_a_decoder(tmp_path: Path) -> None:
    samples = grid(16, 2, 100_000)
    pieces = [samples[:, :7], samples[:, 7:7], samples[:, 7:60_000].double(), samples[:, 60_000:]]
    mmcore.encode(tmp_path / "a.flac", audio=iter(pieces), sample_rate=RATE)
    assert np.array_equal(read_audio(tmp_path / "a.flac")[0], samples.double().numpy())
    decoded = SimpleNamespace(data=samples, sample_rate=RATE, pts_seconds=0.0)  # what AudioSamples has
    for audio in (decoded, [decoded]):
        mmcore.encode(tmp_path / "b.flac", audio=audio)
        assert np.array_equal(read_audio(tmp_path / "b.flac")[0], samples.double().numpy())


# --- words

TEXTS = ["one", "two\nlines", "日本語 🎬", "a\n\nb", "-->"]
# what is markup in one format or another
TEXTS += ["zwei & <b>drei</b>", "1 < 2 > 0", "a<1>", "<<x>> </i><br>", "<", '<font color="red">x']
TEXTS += [r"a\Nb \h", r"{\i1}x{y} \{z\}", "{y:i}{", "&amp; &lt;&nbsp;", "\\"]
TEXT_FILES = [("a.mp4", "mov_text"), ("a.mov", "mov_text"), ("a.mkv", "subrip"), ("a.mkv", "ass")]
TEXT_FILES += [("a.mkv", "webvtt"), ("a.webm", "webvtt")]


@pytest.mark.parametrize(("name", "codec"), TEXT_FILES)
def test_text_comes_back(name: str, codec: str, tmp_path: Path) -> None:
    path = tmp_path / name
    cues = [(0.25 + i, 1.0 + i, text) for i, text in enumerate(TEXTS)]
    given = [SimpleNamespace(start=s, end=e, text=t) for s, e, t in cues[:2]] + cues[:1:-1]
    mmcore.encode(path, text=given, text_codec=codec, language="eng")
    assert read_text(path) == cues
    with av.open(str(path)) as container:
        assert container.streams.subtitles[0].metadata["language"] == "eng"


@pytest.mark.parametrize(("name", "codec"), TEXT_FILES)
def test_blank_text_and_lines(name: str, codec: str, tmp_path: Path) -> None:
    cues = [(0, 1, " "), (1, 2, " x\n \n\ny\n"), (2, 3, "")]
    mmcore.encode(tmp_path / name, text=cues, text_codec=codec)
    assert read_text(tmp_path / name) == [(1.0, 2.0, "x\n\n\ny")]


@pytest.mark.parametrize(("name", "codec"), TEXT_FILES)
def test_overlapping_text(name: str, codec: str, tmp_path: Path) -> None:
    mmcore.encode(tmp_path / name, text=[(1, 3, "b"), (0, 2, "a"), (4, 5, "c")], text_codec=codec)
    separate = [(0.0, 2.0, "a"), (1.0, 3.0, "b"), (4.0, 5.0, "c")]
    together = [(0.0, 1.0, "a"), (1.0, 2.0, "a\nb"), (2.0, 3.0, "b"), (4.0, 5.0, "c")]
    assert read_text(tmp_path / name) == (together if codec == "mov_text" else separate)


# --- all on one clock


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.webm"])
def test_flash_click_and_word_at_one_instant(name: str, tmp_path: Path) -> None:
    frames = pictures(60)
    index, sample = round(EVENT * FPS), round(EVENT * RATE)
    frames[index : index + 3] = 1.0
    audio = torch.zeros(2, RATE * len(frames) // FPS)
    audio[:, sample : sample + 400] = 0.9 * torch.sin(torch.arange(400) * 0.4 + 1)
    path = tmp_path / name
    mmcore.encode(
        path, frames=frames, fps=FPS, audio=audio, sample_rate=RATE, text=[(EVENT, EVENT + 0.5, "word")]
    )
    with mmcore.VideoDecoder(path) as decoder:
        levels = decoder[:].float().mean((1, 2, 3))
        times = decoder.frame_times.pts_seconds
        assert times[0] == 0
        flash = times[(levels > 220).nonzero()[0]].item()
        assert len(decoder) == len(frames)
    assert flash == pytest.approx(EVENT, abs=1e-9)
    with mmcore.AudioDecoder(path) as sound:
        samples = sound.get_all_samples()
    loud = (samples.data[0].abs() > 0.3).nonzero()[0].item()
    # AAC and Opus smear a click by some samples, MKV counts in thousandths
    assert samples.pts_seconds + loud / samples.sample_rate == pytest.approx(EVENT, abs=1e-3)
    assert read_text(path) == [(EVENT, EVENT + 0.5, "word")]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_streams_lie_side_by_side(name: str, tmp_path: Path) -> None:
    """Though the video encoder holds back 50 frames: no reader has to look far for the other stream."""
    path = tmp_path / name
    words = [(i, i + 0.5, str(i)) for i in range(20)]
    mmcore.encode(
        path,
        frames=pictures(100, 16, 16),
        fps=5,
        audio=noise(1, 20 * RATE) - 0.5,
        sample_rate=RATE,
        text=words,
    )
    times: dict[str, list[float]] = {"video": [], "audio": []}
    with av.open(str(path)) as container:
        packets = [
            (p.pos, p.stream.type, float((p.pts if p.dts is None else p.dts) * p.time_base))
            for p in container.demux()
            if p.size and p.stream.type in times
        ]
    for _, kind, time in sorted(packets):
        times[kind].append(time)
        newest = [t[-1] for t in times.values() if t]
        assert max(newest) - min(newest) < 1.5
    assert len(times["video"]) == 100


@pytest.mark.parametrize("module", [encode_media, encoder], ids=lambda module: module.__name__)
def test_examples(module: Any) -> None:
    failed, tried = doctest.testmod(module)
    assert tried
    assert not failed
