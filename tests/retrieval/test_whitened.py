"""Stores whose vectors are whitened: their neighbors, how they change, are interrupted, and rewritten."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from colours import Colours, pairs
from warm_process import run_warm

from clipretrieval import (
    FingerprintMismatchError,
    InvalidInputError,
    NotFittedError,
    RetrievalClassifier,
    StoreCorruptedError,
    StoreLockedError,
    UnsupportedOperationError,
)
from clipretrieval.heads.statistics import ClassStatistics, Moments
from clipretrieval.heads.whitening import Whitening
from clipretrieval.stores import ChromaStore, FaissStore, MemoryStore

pytestmark = pytest.mark.filterwarnings(
    "ignore:there is only one class:clipretrieval.ClipRetrievalWarning",
)
DIM = 8


def labelled(count: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """Vectors of three classes, in which what all vary in hides what parts them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    centers = np.random.default_rng(99).normal(size=(3, DIM))
    mixed = np.random.default_rng(98).normal(size=(DIM, DIM)) * np.linspace(0.05, 4, DIM)[:, None]
    vectors = centers[labels] + rng.normal(size=(count, DIM)) @ mixed + 3
    return vectors.astype(np.float32), [f"class {label}" for label in labels.tolist()]


STORED, LABELS = labelled(300, 0)
ASKED, ANSWERS = labelled(100, 1)


def contents(store):
    """Return all that a store holds in the order of the ids."""
    ids = sorted(name for listing in store.scan() for name in listing.ids.tolist())
    records = store.get(ids)
    return ids, records.labels.tolist(), records.vectors, records.metadata


def assert_same(store, other, *, atol=1e-6):
    """Compare all that two stores hold, and what their manifests say of the map."""
    (ids, labels, vectors, metadata), expected = contents(store), contents(other)
    assert (ids, labels) == expected[:2]
    np.testing.assert_allclose(vectors, expected[2], atol=atol)
    names = [{key: value for key, value in each.items() if key != "norm"} for each in metadata]
    if atol <= 1e-6:
        assert names == [{k: v for k, v in each.items() if k != "norm"} for each in expected[3]]
        assert store.read_manifest()["transform"] == other.read_manifest()["transform"]
    assert store.read_manifest()["classes"] == other.read_manifest()["classes"]


def whitened(vectors: np.ndarray, of: np.ndarray, labels: list[str]) -> np.ndarray:
    """Whiten by the definition: class after class, shrunk by the formula, scaled to length one."""
    given, codes = of.astype(np.float64), np.array(labels)
    scatter = sum(
        (given[codes == each] - given[codes == each].mean(0)).T
        @ (given[codes == each] - given[codes == each].mean(0))
        for each in set(labels)
    )
    covariance = scatter / len(given)
    square, mean = (covariance**2).mean(), np.trace(covariance) / DIM
    amount = min((square + mean**2) / ((len(given) - 3 + 1) * (square - mean**2 / DIM)), 1)
    values, axes = np.linalg.eigh((1 - amount) * covariance + amount * mean * np.eye(DIM))
    mapped = (vectors.astype(np.float64) - given.mean(0)) @ axes / np.sqrt(values)
    return mapped / np.linalg.norm(mapped, axis=1, keepdims=True)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
@pytest.mark.parametrize("kind", [MemoryStore, FaissStore])
def test_neighbors_are_those_of_whitened_vectors(kind, metric, normalize):
    """Distances and labels are what an independent computation gives, and better than those of raw ones."""
    made = RetrievalClassifier(
        store=kind(metric=metric), metric=metric, normalize=normalize, k=5, transform="whiten"
    ).fit(STORED, LABELS)
    given, asked = (unit(STORED), unit(ASKED)) if normalize else (STORED, ASKED)
    cosines = whitened(asked, given, LABELS) @ whitened(given, given, LABELS).T
    expected = -np.sort(-cosines, axis=1)[:, :5]
    found = made.kneighbors(ASKED)
    as_cosines = {"l2": 1 - found.distances / 2, "cosine": 1 - found.distances, "ip": -found.distances}
    np.testing.assert_allclose(as_cosines[metric], expected, atol=2e-5)
    nearest = np.array(LABELS)[cosines.argmax(axis=1)]
    assert (found.labels[:, 0] == nearest).mean() >= 0.99
    raw = RetrievalClassifier(store="memory", metric=metric, normalize=normalize, k=5, transform=None)
    assert made.score(ASKED, ANSWERS) > raw.fit(STORED, LABELS).score(ASKED, ANSWERS) + 0.1
    np.testing.assert_allclose(
        made.kneighbors(STORED[:5], k=1).distances[:, 0], expected_self(metric), atol=1e-6
    )


