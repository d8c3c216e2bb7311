"""MemoryStore and FaissStore answer by one contract, held against a reference written out plainly."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from clipretrieval.errors import (
    DimensionMismatchError,
    InvalidInputError,
    StoreError,
)
from clipretrieval.stores import FaissStore, MemoryStore, PortableStore, VectorStore
from clipretrieval.types import Metric

METRICS = ["l2", "cosine", "ip"]
STORES: dict[str, Callable[..., Any]] = {
    "memory": lambda metric, folder: MemoryStore(metric),
    "faiss": lambda metric, folder: FaissStore(metric=metric),
    "faiss-folder": lambda metric, folder: FaissStore(folder, metric=metric),
}
FLOAT32_MAX = np.finfo(np.float32).max


@pytest.fixture(params=STORES)
def make(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Make stores of one kind by metric, and close them at the end."""
    made = []

    def make_store(metric: str = "l2") -> Any:
        made.append(STORES[request.param](metric, tmp_path_factory.mktemp("stores") / "store"))
        return made[-1]

    yield make_store
    for store in made:
        store.close()


def reference(ids: list[str], rows: Any, queries: Any, k: int, metric: str) -> tuple[Any, Any]:
    """Sort every row of every query by (distance, id), in float64 and rounded to float32 at the end."""
    found_ids, found_distances = [], []
    for query in np.asarray(queries, dtype=np.float64):
        scored = []
        for name, row in zip(ids, np.asarray(rows, dtype=np.float64), strict=True):
            if metric == "l2":
                distance = np.sum((query - row) ** 2)
            elif metric == "ip":
                distance = -np.sum(query * row)
            else:
                distance = 1 - np.sum(query * row) / np.sqrt(np.sum(query**2) * np.sum(row**2))
            scored.append((np.float32(distance), name))
        scored = sorted(scored)[:k] + [(np.float32(np.inf), "")] * (k - len(ids))
        found_ids.append([name for _, name in scored])
        found_distances.append([distance for distance, _ in scored])
    return found_ids, np.array(found_distances)


def fill(store: Any, rows: Any, labels: Any = None, ids: list[str] | None = None) -> list[str]:
    """Put rows into a store under ids that do not sort in their order."""
    ids = [f"{37 * place % 101:03}-{place}" for place in range(len(rows))] if ids is None else ids
    store.upsert(ids, rows, [0] * len(rows) if labels is None else labels)
    return ids


def normal(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def repickled(store: Any) -> Any:
    return pickle.loads(pickle.dumps(store))


def contents(store: Any, ids: list[str]) -> Any:
    """All that a store tells, to see that nothing changed."""
    records = store.get(ids)
    columns = (records.ids, records.vectors, records.labels)
    return store.count(), store.read_manifest(), records.metadata, [each.tolist() for each in columns]


def test_both_follow_the_protocols(make: Any) -> None:
    """Both stores are vector stores that can be saved."""
    store = make()
    assert isinstance(store, VectorStore)
    assert isinstance(store, PortableStore)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dim", [1, 3, 64])
def test_search_agrees_with_the_reference(make: Any, metric: str, dim: int) -> None:
    """Ids are those of the reference and distances agree to float32 rounding under every metric."""
    rows, queries = normal(0, 200, dim), normal(1, 40, dim)
    store = make(metric)
    ids = fill(store, rows)
    near = store.search(queries, 7)
    expected_ids, expected = reference(ids, rows, queries, 7, metric)
    assert near.distances.dtype == np.float32
    np.testing.assert_allclose(near.distances, expected, rtol=3e-7, atol=2e-7)
    if dim > 1 or metric == "l2":  # in one dimension every cosine ties, and the reference rounds it
        assert near.ids.tolist() == expected_ids


@pytest.mark.parametrize("metric", METRICS)
@given(data=st.data())
def test_small_integers_tie_as_in_the_reference(metric: str, data: st.DataObject) -> None:
    """Where many distances are equal, both stores order them by id and cut them at k alike."""
    numbers = st.integers(-2, 2).map(float)
    rows = data.draw(hnp.arrays(np.float32, st.tuples(st.integers(1, 30), st.just(3)), elements=numbers))
    queries = data.draw(hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.just(3)), elements=numbers))
    k = data.draw(st.integers(1, 35))
    if metric == "cosine":
        rows[:, 0] = queries[:, 0] = 1  # never zero
    for store in (MemoryStore(metric), FaissStore(metric=metric)):
        ids = fill(store, rows)
        near = store.search(queries, k)
        expected_ids, expected = reference(ids, rows, queries, k, metric)
        np.testing.assert_allclose(near.distances, expected, rtol=1e-6, atol=2e-7)
        if metric != "cosine":
            assert near.ids.tolist() == expected_ids
            assert np.array_equal(near.distances, expected)


