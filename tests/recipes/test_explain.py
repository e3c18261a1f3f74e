"""Explanations: of networks that are known to look at one place only, they must name that place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mmcore
from mmcore.models import Features, Fusion, MultiTaskNet, RegressionHead, clip_inputs
from mmcore.recipes.explain import METHODS, Explanation, clip_times, draw, explain
from mmcore.recipes.explain.trained import byte_tokens


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So small networks are slower on more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


FRAMES, SIDE, STEPS, MELS, LENGTH = 4, 16, 32, 8, 6
ROWS, COLUMNS, BANDS, WORD = slice(4, 8), slice(8, 12), slice(2, 4), 3


class Look(nn.Module):
    """Sees the red of one field of each picture, or hears one band of sound, times a factor."""

    dim = 1

    def __init__(self, see: Callable[[Tensor], Tensor], factor: float) -> None:
        super().__init__()
        self.see, self.factor = see, factor

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        return Features(self.factor * self.see(x)[..., None], mask)


class Read(nn.Module):
    """Knows one word."""

    dim = 1

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 1)
        with torch.no_grad():
            self.embedding.weight.zero_()
            self.embedding.weight[WORD] = factor

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        return Features(self.embedding(x), mask)


def narrow_net(*, video: float, audio: float, text: float) -> MultiTaskNet:
    """Output of "kind": class 1 is the sum of the three means of what is looked at, class 0 is 0."""
    encoders = {
        "video": Look(lambda x: x[:, :, 0, ROWS, COLUMNS].mean((2, 3)), video),
        "audio": Look(lambda x: x[:, :, BANDS].mean(2), audio),
        "text": Read(text),
    }
    fusion = Fusion(dict.fromkeys(encoders, 1), 1, weighting="uniform", mode="sum", norm=None)
    head = RegressionHead(1, 2)
    with torch.no_grad():
        for layer in fusion.fusion.projections:
            if isinstance(layer, nn.Linear):
                layer.weight.fill_(1.0)
                layer.bias.zero_()
        linear = head.layers[-1]
        linear.weight.copy_(torch.tensor([[0.0], [1.0]]))
        linear.bias.zero_()
    loss = mmcore.nn.MultiTaskLoss({"kind": mmcore.Task.cross_entropy()})
    return MultiTaskNet(encoders, fusion, {"kind": head}, loss)


def sample() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "video": torch.rand(1, FRAMES, 3, SIDE, SIDE) + torch.arange(SIDE).view(-1, 1) / SIDE,
        "audio": torch.randn(1, STEPS, MELS),
        "text": torch.tensor([[1, 2, WORD, 0, 4, WORD]]),
    }


@pytest.mark.parametrize("method", METHODS)
def test_what_the_network_looks_at_is_found(method: str) -> None:
    inputs = sample()
    found = explain(narrow_net(video=2.0, audio=1.0, text=3.0), inputs, target=1, method=method)
    assert (found.task, found.target) == ("kind", 1)

    red = inputs["video"][0, :, 0]
    moved = red[:, ROWS, COLUMNS] - red.mean()
    sound = inputs["audio"][0, :, BANDS] - inputs["audio"].min()
    expected = {
        "video": 2 * float(moved.mean()),
        "audio": float(sound.mean()),
        "text": 3 * 2 / LENGTH,
    }
    assert found.by_modality == pytest.approx(expected, abs=1e-4)
    # The output is linear in all of them, so that every method's attributions are complete.
    assert found.score - found.baseline_score == pytest.approx(sum(expected.values()), abs=1e-4)
    assert abs(found.residual) < 1e-4

    inside = torch.zeros(FRAMES, SIDE, SIDE, dtype=torch.bool)
    inside[:, ROWS, COLUMNS] = True
    assert found.attributions["video"].shape == inside.shape
    assert found.attributions["video"][~inside].abs().max() < 1e-6
    heard = torch.zeros(STEPS, MELS, dtype=torch.bool)
    heard[:, BANDS] = True
    assert found.attributions["audio"][~heard].abs().max() < 1e-6
    torch.testing.assert_close(found.attributions["text"], torch.tensor([0, 0, 0.5, 0, 0, 0.5]))
    if method != "occlusion":
        torch.testing.assert_close(found.attributions["video"][inside], (2 * moved / moved.numel()).flatten())
        torch.testing.assert_close(found.attributions["audio"][heard], (sound / sound.numel()).flatten())


def test_integrated_gradients_are_complete_for_a_network_that_is_not_linear() -> None:
    torch.manual_seed(1)
    loss = mmcore.nn.MultiTaskLoss({"kind": mmcore.Task.cross_entropy(), "place": mmcore.Task.mse()})
    net = MultiTaskNet.preset("tiny", {"kind": 5, "place": 2}, loss, num_mels=MELS)
    inputs = sample() | {"text": torch.randint(3, 250, (1, 5))}
    with torch.no_grad():
        net.encoders["text"].embedding.weight.mul_(20)  # as after training: vectors that matter
    found = explain(net.train(), inputs, task="kind", target=2)
    assert net.training
    with torch.no_grad():
        logits = net.eval()(inputs)["kind"][0]
    assert found.score == pytest.approx(float(logits[2]), abs=1e-5)
    torch.testing.assert_close(found.probabilities, logits.softmax(0))
    # The network's norms turn steeply near a baseline of one colour; the gradient at x knows nothing of it.
    assert abs(found.residual) < 0.05 * abs(found.score - found.baseline_score)
    slope = explain(net, inputs, task="kind", target=2, method="gradient_x_input")
    assert abs(slope.residual) > 5 * abs(found.residual)

    place = explain(net, inputs, task="place", target=1, steps=1)
    assert place.probabilities is None
    with pytest.raises(ValueError, match="target: expected which of the 2 numbers of 'place'"):
        explain(net, inputs, task="place")


def test_shares_of_the_fused_features_follow_what_is_there_when() -> None:
    net = narrow_net(video=1.0, audio=0.0, text=1.0)
    inputs = sample() | {"video": torch.ones(1, FRAMES, 3, SIDE, SIDE)}
    inputs["text"].fill_(WORD)
    shown = torch.tensor([[1.5, 2.0]] * LENGTH)  # the words come late
    frames = torch.tensor([[i / 2, (i + 1) / 2] for i in range(FRAMES)])
    steps = torch.tensor([[i / 16, (i + 1) / 16] for i in range(STEPS)])
    found = explain(
        net, inputs, times={"video": frames, "audio": steps, "text": shown}, windows=8, window_share=0.125
    )
    assert found.modalities == ("video", "audio", "text")
    assert found.windowed
    assert found.contributions is not None
    assert found.contribution_steps is not None
    assert found.contribution_seconds is not None
    torch.testing.assert_close(found.contributions, torch.tensor([0.5, 0.0, 0.5]))
    torch.testing.assert_close(found.contribution_seconds[-1].float(), torch.tensor([1.75, 2.0]))
    expected = torch.tensor([[1.0, 0.0, 0.0]] * 6 + [[0.5, 0.0, 0.5]] * 2)
    torch.testing.assert_close(found.contribution_steps, expected)


def test_a_network_that_fuses_by_step_gives_its_own_steps() -> None:
    torch.manual_seed(2)
    loss = mmcore.nn.MultiTaskLoss({"kind": mmcore.Task.cross_entropy()})
    net = MultiTaskNet.preset(
        "tiny", {"kind": 5}, loss, num_mels=MELS, modalities=("video", "audio"), reference="video"
    )
    inputs = {name: x for name, x in sample().items() if name != "text"}
    times = {"video": torch.tensor([[i / 2, (i + 1) / 2] for i in range(FRAMES)])}
    found = explain(net, inputs, times=times, steps=2)
    assert not found.windowed
    own = net.eval().contributions(inputs)
    torch.testing.assert_close(found.contribution_steps, own.steps[0])
    torch.testing.assert_close(found.contribution_seconds, times["video"].double())


def test_what_is_missing_is_left_out() -> None:
    net = narrow_net(video=2.0, audio=1.0, text=3.0)
    inputs = sample()
    whole = explain(net, {name: inputs[name] for name in ("video", "text")}, target=1)
    inputs["audio"].fill_(torch.nan)
    found = explain(net, inputs, available=torch.tensor([[True, False, True]]), target=1)
    assert set(found.attributions) == set(found.inputs) == {"video", "text"}
    assert found.by_modality == pytest.approx(whole.by_modality)
    assert found.contributions is not None
    assert found.contributions[1] == 0

    padded = torch.ones(1, LENGTH, dtype=torch.bool)
    padded[0, 3:] = False
    found = explain(net, sample(), {"text": padded}, target=1)
    torch.testing.assert_close(found.attributions["text"], torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0, 0.0]))


def test_a_picture_of_a_real_clip(tmp_path: Path) -> None:
    matplotlib_image = pytest.importorskip("matplotlib.image")
    path = mmcore.write_sample(tmp_path / "clip.mp4", seconds=2, width=96, height=64).path
    clip = mmcore.read_clip(
        path,
        video={"transform": mmcore.FrameTransform(resize=(SIDE, SIDE), mean=0.5, std=0.25), "num_frames": 4},
        audio={"log_mel": mmcore.LogMelSettings.whisper().replace(n_mels=MELS)},
        text={"tokenizer": lambda text: [WORD] * len(text)},
    )
    net = narrow_net(video=2.0, audio=1.0, text=3.0)
    found = explain(net, *clip_inputs(mmcore.collate_clips([clip])), target=1, times=clip_times(clip))
    assert [float(x) for x in found.times["text"][0]] == [0.5, 1.1]
    assert found.times["video"][:, 0].tolist() == [0.0, 0.5, 1.0, 1.5]

    def red_share(explanation: Explanation) -> float:
        target = draw(explanation, tmp_path / "why.png", title="clip.mp4", classes=["no", "yes"])
        assert target.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        picture = matplotlib_image.imread(target)[..., :3]
        assert min(picture.shape[:2]) > 400
        red = (picture[..., 0] > 0.7) & (picture[..., 1:] < 0.5).all(-1)
        return float(red.mean())

    blind = explain(narrow_net(video=0.0, audio=0.0, text=0.0), *clip_inputs(mmcore.collate_clips([clip])))
    assert red_share(found) > 0.01 > red_share(blind)
    assert not [p for p in tmp_path.iterdir() if p.suffix == ".part"]

    with pytest.raises(ValueError, match="classes: expected 2 names, got 3"):
        draw(found, tmp_path / "why.png", classes=["a", "b", "c"])
    with pytest.raises(ValueError, match="tokens: expected 6, got 1"):
        draw(found, tmp_path / "why.png", tokens=["one"])
    with pytest.raises(ValueError, match="pictures: expected uint8"):
        draw(found, tmp_path / "why.png", pictures=torch.zeros(2, 3, 4, 4))


def test_the_command_explains_trained_recipes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("safetensors")
    from typer.testing import CliRunner

    from mmcore.cli.app import app
    from mmcore.recipes.classify import Classifier
    from mmcore.recipes.classify.network import build
    from mmcore.recipes.folder import FolderModel
    from mmcore.recipes.folder.clips import ClipOptions
    from mmcore.recipes.folder.table import Column

    def call(*arguments: object) -> str:
        result = CliRunner().invoke(app, ["explain", *map(str, arguments)])
        assert result.exit_code == expected_code, result.output
        return result.output

    torch.manual_seed(0)
    file = mmcore.write_sample(tmp_path / "clip.mp4", seconds=1, width=96, height=64).path
    loss = mmcore.nn.MultiTaskLoss({"kind": mmcore.Task.cross_entropy(), "size": mmcore.Task.mse()})
    net = MultiTaskNet.preset("tiny", {"kind": 2, "size": 1}, loss, num_mels=40)
    columns = (Column("kind", ("cat", "dog")), Column("size", mean=1.0, std=2.0))
    (tmp_path / "own").mkdir()
    FolderModel(net.eval(), columns, ClipOptions(num_frames=2, image_size=32, num_mels=40)).save(
        tmp_path / "own"
    )
    (tmp_path / "digits").mkdir()
    Classifier(build().eval()).save(tmp_path / "digits")

    expected_code = 0
    picture = tmp_path / "why.png"
    said = call(file, "--model", tmp_path / "own", "-o", picture, "--target", "dog", "--steps", 4)
    assert "kind: dog, probability 0." in said
    assert picture.stat().st_size > 10_000
    assert "size, score" in call(file, "-m", tmp_path / "own", "-o", picture, "--task", "size", "--steps", 4)
    said = call(file, "-m", tmp_path / "digits", "-o", picture, "--task", "operation", "--steps", 4)
    assert any(f"operation: {name}" in said for name in ("sum", "difference", "larger", "smaller"))

    expected_code = 1
    assert "target: expected one of cat, dog" in call(
        file, "-m", tmp_path / "own", "-o", picture, "--target", "bird"
    )
    assert "expected a folder that `mmcore train classify` or `mmcore train folder`" in call(
        file, "-m", tmp_path, "-o", picture
    )
    (tmp_path / "recipe.json").write_text('{"recipe": "speak"}')
    assert "of the recipe 'speak'; expected classify or folder" in call(file, "-m", tmp_path, "-o", picture)
    expected_code = 2
    assert "ends in .png" in call(file, "-m", tmp_path / "own", "-o", tmp_path / "why.jpg")


def test_letters_of_several_bytes_stand_at_their_first() -> None:
    ids = mmcore.ByteTokenizer().encode("né€", add_special_tokens=True)
    assert byte_tokens(ids) == ["", "n", "é", "", "€", "", "", ""]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"method": "guess"}, ValueError, "method: expected one of integrated_gradients"),
        ({"steps": 0}, ValueError, "steps: expected 1 or more"),
        ({"window_share": 0}, ValueError, "window_share"),
        ({"task": "colour"}, ValueError, "task: expected one of kind, got 'colour'"),
        ({"target": 2}, ValueError, "target: expected 0 to 1, got 2"),
        ({"inputs": {}}, ValueError, "expected one modality or more"),
        ({"inputs": {"video": torch.zeros(2, 4, 3, 8, 8)}}, ValueError, "expected one sample"),
        ({"inputs": {"audio": torch.zeros(1, 8)}}, ValueError, r"frames of sound \(1, T, mels\) or ids"),
        ({"inputs": {"text": [1]}}, TypeError, "expected a tensor, got list"),
        ({"baselines": {"audio": torch.zeros(1, 2, 3)}}, ValueError, r"baselines\['audio'\]: expected shape"),
        ({"times": {"audio": torch.zeros(3, 2)}}, ValueError, r"times\['audio'\]: expected shape"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        explain(narrow_net(video=1, audio=1, text=1), **{"inputs": sample(), **change})
