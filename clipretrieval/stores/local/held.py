"""All records of a local store: those in its folder's segments, and those that came since."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from clipretrieval.stores.base import listings
from clipretrieval.stores.exact import IndexArray
from clipretrieval.stores.local.rows import VectorRows
from clipretrieval.stores.local.segment import Columns
from clipretrieval.stores.local.segments import BitArray, Segments
from clipretrieval.stores.local.table import RecordTable
from clipretrieval.types import AnyArray, FloatArray, Label, Listing

__all__ = ["HeldRecords", "JoinedRows"]

# A part of a scan, in values: 32 MB.
PIECE = 1 << 23


class HeldRecords:
    """Rows in segments, and after them rows in memory.

    Each row has a number, by which it is asked for: those in memory come after all of the segments, removed
    ones included.

    Parameters
    ----------
    segments : Segments
    table : RecordTable
    rows : VectorRows or None
        Of the records in `table`; None only where it is empty.
    index : object, optional
        What a subclass of `LocalStore` knows of an index over the segments; has `filed`, as this has.
    """

    def __init__(
        self, segments: Segments, table: RecordTable, rows: VectorRows | None, index: Any = None
    ) -> None:
        self.segments, self.table, self.rows, self.index = segments, table, rows, index

    def __len__(self) -> int:
        return len(self.segments) + len(self.table)

    @property
    def label_dtype(self) -> Any:
        """The type of the labels; None where there are none."""
        if len(self.segments):
            return np.dtype(object) if self.segments.has_texts else np.dtype(np.int64)
        return self.table.labels.dtype if len(self.table) else None

    @property
    def some_label(self) -> AnyArray:
        """An array of the labels' type, empty only where there is no label."""
        return np.empty(min(1, len(self)), dtype=self.label_dtype)

    @property
    def longest(self) -> float:
        """A bound on the norms of the vectors."""
        return max(self.segments.longest, float(self.table.norms.max()) if len(self.table) else 0.0)

    def filed(self, folder: Path, generation: int) -> HeldRecords:
        """Return what is held with all that is known of segments in files of a folder, ready to be named.

        Raises
        ------
        OSError
            If one cannot be written.
        """
        segments = self.segments.filed(folder, generation)
        index = None if self.index is None else self.index.filed(folder, generation)
        return HeldRecords(segments, self.table, self.rows, index)

    def find(self, names: Sequence[str]) -> IndexArray:
        """Return the row of each id, -1 where it is not stored."""
        found = self.segments.find(names)
        here = self.table.find(names)
        return np.where(here >= 0, here + self.segments.total, found)

    def view(self) -> FloatArray | JoinedRows:
        """Return the vectors, without removed ones."""
        pending = None if self.rows is None else self.rows.view()
        if pending is not None and not len(self.segments):
            return pending
        return JoinedRows(self.segments, pending)

    def number(self, places: IndexArray) -> IndexArray:
        """Return the numbers of rows by their places in `view`, of any shape; -1 stays."""
        numbers, left = self.segments.numbers, len(self.segments)
        if numbers is None:
            return places
        moved = places + (self.segments.total - left)
        inside = (places >= 0) & (places < left)
        moved[inside] = numbers[places[inside]]
        moved[places < 0] = -1
        return moved

    def vectors(self, rows: IndexArray) -> FloatArray:
        """Return a copy of the vectors of some rows."""
        here, there = self._apart(rows)
        if self.rows is None or not len(here):
            return self.segments.vectors(rows)
        held = self.rows.view()
        if not len(there):
            return held[rows - self.segments.total]
        out: FloatArray = np.empty((len(rows), held.shape[1]), dtype=np.float32)
        out[here] = held[rows[here] - self.segments.total]
        out[there] = self.segments.vectors(rows[there])
        return out

    def norms(self, rows: IndexArray) -> Any:
        """Return the norms of some rows."""
        here, there = self._apart(rows)
        out = np.empty(len(rows))
        out[here] = self.table.norms[rows[here] - self.segments.total]
        out[there] = self.segments.norms(rows[there])
        return out

    def take(self, rows: IndexArray) -> tuple[AnyArray, AnyArray]:
        """Return ids and labels of `rows`, of any shape; ``""`` and ``-1`` or ``""`` where a row is -1."""
        if not len(self.segments):
            return self.table.take(np.where(rows < 0, -1, rows - self.segments.total))
        dtype, padding = self.label_dtype, "" if self.segments.has_texts else -1
        different, back = np.unique(rows, return_inverse=True)
        ids: AnyArray = np.full(len(different), "", dtype=object)
        labels: AnyArray = np.full(len(different), padding, dtype=dtype)
        here, there = self._apart(different)
        ids[here], labels[here] = self.table.take(different[here] - self.segments.total)
        there = there[different[there] >= 0]
        ids[there] = self.segments.ids(different[there])
        labels[there] = self.segments.labels(different[there])
        back = back.reshape(rows.shape)
        return ids[back], labels[back]

    def __getitem__(self, places: IndexArray) -> AnyArray:
        """Return ids by the places of their rows in `view`."""
        return self.take(self.number(places))[0]

    def columns(self, rows: IndexArray) -> Columns:
        """Return all that is kept beside the vectors of some rows."""
        ids, labels = self.take(rows)
        here, there = self._apart(rows)
        texts = np.empty(len(rows), dtype=object)
        texts[here] = [self.table.metadata_texts[row] for row in (rows[here] - self.segments.total).tolist()]
        texts[there] = self.segments.texts(rows[there])
        return Columns(ids.tolist(), labels, self.norms(rows), texts.tolist())

    def metadata(self, rows: IndexArray) -> list[dict[str, Any]]:
        """Return fresh copies of the metadata of some rows."""
        here, there = self._apart(rows)
        found = np.empty(len(rows), dtype=object)
        found[here] = self.table.metadata(rows[here] - self.segments.total)
        found[there] = self.segments.metadata(rows[there])
        out: list[dict[str, Any]] = found.tolist()
        return out

    def count(self, label: Label) -> int:
        """Return the number of records with one label; one of the other type is that of none."""
        return self.table.count(label) + self.segments.count(label)

    def listings(self, label: Label | None) -> Iterator[Listing]:
        """Go through ids and labels as they are now, in no certain order."""
        pending = listings(self.table.ids.copy(), self.table.labels.copy(), label)
        return _chained(pending, self.segments.listings(label))

    def _apart(self, rows: IndexArray) -> tuple[IndexArray, IndexArray]:
        """Return the places of rows in memory, and those of the others."""
        here = rows >= self.segments.total
        return np.flatnonzero(here), np.flatnonzero(~here)


