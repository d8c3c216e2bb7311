"""Sweeping over heads: rows are what `evaluate` gives, and the classifier's statistics stay its own."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from clipretrieval import InvalidInputError, RetrievalClassifier
from clipretrieval.heads import Discriminant, Fused, Moments, Ridge
from clipretrieval.stores import MemoryStore

RNG = np.random.default_rng(1)
LABELS = RNG.integers(0, 3, 150)
POINTS = (RNG.normal(size=(150, 5)) + LABELS[:, None] * [1, 0.5, 0, 0, 0]).astype(np.float32)
ASKED = RNG.integers(0, 3, 60)
QUERIES = (RNG.normal(size=(60, 5)) + ASKED[:, None] * [1, 0.5, 0, 0, 0]).astype(np.float32)
SMALL = Fused(k=7, ridge=Ridge(features=32))


def fitted(**params):
    return RetrievalClassifier(store="memory", **params).fit(POINTS, LABELS)


@pytest.mark.usefixtures("few_features")
def test_each_row_is_what_evaluate_gives():
    """Votes are combined with k and weights; other heads have one row, fused one for each k above 1."""
    heads = ["votes", "discriminant", "quadratic", Discriminant(0.5), SMALL, "fused"]
    result = fitted(k=3).sweep(
        QUERIES, ASKED, head=heads, k=[1, 5, 9], weights=["uniform", "softmax"], validation="all"
    )
    assert [(row["head"], row["k"], row["weights"]) for row in result.rows] == [
        *(("votes", k, weights) for k in (1, 5, 9) for weights in ("uniform", "softmax")),
        ("discriminant", None, None),
        ("quadratic", None, None),
        ("discriminant(shrinkage=0.5)", None, None),
        ("fused(k=7, ridge=ridge(features=32))", 7, None),
        ("fused", 5, None),
        ("fused", 9, None),
    ]
    assert result.params[6:] == [
        *({"head": head} for head in heads[1:5]),
        *({"head": "fused", "k": k} for k in (5, 9)),
    ]
    for row, params in zip(result.rows, result.params, strict=True):
        report = fitted().set_params(**params).evaluate(QUERIES, ASKED, mistakes=0)
        assert (row["accuracy"], row["n"]) == (report.accuracy, 60)
        assert report.setting["head"] == row["head"]


@pytest.mark.usefixtures("few_features")
def test_the_best_params_name_the_head_where_it_was_swept():
    """`set_params` takes them; without a head to try, they leave the classifier's own as it is."""
    classifier = fitted(head="discriminant")
    assert classifier.sweep(QUERIES, ASKED, validation="all").params == [{}]
    assert classifier.set_params(head="fused").sweep(QUERIES, ASKED, k=5, validation="all").params == [
        {"k": 5}
    ]
    found = classifier.sweep(QUERIES, ASKED, head="discriminant", validation="all")
    assert (found.best["head"], found.best_params) == ("discriminant", {"head": "discriminant"})
    assert classifier.set_params(**found.best_params).head == "discriminant"
    assert fitted().sweep(QUERIES, ASKED, head="fused", k=1, validation="all").params == [
        {"head": "fused", "k": 20}
    ]


def test_of_equal_rows_the_one_that_reads_the_fewest_neighbors_is_the_best():
    """A head that looks up nothing costs less than votes of the same accuracy."""
    classifier = RetrievalClassifier(store="memory").fit([[0.0], [0.1], [9.0], [9.1]], list("aabb"))
    found = classifier.sweep(
        [[0.2], [8.9]], ["a", "b"], head=["votes", "discriminant"], k=1, validation="all"
    )
    assert [row["accuracy"] for row in found.rows] == [1.0] * 4
    assert found.best["head"] == "discriminant"
    lines = found.table().splitlines()
    assert lines[0].split()[:4] == ["head", "k", "weights", "temperature"]
    assert lines[-1].split()[:5] == ["*", "discriminant", "-", "-", "-"]


