"""An approximate index over the first rows of a folder's segments."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from clipretrieval._util.forks import ForkLock
from clipretrieval.stores.exact import IndexArray, nearest_rows
from clipretrieval.stores.faiss.files import copied, index_files, read_ann
from clipretrieval.stores.faiss.flat import HeldRows, shortlist_of
from clipretrieval.stores.faiss.index import EXTRA, AnnIndex, BitArray, Flat, Knobs
from clipretrieval.stores.faiss.state import AnnState, IndexInfo
from clipretrieval.stores.local.folder_manifest import FileEntry
from clipretrieval.stores.local.folder_write import FileDump
from clipretrieval.stores.local.held import Held, JoinedRows
from clipretrieval.stores.local.segment import MappedFile
from clipretrieval.types import FloatArray, Metric

__all__ = ["Covering", "SeenIndex"]


class Covering:
    """An index that never changes, over the rows that were there when it was written.

    Rows that were removed since are not returned, and rows that came since are compared exactly. Its files
    are verified and read when it is first asked.

    Parameters
    ----------
    state : AnnState
    covered : int
        The number of rows.
    metric : Metric
    dim : int
    index : AnnIndex, optional
        The index, where it is in memory.
    files : mapping of str to MappedFile
        Its files otherwise, by their roles.
    entries : mapping of str to FileEntry
        What the manifest says of them, where they are in the folder.
    """

    def __init__(
        self,
        state: AnnState,
        covered: int,
        metric: Metric,
        dim: int,
        index: AnnIndex | None = None,
        files: Mapping[str, MappedFile] | None = None,
        entries: Mapping[str, FileEntry] | None = None,
    ) -> None:
        self.state, self.covered = state, covered
        self._metric, self._dim = metric, dim
        self._index, self._files, self._entries = index, dict(files or {}), dict(entries or {})
        self._known = index is not None
        self._reading = ForkLock()

    @property
    def index(self) -> AnnIndex | None:
        """The index, mapped where FAISS can; None where it is of a form that cannot be checked."""
        if not self._known:
            with self._reading.current:
                if not self._known:
                    self._index = self._read(mmap=True)
                    self._known = True
        return self._index

    def verify(self) -> None:
        """Read the files and check them; raises StoreCorruptedError."""
        if self._files:
            self._read(mmap=True)

    def _read(self, *, mmap: bool) -> AnnIndex | None:
        for role, file in self._files.items():
            file.verify(self._entries[role].sha256)
        return read_ann(self._files, self.state, self._dim, self._metric, self.covered, mmap=mmap)

    def writable(self, removed: BitArray) -> AnnIndex | None:
        """Return the index anew, to be changed by whoever asks, without the removed of its rows."""
        index = self._read(mmap=False) if self._files else copy.deepcopy(self._index)
        if index is not None and removed[: self.covered].any():
            index.number_through(removed[: self.covered])
        return index

    def without(self, removed: BitArray) -> Covering | None:
        """Return the index over those of its rows that were not removed, as they are then numbered."""
        index, gone = self.writable(removed), int(np.count_nonzero(removed[: self.covered]))
        if index is None:
            return None
        return Covering(self.state, self.covered - gone, self._metric, self._dim, index)

    def known(self) -> AnnState:
        """Return what the manifest is to say of the index."""
        index, state = self._index if self._known else None, self.state
        if index is None:
            return state
        known = replace(state, outliers=len(index.outliers))
        if index.limits is not None:
            known = replace(known, code_limit=index.limits.code, list_limit=index.limits.list)
        return known

    def to_write(self, *, elsewhere: bool = False) -> dict[str, FileDump | FileEntry]:
        """Return the files that a folder is to hold: those that are there, unless it is another folder."""
        if self._files:
            if elsewhere:
                return {role: copied(file) for role, file in self._files.items()}
            return {**self._entries}
        return {**index_files(self._index)} if self._index is not None else {}

    def written(self, files: Mapping[str, MappedFile], entries: Mapping[str, FileEntry]) -> Covering:
        """Return the same index, once its files are in the folder; it is no more held in memory."""
        if self._files or not files:
            return self
        return Covering(self.known(), self.covered, self._metric, self._dim, None, files, entries)

    def changed(self, **state: Any) -> Covering:
        """Return the same index with some fields of its state replaced."""
        new = Covering(self.known(), self.covered, self._metric, self._dim, None, self._files, self._entries)
        new._index, new._known = self._index, self._known
        new.state = replace(new.state, **state)
        return new

    def seen(self, held: Held) -> SeenIndex:
        """Return the index as one over all that is held."""
        return SeenIndex(self, held, self._metric)

    def info(self, held: Held) -> IndexInfo:
        """Return what serves the searches."""
        seen, index = self.seen(held), self.index
        if index is None:
            return IndexInfo("Flat")
        names = ("factory", "trained_on", "nprobe", "ef_search", "over_fetch", "recall", "measured_on")
        known = {name: getattr(self.state, name) for name in names}
        return IndexInfo(**known, tombstones=index.tombstones + seen.gone, outliers=len(seen.outliers))

    def candidates(self, held: Held, queries: FloatArray, k: int) -> IndexArray | None:
        """Return places that are probably among the `k` nearest; None where all are to be compared."""
        if self.index is None:
            return None
        seen, knobs = self.seen(held), self.state.knobs
        fetch = knobs.fetch(k)
        if fetch + len(seen.outliers) >= len(held):
            return None
        found = seen.search(queries, k, fetch, knobs)
        return seen.outliers.join(found, queries, k + EXTRA)


class SeenIndex:
    """A `Covering` as an `AnnIndex` over all that is held: rows are numbered by their places there.

    Parameters
    ----------
    covering : Covering
    held : Held
    metric : Metric
    """

    def __init__(self, covering: Covering, held: Held, metric: Metric) -> None:
        self._covering, self._held = covering, held
        segments = held.segments
        gone = len(segments) < segments.total
        self.removed: BitArray | None = segments.removed[: covering.covered] if gone else None
        self.gone = 0 if self.removed is None else int(np.count_nonzero(self.removed))
        self.outliers = _Others(covering, held, metric, self)

    @property
    def total(self) -> int:
        """The number of rows in the index, removed ones included."""
        return self._covering.covered

    @property
    def tombstones(self) -> int:
        """The number of its rows that were removed."""
        return self.gone

    @property
    def lists(self) -> int:
        """The number of inverted lists; 0 where there are none."""
        return self._index.lists

    @property
    def is_graph(self) -> bool:
        """Whether ``ef_search`` has a meaning."""
        return self._index.is_graph

    @property
    def keeps_vectors(self) -> bool:
        """Whether the index compares the vectors themselves."""
        return self._index.keeps_vectors

    @property
    def _index(self) -> AnnIndex:
        index = self._covering.index
        if index is None:
            raise ValueError("there is no index")
        return index

    def search(self, queries: FloatArray, k: int, fetch: int, knobs: Knobs) -> IndexArray:
        """Return about `fetch` places, best first; see `AnnIndex.search`."""
        removed = self._held.segments.removed if self.gone else None
        return self.places(self._index.search(queries, k, fetch, knobs, removed))

    def places(self, rows: IndexArray) -> IndexArray:
        """Return the places of rows; -1 for -1 and for rows that were removed."""
        numbers = self._held.segments.numbers
        if numbers is None:
            return rows
        found = np.minimum(np.searchsorted(numbers, rows), max(0, len(numbers) - 1))
        there = numbers[found] == rows if len(numbers) else np.zeros(rows.shape, dtype=bool)
        return np.where(there & (rows >= 0), found, -1)


class _Others:
    """The rows that are not in the index: those that it left out, and those that came since."""

    def __init__(self, covering: Covering, held: Held, metric: Metric, seen: SeenIndex) -> None:
        self._covering, self._held, self._metric, self._seen = covering, held, metric, seen
        # Places in what is held begin with those of the rows in the index that are left.
        self._first = covering.covered - seen.gone

    def __len__(self) -> int:
        index = self._covering._index
        left_out = self._covering.state.outliers if index is None else len(index.outliers)
        return left_out + len(self._held) - self._first

    def join(
        self,
        found: IndexArray,
        queries: FloatArray,
        k: int,
        flat: Flat | None = None,
        metric: Metric | None = None,
    ) -> IndexArray:
        """Return candidates and the `k` nearest of these rows; see `AnnIndex.outliers`."""
        index, held = self._covering.index, self._held
        if index is not None and len(index.outliers):
            removed, rows = self._seen.removed, index.outliers.rows
            more = 0 if removed is None else int(np.count_nonzero(removed[rows]))
            nothing = np.empty((len(queries), 0), dtype=np.int64)
            numbered = _Numbered(held, self._metric)
            near = index.outliers.join(nothing, queries, k + more, numbered, self._metric)
            found = np.concatenate([found, self._seen.places(near)], axis=1)
        rest = JoinedRows(held.segments, None if held.rows is None else held.rows.view(), self._first)
        if len(rest):
            shortlist = shortlist_of(rest, self._metric, held.longest)
            reach = min(k, len(rest))
            near, _ = nearest_rows(queries, rest, np.arange(len(rest)), reach, self._metric, shortlist)
            found = np.concatenate([found, near + self._first], axis=1)
        return found


class _Numbered(HeldRows):
    """Rows of segments by their numbers."""

    def view(self) -> Any:
        return self

    def __getitem__(self, rows: IndexArray) -> FloatArray:
        return self._held.segments.vectors(rows)
