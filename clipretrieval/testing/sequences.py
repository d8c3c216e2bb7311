"""Change what a store holds in random sequences, some cut short by SIGKILL, and look at its class statistics.

``python -m clipretrieval.testing.sequences STORE OPTIONS SEED`` is the process that is killed.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clipretrieval.classifier import RetrievalClassifier
from clipretrieval.errors import ClipRetrievalWarning, StoreError
from clipretrieval.heads.base import Contents, Head, Queries
from clipretrieval.heads.discriminant import Discriminant
from clipretrieval.heads.fused import Fused
from clipretrieval.heads.quadratic import Quadratic
from clipretrieval.heads.ridge import Ridge
from clipretrieval.heads.statistics import ClassStatistics, Moments
from clipretrieval.stores.base import ScannableStore, VectorStore
from clipretrieval.stores.registry import create_store
from clipretrieval.types import FloatArray

__all__ = ["Deviation", "kill_sequences", "run_sequence"]

LABELS = "abcd"
HEADS: Sequence[Head] = (Discriminant(), Quadratic(), Ridge(32), Fused(3, ridge=Ridge(32)))
CHANGES = 10
DIM, POOL, PART = 6, 60, 8
# Of the process that is killed: enough that a change takes a while.
GREAT_DIM, GREAT_POOL, GREAT_PART = 32, 2000, 400
QUERIES = 50
MOST_CHANGES = 8
MOST_SECONDS = 0.15


@dataclass(frozen=True)
class Deviation:
    """How far a store's class statistics are from those of a fresh fit, and the answers.

    Attributes
    ----------
    error : float
        The greatest difference of a class's sum or of a second moment, relative to its norm. Infinite where
        classes or counts differ.
    answers : int
        How many of 50 answers differ.
    """

    error: float
    answers: int


def run_sequence(store: VectorStore, seed: int, *, options: Mapping[str, Any] | None = None) -> Deviation:
    """Add, forget and relabel in a random sequence, and compare what has become of it with a fresh fit.

    Parameters
    ----------
    store : VectorStore
        An empty one; closed at the end.
    seed : int
        Of the sequence, and the place of its head among the built-in ones.
    options : mapping, optional
        With a ``"name"``, they open the contents anew for `create_store`: the store is closed and opened
        again, now and then.
    """
    draw, head = random.Random(seed), HEADS[seed % len(HEADS)]  # noqa: S311  no secret
    changes = _Changes(draw, DIM, POOL, PART)
    with _quiet():
        classifier = RetrievalClassifier(store=store, head=head)
        for number in range(CHANGES):
            changes.make(classifier, last=number == CHANGES - 1)
            if draw.random() < 0.5 and classifier.store_.count():  # a head may learn of several changes
                classifier.predict(changes.vectors[:3])
            if options and draw.random() < 0.1:
                classifier.store_.close()
                store = create_store(**options)
                classifier = RetrievalClassifier.from_store(store, head=head)
        with closing(classifier.store_):
            return _deviation(classifier, changes.vectors[:QUERIES])


def kill_sequences(
    name: str, options: Mapping[str, Any], *, seed: int, resumed: bool = True
) -> Iterator[Deviation]:
    """Kill a process amid random changes of a store, open this, and finish with ``fit(…, resume=True)``.

    Parameters
    ----------
    name : str
        Of a store that `create_store` knows.
    options : mapping
        JSON values that open an empty store, the same each time.
    seed : int
    resumed : bool
        Whether to fit after the kill.

    Yields
    ------
    Deviation
        As the store was left, unless it was left empty; and after the fit. Compared with a fresh fit on what
        the store holds by then.

    Raises
    ------
    StoreError
        If the process ends by itself.
    """
    draw, head = random.Random(seed), HEADS[seed % len(HEADS)]  # noqa: S311  no secret
    command = [sys.executable, "-m", __name__, name, json.dumps(dict(options)), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as changing:  # noqa: S603  our own command
        try:
            awaited = draw.randrange(MOST_CHANGES)
            if not any(int(line) >= awaited for line in changing.stdout or ()):
                raise StoreError(f"the process that changes the store ended by itself: {changing.wait()}")
            time.sleep(draw.uniform(0, MOST_SECONDS))
        finally:
            changing.kill()
    changes = _Changes(random.Random(seed + 1), GREAT_DIM, GREAT_POOL, GREAT_PART)  # noqa: S311
    with closing(create_store(name, **options)) as store, _quiet():
        queries = changes.vectors[:QUERIES]
        if store.count():
            yield _deviation(RetrievalClassifier.from_store(store, head=head), queries)
        if resumed:
            places = changes.some()
            classifier = RetrievalClassifier(store=store, head=head)
            classifier.fit(changes.vectors[places], changes.labels(places), resume=True)
            yield _deviation(classifier, queries)


class _Changes:
    """Draws changes of a classifier's contents, which are vectors of a pool."""

    def __init__(self, draw: random.Random, dim: int, pool: int, part: int) -> None:
        rows = np.random.default_rng(dim).standard_normal((pool, dim), dtype=np.float32)
        self._draw, self._part, self.vectors = draw, part, rows * np.float32(3) + np.float32(1)
        known = RetrievalClassifier(store="memory").fit(self.vectors, [LABELS[0], LABELS[1]] * (pool // 2))
        self._ids = known.kneighbors(self.vectors, 1).ids[:, 0].tolist()
        self._held: dict[int, str] = {}

    def some(self) -> list[int]:
        """Return the places of some vectors of the pool."""
        return self._draw.sample(range(len(self.vectors)), self._draw.randint(self._part // 2, self._part))

    def labels(self, places: Sequence[int]) -> list[str]:
        """Draw a label for each."""
        return [self._draw.choice(LABELS) for _ in places]

    def make(self, classifier: RetrievalClassifier, *, last: bool = False) -> None:
        """Make one change; the `last` one adds, so that there is something to compare."""
        kind = self._draw.choices(["add", "forget", "forget a class", "relabel"], [4, 3, 1, 3])[0]
        held = sorted(self._held)
        if last or not held or kind == "add":
            places = self.some()
            given = self.labels(places)
            classifier.partial_fit(self.vectors[places], given)
            self._held.update(zip(places, given, strict=True))
            return
        some = self._draw.sample(held, min(len(held), self._draw.randint(1, self._part // 2)))
        names = [self._ids[place] for place in some]
        if kind == "forget":
            classifier.forget(names)
            for place in some:
                del self._held[place]
        elif kind == "forget a class":
            label = self._draw.choice(sorted(set(self._held.values())))
            classifier.forget(label=label)
            self._held = {place: each for place, each in self._held.items() if each != label}
        else:
            given = self.labels(some)
            classifier.relabel(names, given)
            self._held.update(zip(some, given, strict=True))


class _Reader:
    """A head that learns nothing, and so shows the statistics."""

    k = 0

    def __init__(self, moments: Sequence[Moments]) -> None:
        self.moments = moments
        self.found: dict[Moments, ClassStatistics] = {}

    def learn(self, contents: Contents) -> _Reader:
        self.found = {each: contents.statistics(each).copy() for each in self.moments}
        return self

    def log_scores(self, queries: Queries) -> npt.NDArray[np.float64]:
        return np.zeros((len(queries), 1))


def _deviation(classifier: RetrievalClassifier, queries: FloatArray) -> Deviation:
    """Compare a classifier with one that was fitted at once on what its store holds."""
    answers = classifier.predict(queries)
    head: Head = classifier.head  # type: ignore[assignment]
    reader = _Reader(head.moments)
    classifier.set_params(head=reader)
    _ = classifier.head_  # learns when it is looked at
    classifier.set_params(head=head)
    vectors, labels = _contents(classifier.store_)
    fresh = RetrievalClassifier(store="memory", head=head).fit(vectors, labels)
    error = 0.0
    for moments, statistics in reader.found.items():
        right = moments.empty(vectors.shape[1])
        right.add(moments.of(vectors), labels)
        error = max(error, _difference(statistics, right))
    return Deviation(error, int(np.count_nonzero(answers != fresh.predict(queries))))


def _contents(store: VectorStore) -> tuple[FloatArray, list[str]]:
    if not isinstance(store, ScannableStore):
        raise StoreError(f"{type(store).__name__} cannot list what it holds")
    ids = sorted(name for listing in store.scan() for name in listing.ids.tolist())
    records = store.get(ids)
    return records.vectors, records.labels.tolist()


def _difference(found: ClassStatistics, right: ClassStatistics) -> float:
    """Return the greatest relative difference."""
    if found.classes != right.classes or found.counts.tolist() != right.counts.tolist():
        return float("inf")
    pairs = [*zip(found.sums, right.sums, strict=True), (found.second_moment, right.second_moment)]
    if found.per_class:
        pairs += [(found.class_moment(label), right.class_moment(label)) for label in found.classes]
    return max(float(np.linalg.norm(left - other) / np.linalg.norm(other)) for left, other in pairs)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what random labels are warned of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClipRetrievalWarning)
        yield


def _change_forever(name: str, options: str, seed: str) -> None:
    """Change a store until killed; tell how many changes were made."""
    draw = random.Random(int(seed))  # noqa: S311  no secret
    changes = _Changes(draw, GREAT_DIM, GREAT_POOL, GREAT_PART)
    head = HEADS[int(seed) % len(HEADS)]
    warnings.simplefilter("ignore", ClipRetrievalWarning)
    classifier = RetrievalClassifier(store=create_store(name, **json.loads(options)), head=head)
    number = 0
    while True:
        print(number, flush=True)
        changes.make(classifier)
        number += 1


if __name__ == "__main__":
    _change_forever(*sys.argv[1:])
