"""What Chroma raises, translated: embedded and over HTTP it raises different things for the same fault."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
from chromadb.errors import (
    AuthorizationError,
    ChromaAuthError,
    InvalidDimensionException,
    NotFoundError,
    RateLimitError,
)

from clipretrieval._util.files import REMEDY, too_many_open
from clipretrieval.errors import (
    ClipRetrievalError,
    DimensionMismatchError,
    StoreCorruptedError,
    StoreError,
    StoreLockedError,
    StoreUnavailableError,
)

__all__ = ["translated"]

# SQLite's result codes, as Chroma spells them in its messages.
DAMAGED = ("(code: 11)", "(code: 26)", "database disk image is malformed")
BUSY = ("(code: 5)", "(code: 6)", "database is locked")
TOO_MANY_OPEN = "Too many open files"
# More than Chroma opens to start, and SQLite for one statement.
FEW = 16
WITHHELD = ("(code: 8)", "(code: 10)", "(code: 13)", "(code: 14)", "(os error ")


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Turn whatever Chroma raises inside the block into an error of this library.

    Parameters
    ----------
    where : str
        The store in words, for the message.
    """
    try:
        yield
    except ClipRetrievalError:
        raise
    except Exception as error:  # an answer that is not of Chroma's own making is a bare Exception
        raise _translation(error, where) from error
    except BaseException as error:
        # A panic of Chroma's Rust code is no Exception, and its class cannot be imported.
        if type(error).__name__ != "PanicException":
            raise
        if _at_limit(str(error)):
            raise _exhausted(where, str(error)) from error
        raise StoreCorruptedError(
            f"Chroma broke down at {where}: {error}. Open it again; if that fails too, restore a copy"
        ) from error


def _translation(error: Exception, where: str) -> ClipRetrievalError:
    text = str(error) or type(error).__name__
    if isinstance(error, httpx.TransportError) or "Could not connect to" in text:
        return StoreUnavailableError(
            f"{where} cannot be reached ({text}): start the server, or check host and port"
        )
    if isinstance(error, NotFoundError):
        return StoreUnavailableError(f"{where} is gone: {text}. Something deleted it; open the store anew")
    if isinstance(error, (ChromaAuthError, AuthorizationError)):
        return StoreUnavailableError(f"{where} refused this client: give one with credentials as client=")
    if isinstance(error, RateLimitError):
        return StoreUnavailableError(f"{where} is overloaded ({text}): try again later")
    if isinstance(error, InvalidDimensionException) or "expecting embedding with dimension" in text:
        return DimensionMismatchError(f"{where} refused the vectors: {text}")
    if any(mark in text for mark in DAMAGED):
        return StoreCorruptedError(f"{where} is damaged: {text}. Restore it from a copy, or fill a new one")
    if any(mark in text for mark in BUSY):
        return StoreLockedError(f"another program holds {where}: {text}. Close it there first")
    if _at_limit(text):
        return _exhausted(where, text)
    if any(mark in text for mark in WITHHELD):
        return StoreUnavailableError(
            f"{where} cannot be read or written: {text}. Check its permissions and the free space"
        )
    return StoreError(f"Chroma failed at {where}: {type(error).__name__}: {text}")


def _at_limit(text: str) -> bool:
    """Tell whether too many open files are the reason: Chroma does not say why SQLite fails to open one."""
    return TOO_MANY_OPEN in text or _few_left()


def _few_left() -> bool:
    """Tell whether nearly as many files are open as may be."""
    with ExitStack() as opened:
        try:
            for _ in range(FEW):
                opened.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            return too_many_open(error)
    return False


def _exhausted(where: str, text: str) -> StoreUnavailableError:
    return StoreUnavailableError(
        f"{where} cannot be opened or read: {text}. Perhaps too many files are open: {REMEDY}"
    )
