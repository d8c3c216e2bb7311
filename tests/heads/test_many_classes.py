"""Many classes, and labels of great length: the same answers, and no table of all classes by all classes."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, classification_report

from clipretrieval import RetrievalClassifier, StagedEncoder
from clipretrieval.retrieval.vectorless_store import VectorlessStore
from clipretrieval.stores import FaissStore, MemoryStore

LONG = "x" * 20_000
MANY = 4000


def line(count):
    """Vectors on a line, each far from the others."""
    return np.arange(count, dtype=np.float32)[:, None] * 10


def named(count):
    return [f"class {place:05}" for place in range(count)]


def fitted(rows, labels, store="memory", **params):
    """A classifier with two vectors for each row: scikit-learn takes labels of one each for quantities."""
    return RetrievalClassifier(store=store, **params).fit([*rows, *(rows + 0.25)], [*labels, *labels])


@pytest.fixture(scope="module")
def many():
    return fitted(line(MANY), named(MANY), "faiss", k=3, weights="distance")


def traced(work):
    """Return what a call returned, and the most bytes that it held at once."""
    tracemalloc.start()
    try:
        return work(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_questions_hold_no_column_for_each_class(many):
    """Answers, explanations and an evaluation of 1,000 images take less than two bytes a cell."""
    rows, names, tuned = line(1000) + 1, named(1000), RetrievalClassifier.from_store(many.store_)
    settings = {"k": [1, 3], "weights": "uniform", "allow_known": True}
    many.evaluate(rows[:1], names[:1])  # imports what it needs
    for ask in (
        lambda: many.predict(rows).tolist() == names,
        lambda: [each.answer for each in many.explain(rows)] == names,
        lambda: many.evaluate(rows, names).accuracy == 1.0,
        lambda: tuned.sweep(rows, names, **settings).best["accuracy"] == 1.0,
    ):
        right, peak = traced(ask)
        assert right
        assert peak < 2 * 1000 * MANY


def test_shares_take_their_own_size_once(many):
    """`predict_proba` of 1,000 images and 4,000 classes holds its answer, 32 MB, and little besides."""
    shares, peak = traced(lambda: many.predict_proba(line(1000) + 1))
    assert (shares.shape, shares.dtype) == ((1000, MANY), np.float64)
    assert peak < 1.3 * shares.nbytes
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert (shares.argmax(axis=1) == np.arange(1000)).all()


@pytest.mark.usefixtures("few_features")
@pytest.mark.parametrize("head", ["discriminant", "quadratic", "fused"])
def test_many_classes_are_answered_in_parts(head, monkeypatch):
    """Answers are those of all queries at once, also where classes turn up on the way."""
    rng = np.random.default_rng(0)
    centers, labels = rng.standard_normal((40, 6)), named(40)
    rows = (centers.repeat(6, axis=0) + rng.standard_normal((240, 6)) / 9).astype(np.float32)
    mine = RetrievalClassifier(store="memory", head=head).fit(rows, np.repeat(labels, 6))
    asked = rng.standard_normal((57, 6)).astype(np.float32)
    answers, shares = mine.predict(asked), mine.predict_proba(asked)
    other = RetrievalClassifier.from_store(mine.store_, head=head)
    monkeypatch.setattr("clipretrieval.heads.answers.CELLS", 40 * 11)
    assert mine.predict(asked).tolist() == answers.tolist()
    np.testing.assert_allclose(mine.predict_proba(asked), shares, rtol=1e-9)
    other.predict_proba(asked[:1])
    mine.partial_fit(rows[:2] + 9, ["a new one"] * 2)
    np.testing.assert_array_equal(other.predict_proba(asked), mine.predict_proba(asked))
    assert mine.predict_proba(asked).shape == (57, 41)


def test_answers_of_many_classes_take_little_beside_them(monkeypatch):
    """What is computed for 1,000 images by 4,000 classes is held a few megabytes at a time."""
    mine = fitted(line(MANY), named(MANY), head="discriminant")
    rows = line(1000) + 1
    mine.predict(rows[:1])
    monkeypatch.setattr("clipretrieval.heads.answers.CELLS", 50 * MANY)
    answers, peak = traced(lambda: mine.predict(rows))
    assert answers.tolist() == named(1000)
    assert peak < 2 * 1000 * MANY  # a quarter of all scores
    shares, peak = traced(lambda: mine.predict_proba(rows))
    assert peak < 1.4 * shares.nbytes


def test_what_follows_from_the_classes_is_kept_between_questions():
    """The same object serves the next question, and another one as soon as the classes are others."""
    mine = RetrievalClassifier(store="memory").fit([[0.0], [1.0]], ["a", "c"])
    first = mine.retriever_.index.classes
    mine.predict([[0.1]])
    assert mine.retriever_.index.classes is first
    mine.partial_fit([[0.2]], ["a"])
    assert mine.retriever_.index.classes is first
    assert mine.classes_ is first.labels
    RetrievalClassifier.from_store(mine.store_).partial_fit([[2.0]], ["b"])
    assert mine.predict([[2.0], [1.0]]).tolist() == ["b", "c"]
    assert mine.classes_.tolist() == ["a", "b", "c"]
    mine.forget(label="c")
    assert mine.predict_proba([[1.0]]).tolist() == [[1.0, 0.0]]
    mine.fit([[0.0], [1.0]], [7, 5], overwrite=True)
    assert mine.predict([[0.0], [1.0]]).tolist() == [7, 5]


def test_a_report_takes_as_much_as_its_images_and_classes(many):
    """JSON, Markdown, the page and text of 4,000 classes stay below 500 bytes for each class and image."""
    wrong = np.random.default_rng(0).integers(0, MANY, 5000)
    answered = np.where(np.arange(5000) % 3, wrong, (wrong + 1) % MANY)
    report = many.evaluate(line(MANY)[answered] + 1, np.array(named(MANY))[wrong])
    matrix = report.confusion_matrix
    assert matrix.shape == (MANY, MANY)
    text = report.to_json()
    assert len(text) < 500 * (MANY + 5000)
    content = json.loads(text)
    assert content["confusion_matrix"] is None
    again, cells = np.zeros_like(matrix), content["confusion_cells"]
    again[cells["true"], cells["answer"]] = cells["count"]
    np.testing.assert_array_equal(again, matrix)
    mistakes = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * matrix.diagonal()
    told = f"The 1,000 classes with the most incorrect answers, of {MANY:,}; the JSON report has all."
    for written in (report.to_markdown(), str(report), report.to_html()):
        assert len(written) < 500 * (MANY + 5000)
        assert told in written
    listed = set(str(report).split())
    shown = np.array([name.split()[1] in listed for name in named(MANY)])
    assert shown.sum() == 1000
    assert mistakes[~shown].max() <= mistakes[shown].min()
    assert "<canvas" not in report.to_html()
    assert "The confusion matrix of 4,000 classes is not drawn" in report.to_html()
    assert report._repr_html_().count("<tr>") < 50


def test_a_picture_of_many_classes_has_blocks(many):
    """The chart of 4,000 classes has a cell for each four by four of them."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    report = many.evaluate(line(40) + 1, named(40))
    axes = report.plot_confusion()
    image = axes.images[0]
    cells = np.asarray(image.get_array())
    assert cells.shape == (1000, 1000)
    assert cells.sum() == cells.diagonal()[:10].sum() == 10
    assert image.get_extent() == [-0.5, 3999.5, 3999.5, -0.5]
    pyplot.close(axes.figure)


