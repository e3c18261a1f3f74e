"""The embeddings nearest to a query: exactly, by one product of matrices, or approximately, by faiss.

Embeddings are rows of length 1, so that the inner product is the cosine of the angle between two of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcore.errors import MMCoreError

__all__ = ["ApproximateNeighbors", "exact_nearest", "faiss_installed"]

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

# Float32 products of rows of length 1 are off by less than this, whatever order they are summed in.
_ROUNDING = 1e-5


def exact_nearest(
    queries: Floats, embeddings: Floats, k: int, *, chunk_rows: int = 65536
) -> tuple[Floats, Rows]:
    """The ``k`` rows of ``embeddings`` with the largest inner products, best first.

    Parameters
    ----------
    queries : ndarray
        (Q, D) float32, rows of length 1.
    embeddings : ndarray
        (N, D) float32, rows of length 1; may be memory-mapped.
    k : int
        At least 1; of fewer rows all are returned.
    chunk_rows : int
        Rows that are multiplied at a time; memory is ``Q * chunk_rows`` floats. Results do not depend on it.

    Returns
    -------
    scores : ndarray
        (Q, min(k, N)) float32.
    rows : ndarray
        (Q, min(k, N)) int64. Among equal scores the earlier row comes first.

    Notes
    -----
    A matrix product's rounding depends on where a row lies in it, so equal embeddings may score differently.
    The float32 product therefore only chooses candidates, with room for its rounding; these are scored again
    one by one in float64, which makes order and ties the same for every chunk size and thread count.
    """
    k = min(k, len(embeddings))
    scores = np.empty((len(queries), k), np.float32)
    rows = np.empty((len(queries), k), np.int64)
    if not k:
        return scores, rows
    chosen: list[Rows] = [np.empty(0, np.int64)] * len(queries)
    rough: list[Floats] = [np.empty(0, np.float32)] * len(queries)
    for start in range(0, len(embeddings), chunk_rows):
        products = queries @ embeddings[start : start + chunk_rows].T
        for q, row in enumerate(products):
            values = np.concatenate([rough[q], row])
            places = np.concatenate([chosen[q], np.arange(start, start + len(row))])
            if len(values) > k:
                keep = values >= np.partition(values, -k)[-k] - _ROUNDING
                values, places = values[keep], places[keep]
            rough[q], chosen[q] = values, places
    for q, places in enumerate(chosen):
        exact = (embeddings[places].astype(np.float64) * queries[q].astype(np.float64)).sum(1)
        best = np.lexsort((places, -exact))[:k]
        scores[q], rows[q] = exact[best], places[best]
    return scores, rows


def faiss_installed() -> bool:
    """Whether approximate search is possible."""
    from importlib.util import find_spec

    return find_spec("faiss") is not None


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "approximate search needs faiss: pip install 'mmcore[recipes]'; method='exact' does without"
        ) from error
    return faiss


class ApproximateNeighbors:
    """A graph of neighbours (HNSW) over embeddings, searched in time that hardly grows with their number.

    Malkov and Yashunin 2016, as faiss has it. Made by :meth:`build`, kept by :meth:`save` and :meth:`load`.

    Parameters
    ----------
    graph : faiss.Index
    """

    LINKS = 32
    """Neighbours of a node; more find more and take more memory, 8 bytes each."""
    BUILD_WIDTH = 80
    """Candidates kept while a node is linked."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph

    @classmethod
    def build(cls, embeddings: Floats) -> ApproximateNeighbors:
        """Link the rows of ``embeddings`` (N, D) float32 of length 1.

        Raises
        ------
        ImportError
            If faiss is not installed.
        """
        faiss = _faiss()
        graph = faiss.IndexHNSWFlat(embeddings.shape[1], cls.LINKS, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = cls.BUILD_WIDTH
        graph.add(np.ascontiguousarray(embeddings, np.float32))
        return cls(graph)

    def add(self, embeddings: Floats) -> None:
        """Link more rows."""
        self._graph.add(np.ascontiguousarray(embeddings, np.float32))

    def __len__(self) -> int:
        return int(self._graph.ntotal)

    def search(self, queries: Floats, k: int, *, width: int = 128) -> tuple[Floats, Rows]:
        """As :func:`exact_nearest`, but may miss some; of a larger ``width`` fewer, in more time."""
        faiss = _faiss()
        k = min(k, len(self))
        settings = faiss.SearchParametersHNSW(efSearch=max(width, k))
        scores, rows = self._graph.search(np.ascontiguousarray(queries, np.float32), k, params=settings)
        order = np.lexsort((rows, -scores), axis=1)
        return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)

    def save(self, path: Path) -> None:
        """Write to a file."""
        _faiss().write_index(self._graph, str(path))

    @classmethod
    def load(cls, path: Path) -> ApproximateNeighbors:
        """Read what :meth:`save` wrote.

        Raises
        ------
        MMCoreError
            If the file is missing or damaged.
        """
        faiss = _faiss()
        try:
            return cls(faiss.read_index(str(path)))
        except RuntimeError as error:
            raise MMCoreError(f"{path}: no graph of neighbours that faiss can read") from error
