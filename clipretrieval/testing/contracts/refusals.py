"""The conformance suite's tests of malformed arguments: refused, with nothing changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from clipretrieval.errors import DimensionMismatchError, InvalidInputError
from clipretrieval.stores.base import VectorStore
from clipretrieval.testing.contracts.base import ContractBase, Stores, contents

__all__ = ["RefusalsContract"]

# Each replaces arguments of an upsert of two good records "p", which is stored, and "q", which is not.
BAD_UPSERTS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "an id twice": lambda rows: {"ids": ["q", "q"]},
    "an empty id": lambda rows: {"ids": ["q", ""]},
    "an integer id": lambda rows: {"ids": ["q", 1]},
    "one string of ids": lambda rows: {"ids": "pq"},
    "a lone surrogate in an id": lambda rows: {"ids": ["q", "\ud83d"]},
    "too few ids": lambda rows: {"ids": ["q"]},
    "too many vectors": lambda rows: {"vectors": np.vstack([rows, rows])},
    "one-dimensional vectors": lambda rows: {"vectors": rows[0]},
    "three-dimensional vectors": lambda rows: {"vectors": rows[None]},
    "too wide vectors": lambda rows: {"vectors": np.hstack([rows, rows])},
    "too narrow vectors": lambda rows: {"vectors": rows[:, 1:]},
    "NaN": lambda rows: {"vectors": _spoiled(rows, np.nan)},
    "infinity": lambda rows: {"vectors": _spoiled(rows, np.inf)},
    "minus infinity": lambda rows: {"vectors": _spoiled(rows, -np.inf)},
    "complex vectors": lambda rows: {"vectors": rows + 1j},
    "too few labels": lambda rows: {"labels": [1]},
    "labels of two types": lambda rows: {"labels": [1, "x"]},
    "labels of another type than the stored": lambda rows: {"labels": ["x", "y"]},
    "labels that are float": lambda rows: {"labels": [1.0, 2.0]},
    "labels that are bool": lambda rows: {"labels": [True, False]},
    "labels beyond 64 bits": lambda rows: {"labels": [1, 2**63]},
    "labels that are None": lambda rows: {"labels": [None, None]},
    "too little metadata": lambda rows: {"metadata": [{}]},
    "one mapping as metadata": lambda rows: {"metadata": {"a": 1, "b": 2}},
    "metadata that is no mapping": lambda rows: {"metadata": [{}, 2]},
    "metadata that is no JSON": lambda rows: {"metadata": [{}, {"x": object()}]},
    "metadata with NaN": lambda rows: {"metadata": [{}, {"x": float("nan")}]},
    "metadata with integer keys": lambda rows: {"metadata": [{}, {1: "x"}]},
}


def _spoiled(rows: Any, value: float) -> Any:
    spoiled = rows.copy()
    spoiled[1, 2] = value
    return spoiled


class RefusalsContract(ContractBase):
    """A call that raises InvalidInputError has stored nothing."""

    def filled(self, store: VectorStore) -> dict[str, Any]:
        """Store the records "p" and "r" and a manifest; return the contents."""
        self.put(store, ["p", "r"], self.normal(0, 2), [7, 8], [{"x": 1}, {}])
        store.write_manifest({"kept": True})
        return self.seen(store)

    def seen(self, store: VectorStore) -> dict[str, Any]:
        """Return what the store holds of the ids that these tests use."""
        self.settle(store)
        return contents(store, ["p", "q", "r"])

    @pytest.mark.parametrize("wrong", BAD_UPSERTS)
    def test_a_malformed_upsert_changes_nothing(self, store: VectorStore, wrong: str) -> None:
        """An upsert with a malformed argument is refused whole, its good records too."""
        before = self.filled(store)
        rows = self.normal(1, 2)
        arguments = {"ids": ["p", "q"], "vectors": rows, "labels": [1, 2], **BAD_UPSERTS[wrong](rows)}
        with pytest.raises(InvalidInputError):
            store.upsert(**arguments)
        assert self.seen(store) == before, f"an upsert that was refused for {wrong} changed the store"

    def test_a_refused_first_upsert_settles_nothing(self, store: VectorStore) -> None:
        """A store whose first upsert was refused takes labels of any type afterwards."""
        with pytest.raises(InvalidInputError):
            store.upsert(["a", "a"], self.normal(2, 2), [1, 2])
        self.put(store, ["a"], self.normal(2, 1), ["x"])
        assert store.get(["a"]).labels.tolist() == ["x"]

    def test_a_wrong_dimension_is_told_apart(self, store: VectorStore) -> None:
        """Vectors and queries of another dimension raise DimensionMismatchError."""
        self.filled(store)
        wide = np.ones((1, self.dim + 1), dtype=np.float32)
        with pytest.raises(DimensionMismatchError):
            store.upsert(["q"], wide, [1])
        with pytest.raises(DimensionMismatchError):
            store.search(wide, 1)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_queries_must_be_finite(self, store: VectorStore, value: float) -> None:
        """A query with NaN or infinity is refused, whatever the other queries are."""
        self.filled(store)
        with pytest.raises(InvalidInputError):
            store.search(_spoiled(self.normal(3, 2), value), 1)

    def test_queries_must_be_two_dimensional(self, store: VectorStore) -> None:
        """A single vector is no matrix of queries."""
        self.filled(store)
        with pytest.raises(InvalidInputError):
            store.search(self.normal(3, 1)[0], 1)

    @pytest.mark.parametrize("k", [0, -1, 1.5, True, "1", None])
    def test_k_must_be_a_positive_int(self, store: VectorStore, k: Any) -> None:
        """Anything but an int of at least 1 is refused as k."""
        self.filled(store)
        with pytest.raises(InvalidInputError):
            store.search(self.normal(3, 1), k)

    def test_cosine_needs_a_direction(self, stores: Stores) -> None:
        """Under cosine a zero vector is refused, stored or searched; other metrics take it."""
        for metric in self.metrics:
            store, zero = stores.new(metric), self.vectors([[0]])
            before = self.filled(store)
            if metric == "cosine":
                with pytest.raises(InvalidInputError):
                    store.upsert(["q"], zero, [1])
                with pytest.raises(InvalidInputError):
                    store.search(zero, 1)
                assert self.seen(store) == before
            else:
                self.put(store, ["q"], zero, [1])
                near = store.search(zero, 3)
                place = near.ids[0].tolist().index("q")
                assert near.distances[0, place] == pytest.approx(0)

    @pytest.mark.parametrize("ids", ["pr", [1], [None], 5])
    def test_lookups_need_a_sequence_of_str(self, store: VectorStore, ids: Any) -> None:
        """Get and delete refuse anything but a sequence of str, a single string too."""
        before = self.filled(store)
        for call in (store.get, store.delete):
            with pytest.raises(InvalidInputError):
                call(ids)
        assert self.seen(store) == before

    @pytest.mark.parametrize("manifest", [None, [1], {1: 2}, {"x": object()}, {"x": float("inf")}])
    def test_a_malformed_manifest_is_refused(self, store: VectorStore, manifest: Any) -> None:
        """Only a mapping of JSON values is kept as a manifest."""
        before = self.filled(store)
        with pytest.raises(InvalidInputError):
            store.write_manifest(manifest)
        assert self.seen(store) == before
