"""What the fusion op is for: each use of docs/fusion.md equals the formula one would write in plain torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mmcore
from mmcore.nn import WeightedFusion

B, T, D = 3, 4, 8


@pytest.fixture(params=["reference", "cpu"], autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    torch.manual_seed(0)
    with mmcore.backend(request.param):
        yield request.param


def leaves(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def assert_same(ours: Tensor, plain: Tensor, inputs: Sequence[Tensor]) -> None:
    """The same values, and the same gradients of all inputs."""
    torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-12)
    upstream = torch.randn_like(ours)
    grads, plain_grads = (
        torch.autograd.grad(out, inputs, upstream, retain_graph=True) for out in (ours, plain)
    )
    for i, (grad, expected) in enumerate(zip(grads, plain_grads, strict=True)):
        torch.testing.assert_close(
            grad, expected, rtol=1e-9, atol=1e-11, msg=lambda text, i=i: f"input {i}: {text}"
        )


@pytest.mark.parametrize("flat", [False, True])
def test_weighted_sum(flat: bool) -> None:
    shape = (B, D) if flat else (B, T, D)
    image, audio, text, w = inputs = leaves(shape, shape, shape, (3,))
    ours = mmcore.weighted_fusion([image, audio, text], w)
    assert_same(ours, w[0] * image + w[1] * audio + w[2] * text, inputs)


@pytest.mark.parametrize("masked", [False, True])
def test_softmax_attention(masked: bool) -> None:
    """Each step asks with a query of its own which modality to take; values are the modalities."""
    query, wk = leaves((B, T, D), (D, D))
    xs = leaves(*[(B, T, D)] * 3)
    mask = torch.rand(B, T, 3) < 0.7
    mask[..., 0] |= ~mask.any(-1)
    keys = torch.stack([x @ wk for x in xs], 2)
    logits = (query[:, :, None] * keys).sum(-1) / D**0.5  # (B, T, M)
    ours = mmcore.weighted_fusion(xs, logits, mode="softmax", mask=mask if masked else None)
    plain = F.scaled_dot_product_attention(
        query[:, :, None], keys, torch.stack(xs, 2), attn_mask=mask[:, :, None] if masked else None
    )
    assert_same(ours, plain[:, :, 0], [query, wk, *xs])


def test_gated_multimodal_unit_of_two() -> None:
    """``h = z * tanh(W_v v) + (1 - z) * tanh(W_t t)`` with ``z = sigmoid(W_z [v, t])``."""
    fusion = WeightedFusion((5, 3), D, weighting="channel_gate", project=True, activation=torch.tanh).double()
    v, t, wz = inputs = leaves((B, 5), (B, 3), (D, 8))
    with torch.no_grad():
        fusion.gate[0].weight[:D] = wz  # l_1 = W_z [v, t], l_2 = 0, so that z = sigmoid(l_1 - l_2)
    wv, wt = (layer.weight for layer in fusion.projections)
    bv, bt = (layer.bias for layer in fusion.projections)
    z = torch.sigmoid(torch.cat([v, t], -1) @ wz.T)
    plain = z * torch.tanh(v @ wv.T + bv) + (1 - z) * torch.tanh(t @ wt.T + bt)
    ours = fusion([v, t])
    assert_same(ours, plain, [v, t, wv, wt, bv, bt])
    (dw,) = torch.autograd.grad(fusion([v, t]).sin().sum(), fusion.gate[0].weight)
    (expected,) = torch.autograd.grad(plain.sin().sum(), inputs[2])
    torch.testing.assert_close(dw[:D], expected)
    torch.testing.assert_close(dw[D:], -expected)  # training keeps that form


def test_gated_multimodal_unit_of_many() -> None:
    """``h = sum_i z_i * tanh(W_i x_i)`` with ``z_i = sigmoid(Z_i [x_1, ..., x_k])``."""
    fusion = WeightedFusion(
        (5, 3, D), D, weighting="channel_gate", mode="sum", project=True, activation=torch.tanh
    ).double()
    nn.init.normal_(fusion.gate[0].weight)
    xs = leaves((B, T, 5), (B, T, 3), (B, T, D))
    gates = torch.sigmoid(fusion.gate(torch.cat(xs, -1))).split(D, -1)
    plain = sum(z * torch.tanh(p(x)) for z, p, x in zip(gates, fusion.projections, xs, strict=True))
    assert_same(fusion(xs), plain, [*xs, *fusion.parameters()])


def test_masked_mean_of_a_set() -> None:
    """DeepSets: rho(mean over the elements that are there of phi(x)), whatever their order."""
    phi, rho = nn.Linear(D, 6).double(), nn.Linear(6, 2).double()
    elements = leaves(*[(B, D)] * 5)
    there = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0], [0, 0, 0, 0, 1]], dtype=torch.bool)
    ours = rho(mmcore.weighted_fusion([phi(x) for x in elements], mode="normalized", mask=there))
    stacked = phi(torch.stack(elements, 1)) * there[..., None]
    plain = rho(stacked.sum(1) / there.sum(1, keepdim=True))
    assert_same(ours, plain, [*elements, *phi.parameters(), *rho.parameters()])
    order = torch.tensor([3, 0, 4, 2, 1])
    again = mmcore.weighted_fusion([phi(elements[i]) for i in order], mode="normalized", mask=there[:, order])
    torch.testing.assert_close(rho(again), ours, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_elmo_layer_mixing(layer_norm: bool) -> None:
    """``gamma * sum_j softmax(s)_j h_j`` over the 13 layers of an encoder (12 and the embeddings)."""
    mix = WeightedFusion(13, scale=True, norm="layer_norm" if layer_norm else None, affine=False).double()
    nn.init.normal_(mix.weight)
    nn.init.constant_(mix.scale, 1.7)
    layers = leaves(*[(B, T, D)] * 13)
    hidden = torch.stack([F.layer_norm(h, (D,)) if layer_norm else h for h in layers])
    plain = mix.scale * (torch.softmax(mix.weight, 0)[:, None, None, None] * hidden).sum(0)
    assert_same(mix(layers), plain, [*layers, mix.weight, mix.scale])


def test_video_audio_and_text_on_one_grid() -> None:
    """4 s of video features at 8 Hz, audio at 50 Hz and 11 text tokens: the result has the video's steps."""
    video, audio, text, w = inputs = leaves((B, 32, D), (B, 200, D), (B, 11, D), (B, 32, 3))
    mask = torch.ones(B, 32, 3, dtype=torch.bool)
    mask[0, :, 2] = False  # no text
    mask[1, 20:, 1] = False  # the sound stops at 2.5 s
    ours = mmcore.weighted_fusion(
        [video, audio, text], w, mode="softmax", mask=mask, norm="layer_norm", align=[None, "mean", "nearest"]
    )

    a = F.layer_norm(video, (D,))
    b = F.adaptive_avg_pool1d(F.layer_norm(audio, (D,)).mT, 32).mT
    c = F.interpolate(F.layer_norm(text, (D,)).mT, 32, mode="nearest-exact").mT
    weights = torch.softmax(w.masked_fill(~mask, -torch.inf), -1)
    assert_same(ours, (weights[..., None] * torch.stack([a, b, c], 2)).sum(2), inputs)

    # and to a grid of its own, 10 Hz, linearly
    ours = mmcore.weighted_fusion([video, audio, text], align="linear", length=40)
    up = [F.interpolate(x.mT, 40, mode="linear", align_corners=False).mT for x in (video, audio, text)]
    assert_same(ours, up[0] + up[1] + up[2], [video, audio, text])
