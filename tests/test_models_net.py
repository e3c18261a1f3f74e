"""MultiTaskNet: it learns, runs in half precision and under torch.compile, and takes clips as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from clip_media import write_events
from torch import Tensor

import mmcore
from mmcore.models import (
    CNN,
    RNN,
    ClassificationHead,
    Fusion,
    MultiTaskNet,
    RegressionHead,
    Transformer,
    clip_inputs,
)

TARGETS = {"kind": torch.tensor([1, 2, 0, 3]), "place": torch.rand(4, 2)}
AVAILABLE = torch.tensor([[True, True, True], [True, False, True], [True, True, False], [True, True, True]])


def _first(lengths: list[int], steps: int) -> Tensor:
    return torch.arange(steps) < torch.tensor(lengths)[:, None]


MASKS = {"video": _first([4, 4, 3, 1], 4), "audio": _first([8, 2, 8, 5], 8), "text": _first([6, 3, 0, 1], 6)}


def _inputs() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "video": torch.rand(4, 4, 3, 16, 16),
        "audio": torch.randn(4, 8, 10),
        "text": torch.randint(3, 259, (4, 6)),
    }


def make_net(weighting: str = "fixed", reference: str | None = "video", **options: Any) -> MultiTaskNet:
    torch.manual_seed(0)
    tasks = {"kind": mmcore.Task.cross_entropy(), "place": mmcore.Task.smooth_l1()}
    return MultiTaskNet(
        {
            "video": CNN(16, widths=(8, 8)),
            "audio": RNN(12, num_mels=10, hidden=8),
            "text": Transformer(8, heads=2, layers=1),
        },
        Fusion({"video": 16, "audio": 12, "text": 8}, 16, reference=reference),
        {"kind": ClassificationHead(16, 4, hidden=16), "place": RegressionHead(16, 2)},
        mmcore.nn.MultiTaskLoss(tasks, weighting, **options),
    )


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize(("weighting", "reference"), [("uncertainty", "video"), ("pcgrad", None)])
def test_learns_a_batch_by_heart(weighting: str, reference: str | None) -> None:
    net = make_net(weighting, reference)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    inputs, found = _inputs(), []
    for _ in range(30):
        total, losses = net.loss(net(inputs, MASKS, AVAILABLE), TARGETS)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        found.append(sum(float(loss.detach()) for loss in losses.values()))
    assert found[-1] < found[0] / 3
    assert set(losses) == {"kind", "place"}


def test_missing_labels_and_modalities() -> None:
    net = make_net().eval()
    inputs = _inputs()
    outputs = net(inputs, MASKS, AVAILABLE)
    assert {name: tuple(x.shape) for name, x in outputs.items()} == {"kind": (4, 4), "place": (4, 2)}
    some = {"place": torch.tensor([True, False, False, True])}
    places = TARGETS["place"].masked_fill(~some["place"][:, None], torch.nan)
    _, losses = net.loss(outputs, {**TARGETS, "place": places}, some)
    expected = torch.nn.functional.smooth_l1_loss(outputs["place"][[0, 3]], TARGETS["place"][[0, 3]])
    torch.testing.assert_close(losses["place"], expected)
    without = {name: x for name, x in inputs.items() if name != "audio"}
    column = torch.tensor([True, False, True])
    torch.testing.assert_close(net(without, MASKS), net(inputs, MASKS, column.expand(4, 3)))


@pytest.mark.parametrize("reference", [None, "video", "audio"])
def test_a_clip_alone_gives_what_it_gives_in_a_batch(reference: str | None) -> None:
    net = make_net("fixed", reference).double()
    inputs = {n: x.double() if x.is_floating_point() else x for n, x in _inputs().items()}
    together = net(inputs, MASKS)
    for b in range(4):
        lengths = {name: int(mask[b].sum()) for name, mask in MASKS.items()}
        alone = net({name: x[b : b + 1, : lengths[name]] for name, x in inputs.items() if lengths[name]})
        for task, output in alone.items():
            torch.testing.assert_close(output[0], together[task][b])


def test_balanced_gradients_get_the_features() -> None:
    net = make_net("pcgrad", None)
    outputs = net(_inputs(), MASKS, AVAILABLE)
    assert outputs["features"].shape == (4, 16)
    net.loss(outputs, TARGETS)[0].backward()
    assert net.criterion.coefficients is not None
    assert all(p.grad is not None for p in net.parameters())


def test_contributions() -> None:
    net = make_net().eval()
    found = net.contributions(_inputs(), MASKS, AVAILABLE)
    assert found.names == net.modalities == ("video", "audio", "text")
    assert found.clip.shape == (4, 3)
    assert found.steps is not None
    assert found.steps.shape == (4, 4, 3)
    torch.testing.assert_close(found.clip.sum(1), torch.ones(4))
    assert (found.clip[~AVAILABLE] == 0).all()
    assert not found.clip.requires_grad


def test_checkpointing_keeps_the_gradients() -> None:
    net = make_net()
    found = []
    for enabled in (False, True):
        net.gradient_checkpointing(enabled).zero_grad()
        net.loss(net(_inputs(), MASKS, AVAILABLE), TARGETS)[0].backward()
        found.append([p.grad for p in net.parameters()])
    torch.testing.assert_close(found[0], found[1])


def test_half_precision() -> None:
    net = make_net("uncertainty")
    expected = net.loss(net(_inputs(), MASKS, AVAILABLE), TARGETS)[0]
    with torch.autocast("cpu", torch.bfloat16):
        total = net.loss(net(_inputs(), MASKS, AVAILABLE), TARGETS)[0]
    total.backward()
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, expected, atol=0.05, rtol=0.05)
    net.to(torch.bfloat16)
    half = {name: x.bfloat16() if x.is_floating_point() else x for name, x in _inputs().items()}
    outputs = net(half, MASKS, AVAILABLE)
    assert all(x.dtype == torch.bfloat16 for x in outputs.values())
    torch.testing.assert_close(net.loss(outputs, TARGETS)[0].float(), expected, atol=0.05, rtol=0.05)


@pytest.mark.usefixtures("_fresh_compiler")
def test_compiles_as_one_graph() -> None:
    net = make_net()

    def step(inputs: dict[str, Tensor], available: Tensor) -> Tensor:
        return net.loss(net(inputs, MASKS, available), TARGETS)[0]

    # nn.GRU enters a graph only where that is allowed; its loop over time becomes part of it.
    with torch._dynamo.config.patch(allow_rnn=True):
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        found = compiled(_inputs(), AVAILABLE)
    expected = step(_inputs(), AVAILABLE)
    torch.testing.assert_close(found, expected)
    wanted = list(net.parameters())
    torch.testing.assert_close(torch.autograd.grad(found, wanted), torch.autograd.grad(expected, wanted))


def test_reference_backend_gives_the_same_gradients() -> None:
    net = make_net()
    found = torch.autograd.grad(
        net.loss(net(_inputs(), MASKS, AVAILABLE), TARGETS)[0], list(net.parameters())
    )
    with mmcore.backend("reference"):
        total = net.loss(net(_inputs(), MASKS, AVAILABLE), TARGETS)[0]
        expected = torch.autograd.grad(total, list(net.parameters()))
    torch.testing.assert_close(found, expected)


def _loss(**tasks: mmcore.Task) -> mmcore.nn.MultiTaskLoss:
    return mmcore.nn.MultiTaskLoss(tasks)


@pytest.mark.parametrize("name", ["tiny", "base"])
def test_presets(name: str) -> None:
    loss = _loss(kind=mmcore.Task.cross_entropy(), place=mmcore.Task.mse())
    with torch.device("meta"):
        net = MultiTaskNet.preset(name, {"kind": 5, "place": 2}, loss, num_mels=12, reference="video")
    assert net.modalities == ("video", "audio", "text")
    assert isinstance(net.heads["kind"], ClassificationHead)
    assert isinstance(net.heads["place"], RegressionHead)
    outputs = net({"video": torch.rand(2, 3, 3, 32, 32, device="meta")})
    assert outputs["kind"].shape == (2, 5)


LOSS_A = _loss(a=mmcore.Task.cross_entropy())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: MultiTaskNet({"video": torch.nn.Flatten()}, Fusion({"video": 8}, 8), {}, LOSS_A),
            TypeError,
            r"encoders\['video'\]: expected a module with an int attribute dim",
        ),
        (
            lambda: MultiTaskNet({"video": CNN(4)}, Fusion({"video": 8}, 8), {}, LOSS_A),
            ValueError,
            "fusion: expected the encoders' names and widths",
        ),
        (
            lambda: MultiTaskNet({"video": CNN(8)}, Fusion({"video": 8}, 8), {}, LOSS_A),
            ValueError,
            "loss: expected tasks named",
        ),
        (
            lambda: MultiTaskNet(
                {"video": CNN(8)},
                Fusion({"video": 8}, 8),
                {"features": RegressionHead(8, 1)},
                _loss(features=mmcore.Task.mse()),
            ),
            ValueError,
            "heads: 'features' is what forward calls",
        ),
        (
            lambda: make_net()({"touch": torch.zeros(1)}),
            ValueError,
            "inputs: expected some of video, audio, text",
        ),
        (lambda: make_net()(_inputs(), {"touch": MASKS["text"]}), ValueError, "masks: expected some of"),
        (lambda: make_net()(_inputs(), None, AVAILABLE[:2]), ValueError, "available: expected shape"),
        (
            lambda: MultiTaskNet.preset("huge", {"a": 2}, LOSS_A),
            ValueError,
            "preset: expected one of",
        ),
        (
            lambda: MultiTaskNet.preset("tiny", {"b": 2}, LOSS_A),
            ValueError,
            "loss: expected tasks",
        ),
        (
            lambda: MultiTaskNet.preset("tiny", {"a": 2}, LOSS_A, modalities=("smell",)),
            ValueError,
            "modalities: expected some of",
        ),
    ],
)
def test_errors(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# ---- clips


@pytest.fixture(scope="module")
def batch(cached_media: Callable[[str, Callable[[Path], object]], Path]) -> mmcore.ClipBatch:
    full = cached_media("models.mkv", write_events)
    silent = cached_media("models-silent.mkv", lambda path: write_events(path, audio=None))
    options: dict[str, Any] = {
        "video": {"transform": mmcore.FrameTransform(resize=(16, 16)), "num_frames": 4},
        "audio": {"num_channels": 1, "log_mel": mmcore.LogMelSettings.whisper()},
        "text": {"tokenizer": mmcore.ByteTokenizer()},
    }
    clips = [
        mmcore.read_clip(full, 0.5, 1.5, **options),
        mmcore.read_clip(silent, 0.5, 1.0, **options),
        mmcore.read_clip(full, 0.0, 0.4, **options),  # no word is spoken yet
    ]
    return mmcore.collate_clips(clips)


def test_clips_go_in_as_they_are_collated(batch: mmcore.ClipBatch) -> None:
    inputs, masks, available = clip_inputs(batch)
    assert available.tolist() == [[True, True, True], [True, False, True], [True, True, False]]
    assert inputs["video"].shape == (3, 4, 3, 16, 16)
    assert inputs["video"].dtype == torch.float32
    assert inputs["video"].max() <= 1
    assert inputs["audio"].shape == (3, 100, 80)
    assert masks["audio"].sum(1).tolist() == [100, 0, 40]
    assert masks["text"].sum(1).tolist() == [8, 4, 0]
    net = MultiTaskNet.preset("tiny", {"a": 2}, LOSS_A, reference="video")
    net.loss(net(*clip_inputs(batch)), {"a": torch.tensor([0, 1, 0])})[0].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_clips_for_a_network_of_other_modalities(batch: mmcore.ClipBatch) -> None:
    inputs, _, available = clip_inputs(batch, ("text", "video"))
    assert list(inputs) == ["text", "video"]
    assert available.tolist() == [[True, True], [True, True], [False, True]]


def test_waveforms(batch: mmcore.ClipBatch) -> None:
    inputs, masks, _ = clip_inputs(batch, waveform=True)
    assert inputs["audio"].shape == (3, 16000)
    assert masks["audio"].sum(1).tolist() == [16000, 0, 6400]


def test_clips_that_cannot_be_fed(cached_media: Callable[[str, Callable[[Path], object]], Path]) -> None:
    path = cached_media("models.mkv", write_events)
    clips = mmcore.collate_clips([mmcore.read_clip(path, 0.5, 1.0)])
    with pytest.raises(ValueError, match="audio: the clips have samples but no spectrogram"):
        clip_inputs(clips)
    with pytest.raises(ValueError, match="text: the clips have words but no tokens"):
        clip_inputs(clips, ("video", "text"))
    with pytest.raises(ValueError, match="modalities: expected some of video, audio, text, got smell"):
        clip_inputs(clips, ("smell",))
    only = mmcore.collate_clips([mmcore.read_clip(path, 0.5, 1.0, audio=False, text=False)])
    inputs, _, available = clip_inputs(only)
    assert list(inputs) == ["video"]
    assert available.tolist() == [[True, False, False]]
    nhwc = {"transform": mmcore.FrameTransform(layout="NHWC")}
    other = mmcore.collate_clips([mmcore.read_clip(path, 0.5, 1.0, video=nhwc, audio=False, text=False)])
    with pytest.raises(ValueError, match="video: expected clips of layout 'NCHW', got 'NHWC'"):
        clip_inputs(other)
