"""What one head's loss is: :class:`Task`, made by one constructor for each kind of loss."""

from __future__ import annotations

import functools
import json
import math
from typing import Any, NamedTuple

from torch import Tensor

from mmcore import _core

__all__ = ["REDUCTIONS", "ROW_KINDS", "Task", "TaskOptions"]

REDUCTIONS = ("mean", "sum", "none")

ROW_KINDS = ("cross_entropy", "kl_distillation", "cosine")
"""Losses of a row of the output. "value" has one number; the others have a loss for each element."""

_REGRESSION = ("mse", "l1", "smooth_l1", "huber")


class TaskOptions(NamedTuple):
    """The numbers of a task; which of them count depends on the kind."""

    kind: str
    reduction: str = "mean"
    label_smoothing: float = 0.0
    ignore_index: int = -100
    z_loss: float = 0.0
    focal_gamma: float = 0.0
    class_dim: int = 1
    beta: float = 1.0
    """Of smooth_l1; delta of huber."""
    temperature: float = 1.0
    uncertainty_scale: float = 1.0


_DEFAULTS = TaskOptions("")._asdict()


class Task:
    """One task of :func:`mmcore.multi_task_loss`: the kind of its loss, its options, and its reduction.

    Made by ``Task.cross_entropy``, ``.bce_with_logits``, ``.mse``, ``.l1``, ``.smooth_l1``, ``.huber``,
    ``.kl_distillation``, ``.cosine`` and ``.value``. Tasks do not change after they are made, can be pickled,
    and can be shared between calls and threads.

    All take these two:

    reduction : {"mean", "sum", "none"}
        "mean" divides by what the labels that are there weigh, not by what the batch could have held. "none"
        keeps a loss for each sample (or element) and stays out of the total.
    uncertainty_scale : float
        c in ``c exp(-s) loss + s / 2`` where ``log_vars`` are given: 1/2 for a Gaussian likelihood
        (the default of mse, l1, smooth_l1 and huber), 1 for a softmax one (the default of the others).
    """

    __slots__ = ("core", "options", "spec", "weight")

    options: TaskOptions
    spec: str
    """The options as text, from which ``Task.from_spec`` makes them again."""
    weight: Tensor | None
    """Class weights of cross_entropy, pos_weight of bce_with_logits."""
    core: Any
    """The options as the compiled core reads them."""

    def __init__(self, options: TaskOptions, weight: Tensor | None = None) -> None:
        self.options = options
        self.weight = weight
        changed = {k: v for k, v in options._asdict().items() if v != _DEFAULTS[k]}
        self.spec = json.dumps(changed, sort_keys=True)
        self.core = _core_task(options)

    @property
    def kind(self) -> str:
        """Kind of loss: the name of the constructor."""
        return self.options.kind

    @property
    def reduction(self) -> str:
        """How its losses become one: "mean", "sum" or "none"."""
        return self.options.reduction

    def __repr__(self) -> str:
        given = json.loads(self.spec)
        kind = given.pop("kind")
        if self.options.uncertainty_scale == _uncertainty_scale(kind):
            given.pop("uncertainty_scale", None)
        if kind == "huber" and "beta" in given:
            given["delta"] = given.pop("beta")
        parts = [f"{k}={v!r}" for k, v in given.items()]
        if self.weight is not None:
            name = "pos_weight" if kind == "bce_with_logits" else "weight"
            parts.insert(0, f"{name}=<{self.weight.numel()}>")
        return f"Task.{kind}({', '.join(parts)})"

    def __reduce__(self) -> Any:
        return Task.from_spec, (self.spec, self.weight)

    def to(self, *args: Any, **kwargs: Any) -> Task:
        """Give the same task with its weights on another device or of another dtype; see ``Tensor.to``."""
        if self.weight is None:
            return self
        return Task(self.options, self.weight.to(*args, **kwargs))

    @staticmethod
    def from_spec(spec: str, weight: Tensor | None = None) -> Task:
        """Make a task of its ``spec`` and its weights."""
        return _of_spec(spec) if weight is None else Task(parse_spec(spec), weight)

    @staticmethod
    def cross_entropy(
        *,
        weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        z_loss: float = 0.0,
        focal_gamma: float = 0.0,
        class_dim: int = 1,
        reduction: str = "mean",
        uncertainty_scale: float = 1.0,
    ) -> Task:
        """Softmax cross entropy of C classes: ``torch.nn.functional.cross_entropy``.

        Parameters
        ----------
        weight : Tensor, optional
            (C,) class weights w. "mean" divides by the sum of w over the labels.
        label_smoothing : float
            0 to 1: so much of each target is spread over all classes (Szegedy et al. 2016).
        ignore_index : int
            Targets of this value have no label.
        z_loss : float
            Adds ``z_loss * logsumexp(logits)**2`` for each row, averaged over the rows that have a label,
            which keeps logits from drifting (Chowdhery et al. 2022, PaLM).
        focal_gamma : float
            Multiplies each loss by ``(1 - p_y)**focal_gamma`` (Lin et al. 2017; their alpha is ``weight``).
            Not together with label smoothing.
        class_dim : int
            Which dimension of the output holds the classes: 1 as in torch, or -1 for (B, T, C). With two
            dimensions or fewer it is the last in either case.

        Notes
        -----
        Targets are int64 classes of the output's shape without the classes, or, of the output's shape,
        probabilities (as torch takes them: averaged over the rows, without ignore_index).
        """
        return _make(
            "cross_entropy",
            weight,
            "weight",
            reduction,
            uncertainty_scale,
            label_smoothing=_number("label_smoothing", label_smoothing, 0, 1),
            ignore_index=_index("ignore_index", ignore_index),
            z_loss=_number("z_loss", z_loss, 0),
            focal_gamma=_number("focal_gamma", focal_gamma, 0),
            class_dim=_index("class_dim", class_dim, (1, -1)),
        )

    @staticmethod
    def bce_with_logits(
        *, pos_weight: Tensor | None = None, reduction: str = "mean", uncertainty_scale: float = 1.0
    ) -> Task:
        """Binary cross entropy of logits, any number of labels: ``binary_cross_entropy_with_logits``.

        ``pos_weight``: (C,), C the output's last extent, or (1,); it multiplies the positive part. Targets
        have the output's shape: probabilities, 0 and 1, or bool.
        """
        return _make("bce_with_logits", pos_weight, "pos_weight", reduction, uncertainty_scale)

    @staticmethod
    def mse(*, reduction: str = "mean", uncertainty_scale: float = 0.5) -> Task:
        """Squared error: ``mse_loss``. Targets have the output's shape."""
        return _make("mse", None, "", reduction, uncertainty_scale)

    @staticmethod
    def l1(*, reduction: str = "mean", uncertainty_scale: float = 0.5) -> Task:
        """Absolute error: ``l1_loss``. Targets have the output's shape."""
        return _make("l1", None, "", reduction, uncertainty_scale)

    @staticmethod
    def smooth_l1(*, beta: float = 1.0, reduction: str = "mean", uncertainty_scale: float = 0.5) -> Task:
        """``smooth_l1_loss``: ``d**2 / (2 beta)`` below beta, ``|d| - beta / 2`` above it."""
        number = _number("beta", beta, 0)
        return _make(
            "smooth_l1" if number else "l1", None, "", reduction, uncertainty_scale, beta=number or 1.0
        )

    @staticmethod
    def huber(*, delta: float = 1.0, reduction: str = "mean", uncertainty_scale: float = 0.5) -> Task:
        """``huber_loss``: delta times ``smooth_l1(beta=delta)``."""
        number = _number("delta", delta, 0)
        if number == 0:
            raise ValueError(f"delta: expected a number above 0, got {delta!r}")
        return _make("huber", None, "", reduction, uncertainty_scale, beta=number)

    @staticmethod
    def kl_distillation(
        *, temperature: float = 1.0, reduction: str = "mean", uncertainty_scale: float = 1.0
    ) -> Task:
        """Distillation of a teacher (Hinton et al. 2015): ``temperature**2 KL(q || p)``.

        q and p are the softmax of ``logits / temperature`` of the teacher (the targets, logits of the
        output's shape) and of the student, over the last dimension; "mean" is over the rows, as ``kl_div``'s
        "batchmean".
        """
        number = _number("temperature", temperature, 0)
        if number == 0:
            raise ValueError(f"temperature: expected a number above 0, got {temperature!r}")
        return _make("kl_distillation", None, "", reduction, uncertainty_scale, temperature=number)

    @staticmethod
    def cosine(*, reduction: str = "mean", uncertainty_scale: float = 1.0) -> Task:
        """``1 - cosine_similarity(output, target)`` over the last dimension, with torch's eps of 1e-8."""
        return _make("cosine", None, "", reduction, uncertainty_scale)

    @staticmethod
    def value(*, uncertainty_scale: float = 1.0) -> Task:
        """Take a scalar loss computed elsewhere, CTC say, as it is: the output is it, the target None."""
        return _make("value", None, "", "mean", uncertainty_scale)


