"""Votes, against straightforward loops."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.neighbors import KNeighborsClassifier

from clipretrieval import InvalidInputError, Metric, RetrievalClassifier
from clipretrieval.heads.confidence import share_and_margin
from clipretrieval.heads.votes import Candidates
from clipretrieval.heads.weighting import class_scores, vote_weights, weighting_name
from clipretrieval.stores import MemoryStore

CLASSES = 4


@st.composite
def neighbourhoods(draw):
    """Codes and ascending distances of shape (n, k), some rows padded at the end, with many ties."""
    n, k = draw(st.integers(1, 6)), draw(st.integers(1, 7))
    codes = draw(hnp.arrays(np.int64, (n, k), elements=st.integers(0, CLASSES - 1)))
    distances = draw(hnp.arrays(np.float32, (n, k), elements=st.sampled_from([0, 0.25, 0.5, 1, 1.5, 2])))
    distances = np.sort(distances, axis=1)
    for row in range(n):
        distances[row, draw(st.integers(1, k)) :] = np.inf
    return codes, distances


def loop(codes, distances, weigh):
    """Vote one neighbour at a time."""
    answers, scores = [], np.zeros((len(codes), CLASSES))
    for row, (labels, reaches) in enumerate(zip(codes, distances, strict=True)):
        used = [(float(d), int(c)) for d, c in zip(reaches, labels, strict=True) if d != math.inf]
        for (_, code), weight in zip(used, weigh([d for d, _ in used]), strict=True):
            scores[row, code] += weight
        best = max(scores[row])
        tied = [c for c in range(CLASSES) if math.isclose(scores[row, c], best, rel_tol=1e-12)]
        answers.append(min(tied, key=lambda c: (min([d for d, o in used if o == c], default=math.inf), c)))
    return answers, scores


def vote(codes, distances, **options):
    weights = vote_weights(distances, **options)
    votes = Candidates.of(codes, distances, CLASSES).votes(weights, distances)
    return votes.answers.tolist(), class_scores(codes, weights, CLASSES)


def inverse(distances):
    if 0 in distances:
        return [float(d == 0) for d in distances]
    return [1 / d for d in distances]


@given(neighbourhoods())
def test_uniform_votes_equal_a_loop(case):
    """Every neighbour counts one; ties go to the class with the nearest member, then to the first."""
    answers, scores = vote(*case, weighting="uniform")
    expected, sums = loop(*case, lambda distances: [1.0] * len(distances))
    assert answers == expected
    np.testing.assert_array_equal(scores, sums)


@given(neighbourhoods())
def test_distance_votes_equal_a_loop(case):
    """Neighbours count by the inverse of their distance, and only the exact ones where there are any."""
    answers, scores = vote(*case, weighting="distance")
    expected, sums = loop(*case, inverse)
    assert answers == expected
    np.testing.assert_allclose(scores, sums)


@pytest.mark.parametrize(
    ("metric", "similarity"),
    [("l2", lambda d: 1 - d / 2), ("cosine", lambda d: 1 - d), ("ip", lambda d: -d)],
)
@given(case=neighbourhoods(), temperature=st.sampled_from([0.03, 0.07, 1.0]))
def test_softmax_shares_equal_a_loop(metric, similarity, case, temperature):
    """Shares of the vote are exp(similarity / T) over their sum."""
    answers, scores = vote(*case, weighting="softmax", metric=Metric(metric), temperature=temperature)
    expected, sums = loop(*case, lambda ds: [math.exp(similarity(d) / temperature) for d in ds])
    shares, expected_shares = (table / table.sum(axis=1, keepdims=True) for table in (scores, sums))
    np.testing.assert_allclose(shares, expected_shares, rtol=1e-9, atol=1e-12)
    assert [shares[row, a] for row, a in enumerate(answers)] == pytest.approx(
        [expected_shares[row, e] for row, e in enumerate(expected)]
    )


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_softmax_is_the_evaluation_of_dino(metric, temperature):
    """On vectors of length one, every metric's shares are those of DINO's recipe, written out with torch."""
    rng = np.random.default_rng(0)
    train, test = (unit(rng.normal(size=(n, 6))).astype(np.float32) for n in (60, 25))
    labels = rng.integers(0, CLASSES, 60)
    similarity, indices = (torch.tensor(test) @ torch.tensor(train).T).topk(9)
    one_hot = torch.nn.functional.one_hot(torch.tensor(labels)[indices], CLASSES).double()
    votes = (one_hot * similarity.double().div(temperature).exp()[..., None]).sum(1)
    settings = {"k": 9, "weights": "softmax", "temperature": temperature, "metric": metric}
    classifier = RetrievalClassifier(store="memory", **settings).fit(train, labels)
    shares = classifier.predict_proba(test)
    np.testing.assert_allclose(shares, votes / votes.sum(1, keepdim=True), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(classifier.predict(test), votes.argmax(1))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("uniform", "uniform"),
        ("distance", lambda d: d**-2.0),  # ours is the squared distance
        (lambda d: np.exp(-np.sqrt(d)), lambda d: np.exp(-d)),
    ],
)
def test_shares_equal_scikit_learns(ours, theirs):
    """Uniform, inverse and callable weights share out the votes as KNeighborsClassifier does."""
    rng = np.random.default_rng(1)
    train, test = rng.normal(size=(80, 5)).astype(np.float32), rng.normal(size=(30, 5)).astype(np.float32)
    labels = rng.integers(0, CLASSES, 80)
    classifier = RetrievalClassifier(store="memory", k=7, weights=ours).fit(train, labels)
    peer = KNeighborsClassifier(7, weights=theirs, algorithm="brute").fit(train.astype(np.float64), labels)
    np.testing.assert_allclose(
        classifier.predict_proba(test), peer.predict_proba(test.astype(np.float64)), rtol=1e-4, atol=1e-7
    )


@pytest.mark.parametrize("weighting", ["uniform", "distance", "softmax"])
@given(case=neighbourhoods())
def test_weights_of_fewer_neighbours_are_the_first_columns(weighting, case):
    """A named weighting never looks beyond the neighbour and the nearest one."""
    _, distances = case
    whole = vote_weights(distances, weighting)
    for k in range(1, distances.shape[1] + 1):
        np.testing.assert_array_equal(vote_weights(distances[:, :k], weighting), whole[:, :k])


@given(neighbourhoods())
def test_callable_votes_equal_a_loop(case):
    """A callable's weights are added up like any others."""
    answers, scores = vote(*case, weighting=lambda d: 1 / (1 + np.where(np.isfinite(d), d, 0)))
    expected, sums = loop(*case, lambda distances: [1 / (1 + d) for d in distances])
    assert answers == expected
    np.testing.assert_allclose(scores, sums)


