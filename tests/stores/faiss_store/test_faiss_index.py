"""FaissStore's approximate indexes: what they find, how they change, and how they lie in a folder."""

from __future__ import annotations

import json
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipretrieval.errors import (
    ClipRetrievalWarning,
    DimensionMismatchError,
    InvalidInputError,
    StoreLockedError,
    StoreUnavailableError,
    UnsupportedOperationError,
)
from clipretrieval.stores import FaissStore, MemoryStore
from clipretrieval.stores.faiss import IndexInfo
from clipretrieval.stores.faiss import factory as _factory
from clipretrieval.stores.local import folder as _folder

METRICS = ["l2", "cosine", "ip"]
EXACT = IndexInfo("Flat")
DIM = 16


def clustered(seed: int, count: int, centres: int = 50) -> Any:
    """Vectors about random centres, in the order of their centres."""
    points = 3 * np.random.default_rng(99).standard_normal((centres, DIM))
    rng = np.random.default_rng(seed)
    near = points[np.sort(rng.integers(0, centres, count))]
    return (near + rng.standard_normal((count, DIM))).astype(np.float32)


def names(count: int, start: int = 0) -> list[str]:
    return [f"{place:05}" for place in range(start, start + count)]


def fill(store: Any, rows: Any, start: int = 0) -> list[str]:
    ids = names(len(rows), start)
    store.upsert(ids, rows, list(range(start, start + len(rows))))
    return ids


def share_found(near: Any, truth: Any) -> float:
    """The share of the true neighbours' ids that were found."""
    pairs = zip(near.ids.tolist(), truth.ids.tolist(), strict=True)
    return float(np.mean([len(set(left) & set(right)) / len(right) for left, right in pairs]))


def check_true(store: Any, near: Any, queries: Any) -> None:
    """Check that hits are stored and that their distances are MemoryStore's, bit for bit, in order."""
    held = MemoryStore(store.metric)
    records = store.get(np.unique(near.ids).tolist())
    held.upsert(records.ids.tolist(), records.vectors, records.labels)
    everything = held.search(queries, len(records))
    for row in range(len(queries)):
        known = dict(zip(everything.ids[row], everything.distances[row], strict=True))
        expected = [known[name] for name in near.ids[row]]
        if store.metric == "cosine":
            np.testing.assert_allclose(near.distances[row], expected, atol=1e-6)
        else:
            assert near.distances[row].tolist() == expected
        keys = list(zip(near.distances[row], near.ids[row], strict=True))
        assert keys == sorted(keys), "hits must be ordered by distance and id"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build indexes from the first vectors on."""
    monkeypatch.setattr(_factory, "SMALLEST", 4)


FACTORIES = [
    "IVF16,Flat",
    "IVF16,SQ8",
    "IVF16,PQ8x4fs",
    "IVF16_HNSW8,Flat",
    "IMI2x2,Flat",
    "PCA8,IVF16,Flat",
    "HNSW16",
    "HNSW16,SQ8",
    "PCA8,HNSW16",
    "SQ8",
    "SQfp16",
    "SQbf16",
    "PQ8x4",
    "PQ8x4fs",
    "RaBitQ",
    "PCA8,Flat",
]


@pytest.mark.parametrize("factory", FACTORIES)
def test_every_kind_of_index_finds_the_neighbours(factory: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Each index reaches its recall, returns true distances, and FAISS prints nothing."""
    rows, queries = clustered(0, 2000), clustered(1, 60)
    store, memory = FaissStore(index=factory, recall=0.95), MemoryStore()
    fill(store, rows)
    store.flush()
    fill(memory, rows)
    near = store.search(queries, 10)
    assert store.index_info.factory == factory
    assert store.index_info.recall is not None
    assert store.index_info.recall >= 0.95
    assert share_found(near, memory.search(queries, 10)) >= 0.9
    check_true(store, near, queries)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("factory", ["IVF16,SQ8", "HNSW16"])
