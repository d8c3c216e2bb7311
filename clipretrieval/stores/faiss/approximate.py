"""The upkeep of an approximate index, and rows in memory that are searched through one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from clipretrieval._util.warning import warn_caller
from clipretrieval.errors import StoreError
from clipretrieval.stores.exact import IndexArray, Shortlist, row_norms
from clipretrieval.stores.faiss import factory as _factory
from clipretrieval.stores.faiss.factory import FLAT, WITHIN, auto_factory, is_auto, make_index, sizes
from clipretrieval.stores.faiss.flat import FlatRows
from clipretrieval.stores.faiss.index import EXTRA, AnnIndex, Flat
from clipretrieval.stores.faiss.memory_budget import MemoryBudget
from clipretrieval.stores.faiss.state import AnnState, IndexInfo
from clipretrieval.stores.faiss.tuning import finds_again, tune
from clipretrieval.stores.local.table import Moves
from clipretrieval.types import FloatArray, Metric

__all__ = ["DEFAULT_RECALL", "AnnRows", "IndexUpkeep", "Past", "is_hollow"]

# An index is built anew when this many times the vectors that it was built with have come or gone since.
STALE_AFTER = 3
# Or when it leaves out this share of the vectors, and more than `SMALLEST`: every search compares them all.
MOST_OUTLIERS = 0.125
# So many of the vectors written last are looked up among each other.
RECENT = 256
# Its recall is measured again when this share of the vectors has come or gone since the last time.
MEASURED_AFTER = 0.25
# Between longer vectors squared distances leave float32, on which FAISS aborts the process.
LONGEST = 1e18
TOO_LONG = f"a vector is longer than {LONGEST:g}"
SEED = 0
# An index is extended by so many rows at a time.
PIECE_ROWS = 1 << 14
DEFAULT_RECALL = 0.99


@dataclass
class Past:
    """What became of the indexes over some rows.

    Attributes
    ----------
    failed_with : int
        The number of rows with which the last could not be built; 0 where it could.
    warned : bool
        Whether a warning has told that the recall is not reached.
    complaint : str or None
        A warning to be given when all is done.
    """

    failed_with: int = 0
    warned: bool = False
    complaint: str | None = None

    def complain(self) -> None:
        """Give the warning that is due, where nothing is left to be done: it may be raised as an error."""
        complaint, self.complaint = self.complaint, None
        if complaint is not None:
            warn_caller(complaint)


def is_hollow(index: AnnIndex) -> bool:
    """Tell whether so many vectors of an index were removed that it is to be built anew."""
    return 4 * index.tombstones > index.total


class IndexUpkeep:
    """Builds, extends and measures an approximate index over rows that change.

    Vectors that the approximate index does not represent, since it was trained on others, are left out of it
    and compared exactly; with many of them, and where its recall falls below the target, it is built anew.
    Until there are enough vectors to build it, there is no approximate index and searches are exact.

    Parameters
    ----------
    flat : Flat
    metric : Metric
    factory : str
        What `is_auto`, or a factory string that `make_index` takes.
    target : float
        The recall@10 to reach, in (0, 1].
    past : Past, optional
        What became of earlier indexes over the same rows.

    Attributes
    ----------
    index : AnnIndex or None
        The approximate index, if it is built.
    state : AnnState or None
        What is known of it.
    """

    def __init__(
        self, flat: Flat, metric: Metric, factory: str, target: float, past: Past | None = None
    ) -> None:
        self.flat, self.metric, self._factory, self.target = flat, metric, factory, target
        self._least = (
            0 if factory == FLAT or is_auto(factory) else sizes(make_index(factory, flat.dim, metric))[0]
        )
        self.index: AnnIndex | None = None
        self.state: AnnState | None = None
        self.past = Past() if past is None else past
        within = WITHIN.fullmatch(factory)
        self._budget = None if within is None else MemoryBudget(int(within[1]), flat.dim)
        self._recent: IndexArray = np.empty(0, dtype=np.int64)

    @property
    def info(self) -> IndexInfo:
        """What serves the searches."""
        index, state = self.index, self.state
        if index is None or state is None:
            return IndexInfo(FLAT)
        return state.info(index.tombstones, len(index.outliers))

    def _extend(self, index: AnnIndex, vectors: FloatArray, places: IndexArray) -> None:
        """Write rows into the index, but leave them out where a search would not find them."""
        index.write(vectors, places)
        state, known = self.state, np.setdiff1d(self._recent, places)
        self._recent = np.concatenate([known, places])[-RECENT:]
        if state is not None and not finds_again(
            index, self.flat, self.metric, state.knobs, self._recent, min(state.recall, state.target)
        ):
            index.set_aside(np.union1d(self._recent, places))

    def drop_index(self) -> None:
        """Search exactly from now on."""
        self.index = self.state = None
        self._recent = self._recent[:0]

    @property
    def unfinished(self) -> bool:
        """Whether `maintain` has an index to build."""
        return self.index is None and self._wanted() is not None

    @property
    def due(self) -> bool:
        """Whether `maintain` has anything to build, to measure or to drop."""
        count, state, wanted = len(self.flat.view()), self.state, self._wanted()
        outdated = self._is_stale() or self._is_outgrown()
        if self.index is None or state is None:
            return wanted is not None or (self._lacks_memory() and not self.past.warned)
        if wanted is None:
            return outdated or 2 * count <= _factory.AUTO_LIMIT
        return outdated or state.written >= state.measure_at or state.target != self.target

    def extend(self, start: int) -> None:
        """Write the rows from `start` on into an index that ends there, unless it is built anew anyway."""
        rows = self.flat.view()
        for first in range(start, len(rows), PIECE_ROWS):
            if self.index is None or self._is_stale():
                return
            places = np.arange(first, min(first + PIECE_ROWS, len(rows)))
            vectors = rows[first : first + PIECE_ROWS]
            self._try("extend", self._extend, vectors, places)

    def maintain(self) -> None:
        """Build or measure the index where it is time to; called with the store's lock held alone.

        The caller has `past` complain when all is done.
        """
        count, state = len(self.flat.view()), self.state
        wanted, outdated = self._wanted(), self._is_stale() or self._is_outgrown()
        if wanted is None:
            if outdated or 2 * count <= _factory.AUTO_LIMIT:
                self.drop_index()
            if self._lacks_memory():
                self._tell_of_memory(count)
        elif self.index is None or state is None or outdated:
            self._build(wanted)
        elif state.written >= state.measure_at or state.target != self.target:
            if count < _factory.SMALLEST:  # removals have left too few to measure, or to need an index
                self.drop_index()
            else:
                self._measure(self.index, state)
                if self._has_fallen(state):
                    self.past.complaint, self.past.warned = None, False
                    self._build(wanted)

    def measure(self) -> None:
        """Measure the recall for the target of now, if the index was tuned for another."""
        index, state = self.index, self.state
        if index is not None and state is not None and state.target != self.target:
            self._measure(index, state)

    def _wanted(self) -> str | None:
        """Return the factory string of the index that there should be; None where there are too few rows."""
        count = len(self.flat.view())
        failed = self.index is None and count < 2 * self.past.failed_with
        if is_auto(self._factory):
            return None if failed else auto_factory(count, self.flat.dim, self._factory)
        enough = count >= max(self._least, _factory.SMALLEST) and not failed
        return self._factory if enough or (self.index is not None and count) else None

    def _is_stale(self) -> bool:
        index, state = self.index, self.state
        if index is None or state is None:
            return False
        return is_hollow(index) or state.written >= STALE_AFTER * state.built_with

    def _is_outgrown(self) -> bool:
        """Tell whether the index leaves out too many vectors, or takes too much memory."""
        count = len(self.flat.view())
        outliers = 0 if self.index is None else len(self.index.outliers)
        if self._budget and self.state and not self._budget.holds(self.state.factory, count):
            return True
        return outliers > max(_factory.SMALLEST, MOST_OUTLIERS * count) or 2 * outliers > count

    def _lacks_memory(self) -> bool:
        """Tell whether there would be an index, were there the memory for one."""
        return (
            self._budget is not None
            and len(self.flat.view()) > _factory.AUTO_LIMIT
            and auto_factory(len(self.flat.view()), self.flat.dim, self._factory) is None
        )

    def _tell_of_memory(self, count: int) -> None:
        if self._budget is None or self.past.warned:
            return
        least = min(
            self._budget.least(count, 1 << _factory.FEWEST_LISTS, each) for each in self._budget.codes
        )
        self.past.warned = True
        self.past.complaint = (
            f"{self._budget.size / 1e6:,.0f} MB of memory is too little for an index of {count:,} vectors "
            f"of {self._budget.dim} dimensions; searches are exact until the store is opened with "
            f'memory="{-(-least // 10**6)} MB" or more'
        )

    def _has_fallen(self, before: AnnState) -> bool:
        """Tell whether the recall has fallen below a target that it had reached."""
        now = self.state
        return now is not None and now.recall < now.target == before.target <= before.recall

    def _build(self, factory: str) -> None:
        rows = self.flat.view()
        empty = make_index(factory, self.flat.dim, self.metric)
        least, most = sizes(empty)
        if len(rows) < max(least, 2 * self.past.failed_with) or (len(rows) < _factory.SMALLEST):
            self.drop_index()
            return
        built = AnnIndex(factory, empty)
        sample = 0 if empty.is_trained else min(len(rows), most)
        try:
            if self.flat.longest() > LONGEST:
                self._give_up("build", TOO_LONG)
                return
            if sample:
                picks = np.random.default_rng(SEED).choice(len(rows), sample, replace=False)
                empty.train(rows[np.sort(picks)])
            built.build(rows)
        except (RuntimeError, MemoryError) as error:
            self._give_up("build", str(error))
            return
        self.past.failed_with = 0
        before = np.empty(0, dtype=np.int64) if self.index is None else self.index.outliers.rows
        self._measure(built, AnnState(factory, sample, len(rows), 0, 0, None, None, 1, 0.0, self.target))
        self._recent = self._recent[:0]
        index, state = self.index, self.state
        if index is None or state is None or not len(before) or state.recall < self.target:
            return
        some = np.random.default_rng(SEED).choice(before, min(RECENT, len(before)), replace=False)
        if not finds_again(index, self.flat, self.metric, state.knobs, some, min(state.recall, state.target)):
            self.past.complaint = (
                f"index={factory!r} does not find vectors that were added lately as well as the others: they "
                "lie closer together than its codes resolve, or apart from its graph; give a finer index"
            )

    def _measure(self, index: AnnIndex, state: AnnState) -> None:
        """Take `index` into service with what a search of it has to spend."""
        try:
            knobs, recall = tune(index, self.flat, self.metric, self.target)
        except (StoreError, RuntimeError, MemoryError) as error:  # the vectors are stored: no failed write
            self._give_up("measure", str(error))
            return
        self.index, self.state = (
            index,
            replace(
                state,
                **asdict(knobs),
                recall=recall,
                target=self.target,
                measured_on=len(self.flat.view()),
                measure_at=state.written + int(MEASURED_AFTER * len(self.flat.view())) + 1,
            ),
        )
        if recall < self.target and not self.past.warned:
            self.past.warned = True
            self.past.complaint = (
                f"index={state.factory!r} reaches a recall@10 of {recall:.3f} on the stored vectors, below "
                f"the {self.target:g} asked for, whatever a search may spend; give a finer index, "
                "or a lower recall="
            )

    def _try(self, what: str, change: Callable[..., None], *arguments: Any) -> None:
        """Change the index; where FAISS fails, search exactly from now on."""
        if self.index is None:
            return
        try:
            change(self.index, *arguments)
        except (StoreError, RuntimeError, MemoryError) as error:
            self._give_up(what, str(error))

    def _give_up(self, what: str, reason: str) -> None:
        self.drop_index()
        self.past.failed_with = max(1, len(self.flat.view()))
        self.past.complaint = (
            f"FAISS could not {what} the index {self._factory!r} ({reason}); no vector is lost, and searches "
            "are exact until there are twice as many vectors"
        )


class AnnRows(IndexUpkeep):
    """Rows in memory, and an approximate index over them, which proposes candidates.

    Parameters
    ----------
    flat : FlatRows
    metric, factory, target
        See `IndexUpkeep`.
    """

    flat: FlatRows

    @property
    def dim(self) -> int:
        return self.flat.dim

    def view(self) -> FloatArray:
        return self.flat.view()

    def shortlist(self, longest: float) -> Shortlist | None:
        return self.flat.shortlist(longest)

    def candidates(self, queries: FloatArray, k: int) -> IndexArray | None:
        index, state = self.index, self.state
        if index is None or state is None:
            return None
        fetch = state.knobs.fetch(k)
        if fetch + len(index.outliers) >= len(self.flat.view()):
            return None
        found = index.search(queries, k, fetch, state.knobs)
        return index.outliers.join(found, queries, k + EXTRA, self.flat, self.metric)

    def settle(self) -> None:
        """Build or measure the index where it is time to, and warn of what became of it."""
        self.maintain()
        self.past.complain()

    def write(self, vectors: FloatArray, places: IndexArray) -> None:
        self.flat.write(vectors, places)
        if self.index is None or self.state is None:
            return
        self.state = replace(self.state, written=self.state.written + len(places))
        if float(row_norms(vectors).max()) > LONGEST:
            self._give_up("extend", TOO_LONG)
        elif self._is_stale():
            self.drop_index()  # it is built anew in any case: spare the work
        else:
            self._try("extend", self._extend, vectors, places)

    def remove(self, moves: Moves) -> None:
        if self.index is None or self.state is None:
            self.flat.remove(moves)
            return
        moved = self.flat.view()[moves.sources]
        self.flat.remove(moves)
        self._recent = self._recent[:0]  # rows have moved
        self.state = replace(self.state, written=self.state.written + moves.removed)
        self._try("shrink", lambda index: index.remove(moves, moved))

    def restore(self, vectors: FloatArray, places: IndexArray, count: int) -> None:
        self.drop_index()
        self.flat.restore(vectors, places, count)

    def is_whole(self, count: int) -> bool:
        index = self.index
        if index is None or self.state is None:
            return self.flat.is_whole(count)
        return self.flat.is_whole(count) and index.is_whole(count)
