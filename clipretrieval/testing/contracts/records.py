"""The conformance suite's tests of upsert, get, delete and count, and of what a record may hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from clipretrieval.stores.base import PortableStore, VectorStore
from clipretrieval.testing.contracts.base import ContractBase, Stores, contents, names
from clipretrieval.types import Label, Metric

__all__ = ["RecordsContract", "ValuesContract"]

ASCII_IDS = ["Z", "a", "A", "a b", "a/b", "../up", "a\\d", "'; --", '"', "%20", "10", "9", "x" * 512]
UNICODE_IDS = ["é", "e\u0301", "ß", "猫", "🐈", "\uffee", "line\nbreak", "nul\0nul", "nul"]


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


class ValuesContract(ContractBase):
    """Ids, labels and metadata come back as they went in."""

    def check_ids(self, store: VectorStore, ids: list[str]) -> None:
        """Store equal vectors under `ids` and look them up, search them, replace and delete some."""
        count = len(ids)
        self.put(store, ids, self.vectors([[1, 1]] * count), ids)
        records = store.get(ids[::-1])
        assert records.ids.tolist() == ids[::-1], "each id must be found under just the text it was given"
        assert records.labels.tolist() == ids[::-1]
        near = store.search(self.vectors([[1, 1]]), count)
        assert near.ids[0].tolist() == sorted(ids), "ids must be ordered as str are in Python, by code points"
        self.put(store, ids[:2], self.vectors([[2, 2]] * 2), ["new", "new"])
        assert store.count() == count
        assert self.drop(store, ids[1:]) == count - 1
        assert store.get(ids).ids.tolist() == ids[:1]

    def test_ids_may_be_printable_ascii(self, store: VectorStore) -> None:
        """Ids of up to 512 ASCII characters are kept apart and ordered by their characters."""
        self.check_ids(store, ASCII_IDS)

    def test_ids_may_be_any_unicode(self, store: VectorStore) -> None:
        """Ids differ wherever their code points do, and are ordered by them."""
        if not self.unicode_ids:
            pytest.skip(f"{type(self).__name__}.unicode_ids is False")
        self.check_ids(store, UNICODE_IDS)

    @pytest.mark.parametrize(
        "labels",
        [[3, 0], [-(2**63), 2**63 - 1], ["cat", "dog"], ["1", "02"], ["", "пёс 🐕"]],
        ids=["int", "64-bit", "str", "digits", "unicode"],
    )
    def test_labels_keep_their_type(self, store: VectorStore, labels: list[Label]) -> None:
        """Int labels stay int64 and str labels stay str, in searches and in records."""
        self.put(store, ["a", "b"], self.vectors([[1, 0], [0, 1]]), labels)
        for found in (store.get(["a", "b"]).labels, store.search(self.vectors([[3, 1]]), 2).labels[0]):
            expected = np.int64 if isinstance(labels[0], int) else object
            assert found.dtype == expected, (
                f"the labels' array must be {expected.__name__}; found {found.dtype}"
            )
            assert found.tolist() == labels
            assert {type(label) for label in found.tolist()} == {type(labels[0])}

    @pytest.mark.parametrize(
        "value",
        [{}, {"text": "ü", "empty": "", "int": 3, "float": 0.5, "yes": True, "no": False}],
        ids=["empty", "flat"],
    )
    def test_metadata_keeps_its_types(self, store: VectorStore, value: dict[str, Any]) -> None:
        """Str, int, float and bool come back as what they were."""
        self.check_metadata(store, value)

    def test_metadata_may_be_any_json(self, store: VectorStore) -> None:
        """Nested lists and dicts, None, great integers and odd keys come back as they were."""
        if not self.json_metadata:
            pytest.skip(f"{type(self).__name__}.json_metadata is False")
        nested = {"none": None, "list": [1, {"d": [[], {}]}, "x"], "great": 2**60, "": {"a.b": 1, "$c": 2}}
        self.check_metadata(store, nested)

    def check_metadata(self, store: VectorStore, value: dict[str, Any]) -> None:
        """Store one record with metadata beside one without."""
        self.put(store, ["a", "b"], self.normal(0, 2), [1, 2], [value, {}])
        self.put(store, ["c"], self.normal(1, 1), [3])
        found = store.get(["a", "b", "c"]).metadata
        assert found == [value, {}, {}]
        kinds = {name: type(each) for name, each in found[0].items()}
        assert kinds == {name: type(each) for name, each in value.items()}, "metadata must keep its types"

    def test_vectors_may_lie_in_memory_anyhow(self, store: VectorStore) -> None:
        """Vectors of other strides, and read-only ones, are stored as their values say."""
        rows = self.normal(2, 6)
        readonly = rows[:2].copy()
        readonly.flags.writeable = False
        given = [np.asfortranarray(rows[:2]), np.repeat(rows, 2, axis=0)[:4:2], readonly]
        for vectors in given:
            self.put(store, ["a", "b"], vectors, [1, 2])
            np.testing.assert_allclose(store.get(["a", "b"]).vectors, rows[:2], rtol=1e-6)

    def test_a_saved_copy_has_the_same_contents(self, stores: Stores, tmp_path: Any) -> None:
        """A store that can save itself opens from the copy with all that it held."""
        store = stores.new(self.metrics[0])
        if not isinstance(store, PortableStore):
            pytest.skip(f"{type(store).__name__} has no save and load (PortableStore)")
        ids = names(20)
        self.put(store, ids, self.normal(3, 20), [f"label {place}" for place in range(20)], [{"a": 1}] * 20)
        store.write_manifest({"model": "RN50"})
        store.save(tmp_path / "copy")
        copy = type(store).load(tmp_path / "copy")
        try:
            assert contents(copy, ids) == contents(store, ids)
        finally:
            copy.close()
