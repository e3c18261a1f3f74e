"""Training and judging: what ``mmcore train speak`` does."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmcore import models
from mmcore.recipes.batches import StepBatches, to_device
from mmcore.recipes.choices import choose_backend, choose_size
from mmcore.recipes.processes import process_rank
from mmcore.recipes.report import RecipeResult, write_report
from mmcore.recipes.report_figures import new_figure
from mmcore.recipes.speak.corpus import LOG_MEL, VOICE, Batch, Corpus, collate, speak_reference
from mmcore.recipes.speak.judge import Recogniser, mel_cepstral_distortion, word_accuracy
from mmcore.recipes.speak.model import AcousticModel
from mmcore.recipes.speak.speaker import Speaker
from mmcore.recipes.speak.texts import DIGITS, OTHER_WORDS, VOCABULARY, make_texts
from mmcore.recipes.speak.vocoder import griffin_lim
from mmcore.recipes.train_settings import TrainSettings
from mmcore.recipes.trainer import Trainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["compute_loss", "judge", "judge_other_words", "train"]


@dataclass(frozen=True)
class _Size:
    """How much is trained: texts, steps, and the model's width and depth."""

    texts: int
    tested: int
    steps: int
    digits_only: bool
    dim: int
    decoder_layers: int


_SIZES = {
    "full": _Size(texts=1200, tested=60, steps=1100, digits_only=False, dim=128, decoder_layers=6),
    "smallest": _Size(texts=150, tested=15, steps=100, digits_only=True, dim=96, decoder_layers=3),
}