def _uncertainty_scale(kind: str) -> float:
    return 0.5 if kind in _REGRESSION else 1.0


def _number(name: str, value: Any, least: float, most: float = math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    if not least <= value <= most or math.isinf(value):
        wanted = f"{least} or more" if most == math.inf else f"{least} to {most}"
        raise ValueError(f"{name}: expected a number, {wanted}, got {value!r}")
    return float(value)


def _index(name: str, value: Any, allowed: tuple[int, ...] | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int, got {value!r}")
    if allowed is not None and value not in allowed:
        raise ValueError(f"{name}: expected {' or '.join(map(str, allowed))}, got {value!r}")
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{name}: expected an int64, got {value!r}")
    return value


def _make(
    kind: str,
    weight: Tensor | None,
    weight_name: str,
    reduction: str,
    uncertainty_scale: float,
    **options: Any,
) -> Task:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: expected one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    if options.get("focal_gamma") and options.get("label_smoothing"):
        raise ValueError("focal_gamma: not together with label_smoothing")
    if weight is not None:
        if not isinstance(weight, Tensor):
            raise TypeError(f"{weight_name}: expected a tensor, got {type(weight).__name__}")
        if weight.dim() != 1 or not weight.is_floating_point():
            raise ValueError(
                f"{weight_name}: expected a floating-point tensor of shape (C,), got"
                f" {weight.dtype} of shape {tuple(weight.shape)}"
            )
        if weight.requires_grad:
            raise ValueError(f"{weight_name}: gets no gradient; detach it")
    scale = _number("uncertainty_scale", uncertainty_scale, 0)
    return Task(TaskOptions(kind, reduction, uncertainty_scale=scale, **options), weight)


@functools.lru_cache(maxsize=1024)
def parse_spec(spec: str) -> TaskOptions:
    """Options that a task's ``spec`` stands for."""
    return TaskOptions(**json.loads(spec))


@functools.lru_cache(maxsize=1024)
def _of_spec(spec: str) -> Task:
    """Tasks do not change: a compiled model asks for the same one at every step."""
    return Task(parse_spec(spec))


# The enumeration of csrc/include/mmcore/losses.h; "cross_entropy" with probabilities has a number of its own.
KINDS = (
    "cross_entropy",
    "bce_with_logits",
    "mse",
    "l1",
    "smooth_l1",
    "huber",
    "kl_distillation",
    "cosine",
    "value",
)


@functools.lru_cache(maxsize=1024)
def _core_task(options: TaskOptions) -> Any:
    return _core.LossTask(
        kind=KINDS.index(options.kind),
        reduction=REDUCTIONS.index(options.reduction),
        label_smoothing=options.label_smoothing,
        ignore_index=options.ignore_index,
        z_loss=options.z_loss,
        focal_gamma=options.focal_gamma,
        class_dim=options.class_dim,
        beta=options.beta,
        temperature=options.temperature,
        uncertainty_scale=options.uncertainty_scale,
    )
