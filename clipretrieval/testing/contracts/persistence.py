"""The conformance suite's tests of the manifest, and of what outlives a closed store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clipretrieval.stores.base import LocalFilesStore, LocatedStore, VectorStore
from clipretrieval.testing.contracts.base import ContractBase, Stores, contents, names

__all__ = ["LastingContract", "ManifestContract"]

MANIFEST = {"format": 1, "model": "RN50 ü", "nested": {"list": [1, 0.5, None, True, {"": "x"}]}}


class ManifestContract(ContractBase):
    """A small JSON object is kept beside the vectors."""

    def test_the_manifest_starts_empty(self, store: VectorStore) -> None:
        """A new store has the manifest {}."""
        assert store.read_manifest() == {}

    def test_the_manifest_is_replaced_whole(self, store: VectorStore) -> None:
        """What was written last is what is read, with nothing of the manifest before."""
        store.write_manifest(MANIFEST)
        self.settle(store)
        assert store.read_manifest() == MANIFEST
        store.write_manifest({"other": 1})
        self.settle(store)
        assert store.read_manifest() == {"other": 1}, "a manifest must be replaced, not merged"

    def test_the_manifest_is_copied(self, store: VectorStore) -> None:
        """Changing what was given or returned changes nothing in the store."""
        given: dict[str, Any] = json.loads(json.dumps(MANIFEST))
        store.write_manifest(given)
        self.settle(store)
        given["nested"]["list"].append(2)
        store.read_manifest()["model"] = "other"
        assert store.read_manifest() == MANIFEST

    def test_the_manifest_is_no_record(self, store: VectorStore) -> None:
        """The manifest is neither counted nor found, and is not touched by the records' coming and going."""
        store.write_manifest(MANIFEST)
        self.settle(store)
        assert store.count() == 0
        self.put(store, ["a", "b"], self.normal(0, 2), [1, 2])
        assert store.count() == 2
        near = store.search(self.normal(1, 3), 4)
        assert near.valid.sum(axis=1).tolist() == [2, 2, 2]
        self.drop(store, ["a", "b"])
        assert store.read_manifest() == MANIFEST

    def test_the_manifest_may_name_two_thousand_classes(self, store: VectorStore) -> None:
        """A manifest of some 60 kilobytes, which a classifier of many classes writes, is kept whole."""
        manifest = {"classes": [f"class number {place:05}, a name" for place in range(2000)]}
        store.write_manifest(manifest)
        self.settle(store)
        assert store.read_manifest() == manifest


