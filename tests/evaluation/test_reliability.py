"""Distances and confidences as signs of errors, against independent computations."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from clipretrieval import InvalidInputError
from clipretrieval.evaluation import (
    Reliability,
    accuracy_by_decile,
    best_measure,
    calibration_curve,
    class_table,
    confused_pairs,
    distance_histogram,
    error_auroc,
    macro_averages,
    risk_coverage,
    wilson_interval,
)

few = st.sampled_from([-1.5, 0.0, 0.25, 0.5, 2.0, math.inf])  # so that there are ties
many = st.floats(-1e6, 1e6, width=32)


def answers(distances=few | many, least=1, most=60):
    """Pairs of a distance and whether the answer was right; also all right, and all wrong."""
    mixed = st.lists(st.tuples(distances, st.booleans()), min_size=least, max_size=most)
    same = st.builds(
        lambda values, right: [(value, right) for value in values],
        st.lists(distances, min_size=least, max_size=most),
        st.booleans(),
    )
    return mixed | same


def columns(case):
    """Split pairs into two arrays."""
    return np.array([d for d, _ in case]), np.array([r for _, r in case])


@given(answers())
def test_auroc_is_the_chance_that_a_wrong_answer_lies_farther(case):
    """Pair by pair, ties counting one half; and as the Mann-Whitney U statistic has it."""
    distances, right = columns(case)
    found = error_auroc(distances, right)
    wrong_ones, right_ones = distances[~right], distances[right]
    if len(wrong_ones) == 0 or len(right_ones) == 0:
        assert math.isnan(found)
        return
    wins = [(w > r) + (w == r) / 2 for w in wrong_ones for r in right_ones]
    assert found == pytest.approx(np.mean(wins), abs=1e-12)
    u = mannwhitneyu(wrong_ones, right_ones).statistic
    assert found == pytest.approx(u / len(wins), abs=1e-12)
    if np.isfinite(distances).all():
        assert found == pytest.approx(roc_auc_score(~right, distances), abs=1e-12)


@given(answers())
def test_risk_coverage_counts_what_each_threshold_keeps(case):
    """At every distinct distance: how many are no farther, and how many of those are wrong."""
    distances, right = columns(case)
    curve = risk_coverage(distances, right)
    assert curve.thresholds.tolist() == sorted(set(distances.tolist()))
    for place, threshold in enumerate(curve.thresholds):
        kept = [r for d, r in case if d <= threshold]
        assert (curve.kept[place], curve.errors[place]) == (len(kept), kept.count(False))
        assert curve.coverage[place] == len(kept) / len(case)
        assert curve.risk[place] == pytest.approx(kept.count(False) / len(kept))


@given(answers(most=5))
def test_area_is_the_mean_over_all_orders_of_ties(case):
    """The mean risk of the i nearest, averaged over every order that the distances allow."""
    areas = []
    for order in permutations(case):
        if [d for d, _ in order] == sorted(d for d, _ in case):
            wrong = np.cumsum([not r for _, r in order])
            areas.append(np.mean(wrong / np.arange(1, len(case) + 1)))
    curve = risk_coverage(*columns(case))
    assert curve.area == pytest.approx(np.mean(areas), abs=1e-12)
    best = np.cumsum(sorted(not r for _, r in case)) / np.arange(1, len(case) + 1)
    assert curve.best_area == pytest.approx(best.mean(), abs=1e-12)


@given(answers(), st.integers(2, 20))
def test_a_thinned_curve_holds_points_of_the_whole_one(case, most):
    """No more points than asked for, none of them moved, the ends among them."""
    curve = risk_coverage(*columns(case))
    few = curve.thinned(most)
    points = list(zip(curve.thresholds, curve.kept, curve.errors, strict=True))
    kept = list(zip(few.thresholds, few.kept, few.errors, strict=True))
    assert len(kept) <= most
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert set(kept) <= set(points)
    assert kept == sorted(kept)


def test_a_thinned_curve_is_even_over_the_coverage():
    """Among distinct distances, the gaps between the points are alike."""
    curve = risk_coverage(np.arange(100_000) ** 3, np.arange(100_000) % 7 > 0).thinned(400)
    assert len(curve.kept) == 400
    assert np.diff(curve.coverage).max() < 1.02 / 399


@given(answers())
def test_deciles_are_tenths_with_ties_together(case):
    """Each answer is in the first tenth whose limit, counted off one by one, it does not pass."""
    distances, right = columns(case)
    ordered, n = sorted(distances.tolist()), len(case)
    groups = {}
    for d, r in case:
        number = next(i for i in range(1, 11) if d <= ordered[math.ceil(i * n / 10) - 1])
        groups.setdefault(number, []).append((d, r))
    rows = accuracy_by_decile(distances, right)
    assert [row["decile"] for row in rows] == sorted(groups)
    for row in rows:
        inside = groups[row["decile"]]
        hits = sum(r for _, r in inside)
        assert (row["min"], row["max"]) == (min(d for d, _ in inside), max(d for d, _ in inside))
        assert (row["count"], row["accuracy"]) == (len(inside), hits / len(inside))
        assert (row["low"], row["high"]) == wilson_interval(hits, len(inside))


def test_deciles_of_distinct_distances_are_of_one_size():
    """A hundred answers make ten tens, the nearest first."""
    rows = accuracy_by_decile(np.arange(100), np.arange(100) < 55)
    assert [row["count"] for row in rows] == [10] * 10
    assert [row["accuracy"] for row in rows] == [1] * 5 + [0.5] + [0] * 4


@given(answers(), st.integers(1, 12))
@example([(math.inf, True)], 3)
@example([(1e6, True), (1e6, False)], 3)
def test_histogram_holds_every_finite_distance_once(case, bins):
    """Each bin counts what lies from its lower edge up to the next one, the last edge included."""
    distances, right = columns(case)
    found = distance_histogram(distances, right, bins)
    assert (np.diff(found.edges) > 0).all()
    for counts, wanted in ((found.right, True), (found.wrong, False)):
        inside = [d for d, r in case if r is wanted and math.isfinite(d)]
        expected = [0] * (len(found.edges) - 1)
        for d in inside:
            expected[max(i for i in range(len(expected)) if i == 0 or found.edges[i] <= d)] += 1
        assert counts.tolist() == expected
        assert counts.sum() == len(inside)


shares = st.sampled_from([0.0, 0.1, 0.2, 1 / 3, 0.5, 1.0]) | st.floats(0, 1)


@given(answers(shares), st.integers(1, 15))
def test_calibration_equals_binning_by_hand(case, n_bins):
    """Bins are open below and closed above; the errors are their gaps, weighed and at their largest."""
    confidence, right = columns(case)
    curve = calibration_curve(confidence, right, n_bins)
    edges = np.linspace(0, 1, n_bins + 1)
    groups = {}
    for c, r in case:
        place = next(i for i in range(n_bins) if c <= edges[i + 1] or i == n_bins - 1)
        groups.setdefault(place, []).append((c, r))
    gaps = []
    assert len(curve.rows()) == len(groups)
    for row, place in zip(curve.rows(), sorted(groups), strict=True):
        mean, accuracy = np.mean(groups[place], axis=0)
        assert (row["low"], row["high"], row["count"]) == (edges[place], edges[place + 1], len(groups[place]))
        assert (row["confidence"], row["accuracy"]) == (pytest.approx(mean), pytest.approx(accuracy))
        gaps.append((len(groups[place]), abs(accuracy - mean)))
    assert curve.ece == pytest.approx(sum(n * gap for n, gap in gaps) / len(case), abs=1e-12)
    assert curve.mce == pytest.approx(max(gap for _, gap in gaps), abs=1e-12)


labels = st.integers(0, 5)


@given(st.lists(st.tuples(labels, labels), min_size=1, max_size=60), st.integers(0, 5))
def test_macro_averages_equal_those_of_scikit_learn(case, unseen):
    """Classes that were neither met nor answered do not count."""
    y_true, y_pred = columns(case)
    classes = np.unique([*y_true, *y_pred, unseen])
    found = macro_averages(class_table(y_true, y_pred, classes))
    assert found["macro_f1"] == pytest.approx(f1_score(y_true, y_pred, average="macro", zero_division=0))
    if set(y_pred) <= set(y_true) and len(set(y_true)) > 1:  # scikit-learn warns of the others
        assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(y_true, y_pred))
    recalls = [np.mean(y_pred[y_true == name] == name) for name in set(y_true)]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls))


@given(st.lists(st.tuples(labels, labels), max_size=60), st.none() | st.integers(1, 4))
def test_confused_pairs_equal_counting(case, most):
    """Every wrong pair with its count and its part of the true class, the most frequent first."""
    classes = np.array(list("abcdef"))
    matrix = np.zeros((6, 6), dtype=np.int64)
    for true, answer in case:
        matrix[true, answer] += 1
    found = confused_pairs(matrix, classes, most)
    wrong = {(t, a) for t, a in case if t != a}
    expected = sorted(wrong, key=lambda pair: (-case.count(pair), pair))[:most]
    assert [(row["true"], row["answer"]) for row in found] == [
        ("abcdef"[true], "abcdef"[answer]) for true, answer in expected
    ]
    for row, pair in zip(found, expected, strict=True):
        assert row["count"] == case.count(pair)
        assert row["share"] == pytest.approx(case.count(pair) / sum(t == pair[0] for t, _ in case))


@pytest.mark.parametrize(
    "measure", [error_auroc, risk_coverage, accuracy_by_decile, distance_histogram, calibration_curve]
)
@pytest.mark.parametrize(
    ("values", "correct"),
    [([], []), ([0.5], [True, False]), ([[0.5]], [[True]]), ([math.nan], [True])],
    ids=["nothing", "lengths", "shape", "nan"],
)
def test_what_has_no_measure_is_refused(measure, values, correct):
    """No answers, lengths that differ, and distances or confidences that are no numbers."""
    with pytest.raises(InvalidInputError, match=r"shape \(n,\)|NaN|must lie in"):
        measure(values, correct)


@pytest.mark.parametrize("measure", [distance_histogram, calibration_curve])
def test_bins_are_at_least_one(measure):
    """There is no histogram without a bin."""
    with pytest.raises(InvalidInputError, match="bins must be a whole number, at least 1"):
        measure([0.5], [True], 0)


@given(answers(many))
def test_shares_are_distances_the_other_way_round(case):
    """What is a large share is a small distance: the same area, curve and tenths, with its own thresholds."""
    shares, right = columns(case)
    for by in ("share", "margin"):
        assert error_auroc(shares, right, by=by) == pytest.approx(error_auroc(-shares, right), nan_ok=True)
        curve, mirrored = risk_coverage(shares, right, by=by), risk_coverage(-shares, right)
        assert curve.by == by
        assert curve.thresholds.tolist() == (-mirrored.thresholds).tolist()
        assert curve.kept.tolist() == [np.sum(shares >= each) for each in curve.thresholds]
        assert curve.errors.tolist() == mirrored.errors.tolist()
        rows, other = accuracy_by_decile(shares, right, by=by), accuracy_by_decile(-shares, right)
        assert [(row["count"], row["accuracy"], row["min"], row["max"]) for row in rows] == [
            (row["count"], row["accuracy"], -row["max"], -row["min"]) for row in other
        ]


@given(answers(st.just(1.0), least=2))
def test_a_constant_measure_is_chance_and_never_the_best(case):
    """Where all values are the same the area is one half exactly, and there is one threshold."""
    values, right = columns(case)
    found = Reliability("share", values, right)
    assert found.constant
    assert found.error_auroc == 0.5 or math.isnan(found.error_auroc)
    assert found.risk_coverage.kept.tolist() == [len(values)]
    assert best_measure([found]) is None


def test_the_best_measure_by_hand():
    """The highest area wins, the share where it is level; worse than chance is never the best."""
    right = np.array([True, True, False, False])
    sure, mixed, misled = (
        np.array([0.9, 0.8, 0.4, 0.3]),
        np.array([0.9, 0.4, 0.8, 0.3]),
        np.array([0.1, 0.2, 0.8, 0.9]),
    )
    assert error_auroc(sure, right, by="share") == 1.0
    assert error_auroc(mixed, right, by="margin") == 0.75
    assert error_auroc(misled, right, by="margin") == 0.0

    def best(**values):
        return best_measure(Reliability(by, each, right) for by, each in values.items())

    assert best(distance=mixed, margin=mixed, share=sure) == "share"
    assert best(distance=misled, margin=sure, share=sure) == "share"
    assert best(distance=misled, margin=mixed, share=misled) == "distance"
    assert best(margin=misled, share=misled) is None


@pytest.mark.parametrize("measure", [error_auroc, risk_coverage, accuracy_by_decile])
@pytest.mark.parametrize("by", ["votes", "", None, 1, ["share"]])
def test_an_unknown_measure_is_refused(measure, by):
    """The message lists the three."""
    with pytest.raises(InvalidInputError, match="by must be one of 'share', 'margin', 'distance'"):
        measure([0.5], [True], by=by)


def test_a_span_fixes_the_bins():
    """A share of three fifths lies at the edge that is meant, in the bin above it."""
    found = distance_histogram([0.6, 0.2, 1.0], [True, False, True], 20, (0.0, 1.0))
    assert found.edges.tolist() == pytest.approx(np.arange(21) / 20)
    assert np.flatnonzero(found.right).tolist() == [12, 19]
    assert np.flatnonzero(found.wrong).tolist() == [4]


@given(answers(many, least=2))
def test_monotone_scaling_changes_no_order(case):
    """Only the order of the distances counts, so that squared or not makes no difference."""
    distances, right = columns(case)
    distances = np.abs(distances)
    assume(len(np.unique(distances)) == len(np.unique(distances**2)))
    for measure in (error_auroc, lambda d, r: risk_coverage(d, r).area):
        first, second = measure(distances, right), measure(distances**2, right)
        assert first == pytest.approx(second, nan_ok=True)
