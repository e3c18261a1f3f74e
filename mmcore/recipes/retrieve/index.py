"""An index of media files: embeddings of their windows, kept on disk, searched by text, picture or sound."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmcore.errors import DecodeError, MMCoreError

from .errors import ModelMismatchError
from .index_files import StoredIndex, read_index, read_model, write_index
from .nearest import ApproximateNeighbors, exact_nearest
from .pairs import CLIP_SECONDS
from .retriever import Retriever, Window

__all__ = ["ClipIndex", "Hit", "IndexChanges"]

METHODS = ("auto", "exact", "approximate")


class Hit(NamedTuple):
    """What a search finds.

    Attributes
    ----------
    score : float
        Cosine of query and clip, at most 1.
    path : str
    start, stop : float
        Seconds of the file.
    metadata : dict
        As given to :meth:`ClipIndex.add`, and "modalities", those that the clip has.
    """

    score: float
    path: str
    start: float
    stop: float
    metadata: dict[str, Any]


@dataclass
class IndexChanges:
    """What :meth:`ClipIndex.add` did.

    Attributes
    ----------
    added, replaced, unchanged : list of str
        Paths of files that are new, that have changed since, and that are as they were.
    windows : int
        Embeddings that were made.
    errors : dict of str to MMCoreError
        By path, why a file was left out.
    """

    added: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    windows: int = 0
    errors: dict[str, MMCoreError] = field(default_factory=dict)


class ClipIndex:
    """Embeddings of media files and where they come from.

    Parameters
    ----------
    retriever : Retriever
        Makes the embeddings; an index is of one model.

    Notes
    -----
    Changes are in memory until :meth:`save`, which replaces the index on disk at once. Indexes hold float32:
    4 D bytes a window. They are memory-mapped when loaded, so that several programs share one copy.

    Examples
    --------
    >>> from mmcore.recipes import retrieve
    >>> index = retrieve.ClipIndex(retrieve.load("run"))                                # doctest: +SKIP
    >>> index.add(["a.mp4", "b.mp4"])                                                   # doctest: +SKIP
    >>> index.save("index")                                                             # doctest: +SKIP
    >>> index.search("a large red circle moving left", k=3)[0].path                     # doctest: +SKIP
    """

    def __init__(self, retriever: Retriever) -> None:
        self.retriever = retriever
        self._entries: list[dict[str, Any]] = []
        self._embeddings: NDArray[np.float32] = np.empty((0, retriever.dim), np.float32)
        self._neighbors: ApproximateNeighbors | None = None

    @classmethod
    def load(cls, folder: str | os.PathLike[str], retriever: Retriever, *, verify: bool = True) -> ClipIndex:
        """Open what :meth:`save` wrote.

        Parameters
        ----------
        folder : path
        retriever : Retriever
            The model that made it.
        verify : bool
            Read all data once, to see that it is what was written.

        Raises
        ------
        ClipIndexError
            If there is no index, or it is damaged.
        ModelMismatchError
            If another model made it.

        Notes
        -----
        Without faiss an index with a graph of neighbours is searched exactly, and saved without it.
        """
        stored = read_index(Path(folder), verify=verify)
        made_by = stored.model.get("fingerprint")
        if made_by != retriever.fingerprint or stored.embeddings.shape[1] != retriever.dim:
            raise ModelMismatchError(
                f"{folder}: made by the model {made_by} of {stored.model.get('folder')}, not by"
                f" {retriever.fingerprint} of {retriever.folder}; index the files again"
            )
        index = cls(retriever)
        index._entries, index._embeddings = stored.entries, stored.embeddings
        index._neighbors = stored.neighbors
        return index

    @staticmethod
    def made_by(folder: str | os.PathLike[str]) -> dict[str, str]:
        """The "fingerprint" and the "folder" of the model that made an index.

        Raises
        ------
        ClipIndexError
            If there is no index, or it is damaged.
        """
        return read_model(Path(folder))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the index; a folder that holds one has the old or the new one, whole, at any moment."""
        model = {
            "fingerprint": self.retriever.fingerprint,
            "folder": str(self.retriever.folder.absolute()),
        }
        write_index(Path(folder), StoredIndex(model, self._entries, self._embeddings, self._neighbors))

    def __len__(self) -> int:
        """Windows."""
        return len(self._entries)

    @property
    def paths(self) -> list[str]:
        """The files, in the order in which they were added."""
        return list(dict.fromkeys(entry["path"] for entry in self._entries))

    @property
    def embeddings(self) -> NDArray[np.float32]:
        """(N, D) float32, for reading."""
        return self._embeddings

    @property
    def has_neighbors(self) -> bool:
        """Whether there is a graph for approximate search."""
        return self._neighbors is not None

    # --- what it holds

    def add(
        self,
        files: Iterable[str | os.PathLike[str]],
        *,
        window_seconds: float = CLIP_SECONDS,
        hop_seconds: float | None = None,
        metadata: Mapping[str, Any] | Callable[[str], Mapping[str, Any]] | None = None,
        on_error: str = "raise",
        on_file: Callable[[str], object] | None = None,
    ) -> IndexChanges:
        """Embed files; those that are there already, and have not changed on disk, are passed over.

        Parameters
        ----------
        files : iterable of path
            Kept as absolute paths.
        window_seconds, hop_seconds : float
            How long files are cut, as for :meth:`Retriever.windows`.
        metadata : mapping, or callable of the path, optional
            Kept with each window of a file, and given back by :meth:`search`: anything that JSON holds.
        on_error : {"raise", "skip"}
            What a file that cannot be read does. Files before it are added; what the index already had of it
            stays.
        on_file : callable, optional
            Called with each path when it is done.

        Raises
        ------
        DecodeError
            For a file that is missing, damaged, or without pictures and sound.
        TypeError
            For metadata that JSON does not hold.
        """
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error: expected raise or skip, got {on_error!r}")
        changes = IndexChanges()
        cut = [float(window_seconds), float(window_seconds if hop_seconds is None else hop_seconds)]
        known = {entry["path"]: (entry.get("stamp"), entry.get("cut")) for entry in self._entries}
        entries: list[dict[str, Any]] = []
        rows: list[NDArray[np.float32]] = []
        seen: set[str] = set()
        try:
            for file in files:
                path = os.path.abspath(file)
                if path in seen:
                    continue
                seen.add(path)
                stamp = _stamp(path)
                if stamp is not None and known.get(path) == (stamp, cut):
                    changes.unchanged.append(path)
                else:
                    try:
                        windows = self._windows(path, window_seconds, hop_seconds)
                    except MMCoreError as error:
                        if on_error == "raise":
                            raise
                        changes.errors[path] = error
                        continue
                    given = dict((metadata(path) if callable(metadata) else metadata) or {})
                    json.dumps(given)  # refused now, not when the index is saved
                    for window in windows:
                        about = {**given, "modalities": list(window.modalities)}
                        entries.append(
                            {
                                "path": path,
                                "start": window.start,
                                "stop": window.stop,
                                "stamp": stamp,
                                "cut": cut,
                                "metadata": about,
                            }
                        )
                        rows.append(window.embedding.numpy())
                    (changes.replaced if path in known else changes.added).append(path)
                    changes.windows += len(windows)
                if on_file is not None:
                    on_file(path)
        finally:
            if changes.replaced:
                self.remove(changes.replaced)
            if rows:
                self._append(entries, np.stack(rows).astype(np.float32))
        return changes

    def _windows(self, path: str, window_seconds: float, hop_seconds: float | None) -> list[Window]:
        windows = list(self.retriever.windows(path, window_seconds=window_seconds, hop_seconds=hop_seconds))
        if not windows:
            raise DecodeError(f"{path}: has neither pictures nor sound")
        return windows

    def _append(self, entries: list[dict[str, Any]], rows: NDArray[np.float32]) -> None:
        self._entries = self._entries + entries
        self._embeddings = np.concatenate([self._embeddings, rows])
        if self._neighbors is not None:
            self._neighbors.add(rows)

    def remove(self, files: Iterable[str | os.PathLike[str]]) -> int:
        """Take files out; the number of windows that went. A graph of neighbours goes with them.

        Raises
        ------
        ValueError
            For a file that is not in the index; nothing is removed then.
        """
        paths = {os.path.abspath(file) for file in files}
        missing = paths - {entry["path"] for entry in self._entries}
        if missing:
            raise ValueError(f"{sorted(missing)[0]}: is not in the index")
        kept = [i for i, entry in enumerate(self._entries) if entry["path"] not in paths]
        gone = len(self._entries) - len(kept)
        if gone:
            self._entries = [self._entries[i] for i in kept]
            self._embeddings = self._embeddings[kept]
            self._neighbors = None
        return gone

    def link_neighbors(self) -> None:
        """Make the graph for approximate search; worth its time from some hundred thousand windows on.

        Later files are linked as they are added.

        Raises
        ------
        ImportError
            If faiss is not installed.
        """
        self._neighbors = ApproximateNeighbors.build(self._embeddings)

    # --- searching

    def search(
        self,
        text: str | None = None,
        *,
        picture: Any = None,
        sound: Any = None,
        clip: str | os.PathLike[str] | None = None,
        embedding: Any = None,
        k: int = 10,
        method: str = "auto",
    ) -> list[Hit]:
        """Find the windows most like the query.

        Parameters
        ----------
        text : str, optional
        picture, sound, clip : optional
            As :meth:`Retriever.embed_picture`, ``embed_sound`` and ``embed_clip`` take them.
        embedding : array, optional
            (D,), made before. Of several queries the mean of their embeddings is looked for: what is like all
            of them.
        k : int
            How many, at most.
        method : {"auto", "exact", "approximate"}
            "approximate" asks the graph of :meth:`link_neighbors` and may miss some; "auto" does if there is
            one.

        Returns
        -------
        list of Hit
            Best first; of equal scores what was added first.

        Raises
        ------
        ValueError
            Without a query, for k below 1, or for "approximate" without a graph.
        """
        if k < 1:
            raise ValueError(f"k: expected 1 or more, got {k}")
        if method not in METHODS:
            raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
        if method == "approximate" and self._neighbors is None:
            raise ValueError("method: 'approximate' needs link_neighbors() first")
        query = self._query(text, picture, sound, clip, embedding)[None]
        if self._neighbors is None or method == "exact":
            scores, rows = exact_nearest(query, self._embeddings, k)
        else:
            _, found = self._neighbors.search(query, k)
            rows = np.sort(found[found >= 0])
            # Scored and ordered as an exact search does it.
            scores, order = exact_nearest(query, self._embeddings[rows], k)
            rows = rows[order]
        return [
            Hit(float(score), *(self._entries[row][name] for name in ("path", "start", "stop", "metadata")))
            for score, row in zip(scores[0], rows[0], strict=True)
        ]

    def _query(self, text: Any, picture: Any, sound: Any, clip: Any, embedding: Any) -> NDArray[np.float32]:
        parts: list[NDArray[np.float32]] = []
        for given, embed in (
            (text, self.retriever.embed_text),
            (picture, self.retriever.embed_picture),
            (sound, self.retriever.embed_sound),
            (clip, self.retriever.embed_clip),
        ):
            if given is not None:
                parts.append(embed(given).numpy())
        if embedding is not None:
            parts.append(np.asarray(embedding, np.float32))
        if not parts:
            raise ValueError("expected a query: text, picture, sound, clip or embedding")
        for part in parts:
            if part.shape != (self.retriever.dim,):
                raise ValueError(f"query: expected one embedding ({self.retriever.dim},), got {part.shape}")
        mean: NDArray[np.float32] = np.mean(parts, axis=0)
        length = float(np.linalg.norm(mean))
        if not np.isfinite(length) or length == 0:
            raise ValueError("query: expected an embedding of finite numbers that are not all 0")
        return (mean / length).astype(np.float32)


def _stamp(path: str) -> Sequence[int] | None:
    """What changes when a file does: its size and the time of its last change."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]
