"""Statistics of stores that others change, that keep nothing, compress, fail, or are killed."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from nearest_mean import LearnedMeans, NearestMean
from statistics_parts import Failing, assert_as_fresh, clouds, gathers
from warm_process import run_warm

from clipretrieval import (
    ClipRetrievalWarning,
    InvalidInputError,
    NotFittedError,
    RetrievalClassifier,
    StoreUnavailableError,
    UnsupportedOperationError,
)
from clipretrieval.heads import index_statistics
from clipretrieval.heads.fused import Fused
from clipretrieval.heads.quadratic import Quadratic
from clipretrieval.heads.ridge import Ridge
from clipretrieval.heads.statistics import Moments
from clipretrieval.stores import ChromaStore, FaissStore, MemoryStore
from clipretrieval.testing.sequences import kill_sequences, run_sequence

HEADS = ["discriminant", Quadratic(), Ridge(30), Fused(3, ridge=Ridge(30))]


@pytest.mark.parametrize(
    ("name", "seed"),
    [(name, seed) for name, count in (("memory", 24), ("faiss", 16), ("chroma", 4)) for seed in range(count)],
)
def test_any_sequence_of_changes_is_as_a_fresh_fit(name, seed, tmp_path):
    """Adding, forgetting and relabelling, with stores that are opened again: statistics and answers."""
    options = {} if name == "memory" else {"path": tmp_path / "store"}
    store = {"memory": MemoryStore, "faiss": FaissStore, "chroma": ChromaStore}[name](**options)
    found = run_sequence(store, seed, options={"name": name, **options} if options else None)
    assert found.error <= 1e-9
    assert found.answers == 0


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("name", ["faiss", "chroma"])
def test_after_a_kill_statistics_are_those_of_what_is_there(name, tmp_path):
    """At once, and after the fit that is gone on with."""
    for seed in (0, 3):
        for found in kill_sequences(name, {"path": str(tmp_path / str(seed))}, seed=seed):
            assert found.error <= 1e-9
            assert found.answers == 0


@pytest.mark.parametrize("head", HEADS, ids=lambda each: getattr(each, "__class__", str).__name__)
def test_a_folder_that_was_closed_needs_no_reading(head, tmp_path):
    """Statistics that were kept are used; those of another head are gathered."""
    rows, labels = clouds()
    with FaissStore(tmp_path / "store") as store:
        before = (
            RetrievalClassifier(store=store, head=head, transform=None).fit(rows, labels).predict_proba(rows)
        )
    with FaissStore(tmp_path / "store") as store:
        classifier = RetrievalClassifier.from_store(store, head=head)
        assert not gathers(classifier, rows)
        np.testing.assert_allclose(classifier.predict_proba(rows), before, atol=1e-12)
        assert_as_fresh(RetrievalClassifier.from_store(store, head=Ridge(8)), rows)


@pytest.mark.parametrize("make", [MemoryStore, FaissStore, lambda: FaissStore(metric="cosine")])
@pytest.mark.parametrize("changer", ["votes", "discriminant"])
def test_what_another_classifier_changes_is_noticed(make, changer):
    """Also where it follows no statistics, and leaves as many records as there were."""
    rows, labels = clouds()
    store = make()
    metric = store.metric
    asked = RetrievalClassifier(store=store, head="discriminant", metric=metric).fit(rows[:40], labels[:40])
    other = RetrievalClassifier.from_store(store, head=changer)
    for start in range(40, 60, 5):
        ids = other.kneighbors(rows[start - 5 : start], 1).ids[:, 0]
        other.forget(ids)
        other.partial_fit(rows[start : start + 5], ["class 0"] * 5)
        assert store.count() == 40
        assert_as_fresh(asked, rows)
        other.relabel(other.kneighbors(rows[start : start + 1], 1).ids[:, 0], "class 2")
        assert_as_fresh(asked, rows)


def test_new_labels_are_noticed_whose_hashes_are_those_of_the_old():
    """Python's hash(-1) is hash(-2)."""
    rows, _ = clouds()
    store = MemoryStore()
    other = RetrievalClassifier(store=store).fit(rows, [-1] * 30 + [-2] * 30)
    asked = RetrievalClassifier.from_store(store, head="discriminant")
    assert asked.class_statistics().counts.tolist() == [30, 30]
    other.relabel(other.kneighbors(rows[:10], 1).ids[:, 0], [-2] * 10)
    assert asked.class_statistics().counts.tolist() == [40, 20]
    assert_as_fresh(asked, rows)


