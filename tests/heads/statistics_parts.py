"""What the tests of statistics share: vectors, a store that fails, and what is right."""

from __future__ import annotations

import warnings

import numpy as np

from clipretrieval import RetrievalClassifier, StoreUnavailableError
from clipretrieval.stores import MemoryStore

GATHERED = "reading all"
TOLERANCE = 1e-6
"""Of probabilities: sharpnesses and weights are found by steps that end at 1e-8."""


def clouds(n=60, seed=0, classes=3):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    rows = np.eye(classes, 5)[labels] * 2 + rng.standard_normal((n, 5))
    return rows.astype(np.float32), [f"class {label}" for label in labels]


def gathers(classifier, rows):
    """Tell whether a question makes the classifier read all vectors and warn of it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        classifier.predict(rows)
    return any(GATHERED in str(each.message) for each in caught)


def assert_as_fresh(classifier, rows):
    """Compare with a classifier that was fitted at once on what the store holds."""
    answers, store = classifier.predict_proba(rows), classifier.store_  # in this order: it may be refreshed
    records = store.get(sorted(name for listing in store.scan() for name in listing.ids.tolist()))
    labels = records.labels.tolist()
    # Vectors as they are given: what they would be whitened by depends on what was there at first.
    fresh = RetrievalClassifier(
        store="memory", head=classifier.head, priors=classifier.priors, transform=None
    )
    right = fresh.fit(records.vectors, labels).predict_proba(rows)
    np.testing.assert_allclose(
        answers[:, np.isin(classifier.classes_, labels)], right, rtol=0, atol=TOLERANCE
    )


class Failing(MemoryStore):
    """A store that fails when it is told to."""

    fail = ""

    def upsert(self, ids, *rest):
        if self.fail == "half":
            vectors, labels, *more = rest
            super().upsert(ids[:2], vectors[:2], labels[:2], *[each and each[:2] for each in more])
        if self.fail in ("half", "upsert"):
            raise StoreUnavailableError("the disk is full")
        super().upsert(ids, *rest)

    def delete(self, ids):
        if self.fail == "delete":
            super().delete(ids[:1])
            raise StoreUnavailableError("the network is gone")
        return super().delete(ids)

    def write_blob(self, name, content):
        if self.fail == "blob":
            raise StoreUnavailableError("the disk is full")
        super().write_blob(name, content)

    def write_manifest(self, manifest):
        if self.fail == "manifest" and "token" in manifest["statistics"]:
            raise StoreUnavailableError("the disk is full")
        super().write_manifest(manifest)
