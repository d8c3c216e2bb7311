"""How sure an exit has to be: the promise, the budget, and how many images it takes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from synthetic_evidence import COSTS, draw

from clipretrieval import InvalidInputError
from clipretrieval.cascade import Calibration, ExitPolicy, least_sample
from clipretrieval.cascade.calibration import calibrate_policy, losses

POLICY = ExitPolicy.learn(draw(1000, 100), "combined")


def calibrate(evidence, policy=POLICY, *, max_loss=0.02, confidence=0.95, budget=None):
    return calibrate_policy(policy, evidence, COSTS, max_loss=max_loss, confidence=confidence, budget=budget)


def test_the_promise_is_kept():
    """Over 200 draws of calibration images, at most 5 % (and 2 % for chance) lose more on the population."""
    population, rng, broken, costs = draw(2000, 1), np.random.default_rng(2), 0, []
    for _ in range(200):
        found, calibration = calibrate(population.take(rng.choice(2000, 250)), max_loss=0.04)
        broken += losses(population, found).mean() > 0.04
        costs.append(calibration.multiply_adds)
    assert broken <= 200 * 0.07
    assert np.mean(costs) < 0.9 * COSTS[-1]  # and something is gained


def test_what_was_set_is_told():
    """The figures are those of the images that it was calibrated on."""
    evidence = draw(900, 3)
    found, told = calibrate(evidence, max_loss=0.03)
    places = found.exits(evidence)
    assert found == POLICY.at(told.threshold)
    assert told.threshold is not None
    assert (told.n, told.max_loss, told.confidence, told.budget) == (900, 0.03, 0.95, None)
    assert told.loss == losses(evidence, found).mean() < 0.03
    assert told.multiply_adds == pytest.approx(np.array(COSTS)[places].mean())
    assert told.last_multiply_adds == COSTS[-1]
    assert told.shares == tuple((np.bincount(places, minlength=4) / 900).tolist())
    right = evidence.correct[places, np.arange(900)]
    assert told.loss == pytest.approx(evidence.correct[-1].mean() - right.mean())


def test_losses_are_those_beside_the_last_exit():
    """1 where only the last exit is right, −1 where only the cascade is."""
    evidence = draw(500, 6)
    found = losses(evidence, POLICY.at(0.1))
    assert set(found.tolist()) == {-1.0, 0.0, 1.0}
    assert (losses(evidence, POLICY) == 0).all()


def test_a_greater_loss_and_less_confidence_allow_more():
    """The threshold follows what may be lost."""
    evidence = draw(900, 3)
    thresholds = [calibrate(evidence, max_loss=loss)[1].threshold for loss in (0.01, 0.02, 0.04, 0.08)]
    assert thresholds == sorted(thresholds, key=lambda threshold: -np.inf if threshold is None else threshold)
    assert len(set(thresholds)) > 2
    sure, less = (calibrate(evidence, confidence=each)[1].threshold for each in (0.99, 0.8))
    assert sure <= less


def test_where_no_threshold_keeps_the_promise_nothing_leaves():
    """Images on which leaving loses at any threshold: all go to the last exit, and nothing is lost."""
    evidence = draw(400, 8)
    evidence.correct[:-1], evidence.correct[-1] = False, True
    evidence.margins[:-1] = 1.0
    found, told = calibrate(evidence, ExitPolicy("margin", 4))
    places = found.exits(evidence)
    assert told.loss == 0
    assert (places == 3).all()
    assert told.shares == (0, 0, 0, 1)
    assert told.multiply_adds == COSTS[-1]


@pytest.mark.parametrize("budget", [0.6, 1.0, 2.5, 3.9])
def test_a_budget_is_kept_and_used(budget):
    """The mean cost is at most the budget, and the next lower threshold would cost more."""
    evidence = draw(900, 3)
    found, told = calibrate(evidence, budget=budget)
    assert told.multiply_adds <= budget
    assert told.multiply_adds > budget - 0.4
    assert (told.budget, told.max_loss, told.confidence) == (budget, None, None)
    assert found.threshold == told.threshold


def test_a_budget_that_everything_keeps_changes_nothing():
    """All go to the last exit where that costs no more."""
    found, told = calibrate(draw(50, 3), budget=COSTS[-1])
    assert found.threshold is told.threshold is None


@pytest.mark.parametrize("learned", [True, False])
def test_the_cost_of_the_first_exit_is_a_budget_that_is_kept(learned):
    """However much is lost by it, each image leaves there."""
    evidence = draw(300, 9)
    evidence.correct[:-1], evidence.correct[-1] = False, True
    policy = ExitPolicy.learn(evidence, "combined") if learned else ExitPolicy("combined", 4)
    found, told = calibrate(evidence, policy, budget=COSTS[0])
    assert told.multiply_adds == COSTS[0]
    assert (found.exits(evidence) == 0).all()


@pytest.mark.parametrize(("max_loss", "confidence"), [(0.005, 0.95), (0.01, 0.99), (0.1, 0.5)])
def test_too_few_images_are_refused_with_the_number_that_it_takes(max_loss, confidence):
    """One less than the least sample is refused, and so many are not."""
    least = least_sample(max_loss, confidence)
    assert least is not None
    with pytest.raises(
        InvalidInputError, match=rf"{least - 1} images are too few .* it takes at least {least}, and more"
    ):
        calibrate(draw(least - 1, 0), max_loss=max_loss, confidence=confidence)
    assert calibrate(draw(least, 0), max_loss=max_loss, confidence=confidence)[1].n == least


@pytest.mark.parametrize("options", [{}, {"budget": 2.0}, {"max_loss": 1 / 3}])
def test_what_is_written_is_read_again(options):
    """Through JSON, to the last bit."""
    told = calibrate(draw(900, 3), **options)[1]
    assert Calibration.from_dict(json.loads(json.dumps(told.to_dict()))) == told


@pytest.mark.parametrize(
    "damage",
    [
        {"n": None},
        {"n": "many"},
        {"max_loss": "none"},
        {"loss": None},
        {"multiply_adds": None},
        {"shares": None},
        {"shares": 1.0},
        {"shares": ["x"]},
        {"more": 1},
        {"loss": float("nan")},
        {"threshold": float("inf")},
        {"shares": [0.5, float("nan")]},
    ],
)
def test_damaged_values_are_refused(damage):
    """No calibration is made of what `to_dict` has not returned."""
    values = calibrate(draw(900, 3))[1].to_dict()
    with pytest.raises((ValueError, KeyError, TypeError)):
        Calibration.from_dict({**values, **damage})
    for name in values:
        with pytest.raises(KeyError):
            Calibration.from_dict({key: value for key, value in values.items() if key != name})
