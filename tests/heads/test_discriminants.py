"""Linear and quadratic discriminants, against scikit-learn and against loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.covariance import OAS
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from clipretrieval import ClipRetrievalWarning, InvalidInputError, RetrievalClassifier
from clipretrieval.heads.base import Queries, StoredSample
from clipretrieval.heads.covariance import oas_shrinkage, shrink_covariance, solver
from clipretrieval.heads.discriminant import Discriminant, LearnedDiscriminant, pooled_covariance
from clipretrieval.heads.quadratic import Quadratic
from clipretrieval.heads.statistics import ClassStatistics
from clipretrieval.types import no_neighbors


def clouds(n, classes, dim, seed=0, skewed=False):
    """Vectors around random points, with a covariance that is no multiple of the identity."""
    rng = np.random.default_rng(seed)
    weights = np.arange(1, classes + 1) if skewed else np.ones(classes)
    labels = np.sort(rng.choice(classes, n, p=weights / weights.sum())) if skewed else np.arange(n) % classes
    centers, mix = rng.standard_normal((classes, dim)), rng.standard_normal((dim, dim)) / math.sqrt(dim)
    rows = centers[labels] + rng.standard_normal((n, dim)) @ mix * 2
    return rows.astype(np.float32), labels


@pytest.mark.parametrize("shrinkage", [0.0, 0.01, 0.3, 1.0])
@pytest.mark.parametrize("skewed", [False, True])
def test_the_discriminant_is_that_of_scikit_learn(shrinkage, skewed):
    """10,500 predictions, and their probabilities to 1e-6: the same shrinkage, the same priors."""
    rows, labels = clouds(12_600, 7, 24, skewed=skewed)
    rows, learned = rows * 3 + 2, np.arange(12_600) % 6 == 0
    right = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage or None)
    right.fit(rows[learned].astype(np.float64), labels[learned])
    head, priors = Discriminant(shrinkage), "empirical" if skewed else "equal"
    found = RetrievalClassifier(store="memory", head=head, priors=priors).fit(rows[learned], labels[learned])
    asked, exact = rows[~learned], rows[~learned].astype(np.float64)
    np.testing.assert_allclose(found.predict_proba(asked), right.predict_proba(exact), rtol=0, atol=1e-6)
    same = found.predict(asked) == right.predict(exact)
    assert (len(same), same.sum() >= 10_490) == (10_500, True)


def test_the_discriminant_is_that_of_scikit_learn_on_digits():
    """Without a change of scikit-learn's, where there are constant dimensions too."""
    rows, labels = load_digits(return_X_y=True)
    right = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=None).fit(rows[::2], labels[::2])
    found = RetrievalClassifier(store="memory", head=Discriminant(0.0), priors="empirical")
    found.fit(rows[::2], labels[::2])
    np.testing.assert_allclose(
        found.predict_proba(rows[1::2]), right.predict_proba(rows[1::2].astype(np.float64)), atol=1e-6
    )


def test_the_shrinkage_is_that_of_scikit_learn():
    """OAS, where one mean was estimated."""
    rows = clouds(40, 1, 12)[0].astype(np.float64)
    right = OAS().fit(rows)
    covariance = np.cov(rows.T, bias=True)
    assert oas_shrinkage(covariance, 40) == pytest.approx(right.shrinkage_, rel=1e-12)
    np.testing.assert_allclose(
        shrink_covariance(covariance, right.shrinkage_), right.covariance_, rtol=1e-12, atol=1e-14
    )


