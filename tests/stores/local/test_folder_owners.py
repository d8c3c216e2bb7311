"""Whose a store's folder is: after a fork, after it was made anew, and beside copies, killed or deep."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipretrieval.errors import (
    StoreError,
    StoreLockedError,
    StoreUnavailableError,
    UnsupportedOperationError,
)
from clipretrieval.stores import FaissStore, MemoryStore
from clipretrieval.stores.local.table import RecordTable

ROOT = Path(__file__).parents[3]


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, text=True, capture_output=True, timeout=120)


def store_in(folder: Path, name: str) -> FaissStore:
    store = FaissStore(folder)
    store.upsert([name], np.ones((1, 2)), [1])
    store.flush()
    return store


FORKS = """
import os, sys
import numpy as np
from clipretrieval.errors import StoreLockedError
from clipretrieval.stores import FaissStore

store = FaissStore(sys.argv[1])
store.upsert(["flushed"], np.ones((1, 2)), [1])
store.flush()
store.upsert(["pending"], np.ones((1, 2)), [1])
child = os.fork()
if not child:
    for forbidden in (store.flush, lambda: store.upsert(["child"], np.ones((1, 2)), [1])):
        try:
            forbidden()
        except StoreLockedError:
            continue
        os._exit(1)
    store.close()
    del store
    try:
        FaissStore(sys.argv[1]).upsert(["child"], np.ones((1, 2)), [1])
    except StoreLockedError:
        os._exit(0)
    os._exit(2)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(code, FaissStore(sys.argv[1], read_only=True).count())
store.close()
print(FaissStore(sys.argv[1], read_only=True).count())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_leaves_the_folder_to_its_parent(tmp_path: Path) -> None:
    """A child's close neither writes what the parent has pending nor frees the parent's folder."""
    done = run(FORKS, tmp_path / "store")
    assert done.stdout.split("\n")[:2] == ["0 1", "2"], done.stderr


@pytest.mark.skipif(os.name == "nt", reason="Windows removes no folder that is in use")
def test_a_folder_made_anew_is_anothers(tmp_path: Path) -> None:
    """Who held a folder that was removed and made again can neither write nor flush into it."""
    folder = tmp_path / "store"
    first = store_in(folder, "first")
    first.upsert(["pending"], np.ones((1, 2)), [1])
    shutil.rmtree(folder)
    second = store_in(folder, "second")
    for write in (first.flush, lambda: first.delete(["first"]), first.close):
        with pytest.raises(StoreLockedError, match="removed and made again"):
            write()
    second.upsert(["more"], np.ones((1, 2)), [1])
    second.close()
    assert FaissStore(folder).get(["first", "pending", "second", "more"]).ids.tolist() == ["second", "more"]
    first.save(tmp_path / "elsewhere")
    assert FaissStore(tmp_path / "elsewhere").count() == 2


@pytest.mark.skipif(os.name == "nt", reason="Windows removes no folder that is in use")
def test_a_folder_that_is_gone_is_not_made_again(tmp_path: Path) -> None:
    """A flush into a folder that was removed says so, and what is in memory can be saved elsewhere."""
    store = store_in(tmp_path / "store", "first")
    store.upsert(["pending"], np.ones((1, 2)), [1])
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(StoreUnavailableError, match="is gone"):
        store.flush()
    assert not (tmp_path / "store").exists()
    store.save(tmp_path / "elsewhere")
    assert FaissStore(tmp_path / "elsewhere").count() == 2


