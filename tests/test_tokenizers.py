"""Tokens of segments: every kind of tokenizer, times that stay with the tokens, tokenizers that fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mmcore
from mmcore import ByteTokenizer, TextDecoder, TextSegment, tokenize_segments

SEGMENTS = [
    TextSegment(0.5, 1.5, "the cat sat"),
    TextSegment(1.0, 2.25, "on\nthe mat"),
    TextSegment(3.0, 3.0, ""),
    TextSegment(4.0, 5.0, "the cat"),
]
COUNTS = [3, 3, 0, 2]  # words of each
VOCABULARY = ["[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat", "on", "mat"]
IDS = [3, 4, 5, 6, 3, 7, 3, 4]


@pytest.fixture(scope="module")
def trained() -> Any:
    """A word tokenizer, with special tokens around a text if asked for."""
    import tokenizers
    from tokenizers import models, pre_tokenizers, processors

    vocabulary = {word: number for number, word in enumerate(VOCABULARY)}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return tokenizer


def words(text: str) -> list[int]:
    return [VOCABULARY.index(word) for word in text.split()]


class WithIds:
    def __init__(self, ids: list[int]) -> None:
        self.ids = ids


class OnlyEncode:
    def encode(self, text: str) -> list[int]:
        return words(text)


@pytest.mark.parametrize(
    "tokenizer",
    [
        words,
        lambda text: tuple(words(text)),
        lambda text: np.array(words(text), dtype=np.int32),
        lambda text: torch.tensor(words(text), dtype=torch.int64),
        lambda text: iter(words(text)),
        lambda text: WithIds(words(text)),
        lambda text: {"input_ids": words(text), "attention_mask": [1]},
        OnlyEncode(),
        None,
    ],
)
def test_every_kind_of_tokenizer(tokenizer: Any, trained: Any) -> None:
    tokens = tokenize_segments(iter(SEGMENTS), trained if tokenizer is None else tokenizer)
    assert tokens.ids.tolist() == IDS
    assert len(tokens) == len(IDS)
    assert tokens.segment_indices.tolist() == [i for i, n in enumerate(COUNTS) for _ in range(n)]
    assert (tokens.ids.dtype, tokens.segment_indices.dtype) == (torch.int64, torch.int64)
    assert tokens.start_seconds.dtype == tokens.end_seconds.dtype == torch.float64
    for times, field in ((tokens.start_seconds, "start"), (tokens.end_seconds, "end")):
        assert times.tolist() == [getattr(SEGMENTS[i], field) for i in tokens.segment_indices.tolist()]


def test_special_tokens(trained: Any) -> None:
    tokens = tokenize_segments(SEGMENTS[2:], trained, add_special_tokens=True)
    assert tokens.ids.tolist() == [1, 2, 1, 3, 4, 2]
    assert tokens.start_seconds.tolist() == [3.0] * 2 + [4.0] * 4
    tokens = tokenize_segments(SEGMENTS[2:], ByteTokenizer(), add_special_tokens=True)
    assert tokens.ids.tolist() == [2, 1, 2, *(b + 3 for b in b"the cat"), 1]
    with pytest.raises(ValueError, match=r"add_special_tokens.*OnlyEncode"):
        tokenize_segments(SEGMENTS, OnlyEncode(), add_special_tokens=True)


def test_tokenizers_of_transformers(trained: Any) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=trained, unk_token="[UNK]")
    assert tokenize_segments(SEGMENTS, tokenizer).ids.tolist() == IDS
    found = tokenize_segments(SEGMENTS[3:], tokenizer, add_special_tokens=True)
    assert found.ids.tolist() == [1, 3, 4, 2]
    assert tokenize_segments(SEGMENTS[3:], lambda text: tokenizer(text)).ids.tolist() == [1, 3, 4, 2]


def test_of_a_decoder(tmp_path: Any) -> None:
    clip = mmcore.write_sample(tmp_path / "sample.mp4", seconds=2, width=64, height=64)
    tokenizer = ByteTokenizer()
    tokens = tokenize_segments(TextDecoder(clip.path), tokenizer)
    for number, event in enumerate(clip.events):
        mine = tokens.segment_indices == number
        assert tokenizer.decode(tokens.ids[mine]) == event.word
        assert tokens.start_seconds[mine].unique().tolist() == [event.seconds]


def test_no_segments() -> None:
    tokens = tokenize_segments([], words)
    assert len(tokens) == 0
    assert tokens.start_seconds.dtype == torch.float64


def test_a_tokenizer_that_raises() -> None:
    def failing(text: str) -> list[int]:
        if "mat" in text:
            raise KeyError("mat")
        return words(text)

    where = r"KeyError for segment 1, 1 s to 2.25 s, 'on\\nthe mat'"
    with pytest.raises(ValueError, match=where) as caught:
        tokenize_segments(SEGMENTS, failing)
    assert isinstance(caught.value.__cause__, KeyError)
    long = TextSegment(0, 1, "mat " * 100)
    with pytest.raises(ValueError, match=r"segment 0, 0 s to 1 s, 'mat .*\.\.\.") as caught:
        tokenize_segments([long], failing)
    assert len(str(caught.value)) < 200

    def interrupted(text: str) -> list[int]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenize_segments(SEGMENTS, interrupted)


@pytest.mark.parametrize(
    "result", [None, 3, "abc", b"abc", [1.5], [[1, 2]], [True], {"ids": 3}, torch.ones(2, 2), torch.tensor(3)]
)
def test_tokenizers_that_give_no_ids(result: Any) -> None:
    tokenizer: Callable[[str], Any] = lambda text: result  # noqa: E731
    with pytest.raises(TypeError, match=r"sequence of ints, got .* for segment 0"):
        tokenize_segments(SEGMENTS, tokenizer)


def test_other_wrong_arguments() -> None:
    with pytest.raises(TypeError, match="expected a callable or an object with encode, got int"):
        tokenize_segments(SEGMENTS, 3)
    for wrong in (1 << 80, -1):
        with pytest.raises(ValueError, match="63 bits for segment 0"):
            tokenize_segments(SEGMENTS, lambda text, wrong=wrong: [wrong])


@given(st.text(st.characters(exclude_categories=["Cs"])), st.booleans())
def test_bytes_there_and_back(text: str, special: bool) -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text, add_special_tokens=special)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(torch.tensor([*ids, 0, 0], dtype=torch.int64)) == text
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert len(ids) == len(text.encode()) + 2 * special


def test_byte_tokenizer() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer("a") == tokenizer.encode("a") == [ord("a") + 3]
    assert tokenizer.decode(tokenizer.encode("né")[:-1]) == "n\ufffd"
    with pytest.raises(UnicodeDecodeError):
        tokenizer.decode(tokenizer.encode("né")[:-1], errors="strict")
    for ids in ([259], [-1], torch.tensor([5, 300])):
        with pytest.raises(ValueError, match="expected 0 to 258"):
            tokenizer.decode(ids)
    with pytest.raises(TypeError):
        tokenizer.decode([1.5])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="expected a str, got bytes"):
        tokenizer.encode(b"a")  # type: ignore[arg-type]
    with pytest.raises(UnicodeEncodeError):
        tokenizer.encode("\ud800")
