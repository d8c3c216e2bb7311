"""The whitening: what it makes of classes, what it keeps, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import eigh

from clipretrieval import InvalidInputError, StoreCorruptedError
from clipretrieval.heads.fused import Fused
from clipretrieval.heads.whitening import Whitening, plan_transform
from clipretrieval.retrieval.transform import LinearTransform

CLASSES, DIM = 4, 12


@pytest.fixture(scope="module")
def labelled() -> tuple[np.ndarray, np.ndarray]:
    """Vectors of four classes, whose differences within are large where they do not tell them apart."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, 600)
    mixed = rng.normal(size=(DIM, DIM)) * np.linspace(0.1, 3, DIM)[:, None]
    return rng.normal(size=(CLASSES, DIM))[labels] + rng.normal(size=(600, DIM)) @ mixed + 5, labels


def within(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the covariance within classes, class after class."""
    scatter = np.zeros((vectors.shape[1],) * 2)
    for each in range(CLASSES):
        part = vectors[labels == each]
        scatter += (part - part.mean(0)).T @ (part - part.mean(0))
    return scatter / len(vectors)


def test_classes_become_spheres(labelled: tuple[np.ndarray, np.ndarray]) -> None:
    """Without shrinkage, the covariance within classes is the identity before vectors are scaled."""
    vectors, labels = labelled
    learned = Whitening(shrinkage=0.0).learn([(vectors[:250], labels[:250]), (vectors[250:], labels[250:])])
    mapped, norms = learned.apply(vectors)
    np.testing.assert_allclose(np.linalg.norm(mapped, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(learned.coordinates(mapped, norms).mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(within(learned.coordinates(mapped, norms), labels), np.eye(DIM), atol=1e-4)


@pytest.mark.parametrize("shrinkage", ["oas", 0.1, 1.0])
def test_distances_are_those_of_the_shrunk_covariance(
    labelled: tuple[np.ndarray, np.ndarray], shrinkage: str | float
) -> None:
    """They are Mahalanobis distances, under the covariance that scikit-learn's formulas give."""
    from sklearn.covariance import oas, shrunk_covariance

    vectors, labels = labelled
    covariance = within(vectors, labels)
    if shrinkage == "oas":
        # As scikit-learn's, but of the degrees of freedom that are left when the means are taken off.
        square, mean = (covariance**2).mean(), np.trace(covariance) / DIM
        amount = (square + mean**2) / ((len(vectors) - CLASSES + 1) * (square - mean**2 / DIM))
        centred = np.vstack([vectors[labels == each] - vectors[labels == each].mean(0) for each in range(4)])
        assert amount == pytest.approx(oas(centred, assume_centered=True)[1], rel=0.02)
    else:
        amount = shrinkage
    expected = shrunk_covariance(covariance, amount)
    matrix = Whitening(shrinkage=shrinkage).learn([(vectors, labels)]).matrix
    np.testing.assert_allclose(matrix @ matrix.T, np.linalg.inv(expected), rtol=1e-8)


def test_the_leading_dimensions_are_the_discriminants(labelled: tuple[np.ndarray, np.ndarray]) -> None:
    """The first three span what generalised eigenvectors do; more of them follow, and all are the whole."""
    vectors, labels = labelled
    total, inner = np.cov(vectors.T, bias=True), within(vectors, labels)
    fisher = eigh(total - inner, inner)[1][:, ::-1][:, : CLASSES - 1]
    cut = Whitening(CLASSES - 1, shrinkage=0.0).learn([(vectors, labels)])
    assert (cut.dim, cut.kept_dim, cut.is_cut) == (DIM, 3, True)
    spanned = fisher @ np.linalg.lstsq(fisher, cut.matrix, rcond=None)[0]
    np.testing.assert_allclose(spanned, cut.matrix, atol=1e-6)
    wider = Whitening(7, shrinkage=0.0).learn([(vectors, labels)])
    np.testing.assert_allclose(np.abs(wider.matrix[:, :3]), np.abs(cut.matrix), atol=1e-6)
    np.testing.assert_allclose(wider.matrix.T @ inner @ wider.matrix, np.eye(7), atol=1e-6)
    whole = Whitening(DIM, shrinkage=0.0).learn([(vectors, labels)])
    assert not whole.is_cut


def test_what_is_left_goes_by_its_variance() -> None:
    """Behind the discriminant, dimensions follow that have kept the most of their variance when shrunk."""
    rng = np.random.default_rng(1)
    labels = np.arange(400) % 2
    vectors = rng.normal(size=(400, 3)) * [1.0, 5.0, 0.01]
    vectors[:, 0] += 6 * labels
    matrix = Whitening(2, shrinkage=0.1).learn([(vectors, labels)]).matrix
    # The second one is the wide dimension, not the narrow one, which shrinkage has made small.
    assert np.abs(matrix[1, 1]) * 5 > 0.9
    assert np.abs(matrix[2, 1]) * 0.01 < 0.1


@pytest.mark.parametrize("count", [1, 3])
def test_degenerate_contents_have_a_map(count: int) -> None:
    """One vector, equal ones, a constant dimension, fewer vectors than dimensions: the map is finite."""
    same = np.full((count, 5), 0.1)
    for vectors, labels in (
        (same, ["a"] * count),
        (same, list("abc")[:count]),
        (np.eye(5)[:count], list("abc")[:count]),
        (np.hstack([np.random.default_rng(0).normal(size=(count, 4)), same[:, :1]]), ["a"] * count),
        (np.zeros((count, 5)), ["a"] * count),
    ):
        learned = Whitening().learn([(vectors, labels)])
        mapped, _ = learned.apply(vectors)
        assert np.isfinite(learned.matrix).all()
        np.testing.assert_allclose(np.linalg.norm(mapped, axis=1), 1, rtol=1e-6)


def test_a_vector_at_the_mean_gets_the_first_axis() -> None:
    """It has no direction; it is mapped as others are, with the length 0, and recovered."""
    learned = LinearTransform(np.array([1.0, 2.0]), np.array([[0.0, 2.0], [1.0, 0.0]]))
    mapped, norms = learned.apply(np.array([[1, 2], [1, 3], [4, 2]], dtype=np.float32))
    assert mapped.tolist() == [[1, 0], [1, 0], [0, 1]]
    assert norms.tolist() == [0, 1, 6]
    assert learned.recover(mapped, norms).tolist() == [[1, 2], [1, 3], [4, 2]]


def test_a_map_is_kept_as_bytes(labelled: tuple[np.ndarray, np.ndarray]) -> None:
    """Equal maps have equal bytes; anything else, or another map, is refused."""
    vectors, labels = labelled
    learned = Whitening(5).learn([(vectors, labels)])
    read = LinearTransform.from_bytes(learned.to_bytes(), learned.digest)
    assert read.to_bytes() == learned.to_bytes()
    assert read.digest == learned.digest != Whitening(6).learn([(vectors, labels)]).digest
    for content, digest in (
        (b"", learned.digest),
        (learned.to_bytes()[:-40], learned.digest),
        (learned.to_bytes(), "0" * 64),
    ):
        with pytest.raises(StoreCorruptedError, match="transform that the store keeps is damaged"):
            LinearTransform.from_bytes(content, digest)


def test_a_map_of_coordinates_is_one_map(labelled: tuple[np.ndarray, np.ndarray]) -> None:
    """A map of what another one has kept is that other one's directions, mapped on."""
    vectors, labels = labelled
    first = Whitening(5).learn([(vectors, labels)])
    second = Whitening(shrinkage=0.5).learn([(first.coordinates(*first.apply(vectors)), labels)])
    both, _ = first.then(second).apply(vectors)
    expected, _ = second.apply(first.coordinates(*first.apply(vectors)))
    np.testing.assert_allclose(both, expected, atol=1e-5)


@pytest.mark.parametrize("wrong", [{"dim": 0}, {"dim": 1.5}, {"shrinkage": "validated"}, {"shrinkage": 2}])
def test_what_cannot_be_is_refused(wrong: dict) -> None:
    """At once, and not when something is fitted."""
    with pytest.raises(InvalidInputError, match=next(iter(wrong))):
        Whitening(**wrong)


def test_more_dimensions_than_there_are_and_nothing_to_learn_from() -> None:
    """The message says how many there are."""
    with pytest.raises(InvalidInputError, match="keeps more dimensions than the 2"):
        Whitening(3).learn([(np.eye(2), ["a", "b"])])
    with pytest.raises(InvalidInputError, match="no vectors"):
        Whitening().learn([])


def test_what_arguments_stand_for() -> None:
    """A name, an object, what the head wants, or nothing; all else is refused."""
    assert plan_transform("whiten", None).rule == Whitening()
    assert plan_transform(Whitening(3), None).rule == Whitening(3)
    assert (plan_transform("auto", None).rule, plan_transform("auto", Fused()).rule) == (None, Whitening())
    assert plan_transform(None, Fused()).rule is None
    assert Whitening.from_settings(Whitening(3, 0.5).settings) == Whitening(3, 0.5)
    with pytest.raises(InvalidInputError, match="unknown transform 'white'"):
        plan_transform("white", None)
    with pytest.raises(StoreCorruptedError, match="does not know"):
        Whitening.from_settings({"name": "other", "dim": None})
    with pytest.raises(StoreCorruptedError, match="cannot be"):
        Whitening.from_settings({"name": "whiten", "dim": None, "shrinkage": 7})