@pytest.mark.filterwarnings("ignore:.*squared distances:clipretrieval.ClipRetrievalWarning")
@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e15, 1e25])
def test_faiss_equals_memory_bit_for_bit(metric: str, scale: float) -> None:
    """The two stores give the same bytes, also where float32 products overflow or vanish."""
    rows, queries = normal(2, 500, 48) * np.float32(scale), normal(3, 30, 48) * np.float32(scale)
    memory, faiss = MemoryStore(metric), FaissStore(metric=metric)
    for store in (memory, faiss):
        fill(store, rows)
    left, right = memory.search(queries, 10), faiss.search(queries, 10)
    assert left.ids.tolist() == right.ids.tolist()
    assert left.distances.tobytes() == right.distances.tobytes()


@pytest.mark.parametrize("metric", METRICS)
def test_one_query_gets_what_a_batch_gets(make: Any, metric: str) -> None:
    """A query alone gets bit for bit what it gets among fifty."""
    store = make(metric)
    fill(store, normal(4, 400, 33))
    queries = normal(5, 50, 33)
    batch = store.search(queries, 9)
    for place, query in enumerate(queries):
        alone = store.search(query[None, :], 9)
        assert alone.distances.tobytes() == batch.distances[place].tobytes()
        assert alone.ids[0].tolist() == batch.ids[place].tolist()


@pytest.mark.filterwarnings("ignore:.*squared distances:clipretrieval.ClipRetrievalWarning")
@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e12])
def test_a_stored_vector_is_at_distance_zero(make: Any, metric: str, scale: float) -> None:
    """A query that equals a stored vector finds it at exactly 0, however long it is."""
    rows = normal(6, 60, 19) * np.float32(scale)
    store = make(metric)
    ids = fill(store, rows)
    near = store.search(rows, 1)
    assert not near.distances.any()
    if scale == 1:  # shorter ones are all at a squared distance that rounds to 0
        assert near.ids[:, 0].tolist() == ids


@pytest.mark.parametrize("metric", METRICS)
def test_a_common_offset_does_not_hide_the_neighbours(make: Any, metric: str) -> None:
    """Vectors far from the origin and close together come in the right order, though float32 cannot tell."""
    rows, queries = 1000 + normal(7, 600, 32), 1000 + normal(8, 25, 32)
    store = make(metric)
    ids = fill(store, rows)
    near = store.search(queries, 5)
    expected_ids, expected = reference(ids, rows, queries, 5, metric)
    if metric == "cosine":
        np.testing.assert_allclose(near.distances, expected, atol=2e-7)
    else:
        assert near.ids.tolist() == expected_ids
        np.testing.assert_allclose(near.distances, expected, rtol=2e-7)


@pytest.mark.parametrize("metric", METRICS)
def test_ties_among_many_duplicates_go_by_id(make: Any, metric: str) -> None:
    """Of three hundred equal vectors those with the first ids are returned, more than any shortlist holds."""
    rows = np.tile(np.array([[1.0, 2.0, 3.0]], dtype=np.float32), (300, 1))
    store = make(metric)
    ids = fill(store, rows)
    near = store.search(rows[:2], 20)
    assert near.ids.tolist() == [sorted(ids)[:20]] * 2


