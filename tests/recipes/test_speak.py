"""Text to speech: exact where it can be, falling losses where it learns."""

from __future__ import annotations

import dataclasses
import itertools
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("espeakng_loader")
pytest.importorskip("pocketsphinx")

import mmcore
from mmcore import models
from mmcore.errors import DecodeError, MMCoreError, UnsupportedError
from mmcore.recipes import speak
from mmcore.recipes.speak import training
from mmcore.recipes.speak.corpus import LOG_MEL, Corpus, collate, speak_reference
from mmcore.recipes.speak.dubbing import speak_onto
from mmcore.recipes.speak.judge import Recogniser, align, mel_cepstral_distortion, word_errors
from mmcore.recipes.speak.model import AcousticModel
from mmcore.recipes.speak.texts import DIGITS, VOCABULARY, make_texts
from mmcore.recipes.speak.vocoder import griffin_lim

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["three one four", "nine", "zero seven two eight"]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Models this small only lose by more threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus(TEXTS)


@pytest.fixture
def model(corpus: Corpus) -> AcousticModel:
    torch.manual_seed(0)
    return AcousticModel(corpus.phonemes, LOG_MEL.spec, words=DIGITS, dim=32, decoder_layers=2).eval()


# ---- texts and corpus


def test_texts_keep_the_test_apart() -> None:
    texts = make_texts(400, 40, seed=3)
    assert len(texts.train) == 400
    assert len(set(texts.test)) == 40
    assert not any(test in text or text in test for test in texts.test for text in texts.train)
    assert {word for text in texts.train for word in text.split()} <= VOCABULARY
    assert make_texts(400, 40, seed=3).train == texts.train
    assert make_texts(400, 40, seed=4).train != texts.train
    assert {word for text in make_texts(50, 5, 0, digits_only=True).train for word in text.split()} == set(
        DIGITS
    )


def test_utterances(corpus: Corpus) -> None:
    for text, utterance in zip(TEXTS, corpus.utterances, strict=True):
        speech = speak_reference(text)
        assert torch.equal(utterance.log_mel, mmcore.log_mel(speech.samples, 16000, LOG_MEL))
        assert utterance.durations.sum() == len(utterance.log_mel)
        assert utterance.durations.min() >= 0
        ends = utterance.durations.cumsum(0) / LOG_MEL.frame_rate
        for end, phoneme in zip(ends[:-1], speech.phonemes[:-1], strict=True):
            assert abs(end.item() - phoneme.end) <= 0.5 / LOG_MEL.frame_rate + 1e-6
        start = 0
        for duration, energy in zip(utterance.durations.tolist(), utterance.energy, strict=True):
            if duration:
                torch.testing.assert_close(utterance.log_mel[start : start + duration].mean(), energy)
            start += duration


# ---- model


def test_padding_changes_nothing(corpus: Corpus, model: AcousticModel) -> None:
    batch = collate([corpus[i] for i in range(3)])
    with torch.no_grad():
        together = model(batch.ids, batch.phoneme_mask, batch.durations)
        for i in range(3):
            alone_batch = collate([corpus[i]])
            alone = model(alone_batch.ids, alone_batch.phoneme_mask, alone_batch.durations)
            frames, phonemes = alone.log_mel.shape[1], alone.energy.shape[1]
            assert torch.equal(together.frame_mask[i], batch.frame_mask[i])
            torch.testing.assert_close(together.log_mel[i, :frames], alone.log_mel[0])
            torch.testing.assert_close(together.log_durations[i, :phonemes], alone.log_durations[0])
            torch.testing.assert_close(together.energy[i, :phonemes], alone.energy[0])