def expected_self(metric):
    return -1.0 if metric == "ip" else 0.0


def test_every_store_of_this_process_whitens(any_store):
    """They hold the same and answer the same, and are rewritten alike."""
    made = RetrievalClassifier(store=any_store, k=5, transform="whiten").fit(STORED, LABELS)
    reference = RetrievalClassifier(store=MemoryStore(), k=5, transform="whiten").fit(STORED, LABELS)
    assert_same(any_store, reference.store_)
    assert made.predict(ASKED).tolist() == reference.predict(ASKED).tolist()
    attached = RetrievalClassifier.from_store(any_store, k=5)
    np.testing.assert_array_equal(attached.predict_proba(ASKED), made.predict_proba(ASKED))
    made.partial_fit(*labelled(50, 5)).refit_transform()
    assert made.predict(ASKED).tolist() == attached.predict(ASKED).tolist()


class Plain:
    """A store that keeps no blobs: all else of one in memory."""

    def __init__(self):
        self._store = MemoryStore()

    def __getattr__(self, name):
        if name in ("read_blob", "write_blob") or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._store, name)


def test_a_store_that_cannot_keep_the_map_says_so():
    """It is refused where somebody insists, and goes without where the head would only like it."""
    store = Plain()
    with pytest.raises(UnsupportedOperationError, match=r"Plain cannot keep a transform .* transform=None"):
        RetrievalClassifier(store=store, transform="whiten").fit(STORED, LABELS)
    assert store.count() == 0
    made = RetrievalClassifier(store=store, k=3, transform="auto").fit(STORED, LABELS)
    with pytest.raises(UnsupportedOperationError, match="Plain cannot keep a transform"):
        made.set_params(transform="whiten").refit_transform()
    assert "transform" not in store.read_manifest()


def test_the_order_of_images_changes_nothing():
    """Nor does their division into calls, but for the map, which the first call learns."""
    first = RetrievalClassifier(store=MemoryStore(), transform="whiten").fit(STORED, LABELS)
    order = np.random.default_rng(3).permutation(len(STORED))
    second = RetrievalClassifier(store=MemoryStore(), transform="whiten")
    second.fit(STORED[order], [LABELS[place] for place in order])
    assert_same(second.store_, first.store_)
    third = RetrievalClassifier(store=MemoryStore(), transform="whiten")
    third.partial_fit(STORED[:100], LABELS[:100]).partial_fit(STORED[100:], LABELS[100:])
    third.refit_transform()
    assert_same(third.store_, first.store_, atol=1e-4)
    assert third.predict(ASKED).tolist() == first.predict(ASKED).tolist()


def test_the_map_stays_when_images_come_and_go():
    """Adding, forgetting and relabelling keep it; each record says which one it went through."""
    made = RetrievalClassifier(store=MemoryStore(), transform="whiten").fit(STORED, LABELS)
    before = made.store_.read_manifest()["transform"]
    ids, _, vectors, metadata = contents(made.store_)
    made.partial_fit(*labelled(40, 7))
    made.forget(ids[:20])
    made.relabel(ids[20:30], "class 9")
    made.partial_fit(STORED, LABELS)  # these labels come back, and what was forgotten
    assert made.store_.read_manifest()["transform"] == before
    again = contents(made.store_)
    assert len(again[0]) == 340
    places = [again[0].index(name) for name in ids]
    np.testing.assert_array_equal(again[2][places], vectors)
    assert [again[3][place] for place in places] == metadata
    assert {each["transform"] for each in again[3]} == {before["digest"][:8]}


