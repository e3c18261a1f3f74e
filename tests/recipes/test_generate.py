"""Text to video: exact where it can be, falling losses where it learns."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import mmcore
from mmcore import models
from mmcore.errors import MMCoreError
from mmcore.recipes import generate
from mmcore.recipes.generate import WordsError, training
from mmcore.recipes.generate.autoencoder import FrameAutoencoder
from mmcore.recipes.generate.data import World, labels, split
from mmcore.recipes.generate.flow import LatentFlow, TextToVideo
from mmcore.recipes.generate.generator import Generator
from mmcore.recipes.generate.judge import accuracies
from mmcore.recipes.generate.prompts import ATTRIBUTES, Prompts, some_of

WORLD = World(
    shapes=("square", "ring"),
    colors=("red", "blue"),
    motions=("moving left", "moving right", "growing"),
    sizes=("large",),
    num_frames=4,
    height=16,
    width=16,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small only lose by more threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_model() -> TextToVideo:
    prompts = Prompts(WORLD.values)
    torch.manual_seed(0)
    autoencoder = FrameAutoencoder(height=16, width=16, classes={"shape": 2}, latent=6, channels=8)
    flow = LatentFlow(
        latent=6,
        num_frames=4,
        vocabulary=len(prompts.words),
        max_length=prompts.max_length,
        dim=16,
        layers=1,
        heads=2,
    )
    for parameter in flow.parameters():  # gates and the output start at zero; the prompt would not show
        torch.nn.init.normal_(parameter, std=0.3)
    return TextToVideo(values=WORLD.values, autoencoder=autoencoder, flow=flow)


@pytest.fixture
def generator() -> Generator:
    return Generator(make_model())


@pytest.fixture(scope="module")
def tiny() -> Iterator[None]:
    """Train on four frames of 16x16, a few steps."""
    size = dataclasses.replace(
        training.SIZES["smallest"],
        world=WORLD,
        held_out=2,
        tested_each=2,
        clips=60,
        judge_clips=60,
        judge_steps=12,
        judge_widths=(8,),
        frame_steps=16,
        channels=8,
        latent=6,
        flow_steps=16,
        dim=16,
        layers=1,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(training.SIZES, "smallest", size)
        yield


@pytest.fixture(scope="module")
def trained(tiny: None, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("generate")
    return generate.train(folder, size="smallest", progress=False)


# ---- prompts


def test_prompts_are_read_in_any_order() -> None:
    prompts = Prompts(WORLD.values)
    assert prompts.parse("A large, RED ring moving left.") == {
        "size": "large",
        "color": "red",
        "shape": "ring",
        "motion": "moving left",
    }
    assert prompts.parse("growing the square") == {"shape": "square", "motion": "growing"}
    for scene in WORLD.scenes():
        assert prompts.parse(scene.caption()) == {name: getattr(scene, name) for name in ATTRIBUTES}


def test_ids_are_the_words_in_a_captions_order() -> None:
    prompts = Prompts(WORLD.values)
    ids, mask = prompts.encode([prompts.parse("moving right, a blue square"), {"color": "red"}])
    words = [[prompts.words[i] for i in row[there]] for row, there in zip(ids, mask, strict=True)]
    assert words == [["blue", "square", "moving", "right"], ["red"]]
    assert ids.shape == (2, prompts.max_length) == (2, 5)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a mauve ring", "'mauve' not known; known are size: large; color: red, blue; shape: square, ring"),
        ("a red ring moving", "'moving' not known; .* motion: moving left, moving right, growing"),
        ("a red blue ring", "'red' and 'blue' are both a color"),
        ("the", "says nothing to be seen"),
        ("", "says nothing to be seen"),
        ("ringing", "'ringing' not known"),
    ],
)
def test_what_a_prompt_must_not_say(generator: Generator, prompt: str, message: str) -> None:
    with pytest.raises(WordsError, match=message):
        generator.generate(prompt)


def test_attributes_are_left_out_at_random_but_never_all() -> None:
    said = {"size": "large", "color": "red", "shape": "ring", "motion": "growing"}
    rng = random.Random(0)
    kept = [some_of(said, keep_all=0.5, rng=rng) for _ in range(300)]
    assert 100 < sum(part == said for part in kept) < 200
    assert {len(part) for part in kept} == {1, 2, 3, 4}
    assert all(part.items() <= said.items() and list(part) == [n for n in said if n in part] for part in kept)


# ---- data


def test_split_and_labels() -> None:
    trained, held_out = split(WORLD, 3, seed=1)
    assert len(trained) == 9
    assert {*trained, *held_out} == set(WORLD.scenes())
    assert split(WORLD, 3, seed=1) == (trained, held_out) != split(WORLD, 3, seed=2)
    found = labels(held_out, WORLD)
    assert list(found) == ["color", "shape", "motion"]  # there is one size only
    for i, scene in enumerate(held_out):
        assert all(WORLD.values[name][number[i]] == getattr(scene, name) for name, number in found.items())


def test_accuracies() -> None:
    expected = {"a": torch.tensor([0, 1, 2, 0]), "b": torch.tensor([1, 1, 0, 0])}
    found = {"a": torch.tensor([0, 1, 2, 1]), "b": torch.tensor([1, 0, 0, 1])}
    assert accuracies(found, expected) == {"a": 0.75, "b": 0.5, "all": 0.5}


# ---- networks


def test_autoencoder_of_any_leading_shape() -> None:
    autoencoder = make_model().autoencoder.eval()
    clips = WORLD.render(WORLD.scenes()[:3], 0)
    latents = autoencoder.encode(clips)
    assert latents.shape == (3, 4, 6)
    frames = autoencoder.decode(latents)
    assert frames.shape == clips.shape
    assert frames.dtype == torch.uint8
    torch.testing.assert_close(autoencoder.encode(clips[1, 2:3])[0], latents[1, 2])
    with pytest.raises(ValueError, match="multiples of 8, got 16 and 20"):
        FrameAutoencoder(height=16, width=20, classes={})


class _Straight(LatentFlow):
    """A flow whose prediction is known: 1 where the prompt is read, -1 where it is not."""

    def forward(self, noisy: Any, t: Any, ids: Any, mask: Any, prompted: Any) -> Any:
        return torch.where(prompted, 1.0, -1.0)[:, None, None].expand_as(noisy)


@pytest.mark.parametrize(("guidance", "expected"), [(1.0, 1.0), (0.0, -1.0), (2.0, 3.0)])
def test_sampling_goes_straight_to_what_is_predicted(guidance: float, expected: float) -> None:
    flow = _Straight(latent=2, num_frames=3, vocabulary=5, max_length=4, dim=8, layers=1, heads=2)
    ids, mask = torch.zeros(2, 4, dtype=torch.int64), torch.ones(2, 4, dtype=torch.bool)
    noise = torch.randn(2, 3, 2)
    for steps in (1, 7):
        made = flow.sample(noise, ids, mask, steps=steps, guidance=guidance)
        torch.testing.assert_close(made, torch.full_like(noise, expected))


def test_loss_is_the_error_of_latents_and_of_their_change() -> None:
    flow = _Straight(
        latent=2, num_frames=3, vocabulary=5, max_length=4, dim=8, layers=1, heads=2, no_prompt=0
    )
    ids, mask = torch.zeros(64, 4, dtype=torch.int64), torch.ones(64, 4, dtype=torch.bool)
    latents = torch.randn(64, 3, 2)
    total, losses = flow.loss(latents, ids, mask)
    torch.testing.assert_close(losses["frames"], (1 - latents).square().mean())
    torch.testing.assert_close(losses["motion"], latents.diff(dim=1).square().mean())
    torch.testing.assert_close(total, losses["frames"] + 2 * losses["motion"])


def test_without_a_prompt_the_words_are_not_read() -> None:
    flow = make_model().flow
    noisy, t = torch.randn(2, 4, 6), torch.tensor([0.2, 0.7])
    ids = torch.tensor([[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]])
    mask = torch.ones(2, 5, dtype=torch.bool)
    prompted = torch.tensor([True, False])
    one, other = (flow(noisy, t, words, mask, prompted) for words in (ids, ids.flip(1)))
    assert torch.equal(one[1], other[1])
    assert not torch.equal(one[0], other[0])


# ---- use


def test_clips_depend_on_seed_and_prompt_alone(generator: Generator) -> None:
    clips = generator.generate("a red ring", num_clips=3, seed=5, steps=4)
    assert clips.shape == (3, 4, 3, 16, 16)
    assert clips.dtype == torch.uint8
    assert torch.equal(clips, generator.generate("ring, red", num_clips=3, seed=5, steps=4))
    assert not torch.equal(clips[0], clips[1])
    assert not torch.equal(clips, generator.generate("a red ring", num_clips=3, seed=6, steps=4))
    assert not torch.equal(clips, generator.generate("a blue ring", num_clips=3, seed=5, steps=4))
    several = generator.generate(["a red ring", "a blue ring"], num_clips=2, seed=5, steps=4)
    difference = several[:2].int() - clips[:2].int()
    assert difference.abs().max() <= 1  # products of matrices of another size round otherwise


def test_arguments_of_generate(generator: Generator) -> None:
    with pytest.raises(ValueError, match="num_clips: expected at least 1, got 0"):
        generator.generate("a ring", num_clips=0)
    with pytest.raises(ValueError, match="steps: expected at least 1, got 0"):
        generator.generate("a ring", steps=0)
    with pytest.raises(ValueError, match="at least one"):
        generator.generate([])


def test_saved_and_loaded(generator: Generator, tmp_path: Path) -> None:
    models.save(generator.model, tmp_path)
    loaded = generate.load(tmp_path)
    assert loaded.values == WORLD.values
    expected = generator.generate("a ring growing", num_clips=2, seed=1, steps=3)
    assert torch.equal(loaded.generate("a ring growing", num_clips=2, seed=1, steps=3), expected)

    models.save(models.CNN(8, widths=(8,)), tmp_path)
    with pytest.raises(MMCoreError, match="expected a text-to-video model, got CNN"):
        generate.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        generate.load(tmp_path / "nothing")


# ---- training


def test_training_learns_measures_and_reports(trained: Any) -> None:
    folder = trained.folder
    for name, losses in trained.history.losses.items():
        assert sum(losses[-4:]) < sum(losses[:4]), name
    names = ("color", "shape", "motion", "all")
    kinds = ("", "shuffled_", "seen_", "real_", "decoded_")
    assert set(trained.metrics) == {kind + name for kind in kinds for name in names}
    assert all(0 <= value <= 1 for value in trained.metrics.values())
    text = trained.report.read_text(encoding="utf-8")
    assert "Text to video" in text
    assert "confusion of motion" in text
    assert (folder / "judge" / "model.safetensors").is_file()
    clips = generate.load(folder).generate("a blue ring growing", steps=3)
    assert clips.shape == (1, 4, 3, 16, 16)


def test_eager_training_has_the_same_losses(trained: Any, tmp_path: Path) -> None:
    eager = generate.train(tmp_path, size="smallest", backend="eager", progress=False)
    for name, losses in trained.history.losses.items():
        assert losses == pytest.approx(eager.history.losses[name], rel=2e-3), name


def test_a_finished_training_is_resumed_to_the_same_result(trained: Any) -> None:
    again = generate.train(trained.folder, size="smallest", resume=True, progress=False)
    assert again.metrics == trained.metrics
    assert again.history.losses == trained.history.losses


def test_arguments_of_train(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="size: expected one of full, smallest, got 'huge'"):
        generate.train(tmp_path, size="huge")
    with pytest.raises(ValueError, match="backend: expected fused or eager, got 'slow'"):
        generate.train(tmp_path, backend="slow")


# ---- command


def test_command_writes_a_video_and_a_sheet(generator: Generator, tmp_path: Path) -> None:
    from mmcore.cli.app import app

    models.save(generator.model, tmp_path / "model")
    video, sheet = tmp_path / "out.mp4", tmp_path / "sheet.png"
    command = ["generate", "a red ring moving left", "-m", str(tmp_path / "model"), "-o", str(video)]
    result = CliRunner().invoke(app, [*command, "--clips", "2", "--upscale", "4", "--sheet", str(sheet)])
    assert result.exit_code == 0, result.output
    assert "16 frames of 64x64, 2.00 s" in result.output
    with mmcore.VideoDecoder(video) as decoder:
        assert decoder[:].shape == (16, 3, 64, 64)
    assert sheet.read_bytes().startswith(b"\x89PNG")

    exact = tmp_path / "exact.mkv"
    options = ["--interpolation", "nearest", "--upscale", "2", "--repeat", "1"]
    result = CliRunner().invoke(app, [*command[:-1], str(exact), *options])
    assert result.exit_code == 0, result.output
    with mmcore.VideoDecoder(exact) as decoder:
        difference = decoder[:].float() - generator.generate(command[1])[0].repeat_interleave(
            2, -1
        ).repeat_interleave(2, -2)
    assert difference.abs().mean() < 20  # a lossy codec in between

    result = CliRunner().invoke(app, [*command[:1], "a mauve ring", *command[2:]])
    assert result.exit_code == 1
    assert "'mauve' not known" in result.output
