"""Batches as a function of the seed and the step alone, so that a training can go on where it was cut."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmcore.recipes.processes import process_count, process_rank
from mmcore.recipes.random_state import RandomState

__all__ = ["StepBatches", "to_device"]


class StepBatches:
    """An endless stream of batches of a map-style dataset, shuffled anew in each epoch.

    ``batches(step)`` gives the batches from a step on. Which samples a batch holds, and the random numbers
    that ``dataset[i]`` draws (Python's, NumPy's and torch's), depend on the seed and on the place in the
    stream, not on the number of workers, nor on where the stream was begun.

    Parameters
    ----------
    dataset : Dataset
        With ``__len__`` and ``__getitem__``. ``set_epoch``, if it has that, is called where an epoch begins.
    batch_size : int
        Of all processes together, each of which gets an equal part.
    seed : int
    num_workers : int
        Processes that read samples; 0 reads them in the training process.
    collate_fn : callable, optional
        Makes a batch of a list of samples; torch's default collation.
    shuffle : bool
        Otherwise samples come in the dataset's order.

    Attributes
    ----------
    steps_per_epoch : int
        Batches after which every sample has been drawn.

    Raises
    ------
    ValueError
        For an empty dataset, or a batch that the processes cannot share evenly.

    Notes
    -----
    The last batch of an epoch goes on with the next epoch's samples, so that all batches are full. Workers
    are forked where the platform can: mmcore's readers are safe then. Each computes with one thread.

    With several processes the batch of a step is the same as that of one process: rank r takes the r-th of
    ``world_size`` equal parts of it.

    Examples
    --------
    >>> import torch
    >>> from mmcore.recipes import StepBatches
    >>> batches = StepBatches(torch.utils.data.TensorDataset(torch.arange(6)), batch_size=4, seed=0)
    >>> stream = batches(0)
    >>> first, second = next(stream), next(stream)
    >>> torch.equal(next(batches(1))[0], second[0])
    True
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        seed: int,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        *,
        shuffle: bool = True,
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.num_workers = num_workers
        self.collate_fn = collate_fn
        self.shuffle = shuffle
        self.length = len(dataset)  # type: ignore[arg-type]
        if not self.length:
            raise ValueError("dataset: expected at least one sample, got none")
        if batch_size < 1 or num_workers < 0:
            raise ValueError(
                f"batch_size, num_workers: expected 1 or more and 0 or more, got {batch_size}, {num_workers}"
            )
        self.steps_per_epoch = -(-self.length // batch_size)

    def __call__(self, step: int) -> Iterator[Any]:
        """Batches from ``step`` on, without an end; close the iterator to stop its workers."""
        count = process_count()
        if self.batch_size % count:
            raise ValueError(
                f"batch_size: expected a multiple of the {count} processes, got {self.batch_size}"
            )
        loader: DataLoader[Any] = DataLoader(
            _SeededSamples(self.dataset, self.seed),
            batch_sampler=_Positions(self, step),
            num_workers=self.num_workers,
            collate_fn=self.collate_fn,
            pin_memory=torch.cuda.is_initialized(),  # type: ignore[no-untyped-call]
            generator=torch.Generator(),  # the process's own is not touched
        )
        yield from loader

    def indices(self, epoch: int) -> list[int]:
        """The order of samples in an epoch."""
        if not self.shuffle:
            return list(range(self.length))
        generator = np.random.default_rng((self.seed, epoch))
        order: list[int] = generator.permutation(self.length).tolist()
        return order


class _Positions:
    """Of each batch the (position in the stream, epoch, index) of this process's samples."""

    def __init__(self, batches: StepBatches, step: int) -> None:
        self.batches = batches
        self.step = step

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        size, length = self.batches.batch_size, self.batches.length
        share = size // process_count()
        position = self.step * size + process_rank() * share
        epoch, order = -1, []
        while True:
            batch = []
            for place in range(position, position + share):
                if place // length != epoch:
                    epoch = place // length
                    order = self.batches.indices(epoch)
                batch.append((place, epoch, order[place % length]))
            yield batch
            position += size


class _SeededSamples(Dataset[Any]):
    """Reads samples with random numbers that depend on their place in the stream alone."""

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self._epoch = -1

    def __getitems__(self, places: list[tuple[int, int, int]]) -> list[Any]:
        """Read a batch's samples; torch's loader calls this once for all of them."""
        # A worker's generators are its own; those of the training process go on as if nothing had been drawn.
        in_worker = torch.utils.data.get_worker_info() is not None
        state = None if in_worker else RandomState.capture(cuda=False)
        try:
            return [self._read(*place) for place in places]
        finally:
            if state is not None:
                state.restore()

    def _read(self, position: int, epoch: int, index: int) -> Any:
        if epoch != self._epoch and hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
        self._epoch = epoch
        words = np.random.SeedSequence((self.seed, position)).generate_state(3)
        torch.default_generator.manual_seed(int(words[0]))
        np.random.seed(words[1])
        random.seed(int(words[2]))
        return self.dataset[index]


def to_device(batch: Any, device: torch.device) -> Any:
    """Copy of a batch on ``device``: tensors in mappings, sequences and named tuples, or what has ``to``."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    if hasattr(batch, "to") and not isinstance(batch, (str, bytes, Sequence)):
        return batch.to(device)
    return batch
