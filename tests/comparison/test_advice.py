"""The choice among candidates, held against the definitions that it rests on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import norm

from clipretrieval.comparison.advice import Wishes, choose, corrected_interval, p_values, pareto_front
from clipretrieval.comparison.folds import divide
from clipretrieval.evaluation import mcnemar_exact, wilson_interval

ANSWERS = st.tuples(st.integers(1, 40), st.integers(1, 6)).flatmap(lambda shape: hnp.arrays(np.bool_, shape))
FEW = st.sampled_from([0.5, 1.0, 2.0, 3.0])


def answers(*counts: int, n: int = 100) -> np.ndarray:
    """Candidates of which each has the first so many of n images right."""
    return np.stack([np.arange(n) < count for count in counts], axis=1)


@given(st.lists(st.tuples(FEW, FEW), min_size=1, max_size=8))
def test_the_front_is_what_no_other_candidate_beats(pairs):
    """On it is one of each cost and accuracy to which none is equal or better in both, and better in one."""
    costs, accuracies = np.array(pairs).T
    front = pareto_front(costs, accuracies)
    unbeaten = {
        pair
        for pair in pairs
        if not any(other != pair and other[0] <= pair[0] and other[1] >= pair[1] for other in pairs)
    }
    assert {pairs[place] for place in front} == unbeaten
    assert len(front) == len(unbeaten)
    assert [costs[place] for place in front] == sorted(cost for cost, _ in unbeaten)


@given(ANSWERS)
def test_p_values_are_those_of_mcnemars_exact_test(right):
    """The p-values of many candidates at once are those of the test, one by one."""
    first = right[:, :1]
    found = p_values((right & ~first).sum(axis=0), (~right & first).sum(axis=0))
    expected = [mcnemar_exact(column, right[:, 0]).p_value for column in right.T]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@given(ANSWERS, st.data())
def test_the_choice_is_the_cheapest_that_is_not_worse_than_the_best(right, data):
    """It is found by testing each candidate against the best of those that are not too expensive."""
    costs = np.array(data.draw(st.lists(FEW, min_size=right.shape[1], max_size=right.shape[1])))
    most = data.draw(st.none() | FEW)
    allowed = [place for place in range(len(costs)) if most is None or costs[place] <= most]
    found = choose(right, costs, Wishes(max_cost=most))
    assert found.met == bool(allowed)
    if not allowed:
        assert costs[found.place] == costs.min()
        return
    accuracies = right.mean(axis=0)
    assert accuracies[found.best] == max(accuracies[allowed])
    good = []
    for place in allowed:
        test = mcnemar_exact(right[:, place], right[:, found.best])
        if test.p_value >= 0.05 or test.gained >= test.lost:
            good.append(place)
    assert found.place in good
    assert costs[found.place] == min(costs[good])


def test_a_significant_difference_is_paid_for():
    """Of five images lost out of five the test says nothing, of six it does."""
    costs = np.array([1.0, 2.0])
    assert choose(answers(85, 90), costs, Wishes()).place == 0
    assert choose(answers(84, 90), costs, Wishes()).place == 1


def test_a_wish_for_accuracy_is_for_the_lower_end_of_the_interval():
    """The cheapest whose interval lies above it is taken, also where a better one is significantly so."""
    right, costs = answers(60, 90, 99), np.array([1.0, 2.0, 3.0])
    low = wilson_interval(90, 100)[0]
    found = choose(right, costs, Wishes(min_accuracy=low))
    assert (found.place, found.best, found.met) == (1, 2, True)
    assert choose(right, costs, Wishes(min_accuracy=low + 1e-6)).place == 2
    beyond = choose(right, costs, Wishes(min_accuracy=0.99))
    assert (beyond.place, beyond.met) == (2, False)
    within = choose(right, costs, Wishes(max_cost=2.0, min_accuracy=0.94))
    assert (within.place, within.best, within.met) == (1, 1, False)
    both = choose(right, costs, Wishes(max_cost=2.5, min_accuracy=0.55))
    assert (both.place, both.met) == (1, True)
    assert choose(right, costs, Wishes(min_accuracy=1.0)).met is False


def test_nothing_is_taken_off_where_there_was_no_choice():
    """With one candidate, and with two that differ in every sample, the interval is Wilson's."""
    for right in (answers(80), answers(10, 80)):
        found = corrected_interval(right, np.ones(right.shape[1]), Wishes(), 0)
        assert found == (0.8, wilson_interval(80, 100))


def drawn_answers(random: np.random.Generator, n: int, accuracies: np.ndarray, alike: float) -> np.ndarray:
    """Draw what candidates of known accuracies answer, where some images are hard for all of them."""
    hardness, own = random.standard_normal((n, 1)), random.standard_normal((n, len(accuracies)))
    return np.sqrt(alike) * hardness + np.sqrt(1 - alike) * own < norm.ppf(accuracies)


@pytest.mark.parametrize(
    ("accuracies", "alike", "wishes", "luck"),
    [
        (np.full(30, 0.5), 0.0, Wishes(), 0.08),
        (np.full(15, 0.8), 0.6, Wishes(), 0.04),
        (np.linspace(0.7, 0.9, 15), 0.6, Wishes(), 0.01),
        (np.linspace(0.7, 0.9, 15), 0.6, Wishes(max_cost=9, min_accuracy=0.7), 0.01),
    ],
)
def test_the_luck_of_the_chosen_is_taken_off(accuracies, alike, wishes, luck):
    """The interval holds the known accuracy of what is chosen, and the estimate is nearer than it looked."""
    random, costs = np.random.default_rng(0), np.arange(len(accuracies)) + 1.0
    if len(set(accuracies)) == 1:
        costs[:] = 1
    looked, told, held = [], [], []
    for seed in range(40):
        right = drawn_answers(random, 120, accuracies, alike)
        place = choose(right, costs, wishes).place
        accuracy, (low, high) = corrected_interval(right, costs, wishes, seed)
        looked.append(right[:, place].mean() - accuracies[place])
        told.append(accuracy - accuracies[place])
        held.append(low <= accuracies[place] <= high)
    assert sum(held) >= 37
    assert np.mean(looked) > luck
    assert abs(np.mean(told)) < 0.5 * np.mean(looked)


def test_draws_from_the_same_images_err_independently():
    """Chosen on one fold and measured on another, 100 draws from 2,000 images tell these images' accuracy."""
    random, costs, names = np.random.default_rng(0), np.arange(6) + 1.0, [f"image {n}" for n in range(2000)]
    pool = drawn_answers(random, 2000, np.linspace(0.74, 0.8, 6), 0.5)
    off, held = [], []
    for _ in range(100):
        some = random.permutation(2000)[:800]
        folds = divide([names[place] for place in some], [0] * 800, 5, 0, crossed=False)
        place = choose(pool[some[folds.chosen_on]], costs, Wishes()).place
        measured = pool[some[folds.measured_on[1]], place]
        low, high = wilson_interval(int(measured.sum()), len(measured))
        off.append(measured.mean() - pool[:, place].mean())
        held.append(low <= pool[:, place].mean() <= high)
    assert sum(held) >= 92
    assert abs(np.mean(off)) < 2.6 * np.std(off) / 10
