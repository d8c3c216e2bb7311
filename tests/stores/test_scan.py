"""Scans of the built-in stores, where the conformance suite does not look."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipretrieval.errors import StoreCorruptedError, StoreError
from clipretrieval.stores import ChromaStore, FaissStore, MemoryStore, PineconeStore, ScannableStore
from clipretrieval.testing import PineconeEmulator

KEY = "pcsk_scan_0123456789abcdef"
LOCAL: list[Callable[[], Any]] = [MemoryStore, FaissStore, ChromaStore]


def rows(count: int) -> Any:
    return np.random.default_rng(0).standard_normal((count, 4), dtype=np.float32)


@pytest.fixture
def pinecone() -> Any:
    """A store at an emulator of its own."""
    with (
        PineconeEmulator(KEY) as emulator,
        PineconeStore("scanned", api_key=KEY, host=emulator.host) as store,
    ):
        yield store, emulator


@pytest.mark.parametrize("make", LOCAL)
def test_a_closed_store_is_not_scanned(make: Callable[[], Any]) -> None:
    """After close, a scan is refused at the call itself."""
    store = make()
    assert isinstance(store, ScannableStore)
    store.upsert(["a"], rows(1), [1])
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.scan()


@pytest.mark.parametrize("make", [MemoryStore, FaissStore])
def test_a_scan_in_memory_is_of_one_moment(make: Callable[[], Any]) -> None:
    """What is written after the call changes nothing of what a scan lists."""
    with make() as store:
        ids = [str(place) for place in range(10_000)]
        store.upsert(ids, rows(10_000), ["old"] * 10_000)
        scan = store.scan()
        store.upsert(ids[:100], rows(100), ["new"] * 100)
        store.delete(ids[-100:])
        found = [(name, label) for each in scan for name, label in zip(each.ids, each.labels, strict=True)]
        assert found == [(name, "old") for name in ids]


def test_a_copy_can_be_scanned() -> None:
    """A store that was copied is scanned on its own."""
    store = MemoryStore()
    store.upsert(["a"], rows(1), [1])
    other = copy.deepcopy(store)
    other.delete(["a"])
    assert [each.ids.tolist() for each in store.scan()] == [["a"]]
    assert list(other.scan()) == []


def test_a_chroma_store_closed_on_the_way_ends_the_scan(tmp_path: Path) -> None:
    """Closing a store under a scan gives an error, not a short listing."""
    store = ChromaStore(tmp_path)
    store.upsert([str(place) for place in range(6000)], rows(6000), [0] * 6000)
    scan = store.scan()
    assert len(next(scan)) == 5000
    store.close()
    with pytest.raises(StoreError, match="closed"):
        next(scan)


def test_records_of_others_in_a_chroma_collection_are_named(tmp_path: Path) -> None:
    """A record that the store did not write is an error that names it, not a label."""
    with ChromaStore(tmp_path) as store:
        store.upsert(["ours"], rows(1), [1])
        store._connection.client.get_collection("clipretrieval", embedding_function=None).add(
            ids=["theirs"], embeddings=rows(1)
        )
        with pytest.raises(StoreCorruptedError, match="'theirs'"):
            list(store.scan())


def test_a_pinecone_scan_of_a_label_reads_no_other_record(pinecone: Any) -> None:
    """By label, only pages of that label are asked for; without one, all ids are listed and fetched."""
    store, emulator = pinecone
    ids = [str(place) for place in range(1200)]
    store.upsert(ids, rows(1200), ["rare" if place % 10 == 0 else "common" for place in range(1200)])
    store.flush()
    before = len(emulator.requests)
    assert [len(each) for each in store.scan("rare")] == [100, 20]
    asked = [each.path for each in emulator.requests[before:]]
    assert asked.count("/vectors/fetch_by_metadata") == 2
    assert not {"/vectors/list", "/vectors/fetch"} & set(asked)
    before = len(emulator.requests)
    assert sum(len(each) for each in store.scan()) == 1200
    assert [each.path for each in emulator.requests[before:]].count("/vectors/list") == 12


def test_a_pinecone_scan_waits_for_what_its_store_wrote() -> None:
    """Writes that the service does not show yet are in the listing of the store that wrote them."""
    with (
        PineconeEmulator(KEY, visibility_delay=0.1) as emulator,
        PineconeStore("scanned", api_key=KEY, host=emulator.host) as store,
    ):
        store.upsert(["a", "b"], rows(2), [1, 2])
        store.delete(["a"])
        assert [each.ids.tolist() for each in store.scan()] == [["b"]]
        assert [each.ids.tolist() for each in store.scan(2)] == [["b"]]


def test_a_pinecone_store_without_an_index_lists_nothing(pinecone: Any) -> None:
    """Before the first write there is no index, and no record."""
    store, _ = pinecone
    assert list(store.scan()) == []


def test_a_pinecone_store_closed_on_the_way_ends_the_scan(pinecone: Any) -> None:
    """Closing a store under a scan gives an error, not a short listing."""
    store, _ = pinecone
    store.upsert([str(place) for place in range(1100)], rows(1100), [0] * 1100)
    scan = store.scan()
    assert len(next(scan)) == 1000
    store.close()
    with pytest.raises(StoreError, match="closed"):
        next(scan)
    with pytest.raises(StoreError, match="closed"):
        store.scan()


def test_a_failing_service_is_an_error_of_the_store(pinecone: Any) -> None:
    """A refusal in the middle of a scan is translated, and the key is in no message."""
    store, emulator = pinecone
    store.upsert([str(place) for place in range(300)], rows(300), [0] * 300)
    store.flush()
    emulator.fail(script=["echo"], paths=["/vectors/list"])
    with pytest.raises(StoreError) as caught:
        list(store.scan())
    assert KEY not in str(caught.value)


def test_scans_do_not_block_a_writer() -> None:
    """A writer goes on while another thread is in the middle of a scan."""
    store = ChromaStore()
    store.upsert([str(place) for place in range(6000)], rows(6000), [0] * 6000)
    scan = store.scan()
    next(scan)
    writer = threading.Thread(target=store.delete, args=(["5999"],))
    writer.start()
    writer.join(timeout=60)
    assert not writer.is_alive()
    assert "5999" not in next(scan).ids
    store.close()
