"""forget and relabel."""

from __future__ import annotations

import numpy as np
import pytest
from colours import colour, pairs
from PIL import Image

from clipretrieval import (
    ClipRetrievalWarning,
    InvalidInputError,
    NotFittedError,
    RetrievalClassifier,
    StoreError,
)
from clipretrieval.stores import FaissStore, MemoryStore

QUESTIONS = [colour(number) for number in range(3, 256, 5)]


def answers(classifier):
    near = classifier.kneighbors(QUESTIONS, 5)
    return near.ids.tolist(), near.distances.tolist(), classifier.predict(QUESTIONS).tolist()


@pytest.fixture
def classifier(encoder, any_store):
    """Four classes of 64 colours each."""
    return RetrievalClassifier(encoder, any_store, k=3).fit(*pairs(range(256)))


def test_a_class_is_forgotten_and_learned_again(classifier, any_store):
    """Gone it is from classes and answers; added again, everything is as before."""
    before = answers(classifier)
    report = classifier.forget(label="shade 1")
    assert (len(report), report.searched, report.remaining) == (64, 64, 192)
    assert report.classes.tolist() == ["shade 1"]
    assert classifier.classes_.tolist() == ["shade 0", "shade 2", "shade 3"]
    assert any_store.read_manifest()["classes"] == ["shade 0", "shade 2", "shade 3"]
    assert len(any_store.get(list(report.ids))) == 0
    near = classifier.kneighbors(QUESTIONS, 192)
    assert not set(near.ids.ravel().tolist()) & set(report.ids)
    assert "shade 1" not in classifier.predict(QUESTIONS)
    assert classifier.predict_proba(QUESTIONS).shape == (len(QUESTIONS), 3)
    classifier.partial_fit(*pairs(range(64, 128)))
    assert answers(classifier) == before
    assert classifier.classes_.tolist() == [f"shade {n}" for n in range(4)]


def test_ids_are_forgotten_and_their_class_with_the_last(classifier):
    """An id alone will do; ids twice count once; the class goes when nothing of it is left."""
    ids = classifier.kneighbors([colour(100)], 1).ids[0]
    report = classifier.forget(ids[0])
    assert (report.ids, report.classes.tolist(), report.remaining) == ((ids[0],), [], 255)
    assert ids[0] not in classifier.kneighbors([colour(100)], 255).ids
    shade = {
        name: label
        for names, labels in [(n.ids[0], n.labels[0]) for n in [classifier.kneighbors([colour(0)], 255)]]
        for name, label in zip(names, labels, strict=True)
    }
    rest = [name for name, label in shade.items() if label == "shade 3"]
    report = classifier.forget(np.array([*rest, *rest]))
    assert report.classes.tolist() == ["shade 3"]
    assert "no image is left of 'shade 3'" in str(report)
    assert classifier.classes_.tolist() == ["shade 0", "shade 1", "shade 2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"ids": ["nobody", "nothing"]},
            r"no image with the id 'nobody', 'nothing' \(2 of 2 ids are unknown\)",
        ),
        ({"ids": []}, "there are no ids"),
        ({"ids": [""]}, "an id must be a str that is not empty"),
        ({"ids": [7]}, r"ids must be str; ids\[0\] is 7"),
        ({"ids": 7}, "must be a sequence of str"),
        ({"label": "shade 9"}, r"no image labeled 'shade 9'.*its classes are 'shade 0', 'shade 1'"),
        ({"label": 1}, "of the type int, but the classifier was fitted on str"),
        ({}, "either ids or label"),
        ({"ids": ["a"], "label": "shade 1"}, "either ids or label"),
    ],
)
def test_what_cannot_be_forgotten_changes_nothing(classifier, any_store, arguments, message):
    before = answers(classifier)
    with pytest.raises(InvalidInputError, match=message):
        classifier.forget(**arguments)
    assert answers(classifier) == before
    assert any_store.count() == 256


def test_one_unknown_id_keeps_all(classifier, any_store):
    """Nothing is forgotten by half."""
    known = classifier.kneighbors([colour(100)], 3).ids[0].tolist()
    with pytest.raises(InvalidInputError, match=r"'nobody'.*1 of 4 ids are unknown"):
        classifier.forget([*known, "nobody"])
    assert len(any_store.get(known)) == 3


def test_what_is_near_an_unknown_label_is_named():
    """Of many classes, those that are spelled alike; a single unknown id is not counted."""
    labels = [f"class {place:02}" for place in range(40)]
    classifier = RetrievalClassifier(store="memory").fit(np.arange(40.0)[:, None], labels)
    with pytest.raises(InvalidInputError, match=r"of its 40 classes these are near it: .*'class 07'"):
        classifier.forget(label="clas 07")
    with pytest.raises(InvalidInputError, match=r"no image with the id 'nobody'; nothing was changed"):
        classifier.forget("nobody")


def test_a_label_is_gone_only_once(classifier):
    """Forgetting what nothing is left of is a mistake, and named."""
    classifier.forget(label="shade 1")
    with pytest.raises(InvalidInputError, match="no image labeled 'shade 1', so there is nothing to forget"):
        classifier.forget(label="shade 1")


