"""The rule by which images leave: learned, kept, and monotone in its one number."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_evidence import COSTS, draw

from clipretrieval import InvalidInputError
from clipretrieval.cascade import ExitEvidence, ExitPolicy

CERTAINTIES = ("combined", "margin", "agreement", "distance")
SEEN, OTHERS = draw(1500, 0), draw(800, 1)
thresholds = st.none() | st.floats(0, 1)


@pytest.fixture(scope="module", params=CERTAINTIES)
def learned(request):
    return ExitPolicy.learn(SEEN, request.param)


def one_by_one(policy, evidence):
    """Ask exit by exit, from the first."""
    found = np.full(len(evidence), -1)
    for place in range(evidence.n_exits):
        said = evidence.margins[place], evidence.agrees[place], evidence.distances[place]
        found[(found < 0) & policy.leaves(place, *said)] = place
    return found


@given(st.lists(thresholds, min_size=2, max_size=2))
def test_a_higher_threshold_moves_no_image_deeper(learned, chosen):
    """None is lower than any number: nothing leaves before the last exit."""
    low, high = sorted(chosen, key=lambda threshold: -np.inf if threshold is None else threshold)
    assert (learned.at(high).exits(OTHERS) <= learned.at(low).exits(OTHERS)).all()


@pytest.mark.parametrize("threshold", [None, 0.0, 0.001, 0.01, 0.05, 0.3, 1.0])
def test_exits_are_those_that_are_found_by_asking_one_after_the_other(learned, threshold):
    """Each image leaves at the first exit that lets it, the last one at the latest."""
    policy = learned.at(threshold)
    np.testing.assert_array_equal(policy.exits(OTHERS), one_by_one(policy, OTHERS))


def test_without_a_threshold_nothing_leaves(learned):
    """All go to the last exit, where all leave."""
    assert learned.threshold is None
    assert (learned.exits(OTHERS) == len(COSTS) - 1).all()


def test_what_is_learned_tells_how_probable_a_loss_is():
    """As many others are right at the last exit alone as was estimated, of the riskier half more."""
    policy = ExitPolicy.learn(SEEN, "combined")
    for place in range(len(COSTS) - 1):
        said = OTHERS.margins[place], OTHERS.agrees[place], OTHERS.distances[place]
        risk = policy.risk(place, *said)
        assert ((risk >= 0) & (risk <= 1)).all()
        only_last = OTHERS.correct[-1] & ~OTHERS.correct[place]
        assert risk.mean() == pytest.approx(only_last.mean(), abs=0.05)
        sure, unsure = np.split(np.argsort(risk), 2)
        assert only_last[sure].mean() < only_last[unsure].mean()


@pytest.mark.parametrize("threshold", [None, 0.0, 1 / 3])
def test_what_is_written_is_read_again(learned, threshold):
    """Through JSON, to the last bit."""
    policy = learned.at(threshold)
    assert ExitPolicy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy
    plain = ExitPolicy("margin", 4, threshold=threshold)
    assert ExitPolicy.from_dict(json.loads(json.dumps(plain.to_dict()))) == plain


@pytest.mark.parametrize(
    "damage",
    [
        {"certainty": "no"},
        {"certainty": None},
        {"certainty": ["margin"]},
        {"n_exits": 3},
        {"n_exits": "x"},
        {"n_exits": None},
        {"regressions": [[1.0]]},
        {"regressions": None},
        {"regressions": [[1.0, 2.0]] * 3},
        {"regressions": [[1.0, 2.0, 3.0]] * 2},
        {"regressions": [[1.0, 2.0, 3.0]] * 4},
        {"regressions": [[1.0, float("inf"), 3.0]] * 3},
        {"threshold": float("nan")},
        {"threshold": "cheap"},
        {"threshold": [0.5]},
    ],
)
def test_damaged_values_are_refused(damage):
    """No policy is made of what `to_dict` has not returned."""
    values = ExitPolicy.learn(OTHERS, "margin").to_dict()
    with pytest.raises((ValueError, KeyError, TypeError)):
        ExitPolicy.from_dict({**values, **damage})
    for name in values:
        with pytest.raises(KeyError):
            ExitPolicy.from_dict({key: value for key, value in values.items() if key != name})


@pytest.mark.parametrize("certainty", CERTAINTIES)
@pytest.mark.parametrize("correct", ["all", "none", "all at the last", "all but the first"])
def test_evidence_of_one_kind_gives_a_rule_all_the_same(certainty, correct):
    """All correct, none, or one exit without a mistake: losses are finite, and leaving follows them."""
    seen = draw(300, 4)
    right = {
        "all": np.ones_like(seen.correct),
        "none": np.zeros_like(seen.correct),
        "all at the last": np.concatenate([seen.correct[:-1], np.ones_like(seen.correct[-1:])]),
        "all but the first": np.concatenate(
            [np.zeros_like(seen.correct[:1]), np.ones_like(seen.correct[1:])]
        ),
    }[correct]
    policy = ExitPolicy.learn(ExitEvidence(seen.margins, seen.agrees, seen.distances, right), certainty)
    for place in range(len(COSTS) - 1):
        risk = policy.risk(place, seen.margins[place], seen.agrees[place], seen.distances[place])
        assert np.isfinite(risk).all()
        if correct in ("all", "none"):
            assert (risk < 0.01).all()
    if correct in ("all", "none"):
        assert (policy.at(0.01).exits(seen) == 0).all()
    if correct == "all but the first":
        assert (policy.at(0.05).exits(seen) == 1).all()
    assert ExitPolicy.from_dict(policy.to_dict()) == policy


def test_margins_at_their_ends_and_missing_distances_count_as_finite():
    """Margins of 0 and 1, distances of 0, infinity and NaN: none makes a number that is not finite."""
    seen = draw(200, 5, distances=False)
    seen.margins[:, ::2], seen.margins[:, 1::4] = 1.0, 0.0
    for certainty in CERTAINTIES:
        policy = ExitPolicy.learn(seen, certainty)
        strange = np.array([np.nan, np.inf, 0.0, -3.0, 1e300])
        risk = policy.risk(1, np.array([0.0, 1.0, 0.5, 1.0, 0.0]), np.ones(5, dtype=bool), strange)
        assert np.isfinite(risk).all()


def test_without_evidence_the_margin_alone_decides():
    """An image leaves where 1 − margin is at most the threshold."""
    policy, margins = ExitPolicy("combined", 4, threshold=0.25), np.array([0.0, 0.74, 0.75, 1.0])
    nothing = np.zeros(4, dtype=bool), np.full(4, np.nan)
    assert policy.leaves(0, margins, *nothing).tolist() == [False, False, True, True]
    assert policy.risk(0, margins, *nothing).tolist() == [1.0, 0.26, 0.25, 0.0]


def test_an_unknown_certainty_is_refused():
    """The error lists those that there are."""
    with pytest.raises(InvalidInputError, match="'combined', 'margin', 'agreement'"):
        ExitPolicy.learn(SEEN, "hope")


def test_evidence_of_some_images_is_taken_by_their_places():
    """All arrays are cut in the same way."""
    rows = np.array([5, 3, 3])
    some = OTHERS.take(rows)
    assert (len(some), some.n_exits) == (3, len(COSTS))
    for name in ("margins", "agrees", "distances", "correct"):
        np.testing.assert_array_equal(getattr(some, name), getattr(OTHERS, name)[:, rows])
