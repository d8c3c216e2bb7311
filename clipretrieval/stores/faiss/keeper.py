"""What a flush does to a store's folder: segments are added, joined and cleared, and the index follows."""

from __future__ import annotations

from dataclasses import asdict
from typing import NamedTuple

import numpy as np

from clipretrieval.stores.exact import IndexArray
from clipretrieval.stores.faiss.approximate import AnnRows, IndexUpkeep, Past
from clipretrieval.stores.faiss.covering import Covering
from clipretrieval.stores.faiss.factory import FLAT
from clipretrieval.stores.faiss.flat import HeldRows
from clipretrieval.stores.local.folder_write import write_rows
from clipretrieval.stores.local.held import HeldRecords
from clipretrieval.stores.local.segment import Segment
from clipretrieval.stores.local.segments import LARGEST_JOINED, BitArray, Segments, first_to_join, to_rewrite
from clipretrieval.stores.local.store_folder import StoreFolder
from clipretrieval.stores.local.table import RecordTable
from clipretrieval.types import Metric

__all__ = ["FolderKeeper", "Tidying"]

# With so many values in memory, or records, or characters of their metadata, they are written into the folder
# before they are flushed: 256 MB.
SEALED_VALUES, SEALED_ROWS, SEALED_CHARACTERS = 1 << 26, 1 << 18, 1 << 27
# Segments of no more bytes are joined by `compact`.
LARGEST_COMPACTED = 1 << 28


class Tidying(NamedTuple):
    """What is to be done to a folder's files.

    Attributes
    ----------
    runs : list of (int, int)
        Segments, from one to another, that are to be written anew, without removed records.
    removed : ndarray of bool, optional
        The rows that are then gone from below the index; None where the runs lie behind it.
    due : bool
        Whether the index is to be built, extended or measured.
    """

    runs: list[tuple[int, int]]
    removed: BitArray | None
    due: bool


