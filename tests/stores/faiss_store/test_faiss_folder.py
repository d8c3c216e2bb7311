"""A store's folder: what survives closing, crashes, damage, a second writer and a full disk."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipretrieval.errors import (
    FingerprintMismatchError,
    InvalidInputError,
    StoreCorruptedError,
    StoreError,
    StoreLockedError,
    StoreUnavailableError,
    UnsupportedOperationError,
)
from clipretrieval.stores import FaissStore, LocatedStore, MemoryStore
from clipretrieval.stores.local.mapped_file import MappedFile

METRICS = ["l2", "cosine", "ip"]
ROOT = Path(__file__).parents[3]


def normal(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def fill(store: Any, count: int = 30, dim: int = 6, seed: int = 0) -> list[str]:
    ids = [f"é{place}" for place in range(count)]
    labels = [f"label {place % 3}" for place in range(count)]
    store.upsert(ids, normal(seed, count, dim), labels, [{"place": place} for place in range(count)])
    store.write_manifest({"model": "RN50", "seed": seed})
    return ids


def contents(store: Any) -> Any:
    records = store.get([f"é{place}" for place in range(100)])
    columns = [each.tolist() for each in (records.ids, records.vectors, records.labels)]
    return store.count(), store.dim, store.read_manifest(), records.metadata, columns


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def data_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "LOCK")


@contextmanager
def another_process(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run Python code in a process of its own, which is killed at the end of the block."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A closed store of thirty vectors."""
    path = tmp_path / "shop é%20?#"  # characters that mean something in an SQLite address
    with FaissStore(path) as store:
        fill(store)
    return path


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("read_only", [False, True])
def test_a_reopened_store_is_the_one_that_was_closed(tmp_path: Path, metric: str, read_only: bool) -> None:
    """Records, manifest and answers are bit for bit the same after closing and opening."""
    queries = normal(1, 4, 6)
    with FaissStore(tmp_path / "new" / "store", metric=metric) as store:
        fill(store)
        before, near = contents(store), store.search(queries, 5)
    with FaissStore(tmp_path / "new" / "store", metric=metric, read_only=read_only) as store:
        assert contents(store) == before
        again = store.search(queries, 5)
    assert again.ids.tolist() == near.ids.tolist()
    assert again.labels.tolist() == near.labels.tolist()
    assert again.distances.tobytes() == near.distances.tobytes()


@pytest.mark.parametrize("labels", [[-(2**63), 7], ["7", "x"]])
def test_label_types_survive(tmp_path: Path, labels: list[Any]) -> None:
    """Integers and the strings that look like them are told apart after reopening."""
    with FaissStore(tmp_path / "s") as store:
        store.upsert(["a", "b"], np.eye(2), labels)
    with FaissStore(tmp_path / "s") as store:
        assert store.get(["a", "b"]).labels.tolist() == labels


def test_a_folder_holds_one_generation(folder: Path) -> None:
    """After each flush only the files that its manifest names remain: those of before, and what came."""
    assert data_files(folder) == ["MANIFEST.json", "segment-1-0.bin"]
    before = (folder / "segment-1-0.bin").read_bytes()
    with FaissStore(folder) as store:
        store.delete(["é0"])
        store.flush()
        assert data_files(folder) == ["MANIFEST.json", "removed-2-0.bin", "segment-1-0.bin"]
        fill(store, 2, seed=1)
    files = ["MANIFEST.json", "removed-3-0.bin", "segment-1-0.bin", "segment-3-0.bin"]
    assert data_files(folder) == files
    assert (folder / "segment-1-0.bin").read_bytes() == before
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    expected = {"format_version": 2, "generation": 3, "metric": "l2", "dim": 6, "count": 30, "index": "auto"}
    assert {name: manifest[name] for name in expected} == expected
    assert (folder / files[1]).read_bytes() == bytes([3, 0, 0, 0])


