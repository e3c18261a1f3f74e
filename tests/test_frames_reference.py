"""The oracle itself, against slow code that shares nothing with it: one pixel, one tap at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import Color, make_planes
from torch import Tensor

from mmcore.backends.reference import apply_layout, convert
from mmcore.ops.frame_transform import FrameTransform, patches
from mmcore.ops.pixel_formats import PIXEL_FORMATS, PixelFormat

LEVELS = {"scale": 1.0, "dtype": torch.float32}


def sample(planes: tuple[Tensor, ...], fmt: PixelFormat, component: int, t: int, y: int, x: int) -> int:
    c = fmt.components[component]
    return int(planes[c.plane][t, y, c.offset + x * c.step].item()) >> fmt.shift


def chroma_sample(
    planes: tuple[Tensor, ...], fmt: PixelFormat, i: int, y: int, x: int, h: int, w: int, where: str
) -> float:
    """Value of component ``i`` at luma position (y, x)."""
    rows, cols = fmt.component_size(i, h, w)
    down, right = fmt.log2_chroma_h, fmt.log2_chroma_w
    if where == "nearest":
        return sample(planes, fmt, i, 0, y >> down, x >> right)
    cy, cx = float(y), float(x)
    if down:
        cy = y / 2 if where == "topleft" else y / 2 - 0.25
    if right:
        cx = x / 2 - 0.25 if where == "center" else x / 2
    total = 0.0
    for ty in (math.floor(cy), math.floor(cy) + 1):
        for tx in (math.floor(cx), math.floor(cx) + 1):
            weight = (1 - abs(cy - ty)) * (1 - abs(cx - tx))
            value = sample(planes, fmt, i, 0, min(max(ty, 0), rows - 1), min(max(tx, 0), cols - 1))
            total += weight * value
    return total


def pixel(
    planes: tuple[Tensor, ...], fmt: PixelFormat, color: Color, y: int, x: int, h: int, w: int
) -> list[float]:
    """Unclamped R, G, B levels of one pixel, from the standards' own equations."""
    top = 2**fmt.bits - 1
    if fmt.family == "rgb":
        return [255 * sample(planes, fmt, i, 0, y, x) / top for i in range(3)]
    luma: float = sample(planes, fmt, 0, 0, y, x)
    cb = cr = 2.0 ** (fmt.bits - 1)
    if fmt.family == "yuv":
        where = color.chroma_location
        cb, cr = (chroma_sample(planes, fmt, i, y, x, h, w, where) for i in (1, 2))
    if color.full_range:
        luma, cb, cr = luma / top, (cb - 2 ** (fmt.bits - 1)) / top, (cr - 2 ** (fmt.bits - 1)) / top
    else:
        unit = 2 ** (fmt.bits - 8)
        luma, cb, cr = (luma / unit - 16) / 219, (cb / unit - 128) / 224, (cr / unit - 128) / 224
    kr, kb = {"601": (0.299, 0.114), "709": (0.2126, 0.0722), "2020": (0.2627, 0.0593)}[color.matrix]
    r = luma + 2 * (1 - kr) * cr
    b = luma + 2 * (1 - kb) * cb
    return [255 * r, 255 * (luma - kr * r - kb * b) / (1 - kr - kb), 255 * b]


@pytest.mark.parametrize("location", ["left", "center", "topleft", "nearest"])
@pytest.mark.parametrize("name", PIXEL_FORMATS)
def test_every_pixel_format_pixel_by_pixel(name: str, location: str) -> None:
    fmt = PIXEL_FORMATS[name]
    for k, (h, w) in enumerate([(1, 1), (2, 3), (5, 4)]):
        color = Color(("601", "709", "2020")[k], k % 2 == 1, location)
        planes = make_planes(fmt, 1, h, w)
        result = convert(planes, fmt, h, w, color, FrameTransform(**LEVELS), as_compute=True)[0]
        expected = torch.tensor([[pixel(planes, fmt, color, y, x, h, w) for x in range(w)] for y in range(h)])
        torch.testing.assert_close(
            result, expected.double().clamp(0, 255).permute(2, 0, 1), rtol=0, atol=3e-5
        )


def triangle(x: float) -> float:
    return max(0.0, 1 - abs(x))


def cubic(a: float) -> Callable[[float], float]:
    def weight(x: float) -> float:
        x = abs(x)
        if x < 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    return weight


