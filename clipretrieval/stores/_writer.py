"""The lock that keeps a second writer out of a store's folder."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from clipretrieval.errors import StoreLockedError, StoreUnavailableError

__all__ = ["LOCK_NAME", "WriterLock"]

LOCK_NAME = "LOCK"


class WriterLock:
    """Held by one store at a time on this machine; the system frees it when its process ends.

    Parameters
    ----------
    folder : Path
        Where the lock file lies.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # Any thread may close the store, not only the one that wrote first.
        self._lock = FileLock(folder / LOCK_NAME, timeout=0, thread_local=False)

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._lock.is_locked

    def acquire(self) -> None:
        """Take the lock at once or not at all.

        Raises
        ------
        StoreLockedError
            If another writer holds it.
        StoreUnavailableError
            If the folder cannot be written to or its file system has no locks.
        """
        try:
            self._lock.acquire(blocking=False)
        except Timeout as error:
            raise StoreLockedError(
                f"another writer holds the store in {self._folder}; close it there first, or open this one "
                "with read_only=True"
            ) from error
        except (OSError, NotImplementedError) as error:
            raise StoreUnavailableError(
                f"the store in {self._folder} cannot be locked for writing: {error}; check the folder's "
                "permissions, or open it with read_only=True"
            ) from error

    def release(self) -> None:
        """Give the lock back; the file stays."""
        with suppress(OSError):
            self._lock.release()
