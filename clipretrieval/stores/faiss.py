"""A store on FAISS: exact search in memory, kept in a folder."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipretrieval.errors import (
    FingerprintMismatchError,
    InvalidInputError,
    MissingDependencyError,
    StoreUnavailableError,
    UnsupportedOperationError,
)
from clipretrieval.stores._exact import unit_rows
from clipretrieval.stores._folder import Layout, Snapshot, find_manifest, load
from clipretrieval.stores._folder_manifest import FolderManifest
from clipretrieval.stores._folder_write import discard_unlisted, save_copy, write_generation
from clipretrieval.stores._local import LocalStore
from clipretrieval.stores._rows import VectorRows
from clipretrieval.stores._writer import WriterLock
from clipretrieval.types import FloatArray, Metric

try:
    from clipretrieval.stores._flat import FlatRows, read_rows
except ModuleNotFoundError as error:
    if error.name != "faiss":
        raise
    raise MissingDependencyError(
        "FaissStore needs FAISS, which is not installed; run: pip install faiss-cpu",
        name="faiss",
    ) from error

__all__ = ["FaissStore"]

_LAYOUT = Layout("FaissStore", "index", ".faiss", "Flat", read_rows)


class FaissStore(LocalStore):
    """Vectors in a flat FAISS index, searched exactly; in memory or in a folder.

    With a path, the folder is read when the store is opened; writes stay in memory until `flush` or `close`
    put a complete new generation in the place of the one before, so the folder always opens at the last
    flush. One store at a time may write to a folder, from its first write until it is closed; any number may
    read.

    Threads may search while one writes. Without a path the store can be pickled and copied.

    Parameters
    ----------
    path : str or Path, optional
        The store's folder, made if it is not there. None keeps the store in memory.
    metric : {"l2", "cosine", "ip"} or Metric
        Must be that of the folder. Under ``"cosine"``, vectors are kept normalised beside their norms, and
        `get` returns them to within float32 rounding.
    read_only : bool
        Refuse every write; the folder must hold a store.
    index : {"auto", "Flat"}
        The kind of index; both are the exact one.

    Raises
    ------
    InvalidInputError
        If the path is a file or a folder of something else.
    FingerprintMismatchError
        If the folder holds another metric.
    StoreCorruptedError
        If a file in the folder is missing or damaged.
    StoreLockedError
        If the store is new and another writer is making it.
    StoreUnavailableError
        If the folder cannot be read or made, or there is no store to read.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        metric: Metric | str = Metric.L2,
        read_only: bool = False,
        index: str = "auto",
    ) -> None:
        super().__init__(metric)
        if index not in ("auto", "Flat"):
            raise UnsupportedOperationError(
                f"FaissStore searches exactly: index must be 'auto' or 'Flat'; found {index!r}"
            )
        if path is None and read_only:
            raise InvalidInputError("read_only needs a path; a store in memory starts empty")
        self._path = None if path is None else Path(path).absolute()
        self._read_only = read_only
        self._loaded: FolderManifest | None = None
        self._writer: WriterLock | None = None
        self._flushing = threading.Lock()
        if self._path is not None:
            self._open(self._path)

    def flush(self) -> None:
        """Put everything written so far durably into the folder; without a path, nothing.

        Raises
        ------
        StoreUnavailableError
            If it cannot be written. What was flushed before is intact and the changes stay in memory: free
            some space and flush again.
        """
        with self._flushing, self._lock.read():
            self._require_open()
            self._write_out()

    def save(self, path: str | Path) -> None:
        """Write a complete copy into the folder `path`, atomically; into its own folder, `flush`.

        Parameters
        ----------
        path : str or Path
            A new or empty folder, or one whose store the copy replaces.

        Raises
        ------
        InvalidInputError
            If the folder holds something else.
        StoreError
            If the copy cannot be written; what was there before is intact.
        """
        target = Path(path).absolute()
        if self._path is not None and target.resolve() == self._path.resolve():
            self.flush()
            return
        with self._lock.read():
            self._require_open()
            save_copy(target, _LAYOUT, self._snapshot())

    @classmethod
    def load(cls, path: str | Path, *, read_only: bool = True) -> FaissStore:
        """Open the store in a folder under the metric that it holds.

        Parameters
        ----------
        path : str or Path
        read_only : bool
            Refuse every write.

        Raises
        ------
        StoreCorruptedError
            If a file is missing or damaged.
        StoreError
            If there is no store or another class of store wrote it.
        """
        folder = Path(path).absolute()
        manifest = find_manifest(folder)
        if manifest is None:
            raise StoreUnavailableError(f"there is no store in {folder}; check the path")
        return cls(folder, metric=manifest.metric, read_only=read_only)

    def location(self) -> dict[str, Any] | None:
        """Return the options that open the same folder elsewhere; None in memory."""
        return None if self._path is None else {"path": str(self._path), "metric": str(self._metric)}

    def __repr__(self) -> str:
        where = "" if self._path is None else f", path={str(self._path)!r}"
        mode = ", read_only=True" if self._read_only else ""
        return f"{super().__repr__()[:-1]}{where}{mode})"

    def __getstate__(self) -> dict[str, Any]:
        if self._path is not None:
            raise UnsupportedOperationError(
                f"the store in {self._path} cannot be pickled or copied: open its folder again instead, with "
                "FaissStore(**store.location(), read_only=True)"
            )
        state = super().__getstate__()
        del state["_flushing"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._flushing = threading.Lock()

    def _open(self, path: Path) -> None:
        if find_manifest(path) is not None:
            self._reload(path)
        elif self._read_only:
            raise StoreUnavailableError(f"there is no store in {path}; check the path, or open it to write")
        else:
            self._create(path)

    def _create(self, path: Path) -> None:
        """Make the folder, held for writing, with the manifest of an empty store."""
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreUnavailableError(f"the folder {path} cannot be made: {error}") from error
        lock = WriterLock(path)
        lock.acquire()
        try:
            if find_manifest(path) is None:
                self._loaded = write_generation(path, _LAYOUT, self._snapshot(), None)
            else:  # another writer made it in between
                self._reload(path)
        except BaseException:
            lock.release()
            raise
        self._writer = lock

    def _reload(self, path: Path) -> None:
        manifest, snapshot = load(path, _LAYOUT)
        if snapshot.metric is not self._metric:
            held, asked = str(snapshot.metric), str(self._metric)
            raise FingerprintMismatchError(
                f"the store in {path} was made with metric {held!r}; found metric={asked!r}. "
                f"Open it with metric={held!r}, or fill a new folder"
            )
        self._adopt(snapshot)
        self._loaded = manifest

    def _begin_write(self) -> None:
        super()._begin_write()
        if self._read_only:
            raise UnsupportedOperationError(f"{self!r} is read-only; open it with read_only=False to write")
        if self._path is None or self._writer is not None:
            return
        lock = WriterLock(self._path)
        lock.acquire()
        try:
            if find_manifest(self._path) != self._loaded:  # another writer came and went since it was read
                self._reload(self._path)
            discard_unlisted(self._path)
        except OSError as error:
            lock.release()
            raise StoreUnavailableError(f"the store in {self._path} cannot be written: {error}") from error
        except BaseException:
            lock.release()
            raise
        self._writer = lock

    def _write_out(self) -> None:
        if self._path is not None and self._changed:
            self._loaded = write_generation(self._path, _LAYOUT, self._snapshot(), self._loaded)
            self._changed = False

    def _finish(self) -> None:
        self._write_out()
        if self._writer is not None:
            self._writer.release()
            self._writer = None

    def _new_rows(self, dim: int) -> VectorRows:
        return FlatRows(dim, self._metric)

    def _stored(self, vectors: FloatArray, norms: npt.NDArray[np.float64]) -> FloatArray:
        return unit_rows(vectors, norms) if self._metric is Metric.COSINE else vectors

    def _original(self, rows: FloatArray, norms: npt.NDArray[np.float64]) -> FloatArray:
        if self._metric is not Metric.COSINE:
            return rows
        return (rows * norms[:, None]).astype(np.float32)

    def _adopt(self, snapshot: Snapshot) -> None:
        super()._adopt(snapshot)
        if self._rows is None and self._dim is not None:
            self._rows = self._new_rows(self._dim)