def test_the_whole_matrix_is_written_up_to_a_thousand_classes():
    """Readers of reports as they were find the matrix, with the cells beside it."""
    classifier = fitted(line(1000), named(1000))
    report = classifier.evaluate(line(3) + 1, named(3))
    content = report.to_dict()
    assert content["confusion_matrix"] == report.confusion_matrix.tolist()
    assert content["confusion_cells"] == {"true": [0, 1, 2], "answer": [0, 1, 2], "count": [1, 1, 1]}


@pytest.mark.parametrize("store", ["memory", "faiss"])
def test_a_label_of_great_length_costs_its_own_length(store, tmp_path):
    """`classes_`, answers and the report of 300 classes hold 20,000 letters once."""
    labels = [*named(299), LONG]
    rows = line(300)
    classifier = fitted(rows, labels, store)
    assert classifier.classes_.dtype == object
    assert classifier.classes_.nbytes == 8 * 300
    assert classifier.classes_.tolist() == sorted(labels)
    assert np.searchsorted(classifier.classes_, LONG) == 299
    assert np.unique(classifier.classes_).tolist() == sorted(labels)
    answers = classifier.predict(rows + 1)
    assert (answers.dtype, answers.tolist()) == (np.dtype(object), labels)
    assert accuracy_score(labels, answers) == classifier.score(rows + 1, labels) == 1.0
    short = classifier.evaluate(rows[:9] + 1, labels[1:10])
    assert (short.accuracy, short.n_test) == (0.0, 9)
    report = classifier.evaluate(rows[-9:] + 1, labels[-9:])
    assert report.accuracy == 1.0
    assert len(str(report)) < 10**5
    assert report.to_csv().splitlines()[-1].split(",")[2] == LONG
    assert report.to_frame()["true"].tolist() == labels[-9:]
    assert json.loads(report.to_json())["classes"][-1] == LONG
    assert classification_report(report.y_true, report.y_pred, output_dict=True)[LONG]["support"] == 1
    classifier.save(tmp_path / "kept")
    again = RetrievalClassifier.load(tmp_path / "kept")
    assert again.classes_.dtype == object
    assert again.predict(rows[-2:]).tolist() == labels[-2:]
    assert again.forget(label=LONG).classes.tolist() == [LONG]
    assert again.classes_.dtype == np.dtype("<U11")