def test_the_priors_are_the_classifiers_own():
    """With all of the probability on one class, that is what is answered."""
    classifier = fitted(priors=[0, 1, 0])
    row = classifier.sweep(QUERIES, ASKED, head="discriminant", validation="all").best
    assert row["accuracy"] == (ASKED == 1).mean()


class Counting(MemoryStore):
    """Counts what is read of it record by record."""

    def __init__(self):
        super().__init__()
        self.scans = 0

    def scan(self):
        self.scans += 1
        return super().scan()


def test_the_classifiers_own_statistics_are_followed_as_before():
    """What others need is gathered once for a sweep; the classifier's own are neither lost nor read again."""
    store = Counting()
    classifier = RetrievalClassifier(store=store, head="discriminant").fit(POINTS[:100], LABELS[:100])
    before = classifier.predict_proba(QUERIES)
    store.scans = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = classifier.sweep(
            QUERIES, ASKED, head=["discriminant", Discriminant(0.2), "quadratic"], validation="all"
        )
        # One listing of the classes, to see whether the second moments have room, and one reading.
        assert (len(result.rows), store.scans) == (3, 2)
        np.testing.assert_array_equal(classifier.predict_proba(QUERIES), before)
        classifier.partial_fit(POINTS[100:], LABELS[100:])
        assert classifier.class_statistics().counts.tolist() == np.bincount(LABELS).tolist()
    assert store.scans == 2
    again = RetrievalClassifier(store="memory", head="discriminant").fit(POINTS, LABELS)
    np.testing.assert_allclose(
        classifier.class_statistics().second_moment, again.class_statistics().second_moment, rtol=1e-9
    )
    np.testing.assert_allclose(classifier.predict_proba(QUERIES), again.predict_proba(QUERIES), rtol=1e-6)


def test_class_statistics_are_those_of_a_fresh_fit():
    """Of any head and moments, after additions, removals and corrections; a copy, which changes nothing."""
    for head in ("votes", "discriminant", "quadratic"):
        classifier = RetrievalClassifier(store="memory", head=head).fit(POINTS[:80], LABELS[:80])
        classifier.partial_fit(POINTS[80:], LABELS[80:])
        near = classifier.kneighbors(POINTS[:10], k=1).ids[:, 0].tolist()
        classifier.forget(near[:5])
        classifier.relabel(near[5:], [2] * 5)
        X, y = POINTS[5:], np.concatenate([[2] * 5, LABELS[10:]])
        fresh = RetrievalClassifier(store="memory").fit(X, y)
        for moments in (Moments(), Moments(per_class=True)):
            found, expected = classifier.class_statistics(moments), fresh.class_statistics(moments)
            assert (found.classes, found.counts.tolist()) == (expected.classes, np.bincount(y).tolist())
            np.testing.assert_allclose(found.sums, expected.sums, rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(found.second_moment, expected.second_moment, rtol=1e-9, atol=1e-9)
            found.add(X[:1], [0])
            assert classifier.class_statistics(moments).count == len(X)
    with pytest.raises(InvalidInputError, match=r"moments must be clipretrieval\.heads\.Moments"):
        classifier.class_statistics("all")


def test_heads_that_are_none_are_refused_before_anything_is_read():
    """The known heads are listed, and an empty list has nothing to try."""
    classifier = fitted()
    for wrong in ("nearest", ["votes", "nearest"], Discriminant):
        with pytest.raises(InvalidInputError, match="'votes', 'discriminant', 'quadratic', 'ridge', 'fused'"):
            classifier.sweep(QUERIES, ASKED, head=wrong)
    with pytest.raises(InvalidInputError, match="head holds nothing to try"):
        classifier.sweep(QUERIES, ASKED, head=[])


def test_stored_images_are_refused_whatever_the_head():
    """Heads that look up nothing would find them in their statistics; so one neighbor is looked up."""
    with pytest.raises(InvalidInputError, match="validation images are stored"):
        fitted().sweep(POINTS, LABELS, head="discriminant", validation="all")
    found = fitted().sweep(POINTS, LABELS, head="discriminant", validation="all", allow_known=True)
    assert found.best["n"] == 150
