"""How good the numbers are: on natural pictures, against FFmpeg's conversion, against torch's on bytes."""

from __future__ import annotations

import functools

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import make_planes
from frames_harness import video_frame
from tolerances import FFMPEG_444_LEVELS, FFMPEG_LEVELS, NATURAL_PSNR_DB
from torch import Tensor

import mmcore
from mmcore.ops.pixel_formats import PIXEL_FORMATS
from mmcore.ops.planes import Planes


@functools.cache
def natural_picture(height: int, width: int, seed: int) -> np.ndarray:
    """RGB bytes like a photograph's: soft light, coloured objects with edges, lettering, a little grain."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / height
    picture = np.empty((height, width, 3))
    for c in range(3):
        light = sum(
            np.exp(-((x - rng.uniform(0, 1.8)) ** 2 + (y - rng.uniform(0, 1)) ** 2) / rng.uniform(0.05, 0.5))
            for _ in range(4)
        )
        picture[..., c] = 40 + 50 * light
    for _ in range(12):  # objects
        cx, cy, r = rng.uniform(0, 1.8), rng.uniform(0, 1), rng.uniform(0.03, 0.2)
        inside = (x - cx) ** 2 + ((y - cy) * rng.uniform(0.5, 2)) ** 2 < r * r
        shade = 0.8 + 0.2 * np.sin(20 * x + rng.uniform(0, 6))
        picture[inside] = (rng.uniform(20, 225, 3) * shade[..., None])[inside]
    for _ in range(40):  # strokes of lettering
        top, left = int(rng.uniform(0, height - 12)), int(rng.uniform(0, width - 12))
        h, w = (2, 10) if rng.random() < 0.5 else (10, 2)
        picture[top : top + h, left : left + w] = 235 if rng.random() < 0.5 else 16
    picture += rng.normal(0, 2, picture.shape)
    return picture.clip(0, 255).round().astype(np.uint8)


def as_yuv420p(picture: np.ndarray) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")


def rgb24(frame: av.VideoFrame) -> Tensor:
    return torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)[None]


@pytest.mark.parametrize(
    ("interpolation", "antialias"), [("bilinear", True), ("bicubic", True), ("area", True)]
)
@pytest.mark.parametrize("size", [(720, 1280), (256, 340)])
def test_natural_pictures_hardly_notice_where_the_clamp_is(
    size: tuple[int, int], interpolation: str, antialias: bool
) -> None:
    transform = mmcore.FrameTransform(resize=224, interpolation=interpolation, antialias=antialias, scale=1.0)
    g = transform.geometry(*size)
    errors = []
    for seed in range(2):
        frame = as_yuv420p(natural_picture(*size, seed))
        result = mmcore.frames_to_tensor(frame, transform)
        full = mmcore.frames_to_tensor(frame, mmcore.FrameTransform(scale=1.0)).double()
        aa = {} if interpolation == "area" else {"antialias": antialias}
        clamped = F.interpolate(full, size=(g.resize_h, g.resize_w), mode=interpolation, **aa).clamp(0, 255)
        errors.append((result - clamped).square().mean())
    psnr = 10 * torch.log10(255**2 / torch.stack(errors).mean())
    assert psnr >= NATURAL_PSNR_DB


@pytest.mark.parametrize("size", [(48, 64), (720, 1280), (46, 70)])
def test_replicated_chroma_is_the_conversion_of_ffmpeg(size: tuple[int, int]) -> None:
    transform = mmcore.FrameTransform(dtype=torch.uint8, chroma="nearest")
    frames = [as_yuv420p(natural_picture(*size, 0))]
    for content in ("noise", "edges", "gradient"):
        planes = make_planes(PIXEL_FORMATS["yuv420p"], 1, *size, content)
        frames.append(video_frame("yuv420p", [p[0] for p in planes], *size))
    for frame in frames:
        difference = mmcore.frames_to_tensor(frame, transform).int() - rgb24(frame).int()
        assert difference.abs().max() <= FFMPEG_LEVELS


@pytest.mark.parametrize("content", ["noise", "edges", "gradient", "extremes"])
@pytest.mark.parametrize(("name", "tag"), [("yuv444p", 5), ("yuv444p", 1), ("yuvj444p", 5)])
def test_444_is_the_conversion_of_ffmpeg(name: str, tag: int, content: str) -> None:
    luma, *chroma = (p[0] for p in make_planes(PIXEL_FORMATS[name], 1, 48, 64, content))
    # FFmpeg wraps around above level 511, so chroma stays within half of its range.
    frame = video_frame(name, [luma, *(64 + p // 2 for p in chroma)], 48, 64)
    frame.colorspace = tag
    result = mmcore.frames_to_tensor(frame, mmcore.FrameTransform(dtype=torch.uint8))
    difference = result.int() - rgb24(frame).int()
    assert difference.abs().max() <= FFMPEG_444_LEVELS


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize(
    ("interpolation", "antialias"),
    [("bilinear", True), ("bicubic", True), ("bilinear", False), ("bicubic", False), ("nearest", True)],
)
def test_rgb8_is_the_interpolate_of_torch_on_our_rgb_frames(
    interpolation: str, antialias: bool, backend: str
) -> None:
    transform = mmcore.FrameTransform(
        resize=(61, 90), interpolation=interpolation, antialias=antialias, accuracy="rgb8", dtype=torch.uint8
    )
    aa = {} if interpolation == "nearest" else {"antialias": antialias}
    with mmcore.backend(backend):
        for size in ((131, 177), (40, 51), (61, 200), (200, 90)):
            for content in ("noise", "extremes", "smooth"):
                data = make_planes(PIXEL_FORMATS["yuv420p"], 2, *size, content)
                planes = Planes(data, "yuv420p", *size)
                rgb = mmcore.frames_to_tensor(planes)
                expected = F.interpolate(rgb, size=(61, 90), mode=interpolation, **aa)
                assert torch.equal(mmcore.frames_to_tensor(planes, transform), expected), (size, content)
                values = mmcore.frames_to_tensor(planes, transform.replace(dtype=torch.float32))
                assert torch.equal(values, expected.float() * (1 / 255))


def test_levels_come_out_where_the_standards_put_them() -> None:
    """Black, white and the primaries' levels, in every depth, limited and full."""
    for name, bits in (("yuv444p", 8), ("yuv444p10le", 10), ("yuv444p12le", 12)):
        dtype = torch.uint8 if bits == 8 else torch.uint16
        unit = 1 << (bits - 8)
        for full_range, black, white in ((False, 16 * unit, 235 * unit), (True, 0, (1 << bits) - 1)):
            neutral = torch.full((1, 1, 2), 128 * unit, dtype=torch.int32).to(dtype)
            luma = torch.tensor([[[black, white]]], dtype=torch.int32).to(dtype)
            planes = Planes((luma, neutral, neutral), name, 1, 2, full_range=full_range)
            result = mmcore.frames_to_tensor(planes, mmcore.FrameTransform())
            torch.testing.assert_close(result[0, :, 0], torch.tensor([[0.0, 1.0]] * 3), rtol=0, atol=1e-6)
    # BT.709 red, limited range: Y' = 0.2126, Cb = -0.2126/1.8556, Cr = 0.5
    y, cb, cr = 16 + 219 * 0.2126, 128 - 224 * 0.2126 / 1.8556, 128 + 224 * 0.5
    red = [torch.full((1, 1, 1), round(v * 16), dtype=torch.int32).to(torch.uint16) for v in (y, cb, cr)]
    result = mmcore.frames_to_tensor(
        Planes(tuple(red), "yuv444p12le", 1, 1, matrix="709"), mmcore.FrameTransform()
    )
    torch.testing.assert_close(result.flatten(), torch.tensor([1.0, 0.0, 0.0]), rtol=0, atol=5e-4)
