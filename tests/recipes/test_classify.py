"""The recipe classify: its questions, its clips, training, and the commands that use it."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import mmcore
from mmcore.errors import DecodeError, MMCoreError
from mmcore.models import Contributions
from mmcore.recipes import classify
from mmcore.recipes.classify import training
from mmcore.recipes.classify.clips import FRAMES, SECONDS, SIZE, ClipSpec, draw_frames, speak
from mmcore.recipes.classify.dataset import (
    INPUT_FRAMES,
    INPUT_SIZE,
    TASKS,
    ClipDataset,
    collate,
    inputs_of,
    read,
    render,
)
from mmcore.recipes.classify.evaluation import evaluate, load_batches
from mmcore.recipes.classify.network import build
from mmcore.recipes.classify.sources import SPLITS, WRITER_BOUNDS, handwriting
from mmcore.recipes.classify.task import (
    COMBINATIONS,
    MODALITIES,
    OPERATIONS,
    Question,
    ceiling,
    shuffled_ceiling,
)

TINY = training._Size({"train": 24, "validation": 4, "test": 8}, steps=12, batch_size=8, evaluations=1)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of all splits, as many as TINY wants."""
    folder = tmp_path_factory.mktemp("clips")
    for split, count in TINY.clips.items():
        render(folder, split, count)
    return folder


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_SIZES", {"full": TINY, "smallest": TINY})


@pytest.fixture(scope="module")
def trained(media: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A result of the tiny training."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_SIZES", {"smallest": TINY})
        return classify.train(folder, size="smallest", clips=media, num_workers=0, progress=False)


# ---- questions


def test_answers() -> None:
    assert [Question(7, 5, i).answer for i in range(4)] == [12, 2, 7, 5]
    assert [operation.name for operation in OPERATIONS] == ["sum", "difference", "larger", "smaller"]
    words = [word for operation in OPERATIONS for word in operation.words]
    assert len(set(words)) == len(words)
    assert len(set(COMBINATIONS)) == 400


@pytest.mark.parametrize("known", [(), ("video",), ("audio",), ("text",), ("video", "text"), MODALITIES])
def test_ceiling_is_the_best_fixed_guess(known: tuple[str, ...]) -> None:
    """No rule that reads the known parts alone does better, and random ones do worse."""
    best = 0
    for key in {tuple(q.part(m) for m in known) for q in COMBINATIONS}:
        alike = [q for q in COMBINATIONS if tuple(q.part(m) for m in known) == key]
        best += max(sum(q.answer == guess for q in alike) for guess in range(19))
    assert ceiling(known) == best / 400


@pytest.mark.parametrize("modality", MODALITIES)
def test_shuffled_ceiling(modality: str) -> None:
    """As found by dealing out one modality of many questions anew."""
    rng = random.Random(0)
    questions = COMBINATIONS * 100
    others = rng.sample(questions, len(questions))
    right = 0
    for q, other in zip(questions, others, strict=True):
        parts = {m: (other if m == modality else q).part(m) for m in MODALITIES}
        right += Question(parts["video"], parts["audio"], parts["text"]).answer == q.answer
    assert abs(right / len(questions) - shuffled_ceiling(modality)) < 0.01


# ---- clips


def test_nobody_is_in_two_splits() -> None:
    writers = [writer for split in SPLITS.values() for writer in split.writers]
    assert sorted(writers) == list(range(len(WRITER_BOUNDS) - 1))
    variants = [variant for split in SPLITS.values() for variant in split.variants]
    assert len(set(variants)) == len(variants)
    count = 0
    for name, split in SPLITS.items():
        for digit in range(10):
            found = handwriting(name, digit)
            assert set(found.writers.tolist()) <= set(split.writers)
            count += len(found.pictures)
    assert count == 1797


def test_every_question_is_asked_equally_often() -> None:
    asked = Counter(ClipSpec.draw(0, "test", i).question for i in range(800))
    assert set(asked.values()) == {2}
    assert len(asked) == 400
    order = [ClipSpec.draw(0, "test", i).question for i in range(400)]
    assert order != [ClipSpec.draw(0, "test", i).question for i in range(400, 800)]


