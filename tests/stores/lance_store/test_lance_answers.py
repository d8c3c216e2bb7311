"""LanceStore finds what MemoryStore finds, and through its index most of it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipretrieval.errors import ClipRetrievalWarning, UnsupportedOperationError
from clipretrieval.stores import LanceStore, MemoryStore

pytest.importorskip("lancedb")


def normal(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def both(folder: Path, metric: str, rows: Any, **options: Any) -> tuple[LanceStore, MemoryStore]:
    store, memory = LanceStore(folder, metric=metric, **options), MemoryStore(metric)
    names = [f"{37 * place % 101:03}-{place}" for place in range(len(rows))]
    for each in (store, memory):
        each.upsert(names, rows, [f"label {place}" for place in range(len(rows))])
    return store, memory


def check_same(store: LanceStore, memory: MemoryStore, queries: Any, k: int) -> None:
    near, expected = store.search(queries, k), memory.search(queries, k)
    assert near.ids.tolist() == expected.ids.tolist()
    assert near.labels.tolist() == expected.labels.tolist()
    assert np.array_equal(near.distances, expected.distances)


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
@pytest.mark.parametrize("limit", [1 << 27, 0], ids=["in a copy", "block by block"])
def test_answers_are_those_in_memory(
    tmp_path: Path, metric: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, with many records at one distance, after changes of its own and of others."""
    monkeypatch.setattr("clipretrieval.stores.lance.tables.BLOCK_VALUES", 800)
    rows = np.vstack([normal(0, 150, 8), np.repeat(normal(1, 2, 8), 40, axis=0)])
    queries = np.vstack([rows[[0, 150, 200]], normal(2, 5, 8)])
    store, memory = both(tmp_path, metric, rows, exact_up_to=limit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClipRetrievalWarning)
        for k in (1, 60, 300):
            check_same(store, memory, queries, k)
        other = LanceStore(tmp_path, metric=metric)
        for writer in (store, other, store):
            for each in (writer, memory):
                each.upsert(["037-1", f"new {memory.count()}"], normal(memory.count(), 2, 8), ["a", "b"])
                each.delete(["000-0", f"{memory.count()}-9"])
            check_same(store, memory, queries, 60)
            check_same(other, memory, queries, 60)


def test_a_copy_follows_the_stores_own_writes(tmp_path: Path) -> None:
    """It is not read anew for each, but after another's."""
    store, _ = both(tmp_path, "l2", normal(3, 50, 4))
    store.search(normal(4, 1, 4), 1)
    copy = store._search._copy
    store.upsert(["mine"], normal(5, 1, 4), ["x"])
    assert store.search(normal(5, 1, 4), 1).ids.tolist() == [["mine"]]
    assert store._search._copy is copy
    LanceStore(tmp_path).upsert(["theirs"], normal(6, 1, 4), ["x"])
    assert store.search(normal(6, 1, 4), 1).ids.tolist() == [["theirs"]]
    assert store._search._copy is not copy


def test_a_copy_whose_change_is_interrupted_is_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was stored is found."""
    store, _ = both(tmp_path, "l2", normal(3, 50, 4))
    store.search(normal(4, 1, 4), 1)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store._search._copy, "upsert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.upsert(["mine"], normal(5, 1, 4), ["x"])
    assert store.search(normal(5, 1, 4), 1).ids.tolist() == [["mine"]]


def test_the_index_finds_most_and_is_exact_in_distances(tmp_path: Path) -> None:
    """Its recall is measured when it is built, and later records are found before and after `compact`."""
    rows = normal(7, 1000, 16)
    store, memory = both(tmp_path, "l2", rows, exact_up_to=100)
    with pytest.warns(ClipRetrievalWarning, match="build_index"):
        store.search(rows[:1], 1)
    assert store.build_index() >= 0.99
    queries = normal(8, 20, 16)
    near, true = store.search(queries, 10), memory.search(queries, 10)
    pairs = zip(near.ids.tolist(), true.ids.tolist(), strict=True)
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in pairs]) > 0.9
    known = dict(zip(true.ids[0].tolist(), true.distances[0].tolist(), strict=True))
    found = zip(near.ids[0].tolist(), near.distances[0].tolist(), strict=True)
    assert all(known.get(name, distance) == distance for name, distance in found)
    assert "ANN" in plan_of(store, queries[0])
    store.upsert(["later"], queries[:1], ["x"])
    for _ in range(2):
        again = LanceStore(tmp_path, exact_up_to=100)  # which learns of the index
        assert again.search(queries[:1], 1).ids.tolist() == [["later"]]
        assert again.search(queries[:1], 1001).valid.all()
        store.compact()


def plan_of(store: LanceStore, query: Any) -> str:
    """Return how Lance would search."""
    return str(store._tables.records().search(query, vector_column_name="vector").explain_plan(True))


def test_an_index_needs_a_thousand_records(tmp_path: Path) -> None:
    """Fewer are refused, and go on being compared."""
    store, _ = both(tmp_path, "ip", normal(9, 10, 4))
    with pytest.raises(UnsupportedOperationError, match=r"1,000 records on.*holds 10"):
        store.build_index()


def test_many_writes_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files do not pile up, what others see stays whole, and a failure is that of no write."""
    monkeypatch.setattr("clipretrieval.stores.lance.tables.TIDIED_AFTER", 10)
    store = LanceStore(tmp_path)
    for number in range(15):
        store.upsert([str(number)], normal(number, 1, 4), [number])
        store.write_manifest({"number": number})
    for table in (store._tables.records(), store._tables._about):
        assert table.stats()["fragment_stats"]["num_fragments"] < 10

    def fail() -> None:
        raise ValueError("conflict")

    monkeypatch.setattr(store._tables, "tidy", fail)
    for _ in range(10):
        store.write_manifest({})
    assert LanceStore(tmp_path).get([str(number) for number in range(15)]).labels.tolist() == [*range(15)]