def test_every_metric_has_lists_and_graphs(factory: str, metric: str) -> None:
    """Inverted lists and graphs find the neighbours under every metric."""
    rows, queries = clustered(2, 3000), clustered(3, 60)
    store, memory = FaissStore(index=factory, metric=metric), MemoryStore(metric)
    fill(store, rows)
    fill(memory, rows)
    near = store.search(queries, 5)
    assert share_found(near, memory.search(queries, 5)) >= 0.95
    check_true(store, near, queries)


@pytest.mark.parametrize("name", ["Flat", "IDMap,Flat", "IDMap2,Flat", " IDMap2, Flat "])
def test_the_flat_index_is_exact_by_all_its_names(name: str) -> None:
    """Ids are the store's own, so a prefix for them changes nothing."""
    rows, queries = clustered(0, 3000), clustered(1, 20)
    store, memory = FaissStore(index=name), MemoryStore()
    fill(store, rows)
    fill(memory, rows)
    assert store.index_info == EXACT
    assert store.search(queries, 7).ids.tolist() == memory.search(queries, 7).ids.tolist()


def test_refinement_is_the_stores_own() -> None:
    """An index with FAISS's refinement is that index without it, as the vectors refine it anyway."""
    store = FaissStore(index="IDMap,SQ8,RFlat")
    fill(store, clustered(0, 1500))
    assert store.index_info.factory == "SQ8"


def test_too_few_vectors_are_searched_exactly() -> None:
    """Until there are 39 vectors a list, and 1000 in all, nothing is trained and every search is exact."""
    store, rows = FaissStore(index="IVF64,Flat"), clustered(0, 2496)
    fill(store, rows[:2495])
    assert store.index_info == EXACT
    fill(store, rows[2495:], start=2495)
    assert store.index_info.factory == "IVF64,Flat"
    assert store.index_info.trained_on == 2496
    small = FaissStore(index="HNSW16")
    fill(small, rows[:999])
    assert small.index_info == EXACT


def test_a_recall_buys_effort() -> None:
    """A higher recall takes more inverted lists, and what was measured reaches it."""
    rows = np.random.default_rng(0).standard_normal((3000, DIM))
    chosen = {}
    for target in (0.5, 0.9, 1):
        store = FaissStore(index="IVF32,Flat", recall=target)
        fill(store, rows)
        info = store.index_info
        assert info.recall is not None
        assert info.recall >= target
        chosen[target] = info.nprobe
    assert chosen[0.5] < chosen[0.9] < chosen[1] <= 32


def test_recall_is_that_of_a_count() -> None:
    """The recall that is reported is the share of true neighbours that a search for stored vectors finds."""
    rows = np.random.default_rng(0).standard_normal((3000, DIM))
    store, memory = FaissStore(index="IVF32,Flat", recall=0.6), MemoryStore()
    fill(store, rows)
    fill(memory, rows)
    # The vector itself comes first.
    near, truth = (each.search(rows[:1000], 11).ids[:, 1:] for each in (store, memory))
    share = np.mean([len(set(left) & set(right)) / 10 for left, right in zip(near, truth, strict=True)])
    assert store.index_info.recall == pytest.approx(share, abs=0.05)


def test_a_recall_out_of_reach_is_told_once() -> None:
    """Where no effort suffices a warning says what was reached, and the store works on."""
    rows = np.random.default_rng(0).standard_normal((3000, DIM))
    store = FaissStore(index="LSH", recall=1.0)
    with pytest.warns(
        ClipRetrievalWarning, match=r"'LSH' reaches a recall@10 of 0\.\d+ .* below the 1 asked"
    ):
        fill(store, rows)
    fill(store, rows, start=3000)  # measured again, without a warning
    info = store.index_info
    assert info.recall is not None
    assert 0.5 < info.recall < 1


def test_what_does_not_suffice_is_completed() -> None:
    """A search for more neighbours than the index proposes returns as many as there are."""
    store, memory, rows = FaissStore(index="IVF32,Flat", recall=0.5), MemoryStore(), clustered(0, 2000)
    fill(store, rows)
    fill(memory, rows)
    assert store.index_info.nprobe is not None
    for k in (500, 1990, 2000, 2100):
        near = store.search(rows[:3], k)
        assert near.valid.sum(axis=1).tolist() == [min(k, 2000)] * 3
    assert near.ids.tolist() == memory.search(rows[:3], k).ids.tolist()


