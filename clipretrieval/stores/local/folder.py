"""A store in a folder: files that never change, and a manifest that names those in force.

::

    MANIFEST.json              replaced last; names the other files with their sizes and SHA-256
    segment-5-0.bin            some rows: vectors, ids, labels, metadata; see `segment`
    segment-7-0.bin            those that came with generation 7
    removed-6-0.bin            a bit for each row up to some, set where it was removed
    ann-6-0.faiss, .npy        an approximate index over the first rows, and which of its vectors is which row
    blob-NAME-5.bin            a blob, which has not changed since generation 5
    part-5-0.json              a long value of the user's manifest, likewise
    LOCK                       held by the writer

Files of generation 8 are written beside those of generation 7, then the manifest is replaced, then files that
it does not name any more are removed: whatever interrupts this, the folder opens at one generation or the
other. A flush writes what came since the last one; small segments are joined now and then, so that there are
never many, and segments of which more than half was removed are written anew.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from clipretrieval._util.checks import shown
from clipretrieval._util.files import TEMPORARY_SUFFIX, IrregularFileError, read_file, reason
from clipretrieval.errors import InvalidInputError, StoreCorruptedError, StoreError, StoreUnavailableError
from clipretrieval.stores.checks import BLOB_NAME
from clipretrieval.stores.local import format1
from clipretrieval.stores.local.blob import Blob, read_blob_file
from clipretrieval.stores.local.folder_manifest import LARGEST_FILE, MANIFEST_NAME, FolderManifest, damaged
from clipretrieval.stores.local.mapped_file import MappedFile
from clipretrieval.stores.local.segment import Segment, open_segment
from clipretrieval.stores.local.segments import BitArray, Segments
from clipretrieval.stores.local.table import RecordTable
from clipretrieval.stores.local.writer_lock import LOCK_NAME
from clipretrieval.types import FloatArray

__all__ = [
    *("STORE_FILE", "TEMPORARY_FILE", "Kind", "Snapshot"),
    *("find_manifest", "names_in", "read_blobs", "read_store"),
]

STORE_FILE = re.compile(
    rf"(?:(?:ann|removed|segment)-\d+|index|vectors|records|ann|blob-{BLOB_NAME})-\d+\.(?:faiss|npy|sqlite|bin)"
    r"|part-\d+-\d+\.json"
)
TEMPORARY_FILE = re.compile(
    rf"\.(?:{re.escape(MANIFEST_NAME)}|{STORE_FILE.pattern})\.[0-9a-f]+{re.escape(TEMPORARY_SUFFIX)}"
)
ATTEMPTS = 5


@dataclass(frozen=True)
class Kind:
    """A class of store, as its folders name it.

    Attributes
    ----------
    name : str
    check : callable, optional
        Takes (folder, manifest); raises StoreCorruptedError if this class cannot have written the manifest.
    """

    name: str
    check: Callable[[Path, FolderManifest], None] | None = None


@dataclass(frozen=True, eq=False)
class Snapshot:
    """All that a folder holds of a store.

    Attributes
    ----------
    manifest : FolderManifest
    segments : Segments
    table : RecordTable
        Records that are in no segment: those of a folder of format 1.
    vectors : ndarray of float32, shape (len(table), dim), optional
        None only where `table` is empty.
    files : mapping of str to MappedFile
        Those of the index, by their roles.
    blobs : mapping of str to Blob
        By their names.
    parts : mapping of str to Blob
        Long values of the user's manifest, by their keys.
    """

    manifest: FolderManifest
    segments: Segments
    table: RecordTable
    vectors: FloatArray | None
    files: Mapping[str, MappedFile] = field(default_factory=dict)
    blobs: Mapping[str, Blob] = field(default_factory=dict)
    parts: Mapping[str, Blob] = field(default_factory=dict)

    @property
    def is_damaged(self) -> bool:
        """Whether a file is missing, or no such file as it should be."""
        files: list[Segment | MappedFile | Blob] = [*self.segments.parts, *self.files.values()]
        blobs = (*self.blobs.values(), *self.parts.values())
        return any(each.damage is not None for each in [*files, *blobs])


def find_manifest(folder: Path) -> FolderManifest | None:
    """Return the manifest in force, or None where a new store may be made.

    Raises
    ------
    InvalidInputError
        If `folder` is a file, or a folder of something else.
    StoreCorruptedError
        If there are a store's files without a manifest, or the manifest is damaged.
    StoreUnavailableError
        If it cannot be read.
    """
    try:
        return FolderManifest.parse(read_file(folder / MANIFEST_NAME, LARGEST_FILE), folder)
    except FileNotFoundError:
        pass
    except IrregularFileError as error:
        raise damaged(folder / MANIFEST_NAME, str(error)) from error
    except NotADirectoryError:
        raise InvalidInputError(f"a store's path must be a folder; {folder} is a file") from None
    except OSError as error:
        raise StoreUnavailableError(f"the store in {folder} cannot be read: {reason(error)}") from error
    names = names_in(folder)
    if any(STORE_FILE.fullmatch(name) for name in names):
        raise damaged(folder / MANIFEST_NAME, "it is missing")
    foreign = [name for name in names if name != LOCK_NAME and not TEMPORARY_FILE.fullmatch(name)]
    if foreign:
        raise InvalidInputError(
            f"{folder} is not a store, and not empty (it holds {foreign[0]!r}); give an empty or a new folder"
        )
    return None


def read_store(folder: Path, kind: Kind, found: FolderManifest | None = None) -> Snapshot:
    """Read the store in a folder: its manifest and blobs; segments and an index are opened, and read later.

    A segment or a blob that is missing or damaged keeps nobody from the others: whoever reads it is told.

    Parameters
    ----------
    folder : Path
    kind : Kind
    found : FolderManifest, optional
        The manifest, where it has just been read.

    Raises
    ------
    StoreCorruptedError
        If any other file is missing, of another size than it should be, or of an unknown format.
    StoreUnavailableError
        If there is no store or it cannot be read.
    StoreError
        If another class of store wrote it.
    """
    for _ in range(ATTEMPTS - 1):
        manifest, found = _existing_manifest(folder, kind, found), None
        # A writer may have replaced the generation between reading the manifest and the files.
        try:
            snapshot = _read_files(folder, manifest, kind)
        except StoreCorruptedError:
            if find_manifest(folder) == manifest:
                raise
            continue
        if not snapshot.is_damaged or find_manifest(folder) == manifest:
            return snapshot
    return _read_files(folder, _existing_manifest(folder, kind), kind)


def _existing_manifest(folder: Path, kind: Kind, found: FolderManifest | None = None) -> FolderManifest:
    manifest = find_manifest(folder) if found is None else found
    if manifest is None:
        raise StoreUnavailableError(f"there is no store in {folder}; check the path")
    if manifest.kind != kind.name:
        raise StoreError(
            f"{folder} holds a {shown(manifest.kind)}, not a {kind.name}; open it with that class of store"
        )
    return manifest


def _read_files(folder: Path, manifest: FolderManifest, kind: Kind) -> Snapshot:
    if kind.check is not None:
        kind.check(folder, manifest)
    try:
        blobs, long = read_blobs(folder, manifest)
        files = {role: MappedFile(folder / entry.name, entry.size) for role, entry in manifest.files.items()}
        if manifest.version == 1 and manifest.count:
            table, vectors = format1.read_generation(folder, manifest, files)
            return Snapshot(manifest, Segments(), table, vectors, files, blobs)
        dim = manifest.dim or 1
        parts = [open_segment(folder, entry, dim, manifest.metric) for entry in manifest.segments]
        removed = _read_removed(manifest, files.pop("removed", None))
    except FileNotFoundError as error:  # after it was verified: a writer has put a new generation in force
        raise damaged(Path(error.filename or folder), "it is missing") from error
    except OSError as error:
        raise StoreUnavailableError(f"the store in {folder} cannot be read: {reason(error)}") from error
    segments = Segments(parts, removed, manifest.files.get("removed"))
    return Snapshot(manifest, segments, RecordTable(), None, files, blobs, long)


def read_blobs(folder: Path, manifest: FolderManifest) -> tuple[dict[str, Blob], dict[str, Blob]]:
    """Read the blobs that a manifest names, and the parts of the user's manifest; see `read_blob_file`."""
    return (
        {name: read_blob_file(folder, f"the blob {name!r}", each) for name, each in manifest.blobs.items()},
        {key: read_blob_file(folder, "the manifest", each) for key, each in manifest.parts.items()},
    )


def _read_removed(manifest: FolderManifest, file: MappedFile | None) -> BitArray | None:
    """Return which rows were removed, None where none was; those behind the last that is listed were not."""
    if file is None:
        return None
    file.verify(manifest.files["removed"].sha256)
    listed = np.unpackbits(file.content[: -(-manifest.rows // 8)], bitorder="little").view(bool)
    removed = np.zeros(manifest.rows, dtype=bool)
    removed[: len(listed)] = listed[: manifest.rows]
    left = manifest.rows - int(np.count_nonzero(removed))
    if left != manifest.count:
        raise damaged(file.path, f"of {manifest.rows} rows it leaves {left}, not {manifest.count}")
    return removed


def names_in(folder: Path) -> list[str]:
    """Return the names of what lies in a folder, in order; none if there is no folder."""
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreUnavailableError(f"{folder} cannot be read: {reason(error)}") from error