def test_flush_writes_only_what_changed(folder: Path) -> None:
    """Opening, reading, flushing and writing what is already there leave every file alone."""
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != "LOCK"}
    with FaissStore(folder) as store:
        store.search(normal(1, 1, 6), 1)
        store.write_manifest(store.read_manifest())
        assert store.delete(["unknown"]) == 0
        store.flush()
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_store_without_vectors_is_kept(tmp_path: Path) -> None:
    """A new store, one with only a manifest and an emptied one all open again."""
    FaissStore(tmp_path / "s", metric="ip").close()
    with FaissStore(tmp_path / "s", metric="ip") as store:
        assert (store.count(), store.dim, store.read_manifest()) == (0, None, {})
        store.write_manifest({"a": 1})
    with FaissStore(tmp_path / "s", metric="ip") as store:
        assert store.read_manifest() == {"a": 1}
        store.upsert(["x"], np.eye(1, 4), [1])
        store.flush()
        store.delete(["x"])
    with FaissStore(tmp_path / "s", metric="ip") as store:
        assert (store.count(), store.dim) == (0, 4)
        assert not store.search(np.eye(1, 4), 2).valid.any()
        store.upsert(["y"], np.eye(1, 4), ["other type"])
    assert FaissStore.load(tmp_path / "s").get(["y"]).labels.tolist() == ["other type"]


def test_what_is_not_flushed_is_not_on_disk(folder: Path) -> None:
    """A reader sees the last flush, and goes on seeing what it opened."""
    with FaissStore(folder) as writer:
        writer.delete(["é0"])
        with FaissStore(folder, read_only=True) as reader:
            assert reader.count() == 30
            writer.flush()
            assert reader.count() == 30
        with FaissStore(folder, read_only=True) as reader:
            assert reader.count() == 29


def test_another_metric_is_refused(folder: Path) -> None:
    """Opening under another metric names both and changes nothing."""
    before = snapshot(folder)
    with pytest.raises(FingerprintMismatchError, match=r"'l2'.*'cosine'"):
        FaissStore(folder, metric="cosine")
    assert snapshot(folder) == before