def test_distances_by_hand(make: Any) -> None:
    """The three metrics give the values that their definitions give."""
    rows, query = np.array([[3.0, 4.0], [-3.0, -4.0], [4.0, -3.0]]), np.array([[6.0, 8.0]])
    expected = {"l2": [25, 125, 225], "cosine": [0, 1, 2], "ip": [-50, 0, 50]}
    for metric in METRICS:
        store = make(metric)
        fill(store, rows)
        assert store.search(query, 3).distances.tolist() == [expected[metric]]


@pytest.mark.filterwarnings("ignore:.*squared distances:clipretrieval.ClipRetrievalWarning")
def test_distances_beyond_float32_are_finite(make: Any) -> None:
    """A squared distance that float32 cannot hold becomes its largest value: only padding is infinite."""
    store = make("l2")
    fill(store, np.array([[3e38, 0.0], [0.0, 1.0]]))
    near = store.search(np.array([[-3e38, 0.0]]), 3)
    assert near.distances.tolist() == [[FLOAT32_MAX, FLOAT32_MAX, np.inf]]
    assert near.valid.tolist() == [[True, True, False]]


@pytest.mark.parametrize(("labels", "padding"), [([4, 5], -1), (["cat", "dog"], "")])
def test_rows_are_padded_beyond_the_count(make: Any, labels: list[Any], padding: Any) -> None:
    """Where k exceeds the count, ids, distances and labels are padded and `valid` tells where."""
    store = make()
    store.upsert(["a", "b"], np.array([[0.0], [1.0]]), labels)
    near = store.search(np.array([[0.0], [1.0]]), 4)
    assert near.ids.tolist() == [["a", "b", "", ""], ["b", "a", "", ""]]
    assert near.distances.tolist() == [[0, 1, np.inf, np.inf]] * 2
    assert near.labels.tolist() == [[*labels, padding, padding], [*labels[::-1], padding, padding]]
    assert near.valid.tolist() == [[True, True, False, False]] * 2


def test_an_empty_store_answers_with_padding(make: Any) -> None:
    """A store that holds nothing, not yet or no more, returns rows of padding and no records."""
    store = make()
    for _ in range(2):
        near = store.search(np.zeros((2, 5)), 3)
        assert near.ids.tolist() == [[""] * 3] * 2
        assert near.labels.tolist() == [[""] * 3] * 2
        assert not near.valid.any()
        assert len(store.get(["a"])) == 0
        assert store.count() == 0
        store.upsert(["a"], np.ones((1, 5)), [1])
        assert store.delete(["a"]) == 1


def test_dim_is_settled_by_the_first_upsert(make: Any) -> None:
    """The dimension is None at first and stays after everything is deleted."""
    store = make()
    assert store.dim is None
    store.upsert(["a"], np.ones((1, 5)), [1])
    store.delete(["a"])
    assert store.dim == 5


def test_upsert_replaces_wholly(make: Any) -> None:
    """An id that is there keeps nothing of its record: vector, label and metadata are the new ones."""
    store = make()
    store.upsert(["a", "b", "c"], np.eye(3), [1, 2, 3], [{"x": 1}, {"y": 2}, {}])
    store.upsert(["new", "b"], np.array([[5.0, 5, 5], [7, 7, 7]]), [4, 9])
    records = store.get(["b", "new", "a"])
    assert store.count() == 4
    assert records.vectors.tolist() == [[7, 7, 7], [5, 5, 5], [1, 0, 0]]
    assert records.labels.tolist() == [9, 4, 1]
    assert records.metadata == [{}, {}, {"x": 1}]
    assert store.search(np.array([[7.0, 7, 7]]), 1).ids.tolist() == [["b"]]


@pytest.mark.parametrize("metric", METRICS)
def test_get_returns_what_was_given(make: Any, metric: str) -> None:
    """Vectors come back bit for bit (FAISS under cosine: to float32 rounding), without unknown ids."""
    rows = normal(9, 50, 21) * np.logspace(-3, 3, 50, dtype=np.float32)[:, None]
    store = make(metric)
    ids = fill(store, rows, labels=list(range(50)))
    wanted = [ids[30], "unknown", ids[4], ids[30]]
    records = store.get(wanted)
    assert records.ids.tolist() == [ids[30], ids[4], ids[30]]
    assert records.labels.tolist() == [30, 4, 30]
    assert records.vectors.dtype == np.float32
    if metric == "cosine" and isinstance(store, FaissStore):
        np.testing.assert_allclose(records.vectors, rows[[30, 4, 30]], rtol=2e-7)
    else:
        assert records.vectors.tobytes() == rows[[30, 4, 30]].tobytes()


