"""A reader of a folder takes up what a writer has flushed, whole or not at all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipretrieval.errors import (
    FingerprintMismatchError,
    StoreCorruptedError,
    StoreError,
    StoreUnavailableError,
)
from clipretrieval.stores import FaissStore, MemoryStore, RefreshableStore

ROOT = Path(__file__).parents[3]


def normal(seed: int, count: int) -> Any:
    return np.random.default_rng(seed).standard_normal((count, 6), dtype=np.float32)


def names(count: int) -> list[str]:
    return [f"é{place}" for place in range(count)]


def contents(store: FaissStore) -> Any:
    records = store.get(names(50))
    columns = [each.tolist() for each in (records.ids, records.vectors, records.labels)]
    return store.count(), store.dim, store.read_manifest(), records.metadata, columns


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A closed store of thirty vectors."""
    with FaissStore(tmp_path / "s") as store:
        store.upsert(names(30), normal(0, 30), [0] * 30)
    return tmp_path / "s"


@pytest.fixture
def reader(folder: Path) -> Iterator[FaissStore]:
    """A store that has read the thirty vectors."""
    with FaissStore(folder, read_only=True) as store:
        yield store


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
@pytest.mark.parametrize("options", [{"read_only": True}, {}, {"read_only": True, "mmap": True}])
def test_a_reader_follows_a_writer(tmp_path: Path, metric: str, options: dict[str, Any]) -> None:
    """After each flush, and not before, a refresh gives what a store opened now would hold."""
    writer = FaissStore(tmp_path / "s", metric=metric)
    reader = FaissStore(tmp_path / "s", metric=metric, **options)
    assert isinstance(reader, RefreshableStore)
    assert (reader.count(), reader.dim, reader.refresh()) == (0, None, False)
    steps: list[Any] = [
        lambda: writer.upsert(names(30), normal(1, 30), ["old"] * 30, [{"place": p} for p in range(30)]),
        lambda: writer.upsert(names(40)[20:], normal(2, 20), ["new"] * 20),
        lambda: writer.delete(names(5)),
        lambda: writer.write_manifest({"classes": ["old", "new"]}),
        lambda: writer.delete(names(50)),
    ]
    for step in steps:
        before = contents(reader)
        step()
        assert not reader.refresh()
        assert contents(reader) == before
        writer.flush()
        assert contents(reader) == before
        assert reader.refresh()
        assert contents(reader) == contents(writer) != before
        near, expected = (each.search(normal(3, 4), 5) for each in (reader, writer))
        assert near.ids.tolist() == expected.ids.tolist()
        assert near.distances.tolist() == expected.distances.tolist()
        assert not reader.refresh()
    reader.close()
    writer.close()


def test_a_reader_follows_another_process(reader: FaissStore, folder: Path) -> None:
    """What a process of its own has flushed is taken up, while that process still holds the folder."""
    code = (
        "import sys, numpy as np\n"
        "from clipretrieval.stores import FaissStore\n"
        "store = FaissStore(sys.argv[1])\n"
        "for step in sys.stdin:\n"
        "    store.upsert([step.strip()], np.ones((1, 6)), [7])\n"
        "    store.flush()\n"
        "    print(store.count(), flush=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for count, name in ((31, "one"), (32, "two")):
            assert not reader.refresh()
            print(name, file=process.stdin, flush=True)
            assert process.stdout.readline() == f"{count}\n"
            assert reader.refresh()
            assert reader.count() == count
            assert reader.get([name]).labels.tolist() == [7]
        process.stdin.close()
        assert process.wait(60) == 0


def test_who_writes_has_nothing_to_take_up(folder: Path) -> None:
    """The writer keeps its changes, flushed or not, and a store in memory holds what it holds."""
    with FaissStore(folder) as writer:
        writer.upsert(["more"], normal(1, 1), [1])
        assert not writer.refresh()
        writer.flush()
        assert not writer.refresh()
        assert writer.count() == 31
    with FaissStore() as store:
        store.upsert(["a"], normal(1, 1), [1])
        assert not store.refresh()
        assert store.count() == 1
    assert not isinstance(MemoryStore(), RefreshableStore)


def test_a_reader_may_write_after_a_refresh(folder: Path) -> None:
    """What is written then stands beside what was taken up."""
    with FaissStore(folder) as store:
        with FaissStore(folder) as other:
            other.upsert(["theirs"], normal(1, 1), [1])
        assert store.refresh()
        store.upsert(["ours"], normal(2, 1), [2])
        assert not store.refresh()
    with FaissStore(folder, read_only=True) as store:
        assert store.get(["theirs", "ours"]).labels.tolist() == [1, 2]


def test_a_damaged_generation_is_not_taken_up(reader: FaissStore, folder: Path) -> None:
    """An error tells of the damage, and the reader goes on with what it has; mended, it is taken up."""
    before = contents(reader)
    with FaissStore(folder) as writer:
        writer.upsert(["more"], normal(1, 1), [1])
    (path,) = folder.glob("segment-2-*.bin")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(StoreCorruptedError, match=r"segment-2-0.bin is damaged: it has"):
        reader.refresh()
    assert contents(reader) == before
    path.write_bytes(whole)
    assert reader.refresh()
    assert reader.count() == 31


def test_a_folder_that_is_gone_leaves_a_reader_what_it_has(reader: FaissStore, folder: Path) -> None:
    """Without the folder a refresh fails, and searches do not."""
    shutil.rmtree(folder)
    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match="no store"):
            reader.refresh()
    assert reader.search(normal(0, 1), 1).ids.tolist() == [["é0"]]


