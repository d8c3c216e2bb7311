"""Ridge regression, soft votes and the product of experts, against plain formulas and real refits."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from clipretrieval import ClipRetrievalWarning, InvalidInputError, RetrievalClassifier
from clipretrieval.heads.base import Queries, StoredSample
from clipretrieval.heads.covariance import solver
from clipretrieval.heads.features import RandomFeatures
from clipretrieval.heads.fused import LEAST_WEIGHT, Fused, learn_weights, log_probabilities, maximise
from clipretrieval.heads.ridge import LearnedRidge, Ridge
from clipretrieval.heads.soft_votes import SoftVotes
from clipretrieval.heads.statistics import ClassStatistics
from clipretrieval.heads.vote_shares import FLOOR
from clipretrieval.types import Neighbors, no_neighbors


def clouds(n=90, classes=3, dim=6, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centers = np.random.default_rng(99).standard_normal((classes, dim))
    return (centers[labels] + rng.standard_normal((n, dim))).astype(np.float32), labels


def sample_of(rows, labels):
    return StoredSample(np.arange(len(rows)).astype(str).astype(object), rows, labels)


def test_random_features_are_the_same_whatever_they_are_mapped_with():
    """To the last digits: what was added to statistics has to be taken out again."""
    rows, _ = clouds()
    features = RandomFeatures(20, seed=3)
    whole = features(rows)
    assert whole.shape == (90, 20)
    assert (whole >= 0).all()
    assert (whole > 0).any()
    alone = np.concatenate([features(rows[row : row + 1]) for row in range(90)])
    np.testing.assert_allclose(alone, whole, rtol=1e-14, atol=1e-14)
    np.testing.assert_array_equal(RandomFeatures(20, seed=3)(rows), whole)
    assert not np.array_equal(RandomFeatures(20, seed=4)(rows), whole)
    # They have about the length of the vectors: half of the projections are positive.
    lengths = np.linalg.norm(RandomFeatures(5000)(rows), axis=1) / np.linalg.norm(rows, axis=1)
    assert np.abs(lengths - 1).max() < 0.1


@pytest.mark.parametrize("priors", ["equal", "empirical", [0.2, 0.5, 0.3]])
def test_ridge_is_plain_ridge_regression(priors):
    """On the classes' indicators, of which each counts by its prior."""
    rows, labels = clouds(80)
    labels[:20] = 0
    found = RetrievalClassifier(store="memory", head=Ridge(30, penalty=0.02, seed=2), priors=priors)
    found.fit(rows, labels)
    queries = clouds(seed=5)[0]
    features = RandomFeatures(30, seed=2)
    mapped = features(rows)
    second = mapped.T @ mapped / 80
    lifted = second + 0.02 * np.trace(second) / 30 * np.eye(30)
    counts = np.bincount(labels)
    given = {"equal": np.full(3, 1 / 3), "empirical": counts / 80}.get(str(priors), priors)
    targets = np.eye(3)[labels] * (np.asarray(given) / counts)
    right = features(queries) @ np.linalg.inv(lifted) @ mapped.T @ targets
    learned = found.head_.learned
    scores = learned.log_scores(Queries(queries, no_neighbors(90)))
    np.testing.assert_allclose(scores / learned.sharpness, right, atol=1e-9)
    assert found.predict(queries).tolist() == right.argmax(axis=1).tolist()


def test_ridge_chooses_among_penalties_by_vectors_left_out():
    """The chosen one and its sharpness are more probable than any other on what is left out."""
    rows, labels = clouds(200, dim=4)
    classifier = RetrievalClassifier(store="memory", head=Ridge(40)).fit(rows, labels)
    chosen, sample = classifier.head_.learned, sample_of(rows, labels)

    def loss(learned):
        scores = log_softmax(learned.held_out_scores(sample), axis=1)
        return -scores[np.arange(200), labels].mean()

    best = loss(chosen)
    for penalty in (0.00001, 0.0001, 0.001, 0.01, 0.1):
        other = RetrievalClassifier(store="memory", head=Ridge(40, penalty)).fit(rows, labels).head_.learned
        assert loss(other) >= best - 1e-9
    for factor in (0.8, 0.99, 1.01, 1.25):
        chosen.sharpness *= factor
        assert loss(chosen) >= best - 1e-12
        chosen.sharpness /= factor


