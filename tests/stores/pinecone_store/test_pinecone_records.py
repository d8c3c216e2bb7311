"""PineconeStore keeps records and manifests within the limits of the service."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pinecone import Pinecone
from pinecone_parts import KEY, contents, names, normal, sent

from clipretrieval.errors import InvalidInputError, StoreCorruptedError, StoreError
from clipretrieval.stores import PineconeStore
from clipretrieval.stores.pinecone.namespace import Namespace
from clipretrieval.testing import PineconeEmulator


def test_labels_and_metadata_keep_their_types(make: Any) -> None:
    """Integers beyond the range of floats stay what they are, as do nested metadata, in another store too."""
    store = make()
    labels = [2**63 - 1, -(2**63), 2**53 + 1]
    metadata = [{"n": 2**53 + 1, "f": 1.0}, {"": [None, True, {"a": []}]}, {}]
    store.upsert(["a", "b", "c"], normal(4, 3, 4), labels, metadata)
    again = make(**store.location())
    for each in (store, again):
        found = each.get(["c", "b", "a"])
        assert found.labels.tolist() == labels[::-1]
        assert found.labels.dtype == np.int64
        assert repr(found.metadata) == repr(metadata[::-1])
        assert each.search(normal(4, 1, 4), 3).labels.dtype == np.int64


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e10, 1e30])
@pytest.mark.filterwarnings("ignore:vectors have norms up to:clipretrieval.ClipRetrievalWarning")
def test_vectors_come_back_bit_for_bit(make: Any, scale: float) -> None:
    """What goes as decimal text comes back as the same float32 values."""
    store = make()
    rows = normal(5, 40, 33) * np.float32(scale)
    store.upsert(names(40), rows, [0] * 40)
    assert store.get(names(40)).vectors.tobytes() == rows.tobytes()


@pytest.fixture(scope="module")
def texts(emulator: PineconeEmulator) -> Iterator[PineconeStore]:
    """One store for all examples of ids."""
    with PineconeStore("texts", api_key=KEY, host=emulator.host) as store:
        yield store


@settings(max_examples=50)
@given(
    ids=st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=5, unique=True
    )
)
def test_any_text_serves_as_an_id(texts: PineconeStore, ids: list[str]) -> None:
    """Whatever the ids, each finds its own vector."""
    rows = normal(30, len(ids), 4)
    texts.upsert(ids, rows, list(range(len(ids))))
    found = texts.get(ids)
    assert found.ids.tolist() == ids
    assert found.vectors.tobytes() == rows.tobytes()


def test_ids_of_every_kind_come_back(make: Any) -> None:
    """Ids that Pinecone does not take are stored under others, and are found by their own."""
    ids = [
        "plain",
        "with space",
        "tilde~",
        "~tilde",
        "~%20",
        " ",
        "é",
        "\0",
        "日本",
        "x" * 512,
        "x" * 513,
        "é" * 600,
    ]
    store = make()
    rows = normal(6, len(ids), 4)
    store.upsert(ids, rows, [0] * len(ids))
    assert store.get(ids).ids.tolist() == ids
    assert store.search(rows, 1).ids[:, 0].tolist() == ids
    assert store.delete(ids[:6]) == 6
    assert store.get(ids).ids.tolist() == ids[6:]
    assert store.get(["", "\ud800"]).ids.tolist() == []
    assert store.delete(["", "\ud800"]) == 0
    assert store.get([ids[6]]).ids.tolist() == [ids[6]]


def test_labels_are_of_one_type_as_long_as_there_are_any(make: Any) -> None:
    """Another type is refused, in a store opened later too, until the store is empty."""
    store = make()
    store.upsert(["a"], normal(7, 1, 4), [1])
    for each in (store, make(**store.location())):
        with pytest.raises(InvalidInputError):
            each.upsert(["b"], normal(7, 1, 4), ["one"])
    assert store.count() == 1
    store.delete(["a"])
    store.upsert(["b"], normal(7, 1, 4), ["one"])
    assert store.get(["b"]).labels.tolist() == ["one"]


def test_manifests(make: Any) -> None:
    """A manifest waits for the first vectors, is replaced, may be long, and does not count as a vector."""
    store = make()
    store.write_manifest({"step": 1})
    assert store.read_manifest() == {"step": 1}
    store.upsert(["a"], normal(8, 1, 4), [1])
    reader = make(**store.location())
    assert reader.read_manifest() == {"step": 1}
    long = {"classes": [f'a "quoted" class, é {place}' for place in range(5000)]}
    for manifest in (long, {"step": 2}, {**long, "step": 3}, {}):
        store.write_manifest(manifest)
        assert store.read_manifest() == reader.read_manifest() == manifest
    assert store.count() == 1
    assert store.search(normal(8, 1, 4), 5).valid.sum() == 1


def test_old_pieces_of_a_manifest_are_removed(make: Any, emulator: PineconeEmulator) -> None:
    """What a long manifest took is freed by the second write after it: readers may still be at it before."""
    store = make(index="pieces", dim=4)
    for manifest, pieces in (({"text": "x" * 50_000}, 4), ({}, 4), ({"step": 2}, 1)):
        store.write_manifest(manifest)
        store.flush()
        assert len(emulator.contents("pieces", "__clipretrieval_manifest__")) == pieces


def test_a_manifest_is_read_while_it_is_replaced(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that finds pieces gone, since two writes overtook it, reads the newest text."""
    writer = make(index="overtaken", dim=4)
    reader = make(index="overtaken")
    long = [{"step": step, "text": f"{step}" * 50_000} for step in range(4)]
    writer.write_manifest(long[0])
    fetch, overtaking = Namespace.fetch, iter(long[1:])

    def overtaken(namespace: Namespace, keys: list[str], *more: Any) -> dict[str, Any]:
        found = fetch(namespace, keys, *more)
        if threading.current_thread() is threading.main_thread() and "manifest" in keys:
            # Other processes write between the reader's two requests.
            other = threading.Thread(target=lambda: [writer.write_manifest(each) for each in overtaking])
            other.start()
            other.join()
        return found

    monkeypatch.setattr(Namespace, "fetch", overtaken)
    assert reader.read_manifest() == long[3]


