"""Augmentation: drawn from a seed alone, the same for all frames of a clip, and what its names say."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mmcore
from mmcore import FrameTransform
from mmcore.clips import Augment, SpecAugment

FULL = Augment(
    crop_seconds=2.0, speed=(0.8, 1.25), horizontal_flip=0.5, resized_crop=(0.1, 0.9), brightness=0.4,
    contrast=0.3, saturation=(0.5, 2.0), hue=0.1, spec_augment=SpecAugment(),
)  # fmt: skip


def test_drawn_from_the_seed_alone() -> None:
    torch.manual_seed(0)
    first = FULL.draw(5)
    torch.manual_seed(9)
    assert FULL.draw(5) == first == FULL.draw(torch.Generator().manual_seed(5))
    assert FULL.draw(6) != first
    assert pickle.loads(pickle.dumps(first)) == first
    torch.manual_seed(5)
    assert FULL.draw() == first  # what a DataLoader's worker is seeded with
    # one option does not change what is drawn for the others
    fewer = Augment(speed=(0.8, 1.25), hue=0.1).draw(5)
    assert (fewer.speed, fewer.hue) == (first.speed, first.hue)


def test_draws_fill_their_ranges() -> None:
    drawn = [FULL.draw(i) for i in range(400)]
    for name, low, high in (
        ("speed", 0.8, 1.25), ("brightness", 0.6, 1.4), ("contrast", 0.7, 1.3), ("saturation", 0.5, 2.0),
        ("hue", -0.1, 0.1), ("area", 0.1, 0.9), ("ratio", 3 / 4, 4 / 3), ("top_share", 0, 1),
        ("left_share", 0, 1), ("start_share", 0, 1),
    ):  # fmt: skip
        values = torch.tensor([getattr(d, name) for d in drawn])
        assert low <= values.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < values.max() <= high
    assert 150 < sum(d.horizontal_flip for d in drawn) < 250
    assert len({d.spec_seed for d in drawn}) == 400


def test_nothing_asked_for_changes_nothing() -> None:
    base = FrameTransform(resize=20, crop=(16, 18))
    drawn = Augment().draw(1)
    assert drawn.transform(base, 48, 64) == base
    assert drawn.time_range(1.0, 5.0) == (1.0, 5.0)
    assert drawn.speed == 1.0


@given(
    st.integers(0, 10**6), st.integers(1, 500), st.integers(1, 500), st.integers(1, 64), st.integers(1, 64)
)
def test_resized_crop_lies_inside_and_keeps_the_size(
    seed: int, h: int, w: int, out_h: int, out_w: int
) -> None:
    drawn = Augment(resized_crop=(0.08, 1.0)).draw(seed)
    base = FrameTransform(resize=(out_h, out_w))
    g = drawn.transform(base, h, w).geometry(h, w)
    assert (g.out_h, g.out_w) == (out_h, out_w)
    # what is cut out, in the picture's own pixels
    height, width = g.out_h * h / g.resize_h, g.out_w * w / g.resize_w
    assert height <= h + 1e-9
    assert width <= w + 1e-9
    if min(h, w) > 100 and min(out_h, out_w) > 30 and 0.7 < h / w < 1.4 and drawn.area < 0.5:
        assert height * width / (h * w) == pytest.approx(drawn.area, rel=0.06)
        assert width / height == pytest.approx(drawn.ratio, rel=0.06)


def test_random_crop_reaches_every_place() -> None:
    base = FrameTransform(crop=(6, 5))
    boxes = {Augment(random_crop=True).draw(i).transform(base, 8, 8).crop for i in range(400)}
    assert boxes == {(top, left, 6, 5) for top in range(3) for left in range(4)}
    assert Augment(random_crop=True).draw(0).transform(FrameTransform(), 8, 8).crop == (0, 0, 8, 8)


def test_colours_come_after_those_of_the_transform() -> None:
    base = FrameTransform(color_matrix=((0, 1, 0, 5), (1, 0, 0, 6), (0, 0, 1, 7)))
    drawn = Augment(brightness=(0.5, 0.5), contrast=(0.8, 0.8)).draw(0)
    rows = drawn.transform(base, 8, 8).color_matrix
    assert rows is not None
    color = torch.tensor([10.0, 20, 30, 1])
    first = torch.tensor(base.color_matrix) @ color
    expected = torch.tensor(mmcore.color_matrix(brightness=0.5, contrast=0.8)) @ torch.cat([first, color[3:]])
    torch.testing.assert_close(torch.tensor(rows) @ color, expected)
    flipped = Augment(horizontal_flip=1).draw(0)
    assert flipped.transform(FrameTransform(), 8, 8).horizontal_flip
    assert not flipped.transform(FrameTransform(horizontal_flip=True), 8, 8).horizontal_flip
    with pytest.raises(ValueError, match="accuracy='fused'"):
        drawn.transform(FrameTransform(accuracy="rgb8"), 8, 8)


def test_temporal_crop() -> None:
    drawn = [Augment(crop_seconds=2.0, speed=(1.5, 1.5)).draw(i) for i in range(300)]
    ranges = [d.time_range(10.0, 20.0) for d in drawn]
    assert all(b - a == pytest.approx(3.0) for a, b in ranges)
    assert min(a for a, _ in ranges) == pytest.approx(10, abs=0.1)
    assert max(b for _, b in ranges) == pytest.approx(20, abs=0.1)
    assert drawn[0].time_range(10.0, 11.0) == (10.0, 11.0)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"crop_seconds": 0}, ValueError), ({"crop_seconds": "2"}, TypeError), ({"speed": 1.1}, TypeError),
        ({"speed": (1.2, 0.8)}, ValueError), ({"speed": (0, 1)}, ValueError),
        ({"horizontal_flip": 1.5}, ValueError), ({"horizontal_flip": True}, TypeError),
        ({"random_crop": 1}, TypeError), ({"random_crop": True, "resized_crop": (0.1, 1)}, ValueError),
        ({"resized_crop": (0, 1)}, ValueError), ({"ratio": (1, float("nan"))}, ValueError),
        ({"brightness": -0.1}, ValueError), ({"hue": 0.6}, ValueError),
        ({"saturation": (1, 2, 3)}, TypeError), ({"spec_augment": True}, TypeError),
    ],
)  # fmt: skip
def test_augment_refuses(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(arguments))):
        Augment(**arguments)
    with pytest.raises(TypeError, match="seed"):
        Augment().draw("x")  # type: ignore[arg-type]


# --- SpecAugment


def test_masks_are_whole_bands() -> None:
    mels = torch.rand(40, 200, generator=torch.Generator().manual_seed(0)) + 1
    kept = mels.clone()
    lengths: list[int] = []
    for seed in range(60):
        masked = SpecAugment(
            num_time_masks=1, time_mask=30, num_frequency_masks=1, frequency_mask=8, fill=0.0
        )(mels, seed)
        columns, rows = (masked == 0).all(0), (masked == 0).all(1)
        assert torch.equal((masked == 0), columns[None, :] | rows[:, None])
        for band, longest in ((columns, 30), (rows, 8)):
            at = band.nonzero().flatten()
            assert len(at) <= longest
            assert not len(at) or at[-1] - at[0] + 1 == len(at)  # one piece
        lengths.append(int(columns.sum()))
        assert torch.equal(masked[~rows][:, ~columns], mels[~rows][:, ~columns])
    assert torch.equal(mels, kept)
    assert min(lengths) == 0 or min(lengths) < 4
    assert max(lengths) > 25


def test_spec_augment_options() -> None:
    mels = torch.rand(2, 16, 100)
    policy = SpecAugment(time_mask=1000, max_time_share=0.1, num_frequency_masks=0, num_time_masks=1, fill=-1)
    assert max(int((policy(mels, s) == -1)[0, 0].sum()) for s in range(50)) <= 10
    assert torch.equal(policy(mels, 3), policy(mels, torch.Generator().manual_seed(3)))
    meant = SpecAugment(num_time_masks=1, num_frequency_masks=0)(mels, 4)
    changed = meant != mels
    assert torch.allclose(meant[changed], mels.mean())
    assert torch.equal(changed[0], changed[1])
    assert SpecAugment()(torch.empty(8, 0), 1).shape == (8, 0)
    half = SpecAugment(time_warp=5)(mels.bfloat16(), 1)
    assert half.dtype == torch.bfloat16


def test_time_warp_moves_one_point() -> None:
    ramp = torch.arange(101.0)[None].expand(4, 101)
    policy = SpecAugment(num_time_masks=0, num_frequency_masks=0, time_warp=10)
    moved = []
    for seed in range(100):
        warped = policy(ramp, seed)[0]
        assert warped[0] == 0
        assert warped[-1] == 100
        assert (warped.diff() >= 0).all()
        off = (warped - ramp[0]).abs()
        assert off.max() <= 10 + 1e-4
        moved.append(float(off.max()))
    assert max(moved) > 8
    assert torch.equal(SpecAugment(num_time_masks=0, num_frequency_masks=0)(ramp, 1), ramp)
    assert torch.equal(policy(ramp[:, :2], 1), ramp[:, :2])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"time_mask": -1}, ValueError), ({"time_mask": 1.5}, TypeError),
        ({"num_time_masks": True}, TypeError), ({"max_time_share": 2}, ValueError),
        ({"fill": "mean"}, TypeError),
    ],
)  # fmt: skip
def test_spec_augment_refuses(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(arguments))):
        SpecAugment(**arguments)


def test_spec_augment_refuses_other_tensors() -> None:
    with pytest.raises(TypeError, match="spectrogram"):
        SpecAugment()(torch.zeros(4, 4, dtype=torch.int32), 1)
    with pytest.raises(ValueError, match="spectrogram"):
        SpecAugment()(torch.zeros(4), 1)