def test_softmax_of_far_neighbours_does_not_vanish():
    """Distances whose exponentials underflow still share out one whole vote."""
    weights = vote_weights(np.array([[5000.0, 5000.1, np.inf]], np.float32), "softmax", temperature=0.01)
    assert weights[0, 0] == 1
    assert weights[0, 2] == 0


def test_tie_goes_to_the_nearest_then_to_the_first_class():
    """Two classes with two votes each: the nearer wins; equally near, the first in order."""
    codes = np.array([[2, 1, 1, 2], [2, 1, 1, 2]])
    distances = np.array([[0.1, 0.2, 0.3, 0.4], [0.1, 0.1, 0.3, 0.4]], np.float32)
    assert vote(codes, distances, weighting="uniform")[0] == [2, 1]


def test_callable_weights_are_used_and_padding_stays_out():
    """A callable's weights count as they are; what it says of padding is ignored."""
    codes = np.array([[0, 1, 2]])
    distances = np.array([[1.0, 2.0, np.inf]], np.float32)
    answers, scores = vote(codes, distances, weighting=lambda d: np.arange(3.0)[None] + 1)
    assert answers == [1]
    np.testing.assert_array_equal(scores, [[1, 2, 0, 0]])


def test_a_callable_cannot_change_the_distances():
    """It is given a copy."""
    distances = np.array([[1.0, 2.0]], np.float32)
    vote_weights(distances, lambda d: np.exp(-np.multiply(d, 3, out=d)))
    np.testing.assert_array_equal(distances, [[1, 2]])


def test_names_of_weightings():
    """A callable goes by its own name, where it has one."""
    assert [weighting_name(w) for w in ("softmax", inverse, partial(inverse))] == [
        "softmax",
        "inverse",
        "callable",
    ]