def test_what_get_returns_is_a_copy(make: Any) -> None:
    """Changing what went in or came out changes nothing in the store."""
    store = make()
    rows, metadata = np.ones((1, 2), dtype=np.float32), [{"tags": ["x"]}]
    store.upsert(["a"], rows, [1], metadata)
    rows[:] = 9
    metadata[0]["tags"].append("y")
    out = store.get(["a"])
    out.vectors[:] = 8
    out.metadata[0]["tags"].append("z")
    again = store.get(["a"])
    assert again.vectors.tolist() == [[1, 1]]
    assert again.metadata == [{"tags": ["x"]}]


def test_delete_tells_how_many_were_there(make: Any) -> None:
    """Deleting counts each record once, and the others stay findable under their ids."""
    rows = normal(10, 100, 8)
    store = make()
    ids = fill(store, rows, labels=list(range(100)))
    gone = ids[::3] + ids[-5:]
    assert store.delete([*gone, "unknown", gone[0]]) == len(set(gone))
    assert store.delete(gone) == 0
    stay = [place for place, name in enumerate(ids) if name not in gone]
    assert store.count() == len(stay)
    near = store.search(rows[stay], 1)
    assert near.ids[:, 0].tolist() == [ids[place] for place in stay]
    assert near.labels[:, 0].tolist() == stay
    assert store.get(ids).vectors.tobytes() == rows[stay].tobytes()


def test_ids_may_be_any_unicode(make: Any) -> None:
    """Ids differ wherever their code points do, and order by them."""
    ids = ["é", "e\u0301", "猫", "🐈", "a b/c\\d", "nul\0nul", "'; --", "Z", "a"]
    store = make()
    store.upsert(np.array(ids, dtype=object), np.ones((9, 2)), ids)
    assert store.get(ids).ids.tolist() == ids
    near = store.search(np.ones((1, 2)), 9)
    assert near.ids[0].tolist() == sorted(ids)
    assert near.labels[0].tolist() == sorted(ids)


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        ([-(2**63), 2**63 - 1], int),
        (np.array([3, 4], dtype=np.uint8), int),
        (["1", "2"], str),
        (np.array(["kot", "пёс"]), str),
    ],
)
def test_labels_keep_their_type(make: Any, labels: Any, kind: type) -> None:
    """Integer labels stay integers and strings stay strings, in searches and records."""
    store = make()
    store.upsert(["a", "b"], np.eye(2), labels)
    for found in (store.get(["a", "b"]).labels, store.search(np.array([[1.0, 0.0]]), 2).labels[0]):
        assert found.tolist() == list(labels)
        assert {type(label) for label in found.tolist()} == {kind}


def test_labels_of_another_type_are_refused(make: Any) -> None:
    """A store that holds int labels refuses str ones, until it is empty."""
    store = make()
    store.upsert(["a"], np.eye(1), [1])
    with pytest.raises(InvalidInputError, match="int"):
        store.upsert(["b"], np.eye(1), ["x"])
    assert store.count() == 1
    store.delete(["a"])
    store.upsert(["b"], np.eye(1), ["x"])
    assert store.get(["b"]).labels.tolist() == ["x"]


def test_metadata_keeps_json_types(make: Any) -> None:
    """Every kind of JSON value comes back as it was given."""
    value = {"s": "ü\u2028", "i": 2**70, "f": 0.1, "t": True, "n": None, "l": [1, {"d": []}], "": {}}
    store = make()
    store.upsert(["a"], np.eye(1), [1], [value])
    found = store.get(["a"]).metadata[0]
    assert found == value
    assert found["t"] is True


