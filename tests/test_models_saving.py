"""Saved models come back exactly; damaged, foreign and newer files raise errors that say what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mmcore
from mmcore.models import (
    CNN,
    RNN,
    ClassificationHead,
    EmbeddingHead,
    Features,
    Fusion,
    MultiTaskNet,
    RegressionHead,
    Transformer,
    load,
    save,
)

INPUTS = {"video": torch.rand(2, 3, 3, 16, 16), "text": torch.randint(3, 259, (2, 5))}
TASKS = {
    "kind": mmcore.Task.cross_entropy(weight=torch.tensor([1.0, 2.0, 3.0]), label_smoothing=0.1),
    "place": mmcore.Task.huber(delta=0.5),
}


def _net(weighting: Any = "uncertainty", **options: Any) -> MultiTaskNet:
    return MultiTaskNet(
        {"video": CNN(8, widths=(4, 8)), "text": Transformer(8, heads=2, layers=1, positions="sinusoidal")},
        Fusion({"video": 8, "text": 8}, 8, reference="video", weighting="channel_gate"),
        {"kind": ClassificationHead(8, 3, hidden=8), "place": RegressionHead(8, 2)},
        mmcore.nn.MultiTaskLoss(TASKS, weighting, **options),
    )


@pytest.mark.parametrize(
    "weighting",
    [
        "uncertainty",
        mmcore.nn.DWA(temperature=3.0),
        mmcore.nn.STCH(mu=0.5, preference=[1.0, 2.0]),
        mmcore.nn.PCGrad(seed=5, head_gradients="weighted"),
        mmcore.nn.UPGrad([1.0, 3.0]),
        mmcore.nn.RLW(seed=3),
    ],
    ids=lambda w: w if isinstance(w, str) else type(w).__name__,
)
def test_round_trip_is_exact(weighting: Any, tmp_path: Path) -> None:
    net = _net(weighting, weights={"place": 0.25}).eval()
    for p in net.parameters():
        nn.init.normal_(p)
    assert save(net, tmp_path / "new" / "folder") == tmp_path / "new" / "folder"
    again = load(tmp_path / "new" / "folder")
    assert isinstance(again, MultiTaskNet)
    assert not again.training
    state, found = net.state_dict(), again.state_dict()
    assert state.keys() == found.keys()
    torch.testing.assert_close(found, state, rtol=0, atol=0, equal_nan=True)
    for a, b in zip(net(INPUTS).values(), again(INPUTS).values(), strict=True):
        assert torch.equal(a, b)
    targets = {"kind": torch.tensor([0, 2]), "place": torch.zeros(2, 2)}
    losses = [n.loss(n(INPUTS), targets)[0] for n in (net, again)]
    assert torch.equal(losses[0], losses[1])
    assert repr(again.criterion) == repr(net.criterion)
    assert getattr(again.criterion.weighting, "temperature", None) == getattr(
        net.criterion.weighting, "temperature", None
    )


@pytest.mark.parametrize(
    "model",
    [
        CNN(8, widths=(4,), depth=(2,), temporal="3d", grid=2),
        RNN(8, num_mels=5, hidden=4, layers=2, cell="lstm", stride=2),
        Transformer(8, heads=2, causal=True),
        EmbeddingHead(8, 4, hidden=6),
    ],
    ids=lambda m: type(m).__name__,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_part_alone_and_in_its_dtype(model: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    model.to(dtype)
    save(model, tmp_path)
    again = load(tmp_path)
    assert type(again) is type(model)
    assert again.config == model.config
    for (name, a), (other, b) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert name == other
        assert a.dtype == b.dtype == dtype
        assert torch.equal(a, b)


def test_saving_again_replaces(tmp_path: Path) -> None:
    save(CNN(8, widths=(4,)), tmp_path)
    save(RNN(4), tmp_path)
    assert isinstance(load(tmp_path), RNN)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


class Bag(nn.Module):
    """An encoder of one's own."""

    def __init__(self, dim: int, sizes: dict[str, int]) -> None:
        super().__init__()
        self.config = {"dim": dim, "sizes": sizes}
        self.dim = dim
        self.embedding = nn.EmbeddingBag(sizes["words"], dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Features:
        return Features(self.embedding(x)[:, None])


def test_classes_of_ones_own(tmp_path: Path) -> None:
    net = MultiTaskNet(
        {"text": Bag(4, {"words": 9})},
        Fusion({"text": 4}, 4),
        {"a": ClassificationHead(4, 2)},
        mmcore.nn.MultiTaskLoss({"a": mmcore.Task.cross_entropy()}),
    ).eval()
    save(net, tmp_path)
    with pytest.raises(mmcore.UnsupportedError, match=r"Bag is no class of mmcore\.models; give it: load"):
        load(tmp_path)
    again = load(tmp_path, classes={"Bag": Bag})
    ids = {"text": torch.tensor([[1, 2]])}
    assert torch.equal(again(ids)["a"], net(ids)["a"])


def test_what_cannot_be_described(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Linear: Linear has no config"):
        save(nn.Linear(2, 2), tmp_path)
    bag = Bag(4, {"words": 9})
    bag.config["sizes"] = torch.zeros(1)
    with pytest.raises(TypeError, match=r"Bag\.sizes: expected what JSON holds, or a module, got Tensor"):
        save(bag, tmp_path)
    net = _net()
    net.criterion = mmcore.nn.MultiTaskLoss([mmcore.Task.mse()])
    with pytest.raises(TypeError, match=r"MultiTaskNet\.loss: expected a loss whose tasks have names"):
        save(net, tmp_path)
    assert not list(tmp_path.iterdir())


def _edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return edit


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda f: (f / "model.safetensors").unlink(), FileNotFoundError, "model.safetensors: no such file"),
        (lambda f: (f / "config.json").unlink(), FileNotFoundError, "expected a folder that save"),
        (lambda f: (f / "config.json").write_text("{"), mmcore.MMCoreError, "no description of a model"),
        (lambda f: (f / "config.json").write_text("[]"), mmcore.MMCoreError, "no description of a model"),
        (_edited(lambda c: c.pop("model")), mmcore.MMCoreError, "no description of a model: KeyError"),
        (
            _edited(lambda c: c.update(version=99)),
            mmcore.UnsupportedError,
            "version 1, got 'mmcore.models' 99",
        ),
        (_edited(lambda c: c.update(format="other")), mmcore.UnsupportedError, "got 'other' 1"),
        (
            _edited(lambda c: c["model"]["config"].update(hidden=7)),
            mmcore.MMCoreError,
            "cannot make the model: .*hidden",
        ),
        (_edited(lambda c: c["model"]["config"].update(dim=12)), mmcore.MMCoreError, "size mismatch"),
        (_edited(lambda c: c["model"]["config"].update(depth=[2])), mmcore.MMCoreError, "Missing key"),
        (_edited(lambda c: c.update(model="CNN")), mmcore.MMCoreError, "expected a description of a module"),
        (lambda f: (f / "model.safetensors").write_bytes(b"12345678"), mmcore.MMCoreError, "does not fit"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), mmcore.MMCoreError, "does not fit"),
    ],
)
def test_damaged_folders(
    damage: Callable[[Path], object], error: type[Exception], message: str, tmp_path: Path
) -> None:
    save(CNN(8, widths=(4,)), tmp_path)
    damage(tmp_path)
    with pytest.raises(error, match=message):
        load(tmp_path)


def test_wrong_strategy(tmp_path: Path) -> None:
    save(_net(), tmp_path)
    loss = ("model", "config", "loss", "config", "weighting")

    def change(config: dict[str, Any]) -> None:
        for key in loss:
            config = config[key]
        config["class"] = "WeightedFusion"

    _edited(change)(tmp_path)
    with pytest.raises(mmcore.UnsupportedError, match=r"WeightedFusion is none of mmcore\.nn's strategies"):
        load(tmp_path)