def test_statistics_are_of_what_the_store_holds():
    """A head learns from whitened vectors, after the fit, changes and a rewriting."""
    made = RetrievalClassifier(store=MemoryStore(), head="discriminant", transform="whiten")
    made.fit(STORED, LABELS)
    for change in (
        lambda: None,
        lambda: made.partial_fit(*labelled(30, 3)),
        lambda: made.forget(made.kneighbors(ASKED[:3], k=1).ids[:, 0].tolist()),
        made.refit_transform,
    ):
        change()
        _, labels, vectors, _ = contents(made.store_)
        expected = ClassStatistics(DIM)
        expected.add(vectors, labels)
        found = made._statistics.statistics(made._index(), Moments())
        np.testing.assert_allclose(found.second_moment, expected.second_moment, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found.sums, expected.sums, rtol=1e-9, atol=1e-9)
        kept = made.store_.read_manifest()["statistics"]
        assert kept["count"] == len(labels)
    assert made.score(ASKED, ANSWERS) > 0.8


def test_a_store_goes_raw_and_back():
    """The vectors that were given come back to float32 precision, and whitening again gives the same."""
    raw = RetrievalClassifier(store=MemoryStore(), transform=None).fit(STORED, LABELS)
    made = RetrievalClassifier(store=MemoryStore(), transform="whiten").fit(STORED, LABELS)
    reference = contents(made.store_)
    made.set_params(transform=None)
    with pytest.raises(FingerprintMismatchError, match=r"stored 'whiten' \(dim=None, .*, given none"):
        made.predict(ASKED)
    made.refit_transform()
    manifest = made.store_.read_manifest()
    assert "transform" not in manifest
    assert manifest["format_version"] == 1
    assert contents(made.store_)[3] == [{}] * len(STORED)
    np.testing.assert_allclose(contents(made.store_)[2], contents(raw.store_)[2], rtol=1e-5, atol=1e-5)
    assert made.predict(ASKED).tolist() == raw.predict(ASKED).tolist()
    assert made.store_._blobs == {}
    made.set_params(transform="auto").predict(ASKED)
    with pytest.raises(InvalidInputError, match="no transform, so there is none to learn anew"):
        made.refit_transform()
    made.set_params(transform="whiten").refit_transform()
    assert made.store_.read_manifest()["format_version"] == 2
    np.testing.assert_allclose(contents(made.store_)[2], reference[2], atol=1e-4)
    made.set_params(transform=Whitening(shrinkage=0.5))
    with pytest.raises(FingerprintMismatchError, match=r"shrinkage='oas'\), given .* shrinkage=0.5"):
        made.kneighbors(ASKED)
    made.refit_transform()
    assert made.store_.read_manifest()["transform"]["shrinkage"] == 0.5
    assert len(made.store_._blobs) == 1


@pytest.mark.parametrize("kind", [MemoryStore, FaissStore])
def test_cut_dimensions(kind, tmp_path):
    """The store has fewer, questions have all; the map is learned anew within those that are kept."""
    made = RetrievalClassifier(store=kind(), k=5, transform=Whitening(dim=3)).fit(STORED, LABELS)
    assert (made.store_.dim, made.n_features_in_) == (3, DIM)
    first = made.score(ASKED, ANSWERS)
    assert first > RetrievalClassifier(store="memory", k=5).fit(STORED, LABELS).score(ASKED, ANSWERS) + 0.1
    made.partial_fit(*labelled(200, 4))
    before = made.store_.read_manifest()["transform"]["digest"]
    made.refit_transform()
    assert made.store_.read_manifest()["transform"]["digest"] != before
    assert made.score(ASKED, ANSWERS) >= first - 0.02
    made.save(tmp_path / "saved")
    loaded = RetrievalClassifier.load(tmp_path / "saved")
    assert loaded.n_features_in_ == DIM
    assert loaded.predict(ASKED).tolist() == made.predict(ASKED).tolist()
    attached = RetrievalClassifier.from_store(made.store_, k=5)
    assert attached.n_features_in_ == DIM
    assert attached.predict(ASKED).tolist() == made.predict(ASKED).tolist()
    for other in (None, "whiten", Whitening(dim=2)):
        with pytest.raises(UnsupportedOperationError, match="fit into another store"):
            made.set_params(transform=other).refit_transform()
    assert made.set_params(transform="auto").predict(ASKED).tolist() == attached.predict(ASKED).tolist()
    with pytest.raises(InvalidInputError, match="is to keep 9 dimensions, and the vectors have 8"):
        RetrievalClassifier(store=kind(), transform=Whitening(dim=9)).fit(STORED, LABELS)