def test_padding_is_not_learned(corpus: Corpus, model: AcousticModel) -> None:
    batch = collate([corpus[i] for i in range(3)])
    expected, _ = training.compute_loss(model, batch)
    spoiled = batch._replace(
        log_mel=batch.log_mel.masked_fill(~batch.frame_mask[..., None], math.nan),
        energy=batch.energy.masked_fill(~batch.phoneme_mask, 99.0),
    )
    total, _ = training.compute_loss(model, spoiled)
    torch.testing.assert_close(total, expected)
    total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_length_regulator(model: AcousticModel) -> None:
    with torch.no_grad():
        model.place.weight.zero_()
        model.place.bias.zero_()
    x = torch.arange(6.0).reshape(2, 3, 1).expand(-1, -1, 32)
    frames, mask = model._regulate(x, torch.tensor([[2, 0, 3], [1, 1, 1]]))
    assert frames[0, :, 0].tolist() == [0, 0, 2, 2, 2]
    assert frames[1, :3, 0].tolist() == [3, 4, 5]
    assert mask.tolist() == [[True] * 5, [True] * 3 + [False] * 2]


def test_predicted_durations_round_without_drift(model: AcousticModel) -> None:
    torch.nn.init.zeros_(model.duration.out.weight)
    torch.nn.init.constant_(model.duration.out.bias, math.log1p(2.4))
    ids = torch.zeros(1, 50, dtype=torch.int64)
    spoken = model(ids, torch.ones(1, 50, dtype=torch.bool))
    assert spoken.frame_mask.sum() == 120  # 50 times 2.4; rounding each would give 100
    assert model(ids, torch.ones(1, 50, dtype=torch.bool), speed=2.0).frame_mask.sum() == 60


# ---- vocoder and judges


def test_vocoder_gives_the_spectrogram_back(corpus: Corpus) -> None:
    log_mel = corpus.utterances[0].log_mel
    waveform = griffin_lim(log_mel, LOG_MEL)
    assert len(waveform) == (len(log_mel) - 1) * LOG_MEL.hop_length
    error = (mmcore.log_mel(waveform, 16000, LOG_MEL) - log_mel).abs().mean()
    assert error < 0.15  # in deviations of speech
    assert torch.equal(waveform, griffin_lim(log_mel, LOG_MEL))
    for frames in range(1, 6):
        assert griffin_lim(log_mel[:frames], LOG_MEL).shape == ((frames - 1) * LOG_MEL.hop_length,)
    with pytest.raises(ValueError, match='log="ln"'):
        griffin_lim(log_mel, mmcore.LogMelSettings())


def test_align_finds_the_least_sum() -> None:
    rng = np.random.default_rng(0)
    for rows, columns in itertools.product((1, 2, 3, 4), (1, 2, 3, 5)):
        distances = rng.random((rows, columns))
        i, j = align(distances)
        assert (i[0], j[0], i[-1], j[-1]) == (0, 0, rows - 1, columns - 1)
        steps = set(zip(np.diff(i).tolist(), np.diff(j).tolist(), strict=True))
        assert steps <= {(0, 1), (1, 0), (1, 1)}
        assert distances[i, j].sum() == pytest.approx(_least(distances, rows - 1, columns - 1))


def _least(distances: Any, i: int, j: int) -> float:
    """By its definition, trying all paths."""
    before = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
    sums = [_least(distances, *cell) for cell in before if min(cell) >= 0]
    return float(distances[i, j]) + (min(sums) if sums else 0.0)


def test_mel_cepstral_distortion(corpus: Corpus) -> None:
    log_mel, other = (u.log_mel for u in corpus.utterances[:2])
    assert mel_cepstral_distortion(log_mel, log_mel, LOG_MEL) == pytest.approx(0, abs=1e-4)
    slower = log_mel.repeat_interleave(2, 0)
    assert mel_cepstral_distortion(log_mel, slower + 0.5, LOG_MEL) == pytest.approx(0, abs=1e-4)
    assert mel_cepstral_distortion(log_mel, other, LOG_MEL) > 3
    # One coefficient, c_2, off by 0.1 everywhere.
    ripple = 0.1 * torch.cos(math.pi * 2 * (torch.arange(64) + 0.5) / 64) / LOG_MEL.std
    flat = torch.zeros(10, 64)
    expected = 10 / math.log(10) * math.sqrt(2 * 0.1**2)
    assert mel_cepstral_distortion(flat + ripple, flat, LOG_MEL) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("heard", "said", "errors"),
    [("", "", 0), ("", "a b", 2), ("a b", "", 2), ("a b c", "a b c", 0), ("a x c", "a b c", 1),
     ("b c", "a b c", 1), ("a a b c", "a b c", 1), ("c b a", "a b c", 2)],
)  # fmt: skip
def test_word_errors(heard: str, said: str, errors: int) -> None:
    assert word_errors(heard.split(), said.split()) == errors


