"""``mmcore decode``: what it writes equals what VideoDecoder gives, in every format."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from media import write_video
from PIL import Image
from safetensors import safe_open
from text_media import write_subtitled

import mmcore
from mmcore.cli.pictures import sheet_for, to_pictures, write_sheet
from mmcore.sample import SampleClip

OPTIONS = ("--resize", "80", "--crop", "64x72", "--mean", "0.5,0.4,0.3", "--std", "0.2", "--dtype", "float16")
TRANSFORM = mmcore.FrameTransform(
    resize=80, crop=(64, 72), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2), dtype=torch.float16
)


def load(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    if path.suffix == ".pt":
        data = torch.load(path, weights_only=True)
        return data, data.pop("metadata")
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as data:
            return {k: torch.from_numpy(data[k]) for k in data if k != "metadata"}, json.loads(
                str(data["metadata"])
            )
    with safe_open(path, "pt") as data:
        return {k: data.get_tensor(k) for k in data.keys()}, json.loads(data.metadata()["metadata"])  # noqa: SIM118


@pytest.mark.parametrize("ending", [".pt", ".npz", ".safetensors"])
def test_every_format_holds_the_same(ending: str, run: Any, clip: SampleClip, tmp_path: Path) -> None:
    path = tmp_path / f"out{ending}"
    result = run("decode", clip.path, "-o", path, *OPTIONS, "--every", "7")
    assert result.exit_code == 0, result.output
    tensors, metadata = load(path)
    with mmcore.VideoDecoder(clip.path, transform=TRANSFORM) as decoder:
        expected = decoder.get_frames_in_range(0, 60, 7)
    assert tensors.keys() == {"frames", "pts_seconds", "duration_seconds", "indices", "audio"}
    assert tensors["frames"].dtype == torch.float16
    assert torch.equal(tensors["frames"], expected.data)
    assert torch.equal(tensors["pts_seconds"], expected.pts_seconds)
    assert torch.equal(tensors["duration_seconds"], expected.duration_seconds)
    assert tensors["indices"].tolist() == list(range(0, 60, 7))
    assert metadata["transform"]["crop"] == [64, 72]
    assert metadata["transform"]["dtype"] == "float16"
    assert metadata["stream"]["num_frames"] == 60
    with mmcore.AudioDecoder(clip.path) as sound:
        samples = sound.get_all_samples()
    assert torch.equal(tensors["audio"], samples.data)
    assert metadata["audio"]["sample_rate"] == 48000
    assert metadata["audio"]["pts_seconds"] == samples.pts_seconds
    assert metadata["audio"]["stream"]["codec"] == "aac"
    assert metadata["text"]["segments"] == [
        {"start": s.start, "end": s.end, "text": s.text} for s in mmcore.TextDecoder(clip.path)
    ]
    assert metadata["text"]["stream"]["codec"] == "mov_text"
    assert [p.name for p in tmp_path.iterdir()] == [path.name], "a partial file was left behind"


@pytest.mark.parametrize(
    ("options", "indices"),
    [
        ((), range(60)),
        (("--every", "25"), [0, 25, 50]),
        (("--num", "1"), [30]),
        (("--num", "4"), [0, 20, 39, 59]),
        (("--indices", "5,-1,0,5"), [5, 59, 0, 5]),
        (("--start", "0.5", "--stop", "0.6"), [15, 16, 17]),
        (("--start", "0.51", "--stop", "0.6"), [15, 16, 17]),
        (("--start", "1.9"), [57, 58, 59]),
        (("--fps", "3"), [0, 10, 20, 30, 40, 50]),
        (("--fps", "60", "--stop", "0.1"), [0, 0, 1, 1, 2, 2]),
        (("--start", "1", "--stop", "2", "--every", "10"), [30, 40, 50]),
        (("--start", "1", "--num", "2"), [30, 59]),
    ],
)
def test_selection(options: Any, indices: Any, run: Any, clip: SampleClip, tmp_path: Path) -> None:
    result = run("decode", clip.path, "-o", tmp_path / "out.pt", "--resize", "32", *options)
    assert result.exit_code == 0, result.output
    tensors, _ = load(tmp_path / "out.pt")
    assert tensors["indices"].tolist() == list(indices)
    with mmcore.VideoDecoder(
        clip.path, transform=mmcore.FrameTransform(resize=32, dtype=torch.uint8)
    ) as decoder:
        assert torch.equal(tensors["frames"], decoder.get_frames_at(list(indices)).data)


@pytest.mark.parametrize(("start", "stop", "fps"), [(0.0, 2.0, 7.3), (0.21, 1.37, 30.0), (0.5, 1.9, 24.0)])
def test_fps_selects_as_the_decoder_does(
    start: float, stop: float, fps: float, run: Any, clip: SampleClip, tmp_path: Path
) -> None:
    times = ("--start", start, "--stop", stop, "--fps", fps)
    result = run("decode", clip.path, "-o", tmp_path / "out.pt", "--resize", "32", *map(str, times))
    assert result.exit_code == 0, result.output
    tensors, _ = load(tmp_path / "out.pt")
    with mmcore.VideoDecoder(clip.path) as decoder:
        expected = decoder.get_frames_played_in_range(start, stop, fps=fps)
    assert torch.equal(tensors["pts_seconds"], expected.pts_seconds)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "CNHW", "patches:14", "patches:16,3,1"])
def test_layouts(layout: str, run: Any, clip: SampleClip, tmp_path: Path) -> None:
    # 37 frames: several steps of the progress bar, and an incomplete last group of patches
    options = ("--resize", "112", "--crop", "112", "--layout", layout, "--stop", "1.2333", "--mean", "0.5")
    result = run("decode", clip.path, "-o", tmp_path / "out.pt", *options)
    assert result.exit_code == 0, result.output
    named: Any = {"patches:14": mmcore.patches(14), "patches:16,3,1": mmcore.patches(16, 3, 1)}
    transform = mmcore.FrameTransform(
        resize=112, crop=112, layout=named.get(layout, layout), mean=(0.5, 0.5, 0.5)
    )
    with mmcore.VideoDecoder(clip.path, transform=transform) as decoder:
        expected = decoder.get_frames_in_range(0, 37).data
    frames = load(tmp_path / "out.pt")[0]["frames"]
    assert torch.equal(frames, expected)

    levels = mmcore.FrameTransform(resize=112, crop=112, dtype=torch.uint8, layout="NHWC")
    with mmcore.VideoDecoder(clip.path, transform=levels) as decoder:
        expected = decoder.get_frames_in_range(0, 37).data.int()
    difference = (to_pictures(frames, transform, 37, 112, 112).int() - expected).abs()
    assert difference.max() <= 1, "not the same picture"
    assert difference.float().mean() < 1e-3, "more than the rounding of ties"


def test_plain_decode_is_uint8_at_full_size(run: Any, clip: SampleClip, tmp_path: Path) -> None:
    result = run("decode", clip.path, "-o", tmp_path / "out.pt", "--num-threads", "1")
    assert result.exit_code == 0, result.output
    with mmcore.VideoDecoder(clip.path) as decoder:
        assert torch.equal(load(tmp_path / "out.pt")[0]["frames"], decoder[:])


def test_preview(run: Any, clip: SampleClip, tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    result = run("decode", clip.path, "--preview", path, "--num", "6", "--resize", "48x80")
    assert result.exit_code == 0, result.output
    sheet = sheet_for(6, 48, 80)
    with mmcore.VideoDecoder(clip.path) as decoder, Image.open(path) as image:
        assert image.size == (sheet.width, sheet.height)
        pixels = np.asarray(image.convert("RGB"))
        wanted = mmcore.FrameTransform(resize=(48, 80), dtype=torch.uint8, layout="NHWC")
        frames = mmcore.VideoDecoder(clip.path, transform=wanted).get_frames_at([0, 12, 24, 35, 47, 59]).data
        assert len(decoder) == 60
    for i, frame in enumerate(frames):
        top, left = sheet.corner(i)
        assert np.array_equal(pixels[top : top + 48, left : left + 80], frame.numpy())
        caption = pixels[top + 48 : top + 48 + sheet.caption, left : left + 80]
        assert caption.max() - caption.min() > 60, "no caption under the frame"


@pytest.mark.parametrize(
    ("count", "height", "width"), [(1, 1, 1), (5, 97, 33), (12, 239, 318), (24, 320, 41)]
)
def test_sheets_of_any_size(count: int, height: int, width: int, tmp_path: Path) -> None:
    pictures = torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8)
    names = ["$1.0_{x}$ ünïcode \u6f22" for _ in range(count)]
    sheet = write_sheet(tmp_path / "sheet.png", pictures, names, "<title> & [bold]", "$unbalanced")
    with Image.open(tmp_path / "sheet.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape == (sheet.height, sheet.width, 3)
    assert (pixels[[0, -1]] == pixels[0, 0]).all(), "no line along the edge"
    for i in range(count):
        top, left = sheet.corner(i)
        assert np.array_equal(pixels[top : top + height, left : left + width], pictures[i].numpy())


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("-o", "out.mp3"), 2, ".safetensors"),
        ((), 2, "--output"),
        (("-o", "out.pt", "--every", "2", "--num", "3"), 2, "only one"),
        (("-o", "out.pt", "--indices", "1", "--start", "0"), 2, "only one"),
        (("-o", "out.pt", "--resize", "big"), 2, "HEIGHTxWIDTH"),
        (("-o", "out.pt", "--indices", "1,two"), 2, "--indices"),
        (("-o", "out.pt", "--layout", "patches:a"), 2, "--layout"),
        (("-o", "out.pt", "--dtype", "int8"), 2, "--dtype"),
        (("-o", "out.pt", "--every", "0"), 2, "--every"),
        (("-o", "out.pt", "--crop", "500"), 1, "crop: 500 does not lie inside the frame of 96x160"),
        (("-o", "out.pt", "--resize", "0"), 1, "resize"),
        (("-o", "out.pt", "--resize", "1x2x3"), 1, "resize"),
        (("-o", "out.pt", "--layout", "HWC"), 1, "layout"),
        (("-o", "out.pt", "--mean", "0.5", "--dtype", "uint8"), 1, "mean"),
        (("-o", "out.npz", "--dtype", "bfloat16"), 1, "bfloat16"),
        (("-o", "out.pt", "--indices", "60"), 1, "60 frames"),
        (("-o", "out.pt", "--num", "61"), 1, "--num"),
        (("-o", "out.pt", "--start", "5"), 1, "--start"),
        (("-o", "out.pt", "--start", "nan"), 1, "--start"),
        (("-o", "out.pt", "--fps", "0"), 1, "--fps"),
        (("-o", "out.pt", "--fps", "1e300"), 1, "--fps"),
        (("-o", "out.pt", "--stop", "0"), 1, "--stop"),
        (("-o", "out.pt", "--stop", "2.1"), 1, "--stop"),
        (("-o", "out.pt", "--indices", "0x10"), 2, "--indices"),
        (("-o", "out.pt", "--layout", "patches:1,2,3,4"), 2, "--layout"),
        (("--preview", "clip.mp4"), 2, ".png"),
        (("--preview", "."), 2, ".png"),
        (("-o", "out.pt", "--stream-index", "1"), 1, "stream"),
        (("-o", "missing/out.pt"), 1, "missing"),
    ],
)
def test_wrong_options(
    options: Any, code: int, message: str, run: Any, clip: SampleClip, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")  # usage errors are folded into a box
    result = run("decode", clip.path, *options)
    assert result.exit_code == code, result.output
    assert message in result.output
    assert not list(tmp_path.iterdir())
    if code == 1:
        assert result.output.startswith("error: ")
        assert result.output.count("\n") == 1


def test_folder_in_the_way(run: Any, clip: SampleClip, tmp_path: Path) -> None:
    for option, name in (("-o", "out.pt"), ("--preview", "out.png")):
        (tmp_path / name).mkdir()
        result = run("decode", clip.path, option, tmp_path / name)
        assert result.exit_code == 1
        assert (
            result.output
            == f"error: {tmp_path / name}: is a directory, expected the name of a file to write\n"
        )


def test_end_as_info_rounds_it(run: Any, tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", num_frames=50, rate=30)  # 1.6667 s
    end = mmcore.VideoDecoder(path).metadata.end_stream_seconds
    assert end is not None
    assert float(f"{end:.3f}") > end, "the test needs a time that is rounded up"
    result = run("decode", path, "-o", tmp_path / "out.pt", "--resize", "8", "--stop", f"{end:.3f}")
    assert result.exit_code == 0, result.output


def test_a_file_that_breaks_off_is_told(run: Any, tmp_path: Path, cached_media: Any) -> None:
    path = cached_media("whole.mkv", write_video)
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    result = run("decode", cut, "-o", tmp_path / "out.pt")
    assert result.exit_code == 0
    assert result.stderr.startswith(f"warning: {cut}: breaks off after ")
    assert "bytes lie beyond its end" in run("info", cut).output
    assert run("decode", path, "-o", tmp_path / "out.pt").stderr == ""


def test_sound_that_breaks_off(run: Any, tmp_path: Path) -> None:
    path, cut = tmp_path / "whole.mka", tmp_path / "cut.mka"
    samples = torch.randint(-(2**15), 2**15, (2, 48000)) / 2**15
    mmcore.encode(path, audio=samples, sample_rate=48000, audio_codec="flac", sample_format="s16")
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for ending in ("safetensors", "pt", "npz"):
        result = run("decode", cut, "-o", tmp_path / f"out.{ending}")
        assert result.exit_code == 0, result.output
        tensors, _ = load(tmp_path / f"out.{ending}")
        count = tensors["audio"].shape[1]
        assert 20_000 < count < 28_000
        assert torch.equal(tensors["audio"], samples[:, :count])
        assert f"warning: {cut}: its sound breaks off at {count / 48000:.3f} s" in result.stderr
    (told,) = json.loads(run("info", cut, "--json").output)["audio"]
    assert "bytes lie beyond the file's end" in told["damage"]
    assert "bytes lie beyond" in " ".join(run("info", cut).output.split())
    assert json.loads(run("info", path, "--json").output)["audio"][0]["damage"] is None
    assert run("decode", cut, "-o", tmp_path / "part.pt", "--stop", "0.3").stderr == ""


def test_a_result_larger_than_memory_is_refused(run: Any, clip: SampleClip, tmp_path: Path) -> None:
    if not Path("/proc/meminfo").exists():
        pytest.skip("free memory is known on Linux only")
    options = ("--resize", "60000x60000", "--dtype", "float32")
    result = run("decode", clip.path, "-o", tmp_path / "out.pt", *options)
    assert result.exit_code == 1
    assert "2.4 TiB" in result.output
    assert "--resize" in result.output


# --- sound and words


def decoded(run: Any, tmp_path: Path, source: Path | str, *options: str) -> tuple[Any, Any, Any]:
    result = run("decode", source, "-o", tmp_path / "out.pt", *options)
    assert result.exit_code == 0, result.output
    return *load(tmp_path / "out.pt"), result


def test_all_three_of_one_stretch(run: Any, clip: SampleClip, tmp_path: Path) -> None:
    options = ("--start", "0.6", "--stop", "1.6", "--sample-rate", "16000", "--channels", "1", "--fps", "5")
    tensors, metadata, result = decoded(run, tmp_path, clip.path, *options)
    assert tensors["pts_seconds"].tolist() == pytest.approx([0.6, 0.8, 1.0, 1.2, 1.4])
    with mmcore.AudioDecoder(clip.path, sample_rate=16000, num_channels=1) as sound:
        assert torch.equal(tensors["audio"], sound.get_samples_played_in_range(0.6, 1.6).data)
    assert tensors["audio"].shape == (1, 16000)
    assert metadata["audio"]["pts_seconds"] == pytest.approx(0.6)
    assert [s["text"] for s in metadata["text"]["segments"]] == ["one", "two"]
    frames, sound = "frames 5x3x96x160 uint8, 225.0 KiB", "audio at 16000 Hz 1x16000 float32, 62.5 KiB"
    assert result.output == f"{tmp_path / 'out.pt'}: {frames}; {sound}; text of 2 segments\n"


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        (("--no-audio",), {"frames", "text"}),
        (("--no-text",), {"frames", "audio"}),
        (("--no-video",), {"audio", "text"}),
        (("--no-video", "--no-text", "--audio-stream", "1"), {"audio"}),
        (("--no-video", "--no-audio", "--text-stream", "2", "--start", "1.2"), {"text"}),
    ],
)
def test_what_is_wanted(options: Any, kinds: set[str], run: Any, clip: SampleClip, tmp_path: Path) -> None:
    tensors, metadata, result = decoded(run, tmp_path, clip.path, "--resize", "16", *options)
    assert tensors.keys() & {"frames", "audio"} == kinds - {"text"}
    for name, kind in (("stream", "frames"), ("transform", "frames"), ("audio", "audio"), ("text", "text")):
        assert (metadata[name] is not None) == (kind in kinds)
    assert {kind for kind in ("frames", "audio", "text") if f" {kind} " in result.output} == kinds


@pytest.mark.parametrize("ending", [".pt", ".npz", ".safetensors"])
def test_words_alone(ending: str, run: Any, tmp_path: Path) -> None:
    subtitles = tmp_path / "words.srt"
    subtitles.write_bytes("1\n00:00:01,000 --> 00:00:02,500\nDéjà <i>vu</i>\n".encode("latin-1"))
    path = tmp_path / f"out{ending}"
    result = run("decode", subtitles, "-o", path)
    assert result.output == f"{path}: text of 1 segment\n"
    tensors, metadata = load(path)
    assert tensors == {}
    assert metadata["text"]["segments"] == [{"start": 1.0, "end": 2.5, "text": "Déjà vu"}]
    assert metadata["text"]["stream"]["encoding"] == "cp1252"


def test_without_sound_and_words(run: Any, tmp_path: Path, cached_media: Any) -> None:
    path = cached_media("clip.mp4", write_video)
    tensors, metadata, result = decoded(run, tmp_path, path, "--num", "2")
    assert tensors.keys() == {"frames", "pts_seconds", "duration_seconds", "indices"}
    assert (metadata["audio"], metadata["text"]) == (None, None)
    assert result.stderr == ""
    for option, message in (
        ("--audio", "no audio stream"),
        ("--text", "holds no text stream"),
        ("--no-video", "no pictures, sound or words"),
    ):
        result = run("decode", path, "-o", tmp_path / "none.pt", option)
        assert (result.exit_code, result.stdout) == (1, "")
        assert message in result.stderr
        assert not (tmp_path / "none.pt").exists()


def test_a_subtitle_file_beside(run: Any, tmp_path: Path, clip: SampleClip, cached_media: Any) -> None:
    video = tmp_path / "film.mp4"
    video.write_bytes(cached_media("clip.mp4", write_video).read_bytes())
    for name in ("film.en.vtt", "other.vtt"):
        (tmp_path / name).write_text(f"WEBVTT\n\n00:00.000 --> 00:01.000\n{name}\n")
    for options, text in (((), "film.en.vtt"), (("--sidecar", str(tmp_path / "other.vtt")), "other.vtt")):
        _, metadata, _ = decoded(run, tmp_path, video, "--num", "1", *options)
        assert [s["text"] for s in metadata["text"]["segments"]] == [text]
    _, metadata, _ = decoded(run, tmp_path, clip.path, "--num", "1", "--sidecar", str(tmp_path / "other.vtt"))
    assert metadata["text"]["stream"]["path"] == str(tmp_path / "other.vtt")
    result = run("decode", video, "-o", tmp_path / "none.pt", "--language", "fr")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "'fr'" in result.stderr


def test_damaged_sound_and_words_do_not_cost_frames(run: Any, tmp_path: Path) -> None:
    cues = [(0.2, 0.3, b"0,0,Default,,0,0,0,,one"), (0.6, 0.3, b"garbage")]
    subtitled = write_subtitled(tmp_path / "words.mkv", [("ass", cues, {})])
    tensors, metadata, result = decoded(run, tmp_path, subtitled)
    assert len(tensors["frames"]) == 50
    assert [s["text"] for s in metadata["text"]["segments"]] == ["one"]
    assert "warning: " in result.stderr
    assert "1 cue could not be decoded" in result.stderr

    pictures_of_text = write_subtitled(tmp_path / "pictures.mkv", [("dvdsub", [(0, 1, b"\0\4\0\4")], {})])
    tensors, metadata, result = decoded(run, tmp_path, pictures_of_text)
    assert (len(tensors["frames"]), metadata["text"]) == (50, None)
    assert result.stderr.startswith("warning: without words: ")
    assert "dvd_subtitle" in result.stderr


def test_a_broken_sound_stream(run: Any, tmp_path: Path, clip: SampleClip) -> None:
    # the same bytes under the tag of no codec that there is
    content = Path(clip.path).read_bytes()
    assert content.count(b"mp4a") == content.count(b"esds") == 1
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(content.replace(b"mp4a", b"zzzz").replace(b"esds", b"free"))
    tensors, metadata, result = decoded(run, tmp_path, broken)
    assert (len(tensors["frames"]), metadata["audio"]) == (60, None)
    assert result.stderr.startswith("warning: without sound: ")
    assert result.stderr.count("\n") == 1
    assert metadata["text"] is not None
    assert run("decode", broken, "-o", tmp_path / "none.pt", "--audio").exit_code == 1
    facts = json.loads(run("info", broken, "--json").output)
    assert facts["video"][0]["num_frames"] == 60
    assert "error" in facts["audio"][0]
    assert run("info", broken).exit_code == 0


@pytest.mark.parametrize("kind", ["audio", "video"])
def test_damaged_packets(kind: str, run: Any, tmp_path: Path, clip: SampleClip) -> None:
    content = bytearray(Path(clip.path).read_bytes())
    with av.open(str(clip.path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(**{kind: 0}) if p.size]
    for position, size in packets[20:30]:
        assert position is not None
        content[position : position + size] = b"\xff" * size
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(content)
    facts = json.loads(run("info", broken, "--json").output)
    assert facts["video"][0]["num_frames"] == 60
    assert "error" not in facts["audio"][0]
    assert facts["subtitles"][0]["num_segments"] == 2
    whole, _, _ = decoded(run, tmp_path, clip.path)
    if kind == "audio":
        tensors, metadata, result = decoded(run, tmp_path, broken)
        assert torch.equal(tensors["frames"], whole["frames"])
        assert "cannot be decoded is silent: 0.4" in result.stderr
        assert metadata["audio"]["gaps"]
    else:
        failed = run("decode", broken, "-o", tmp_path / "none.pt")
        assert (failed.exit_code, failed.stdout) == (1, "")
        assert "cannot be decoded" in failed.stderr
        tensors, metadata, _ = decoded(run, tmp_path, broken, "--no-video")
        assert torch.equal(tensors["audio"], whole["audio"])
    assert len(metadata["text"]["segments"]) == 2


def test_pictures_without_decoder(run: Any, tmp_path: Path, clip: SampleClip) -> None:
    content = Path(clip.path).read_bytes()
    assert content.count(b"avc1") > 0
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(content.replace(b"avc1", b"zzzz").replace(b"avcC", b"free"))
    assert "decoder" in json.loads(run("info", broken, "--json").output)["video"][0]["error"]
    shown = run("info", broken)
    assert shown.exit_code == 0, shown.output
    assert "unknown" in shown.output
    result = run("decode", broken, "-o", tmp_path / "none.pt")
    assert (result.exit_code, result.stdout) == (1, "")
    tensors, metadata, _ = decoded(run, tmp_path, broken, "--no-video")
    assert tensors["audio"].shape[0] == 2
    assert len(metadata["text"]["segments"]) == 2


def test_silenced_sound_is_told(run: Any, tmp_path: Path, clip: SampleClip, monkeypatch: Any) -> None:
    read = mmcore.AudioDecoder.get_samples_played_in_range

    def with_gaps(self: Any, *args: Any) -> Any:
        gaps = ((0.1, 0.2), (0.5, 0.75), (0.8, 0.9), (1.0, 1.1))
        return dataclasses.replace(read(self, *args), gaps=gaps)

    monkeypatch.setattr(mmcore.AudioDecoder, "get_samples_played_in_range", with_gaps)
    _, metadata, result = decoded(run, tmp_path, clip.path, "--num", "1")
    assert "0.100 to 0.200 s, 0.500 to 0.750 s, 0.800 to 0.900 s and in 1 more places" in result.stderr
    assert metadata["audio"]["gaps"][1] == [0.5, 0.75]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--no-audio", "--audio-stream", "1"), 2, "--no-audio"),
        (("--no-text", "--language", "en"), 2, "--no-text"),
        (("--audio-stream", "0"), 1, "audio"),
        (("--text-stream", "1"), 1, "no text stream"),
        (("--channels", "9"), 2, "--channels"),
        (("--sample-rate", "0"), 2, "--sample-rate"),
        (("--sidecar", "missing.srt"), 1, "no such file"),
        (("--no-video", "--start", "1", "--stop", "0.5"), 1, "--start, --stop"),
        (("--no-video", "--audio", "--start", "9"), 1, "--start"),
        (("--no-video", "--preview", "x.png"), 1, "--preview"),
        (("--no-video", "--no-audio", "--no-text"), 1, "no pictures, sound or words"),
    ],
)
def test_wrong_options_of_sound_and_words(
    options: Any, code: int, message: str, run: Any, clip: SampleClip, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    result = run("decode", clip.path, "-o", "out.pt", *options)
    assert result.exit_code == code, result.output
    assert message in result.output
    assert not list(tmp_path.iterdir())


def test_sound_beyond_its_end_is_left_out(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "short.mp4"
    mmcore.encode(
        path,
        frames=torch.zeros(50, 3, 64, 64, dtype=torch.uint8),
        fps=25,
        audio=torch.zeros(1, 8000),
        sample_rate=16000,
    )
    tensors, metadata, result = decoded(run, tmp_path, path, "--start", "1.5")
    assert len(tensors["frames"]) == 13
    assert metadata["audio"] is None
    assert "warning: without sound: --start" in result.stderr
