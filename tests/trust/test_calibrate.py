"""Calibrated probabilities are as often right as they say, and answers stay where they should."""

from __future__ import annotations

import numpy as np
import pytest
from blobs import N_CLASSES, blobs, named
from scipy.optimize import minimize_scalar
from sklearn.isotonic import IsotonicRegression

from clipretrieval import ClipRetrievalWarning, RetrievalClassifier
from clipretrieval.errors import InvalidInputError
from clipretrieval.trust import CalibrationReport
from clipretrieval.trust.probability_maps import SMOOTHINGS, TemperatureMap


@pytest.mark.usefixtures("few_features")
@pytest.mark.parametrize("head", ["votes", "discriminant", "quadratic", "ridge", "fused"])
def test_temperature_changes_no_answer(head, fitted_on, others, asked):
    classifier = RetrievalClassifier(store="memory", head=head, k=6).fit(*fitted_on)
    answers, shares = classifier.predict(asked[0]), classifier.predict_proba(asked[0])
    found = classifier.calibrate(*others).predict_proba(asked[0])
    assert classifier.predict(asked[0]).tolist() == answers.tolist()
    assert (found != shares).any()
    assert found.shape == shares.shape
    np.testing.assert_allclose(found.sum(axis=1), 1)
    largest = found[np.arange(400), np.searchsorted(classifier.classes_, answers)]
    np.testing.assert_allclose(largest, found.max(axis=1))


def test_the_temperature_is_the_most_likely(fitted_on, others):
    """Divided by it, log probabilities give the true classes the greatest likelihood."""
    classifier = RetrievalClassifier(store="memory", head="discriminant").fit(*fitted_on)
    shares, truth = classifier.predict_proba(others[0]), np.array(others[1])

    def loss(temperature):
        powers = shares ** (1 / temperature)
        return -np.log(powers[np.arange(len(truth)), truth] / powers.sum(axis=1)).mean()

    expected = minimize_scalar(loss, bounds=(0.1, 10), method="bounded").x
    report = classifier.calibrate(*others).calibration_
    assert report.temperature == pytest.approx(expected, rel=1e-3)
    sharp = shares ** (1 / report.temperature)
    np.testing.assert_allclose(
        classifier.predict_proba(others[0]), sharp / sharp.sum(axis=1, keepdims=True), rtol=1e-6
    )


def test_a_single_neighbor_becomes_as_sure_as_it_is_right(fitted_on, others, asked):
    """Its share is 1 of every image; afterwards it is the accuracy."""
    classifier = RetrievalClassifier(store="memory", k=1).fit(*fitted_on)
    accuracy = classifier.score(*others)
    assert (classifier.predict_proba(asked[0]).max(axis=1) == 1).all()
    classifier.calibrate(*others)
    assert classifier.predict_proba(asked[0]).max(axis=1) == pytest.approx(accuracy, abs=0.005)
    report = classifier.calibration_
    assert report.ece_before == pytest.approx(1 - accuracy)
    assert report.ece_after < 0.1


def test_isotonic_regression_is_scikit_learns(fitted_on, asked):
    """A curve for each class, then divided by the sum; answers follow the probabilities."""
    many = blobs(600, 40)
    classifier = RetrievalClassifier(store="memory", k=15).fit(*fitted_on)
    own, before, answers = (classifier.predict_proba(each) for each in (many[0], asked[0], asked[0]))
    answers = classifier.predict(asked[0])
    found = classifier.calibrate(*many, method="isotonic").predict_proba(asked[0])
    truth, expected = np.array(many[1]), np.empty_like(before)
    for code in range(N_CLASSES):
        curve = IsotonicRegression(out_of_bounds="clip").fit(own[:, code], truth == code)
        expected[:, code] = curve.predict(before[:, code])
    np.testing.assert_allclose(found, expected / expected.sum(axis=1, keepdims=True), atol=1e-9)
    changed = classifier.predict(asked[0])
    chosen = found[np.arange(400), changed]
    assert (chosen == found.max(axis=1)).all()
    stay = found[np.arange(400), answers] == found.max(axis=1)
    assert (changed[stay] == answers[stay]).all()
    assert not stay.all()
    assert classifier.calibration_.temperature is None