def test_equal_vectors_are_all_found() -> None:
    """Among ten different vectors, two hundred times each, the neighbours are at distance zero."""
    rows = np.repeat(clustered(0, 10), 200, axis=0)
    for factory in ("IVF16,SQ8", "SQfp16"):
        store = FaissStore(index=factory)
        fill(store, rows)
        assert store.search(rows[::200], 50).distances.tolist() == [[0.0] * 50] * 10


@pytest.mark.parametrize("factory", ["IVF16,Flat", "IVF16,SQ8", "HNSW16", "SQ8", "PQ8x4", "PCA8,IVF16,Flat"])
def test_removed_and_replaced_vectors_are_gone(factory: str) -> None:
    """After deletions and replacements, hits are live records with the distances of their new vectors."""
    store, memory, rows = FaissStore(index=factory), MemoryStore(), clustered(0, 2500)
    queries = rows[::50]
    for each in (store, memory):
        ids = fill(each, rows)
        assert each.delete(ids[:200]) == 200
        each.upsert(ids[1000:1150], rows[:150] + 1, list(range(150)))
        assert each.delete(ids[2400:2450]) == 50
    assert store.index_info.tombstones == (0 if "IVF" in factory else 400)
    assert store.count() == 2250
    near = store.search(queries, 10)
    assert share_found(near, memory.search(queries, 10)) >= 0.95
    check_true(store, near, queries)


def test_tombstones_are_cleared() -> None:
    """A graph is built anew when more than a quarter of it is gone."""
    store, rows = FaissStore(index="HNSW16"), clustered(0, 2000)
    ids = fill(store, rows)
    store.delete(ids[:500])
    assert store.index_info.tombstones == 500
    store.delete(ids[500:501])
    assert store.index_info.tombstones == 0
    assert store.index_info.factory == "HNSW16"
    store.delete(ids[501:1001])
    assert store.index_info == EXACT, "too few are left for a graph"


def test_a_whole_class_may_be_deleted() -> None:
    """Where all that is near was deleted, k neighbours are found nevertheless."""
    rows, memory = clustered(0, 2000, centres=5), MemoryStore()
    for factory in ("HNSW16", "SQfp16"):
        store = FaissStore(index=factory)
        for each in (store, memory):
            each.delete(fill(each, rows)[:350])
        near = store.search(rows[:20], 10)
        assert store.index_info.tombstones == 350
        assert share_found(near, memory.search(rows[:20], 10)) >= 0.9


def test_classes_that_stream_in_train_the_index_anew() -> None:
    """Vectors that come class by class leave an index that was trained on all classes."""
    store, memory, rows = FaissStore(index="IVF16,Flat"), MemoryStore(), clustered(0, 6000, centres=30)
    trained = []
    for start in range(0, 6000, 500):
        for each in (store, memory):
            fill(each, rows[start : start + 500], start)
        trained.append(store.index_info.trained_on)
    assert trained == sorted(trained)
    assert trained[-1] >= 4000
    near = store.search(rows[::100], 10)
    assert share_found(near, memory.search(rows[::100], 10)) >= 0.97


def test_replacing_everything_trains_the_index_anew() -> None:
    """What counts is how much was written since, not how many vectors there are."""
    store, rows = FaissStore(index="IVF16,Flat"), clustered(0, 1200)
    for shift in range(4):
        fill(store, rows + 100 * shift)
        near = store.search(rows + 100 * shift, 1)
        assert near.labels[:, 0].tolist() == list(range(1200))


