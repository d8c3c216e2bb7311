"""What the order and the number of calls in which labelled images come decide, and what they do not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipretrieval import RetrievalClassifier
from clipretrieval.stores import FaissStore, MemoryStore

POINTS = [(float(x), float(y)) for x in range(3) for y in range(3)]
ASKED = np.array([(x / 2, y / 2) for x in range(-1, 6) for y in range(-1, 6)], dtype=np.float32)
WEIGHTS = ["uniform", "distance", "softmax"]
SETTINGS = [(k, weights) for k in (1, 3, 40) for weights in WEIGHTS]
pytestmark = [
    pytest.mark.filterwarnings("ignore:k=.* is more than"),
    pytest.mark.filterwarnings("ignore:there is only one class"),
]
STORES = pytest.mark.parametrize("store", [MemoryStore, FaissStore])
SEVERAL = pytest.mark.filterwarnings("ignore:.*given under several labels:clipretrieval.ClipRetrievalWarning")
LABELLED = st.lists(st.tuples(st.sampled_from(POINTS), st.sampled_from("abc")), min_size=1, max_size=10)


def answers(classifier):
    """Return labels and shares for points that are often equally far from several."""
    found = []
    for k, weights in SETTINGS if isinstance(classifier.store_, MemoryStore) else SETTINGS[::4]:
        classifier.set_params(k=k, weights=weights)
        found.append((classifier.predict(ASKED).tolist(), classifier.predict_proba(ASKED).round(9).tolist()))
    return found


def add(classifier, labelled, classes=None):
    points, labels = zip(*labelled, strict=True)
    return classifier.partial_fit(np.array(points, dtype=np.float32), list(labels), classes=classes)


def fitted(labelled, store=MemoryStore):
    points, labels = zip(*labelled, strict=True)
    return RetrievalClassifier(store=store()).fit(np.array(points, dtype=np.float32), list(labels))


def divided(labelled, data, store):
    """Add images in order, in parts of any size."""
    classifier = RetrievalClassifier(store=store())
    rest = list(labelled)
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        add(classifier, rest[:size])
        rest = rest[size:]
    return classifier


@st.composite
def consistent(draw):
    """Points with repeats, each point with one label, in two orders."""
    label = {point: draw(st.sampled_from("abc")) for point in POINTS}
    points = draw(st.lists(st.sampled_from(POINTS), min_size=1, max_size=12))
    first = [(point, label[point]) for point in points]
    return first, draw(st.permutations(first))


@STORES
@settings(max_examples=40)
@given(orders=consistent(), data=st.data())
def test_order_and_calls_decide_nothing_where_equal_images_have_equal_labels(store, orders, data):
    """Whatever k and the weights, with images that repeat and points that are equally far from several."""
    first, second = orders
    expected = answers(fitted(first, store))
    assert answers(fitted(second, store)) == expected
    assert answers(divided(second, data, store)) == expected


@SEVERAL
@STORES
@settings(max_examples=40)
@given(labelled=LABELLED, data=st.data())
def test_of_several_labels_the_last_counts_in_one_call_as_in_several(store, labelled, data):
    """An image answers as if it had come once with its last label, and the counts of calls add up."""
    once = fitted(labelled, store)
    parts = divided(labelled, data, store)
    single = RetrievalClassifier(store=store())
    counted = np.zeros(3, dtype=int)
    for each in labelled:
        report = add(single, [each]).fit_report_
        counted += report.new, report.already_there, report.relabelled
    report = once.fit_report_
    assert counted.tolist() == [report.new, report.already_there, report.relabelled]
    assert report.images == len(labelled)
    assert report.new == once.store_.count() == len({point for point, _ in labelled})
    classes = sorted({label for _, label in labelled})
    last = add(RetrievalClassifier(store=store()), list(dict(labelled).items())[::-1], classes)
    assert answers(once) == answers(parts) == answers(single) == answers(last)
    several = {point for point in dict(labelled) if len({label for p, label in labelled if p == point}) > 1}
    assert report.n_conflicts == len(several)


@SEVERAL
@STORES
@settings(max_examples=40)
@given(labelled=LABELLED, more=LABELLED)
def test_resume_and_overwrite_mean_the_same_by_repeats(store, labelled, more):
    """Going on in a filled store ends as one fit of both; replacing what it holds ends as the second."""
    both = fitted(labelled + more, store)
    points, labels = zip(*more, strict=True)
    points = np.array(points, dtype=np.float32)
    assert answers(fitted(labelled, store).fit(points, labels, resume=True)) == answers(both)
    assert answers(both.fit(points, labels, overwrite=True)) == answers(fitted(more, store))


@STORES
def test_repeats_weigh_the_same_in_one_call_and_in_several(store):
    """Two equal vectors and two near each other: three neighbours answer the same, however they came."""
    labelled = list(zip([(0.0,), (0.0,), (1.0,), (1.1,)], "aabb", strict=True))
    once = fitted(labelled, store).set_params(k=3)
    parts = add(fitted(labelled[:1], store), labelled[1:]).set_params(k=3)
    for classifier in (once, parts):
        assert classifier.predict([[0.4]]).tolist() == ["b"]
        np.testing.assert_allclose(classifier.predict_proba([[0.4]]), [[1 / 3, 2 / 3]])


@SEVERAL
@STORES
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_many_repeats_in_one_call_in_calls_of_any_size_and_shuffled(store, noise):
    """Six hundred binary rows, less than 200 of them distinct: predictions and shares are equal."""
    rng = np.random.default_rng(1)
    rows = (rng.random((600, 12)) < rng.choice([0.03, 0.12, 0.5], 12)).astype(np.float32)
    labels = ((rows @ np.arange(12)) % 5 + (rng.random(600) < noise)).astype(int)
    asked = (rng.random((200, 12)) < 0.3).astype(np.float32)
    distinct = len(np.unique(rows, axis=0))
    assert 100 < distinct < 200

    def told(classifier):
        assert classifier.store_.count() == distinct
        found = []
        for k, weights in ((1, "uniform"), (5, "uniform"), (20, "softmax")):
            classifier.set_params(k=k, weights=weights)
            found += [classifier.predict(asked).tolist(), classifier.predict_proba(asked).tolist()]
        return found

    expected = told(RetrievalClassifier(store=store()).fit(rows, labels))
    for size in (1, 100) if noise else (7, 100):  # one by one where the order of labels counts
        parts = RetrievalClassifier(store=store())
        for start in range(0, len(rows), size):
            parts.partial_fit(rows[start : start + size], labels[start : start + size])
        assert told(parts) == expected
    for _ in range(0 if noise else 2):  # of contradictory labels the last one counts
        order = rng.permutation(len(rows))
        assert told(RetrievalClassifier(store=store()).fit(rows[order], labels[order])) == expected
