"""The training loop of all recipes: :class:`Trainer`."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmcore.ops.devices import check_cuda_device
from mmcore.recipes.batches import StepBatches
from mmcore.recipes.interruption import Interruption
from mmcore.recipes.processes import local_device, process_count, process_rank, start_processes
from mmcore.recipes.progress import ProgressBar
from mmcore.recipes.train_settings import TrainSettings
from mmcore.recipes.training_log import History
from mmcore.recipes.training_run import TrainingError, TrainingPlan, TrainingRun

__all__ = ["History", "StepBatches", "TrainSettings", "Trainer", "TrainingError"]


class Trainer:
    """Trains a model: steps of Adam on batches, with evaluations, checkpoints and logs on the way.

    Parameters
    ----------
    model : nn.Module
        Any; it is moved to ``device``, and its parameters that require a gradient are trained, those of a
        :class:`mmcore.nn.MultiTaskLoss` in it included.
    compute_loss : callable
        ``compute_loss(model, batch) -> (total, {name: loss})``: what to minimise, and the tasks' losses to
        record. With several processes it must give the same names in all.
    batches : callable
        ``batches(n)`` iterates over batches from number n on, a pure function of n; a :class:`StepBatches` is
        one. With ``accumulate``, a step takes so many. With several processes, each one's part of them.
    settings : TrainSettings
    folder : path
        Where ``history.csv``, ``evaluations.csv``, ``settings.json``, ``tensorboard/`` (if TensorBoard is
        installed) and ``checkpoint/`` are written; by the first process alone.
    evaluate : callable, optional
        ``evaluate(model) -> {metric: number}``, called in evaluation mode without gradients, with the moving
        average of the weights if there is one. The training's random numbers do not depend on it. The first
        process evaluates for all; under FSDP all do.
    monitor : str, optional
        The metric by which the best weights are kept, and the training is stopped early.
    mode : {"max", "min"}
        Whether more of ``monitor`` is better, or less.
    device : str or torch.device
        Under torchrun "cuda" is each process's own GPU.
    progress : bool
        Show a progress bar, on a terminal.

    Raises
    ------
    ValueError, TypeError
        For arguments that do not fit each other.
    UnsupportedError
        For a CUDA device that is not there.

    Notes
    -----
    ``MultiTaskLoss`` modules get what their strategies wait for: ``end_epoch`` after each
    ``batches.steps_per_epoch``, if ``batches`` has that, and ``update`` with the losses after the step (for
    strategies that read it, FAMO, at the price of a second forward).

    With several processes (``torchrun``, or a group made by the caller) the batch of a step is shared among
    them. Losses of ``MultiTaskLoss`` modules are means over all labels of the joint batch, so that missing
    labels do not change what is learned: see :mod:`mmcore.recipes.joint_losses`. Others should be means over
    equal parts, or :func:`mmcore.recipes.processes.joint_mean`.

    Examples
    --------
    >>> import torch
    >>> from mmcore.recipes import StepBatches, Trainer, TrainSettings
    >>> data = torch.utils.data.TensorDataset(torch.randn(64, 3), torch.randn(64, 1))
    >>> def compute_loss(model, batch):
    ...     loss = torch.nn.functional.mse_loss(model(batch[0]), batch[1])
    ...     return loss, {"mse": loss}
    >>> settings = TrainSettings(steps=20, batch_size=16)
    >>> trainer = Trainer(torch.nn.Linear(3, 1), compute_loss, StepBatches(data, 16, seed=0), settings,
    ...                   folder="run")                                                # doctest: +SKIP
    >>> len(trainer.fit().losses["mse"])                                               # doctest: +SKIP
    20
    """

    def __init__(
        self,
        model: nn.Module,
        compute_loss: Callable[[Any, Any], tuple[Tensor, Mapping[str, Tensor]]],
        batches: Callable[[int], Iterator[Any]],
        settings: TrainSettings,
        *,
        folder: str | os.PathLike[str],
        evaluate: Callable[[Any], Mapping[str, float]] | None = None,
        monitor: str | None = None,
        mode: str = "max",
        device: str | torch.device = "cpu",
        progress: bool = True,
    ) -> None:
        if mode not in ("max", "min"):
            raise ValueError(f"mode: expected max or min, got {mode!r}")
        if monitor is not None and evaluate is None:
            raise ValueError(f"monitor: {monitor!r} needs evaluate to be given")
        if settings.patience is not None and monitor is None:
            raise ValueError("patience: stopping early needs monitor to be given")
        check_cuda_device(device)
        self.model = model
        self.settings = settings
        self.folder = Path(folder)
        sign = 1.0 if mode == "max" else -1.0
        self._plan = TrainingPlan(
            model, compute_loss, batches, settings, self.folder, evaluate, monitor, sign
        )
        self._device = device
        self._progress = progress

    def fit(self, resume: bool = False) -> History:
        """Train until the last step, an early stop, or an interruption.

        Parameters
        ----------
        resume : bool
            Go on from ``checkpoint/last.pt`` of the folder, exactly as if there had been no interruption;
            from the beginning if there is none.

        Returns
        -------
        History
            Of the whole training, what was before it was resumed included. The model then has the weights
            that ``monitor`` found best, or without it the last ones, or their moving average.

        Raises
        ------
        TrainingError
            If a loss or gradient is not finite. With float16 on a GPU, after many such steps on end.
        CheckpointError
            If the checkpoint is damaged, or of another model.
        ValueError
            If it was made with other settings.

        Notes
        -----
        Ctrl-C and SIGTERM end the training after the present step, with a checkpoint, and ``stopped`` of the
        result is "interrupted"; one that comes more than a second later acts at once.
        """
        device = local_device(self._device)
        start_processes(device)
        run = TrainingRun(self._plan, device, resume)
        with contextlib.ExitStack() as stack:
            stack.callback(run.log.close)
            stop = stack.enter_context(Interruption())
            bar = stack.enter_context(
                ProgressBar(
                    self.settings.steps,
                    run.step,
                    self.settings.batch_size * self.settings.accumulate,
                    monitor=self._plan.monitor,
                    shown=self._progress and process_rank() == 0,
                )
            )
            if process_count() > 1:
                stack.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", "Grad strides do not match")  # DDP: of 1x1 convolutions
            run.train(stop, bar)
        run.keep_best()
        return run.history
