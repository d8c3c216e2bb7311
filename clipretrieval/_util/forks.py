"""What a forked process makes anew: it has its parent's memory, and none of its parent's other threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol
from weakref import WeakSet

__all__ = ["ForkLock", "LibraryThreads", "after_fork", "no_inherited_threads", "renew_after_fork"]


class Renewed(Protocol):
    """What is told, in a forked process, that it is a copy there."""

    def _after_fork(self) -> None:
        """Forget what the parent's threads hold; no other thread runs yet."""


_living: WeakSet[Renewed] = WeakSet()
_forking_thread: int | None = None
"""The thread that a forked process began with, by its identifier; None in a process that was not forked."""


def after_fork(renew: Callable[[], object]) -> None:
    """Have a function called at the beginning of every process that is forked from this one."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=renew)


def renew_after_fork(each: Renewed) -> None:
    """Have an object's `_after_fork` called in every process that is forked while it lives."""
    _living.add(each)


@contextmanager
def no_inherited_threads(threads: Callable[[], int], set_threads: Callable[[int], object]) -> Iterator[None]:
    """Have a library compute in the calling thread alone where its others stayed behind at a fork.

    GNU's OpenMP keeps a pool for each thread that it computes in, and a forked process's first thread would
    wait forever for the pool that its parent's had. Threads that the process begins have pools of their own.
    """
    before = threads() if threading.get_ident() == _forking_thread else 1
    if before == 1:
        yield
        return
    set_threads(1)
    try:
        yield
    finally:
        set_threads(before)


class ForkLock:
    """A lock that is free in a forked process, which lacks the thread that held it.

    Attributes
    ----------
    current : threading.Lock
        The one of this process, to be looked up whenever it is taken.
    """

    def __init__(self) -> None:
        self._after_fork()
        renew_after_fork(self)

    def _after_fork(self) -> None:
        self.current = threading.Lock()


class LibraryThreads:
    """The threads of a library, which serve the process that began them and none that is forked from it."""

    def __init__(self) -> None:
        self._process: int | None = None

    def are_here(self) -> bool:
        """Tell whether this process has them; it begins them where none has."""
        if self._process is None:
            self._process = os.getpid()
        return self._process == os.getpid()


def _renew_living() -> None:
    global _forking_thread
    _forking_thread = threading.get_ident()
    for each in list(_living):
        each._after_fork()


after_fork(_renew_living)
