"""The stack on which a thread handles signals, which a library may exchange."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["SignalStack", "keeping_signal_stack"]


class SignalStack(ctypes.Structure):
    """Linux's ``stack_t``; see sigaltstack(2)."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))

    @classmethod
    def current(cls) -> SignalStack:
        """Return that of the calling thread."""
        found = cls()
        ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found))
        return found


@contextmanager
def keeping_signal_stack() -> Iterator[None]:
    """Give the calling thread back the stack for signals that it had before the block; on Linux alone.

    One that is too small for the processor's registers is refused by the kernel, and not given back.
    """
    if sys.platform != "linux":
        yield
        return
    before = SignalStack.current()
    try:
        yield
    finally:
        ctypes.CDLL(None).sigaltstack(ctypes.byref(before), None)
