"""A lock for many readers or one writer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["ReadWriteLock"]


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
