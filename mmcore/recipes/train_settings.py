"""What a training is told: :class:`TrainSettings`, and the learning rate of each step."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

__all__ = ["TrainSettings"]

_CHOICES = {
    "optimizer": ("adam", "adamw"),
    "schedule": ("constant", "cosine", "linear"),
    "precision": ("float32", "bfloat16", "float16"),
    "sharding": ("none", "fsdp"),
}
_MAY_CHANGE = ("steps", "evaluate_every", "checkpoint_every", "patience", "sharding")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Settings of a :class:`mmcore.recipes.Trainer`.

    Parameters
    ----------
    steps : int
        Steps of the optimiser.
    batch_size : int
        Samples in a step, of all processes together.
    learning_rate : float
        The largest, reached after the warmup.
    optimizer : {"adam", "adamw"}
        With "adam" the weight decay is part of the gradient, with "adamw" it is not.
    betas : tuple of float
        Decay of the optimiser's means of gradients and of their squares.
    weight_decay : float
        For parameters of two or more dimensions; biases, norms and learned loss weights have none.
    warmup_steps : int
        Steps in which the learning rate rises from near 0, linearly.
    schedule : {"constant", "cosine", "linear"}
        What the learning rate does after the warmup, until the last step.
    final_learning_rate : float
        Where "cosine" and "linear" end.
    precision : {"float32", "bfloat16", "float16"}
        What autocast computes in; parameters and losses stay float32. float16 on a GPU scales the loss, and
        passes over steps whose gradients overflow.
    clip_norm : float, optional
        Longest gradient, of all parameters together; longer ones are shortened. None: as they come.
    accumulate : int
        Batches, of ``batch_size`` each, whose mean gradient makes one step.
    ema : float, optional
        Decay of an exponential moving average of the weights, such as 0.999. It is what is evaluated and
        saved. In the first steps the decay is ``(1 + step) / (10 + step)`` if that is less.
    evaluate_every : int, optional
        Steps between evaluations; None: at the end only.
    checkpoint_every : int, optional
        Steps between checkpoints; None: at the end, and when interrupted.
    patience : int, optional
        Evaluations without a better ``monitor`` after which to stop early. None: never.
    seed : int
        Of the random numbers in the training, 0 or more.
    sharding : {"none", "fsdp"}
        With several processes: every one holds the whole model (DDP), or its part of each parameter (FSDP2).

    Raises
    ------
    TypeError, ValueError
        For a setting that is out of range; the message names it.
    """

    steps: int
    batch_size: int = 32
    learning_rate: float = 1e-3
    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    warmup_steps: int = 0
    schedule: str = "cosine"
    final_learning_rate: float = 0.0
    precision: str = "float32"
    clip_norm: float | None = 1.0
    accumulate: int = 1
    ema: float | None = None
    evaluate_every: int | None = None
    checkpoint_every: int | None = None
    patience: int | None = None
    seed: int = 0
    sharding: str = "none"

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: expected {', '.join(choices)}, got {getattr(self, name)!r}")
        for name, least in (
            ("steps", 1),
            ("batch_size", 1),
            ("accumulate", 1),
            ("warmup_steps", 0),
            ("seed", 0),
        ):
            self._check_int(name, least)
        for name in ("evaluate_every", "checkpoint_every", "patience"):
            if getattr(self, name) is not None:
                self._check_int(name, 1)
        for name in ("learning_rate", "weight_decay", "final_learning_rate"):
            self._check_number(name, 0, math.inf)
        if self.clip_norm is not None:
            self._check_number("clip_norm", 0, math.inf, positive=True)
        if self.ema is not None:
            self._check_number("ema", 0, 1)
        object.__setattr__(self, "betas", tuple(self.betas))
        if len(self.betas) != 2 or not all(isinstance(b, float) and 0 <= b < 1 for b in self.betas):
            raise ValueError(f"betas: expected two numbers from 0 to below 1, got {self.betas!r}")

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0.

        ``learning_rate (step + 1) / warmup_steps`` in the warmup. After it, with p from 0 to 1 over the steps
        that are left: the cosine ``f + (l - f) (1 + cos(pi p)) / 2`` or the line ``l + (f - l) p``, l being
        ``learning_rate`` and f ``final_learning_rate``.
        """
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        p = min(1.0, (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps))
        share = (1 + math.cos(math.pi * p)) / 2 if self.schedule == "cosine" else 1 - p
        return self.final_learning_rate + (self.learning_rate - self.final_learning_rate) * share

    def differences(self, other: dict[str, Any]) -> list[str]:
        """Say where ``other``, a checkpoint's settings, would make a resumed run another one."""
        found = []
        for field in fields(self):
            ours, theirs = getattr(self, field.name), other.get(field.name)
            theirs = tuple(theirs) if isinstance(theirs, list) else theirs
            if field.name not in _MAY_CHANGE and field.name in other and ours != theirs:
                found.append(f"{field.name} was {theirs!r} and is {ours!r}")
        return found

    def _check_int(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name}: expected an int, got {value!r}")
        if value < least:
            raise ValueError(f"{name}: expected {least} or more, got {value}")

    def _check_number(self, name: str, low: float, high: float, *, positive: bool = False) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name}: expected a number, got {value!r}")
        if not low <= value < high or (positive and value == 0):
            raise ValueError(f"{name}: expected a number from {low} to below {high}, got {value}")
