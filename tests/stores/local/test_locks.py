"""The lock of the local stores is fair, and searches go on beside what takes long."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from clipretrieval.stores import FaissStore, MemoryStore
from clipretrieval.stores.local.locks import ReadWriteLock


def started(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def wait_until(ready: Callable[[], bool]) -> None:
    given_up = threading.Event()
    for _ in range(3000):
        if ready():
            return
        given_up.wait(0.01)
    raise AssertionError("waited 30 seconds")


def test_waiting_readers_go_before_the_next_writer() -> None:
    """When a writer leaves, readers who wait go in, though another writer was there before them."""
    lock, order = ReadWriteLock(), []

    def enter(name: str, way: Callable[[], Any]) -> None:
        with way():
            order.append(name)

    with lock.write():
        threads = [started(lambda: enter("writer", lock.write))]
        wait_until(lambda: lock._writers_waiting == 1)
        threads += [started(lambda: enter("reader", lock.read)) for _ in range(3)]
        wait_until(lambda: lock._readers_waiting == 3)
    for thread in threads:
        thread.join(30)
    assert order == ["reader"] * 3 + ["writer"]


def test_a_waiting_writer_holds_back_new_readers() -> None:
    """Readers who come after a waiting writer go after it, so that searches cannot starve it."""
    lock, order = ReadWriteLock(), []

    def enter(name: str, way: Callable[[], Any]) -> None:
        with way():
            order.append(name)

    with lock.read():
        threads = [started(lambda: enter("writer", lock.write))]
        wait_until(lambda: lock._writers_waiting == 1)
        threads.append(started(lambda: enter("reader", lock.read)))
        wait_until(lambda: lock._readers_waiting == 1)
    for thread in threads:
        thread.join(30)
    assert order == ["writer", "reader"]


@pytest.mark.parametrize("kind", [MemoryStore, FaissStore])
def test_searches_do_not_wait_for_a_flush(kind: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a folder is written and a writer waits for it, searches are answered."""
    store = kind()
    store.upsert(["a"], np.ones((1, 2)), [1])
    writing, go_on = threading.Event(), threading.Event()

    def slow(*_: Any) -> None:
        writing.set()
        go_on.wait(60)

    monkeypatch.setattr("clipretrieval._util.files.sync_folder", slow)
    saving = started(lambda: store.save(tmp_path / "copy"))
    assert writing.wait(30)
    adding = started(lambda: store.upsert(["b"], np.zeros((1, 2)), [2]))
    wait_until(lambda: store._guard.lock._writers_waiting == 1)
    found: list[Any] = []
    started(lambda: found.append(store.search(np.ones((1, 2)), 2).ids.tolist())).join(30)
    assert found == [[["a", ""]]]
    go_on.set()
    for thread in (saving, adding):
        thread.join(30)
    assert store.count() == 2
    assert kind.load(tmp_path / "copy").count() == 1
