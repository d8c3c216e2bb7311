"""ChromaStore keeps records, labels, metadata and manifest as they were given, or refuses them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from chroma_parts import METRICS, contents, fill, normal

from clipretrieval.errors import DimensionMismatchError, InvalidInputError


def test_upsert_replaces_wholly(make: Any) -> None:
    """An id that is there keeps nothing of its record: vector, label and metadata are the new ones."""
    store = make()
    store.upsert(["a", "b", "c"], np.eye(3), [1, 2, 3], [{"x": 1}, {"y": 2}, {}])
    assert store.search(np.eye(3), 1).labels.tolist() == [[1], [2], [3]]
    store.upsert(["new", "b"], np.array([[5.0, 5, 5], [7, 7, 7]]), [4, 9])
    records = store.get(["b", "unknown", "new", "a", "b"])
    assert store.count() == 4
    assert records.ids.tolist() == ["b", "new", "a", "b"]
    assert records.vectors.tolist() == [[7, 7, 7], [5, 5, 5], [1, 0, 0], [7, 7, 7]]
    assert records.labels.tolist() == [9, 4, 1, 9]
    assert records.metadata == [{}, {}, {"x": 1}, {}]
    assert store.search(np.array([[7.0, 7, 7]]), 1).ids.tolist() == [["b"]]


@pytest.mark.filterwarnings("ignore:.*squared distances:clipretrieval.ClipRetrievalWarning")
@pytest.mark.parametrize("metric", METRICS)
def test_get_returns_what_was_given(make: Any, metric: str) -> None:
    """Vectors come back bit for bit under l2 and ip, and to float32 rounding under cosine, however long."""
    rows = normal(9, 40, 21) * np.logspace(-25, 15, 40, dtype=np.float32)[:, None]
    store = make(metric)
    ids = fill(store, rows)
    for _ in range(2):  # before and after Chroma's index has been read for a search
        vectors = store.get(ids).vectors
        if metric == "cosine":
            np.testing.assert_allclose(vectors, rows, rtol=5e-7, atol=0)
        else:
            assert vectors.tobytes() == rows.tobytes()
        store.search(rows, 1)


@pytest.mark.parametrize(
    "labels", [[-(2**63), 2**63 - 1, 0], ["1", "", "пёс"], np.array([3, 4, 5], dtype=np.uint8)]
)
def test_labels_keep_type_and_value(make: Any, labels: Any) -> None:
    """Integers of 64 bits and any strings come back as they were, in searches and in records."""
    store = make()
    store.upsert(["a", "b", "c"], np.eye(3), labels)
    for found in (store.get(["a", "b", "c"]).labels, store.search(np.eye(3), 1).labels[:, 0]):
        assert found.tolist() == list(labels)
        assert {type(label) for label in found.tolist()} == {str if "1" in list(labels) else int}


def test_labels_of_another_type_are_refused(make: Any) -> None:
    """A store that holds int labels refuses str ones and says so."""
    store = make()
    store.upsert(["a"], np.eye(1), [1])
    with pytest.raises(InvalidInputError, match="int labels"):
        store.upsert(["b"], np.eye(1), ["x"])
    assert store.count() == 1


def test_ids_and_metadata_may_be_any_json_and_unicode(make: Any) -> None:
    """Ids differ wherever their code points do and order by them; nested metadata come back equal."""
    ids = ["é", "e\u0301", "猫", "🐈", "a b/c\\d", "nul\0nul", "'; --", "Z", "a", " ", "x" * 3000]
    metadata = [{"": None, "deep": {"list": [1, 2.5, "ü", [], {}], "big": 2**70}, "id": name} for name in ids]
    store = make()
    store.upsert(np.array(ids, dtype=object), np.ones((11, 2)), ids, metadata)
    records = store.get(ids)
    assert records.ids.tolist() == records.labels.tolist() == ids
    assert records.metadata == metadata
    assert store.search(np.ones((1, 2)), 11).ids[0].tolist() == sorted(ids)
    assert store.delete(ids) == 11


def test_more_ids_than_a_request_holds(make: Any) -> None:
    """Lookups and deletions beyond SQLite's 32,766 variables are divided."""
    store, rows = make(), normal(0, 20, 2)
    ids = fill(store, rows, labels=list(range(20)))
    unknown = [f"unknown{place}" for place in range(35_000)]
    records = store.get([*ids[:10], *unknown, *ids[10:]])
    assert records.labels.tolist() == list(range(20))
    assert records.vectors.tobytes() == rows.tobytes()
    assert store.delete([*ids[1:10], *unknown, *ids[10:], ids[5]]) == 19
    assert store.count() == 1


