"""A folder that a store is opened from and flushed to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from clipretrieval._util.files import reason
from clipretrieval._util.forks import renew_after_fork
from clipretrieval.errors import (
    FingerprintMismatchError,
    StoreError,
    StoreLockedError,
    StoreUnavailableError,
)
from clipretrieval.stores.local.folder import Layout, Snapshot, find_manifest, read_generation
from clipretrieval.stores.local.folder_manifest import FolderManifest
from clipretrieval.stores.local.folder_write import discard_unlisted, write_generation
from clipretrieval.stores.local.writer_lock import WriterLock
from clipretrieval.types import Metric

__all__ = ["StoreFolder"]


class StoreFolder:
    """What a store knows of its folder: which generation it has read or written, and whether it may write.

    It does not hold the store, which is freed as soon as nobody else does: what is read is handed to a
    function that has the store adopt it.

    Parameters
    ----------
    path : Path
    layout : Layout
    metric : Metric
        The store's, which has to be the folder's.
    read_only : bool

    Attributes
    ----------
    left_when_written : bool
        Whether the store goes on in memory from its first write on.
    loaded : FolderManifest or None
        That of the generation which the store holds, but for its own changes.
    spoiled : frozenset of str
        The files of its blobs that are not as they were written.
    writer : WriterLock or None
        Held from the store's first write until it is closed.
    flushing : threading.Lock
        For one reading or writing of the folder at a time; searches do not wait for it.
    """

    def __init__(self, path: Path, layout: Layout, metric: Metric, *, read_only: bool) -> None:
        self.path, self.read_only = path, read_only
        self._layout, self._metric = layout, metric
        self.left_when_written = False
        self.loaded: FolderManifest | None = None
        self.spoiled: frozenset[str] = frozenset()
        self.writer: WriterLock | None = None
        self._after_fork()
        renew_after_fork(self)

    def _after_fork(self) -> None:
        self.flushing = threading.Lock()

    def open(self, empty: Snapshot, adopt: Callable[[Snapshot], None], *, create: bool) -> None:
        """Read the store, or make one of the `empty` snapshot and hold it for writing."""
        if find_manifest(self.path) is not None:
            self._read(adopt)
            return
        if not create:
            raise StoreUnavailableError(
                f"there is no store in {self.path}; check the path, or open it to write"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreUnavailableError(f"the folder {self.path} cannot be made: {error}") from error
        lock = WriterLock(self.path)
        lock.acquire()
        try:
            if find_manifest(self.path) is None:
                self.loaded = write_generation(self.path, self._layout, empty, None)
            else:  # another writer made it in between
                self._read(adopt)
        except BaseException:
            lock.release()
            raise
        self.writer = lock

    def _read(self, adopt: Callable[[Snapshot], None]) -> None:
        manifest, snapshot = read_generation(self.path, self._layout)
        if snapshot.metric is not self._metric:
            held, asked = str(snapshot.metric), str(self._metric)
            raise FingerprintMismatchError(
                f"the store in {self.path} was made with metric {held!r}; found metric={asked!r}. "
                f"Open it with metric={held!r}, or fill a new folder"
            )
        adopt(snapshot)
        self.loaded, self.spoiled = manifest, _spoiled(manifest, snapshot)

    def hold(self, adopt: Callable[[Snapshot], None]) -> None:
        """Keep other writers out until `release`, and take up what they have flushed before."""
        if self.writer is not None:
            self.writer.check()
            return
        lock = WriterLock(self.path)
        lock.acquire()
        try:
            if find_manifest(self.path) != self.loaded:  # another writer came and went since it was read
                self._read(adopt)
            discard_unlisted(self.path)
        except OSError as error:
            lock.release()
            raise StoreUnavailableError(
                f"the store in {self.path} cannot be written: {reason(error)}"
            ) from error
        except BaseException:
            lock.release()
            raise
        self.writer = lock

    def write(self, snapshot: Snapshot) -> None:
        """Put a snapshot into the folder as its next generation."""
        if self.writer is not None:
            self.writer.check()
        before = self.loaded
        if find_manifest(self.path) != before:
            raise StoreLockedError(
                f"another writer has put a newer generation into {self.path}, which this store would "
                "overwrite; save(path) keeps what is in memory elsewhere"
            )
        try:
            self.loaded = write_generation(self.path, self._layout, snapshot, before, self.spoiled)
            self.spoiled = _spoiled(self.loaded, snapshot)
        except BaseException:
            with suppress(StoreError):  # interrupted after the new generation came into force
                self.loaded = find_manifest(self.path) or before
            raise

    def release(self) -> None:
        """Let other writers in."""
        if self.writer is not None:
            self.writer.release()
            self.writer = None


def _spoiled(manifest: FolderManifest, snapshot: Snapshot) -> frozenset[str]:
    """Return the names of the files of damaged blobs."""
    return frozenset(manifest.blobs[name].name for name, blob in snapshot.blobs.items() if blob.damage)
