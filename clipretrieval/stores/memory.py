"""A store in a NumPy array: exact, with nothing to install, and what the other stores are compared with."""

from __future__ import annotations

from pathlib import Path

from clipretrieval._util.checks import check_path
from clipretrieval.stores.local.folder import Kind, read_store
from clipretrieval.stores.local.folder_write import require_whole, save_copy
from clipretrieval.stores.local.rows import ArrayRows, VectorRows
from clipretrieval.stores.local.store import LocalStore
from clipretrieval.types import Metric

__all__ = ["MemoryStore"]


class MemoryStore(LocalStore):
    """Vectors in this process's memory, searched exactly by matrix products.

    Threads may search while one writes. It can be pickled and copied; `save` writes it into a folder.

    Parameters
    ----------
    metric : {"l2", "cosine", "ip"} or Metric
        See `Metric`.

    Examples
    --------
    >>> import numpy as np
    >>> store = MemoryStore()
    >>> store.upsert(["a", "b"], np.array([[0.0, 0.0], [3.0, 4.0]]), ["cat", "dog"])
    >>> near = store.search(np.array([[0.0, 1.0]]), k=2)
    >>> near.distances.tolist(), near.labels.tolist()
    ([[1.0, 18.0]], [['cat', 'dog']])
    """

    _kind = Kind("MemoryStore")

    def __init__(self, metric: Metric | str = Metric.L2) -> None:
        super().__init__(metric)

    def save(self, path: str | Path) -> None:
        """Write a complete copy into the folder `path`, atomically.

        Parameters
        ----------
        path : str or Path
            A new or empty folder, or one whose store the copy replaces.

        Raises
        ------
        InvalidInputError
            If the folder holds something else, or is the current folder and empty.
        StoreError
            If the copy cannot be written, in which case what was there before is intact, or not be synced to
            the disk; the message says which.
        """
        target = check_path(path, "path").absolute()
        with self._guard.hold():
            self._require_open()
            require_whole(target, self._held)
            save_copy(target, self._fill)

    @classmethod
    def load(cls, path: str | Path) -> MemoryStore:
        """Return a store in memory with the contents of a copy that `save` wrote.

        Raises
        ------
        StoreCorruptedError
            If a file is missing or damaged.
        StoreError
            If there is no store or another class of store wrote it.
        """
        snapshot = read_store(check_path(path, "path").absolute(), cls._kind)
        store = cls(snapshot.manifest.metric)
        store._adopt(snapshot)
        store._take_into_memory()
        store._changed = False
        return store

    def __sklearn_clone__(self) -> MemoryStore:
        return type(self)(self._metric)  # empty, as a clone is not fitted

    def _new_rows(self, dim: int) -> VectorRows:
        return ArrayRows(dim)