def test_auto_switches_where_vectors_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself a store searches exactly up to the limit, through lists of codes beyond, and goes back."""
    monkeypatch.setattr(_factory, "AUTO_LIMIT", 3000)
    store, rows = FaissStore(), clustered(0, 3001)
    ids = fill(store, rows[:3000])
    assert store.index_info == EXACT
    fill(store, rows[3000:], start=3000)
    info = store.index_info
    assert (info.factory, info.trained_on) == ("IVF64,SQ8", 3001)
    store.delete(ids[:1000])
    assert store.index_info.factory == "IVF64,SQ8"
    store.delete(ids[1000:1501])
    assert store.index_info == EXACT


def test_a_folder_gets_its_lists_from_a_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, of all that came: a fill builds none on the way, and searches exactly until then."""
    monkeypatch.setattr(_factory, "AUTO_LIMIT", 1000)
    rows = clustered(0, 4000)
    with FaissStore(tmp_path / "s") as store:
        for start in range(0, 4000, 500):
            fill(store, rows[start : start + 500], start=start)
        assert store.index_info == EXACT
        assert store.search(rows[:50], 1).labels[:, 0].tolist() == list(range(50))
        store.flush()
        info = store.index_info
        assert (info.factory, info.trained_on, info.measured_on) == ("IVF64,SQ8", 4000, 4000)


@pytest.mark.parametrize(("count", "factory"), [(100_001, "IVF1024,SQ8"), (10**6, "IVF4096,SQ8")])
def test_auto_takes_about_four_root_n_lists(count: int, factory: str) -> None:
    """The number of lists is the power of two nearest to four times the root of the count."""
    assert _factory.auto_factory(count) == factory
    assert _factory.auto_factory(100_000) is None


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("factory", ["IVF16,SQ8", "HNSW16", "SQfp16"])
@pytest.mark.parametrize("mmap", [False, True])
def test_a_reopened_store_has_its_index(tmp_path: Path, factory: str, metric: str, mmap: bool) -> None:
    """What was built, tombstones included, answers bit for bit the same after closing and opening."""
    rows, queries = clustered(0, 1500), clustered(1, 20)
    with FaissStore(tmp_path / "s", metric=metric, index=factory) as store:
        store.delete(fill(store, rows)[100:200])
        store.flush()
        info, near = store.index_info, store.search(queries, 10)
        records = store.get(names(1500))
    assert info.factory == factory
    with FaissStore.load(tmp_path / "s", mmap=mmap) as store:
        assert store.index_info == info
        again = store.search(queries, 10)
        found = store.get(names(1500))
    assert again.ids.tolist() == near.ids.tolist()
    assert again.distances.tobytes() == near.distances.tobytes()
    assert found.vectors.tobytes() == records.vectors.tobytes()


def test_the_files_of_an_index(tmp_path: Path) -> None:
    """The index and its labels are files, listed with size and checksum, which stay when little is added."""
    with FaissStore(tmp_path / "s", index="HNSW16") as store:
        fill(store, clustered(0, 1500))
        store.flush()
        fill(store, clustered(1, 10), start=1500)
    found = sorted(path.name for path in (tmp_path / "s").iterdir() if path.name != "LOCK")
    assert found == ["MANIFEST.json", "ann-1-0.faiss", "ann-1-0.npy", "segment-1-0.bin", "segment-2-0.bin"]
    manifest = json.loads((tmp_path / "s" / "MANIFEST.json").read_text())
    assert manifest["index"] == "HNSW16"
    assert manifest["files"]["ann"]["size"] == (tmp_path / "s" / "ann-1-0.faiss").stat().st_size
    assert manifest["covered"] == 1500
    assert manifest["index_state"]["built"]["built_with"] == 1500


