"""Folds: by content, each class for itself, and nothing on two sides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipretrieval import InvalidInputError
from clipretrieval.comparison.folds import check_class_sizes, divide

COUNTS = st.lists(st.integers(3, 20), min_size=2, max_size=5)


def named(counts: list[int]) -> tuple[list[str], list[int]]:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    return [f"image {place}" for place in range(len(labels))], labels


@given(COUNTS, st.integers(3, 6), st.integers(0, 5))
def test_crossed_folds_hold_each_class_evenly(counts, folds, seed):
    """Every image is answered once by the others; folds differ by one image, of a class and in all."""
    ids, labels = named(counts)
    found = divide(ids, labels, folds, seed, crossed=True)
    asked = np.concatenate([asked for _, asked in found.turns])
    assert sorted(asked) == list(range(len(ids))) == found.chosen_on.tolist()
    for stored, asked in found.turns:
        assert set(stored) | set(asked) == set(range(len(ids)))
        assert not set(stored) & set(asked)
        assert {labels[place] for place in stored} == set(labels)
    for label in range(len(counts)):
        sizes = np.bincount(found.numbers[np.array(labels) == label], minlength=folds)
        assert sizes.max() - sizes.min() <= 1
    sizes = np.bincount(found.numbers, minlength=folds)
    assert sizes.max() - sizes.min() <= 1


@given(COUNTS, st.integers(0, 5))
def test_split_folds_have_each_class_in_all_three_parts(counts, seed):
    """A fifth of each class, and at least one image, is chosen on, and another fifth measured on."""
    ids, labels = named(counts)
    found = divide(ids, labels, 5, seed, crossed=False)
    ((stored, chosen_on),) = found.turns
    kept, measured_on = found.measured_on
    assert sorted([*stored, *chosen_on, *measured_on]) == list(range(len(ids)))
    assert sorted([*kept, *measured_on]) == list(range(len(ids)))
    for label, count in enumerate(counts):
        mine = [sum(labels[place] == label for place in part) for part in (chosen_on, measured_on, stored)]
        assert mine[0] == mine[1] == max(1, round(count / 5))
        assert mine[2] >= 1


@given(COUNTS, st.randoms(use_true_random=False), st.booleans())
def test_the_order_of_the_images_changes_nothing(counts, random, crossed):
    """An image is in the same fold wherever it comes."""
    ids, labels = named(counts)
    found = dict(zip(ids, divide(ids, labels, 5, 0, crossed).numbers.tolist(), strict=True))
    order = list(range(len(ids)))
    random.shuffle(order)
    moved = divide([ids[place] for place in order], [labels[place] for place in order], 5, 0, crossed)
    assert [found[ids[place]] for place in order] == moved.numbers.tolist()


@pytest.mark.parametrize("crossed", [True, False])
def test_another_seed_and_an_image_less_make_other_folds(crossed):
    """The seed and the contents of all images decide."""
    ids, labels = named([20, 20])
    drawn = divide(ids, labels, 5, 0, crossed).numbers
    others = [divide(ids, labels, 5, 1, crossed).numbers, divide(ids[1:], labels[1:], 5, 0, crossed).numbers]
    for other in others:
        assert np.mean(drawn[-len(other) :] == other) < 0.8


def test_draws_from_the_same_images_are_measured_on_all_of_them():
    """Of 200 images 20 draws of 100 measure 400, which are not the same fifth each time."""
    random, counted = np.random.default_rng(0), np.zeros(200, dtype=int)
    for _ in range(20):
        some = random.permutation(200)[:100]
        found = divide([f"image {place}" for place in some], [0] * 100, 5, 0, crossed=False)
        counted[some[found.measured_on[1]]] += 1
    assert counted.sum() == 400
    assert np.count_nonzero(counted) > 150


def test_of_very_many_images_ten_thousand_are_chosen_and_measured_on():
    """More would tell no more."""
    ids, labels = named([40_000, 60_000])
    found = divide(ids, labels, 5, 0, crossed=False)
    assert np.bincount(found.numbers).tolist() == [10_000, 10_000, 80_000]


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([], "no labeled images"),
        (["a"] * 5, "only one class, 'a'"),
        (["a"] * 3 + ["b"] * 2 + ["c"], "at least 3 different images.*'b' has 2, 'c' has 1"),
        ([str(number) for number in range(9)], "'4' has 1, …"),
    ],
)
def test_too_few_images_are_refused_with_what_is_missing(labels, told):
    """The error says how many each class needs, and which has fewer."""
    with pytest.raises(InvalidInputError, match=told):
        check_class_sizes(labels)
    check_class_sizes(["a", "b"] * 3)