BAD_UPSERTS: dict[str, dict[str, Any]] = {
    "one string of ids": {"ids": "ab"},
    "empty id": {"ids": ["", "q"]},
    "integer id": {"ids": [1, "q"]},
    "bytes id": {"ids": [b"p", "q"]},
    "twice the same id": {"ids": ["p", "p"]},
    "lone surrogate": {"ids": ["p", "\ud83d"]},
    "ids not a sequence": {"ids": 5},
    "too few ids": {"ids": ["p"]},
    "1-D vectors": {"vectors": np.ones(2)},
    "3-D vectors": {"vectors": np.ones((2, 2, 1))},
    "ragged vectors": {"vectors": [[1.0, 2.0], [1.0]]},
    "no vectors": {"ids": [], "vectors": np.ones((0, 2)), "labels": []},
    "no columns": {"vectors": np.ones((2, 0))},
    "bool vectors": {"vectors": np.ones((2, 2), dtype=bool)},
    "object vectors": {"vectors": np.ones((2, 2), dtype=object)},
    "complex vectors": {"vectors": np.ones((2, 2), dtype=complex)},
    "text vectors": {"vectors": [["1", "2"], ["3", "4"]]},
    "NaN": {"vectors": [[1.0, 2.0], [np.nan, 1.0]]},
    "infinity": {"vectors": [[1.0, 2.0], [-np.inf, 1.0]]},
    "beyond float32": {"vectors": [[1.0, 2.0], [1e39, 1.0]]},
    "other dimension": {"vectors": np.ones((2, 3))},
    "too few labels": {"labels": [1]},
    "mixed labels": {"labels": [1, "x"]},
    "float labels": {"labels": [1.0, 2.0]},
    "bool labels": {"labels": [True, False]},
    "labels too large": {"labels": [1, 2**63]},
    "one label": {"labels": "xy"},
    "labels not a sequence": {"labels": 5},
    "too little metadata": {"metadata": [{}]},
    "one mapping as metadata": {"metadata": {"a": 1, "b": 2}},
    "metadata not mappings": {"metadata": [1, 2]},
    "metadata with integer keys": {"metadata": [{1: "x"}, {}]},
    "metadata with a tuple": {"metadata": [{"x": (1, 2)}, {}]},
    "metadata with NaN": {"metadata": [{"x": float("nan")}, {}]},
    "metadata with an array": {"metadata": [{"x": np.ones(2)}, {}]},
    "metadata with a set": {"metadata": [{"x": {1}}, {}]},
}


@pytest.mark.parametrize("wrong", BAD_UPSERTS)
def test_a_malformed_upsert_changes_nothing(make: Any, wrong: str) -> None:
    """Each malformed argument is refused as invalid input, and the store is as it was."""
    store = make()
    store.upsert(["p", "r"], np.eye(2), [7, 8], [{"x": 1}, {}])
    before = contents(store, ["p", "q", "r"])
    arguments = {"ids": ["p", "q"], "vectors": np.ones((2, 2)), "labels": [1, 2], **BAD_UPSERTS[wrong]}
    with pytest.raises(InvalidInputError):
        store.upsert(**arguments)
    assert contents(store, ["p", "q", "r"]) == before


def test_circular_metadata_is_refused(make: Any) -> None:
    """Metadata that contains itself is invalid input."""
    loop: dict[str, Any] = {}
    loop["self"] = loop
    with pytest.raises(InvalidInputError, match="metadata"):
        make().upsert(["a"], np.eye(1), [1], [loop])


def test_a_wrong_dimension_names_both(make: Any) -> None:
    """The error for a wrong dimension gives the one found and the one expected."""
    store = make()
    store.upsert(["a"], np.ones((1, 5)), [1])
    for call in (lambda: store.search(np.ones((1, 7)), 1), lambda: store.upsert(["b"], np.ones((1, 7)), [1])):
        with pytest.raises(DimensionMismatchError, match=r"7.*5"):
            call()