class Emptied(MemoryStore):
    """A store that another process empties after it was counted."""

    def scan(self, label=None):
        """Find nothing any more."""
        return iter(())


@pytest.mark.parametrize("head", ["discriminant", NearestMean(), Fused(3, ridge=Ridge(30))])
def test_a_store_that_is_emptied_meanwhile_is_told_of(head):
    """As where it was empty before."""
    rows, labels = clouds()
    store = Emptied()
    RetrievalClassifier(store=store).fit(rows, labels)
    with pytest.raises(NotFittedError, match="holds no vectors any more"):
        RetrievalClassifier.from_store(store, head=head).predict(rows)


def test_what_another_process_changes_is_noticed(tmp_path):
    """In a folder of FAISS, as soon as it is flushed; Chroma lets one process alone use a folder."""
    rows, labels = clouds()
    with FaissStore(tmp_path / "store") as store:
        RetrievalClassifier(store=store, head="discriminant").fit(rows[:40], labels[:40])
    with FaissStore(tmp_path / "store") as store:
        asked = RetrievalClassifier.from_store(store, head="discriminant")
        assert_as_fresh(asked, rows)
        program = f"""
import numpy as np
from clipretrieval import RetrievalClassifier
from clipretrieval.stores import FaissStore
rows = np.array({rows.tolist()}, dtype=np.float32)
with FaissStore({str(tmp_path / "store")!r}) as store:
    other = RetrievalClassifier.from_store(store, head="discriminant")
    other.forget(other.kneighbors(rows[:5], 1).ids[:, 0])
    other.partial_fit(rows[40:45], ["class 1"] * 5)
"""
        run_warm(["-c", program], check=True)
        assert not gathers(asked, rows)
        assert_as_fresh(asked, rows)
        assert asked.kneighbors(rows[40:41], 1).distances.max() == 0
        asked.partial_fit(rows[45:50], labels[45:50])
        assert_as_fresh(asked, rows)


@pytest.mark.filterwarnings("ignore:ChromaStore cannot keep class statistics")
def test_what_another_classifier_changes_in_chroma_is_noticed(tmp_path):
    """Two of them, on one folder."""
    rows, labels = clouds()
    with ChromaStore(tmp_path / "store") as store:
        asked = RetrievalClassifier(store=store, head="discriminant").fit(rows[:40], labels[:40])
        for changer in ("votes", "discriminant"):
            other = RetrievalClassifier.from_store(store, head=changer)
            other.forget(other.kneighbors(rows[20:25], 1).ids[:, 0])
            assert_as_fresh(asked, rows)
            other.partial_fit(rows[20:25], ["class 1"] * 5)
            assert_as_fresh(asked, rows)


@pytest.mark.parametrize("change", ["delete", "upsert", "both"])
def test_what_is_changed_around_the_classifier_is_noticed_by_the_count(change):
    """Statistics that do not match are gathered anew, with a warning, and kept by the next change."""
    rows, labels = clouds()
    store = MemoryStore()
    classifier = RetrievalClassifier(store=store, head="discriminant").fit(rows[:50], labels[:50])
    classifier.predict(rows)
    if change != "upsert":
        store.delete(classifier.kneighbors(rows[:4], 1).ids[:, 0].tolist())
    if change != "delete":
        store.upsert(["x", "y"], rows[50:52], labels[50:52])
    with pytest.warns(ClipRetrievalWarning, match="do not match what it holds"):
        classifier.predict(rows)
    assert not gathers(classifier, rows)
    assert_as_fresh(classifier, rows)
    classifier.partial_fit(rows[55:], labels[55:])
    assert_as_fresh(classifier, rows)
    assert not gathers(RetrievalClassifier.from_store(store, head="discriminant"), rows)


def test_forgetting_what_was_put_there_around_the_classifier_works():
    """A class with more records than were counted: they go, and the statistics are right."""
    rows, labels = clouds()
    store = MemoryStore()
    classifier = RetrievalClassifier(store=store, head="discriminant").fit(rows[:50], labels[:50])
    gone = classifier.kneighbors(rows[:4], 1).ids[:, 0].tolist()
    store.delete(gone)
    store.upsert(["p", "q", "r", "s"], rows[50:54], ["class 1"] * 4)  # as many as before
    classifier.forget(label="class 1")
    assert "class 1" not in classifier.classes_
    assert_as_fresh(classifier, rows)


