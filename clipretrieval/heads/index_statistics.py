"""The class statistics of what a store holds, in step with every change of it."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from clipretrieval._util.checks import shown
from clipretrieval._util.forks import renew_after_fork
from clipretrieval._util.warning import warn_caller
from clipretrieval.errors import (
    InvalidInputError,
    StoreCorruptedError,
    StoreError,
    UnsupportedOperationError,
)
from clipretrieval.heads.base import Head, LearnedHead, OpenHead
from clipretrieval.heads.fitted_head import FittedHead
from clipretrieval.heads.priors import Priors
from clipretrieval.heads.statistics import ClassStatistics, Moments
from clipretrieval.heads.store_contents import StoreContents
from clipretrieval.retrieval.changes import (
    STATISTICS,
    STATISTICS_BLOBS,
    TOKEN,
    is_changing,
    new_state,
    state_token,
)
from clipretrieval.retrieval.labelled_index import LabelledIndex
from clipretrieval.retrieval.vectorless_store import VectorlessStore
from clipretrieval.stores.base import BlobStore, ScannableStore, VectorStore, view_manifest
from clipretrieval.stores.checks import LARGEST_BLOB
from clipretrieval.types import FloatArray, Label

__all__ = ["IndexStatistics"]

BATCH = 1024
"""Records that are read together."""
MOST_DRIFT = 2.5e-10
"""Of the statistics, beyond which they are gathered anew: they are promised to 1e-9."""
PROBED = 4
"""Records that are read back, to see whether the store returns what it was given."""
KEPT_NAME = "moments-[a-z0-9-]{1,56}"
"""What a blob of statistics is called; see `Moments.name`."""

Held = dict[Moments, ClassStatistics]


@dataclass(frozen=True)
class _ContentsState:
    """What tells one state of a store's contents from another.

    Attributes
    ----------
    token : str or None
        By which the manifest tells it from others; None where it says nothing.
    count : int
        Of the records.
    changing : bool
        Whether it may be another in the next moment, without any sign of that.
    kept : int or None
        The records of which statistics were kept with it, as the manifest says; None where none were.
    """

    token: str | None
    count: int
    changing: bool = False
    kept: int | None = field(default=None, compare=False)

    @classmethod
    def of(cls, manifest: Mapping[str, Any], count: int) -> _ContentsState:
        token = state_token(manifest)
        kept = None if token is None else manifest[STATISTICS].get("count")
        return cls(token, count, is_changing(manifest), kept)

    def entry(self) -> dict[str, Any]:
        """Return what the manifest has to say of it."""
        return {"token": self.token, "count": self.count}


@dataclass(frozen=True, eq=False)
class _Lesson:
    """What a head has learned, and of what."""

    head: Head
    attributes: dict[str, Any]
    priors: Priors
    version: int
    contents: StoreContents
    learned: LearnedHead

    def is_of(self, head: Head, priors: Priors) -> bool:
        """Tell whether the head is the same, and has the attributes that it had."""
        if type(head) is not type(self.head) or priors != self.priors:
            return False
        now, then = _attributes(head), self.attributes
        return (
            (head is self.head or bool(now))
            and now.keys() == then.keys()
            and all(_is_same(now[name], then[name]) for name in now)
        )


class IndexStatistics:
    """Follows the records of one store, and learns heads from them.

    The manifest says, by a token, which state the records are in, see `changes.STATISTICS`. Statistics that
    were kept with a store begin with the token of what they describe; those of another state, kept or held by
    another process, are out of date. What is written around the library shows by the number of records
    alone. While others change the records, or if one was cut short amid that, nothing held is trusted.
    """

    def __init__(self) -> None:
        self._wanted: tuple[Moments, ...] = ()
        self._version = 0
        self._after_fork()
        renew_after_fork(self)

    def _after_fork(self) -> None:
        """Know nothing: another thread may have been in the midst of a change."""
        self._lock = threading.RLock()
        self._held: Held = {}
        self._seen: _ContentsState | None = None  # which contents are held; None: not known
        self._kept: tuple[_ContentsState, int] | None = None  # what the store keeps, and of which version
        self._changed: VectorStore | None = None  # the store, while it is changed
        self._in_step: tuple[str, int] | None = None  # token and version of what the store keeps
        self._unusable = ""  # why that cannot be read
        self._probe: tuple[list[str], FloatArray] | None = None
        self._faithful = True
        self._lesson: _Lesson | None = None
        self._amid: int | None = None  # how many records there were when others were found changing them

    def __reduce__(self) -> tuple[Any, ...]:
        return IndexStatistics, ()  # the copy of an estimator gathers its own

    def want(self, moments: Sequence[Moments]) -> None:
        """Say which statistics a head reads; others are not followed any more."""
        with self._lock:
            if self._changed is not None and set(moments) - set(self._wanted):
                self._seen = None
            self._wanted = tuple(dict.fromkeys(moments))
            self._held = {each: held for each, held in self._held.items() if each in self._wanted}

    def fit(self, index: LabelledIndex, head: Head, priors: Priors, name: str, shown: int) -> FittedHead:
        """Have a head learn from an index's contents as they are now.

        Parameters
        ----------
        index : LabelledIndex
        head : Head
        priors : Priors
        name : str
            What reports call it.
        shown : int
            Neighbors to look up where they are shown too.

        Raises
        ------
        NotFittedError
            If the store holds nothing any more.
        UnsupportedOperationError
            If the statistics have to be gathered and the store cannot list what it holds.

        Warns
        -----
        ClipRetrievalWarning
            If statistics were gathered by reading the store because it cannot keep them, or those that it
            kept do not match what it holds.
        """
        manifest, count = index.look()
        state = _ContentsState.of(manifest, count)
        contents, learned = self._learn(index, head, priors, state)
        classes = learned.answered_classes if isinstance(learned, OpenHead) else contents.classes
        most = max(shown, min(int(head.k), count), 1) if index.is_searchable else 0
        return FittedHead(head, learned, classes, most, name)

    def fit_each(
        self, index: LabelledIndex, heads: Sequence[tuple[Head, str]], priors: Priors, shown: int
    ) -> list[FittedHead]:
        """Have several heads, with their names, learn as by `fit`; what is followed stays what it was."""
        with self._lock:
            wanted, lesson = self._wanted, self._lesson
            try:
                if self._changed is None:
                    self.want((*wanted, *(each for head, _ in heads for each in head.moments)))
                return [self.fit(index, head, priors, name, shown) for head, name in heads]
            finally:
                if self._changed is None:
                    self.want(wanted)
                self._lesson = lesson

    def _learn(
        self, index: LabelledIndex, head: Head, priors: Priors, state: _ContentsState
    ) -> tuple[StoreContents, LearnedHead]:
        with self._lock:
            known = self._lesson if self._lesson is not None and self._lesson.is_of(head, priors) else None
            if self._changed is not None and known is not None:
                return known.contents, known.learned  # as it was before the change, of which nobody knows yet
            held = self._up_to_date(index.store, tuple(dict.fromkeys(head.moments)), state)
            if known is not None and self._seen is not None and known.version == self._version:
                return known.contents, known.learned
            contents = StoreContents(index, held, priors)
            learned = head.learn(contents)
            if not callable(getattr(learned, "log_scores", None)):
                raise InvalidInputError(
                    f"{type(head).__name__}.learn returned {shown(learned)}, without log_scores; it must "
                    "return what it has learned, see clipretrieval.heads.LearnedHead"
                )
            self._lesson = _Lesson(head, _attributes(head), priors, self._version, contents, learned)
            return contents, learned

    def statistics(self, index: LabelledIndex, moments: Moments) -> ClassStatistics:
        """Return a copy of the statistics of an index's contents as they are now."""
        state = _ContentsState.of(*index.look())
        with self._lock:
            return self._up_to_date(index.store, (moments,), state)[moments].copy()

    def _up_to_date(self, store: VectorStore, moments: Sequence[Moments], state: _ContentsState) -> Held:
        """Return statistics of what a store holds, which was lately in this state."""
        if self._changed is not None:
            if self._seen is not None and set(moments) <= set(self._held):
                return self._held
            return _gathered(store, moments)
        self.want((*self._wanted, *moments))
        if not self._describes(state):
            # Where it is another since one's own change, waited for here, that is in step already.
            state = _ContentsState.of(view_manifest(store), store.count())
        if not self._describes(state):
            self._load(store, state)
        return self._held

    def expect(self, classes: Collection[Any], dim: int, *, anew: bool = False) -> None:
        """Refuse records of so many classes and dimensions that their statistics have no room in memory."""
        with self._lock:
            for moments in self._wanted:
                held = None if anew or self._changed is None else self._held.get(moments)
                known = set(classes)
                if held is not None and moments.per_class:  # which alone takes room by their number
                    known.update(held.classes)
                _check_room(moments, len(known), dim)

    def begin(self, store: VectorStore) -> None:
        """Be ready for changes of what the store holds."""
        with self._lock:
            state = _ContentsState.of(view_manifest(store), store.count())
            self._in_step, self._unusable = None, ""
            if not self._describes(state):
                self._start_from(state)
                try:
                    if not self._take_kept(store, state) and state.token is not None:
                        self._in_step = state.token, self._version
                except StoreCorruptedError as error:
                    self._unusable = str(error)
                complete = state.count == 0 or set(self._wanted) <= set(self._held)
                self._seen = state if complete else None
            whole = self._seen is not None and state.kept == state.count
            self._kept = (state, self._version) if whole else None
            self._changed, self._probe, self._faithful = store, None, True

    def clear(self) -> None:
        """Start from an empty store."""
        with self._lock:
            self._held, self._seen = {}, _ContentsState(None, 0)
            self._version += 1

    def add(self, ids: Sequence[str], vectors: FloatArray, labels: Sequence[Label]) -> None:
        """Take up records that have come."""
        with self._lock:
            self._version += 1
            if self._seen is None or self._changed is None:
                return
            if self._probe is None:
                self._probe = list(ids[:PROBED]), vectors[:PROBED].copy()
                self._faithful = self._is_faithful()
            if not self._faithful:  # what will be removed is what the store returns
                records = self._changed.get(ids)
                if len(records) < len(ids):
                    self.lose()
                    return
                vectors, labels = records.vectors, records.labels.tolist()
                self._probe = records.ids[:PROBED].tolist(), vectors[:PROBED].copy()
            for moments in self._wanted:
                held = self._held.get(moments)
                if held is None:
                    held = self._held[moments] = moments.empty(vectors.shape[1])
                held.add(moments.of(vectors), labels)

    def remove(self, vectors: FloatArray, labels: Sequence[Label]) -> None:
        """Take out records that have gone."""
        with self._lock:
            if not len(labels):
                return
            self._version += 1
            try:
                for moments in self._wanted if self._seen is not None else ():
                    self._held[moments].remove(moments.of(vectors), labels)
            except (InvalidInputError, KeyError):  # the store was changed around the library
                self.lose()

    def lose(self) -> None:
        """Forget it all: it is not known any more what the store holds."""
        with self._lock:
            self._seen = None
            self._version += 1

    def keep(self, store: VectorStore) -> dict[str, Any] | None:
        """Write the statistics into the store, and return what its manifest has to say.

        That is None where they are not known, and the store cannot list what it holds.
        """
        with self._lock:
            in_step, self._in_step = self._in_step, None
            if self._kept is not None and self._kept[1] == self._version:
                return self._kept[0].entry()  # nothing has changed
            unchanged = in_step[0] if in_step is not None and in_step[1] == self._version else None
            drifted = any(held.drift > MOST_DRIFT for held in self._held.values())
            if self._seen is None or drifted or not self._is_faithful():
                if isinstance(store, ScannableStore):
                    self._held = _gathered(store, self._wanted)
                    self._version += 1
                    if self._seen is None and self._unusable:
                        warn_caller(
                            "the class statistics that the store had kept could not be used "
                            f"({self._unusable}), so they were gathered anew by reading all "
                            f"{store.count()} vectors"
                        )
                elif self._seen is None:
                    return None
            token = unchanged or str(new_state()["token"])
            self._write(store, token, others_stay=unchanged is not None)
            count = next(iter(self._held.values())).count if self._held else store.count()
            self._seen = _ContentsState(token, count, kept=count)
            self._kept = self._seen, self._version
            return self._seen.entry()

    def _write(self, store: VectorStore, token: str, *, others_stay: bool) -> None:
        """Write the statistics as blobs, if the store can keep such.

        Those of other heads are removed, unless they describe the records still.
        """
        if not isinstance(store, BlobStore):
            return
        known, names, there = _kept_names(store), {moments.name for moments in self._held}, set[str]()
        _name_kept(store, known | names)  # before they come: a kill leaves none that nobody knows of
        try:
            for moments, held in self._held.items():
                if moments.n_bytes(held.n_classes, store.dim or 0) // 2 > LARGEST_BLOB:
                    raise UnsupportedOperationError(
                        f"they take more than the {LARGEST_BLOB:,} bytes of a blob"
                    )
                store.write_blob(moments.name, held.to_bytes(token.encode()))
                there.add(moments.name)
        except (StoreError, InvalidInputError) as error:  # a full disk, or more than a blob may have
            warn_caller(
                f"the class statistics could not be kept with the store ({error}); whoever opens it next has "
                "to gather them by reading all vectors"
            )
        if others_stay:
            there |= known - names
        for name in sorted((known | names) - there):
            try:
                store.write_blob(name, None)
            except StoreError:  # the next change tries again
                there.update({name} & known)
        _name_kept(store, there)

    def end(self) -> None:
        """Stop following; what was not kept is not known to be in step."""
        with self._lock:
            if self._changed is not None:
                state, version = self._kept or (None, -1)
                self._seen = state if version == self._version else None
                self._changed = self._kept = None

    def _describes(self, state: _ContentsState) -> bool:
        """Tell whether what is held describes what the store holds in a state."""
        if state.changing or self._seen != state:
            return False
        return state.count == 0 or set(self._wanted) <= set(self._held)

    def _start_from(self, state: _ContentsState) -> None:
        """Let go what is held of another state of a store's contents."""
        if state.changing or self._seen != state or state.count == 0:
            self._held = {}
            self._version += 1

    def _load(self, store: VectorStore, state: _ContentsState) -> None:
        """Read what is not held of the statistics that the store has kept, and gather what it has not."""
        self._start_from(state)
        reason = ""
        try:
            reason = self._take_kept(store, state)
        except StoreCorruptedError as error:
            reason = f"cannot be used ({error})"
        missing = [moments for moments in self._wanted if moments not in self._held]
        if missing and state.count:
            self._held.update(_gathered(store, missing))
            state = replace(state, count=self._held[missing[0]].count)
        self._seen = None if state.changing else state
        again = self._amid == state.count
        self._amid = state.count if state.changing else None
        if again and state.changing and missing:
            warn_caller(
                f"a change of the {state.count} records was cut short, or is under way, so class statistics "
                "are gathered at every question; the next fit, forget or relabel ends that"
            )
        if not missing or not state.count:
            return
        if not isinstance(store, BlobStore):
            warn_caller(
                f"{type(store).__name__} cannot keep class statistics, so they were gathered by reading all "
                f"{state.count} vectors; that happens once in each process, and after what others change"
            )
        elif reason:
            warn_caller(
                f"the class statistics that the store has kept {reason}, so they were gathered anew by "
                f"reading all {state.count} vectors; the next fit, forget or relabel keeps these"
            )

    def _take_kept(self, store: VectorStore, state: _ContentsState) -> str:
        """Read what the store has kept, and return what is wrong with that, if anything.

        Only what says of itself, and shows, that it describes the records is taken.
        """
        if state.token is None or not state.count or not isinstance(store, BlobStore):
            return ""
        for moments in self._wanted:
            content = None if moments in self._held else store.read_blob(moments.name)
            if content is None and moments not in self._held and moments.name in _kept_names(store):
                raise StoreCorruptedError(f"the blob {moments.name!r} is missing")
            if content is None or content[:TOKEN] != state.token.encode():
                continue
            found = ClassStatistics.from_bytes(content[TOKEN:])
            expected = moments.empty(store.dim or 0)
            same_kind = (found.per_class, found.dim) == (expected.per_class, expected.dim)
            if not same_kind or not self._agrees(store, found):
                return "do not match what it holds"
            self._held[moments] = found
        complete = state.kept in (None, state.count) or set(self._wanted) <= set(self._held)
        return "" if complete else "do not match what it holds"

    def _agrees(self, store: VectorStore, found: ClassStatistics) -> bool:
        """Tell whether statistics have as many vectors of each class as those held, or else as the store."""
        known = next(iter(self._held.values()), None)
        if known is None:
            return found.count == store.count() and _has_classes(store, found)
        return (found.classes, found.counts.tolist()) == (known.classes, known.counts.tolist())

    def _is_faithful(self) -> bool:
        """Tell whether the store returns vectors as they were taken up; one that compresses them may not."""
        if self._probe is None or self._changed is None or isinstance(self._changed, VectorlessStore):
            return True
        ids, vectors = self._probe
        given = dict(zip(ids, vectors, strict=True))
        records = self._changed.get(ids)  # some may have been removed again, or are not visible yet
        return all(
            (given[name] == row).all()
            for name, row in zip(records.ids.tolist(), records.vectors, strict=True)
        )