def test_everything_may_be_forgotten_and_learned_anew(classifier):
    """An empty classifier says so; its store takes new images."""
    for label in [f"shade {n}" for n in range(4)]:
        classifier.forget(label=label)
    with pytest.raises(NotFittedError, match="no vectors any more"):
        classifier.predict(QUESTIONS)
    classifier.partial_fit([colour(1), colour(70)], ["a", "b"])
    with pytest.warns(ClipRetrievalWarning, match="k=3 is more"):
        assert classifier.predict([colour(71)]).tolist() == ["b"]
    assert classifier.classes_.tolist() == ["a", "b"]


def test_equal_vectors_of_many_pictures_are_all_forgotten(encoder, any_store):
    """More than are looked at as neighbours: the search for what is gone still tells them apart."""
    images = [Image.new("RGB", (8 + size, 8), (0, 65, 40)) for size in range(21)]
    classifier = RetrievalClassifier(encoder, any_store).fit(*pairs(range(60, 65)))
    classifier.partial_fit(images, ["shade 1"] * 21)
    ids = classifier.kneighbors([colour(65)], 21).ids[0].tolist()
    assert classifier.forget(ids[:15]).remaining == 11
    assert sorted(classifier.kneighbors([colour(65)], 6).ids[0].tolist()) == sorted(ids[15:])


def test_a_picture_that_came_often_is_forgotten_at_once(encoder, any_store):
    """It is one record, so that nothing of it is left under another id."""
    images, labels = pairs([*range(60, 70), *[65] * 20])
    classifier = RetrievalClassifier(encoder, any_store).fit(images, labels)
    name = classifier.kneighbors([colour(65)]).ids[0, 0]
    assert classifier.forget(name).remaining == 9
    assert classifier.kneighbors([colour(65)]).distances[0, 0] > 0


def test_a_store_that_only_says_that_it_deletes_is_found_out(encoder):
    """By id, or by search: what is still there is an error, not a report."""

    class Deaf(MemoryStore):
        def delete(self, ids):
            return len(ids)

    class Haunted(MemoryStore):
        """Its records are gone by id, but its index still finds them."""

        def __init__(self):
            super().__init__()
            self.hidden = set()

        def delete(self, ids):
            self.hidden |= set(ids)
            return len(ids)

        def get(self, ids):
            return super().get([name for name in ids if name not in self.hidden])

    for store in (Deaf(), Haunted()):
        classifier = RetrievalClassifier(encoder, store).fit(*pairs(range(60, 70)))
        with pytest.raises(StoreError, match=r"delete left \d+ of 6 records behind"):
            classifier.forget(label="shade 1")


def test_relabel_corrects_and_keeps_the_rest(classifier, any_store):
    """Vectors, files and other labels stay; classes follow."""
    ids = classifier.kneighbors([colour(100)], 3).ids[0].tolist()
    before = any_store.get(ids)
    assert classifier.relabel(ids, ["new", "shade 1", "shade 2"]) == 2
    after = any_store.get(ids)
    assert after.labels.tolist() == ["new", "shade 1", "shade 2"]
    np.testing.assert_array_equal(after.vectors, before.vectors)
    assert after.metadata == before.metadata
    assert classifier.classes_.tolist() == ["new", *(f"shade {n}" for n in range(4))]
    assert classifier.relabel(ids[0], "shade 1") == 1
    assert classifier.classes_.tolist() == [f"shade {n}" for n in range(4)]
    assert any_store.count() == 256


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a"], "3 ids and 1 labels"),
        ([1, 2, 3], "of the type int, but the classifier was fitted on str"),
        (["a", 1, "b"], "of one type"),
        ([None] * 3, "no label"),
        (7, "labels is of the type int"),
    ],
)
def test_labels_that_do_not_fit_change_nothing(classifier, any_store, labels, message):
    ids = classifier.kneighbors([colour(100)], 3).ids[0].tolist()
    with pytest.raises(InvalidInputError, match=message):
        classifier.relabel(ids, labels)
    with pytest.raises(InvalidInputError, match="'nobody'"):
        classifier.relabel([*ids, "nobody"], ["x"] * 4)
    assert any_store.get(ids).labels.tolist() == ["shade 1"] * 3
    assert any_store.read_manifest()["classes"] == [f"shade {n}" for n in range(4)]


def test_changes_are_durable_when_the_call_returns(encoder, tmp_path):
    """Another store on the folder sees what was forgotten and corrected, before anything is closed."""
    with FaissStore(tmp_path / "index") as store:
        classifier = RetrievalClassifier(encoder, store, k=1).fit(*pairs(range(256)))
        gone = classifier.forget(label="shade 3").ids
        name = classifier.kneighbors([colour(5)]).ids[0, 0]
        classifier.relabel(name, "odd")
        with FaissStore(tmp_path / "index", read_only=True) as seen:
            assert len(seen.get(list(gone))) == 0
            assert seen.get([name]).labels.tolist() == ["odd"]
            assert seen.read_manifest()["classes"] == ["odd", "shade 0", "shade 1", "shade 2"]


def test_int_labels_are_forgotten_and_corrected_as_ints(any_store):
    """Labels keep the type that was fitted; plain vectors are as good as pictures."""
    points = np.arange(20, dtype=np.float32).reshape(10, 2)
    classifier = RetrievalClassifier(None, any_store).fit(points, np.arange(10) % 3)
    ids = classifier.kneighbors(points[:1]).ids[0]
    assert classifier.relabel(ids, np.array([7])) == 1
    assert classifier.predict(points[:1]).tolist() == [7]
    assert classifier.forget(label=np.int64(2)).classes.tolist() == [2]
    assert classifier.classes_.tolist() == [0, 1, 7]
    assert classifier.classes_.dtype == np.int64