VERBS = (
    *("upsert", "search", "get", "delete", "count", "read_manifest", "write_manifest", "flush", "close"),
)


class Plain:
    """A store with the five verbs alone: it cannot list what it holds, and keeps no blobs."""

    def __init__(self, store=None):
        self.inner = MemoryStore() if store is None else store

    metric = property(lambda self: self.inner.metric)
    dim = property(lambda self: self.inner.dim)

    def __getattr__(self, name):
        names = (
            "upsert",
            "search",
            "get",
            "delete",
            "count",
            "read_manifest",
            "write_manifest",
            "flush",
            "close",
        )
        if name in names:
            return getattr(self.inner, name)
        raise AttributeError(name)


class Listing(Plain):
    """A store that can list what it holds, and keeps no blobs."""

    def scan(self, label=None):
        return self.inner.scan(label)


def test_a_store_that_keeps_no_blobs_is_followed_and_read_once_by_others():
    """In the process that fits, nothing is read; another reads all, and says so once."""
    rows, labels = clouds()
    store = Listing()
    classifier = RetrievalClassifier(store=store, head="discriminant").fit(rows[:50], labels[:50])
    assert not gathers(classifier, rows)
    classifier.partial_fit(rows[50:], labels[50:])
    assert not gathers(classifier, rows)
    assert_as_fresh(classifier, rows)
    other = RetrievalClassifier.from_store(store, head="discriminant")
    with pytest.warns(ClipRetrievalWarning, match="Listing cannot keep class statistics.*all 60 vectors"):
        other.predict(rows)
    assert not gathers(other, rows)


def test_a_store_that_lists_nothing_is_followed_and_refused_to_others():
    """What fits knows the statistics; who comes later cannot, and changes all the same."""
    rows, labels = clouds()
    store = Plain()
    classifier = RetrievalClassifier(store=store, head="discriminant").fit(rows[:50], labels[:50])
    classifier.partial_fit(rows[50:55], labels[50:55])
    classifier.forget(classifier.kneighbors(rows[:5], 1).ids[:, 0])
    right = RetrievalClassifier(store="memory", head="discriminant").fit(rows[5:55], labels[5:55])
    np.testing.assert_allclose(classifier.predict_proba(rows), right.predict_proba(rows), atol=1e-9)
    other = RetrievalClassifier.from_store(store, head="discriminant")
    with pytest.raises(UnsupportedOperationError, match=r"cannot list what it holds.*head='votes'"):
        other.predict(rows)
    other.partial_fit(rows[55:], labels[55:])
    assert store.count() == 55
    with pytest.raises(UnsupportedOperationError, match="cannot list"):
        other.predict(rows)
    with pytest.raises(UnsupportedOperationError, match="cannot list"):
        classifier.predict(rows)
    assert other.set_params(head="votes").predict(rows[5:6]).tolist() == labels[5:6]


@pytest.mark.parametrize("store", [Plain, Listing, MemoryStore])
def test_a_store_that_rounds_vectors_is_followed_by_what_it_returns(store):
    """A lossy compression: statistics are those of what `get` returns, whatever was given."""

    class Rounding(store):
        def get(self, ids):
            records = super().get(ids) if store is MemoryStore else self.inner.get(ids)
            return type(records)(records.ids, np.round(records.vectors), records.labels, records.metadata)

    rows, labels = clouds()
    rows *= 100
    kept = Rounding()
    classifier = RetrievalClassifier(store=kept, head="discriminant").fit(rows[:50], labels[:50])
    classifier.partial_fit(rows[50:], labels[50:])
    classifier.forget(classifier.kneighbors(rows[:7], 1).ids[:, 0])
    classifier.relabel(classifier.kneighbors(rows[7:9], 1).ids[:, 0], "class 0")
    right = RetrievalClassifier(store="memory", head="discriminant")
    right.fit(np.round(rows[7:]), ["class 0"] * 2 + labels[9:])
    np.testing.assert_allclose(classifier.predict_proba(rows), right.predict_proba(rows), atol=1e-9)


