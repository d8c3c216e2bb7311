"""The conformance suite's tests of searches, and the checks of an answer against plain float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from clipretrieval.stores.base import VectorStore
from clipretrieval.testing.contracts.base import ContractBase, Stores, names
from clipretrieval.types import Label, Neighbors, Records

__all__ = [
    "PaddingContract",
    "SearchContract",
    "allowed_error",
    "check_arrays",
    "check_distances",
    "check_neighbor_labels",
    "check_order",
    "share_found",
    "true_distances",
]

DoubleArray = npt.NDArray[np.float64]


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
        """Each neighbor carries the label that was stored with its id."""
        near, truth, _ = self.searched(stores, metric)
        check_neighbor_labels(near, truth)

    def test_the_nearest_are_found(self, stores: Stores, metric: str) -> None:
        """Searches find at least the declared share of the true neighbors."""
        near, truth, queries = self.searched(stores, metric)
        share = share_found(near, truth, queries, metric, self.tolerance)
        assert share >= self.recall_floor, (
            f"searches under {metric!r} found {share:.4f} of the true neighbors; recall_floor declares "
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
        """Neighbors at a great distance are real: only padding is at +inf."""
        store, rows = stores.new(metric), self.vectors([[1e4, 1], [-1e4, 1]])
        self.put(store, ["a", "b"], rows, [1, 2])
        query: Any = self.vectors([[1e4, 0]])
        near = store.search(query, 3)
        check_arrays(near, 1, 3, 2)
        expected = np.sort(true_distances(query, rows, metric), axis=1)[0]
        assert near.distances[0, :2] == pytest.approx(expected, rel=1e-4, abs=4e8 * self.tolerance)


def true_distances(queries: npt.NDArray[Any], rows: npt.NDArray[Any], metric: str) -> DoubleArray:
    """Return all distances in float64, shape (n_queries, n), by the definitions of `Metric`."""
    left, right = queries.astype(np.float64)[:, None, :], rows.astype(np.float64)[None, :, :]
    if metric == "l2":
        squared: DoubleArray = np.square(left - right).sum(axis=-1)
        return squared
    products: DoubleArray = (left * right).sum(axis=-1)
    if metric == "ip":
        return np.negative(products)
    squares: DoubleArray = np.square(left).sum(axis=-1) * np.square(right).sum(axis=-1)
    cosines: DoubleArray = products / np.sqrt(squares)
    return 1 - cosines


def allowed_error(
    queries: npt.NDArray[Any], rows: npt.NDArray[Any], metric: str, tolerance: float
) -> DoubleArray:
    """Return how far a distance may be off, shape (n_queries, n)."""
    if metric == "cosine":
        return np.full((len(queries), len(rows)), tolerance)
    left, right = (np.linalg.norm(each.astype(np.float64), axis=1) for each in (queries, rows))
    if metric == "ip":
        return np.asarray(tolerance * np.multiply.outer(left, right))
    return np.asarray(tolerance * np.square(np.add.outer(left, right)))


def check_arrays(near: Neighbors, n_queries: int, k: int, count: int) -> None:
    """Check shapes and types, and that a row is padded just where the store holds too few vectors."""
    shape = (n_queries, k)
    for name, array in (("ids", near.ids), ("distances", near.distances), ("labels", near.labels)):
        assert array.shape == shape, f"{name} must have shape (n_queries, k) = {shape}; found {array.shape}"
    assert near.distances.dtype == np.float32, f"distances must be float32; found {near.distances.dtype}"
    assert near.ids.dtype == object, f"ids must be an array of object (str); found {near.ids.dtype}"
    assert near.labels.dtype in (np.int64, object), (
        f"labels must be int64 or object; found {near.labels.dtype}"
    )
    expected = np.broadcast_to(np.arange(k) < count, shape)
    assert np.array_equal(near.valid, expected), (
        f"of {count} vectors a search with k={k} must return {min(k, count)} and pad the rest with the "
        f"distance +inf; the numbers of finite distances are {near.valid.sum(axis=1).tolist()}"
    )
    padding = near.labels[~expected].tolist()
    assert near.ids[~expected].tolist() == [""] * len(padding), 'where a row is padded, the id must be ""'
    assert set(padding) <= {-1, ""}, f'where a row is padded, the label must be -1 or ""; found {padding}'
    for row in near.ids.tolist():
        real = row[: min(k, count)]
        assert all(type(name) is str for name in real), f"ids must be str; found {real}"
        assert len(set(real)) == len(real), f"a search must return each id once; found {real}"


def check_distances(
    near: Neighbors, truth: Records, queries: npt.NDArray[Any], metric: str, tol: float
) -> None:
    """Check each distance against that of the query and the vector stored under the id."""
    if not near.valid.any():
        return
    places = {name: place for place, name in enumerate(truth.ids)}
    expected = true_distances(queries, truth.vectors, metric)
    allowed = allowed_error(queries, truth.vectors, metric, tol)
    for query, column in zip(*np.nonzero(near.valid), strict=True):
        name = near.ids[query, column]
        assert name in places, f"a search returned the id {name!r}, which is not stored"
        found, place = float(near.distances[query, column]), places[name]
        right = expected[query, place]
        assert abs(found - right) <= allowed[query, place], (
            f"under {metric!r} the distance to {name!r} must be {right:.7g} (lower is nearer: l2 is the "
            f"squared distance, cosine is 1 - cosine, ip is minus the inner product); found {found:.7g}"
        )


def check_order(near: Neighbors) -> None:
    """Check that each row ascends and that equal distances are in the order of their ids."""
    for distances, ids in zip(near.distances.tolist(), near.ids.tolist(), strict=True):
        assert distances == sorted(distances), f"the distances of a row must ascend; found {distances}"
        real = [pair for pair in zip(distances, ids, strict=True) if np.isfinite(pair[0])]
        assert real == sorted(real), f"equal distances must be in the order of their ids; found {real}"


def check_neighbor_labels(near: Neighbors, truth: Records) -> None:
    """Check that each neighbor carries the label stored under its id."""
    labels = dict(zip(truth.ids.tolist(), truth.labels.tolist(), strict=True))
    for name, label in zip(near.ids[near.valid].tolist(), near.labels[near.valid].tolist(), strict=True):
        assert name in labels, f"a search returned the id {name!r}, which is not stored"
        right = labels[name]
        assert (label, type(label)) == (right, type(right)), (
            f"the neighbor {name!r} must carry its own label {right!r}; found {label!r}"
        )


def share_found(
    near: Neighbors, truth: Records, queries: npt.NDArray[Any], metric: str, tolerance: float
) -> float:
    """Return the share of the returned ids that are among the true nearest or tie with the last of them."""
    reach = min(near.ids.shape[1], len(truth))
    if not reach or not len(queries):
        return 1.0
    expected = true_distances(queries, truth.vectors, metric)
    limit = np.sort(expected, axis=1)[:, reach - 1, None]
    good = expected <= limit + 2 * allowed_error(queries, truth.vectors, metric, tolerance)
    hits = sum(
        len(set(near.ids[query].tolist()) & set(truth.ids[good[query]].tolist()))
        for query in range(len(queries))
    )
    return float(hits / (reach * len(queries)))
