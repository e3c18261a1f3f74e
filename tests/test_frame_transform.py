"""FrameTransform: geometry by torchvision's rule, and every refusal names its argument."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mmcore
from mmcore import FrameTransform, patches

SIDES = st.integers(1, 5000)


@given(SIDES, SIDES, st.integers(1, 600))
def test_short_side_resize_truncates_the_long_side(h: int, w: int, size: int) -> None:
    g = FrameTransform(resize=size).geometry(h, w)
    short, long = (w, h) if w <= h else (h, w)
    new_short, new_long = size, int(size * long / short)  # torchvision's _compute_resized_output_size
    assert (g.resize_h, g.resize_w) == ((new_long, new_short) if w <= h else (new_short, new_long))
    assert (g.source_h, g.source_w, g.top, g.left) == (h, w, 0, 0)
    assert (g.out_h, g.out_w) == (g.resize_h, g.resize_w)


@given(SIDES, SIDES, st.data())
def test_centre_crop_rounds_its_offset(h: int, w: int, data: st.DataObject) -> None:
    ch, cw = data.draw(st.integers(1, h)), data.draw(st.integers(1, w))
    g = FrameTransform(crop=(ch, cw)).geometry(h, w)
    assert (g.top, g.left) == (round((h - ch) / 2.0), round((w - cw) / 2.0))  # center_crop's rule
    assert (g.out_h, g.out_w) == (ch, cw)
    assert (g.resize_h, g.resize_w) == (h, w)


def test_resize_then_crop() -> None:
    g = FrameTransform(resize=256, crop=224).geometry(1080, 1920)
    assert (g.resize_h, g.resize_w, g.top, g.left, g.out_h, g.out_w) == (256, 455, 16, 116, 224, 224)
    g = FrameTransform(resize=(30, 40), crop=(5, 6, 7, 8)).geometry(9, 9)
    assert (g.resize_h, g.resize_w, g.top, g.left, g.out_h, g.out_w) == (30, 40, 5, 6, 7, 8)


@pytest.mark.parametrize(
    ("layout", "shape"),
    [("NCHW", (3, 3, 8, 16)), ("NHWC", (3, 8, 16, 3)), ("CNHW", (3, 3, 8, 16)), (patches(2), (64, 24))],
)
def test_output_shape(layout: Any, shape: tuple[int, ...]) -> None:
    assert FrameTransform(resize=(8, 16), layout=layout).output_shape(3, 100, 100) == shape


def test_affine_folds_scale_mean_and_std() -> None:
    mul, add = FrameTransform(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2), scale=0.01).affine
    for level in (0.0, 17.0, 255.0):
        for c, (mean, std) in enumerate(((0.1, 0.5), (0.2, 0.25), (0.3, 2.0))):
            assert math.isclose(level * mul[c] + add[c], (level * 0.01 - mean) / std, abs_tol=1e-12)
    assert FrameTransform(dtype=torch.uint8).affine == ((1, 1, 1), (0, 0, 0))
    assert FrameTransform().affine[0] == (1 / 255,) * 3


def test_values_are_normalised_on_construction() -> None:
    t = FrameTransform(resize=[8, 9], crop=[1, 2, 3, 4], mean=0.5, std=[1, 2, 3])  # type: ignore[arg-type]
    assert (t.resize, t.crop, t.mean, t.std) == ((8, 9), (1, 2, 3, 4), (0.5, 0.5, 0.5), (1.0, 2.0, 3.0))
    assert t == t.replace()
    assert hash(t) == hash(t.replace())
    assert t.replace(resize=None).resize is None


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("resize", 0), ("resize", -1), ("resize", 2.5), ("resize", (3,)), ("resize", (3, 0)), ("resize", "8"),
        ("resize", (1, 2, 3, 4)), ("resize", True), ("resize", 1 << 20), ("resize", float("nan")),
        ("crop", 0), ("crop", (1, 2, 3)), ("crop", (-1, 0, 2, 2)), ("crop", (0, 0, 2, 0)),
        ("crop", (0.5, 0, 2, 2)), ("interpolation", "lanczos"), ("interpolation", None), ("antialias", 1),
        ("antialias", None), ("accuracy", "exact"), ("chroma", "right"), ("matrix", "bt709"), ("matrix", 709),
        ("full_range", 1), ("dtype", torch.float64), ("dtype", "float32"), ("dtype", None),
        ("layout", "NWHC"), ("layout", None), ("mean", (0.5, 0.5)), ("mean", "abc"),
        ("mean", (0.5, float("nan"), 0.5)), ("std", 0.0), ("std", (1, 1, -1)), ("std", float("inf")),
        ("scale", 0), ("scale", float("nan")), ("scale", "x"),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_by_name(argument: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{argument}: "):
        FrameTransform(**{argument: value})


@pytest.mark.parametrize("argument", ["mean", "std", "scale"])
def test_bytes_cannot_be_normalised(argument: str) -> None:
    with pytest.raises(ValueError, match=f"^{argument}: needs a floating dtype"):
        FrameTransform(dtype=torch.uint8, **{argument: 0.5})


@pytest.mark.parametrize("crop", [11, (10, 21), (0, 0, 11, 5), (5, 5, 6, 5), (0, 16, 5, 5)])
def test_a_crop_outside_the_frame_is_refused(crop: Any) -> None:
    with pytest.raises(ValueError, match=r"^crop: .* does not lie inside the frame of 10x20 pixels"):
        FrameTransform(crop=crop).geometry(10, 20)
    with pytest.raises(ValueError, match="after the resize"):
        FrameTransform(resize=(10, 20), crop=crop).geometry(1000, 1000)


@pytest.mark.parametrize("argument", ["patch_size", "temporal_patch_size", "merge_size"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "2", True])
def test_bad_patches_are_refused_by_name(argument: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^patches: {argument}: "):
        patches(**{"patch_size": 14, argument: value})


def test_patches_that_do_not_divide_the_frame_are_refused() -> None:
    transform = FrameTransform(resize=(224, 230), layout=patches(14))
    with pytest.raises(ValueError, match=r"^layout: frames of 224x230 pixels .* multiples of .* = 28"):
        transform.output_shape(2, 480, 640)
    assert mmcore.patches(14).grid(3, 224, 280) == (2, 16, 20)


def test_numbers_of_numpy_and_torch_are_taken() -> None:
    box = tuple(np.array([1, 2, 3, 4]))
    taken = FrameTransform(crop=box, mean=np.float32(0.5), std=torch.tensor([0.25, 0.5, 1.0]))
    assert taken == FrameTransform(crop=(1, 2, 3, 4), mean=0.5, std=(0.25, 0.5, 1.0))


@pytest.mark.parametrize(("name", "value"), [("std", 1e-320), ("mean", 1e300), ("scale", 1e-40)])
def test_numbers_beyond_float32_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected a finite number that float32 can hold"):
        FrameTransform(**{name: value})
