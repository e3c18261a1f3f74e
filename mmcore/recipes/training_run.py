"""One training on its way: steps, evaluations and checkpoints."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import mmcore
from mmcore.errors import MMCoreError
from mmcore.nn import MultiTaskLoss, TaskWeighting
from mmcore.recipes.batches import to_device
from mmcore.recipes.checkpoint import CheckpointError, remove_parts, save_checkpoint
from mmcore.recipes.interruption import Interruption
from mmcore.recipes.joint_losses import JointLosses
from mmcore.recipes.optimization import MovingAverage, Optimization
from mmcore.recipes.parallel import LossOfBatch, full, in_parallel, no_sync, part_of, reshard, sync_replicated
from mmcore.recipes.processes import gather_objects, load_for_all, process_count, process_rank, tell_all
from mmcore.recipes.progress import ProgressBar
from mmcore.recipes.random_state import RandomState, seed_all
from mmcore.recipes.train_settings import TrainSettings
from mmcore.recipes.training_log import Evaluation, History, StepRecord, TrainingLog

__all__ = ["TrainingError", "TrainingPlan", "TrainingRun"]

_OVERFLOWS = 50
"""Steps on end that a loss scaler may pass over; its scale is 2^-50 of the first one then."""


class TrainingError(MMCoreError):
    """A training cannot go on; the message names the step and the task."""


@dataclass(frozen=True)
class TrainingPlan:
    """What :class:`mmcore.recipes.Trainer` was given."""

    model: nn.Module
    compute_loss: Callable[[Any, Any], tuple[Tensor, Mapping[str, Tensor]]]
    batches: Callable[[int], Iterator[Any]]
    settings: TrainSettings
    folder: Path
    evaluate: Callable[[Any], Mapping[str, float]] | None
    monitor: str | None
    sign: float
    """1 if more of ``monitor`` is better, -1 if less."""


class TrainingRun:
    """The state of one call of :meth:`mmcore.recipes.Trainer.fit`."""

    def __init__(self, plan: TrainingPlan, device: torch.device, resume: bool) -> None:
        self.plan = plan
        self.settings = settings = plan.settings
        self.device = device
        self.model = plan.model.to(device)
        self.checkpoints = plan.folder / "checkpoint"
        self.first = process_rank() == 0
        self.step = 0
        self.best = -math.inf
        self.evaluations_since_best = 0
        self.history = History()
        if self.first:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            remove_parts(self.checkpoints)
        found = load_for_all(self.checkpoints / "last.pt") if resume else None
        if found is not None:
            changed = settings.differences(found["settings"])
            if changed:
                raise ValueError(f"settings: differ from the checkpoint's: {'; '.join(changed)}")
        self.losses = LossOfBatch(self.model, plan.compute_loss)
        self.module = in_parallel(self.losses, device, settings.sharding)
        self.joint = JointLosses(self.model)
        self.optimization = Optimization(self.model, settings, device)
        self.average = None if settings.ema is None else MovingAverage(self.model, settings.ema)
        seed_all(settings.seed + process_rank())
        if found is not None:
            self._load(found)
        elif self.first:
            for old in ("last.pt", "best.pt"):  # of an earlier training in this folder
                (self.checkpoints / old).unlink(missing_ok=True)
        self.log = TrainingLog(plan.folder if self.first else None, self.history)
        if self.first:
            self._write_settings()
        self._weightings = [m for m in self.model.modules() if isinstance(m, MultiTaskLoss)]
        self._waiting = [m for m in self._weightings if type(m.weighting).update is not TaskWeighting.update]
        self._overflows = 0

    def train(self, stop: Interruption, bar: ProgressBar) -> None:
        """Do the steps that are left."""
        if self.step and self._evaluate_where_due(bar):  # an interruption had left it out
            self._save()
        if self._has_ended():
            return
        self.model.train()
        stream = self.plan.batches(self.step * self.settings.accumulate)
        try:
            while not self._has_ended():
                record, interrupted = self._one_step(stream, stop)
                self.step += 1
                self.log.add_step(record)
                bar.step(record)
                self._end_epoch()
                if interrupted and self.step < self.settings.steps:
                    self.history.stopped = "interrupted"
                else:
                    self._evaluate_where_due(bar)
                if self._has_ended() or self._is_due(self.settings.checkpoint_every):
                    self._save()
        finally:
            close = getattr(stream, "close", None)  # stops the workers
            if close is not None:
                close()

    def _has_ended(self) -> bool:
        return self.step >= self.settings.steps or bool(self.history.stopped)

    def _evaluate_where_due(self, bar: ProgressBar) -> bool:
        s, evaluations = self.settings, self.history.evaluations
        due = self.step == s.steps or self._is_due(s.evaluate_every)
        due = due and self.plan.evaluate is not None
        due = due and not (evaluations and evaluations[-1].steps == self.step)
        if due:
            bar.evaluation(self._evaluate())
        if s.patience is not None and self.evaluations_since_best >= s.patience and self.step < s.steps:
            self.history.stopped = "early"
        return due

    def _is_due(self, every: int | None) -> bool:
        return every is not None and self.step % every == 0

    # --- one step

    def _one_step(self, stream: Iterator[Any], stop: Interruption) -> tuple[StepRecord, bool]:
        s, step = self.settings, self.step
        began, cpu_began, waited = time.perf_counter(), time.process_time(), 0.0
        values: Tensor | None = None
        names: tuple[str, ...] = ()
        for number in range(s.accumulate):
            asked = time.perf_counter()
            batch = next(stream, None)
            waited += time.perf_counter() - asked
            if batch is None:
                raise ValueError(f"batches: ended at step {step} of {s.steps}; expected a stream without end")
            batch = to_device(batch, self.device)
            with no_sync(self.module, self.model, number == s.accumulate - 1):
                with self.joint.active(), self._autocast():
                    total, losses = self.module(batch)
                names = tuple(losses)
                found = torch.stack([total.detach(), *losses.values()]).to(torch.float64) / s.accumulate
                values = found if values is None else values + found
                self.optimization.backward(total, 1 / s.accumulate)
        assert values is not None
        if s.sharding == "fsdp":
            sync_replicated(self.model)
        norm = self.optimization.gradient_norm()
        total_value, loss_values, norm_value, interrupted = self._read(values, norm, stop.wanted)
        record = dict(zip(names, loss_values, strict=True))
        self._check_finite(total_value, record, norm_value)
        learning_rate = s.learning_rate_at(step)
        changed = self.optimization.step(step)
        self._count_overflow(changed, record)
        if changed:
            if self.average is not None:
                self.average.update(step)
            self._update_weightings(batch)
        ended, cpu_ended = time.perf_counter(), time.process_time()
        return (
            StepRecord(
                step,
                total_value,
                record,
                learning_rate,
                norm_value,
                waited,
                ended - began,
                cpu_ended - cpu_began,
            ),
            interrupted,
        )

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.settings.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, getattr(torch, self.settings.precision))

    def _read(
        self, values: Tensor, norm: Tensor | None, wanted: bool
    ) -> tuple[float, list[float], float, bool]:
        """Bring a step's numbers to the CPU at once; with several processes, means over them."""
        flag = torch.tensor([float(wanted)], dtype=torch.float64).to(self.device)
        values = torch.cat([values, flag])
        if process_count() > 1:
            dist.all_reduce(values)
            values = values / process_count()
        if norm is not None:
            values = torch.cat([values, norm.to(values).reshape(1)])
        total, *rest = values.tolist()
        norm_value = math.nan if norm is None else rest.pop()
        return total, rest[:-1], norm_value, rest[-1] > 0

    def _check_finite(self, total: float, losses: dict[str, float], norm: float) -> None:
        if self.optimization.scaler.is_enabled():
            return
        for name, value in losses.items():
            if not math.isfinite(value):
                raise TrainingError(f"step {self.step}: the loss of task {name!r} is {value}")
        if not math.isfinite(total):
            raise TrainingError(f"step {self.step}: the total of the losses {losses} is {total}")
        if self.settings.clip_norm is not None and not math.isfinite(norm):
            raise TrainingError(f"step {self.step}: the gradient's length is {norm}, with losses {losses}")

    def _count_overflow(self, changed: bool, losses: dict[str, float]) -> None:
        self._overflows = 0 if changed else self._overflows + 1
        if self._overflows > _OVERFLOWS:
            bad = [name for name, value in losses.items() if not math.isfinite(value)]
            raise TrainingError(
                f"step {self.step}: gradients were not finite for {_OVERFLOWS} steps on end, whatever the"
                f" loss's scale; tasks whose loss is not finite: {', '.join(bad) or 'none'}"
            )

    def _update_weightings(self, batch: Any) -> None:
        """Tell strategies that wait for it the losses of the same batch with the new weights."""
        if not self._waiting:
            return
        seen: dict[int, Any] = {}
        with torch.no_grad(), self.joint.active(), self._autocast(), contextlib.ExitStack() as stack:
            for m in self._waiting:  # after the joint losses' own hooks: what those make of the losses counts
                hook = m.register_forward_hook(lambda m, _, result: seen.__setitem__(id(m), result[1]))
                stack.callback(hook.remove)
            self.losses(batch)
        for module in self._waiting:
            if id(module) in seen:
                module.update(_mean_of_processes(seen[id(module)]))

    def _end_epoch(self) -> None:
        length = getattr(self.plan.batches, "steps_per_epoch", None)
        if length is not None and self.step * self.settings.accumulate % length < self.settings.accumulate:
            for module in self._weightings:
                module.end_epoch()

    # --- evaluation

    def _evaluate(self) -> Evaluation:
        evaluation = Evaluation(self.step, self._metrics())
        self.log.add_evaluation(evaluation)
        monitor = self.plan.monitor
        if monitor is None:
            return evaluation
        if monitor not in evaluation.metrics:
            raise ValueError(f"monitor: expected one of {', '.join(evaluation.metrics)}, got {monitor!r}")
        value = self.plan.sign * evaluation.metrics[monitor]
        if value > self.best:
            self.best, self.evaluations_since_best = value, 0
            self._save_best()
        else:
            self.evaluations_since_best += 1
        return evaluation

    def _metrics(self) -> dict[str, float]:
        """Evaluate in the first process, and tell the others, also if it fails: they would wait for ever."""
        assert self.plan.evaluate is not None
        metrics: dict[str, float] = {}
        error: Exception | None = None
        if self.first or self.settings.sharding == "fsdp":
            random_state = RandomState.capture()
            try:
                with self._average_applied(), torch.no_grad():
                    self.model.eval()
                    found = self.plan.evaluate(self.model)
                    reshard(self.model)
                metrics = {name: float(value) for name, value in found.items()}
            except Exception as raised:
                error = raised
            finally:
                self.model.train()
                random_state.restore()
        told = tell_all((metrics, None if error is None else f"{type(error).__name__}: {error}"))
        if error is not None:
            raise error
        metrics, message = told
        if message is not None:
            raise TrainingError(f"step {self.step}: the evaluation in the first process failed: {message}")
        return metrics

    def _average_applied(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if self.average is None else self.average.applied()

    # --- checkpoints

    def _save(self) -> None:
        states = gather_objects(RandomState.capture().state())
        state = {
            "settings": asdict(self.settings),
            "step": self.step,
            "model": full(self.model.state_dict()),
            "optimization": self.optimization.state(),
            "average": None if self.average is None else self.average.state(),
            "random": states,
            "best": self.best,
            "evaluations_since_best": self.evaluations_since_best,
            "overflows": self._overflows,
            "history": self.history.state(),
        }
        if self.first:
            self.log.flush()
            save_checkpoint(self.checkpoints / "last.pt", state)

    def _save_best(self) -> None:
        with self._average_applied():
            state = {"step": self.step, "model": full(self.model.state_dict())}
            if self.first:
                save_checkpoint(self.checkpoints / "best.pt", state)

    def _load(self, state: dict[str, Any]) -> None:
        self._load_model(state["model"])
        self.optimization.load_state(state["optimization"])
        if self.average is not None and state["average"] is not None:
            self.average.load_state(state["average"])
        self.step = state["step"]
        self.best = state["best"]
        self.evaluations_since_best = state["evaluations_since_best"]
        self.history = History.from_state(state["history"])
        if len(state["random"]) == process_count():
            RandomState.from_state(state["random"][process_rank()]).restore()

    def _load_model(self, state: dict[str, Any]) -> None:
        current = self.model.state_dict()
        try:
            self.model.load_state_dict({name: part_of(v, current.get(name)) for name, v in state.items()})
        except (RuntimeError, KeyError) as error:
            raise CheckpointError(f"{self.checkpoints}: of another model: {error}") from error

    def keep_best(self) -> None:
        """Leave the model with the weights to use."""
        best = load_for_all(self.checkpoints / "best.pt") if self.plan.monitor is not None else None
        if best is not None:
            self._load_model(best["model"])
        elif self.average is not None:
            self.average._swap()
        self.model.eval()

    def _write_settings(self) -> None:
        about = {
            "settings": asdict(self.settings),
            "model": type(self.model).__name__,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "device": str(self.device),
            "processes": process_count(),
            "threads": torch.get_num_threads(),
            "workers": getattr(self.plan.batches, "num_workers", 0),
            "versions": {
                "mmcore": mmcore.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        }
        path = self.plan.folder / "settings.json"
        path.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _mean_of_processes(losses: Any) -> Any:
    if process_count() == 1:
        return losses
    if isinstance(losses, Mapping):
        return dict(zip(losses, _mean_of_processes(torch.stack(list(losses.values()))).unbind(), strict=True))
    mean = torch.stack(list(losses)) if not isinstance(losses, Tensor) else losses.clone()
    dist.all_reduce(mean)
    return mean / process_count()
