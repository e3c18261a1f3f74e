"""Encoders: shapes, masks, padding that never changes a result, presets, checkpointing, half precision."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mmcore.models import CNN, RNN, Encoder, Transformer, masked_mean
from mmcore.models.cnn import _neighbours

Made = tuple[Encoder, Callable[[int, int], Tensor], int]


def _video(batch: int, steps: int) -> Tensor:
    return torch.rand(batch, steps, 3, 24, 20)


def _mel(batch: int, steps: int) -> Tensor:
    return torch.randn(batch, steps, 12)


def _ids(batch: int, steps: int) -> Tensor:
    return torch.randint(3, 259, (batch, steps))


# What makes it, what makes an input of (batch, steps), and how many input steps make one of the features.
ENCODERS: dict[str, tuple[Callable[[], Encoder], Callable[[int, int], Tensor], int]] = {
    "cnn": (lambda: CNN(16, widths=(4, 8), depth=(1, 2)), _video, 1),
    "cnn frames": (lambda: CNN(16, widths=(4, 8), temporal="none", grid=2), _video, 1),
    "cnn 3d": (lambda: CNN(16, widths=(4, 6), temporal="3d"), _video, 1),
    "gru": (lambda: RNN(16, num_mels=12, hidden=8, layers=2, stride=3), _mel, 3),
    "lstm": (lambda: RNN(16, num_mels=12, hidden=8, cell="lstm", stride=2), _mel, 2),
    "gru forwards": (lambda: RNN(16, num_mels=12, hidden=8, bidirectional=False, stride=1), _mel, 1),
    "transformer": (lambda: Transformer(16, heads=2, max_length=16), _ids, 1),
    "transformer causal": (
        lambda: Transformer(16, heads=2, max_length=16, causal=True, positions="sinusoidal"),
        _ids,
        1,
    ),
}
KINDS = pytest.mark.parametrize("kind", ENCODERS)


def _first(lengths: list[int], steps: int) -> Tensor:
    return torch.arange(steps) < torch.tensor(lengths)[:, None]


@KINDS
def test_gives_features_of_its_width(kind: str) -> None:
    make, inputs, stride = ENCODERS[kind]
    encoder = make()
    found = encoder(inputs(2, 7))
    assert found.data.shape == (2, -(-7 // stride), encoder.dim)
    assert found.mask is None
    found = encoder(inputs(2, 7), _first([7, 4], 7))
    assert found.mask is not None
    assert found.mask.sum(1).tolist() == [-(-7 // stride), -(-4 // stride)]


@KINDS
def test_padding_changes_nothing(kind: str) -> None:
    make, inputs, _ = ENCODERS[kind]
    encoder = make().double()
    x = inputs(3, 9)
    x = x.double() if x.is_floating_point() else x
    lengths = [9, 5, 0]
    padded = encoder(x, _first(lengths, 9))
    for row, length in enumerate(lengths[:2]):
        alone = encoder(x[row : row + 1, :length]).data[0]
        torch.testing.assert_close(padded.data[row, : len(alone)], alone)
    if x.is_floating_point():
        # What is in the padding is not read, forward or backward.
        x[1, 5:], x[2] = torch.nan, torch.nan
    dirty = encoder(x, _first(lengths, 9))
    torch.testing.assert_close(masked_mean(*dirty), masked_mean(*padded))
    masked_mean(*dirty).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())


def test_frames_know_their_neighbours_only_if_told_to() -> None:
    x = _video(1, 9)
    changed = x.clone()
    changed[:, 4] = 1 - changed[:, 4]
    for temporal, reach in (("none", {4}), ("conv", {2, 3, 4, 5, 6}), ("3d", {3, 4, 5})):
        encoder = CNN(16, widths=(4,), temporal=temporal)
        moved = (encoder(x).data != encoder(changed).data).any(2)[0]
        assert set(moved.nonzero().flatten().tolist()) == reach


def test_cnn_3d_is_a_convolution_of_three_dimensions() -> None:
    block = CNN(8, widths=(4,), temporal="3d").blocks[0]
    x = torch.randn(5, 4, 6, 6)  # one video of 5 frames
    weight = block.conv1.weight.view(4, 3, 4, 3, 3).transpose(1, 2)
    expected = torch.nn.functional.conv3d(x.transpose(0, 1)[None], weight, padding=1)[0].transpose(0, 1)
    torch.testing.assert_close(block.conv1(_neighbours(x, 5, None)), expected)


def test_causal_sees_no_later_position() -> None:
    ids, changed = _ids(1, 6), _ids(1, 6)
    changed[:, :3] = ids[:, :3]
    causal = Transformer(16, heads=2, causal=True)
    for mask in (None, torch.ones(1, 6, dtype=torch.bool)):
        torch.testing.assert_close(causal(ids, mask).data[:, :3], causal(changed, mask).data[:, :3])
    both_ways = Transformer(16, heads=2)
    assert not torch.equal(both_ways(ids).data[:, :3], both_ways(changed).data[:, :3])


def test_transformer_takes_vectors_too() -> None:
    encoder = Transformer(16, heads=2)
    ids = _ids(2, 5)
    torch.testing.assert_close(encoder(encoder.embedding(ids)).data, encoder(ids).data)


@KINDS
def test_checkpointing_keeps_the_gradients(kind: str) -> None:
    make, inputs, _ = ENCODERS[kind]
    encoder = make()
    x, mask = inputs(2, 7), _first([7, 4], 7)
    found = []
    for enabled in (False, True):
        encoder.gradient_checkpointing(enabled)
        encoder.zero_grad()
        masked_mean(*encoder(x, mask)).square().sum().backward()
        found.append([p.grad for p in encoder.parameters()])
    for plain, checkpointed in zip(*found, strict=True):
        assert (plain is None) == (checkpointed is None)
        if plain is not None:
            torch.testing.assert_close(checkpointed, plain)


def test_checkpointing_keeps_fewer_tensors() -> None:
    encoder = CNN(16, widths=(4, 8), depth=2)
    x = _video(2, 4)
    sizes = []
    for enabled in (False, True):
        encoder.gradient_checkpointing(enabled)
        kept = 0

        def keep(t: Tensor) -> Tensor:
            nonlocal kept
            kept += t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            encoder(x)
        sizes.append(kept)
    assert sizes[1] < sizes[0] / 2


@KINDS
def test_half_precision(kind: str) -> None:
    make, inputs, _ = ENCODERS[kind]
    encoder = make()
    x, mask = inputs(2, 7), _first([7, 4], 7)
    expected = masked_mean(*encoder(x, mask))
    with torch.autocast("cpu", torch.bfloat16):
        automatic = masked_mean(*encoder(x, mask))
    torch.testing.assert_close(automatic.float(), expected, atol=0.1, rtol=0.1)
    encoder.to(torch.bfloat16)
    half = masked_mean(*encoder(x.bfloat16() if x.is_floating_point() else x, mask))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("cls", [CNN, RNN, Transformer])
def test_presets(cls: type[Encoder]) -> None:
    assert cls.preset("tiny").dim == 128
    assert cls.preset("tiny", dim=64).config["dim"] == 64
    with torch.device("meta"):
        assert cls.preset("base").dim == 512
    with pytest.raises(ValueError, match="preset: expected one of tiny, base, got 'large'"):
        cls.preset("large")
    again = cls(**cls.preset("tiny").config)
    assert again.config == cls.preset("tiny").config


def test_masked_mean() -> None:
    x = torch.tensor([[[1.0], [3.0], [torch.nan]], [[torch.nan]] * 3], requires_grad=True)
    mean = masked_mean(x, _first([2, 0], 3))
    assert mean.tolist() == [[2.0], [0.0]]
    mean.sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [0.5, 0.5, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: CNN(8, temporal="2d"), ValueError, "temporal: expected one of conv, none, 3d"),
        (lambda: CNN(8, widths=(4, 8), depth=(1,)), ValueError, "depth: expected one for each of 2 widths"),
        (lambda: CNN(8, widths=(0,)), ValueError, "widths: expected 1 or more, got 0"),
        (lambda: CNN(8)(torch.zeros(1, 2, 4, 8, 8)), ValueError, r"video: expected shape \(B, T, 3, H, W\)"),
        (lambda: CNN(8)(torch.zeros(1, 2, 3, 8, 8).byte()), TypeError, "video: expected a floating-point"),
        (lambda: CNN(8)(_video(2, 3), torch.ones(2, 4).bool()), ValueError, r"mask: expected shape \(2, 3\)"),
        (lambda: CNN(8)(_video(2, 3), torch.ones(2, 3)), TypeError, "mask: expected a bool tensor"),
        (lambda: RNN(8, cell="rnn"), ValueError, "cell: expected one of gru, lstm, got 'rnn'"),
        (lambda: RNN(8, stride=0), ValueError, "stride: expected 1 or more"),
        (lambda: RNN(8)(_mel(1, 4)), ValueError, r"audio: expected shape \(B, T, 80\), got \(1, 4, 12\)"),
        (lambda: RNN(8)(_mel(1, 4).long()), TypeError, "audio: expected a floating-point tensor"),
        (lambda: Transformer(10, heads=4), ValueError, "dim: expected a multiple of heads=4, got 10"),
        (lambda: Transformer(8, positions="rotary"), ValueError, "positions: expected one of learned"),
        (lambda: Transformer(8, max_length=4)(_ids(1, 5)), ValueError, "5 positions are more than"),
        (lambda: Transformer(8)(_ids(1, 5)[0]), ValueError, r"text: expected ids \(B, L\)"),
        (lambda: Transformer(8)(torch.zeros(1, 5, 4)), ValueError, r"text: expected vectors \(B, L, 8\)"),
        (lambda: Transformer(8, vocabulary=9)(torch.tensor([[9]])), IndexError, "index out of range"),
    ],
)
def test_errors(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
