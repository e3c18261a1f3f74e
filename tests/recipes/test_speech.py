"""Speech by espeak-ng: the same arguments give the same samples wherever and in whatever order it is made."""

from __future__ import annotations

import multiprocessing
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.data import DataLoader

pytest.importorskip("espeakng_loader")

from mmcore.recipes.speech import PAUSE, Speech, phonemize, synthesize, variants, voices

TEXT = "three one four, seven."


def test_samples_and_phonemes() -> None:
    speech = synthesize(TEXT, phonemes=True)
    assert speech.samples.dtype == torch.float32
    assert speech.sample_rate == 22050
    assert 0.1 < speech.samples.abs().max() <= 1
    assert [p.name for p in speech.phonemes[:4]] == ["T", "r", "'i:", "w"]
    assert speech.phonemes[-1].end == pytest.approx(len(speech.samples) / speech.sample_rate)
    for before, after in zip(speech.phonemes, speech.phonemes[1:], strict=False):
        assert before.start <= before.end == after.start
    # What is between two phonemes' times is heard: the pause at the comma is the quietest of them.
    loudness = {}
    for name, start, end in speech.phonemes[:-1]:
        part = speech.samples[int(start * speech.sample_rate) : int(end * speech.sample_rate)]
        loudness[name] = part.square().mean().item()
    assert min(loudness, key=lambda name: loudness[name]) == PAUSE
    assert synthesize(TEXT).phonemes == ()


def test_does_not_depend_on_what_was_said_before() -> None:
    first = [synthesize(TEXT, variant=v).samples for v in (None, "klatt4", "whisper", "croak")]
    synthesize("something else entirely", variant="f3", rate=300, pitch=90)
    again = [synthesize(TEXT, variant=v).samples for v in (None, "klatt4", "whisper", "croak")]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_threads_take_turns() -> None:
    texts = ["one two", "three", "four five six", "seven"] * 4
    alone = [synthesize(text).samples for text in texts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda text: synthesize(text).samples, texts))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


class _Spoken(torch.utils.data.Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        return synthesize(f"number {index}").samples


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_forked_workers() -> None:
    synthesize("the parent speaks first")
    loader = DataLoader(_Spoken(), batch_size=None, num_workers=2, multiprocessing_context="fork")
    for found, expected in zip(loader, [_Spoken()[i] for i in range(4)], strict=True):
        assert torch.equal(found, expected)


def test_settings_are_heard() -> None:
    usual = synthesize(TEXT)
    assert len(synthesize(TEXT, rate=350).samples) < 0.7 * len(usual.samples)
    assert _pitch(synthesize("oh", pitch=99)) > 1.2 * _pitch(synthesize("oh", pitch=0))
    other = synthesize(TEXT, variant="f3").samples
    assert len(other) != len(usual.samples) or not torch.equal(other, usual.samples)
    assert not torch.equal(synthesize("eins", voice="de").samples, synthesize("eins").samples)


def _pitch(speech: Speech) -> float:
    """Hertz, of the loudest tenth of a second, by autocorrelation."""
    width = speech.sample_rate // 10
    windows = speech.samples.unfold(0, width, width // 4)
    loudest = windows[windows.square().mean(1).argmax()]
    spectrum = torch.fft.rfft(loudest, 2 * width).abs().square()
    correlation = torch.fft.irfft(spectrum)[: speech.sample_rate // 60]
    shortest = speech.sample_rate // 400
    return speech.sample_rate / (shortest + correlation[shortest:].argmax().item())


@pytest.mark.parametrize("text", [TEXT, "a small red circle moving left", "Hello, world! It's 42.", "zero"])
def test_phonemize_gives_what_is_spoken(text: str) -> None:
    assert phonemize(text) == tuple(p.name for p in synthesize(text, phonemes=True).phonemes)


def test_lists() -> None:
    assert {"en-us", "en-gb", "de"} <= set(voices())
    assert {"f3", "klatt4", "m1"} <= set(variants())
    assert len(synthesize("one", voice="en-gb").samples) > 1000  # its file has another name than its tag


def test_resample() -> None:
    speech = synthesize(TEXT, phonemes=True)
    lower = speech.resample(16000)
    assert lower.sample_rate == 16000
    assert len(lower.samples) / 16000 == pytest.approx(len(speech.samples) / 22050, abs=1e-3)
    loudness = [s.samples.square().mean().item() for s in (speech, lower)]
    assert loudness[1] == pytest.approx(loudness[0], rel=0.1)
    assert lower.phonemes == speech.phonemes
    assert speech.resample(22050) is speech


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"text": ""}, ValueError, "something to speak"),
        ({"text": "..."}, ValueError, "something to speak"),
        ({"text": "a\0b"}, ValueError, "NUL"),
        ({"text": "\ud800"}, ValueError, "surrogates"),
        ({"text": 3}, TypeError, "expected a str, got int"),
        ({"text": "a", "voice": "tlh"}, ValueError, "voice: expected one of .*en-us.*got 'tlh'"),
        ({"text": "a", "variant": "f99"}, ValueError, "variant: expected one of .*got 'f99'"),
        ({"text": "a", "rate": 10}, ValueError, "rate: expected 80 to 450, got 10"),
        ({"text": "a", "pitch": 100}, ValueError, "pitch: expected 0 to 99, got 100"),
        ({"text": "a", "pitch": 50.0}, TypeError, "pitch: expected an int"),
    ],
)
def test_errors(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        synthesize(**arguments)  # type: ignore[arg-type]


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ImportError, match=r"pip install 'mmcore\[speech\]'"):
        synthesize("one")