def test_recogniser() -> None:
    recogniser = Recogniser(DIGITS)
    for text in TEXTS:
        samples = speak_reference(text).samples
        assert recogniser(samples) == text.split()
        assert recogniser(samples) == text.split()  # nothing is left from before
    assert recogniser(torch.zeros(8000)) == []


# ---- training and use


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    size = dataclasses.replace(
        training._SIZES["smallest"], texts=24, tested=2, steps=16, dim=32, decoder_layers=1
    )
    monkeypatch.setitem(training._SIZES, "smallest", size)


@pytest.mark.usefixtures("tiny")
def test_train(tmp_path: Path) -> None:
    result = speak.train(tmp_path / "fused", size="smallest", progress=False)
    assert {"word_accuracy", "word_accuracy_espeak", "mcd_db", "mcd_shuffled_db"} <= result.metrics.keys()
    assert result.metrics["word_accuracy_espeak"] > 0.7
    losses = result.history.losses
    assert losses.keys() == {"mel", "duration", "energy"}
    for values in (losses["mel"], result.history.totals):
        assert sum(values[-4:]) < 0.8 * sum(values[:4])
    assert "word_accuracy" in result.report.read_text()
    assert speak.load(tmp_path / "fused").speak("one two")[1] == 16000

    eager = speak.train(tmp_path / "eager", size="smallest", backend="eager", progress=False)
    np.testing.assert_allclose(eager.history.totals, result.history.totals, rtol=1e-3)


@pytest.mark.usefixtures("tiny")
def test_resuming_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cut(Exception):
        pass

    def cut(trained: AcousticModel, batch: Any) -> dict[str, float]:
        raise Cut

    given = training.TrainSettings
    monkeypatch.setattr(
        training,
        "TrainSettings",
        lambda **settings: given(**{**settings, "checkpoint_every": 9, "evaluate_every": 10}),
    )
    for name in ("Recogniser", "judge", "write_report"):  # they take longer than the training
        monkeypatch.setattr(training, name, lambda *_, **__: {})
    whole = speak.train(tmp_path / "whole", size="smallest", progress=False)
    with monkeypatch.context() as context:
        context.setattr(training, "_errors", cut)
        with pytest.raises(Cut):
            speak.train(tmp_path / "cut", size="smallest", progress=False)
    resumed = speak.train(tmp_path / "cut", size="smallest", resume=True, progress=False)
    assert resumed.history.totals == whole.history.totals
    samples = [speak.load(tmp_path / name).speak("one two")[0] for name in ("whole", "cut")]
    assert torch.equal(*samples)


def test_train_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="size: expected one of full, smallest, got 'huge'"):
        speak.train(tmp_path, size="huge")
    with pytest.raises(ValueError, match="backend: expected fused or eager"):
        speak.train(tmp_path, backend="cuda")
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    with pytest.raises(ImportError, match=r"pip install 'mmcore\[speech\]'"):
        speak.train(tmp_path)


@pytest.fixture
def folder(model: AcousticModel, tmp_path: Path) -> Path:
    """An untrained model; four frames to each phoneme."""
    torch.nn.init.zeros_(model.duration.out.weight)
    torch.nn.init.constant_(model.duration.out.bias, math.log1p(4))
    return models.save(model, tmp_path / "model")


def test_speaker(folder: Path) -> None:
    speaker = speak.load(folder)
    samples, _ = speaker.speak("Three, one!")
    assert torch.equal(samples, speaker.speak("Three, one!")[0])
    frames = 4 * 8 + round(0.15 * LOG_MEL.frame_rate)  # T r i: _: and w V n _:, and the pause
    assert len(speaker.log_mel("Three, one!")) == frames
    assert len(samples) == (frames - 1) * LOG_MEL.hop_length
    assert len(speaker.log_mel("three", speed=2.0)) == 8
    assert speaker.unheard("Three RED ones, red") == ("red", "ones")
    with pytest.raises(UnsupportedError, match=r"'choir' has the phoneme .*never heard"):
        speaker.speak("one choir")
    with pytest.raises(ValueError, match="speed: expected more than 0"):
        speaker.speak("one", speed=0)
    with pytest.raises(ValueError, match="something to speak"):
        speaker.speak(" , ")