class FolderKeeper:
    """Writes what is held into files, within `StoreFolder.writing`, and keeps an index over it.

    Parameters
    ----------
    folder : StoreFolder
    metric : Metric
    factory : str
        The index that is asked for.
    target : float
        The recall@10 to reach.

    Attributes
    ----------
    past : Past
        What became of earlier indexes.
    """

    def __init__(self, folder: StoreFolder, metric: Metric, factory: str, target: float) -> None:
        self._folder, self._metric, self._factory, self._target = folder, metric, factory, target
        self.past = Past()

    def filed(self, held: HeldRecords) -> HeldRecords:
        """Return what is held with all of it in files: what a flush has to put in force."""
        loaded, segments, index = self._folder.loaded, held.segments, held.index
        before = (0, 0) if loaded is None else (loaded.rows, loaded.count)
        came = segments.total - before[0] + len(held.table)
        went = segments.total - len(segments) - (before[0] - before[1])
        if index is not None:
            changes = max(0, came) + max(0, went)
            held = HeldRecords(
                segments, held.table, held.rows, index.changed(written=index.state.written + changes)
            )
        return self.sealed(held).filed(self._folder.path, self._folder.next_generation)

    def is_full(self, held: HeldRecords) -> bool:
        """Tell whether what is in memory is so much that it is to be `sealed`."""
        count, dim = len(held.table), 0 if held.rows is None else held.rows.dim
        return (
            count * dim >= SEALED_VALUES
            or count >= SEALED_ROWS
            or held.table.metadata_size >= SEALED_CHARACTERS
        )

    def sealed(self, held: HeldRecords) -> HeldRecords:
        """Return what is held with the records in memory written into segments."""
        count, rows, segments = len(held.table), held.rows, held.segments
        if not count or rows is None:
            return HeldRecords(segments, RecordTable(), None, held.index)
        parts = self._write(held, np.arange(count) + segments.total)
        index = held.index
        if isinstance(rows, AnnRows):
            self.past = rows.past
            if rows.index is not None and rows.state is not None and not segments.total:
                index = Covering(rows.state, count, self._metric, rows.dim, rows.index)
        for part in parts:
            segments = segments.with_part(part)
        return HeldRecords(segments, RecordTable(), None, index)

    def plan(self, held: HeldRecords, *, whole: bool = False) -> Tidying | None:
        """Return what is due to be done to what is held, all of it in files; None where nothing is.

        Parameters
        ----------
        held : HeldRecords
        whole : bool
            Whether to write anew all that removed records lie in, and small segments.
        """
        segments, due = held.segments, self.is_due(held)
        if due or whole or 2 * len(segments) < segments.total:
            # An index is over rows without holes; and small segments below it are not joined later.
            largest = LARGEST_COMPACTED if whole else LARGEST_JOINED if due else 0
            runs = to_rewrite(segments, largest)
            return Tidying(runs, segments.removed, due) if runs or due else None
        start = first_to_join(segments, 0 if held.index is None else held.index.covered)
        return None if start is None else Tidying([(start, len(segments.parts))], None, due=False)

    def tidied(self, held: HeldRecords, plan: Tidying) -> HeldRecords:
        """Return what is held in fewer files, and its index built, extended or measured, as planned."""
        new = self._rewritten(held, plan.runs, plan.removed)
        if plan.due or self.is_due(new):  # so much may be gone that the index is
            new = self._indexed(new)
        return new.filed(self._folder.path, self._folder.next_generation)

    def _rewritten(
        self, held: HeldRecords, runs: list[tuple[int, int]], removed: BitArray | None
    ) -> HeldRecords:
        """Write runs of segments, from one to another, anew without removed records.

        Parameters
        ----------
        runs : list of (int, int)
        removed : ndarray of bool, optional
            Those that are then gone from below the index; None where the runs lie behind it.
        """
        if not runs:
            return held
        old, index = held.segments, held.index
        parts: list[Segment] = []
        kept: list[BitArray] = []
        done = 0
        for start, stop in [*runs, (len(old.parts), len(old.parts))]:
            parts += old.parts[done:start]
            kept.append(old.removed[old.start(done) : old.start(start)])
            numbers = np.flatnonzero(~old.removed[old.start(start) : old.start(stop)]) + old.start(start)
            parts += self._write(held, numbers)
            kept.append(np.zeros(len(numbers), dtype=bool))
            done = stop
        if index is not None and removed is not None:
            index = index.without(removed)
        gone = np.concatenate(kept)
        return HeldRecords(Segments(parts, gone if gone.any() else None), held.table, held.rows, index)

    def _indexed(self, held: HeldRecords) -> HeldRecords:
        """Return what is held, which has no removed rows, with its index built, extended or measured."""
        if not held.segments.total:
            return HeldRecords(held.segments, held.table, held.rows)
        upkeep, covering = self._upkeep_of(held), held.index
        upkeep.index = None if covering is None else covering.writable()
        if covering is not None:
            upkeep.extend(covering.covered)
        upkeep.maintain()
        new = None
        if upkeep.index is not None and upkeep.state is not None:
            new = Covering(upkeep.state, held.segments.total, self._metric, upkeep.flat.dim, upkeep.index)
        return HeldRecords(held.segments, held.table, held.rows, new)

    def is_due(self, held: HeldRecords) -> bool:
        """Tell whether the index over the segments is to be built, extended or measured."""
        return self._factory != FLAT and bool(held.segments.total) and self._upkeep_of(held).due

    def measured(self, held: HeldRecords) -> HeldRecords:
        """Return what is held with the recall of its index measured for the target of now."""
        covering: Covering | None = held.index
        if covering is None or covering.index is None:
            return held
        upkeep = self._upkeep_of(held)
        upkeep.measure()
        if upkeep.state is None:
            return HeldRecords(held.segments, held.table, held.rows)
        return HeldRecords(held.segments, held.table, held.rows, covering.changed(**asdict(upkeep.state)))

    def _upkeep_of(self, held: HeldRecords) -> IndexUpkeep:
        """Return what keeps the index over what is held."""
        flat, covering = HeldRows(held, self._metric), held.index
        upkeep = IndexUpkeep(flat, self._metric, self._factory, self._target, self.past)
        if covering is not None and not covering.is_lost:
            upkeep.index, upkeep.state = covering.seen(held), covering.state
        return upkeep

    def _write(self, held: HeldRecords, numbers: IndexArray) -> list[Segment]:
        folder, dim = self._folder, held.view().shape[1] if len(held) else 1
        return write_rows(folder.path, folder.next_generation, held, numbers, dim, self._metric)