class LastingContract(ContractBase):
    """What a store holds survives its closing."""

    @pytest.fixture
    def lasting(self) -> None:
        """Skip unless the store is declared to last."""
        if not self.persistent:
            pytest.skip(f"{type(self).__name__}.persistent is False")

    def test_closing_twice_does_nothing(self, store: VectorStore) -> None:
        """A store that is closed may be closed again."""
        self.put(store, ["a"], self.normal(0, 1), [1])
        store.close()
        store.close()

    @pytest.mark.usefixtures("lasting")
    @pytest.mark.parametrize("kind", [int, str])
    def test_a_reopened_store_has_the_same_contents(self, stores: Stores, metric: str, kind: type) -> None:
        """Records, manifest and answers are the same after closing and opening."""
        store, ids, queries = stores.new(metric), names(50), self.normal(2, 5)
        labels = [kind(place) for place in range(50)]
        self.put(store, ids, self.normal(1, 50), labels, [{"place": place} for place in range(50)])
        store.write_manifest(MANIFEST)
        self.drop(store, ids[:10])
        before, near = contents(store, ids), store.search(queries, 7)
        store = stores.reopened(store)
        after = contents(store, ids)
        assert after["ids"] == ids[10:], "records were lost, or deleted ones came back, on reopening"
        assert after == before, "a reopened store must hold what it held when it was closed"
        again = store.search(queries, 7)
        assert again.ids.tolist() == near.ids.tolist()
        assert again.labels.tolist() == near.labels.tolist()
        assert again.distances == pytest.approx(near.distances, rel=1e-5, abs=1e-5)

    def test_what_is_flushed_is_there_for_others(self, stores: Stores) -> None:
        """When a flush returns, another store reads the writes before it, though the first is still open."""
        for capability in ("flushed_is_visible", "persistent"):
            if not getattr(self, capability):
                pytest.skip(f"{type(self).__name__}.{capability} is False")
        store, ids, rows = stores.new(self.metrics[0]), names(20), self.normal(5, 20)
        store.upsert(ids, rows, list(range(20)), [{"place": place} for place in range(20)])
        store.write_manifest(MANIFEST)
        store.flush()
        store.upsert(ids[:5], rows[5:10], [30] * 5)
        store.delete(ids[15:])
        store.flush()
        other = stores.beside(store)
        found = contents(other, ids)
        assert found["ids"] == ids[:15], "flush returned before what was written, or deleted, was durable"
        assert found["labels"] == [30] * 5 + list(range(5, 15)), "flush kept old records"
        assert found == contents(store, ids), "another store must read what was flushed"
        assert other.search(rows[12:13], 1).ids.tolist() == [[ids[12]]]

    @pytest.mark.usefixtures("lasting")
    def test_a_reopened_store_can_be_written(self, stores: Stores, metric: str) -> None:
        """After opening, records are replaced, added and removed as before."""
        store, rows = stores.new(metric), self.normal(3, 4)
        self.put(store, ["a", "b", "c"], rows[:3], [1, 2, 3])
        store = stores.reopened(store)
        self.put(store, ["d", "a"], rows[2:], [4, 5])
        assert self.drop(store, ["b"]) == 1
        store = stores.reopened(store)
        found = contents(store, ["a", "b", "c", "d"])
        assert (found["count"], found["ids"], found["labels"]) == (3, ["a", "c", "d"], [5, 3, 4])

    @pytest.mark.usefixtures("lasting")
    def test_an_empty_store_can_be_reopened(self, stores: Stores, metric: str) -> None:
        """A store that never held a record keeps its manifest."""
        store = stores.new(metric)
        store.write_manifest(MANIFEST)
        store = stores.reopened(store)
        assert (store.count(), store.read_manifest(), store.metric) == (0, MANIFEST, metric)

    @pytest.mark.usefixtures("lasting")
    def test_a_located_store_opens_where_it_says(self, stores: Stores, metric: str) -> None:
        """The options that `location` tells are JSON, and open the same contents."""
        store = stores.new(metric)
        if not isinstance(store, LocatedStore):
            pytest.skip(f"{type(store).__name__} has no location (LocatedStore)")
        self.put(store, ["a"], self.normal(4, 1), [1])
        location, before = store.location(), contents(store, ["a"])
        store.close()
        if location is None:
            pytest.skip(f"{type(store).__name__}.location() is None: only this process can open its contents")
        assert json.loads(json.dumps(location)) == location, "a location must hold JSON values only"
        found = type(store)(**location)
        try:
            assert contents(found, ["a"]) == before
        finally:
            found.close()

    @pytest.mark.usefixtures("lasting")
    def test_a_store_tells_what_lies_in_local_files(
        self, stores: Stores, metric: str, tmp_path: Path
    ) -> None:
        """`exists_locally` knows what is there, denies what is not, and makes nothing."""
        store = stores.new(metric)
        if not isinstance(store, LocalFilesStore):
            pytest.skip(f"{type(store).__name__} does not tell (LocalFilesStore)")
        nowhere = tmp_path / "nowhere"
        for options in ({}, {"path": 5}, {"path": str(nowhere)}, {"path": str(nowhere), "host": "127.0.0.1"}):
            assert store.exists_locally(options) is False, f"there is nothing at {options}"
        assert not nowhere.exists(), "exists_locally must make nothing"
        self.put(store, ["a"], self.normal(4, 1), [1])
        location = store.location() if isinstance(store, LocatedStore) else None
        store.close()
        if location is not None and "path" in location:
            assert store.exists_locally(location) is True, "what location() tells is there"