def _attributes(head: Head) -> dict[str, Any]:
    return dict(getattr(head, "__dict__", {}))


def _is_same(left: Any, right: Any) -> bool:
    if left is right:
        return True
    try:
        return type(left) is type(right) and bool(left == right)
    except (TypeError, ValueError):  # arrays
        return False


def _kept_names(store: VectorStore) -> set[str]:
    """Return which blobs of statistics there may be, as the manifest says; of nobody else's."""
    found = view_manifest(store).get(STATISTICS_BLOBS)
    names = found if isinstance(found, list) else []
    return {name for name in names if isinstance(name, str) and re.fullmatch(KEPT_NAME, name)}


def _name_kept(store: VectorStore, names: set[str]) -> None:
    """Have the manifest say which blobs of statistics there may be."""
    if view_manifest(store).get(STATISTICS_BLOBS) != sorted(names):
        store.write_manifest({**view_manifest(store), STATISTICS_BLOBS: sorted(names)})


def _check_room(moments: Moments, n_classes: int, dim: int) -> None:
    """Refuse second moments that have no room in memory, beside what is learned of them.

    Raises
    ------
    InvalidInputError
    """
    needed, there = 2 * moments.n_bytes(n_classes, dim), _physical_memory()
    if there is not None and needed > there:
        kept = f"a second moment for each of {n_classes} classes" if moments.per_class else "a second moment"
        raise InvalidInputError(
            f"{kept} of {dim} dimensions takes {needed // 2:,} bytes, and what the head learns as many "
            f"again; this machine has {there:,} bytes of memory. Use head='discriminant', or vectors of "
            "fewer dimensions"
        )