def test_reports_tell_the_error_before_and_after(trusted, asked):
    """The one before is that of an uncalibrated evaluation; JSON and text have both."""
    labels = named(asked[1])
    report = trusted.evaluate(asked[0], labels)
    again = RetrievalClassifier.from_store(trusted.store_, head="discriminant").evaluate(asked[0], labels)
    assert report.ece_before == pytest.approx(again.calibration.ece)
    assert again.ece_before is None
    assert report.to_dict()["calibration"]["ece_before"] == report.ece_before
    told = f"calibration error: {report.calibration.ece:.4f}, before calibrating {report.ece_before:.4f}"
    assert told in str(report)
    assert "discriminant, calibrated" in str(report)
    assert isinstance(trusted.calibration_, CalibrationReport)
    assert trusted.calibration_.n == 150
    assert "calibrated" not in str(again)


def test_it_may_be_that_nothing_can_be_learned(fitted, others):
    """One image is too few, another method is none, and impossible classes tell nothing."""
    with pytest.raises(InvalidInputError, match=r"^1 image is too few to calibrate with: at least 2"):
        fitted.calibrate(others[0][:1], named(others[1][:1]))
    with pytest.warns(ClipRetrievalWarning) as told:
        fitted.calibrate(others[0][:2], named(others[1][:2]))
    assert str(told[0].message).startswith("calibrated on 2 images, which are few")
    fitted.partial_fit(others[0][:1], named(others[1][:1]))
    with pytest.raises(InvalidInputError, match=r"^only 1 of the 2 images .* are stored by now"):
        fitted.predict_proba(others[0])
    with pytest.raises(InvalidInputError, match="method must be one of 'temperature', 'isotonic'"):
        fitted.calibrate(others[0], named(others[1]), method="platt")
    logs = np.array([[0.0, -np.inf], [0.0, -np.inf]])
    assert TemperatureMap.learn(logs, np.array([1, 1])).temperature == 1.0


@pytest.mark.parametrize("k", [3, 5, 9])
def test_votes_are_smoothed_as_is_most_likely(k, fitted_on, asked):
    """With a smoothing too small, classes without a vote decide: the error rose from 0.04 to 0.07."""
    many = blobs(600, 40)
    classifier = RetrievalClassifier(store="memory", k=k).fit(*fitted_on)
    own, before, truth = classifier.predict_proba(many[0]), classifier.predict_proba(asked[0]), many[1]

    def calibrated(shares, temperature, smoothing):
        powers = ((1 - smoothing) * shares + smoothing / N_CLASSES) ** (1 / temperature)
        return powers / powers.sum(axis=1, keepdims=True)

    def loss(temperature, smoothing):
        return -np.log(calibrated(own, temperature, smoothing)[np.arange(600), truth]).mean()

    report = classifier.calibrate(*many).calibration_
    grid = [(t, s) for t in np.geomspace(0.2, 5, 200) for s in SMOOTHINGS]
    assert loss(report.temperature, report.smoothing) <= min(loss(*each) for each in grid) + 1e-9
    np.testing.assert_allclose(
        classifier.predict_proba(asked[0]),
        calibrated(before, report.temperature, report.smoothing),
        atol=1e-9,
    )
    assert report.ece_after < report.ece_before


@pytest.mark.parametrize(("method", "other"), [("temperature", "isotonic"), ("isotonic", "temperature")])
def test_a_calibration_that_makes_it_worse_is_said(method, other):
    """With the remedies; nothing is said where it is better, or no worse than by chance."""
    with pytest.warns(
        ClipRetrievalWarning, match=rf"worse, from 0\.0500 to 0\.1100, .* method='{other}', more images.* k"
    ):
        CalibrationReport(method, 100, None, 0.05, 0.11).warn()
    CalibrationReport(method, 50, None, 0.11, 0.05).warn()
    CalibrationReport(method, 100, None, 0.05, 0.09).warn()  # of 100 images, this is chance
