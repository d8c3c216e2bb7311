"""PineconeStore at the emulator answers as MemoryStore does, and sees its own writes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pinecone_parts import KEY, METRICS, contents, names, normal, same_neighbors

from clipretrieval.errors import DimensionMismatchError, InvalidInputError
from clipretrieval.stores import LocatedStore, MemoryStore, PineconeStore, VectorStore, create_store
from clipretrieval.testing import PineconeEmulator


def test_it_follows_the_protocols_and_has_a_name(make: Any, emulator: PineconeEmulator) -> None:
    """It is a vector store that can be opened elsewhere, and `create_store` makes it by name."""
    store = make()
    assert isinstance(store, VectorStore)
    assert isinstance(store, LocatedStore)
    named = create_store("pinecone", index="by-name", api_key=KEY, host=emulator.host)
    assert isinstance(named, PineconeStore)
    named.close()


@pytest.mark.parametrize("labels", [int, str])
@pytest.mark.parametrize("metric", METRICS)
def test_it_answers_as_memory_does(make: Any, metric: str, labels: type) -> None:
    """Searches, records and counts are those of MemoryStore, before and after deletes and replacements."""
    store, memory = make(metric=metric), MemoryStore(metric)
    rows, ids = normal(0, 150, 12), names(150)
    for each in (store, memory):
        each.write_manifest({"made": "by hand"})
        kept = [labels(place % 5) for place in range(150)]
        each.upsert(ids, rows, kept, [{"n": place, "deep": {"none": None}} for place in range(150)])
        each.upsert(ids[:10], rows[::-1][:10], [labels(7)] * 10)
        assert each.delete([*ids[20:25], "unknown"]) == 5
        assert each.dim == 12
    assert contents(store, [*ids, "unknown", ids[3]]) == contents(memory, [*ids, "unknown", ids[3]])
    for k in (1, 9, 200):
        same_neighbors(store.search(rows[:20] + 0.1, k), memory.search(rows[:20] + 0.1, k), 2e-7)


@pytest.mark.parametrize("metric", METRICS)
def test_an_empty_store_answers_as_memory_does(make: Any, metric: str) -> None:
    """Before anything is written there is no index, and everything is empty."""
    store, memory = make(metric=metric), MemoryStore(metric)
    queries = normal(1, 3, 4)
    same_neighbors(store.search(queries, 2), memory.search(queries, 2), 0)
    assert contents(store, ["a"]) == contents(memory, ["a"])
    assert (store.delete(["a"]), store.dim) == (0, None)
    store.flush()


def test_equal_distances_go_by_id_also_where_a_row_ends(make: Any) -> None:
    """Of three hundred equal vectors those with the first ids are returned."""
    store = make()
    ids = names(300)
    store.upsert(ids, np.tile(normal(2, 1, 4), (300, 1)), [1] * 300)
    near = store.search(normal(2, 1, 4), 20)
    assert near.ids.tolist() == [sorted(ids)[:20]]
    assert not near.distances.any()


def test_more_neighbours_than_pinecone_returns_are_padded(make: Any) -> None:
    """k may exceed the service's limit where the store holds fewer vectors."""
    store = make()
    store.upsert(["a", "b"], normal(3, 2, 4), ["x", "y"])
    assert store.search(normal(3, 1, 4), 20_000).valid.sum() == 2


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_zero_vectors_are_stored_though_pinecone_refuses_them(make: Any, metric: str) -> None:
    """A black picture's pixels are all zero: it comes back so, and at the distances that it has."""
    store, memory = make(metric=metric), MemoryStore(metric)
    rows = np.array([[0, 0, 0, 0], [1, 2, 3, 4], [0, 0, 0, 0], [-1, 0, 0, 2]], dtype=np.float32)
    for each in (store, memory):
        each.upsert(names(4), rows, ["a", "b", "a", "b"])
    assert contents(store, names(4)) == contents(memory, names(4))
    queries = np.array([[0, 0, 0, 0], [1, 1, 1, 1], [-9, 0, 0, 0]], dtype=np.float32)
    same_neighbors(store.search(queries, 5), memory.search(queries, 5), 0)


def test_malformed_searches_are_refused(make: Any) -> None:
    """Queries of another dimension, zero under cosine, or with k below 1 are refused."""
    store = make(metric="cosine")
    store.upsert(["a"], np.ones((1, 4)), [1])
    with pytest.raises(DimensionMismatchError):
        store.search(np.ones((1, 5)), 1)
    for queries, k in ((np.zeros((1, 4)), 1), (np.ones((1, 4)), 0), (np.ones(4), 1)):
        with pytest.raises(InvalidInputError):
            store.search(queries, k)


@pytest.mark.parametrize("log_numbers", [True, False])
def test_a_store_sees_its_own_writes(make: Any, other: Any, log_numbers: bool) -> None:
    """Without any flush each call finds what the calls before it wrote, though it shows late."""
    late = other(visibility_delay=0.05, log_numbers=log_numbers)
    store, memory = make(host=late.host), MemoryStore()
    rows = normal(16, 30, 4)
    for each in (store, memory):
        each.upsert(names(30), rows, list(range(30)))
        assert each.count() == 30
        each.write_manifest({"step": 1})
        assert each.read_manifest() == {"step": 1}
        assert each.delete(names(30)[:10]) == 10
        assert each.delete(names(30)[:10]) == 0
        each.upsert(names(30)[:5], rows[5:10], [50] * 5)
    same_neighbors(store.search(rows, 40), memory.search(rows, 40), 2e-7)
    assert contents(store, names(30)) == contents(memory, names(30))


@pytest.mark.parametrize("log_numbers", [True, False])
def test_a_manifest_in_the_place_of_another_is_read_at_once(make: Any, other: Any, log_numbers: bool) -> None:
    """Each of several manifests is what is read next, though it shows late: changes start from the last."""
    late = other(visibility_delay=0.1, log_numbers=log_numbers)
    store = make(host=late.host, dim=4)
    for step in range(4):
        store.write_manifest({"step": step, "classes": ["a" * 20_000]})
        assert store.read_manifest()["step"] == step


def test_threads_write_and_search_one_store(make: Any) -> None:
    """Four threads write while four search; every answer is right, and everything is there at the end."""
    store = make()
    rows = normal(17, 400, 8)
    store.upsert(["start"], np.full((1, 8), 50, dtype=np.float32), [0])
    wrong: list[BaseException] = []

    def write(part: int) -> None:
        for start in range(part * 100, part * 100 + 100, 25):
            block = slice(start, start + 25)
            store.upsert([f"{place}" for place in range(start, start + 25)], rows[block], [1] * 25)

    def search(part: int) -> None:
        for _ in range(5):
            near = store.search(np.full((3, 8), 50, dtype=np.float32), 2)
            assert near.ids[:, 0].tolist() == ["start"] * 3

    def guarded(work: Callable[[int], None], part: int) -> None:
        try:
            work(part)
        except BaseException as error:  # noqa: BLE001 - shown by the test
            wrong.append(error)

    threads = [
        threading.Thread(target=guarded, args=(work, part)) for work in (write, search) for part in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert store.count() == 401
    assert store.get([f"{place}" for place in range(400)]).vectors.tobytes() == rows.tobytes()
