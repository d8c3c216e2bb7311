"""ChromaStore answers searches as MemoryStore does, in memory, in a folder and at a real server."""

from __future__ import annotations

import tempfile
import threading
from typing import Any

import numpy as np
import pytest
from chroma_parts import METRICS, fill, normal
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from clipretrieval.errors import ClipRetrievalWarning
from clipretrieval.stores import ChromaStore, MemoryStore


@pytest.mark.parametrize("metric", METRICS)
def test_searches_equal_memory(make: Any, metric: str) -> None:
    """Under l2 and ip the answers are MemoryStore's bit for bit; under cosine to float32 rounding."""
    rows, queries = normal(0, 300, 24), normal(1, 20, 24)
    store, memory = make(metric), MemoryStore(metric)
    for each in (store, memory):
        fill(each, rows, labels=[str(place % 7) for place in range(300)])
    left, right = store.search(queries, 9), memory.search(queries, 9)
    assert left.ids.tolist() == right.ids.tolist()
    assert left.labels.tolist() == right.labels.tolist()
    if metric == "cosine":
        np.testing.assert_allclose(left.distances, right.distances, atol=2e-7)
    else:
        assert left.distances.tobytes() == right.distances.tobytes()


@pytest.mark.filterwarnings("ignore:.*squared distances:clipretrieval.ClipRetrievalWarning")
@pytest.mark.parametrize("scale", [1e-30, 1e15, 1e25])
def test_scales_that_float32_products_lose(make: Any, scale: float) -> None:
    """Distances whose squares float32 cannot hold are MemoryStore's too."""
    rows, queries = normal(2, 80, 8) * np.float32(scale), normal(3, 5, 8) * np.float32(scale)
    store, memory = make(), MemoryStore()
    for each in (store, memory):
        fill(each, rows)
    left, right = store.search(queries, 6), memory.search(queries, 6)
    assert left.ids.tolist() == right.ids.tolist()
    assert left.distances.tobytes() == right.distances.tobytes()


def test_ties_among_many_duplicates_go_by_id(make: Any) -> None:
    """Of three hundred equal vectors those with the first ids are returned."""
    store = make()
    ids = fill(store, np.tile(np.array([[1.0, 2.0, 3.0]]), (300, 1)))
    near = store.search(np.array([[1.0, 2.0, 3.0]]), 20)
    assert near.ids.tolist() == [sorted(ids)[:20]]
    assert not near.distances.any()


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(("labels", "padding"), [([4, 5], -1), (["cat", "dog"], "")])
def test_rows_are_padded_beyond_the_count(make: Any, exact: bool, labels: list[Any], padding: Any) -> None:
    """Where k exceeds the count, ids, distances and labels are padded."""
    store = make(exact=exact)
    store.upsert(["a", "b"], np.array([[0.0], [1.0]]), labels)
    near = store.search(np.array([[0.0], [1.0]]), 3)
    assert near.ids.tolist() == [["a", "b", ""], ["b", "a", ""]]
    assert near.distances.tolist() == [[0, 1, np.inf]] * 2
    assert near.labels.tolist() == [[*labels, padding], [*labels[::-1], padding]]
    assert near.labels.dtype == (np.int64 if padding == -1 else object)


def test_an_empty_store_answers_with_padding(make: Any) -> None:
    """A store that holds nothing, not yet or no more, returns padding and keeps its dimension."""
    store = make()
    assert store.dim is None
    for _ in range(2):
        near = store.search(np.zeros((2, 5)), 3)
        assert near.ids.tolist() == [[""] * 3] * 2
        assert not near.valid.any()
        assert len(store.get(["a"])) == 0
        assert store.delete(["a"]) == 0
        store.upsert(["a"], np.ones((1, 5)), [1])
        assert store.delete(["a"]) == 1
        assert (store.count(), store.dim) == (0, 5)
    store.upsert(["a"], np.ones((1, 5)), ["now a str"])
    assert store.get(["a"]).labels.tolist() == ["now a str"]


def clusters(seed: int) -> Any:
    return np.repeat(normal(seed, 20, 32), 60, axis=0) + 0.1 * normal(seed + 1, 1200, 32)


