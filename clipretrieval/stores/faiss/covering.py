"""An approximate index over the first rows of a folder's segments."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from clipretrieval._util.forks import ForkLock
from clipretrieval._util.warning import warn_caller
from clipretrieval.errors import StoreCorruptedError, StoreError
from clipretrieval.stores.exact import IndexArray, nearest_rows
from clipretrieval.stores.faiss.approximate import is_hollow
from clipretrieval.stores.faiss.factory import FLAT
from clipretrieval.stores.faiss.files import copy_file, read_ann, write_ann
from clipretrieval.stores.faiss.flat import HeldRows, shortlist_of
from clipretrieval.stores.faiss.index import EXTRA, AnnIndex, BitArray, Flat, Knobs
from clipretrieval.stores.faiss.state import AnnState, IndexInfo
from clipretrieval.stores.local.folder_manifest import FileEntry, fault_of
from clipretrieval.stores.local.held import HeldRecords, JoinedRows
from clipretrieval.stores.local.mapped_file import MappedFile, lies_in
from clipretrieval.types import FloatArray, Metric

__all__ = ["Covering", "SeenIndex"]

REBUILT = (
    "No vector is lost: searches are exact until the store is next written to and flushed, which builds the "
    "index anew"
)


class Covering:
    """An index that never changes, over the rows that were there when it was written.

    Rows that were removed since are not returned, and rows that came since are compared exactly. Its files
    are verified and read when it is first asked. It is derived from the vectors: where its files are damaged
    it is lost, of which a warning tells; searches are exact then, and the next flush builds another.

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
        What the manifest says of them.
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
        self.state, self.covered, self.entries = state, covered, dict(entries or {})
        self._metric, self._dim = metric, dim
        self._files = dict(files or {})
        # Shared by copies; one item, once it is known.
        self._read_once: list[AnnIndex | None] = [] if self._files else [index]
        self._reading = ForkLock()

    @property
    def index(self) -> AnnIndex | None:
        """The index, mapped where FAISS can; None where it is lost, or of a form that cannot be checked."""
        if not self._read_once:
            with self._reading.current:
                if not self._read_once:
                    self._read_or_lose()
        return self._read_once[0]

    def _read_or_lose(self) -> None:
        try:
            self._read_once.append(self._read(mmap=True))
        except StoreError as error:
            self._read_once.append(None)  # before the warning, which may be raised as an error
            warn_caller(f"{fault_of(error)}. {REBUILT}")
        except Warning:
            self._read_once.append(None)
            raise

    @property
    def is_lost(self) -> bool:
        """Whether it is known that it cannot be used."""
        if self._read_once:
            return self._read_once[0] is None
        return any(file.damage is not None for file in self._files.values())

    def _read(self, *, mmap: bool) -> AnnIndex | None:
        for role, file in self._files.items():
            file.verify(self.entries[role].sha256)
        return read_ann(self._files, self.state, self._dim, self._metric, self.covered, mmap=mmap)

    def writable(self, removed: BitArray | None = None) -> AnnIndex | None:
        """Return the index anew, to be changed by whoever asks, without the removed of its rows.

        None where it is lost, or so many were removed that it is better built anew.
        """
        try:
            index = self._read(mmap=False) if self._files else copy.deepcopy(self._read_once[0])
        except StoreError:
            return None
        if index is not None and removed is not None and removed[: self.covered].any():
            index.number_through(removed[: self.covered])
            if is_hollow(index):
                return None
        return index

    def without(self, removed: BitArray) -> Covering | None:
        """Return the index over those of its rows that were not removed, as they are then numbered."""
        if not removed[: self.covered].any():
            return self
        index, gone = self.writable(removed), int(np.count_nonzero(removed[: self.covered]))
        if index is None:
            return None
        return Covering(self.state, self.covered - gone, self._metric, self._dim, index)

    def filed(self, folder: Path, generation: int) -> Covering | None:
        """Return the same index in files of a folder; None where they, or those that it lies in, are lost.

        Raises
        ------
        OSError
            If they cannot be written.
        """
        if not self._files:
            index = self._read_once[0]
            entries = {} if index is None else write_ann(folder, generation, index, self.covered)
            if not entries:
                return None if index is None else self
        elif all(file.path.parent == folder for file in self._files.values()):
            there = all(lies_in(folder, entry.name, entry.size) for entry in self.entries.values())
            return None if self.is_lost or not there else self
        else:
            try:
                entries = {
                    role: copy_file(folder, generation, file, self.entries[role])
                    for role, file in self._files.items()
                }
            except StoreError:
                return None
        files = {role: MappedFile(folder / entry.name, entry.size) for role, entry in entries.items()}
        return Covering(self.known(), self.covered, self._metric, self._dim, None, files, entries)

    def verify(self) -> None:
        """Read the files and check them; raises StoreCorruptedError."""
        if self._files:
            try:
                self._read(mmap=True)
            except StoreCorruptedError as error:
                raise StoreCorruptedError(f"{fault_of(error)}. {REBUILT}") from error

    def known(self) -> AnnState:
        """Return what the manifest is to say of the index."""
        index, state = self._read_once[0] if self._read_once else None, self.state
        if index is None:
            return state
        known = replace(state, outliers=len(index.outliers))
        if index.limits is not None:
            known = replace(known, code_limit=index.limits.code, list_limit=index.limits.list)
        return known

    def changed(self, **state: Any) -> Covering:
        """Return the same index with some fields of its state replaced."""
        new = copy.copy(self)
        new.state = replace(self.known(), **state)
        return new

    def seen(self, held: HeldRecords) -> SeenIndex:
        """Return the index as one over all that is held."""
        return SeenIndex(self, held, self._metric)

    def info(self, held: HeldRecords) -> IndexInfo:
        """Return what serves the searches."""
        seen, index = self.seen(held), self.index
        if index is None:
            return IndexInfo(FLAT)
        return self.state.info(index.tombstones + seen.gone, len(seen.outliers))

    def candidates(self, held: HeldRecords, queries: FloatArray, k: int) -> IndexArray | None:
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
    held : HeldRecords
    metric : Metric
    """

    def __init__(self, covering: Covering, held: HeldRecords, metric: Metric) -> None:
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

    def __init__(self, covering: Covering, held: HeldRecords, metric: Metric, seen: SeenIndex) -> None:
        self._covering, self._held, self._metric, self._seen = covering, held, metric, seen
        # Places in what is held begin with those of the rows in the index that are left.
        self._first = covering.covered - seen.gone

    def __len__(self) -> int:
        return self._covering.known().outliers + len(self._held) - self._first

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
