"""A store in a folder: whole generations of files, and a manifest that names the one in force.

::

    MANIFEST.json            replaced last; names the other files with their sizes and SHA-256
    index-7.faiss            the vectors (vectors-7.npy for a copy of a MemoryStore)
    records-7.sqlite         ids, labels, metadata, norms
    ann-7.faiss, ann-7.npy   an approximate index, and which of its vectors is which row
    blob-NAME-5.bin          a blob, which has not changed since generation 5
    LOCK                     held by the writer

Files of generation 8 are written beside those of generation 7, then the manifest is replaced, then the files
of generation 7 are removed: whatever interrupts this, the folder opens at one generation or the other. A
store without records and blobs has only the manifest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clipretrieval._util.checks import shown
from clipretrieval._util.files import (
    TEMPORARY_SUFFIX,
    IrregularFileError,
    file_sha256,
    open_file,
    read_file,
    reason,
)
from clipretrieval.errors import InvalidInputError, StoreCorruptedError, StoreError, StoreUnavailableError
from clipretrieval.stores.checks import BLOB_NAME
from clipretrieval.stores.exact import row_norms
from clipretrieval.stores.local.blob import Blob, read_blob_file
from clipretrieval.stores.local.folder_manifest import (
    LARGEST_FILE,
    MANIFEST_NAME,
    FileEntry,
    FolderManifest,
    damaged,
)
from clipretrieval.stores.local.rows import VectorRows
from clipretrieval.stores.local.table import RecordTable, read_records
from clipretrieval.stores.local.writer_lock import LOCK_NAME
from clipretrieval.types import FloatArray, Metric

__all__ = [
    "GENERATION_FILE",
    "TEMPORARY_FILE",
    "GenerationFile",
    "Layout",
    "Snapshot",
    "find_manifest",
    "names_in",
    "read_generation",
]

GENERATION_FILE = re.compile(
    rf"(?:index|vectors|records|ann|blob-{BLOB_NAME})-(\d+)\.(?:faiss|npy|sqlite|bin)"
)
TEMPORARY_FILE = re.compile(
    rf"\.(?:{re.escape(MANIFEST_NAME)}|{GENERATION_FILE.pattern})\.[0-9a-f]+{re.escape(TEMPORARY_SUFFIX)}"
)
ATTEMPTS = 5
# The length of a vector as it lies in the rows may differ so much, relatively, from the one kept beside it:
# normalised vectors are rounded to float32.
LENGTH_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Layout:
    """How one class of store keeps its vectors in a folder.

    Attributes
    ----------
    kind : str
        The class's name.
    prefix, suffix : str
        The vectors' file is called PREFIX-GENERATION + SUFFIX.
    load : callable
        Maps (folder, manifest) to the rows in it; raises StoreCorruptedError.
    check : callable, optional
        Takes (folder, manifest); raises StoreCorruptedError if this class cannot have written the manifest.
    """

    kind: str
    prefix: str
    suffix: str
    load: Callable[[Path, FolderManifest], VectorRows]
    check: Callable[[Path, FolderManifest], None] | None = None


@dataclass(frozen=True)
class GenerationFile:
    """A file of a generation, called PREFIX-GENERATION + SUFFIX.

    Attributes
    ----------
    prefix, suffix : str
    dump : callable
        Writes the content, piece by piece, through the function that it is given.
    """

    prefix: str
    suffix: str
    dump: Callable[[Callable[[bytes], object]], None]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """All that a folder holds of a store.

    Attributes
    ----------
    metric : Metric
    dim : int or None
    table : RecordTable
    rows : VectorRows or None
        None only where there are no records.
    manifest : str
        The user's manifest as JSON text.
    index : str
        The kind of index that was asked for.
    files : mapping of str to GenerationFile
        Those of the index, by the names that the manifest gives them.
    state : dict, optional
        What is known of the index; JSON values.
    blobs : mapping of str to Blob
        By their names.
    """

    metric: Metric
    dim: int | None
    table: RecordTable
    rows: VectorRows | None
    manifest: str
    index: str = "Flat"
    files: Mapping[str, GenerationFile] = field(default_factory=dict)
    state: dict[str, Any] | None = None
    blobs: Mapping[str, Blob] = field(default_factory=dict)


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
    if any(GENERATION_FILE.fullmatch(name) for name in names):
        raise damaged(folder / MANIFEST_NAME, "it is missing")
    foreign = [name for name in names if name != LOCK_NAME and not TEMPORARY_FILE.fullmatch(name)]
    if foreign:
        raise InvalidInputError(
            f"{folder} is not a store, and not empty (it holds {foreign[0]!r}); give an empty or a new folder"
        )
    return None


def read_generation(folder: Path, layout: Layout) -> tuple[FolderManifest, Snapshot]:
    """Read the store in a folder, having verified its files.

    A blob that is missing or damaged keeps nobody from the vectors: whoever reads it is told.

    Raises
    ------
    StoreCorruptedError
        If any other file is missing, damaged or of an unknown format.
    StoreUnavailableError
        If there is no store or it cannot be read.
    StoreError
        If another class of store wrote it.
    """
    for _ in range(ATTEMPTS - 1):
        manifest = _existing_manifest(folder, layout)
        # A writer may have replaced the generation between reading the manifest and the files.
        try:
            snapshot = _read_files(folder, manifest, layout)
        except StoreCorruptedError:
            if find_manifest(folder) == manifest:
                raise
            continue
        damaged_blobs = any(blob.damage is not None for blob in snapshot.blobs.values())
        if not damaged_blobs or find_manifest(folder) == manifest:
            return manifest, snapshot
    manifest = _existing_manifest(folder, layout)
    return manifest, _read_files(folder, manifest, layout)


def _existing_manifest(folder: Path, layout: Layout) -> FolderManifest:
    manifest = find_manifest(folder)
    if manifest is None:
        raise StoreUnavailableError(f"there is no store in {folder}; check the path")
    if manifest.kind != layout.kind:
        raise StoreError(
            f"{folder} holds a {shown(manifest.kind)}, not a {layout.kind}; open it with that class of store"
        )
    return manifest


def _read_files(folder: Path, manifest: FolderManifest, layout: Layout) -> Snapshot:
    if layout.check is not None:
        layout.check(folder, manifest)
    try:
        blobs = {name: read_blob_file(folder, name, entry) for name, entry in manifest.blobs.items()}
        if not manifest.count:
            return _snapshot(manifest, RecordTable(), None, blobs)
        vectors, records = (folder / manifest.files[role].name for role in ("vectors", "records"))
        for entry in manifest.files.values():
            _verify(folder / entry.name, entry)
        rows = layout.load(folder, manifest)
        table = read_records(records, manifest.count)
    except FileNotFoundError as error:  # after it was verified: a writer has put a new generation in force
        raise damaged(Path(error.filename or folder), "it is missing") from error
    except OSError as error:
        raise StoreUnavailableError(f"the store in {folder} cannot be read: {reason(error)}") from error
    shape, expected = rows.view().shape, (manifest.count, manifest.dim)
    if shape != expected:
        raise damaged(vectors, f"it holds vectors of shape {shape}, not {expected}")
    _check_lengths(vectors, rows.view(), table, manifest.metric)
    return _snapshot(manifest, table, rows, blobs)


def _check_lengths(path: Path, rows: FloatArray, table: RecordTable, metric: Metric) -> None:
    """Compare the vectors, which must be finite, with the norms kept beside them: searches rely on both."""
    norms, kept = row_norms(rows), table.norms
    with np.errstate(invalid="ignore"):
        agree = np.abs(norms - kept) <= LENGTH_TOLERANCE * kept
        if metric is Metric.COSINE:  # some stores keep normalised vectors
            agree |= np.abs(norms - 1) <= LENGTH_TOLERANCE
            agree &= kept > 0
        agree &= np.isfinite(norms) & np.isfinite(kept)
    if not agree.all():
        row = int(np.argmin(agree))
        raise damaged(path, f"the vector in row {row} has the length {norms[row]:g}, not {kept[row]:g}")


def _snapshot(
    manifest: FolderManifest, table: RecordTable, rows: VectorRows | None, blobs: Mapping[str, Blob]
) -> Snapshot:
    return Snapshot(
        metric=manifest.metric,
        dim=manifest.dim,
        table=table,
        rows=rows,
        manifest=manifest.user,
        index=manifest.index,
        state=manifest.state,
        blobs=blobs,
    )


def _verify(path: Path, entry: FileEntry) -> None:
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
        if size != entry.size:
            raise damaged(path, f"it has {size} bytes, not {entry.size}")
        if file_sha256(path) != entry.sha256:
            raise damaged(path, "its content does not match its checksum")
    except FileNotFoundError:
        raise damaged(path, "it is missing") from None
    except IrregularFileError as error:
        raise damaged(path, str(error)) from error


def names_in(folder: Path) -> list[str]:
    """Return the names of what lies in a folder, in order; none if there is no folder."""
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreUnavailableError(f"{folder} cannot be read: {reason(error)}") from error
