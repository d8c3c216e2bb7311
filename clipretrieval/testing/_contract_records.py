"""The conformance suite's tests of upsert, get, delete and count."""

from __future__ import annotations

from typing import Any

import numpy as np

from clipretrieval.stores.base import VectorStore
from clipretrieval.testing._base import ContractBase, Stores, contents, names
from clipretrieval.types import Metric

__all__ = ["RecordsContract"]


class RecordsContract(ContractBase):
    """Records go in, are replaced, come out and go."""

    def test_it_follows_the_protocol(self, stores: Stores, metric: str) -> None:
        """A store has every member of the protocol and tells the metric it was opened with."""
        store = stores.new(metric)
        assert isinstance(store, VectorStore), "a member of clipretrieval.stores.VectorStore is missing"
        assert store.metric == metric, f"opened with {metric!r}, it says metric {store.metric!r}"
        assert Metric.parse(store.metric) == metric

    def test_the_first_upsert_settles_the_dimension(self, store: VectorStore) -> None:
        """The dimension is unknown or right at first, and right after an upsert."""
        assert store.dim in (None, self.dim)
        self.put(store, ["a"], self.normal(0, 1), [1])
        assert store.dim == self.dim

    def test_count_counts(self, store: VectorStore) -> None:
        """The count follows what is added, replaced and removed."""
        counts = []
        for ids in (names(7), names(9), ["more"]):
            self.put(store, ids, self.normal(1, len(ids)), [0] * len(ids))
            counts.append(store.count())
        self.drop(store, [*names(3), "unknown"])
        assert [*counts, store.count()] == [7, 9, 10, 7]

    def test_upsert_replaces_wholly(self, store: VectorStore) -> None:
        """An id that is there keeps nothing of its record: vector, label and metadata are the new ones."""
        rows, metadata = self.normal(2, 3), [{"x": 1, "y": 2}, {"x": 3}, {}]
        self.put(store, ["a", "b", "c"], rows, [1, 2, 3], metadata)
        new = self.normal(3, 2)
        self.put(store, ["new", "a"], new, [4, 5], [{}, {"y": 9}])
        self.put(store, ["b"], rows[2:], [6])
        found = contents(store, ["a", "b", "c", "new"])
        assert found["count"] == 4, (
            f"an id must be stored once; the count is {found['count']} after replacing"
        )
        assert found["labels"] == [5, 6, 3, 4]
        assert found["metadata"] == [{"y": 9}, {}, {}, {}], "metadata must be replaced, not merged"
        np.testing.assert_allclose(found["vectors"], [new[1], rows[2], rows[2], new[0]], rtol=1e-6, atol=1e-6)

    def test_a_replaced_vector_is_found_no_more(self, stores: Stores, metric: str) -> None:
        """Searches see the new vector of a replaced record, and the record once."""
        store = stores.new(metric)
        rows = self.vectors([[1, 0, 0], [0, 1, 0], [0, 0, 1]])
        self.put(store, ["a", "b", "c"], rows, [1, 2, 3])
        self.put(store, ["a"], self.vectors([[0, 2, 4]]), [9])
        near = store.search(self.vectors([[0, 0, 1]]), 4)
        real = near.ids[0][near.valid[0]].tolist()
        assert sorted(real) == ["a", "b", "c"], f"each id must be found once; found {real}"
        assert near.labels[0].tolist()[real.index("a")] == 9
        right = {"l2": 13.0, "cosine": 1 - 4 / 20**0.5, "ip": -4.0}[metric]
        assert abs(near.distances[0, real.index("a")] - right) <= 30 * self.tolerance

    def test_get_keeps_the_order_asked_for(self, store: VectorStore) -> None:
        """Records come in the order of the ids, and ids that are not stored are left out."""
        ids, rows = names(30), self.normal(4, 30)
        self.put(store, ids, rows, list(range(30)), [{"place": place} for place in range(30)])
        records = store.get([ids[20], "unknown", ids[3], ids[11]])
        assert records.ids.tolist() == [ids[20], ids[3], ids[11]]
        assert records.labels.tolist() == [20, 3, 11]
        assert records.metadata == [{"place": 20}, {"place": 3}, {"place": 11}]
        np.testing.assert_allclose(records.vectors, rows[[20, 3, 11]], rtol=1e-6, atol=1e-6)

    def test_get_returns_the_vectors_that_were_given(self, stores: Stores, metric: str) -> None:
        """Vectors come back as float32 bit for bit, or to within rounding where that is declared."""
        rows = self.normal(5, 40) * np.geomspace(1e-3, 1e3, 40, dtype=np.float32)[:, None]
        store, ids = stores.new(metric), names(40)
        self.put(store, ids, rows, [0] * 40)
        found = store.get(ids).vectors
        assert found.dtype == np.float32, f"vectors must be float32; found {found.dtype}"
        assert found.shape == rows.shape
        if metric in self.exact_vectors:
            wrong = int((found != rows).any(axis=1).sum())
            assert not wrong, f"{wrong} of 40 vectors changed; exact_vectors declares {metric!r}"
        else:
            np.testing.assert_allclose(found, rows, rtol=1e-6)

    def test_get_of_nothing(self, store: VectorStore) -> None:
        """No ids, or only unknown ones, give no records and delete nothing."""
        self.put(store, ["a"], self.normal(6, 1), [1])
        for ids in ([], ["unknown"]):
            records = store.get(ids)
            assert len(records.ids) == len(records.labels) == len(records.metadata) == 0
            assert records.vectors.shape == (0, self.dim)
            assert self.drop(store, ids) == 0
        assert store.count() == 1

    def test_an_id_that_cannot_be_stored_is_not_there(self, store: VectorStore) -> None:
        """A lookup of an id that no upsert takes, half a surrogate pair, finds and deletes nothing."""
        self.put(store, ["a"], self.normal(6, 1), [1])
        impossible = ["\ud800", "x\udfff"]
        assert store.get(impossible).ids.tolist() == []
        assert self.drop(store, impossible) == 0
        assert store.get([*impossible, "a"]).ids.tolist() == ["a"]
        assert self.drop(store, [*impossible, "a"]) == 1

    def test_what_goes_in_and_out_is_copied(self, store: VectorStore) -> None:
        """Changing what was given or returned changes nothing in the store."""
        rows, metadata = self.normal(7, 2), [{"a": 1}, {"b": 2}]
        self.put(store, ["x", "y"], rows, [1, 2], metadata)
        before = contents(store, ["x", "y"])
        rows[:] = 7
        metadata[0]["a"] = 7
        out = store.get(["x", "y"])
        out.vectors[:] = 8
        out.labels[:] = 8
        out.metadata[1]["b"] = 8
        assert contents(store, ["x", "y"]) == before

    def test_delete_tells_how_many_were_there(self, store: VectorStore) -> None:
        """Deleting counts each record once, and neither unknown nor repeated ids."""
        ids = names(20)
        self.put(store, ids, self.normal(8, 20), [0] * 20)
        counts = [self.drop(store, each) for each in ([ids[0]], [*ids[:5], "unknown", ids[4]], ids[:5], ids)]
        assert counts == [1, 4, 0, 15], "delete must return how many of the ids were stored"
        assert store.count() == 0

    def test_deleted_records_are_gone(self, stores: Stores, metric: str) -> None:
        """What was deleted is found by neither get nor search; what was not keeps its own record."""
        store, ids, rows = stores.new(metric), names(40), self.normal(9, 40)
        self.put(store, ids, rows, list(range(40)))
        self.drop(store, ids[::3])
        stay = [place for place in range(40) if place % 3]
        left: dict[str, Any] = contents(store, ids)
        assert left["ids"] == [ids[place] for place in stay]
        assert left["labels"] == stay
        near = store.search(self.normal(10, 4), len(stay))
        assert {name for row in near.ids.tolist() for name in row} == set(left["ids"])
        labels = dict(zip(left["ids"], stay, strict=True))
        assert all(
            labels[name] == label
            for name, label in zip(near.ids.ravel().tolist(), near.labels.ravel().tolist(), strict=True)
        )

    def test_a_deleted_id_may_come_back(self, store: VectorStore) -> None:
        """An id that was deleted can be stored again, with nothing left of its old record."""
        rows = self.normal(11, 2)
        self.put(store, ["a"], rows[:1], [1], [{"old": True}])
        self.drop(store, ["a"])
        self.put(store, ["a"], rows[1:], [2])
        found = contents(store, ["a"])
        assert (found["count"], found["labels"], found["metadata"]) == (1, [2], [{}])
        np.testing.assert_allclose(found["vectors"], rows[1:], rtol=1e-6)
