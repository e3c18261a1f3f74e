"""Rendered shapes: what is drawn is what the scene says."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mmcore.recipes.shapes import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLORS,
    MOTIONS,
    SHAPES,
    SIZES,
    Scene,
    all_scenes,
    render_scene,
    render_scenes,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tensors this small only lose by more threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def coverage(clip: Tensor) -> Tensor:
    """(T, H, W), from 0 to 1: how much of each pixel is not black."""
    strongest = clip.float().amax(1)
    return strongest / strongest.max()


def centres(clip: Tensor) -> Tensor:
    """(T, 2): x and y of the shape's centre of mass, in pixels."""
    weight = coverage(clip)
    x = torch.arange(clip.shape[3]) + 0.5
    y = torch.arange(clip.shape[2]) + 0.5
    mass = weight.sum((1, 2))
    return torch.stack([(weight.sum(1) * x).sum(1) / mass, (weight.sum(2) * y).sum(1) / mass], 1)


def test_area_and_colour_of_a_circle() -> None:
    clip = render_scene(Scene("circle", "blue", "standing still", "large"), height=64, width=64)
    assert coverage(clip).sum((1, 2)) == pytest.approx(torch.full((8,), math.pi * 16**2), rel=0.005)
    assert clip[:, :, 32, 32].eq(torch.tensor([40, 70, 240])).all()
    assert clip[:, :, 0].eq(0).all()
    assert (clip == clip.flip(-1)).all()
    assert clip.amax(1).unique().numel() > 10  # the edge is smooth


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES)
def test_shapes_have_about_the_same_area(shape: str, size: str) -> None:
    scene = Scene(shape, "cyan", "standing still", size)
    area = coverage(render_scene(scene, height=96, width=96))[0].sum().item()
    radius = {"small": 0.15, "large": 0.25}[size] * 96
    assert 0.7 < area / (math.pi * radius**2) < 1.15


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
@pytest.mark.parametrize("motion", MOTIONS)
def test_motion(motion: str, seed: int | None) -> None:
    clip = render_scene(Scene("square", "red", motion), num_frames=9, height=48, width=48, seed=seed)
    way = centres(clip).diff(dim=0)
    area = coverage(clip).sum((1, 2))
    direction = {"moving left": (0, -1), "moving right": (0, 1), "moving up": (1, -1), "moving down": (1, 1)}
    if motion in direction:
        axis, sign = direction[motion]
        assert (sign * way[:, axis] > 0.5).all()
        assert way[:, 1 - axis].abs().max() < 0.1
    elif motion == "circling":
        at = centres(clip)
        assert (at[0] - at[-1]).norm() < 0.2
        assert (way.norm(dim=1) > 2).all()
        turns = way[:-1, 0] * way[1:, 1] - way[:-1, 1] * way[1:, 0]
        assert (turns > 0).all()  # clockwise on the screen, whose y points down
    else:
        assert way.abs().max() < 0.2
        if motion == "standing still":
            assert (clip == clip[:1]).all()
        else:
            assert (area.diff() * (1 if motion == "growing" else -1) > 1).all()


def test_a_seed_is_always_the_same_clip_alone_or_in_a_batch() -> None:
    scenes = all_scenes()[::37]
    seeds = list(range(100, 100 + len(scenes)))
    together = render_scenes(scenes, num_frames=5, height=17, width=23, seeds=seeds)
    assert together.dtype == torch.uint8
    assert together.shape == (len(scenes), 5, 3, 17, 23)
    for i, scene in enumerate(scenes):
        alone = render_scene(scene, num_frames=5, height=17, width=23, seed=seeds[i])
        assert torch.equal(alone, together[i])
    still = Scene("ring", "pink", "standing still")
    assert not torch.equal(render_scene(still, seed=0), render_scene(still, seed=1))


def test_every_scene_is_in_the_frame_and_differs_from_all_others() -> None:
    clips = render_scenes(all_scenes(), num_frames=4, height=24, width=24)
    assert (clips.amax((2, 3, 4)) > 100).all()
    assert len({clip.numpy().tobytes() for clip in clips}) == len(clips) == 6 * 8 * 8 * 2


def test_backgrounds() -> None:
    for background in BACKGROUNDS:
        clip = render_scene(Scene("ring", "red", "growing", background=background))
        assert clip[0, :, 0, 0].tolist() == [{"black": 0, "gray": 110, "white": 255}[background]] * 3
    assert len(all_scenes(BACKGROUNDS)) == 3 * len(all_scenes())


def test_captions_say_everything() -> None:
    captions = {scene.caption() for scene in all_scenes(BACKGROUNDS)}
    assert len(captions) == len(all_scenes(BACKGROUNDS))
    assert "a large yellow cross circling on white" in captions
    assert ATTRIBUTES["color"] == COLORS


def test_one_frame_and_tiny_frames() -> None:
    assert render_scene(Scene("cross", "red", "moving up"), num_frames=1, height=1, width=5).shape == (
        1,
        3,
        1,
        5,
    )
    assert render_scenes([], num_frames=2, height=4, width=4).shape == (0, 2, 3, 4, 4)


def test_errors_say_what_was_expected() -> None:
    with pytest.raises(ValueError, match=r"color is one of red, .*, not 'mauve'"):
        Scene("circle", "mauve", "growing")
    with pytest.raises(ValueError, match="width is at least 1, not 0"):
        render_scene(Scene("circle", "red", "growing"), width=0)
    with pytest.raises(ValueError, match="1 scenes need as many seeds, not 2"):
        render_scenes([Scene("circle", "red", "growing")], seeds=[1, 2])
