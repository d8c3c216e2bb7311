"""Blobs at Pinecone: in pieces, the old one or the new, and read as soon as they are written."""

from __future__ import annotations

import hashlib
import threading
from typing import Any

import numpy as np
import pytest
from pinecone import Pinecone
from pinecone_parts import KEY, sent

from clipretrieval.errors import StoreCorruptedError, StoreError
from clipretrieval.stores.pinecone.namespace import Namespace
from clipretrieval.testing import PineconeEmulator

SPACE = "__clipretrieval_blobs__"
# In Base64, three pieces.
OLD, NEW, NEWEST = (np.random.default_rng(seed).bytes(70_000) for seed in range(3))


def test_a_blob_takes_as_few_requests_as_its_size_allows(make: Any, emulator: PineconeEmulator) -> None:
    """Five megabytes are sent in requests of nearly two, and come back byte for byte."""
    content = np.random.default_rng(3).bytes(5_000_000)
    store = make(dim=64)
    start = len(emulator.requests)
    store.write_blob("a", content)
    assert len(sent(emulator, "/vectors/upsert", start)) == 5
    assert store.read_blob("a") == content
    assert make(**store.location()).read_blob("a") == content
    assert store.count() == 0


def test_old_pieces_are_removed(make: Any, emulator: PineconeEmulator) -> None:
    """The blob before the last stays for those who are reading it; older ones are freed, and removed ones."""
    store = make(index="blob-pieces", dim=4)
    for content, pieces in ((OLD, 3), (NEW, 5), (NEWEST, 5), (b"", 3), (b"x", 1), (None, 0)):
        store.write_blob("a", content)
        store.write_blob("a-b", b"other")
        store.flush()
        assert len(emulator.contents("blob-pieces", SPACE)) == pieces + 1
        assert (store.read_blob("a"), store.read_blob("a-b")) == (content, b"other")


def test_namespaces_have_blobs_of_their_own(make: Any, emulator: PineconeEmulator) -> None:
    """A blob of one namespace of an index is none of another's."""
    one, two = (make(index="blob-spaces", namespace=name, dim=4) for name in ("one", "two"))
    one.write_blob("a", OLD)
    assert two.read_blob("a") is None
    two.write_blob("a", NEW)
    assert (one.read_blob("a"), two.read_blob("a")) == (OLD, NEW)
    assert len(emulator.contents("blob-spaces", f"{SPACE}one")) == 3


@pytest.mark.parametrize("log_numbers", [True, False])
def test_a_blob_is_read_at_once(make: Any, other: Any, log_numbers: bool) -> None:
    """What was written or removed last is what is read next, though the service shows it late."""
    late = other(visibility_delay=0.1, log_numbers=log_numbers)
    store = make(host=late.host, dim=4)
    for content in (OLD, NEW, None, OLD, OLD, b""):
        store.write_blob("a", content)
        assert store.read_blob("a") == content


def test_blobs_wait_for_the_index(make: Any) -> None:
    """Without an index and a dimension a blob is read, and flush tells that it is not stored; later it is."""
    store = make(index="blobs-wait")
    store.write_blob("a", OLD)
    store.write_blob("gone", b"x")
    store.write_blob("gone", None)
    assert (store.read_blob("a"), store.read_blob("gone")) == (OLD, None)
    with pytest.raises(StoreError, match=r"the blob 'a' is not stored: .* Store vectors first"):
        store.flush()
    store.upsert(["p"], np.ones((1, 4)), [1])
    store.flush()
    assert store.read_blob("a") == OLD
    reader = make(**store.location())
    assert (reader.read_blob("a"), reader.read_blob("gone")) == (OLD, None)


def test_a_blob_is_read_while_it_is_replaced(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that finds pieces gone, since writes overtook it, reads the newest blob, or none."""
    writer = make(index="blob-overtaken", dim=4)
    reader = make(index="blob-overtaken")
    fetch = Namespace.fetch
    for last in (OLD, None):
        writer.write_blob("a", OLD)
        overtaking = iter([NEW, NEWEST, last])

        def overtaken(
            namespace: Namespace, keys: list[str], *more: Any, overtaking: Any = overtaking
        ) -> dict[str, Any]:
            found = fetch(namespace, keys, *more)
            if threading.current_thread() is threading.main_thread() and keys == ["a"]:
                # Other processes write between the reader's two requests.
                other = threading.Thread(target=lambda: [writer.write_blob("a", each) for each in overtaking])
                other.start()
                other.join()
            return found

        with monkeypatch.context() as patch:
            patch.setattr(Namespace, "fetch", overtaken)
            assert reader.read_blob("a") == last


def test_what_is_damaged_is_told_and_can_be_written_again(make: Any, emulator: PineconeEmulator) -> None:
    """A piece that is gone or changed is StoreCorruptedError, until the blob is written again or removed."""
    store = make(index="blob-damage", dim=4)
    store.write_blob("a", b"")
    with Pinecone(api_key=KEY, host=emulator.host) as client, client.index(name="blob-damage") as index:
        for damage in ("gone", "changed", "foreign", "no Base64"):
            store.write_blob("a", OLD)
            pieces = emulator.contents("blob-damage", SPACE)
            fields = dict(pieces["a"][1])
            key = f"a:{fields['digest']}:2"
            if damage == "gone":
                index.delete(ids=[key], namespace=SPACE)
            else:
                key = key if damage == "changed" else "a"
                fields = {
                    "changed": {**pieces[key][1], "text": "AAAA"},
                    "foreign": {**fields, "pieces": "x"},
                    "no Base64": {"text": "?", "pieces": "1", "digest": hashlib.sha256(b"?").hexdigest()},
                }[damage]
                index.upsert(vectors=[(key, [1.0, 0.0, 0.0, 0.0], fields)], namespace=SPACE)
            with pytest.raises(StoreCorruptedError, match="the blob 'a' in the Pinecone index"):
                store.read_blob("a")
            store.write_blob("a", NEW)
            assert store.read_blob("a") == NEW
        store.write_blob("a", None)
        assert store.read_blob("a") is None
    assert emulator.contents("blob-damage", SPACE) == {}


def test_a_failed_write_leaves_the_old_blob(make: Any, other: Any) -> None:
    """Where the service fails for good amid a write, the blob of before is read; the next write succeeds."""
    breaking = other()
    store = make(host=breaking.host, dim=4, timeout=1)
    store.write_blob("a", OLD)
    breaking.fail(script=["quota"] * 20, paths=["/vectors/upsert"])
    with pytest.raises(StoreError):
        store.write_blob("a", NEW)
    breaking.heal()
    assert store.read_blob("a") == OLD
    store.write_blob("a", NEW)
    assert store.read_blob("a") == NEW