def train(
    folder: str | os.PathLike[str],
    *,
    size: str = "full",
    backend: str = "fused",
    seed: int = 0,
    steps: int | None = None,
    resume: bool = False,
    device: str = "cpu",
    num_workers: int | None = None,
    progress: bool = True,
) -> RecipeResult:
    """Train text to speech on what espeak-ng says, and judge it on sequences of digits that it never heard.

    Parameters
    ----------
    folder : path
        Where the model, logs, checkpoints and ``report.html`` are written; :func:`load` reads it.
    size : {"full", "smallest"}
        Some minutes of one core with 250 words, or some seconds with digits alone.
    backend : {"fused", "eager"}
        Losses by mmcore's compiled pass, or by plain torch.
    seed : int
    steps : int, optional
        Instead of the size's own number.
    resume : bool
        Go on from the folder's last checkpoint.
    device : str
    num_workers : int, optional
        Processes that make batches. None: 0, as the corpus is in memory.
    progress : bool

    Returns
    -------
    RecipeResult
        Its metrics are those of :func:`judge` and, with the full size, of :func:`judge_other_words`; and
        ``mel_error``, the mean absolute error of the spectrogram in deviations, and ``duration_error_ms`` of
        the phonemes.

    Raises
    ------
    ValueError
        For a size or backend that there is not.
    ImportError
        If espeakng-loader or pocketsphinx is not installed.
    """
    sizes, kernels = choose_size(size, _SIZES), choose_backend(backend)
    recogniser = Recogniser(DIGITS)  # before the training: it may not be installed
    texts = make_texts(sizes.texts, sizes.tested, seed, digits_only=sizes.digits_only)
    corpus = Corpus(texts.train)
    test = Corpus(texts.test, corpus.phonemes)
    torch.manual_seed(seed)
    model = AcousticModel(
        corpus.phonemes,
        LOG_MEL.spec,
        voice=VOICE["voice"],
        words=sorted(DIGITS if sizes.digits_only else VOCABULARY),
        dim=sizes.dim,
        decoder_layers=sizes.decoder_layers,
    )
    steps = sizes.steps if steps is None else steps
    settings = TrainSettings(
        steps=steps,
        batch_size=16,
        learning_rate=2e-3,
        warmup_steps=min(30, steps // 10),
        clip_norm=1.0,
        evaluate_every=100,
        checkpoint_every=200,
        seed=seed,
    )
    held_out = collate([test[i] for i in range(len(test))])
    trainer = Trainer(
        model,
        compute_loss,
        StepBatches(corpus, settings.batch_size, seed, num_workers or 0, collate),
        settings,
        folder=folder,
        evaluate=lambda trained: _errors(trained, held_out),
        device=device,
        progress=progress,
    )
    with kernels:
        history = trainer.fit(resume)
    speaker = Speaker(model)
    if process_rank() == 0:
        models.save(model, folder)
    metrics = judge(speaker, test, recogniser) | _errors(model, held_out)
    if not sizes.digits_only:
        metrics |= judge_other_words(speaker)
    report = Path(folder) / "report.html"
    if process_rank() == 0:
        report = write_report(
            folder,
            "Text to speech",
            history,
            metrics=metrics,
            figures=[("A text that was not trained, spoken by both", _spectrograms(speaker, test))],
            notes=[_NOTE.format(len(test))],
        )
    return RecipeResult(Path(folder), metrics, history, report)


_NOTE = (
    "word_accuracy: words that pocketsphinx understands of {} unseen sequences of digits spoken by the model;"
    " _espeak: by espeak-ng, which the model imitates; _vocoder: espeak-ng's spectrograms made sound again;"
    " _shuffled: the model's speech against another text. mcd_db: mel-cepstral distortion from espeak-ng's"
    " speech; _shuffled: from its speech of another text."
)


def compute_loss(model: AcousticModel, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses of the spectrogram, the durations and the energies, with padding masked out."""
    spoken = model(batch.ids, batch.phoneme_mask, batch.durations, batch.energy)
    total, losses = model.loss(
        {"mel": spoken.log_mel, "duration": spoken.log_durations, "energy": spoken.energy},
        {"mel": batch.log_mel, "duration": batch.durations.float().log1p(), "energy": batch.energy},
        {"mel": batch.frame_mask, "duration": batch.phoneme_mask, "energy": batch.phoneme_mask},
    )
    return total, losses


@torch.no_grad()
def _errors(model: AcousticModel, batch: Batch) -> dict[str, float]:
    """Mean absolute errors of the spectrogram, in deviations, and of the durations, in milliseconds."""
    batch = to_device(batch, model.out.weight.device)
    spoken = model(batch.ids, batch.phoneme_mask, batch.durations)
    mel = (spoken.log_mel - batch.log_mel).abs()[batch.frame_mask].mean()
    frames = (spoken.log_durations.expm1() - batch.durations).abs()[batch.phoneme_mask].mean()
    return {"mel_error": mel.item(), "duration_error_ms": 1000 * frames.item() / model.log_mel.frame_rate}


def judge(speaker: Speaker, test: Corpus, recogniser: Recogniser) -> dict[str, float]:
    """How well texts are spoken, by two judges that had no part in the training.

    Returns
    -------
    dict of str to float
        ``word_accuracy`` of the speech, ``word_accuracy_espeak`` of espeak-ng's own,
        ``word_accuracy_vocoder`` of espeak-ng's spectrograms through the vocoder,
        ``word_accuracy_shuffled`` of the speech of each text against the words of the next one; ``mcd_db``
        and ``mcd_shuffled_db``, the mean mel-cepstral distortion of the spectrograms from espeak-ng's, of
        the same text and of the next one.
    """
    texts = [u.text for u in test.utterances]
    references = [u.log_mel for u in test.utterances]
    spectrograms = [speaker.log_mel(text) for text in texts]
    settings = speaker.model.log_mel
    spoken = [griffin_lim(mel, settings) for mel in spectrograms]
    again = [griffin_lim(mel, settings) for mel in references]
    espeak = [speak_reference(text).samples for text in texts]
    shifted = [*texts[1:], texts[0]]

    def distortion(others: list[Tensor]) -> float:
        pairs = zip(spectrograms, others, strict=True)
        return sum(mel_cepstral_distortion(a, b, settings) for a, b in pairs) / len(others)

    return {
        "word_accuracy": word_accuracy(recogniser, spoken, texts),
        "word_accuracy_espeak": word_accuracy(recogniser, espeak, texts),
        "word_accuracy_vocoder": word_accuracy(recogniser, again, texts),
        "word_accuracy_shuffled": word_accuracy(recogniser, spoken, shifted),
        "mcd_db": distortion(references),
        "mcd_shuffled_db": distortion([*references[1:], references[0]]),
    }


def judge_other_words(speaker: Speaker) -> dict[str, float]:
    """Judge sentences of words that were not trained; the recogniser's grammar is their 49 words."""
    recogniser = Recogniser(sorted({word for text in OTHER_WORDS for word in text.split()}))
    references = [speak_reference(text).samples for text in OTHER_WORDS]
    spoken = [speaker.speak(text)[0] for text in OTHER_WORDS]
    return {
        "other_words_accuracy": word_accuracy(recogniser, spoken, OTHER_WORDS),
        "other_words_accuracy_espeak": word_accuracy(recogniser, references, OTHER_WORDS),
    }


def _spectrograms(speaker: Speaker, test: Corpus) -> Figure:
    utterance = test.utterances[0]
    figure = new_figure(9, 4.5)
    upper, lower = figure.subplots(2, 1, sharex=True)
    rate = speaker.model.log_mel.frame_rate
    for axes, name, mel in (
        (upper, "espeak-ng", utterance.log_mel),
        (lower, "model", speaker.log_mel(utterance.text)),
    ):
        shown: Any = mel.T.numpy()
        axes.imshow(
            shown, origin="lower", aspect="auto", vmin=-2, vmax=2, extent=(0, len(mel) / rate, 0, len(mel[0]))
        )
        axes.set_title(f"{name}: {utterance.text}", fontsize=10, loc="left")
        axes.set_ylabel("mel")
    lower.set_xlabel("seconds")
    return figure
