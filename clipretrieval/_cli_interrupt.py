"""Ctrl-C: one line and status 130, at whatever moment it comes.

Nothing is at stake until a command begins its work, and libraries that are interrupted while they are
imported fail in ways of their own; so the process ends at once. Inside `interruptible` KeyboardInterrupt is
raised, so that what was begun is stored and closed.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

__all__ = ["INTERRUPTED", "install", "interruptible", "was_interrupted"]

INTERRUPTED = 130
_seen = False


def install() -> None:
    """Take Ctrl-C over, unless the process was started without it, as a job in the background."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        with suppress(ValueError):  # not in the main thread, which alone is interrupted
            signal.signal(signal.SIGINT, _leave)


@contextmanager
def interruptible() -> Iterator[None]:
    """Import what takes long, and then have Ctrl-C raise KeyboardInterrupt in the block."""
    for module in ("classifier", "encoding.staged"):
        importlib.import_module(f"clipretrieval.{module}")
    if signal.getsignal(signal.SIGINT) is not _leave:
        yield
        return
    signal.signal(signal.SIGINT, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, _leave)


def was_interrupted() -> bool:
    """Tell whether Ctrl-C was pressed: a library may have made another exception of it."""
    return _seen


def _leave(*_: Any) -> None:
    with suppress(OSError):
        os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


def _raise(*_: Any) -> None:
    global _seen
    _seen = True
    sys.unraisablehook = lambda _: None  # where it is raised in a destructor, nobody can catch it
    raise KeyboardInterrupt
