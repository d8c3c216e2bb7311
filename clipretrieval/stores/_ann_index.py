"""An approximate FAISS index whose vectors are numbered as a store's rows are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import faiss as _faiss
import numpy as np
import numpy.typing as npt

from clipretrieval.errors import StoreError
from clipretrieval.stores._ann_format import is_checkable
from clipretrieval.stores._factory import inner_index
from clipretrieval.stores._flat import PIECE_BYTES
from clipretrieval.stores._table import Moves
from clipretrieval.types import FloatArray

__all__ = ["AnnIndex", "Knobs"]

# Much of what FAISS offers is missing in its type information.
faiss: Any = _faiss
IndexArray = npt.NDArray[np.int64]

# Beside k·over_fetch: ties and roundings at the end of a row.
EXTRA = 8


@dataclass(frozen=True)
class Knobs:
    """What a search may spend: the fields of `IndexInfo` of the same names."""

    nprobe: int | None
    ef_search: int | None
    over_fetch: int

    def fetch(self, k: int) -> int:
        """Return how many candidates a search for `k` neighbours asks for."""
        return k * self.over_fetch + EXTRA


class AnnIndex:
    """A trained index over rows 0 to n - 1.

    Inverted lists remove vectors, so there a vector's label is its row, and a row that moves is
    added anew. Other indexes number vectors in the order in which they were added, for ever: rows
    and labels are mapped to each other, and the label of a vector that is gone is a tombstone.

    Parameters
    ----------
    factory : str
    index
        The FAISS index.
    labels : ndarray of int64, shape (n,), optional
        Each row's label; None where the index is empty, and for inverted lists.
    """

    def __init__(self, factory: str, index: Any, labels: IndexArray | None = None) -> None:
        self.factory = factory
        self._index = index
        self._bind()
        self._labels: IndexArray = np.empty(0, dtype=np.int64) if labels is None else labels
        self._rows: IndexArray = np.full(0 if self._ivf else index.ntotal, -1, dtype=np.int64)
        if not self._ivf:
            self._rows[self._labels] = np.arange(len(self._labels))
        self._alive: Any = None

    def _bind(self) -> None:
        """Look up what the index is made of; the parts live as long as `_index`."""
        self._inner = inner_index(self._index)
        self._wrapped = isinstance(faiss.downcast_index(self._index), faiss.IndexPreTransform)
        self._ivf = isinstance(self._inner, faiss.IndexIVF)
        self._hnsw = isinstance(self._inner, faiss.IndexHNSW)

    @property
    def lists(self) -> int:
        """The number of inverted lists; 0 where there are none."""
        return int(self._inner.nlist) if self._ivf else 0

    @property
    def is_graph(self) -> bool:
        """Whether ``ef_search`` has a meaning."""
        return self._hnsw

    @property
    def keeps_vectors(self) -> bool:
        """Whether the index compares the vectors themselves, and not codes of them."""
        kept = faiss.downcast_index(self._inner.storage) if self._hnsw else self._inner
        return isinstance(kept, (faiss.IndexFlat, faiss.IndexIVFFlat)) and not self._wrapped

    @property
    def is_checkable(self) -> bool:
        """Whether the index may be kept in a file, which is checked before it is read."""
        return is_checkable(self._index)

    @property
    def tombstones(self) -> int:
        """The number of vectors in the index that are no rows any more."""
        return 0 if self._ivf else len(self._rows) - len(self._labels)

    @property
    def total(self) -> int:
        """The number of vectors in the index, tombstones included."""
        return int(self._index.ntotal)

    @property
    def dim(self) -> int:
        """The vectors' dimension."""
        return int(self._index.d)

    @property
    def labels(self) -> IndexArray | None:
        """Each row's label, if they are not the rows themselves."""
        return None if self._ivf else self._labels

    def search(self, queries: FloatArray, k: int, fetch: int, knobs: Knobs) -> IndexArray:
        """Return about `fetch` rows, best first, among them probably the `k` nearest; -1 where there is none.

        Raises
        ------
        StoreError
            If FAISS fails.
        """
        length = min(fetch, self.total)
        if not (self._ivf or self._hnsw):
            length = min(fetch + self.tombstones, self.total)
        try:
            _, found = self._index.search(queries, length, params=self._parameters(k, length, knobs))
        except (RuntimeError, MemoryError) as error:
            raise StoreError(f"FAISS could not search its index {self.factory!r}: {error}") from error
        if self._ivf:
            return np.asarray(found, dtype=np.int64)
        return np.where(found < 0, -1, self._rows[found])

    def write(self, vectors: FloatArray, places: IndexArray) -> None:
        """Add vectors under their rows, in the place of those that were there."""
        if self._ivf:
            count = self.total
            old = places[places < count]
            if len(old):
                self._index.remove_ids(faiss.IDSelectorBatch(old))
            self._index.add_with_ids(vectors, places)
            return
        start = len(self._rows)
        self._index.add(vectors)
        fresh = np.arange(start, start + len(places))
        count = max(len(self._labels), int(places.max()) + 1)
        labels = np.full(count, -1, dtype=np.int64)
        labels[: len(self._labels)] = self._labels
        gone = labels[places]
        labels[places] = fresh
        self._rows = np.concatenate([self._rows, places])
        self._rows[gone[gone >= 0]] = -1
        self._labels, self._alive = labels, None

    def remove(self, moves: Moves, moved: FloatArray) -> None:
        """Follow rows that were moved; `moved` are the vectors of ``moves.sources``."""
        if self._ivf:
            dropped = np.arange(moves.kept, self.total)
            self._index.remove_ids(faiss.IDSelectorBatch(np.concatenate([moves.targets, dropped])))
            if len(moved):
                self._index.add_with_ids(moved, moves.targets)
            return
        labels = self._labels
        kept = labels[moves.sources]
        self._rows[labels[moves.targets]] = -1
        self._rows[labels[moves.kept :]] = -1
        self._rows[kept] = moves.targets
        labels[moves.targets] = kept
        self._labels, self._alive = labels[: moves.kept].copy(), None

    def dump(self, write: Callable[[bytes], object]) -> None:
        """Write the index in FAISS's format."""
        faiss.write_index(self._index, faiss.PyCallbackIOWriter(write, PIECE_BYTES))

    def _parameters(self, k: int, length: int, knobs: Knobs) -> Any:
        """Return the parameters of one search: never is the index itself set, which others are searching."""
        if self._ivf:
            # Enough lists to hold k vectors four times over.
            needed = -(-4 * k * self.lists // max(1, self.total))
            chosen = faiss.SearchParametersIVF(nprobe=min(self.lists, max(knobs.nprobe or 1, needed)))
        elif self._hnsw:
            effort = max(knobs.ef_search or 0, 2 * length)
            chosen = faiss.SearchParametersHNSW(efSearch=effort, sel=self._selector())
        else:
            return None
        return faiss.SearchParametersPreTransform(index_params=chosen) if self._wrapped else chosen

    def _selector(self) -> Any:
        """Return what lets a graph's search return only vectors that are rows."""
        if not self.tombstones:
            return None
        alive = self._alive
        if alive is None:
            bits = np.packbits(self._rows >= 0, bitorder="little")
            alive = self._alive = faiss.IDSelectorBitmap(bits)
        return alive

    def __getstate__(self) -> dict[str, Any]:
        return {
            "factory": self.factory,
            "labels": self.labels,
            "index": faiss.serialize_index(self._index).tobytes(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        index = faiss.deserialize_index(np.frombuffer(state["index"], dtype=np.uint8))
        self.__init__(state["factory"], index, state["labels"])  # type: ignore[misc]