def _physical_memory() -> int | None:
    """Return how many bytes of memory the machine has; None where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _has_classes(store: VectorStore, statistics: ClassStatistics) -> bool:
    """Tell whether a store that can list its records has as many of each class as were counted."""
    if not isinstance(store, ScannableStore):
        return True
    counts: dict[Label, int] = {}
    for listing in store.scan():
        for label in listing.labels.tolist():
            counts[label] = counts.get(label, 0) + 1
    return counts == dict(zip(statistics.classes, statistics.counts.tolist(), strict=True))


def _gathered(store: VectorStore, wanted: Sequence[Moments]) -> Held:
    """Read all that a store holds."""
    if not isinstance(store, ScannableStore):
        raise UnsupportedOperationError(
            f"{type(store).__name__} cannot list what it holds (it has no scan method), so class statistics "
            "cannot be gathered from it: fit in this process, or use head='votes'"
        )
    per_class = [moments for moments in wanted if moments.per_class]
    if per_class:
        classes = {label for listing in store.scan() for label in listing.labels.tolist()}
        for moments in per_class:
            _check_room(moments, len(classes), store.dim or 0)
    held = {moments: moments.empty(store.dim or 0) for moments in wanted}
    for listing in store.scan():
        for start in range(0, len(listing.ids), BATCH):
            records = store.get(listing.ids[start : start + BATCH].tolist())
            for moments, statistics in held.items():
                statistics.add(moments.of(records.vectors), records.labels.tolist())
    return held
