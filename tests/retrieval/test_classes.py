"""The classes of an index: what a change makes of them is what a fresh start would."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipretrieval import RetrievalClassifier
from clipretrieval._util.labels import class_array
from clipretrieval.errors import InvalidInputError, StoreCorruptedError
from clipretrieval.retrieval.classes import Classes
from clipretrieval.stores import FaissStore, MemoryStore
from clipretrieval.stores.base import view_manifest
from clipretrieval.stores.checks import json_text
from clipretrieval.stores.local.manifest_view import LONG, ManifestView

TEXTS = st.text("aé猫 ", max_size=4) | st.sampled_from(["", "b" * 256, "b" * 257, "0", "1"])
LABELS = {
    "str": TEXTS,
    "int": st.integers(-5, 5) | st.sampled_from([2**63 - 1, -(2**63)]),
    "float": st.integers(-5, 5) | st.just(2**53 - 1),
    "bool": st.integers(0, 1),
}


def same(found: Any, right: Any) -> None:
    assert found.dtype == right.dtype
    assert found.tolist() == right.tolist()


@pytest.mark.parametrize("kind", LABELS)
@given(data=st.data())
def test_changes_make_what_a_fresh_start_would(kind: str, data: st.DataObject) -> None:
    """Labels, with their type and width, and places are those of the set that is left."""
    several = st.sets(LABELS[kind], max_size=6)
    left: set[Any] = data.draw(several)
    classes = Classes(left, kind)
    for _ in range(4):
        add, remove = data.draw(several), data.draw(several)
        before, left_before = classes, left
        left = (left | add) - remove
        classes = classes.changed(add, remove)
        same(classes.labels, class_array(left, kind))
        assert (classes is before) == (left == left_before)
        assert before.changed(add, remove) is classes
        same(before.labels, class_array(left_before, kind))
        assert [*classes] == classes.stored() == sorted(left)
        asked = [*left, *data.draw(several), *data.draw(st.lists(TEXTS | st.integers(-9, 9), max_size=4))]
        right = {label: place for place, label in enumerate(sorted(left))}
        assert classes.places(asked) == [right.get(label, -1) for label in asked]
        assert dict(classes.codes) == right
        assert [label in classes for label in asked] == [label in right for label in asked]
        assert len(classes) == len(left)


@given(st.sets(TEXTS, max_size=5), st.sets(TEXTS, max_size=5))
def test_a_manifest_is_compared_by_what_it_lists(known: set[str], listed: set[str]) -> None:
    """The same object serves where just these classes are listed, and is asked whether all are known."""
    classes = Classes(known, "str")
    manifest = {"label_kind": "str", "classes": sorted(listed)}
    for _ in range(2):  # the second time it is remembered
        assert classes.lists_all(manifest) == (listed <= known)
        assert classes.is_listed_by(manifest) == (listed == known)
        found = classes.listed_by(manifest)
        assert (found is classes) == (listed == known)
        same(found.labels, class_array(listed, "str"))
    assert classes.listed_by({**manifest, "classes": [*known]}) is classes
    with pytest.raises(StoreCorruptedError):
        classes.lists_all({**manifest, "classes": [*sorted(known), 1]})


def test_numbers_of_another_size_or_type_are_no_classes() -> None:
    """What would be rounded, cut off or taken for another number is told from the classes."""
    assert Classes([2**53], "float").places([2**53 + 1, "1"]) == [-1, -1]
    assert Classes([0, 1], "bool").places([2, 1, 0]) == [-1, 1, 0]
    assert Classes(["ab"], "str").places(["abc", "ab\0", "a", 1, "ab"]) == [-1, -1, -1, -1, 0]
    assert Classes([], "str").places(["", "a"]) == [-1, -1]
    assert 1.5 not in Classes([1], "int")


def test_classes_are_copied_without_what_they_remember() -> None:
    """A pickle of classes has their labels alone, and finds the same places."""
    classes = Classes(["a", "c"], "str")
    classes.lists_all({"classes": ["a"]})
    assert classes.places(["c"]) == [1]
    for copied in (pickle.loads(pickle.dumps(classes)), copy.deepcopy(classes)):
        assert vars(copied).keys() >= {"labels", "kind"}
        assert copied.places(["c", "b"]) == [1, -1]
        assert not copied.is_listed_by({"classes": ["a", "c"]})


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text('a"é{', max_size=3), st.lists, max_leaves=5
)


@given(st.data())
def test_a_manifest_is_written_as_if_it_were_encoded_anew(data: st.DataObject) -> None:
    """Text and parts are together what was given; a long value that was taken over stays the same object."""
    drawn = st.dictionaries(st.text('a"é:', max_size=2), VALUES, max_size=4)
    long = [f"{place}é" for place in range(2000)]
    manifest: Any = {**data.draw(drawn), "long": long, "short": [1]}
    view = ManifestView.written(manifest, ManifestView())
    for _ in range(3):
        manifest = {**view.content, **data.draw(drawn)}
        if data.draw(st.booleans()):
            manifest["é:"] = list(range(data.draw(st.integers(0, 5000))))
        after = ManifestView.written(manifest, view)
        assert list(after.copy().items()) == list(after.content.items()) == list(manifest.items())
        assert after.size == len(json_text(manifest, "it"))
        assert all(len(json_text({key: manifest[key]}, "it")) > LONG for key in after.parts)
        assert len(after.text) < LONG
        assert after.says_what(ManifestView.written(json.loads(json.dumps(manifest)), ManifestView()))
        assert after.says_what(view) == (list(manifest.items()) == list(view.content.items()))
        for key, part in view.parts.items():
            if manifest[key] is view.content[key]:
                assert after.content[key] is manifest[key]
                assert after.parts[key] is part
        view = after


@pytest.mark.parametrize("wrong", [{1: 2}, {"a": {1}}, {"a": float("nan")}, {"a": (1,)}, [1]], ids=repr)
def test_a_manifest_of_other_values_is_refused(wrong: Any) -> None:
    """What would not come back from JSON is refused, beside a long list too; nothing is changed."""
    store = MemoryStore()
    store.write_manifest({"long": list(range(100))})
    for manifest in (wrong, {**view_manifest(store), **wrong} if isinstance(wrong, dict) else wrong):
        with pytest.raises(InvalidInputError, match="the manifest"):
            store.write_manifest(manifest)
    assert store.read_manifest() == {"long": list(range(100))}


@pytest.mark.parametrize("make", [MemoryStore, FaissStore])
def test_a_change_leaves_the_classes_that_it_does_not_name(make: Any) -> None:
    """Of 300 long classes, a change of a few leaves the manifest's list and the classes as they were."""
    rows = np.arange(600, dtype=np.float32)[:, None]
    labels = [f"class {place // 2:03}".ljust(60, ".") for place in range(600)]
    longest = "class 1000".ljust(61, ".")
    classifier = RetrievalClassifier(store=make()).fit(rows, labels)
    classifier.predict(rows[:1])
    listed, classes = view_manifest(classifier.store_)["classes"], classifier.retriever_.index.classes
    classifier.partial_fit([[0.25]], labels[:1])
    classifier.forget(classifier.kneighbors([[0.25]], 1).ids[0])
    classifier.relabel(classifier.kneighbors([[0.0]], 1).ids[0].tolist(), [labels[5]])
    assert classifier.predict([[0.0]]).tolist() == labels[5:6]
    assert view_manifest(classifier.store_)["classes"] is listed
    assert classifier.retriever_.index.classes is classes
    classifier.forget(label=labels[-1])
    classifier.partial_fit([[9999.0]], [longest])
    assert classifier.classes_.tolist() == sorted({*labels[:-2], longest})
    assert classifier.classes_.dtype == np.dtype("<U61")
    assert view_manifest(classifier.store_)["classes"] == classifier.classes_.tolist()
    assert classifier.predict([[9999.0]]).tolist() == [longest]
