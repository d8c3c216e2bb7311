"""Class statistics, against loops in float64, fresh starts, and bytes that were tampered with."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipretrieval import DimensionMismatchError, InvalidInputError, StoreCorruptedError
from clipretrieval.heads.features import RandomFeatures
from clipretrieval.heads.statistics import ClassStatistics, Moments

KINDS = [Moments(), Moments(per_class=True), Moments(features=RandomFeatures(5, seed=1))]


def some(n=30, dim=4, seed=0, classes="bca"):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, dim)).astype(np.float32) * np.float32(3) + np.float32(1)
    return rows, [classes[number] for number in rng.integers(0, len(classes), n)]


def loop(vectors, labels):
    """Sum up one vector at a time, in exact order; return classes, counts, sums and moments by class."""
    found = {}
    for vector, label in zip(vectors.astype(np.float64), labels, strict=True):
        count, total, moment = found.get(label, (0, 0.0, 0.0))
        found[label] = count + 1, total + vector, moment + np.outer(vector, vector)
    return dict(sorted(found.items()))


def assert_equal(found, vectors, labels, rtol=1e-9):
    """Compare with a loop, relative to the lengths of what was summed up."""
    right = loop(vectors, labels)
    assert found.classes == list(right)
    assert found.count == len(labels)
    assert found.counts.tolist() == [count for count, _, _ in right.values()]
    lengths = dict.fromkeys(right, 0.0)
    for vector, label in zip(vectors, labels, strict=True):
        lengths[label] += np.linalg.norm(vector.astype(np.float64))
    for place, (label, (count, total, moment)) in enumerate(right.items()):
        assert np.linalg.norm(found.sums[place] - total) <= rtol * lengths[label]
        assert np.linalg.norm(found.means[place] * count - total) <= 2 * rtol * lengths[label]
        if found.per_class:
            assert np.linalg.norm(found.class_moment(label) - moment) <= rtol * np.trace(moment)
    pooled = sum(moment for _, _, moment in right.values()) if right else np.zeros((found.dim, found.dim))
    assert np.linalg.norm(found.second_moment - pooled) <= rtol * np.trace(pooled)
    assert abs(found.trace - np.trace(pooled)) <= rtol * np.trace(pooled)


@pytest.mark.parametrize("moments", KINDS, ids=lambda each: each.name)
def test_values_are_those_of_a_loop(moments):
    """Counts, sums, means and moments, of more vectors than are multiplied together."""
    vectors, labels = some(n=9000)
    found = moments.empty(4)
    found.add(moments.of(vectors), labels)
    assert_equal(found, np.asarray(moments.of(vectors)), labels, rtol=1e-12)
    assert 0 < found.drift < 1e-11


def test_the_scatter_is_that_within_the_classes():
    """By the definition, class by class."""
    vectors, labels = some(n=200)
    found = ClassStatistics(4)
    found.add(vectors, labels)
    right = np.zeros((4, 4))
    for label in set(labels):
        rows = vectors[[each == label for each in labels]].astype(np.float64)
        right += (rows - rows.mean(0)).T @ (rows - rows.mean(0))
    np.testing.assert_allclose(found.within_scatter, right, rtol=1e-12)


@pytest.mark.parametrize("moments", KINDS, ids=lambda each: each.name)
@given(data=st.data())
@settings(max_examples=60)
def test_any_sequence_of_changes_equals_a_fresh_start(moments, data):
    """Adding, removing and moving, in any order: to 1e-9, and within the bound that is tracked."""
    vectors, _ = some(n=24, seed=5)
    scales = data.draw(st.sampled_from([[1.0], [1e6, 1e-6], [1e3, 1.0, 1e-3]]))
    vectors *= np.resize(np.float32(scales), 24)[:, None]
    mapped = moments.of(vectors)
    found, held = moments.empty(4), {}
    for _ in range(data.draw(st.integers(1, 12))):
        kind = data.draw(st.sampled_from(["add", "remove", "move", "copy", "bytes"]))
        rows = data.draw(st.lists(st.integers(0, 23), unique=True, max_size=8))
        label = st.sampled_from("abc")
        if kind == "add":
            rows = [row for row in rows if row not in held]
            labels = [data.draw(label) for _ in rows]
            found.add(mapped[rows], labels)
            held.update(zip(rows, labels, strict=True))
        elif kind == "remove":
            rows = [row for row in rows if row in held]
            found.remove(mapped[rows], [held.pop(row) for row in rows])
        elif kind == "move":
            rows = [row for row in rows if row in held]
            after = [data.draw(label) for _ in rows]
            found.move(mapped[rows], [held[row] for row in rows], after)
            held.update(zip(rows, after, strict=True))
        else:
            found = found.copy() if kind == "copy" else ClassStatistics.from_bytes(found.to_bytes())
    kept = sorted(held)
    drift = found.drift
    if drift < 1:
        assert_equal(found, np.asarray(mapped)[kept], [held[row] for row in kept], rtol=drift)
    if scales == [1.0]:
        assert drift < 1e-12
    fresh = moments.empty(4)
    fresh.add(np.asarray(mapped)[kept], [held[row] for row in kept])
    assert fresh.drift < 1e-13
    assert found.classes == fresh.classes
    assert found.counts.tolist() == fresh.counts.tolist()


@pytest.mark.parametrize("moments", KINDS[:2], ids=lambda each: each.name)
def test_the_drift_tells_when_small_vectors_are_left_of_large_ones(moments):
    """What 1e6 leaves behind in sums of 1e-6 is more than what is left, and is said to be."""
    small, large = np.full((3, 2), 1e-6, np.float32), np.full((3, 2), 1e6, np.float32)
    found = moments.empty(2)
    found.add(small, [1, 1, 2])
    found.add(large, [1, 1, 1])
    assert found.drift < 1e-14
    found.remove(large, [1, 1, 1])
    assert found.drift > 1e-9
    found = moments.empty(2)
    found.add(np.concatenate([small[:2], large]), [1, 1, 2, 2, 2])  # of one class only, beside large others
    found.add(large, [1, 1, 1])
    found.remove(large, [1, 1, 1])
    assert found.drift > 1e-9, "the sum of a class has drifted, however large the others are"


@pytest.mark.parametrize("moments", KINDS[:2], ids=lambda each: each.name)
def test_classes_that_come_and_go_leave_nothing_behind(moments):
    """Not a thousand rows after a thousand names, nor the rounding of what went."""
    found, row = moments.empty(3), np.float32([[0.1, 0.2, 0.3]])
    for number in range(1000):
        found.add(row * np.float32(number), [f"class {number}"])
        found.remove(row * np.float32(number), [f"class {number}"])
    assert len(found._counts) <= 2
    assert (found.classes, found.count, found.drift) == ([], 0, 0.0)
    assert not found.second_moment.any()
    found.add(row, ["x"])
    assert found.sums.tolist() == row.astype(np.float64).tolist()


def test_many_single_changes_stay_exact():
    """20,000 vectors that come and go one by one: still far below the bound at which all is read anew."""
    vectors, labels = some(n=50)
    found = ClassStatistics(4)
    found.add(vectors, labels)
    for number in range(10_000):
        row = number % 50
        found.move(vectors[row : row + 1], labels[row : row + 1], labels[row : row + 1])
    assert_equal(found, vectors, labels)
    assert found.drift < 2.5e-10


def test_wrong_shapes_and_too_many_are_refused_and_change_nothing():
    """Labels of another number, vectors of another dimension, more removed than there are."""
    vectors, labels = some(n=6)
    found = ClassStatistics(4)
    found.add(vectors, labels)
    before = found.to_bytes()
    for wrong in (vectors[:, :3], vectors[:5], vectors[0]):
        with pytest.raises(DimensionMismatchError, match="labels and vectors of shape"):
            found.add(wrong, labels)
    with pytest.raises(InvalidInputError, match="cannot be taken out"):
        found.remove(np.repeat(vectors[:1], 7, axis=0), ["a"] * 7)
    with pytest.raises(InvalidInputError, match="'new' has 0 vectors"):
        found.remove(vectors[:1], ["new"])
    found.add(vectors[:0], [])
    assert found.to_bytes() == before
    with pytest.raises(ValueError, match="per_class"):
        found.class_moment("a")


@pytest.mark.parametrize("moments", KINDS, ids=lambda each: each.name)
@pytest.mark.parametrize(
    "classes", ["bca", [3, -(2**63), 2**63 - 1], ["猫", "a\nb", ""]], ids=["a", "int", "odd"]
)
def test_bytes_bring_all_of_it_back(moments, classes):
    """Values, drift and what comes later are the same."""
    vectors, labels = some(classes=classes)
    found = moments.empty(4)
    found.add(moments.of(vectors), labels)
    back = ClassStatistics.from_bytes(found.to_bytes())
    assert back.to_bytes() == found.to_bytes()
    assert (back.classes, back.drift, back.per_class) == (found.classes, found.drift, found.per_class)
    np.testing.assert_array_equal(back.second_moment, found.second_moment)
    for each in (found, back):
        each.remove(moments.of(vectors[:9]), labels[:9])
    np.testing.assert_allclose(back.within_scatter, found.within_scatter, rtol=1e-12)
    empty = ClassStatistics.from_bytes(moments.empty(4).to_bytes())
    assert (empty.count, empty.classes) == (0, [])


def test_every_truncation_is_noticed():
    """However many bytes are missing, or too many."""
    vectors, labels = some()
    found = ClassStatistics(4, per_class=True)
    found.add(vectors, labels)
    content = found.to_bytes()
    for end in range(len(content)):
        with pytest.raises(StoreCorruptedError, match="damaged"):
            ClassStatistics.from_bytes(content[:end])
    with pytest.raises(StoreCorruptedError, match="damaged"):
        ClassStatistics.from_bytes(content + b"\0")


HEADS = {
    "another format": {"format": "x"},
    "another version": {"format_version": 2},
    "a huge dimension": {"dim": 2**40},
    "a large dimension": {"dim": 2**20},
    "a negative dimension": {"dim": -1},
    "a dimension that is none": {"dim": "4"},
    "a dimension of truth": {"dim": True},
    "no dimension": {"dim": None},
    "a number for truth": {"per_class": 0},
    "the other kind": {"per_class": True},
    "no classes": {"classes": []},
    "classes that are none": {"classes": 3},
    "a mapping of classes": {"classes": {"a": 1}},
    "mixed classes": {"classes": ["a", 1, 2]},
    "classes of truth": {"classes": [False, True, 2]},
    "classes twice": {"classes": ["a", "a", "b"]},
    "classes in disorder": {"classes": ["b", "a", "c"]},
    "too large a label": {"classes": [1, 2, 2**63]},
    "many classes": {"classes": list(range(100_000))},
    "deep classes": {"classes": [[["a"]], ["b"], ["c"]]},
}


@pytest.mark.parametrize("wrong", HEADS.values(), ids=HEADS)
def test_hostile_headers_are_refused_without_asking_for_memory(wrong):
    """Whatever the first line claims."""
    vectors, labels = some()
    found = ClassStatistics(4)
    found.add(vectors, labels)
    line, _, rest = found.to_bytes().partition(b"\n")
    content = json.dumps({**json.loads(line), **wrong}).encode() + b"\n" + rest
    tracemalloc.start()
    try:
        with pytest.raises(StoreCorruptedError, match="damaged"):
            ClassStatistics.from_bytes(content)
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()


OTHER = [b"", b"\n", b"{}\n", b"[]\n", b"null\n", b"[" * 100_000 + b"\n", b"\xff\n", b"PK\x03\x04", b"{" * 9]


@pytest.mark.parametrize("content", OTHER, ids=range(len(OTHER)))
def test_other_bytes_are_refused(content):
    """Empty ones, other JSON, deep JSON, an archive."""
    with pytest.raises(StoreCorruptedError, match="damaged"):
        ClassStatistics.from_bytes(content)


@pytest.mark.parametrize(("place", "value"), [(0, 0), (0, 2**63), (-1, 0x7FF8 << 48), (-2, 0x7FF0 << 48)])
def test_numbers_that_cannot_be_are_refused(place, value):
    """No count of zero or less, no NaN, no infinity."""
    vectors, labels = some()
    found = ClassStatistics(4)
    found.add(vectors, labels)
    line, _, rest = found.to_bytes().partition(b"\n")
    numbers = np.frombuffer(rest, "<u8").copy()
    numbers[place] = value
    with pytest.raises(StoreCorruptedError, match="damaged"):
        ClassStatistics.from_bytes(line + b"\n" + numbers.tobytes())