def test_a_folder_made_anew_is_taken_up_under_its_metric_only(reader: FaissStore, folder: Path) -> None:
    """Another store in the folder's place is taken up, but not one of another metric."""
    shutil.rmtree(folder)
    with FaissStore(folder) as store:
        store.upsert(["other"], np.ones((1, 3)), ["text"])
    assert reader.refresh()
    assert (reader.dim, reader.get(["other"]).labels.tolist(), reader.count()) == (3, ["text"], 1)
    shutil.rmtree(folder)
    FaissStore(folder, metric="ip").close()
    with pytest.raises(FingerprintMismatchError, match="'ip'"):
        reader.refresh()
    assert reader.count() == 1


def test_the_writers_index_is_taken_up(tmp_path: Path) -> None:
    """A reader that was opened with one index follows the writer to another, and says where it is now."""
    ids, rows = [str(place) for place in range(1200)], normal(0, 1200)
    with FaissStore(tmp_path / "s", index="Flat") as store:
        store.upsert(ids, rows, [0] * 1200)
    reader = FaissStore(tmp_path / "s", index="Flat", read_only=True)
    with FaissStore(tmp_path / "s", index="IVF8,Flat", recall=0.9) as store:
        store.flush()
    assert reader.refresh()
    assert reader.index_info.factory == "IVF8,Flat"
    with FaissStore(**reader.location(), read_only=True) as again:  # type: ignore[arg-type]
        assert again.index_info == reader.index_info
    reader.close()


def test_a_closed_store_is_not_refreshed(folder: Path) -> None:
    """After close, a refresh is refused."""
    store = FaissStore(folder, read_only=True)
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.refresh()


def test_searches_never_see_half_of_a_generation(reader: FaissStore, folder: Path) -> None:
    """While a reader is refreshed, every search, look-up and scan of other threads is of one generation."""
    probe = np.zeros((1, 6), dtype=np.float32)

    def look() -> set[int]:
        found: set[int] = set()
        while 12 not in found:
            near = reader.search(probe, 60)
            labels = set(near.labels[0][near.valid[0]].tolist())
            assert len(labels) == 1, "a search saw two generations"
            generation = labels.pop()
            assert near.valid.sum() == 30 + generation
            if generation:
                assert set(near.distances[0][near.valid[0]].tolist()) == {6 * generation**2}
            listed = [label for listing in reader.scan() for label in listing.labels.tolist()]
            assert len(listed) == 30 + listed[0]
            assert set(listed) == {listed[0]}
            found.add(generation)
        return found

    with ThreadPoolExecutor(3) as pool, FaissStore(folder) as writer:
        running = [pool.submit(look) for _ in range(3)]
        for generation in range(1, 13):
            count = 30 + generation
            vectors = np.full((count, 6), generation, dtype=np.float32)
            writer.upsert(names(count), vectors, [generation] * count)
            writer.flush()
            assert reader.refresh()
        assert all(12 in each.result(timeout=60) for each in running)
