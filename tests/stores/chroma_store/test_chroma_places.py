"""Where a ChromaStore's collection lives, who may open it, and how it is closed."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import chromadb
import numpy as np
import pytest
from chroma_parts import fill, normal
from chromadb.config import Settings

from clipretrieval import ClipRetrievalWarning, RetrievalClassifier
from clipretrieval.errors import (
    DimensionMismatchError,
    FingerprintMismatchError,
    InvalidInputError,
    StoreCorruptedError,
    StoreError,
    StoreLockedError,
    StoreUnavailableError,
    UnsupportedOperationError,
)
from clipretrieval.stores import ChromaStore, LocatedStore, VectorStore, create_store


def test_a_closed_store_refuses_everything(make: Any) -> None:
    """After close every verb raises StoreError, and closing again does nothing."""
    with make() as store:
        store.upsert(["a"], np.ones((1, 2)), [1])
        assert isinstance(store, VectorStore)
        assert isinstance(store, LocatedStore)
        assert "metric='l2', dim=2" in repr(store)
    one = np.ones((1, 2))
    calls: list[Callable[[], Any]] = [
        lambda: store.upsert(["a"], one, [1]),
        lambda: store.search(one, 1),
        lambda: store.get(["a"]),
        lambda: store.delete(["a"]),
        store.count,
        store.read_manifest,
        lambda: store.write_manifest({}),
        store.flush,
    ]
    for call in calls:
        with pytest.raises(StoreError, match="closed"):
            call()
    store.close()
    assert "closed" in repr(store)


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.deepcopy])
def test_stores_cannot_be_copied(make: Any, duplicate: Any) -> None:
    """Pickling and copying are refused with the way to have one elsewhere."""
    store = make()
    way = "location" if store.location() else "store='chroma'"
    with pytest.raises(UnsupportedOperationError, match=way):
        duplicate(store)


def test_stores_in_memory_are_apart() -> None:
    """Two stores in memory with one collection name share nothing, and neither can be opened elsewhere."""
    with ChromaStore(collection="same") as left, ChromaStore(collection="same", metric="ip") as right:
        left.upsert(["a"], np.ones((1, 2)), [1])
        assert (left.count(), right.count()) == (1, 0)
        assert left.location() is None


def test_saving_with_a_store_in_memory_warns_that_it_will_be_lost(tmp_path: Path) -> None:
    """What was saved holds no vectors then, which the warning says, and the store can be passed to load."""
    rows = np.eye(3)
    with ChromaStore() as store:
        fitted = RetrievalClassifier(store=store).fit(rows, ["a", "b", "c"])
        with pytest.warns(ClipRetrievalWarning, match=r"load\(path, store=your_store\)\.") as caught:
            fitted.save(tmp_path / "saved")
        assert [warning.filename for warning in caught] == [__file__]
        message = str(caught[0].message)
        assert message.startswith("the ChromaStore is not part of what was saved; pass it again")
        assert "lost when the process ends" in message
        loaded = RetrievalClassifier.load(tmp_path / "saved", store=store)
        assert loaded.predict(rows).tolist() == ["a", "b", "c"]


def test_saving_with_a_store_in_a_folder_does_not_warn(tmp_path: Path) -> None:
    """A store with a location is opened again by load."""
    with ChromaStore(path=tmp_path / "store") as store:
        RetrievalClassifier(store=store).fit(np.eye(2), ["a", "b"]).save(tmp_path / "saved")
    loaded = RetrievalClassifier.load(tmp_path / "saved")
    assert loaded.predict(np.eye(2)).tolist() == ["a", "b"]
    loaded.store_.close()


def test_a_store_in_memory_and_a_plain_client_leave_each_other_alone() -> None:
    """With a plain EphemeralClient in the process a store can be made, and with a store such a client."""
    own: Any = chromadb.EphemeralClient()
    own.create_collection(f"mine-{uuid4().hex}", embedding_function=None)
    collections = len(own.list_collections())
    with ChromaStore() as store:
        store.upsert(["a"], np.ones((1, 2)), [1])
        assert len(own.list_collections()) == collections
        again: Any = chromadb.EphemeralClient()
        assert len(again.list_collections()) == collections
        again.close()
        assert store.get(["a"]).labels.tolist() == [1]
    assert len(own.list_collections()) == collections
    own.close()


@pytest.mark.parametrize("spelling", ["{0}", "{0}/", "{0}/../data", "{0}-link"])
def test_a_folder_that_a_client_of_this_process_holds_is_locked(tmp_path: Path, spelling: str) -> None:
    """However the client spelled the folder's path, a store is refused until the client is closed."""
    folder = tmp_path / "data"
    (tmp_path / "data-link").symlink_to(folder)
    folder.mkdir()
    own: Any = chromadb.PersistentClient(spelling.format(folder))
    with pytest.raises(StoreLockedError, match="client"):
        ChromaStore(folder)
    own.close()
    with ChromaStore(folder) as store:
        store.upsert(["a"], np.ones((1, 2)), [1])
        assert store.count() == 1


