"""Stores and classifiers that earlier versions wrote open, answer as they did, and take changes.

`make_fixtures.py` wrote them, with what they answered.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from recorded import (
    FIXTURES,
    check_same,
    classifier_answers,
    read,
    report_values,
    store_answers,
)

from clipretrieval import RetrievalClassifier
from clipretrieval.stores import ChromaStore, FaissStore, MemoryStore, VectorStore

STORES = sorted(folder.name for folder in (FIXTURES / "stores").iterdir())
CLASSIFIERS = sorted(folder.name for folder in (FIXTURES / "classifiers").iterdir())
KINDS = {name: read(FIXTURES / "stores" / name)["kind"] for name in STORES}
REPORTED = [name for name in CLASSIFIERS if read(FIXTURES / "classifiers" / name)["report"] is not None]
WITH_FOLDER = [name for name in CLASSIFIERS if read(FIXTURES / "classifiers" / name)["inside"] is not None]
LOCKS = ("LOCK", "clipretrieval.lock")

Answers = dict[str, Any]


def open_store(folder: Path, recorded: Answers, **options: Any) -> Any:
    """Open the store in a folder as what wrote it."""
    if recorded["kind"] == "memory":
        return MemoryStore.load(folder)
    kind: Any = {"faiss": FaissStore, "chroma": ChromaStore}[recorded["kind"]]
    return kind(folder, metric=recorded["metric"], create=False, **options)


def answers_of(store: Any, recorded: Answers) -> Answers:
    return store_answers(store, recorded["queries"], recorded["k"], recorded["some"])


def index_of(store: Any) -> dict[str, Any] | None:
    return dict(vars(store.index_info)) if isinstance(store, FaissStore) else None


def contents(folder: Path) -> dict[str, bytes]:
    """The files in a folder, but for its lock."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.name not in LOCKS)
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def in_memory(store: Any) -> MemoryStore:
    """A MemoryStore that holds the same."""
    ids = [name for part in store.scan() for name in part.ids.tolist()]
    held, twin = store.get(ids), MemoryStore(store.metric)
    twin.upsert(ids, held.vectors, held.labels.tolist(), held.metadata)
    twin.write_manifest(store.read_manifest())
    return twin


def stored_ids(store: Any) -> set[str]:
    return {name for part in store.scan() for name in part.ids.tolist()}