def test_a_cosine_store_is_not_read_as_a_whole_at_each_change(monkeypatch):
    """FAISS keeps directions and lengths, so vectors come back with other last digits, the same each time."""
    rows, labels = clouds()
    store = FaissStore(metric="cosine")
    classifier = RetrievalClassifier(store=store, head="discriminant", metric="cosine").fit(
        rows[:50], labels[:50]
    )
    monkeypatch.setattr(index_statistics, "_gathered", None)
    for row in range(50, 60):
        classifier.partial_fit(rows[row : row + 1], labels[row : row + 1])
    classifier.forget(classifier.kneighbors(rows[:9], 1).ids[:, 0])
    monkeypatch.undo()
    assert_as_fresh(classifier, rows)


@pytest.mark.parametrize("index", ["SQ8", "IVF4,SQ8", "PQ5x4"])
def test_a_compressed_index_has_the_statistics_of_the_vectors_themselves(index):
    """FAISS keeps these beside the codes."""
    rows, labels = clouds(n=600)
    store = FaissStore(index=index, recall=0.5)
    classifier = RetrievalClassifier(store=store, head="discriminant").fit(rows[:500], labels[:500])
    classifier.partial_fit(rows[500:], labels[500:])
    right = RetrievalClassifier(store="memory", head="discriminant").fit(rows, labels)
    np.testing.assert_allclose(classifier.predict_proba(rows), right.predict_proba(rows), atol=1e-9)


@pytest.mark.parametrize("fail", ["half", "upsert", "manifest"])
@pytest.mark.parametrize("head", HEADS, ids=lambda each: getattr(each, "__class__", str).__name__)
def test_a_store_that_fails_amid_an_addition_loses_nothing(fail, head):
    """What was stored is there, the statistics are those of it, and the same call works later."""
    rows, labels = clouds()
    store = Failing()
    classifier = RetrievalClassifier(store=store, head=head, transform=None).fit(rows[:40], labels[:40])
    classifier.predict(rows)
    store.fail = fail
    with pytest.raises(StoreUnavailableError, match="the disk is full"):
        classifier.partial_fit(rows[40:50], labels[40:50])
    store.fail = ""
    assert store.count() == {"half": 42, "upsert": 40, "manifest": 50}[fail]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_as_fresh(classifier, rows)
    classifier.partial_fit(rows[40:50], labels[40:50])
    assert store.count() == 50
    assert_as_fresh(classifier, rows)
    assert not gathers(RetrievalClassifier.from_store(store, head=head), rows)


def test_a_store_that_fails_amid_a_removal_or_a_correction_loses_nothing():
    """One of three is gone, or two of three have their new label."""
    rows, labels = clouds()
    store = Failing()
    classifier = RetrievalClassifier(store=store, head="discriminant").fit(rows, labels)
    ids = classifier.kneighbors(rows[:3], 1).ids[:, 0].tolist()
    store.fail = "half"
    with pytest.raises(StoreUnavailableError):
        classifier.relabel(ids, ["class 1", "class 2", "class 0"])
    store.fail = "delete"
    assert store.get(ids).labels.tolist() == ["class 1", "class 2", "class 2"]
    assert_as_fresh(classifier, rows)
    with pytest.raises(StoreUnavailableError):
        classifier.forget(ids)
    store.fail = ""
    assert store.count() == 59
    assert_as_fresh(classifier, rows)
    classifier.forget(ids[1:])
    assert_as_fresh(classifier, rows)


def test_a_disk_that_is_full_of_statistics_costs_no_image():
    """They are not kept, which is said; this process knows them, and another gathers them."""
    rows, labels = clouds()
    store = Failing()
    classifier = RetrievalClassifier(store=store, head="discriminant")
    store.fail = "blob"
    with pytest.warns(ClipRetrievalWarning, match=r"could not be kept with the store \(the disk is full\)"):
        classifier.fit(rows, labels)
    assert store.count() == 60
    assert not gathers(classifier, rows)
    assert_as_fresh(classifier, rows)
    assert_as_fresh(RetrievalClassifier.from_store(store, head="discriminant"), rows)
    store.fail = ""
    classifier.partial_fit(rows[:1], ["class 1"])
    assert not gathers(RetrievalClassifier.from_store(store, head="discriminant"), rows)