@pytest.mark.parametrize(
    ("weighting", "message"),
    [
        (lambda d: np.ones(3), "shape"),
        (lambda d: np.ones((*d.shape, 1)), "shape"),
        (lambda d: None, "NoneType"),
        (lambda d: [["near", "far", "far"]] * 2, "list"),
        (lambda d: [[1], [1, 2]], "list"),
        (lambda d: d * 1j, "real numbers"),
        (lambda d: np.full(d.shape, np.nan), "NaN"),
        (lambda d: np.full(d.shape, np.inf), "infinite"),
        (lambda d: np.full(d.shape, 1e308), "sum is infinite"),
        (lambda d: -np.ones(d.shape), "negative"),
        (lambda d: np.zeros(d.shape), "zeros"),
        ("loud", "uniform"),
    ],
)
def test_wrong_weights_are_refused(weighting, message):
    """A callable that returns nonsense, or an unknown name, is an error that says what is wanted."""
    with pytest.raises(InvalidInputError, match=message):
        vote_weights(np.ones((2, 3), np.float32), weighting)


def test_inverse_distance_does_not_suit_inner_products():
    """Inner products have no zero point to take an inverse from."""
    with pytest.raises(InvalidInputError, match="softmax"):
        vote_weights(np.ones((1, 1), np.float32), "distance", metric=Metric.IP)


@given(
    case=neighbourhoods(),
    weighting=st.sampled_from(
        ["uniform", "distance", "softmax", lambda d: np.where(d < 1, 0.0, np.minimum(d, 1.7))]
    ),
    spread=st.sampled_from([1, 7, 10**9]),
    narrower=st.integers(1, 7),
)
def test_votes_of_the_neighbours_classes_equal_those_of_all(case, weighting, spread, narrower):
    """Answers, scores, shares and margins are those of a column for each class, for fewer neighbours too."""
    codes, distances = case
    candidates = Candidates.of(codes * spread, distances, CLASSES * spread)
    first = slice(min(narrower, codes.shape[1]))
    codes, distances = codes[:, first], distances[:, first]
    try:
        weights = vote_weights(distances, weighting)
    except InvalidInputError:  # only zeros for a row
        return
    votes = candidates.votes(weights, distances)
    scores = class_scores(codes, weights, CLASSES)
    given = iter(weights)
    answers = np.array(loop(codes, distances, lambda near: next(given)[: len(near)])[0])
    assert votes.answers.tolist() == (answers * spread).tolist()
    table = np.zeros_like(scores)
    table[candidates.rows, candidates.codes // spread] = votes.scores
    np.testing.assert_array_equal(table, scores)
    for ours, theirs in zip(votes.share_and_margin, share_and_margin(scores, answers), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-14, atol=1e-15)
    table[candidates.rows, candidates.codes // spread] = votes.shares
    np.testing.assert_allclose(table, scores / scores.sum(axis=1, keepdims=True), rtol=1e-14)


class Growing(MemoryStore):
    """A store that answers with classes which its manifest does not list yet, as another process may add."""

    def search(self, vectors, k):
        near = super().search(vectors, k)
        renamed = np.where(near.labels == "b", "new" if len(vectors) == 1 else "ahead", near.labels)
        return replace(near, labels=renamed.astype(object))


def test_a_class_that_turns_up_has_its_column():
    """Labels, shares and `classes_` have classes that are met while a question is answered."""
    classifier = RetrievalClassifier(store=Growing(), k=2, weights="distance").fit(
        [[0.0], [1.0], [2.0]], ["a", "b", "c"]
    )
    rows = np.array([[0.1]] * 4096 + [[1.2]])
    shares = classifier.predict_proba(rows)
    assert classifier.classes_.tolist() == ["a", "ahead", "b", "c", "new"]
    weights = np.float32(rows[[0, -1]] - [[0.0, 1.0], [1.0, 2.0]]).astype(np.float64) ** -2
    expected = weights / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(shares[0], [expected[0, 0], expected[0, 1], 0, 0, 0], rtol=1e-5)
    np.testing.assert_allclose(shares[-1], [0, 0, 0, expected[1, 1], expected[1, 0]], rtol=1e-5)
    later = RetrievalClassifier.from_store(classifier.store_, k=1)
    answers = later.predict(rows + 1)
    assert (answers[0], answers[-1], answers.dtype) == ("ahead", "c", np.dtype("<U5"))
    assert later.predict([[1.2]]).tolist() == ["new"]
    assert later.classes_.tolist() == ["a", "ahead", "b", "c", "new"]
