"""Vectors that come after an index was trained, and that it does not represent."""

from __future__ import annotations

import copy
import pickle
import warnings
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from format1_folders import write_format1
from test_faiss_index import FACTORIES

from clipretrieval.errors import ClipRetrievalWarning
from clipretrieval.stores import FaissStore
from clipretrieval.stores.faiss import factory as _factory

KIT = ["IVF4,Flat", "IVF4,SQ8", "HNSW16", "HNSW16,SQfp16", "SQfp16"]
MORE = ["SQ4", "SQ6", "LSH", "IVF16,PQ8x4", "PCAW8,SQ8", "RQ2x4", "ITQ8,LSH", "L2norm,SQ8", "auto"]
ONES, TURNS = np.ones(16), np.tile([1.0, -1.0], 8)


def trained(seed: int = 0, count: int = 2000) -> Any:
    return np.random.default_rng(seed).random((count, 16), dtype=np.float32)


def around(centers: Any, count: int, seed: int) -> Any:
    """Return `count` vectors around each center, in the order of the centers, and the centers' numbers."""
    noise = 0.1 * np.random.default_rng(seed).standard_normal((len(centers), count, 16))
    rows = np.asarray(centers)[:, None] + noise
    return rows.reshape(-1, 16).astype(np.float32), np.repeat(np.arange(len(centers)), count)


def add(store: FaissStore, prefix: str, rows: Any, labels: Any) -> list[str]:
    ids = [f"{prefix}{place}" for place in range(len(rows))]
    store.upsert(ids, rows, np.asarray(labels).tolist())
    return ids


def accuracy(store: FaissStore, centers: Any, first: int = 2) -> float:
    """Return the share of queries around the centers whose three neighbors mostly bear their label."""
    queries, numbers = around(centers, 50, seed=9)
    labels = store.search(queries, 3).labels
    return float(np.mean((labels == first + numbers[:, None]).sum(axis=1) >= 2))


def filled(index: str, metric: str = "l2", path: Path | None = None) -> FaissStore:
    """Return a store of its own, in memory a copy: each index is trained once."""
    return copy.deepcopy(made(index, metric)) if path is None else made.__wrapped__(index, metric, path)


@cache
def made(index: str, metric: str, path: Path | None = None) -> FaissStore:
    store = FaissStore(path, index=index, metric=metric)
    add(store, "old", trained(), np.arange(2000) % 2)
    return store


