"""Sets are those of the definition, written out as a loop, and hold the true class as often as was asked."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipretrieval.errors import InvalidInputError
from clipretrieval.trust import least_images
from clipretrieval.trust.conformal import (
    ConformalRule,
    Ranked,
    choose_regularisation,
    draws,
    greater_share,
)

RULES = [
    ConformalRule("lac"),
    ConformalRule("aps"),
    ConformalRule("aps", randomized=False),
    ConformalRule("raps", penalty=0.1, free_classes=1),
]


def shares(n, seed, classes=5):
    """Draw probabilities, some of them equal, and true classes by them."""
    rng = np.random.default_rng(seed)
    found = np.round(rng.dirichlet(np.ones(classes), n), 2)
    found /= found.sum(axis=1, keepdims=True)
    return found, np.array([rng.choice(classes, p=row) for row in found])


def score_by_hand(rule, row, code, part):
    """Return the nonconformity score of a class as the papers write it."""
    if rule.score == "lac":
        return 1 - row[code]
    order = sorted(range(len(row)), key=lambda each: (-row[each], each))
    place = order.index(code)
    total = sum(row[each] for each in order[:place])
    total += row[code] * (part if rule.randomized else 1)
    if rule.score == "raps":
        total += rule.penalty * max(0, place + 1 - rule.free_classes)
    return total


@pytest.mark.parametrize("rule", RULES)
def test_scores_are_those_of_the_papers(rule):
    found, _ = shares(40, 0)
    parts = draws([str(each) for each in range(40)], 0, "part")
    scores = rule.scores(Ranked.of(found), parts[:, None], rule.penalty or 0, rule.free_classes or 0)
    expected = [
        [score_by_hand(rule, row, code, part) for code in range(5)]
        for row, part in zip(found, parts, strict=True)
    ]
    np.testing.assert_allclose(scores, expected, atol=1e-11)


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=12),
    st.integers(0, 4),
    st.sampled_from([0.0, 0.3, 0.999, 1.0]),
)
def test_a_p_value_counts_those_that_are_as_high(held, score, ties):
    values = np.sort(np.array(held, dtype=float))
    expected = (sum(each > score for each in held) + ties * (1 + held.count(score))) / (len(held) + 1)
    assert greater_share(values, np.array([float(score)]), ties)[0] == pytest.approx(expected)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("coverage", [0.8, 0.9])
def test_sets_hold_the_true_class_as_often_as_was_asked(rule, coverage):
    """Over many draws of exchangeable images, also where probabilities are no good and have ties."""
    hits = []
    for seed in range(60):
        found, truth = shares(300, seed)
        found = found[:, ::-1] if seed % 2 else found  # worse than chance
        parts, ties = (draws([f"{seed}-{each}" for each in range(300)], 0, use) for use in ("part", "tie"))
        ranked, penalty = Ranked.of(found), (rule.penalty or 0, rule.free_classes or 0)
        own = rule.scores(ranked.take(slice(100)).at(truth[:100]), parts[:100], *penalty)
        new = rule.scores(ranked.take(slice(100, 300)).at(truth[100:]), parts[100:], *penalty)
        tied = ties[100:] if rule.randomized else 1.0
        hits.append((greater_share(np.sort(own), new, tied) > 1 - coverage).mean())
    error = 3 * np.std(hits) / math.sqrt(len(hits))
    assert np.mean(hits) > coverage - error
    if rule.randomized:
        assert np.mean(hits) < coverage + 0.005 + error


def test_the_penalty_makes_the_smallest_sets():
    """k_reg is the rank within which the true class is; of all penalties the best one is taken."""
    found, truth = shares(200, 1, classes=8)
    rule, parts = ConformalRule("raps"), draws([str(each) for each in range(200)], 0, "part")
    penalty, free = choose_regularisation(rule, found, truth, parts, 0.1)
    ranks = sorted(1 + int((row > row[code]).sum()) for row, code in zip(found, truth, strict=True))
    assert abs(free - ranks[math.ceil(0.9 * 201) - 1]) <= 1  # equal probabilities have an order, too
    sizes = {}
    for tried in (0.001, 0.01, 0.1, 0.2, 0.5):
        own = rule.scores(Ranked.of(found).at(truth), parts, tried, free)
        limit = np.sort(own)[math.ceil(0.9 * 201) - 1]
        sizes[tried] = (rule.scores(Ranked.of(found), parts[:, None], tried, free) <= limit).sum()
    assert sizes[penalty] == min(sizes.values())


@pytest.mark.parametrize(
    ("error", "n"), [(0.1, 9), (0.05, 19), (0.01, 99), (0.5, 1), (0.3, 3), (1 - 0.95, 19)]
)
def test_how_many_images_it_takes(error, n):
    assert least_images(error) == n
    held = np.arange(n, dtype=float)
    assert greater_share(held, np.array([n + 1.0]), 1.0)[0] <= error + 1e-9  # a class can be left out
    assert greater_share(held[1:], np.array([n + 1.0]), 1.0)[0] > error


def test_draws_depend_on_the_image_alone():
    """They are spread evenly, and others for another seed or purpose."""
    ids = [f"{each:032x}" for each in range(2000)]
    found = draws(ids, 0, "part")
    assert (found[7:9] == draws(ids[7:9], 0, "part")).all()
    assert 0 <= found.min() < 0.01
    assert 0.99 < found.max() < 1
    assert abs(found.mean() - 0.5) < 0.02
    for other in (draws(ids, 1, "part"), draws(ids, 0, "tie")):
        assert abs(np.corrcoef(found, other)[0, 1]) < 0.06


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"score": "top"}, "score must be one of 'lac', 'aps', 'raps'"),
        ({"penalty": 0.1, "free_classes": 1}, "penalty is for score='raps'"),
        ({"score": "raps", "penalty": 0.1}, "pass both penalty and free_classes"),
        ({"score": "raps", "penalty": -1, "free_classes": 1}, "penalty must be"),
        ({"class_conditional": "yes"}, "class_conditional must be True or False"),
        ({"random_state": -1}, "random_state must be a whole number"),
    ],
)
def test_rules_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        ConformalRule(**arguments)