@pytest.mark.parametrize("victim", ["ann-3-0.faiss", "ann-3-0.npy", "segment-2-0.bin"])
def test_a_failed_flush_keeps_the_index_before(
    tmp_path: Path, victim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a file of the new index cannot be written, the old one stays, and what is new is there."""
    from clipretrieval._util import files as _atomic

    store = FaissStore(tmp_path / "s", index="HNSW16")
    fill(store, clustered(0, 1500))
    store.flush()
    info, fresh = store.index_info, clustered(1, 1100)
    fill(store, fresh, start=1500)  # so many that the index is extended
    replace = _atomic.os.replace

    def failing(source: Any, target: Any) -> None:
        if Path(target).name == victim:
            raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(_atomic.os, "replace", failing)
        told = pytest.warns(ClipRetrievalWarning, match="all is flushed, but")
        if victim == "segment-2-0.bin":
            told = pytest.raises(StoreUnavailableError, match="No space left")
        with told:
            store.flush()
    with FaissStore(tmp_path / "s", read_only=True) as reader:
        new = 0 if victim == "segment-2-0.bin" else 1100
        assert reader.count() == 1500 + new
        assert reader.index_info == replace_fields(info, outliers=info.outliers + new)
    store.close()
    with FaissStore(tmp_path / "s", read_only=True) as reader:
        assert reader.search(fresh, 1).labels[:, 0].tolist() == list(range(1500, 2600))


def test_a_folder_takes_another_index(tmp_path: Path) -> None:
    """Opening with another index builds it at the next flush; with none named, the folder's is kept."""
    path, rows = tmp_path / "s", clustered(0, 1500)
    with FaissStore(path, index="HNSW16") as store:
        fill(store, rows)
    with FaissStore(path) as store:
        assert store.index_info.factory == "HNSW16"
    with pytest.raises(UnsupportedOperationError, match=r"'HNSW16'; found index='SQ8'.*read_only=False"):
        FaissStore(path, index="SQ8", read_only=True)
    with FaissStore(path, index="SQ8") as store:
        assert store.index_info == EXACT
        store.flush()
        assert store.index_info.factory == "SQ8"
        with pytest.raises(StoreLockedError):
            FaissStore(path, index="HNSW16")
        with FaissStore(**(store.location() or {}), read_only=True) as reader:
            assert reader.index_info == store.index_info
    with FaissStore(path, index="IVF16,Flat"):
        pass  # closing flushes
    assert FaissStore.load(path).index_info.factory == "IVF16,Flat"
    with FaissStore(path, index="Flat"):
        pass
    assert FaissStore.load(path).index_info == EXACT
    assert sorted(each.name[:5] for each in path.iterdir()) == ["LOCK", "MANIF", "segme"]


def test_a_folder_of_the_exact_store_stays_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that was made flat, as by earlier versions, opens as it was however many vectors it takes."""
    monkeypatch.setattr(_factory, "AUTO_LIMIT", 1000)
    with FaissStore(tmp_path / "s", index="Flat") as store:
        fill(store, clustered(0, 900))
    manifest = json.loads((tmp_path / "s" / "MANIFEST.json").read_text())
    assert (manifest["index"], "index_state" in manifest) == ("Flat", False)
    with FaissStore(tmp_path / "s") as store:
        fill(store, clustered(1, 2000), start=900)
        assert store.index_info == EXACT


def test_the_folder_keeps_its_recall(tmp_path: Path) -> None:
    """The recall asked for is kept, also before there is an index, until another is asked for."""
    rows = np.random.default_rng(0).standard_normal((3000, DIM))
    FaissStore(tmp_path / "s", index="IVF32,Flat", recall=0.5).close()
    with FaissStore(tmp_path / "s") as store:
        fill(store, rows)
        low = store.index_info
    with FaissStore(tmp_path / "s", read_only=True, recall=0.99) as store:
        high = store.index_info
        assert store.location() == {"path": str(tmp_path / "s"), "metric": "l2", "recall": 0.99}
    assert low.nprobe is not None
    assert high.nprobe is not None
    assert low.nprobe < high.nprobe
    assert FaissStore.load(tmp_path / "s").index_info == low


def test_mapped_vectors_are_pages_of_the_files(tmp_path: Path) -> None:
    """A store opened with mmap maps its files, and a writer's new generation leaves it as it is."""
    rows, queries = clustered(0, 1500), clustered(1, 20)
    with FaissStore(tmp_path / "s", index="IVF16,SQ8") as store:
        fill(store, rows)
    reader = FaissStore(tmp_path / "s", read_only=True, mmap=True)
    near = reader.search(queries, 5)
    if sys.platform == "linux":
        maps = Path("/proc/self/maps").read_text()
        assert "segment-1-0.bin" in maps
        assert "ann-1-0.faiss" in maps
    with FaissStore(tmp_path / "s") as writer:
        writer.delete(names(1400))
    assert reader.search(queries, 5).ids.tolist() == near.ids.tolist()
    assert reader.get(names(1500)).vectors.tobytes() == rows.tobytes()
    with pytest.raises(UnsupportedOperationError, match="read-only"):
        reader.delete(["00000"])
    reader.close()


def test_mmap_is_for_reading(tmp_path: Path) -> None:
    """Mapping a store that may be written, or one without a folder, is refused."""
    for options in ({"path": tmp_path / "s"}, {}):
        with pytest.raises(InvalidInputError, match="read_only=True"):
            FaissStore(**options, mmap=True)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("", "index must be a str that is not empty"),
        ("HNSV16", "FAISS can make"),
        ("IVF16", "FAISS can make"),
        ("BIVF16", "FAISS can make"),
        ("IVF0,Flat", "inverted lists"),
        ("IVF99999999999,Flat", "inverted lists"),
        ("HNSW1", "links"),
        ("PQ8x40", "nbits"),
        (5, "index must be a str that is not empty"),
        (None, "index must be a str that is not empty"),
    ],
)
def test_what_is_no_index_is_refused(factory: Any, message: str) -> None:
    """A string from which FAISS makes nothing is refused at once, with what to give instead."""
    with pytest.raises(InvalidInputError, match=message) as caught:
        FaissStore(index=factory)
    assert not isinstance(caught.value, DimensionMismatchError)