def test_a_folder_that_a_store_holds_is_refused_to_a_client_of_this_process(tmp_path: Path) -> None:
    """Chroma gives no client of the user's a folder of ours, and gives it to anybody once it is closed."""
    with ChromaStore(tmp_path) as store:
        for _ in range(2):
            with pytest.raises(ValueError, match="already exists"):
                chromadb.PersistentClient(str(tmp_path))
        store.upsert(["a"], np.ones((1, 2)), [1])
    own: Any = chromadb.PersistentClient(str(tmp_path))
    assert own.get_collection("clipretrieval", embedding_function=None).count() == 1
    own.close()


@pytest.mark.parametrize("make", ["folder", "server"], indirect=True)
def test_a_location_opens_the_same_contents(make: Any) -> None:
    """What `location` returns opens the same records, manifest and dimension, and no other metric does."""
    store = make("cosine")
    place = store.location()
    ids = fill(store, normal(11, 40, 6), labels=[str(place) for place in range(40)])
    store.write_manifest({"a": 1})
    store.flush()
    store.close()
    with create_store("chroma", **place) as again:
        assert (again.count(), again.dim, again.read_manifest()) == (40, 6, {"a": 1})
        assert again.get(ids).labels.tolist() == [str(place) for place in range(40)]
        np.testing.assert_allclose(again.get(ids).vectors, normal(11, 40, 6), rtol=5e-7)
        assert again.search(normal(11, 40, 6), 1).ids[:, 0].tolist() == ids
        again.delete(ids)
    with pytest.raises(FingerprintMismatchError, match=r"'cosine'.*'l2'"):
        ChromaStore(**{**place, "metric": "l2"})
    with create_store("chroma", **place) as emptied:  # the refused one left no lock
        assert (emptied.count(), emptied.dim) == (0, 6)


def test_two_stores_at_a_server_see_each_other(chroma_port: int) -> None:
    """What one client wrote, another searches, counts and is held to."""
    place: Any = {"host": "127.0.0.1", "port": chroma_port, "collection": f"test-{uuid4().hex}"}
    with ChromaStore(**place) as left, ChromaStore(**place) as right:
        assert right.search(np.zeros((1, 2)), 1).ids.tolist() == [[""]]
        left.upsert(["a"], np.ones((1, 2)), [1])
        assert right.search(np.zeros((1, 2)), 1).ids.tolist() == [["a"]]
        with pytest.raises(DimensionMismatchError):
            right.upsert(["b"], np.ones((1, 3)), [1])
        with pytest.raises(InvalidInputError, match="int labels"):
            right.upsert(["b"], np.ones((1, 2)), ["x"])
        right.delete(["a"])
        assert left.search(np.zeros((1, 2)), 1).ids.tolist() == [[""]]


def quiet() -> Any:
    return Settings(anonymized_telemetry=False)


def test_a_client_of_the_callers_stays_open() -> None:
    """A given client is used, not closed, and may not be changed into another collection's keeper."""
    client: Any = chromadb.EphemeralClient(settings=quiet())
    name = f"test-{uuid4().hex}"
    with ChromaStore(client=client, collection=name) as store:
        store.upsert(["a"], np.ones((1, 2)), [1])
        assert store.location() is None
    assert client.get_collection(name, embedding_function=None).count() == 1
    client.delete_collection(name)
    client.close()


def test_what_something_else_made_is_refused() -> None:
    """A collection that no ChromaStore made is left alone, and a foreign record in ours is named."""
    client: Any = chromadb.EphemeralClient(settings=quiet())
    foreign, own = f"test-{uuid4().hex}", f"test-{uuid4().hex}"
    client.create_collection(foreign, embedding_function=None)
    with pytest.raises(InvalidInputError, match="not made by ChromaStore"):
        ChromaStore(client=client, collection=foreign)
    with ChromaStore(client=client, collection=own) as store:
        client.get_collection(own, embedding_function=None).add(ids=["stranger"], embeddings=[[1.0, 2.0]])
        with pytest.raises(StoreCorruptedError, match="'stranger'"):
            store.search(np.ones((1, 2)), 1)
        client.delete_collection(own)
        with pytest.raises(StoreUnavailableError, match="gone"):
            store.count()
    client.delete_collection(foreign)
    client.close()


@pytest.mark.parametrize(
    "options",
    [
        {"path": "x", "host": "localhost"},
        {"host": "localhost", "client": object()},
        {"port": 8000},
        {"ssl": True},
        {"host": "http://localhost"},
        {"host": "user:secret@localhost"},
        {"host": ""},
        {"host": "localhost", "port": 0},
        {"host": "localhost", "port": "8000"},
        {"collection": "a b"},
        {"collection": "ab"},
        {"metric": "euclidean"},
        {"exact_up_to": 0},
        {"exact_up_to": 1.5},
    ],
)
def test_contradictory_options_are_refused(options: dict[str, Any]) -> None:
    """Options that contradict each other or are malformed are invalid input, and nothing is made."""
    with pytest.raises(InvalidInputError):
        ChromaStore(**options)
    assert not Path("x").exists()


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    """A path that is a file is invalid input; a folder that cannot be made is unavailable."""
    file = tmp_path / "file"
    file.write_text("kept")
    with pytest.raises(InvalidInputError, match="is a file"):
        ChromaStore(file)
    with pytest.raises(StoreUnavailableError, match="cannot be made"):
        ChromaStore(file / "below")
    assert file.read_text() == "kept"
