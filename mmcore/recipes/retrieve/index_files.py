"""How an index lies on disk, and what is refused when it is read.

A folder holds ``index.json`` (format, model, a list of entries, the names of the files below),
``embeddings-DIGEST.npy`` (float32, (N, D), memory-mapped) and, of large ones, ``neighbors-DIGEST.faiss``.
Files of data have the digest of their content in their name and are never changed: saving writes new ones and
then replaces ``index.json`` at once, so that a reader sees the old index or the new one, whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import ClipIndexError
from .nearest import ApproximateNeighbors, faiss_installed

__all__ = ["StoredIndex", "read_index", "read_model", "write_index"]

FORMAT = "mmcore clip index"
VERSION = 1
_LISTING = "index.json"
_DIGITS = 16  # of the digest in a name: 64 bits, against damage, not against malice


class StoredIndex(NamedTuple):
    """What an index's folder holds."""

    model: dict[str, Any]
    entries: list[dict[str, Any]]
    embeddings: NDArray[np.float32]
    neighbors: ApproximateNeighbors | None


def write_index(folder: Path, stored: StoredIndex) -> None:
    """Write ``stored``; whatever happens, the folder then holds a whole index, this one or the one before.

    Raises
    ------
    OSError
        If something cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = np.ascontiguousarray(stored.embeddings, np.float32)
    listing: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "model": stored.model,
        "shape": list(rows.shape),
        "embeddings": _write(folder, "embeddings", ".npy", lambda path: _save_rows(path, rows)),
        "neighbors": None,
        "entries": stored.entries,
    }
    if stored.neighbors is not None:
        listing["neighbors"] = _write(folder, "neighbors", ".faiss", stored.neighbors.save)
    text = json.dumps(listing, indent=1)
    _replace(folder / _LISTING, lambda path: path.write_text(text, encoding="utf-8"))
    for pattern in ("embeddings-*.npy", "neighbors-*.faiss"):
        for old in folder.glob(pattern):
            if old.name not in (listing["embeddings"], listing["neighbors"]):
                # A system that keeps mapped files from being removed lets the next save try again.
                with suppress(OSError):
                    old.unlink()


def read_index(folder: Path, *, verify: bool = True) -> StoredIndex:
    """Read what :func:`write_index` wrote; the embeddings are memory-mapped.

    Parameters
    ----------
    folder : Path
    verify : bool
        Whether to compare the data's digests, which takes reading all of it once.

    Raises
    ------
    ClipIndexError
        If there is no index, or it is damaged or of a later version.
    """
    listing = _read_listing(folder / _LISTING)
    # Someone may save between our reading the list and opening what it names.
    if not (folder / listing["embeddings"]).exists():
        listing = _read_listing(folder / _LISTING)
    path = folder / listing["embeddings"]
    _check_digest(path, verify)
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ClipIndexError(f"{path}: cannot be read as an array: {error}") from error
    if rows.dtype != np.float32 or list(rows.shape) != listing["shape"]:
        raise ClipIndexError(
            f"{path}: expected float32 of shape {listing['shape']}, got {rows.dtype} of {list(rows.shape)}"
        )
    if len(rows) != len(listing["entries"]):
        raise ClipIndexError(f"{folder}: {len(rows)} embeddings, but {len(listing['entries'])} entries")
    neighbors = None
    if listing["neighbors"] is not None and faiss_installed():  # without it all are compared
        path = folder / listing["neighbors"]
        _check_digest(path, verify)
        neighbors = ApproximateNeighbors.load(path)
        if len(neighbors) != len(rows):
            raise ClipIndexError(f"{path}: links {len(neighbors)} embeddings, expected {len(rows)}")
    return StoredIndex(listing["model"], listing["entries"], rows, neighbors)


def read_model(folder: Path) -> dict[str, str]:
    """What an index says of the model that made it: its "fingerprint" and its "folder".

    Raises
    ------
    ClipIndexError
        As for :func:`read_index`.
    """
    path = folder / _LISTING
    model = _read_listing(path)["model"]
    _check_fields(path, "model: ", model, {"fingerprint": str, "folder": str})
    return dict(model)


_EXPECTED: dict[str, type | tuple[type, ...]] = {
    "model": dict,
    "shape": list,
    "embeddings": str,
    "neighbors": (str, type(None)),
    "entries": list,
}
_ENTRY: dict[str, type | tuple[type, ...]] = {
    "path": str,
    "start": (int, float),
    "stop": (int, float),
    "metadata": dict,
}


def _read_listing(path: Path) -> dict[str, Any]:
    try:
        listing = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ClipIndexError(f"{path.parent}: no index there; 'mmcore retrieve index' makes one") from error
    except NotADirectoryError as error:
        raise ClipIndexError(f"{path.parent}: expected an index's folder, got a file") from error
    except (ValueError, RecursionError) as error:
        raise ClipIndexError(f"{path}: damaged, expected JSON: {error}") from error
    if not isinstance(listing, dict) or listing.get("format") != FORMAT:
        raise ClipIndexError(f"{path}: expected the list of an {FORMAT}")
    if listing.get("version") != VERSION:
        raise ClipIndexError(f"{path}: of version {listing.get('version')!r}, this mmcore reads {VERSION}")
    _check_fields(path, "", listing, _EXPECTED)
    for number, entry in enumerate(listing["entries"]):
        if not isinstance(entry, dict):
            raise ClipIndexError(f"{path}: entry {number}: expected an object, got {type(entry).__name__}")
        _check_fields(path, f"entry {number}: ", entry, _ENTRY)
    for name in (listing["embeddings"], listing["neighbors"]):
        if name is not None and Path(name).name != name:  # the list leads to files of this folder only
            raise ClipIndexError(f"{path}: expected the name of a file beside it, got {name!r}")
    return listing


def _check_fields(
    path: Path, where: str, found: dict[str, Any], expected: dict[str, type | tuple[type, ...]]
) -> None:
    for name, kind in expected.items():
        if name not in found or not isinstance(found[name], kind) or isinstance(found[name], bool):
            raise ClipIndexError(f"{path}: {where}{name!r} is missing or of a wrong type")


def _check_digest(path: Path, verify: bool) -> None:
    if not path.is_file():
        raise ClipIndexError(f"{path}: is missing, though the index names it")
    if verify and _digest(path) != path.stem.rpartition("-")[2]:
        raise ClipIndexError(f"{path}: damaged, its content is not what was written")


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:_DIGITS]


def _save_rows(path: Path, rows: NDArray[np.float32]) -> None:
    with open(path, "wb") as file:  # by name, numpy would append a suffix
        np.save(file, rows)


def _write(folder: Path, stem: str, suffix: str, save: Callable[[Path], object]) -> str:
    """Write a file of data, named after its content."""
    with _part(folder / f"{stem}{suffix}") as part:
        save(part)
        name = f"{stem}-{_digest(part)}{suffix}"
        part.replace(folder / name)
    return name


def _replace(path: Path, save: Callable[[Path], object]) -> None:
    with _part(path) as part:
        save(part)
        part.replace(path)


@contextmanager
def _part(path: Path) -> Iterator[Path]:
    """A name beside ``path`` that nobody else uses; what is left there at the end is removed."""
    part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)