@pytest.mark.parametrize(
    "queries",
    [np.ones(2), np.ones((0, 2)), np.ones((1, 2), dtype=bool), [[np.nan, 1.0]], [[1e39, 1.0]], "ab", None],
)
def test_malformed_queries_are_refused(make: Any, queries: Any) -> None:
    """Queries are checked as vectors to store are."""
    store = make()
    store.upsert(["a"], np.ones((1, 2)), [1])
    with pytest.raises(InvalidInputError):
        store.search(queries, 1)


@pytest.mark.parametrize("k", [0, -1, 1.0, True, np.True_, "1", None])
def test_k_must_be_a_positive_int(make: Any, k: Any) -> None:
    """Anything but an int of at least 1 is refused as k."""
    store = make()
    store.upsert(["a"], np.ones((1, 2)), [1])
    with pytest.raises(InvalidInputError, match="k must be"):
        store.search(np.ones((1, 2)), k)


def test_k_may_be_a_numpy_int(make: Any) -> None:
    """NumPy's integers serve as k."""
    store = make()
    store.upsert(["a"], np.ones((1, 2)), [1])
    assert store.search(np.ones((1, 2)), np.int64(1)).ids.tolist() == [["a"]]


def test_cosine_refuses_zero_vectors(make: Any) -> None:
    """A zero vector has no direction: neither stored nor searched under cosine, and both under l2."""
    zero, one = np.zeros((1, 2)), np.ones((1, 2))
    store = make("cosine")
    store.upsert(["a"], one, [1])
    for call in (lambda: store.upsert(["b"], zero, [1]), lambda: store.search(zero, 1)):
        with pytest.raises(InvalidInputError, match="zero"):
            call()
    assert store.count() == 1
    other = make("l2")
    other.upsert(["a"], zero, [1])
    assert other.search(zero, 1).distances.tolist() == [[0]]


@pytest.mark.parametrize("ids", ["a", [1], 5, [None]])
def test_lookups_need_a_sequence_of_str(make: Any, ids: Any) -> None:
    """Get and delete refuse anything but a sequence of str."""
    store = make()
    store.upsert(["a"], np.ones((1, 2)), [1])
    for call in (store.get, store.delete):
        with pytest.raises(InvalidInputError, match="ids"):
            call(ids)
    assert store.count() == 1


def test_lookups_of_nothing(make: Any) -> None:
    """No ids give no records, of the store's dimension, and delete nothing."""
    store = make()
    store.upsert(["a"], np.ones((1, 2)), [1])
    assert store.get([]).vectors.shape == (0, 2)
    assert store.delete([]) == 0


def test_the_manifest_is_kept_as_a_copy(make: Any) -> None:
    """The manifest starts empty, is replaced whole, and is not changed through what was given or returned."""
    store = make()
    assert store.read_manifest() == {}
    given: dict[str, Any] = {"model": "RN50", "nested": {"list": [1]}}
    store.write_manifest(given)
    given["nested"]["list"].append(2)
    store.read_manifest()["model"] = "other"
    assert store.read_manifest() == {"model": "RN50", "nested": {"list": [1]}}
    store.write_manifest({"b": 1})
    assert store.read_manifest() == {"b": 1}


@pytest.mark.parametrize("manifest", [None, [1], {1: 2}, {"x": object()}, {"x": float("inf")}])
def test_a_malformed_manifest_is_refused(make: Any, manifest: Any) -> None:
    """Only a mapping of JSON values is kept as a manifest."""
    store = make()
    store.write_manifest({"kept": True})
    with pytest.raises(InvalidInputError):
        store.write_manifest(manifest)
    assert store.read_manifest() == {"kept": True}


def test_a_closed_store_refuses_everything(make: Any) -> None:
    """After close every verb raises StoreError, and closing again does nothing."""
    with make() as store:
        store.upsert(["a"], np.ones((1, 2)), [1])
    one = np.ones((1, 2))
    calls: list[Callable[[], Any]] = [
        lambda: store.upsert(["a"], one, [1]),
        lambda: store.search(one, 1),
        lambda: store.get(["a"]),
        lambda: store.delete(["a"]),
        store.count,
        store.read_manifest,
        lambda: store.write_manifest({}),
        store.flush,
    ]
    for call in calls:
        with pytest.raises(StoreError, match="closed"):
            call()
    store.close()
    assert "closed" in repr(store)