def test_pictures_show_the_digit_where_the_label_says() -> None:
    for i in range(8):
        spec = ClipSpec.draw(3, "train", i)
        frames = draw_frames(spec)
        assert frames.shape == (FRAMES, 3, SIZE, SIZE)
        assert frames.dtype == torch.uint8
        for frame, (x, y) in ((0, spec.start), (-1, spec.end)):
            ink = (frames[frame].float() - torch.tensor(spec.ground).view(3, 1, 1)).abs().sum(0)
            along = (torch.arange(SIZE) + 0.5) / SIZE
            centre = ((ink.sum(0) * along).sum() / ink.sum(), (ink.sum(1) * along).sum() / ink.sum())
            # the centre of the ink is not quite that of the digit's 8x8 pixels
            assert abs(centre[0] - x) < 0.08
            assert abs(centre[1] - y) < 0.08


def test_sound_and_its_voice() -> None:
    spec = ClipSpec.draw(0, "test", 5)
    sound = speak(spec)
    assert sound.shape == (22050 * SECONDS,)
    assert torch.equal(sound, speak(spec))
    assert 0.4 < sound.abs().max() < 0.6
    assert spec.variant in SPLITS["test"].variants


def test_what_is_rendered_is_read(media: Path) -> None:
    dataset = ClipDataset(media / "test")
    assert len(dataset) == 8
    batch = collate([dataset[i] for i in range(8)])
    assert batch.inputs["video"].shape == (8, INPUT_FRAMES, 4, INPUT_SIZE, INPUT_SIZE)
    assert batch.inputs["audio"].shape[2] == 40
    assert batch.available.all()
    video = batch.inputs["video"][:, :, :3].flatten(1)
    torch.testing.assert_close(video.mean(1), torch.zeros(8), atol=1e-4, rtol=0)
    for i, label in enumerate(dataset.labels):
        spec = ClipSpec.draw(0, "test", i)
        assert label.answer == spec.question.answer == batch.targets["answer"][i]
        assert (label.seen, label.heard, label.operation) == tuple(spec.question.part(m) for m in MODALITIES)
        ids = batch.inputs["text"][i][batch.masks["text"][i]]
        assert mmcore.ByteTokenizer().decode(ids) == spec.word == label.word
        assert batch.targets["position"][i].tolist() == pytest.approx(spec.end, abs=1e-4)


def test_rendering_goes_on_where_it_stopped(tmp_path: Path) -> None:
    render(tmp_path, "validation", 2)
    first, second = (tmp_path / "validation" / f"0000{i}.mkv" for i in range(2))
    kept, lost = first.stat().st_mtime_ns, mmcore.VideoDecoder(second)[:]
    second.unlink()
    render(tmp_path, "validation", 3, num_workers=1)
    assert first.stat().st_mtime_ns == kept
    assert torch.equal(mmcore.VideoDecoder(second)[:], lost)
    assert len(ClipDataset(tmp_path / "validation")) == 3
    with pytest.raises(ValueError, match=r"expected an empty folder or clips of .*'seed': 1"):
        render(tmp_path, "validation", 3, seed=1)


def test_missing_labels(media: Path) -> None:
    dataset = ClipDataset(media / "train", label_share=0.5, seed=1)
    again = ClipDataset(media / "train", label_share=0.5, seed=1)
    assert torch.equal(dataset.labelled, again.labelled)
    assert 0.3 < dataset.labelled.float().mean() < 0.7
    batch = collate([dataset[i] for i in range(8)])
    net = build(modality_dropout=0.0)
    outputs = net(batch.inputs, batch.masks, batch.available)
    _, losses = net.loss(outputs, batch.targets, batch.labelled)
    for task in TASKS[:-1]:
        there = batch.labelled[task]
        expected = torch.nn.functional.cross_entropy(outputs[task][there], batch.targets[task][there])
        torch.testing.assert_close(losses[task], expected)