class JoinedRows:
    """The vectors of segments, without removed ones, and after them those in memory; as an array of both.

    Parameters
    ----------
    segments : Segments
    pending : ndarray of float32, shape (m, dim), optional
    first : int
        Leave out so many of what is left in the segments.
    """

    def __init__(self, segments: Segments, pending: FloatArray | None, first: int = 0) -> None:
        self._segments, self._pending, self._first = segments, pending, first
        self._left = len(segments) - first
        self._count = self._left + (0 if pending is None else len(pending))

    def __len__(self) -> int:
        return self._count

    @cached_property
    def shape(self) -> tuple[int, int]:
        """The number of rows, and of dimensions."""
        dim = self._segments.parts[0].dim if self._segments.parts else 0
        return self._count, dim if self._pending is None else self._pending.shape[1]

    def __getitem__(self, key: slice | IndexArray) -> FloatArray:
        places = np.arange(*key.indices(self._count)) if isinstance(key, slice) else np.asarray(key)
        if len(places) and not (places.min() >= 0 and places.max() < self._count):
            raise IndexError(f"rows {places.min()} to {places.max()} of {self._count}")
        inside = places < self._left
        if self._pending is not None and not inside.any():
            return self._pending[places - self._left]
        numbers, rows = self._segments.numbers, places[inside] + self._first
        found = self._segments.vectors(rows if numbers is None else numbers[rows])
        if self._pending is None:
            return found
        out: FloatArray = np.empty((len(places), self.shape[1]), dtype=np.float32)
        out[inside], out[~inside] = found, self._pending[places[~inside] - self._left]
        return out

    def blocks(self) -> Iterator[tuple[FloatArray, BitArray | None]]:
        """Go through arrays of up to `PIECE` values in which all rows lie, and tell which are rows."""
        yield from self._segments.whole_blocks(self._first, max(1, PIECE // max(1, self.shape[1])))
        if self._pending is not None and len(self._pending):
            yield self._pending, None


def _chained(*parts: Iterator[Listing]) -> Iterator[Listing]:
    for part in parts:
        yield from part
