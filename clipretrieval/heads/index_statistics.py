"""The class statistics of what a store holds, in step with every change of it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from secrets import token_hex
from typing import Any

from clipretrieval._util.warning import warn_caller
from clipretrieval.errors import StoreCorruptedError, UnsupportedOperationError
from clipretrieval.heads.base import Head, LearnedHead, OpenHead
from clipretrieval.heads.fitted_head import FittedHead
from clipretrieval.heads.priors import Priors
from clipretrieval.heads.statistics import ClassStatistics, Moments
from clipretrieval.heads.store_contents import StoreContents
from clipretrieval.retrieval.changes import STATISTICS
from clipretrieval.retrieval.labelled_index import LabelledIndex
from clipretrieval.stores.base import BlobStore, ScannableStore, VectorStore, view_manifest
from clipretrieval.types import AnyArray, FloatArray, Label

__all__ = ["IndexStatistics"]

BATCH = 1024
"""Records that are read together."""
MOST_DRIFT = 2.5e-10
"""Of the statistics, beyond which they are gathered anew: they are promised to 1e-9."""
PROBED = 4
"""Records that are read back, to see whether the store returns what it was given."""
TOKEN = 32
"""Characters before the statistics in a blob: of which contents they are."""

Held = dict[Moments, ClassStatistics]


class IndexStatistics:
    """Follows the records of one store, and learns heads from them.

    The manifest says, by a token, which statistics describe the records. Whoever changes records with this
    library takes that away first, and puts it there again with a new token at the end. So statistics that
    were kept with a store, or are held by another process, are known to be out of date. What is written
    around the library shows by the number of records.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._wanted: tuple[Moments, ...] = ()
        self._held: Held = {}
        self._seen: tuple[str | None, int] | None = None  # of which contents: token and count; None: of none
        self._version = 0
        self._begun: tuple[str | None, int] | None = None  # the token and the version before the changes
        self._changing = False
        self._probe: tuple[list[str], FloatArray] | None = None
        self._learned: tuple[Head, Priors, int, StoreContents, LearnedHead] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return IndexStatistics, ()  # the copy of an estimator gathers its own

    def want(self, moments: Sequence[Moments]) -> None:
        """Say which statistics a head reads; others are not followed any more."""
        with self._lock:
            if set(moments) - set(self._wanted):
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
        index.count_for(1)
        contents, learned = self._learn(index, head, priors)
        classes = learned.answered_classes if isinstance(learned, OpenHead) else contents.classes
        return FittedHead(head, learned, classes, max(shown, int(head.k), 1), name)

    def _learn(self, index: LabelledIndex, head: Head, priors: Priors) -> tuple[StoreContents, LearnedHead]:
        with self._lock:
            known = self._learned
            same = known is not None and known[0] == head and known[1] == priors
            if self._changing and known is not None and same:
                return known[3], known[4]
            if not self._changing:
                self.want(head.moments)
            if not self._changing and not self._describes(index.store):
                self._load(index.store)
            held = self._held if self._seen is not None else _gathered(index.store, self._wanted)
            if known is not None and same and known[2] == self._version and self._seen is not None:
                return known[3], known[4]
            contents = StoreContents(index, held, priors)
            learned = head.learn(contents)
            self._learned = (head, priors, self._version, contents, learned)
            return contents, learned

    def statistics(self, index: LabelledIndex, moments: Moments) -> ClassStatistics:
        """Return a copy of the statistics of an index's contents as they are now."""
        with self._lock:
            if moments not in self._wanted:
                self.want((*self._wanted, moments))
            if not self._changing and not self._describes(index.store):
                self._load(index.store)
            held = self._held if self._seen is not None else _gathered(index.store, self._wanted)
            return held[moments].copy()

    def begin(self, store: VectorStore) -> None:
        """Be ready for changes of what the store holds."""
        with self._lock:
            if not self._describes(store):
                with suppress(StoreCorruptedError):
                    self._take_kept(store)
            self._begun = None if self._seen is None else (self._seen[0], self._version)
            self._changing, self._probe = True, None

    def clear(self) -> None:
        """Start from an empty store."""
        with self._lock:
            self._held, self._seen, self._begun = {}, (None, 0), None
            self._version += 1

    def add(self, ids: Sequence[str], vectors: FloatArray, labels: Sequence[Label]) -> None:
        """Take up records that have come."""
        with self._lock:
            if self._probe is None:
                self._probe = list(ids[:PROBED]), vectors[:PROBED].copy()
            if self._seen is not None:
                for moments in self._wanted:
                    held = self._held.get(moments)
                    if held is None:
                        held = self._held[moments] = moments.empty(vectors.shape[1])
                    held.add(moments.of(vectors), labels)
                self._version += 1

    def remove(self, vectors: FloatArray, labels: Sequence[Label]) -> None:
        """Take out records that have gone."""
        with self._lock:
            if self._seen is not None and len(labels):
                for moments in self._wanted:
                    self._held[moments].remove(moments.of(vectors), labels)
                self._version += 1

    def lose(self) -> None:
        """Forget it all: it is not known any more what the store holds."""
        with self._lock:
            self._seen = None
            self._version += 1

    def keep(self, store: VectorStore) -> None:
        """Write the statistics into the store, and into its manifest that they describe what it holds."""
        with self._lock:
            if self._begun is not None and self._begun[1] == self._version and self._begun[0] is not None:
                token = self._begun[0]  # nothing has changed
            else:
                drifted = any(held.drift > MOST_DRIFT for held in self._held.values())
                if self._seen is None or drifted or not self._is_faithful(store):
                    self._held = _gathered(store, self._wanted)
                    self._version += 1
                token = token_hex(TOKEN // 2)
                if isinstance(store, BlobStore):
                    for moments, held in self._held.items():
                        store.write_blob(moments.name, token.encode() + held.to_bytes())
            count = next(iter(self._held.values())).count if self._held else store.count()
            store.write_manifest({**store.read_manifest(), STATISTICS: {"token": token, "count": count}})
            self._seen, self._changing, self._begun = (token, count), False, None

    def end(self) -> None:
        """Stop following; what was not kept is not known to be in step."""
        with self._lock:
            if self._changing:
                self._changing, self._seen = False, None

    def _describes(self, store: VectorStore) -> bool:
        """Tell whether what is held describes what the store holds."""
        if self._seen is None or self._seen != (_token(store), store.count()):
            return False
        return self._seen[1] == 0 or set(self._wanted) <= set(self._held)

    def _load(self, store: VectorStore) -> None:
        """Read the statistics that the store has kept, or gather them."""
        reason = ""
        try:
            taken = self._take_kept(store)
            if not taken and _token(store) is not None:
                reason = "do not match what it holds"
        except StoreCorruptedError as error:
            taken, reason = False, f"cannot be used ({error})"
        if taken:
            return
        token = _token(store)
        if not self._wanted:
            self._held, self._seen = {}, (token, store.count())
            self._version += 1
            return
        self._held = _gathered(store, self._wanted)
        count = next(iter(self._held.values())).count if self._held else store.count()
        self._seen = (token, count)
        self._version += 1
        if not isinstance(store, BlobStore):
            warn_caller(
                f"{type(store).__name__} cannot keep class statistics, so they were gathered by reading all "
                f"{count} vectors; that happens once in each process"
            )
        elif reason:
            warn_caller(
                f"the class statistics that the store has kept {reason}, so they were gathered anew by "
                f"reading all {count} vectors; the next fit, forget or relabel keeps these"
            )

    def _take_kept(self, store: VectorStore) -> bool:
        """Read what the store has kept, if it says of itself, and shows, that it describes the records."""
        self._seen, count = None, store.count()
        if count == 0:
            self._held, self._seen = {}, (_token(store), 0)
            self._version += 1
            return True
        token = _token(store)
        if token is None or not isinstance(store, BlobStore):
            return False
        found: Held = {}
        for moments in self._wanted:
            content = store.read_blob(moments.name)
            if content is None or content[:TOKEN] != token.encode():
                return False
            found[moments] = ClassStatistics.from_bytes(content[TOKEN:])
            if found[moments].per_class != moments.per_class or found[moments].count != count:
                return False
        if not found or not _has_classes(store, next(iter(found.values()))):
            return False
        self._held, self._seen = found, (token, count)
        self._version += 1
        return True

    def _is_faithful(self, store: VectorStore) -> bool:
        """Tell whether the store returns vectors as it was given them; one that compresses them does not."""
        if self._probe is None:
            return True
        ids, vectors = self._probe
        given = dict(zip(ids, vectors, strict=True))
        records = store.get(ids)
        found: AnyArray = records.vectors
        return all((given[name] == row).all() for name, row in zip(records.ids.tolist(), found, strict=True))


def _token(store: VectorStore) -> str | None:
    """Return which statistics describe the contents, as the manifest says; None where it says nothing."""
    found = view_manifest(store).get(STATISTICS)
    token = found.get("token") if isinstance(found, dict) else None
    return token if isinstance(token, str) and len(token) == TOKEN and token.isascii() else None


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
    held = {moments: moments.empty(store.dim or 0) for moments in wanted}
    for listing in store.scan():
        for start in range(0, len(listing.ids), BATCH):
            records = store.get(listing.ids[start : start + BATCH].tolist())
            for moments, statistics in held.items():
                statistics.add(moments.of(records.vectors), records.labels.tolist())
    return held
