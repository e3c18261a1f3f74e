"""Speech made by espeak-ng, the material that recipes train on and are judged by.

espeak-ng is a small formant synthesizer. It is met through :mod:`ctypes` in the shared library of the package
``espeakng-loader``. It is under the GPL: hence an extra of its own
(``mmcore[speech]``), and no part of mmcore.

Its wave generator keeps state from one utterance to the next (the phase, the slow flutter of the pitch), so
that the same text would sound a little different each time. The library is therefore loaded for each
utterance and unloaded again: what is said depends on the arguments alone, in whatever order, process or
worker. That takes about 5 ms, and leaves nothing that a fork could break.
"""

from __future__ import annotations

import _ctypes
import ctypes
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmcore.decoding.audio_resampling import resample
from mmcore.decoding.fork_safe_lock import ForkSafeLock
from mmcore.errors import UnsupportedError

__all__ = ["PAUSE", "Phoneme", "Speech", "phonemize", "synthesize", "variants", "voices"]

PAUSE = "_:"
"""espeak-ng's name of the pause that ends a clause."""

_RATES = (80, 450)
_PITCHES = (0, 99)


class Phoneme(NamedTuple):
    """A phoneme by espeak-ng's mnemonic ("T", "'i:", or :data:`PAUSE`), and when it sounds, in seconds."""

    name: str
    start: float
    end: float


class Speech(NamedTuple):
    """Synthesized speech.

    ``samples`` is float32 (n,), -1 to 1. ``phonemes`` join without gaps from the first sound to the last
    sample; they are empty unless they were asked for.
    """

    samples: Tensor
    sample_rate: int
    phonemes: tuple[Phoneme, ...]

    def resample(self, sample_rate: int) -> Speech:
        """Give the same speech at another rate in hertz, by FFmpeg's swresample."""
        if sample_rate == self.sample_rate:
            return self
        blocks = resample(iter([self.samples.numpy()[None]]), 0, 0, None, self.sample_rate, sample_rate)
        samples = torch.from_numpy(np.concatenate(list(blocks), axis=1)[0])
        return self._replace(samples=samples, sample_rate=sample_rate)


def synthesize(
    text: str,
    *,
    voice: str = "en-us",
    variant: str | None = None,
    pitch: int = 50,
    rate: int = 175,
    phonemes: bool = False,
) -> Speech:
    """Speak ``text`` with espeak-ng.

    The same arguments give the same samples, bit for bit, on one machine. Threads take turns; worker
    processes, forked or not, need no care.

    Parameters
    ----------
    text : str
        Plain words and punctuation; markup is spoken as it stands.
    voice : str
        One of :func:`voices`.
    variant : str, optional
        Another speaker of the same language: one of :func:`variants`, as "f3" or "m1".
    pitch : int
        0 to 99.
    rate : int
        Words a minute, 80 to 450.
    phonemes : bool
        Whether to return which phoneme sounds when.

    Raises
    ------
    ValueError
        If there is no such voice or variant, a number is out of range, or the text has nothing to speak.
    ImportError
        If espeakng-loader is not installed.

    Examples
    --------
    >>> from mmcore.recipes.speech import synthesize
    >>> speech = synthesize("three", phonemes=True)
    >>> speech.samples.dtype, speech.sample_rate, [phoneme.name for phoneme in speech.phonemes][:3]
    (torch.float32, 22050, ['T', 'r', "'i:"])
    """
    encoded = _encode(text)
    _check_range("pitch", pitch, _PITCHES)
    _check_range("rate", rate, _RATES)
    heard = _Recording()
    with _espeak(voice, variant) as (library, sample_rate):
        library.espeak_SetParameter(_PARAMETER_PITCH, pitch, 0)
        library.espeak_SetParameter(_PARAMETER_RATE, rate, 0)
        callback = _SynthCallback(heard)  # named: it must outlive the call
        library.espeak_SetSynthCallback(callback)
        library.espeak_Synth.argtypes = _SYNTH_ARGUMENTS
        status = library.espeak_Synth(
            encoded, len(encoded) + 1, 0, _BY_CHARACTER, 0, _TEXT_IS_UTF8, None, None
        )
    if status != 0:
        raise UnsupportedError(f"espeak-ng refused to speak {text!r} (status {status})")
    if all(name == PAUSE for name, _ in heard.phonemes):
        raise ValueError(f"text: expected something to speak, got {text!r}")
    samples = torch.frombuffer(heard.samples, dtype=torch.int16).float() / 32768
    ends = [start for _, start in heard.phonemes[1:]] + [len(samples)]
    timed = (
        Phoneme(name, start / sample_rate, end / sample_rate)
        for (name, start), end in zip(heard.phonemes, ends, strict=True)
    )
    return Speech(samples, sample_rate, tuple(timed) if phonemes else ())


def phonemize(text: str, *, voice: str = "en-us") -> tuple[str, ...]:
    """Phonemes of ``text`` by the pronunciation dictionary and rules of ``voice``, without speaking it.

    The names are those of :class:`Phoneme`, each clause ended by :data:`PAUSE`.

    Raises
    ------
    ValueError, ImportError
        As :func:`synthesize`.

    Examples
    --------
    >>> from mmcore.recipes.speech import phonemize
    >>> phonemize("three, two")
    ('T', 'r', "'i:", '_:', 't', "'u:", '_:')
    """
    rest = ctypes.c_char_p(_encode(text))
    names: list[str] = []
    with _espeak(voice, None) as (library, _):
        library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        while rest.value is not None:  # each call takes one clause
            clause = library.espeak_TextToPhonemes(ctypes.byref(rest), _TEXT_IS_UTF8, ord(_SEPARATOR) << 8)
            found = clause.decode().replace(" ", _SEPARATOR).split(_SEPARATOR)
            if any(found):
                names += [name for name in found if name] + [PAUSE]
    if not names:
        raise ValueError(f"text: expected something to speak, got {text!r}")
    return tuple(names)


