"""What guards a local store's contents: against threads, and against what interruptions leave half done."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeAlias

from clipretrieval._util.forks import renew_after_fork

__all__ = ["Guard", "ReadWriteLock", "Recovery"]

Recovery: TypeAlias = Callable[[], None]
"""Makes contents whole again. It may itself be interrupted, and is then called once more."""


class ReadWriteLock:
    """Lets readers in side by side and a writer in alone; neither can starve the other.

    A waiting writer holds back new readers, and when a writer leaves, the readers that wait go in before the
    next. What takes long beside readers, such as writing to a disk, takes `hold`: a writer waits for it, but
    meanwhile holds nobody back. None may be taken again by a thread that has it.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers = 0
        self._holders = 0
        self._writing = False
        self._readers_waiting = 0
        self._writers_waiting = 0
        # Readers whose turn has come and who are not in yet, and how often that has happened.
        self._admitted = 0
        self._turn = 0

    @contextmanager
    def read(self) -> Iterator[None]:
        """Hold the lock together with other readers."""
        reading = False
        try:
            with self._changed:
                self._wait_to_read()
                self._readers += 1
                reading = True
            yield
        finally:
            if reading:
                with self._changed:
                    self._readers -= 1
                    self._changed.notify_all()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the lock together with readers, new ones too, where it may take long."""
        holding = False
        try:
            with self._changed:
                self._wait_to_read()
                self._holders += 1
                holding = True
                self._changed.notify_all()
            yield
        finally:
            if holding:
                with self._changed:
                    self._holders -= 1
                    self._changed.notify_all()

    @contextmanager
    def write(self) -> Iterator[None]:
        """Hold the lock alone."""
        writing = False
        try:
            with self._changed:
                self._writers_waiting += 1
                try:
                    self._changed.wait_for(self._may_write)
                    self._writing = writing = True
                finally:
                    self._writers_waiting -= 1
                    self._changed.notify_all()
            yield
        finally:
            if writing:
                with self._changed:
                    self._writing = False
                    self._admitted = self._readers_waiting
                    self._turn += 1
                    self._changed.notify_all()

    def _may_write(self) -> bool:
        return not (self._writing or self._readers or self._holders or self._admitted)

    def _wait_to_read(self) -> None:
        arrived = self._turn
        self._readers_waiting += 1
        try:
            self._changed.wait_for(lambda: self._may_read(arrived))
        finally:
            self._readers_waiting -= 1
            if self._turn != arrived:
                self._admitted -= 1
                self._changed.notify_all()

    def _may_read(self, arrived: int) -> bool:
        if self._writing:
            return False
        return not self._writers_waiting or self._turn != arrived or self._holders > 0


class Guard:
    """Lets threads read side by side and one write alone, and none see what an interruption left half done.

    Parameters
    ----------
    computing : callable
        Returns what surrounds every use of the contents.

    Attributes
    ----------
    lock : ReadWriteLock
    recovery : Recovery or None
        Set by a write that changes more than one thing before the first of them, and to None after the last.
    """

    def __init__(self, computing: Callable[[], AbstractContextManager[None]]) -> None:
        self._computing = computing
        self.recovery: Recovery | None = None
        self._after_fork()
        renew_after_fork(self)

    def _after_fork(self) -> None:
        # A forked process has none of the threads that held the lock. What they left half done is undone as
        # after any other interruption.
        self.lock = ReadWriteLock()

    def read(self) -> AbstractContextManager[None]:
        """Hold the contents, whole, beside other readers."""
        return self._whole(self.lock.read)

    def hold(self) -> AbstractContextManager[None]:
        """Hold the contents as they are, whole; searches go on even where a writer waits."""
        return self._whole(self.lock.hold)

    @contextmanager
    def _whole(self, entered: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
        while True:
            with entered(), self._computing():
                if self.recovery is None:
                    yield
                    return
            with self.lock.write(), self._computing():
                self._recover()

    @contextmanager
    def write(self) -> Iterator[None]:
        """Hold the contents alone; where the block is interrupted, either all is changed or nothing."""
        with self.lock.write(), self._computing():
            self._recover()
            try:
                yield
            except BaseException:
                self._recover()
                raise

    def _recover(self) -> None:
        if self.recovery is not None:
            self.recovery()
            self.recovery = None
