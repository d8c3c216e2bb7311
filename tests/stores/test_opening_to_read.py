"""What is opened to be asked must be there: a mistyped place is an error that leaves nothing behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from postgres_server import PostgresServer

from clipretrieval import RetrievalClassifier
from clipretrieval.errors import InvalidInputError, StoreUnavailableError
from clipretrieval.stores import ChromaStore, FaissStore, create_store
from clipretrieval.testing import PineconeEmulator

POINTS, SIDES = np.eye(2, dtype=np.float32), ["left", "right"]


@pytest.mark.parametrize("name", ["faiss", "chroma", "lance"])
def test_a_mistyped_path_makes_nothing(name: str, tmp_path: Path) -> None:
    """from_store, load and create=False refuse a folder that is not there, or is empty, and leave it so."""
    (tmp_path / "empty").mkdir()
    classifier = RetrievalClassifier(store=name, store_options={"path": tmp_path / "right"})
    with classifier.fit(POINTS, SIDES).store_:
        classifier.save(tmp_path / "kept")
    (tmp_path / "right").rename(tmp_path / "moved")
    for path in (tmp_path / "wrong", tmp_path / "empty", tmp_path / "right"):
        with pytest.raises(StoreUnavailableError, match="check the path"):
            RetrievalClassifier.from_store(name, store_options={"path": path})
        with pytest.raises(StoreUnavailableError, match="check the path"):
            create_store(name, path=path, create=False)
    with pytest.raises(StoreUnavailableError, match="not there any more"):
        RetrievalClassifier.load(tmp_path / "kept")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "kept", "moved"]
    assert not list((tmp_path / "empty").iterdir())
    moved = RetrievalClassifier.from_store(name, store_options={"path": tmp_path / "moved"})
    with moved.store_:
        assert moved.partial_fit([[9.0, 9.0]], ["up"]).predict([[8.0, 8.0]]).tolist() == ["up"]


def test_a_mistyped_collection_is_not_made(tmp_path: Path, chroma_port: int) -> None:
    """In a folder and at a server, a collection that is not there is named, and not made."""
    with ChromaStore(tmp_path / "data", collection="right") as store:
        store.upsert(["a"], POINTS[:1], [1])
    name = f"wrong-{uuid4().hex}"
    places: list[dict[str, Any]] = [{"path": tmp_path / "data"}, {"host": "127.0.0.1", "port": chroma_port}]
    for place in places:
        for _ in range(2):
            with pytest.raises(StoreUnavailableError, match=name):
                ChromaStore(**place, collection=name, create=False)
        with pytest.raises(StoreUnavailableError, match=name):
            RetrievalClassifier.from_store("chroma", store_options={**place, "collection": name})
    with ChromaStore(tmp_path / "data", collection="right", create=False) as store:
        assert store.count() == 1


def test_a_mistyped_table_is_not_made(postgres: PostgresServer) -> None:
    """At a PostgreSQL server too, when a classifier attaches to it."""
    options = {"conninfo": postgres.conninfo, "table": f"wrong-{uuid4().hex}"}
    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match="no table 'wrong-"):
            RetrievalClassifier.from_store("pgvector", store_options=options)


def test_a_mistyped_index_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """At Pinecone an index that is not there is an error when a classifier attaches to it."""
    monkeypatch.setenv("PINECONE_API_KEY", "emulator")
    with PineconeEmulator(address="127.0.2.2") as emulator:
        monkeypatch.setenv("PINECONE_CONTROLLER_HOST", emulator.host)  # the key is for this host
        options = {"index": "wrong", "host": emulator.host}
        with pytest.raises(StoreUnavailableError, match="no Pinecone index 'wrong'"):
            RetrievalClassifier.from_store("pinecone", store_options=options)


@pytest.mark.parametrize("make", [FaissStore, ChromaStore])
def test_in_memory_nothing_can_be_there_yet(make: Any) -> None:
    """A store without a place is always new, and create is True or False."""
    with pytest.raises(InvalidInputError, match="create=False needs a path"):
        make(create=False)
    with pytest.raises(InvalidInputError, match="create must be True or False"):
        make(create="no")