def test_cutting_keeps_what_was_there_until_it_is_replaced():
    """A fit that fails before its end stores nothing; overwriting then has cost nothing."""
    store = MemoryStore()
    made = RetrievalClassifier(store=store, transform=Whitening(dim=3)).fit(STORED, LABELS)
    before = contents(store)
    broken = np.vstack([STORED, np.zeros((1, DIM), dtype=np.float32)])
    other = RetrievalClassifier(store=store, metric="l2", transform=Whitening(dim=3, shrinkage=1.0))

    def fail(done, total):
        if done:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        other.fit(broken, [*LABELS, "class 0"], overwrite=True, progress=fail)
    assert contents(store)[0] == before[0]
    assert made.score(ASKED, ANSWERS) > 0.7
    other.fit(broken, [*LABELS, "class 0"], overwrite=True)
    assert store.count() == 301
    assert len(store._blobs) == 1


def test_filled_stores_decide():
    """Attached, loaded, gone on with: the store's own; another that is named is refused."""
    store = MemoryStore()
    RetrievalClassifier(store=store, transform="whiten").fit(STORED, LABELS)
    for other in (None, Whitening(dim=2)):
        with pytest.raises(FingerprintMismatchError, match="another transform: stored 'whiten'"):
            RetrievalClassifier.from_store(store, transform=other)
        for call in ("resume", "partial"):
            made = RetrievalClassifier(store=store, transform=other)
            with pytest.raises(FingerprintMismatchError, match="another transform: stored 'whiten'"):
                made.fit(STORED, LABELS, resume=True) if call == "resume" else made.partial_fit(
                    STORED, LABELS
                )
    assert RetrievalClassifier.from_store(store, transform="whiten").score(ASKED, ANSWERS) > 0.7
    raw = MemoryStore()
    RetrievalClassifier(store=raw).fit(STORED, LABELS)
    with pytest.raises(FingerprintMismatchError, match="stored none, given 'whiten'"):
        RetrievalClassifier.from_store(raw, transform="whiten")
    assert "transform" not in raw.read_manifest()


def test_the_head_decides_for_an_empty_store():
    """``fused`` whitens unless told not to; others do not."""
    assert "transform" in RetrievalClassifier(head="fused").fit(STORED, LABELS).store_.read_manifest()
    plain = RetrievalClassifier(head="fused", transform=None).fit(STORED, LABELS)
    assert "transform" not in plain.store_.read_manifest()
    assert "transform" not in RetrievalClassifier(head="ridge").fit(STORED, LABELS).store_.read_manifest()


def test_an_emptied_store_learns_its_map_anew():
    """All forgotten, filled again without a word: whitened again, by what is there now."""
    made = RetrievalClassifier(store=MemoryStore(), transform="whiten").fit(STORED, LABELS)
    made.forget(contents(made.store_)[0])
    attached = RetrievalClassifier(store=made.store_).partial_fit(*labelled(80, 2))
    fresh = RetrievalClassifier(store=MemoryStore(), transform="whiten").fit(*labelled(80, 2))
    assert_same(attached.store_, fresh.store_)
    assert len(attached.store_._blobs) == 1
    attached.set_params(transform=None).fit(STORED, LABELS, overwrite=True)
    assert attached.store_._blobs == {}
    assert "transform" not in attached.store_.read_manifest()


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
def test_vectors_without_a_direction(metric):
    """A single image, and images equal to the mean, are stored and found."""
    single = RetrievalClassifier(store="memory", metric=metric, transform="whiten")
    single.fit(STORED[:1], LABELS[:1])
    assert single.predict(ASKED[:3]).tolist() == LABELS[:1] * 3
    points = np.array([[1, 1], [3, 3], [2, 2]], dtype=np.float32)
    made = RetrievalClassifier(store="memory", metric=metric, transform="whiten").fit(points, list("aab"))
    assert sorted(each["norm"] == 0 for each in contents(made.store_)[3]) == [False, False, True]
    assert made.predict([[2.0, 2.0]]).tolist() == ["b"]
    made.set_params(transform=None).refit_transform()
    np.testing.assert_allclose(np.sort(contents(made.store_)[2], axis=0), np.sort(points, axis=0), rtol=1e-6)