def test_another_generation_is_not_overwritten(tmp_path: Path) -> None:
    """A folder whose contents were replaced, say by a backup, under a writer is left as it is."""
    store = store_in(tmp_path / "store", "first")
    other = store_in(tmp_path / "other", "other")
    other.close()
    store.upsert(["pending"], np.ones((1, 2)), [1])
    for path in (tmp_path / "other").iterdir():
        if path.name != "LOCK":
            shutil.copy(path, tmp_path / "store" / path.name)
    manifest = tmp_path / "store" / "MANIFEST.json"
    before = manifest.read_bytes()
    with pytest.raises(StoreLockedError, match="newer generation"):
        store.flush()
    assert manifest.read_bytes() == before


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_flush_may_be_repeated_after_an_interruption(
    tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not the new generation came into force, the store goes on."""
    store = store_in(tmp_path, "first")
    store.upsert(["second"], np.ones((1, 2)), [1])
    from clipretrieval.stores.local import folder_write as _folder_write

    write = _folder_write.write_text

    def interrupt(path: Path, content: str, **options: Any) -> None:
        if moment == "after":
            write(path, content, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_folder_write, "write_text", interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.flush()
    assert FaissStore(tmp_path, read_only=True).count() == (2 if moment == "after" else 1)
    store.upsert(["third"], np.ones((1, 2)), [1])
    store.close()
    assert FaissStore(tmp_path, read_only=True).count() == 3


KILLED = """
import os, signal, sys
import numpy as np
from clipretrieval.stores import MemoryStore
from clipretrieval.stores.local import folder_write as _folder_write

store = MemoryStore()
store.upsert(["a"], np.ones((1, 2)), [1])
_folder_write.write_text = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
store.save(sys.argv[1])
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_what_a_killed_save_left_goes_with_the_next(tmp_path: Path) -> None:
    """An unfinished copy is removed by the next save of the same name, and nothing else is."""
    assert run(KILLED, tmp_path / "copy").returncode == -signal.SIGKILL
    assert run(KILLED, tmp_path / "other").returncode == -signal.SIGKILL
    (tmp_path / ".copy.mine.tmp").mkdir()
    assert len(list(tmp_path.iterdir())) == 3
    store = MemoryStore()
    store.upsert(["b"], np.ones((1, 2)), [1])
    store.save(tmp_path / "copy")
    left = {path.name for path in tmp_path.iterdir()}
    assert {"copy", ".copy.mine.tmp"} < left
    assert [name[:7] for name in left - {"copy", ".copy.mine.tmp"}] == [".other."]
    assert MemoryStore.load(tmp_path / "copy").get(["b"]).labels.tolist() == [1]


def test_two_saves_into_one_folder_leave_each_other_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that another thread is still writing is not taken for an abandoned one."""
    from clipretrieval.stores.local import folder_write as _folder_write

    write, writing, go_on = _folder_write.write_text, threading.Event(), threading.Event()

    def slow(path: Path, content: str, **options: Any) -> None:
        if not writing.is_set():
            writing.set()
            go_on.wait(60)
        write(path, content, **options)

    monkeypatch.setattr(_folder_write, "write_text", slow)
    failed: list[BaseException] = []
    store = MemoryStore()

    def save() -> None:
        try:
            store.save(tmp_path / "copy")
        except StoreUnavailableError as error:  # the other copy is there first
            failed.append(error)

    thread = threading.Thread(target=save)
    thread.start()
    assert writing.wait(30)
    (unfinished,) = tmp_path.glob(".copy.*")
    store.save(tmp_path / "copy")
    assert unfinished.exists()
    go_on.set()
    thread.join(30)
    assert [type(error) for error in failed] == [StoreUnavailableError]
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


@pytest.mark.parametrize("kind", [MemoryStore, FaissStore])
@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))]
)
def test_a_copy_shares_nothing(kind: Any, duplicate: Callable[[Any], Any]) -> None:
    """What is written to a copy, of whatever kind, is not in the original, nor the reverse."""
    store = kind()
    store.upsert(["a", "b"], np.eye(2), ["x", "y"])
    twin = duplicate(store)
    twin.upsert(["a", "c"], np.zeros((2, 2)), ["z", "z"])
    store.delete(["b"])
    assert (store.count(), twin.count()) == (1, 3)
    assert store.get(["a"]).vectors.tolist() == [[1, 0]]
    assert store.search(np.eye(2)[1:], 2).ids.tolist() == [["a", ""]]
    assert twin.get(["a", "b", "c"]).labels.tolist() == ["z", "y", "z"]


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_copy_waits_for_writers(duplicate: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written between the beginning and the end of a copy."""
    store = MemoryStore()
    store.upsert(["a"], np.ones((1, 2)), [1])
    lock, seen = store._guard.lock, []

    def note(self: RecordTable, memo: dict[int, Any]) -> RecordTable:
        seen.append(lock._holders)
        return RecordTable()

    monkeypatch.setattr(RecordTable, "__deepcopy__", note, raising=False)
    duplicate(store)
    assert seen == [1]


def test_a_folder_is_held_for_a_block_and_free_again_where_nothing_was_written(tmp_path: Path) -> None:
    """Inside the block another writer is refused and what others flushed before is there; behind it not."""
    store_in(tmp_path / "data", "a").close()
    with FaissStore(tmp_path / "data") as first, FaissStore(tmp_path / "data") as second:
        second.upsert(["b"], np.zeros((1, 2)), [2])
        with pytest.raises(StoreLockedError), first.exclusive():
            pass
        second.close()
        assert first.count() == 1
        with first.exclusive(), first.exclusive():
            assert first.count() == 2
            with FaissStore(tmp_path / "data") as third, pytest.raises(StoreLockedError):
                third.delete(["a"])
        store_in(tmp_path / "data", "c").close()
        with first.exclusive():
            assert first.delete(["c"]) == 1
        with FaissStore(tmp_path / "data") as third, pytest.raises(StoreLockedError):
            third.delete(["a"])


def test_what_may_not_be_written_is_not_held(tmp_path: Path) -> None:
    """A read-only or closed store refuses, one in memory is its own, a loaded copy keeps its folder."""
    store_in(tmp_path / "data", "a").close()
    with FaissStore(tmp_path / "data", read_only=True) as reading:
        with pytest.raises(UnsupportedOperationError, match="read-only"), reading.exclusive():
            pass
        reading.leave_when_written()
        with reading.exclusive():
            assert reading.location() is not None
    with pytest.raises(StoreError, match="closed"), reading.exclusive():
        pass
    memory = FaissStore()
    with memory.exclusive():
        memory.upsert(["a"], np.ones((1, 2)), [1])
    assert memory.count() == 1
