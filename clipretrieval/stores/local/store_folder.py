"""A folder that a store is opened from and flushed to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from clipretrieval._util.files import reason, sync_folder
from clipretrieval._util.forks import renew_after_fork
from clipretrieval.errors import (
    FingerprintMismatchError,
    StoreCorruptedError,
    StoreLockedError,
    StoreUnavailableError,
)
from clipretrieval.stores.local.blob import Blob
from clipretrieval.stores.local.folder import Kind, Snapshot, find_manifest, read_blobs, read_store
from clipretrieval.stores.local.folder_manifest import FolderManifest, damaged
from clipretrieval.stores.local.folder_write import (
    clearing,
    discard_unlisted,
    telling_of_disks,
    write_generation,
)
from clipretrieval.stores.local.held import HeldRecords
from clipretrieval.stores.local.mapped_file import MappedFile, lies_in
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
    kind : Kind
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
        The files of its blobs, and of parts of its manifest, that are not as they were written.
    writer : WriterLock or None
        Held from the store's first write until it is closed.
    flushing : threading.Lock
        For one reading or writing of the folder at a time; searches do not wait for it.
    """

    def __init__(self, path: Path, kind: Kind, metric: Metric, *, read_only: bool) -> None:
        self.path, self.read_only = path, read_only
        self._kind, self._metric = kind, metric
        self.left_when_written = False
        self.loaded: FolderManifest | None = None
        self.spoiled: frozenset[str] = frozenset()
        self._in_doubt = False  # whether a generation may be in force of which `loaded` does not tell
        self.writer: WriterLock | None = None
        self._after_fork()
        renew_after_fork(self)

    def _after_fork(self) -> None:
        self.flushing = threading.Lock()

    def open(
        self, empty: FolderManifest, held: HeldRecords, adopt: Callable[[Snapshot], None], *, create: bool
    ) -> None:
        """Read the store, or make an `empty` one, in which nothing is held, and hold it for writing."""
        found = find_manifest(self.path)
        if found is not None:
            self._read(adopt, found)
            return
        if not create:
            raise StoreUnavailableError(
                f"there is no store in {self.path}; check the path. A new one is made without "
                + ("read_only=True" if self.read_only else "create=False")
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with suppress(OSError):  # some may not look into it
                sync_folder(self.path.parent)
        except OSError as error:
            raise StoreUnavailableError(f"the folder {self.path} cannot be made: {error}") from error
        lock = WriterLock(self.path)
        lock.acquire()
        try:
            if find_manifest(self.path) is None:
                with telling_of_disks(self.path):
                    self.loaded = write_generation(self.path, empty, held, {}, {}, None)
            else:  # another writer made it in between
                self._read(adopt)
        except BaseException:
            lock.release()
            raise
        self.writer = lock

    def _read(self, adopt: Callable[[Snapshot], None], found: FolderManifest | None = None) -> None:
        snapshot = read_store(self.path, self._kind, found)
        manifest = snapshot.manifest
        if manifest.metric is not self._metric:
            held, asked = str(manifest.metric), str(self._metric)
            raise FingerprintMismatchError(
                f"the store in {self.path} was made with metric {held!r}; found metric={asked!r}. "
                f"Open it with metric={held!r}, or fill a new folder"
            )
        if not self.read_only:  # nothing could be flushed
            snapshot.segments.require_whole()
        adopt(snapshot)
        self.loaded = manifest
        self.spoiled = _spoiled(manifest, snapshot.blobs, snapshot.parts)

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

    @property
    def next_generation(self) -> int:
        """The number of the generation that is written next."""
        return 0 if self.loaded is None else self.loaded.generation + 1

    @contextmanager
    def writing(self, kept: Callable[[], Collection[str]], again: str = "flush") -> Iterator[None]:
        """Write files of the next generation in a block, which leaves only those in force and those kept.

        Parameters
        ----------
        kept : callable
            Returns the names of the files that the store holds, when it is called.
        again : str
            What to do again where the disk fails.

        Raises
        ------
        StoreLockedError
            If the folder is not this store's to write.
        StoreUnavailableError
            If it cannot be written. The generation before stays in force, unless the message says otherwise.
        """
        if self.writer is not None:
            self.writer.check()
        found = find_manifest(self.path)
        if self._in_doubt:
            self.loaded, self._in_doubt = found, False
        if found != self.loaded:
            raise StoreLockedError(
                f"another writer has put a newer generation into {self.path}, which this store would "
                "overwrite; save(path) keeps what is in memory elsewhere"
            )
        with telling_of_disks(self.path, again), clearing(self.path, kept):
            yield

    def put(
        self, new: FolderManifest, held: HeldRecords, blobs: Mapping[str, Blob], parts: Mapping[str, Blob]
    ) -> None:
        """Put the next generation in force, within `writing`; see `write_generation`."""
        self._in_doubt = True
        loaded = write_generation(self.path, new, held, blobs, parts, self.loaded, self.spoiled)
        self.spoiled = _spoiled(loaded, blobs, parts)
        self.loaded, self._in_doubt = loaded, False

    def verify(self, held: HeldRecords, blobs: Mapping[str, Blob], parts: Mapping[str, Blob]) -> None:
        """Read what lies beside segments and the index; another generation's, only as far as it is held.

        Raises
        ------
        StoreCorruptedError
            If it is not as it was written.
        """
        loaded = find_manifest(self.path)
        if loaded is not None and loaded == self.loaded:
            try:
                self._verify_files(loaded, held)
                return
            except StoreCorruptedError:
                if find_manifest(self.path) == loaded:  # otherwise a writer has removed what was in force
                    raise
        for blob in (*blobs.values(), *parts.values()):
            blob.read()

    def _verify_files(self, loaded: FolderManifest, held: HeldRecords) -> None:
        for part in held.segments.parts:  # which are verified through their maps
            if not lies_in(self.path, part.entry.name, part.size):
                raise damaged(part.path, "it is missing, or was cut off")
        for role, entry in loaded.files.items():
            if not role.startswith("ann"):  # an index is derived, and verified by whoever can build it anew
                MappedFile(self.path / entry.name, entry.size).verify(entry.sha256)
        for kept in read_blobs(self.path, loaded):
            for name in sorted(kept):
                kept[name].read()

    def release(self) -> None:
        """Let other writers in."""
        if self.writer is not None:
            self.writer.release()
            self.writer = None


def _spoiled(
    manifest: FolderManifest, blobs: Mapping[str, Blob], parts: Mapping[str, Blob]
) -> frozenset[str]:
    """Return the files of blobs and parts that are damaged."""
    return frozenset(
        entries[name].name
        for entries, kept in ((manifest.blobs, blobs), (manifest.parts, parts))
        for name, blob in kept.items()
        if blob.damage
    )
