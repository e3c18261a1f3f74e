"""What two processes do together in tests of distributed training; each scenario leaves files to compare."""

from __future__ import annotations

import json
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from training_toy import ToyNet, compute_loss, make_trainer, train_until_killed

from mmcore.recipes.processes import gather_batch, joint_mean, process_count, process_rank

STRATEGIES = (
    "fixed", "uncertainty", "dwa", "rlw", "uw_so", "geometric_mean", "imtl_l", "stch", "famo", "gradnorm",
    "mgda", "pcgrad", "cagrad", "imtl_g", "aligned_mtl", "upgrad",
)  # fmt: skip
QUIET: dict[str, Any] = {"noise": 0.0, "monitor": None, "evaluation": None}


def run_all(rank: int, port: int, folder: Path) -> None:
    """Do every scenario as process ``rank`` of two, and write ``rank{n}.txt``: empty, or what went wrong."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    problem = ""
    try:
        for scenario in (strategies, own_losses, interrupted, sharded, failing_evaluation):
            scenario(folder)
    except BaseException:
        problem = traceback.format_exc()
    (folder / f"rank{rank}.txt").write_text(problem)
    if rank == 0 and not problem:
        dist.destroy_process_group()
        for name in ("RANK", "WORLD_SIZE"):
            del os.environ[name]
        train_until_killed(folder / "killed", 8)


def strategies(folder: Path) -> None:
    for name in STRATEGIES:
        make_trainer(folder / name, ToyNet(name), **QUIET).fit()
    make_trainer(folder / "accumulated", ToyNet("uncertainty"), accumulate=3, workers=1, **QUIET).fit()


def own_losses(folder: Path) -> None:
    make_trainer(folder / "own", ToyNet(), loss=own_loss, **QUIET).fit()


def own_loss(model: ToyNet, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """A masked mean, and a loss that compares all samples of the joint batch with each other."""
    outputs, features = model(batch["x"])
    error = joint_mean((outputs["place"] - batch["place"].nan_to_num()).abs().sum(1), batch["labelled"])
    every = gather_batch(features)
    alike = (every @ every.T).logsumexp(1).mean()
    return error + 0.1 * alike, {"error": error, "alike": alike}


def interrupted(folder: Path) -> None:
    """One of the processes gets a signal; both stop at the same step, and go on exactly."""

    def options() -> dict[str, Any]:
        return {"model": ToyNet("uncertainty", dropout=0.3), "ema": 0.9, "patience": 9}

    make_trainer(folder / "whole", **options()).fit()
    calls = iter(range(99))

    def loss(model: ToyNet, batch: Any) -> Any:
        if next(calls) == 5 and process_rank() == 1:
            signal.raise_signal(signal.SIGTERM)
        return compute_loss(model, batch)

    # Only the first process writes to its folder; the other one's is another disk.
    mine = folder / ("cut" if process_rank() == 0 else "elsewhere")
    history = make_trainer(mine, loss=loss, **options()).fit()
    assert (history.stopped, len(history.steps)) == ("interrupted", 6)
    make_trainer(mine, **options()).fit(resume=True)
    assert not (folder / "elsewhere").exists()


def sharded(folder: Path) -> None:
    options: dict[str, Any] = {"noise": 0.0, "sharding": "fsdp", "ema": 0.9}

    def counting(model: Any) -> dict[str, float]:
        outputs, _ = model(torch.ones(2, 6))
        return {"accuracy": outputs["kind"].sum().item()}

    model = ToyNet("uncertainty")
    trainer = make_trainer(folder / "fsdp", model, evaluation=counting, **options)
    trainer.fit()
    sizes = {name: p.to_local().numel() for name, p in model.named_parameters() if hasattr(p, "to_local")}
    if process_rank() == 0:
        (folder / "sizes.json").write_text(json.dumps(sizes))
    half = make_trainer(
        folder / "fsdp_cut", ToyNet("uncertainty"), loss=stopping(6), evaluation=counting, **options
    )
    assert half.fit().stopped == "interrupted"
    again = make_trainer(folder / "fsdp_cut", ToyNet("uncertainty", seed=9), evaluation=counting, **options)
    again.fit(resume=True)


def stopping(step: int) -> Callable[[Any, Any], Any]:
    calls = iter(range(99))

    def loss(model: ToyNet, batch: Any) -> Any:
        if next(calls) == step:
            signal.raise_signal(signal.SIGINT)
        return compute_loss(model, batch)

    return loss


def failing_evaluation(folder: Path) -> None:
    """The first process's error reaches both: the other does not wait for ever."""

    def evaluation(model: Any) -> dict[str, float]:
        raise LookupError("no data")

    try:
        make_trainer(folder / "failing", evaluation=evaluation).fit()
    except Exception as error:
        (folder / f"failing{process_rank()}.txt").write_text(f"{type(error).__name__}: {error}")
    assert process_count() == 2