def voices() -> tuple[str, ...]:
    """Voices that espeak-ng has, by their language tags ("en-us", "de", ...), in alphabetical order."""
    return tuple(sorted(_voice_files()))


@cache
def variants() -> tuple[str, ...]:
    """Variants that a voice may have, in alphabetical order."""
    return tuple(sorted(path.name for path in (_data_path() / "voices" / "!v").iterdir()))


@cache
def _voice_files() -> dict[str, str]:
    """Language tags, and the voice's file by which espeak-ng finds each ("en-gb": "gmw/en")."""
    files: dict[str, str] = {}
    with _espeak(None, None) as (library, _):
        library.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_Voice))
        listed = library.espeak_ListVoices(None)
        i = 0
        while listed[i]:
            voice = listed[i].contents
            tag = voice.languages[1:].decode()  # the first byte is a priority
            files.setdefault(tag, voice.identifier.decode())
            i += 1
    return files


# ---- espeak-ng's speak_lib.h

_OUTPUT_SYNCHRONOUS = 2  # samples go to a callback in the calling thread
_INITIALIZE_PHONEME_EVENTS = 0x0001
_INITIALIZE_DONT_EXIT = 0x8000  # report errors instead of ending the process
_PARAMETER_RATE, _PARAMETER_PITCH = 1, 3
_BY_CHARACTER = 1
_TEXT_IS_UTF8 = 1
_EVENT_LIST_TERMINATED, _EVENT_PHONEME = 0, 7
_SEPARATOR = "\x1f"  # between phonemes; in no phoneme's name


_SYNTH_ARGUMENTS = (  # text, size, position, its kind, end, flags, identifier, user data
    ctypes.c_char_p,
    ctypes.c_size_t,
    ctypes.c_uint,
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.c_uint,
    ctypes.c_void_p,
    ctypes.c_void_p,
)


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("phoneme", ctypes.c_char * 8),
    )


class _Voice(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_char_p),
        ("identifier", ctypes.c_char_p),
        ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte),
        ("variant", ctypes.c_ubyte),
        ("xx1", ctypes.c_ubyte),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    )


_SynthCallback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


class _Recording:
    """The callback: gathers int16 samples, and (name, sample) of each phoneme."""

    def __init__(self) -> None:
        self.samples = bytearray()
        self.phonemes: list[tuple[str, int]] = []

    def __call__(self, wave: Any, count: int, events: Any) -> int:
        if wave and count:
            self.samples += ctypes.string_at(wave, 2 * count)
        i = 0
        while events[i].type != _EVENT_LIST_TERMINATED:
            name = events[i].phoneme.decode() if events[i].type == _EVENT_PHONEME else ""
            if name not in ("", "_"):  # "_" only marks a clause's end, after its pause
                self.phonemes.append((name, events[i].sample))
            i += 1
        return 0  # go on


_turn = ForkSafeLock()


@contextmanager
def _espeak(voice: str | None, variant: str | None) -> Iterator[tuple[Any, int]]:
    """espeak-ng as freshly loaded, with a voice set, and its sample rate in hertz."""
    loader = _loader()
    if voice is not None:
        _check_voice(voice, variant)
    with _turn:
        library = ctypes.CDLL(loader.get_library_path())
        try:
            sample_rate = library.espeak_Initialize(
                _OUTPUT_SYNCHRONOUS,
                0,
                str(_data_path()).encode(),
                _INITIALIZE_PHONEME_EVENTS | _INITIALIZE_DONT_EXIT,
            )
            if sample_rate <= 0:
                raise UnsupportedError(f"espeak-ng could not read its data in {_data_path()}")
            library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # of the noise in whispering voices
            if voice is not None:
                name = _voice_files()[voice] + ("" if variant is None else f"+{variant}")
                if library.espeak_SetVoiceByName(name.encode()) != 0:
                    raise UnsupportedError(f"espeak-ng cannot load its voice {name!r}")
            yield library, sample_rate
        finally:
            library.espeak_Terminate()
            _unload(library)


def _unload(library: ctypes.CDLL) -> None:
    if sys.platform == "win32":
        _ctypes.FreeLibrary(library._handle)
    else:
        _ctypes.dlclose(library._handle)


def _loader() -> Any:
    try:
        return importlib.import_module("espeakng_loader")
    except ImportError as error:
        raise ImportError("speech needs the package espeakng-loader: pip install 'mmcore[speech]'") from error


def _data_path() -> Path:
    return Path(_loader().get_data_path())


def _check_voice(voice: str, variant: str | None) -> None:
    if voice not in voices():
        raise ValueError(f"voice: expected one of {', '.join(voices())}; got {voice!r}")
    if variant is not None and variant not in variants():
        raise ValueError(f"variant: expected one of {', '.join(variants())}; got {variant!r}")


def _check_range(name: str, value: int, allowed: tuple[int, int]) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if not allowed[0] <= value <= allowed[1]:
        raise ValueError(f"{name}: expected {allowed[0]} to {allowed[1]}, got {value}")


def _encode(text: str) -> bytes:
    if not isinstance(text, str):
        raise TypeError(f"text: expected a str, got {type(text).__name__}")
    if "\0" in text:
        raise ValueError("text: a NUL character cannot be spoken")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"text: {error}") from None