def test_location_opens_the_same_store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A location is the absolute path and the metric; a store in memory has none."""
    monkeypatch.chdir(folder.parent)
    with FaissStore(folder.name) as store:
        assert isinstance(store, LocatedStore)
        assert store.location() == {"path": str(folder), "metric": "l2"}
    assert FaissStore().location() is None


def test_a_read_only_store_refuses_writes(folder: Path) -> None:
    """Every write to a read-only store is an unsupported operation, and nothing is touched or locked."""
    before = snapshot(folder)
    with FaissStore(folder, read_only=True) as store:
        assert "read_only=True" in repr(store)
        writes: list[Callable[[], Any]] = [
            lambda: store.upsert(["a"], np.ones((1, 6)), ["x"]),
            lambda: store.delete(["é0"]),
            lambda: store.write_manifest({}),
        ]
        for write in writes:
            with pytest.raises(UnsupportedOperationError, match="read-only"):
                write()
        store.flush()
    assert snapshot(folder) == before


def test_a_store_in_a_folder_is_not_copied(folder: Path) -> None:
    """Pickling a store in a folder is refused: its folder is what to pass on."""
    with FaissStore(folder) as store, pytest.raises(UnsupportedOperationError, match="location"):
        pickle.dumps(store)


def test_reading_needs_a_store(tmp_path: Path) -> None:
    """A read-only store is not made where there is none, nor in memory."""
    for call in (
        lambda: FaissStore(tmp_path / "no", read_only=True),
        lambda: FaissStore.load(tmp_path / "no"),
    ):
        with pytest.raises(StoreUnavailableError, match="no store"):
            call()
    with pytest.raises(InvalidInputError, match="path"):
        FaissStore(read_only=True)
    with pytest.raises(StoreUnavailableError, match="no store"):
        MemoryStore.load(tmp_path / "no")
    assert list(tmp_path.iterdir()) == []


def test_what_belongs_to_others_is_left_alone(tmp_path: Path) -> None:
    """A file, or a folder with something else in it, is refused and not written to."""
    file, other = tmp_path / "file", tmp_path / "other"
    file.write_text("x")
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    memory = MemoryStore()
    memory.upsert(["a"], np.eye(1), [1])
    for path in (file, other):
        for call in (lambda path=path: FaissStore(path), lambda path=path: memory.save(path)):
            with pytest.raises(InvalidInputError, match=path.name):
                call()
    assert file.read_text() == "x"
    assert snapshot(other) == {"thesis.txt": b"years of work"}


DAMAGED = ["MANIFEST.json", "segment-1-0.bin"]


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("keep", [0.0, 0.5, -1])
def test_a_truncated_file_is_reported(folder: Path, name: str, keep: float) -> None:
    """Wherever a file is cut off, opening tells which file it is and what to do."""
    content = (folder / name).read_bytes()
    cut = content[: int(len(content) * keep)] if keep >= 0 else content[:-2]
    (folder / name).write_bytes(cut)
    with pytest.raises(StoreCorruptedError, match=f"{name}.*Restore"):
        FaissStore(folder)


@pytest.mark.parametrize("name", DAMAGED)
def test_a_flipped_bit_is_reported(folder: Path, name: str) -> None:
    """A flipped bit anywhere in a file, in 60 places tried, is noticed on opening or by `verify`."""
    content = (folder / name).read_bytes()
    for place in np.linspace(0, len(content) - 2, 60).astype(int).tolist():
        damaged = bytearray(content)
        damaged[place] ^= 1
        (folder / name).write_bytes(damaged)
        with pytest.raises(StoreCorruptedError, match=name):
            FaissStore(folder, read_only=True).verify()
    (folder / name).write_bytes(content)
    assert FaissStore.load(folder).count() == 30


@pytest.mark.parametrize("name", DAMAGED)
def test_a_missing_file_is_reported(folder: Path, name: str) -> None:
    """A store whose file is gone is damaged, not new."""
    (folder / name).unlink()
    before = snapshot(folder)
    with pytest.raises(StoreCorruptedError, match=name):
        FaissStore(folder)
    with pytest.raises(StoreCorruptedError, match=name):
        FaissStore(folder, read_only=True).search(normal(1, 1, 6), 1)
    assert snapshot(folder) == before


@pytest.mark.parametrize(
    ("version", "match"),
    [
        (4, "is of format version 4; .* reads versions up to 3. Install a version"),
        (10**30, "is of format version 1000+; "),
        *((wrong, "is damaged: it is of no format version that") for wrong in (0, -1, "1", 2.0, None)),
    ],
)
def test_an_unknown_format_version_is_reported(folder: Path, version: Any, match: str) -> None:
    """A folder of a later format says which version it needs, and stays as it is."""
    path = folder / "MANIFEST.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": version}))
    before = snapshot(folder)
    with pytest.raises(StoreCorruptedError, match=match):
        FaissStore(folder)
    assert snapshot(folder) == before


def test_leftovers_of_a_killed_writer_go_with_the_next(folder: Path) -> None:
    """Files of an unfinished generation stay while only readers come, and the next writer removes them."""
    strays = [
        "segment-2-0.bin",
        "removed-2-1.bin",
        ".segment-3-0.bin.0a1b2c3d4e5f6071.tmp",
        ".MANIFEST.json.00ff.tmp",
    ]
    for name in strays:
        (folder / name).write_bytes(b"half")
    (folder / "notes.txt").write_text("mine")
    with FaissStore(folder, read_only=True) as store:
        assert store.count() == 30
    assert set(strays) < set(data_files(folder))
    with FaissStore(folder) as store:
        store.delete(["é0"])
    assert data_files(folder) == ["MANIFEST.json", "notes.txt", "removed-2-0.bin", "segment-1-0.bin"]
    assert FaissStore.load(folder).count() == 29


def test_a_second_writer_is_refused(folder: Path) -> None:
    """While one store writes, another in the same process may read but not write."""
    with FaissStore(folder) as first, FaissStore(folder) as second:
        first.delete(["é0"])
        for write in (lambda: second.delete(["é1"]), lambda: second.write_manifest({})):
            with pytest.raises(StoreLockedError, match="another writer"):
                write()
        assert second.count() == 30
    assert FaissStore.load(folder).count() == 29


HOLDER = """
import sys, numpy as np
from clipretrieval.stores import FaissStore
store = FaissStore(sys.argv[1])
store.delete(["é0"])
print("holding", flush=True)
sys.stdin.readline()
store.close()
print("closed", flush=True)
"""


def test_a_second_writer_in_another_process_is_refused(folder: Path) -> None:
    """The lock holds between processes, and the next writer starts from what the other one flushed."""
    with FaissStore(folder) as store, another_process(HOLDER, folder) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "holding\n"
        before = snapshot(folder)
        with pytest.raises(StoreLockedError, match="another writer"):
            store.upsert(["new"], np.ones((1, 6)), ["x"])
        assert store.count() == 30
        assert snapshot(folder) == before
        other.stdin.write("\n")
        other.stdin.flush()
        assert other.stdout.readline() == "closed\n"
        store.upsert(["new"], np.ones((1, 6)), ["x"])
        assert store.count() == 30  # one less by the other, one more by this one
    reopened = FaissStore.load(folder)
    assert reopened.get(["é0", "é1", "new"]).ids.tolist() == ["é1", "new"]


def test_a_new_store_is_held_by_who_makes_it(tmp_path: Path) -> None:
    """Two stores cannot both be made in one folder, and the lock goes with the close."""
    with FaissStore(tmp_path / "s") as first:
        second = FaissStore(tmp_path / "s")
        with pytest.raises(StoreLockedError):
            second.write_manifest({})
        first.upsert(["a"], np.eye(1), [1])
    second.write_manifest({"second": True})
    second.close()
    with FaissStore.load(tmp_path / "s") as store:
        assert (store.count(), store.read_manifest()) == (1, {"second": True})


WRITER = """
import sys, numpy as np
from clipretrieval.stores import FaissStore
store = FaissStore(sys.argv[1])
number = store.count()
while True:
    store.upsert([str(number)], np.full((1, 64), float(number)), [number])
    store.flush()
    print(number, flush=True)
    number += 1
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_kill_loses_nothing_that_was_flushed(tmp_path: Path) -> None:
    """Killed at any moment of writing, the folder opens with every flushed vector, time after time."""
    flushed = -1
    for attempt in range(5):
        with another_process(WRITER, tmp_path / "s") as process:
            assert process.stdout is not None
            for _ in range(3):
                flushed = int(process.stdout.readline())
            time.sleep(0.0037 * attempt)
            process.send_signal(signal.SIGKILL)
            rest = process.stdout.read().split("\n")
            flushed = max([flushed, *(int(line) for line in rest[:-1])])
        with FaissStore(tmp_path / "s", read_only=True) as store:
            assert store.count() in (flushed + 1, flushed + 2)  # the last may be flushed but not yet told
            numbers = list(range(flushed + 1))
            records = store.get([str(number) for number in numbers])
            assert records.labels.tolist() == numbers
            assert np.array_equal(records.vectors, np.tile(np.array(numbers, np.float32)[:, None], 64))


