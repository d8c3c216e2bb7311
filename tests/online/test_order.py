"""What the order in which labelled images come decides, and what it does not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipretrieval import RetrievalClassifier
from clipretrieval.stores import MemoryStore

POINTS = [(float(x), float(y)) for x in range(3) for y in range(3)]
ASKED = np.array([(x / 2, y / 2) for x in range(-1, 6) for y in range(-1, 6)], dtype=np.float32)
WEIGHTS = ["uniform", "distance", "softmax"]
SETTINGS = [(k, weights) for k in (1, 3, 40) for weights in WEIGHTS]
pytestmark = [
    pytest.mark.filterwarnings("ignore:k=.* is more than"),
    pytest.mark.filterwarnings("ignore:there is only one class"),
]


def answers(classifier, settings=SETTINGS):
    """Return labels and shares for points that are often equally far from several."""
    found = []
    for k, weights in settings:
        classifier.set_params(k=k, weights=weights)
        found.append((classifier.predict(ASKED).tolist(), classifier.predict_proba(ASKED).round(9).tolist()))
    return found


def fitted(labelled):
    points, labels = zip(*labelled, strict=True)
    return RetrievalClassifier(store=MemoryStore()).fit(np.array(points, dtype=np.float32), list(labels))


@st.composite
def consistent(draw):
    """Points with repeats, each point with one label, in two orders."""
    label = {point: draw(st.sampled_from("abc")) for point in POINTS}
    points = draw(st.lists(st.sampled_from(POINTS), min_size=1, max_size=12))
    first = [(point, label[point]) for point in points]
    return first, draw(st.permutations(first))


@given(consistent())
def test_the_order_within_a_call_decides_nothing_where_equal_images_have_equal_labels(orders):
    """Whatever k and the weights, with images that repeat and points that are equally far from several."""
    first, second = map(fitted, orders)
    assert answers(first) == answers(second)


@given(st.permutations([(point, "abc"[place % 3]) for place, point in enumerate(POINTS)]), st.data())
def test_images_may_be_divided_into_calls_in_any_way(labelled, data):
    """Distinct images, added in any order and in parts of any size, answer as those of one fit."""
    parts = RetrievalClassifier(store=MemoryStore())
    rest = labelled
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        points, labels = zip(*rest[:size], strict=True)
        parts.partial_fit(np.array(points, dtype=np.float32), list(labels))
        rest = rest[size:]
    assert answers(parts) == answers(fitted(sorted(labelled)))


@pytest.mark.filterwarnings("ignore:.*stored under several labels:clipretrieval.ClipRetrievalWarning")
@given(
    st.lists(st.tuples(st.sampled_from(POINTS), st.sampled_from("abc")), min_size=1, max_size=10), st.data()
)
def test_under_several_labels_the_order_decides_only_who_of_the_equal_ones_votes(labelled, data):
    """Where all the equal images vote, in whatever order they came, the answers are the same."""
    shuffled = data.draw(st.permutations(labelled))
    everything = [(len(labelled), weights) for weights in WEIGHTS]
    assert answers(fitted(labelled), everything) == answers(fitted(shuffled), everything)


@pytest.mark.filterwarnings("ignore:.*stored under several labels:clipretrieval.ClipRetrievalWarning")
@given(st.permutations("abc"))
def test_of_equal_images_the_first_answers_alone(labels):
    """At k=1 one of the equal images votes: the first of the call. A later call corrects that one's label."""
    classifier = fitted([((1.0, 1.0), label) for label in labels])
    assert classifier.predict([[1.0, 1.0]]).tolist() == [labels[0]]
    assert classifier.set_params(k=3).predict([[1.0, 1.0]]).tolist() == ["a"]
    classifier.set_params(k=1).partial_fit([[1.0, 1.0]], ["z"])
    assert classifier.predict([[1.0, 1.0]]).tolist() == ["z"]


def test_a_repeat_counts_as_often_as_the_call_with_most_of_it_has_it():
    """Adding what is there changes nothing, so calls are not added up."""
    classifier = RetrievalClassifier(store=MemoryStore())
    for times in (1, 3, 2):
        classifier.partial_fit([[1.0, 1.0]] * times, ["a"] * times)
    assert classifier.store_.count() == 3
