"""How near speech is to a reference, and whether a recogniser that knows nothing of it understands it."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import mmcore

__all__ = ["Recogniser", "align", "mel_cepstral_distortion", "word_accuracy", "word_errors"]

Array = npt.NDArray[np.float64]

_COEFFICIENTS = 13


def mel_cepstral_distortion(log_mel: Tensor, reference: Tensor, settings: mmcore.LogMelSettings) -> float:
    """Mel-cepstral distortion in dB along the best alignment in time (Kubichek 1993).

    ``10 / ln 10 sqrt(2 sum_{m=1..13} (c_m - c'_m)^2)``, the mean over the pairs of frames that :func:`align`
    finds. The cepstrum is that of the M filtered magnitudes A, without c_0, so that loudness does not count:
    ``c_m = 2 / M sum_{k=0..M-1} ln A_k cos(pi m (k + 1/2) / M)``.

    Parameters
    ----------
    log_mel, reference : Tensor
        (T, mels) and (T', mels), as ``settings`` make them: logarithm "ln" and power 1.
    settings : LogMelSettings
    """
    basis = _cosines(settings.n_mels)
    a, b = (x.double().numpy() * settings.std @ basis for x in (log_mel, reference))
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    distances = 10 / math.log(10) * np.sqrt(2 * squares.clip(min=0))
    first, second = align(distances)
    return float(distances[first, second].mean())


def align(distances: Array) -> tuple[list[int], list[int]]:
    """Dynamic time warping: the path through (T, T') from corner to corner with the least sum.

    Each step goes one on in either sequence or in both (Sakoe and Chiba 1978).

    Returns
    -------
    rows, columns : list of int
        The pairs that the path passes, in order.
    """
    rows, columns = distances.shape
    sums = np.full((rows + 1, columns + 1), np.inf)
    sums[0, 0] = 0
    for diagonal in range(rows + columns - 1):  # cells of one diagonal do not depend on each other
        i = np.arange(max(0, diagonal - columns + 1), min(rows, diagonal + 1))
        j = diagonal - i
        before = np.minimum(np.minimum(sums[i, j + 1], sums[i + 1, j]), sums[i, j])
        sums[i + 1, j + 1] = distances[i, j] + before
    i, j = rows, columns
    path = []
    while i and j:
        path.append((i - 1, j - 1))
        i, j = min(((i - 1, j - 1), (i - 1, j), (i, j - 1)), key=lambda cell: sums[cell])
    path.reverse()
    return [p[0] for p in path], [p[1] for p in path]


class Recogniser:
    """pocketsphinx with its own model of US English, listening for any sequence of some words.

    Parameters
    ----------
    words : sequence of str
        Words of its dictionary.

    Raises
    ------
    ImportError
        If pocketsphinx is not installed.

    Examples
    --------
    >>> from mmcore.recipes.speak.judge import Recogniser
    >>> from mmcore.recipes.speech import synthesize
    >>> Recogniser(["three", "four"])(synthesize("four three", variant="klatt4").resample(16000).samples)
    ['four', 'three']
    """

    SAMPLE_RATE = 16000

    def __init__(self, words: Sequence[str]) -> None:
        try:
            sphinx = importlib.import_module("pocketsphinx")
        except ImportError as error:
            raise ImportError("the recogniser needs pocketsphinx: pip install 'mmcore[speech]'") from error
        self._decoder: Any = sphinx.Decoder(
            hmm=sphinx.get_model_path("en-us/en-us"),
            dict=sphinx.get_model_path("en-us/cmudict-en-us.dict"),
            lm=None,
            loglevel="FATAL",
        )
        grammar = f"#JSGF V1.0; grammar words; public <spoken> = ({' | '.join(words)})+;"
        self._decoder.add_jsgf_string("words", grammar)
        self._decoder.activate_search("words")

    def __call__(self, samples: Tensor) -> list[str]:
        """Words heard in float32 (n,) at 16 kHz, -1 to 1."""
        # What it was trained on begins and ends in a quiet room: never in digital silence.
        room = torch.nn.functional.pad(samples, (4800, 4800))
        room = room + 5e-4 * torch.randn(len(room), generator=torch.Generator().manual_seed(0))
        sound = (room.clamp(-1, 1) * 32767).to(torch.int16).numpy().tobytes()
        self._decoder.start_utt()
        self._decoder.process_raw(sound, full_utt=True)
        self._decoder.end_utt()
        found = self._decoder.hyp()
        return found.hypstr.split() if found else []


def word_errors(heard: Sequence[str], said: Sequence[str]) -> int:
    """Fewest words to substitute, delete and insert (Levenshtein 1966)."""
    row = list(range(len(said) + 1))
    for i, word in enumerate(heard, 1):
        corner, row[0] = row[0], i
        for j, other in enumerate(said, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (word != other))
    return row[-1]


def word_accuracy(recogniser: Recogniser, speech: Sequence[Tensor], texts: Sequence[str]) -> float:
    """1 - errors / words said; below 0 if there are more errors than words."""
    said = [text.split() for text in texts]
    errors = sum(word_errors(recogniser(x), words) for x, words in zip(speech, said, strict=True))
    return 1 - errors / sum(map(len, said))


@functools.lru_cache(maxsize=8)
def _cosines(mels: int) -> Array:
    k, m = np.arange(mels)[:, None], np.arange(1, _COEFFICIENTS + 1)
    return 2 / mels * np.cos(math.pi * m * (k + 0.5) / mels)
