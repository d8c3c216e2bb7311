"""The conformance suite's tests of great numbers of records, and of threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from clipretrieval.stores.base import VectorStore
from clipretrieval.testing.contracts.base import ContractBase, names
from clipretrieval.testing.contracts.search import allowed_error, true_distances

__all__ = ["LargeContract", "ThreadsContract"]

# One more than any known backend takes in a request.
MANY = 10_001


class LargeContract(ContractBase):
    """A call may hold more than a backend's request does: the store splits it."""

    def corners(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        """Return 10,001 vectors of one length, far enough from each other to be told apart."""
        rows = self.normal(0, MANY)
        return np.asarray(10 * rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)

    def test_a_call_may_hold_10001_vectors(self, store: VectorStore) -> None:
        """All vectors of one great upsert are found with their own labels, then replaced, then deleted."""
        ids, rows = names(MANY), self.corners()
        self.put(store, ids, rows, list(range(MANY)))
        assert store.count() == MANY, f"{MANY} vectors were stored in one call; found {store.count()}"
        probes = np.unique(np.r_[np.linspace(0, MANY - 1, 40).astype(int), 999, 1000, 5461, MANY - 2])
        near = store.search(rows[probes], 1)
        share = float(np.mean(near.labels[:, 0] == probes))
        assert share >= self.recall_floor, f"only {share:.4f} of the vectors of a great upsert are found"
        records = store.get(ids)
        assert records.labels.tolist() == list(range(MANY)), "get must return all records, in order"
        np.testing.assert_allclose(records.vectors, rows, rtol=1e-6, atol=1e-6)
        self.put(store, ids[::-1], rows[::-1], [-1] * MANY)
        assert store.count() == MANY, f"{MANY} vectors were replaced in one call; found {store.count()}"
        assert set(store.get(ids).labels.tolist()) == {-1}, "a great upsert must replace what is stored"
        assert self.drop(store, [*ids[1:], "unknown"]) == MANY - 1
        assert store.count() == 1
        assert store.search(rows[:1], 2).ids.tolist() == [[ids[0], ""]]


class ThreadsContract(ContractBase):
    """Threads may share one store."""

    @pytest.fixture
    def shared(self) -> None:
        """Skip unless the store is declared to bear threads."""
        if not self.thread_safe:
            pytest.skip(f"{type(self).__name__}.thread_safe is False")

    def meanwhile(self, search: Callable[[], None], write: Callable[[], None]) -> None:
        """Search in four threads until `write` has returned; raise what any of them raised."""
        done = threading.Event()

        def searches() -> None:
            while not done.is_set():
                search()

        with ThreadPoolExecutor(4) as pool:
            running = [pool.submit(searches) for _ in range(4)]
            try:
                write()
            finally:
                done.set()
            for each in running:
                each.result(timeout=60)

    @pytest.mark.usefixtures("shared")
    def test_threads_search_while_one_writes(self, store: VectorStore) -> None:
        """A search beside a writer sees records that belong together, old or new."""
        ids, query, metric = names(30), self.vectors([[1]]), self.metrics[0]
        # A vector for each label, no two at the same distance.
        rows = self.vectors([[label, label * label] for label in range(1, 12)])
        self.put(store, ids, rows[[0] * 30], [1] * 30)
        true, allowed = (
            true_distances(query, rows, metric)[0],
            allowed_error(query, rows, metric, self.tolerance)[0],
        )

        def search() -> None:
            near = store.search(query, 30)
            found = set(zip(near.ids[0].tolist(), near.labels[0].tolist(), strict=True))
            assert len(found) == 30, "a search beside a writer lost or repeated records"
            assert {label for _, label in found} <= set(range(1, 12)), f"labels of no record: {found}"
            of_label = near.labels[0].astype(int) - 1
            wrong = np.abs(near.distances[0] - true[of_label]) > allowed[of_label]
            assert not wrong.any(), (
                f"a search beside a writer gave a vector another's label: {near.labels[0][wrong]} at "
                f"{near.distances[0][wrong]}"
            )

        def write() -> None:
            for round_ in range(2, 12):
                store.upsert(ids, rows[[round_ - 1] * 30], [round_] * 30)

        self.meanwhile(search, write)
        self.settle(store)
        assert set(store.get(ids).labels.tolist()) == {11}

    @pytest.mark.usefixtures("shared")
    def test_threads_search_while_one_deletes(self, store: VectorStore) -> None:
        """A record that stays is found whatever comes and goes beside it."""
        keep, others = self.vectors([[1, 1]]), self.vectors([[-1, 1]] * 20)
        self.put(store, ["keep"], keep, [0])

        def search() -> None:
            near = store.search(keep, 3)
            assert near.ids[0, 0] == "keep", f"a record that stays was lost; found {near.ids.tolist()}"
            assert near.labels[0, 0] == 0, "a record was given another's label"

        def write() -> None:
            for _ in range(10):
                store.upsert(names(20), others, [1] * 20)
                store.delete(names(20))

        self.meanwhile(search, write)
        self.settle(store)
        assert store.count() == 1

    @pytest.mark.usefixtures("shared")
    def test_threads_write_side_by_side(self, store: VectorStore) -> None:
        """What four threads add at once is all there, each record with its own label."""
        rows = self.normal(1, 25)

        def write(thread: int) -> int:
            for start in range(0, 25, 5):
                ids = [f"{thread}-{place}" for place in range(start, start + 5)]
                store.upsert(ids, rows[start : start + 5], [thread] * 5)
            return store.delete([f"{thread}-0"])

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(write, range(4))) == [1] * 4
        self.settle(store)
        assert store.count() == 4 * 24
        ids = [f"{thread}-{place}" for thread in range(4) for place in range(1, 25)]
        records = store.get(ids)
        assert records.labels.tolist() == [int(name[0]) for name in ids]
        np.testing.assert_allclose(records.vectors, np.tile(rows[1:], (4, 1)), rtol=1e-6)