@pytest.mark.parametrize("metric", METRICS)
def test_the_graph_finds_most_with_exact_distances(make: Any, metric: str) -> None:
    """With exact=False most neighbours are found on clustered vectors, and their distances are exact."""
    rows, queries = clusters(20), clusters(20)[::40] + 0.01 * normal(30, 30, 32)
    store, memory = make(metric, exact=False), MemoryStore(metric)
    for each in (store, memory):
        fill(each, rows, labels=list(range(1200)))
    left, right = store.search(queries, 10), memory.search(queries, 1200)
    hits = 0
    for row in range(30):
        values = zip(right.distances[row], right.labels[row], strict=True)
        truth = dict(zip(right.ids[row], values, strict=True))
        for name, distance, label in zip(left.ids[row], left.distances[row], left.labels[row], strict=True):
            assert distance == pytest.approx(truth[name][0], rel=1e-6, abs=2e-7)
            assert label == truth[name][1]
        assert (np.diff(left.distances[row]) >= 0).all()
        hits += len(set(left.ids[row]) & set(right.ids[row, :10]))
    assert hits >= 0.95 * 300


def test_a_large_collection_is_searched_through_the_graph_with_a_warning(make: Any) -> None:
    """Beyond exact_up_to the search warns once that it may miss neighbours."""
    store = make(exact_up_to=1000)
    ids = fill(store, clusters(20))
    with pytest.warns(ClipRetrievalWarning, match="exact_up_to=1000") as caught:
        near = store.search(clusters(20)[:5], 1)
    assert caught[0].filename == __file__
    assert near.ids[:, 0].tolist() == ids[:5]
    assert store.search(clusters(20)[:5], 1).ids[:, 0].tolist() == ids[:5]


def test_threads_search_while_one_writes(make: Any) -> None:
    """Threads that search see each write wholly or not at all."""
    store = make()
    ids = [f"{place:02}" for place in range(32)]
    store.upsert(ids, np.zeros((32, 4)), [0] * 32)
    failures: list[Any] = []
    done = threading.Event()

    def search() -> None:
        while not done.is_set():
            near = store.search(np.zeros((2, 4)), 32)
            values = set(zip(near.distances.ravel().tolist(), near.labels.ravel().tolist(), strict=True))
            if len(values) > 1 or any(distance != 4 * label**2 for distance, label in values):
                failures.append(values)
                return

    readers = [threading.Thread(target=search) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for number in range(1, 9):
            store.upsert(ids, np.full((32, 4), float(number)), [number] * 32)
    finally:
        done.set()
        for reader in readers:
            reader.join(timeout=60)
    assert not failures
    assert store.search(np.zeros((1, 4)), 1).labels.tolist() == [[8]]


IDS = [*"abcdef", "é", "猫"]


VALUES = st.integers(-3, 3).map(float) | st.floats(-1e4, 1e4, width=32)


class TwoStores(RuleBasedStateMachine):
    """A ChromaStore in a folder, opened anew now and then, beside the MemoryStore that it must equal."""

    @initialize(metric=st.sampled_from(["l2", "ip"]))
    def create(self, metric: str) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.metric = metric
        self.memory = MemoryStore(metric)
        self.chroma = ChromaStore(self.folder.name, metric=metric)

    @rule(data=st.data(), ids=st.lists(st.sampled_from(IDS), min_size=1, unique=True))
    def upsert(self, data: st.DataObject, ids: list[str]) -> None:
        rows = data.draw(hnp.arrays(np.float32, (len(ids), 3), elements=VALUES))
        metadata = [{"of": name} for name in ids] if data.draw(st.booleans()) else None
        for store in (self.memory, self.chroma):
            store.upsert(ids, rows, list(range(len(ids))), metadata)

    @rule(ids=st.lists(st.sampled_from(IDS)))
    def delete(self, ids: list[str]) -> None:
        assert self.memory.delete(ids) == self.chroma.delete(ids)

    @rule(queries=hnp.arrays(np.float32, (3, 3), elements=VALUES), k=st.integers(1, 9))
    def search(self, queries: Any, k: int) -> None:
        left, right = self.memory.search(queries, k), self.chroma.search(queries, k)
        assert left.ids.tolist() == right.ids.tolist()
        assert left.labels.tolist() == right.labels.tolist()
        assert left.distances.tobytes() == right.distances.tobytes()

    @rule()
    def reopen(self) -> None:
        self.chroma.close()
        self.chroma = ChromaStore(self.folder.name, metric=self.metric)

    @invariant()
    def same_contents(self) -> None:
        left, right = self.memory.get(IDS), self.chroma.get(IDS)
        assert self.memory.count() == self.chroma.count() == len(left)
        assert left.ids.tolist() == right.ids.tolist()
        assert left.labels.tolist() == right.labels.tolist()
        assert left.metadata == right.metadata
        assert left.vectors.tobytes() == right.vectors.tobytes()

    def teardown(self) -> None:
        if hasattr(self, "chroma"):
            self.chroma.close()
            self.folder.cleanup()


TestTwoStores = TwoStores.TestCase


TestTwoStores.settings = settings(
    max_examples=8, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)
