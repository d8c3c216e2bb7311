"""Threads, files and connections of other libraries, freed once: at the close, or when they are dropped."""

from __future__ import annotations

import ctypes
import itertools
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import TypeAlias

from clipretrieval._util.forks import after_fork
from clipretrieval.errors import StoreError

__all__ = ["Release", "release_of"]

Release: TypeAlias = Callable[[], None]

_held: dict[int, Release] = {}
"""What frees each thing that is still held, by a number of its own."""
_numbers = itertools.count()


def release_of(owner: object, free: Release) -> Release:
    """Return what frees a thing that an object owns; it is freed too when that object is dropped.

    Parameters
    ----------
    owner : object
        Weakly referenced.
    free : callable
        Must not refer to `owner`. The garbage collector may call it in any thread, in the midst of anything:
        it must take no lock that is held while `owner` is in nobody's use.

    Returns
    -------
    callable
        Calls `free` the first time. Does nothing later, and nothing in a process that was forked meanwhile:
        what is held is the parent's.
    """
    number = next(_numbers)
    _held[number] = free

    def release() -> None:
        held = _held.pop(number, None)
        if held is not None:
            held()

    def dropped() -> None:
        with suppress(StoreError):  # nobody is left to be told
            release()

    weakref.finalize(owner, dropped).atexit = False  # the system frees what an ending process holds
    return release


def _forked() -> None:
    """Hold for ever what is the parent's.

    To free it, also at the end of the process, would wait for threads that a forked process does not have.
    """
    for free in _held.values():
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(free))
    _held.clear()


after_fork(_forked)