@pytest.fixture
def no_building(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let FAISS neither train nor fill an approximate index."""

    def refuse(*_: object) -> None:
        raise AssertionError("an index was built")

    for name, kind in vars(faiss).items():
        if name.startswith("Index") and not name.startswith("IndexFlat") and isinstance(kind, type):
            for method in {"train", "add"} & set(vars(kind)):
                monkeypatch.setattr(kind, method, refuse)


class TestStores:
    @pytest.fixture(params=STORES)
    def recorded(self, request: pytest.FixtureRequest) -> Answers:
        return {"name": request.param, **read(FIXTURES / "stores" / request.param)}

    @pytest.fixture
    def folder(self, recorded: Answers, tmp_path: Path) -> Path:
        """A copy of the store's folder."""
        return Path(shutil.copytree(FIXTURES / "stores" / recorded["name"] / "store", tmp_path / "store"))

    @pytest.mark.usefixtures("no_building")
    def test_a_store_answers_as_it_did(self, folder: Path, recorded: Answers) -> None:
        """Searches, records, listing, count and manifest are those recorded, and no index is built."""
        with open_store(folder, recorded) as store:
            check_same(answers_of(store, recorded), recorded["answers"], exact=recorded["exact"])
            assert index_of(store) == recorded["index"]

    # Chroma keeps books of its own in its database.
    @pytest.mark.parametrize("recorded", [name for name in STORES if KINDS[name] != "chroma"], indirect=True)
    @pytest.mark.usefixtures("no_building")
    def test_reading_changes_no_file(self, folder: Path, recorded: Answers) -> None:
        """A store that is opened, asked and closed leaves its folder as it was."""
        before = contents(folder)
        with open_store(folder, recorded) as store:
            answers_of(store, recorded)
        assert contents(folder) == before

    @pytest.mark.parametrize("recorded", [name for name in STORES if KINDS[name] == "faiss"], indirect=True)
    @pytest.mark.parametrize("mmap", [False, True])
    @pytest.mark.usefixtures("no_building")
    def test_a_folder_opens_to_be_read(self, folder: Path, recorded: Answers, mmap: bool) -> None:
        """Read or mapped into memory, with the metric that the folder names, the answers are the same."""
        with FaissStore.load(folder, mmap=mmap) as store:
            check_same(answers_of(store, recorded), recorded["answers"], exact=recorded["exact"])

    @pytest.mark.parametrize("recorded", [name for name in STORES if name != "flat-empty"], indirect=True)
    def test_a_store_takes_changes(self, folder: Path, recorded: Answers) -> None:
        """After additions, replacements and removals it answers as an exact one, and so when reopened."""
        answers, k = recorded["answers"], recorded["k"]
        queries = np.array(recorded["queries"], dtype=np.float32)
        nearest = [row[0] for row in answers["search"]["ids"]]
        other_label = "another" if isinstance(answers["scan"][0][1], str) else 4711
        with open_store(folder, recorded) as store:
            twin, before = in_memory(store), store.get(nearest[1:3])
            changed: VectorStore
            for changed in (store, twin):
                changed.upsert(["new"], queries[:1], [other_label], [{"is": "new"}])
                assert changed.delete(nearest[1:2]) == 1
                changed.upsert(nearest[2:3], before.vectors[1:], [other_label])
                changed.flush()
            self.check_equal(store, twin, queries, k)
            if recorded["kind"] == "memory":
                store.save(folder)
        with open_store(folder, recorded) as store:
            self.check_equal(store, twin, queries, k)
            assert store.get(["new"]).metadata == [{"is": "new"}]
            assert nearest[1] not in store.search(queries, k).ids
            near = store.search(queries[2:3], k)
            assert near.labels[near.ids == nearest[2]].tolist() == [other_label]
            assert store.delete(["new"]) == 1
            store.upsert(before.ids.tolist(), before.vectors, before.labels.tolist(), before.metadata)
            store.flush()
            check_same(answers_of(store, recorded), answers, exact=recorded["exact"])

    def check_equal(self, store: Any, twin: MemoryStore, queries: Any, k: int) -> None:
        found, expected = store.search(queries, k), twin.search(queries, k)
        assert found.ids.tolist() == expected.ids.tolist()
        assert found.labels.tolist() == expected.labels.tolist()
        np.testing.assert_allclose(found.distances, expected.distances, rtol=1e-6, atol=1e-6)
        assert store.count() == twin.count()

    def test_an_empty_store_takes_records(self, tmp_path: Path) -> None:
        """The folder of a store that holds nothing but a manifest can be filled."""
        folder = Path(shutil.copytree(FIXTURES / "stores" / "flat-empty" / "store", tmp_path / "store"))
        with FaissStore(folder) as store:
            store.upsert(["a"], np.ones((1, 4), dtype=np.float32), ["one"])
        with FaissStore.load(folder) as store:
            assert store.search(np.ones((1, 4), dtype=np.float32), 1).labels.tolist() == [["one"]]
            assert store.read_manifest() == {"nothing": []}


class TestClassifiers:
    @pytest.fixture(params=CLASSIFIERS)
    def home(self, request: pytest.FixtureRequest) -> Path:
        name: str = request.param
        return FIXTURES / "classifiers" / name

    @pytest.fixture
    def recorded(self, home: Path) -> Answers:
        return read(home)

    @pytest.fixture
    def folder(self, home: Path, tmp_path: Path) -> Path:
        """A copy of the saved classifier."""
        return Path(shutil.copytree(home / "classifier", tmp_path / "classifier"))

    @pytest.fixture
    def loaded(self, folder: Path) -> Iterator[RetrievalClassifier]:
        classifier = RetrievalClassifier.load(folder)
        yield classifier
        classifier.store_.close()

    @pytest.fixture
    def queries(self, home: Path, recorded: Answers) -> Any:
        if recorded["images"]:
            return sorted((home / "queries").iterdir())
        return self.rows(recorded["queries"], recorded)

    @pytest.fixture
    def more(self, home: Path, recorded: Answers) -> tuple[Any, list[Any]]:
        """What can be added, of a class that is not there yet or has none of these."""
        if recorded["images"]:
            return sorted((home / "more").iterdir()), recorded["more"]["y"]
        return self.rows(recorded["more"]["X"], recorded), recorded["more"]["y"]

    def rows(self, numbers: list[list[int]], recorded: Answers) -> Any:
        if recorded["feature_names"] is None:
            return numbers
        pandas = pytest.importorskip("pandas")
        return pandas.DataFrame(np.array(numbers, dtype=np.float32), columns=recorded["feature_names"])

    def test_a_classifier_answers_as_it_did(
        self, loaded: RetrievalClassifier, queries: Any, recorded: Answers
    ) -> None:
        """Classes, predictions, shares and neighbours are those recorded."""
        found = classifier_answers(loaded, queries)
        check_same(found, recorded["answers"], exact=recorded["exact"])
        assert index_of(loaded.store_) == recorded["index"]

    # Of images a report names the places.
    @pytest.mark.parametrize("home", REPORTED, indirect=True)
    def test_a_report_says_what_it_said(
        self, loaded: RetrievalClassifier, queries: Any, recorded: Answers
    ) -> None:
        """An evaluation's JSON has the fields and the figures that it had, and says what decided."""
        found = report_values(loaded.evaluate(queries, recorded["true"]))
        assert found.pop("head") == "votes"
        assert (found.pop("unknown"), found["calibration"].pop("ece_before")) == (None, None)
        check_same(found, recorded["report"], exact=False)

    def test_a_classifier_takes_changes(
        self, loaded: RetrievalClassifier, folder: Path, queries: Any, more: Any, recorded: Answers
    ) -> None:
        """What is added is found, also after saving and loading; forgotten again, it leaves but a token."""
        images, labels = more
        before, twin = stored_ids(loaded.store_), self.over_memory(loaded)
        for classifier in (loaded, twin):
            classifier.partial_fit(images, labels)
            assert labels[0] in classifier.classes_.tolist()
        added = stored_ids(loaded.store_) - before
        assert len(added) == len(labels)
        self.check_equal(loaded, twin, queries)
        self.check_equal(loaded, twin, images)
        loaded.save(folder)
        loaded.store_.close()
        again = RetrievalClassifier.load(folder)
        self.check_equal(again, twin, images)
        assert set(again.forget(sorted(added)).ids) == added
        found = classifier_answers(again, queries)
        assert found["manifest"].pop("statistics").keys() == {"token"}
        check_same(found, recorded["answers"], exact=recorded["exact"])
        again.store_.close()

    @pytest.mark.parametrize("home", WITH_FOLDER, indirect=True)
    def test_a_store_can_be_attached_to(self, folder: Path, queries: Any, recorded: Answers) -> None:
        """The store that a classifier filled in a folder serves without the saved classifier."""
        store, params = recorded["inside"], recorded["answers"]["params"]
        kept = {name: params[name] for name in ("k", "weights", "temperature", "metric")}
        options = {"path": str(folder / store["folder"])}
        attached = RetrievalClassifier.from_store(store["name"], store_options=options, **kept)
        check_same(classifier_answers(attached, queries), recorded["answers"], exact=recorded["exact"])
        attached.store_.close()

    def over_memory(self, classifier: RetrievalClassifier) -> RetrievalClassifier:
        """A classifier with the same parameters over a MemoryStore that holds the same."""
        params = classifier.get_params(deep=False)
        kept = {name: params[name] for name in ("k", "weights", "temperature")}
        twin = RetrievalClassifier.from_store(in_memory(classifier.store_), classifier.encoder, **kept)
        if hasattr(classifier, "feature_names_in_"):  # which no store keeps
            twin.feature_names_in_ = classifier.feature_names_in_
        return twin

    def check_equal(self, found: RetrievalClassifier, expected: RetrievalClassifier, X: Any) -> None:
        assert found.predict(X).tolist() == expected.predict(X).tolist()
        assert found.kneighbors(X).ids.tolist() == expected.kneighbors(X).ids.tolist()
        np.testing.assert_allclose(found.predict_proba(X), expected.predict_proba(X), rtol=1e-6, atol=1e-6)