def test_stress_is_forgiven(folder: Path) -> None:
    speaker = speak.load(folder)
    assert "'i:" in speaker.model.phonemes
    assert "i:" not in speaker.model.phonemes
    assert speaker._known("i:") == speaker._known("'i:") == speaker._known(",i:")
    assert speaker._known("n-") == speaker._known("n")
    assert speaker._known("'0") is None


def test_load_refuses_other_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="mmcore train speak"):
        speak.load(tmp_path)
    models.save(models.Transformer.preset("tiny"), tmp_path)
    with pytest.raises(MMCoreError, match="holds a Transformer"):
        speak.load(tmp_path)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """12 frames at 12 a second, each of another grey, with a tone."""
    path = tmp_path / "video.mp4"
    greys = torch.linspace(20, 230, 12).to(torch.uint8)[:, None, None, None].expand(-1, 3, 48, 64)
    mmcore.encode(path, frames=greys, fps=12, audio=torch.ones(16000).sin(), sample_rate=16000)
    return path


@pytest.mark.parametrize("seconds", [0.4, 2.5])
def test_speak_onto(video: Path, tmp_path: Path, seconds: float) -> None:
    output = tmp_path / "spoken.mkv"
    samples = 0.5 * torch.sin(torch.arange(round(seconds * 16000)) * 0.2)
    speak_onto(
        video,
        samples,
        16000,
        output,
        text="hello",
    )
    with mmcore.VideoDecoder(video) as before, mmcore.VideoDecoder(output) as after:
        assert after.metadata.average_fps == pytest.approx(12, rel=0.01)
        assert len(after) == max(12, math.ceil(seconds * 12))
        difference = after[:12].float() - before[:].float()
        assert difference.abs().max() < 3  # encoded again
        held = after[11:].float()
        assert (held - held[:1]).abs().max() < 3
    found = mmcore.AudioDecoder(output).get_all_samples().data[0][: len(samples)]
    assert (found - samples).square().mean() < 0.01
    (words,) = list(mmcore.TextDecoder(output))
    assert (words.start, words.text) == (0.0, "hello")
    assert words.end == pytest.approx(seconds, abs=0.01)


def test_speak_onto_refuses(video: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="another file"):
        speak_onto(video, torch.zeros(100), 16000, video)
    with pytest.raises((FileNotFoundError, DecodeError), match=r"none\.mp4"):
        speak_onto(tmp_path / "none.mp4", torch.zeros(100), 16000, tmp_path / "out.mp4")
    assert not (tmp_path / "out.mp4").exists()


def test_command(folder: Path, video: Path, tmp_path: Path) -> None:
    from mmcore.cli.app import app

    def run(*arguments: object, stdin: str | None = None) -> Any:
        return CliRunner().invoke(app, ["speak", *map(str, arguments)], input=stdin)

    result = run("one three", "-m", folder, "-o", tmp_path / "a.wav")
    assert result.exit_code == 0, result.output
    samples = speak.load(folder).speak("one three")[0]
    with mmcore.AudioDecoder(tmp_path / "a.wav") as decoder:
        assert (decoder.get_all_samples().data[0] - samples).abs().max() <= 1 / 32768
    assert run("-", "-m", folder, "-o", tmp_path / "b.wav", stdin="one\nthree\n").exit_code == 0
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()

    result = run("one", "-m", folder, "-o", tmp_path / "a.mp4", "--onto", video, "--subtitle")
    assert result.exit_code == 0, result.output
    assert [segment.text for segment in mmcore.TextDecoder(tmp_path / "a.mp4")] == ["one"]

    assert "trained on" in run("ones", "-m", folder, "-o", tmp_path / "c.wav").output
    result = run("one choir", "-m", folder)
    assert result.exit_code == 1
    assert "choir" in result.output
    assert run("one", "-m", folder, "--subtitle").exit_code == 2
    assert "mmcore train speak" in run("one", "-m", tmp_path).output