def test_more_bytes_than_a_request_holds(make: Any) -> None:
    """Metadata of 45 MB in one call are divided; a record that no request can hold is refused beforehand."""
    store = make()
    metadata = [{"text": f"{place:04}" * 250_000} for place in range(45)]
    store.upsert([str(place) for place in range(45)], normal(0, 45, 3), [0] * 45, metadata)
    assert store.count() == 45
    assert store.get(["44"]).metadata == metadata[44:]
    with pytest.raises(InvalidInputError, match="'big'"):
        store.upsert(["small", "big"], normal(0, 2, 3), [0, 0], [{}, {"text": "x" * (33 << 20)}])
    assert store.count() == 45


BAD_UPSERTS: dict[str, dict[str, Any]] = {
    "an id twice": {"ids": ["p", "p"]},
    "an empty id": {"ids": ["p", ""]},
    "an id that is no str": {"ids": ["p", 3]},
    "a lone surrogate": {"ids": ["p", "\ud800"]},
    "NaN": {"vectors": [[1.0, 2.0], [np.nan, 1.0]]},
    "infinity": {"vectors": [[1.0, 2.0], [-np.inf, 1.0]]},
    "another dimension": {"vectors": np.ones((2, 3))},
    "too few labels": {"labels": [1]},
    "labels too large": {"labels": [1, 2**63]},
    "metadata with a tuple": {"metadata": [{"x": (1, 2)}, {}]},
}


def test_malformed_upserts_change_nothing(make: Any) -> None:
    """Each malformed argument is refused before anything is sent, and the store is as it was."""
    store = make()
    store.upsert(["p", "r"], np.eye(2), [7, 8], [{"x": 1}, {}])
    before = contents(store, ["p", "q", "r"])
    for wrong, arguments in BAD_UPSERTS.items():
        with pytest.raises(InvalidInputError):
            store.upsert(**{"ids": ["p", "q"], "vectors": np.ones((2, 2)), "labels": [1, 2], **arguments})
        assert contents(store, ["p", "q", "r"]) == before, wrong
    with pytest.raises(DimensionMismatchError, match=r"7.*2"):
        store.search(np.ones((1, 7)), 1)
    with pytest.raises(InvalidInputError, match="NaN"):
        store.search([[np.nan, 1.0]], 1)
    with pytest.raises(InvalidInputError, match="k must be"):
        store.search(np.ones((1, 2)), 0)


def test_cosine_refuses_zero_vectors(make: Any) -> None:
    """A zero vector is neither stored nor searched under cosine."""
    store = make("cosine")
    zero = np.zeros((1, 2))
    for call in (lambda: store.upsert(["b"], zero, [1]), lambda: store.search(zero, 1)):
        with pytest.raises(InvalidInputError, match="zero"):
            call()
    assert store.count() == 0


def test_lookups_of_nothing(make: Any) -> None:
    """No ids give no records, of the store's dimension, and delete nothing."""
    store = make()
    store.upsert(["a"], np.ones((1, 2)), [1])
    assert store.get([]).vectors.shape == (0, 2)
    assert store.delete([]) == 0


def test_the_manifest_is_replaced_whole(make: Any) -> None:
    """The manifest starts empty, is replaced whole and must be JSON."""
    store = make()
    assert store.read_manifest() == {}
    for manifest in ({"model": "RN50", "nested": {"list": [1, None]}}, {"b": "ü"}, {}):
        store.write_manifest(manifest)
        assert store.read_manifest() == manifest
    with pytest.raises(InvalidInputError):
        store.write_manifest({"x": float("inf")})


def test_an_id_that_no_record_can_have_is_not_there(make: Any) -> None:
    """An empty id, and one that is not valid Unicode, are not found, and do no harm beside others."""
    store = make()
    store.upsert(["a", "b"], np.eye(2), [1, 2])
    assert store.get(["\ud800", "a", ""]).ids.tolist() == ["a"]
    assert store.delete(["\ud800", "a", ""]) == 1
    assert store.get(["a", "b"]).ids.tolist() == ["b"]