@pytest.mark.parametrize(
    "factory", ["NSG16", "IVF16_NSG16,Flat", "IVF16,PQ8+4", "ZnLattice3x10_6", "SQ8,Refine(SQfp16)"]
)
def test_what_cannot_serve_a_store_is_unsupported(factory: str) -> None:
    """Indexes that cannot remove, be saved or be asked for candidates are named and refused."""
    with pytest.raises(UnsupportedOperationError, match="cannot use"):
        FaissStore(index=factory)


@pytest.mark.parametrize(
    ("factory", "metric", "error", "message"),
    [
        ("PQ7x4", "l2", InvalidInputError, "dimension 16"),
        ("IVF16,PQ5x4", "l2", InvalidInputError, "dimension 16"),
        ("LSH", "ip", UnsupportedOperationError, "metric 'ip'"),
        ("IMI2x4,Flat", "cosine", UnsupportedOperationError, "metric 'cosine'"),
        ("HNSW16_PQ8", "ip", UnsupportedOperationError, "metric 'ip'"),
    ],
)
def test_an_index_must_go_with_the_vectors(
    tmp_path: Path, factory: str, metric: str, error: type, message: str
) -> None:
    """An index that does not go with the dimension or the metric is refused, and nothing is stored."""
    with FaissStore(tmp_path / "s", index=factory, metric=metric) as store:
        with pytest.raises(error, match=message):
            fill(store, clustered(0, 3))
        assert (store.count(), store.dim) == (0, None)
    path = tmp_path / "filled"
    with FaissStore(path, metric=metric) as store:
        fill(store, clustered(0, 3))
    before = (path / "MANIFEST.json").read_bytes()
    with pytest.raises(error, match=message):
        FaissStore(path, index=factory, metric=metric)
    assert (path / "MANIFEST.json").read_bytes() == before


@pytest.mark.parametrize("recall", [0, 1.5, -1, float("nan"), "high", True])
def test_a_recall_is_a_share(recall: Any) -> None:
    """A recall beyond (0, 1] is refused."""
    with pytest.raises(InvalidInputError, match="recall must be a finite number above 0 and at most 1"):
        FaissStore(index="SQ8", recall=recall)


