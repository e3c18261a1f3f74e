"""The trained model in use: text in, sound out."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch
from torch import Tensor

from mmcore import models
from mmcore.errors import MMCoreError, UnsupportedError
from mmcore.recipes.speak.model import AcousticModel
from mmcore.recipes.speak.vocoder import griffin_lim
from mmcore.recipes.speech import PAUSE, phonemize

__all__ = ["Speaker", "load"]

_PAUSE_SECONDS = 0.15
_STRESS = "',"
_VARIETY = "#2-"
"""What ends espeak-ng's names of a phoneme's varieties: "I#" and "I2" are nearly "I"."""


class Speaker:
    """Speaks text with a trained model.

    Text becomes phonemes by espeak-ng's English rules, so that words that were never heard in training can be
    spoken too, as well as their phonemes are known; :meth:`unheard` names them.

    Parameters
    ----------
    model : AcousticModel
        Moved to the CPU and set to evaluation.

    Attributes
    ----------
    sample_rate : int
        Of the sound, in hertz.
    """

    def __init__(self, model: AcousticModel) -> None:
        self.model = model.cpu().eval()
        self.sample_rate = model.log_mel.sample_rate
        self._ids = {name: i for i, name in enumerate(model.phonemes)}
        self._words = frozenset(model.config["words"])

    def speak(self, text: str, *, speed: float = 1.0) -> tuple[Tensor, int]:
        """Speak a text; the same text gives the same samples.

        Parameters
        ----------
        text : str
            English. A pause follows each clause (comma, full stop, question mark and so on).
        speed : float
            2 is twice as fast.

        Returns
        -------
        samples : Tensor
            (n,) float32, -1 to 1.
        sample_rate : int

        Raises
        ------
        ValueError
            If there is nothing to speak, or ``speed`` is not positive.
        UnsupportedError
            If a word has a phoneme that did not occur in training.
        """
        waveform = griffin_lim(self.log_mel(text, speed=speed), self.model.log_mel)
        return waveform / waveform.abs().max().clamp(min=1.0), self.sample_rate

    def log_mel(self, text: str, *, speed: float = 1.0) -> Tensor:
        """Spectrogram (T, mels) of a text, as ``model.log_mel`` would make it of the sound."""
        if not speed > 0:
            raise ValueError(f"speed: expected more than 0, got {speed}")
        settings = self.model.log_mel
        silence = (torch.tensor(settings.floor).log().item() - settings.mean) / settings.std
        pause = torch.full((round(_PAUSE_SECONDS * settings.frame_rate / speed), settings.n_mels), silence)
        parts: list[Tensor] = []
        for ids in self._clauses(text):
            known = torch.ones(1, len(ids), dtype=torch.bool)
            with torch.inference_mode():
                spoken = self.model(torch.tensor([ids]), known, speed=speed)
            parts += [pause, spoken.log_mel[0, spoken.frame_mask[0]]]
        return torch.cat(parts[1:])

    def unheard(self, text: str) -> tuple[str, ...]:
        """Words of a text that were not said in training, in order."""
        return tuple(word for word in dict.fromkeys(_words_of(text)) if word not in self._words)

    def _clauses(self, text: str) -> list[list[int]]:
        """Phonemes' ids, clause by clause."""
        clauses: list[list[int]] = []
        clause: list[int] = []
        for name in phonemize(text, voice=self.model.config["voice"]):
            known = self._known(name)
            if known is None:
                raise UnsupportedError(self._why_unknown(text, name))
            clause.append(known)
            if name == PAUSE:
                clauses.append(clause)
                clause = []
        return clauses

    def _known(self, name: str) -> int | None:
        """Id of a phoneme, else of one with another stress, else of the one that it is a variety of."""
        bare = name.lstrip(_STRESS)
        kinds = (bare, bare.rstrip(_VARIETY))
        likely = (name, *(stress + kind for kind in kinds for stress in ("", *_STRESS)))
        return next((self._ids[n] for n in likely if n in self._ids), None)

    def _why_unknown(self, text: str, name: str) -> str:
        voice = self.model.config["voice"]
        words = [word for word in _words_of(text) if name in phonemize(word, voice=voice)]
        where = f"{', '.join(map(repr, words))} has" if words else "it has"
        return (
            f"text: {where} the phoneme {name!r}, which the model never heard; expected words made of"
            f" {' '.join(self.model.phonemes)}"
        )


def load(folder: str | os.PathLike[str]) -> Speaker:
    """Load what :func:`mmcore.recipes.speak.train` wrote to a folder.

    Raises
    ------
    FileNotFoundError, MMCoreError
        If the folder holds no such model, or a damaged one.
    """
    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(f"{folder}: holds no model; `mmcore train speak -o {folder}` makes one")
    model = models.load(folder, classes={"AcousticModel": AcousticModel})
    if not isinstance(model, AcousticModel):
        raise MMCoreError(f"{folder}: holds a {type(model).__name__}; expected what the recipe speak trained")
    return Speaker(model)


def _words_of(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower())
