"""Rows that are searched through an approximate index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np
import numpy.typing as npt

from clipretrieval._util.warning import warn_caller
from clipretrieval.errors import StoreError
from clipretrieval.stores.exact import Shortlist, row_norms
from clipretrieval.stores.faiss import factory as _factory
from clipretrieval.stores.faiss.factory import AUTO, FLAT, auto_factory, make_index, sizes
from clipretrieval.stores.faiss.flat import FlatRows
from clipretrieval.stores.faiss.index import EXTRA, AnnIndex
from clipretrieval.stores.faiss.state import AnnState, IndexInfo
from clipretrieval.stores.faiss.tuning import finds_again, tune
from clipretrieval.stores.local.table import Moves
from clipretrieval.types import FloatArray, Metric

__all__ = ["DEFAULT_RECALL", "AnnRows"]

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
DEFAULT_RECALL = 0.99


class AnnRows:
    """Rows in a flat index, which holds the vectors, and an approximate one, which proposes candidates.

    Vectors that the approximate index does not represent, since it was trained on others, are left out of it
    and compared exactly; with many of them, and where its recall falls below the target, it is built anew.
    Until there are enough vectors to build it, there is no approximate index and searches are exact.

    Parameters
    ----------
    flat : FlatRows
    metric : Metric
    factory : str
        ``"auto"`` or a factory string that `make_index` takes.
    target : float
        The recall@10 to reach, in (0, 1].
    """

    def __init__(self, flat: FlatRows, metric: Metric, factory: str, target: float) -> None:
        self._flat, self._metric, self._factory, self._target = flat, metric, factory, target
        self._least = self._most = 0
        if factory not in (AUTO, FLAT):
            self._least, self._most = sizes(make_index(factory, flat.dim, metric))
        self._index: AnnIndex | None = None
        self._state: AnnState | None = None
        self._failed_with = 0
        self._warned = False
        self._complaint: str | None = None
        self._recent: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)

    @property
    def flat(self) -> FlatRows:
        """The vectors."""
        return self._flat

    @property
    def target(self) -> float:
        """The recall@10 to reach."""
        return self._target

    @property
    def dim(self) -> int:
        """The vectors' dimension."""
        return self._flat.dim

    @property
    def index(self) -> AnnIndex | None:
        """The approximate index, if it is built."""
        return self._index

    @property
    def state(self) -> AnnState | None:
        """What is known of the approximate index."""
        return self._state

    @property
    def info(self) -> IndexInfo:
        """What serves the searches."""
        index, state = self._index, self._state
        if index is None or state is None:
            return IndexInfo(FLAT)
        names = ("factory", "trained_on", "nprobe", "ef_search", "over_fetch", "recall", "measured_on")
        known = {name: getattr(state, name) for name in names}
        return IndexInfo(**known, tombstones=index.tombstones, outliers=len(index.outliers))

    def adopt(self, index: AnnIndex, state: AnnState) -> None:
        """Take over an index that was read from a file."""
        self._index, self._state = index, state

    def view(self) -> FloatArray:
        """Return all rows, shape (n, dim)."""
        return self._flat.view()

    def shortlist(self, longest: float) -> Shortlist | None:
        """Return the flat index's search, for queries to which there are too few candidates."""
        return self._flat.shortlist(longest)

    def candidates(self, queries: FloatArray, k: int) -> npt.NDArray[np.int64] | None:
        """Return rows that are probably among the `k` nearest; None where a search must be exact."""
        index, state = self._index, self._state
        if index is None or state is None:
            return None
        fetch = state.knobs.fetch(k)
        if fetch + len(index.outliers) >= len(self.view()):
            return None
        found = index.search(queries, k, fetch, state.knobs)
        return index.outliers.join(found, queries, k + EXTRA, self._flat, self._metric)

    def write(self, vectors: FloatArray, places: npt.NDArray[np.int64]) -> None:
        """Write each vector into the row of its place."""
        self._flat.write(vectors, places)
        if self._index is None or self._state is None:
            return
        self._state = replace(self._state, written=self._state.written + len(places))
        if float(row_norms(vectors).max()) > LONGEST:
            self._give_up("extend", TOO_LONG)
        elif self._is_stale():
            self.drop_index()  # it is built anew in any case: spare the work
        else:
            self._try("extend", lambda index: self._extend(index, vectors, places))

    def _extend(self, index: AnnIndex, vectors: FloatArray, places: npt.NDArray[np.int64]) -> None:
        """Write rows into the index, but leave them out where a search would not find them."""
        index.write(vectors, places)
        state, known = self._state, np.setdiff1d(self._recent, places)
        self._recent = np.concatenate([known, places])[-RECENT:]
        if state is not None and not finds_again(
            index, self._flat, self._metric, state.knobs, self._recent, min(state.recall, state.target)
        ):
            index.set_aside(np.union1d(self._recent, places))

    def remove(self, moves: Moves) -> None:
        """Move rows as planned and drop those after the last that is kept."""
        if self._index is None or self._state is None:
            self._flat.remove(moves)
            return
        moved = self._flat.view()[moves.sources]
        self._flat.remove(moves)
        self._recent = self._recent[:0]  # rows have moved
        self._state = replace(self._state, written=self._state.written + moves.removed)
        self._try("shrink", lambda index: index.remove(moves, moved))

    def restore(self, vectors: FloatArray, places: npt.NDArray[np.int64], count: int) -> None:
        """Put `vectors` back into `places`, and keep `count` rows; the index goes until `maintain`."""
        self.drop_index()
        self._flat.restore(vectors, places, count)

    def drop_index(self) -> None:
        """Search exactly until `maintain` builds the index anew."""
        self._index = self._state = None
        self._recent = self._recent[:0]

    def is_whole(self, count: int) -> bool:
        """Tell whether there are `count` rows, and the index is over them all."""
        index = self._index
        if index is None or self._state is None:
            return self._flat.is_whole(count)
        return self._flat.is_whole(count) and index.is_whole(count)

    def dump(self, write: Callable[[bytes], object]) -> None:
        """Write the vectors in FAISS's format."""
        self._flat.dump(write)

    @property
    def unfinished(self) -> bool:
        """Whether `maintain` has an index to build."""
        return self._index is None and self._wanted() is not None

    def maintain(self) -> None:
        """Build or measure the index where it is time to; called with the store's lock held alone."""
        count, state = len(self.view()), self._state
        wanted, outdated = self._wanted(), self._is_stale() or self._is_outgrown()
        if wanted is None:
            if outdated or 2 * count <= _factory.AUTO_LIMIT:
                self.drop_index()
        elif self._index is None or state is None or outdated:
            self._build(wanted)
        elif state.written >= state.measure_at or state.target != self._target:
            if count < _factory.SMALLEST:  # removals have left too few to measure, or to need an index
                self.drop_index()
            else:
                self._measure(self._index, state)
                if self._has_fallen(state):
                    self._complaint, self._warned = None, False
                    self._build(wanted)
        self._complain()

    def measure(self) -> None:
        """Measure the recall for the target of now, if the index was tuned for another."""
        index, state = self._index, self._state
        if index is not None and state is not None and state.target != self._target:
            self._measure(index, state)
            self._complain()

    def _wanted(self) -> str | None:
        """Return the factory string of the index that there should be; None where there are too few rows."""
        count = len(self.view())
        if self._factory == AUTO:
            return auto_factory(count)
        enough = count >= max(self._least, _factory.SMALLEST, 2 * self._failed_with)
        return self._factory if enough or (self._index is not None and count) else None

    def _is_stale(self) -> bool:
        index, state = self._index, self._state
        if index is None or state is None:
            return False
        if 4 * index.tombstones > index.total:
            return True
        return state.written >= STALE_AFTER * state.built_with

    def _is_outgrown(self) -> bool:
        """Tell whether the index leaves out too many vectors."""
        count = len(self.view())
        outliers = 0 if self._index is None else len(self._index.outliers)
        return outliers > max(_factory.SMALLEST, MOST_OUTLIERS * count) or 2 * outliers > count

    def _has_fallen(self, before: AnnState) -> bool:
        """Tell whether the recall has fallen below a target that it had reached."""
        now = self._state
        return now is not None and now.recall < now.target == before.target <= before.recall

    def _build(self, factory: str) -> None:
        rows = self.view()
        empty = make_index(factory, self.dim, self._metric)
        least, most = sizes(empty)
        if len(rows) < max(least, 2 * self._failed_with) or (len(rows) < _factory.SMALLEST):
            self.drop_index()
            return
        built = AnnIndex(factory, empty)
        sample = 0 if empty.is_trained else min(len(rows), most)
        try:
            if float(row_norms(rows).max()) > LONGEST:
                self._give_up("build", TOO_LONG)
                return
            if sample:
                picks = np.random.default_rng(SEED).choice(len(rows), sample, replace=False)
                empty.train(rows[np.sort(picks)])
            built.build(rows)
        except (RuntimeError, MemoryError) as error:
            self._give_up("build", str(error))
            return
        self._failed_with = 0
        before = np.empty(0, dtype=np.int64) if self._index is None else self._index.outliers.rows
        self._measure(built, AnnState(factory, sample, len(rows), 0, 0, None, None, 1, 0.0, self._target))
        self._recent = self._recent[:0]
        index, state = self._index, self._state
        if index is None or state is None or not len(before) or state.recall < self._target:
            return
        some = np.random.default_rng(SEED).choice(before, min(RECENT, len(before)), replace=False)
        if not finds_again(
            index, self._flat, self._metric, state.knobs, some, min(state.recall, state.target)
        ):
            self._complaint = (
                f"index={factory!r} does not find vectors that were added lately as well as the others: they "
                "lie closer together than its codes resolve, or apart from its graph; give a finer index"
            )

    def _measure(self, index: AnnIndex, state: AnnState) -> None:
        """Take `index` into service with what a search of it has to spend."""
        try:
            knobs, recall = tune(index, self._flat, self._metric, self._target)
        except (StoreError, RuntimeError, MemoryError) as error:  # the vectors are stored: no failed write
            self._give_up("measure", str(error))
            return
        self._index, self._state = (
            index,
            replace(
                state,
                **asdict(knobs),
                recall=recall,
                target=self._target,
                measured_on=len(self.view()),
                measure_at=state.written + int(MEASURED_AFTER * len(self.view())) + 1,
            ),
        )
        if recall < self._target and not self._warned:
            self._warned = True
            self._complaint = (
                f"index={state.factory!r} reaches a recall@10 of {recall:.3f} on the stored vectors, below "
                f"the {self._target:g} asked for, whatever a search may spend; give a finer index, "
                "or a lower recall="
            )

    def _try(self, what: str, change: Callable[[AnnIndex], None]) -> None:
        """Change the index; where FAISS fails, search exactly from now on."""
        if self._index is None:
            return
        try:
            change(self._index)
        except (RuntimeError, MemoryError) as error:
            self._give_up(what, str(error))

    def _give_up(self, what: str, reason: str) -> None:
        self.drop_index()
        self._failed_with = max(1, len(self.view()))
        self._complaint = (
            f"FAISS could not {what} the index {self._factory!r} ({reason}); no vector is lost, and searches "
            "are exact until there are twice as many vectors"
        )

    def _complain(self) -> None:
        """Give the warning that is due, where nothing is left to be done: it may be raised as an error."""
        complaint, self._complaint = self._complaint, None
        if complaint is not None:
            warn_caller(complaint)