@pytest.mark.usefixtures("small")
def test_an_index_that_cannot_be_built_costs_nothing_but_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where FAISS fails to build, a warning gives its reason and searches are exact."""
    monkeypatch.setattr(_factory, "CENTROID_LEAST", 0)
    store, memory, rows = FaissStore(index="IVF16,Flat"), MemoryStore(), clustered(0, 12)
    fill(memory, rows)
    with pytest.warns(
        ClipRetrievalWarning, match=r"could not build .*'IVF16,Flat'.*training points.*exact"
    ) as caught:
        fill(store, rows)
    assert caught[0].filename == __file__
    fill(store, rows[:5])  # no second attempt yet
    assert store.index_info == EXACT
    assert store.search(rows[:9], 5).ids.tolist() == memory.search(rows[:9], 5).ids.tolist()


@pytest.mark.filterwarnings("ignore:.*squared distances:clipretrieval.ClipRetrievalWarning")
@pytest.mark.parametrize("factory", ["IVF16,SQ8", "HNSW16"])
def test_vectors_too_long_for_float32_are_searched_exactly(factory: str) -> None:
    """Vectors whose squared distances overflow, at which FAISS fails, keep a store exact."""
    store, memory, rows = FaissStore(index=factory), MemoryStore(), clustered(0, 1300)
    with pytest.warns(ClipRetrievalWarning, match="longer than"):
        fill(store, rows * np.float32(1e30))
    assert store.index_info == EXACT
    store = FaissStore(index=factory)
    fill(store, rows)
    with pytest.warns(ClipRetrievalWarning, match="longer than"):
        store.upsert(["far"], rows[:1] * np.float32(1e30), [0])
    assert store.index_info == EXACT
    fill(memory, rows)
    memory.upsert(["far"], rows[:1] * np.float32(1e30), [0])
    assert store.search(rows[:9], 5).ids.tolist() == memory.search(rows[:9], 5).ids.tolist()


@pytest.mark.parametrize("factory", ["IVF16,SQ8", "HNSW16", "Flat", "auto"])
def test_a_store_with_an_index_can_be_copied(factory: str) -> None:
    """A pickled store answers the same and is changed apart from the first."""
    store, rows = FaissStore(index=factory), clustered(0, 1500)
    ids = fill(store, rows)
    store.delete(ids[:100])
    twin = pickle.loads(pickle.dumps(store))
    assert twin.index_info == store.index_info
    near = store.search(rows[::50], 5)
    twin.delete(ids[100:200])
    fill(twin, rows[:50] + 1, start=2000)
    assert store.search(rows[::50], 5).ids.tolist() == near.ids.tolist()
    assert (store.count(), twin.count()) == (1400, 1350)
    check_true(twin, twin.search(rows[::50], 5), rows[::50])


def test_a_saved_copy_has_the_index(tmp_path: Path) -> None:
    """A copy, also of a store in memory, opens with the index built."""
    store, rows = FaissStore(index="HNSW16"), clustered(0, 1100)
    fill(store, rows)
    store.save(tmp_path / "copy")
    with FaissStore.load(tmp_path / "copy") as copy:
        assert copy.index_info == store.index_info
        assert copy.index_info.factory == "HNSW16"


def test_repr_tells_the_index(tmp_path: Path) -> None:
    """The representation shows the index, and the recall once it was measured."""
    store = FaissStore(index="SQ8")
    assert repr(store) == "FaissStore(metric='l2', dim=None, count=0, index='SQ8')"
    fill(store, clustered(0, 1000))
    recall = store.index_info.recall
    assert repr(store) == f"FaissStore(metric='l2', dim=16, count=1000, index='SQ8', recall={recall:.3f})"
    assert repr(FaissStore()) == "FaissStore(metric='l2', dim=None, count=0)"


@pytest.mark.parametrize("factory", ["HNSW16", "IVF16,Flat"])
def test_threads_search_an_index_that_changes(factory: str) -> None:
    """A record that stays is found in its place while others come and go, and the index is built anew."""
    store, rows = FaissStore(index=factory), clustered(0, 1500)
    fill(store, rows)
    done = []

    def search(_: int) -> int:
        rounds = 0
        while not done or not rounds:
            near = store.search(rows[:5], 3)
            assert near.distances[:, 0].tolist() == [0.0] * 5
            assert near.labels[:, 0].tolist() == [0, 1, 2, 3, 4]
            rounds += 1
        return rounds

    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(search, place) for place in range(3)]
        try:
            for start in (5000, 6000):
                store.delete(fill(store, rows + 1, start)[:1000])
                store.delete(names(500, start + 1000))
        finally:
            done.append(True)
        assert all(each.result(timeout=60) for each in running)
    assert store.count() == 1500


steps = st.lists(
    st.tuples(st.sampled_from(["upsert", "delete", "search", "flush"]), st.integers(0, 2**32 - 1)),
    min_size=3,
    max_size=12,
)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("factory", ["HNSW8", "IVF2,Flat", "IVF2,SQ8", "SQfp16"])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps)
def test_any_sequence_of_writes_keeps_ids_and_vectors_together(
    factory: str, steps: list[tuple[str, int]]
) -> None:
    """After any upserts and deletions, hits are live, as many as asked for, and their distances true."""
    store, memory = FaissStore(index=factory, recall=0.01), MemoryStore()
    for each in (store, memory):
        fill(each, clustered(0, 120))
    for verb, seed in steps:
        rng = np.random.default_rng(seed)
        ids = [f"{place:05}" for place in rng.choice(200, rng.integers(1, 60), replace=False)]
        if verb == "upsert":
            vectors = clustered(seed, len(ids))
            for each in (store, memory):
                each.upsert(ids, vectors, list(range(len(ids))))
        elif verb == "delete":
            assert store.delete(ids) == memory.delete(ids)
        elif verb == "flush":
            store.flush()
        assert store.count() == memory.count()
        queries, k = clustered(seed + 1, 3), int(rng.integers(1, 12))
        near = store.search(queries, k)
        assert near.valid.sum(axis=1).tolist() == [min(k, memory.count())] * 3
        if k <= memory.count():
            check_true(memory, near, queries)
            assert all(len(set(row)) == k for row in near.ids.tolist()), "an id was returned twice"


@pytest.mark.parametrize("factory", ["IVF32,Flat", "IVF64,SQ8"])
def test_the_recall_outlives_removals(factory: str) -> None:
    """After most vectors were removed, searches still reach the target, and what is told of them is true."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((100, DIM))
    rows = (centres[rng.integers(0, 100, 5000)] + 0.8 * rng.standard_normal((5000, DIM))).astype(np.float32)
    store, memory = FaissStore(index=factory, recall=0.95), MemoryStore()
    ids = fill(store, rows)
    store.delete(ids[1200:])
    fill(memory, rows[:1200])
    # The vector itself comes first.
    near, truth = (each.search(rows[:1200], 11).ids[:, 1:] for each in (store, memory))
    share = np.mean([len(set(left) & set(right)) / 10 for left, right in zip(near, truth, strict=True)])
    info = store.index_info
    assert info.factory == factory
    assert info.recall == pytest.approx(share, abs=0.02)
    assert share >= 0.93