def test_statistics_that_are_too_large_for_a_blob_are_not_kept(monkeypatch):
    """The limit of blobs is no limit of images."""
    rows, labels = clouds()
    monkeypatch.setattr(index_statistics, "LARGEST_BLOB", 200)
    with pytest.warns(ClipRetrievalWarning, match="more than the 200 bytes of a blob"):
        classifier = RetrievalClassifier(store="memory", head=Quadratic()).fit(rows, labels)
    monkeypatch.undo()
    assert not gathers(classifier, rows)
    assert_as_fresh(classifier, rows)


@pytest.mark.parametrize("damage", ["cut", "longer", "header"])
def test_a_damaged_blob_is_gathered_anew_with_a_warning(damage):
    """It says of itself that it describes the records, and is none."""
    rows, labels = clouds()
    store = MemoryStore()
    right = RetrievalClassifier(store=store, head="discriminant").fit(rows, labels).predict_proba(rows)
    content = store.read_blob(Moments().name)
    wrong = {"cut": content[:-3], "longer": content + b"x", "header": content[:32] + b"{}" + content[34:]}
    store.write_blob(Moments().name, wrong[damage])
    classifier = RetrievalClassifier.from_store(store, head="discriminant")
    with pytest.warns(ClipRetrievalWarning, match="were gathered anew by reading all 60 vectors"):
        found = classifier.predict_proba(rows)
    np.testing.assert_allclose(found, right, atol=1e-9)
    classifier.partial_fit(rows[:1], ["class 1"])
    assert_as_fresh(classifier, rows)
    assert not gathers(RetrievalClassifier.from_store(store, head="discriminant"), rows)


@pytest.mark.parametrize("content", [b"", b"x" * 40, None, "old"])
def test_a_blob_of_something_else_is_not_used(content):
    """One that is not of these records, or none."""
    rows, labels = clouds()
    store = MemoryStore()
    classifier = RetrievalClassifier(store=store, head="discriminant").fit(rows[:50], labels[:50])
    before = store.read_blob(Moments().name)
    classifier.partial_fit(rows[50:], labels[50:])
    store.write_blob(Moments().name, before if content == "old" else content)
    reader = RetrievalClassifier.from_store(store, head="discriminant")
    assert gathers(reader, rows) == (content is None)  # the manifest says that it is there
    assert_as_fresh(reader, rows)


def test_second_moments_without_room_are_refused_before_anything_is_stored(monkeypatch):
    """With the bytes that they would take; by a fit, by adding classes, and by attaching to a store."""
    rows, labels = clouds()
    monkeypatch.setattr(index_statistics, "_physical_memory", lambda: 3 * 25 * 8 * 2)
    store = MemoryStore()
    classifier = RetrievalClassifier(store=store, head="quadratic").fit(rows, labels)
    four = ["class 9", *labels[1:]]
    with pytest.raises(InvalidInputError, match=r"4 classes of 5 dimensions takes 800 bytes.*1,200 bytes"):
        classifier.partial_fit(rows[:1] + 1, ["class 9"])
    assert store.count() == 60
    assert_as_fresh(classifier, rows)
    other = MemoryStore()
    with pytest.raises(InvalidInputError, match=r"a second moment for each of 4 classes.*'discriminant'"):
        RetrievalClassifier(store=other, head="quadratic").fit(rows, four)
    assert (other.count(), other.read_manifest()) == (0, {})
    RetrievalClassifier(store=other, head="discriminant").fit(rows, four)
    with pytest.raises(InvalidInputError, match="4 classes of 5 dimensions takes 800 bytes"):
        RetrievalClassifier.from_store(other, head="quadratic").predict(rows)


def test_the_memory_of_the_machine_is_a_limit():
    """20,000 classes of 16,384 dimensions take 40 TiB: refused, where the system tells of its memory."""
    if index_statistics._physical_memory() is None:
        pytest.skip("the system does not tell how much memory there is")
    with pytest.raises(InvalidInputError, match="42,949,672,960,000 bytes"):
        index_statistics._check_room(Moments(per_class=True), 20_000, 16_384)


@pytest.mark.parametrize("head", ["vote", "", "Discriminant", 3, None, Quadratic, object(), ["votes"]])
def test_a_head_that_is_none_is_refused_with_those_that_are_known(head):
    """Names, classes instead of objects, and other things."""
    rows, labels = clouds()
    with pytest.raises(InvalidInputError, match="'votes', 'discriminant', 'quadratic', 'ridge', 'fused'"):
        RetrievalClassifier(store="memory", head=head).fit(rows, labels)