def test_ridge_left_out_scores_are_those_of_real_fits():
    """Exactly, where the penalty stays what it is; it is relative to the moment, which changes by a 60th."""
    rows, labels = clouds(60)
    features, priors = RandomFeatures(20), np.full(3, 1 / 3)

    def fit(chosen, penalty):
        statistics = ClassStatistics(20)
        statistics.add(features(rows[chosen]), labels[chosen].tolist())
        second = statistics.second_moment / statistics.count + penalty * np.eye(20)
        return LearnedRidge(features, statistics, solver(second), priors)

    found = fit(np.arange(60), 0.05).held_out_scores(sample_of(rows, labels))
    for row in range(60):
        others = np.flatnonzero(np.arange(60) != row)
        query = Queries(rows[row : row + 1], no_neighbors(1))
        exact = fit(others, 0.05 * 60 / 59).log_scores(query)
        np.testing.assert_allclose(found[row], exact[0], atol=1e-9)
        nearly = fit(others, 0.05).log_scores(query)
        np.testing.assert_allclose(
            found[row], nearly[0], rtol=0, atol=0.1
        )  # of scores that are multiplied by 10


def test_a_class_of_no_probability_is_never_the_answer():
    """Whatever the head."""
    rows, labels = clouds()
    for head in ("discriminant", Ridge(30), Fused(3, ridge=Ridge(30))):
        found = RetrievalClassifier(store="memory", head=head, priors=[0, 1, 1], transform=None).fit(
            rows, labels
        )
        assert set(found.predict(rows)) <= {1, 2}
        assert not found.predict_proba(rows)[:, 0].any()


def neighbors(distances, labels):
    distances = np.array(distances, dtype=np.float32)
    return Neighbors(np.full(distances.shape, "x", dtype=object), distances, np.array(labels))


def test_soft_votes_by_hand():
    """exp(−(d − d₁) / T), divided by their sum, and a floor that is shared by all classes."""
    votes = SoftVotes(3, {1: 0, 2: 1, 5: 2}, 2.0, neighbors([[0.0]], [[1]]))
    near = neighbors(
        [[1.0, 3.0, 5.0], [0.0, 0.0, np.inf], [7.0, np.inf, np.inf]], [[2, 1, 2], [1, 5, -1], [9, -1, -1]]
    )
    shares = np.exp(votes.log_scores(Queries(np.zeros((3, 1), np.float32), near)))
    weights = np.array([1, np.exp(-1), np.exp(-2)])
    first = (1 - FLOOR) * np.array([weights[1], weights[0] + weights[2], 0]) / weights.sum() + FLOOR / 3
    np.testing.assert_allclose(shares[0], first, rtol=1e-9)
    np.testing.assert_allclose(shares[1], (1 - FLOOR) * np.array([0.5, 0, 0.5]) + FLOOR / 3, rtol=1e-9)
    np.testing.assert_allclose(shares[2], FLOOR / 3)  # of a class that is not known: no vote


def test_soft_votes_choose_a_temperature_on_vectors_left_out():
    """No other of those that are compared is more probable; each vector's own vote does not count."""
    rows, labels = clouds(120)
    fused = Fused(10, ridge=Ridge(30))
    classifier = RetrievalClassifier(store="memory", head=fused, transform=None).fit(rows, labels)
    votes = classifier.head_.learned.parts["votes"]
    distances = ((rows[:, None] - rows[None]).astype(np.float64) ** 2).sum(axis=2)
    np.fill_diagonal(distances, np.inf)
    nearest = np.sort(distances, axis=1)[:, :10]
    by_id = {name: row for row, name in enumerate(classifier.kneighbors(rows, 1).ids[:, 0].tolist())}
    order = [by_id[name] for name in sorted(by_id)]
    np.testing.assert_allclose(votes.held.distances, nearest[order], rtol=1e-4)
    with pytest.raises(ValueError, match="not the vectors that were held out"):
        votes.held_out_scores(sample_of(rows[:5], labels[:5]))


def test_weights_are_the_optimum_of_a_convex_problem():
    """From the optimum, no step is better; what is halfway between two points is not worse than both."""
    rng = np.random.default_rng(0)
    n, codes = 200, rng.integers(0, 4, 200)
    right = np.log(softmax(2.0 * np.eye(4)[codes] + rng.standard_normal((n, 4)), axis=1))
    vague = np.log(softmax(1.0 * np.eye(4)[codes] + rng.standard_normal((n, 4)), axis=1))
    noise = np.log(softmax(rng.standard_normal((n, 4)), axis=1))
    stacked, shares = np.stack([right, vague, noise]), np.full(n, 1 / n)

    def loss(weights):
        logs = log_softmax(np.tensordot(weights, stacked, 1), axis=1)
        return -shares @ logs[np.arange(n), codes] + ((weights - 1 / 3) ** 2).sum() / (2 * n)

    found = maximise(stacked, codes, shares)
    assert (found >= LEAST_WEIGHT).all()
    assert found[0] > found[1] > found[2]
    for _ in range(200):
        one, other = rng.uniform(LEAST_WEIGHT, 3, (2, 3))
        assert loss(found) <= loss(one) + 1e-12
        assert loss((one + other) / 2) <= (loss(one) + loss(other)) / 2 + 1e-12
    for step in np.vstack([np.eye(3), -np.eye(3)]) * 1e-3:
        assert loss(found) <= loss(np.maximum(found + step, LEAST_WEIGHT)) + 1e-12


