"""Two gloo processes train as one process does with the joint batch; they stop, resume and fail together."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import signal
import socket
from pathlib import Path

import pytest
import torch
from distributed_toy import QUIET, STRATEGIES, own_loss, run_all
from training_toy import ToyData, ToyNet, make_trainer

from mmcore.recipes import History, StepBatches
from mmcore.recipes.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of what two processes wrote together."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=run_all, args=(rank, port, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(150)
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
    for rank in range(2):
        report = folder / f"rank{rank}.txt"
        assert report.exists(), f"process {rank} hung or died"
        assert report.read_text() == "", report.read_text()
    assert [process.exitcode for process in processes] == [-signal.SIGKILL, 0]  # see train_until_killed
    return folder


def last(folder: Path) -> dict[str, object]:
    return load_checkpoint(folder / "checkpoint" / "last.pt")


def assert_alike(folder: Path, alone: Path) -> None:
    """Same losses at every step, same weights at the end, but for rounding."""
    together, single = History.read(folder), History.read(alone)
    assert len(together.steps) == len(single.steps) == 12
    for a, b in zip(together.steps, single.steps, strict=True):
        assert a.losses == pytest.approx(b.losses, rel=1e-5, abs=1e-6)
        assert a.total == pytest.approx(b.total, rel=1e-5, abs=1e-5)
        assert a.gradient_norm == pytest.approx(b.gradient_norm, rel=1e-5)
    for name, value in last(alone)["model"].items():  # type: ignore[attr-defined]
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(last(folder)["model"][name], value, rtol=1e-4, atol=1e-5)  # type: ignore[index]


@pytest.mark.parametrize("weighting", STRATEGIES)
def test_same_as_one_process_with_the_joint_batch(two: Path, tmp_path: Path, weighting: str) -> None:
    make_trainer(tmp_path, ToyNet(weighting), **QUIET).fit()
    assert_alike(two / weighting, tmp_path)


def test_several_batches_in_a_step(two: Path, tmp_path: Path) -> None:
    make_trainer(tmp_path, ToyNet("uncertainty"), accumulate=3, **QUIET).fit()
    assert_alike(two / "accumulated", tmp_path)


def test_the_processes_labels_are_uneven() -> None:
    # Otherwise the tests above would pass with a plain mean of the processes' losses too.
    stream = StepBatches(ToyData(), 8, seed=5)(0)
    counts = [next(stream)["labelled"].view(2, 4).sum(1).tolist() for _ in range(12)]
    assert sum(a != b for a, b in counts) > 6
    assert any(min(pair) == 0 for pair in counts)


def test_losses_of_ones_own(two: Path, tmp_path: Path) -> None:
    make_trainer(tmp_path, ToyNet(), loss=own_loss, **QUIET).fit()
    assert_alike(two / "own", tmp_path)


def test_resumed_is_as_if_never_interrupted(two: Path) -> None:
    cut, whole = last(two / "cut"), last(two / "whole")
    for name, value in whole["model"].items():  # type: ignore[attr-defined]
        assert torch.equal(value, cut["model"][name])  # type: ignore[index]
    a, b = History.read(two / "cut"), History.read(two / "whole")
    assert [r[:5] for r in a.steps] == [r[:5] for r in b.steps]
    assert a.evaluations == b.evaluations


def test_sharded_model(two: Path, tmp_path: Path) -> None:
    make_trainer(tmp_path, ToyNet("uncertainty"), noise=0.0, ema=0.9).fit()
    assert_alike(two / "fsdp", tmp_path)
    whole, cut = last(two / "fsdp"), last(two / "fsdp_cut")
    for name, value in whole["model"].items():  # type: ignore[attr-defined]
        assert torch.equal(value, cut["model"][name])  # type: ignore[index]
    sizes = json.loads((two / "sizes.json").read_text())
    full = dict(ToyNet().named_parameters())
    assert sizes["encoders.x.0.weight"] == full["encoders.x.0.weight"].numel() // 2


def test_sharded_checkpoint_serves_one_process(two: Path, tmp_path: Path) -> None:
    shutil.copytree(two / "fsdp", tmp_path / "run")
    more = make_trainer(
        tmp_path / "run",
        ToyNet("uncertainty", seed=9),
        noise=0.0,
        ema=0.9,
        steps=14,
        evaluation=lambda m: {"accuracy": 0},
    )
    assert len(more.fit(resume=True).steps) == 14


def test_error_of_one_reaches_all(two: Path) -> None:
    assert (two / "failing0.txt").read_text() == "LookupError: no data"
    assert (
        "evaluation in the first process failed: LookupError: no data" in (two / "failing1.txt").read_text()
    )


def test_killed_while_it_writes_a_checkpoint(two: Path, tmp_path: Path) -> None:
    whole = make_trainer(tmp_path)
    expected = whole.fit()
    checkpoints = two / "killed" / "checkpoint"
    assert list(checkpoints.glob(".*.part"))  # it was in the middle
    assert last(two / "killed")["step"] == 4
    again = make_trainer(two / "killed", ToyNet(dropout=0.2, seed=99))
    resumed = again.fit(resume=True)
    assert [r[:5] for r in resumed.steps] == [r[:5] for r in expected.steps]
    assert resumed.evaluations == expected.evaluations
    assert all(torch.equal(v, again.model.state_dict()[name]) for name, v in whole.model.state_dict().items())
    assert not list(checkpoints.glob(".*.part"))