@pytest.mark.parametrize("victim", ["segment-", "MANIFEST"])
def test_a_failed_flush_keeps_both_states(folder: Path, victim: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a file cannot be put in place, the folder stays at the last flush and memory at the change."""
    replace = os.replace

    def failing(source: Any, target: Any) -> None:
        if Path(target).name.startswith(victim):
            raise OSError(28, "No space left on device")
        replace(source, target)

    before = snapshot(folder)
    with FaissStore(folder) as store:
        fill(store, 40, seed=5)
        after = contents(store)
        monkeypatch.setattr(os, "replace", failing)
        for call in (store.flush, store.close):
            with pytest.raises(StoreUnavailableError, match="No space left"):
                call()
        assert before.items() <= snapshot(folder).items()
        assert FaissStore.load(folder).count() == 30
        assert contents(store) == after
        monkeypatch.undo()
    assert contents(FaissStore.load(folder)) == after


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX resource limits")
def test_a_full_disk_is_reported(folder: Path) -> None:
    """When the system refuses to write more bytes, flush raises and the folder stays at the last flush."""
    code = """
import resource, signal, sys, numpy as np
from clipretrieval.errors import StoreUnavailableError
from clipretrieval.stores import FaissStore
store = FaissStore(sys.argv[1])
store.upsert([str(i) for i in range(5000)], np.ones((5000, 6)), ["x"] * 5000)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for limit in (10_000, 130_000):  # stops the vectors, then the records
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        store.flush()
    except StoreUnavailableError:
        print("refused", flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(FaissStore.load(sys.argv[1]).count(), store.count(), flush=True)
store.close()
print(FaissStore.load(sys.argv[1]).count(), flush=True)
"""
    with another_process(code, folder) as process:
        output, _ = process.communicate(timeout=60)
    assert output.split() == ["refused", "refused", "30", "5030", "5030"]


@pytest.mark.parametrize("kind", [MemoryStore, FaissStore])
@pytest.mark.parametrize("metric", METRICS)
def test_a_saved_copy_is_complete(tmp_path: Path, kind: Any, metric: str) -> None:
    """A copy holds everything, answers alike, and is independent of what it was copied from."""
    store = kind(metric=metric)
    fill(store)
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "deep" / "copy", tmp_path / "empty"):
        store.save(str(target))
        with kind.load(target) as loaded:
            assert loaded.metric == metric
            assert contents(loaded) == contents(store)
            left, right = (each.search(normal(3, 4, 6), 40) for each in (store, loaded))
            assert left.ids.tolist() == right.ids.tolist()
            assert left.distances.tobytes() == right.distances.tobytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "empty"]
    store.delete(["é0"])
    assert kind.load(tmp_path / "empty").count() == 30


@pytest.mark.parametrize("kind", [MemoryStore, FaissStore])
def test_a_copy_replaces_the_copy_before(tmp_path: Path, kind: Any) -> None:
    """Saving again into the same folder leaves one complete generation."""
    store = kind()
    store.save(tmp_path / "copy")
    assert kind.load(tmp_path / "copy").count() == 0
    fill(store)
    store.save(tmp_path / "copy")
    store.delete(["é1"])
    store.save(tmp_path / "copy")
    assert kind.load(tmp_path / "copy").count() == 29
    assert len(data_files(tmp_path / "copy")) == 2


def test_saving_into_its_own_folder_flushes(folder: Path) -> None:
    """A store saved where it lives is flushed, and stays open for writing."""
    with FaissStore(folder) as store:
        store.delete(["é0"])
        store.save(folder)
        assert FaissStore.load(folder).count() == 29
        store.delete(["é1"])
    assert FaissStore.load(folder).count() == 28


def test_a_copy_does_not_disturb_a_writer(folder: Path) -> None:
    """A copy is not written over a store that somebody is writing to."""
    other = FaissStore()
    other.upsert(["a"], np.eye(1), [1])
    with FaissStore(folder) as store:
        store.delete(["é0"])
        with pytest.raises(StoreLockedError):
            other.save(folder)
    assert FaissStore.load(folder).count() == 29


def test_a_failed_copy_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a copy cannot be completed, neither it nor a part of it is there."""

    def failing(source: Any, target: Any) -> None:
        raise OSError(5, "Input/output error")

    store = FaissStore()
    fill(store)
    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(StoreUnavailableError, match="Input/output"):
        store.save(tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


def test_each_class_opens_its_own_copies(folder: Path, tmp_path: Path) -> None:
    """A folder that the other class wrote is refused with the name of the class to use."""
    memory = MemoryStore()
    fill(memory)
    memory.save(tmp_path / "copy")
    with pytest.raises(StoreError, match="MemoryStore"):
        FaissStore.load(tmp_path / "copy")
    with pytest.raises(StoreError, match="FaissStore"):
        MemoryStore.load(folder)


def test_a_damaged_copy_of_a_memory_store_is_reported(tmp_path: Path) -> None:
    """Copies of a MemoryStore are verified as a FaissStore's folder is."""
    memory = MemoryStore()
    fill(memory)
    memory.save(tmp_path / "copy")
    for name in ("segment-0-0.bin", "MANIFEST.json"):
        content = (tmp_path / "copy" / name).read_bytes()
        (tmp_path / "copy" / name).write_bytes(content[:-9] + b"?" + content[-8:])
        with pytest.raises(StoreCorruptedError, match=name):
            MemoryStore.load(tmp_path / "copy")
        (tmp_path / "copy" / name).write_bytes(content)
    assert MemoryStore.load(tmp_path / "copy").count() == 30


def test_rows_that_queries_share_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows may be asked for in any order and again and again: each is read once, and neighbors together."""
    read: list[int] = []

    def counted(file: MappedFile, start: int, target: memoryview) -> None:
        read.append(len(target))
        whole(file, start, target)

    whole = MappedFile.read_into
    with FaissStore(tmp_path / "store") as store:
        fill(store)
    with FaissStore(tmp_path / "store") as store:
        monkeypatch.setattr(MappedFile, "read_into", counted)
        rows = np.array([3, 1, 3, 2, 1, 29, 3])
        found = store._held.segments.vectors(rows)
    np.testing.assert_array_equal(found, normal(0, 30, 6)[rows])
    assert read[-2:] == [3 * 24, 24]  # what was read before is the block, to verify it
