"""Timed text to tokens that keep their time; the tokenizer is the caller's, and one for bytes is built in."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mmcore.decoding.text_segment import TextSegment

__all__ = ["ByteTokenizer", "TimedTokens", "tokenize_segments"]


@dataclass(frozen=True, eq=False)
class TimedTokens:
    """Tokens of several segments, one after the other, each with the time of its segment.

    Attributes
    ----------
    ids : Tensor
        (tokens,) int64.
    start_seconds, end_seconds : Tensor
        (tokens,) float64: when the segment that the token belongs to begins and ends.
    segment_indices : Tensor
        (tokens,) int64: number of that segment.
    """

    ids: Tensor
    start_seconds: Tensor
    end_seconds: Tensor
    segment_indices: Tensor

    def __len__(self) -> int:
        return len(self.ids)


class ByteTokenizer:
    """Tokens are the bytes of the text in UTF-8, after three special ones; ids as those of ByT5.

    No text is too rare for it, and nothing has to be trained or loaded: 259 ids in all.

    Attributes
    ----------
    pad_token_id, eos_token_id, bos_token_id : int
        0, 1 and 2; byte ``b`` is ``b + 3``.
    vocab_size : int

    Examples
    --------
    >>> tokenizer = ByteTokenizer()
    >>> tokenizer.encode("né", add_special_tokens=True)
    [2, 113, 198, 172, 1]
    >>> tokenizer.decode([2, 113, 198, 172, 1, 0, 0])
    'né'
    """

    pad_token_id = 0
    eos_token_id = 1
    bos_token_id = 2
    vocab_size = 259
    _FIRST_BYTE = 3

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Ids of the text's bytes, with ``add_special_tokens`` between ``bos`` and ``eos``.

        Raises
        ------
        TypeError
            If ``text`` is no str.
        UnicodeEncodeError
            If it holds half of a surrogate pair.
        """
        if not isinstance(text, str):
            raise TypeError(f"text: expected a str, got {type(text).__name__}")
        ids = [byte + self._FIRST_BYTE for byte in text.encode("utf-8")]
        return [self.bos_token_id, *ids, self.eos_token_id] if add_special_tokens else ids

    __call__ = encode

    def decode(self, ids: Iterable[int] | Tensor, *, errors: str = "replace") -> str:
        """The text of the ids, without special ones.

        Parameters
        ----------
        ids : iterable of int, or 1-D integer Tensor
        errors : str
            What becomes of bytes that are no UTF-8, as of a model's output that ends within a letter: as for
            ``bytes.decode``.

        Raises
        ------
        ValueError
            If an id is out of range.
        TypeError
        """
        numbers = _integers(ids)
        for number in numbers:
            if not 0 <= number < self.vocab_size:
                raise ValueError(f"ids: expected 0 to {self.vocab_size - 1}, got {number}")
        content = bytes(n - self._FIRST_BYTE for n in numbers if n >= self._FIRST_BYTE)
        return content.decode("utf-8", errors)

    def __repr__(self) -> str:
        return "ByteTokenizer()"


def tokenize_segments(
    segments: Iterable[TextSegment],
    tokenizer: Callable[[str], Any] | Any,
    *,
    add_special_tokens: bool = False,
) -> TimedTokens:
    """Tokenize each segment by itself, so that every token has the time of its segment.

    Parameters
    ----------
    segments : iterable of TextSegment
        Such as a :class:`mmcore.TextDecoder`.
    tokenizer : callable or object with ``encode``
        What makes token ids of a str: a function that gives a sequence of ints (list, ndarray, 1-D Tensor); a
        ``tokenizers.Tokenizer``; a tokenizer of ``transformers``; a :class:`mmcore.ByteTokenizer`; anything
        that gives an object with ``ids`` or a mapping with "input_ids".
    add_special_tokens : bool
        Passed on to Hugging Face tokenizers and the ByteTokenizer: special tokens around every segment.

    Returns
    -------
    TimedTokens

    Raises
    ------
    ValueError
        If the tokenizer raises, or gives an id below 0 or above 63 bits; the message names the segment, and
        the tokenizer's error is its cause.
    TypeError
        If ``tokenizer`` is none, or what it gives is no sequence of ints.

    Examples
    --------
    >>> from mmcore import ByteTokenizer, TextSegment, tokenize_segments
    >>> tokens = tokenize_segments([TextSegment(0.5, 1.5, "Hi"), TextSegment(2.0, 3.0, "!")], ByteTokenizer())
    >>> tokens.ids
    tensor([ 75, 108,  36])
    >>> tokens.start_seconds
    tensor([0.5000, 0.5000, 2.0000], dtype=torch.float64)
    """
    encode = _encoder(tokenizer, bool(add_special_tokens))
    ids: list[int] = []
    numbers: list[int] = []
    starts: list[float] = []
    ends: list[float] = []
    for number, segment in enumerate(segments):
        where = f"segment {number}, {segment.start:.6g} s to {segment.end:.6g} s, {_shortened(segment.text)}"
        try:
            result = encode(segment.text)
        except Exception as error:
            raise ValueError(f"tokenizer: raised {type(error).__name__} for {where}: {error}") from error
        try:
            found = _integers(result)
        except TypeError as error:
            raise TypeError(
                f"tokenizer: expected a sequence of ints, got {_shortened(result)} for {where}"
            ) from error
        if any(not 0 <= n < 1 << 63 for n in found):
            raise ValueError(f"tokenizer: gave an id that is negative or takes more than 63 bits for {where}")
        ids += found
        numbers += [number] * len(found)
        starts += [segment.start] * len(found)
        ends += [segment.end] * len(found)
    return TimedTokens(
        torch.tensor(ids, dtype=torch.int64, device="cpu"),
        torch.tensor(starts, dtype=torch.float64, device="cpu"),
        torch.tensor(ends, dtype=torch.float64, device="cpu"),
        torch.tensor(numbers, dtype=torch.int64, device="cpu"),
    )


def _shortened(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _encoder(tokenizer: Any, add_special_tokens: bool) -> Callable[[str], Any]:
    """The function from text to what holds its ids."""
    packages = {cls.__module__.partition(".")[0] for cls in type(tokenizer).__mro__}
    encode = getattr(tokenizer, "encode", None)
    if callable(encode) and (
        isinstance(tokenizer, ByteTokenizer) or packages & {"tokenizers", "transformers"}
    ):
        return lambda text: encode(text, add_special_tokens=add_special_tokens)
    if add_special_tokens:
        raise ValueError(
            "add_special_tokens: can be passed on to Hugging Face tokenizers and ByteTokenizer alone,"
            f" not to {type(tokenizer).__name__}"
        )
    if callable(tokenizer):
        return tokenizer  # type: ignore[no-any-return]
    if callable(encode):
        return encode  # type: ignore[no-any-return]
    raise TypeError(
        f"tokenizer: expected a callable or an object with encode, got {type(tokenizer).__name__}"
    )


def _integers(result: Any) -> list[int]:
    if isinstance(result, (str, bytes)):
        raise TypeError(f"expected ints, got {type(result).__name__}")
    if isinstance(result, Mapping):
        result = result.get("input_ids")
    result = getattr(result, "ids", result)
    if hasattr(result, "tolist"):
        result = result.tolist()
    if not isinstance(result, (Sequence, Iterable)):
        raise TypeError(f"expected ints, got {type(result).__name__}")
    numbers = list(result)
    if any(isinstance(n, bool) for n in numbers):
        raise TypeError("expected ints, got bool")
    return [operator.index(n) for n in numbers]