def test_repr_tells_metric_dimension_and_count(make: Any) -> None:
    """The representation shows what tells one store from another."""
    store = make("ip")
    store.upsert(["a"], np.ones((1, 2)), [1])
    assert "metric='ip', dim=2, count=1" in repr(store)


def test_an_unknown_metric_is_refused(make: Any) -> None:
    """Only the three metrics are known, by name or as members."""
    with pytest.raises(InvalidInputError, match="cosine"):
        make("euclidean")
    assert make(Metric.IP).metric == "ip"


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", [MemoryStore, FaissStore])
@pytest.mark.parametrize("duplicate", [repickled, copy.deepcopy])
def test_stores_in_memory_can_be_copied(kind: Any, metric: str, duplicate: Any) -> None:
    """A pickled or copied store answers alike, and from then on goes its own way."""
    store = kind(metric=metric)
    ids = fill(store, normal(11, 40, 6), labels=[str(place) for place in range(40)])
    store.write_manifest({"a": 1})
    twin = duplicate(store)
    assert contents(twin, ids) == contents(store, ids)
    left, right = store.search(normal(12, 5, 6), 3), twin.search(normal(12, 5, 6), 3)
    assert left.ids.tolist() == right.ids.tolist()
    assert left.distances.tobytes() == right.distances.tobytes()
    twin.delete(ids[:10])
    twin.upsert(["more"], normal(13, 1, 6), ["x"])
    assert (store.count(), twin.count()) == (40, 31)


def test_an_empty_store_can_be_copied() -> None:
    """Copies of stores without vectors are empty stores."""
    for store in (MemoryStore(), FaissStore()):
        assert repickled(store).count() == 0


def test_threads_search_while_one_writes(make: Any) -> None:
    """Eight threads that search see each write wholly or not at all."""
    dim, rounds = 16, 40
    store = make()
    store.upsert([f"{place:03}" for place in range(64)], np.zeros((64, dim)), [0] * 64)
    failures: list[str] = []
    done = threading.Event()

    def search() -> None:
        # Every round moves all rows from one value to the next, so rows of two values must never be seen.
        while not done.is_set():
            near = store.search(np.zeros((3, dim)), 64)
            values = set(zip(near.distances.ravel().tolist(), near.labels.ravel().tolist(), strict=True))
            if len(values) > 1 or any(distance != dim * label**2 for distance, label in values):
                failures.append(f"saw {values}")
                return

    readers = [threading.Thread(target=search) for _ in range(8)]
    for reader in readers:
        reader.start()
    try:
        for number in range(1, rounds + 1):
            ids = [f"{place:03}" for place in range(64)]
            store.upsert(ids, np.full((64, dim), float(number)), [number] * 64)
    finally:
        done.set()
        for reader in readers:
            reader.join(timeout=60)
    assert not failures
    assert not any(reader.is_alive() for reader in readers)
    assert store.search(np.zeros((1, dim)), 1).labels.tolist() == [[rounds]]


def test_a_growing_store_is_searched_by_threads(make: Any) -> None:
    """While rows are added and removed, a search finds just the ids of some moment's rows."""
    store = make()
    store.upsert(["keep"], np.zeros((1, 4)), [0])
    failures: list[Any] = []
    done = threading.Event()

    def search() -> None:
        while not done.is_set():
            near = store.search(np.zeros((1, 4)), 5)
            if near.ids[0, 0] != "keep" or near.distances[0, 0] != 0:
                failures.append((near.ids, near.distances))
                return

    readers = [threading.Thread(target=search) for _ in range(8)]
    for reader in readers:
        reader.start()
    try:
        for number in range(30):
            ids = [f"{number}-{place}" for place in range(50)]
            store.upsert(ids, np.ones((50, 4)), [1] * 50)
            if number % 3 == 0:
                assert store.delete(ids[::2]) == 25
    finally:
        done.set()
        for reader in readers:
            reader.join(timeout=60)
    assert not failures
    assert store.count() == 1 + 30 * 50 - 10 * 25
