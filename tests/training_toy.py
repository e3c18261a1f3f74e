"""A small model with two tasks, some of whose labels are missing, for tests of the trainer."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import mmcore
from mmcore.recipes import StepBatches, Trainer, TrainSettings


class ToyData(Dataset[dict[str, Tensor]]):
    """40 samples; with ``noise`` each read draws from all three random generators."""

    def __init__(self, noise: float = 0.0, length: int = 40) -> None:
        generator = torch.Generator().manual_seed(7)
        self.x = torch.randn(length, 6, generator=generator)
        self.kind = (self.x[:, :3].sum(1) > 0).long() + (self.x[:, 0] > 1).long()
        self.place = self.x[:, 3:5].tanh()
        # Unevenly: the first half of each batch holds most of the labels of "place".
        self.labelled = torch.rand(length, generator=generator) < torch.linspace(0.9, 0.1, length)
        self.noise = noise

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        draws = torch.rand(()) + float(np.random.rand()) + random.random()
        place = torch.where(self.labelled[i], self.place[i], torch.nan)
        x = self.x[i] + self.noise * draws
        return {"x": x, "kind": self.kind[i], "place": place, "labelled": self.labelled[i]}


class ToyNet(nn.Module):
    def __init__(self, weighting: Any = "fixed", *, dropout: float = 0.0, seed: int = 3) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.encoders = nn.ModuleDict({"x": nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout))})
        self.heads = nn.ModuleDict({"kind": nn.Linear(16, 3), "place": nn.Linear(16, 2)})
        # One weight far from the others: a mistake in what is divided by what shows.
        tasks = {
            "kind": mmcore.Task.cross_entropy(weight=torch.tensor([1.0, 4.0, 0.5])),
            "place": mmcore.Task.mse(),
        }
        self.criterion = mmcore.nn.MultiTaskLoss(tasks, weighting, weights={"place": 3.0})

    def forward(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        features = self.encoders["x"](x)
        return {name: head(features) for name, head in self.heads.items()}, features


def compute_loss(model: ToyNet, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    outputs, features = model(batch["x"])
    targets = {"kind": batch["kind"], "place": batch["place"]}
    balanced: dict[str, Any] = {}
    if isinstance(model.criterion.weighting, mmcore.nn.GradientWeighting):
        balanced = {"features": features, "heads": model.heads}
    total, losses = model.criterion(outputs, targets, {"place": batch["labelled"]}, **balanced)
    assert isinstance(losses, dict)
    return total, losses


@torch.no_grad()
def evaluate(model: ToyNet) -> dict[str, float]:
    data = ToyData()
    outputs, _ = model(data.x)
    torch.rand(3)  # must not change the training
    accuracy = (outputs["kind"].argmax(1) == data.kind).double().mean()
    return {"accuracy": accuracy.item(), "error": (outputs["place"] - data.place).abs().mean().item()}


def make_trainer(
    folder: Path,
    model: nn.Module | None = None,
    *,
    workers: int = 0,
    noise: float = 0.3,
    loss: Callable[[Any, Any], tuple[Tensor, dict[str, Tensor]]] = compute_loss,
    evaluation: Callable[[Any], dict[str, float]] | None = evaluate,
    monitor: str | None = "accuracy",
    mode: str = "max",
    batches: Any = None,
    **settings: Any,
) -> Trainer:
    chosen = {"steps": 12, "batch_size": 8, "learning_rate": 0.02, "evaluate_every": 4, "seed": 5} | settings
    s = TrainSettings(**chosen)
    return Trainer(
        ToyNet(dropout=0.2) if model is None else model,
        loss,
        StepBatches(ToyData(noise), s.batch_size, s.seed, workers) if batches is None else batches,
        s,
        folder=folder,
        evaluate=evaluation,
        monitor=monitor,
        mode=mode,
        progress=False,
    )


def train_until_killed(folder: Path, step: int) -> None:
    """Train, and be killed when half of the checkpoint of ``step`` is written; in a process of its own."""
    save = torch.save

    def torn(state: Any, file: Any) -> None:
        save(state, file)
        if "optimization" in state and state["step"] == step:
            file.truncate(file.tell() // 2)
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = torn
    make_trainer(folder, checkpoint_every=4).fit()
