"""Reading clips with Ray Data: a corpus of files becomes a ``ray.data.Dataset``, on one machine or many.

Ray schedules, retries, spills and streams; here is only what a task reads. Each task reads a few sources, one
core each, and gives a row for each clip.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from mmcore import threads
from mmcore.clips.options import AudioOptions, TextOptions, VideoOptions, chosen
from mmcore.decoding.many_files import as_int, check_sampler, list_sources

from .clip_rows import ClipRows, ClipSource, Row

try:
    import ray.data
    from ray.data.block import Block, BlockAccessor, BlockMetadata
    from ray.data.datasource import Datasource, ReadTask
except ImportError as error:
    raise ImportError("mmcore.interop.ray needs Ray Data: pip install 'mmcore[ray]'") from error

if TYPE_CHECKING:
    from ray.data.context import DataContext
    from torch import Tensor

    from mmcore.samplers import Sampler

__all__ = ["ClipDatasource", "read_clips"]

# Rows become a block when they hold so much: a task never keeps more of them than that in its own memory.
_BLOCK_BYTES = 32 << 20


def read_clips(
    sources: str | os.PathLike[str] | Iterable[Any],
    *,
    clip_seconds: float | None = None,
    drop_last: bool = False,
    sampler: Sampler | Callable[[Any], Sequence[int] | Tensor] | None = None,
    epoch: int = 0,
    video: bool | dict[str, Any] | VideoOptions | None = True,
    audio: bool | dict[str, Any] | AudioOptions | None = True,
    text: bool | dict[str, Any] | TextOptions | None = True,
    strict: bool = False,
    network: bool = False,
    open_source: Callable[[str], Any] | None = None,
    on_file_error: str = "raise",
    rows_per_block: int = 16,
    num_cpus: float | None = None,
    concurrency: int | None = None,
    **read_options: Any,
) -> ray.data.Dataset:
    """Read a corpus of clips with Ray Data: one row per clip, of NumPy arrays.

    Parameters
    ----------
    sources : str, os.PathLike or iterable
        A folder or a glob pattern, as for :func:`mmcore.decode_many`; or an iterable of paths, or of tuples
        (path, start, stop) for stretches of files in seconds, of which None is the file's begin or end. The
        file is opened once for tuples that follow one another.
    clip_seconds : float, optional
        Cut each source into clips of this length, one after the other. None: a source is a clip.
    drop_last : bool
        Leave out the last clip of a source if it is shorter than ``clip_seconds``.
    sampler : Sampler or callable, optional
        Which frames of each file, one of :mod:`mmcore.samplers` or a function of a decoder: instead of times.
        Sound and words are then those from the first to the end of the last of these frames. Random ones draw
        from their seed, ``epoch`` and the source's path alone.
    epoch : int
        For ``sampler``.
    video, audio, text : bool, None, dict or options
        What to read, as for :func:`mmcore.read_clip`: ``{"transform": ..., "num_frames": 16}`` and so on.
    strict, network : bool
        As for :func:`mmcore.read_clip`.
    open_source : callable, optional
        Makes of a path what :func:`mmcore.read_clip` reads, in the process that reads: for example
        ``fsspec.filesystem("s3").cat_file``, which gives bytes. What has ``with`` is closed after use.
    on_file_error : {"raise", "return", "skip"}
        What becomes of a clip that cannot be read. "raise": the error ends the execution. "return": its row
        has empty arrays and the message in ``error``. "skip": there is no row, and the worker logs a warning.
    rows_per_block : int
        Sources that one task reads, and thus the most rows of a block where a source is a clip; Ray cuts
        blocks above ``DataContext.target_max_block_size`` (128 MiB) besides. It is also what is read again
        when a worker dies.
    num_cpus : float, optional
        Cores that each task reserves and threads that it decodes with. None: what
        :func:`mmcore.set_num_threads` set in this process, else 1, which reads most clips per core.
    concurrency : int, optional
        The most tasks at a time. None: as many as there are cores for.
    **read_options
        For ``ray.data.read_datasource``, such as ``memory`` or ``resources``.

    Returns
    -------
    ray.data.Dataset
        Lazy: nothing is opened before it is used. Columns, of which those not asked for are absent:

        ``source``, ``index``, ``clip``
            The path, its position among the sources, and the clip's number in the source.
        ``start``, ``stop``, ``error``
            Seconds; and what went wrong, a string or None. A damaged stream costs no other: then there is an
            error beside data.
        ``mask``
            (M,) bool: whether the clip holds video, audio, text, of those asked for.
        ``video``, ``video_seconds``, ``video_valid``
            (T, 3, H, W), or as the transform's layout and dtype say; (T,) float64, times; (T,) bool, False
            for frames that ``on_error`` replaced.
        ``audio``, ``audio_seconds``, ``sample_rate``
            (channels, samples) float32; time of the first sample; hertz.
        ``spectrogram``, ``spectrogram_seconds``
            With ``log_mel``: (mels, frames) float32 or as its layout says; (frames,) float64, their middles.
        ``text``, ``text_start``, ``text_stop``
            Strings, and (segments,) float64.
        ``tokens``, ``token_segments``
            With ``tokenizer``: (tokens,) int64; which of ``text`` each belongs to.

        What a file lacks is an array with 0 elements and as many dimensions.

    Raises
    ------
    ValueError, TypeError
        At once, for arguments that are wrong, a folder without media files or a pattern without matches.
    ray.exceptions.RayTaskError
        During execution, for a file that fails with ``on_file_error="raise"``: of a class that is that of
        the error, too, so that ``except mmcore.DecodeError`` catches it.

    Notes
    -----
    A task gives the same rows each time it runs, so a worker or node that dies loses nothing: Ray runs its
    task again. Rows come in no fixed order unless ``DataContext.execution_options.preserve_order`` is set;
    ``index`` and ``clip`` tell it. The driver holds the list of sources; give a corpus of very many files in
    parts.

    Examples
    --------
    >>> from mmcore.interop.ray import read_clips
    >>> clips = read_clips("videos", clip_seconds=10, video={"num_frames": 16})         # doctest: +SKIP
    >>> clips.map_batches(embed, num_gpus=1).write_parquet("embeddings")                # doctest: +SKIP
    """
    if on_file_error not in ("raise", "return", "skip"):
        raise ValueError(f"on_file_error: expected 'raise', 'return' or 'skip', got {on_file_error!r}")
    if open_source is not None and not callable(open_source):
        raise TypeError(f"open_source: expected a function of a path, got {type(open_source).__name__}")
    rows = ClipRows(
        video=_checked_video(chosen("video", video, VideoOptions)),
        audio=chosen("audio", audio, AudioOptions),
        text=chosen("text", text, TextOptions),
        clip_seconds=_checked_seconds(clip_seconds),
        drop_last=bool(drop_last),
        sampler=sampler,
        epoch=as_int("epoch", epoch),
        strict=bool(strict),
        network=bool(network),
        open_source=open_source,
        on_file_error=on_file_error,
        folder=os.getcwd(),
    )
    if not rows.modalities:
        raise ValueError("video, audio, text: expected at least one of them to be read")
    listed = [_clip_source(i, source) for i, source in enumerate(list_sources(sources))]
    if not listed:
        raise ValueError("sources: expected one source or more, got none")
    _check_sampler(rows, listed)
    if num_cpus is None:
        num_cpus = threads._budget or 1
    if isinstance(num_cpus, bool) or not isinstance(num_cpus, (int, float)) or not 0 < num_cpus < math.inf:
        raise ValueError(f"num_cpus: expected a positive number, got {num_cpus!r}")
    datasource = ClipDatasource(
        listed, rows, as_int("rows_per_block", rows_per_block, 1), max(1, int(num_cpus))
    )
    dataset: ray.data.Dataset = ray.data.read_datasource(
        datasource,
        num_cpus=num_cpus,
        concurrency=concurrency,
        override_num_blocks=datasource.num_tasks,
        **read_options,
    )
    return dataset


class ClipDatasource(Datasource):
    """What :func:`read_clips` reads, for ``ray.data.read_datasource``.

    Parameters
    ----------
    sources : sequence of ClipSource
    rows : ClipRows
        How they become rows.
    rows_per_block : int
        Sources for each task.
    num_threads : int
        That a task decodes with.
    """

    def __init__(
        self, sources: Sequence[ClipSource], rows: ClipRows, rows_per_block: int, num_threads: int
    ) -> None:
        initialise: Any = super().__init__  # which has no types
        initialise()
        self._sources = sources
        self._rows = rows
        self._rows_per_block = rows_per_block
        self._num_threads = num_threads

    @property
    def num_tasks(self) -> int:
        """Number of read tasks."""
        return math.ceil(len(self._sources) / self._rows_per_block)

    def get_name(self) -> str:
        """Name of the tasks in Ray's progress and dashboard."""
        return "Clips"

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown before files are opened."""
        return None

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: DataContext | None = None,
    ) -> list[ReadTask]:
        """Tasks of ``rows_per_block`` sources, whatever the parallelism that Ray would choose."""
        step = self._rows_per_block
        parts = (self._sources[i : i + step] for i in range(0, len(self._sources), step))
        return [self._task(part, per_task_row_limit) for part in parts]

    def _task(self, sources: Sequence[ClipSource], row_limit: int | None) -> ReadTask:
        rows, num_threads = self._rows, self._num_threads
        counted = rows.clip_seconds is None and rows.on_file_error != "skip"

        def read() -> Iterator[Block]:
            return _blocks(rows, sources, num_threads)

        metadata = BlockMetadata(
            num_rows=len(sources) if counted else None,
            size_bytes=None,
            exec_stats=None,
            input_files=tuple(dict.fromkeys(source.path for source in sources)),
        )
        return ReadTask(read, metadata, per_task_row_limit=row_limit)


def _blocks(rows: ClipRows, sources: Sequence[ClipSource], num_threads: int) -> Iterator[Block]:
    """Read sources on ``num_threads`` threads; rows become a block when they are large enough."""
    before = threads._budget
    threads.set_num_threads(num_threads)
    try:
        held: list[Row] = []
        size = 0
        for row in rows.read(sources):
            held.append(row)
            size += sum(getattr(value, "nbytes", 0) for value in row.values())
            if size >= _BLOCK_BYTES:
                yield _block(held)
                held, size = [], 0
        if held:
            yield _block(held)
    finally:
        threads._budget = before  # Ray runs other tasks in this process


def _block(rows: Sequence[Row]) -> Block:
    return BlockAccessor.batch_to_block({name: [row[name] for row in rows] for name in rows[0]})


# --- checks of arguments


def _clip_source(index: int, source: Any) -> ClipSource:
    start = stop = None
    if isinstance(source, tuple):
        if len(source) != 3:
            raise ValueError(f"sources[{index}]: expected (path, start, stop), got {source!r}")
        source, start, stop = source
        for name, seconds in (("start", start), ("stop", stop)):
            if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, (int, float))):
                raise TypeError(f"sources[{index}]: {name}: expected seconds or None, got {seconds!r}")
        if start is not None and stop is not None and not start <= stop:
            raise ValueError(f"sources[{index}]: expected start <= stop, got {start} and {stop}")
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            f"sources[{index}]: expected a path, since each is opened by another process, got"
            f" {type(source).__name__}"
        )
    return ClipSource(index, os.fsdecode(source), start, stop)


def _checked_seconds(seconds: float | None) -> float | None:
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"clip_seconds: expected a number, got {seconds!r}")
    if not 0 < seconds < math.inf:
        raise ValueError(f"clip_seconds: expected a positive number, got {seconds}")
    return float(seconds)


def _checked_video(options: VideoOptions | None) -> VideoOptions | None:
    transform = None if options is None else options.transform
    if transform is not None and transform.dtype == torch.bfloat16:
        raise ValueError(
            "video: transform: dtype: rows hold NumPy arrays, which cannot be bfloat16; take float16, or"
            " uint8 and normalise later"
        )
    return options


def _check_sampler(rows: ClipRows, sources: Sequence[ClipSource]) -> None:
    check_sampler(rows.sampler)
    if rows.sampler is None:
        return
    if rows.video is None:
        raise ValueError("sampler: chooses frames, but video is not read")
    if rows.video.fps is not None or rows.video.num_frames is not None:
        raise ValueError("sampler, video: expected a sampler, or fps or num_frames, not both")
    if rows.clip_seconds is not None or any(s.start is not None or s.stop is not None for s in sources):
        raise ValueError("sampler: chooses among all frames of a file; expected no times beside it")
