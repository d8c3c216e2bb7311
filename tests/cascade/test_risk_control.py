"""Bounds on what a cascade loses: the p-value, the sequence of tests, and how many images it takes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipretrieval.cascade import betting_p_value, last_accepted, least_sample

bounds, confidences = st.floats(0.0, 0.5), st.floats(0.5, 0.999)
some_losses = st.lists(st.sampled_from([-1.0, 0.0, 1.0]), max_size=60)


def slow_p_value(losses: list[float], bound: float, confidence: float) -> float:
    """Bet on each loss in turn, in plain floats."""
    n, capital, most = len(losses), 1.0, 1.0
    middle, total, squares = (bound + 1) / 2, 0.0, 0.0
    variance = 0.25
    for number, loss in enumerate(losses, 1):
        stake = math.sqrt(2 * math.log(1 / (1 - confidence)) / (n * variance))
        stake = min(stake, 0.99 / (1 - middle))
        found = (loss + 1) / 2
        capital *= 1 - stake * (found - middle)
        most = max(most, capital)
        total += found
        squares += (found - (0.5 + total) / (number + 1)) ** 2
        variance = (0.25 + squares) / (number + 1)
    return 1 / most


@given(some_losses, bounds, confidences)
def test_the_p_value_is_that_of_a_gambler_who_bets_on_each_loss_in_turn(losses, bound, confidence):
    """Bets one after the other, in plain floats, give the same."""
    found = betting_p_value(np.array(losses), bound, confidence)
    assert found == pytest.approx(slow_p_value(losses, bound, confidence), rel=1e-9)
    assert 0 < found <= 1


@pytest.mark.parametrize(("gain", "mean"), [(0.0, 0.012), (0.1, 0.022), (0.3, 0.05)])
def test_a_greater_loss_is_seldom_taken_for_one_within_the_bound(gain, mean):
    """Of 2,000 draws whose mean loss is just above the bound, at most 5 % and chance are accepted."""
    rng, n, draws = np.random.default_rng(7), 400, 2000
    shares = [gain, 1 - gain - (gain + mean), gain + mean]
    accepted = sum(
        betting_p_value(rng.choice([-1.0, 0.0, 1.0], n, p=shares), mean - 1e-3, 0.95) <= 0.05
        for _ in range(draws)
    )
    assert accepted <= draws * 0.05 + 3 * math.sqrt(draws * 0.05 * 0.95)


def test_what_loses_nothing_is_accepted():
    """The test can be passed: thousands of images of which none is lost have a tiny p-value."""
    assert betting_p_value(np.zeros(5000), 0.005, 0.95) < 1e-3
    assert betting_p_value(np.zeros(0), 0.005, 0.95) == 1.0


def test_testing_stops_at_the_first_setting_that_fails():
    """Settings behind one that fails are not looked at, though they would pass."""
    good, bad, looked_at = np.zeros(2000), np.ones(2000), []

    def settings():
        for number, losses in enumerate([good, good, bad, good]):
            looked_at.append(number)
            yield losses

    assert last_accepted(settings(), 0.01, 0.95) == 1
    assert looked_at == [0, 1, 2]
    assert last_accepted([bad, good], 0.01, 0.95) is None
    assert last_accepted([], 0.01, 0.95) is None
    assert last_accepted([good, good], 0.01, 0.95) == 1


@given(st.floats(1e-3, 0.9), st.floats(0.01, 0.9999))
@settings(max_examples=50)
def test_the_least_sample_is_exact(bound, confidence):
    """So many images without a loss are accepted, and one less are not."""
    n = least_sample(bound, confidence)
    assert n is not None
    assert betting_p_value(np.zeros(n), bound, confidence) <= 1 - confidence
    assert betting_p_value(np.zeros(n - 1), bound, confidence) > 1 - confidence


def test_no_number_of_images_proves_that_nothing_is_lost():
    """A bound of 0 cannot be shown to hold, as each next image may be the first that is lost."""
    assert least_sample(0.0, 0.95) is None