@pytest.mark.parametrize(
    ("member", "value", "message"),
    [
        ("k", -1, "k of a head"),
        ("k", 1.5, "k of a head"),
        ("moments", 3, "moments"),
        ("moments", ["x"], "Moments"),
    ],
)
def test_a_head_with_wrong_members_is_refused(member, value, message):
    """Before anything is stored."""
    head = NearestMean()
    setattr(head, member, value)
    store = MemoryStore()
    with pytest.raises(InvalidInputError, match=message):
        RetrievalClassifier(store=store, head=head, transform=None).fit(*clouds())
    assert store.count() == 0


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (lambda n: np.full((n, 3), np.nan), "NaN"),
        (lambda n: np.full((n, 3), np.inf), r"\+inf"),
        (lambda n: np.full((n, 3), -np.inf), "−inf for every class"),
        (lambda n: np.zeros((n, 2)), r"returned shape \(60, 2\); it must return \(60, 3\)"),
        (lambda n: np.zeros(n), "returned shape"),
        (lambda n: 0.0, "returned shape"),
    ],
)
def test_scores_that_are_none_are_refused(scores, message):
    """Of a head of a user's own."""

    class Wrong(NearestMean):
        def learn(self, contents):
            learned = LearnedMeans(None, None)
            learned.log_scores = lambda queries: scores(len(queries))
            return learned

    rows, labels = clouds()
    classifier = RetrievalClassifier(store="memory", head=Wrong()).fit(rows, labels)
    for ask in (classifier.predict, classifier.predict_proba, classifier.explain):
        with pytest.raises(InvalidInputError, match=message):
            ask(rows)


def test_a_head_that_reads_what_it_has_not_listed_is_told_so():
    """Only what is listed is followed."""
    head = NearestMean()
    head.moments = (Moments(per_class=True),)
    classifier = RetrievalClassifier(store="memory", head=head).fit(*clouds())
    with pytest.raises(InvalidInputError, match="not among its moments"):
        classifier.predict(clouds()[0])


def test_a_head_that_is_changed_learns_anew():
    """One of a user's own may have attributes that can be set."""
    rows, labels = clouds()
    head = NearestMean()
    classifier = RetrievalClassifier(store="memory", head=head).fit(rows, labels)
    soft = classifier.predict_proba(rows)
    assert classifier.head_.learned is classifier.head_.learned
    head.sharpness = 9.0
    assert classifier.predict_proba(rows).max(axis=1).mean() > soft.max(axis=1).mean() + 0.01
    classifier.set_params(head=Quadratic(0.5))
    assert_as_fresh(classifier, rows)
    classifier.set_params(head="votes")
    classifier.partial_fit(rows[:3], ["class 2"] * 3)
    classifier.set_params(head="discriminant")
    assert_as_fresh(classifier, rows)


@pytest.mark.parametrize(
    ("priors", "message"),
    [
        ("uniform", "'equal', 'empirical'"),
        ([0.5, -0.5, 1], "at least 0"),
        ([0, 0, 0], "at least 0"),
        ([np.nan, 1, 1], "finite"),
        ([[1, 1, 1]], "for each class"),
        (["a", "b", "c"], "for each class"),
        (None, "for each class"),
    ],
)
def test_priors_that_are_none_are_refused(priors, message):
    """Before anything is stored."""
    store = MemoryStore()
    with pytest.raises(InvalidInputError, match=message):
        RetrievalClassifier(store=store, head="discriminant", priors=priors).fit(*clouds())
    assert store.count() == 0


def test_priors_are_those_of_the_listed_classes():
    """In their order; those of classes without images count for nothing; another number is refused."""
    rows, labels = clouds()
    classifier = RetrievalClassifier(store="memory", head="discriminant", priors=[1, 7, 1, 1])
    classifier.fit(rows, labels)
    with pytest.raises(InvalidInputError, match="there are 4 priors and 3 classes"):
        classifier.predict(rows)
    classifier.partial_fit(rows[:1], labels[:1], classes=["class 0", "class 0b", "class 1", "class 2"])
    found = classifier.predict_proba(rows)
    right = RetrievalClassifier(store="memory", head="discriminant").fit(rows, labels).predict_proba(rows)
    np.testing.assert_allclose(found[:, [0, 2, 3]], right, atol=1e-12)
    assert not found[:, 1].any()
    classifier.set_params(priors=[0, 1, 0, 0])
    with pytest.raises(InvalidInputError, match="all classes that have an image are 0"):
        classifier.predict(rows)


