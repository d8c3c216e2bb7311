"""The limit on open files, which says nothing of the file that could not be opened."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack

__all__ = ["REMEDY", "few_left", "is_limit", "reason", "remedy"]

REMEDY = "close stores and files that this process no longer needs, or allow it more open files (ulimit -n)"
# More than Chroma opens to start, and SQLite for one statement.
FEW = 16


def is_limit(error: BaseException) -> bool:
    """Tell whether a file could not be opened because too many are open, in this process or in all."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)


def reason(error: OSError) -> str:
    """Return what an error of the system says, and what to do about it where it is the limit."""
    text = str(error)
    return f"{text}; {REMEDY}" if is_limit(error) and REMEDY not in text else text


def remedy(error: BaseException, otherwise: str) -> str:
    """Return what to do about a file that could not be opened."""
    return REMEDY if is_limit(error) else otherwise


def few_left() -> bool:
    """Tell whether nearly as many files are open as may be, where a library does not say why it failed."""
    with ExitStack() as opened:
        try:
            for _ in range(FEW):
                opened.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            return is_limit(error)
    return False
