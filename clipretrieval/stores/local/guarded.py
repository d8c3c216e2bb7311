"""What guards a local store's contents: against threads, against interruptions, and while it is copied."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar, TypeVar

from clipretrieval._util.forks import renew_after_fork
from clipretrieval.errors import StoreError
from clipretrieval.stores.context import ClosedAtExit
from clipretrieval.stores.local.locks import ReadWriteLock
from clipretrieval.stores.local.undo import Recovery

__all__ = ["Guarded"]

Self = TypeVar("Self", bound="Guarded")


class Guarded(ClosedAtExit):
    """Lets threads read side by side and one write alone, and none see what an interruption left half done.

    A write that changes more than one thing sets `_recovery` before the first of them, and to None after the
    last.
    """

    _own: ClassVar[frozenset[str]] = frozenset({"_lock"})
    """Names of attributes that are not copied: a copy makes its own."""

    def __init__(self) -> None:
        self._renew_locks()
        self._closed = False
        self._recovery: Recovery | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Copied while the lock is held: what pickle does with it later, writers cannot disturb.
        with self._held():
            state = {name: value for name, value in vars(self).items() if name not in self._own}
            return copy.deepcopy(state)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._renew_locks()

    def __copy__(self: Self) -> Self:
        """Return a store with a copy of the contents: two locks could not guard one."""
        new = type(self).__new__(type(self))
        new.__setstate__(self.__getstate__())
        return new

    def __deepcopy__(self: Self, memo: dict[int, Any]) -> Self:
        return self.__copy__()

    def _renew_locks(self) -> None:
        """Make the locks: of a new store, of a copy, and of a forked process.

        That one has none of the threads that held them when it was forked; what they left half done is undone
        as after any other interruption.
        """
        self._lock = ReadWriteLock()
        renew_after_fork(self)

    def _after_fork(self) -> None:
        self._renew_locks()

    def _computing(self) -> AbstractContextManager[None]:
        """Return what surrounds every use of the contents."""
        return nullcontext()

    def _begin_write(self) -> None:
        """Refuse what may not be written; called with the lock held alone, before anything changes."""
        self._require_open()

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Hold the contents as they are, whole; searches go on even where a writer waits."""
        while True:
            with self._lock.hold(), self._computing():
                if self._recovery is None:
                    yield
                    return
            with self._lock.write(), self._computing():
                self._recover()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Hold the lock beside other readers, of a store that is open and whole."""
        while True:
            with self._lock.read(), self._computing():
                if self._recovery is None:
                    self._require_open()
                    yield
                    return
            with self._lock.write(), self._computing():
                self._recover()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the lock alone; where the block is interrupted, either all is changed or nothing."""
        with self._lock.write(), self._computing():
            self._recover()
            self._begin_write()
            try:
                yield
            except BaseException:
                self._recover()
                raise

    def _recover(self) -> None:
        """Make rows and table whole again after an interruption; called with the lock held alone."""
        if self._recovery is not None:
            self._recovery()
            self._recovery = None

    def _require_open(self) -> None:
        if self._closed:
            raise StoreError(f"this {type(self).__name__} is closed; open it anew")
