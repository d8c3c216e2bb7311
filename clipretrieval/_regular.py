"""Files that are read whole: regular ones alone, and no larger than expected."""

from __future__ import annotations

import os
import stat
from pathlib import Path

__all__ = ["IrregularFileError", "read_file"]


class IrregularFileError(OSError):
    """What should be a file is a pipe, a device, a socket or a folder, or larger than it can be."""


def read_file(path: str | Path, most: int) -> bytes:
    """Return a file's content.

    Parameters
    ----------
    path : str or Path
        A link is followed.
    most : int
        Bytes.

    Raises
    ------
    IrregularFileError
        If it is a pipe, a device or a folder, which may never end, or is larger.
    OSError
        If it cannot be read.
    """
    # Opening a pipe without O_NONBLOCK waits for its writer.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0))
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise IrregularFileError("it is not a regular file")
        if found.st_size > most:
            raise IrregularFileError(f"it has {found.st_size} bytes, where {most} are the most there can be")
        content = file.read(most + 1)
    if len(content) > most:
        raise IrregularFileError(f"it has more than {most} bytes")
    return content
