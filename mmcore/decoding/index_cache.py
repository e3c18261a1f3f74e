"""Packet indices kept in files, for whoever opens the same media file again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import warnings
from array import array
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

from .index import FrameIndex
from .source import Source

__all__ = ["BESIDE", "IndexCache", "index_cache"]

BESIDE = "beside"
_SUFFIX = ".mmcore-index"
# Raise it when the meaning of an index's fields changes.
_VERSION = 1
_MAGIC = b"mmcore index\n"
_ARRAYS = {
    "pts": "q", "frame_packet": "i", "packet_pts": "q", "packet_flags": "B", "packet_size": "I",
    "packet_pictures": "H", "packet_counts": "B",
    "sync_pts": "q", "sync_dts": "q", "sync_order": "q", "sync_frame": "q",
}  # fmt: skip


@cache
def _makers() -> list[Any]:
    """What an index depends on beside the file: FFmpeg's demuxers, and how arrays lie in memory."""
    import sys

    import av

    versions = av.library_versions
    return [_VERSION, sys.byteorder, list(versions["libavformat"]), list(versions["libavcodec"])]


def index_cache(source: Source, place: str | os.PathLike[str] | None) -> IndexCache | None:
    """The cache that ``index=`` means for ``source``; None if there is none, or the source is no local file.

    Raises
    ------
    TypeError, ValueError
        If ``place`` is neither "beside" nor the path of a folder.
    """
    if place is None:
        return None
    try:
        name = os.fsdecode(place)
    except TypeError:
        raise TypeError(f"index: expected 'beside', a folder or None, got {place!r}") from None
    if not name:
        raise ValueError("index: expected 'beside', a folder or None, got an empty string")
    path = source.local_path
    if name != BESIDE and os.path.exists(name) and not os.path.isdir(name):
        raise ValueError(f"index: expected 'beside', a folder or None, but {name} is a file")
    if path is None:
        return None
    media = Path(path)
    if name == BESIDE:
        return IndexCache(media, media.parent, media.name)
    full = os.path.realpath(path)
    digest = hashlib.sha256(full.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return IndexCache(media, Path(name), f"{media.stem[:100]}-{digest}")


class IndexCache:
    """The saved index of one media file.

    It is checked against the file's size and time of change and the versions of what read it: one that does
    not fit, or cannot be read, counts as none and is replaced.

    Parameters
    ----------
    media : Path
    folder : Path
        Made at need. If it cannot be written to, a UserWarning says so, and nothing is saved.
    stem : str
        What the saved file's name begins with.
    """

    def __init__(self, media: Path, folder: Path, stem: str) -> None:
        self._media, self._folder, self._stem = media, folder, stem
        # Read before the media file is: one that changes meanwhile must not pass for what was indexed.
        self._state = self._media_state()

    def path(self, stream_index: int) -> Path:
        """Where the index of a stream is saved."""
        return self._folder / f"{self._stem}.{stream_index}{_SUFFIX}"

    def _media_state(self) -> list[int]:
        state = self._media.stat()
        return [state.st_size, state.st_mtime_ns]

    def load(self, stream_index: int) -> FrameIndex | None:
        """The saved index; None if there is none that fits."""
        try:
            content = self.path(stream_index).read_bytes()
        except OSError:
            return None
        try:
            return self._read(content, stream_index)
        except (ValueError, KeyError, TypeError, IndexError, ZeroDivisionError):
            return None

    def _read(self, content: bytes, stream_index: int) -> FrameIndex | None:
        if not content.startswith(_MAGIC):
            return None
        head, _, body = content[len(_MAGIC) :].partition(b"\n")
        told = json.loads(head)
        if told["for"] != [*_makers(), stream_index, *self._state]:
            return None
        if hashlib.blake2b(body, digest_size=16).hexdigest() != told["digest"]:
            return None
        arrays: dict[str, Any] = {}
        at = 0
        for name, code in _ARRAYS.items():
            values = array(code)
            length = told["lengths"][name] * values.itemsize
            values.frombytes(body[at : at + length])
            arrays[name], at = values, at + length
        return FrameIndex(
            time_base=Fraction(*told["time_base"]),
            end=told["end"],
            reorder_depth=told["reorder_depth"],
            counted=told["counted"],
            damage=told["damage"],
            **arrays,
        )

    def save(self, stream_index: int, index: FrameIndex) -> None:
        """Save ``index``, whole or not at all, also beside others that do the same."""
        body = b"".join(getattr(index, name).tobytes() for name in _ARRAYS)
        head = {
            "for": [*_makers(), stream_index, *self._state],
            "lengths": {name: len(getattr(index, name)) for name in _ARRAYS},
            "time_base": [index.time_base.numerator, index.time_base.denominator],
            "end": index.end,
            "reorder_depth": index.reorder_depth,
            "counted": index.counted,
            "damage": index.damage,
            "digest": hashlib.blake2b(body, digest_size=16).hexdigest(),
        }
        part = None
        try:
            if self._media_state() != self._state:
                return  # it is being written
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._folder, suffix=".part", delete=False) as file:
                part = file.name
                file.write(_MAGIC + json.dumps(head).encode() + b"\n" + body)
            os.replace(part, self.path(stream_index))
        except OSError as error:
            if part is not None:
                with contextlib.suppress(OSError):
                    os.unlink(part)
            warnings.warn(
                f"index: {self.path(stream_index)} cannot be written, the packet index is not kept: {error}",
                UserWarning,
                stacklevel=2,
            )
