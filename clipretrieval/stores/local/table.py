"""What is kept beside the vectors, row by row: ids, labels, metadata and norms, in memory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np

from clipretrieval.stores.checks import Batch
from clipretrieval.stores.exact import DoubleArray, IndexArray
from clipretrieval.types import AnyArray, Label

__all__ = ["Excerpt", "Moves", "RecordTable", "grown", "shrunk"]


@dataclass(frozen=True, eq=False)
class Moves:
    """How rows are removed without leaving holes: the last rows move into the places of removed ones.

    Attributes
    ----------
    sources, targets : ndarray of int64, same length
        Row ``sources[i]`` moves to ``targets[i]``; no place is in both.
    kept : int
        The number of rows that stay.
    removed : int
    """

    sources: IndexArray
    targets: IndexArray
    kept: int
    removed: int


@dataclass(frozen=True, eq=False)
class Excerpt:
    """Labels, norms and metadata of some records, to be put back."""

    labels: AnyArray
    norms: DoubleArray
    metadata: list[str]


class RecordTable:
    """Ids, labels, metadata and norms in rows 0 to ``len(table) - 1``, in the order of the vectors' rows.

    Attributes
    ----------
    metadata_size : int
        So many characters of metadata were written.
    """

    def __init__(self) -> None:
        self._count = 0
        self._rows: dict[str, int] = {}
        self._ids: AnyArray = np.empty(0, dtype=object)
        self._labels: AnyArray = np.empty(0, dtype=object)
        self._norms: DoubleArray = np.empty(0)
        self._metadata: list[str] = []
        self.metadata_size = 0
        self._label_counts: Counter[Label] | None = None  # from the first time on that one is asked for

    @classmethod
    def from_columns(
        cls, ids: list[str], labels: AnyArray, norms: DoubleArray, metadata: list[str]
    ) -> RecordTable:
        """Return a table with these columns, each of length n."""
        table = cls()
        table._count = len(ids)
        table._rows = dict(zip(ids, range(len(ids)), strict=True))
        table._ids = np.empty(len(ids), dtype=object)
        table._ids[:] = ids
        table._labels, table._norms, table._metadata = labels, norms, metadata
        return table

    def __len__(self) -> int:
        return self._count

    @property
    def ids(self) -> AnyArray:
        """Array of object (str), shape (n,)."""
        return self._ids[: self._count]

    @property
    def labels(self) -> AnyArray:
        """Array of int64 or of object (str), shape (n,)."""
        return self._labels[: self._count]

    @property
    def norms(self) -> DoubleArray:
        """Norms of the vectors as they were given, shape (n,)."""
        return self._norms[: self._count]

    @property
    def metadata_texts(self) -> list[str]:
        """JSON text of each record's metadata, length n."""
        return self._metadata

    def count(self, label: Label) -> int:
        """Return the number of records with one label; one of the other type is that of none."""
        if self._label_counts is None:
            self._label_counts = Counter(self.labels.tolist())
        return self._label_counts[label]

    def _recount(self, counts: Counter[Label] | None, gone: list[Label], come: list[Label]) -> None:
        if counts is not None:
            counts.update(come)
            counts.subtract(gone)
            for label in gone:
                if not counts[label]:
                    del counts[label]
        self._label_counts = counts

    def places(self, ids: list[str]) -> IndexArray:
        """Return the row where each id's record lies or, for a new id, the next free row, shape (n,)."""
        rows = self.find(ids)
        new = np.flatnonzero(rows < 0)
        rows[new] = np.arange(self._count, self._count + len(new))
        return rows

    def find(self, ids: Iterable[str]) -> IndexArray:
        """Return each id's row, -1 where it is not stored."""
        return np.array(list(map(self._rows.get, ids, repeat(-1))), dtype=np.int64)

    def reserve(self, batch: Batch, places: IndexArray) -> None:
        """Make room for `write`, which then cannot run out of memory half-way."""
        extra = max(self._count, int(places.max()) + 1) - self._count
        if not self._count:
            self._labels = np.empty(0, dtype=batch.labels.dtype)
        self._ids = grown(self._ids, self._count, extra)
        self._labels = grown(self._labels, self._count, extra)
        self._norms = grown(self._norms, self._count, extra)

    def write(self, batch: Batch, places: IndexArray) -> None:
        """Write the batch's records into the rows that `places` gave for its ids, after `reserve`."""
        counts, self._label_counts = self._label_counts, None  # should this be interrupted
        gone = [] if counts is None else self._labels[places[places < self._count]].tolist()
        count = max(self._count, int(places.max()) + 1)
        rows = places.tolist()
        self._ids[places] = batch.ids
        self._labels[places] = batch.labels
        self._norms[places] = batch.norms
        self._rows.update(zip(batch.ids, rows, strict=True))
        self._metadata.extend([""] * (count - len(self._metadata)))
        for row, text in zip(rows, batch.metadata, strict=True):
            self._metadata[row] = text
        self._count = count
        self.metadata_size += sum(map(len, batch.metadata))
        self._recount(counts, gone, batch.labels.tolist())

    def excerpt(self, rows: IndexArray) -> Excerpt:
        """Return a copy of what `write` would replace in `rows`."""
        return Excerpt(self._labels[rows], self._norms[rows], [self._metadata[row] for row in rows.tolist()])

    def restore(self, kept: Excerpt, rows: IndexArray, ids: list[str], count: int) -> None:
        """Undo a write of `ids` that may be half done: put `kept` back into `rows`, keep `count` records."""
        self._label_counts = None
        for name in ids:
            if self._rows.get(name, -1) >= count:
                del self._rows[name]
        self._labels[rows], self._norms[rows] = kept.labels, kept.norms
        for row, text in zip(rows.tolist(), kept.metadata, strict=True):
            self._metadata[row] = text
        self._count = count
        del self._metadata[count:]

    def plan_removal(self, ids: Iterable[str]) -> Moves:
        """Work out how to remove the records of `ids`; unknown ids are skipped."""
        found = np.unique(self.find(ids))
        found = found[found >= 0]
        kept = self._count - len(found)
        staying = np.ones(len(found), dtype=bool)
        staying[found[found >= kept] - kept] = False
        return Moves(np.flatnonzero(staying) + kept, found[found < kept], kept, len(found))

    def remove(self, moves: Moves) -> None:
        """Remove what `plan_removal` worked out, or what an interruption has left of it."""
        counts, self._label_counts = self._label_counts, None  # should this be interrupted
        gone, come = list[Label](), list[Label]()
        if self._count > moves.kept:
            if counts is not None:
                gone = [
                    *self._labels[moves.targets].tolist(),
                    *self._labels[moves.kept : self._count].tolist(),
                ]
                come = self._labels[moves.sources].tolist()
            for name in self._ids[moves.targets].tolist() + self._ids[moves.kept : self._count].tolist():
                self._rows.pop(name, None)
            for column in (self._ids, self._labels, self._norms):
                column[moves.targets] = column[moves.sources]
            for source, target in zip(moves.sources.tolist(), moves.targets.tolist(), strict=True):
                self._metadata[target] = self._metadata[source]
                self._rows[self._ids[target]] = target
            self._count = moves.kept
        self._recount(counts, gone, come)
        del self._metadata[moves.kept :]
        self._ids = shrunk(self._ids, self._count)
        self._labels = shrunk(self._labels, self._count)
        self._norms = shrunk(self._norms, self._count)

    def take(self, rows: IndexArray) -> tuple[AnyArray, AnyArray]:
        """Return ids and labels of `rows`, of any shape; ``""`` and ``-1`` or ``""`` where a row is -1."""
        labels = self.labels if self._count else np.empty(0, dtype=object)
        return _gathered(self.ids, rows, ""), _gathered(labels, rows, "" if labels.dtype == object else -1)

    def metadata(self, rows: IndexArray) -> list[dict[str, Any]]:
        """Return fresh copies of the metadata of `rows`."""
        return [json.loads(self._metadata[row]) for row in rows.tolist()]


def grown(array: AnyArray, used: int, extra: int) -> AnyArray:
    """Return an array with room for `extra` rows after the first `used`; if it must grow, it doubles."""
    if used + extra <= len(array):
        return array
    larger = np.empty((max(2 * used, used + extra), *array.shape[1:]), dtype=array.dtype)
    larger[:used] = array[:used]
    return larger


def shrunk(array: AnyArray, used: int) -> AnyArray:
    """Return an array without the memory after the first `used` rows, where that is most of it."""
    if 4 * used > len(array):
        if array.dtype == object:
            array[used:] = None
        return array
    try:
        return array[:used].copy()
    except MemoryError:
        return array


def _gathered(column: AnyArray, rows: IndexArray, padding: object) -> AnyArray:
    missing = rows < 0
    if not len(column):
        return np.full(rows.shape, padding, dtype=column.dtype)
    taken = column[np.where(missing, 0, rows)]
    taken[missing] = padding
    return taken