@pytest.mark.parametrize("kind", [bool, float, int, str])
def test_labels_of_every_type_come_back(kind):
    """As they were fitted, after the folder was opened again too."""
    rows, _ = clouds(n=60, classes=2)
    labels = [kind(place % 2) for place in range(60)]
    store = MemoryStore()
    classifier = RetrievalClassifier(store=store, head="discriminant").fit(rows, labels)
    for each in (classifier, RetrievalClassifier.from_store(store, head="discriminant")):
        found = each.predict(rows).tolist()
        assert {type(label) for label in found} == {kind}
        assert np.mean([left == right for left, right in zip(found, labels, strict=True)]) > 0.8


def test_threads_predict_while_another_adds_forgets_and_relabels():
    """Each answer is that of a moment before or after; at the end, that of a fresh fit."""
    rows, labels = clouds(n=300)
    classifier = RetrievalClassifier(store="memory", head="discriminant").fit(rows[:100], labels[:100])
    done = threading.Event()

    def ask(_):
        while not done.is_set():
            assert np.isfinite(classifier.predict_proba(rows[:20])).all()

    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(ask, None) for _ in range(3)]
        try:
            for start in range(100, 300, 20):
                classifier.partial_fit(rows[start : start + 20], labels[start : start + 20])
                ids = classifier.kneighbors(rows[start - 20 : start - 10], 1).ids[:, 0]
                classifier.relabel(ids[:5], "class 0")
                classifier.forget(ids[5:])
        finally:
            done.set()
        for each in asked:
            each.result()
    assert_as_fresh(classifier, rows)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_process_forked_amid_a_change_waits_for_nobody_and_answers():
    """It lacks the thread that holds the statistics, and gathers its own."""
    rows, labels = clouds()
    classifier = RetrievalClassifier(store="memory", head="discriminant").fit(rows, labels)
    right = classifier.predict(rows).tolist()
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with classifier._statistics._lock:
            classifier._statistics.begin(classifier.store_)
            entered.set()
            leave.wait()
            classifier._statistics.end()

    holder = threading.Thread(target=hold)
    holder.start()
    entered.wait()
    child = os.fork()
    if not child:
        signal.alarm(30)
        os._exit(0 if classifier.predict(rows).tolist() == right else 1)
    leave.set()
    holder.join()
    assert os.waitpid(child, 0)[1] == 0


def test_copies_of_a_classifier_gather_their_own():
    """A pickle has no statistics, and answers the same."""
    rows, labels = clouds()
    classifier = RetrievalClassifier(store="memory", head="discriminant").fit(rows, labels)
    copied = pickle.loads(pickle.dumps(classifier))
    np.testing.assert_allclose(copied.predict_proba(rows), classifier.predict_proba(rows), atol=1e-12)
    copied.partial_fit(rows[:9], ["class 1"] * 9)
    assert_as_fresh(copied, rows)
    assert_as_fresh(classifier, rows)


def test_drift_beyond_the_bound_is_gathered_anew():
    """Large vectors come and go beside small ones: what is left is exact."""
    rows, labels = clouds()
    classifier = RetrievalClassifier(store="memory", head="discriminant").fit(rows, labels)
    classifier.partial_fit(rows * 1e9, labels)
    classifier.forget(classifier.kneighbors(rows * 1e9, 1).ids[:, 0])
    assert_as_fresh(classifier, rows)


MANY = """
import resource, sys
import numpy as np
from clipretrieval import RetrievalClassifier
rng = np.random.default_rng(0)
rows = rng.standard_normal((10_000, 64), dtype=np.float32)
classifier = RetrievalClassifier(store="memory", head="discriminant").fit(rows, list(range(10_000)))
classifier.predict(rows[:1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
queries = np.concatenate([rows, rows])
right = (classifier.predict(queries) == np.tile(np.arange(10_000), 2)).mean()
print(right, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of the memory differs")
def test_ten_thousand_classes_need_no_matrix_of_all_queries():
    """20,000 queries and 10,000 classes: 1.6 GB of scores, of which a batch's alone are held."""
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", MANY],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    right, grown = map(float, done.stdout.split())
    assert right > 0.99
    assert grown < 1e9
