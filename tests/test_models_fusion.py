"""Fusion and heads: alignment, masks, missing modalities, contributions."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

import mmcore
from mmcore.models import ClassificationHead, EmbeddingHead, Features, Fusion, RegressionHead

DIMS = {"video": 6, "audio": 5, "text": 4}
MODES = ("softmax", "normalized", "sum")
WEIGHTINGS = ("uniform", "scalar", "gate", "step_gate", "channel_gate")


def _first(lengths: list[int], steps: int) -> Tensor:
    return torch.arange(steps) < torch.tensor(lengths)[:, None]


def _features(dtype: torch.dtype = torch.float32) -> dict[str, Features]:
    torch.manual_seed(0)
    return {
        "video": Features(torch.randn(3, 4, 6, dtype=dtype), _first([4, 3, 4], 4)),
        "audio": Features(torch.randn(3, 16, 5, dtype=dtype), _first([16, 12, 16], 16)),
        "text": Features(torch.randn(3, 7, 4, dtype=dtype), _first([7, 2, 0], 7)),
    }


def _made(dtype: torch.dtype = torch.float32, **options: object) -> Fusion:
    fusion = Fusion(DIMS, 8, **options).to(dtype)  # type: ignore[arg-type]
    for p in fusion.parameters():  # gates begin as zeros, which would hide what they read
        torch.nn.init.normal_(p, std=0.5)
    return fusion


AVAILABLE = torch.tensor([[True, True, True], [True, False, True], [True, True, True]])


@pytest.mark.parametrize("reference", [None, "video", "audio"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_is_the_weighted_fusion_of_pooled_or_aligned_features(weighting: str, reference: str | None) -> None:
    fusion = _made(weighting=weighting, reference=reference, align="nearest")
    features = _features()
    found = fusion(features, AVAILABLE)
    if reference is None:
        means = []
        for m, f in enumerate(features.values()):
            assert f.mask is not None
            there = f.mask & AVAILABLE[:, m, None]
            rows = [x[t].sum(0) / max(int(t.sum()), 1) for x, t in zip(f.data, there, strict=True)]
            means.append(torch.stack(rows))
        mask = AVAILABLE.clone()
        mask[2, 2] = False  # a text without tokens
        torch.testing.assert_close(found, fusion.fusion(means, mask))
        return
    aligned = [_nearest(f, features[reference]) for f in features.values()]
    mask = torch.stack([f.mask for f in aligned if f.mask is not None], 2) & AVAILABLE[:, None]
    assert isinstance(found, Features)
    torch.testing.assert_close(found.data, fusion.fusion([f.data for f in aligned], mask))
    assert found.mask is not None
    assert torch.equal(found.mask, mask.any(2))


def _nearest(source: Features, reference: Features) -> Features:
    """One sample and step after the other, as it is meant."""
    assert source.mask is not None
    assert reference.mask is not None
    batch, steps = reference.mask.shape
    data = torch.zeros(batch, steps, source.data.shape[2])
    mask = torch.zeros(batch, steps, dtype=torch.bool)
    for b in range(batch):
        length, own = int(reference.mask[b].sum()) or steps, int(source.mask[b].sum())
        for t in range(length if own else 0):
            i = int((t + 0.5) * own / length)
            data[b, t], mask[b, t] = source.data[b, i], True
    return Features(data, mask)


@pytest.mark.parametrize("align", ["nearest", "mean"])
@pytest.mark.parametrize(("steps", "own"), [(4, 16), (5, 7), (7, 5), (6, 6), (3, 1)])
def test_aligns_as_the_op_does(align: str, steps: int, own: int) -> None:
    reference, source = torch.zeros(2, steps, 6), torch.randn(2, own, 5)
    fusion = _made(reference="video", align=align, weighting="scalar", norm=None)
    found = fusion({"video": Features(reference), "audio": Features(source)})
    brought = mmcore.weighted_fusion([source], align=[align], length=steps)
    torch.testing.assert_close(
        found.data, fusion({"video": Features(reference), "audio": Features(brought)}).data
    )


@pytest.mark.parametrize("reference", [None, "video", "audio"])
@pytest.mark.parametrize("align", ["nearest", "mean"])
def test_a_sample_alone_gives_what_it_gives_in_a_batch(align: str, reference: str | None) -> None:
    fusion = _made(torch.float64, reference=reference, align=align)
    features = _features(torch.float64)
    together = fusion(features)
    for b in range(3):
        alone = {}
        for name, f in features.items():
            assert f.mask is not None
            length = int(f.mask[b].sum())
            if length:
                alone[name] = Features(f.data[b : b + 1, :length])
        found = fusion(alone)
        if reference is None:
            torch.testing.assert_close(found[0], together[b])
        else:
            torch.testing.assert_close(found.data[0], together.data[b, : found.data.shape[1]])
            assert found.mask.all()
            assert not together.mask[b, found.data.shape[1] :].any()


def test_without_its_reference_a_sample_has_the_others() -> None:
    features = _features()
    features["video"] = Features(features["video"].data, _first([4, 0, 4], 4))
    found = _made(reference="video")(features)
    assert found.mask.all()
    assert found.data[1].abs().sum() > 0


@pytest.mark.parametrize("align", ["nearest", "mean"])
def test_padding_never_enters(align: str) -> None:
    fusion = _made(reference="video", align=align)
    features = _features()
    clean = fusion(features, AVAILABLE)
    for f in features.values():
        assert f.mask is not None
        f.data.masked_fill_(~f.mask[..., None], torch.nan)
    features["audio"].data[1] = torch.nan  # not available
    dirty = fusion(features, AVAILABLE)
    assert torch.equal(dirty.data, clean.data)
    dirty.data.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in fusion.parameters())


def test_left_out_is_missing() -> None:
    features = _features()
    for reference in (None, "video"):
        fusion = _made(reference=reference)
        without = AVAILABLE.clone()
        without[:, 1] = False
        expected = fusion(features, without)
        found = fusion({name: features[name] for name in ("text", "video")}, AVAILABLE)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)


def test_modality_dropout_only_in_training() -> None:
    fusion = _made(modality_dropout=0.5)
    features = _features()
    assert not torch.equal(fusion(features), fusion(features))
    fusion.eval()
    assert torch.equal(fusion(features), fusion(features))


@pytest.mark.parametrize(
    ("weighting", "mode", "norm", "reference"),
    list(
        itertools.product(WEIGHTINGS, ["softmax", "normalized", "sum"], [None, "layer_norm"], [None, "video"])
    ),
)
def test_contributions_are_those_of_the_op(
    weighting: str, mode: str, norm: str | None, reference: str | None
) -> None:
    fusion = _made(
        torch.float64, weighting=weighting, mode=mode, norm=norm, reference=reference, align="mean"
    )
    features = _features(torch.float64)
    fusion.fusion.track_contributions()
    fused = fusion(features, AVAILABLE)
    expected = fusion.fusion.contributions().feature
    fusion.fusion.track_contributions(False)
    found = fusion.contributions(features, AVAILABLE)
    assert found.names == ("video", "audio", "text")
    torch.testing.assert_close(found.clip, expected)
    if reference is None:
        assert found.steps is None
        return
    assert found.steps is not None
    assert found.steps.shape == (3, 4, 3)
    torch.testing.assert_close(found.steps.sum(2), fused.mask.double())
    # A sample's shares are its steps', by how much of the result's energy each step has.
    energy = fused.data.square().sum(2, keepdim=True)
    torch.testing.assert_close(found.clip, (found.steps * energy).sum(1) / energy.sum(1))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Fusion([6, 5], 8), TypeError, "dims: expected a mapping"),
        (lambda: Fusion(DIMS, 8, reference="touch"), ValueError, "reference: expected one of video, audio"),
        (lambda: Fusion(DIMS, 8, align="cubic"), ValueError, "align: expected one of nearest"),
        (lambda: Fusion(DIMS, 8, weighting="best"), ValueError, "weighting"),
        (lambda: Fusion(DIMS, 8)({}), ValueError, "features: expected some of video, audio, text, got none"),
        (lambda: Fusion(DIMS, 8)({"x": Features(torch.zeros(1, 1, 6))}), ValueError, "got x"),
        (
            lambda: Fusion(DIMS, 8, reference="video")({"text": Features(torch.zeros(1, 1, 4))}),
            ValueError,
            "features: the reference, 'video', must be there",
        ),
        (lambda: Fusion(DIMS, 8)(_features(), AVAILABLE[:, :2]), ValueError, "available: expected shape"),
        (lambda: Fusion(DIMS, 8)(_features(), AVAILABLE.float()), TypeError, "available: expected a bool"),
        (lambda: ClassificationHead(8, 0), ValueError, "outputs: expected 1 or more, got 0"),
    ],
)
def test_errors(call: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()  # type: ignore[operator]


def test_heads() -> None:
    x, mask = torch.randn(2, 5, 8), _first([5, 2], 5)
    head = ClassificationHead(8, 3, hidden=16)
    assert head(x[:, 0]).shape == (2, 3)
    torch.testing.assert_close(head(x, mask)[1], head(x[1:, :2].mean(1))[0])
    assert ClassificationHead(8, 3, pool=False)(x, mask).shape == (2, 5, 3)
    assert RegressionHead(8, 2)(x).shape == (2, 2)
    embedding = EmbeddingHead(8, 6)(x, mask)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))


def test_reference_backend_agrees() -> None:
    fusion = _made(reference="video", align="mean")
    found = fusion(_features(), AVAILABLE)
    with mmcore.backend("reference"):
        expected = fusion(_features(), AVAILABLE)
    torch.testing.assert_close(found.data, expected.data)
