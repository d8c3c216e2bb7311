"""from_store, growing stores, threads, and vectors of length one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from colours import Colours, colour, pairs
from warm_process import run_warm

from clipretrieval import (
    FingerprintMismatchError,
    InvalidInputError,
    RetrievalClassifier,
    StagedEncoder,
    StoreUnavailableError,
)
from clipretrieval.images import scan_folder
from clipretrieval.stores import ChromaStore, FaissStore, MemoryStore

QUESTIONS = [colour(number) for number in range(3, 256, 5)]


def test_a_filled_store_is_enough(encoder, any_store):
    """Classes, their type, and every answer are those of the classifier that filled it."""
    first = RetrievalClassifier(encoder, any_store, k=5).fit(*pairs(range(256)))
    second = RetrievalClassifier.from_store(any_store, Colours(), k=5)
    assert second.classes_.tolist() == first.classes_.tolist()
    assert second.n_features_in_ == 3
    assert second.predict(QUESTIONS).tolist() == first.predict(QUESTIONS).tolist()
    np.testing.assert_array_equal(second.predict_proba(QUESTIONS), first.predict_proba(QUESTIONS))


def test_a_second_process_attaches_by_name(tmp_path, class_folder, tiny_model):
    """It needs the store's place and the encoder's arguments, nothing else."""
    encoder = StagedEncoder(tiny_model, stage="mid", precision="fp32")
    asked = scan_folder(class_folder / "test").paths
    expected = []
    for name, make in (("faiss", FaissStore), ("chroma", ChromaStore)):
        with make(tmp_path / name) as store:
            classifier = RetrievalClassifier(encoder, store).fit(class_folder / "train")
            expected.append(str(classifier.predict(asked).tolist()))
    code = f"""
from clipretrieval import RetrievalClassifier, StagedEncoder
encoder = StagedEncoder({tiny_model!r}, stage="mid", precision="fp32")
for name in ("faiss", "chroma"):
    place = {{"path": {str(tmp_path)!r} + "/" + name}}
    classifier = RetrievalClassifier.from_store(name, encoder, store_options=place)
    print(classifier.predict({[str(path) for path in asked]!r}).tolist())
