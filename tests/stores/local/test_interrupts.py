"""Ctrl-C, or memory that runs out, at any moment of a write: all of it is stored, or nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from clipretrieval.errors import ClipRetrievalWarning, StoreCorruptedError, StoreError
from clipretrieval.stores import FaissStore, MemoryStore
from clipretrieval.stores.faiss import factory as _factory

STORES = Path(sys.modules[MemoryStore.__module__].__file__ or "").parent
# Where contents change, or are made whole again.
CHANGING = {
    str(STORES / f"{name}.py")
    for name in (
        "local/store",
        "local/rows",
        "local/table",
        "local/held",
        "local/segments",
        "faiss/flat",
        "faiss/approximate",
        "faiss/index",
        "faiss/tuning",
    )
}
KINDS: dict[str, Callable[[], Any]] = {
    "memory": MemoryStore,
    "flat": FaissStore,
    "lists": lambda: FaissStore(index="IVF4,Flat"),
    "graph": lambda: FaissStore(index="HNSW8"),
}
IDS = [f"{place:02}" for place in range(24)]
ROWS = np.random.default_rng(0).standard_normal((40, 3), dtype=np.float32)


def add_some(store: Any) -> None:
    store.upsert([*IDS[4:8], *(f"new{place}" for place in range(9))], ROWS[24:37], [2] * 13, [{"n": 1}] * 13)


def delete_some(store: Any) -> None:
    store.delete([*IDS[3:12], IDS[-2]])


def delete_all(store: Any) -> None:
    store.delete(IDS)


def filled(kind: str) -> Any:
    store = KINDS[kind]()
    store.upsert(IDS, ROWS[:24], [1] * 24, [{"place": place} for place in range(24)])
    return store


def contents(store: Any) -> Any:
    """All that is stored, by each way of asking for it."""
    listed = sorted(name for listing in store.scan() for name in listing.ids)
    records = store.get(listed)
    # Each finds itself, in an approximate index too.
    near = store.search(records.vectors if listed else ROWS, 1)
    told = [records.ids, records.vectors, records.labels, near.ids, near.distances, near.labels]
    return store.count(), listed, records.metadata, [each.tolist() for each in told]


@contextmanager
def interrupted(error: type[BaseException], *moments: int) -> Iterator[list[int]]:
    """Raise at lines of the store's code, counted from 0; the list tells how many have passed."""
    passed, before = [0], sys.gettrace()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in CHANGING:
            return None
        if event == "line":
            passed[0] += 1
            if passed[0] - 1 in moments:
                raise error
        return trace

    sys.settrace(trace)
    try:
        yield passed
    finally:
        sys.settrace(before)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build indexes from the first vectors on."""
    monkeypatch.setattr(_factory, "SMALLEST", 4)
    monkeypatch.setattr(_factory, "CENTROID_LEAST", 4)


@pytest.mark.filterwarnings("ignore::clipretrieval.errors.ClipRetrievalWarning")
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("change", [add_some, delete_some, delete_all])
@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_write_is_whole_or_undone(
    kind: str, change: Callable[[Any], None], error: type[BaseException]
) -> None:
    """Wherever a write is interrupted, and its undoing again, the store holds the old or the new."""
    before = contents(filled(kind))
    done = filled(kind)
    with interrupted(error) as lines:
        change(done)
    after = contents(done)
    assert lines[0] > 20
    seen = set()
    for moment in np.linspace(0, lines[0] - 1, 16 if kind in ("memory", "flat") else 8).astype(int).tolist():
        store = filled(kind)
        with interrupted(error, moment, moment + 4):
            try:
                change(store)
            except error:
                seen.add("raised")
        found = contents(store)
        assert found in (before, after), f"half of a write is there after line {moment}"
        seen.add("old" if found == before else "new")
        change(store)
        assert contents(store) == after, f"the write cannot be done again after line {moment}"
    assert {"raised", "new"} <= seen


@pytest.mark.parametrize("kind", ["flat", "graph"])
def test_an_interrupted_first_write_leaves_an_empty_store(kind: str) -> None:
    """Before the first write has stored anything, its dimension and its type of labels bind nobody."""
    store = KINDS[kind]()
    with interrupted(KeyboardInterrupt, 12), pytest.raises(KeyboardInterrupt):
        store.upsert(IDS, ROWS[:24], [1] * 24)
    assert (store.count(), store.dim) == (0, None)
    store.upsert(["a"], np.ones((1, 5)), ["text"])
    assert store.get(["a"]).labels.tolist() == ["text"]


@pytest.mark.parametrize("index", ["Flat", "HNSW8", "IVF4,Flat"])
def test_a_folder_outlives_interrupted_writes(tmp_path: Path, index: str) -> None:
    """What is flushed, or closed, after an interruption can be opened, and holds the old or the new."""
    for moment in range(4, 76, 12):
        folder = tmp_path / str(moment)
        store = FaissStore(folder, index=index)
        store.upsert(IDS, ROWS[:24], [1] * 24)
        store.flush()
        store.upsert(["pending"], ROWS[30:31], [5])
        with interrupted(KeyboardInterrupt, moment, moment + 4), pytest.raises(KeyboardInterrupt):
            add_some(store)
        store.close()
        found = FaissStore(folder, read_only=True)
        assert found.count() in (25, 34)
        assert found.get(["pending"]).labels.tolist() == [5]
        assert found.get(IDS[:4]).vectors.tolist() == ROWS[:4].tolist()


def test_a_store_that_is_not_whole_is_not_written(tmp_path: Path) -> None:
    """A generation that could not be opened never takes the place of a good one, nor is a copy made of it."""
    store = FaissStore(tmp_path / "store")
    store.upsert(IDS, ROWS[:24], [1] * 24)
    store.flush()
    before = {path.name: path.read_bytes() for path in (tmp_path / "store").iterdir()}
    store.upsert(["more", "and more"], ROWS[:2], [1] * 2)
    rows: Any = store._held.rows
    rows.write(ROWS[:1], np.array([2]))
    for write in (store.flush, store.close, lambda: store.save(tmp_path / "copy")):
        with pytest.raises(StoreCorruptedError, match="2 records in memory do not go together"):
            write()
    assert {path.name: path.read_bytes() for path in (tmp_path / "store").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_flush_that_is_interrupted_leaves_no_files(
    tmp_path: Path, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever stops a flush, only the files of the generation in force stay, and the next flush works."""
    store = FaissStore(tmp_path)
    store.upsert(IDS, ROWS[:24], [1] * 24)
    store.flush()
    before = sorted(path.name for path in tmp_path.iterdir())
    add_some(store)

    def stop(*_: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("clipretrieval.stores.local.folder_write.write_segment", stop)
        with pytest.raises(error):
            store.flush()
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    store.flush()
    assert FaissStore(tmp_path, read_only=True).count() == 33


def test_an_index_that_cannot_be_measured_fails_no_upsert(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where FAISS fails after the vectors are stored, a warning says so, and searches are exact."""
    store = FaissStore(index="IVF4,Flat")

    def fail(*_: Any, **__: Any) -> None:
        raise StoreError("no more")

    monkeypatch.setattr("clipretrieval.stores.faiss.index.AnnIndex.search", fail)
    with pytest.warns(ClipRetrievalWarning, match="could not measure the index 'IVF4,Flat'"):
        store.upsert(IDS, ROWS[:24], [1] * 24)
    assert store.search(ROWS[:24], 1).ids.ravel().tolist() == IDS
