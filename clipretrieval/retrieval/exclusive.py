"""Whose turn it is to change a store: one call at a time in this process, and one writer among processes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from clipretrieval._util.forks import after_fork
from clipretrieval.stores.base import ExclusiveStore, VectorStore

__all__ = ["one_at_a_time", "sole_writer"]


class _Turn:
    """The lock of one object that is being changed, and how many threads have it or wait for it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.users = 0


_guard = threading.Lock()
_turns: dict[int, _Turn] = {}
"""By the id of the object, which lives for as long as somebody changes it: a lock inside an estimator could
not be copied, and a store of a user's own need not have one."""


@contextmanager
def one_at_a_time(changed: Any) -> Iterator[None]:
    """Let one thread at a time go through blocks that change the same object; nested blocks may."""
    with _guard:
        turn = _turns.setdefault(id(changed), _Turn())
        turn.users += 1
    try:
        with turn.lock:
            yield
    finally:
        with _guard:
            turn.users -= 1
            if not turn.users:
                _turns.pop(id(changed), None)


@contextmanager
def sole_writer(store: VectorStore) -> Iterator[None]:
    """Be the only one to change a store, among threads and, where it can keep them out, other processes.

    Whatever is decided by what the store holds must be decided inside the block.

    Raises
    ------
    StoreLockedError
        If another process writes to the store.
    UnsupportedOperationError
        If the store was opened to be read alone.
    """
    with one_at_a_time(store), store.exclusive() if isinstance(store, ExclusiveStore) else nullcontext():
        yield


def _forked() -> None:
    """Forget the turns of threads that a forked process does not have."""
    global _guard
    _guard = threading.Lock()
    _turns.clear()


after_fork(_forked)