def test_saved_and_loaded(tmp_path):
    """The map goes with the copy; one that was changed is noticed."""
    made = RetrievalClassifier(store="memory", k=3, transform="whiten").fit(STORED, LABELS)
    made.save(tmp_path / "saved")
    loaded = RetrievalClassifier.load(tmp_path / "saved")
    np.testing.assert_array_equal(loaded.predict_proba(ASKED), made.predict_proba(ASKED))
    assert str(loaded.explain(ASKED[:1])[0]) == str(made.explain(ASKED[:1])[0])
    assert loaded.evaluate(ASKED, ANSWERS).accuracy == made.score(ASKED, ANSWERS)
    store = made.store_
    name = f"transform-{store.read_manifest()['transform']['digest'][:8]}"
    content = store.read_blob(name)
    store.write_blob(name, content[:-1] + b"x")
    assert made.predict(ASKED[:1]).tolist() == loaded.predict(ASKED[:1]).tolist()  # it has read it before
    store.write_blob(name, content[: len(content) // 2])
    with pytest.raises(StoreCorruptedError, match="transform that the store keeps is damaged"):
        RetrievalClassifier.from_store(store)
    store.write_blob(name, None)
    with pytest.raises(StoreCorruptedError, match="the store lacks transform-"):
        RetrievalClassifier.from_store(store)
    store.write_manifest({**store.read_manifest(), "transform": {"state": "odd"}})
    with pytest.raises(StoreCorruptedError, match="says of its transform"):
        RetrievalClassifier.from_store(store)


def test_nobody_is_answered_while_a_store_is_rewritten():
    """Questions of every kind, new classifiers and changes by others are refused until it is done."""
    store = MemoryStore()
    made = RetrievalClassifier(store=store, k=3, transform="whiten", head="discriminant").fit(STORED, LABELS)
    asking = RetrievalClassifier.from_store(store, k=3)
    retriever = asking.retriever_
    calls = {
        "predict": lambda: asking.predict(ASKED[:2]),
        "own": lambda: made.predict_proba(ASKED[:2]),
        "kneighbors": lambda: asking.kneighbors(ASKED[:2]),
        "explain": lambda: asking.explain(ASKED[:2]),
        "attach": lambda: RetrievalClassifier.from_store(store),
        "held": lambda: list(retriever.search(ASKED[:2], 3)),
    }
    seen = {}

    def ask(done, total):
        with ThreadPoolExecutor(1) as pool:
            for name, call in calls.items():
                seen[name] = pool.submit(call).exception()

    expected = asking.predict(ASKED)
    made.partial_fit(*labelled(100, 6)).refit_transform(progress=ask)
    assert {name: type(error) for name, error in seen.items()} == dict.fromkeys(calls, StoreLockedError)
    assert "is being rewritten" in str(seen["predict"])
    with pytest.raises(StoreLockedError, match="mapped anew meanwhile; ask again"):
        list(retriever.search(ASKED[:2], 3))
    assert (asking.predict(ASKED) == expected).mean() > 0.7


class Crash(BaseException):
    """What stands for the end of a process."""


class Crashing(MemoryStore):
    """A store that keeps each write at once, and writes nothing more after so many."""

    left = None

    def _count(self):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Crash

    def upsert(self, *args):
        self._count()
        super().upsert(*args)

    def write_manifest(self, manifest):
        self._count()
        super().write_manifest(manifest)

    def write_blob(self, name, content):
        self._count()
        super().write_blob(name, content)


@pytest.fixture
def small(monkeypatch):
    """Rewrite ten records at a time."""
    monkeypatch.setattr("clipretrieval.retrieval.rewriting.BATCH", 10)
    return STORED[:40], LABELS[:40]


@pytest.mark.parametrize("head", ["votes", "discriminant"])
def test_a_fit_is_gone_on_with_wherever_it_ends(small, head):
    """After each of its writes: no question is answered, and resume or a rewriting ends as if undisturbed."""
    whole = RetrievalClassifier(store=MemoryStore(), transform="whiten", head=head).fit(*small)
    extra = labelled(10, 8)
    more = RetrievalClassifier.from_store(whole.store_, transform="whiten", head=head)
    writes, ended = 0, False
    while not ended:
        store = Crashing()
        store.left = writes
        try:
            RetrievalClassifier(store=store, transform="whiten", head=head).fit(*small)
            ended = True
        except Crash:
            pass
        store.left = None
        state = (store.read_manifest().get("transform") or {}).get("state")
        if state in ("pending", "rewriting") and store.count():
            with pytest.raises(StoreLockedError, match="resume=True"):
                RetrievalClassifier.from_store(store)
        if state == "rewriting" and writes % 2:
            single = RetrievalClassifier(store=store, head=head).refit_transform()
            assert single.predict(ASKED).tolist() == whole.predict(ASKED).tolist()
        elif not ended:
            RetrievalClassifier(store=store, transform="whiten", head=head).fit(*small, resume=True)
        assert_same(store, whole.store_)
        assert store._blobs.keys() == whole.store_._blobs.keys()
        writes += 1
    assert writes > 8
    more.partial_fit(*extra)
    resumed = RetrievalClassifier(store=store, head=head).fit(*extra, resume=True)
    assert_same(resumed.store_, more.store_)


@pytest.mark.parametrize("after", ["whiten", None, Whitening(shrinkage=0.3)])
def test_a_rewriting_is_gone_on_with_wherever_it_ends(small, after):
    """After each of its writes: either all is as before, or nobody is answered until it is finished."""

    def make(store):
        made = RetrievalClassifier(store=store, transform="whiten").fit(*small)
        made.partial_fit(*labelled(15, 9))
        return made.set_params(transform=after)

    whole = make(MemoryStore()).refit_transform()
    writes, ended = 0, False
    while not ended:
        store = Crashing()
        made = make(store)
        before = RetrievalClassifier.from_store(store).predict(ASKED).tolist()
        store.left = writes
        try:
            made.refit_transform()
            ended = True
        except Crash:
            pass
        store.left = None
        state = (store.read_manifest().get("transform") or {}).get("state")
        if state == "rewriting":
            with pytest.raises(StoreLockedError, match=r"refit_transform\(\)"):
                RetrievalClassifier.from_store(store)
        elif not ended and writes < 3:
            assert RetrievalClassifier.from_store(store).predict(ASKED).tolist() == before
        RetrievalClassifier(store=store, transform=after).refit_transform()
        assert_same(store, whole.store_, atol=1e-4)
        assert made.predict(ASKED).tolist() == whole.predict(ASKED).tolist()
        assert len(store._blobs) == (after is not None)
        writes += 1
    assert writes > 6


def killed(program):
    """Run a program that kills itself."""
    assert run_warm(["-c", program]).returncode == -signal.SIGKILL


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize(("kind", "upserts"), [(FaissStore, 1), (FaissStore, 3), (ChromaStore, 3)])
def test_a_killed_rewriting_is_gone_on_with(tmp_path, kind, upserts, small):
    """A process that is killed amid its upserts, of a store that keeps each of them."""
    killed(f"""
import os, signal
import clipretrieval.retrieval.rewriting as rewriting
from clipretrieval import RetrievalClassifier
from clipretrieval.stores import {kind.__name__}
from test_whitened import LABELS, STORED
rewriting.BATCH = 10
class Killed({kind.__name__}):
    left = {upserts}
    def upsert(self, *args):
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
        super().upsert(*args)
        self.flush()
store = Killed({str(tmp_path / "killed")!r})
RetrievalClassifier(store=store, transform="whiten", head="discriminant").fit(STORED[:40], LABELS[:40])
""")
    whole = RetrievalClassifier(store=MemoryStore(), transform="whiten", head="discriminant").fit(*small)
    with kind(tmp_path / "killed") as store:
        assert store.read_manifest()["transform"]["state"] == "rewriting"
        marks = {metadata.get("transform") for metadata in contents(store)[3]}
        assert len(marks) == min(upserts, 2)  # some are rewritten, or none yet
        with pytest.raises(StoreLockedError, match="interrupted"):
            RetrievalClassifier.from_store(store)
        made = RetrievalClassifier(store=store, head="discriminant").fit(*small, resume=True)
        assert_same(store, whole.store_)
        np.testing.assert_allclose(made.predict_proba(ASKED), whole.predict_proba(ASKED), atol=1e-5)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_fit_that_is_killed_among_its_images_is_gone_on_with(tmp_path):
    """What was flushed is raw; resume encodes the rest, and whitens all."""
    killed(f"""
import os, signal
from colours import Colours, colour
from clipretrieval import RetrievalClassifier
from clipretrieval.stores import FaissStore
def images():
    for number in range(0, 512, 8):
        if number == 400:
            os.kill(os.getpid(), signal.SIGKILL)
        yield colour(number), f"shade {{number // 64}}"
store = FaissStore({str(tmp_path / "killed")!r})
RetrievalClassifier(Colours(), store, transform="whiten").fit(images(), flush_every=8)
""")
    images, labels = pairs(range(0, 512, 8))
    whole = RetrievalClassifier(Colours(), MemoryStore(), transform="whiten").fit(images, labels)
    with FaissStore(tmp_path / "killed") as store:
        assert store.read_manifest()["transform"]["state"] == "pending"
        assert store.count() >= 40
        with pytest.raises(StoreLockedError, match="is being filled, to be mapped at the end, or that was"):
            RetrievalClassifier.from_store(store, Colours())
        made = RetrievalClassifier(Colours(), store, transform="whiten").fit(images, labels, resume=True)
        assert made.fit_report_.already_there >= 40
        assert_same(store, whole.store_)


def test_what_another_process_has_rewritten_is_followed(tmp_path):
    """A reader of a folder takes up the new map with the new vectors."""
    with FaissStore(tmp_path / "store") as store:
        made = RetrievalClassifier(store=store, transform="whiten", k=3).fit(STORED, LABELS)
        with FaissStore(tmp_path / "store", read_only=True) as view:
            reader = RetrievalClassifier.from_store(view, k=3)
            assert reader.predict(ASKED).tolist() == made.predict(ASKED).tolist()
            made.partial_fit(*labelled(150, 3)).refit_transform()
            np.testing.assert_array_equal(reader.predict_proba(ASKED), made.predict_proba(ASKED))


def test_nothing_to_rewrite():
    """An empty store, and one that nobody has filled, have nothing to learn from."""
    with pytest.raises(NotFittedError, match="no classifier has filled this MemoryStore"):
        RetrievalClassifier(store=MemoryStore(), transform="whiten").refit_transform()
    made = RetrievalClassifier(store=MemoryStore(), transform="whiten").fit(STORED, LABELS)
    made.forget(contents(made.store_)[0])
    with pytest.raises(NotFittedError, match="holds no vectors"):
        made.refit_transform()


def test_records_that_others_wrote_are_not_taken_for_whitened():
    """One without its length, or of another map, stops a rewriting; the store says what to do."""
    made = RetrievalClassifier(store=MemoryStore(), transform="whiten").fit(STORED, LABELS)
    made.store_.upsert(["mine"], STORED[:1], ["class 0"])
    with pytest.raises(StoreCorruptedError, match="lacks the length"):
        made.refit_transform()
    made.store_.upsert(["mine"], STORED[:1], ["class 0"], [{"norm": 1.0, "transform": "strange"}])
    with pytest.raises(StoreCorruptedError, match="'mine' went through the transform 'strange'"):
        made.refit_transform()
