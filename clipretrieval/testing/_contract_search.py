"""The conformance suite's tests of searches: distances, order, ties and padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from clipretrieval.stores.base import VectorStore
from clipretrieval.testing._base import ContractBase, Stores, names
from clipretrieval.testing._checks import (
    check_arrays,
    check_distances,
    check_labels,
    check_order,
    share_found,
    true_distances,
)
from clipretrieval.types import Label, Neighbors, Records

__all__ = ["PaddingContract", "SearchContract"]


class SearchContract(ContractBase):
    """What a search over more than k vectors returns."""

    def searched(
        self, stores: Stores, metric: str, k: int = 10
    ) -> tuple[Neighbors, Records, npt.NDArray[np.float32]]:
        """Search 40 queries among 300 clustered vectors of many lengths; return answer, contents, queries."""
        places = np.arange(340)
        clusters = 3 * self.normal(1, 20)[places % 20]
        lengths = np.geomspace(0.1, 10, 340, dtype=np.float32)[(7 * places) % 340, None]
        vectors = (clusters + self.normal(2, 340)) * lengths
        rows, queries = vectors[:300], vectors[300:]
        ids, labels = names(300), [f"label {place}" for place in range(300)]
        store = stores.new(metric)
        self.put(store, ids, rows, labels)
        packed = (np.array(ids, dtype=object), rows, np.array(labels, dtype=object))
        return store.search(queries, k), Records(*packed, [{}] * 300), queries

    def test_distances_by_hand(self, stores: Stores, metric: str) -> None:
        """Three distances come out as the definitions of the metric give them."""
        store = stores.new(metric)
        self.put(store, ["same", "across", "back"], self.vectors([[3, 4], [4, -3], [-3, -4]]), [0, 1, 2])
        near = store.search(self.vectors([[6, 8]]), 3)
        found = dict(zip(near.ids[0].tolist(), near.distances[0].tolist(), strict=True))
        right = {
            "l2": {"same": 25, "across": 125, "back": 225},
            "cosine": {"same": 0, "across": 1, "back": 2},
            "ip": {"same": -50, "across": 0, "back": 50},
        }[metric]
        assert found == pytest.approx(right, rel=self.tolerance, abs=50 * self.tolerance), (
            f"wrong distances under {metric!r}: l2 is the squared distance, cosine is 1 - cosine, ip is "
            "minus the inner product"
        )

    def test_arrays_have_their_shapes_and_types(self, stores: Stores, metric: str) -> None:
        """Ids, distances and labels are arrays of shape (n_queries, k) and of the promised types."""
        near, truth, queries = self.searched(stores, metric)
        check_arrays(near, len(queries), 10, len(truth))

    def test_distances_are_those_of_the_ids(self, stores: Stores, metric: str) -> None:
        """Each distance is that of the query and the vector stored under the id, also for long vectors."""
        near, truth, queries = self.searched(stores, metric)
        check_distances(near, truth, queries, metric, self.tolerance)

    def test_rows_ascend(self, stores: Stores, metric: str) -> None:
        """The nearest comes first and the distances of a row ascend."""
        near, _, _ = self.searched(stores, metric)
        check_order(near)

    def test_labels_are_those_of_the_ids(self, stores: Stores, metric: str) -> None:
        """Each neighbour carries the label that was stored with its id."""
        near, truth, _ = self.searched(stores, metric)
        check_labels(near, truth)

    def test_the_nearest_are_found(self, stores: Stores, metric: str) -> None:
        """Searches find at least the declared share of the true neighbours."""
        near, truth, queries = self.searched(stores, metric)
        share = share_found(near, truth, queries, metric, self.tolerance)
        assert share >= self.recall_floor, (
            f"searches under {metric!r} found {share:.4f} of the true neighbours; recall_floor declares "
            f"{self.recall_floor}"
        )

    def test_a_stored_vector_finds_itself(self, stores: Stores, metric: str) -> None:
        """A query that equals a stored vector of length 1 finds it: at 0, never below, and under ip at -1."""
        rows, ids = self.normal(3, 50), names(50)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        store = stores.new(metric)
        self.put(store, ids, rows, [0] * 50)
        near = store.search(rows, 1)
        share = float(np.mean(near.ids[:, 0] == np.array(ids, dtype=object)))
        assert share >= self.recall_floor, f"only {share:.4f} of the stored vectors find themselves"
        if metric != "ip":
            assert near.distances.min() >= 0, f"no distance under {metric!r} is negative; clamp rounding at 0"
        if share == 1:
            right = -1 if metric == "ip" else 0
            assert near.distances == pytest.approx(np.full((50, 1), right), abs=4 * self.tolerance)

    def test_a_query_alone_gets_what_it_gets_among_others(self, stores: Stores, metric: str) -> None:
        """Three hundred queries in one call are answered as they are one by one."""
        store, queries = stores.new(metric), self.normal(5, 300)
        self.put(store, names(60), 3 * self.normal(4, 60), list(range(60)))
        together = store.search(queries, 3)
        check_arrays(together, 300, 3, 60)
        for place in range(0, 300, 30):
            alone = store.search(queries[place : place + 1], 3)
            assert alone.distances[0] == pytest.approx(together.distances[place], rel=1e-4, abs=1e-4)
            assert alone.labels[0].tolist() == together.labels[place].tolist()

    def test_equal_distances_go_by_id(self, stores: Stores, metric: str) -> None:
        """Equal vectors that all fit into a row come in the order of their ids."""
        store, ids = stores.new(metric), names(12)
        self.put(store, ids, self.vectors([[1, 2, 3]] * 12), list(range(12)))
        near = store.search(self.vectors([[1, 2, 3], [3, 1, 0]]), 12)
        assert near.ids.tolist() == [sorted(ids)] * 2, "equal distances must be in the order of their ids"
        assert near.labels.tolist() == [[ids.index(name) for name in sorted(ids)]] * 2

    def test_ties_for_the_last_place_go_by_id(self, stores: Stores, metric: str) -> None:
        """Of a hundred equal vectors those with the first ids are returned."""
        if not self.ties_by_id:
            pytest.skip(f"{type(self).__name__}.ties_by_id is False")
        store, ids = stores.new(metric), names(100)
        self.put(store, ids, self.vectors([[1, 2, 3]] * 100), [0] * 100)
        near = store.search(self.vectors([[1, 2, 3]]), 5)
        assert near.ids[0].tolist() == sorted(ids)[:5]


class PaddingContract(ContractBase):
    """What a search returns where there is little or nothing to find."""

    @pytest.mark.parametrize(("labels", "padding"), [([4, 5], -1), (["cat", "dog"], "")], ids=["int", "str"])
    def test_rows_are_padded_beyond_the_count(
        self, stores: Stores, metric: str, labels: list[Label], padding: Label
    ) -> None:
        """Where k exceeds the count, a row ends in the id "", the distance +inf and the label -1 or ""."""
        store = stores.new(metric)
        self.put(store, ["a", "b"], self.vectors([[2, 1], [1, 2]]), labels)
        near = store.search(self.vectors([[4, 0], [0, 4]]), 5)
        check_arrays(near, 2, 5, 2)
        assert near.ids.tolist() == [["a", "b", "", "", ""], ["b", "a", "", "", ""]]
        assert near.labels.tolist() == [[*labels, *[padding] * 3], [*labels[::-1], *[padding] * 3]], (
            f"beside {type(labels[0]).__name__} labels, the label of padding must be {padding!r}"
        )

    def test_k_may_be_the_count(self, stores: Stores, metric: str) -> None:
        """A search for as many as there are returns all of them, without padding."""
        store, rows = stores.new(metric), self.normal(6, 20)
        self.put(store, names(20), rows, [0] * 20)
        near = store.search(self.normal(7, 3), 20)
        check_arrays(near, 3, 20, 20)
        assert [sorted(row) for row in near.ids.tolist()] == [sorted(names(20))] * 3

    def test_an_empty_store_answers_with_padding(self, store: VectorStore) -> None:
        """A store that holds nothing yet returns rows of padding and no records."""
        check_arrays(store.search(self.normal(8, 2), 3), 2, 3, 0)
        assert store.count() == 0, "a new store must be empty"
        assert len(store.get(["a"])) == 0
        assert self.drop(store, ["a"]) == 0

    def test_an_emptied_store_answers_with_padding(self, store: VectorStore) -> None:
        """A store from which everything was deleted is as an empty one, and can be filled anew."""
        for label in (1, "one"):
            self.put(store, ["a", "b"], self.normal(9, 2), [label, label])
            assert self.drop(store, ["a", "b"]) == 2
            check_arrays(store.search(self.normal(8, 2), 3), 2, 3, 0)
            assert store.count() == 0
            assert store.dim in (None, self.dim)

    def test_a_nearest_vector_is_no_padding(self, stores: Stores, metric: str) -> None:
        """Neighbours at a great distance are real: only padding is at +inf."""
        store, rows = stores.new(metric), self.vectors([[1e4, 1], [-1e4, 1]])
        self.put(store, ["a", "b"], rows, [1, 2])
        query: Any = self.vectors([[1e4, 0]])
        near = store.search(query, 3)
        check_arrays(near, 1, 3, 2)
        expected = np.sort(true_distances(query, rows, metric), axis=1)[0]
        assert near.distances[0, :2] == pytest.approx(expected, rel=1e-4, abs=4e8 * self.tolerance)
