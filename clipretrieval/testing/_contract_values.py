"""The conformance suite's tests of what ids, labels and metadata may be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from clipretrieval.stores.base import PortableStore, VectorStore
from clipretrieval.testing._base import ContractBase, Stores, contents, names
from clipretrieval.types import Label

__all__ = ["ValuesContract"]

ASCII_IDS = ["Z", "a", "A", "a b", "a/b", "../up", "a\\d", "'; --", '"', "%20", "10", "9", "x" * 512]
UNICODE_IDS = ["é", "e\u0301", "ß", "猫", "🐈", "\uffee", "line\nbreak", "nul\0nul", "nul"]


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
