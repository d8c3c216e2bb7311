"""The content of regular files alone: no device, pipe or folder is ever read."""

from __future__ import annotations

import os
import stat

from clipretrieval.errors import InvalidInputError

__all__ = ["read_regular_file"]


def read_regular_file(path: str | os.PathLike[str]) -> bytes:
    """Return what a file holds.

    Raises
    ------
    InvalidInputError
        If it is something else than a regular file, or a link to one.
    OSError
        If it cannot be read.
    """
    with open(path, "rb", opener=_open_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise InvalidInputError("it is not a regular file")
        return file.read()


def _open_without_waiting(path: str, flags: int) -> int:
    # A FIFO would otherwise hold the opener until somebody writes to it.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
