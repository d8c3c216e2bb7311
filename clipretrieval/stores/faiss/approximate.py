"""Rows that are searched through an approximate index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from clipretrieval._util.checks import check_int, check_number, shown
from clipretrieval._util.warning import warn_caller
from clipretrieval.errors import InvalidInputError, StoreError
from clipretrieval.stores.exact import IndexArray, Shortlist, row_norms
from clipretrieval.stores.faiss import factory as _factory
from clipretrieval.stores.faiss.factory import AUTO, FLAT, auto_factory, check_factory, make_index, sizes
from clipretrieval.stores.faiss.flat import FlatRows
from clipretrieval.stores.faiss.index import EXTRA, AnnIndex, Knobs, Limits
from clipretrieval.stores.faiss.tuning import finds_again, tune
from clipretrieval.stores.local.table import Moves
from clipretrieval.types import FloatArray, Metric

__all__ = ["DEFAULT_RECALL", "AnnRows", "AnnState", "IndexInfo"]

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
# Far beyond what `tune` chooses: a search asks for so many times k candidates.
MOST_EFFORT = 1 << 16


@dataclass(frozen=True)
class IndexInfo:
    """What serves the searches of a `FaissStore`.

    Attributes
    ----------
    factory : str
        ``"Flat"`` while searches are exact.
    trained_on : int
        Number of vectors that the index was trained on; 0 where there is nothing to train.
    nprobe : int or None
        Number of inverted lists that a search looks into.
    ef_search : int or None
        Number of vectors that a graph's search keeps in hand.
    over_fetch : int
        How many times k candidates are compared exactly.
    recall : float or None
        Recall@10 as measured on stored vectors; None for the exact index.
    tombstones : int
        Vectors that were removed but still lie in the index.
    outliers : int
        Vectors that the index, trained before they came, does not represent; each search compares them all.
    measured_on : int or None
        Number of vectors that were stored when the recall was measured; None where it is not known.
    """

    factory: str
    trained_on: int = 0
    nprobe: int | None = None
    ef_search: int | None = None
    over_fetch: int = 1
    recall: float | None = None
    tombstones: int = 0
    outliers: int = 0
    measured_on: int | None = None


@dataclass(frozen=True)
class AnnState:
    """What is known of a built index; written into the folder's manifest.

    Attributes
    ----------
    factory : str
    trained_on : int
    built_with : int
        Number of rows when it was built.
    written : int
        Vectors written or removed since it was built.
    measure_at : int
        With so many vectors written or removed its recall is to be measured again.
    nprobe, ef_search, over_fetch, recall
        See `IndexInfo`.
    target : float
        The recall asked for.
    measured_on : int or None
        See `IndexInfo`.
    outliers : int
        Number of rows that are not in the index.
    code_limit, list_limit : float or None
        What may be lost of a vector that is added; see `Limits`. None where no version has looked for
        outliers yet.
    """

    factory: str
    trained_on: int
    built_with: int
    written: int
    measure_at: int
    nprobe: int | None
    ef_search: int | None
    over_fetch: int
    recall: float
    target: float
    measured_on: int | None = None
    outliers: int = 0
    code_limit: float | None = None
    list_limit: float | None = None

    @classmethod
    def from_values(cls, found: Any) -> AnnState:
        """Return the state that a manifest holds.

        Raises
        ------
        InvalidInputError
            If it holds anything else, or what no index can have.
        """
        names = {each.name for each in fields(cls)}
        later = {each.name: each.default for each in fields(cls) if each.default is not MISSING}
        if not isinstance(found, dict) or found.keys() not in (names, names - later.keys()):
            raise InvalidInputError(
                f"what is known of an index must have {sorted(names)}; got {shown(found)}"
            )
        found = {**later, **found}
        if check_factory(found["factory"]) != found["factory"]:
            raise InvalidInputError(f"{shown(found['factory'])} is no factory string that a store keeps")

        def count(name: str) -> int:
            return check_int(found[name], name, least=0)

        def effort(name: str) -> int | None:
            return None if found[name] is None else check_int(found[name], name, most=MOST_EFFORT)

        def limit(name: str) -> float | None:
            return None if found[name] is None else check_number(found[name], name, least=0)

        return cls(
            factory=found["factory"],
            trained_on=count("trained_on"),
            built_with=count("built_with"),
            written=count("written"),
            measure_at=count("measure_at"),
            nprobe=effort("nprobe"),
            ef_search=effort("ef_search"),
            over_fetch=check_int(found["over_fetch"], "over_fetch", most=MOST_EFFORT),
            recall=check_number(found["recall"], "recall", least=0, most=1),
            target=check_number(found["target"], "target", above=0, most=1),
            measured_on=None if found["measured_on"] is None else count("measured_on"),
            outliers=count("outliers"),
            code_limit=limit("code_limit"),
            list_limit=limit("list_limit"),
        )

    @property
    def limits(self) -> Limits | None:
        """What may be lost of a vector that is added."""
        if self.code_limit is None or self.list_limit is None:
            return None
        return Limits(self.code_limit, self.list_limit)

    @property
    def knobs(self) -> Knobs:
        """What a search may spend."""
        return Knobs(self.nprobe, self.ef_search, self.over_fetch)


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

    Attributes
    ----------
    index : AnnIndex or None
        The approximate index, if it is built.
    state : AnnState or None
        What is known of it.
    """

    def __init__(self, flat: FlatRows, metric: Metric, factory: str, target: float) -> None:
        self.flat, self._metric, self._factory, self.target = flat, metric, factory, target
        self._least = self._most = 0
        if factory not in (AUTO, FLAT):
            self._least, self._most = sizes(make_index(factory, flat.dim, metric))
        self.index: AnnIndex | None = None
        self.state: AnnState | None = None
        self._failed_with = 0
        self._warned = False
        self._complaint: str | None = None
        self._recent: IndexArray = np.empty(0, dtype=np.int64)

    @property
    def dim(self) -> int:
        return self.flat.dim

    @property
    def info(self) -> IndexInfo:
        """What serves the searches."""
        index, state = self.index, self.state
        if index is None or state is None:
            return IndexInfo(FLAT)
        names = ("factory", "trained_on", "nprobe", "ef_search", "over_fetch", "recall", "measured_on")
        known = {name: getattr(state, name) for name in names}
        return IndexInfo(**known, tombstones=index.tombstones, outliers=len(index.outliers))

    def view(self) -> FloatArray:
        return self.flat.view()

    def shortlist(self, longest: float) -> Shortlist | None:
        return self.flat.shortlist(longest)

    def candidates(self, queries: FloatArray, k: int) -> IndexArray | None:
        index, state = self.index, self.state
        if index is None or state is None:
            return None
        fetch = state.knobs.fetch(k)
        if fetch + len(index.outliers) >= len(self.view()):
            return None
        found = index.search(queries, k, fetch, state.knobs)
        return index.outliers.join(found, queries, k + EXTRA, self.flat, self._metric)

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
            self._try("extend", lambda index: self._extend(index, vectors, places))

    def _extend(self, index: AnnIndex, vectors: FloatArray, places: IndexArray) -> None:
        """Write rows into the index, but leave them out where a search would not find them."""
        index.write(vectors, places)
        state, known = self.state, np.setdiff1d(self._recent, places)
        self._recent = np.concatenate([known, places])[-RECENT:]
        if state is not None and not finds_again(
            index, self.flat, self._metric, state.knobs, self._recent, min(state.recall, state.target)
        ):
            index.set_aside(np.union1d(self._recent, places))

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

    def drop_index(self) -> None:
        self.index = self.state = None
        self._recent = self._recent[:0]

    def is_whole(self, count: int) -> bool:
        index = self.index
        if index is None or self.state is None:
            return self.flat.is_whole(count)
        return self.flat.is_whole(count) and index.is_whole(count)

    def dump(self, write: Callable[[bytes], object]) -> None:
        self.flat.dump(write)

    @property
    def unfinished(self) -> bool:
        """Whether `maintain` has an index to build."""
        return self.index is None and self._wanted() is not None

    def maintain(self) -> None:
        """Build or measure the index where it is time to; called with the store's lock held alone."""
        count, state = len(self.view()), self.state
        wanted, outdated = self._wanted(), self._is_stale() or self._is_outgrown()
        if wanted is None:
            if outdated or 2 * count <= _factory.AUTO_LIMIT:
                self.drop_index()
        elif self.index is None or state is None or outdated:
            self._build(wanted)
        elif state.written >= state.measure_at or state.target != self.target:
            if count < _factory.SMALLEST:  # removals have left too few to measure, or to need an index
                self.drop_index()
            else:
                self._measure(self.index, state)
                if self._has_fallen(state):
                    self._complaint, self._warned = None, False
                    self._build(wanted)
        self._complain()

    def measure(self) -> None:
        """Measure the recall for the target of now, if the index was tuned for another."""
        index, state = self.index, self.state
        if index is not None and state is not None and state.target != self.target:
            self._measure(index, state)
            self._complain()

    def _wanted(self) -> str | None:
        """Return the factory string of the index that there should be; None where there are too few rows."""
        count = len(self.view())
        if self._factory == AUTO:
            return auto_factory(count)
        enough = count >= max(self._least, _factory.SMALLEST, 2 * self._failed_with)
        return self._factory if enough or (self.index is not None and count) else None

    def _is_stale(self) -> bool:
        index, state = self.index, self.state
        if index is None or state is None:
            return False
        if 4 * index.tombstones > index.total:
            return True
        return state.written >= STALE_AFTER * state.built_with

    def _is_outgrown(self) -> bool:
        """Tell whether the index leaves out too many vectors."""
        count = len(self.view())
        outliers = 0 if self.index is None else len(self.index.outliers)
        return outliers > max(_factory.SMALLEST, MOST_OUTLIERS * count) or 2 * outliers > count

    def _has_fallen(self, before: AnnState) -> bool:
        """Tell whether the recall has fallen below a target that it had reached."""
        now = self.state
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
        before = np.empty(0, dtype=np.int64) if self.index is None else self.index.outliers.rows
        self._measure(built, AnnState(factory, sample, len(rows), 0, 0, None, None, 1, 0.0, self.target))
        self._recent = self._recent[:0]
        index, state = self.index, self.state
        if index is None or state is None or not len(before) or state.recall < self.target:
            return
        some = np.random.default_rng(SEED).choice(before, min(RECENT, len(before)), replace=False)
        if not finds_again(
            index, self.flat, self._metric, state.knobs, some, min(state.recall, state.target)
        ):
            self._complaint = (
                f"index={factory!r} does not find vectors that were added lately as well as the others: they "
                "lie closer together than its codes resolve, or apart from its graph; give a finer index"
            )

    def _measure(self, index: AnnIndex, state: AnnState) -> None:
        """Take `index` into service with what a search of it has to spend."""
        try:
            knobs, recall = tune(index, self.flat, self._metric, self.target)
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
                measured_on=len(self.view()),
                measure_at=state.written + int(MEASURED_AFTER * len(self.view())) + 1,
            ),
        )
        if recall < self.target and not self._warned:
            self._warned = True
            self._complaint = (
                f"index={state.factory!r} reaches a recall@10 of {recall:.3f} on the stored vectors, below "
                f"the {self.target:g} asked for, whatever a search may spend; give a finer index, "
                "or a lower recall="
            )

    def _try(self, what: str, change: Callable[[AnnIndex], None]) -> None:
        """Change the index; where FAISS fails, search exactly from now on."""
        if self.index is None:
            return
        try:
            change(self.index)
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