class Fixed:
    """An expert that always says the same."""

    def __init__(self, scores):
        self.scores = scores

    def held_out_scores(self, sample):
        return self.scores


def test_equal_parts_have_equal_weights_and_bad_ones_the_least():
    """Also where no part tells anything, and where there are hardly any vectors to learn from."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 3, 60)
    good = np.log(softmax(3 * np.eye(3)[codes] + rng.standard_normal((60, 3)), axis=1))
    sample, priors = sample_of(np.zeros((60, 2), np.float32), codes), np.full(3, 1 / 3)
    twice = learn_weights({"a": Fixed(good), "b": Fixed(good)}, sample, priors)
    assert twice["a"] == pytest.approx(twice["b"], rel=1e-6)
    wrong = learn_weights({"a": Fixed(good), "b": Fixed(np.roll(good, 1, axis=1))}, sample, priors)
    assert wrong["b"] == LEAST_WEIGHT
    bad = np.roll(good, 1, axis=1)
    assert set(learn_weights({"a": Fixed(bad), "b": Fixed(bad)}, sample, priors).values()) == {LEAST_WEIGHT}
    few = sample_of(np.zeros((9, 2), np.float32), codes[:9])
    assert learn_weights({"a": Fixed(good[:9]), "b": Fixed(good[:9])}, few, priors) == {"a": 0.5, "b": 0.5}
    none = learn_weights(
        {"a": Fixed(good), "b": Fixed(good)}, sample_of(np.zeros((60, 2)), codes * 0), np.eye(3)[1]
    )
    assert none == {"a": 0.5, "b": 0.5}


def test_log_probabilities_forbid_no_class():
    """A part that is sure cannot overrule all others."""
    found = np.exp(log_probabilities(np.array([[0.0, -np.inf], [1000.0, 0.0], [5.0, 5.0]])))
    np.testing.assert_allclose(found, [[0.9995, 0.0005], [0.9995, 0.0005], [0.5, 0.5]], rtol=1e-9)


def test_equal_contents_have_equal_weights_whatever_came_before():
    """In another order, and after others have come and gone."""
    rows, labels = clouds(150)
    more, _ = clouds(30, seed=8)
    head = Fused(5, ridge=Ridge(40))
    first = RetrievalClassifier(store="memory", head=head, transform=None).fit(rows, labels)
    order = np.random.default_rng(1).permutation(150)
    second = RetrievalClassifier(store="memory", head=head, transform=None).fit(
        rows[order[:40]], labels[order[:40]]
    )
    second.partial_fit(more, [7] * 30).predict(rows)
    second.partial_fit(rows[order[40:]], labels[order[40:]]).forget(label=7)
    weights = first.head_.learned.weights
    assert second.head_.learned.weights == pytest.approx(weights, rel=1e-6)
    assert set(weights) == {"votes", "discriminant", "ridge"}
    np.testing.assert_allclose(first.predict_proba(more), second.predict_proba(more), atol=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ridge(0), "features must be a whole number"),
        (lambda: Ridge(True), "features"),
        (lambda: Ridge(penalty=0), "penalty"),
        (lambda: Ridge(penalty=-1), "penalty"),
        (lambda: Ridge(seed=-1), "seed"),
        (lambda: Fused(0), "k must be"),
        (lambda: Fused(1.5), "k must be"),
    ],
)
def test_arguments_that_cannot_be_are_refused(make, message):
    """When the head is made."""
    with pytest.raises(InvalidInputError, match=message):
        make()


@pytest.mark.parametrize("k", [1, 5])
def test_fewer_vectors_than_neighbors_are_all_asked_without_a_warning(k):
    """The head's own number of neighbors is nobody's wish; more than there are of one's own is told of."""
    rows = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    made = RetrievalClassifier(store="memory", head="fused", k=k).fit(rows, [0, 1, 2] * 3)
    assert made.predict_proba(rows).shape == (9, 3)
    assert len(made.explain(rows[:1])[0].neighbors) >= k
    made.set_params(k=10)
    with pytest.warns(ClipRetrievalWarning, match="k=10 is more than the 9 vectors"):
        made.predict(rows)
