"""A store in memory that keeps itself in a folder."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from clipretrieval._util.checks import check_bool, check_path
from clipretrieval._util.files import reason
from clipretrieval._util.repr import safe_repr
from clipretrieval.errors import (
    FingerprintMismatchError,
    InvalidInputError,
    StoreError,
    StoreLockedError,
    StoreUnavailableError,
    UnsupportedOperationError,
)
from clipretrieval.stores.local.folder import Layout, find_manifest, load
from clipretrieval.stores.local.folder_manifest import FolderManifest
from clipretrieval.stores.local.folder_write import discard_unlisted, save_copy, write_generation
from clipretrieval.stores.local.store import LocalStore
from clipretrieval.stores.local.writer_lock import WriterLock
from clipretrieval.types import Metric

__all__ = ["FolderStore"]

Self = TypeVar("Self", bound="FolderStore")


class FolderStore(LocalStore):
    """Reads a folder when it is opened, and puts a complete new generation there at each flush.

    Subclasses say how the vectors lie in it (`_layout`), and open it at the end of their constructor.
    """

    _own = LocalStore._own | {"_flushing"}

    def __init__(
        self, path: str | Path | None, metric: Metric | str, read_only: bool, create: bool = True
    ) -> None:
        super().__init__(metric)
        create = check_bool(create, "create")
        if path is None and not create:
            raise InvalidInputError("create=False needs a path; a store in memory starts empty")
        if path is None and read_only:
            raise InvalidInputError("read_only needs a path; a store in memory starts empty")
        self._path = None if path is None else check_path(path, "path").absolute()
        self._read_only = read_only
        self._may_create = create and not read_only
        self._leaves_when_written = False
        self._loaded: FolderManifest | None = None
        self._writer: WriterLock | None = None

    def flush(self) -> None:
        """Put everything written so far durably into the folder; without a path, nothing.

        Raises
        ------
        StoreLockedError
            If the folder was meanwhile made anew or written by another, or this process was forked from the
            writer.
        StoreUnavailableError
            If it cannot be written, or not be synced to the disk; the message says which. What was flushed
            before is intact and the changes stay in memory: free some space and flush again.
        """
        with self._flushing:
            self._prepare()
            with self._held():
                self._require_open()
                self._write_out()

    def refresh(self) -> bool:
        """Take up what another store has flushed into the folder since this one read it.

        The new generation is read beside searches of the old one, and takes its place at one moment. A store
        that writes to the folder, or is in memory, has nothing to take up.

        Returns
        -------
        bool
            Whether there was a newer generation.

        Raises
        ------
        StoreCorruptedError
            If a file in the folder is missing or damaged. Here as below, what was read before stays.
        FingerprintMismatchError
            If the folder was meanwhile made anew with another metric.
        StoreUnavailableError
            If the folder cannot be read any more, or is gone.
        """
        with self._flushing:
            self._require_open()
            before, path = self._loaded, self._path
            if path is None or self._is_ahead() or find_manifest(path) == before:
                return False
            newest = self._opened_anew(path)
            with self._lock.write():
                self._require_open()
                if self._is_ahead():  # this store's first write has read the folder meanwhile
                    return self._loaded != before
                self._take_over(newest)
                return True

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other writers out of the folder for a block that begins with what they have flushed.

        What is written in the block keeps them out until the store is closed, as any write does.

        Raises
        ------
        StoreLockedError
            If another writer holds the folder.
        UnsupportedOperationError
            If the store is read-only.
        StoreUnavailableError
            If the folder cannot be written to.
        """
        if self._path is None or self._leaves_when_written:  # its contents are this store's alone
            self._require_open()
            yield
            return
        held = self._writer
        with self._writing():
            before = self._loaded
        try:
            yield
        finally:
            with self._lock.write():
                writer, written = self._writer, self._changed or self._loaded is not before
                if writer is not None and writer is not held and not written:
                    writer.release()
                    self._writer = None

    def leave_when_written(self) -> None:
        """Go on in memory from the first write on, and leave the folder as it is."""
        self._leaves_when_written = True

    def save(self, path: str | Path) -> None:
        """Write a complete copy into the folder `path`, atomically; into its own folder, `flush`.

        Parameters
        ----------
        path : str or Path
            A new or empty folder, or one whose store the copy replaces.

        Raises
        ------
        InvalidInputError
            If the folder holds something else, or is the current folder and empty.
        StoreError
            If the copy cannot be written, in which case what was there before is intact, or not be synced to
            the disk; the message says which.
        """
        target = check_path(path, "path").absolute()
        if self._path is not None and target.resolve() == self._path.resolve():
            self.flush()
            return
        self._prepare()
        with self._held():
            self._require_open()
            save_copy(target, self._layout(), self._snapshot())

    def location(self) -> dict[str, Any] | None:
        """Return the options that open the same folder elsewhere; None in memory."""
        return None if self._path is None else {"path": str(self._path), "metric": str(self._metric)}

    @safe_repr
    def __repr__(self) -> str:
        where = "" if self._path is None else f", path={str(self._path)!r}"
        mode = ", read_only=True" if self._read_only else ""
        return f"{super().__repr__()[:-1]}{where}{mode})"

    def __getstate__(self) -> dict[str, Any]:
        if self._path is not None:
            raise UnsupportedOperationError(
                f"the store in {self._path} cannot be pickled or copied: open its folder again instead, with "
                f"{type(self).__name__}(**store.location(), read_only=True)"
            )
        return super().__getstate__()

    def _renew_locks(self) -> None:
        super()._renew_locks()
        # One reading or writing of the folder at a time; searches do not wait for it.
        self._flushing = threading.Lock()

    def _layout(self) -> Layout:
        """Return how the vectors lie in the folder."""
        raise NotImplementedError

    def _is_ahead(self) -> bool:
        """Tell whether this store, not the folder, has the newest contents."""
        return self._writer is not None or self._changed

    def _opened_anew(self: Self, path: Path) -> Self:
        """Return another store that reads the folder."""
        raise NotImplementedError

    def _take_over(self: Self, newest: Self) -> None:
        """Hold what another store has read; called with the lock held alone."""
        self._dim, self._table, self._rows = newest._dim, newest._table, newest._rows
        self._manifest, self._loaded = newest._manifest, newest._loaded

    def _prepare(self) -> None:
        """Do what is due before a generation or a copy is written; called without the lock."""

    def _open(self) -> None:
        """Read the folder, or make it."""
        if self._path is None:
            return
        if find_manifest(self._path) is not None:
            self._reload(self._path)
            if self._changed:  # already it is to be other than it was read
                self._begin_write()
        elif not self._may_create:
            raise StoreUnavailableError(
                f"there is no store in {self._path}; check the path, or open it to write"
            )
        else:
            self._create(self._path)

    def _create(self, path: Path) -> None:
        """Make the folder, held for writing, with the manifest of an empty store."""
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreUnavailableError(f"the folder {path} cannot be made: {error}") from error
        lock = WriterLock(path)
        lock.acquire()
        try:
            if find_manifest(path) is None:
                self._loaded = write_generation(path, self._layout(), self._snapshot(), None)
            else:  # another writer made it in between
                self._reload(path)
        except BaseException:
            lock.release()
            raise
        self._writer = lock

    def _reload(self, path: Path) -> None:
        manifest, snapshot = load(path, self._layout())
        if snapshot.metric is not self._metric:
            held, asked = str(snapshot.metric), str(self._metric)
            raise FingerprintMismatchError(
                f"the store in {path} was made with metric {held!r}; found metric={asked!r}. "
                f"Open it with metric={held!r}, or fill a new folder"
            )
        self._adopt(snapshot)
        self._loaded = manifest

    def _begin_write(self) -> None:
        super()._begin_write()
        if self._leaves_when_written:
            self._path, self._read_only, self._leaves_when_written = None, False, False
        if self._read_only:
            raise UnsupportedOperationError(f"{self!r} is read-only; open it with read_only=False to write")
        if self._writer is not None:
            self._writer.check()
        if self._path is None or self._writer is not None:
            return
        lock = WriterLock(self._path)
        lock.acquire()
        try:
            if find_manifest(self._path) != self._loaded:  # another writer came and went since it was read
                self._reload(self._path)
            discard_unlisted(self._path)
        except OSError as error:
            lock.release()
            raise StoreUnavailableError(
                f"the store in {self._path} cannot be written: {reason(error)}"
            ) from error
        except BaseException:
            lock.release()
            raise
        self._writer = lock

    def _write_out(self) -> None:
        if self._path is None or not self._changed:
            return
        if self._writer is not None:
            self._writer.check()
        before = self._loaded
        if find_manifest(self._path) != before:
            raise StoreLockedError(
                f"another writer has put a newer generation into {self._path}, which this store would "
                "overwrite; save(path) keeps what is in memory elsewhere"
            )
        try:
            self._loaded = write_generation(self._path, self._layout(), self._snapshot(), before)
        except BaseException:
            with suppress(StoreError):  # interrupted after the new generation came into force
                self._loaded = find_manifest(self._path) or before
            raise
        self._changed = False

    def _finish(self) -> None:
        writer = self._writer
        if writer is None or not writer.inherited:  # what a forked process holds is its parent's to write
            self._write_out()
        if writer is not None:
            writer.release()
            self._writer = None
