"""The training loop: settings, logs, resuming bit for bit, interruptions, errors, strategies."""

from __future__ import annotations

import dataclasses
import itertools
import math
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_toy import ToyData, ToyNet, compute_loss, evaluate, make_trainer

import mmcore
from mmcore.recipes import History, StepBatches, TrainingError, TrainSettings, interruption
from mmcore.recipes.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from mmcore.recipes.training_log import StepRecord


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # more only wait for each other on matrices this small
    yield
    torch.set_num_threads(before)


def untimed(history: History) -> tuple[Any, ...]:
    """All of a history that does not depend on the machine."""
    return [r[:5] for r in history.steps], history.evaluations, history.stopped


def same_state(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


def interrupting(step: int, number: int = signal.SIGINT) -> Callable[[Any, Any], Any]:
    """A loss function that gets a signal in the middle of a step."""
    calls = iter(range(10**6))

    def loss(model: ToyNet, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        if next(calls) == step:
            signal.raise_signal(number)
        return compute_loss(model, batch)

    return loss


def test_it_learns_and_writes_what_happened(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, steps=60, evaluate_every=20, noise=0.0)
    history = trainer.fit()
    assert len(history.steps) == 60
    assert history.losses.keys() == {"kind", "place"}
    for values in history.losses.values():
        assert sum(values[-10:]) < 0.6 * sum(values[:10])
    assert [e.steps for e in history.evaluations] == [20, 40, 60]
    assert 0 < history.waiting_share < 1
    assert all(r.step_seconds > r.wait_seconds > 0 and r.cpu_seconds > 0 for r in history.steps)
    read = History.read(tmp_path)
    assert read.steps == history.steps
    assert read.evaluations == history.evaluations
    assert (tmp_path / "settings.json").is_file()
    assert not trainer.model.training


def test_history_whose_losses_change(tmp_path: Path) -> None:
    def loss(model: ToyNet, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        total, losses = compute_loss(model, batch)
        return total, losses | ({"extra": total} if total < losses["kind"] + 1e9 and len(seen) > 2 else {})

    seen: list[int] = []

    def counting(model: ToyNet, batch: Any) -> Any:
        seen.append(1)
        return loss(model, batch)

    history = make_trainer(tmp_path, loss=counting, steps=5).fit()
    assert [math.isnan(x) for x in history.losses["extra"]] == [True, True, False, False, False]
    assert History.read(tmp_path).steps == history.steps
    assert History.from_state(history.state()).steps == history.steps


def test_history_refuses_another_file(tmp_path: Path) -> None:
    (tmp_path / "history.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="expected the columns step"):
        History.read(tmp_path)


def test_learning_rates() -> None:
    def rates(**changes: Any) -> list[float]:
        s = TrainSettings(steps=10, learning_rate=1.0, warmup_steps=2, **changes)
        return [s.learning_rate_at(step) for step in range(10)]

    assert rates(schedule="constant") == [0.5, *[1.0] * 9]
    assert rates(schedule="linear", final_learning_rate=0.2) == pytest.approx(
        [0.5, 1.0, *(1 - 0.8 * i / 8 for i in range(8))]
    )
    cosine = rates(schedule="cosine")
    assert cosine[6] == pytest.approx(0.5)
    assert cosine[2:] == sorted(cosine[2:], reverse=True)
    assert 0 < cosine[-1] < 0.05


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps: expected 1 or more, got 0"),
        ({"steps": 1.5}, TypeError, "steps: expected an int, got 1.5"),
        ({"optimizer": "sgd"}, ValueError, "optimizer: expected adam, adamw, got 'sgd'"),
        ({"learning_rate": -1}, ValueError, "learning_rate"),
        ({"clip_norm": 0}, ValueError, "clip_norm"),
        ({"ema": 1.0}, ValueError, "ema"),
        ({"betas": (0.9,)}, ValueError, "betas"),
        ({"patience": 0}, ValueError, "patience"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TrainSettings(**{"steps": 3} | settings)


# ---- resuming


@pytest.mark.parametrize(
    ("workers", "settings"),
    [
        (0, {"ema": 0.9, "patience": 9, "warmup_steps": 3}),
        (2, {"optimizer": "adam", "accumulate": 2, "precision": "bfloat16"}),
    ],
    ids=["alone", "workers"],
)
def test_resumed_is_as_if_never_interrupted(tmp_path: Path, workers: int, settings: dict[str, Any]) -> None:
    whole = make_trainer(tmp_path / "whole", workers=workers, checkpoint_every=1, **settings)
    expected = whole.fit()
    cut = make_trainer(tmp_path / "cut", workers=workers, loss=interrupting(6), **settings)
    part = cut.fit()
    assert part.stopped == "interrupted"
    assert 0 < len(part.steps) < len(expected.steps)
    torch.rand(5)  # the state of the process must not matter
    again = make_trainer(tmp_path / "cut", ToyNet(dropout=0.2, seed=99), workers=workers, **settings)
    resumed = again.fit(resume=True)
    assert untimed(resumed) == untimed(expected)
    assert same_state(again.model, whole.model)
    last, wanted = (load_checkpoint(tmp_path / n / "checkpoint" / "last.pt") for n in ("cut", "whole"))
    assert_same_tree(last, wanted)
    assert History.read(tmp_path / "cut").losses == expected.losses


def assert_same_tree(a: Any, b: Any, path: str = "") -> None:
    if path in ("/settings", "/history/steps"):
        return  # times differ, and how often checkpoints are made
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same_tree(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same_tree(x, y, f"{path}/{i}")
    elif isinstance(a, Tensor):
        assert torch.equal(a, b), path
    else:
        assert a == b, path


@pytest.mark.parametrize("weighting", ["dwa", "rlw", "famo", "gradnorm", "pcgrad"])
def test_strategies_resume(tmp_path: Path, weighting: str) -> None:
    def trainer(name: str, seed: int = 3, loss: Any = compute_loss) -> Any:
        model = ToyNet(weighting, seed=seed)
        return make_trainer(tmp_path / name, model, loss=loss, monitor=None, evaluation=None)

    whole = trainer("whole")
    expected = whole.fit()
    trainer("cut", loss=interrupting(6)).fit()
    again = trainer("cut", seed=99)
    assert untimed(again.fit(resume=True)) == untimed(expected)
    assert same_state(again.model, whole.model)


def test_resume_of_nothing_and_of_a_finished_training(tmp_path: Path) -> None:
    first = make_trainer(tmp_path)
    history = first.fit(resume=True)
    assert len(history.steps) == 12
    again = make_trainer(tmp_path, ToyNet(dropout=0.2, seed=99))
    assert untimed(again.fit(resume=True)) == untimed(history)
    assert same_state(again.model, first.model)


def test_a_longer_training_goes_on(tmp_path: Path) -> None:
    make_trainer(tmp_path, schedule="constant").fit()
    longer = make_trainer(tmp_path, schedule="constant", steps=16).fit(resume=True)
    whole = make_trainer(tmp_path / "whole", schedule="constant", steps=16).fit()
    assert untimed(longer) == untimed(whole)


def test_without_resume_an_earlier_training_is_forgotten(tmp_path: Path) -> None:
    make_trainer(tmp_path).fit()
    again = make_trainer(tmp_path, monitor=None, evaluation=None, steps=2).fit()
    assert len(again.steps) == len(History.read(tmp_path).steps) == 2
    assert not (tmp_path / "checkpoint" / "best.pt").exists()


def test_resume_refuses_what_would_not_be_the_same(tmp_path: Path) -> None:
    make_trainer(tmp_path, steps=2).fit()
    with pytest.raises(ValueError, match=r"batch_size was 8 and is 4; seed was 5 and is 6"):
        make_trainer(tmp_path, steps=2, batch_size=4, seed=6).fit(resume=True)
    with pytest.raises(CheckpointError, match="of another model"):
        make_trainer(tmp_path, torch.nn.Linear(2, 2), steps=2).fit(resume=True)
    last = tmp_path / "checkpoint" / "last.pt"
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"last\.pt: is no checkpoint, or damaged"):
        make_trainer(tmp_path, steps=2).fit(resume=True)


def test_checkpoint_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"x": torch.arange(3)})
    with pytest.raises(AttributeError, match="pickle"):
        save_checkpoint(path, {"x": lambda: None})
    assert load_checkpoint(path)["x"].tolist() == [0, 1, 2]
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


# ---- the end of a training


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_leaves_a_checkpoint(tmp_path: Path, number: int) -> None:
    before = signal.getsignal(number)
    history = make_trainer(tmp_path, loss=interrupting(5, number)).fit()
    assert history.stopped == "interrupted"
    assert len(history.steps) == 6  # the step was finished
    assert load_checkpoint(tmp_path / "checkpoint" / "last.pt")["step"] == 6
    assert signal.getsignal(number) is before


def test_second_interruption_is_obeyed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(model: ToyNet, batch: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return compute_loss(model, batch)

    # Two within a moment are one: torchrun passes on what its processes got already.
    assert make_trainer(tmp_path, loss=loss).fit().stopped == "interrupted"
    monkeypatch.setattr(interruption, "GRACE_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path, loss=loss).fit()


def test_early_stop_keeps_the_best_weights(tmp_path: Path) -> None:
    values = iter([3.0, 2.0, math.nan, 2.5, 9.0])
    states: list[dict[str, Tensor]] = []

    def evaluation(model: ToyNet) -> dict[str, float]:
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"error": next(values)}

    trainer = make_trainer(
        tmp_path, evaluation=evaluation, monitor="error", mode="min", evaluate_every=2, patience=2, steps=20
    )
    history = trainer.fit()
    assert history.stopped == "early"
    assert len(history.steps) == 8
    assert all(torch.equal(value, states[1][name]) for name, value in trainer.model.state_dict().items())
    again = make_trainer(
        tmp_path, evaluation=evaluation, monitor="error", mode="min", evaluate_every=2, patience=2, steps=20
    )
    assert again.fit(resume=True).stopped == "early"
    assert len(states) == 4


def test_average_is_evaluated_and_kept(tmp_path: Path) -> None:
    model = ToyNet()
    trajectory: list[Tensor] = []
    bias = model.heads["kind"].bias
    expected = bias.detach().clone()

    def loss(model: ToyNet, batch: Any) -> Any:
        trajectory.append(model.heads["kind"].bias.detach().clone())
        return compute_loss(model, batch)

    def evaluation(model: ToyNet) -> dict[str, float]:
        return {"bias": model.heads["kind"].bias[0].item()}

    trainer = make_trainer(
        tmp_path, model, loss=loss, evaluation=evaluation, monitor=None, ema=0.6, steps=6, evaluate_every=3
    )
    history = trainer.fit()
    trajectory.append(load_checkpoint(tmp_path / "checkpoint" / "last.pt")["model"]["heads.kind.bias"])
    for step, value in enumerate(trajectory[1:]):
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        if step == 2:
            assert history.evaluations[0].metrics["bias"] == pytest.approx(expected[0].item(), abs=1e-6)
    torch.testing.assert_close(model.heads["kind"].bias.detach(), expected)


# ---- errors


def test_loss_that_is_not_finite_names_step_and_task(tmp_path: Path) -> None:
    def loss(model: ToyNet, batch: Any) -> Any:
        total, losses = compute_loss(model, batch)
        if len(seen) == 4:
            losses["place"] = losses["place"] * math.inf
        seen.append(1)
        return total, losses

    seen: list[int] = []
    model = ToyNet()
    with pytest.raises(TrainingError, match="step 4: the loss of task 'place' is inf"):
        make_trainer(tmp_path, model, loss=loss).fit()
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert len(History.read(tmp_path).steps) == 4  # what was before is on the disk


def test_gradient_that_is_not_finite(tmp_path: Path) -> None:
    def loss(model: ToyNet, batch: Any) -> Any:
        total, losses = compute_loss(model, batch)
        return total + (
            model.heads["kind"].bias - model.heads["kind"].bias.detach()
        ).abs().sqrt().sum(), losses

    with pytest.raises(TrainingError, match="step 0: the gradient's length is"):
        make_trainer(tmp_path, loss=loss).fit()


def test_arguments_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="patience: stopping early needs monitor"):
        make_trainer(tmp_path, monitor=None, patience=2)
    with pytest.raises(ValueError, match="monitor: 'accuracy' needs evaluate"):
        make_trainer(tmp_path, evaluation=None)
    with pytest.raises(ValueError, match="monitor: expected one of accuracy, error, got 'x'"):
        make_trainer(tmp_path, monitor="x").fit()
    with pytest.raises(ValueError, match="mode: expected max or min, got 'best'"):
        make_trainer(tmp_path, mode="best")
    with pytest.raises(ValueError, match="sharding: fsdp needs several processes"):
        make_trainer(tmp_path, sharding="fsdp").fit()
    model = ToyNet().requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        make_trainer(tmp_path, model).fit()


def test_batches_that_end(tmp_path: Path) -> None:
    def two(step: int) -> Iterator[Any]:
        return itertools.islice(StepBatches(ToyData(), 8, seed=0)(step), 2)

    with pytest.raises(ValueError, match="batches: ended at step 2 of 12"):
        make_trainer(tmp_path, batches=two).fit()


def test_evaluation_that_fails(tmp_path: Path) -> None:
    def evaluation(model: Any) -> dict[str, float]:
        raise LookupError("no data")

    with pytest.raises(LookupError, match="no data"):
        make_trainer(tmp_path, evaluation=evaluation).fit()


# ---- one step


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    def plain(model: ToyNet, batch: Any) -> Any:
        loss = torch.nn.functional.cross_entropy(model(batch["x"])[0]["kind"], batch["kind"])
        return loss, {"kind": loss}

    small, large = ToyNet(), ToyNet()
    options: dict[str, Any] = {"loss": plain, "noise": 0.0, "monitor": None, "evaluation": None}
    a = make_trainer(tmp_path / "a", small, batch_size=4, accumulate=2, **options).fit()
    b = make_trainer(tmp_path / "b", large, batch_size=8, **options).fit()
    assert a.totals == pytest.approx(b.totals, rel=1e-5)
    for name, value in large.state_dict().items():
        torch.testing.assert_close(small.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_gradients_are_clipped(tmp_path: Path) -> None:
    model = ToyNet()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    options: dict[str, Any] = {"optimizer": "adam", "weight_decay": 0.0, "clip_norm": 1e-10, "steps": 1}
    history = make_trainer(tmp_path, model, monitor=None, evaluation=None, **options).fit()
    assert history.steps[0].gradient_norm > 0.1
    # Adam divides by the gradient's size plus 1e-8: so small a gradient moves nothing far.
    assert all((p - before[name]).abs().max() < 1e-3 for name, p in model.named_parameters())


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_learns(tmp_path: Path, precision: str) -> None:
    seen: list[torch.dtype] = []

    def loss(model: ToyNet, batch: Any) -> Any:
        seen.append(model.heads["kind"](model.encoders["x"](batch["x"])).dtype)
        return compute_loss(model, batch)

    trainer = make_trainer(tmp_path, loss=loss, precision=precision, steps=40, noise=0.0)
    losses = trainer.fit().losses["kind"]
    assert set(seen) == {getattr(torch, precision)}
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])


@pytest.mark.parametrize(
    "weighting", ["uncertainty", "uw_so", "geometric_mean", "imtl_l", "stch", "mgda", "cagrad", "upgrad"]
)
def test_every_kind_of_strategy_learns(tmp_path: Path, weighting: str) -> None:
    model = ToyNet(weighting)
    trainer = make_trainer(tmp_path, model, monitor=None, evaluation=None, steps=30, noise=0.0)
    before = [p.detach().clone() for p in model.criterion.parameters()]
    losses = trainer.fit().losses
    assert sum(losses["kind"][-6:]) + sum(losses["place"][-6:]) < sum(losses["kind"][:6]) + sum(
        losses["place"][:6]
    )
    assert all(not torch.equal(a, b) for a, b in zip(before, model.criterion.parameters(), strict=True))


def test_strategies_are_told_what_they_wait_for(tmp_path: Path) -> None:
    famo, dwa = ToyNet("famo"), ToyNet("dwa")
    options: dict[str, Any] = {"monitor": None, "evaluation": None}
    state = {name: value.clone() for name, value in famo.criterion.weighting.state_dict().items()}
    make_trainer(tmp_path / "famo", famo, **options).fit()
    assert any(not torch.equal(value, state[n]) for n, value in famo.criterion.weighting.state_dict().items())
    make_trainer(tmp_path / "dwa", dwa, **options).fit()  # 5 steps an epoch: two epochs of 12 steps
    assert dwa.criterion.weighting.history.isfinite().all()
    assert dwa.criterion.weighting.epoch_count.tolist() == [2, 2]


# ---- batches


def test_batches_do_not_depend_on_workers_nor_on_the_start() -> None:
    def drawn(workers: int, start: int, count: int) -> list[Tensor]:
        stream = StepBatches(ToyData(noise=1.0), 6, seed=2, num_workers=workers)(start)
        found = [next(stream)["x"] for _ in range(count)]
        stream.close()  # type: ignore[attr-defined]
        return found

    state = torch.get_rng_state()
    expected = drawn(0, 0, 10)
    assert torch.equal(torch.get_rng_state(), state)
    for workers, start in ((0, 4), (2, 0), (2, 7)):
        assert all(map(torch.equal, drawn(workers, start, 10 - start), expected[start:]))


def test_every_sample_once_in_an_epoch() -> None:
    batches = StepBatches(torch.utils.data.TensorDataset(torch.arange(10)), 4, seed=1)
    stream = batches(0)
    seen = torch.cat([next(stream)[0] for _ in range(5)]).tolist()
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]
    assert batches.steps_per_epoch == 3
    in_order = StepBatches(torch.utils.data.TensorDataset(torch.arange(3)), 4, seed=1, shuffle=False)(0)
    assert next(in_order)[0].tolist() == [0, 1, 2, 0]


def test_datasets_hear_of_epochs() -> None:
    class Data(torch.utils.data.Dataset[int]):
        epoch = -1

        def __len__(self) -> int:
            return 3

        def __getitem__(self, i: int) -> int:
            return self.epoch

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

    stream = StepBatches(Data(), 2, seed=0)(0)
    assert [next(stream).tolist() for _ in range(3)] == [[0, 0], [0, 1], [1, 1]]


def test_batches_refuse() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        StepBatches(torch.utils.data.TensorDataset(torch.zeros(0)), 2, seed=0)
    with pytest.raises(ValueError, match="batch_size, num_workers"):
        StepBatches(ToyData(), 0, seed=0)


def test_tensorboard_is_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    make_trainer(tmp_path, steps=3).fit()
    files = list((tmp_path / "tensorboard").iterdir())
    assert len(files) == 1
    assert b"loss/kind" in files[0].read_bytes()


def test_records_are_complete() -> None:
    assert StepRecord._fields[:4] == ("step", "total", "losses", "learning_rate")
    assert {f.name for f in dataclasses.fields(History)} == {"steps", "evaluations", "stopped"}
    assert evaluate(ToyNet()).keys() == {"accuracy", "error"}
    assert mmcore.recipes.RECIPES.keys() >= {"classify", "retrieve", "generate", "speak", "folder"}
