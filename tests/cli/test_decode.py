"""``mmcore decode``: what it writes equals what VideoDecoder gives, in every format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from media import write_video
from PIL import Image
from safetensors import safe_open

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
    assert tensors.keys() == {"frames", "pts_seconds", "duration_seconds", "indices"}
    assert tensors["frames"].dtype == torch.float16
    assert torch.equal(tensors["frames"], expected.data)
    assert torch.equal(tensors["pts_seconds"], expected.pts_seconds)
    assert torch.equal(tensors["duration_seconds"], expected.duration_seconds)
    assert tensors["indices"].tolist() == list(range(0, 60, 7))
    assert metadata["transform"]["crop"] == [64, 72]
    assert metadata["transform"]["dtype"] == "float16"
    assert metadata["stream"]["num_frames"] == 60
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


def test_a_result_larger_than_memory_is_refused(run: Any, clip: SampleClip, tmp_path: Path) -> None:
    if not Path("/proc/meminfo").exists():
        pytest.skip("free memory is known on Linux only")
    options = ("--resize", "60000x60000", "--dtype", "float32")
    result = run("decode", clip.path, "-o", tmp_path / "out.pt", *options)
    assert result.exit_code == 1
    assert "2.4 TiB" in result.output
    assert "--resize" in result.output