def test_a_manifest_that_lacks_a_piece_is_corrupted(make: Any, emulator: PineconeEmulator) -> None:
    """A piece that is gone for good is an error, and not waited for."""
    store = make(index="lacking", dim=4)
    store.write_manifest({"text": "x" * 50_000})
    store.flush()
    space = "__clipretrieval_manifest__"
    gone = next(key for key in emulator.contents("lacking", space) if key.endswith(":2"))
    with Pinecone(api_key=KEY, host=emulator.host) as client, client.index(name="lacking") as index:
        index.delete(ids=[gone], namespace=space)
    with pytest.raises(StoreCorruptedError, match="manifest"):
        store.read_manifest()


def test_with_a_dimension_the_manifest_needs_no_vectors(make: Any) -> None:
    """Where the dimension is given, a manifest alone makes the index."""
    store = make(dim=4)
    store.write_manifest({"step": 1})
    store.close()
    assert make(**store.location()).read_manifest() == {"step": 1}


def test_a_manifest_that_cannot_be_stored_yet_is_not_lost_in_silence(make: Any) -> None:
    """Without an index and a dimension flush and close say so; with the first vectors it is stored."""
    store = make(index="waiting")
    store.write_manifest({"step": 1})
    with pytest.raises(StoreError, match="manifest"):
        store.flush()
    store.upsert(["a"], normal(8, 1, 4), [1])
    store.close()
    assert make(index="waiting").read_manifest() == {"step": 1}
    lost = make(index="lost")
    lost.write_manifest({"step": 1})
    with pytest.raises(StoreError, match="manifest"):
        lost.close()
    lost.close()
    assert "closed" in repr(lost)


def test_namespaces_are_apart(make: Any) -> None:
    """Two namespaces of one index share neither vectors nor manifests."""
    left, right = (make(index="shared", namespace=name) for name in ("left", "right"))
    for store in (left, right):
        store.upsert(["a"], normal(9, 1, 4), [store.location()["namespace"]])
        store.write_manifest(store.location())
    left.upsert(["b"], normal(9, 1, 4), ["left"])
    assert (left.count(), right.count()) == (2, 1)
    assert right.get(["a", "b"]).labels.tolist() == ["right"]
    assert right.read_manifest()["namespace"] == "right"


BAD = {
    "nearly zero": {"vectors": np.full((1, 4), 9e-9)},
    "NaN": {"vectors": np.full((1, 4), np.nan)},
    "metadata too long": {"metadata": [{"text": "x" * 40_000}]},
    "no JSON": {"metadata": [{"set": {1}}]},
    "empty id": {"ids": [""]},
    "another dimension": {"vectors": np.ones((1, 5))},
    "another type of label": {"labels": ["one"]},
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_malformed_upserts_store_nothing(make: Any, emulator: PineconeEmulator, bad: Any) -> None:
    """What cannot be stored is refused before anything is sent."""
    store = make()
    store.upsert(["a"], np.ones((1, 4)), [1])
    before, start = contents(store, ["a", "b"]), len(emulator.requests)
    with pytest.raises(InvalidInputError):
        store.upsert(**{"ids": ["b"], "vectors": np.ones((1, 4)), "labels": [1], "metadata": [{}], **bad})
    assert not sent(emulator, "/vectors/upsert", start)
    assert contents(store, ["a", "b"]) == before


def test_upserts_are_cut_by_bytes_and_by_count(make: Any, emulator: PineconeEmulator) -> None:
    """No request has more than a thousand vectors or two megabytes, and nothing is lost between them."""
    for index, shape in (("long", (600, 1024)), ("short", (2500, 2))):
        store, rows = make(index=index), normal(10, *shape)
        start = len(emulator.requests)
        store.upsert(names(shape[0]), rows, [0] * shape[0])
        assert store.get(names(shape[0])).vectors.tobytes() == rows.tobytes()
        parts = sent(emulator, "/vectors/upsert", start)
        assert {each.status for each in parts} == {200}
        assert len(parts) >= 3
        assert max(len(each.body) for each in parts) < 2_000_000
        assert sum(len(each.json()["vectors"]) for each in parts) == shape[0]


def test_long_lists_of_ids_are_cut(make: Any) -> None:
    """Hundreds of long ids are read and deleted, though an address cannot hold them all."""
    store = make()
    ids = [f"{place}-{'é' * 40}" for place in range(1200)]
    store.upsert(ids, normal(11, 1200, 2), [0] * 1200)
    assert store.get(ids).ids.tolist() == ids
    assert store.delete(ids) == 1200
    assert store.count() == 0