# ---- training and use


def test_training_learns_and_is_kept(trained: Any, media: Path) -> None:
    history = trained.history
    assert len(history.steps) == 12
    first, last = (sum(r.total for r in part) for part in (history.steps[:4], history.steps[-4:]))
    assert last < first
    for name in ("model/model.safetensors", "recipe.json", "history.csv", "report.html"):
        assert (trained.folder / name).is_file(), name
    assert "perfect model" in trained.report.read_text(encoding="utf-8")
    assert trained.metrics.keys() >= {"answer", "seen", "heard", "operation", "position error"}
    batches = load_batches(ClipDataset(media / "test", 8))
    again = evaluate(classify.load(trained.folder).net, batches)
    assert again.metrics == pytest.approx(trained.metrics)
    assert again.confusion.sum() == 8
    for shares in again.contributions.values():
        assert sum(shares.values()) == pytest.approx(1, abs=1e-4)


@pytest.mark.usefixtures("tiny")
def test_eager_is_the_same_training(trained: Any, media: Path, tmp_path: Path) -> None:
    eager = classify.train(tmp_path, backend="eager", clips=media, num_workers=0, progress=False)
    ours, theirs = (torch.tensor([r.total for r in h.history.steps]) for h in (trained, eager))
    torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-3)


def test_evaluation_knows_what_it_measures(media: Path) -> None:
    """A network that answers by the targets' own numbers is right with all modalities, and only then."""
    batches = load_batches(ClipDataset(media / "test", 8))

    class Oracle(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parameter = torch.nn.Parameter(torch.zeros(()))

        def forward(self, inputs: Any, masks: Any, available: torch.Tensor) -> dict[str, torch.Tensor]:
            (batch,) = batches
            found = {t: 9.0 * torch.nn.functional.one_hot(batch.targets[t], 19) for t in TASKS[:-1]}
            same = all(torch.equal(inputs[m], batch.inputs[m]) for m in MODALITIES)
            if not (bool(available.all()) and same):
                found["answer"] = found["answer"].roll(1, 1)
            return found | {"position": batch.targets["position"] + torch.tensor([0.03, 0.04])}

        def contributions(self, *args: Any) -> Any:
            return Contributions(MODALITIES, torch.full((8, 3), 1 / 3), None)

    found = evaluate(Oracle(), batches)  # type: ignore[arg-type]
    assert found.metrics["answer"] == found.metrics["seen"] == 1
    assert found.metrics["position error"] == pytest.approx(0.05, abs=1e-5)
    for modality in MODALITIES:
        assert found.metrics[f"from {modality} alone"] == 0
        assert found.metrics[f"another clip's {modality}"] == 0
    assert torch.equal(found.confusion, found.confusion.diag().diag())


def test_predict(trained: Any, media: Path, tmp_path: Path) -> None:
    classifier = classify.load(trained.folder)
    found = classifier.predict(media / "test" / "00000.mkv")
    assert list(found) == ["answer", "seen", "heard", "operation", "x", "y"]
    for name, classes in (("answer", 19), ("seen", 10), ("heard", 10), ("operation", 4)):
        shares = found[name]
        assert isinstance(shares, dict)
        assert len(shares) == classes
        assert sum(shares.values()) == pytest.approx(1, abs=1e-4)
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
    batch = collate([ClipDataset(media / "test")[0]])
    with torch.no_grad():
        outputs = classifier.net(batch.inputs, batch.masks, batch.available)
    assert next(iter(found["answer"])) == str(int(outputs["answer"].argmax()))  # type: ignore[arg-type]
    sound = tmp_path / "sound.wav"
    mmcore.encode(sound, audio=0.1 * torch.randn(8000), sample_rate=16000)
    assert classifier.predict(sound).keys() == found.keys()
    _, _, available = inputs_of(mmcore.collate_clips([read(sound)]))
    assert available.tolist() == [[False, True, False]]


def test_what_cannot_be_used(trained: Any, media: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="mmcore train classify"):
        classify.load(tmp_path)
    (tmp_path / "recipe.json").write_text('{"recipe": "speak"}')
    with pytest.raises(MMCoreError, match=r"recipe 'speak'; expected classify$"):
        classify.load(tmp_path)
    (tmp_path / "recipe.json").write_text("[")
    with pytest.raises(MMCoreError, match="no description"):
        classify.load(tmp_path)
    with pytest.raises(DecodeError):
        classify.load(trained.folder).predict(tmp_path / "none.mkv")
    whole = Path(mmcore.write_sample(tmp_path / "whole.mp4", seconds=1, width=64, height=64).path)
    (tmp_path / "broken.mp4").write_bytes(whole.read_bytes()[:3000])  # little more than its header
    with pytest.raises(MMCoreError, match=r"neither pictures .*none of its packets decodes"):
        classify.load(trained.folder).predict(tmp_path / "broken.mp4")
    for wrong, named in (
        ({"size": "huge"}, "size"),
        ({"backend": "gpu"}, "backend"),
        ({"label_share": 0}, "label"),
    ):
        with pytest.raises(ValueError, match=named):
            classify.train(tmp_path, **wrong)


# ---- commands


def run(*args: str | Path) -> Any:
    from mmcore.cli.app import app

    result = CliRunner().invoke(app, [str(a) for a in args])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_classify_command(trained: Any, media: Path, tmp_path: Path) -> None:
    clip = media / "test" / "00001.mkv"
    shown = run("classify", clip, "--model", trained.folder)
    assert shown.exit_code == 0, shown.output
    expected = classify.load(trained.folder).predict(clip)
    assert "operation" in shown.output
    assert f"{expected['x']:.3f}" in shown.output
    assert "warning" not in shown.output
    assert json.loads(run("classify", clip, "-m", trained.folder, "--json").output)["labels"] == expected

    mute = tmp_path / "mute.mkv"
    mmcore.encode(mute, frames=torch.zeros(4, 3, 64, 64, dtype=torch.uint8), fps=4)
    without = run("classify", mute, "-m", trained.folder)
    assert without.exit_code == 0
    assert "no sound and no words" in without.output

    for bad, message in ((tmp_path, "no such file"), (clip, "no such file")):
        failed = run("classify", clip, "-m", bad)
        assert failed.exit_code == 1
        assert message in failed.output


def test_classify_command_uses_folder_models(media: Path, tmp_path: Path) -> None:
    from mmcore.models import MultiTaskNet
    from mmcore.recipes.folder import FolderModel
    from mmcore.recipes.folder.clips import ClipOptions
    from mmcore.recipes.folder.table import Column

    loss = mmcore.nn.MultiTaskLoss({"mood": mmcore.Task.cross_entropy()})
    options = ClipOptions()
    net = MultiTaskNet.preset("tiny", {"mood": 2}, loss, num_mels=options.num_mels).eval()
    FolderModel(net, (Column("mood", ("calm", "wild")),), options).save(tmp_path)
    shown = run("classify", media / "test" / "00000.mkv", "-m", tmp_path)
    assert shown.exit_code == 0, shown.output
    assert "mood" in shown.output
    assert "calm" in shown.output


@pytest.mark.usefixtures("tiny")
def test_demo_trains(media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmcore.cli.demo.ROUNDS", 1)
    shutil.copytree(media, tmp_path / "classify" / "clips")
    shown = run("demo", "-o", tmp_path)
    assert shown.exit_code == 0, shown.output
    assert "12 steps" in shown.output
    assert "10.0%" in shown.output  # the most frequent answer
    assert (tmp_path / "classify" / "report.html").is_file()


def test_demo_without_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmcore.cli.demo.ROUNDS", 1)
    monkeypatch.setattr("mmcore.cli.demo_training._NEEDED", {"no_such_module": "no-such-package"})
    shown = run("demo", "-o", tmp_path)
    assert shown.exit_code == 0, shown.output
    assert "pip install 'mmcore[recipes]'" in shown.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.png", "sample.mp4"]
