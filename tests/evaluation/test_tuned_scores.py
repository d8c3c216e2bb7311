"""What was tuned on is not measured on by accident, and the classifier serves scikit-learn's own tools."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import log_loss

from clipretrieval import InvalidInputError, RetrievalClassifier


@pytest.fixture(scope="module")
def points() -> tuple[np.ndarray, np.ndarray]:
    """Two classes that overlap."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 600)
    return (rng.normal(size=(600, 2)) + 1.2 * labels[:, None]).astype(np.float32), labels


def test_score_takes_images_that_were_tuned_on_when_it_is_told_to(points) -> None:
    """After a sweep score refuses what was tuned on, as evaluate does, unless allow_tuned is given."""
    rows, labels = points
    classifier = RetrievalClassifier(store="memory", k=5).fit(rows[:200], labels[:200])
    classifier.sweep(rows[200:300], labels[200:300], k=[1, 5], validation="all")
    with pytest.raises(InvalidInputError, match="allow_tuned=True"):
        classifier.score(rows[200:300], labels[200:300])
    expected = classifier.evaluate(rows[200:300], labels[200:300], allow_tuned=True).accuracy
    assert classifier.score(rows[200:300], labels[200:300], allow_tuned=True) == expected


def test_a_fitted_classifier_can_be_calibrated(points) -> None:
    """CalibratedClassifierCV of a FrozenEstimator makes better probabilities of the same neighbours."""
    rows, labels = points
    classifier = RetrievalClassifier(store="memory", k=5).fit(rows[:200], labels[:200])
    calibrated = CalibratedClassifierCV(FrozenEstimator(classifier)).fit(rows[200:400], labels[200:400])
    test, truth = rows[400:], labels[400:]
    assert calibrated.predict_proba(test).shape == (200, 2)
    assert log_loss(truth, calibrated.predict_proba(test)) < log_loss(truth, classifier.predict_proba(test))
    assert classifier.store_.count() == 200


def test_images_that_probabilities_and_sets_rest_on_are_refused(points, tmp_path) -> None:
    """One of them among others is enough, also in a loaded classifier, until the next fit."""
    rows, labels = points
    classifier = RetrievalClassifier(store="memory", k=5).fit(rows[:200], labels[:200])
    classifier.calibrate(rows[200:300], labels[200:300]).conformalize(rows[300:400], labels[300:400])
    classifier.save(tmp_path / "kept")
    loaded = RetrievalClassifier.load(tmp_path / "kept")
    for each in (classifier, loaded):
        with pytest.raises(InvalidInputError, match=r"^1 of the first 201 images were given to calibrate .*"):
            each.evaluate(rows[299:500], labels[299:500])
        with pytest.raises(InvalidInputError, match=r"^2 .* were given to conformalize .* allow_tuned=True$"):
            each.score(rows[398:500], labels[398:500])
        assert each.evaluate(rows[200:500], labels[200:500], allow_tuned=True).n_test == 300
        assert each.evaluate(rows[400:], labels[400:]).n_test == 200
    classifier.fit(rows[:200], labels[:200], overwrite=True)
    assert classifier.evaluate(rows[200:400], labels[200:400]).n_test == 200
    loaded.store_.close()