def test_the_solver_finds_the_shortest_answer_of_a_singular_system():
    """Directions of which nothing is known, whose variance rounding makes of 0, are left out."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((30, 30)))[0]
    known = basis[:, :9] * rng.uniform(1, 9, 9)
    matrix = known @ known.T
    noise = rng.standard_normal((30, 30)) * 1e-14
    given = rng.standard_normal((30, 4))
    right = np.linalg.pinv(matrix, rcond=1e-10) @ given
    np.testing.assert_allclose(solver(matrix + noise + noise.T, 1e-11)(given), right, atol=1e-9)
    np.testing.assert_allclose(solver(np.eye(3) * 4)(np.ones(3)), 0.25)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_constant_dimensions_far_from_zero_are_left_out(offset):
    """Also without any shrinkage, where the difference of two large moments is all that is there."""
    rows, labels = clouds(300, 3, 6)
    right = RetrievalClassifier(store="memory", head=Discriminant(0.0)).fit(rows, labels)
    wide = np.concatenate([rows, np.full((300, 3), offset, np.float32)], axis=1)
    found = RetrievalClassifier(store="memory", head=Discriminant(0.0)).fit(wide, labels)
    np.testing.assert_allclose(found.predict_proba(wide), right.predict_proba(rows), atol=1e-5)


def statistics(rows, labels, **options):
    found = ClassStatistics(rows.shape[1], **options)
    found.add(rows, [int(label) for label in labels])
    return found


def learned(rows, labels, shrinkage, lift=None):
    found = statistics(rows, labels)
    covariance, _ = pooled_covariance(found)
    if lift is not None:  # the multiple of the identity is given
        covariance = covariance + np.eye(len(covariance)) * lift * shrinkage / (1 - shrinkage)
        covariance *= 1 - shrinkage
        shrinkage = 0.0
    classes = len(found.counts)
    return LearnedDiscriminant(found, covariance, shrinkage, np.full(classes, 1 / classes))


def centered(scores):
    """Log probabilities: what is added to a row does not matter."""
    return log_softmax(scores, axis=1)


@pytest.mark.parametrize("shrinkage", [0.01, 0.3])
def test_held_out_scores_are_those_of_fits_without_each_vector(shrinkage):
    """Exactly, where the multiple of the identity is the same; nearly, where it is learned anew."""
    rows, labels = clouds(60, 3, 5, skewed=True)
    whole = learned(rows, labels, shrinkage)
    sample = StoredSample(np.arange(60).astype(str).astype(object), rows, labels)
    found = centered(whole.held_out_scores(sample))
    lift = np.trace(pooled_covariance(statistics(rows, labels))[0]) / 5
    for row in range(60):
        others = np.arange(60) != row
        query = Queries(rows[row : row + 1], no_neighbors(1))
        exact = learned(rows[others], labels[others], shrinkage, lift * 60 / 59)
        np.testing.assert_allclose(found[row], centered(exact.log_scores(query))[0], atol=1e-9)
        # Learned anew, it changes by the vector's share of the trace, up to a tenth of 60 vectors' here.
        refit = softmax(learned(rows[others], labels[others], shrinkage).log_scores(query), axis=1)
        np.testing.assert_allclose(np.exp(found[row]), refit[0], rtol=0, atol=0.03)


def test_a_vector_that_is_alone_in_its_class_is_not_expected_there():
    """Without it, the class would be unknown."""
    rows, labels = clouds(40, 2, 4)
    labels[0] = 2
    sample = StoredSample(np.array(["a", "b"], dtype=object), rows[:2], labels[:2])
    scores = learned(rows, labels, 0.1).held_out_scores(sample)
    assert scores[0, 2] == -np.inf
    assert np.isfinite(scores[0, :2]).all()
    assert np.isfinite(scores[1]).all()


def test_validation_chooses_the_most_probable_shrinkage():
    """Of those that are compared, on the stored vectors; few vectors of many dimensions need more of it."""
    rows, labels = clouds(60, 3, 50)
    rows -= 0.8 * np.stack([rows[labels == label].mean(axis=0) for label in range(3)])[labels]  # closer
    few = RetrievalClassifier(store="memory", head=Discriminant("validated")).fit(rows, labels)
    many = RetrievalClassifier(store="memory", head=Discriminant("validated")).fit(*clouds(6000, 3, 8))
    assert few.head_.learned.shrinkage >= 0.1
    assert few.head_.learned.shrinkage > many.head_.learned.shrinkage


def quadratic_loop(rows, labels, queries, pooling, shrinkage):
    """Log densities, a class and a query at a time."""
    rows, queries = rows.astype(np.float64), queries.astype(np.float64)
    classes, dim = sorted(set(labels.tolist())), rows.shape[1]
    pooled = np.zeros((dim, dim))
    for label in classes:
        for row in rows[labels == label]:
            away = row - rows[labels == label].mean(axis=0)
            pooled += np.outer(away, away) / len(rows)
    pooled = (1 - shrinkage) * pooled + shrinkage * np.trace(pooled) / dim * np.eye(dim)
    found = np.zeros((len(queries), len(classes)))
    for column, label in enumerate(classes):
        own = rows[labels == label]
        mean = own.mean(axis=0)
        part = dim / (dim + len(own)) if pooling == "auto" else pooling
        covariance = (1 - part) * (own - mean).T @ (own - mean) / len(own) + part * pooled
        if len(own) == 1:
            covariance = pooled
        inverse, (_, determinant) = np.linalg.inv(covariance), np.linalg.slogdet(covariance)
        for row, query in enumerate(queries):
            found[row, column] = -0.5 * ((query - mean) @ inverse @ (query - mean) + determinant)
    return found


@pytest.mark.parametrize("pooling", ["auto", 0.0, 0.4, 1.0])
@pytest.mark.parametrize("shrinkage", [0.05, 0.5])
def test_the_quadratic_discriminant_is_that_of_a_loop(pooling, shrinkage):
    """Probabilities to 1e-9."""
    rows, labels = clouds(240, 4, 5, skewed=True)
    queries = clouds(50, 4, 5, seed=3)[0]
    found = RetrievalClassifier(store="memory", head=Quadratic(pooling, shrinkage)).fit(rows, labels)
    right = softmax(quadratic_loop(rows, labels, queries, pooling, shrinkage), axis=1)
    np.testing.assert_allclose(found.predict_proba(queries), right, atol=1e-9)


def test_a_class_with_one_image_has_the_pooled_covariance_and_is_warned_of():
    """Its own covariance would be nothing."""
    rows, labels = clouds(90, 3, 5)
    labels[0] = 3
    found = RetrievalClassifier(store="memory", head=Quadratic("auto", 0.1)).fit(rows, labels)
    with pytest.warns(ClipRetrievalWarning, match="1 of 4 classes have a single image, such as 3"):
        probabilities = found.predict_proba(rows)
    right = softmax(quadratic_loop(rows, labels, rows, "auto", 0.1), axis=1)
    np.testing.assert_allclose(probabilities, right, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Discriminant("ledoit"), "unknown shrinkage 'ledoit'"),
        (lambda: Discriminant(1.5), r"must lie in \[0, 1\]"),
        (lambda: Discriminant(-0.1), "shrinkage"),
        (lambda: Discriminant(math.nan), "shrinkage"),
        (lambda: Discriminant(None), "shrinkage"),
        (lambda: Quadratic("half"), "pooling must be 'auto'"),
        (lambda: Quadratic(2), r"pooling must lie in \[0, 1\]"),
        (lambda: Quadratic(shrinkage="validated"), "is for the linear discriminant"),
    ],
)
def test_arguments_that_cannot_be_are_refused(make, message):
    """When the head is made."""
    with pytest.raises(InvalidInputError, match=message):
        make()
