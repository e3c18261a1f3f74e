"""A recipe's network trained on the GPU: it learns in every precision, and resumes equal to the bit.

The network is that of the retrieval recipe, pictures, sound and words, on clips that are rendered in memory,
so that no file is read and PyAV may be absent. The first losses must be those of the CPU. One process under
NCCL must train as one without it.
"""

from __future__ import annotations

import itertools
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bench.gpu.measure import Bench, relative_error
from mmcore.recipes import History, Trainer, TrainSettings
from mmcore.recipes.retrieve.attributes import split_combinations
from mmcore.recipes.retrieve.captions import vocabulary
from mmcore.recipes.retrieve.model import RetrievalModel
from mmcore.recipes.retrieve.pairs import PairBatch, Pairs, SoundPool

__all__ = ["run"]

_PRECISIONS = ("float32", "bfloat16", "float16")
_OF_THE_FIRST = 0.8
"""The last losses are less than so much of the first."""
_NEAR = {"float32": 2e-3, "bfloat16": 0.05, "float16": 0.05}
"""How far a first loss may be from the CPU's, relatively."""


class _Problem:
    """A few batches, made once, and models that begin with the same weights."""

    def __init__(self, bench: Bench) -> None:
        size, count = (4, 2) if bench.dry else (48, 8)
        words = vocabulary()
        self._words = words.words
        pairs = Pairs(split_combinations(0).train, words, SoundPool(2, 0))
        drawn = [pairs.draw(i * 7 % len(pairs), i) for i in range(size * count)]
        self.batches = [pairs.collate(drawn[i : i + size]) for i in range(0, len(drawn), size)]
        self.size, self.device = size, bench.device

    def train(
        self,
        folder: Path,
        steps: int,
        precision: str = "float32",
        *,
        device: Any = None,
        resume: bool = False,
    ) -> tuple[History, RetrievalModel]:
        """A new model after so many steps."""

        def batches(number: int) -> Iterator[PairBatch]:
            return itertools.islice(itertools.cycle(self.batches), number, None)

        def compute_loss(model: RetrievalModel, batch: PairBatch) -> tuple[Tensor, dict[str, Tensor]]:
            return model.losses(batch)

        torch.manual_seed(0)
        model = RetrievalModel.preset(self._words)
        settings = TrainSettings(
            steps=steps, batch_size=self.size, learning_rate=2e-3, schedule="constant", precision=precision
        )
        trainer = Trainer(
            model, compute_loss, batches, settings, folder=folder,
            device=self.device if device is None else device, progress=False,
        )  # fmt: skip
        return trainer.fit(resume), model


def run(bench: Bench) -> None:
    """Fill the record; "wrong" counts what does not hold."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first call
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    problem = _Problem(bench)
    table: list[str] = []
    bench.record["table"] = table
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        expected: list[float] = []  # without it all that is compared with it fails
        with bench.attempt("on the CPU"):
            expected = problem.train(folder / "cpu", 2, device="cpu")[0].totals
        for precision in _PRECISIONS:
            with bench.attempt(precision):
                table.append(_learns(bench, problem, folder / precision, precision, expected))
        with bench.attempt("resume"):
            table.append(_resumes(bench, problem, folder))
        with bench.attempt("one process of a group"):
            table.append(_in_a_group(bench, problem, folder))
    bench.record["wrong"] = len(bench.record.get("errors", {}))


def _learns(bench: Bench, problem: _Problem, folder: Path, precision: str, expected: list[float]) -> str:
    steps = 4 if bench.dry else 60
    history, _ = problem.train(folder, steps, precision)
    totals = history.totals
    few = max(1, steps // 8)
    first, last = sum(totals[:few]) / few, sum(totals[-few:]) / few
    bench.record.setdefault("losses", {})[precision] = totals
    if not last < (1.0 if bench.dry else _OF_THE_FIRST) * first:
        raise AssertionError(f"{precision}: the loss went from {first:.3f} to {last:.3f} in {steps} steps")
    for i, (got, wanted) in enumerate(
        zip(totals[: 1 if precision != "float32" else 2], expected, strict=False)
    ):
        if not abs(got - wanted) <= _NEAR[precision] * (1 + i) * abs(wanted):
            raise AssertionError(f"{precision}: loss {i} is {got:.5f}, on the CPU {wanted:.5f}")
    return f"{precision}: loss {first:.2f} -> {last:.2f} in {steps} steps, the first as on the CPU"


def _same(a: RetrievalModel, b: RetrievalModel) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return all(torch.equal(x[name], y[name]) for name in x)


def _resumes(bench: Bench, problem: _Problem, folder: Path) -> str:
    """In torch's deterministic mode; whether it is needed is said."""
    before, whole = (2, 4) if bench.dry else (7, 16)

    def interrupted(name: str) -> tuple[RetrievalModel, RetrievalModel]:
        _, straight = problem.train(folder / f"{name}, straight", whole)
        problem.train(folder / name, before)
        return straight, problem.train(folder / name, whole, resume=True)[1]

    as_it_is = _same(*interrupted("resumed"))
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        deterministic = _same(*interrupted("resumed, deterministic"))
    finally:
        torch.use_deterministic_algorithms(False)
    bench.record["same bits"] = {"as it is": as_it_is, "deterministic": deterministic}
    if not deterministic:
        raise AssertionError("a resumed training differs from the one that was not interrupted")
    return f"resumed equal to the bit; {'also' if as_it_is else 'NOT'} without torch's deterministic mode"


def _in_a_group(bench: Bench, problem: _Problem, folder: Path) -> str:
    """Under NCCL (gloo in a dry run): the trainer, and gradients through DistributedDataParallel."""
    steps = 2 if bench.dry else 5
    alone = problem.train(folder / "alone", steps)[0].totals
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    grouped = problem.train(folder / "group", steps)[0].totals
    backend = dist.get_backend()
    if not bench.dry and backend != "nccl":
        raise AssertionError(f"the group is of {backend}, not of nccl")
    for got, wanted in zip(grouped, alone, strict=True):
        if not abs(got - wanted) <= 1e-3 * abs(wanted):
            raise AssertionError(f"losses under {backend}: {grouped}, alone: {alone}")
    shared = torch.arange(5.0, device=bench.device)
    dist.all_reduce(shared)
    if shared.tolist() != [0.0, 1.0, 2.0, 3.0, 4.0]:
        raise AssertionError(f"the sum over one process is {shared.tolist()}")
    plain, parallel = (
        _gradients(bench, wrap) for wrap in (lambda m: m, torch.nn.parallel.DistributedDataParallel)
    )
    error = relative_error(parallel, plain)
    if error > 1e-6:
        raise AssertionError(f"gradients through DistributedDataParallel are off by {error:.2g}")
    dist.destroy_process_group()
    return f"one process under {backend}: the losses of none"


def _gradients(bench: Bench, wrap: Callable[[Any], Any]) -> Tensor:
    torch.manual_seed(1)
    model = torch.nn.Linear(33, 7).to(bench.device)
    x = torch.randn(5, 33, device=bench.device)
    wrap(model)(x).square().sum().backward()
    assert model.weight.grad is not None
    return model.weight.grad.clone()