def test_a_reader_opens_beside_a_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a flush takes a segment away between two steps of the reading, the next generation is read."""
    rows = clustered(0, 1200)
    writer = FaissStore(tmp_path, index="HNSW8", recall=0.5)
    fill(writer, rows)
    writer.flush()
    read, times = _folder.open_segment, []

    def flush_first(*arguments: Any) -> Any:
        times.append(1)
        if len(times) == 1:
            writer.upsert(["new"], rows[:1], [1])
            writer.compact()
        return read(*arguments)

    monkeypatch.setattr(_folder, "open_segment", flush_first)
    assert FaissStore(tmp_path, read_only=True).count() == 1201
    assert len(times) == 2


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("count", [1, 21, 22, 124, 125, 126])
def test_the_answers_do_not_depend_on_how_many_ask(count: int, metric: str) -> None:
    """Around the counts at which FAISS, and the store for it, change from pairs to a matrix product."""
    rng = np.random.default_rng(0)
    rows, queries = (rng.standard_normal((n, 1024), dtype=np.float32) for n in (300, 126))
    names, labels = [str(place) for place in range(300)], list(range(300))
    with MemoryStore(metric) as expected, FaissStore(metric=metric) as store:
        for each in (expected, store):
            each.upsert(names, rows, labels)
        whole, part = expected.search(queries, 3), store.search(queries[:count], 3)
    assert part.ids.tolist() == whole.ids[:count].tolist()
    assert part.distances.tolist() == whole.distances[:count].tolist()