@pytest.fixture
def small_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let "auto" take an approximate index early."""
    monkeypatch.setattr(_factory, "AUTO_LIMIT", 1900)


@pytest.mark.usefixtures("small_auto")
@pytest.mark.filterwarnings("ignore:index=.* reaches a recall@10:clipretrieval.errors.ClipRetrievalWarning")
@pytest.mark.parametrize(
    ("index", "metric"),
    [
        *((index, "l2") for index in dict.fromkeys([*KIT, *FACTORIES, *MORE])),
        # The store normalizes the rows itself, so one index of each family.
        *((index, "cosine") for index in (*KIT, "IVF16,PQ8x4", "PCAW8,SQ8", "RQ2x4", "auto")),
    ],
)
def test_classes_out_of_the_trained_range_are_told_apart(index: str, metric: str) -> None:
    """Twenty additions of two classes that an index was not trained on are answered as "Flat" does."""
    centers = [3 * ONES, 3.5 * ONES] if metric == "l2" else [-3 * ONES, -3 * TURNS]
    store, flat = filled(index, metric), filled("Flat", metric)
    assert store.index_info.recall is not None
    rows, numbers = around(centers, 200, seed=1)
    for start in range(0, 400, 20):
        for each in (store, flat):
            part = slice(start, start + 20)
            add(each, f"new{start}-", rows[part], 2 + numbers[part])
    assert accuracy(store, centers) == accuracy(flat, centers) == 1


@pytest.mark.parametrize("index", ["SQ8", "IVF16,SQ8", "PQ8x4", "HNSW16,SQ8", "PCA8,IVF16,Flat", "LSH"])
@pytest.mark.filterwarnings("ignore:index=.* reaches a recall@10:clipretrieval.errors.ClipRetrievalWarning")
def test_many_outliers_train_the_index_anew(index: str) -> None:
    """With more than a thousand outliers the index is built of all vectors, and needs none of them apart."""
    store, centers = filled(index), [3 * ONES, 3.5 * ONES]
    rows, numbers = around(centers, 600, seed=1)
    add(store, "few", rows[::2], 2 + numbers[::2])
    info = store.index_info
    assert (info.outliers, info.measured_on) == (600, 2600)
    assert store.search(rows[:1], 1).distances.tolist() == [[0.0]]
    add(store, "more", rows[1::2], 2 + numbers[1::2])
    info = store.index_info
    assert info.trained_on in (0, 3200)
    assert info.outliers < 20
    assert info.measured_on == 3200
    if index != "LSH":
        assert accuracy(store, centers) == 1


@pytest.mark.parametrize("index", ["SQ8", "IVF16,SQ8", "HNSW16,SQ8", "PQ8x4fs"])
def test_vectors_like_the_trained_ones_are_not_compared_one_by_one(index: str) -> None:
    """What an index represents as well as what it was trained on goes into it."""
    store = filled(index)
    add(store, "new", trained(5, 800), [0] * 800)
    assert store.index_info.outliers <= 80


@pytest.mark.parametrize("index", ["SQ8", "IVF16,SQ8", "HNSW16,SQ8", "IVF16,PQ8x4fs"])
def test_replaced_and_deleted_outliers_are_followed(index: str) -> None:
    """Outliers are found by their new vectors, and move and go with their rows."""
    store, flat = filled(index), filled("Flat")
    rows, numbers = around([3 * ONES, 3.5 * ONES], 40, seed=1)
    old = [f"old{place}" for place in range(80)]
    for each in (store, flat):
        each.upsert(old, rows, (2 + numbers).tolist())  # vectors of the index become outliers
        each.upsert(old[:20], trained()[:20], [0] * 20)  # and some of them vectors of the index again
        each.upsert(old[30:40], rows[30:40] + 5, [4] * 10)
        assert each.delete([f"old{place}" for place in range(60, 360)]) == 300
        add(each, "new", rows, 2 + numbers)
        assert each.delete([f"new{place}" for place in range(10)]) == 10
    assert store.index_info.outliers == 60 - 20 + 70
    queries = np.concatenate([rows, rows[30:40] + 5])
    near, truth = store.search(queries, 1), flat.search(queries, 1)
    assert near.ids.tolist() == truth.ids.tolist()
    assert near.distances.tolist() == truth.distances.tolist()


def test_a_slow_drift_is_followed() -> None:
    """Classes that come one by one, each a little farther out than the last, are all told apart."""
    store = FaissStore(index="IVF16,SQ8")
    add(store, "old", trained(), np.arange(2000) % 2)
    centers = [(1 + 0.2 * step) * ONES for step in range(1, 21)]
    for number, center in enumerate(centers):
        rows, _ = around([center], 20, seed=number)
        for place in range(20):
            store.upsert([f"{number}-{place}"], rows[place : place + 1], [2 + number])
    assert accuracy(store, centers) > 0.99


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("index", ["IVF16,SQ8", "HNSW16,SQ8", "SQ8", "IVF16,PQ8x4fs", "PCA8,IVF16,Flat"])
def test_outliers_are_kept_in_the_folder(index: str, mmap: bool, tmp_path: Path) -> None:
    """Readers that open the folder or refresh, and a copy, answer as the writer does."""
    centers = [3 * ONES, 3.5 * ONES]
    rows, numbers = around(centers, 200, seed=1)
    with filled(index, path=tmp_path / "s") as store:
        store.flush()
        reader = FaissStore.load(tmp_path / "s", mmap=mmap)
        add(store, "new", rows, 2 + numbers)
        store.flush()
        assert reader.refresh()
        info, near = store.index_info, store.search(rows, 5)
        assert info.outliers == 400
    twin = pickle.loads(pickle.dumps(_in_memory(tmp_path / "s")))
    for each in (reader, FaissStore.load(tmp_path / "s", mmap=mmap), twin):
        assert each.index_info == info
        assert accuracy(each, centers) == 1
        assert each.search(rows, 5).ids.tolist() == near.ids.tolist()
    with FaissStore(tmp_path / "s") as store:
        add(store, "newer", rows + 1, 4 + numbers)
        assert store.index_info.outliers == 800
        assert accuracy(store, [*centers, 4 * ONES, 4.5 * ONES]) == 1


def _in_memory(path: Path) -> FaissStore:
    store = FaissStore(path)
    store.leave_when_written()
    store.write_manifest({"changed": True})
    return store


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("index", ["IVF16,SQ8", "HNSW16,SQ8", "SQ8", "PQ8x4", "IVF16,PQ8x4fs", "IVF16,Flat"])
def test_a_folder_of_a_version_that_did_not_look_for_outliers(index: str, mmap: bool, tmp_path: Path) -> None:
    """Outliers that lie in an index are found when its folder is opened."""
    centers = [3 * ONES, 3.5 * ONES]
    path = write_without_outliers(tmp_path, index, centers)
    store = FaissStore.load(path, mmap=mmap)
    assert store.index_info.outliers == 400
    assert store.index_info.measured_on is None
    assert accuracy(store, centers) == 1
    with FaissStore(path) as store:
        store.upsert(["one"], 4 * ONES[None], [4])
    assert FaissStore.load(path, mmap=mmap).index_info.outliers == 401


def test_an_old_folder_whose_codes_tell_nothing_is_searched_exactly(tmp_path: Path) -> None:
    """A warning says that the index is not used; the next flush builds it anew."""
    centers = [3 * ONES, 3.5 * ONES]
    path = write_without_outliers(tmp_path, "LSH", centers)
    with pytest.warns(ClipRetrievalWarning, match="came after the index 'LSH' was trained"):
        store = FaissStore.load(path)
    assert store.index_info.factory == "Flat"
    assert accuracy(store, centers) == 1


def write_without_outliers(folder: Path, index: str, centers: Any) -> Path:
    """Write a folder whose index holds all vectors, and whose manifest does not speak of outliers."""
    later = ("measured_on", "outliers", "code_limit", "list_limit")
    rows, numbers = around(centers, 200, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "clipretrieval.stores.faiss.index.Limits.fits", lambda _, lost: np.ones(len(lost), bool)
        )
        patch.setattr("clipretrieval.stores.faiss.approximate.finds_again", lambda *_: True)
        if index == "LSH":
            with pytest.warns(ClipRetrievalWarning):
                store = made.__wrapped__(index, "l2")
        else:
            store = filled(index)
        add(store, "new", rows, 2 + numbers)
        store.delete([f"old{place}" for place in range(1950, 2000)])
    held: Any = store._held
    state = {name: value for name, value in asdict(held.rows.state).items() if name not in later}
    ids, labels = held.table.ids.tolist(), held.table.labels.tolist()
    write_format1(folder / "s", ids, held.rows.view(), labels, index=index, ann=held.rows.index, built=state)
    return folder / "s"


@pytest.mark.parametrize("at_once", [1, 20, 400])
@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("index", ["SQ8", "SQ4", "IVF16,SQ8", "HNSW16,SQ8", "HNSW16"])
def test_classes_finer_than_the_codes_are_told_apart(index: str, metric: str, at_once: int) -> None:
    """Vectors within the trained range, but closer together than codes resolve, get Flat's answers."""
    rng = np.random.default_rng(3)
    centers = np.full((2, 16), 0.5)
    centers[1, 0] += 1e-3
    count = 200 if at_once > 1 else 20
    rows, queries = (
        (centers[:, None] + 1e-4 * rng.standard_normal((2, each, 16))).reshape(-1, 16).astype(np.float32)
        for each in (count, 100)
    )
    store, flat = filled(index, metric), filled("Flat", metric)
    numbers = np.repeat([2, 3], count)
    for start in range(0, len(rows), at_once):
        for each in (store, flat):
            part = slice(start, start + at_once)
            add(each, f"new{start}-", rows[part], numbers[part])
    near, right = store.search(queries, 1), flat.search(queries, 1)
    assert np.mean(near.labels == right.labels) >= 0.99


def test_a_rebuilt_index_that_confuses_them_is_told() -> None:
    """With so many of them that the index is trained anew, a warning says what it does not find."""
    rng = np.random.default_rng(3)
    store = filled("SQ8")
    rows = (0.5 + 1e-4 * rng.standard_normal((1500, 16))).astype(np.float32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for start in range(0, 1500, 250):
            add(store, f"new{start}-", rows[start : start + 250], [5] * 250)
    assert any("does not find" in str(each.message) or "recall@10" in str(each.message) for each in caught)