@pytest.mark.parametrize(("letters", "dtype"), [(256, "<U256"), (257, "object")])
def test_labels_have_a_fixed_width_up_to_256_letters(letters, dtype):
    """A folder's name always fits; a longer label makes objects of all."""
    classifier = RetrievalClassifier(store="memory").fit([[0.0], [1.0]], ["a", "b" * letters])
    assert classifier.classes_.dtype == classifier.predict([[0.0]]).dtype == np.dtype(dtype)


class Counting(MemoryStore):
    """A store that counts how often it was listed."""

    scans = 0

    def scan(self, label=None):
        self.scans += 1
        return super().scan(label)


class CountsNoLabels(Counting):
    def count(self):
        return super().count()


@pytest.mark.parametrize(("make", "scans"), [(Counting, 0), (CountsNoLabels, 1)])
def test_many_emptied_classes_are_found_in_one_pass(make, scans):
    """Forgetting 500 classes lists a store once, or not at all, and leaves those with an image."""
    store = make()
    rows, labels = line(550), named(550)
    classifier = fitted(rows, labels, store)
    ids = classifier.kneighbors(rows[:500] + 0.1, k=2).ids
    ids = [*ids[:, 0].tolist(), *ids[50:, 1].tolist()]  # of the first 50 one vector is left
    store.scans = 0
    found = classifier.forget(ids)
    assert store.scans == scans
    assert found.classes.tolist() == named(550)[50:500]
    assert classifier.classes_.tolist() == [*named(50), *named(550)[500:]]


def test_classes_are_read_from_a_store_that_overrides_its_manifest():
    """A store's own `read_manifest` is asked, at each question."""

    class Listing(FaissStore):
        more = ()

        def read_manifest(self):
            found = super().read_manifest()
            return {**found, "classes": sorted([*found.get("classes", []), *self.more])}

    store = Listing()
    classifier = RetrievalClassifier(store=store).fit([[0.0], [1.0]], ["a", "c"])
    store.more = ("b",)
    assert classifier.predict_proba([[1.0]]).tolist() == [[0.0, 0.0, 1.0]]
    assert classifier.classes_.tolist() == ["a", "b", "c"]


@pytest.mark.parametrize("make", [Counting, CountsNoLabels])
def test_a_store_without_vectors_counts_labels_as_its_records_do(make):
    """Labels are counted by the records' store, or by a scan of it."""
    store = make()
    store.upsert(["a", "b", "c"], line(3), ["x", "y", "x"])
    kept = VectorlessStore(store, StagedEncoder(stage="pixel"), False)
    assert [kept.count(), *map(kept.count, ("x", "y", "z"))] == [3, 2, 1, 0]
    assert store.scans == (0 if make is Counting else 3)
