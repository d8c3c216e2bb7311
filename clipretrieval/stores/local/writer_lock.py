"""The lock that keeps a second writer out of a store's folder."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from clipretrieval._util.files import remedy
from clipretrieval.errors import StoreLockedError, StoreUnavailableError

__all__ = ["LOCK_NAME", "WriterLock", "require_plain"]

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
        self._process = os.getpid()
        self._file: tuple[int, int] | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._lock.is_locked

    @property
    def inherited(self) -> bool:
        """Whether it is a copy in a forked process, of a lock that is the parent's."""
        return self._process != os.getpid()

    def check(self) -> None:
        """Make sure that what is locked is still what lies in the folder.

        Raises
        ------
        StoreLockedError
            If the lock is that of the process from which this one was forked, or the folder was made anew,
            where another writer may hold it.
        StoreUnavailableError
            If the folder is gone.
        """
        if self.inherited:
            raise StoreLockedError(
                f"the process that this one was forked from writes to the store in {self._folder}; open the "
                "folder anew here, with read_only=True while that process has it open"
            )
        try:
            found = _identity(self._folder / LOCK_NAME)
        except OSError as error:
            raise StoreUnavailableError(
                f"the store in {self._folder} is gone: {error}; save(path) keeps what is in memory elsewhere"
            ) from error
        if found != self._file:
            raise StoreLockedError(
                f"the folder {self._folder} was removed and made again, and is no longer held by this store; "
                "save(path) keeps what is in memory elsewhere"
            )

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
            require_plain(self._folder / LOCK_NAME)
            self._lock.acquire(blocking=False)
            # The file that is open keeps its number to itself.
            self._file = _identity(self._folder / LOCK_NAME)
        except Timeout as error:
            raise StoreLockedError(
                f"another writer holds the store in {self._folder}; close it there first, or open this one "
                "with read_only=True"
            ) from error
        except (OSError, NotImplementedError) as error:
            raise StoreUnavailableError(
                f"the store in {self._folder} cannot be locked for writing: {error}; "
                + remedy(error, "check the folder's permissions, or open it with read_only=True")
            ) from error

    def release(self) -> None:
        """Give the lock back; the file stays. In a forked process, leave it to the parent."""
        if self.inherited:
            return
        with suppress(OSError):
            self._lock.release()


def require_plain(path: Path) -> None:
    """Refuse a link or a pipe in the place of the lock file, which is emptied when it is taken."""
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file; remove it", str(path))


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino
