"""PgVectorStore finds what MemoryStore finds, and through its graph most of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from postgres_server import PostgresServer

from clipretrieval.errors import (
    ClipRetrievalWarning,
    InvalidInputError,
    StoreLockedError,
    UnsupportedOperationError,
)
from clipretrieval.stores import MemoryStore, PgVectorStore
from clipretrieval.stores.pgvector.search import MANY


def normal(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def check_same(store: PgVectorStore, memory: MemoryStore, queries: Any, k: int) -> None:
    """Compare the answers to queries one by one, which the server scans for, and to all at once."""
    expected = memory.search(queries, k)
    assert len(queries) >= MANY
    for near in (store.search(queries, k), store.search(queries[: MANY - 1], k)):
        assert near.ids.tolist() == expected.ids[: len(near)].tolist()
        assert near.labels.tolist() == expected.labels[: len(near)].tolist()
        assert np.array_equal(near.distances, expected.distances[: len(near)])


def both(make: Any, metric: str, rows: Any) -> tuple[PgVectorStore, MemoryStore]:
    store, memory = make(metric=metric), MemoryStore(metric)
    for each in (store, memory):
        names = [f"{37 * place % 101:03}-{place}" for place in range(len(rows))]
        each.upsert(names, rows, [f"label {place}" for place in range(len(rows))])
    return store, memory


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
def test_answers_are_those_in_memory(make: Any, metric: str) -> None:
    """Bit for bit, with hundreds of records at one distance around the last place, and near ties."""
    rows = np.vstack([normal(0, 300, 24), np.repeat(normal(1, 2, 24), 150, axis=0), normal(2, 1, 24)])
    rows[-1] = np.nextafter(rows[-2], np.float32(9))
    store, memory = both(make, metric, rows)
    queries = np.vstack([rows[[0, 320, 500]], normal(3, MANY, 24)])
    for k in (1, 100, 1000):
        check_same(store, memory, queries, k)


@pytest.mark.filterwarnings("ignore::clipretrieval.ClipRetrievalWarning")
@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
@pytest.mark.parametrize("scale", [1e-30, 1e25], ids=["tiny", "huge"])
def test_answers_are_right_where_float32_is_not(make: Any, metric: str, scale: float) -> None:
    """Vectors whose squares the server cannot hold are compared here."""
    rows = (normal(4, 200, 8) * np.float32(scale)).astype(np.float32)
    store, memory = both(make, metric, rows)
    check_same(store, memory, rows[:MANY], 3)


def test_the_graph_finds_most_and_is_exact_in_distances(make: Any) -> None:
    """Its recall is measured when it is built, ties go by id within a row, and later records are in it."""
    rows = np.vstack([normal(5, 900, 16), np.repeat(normal(6, 1, 16), 5, axis=0)])
    store, memory = both(make, "l2", rows)
    with make(table=store.location()["table"], exact_up_to=100 * 16) as graph:
        with pytest.warns(ClipRetrievalWarning, match="build_index"):
            graph.search(rows[:1], 1)
        recall = graph.build_index()
        assert 0.9 < recall <= 1
        plan = str(graph._connections.run(lambda c: plan_of(graph, c)))
        assert "Index Scan" in plan
        queries = normal(7, 50, 16)
        near, true = graph.search(queries, 10), memory.search(queries, 10)
        pairs = zip(near.ids.tolist(), true.ids.tolist(), strict=True)
        assert np.mean([len(set(a) & set(b)) / 10 for a, b in pairs]) > 0.9
        distances = dict(zip(true.ids[0].tolist(), true.distances[0].tolist(), strict=True))
        found = zip(near.ids[0].tolist(), near.distances[0].tolist(), strict=True)
        assert all(distances.get(name, distance) == distance for name, distance in found)
        equal = graph.search(rows[-1:], 5).ids[0].tolist()
        assert equal == memory.search(rows[-1:], 5).ids[0].tolist() == sorted(equal)
        graph.upsert(["later"], queries[:1], ["x"])
        assert graph.search(queries[:1], 1).ids.tolist() == [["later"]]
        assert graph.search(queries[:1], 906).valid.all(), "more than the graph gives are compared"
        assert graph.build_index() > 0.98


def test_a_graph_is_built_once_at_a_time(
    make: Any, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second build meanwhile is refused, and one that did not end leaves the graph before it in use."""
    rows = normal(8, 200, 8)
    store, _ = both(make, "l2", rows)
    graph = make(table=store.location()["table"], exact_up_to=0)
    assert graph.build_index() == 1

    def interrupted(*_: Any) -> Any:
        with pytest.raises(StoreLockedError, match="under way"):
            store.build_index()
        raise KeyboardInterrupt

    for place, used in (("_column", True), ("_tuned", False)):
        with monkeypatch.context() as patched:
            patched.setattr(graph._search, place, interrupted)
            with pytest.raises(KeyboardInterrupt):
                graph.build_index()
        facts = graph._connections.run(graph._search._facts)
        assert (facts.effort is not None) is used, "a graph whose recall is unknown is not used"
    assert graph.build_index() == 1
    names = f"'{store.location()['table']}_graph%'"
    found = postgres.execute(f"SELECT count(*) FROM pg_class WHERE relname LIKE {names}")  # noqa: S608
    assert found == [(1,)]


def test_more_ties_than_the_server_is_to_send_are_compared_here(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one long vector, of which nothing is left, all products may tie."""
    monkeypatch.setattr("clipretrieval.stores.pgvector.search.MOST_TIES", 20)
    monkeypatch.setattr("clipretrieval.stores.pgvector.tables.BLOCK_RECORDS", 30)
    rows = normal(10, 200, 8)
    store, memory = both(make, "ip", rows)
    store.upsert(["long"], 1e9 * rows[:1], ["x"])
    store.delete(["long"])
    check_same(store, memory, rows[:MANY], 5)


def plan_of(store: PgVectorStore, connection: Any) -> Any:
    """Return how the server would follow the graph for one query."""
    connection.execute("SET LOCAL enable_seqscan = off")
    text = "EXPLAIN SELECT id FROM {records} ORDER BY (embedding::vector(16)) <-> %b LIMIT 10"
    return connection.execute(store._tables.statement(text), [normal(7, 16)]).fetchall()


def test_a_graph_needs_few_dimensions(make: Any) -> None:
    """Before the first vector and beyond 2,000 dimensions it is refused, and searches stay exact."""
    store = make(exact_up_to=0)
    with pytest.raises(UnsupportedOperationError, match="none yet"):
        store.build_index()
    rows = normal(8, 3, 2001)
    store.upsert(["a", "b", "c"], rows, [1, 2, 3])
    with pytest.raises(UnsupportedOperationError, match="2,001"):
        store.build_index()
    assert store.search(rows[1:2], 1).labels.tolist() == [[2]]
    assert store.get(["c"]).vectors.tolist() == rows[2:].tolist()


def test_what_does_not_fit_is_refused(make: Any) -> None:
    """Too many dimensions and too long ids are named before anything is stored."""
    store = make()
    with pytest.raises(InvalidInputError, match="16,000"):
        store.upsert(["a"], np.ones((1, 16_001)), [1])
    with pytest.raises(InvalidInputError, match="2,048"):
        store.upsert(["a", "é" * 1025], np.ones((2, 3)), [1, 1])
    store.upsert(["é" * 1024], np.ones((1, 16_000)), ["x" * 100_000])
    assert store.count(label="x" * 100_000) == 1
    assert store.dim == 16_000


def test_texts_keep_the_characters_that_stand_for_others(make: Any) -> None:
    """NUL, which no column takes, and what it is written as, are different ids and labels."""
    names = ["\0", "\x1a", "\x1a0", "\x1a1", "\x1a\0", "a\0b", "\\0"]
    store = make()
    store.upsert(names, normal(9, 7, 3), names, [{"\0": each, "half": "\ud800"} for each in names])
    found = store.get(names)
    assert found.ids.tolist() == found.labels.tolist() == names
    assert [each["\0"] for each in found.metadata] == names
    assert [store.count(label=name) for name in names] == [1] * 7
