"""What a flush does to a store's folder: segments are added, joined and cleared, and the index follows."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from clipretrieval.stores.exact import IndexArray
from clipretrieval.stores.faiss.approximate import AnnRows, IndexUpkeep
from clipretrieval.stores.faiss.covering import Covering
from clipretrieval.stores.faiss.factory import FLAT
from clipretrieval.stores.faiss.flat import HeldRows
from clipretrieval.stores.faiss.index import BitArray
from clipretrieval.stores.local.folder_write import write_rows
from clipretrieval.stores.local.held import Held
from clipretrieval.stores.local.segment import MappedFile, Segment
from clipretrieval.stores.local.segments import Segments, first_to_join, to_rewrite
from clipretrieval.stores.local.store_folder import StoreFolder
from clipretrieval.stores.local.table import RecordTable
from clipretrieval.types import Metric

__all__ = ["FolderKeeper"]


class FolderKeeper:
    """Writes what is held into segments, within `StoreFolder.writing`, and keeps the index over them.

    Parameters
    ----------
    folder : StoreFolder
    metric : Metric
    factory : str
        The index that is asked for.
    target : float
        The recall@10 to reach.
    """

    def __init__(self, folder: StoreFolder, metric: Metric, factory: str, target: float) -> None:
        self._folder, self._metric, self._factory, self._target = folder, metric, factory, target
        self._upkeep: IndexUpkeep | None = None

    def settled(self, held: Held, *, whole: bool = False) -> Held:
        """Return what is held with all of it in segments, of which there are not too many, and its index.

        Parameters
        ----------
        held : Held
        whole : bool
            Whether to write anew all that removed records lie in, and small segments.
        """
        folder = self._folder
        loaded, segments, index = folder.loaded, held.segments, held.index
        before = (0, 0) if loaded is None else (loaded.rows, loaded.count)
        came = segments.total - before[0] + len(held.table)
        went = segments.total - len(segments) - (before[0] - before[1])
        if index is not None:
            changes = max(0, came) + max(0, went)
            held = Held(segments, held.table, held.rows, index.changed(written=index.state.written + changes))
        held = self.sealed(held)
        segments = held.segments
        covered = held.index.covered if held.index is not None else 0
        if whole or 2 * len(segments) < segments.total:
            held = self._compacted(held, joined=whole)
        elif (start := first_to_join(segments, covered)) is not None:
            held = self._rewritten(held, [(start, len(segments.parts))], None)
        return self._indexed(held)

    def sealed(self, held: Held) -> Held:
        """Return what is held with the records in memory written into segments."""
        count, rows, segments = len(held.table), held.rows, held.segments
        if not count or rows is None:
            return Held(segments, RecordTable(), None, held.index)
        numbers = np.arange(count) + segments.total
        parts = self._write(held, numbers)
        index = held.index
        if isinstance(rows, AnnRows):
            self._upkeep = rows.heir()
            if rows.index is not None and rows.state is not None and not segments.total:
                index = Covering(rows.state, count, self._metric, rows.dim, rows.index)
        for part in parts:
            segments = segments.with_part(part)
        return Held(segments, RecordTable(), None, index)

    def _compacted(self, held: Held, *, joined: bool = False) -> Held:
        """Return what is held without removed records, their segments written anew."""
        segments = held.segments
        return self._rewritten(held, to_rewrite(segments, joined=joined), segments.removed)

    def _rewritten(self, held: Held, runs: list[tuple[int, int]], removed: BitArray | None) -> Held:
        """Write runs of segments, from one to another, anew without removed records.

        Parameters
        ----------
        runs : list of (int, int)
        removed : ndarray of bool, optional
            Those that are then gone from below the index; None where the runs lie behind it.
        """
        old, index = held.segments, held.index
        parts: list[Segment] = []
        kept: list[BitArray] = []
        done = 0
        for start, stop in [*runs, (len(old.parts), len(old.parts))]:
            parts += old.parts[done:start]
            kept.append(old.removed[old.start(done) : old.start(start)])
            numbers = np.flatnonzero(~old.removed[old.start(start) : old.start(stop)]) + old.start(start)
            new = self._write(held, numbers)
            parts += new
            kept.append(np.zeros(len(numbers), dtype=bool))
            done = stop
        if index is not None and removed is not None and removed[: index.covered].any():
            index = index.without(removed)
        gone = np.concatenate(kept)
        return Held(Segments(parts, gone if gone.any() else None), held.table, held.rows, index)

    def _indexed(self, held: Held) -> Held:
        """Return what is held with its index built, extended or measured, where it is time to."""
        if self._factory == FLAT or not held.segments.total:
            return Held(held.segments, held.table, held.rows)
        if not self.is_due(held):
            return held
        upkeep = self._upkeep_of(held)
        # An index is over rows without holes; and small segments below it are not joined later.
        held = self._compacted(held, joined=True)
        covering: Covering | None = held.index
        upkeep.flat = HeldRows(held, self._metric)
        nothing = np.zeros(held.segments.total, dtype=bool)
        upkeep.index = None if covering is None else covering.writable(nothing)
        if covering is not None:
            upkeep.extend(covering.covered)
        try:
            upkeep.maintain()
        finally:  # a warning may be raised as an error, when all is done
            index, state = upkeep.index, upkeep.state
            upkeep.index = None
            new = None
            if index is not None and state is not None:
                new = Covering(state, held.segments.total, self._metric, upkeep.flat.dim, index)
            held = Held(held.segments, held.table, held.rows, new)
        return held

    def is_due(self, held: Held) -> bool:
        """Tell whether the index over the segments is to be built, extended or measured."""
        return self._factory != FLAT and bool(held.segments.total) and self._upkeep_of(held).due

    def _upkeep_of(self, held: Held) -> IndexUpkeep:
        """Return what keeps the index over what is held."""
        flat, covering = HeldRows(held, self._metric), held.index
        if self._upkeep is None:
            self._upkeep = IndexUpkeep(flat, self._metric, self._factory, self._target)
        upkeep = self._upkeep = self._upkeep.heir()  # what was written last had other numbers
        upkeep.flat = flat
        upkeep.index = None if covering is None else covering.seen(held)
        upkeep.state = None if covering is None else covering.state
        return upkeep

    def in_files(self, held: Held) -> Held:
        """Return what is held with its index in the files that were just put in force."""
        loaded = self._folder.loaded
        if held.index is None or loaded is None:
            return held
        entries = {role: entry for role, entry in loaded.files.items() if role != "removed"}
        folder = self._folder.path
        files = {role: MappedFile(folder / entry.name, entry.size) for role, entry in entries.items()}
        return Held(held.segments, held.table, held.rows, held.index.written(files, entries))

    def measured(self, held: Held) -> Held:
        """Return what is held with the recall of its index measured for the target of now."""
        covering: Covering | None = held.index
        if covering is None or covering.index is None:
            return held
        upkeep = self._upkeep_of(held)
        upkeep.measure()
        if upkeep.state is None:
            return Held(held.segments, held.table, held.rows)
        return Held(held.segments, held.table, held.rows, covering.changed(**asdict(upkeep.state)))

    def _write(self, held: Held, numbers: IndexArray) -> list[Segment]:
        folder, dim = self._folder, held.view().shape[1] if len(held) else 1
        return write_rows(folder.path, folder.next_generation, held, numbers, dim, self._metric)