def resize_row(row: list[float], size: int, interpolation: str, antialias: bool) -> list[float]:
    """One-dimensional resize by its definition."""
    n, ratio = len(row), len(row) / size
    if size == n:
        return row
    result = []
    for i in range(size):
        if interpolation == "nearest":
            result.append(row[min(int(np.floor(np.float32(i) * (np.float32(n) / np.float32(size)))), n - 1)])
        elif interpolation == "area":
            window = row[i * n // size : -(-(i + 1) * n // size)]
            result.append(sum(window) / len(window))
        elif antialias:
            # Taps whose centre lies within the widened filter, weights normalised; edges cut the filter off.
            f, support = (triangle, 1) if interpolation == "bilinear" else (cubic(-0.5), 2)
            stretch, centre = max(ratio, 1.0), (i + 0.5) * ratio
            taps = [j for j in range(n) if abs((j + 0.5 - centre) / stretch) < support]
            weights = [f((j + 0.5 - centre) / stretch) for j in taps]
            result.append(sum(x * row[j] for x, j in zip(weights, taps, strict=True)) / sum(weights))
        else:
            # Plain interpolation between neighbours; edges are replicated.
            f, support = (triangle, 1) if interpolation == "bilinear" else (cubic(-0.75), 2)
            at = (i + 0.5) * ratio - 0.5
            at = max(at, 0.0) if interpolation == "bilinear" else at
            first = math.floor(at) - support + 1
            taps = range(first, first + 2 * support)
            result.append(sum(f(at - j) * row[min(max(j, 0), n - 1)] for j in taps))
    return result


FILTERS = [("bilinear", True), ("bilinear", False), ("bicubic", True), ("bicubic", False), ("area", True)]


@pytest.mark.parametrize(("interpolation", "antialias"), [*FILTERS, ("nearest", True)])
@pytest.mark.parametrize("size", [(3, 4), (11, 9), (1, 1), (7, 5), (5, 1), (2, 14), (7, 13)])
def test_fused_resize_tap_by_tap(interpolation: str, antialias: bool, size: tuple[int, int]) -> None:
    h, w = 7, 9
    fmt, color = PIXEL_FORMATS["yuv420p"], Color()
    planes = make_planes(fmt, 1, h, w)
    full = [[pixel(planes, fmt, color, y, x, h, w) for x in range(w)] for y in range(h)]
    expected = []
    for c in range(3):
        rows = [resize_row([p[c] for p in row], size[1], interpolation, antialias) for row in full]
        columns = [
            resize_row(list(col), size[0], interpolation, antialias) for col in zip(*rows, strict=True)
        ]
        expected.append(list(zip(*columns, strict=True)))
    transform = FrameTransform(resize=size, interpolation=interpolation, antialias=antialias, **LEVELS)
    result = convert(planes, fmt, h, w, color, transform, as_compute=True)[0]
    torch.testing.assert_close(
        result, torch.tensor(expected, dtype=torch.float64).clamp(0, 255), rtol=0, atol=2e-4
    )


def test_crop_is_a_slice_of_the_resized_frame() -> None:
    fmt = PIXEL_FORMATS["yuv420p"]
    planes = make_planes(fmt, 2, 17, 31)
    for accuracy in ("fused", "rgb8"):
        whole = FrameTransform(resize=(11, 20), accuracy=accuracy)
        part = whole.replace(crop=(2, 3, 7, 5))
        a, b = (convert(planes, fmt, 17, 31, Color(), t) for t in (whole, part))
        assert torch.equal(a[:, :, 2:9, 3:8], b)


@pytest.mark.parametrize("name", ["yuv420p", "yuv422p10le", "p010le", "gray", "gbrp12le", "bgra"])
@pytest.mark.parametrize("full_range", [False, True])
def test_rgb8_rounds_once_per_operation_in_float32(name: str, full_range: bool) -> None:
    fmt, h, w = PIXEL_FORMATS[name], 5, 7
    color = Color("709", full_range, "left")
    planes = make_planes(fmt, 1, h, w)
    result = convert(planes, fmt, h, w, color, FrameTransform(dtype=torch.uint8, accuracy="rgb8"))[0]
    kr, kb = 0.2126, 0.0722
    unit, top, f32 = 2 ** (fmt.bits - 8), 2**fmt.bits - 1, np.float32
    luma, chroma, black = (
        (255 / top, 255 / top, 0) if full_range else (255 / 219 / unit, 255 / 224 / unit, 16 * unit)
    )
    u = [0.0, -2 * kb * (1 - kb) / (1 - kr - kb) * chroma, 2 * (1 - kb) * chroma]
    v = [2 * (1 - kr) * chroma, -2 * kr * (1 - kr) / (1 - kr - kb) * chroma, 0.0]
    for y in range(h):
        for x in range(w):
            for c in range(3):
                if fmt.family == "rgb":
                    t = f32(sample(planes, fmt, c, 0, y, x)) * f32(255 / top)
                else:
                    bias = -black * luma
                    t = f32(sample(planes, fmt, 0, 0, y, x)) * f32(luma)
                    for i, k in ((1, u[c]), (2, v[c])):
                        if fmt.family == "yuv" and k != 0:
                            at = chroma_sample(planes, fmt, i, y, x, h, w, "left")
                            t = f32(t + f32(f32(at) * f32(k)))
                            bias -= k * 2 ** (fmt.bits - 1)
                    t = f32(t + f32(bias))
                assert result[c, y, x].item() == int(np.clip(np.rint(t), 0, 255)), (c, y, x)


@pytest.mark.parametrize(("interpolation", "antialias"), FILTERS[:4])
@pytest.mark.parametrize("size", [(9, 12), (40, 50), (20, 1), (45, 1), (1, 45), (1, 1), (45, 30), (20, 7)])
@pytest.mark.parametrize("source", [(20, 30), (20, 1), (1, 30), (1, 1)])
def test_rgb8_resize_is_the_rounded_float_resize(
    interpolation: str, antialias: bool, size: tuple[int, int], source: tuple[int, int]
) -> None:
    """One column, where torch's own result is wrong, included. Narrow noise, so that nothing overshoots."""
    fmt = PIXEL_FORMATS["rgb24"]
    (planes,) = make_planes(fmt, 1, *source)
    planes = planes // 8 + 112
    transform = FrameTransform(
        resize=size, interpolation=interpolation, antialias=antialias, dtype=torch.uint8, accuracy="rgb8"
    )
    result = convert([planes], fmt, *source, Color(), transform)
    rgb = planes.reshape(1, *source, 3).permute(0, 3, 1, 2).double()
    rows, columns = (
        torch.tensor([resize_row(unit, m, interpolation, antialias) for unit in torch.eye(n).tolist()])
        for n, m in zip(source, size, strict=True)
    )
    exact = rows.T.double() @ rgb @ columns.double()
    # One rounding after each pass, and weights of 15 bits.
    assert (result - exact).abs().max() < 1.6


@pytest.mark.parametrize(("interpolation", "antialias"), FILTERS[:4])
def test_rgb8_resize_is_that_of_torch(interpolation: str, antialias: bool) -> None:
    fmt = PIXEL_FORMATS["rgb24"]
    for source, size in (((20, 30), (9, 13)), ((33, 17), (50, 64)), ((1, 9), (4, 5)), ((9, 1), (4, 5))):
        (planes,) = make_planes(fmt, 2, *source)
        transform = FrameTransform(
            resize=size, interpolation=interpolation, antialias=antialias, dtype=torch.uint8, accuracy="rgb8"
        )
        rgb = planes.reshape(2, *source, 3).permute(0, 3, 1, 2).contiguous()
        expected = F.interpolate(rgb, size=size, mode=interpolation, antialias=antialias)
        assert torch.equal(convert([planes], fmt, *source, Color(), transform), expected)


def test_rgb8_normalisation_is_that_of_hugging_face() -> None:
    fmt = PIXEL_FORMATS["rgb24"]
    (planes,) = make_planes(fmt, 1, 4, 5)
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    transform = FrameTransform(mean=mean, std=std, accuracy="rgb8")
    result = convert([planes], fmt, 4, 5, Color(), transform)[0]
    levels = planes.numpy().reshape(4, 5, 3).astype(np.float32)
    scale = np.float32(1 / (1 / 255))
    expected = (levels - np.float32(mean) * scale) / (np.float32(std) * scale)
    assert np.array_equal(result.numpy(), expected.transpose(2, 0, 1))


@pytest.mark.parametrize(("dtype", "storage"), [(torch.int16, "yuv420p12le"), (torch.int16, "p010le")])
def test_int16_storage_is_read_as_unsigned(dtype: torch.dtype, storage: str) -> None:
    fmt = PIXEL_FORMATS[storage]
    planes = make_planes(fmt, 1, 4, 6, "extremes")
    t = FrameTransform()
    a = convert(planes, fmt, 4, 6, Color(), t)
    assert torch.equal(a, convert([p.view(dtype) for p in planes], fmt, 4, 6, Color(), t))


def test_no_frames_give_an_empty_result() -> None:
    fmt = PIXEL_FORMATS["gray"]
    assert convert([torch.zeros(0, 4, 6, dtype=torch.uint8)], fmt, 4, 6, Color(), FrameTransform()).shape == (
        0, 3, 4, 6,
    )  # fmt: skip


def test_patches_are_where_the_formula_says() -> None:
    layout = patches(2, 2, 3)
    t, h, w = 3, 12, 18
    frames = torch.arange(t * 3 * h * w).reshape(t, 3, h, w)
    result = apply_layout(frames, layout)
    assert result.shape == layout.shape(t, h, w)
    row = 0
    for gt in range(2):
        for by in range(h // 6):
            for bx in range(w // 6):
                for py in range(3):
                    for px in range(3):
                        y, x = by * 6 + py * 2, bx * 6 + px * 2
                        last = min(2 * gt + 1, t - 1)  # an odd count repeats the last frame
                        patch = torch.stack([frames[f, :, y : y + 2, x : x + 2] for f in (2 * gt, last)], 1)
                        assert torch.equal(result[row], patch.flatten())
                        row += 1
    assert row == len(result)


def test_layouts() -> None:
    frames = torch.rand(2, 3, 4, 5)
    for layout, dims in (("NCHW", (0, 1, 2, 3)), ("NHWC", (0, 2, 3, 1)), ("CNHW", (1, 0, 2, 3))):
        result = apply_layout(frames, layout)
        assert torch.equal(result, frames.permute(dims))
        assert result.is_contiguous()