"""
    done = run_warm(["-c", code], check=True)
    assert done.stdout.splitlines() == expected


def test_metric_and_length_come_from_the_store(encoder):
    """They are not asked for, and refused where they contradict it."""
    store = MemoryStore(metric="cosine")
    RetrievalClassifier(encoder, store, metric="cosine", normalize=True).fit(*pairs(range(256)))
    attached = RetrievalClassifier.from_store(store, encoder)
    assert (attached.metric, attached.normalize) == ("cosine", True)
    with pytest.raises(FingerprintMismatchError, match="metric: stored 'cosine', given 'l2'"):
        RetrievalClassifier.from_store(store, encoder, metric="l2")
    with pytest.raises(FingerprintMismatchError, match="normalize: stored True, given False"):
        RetrievalClassifier.from_store(store, encoder, normalize=False)


def test_a_store_that_no_classifier_filled_is_refused(encoder, tmp_path):
    """An empty one, one filled by hand, one that is not there, and one whose encoder is missing."""
    with pytest.raises(InvalidInputError, match="no classifier has filled this MemoryStore"):
        RetrievalClassifier.from_store(MemoryStore(), encoder)
    by_hand = MemoryStore()
    by_hand.upsert(["a"], [[1.0, 2.0, 3.0]], ["x"])
    with pytest.raises(InvalidInputError, match="it holds 1 vectors and no manifest"):
        RetrievalClassifier.from_store(by_hand, encoder)
    options = {"path": tmp_path / "nowhere", "read_only": True}
    with pytest.raises(StoreUnavailableError, match="no store in"):
        RetrievalClassifier.from_store("faiss", encoder, store_options=options)
    filled = MemoryStore()
    RetrievalClassifier(encoder, filled).fit(*pairs(range(256)))
    with pytest.raises(InvalidInputError, match=r"an encoder filled this store \(encoder='Colours'\)"):
        RetrievalClassifier.from_store(filled)
    with pytest.raises(InvalidInputError, match="not a vector store"):
        RetrievalClassifier.from_store(object(), encoder)


def test_a_store_that_grows_is_seen(encoder, any_store):
    """Another classifier adds a class to the same store: the next question knows it."""
    first = RetrievalClassifier(encoder, any_store).fit(*pairs(range(128)))
    second = RetrievalClassifier.from_store(any_store, encoder)
    first.partial_fit([colour(900)], ["new"])
    assert second.predict([colour(901)]).tolist() == ["new"]
    assert second.classes_.tolist() == ["new", "shade 0", "shade 1"]


def test_a_folder_that_another_store_fills_is_seen(encoder, tmp_path):
    """A reader takes up what a writer has flushed, without being opened again."""
    with FaissStore(tmp_path / "index") as writing:
        writer = RetrievalClassifier(encoder, writing).fit(*pairs(range(128)))
        with FaissStore(tmp_path / "index", read_only=True) as reading:
            reader = RetrievalClassifier.from_store(reading, encoder)
            assert reader.predict([colour(901)]).tolist() == ["shade 1"]
            writer.partial_fit([colour(900)], ["new"])
            assert reader.predict([colour(901)]).tolist() == ["new"]
            writer.forget(label="new")
            assert reader.predict([colour(901)]).tolist() == ["shade 1"]


def test_threads_get_what_one_gets(class_folder, tiny_model):
    """Eight at once, each picture by itself, with a real encoder."""
    encoder = StagedEncoder(tiny_model, stage="mid")
    classifier = RetrievalClassifier(encoder, k=3, weights="softmax").fit(class_folder / "train")
    asked = scan_folder(class_folder / "test").paths * 5
    serial = [classifier.predict_proba([path]).tolist() for path in asked]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda path: classifier.predict_proba([path]).tolist(), asked)) == serial


def test_threads_ask_while_one_adds_and_forgets(encoder, any_store):
    """Every answer is one of a moment before or after, never an error."""
    classifier = RetrievalClassifier(encoder, any_store).fit(*pairs(range(128)))

    def ask(_):
        return classifier.predict([colour(200), colour(3)]).tolist()

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, None) for _ in range(20)]
        for _ in range(5):
            classifier.partial_fit([colour(199)], ["new"])
            asked += [pool.submit(ask, None) for _ in range(10)]
            classifier.forget(label="new")
        found = {tuple(job.result()) for job in asked}
    assert found <= {("new", "shade 0"), ("shade 1", "shade 0")}
    assert classifier.predict([colour(200)]).tolist() == ["shade 1"]


@pytest.mark.parametrize("store", ["memory", "faiss", "chroma"])
def test_normalize_gives_the_neighbours_of_the_cosine(store):
    """l2 on vectors of length one is 2 − 2 cos, from vectors as from pictures."""
    rng = np.random.default_rng(0)
    points, asked = rng.normal(size=(200, 8)).astype(np.float32), rng.normal(size=(50, 8)).astype(np.float32)
    labels = rng.integers(0, 4, 200)
    unit = RetrievalClassifier(None, store, k=7, normalize=True, weights="softmax").fit(points, labels)
    cosine = RetrievalClassifier(None, "memory", k=7, metric="cosine", weights="softmax").fit(points, labels)
    near, other = unit.kneighbors(asked), cosine.kneighbors(asked)
    assert near.ids.tolist() == other.ids.tolist()
    np.testing.assert_allclose(near.distances, 2 * other.distances, atol=1e-5)
    np.testing.assert_allclose(unit.predict_proba(asked), cosine.predict_proba(asked), atol=1e-4)
    stored = unit.store_.get(near.ids[0].tolist()).vectors
    np.testing.assert_allclose(np.linalg.norm(stored, axis=1), 1, rtol=1e-6)


def test_normalize_is_kept_when_saved(encoder, tmp_path):
    """The loaded classifier scales as the saved one did."""
    classifier = RetrievalClassifier(encoder, normalize=True, k=3).fit(*pairs(range(256)))
    classifier.save(tmp_path / "saved")
    loaded = RetrievalClassifier.load(tmp_path / "saved", encoder)
    assert loaded.normalize is True
    assert (
        loaded.kneighbors(QUESTIONS).distances.tolist() == classifier.kneighbors(QUESTIONS).distances.tolist()
    )


@pytest.mark.parametrize("value", [1, "yes", None])
def test_normalize_is_true_or_false(value):
    with pytest.raises(InvalidInputError, match="normalize must be True or False"):
        RetrievalClassifier(normalize=value).fit([[0.0], [1.0]], ["a", "b"])


@pytest.mark.parametrize("store", ["faiss", "memory"])
def test_a_loaded_classifier_learns_and_the_saved_one_stays_until_it_is_saved(store, tmp_path):
    """What is added after loading is there at once, and on disk after the next save."""
    rows = np.eye(4, dtype=np.float32)
    RetrievalClassifier(store=store).fit(rows[:2], ["a", "b"]).save(tmp_path / "kept")
    loaded = RetrievalClassifier.load(tmp_path / "kept")
    loaded.partial_fit(rows[2:], ["c", "d"])
    assert loaded.predict(rows).tolist() == ["a", "b", "c", "d"]
    loaded.forget(label="a")
    untouched = RetrievalClassifier.load(tmp_path / "kept")
    assert untouched.classes_.tolist() == ["a", "b"]
    assert untouched.store_.count() == 2
    loaded.save(tmp_path / "kept")
    assert RetrievalClassifier.load(tmp_path / "kept").predict(rows[1:]).tolist() == ["b", "c", "d"]
    assert loaded.predict(rows[1:]).tolist() == ["b", "c", "d"]
