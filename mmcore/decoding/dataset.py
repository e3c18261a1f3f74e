"""Datasets of videos for ``torch.utils.data.DataLoader``: by position, or as a stream that can be resumed."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from mmcore import threads
from mmcore.errors import MMCoreError
from mmcore.ops.frame_transform import FrameTransform
from mmcore.samplers import seeded_random

from .many_files import (
    AnySampler,
    as_int,
    check_decoder_options,
    check_sampler,
    list_sources,
    read_frames,
    release_frames,
)

__all__ = ["IterableVideoDataset", "VideoDataset"]

Sample: TypeAlias = dict[str, Any]
ErrorHandler: TypeAlias = "Callable[[int, Any, Exception], object]"

_log = logging.getLogger("mmcore")
# What a file can be blamed for; any other error is a mistake in a program and is never passed over.
_FILE_ERRORS = (MMCoreError, OSError, ValueError, IndexError)
_UNEVEN = ("pad", "drop", "keep")
# Of the shared counters: the epoch, then failures for each worker, so that no two processes write to one.
_EPOCH, _FAILURES, _COUNTERS = 0, 1, 1 + 256


class _VideoSamples:
    """What both datasets are made of: sources, how one becomes a sample, and what happens if it does not."""

    def __init__(
        self,
        sources: str | os.PathLike[str] | Iterable[Any],
        sampler: AnySampler,
        transform: FrameTransform | None,
        labels: Sequence[Any] | None,
        postprocess: Callable[[Sample], Any] | None,
        on_file_error: str | ErrorHandler,
        decoder_options: dict[str, Any],
    ) -> None:
        self.sources = list(list_sources(sources))
        if not self.sources:
            raise ValueError("sources: expected one source or more, got none")
        if labels is not None and len(labels) != len(self.sources):
            raise ValueError(f"labels: expected {len(self.sources)}, one per source, got {len(labels)}")
        if on_file_error not in ("raise", "skip") and not callable(on_file_error):
            raise ValueError(f"on_file_error: expected 'raise', 'skip' or a function, got {on_file_error!r}")
        if postprocess is not None and not callable(postprocess):
            raise TypeError(f"postprocess: expected a function, got {type(postprocess).__name__}")
        check_sampler(sampler)
        self._options = {**decoder_options, "transform": transform}
        check_decoder_options(self._options)
        self.sampler = sampler
        self.labels = labels
        self._postprocess = postprocess
        self._on_file_error = on_file_error
        self._budget: int | None = None  # a thread budget that came along by pickling
        self._share_counters(torch.zeros(_COUNTERS, dtype=torch.int64))

    def _share_counters(self, counters: torch.Tensor) -> None:
        self._counters = counters
        with contextlib.suppress(RuntimeError, OSError):  # without, persistent workers keep their epoch
            self._counters.share_memory_()  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        # A spawned process knows nothing of a budget that was set in this one.
        return {**self.__dict__, "_budget": threads._budget or self._budget}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._share_counters(self._counters)

    # --- epoch and failures

    @property
    def epoch(self) -> int:
        """Number of the pass over the data, from which random samplers and the shuffling draw."""
        return int(self._counters[_EPOCH])

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; to be called before each pass. Reaches persistent workers too."""
        self._counters[_EPOCH] = as_int("epoch", epoch)

    @property
    def num_failed(self) -> int:
        """How often a source failed and was passed over, in all workers of this DataLoader."""
        return int(self._counters[_FAILURES:].sum())

    # --- samples

    def _num_threads(self) -> int:
        """Threads for a decoder: the budget, divided among the DataLoader's workers."""
        info = get_worker_info()
        budget = threads.get_num_threads()
        if info is not None and threads._budget is None and self._budget is not None:
            budget = self._budget
        return max(1, budget // (1 if info is None else info.num_workers))

    def _read(self, position: int, epoch: int) -> Sample:
        options = {"num_threads": self._num_threads(), **self._options}
        frames, batch = read_frames(self.sources[position], position, self.sampler, epoch, options)
        valid = torch.ones(len(batch), dtype=torch.bool) if batch.valid is None else batch.valid
        sample: Sample = {
            "data": batch.data,
            "pts_seconds": batch.pts_seconds,
            "duration_seconds": batch.duration_seconds,
            "valid": valid,
            "frames": torch.tensor(frames, dtype=torch.int64),
            "index": position,
        }
        if self.labels is not None:
            sample["label"] = self.labels[position]
        return sample

    def _try(self, position: int, epoch: int) -> Sample | None:
        """The sample, before postprocessing; None if it failed and may be passed over."""
        try:
            return self._read(position, epoch)
        except _FILE_ERRORS as error:
            if self._on_file_error == "raise":
                raise
            info = get_worker_info()
            worker = 0 if info is None else info.id
            self._counters[_FAILURES + worker % (_COUNTERS - _FAILURES)] += 1
            release_frames(error)
            if callable(self._on_file_error):
                self._on_file_error(position, self.sources[position], error)
            else:
                _log.warning("passed over source %d: %s", position, error)
            return None

    def _finish(self, sample: Sample) -> Any:
        return sample if self._postprocess is None else self._postprocess(sample)


class VideoDataset(_VideoSamples, Dataset[Any]):
    """Videos by position: ``dataset[i]`` decodes frames of source ``i`` into a dict of tensors.

    Parameters
    ----------
    sources : str, os.PathLike or iterable
        As in :func:`mmcore.decode_many`: a folder, a glob pattern, or whatever
        :class:`mmcore.VideoDecoder` takes.
    sampler : Sampler or callable, optional
        Which frames of each video, see :mod:`mmcore.samplers`; by default all. Batches need samplers that
        give each video the same number of frames.
    transform : FrameTransform, optional
        What to make of each frame; batches need a size that does not depend on the video.
    labels : sequence, optional
        One per source, of anything that the DataLoader can collate.
    postprocess : callable, optional
        Applied to each sample, in the worker; its result takes the sample's place.
    on_file_error : {"raise", "skip"} or callable
        For a source that fails with an MMCoreError, OSError, ValueError or IndexError. "skip": count it in
        ``num_failed`` and log a warning; a function is called with (position, source, error) instead of the
        warning. The next source that does not fail then takes its place, since every position must give a
        sample.
    **decoder_options
        For :class:`mmcore.VideoDecoder`, such as ``index``, ``on_error``, ``seek_mode``, ``device``. By
        default ``num_threads`` is the worker's share, ``mmcore.get_num_threads()`` by the number of workers.

    Attributes
    ----------
    sources, labels : list, sequence or None
    epoch, num_failed : int

    Raises
    ------
    ValueError, TypeError
        For arguments that are wrong.

    Notes
    -----
    A sample holds ``data`` as :class:`mmcore.FrameBatch`, ``pts_seconds`` and ``duration_seconds`` (N,)
    float64, ``valid`` (N,) bool, ``frames`` (N,) int64, the frames' numbers, ``index``, the position of the
    source, and ``label`` if there are labels. A decoder is opened for each sample and closed after it.

    What a random sampler draws depends on its seed, the epoch and the position alone, whatever the number of
    workers: call :meth:`set_epoch` before each pass to draw anew. Fork and spawn will both do; what is given
    must be picklable for spawn. ``DistributedSampler`` divides positions among ranks.

    With ``device="cuda"`` each worker would hold a CUDA context, and must be spawned: leave frames on the CPU
    in workers and move batches, or do without workers.
    """

    def __init__(
        self,
        sources: str | os.PathLike[str] | Iterable[Any],
        sampler: AnySampler = None,
        transform: FrameTransform | None = None,
        *,
        labels: Sequence[Any] | None = None,
        postprocess: Callable[[Sample], Any] | None = None,
        on_file_error: str | ErrorHandler = "raise",
        **decoder_options: Any,
    ) -> None:
        super().__init__(sources, sampler, transform, labels, postprocess, on_file_error, decoder_options)

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, position: int) -> Any:
        """The sample of source ``position``.

        Raises
        ------
        IndexError
            If there is no such source.
        DecodeError, ValueError, IndexError, UnsupportedError
            If the source fails and ``on_file_error`` is "raise", or all sources fail.
        """
        count = len(self)
        if not -count <= position < count:
            raise IndexError(f"position: there is no source {position}, there are {count}")
        for offset in range(count):
            sample = self._try((position + offset) % count, self.epoch)
            if sample is not None:
                return self._finish(sample)
        raise ValueError(f"sources: all {count} failed")

    def state_dict(self) -> dict[str, Any]:
        """The epoch, for ``torchdata``'s ``StatefulDataLoader``; positions are its sampler's."""
        return {"epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the epoch of a saved state."""
        self.set_epoch(state["epoch"])


class IterableVideoDataset(_VideoSamples, IterableDataset[Any]):
    """Videos as a stream: shuffled, divided among ranks and workers, and resumable anywhere.

    Parameters
    ----------
    sources, sampler, transform, labels, postprocess, **decoder_options
        As in :class:`VideoDataset`.
    shuffle : bool
        Go through the sources in a random order that depends on ``seed`` and the epoch alone.
    seed : int
    rank, world_size : int, optional
        Which part of how many this process reads. By default those of ``torch.distributed`` if it is
        initialised, else the environment's RANK and WORLD_SIZE, as torchrun sets them, else all.
    uneven : {"pad", "drop", "keep"}
        If the sources do not divide by the number of ranks: repeat the first of the order, as
        ``DistributedSampler`` does; leave out the last; or let some ranks have one more.
    on_file_error : {"raise", "skip"} or callable
        As in :class:`VideoDataset`, but nothing takes the place of a source that fails: ranks may then have
        different numbers of samples.

    Attributes
    ----------
    sources, labels : list, sequence or None
    epoch, num_failed : int

    Raises
    ------
    ValueError, TypeError
        For arguments that are wrong.

    Notes
    -----
    Samples are those of :class:`VideoDataset`. ``len`` is the number of samples of this rank, all its workers
    together; a DataLoader's own ``len`` may be less than the number of its batches, since each worker fills
    batches of its own.

    ``state_dict`` tells how far the last iterator of this process has come. After ``load_state_dict`` the
    next iterator gives exactly the rest of that pass, whatever epoch is set, and those after it whole passes.
    ``torchdata``'s ``StatefulDataLoader`` calls both in each worker. A state fits a dataset of the same
    number of sources, with the same order, ranks and workers.
    """

    def __init__(
        self,
        sources: str | os.PathLike[str] | Iterable[Any],
        sampler: AnySampler = None,
        transform: FrameTransform | None = None,
        *,
        shuffle: bool = False,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        uneven: str = "pad",
        labels: Sequence[Any] | None = None,
        postprocess: Callable[[Sample], Any] | None = None,
        on_file_error: str | ErrorHandler = "raise",
        **decoder_options: Any,
    ) -> None:
        super().__init__(sources, sampler, transform, labels, postprocess, on_file_error, decoder_options)
        if (rank is None) != (world_size is None):
            raise ValueError(f"rank, world_size: expected both or neither, got {rank} and {world_size}")
        if rank is not None and world_size is not None and not 0 <= rank < world_size:
            raise ValueError(f"rank: expected 0 <= rank < world_size = {world_size}, got {rank}")
        if uneven not in _UNEVEN:
            raise ValueError(f"uneven: expected one of {', '.join(map(repr, _UNEVEN))}, got {uneven!r}")
        self._shuffle = bool(shuffle)
        self._seed = as_int("seed", seed)
        self._replica = None if rank is None or world_size is None else (rank, world_size)
        self._uneven = uneven
        # Of the last iterator: its epoch, and how many sources of this part it has passed.
        self._reached: tuple[int, int] | None = None
        self._resumed: tuple[int, int] | None = None  # the same, for the next one to start from

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker does not know the process group of this process.
        return {**super().__getstate__(), "_replica": self._replica or _replica_of_process()}

    # --- this process's part

    def _part(self) -> tuple[int, int, int, int]:
        """(rank, world size, worker, number of workers)."""
        info = get_worker_info()
        worker = (0, 1) if info is None else (info.id, info.num_workers)
        return *(self._replica or _replica_of_process() or (0, 1)), *worker

    def _order(self, epoch: int) -> list[int]:
        """Positions of the sources in the order in which this rank reads them."""
        rank, world_size, _, _ = self._part()
        count = len(self.sources)
        order = list(range(count))
        if self._shuffle:
            draw = seeded_random("order", self._seed, epoch).random
            order.sort(key=[draw() for _ in order].__getitem__)
        if self._uneven == "drop":
            order = order[: count - count % world_size]
        elif self._uneven == "pad":
            order += [order[i % count] for i in range(-count % world_size)]
        return order[rank::world_size]

    def __len__(self) -> int:
        rank, world_size, _, _ = self._part()
        count = len(self.sources)
        if self._uneven == "keep":
            return len(range(rank, count, world_size))
        return count // world_size if self._uneven == "drop" else -(-count // world_size)

    def __iter__(self) -> Iterator[Any]:
        """The samples of this worker's part."""
        # Not a generator: the state is right as soon as there is an iterator, not at its first sample.
        epoch, start = self._reached = self._resumed or (self.epoch, 0)
        self._resumed = None
        _, _, worker, num_workers = self._part()
        return self._samples(self._order(epoch)[worker::num_workers], epoch, start)

    def _samples(self, positions: list[int], epoch: int, start: int) -> Iterator[Any]:
        for i in range(start, len(positions)):
            sample = self._try(positions[i], epoch)
            self._reached = epoch, i + 1
            if sample is not None:
                yield self._finish(sample)

    # --- resuming

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` needs to go on after the sample that came last."""
        epoch, position = self._resumed or self._reached or (self.epoch, 0)
        return {"epoch": epoch, "position": position, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next iterator go on where ``state`` was taken.

        Raises
        ------
        ValueError
            If the state belongs to other sources, another order, or another division among ranks and workers.
        """
        for name, value in self._identity().items():
            if state[name] != value:
                raise ValueError(f"state: belongs to a dataset with {name} {state[name]}, this has {value}")
        self.set_epoch(state["epoch"])
        self._resumed = state["epoch"], state["position"]

    def _identity(self) -> dict[str, Any]:
        rank, world_size, worker, num_workers = self._part()
        return {
            "num_sources": len(self.sources),
            "shuffle": self._shuffle,
            "seed": self._seed,
            "uneven": self._uneven,
            "rank": rank,
            "world_size": world_size,
            "worker": worker,
            "num_workers": num_workers,
        }


def _replica_of_process() -> tuple[int, int] | None:
    """(rank, world size) of this process, if anything tells them."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    try:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        return None
