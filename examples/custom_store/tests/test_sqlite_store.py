"""The SqliteStore conforms, is known by its name, and tells apart what it cannot open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipretrieval_sqlite import SqliteStore

from clipretrieval import RetrievalClassifier
from clipretrieval.errors import (
    FingerprintMismatchError,
    InvalidInputError,
    StoreCorruptedError,
    StoreError,
)
from clipretrieval.stores import available_stores
from clipretrieval.testing import VectorStoreTests


class TestSqliteStore(VectorStoreTests):
    """All that every store has to do."""

    def open_store(self, metric: str, folder: Path) -> SqliteStore:
        return SqliteStore(folder / "store.sqlite", metric=metric)


def test_a_classifier_uses_it_by_name(tmp_path: Path) -> None:
    """The installed package makes "sqlite" a name that RetrievalClassifier takes."""
    assert "sqlite" in available_stores()
    rng = np.random.default_rng(0)
    labels = ["cat", "dog"] * 20
    vectors = rng.standard_normal((40, 5)) + np.where(np.array(labels) == "cat", -3, 3)[:, None]
    classifier = RetrievalClassifier(None, store="sqlite", store_options={"path": tmp_path / "s.sqlite"}, k=3)
    classifier.fit(vectors, labels)
    assert isinstance(classifier.store_, SqliteStore)
    assert classifier.predict(np.array([[-3.0] * 5, [3.0] * 5])).tolist() == ["cat", "dog"]


def test_a_file_keeps_its_metric(tmp_path: Path) -> None:
    """A file that was made under one metric cannot be opened under another."""
    SqliteStore(tmp_path / "s", metric="ip").close()
    with pytest.raises(FingerprintMismatchError, match="ip"):
        SqliteStore(tmp_path / "s", metric="l2")


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    """A file that is no database is an error of the store, and is left as it was."""
    (tmp_path / "s").write_text("not a database" * 100)
    with pytest.raises(StoreCorruptedError):
        SqliteStore(tmp_path / "s")
    assert (tmp_path / "s").read_text() == "not a database" * 100


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    """After close, a store refuses to be used."""
    store = SqliteStore(tmp_path / "s")
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.count()


def test_ids_may_come_from_an_iterator(tmp_path: Path) -> None:
    """Whatever can be gone through only once is stored, returned and deleted whole."""
    store: Any = SqliteStore(tmp_path / "s")
    store.upsert(iter(["a", "b"]), np.eye(2), iter([1, 2]), iter([{}, {"n": 1}]))
    assert store.get(iter(["b", "a"])).labels.tolist() == [2, 1]
    assert store.get(["b"]).metadata == [{"n": 1}]
    assert store.delete(iter(["a", "b"])) == 2


def test_a_saved_classifier_finds_its_file(tmp_path: Path) -> None:
    """A saved classifier opens the file without being asked, and makes none where there is none."""
    store = SqliteStore(tmp_path / "s")
    RetrievalClassifier(store=store).fit(np.eye(3), [1, 2, 3]).save(tmp_path / "saved")
    store.close()
    loaded = RetrievalClassifier.load(tmp_path / "saved")
    assert loaded.predict(np.eye(3)).tolist() == [1, 2, 3]
    loaded.store_.close()
    (tmp_path / "s").unlink()
    with pytest.raises(StoreError, match="not there any more"):
        RetrievalClassifier.load(tmp_path / "saved")
    (tmp_path / "s").write_text("not a database")
    with pytest.raises(InvalidInputError, match="allow_remote"):
        RetrievalClassifier.load(tmp_path / "saved")
    assert (tmp_path / "s").read_text() == "not a database"
