"""Ctrl-C: one line and status 130, at whatever moment it comes.

Nothing is at stake until a command begins its work, and libraries that are interrupted while they are
imported fail in ways of their own, or go on; so the process ends at once. Inside `interruptible`
KeyboardInterrupt is raised, so that what was begun is stored and closed, and waits for the end of imports.
"""

from __future__ import annotations

import _thread
import gc
import importlib
import os
import signal
import sys
import threading

TYPE_CHECKING = False  # as type checkers know it; typing would hold up what takes Ctrl-C over
if TYPE_CHECKING:
    from typing import Any

__all__ = ["INTERRUPTED", "install", "interruptible", "was_interrupted"]

INTERRUPTED = 130
_LATER_S = 0.05
_seen = False


def install() -> None:
    """Take Ctrl-C over, unless the process was started without it, as a job in the background."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        try:
            signal.signal(signal.SIGINT, _leave)
        except ValueError:  # not in the main thread, which alone is interrupted
            return


class interruptible:  # noqa: N801  used as a function, without contextlib's import
    """Import what takes long, and then have Ctrl-C raise KeyboardInterrupt in the block.

    Parameters
    ----------
    *modules : str
        Of the package, what the block will use of it; all that encodes and classifies where none is given.
    """

    def __init__(self, *modules: str) -> None:
        self._modules = modules or ("classifier", "encoding.staged_encoder")

    def __enter__(self) -> None:
        _import_all(self._modules)
        self._taken_over = signal.getsignal(signal.SIGINT) is _leave
        if self._taken_over:
            signal.signal(signal.SIGINT, _raise)

    def __exit__(self, *_: object) -> None:
        if self._taken_over:
            signal.signal(signal.SIGINT, _leave)


def _import_all(names: tuple[str, ...]) -> None:
    """Import modules of the package, and keep them out of the garbage collection.

    Libraries make a million objects that stay until the end. Looking through them for garbage, again and
    again and once more at the end, would take a third of the time in which a command starts and ends.
    """
    modules = [f"clipretrieval.{name}" for name in names]
    if all(module in sys.modules for module in modules):
        return
    collects = gc.isenabled()
    gc.disable()
    try:
        for module in modules:
            importlib.import_module(module)
        gc.freeze()
    finally:
        if collects:
            gc.enable()


def was_interrupted() -> bool:
    """Tell whether Ctrl-C was pressed: a library may have made another exception of it."""
    return _seen


def _leave(*_: Any) -> None:
    try:
        os.write(2, b"interrupted\n")
    finally:
        os._exit(INTERRUPTED)


def _raise(_: int, frame: Any) -> None:
    """Raise KeyboardInterrupt, once an import that is under way is over."""
    global _seen
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            later = threading.Timer(_LATER_S, _thread.interrupt_main)
            later.daemon = True
            later.start()
            return
        frame = frame.f_back
    _seen = True
    sys.unraisablehook = lambda _: None  # where it is raised in a destructor, nobody can catch it
    raise KeyboardInterrupt
